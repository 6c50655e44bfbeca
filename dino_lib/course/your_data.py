"""The self-checks of notebook 08: a run on images of one's own."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dino_lib.course.check import Case, check, on
from dino_lib.run.advise import MOST_EPOCHS, epochs_in


def store_mebibytes(yours: Callable) -> Callable:
    """`yours(images, size, channels)`: what decoded images take, in MiB."""

    def right(images: int, size: int, channels: int) -> float:
        return images * channels * size**2 / 2**20

    cases = [on(4000, 48, 3), on(700, 100, 1), on(9, 1024, 3)]
    return check("store_mebibytes", yours, right, cases, {
        "a square has size * size pixels": lambda n, s, c: n * c * s / 2**20,
        "size * size, not size * 2": lambda n, s, c: n * c * s * 2 / 2**20,
        "size * size: two sides, not three": lambda n, s, c: n * c * s**3 / 2**20,
        "a mebibyte is 2**20 bytes; 10**6 are a megabyte": lambda n, s, c: n * c * s**2 / 1e6,
        "this is in bytes: divide by 2**20": lambda n, s, c: n * c * s**2,
        "this is in kibibytes: divide by 2**20": lambda n, s, c: n * c * s**2 / 2**10,
        "a number of a picture is one byte here, not a float of four":
            lambda n, s, c: 4 * n * c * s**2 / 2**20,
        "a byte has eight bits; here bytes are counted": lambda n, s, c: n * c * s**2 / 2**17,
        "a coloured picture has three numbers a pixel: where are the channels?":
            lambda n, s, c: n * s**2 / 2**20,
        "the channels multiply": lambda n, s, c: n * s**2 / c / 2**20,
        "this is one picture": lambda n, s, c: c * s**2 / 2**20,
        "this is one picture, divided by their number": lambda n, s, c: c * s**2 / n / 2**20,
        "the side is squared, not the number of images": lambda n, s, c: s * c * n**2 / 2**20,
        "the side is squared, not the channels": lambda n, s, c: n * s * c**2 / 2**20,
        "divide by 2**20, don't multiply": lambda n, s, c: n * c * s**2 * 2**20,
        "the pixels multiply": lambda n, s, c: n * c / s**2 / 2**20,
        "2**20 is two to the power of 20": lambda n, s, c: n * c * s**2 / 40,
    })


def epochs_that_fit(yours: Callable) -> Callable:
    """`yours(seconds, update, images, batch_size)`: how long a run may be, in epochs."""

    def piece(whole: Callable = int, per: Callable = lambda n, b: n // b, most: float = MOST_EPOCHS,
              end: Callable = min) -> Callable:
        return lambda t, u, n, b: end(most, whole(t / u) / per(n, b))

    cases = [on(100.0, 0.3, 130, 64), on(10.0, 0.7, 1000, 64), on(3600.0, 0.1, 60, 16),
             on(100.0, 0.125, 20, 16), on(1000.0, 0.66, 100, 48), on(60.0, 0.45, 5000, 64)]
    return check("epochs_that_fit", yours, epochs_in, cases, {
        "an update that the time cuts short is none: int(...)": piece(whole=float),
        "an update that the time cuts short is none: round down": piece(whole=math.ceil),
        "round down, not to the nearest": piece(whole=round),
        "an epoch has whole batches: images // batch_size": piece(per=lambda n, b: n / b),
        "an epoch leaves out what fills no batch: round down":
            piece(per=lambda n, b: math.ceil(n / b)),
        "whole batches and whole updates: round down both":
            piece(whole=float, per=lambda n, b: n / b),
        "it is never more than 800 epochs": piece(most=math.inf),
        "800 is the most, not the least": piece(end=max),
        "the most is 800 epochs": piece(most=801),
        "the most is 800 epochs, not twice as many": piece(most=1600),
        "these are updates: divide by those in an epoch": lambda t, u, n, b: int(t / u),
        "these are updates, cut at 800: divide by those in an epoch":
            lambda t, u, n, b: min(MOST_EPOCHS, int(t / u)),
        "800 epochs, not 800 updates, are the most":
            lambda t, u, n, b: min(MOST_EPOCHS, int(t / u)) / (n // b),
        "an epoch has images // batch_size updates, not one for each image":
            lambda t, u, n, b: min(MOST_EPOCHS, int(t / u) / n),
        "the updates are divided by those in an epoch, not multiplied":
            lambda t, u, n, b: min(MOST_EPOCHS, int(t / u) * (n // b)),
        "seconds / update are the updates": lambda t, u, n, b: min(
            MOST_EPOCHS, int(t * u) / (n // b)),
        "seconds / update, not the other way round": lambda t, u, n, b: min(
            MOST_EPOCHS, int(u / t) / (n // b)),
        "epochs may be fractions": lambda t, u, n, b: min(MOST_EPOCHS, int(t / u) // (n // b)),
        "epochs may be fractions: don't round them":
            lambda t, u, n, b: int(min(MOST_EPOCHS, int(t / u) / (n // b))),
        "this is how many epochs an update is": lambda t, u, n, b: min(
            MOST_EPOCHS, (n // b) / int(t / u)),
    })


def _momentum(updates: int, share: float) -> float:
    return max(0.9, 0.5 ** (1 / (share * updates)))


def momentum_for(yours: Callable) -> Callable:
    """`yours(updates, share)`: the momentum that halves the teacher's memory in that share."""

    def piece(formula: Callable, least: float = 0.9) -> Callable:
        return lambda n, s: max(least, formula(s * n))

    cases = [on(1500, 0.02), on(1500, 0.085), on(100, 0.02), on(20000, 0.02), on(1500, 0.3),
             on(40, 0.17)]
    return check("momentum_for", yours, _momentum, cases, {
        "half is left after the half-life, and e to the -1 here":
            piece(lambda h: math.exp(-1 / h)),
        "1 - 1 / h leaves a third after h updates": piece(lambda h: 1 - 1 / h),
        "never below 0.9": piece(lambda h: 0.5 ** (1 / h), least=0.0),
        "0.9 is the least, not the most": lambda n, s: min(0.9, 0.5 ** (1 / (s * n))),
        "the least is 0.9": piece(lambda h: 0.5 ** (1 / h), least=1.0),
        "the least is 0.9, no more": piece(lambda h: 0.5 ** (1 / h), least=0.95),
        "0.9, the floor, comes out every time, so the formula lies below it. m ** h = 0.5: take "
        "the h-th root, 0.5 ** (1 / h), with its brackets": piece(lambda h: 0.5**h),
        "this is what the student gives: the teacher keeps the rest":
            piece(lambda h: 1 - 0.5 ** (1 / h)),
        "the half-life is a share of the run: share * updates":
            lambda n, s: max(0.9, 0.5 ** (1 / n)),
        "the half-life in updates is share * updates, not the share alone":
            lambda n, s: max(0.9, 0.5 ** (1 / s)),
        "share * updates, not updates / share": lambda n, s: max(0.9, 0.5 ** (s / n)),
        "share * updates, not share / updates": lambda n, s: max(0.9, 0.5 ** (n / s)),
        "half of it is left: the base is 0.5": piece(lambda h: 0.6 ** (1 / h)),
        "the base is 0.5, not 1": piece(lambda h: 1.0),
        "a power, not a product": piece(lambda h: 0.5 / h),
        "0.5 to the power of one over the half-life": piece(lambda h: 0.5 ** (2 / h)),
        "without a floor the shortest runs get a negative momentum": lambda n, s: 1 - 1 / (s * n),
    })


