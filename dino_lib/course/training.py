"""The checks of notebook 05: the plan of a run, and half precision; those of its loop are in
running.py, those of its reading in reading.py.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_lib.course.check import Case, Mistake, check, on
from dino_lib.course.reading import diagnose, split_loss
from dino_lib.course.running import take_checkpoint, training_loop
from dino_lib.schedules import cosine_schedule, half_life

__all__ = ["diagnose", "initial_share", "plan_run", "scaled_gradient", "split_loss",
           "take_checkpoint", "training_loop"]


# --- the plan ---------------------------------------------------------------------------------


def plan_run(yours: Callable) -> Callable:
    """`yours(n_images, batch_size, epochs, momentum)` -> (updates, half-life, half-lives)."""
    cases = [on(1000, 300, 7, 0.97), on(1000, 350, 4, 0.9), on(4000, 64, 13, 0.96),
             on(64, 64, 5, 0.996), on(127, 64, 3, 0.5)]
    return check("plan_run", yours, _plan, cases, {
        "the incomplete batch is dropped in every epoch, not once at the end of the run":
            lambda n, b, e, m: _from_updates(n * e // b, half_life(m)),
        "the incomplete batch counts as an update; it is dropped":
            lambda n, b, e, m: _from_updates(math.ceil(n / b) * e, half_life(m)),
        "the number of batches is rounded; what is incomplete is dropped":
            lambda n, b, e, m: _from_updates(round(n / b) * e, half_life(m)),
        "a fraction of a batch counts as a fraction of an update; it is dropped":
            lambda n, b, e, m: _from_updates(n / b * e, half_life(m)),
        "these are the updates of one epoch, not of the run":
            lambda n, b, e, m: _from_updates(n // b, half_life(m)),
        "these are images, not updates: each update uses a whole batch":
            lambda n, b, e, m: _from_updates(n * e, half_life(m)),
        "the number of half-lives is a fraction: do not round it":
            lambda *run: (*_plan(*run)[:2], round(_plan(*run)[2])),
        "the number of half-lives is a fraction: do not cut it off":
            lambda *run: (*_plan(*run)[:2], int(_plan(*run)[2])),
        "1 / (1 - m) is the mean age of what the teacher holds, not the half-life":
            lambda n, b, e, m: _from_updates(n // b * e, 1 / (1 - m)),
        "that is the time until a weight counts 1/e, not one half":
            lambda n, b, e, m: _from_updates(n // b * e, -1 / math.log(m)),
        "the half-life has the wrong sign: both logarithms are negative":
            lambda n, b, e, m: _from_updates(n // b * e, -half_life(m)),
        "the half-life is turned round: ln of one half over ln of the momentum":
            lambda n, b, e, m: _from_updates(n // b * e, 1 / half_life(m)),
        "the last one is turned round: updates of the run by updates of a half-life":
            lambda *run: (*_plan(*run)[:2], 1 / _plan(*run)[2]),
        "the last one is updates divided by half-life, not multiplied":
            lambda *run: (*_plan(*run)[:2], _plan(*run)[0] * _plan(*run)[1]),
        "the order is (updates, half-life, half-lives in the run)":
            lambda *run: [_plan(*run)[i] for i in (1, 0, 2)],
        "the order is (updates, half-life, half-lives), and this is the other way round":
            lambda *run: _plan(*run)[::-1],
        "epochs multiply the updates of one, they do not divide them":
            lambda n, b, e, m: _from_updates(n // b / e, half_life(m)),
        "batch size and number of images are exchanged":
            lambda n, b, e, m: _from_updates(b // n * e, half_life(m)),
        "batch size and epochs are exchanged":
            lambda n, b, e, m: _from_updates(n // e * b, half_life(m)),
    }, parts=("updates", "half-life", "half-lives"))


def _plan(n_images: int, batch_size: int, epochs: int, momentum: float) -> tuple:
    return _from_updates(n_images // batch_size * epochs, half_life(momentum))


def _from_updates(updates: float, life: float) -> tuple[float, float, float]:
    return updates, life, updates / life


def initial_share(yours: Callable) -> Callable:
    """`yours(momenta)` -> the weight of the teacher's start after all these updates."""
    cases = [on(cosine_schedule(0.5, 1.0, 12)), on(np.full(3, 0.9)), on(np.array([0.3])),
             on(np.array([0.9, 0.1, 0.8])), on(cosine_schedule(0.96, 0.99, 124))]
    return check("initial_share", yours, np.prod, cases, {
        "that is the share of what has been learned since; the start has the rest":
            lambda m: 1 - np.prod(m),
        "1 - m is the student's share at each update": lambda m: np.prod(1 - m),
        "the momentum changes: its first value does not hold for all updates":
            lambda m: m[0] ** len(m),
        "the momentum changes: its last value does not hold for all updates":
            lambda m: m[-1] ** len(m),
        "the mean momentum is not enough: different numbers multiply to less":
            lambda m: m.mean() ** len(m),
        "the shares of the updates multiply; that is their mean": np.mean,
        "the shares of the updates multiply; that is their sum": np.sum,
        "the shares of the updates multiply; that is the smallest of them": np.min,
        "the last update is missing": lambda m: np.prod(m[:-1]),
        "the first update is missing": lambda m: np.prod(m[1:]),
        "one number is asked for: the share after the last update": np.cumprod,
        "that is the momentum of the last update": lambda m: m[-1],
        "the shares multiply; this divides": lambda m: 1 / np.prod(m),
        "that is the logarithm of the share": lambda m: np.log(m).sum(),
        "it gives 1 whatever the momenta are": lambda m: 1.0,
    })


