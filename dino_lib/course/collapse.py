"""The self-checks of notebook 07: the collapse lab."""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course import collapse_runs as lab
from dino_lib.course.check import Case, check, on
from dino_lib.course.collapse_targets import beyond_seeds, lab_loss, sinkhorn, with_half_life
from dino_lib.run.history import feature_rank

__all__ = ["beyond_seeds", "diagnose", "effective_rank", "lab_loss", "sinkhorn",
           "used_prototypes", "vital_signs", "with_half_life"]
KINDS = ("healthy", "one prototype", "uniform", "one mixed answer")


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def used_prototypes(yours: Callable) -> Callable:
    """`yours(q)`: how many prototypes are some row's first choice; q (..., K)."""
    few = (_random(2, 30, 9) + torch.tensor([9.0, 9, 9, 0, 0, 0, 0, 0, 0])).softmax(-1)
    same = torch.eye(5)[[3, 3, 3, 3]]
    cases = [on(few), on(same), on(_random(7, 4, seed=1).softmax(-1)), on(torch.eye(6))]
    return check("used_prototypes", yours, lab.used_prototypes, cases, {
        "it counts the views, not the different prototypes that they choose":
            lambda q: q[..., 0].numel(),
        "every prototype has some probability; count those that are a first choice":
            lambda q: (q > 0).flatten(0, -2).any(0).sum(),
        "the first choice is the largest entry of a row, along the last dimension":
            lambda q: len(q.argmax(0).unique()),
        "the first choice is the largest entry, not the smallest":
            lambda q: len(q.argmin(-1).unique()),
        "these are the prototypes, and their number is asked": lambda q: q.argmax(-1).unique(),
        "without a dimension argmax looks at all rows as one": lambda q: len(q.argmax().unique()),
        "the largest number of a prototype is not how many there are":
            lambda q: q.argmax(-1).max() + 1,
        "these are the largest probabilities; argmax says whose they are":
            lambda q: len(q.amax(-1).unique()),
        "this is K; not every prototype is a first choice": lambda q: q.shape[-1],
        "this is the number of rows": lambda q: q.shape[-2],
        "argmax goes along the prototypes, the last dimension":
            lambda q: len(q.argmax(-2).unique()),
        "the first choices along dimension 1 are right only for some shapes":
            lambda q: len(q.argmax(1).unique()),
        "each view has a choice of its own; this is the choice of the mean":
            lambda q: q.flatten(0, -2).mean(0).argmax(),
        "the first choice need not have more than one half":
            lambda q: (q > 0.5).flatten(0, -2).any(0).sum(),
        "a prototype may be a first choice and rare in the mean":
            lambda q: (q.flatten(0, -2).mean(0) > 1 / q.shape[-1]).sum(),
    })


