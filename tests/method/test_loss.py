import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F

from dino_lib.loss import DINOLoss, teacher_entropies


def randn(*shape, seed=0, scale=1.0):
    return scale * torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


def pairs_loss(student, teacher, center, teacher_temp, student_temp=0.1):
    """The definition, pair by pair, and the number of pairs."""
    terms = []
    for i in range(2):
        q = F.softmax((teacher[i] - center) / teacher_temp, dim=-1)
        for v in range(len(student)):
            if v != i:
                terms.append(-(q * F.log_softmax(student[v] / student_temp, dim=-1)).sum(-1).mean())
    return sum(terms) / len(terms), len(terms)


@pytest.mark.parametrize(
    ("n_views", "student_temp", "momentum"), [(2, 0.1, 0.9), (10, 0.1, 0.9), (5, 0.25, 0.6)]
)
def test_loss_gradient_and_center_against_the_loop_over_several_steps(
    n_views, student_temp, momentum
):
    k, temps = (
        12,
        torch.empty(6).uniform_(0.03, 0.09, generator=torch.Generator().manual_seed(n_views)),
    )
    loss = DINOLoss(k, student_temp=student_temp, center_momentum=momentum)
    center = torch.zeros(k, dtype=torch.float64)
    for step, temp in enumerate(temps.tolist()):
        student = randn(n_views, 7, k, seed=2 * step, scale=0.3).requires_grad_()
        teacher = randn(2, 7, k, seed=2 * step + 1, scale=0.1) + torch.linspace(
            0, 0.2, k, dtype=torch.float64
        )
        value = loss(student, teacher, temp)
        (gradient,) = torch.autograd.grad(value, student)
        expected, n_pairs = pairs_loss(student, teacher, center, temp, student_temp)
        (expected_gradient,) = torch.autograd.grad(expected, student)
        assert n_pairs == 2 * (n_views - 1)
        assert value.ndim == 0 and value.dtype == torch.float32
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-6)
        center = momentum * center + (1 - momentum) * teacher.mean((0, 1))  # after the loss
        torch.testing.assert_close(loss.center.double(), center, rtol=1e-6, atol=1e-6)
    assert center.abs().max() > 0.05  # the steps did go through a center that is not zero


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_gradient_of_logits_in_low_precision_is_scaled_before_it_is_rounded(dtype):
    """The entries of a large K are below float16's smallest number, unless the scaler's factor
    comes first.
    """
    student, teacher = (
        randn(4, 2, 4096, scale=0.1).to(dtype).requires_grad_(),
        randn(2, 2, 4096, seed=1, scale=0.1),
    )
    (65536 * DINOLoss(4096)(student, teacher, 0.04)).backward()
    exact = student.detach().double().requires_grad_()
    (65536 * pairs_loss(exact, teacher, 0.0, 0.04)[0]).backward()
    assert student.grad.dtype == dtype
    torch.testing.assert_close(student.grad.double(), exact.grad, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("n_views", [2, 10])
def test_how_often_each_view_is_counted(n_views):
    """One view says prototype 0 with certainty a; all others are uniform; the teacher says
    prototype 1 throughout.
    """
    k, logits = 8, torch.tensor([1.0] + [0.0] * 7)
    teacher = torch.zeros(2, 3, k)
    teacher[..., 1] = 5.0
    wrong = -F.log_softmax(logits / 0.1, dim=0)[1].item()
    for view in range(n_views):
        student = torch.zeros(n_views, 3, k)
        student[view] = logits
        times, n_pairs = 1 if view < 2 else 2, 2 * (n_views - 1)
        expected = (times * wrong + (n_pairs - times) * math.log(k)) / n_pairs
        assert DINOLoss(k)(student, teacher, 0.04).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("same", [0, 1])
def test_a_view_is_never_paired_with_itself(same):
    def gradient(teacher):
        student = randn(4, 5, 6).requires_grad_()
        DINOLoss(6)(student, teacher, 0.05).backward()
        return student.grad

    teacher, other = randn(2, 5, 6, seed=1, scale=0.1), randn(2, 5, 6, seed=1, scale=0.1)
    other[same] = randn(5, 6, seed=2, scale=0.1)
    changed = (gradient(teacher) - gradient(other)).abs().amax((1, 2)) > 1e-6
    assert changed.tolist() == [view != same for view in range(4)]


def test_swapping_the_crops_of_two_images_raises_the_loss():
    rows = torch.eye(4)  # image b is prototype b
    student, teacher = rows.expand(5, 4, 4).clone(), rows.expand(2, 4, 4).clone()
    loss = DINOLoss(4).eval()
    good = loss(student, teacher, 0.04).item()
    for view in range(5):
        swapped = student.clone()
        swapped[view, [0, 1]] = student[view, [1, 0]]
        assert loss(swapped, teacher, 0.04).item() > good + 0.1
    assert good < 0.01


@pytest.mark.parametrize("k", [2, 256, 4096])
def test_uniform_student_gives_ln_k_whatever_the_teacher(k):
    loss = DINOLoss(k)
    assert loss(torch.zeros(3, 2, k), torch.zeros(2, 2, k), 0.04).item() == pytest.approx(
        math.log(k), rel=1e-6
    )
    for seed in range(2):  # the second time with a center
        assert loss(torch.ones(3, 2, k), randn(2, 2, k, seed=seed), 0.04).item() == pytest.approx(
            math.log(k), rel=1e-5
        )


def test_no_gradient_reaches_the_teacher_or_the_center():
    student, teacher = randn(3, 4, 6).requires_grad_(), randn(2, 4, 6, seed=1).requires_grad_()
    loss = DINOLoss(6)
    loss(student, teacher, 0.04).backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0
    assert not loss.center.requires_grad and loss.center.grad_fn is None
    assert not loss.teacher_probs(teacher, 0.04).requires_grad


# --- the center ----------------------------------------------------------------------------------


def test_center_moves_after_the_loss_and_only_in_train_mode():
    student, teacher = randn(3, 4, 6), randn(2, 4, 6, seed=1)
    loss = DINOLoss(6)
    loss.center.copy_(randn(6, seed=2))
    before = loss.center.clone()

    quiet = loss.eval()(student, teacher, 0.5)
    assert torch.equal(loss.center, before)
    held = loss.train()(student, teacher, 0.5, update_center=False)
    assert torch.equal(loss.center, before)
    moving = loss(student, teacher, 0.5)
    torch.testing.assert_close(loss.center, (0.9 * before + 0.1 * teacher.mean((0, 1))).float())
    assert quiet == held == moving  # each of them took the old center
    assert abs(loss.eval()(student, teacher, 0.5) - quiet) > 1e-3


def test_update_center_apart_equals_the_update_in_the_loss():
    student, teacher = randn(3, 4, 6), randn(2, 4, 6, seed=1)
    together, apart, parts = DINOLoss(6), DINOLoss(6), DINOLoss(6)
    together(student, teacher, 0.05)
    apart(student, teacher, 0.05, update_center=False)
    apart.update_center(teacher)
    assert torch.equal(together.center, apart.center)
    # two halves of an accumulated batch: their rows are collected, the center moves once
    parts.update_center(torch.cat([teacher[:, :2].flatten(0, 1), teacher[:, 2:].flatten(0, 1)]))
    torch.testing.assert_close(parts.center, together.center)


def _rank_of_two(rank, url, results):
    """One of two processes: rank 1 has twice as many rows."""
    dist.init_process_group("gloo", init_method=url, rank=rank, world_size=2)
    loss = DINOLoss(5)
    loss.update_center(ROWS[rank])
    results.put((rank, loss.center.tolist()))
    dist.destroy_process_group()


ROWS = randn(2, 3, 5), randn(2, 6, 5, seed=1)


def test_center_is_the_mean_over_the_rows_of_all_ranks(tmp_path):
    """Over rows, not over ranks: one of the two processes has twice as many."""
    context = torch.multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    for_both = (f"file://{tmp_path}/meet", results)
    torch.multiprocessing.spawn(_rank_of_two, for_both, nprocs=2)
    expected = 0.1 * torch.cat([rows.flatten(0, 1) for rows in ROWS]).mean(0)
    for center in dict(results.get() for _ in range(2)).values():
        torch.testing.assert_close(torch.tensor(center).double(), expected, rtol=1e-5, atol=1e-7)


def test_state_dict_holds_the_center():
    loss, other = DINOLoss(6), DINOLoss(6)
    assert torch.equal(loss.center, torch.zeros(6))
    loss.update_center(randn(2, 4, 6))
    assert list(loss.state_dict()) == ["center"] and not list(loss.parameters())
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.center, loss.center) and loss.center.abs().sum() > 0