def _ranks(values: object) -> np.ndarray:
    return np.argsort(np.argsort(np.asarray(values)))


def _rank_correlation(a: object, b: object) -> float:
    return float(np.corrcoef(_ranks(a), _ranks(b))[0, 1])


def rank_correlation(yours: Callable) -> Callable:
    """`yours(a, b)`: Spearman's correlation of two lists of numbers, all of them different."""

    def by(first: Callable, last: Callable | None = None, six: float = 6.0, one: float = 1.0,
           cube: Callable = lambda n: n * (n**2 - 1)) -> Callable:
        def piece(a: object, b: object) -> float:
            d = first(a) - (last or first)(b)
            return one - six * (d**2).sum() / cube(len(a))

        return piece

    random = np.random.default_rng(0)
    a = random.normal(size=12)
    cases = [on(a.tolist(), (a + random.normal(size=12)).tolist()), on([1, 2, 3, 4], [9, 7, 5, 3]),
             on(a.tolist(), np.exp(3 * a).tolist()), on([0.3, 0.1, 0.2], [5.0, 60.0, 7.0]),
             on([3, 1, 4, 2, 9], [4, 1, 2, 3, 8])]
    order = np.argsort
    return check("rank_correlation", yours, _rank_correlation, cases, {
        "this is the correlation of the numbers; take their ranks first":
            lambda a, b: np.corrcoef(a, b)[0, 1],
        "argsort once gives the order; argsort of that gives the ranks": by(order),
        "argsort once gives an order: the ranks of b are missing": by(_ranks, order),
        "argsort once gives an order: the ranks of a are missing": by(order, _ranks),
        "correlate the ranks: argsort once gives only an order":
            lambda a, b: np.corrcoef(order(a), order(b))[0, 1],
        "sorted ranks are the same for all": lambda a, b: 1.0,
        "the sorted numbers are not their ranks": by(np.sort),
        "take the ranks of both, not the numbers": by(np.asarray),
        "six times the squares, not the squares": by(_ranks, six=1.0),
        "the six of the formula": by(_ranks, six=7.0),
        "the six of the formula, not twelve": by(_ranks, six=12.0),
        "1 less the fraction": by(_ranks, one=2.0),
        "1 less the fraction: the 1 is missing": by(_ranks, one=0.0),
        "1 less the fraction, not plus": by(_ranks, six=-6.0),
        "n * (n**2 - 1) stands below": by(_ranks, cube=lambda n: n**2 - 1),
        "n**2 - 1, not n**2": by(_ranks, cube=lambda n: n**3),
        "n**2 - 1, not n**2 + 1": by(_ranks, cube=lambda n: n * (n**2 + 1)),
        "n**2 - 1, not n**2 - 2": by(_ranks, cube=lambda n: n * (n**2 - 2)),
        "n**2, not 2 n": by(_ranks, cube=lambda n: n * (2 * n - 1)),
        "n**2, not n**3": by(_ranks, cube=lambda n: n * (n**3 - 1)),
        "n**2, not n**4": by(_ranks, cube=lambda n: n * (n**4 - 1)),
        "n times the bracket, not n over it": by(_ranks, cube=lambda n: n / (n**2 - 1)),
        "the differences are squared, and then summed": lambda a, b: (
            1 - 6 * (_ranks(a) - _ranks(b)).sum() / (len(a) * (len(a) ** 2 - 1))),
        "the differences are squared, not doubled": lambda a, b: (
            1 - 6 * (2 * (_ranks(a) - _ranks(b))).sum() / (len(a) * (len(a) ** 2 - 1))),
        "the sum of the squares, not their mean": lambda a, b: (
            1 - 6 * ((_ranks(a) - _ranks(b)) ** 2).mean() / (len(a) * (len(a) ** 2 - 1))),
        "the difference of the ranks, not their sum": lambda a, b: (
            1 - 6 * ((_ranks(a) + _ranks(b)) ** 2).sum() / (len(a) * (len(a) ** 2 - 1))),
        "squares, not third powers": lambda a, b: (
            1 - 6 * ((_ranks(a) - _ranks(b)) ** 3).sum() / (len(a) * (len(a) ** 2 - 1))),
    })


