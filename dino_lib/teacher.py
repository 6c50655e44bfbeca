"""The teacher: a copy of the student that follows it slowly and has no gradient (section 3.1)."""

import copy

import torch
from timm.layers import DropBlock2d, DropPath, PatchDropout, PatchDropoutWithIndices
from torch import Tensor, nn


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of `student` (backbone and head) with storage of its own, no gradient, no drop path.

    It stays in train mode, as in the official code: batch norm, where there is any, uses the
    batch's own statistics. Dropout and stochastic depth are switched off for good, so that its
    targets are not noisy.
    """
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath | DropBlock2d):
            module.drop_prob = 0.0
        elif isinstance(module, PatchDropout | PatchDropoutWithIndices):
            module.prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("drop_rate", "patch_drop_rate"):  # timm's CNNs and Hiera keep the rate here
            if hasattr(module, name):
                setattr(module, name, 0.0)
    return teacher


@torch.no_grad()
def ema_update(teacher: nn.Module, student: nn.Module, momentum: float | Tensor) -> None:
    """t <- momentum * t + (1 - momentum) * s over the parameters, in place.

    Called after the optimizer's step. Buffers are the teacher's own. momentum: a number, or a
    tensor () on the networks' device, which is not checked: that would wait for the device.
    ValueError if the two differ in the number or shapes of their parameters, or if momentum is no
    number in [0, 1].
    """
    if isinstance(momentum, str | None):
        raise ValueError(f"momentum={momentum!r} must be a number in [0, 1]")
    if not torch.is_tensor(momentum) and not 0 <= momentum <= 1:
        raise ValueError(f"momentum={momentum} must lie in [0, 1]")
    shapes = [[p.shape for p in model.parameters()] for model in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "teacher and student differ in their parameters: build the teacher with "
            "make_teacher(student)"
        )
    share = 1 - momentum
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.lerp_(s, share.to(t.dtype) if torch.is_tensor(share) else share)
