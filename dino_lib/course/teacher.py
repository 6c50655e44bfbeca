"""The self-checks of notebook 04: the teacher.

Those of its schedules are in plan.py, those of a whole update in step.py and parts.py.
"""

import copy
from collections.abc import Callable

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from dino_lib import teacher as library
from dino_lib.course.check import Case, Mistake, check
from dino_lib.course.parts import accumulated_step
from dino_lib.course.plan import (
    cosine_schedule,
    ema_weights,
    momentum_for,
    temperature_schedule,
)
from dino_lib.course.step import train_step

__all__ = ["accumulated_step", "cosine_schedule", "ema_update", "ema_weights", "make_teacher",
           "momentum_for", "temperature_schedule", "train_step"]


BUFFERS = "buffers are averaged, too: the update is for parameters only"


def ema_update(yours: Callable) -> Callable:
    """`yours(teacher, student, momentum)`: the teacher's parameters move, in place."""
    return check("ema_update", yours, library.ema_update,
                 [_followed(0.9), _followed(0.25), _followed(1.0), _followed(0.0)], {
        "the momentum is what the teacher keeps of itself; the student adds the rest":
            lambda t, s, m: library.ema_update(t, s, 1 - m),
        "the teacher does not change: `t = ...` only gives the name to another tensor; change it "
        "in place": lambda t, s, m: None,
        "the student adds all of itself; it should add 1 - momentum of itself":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + b),
        "the student adds momentum of itself; it should add 1 - momentum":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + m * b),
        "the old teacher has to shrink too, by the momentum":
            lambda t, s, m: _each(t, s, lambda a, b: a + (1 - m) * b),
        "the student's share is missing: the teacher only shrinks":
            lambda t, s, m: _each(t, s, lambda a, b: m * a),
        "the momentum is added to the teacher; the teacher is to be multiplied by it":
            lambda t, s, m: _each(t, s, lambda a, b: a + m + (1 - m) * b),
        "the shares have to add up to 1: momentum and 1 - momentum":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + (1 + m) * b),
        "the momentum is fixed: take the argument":
            lambda t, s, m: library.ema_update(t, s, 0.996),
        "the teacher becomes a copy of the student: mix the two":
            lambda t, s, m: library.ema_update(t, s, 0.0),
        "the student is taken away; its share is added":
            lambda t, s, m: _each(t, s, lambda a, b: m * a - (1 - m) * b),
        "only the last parameter moves: is the update inside of the loop?":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + (1 - m) * b, slice(-1, None)),
        "only the first parameter moves: is a `return` inside of the loop?":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + (1 - m) * b, slice(0, 1)),
        "only the outer modules' own parameters move; parameters() goes down to all of them":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + (1 - m) * b, slice(0, 4)),
        "only the matrices move; biases and other vectors follow too":
            lambda t, s, m: _each(t, s, lambda a, b: m * a + (1 - m) * b if a.ndim > 1 else a),
    })


def _followed(momentum: float) -> Case:
    """Both networks' parameters and buffers after an update."""

    def case(update: Callable) -> list[Tensor]:
        nets = [nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 2)))
                for _ in range(2)]
        generator = torch.Generator().manual_seed(0)
        for net in nets:
            for tensor in [*net.parameters(), net[1].running_mean]:
                tensor.data.normal_(generator=generator)
        student, follower = nets[0], nets[1].requires_grad_(False)
        before = [copy.deepcopy(net.state_dict()) for net in nets]
        held = list(follower.parameters())
        try:
            update(follower, student, momentum)
        except RuntimeError as error:  # batch norm counts its batches: a buffer of whole numbers
            if "Long" in str(error):
                raise Mistake(BUFFERS) from error
            raise
        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            raise Mistake("autograd stays off after it: `with torch.no_grad():` ends by itself")
        if not _same(before[0], student.state_dict()):
            raise Mistake("the student moves, and it must stay as it is")
        if not all(p.requires_grad for p in student.parameters()):
            raise Mistake("the student has lost its gradient: it still learns")
        if not torch.equal(before[1]["1.running_mean"], follower[1].running_mean):
            raise Mistake(BUFFERS)
        if any(p.requires_grad or not p.is_leaf for p in follower.parameters()):
            raise Mistake("autograd has recorded the update: put it under torch.no_grad()")
        if not all(p is q for p, q in zip(held, follower.parameters(), strict=True)):
            raise Mistake("the teacher has other Parameters than before; change them in place")
        return list(follower.parameters())

    return case


