"""The mistakes that the checks of notebook 03 know, of the two entropies and of the exercises: a
hint -> a wrong piece.
"""

import math

import numpy as np
import torch
from torch import Tensor


def _entropy(p: Tensor) -> Tensor:
    return torch.special.entr(p).sum(dim=-1)


def _two(p: Tensor) -> tuple[Tensor, Tensor]:
    return _entropy(p).mean(), _entropy(p.mean((0, 1)))


TWO_ENTROPIES = {
    "the two are in the wrong order: first the mean of the rows' entropies":
        lambda p: _two(p)[::-1],
    "an entropy has a minus sign in front": lambda p: [-x for x in _two(p)],
    "these are bits: take the natural logarithm": lambda p: [x / math.log(2) for x in _two(p)],
    "that is of view 0 alone; both views count": lambda p: _two(p[:1]),
    "that is of view 1 alone; both views count": lambda p: _two(p[1:]),
    "the first is a mean over the rows, not a sum": lambda p: (_entropy(p).sum(), _two(p)[1]),
    "the first is one number: the mean over the rows is missing":
        lambda p: (_entropy(p.flatten(0, 1)), _two(p)[1]),
    "the first is one number: the mean over the views and the images is missing":
        lambda p: (_entropy(p), _two(p)[1]),
    "the mean row is taken over both views together, not for each view apart":
        lambda p: (_two(p)[0], _entropy(p.mean(1)).mean()),
    "the mean row is taken over the images too, not over the two views alone":
        lambda p: (_two(p)[0], _entropy(p.mean(0)).mean()),
    "the second is one number: average over both the views and the images first":
        lambda p: (_two(p)[0], _entropy(p.mean(0))),
    "the second is one number: average over the views as well":
        lambda p: (_two(p)[0], _entropy(p.mean(1))),
    "the entropy of the mean is not the mean of the entropies: average the rows first":
        lambda p: (_two(p)[0],) * 2,
    "the first is the mean of the entropies, not the entropy of the mean":
        lambda p: (_two(p)[1],) * 2,
    "the first takes the entropy of each row; here the two views are averaged before":
        lambda p: (_entropy(p.mean(0)).mean(), _two(p)[1]),
    "the views are averaged before the entropy; all rows count, of both views":
        lambda p: (_entropy(p.mean(0)).mean(),) * 2,
    "the mean row keeps its K shares: average over dim=(0, 1), not over the prototypes too":
        lambda p: (_two(p)[0], _entropy(p.mean((0, 1, 2), keepdim=True).flatten())),
    "the rows are added, not averaged: the mean row sums to one":
        lambda p: (_two(p)[0], _entropy(p.sum((0, 1)))),
    "the mean is over the rows; the prototypes are the last dimension":
        lambda p: (_two(p)[0], _entropy(p.flatten(0, 1).mean(-1))),
    "p ln p is not a number where p is 0, and counts 0 there":
        lambda p: (-(p * p.log()).sum(-1).mean(), _two(p)[1]),
}

GROUPS = {
    "the gap is the second minus the first": lambda one, mean: math.exp(one - mean),
    "that is the gap; e to its power is asked for": lambda one, mean: mean - one,
    "that is minus the gap; e to the power of mean minus one is asked for":
        lambda one, mean: one - mean,
    "that is a quotient of the entropies; their difference is the gap":
        lambda one, mean: mean / max(one, 1e-9),
    "that is their sum; the gap is a difference": lambda one, mean: math.exp(mean + one),
    "that is the prototypes which the batch uses; an image's own indecision is to come off":
        lambda one, mean: math.exp(mean),
    "that is the indecision of one image alone": lambda one, mean: math.exp(one),
    "entropies in nats ask for e, not 2": lambda one, mean: 2 ** (mean - one),
    "entropies in nats ask for e, not 10": lambda one, mean: 10 ** (mean - one),
    "no gap is one group: nothing is subtracted": lambda one, mean: math.exp(mean - one) - 1,
    "no gap is one group: nothing is added": lambda one, mean: math.exp(mean - one) + 1,
    "the exponentials are subtracted; the entropies are to be":
        lambda one, mean: math.exp(mean) - math.exp(one),
    "e to the power, not the logarithm": lambda one, mean: float(np.log(max(mean - one, 1e-9))),
    "that is the gap's product with e, not a power": lambda one, mean: math.e * (mean - one),
    "the two entropies are multiplied; their difference is the gap":
        lambda one, mean: math.exp(mean * one),
    "the gap is mean minus one, once": lambda one, mean: math.exp(2 * (mean - one)),
    "don't round: the number need not be whole": lambda one, mean: round(math.exp(mean - one)),
    "don't round, not to one decimal either": lambda one, mean: round(math.exp(mean - one), 1),
    "don't round, not to two decimals either": lambda one, mean: round(math.exp(mean - one), 2),
    "don't cut off what comes after the point": lambda one, mean: int(math.exp(mean - one) + 1e-9),
    "the power is e to the gap, not the gap squared": lambda one, mean: (mean - one) ** 2,
}

