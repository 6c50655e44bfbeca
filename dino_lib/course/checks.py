"""Self-checks of the notebooks' exercises: each prints one line, and none of them prints the answer.

`check_NAME(your_function)` calls the function on fixed inputs, works out the right result with the library and prints
"right", "close: largest difference ...", "wrong: ..." with the mistake that it looks like, or "not done yet". An error
inside the function is not caught: its traceback says more than a check could.
"""

import math

import numpy as np
import torch

from dino_lib.data import batch_views, colours
from dino_lib.head import DINOHead, MultiCropModel
from dino_lib.loss import DINOLoss, teacher_entropies
from dino_lib.schedules import cosine_schedule, half_life, linear_warmup
from dino_lib.teacher import ema_update, make_teacher


def _flat(value):
    """A number, array, tensor, or a list or tuple of those -> list of float64 tensors; TypeError on all else."""
    if isinstance(value, tuple | list):
        return [tensor for part in value for tensor in _flat(part)]
    if isinstance(value, bool | int | float | np.ndarray | np.generic | torch.Tensor):
        value = value.copy() if isinstance(value, np.ndarray) else value  # torch takes no negative strides
        return [torch.as_tensor(value).detach().cpu().double()]
    raise TypeError(type(value).__name__)


def _verdict(name, yours, right, hints, *, tolerance=1e-5):
    """Print one line on `yours` against `right` (numbers, arrays, tensors, or tuples of them).

    hints: dict of a sentence about a mistake -> the value that this mistake gives. `tolerance` is relative to the
    largest entry of `right`; within a hundredth of that entry a result counts as close.
    """
    try:
        mine = None if yours is None else _flat(yours)
    except TypeError as error:
        return print(f"wrong: {name} gives a {error}, and numbers or tensors are expected")
    if mine is None or (isinstance(yours, tuple | list) and all(part is None for part in yours)):
        return print("not done yet")
    want = _flat(right)
    shapes, expected = [tuple(t.shape) for t in mine], [tuple(t.shape) for t in want]
    if shapes != expected and isinstance(yours, list) and len(want) == 1:
        return print(f"wrong: {name} gives a list; return one array of shape {expected[0]}")
    if shapes != expected:
        return print(f"wrong: {name} gives shapes {shapes}, and {expected} are expected")
    if not all(t.isfinite().all() for t in mine):
        return print(f"wrong: {name} gives values that are not finite")
    scale = max(t.abs().max().item() for t in want)

    def distance(other):
        return max((a - b).abs().max().item() for a, b in zip(mine, other, strict=True))

    if distance(want) <= tolerance * scale:
        return print("right")
    for hint, value in hints.items():
        wrong = _flat(value)
        if [t.shape for t in wrong] == [t.shape for t in want] and distance(wrong) <= tolerance * scale:
            return print(f"wrong: {hint}")
    if distance(want) <= 0.01 * scale:
        return print(f"close: largest difference {distance(want):.1e} (look for an epsilon or a rounding too many)")
    return print(f"wrong: {name} is off by up to {distance(want):.1e}; go through shapes, signs and axes one by one")


# --- 03: the loss -----------------------------------------------------------------------------------------------------

def check_center_after(function):
    """`function(batch_mean, momentum, n_steps)`: where the center stands after n equal batches, from 0."""
    mean, m, n = torch.tensor([2.0, -1.0, 0.5, 4.0]), 0.8, 3
    loss = DINOLoss(4, center_momentum=m)
    for _ in range(n):
        loss.update_center(mean.expand(2, 5, 4))
    _verdict("center_after", function(mean.clone(), m, n), loss.center, {
        "that is the share of the old center, which is 0 here; the rest belongs to the batches": m**n * mean,
        "momentum is the share that is kept, not the share of the new batch": (1 - (1 - m) ** n) * mean,
        "each step also shrinks what the steps before have added": n * (1 - m) * mean,
        "that is one step only": (1 - m) * mean,
        "that is one step too few": (1 - m ** (n - 1)) * mean,
        "that is one step too many": (1 - m ** (n + 1)) * mean,
        "that is where the center ends after very many steps": mean})


