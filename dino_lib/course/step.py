"""The check of `train_step`, the whole update of notebook 04, and the finished piece."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dino_lib.course.check import Case, Mistake, check
from dino_lib.loss import DINOLoss
from dino_lib.run.step import set_schedules
from dino_lib.teacher import ema_update

Now = Mapping[str, float]


def finished_step(views: Sequence[Tensor], student: nn.Module, teacher: nn.Module,
                  loss_fn: Callable, optimizer: torch.optim.Optimizer, now: Now,
                  clip_grad: float = 3.0) -> float:
    """One update from views [(B, 3, h, w)], globals first -> its loss; `now` holds this step's lr,
    weight_decay, momentum and teacher_temp.
    """
    set_schedules(optimizer, now)
    with torch.no_grad():
        targets = teacher(views[:2])
    loss = loss_fn(student(views), targets, now["teacher_temp"])
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
    optimizer.step()
    ema_update(teacher, student, now["momentum"])
    return loss.item()


def train_step(yours: Callable) -> Callable:
    """`yours(views, student, teacher, loss_fn, optimizer, now, clip_grad)`: one update -> loss."""
    cases = [_two_updates(0.05), _two_updates(100.0), _two_updates(100.0, frozen=False),
             _two_updates(None)]
    hints = {hint: _with(mistake) for mistake, hint in MISTAKES.items()}
    hints |= {f"two things: {MISTAKES[a]}; and {MISTAKES[b]}": _with(a, b) for a, b in PAIRS}
    return check("train_step", yours, finished_step, cases, hints)


MISTAKES = {
    "center first": "the center moves before the loss is taken: the loss moves it itself, after",
    "center both": "the center moves before the loss is taken, and again in it: loss_fn moves it "
                   "itself, after",
    "center twice": "the center moves twice an update: the loss has moved it already",
    "center stays": "the center does not move: call loss_fn without update_center=False",
    "teacher first": "the teacher follows before the optimizer's step, so it averages a student "
                     "that is one update older",
    "teacher stays": "the teacher does not move: it follows at the end of the step",
    "student follows": "the student follows the teacher: ema_update takes the teacher first",
    "reversed": "the momentum is reversed: it is what the teacher keeps of itself",
    "no zero": "the gradient of the update before is still there: optimizer.zero_grad() is missing",
    "zero after backward": "zero_grad comes between backward and step: the gradient is gone",
    "no backward": "the loss has no backward: the student gets no gradient",
    "no step": "the optimizer does not step: the student stays",
    "no clip": "the gradient's norm is not clipped where it counts, between backward and step: "
               "nn.utils.clip_grad_norm_",
    "late clip": "the gradient is clipped too late or too early: after backward, before the step",
    "clip values": "the entries of the gradient are clipped; it is the norm of the whole one",
    "clip each": "each tensor is clipped by itself; here it is the norm of all of them together",
    "clip default": "the norm is clipped at a number of your own, not at `clip_grad`",
    "no schedules": "neither lr nor weight_decay of `now` reaches the optimizer's groups",
    "no lr": "the learning rate of `now` does not reach both of the optimizer's groups",
    "lr first group": "only the first group gets the learning rate; both need it",
    "lr second group": "only the second group gets the learning rate; both need it",
    "no decay": "the weight decay of `now` does not reach the optimizer's first group",
    "decay on all": "the second group holds biases and scale vectors: it gets no weight decay",
    "decay on second": "the weight decay belongs to the first group, the matrices",
    "late schedules": "lr and weight_decay are set after the optimizer's step: too late",
    "swapped": "lr and weight_decay are swapped",
    "temperature": "the teacher's temperature of this step is now[\"teacher_temp\"]",
    "momentum": "the teacher's momentum of this step is now[\"momentum\"]",
    "other views": "the teacher is to see the two global views: the first two",
    "student global": "the student is to see all views, not the two global ones alone",
    "student local": "the student is to see all views, not the local ones alone",
    "another loss": "the number is not the loss that this update was taken on",
}
PAIRS = [("no clip", "no schedules"), ("no clip", "no zero"), ("no clip", "teacher first"),
         ("no schedules", "no zero"), ("no clip", "decay on all"), ("no zero", "teacher first"),
         ("center first", "teacher first"), ("no clip", "no decay"), ("no clip", "center first"),
         ("no backward", "no zero"), ("no clip", "lr first group")]


def _with(*mistakes: str) -> Callable:
    """The step with these mistakes."""
    return lambda *arguments: _update(*arguments, mistakes=mistakes)


def _update(views, student, teacher, loss_fn, optimizer, now, clip_grad=3.0, mistakes=()):
    """One update of DINO, with mistakes if they are asked for."""
    parameters = [p for p in student.parameters() if p.requires_grad]
    if "late schedules" not in mistakes:
        _set(optimizer, now, mistakes)
    with torch.no_grad():
        targets = teacher(views[2:] if "other views" in mistakes else views[:2])
    if {"center first", "center both"} & set(mistakes):
        loss_fn.update_center(targets)
    moves = not {"center first", "center stays"} & set(mistakes)
    temperature = 0.04 if "temperature" in mistakes else now["teacher_temp"]
    seen = views[:2] if "student global" in mistakes else views
    seen = views[2:] if "student local" in mistakes else seen
    loss = loss_fn(student(seen), targets, temperature, update_center=moves)
    if "center twice" in mistakes:
        loss_fn.update_center(targets)
    if "no zero" not in mistakes:
        optimizer.zero_grad()
    if "no backward" not in mistakes:
        loss.backward()
    if "zero after backward" in mistakes:
        optimizer.zero_grad()
    _clip(parameters, 3.0 if "clip default" in mistakes else clip_grad, mistakes)
    momentum = 0.996 if "momentum" in mistakes else now["momentum"]
    momentum = 1 - momentum if "reversed" in mistakes else momentum
    if "teacher first" in mistakes:
        ema_update(teacher, student, momentum)
    if "no step" not in mistakes:
        optimizer.step()
    if "late schedules" in mistakes:
        _set(optimizer, now, mistakes)
    if "student follows" in mistakes:
        ema_update(student, teacher, momentum)
    elif not {"teacher first", "teacher stays"} & set(mistakes):
        ema_update(teacher, student, momentum)
    return 0.0 if "another loss" in mistakes else loss.item()


def _set(optimizer, now, mistakes):
    """lr and weight decay of this step."""
    lr, decay = now["lr"], now["weight_decay"]
    if "swapped" in mistakes:
        lr, decay = decay, lr
    first, second = optimizer.param_groups
    without = {"no schedules", "no lr"} & set(mistakes)
    if not without and "lr second group" not in mistakes:
        first["lr"] = lr
    if not without and "lr first group" not in mistakes:
        second["lr"] = lr
    if not {"no schedules", "no decay", "decay on second"} & set(mistakes):
        first["weight_decay"] = decay
    if {"decay on all", "decay on second"} & set(mistakes):
        second["weight_decay"] = decay


def _clip(parameters, clip_grad, mistakes):
    """The gradient's norm, clipped."""
    if {"no clip", "late clip", "no backward"} & set(mistakes):
        return
    if "clip values" in mistakes:
        nn.utils.clip_grad_value_(parameters, clip_grad)
    elif "clip each" in mistakes:
        for p in parameters:
            nn.utils.clip_grad_norm_(p, clip_grad)
    else:
        nn.utils.clip_grad_norm_(parameters, clip_grad)


