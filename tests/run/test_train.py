"""The training loop: a step against Algorithm 1 written out, runs against each other, and all that
stops one.
"""

import contextlib
import copy
import functools
import gc
import json
import math
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_lib.cli import main
from dino_lib.data.loaders import StoreViews, epoch_order
from dino_lib.loss import DINOLoss
from dino_lib.measure import probes
from dino_lib.run import build
from dino_lib.run import folder as run_folder
from dino_lib.run import train as training
from dino_lib.run import trainer as loop
from dino_lib.run.build import (
    build_schedules,
    build_student,
    open_views,
    parameter_groups,
    pick_device,
    pick_kernels,
    pick_precision,
)
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.config import OWN, Config
from dino_lib.run.folder import RunFolder
from dino_lib.run.history import read_history
from dino_lib.run.train import build_trainer, train
from dino_lib.run.trainer import Trainer
from dino_lib.schedules import cosine_schedule
from dino_lib.teacher import make_teacher
from dino_lib.teachers.load import load_teacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def whole(settings, pictures, tmp_path_factory):
    """The settings of a run of `tiny` on the pictures that has ended undisturbed: only to read."""
    config = settings(tmp_path_factory.mktemp("whole") / "run")
    train(config, pictures)
    return config


@pytest.fixture(scope="module")
def evaluated(settings, labelled_folder, tmp_path_factory):
    """The history of such a run on a folder with labels."""
    folder = tmp_path_factory.mktemp("evaluated") / "run"
    return train(replace(settings(folder), dataset=str(labelled_folder)))[1]


def trained(config, dataset=None, **changes):
    """The Trainer of a finished run."""
    trainer = build_trainer(replace(config, **changes), dataset)
    trainer.run()
    return trainer


def first_views(trainer, n=8):
    return next(iter(trainer.views.batches(0, [np.arange(n)])))


def assert_close(a, b, atol=1e-5):
    """Two state dicts agree. The key biases of attention, whose true gradient is 0, are Adam's
    drift: held loosely.
    """
    assert a.keys() == b.keys()
    for name in a:
        x, y = a[name], b[name]
        if name.endswith("qkv.bias"):
            (x, key_x, v_x), (y, key_y, v_y) = x.chunk(3), y.chunk(3)
            x, y = torch.cat([x, v_x]), torch.cat([y, v_y])
            torch.testing.assert_close(key_x, key_y, atol=1e-2, rtol=0)
        torch.testing.assert_close(
            x, y, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


CLOCK = ("seconds", "waited", "images_per_second", "input_share")


def values(history):
    """A history without the clock's values."""
    return [{k: v for k, v in record.items() if k not in CLOCK} for record in history]


def checkpoint(config):
    """What a run ended with: everything but its settings and the clock."""
    state = load_newest(f"{config.output_dir}/checkpoints")
    return {k: v for k, v in state.items() if k not in ("config", *CLOCK)}


# --- one step -------------------------------------------------------------------------------------


def test_steps_are_algorithm_1_written_out(tiny, pictures):
    config = replace(
        tiny,
        clip_grad=0.5,
        teacher_temp=0.06,
        warmup_teacher_temp=0.05,
        warmup_teacher_temp_epochs=1.0,
    )
    trainer = build_trainer(config, pictures)
    student, teacher = copy.deepcopy(trainer.student), copy.deepcopy(trainer.teacher)
    center, n_steps = torch.zeros(config.out_dim), 4
    matrices = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in student.parameters() if p.requires_grad and p.ndim <= 1]
    adam = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])
    schedules = build_schedules(config, 4)
    for step in range(n_steps):
        views = first_views(trainer)
        lr, decay, momentum, temperature = (
            schedules[name][step] for name in ("lr", "weight_decay", "momentum", "teacher_temp")
        )
        with torch.no_grad():
            t = teacher(views[:2])
        s, losses = student(views), []
        for i in range(2):
            for v in range(len(views)):
                if v != i:
                    q, p = (
                        F.softmax((t[i] - center) / temperature, -1),
                        F.log_softmax(s[v] / 0.1, -1),
                    )
                    losses.append(-(q * p).sum(-1).mean())
        loss = sum(losses) / len(losses)
        student.zero_grad()
        loss.backward()
        norm = math.sqrt(sum(p.grad.square().sum() for p in matrices + vectors))
        for p in matrices + vectors:
            p.grad *= min(1.0, 0.5 / norm)
        adam.param_groups[0].update(lr=lr, weight_decay=decay)
        adam.param_groups[1].update(lr=lr)
        adam.step()
        with torch.no_grad():
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.copy_(momentum * a + (1 - momentum) * b)
        center = 0.9 * center + 0.1 * t.flatten(0, 1).mean(0)

        result = trainer.train_step(views)
        assert result["loss"].item() == pytest.approx(loss.item(), abs=1e-5)
        torch.testing.assert_close(trainer.loss.center, center, atol=1e-6, rtol=0)
    assert trainer.step == n_steps
    assert_close(trainer.student.state_dict(), student.state_dict())
    assert_close(trainer.teacher.state_dict(), teacher.state_dict())


