"""How long a run will take, and how much memory: measured on a few updates before it starts."""

import dataclasses
import gc
from functools import partial
from typing import Any

import torch

from dino_lib.data.say import say
from dino_lib.run.build import clock, pick_device
from dino_lib.run.config import Config
from dino_lib.run.profile import memory, seconds_of_update
from dino_lib.run.train import build_trainer


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What `estimate` has found. `str()` says it in words."""

    config: Config
    """The settings, with `accumulate` as the memory allows."""
    seconds: float
    """Of an update, its views included."""
    updates: int
    """In the whole run."""
    bytes: int
    """On CUDA what tensors take at most, elsewhere what the process takes."""
    free: int | None
    """Bytes that were free on the GPU before; None without one."""
    precision: str

    @property
    def minutes(self) -> float:
        """Of all updates; evaluations and checkpoints come on top."""
        return self.seconds * self.updates / 60

    def __str__(self) -> str:
        config, parts = self.config, self.config.accumulate
        room = "" if self.free is None else f" of {self.free / 2**30:.1f}"
        cut = f" in {parts} parts (--accumulate {parts})" if parts > 1 else ""
        return (f"{self.updates:,} updates of {config.batch_size} images{cut}, "
                f"{self.seconds:.2f} s each in {self.precision}: about {self.minutes:.0f} minutes, "
                f"evaluations aside; {self.bytes / 2**30:.1f}{room} GiB of memory")


def estimate(config: Config, dataset: Any = None, *, updates: int = 8) -> Estimate:
    """Take some updates of a run of these settings and throw them away; nothing is written.

    Where an update does not fit into the GPU's memory, `accumulate` is doubled until it does.
    dataset: as for `train`. The images are decoded here, and kept for the run as `train` keeps
    them. Raises torch.OutOfMemoryError where one image a part is still too much, or the settings
    take no parts: batch_size has to be smaller.
    """
    device = pick_device(config.device)
    gpu = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if gpu else None
    while True:
        if gpu:
            torch.cuda.reset_peak_memory_stats(device)  # what was too much doesn't count
        try:
            trainer = build_trainer(dataclasses.replace(config, eval_every=0.0), dataset)
            seconds = seconds_of_update(trainer, updates, partial(clock, trainer.device))
            precision = str(trainer.dtype).removeprefix("torch.")
            taken = memory(trainer.device)
            return Estimate(config, seconds, trainer.total_steps, taken, free, precision)
        except torch.OutOfMemoryError:
            trainer = None
            parts = 2 * config.accumulate
            whole = config.koleo or config.centering == "sinkhorn"  # they take no parts
            if whole or config.batch_size % parts:
                raise
            config = dataclasses.replace(config, accumulate=parts)
            say(f"the memory does not suffice: {parts} parts")
        gc.collect()
        torch.cuda.empty_cache()
