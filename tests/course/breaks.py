"""Mistakes in dino_lib that a notebook's comparisons must catch, as changes of what it does.

Each break is a function that changes the library in the process it is called in: a public function
or method gives way to a wrong one. None of them knows how the right one is written.
"""

import dataclasses
import functools
import inspect
import sys

import numpy as np
import torch
import torch.nn.functional as F

BREAKS = {"01": {}, "02": {}, "03": {}, "04": {}, "05": {}, "06": {}, "07": {}, "08": {}, "A1": {}}


def breaks(what, *notebooks):
    """Register a break of these notebooks under a sentence that says what is wrong."""

    def register(function):
        for notebook in notebooks:
            BREAKS[notebook][what] = function
        return function

    return register


def library():
    """Every module of dino_lib that is loaded."""
    return [m for name, m in sorted(sys.modules.items()) if name.split(".")[0] == "dino_lib" and m]


def find(name):
    """The function or class of this name in dino_lib; the checks of the course bear the same."""
    modules = [m for m in library() if not m.__name__.startswith("dino_lib.course")]
    found = {getattr(m, name) for m in modules if name in vars(m)}
    assert len(found) == 1, f"{len(found)} things in dino_lib are called {name}"
    return found.pop()


def change(name, wrong):
    """wrong(right, *args, **kwargs) takes the place of a function of the library, everywhere."""
    right = find(name)

    @functools.wraps(right)
    def instead(*args, **kwargs):
        return wrong(right, *args, **kwargs)

    for module in library():
        if vars(module).get(name) is right:
            setattr(module, name, instead)


def change_method(name, method, wrong):
    """wrong(right, self, *args, **kwargs) takes the place of a method."""
    owner = find(name)
    right = getattr(owner, method)

    @functools.wraps(right)
    def instead(self, *args, **kwargs):
        return wrong(right, self, *args, **kwargs)

    setattr(owner, method, instead)


def change_step(name, method, wrong):
    """`change_method` that holds within the trainer's own step alone: the cells' steps stay
    right.
    """
    inside = []

    def step(right, self, *args, **kwargs):
        inside.append(True)
        try:
            return right(self, *args, **kwargs)
        finally:
            inside.pop()

    change_method("Trainer", "train_step", step)
    change_method(
        name, method, lambda right, *a, **k: wrong(right, *a, **k) if inside else right(*a, **k)
    )


# --- 01: multi-crop ---------------------------------------------------------------------------


@breaks("views 0 and 1 are exchanged", "01")
def _():
    def wrong(right, self, image):
        first, second, *rest = right(self, image)
        return [second, first, *rest]

    change_method("MultiCrop", "__call__", wrong)


@breaks("local views first", "01")
def _():
    change_method("BatchMultiCrop", "__call__", lambda right, *a, **k: right(*a, **k)[::-1])


@breaks("local views at the global scale", "01")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs | {"local_scale": (0.4, 1.0)})

    change_method("MultiCrop", "__init__", wrong)


@breaks("local crops of a batch at the global scale", "01")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs | {"local_scale": (0.4, 1.0)})

    change_method("BatchMultiCrop", "__init__", wrong)


@breaks("the ratio is not logarithmic", "01")
def _():
    def wrong(right, tries, *rest):
        tries = tries.clone()
        low, high = np.log(3 / 4), np.log(4 / 3)
        ratio = 3 / 4 + (4 / 3 - 3 / 4) * tries[:, 1::2]
        tries[:, 1::2] = (ratio.log() - low) / (high - low)
        return right(tries, *rest)

    change("crop_boxes", wrong)


@breaks("views are a pixel off", "01", "A1")
def _():
    def wrong(right, *args, **kwargs):
        return [view.roll(1, -1) for view in right(*args, **kwargs)]

    change_method("BatchMultiCrop", "__call__", wrong)


@breaks("views are blurred where none is asked for", "01", "A1")
def _():
    def wrong(right, *args, **kwargs):
        views = right(*args, **kwargs)
        return [F.avg_pool2d(v, 3, stride=1, padding=1, count_include_pad=False) for v in views]

    change_method("BatchMultiCrop", "__call__", wrong)


@breaks("every view is mirrored", "01", "A1")
def _():
    def wrong(right, *args, **kwargs):
        return [view.flip(-1) for view in right(*args, **kwargs)]

    change_method("BatchMultiCrop", "__call__", wrong)


