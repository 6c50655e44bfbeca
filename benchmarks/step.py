"""A training step against lightly and the official recipe on a CPU: time, FLOP/s, memory. With a
GPU: `card.py`.

The contestants take the same views of noise in turn, in one process; a figure is the median over
the rounds. Peak memory is that of a first step in a process of its own, above what the libraries
hold before it. `peers.py` says what the others do. Rows of the table of `bench.py`: {"figure",
"ours", "peer", "ratio", "aim"}, "sign" for which side of the aim is wanted, and "unit" of ours and
peer.
"""

import re
import resource
import statistics
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import peers
import torch
from PIL import Image

from dino_lib.data.shapes import Shapes
from dino_lib.measure.features import extract_features
from dino_lib.run.build import build_student, clock, pick_precision, product_ceiling
from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS
from dino_lib.run.profile import count_flops
from dino_lib.run.train import build_trainer

COMMON = {
    "epochs": 1000,
    "freeze_last_layer": 0.0,
    "drop_path": 0.0,
    "eval_every": 0,
    "progress": False,
}
PAPER = Config(**COMMON, batch_size=4)  # ViT-S/16, 2 x 224 + 8 x 96, K = 65,536
SMALL = replace(PRESETS["smoke"], **COMMON)  # for --quick
PEERS = {"official": peers.official, "lightly": peers.lightly}


def trainer_of(config, images=None):
    """A Trainer that writes nothing, of `images` or of a batch of grey squares."""
    images = images or [Image.new("RGB", (8, 8))] * config.batch_size
    return build_trainer(
        replace(config, store_size=config.store_size or 8, output_dir=tempfile.gettempdir()), images
    )


def ours(config, device):
    """The library's own step."""
    trainer = trainer_of(replace(config, device=device.type))
    return lambda views: trainer.train_step(views)["loss"]


def noise(config, device):
    generator, sizes = (
        torch.Generator().manual_seed(0),
        [config.global_size] * 2 + [config.local_size] * config.n_local,
    )
    return [
        torch.randn(config.batch_size, 3, size, size, generator=generator).to(device)
        for size in sizes
    ]


def against(figure, config, device, others, aims, rounds):
    """A row for each of `others`: median seconds a step, ours and the other's in turn, and the
    median ratio.

    Only two at a time are in memory: with all four there lightly's step once took 38 s instead of 5
    to 8 (24 GB of memory, the cause not found).
    """
    rows, views = [], noise(config, device)
    for name, make in others.items():
        steps, seconds = (ours(config, device), make(config, device)), ([], [])
        for turn in range(rounds + 1):
            for step, mine in zip(steps, seconds, strict=True):
                start = clock(device)
                step(views)
                if turn:  # the first warms up
                    mine.append(clock(device) - start)
        ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
        rows.append(
            {
                "figure": f"{figure}, against {name}",
                "ours": statistics.median(seconds[0]),
                "unit": "s",
                "peer": statistics.median(seconds[1]),
                "ratio": ratio,
                "aim": aims.get(name),
                "sign": ">=",
            }
        )
        del steps
    return rows


def fp32(config, device):
    return ours(replace(config, precision="fp32"), device)


def step_rows(rounds, quick):
    """The paper's step and the presets', on the CPU, and the share of the machine's ceiling in the
    step's own precision.
    """
    cpu, paper = torch.device("cpu"), SMALL if quick else PAPER
    rows = against(
        f"step of {paper.batch_size}, ViT-S/16, K = 65,536",
        paper,
        cpu,
        {"ours in fp32": fp32, **PEERS},
        {"official": 2.7, "lightly": 3.0},
        rounds,
    )
    trainer, views = trainer_of(replace(paper, device="cpu")), noise(paper, cpu)
    rate = count_flops(lambda: trainer.train_step(views)) / rows[-1]["ours"] / 1e9
    dtype = pick_precision("auto", cpu)
    ceiling = product_ceiling(cpu, dtype) / 1e9
    rows.append(
        {
            "figure": f"its FLOP/s against a large {str(dtype).removeprefix('torch.')} product's",
            "ours": rate,
            "peer": ceiling,
            "unit": "GFLOP/s",
            "ratio": rate / ceiling,
            "aim": 0.55,
            "sign": ">=",
        }
    )
    for name in ["smoke"] if quick else ["demo", "laptop"]:
        preset = replace(PRESETS[name], **COMMON)
        rows += against(
            f"step of the preset {name}", preset, cpu, PEERS, {"official": 1.6}, 3 * rounds
        )
    return rows


