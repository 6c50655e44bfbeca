"""The mistakes that the checks of notebook 03 know, of the loss and its pieces: a hint -> a wrong
piece.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _entropy(p: Tensor, dim: int = -1) -> Tensor:
    return torch.special.entr(p).sum(dim=dim)


ENTROPY = {
    "p ln p is not a number where p is 0, and counts 0 there: torch.special.entr, xlogy or a clamp":
        lambda p: -(p * p.log()).sum(-1),
    "the minus sign is missing: ln p is negative": lambda p: -_entropy(p),
    "these are bits: take the natural logarithm": lambda p: _entropy(p) / math.log(2),
    "it is a sum over the prototypes, not a mean": lambda p: _entropy(p) / p.shape[-1],
    "one entropy for each row: only the last dimension is summed over": lambda p: _entropy(p).sum(),
    "one entropy for each row, not their mean": lambda p: _entropy(p).mean(),
    "the sum is missing: these are its terms": lambda p: torch.special.entr(p),
    "it is summed over the rows; the prototypes are the last dimension": lambda p: _entropy(p, -2),
    "the prototypes are the last dimension: dim=-1, not 0": lambda p: _entropy(p, 0),
    "the prototypes are the last dimension, dim=-1; dim=1 is that only for matrices":
        lambda p: _entropy(p, 1),
    "each logarithm has to be weighted with p": lambda p: -p.clamp(min=1e-12).log().sum(-1),
    "p is a distribution already: a second softmax changes it":
        lambda p: _entropy(p.softmax(-1)),
    "the mean of -ln p needs the weights p": lambda p: -p.clamp(min=1e-12).log().mean(-1),
    "that is the sum of squares, not of p ln p": lambda p: (p * p).sum(-1),
    "that is the largest term, not the sum": lambda p: torch.special.entr(p).amax(-1),
}


def _cross(q: Tensor, log_p: Tensor, dim: int = -1) -> Tensor:
    return -(q * log_p).sum(dim=dim)


CROSS_ENTROPY = {
    "log_p holds logarithms already: take no second one": lambda q, p: _cross(q, p.log()),
    "q stands in front as it is; the logarithm is the student's":
        lambda q, p: _cross(p.exp(), q.log()),
    "that is the student's own entropy: the weights are the teacher's, q":
        lambda q, p: _cross(p.exp(), p),
    "that is the divergence: the teacher's entropy is missing":
        lambda q, p: _cross(q, p) - _entropy(q),
    "that is the divergence, and q ln q is not a number where q is 0: only ln p is asked for":
        lambda q, p: (q * (q.log() - p)).sum(-1),
    "the minus sign is missing": lambda q, p: -_cross(q, p),
    "log_p needs no exponential here": lambda q, p: _cross(q, p.exp()),
    "it is a sum over the prototypes, not a mean": lambda q, p: _cross(q, p) / q.shape[-1],
    "one number for each row: only the last dimension is summed over":
        lambda q, p: _cross(q, p).sum(),
    "one number for each row, not their mean: the loss takes that later":
        lambda q, p: _cross(q, p).mean(),
    "the sum is missing: these are its terms": lambda q, p: -q * p,
    "it is summed over the rows; the prototypes are the last dimension":
        lambda q, p: _cross(q, p, -2),
    "the prototypes are the last dimension: dim=-1, not 0": lambda q, p: _cross(q, p, 0),
    "the prototypes are the last dimension, dim=-1; dim=1 is that only for matrices":
        lambda q, p: _cross(q, p, 1),
    "q weights log_p: a product, no sum and no quotient": lambda q, p: -(q / p).sum(-1),
    "q weights log_p: a product, not a sum of the two": lambda q, p: -(q + p).sum(-1),
    "the teacher's q is a distribution already: a second softmax changes it":
        lambda q, p: _cross(q.softmax(-1), p),
    "the favourite prototype alone does not count: all are weighted with q":
        lambda q, p: -p.gather(-1, q.argmax(-1, keepdim=True)).squeeze(-1),
}


def _center(center: Tensor, teacher: Tensor, momentum: float = 0.9, *, new: Any = None) -> Tensor:
    """`new` makes of the teacher's rows what is mixed in."""
    rows = teacher.detach()
    return momentum * center + (1 - momentum) * (rows.mean((0, 1)) if new is None else new(rows))