@breaks("always solarized", "01")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs | {"solarize_p": 1.0})

    change_method("MultiCrop", "__init__", wrong)


@breaks("never grey", "01")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs | {"gray_p": 0.0})

    change_method("MultiCrop", "__init__", wrong)


@breaks("the same views in every epoch", "01")
def _():
    change("view_uniforms", lambda right, seed, epoch, indices, n: right(seed, 0, indices, n))


@breaks("the same views for every seed", "01")
def _():
    change("view_uniforms", lambda right, seed, epoch, indices, n: right(0, epoch, indices, n))


# --- A1: resampling ---------------------------------------------------------------------------


@breaks("a crop that shrinks skips pixels", "A1")
def _():
    def wrong(right, start, length, n_in, n_out):
        narrow = right(start, torch.full_like(length, n_out), n_in, n_out)
        return torch.where(
            (length > n_out)[:, None, None], narrow, right(start, length, n_in, n_out)
        )

    change("crop_matrix", wrong)


@breaks("the rows of a matrix do not sum to 1", "A1")
def _():
    change("crop_matrix", lambda right, *args: 1.05 * right(*args))


@breaks("a crop begins a pixel late", "A1")
def _():
    change("crop_matrix", lambda right, start, *rest: right(start + 1, *rest))


@breaks("rows and columns of a product are exchanged", "A1")
def _():
    change("crops_by_products", lambda right, *args: right(*args).transpose(-1, -2))


@breaks("products never mirror", "A1")
def _():
    def wrong(right, images, image, box, flip, size):
        return right(images, image, box, torch.zeros_like(flip), size)

    change("crops_by_products", wrong)


# --- 02: backbone and head --------------------------------------------------------------------


@breaks("the feature is the last patch", "02")
def _():
    def wrong(right, self, x):
        return self.patch_tokens(x)[:, -1, -1] if self.has_cls else right(self, x)

    change_method("Backbone", "forward", wrong)


@breaks("the grid is transposed", "02")
def _():
    change_method("Backbone", "patch_tokens", lambda right, self, x: right(self, x).transpose(1, 2))


def _logits(self, x, *, normalise=True, directions=lambda w: F.normalize(w, dim=-1), gelu=False):
    """The head, put together anew with a part of it changed."""
    z = self.mlp(x)
    z = F.gelu(z) if gelu else z
    z = F.normalize(z, dim=-1) if normalise else z
    return z @ (directions(self.directions) * self.gain[:, None]).T


@breaks("no L2 normalisation", "02")
def _():
    change_method("DINOHead", "forward", lambda right, self, x: _logits(self, x, normalise=False))


@breaks("no weight norm", "02")
def _():
    change_method(
        "DINOHead", "forward", lambda right, self, x: _logits(self, x, directions=lambda w: w)
    )


@breaks("the length of a direction counts as a constant", "02")
def _():
    def directions(w):
        return w / w.detach().norm(dim=-1, keepdim=True)

    change_method(
        "DINOHead", "forward", lambda right, self, x: _logits(self, x, directions=directions)
    )


@breaks("GELU after the bottleneck", "02")
def _():
    change_method("DINOHead", "forward", lambda right, self, x: _logits(self, x, gelu=True))


@breaks("the gains are trained", "02")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs | {"norm_last_layer": False})

    change_method("DINOHead", "__init__", wrong)


@breaks("torch's own initialisation", "02")
def _():
    def wrong(right, self, *args, **kwargs):
        right(self, *args, **kwargs)
        for module in self.mlp:
            if isinstance(module, torch.nn.Linear):
                module.reset_parameters()

    change_method("DINOHead", "__init__", wrong)


@breaks("views and images are mixed up", "02")
def _():
    def wrong(right, self, views):
        logits = self.head(self.features(views))
        return logits.unflatten(0, (-1, len(views))).transpose(0, 1)

    change_method("MultiCropModel", "forward", wrong)


# --- 03: the loss -----------------------------------------------------------------------------