def test_a_trainer_put_together_by_hand_makes_the_run_of_its_config(
    tiny, pictures, whole, assert_same
):
    student = build_student(tiny)
    views = open_views(tiny, pictures, CPU)
    schedules = build_schedules(tiny, len(views) // tiny.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(student), fused=True)
    trainer = Trainer(
        tiny,
        views,
        student,
        make_teacher(student),
        DINOLoss(tiny.out_dim),
        schedules,
        optimizer,
        RunFolder(tiny),
    )
    trainer.run()
    assert_same(checkpoint(tiny), checkpoint(whole))


def test_only_steps_that_are_logged_look_at_the_teachers_probabilities(tiny, pictures):
    trainer = build_trainer(replace(tiny, log_every=3), pictures)
    looked = [bool(trainer.train_step(first_views(trainer))["said"]) for _ in range(8)]
    assert looked == [False, False, True, False, False, True, False, True]


def test_the_teacher_gets_no_gradient_and_follows(tiny, pictures):
    trainer = build_trainer(tiny, pictures)
    before = [p.clone() for p in trainer.teacher.parameters()]
    trainer.train_step(first_views(trainer))
    trainer.train_step(first_views(trainer))  # the warm-up starts at 0
    assert all(p.grad is None and not p.requires_grad for p in trainer.teacher.parameters())
    moved = [
        not torch.equal(p, old) for p, old in zip(trainer.teacher.parameters(), before, strict=True)
    ]
    assert sum(moved) >= len(moved) - 1  # all but the gain of the prototypes, which is held at 1
    assert not {id(p) for p in trainer.teacher.parameters()} & {
        id(p) for group in trainer.optimizer.param_groups for p in group["params"]
    }


@pytest.mark.parametrize("accumulate", [2, 4])
def test_the_gradient_of_accumulated_parts_is_the_batchs(tiny, pictures, accumulate):
    gradients = []
    for parts in (1, accumulate):
        trainer = build_trainer(replace(tiny, accumulate=parts, clip_grad=0.0), pictures)
        trainer.train_step(first_views(trainer))
        gradients.append(
            {name: p.grad for name, p in trainer.student.named_parameters() if p.grad is not None}
        )
    largest = max(gradient.abs().max() for gradient in gradients[0].values())
    assert_close(*({name: g / largest for name, g in part.items()} for part in gradients))


@pytest.mark.parametrize("accumulate", [2, 4])
def test_accumulated_runs_equal_the_run_of_whole_batches(tiny, pictures, tmp_path, accumulate):
    whole = trained(tiny, pictures)
    parts = trained(tiny, pictures, accumulate=accumulate, output_dir=str(tmp_path / "parts"))
    for name in ("student", "teacher", "loss"):
        assert_close(getattr(whole, name).state_dict(), getattr(parts, name).state_dict())
    assert [r["loss"] for r in whole.history] == pytest.approx(
        [r["loss"] for r in parts.history], abs=1e-5
    )
    assert whole.loss.center.abs().max() > 1e-2


@pytest.mark.parametrize(
    "changes",
    [{}, {"head": "original"}, {"norm_last_layer": False}],
    ids=["dino", "original", "free gain"],
)
def test_the_last_layer_is_frozen_for_its_epochs_and_moves_after(tiny, pictures, changes):
    trainer = build_trainer(
        replace(tiny, freeze_last_layer=0.75, warmup_epochs=0.0, **changes), pictures
    )
    last, first = trainer.student.head.last_layer_parameters(), trainer.student.head.mlp[0].weight
    free = [p for p in last if p.requires_grad]
    assert len(free) == (1 if not changes else 2)
    for step in range(5):
        before, before_first = [p.detach().clone() for p in free], first.detach().clone()
        trainer.train_step(first_views(trainer))
        assert not torch.equal(first, before_first)
        assert [torch.equal(p, old) for p, old in zip(free, before, strict=True)] == [
            step < 3
        ] * len(free)


def test_weight_decay_is_for_matrices_alone(tiny):
    model = build_student(replace(tiny, norm_last_layer=False, conv_stem=True, use_bn=True))
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, others = ([names[id(p)] for p in group["params"]] for group in parameter_groups(model))
    assert parameter_groups(model)[1]["weight_decay"] == 0.0
    assert sorted(decayed + others) == sorted(names.values())  # each once
    assert not [
        name for name in decayed if name.endswith("bias") or "norm" in name or name == "head.gain"
    ]
    assert {
        "backbone.model.blocks.0.attn.qkv.weight",
        "head.mlp.0.weight",
        "head.directions",
    } <= set(decayed)
    assert {"backbone.model.norm.weight", "head.mlp.0.bias", "head.gain"} <= set(others)


def test_schedules_reach_the_optimizer_the_loss_and_the_history(tiny, pictures, monkeypatch):
    config = replace(
        tiny,
        lr=2e-3,
        min_lr=1e-4,
        weight_decay=0.1,
        weight_decay_end=0.5,
        momentum=0.9,
        momentum_end=1.0,
        warmup_teacher_temp=0.04,
        teacher_temp=0.07,
        warmup_teacher_temp_epochs=1.0,
    )
    trainer, used = build_trainer(config, pictures), []
    step, loss = trainer.optimizer.step, trainer.loss.forward

    def spy_step(*args, **kwargs):
        used.append([(g["lr"], g["weight_decay"]) for g in trainer.optimizer.param_groups])
        return step(*args, **kwargs)

    temperatures, momenta = [], []
    monkeypatch.setattr(trainer.optimizer, "step", spy_step)
    monkeypatch.setattr(
        trainer.loss,
        "forward",
        lambda s, t, temperature, **kw: (
            temperatures.append(temperature),
            loss(s, t, temperature, **kw),
        )[1],
    )
    ema = loop.ema_update
    monkeypatch.setattr(loop, "ema_update", lambda t, s, m: (momenta.append(m), ema(t, s, m)))
    _, history = trainer.run()
    lr, decay = cosine_schedule(2e-3, 1e-4, 8, warmup_steps=2), cosine_schedule(0.1, 0.5, 8)
    momentum, temperature = (
        cosine_schedule(0.9, 1.0, 8),
        np.array([0.04, 0.05, 0.06, 0.07] + [0.07] * 4),
    )
    np.testing.assert_allclose(
        used, np.stack([np.stack([lr, decay], 1), np.stack([lr, 0 * decay], 1)], 1)
    )
    np.testing.assert_allclose(temperatures, temperature)
    np.testing.assert_allclose(momenta, momentum)
    for name, expected in [
        ("lr", lr),
        ("weight_decay", decay),
        ("momentum", momentum),
        ("teacher_temp", temperature),
    ]:
        np.testing.assert_allclose([record[name] for record in history], expected, err_msg=name)


def test_schedules_follow_epochs_that_are_fractions():
    config = Config(
        epochs=2.5,
        warmup_epochs=0.5,
        warmup_teacher_temp_epochs=1.5,
        warmup_teacher_temp=0.02,
        teacher_temp=0.04,
    )
    schedules = build_schedules(config, 10)
    assert {len(v) for v in schedules.values()} == {25}
    assert schedules["lr"].argmax() in (4, 5) and schedules["lr"].max() == config.lr
    assert np.flatnonzero(schedules["teacher_temp"] == 0.04)[0] == 14
    assert len(build_schedules(replace(config, epochs=0.5), 1)["lr"]) == 1  # never a run of nothing


@pytest.mark.parametrize("conv_stem", [False, True], ids=["vit", "batch norm"])
def test_a_frozen_backbone_stays_as_it_was_and_the_head_learns(tiny, pictures, conv_stem):
    config = replace(tiny, train_backbone=False, drop_path=0.1, conv_stem=conv_stem)
    trainer, untouched = trained(config, pictures), build_student(config)
    for module in (trainer.student, trainer.teacher):
        for name, value in module.backbone.state_dict().items():
            assert torch.equal(value, untouched.backbone.state_dict()[name]), name
    for module in (trainer.student, trainer.teacher):
        assert not torch.equal(module.head.mlp[0].weight, untouched.head.mlp[0].weight)
    assert all(p.grad is None for p in trainer.student.backbone.parameters())


@pytest.mark.parametrize(("clip", "expected"), [(0.01, 0.01), (1e6, None), (0.0, None)])
def test_the_gradients_global_norm_is_limited(tiny, pictures, clip, expected):
    trainer = build_trainer(replace(tiny, clip_grad=clip), pictures)
    trainer.train_step(first_views(trainer))
    norm = math.sqrt(
        sum(p.grad.square().sum() for p in trainer.student.parameters() if p.grad is not None)
    )
    assert norm == pytest.approx(expected, rel=1e-3) if expected else norm > 0.02


# --- whole runs -----------------------------------------------------------------------------------

SMALL = {"embed_dim": 32, "depth": 1, "num_heads": 2}
FAMILIES = {
    "vit of patch 8": {"backbone_options": {"img_size": 32, "patch_size": 8, **SMALL}},
    "convolutional stem": {
        "backbone_options": {"img_size": 32, "patch_size": 8, **SMALL},
        "conv_stem": True,
        "use_bn": True,
    },
    "registers": {
        "backbone": "vit_small_patch14_reg4_dinov2",
        "backbone_options": {"img_size": 32, "patch_size": 8, **SMALL},
    },
    "resnet18": {"backbone": "resnet18", "backbone_options": {}},
    "convnext": {"backbone": "convnext_atto", "backbone_options": {}, "local_size": 32},
    "swin": {
        "backbone": "swin_tiny_patch4_window7_224",
        "local_size": 32,
        "backbone_options": {"img_size": 32, "window_size": 4, "embed_dim": 24},
    },
    "xcit": {"backbone": "xcit_nano_12_p16_224", "backbone_options": {}},
    "original head": {
        "head": "original",
        "backbone_options": {"img_size": 32, "patch_size": 8, **SMALL},
    },
    "grey": {
        "mean": (0.5,),
        "std": (0.25,),
        "backbone_options": {"img_size": 32, "patch_size": 8, **SMALL},
    },
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_of_backbones_trains(tiny, pictures, family):
    sizes = {"store_size": 32, "global_size": 32, "local_size": 16}
    config = replace(
        tiny, epochs=0.5, warmup_epochs=0.0, drop_path=0.1, **{**sizes, **FAMILIES[family]}
    )
    teacher, history = train(config, pictures)
    assert [record["step"] for record in history] == [1, 2]
    assert all(math.isfinite(record["loss"]) for record in history)
    assert teacher.model(torch.zeros(2, len(config.mean), 32, 32)).shape == (
        2,
        teacher.model.num_features,
    )
    start = build_student(config).backbone.state_dict()
    assert not all(
        torch.equal(value, start[name]) for name, value in teacher.model.state_dict().items()
    )


def test_train_returns_the_loaded_teacher_and_the_written_history(
    tiny, pictures, tmp_path, assert_same
):
    lines = []
    teacher, history = train(tiny, pictures, on_log=lines.append)
    assert history == lines == read_history(tmp_path / "run")
    assert_same(
        dict(teacher.model.state_dict()), dict(load_teacher(tmp_path / "run").model.state_dict())
    )
    last = {
        name.removeprefix("backbone."): value
        for name, value in checkpoint(tiny)["teacher"].items()
        if not name.startswith("head.")
    }
    assert_same(dict(teacher.model.state_dict()), last)
    assert teacher.about == {"step": 8, "images_seen": 64}
    own = replace(tiny, dataset=OWN)
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == json.loads(own.to_json())
    assert [(record["step"], record["epoch"]) for record in history] == [
        (i, i / 4) for i in range(1, 9)
    ]
    assert history[0].keys() == {
        "step",
        "epoch",
        "loss",
        "lr",
        "weight_decay",
        "momentum",
        "teacher_temp",
        "teacher_entropy",
        "mean_entropy",
        "feature_std",
        "feature_rank",
        "prototypes_used",
        "teacher_lag",
        "center_norm",
        "grad_norm",
        "seconds",
        "input_share",
        "images_per_second",
    }
    assert history[-1]["center_norm"] == pytest.approx(
        checkpoint(tiny)["loss"]["center"].norm().item()
    )


def test_a_run_is_its_seeds_alone(tiny, pictures, tmp_path):
    config = replace(tiny, drop_path=0.3, backbone_options={**tiny.backbone_options, "depth": 2})
    losses = []
    for i, seed in enumerate((3, 3, 4)):
        torch.rand(i)  # whatever was drawn before
        _, history = train(replace(config, seed=seed, output_dir=str(tmp_path / str(i))), pictures)
        losses.append([record["loss"] for record in history])
    assert losses[0] == losses[1] != losses[2]


def test_an_epoch_takes_every_image_once_in_an_order_of_its_own(tiny, pictures, monkeypatch):
    asked, batches = {}, StoreViews.batches
    monkeypatch.setattr(
        StoreViews,
        "batches",
        lambda self, epoch, indices: (
            asked.__setitem__(epoch, np.asarray(indices)),
            batches(self, epoch, indices),
        )[1],
    )
    trained(tiny, pictures, limit=30)
    assert {epoch: indices.shape for epoch, indices in asked.items()} == {0: (3, 8), 1: (3, 8)}
    for epoch, indices in asked.items():
        assert indices.flatten().tolist() == epoch_order(tiny.seed, epoch, 30)[:24].tolist()


def test_a_log_line_is_the_mean_since_the_last_also_across_epochs(tiny, pictures, tmp_path):
    _, each = train(tiny, pictures)
    _, third = train(replace(tiny, log_every=3, output_dir=str(tmp_path / "third")), pictures)
    losses = np.array([record["loss"] for record in each])
    assert [record["step"] for record in third] == [3, 6, 8]
    assert [r["loss"] for r in third] == pytest.approx(
        [losses[:3].mean(), losses[3:6].mean(), losses[6:].mean()]
    )
    assert [r["images_per_second"] * r["seconds"] for r in third] == pytest.approx([24, 24, 16])


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, [0, 4, 8]),
        ({"eval_every": 0.5}, [0, 2, 4, 6, 8]),
        ({"epochs": 1.5}, [0, 4, 6]),
        ({"eval_every": 0}, []),
    ],
)
def test_evaluations_come_at_the_start_every_so_often_and_at_the_end(
    tiny, labelled_folder, changes, steps
):
    _, history = train(replace(tiny, dataset=str(labelled_folder), **changes))
    scored = [record for record in history if "knn" in record]
    assert [record["step"] for record in scored] == steps
    assert all(0 <= record["knn"] <= 1 for record in scored)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluations_compute_in_the_runs_precision(tiny, labelled_folder, precision, monkeypatch):
    seen, whole = [], probes.extract_features

    def watched(*args, dtype):
        seen.append(dtype)
        return whole(*args, dtype=dtype)

    monkeypatch.setattr(probes, "extract_features", watched)
    train(replace(tiny, dataset=str(labelled_folder), epochs=0.5, precision=precision))
    assert seen and set(seen) == {pick_precision(precision, CPU)}