UPDATE_CENTER = {
    "a gradient hangs on the center: detach the teacher's rows":
        lambda c, t, m=0.9: m * c + (1 - m) * t.mean((0, 1)),
    "momentum is the share of the old center; the batch adds the rest":
        lambda c, t, m=0.9: _center(c, t, 1 - m),
    "the batch is to add 1 - momentum of its mean": lambda c, t, m=0.9: _center(c, t, m) + m
        * t.detach().mean((0, 1)),
    "the old center has to shrink too, by the momentum":
        lambda c, t, m=0.9: _center(c, t, m) + (1 - m) * c,
    "the batch's part is 1 - momentum, and it is added":
        lambda c, t, m=0.9: 2 * m * c - _center(c, t, m),
    "that is 1 + momentum where it is 1 - momentum":
        lambda c, t, m=0.9: m * c + (1 + m) * t.detach().mean((0, 1)),
    "it is the mean of the rows, not their sum":
        lambda c, t, m=0.9: _center(c, t, m, new=lambda r: r.sum((0, 1))),
    "both views count: these are the rows of view 0 alone":
        lambda c, t, m=0.9: _center(c, t, m, new=lambda r: r[0].mean(0)),
    "both views count: these are the rows of view 1 alone":
        lambda c, t, m=0.9: _center(c, t, m, new=lambda r: r[1].mean(0)),
    "one number for each prototype: that is the mean of all logits":
        lambda c, t, m=0.9: _center(c, t, m, new=lambda r: r.mean()),
    "the mean is of the logits, before any softmax":
        lambda c, t, m=0.9: _center(c, t, m, new=lambda r: r.softmax(-1).mean((0, 1))),
    "that is the mean of this batch alone: the old center is forgotten":
        lambda c, t, m=0.9: t.detach().mean((0, 1)),
    "that is the old center: nothing is mixed in": lambda c, t, m=0.9: c,
    "momentum has to be used: it is not always 0.9": lambda c, t, m=0.9: _center(c, t, 0.9),
    "momentum is 0.9 where none is given": lambda c, t, m=0.99: _center(c, t, m),
    "momentum is 0.9 where none is given, and not larger": lambda c, t, m=1.0: _center(c, t, m),
    "divided where it is multiplied": lambda c, t, m=0.9: c / max(m, 1e-9) + (1 - m)
        * t.detach().mean((0, 1)),
}


def _some(keep: Callable) -> Callable:
    """The pairs (i, v) of two targets and n views that `keep(i, v, n)` keeps."""
    return lambda n: [(i, v) for i in range(2) for v in range(n) if keep(i, v, n)]


PAIRS = {
    "a view must not predict itself: leave out (0, 0) and (1, 1)": _some(lambda i, v, n: True),
    "only (0, 0) and (1, 1) are to be left out; here only they are in":
        _some(lambda i, v, n: v == i),
    "the two global views are to predict each other: (0, 1) and (1, 0) are missing":
        _some(lambda i, v, n: v > 1),
    "global views predict each other, not themselves":
        _some(lambda i, v, n: v > 1 or v == i),
    "the local views are missing": _some(lambda i, v, n: v == 1 - i),
    "(1, 0) is missing: each view but the target's own counts, also an earlier one":
        _some(lambda i, v, n: v > i),
    "(1, 0) is the only pair with an earlier view: later ones count too":
        _some(lambda i, v, n: v < i),
    "view 0 counts too: indices begin at 0": _some(lambda i, v, n: v != i and v > 0),
    "the last view is missing": _some(lambda i, v, n: v != i and v < n - 1),
    "the teacher's view comes first in a pair": lambda n: [
        (v, i) for i in range(2) for v in range(n) if v != i],
    "the teacher sees the two global views only: i is 0 or 1": lambda n: [
        (i, v) for i in range(n) for v in range(n) if v != i],
    "the teacher sees two views, not three": lambda n: [
        (i, v) for i in range(3) for v in range(n) if v != i],
    "the teacher sees two views, not four": lambda n: [
        (i, v) for i in range(4) for v in range(n) if v != i],
    "the teacher has a second view: i is 0 or 1": lambda n: [(0, v) for v in range(1, n)],
    "the number of views is n_views, not always 6":
        lambda n: [(i, v) for i in range(2) for v in range(6) if v != i],
    "each local view is in two pairs, one for each target": lambda n: [
        (0, 1), (1, 0), *[(0, v) for v in range(2, n)]],
    "n_views counts all the views, the global ones too": lambda n: [
        (i, v) for i in range(2) for v in range(n + 2) if v != i],
    "it is a list of the pairs, not their number": lambda n: 2 * (n - 1),
}