# --- number formats and wrong input --------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_computed_with_in_float32(dtype):
    student, teacher = randn(4, 5, 6).to(dtype), randn(2, 5, 6, seed=1).to(dtype)
    loss, reference = DINOLoss(6), DINOLoss(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, 0.04)
    assert value.dtype == loss.center.dtype == torch.float32
    assert value == reference(student.float(), teacher.float(), 0.04)
    assert torch.equal(loss.center, reference.center)


def test_large_logits_stay_finite():
    student = randn(3, 4, 6, scale=1e4).requires_grad_()
    value = DINOLoss(6)(student, randn(2, 4, 6, seed=1, scale=1e4), 0.04)
    value.backward()
    assert value.isfinite() and student.grad.isfinite().all()


@pytest.mark.parametrize(
    ("student", "teacher"),
    [
        ((1, 4, 6), (2, 4, 6)),  # one view has no partner
        ((3, 4, 6), (3, 4, 6)),
        ((3, 4, 6), (2, 5, 6)),
        ((3, 4, 6), (2, 1, 6)),
        ((3, 4, 5), (2, 4, 5)),  # fit each other, but not the center
        ((3, 4, 6), (2, 4, 5)),
        ((12, 6), (8, 6)),
    ],
)
def test_wrong_shapes_are_refused(student, teacher):
    with pytest.raises(
        ValueError, match=r"do not fit: expected \(V >= 2, B, 6\) and \(2, B, 6\)"
    ) as error:
        DINOLoss(6)(torch.zeros(student), torch.zeros(teacher), 0.04)
    assert str(student) in str(error.value) and str(teacher) in str(error.value)