class _Net(nn.Module):
    """A student for views of two sizes: a list of (B, 3, h, w) -> (V, B, 12)."""

    def __init__(self):
        super().__init__()
        self.body, self.last = nn.Linear(3, 5), nn.Linear(5, 12, bias=False)

    def forward(self, views):
        return torch.stack([self.last(self.body(view.mean((2, 3))).tanh()) for view in views])


class _Watched(DINOLoss):
    """The library's loss, which also looks at what it is given."""

    def forward(self, student, teacher, *rest, **options):
        if torch.is_tensor(student) and torch.is_tensor(teacher) and _swapped(student, teacher):
            raise Mistake("the student's answer goes first into loss_fn, then the teacher's")
        if torch.is_tensor(teacher) and teacher.requires_grad:
            raise Mistake("the targets carry a gradient: the teacher looks under torch.no_grad()")
        if torch.is_tensor(student) and not student.requires_grad:
            raise Mistake("the student looks without a gradient, and it has to learn from this")
        if torch.is_tensor(teacher) and len(teacher) > 2:
            raise Mistake("the teacher sees all views; it gets the two global ones, views[:2]")
        return super().forward(student, teacher, *rest, **options)


def _swapped(student: Tensor, teacher: Tensor) -> bool:
    """Whether the two look exchanged: by their views, or by who takes a gradient."""
    return (len(student) < len(teacher) if student.requires_grad == teacher.requires_grad
            else teacher.requires_grad)


def _two_updates(clip_grad: float | None, frozen: bool = True) -> Case:
    """Both losses, then student, teacher, center and the optimizer's settings after two updates.

    clip_grad: the norm, or None for the default on gradients that are larger. frozen: whether the
    teacher's parameters say themselves that they take no gradient.
    """

    def case(step: Callable) -> list:
        generator = torch.Generator().manual_seed(1)
        student, teacher, loss_fn = _Net(), _Net(), _Watched(12, student_temp=0.5)
        for net in (student, teacher):
            for p in net.parameters():
                p.data.normal_(generator=generator).mul_(2.0)
        teacher.requires_grad_(not frozen)
        matrices = [p for p in student.parameters() if p.ndim > 1]
        groups = [{"params": matrices}, {"params": [student.body.bias], "weight_decay": 0.0}]
        optimizer = torch.optim.SGD(groups, lr=0.3, weight_decay=0.2)
        losses, options = [], () if clip_grad is None else (clip_grad,)
        for now in NOW:
            views = [torch.randn(4, 3, size, size, generator=generator) for size in (3, 3, 2, 2)]
            views = [(20.0 if clip_grad is None else 3.0) * view for view in views]
            losses.append(_number(step(views, student, teacher, loss_fn, optimizer, now, *options)))
        if not (student.training and teacher.training):
            raise Mistake("both networks stay in train mode: no eval() in a step")
        keys = ("lr", "weight_decay")
        settings = [group[key] for group in optimizer.param_groups for key in keys]
        networks = [p for net in (student, teacher) for p in net.parameters()]
        return [*losses, *networks, 10 * loss_fn.center, *settings]

    return case


def _number(loss):
    """The loss that a step gave, as a number."""
    if loss is None:
        raise Mistake("it returns nothing: return the loss, as a number")
    if torch.is_tensor(loss) and loss.requires_grad:
        raise Mistake("it returns the loss with its graph, which then stays in memory: loss.item()")
    return loss


NOW = [{"lr": 0.5, "weight_decay": 0.1, "momentum": 0.7, "teacher_temp": 0.3},
       {"lr": 0.2, "weight_decay": 0.4, "momentum": 0.9, "teacher_temp": 0.5}]
