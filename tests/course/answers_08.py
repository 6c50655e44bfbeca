"""Answers to the pieces of notebook 08: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import math

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr


# the head warm-up
def freezes_its_own_alone(backbone, step, frozen):
    if step < frozen:
        for parameter in backbone.parameters(recurse=False):
            parameter.grad = None


# the store
def store_by_tensor(images, size, channels):
    one = torch.zeros(channels, size, size, dtype=torch.uint8)
    return images * one.numel() * one.element_size() / 1024 / 1024


def store_by_log(images, size, channels):
    return np.array([2 ** (math.log2(images * channels) + 2 * math.log2(size) - 20)])


# the length
def epochs_plain(seconds, update, images, batch_size):
    updates = math.floor(seconds / update)
    batches = (images - images % batch_size) / batch_size
    return updates / batches if updates < 800 * batches else 800


def epochs_numpy(seconds, update, images, batch_size):
    return np.minimum(np.floor(seconds / update) / np.floor_divide(images, batch_size), 800.0)


# the teacher's memory
def momentum_by_exp(updates, share):
    return max(math.exp(-math.log(2) / (share * updates)), 0.9)


def momentum_tensor(updates, share):
    return torch.tensor(2.0).double().pow(-1 / (share * updates)).clamp(min=0.9)


# rank correlation
def correlate_scipy(a, b):
    return spearmanr(a, b)[0]


def correlate_ranks(a, b):
    return np.corrcoef(rankdata(a), rankdata(b))[0, 1]


def correlate_loops(a, b):
    first = [sum(y < x for y in a) for x in a]
    last = [sum(y < x for y in b) for x in b]
    n = len(a)
    squares = sum((i - j) ** 2 for i, j in zip(first, last, strict=True))
    return torch.tensor(1 - 6 * squares / (n**3 - n))


def correlate_numbers(a, b):
    return np.corrcoef(a, b)[0, 1]


def correlate_orders(a, b):
    return np.corrcoef(np.argsort(a), np.argsort(b))[0, 1]


def correlate_kendall(a, b):
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return np.mean([np.sign((a[i] - a[j]) * (b[i] - b[j])) for i, j in pairs])


# head first
def head_first_zero_grad(backbone, step, frozen):
    if step < frozen:
        backbone.zero_grad(set_to_none=True)


def head_first_early(backbone, step, frozen):
    if step >= frozen:
        return
    for module in backbone.modules():
        for parameter in module.parameters(recurse=False):
            parameter.grad = None


def head_first_zeros(backbone, step, frozen):
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.grad = torch.zeros_like(parameter)


def head_first_switch(backbone, step, frozen):
    for parameter in backbone.parameters():
        parameter.requires_grad_(step >= frozen)


def head_first_for_good(backbone, step, frozen):
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.requires_grad = False


def head_first_detached(backbone, step, frozen):
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.detach().grad = None


def head_first_weights_only(backbone, step, frozen):
    if step < frozen:
        backbone.weight.grad = None


def head_first_always(backbone, step, frozen):
    for parameter in backbone.parameters():
        parameter.grad = None


def head_first_last(backbone, step, frozen):
    if step >= frozen:
        head_first_always(backbone, step, frozen)


STYLES = {
    "store_mebibytes": [store_by_tensor, store_by_log],
    "epochs_that_fit": [epochs_plain, epochs_numpy],
    "momentum_for": [momentum_by_exp, momentum_tensor],
    "rank_correlation": [correlate_scipy, correlate_ranks, correlate_loops],
    "head_first": [head_first_zero_grad, head_first_early],
}
WRONG = {
    "store_mebibytes": {
        "floats": lambda n, s, c: 4 * n * c * s * s / 2**20,
        "megabytes": lambda n, s, c: n * c * s * s / 1e6,
        "bytes": lambda n, s, c: n * c * s * s,
        "a line": lambda n, s, c: n * c * s / 2**20,
        "grey": lambda n, s, c: n * s * s / 2**20,
        "one": lambda n, s, c: c * s * s / 2**20,
        "whole": lambda n, s, c: n * c * s * s // 2**20,
    },
    "epochs_that_fit": {
        "no cap": lambda t, u, n, b: int(t / u) / (n // b),
        "fractions of updates": lambda t, u, n, b: min(800, t / u / (n // b)),
        "fractions of batches": lambda t, u, n, b: min(800, int(t / u) / (n / b)),
        "fractions of both": lambda t, u, n, b: min(800, t / u / (n / b)),
        "updates": lambda t, u, n, b: int(t / u),
        "whole epochs": lambda t, u, n, b: int(min(800, int(t / u) / (n // b))),
        "rounded up": lambda t, u, n, b: min(800, math.ceil(t / u) / (n // b)),
        "a batch more": lambda t, u, n, b: min(800, int(t / u) / math.ceil(n / b)),
        "by image": lambda t, u, n, b: min(800, int(t / u) / n),
    },
    "momentum_for": {
        "e": lambda n, s: max(0.9, math.exp(-1 / (s * n))),
        "first order": lambda n, s: max(0.9, 1 - 1 / (s * n)),
        "no floor": lambda n, s: 0.5 ** (1 / (s * n)),
        "power": lambda n, s: max(0.9, 0.5 ** (s * n)),
        "all of the run": lambda n, s: max(0.9, 0.5 ** (1 / n)),
        "share alone": lambda n, s: max(0.9, 0.5 ** (1 / s)),
        "the student's": lambda n, s: 1 - max(0.9, 0.5 ** (1 / (s * n))),
        "constant": lambda n, s: 0.996,
    },
    "rank_correlation": {
        "Pearson": correlate_numbers,
        "orders": correlate_orders,
        "Kendall": correlate_kendall,
        "one": lambda a, b: 1.0,
        "covariance": lambda a, b: np.cov(rankdata(a), rankdata(b))[0, 1],
        "size": lambda a, b: abs(spearmanr(a, b)[0]),
    },
    "head_first": {
        "its own alone": freezes_its_own_alone,
        "zeros": head_first_zeros,
        "requires_grad": head_first_switch,
        "for good": head_first_for_good,
        "of a copy": head_first_detached,
        "bias forgotten": head_first_weights_only,
        "always": head_first_always,
        "the wrong end": head_first_last,
        "one too many": lambda m, s, f: head_first_zero_grad(m, s, f + 1),
        "one too few": lambda m, s, f: head_first_zero_grad(m, s, f - 1),
        "nothing": lambda m, s, f: len(list(m.parameters())),
    },
}
EQUIVALENT = {
    "store_mebibytes": ["channels * images * size ** 2"],
    "epochs_that_fit": ["min(updates / per_epoch, 800)"],
    "momentum_for": ["updates * share", "max(0.5 ** (1 / half_life), 0.9)"],
    "rank_correlation": ["np.argsort(np.argsort(b)) - np.argsort(np.argsort(a))"],
}
