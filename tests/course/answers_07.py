"""Answers to the pieces of notebook 07: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import dataclasses
import math

import numpy as np
import torch
import torch.nn.functional as F


# prototypes used
def used_by_set(q):
    return torch.tensor(len(set(q.reshape(-1, q.shape[-1]).argmax(1).tolist())))


def used_by_counts(q):
    choices = q.argmax(-1).flatten()
    return (torch.bincount(choices, minlength=q.shape[-1]) > 0).sum()


def used_list(q):
    return q.argmax(-1).unique()


def used_sum(q):
    return (q > 0.5).flatten(0, -2).any(0).sum()


def used_set_of_tensors(q):
    return len(set(q.argmax(-1)))


# vital signs
def signs_by_library(q, log_p):
    n = len(log_p)
    kl = [F.kl_div(log_p[v], q[i], reduction="batchmean") for i in (0, 1) for v in range(n)]
    kl = sum(kl) - sum(F.kl_div(log_p[i], q[i], reduction="batchmean") for i in (0, 1))
    one = torch.distributions.Categorical(q).entropy().mean()
    mean = torch.distributions.Categorical(q.flatten(0, 1).mean(0)).entropy()
    return [one.item(), mean.item(), (kl / (2 * n - 2)).item()]


def signs_by_einsum(q, log_p):
    cross = -torch.einsum("ibk,vbk->iv", q, log_p) / q.shape[1]
    cross[0, 0] = cross[1, 1] = 0
    of_one = torch.special.entr(q).sum(-1).mean()
    mean = torch.special.entr(q.flatten(0, 1).mean(0)).sum()
    return torch.stack([of_one, mean, cross.sum() / (2 * len(log_p) - 2) - of_one])


def signs_nan(q, log_p):
    of_one = -(q * q.log()).sum(-1).mean()
    return of_one, torch.special.entr(q.mean((0, 1))).sum(), signs_by_einsum(q, log_p)[2]


def used_near_the_largest(q):
    return (q >= 0.5 * q.amax(-1, keepdim=True)).flatten(0, -2).any(0).sum()


def signs_reversed_kl_div(q, log_p):
    pairs = [(i, v) for i in range(2) for v in range(len(log_p)) if v != i]
    terms = [F.kl_div(q[i].log(), log_p[v].exp(), reduction="batchmean") for i, v in pairs]
    return *signs_by_library(q, log_p)[:2], torch.stack(terms).mean()


def signs_mean_of_views(q, log_p):
    of_one, _, kl = signs_by_library(q, log_p)
    return of_one, torch.special.entr(q.mean(0)).sum(-1).mean(), kl


def signs_small_views(q, log_p):
    of_one, of_mean, _ = signs_by_library(q, log_p)
    terms = [-(of * p).sum(-1).mean() for of in q for p in log_p[2:]]
    return of_one, of_mean, torch.stack(terms).mean() - of_one


def signs_reversed(q, log_p):
    p = log_p.exp()
    pairs = [(i, v) for i in range(2) for v in range(len(log_p)) if v != i]
    kl = [(p[v] * (log_p[v] - (q[i] + 1e-9).log())).sum(-1).mean() for i, v in pairs]
    return *signs_by_einsum(q, log_p)[:2], torch.stack(kl).mean()


def signs_two(q, log_p):
    return signs_by_einsum(q, log_p)[:2]


def signs_mean_over_k(q, log_p):
    return torch.special.entr(q).mean(), *signs_by_einsum(q, log_p)[1:]


def signs_kl_div_mean(q, log_p):
    return *signs_by_einsum(q, log_p)[:2], signs_by_einsum(q, log_p)[2] / q.shape[-1]


def signs_of_student(q, log_p):
    p = log_p.exp()
    of_mean = torch.special.entr(p.mean((0, 1))).sum()
    return torch.special.entr(p).sum(-1).mean(), of_mean, signs_by_einsum(q, log_p)[2]


# diagnosis
def diagnose_nested(of_one, of_mean, n_prototypes):
    one, mean = (x / np.log(n_prototypes) for x in (of_one, of_mean))
    if mean - one <= 0.1:
        kind = "one prototype" if mean < 0.2 else "one mixed answer"
        return "uniform" if one > 0.9 else kind
    return "healthy"


def diagnose_tensor(of_one, of_mean, n_prototypes):
    most = torch.tensor(float(n_prototypes)).log().item()
    answers = [
        (of_mean - of_one > most / 10, "healthy"),
        (of_mean < most / 5, "one prototype"),
        (of_one > 9 * most / 10, "uniform"),
        (True, "one mixed answer"),
    ]
    return next(word for true, word in answers if true)


def diagnose_words(of_one, of_mean, n_prototypes):
    return diagnose_nested(of_one, of_mean, n_prototypes).replace("uniform", "undecided")


def diagnose_second_of_one(of_one, of_mean, n_prototypes):
    one, mean = of_one / math.log(n_prototypes), of_mean / math.log(n_prototypes)
    if mean - one > 0.1:
        return "healthy"
    return "one prototype" if one < 0.2 else "uniform" if one > 0.9 else "one mixed answer"


def diagnose_third_of_mean(of_one, of_mean, n_prototypes):
    one, mean = of_one / math.log(n_prototypes), of_mean / math.log(n_prototypes)
    if mean - one > 0.1:
        return "healthy"
    return "one prototype" if mean < 0.2 else "uniform" if mean > 0.9 else "one mixed answer"


def diagnose_silent(of_one, of_mean, n_prototypes):
    if of_mean - of_one > 0.1 * math.log(n_prototypes):
        return "healthy"


# effective rank
def rank_by_gram(features):
    values = torch.linalg.eigvalsh(features.double().T @ features.double()).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float(torch.exp(torch.special.entr(shares).sum()))


def rank_numpy(features):
    s = np.linalg.svd(features.numpy(), compute_uv=False)
    s = s[s > 1e-6 * s.max()] / s.sum()
    return np.exp(-(s * np.log(s)).sum())


def rank_nan(features):
    s = torch.linalg.svdvals(features * (features.abs() > 1e-9))
    s = (s / s.sum()).round(decimals=4)
    return torch.exp(-(s * s.log()).sum())


def rank_gram_values(features):
    s = torch.linalg.eigvalsh(features.T @ features).clamp(min=0)
    return torch.special.entr(s / s.sum()).sum().exp()


# the loss
def loss_by_einsum(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    targets = teacher.detach() if stop_gradient else teacher
    q = ((targets - center) / teacher_temp).softmax(2)
    log_p = (student / student_temp).log_softmax(2)
    cross = -torch.einsum("ibk,vbk->iv", q, log_p) / q.shape[1]
    keep = 1 - torch.eye(2, len(student))
    return (cross * keep).sum() / keep.sum()


def loss_no_grad(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    with torch.set_grad_enabled(not stop_gradient):
        q = F.softmax((teacher - center) / teacher_temp, dim=-1)
    log_p = student / student_temp - torch.logsumexp(student / student_temp, -1, keepdim=True)
    pairs = [(i, v) for i in range(2) for v in range(len(student)) if i != v]
    return sum(-(q[i] * log_p[v]).sum() for i, v in pairs) / len(pairs) / q.shape[1]


def loss_all_no_grad(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    with torch.no_grad():
        return loss_by_einsum(student, teacher, center, student_temp, teacher_temp)


def loss_item(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    return loss_by_einsum(student, teacher, center, student_temp, teacher_temp).item()


def loss_moves_center(student, teacher, center, *temps, stop_gradient=True):
    found = loss_by_einsum(student, teacher, center, *temps, stop_gradient=stop_gradient)
    center.mul_(0.9).add_(teacher.detach().mean((0, 1)), alpha=0.1)
    return found


def loss_student_detached(student, *others, stop_gradient=True):
    return loss_by_einsum(student.detach(), *others, stop_gradient=stop_gradient)


def loss_kl(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    targets = teacher.detach() if stop_gradient else teacher
    q = ((targets - center) / teacher_temp).softmax(-1)
    cross = loss_by_einsum(student, teacher, center, student_temp, teacher_temp, stop_gradient)
    return cross - torch.special.entr(q).sum(-1).mean()


def loss_callers_tensor(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    teacher.requires_grad_(not stop_gradient)
    return loss_by_einsum(student, teacher, center, student_temp, teacher_temp, stop_gradient)


# Sinkhorn
def sinkhorn_in_place(logits, temp, n_iterations=3):
    q = (logits / temp).exp()
    q /= q.sum()
    for _ in range(n_iterations):
        q /= q.sum(0)
        q /= q.sum(1)[:, None]
    return q


def sinkhorn_swav(logits, temp, n_iterations=3):
    q = np.exp(logits.numpy().T / temp)  # (K, N), as in SwAV's code
    k, n = q.shape
    for _ in range(n_iterations):
        q = q / q.sum(1, keepdims=True) / k
        q = q / q.sum(0, keepdims=True) / n
    return (q * n).T


def sinkhorn_logs(logits, temp, n_iterations=3):
    x = logits / temp
    for _ in range(n_iterations):
        x = x - torch.logsumexp(x, 0, keepdim=True)
        x = x - torch.logsumexp(x, 1, keepdim=True)
    return x.exp()


def sinkhorn_rows_only(logits, temp, n_iterations=3):
    return (logits / temp).softmax(-1)


def sinkhorn_two_loops(logits, temp, n_iterations=3):
    q = torch.exp(logits / temp)
    for _ in range(n_iterations):
        q = q / q.sum(0)
    for _ in range(n_iterations):
        q = q / q.sum(1, keepdim=True)
    return q


def sinkhorn_transposed(logits, temp, n_iterations=3):
    return sinkhorn_logs(logits, temp, n_iterations).T


# seeds
def beyond_tensor(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    return (b.mean() - a.mean()) / ((a.var() + b.var()) / 2).sqrt()


def beyond_statistics(a, b):
    import statistics as st

    return (st.mean(b) - st.mean(a)) / math.sqrt(st.mean([st.variance(a), st.variance(b)]))


def beyond_numpy_default(a, b):
    return (np.mean(b) - np.mean(a)) / np.sqrt((np.var(a) + np.var(b)) / 2)


def beyond_ratio(a, b):
    return np.mean(b) / np.mean(a)


# half-life
def half_life_by_exp(setting, updates):
    m = math.exp(math.log(0.5) / updates)
    return dataclasses.replace(setting, momentum=m, momentum_end=m)


def half_life_by_class(setting, updates):
    fields = vars(setting) | dict.fromkeys(["momentum", "momentum_end"], 2 ** (-1 / updates))
    return type(setting)(**fields)


def half_life_number(setting, updates):
    return 0.5 ** (1 / updates)


def half_life_assigns(setting, updates):
    setting.momentum = setting.momentum_end = 0.5 ** (1 / updates)
    return setting


STYLES = {
    "used_prototypes": [used_by_set, used_by_counts],
    "vital_signs": [signs_by_library, signs_by_einsum],
    "diagnose": [diagnose_nested, diagnose_tensor],
    "effective_rank": [rank_by_gram, rank_numpy],
    "lab_loss": [loss_by_einsum, loss_no_grad],
    "sinkhorn": [sinkhorn_in_place, sinkhorn_swav, sinkhorn_logs],
    "beyond_seeds": [beyond_tensor, beyond_statistics],
    "with_half_life": [half_life_by_exp, half_life_by_class],
}
WRONG = {
    "used_prototypes": {
        "the list": used_list,
        "above one half": used_sum,
        "rows": lambda q: q.shape[-2],
        "all views": lambda q: q.argmax(-1).numel(),
        "K": lambda q: q.shape[-1],
        "with some probability": lambda q: (q > 0).flatten(0, -2).any(0).sum(),
        "mean above 1 / K": lambda q: (q.flatten(0, -2).mean(0) > 1 / q.shape[-1]).sum(),
        "of the mean": lambda q: q.flatten(0, -2).mean(0).argmax(),
        "largest number": lambda q: q.argmax(-1).max() + 1,
        "values": lambda q: len(q.max(-1).values.unique()),
        "set of tensors": used_set_of_tensors,
        "first view": lambda q: len(q[0].argmax(-1).unique()),
        "mean view": lambda q: len(q.mean(0).argmax(-1).unique()),
        "above 1 / K": lambda q: (q > 1 / q.shape[-1]).flatten(0, -2).any(0).sum(),
        "a tenth": lambda q: (q >= 0.1).flatten(0, -2).any(0).sum(),
        "near the largest": used_near_the_largest,
    },
    "vital_signs": {
        "nan": signs_nan,
        "reversed": signs_reversed,
        "two": signs_two,
        "mean over K": signs_mean_over_k,
        "kl_div with mean": signs_kl_div_mean,
        "the student's": signs_of_student,
        "reversed by kl_div": signs_reversed_kl_div,
        "mean over the views alone": signs_mean_of_views,
        "small views alone": signs_small_views,
    },
    "diagnose": {
        "other words": diagnose_words,
        "silent": diagnose_silent,
        "second of one": diagnose_second_of_one,
        "third of mean": diagnose_third_of_mean,
    },
    "effective_rank": {
        "nan": rank_nan,
        "gram": rank_gram_values,
        "rank": lambda x: torch.linalg.matrix_rank(x),
        "centred": lambda x: rank_by_gram(x - x.mean(0)),
        "unit rows": lambda x: rank_by_gram(F.normalize(x, dim=1)),
        "entropy": lambda x: math.log(rank_by_gram(x)),
        "entries": lambda x: torch.special.entr(x.abs() / x.abs().sum()).sum().exp(),
    },
    "lab_loss": {
        "no gradient at all": loss_all_no_grad,
        "a number": loss_item,
        "KL": loss_kl,
        "the caller's tensor": loss_callers_tensor,
        "the center moves": loss_moves_center,
        "the student detached": loss_student_detached,
    },
    "sinkhorn": {
        "softmax": sinkhorn_rows_only,
        "transposed": sinkhorn_transposed,
        "two loops": sinkhorn_two_loops,
    },
    "beyond_seeds": {"ddof 0": beyond_numpy_default, "ratio": beyond_ratio},
    "with_half_life": {"a number": half_life_number, "assigns": half_life_assigns},
}
EQUIVALENT = {
    # (B, K): dimension 1 is the last
    "vital_signs": ["(-(q[i] * log_p[v]).sum(1).mean())"],
    "lab_loss": ["(-(q[i] * log_p[v]).sum(1).mean())"],
    # a bound itself belongs to neither side
    "diagnose": [">= 0.1 * most", "<= 0.2 * most", ">= 0.9 * most"],
    # the sums of the columns broadcast over the rows; what all columns share is lost in the rows
    "sinkhorn": ["q / q.sum(0)\n", "q / q.sum(0, keepdim=False)", "q / q.mean(0, keepdim=True)"],
}