# --- entropies -----------------------------------------------------------------------------------


def one_hot(*prototypes, k=4):
    return F.one_hot(torch.tensor(prototypes), k).float()


@pytest.mark.parametrize(
    ("probs", "rows", "mean"),
    [
        (one_hot([0, 0, 0, 0], [0, 0, 0, 0]), 0, 0),  # one prototype for everything
        (one_hot([0, 1, 2, 3], [0, 1, 2, 3]), 0, math.log(4)),  # as sharp, and in use all of them
        (one_hot([0, 0, 0, 0], [1, 1, 1, 1]), 0, math.log(2)),  # the mean is over both views
        (torch.full((2, 5, 4), 0.25), math.log(4), math.log(4)),  # uniform
        (torch.tensor([0.5, 0.5, 0, 0]).expand(2, 3, 4), math.log(2), math.log(2)),
    ],
)
def test_teacher_entropies(probs, rows, mean):
    assert teacher_entropies(probs) == (
        pytest.approx(rows, abs=1e-6),
        pytest.approx(mean, abs=1e-6),
    )


def test_entropy_of_the_rows_is_averaged():
    probs = torch.stack([one_hot(0, 1), torch.full((2, 4), 0.25)])
    assert teacher_entropies(probs)[0] == pytest.approx(math.log(4) / 2, abs=1e-6)
