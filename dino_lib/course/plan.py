"""The checks of notebook 04 that are about one value a step: schedules, and weights of the past."""

import math
from collections.abc import Callable

import numpy as np

from dino_lib import schedules
from dino_lib.course.check import check, on


def cosine_schedule(yours: Callable) -> Callable:
    """`yours(base, final, total_steps, warmup_steps, start)`: warm-up, then half a cosine."""

    def finished(base: float, final: float, total_steps: int, warmup_steps: int = 0,
                 start: float = 0.0) -> np.ndarray:
        return schedules.cosine_schedule(base, final, total_steps, warmup_steps=warmup_steps,
                                         start=start)

    cases = [on(1.0, 0.2, 12, 4, 0.1), on(0.96, 0.99, 9), on(0.04, 0.4, 10, 3), on(1.0, 0.2, 4, 4),
             on(0.3, 0.5, 7, 2, 0.6)]
    return check("cosine_schedule", yours, finished, cases, {
        hint: (lambda *a, o=options: _schedule(*a, **o)) for hint, options in SLIPS.items()
    })


SLIPS: dict[str, dict] = {
    "the cosine reaches `final` one step too early: divide by N, not by N - 1": {"last": True},
    "the warm-up stops short of `base`: both ends belong to it": {"ends": False},
    "the warm-up starts at 0, not at `start`": {"begin": 0.0},
    "there is no warm-up": {"warm": "none"},
    "the warm-up is missing: the values before the cosine stay at `base`": {"warm": "flat"},
    "the warm-up goes from `base` to `start`": {"warm": "back"},
    "the warm-up rises to `final`; it rises to `base`": {"warm": "final"},
    "the warm-up comes on top of the total: total_steps values in all": {"extra": True},
    "the cosine has N = total_steps - warmup_steps steps; it takes all of them": {"whole": True},
    "the cosine's N is total_steps - warmup_steps; this divides by total_steps": {"wide": True},
    "the cosine goes on where the warm-up ends: i starts at 0 there": {"late": True},
    "a whole period: the argument of the cosine goes to pi, not to 2 pi": {"turn": 2.0},
    "half of the arc: the argument of the cosine goes to pi": {"turn": 0.5},
    "pi is missing in the cosine": {"turn": 1 / math.pi},
    "base and final are swapped": {"swap": True},
    "`final` and `base` are swapped in the cosine part": {"swap_fall": True},
    "the factor 1/2 is missing": {"half": 1.0},
    "the factor is 1/2": {"half": 0.6},
    "the cosine part is added to `final`, not taken away": {"half": -0.5},
    "the bracket is 1 + cos: it goes from 2 to 0": {"one": 2.0},
    "a cosine, not a sine: it starts at its top": {"shift": True},
    "radians: the argument of the cosine goes to pi": {"turn": 180 / math.pi},
    "this falls in a straight line": {"line": True},
    "1 - cos rises where 1 + cos falls": {"sign": -1.0},
    "`final` is to be added to the cosine part": {"floor": 0.0},
    "(base - final) is the height of the cosine; this takes base alone": {"height": "base"},
    "1 + cos, not cos alone: the bracket goes from 2 to 0": {"one": 0.0},
    "the height of the cosine is base - final, not their sum": {"height": "sum"},
}


def _schedule(base, final, total, warmup=0, start=0.0, *, last=False, ends=True, begin=None,
              warm="up", extra=False, whole=False, late=False, turn=1.0, swap=False, half=0.5,
              line=False, sign=1.0, floor=1.0, height="", one=1.0,
              swap_fall=False, shift=False, wide=False):
    """A schedule with a slip."""
    lower = start if begin is None else begin
    if swap:
        base, final = final, base
    rises = {"up": (lower, base), "none": (base, base), "flat": (base, base), "back": (base, start),
             "final": (lower, final)}[warm]
    rise = np.linspace(*rises, 0 if warm == "none" else warmup, endpoint=ends)
    n = total if extra or warm == "none" else total - warmup
    if swap_fall:
        base, final = final, base
    i = np.arange(n) + (warmup if late or whole else 0)
    steps = total if whole or wide else n
    share = i / max(1, steps - 1 if last else steps)
    bracket = 2 * (1 - share) if line else one + sign * np.cos(np.pi * (turn * share - shift / 2))
    tall = {"": base - final, "base": base, "sum": base + final}[height]
    return np.concatenate([rise, floor * final + half * tall * bracket])


