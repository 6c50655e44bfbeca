"""The checks of notebook 05 about a run's loop and its checkpoint."""

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_lib.course.check import Case, Mistake, check


def training_loop(yours: Callable) -> Callable:
    """`yours(images, orders, batch_size, schedules, make_views, update)` -> list of losses."""
    def loop(*, epoch_step: bool = False, first: int = 0, orders: Callable = lambda o: o,
             ragged: bool = False, views: bool = True,
             whole: bool = False, give: Callable = lambda x: x, strict: bool = False,
             by_epoch: bool = False, numbers: bool = False, all_images: bool = False,
             fractions: bool = False) -> Callable:
        def piece(images, given, size, schedules, make_views, update):
            losses = []
            for epoch, order in enumerate(orders(given)):
                n = len(images) if all_images else len(order)
                stop = n - (0 if ragged else size if strict else size - 1)
                for step, start in enumerate(range(0, stop, size)):
                    at = epoch if by_epoch else first + (step if epoch_step else len(losses))
                    at = epoch * n // size + step if fractions else at
                    now = schedules if whole else {k: v[at] for k, v in schedules.items()}
                    batch = order[start:start + size]
                    batch = batch if numbers else images[batch]
                    losses.append(update(make_views(batch) if views else batch, now))
            return give(losses)
        return piece

    cases = [_looped(10, 4, 2), _looped(12, 4, 3), _looped(11, 4, 3), _looped(6, 6, 1),
             _looped(9, 4, 2, more=7)]
    return check("training_loop", yours, _finished_loop, cases, {
        "the schedules start again in each epoch; the step counts through the whole run":
            loop(epoch_step=True),
        "the schedules are one update ahead: the first update has index 0": loop(first=1),
        "the schedules are one update late": loop(first=-1),
        "the incomplete batch at the end of an epoch is dropped": loop(ragged=True),
        "an epoch that divides evenly loses its last batch: the last start is `len(order) - "
        "batch_size`, so the range ends one later, + 1": loop(strict=True),
        "the schedules have one value for each update, and this takes one for each epoch":
            loop(by_epoch=True),
        "`make_views` takes images, and these are their numbers: `images[numbers]`":
            loop(numbers=True),
        "every epoch has an order of its own, and this takes the first one again":
            loop(orders=lambda o: [o[0]] * len(o)),
        "the images come in their own order: take them by the epoch's `order`":
            loop(orders=lambda o: [torch.arange(len(row)) for row in o]),
        "this makes one epoch: there is one for each of `orders`": loop(orders=lambda o: o[:1]),
        "`update` takes views, so `make_views` comes first": loop(views=False),
        "`now` holds one number of each schedule: the one of this update": loop(whole=True),
        "it gives the last loss, and the losses of all updates are asked for":
            loop(give=lambda x: x[-1]),
        "it gives the mean loss, and the losses of all updates are asked for":
            loop(give=lambda x: sum(x) / len(x)),
        "it gives the sum of the losses, and the losses of all updates are asked for":
            loop(give=sum),
        "it gives the losses of the last epoch alone": _last_epoch,
        "the incomplete batches go into the next epoch; they are dropped": _one_long_order,
        "the last whole batch is missing": _short_loop,
        "the batches of an epoch are those of its `order`, which may be shorter than `images`":
            loop(all_images=True),
        "an epoch has a whole number of updates: divide first, epoch * (len(order) // batch_size)":
            loop(fractions=True),
    }, tolerance=1e-6)


def _finished_loop(images: Tensor, orders: list, batch_size: int, schedules: dict,
                   make_views: Callable, update: Callable) -> list[float]:
    losses = []
    for order in orders:
        for start in range(0, len(order) - batch_size + 1, batch_size):
            now = {name: float(values[len(losses)]) for name, values in schedules.items()}
            views = make_views(images[order[start:start + batch_size]])
            losses.append(update(views, now))
    return losses


def _one_long_order(images: Tensor, orders: list, *rest: Any) -> list[float]:
    return _finished_loop(images, [torch.cat(list(orders))], *rest)


