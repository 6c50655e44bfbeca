"""What DINOv2 adds: Sinkhorn-Knopp in place of the center, and KoLeo."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from dino_lib.course import collapse_runs as lab
from dino_lib.loss import DINOLoss
from dino_lib.run.build import build_student
from dino_lib.run.dinov2 import KoLeo, SinkhornLoss, koleo, sinkhorn
from dino_lib.run.train import build_trainer


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_sinkhorn_is_the_collapse_labs_in_logarithms():
    logits = randn(12, 5)
    for iterations in (1, 3):
        plain = lab.sinkhorn(logits, 0.5, iterations)
        torch.testing.assert_close(sinkhorn(logits / 0.5, iterations), plain)


def test_rows_sum_to_one_and_prototypes_share_alike_even_where_e_to_the_logits_overflows():
    q = sinkhorn(randn(64, 8) + torch.linspace(0, 500, 8), iterations=50)
    torch.testing.assert_close(q.sum(1), torch.ones(64))
    torch.testing.assert_close(q.sum(0), torch.full((8,), 8.0), rtol=1e-3, atol=0)


def test_the_loss_is_dinos_with_other_targets():
    loss = SinkhornLoss(6, student_temp=0.2)
    student, teacher = randn(4, 3, 6).requires_grad_(), randn(2, 3, 6, seed=1)
    q = sinkhorn(teacher.flatten(0, 1) / 0.05).view(2, 3, 6)
    log_p = F.log_softmax(student / 0.2, dim=-1)
    terms = [-(q[i] * log_p[v]).sum(-1).mean() for i in range(2) for v in range(4) if i != v]
    value = loss(student, teacher, 0.05)
    torch.testing.assert_close(value, sum(terms) / 6)
    before, loss.center = value, torch.linspace(-9, 9, 6)  # has no part in it
    torch.testing.assert_close(loss(student, teacher, 0.05), before)
    with pytest.raises(ValueError, match=r"teacher_temp=0 must be positive"):
        loss(student, teacher, 0)


def test_koleo_against_a_loop():
    features = randn(7, 3)
    z = features / features.norm(dim=1, keepdim=True)
    nearest = [min((z[i] - z[j]).norm() for j in range(7) if j != i) for i in range(7)]
    expected = -sum(math.log(d) for d in nearest) / 7
    assert koleo(features).item() == pytest.approx(expected, rel=1e-5)
    assert koleo(5 * features).item() == pytest.approx(expected, rel=1e-5)


def test_koleo_pushes_the_nearest_apart_and_survives_equal_ones():
    features = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.0]], requires_grad=True)
    koleo(features).backward()
    down = -features.grad
    assert down[0, 1] > 0 > down[1, 1]  # away from each other
    equal = torch.ones(3, 2, requires_grad=True)
    koleo(equal).backward()
    assert equal.grad.isfinite().all()


def test_it_sees_the_features_of_the_global_views_of_the_student_alone(tiny):
    student = build_student(tiny).train()
    views = [randn(4, 3, side, side, seed=side) for side in (24, 24, 12)]
    term = KoLeo(student, 0.3)
    student(views)
    features = student.features(views)
    expected = 0.3 * (koleo(features[:4]) + koleo(features[4:8])) / 2
    torch.testing.assert_close(term(4), expected)
    gradients = torch.autograd.grad(term(4), student.backbone.parameters(), allow_unused=True)
    assert any(gradient is not None and gradient.any() for gradient in gradients)


def test_without_a_weight_nothing_is_kept(tiny):
    student = build_student(tiny)
    assert KoLeo(student, 0.0)(4) == 0.0
    assert not student.head._forward_pre_hooks


def test_a_step_goes_down_the_sum_of_both_losses(tiny, pictures):
    """Against the gradient of the two terms, computed apart from the trainer. Both count with such
    weights: the gradient of the loss is large here, for the pictures are noise.
    """
    config = replace(tiny, centering="sinkhorn", koleo=1000.0, clip_grad=0.0)
    trainer = build_trainer(config, pictures)
    assert isinstance(trainer.loss, SinkhornLoss)
    views = [randn(8, 3, side, side, seed=i) for i, side in enumerate((24, 24, 12, 12))]
    torch.manual_seed(0)
    features = trainer.student.features(views)
    logits = trainer.student.head(features).unflatten(0, (4, -1))
    with torch.no_grad():
        targets = trainer.teacher(views[:2])
    loss = SinkhornLoss(config.out_dim)(logits, targets, config.teacher_temp)
    total = loss + 500 * (koleo(features[:8]) + koleo(features[8:16]))
    trained = [p for p in trainer.student.parameters() if p.requires_grad]
    norm = torch.stack([g.norm() for g in torch.autograd.grad(total, trained)]).norm()
    update = trainer.train_step(views)
    assert update["loss"].item() == pytest.approx(loss.item(), rel=1e-4)  # DINO's alone
    assert update["grad_norm"].item() == pytest.approx(norm.item(), rel=1e-3)


@pytest.mark.parametrize("more", [{"koleo": 0.1}, {"centering": "sinkhorn"}])
def test_parts_of_a_batch_are_refused(tiny, more):
    with pytest.raises(ValueError, match=r"accumulate=2: .* accumulate must be 1"):
        replace(tiny, accumulate=2, **more)


def test_the_paper_is_the_default(tiny, pictures):
    trainer = build_trainer(tiny, pictures)
    assert type(trainer.loss) is DINOLoss and trainer.koleo(8) == 0.0