CENTER_AFTER = {
    "that is the share of the old center, which is 0 here; the rest belongs to the batches":
        lambda b, m, n: m**n * b,
    "momentum is the share that is kept, not the share of the new batch":
        lambda b, m, n: (1 - (1 - m) ** n) * b,
    "each step also shrinks what the steps before have added": lambda b, m, n: n * (1 - m) * b,
    "that is one step only": lambda b, m, n: (1 - m) * b,
    "that is one step too few": lambda b, m, n: (1 - m ** (n - 1)) * b,
    "that is one step too many": lambda b, m, n: (1 - m ** (n + 1)) * b,
    "that is where the center ends after very many steps": lambda b, m, n: b,
    "the batches add up: 1 minus the share of the start, not 1 plus":
        lambda b, m, n: (1 + m**n) * b,
    "a share that shrinks n times is a power, m ** n, not a product":
        lambda b, m, n: (1 - m * n) * b,
    "that counts from 2, not from 1, what the batches have": lambda b, m, n: (2 - m**n) * b,
    "that is the weight of the first batch alone": lambda b, m, n: (1 - m) * m ** (n - 1) * b,
    "(1 - m) ** n is what would be left if the momentum were the batch's share":
        lambda b, m, n: (1 - m) ** n * b,
    "the weights of the batches sum to 1 - m ** n: here the new batch is left out":
        lambda b, m, n: (m - m**n) * b,
    "multiplied where the mean itself is meant: the share times the batch's mean":
        lambda b, m, n: (1 - m**n) / b,
    "momentum and the number of steps are swapped": lambda b, m, n: (1 - n**m) * b,
    "the share is not shrunk at every step": lambda b, m, n: (1 - m) * b * n / 2,
    "the share of one number, not of the whole vector": lambda b, m, n: (1 - m**n) * b.mean(),
}


def _p(s: Tensor, temp: float) -> Tensor:
    return (s / temp).softmax(-1)


GRADIENT = {
    "the sign is turned round: a step against the gradient must bring p nearer to q":
        lambda s, q, t: (q - _p(s, t)) / t / len(s),
    "the inner derivative of s / student_temp is missing": lambda s, q, t: (_p(s, t) - q) / len(s),
    "the loss is a mean over the batch: divide by the number of rows":
        lambda s, q, t: (_p(s, t) - q) / t,
    "both divisions are missing, by the temperature and by the number of rows":
        lambda s, q, t: _p(s, t) - q,
    "the student's probabilities lack their temperature":
        lambda s, q, t: (_p(s, 1) - q) / t / len(s),
    "the temperature divides the logits, it does not multiply them":
        lambda s, q, t: (_p(s, 1 / t) - q) / t / len(s),
    "multiplied by the temperature where it divides": lambda s, q, t: (_p(s, t) - q) * t / len(s),
    "multiplied by the number of rows where it divides":
        lambda s, q, t: (_p(s, t) - q) / t * len(s),
    "that is through each logit alone: the softmax ties all of them together":
        lambda s, q, t: -q / t / len(s),
    "the target comes off: p - q, not p + q": lambda s, q, t: (_p(s, t) + q) / t / len(s),
    "the logits are no probabilities: put them through the softmax":
        lambda s, q, t: (s - q) / t / len(s),
    "q is a distribution already: a second softmax changes it":
        lambda s, q, t: (_p(s, t) - q.softmax(-1)) / t / len(s),
    "the softmax is over the prototypes (dim=-1), not over the images":
        lambda s, q, t: ((s / t).softmax(0) - q) / t / len(s),
    "log p and p are not the same: the gradient of a logsumexp is the softmax":
        lambda s, q, t: (_p(s, t).log() - q) / t / len(s),
    "the mean is over the rows of the batch, not over the prototypes":
        lambda s, q, t: (_p(s, t) - q) / t / s.shape[-1],
    "the mean is over the rows of the batch alone, not over all entries":
        lambda s, q, t: (_p(s, t) - q) / t / s.numel(),
    "the rows are averaged; each image has its own gradient":
        lambda s, q, t: ((_p(s, t) - q) / t).mean(0),
    "logits and targets are swapped": lambda s, q, t: (_p(q, t) - s) / t / len(s),
    "the temperature divides twice": lambda s, q, t: (_p(s, t) - q) / t / t / len(s),
    "the temperature comes off where it divides": lambda s, q, t: (_p(s, t) - q) / len(s) - t,
}