@pytest.mark.parametrize("leaks", [False, True])
def test_updates_leave_no_tensors_behind(tiny, pictures, leaks):
    trainer, counts, kept = build_trainer(replace(tiny, epochs=3, log_every=2), pictures), [], []
    step = trainer.train_step

    def counted(views):
        if trainer.step % 4 == 0:
            gc.collect()
            kinds = Counter(map(type, gc.get_objects()))
            counts.append(sum(n for kind, n in kinds.items() if issubclass(kind, torch.Tensor)))
        result = step(views)
        kept.extend([result["loss"]] * leaks)
        return result

    trainer.train_step = counted
    trainer.run()
    assert (counts[1] == counts[2]) is not leaks  # before the first update Adam has no moments


def test_a_dataset_of_ones_own_is_not_evaluated(tiny, pictures):
    assert build_trainer(tiny, [pictures[i] for i in range(8)]).probes is None


@pytest.mark.parametrize(("every", "steps"), [(0.5, [6, 8]), (1, [4, 8]), (50, [8])])
def test_checkpoints_are_saved_every_so_often_and_at_the_end(
    tiny, pictures, tmp_path, every, steps
):
    train(replace(tiny, save_every=every), pictures)
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        f"step_{i:08d}.pt" for i in steps
    ]


@pytest.mark.parametrize(
    ("store_size", "batch_size"), [(24, 5), (None, 6)], ids=["store", "workers"]
)
def test_unreadable_images_cost_no_batch_and_are_named_in_the_end(
    tiny, pictures, tmp_path, monkeypatch, capsys, store_size, batch_size
):
    (tmp_path / "photos").mkdir()
    for i in range(12):
        pictures[i][0].save(tmp_path / "photos" / f"{i:02d}.png")
    (tmp_path / "photos" / "03.png").write_bytes(b"")
    (tmp_path / "photos" / "10.png").write_bytes(b"no image")
    sizes, step = [], Trainer.train_step
    monkeypatch.setattr(
        Trainer,
        "train_step",
        lambda self, views: (sizes.append([len(view) for view in views]), step(self, views))[1],
    )
    train(
        replace(
            tiny, dataset=str(tmp_path / "photos"), store_size=store_size, batch_size=batch_size
        )
    )
    assert sizes == [[batch_size] * 4] * 4
    last = capsys.readouterr().out.splitlines()[-1]
    assert (
        last.startswith("2 of 12 images could not be read")
        and "03.png (" in last
        and "10.png (" in last
    )


