"""What the training step is measured against: two others with the same network, optimizer and
views.

`official` renders, from the paper's definitions, what the official code does in a step, not its
text: views grouped by size, weight norm by a hook, one log-softmax for each pair of views, each
gradient clipped by itself, AdamW and the teacher's average in Python loops, all in float32 (on CUDA
in float16 with a scaler). `lightly` is lightly's own head, loss and average in the loop of its DINO
example: each view by itself. Both have timm's networks with its fused attention. Each is a function
of (config, device) that gives step(views) -> the loss as a tensor.
"""

import itertools
import warnings

import torch
import torch.nn.functional as F
from torch import nn

from dino_lib.head import MultiCropModel
from dino_lib.run.build import build_backbone, parameter_groups


def mixed(device):
    """What both use on CUDA: (autocast to float16, scaler), switched off on a CPU."""
    on = device.type == "cuda"
    return (
        lambda: torch.autocast(device.type, torch.float16 if on else torch.bfloat16, enabled=on),
        torch.amp.GradScaler(device.type, enabled=on),
    )


def adamw(model, config, **options):
    return torch.optim.AdamW(
        parameter_groups(model), lr=config.lr, weight_decay=config.weight_decay, **options
    )


class HookHead(nn.Module):
    """The paper's head with torch's own weight norm, whose hook makes the weight anew at every
    forward pass.
    """

    def __init__(self, in_dim, c):
        super().__init__()
        widths = [in_dim] + [c.hidden_dim] * (c.head_layers - 1) + [c.bottleneck_dim]
        layers = []
        for d_in, d_out in itertools.pairwise(widths[:-1]):
            layers += [
                nn.Linear(d_in, d_out),
                *([nn.BatchNorm1d(d_out)] if c.use_bn else []),
                nn.GELU(),
            ]
        self.mlp = nn.Sequential(*layers, nn.Linear(*widths[-2:]))
        with warnings.catch_warnings(action="ignore"):  # PyTorch has a newer way, without a hook
            self.last = nn.utils.weight_norm(nn.Linear(c.bottleneck_dim, c.out_dim, bias=False))
        self.last.weight_g.data.fill_(1)
        self.last.weight_g.requires_grad_(not c.norm_last_layer)

    def forward(self, x):
        return self.last(F.normalize(self.mlp(x), dim=-1))


def official(config, device):
    """The plain rendering of the official recipe's step."""
    c = config
    backbone = build_backbone(c)
    student = MultiCropModel(backbone, HookHead(backbone.num_features, c))
    teacher = MultiCropModel(build_backbone(c), HookHead(backbone.num_features, c))
    teacher.load_state_dict(student.state_dict())
    student, teacher = student.to(device), teacher.requires_grad_(False).to(device)
    optimizer, center = (
        adamw(student, c, foreach=False, fused=False),
        torch.zeros(c.out_dim, device=device),
    )
    autocast, scaler = mixed(device)

    def step(views):
        nonlocal center
        with autocast():
            with torch.no_grad():
                t = teacher(views[:2]).float()  # (2, B, K)
            s = student(views).float() / c.student_temp  # (V, B, K)
        q = F.softmax((t - center) / c.teacher_temp, dim=-1)
        terms = [
            -(q[i] * F.log_softmax(s[v], dim=-1)).sum(-1).mean()
            for i in range(2)
            for v in range(len(views))
            if v != i
        ]
        loss = sum(terms) / len(terms)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        for p in student.parameters():
            if p.grad is not None:
                p.grad.mul_((c.clip_grad / (p.grad.norm() + 1e-6)).clamp(max=1))
        scaler.step(optimizer)
        scaler.update()
        with torch.no_grad():
            center = 0.9 * center + 0.1 * t.mean((0, 1))
            for a, b in zip(teacher.parameters(), student.parameters(), strict=True):
                a.mul_(c.momentum).add_((1 - c.momentum) * b)
        return loss.detach()

    step.student, step.teacher = student, teacher  # for who wants to look at them
    return step


def lightly(config, device):
    """lightly's step: head, loss and momentum update are the package's, the loop is that of its
    DINO example.
    """
    from lightly.loss import DINOLoss
    from lightly.models.modules import DINOProjectionHead
    from lightly.models.utils import update_momentum

    c = config
    backbone = build_backbone(c)
    sizes = (backbone.num_features, c.hidden_dim, c.bottleneck_dim, c.out_dim)
    options = {"batch_norm": c.use_bn, "norm_last_layer": c.norm_last_layer}
    student = nn.Sequential(backbone, DINOProjectionHead(*sizes, **options))
    teacher = nn.Sequential(build_backbone(c), DINOProjectionHead(*sizes, **options))
    teacher.load_state_dict(student.state_dict())
    student, teacher = student.to(device), teacher.requires_grad_(False).to(device)
    criterion = DINOLoss(c.out_dim, teacher_temp=c.teacher_temp, warmup_teacher_temp_epochs=1).to(
        device
    )
    optimizer, (autocast, scaler) = adamw(student, c), mixed(device)

    def step(views):
        update_momentum(student, teacher, c.momentum)
        with autocast():
            with torch.no_grad():
                t = [teacher(view) for view in views[:2]]
            s = [student(view) for view in views]
        loss = criterion([x.float() for x in t], [x.float() for x in s])
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), c.clip_grad)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step
