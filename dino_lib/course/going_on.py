"""Runs of notebook 08 that go on from pretrained weights: the teacher `demo`, with a new head."""

import json
import tempfile
from dataclasses import replace
from pathlib import Path

from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS
from dino_lib.run.train import train
from dino_lib.teachers.load import find_teacher

MEASURED = Path(__file__).with_name("measured") / "going_on.json"
TWO_TEACHERS = MEASURED.with_name("half_lives.json")  # benchmarks/advise.py --half-lives
GENTLE = {"lr": 1.8e-4, "momentum": 0.99, "momentum_end": 0.998}
RECIPES = {
    "the preset's": {},
    "head first": {"freeze_backbone": 1.0},
    "gentle": GENTLE,
    "head first, gentle": {"freeze_backbone": 1.0, **GENTLE},
}


def settings(recipe: str, seed: int, **changes: object) -> Config:
    """60 updates of 32 of 640 embedded pictures; k-NN of 800 and 400 after each 20."""
    small = replace(
        PRESETS["demo"],
        weights=str(find_teacher("demo")[0]),
        limit=640,
        batch_size=32,
        epochs=3,
        warmup_epochs=0.5,
        n_local=2,
        out_dim=256,
        hidden_dim=256,
        bottleneck_dim=64,
        eval_every=1,
        eval_limit=800,
        log_every=10,
        save_every=100,
        device="cpu",
        precision="fp32",
        progress=False,
        seed=seed,
    )
    return replace(small, **RECIPES[recipe], **changes)


def go_on(recipe: str, seed: int, **changes: object) -> list[dict]:
    """The history of a run from the weights of the teacher `demo`, in a folder that goes away."""
    with tempfile.TemporaryDirectory() as folder:
        return train(settings(recipe, seed, output_dir=folder, **changes))[1]


def read_measured(path: Path = MEASURED) -> dict:
    """What benchmarks/going_on.py, or benchmarks/advise.py (`advised`), measured."""
    return json.loads(path.read_text(encoding="utf-8"))


def advised(seed: int, minutes: float = 0.4) -> Path:
    """The file of the advised runs: seeds 0, 1 and 2 are shipped, and seed 0 of 3 minutes."""
    return MEASURED.with_name(f"advise_{minutes:g}min_{seed}.json")