# --- interrupts and resumes -----------------------------------------------------------------------


def stateful(config):
    """Everything that has a state or draws random numbers: batch norm, drop path, a frozen last
    layer.
    """
    options = {**config.backbone_options, "depth": 2}
    return replace(
        config,
        conv_stem=True,
        use_bn=True,
        drop_path=0.3,
        freeze_last_layer=1.0,
        backbone_options=options,
    )


def interrupt_at_line(n):
    """An on_log callback that interrupts at the n-th line of the history."""
    lines = []

    def on_log(record):
        lines.append(record)
        if len(lines) == n:
            raise KeyboardInterrupt

    return on_log


@pytest.mark.parametrize(
    "changes", [{}, {"store_size": None, "num_workers": 1}], ids=["store", "workers"]
)
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    tiny, pictures, tmp_path, assert_same, changes
):
    config = replace(stateful(tiny), **changes)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    _, history = train(whole, pictures)
    with pytest.raises(KeyboardInterrupt):
        train(config, pictures, on_log=interrupt_at_line(2))
    assert checkpoint(config)["step"] == 2
    with pytest.raises(KeyboardInterrupt):
        train(replace(config, resume="auto"), pictures, on_log=interrupt_at_line(4))
    assert checkpoint(config)["step"] == 6
    _, resumed = train(replace(config, resume="auto"), pictures)
    assert_same(checkpoint(config), checkpoint(whole))
    assert values(resumed) == values(history) == values(read_history(tmp_path / "run"))


@pytest.mark.parametrize(
    "line", [1, 5, 10], ids=["at step 0", "before an evaluation", "before the last one"]
)
def test_an_interrupt_loses_and_doubles_no_evaluation(tiny, labelled_folder, evaluated, line):
    config = replace(tiny, dataset=str(labelled_folder))
    with pytest.raises(KeyboardInterrupt):
        train(config, on_log=interrupt_at_line(line))
    _, resumed = train(replace(config, resume="auto"))
    assert values(resumed) == values(evaluated)


def interrupting(monkeypatch, step, times=1, number=signal.SIGINT):
    """Ctrl-C, or another signal, in the middle of an update."""
    inside = Trainer.train_step

    def train_step(self, views):
        if self.step == step:
            for _ in range(times):
                signal.raise_signal(number)
        return inside(self, views)

    monkeypatch.setattr(Trainer, "train_step", train_step)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_waits_for_the_update_and_saves_it(
    tiny, pictures, tmp_path, monkeypatch, assert_same, capsys, number
):
    config, handler = replace(tiny, log_every=3), signal.getsignal(number)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    _, history = train(whole, pictures)
    with monkeypatch.context() as patch:
        interrupting(patch, step=4, number=number)
        with pytest.raises(KeyboardInterrupt):
            train(config, pictures)
    assert signal.getsignal(number) is handler
    assert checkpoint(config)["step"] == 5
    assert (
        "interrupted after update 5 and saved: go on with --resume auto" in capsys.readouterr().out
    )
    _, resumed = train(replace(config, resume="auto"), pictures)
    assert_same(checkpoint(config), checkpoint(whole))
    assert values(resumed) == values(
        history
    )  # the line of step 6 holds the losses from before the interrupt too


class Drawing(torch.utils.data.Dataset):
    """Pictures that are never twice the same: turned and darkened by Python's, NumPy's and torch's
    generators.
    """

    def __init__(self, pictures):
        self.pictures = pictures

    def __len__(self):
        return len(self.pictures)

    def __getitem__(self, i):
        image, label = self.pictures[i]
        shade = np.random.rand()
        image = image.rotate(90 * random.randrange(4)).point(lambda value: int(value * shade))
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if torch.rand(
            ()
        ) < 0.5 else image, label


