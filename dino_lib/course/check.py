"""How a check speaks: one line, "right", "not done yet", or "wrong" with the mistake, and then it
returns the piece that the notebook goes on with: the reader's where it is right, else the finished.

A check calls the reader's piece on several cases and compares what comes out with what the finished
piece gives on the same ones. It prints no answer, raises nothing, and takes a right answer in any
style: lists, tuples, arrays or tensors, in place or not.
"""

import copy
import dis
import inspect
import math
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dino_lib.course import pieces

Case = Callable[[Any], Any]
NUMBERS = bool | int | float | np.ndarray | np.generic | Tensor


class Mistake(Exception):
    """What a case raises where it sees a mistake itself; its text is the hint."""


def on(*inputs: Any, **named: Any) -> Case:
    """The case that calls a piece on these inputs, copied each time: an answer in place ruins
    nothing. The random state is the same each time, too.
    """

    def case(piece: Callable) -> Any:
        with torch.random.fork_rng(devices=[]):
            # torch.manual_seed also keeps a traceback for each kind of card: 200 times as long
            torch.default_generator.manual_seed(0)
            arguments, options = copy.deepcopy((inputs, named))
            return piece(*arguments, **options)

    return case


def unless(yours: Any, holds: Callable[[Any], Any]) -> Any:
    """The mistake that `yours` makes if `holds(yours)` is not true. Its hint names what should hold
    of any right piece, such as a symmetry.
    """

    def piece(*inputs: Any, **named: Any) -> Any:
        if holds(yours):
            raise ValueError("not this mistake")
        return yours(*inputs, **named)

    return piece


def check(name: str, yours: Any, finished: Any, cases: Sequence[Case],
          mistakes: Mapping[str, Any], *, tolerance: float = 1e-5,
          rule: Callable[[Any], str | None] | None = None, used: bool = True,
          parts: Sequence[str] = (), counted: str = "") -> Any:
    """Print one line about `yours`, and return it if it is right, else `finished`.

    name: what the notebook calls the piece. cases: each calls a piece and returns what is compared:
    numbers, arrays, tensors, or tuples of them. mistakes: a sentence -> a wrong piece; the sentence
    is the hint where `yours` gives what that piece gives on all cases. tolerance is relative to the
    largest entry that is right. rule: a sentence about what `yours` does although the exercise
    forbids it (a loop, say), or None. used: the notebook goes on with the piece. parts: the names
    of the numbers that a piece gives, where it gives several: a hint can say which are right.
    counted: for classes or a mask, what a wrong entry is ("queries get another class"): such
    entries are counted, for how far off they are says nothing.
    """
    found = judge(yours, finished, cases, mistakes, tolerance=tolerance, rule=rule, parts=parts,
                  counted=counted)
    if found == "right":
        print("right" + (f": from here on {name} is yours" if used else ""))
        pieces.keep(name, yours)
        pieces.note_done(name)
        return yours
    print(found + (f" (until yours is right, the finished {name} is used)" if used else ""))
    return finished


def judge(yours: Any, finished: Any, cases: Sequence[Case], mistakes: Mapping[str, Any],
          *, tolerance: float = 1e-5, rule: Callable[[Any], str | None] | None = None,
          parts: Sequence[str] = (), counted: str = "") -> str:
    """ "right", "not done yet", or "wrong: ..."; the arguments are `check`'s."""
    if _empty(yours):
        return "not done yet"
    try:
        results, wants = [], [case(finished) for case in cases]
    except Mistake as mistake:
        return f"wrong: the library has changed, and its own piece fails here: {mistake}"
    for case in cases:
        try:
            results.append(case(yours))
        except Mistake as mistake:
            return f"wrong: {mistake}"
        except Exception as error:
            return f"wrong: {_where(error)}"
    if all(_missing(result) for result in results):
        return "wrong: it gives nothing: is a `return` missing?"
    try:
        mine = [_flat(result) for result in results]
    except TypeError as error:
        return f"wrong: it gives {error}, and {_words(_flat(wants[0]))} expected"
    right = [_flat(want) for want in wants]
    mine = [_as(m, r) for m, r in zip(mine, right, strict=True)]
    if _equal(mine, right, tolerance):
        broken = rule(yours) if rule else None
        return f"wrong: {broken}" if broken else "right"
    for hint, piece in mistakes.items():
        if _makes(piece, cases, mine, tolerance):
            return f"wrong: {hint}"
    said = _which(mine, right, tolerance, parts) or _in_general(mine, right, tolerance, counted)
    return f"wrong: {said}"


