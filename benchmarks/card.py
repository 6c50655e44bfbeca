"""What a training step does to a card: images a second, the share of its matrix rate, memory, the
idle share, and the host's time.

The contestants take the same views of noise in turn, in one process: the library's step, the same
compiled, the same with views that it makes itself of a store, the official recipe and lightly (see
`peers.py`; on CUDA both in float16 with a scaler). A figure is the median over the rounds. On a CPU
all of it runs too, without the figures that only a card has: so it is tested.
"""

import gc
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import peers
import step
import torch

from dino_lib.data.items import InMemory
from dino_lib.run.build import clock, pick_precision, product_ceiling
from dino_lib.run.presets import PRESETS
from dino_lib.run.profile import count_flops

ROUNDS = 3
SECONDS = 1.5  # of a round
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")  # what a trace calls the card's own work

NETWORKS = {
    "ViT-S/16, 2 x 224 + 8 x 96, K = 65,536": replace(step.PAPER, batch_size=64),
    "preset gpu": replace(PRESETS["gpu"], **step.COMMON),
    "preset colab": replace(PRESETS["colab"], **step.COMMON),
}


def compiled(config, device):
    return step.ours(replace(config, compile=True), device)


def with_views(config, device):
    """The library's step that makes its views itself, of a store of noise."""
    side, n = config.store_size or 256, 4 * config.batch_size
    noise = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8)
    config = replace(config, store_size=side, device=device.type)
    trainer = step.trainer_of(config, InMemory(noise, torch.zeros(n, dtype=torch.long)))
    batches = trainer.views.batches(0, Endless(n, config.batch_size))
    return lambda views: trainer.train_step(next(batches))["loss"]


class Endless:
    """Indices of batch after batch, for ever."""

    def __init__(self, n, size):
        self.rows = torch.arange(n).view(-1, size).numpy()

    def __iter__(self):
        while True:
            yield from self.rows


CONTESTANTS = {
    "here": step.ours,
    "here, with its views": with_views,
    "official recipe": peers.official,
    "lightly": peers.lightly,
    "here, compiled": compiled,  # last: the others don't wait for its minute
}


def measure(config, device, rounds=ROUNDS, seconds=SECONDS):
    """{"batch", "precision", "rate": FLOP/s of a large product, "flops": of an image, "rows"}.

    rows: contestant -> {"images/s", "share": of the rate, "peak, GiB", "idle", "host, ms",
    "kernels": of a step, "first step, s"}, or {"failed": why}. Where the memory does not suffice
    for one of them, all begin anew with half the batch.
    """
    while True:
        try:
            return _measure(config, device, rounds, seconds)
        except torch.OutOfMemoryError:
            if config.batch_size <= 4:
                raise
            config = replace(config, batch_size=config.batch_size // 2)
        gc.collect()
        torch.cuda.empty_cache()


def _measure(config, device, rounds, seconds):
    views = step.noise(config, device)
    dtype = pick_precision("auto", device)
    rate, flops = product_ceiling(device, dtype), flops_of_an_image(config)
    steps, rows = {}, {}
    for name, make in CONTESTANTS.items():
        try:
            steps[name], rows[name] = first_steps(make, config, views, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # one that is not installed or does not compile: the rest counts
            words = str(error).splitlines() or [""]
            rows[name] = {"failed": f"{type(error).__name__}: {words[0][:200]}"}
    taken = {name: [] for name in steps}
    for _ in range(rounds):
        for name, one in steps.items():
            n = max(2, round(seconds / rows[name]["step, s"]))
            start = clock(device)
            for _ in range(n):
                one(views)
            taken[name].append((clock(device) - start) / n)
    for name, one in steps.items():
        step_s = statistics.median(taken[name])
        row = rows[name] | {"step, s": step_s, "images/s": config.batch_size / step_s}
        row["share"] = row["images/s"] * flops / rate
        row["host, ms"] = 1e3 * host_time(one, views, device)
        busy, row["kernels"] = busy_time(one, views)
        row["idle"] = max(0.0, 1 - busy / step_s) if row["kernels"] else None
        rows[name] = row
    names = {"batch": config.batch_size, "precision": str(dtype).removeprefix("torch.")}
    return {**names, "rate": rate, "flops": flops, "rows": rows}


def flops_of_an_image(config):
    """Of the products of an update, for one image: counted on the CPU, where two images will do."""
    cpu = torch.device("cpu")
    two = replace(config, batch_size=2, device="cpu", precision="fp32")
    trainer, views = step.trainer_of(two), step.noise(two, cpu)
    return count_flops(lambda: trainer.train_step(views)) / 2


def first_steps(make, config, views, device):
    """A contestant after four steps, and what they took: its own memory, the first step's time."""
    cuda = device.type == "cuda"
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    one = make(config, device)
    start = clock(device)
    one(views)
    row = {"first step, s": clock(device) - start}
    one(views)
    start = clock(device)
    for _ in range(2):
        one(views)
    row["step, s"] = (clock(device) - start) / 2
    peak = torch.cuda.max_memory_allocated() - before if cuda else None
    row["peak, GiB"] = peak / 2**30 if cuda else None
    return one, row


def host_time(one, views, device):
    """Seconds until a step's call returns, the card being idle before: what the host needs, and
    what it waits for."""
    seconds = []
    for _ in range(5):
        start = clock(device)
        one(views)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def busy_time(one, views, n=5):
    """(seconds in which the card computes, kernels) of a step; (0, 0) without a card.

    From the trace's own file: its layout has stayed while torch's names for it changed.
    """
    if not torch.cuda.is_available():
        return 0.0, 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
        for _ in range(n):
            one(views)
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        seen.export_chrome_trace(str(path))
        return busy_of(json.loads(path.read_text())["traceEvents"], n)


def busy_of(events, n):
    """(seconds in which at least one kernel ran, kernels), both of one of n steps."""
    spans = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("cat") in KERNELS)
    busy, until = 0.0, float("-inf")
    for start, end in spans:
        busy += max(0.0, end - max(start, until))
        until = max(until, end)
    return busy / 1e6 / n, round(len(spans) / n)