@pytest.mark.skipif(sys.platform == "win32", reason="there a signal ends another process at once")
@pytest.mark.parametrize(("method", "number"), [("spawn", signal.SIGINT), ("fork", signal.SIGTERM)])
def test_a_signal_that_reaches_the_workers_too_is_like_any_other(
    tiny, pictures, tmp_path, monkeypatch, assert_same, method, number
):
    config = replace(tiny, store_size=None, epochs=1)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, Drawing(pictures))

    def everyone(record):
        for process in [*multiprocessing.active_children(), multiprocessing.current_process()]:
            os.kill(process.pid, number)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(
            torch.utils.data,
            "DataLoader",
            partial(torch.utils.data.DataLoader, multiprocessing_context=method),
        )
        train(replace(config, num_workers=1), Drawing(pictures), on_log=everyone)
    assert checkpoint(config)["step"] == 1
    train(replace(config, resume="auto"), Drawing(pictures))
    assert_same(checkpoint(config), checkpoint(whole))


class Hanging(Drawing):
    """Pictures of which one never comes; whoever waits for it loses patience and sends a signal."""

    def __init__(self, pictures, number, fetched):
        super().__init__(pictures)
        self.number, self.fetched, self.left = number, fetched, fetched

    def __getitem__(self, i):
        self.left -= 1
        if self.left == -1:
            signal.raise_signal(self.number)
            time.sleep(60)
        return super().__getitem__(i)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_waiting_for_a_picture_that_never_comes_can_be_interrupted(
    tiny, pictures, tmp_path, assert_same, number
):
    config = replace(tiny, store_size=None, num_workers=0)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    train(whole, Drawing(pictures))
    clock = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        train(config, Hanging(pictures, number, fetched=3 * 8 + 5))
    assert time.perf_counter() - clock < 50
    assert checkpoint(config)["step"] == 3
    train(replace(config, resume="auto"), Drawing(pictures))
    assert_same(checkpoint(config), checkpoint(whole))


def test_a_signal_during_the_save_does_not_break_it_off(tiny, pictures, monkeypatch):
    save = run_folder.save_checkpoint

    def signalled(*args):
        signal.raise_signal(signal.SIGINT)
        return save(*args)

    monkeypatch.setattr(run_folder, "save_checkpoint", signalled)
    with pytest.raises(KeyboardInterrupt):
        train(tiny, pictures, on_log=interrupt_at_line(3))
    assert checkpoint(tiny)["step"] == 3


def test_a_signal_during_the_last_save_loses_nothing(tiny, pictures, monkeypatch, assert_same):
    save = run_folder.save_checkpoint

    def signalled(*args):
        signal.raise_signal(signal.SIGINT)
        return save(*args)

    monkeypatch.setattr(run_folder, "save_checkpoint", signalled)
    config = replace(tiny, save_every=100, eval_every=0.0)
    teacher, history = train(config, pictures)
    assert checkpoint(config)["step"] == history[-1]["step"] == 8
    again = load_teacher(config.output_dir)
    assert_same(dict(again.model.state_dict()), dict(teacher.model.state_dict()))


def test_float16_that_overflows_leaves_no_nan_in_the_history(tiny, pictures, tmp_path):
    config = replace(tiny, precision="fp16", log_every=1, eval_every=0.0)
    trainer = build_trainer(config, pictures)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**11)
    trainer.run()

    def fail(word):
        raise AssertionError(word)

    lines = (tmp_path / "run" / "history.jsonl").read_text().splitlines()
    read = [json.loads(line, parse_constant=fail) for line in lines]
    assert "loss" not in read[0] and "loss" in read[-1]  # the first updates were skipped


def test_a_second_ctrl_c_exits_at_once_and_saves_no_half_done_update(tiny, pictures, monkeypatch):
    interrupting(monkeypatch, step=5, times=2)
    with pytest.raises(SystemExit) as error:
        train(tiny, pictures)
    assert error.value.code == 130
    assert checkpoint(tiny)["step"] == 4  # the epoch's


def test_a_killed_run_goes_on_from_its_newest_checkpoint(
    tiny, pictures, whole, tmp_path, assert_same, capsys
):
    def die(record):
        if record["step"] == 6:
            raise SystemExit("killed")

    with pytest.raises(SystemExit):
        train(replace(tiny, save_every=0.5), pictures, on_log=die)
    with open(tmp_path / "run" / "history.jsonl", "a") as file:
        file.write('{"step": 7, "lo')  # a line that was being written
    newest = tmp_path / "run" / "checkpoints" / "step_00000004.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    train(replace(tiny, resume="auto"), pictures)
    assert f"{newest} is damaged" in capsys.readouterr().out
    assert_same(checkpoint(tiny), checkpoint(whole))
    assert values(read_history(tmp_path / "run")) == values(read_history(whole.output_dir))


def test_resume_auto_starts_a_run_that_is_not_there(tiny, pictures):
    assert len(train(replace(tiny, resume="auto"), pictures)[1]) == 8


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_finished_run_says_so_and_stays_as_it_is(
    tiny, labelled_folder, tmp_path, as_arguments, monkeypatch, capsys
):
    config = replace(tiny, dataset=str(labelled_folder))
    main(as_arguments(config))
    assert (
        "teacher.safetensors, history.jsonl, config.json, checkpoints/" in capsys.readouterr().out
    )
    before = contents(tmp_path / "run")
    assert len(before) == 5
    monkeypatch.setattr(Trainer, "train_step", None)
    main(as_arguments(replace(config, resume="auto")))  # returns, so the exit status is 0
    assert f"{tmp_path / 'run'} is finished" in capsys.readouterr().out
    assert contents(tmp_path / "run") == before
    teacher, history = train(replace(config, resume="auto"))
    assert (teacher.about["step"], len(history)) == (8, 11)


@pytest.mark.parametrize("left", ["everything", "teacher"])
def test_a_used_folder_is_refused_and_loses_nothing(
    tiny, labelled_folder, tmp_path, as_arguments, capsys, left
):
    config = replace(tiny, dataset=str(labelled_folder), epochs=0.5, eval_every=0)
    train(config)
    if left == "teacher":
        for path in (tmp_path / "run" / "checkpoints").iterdir():
            path.unlink()
    before, _ = contents(tmp_path / "run"), capsys.readouterr()
    with pytest.raises(SystemExit) as error:
        main(as_arguments(config))
    assert error.value.code == 2
    message = capsys.readouterr().err
    assert (
        message.startswith(f"error: {tmp_path / 'run'} holds") and "another --output-dir" in message
    )
    assert ("go on with --resume auto" in message) == (left == "everything")
    with pytest.raises(FileExistsError):
        train(config)
    assert contents(tmp_path / "run") == before


