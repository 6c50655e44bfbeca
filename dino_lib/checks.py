"""Self-checks of the notebooks' exercises: each prints one line, and none of them prints the answer.

`check_NAME(your_function)` calls the function on fixed inputs, works out the right result with the library and prints
"right", "close: largest difference ...", "wrong: ..." with the mistake that it looks like, or "not done yet". An error
inside the function is not caught: its traceback says more than a check could.
"""

import math

import numpy as np
import torch


def _flat(value):
    """A number, array, tensor, or a list or tuple of those -> list of float64 tensors; TypeError on all else."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _flat(part)]
    if isinstance(value, bool | int | float | np.ndarray | np.generic | torch.Tensor):
        return [torch.as_tensor(value).detach().cpu().double()]
    raise TypeError(type(value).__name__)


def _verdict(name, yours, right, hints, *, tolerance=1e-5):
    """Print one line on `yours` against `right` (numbers, arrays, tensors, or tuples of them).

    hints: dict of a sentence about a mistake -> the value that this mistake gives. `tolerance` is relative to the
    largest entry of `right`; within a hundredth of that entry a result counts as close.
    """
    try:
        mine = None if yours is None else _flat(yours)
    except TypeError as error:
        return print(f"wrong: {name} gives a {error}, and numbers or tensors are expected")
    if mine is None or (isinstance(yours, tuple | list) and all(part is None for part in yours)):
        return print("not done yet")
    want = _flat(right)
    shapes, expected = [tuple(t.shape) for t in mine], [tuple(t.shape) for t in want]
    if shapes != expected:
        return print(f"wrong: {name} gives shapes {shapes}, and {expected} are expected")
    if not all(t.isfinite().all() for t in mine):
        return print(f"wrong: {name} gives values that are not finite")
    scale = max(t.abs().max().item() for t in want)

    def distance(other):
        return max((a - b).abs().max().item() for a, b in zip(mine, other, strict=True))

    if distance(want) <= tolerance * scale:
        return print("right")
    for hint, value in hints.items():
        wrong = _flat(value)
        if [t.shape for t in wrong] == [t.shape for t in want] and distance(wrong) <= tolerance * scale:
            return print(f"wrong: {hint}")
    if distance(want) <= 0.01 * scale:
        return print(f"close: largest difference {distance(want):.1e} (look for an epsilon or a rounding too many)")
    return print(f"wrong: {name} is off by up to {distance(want):.1e}; go through shapes, signs and axes one by one")