def check_two_entropies(function):
    """`function(probs)` with probs (2, B, K): (mean entropy of the rows, entropy of the mean row), in nats."""
    probs = torch.softmax(3 * torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    probs[0, 0] = torch.eye(8)[2]  # a row that is sure: 0 ln 0 counts 0
    rows, mean = teacher_entropies(probs)
    first = teacher_entropies(probs[:1].expand(2, 6, 8))
    total = torch.special.entr(probs).sum().item()
    per_view = torch.special.entr(probs.mean(1)).sum(-1).mean().item()
    _verdict("two_entropies", function(probs.clone()), (rows, mean), {
        "the two are in the wrong order: first the mean of the rows' entropies": (mean, rows),
        "an entropy has a minus sign in front": (-rows, -mean),
        "these are bits: take the natural logarithm": (rows / math.log(2), mean / math.log(2)),
        "that is of view 0 alone; both views count": first,
        "the first is a mean over the rows, not a sum": (total, mean),
        "the mean row is taken over both views together, not for each view apart": (rows, per_view),
        "the entropy of the mean is not the mean of the entropies: average the rows first": (rows, rows)})


def check_student_gradient(function):
    """`function(s, q, student_temp)`: d/ds of the batch mean of -sum q log softmax(s / student_temp); s, q (B, K)."""
    generator, temp = torch.Generator().manual_seed(1), 0.4  # temp * 5 rows is not 1
    s = torch.randn(5, 6, generator=generator, requires_grad=True)
    q = torch.softmax(2 * torch.randn(5, 6, generator=generator), dim=-1)
    (-q * torch.log_softmax(s / temp, dim=-1)).sum(-1).mean().backward()
    s, right = s.detach(), s.grad
    p, warm = torch.softmax(s / temp, dim=-1), torch.softmax(s, dim=-1)
    _verdict("student_gradient", function(s.clone(), q.clone(), temp), right, {
        "the sign is turned round: a step against the gradient must bring p nearer to q": -right,
        "the inner derivative of s / student_temp is missing": right * temp,
        "the loss is a mean over the batch: divide by the number of rows": right * len(s),
        "both divisions are missing, by the temperature and by the number of rows": p - q,
        "the student's probabilities lack their temperature": (warm - q) / temp / len(s),
        "multiplied by the temperature where it divides": (p - q) * temp / len(s),
        "that is through each logit alone: the softmax ties all of them together": -q / temp / len(s)})


def check_fast_loss(function):
    """`function(student, teacher, center, student_temp, teacher_temp)` -> the loss; its gradient is compared too."""
    generator = torch.Generator().manual_seed(2)
    student, teacher = (torch.randn(v, 3, 8, generator=generator) for v in (5, 2))
    center, hot, cold = torch.randn(8, generator=generator), 0.5, 0.3

    def both(loss):  # the value and the gradient of the student's logits
        s, t = student.clone().requires_grad_(), teacher.clone().requires_grad_()
        value = loss(s, t)
        if value is None:
            return None
        if not torch.is_tensor(value) or not value.requires_grad or value.ndim:
            return value
        value.backward()
        return (value, s.grad) if t.grad is None else (value, s.grad, t.grad)

    def library(s, t, tau_s=hot, tau_t=cold, c=center):
        loss = DINOLoss(8, student_temp=tau_s).eval()
        loss.center += c
        return loss(s, t, tau_t)

    def pairs(s, t, chosen):
        q, p = torch.softmax((t.detach() - center) / cold, dim=-1), torch.log_softmax(s / hot, dim=-1)
        return torch.stack([-(q[i] * p[v]).sum(-1).mean() for i in range(2) for v in range(5) if chosen(i, v)])

    yours = both(lambda s, t: function(s, t, center.clone(), hot, cold))
    if isinstance(yours, tuple) and len(yours) == 3:
        return print("wrong: a gradient flows into the teacher's logits: its probabilities are targets, detach them")
    if torch.is_tensor(yours):
        return print("wrong: fast_loss must give one number with a gradient for the student (a 0-dimensional tensor)")
    _verdict("fast_loss", yours, both(library), {
        "the pairs of a view with itself are in it": both(lambda s, t: pairs(s, t, lambda i, v: True).mean()),
        "the pairs of a view with itself are left out of the sum, but counted in the mean":
            both(lambda s, t: pairs(s, t, lambda i, v: v != i).sum() / 10),
        "the pairs are summed; the loss is their mean": both(lambda s, t: pairs(s, t, lambda i, v: v != i).sum()),
        "views 0 and 1 are paired with their own targets: each is to predict the other":
            both(lambda s, t: pairs(s, t, lambda i, v: v > 1 or v == i).mean()),
        "a local view is in two pairs, a global one in one": both(
            lambda s, t: (pairs(s, t, lambda i, v: v == 1 - i).sum() + pairs(s, t, lambda i, v: v > 1).sum() / 2) / 5),
        "it is summed over the batch; the loss is a mean": both(lambda s, t: 3 * library(s, t)),
        "the two temperatures are swapped": both(lambda s, t: library(s, t, cold, hot)),
        "the center is not subtracted": both(lambda s, t: library(s, t, c=0.0)),
        "the center is added, not subtracted": both(lambda s, t: library(s, t, c=-center)),
        "the student's logits lack their temperature": both(lambda s, t: library(s, t, 1.0)),
        "the local views are left out": both(lambda s, t: pairs(s, t, lambda i, v: v == 1 - i).mean())})


def _each(function, cases):
    """The results of the function on every case, or None where one of them is missing."""
    results = [function(*case) for case in cases]
    return None if any(result is None for result in results) else results


# --- 01: multi-crop ---------------------------------------------------------------------------------------------------


def check_crop_size(your_function):
    """your_function(height, width, share, ratio) -> (h, w) of a crop, whole pixels."""
    cases = [(48, 48, 0.25, 1.33), (96, 64, 0.5, 0.9), (224, 224, 0.4, 0.76), (100, 70, 0.1, 1.3)]

    def right(height, width, share, ratio):
        # crop_boxes with uniforms that stand for this share and this ratio
        tries = torch.tensor([[0.0, math.log(ratio * 4 / 3) / math.log(16 / 9)] * batch_views.CROP_TRIES])
        return batch_views.crop_boxes(tries, torch.zeros(1, 2), (height, width), (share, share))[0, 2:].tolist()

    def sides(height, width, share, ratio, finish):
        area = share * height * width
        return [finish(math.sqrt(area / ratio)), finish(math.sqrt(area * ratio))]

    _verdict("crop_size", _each(your_function, cases), _each(right, cases), {
        "height and width look exchanged: the ratio is width / height": _each(lambda *c: right(*c)[::-1], cases),
        "the share looks applied to each side; it is a share of the area": _each(
            lambda h, w, s, r: [round(s * math.sqrt(h * w / r)), round(s * math.sqrt(h * w * r))], cases),
        "these are areas, not sides: take the square root of each": _each(
            lambda h, w, s, r: [round(s * h * w / r), round(s * h * w * r)], cases),
        "the ratio looks used without a square root, so the area comes out wrong": _each(
            lambda h, w, s, r: [round(math.sqrt(s * h * w) / r), round(math.sqrt(s * h * w) * r)], cases),
        "the sides are equal: the ratio is not used": _each(
            lambda h, w, s, r: sides(h, w, s, 1, round), cases),
        "the sides look cut off, not rounded to the nearest pixel": _each(lambda *c: sides(*c, int), cases),
        "the sides are not rounded to whole pixels": _each(lambda *c: sides(*c, float), cases),
    })


def check_saturation(your_function):
    """your_function(x, factor), x (3, H, W) in [0, 1] -> the same shape, in [0, 1]."""
    x = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    cases = [(x, factor) for factor in (0.0, 0.5, 1.0, 1.6)]
    gray, mean = colours.gray(x[None])[0].expand_as(x), x.mean(0).expand_as(x)

    def blends(other):
        return [torch.lerp(other, x, factor).clamp(0, 1) for _, factor in cases]

    _verdict("saturation", _each(your_function, cases),
             [colours.adjust_saturation(x[None].clone(), torch.tensor([factor]))[0] for _, factor in cases], {
        "factor and 1 - factor look exchanged: factor 1 must leave the image as it is": [
            torch.lerp(x, gray, factor).clamp(0, 1) for _, factor in cases],
        "the grey looks like the plain mean of the channels: green must weigh most and blue least": blends(mean),
        "values leave [0, 1]: clamp them": [torch.lerp(gray, x, factor) for _, factor in cases],
        "this is contrast: blend each pixel with its own grey, not with the mean grey of the image": blends(
            gray.mean().expand_as(x)),
        "this is brightness: blend the image with its grey, not with black": blends(torch.zeros_like(x)),
    })


def check_pairs(your_function):
    """your_function(n_views) -> list of (teacher view, student view)."""
    cases = [(2,), (3,), (6,)]

    def counted(pairs, n):
        """(n, n): how often teacher view i is paired with student view v; -1 everywhere if there is no such view."""
        table = torch.zeros(n, n)
        for i, v in pairs:
            if not (0 <= i < n and 0 <= v < n):
                return torch.zeros(n, n) - 1
            table[i, v] += 1
        return table

    def tables(function):
        lists = _each(function, cases)
        return lists and [counted(pairs, n) for pairs, (n,) in zip(lists, cases, strict=True)]

    def grid(teachers, students, keep=lambda i, v: i != v):
        return tables(lambda n: [(i, v) for i in teachers(n) for v in students(n) if keep(i, v)])

    def globals_(n):
        return range(2)

    _verdict("pairs", tables(your_function), grid(globals_, range), {
        "a view is paired with itself: there is nothing to predict in it": grid(
            globals_, range, lambda i, v: True),
        "local views appear as the teacher's, and the teacher sees the two global views only": grid(range, range),
        "global views are missing on the student's side: it sees all views": grid(globals_, lambda n: range(2, n)),
        "teacher and student look exchanged: each pair is (teacher view, student view)": grid(range, globals_),
        "(0, 1) and (1, 0) are two pairs, and one of them is missing": grid(globals_, range, lambda i, v: i < v),
        "a view has a number outside 0 .. n_views - 1": [torch.zeros(n, n) - 1 for (n,) in cases],
    })


def check_crop_matrix(your_function):
    """your_function(start, length, n_in, n_out) -> (n_out, n_in) weights."""
    cases = [(3, 9, 20, 6), (0, 5, 12, 8), (10, 10, 20, 10), (6, 14, 20, 5)]

    def formula(start, length, n_in, n_out, antialias=True, normalise=True, mask=True, corner=0.5):
        step, pixel = length / n_out, torch.arange(n_in) + corner
        center = start + (torch.arange(n_out)[:, None] + corner) * step
        t = ((pixel - center) / (max(step, 1) if antialias else 1)).abs()
        near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
        if mask:
            weight[:, :start] = weight[:, start + length :] = 0
        return weight / weight.sum(1, keepdim=True) if normalise else weight

    def matrices(**change):
        return _each(lambda *case: formula(*case, **change), cases)

    def masked_late(start, length, n_in, n_out):
        weight = formula(start, length, n_in, n_out, mask=False)
        weight[:, :start] = weight[:, start + length :] = 0
        return weight

    def right(start, length, n_in, n_out):
        return batch_views.crop_matrix(torch.tensor([float(start)]), torch.tensor([float(length)]), n_in, n_out)[0]

    yours = _each(your_function, cases)
    if any(torch.is_tensor(m) and m.ndim == 2 and (m.isnan() | (m == 0)).all(1).any() for m in yours or []):
        return print("wrong: a row is all zero: are the centres inside start ... start + length?")  # 0 / 0 is NaN
    _verdict("crop_matrix", yours, _each(right, cases), {
        "the kernel looks beyond the crop: pixels outside start .. start + length must weigh nothing": matrices(
            mask=False),
        "the kernel is not stretched where the crop shrinks, so pixels are skipped": matrices(antialias=False),
        "the rows do not sum to 1: divide by their sum after masking": matrices(normalise=False),
        "a row does not sum to 1: mask first, then divide": _each(masked_late, cases),
        "the crop begins at pixel 0, so `start` seems unused": _each(
            lambda start, *rest: formula(0, *rest), cases),
        "the centre of pixel i lies at i + 0.5, not at i": matrices(corner=0.0),
    })


# --- 05: training -----------------------------------------------------------------------------------------------------


def check_plan_run(your_function):
    """your_function(n_images, batch_size, epochs, momentum) -> (updates, half-life, half-lives in the run)."""
    n, batch, epochs, m = 1000, 300, 7, 0.97
    updates, life = n // batch * epochs, half_life(m)

    def plan(updates, life=life):
        return updates, life, updates / life

    _verdict("plan_run", your_function(n, batch, epochs, m), plan(updates), {
        "the incomplete batch is dropped in every epoch, not once at the end of the run": plan(n * epochs // batch),
        "the incomplete batch counts as an update; it is dropped": plan(math.ceil(n / batch) * epochs),
        "a fraction of a batch counts as a fraction of an update; it is dropped": plan(n / batch * epochs),
        "these are the updates of one epoch, not of the run": plan(n // batch),
        "these are images, not updates: each update uses a whole batch": plan(n * epochs),
        "the number of half-lives is a fraction: do not round it": (updates, life, round(updates / life)),
        "the number of half-lives is a fraction: do not cut it off": (updates, life, updates // life),
        "1 / (1 - m) is the mean age of what the teacher holds, not the half-life": plan(updates, 1 / (1 - m)),
        "that is the time until a weight counts 1/e, not one half": plan(updates, -1 / math.log(m)),
        "the half-life has the wrong sign: both logarithms are negative": plan(updates, -life),
        "the last one is turned round: updates of the run by updates of a half-life": (updates, life, life / updates),
        "the order is (updates, half-life, half-lives in the run)": (life, updates, updates / life),
    })


def check_initial_share(your_function):
    """your_function(momenta), an array with the momentum of each update -> the weight of the teacher's start."""
    momenta = cosine_schedule(0.5, 1.0, 12)
    teacher, student = (torch.nn.Linear(1, 1, bias=False, dtype=torch.float64) for _ in range(2))
    torch.nn.init.ones_(teacher.weight)
    torch.nn.init.zeros_(student.weight)
    for m in momenta:
        ema_update(teacher, student, float(m))
    right = teacher.weight.item()
    _verdict("initial_share", your_function(momenta.copy()), right, {
        "that is the share of what has been learned since; the start has the rest": 1 - right,
        "1 - m is the student's share at each update": np.prod(1 - momenta),
        "the momentum changes: its first value does not hold for all updates": momenta[0] ** len(momenta),
        "the momentum changes: its last value does not hold for all updates": momenta[-1] ** len(momenta),
        "the mean momentum is not enough: the product of different numbers is less than that": momenta.mean() ** 12,
        "the shares of the updates multiply; that is their mean": momenta.mean(),
        "the last update is missing": np.prod(momenta[:-1]),
        "that is the logarithm of the share": math.log(right),
    })


def check_split_loss(your_function):
    """your_function(student, teacher, center, student_temp, teacher_temp) -> (entropy, divergence), batch means."""
    generator, hot, cold = torch.Generator().manual_seed(5), 0.7, 0.4
    student, teacher = (torch.randn(6, 9, generator=generator) for _ in range(2))
    center = torch.randn(9, generator=generator)

    def split(hot=hot, cold=cold, center=center):
        loss = DINOLoss(9, student_temp=hot).eval()
        loss.center += center
        both = teacher.expand(2, 6, 9)
        entropy = teacher_entropies(loss.teacher_probs(both, cold))[0]
        return entropy, loss(student.expand(2, 6, 9), both, cold).item() - entropy

    entropy, divergence = split()
    p, q = torch.softmax(student / hot, dim=-1), torch.softmax((teacher - center) / cold, dim=-1)
    backward = (p * (p / q).log()).sum(-1).mean().item()
    of_student = torch.special.entr(p).sum(-1).mean().item()
    _verdict("split_loss", your_function(student.clone(), teacher.clone(), center.clone(), hot, cold),
             (entropy, divergence), {
        "the center is not subtracted from the teacher's logits": split(center=0.0),
        "the center is added, not subtracted": split(center=-center),
        "the two temperatures are swapped": split(cold, hot),
        "the student's logits lack their temperature": split(hot=1.0),
        "the teacher's logits lack their temperature": split(cold=1.0),
        "the divergence goes the wrong way: the teacher's probabilities are the weights": (entropy, backward),
        "the second is the whole loss; the divergence is what the entropy leaves of it": (
            entropy, entropy + divergence),
        "the first is the whole loss, not the teacher's entropy": (entropy + divergence, divergence),
        "the first is the student's entropy, not the teacher's": (of_student, divergence),
        "take the entropy of each row and then the mean, not the entropy of the mean row": (
            torch.special.entr(q.mean(0)).sum().item(), divergence),
        "an entropy has a minus sign in front": (-entropy, divergence),
        "the divergence has the wrong sign: it is never negative": (entropy, -divergence),
        "both are means over the batch, not sums": (6 * entropy, 6 * divergence),
        "sum over the prototypes: the mean is over the batch alone": (entropy / 9, divergence / 9),
        "the order is (entropy, divergence)": (divergence, entropy),
        "these are bits: take the natural logarithm": (entropy / math.log(2), divergence / math.log(2)),
    }, tolerance=1e-4)


def check_diagnose(your_function):
    """your_function(history, out_dim) -> "uniform", "one prototype", "same for all" or "healthy"."""
    words, k = ("uniform", "one prototype", "same for all", "healthy"), 64
    noise, same = torch.randn(2, 16, k, generator=torch.Generator().manual_seed(6)), torch.zeros(2, 16, k)
    same[..., 3] = 30
    apart = 30 * torch.eye(k)[:32].view(2, 16, k)  # each row sure of a prototype of its own
    shared = 0.1 * noise + 30 * (torch.arange(k) < 8)  # every row the same eight prototypes

    def line(step, logits, loss):
        rows, mean = teacher_entropies(torch.softmax(logits, dim=-1))
        return {"step": step, "loss": loss, "teacher_entropy": rows, "mean_entropy": mean}

    evaluation = {"step": 20, "knn": 0.5}
    histories = [[line(10, noise, 3.0), line(20, last, loss), evaluation] for last, loss in [
        (0.01 * noise, 4.15), (same, 0.01), (2 * noise, 3.5), (apart, 0.2), (2 * noise, 4.1), (noise, 3.9),
        (shared, 2.1)]]
    histories.append([line(10, same, 0.01), line(20, 2 * noise, 3.5), evaluation])
    histories.append([line(10, 0.01 * noise, 4.15), line(20, same, 0.01), evaluation])

    def verdicts(row="teacher_entropy", batch="mean_entropy", which=-1, log=math.log, names=words, gap=0.05):
        found, top = [], log(k)
        for history in histories:
            last = [r for r in history if "loss" in r][which]
            found.append(names[0] if last[row] > 0.95 * top else names[1] if last[batch] < 0.2 * top
                         else names[2] if last[batch] - last[row] < gap * top else names[3])
        return [words.index(word) for word in found]

    no_entropies = "the last line may be an evaluation, which has no entropies: take the last one that has them"
    try:
        given = [your_function([dict(r) for r in history], k) for history in histories]
    except KeyError as error:
        return print(f"wrong: a line has no {error}; {no_entropies}")
    odd = [word for word in given if word is not None and word not in words]
    if odd:
        return print(f"wrong: diagnose gives {odd[0]!r}; the words are {', '.join(map(repr, words))}")
    yours = None if None in given else [words.index(word) for word in given]
    return _verdict("diagnose", yours, verdicts(), {
        "confident rows are no collapse while they differ: ask the entropy of the batch's mean whether all "
        "pictures get one prototype": verdicts(batch="teacher_entropy"),
        "a batch that uses all prototypes alike is no collapse: ask the rows whether each of them is undecided":
            verdicts(row="mean_entropy"),
        "the two entropies look exchanged": verdicts("mean_entropy", "teacher_entropy"),
        "the loss does not tell: it may be low or high in a healthy run": verdicts("loss", "loss"),
        "it is the last line that counts, and this looks at the first": verdicts(which=0),
        "every run is one prototype for it: the bounds are shares of ln K, not of K, and " + no_entropies:
            verdicts(log=float),
        "the bounds are shares of ln K, and not nats: ln K is missing": verdicts(log=lambda _: 1.0),
        "a target that is the same for all pictures says nothing of any of them: compare the two entropies":
            verdicts(gap=-1.0),
        "the bounds are shares of the natural logarithm of K, and these look like bits": verdicts(log=math.log2),
        "the two kinds of collapse look exchanged": verdicts(names=("one prototype", "uniform", *words[2:])),
        "it calls every run the same": [3] * len(histories),
    })


# --- 04: the teacher --------------------------------------------------------------------------------------------------

def check_momentum_for(function):
    """`function(total_steps, share)`: the momentum whose half-life is that share of the run."""
    total, share = 20, 0.25
    n = share * total
    _verdict("momentum_for", function(total, share), 0.5 ** (1 / n), {
        "after that many updates 1/e is left, not a half": math.exp(-1 / n),
        "1 - 1/n leaves about 1/e after n updates: solve m^n = 1/2": 1 - 1 / n,
        "1 - 1/(2n) is no solution of m^n = 1/2": 1 - 0.5 / n,
        "after the half-life a half is left, whatever share of the run that is": share ** (1 / n),
        "the half-life is a share of the run, not the whole of it": 0.5 ** (1 / total),
        "that is the share left after the half-life in updates, with a momentum of 1/2": 0.5**n,
        "that is what the student adds at each update; the momentum is what the teacher keeps": 1 - 0.5 ** (1 / n)})


def check_temperature_schedule(function):
    """`function(start, final, total_steps, warmup_steps)`: linear to `final`, both ends included, then constant."""
    start, final, total, warm = 0.04, 0.07, 10, 4
    right = linear_warmup(start, final, total, warm)
    rest = np.full(total - warm, final)
    _verdict("temperature_schedule", function(start, final, total, warm), right, {
        "the warm-up takes the whole run: it ends after warmup_steps values": np.linspace(start, final, total),
        "the warm-up starts at 0, not at `start`": np.concatenate([np.linspace(0, final, warm), rest]),
        "the warm-up never reaches `final`: both ends belong to it":
            np.concatenate([np.linspace(start, final, warm, endpoint=False), rest]),
        "the warm-up is linear, not a piece of a cosine": np.concatenate(
            [start + (final - start) * (1 - np.cos(np.linspace(0, math.pi, warm))) / 2, rest]),
        "it jumps: the warm-up is linear": np.concatenate([np.full(warm, start), rest]),
        "start and final are swapped": linear_warmup(final, start, total, warm),
        "after the warm-up it must stay, not fall along a cosine":
            cosine_schedule(final, start, total, warmup_steps=warm, start=start)})


def check_ema_weights(function):
    """`function(momenta)`: the weight of the start and of each later student in the teacher, (n,) -> (n + 1,)."""
    momenta = np.array([0.5, 0.8, 0.9, 0.6])

    def library(sequence):
        students = torch.eye(len(sequence) + 1, dtype=torch.float64)  # one axis for each, to tell them apart
        teacher = torch.nn.ParameterList([students[0].clone()]).requires_grad_(False)
        for m, student in zip(sequence, students[1:], strict=True):
            ema_update(teacher, torch.nn.ParameterList([student]), float(m))
        return teacher[0].numpy()

    right, kept = library(momenta), np.cumprod(momenta[::-1])[::-1]  # kept[j]: product of momenta[j:]
    _verdict("ema_weights", function(momenta.copy()), right, {
        "the order of time is turned round: the newest student comes last": right[::-1].copy(),
        "momenta are used from the last to the first": library(momenta[::-1]),
        "momentum is what the teacher keeps; the student adds the rest": library(1 - momenta),
        "the student after update j is not shrunk by update j itself":
            np.concatenate([kept[:1], (1 - momenta) * kept]),
        "later updates shrink a student with their own momenta, not with the one of its update":
            np.concatenate([kept[:1], (1 - momenta) * momenta ** np.arange(len(momenta))[::-1]]),
        "a student is shrunk by the updates after it, not by those before it":
            np.concatenate([kept[:1], (1 - momenta) * np.cumprod(momenta) / momenta]),
        "the common start has a weight too, the product of all momenta": np.concatenate([[0.0], right[1:]]),
        "each student is shrunk by the updates after it": np.concatenate([kept[:1], 1 - momenta]),
        "each student adds only 1 - momentum of itself": np.concatenate([kept, [1.0]])})


def check_accumulated_step(function):
    """`function(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp)`: two updates, in place."""
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
        "center in every part": "the center moves once an update, from all rows together, not once a part",
        "center of the last part": "the center needs the rows of all parts, not of the last one alone",
        "center stays": "the center does not move: update_center=False leaves that to you",
        "teacher in every part": "the teacher follows once an update, not once a part",
        "step in every part": "the optimizer steps once an update, not once a part",
        "gradient stays": "the gradient of the update before is still there: zero it",
        "teacher first": "the teacher follows after the optimizer's step, not before it",
        "teacher stays": "the teacher does not move: it follows the student after each update",
        "update in every part": "this makes an update of every part; the parts belong to one update",
        "reversed": "momentum is what the teacher keeps of itself, not what it takes from the student"}
    _verdict("accumulated_step", yours, after(whole), {
        hint: after(lambda *rest, mistake=mistake: _accumulate(*rest, mistake=mistake))
        for mistake, hint in mistakes.items()})


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
        loss = loss_fn(student(views), targets, teacher_temp, update_center=mistake == "center in every part")
        (loss if mistake == "scale" else loss / len(parts)).backward()
        rows.append(targets)
        if mistake == "step in every part":
            optimizer.step()
            optimizer.zero_grad()
        if mistake == "teacher in every part":
            ema_update(teacher, student, momentum)
    if mistake not in ("center stays", "center in every part"):
        loss_fn.update_center(rows[-1] if mistake == "center of the last part" else torch.cat(rows, dim=1))
    if mistake == "teacher first":
        ema_update(teacher, student, momentum)
    if mistake != "step in every part":
        optimizer.step()
    if mistake not in ("teacher first", "teacher in every part", "teacher stays"):
        ema_update(teacher, student, momentum)


# --- 02: backbone and head --------------------------------------------------------------------------------------------


def check_cosine_logits(your_function):
    """your_function(features (N, d), directions (K, d)) -> (N, K) cosines."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 5, generator=generator), 2 * torch.randn(5, 5, generator=generator)
    unit_x, unit_w = (t / t.norm(dim=1, keepdim=True) for t in (x, w))
    layer = DINOHead(5, 5, bottleneck_dim=5, n_layers=1).requires_grad_(False)
    layer.mlp[0].weight.copy_(torch.eye(5))
    layer.directions.copy_(w)
    _verdict("cosine_logits", your_function(x, w), layer(x), {
        "nothing is normalised: these are plain dot products": x @ w.T,
        "the features are not normalised": x @ unit_w.T,
        "the prototypes are not normalised": unit_x @ w.T,
        "the length is taken over the wrong axis: each row is one vector": (x / x.norm(dim=0)) @ (w / w.norm(dim=0)).T,
        "rows are prototypes and columns features: the result is transposed": unit_w @ unit_x.T,
        "this is a softmax of the logits; it belongs to the loss": (unit_x @ unit_w.T).softmax(1),
    })


def check_head_parameters(your_function):
    """your_function(in_dim, out_dim, hidden_dim, bottleneck_dim) -> trainable parameters of the three-layer head."""
    cases = [(384, 65536, 2048, 256), (128, 256, 512, 128), (7, 5, 11, 3)]

    with torch.device("meta"):  # shapes without numbers
        heads = [DINOHead(d, k, hidden_dim=hidden, bottleneck_dim=b) for d, k, hidden, b in cases]
    right = [sum(p.numel() for p in head.parameters() if p.requires_grad) for head in heads]

    def off(difference):
        return [1 + difference(*case) for case in cases]

    # counts are compared by their differences, plus 1: of millions, one bias vector more would pass for close
    yours = _each(your_function, cases)
    if yours is not None and all(isinstance(n, int | float | np.generic | torch.Tensor) for n in yours):
        yours = [1 + n - exact for n, exact in zip(yours, right, strict=True)]
    _verdict("head_parameters", yours, off(lambda *_: 0), {
        "the biases of the three Linears are missing": off(lambda d, k, h, b: -2 * h - b),
        "the frozen gains are counted, or biases that prototypes do not have": off(lambda d, k, h, b: k),
        "one bias vector too many: each Linear has one bias for each of its outputs": off(lambda d, k, h, b: h),
        "one bias vector too many: the bottleneck has one": off(lambda d, k, h, b: b),
        "the second hidden Linear, hidden to hidden, is missing": off(lambda d, k, h, b: -h * h - h),
        "the prototypes are missing": off(lambda d, k, h, b: -k * b),
        "the bottleneck is missing: prototypes lie in its space, not in the hidden one": off(
            lambda d, k, h, b: k * h - k * b - h * b - b),
    }, tolerance=1e-12)


def check_group_views(your_function):
    """your_function(sizes) -> list of (start, stop), one for each pass through the backbone."""
    cases = [([96, 96, 48, 48, 48],), ([64],), ([32, 32, 64, 32],), ([48, 32, 32, 16],)]

    def runs(sizes):
        """The passes that MultiCropModel makes: as many views as come in at once."""
        passes = []

        def backbone(x):
            passes.append(len(x))
            return x.flatten(1)[:, :1]

        MultiCropModel(backbone, None).features([torch.zeros(1, 1, size, size) for size in sizes])
        stops = np.cumsum(passes).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def table(groups):
        """Always the same shape, however many groups: (8, 2), filled up with -1."""
        rows = [[float(a), float(b)] for a, b in groups][:8]
        return torch.tensor(rows + [[-1.0, -1.0]] * (8 - len(rows)))

    def tables(function):
        found = _each(function, cases)
        return found and [table(groups) for groups in found]

    def merged(sizes):
        return [(sizes.index(s), len(sizes) - sizes[::-1].index(s)) for s in dict.fromkeys(sizes)]

    def counted(sizes):
        stops = np.cumsum([sizes.count(s) for s in dict.fromkeys(sizes)]).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    _verdict("group_views", tables(your_function), tables(runs), {
        "one pass for each view: consecutive views of one size can share theirs": tables(
            lambda sizes: [(i, i + 1) for i in range(len(sizes))]),
        "everything in one pass: tensors of different sizes don't fit into one batch": tables(
            lambda sizes: [(0, len(sizes))]),
        "views that are not neighbours share a pass, so the order of the views is lost": tables(merged),
        "views that are not neighbours were joined": tables(counted),
        "`stop` is one past the last view, as in a slice": tables(
            lambda sizes: [(a, b - 1) for a, b in runs(sizes)]),
        "the last group is missing": tables(lambda sizes: runs(sizes)[:-1]),
        "these look like sizes or counts: give (start, stop), positions in the list": tables(
            lambda sizes: [(sizes[a], b - a) for a, b in runs(sizes)]),
    })


def check_normalize_backward(your_function):
    """your_function(z (N, d), grad (N, d)) -> the gradient by z, where grad is the one by z / |z|."""
    generator = torch.Generator().manual_seed(0)
    z, grad = 3 * torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    x = z.clone().requires_grad_()
    torch.nn.functional.normalize(x, dim=-1, eps=1e-12).backward(grad)
    length = z.norm(dim=1, keepdim=True)
    unit = z / length
    along = (grad * unit).sum(1, keepdim=True) * unit
    _verdict("normalize_backward", your_function(z, grad), x.grad, {
        "the part along z is still there: moving along z does not change its direction": grad / length,
        "the division by the length of z is missing: a long z turns slowly": grad - along,
        "the projection uses z itself, where it needs z divided by its length": (
            grad - (grad * z).sum(1, keepdim=True) * z) / length,
        "only the part along z is left, and that is the part to remove": along / length,
        "the part along z is added instead of removed": (grad + along) / length,
        "one length for the whole batch: each row has its own": (grad - along) / z.norm(),
    })


# --- 06: attention ----------------------------------------------------------------------------------------------------


def check_head_entropy(your_function):
    """your_function(maps (B, heads, h, w)) -> (heads,): the entropy in nats of a head's maps, averaged over B."""
    maps = 0.9 * torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)).flatten(2).softmax(-1)
    maps[0, 0, 0] = 0  # 0 ln 0 counts 0
    p = maps / maps.sum(-1, keepdim=True)
    entropy = torch.special.entr(p).sum(-1)  # (B, heads)
    _verdict("head_entropy", your_function(maps.unflatten(-1, (4, 6))), entropy.mean(0), {
        "the maps don't sum to 1 yet: divide out what the prefix tokens hold": torch.special.entr(maps).sum(-1).mean(0),
        "these are bits: take the natural logarithm": entropy.mean(0) / math.log(2),
        "an entropy has a minus sign in front": -entropy.mean(0),
        "the entropies are summed over the pictures, not averaged": entropy.sum(0),
        "that is the entropy of the mean map: average the entropies, not the maps": torch.special.entr(
            p.mean(0)).sum(-1),
        "an entropy sums over the patches, not averages": entropy.mean(0) / 24,
        "that is one number a picture: average over the pictures, keep the heads": entropy.mean(1),
        "each map sums to 1 by itself, not all the heads of a picture together": torch.special.entr(
            maps / maps.sum((1, 2), keepdim=True)).sum(-1).mean(0)})


def check_mask_to_box(your_function):
    """your_function(mask bool (h, w), patch_size) -> (top, left, height, width) in pixels."""
    cases = []
    for seed, patch in enumerate((8, 6, 14)):
        mask = torch.zeros(7, 9, dtype=torch.bool)
        mask[seed + 1 : 5, 2 : 8 - seed] = torch.rand(4 - seed, 6 - seed,
                                                      generator=torch.Generator().manual_seed(seed)) > 0.6
        cases.append((mask, patch))

    def ends(mask, axis):
        found = mask.any(1 - axis).nonzero()[:, 0]
        return found[0].item(), found[-1].item() + 1

    def boxes(box):
        return [[value * patch for value in box(*ends(mask, 0), *ends(mask, 1))] for mask, patch in cases]

    right = boxes(lambda top, bottom, left, end: (top, left, bottom - top, end - left))
    _verdict("mask_to_box", _each(your_function, cases), right, {
        "height and width are one patch short: the last patch belongs to the box": boxes(
            lambda top, bottom, left, end: (top, left, bottom - top - 1, end - left - 1)),
        "these are patches: multiply by the patch size": [
            [value // patch for value in box] for box, (_, patch) in zip(right, cases, strict=True)],
        "rows and columns look exchanged: top and height go with rows": boxes(
            lambda top, bottom, left, end: (left, top, end - left, bottom - top)),
        "these look like corners: give height and width, not bottom and right": boxes(
            lambda top, bottom, left, end: (top, left, bottom, end)),
        "these look like corners, one patch short: give height and width": boxes(
            lambda top, bottom, left, end: (top, left, bottom - 1, end - 1)),
        "that is the whole picture: only the True patches count": [
            [0, 0, 7 * patch, 9 * patch] for _, patch in cases]})


def check_patch_row(your_function):
    """your_function(matrix (heads, T, T), row, col, grid, n_prefix) -> (heads, h, w)."""
    cases = []
    for seed, (grid, n_prefix, row, col) in enumerate([((3, 5), 1, 1, 2), ((4, 3), 5, 2, 1)]):
        tokens = n_prefix + grid[0] * grid[1]
        matrix = torch.randn(2, tokens, tokens, generator=torch.Generator().manual_seed(seed)).softmax(-1)
        cases.append((matrix, row, col, grid, n_prefix))

    def rows(take):
        return [take(*case) for case in cases]

    _verdict("patch_row", _each(your_function, cases), rows(
        lambda m, r, c, g, n: m[:, n + r * g[1] + c, n:].unflatten(-1, g)), {
        "the prefix tokens come first, so the patch's number must be moved on by them": rows(
            lambda m, r, c, g, n: m[:, r * g[1] + c, n:].unflatten(-1, g)),
        "a row of the grid has as many patches as the grid is wide": rows(
            lambda m, r, c, g, n: m[:, n + r * g[0] + c, n:].unflatten(-1, g)),
        "row and col look exchanged": rows(
            lambda m, r, c, g, n: m[:, n + c * g[1] + r, n:].unflatten(-1, g)),
        "that is a column of the matrix, who attends to the patch; its row says what it attends to": rows(
            lambda m, r, c, g, n: m[:, n:, n + r * g[1] + c].unflatten(-1, g)),
        "the map still begins with prefix tokens: leave them out": rows(
            lambda m, r, c, g, n: m[:, n + r * g[1] + c, : g[0] * g[1]].unflatten(-1, g)),
        "only CLS is skipped; registers come before the patches too": rows(
            lambda m, r, c, g, n: m[:, n + r * g[1] + c, 1 : 1 + g[0] * g[1]].unflatten(-1, g)),
        "that is the CLS token's row": rows(lambda m, r, c, g, n: m[:, 0, n:].unflatten(-1, g)),
        "the map was made to sum to 1; give the entries as they are": rows(
            lambda m, r, c, g, n: (m[:, n + r * g[1] + c, n:] / m[:, n + r * g[1] + c, n:].sum(
                -1, keepdim=True)).unflatten(-1, g))})


def check_rollout(your_function):
    """your_function([matrix (heads, T, T) of block 1, 2, ...]) -> (T,): the CLS token's row of the rollout."""
    generator = torch.Generator().manual_seed(0)
    matrices = [(2 * torch.randn(3, 6, 6, generator=generator)).softmax(-1) for _ in range(3)]
    identity = torch.eye(6)

    def product(kept=0.5, heads=lambda m: m.mean(0), last_first=False, which=3):
        total = identity
        for matrix in matrices[:which]:
            step = (1 - kept) * heads(matrix) + kept * identity
            total = total @ step if last_first else step @ total
        return total

    right = product()[0]
    summed = torch.linalg.multi_dot([m.mean(0) + identity for m in reversed(matrices)])[0]
    _verdict("rollout", your_function([matrix.clone() for matrix in matrices]), right, {
        "the blocks are multiplied in the wrong order: the last one stands on the left": product(last_first=True)[0],
        "the residual connection is missing: add the identity to each mean": product(kept=0.0)[0],
        "each sum of mean and identity must be halved, or the rows don't sum to 1": summed,
        "that is a column of the product; row 0 belongs to the CLS token": product()[:, 0],
        "that is the whole product: give its row 0": product(),
        "the heads are averaged; that is their maximum": product(heads=lambda m: m.amax(0))[0],
        "the heads are averaged; that is the first one alone": product(heads=lambda m: m[0])[0],
        "the heads are averaged, not summed": product(heads=lambda m: m.sum(0))[0],
        "the last block is missing": product(which=2)[0]})