def test_a_run_resumes_with_its_own_settings_only(tiny, pictures, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(tiny, pictures, on_log=interrupt_at_line(3))
    before = contents(tmp_path / "run")
    with pytest.raises(
        ValueError,
        match=r"other settings: n_local=3 \(was 2\), lr=0.5 \(was 0.001\)\. Take the old",
    ):
        train(replace(tiny, resume="auto", lr=0.5, n_local=3), pictures)
    assert contents(tmp_path / "run") == before
    _, history = train(
        replace(tiny, resume="auto", log_every=2, save_every=0.5, accumulate=2, num_workers=1),
        pictures,
    )
    assert [record["step"] for record in history] == [1, 2, 3, 4, 6, 8]


def test_a_run_may_go_on_in_another_precision(tiny, pictures):
    with pytest.raises(KeyboardInterrupt):
        train(tiny, pictures, on_log=interrupt_at_line(3))
    with pytest.raises(KeyboardInterrupt):
        train(replace(tiny, precision="fp16", resume="auto"), pictures, on_log=interrupt_at_line(1))
    assert len(train(replace(tiny, resume="auto"), pictures)[1]) == 8


@pytest.mark.parametrize("how", ["callback", "signal"])
def test_an_interrupted_trainer_goes_on_in_the_same_process(
    tiny, pictures, tmp_path, monkeypatch, assert_same, how
):
    config = replace(stateful(tiny), log_every=3 if how == "signal" else 1)
    whole = trained(replace(config, output_dir=str(tmp_path / "whole")), pictures)
    trainer = build_trainer(
        config, pictures, on_log=interrupt_at_line(3) if how == "callback" else None
    )
    with monkeypatch.context() as patch:
        if how == "signal":
            interrupting(patch, step=4)
        with pytest.raises(KeyboardInterrupt):
            trainer.run()
    assert trainer.step == checkpoint(config)["step"] == (3 if how == "callback" else 5)
    _, history = trainer.run()
    assert_same(checkpoint(config), checkpoint(replace(config, output_dir=str(tmp_path / "whole"))))
    assert values(history) == values(whole.history) == values(read_history(tmp_path / "run"))


def test_an_interrupted_trainer_sees_that_the_run_has_gone_on_without_it(
    tiny, pictures, tmp_path, capsys
):
    trainer = build_trainer(tiny, pictures, on_log=interrupt_at_line(3))
    with pytest.raises(KeyboardInterrupt):
        trainer.run()
    train(replace(tiny, resume="auto"), pictures)
    before = contents(tmp_path / "run")
    teacher, history = trainer.run()
    assert "is finished" in capsys.readouterr().out
    assert (teacher.about["step"], len(history)) == (8, 8) and contents(tmp_path / "run") == before


@pytest.mark.parametrize(
    "changes", [{}, {"store_size": None, "num_workers": 2}], ids=["store", "workers"]
)
def test_whatever_else_is_drawn_a_resumed_run_is_the_uninterrupted_one(
    tiny, pictures, tmp_path, assert_same, changes
):
    config, dataset = replace(stateful(tiny), **changes), Drawing(pictures)
    whole = replace(config, output_dir=str(tmp_path / "whole"))
    _, history = train(whole, dataset)
    for n in (3, 2, None):

        def draw(record, n=n, lines=[]):  # noqa: B006 (counts its own calls)
            lines.append(record)
            random.random(), np.random.rand(len(lines)), torch.rand(len(lines))
            if len(lines) == n:
                raise KeyboardInterrupt

        random.seed(n), np.random.seed(n), torch.manual_seed(n or 0)
        again = replace(config, resume="auto", num_workers=config.num_workers if n else 0)
        with contextlib.suppress(KeyboardInterrupt):
            _, resumed = train(again, dataset, on_log=draw)
    assert_same(checkpoint(config), checkpoint(whole))
    assert values(resumed) == values(history)


def test_views_leave_the_callers_generators_alone(tiny, pictures):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for store_size in (24, None):
        views = open_views(replace(tiny, store_size=store_size), Drawing(pictures), CPU)
    views.dataset[0, 3]
    assert (random.random(), np.random.rand(), torch.rand(()).item()) == expected


@pytest.mark.parametrize("interrupted", [False, True])
def test_the_best_checkpoint_is_saved_and_kept(
    tiny, labelled_folder, tmp_path, monkeypatch, interrupted
):
    accuracies = {0: 0.9, 1: 0.1, 2: 0.5, 3: 0.4, 4: 0.5, 5: 0.3, 6: 0.2, 7: 0.2, 8: 0.2}
    config = replace(tiny, dataset=str(labelled_folder), eval_every=0.25, save_every=50, keep=1)
    saved, save = [], run_folder.save_checkpoint
    monkeypatch.setattr(
        run_folder,
        "save_checkpoint",
        lambda folder, step, *rest: (saved.append(step), save(folder, step, *rest)),
    )
    for resume in ["never", "auto"] if interrupted else ["never"]:
        trainer = build_trainer(
            replace(config, resume=resume),
            on_log=interrupt_at_line(12) if interrupted and resume == "never" else None,
        )
        trainer.probes.evaluate = lambda backbone, dtype, trainer=trainer: {
            "knn": accuracies[trainer.step]
        }
        try:
            trainer.run()
        except KeyboardInterrupt:
            assert trainer.step == 6
    assert saved == (
        [1, 2, 6, 8] if interrupted else [1, 2, 8]
    )  # the first trained one, the best, and the end
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == [
        "step_00000002.pt",
        "step_00000008.pt",
    ]


# --- folders that cannot be written ---------------------------------------------------------------


class Vanishing:
    """A run's folder that is a mount: away from one log step to another, as a callback. Here it is
    renamed.
    """

    def __init__(self, folder, away, back=None):
        self.folder, self.away, self.back = folder, away, back

    def __call__(self, record):
        if record["step"] == self.away:
            self.go()
        if record["step"] == self.back:
            self.come()

    def go(self):
        self.folder.rename(self.folder.with_name("elsewhere"))

    def come(self):
        assert not self.folder.exists()  # nothing was written where the mount was
        self.folder.with_name("elsewhere").rename(self.folder)


class Mount(Vanishing):
    """A run's folder on a file system of its own, which fills up or becomes read-only: as root, on
    Linux.
    """

    def __init__(self, folder, away, back=None, full=False):
        super().__init__(folder, away, back)
        self.full = full
        folder.mkdir()
        if subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", folder], capture_output=True
        ).returncode:
            pytest.skip("mounting needs root")

    def go(self):
        if self.full:
            for name, filler in [
                ("filler", bytes(4096)),
                ("history.jsonl", b"\n"),
            ]:  # the rest of its page as well
                with (
                    open(self.folder / name, "ab", buffering=0) as file,
                    pytest.raises(OSError, match="No space"),
                ):
                    while True:
                        file.write(filler)
        else:
            subprocess.run(["mount", "-o", "remount,ro", self.folder], check=True)

    def come(self):
        if self.full:
            (self.folder / "filler").unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", self.folder], check=True)


