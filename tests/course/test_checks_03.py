"""The self-checks of notebook 03: the right answer passes, plausible mistakes are named."""

import math

import pytest
import torch

from dino_lib.course import loss as checks


def center_after(mean, m, n):
    return (1 - m**n) * mean


def two_entropies(probs):
    mean = probs.mean((0, 1))
    return torch.special.entr(probs).sum(-1).mean(), torch.special.entr(mean).sum()


def student_gradient(s, q, temp):
    return (torch.softmax(s / temp, -1) - q) / temp / len(s)


def fast_loss(
    student,
    teacher,
    center,
    student_temp,
    teacher_temp,
    *,
    detach=True,
    own=False,
    count=None,
    flip=False,
):
    s, n = student / student_temp, len(student)
    q = torch.softmax((teacher - center) / teacher_temp, -1)
    q = q.detach() if detach else q
    total = 0
    for i in range(2):
        for v in range(n):
            skip = (v == 1 - i) if flip else (v == i)
            if own or not skip:
                total = total + (s[v].logsumexp(-1) - (q[i] * s[v]).sum(-1)).mean()
    return total / (count or 2 * (n - (not own)))


def one_target_for_locals(student, teacher, center, hot, cold):
    """Each view once: the locals with the mean of both targets, with the weight of a single
    pair.
    """
    q = ((teacher.detach() - center) / cold).softmax(-1)
    targets = torch.stack([q[1], q[0], *[q.mean(0)] * (len(student) - 2)])
    return -(targets * (student / hot).log_softmax(-1)).sum(-1).mean()


RIGHT = [
    ("center_after", center_after),
    ("two_entropies", two_entropies),
    ("student_gradient", student_gradient),
    ("fast_loss", fast_loss),
]

WRONG = [
    ("center_after", lambda x, m, n: m**n * x, "the share of the old center"),
    ("center_after", lambda x, m, n: (1 - (1 - m) ** n) * x, "the share that is kept"),
    ("center_after", lambda x, m, n: n * (1 - m) * x, "shrinks what the steps before"),
    ("center_after", lambda x, m, n: (1 - m) * x, "one step only"),
    ("two_entropies", lambda p: two_entropies(p)[::-1], "wrong order"),
    ("two_entropies", lambda p: [-e for e in two_entropies(p)], "minus sign"),
    ("two_entropies", lambda p: [e / math.log(2) for e in two_entropies(p)], "bits"),
    ("two_entropies", lambda p: (12 * two_entropies(p)[0], two_entropies(p)[1]), "not a sum"),
    (
        "two_entropies",
        lambda p: (two_entropies(p)[0], sum(two_entropies(v[None])[1] for v in p) / 2),
        "both views",
    ),
    ("two_entropies", lambda p: (two_entropies(p)[0],) * 2, "average the rows first"),
    ("two_entropies", lambda p: two_entropies(p[:1]), "view 0 alone"),
    ("two_entropies", lambda p: -(p * p.log()).sum(-1).mean(), "shapes"),
    ("two_entropies", lambda p: (-(p * p.log()).sum(-1).mean(), two_entropies(p)[1]), "not finite"),
    ("center_after", lambda b, m, n: center_after(b, m, n - 1), "too few"),
    ("center_after", lambda b, m, n: center_after(b, m, n + 1), "too many"),
    ("student_gradient", lambda s, q, t: (s / t).softmax(-1) - q, "both divisions"),
    ("fast_loss", one_target_for_locals, "in two pairs"),
    ("student_gradient", lambda s, q, t: -student_gradient(s, q, t), "sign"),
    ("student_gradient", lambda s, q, t: t * student_gradient(s, q, t), "inner derivative"),
    ("student_gradient", lambda s, q, t: len(s) * student_gradient(s, q, t), "number of rows"),
    (
        "student_gradient",
        lambda s, q, t: (torch.softmax(s, -1) - q) / t / len(s),
        "lack their temperature",
    ),
    (
        "student_gradient",
        lambda s, q, t: t * t * student_gradient(s, q, t),
        "multiplied by the temperature",
    ),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold, own=True),
        "a view with itself are in",
    ),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold, count=2 * len(s)),
        "counted in the mean",
    ),
    ("fast_loss", lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold, count=1), "are summed"),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold, flip=True),
        "paired with their own",
    ),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: s.shape[1] * fast_loss(s, t, c, hot, cold),
        "summed over the batch",
    ),
    ("fast_loss", lambda s, t, c, hot, cold: fast_loss(s, t, c, cold, hot), "swapped"),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, 0 * c, hot, cold),
        "center is not subtracted",
    ),
    ("fast_loss", lambda s, t, c, hot, cold: fast_loss(s, t, -c, hot, cold), "added"),
    ("fast_loss", lambda s, t, c, hot, cold: fast_loss(s, t, c, 1, cold), "lack their temperature"),
    ("fast_loss", lambda s, t, c, hot, cold: fast_loss(s[:2], t, c, hot, cold), "local views"),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold, detach=False),
        "into the teacher",
    ),
    (
        "fast_loss",
        lambda s, t, c, hot, cold: fast_loss(s, t, c, hot, cold).detach(),
        "with a gradient",
    ),
    ("fast_loss", lambda s, t, c, hot, cold: (s[:, :, 0] / hot).mean(1), "one number"),
]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answer(name, answer, capsys):
    getattr(checks, f"check_{name}")(answer)
    assert capsys.readouterr().out == "right\n"


@pytest.mark.parametrize(("name", "answer", "message"), WRONG)
def test_wrong_answer_is_named(name, answer, message, capsys):
    getattr(checks, f"check_{name}")(answer)
    out = capsys.readouterr().out
    assert out.startswith("wrong: ") and message in out and out.count("\n") == 1


@pytest.mark.parametrize("name", [name for name, _ in RIGHT])
def test_not_done_yet(name, capsys):
    getattr(checks, f"check_{name}")(lambda *args: None)
    assert capsys.readouterr().out == "not done yet\n"


def test_nearly_right_is_close(capsys):
    checks.check_student_gradient(lambda s, q, t: student_gradient(s, q, t) * 1.001)
    assert capsys.readouterr().out.startswith("close: largest difference ")


def test_wrong_shape_and_nan_are_named(capsys):
    checks.check_student_gradient(lambda s, q, t: student_gradient(s, q, t).mean(0))
    checks.check_student_gradient(lambda s, q, t: student_gradient(s, q, t) / 0)
    checks.check_center_after(lambda mean, m, n: "half")
    shapes, finite, kind = capsys.readouterr().out.splitlines()
    assert "shapes" in shapes and "not finite" in finite and "str" in kind
