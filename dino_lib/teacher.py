"""The teacher: a copy of the student that follows it slowly and never sees a gradient (section 3.1)."""

import copy

import torch
from timm.layers import DropBlock2d, DropPath, PatchDropout
from torch import nn


def make_teacher(student):
    """A copy of `student` (backbone and head) with storage of its own, no gradient and no drop path.

    It stays in train mode, as in the official code: batch norm, where there is any, uses the batch's own
    statistics. Dropout and stochastic depth are switched off for good, so that its targets are not noisy.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath | DropBlock2d):
            module.drop_prob = 0.0
        elif isinstance(module, PatchDropout):
            module.prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        elif hasattr(module, "drop_rate"):  # timm's CNNs keep the rate of a functional dropout there
            module.drop_rate = 0.0
    return teacher


@torch.no_grad()
def ema_update(teacher, student, momentum):
    """t <- momentum * t + (1 - momentum) * s over the parameters, in place; buffers are the teacher's own.

    Called after the optimizer's step. Raises ValueError if the two differ in the number or shapes of
    their parameters, or if momentum is not in [0, 1].
    """
    if isinstance(momentum, str | None):
        raise ValueError(f"momentum={momentum!r} must be a number in [0, 1]")
    if not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must lie in [0, 1]")
    t, s = list(teacher.parameters()), list(student.parameters())
    if [p.shape for p in t] != [p.shape for p in s]:
        raise ValueError("teacher and student differ in their parameters: build the teacher with make_teacher(student)")
    torch._foreach_lerp_(t, s, 1 - momentum)  # one fused pass; the plain loop is t.lerp_(s, 1 - momentum)
