"""The doctor's confusion table: `python benchmarks/doctor.py --out doctor.json`.

Small real runs on the embedded dataset (40 updates, 16 images each): ten healthy ones, seeds 0 to
9, and one for each kind of illness. A line a run, a column a finding; the command fails if a
healthy run has a finding, or a sick one lacks the finding that it was made to have. A run takes
some 2 s on an idle core; --jobs of them run at a time.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch

from dino_lib.data.shapes import Shapes
from dino_lib.run.doctor import ADVICE, diagnose
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.train import build_trainer

SMALL = replace(
    PRESETS["smoke"],
    limit=160,
    batch_size=16,
    epochs=4,
    out_dim=64,
    hidden_dim=64,
    momentum=0.9,
    momentum_end=0.95,
    store_size=32,
    global_size=24,
    local_size=12,
    color_jitter=(0.4, 0.0, 0.0, 0.0),
    gray_p=0.0,
    blur_p=(0.0, 0.0, 0.0),
    backbone_options={**PRESETS["smoke"].backbone_options, "img_size": 24},
    eval_every=0,
    log_every=4,
    save_every=1,
    device="cpu",
    precision="fp32",
    progress=False,
)


def one_batch_of_nan(trainer):
    batches = trainer.views.batches
    trainer.views.batches = lambda epoch, indices: (
        [view * torch.nan for view in views] if trainer.step == 12 else views
        for views in batches(epoch, indices)
    )


def slow_input(trainer):
    """Files that take six times as long as the update."""
    batches = trainer.views.batches

    def slowly(epoch, indices):
        busy = 0.0
        for views in batches(epoch, indices):
            time.sleep(6 * busy)
            clock = time.perf_counter()
            yield views
            busy = time.perf_counter() - clock

    trainer.views.batches = slowly


def teacher_left_behind(trainer):
    """A loop that forgets ema_update."""
    step = trainer.train_step

    def without(views):
        before = [p.clone() for p in trainer.teacher.parameters()]
        result = step(views)
        for p, old in zip(trainer.teacher.parameters(), before, strict=True):
            p.copy_(old)
        return result

    trainer.train_step = without


# kind: (the finding that it must have, the settings that are wrong, what is done to the trainer)
SICK = {
    "one batch of nan": ("not finite", {}, one_batch_of_nan),
    "lr 1e20": ("not finite", {"lr": 1e20}, None),
    "teacher too warm": ("uniform", {"teacher_temp": 0.3, "warmup_teacher_temp": 0.3}, None),
    "no center, fast teacher": (
        "one prototype",
        {
            "center_momentum": 1.0,
            "teacher_temp": 0.02,
            "momentum": 0.5,
            "warmup_teacher_temp": 0.02,
            "momentum_end": 0.5,
            "lr": 5e-3,
        },
        None,
    ),
    "no center, 512 prototypes": (
        "dead prototypes",
        {"center_momentum": 1.0, "out_dim": 512, "teacher_temp": 0.02, "warmup_teacher_temp": 0.02},
        None,
    ),
    "weight decay 300": ("feature rank", {"weight_decay": 300.0, "weight_decay_end": 300.0}, None),
    "lr 0.3": ("learning rate", {"lr": 0.3}, None),
    "lr 1e-7": ("learning rate", {"lr": 1e-7, "min_lr": 1e-7}, None),
    "warm-up to the end": ("learning rate", {"warmup_epochs": 4.0}, None),
    "momentum 0.9999": ("momentum", {"momentum": 0.9999, "momentum_end": 1.0}, None),
    "momentum 0": ("momentum", {"momentum": 0.0, "momentum_end": 0.0}, None),
    "teacher left behind": ("teacher lagging", {}, teacher_left_behind),
    "student colder than teacher": ("no progress", {"student_temp": 0.02}, None),
    "slow input": ("input-bound", {}, slow_input),
}
HEALTHY = {f"healthy, seed {seed}": (None, {"seed": seed}, None) for seed in range(10)}


def run(kind):
    """(findings, history) of one run, in a folder that goes away."""
    torch.set_num_threads(1)
    _, changes, spoil = (SICK | HEALTHY)[kind]
    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(
            replace(SMALL, output_dir=folder, **changes), Shapes(SMALL.limit, size=SMALL.store_size)
        )
        if spoil:
            spoil(trainer)
        try:
            trainer.run()
        except FloatingPointError as error:
            print(error)
        history = read_history(folder)
        return diagnose(history, trainer.config), history


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("doctor.json"))
    parser.add_argument("--jobs", type=int, default=1)
    args = parser.parse_args()
    table, wrong, kinds, clock = {}, [], SICK | HEALTHY, time.perf_counter()
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for kind, (findings, history) in zip(kinds, pool.map(run, kinds), strict=True):
            expected, names = kinds[kind][0], [f.name for f in findings]
            table[kind] = {
                "expected": expected,
                "found": {f.name: f.step for f in findings},
                "history": history,
            }
            if expected not in names if expected else names:
                wrong.append(kind)
    seconds = time.perf_counter() - clock
    args.out.write_text(json.dumps({"seconds": seconds, "wrong": wrong, "runs": table}, indent=1))
    print(f"\n{'':28}" + " ".join(f"{name:>15}" for name in ADVICE))
    for kind, row in table.items():
        cells = [
            f"step {row['found'][name]}"
            if name in row["found"]
            else "MISSED"
            if name == row["expected"]
            else "."
            for name in ADVICE
        ]
        print(f"{kind:28}" + " ".join(f"{cell:>15}" for cell in cells))
    print(f"\n{len(table) - len(wrong)} of {len(table)} runs are told rightly, in {seconds:.0f} s")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
