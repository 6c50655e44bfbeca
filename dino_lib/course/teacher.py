"""The self-checks of notebook 04: the teacher."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from dino_lib import teacher as library
from dino_lib.course.check import Case, check
from dino_lib.course.verdict import verdict
from dino_lib.loss import DINOLoss
from dino_lib.schedules import cosine_schedule, linear_warmup
from dino_lib.teacher import make_teacher


def ema_update(yours: Callable) -> Callable:
    """`yours(teacher, student, momentum)`: the teacher's parameters move, in place."""
    return check("ema_update", yours, library.ema_update,
                 [_followed(0.9), _followed(0.25), _followed(1.0), _followed(0.0)], {
        "the momentum is what the teacher keeps of itself; the student adds the rest":
            lambda t, s, m: library.ema_update(t, s, 1 - m),
        "the student adds all of itself; it should add 1 - momentum of itself":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + b),
        "the old teacher has to shrink too, by the momentum":
            lambda t, s, m: _each(t, s, lambda a, b: a + (1 - m) * b),
        "the student moves, and it must stay as it is":
            lambda t, s, m: library.ema_update(s, t, m),
    })


def _followed(momentum: float) -> Case:
    """Both networks' parameters and buffers after an update, and whether autograd took part."""

    def case(update: Callable) -> list[Tensor]:
        nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2)]
        generator = torch.Generator().manual_seed(0)
        for net in nets:
            for tensor in [*net.parameters(), net[1].running_mean]:
                tensor.data.normal_(generator=generator)
        student, follower = nets[0], nets[1].requires_grad_(False)
        update(follower, student, momentum)
        leaves = [p.is_leaf for net in nets for p in net.parameters()]
        return [*follower.state_dict().values(), *student.state_dict().values(),
                torch.tensor(leaves)]

    return case


def _each(t: nn.Module, s: nn.Module, rule: Callable) -> None:
    """rule(teacher's, student's) for each parameter, in place."""
    with torch.no_grad():
        for a, b in zip(t.parameters(), s.parameters(), strict=True):
            a.copy_(rule(a, b))


def check_temperature_schedule(function: Callable) -> None:
    """`function(start, final, total_steps, warmup_steps)`: linear to `final`, both ends included,
    then constant.
    """
    start, final, total, warm = 0.04, 0.07, 10, 4
    right = linear_warmup(start, final, total, warm)
    rest = np.full(total - warm, final)
    verdict(
        "temperature_schedule",
        function(start, final, total, warm),
        right,
        {
            "the warm-up takes the whole run: it ends after warmup_steps values": np.linspace(
                start, final, total
            ),
            "the warm-up starts at 0, not at `start`": np.concatenate(
                [np.linspace(0, final, warm), rest]
            ),
            "the warm-up never reaches `final`: both ends belong to it": np.concatenate(
                [np.linspace(start, final, warm, endpoint=False), rest]
            ),
            "the warm-up is linear, not a piece of a cosine": np.concatenate(
                [start + (final - start) * (1 - np.cos(np.linspace(0, math.pi, warm))) / 2, rest]
            ),
            "it jumps: the warm-up is linear": np.concatenate([np.full(warm, start), rest]),
            "start and final are swapped": linear_warmup(final, start, total, warm),
            "after the warm-up it must stay, not fall along a cosine": cosine_schedule(
                final, start, total, warmup_steps=warm, start=start
            ),
        },
    )


def check_ema_weights(function: Callable) -> None:
    """`function(momenta)`: the weight of the start and of each later student in the teacher, (n,)
    -> (n + 1,).
    """
    momenta = np.array([0.5, 0.8, 0.9, 0.6])

    def library(sequence):
        students = torch.eye(
            len(sequence) + 1, dtype=torch.float64
        )  # one axis for each, to tell them apart
        teacher = torch.nn.ParameterList([students[0].clone()]).requires_grad_(False)
        for m, student in zip(sequence, students[1:], strict=True):
            library.ema_update(teacher, torch.nn.ParameterList([student]), float(m))
        return teacher[0].numpy()

    right, kept = (
        library(momenta),
        np.cumprod(momenta[::-1])[::-1],
    )  # kept[j]: product of momenta[j:]
    verdict(
        "ema_weights",
        function(momenta.copy()),
        right,
        {
            "the order of time is turned round: the newest student comes last": right[::-1].copy(),
            "momenta are used from the last to the first": library(momenta[::-1]),
            "momentum is what the teacher keeps; the student adds the rest": library(1 - momenta),
            "the student after update j is not shrunk by update j itself": np.concatenate(
                [kept[:1], (1 - momenta) * kept]
            ),
            "later updates shrink a student with their own momenta, not with the one of its "
            "update": np.concatenate(
                [kept[:1], (1 - momenta) * momenta ** np.arange(len(momenta))[::-1]]
            ),
            "a student is shrunk by the updates after it, not by those before it": np.concatenate(
                [kept[:1], (1 - momenta) * np.cumprod(momenta) / momenta]
            ),
            "the common start has a weight too, the product of all momenta": np.concatenate(
                [[0.0], right[1:]]
            ),
            "each student is shrunk by the updates after it": np.concatenate(
                [kept[:1], 1 - momenta]
            ),
            "each student adds only 1 - momentum of itself": np.concatenate([kept, [1.0]]),
        },
    )