def _loss(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float = 0.1,
          teacher_temp: float = 0.04, *, pairs: Any = None, combine: Callable = torch.mean,
          batch: Callable = torch.mean, detach: bool = True, q_dim: int = -1, p_dim: int = -1,
          softmax: str = "softmax", log_softmax: str = "log_softmax") -> Tensor:
    """The loss as the formula says, with a part of it changed."""
    q = getattr((teacher - center) / teacher_temp, softmax)(dim=q_dim)
    q = q.detach() if detach else q
    log_p = getattr(student / student_temp, log_softmax)(dim=p_dim)
    chosen = _some(lambda i, v, n: v != i)(len(student)) if pairs is None else pairs(len(student))
    terms = [batch(-(q[i] * log_p[v]).sum(-1)) for i, v in chosen]
    return combine(torch.stack(terms))


def _changed(**changed: Any) -> Callable:
    """The loss with other options, or with other inputs: a function of the right ones."""
    inputs = {k: changed.pop(k) for k in ("s", "t", "c", "hot", "cold") if k in changed}

    def wrong(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04) -> Tensor:
        given = {"s": s, "t": t, "c": c, "hot": hot, "cold": cold}
        given |= {k: change(**given) for k, change in inputs.items()}
        return _loss(*given.values(), **changed)

    return wrong


def _once(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04,
          *, share: bool = False) -> Tensor:
    """One logsumexp for each view; or one pair's weight for each view."""
    u, q = s / hot, ((t.detach() - c) / cold).softmax(-1)
    targets = torch.stack([q[1], q[0], *[q.sum(0) / (1 + share)] * (len(s) - 2)])
    rows = u.logsumexp(-1) - (targets * u).sum(-1)
    return rows.mean() if share else rows.mean(-1).sum() / (2 * len(s) - 2)


def _ruined(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04) -> Tensor:
    value = _loss(s, t, c, hot, cold)
    t.data.sub_(c)
    return value


def _kl(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04) -> Tensor:
    return _loss(s, t, c, hot, cold) - _entropy(((t.detach() - c) / cold).softmax(-1)).mean()


def _swapped(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04) -> Tensor:
    """The student's shares as weights of the teacher's logarithms."""
    p, log_q = (s / hot).softmax(-1), ((t.detach() - c) / cold).log_softmax(-1)
    pairs = _some(lambda i, v, n: v != i)(len(s))
    return torch.stack([-(p[v] * log_q[i]).sum(-1).mean() for i, v in pairs]).mean()


def _all_pairs(n: int) -> list[tuple[int, int]]:
    return [(i, v) for i in range(2) for v in range(n)]


def _no_own(s: Tensor, t: Tensor, c: Tensor, hot: float = 0.1, cold: float = 0.04) -> Tensor:
    return _loss(s, t, c, hot, cold) * (len(s) - 1) / len(s)