def _loss(
    self,
    student,
    teacher,
    teacher_temp,
    *,
    update_center=True,
    pairs=lambda i, v: i != v,
    mean=True,
    batch_mean=True,
    student_temp=None,
    student_first=False,
    detach=True,
    center=None,
):
    """The loss, put together anew with a part of it changed."""
    center = self.center if center is None else center
    student_temp = student_temp or self.student_temp
    q = F.softmax((teacher.float() - center) / teacher_temp, dim=-1)
    q = q.detach() if detach else q
    p = F.log_softmax(student.float() / student_temp, dim=-1)
    p = p.detach() if student_first else p
    chosen = [(i, v) for i in range(2) for v in range(len(student)) if pairs(i, v)]
    rows = [-(q[i] * p[v]).sum(-1) for i, v in chosen]
    terms = torch.stack([row.mean() if batch_mean else row.sum() for row in rows])
    if self.training and update_center:
        self.update_center(teacher)
    return terms.mean() if mean else terms.sum()


def _break_loss(what, *notebooks, **changed):
    @breaks(what, *notebooks)
    def _():
        change_method("DINOLoss", "forward", lambda right, *a, **k: _loss(*a, **k, **changed))


_break_loss("the center is not subtracted", "03", "07", center=0.0)
_break_loss("a view predicts itself too", "03", "07", pairs=lambda i, v: True)
_break_loss("a global view predicts itself alone", "03", pairs=lambda i, v: v > 1 or i == v)
_break_loss("summed over the batch", "03", batch_mean=False)
_break_loss("summed over the pairs", "03", mean=False)
_break_loss("the student's temperature is the doubled one", "03", student_temp=0.2)
_break_loss("the teacher gets a gradient", "03", "07", detach=False)


@breaks("the temperatures are swapped", "03", "07")
def _():
    def wrong(right, self, student, teacher, teacher_temp, **kwargs):
        return _loss(self, student, teacher, self.student_temp, student_temp=teacher_temp, **kwargs)

    change_method("DINOLoss", "forward", wrong)


def _center_first(right, self, student, teacher, *args, **kwargs):
    find("DINOLoss").update_center(self, teacher)
    return right(self, student, teacher, *args, **kwargs | {"update_center": False})


@breaks("the center moves before the loss", "03")
def _():
    change_method("DINOLoss", "forward", _center_first)


@breaks("the center moves before the loss", "04", "05")
def _():
    change_step("DINOLoss", "forward", _center_first)


@breaks("the center's momentum is reversed", "03")
def _():
    def wrong(right, self, rows):
        self.center_momentum = 1 - self.center_momentum
        right(self, rows)
        self.center_momentum = 1 - self.center_momentum

    change_method("DINOLoss", "update_center", wrong)


@breaks("the gradient forgets the teacher", "03")
def _():
    def wrong(right, self, student, teacher, *args, **kwargs):
        value = right(self, student, teacher, *args, **kwargs)
        return value.detach() + (student * student).mean() - (student * student).mean().detach()

    change_method("DINOLoss", "forward", wrong)


# --- 04 and 05: the teacher, the schedules, the run --------------------------------------------


@breaks("the average is reversed", "04")
def _():
    change("ema_update", lambda right, teacher, student, m: right(teacher, student, 1 - m))


@breaks("the student follows the teacher", "04")
def _():
    change("ema_update", lambda right, teacher, student, m: right(student, teacher, m))


@breaks("buffers are averaged", "04")
def _():
    @torch.no_grad()
    def wrong(right, teacher, student, m):
        right(teacher, student, m)
        for t, s in zip(teacher.buffers(), student.buffers(), strict=True):
            if t.is_floating_point():
                t.lerp_(s, 1 - m)

    change("ema_update", wrong)


@breaks("the teacher is the student", "04")
def _():
    change("make_teacher", lambda right, student: student.requires_grad_(False))


@breaks("the teacher has a gradient", "04")
def _():
    change("make_teacher", lambda right, student: right(student).requires_grad_(True))


@breaks("the teacher keeps its drop path", "04")
def _():
    import copy

    change("make_teacher", lambda right, student: copy.deepcopy(student).requires_grad_(False))


@breaks("the teacher is in eval mode", "04")
def _():
    change("make_teacher", lambda right, student: right(student).eval())


@breaks("the cosine ends one step early", "04")
def _():
    def wrong(right, base, final, total, *, warmup_steps=0, start=0.0):
        values = right(base, final, total, warmup_steps=warmup_steps, start=start)
        n = total - warmup_steps
        cosine = final + 0.5 * (base - final) * (1 + np.cos(np.pi * np.arange(n) / max(n - 1, 1)))
        return np.concatenate([values[:warmup_steps], cosine])

    change("cosine_schedule", wrong)


