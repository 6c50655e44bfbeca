"""How a check speaks: one line, "right", "close", "not done yet", or "wrong" with the mistake.

A check `check_NAME(your_function)` calls the function on fixed inputs and works out the right
result with the library. It never prints the answer. An error inside the function is not caught:
its traceback says more than a check could.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

NUMBERS = bool | int | float | np.ndarray | np.generic | Tensor


def _flat(value: Any) -> list[Tensor]:
    """Numbers, arrays, tensors and lists of them -> float64 tensors; TypeError on all else."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _flat(part)]
    if not isinstance(value, NUMBERS):
        raise TypeError(type(value).__name__)
    if isinstance(value, np.ndarray):
        value = value.copy()  # torch takes no negative strides
    return [torch.as_tensor(value).detach().cpu().double()]


def verdict(
    name: str, yours: Any, right: Any, hints: dict[str, Any], *, tolerance: float = 1e-5
) -> None:
    """Print one line on `yours` against `right` (numbers, arrays, tensors, or tuples of them).

    hints: dict of a sentence about a mistake -> the value that this mistake gives. `tolerance` is
    relative to the largest entry of `right`; within a hundredth of that entry a result is close.
    """
    try:
        mine = None if yours is None else _flat(yours)
    except TypeError as error:
        print(f"wrong: {name} gives a {error}, and numbers or tensors are expected")
        return
    missing = isinstance(yours, tuple | list) and all(part is None for part in yours)
    if mine is None or missing:
        print("not done yet")
        return
    print(_judge(name, yours, mine, _flat(right), hints, tolerance))


def _judge(
    name: str,
    yours: Any,
    mine: list[Tensor],
    want: list[Tensor],
    hints: dict[str, Any],
    tolerance: float,
) -> str:
    shapes = [tuple(t.shape) for t in mine]
    expected = [tuple(t.shape) for t in want]
    if shapes != expected and isinstance(yours, list) and len(want) == 1:
        return f"wrong: {name} gives a list; return one array of shape {expected[0]}"
    if shapes != expected:
        return f"wrong: {name} gives shapes {shapes}, and {expected} are expected"
    if not all(t.isfinite().all() for t in mine):
        return f"wrong: {name} gives values that are not finite"

    def distance(other: list[Tensor]) -> float:
        if [t.shape for t in other] != [t.shape for t in mine]:
            return float("inf")
        return max((a - b).abs().max().item() for a, b in zip(mine, other, strict=True))

    scale = max(t.abs().max().item() for t in want)
    off = distance(want)
    if off <= tolerance * scale:
        return "right"
    for hint, value in hints.items():
        if distance(_flat(value)) <= tolerance * scale:
            return f"wrong: {hint}"
    if off <= 0.01 * scale:
        return f"close: largest difference {off:.1e} (look for an epsilon or a rounding too many)"
    return f"wrong: {name} is off by up to {off:.1e}; go through shapes, signs and axes one by one"


def each(function: Callable, cases: Sequence[tuple]) -> list | None:
    """The results of the function on every case, or None where one of them is missing."""
    results = [function(*case) for case in cases]
    return None if any(result is None for result in results) else results