@pytest.fixture(params=["vanished", "full", "read-only"])
def failing(request, tmp_path):
    """A function of (from step, to step) that gives the callback of a folder that fails in
    between.
    """
    mounts = []

    def make(away, back=None):
        if request.param == "vanished":
            return Vanishing(tmp_path / "run", away, back)
        mounts.append(Mount(tmp_path / "run", away, back, full=request.param == "full"))
        return mounts[0]

    yield make
    for mount in mounts:
        subprocess.run(["umount", mount.folder], check=True)


def test_a_folder_that_fails_for_a_while_costs_a_save_and_nothing_else(
    tiny, pictures, whole, tmp_path, assert_same, capsys, failing
):
    config = replace(tiny, save_every=0.5)
    fails = failing(3, 5)
    seen = []

    def on_log(record):
        if record["step"] == fails.back:
            seen.extend(
                checkpoint(replace(config, output_dir=str(where)))["step"]
                for where in (tmp_path / "run", tmp_path / "elsewhere")
                if where.exists()
            )
        fails(record)

    train(config, pictures, on_log=on_log)
    printed = capsys.readouterr().out
    assert (
        printed.count("could not be saved in ") == 1
        and f"update 4 could not be saved in {tmp_path / 'run'} ([Errno " in printed
    )
    assert printed.count("the history could not be written ([Errno ") == 1
    assert seen == [2]  # what had been saved is still there
    assert_same(checkpoint(config), checkpoint(whole))
    assert values(read_history(tmp_path / "run")) == values(read_history(whole.output_dir))


@pytest.mark.parametrize("done", [False, True], ids=["interrupted", "at the end"])
def test_a_folder_that_fails_in_the_end_leaves_the_run_elsewhere(
    tiny, pictures, whole, tmp_path, assert_same, capsys, monkeypatch, failing, done
):
    (tmp_path / "spare").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "spare"))
    fails, stop = failing(7), None if done else interrupt_at_line(7)
    trainer = build_trainer(
        tiny, pictures, on_log=lambda record: (fails(record), stop and stop(record))
    )
    with pytest.raises(OSError if done else KeyboardInterrupt) as error:
        trainer.run()
    [spare] = (tmp_path / "spare").iterdir()
    printed = capsys.readouterr().out
    assert f"could not be saved in {tmp_path / 'run'} ([Errno " in printed
    assert f"saved for the time being: go on with --output-dir {spare}" in printed
    if done:
        assert (
            f"the run is complete, but {tmp_path / 'run'} could not be written: "
            f"all of it is in {spare}" in str(error.value)
        )
        assert load_teacher(spare).about["step"] == 8
    else:
        assert "interrupted after update 7 and saved: go on with --resume auto" in printed
    fails.come()
    assert checkpoint(tiny)["step"] == 4
    trainer.on_log = None
    trainer.run()  # in its own folder
    train(replace(tiny, resume="auto", output_dir=str(spare)), pictures)  # from the other one
    for folder in (tmp_path / "run", spare):
        assert_same(checkpoint(replace(tiny, output_dir=str(folder))), checkpoint(whole))
        assert values(read_history(folder)) == values(read_history(whole.output_dir))
        assert load_teacher(folder).about["step"] == 8


def test_nowhere_to_save_is_an_error_and_the_trainer_goes_on_from_what_is_left(
    tiny, pictures, whole, tmp_path, monkeypatch, capsys, assert_same
):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    trainer = build_trainer(tiny, pictures, on_log=Vanishing(tmp_path / "run", 7))
    with pytest.raises(OSError, match="nowhere"):
        trainer.run()
    assert f"update 8 could not be saved in {tmp_path / 'run'} (" in capsys.readouterr().out
    trainer.on_log.come()
    trainer.on_log = None
    trainer.run()
    assert_same(checkpoint(tiny), checkpoint(whole))


def test_an_output_folder_that_cannot_be_made_ends_the_command_in_one_line(
    tiny, labelled_folder, tmp_path, capsys, as_arguments
):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as error:
        main(
            as_arguments(
                replace(
                    tiny, dataset=str(labelled_folder), output_dir=str(tmp_path / "file" / "run")
                )
            )
        )
    assert error.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and str(tmp_path / "file" / "run") in line


# --- what stops a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("log_every", [1, 8])
def test_a_loss_that_is_not_finite_stops_the_run_and_spares_its_checkpoints(
    tiny, pictures, tmp_path, monkeypatch, log_every
):
    forward, calls = DINOLoss.forward, []

    def breaks(self, student, *args, **kwargs):
        calls.append(1)
        return forward(self, student * (math.nan if len(calls) > 3 else 1), *args, **kwargs)

    monkeypatch.setattr(DINOLoss, "forward", breaks)
    config = replace(tiny, log_every=log_every, save_every=0.5)
    with pytest.raises(
        FloatingPointError,
        match=r"loss is nan at step 4; .*Begin anew .*checkpoints/step_00000002.pt, which is "
        r"from before, with a lower lr=0\.001 or clip_grad=",
    ):
        train(config, pictures)
    saved = checkpoint(config)
    assert saved["step"] == 2 and all(value.isfinite().all() for value in saved["student"].values())
    lines = read_history(tmp_path / "run")
    assert all(math.isfinite(record["loss"]) for record in lines if "skipped" not in record)
    assert [record["step"] for record in lines if "skipped" in record] == [4, 5, 6]