@breaks("the warm-up stops short", "04")
def _():
    def wrong(right, base, final, total, *, warmup_steps=0, start=0.0):
        values = right(base, final, total, warmup_steps=warmup_steps, start=start)
        values[:warmup_steps] = np.linspace(start, base, warmup_steps, endpoint=False)
        return values

    change("cosine_schedule", wrong)


@breaks("the teacher follows before the student's step", "04", "05")
def _():
    last = {}

    def wrong(right, teacher, student, m):
        """Follows the student as it was after the update before."""
        before = last.get(id(student))
        last[id(student)] = [p.detach().clone() for p in student.parameters()]
        if before is not None:
            right(torch.nn.ParameterList(teacher.parameters()), torch.nn.ParameterList(before), m)

    for module in library():  # the cells' own updates stay right
        if module.__name__.startswith("dino_lib.run") and "ema_update" in vars(module):
            right = module.ema_update
            module.ema_update = functools.partial(wrong, right)


def _break_config(what, *notebooks, **changed):
    """The trainer takes other settings than it is given."""

    @breaks(what, *notebooks)
    def _():
        def wrong(right, self, config, *args, **kwargs):
            right(self, dataclasses.replace(config, **changed), *args, **kwargs)

        change_method("Trainer", "__init__", wrong)


_break_config("the gradient is not clipped", "04", clip_grad=0.0)


def _break_schedules(what, wrong, *notebooks):
    """The trainer's own step reads other schedules than the trainer shows."""

    @breaks(what, *notebooks)
    def _():
        def step(right, self, *args, **kwargs):
            schedules = self.schedules
            self.schedules = schedules | wrong(schedules)
            try:
                return right(self, *args, **kwargs)
            finally:
                self.schedules = schedules

        change_method("Trainer", "train_step", step)


_break_schedules("the momentum falls", lambda s: {"momentum": s["momentum"][::-1]}, "04", "05")
_break_schedules("no weight decay", lambda s: {"weight_decay": 0 * s["weight_decay"]}, "04", "05")
_break_schedules(
    "the teacher's temperature stands still",
    lambda s: {"teacher_temp": np.full_like(s["teacher_temp"], s["teacher_temp"][0])},
    "05",
)


@breaks("weight decay on biases", "04", "05")
def _():
    def wrong(right, model):
        groups = right(model)
        return [{"params": [p for group in groups for p in group["params"]]}, {"params": []}]

    change("parameter_groups", wrong)


@breaks("the teacher sees other views than the global ones", "04", "05")
def _():
    def wrong(right, self, views):
        mirrored = len(views) == 2 and not torch.is_grad_enabled()
        return right(self, [view.flip(-1) for view in views] if mirrored else views)

    change_step("MultiCropModel", "features", wrong)


@breaks("the center is forgotten when a run resumes", "05")
def _():
    change_method("DINOLoss", "load_state_dict", lambda right, self, state, *a, **k: None)


# --- 06: attention ----------------------------------------------------------------------------


def _break_maps(what, wrong):
    @breaks(what, "06")
    def _():
        def instead(right, model, images, *, layer=-1):
            return wrong(find("full_attention"), right, model, images, layer)

        change("cls_attention", instead)


def _prefix(matrix, maps):
    return matrix.shape[-1] - maps.shape[-1] * maps.shape[-2]


def _row(full, right, model, images, layer, token):
    maps = right(model, images, layer=layer)
    matrix = full(model, images, layer=layer)
    return matrix[:, :, token, _prefix(matrix, maps) :].view_as(maps)


def _with_prefix(full, right, model, images, layer):
    maps = right(model, images, layer=layer)
    matrix = full(model, images, layer=layer)
    return matrix[:, :, 0, : maps.shape[-1] * maps.shape[-2]].view_as(maps)


_break_maps(
    "a softmax that is too sharp",
    lambda full, right, model, images, layer: (
        lambda m: m**2 / m.pow(2).sum((-2, -1), keepdim=True)
    )(right(model, images, layer=layer)),
)
_break_maps("the first patch's row, not the CLS token's", functools.partial(_row, token=1))
_break_maps("prefix tokens in the map, patches out of it", _with_prefix)
_break_maps(
    "the map is made to sum to 1",
    lambda full, right, model, images, layer: F.normalize(
        right(model, images, layer=layer), p=1, dim=(-2, -1)
    ),
)
_break_maps("always the last block", lambda full, right, model, images, layer: right(model, images))
_break_maps(
    "heads in another order",
    lambda full, right, model, images, layer: right(model, images, layer=layer).flip(1),
)


