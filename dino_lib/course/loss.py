"""The self-checks of notebook 03: the loss."""

import math
from collections.abc import Callable

import torch

from dino_lib.course.verdict import verdict
from dino_lib.loss import DINOLoss, teacher_entropies


def check_center_after(function: Callable) -> None:
    """`function(batch_mean, momentum, n_steps)`: where the center stands after n equal batches,
    from 0.
    """
    mean, m, n = torch.tensor([2.0, -1.0, 0.5, 4.0]), 0.8, 3
    loss = DINOLoss(4, center_momentum=m)
    for _ in range(n):
        loss.update_center(mean.expand(2, 5, 4))
    verdict(
        "center_after",
        function(mean.clone(), m, n),
        loss.center,
        {
            "that is the share of the old center, which is 0 here; the rest belongs to the "
            "batches": m**n * mean,
            "momentum is the share that is kept, not the share of the new batch": (1 - (1 - m) ** n)
            * mean,
            "each step also shrinks what the steps before have added": n * (1 - m) * mean,
            "that is one step only": (1 - m) * mean,
            "that is one step too few": (1 - m ** (n - 1)) * mean,
            "that is one step too many": (1 - m ** (n + 1)) * mean,
            "that is where the center ends after very many steps": mean,
        },
    )


def check_two_entropies(function: Callable) -> None:
    """`function(probs)` with probs (2, B, K): (mean entropy of the rows, entropy of the mean row),
    in nats.
    """
    probs = torch.softmax(
        3 * torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    probs[0, 0] = torch.eye(8)[2]  # a row that is sure: 0 ln 0 counts 0
    rows, mean = teacher_entropies(probs)
    first = teacher_entropies(probs[:1].expand(2, 6, 8))
    total = torch.special.entr(probs).sum().item()
    per_view = torch.special.entr(probs.mean(1)).sum(-1).mean().item()
    verdict(
        "two_entropies",
        function(probs.clone()),
        (rows, mean),
        {
            "the two are in the wrong order: first the mean of the rows' entropies": (mean, rows),
            "an entropy has a minus sign in front": (-rows, -mean),
            "these are bits: take the natural logarithm": (rows / math.log(2), mean / math.log(2)),
            "that is of view 0 alone; both views count": first,
            "the first is a mean over the rows, not a sum": (total, mean),
            "the mean row is taken over both views together, not for each view apart": (
                rows,
                per_view,
            ),
            "the entropy of the mean is not the mean of the entropies: average the rows first": (
                rows,
                rows,
            ),
        },
    )


def check_student_gradient(function: Callable) -> None:
    """`function(s, q, student_temp)`: d/ds of the batch mean of -sum q log softmax(s /
    student_temp); s, q (B, K).
    """
    generator, temp = torch.Generator().manual_seed(1), 0.4  # temp * 5 rows is not 1
    s = torch.randn(5, 6, generator=generator, requires_grad=True)
    q = torch.softmax(2 * torch.randn(5, 6, generator=generator), dim=-1)
    (-q * torch.log_softmax(s / temp, dim=-1)).sum(-1).mean().backward()
    s, right = s.detach(), s.grad
    p, warm = torch.softmax(s / temp, dim=-1), torch.softmax(s, dim=-1)
    verdict(
        "student_gradient",
        function(s.clone(), q.clone(), temp),
        right,
        {
            "the sign is turned round: a step against the gradient must bring p nearer to "
            "q": -right,
            "the inner derivative of s / student_temp is missing": right * temp,
            "the loss is a mean over the batch: divide by the number of rows": right * len(s),
            "both divisions are missing, by the temperature and by the number of rows": p - q,
            "the student's probabilities lack their temperature": (warm - q) / temp / len(s),
            "multiplied by the temperature where it divides": (p - q) * temp / len(s),
            "that is through each logit alone: the softmax ties all of them together": -q
            / temp
            / len(s),
        },
    )


def check_fast_loss(function: Callable) -> None:
    """`function(student, teacher, center, student_temp, teacher_temp)` -> the loss; its gradient
    is compared too.
    """
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(v, 3, 8, generator=generator) for v in (5, 2))
    center, hot, cold = torch.randn(8, generator=generator), 0.5, 0.3

    def both(loss):  # the value and the gradient of the student's logits
        s, t = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        value = loss(s, t)
        if value is None:
            return None
        if not torch.is_tensor(value) or not value.requires_grad or value.ndim:
            return value
        value.backward()
        return (value, s.grad) if t.grad is None else (value, s.grad, t.grad)

    def library(s, t, tau_s=hot, tau_t=cold, c=center):
        loss = DINOLoss(8, student_temp=tau_s).eval()
        loss.center += c
        return loss(s, t, tau_t)

    def pairs(s, t, chosen):
        q, p = (
            torch.softmax((t.detach() - center) / cold, dim=-1),
            torch.log_softmax(s / hot, dim=-1),
        )
        return torch.stack(
            [-(q[i] * p[v]).sum(-1).mean() for i in range(2) for v in range(5) if chosen(i, v)]
        )

    yours = both(lambda s, t: function(s, t, center.clone(), hot, cold))
    if isinstance(yours, tuple) and len(yours) == 3:
        return print(
            "wrong: a gradient flows into the teacher's logits: its probabilities are targets, "
            "detach them"
        )
    if torch.is_tensor(yours):
        return print(
            "wrong: fast_loss must give one number with a gradient for the student (a "
            "0-dimensional tensor)"
        )
    verdict(
        "fast_loss",
        yours,
        both(library),
        {
            "the pairs of a view with itself are in it": both(
                lambda s, t: pairs(s, t, lambda i, v: True).mean()
            ),
            "the pairs of a view with itself are left out of the sum, but counted in the "
            "mean": both(lambda s, t: pairs(s, t, lambda i, v: v != i).sum() / 10),
            "the pairs are summed; the loss is their mean": both(
                lambda s, t: pairs(s, t, lambda i, v: v != i).sum()
            ),
            "views 0 and 1 are paired with their own targets: each is to predict the other": both(
                lambda s, t: pairs(s, t, lambda i, v: v > 1 or v == i).mean()
            ),
            "a local view is in two pairs, a global one in one": both(
                lambda s, t: (
                    (
                        pairs(s, t, lambda i, v: v == 1 - i).sum()
                        + pairs(s, t, lambda i, v: v > 1).sum() / 2
                    )
                    / 5
                )
            ),
            "it is summed over the batch; the loss is a mean": both(lambda s, t: 3 * library(s, t)),
            "the two temperatures are swapped": both(lambda s, t: library(s, t, cold, hot)),
            "the center is not subtracted": both(lambda s, t: library(s, t, c=0.0)),
            "the center is added, not subtracted": both(lambda s, t: library(s, t, c=-center)),
            "the student's logits lack their temperature": both(lambda s, t: library(s, t, 1.0)),
            "the local views are left out": both(
                lambda s, t: pairs(s, t, lambda i, v: v == 1 - i).mean()
            ),
        },
    )
