"""The self-checks of notebook 04: the right answer passes, plausible mistakes are named."""

import math

import numpy as np
import pytest
import torch

from dino_lib.course import teacher as checks
from dino_lib.schedules import half_life


def momentum_for(total, share):
    return 0.5 ** (1 / (share * total))


def temperature_schedule(start, final, total, warm):
    return np.concatenate([np.linspace(start, final, warm), np.full(total - warm, final)])


def ema_weights(momenta):
    weights = np.array([1.0])
    for m in momenta:
        weights = np.append(m * weights, 1 - m)
    return weights


def follow(teacher, student, momentum):
    with torch.no_grad():
        teacher.weight.mul_(momentum).add_(student.weight, alpha=1 - momentum)


def step(
    parts,
    student,
    teacher,
    loss_fn,
    optimizer,
    momentum,
    temp,
    *,
    zero=True,
    share=None,
    own_center=False,
    rows=slice(None),
    early=False,
    steps_each=False,
    follow_each=False,
):
    if zero:
        optimizer.zero_grad()
    targets = []
    for views in parts:
        said = teacher(views[:2])
        targets.append(said)
        loss = loss_fn(student(views), said, temp, update_center=own_center)
        (loss / (share or len(parts))).backward()
        if steps_each:
            optimizer.step()
            optimizer.zero_grad()
        if follow_each:
            follow(teacher, student, momentum)
    if not own_center and targets[rows]:
        loss_fn.update_center(torch.cat(targets[rows], dim=1))
    if early:
        follow(teacher, student, momentum)
    if not steps_each:
        optimizer.step()
    if not early and not follow_each:
        follow(teacher, student, momentum)


def variant(**options):
    return lambda *arguments: step(*arguments, **options)


def reversed_ema(*arguments):
    step(*arguments[:5], 1 - arguments[5], arguments[6])


RIGHT = [
    ("momentum_for", momentum_for),
    ("temperature_schedule", temperature_schedule),
    ("ema_weights", ema_weights),
    ("accumulated_step", step),
]

WRONG = [
    ("momentum_for", lambda total, share: math.exp(-1 / (share * total)), "1/e is left"),
    ("momentum_for", lambda total, share: 1 - 1 / (share * total), "solve m^n"),
    ("momentum_for", lambda total, share: 1 - 0.5 / (share * total), "no solution"),
    ("momentum_for", lambda total, share: 0.5 ** (1 / total), "a share of the run"),
    ("momentum_for", lambda total, share: 0.5 ** (share * total), "momentum of 1/2"),
    ("momentum_for", lambda total, share: 1 - momentum_for(total, share), "what the teacher keeps"),
    ("temperature_schedule", lambda a, b, n, w: np.linspace(a, b, n), "whole run"),
    ("temperature_schedule", lambda a, b, n, w: temperature_schedule(0, b, n, w), "starts at 0"),
    ("temperature_schedule", lambda a, b, n, w: temperature_schedule(b, a, n, w), "swapped"),
    ("temperature_schedule", lambda a, b, n, w: np.where(np.arange(n) < w, a, b), "it jumps"),
    (
        "temperature_schedule",
        lambda a, b, n, w: a + (b - a) * np.minimum(np.arange(n) / w, 1),
        "never reaches",
    ),
    ("temperature_schedule", lambda a, b, n, w: np.linspace(a, b, w), "shapes"),
    ("ema_weights", lambda m: ema_weights(m)[::-1].copy(), "order of time"),
    ("ema_weights", lambda m: ema_weights(m[::-1]), "from the last to the first"),
    ("ema_weights", lambda m: ema_weights(1 - m), "adds the rest"),
    ("ema_weights", lambda m: np.append(0, ema_weights(m)[1:]), "common start"),
    ("ema_weights", lambda m: np.append(m.prod(), 1 - m), "by the updates after it"),
    (
        "ema_weights",
        lambda m: np.append(m.prod(), [(1 - m[j]) * m[j:].prod() for j in range(len(m))]),
        "itself",
    ),
    (
        "ema_weights",
        lambda m: np.array([m[j:].prod() for j in range(len(m) + 1)]),
        "only 1 - momentum",
    ),
    ("accumulated_step", variant(share=1), "divided by their number"),
    ("accumulated_step", variant(own_center=True), "not once a part"),
    ("accumulated_step", variant(rows=slice(2, None)), "the last one alone"),
    ("accumulated_step", variant(rows=slice(0, 0)), "does not move"),
    ("accumulated_step", variant(follow_each=True), "teacher follows once"),
    ("accumulated_step", variant(steps_each=True), "optimizer steps once"),
    ("accumulated_step", variant(zero=False), "zero it"),
    ("accumulated_step", variant(early=True), "after the optimizer's step"),
    ("accumulated_step", reversed_ema, "keeps of itself"),
    (
        "accumulated_step",
        lambda parts, *rest: step([torch.cat(parts, dim=1)], *rest),
        "images at once",
    ),
    (
        "accumulated_step",
        lambda parts, *rest: [step([part], *rest) for part in parts],
        "update of every part",
    ),
    ("accumulated_step", lambda *a: step(*a[:5], 1.0, a[6]), "does not move: it follows"),
    ("momentum_for", lambda total, share: share ** (1 / (share * total)), "whatever share"),
    (
        "temperature_schedule",
        lambda a, b, n, w: np.array(
            [a + (b - a) * (1 - math.cos(math.pi * min(i / (w - 1), 1))) / 2 for i in range(n)]
        ),
        "not a piece of a cosine",
    ),
    ("temperature_schedule", lambda *a: list(temperature_schedule(*a)), "gives a list"),
    (
        "ema_weights",
        lambda m: np.append(
            m.prod(), [(1 - m[j]) * m[j] ** (len(m) - 1 - j) for j in range(len(m))]
        ),
        "with their own momenta",
    ),
    (
        "ema_weights",
        lambda m: np.append(m.prod(), [(1 - m[j]) * m[:j].prod() for j in range(len(m))]),
        "not by those",
    ),
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
    checks.check_temperature_schedule(lambda *args: temperature_schedule(*args) * 1.002)
    assert capsys.readouterr().out.startswith("close: largest difference ")


def test_the_right_momentum_has_that_half_life():
    assert half_life(momentum_for(400, 0.1)) == pytest.approx(40)