def check_accumulated_step(function: Callable) -> None:
    """`function(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp)`: two
    updates, in place.
    """
    generator = torch.Generator().manual_seed(0)
    batches = [[torch.randn(4, 5, 8, generator=generator) for _ in range(3)] for _ in range(2)]
    weights = [torch.randn(6, 8, generator=generator) / 2 for _ in range(2)]

    seen = []  # images in each forward pass

    def after(step):
        student = torch.nn.Linear(8, 6, bias=False)
        teacher, loss_fn = make_teacher(student), DINOLoss(6, student_temp=0.5)
        for module, weight in zip((student, teacher), weights, strict=True):
            module.weight.data.copy_(weight)
            module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[-2]))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
        for parts in batches:
            step([views.clone() for views in parts], student, teacher, loss_fn, optimizer, 0.7, 0.3)
        return student.weight.detach(), teacher.weight.detach(), loss_fn.center

    def whole(parts, *rest):
        return _accumulate([torch.cat(parts, dim=1)], *rest)

    yours = after(function)
    if all(torch.equal(a, b) for a, b in zip(yours, [*weights, torch.zeros(6)], strict=True)):
        yours = None
    elif max(seen, default=0) > 5:
        return print(f"wrong: a network was given {max(seen)} images at once, and a part has 5")
    mistakes = {
        "scale": "the parts' gradients add up: each part's loss has to be divided by their number",
        "center in every "
        "part": "the center moves once an update, from all rows together, not once a part",
        "center of the last "
        "part": "the center needs the rows of all parts, not of the last one alone",
        "center stays": "the center does not move: update_center=False leaves that to you",
        "teacher in every part": "the teacher follows once an update, not once a part",
        "step in every part": "the optimizer steps once an update, not once a part",
        "gradient stays": "the gradient of the update before is still there: zero it",
        "teacher first": "the teacher follows after the optimizer's step, not before it",
        "teacher stays": "the teacher does not move: it follows the student after each update",
        "update in every "
        "part": "this makes an update of every part; the parts belong to one update",
        "reversed": "momentum is what the teacher keeps of itself, not what it takes from the "
        "student",
    }
    verdict(
        "accumulated_step",
        yours,
        after(whole),
        {
            hint: after(lambda *rest, mistake=mistake: _accumulate(*rest, mistake=mistake))
            for mistake, hint in mistakes.items()
        },
    )


def _accumulate(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp, mistake=None):
    """An update from parts of a batch, with one mistake if it is asked for."""
    momentum, rows = 1 - momentum if mistake == "reversed" else momentum, []
    if mistake != "gradient stays":
        optimizer.zero_grad()
    if mistake == "update in every part":
        for part in parts:
            _accumulate([part], student, teacher, loss_fn, optimizer, momentum, teacher_temp)
        return
    for views in parts:
        targets = teacher(views[:2])
        loss = loss_fn(
            student(views), targets, teacher_temp, update_center=mistake == "center in every part"
        )
        (loss if mistake == "scale" else loss / len(parts)).backward()
        rows.append(targets)
        if mistake == "step in every part":
            optimizer.step()
            optimizer.zero_grad()
        if mistake == "teacher in every part":
            library.ema_update(teacher, student, momentum)
    if mistake not in ("center stays", "center in every part"):
        loss_fn.update_center(
            rows[-1] if mistake == "center of the last part" else torch.cat(rows, dim=1)
        )
    if mistake == "teacher first":
        library.ema_update(teacher, student, momentum)
    if mistake != "step in every part":
        optimizer.step()
    if mistake not in ("teacher first", "teacher in every part", "teacher stays"):
        library.ema_update(teacher, student, momentum)
