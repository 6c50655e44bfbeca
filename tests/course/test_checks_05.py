"""The self-checks of notebook 05: right answers are accepted, plausible mistakes are named,
answers never shown.
"""

import math

import numpy as np
import pytest
import torch

from dino_lib.course import training as checks
from dino_lib.schedules import half_life


def plan_run(n_images, batch_size, epochs, momentum):
    updates = (n_images // batch_size) * epochs
    return updates, half_life(momentum), updates / half_life(momentum)


def split_loss(student, teacher, center, student_temp, teacher_temp):
    log_q = torch.log_softmax((teacher - center) / teacher_temp, dim=-1)
    log_p = torch.log_softmax(student / student_temp, dim=-1)
    return -(log_q.exp() * log_q).sum(-1).mean(), (log_q.exp() * (log_q - log_p)).sum(-1).mean()


def backward_split(student, teacher, center, student_temp, teacher_temp):
    q = torch.softmax((teacher - center) / teacher_temp, dim=-1)
    p = torch.softmax(student / student_temp, dim=-1)
    return -(q * q.log()).sum(-1).mean(), (p * (p / q).log()).sum(-1).mean()


def entropy_of_the_mean(student, teacher, center, student_temp, teacher_temp):
    q = torch.softmax((teacher - center) / teacher_temp, dim=-1).mean(0)
    return -(q * q.log()).sum(), split_loss(student, teacher, center, student_temp, teacher_temp)[1]


def diagnose(
    history, out_dim, row="teacher_entropy", batch="mean_entropy", which=-1, log=math.log, gap=0.05
):
    last = [r for r in history if "teacher_entropy" in r][which]
    if last[row] > 0.95 * log(out_dim):
        return "uniform"
    if last[batch] < 0.2 * log(out_dim):
        return "one prototype"
    return "same for all" if last[batch] - last[row] < gap * log(out_dim) else "healthy"


RIGHT = {
    "plan_run": plan_run,
    "initial_share": np.prod,
    "split_loss": split_loss,
    "diagnose": diagnose,
}

# exercise, a wrong answer, words that its message must hold
WRONG = [
    ("plan_run", lambda n, b, e, m: plan_run(n * e, b, 1, m), "in every epoch"),
    ("plan_run", lambda n, b, e, m: plan_run(n + b - 1, b, e, m), "it is dropped"),
    ("plan_run", lambda n, b, e, m: plan_run(n, 1, e, m), "images, not updates"),
    ("plan_run", lambda n, b, e, m: plan_run(n, b, 1, m), "one epoch"),
    ("plan_run", lambda n, b, e, m: (n // b * e, 1 / (1 - m), n // b * e * (1 - m)), "mean age"),
    (
        "plan_run",
        lambda n, b, e, m: (n // b * e, -1 / math.log(m), -(n // b) * e * math.log(m)),
        "1/e",
    ),
    ("plan_run", lambda *a: (*plan_run(*a)[:2], 1 / plan_run(*a)[2]), "turned round"),
    ("initial_share", lambda m: 1 - np.prod(m), "has been learned"),
    ("initial_share", lambda m: np.prod(1 - m), "student's share"),
    ("initial_share", lambda m: m[0] ** len(m), "first value"),
    ("initial_share", lambda m: m[-1] ** len(m), "last value"),
    ("initial_share", lambda m: m.mean() ** len(m), "mean momentum"),
    ("initial_share", lambda m: np.log(m).sum(), "logarithm"),
    (
        "split_loss",
        lambda s, t, c, hot, cold: split_loss(s, t, 0 * c, hot, cold),
        "center is not subtracted",
    ),
    ("split_loss", lambda s, t, c, hot, cold: split_loss(s, t, -c, hot, cold), "center is added"),
    ("split_loss", lambda s, t, c, hot, cold: split_loss(s, t, c, cold, hot), "swapped"),
    (
        "split_loss",
        lambda s, t, c, hot, cold: split_loss(s, t, c, 1.0, cold),
        "student's logits lack",
    ),
    ("split_loss", backward_split, "wrong way"),
    ("split_loss", lambda *a: (split_loss(*a)[0], sum(split_loss(*a))), "whole loss"),
    ("split_loss", lambda *a: tuple(6 * part for part in split_loss(*a)), "not sums"),
    ("split_loss", lambda *a: split_loss(*a)[::-1], "the order is"),
    ("diagnose", lambda h, k: diagnose(h, k, batch="teacher_entropy"), "confident rows"),
    ("diagnose", lambda h, k: diagnose(h, k, row="mean_entropy"), "all prototypes alike"),
    ("diagnose", lambda h, k: diagnose(h, k, "loss", "loss"), "the loss does not tell"),
    ("diagnose", lambda h, k: diagnose(h, k, which=0), "the last line"),
    ("diagnose", lambda h, k: diagnose(h, k, log=float), "shares of ln K"),
    ("diagnose", lambda h, k: diagnose(h, k, log=math.log2), "bits"),
    ("diagnose", lambda h, k: "healthy", "every run the same"),
    ("diagnose", lambda h, k: "ill", "'ill'"),
    ("diagnose", lambda h, k: diagnose(h, k, gap=-1), "compare the two entropies"),
    ("diagnose", lambda h, k: diagnose(h, k, log=lambda k: 1.0), "ln K is missing"),
    (
        "diagnose",
        lambda h, k: "uniform" if h[-1]["teacher_entropy"] > 1 else "healthy",
        "may be an evaluation",
    ),
    (
        "diagnose",
        lambda h, k: "one prototype" if h[-1].get("mean_entropy", 0) < 0.2 else "healthy",
        "an evaluation",
    ),
    ("plan_run", lambda *a: (*plan_run(*a)[:2], int(plan_run(*a)[2])), "cut it off"),
    ("plan_run", lambda *a: (*plan_run(*a)[:2], round(plan_run(*a)[2])), "fraction"),
    ("split_loss", entropy_of_the_mean, "not the entropy of the mean row"),
]


def verdict(name, function, capsys):
    getattr(checks, f"check_{name}")(function)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_accepted(name, capsys):
    assert verdict(name, RIGHT[name], capsys) == "right"


@pytest.mark.parametrize("name", RIGHT)
def test_a_stub_is_not_done_yet(name, capsys):
    assert verdict(name, lambda *args: None, capsys) == "not done yet"


@pytest.mark.parametrize(
    ("name", "function", "words"), WRONG, ids=[f"{name}-{words}" for name, _, words in WRONG]
)
def test_a_mistake_is_named(name, function, words, capsys):
    message = verdict(name, function, capsys)
    assert message.startswith("wrong: ") and words in message


@pytest.mark.parametrize(
    ("name", "change"), [("initial_share", 1 + 1e-3), ("split_loss", 1 + 1e-3)]
)
def test_a_small_difference_is_close(name, change, capsys):
    def nearly(*args):
        result = RIGHT[name](*args)
        return (
            tuple(change * part for part in result)
            if isinstance(result, tuple)
            else change * result
        )

    assert verdict(name, nearly, capsys).startswith("close: largest difference ")
