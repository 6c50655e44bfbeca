"""More self-checks of notebook 07: the loss, the targets, what seeds allow to say."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course import collapse_runs as lab
from dino_lib.course.check import Case, Mistake, check, on


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lab_loss(yours: Callable) -> Callable:
    """`yours(student, teacher, center, student_temp, teacher_temp, stop_gradient)`: a scalar."""

    def case(views: int, stop: bool | None, temps: tuple[float, float] = (0.5, 0.3)) -> Case:
        def call(loss: Callable) -> list[Tensor] | None:
            student = _random(views, 3, 5).requires_grad_()
            teacher = _random(2, 3, 5, seed=1).requires_grad_()
            options = {} if stop is None else {"stop_gradient": stop}
            center = _random(5, seed=2)
            value = loss(student, teacher, center, *temps, **options)
            if not teacher.requires_grad or not student.requires_grad:
                raise Mistake("it changes the caller's tensor: take `detach()`, which gives one "
                              "without a gradient and leaves the other as it was")
            if not torch.equal(center, _random(5, seed=2)):
                raise Mistake("it moves the center: the loop does that, after the loss")
            if not torch.is_tensor(value):
                return value
            if not value.requires_grad:
                raise Mistake("`backward` doesn't work on it: the targets alone are detached, and "
                              "the student keeps its gradient")
            found = torch.autograd.grad(value, [student, teacher], allow_unused=True,
                                        materialize_grads=True)
            return [value, *found]

        return call

    cases = [case(4, True), case(4, False), case(2, True), case(3, False, (0.2, 1.0)),
             case(3, None)]
    return check("lab_loss", yours, lab.lab_loss, cases, {
        "the gradient goes into the targets always; with stop_gradient it must not":
            lambda *a, stop_gradient=True: _loss(*a, False),
        "the gradient never goes into the targets; without stop_gradient it should":
            lambda *a, stop_gradient=True: _loss(*a, True),
        "it is the other way round: stop_gradient=True keeps the gradient out":
            lambda *a, stop_gradient=True: _loss(*a, not stop_gradient),
        "no gradient is to go into the teacher; the student is detached here":
            lambda s, *a, stop_gradient=True: _loss(
                s.detach() if stop_gradient else s, *a, stop_gradient) + 0 * s.sum(),
        "the gradient goes into the student always, and into the teacher without stop_gradient":
            lambda s, *a, stop_gradient=True: _loss(s.detach(), *a, False) + 0 * s.sum(),
        "the center is subtracted, not added":
            lambda s, t, c, *a, stop_gradient=True: _loss(s, t, -c, *a, stop_gradient),
        "the center is missing":
            lambda s, t, c, *a, stop_gradient=True: _loss(s, t, 0 * c, *a, stop_gradient),
        "the center is for the teacher alone":
            lambda s, t, c, *a, stop_gradient=True: _loss(s - c, t, c, *a, stop_gradient),
        "the center is the teacher's; the student has none":
            lambda s, t, c, *a, stop_gradient=True: _loss(s - c, t, 0 * c, *a, stop_gradient),
        "subtract the center first, then divide by the temperature":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, b * c, a, b, stop_gradient),
        "the temperatures are swapped":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, b, a, stop_gradient),
        "divide by a temperature, don't multiply":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, 1 / a, 1 / b, stop_gradient),
        "divide the student by its temperature, don't multiply":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, 1 / a, b, stop_gradient),
        "divide the teacher's logits by its temperature, don't multiply":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, a, 1 / b, stop_gradient),
        "the student's temperature is missing":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, 1.0, b, stop_gradient),
        "the teacher's temperature is missing":
            lambda s, t, c, a, b, stop_gradient=True: _loss(s, t, c, a, 1.0, stop_gradient),
        "a view does not predict itself: v differs from i":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, "all"),
        "these are the pairs of a view with itself; all others count":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, "own"),
        "the small views count too": lambda *a, stop_gradient=True: (
            _loss(*a, stop_gradient, "large")),
        "both teacher views give targets": lambda *a, stop_gradient=True: (
            _loss(*a, stop_gradient, "first")),
        "this is the KL; the loss has the teacher's entropy as well":
            lambda *a, stop_gradient=True: (
                _loss(*a, stop_gradient) - _entropy(*a[1:], stop_gradient)),
        "the loss is a mean over the pairs": lambda s, *a, stop_gradient=True: (
            2 * (len(s) - 1) * _loss(s, *a, stop_gradient)),
        "the loss is a mean over the batch, not a sum":
            lambda s, *a, stop_gradient=True: s.shape[1] * _loss(s, *a, stop_gradient),
        "a cross-entropy sums over the prototypes, it does not average":
            lambda s, *a, stop_gradient=True: _loss(s, *a, stop_gradient) / s.shape[2],
        "the sign: minus the sum of q log p": lambda *a, stop_gradient=True: (
            -_loss(*a, stop_gradient)),
        "log_softmax for the student: the loss takes the logarithm of its probabilities":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, student=F.softmax),
        "softmax for the teacher: its targets are probabilities":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, teacher=F.log_softmax),
        "softmax goes along the prototypes, the last dimension":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, dims=(0, 0)),
        "stop_gradient is True unless something else is said":
            lambda *a, stop_gradient=False: _loss(*a, stop_gradient),
        "the teacher's softmax goes along the prototypes; without dim it takes the views":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, dims=(0, -1)),
        "the student's softmax goes along the prototypes; without dim it takes the views":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, dims=(-1, 0)),
        "the teacher's softmax goes along the prototypes, not along the pictures":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, dims=(1, -1)),
        "the student's softmax goes along the prototypes, not along the pictures":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, dims=(-1, 1)),
        "a cross-entropy multiplies q and log p":
            lambda *a, stop_gradient=True: _loss(*a, stop_gradient, product=torch.div),
        "student and teacher have changed places": lambda s, t, *a, stop_gradient=True: (
            _loss(t, s, *a, stop_gradient)),
        "the center is subtracted from the teacher, not the teacher from the center":
            lambda s, t, c, *a, stop_gradient=True: _loss(s, -t, -c, *a, stop_gradient),
        "center and temperature have changed places": lambda s, t, c, a, b, stop_gradient=True: (
            _loss(s, t, b, a, c, stop_gradient)),
        "center and student_temp have changed places": lambda s, t, c, a, b, stop_gradient=True: (
            _loss(s, t, a, c, b, stop_gradient)),
    })


def _loss(s: Tensor, t: Tensor, c: Tensor, student_temp: float, teacher_temp: float, stop: bool,
          pairs: str = "others", *, student: Callable = F.log_softmax,
          teacher: Callable = F.softmax, dims: tuple[int, int] = (-1, -1),
         product: Callable = torch.mul) -> Tensor:
    """`lab_loss` with a mistake."""
    q = teacher(((t.detach() if stop else t) - c) / teacher_temp, dim=dims[0])
    log_p = student(s / student_temp, dim=dims[1])
    chosen = {"others": lambda i, v: i != v, "all": lambda i, v: True, "own": lambda i, v: i == v,
              "large": lambda i, v: i != v and v < 2, "first": lambda i, v: i == 0 and v > 0}[pairs]
    kept = [(i, v) for i in range(2) for v in range(len(s)) if chosen(i, v)]
    return torch.stack([-product(q[i], log_p[v]).sum(-1).mean() for i, v in kept]).mean()


def _entropy(t: Tensor, c: Tensor, _: float, teacher_temp: float, stop: bool) -> Tensor:
    """The entropy of a target, the mean over views and batch."""
    q = F.softmax(((t.detach() if stop else t) - c) / teacher_temp, dim=-1)
    return torch.special.entr(q).sum(-1).mean()


def sinkhorn(yours: Callable) -> Callable:
    """`yours(logits, temp, n_iterations=3)`: balanced targets (N, K)."""
    x = _random(6, 4)
    cases = [on(x, 0.5, 1), on(x, 0.5, 3), on(_random(3, 5, seed=1), 1.3, 10), on(x, 2.0)]
    return check("sinkhorn", yours, lab.sinkhorn, cases, {
        "columns first, rows last: in the end each row has to sum to 1":
            lambda x, t, n=3: _balance(x, t, n, "rc"),
        "the rows are never divided by their sums": lambda x, t, n=3: _balance(x, t, n, "c"),
        "the columns are never divided by their sums: nothing spreads the prototypes":
            lambda x, t, n=3: _balance(x, t, n, "r"),
        "start from exp(logits / temp), not from a softmax":
            lambda x, t, n=3: _balance(x, t, n, start=lambda y: y.softmax(-1)),
        "the temperature divides the logits": lambda x, t, n=3: _balance(x, 1 / t, n),
        "the temperature is missing": lambda x, t, n=3: _balance(x, 1.0, n),
        "this is one round: columns and rows take turns, n_iterations times (not in two loops)":
            lambda x, t, n=3: _balance(x, t, 1),
        "n_iterations is not used: it is 3 only if nothing is said":
            lambda x, t, n=3: _balance(x, t, 3),
        "one round too few": lambda x, t, n=3: _balance(x, t, n - 1),
        "one round too many": lambda x, t, n=3: _balance(x, t, n + 1),
        "it goes round twice as often as asked": lambda x, t, n=3: _balance(x, t, 2 * n),
        "without an argument it goes round three times": lambda x, t, n=4: _balance(x, t, n),
        "without an argument it goes round three times, not six":
            lambda x, t, n=6: _balance(x, t, n),
        "the exponential is missing: probabilities are positive":
            lambda x, t, n=3: _balance(x, t, n, start=lambda y: y),
        "divide by the sum of all once, but by rows and columns in each round":
            lambda x, t, n=3: torch.exp(x / t) / torch.exp(x / t).sum(),
        "each row sums to 1 in the end; this is a share of the batch":
            lambda x, t, n=3: _balance(x, t, n) / len(x),
        "divide by the sums, not by the means": lambda x, t, n=3: _balance(x, t, n) * x.shape[1],
        "divide by the sums of the columns, don't multiply":
            lambda x, t, n=3: _balance(x, t, n, "Cr"),
        "divide by the sums of the rows, don't multiply":
            lambda x, t, n=3: _balance(x, t, n, "cR"),
        "the temperature divides the logits, not the logits the temperature":
            lambda x, t, n=3: _balance(t / x, 1.0, n),
        "this has the shape of the prototypes first; rows are views":
            lambda x, t, n=3: _balance(x, t, n).T,
        "nothing is divided: each round takes columns, then rows":
            lambda x, t, n=3: torch.exp(x / t),
        "one more softmax over the rows is one too many":
            lambda x, t, n=3: _balance(x, t, n).softmax(-1),
    })


def _balance(x: Tensor, temp: float, n: int, order: str = "cr",
             start: Callable = torch.exp) -> Tensor:
    """`sinkhorn` with a mistake: `order` says by which sums a round divides (C, R: multiplies)."""
    q = start(x / temp)
    for _ in range(n):
        for which in order:
            sums = q.sum({"c": 0, "r": 1}[which.lower()], keepdim=True)
            q = q * sums if which.isupper() else q / sums
    return q


def finished_beyond_seeds(a: Sequence[float], b: Sequence[float]) -> float:
    """(Mean of b - mean of a) in standard deviations of one run."""
    return _beyond(a, b)


def _beyond(a: Sequence[float], b: Sequence[float], ddof: tuple[int, int] = (1, 1),
            parts: float = 2) -> float:
    variances = [np.var(x, ddof=d) for x, d in zip((a, b), ddof, strict=True)]
    return float((np.mean(b) - np.mean(a)) / math.sqrt(sum(variances) / parts))


def beyond_seeds(yours: Callable) -> Callable:
    """`yours(a, b)`: the difference of two variants in standard deviations of their runs."""
    pairs = [([0.40, 0.43, 0.42], [0.31, 0.30, 0.34]), ([1.0, 2.0, 2.5], [5.0, 9.0, 5.5]),
             ([0.2, 0.1, 0.4, 0.3], [0.2, 0.25, 0.36])]

    def deviations(a: Sequence[float], b: Sequence[float]) -> tuple[float, float]:
        return float(np.std(a, ddof=1)), float(np.std(b, ddof=1))

    def difference(a: Sequence[float], b: Sequence[float]) -> float:
        return float(np.mean(b) - np.mean(a))

    return check("beyond_seeds", yours, finished_beyond_seeds, [on(*pair) for pair in pairs], {
        "b less a, not a less b": lambda a, b: -_beyond(a, b),
        "the sign tells better from worse: no absolute value": lambda a, b: abs(_beyond(a, b)),
        "with so few runs divide by n - 1 in the variance (ddof=1)":
            lambda a, b: _beyond(a, b, (0, 0)),
        "ddof=1 for the variance of a as well": lambda a, b: _beyond(a, b, (0, 1)),
        "ddof=1 for the variance of b as well": lambda a, b: _beyond(a, b, (1, 0)),
        "ddof=1: the variances divide by n - 1, not by n - 2": lambda a, b: _beyond(a, b, (2, 2)),
        "ddof=1: the variance of a divides by n - 1, not by n - 2":
            lambda a, b: _beyond(a, b, (2, 1)),
        "ddof=1: the variance of b divides by n - 1, not by n - 2":
            lambda a, b: _beyond(a, b, (1, 2)),
        "divide by the spread, don't multiply": lambda a, b: difference(a, b) ** 2 / _beyond(a, b),
        "a difference of the means, not their sum": lambda a, b: (
            _beyond(a, b) * (np.mean(b) + np.mean(a)) / difference(a, b)),
        "the mean of b, not its sum": lambda a, b: (
            _beyond(a, b) * (np.sum(b) - np.mean(a)) / difference(a, b)),
        "the mean of a, not its sum": lambda a, b: (
            _beyond(a, b) * (np.mean(b) - np.sum(a)) / difference(a, b)),
        "this is a ratio; a difference is asked, in units of the spread":
            lambda a, b: np.mean(b) / np.mean(a),
        "average the two variances: their sum is twice as much":
            lambda a, b: _beyond(a, b, parts=1),
        "divide the sum of the two variances by 2": lambda a, b: _beyond(a, b, parts=3),
        "the variances are divided by 2, not by 4": lambda a, b: _beyond(a, b, parts=4),
        "half of the sum of the variances, not twice": lambda a, b: _beyond(a, b, parts=0.5),
        "take the root: a variance is a square": lambda a, b: difference(a, b) / (
            np.var(a, ddof=1) + np.var(b, ddof=1)) * 2,
        "the root comes after the mean of the variances":
            lambda a, b: difference(a, b) / (sum(deviations(a, b)) / 2),
        "the spread of both counts, not that of a alone":
            lambda a, b: difference(a, b) / deviations(a, b)[0],
        "the spread of both counts, not that of b alone":
            lambda a, b: difference(a, b) / deviations(a, b)[1],
        "this is the spread of single runs that is asked, not that of a mean":
            lambda a, b: difference(a, b) / math.sqrt(
                np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b)),
        "this is the difference alone; divide it by the spread": difference,
        "means, not sums": lambda a, b: _beyond(a, b) * (
            (np.sum(b) - np.sum(a)) / difference(a, b)),
        "the spread is inside each variant, not that of all runs together":
            lambda a, b: difference(a, b) / float(np.std([*a, *b], ddof=1)),
    })
