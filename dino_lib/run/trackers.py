"""The hook that sends a run's history to TensorBoard or Weights & Biases (extras)."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from tqdm.auto import tqdm

from dino_lib.run.config import Config

Record = dict[str, Any]
Track = Callable[[Record], None]


@contextlib.contextmanager
def open_tracker(config: Config | None) -> Iterator[Track]:
    """Yields a function of one record of the history, a dict with "step".

    It does nothing for None or tracker="none". A tracker that fails later, on a full disk say,
    costs its own lines and not the run. Raises ImportError where the package is missing and
    ValueError where Weights & Biases cannot start.
    """
    if config is None or config.tracker == "none":
        yield lambda record: None
        return
    opener = _open_tensorboard if config.tracker == "tensorboard" else _open_wandb
    track, close = opener(config)
    failed = []

    def carefully(do: Callable, *arguments: Record) -> None:
        if failed:
            return
        try:
            do(*arguments)
        except Exception as error:  # whatever another program's client raises
            failed.append(error)
            tqdm.write(f"tracker={config.tracker} has failed ({error}); the run goes on without it")

    try:
        yield lambda record: carefully(track, record)
    finally:
        carefully(close)


def _open_tensorboard(config: Config) -> tuple[Track, Callable[[], None]]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(config.output_dir)

    def track(record: Record) -> None:
        for name, value in record.items():
            if name != "step":
                writer.add_scalar(name, value, record["step"])

    return track, writer.close


def _open_wandb(config: Config) -> tuple[Track, Callable[[], None]]:
    import wandb

    settings = dataclasses.asdict(config)
    try:
        run = wandb.init(project="dino", dir=config.output_dir, config=settings)
    except wandb.errors.Error as error:  # no key, no network
        raise ValueError(
            f"tracker=wandb cannot start: {error} Or set WANDB_MODE=offline, or tracker=none"
        ) from error

    def track(record: Record) -> None:
        values = {name: value for name, value in record.items() if name != "step"}
        run.log(values, step=record["step"])

    return track, run.finish