def _last_epoch(images: Tensor, orders: list, batch_size: int, *rest: Any) -> list[float]:
    losses = _finished_loop(images, orders, batch_size, *rest)
    return losses[-(len(orders[0]) // batch_size):]


def _short_loop(images: Tensor, orders: list, batch_size: int, *rest: Any) -> list[float]:
    return _finished_loop(images, [order[:-batch_size] for order in orders], batch_size, *rest)


def _looped(n: int, size: int, epochs: int, more: int = 0) -> Case:
    """The losses, and what each update was given. more: images that no order takes."""

    def case(piece: Callable) -> list:
        generator = torch.Generator().manual_seed(n)
        orders = [torch.randperm(n, generator=generator) for _ in range(epochs)]
        # a wrong step is to be seen, not to fail
        room = max(1, epochs * math.ceil((n + more) / size)) + 1
        momenta = np.linspace(3.0, 7.0, room) ** 2
        schedules = {"lr": np.linspace(0.1, 0.9, room), "momentum": momenta}
        seen = []

        def update(views: list[Tensor], now: dict) -> float:
            rows = torch.stack([torch.as_tensor(view) for view in views]).double()
            values = torch.stack([torch.as_tensor(now[k]).double().sum() for k in schedules])
            seen.append(torch.cat([rows.flatten(), values]))
            return float((seen[-1] * torch.arange(1, len(seen[-1]) + 1)).sum())

        images = torch.arange(n + more) ** 2 + 5
        losses = piece(images, orders, size, schedules, lambda x: [x, 1000.0 + x], update)
        if isinstance(losses, list | tuple):
            losses = torch.tensor([float(loss) for loss in losses], dtype=torch.float64)
        return None if losses is None else [losses, *seen]

    return case


def take_checkpoint(yours: Callable) -> Callable:
    """`yours(step, student, teacher, center, optimizer)` -> dict of these five."""
    def without(name: str) -> Callable:
        return lambda *run: {k: v for k, v in _checkpoint(*run).items() if k != name}

    def live(*names: str) -> Callable:
        return lambda *run: _checkpoint(*run) | {n: _states(*run)[n] for n in names}

    names = ("step", "student", "teacher", "center", "optimizer")
    mistakes = {f"the dict has no {name!r}": without(name) for name in names}
    parts = {"the networks' tensors": ("student", "teacher"), "the center": ("center",),
             "the optimizer's state": ("optimizer",)}
    for n in (3, 2, 1):
        for some in itertools.combinations(parts, n):
            what = " and ".join(some) if n < 3 else "all of it"
            mistakes[f"{what} changed while the run went on: copy the tensors (`detach()` and "
                     "`dict()` share their memory)"] = live(*(x for p in some for x in parts[p]))
    mistakes |= {
        "the networks' buffers are missing, such as a batch norm's averages: take `state_dict()`":
            _without_buffers,
        "student and teacher are exchanged":
            lambda step, s, t, *rest: _checkpoint(step, t, s, *rest),
        "the teacher in it is the student":
            lambda step, s, t, *rest: _checkpoint(step, s, s, *rest),
        "the student in it is the teacher":
            lambda step, s, t, *rest: _checkpoint(step, t, t, *rest),
    }
    return check("take_checkpoint", yours, _checkpoint, [_saved(2), _saved(5)], mistakes)


def _states(step: int, student: nn.Module, teacher: nn.Module, center: Tensor,
            optimizer: torch.optim.Optimizer) -> dict:
    return {"step": step, "student": student.state_dict(), "teacher": teacher.state_dict(),
            "center": center, "optimizer": optimizer.state_dict()}


def _checkpoint(*run: Any) -> dict:
    return copy.deepcopy(_states(*run))


def _without_buffers(step: int, student: nn.Module, teacher: nn.Module, *rest: Any) -> dict:
    saved = _checkpoint(step, student, teacher, *rest)
    nets = {"student": student, "teacher": teacher}
    return saved | {name: {key: saved[name][key] for key, _ in net.named_parameters()}
                    for name, net in nets.items()}


def _saved(steps: int) -> Case:
    """What a checkpoint holds once the run has gone on."""

    def case(piece: Callable) -> list | None:
        generator = torch.Generator().manual_seed(steps)
        student, teacher = (nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)) for _ in range(2))
        for net in (student, teacher):
            for p in net.parameters():
                p.data.normal_(generator=generator)
        center, optimizer = torch.zeros(4), torch.optim.AdamW(student.parameters(), lr=0.1)

        def go_on(n: int) -> None:
            for _ in range(n):
                x = torch.randn(8, 3, generator=generator)
                optimizer.zero_grad()
                (student(x) - teacher(x).detach()).square().mean().backward()
                optimizer.step()
                with torch.no_grad():
                    center.add_(teacher(x).mean(0))
                    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
                        t.lerp_(s, 0.3)

        go_on(steps)
        saved = piece(steps, student, teacher, center, optimizer)
        go_on(3)
        return None if saved is None else _contents(saved)

    return case


def _contents(saved: Any) -> list[Tensor]:
    """The tensors of a checkpoint in a fixed order; -1 for what is missing."""
    if not isinstance(saved, dict):
        raise TypeError(f"a checkpoint is a dict, and this is a {type(saved).__name__}")
    found = [torch.as_tensor(saved.get("step", -1.0), dtype=torch.float64)]
    for name in ("student", "teacher", "optimizer"):
        part = saved.get(name, {})
        if not isinstance(part, dict) or (name == "optimizer" and part and "state" not in part):
            raise Mistake(f"{name!r} holds a {type(part).__name__}: take its `state_dict()`")
        if name == "optimizer":
            if "state" in part and "param_groups" not in part:
                raise Mistake("the optimizer's groups are missing: take its whole `state_dict()`")
            part = {f"{i}{k}": v for i, of in part.get("state", {}).items() for k, v in of.items()}
        found += [torch.as_tensor(part[key]) for key in sorted(part)] or [torch.tensor(-1.0)]
    return [*found, torch.as_tensor(saved.get("center", -1.0))]
