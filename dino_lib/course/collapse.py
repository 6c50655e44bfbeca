"""The self-checks of notebook 07: the collapse lab."""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course import collapse_runs as lab
from dino_lib.course.check import Case, check, on
from dino_lib.course.collapse_signs import used_prototypes, vital_signs
from dino_lib.course.collapse_targets import beyond_seeds, lab_loss, sinkhorn
from dino_lib.run.history import feature_rank

__all__ = ["beyond_seeds", "diagnose", "effective_rank", "lab_loss", "sinkhorn",
           "used_prototypes", "vital_signs", "with_half_life"]
KINDS = ("healthy", "one prototype", "uniform", "one mixed answer")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def finished_diagnose(of_one: float, of_mean: float, n_prototypes: int) -> str:
    """The kind of a teacher, from its two entropies: one of KINDS."""
    return _diagnose(of_one, of_mean, n_prototypes)


def _diagnose(of_one: float, of_mean: float, n_prototypes: int, *, gap: float = 0.1,
              low: float = 0.2, high: float = 0.9, names: Sequence[str] = KINDS,
              log: Callable = math.log) -> str:
    most = log(n_prototypes)
    if of_mean - of_one > gap * most:
        return names[0]
    if of_mean < low * most:
        return names[1]
    if of_one > high * most:
        return names[2]
    return names[3]


def diagnose(yours: Callable) -> Callable:
    """`yours(of_one, of_mean, n_prototypes)`: one of KINDS."""

    def case(of_one: float, of_mean: float, k: int) -> Case:
        def call(piece: Callable) -> int | None:
            found = piece(of_one * math.log(k), of_mean * math.log(k), k)
            if found is None:
                return None
            if not isinstance(found, str) or found not in KINDS:
                raise ValueError(f"{found!r} is none of the four words {', '.join(KINDS)}")
            return KINDS.index(found)

        return call

    shares = [(0.3, 0.7), (0.01, 0.02), (0.98, 0.99), (0.5, 0.52), (0.4, 0.51), (0.4, 0.49),
              (0.02, 0.15), (0.12, 0.19), (0.12, 0.21), (0.16, 0.199), (0.88, 0.93), (0.92, 0.95),
              (0.89, 0.91), (0.05, 0.18), (0.85, 0.97), (0.05, 0.1), (0.895, 0.899),
              (0.22, 0.28)]
    cases = [case(a, b, k) for k in (4, 128) for a, b in shares]
    right = _diagnose
    return check("diagnose", yours, finished_diagnose, cases, {
        "ask for the gap first: a healthy teacher may use few prototypes": lambda a, b, k: (
            KINDS[1] if b < 0.2 * math.log(k) else right(a, b, k)),
        "ask for the gap first: a wide gap is healthy whatever the first entropy": lambda a, b, k: (
            KINDS[2] if a > 0.9 * math.log(k) else right(a, b, k)),
        "the largest entropy is ln K, not K": lambda a, b, k: right(a, b, k, log=float),
        "the largest entropy is ln K, in nats": lambda a, b, k: right(a, b, k, log=math.log2),
        "the second question is about the entropy of the mean, not that of one": lambda a, b, k: (
            right(a, b, k, low=0.2 * b / a)),
        "the third question is about the entropy of one, not that of the mean": lambda a, b, k: (
            right(a, b, k, high=0.9 * a / b)),
        "the second and the third question ask for each other's entropy": lambda a, b, k: (
            right(a, b, k, low=0.2 * b / a, high=0.9 * a / b)),
        "ln K is another for each K": lambda a, b, k: right(a, b, 128),
        "the bounds are shares of ln K, not nats": lambda a, b, k: right(a, b, math.e),
        "the gap is the entropy of the mean less that of one view":
            lambda a, b, k: right(b, a, k),
        "one prototype and uniform are swapped: sure of the same, and unsure of all":
            lambda a, b, k: right(a, b, k, names=(KINDS[0], KINDS[2], KINDS[1], KINDS[3])),
        "uniform and one mixed answer are swapped":
            lambda a, b, k: right(a, b, k, names=(KINDS[0], KINDS[1], KINDS[3], KINDS[2])),
        "one prototype and one mixed answer are swapped":
            lambda a, b, k: right(a, b, k, names=(KINDS[0], KINDS[3], KINDS[2], KINDS[1])),
        "a wide gap is health, a narrow one is a collapse": lambda a, b, k: (
            KINDS[0] if b - a < 0.1 * math.log(k) else right(a, b, k, gap=9.0)),
        "the third collapse is missing: narrow gap, but neither sure nor uniform": lambda a, b, k: (
            right(a, b, k, names=(KINDS[0], KINDS[1], KINDS[2], KINDS[0]))),
        "the gap says nothing here: without it a collapse looks healthy":
            lambda a, b, k: right(a, b, k, gap=-9.0),
        "a healthy teacher is never found: its gap is above a tenth of ln K":
            lambda a, b, k: right(a, b, k, gap=0.9),
        "the bound of the gap is a tenth of ln K": lambda a, b, k: right(a, b, k, gap=0.2),
        "the bound of one prototype is a fifth of ln K": lambda a, b, k: right(a, b, k, low=0.1),
        "one prototype: the entropy of the mean is below the bound, not above": lambda a, b, k: (
            KINDS[1] if right(a, b, k) != KINDS[0] and b >= 0.2 * math.log(k)
            else right(a, b, k, low=-9.0)),
        "one prototype is never found: the bound is a fifth of ln K":
            lambda a, b, k: right(a, b, k, low=-9.0),
        "the bound of one prototype is a fifth of ln K, not more":
            lambda a, b, k: right(a, b, k, low=0.3),
        "the bound of one prototype is a fifth of ln K, not two":
            lambda a, b, k: right(a, b, k, low=0.4),
        "the gap is a difference, not a sum": lambda a, b, k: (
            KINDS[0] if a + b > 0.1 * math.log(k) else right(a, b, k, gap=9.0)),
        "ln K is math.log(K); exp is its inverse": lambda a, b, k: right(a, b, k, log=math.exp),
        "a tenth of ln K is 0.1 times it; don't divide": lambda a, b, k: (
            KINDS[0] if b - a > 0.1 / math.log(k) else right(a, b, k, gap=9.0)),
        "a fifth of ln K is 0.2 times it; don't divide":
            lambda a, b, k: right(a, b, k, low=0.2 / math.log(k) ** 2),
        "nine tenths of ln K are 0.9 times it; don't divide":
            lambda a, b, k: right(a, b, k, high=0.9 / math.log(k) ** 2),
        "uniform: the entropy of one view is above nine tenths of ln K":
            lambda a, b, k: right(a, b, k, high=0.8),
        "uniform is never found: the bound is nine tenths of ln K":
            lambda a, b, k: right(a, b, k, high=1.0),
    }, tolerance=1e-6)


