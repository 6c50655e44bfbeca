"""Answers to the pieces of notebook 04: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import copy
import math

import numpy as np
import torch
from timm.layers import DropPath
from torch import nn

from dino_lib import ema_update, make_teacher, schedules

# --- ema_update ---------------------------------------------------------------------------------


def ema_in_place_of_data(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.data = momentum * t.data + (1 - momentum) * s.data


@torch.no_grad()
def ema_lerp(teacher, student, momentum):
    torch._foreach_lerp_(list(teacher.parameters()), list(student.parameters()), 1 - momentum)


def ema_by_name(teacher, student, momentum):
    source = dict(student.named_parameters())
    for name, t in teacher.named_parameters():
        t.data.copy_(momentum * t.data + (1 - momentum) * source[name].detach())


def ema_freezes_the_student(teacher, student, momentum):
    student.requires_grad_(False)
    ema_update(teacher, student, momentum)


def ema_turns_autograd_off(teacher, student, momentum):
    torch.set_grad_enabled(False)
    ema_update(teacher, student, momentum)


def ema_of_one_level(teacher, student, momentum):
    for t, s in zip(teacher.children(), student.children(), strict=True):
        own = zip(t.parameters(recurse=False), s.parameters(recurse=False), strict=True)
        for a, b in own:
            a.data.lerp_(b.data, 1 - momentum)


@torch.no_grad()
def ema_returns_early(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.mul_(momentum).add_(s, alpha=1 - momentum)
        return


def ema_names_only(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t = momentum * t + (1 - momentum) * s


def ema_state_dict(teacher, student, momentum):
    mixed = {
        k: momentum * v + (1 - momentum) * student.state_dict()[k]
        for k, v in teacher.state_dict().items()
    }
    teacher.load_state_dict(mixed)


def ema_new_parameters(teacher, student, momentum):
    for (name, t), s in zip(list(teacher.named_parameters()), student.parameters(), strict=True):
        module = teacher.get_submodule(name.rpartition(".")[0])
        mixed = momentum * t.detach() + (1 - momentum) * s.detach()
        setattr(module, name.rpartition(".")[2], nn.Parameter(mixed))


def ema_with_graph(teacher, student, momentum):
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.mul_(momentum).add_(s, alpha=1 - momentum)


def ema_of_weights(teacher, student, momentum):
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            if t.ndim > 1:
                t.lerp_(s, 1 - momentum)


def ema_reversed(teacher, student, momentum):
    ema_update(teacher, student, 1 - momentum)


def ema_student_moves(teacher, student, momentum):
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.mul_(momentum).add_(s.mul_(1 - momentum))


def ema_fixed(teacher, student, momentum):
    ema_update(teacher, student, 0.996)


def ema_copies(teacher, student, momentum):
    teacher.load_state_dict(student.state_dict())


# --- make_teacher -------------------------------------------------------------------------------


def teacher_by_state(student):
    teacher = copy.deepcopy(student)
    teacher.load_state_dict(student.state_dict())
    for p in teacher.parameters():
        p.requires_grad = False
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return teacher


def teacher_that_drops_all(student):
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 1.0
    return teacher


def teacher_in_eval_drop_path(student):
    teacher = copy.deepcopy(student)
    teacher.requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.eval()
    return teacher


def teacher_without_module(student):
    teacher = copy.deepcopy(student).requires_grad_(False)
    for name, module in list(teacher.named_modules()):
        if isinstance(module, DropPath):
            parent = teacher.get_submodule(name.rpartition(".")[0])
            setattr(parent, name.rpartition(".")[2], nn.Identity())
    return teacher


def quiet(model):
    for module in model.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return model


def teacher_children_only(student):
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.children():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return teacher


def teacher_of_quiet_student(student):
    return copy.deepcopy(quiet(student)).requires_grad_(False)


def teacher_frozen_student(student):
    return quiet(copy.deepcopy(student.requires_grad_(False)))


def teacher_other_start(student):
    teacher = quiet(copy.deepcopy(student)).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return teacher


def teacher_shallow(student):
    return quiet(copy.copy(student)).requires_grad_(False)


def teacher_shared_state(student):
    teacher = quiet(copy.deepcopy(student))
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        t.data = s.data
    return teacher.requires_grad_(False)


def teacher_some_parameters(student):
    teacher = quiet(copy.deepcopy(student))
    for p in teacher.parameters():
        if p.ndim > 1:
            p.requires_grad_(False)
    return teacher


def teacher_forgotten_return(student):
    quiet(copy.deepcopy(student)).requires_grad_(False)
    print(end="")


# --- cosine_schedule ----------------------------------------------------------------------------


def cosine_list(base, final, total_steps, warmup_steps=0, start=0.0):
    values = []
    for step in range(total_steps):
        if step < warmup_steps:
            share = step / (warmup_steps - 1) if warmup_steps > 1 else 0.0
            values.append(start + (base - start) * share)
        else:
            i, n = step - warmup_steps, total_steps - warmup_steps
            values.append(final + (base - final) * math.cos(math.pi * i / n / 2) ** 2)
    return values


def cosine_tensor(base, final, total_steps, warmup_steps=0, start=0.0):
    n = total_steps - warmup_steps
    i = torch.arange(n, dtype=torch.float64)
    rise = torch.linspace(start, base, warmup_steps, dtype=torch.float64)
    fall = (base + final) / 2 + (base - final) / 2 * torch.cos(torch.pi * i / n)
    return torch.cat([rise, fall])


def cosine_wrong(**options):
    def schedule(base, final, total, warmup=0, start=0.0, last=0, pi=math.pi, ends=True, late=0):
        n = total - warmup
        i = np.arange(n) + late * warmup
        fall = final + 0.5 * (base - final) * (1 + np.cos(pi * i / max(1, n - last)))
        return np.concatenate([np.linspace(start, base, warmup, endpoint=ends), fall])

    return lambda *given: schedule(*given, **options)


# --- train_step ---------------------------------------------------------------------------------


def step_in_eval(views, student, teacher, *others):
    teacher.eval()
    return step_variant()(views, student, teacher, *others)


def step_variant(**how):
    """A step with the parts in `how` changed."""

    def step(views, student, teacher, loss_fn, optimizer, now, clip_grad=3.0):
        if how.get("zero") == "first":
            optimizer.zero_grad(set_to_none=False)
        if how.get("schedules") == "every group":
            for group in optimizer.param_groups:
                group["lr"], group["weight_decay"] = now["lr"], now["weight_decay"]
        elif how.get("schedules") != "none":
            for group, decay in zip(
                optimizer.param_groups, (now["weight_decay"], 0.0), strict=True
            ):
                group.update(lr=now["lr"], weight_decay=decay)
        if how.get("no_grad", True):
            with torch.no_grad():
                targets = teacher(views[how.get("teacher", slice(0, 2))])
        else:
            targets = teacher(views[:2])
        if how.get("detach"):
            targets = targets.detach()
        if how.get("center") == "both":
            loss_fn.update_center(targets)
        if how.get("swapped"):
            loss = loss_fn(targets, student(views), now["teacher_temp"])
        elif how.get("center") == "first":
            loss_fn.update_center(targets)
            loss = loss_fn(student(views), targets, now["teacher_temp"], update_center=False)
        elif how.get("center") == "by hand":
            loss = loss_fn(student(views), targets, now["teacher_temp"], update_center=False)
            loss_fn.update_center(targets)
        else:
            loss = loss_fn(student(how.get("student", list)(views)), targets, now["teacher_temp"])
            if how.get("center") == "twice":
                loss_fn.update_center(targets)
        if how.get("zero", "here") == "here":
            student.zero_grad()
        momentum = 1 - now["momentum"] if how.get("reversed") else now["momentum"]
        if how.get("follow") == "first":
            ema_update(teacher, student, momentum)
        loss.backward()
        if how.get("zero") == "late":
            optimizer.zero_grad()
        if how.get("clip", "norm") == "norm":
            nn.utils.clip_grad_norm_(list(student.parameters()), max_norm=clip_grad)
        elif how["clip"] == "all":
            grads = [p for group in optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(grads, clip_grad)
        elif how["clip"] == "value":
            nn.utils.clip_grad_value_(student.parameters(), clip_grad)
        optimizer.step()
        if how.get("clip") == "late":
            nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
        if how.get("follow", "last") == "last":
            ema_update(teacher, student, momentum)
        elif how["follow"] == "student":
            ema_update(student, teacher, momentum)
        return how.get("give", torch.Tensor.item)(loss)

    return step


# --- the closing exercises ----------------------------------------------------------------------


def parts_variant(**how):
    """An accumulated step with the parts in `how` changed."""

    def step(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp):
        if how.get("zero", True):
            student.zero_grad()
        if how.get("whole"):
            parts = [torch.cat(parts, dim=1)]
        rows, losses = [], []
        for views in parts:
            said = teacher(views[:2]).detach()
            rows.append(said)
            moves = how.get("own_center", False)
            loss = loss_fn(student(views), said, teacher_temp, update_center=moves)
            loss = loss / (how.get("share") or len(parts))
            if how.get("keep"):
                losses.append(loss)
            else:
                loss.backward()
            if how.get("steps_each"):
                optimizer.step()
                if how["steps_each"] != "no zero":
                    optimizer.zero_grad()
            if how.get("follow_each"):
                ema_update(teacher, student, momentum)
        if losses:
            sum(losses).backward()
        chosen = rows[how.get("rows", slice(None))]
        if chosen and not how.get("own_center"):
            loss_fn.update_center(torch.stack(chosen) if how.get("stacked") else torch.cat(chosen))
        if how.get("early"):
            ema_update(teacher, student, momentum)
        if not how.get("steps_each"):
            optimizer.step()
        if not how.get("early") and not how.get("follow_each") and how.get("follow", True):
            ema_update(teacher, student, 1 - momentum if how.get("reversed") else momentum)
        if how.get("new_rows"):
            loss_fn.update_center(torch.cat([teacher(views[:2]) for views in parts], dim=1))

    return step


def each_part_an_update(parts, *rest):
    for part in parts:
        parts_variant()([part], *rest)


def view_by_view(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp):
    optimizer.zero_grad()
    rows = []
    for views in parts:
        said = torch.stack([teacher(view) for view in views[:2]])
        seen = torch.stack([student(view) for view in views])
        loss_fn(seen, said, teacher_temp, update_center=False).div(len(parts)).backward()
        rows.append(said)
    optimizer.step()
    loss_fn.update_center(torch.cat(rows))
    ema_update(teacher, student, momentum)


def weights_by_loop(momenta):
    weights = [1.0]
    for m in momenta:
        weights = [m * w for w in weights] + [1 - m]
    return weights


def weights_by_products(momenta):
    kept = np.append(np.cumprod(momenta[::-1])[::-1], 1.0)
    return kept * np.append(1.0, 1 - momenta)


def warm(a, b, n, w):
    return np.concatenate([np.linspace(a, b, w), np.full(n - w, b)])


STYLES = {
    "ema_update": [ema_in_place_of_data, ema_lerp, ema_by_name],
    "make_teacher": [make_teacher, teacher_by_state, teacher_without_module],
    "cosine_schedule": [cosine_list, cosine_tensor],
    "train_step": [
        step_variant(),
        step_variant(no_grad=False, detach=True),
        step_variant(zero="first", clip="all"),
        step_variant(center="by hand", give=torch.Tensor.detach),
        step_variant(give=lambda loss: np.float32(loss.item())),
    ],
    "momentum_for": [
        lambda total, share: math.exp(math.log(0.5) / (share * total)),
        lambda total, share: torch.tensor(0.5, dtype=torch.float64) ** (1 / (share * total)),
        lambda total, share: np.power(2.0, -1 / (share * total)),
    ],
    "temperature_schedule": [
        lambda a, b, n, w: [a + (b - a) * min(i / (w - 1), 1) for i in range(n)],
        lambda a, b, n, w: a + (b - a) * np.minimum(np.arange(n) / (w - 1), 1),
        lambda a, b, n, w: torch.tensor(warm(a, b, n, w)),
    ],
    "ema_weights": [weights_by_loop, weights_by_products],
    "accumulated_step": [
        parts_variant(),
        parts_variant(stacked=True),
        view_by_view,
    ],
}

WRONG = {
    "ema_update": {
        "names only": ema_names_only,
        "buffers too": ema_state_dict,
        "new parameters": ema_new_parameters,
        "autograd records": ema_with_graph,
        "matrices alone": ema_of_weights,
        "reversed": ema_reversed,
        "the student shrinks": ema_student_moves,
        "fixed": ema_fixed,
        "a copy": ema_copies,
        "the student frozen": ema_freezes_the_student,
        "autograd off for good": ema_turns_autograd_off,
        "one level": ema_of_one_level,
        "return in the loop": ema_returns_early,
    },
    "make_teacher": {
        "the student itself": lambda student: student,
        "the student frozen": lambda student: student.requires_grad_(False),
        "a gradient": lambda student: quiet(copy.deepcopy(student)),
        "drop path": lambda student: copy.deepcopy(student).requires_grad_(False),
        "drop path in eval": teacher_in_eval_drop_path,
        "all paths dropped": teacher_that_drops_all,
        "eval": lambda student: copy.deepcopy(student).requires_grad_(False).eval(),
        "the first level alone": teacher_children_only,
        "the student quiet": teacher_of_quiet_student,
        "both frozen": teacher_frozen_student,
        "another start": teacher_other_start,
        "a shallow copy": teacher_shallow,
        "shared storage": teacher_shared_state,
        "biases with a gradient": teacher_some_parameters,
        "no return": teacher_forgotten_return,
        "its state": lambda student: copy.deepcopy(student.state_dict()),
    },
    "cosine_schedule": {
        "one step early": cosine_wrong(last=1),
        "two pi": cosine_wrong(pi=2 * math.pi),
        "warm-up stops short": cosine_wrong(ends=False),
        "i goes on": cosine_wrong(late=1),
        "degrees": cosine_wrong(pi=180.0),
        "swapped": lambda b, f, *rest: schedules.cosine_schedule(
            f, b, rest[0], **dict(zip(("warmup_steps", "start"), rest[1:], strict=False))
        ),
        "rounded": lambda *a: np.round(cosine_wrong()(*a), 1),
        "tensor of integers": lambda *a: torch.tensor(cosine_wrong()(*a)).long(),
        "the cosine alone": lambda b, f, n, w=0, s=0.0: cosine_wrong()(b, f, n),
        "on top of the total": lambda b, f, n, w=0, s=0.0: cosine_wrong()(b, f, n + w, w, s),
        "divided by all steps": lambda b, f, n, w=0, s=0.0: np.append(
            np.linspace(s, b, w), f + 0.5 * (b - f) * (1 + np.cos(np.pi * np.arange(n - w) / n))
        ),
        "from zero": lambda b, f, n, w=0, s=0.0: cosine_wrong()(b, f, n, w, 0.0),
        "straight": lambda b, f, n, w=0, s=0.0: np.concatenate(
            [np.linspace(s, b, w), b + (f - b) * np.arange(n - w) / max(1, n - w)]
        ),
    },
    "train_step": {
        "teacher in eval": step_in_eval,
        "center first": step_variant(center="first"),
        "center twice": step_variant(center="twice"),
        "center before and in the loss": step_variant(center="both"),
        "swapped": step_variant(swapped=True),
        "swapped, targets with gradient": step_variant(swapped=True, no_grad=False),
        "student sees the local ones": step_variant(student=lambda views: views[2:]),
        "teacher first": step_variant(follow="first"),
        "teacher stays": step_variant(follow="none"),
        "student follows": step_variant(follow="student"),
        "no zero_grad": step_variant(zero="none"),
        "zero_grad before the step": step_variant(zero="late"),
        "targets with gradient": step_variant(no_grad=False),
        "reversed": step_variant(reversed=True),
        "no schedules": step_variant(schedules="none"),
        "decay for all": step_variant(schedules="every group"),
        "no clipping": step_variant(clip="none"),
        "values clipped": step_variant(clip="value"),
        "clipped after the step": step_variant(clip="late"),
        "teacher sees all": step_variant(teacher=slice(None)),
        "teacher sees the local ones": step_variant(teacher=slice(2, None)),
        "student sees two": step_variant(student=lambda views: views[:2]),
        "returns nothing": step_variant(give=lambda loss: None),
        "returns the graph": step_variant(give=lambda loss: loss),
        "no clipping, no schedules": step_variant(clip="none", schedules="none"),
        "no clipping, no zero_grad": step_variant(clip="none", zero="none"),
    },
    "momentum_for": {
        "1/e": lambda total, share: math.exp(-1 / (share * total)),
        "first order": lambda total, share: 1 - 1 / (share * total),
        "first order, half": lambda total, share: 1 - 0.5 / (share * total),
        "no share": lambda total, share: 0.5 ** (1 / total),
        "no total": lambda total, share: 0.5 ** (1 / share),
        "the other way": lambda total, share: 0.5 ** (share * total),
        "one minus": lambda total, share: 1 - 0.5 ** (1 / (share * total)),
        "the share is left": lambda total, share: share ** (1 / (share * total)),
        "share at the end": lambda total, share: share ** (1 / total),
        "the half-life": lambda total, share: share * total,
        "rounded": lambda total, share: round(0.5 ** (1 / (share * total)), 2),
        "a rounded half-life": lambda total, share: 0.5 ** (1 / round(share * total)),
        "a whole half-life": lambda total, share: 0.5 ** (1 / int(share * total)),
        "always the paper's": lambda total, share: 0.996,
    },
    "temperature_schedule": {
        "whole run": lambda a, b, n, w: np.linspace(a, b, n),
        "from zero": lambda a, b, n, w: warm(0, b, n, w),
        "swapped": lambda a, b, n, w: warm(b, a, n, w),
        "jump": lambda a, b, n, w: np.where(np.arange(n) < w, a, b),
        "one late": lambda a, b, n, w: a + (b - a) * np.minimum(np.arange(n) / w, 1),
        "one early": lambda a, b, n, w: a + (b - a) * np.minimum(np.arange(1, n + 1) / w, 1),
        "warm-up alone": lambda a, b, n, w: np.linspace(a, b, w),
        "cosine": lambda a, b, n, w: np.array(
            [a + (b - a) * (1 - math.cos(math.pi * min(i / (w - 1), 1))) / 2 for i in range(n)]
        ),
        "falls again": lambda a, b, n, w: schedules.cosine_schedule(
            b, a, n, warmup_steps=w, start=a
        ),
        "no limit": lambda a, b, n, w: a + (b - a) * np.arange(n) / (w - 1),
        "on top": lambda a, b, n, w: np.concatenate([np.linspace(a, b, w), np.full(n, b)]),
        "back at the start": lambda a, b, n, w: np.append(np.linspace(a, b, w), np.full(n - w, a)),
        "constant": lambda a, b, n, w: np.full(n, b),
    },
    "ema_weights": {
        "order of time": lambda m: weights_by_products(m)[::-1].copy(),
        "momenta backwards": lambda m: weights_by_products(m[::-1]),
        "reversed": lambda m: weights_by_products(1 - m),
        "no start": lambda m: np.append(0, weights_by_products(m)[1:]),
        "start left out": lambda m: weights_by_products(m)[1:],
        "start stays": lambda m: np.append(1, weights_by_products(m)[1:]),
        "not shrunk": lambda m: np.append(m.prod(), 1 - m),
        "shrunk by itself": lambda m: np.append(
            m.prod(), [(1 - m[j]) * m[j:].prod() for j in range(len(m))]
        ),
        "momentum for 1 - momentum": lambda m: np.array([m[j:].prod() for j in range(len(m) + 1)]),
        "own momentum": lambda m: np.append(
            m.prod(), [(1 - m[j]) * m[j] ** (len(m) - 1 - j) for j in range(len(m))]
        ),
        "shrunk by those before": lambda m: np.append(
            m.prod(), [(1 - m[j]) * m[:j].prod() for j in range(len(m))]
        ),
        "not turned round": lambda m: np.append(np.cumprod(m), 1.0) * np.append(1.0, 1 - m),
        "not turned round, start first": lambda m: (
            np.append(1.0, np.cumprod(m)) * np.append(1.0, 1 - m)
        ),
        "up to its own": lambda m: np.append(m.prod(), (1 - m) * np.cumprod(m)),
        "not turned back": lambda m: np.append(np.cumprod(m[::-1]), 1.0) * np.append(1.0, 1 - m),
        "the first momentum": lambda m: weights_by_products(np.full(len(m), m[0])),
        "normalised": lambda m: np.append(m.prod(), 1 - m) / np.append(m.prod(), 1 - m).sum(),
    },
    "accumulated_step": {
        "sum": parts_variant(share=1),
        "center in every part": parts_variant(own_center=True),
        "center of the last": parts_variant(rows=slice(-1, None)),
        "center of the first": parts_variant(rows=slice(0, 1)),
        "no center": parts_variant(rows=slice(0, 0)),
        "follows in every part": parts_variant(follow_each=True),
        "steps in every part": parts_variant(steps_each=True),
        "steps in every part, gradients stay": parts_variant(steps_each="no zero"),
        "all in every part": parts_variant(steps_each="no zero", follow_each=True),
        "rows of the new teacher": parts_variant(rows=slice(0, 0), new_rows=True),
        "no zero_grad": parts_variant(zero=False),
        "teacher first": parts_variant(early=True),
        "teacher stays": parts_variant(follow=False),
        "reversed": parts_variant(reversed=True),
        "the whole batch": parts_variant(whole=True),
        "each part an update": each_part_an_update,
        "all graphs kept": parts_variant(keep=True),
    },
}

EQUIVALENT = {
    "ema_update": [],
    "make_teacher": [],
    "cosine_schedule": [],
    "train_step": [],
    "momentum_for": ["total_steps * share"],
    "temperature_schedule": [],
    "ema_weights": [],
    # the center is the mean of all rows, however they are laid out
    "accumulated_step": ["torch.cat(rows))", "torch.stack(rows, dim=1)"],
}
