"""The profile of a step: its phases add up, its FLOPs are those of the formula, its advice fits
what is slow.
"""

from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from dino_lib.cli import main
from dino_lib.run import build
from dino_lib.run import profile as profiling
from dino_lib.run.build import product_ceiling
from dino_lib.run.presets import PRESETS
from dino_lib.run.profile import PHASES, advice, count_flops, profile, report
from dino_lib.run.train import build_trainer


@pytest.fixture
def passing(monkeypatch):
    """The function that makes a function take a second, on a clock that stands still otherwise."""
    now = [0.0]
    monkeypatch.setattr(profiling, "clock", lambda device: now[0])
    monkeypatch.setattr(profiling, "product_ceiling", lambda device, dtype: 1e9)

    def slowed(function):
        def run(*args, **kwargs):
            now[0] += 1
            return function(*args, **kwargs)

        return run

    return slowed


SLOW = {  # what is slow: the object and the name of its function
    "views": lambda t: (t.views.multicrop, "_one_size"),
    "teacher forward": lambda t: (t.teacher, "features"),
    "student forward": lambda t: (t.student, "features"),
    "loss": lambda t: (t.loss, "forward"),
    "optimizer": lambda t: (t.scaler, "unscale_"),
    "average": lambda t: (t.loss, "update_center"),
}


@pytest.mark.parametrize("phase", SLOW)
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_slow_part_shows_in_its_own_phase(
    tiny, pictures, monkeypatch, passing, phase, accumulate
):
    trainer = build_trainer(replace(tiny, accumulate=accumulate), pictures)
    owner, name = SLOW[phase](trainer)
    monkeypatch.setattr(owner, name, passing(getattr(owner, name)), raising=False)
    seconds = profile(trainer, n_steps=2)["seconds"]
    assert tuple(seconds) == PHASES
    assert seconds.pop(phase) >= 1 and set(seconds.values()) == {0.0}


def test_a_slow_backward_pass_shows(tiny, pictures, passing):
    trainer = build_trainer(tiny, pictures)
    trainer.student.head.mlp[0].register_full_backward_hook(passing(lambda *_: None))
    seconds = profile(trainer, n_steps=2)["seconds"]
    assert seconds.pop("backward") == 1 and set(seconds.values()) == {0.0}


def test_a_profiled_trainer_takes_the_steps_of_another(tiny, pictures, monkeypatch):
    """Profiling leaves no hooks: nothing reads the clock in a step after it."""
    monkeypatch.setattr(profiling, "product_ceiling", lambda device, dtype: 1e9)
    trainer, read = build_trainer(tiny, pictures), []
    profile(trainer, n_steps=1)
    monkeypatch.setattr(profiling, "clock", read.append)
    trainer.step = 0
    trainer.train_step(next(iter(trainer.views.batches(0, [np.arange(8)]))))
    assert trainer.step == 1 and not read


@pytest.mark.parametrize("fused", [False, True])
def test_flops_are_those_of_the_formula(fused):
    """A block without biases' additions: qkv, the two products of attention, the projection and the
    MLP.
    """
    torch.manual_seed(0)
    block = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=16, num_heads=2
    ).blocks[0]
    block.attn.fused_attn = fused
    x, n, d = torch.randn(3, 17, 16, requires_grad=True), 17, 16
    forward = 3 * (2 * n * d * 12 * d + 4 * n * n * d)
    assert count_flops(lambda: block(x.detach())) == forward
    assert count_flops(lambda: block(x).sum().backward()) == 3 * forward


def test_the_ceiling_is_the_fastest_of_some_products(monkeypatch):
    """2 n^3 operations of n = 1024, in 0.25 s at best."""
    times = iter([0, 0.5, 1, 1.5, 2, 2.25, 3, 3.5])
    monkeypatch.setattr(build, "clock", lambda device: next(times))
    assert product_ceiling(torch.device("cpu"), torch.float32) == 2 * 1024**3 / 0.25


HEALTHY = {
    "views": 0.1,
    "teacher forward": 0.2,
    "student forward": 0.2,
    "loss": 0.05,
    "backward": 0.4,
    "optimizer": 0.03,
    "average": 0.02,
}
CEILING = {torch.float32: 1.0, torch.bfloat16: 2.0}


@pytest.mark.parametrize(
    ("settings", "dtype", "share", "efficiency", "expected"),
    [
        ({}, torch.bfloat16, {}, 0.6, ["nothing stands out"]),
        ({"store_size": None}, torch.bfloat16, {"views": 0.4}, 0.6, ["--num-workers"]),
        ({}, torch.bfloat16, {"views": 0.4}, 0.6, ["--n-local"]),
        ({}, torch.float32, {}, 0.6, ["2.0 times as fast in bfloat16 here: try --precision bf16"]),
        (
            {},
            torch.bfloat16,
            {"optimizer": 0.15, "average": 0.1},
            0.6,
            ["a larger --batch-size, or a smaller --out-dim"],
        ),
        ({}, torch.bfloat16, {"loss": 0.2}, 0.6, ["the loss takes long: a smaller --out-dim"]),
        ({}, torch.bfloat16, {}, 0.2, ["the products are small"]),
        ({}, torch.float32, {"loss": 0.2}, 0.6, ["--precision bf16", "the loss takes long"]),
    ],
)
def test_advice(settings, dtype, share, efficiency, expected):
    said = advice(
        replace(PRESETS["demo"], **settings), dtype, {**HEALTHY, **share}, efficiency, CEILING
    )
    assert len(said) == len(expected) and all(
        part in line for part, line in zip(expected, said, strict=True)
    )


def test_the_report_names_every_phase_and_the_command_writes_nothing(
    tiny, labelled_folder, tmp_path, as_arguments, capsys, monkeypatch
):
    monkeypatch.setattr(profiling, "product_ceiling", lambda device, dtype: 1e9)
    config = replace(tiny, dataset=str(labelled_folder))
    main([*as_arguments(config), "--profile"])
    printed = capsys.readouterr().out
    assert all(phase in printed for phase in PHASES)
    for part in ("ms a step of 8 images", "GFLOP a step", "memory of the whole process"):
        assert part in printed
    assert not (tmp_path / "run").exists()


def test_the_shares_add_up(tiny, pictures, monkeypatch, passing):
    trainer = build_trainer(tiny, pictures)
    for phase in SLOW:
        owner, name = SLOW[phase](trainer)
        monkeypatch.setattr(owner, name, passing(getattr(owner, name)), raising=False)
    lines = report(trainer).splitlines()[1 : 1 + len(PHASES)]
    shares = [float(line.split("%")[0].split()[-1]) for line in lines]
    assert sum(shares) == pytest.approx(100, abs=0.5) and shares[PHASES.index("backward")] == 0