def feature_rows(rounds, quick):
    """Features in the machine's own precision against float32: images a second, and how far a
    feature moves.
    """
    cpu, config = torch.device("cpu"), SMALL if quick else PAPER
    model, images = build_student(config).backbone, noise(replace(config, batch_size=16), cpu)[0]
    seconds, found = ([], []), [None, None]
    for turn in range(rounds + 1):
        for i, dtype in enumerate((pick_precision("auto", cpu), torch.float32)):
            start = clock(cpu)
            found[i] = extract_features(model, images, dtype=dtype)
            if turn:
                seconds[i].append(clock(cpu) - start)
    rates = [len(images) / statistics.median(mine) for mine in seconds]
    apart = (found[0] - found[1]).norm(dim=1).max()
    return [
        {
            "figure": "features, ViT-S/16 at 224 px, against float32 "
            f"(moved by {apart:.4f} at most)",
            "ours": rates[0],
            "peer": rates[1],
            "unit": "images/s",
            "ratio": statistics.median(b / a for a, b in zip(*seconds, strict=True)),
            "aim": None,
        }
    ]


def growth_rows(rounds, quick):
    """Time an image, views and update, from a store ten times as large."""
    few, many = (64, 640) if quick else (400, 4000)
    config = replace(
        SMALL if quick else PRESETS["demo"], **{**COMMON, "limit": None, "device": "cpu"}
    )
    shapes, batches, seconds = Shapes(many, size=config.store_size), {}, {few: [], many: []}
    for n in (few, many):
        trainer = trainer_of(config, shapes if n == many else Shapes(few, size=config.store_size))
        order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).repeat(
            3 * rounds * config.batch_size
        )
        indices = order[: (10 * rounds + 1) * config.batch_size].view(-1, config.batch_size).numpy()
        batches[n] = trainer, iter(trainer.views.batches(0, indices))
    for turn in range(10 * rounds + 1):
        for n, (trainer, views) in batches.items():
            start = clock(trainer.device)
            trainer.train_step(next(views))
            if turn:
                seconds[n].append((clock(trainer.device) - start) / config.batch_size)
    small, large = (1e3 * statistics.median(seconds[n]) for n in (few, many))
    return [
        {
            "figure": f"time an image, {many} images in the store against {few}",
            "ours": large,
            "peer": small,
            "unit": "ms",
            "ratio": large / small,
            "aim": 1.05,
            "sign": "<=",
        }
    ]


def memory_rows(rounds, quick):
    """The first step of a batch of 8, each contestant in a process of its own."""
    peak = {}
    for name in ("ours", "official", "lightly"):
        words = [sys.executable, "-W", "ignore", __file__, name, *(["--quick"] if quick else [])]
        peak[name] = float(
            subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
        )
    return [
        {
            "figure": f"peak memory of the first step, batch 8, against {name}",
            "ours": peak["ours"],
            "unit": "MiB",
            "peer": peak[name],
            "ratio": peak["ours"] / peak[name],
            "aim": 0.6 if name == "lightly" else None,
            "sign": "<=",
        }
        for name in ("official", "lightly")
    ]


def rows(rounds=3, quick=False):
    """All rows, one list."""
    parts = (memory_rows, step_rows, feature_rows, growth_rows)
    return [row for part in parts for row in part(rounds, quick)]


def first_step(name, quick):
    """Prints the largest resident set of this process in one step of a batch of 8, less the one
    before it, in MiB.
    """
    before = resident("VmRSS")
    config, cpu = replace(SMALL if quick else PAPER, batch_size=8), torch.device("cpu")
    {"ours": ours, **PEERS}[name](config, cpu)(noise(config, cpu))
    print(resident("VmHWM") - before)


def resident(name):
    """MiB: VmRSS, what this process holds now, or VmHWM, the most it held; elsewhere than on Linux
    the most.
    """
    status = Path(
        "/proc/self/status"
    )  # getrusage also counts what the parent process took before the exec
    if status.exists():
        return int(re.search(rf"{name}:\s*(\d+)", status.read_text())[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        2**20 if sys.platform == "darwin" else 1024
    )


if __name__ == "__main__":
    first_step(sys.argv[1], "--quick" in sys.argv)
