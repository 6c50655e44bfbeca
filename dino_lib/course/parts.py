"""The check of notebook 04's last exercise: an update from the parts of a batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dino_lib.course.check import Case, Mistake, check
from dino_lib.loss import DINOLoss
from dino_lib.teacher import ema_update, make_teacher


def accumulated_step(yours: Callable) -> Callable:
    """`yours(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp)`: one update."""
    hints = {hint: _with(mistake) for mistake, hint in MISTAKES.items()}
    cases = [_two_updates(3, 5), _two_updates(2, 4), _two_updates(1, 6)]
    return check("accumulated_step", yours, _with(), cases, hints, used=False)


MISTAKES = {
    "no division": "the parts' gradients add up: divide each part's loss by their number",
    "product": "each part's loss is divided by the number of parts, not multiplied",
    "center in every part": "the center moves once an update, from all rows together, not once a "
                            "part",
    "center moves twice": "the loss moves the center as well: update_center=False in every part",
    "center of the last part": "the center needs the rows of all parts, not of the last one alone",
    "center of the first part": "the center needs the rows of all parts, not of the first alone",
    "center stays": "the center does not move: update_center=False leaves that to you",
    "center first": "the center moves before the losses are taken: it moves after",
    "new teacher": "the center moves with what the new teacher says; it needs the rows that the "
                   "losses were taken with",
    "teacher in every part": "the teacher follows once an update, not once a part",
    "step in every part": "the optimizer steps once an update, not once a part",
    "step, no zero": "the optimizer steps once an update, after the last part; here each part has "
                     "a step",
    "step and teacher": "optimizer and teacher move once an update, after the last part; here they "
                        "move in each part",
    "zero in every part": "zero_grad in every part throws away the gradient of the parts before",
    "gradient stays": "the gradient of the update before is still there: zero it",
    "late zero": "zero_grad comes after backward: nothing is left for the step",
    "no step": "the optimizer does not step",
    "no backward": "no part's loss has its backward",
    "backward of the last part": "only the last part's loss has its backward",
    "teacher first": "the teacher follows after the optimizer's step, not before it",
    "teacher stays": "the teacher does not move: it follows the student after each update",
    "update in every part": "this makes an update of every part; the parts belong to one update",
    "reversed": "momentum is what the teacher keeps of itself, not what it takes from the student",
    "student follows": "the student follows the teacher: ema_update takes the teacher first",
    "other views": "the teacher sees the two global views: the first two",
    "student global": "the student sees all views of a part, not the two global ones alone",
    "mean over images": "the number of parts divides the loss, not the number of images in one",
}

STEPS = ("step in every part", "step, no zero", "step and teacher")


def _with(mistake: str | None = None) -> Callable:
    """The accumulated step, with a mistake if one is named."""

    def step(parts, *rest):
        if mistake == "update in every part":
            for part in parts:
                _accumulate([part], *rest)
        else:
            _accumulate(parts, *rest, mistake)

    return step


def _accumulate(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp, mistake=None):
    """An update from parts of a batch, with one mistake if it is asked for."""
    momentum, rows = 1 - momentum if mistake == "reversed" else momentum, []
    if mistake != "gradient stays":
        optimizer.zero_grad()
    if mistake == "center first":
        loss_fn.update_center(torch.cat([teacher(part[:2]) for part in parts], dim=1))
    for number, views in enumerate(parts, 1):
        if mistake == "zero in every part":
            optimizer.zero_grad()
        targets = teacher(views[1:3] if mistake == "other views" else views[:2])
        moves = mistake in ("center in every part", "center moves twice")
        seen = views[:2] if mistake == "student global" else views
        loss = loss_fn(student(seen), targets, teacher_temp, update_center=moves)
        share = {"no division": 1, "product": 1 / len(parts),
                 "mean over images": views.shape[1]}.get(mistake, len(parts))
        skipped = mistake == "backward of the last part" and number < len(parts)
        if mistake != "no backward" and not skipped:
            (loss / share).backward()
        rows.append(targets)
        if mistake in STEPS:
            optimizer.step()
        if mistake == "step in every part":
            optimizer.zero_grad()
        if mistake in ("teacher in every part", "step and teacher"):
            ema_update(teacher, student, momentum)
    if mistake == "late zero":
        optimizer.zero_grad()
    if mistake not in ("center stays", "center in every part", "center first", "new teacher"):
        chosen = {"center of the last part": rows[-1:], "center of the first part": rows[:1]}
        loss_fn.update_center(torch.cat(chosen.get(mistake, rows), dim=1))
    if mistake == "teacher first":
        ema_update(teacher, student, momentum)
    if mistake not in (*STEPS, "no step"):
        optimizer.step()
    if mistake == "student follows":
        ema_update(student, teacher, momentum)
    elif mistake not in ("teacher first", "teacher in every part", "teacher stays",
                         "step and teacher"):
        ema_update(teacher, student, momentum)
    if mistake == "new teacher":
        loss_fn.update_center(torch.cat([teacher(part[:2]) for part in parts], dim=1))


class _Mark(torch.autograd.Function):
    """The identity, which keeps the number of rows whose graphs have had no backward yet."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, waiting: list[int]) -> Tensor:
        ctx.waiting, ctx.rows = waiting, x[..., 0].numel()
        waiting.append(ctx.rows)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        if ctx.rows in ctx.waiting:
            ctx.waiting.remove(ctx.rows)
        return gradient, None


def _two_updates(n_parts: int, images: int) -> Case:
    """Student, teacher and center after two updates of `n_parts` parts with `images` each."""

    def case(step: Callable) -> list[Tensor]:
        generator = torch.Generator().manual_seed(n_parts)
        student = nn.Linear(8, 6, bias=False)
        teacher, loss_fn = make_teacher(student), DINOLoss(6, student_temp=0.5)
        waiting: list[int] = []
        for module in (student, teacher):
            module.weight.data.copy_(torch.randn(6, 8, generator=generator) / 2)
            module.register_forward_pre_hook(lambda _, inputs: _count(inputs[0], images))
        student.register_forward_hook(lambda *found: _Mark.apply(found[2], waiting))
        student.register_forward_hook(lambda *_: _graphs(waiting, 4 * images))
        optimizer = torch.optim.SGD(student.parameters(), lr=0.5)
        for _ in range(2):
            parts = [torch.randn(4, images, 8, generator=generator) for _ in range(n_parts)]
            step(parts, student, teacher, loss_fn, optimizer, 0.7, 0.3)
            waiting.clear()
        return [student.weight, teacher.weight, loss_fn.center]

    return case


def _count(views, images):
    """A part is all that a network may see at once."""
    if views.shape[-2] > images:
        raise Mistake(f"a network gets {views.shape[-2]} images at once, and a part has {images}")


def _graphs(waiting, rows):
    if sum(waiting) > rows:
        raise Mistake("the graph of a part is still kept when the next one comes: call backward "
                      "for each part, so that memory holds one graph at a time")
