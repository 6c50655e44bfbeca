"""Schedules: one value a step, computed before training starts so that they can be plotted.

Caron et al. 2021 (arXiv 2104.14294), section 3.2 "Implementation details". The official code keeps
its schedules as arrays indexed by the step; so does this one.
"""

import math
from numbers import Integral

import numpy as np


def cosine_schedule(
    base: float, final: float, total_steps: int, *, warmup_steps: int = 0, start: float = 0.0
) -> np.ndarray:
    """Linear warm-up from `start` to `base`, then half a cosine from `base` towards `final`.

    With N = total_steps - warmup_steps and i = 0 .. N-1, the cosine part is
    final + (base - final) * (1 + cos(pi i / N)) / 2, so `final` itself is not reached.

    Returns a float64 array of shape (total_steps,). Raises ValueError if the warm-up is longer than
    the run, on a fraction of a step and on values that are not finite.
    """
    if not (isinstance(total_steps, Integral) and isinstance(warmup_steps, Integral)):
        steps = f"total_steps={total_steps} and warmup_steps={warmup_steps}"
        raise ValueError(f"{steps} must be whole numbers")
    if not np.isfinite([base, final, start]).all():
        raise ValueError(f"base={base}, final={final} and start={start} must be finite")
    if not 0 <= warmup_steps <= total_steps:
        raise ValueError(
            f"warmup_steps={warmup_steps} must lie between 0 and total_steps={total_steps}"
        )
    warmup = np.linspace(start, base, warmup_steps)
    n = total_steps - warmup_steps
    cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(n) / max(n, 1)))
    return np.concatenate([warmup, cosine])


def linear_warmup(
    start: float, final: float, total_steps: int, warmup_steps: int
) -> np.ndarray:
    """Linear from `start` to `final` over `warmup_steps`, then constant: the teacher temperature.

    Returns a float64 array of shape (total_steps,); a warm-up longer than the run is cut off.
    """
    warmup = np.linspace(start, final, warmup_steps)[:total_steps]
    return np.concatenate([warmup, np.full(total_steps - len(warmup), float(final))])


def half_life(momentum: float) -> float:
    """Steps after which an old weight counts half in the teacher: log(1/2) / log(momentum).

    0.99 -> 69, 0.996 -> 173, 0.9995 -> 1386. Infinite at momentum 1.

    Raises ValueError outside 0 < m <= 1.
    """
    if not 0 < momentum <= 1:
        raise ValueError(f"momentum={momentum} must lie in (0, 1]")
    return math.inf if momentum == 1 else math.log(0.5) / math.log(momentum)