@breaks("rows of the matrix are not its own", "06")
def _():
    change("full_attention", lambda right, *a, **k: right(*a, **k).transpose(-2, -1))


@breaks("every neighbour has one vote", "06")
def _():
    change("knn_predict", lambda right, *a, **k: right(*a, **k | {"temperature": 1e6}))


@breaks("rollout without the residual connection", "06")
def _():
    def wrong(right, model, images):
        layers = range(len(model.model.model.blocks))
        product = torch.eye(1)
        for layer in layers:
            matrix = find("full_attention")(model, images, layer=layer).mean(1)
            product = matrix @ product if layer else matrix
        rows = product[:, 0, -right(model, images)[0].numel() :]
        return rows.view_as(right(model, images))

    change("rollout", wrong)


@breaks("the mask takes the smallest first", "06")
def _():
    change("mass_mask", lambda right, maps, keep=0.6: right(maps.amax() - maps, keep))


@breaks("the mask stops short of the share", "06")
def _():
    change("mass_mask", lambda right, maps, keep=0.6: right(maps, 0.9 * keep))


@breaks("the mask is enlarged upside down", "06")
def _():
    change("upsample", lambda right, maps, size: right(maps, size).flip(-2))


@breaks("the mean head counts", "06")
def _():
    def wrong(right, masks, truth):
        return find("jaccard_one_head")(masks, truth).mean().item()

    change("jaccard", wrong)


@breaks("the union is the object alone", "06")
def _():
    def wrong(right, masks, truth):
        shared = (masks & truth[:, None]).sum((-2, -1)).double()
        return (shared / truth[:, None].sum((-2, -1)).clamp(min=1)).mean(0).float()

    change("jaccard_one_head", wrong)


@breaks("above blind compares with the whole background", "06")
def _():
    change("above_blind", lambda right, maps, masks: 2 * find("auc")(maps, masks) - 1)


@breaks("above blind lets the first of two equals win", "06")
def _():
    def wrong(right, maps, masks):
        order = torch.arange(maps[0, 0].numel(), 0, -1).view(maps.shape[2:])
        return right(maps.double() + 1e-6 * order, masks)

    change("above_blind", wrong)


@breaks("the background beats the object", "06")
def _():
    change("auc", lambda right, maps, masks: 1 - right(maps, masks))


# --- 07: the collapse lab ---------------------------------------------------------------------


@breaks("the two entropies are swapped", "07")
def _():
    change("teacher_entropies", lambda right, probs: right(probs)[::-1])


@breaks("the mean target is taken for each view", "07")
def _():
    def wrong(right, probs):
        return right(probs)[0], torch.special.entr(probs.mean(1)).sum(-1).mean().item()

    change("teacher_entropies", wrong)


@breaks("the rank is that of centred features", "07")
def _():
    change("feature_rank", lambda right, x: right(x - x.mean(0)))


@breaks("Sinkhorn ends on the columns", "07")
def _():
    def wrong(logits, temp, n_iterations=3):
        q = torch.exp(logits / temp)
        for _ in range(n_iterations):
            q = q / q.sum(1, keepdim=True)
            q = q / q.sum(0, keepdim=True)
        return q

    sys.modules["dino_lib.course.collapse_runs"].sinkhorn = wrong


# --- 08: your data ----------------------------------------------------------------------------


@breaks("the store is counted in floats", "08")
def _():
    change("store_bytes", lambda right, *args: 4 * right(*args))


@breaks("an epoch has a fraction of a batch", "08")
def _():
    change("epochs_in", lambda right, t, u, n, b: min(800, int(t / u) / (n / b)))


@breaks("the momentum is that of another share", "08")
def _():
    change("momentum_of", lambda right, half_life: right(2 * half_life))


@breaks("the backbone is frozen for one update more", "08")
def _():
    change(
        "hold_still",
        lambda right, model, config, step, n: right(model, config, max(0, step - 1), n),
    )


def smaller():
    """Fewer embedded pictures: drawing 5,000 would take longer than all the rest."""

    def wrong(right, self, n=64, **kwargs):
        right(self, min(n, 64), **kwargs)

    change_method("Shapes", "__init__", wrong)
    assert inspect.isclass(find("Shapes"))