@pytest.mark.parametrize("store_size", [24, None], ids=["store", "workers"])
def test_a_dataset_smaller_than_the_batch_is_refused(tiny, pictures, store_size):
    with pytest.raises(ValueError, match="batch_size=33 is larger than the 32 training images"):
        build_trainer(replace(tiny, batch_size=33, store_size=store_size), pictures)
    assert (
        build_trainer(replace(tiny, batch_size=32, store_size=store_size), pictures).steps_per_epoch
        == 1
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": "vit_tinny_patch16_224"}, "vit_tinny_patch16_224"),
        ({"dataset": "shapez"}, "'shapez'"),
        ({"device": "cuda"}, "device=cuda is not available here"),
        ({"batch_size": 4001}, "batch_size=4001 is larger than"),
        ({"accumulate": 3}, "batch_size=8 must be divisible by accumulate=3 times"),
    ],
)
def test_wrong_settings_end_the_command_in_one_line(
    tiny, labelled_folder, as_arguments, capsys, monkeypatch, changes, message
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as error:
        main(
            as_arguments(
                replace(tiny, **{"dataset": str(labelled_folder), "eval_every": 0, **changes})
            )
        )
    assert error.value.code == 2
    printed = capsys.readouterr().err.splitlines()[-1]
    assert printed.startswith("error: ") and message in printed


def test_ctrl_c_ends_the_command_with_130(tiny, labelled_folder, as_arguments, monkeypatch):
    interrupting(monkeypatch, step=1)
    with pytest.raises(SystemExit) as error:
        main(as_arguments(replace(tiny, dataset=str(labelled_folder), eval_every=0)))
    assert error.value.code == 130 and checkpoint(tiny)["step"] == 2


# --- devices, precisions, processes ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_takes_the_fastest_device_there_is(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto").type == expected
    assert pick_device("cpu").type == "cpu"
    for name, there in [("cuda", cuda), ("mps", mps)]:
        if not there:
            with pytest.raises(
                ValueError, match=rf"device={name} is not available here; available: .*'cpu'"
            ):
                pick_device(name)


def test_every_process_takes_its_own_card(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert pick_device("cuda") == torch.device("cuda", 3)


def test_auto_precision_is_what_the_hardware_computes(monkeypatch):
    for native, expected in [(True, torch.bfloat16), (False, torch.float16)]:
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: native or including_emulation,
        )
        assert pick_precision("auto", torch.device("cuda")) == expected
    for has, faster, expected in [
        ({}, 2.0, torch.float32),
        ({"avx512_bf16": True}, 2.0, torch.bfloat16),
        ({"avx512_bf16": True}, 0.5, torch.float32),  # Intel's without AMX
        ({"amx_bf16": True}, 8.0, torch.bfloat16),
        ({"avx512_bf16": False, "avx2": True}, 2.0, torch.float32),
    ]:
        rates = {torch.bfloat16: faster * 1e11, torch.float32: 1e11}
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has, raising=False)
        monkeypatch.setattr(build, "product_ceiling", lambda _, dtype, rates=rates: rates[dtype])
        build._bfloat16_is_faster.cache_clear()
        assert pick_precision("auto", CPU) == expected
    build._bfloat16_is_faster.cache_clear()
    assert pick_precision("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_matrix_products_run_in_the_chosen_precision(tiny, pictures, precision, dtype):
    trainer = build_trainer(replace(tiny, precision=precision), pictures)
    seen, scale = [], trainer.scaler.is_enabled()
    for model in (trainer.student, trainer.teacher):
        for module in (model.backbone.model.blocks[0].attn.qkv, model.head.mlp[0], model.head):
            module.register_forward_hook(lambda m, x, y: seen.append(y.dtype))
    result = trainer.train_step(first_views(trainer))
    # the student's two sizes of views, the teacher's one; the heads' outputs are float32 in every
    # precision
    assert sorted(seen, key=str) == sorted([dtype] * 5 + [torch.float32] * 2, key=str)
    assert (
        {p.dtype for p in trainer.student.parameters()} == {result["loss"].dtype} == {torch.float32}
    )
    assert result["loss"].isfinite() and scale == (precision == "fp16")


@pytest.mark.parametrize(
    "changes",
    [
        {"recompute": True},
        {"recompute": True, "drop_path": 0.5},
        {"recompute": True, "backbone": "resnet18", "backbone_options": {}},
    ],
)
def test_blocks_computed_again_give_the_same_gradients(tiny, pictures, changes):
    gradients, held = [], []
    for recompute in (False, True):
        trainer = build_trainer(replace(tiny, **{**changes, "recompute": recompute}), pictures)
        views, n = first_views(trainer), []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, n=n: n.append(x.numel()) or x, lambda x: x
        ):
            trainer.train_step(views)
        gradients.append(
            {name: p.grad for name, p in trainer.student.named_parameters() if p.grad is not None}
        )
        held.append(sum(n))
    assert_close(*gradients)
    assert held[1] < 0.8 * held[0]


def test_a_network_that_cannot_compute_again_is_refused(tiny, pictures):
    student = build_student(tiny)
    student.backbone.model = torch.nn.Identity()
    with pytest.raises(ValueError, match="recompute=True: timm's vit_tiny_patch16_224"):
        pick_kernels(student, replace(tiny, recompute=True), CPU, torch.float32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_attention_on_a_cpu_is_the_fused_one_in_float32_alone(tiny, dtype):
    student, plain = build_student(tiny), build_student(tiny)
    pick_kernels(student, tiny, CPU, dtype)
    attention = student.backbone.model.blocks[0].attn
    assert (
        attention.fused_attn == (dtype == torch.float32)
        and plain.backbone.model.blocks[0].attn.fused_attn
    )
    views = [torch.randn(4, 3, size, size) for size in (24, 24, 12)]
    mine, theirs = student(views), plain(views)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    for a, b in zip(
        *(
            torch.autograd.grad(
                out.square().sum(), [p for p in model.parameters() if p.requires_grad]
            )
            for out, model in ((mine, student), (theirs, plain))
        ),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
    pick_kernels(plain, tiny, torch.device("cuda"), dtype)
    assert plain.backbone.model.blocks[0].attn.fused_attn


def test_convolutional_networks_are_channels_last_and_give_the_same_step(
    tiny, pictures, monkeypatch
):
    states = []
    for pick in (pick_kernels, lambda *args: None):
        monkeypatch.setattr(training, "pick_kernels", pick)
        trainer = build_trainer(
            replace(tiny, backbone="resnet18", backbone_options={}, lr=1e-4), pictures
        )
        for _ in range(3):
            trainer.train_step(first_views(trainer))
        states.append(
            (trainer.student.state_dict(), trainer.student.backbone.model.layer1[0].conv1.weight)
        )
    assert [w.is_contiguous(memory_format=torch.channels_last) for _, w in states] == [True, False]
    for name, value in states[0][0].items():
        torch.testing.assert_close(value, states[1][0][name], rtol=1e-3, atol=1e-3)


def test_a_compiled_network_takes_the_same_steps(tiny, pictures, tmp_path, monkeypatch):
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        functools.partialmethod(torch.nn.Module.compile, backend="eager"),
    )
    _, plain = train(replace(tiny, output_dir=str(tmp_path / "plain")), pictures)
    trainer = trained(tiny, pictures, compile=True)
    assert [r["loss"] for r in trainer.history] == pytest.approx(
        [r["loss"] for r in plain], abs=1e-6
    )
    assert trainer.student.backbone._compiled_call_impl is not None
    assert trainer.teacher.backbone._compiled_call_impl is not None


def test_a_batch_must_split_evenly_over_the_processes(tiny, pictures, monkeypatch):
    for name, value in [("is_initialized", True), ("get_rank", 0), ("get_world_size", 3)]:
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(
        ValueError, match=r"batch_size=8 must be divisible by accumulate=2 .* processes, 3"
    ):
        build_trainer(replace(tiny, accumulate=2), pictures)