def effective_rank(yours: Callable) -> Callable:
    """`yours(features)`: e to the entropy of the singular values' shares; features (N, D)."""
    low = _random(30, 2) @ _random(2, 6, seed=1)
    cases = [on(_random(50, 8) * torch.arange(1.0, 9)), on(low), on(_random(4, 9)),
             on(torch.eye(5)), on(_random(20, 1) @ torch.ones(1, 7) + 0.0)]

    def rank(x: Tensor, power: float = 1.0, final: Callable = torch.exp) -> Tensor:
        s = torch.linalg.svdvals(x.double()) ** power
        return final(torch.special.entr(s / s.sum()).sum())

    return check("effective_rank", yours, feature_rank, cases, {
        "this is the entropy; e to that power is the number of directions":
            lambda x: rank(x, final=lambda h: h),
        "these are shares of the squares; the singular values themselves are asked":
            lambda x: rank(x, 2.0),
        "the features are not centred here": lambda x: rank(x - x.mean(0)),
        "the rows are not normalised here": lambda x: rank(F.normalize(x, dim=1)),
        "the values of each row are not the singular values":
            lambda x: torch.special.entr(x.abs() / x.abs().sum()).sum().exp(),
        "each value counts by its share; this counts all that are not zero":
            lambda x: torch.linalg.matrix_rank(x),
        "divide the singular values by their sum, so that the shares sum to 1": lambda x: (
            torch.special.entr(torch.linalg.svdvals(x)).sum().exp()),
        "divide by the sum of the singular values, not by the largest": lambda x: (
            torch.special.entr(
                torch.linalg.svdvals(x) / torch.linalg.svdvals(x).max()).sum().exp()),
        "divide by the sum of the singular values, don't multiply": lambda x: (
            torch.special.entr(
                torch.linalg.svdvals(x) * torch.linalg.svdvals(x).sum()).sum().exp()),
        "divide by the sum of the singular values, not by their mean": lambda x: (
            torch.special.entr(
                torch.linalg.svdvals(x) / torch.linalg.svdvals(x).mean()).sum().exp()),
        "an entropy is a sum over the shares, not a mean": lambda x: (
            rank(x, final=lambda h: torch.exp(h / min(x.shape)))),
        "an entropy in nats goes with e, one in bits with 2":
            lambda x: rank(x, final=lambda h: torch.exp(h / math.log(2))),
        "the sign of the entropy: minus the sum of share times log share":
            lambda x: rank(x, final=lambda h: torch.exp(-h)),
        "exp undoes the logarithm of the entropy": lambda x: rank(x, final=torch.log),
    }, tolerance=1e-3)


