"""Histories of small runs, healthy and ill, for notebook 05: `python benchmarks/ill_runs.py`.

A small network on 640 embedded pictures, 40 updates of 32 images, three seeds a case. Writes
dino_lib/course/measured/ill_runs.json: per case and seed the lines of the history, rounded.
"""

import json
import platform
import tempfile
from dataclasses import replace
from pathlib import Path

from dino_lib import PRESETS
from dino_lib.run.train import build_trainer

OUT = Path(__file__).resolve().parents[1] / "dino_lib" / "course" / "measured" / "ill_runs.json"
KEYS = ("step", "loss", "teacher_entropy", "mean_entropy", "feature_std")
TINY_VIT = {**PRESETS["demo"].backbone_options, "embed_dim": 64, "depth": 2}
SMALL = replace(
    PRESETS["demo"],
    limit=640,
    batch_size=32,
    epochs=2,
    warmup_epochs=0.5,
    n_local=2,
    out_dim=64,
    hidden_dim=128,
    bottleneck_dim=32,
    lr=2.5e-3,
    momentum=0.9,
    momentum_end=0.9,
    backbone_options=TINY_VIT,
    eval_every=0,
    log_every=5,
    device="cpu",
    precision="fp32",
    progress=False,
)
CASES = {
    "as it should be": {},
    "no centering": {"center_momentum": 1.0, "teacher_temp": 0.02, "warmup_teacher_temp": 0.02},
    "no sharpening": {"teacher_temp": 0.3, "warmup_teacher_temp": 0.3},
    "views of different pictures": {},
}


def history_of(case, seed):
    """The lines of one run."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(SMALL, seed=seed, output_dir=folder, **CASES[case])
        trainer = build_trainer(config)
        if case == "views of different pictures":
            step = trainer.train_step
            # view v of row b shows picture b + v
            trainer.train_step = lambda views: step(
                [view.roll(v, 0) for v, view in enumerate(views)]
            )
        _, history = trainer.run()
    return [{key: round(line[key], 3) for key in KEYS} for line in history]


if __name__ == "__main__":
    seeds = [0, 1, 2]
    runs = {case: [history_of(case, seed) for seed in seeds] for case in CASES}
    about = {
        "what": "40 updates of 32 of 640 embedded pictures; K = 64; float32 on a CPU",
        "machine": platform.machine(),
        "seeds": seeds,
        "out_dim": SMALL.out_dim,
    }
    OUT.parent.mkdir(exist_ok=True)
    OUT.write_text(json.dumps({"about": about, "runs": runs}) + "\n", encoding="utf-8")
    for case, histories in runs.items():
        for seed, history in zip(seeds, histories, strict=True):
            print(f"{case:28} seed {seed}: {history[-1]}")