def vital_signs(yours: Callable) -> Callable:
    """`yours(q, log_p)`: entropy of one, entropy of the mean, KL; q (2, B, K), log_p (V, B, K)."""

    def case(views: int, batch: int, k: int) -> Case:
        q = (3 * _random(2, batch, k)).softmax(-1)
        return on(q, _random(views, batch, k, seed=1).log_softmax(-1))

    sure = on(torch.eye(4)[torch.tensor([[0, 1, 1], [0, 2, 1]])], _random(3, 3, 4).log_softmax(-1))
    cases = [case(4, 5, 7), case(2, 3, 4), case(3, 6, 3), sure]

    def but(number: int, change: Callable) -> Callable:
        """Right but for one of the three numbers."""

        def piece(q: Tensor, p: Tensor) -> list:
            found = list(_signs(q, p))
            found[number] = change(q, p, *found)
            return found

        return piece

    def pairs(term: Callable) -> Callable:
        """Right but for the loss, a mean of other terms."""
        return but(2, lambda q, p, one, *_: torch.stack([
            term(q[i], p[v]) for i in range(2) for v in range(len(p)) if v != i]).mean() - one)

    return check("vital_signs", yours, lab.vital_signs, cases, {
        "this is the loss; the divergence is what it has above the entropy of one view":
            lambda q, p: _signs(q, p, take=0.0),
        "the divergence is the loss less the entropy, not the other way round":
            lambda q, p: _signs(q, p, sign=-1),
        "the divergence is the loss less the entropy, not their sum":
            lambda q, p: _signs(q, p, take=-1.0),
        "the entropy to be taken from the loss is that of one view, not that of the mean":
            lambda q, p: _signs(q, p, of_the_mean=True),
        "a view is not compared with itself: v differs from i":
            lambda q, p: _signs(q, p, pairs="all"),
        "only the pairs of a view with itself are left: it should be all others":
            lambda q, p: _signs(q, p, pairs="own"),
        "every student view counts, the small ones too": lambda q, p: _signs(q, p, pairs="large"),
        "both teacher views count": lambda q, p: _signs(q, p, pairs="first"),
        "the divergence is a mean over the pairs, not a sum": lambda q, p: _signs(q, p, total=True),
        "the divergence is a mean over the batch, not a sum":
            lambda q, p: _signs(q, p, batch=True),
        "entropies add up over the prototypes: sum over the last dimension":
            lambda q, p: _signs(q, p, over=torch.mean),
        "the first number is a mean over views and batch, not a sum":
            but(0, lambda q, *_: torch.special.entr(q).sum()),
        "the first number is a mean over views and batch; this is a sum, and the loss lacks it too":
            lambda q, p: _instead(q, p, torch.special.entr(q).sum()),
        "the entropy of one sums over the prototypes, it does not average":
            lambda q, p: _instead(q, p, torch.special.entr(q).mean()),
        "the entropy of one sums over the prototypes, the last dimension":
            lambda q, p: _instead(q, p, torch.special.entr(q).sum(1).mean()),
        "the entropy of the mean sums over the prototypes, it does not average":
            but(1, lambda q, *_: torch.special.entr(q.mean((0, 1))).mean()),
        "the mean target averages over views and pictures, dimensions 0 and 1":
            but(1, lambda q, *_: torch.special.entr(q.mean((1, 2))).sum()),
        "the mean target averages over views and pictures; the prototypes stay":
            but(1, lambda q, *_: torch.special.entr(q.mean((0, 2))).sum()),
        "a cross-entropy sums over the prototypes, it does not average":
            pairs(lambda q, p: -(q * p).mean(-1).mean()),
        "a cross-entropy sums over the prototypes, the last dimension":
            pairs(lambda q, p: -(q * p).sum(0).mean()),
        "a cross-entropy multiplies q and log p": pairs(lambda q, p: -(q / p).sum(-1).mean()),
        "a cross-entropy has a minus: log p is negative":
            pairs(lambda q, p: (q * p).sum(-1).mean()),
        "this is the divergence the other way round: the teacher's q stands before the logarithm":
            but(2, lambda q, p, *_: torch.stack([
                (p[v].exp() * (p[v] - (q[i] + 1e-9).log())).sum(-1).mean()
                for i in range(2) for v in range(len(p)) if v != i]).mean()),
        "the signs: an entropy is minus the sum of q log q": lambda q, p: (
            -_signs(q, p)[0], -_signs(q, p)[1], _signs(q, p)[2]),
        "the mean row is that of both teacher views together":
            but(1, lambda q, *_: torch.special.entr(q.mean(1)).sum(-1).mean()),
        "for the second number average the rows first, then take the entropy":
            but(1, lambda q, p, one, *_: one),
        "the mean row averages; its entries sum to 1":
            but(1, lambda q, *_: torch.special.entr(q.sum((0, 1))).sum()),
        "the first two are swapped": lambda q, p: (
            _signs(q, p)[1], _signs(q, p)[0], _signs(q, p)[2]),
        "log_p holds logarithms already":
            but(2, lambda q, p, *_: _signs(q, p.log_softmax(-1).exp())[2]),
        "these are bits; nats take the natural logarithm": lambda q, p: [
            x / math.log(2) for x in _signs(q, p)],
    })


def _instead(q: Tensor, log_p: Tensor, of_one: Tensor) -> tuple[Tensor, ...]:
    """`vital_signs` with another first number, which is taken from the loss too."""
    right, of_mean, kl = _signs(q, log_p)
    return of_one, of_mean, kl + right - of_one


def _signs(q: Tensor, log_p: Tensor, *, take: float = 1.0, sign: int = 1, pairs: str = "others",
           total: bool = False, batch: bool = False, over: Callable = torch.sum,
           of_the_mean: bool = False) -> tuple[Tensor, ...]:
    """`vital_signs` with a mistake."""
    of_one = over(torch.special.entr(q), -1).mean()
    of_mean = over(torch.special.entr(q.mean((0, 1))), -1)
    terms = {}
    for i in range(2):
        for v in range(len(log_p)):
            row = -(q[i] * log_p[v]).sum(-1)
            terms[i, v] = row.sum() if batch else row.mean()
    chosen = {"others": lambda i, v: i != v, "all": lambda i, v: True, "own": lambda i, v: i == v,
              "large": lambda i, v: i != v and v < 2, "first": lambda i, v: i == 0 and v > 0}[pairs]
    loss = torch.stack([term for pair, term in terms.items() if chosen(*pair)])
    loss = loss.sum() if total else loss.mean()
    return of_one, of_mean, sign * (loss - take * (of_mean if of_the_mean else of_one))


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
              (0.89, 0.91), (0.05, 0.18), (0.85, 0.97), (0.05, 0.1), (0.895, 0.899)]
    cases = [case(a, b, k) for k in (4, 128) for a, b in shares]
    right = _diagnose
    return check("diagnose", yours, finished_diagnose, cases, {
        "ask for the gap first: a healthy teacher may use few prototypes": lambda a, b, k: (
            KINDS[1] if b < 0.2 * math.log(k) else right(a, b, k)),
        "ask for the gap first: a wide gap is healthy whatever the first entropy": lambda a, b, k: (
            KINDS[2] if a > 0.9 * math.log(k) else right(a, b, k)),
        "the largest entropy is ln K, not K": lambda a, b, k: right(a, b, k, log=float),
        "the largest entropy is ln K, in nats": lambda a, b, k: right(a, b, k, log=math.log2),
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
