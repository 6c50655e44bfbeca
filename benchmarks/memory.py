"""Memory over a long run: `python benchmarks/memory.py`, 20,000 updates of a small network in about
12 minutes.

The smoke preset with a smaller network and 32 images, the history on (a line every 10 updates), an
evaluation every 500 updates and a checkpoint every 100. The resident set (Linux) is read every 10
updates; the claim is that its mean over the last tenth of the run is that over the first but for
the history, which the run returns and which therefore grows, by a line of some 2 kB every 10
updates. `--leak N` keeps N bytes of every update, to see that the command finds it: it fails where
the growth is more than 8 MB.
"""

import argparse
import mmap
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from dino_lib.run.presets import PRESETS
from dino_lib.run.train import build_trainer

SMALL = replace(
    PRESETS["smoke"],
    limit=32,
    batch_size=8,
    store_size=24,
    global_size=24,
    local_size=12,
    warmup_epochs=1,
    backbone_options={"img_size": 24, "patch_size": 6, "embed_dim": 32, "depth": 1, "num_heads": 2},
    eval_limit=60,
    log_every=10,
    save_every=25,
    eval_every=125,
    device="cpu",
    precision="fp32",
    progress=False,
)
EVERY = 10  # updates between two readings
ALLOWED = 8.0  # MB


def resident():
    """This process's resident set in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure(config, leak=0):
    """The resident set (MB) at every EVERY-th update of a run."""
    readings, leaked = [], []

    trainer = build_trainer(config)
    step = trainer.train_step

    def watched(views):
        if trainer.step % EVERY == 0:
            readings.append(resident())
        if leak:
            leaked.append(mmap.mmap(-1, leak))  # new memory, where NumPy might use old again
            leaked[-1].write(np.random.bytes(leak))
        return step(views)

    trainer.train_step = watched
    trainer.run()
    lines = len(trainer.history)
    print(
        f"{trainer.step} updates, {lines} lines of history, "
        f"{trainer.step // (4 * round(config.save_every))} saves"
    )
    return np.array(readings)


def deciles(readings):
    """(the ten means in MB, the slope in MB per 1,000 updates past the first tenth)."""
    tenth = len(readings) // 10
    x = np.arange(len(readings)) * EVERY / 1000
    return readings[: 10 * tenth].reshape(10, tenth).mean(1), np.polyfit(
        x[tenth:], readings[tenth:], 1
    )[0]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--leak", type=int, default=0, help="bytes to keep of every update")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    clock = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        readings = measure(replace(SMALL, epochs=args.updates / 4, output_dir=folder), args.leak)
    tenths, slope = deciles(readings)
    growth = tenths[-1] - tenths[0]
    print(f"resident set by tenths of the run, MB: {' '.join(f'{mean:.1f}' for mean in tenths)}")
    print(
        f"first to last: {growth:+.1f} MB ({growth / tenths[0]:+.2%}); "
        f"slope {slope:+.3f} MB per 1,000 updates; "
        f"largest reading {readings.max():.1f} MB; {time.perf_counter() - clock:.0f} s"
    )
    sys.exit(f"grew by more than {ALLOWED:.0f} MB" if growth > ALLOWED else 0)


if __name__ == "__main__":
    main()
