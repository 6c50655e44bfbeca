"""Going on from pretrained weights: the head learns first, the backbone stands still."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from dino_lib.run.config import Config
from dino_lib.run.train import build_trainer


@pytest.fixture
def warming(tiny):
    """Three updates of four with a frozen backbone; the stem has batch norm."""
    return replace(tiny, conv_stem=True, warmup_epochs=0.0, freeze_backbone=0.75)


def updates(trainer, n):
    """After each of n updates: (backbone of the student, of the teacher, the head), as copies."""
    views = next(iter(trainer.views.batches(0, [np.arange(8)])))
    for _ in range(n):
        trainer.train_step(views)
        parts = trainer.student.backbone, trainer.teacher.backbone, trainer.student.head
        yield [{k: v.clone() for k, v in part.state_dict().items()} for part in parts]


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_backbones_stand_still_bit_for_bit_and_move_after(warming, pictures):
    trainer = build_trainer(warming, pictures)
    start = {k: v.clone() for k, v in trainer.student.backbone.state_dict().items()}
    assert any("running_mean" in name for name in start)
    head = {k: v.clone() for k, v in trainer.student.head.state_dict().items()}
    found = list(updates(trainer, 5))
    assert [same(start, student) for student, _, _ in found] == [True] * 3 + [False] * 2
    assert [same(start, teacher) for _, teacher, _ in found] == [True] * 3 + [False] * 2
    assert not same(head, found[0][2])
    means = [found[i][1]["model.patch_embed.proj.1.running_mean"] for i in (2, 3)]
    assert not torch.equal(*means), "after the warm-up batch norm goes on"


def test_without_it_they_move_at_once(tiny, pictures):
    trainer = build_trainer(replace(tiny, warmup_epochs=0.0), pictures)
    start = {k: v.clone() for k, v in trainer.student.backbone.state_dict().items()}
    assert not same(start, next(updates(trainer, 1))[0])


def test_weight_decay_and_clipping_leave_a_frozen_backbone_out(warming, pictures):
    config = replace(warming, weight_decay=10.0, weight_decay_end=10.0, clip_grad=0.0)
    trainer = build_trainer(config, pictures)
    start = {k: v.clone() for k, v in trainer.student.backbone.state_dict().items()}
    views = next(iter(trainer.views.batches(0, [np.arange(8)])))
    norm = trainer.train_step(views)["grad_norm"]
    of_head = [p.grad for p in trainer.student.head.parameters() if p.grad is not None]
    assert all(p.grad is None for p in trainer.student.backbone.parameters())
    expected = torch.stack([gradient.norm() for gradient in of_head]).norm()
    torch.testing.assert_close(norm, expected)
    assert same(start, trainer.student.backbone.state_dict())


def test_a_backbone_that_is_never_trained_stays_asleep(warming, pictures):
    trainer = build_trainer(replace(warming, train_backbone=False), pictures)
    start = {k: v.clone() for k, v in trainer.student.backbone.state_dict().items()}
    *_, (student, teacher, _) = updates(trainer, 5)
    assert same(start, student) and same(start, teacher)


def test_epochs_below_nothing_are_refused():
    with pytest.raises(ValueError, match="freeze_backbone=-1"):
        Config(freeze_backbone=-1.0)