def finished_with_half_life(setting: lab.Setting, updates: float) -> lab.Setting:
    """The setting with a constant momentum of this half-life."""
    return _constant(setting, 0.5 ** (1 / updates))


def _constant(setting: lab.Setting, momentum: float) -> lab.Setting:
    return replace(setting, momentum=momentum, momentum_end=momentum)


def with_half_life(yours: Callable) -> Callable:
    """`yours(setting, updates)`: a setting whose teacher has this half-life throughout."""

    def case(setting: lab.Setting, updates: float) -> Case:
        def call(piece: Callable) -> list[float] | None:
            found = piece(setting, updates)
            if found is None:
                return None
            if not isinstance(found, lab.Setting):
                raise TypeError(f"a {type(found).__name__} is no Setting")
            values = [getattr(found, field.name) for field in fields(lab.Setting)]
            return [float(value != "center") if isinstance(value, str) else float(value)
                    for value in values]

        return call

    other = lab.Setting(teacher_temp=0.1, targets="sinkhorn", out_dim=8, momentum_end=0.5)
    cases = [case(lab.HEALTHY, 10), case(other, 1), case(other, 40)]
    return check("with_half_life", yours, finished_with_half_life, cases, {
        "the momentum rises on the way: momentum_end has to be set too":
            lambda s, h: replace(s, momentum=0.5 ** (1 / h)),
        "momentum_end alone leaves the start as it was":
            lambda s, h: replace(s, momentum_end=0.5 ** (1 / h)),
        "m to the power of the half-life is one half; this is one half to the half-life":
            lambda s, h: _constant(s, 0.5**h),
        "solve m to the power of h = one half; this solves it for two h":
            lambda s, h: _constant(s, 0.5 ** (2 / h)),
        "one half is left after the half-life, not 0.6": lambda s, h: _constant(s, 0.6 ** (1 / h)),
        "e^(-1/h) leaves 1/e, not one half": lambda s, h: _constant(s, math.exp(-1 / h)),
        "1 - 1/h is near e^(-1/h), which leaves 1/e, not one half":
            lambda s, h: _constant(s, 1 - 1 / h),
        "1 - 0.5/h is only near it": lambda s, h: _constant(s, 1 - 0.5 / h),
        "m is what the teacher keeps, not what it takes":
            lambda s, h: _constant(s, 1 - 0.5 ** (1 / h)),
        "the momentum is a number below 1, not the half-life": lambda s, h: _constant(s, float(h)),
        "all else stays as the setting has it": lambda s, h: _constant(lab.HEALTHY, 0.5 ** (1 / h)),
        "the setting comes back unchanged": lambda s, h: s,
        "this is the logarithm of the momentum": lambda s, h: _constant(s, math.log(0.5) / h),
        "one half to the power 1/h, not one half times 1/h": lambda s, h: _constant(s, 0.5 / h),
    }, used=False)