def momentum_for(yours: Callable) -> Callable:
    """`yours(total_steps, share)`: the momentum with a half-life of that share of the run."""
    def finished(total: float, share: float) -> float:
        return 0.5 ** (1 / (share * total))

    cases = [on(400, 0.1), on(400, 0.25), on(1000, 0.1), on(30, 0.5), on(100_000, 0.001),
             on(33, 0.1), on(37, 0.1)]
    return check("momentum_for", yours, finished, cases, {
        "after that time 1/e is left, not one half": lambda n, p: math.exp(-1 / (p * n)),
        "1 - 1/n is no solution: solve m^n = 1/2": lambda n, p: 1 - 1 / (p * n),
        "1 - 0.5/n is no solution: solve m^n = 1/2": lambda n, p: 1 - 0.5 / (p * n),
        "the half-life is a share of the run, not the whole run": lambda n, p: 0.5 ** (1 / n),
        "the share is missing of the run's length": lambda n, p: 0.5 ** (1 / p),
        "that is what a momentum of 1/2 leaves after the half-life": lambda n, p: 0.5 ** (p * n),
        "that is what the student adds; the momentum is what the teacher keeps":
            lambda n, p: 1 - 0.5 ** (1 / (p * n)),
        "after the half-life one half is left, whatever share of the run it is":
            lambda n, p: p ** (1 / (p * n)),
        "after the half-life one half is left: this keeps the share until the run's end":
            lambda n, p: p ** (1 / n),
        "that is the half-life, not the momentum": lambda n, p: p * n,
        "the half-life is share * total_steps, not total_steps / share":
            lambda n, p: 0.5 ** (1 / (n / p)),
        "the half-life is share * total_steps: the exponent is one over it, not total / share":
            lambda n, p: 0.5 ** (n / p),
        "the half-life is share * total_steps; here the share divides the exponent":
            lambda n, p: 0.5 ** (p / n),
        "the logarithm of the momentum is not the momentum: take exp of it":
            lambda n, p: math.log(0.5) / (p * n),
        "the sign of the exponent: the momentum is less than 1": lambda n, p: 2 ** (1 / (p * n)),
        "one half is to be left: the base is 0.5": lambda n, p: 0.6 ** (1 / (p * n)),
        "the half-life is rounded; it need not be a whole number of updates":
            lambda n, p: 0.5 ** (1 / round(p * n)),
        "the half-life is cut to a whole number; it need not be one":
            lambda n, p: 0.5 ** (1 / int(p * n)),
        "it is rounded: near 1 each digit counts": lambda n, p: round(0.5 ** (1 / (p * n)), 2),
        "the exponent is 1 / (share * total_steps)": lambda n, p: 0.5 ** (2 / (p * n)),
        "a power, not a product: m^n = 1/2": lambda n, p: 0.5 * (1 / (p * n)),
    }, tolerance=1e-7, used=False)


def temperature_schedule(yours: Callable) -> Callable:
    """`yours(start, final, total_steps, warmup_steps)`: linear to `final`, then constant."""
    cases = [on(0.04, 0.07, 10, 4), on(0.02, 0.1, 7, 2), on(0.04, 0.06, 5, 5), on(0.1, 0.04, 9, 6)]

    def joined(rise: Callable) -> Callable:
        return lambda a, b, n, w: np.concatenate([rise(a, b, w), np.full(n - w, b)])

    return check("temperature_schedule", yours, schedules.linear_warmup, cases, {
        "the warm-up takes the whole run: it ends after warmup_steps values":
            lambda a, b, n, w: np.linspace(a, b, n),
        "the warm-up starts at 0, not at `start`": joined(lambda a, b, w: np.linspace(0, b, w)),
        "the warm-up never reaches `final`: both ends belong to it":
            joined(lambda a, b, w: np.linspace(a, b, w, endpoint=False)),
        "the warm-up leaves `start` too early: both ends belong to it":
            joined(lambda a, b, w: a + (b - a) * np.arange(1, w + 1) / w),
        "the warm-up is linear, not a piece of a cosine":
            joined(lambda a, b, w: a + (b - a) * (1 - np.cos(np.linspace(0, math.pi, w))) / 2),
        "it jumps: the warm-up is linear": joined(lambda a, b, w: np.full(w, a)),
        "there is no warm-up": lambda a, b, n, w: np.full(n, b),
        "start and final are swapped": lambda a, b, n, w: schedules.linear_warmup(b, a, n, w),
        "after the warm-up it stays at `final`, not at `start`": lambda a, b, n, w:
            np.concatenate([np.linspace(a, b, w), np.full(n - w, a)]),
        "after the warm-up it must stay, not fall along a cosine": lambda a, b, n, w:
            schedules.cosine_schedule(b, a, n, warmup_steps=w, start=a),
        "the rise from start to final is the difference of the two":
            joined(lambda a, b, w: np.linspace(a, a + b, w)),
        "it rises on after the warm-up; there it stays at `final`":
            lambda a, b, n, w: a + (b - a) * np.arange(n) / (w - 1),
        "the warm-up goes from `final` to `start`": joined(lambda a, b, w: np.linspace(b, a, w)),
        "total_steps values in all: the warm-up is part of the run": lambda a, b, n, w:
            np.concatenate([np.linspace(a, b, w), np.full(n, b)]),
    }, used=False)