def _same(a: dict, b: dict) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a)


def _each(t: nn.Module, s: nn.Module, rule: Callable, which: slice = slice(None)) -> None:
    """rule(teacher's, student's) for each parameter, in place."""
    pairs = list(zip(t.parameters(), s.parameters(), strict=True))
    with torch.no_grad():
        for a, b in pairs[which]:
            a.copy_(rule(a, b))


def make_teacher(yours: Callable) -> Callable:
    """`yours(student)`: a copy with its own storage, no gradient, no drop path."""
    return check("make_teacher", yours, library.make_teacher,
                 [_built(nested=False), _built(nested=True)], {})


class _Block(nn.Module):
    """A residual branch with drop path, as in a transformer."""

    def __init__(self):
        super().__init__()
        self.branch, self.drop_path = nn.Linear(6, 6), DropPath(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop_path(self.branch(x))


def _built(nested: bool) -> Case:
    """The teacher's state; what is wrong with the rest of it, the case says itself."""

    def case(build: Callable) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            drop = _Block() if nested else DropPath(0.5)
            student = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), drop, nn.Linear(6, 3))
            student(torch.randn(16, 4))  # its batch norm has seen something
            before = copy.deepcopy(student.state_dict())
            teacher = build(student)
            if teacher is None:
                raise Mistake("it gives nothing: return the teacher")
            if not isinstance(teacher, nn.Module):
                raise Mistake(f"it gives a {type(teacher).__name__}; the teacher is a network")
            _look_at(student, teacher, before)
            return list(teacher.state_dict().values())

    return case


def _look_at(student: nn.Module, teacher: nn.Module, before: dict) -> None:
    """Raises Mistake with the first thing that is wrong with a teacher."""
    shared = {p.data_ptr() for p in student.parameters()}
    if teacher is student:
        raise Mistake("this is the student itself: the teacher is a copy")
    if any(p.data_ptr() in shared for p in teacher.parameters()):
        raise Mistake("teacher and student share their storage: the copy has to be a deep one")
    if not _same(before, student.state_dict()):
        raise Mistake("the student has changed: only the copy may")
    if not all(p.requires_grad for p in student.parameters()):
        raise Mistake("the student has lost its gradient: switch it off in the copy")
    if any(p.requires_grad for p in teacher.parameters()):
        raise Mistake("the teacher's parameters still take a gradient: requires_grad_(False)")
    if teacher.state_dict().keys() != before.keys() or not _same(before, teacher.state_dict()):
        raise Mistake("the teacher starts apart from the student: it is a copy, buffers too")
    norms = [m for m in teacher.modules() if isinstance(m, nn.BatchNorm1d)]
    if not (teacher.training and all(m.training for m in norms)):
        raise Mistake("the teacher is in eval mode; batch norm is to use its own batch, as in the "
                      "official code, so switch off drop path alone")
    x = torch.randn(64, 4)
    copies = [copy.deepcopy(net) for net in (teacher, student)]  # a look changes running means
    noisy = [not torch.equal(net(x), net(x)) for net in copies]
    if noisy[0]:
        raise Mistake("the teacher still drops paths at random: set drop_prob to 0 in each module "
                      "that has one, at any depth (teacher.modules())")
    twice = copy.deepcopy(teacher).train()
    if not torch.equal(twice(x), twice(x)):
        raise Mistake("drop path is in eval mode, and one teacher.train() turns it on again: set "
                      "its drop_prob to 0")
    if any(m.drop_prob for m in teacher.modules() if isinstance(m, DropPath)):
        raise Mistake("drop_prob is the share of the paths that is dropped: 0, so that none is")
    if not noisy[1]:
        raise Mistake("the student has lost its drop path: switch it off in the copy")