LOSS = {
    "a gradient flows into the teacher's logits: its probabilities are targets, detach them":
        _changed(detach=False),
    "no gradient reaches the student: only the teacher's side is detached":
        lambda *a: _loss(*a).detach(),
    "a local view is in two pairs and its logsumexp counts twice, once a pair": _once,
    "a local view is in two pairs, a global one in one": lambda *a: _once(*a, share=True),
    "the pairs of a view with itself are in it": _changed(pairs=_all_pairs),
    "the pairs of a view with itself are left out of the sum, but counted in the mean": _no_own,
    "only the pairs of a view with itself are in it":
        _changed(pairs=_some(lambda i, v, n: v == i)),
    "the pairs are summed; the loss is their mean": _changed(combine=torch.sum),
    "the pairs are summed, and the batch too; the loss is a mean over both":
        _changed(combine=torch.sum, batch=torch.sum),
    "divide by the number of pairs, 2 (V - 1), not by V: a local view is in two pairs":
        lambda s, *rest: _loss(s, *rest) * 2 * (len(s) - 1) / len(s),
    "it is summed over the batch; the loss is a mean": _changed(batch=torch.sum),
    "one number is expected: the mean over the batch is missing":
        _changed(batch=lambda x: x, combine=lambda x: x.mean(0)),
    "one number is expected: the mean over the pairs is missing": _changed(combine=lambda x: x),
    "views 0 and 1 are paired with their own targets: each is to predict the other":
        _changed(pairs=_some(lambda i, v, n: v > 1 or v == i)),
    "the two temperatures are swapped":
        _changed(hot=lambda cold, **_: cold, cold=lambda hot, **_: hot),
    "the teacher's temperature is used for the student too": _changed(hot=lambda cold, **_: cold),
    "the student's temperature is used for the teacher too": _changed(cold=lambda hot, **_: hot),
    "the center is not subtracted": _changed(c=lambda c, **_: 0 * c),
    "the center is added, not subtracted": _changed(c=lambda c, **_: -c),
    "the center is subtracted from the logits, before the temperature divides":
        _changed(c=lambda c, cold, **_: c * cold),
    "the center belongs to the teacher alone; the student's logits stay as they are":
        _changed(s=lambda s, c, **_: s - c),
    "the center is the teacher's, not the student's":
        _changed(s=lambda s, c, **_: s - c, c=lambda c, **_: 0 * c),
    "the student's logits lack their temperature": _changed(hot=lambda **_: 1.0),
    "the teacher's logits lack their temperature": _changed(cold=lambda **_: 1.0),
    "the student's logits are multiplied by the temperature":
        _changed(hot=lambda hot, **_: 1 / hot),
    "the teacher's logits are multiplied by the temperature":
        _changed(cold=lambda cold, **_: 1 / cold),
    "the local views are left out": _changed(pairs=_some(lambda i, v, n: v == 1 - i)),
    "views 0 and 1 are to predict each other too": _changed(pairs=_some(lambda i, v, n: v > 1)),
    "the second target is left out": _changed(pairs=lambda n: [(0, v) for v in range(1, n)]),
    "the softmax is over the images (dim=1), not over the prototypes":
        _changed(q_dim=1, p_dim=1),
    "the teacher's softmax is over the images (dim=1), not over the prototypes": _changed(q_dim=1),
    "the student's softmax is over the images (dim=1), not over the prototypes": _changed(p_dim=1),
    "the student needs log_softmax: the cross-entropy takes logarithms":
        _changed(log_softmax="softmax"),
    "the teacher gives shares: softmax, no logarithm": _changed(softmax="log_softmax"),
    "the teacher's logits less the center: it is the other way round":
        _changed(t=lambda t, **_: -t, c=lambda c, **_: -c),
    "student and teacher are swapped: the teacher's logits make q, the student's make log_p":
        lambda s, t, c, hot=0.1, cold=0.04: _loss(t, s, c, hot, cold, pairs=_some(
            lambda i, v, n: v != i) if len(s) == 2 else lambda n: [(0, 1), (1, 0)]),
    "the softmax is over the views (dim=0), not over the prototypes": _changed(q_dim=0, p_dim=0),
    "the minus sign is missing": lambda *a: -_loss(*a),
    "that is the divergence: the teacher's entropy is missing": _kl,
    "the student's shares weight the teacher's logarithms: it is the other way round": _swapped,
    "the teacher's logits are changed in place, and the center needs them afterwards": _ruined,
    "the defaults are student_temp=0.1 and teacher_temp=0.04":
        lambda s, t, c, hot=0.2, cold=0.04: _loss(s, t, c, hot, cold),
    "the two temperatures have to be used: 0.1 and 0.04 hold only where none are given":
        _changed(hot=lambda **_: 0.1, cold=lambda **_: 0.04),
    "the default of student_temp is 0.1, the paper's; it is not doubled":
        lambda s, t, c, hot=0.1, cold=0.08: _loss(s, t, c, hot, cold),
}