def ema_weights(yours: Callable) -> Callable:
    """`yours(momenta)`: the weights of the start and of each student in the teacher, (n + 1,)."""

    def finished(momenta: np.ndarray) -> np.ndarray:
        weights = [float(np.prod(momenta))]
        for j, m in enumerate(momenta):
            weights.append((1 - m) * float(np.prod(momenta[j + 1:])))
        return np.array(weights)

    def kept(m: np.ndarray) -> np.ndarray:  # kept[j]: product of m[j:]
        return np.cumprod(m[::-1])[::-1]

    cases = [on(np.array([0.5, 0.8, 0.9, 0.6])), on(np.array([0.7])), on(np.array([0.9, 0.0, 0.3])),
             on(np.array([0.96, 0.97, 0.98, 0.99, 1.0]))]
    return check("ema_weights", yours, finished, cases, {
        "the order of time is turned round: the newest student comes last":
            lambda m: finished(m)[::-1].copy(),
        "momenta are used from the last to the first": lambda m: finished(m[::-1]),
        "momentum is what the teacher keeps; the student adds the rest": lambda m: finished(1 - m),
        "the student after update j is not shrunk by update j itself":
            lambda m: np.concatenate([kept(m)[:1], (1 - m) * kept(m)]),
        "later updates shrink a student with their own momenta, not with the one of its update":
            lambda m: np.concatenate([kept(m)[:1], (1 - m) * m ** np.arange(len(m))[::-1]]),
        "a student is shrunk by the updates after it, not by those before it": lambda m:
            np.concatenate([kept(m)[:1], (1 - m) * np.cumprod(np.append(1.0, m[:-1]))]),
        "the products run from the first update on; the updates *after* a student shrink it, so "
        "they run from the last update back":
            lambda m: np.append(np.cumprod(m), 1.0) * np.append(1.0, 1 - m),
        "a student is shrunk by the updates after it; here it is by those up to its own":
            lambda m: np.append(m.prod(), (1 - m) * np.cumprod(m)),
        "the common start is shrunk by all updates, each student by those after it; here it is by "
        "those before": lambda m: np.append(1.0, np.cumprod(m)) * np.append(1.0, 1 - m),
        "the products from the last update back are in the wrong order: turn them round":
            lambda m: np.append(np.cumprod(m[::-1]), 1.0) * np.append(1.0, 1 - m),
        "the common start has a weight too, the product of all momenta":
            lambda m: np.concatenate([[0.0], finished(m)[1:]]),
        "the start's weight is the product of all momenta":
            lambda m: np.concatenate([[1.0], finished(m)[1:]]),
        "the common start comes first, n + 1 weights in all": lambda m: finished(m)[1:],
        "each student is shrunk by the updates after it":
            lambda m: np.concatenate([kept(m)[:1], 1 - m]),
        "each student adds only 1 - momentum of itself": lambda m: np.append(kept(m), 1.0),
        "each student adds 1 - momentum of itself, not momentum": lambda m:
            np.concatenate([kept(m)[:1], m * np.append(kept(m)[1:], 1.0)]),
        "the momentum changes from update to update; this takes the first one for all":
            lambda m: finished(np.full(len(m), m[0])),
        "the momentum changes from update to update; this takes the last one for all":
            lambda m: finished(np.full(len(m), m[-1])),
        "the start's weight is 1 before the first update":
            lambda m: finished(m) + np.eye(len(m) + 1)[0] * kept(m)[0],
        "each student adds 1 - momentum of itself, not 1 + momentum": lambda m:
            np.concatenate([kept(m)[:1], (1 + m) * np.append(kept(m)[1:], 1.0)]),
    }, used=False)