def _makes(piece: Any, cases: Sequence[Case], mine: list[list[Tensor]], tolerance: float) -> bool:
    """Whether a wrong piece gives `mine` on all cases (nothing where it fails). It stops at the
    first case that differs.
    """
    for case, want in zip(cases, mine, strict=True):
        try:
            found = _flat(case(piece))
        except Exception:
            found = []
        if not _equal([want], [found], tolerance):
            return False
    return True


def _empty(piece: Any) -> bool:
    """Whether it is a stub: a function with no statement but `...`, or a class with such a one."""
    if isinstance(piece, type):
        return any(_empty(method) for method in vars(piece).values() if inspect.isfunction(method))
    if not inspect.isfunction(piece):
        return piece is None
    return _code(piece) == STUB


def _code(function: Callable) -> list[tuple[str, Any]]:
    return [(i.opname, i.argval) for i in dis.get_instructions(function)]


def _stub() -> None: ...


STUB = _code(_stub)


def _missing(value: Any) -> bool:
    return value is None or (isinstance(value, tuple | list) and all(_missing(v) for v in value))


def _flat(value: Any) -> list[Tensor]:
    """Numbers, arrays, tensors, slices, and lists or dicts of them -> float64 tensors."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, slice):
        value = (value.start or 0, value.stop)
    if isinstance(value, range):
        value = list(value)
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _flat(part)]
    if not isinstance(value, NUMBERS):
        raise TypeError("None in one case" if value is None else f"a {type(value).__name__}")
    if isinstance(value, np.ndarray):
        value = value.copy()  # torch takes no negative strides
    try:
        tensor = torch.as_tensor(value).detach()
        return [(tensor.to_dense() if tensor.layout != torch.strided else tensor).cpu().double()]
    except (RuntimeError, ValueError, TypeError) as error:  # 10**400, an array of words, no data
        raise TypeError(f"a {type(value).__name__} that is no number ({error})") from error


def _as(mine: list[Tensor], right: list[Tensor]) -> list[Tensor]:
    """The same numbers in the form of `right` where only the form differs: a list for an array, one
    tensor for several values, (1,) for a number.
    """
    if [m.shape for m in mine] == [r.shape for r in right]:
        return mine
    if len(right) == 1 and len(mine) > 1 and len({m.shape for m in mine}) == 1:
        mine = [torch.stack(mine)]
        if mine[0].ndim == 1 and mine[0].numel() == right[0].numel():  # lists of lists
            mine = [mine[0].reshape(right[0].shape)]
    elif len(mine) == 1 and len(right) > 1 and mine[0].ndim and len(mine[0]) == len(right):
        mine = list(mine[0])
    if len(mine) == len(right):
        pairs = list(zip(mine, right, strict=True))
        if all(m.squeeze().shape == r.squeeze().shape for m, r in pairs):
            return [m.reshape(r.shape) for m, r in pairs]
    return mine


def _equal(mine: list[list[Tensor]], right: list[list[Tensor]], tolerance: float) -> bool:
    """Whether all cases agree; each tensor within the tolerance of its case's largest entry."""
    for a, b in zip(mine, right, strict=True):
        if [t.shape for t in a] != [t.shape for t in b]:
            return False
        x, y = (torch.cat([t.flatten() for t in case] or [torch.zeros(0)]) for case in (a, b))
        finite = y[y.isfinite()]
        largest = finite.abs().max().item() if finite.numel() else 0.0
        if not torch.allclose(x, y, rtol=0, atol=tolerance * largest, equal_nan=True):
            return False
    return True


def _which(mine: list[list[Tensor]], right: list[list[Tensor]], tolerance: float,
           parts: Sequence[str]) -> str:
    """Which of several named numbers are right, if some are."""
    if not parts or any(len(case) != len(parts) for case in mine):
        return ""
    good = [name for i, name in enumerate(parts)
            if _equal([[case[i]] for case in mine], [[case[i]] for case in right], tolerance)]
    bad = [name for name in parts if name not in good]
    return f"{' and '.join(good)}: right; {' and '.join(bad)}: not" if good else ""