def finished_head_first(backbone: nn.Module, step: int, frozen: int) -> None:
    """No gradient for the backbone in the first `frozen` updates; step counts from 0."""
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.grad = None


def _late(until: Callable) -> Callable:
    def piece(backbone: nn.Module, step: int, frozen: int) -> None:
        if until(step, frozen):
            finished_head_first(backbone, 0, 1)

    return piece


def _zero(backbone: nn.Module, step: int, frozen: int) -> None:
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.grad.zero_()


def _one_only(backbone: nn.Module, step: int, frozen: int) -> None:
    if step < frozen:
        next(backbone.parameters()).grad = None


def _for_good(backbone: nn.Module, step: int, frozen: int) -> None:
    if step < frozen:
        backbone.requires_grad_(False)


def _by_switch(backbone: nn.Module, step: int, frozen: int) -> None:
    backbone.requires_grad_(step >= frozen)


def head_first(yours: Callable) -> Callable:
    """`yours(backbone, step, frozen)`: takes the backbone's gradients in the first updates."""
    return check("head_first", yours, finished_head_first, [_run(3), _run(0), _run(1)], {
        "a gradient of 0 is one: weight decay and Adam's memory still move the weights. Set "
        "grad to None": _zero,
        "step counts from 0: step < frozen, not <=": _late(lambda s, f: s <= f),
        "it is frozen at first, not later": _late(lambda s, f: s >= f),
        "it is frozen at first, not later: step < frozen": _late(lambda s, f: s > f),
        "step and frozen are swapped": _late(lambda s, f: f < s),
        "after `frozen` updates the backbone has to learn": _late(lambda s, f: True),
        "only in one update: step < frozen": _late(lambda s, f: s == f),
        "the first update alone is frozen": _late(lambda s, f: s == 0 < f),
        "the last frozen update is missing": _late(lambda s, f: s < f - 1),
        "nothing is frozen": _late(lambda s, f: False),
        "all parameters, not the first alone": _one_only,
        "requires_grad comes after backward here: the gradient is there already, and the backbone "
        "never learns again": _for_good,
        "requires_grad comes after backward here: the gradient is there already": _by_switch,
    })


class _Backbone(nn.Module):
    """As a ViT's: a parameter of its own, and modules in modules."""

    def __init__(self):
        super().__init__()
        self.place = nn.Parameter(torch.zeros(4))
        self.blocks = nn.Sequential(nn.Linear(4, 5), nn.Sequential(nn.GELU(), nn.Linear(5, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x + self.place)


def _run(frozen: int) -> Case:
    """The weights of backbone and head after each of five updates."""

    def case(piece: Callable) -> list[Tensor]:
        generator = torch.Generator().manual_seed(frozen)
        backbone, head = _Backbone(), nn.Linear(3, 2)
        for parameter in [*backbone.parameters(), *head.parameters()]:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
        both = [*backbone.parameters(), *head.parameters()]
        optimizer = torch.optim.AdamW(both, lr=0.1, weight_decay=0.5)
        found = []
        for step in range(5):
            optimizer.zero_grad()
            head(backbone(torch.randn(8, 4, generator=generator))).square().mean().backward()
            piece(backbone, step, frozen)
            optimizer.step()
            found += [parameter.detach().clone() for parameter in both]
        return found

    return case