# --- half precision ---------------------------------------------------------------------------


def scaled_gradient(yours: Callable) -> Callable:
    """`yours(gradient, scale)` -> (the gradient after its way through fp16, whether to skip)."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, generator=generator)
    broken = rows.clone()
    broken[3] = math.nan
    cases = [on(rows, 1.0), on(1e-8 * rows, 1.0), on(1e-8 * rows, 2.0**16), on(rows, 2.0**10),
             on(rows, 2.0**17), on(broken, 8.0), on(-torch.ones(2), 2.0**16),
             on(3e-9 * rows, 2.0**4), _kept(rows, 2.0**10)]

    def piece(*, divide: Callable = lambda half, s: half.float() / s,
              finite: Callable = lambda half: half.isfinite().all(), zero: bool = True,
              half: Callable = lambda g, s: (g * s).half()) -> Callable:
        def of(gradient, scale):
            small = half(gradient, scale)
            if not finite(small):
                return (torch.zeros_like(gradient) if zero else gradient), True
            return divide(small, scale), False
        return of

    return check("scaled_gradient", yours, piece(), cases, {
        "divide after the way back to float32: in fp16 the small ones are lost again":
            piece(divide=lambda half, s: (half / s).float()),
        "the gradient has to be divided by the scale again":
            piece(divide=lambda half, s: half.float()),
        "it is multiplied by the scale twice": piece(divide=lambda half, s: half.float() * s),
        "the scale comes before fp16: afterwards the small ones are lost already":
            piece(half=lambda g, s: g.half() * s),
        "the scale comes before fp16, and in float32: this rounds to fp16 first":
            piece(half=lambda g, s: (g.half().float() * s).half()),
        "nothing goes through fp16 here": piece(half=lambda g, s: g * s),
        "bf16 is another format: fp16 is `half()` or `torch.float16`":
            piece(half=lambda g, s: (g * s).bfloat16()),
        "a nan must be skipped, too: ask `isfinite`": piece(finite=lambda h: not h.isinf().any()),
        "an inf must be skipped, too: ask `isfinite`": piece(finite=lambda h: not h.isnan().any()),
        "a single value that is not finite is enough to skip":
            piece(finite=lambda h: h.isfinite().any()),
        "it never skips: where something is not finite, the update is skipped":
            piece(finite=lambda h: True),
        "it always skips": piece(finite=lambda h: False),
        "it skips exactly where it should go on: the second one is true for an overflow":
            lambda g, s: (piece()(g, s)[0], not piece()(g, s)[1]),
        "where it skips, the gradient is to be zeros": piece(zero=False),
        "where it skips, all entries are to be zeros, not only those that are not finite":
            lambda g, s: (((g * s).half().float() / s).nan_to_num(0.0, 0.0, 0.0), piece()(g, s)[1]),
        "where it skips, the gradient is to be zeros, not inf or nan":
            lambda g, s: ((g * s).half().float() / s, piece()(g, s)[1]),
        "it is divided first; the scale multiplies before fp16":
            piece(half=lambda g, s: (g / s).half(), divide=lambda half, s: half.float() * s),
        "the order is (gradient, whether to skip)": lambda g, s: piece()(g, s)[::-1],
        "whether to skip is missing: the order is (gradient, whether to skip)":
            lambda g, s: piece()(g, s)[0],
    }, tolerance=1e-6)


def _kept(gradient: Tensor, scale: float) -> Case:
    """A gradient that the caller uses again."""

    def case(piece: Callable) -> Any:
        given = gradient.clone()
        found = piece(given, scale)
        if not torch.equal(given, gradient):
            raise Mistake("it changes the `gradient` that it was given, and the caller needs that "
                          "again: `gradient * scale` is a new tensor, `gradient *= scale` is not")
        return found

    return case
