"""Answers to the pieces of notebook 03: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F


def entropy_numpy(p):
    p = p.numpy()
    return -np.sum(np.where(p > 0, p * np.log(np.where(p > 0, p, 1)), 0), axis=-1)


def cross_entropy_einsum(q, log_p):
    return -torch.einsum("...k,...k->...", q, log_p)


def cross_entropy_numpy(q, log_p):
    return (-(q * log_p)).numpy().sum(-1)


@torch.no_grad()
def update_center_in_place(center, teacher, momentum=0.9):
    center.mul_(momentum).add_(teacher.reshape(-1, teacher.shape[-1]).mean(0), alpha=1 - momentum)
    return center


def update_center_lerp(center, teacher, momentum=0.9):
    rows = torch.cat(list(teacher.detach()))
    return torch.lerp(rows.mean(0), center, momentum)


def view_pairs_others_first(n_views):
    return tuple([i, v] for v in reversed(range(n_views)) for i in (1, 0) if i != v)


def view_pairs_array(n_views):
    found = set()
    for i in range(2):
        for v in range(n_views):
            found.add((i, v))
    return np.array(sorted(found - {(0, 0), (1, 1)}))


def dino_loss_logsumexp(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
    with torch.no_grad():
        q = F.softmax((teacher - center) / teacher_temp, dim=2)
    u, total, count = student / student_temp, 0, 0
    for v in range(student.shape[0]):
        for i in (0, 1):
            if i == v:
                continue
            total += (u[v].logsumexp(-1) - (q[i] * u[v]).sum(-1)).sum()
            count += u.shape[1]
    return total / count


def dino_loss_torch(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
    q = torch.softmax((teacher.detach() - center) / teacher_temp, -1)
    student = student / student_temp
    terms = [
        F.cross_entropy(student[v], q[i]) for i in range(2) for v in range(len(student)) if i != v
    ]
    return sum(terms) / len(terms)


def loss_with(**change):
    """A loss by hand, with a mistake: `q` or `log_p` made otherwise, or the terms put together."""

    def loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
        q = change.get("q", lambda t, c, tau: ((t - c) / tau).softmax(-1).detach())(
            teacher, center, teacher_temp
        )
        log_p = change.get("p", lambda s, tau: (s / tau).log_softmax(-1))(student, student_temp)
        n = len(student)
        pairs = change.get("pairs", [(i, v) for i in range(2) for v in range(n) if i != v])
        pairs = pairs(n) if callable(pairs) else pairs
        terms = [-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs]
        return change.get("end", lambda x: sum(x) / len(x))(terms)

    return loss


LOSSES = {
    "defaults alone": lambda s, t, c, a=0.1, b=0.04: dino_loss_torch(s, t, c),
    "a view predicts itself": loss_with(
        pairs=lambda n: [(i, v) for i in range(2) for v in range(n)]
    ),
    "locals alone": loss_with(
        pairs=lambda n: [(i, v) for i in range(2) for v in range(2, n)] or [(0, 1)]
    ),
    "globals alone": loss_with(pairs=[(0, 1), (1, 0)]),
    "a sum": loss_with(end=sum),
    "divided by all": lambda s, t, c, a=0.1, b=0.04: loss_with(end=sum)(s, t, c, a, b) / 2 / len(s),
    "center after the temperature": loss_with(
        q=lambda t, c, tau: (t / tau - c).softmax(-1).detach()
    ),
    "center added": loss_with(q=lambda t, c, tau: ((t + c) / tau).softmax(-1).detach()),
    "no center": loss_with(q=lambda t, c, tau: (t / tau).softmax(-1).detach()),
    "no sharpening": lambda s, t, c, a=0.1, b=0.04: loss_with()(s, t, c, a, a),
    "no temperature for the student": loss_with(p=lambda s, tau: s.log_softmax(-1)),
    "no detach": loss_with(q=lambda t, c, tau: ((t - c) / tau).softmax(-1)),
    "student detached": loss_with(p=lambda s, tau: (s / tau).detach().log_softmax(-1)),
    "no logarithm": loss_with(p=lambda s, tau: (s / tau).softmax(-1)),
    "no minus": loss_with(end=lambda x: -sum(x) / len(x)),
    "temperatures swapped": lambda s, t, c, a=0.1, b=0.04: loss_with()(s, t, c, b, a),
    "over the images": loss_with(q=lambda t, c, tau: ((t - c) / tau).softmax(1).detach()),
    "a float": loss_with(end=lambda x: float(sum(x) / len(x))),
    "nothing": lambda s, t, c, a=0.1, b=0.04: print(end=""),
    "log of softmax": loss_with(p=lambda s, tau: (s / tau).softmax(-1).log()),
    "shape (1,)": loss_with(end=lambda x: (sum(x) / len(x)).reshape(1)),
    "ruins the teacher": loss_with(q=lambda t, c, tau: t.detach().sub_(c).div_(tau).softmax(-1)),
}


def fast_loss_einsum(student, teacher, center, student_temp, teacher_temp):
    u, n = student / student_temp, len(student)
    q = F.softmax((teacher - center) / teacher_temp, -1).detach()
    counts = torch.full((n, 1), 2.0)
    counts[:2] = 1
    products = torch.einsum("ibk,vbk->iv", q, u)
    own = products[0, 0] + products[1, 1]
    sums = (counts * u.logsumexp(-1)).sum() - (products.sum() - own)
    return sums / (2 * (n - 1)) / u.shape[1]


def fast_loss_repeat(student, teacher, center, student_temp, teacher_temp):
    u = student / student_temp
    with torch.no_grad():
        q = torch.softmax((teacher - center) / teacher_temp, dim=-1)
    mask = torch.ones(2, len(u))
    mask[0, 0] = mask[1, 1] = 0
    rows = u.logsumexp(-1)[None] - (q[:, None] * u[None]).sum(-1)
    return (mask[..., None] * rows).sum() / mask.sum() / u.shape[1]


def fast_loss_once(student, teacher, center, student_temp, teacher_temp):
    u, n = student / student_temp, len(student)
    q = ((teacher - center) / teacher_temp).softmax(-1).detach()
    local = q.sum(0, keepdim=True).expand(n - 2, -1, -1)
    targets = torch.cat([q[1:], q[:1], local])
    return (u.logsumexp(-1) - (targets * u).sum(-1)).mean(1).sum() / (2 * (n - 1))


def fast_loss_own(student, teacher, center, student_temp, teacher_temp):
    u, n = student / student_temp, len(student)
    q = ((teacher - center) / teacher_temp).softmax(-1).detach()
    return (2 * u.logsumexp(-1) - (q.sum(0) * u).sum(-1)).mean(1).sum() / (2 * n)


def two_entropies_numpy(probs):
    rows = probs.reshape(-1, probs.shape[-1]).numpy()
    return [
        entropy_numpy(torch.from_numpy(rows)).mean(),
        entropy_numpy(torch.from_numpy(rows.mean(0))),
    ]


def two_entropies_tensor(probs):
    rows = torch.cat([probs[0], probs[1]])
    return torch.stack(
        [torch.special.entr(rows).sum(1).mean(), torch.special.entr(rows.mean(0)).sum()]
    )


def center_after_sum(batch_mean, momentum, n_steps):
    return batch_mean.numpy() * sum((1 - momentum) * momentum**j for j in range(n_steps))


def center_after_loop(batch_mean, momentum, n_steps):
    center = 0 * batch_mean
    for _ in range(n_steps):
        center = momentum * center + (1 - momentum) * batch_mean
    return center


def center_after_powers(batch_mean, momentum, n_steps):
    powers = torch.tensor(float(momentum)) ** torch.arange(n_steps)
    return (1 - momentum) * powers.sum() * batch_mean


def student_gradient_numpy(s, q, student_temp):
    u = s.numpy() / student_temp
    e = np.exp(u - u.max(1, keepdims=True))
    return (e / e.sum(1, keepdims=True) - q.numpy()) / (student_temp * u.shape[0])


STYLES = {
    "entropy": [
        entropy_numpy,
        lambda p: -(p * p.clamp(min=1e-12).log()).sum(-1),
        lambda p: -torch.xlogy(p, p).sum(p.ndim - 1),
        lambda p: torch.distributions.Categorical(probs=p).entropy(),
    ],
    "cross_entropy": [
        cross_entropy_einsum,
        lambda q, log_p: (q * -log_p).sum(-1),
    ],
    "update_center": [
        update_center_in_place,
        update_center_lerp,
        lambda center, teacher, momentum=0.9: (
            center * momentum
            + (teacher[0].mean(0) + teacher[1].mean(0)).detach() / 2 * (1 - momentum)
        ),
    ],
    "view_pairs": [
        view_pairs_others_first,
        view_pairs_array,
        lambda n: [(0, v) for v in range(1, n)] + [(1, 0)] + [(1, v) for v in range(2, n)],
        lambda n: torch.tensor([(i, v) for i in range(2) for v in range(n) if v != i]),
    ],
    "dino_loss": [dino_loss_logsumexp, dino_loss_torch],
    "two_entropies": [two_entropies_numpy, two_entropies_tensor],
    "groups_told_apart": [
        lambda one, mean: np.exp(mean - one),
        lambda one, mean: torch.tensor(mean - one).exp(),
        lambda one, mean: math.exp(mean) / math.exp(one),
    ],
    "center_after": [center_after_powers, lambda b, m, n: (b - m**n * b).tolist()],
    "student_gradient": [
        student_gradient_numpy,
        lambda s, q, t: torch.sub(F.softmax(s / t, dim=1), q).div(t * s.shape[0]),
    ],
    "fast_loss": [fast_loss_einsum, fast_loss_repeat],
}
WRONG = {
    "entropy": {
        "keepdim": lambda p: torch.special.entr(p).sum(-1, keepdim=True),
        "nan": lambda p: -(p * torch.log(p)).sum(dim=-1),
        "no minus": lambda p: (p * p.clamp(min=1e-12).log()).sum(-1),
        "bits": lambda p: -(p * p.clamp(min=1e-12).log2()).sum(-1),
        "all": lambda p: torch.special.entr(p).sum(),
        "mean of rows": lambda p: torch.special.entr(p).sum(-1).mean(),
        "terms": lambda p: torch.special.entr(p),
        "unweighted": lambda p: -p.clamp(min=1e-12).log().sum(-1),
        "kept": lambda p: torch.special.entr(p).sum(-1, keepdim=True).repeat_interleave(2, -1),
        "softmax again": lambda p: torch.special.entr(p.softmax(-1)).sum(-1),
        "divided by ln K": lambda p: torch.special.entr(p).sum(-1) / math.log(p.shape[-1]),
        "first dimension": lambda p: torch.special.entr(p).sum(0),
        "second dimension": lambda p: torch.special.entr(p).sum(1),
        "nothing": lambda p: print(end=""),
    },
    "cross_entropy": {
        "keepdim": lambda q, log_p: -(q * log_p).sum(-1, keepdim=True),
        "the divergence, and nan": lambda q, log_p: (q * (q.log() - log_p)).sum(-1),
        "logarithm again": lambda q, log_p: -(q * log_p.log()).sum(-1),
        "the student's entropy": lambda q, log_p: -(log_p.exp() * log_p).sum(-1),
        "logarithm of q": lambda q, log_p: -(log_p.exp() * q.log()).sum(-1),
        "KL": lambda q, log_p: F.kl_div(log_p, q, reduction="none").sum(-1),
        "no gradient": cross_entropy_numpy,
        "detached": lambda q, log_p: -(q * log_p.detach()).sum(-1),
        "no minus": lambda q, log_p: (q * log_p).sum(-1),
        "mean of rows": lambda q, log_p: -(q * log_p).sum(-1).mean(),
        "mean of all": lambda q, log_p: -(q * log_p).mean(),
        "favourite": lambda q, log_p: F.nll_loss(
            log_p.view(-1, log_p.shape[-1]), q.view(-1, q.shape[-1]).argmax(-1), reduction="none"
        ).view(q.shape[:-1]),
    },
    "update_center": {
        "no detach": lambda c, t, m=0.9: m * c + (1 - m) * t.mean((0, 1)),
        "reversed": lambda c, t, m=0.9: (1 - m) * c + m * t.detach().mean((0, 1)),
        "softmax": lambda c, t, m=0.9: m * c + (1 - m) * t.detach().softmax(-1).mean((0, 1)),
        "one view": lambda c, t, m=0.9: m * c + (1 - m) * t.detach()[0].mean(0),
        "views alone": lambda c, t, m=0.9: m * c + (1 - m) * t.detach().mean(0),
        "views alone, no detach": lambda c, t, m=0.9: m * c + (1 - m) * t.mean(0),
        "images alone": lambda c, t, m=0.9: m * c + (1 - m) * t.detach().mean(1),
        "an array": lambda c, t, m=0.9: (m * c + (1 - m) * t.detach().mean((0, 1))).numpy(),
        "forgets": lambda c, t, m=0.9: t.detach().mean((0, 1)),
        "a constant momentum": lambda c, t, m=0.9: 0.9 * c + 0.1 * t.detach().mean((0, 1)),
        "sum": lambda c, t, m=0.9: m * c + (1 - m) * t.detach().sum((0, 1)),
        "nothing": lambda c, t, m=0.9: print(end=""),
    },
    "view_pairs": {
        "itself": lambda n: [(i, v) for i in range(2) for v in range(n)],
        "a generator": lambda n: ((i, v) for i in range(2) for v in range(n) if v != i),
        "an iterator": lambda n: filter(
            lambda pair: pair[0] != pair[1], [(i, v) for i in range(2) for v in range(n)]
        ),
        "turned": lambda n: [(v, i) for i in range(2) for v in range(n) if v != i],
        "later": lambda n: [(i, v) for i in range(2) for v in range(i + 1, n)],
        "no globals": lambda n: [(i, v) for i in range(2) for v in range(2, n)],
        "globals": lambda n: [(0, 1), (1, 0)],
        "once": lambda n: [(0, 1), (1, 0), *[(0, v) for v in range(2, n)]],
        "one teacher's view": lambda n: [(0, v) for v in range(1, n)],
        "all teachers": lambda n: [(i, v) for i in range(n) for v in range(n) if i != v],
        "six": lambda n: [(i, v) for i in range(2) for v in range(6) if i != v],
        "number": lambda n: 2 * (n - 1),
        "one too few": lambda n: [(i, v) for i in range(2) for v in range(n - 1) if i != v],
    },
    "dino_loss": LOSSES,
    "two_entropies": {
        "order": lambda p: two_entropies_numpy(p)[::-1],
        "same": lambda p: [two_entropies_numpy(p)[0]] * 2,
        "per view": lambda p: (
            torch.special.entr(p).sum(-1).mean(),
            torch.special.entr(p.mean(1)).sum(-1).mean(),
        ),
        "nan": lambda p: (-(p * p.log()).sum(-1).mean(), torch.special.entr(p.mean((0, 1))).sum()),
        "view 0": lambda p: two_entropies_numpy(p[:1]),
        "a sum": lambda p: (torch.special.entr(p).sum(), torch.special.entr(p.mean((0, 1))).sum()),
        "bits": lambda p: [e / math.log(2) for e in two_entropies_numpy(p)],
        "views averaged": lambda p: (entropy_numpy(p.mean(0)).mean(), two_entropies_numpy(p)[1]),
        "views averaged, twice": lambda p: [entropy_numpy(p.mean(0)).mean()] * 2,
        "mean of all": lambda p: (
            torch.special.entr(p).sum(-1).mean(),
            torch.special.entr(p.mean((0, 1, 2))).sum(),
        ),
    },
    "groups_told_apart": {
        "turned": lambda one, mean: math.exp(one - mean),
        "gap": lambda one, mean: mean - one,
        "bits": lambda one, mean: 2 ** (mean - one),
        "rounded": lambda one, mean: round(math.exp(mean - one)),
        "one decimal": lambda one, mean: round(math.exp(mean - one), 1),
        "of the mean": lambda one, mean: math.exp(mean),
        "of one": lambda one, mean: math.exp(one),
        "difference": lambda one, mean: math.exp(mean) - math.exp(one),
        "quotient": lambda one, mean: mean / (one + 1e-9),
        "sum": lambda one, mean: math.exp(one + mean),
        "logarithm": lambda one, mean: math.log(max(mean - one, 1e-9)),
        "of the quotient": lambda one, mean: math.exp(mean / (one + 1e-9)),
        "twice": lambda one, mean: math.exp(2 * (mean - one)),
        "absolute": lambda one, mean: -math.exp(abs(mean - one)),
    },
    "center_after": {
        "a sum in a loop": center_after_sum,
        "a loop": center_after_loop,
        "left over": lambda b, m, n: m**n * b,
        "reversed": lambda b, m, n: (1 - (1 - m) ** n) * b,
        "n times": lambda b, m, n: n * (1 - m) * b,
        "one step": lambda b, m, n: (1 - m) * b,
        "too few": lambda b, m, n: (1 - m ** (n - 1)) * b,
        "too many": lambda b, m, n: (1 - m ** (n + 1)) * b,
        "product": lambda b, m, n: (1 - m * n) * b,
        "end": lambda b, m, n: b,
        "last batch": lambda b, m, n: (1 - m) * m ** (n - 1) * b,
    },
    "student_gradient": {
        "sign": lambda s, q, t: (q - (s / t).softmax(-1)) / t / len(s),
        "no temperature": lambda s, q, t: ((s / t).softmax(-1) - q) / len(s),
        "no rows": lambda s, q, t: ((s / t).softmax(-1) - q) / t,
        "neither": lambda s, q, t: (s / t).softmax(-1) - q,
        "cold": lambda s, q, t: (s.softmax(-1) - q) / t / len(s),
        "times": lambda s, q, t: ((s / t).softmax(-1) - q) * t / len(s),
        "logit alone": lambda s, q, t: -q / t / len(s),
        "log": lambda s, q, t: ((s / t).log_softmax(-1) - q) / t / len(s),
        "all entries": lambda s, q, t: ((s / t).softmax(-1) - q) / t / s.numel(),
    },
    "fast_loss": {
        "logsumexp once": fast_loss_once,
        "divided by V": lambda s, t, c, a, b: LOSSES["a sum"](s, t, c, a, b) / len(s),
        "own pairs": fast_loss_own,
        "no detach": lambda s, t, c, a, b: loss_with(
            q=lambda t, c, tau: ((t - c) / tau).softmax(-1)
        )(s, t, c, a, b),
        "a loop": dino_loss_logsumexp,
        **{name: LOSSES[name] for name in ("a sum", "no center", "center added", "no minus")},
    },
}
EQUIVALENT = {
    "cross_entropy": ["log_p * q"],
    "dino_loss": ["cross_entropy(log_p[v], q[i])"],
    "student_gradient": ["softmax(dim=1)"],
    "fast_loss": ["q.sum(dim=0).expand", "keepdim=False"],
}
