"""Answers to the pieces of notebook 05: right ones in another style, wrong ones, and changes of the
solutions that are still right.
"""

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F

# --- the plan ---------------------------------------------------------------------------------


def plan_as_a_list(n_images, batch_size, epochs, momentum):
    updates = sum(1 for _ in range(epochs) for start in range(batch_size, n_images + 1, batch_size))
    life = -np.log(2) / np.log(momentum)
    return [updates, life, updates / life]


def plan_as_a_tensor(n_images, batch_size, epochs, momentum):
    updates = torch.tensor(n_images // batch_size) * epochs
    life = torch.tensor(0.5, dtype=torch.float64).log() / math.log(momentum)
    return torch.stack([updates.double(), life, updates / life])


def plan_in_base_two(n_images, batch_size, epochs, momentum):
    updates = n_images // batch_size * epochs
    return {"updates": updates, "half-life": -1 / math.log2(momentum),
            "half-lives": updates * -math.log2(momentum)}  # fmt: skip


def plan(updates, momentum):
    life = math.log(0.5) / math.log(momentum)
    return updates, life, updates / life


PLANS = {
    "round": lambda n, b, e, m: plan(round(n / b) * e, m),
    "ceil": lambda n, b, e, m: plan(math.ceil(n / b) * e, m),
    "a fraction": lambda n, b, e, m: plan(n / b * e, m),
    "dropped once": lambda n, b, e, m: plan(n * e // b, m),
    "one epoch": lambda n, b, e, m: plan(n // b, m),
    "images": lambda n, b, e, m: plan(n * e, m),
    "mean age": lambda n, b, e, m: (n // b * e, 1 / (1 - m), n // b * e * (1 - m)),
    "1/e": lambda n, b, e, m: (n // b * e, -1 / math.log(m), -(n // b) * e * math.log(m)),
    "half-lives rounded": lambda n, b, e, m: (
        *plan(n // b * e, m)[:2],
        round(plan(n // b * e, m)[2]),
    ),
    "half-lives cut off": lambda n, b, e, m: (
        *plan(n // b * e, m)[:2],
        plan(n // b * e, m)[2] // 1,
    ),
    "no half-lives": lambda n, b, e, m: plan(n // b * e, m)[:2],
    "order": lambda n, b, e, m: plan(n // b * e, m)[::-1],
}

SHARES = {
    "rest": lambda m: 1 - np.prod(m),
    "student's share": lambda m: np.prod(1 - m),
    "first": lambda m: m[0] ** len(m),
    "last": lambda m: m[-1] ** len(m),
    "mean": lambda m: np.mean(m) ** len(m),
    "the mean alone": np.mean,
    "sum": np.sum,
    "all of them": np.cumprod,
    "without the last": lambda m: np.prod(m[:-1]),
    "without the first": lambda m: np.prod(m[1:]),
    "logarithm": lambda m: np.log(m).sum(),
    "the last momentum": lambda m: m[-1],
    "half-life of the mean": lambda m: math.log(0.5) / math.log(min(np.mean(m), 0.999)),
}


# --- the loop and its checkpoint --------------------------------------------------------------


def loop_with_enumerate(images, orders, batch_size, schedules, make_views, update):
    losses, step = [], 0
    for order in orders:
        whole = len(order) // batch_size
        for batch in order[: whole * batch_size].reshape(whole, batch_size):
            now = {name: values[step] for name, values in schedules.items()}
            losses += [torch.tensor(update(make_views(images[batch]), now), dtype=torch.float64)]
            step += 1
    return torch.stack(losses)


def loop_over_all_images(images, orders, batch_size, schedules, make_views, update):
    losses = []
    for order in orders:
        for start in range(0, len(images) - batch_size + 1, batch_size):
            now = {name: values[len(losses)] for name, values in schedules.items()}
            losses.append(update(make_views(images[order[start : start + batch_size]]), now))
    return losses


def loop_with_fractions(images, orders, batch_size, schedules, make_views, update):
    losses = []
    for epoch, order in enumerate(orders):
        for i in range(len(order) // batch_size):
            batch = order[i * batch_size : (i + 1) * batch_size]
            step = epoch * len(order) // batch_size + i
            now = {name: values[step] for name, values in schedules.items()}
            losses.append(update(make_views(images[batch]), now))
    return losses


def checkpoint_without_groups(step, student, teacher, center, optimizer):
    nets = {"student": student.state_dict(), "teacher": teacher.state_dict()}
    state = {"state": optimizer.state_dict()["state"]}
    return copy.deepcopy({"step": step, **nets, "center": center, "optimizer": state})


def loop_over_steps(images, orders, batch_size, schedules, make_views, update):
    per_epoch = len(orders[0]) // batch_size

    def one(step):
        epoch, k = divmod(step, per_epoch)
        batch = orders[epoch][k * batch_size : (k + 1) * batch_size].tolist()
        now = {"momentum": schedules["momentum"][step], "lr": schedules["lr"][step]}
        return update(make_views(images[batch]), now)

    return np.array([one(step) for step in range(per_epoch * len(orders))])


def loop_with_break(images, orders, batch_size, schedules, make_views, update):
    losses = []
    for order in orders:
        for batch in order.split(batch_size):
            if len(batch) < batch_size:
                break
            now = {name: torch.tensor(v[len(losses)]) for name, v in schedules.items()}
            losses.append(update(make_views(images[batch]), now))
    return tuple(losses)


def loop_of(*, ragged=False, restart=False, shift=0, shuffled=True, epochs=None, same=False,
            views=True, schedule=True, strict=False, by_epoch=False, numbers=False,
            result=lambda losses: losses):  # fmt: skip
    def loop(images, orders, batch_size, schedules, make_views, update):
        losses = []
        for epoch, order in enumerate(orders[:epochs]):
            order = orders[0] if same else order
            step = 0 if restart else len(losses)
            n = len(order) if ragged else len(order) // batch_size * batch_size
            n = len(order) - batch_size if strict else n
            for start in range(0, n, batch_size):
                batch = images[order[start : start + batch_size]]
                batch = batch if shuffled else images[start : start + batch_size]
                batch = order[start : start + batch_size] if numbers else batch
                at = epoch if by_epoch else step + shift
                now = {name: values[at] for name, values in schedules.items()}
                batch = make_views(batch) if views else batch
                losses.append(update(batch, now if schedule else schedules))
                step += 1
        return result(losses)

    return loop


LOOPS = {
    "over all images": loop_over_all_images,
    "a step of fractions": loop_with_fractions,
    "the last batch is small": loop_of(ragged=True),
    "schedules restart": loop_of(restart=True),
    "one ahead": loop_of(shift=1),
    "one behind": loop_of(shift=-1),
    "no order": loop_of(shuffled=False),
    "one epoch": loop_of(epochs=1),
    "the same order": loop_of(same=True),
    "images for views": loop_of(views=False),
    "whole schedules": loop_of(schedule=False),
    "range without + 1": loop_of(strict=True),
    "a value an epoch": loop_of(by_epoch=True),
    "numbers for images": loop_of(numbers=True),
    "the last loss": loop_of(result=lambda losses: losses[-1]),
    "the mean": loop_of(result=np.mean),
    "nothing": loop_of(result=lambda losses: None),
    "reversed": loop_of(result=lambda losses: losses[::-1]),
}


def checkpoint_of_deep_copies(step, student, teacher, center, optimizer):
    saved = {"optimizer": copy.deepcopy(optimizer.state_dict()), "center": center.clone()}
    for name, net in {"student": student, "teacher": teacher}.items():
        saved[name] = {key: value.detach().clone() for key, value in net.state_dict().items()}
    return saved | {"step": torch.tensor(step)}


def checkpoint_through_a_file(step, student, teacher, center, optimizer):
    import io

    file = io.BytesIO()
    torch.save({"step": step, "student": student.state_dict(), "teacher": teacher.state_dict(),
                "center": center, "optimizer": optimizer.state_dict()}, file)  # fmt: skip
    file.seek(0)
    return torch.load(file)


def checkpoint_of_modules(step, student, teacher, center, optimizer):
    return copy.deepcopy({"step": step, "student": student, "teacher": teacher,
                          "center": center, "optimizer": optimizer.state_dict()})  # fmt: skip


def saved(*, live=(), missing=(), buffers=True, shallow=False):
    def take(step, student, teacher, center, optimizer):
        parts = {"step": step, "student": student.state_dict(), "teacher": teacher.state_dict(),
                 "center": center, "optimizer": optimizer.state_dict()}  # fmt: skip
        copied = {
            name: part if name in live else copy.copy(part) if shallow else copy.deepcopy(part)
            for name, part in parts.items()
            if name not in missing
        }
        if not buffers:
            for name in ("student", "teacher"):
                copied[name] = {k: v for k, v in copied[name].items() if "running" not in k}
        return copied

    return take


def detached(step, student, teacher, center, optimizer):
    nets = {
        name: {key: value.detach() for key, value in net.state_dict().items()}
        for name, net in (("student", student), ("teacher", teacher))
    }
    state = copy.deepcopy(optimizer.state_dict())
    return {"step": step, **nets, "center": center.detach(), "optimizer": state}


def named_parameters(step, student, teacher, center, optimizer):
    nets = {
        name: {key: p.detach().clone() for key, p in net.named_parameters()}
        for name, net in (("student", student), ("teacher", teacher))
    }
    state = copy.deepcopy(optimizer.state_dict())
    return {"step": step, **nets, "center": center.clone(), "optimizer": state}


CHECKPOINTS = {
    "no groups": checkpoint_without_groups,
    "modules": checkpoint_of_modules,
    "everything live but its class": lambda *run: copy.deepcopy(
        dict(zip(("step", "student", "teacher", "center", "optimizer"), run, strict=True))
    ),
    "only detached": detached,
    "parameters without buffers": named_parameters,
    "live": saved(live=("student", "teacher", "center", "optimizer")),
    "live networks": saved(live=("student", "teacher")),
    "live networks and optimizer": saved(live=("student", "teacher", "optimizer")),
    "live center": saved(live=("center",)),
    "live optimizer": saved(live=("optimizer",)),
    "shallow": saved(shallow=True),
    "no center": saved(missing=("center",)),
    "no optimizer": saved(missing=("optimizer",)),
    "no teacher": saved(missing=("teacher",)),
    "no student": saved(missing=("student",)),
    "no step": saved(missing=("step",)),
    "no buffers": saved(buffers=False),
    "a tuple": lambda *run: tuple(saved()(*run).values()),
    "the learning rate is all of the optimizer": lambda *run: (
        saved()(*run) | {"optimizer": {"param_groups": run[4].state_dict()["param_groups"]}}
    ),
}


# --- reading ----------------------------------------------------------------------------------


def split_with_torch(student, teacher, center, student_temp, teacher_temp):
    q = torch.distributions.Categorical(logits=(teacher - center) / teacher_temp)
    p = torch.distributions.Categorical(logits=student / student_temp)
    return q.entropy().mean().item(), torch.distributions.kl_divergence(q, p).mean().item()


def split_as_a_rest(student, teacher, center, student_temp, teacher_temp):
    q = F.softmax((teacher - center) / teacher_temp, dim=-1)
    cross = F.cross_entropy(student / student_temp, q)
    entropy = -(q * torch.log(q)).sum(dim=1).mean()
    return torch.stack([entropy, cross - entropy])


def split_in_numpy(student, teacher, center, student_temp, teacher_temp):
    t, s = ((teacher - center) / teacher_temp).numpy(), (student / student_temp).numpy()
    q, p = np.exp(t), np.exp(s)
    q, p = q / q.sum(1, keepdims=True), p / p.sum(1, keepdims=True)
    return [np.mean([-np.sum(row * np.log(row)) for row in q]), np.mean((q * np.log(q / p)).sum(1))]


def split(student, teacher, center, student_temp, teacher_temp):
    log_q = ((teacher - center) / teacher_temp).log_softmax(-1)
    log_p = (student / student_temp).log_softmax(-1)
    q = log_q.exp()
    return -(q * log_q).sum(-1).mean(), (q * (log_q - log_p)).sum(-1).mean()


def split_backward(student, teacher, center, student_temp, teacher_temp):
    p = torch.softmax(student / student_temp, -1)
    q = torch.softmax((teacher - center) / teacher_temp, -1)
    return -(q * q.log()).sum(-1).mean(), (p * (p / q).log()).sum(-1).mean()


def split_of_the_mean_row(student, teacher, center, student_temp, teacher_temp):
    q = torch.softmax((teacher - center) / teacher_temp, -1).mean(0)
    rest = split(student, teacher, center, student_temp, teacher_temp)[1]
    return -(q * q.log()).sum(), rest


def split_against_the_mean(student, teacher, center, student_temp, teacher_temp):
    q = torch.softmax((teacher - center) / teacher_temp, -1).mean(0)
    log_p = torch.log_softmax(student / student_temp, -1)
    return -(q * q.log()).sum(), (q * (q.log() - log_p)).sum(-1).mean()


SPLITS = {
    "averaged targets": split_against_the_mean,
    "no center": lambda s, t, c, hot, cold: split(s, t, 0 * c, hot, cold),
    "center added": lambda s, t, c, hot, cold: split(s, t, -c, hot, cold),
    "center of the student": lambda s, t, c, hot, cold: split(s - c, t, 0 * c, hot, cold),
    "center of both": lambda s, t, c, hot, cold: split(s - c, t, c, hot, cold),
    "temperatures swapped": lambda s, t, c, hot, cold: split(s, t, c, cold, hot),
    "student without temperature": lambda s, t, c, hot, cold: split(s, t, c, 1, cold),
    "teacher without temperature": lambda s, t, c, hot, cold: split(s, t, c, hot, 1),
    "backward": split_backward,
    "the mean row": split_of_the_mean_row,
    "the whole loss": lambda *a: (split(*a)[0], sum(split(*a))),
    "sums": lambda *a: tuple(len(a[0]) * part for part in split(*a)),
    "order": lambda *a: split(*a)[::-1],
    "bits": lambda *a: tuple(part / math.log(2) for part in split(*a)),
    "center after the temperature": lambda s, t, c, hot, cold: split(s, t / cold, c, hot, 1),
}


def diagnose_in_shares(history, out_dim):
    lines = [line for line in history if "mean_entropy" in line]
    one, mean = (lines[-1][key] / math.log(out_dim) for key in ("teacher_entropy", "mean_entropy"))
    if one > 0.95:
        return "uniform"
    if mean < 0.2:
        return "one prototype"
    return "healthy" if mean - one >= 0.05 else "same for all"


def diagnose_backwards(history, out_dim):
    last = next(line for line in reversed(history) if line.get("teacher_entropy") is not None)
    top = np.log(out_dim)
    word = "healthy"
    if last["mean_entropy"] - last["teacher_entropy"] < 0.05 * top:
        word = "same for all"
    if last["mean_entropy"] < 0.2 * top:
        word = "one prototype"
    if last["teacher_entropy"] > 0.95 * top:
        word = "uniform"
    return word


def ill(history, out_dim, *, row="teacher_entropy", batch="mean_entropy", which=-1, log=math.log,
        bounds=(0.95, 0.2, 0.05), lines="teacher_entropy", order="uog"):  # fmt: skip
    last = [r for r in history if lines in r][which]
    top = log(out_dim)
    tests = {
        "u": ("uniform", last[row] > bounds[0] * top),
        "o": ("one prototype", last[batch] < bounds[1] * top),
        "g": ("same for all", last[batch] - last[row] < bounds[2] * top),
    }
    return next((tests[key][0] for key in order if tests[key][1]), "healthy")


def one_question(history, out_dim, *, uniform="teacher_entropy", one="mean_entropy", gap=None):
    last = [line for line in history if "teacher_entropy" in line][-1]
    top = math.log(out_dim)
    if last[uniform] > 0.95 * top:
        return "uniform"
    if last[one] < 0.2 * top:
        return "one prototype"
    apart = last["mean_entropy"] - last["teacher_entropy"]
    return "same for all" if apart < (gap or 0.05 * top) else "healthy"


DIAGNOSES = {
    "gap in nats": lambda h, k: one_question(h, k, gap=0.05),
    "the batch for uniform": lambda h, k: one_question(h, k, uniform="mean_entropy"),
    "one image for one prototype": lambda h, k: one_question(h, k, one="teacher_entropy"),
    "the sum": lambda h, k: (
        "healthy" if one_question(h, k) == "same for all" else one_question(h, k)
    ),
    "four wrong bounds": lambda h, k: ill(h, k, bounds=(0.9, 0.25, 0.1)),
    "uniform at 90%": lambda h, k: ill(h, k, bounds=(0.9, 0.2, 0.05)),
    "uniform at 99%": lambda h, k: ill(h, k, bounds=(0.99, 0.2, 0.05)),
    "one prototype at 10%": lambda h, k: ill(h, k, bounds=(0.95, 0.1, 0.05)),
    "one prototype at 25%": lambda h, k: ill(h, k, bounds=(0.95, 0.25, 0.05)),
    "gap of 10%": lambda h, k: ill(h, k, bounds=(0.95, 0.2, 0.1)),
    "gap of 2%": lambda h, k: ill(h, k, bounds=(0.95, 0.2, 0.02)),
    "the last line": lambda h, k: ill(h[-1:], k),
    "the first line": lambda h, k: ill(h, k, which=0),
    "nats": lambda h, k: ill(h, k, log=lambda k: 1.0),
    "shares of K": lambda h, k: ill(h, k, log=float),
    "bits": lambda h, k: ill(h, k, log=math.log2),
    "the loss": lambda h, k: ill(h, k, row="loss", batch="loss"),
    "one image for both": lambda h, k: ill(h, k, batch="teacher_entropy"),
    "the batch for both": lambda h, k: ill(h, k, row="mean_entropy"),
    "exchanged": lambda h, k: ill(h, k, row="mean_entropy", batch="teacher_entropy"),
    "the gap first": lambda h, k: ill(h, k, order="guo"),
    "the gap before the one prototype": lambda h, k: ill(h, k, order="ugo"),
    "no gap": lambda h, k: ill(h, k, order="uo"),
    "no uniform": lambda h, k: ill(h, k, order="og"),
    "healthy": lambda h, k: "healthy",
    "collapsed": lambda h, k: "collapsed" if ill(h, k) != "healthy" else "healthy",
    "other words": lambda h, k: ill(h, k).replace(" ", "_"),
}


# --- half precision ---------------------------------------------------------------------------


def scaled_by_where(gradient, scale):
    half = gradient.mul(scale).to(torch.float16).to(torch.float32)
    skip = bool(torch.isinf(half).any() or torch.isnan(half).any())
    return torch.where(torch.tensor(skip), torch.zeros(()), half / scale), skip


def scaled_in_numpy(gradient, scale):
    with np.errstate(over="ignore"):
        half = (gradient.numpy() * np.float32(scale)).astype(np.float16).astype(np.float32)
    skip = not np.isfinite(half).all()
    return [np.zeros_like(half) if skip else half / scale, int(skip)]


def scaled(*, divide="float", finite=torch.isfinite, zero=True, before=True, dtype=torch.float16,
           ask=torch.all):  # fmt: skip
    def way(gradient, scale):
        half = (gradient * scale).to(dtype) if before else gradient.to(dtype) * scale
        if not ask(finite(half)):
            return (torch.zeros_like(gradient) if zero else half.float() / scale), True
        if divide == "float":
            return half.float() / scale, False
        return (half / scale).float() if divide == "half" else half.float(), False

    return way


def scaled_in_place(gradient, scale):
    gradient *= scale
    half = gradient.half()
    if not half.isfinite().all():
        return torch.zeros_like(gradient), True
    return half.float() / scale, False


def zeros_in_places(gradient, scale):
    half = (gradient * scale).half()
    good = half.isfinite()
    return torch.where(good, half.float() / scale, torch.zeros(())), not bool(good.all())


SCALED = {
    "in place": scaled_in_place,
    "zeros only where not finite": zeros_in_places,
    "divided in fp16": scaled(divide="half"),
    "never divided": scaled(divide="not"),
    "scaled too late": scaled(before=False),
    "bf16": scaled(dtype=torch.bfloat16),
    "float32": scaled(dtype=torch.float32),
    "no nan": scaled(finite=lambda h: ~h.isinf()),
    "no inf": scaled(finite=lambda h: ~h.isnan()),
    "any": scaled(ask=torch.any),
    "not zero": scaled(zero=False),
    "never skips": lambda g, s: ((g * s).half().float() / s, False),
    "skips the other way": lambda g, s: (scaled()(g, s)[0], not scaled()(g, s)[1]),
    "no skip": lambda g, s: scaled()(g, s)[0],
    "order": lambda g, s: scaled()(g, s)[::-1],
    "clamped": lambda g, s: ((g * s).clamp(-65504, 65504).half().float() / s, False),
}


STYLES = {
    "plan_run": [plan_as_a_list, plan_as_a_tensor, plan_in_base_two],
    "initial_share": [np.prod, lambda m: math.prod(m.tolist()), lambda m: np.cumprod(m)[-1]],
    "training_loop": [loop_with_enumerate, loop_over_steps, loop_with_break],
    "take_checkpoint": [
        checkpoint_of_deep_copies,
        checkpoint_through_a_file,
    ],
    "split_loss": [split_with_torch, split_as_a_rest, split_in_numpy],
    "diagnose": [diagnose_in_shares, diagnose_backwards],
    "scaled_gradient": [scaled_by_where, scaled_in_numpy],
}
WRONG = {
    "plan_run": PLANS,
    "initial_share": SHARES,
    "training_loop": LOOPS,
    "take_checkpoint": CHECKPOINTS,
    "split_loss": SPLITS,
    "diagnose": DIAGNOSES,
    "scaled_gradient": SCALED,
}
EQUIVALENT = {
    "split_loss": [  # of two dimensions the last is the second, which softmax takes unasked
        "dim=1)",
        "sum(1)",
        "log_softmax((teacher - center) / teacher_temp)",
        "log_softmax(student / student_temp)",
    ],
    "diagnose": [  # at the bound itself nothing is asked
        "one >= 0.95",
        "mean <= 0.2",
        "mean - one <= 0.05",
    ],
}
