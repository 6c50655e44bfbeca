"""More self-checks of notebook 07: the vital signs of a run."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from dino_lib.course import collapse_runs as lab
from dino_lib.course.cases import or_say
from dino_lib.course.check import Case, check, on


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def used_prototypes(yours: Callable) -> Callable:
    """`yours(q)`: how many prototypes are some row's first choice; q (..., K)."""
    few = (_random(2, 30, 9) + torch.tensor([9.0, 9, 9, 0, 0, 0, 0, 0, 0])).softmax(-1)
    same = torch.eye(5)[[3, 3, 3, 3]]
    second = torch.tensor([[0.5, 0.4, 0.1], [0.1, 0.4, 0.5]])  # large twice, and never the largest
    cases = [on(few), on(same), on(_random(7, 4, seed=1).softmax(-1)), on(torch.eye(6)), on(second)]
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
        "a set of tensors counts the tensors, equal or not: take unique(), or tolist() first": len,
        "this looks at one view, or at the mean of all: each row has a choice of its own":
            lambda q: len(q[0].argmax(-1).unique()),
        "a prototype counts where it is the largest of its row, not where it is large":
            lambda q: (q > 1 / q.shape[-1]).flatten(0, -2).any(0).sum(),
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
    two = or_say("it stops where log_p has two views, which predict each other: no small one is "
                 "needed, and the number of views is log_p's", case(2, 3, 4))
    cases = [case(4, 5, 7), two, case(3, 6, 3), sure]

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
        "the entropy of one: sum over the prototypes, then the mean over the rest":
            lambda q, p: _instead(q, p, torch.special.entr(q).mean()),
        "the entropy of one: sum over the prototypes first, then the mean over the rest":
            but(0, lambda q, *_: torch.special.entr(q).mean()),
        "both entropies: sum over the prototypes; only views and pictures are averaged":
            lambda q, p: (torch.special.entr(q).mean(), torch.special.entr(q.mean((0, 1))).mean(),
                          _signs(q, p)[2]),
        'the KL sums over the prototypes: for F.kl_div that is reduction="batchmean", not "mean"':
            but(2, lambda q, p, one, mean, kl: kl / q.shape[-1]),
        "the entropies are the teacher's, of q; these are the student's":
            lambda q, p: (*_entropies(p.exp()), _signs(q, p)[2]),
        "the entropies are the teacher's, of q; these are the student's, and the KL has one too":
            lambda q, p: (*_entropies(p.exp()),
                          sum(_signs(q, p)[::2]) - _entropies(p.exp())[0]),
        "the entropy of one is the teacher's, of q; this is the student's":
            but(0, lambda q, p, *_: _entropies(p.exp())[0]),
        "the entropy of one is the teacher's, of q; this is the student's, and the KL has it too":
            lambda q, p: _instead(q, p, _entropies(p.exp())[0]),
        "the entropy of the mean is the teacher's, of q; this is the student's":
            but(1, lambda q, p, *_: _entropies(p.exp())[1]),
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
        "this is the divergence the other way round, and infinite where q is 0: the teacher's q "
        "stands before the logarithm": but(2, lambda q, p, *_: torch.stack([
            (p[v].exp() * (p[v] - q[i].log())).sum(-1).mean()
            for i in range(2) for v in range(len(p)) if v != i]).mean()),
        "the signs: an entropy is minus the sum of q log q": lambda q, p: (
            -_signs(q, p)[0], -_signs(q, p)[1], _signs(q, p)[2]),
        "the mean row is that of both teacher views together":
            but(1, lambda q, *_: torch.special.entr(q.mean(1)).sum(-1).mean()),
        "the mean target averages over the pictures too, not over the two views alone":
            but(1, lambda q, *_: torch.special.entr(q.mean(0)).sum(-1).mean()),
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


def _entropies(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The entropy of one row of (V, B, K), and that of the mean row."""
    entr = torch.special.entr
    return entr(rows).sum(-1).mean(), entr(rows.mean((0, 1))).sum()


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