def _in_general(mine: list[list[Tensor]], right: list[list[Tensor]], tolerance: float,
                counted: str) -> str:
    """What the numbers alone say of a mistake that nobody has foreseen."""
    for number, (m, r) in enumerate(zip(mine, right, strict=True), 1):
        if [t.shape for t in m] != [t.shape for t in r]:
            what = _words(m).rpartition(" ")[0]
            return f"it gives {what}, and {_words(r)} expected{_in_case(number, mine)}"
        if not all(t.isfinite().all() for t in m) and all(t.isfinite().all() for t in r):
            return (f"it gives values that are not finite{_in_case(number, mine)}: a logarithm of "
                    "0, a division by 0, an overflow?")
    for hint, change in GENERAL.items():
        if _equal([[change(t) for t in case] for case in mine], right, tolerance):
            return hint
    if counted:
        wrong = [n for n, (m, r) in enumerate(zip(mine, right, strict=True))
                 if not _equal([m], [r], tolerance)]
        m, r = mine[wrong[0]][0], right[wrong[0]][0]
        return (f"{(m != r).sum()} of {r.numel()} {counted} in case {wrong[0] + 1}; "
                f"{len(mine) - len(wrong)} of {len(mine)} cases are right")
    factor = _factor(mine, right, tolerance)
    if factor is not None:
        return f"it is {factor:.4g} times what is right, in every entry: a mean, a sum, a division?"
    wrong = [n for n, (m, r) in enumerate(zip(mine, right, strict=True), 1)
             if not _equal([m], [r], tolerance)]
    of_case = mine[wrong[0] - 1], right[wrong[0] - 1]
    off = max((a - b).abs().max().item() for a, b in zip(*of_case, strict=True))
    if 2 * len(wrong) <= len(mine):
        return (f"{len(mine) - len(wrong)} of {len(mine)} cases are right; in the others it is off "
                f"by up to {off:.1e}: what is special about an edge, a zero, another size?")
    most = "every case" if len(wrong) == len(mine) else f"{len(wrong)} of {len(mine)} cases"
    return f"it is off by up to {off:.1e} in {most}; follow one small input by hand"


# what a single look at the numbers can tell: applied to the reader's, it gives the right ones
GENERAL = {
    "the sign is the other way round": lambda t: -t,
    "rows and columns are swapped": lambda t: t.transpose(-1, -2) if t.ndim > 1 else t,
    "the order is turned round": lambda t: t.flip(0) if t.ndim else t,
    "it is one minus what is right": lambda t: 1 - t,
    "it is the reciprocal of what is right": lambda t: 1 / t,
    "it is the square of what is right": lambda t: t.clamp(min=0).sqrt(),
    "it is the root of what is right": lambda t: t**2,
    "it is the logarithm of what is right": lambda t: t.exp(),
    "it is short of the logarithm": lambda t: t.log(),
    "the second half and the first half are swapped": lambda t: (
        t.roll(t.shape[-1] // 2, -1) if t.ndim else t
    ),
}


def _factor(mine: list[list[Tensor]], right: list[list[Tensor]], tolerance: float) -> float | None:
    """The number by which all that is right was multiplied, if there is one."""
    a = torch.cat([t.flatten() for case in mine for t in case])
    b = torch.cat([t.flatten() for case in right for t in case])
    if not b.abs().max() > 0:
        return None
    factor = (a[b.abs().argmax()] / b[b.abs().argmax()]).item()
    if not math.isfinite(factor) or not a.isfinite().all():
        return None
    # in each case by itself, or a large number would hide what the others say
    same = _equal(mine, [[factor * t for t in case] for case in right], tolerance)
    return factor if same and abs(factor - 1) > 0.01 and a.abs().max() > 0 else None


def _in_case(number: int, mine: list) -> str:
    return f" (in case {number} of {len(mine)})" if number > 1 else ""


def _words(tensors: list[Tensor]) -> str:
    """The form of a result: "a number is", "3 numbers are", "shape (2, 4) is"."""
    if len(tensors) == 1:
        shape = tuple(tensors[0].shape)
        return f"shape {shape} is" if shape else "one number is"
    if all(t.ndim == 0 for t in tensors):
        return f"{len(tensors)} numbers are"
    return f"shapes {[tuple(t.shape) for t in tensors]} are"


def _where(error: Exception) -> str:
    """An error in the reader's piece: its kind, its words, and the reader's line."""
    last = error.__traceback__
    lines = [f for f in traceback.extract_tb(last) if "dino_lib" not in f.filename
             and "site-packages" not in f.filename]
    line = f", in the line `{lines[-1].line}`" if lines and lines[-1].line else ""
    words = str(error).splitlines()[0] if str(error) else "no words"
    return f"it stops with {type(error).__name__}: {words}{line}"
