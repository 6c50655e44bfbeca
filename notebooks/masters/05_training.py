# %% [markdown]
# # 05 · Training: the whole run
#
# <!-- badge -->
#
# The pieces are built: views (01), backbone and head (02), loss (03), teacher and schedules (04). In this notebook you run
# them as one would in a lab: plan the run on paper, look at the schedules, write one update and prove it equal to the library's,
# train with live curves, interrupt and resume, and then *read* the run, beside two that were made to collapse.
#
# **What you need:** notebooks 03 and 04, or their ideas: two temperatures, a center, a slow teacher.
#
# **Time:** one to two minutes of training in all on two idle CPU cores with the embedded pictures, and as much again for the rest. With STL-10 about ten
# hours on a T4 and one and a half on an A100 or H100: both are *estimates* from the arithmetic in section 1, not measurements.
#
# [Before: 04, the teacher](04_teacher.ipynb) · after: [06, attention](06_attention.ipynb)

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# One setting chooses what is trained. `"cpu"` is the `demo` preset on the embedded pictures, cut to two epochs so that you can
# wait for it. `"gpu"` is the `gpu` preset on STL-10's 100,000 unlabelled photographs, which are downloaded first. All other cells are
# the same for both, and all names below come from the library that you have rebuilt piece by piece.

# %% tags=["equality"]
import copy, math, tempfile
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from dino_lib import PRESETS, DINOLoss, cosine_schedule, make_teacher, read_history, train
from dino_lib.look.curves import show_schedules, training_curves
from dino_lib.look.maps import attention_sheet
from dino_lib.loss import teacher_entropies
from dino_lib.run.build import build_schedules, build_student
from dino_lib.run.train import build_trainer
from dino_lib.schedules import half_life

RUN = "gpu" if torch.cuda.is_available() else "cpu"  # or write one of the two here
RUNS = Path(tempfile.mkdtemp())  # for a run that you want to keep: Path("runs")
CONFIGS = {
    "cpu": replace(PRESETS["demo"], epochs=2, warmup_epochs=1, eval_every=0.5,
                   device="cpu", precision="fp32"),
    "gpu": replace(PRESETS["gpu"], accumulate=8),  # 64 images at a time, so that 16 GB should do
}
config = replace(CONFIGS[RUN], progress=False, output_dir=str(RUNS / RUN))

# %% [markdown]
# ## 1 The plan, on paper
#
# A run has a handful of numbers that can be worked out before anything is computed, and most failed runs can be seen in them. We do
# it for both settings side by side.
#
# **Updates.** One update uses one batch; the last, incomplete batch of an epoch is dropped.
#
# **The loss of knowing nothing.** A student that knows nothing gives each of the $K$ prototypes the probability $1/K$. Its cross-entropy
# is then $-\sum_k q_k \ln \frac1K = \ln K$, *whatever* the teacher's probabilities $q_k$ are. Hold every loss against it: near $\ln K$ nothing has been
# learned, above it the student is wrong *with confidence*.

# %%
IMAGES = {"cpu": 4000, "gpu": 100_000}
for name, c in CONFIGS.items():
    per_epoch = IMAGES[name] // c.batch_size
    print(f"{name}: {per_epoch} updates an epoch, {round(per_epoch * c.epochs)} in all, "
          f"of {c.batch_size} images each; K = {c.out_dim}, ln K = {math.log(c.out_dim):.4f}")
q, uniform = torch.tensor([0.7, 0.2, 0.1, 0.0]), torch.full((4,), 0.25)
print(f"toy, K = 4: {-(q * uniform.log()).sum():.4f} = ln 4 = {math.log(4):.4f}")


# %% [markdown]
# **The half-life of the momentum.** The teacher forgets: after $n$ updates at momentum $m$ an old weight counts $m^n$. The half-life
# is the $n$ at which this is one half, $n_{1/2} = \ln \frac12 / \ln m$. What is left of the start after a whole run is the product of all
# its momenta. The paper's 0.996 (section 3.2) is meant for hundreds of thousands of updates; here it is in a run of 124.

# %%
def left_of_the_start(base, final, n=124):
    return np.cumprod(cosine_schedule(base, final, n))  # (n,): after each update

MOMENTA = [(0.96, 0.99), (0.996, 1.0), (0.9995, 1.0)]
for base, final in MOMENTA:
    print(f"{base} to {final}: half-life {half_life(base):.0f} updates at first; in the end "
          f"{left_of_the_start(base, final)[-1]:.0%} of the teacher is still its initial weights")

# %% [markdown]
# **Break it, on paper.** With the paper's momentum in a run this short, most of the teacher would never have been trained. Nothing
# would look wrong: the loss would fall, no error would be raised, and the k-NN accuracy would stay near that of an untrained
# network. Several half-lives should fit into a run.

# %%
figure = Figure(figsize=(10, 2.4), layout="constrained", dpi=80)
axis = figure.subplots()
for base, final in MOMENTA:
    axis.plot(left_of_the_start(base, final), label=f"momentum {base} to {final}")
axis.set(xlabel="update", ylabel="share of initial weights", ylim=(0, 1.05))
axis.legend(frameon=False)
assert len(axis.lines) == 3 and left_of_the_start(0.996, 1.0)[-1] > 0.5
figure


# %% [markdown]
# **Memory.** For each parameter of the student there are its value, its gradient and AdamW's two averages, and one value in the
# teacher: five numbers of four bytes. The pictures lie in memory as bytes. For the backward pass a block keeps some 20 numbers for each
# token and channel (a rule of thumb); this is the part that `accumulate` divides.
#
# **Time.** A ViT's forward pass costs about two operations a parameter and token, the backward pass twice that. The student sees all
# views, the teacher two.

# %%
def tokens(c):  # of one image: in the two global views, in all the local ones
    patch = c.backbone_options["patch_size"]
    return 2 * (c.global_size // patch) ** 2, c.n_local * (c.local_size // patch) ** 2

for name, c in CONFIGS.items():
    student = build_student(c)
    n_bytes = 4 if name == "cpu" else 2
    weights = sum(p.numel() for p in student.parameters())
    trunk = sum(p.numel() for p in student.backbone.parameters())
    globals_, locals_ = tokens(c)
    numbers = 20 * len(student.backbone.model.blocks) * student.backbone.num_features  # a token
    kept = numbers * n_bytes * (globals_ + locals_) * c.batch_size / c.accumulate
    operations = 2 * trunk * (3 * (globals_ + locals_) + globals_) * IMAGES[name] * c.epochs
    pictures = IMAGES[name] * 3 * c.store_size**2
    print(f"{name}: {weights / 1e6:.1f} million weights take {20 * weights / 2**20:.0f} MiB, "
          f"the pictures {pictures / 2**20:.0f} MiB, the backward pass some {kept / 2**30:.1f} GiB; "
          f"{operations:.0e} operations")

# %% [markdown]
# At 20 trillion operations a second, which is what a T4 may reach in half precision, the GPU run takes some ten hours; at 150 trillion
# on an A100 or H100, one and a half. These are estimates. On *your* machine one measures instead: two updates, and multiply.
# (The number below is that of the machine that ran this notebook last, so the comparison in the tests leaves this cell out.)

# %% tags=["nbval-ignore-output"]
import time
trial = build_trainer(config)
views = next(trial.views.batches(0, [np.arange(config.batch_size)]))
trial.train_step(views)  # the first update is slower
start = time.perf_counter()
trial.train_step(views)
seconds = time.perf_counter() - start
minutes = seconds * trial.total_steps / 60
print(f"{seconds:.2f} s an update, about {minutes:.1f} minutes for all {trial.total_steps}")

# %% [markdown]
# ## 2 The schedules
#
# Learning rate, weight decay, teacher momentum and teacher temperature are arrays with one value an update, computed before training
# begins (section 3.2 of the paper; notebook 04 built them). Look at them *before* you spend an hour: a warm-up longer than the run or a
# momentum that ends below its start is seen at once. (Half of this
# short run is warm-up, on purpose: a tiny network thrown at the full rate collapses in its first fifty updates.)

# %%
schedules = build_schedules(config, steps_per_epoch=trial.steps_per_epoch)
for name, values in schedules.items():
    print(f"{name}: {values.shape[0]} values, {values.min():.3g} to {values.max():.3g}")
assert all(len(values) == trial.total_steps for values in schedules.values())
show_schedules(schedules)


# %% [markdown]
# The momentum and the weight decay are half a cosine from a value $b$ to a value $f$: with $N$ updates, update $i$ has
# $f + \frac12 (b - f)(1 + \cos(\pi i / N))$. Written again here, so that you can hold the library to it:

# %% tags=["equality"]
def my_cosine(b, f, n):
    return np.array([f + 0.5 * (b - f) * (1 + math.cos(math.pi * i / n)) for i in range(n)])

c = config
np.testing.assert_allclose(my_cosine(0.96, 0.99, 124), cosine_schedule(0.96, 0.99, 124), rtol=1e-12)
theirs = build_schedules(replace(c, epochs=2), steps_per_epoch=20)["momentum"]
np.testing.assert_allclose(my_cosine(c.momentum, c.momentum_end, 40), theirs, rtol=1e-12)
print("the same, to the last digits")


# %% [markdown]
# ## 3 One update
#
# Algorithm 1 of the paper in plain code. First the loss of notebook 03 with its loop over pairs: teacher view $i$, student view
# $v \neq i$, the center $c$ subtracted and a low temperature on the teacher's side, none of it with a gradient.

# %% tags=["equality"]
def my_loss(student, teacher, center, teacher_temp, student_temp=0.1):
    q = F.softmax((teacher.detach() - center) / teacher_temp, dim=-1)  # (2, B, K)
    log_p = F.log_softmax(student / student_temp, dim=-1)  # (V, B, K)
    pairs = [(i, v) for i in range(2) for v in range(len(student)) if v != i]
    return sum(-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs) / len(pairs)


# %% [markdown]
# The library's version has no loop, so it must be shown to be the same, in value and in the gradient for the student.

# %% tags=["equality"]
torch.manual_seed(0)
student = torch.randn(6, 8, 32, requires_grad=True)  # 6 views, 8 images, 32 prototypes
teacher, center = torch.randn(2, 8, 32), torch.randn(32)
theirs = DINOLoss(32)
theirs.center.copy_(center)
mine = my_loss(student, teacher, center, 0.05)
torch.testing.assert_close(mine, theirs(student, teacher, 0.05))
mine_grad, = torch.autograd.grad(mine, student)
theirs.center.copy_(center)  # it has moved after the loss was taken
theirs_grad, = torch.autograd.grad(theirs(student, teacher, 0.05), student)
torch.testing.assert_close(mine_grad, theirs_grad)
print("loss and gradient agree")


# %% [markdown]
# Now the whole update: notebook 04's step, with the loss and the center written out as well. Targets, loss, the gradient with its norm limited,
# the step of AdamW; the teacher follows after it, and the center moves at any time after the loss was taken. `student` and `teacher` are networks
# from here on (above they were logits). `now` holds this update's values of the four schedules.

# %% tags=["equality"]
def my_update(student, teacher, center, optimizer, views, now, center_momentum=0.9, clip=3.0):
    with torch.no_grad():
        targets = teacher(views[:2])  # (2, B, K): the teacher sees the global views alone
    loss = my_loss(student(views), targets, center, now["teacher_temp"])

    matrices, vectors = optimizer.param_groups
    matrices["lr"] = vectors["lr"] = now["lr"]
    matrices["weight_decay"], vectors["weight_decay"] = now["weight_decay"], 0.0
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), clip)
    optimizer.step()

    with torch.no_grad():
        center.mul_(center_momentum).add_((1 - center_momentum) * targets.mean((0, 1)))
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.mul_(now["momentum"]).add_((1 - now["momentum"]) * s)
    return loss.item()


# %% [markdown]
# To compare, both start from the same weights and see the same views. The `smoke` preset is a network of some twenty thousand weights made
# for this kind of question; its temperature is made to move, so that a wrong schedule would show.

# %% tags=["equality"]
smoke = replace(PRESETS["smoke"], teacher_temp=0.07, warmup_teacher_temp_epochs=1, device="cpu",
                precision="fp32", progress=False, output_dir=str(RUNS / "smoke"))
trainer = build_trainer(smoke)
my_student, my_teacher = copy.deepcopy(trainer.student), copy.deepcopy(trainer.teacher)
my_center = torch.zeros(smoke.out_dim)
optimizer = torch.optim.AdamW([{"params": [p for p in my_student.parameters() if p.ndim > 1]},
                               {"params": [p for p in my_student.parameters() if p.ndim <= 1]}])
for group, decay in zip(optimizer.param_groups, ("with", "without"), strict=True):
    print(f"{len(group['params'])} tensors {decay} weight decay")


# %% [markdown]
# Four updates of each. The loss, the center and what teacher and student *say* must agree. The weights themselves are not compared: some of them
# (the biases of the keys in attention, a bias in front of a batch norm) change nothing in the output, so their gradient is
# rounding noise, and AdamW makes steps out of noise.

# %% tags=["equality"]
def settings(optimizer):
    """Learning rate, weight decay and shapes of what is trained, group by group."""
    return [(group["lr"], group["weight_decay"],
             [p.shape for p in group["params"] if p.requires_grad])
            for group in optimizer.param_groups]

batches = np.arange(64).reshape(4, 16)  # indices of images
for step, views in enumerate(trainer.views.batches(0, batches)):  # epoch 0, and its batches
    now = {name: values[step] for name, values in trainer.schedules.items()}
    mine = my_update(my_student, my_teacher, my_center, optimizer, views, now)
    torch.testing.assert_close(mine, trainer.train_step(views)["loss"].item(), rtol=1e-4, atol=1e-5)
assert settings(optimizer) == settings(trainer.optimizer)
torch.testing.assert_close(my_center, trainer.loss.center, rtol=1e-3, atol=1e-5)
with torch.no_grad():
    torch.testing.assert_close(my_teacher(views), trainer.teacher(views), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(my_student(views), trainer.student(views), rtol=1e-3, atol=1e-4)
print(f"{trainer.step} updates: loss, center, teacher and student agree")

# %% [markdown]
# Around the update there is a loop over epochs: each takes all images in a new order, drops the last, incomplete batch, and counts one global step on, by which
# the schedules are looked up. With your update in it, it gives the same eight losses as the library's run.

# %% tags=["equality"]
from dino_lib.data.loaders import epoch_order

def my_run(c, views, schedules, update):
    step, losses = 0, []
    for epoch in range(int(c.epochs)):
        order = epoch_order(c.seed, epoch, len(views))
        whole = order[: len(order) // c.batch_size * c.batch_size].reshape(-1, c.batch_size)
        for batch in views.batches(epoch, whole):
            losses.append(update(batch, {name: values[step] for name, values in schedules.items()}))
            step += 1
    return losses



# %% tags=["equality"]
loop = replace(smoke, eval_every=0, output_dir=str(RUNS / "loop"))
trainer = build_trainer(loop)
student, teacher, center = trainer.student, trainer.teacher, torch.zeros(loop.out_dim)
student, teacher = copy.deepcopy(student), copy.deepcopy(teacher)
optimizer = torch.optim.AdamW([{"params": [p for p in student.parameters() if p.ndim > 1]},
                               {"params": [p for p in student.parameters() if p.ndim <= 1]}])
mine = my_run(loop, trainer.views, trainer.schedules,
              lambda batch, now: my_update(student, teacher, center, optimizer, batch, now))
theirs = [record["loss"] for record in trainer.run()[1]]
torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
print(len(mine), "losses agree")


# %% [markdown]
# What the library adds to that is what a long run needs: parts of a batch, half precision, several processes, a history, checkpoints. You
# will meet each of them below.
#
# **A trainer from its parts.** `build_trainer(config)` has made them for us so far. Each can also be made by hand, and any of them can
# be replaced by one of your own: the views, the two networks, the loss, the schedules, the optimizer, and the folder that the run writes to.

# %% tags=["equality"]
from dino_lib.run.build import open_views, parameter_groups
from dino_lib.run.folder import RunFolder
from dino_lib.run.trainer import Trainer

by_hand = replace(loop, output_dir=str(RUNS / "by_hand"))
views = open_views(by_hand, None, torch.device("cpu"))  # None: of the config's own dataset
student = build_student(by_hand)
teacher = make_teacher(student)
schedules = build_schedules(by_hand, steps_per_epoch=len(views) // by_hand.batch_size)
optimizer = torch.optim.AdamW(parameter_groups(student))  # with weight decay, and without
trainer = Trainer(by_hand, views, student, teacher, DINOLoss(by_hand.out_dim), schedules,
                  optimizer, RunFolder(by_hand))

# %% [markdown]
# Put together so, it makes the same run:

# %% tags=["equality"]
_, lines = trainer.run()
torch.testing.assert_close([r["loss"] for r in lines], theirs, rtol=1e-4, atol=1e-5)
print(len(lines), "losses agree")

# %% [markdown]
# ## 4 The run, live
#
# Four curves say most of what there is to know while a run is under way: the loss against $\ln K$; the entropy of the teacher, once for
# a single picture and once for the mean of the batch; the norm of the center, which is large while
# one prototype is favoured; and the k-NN accuracy on labelled pictures that are used for nothing else.

# %%
LABELS = {"teacher_entropy": "of one image", "mean_entropy": "of the batch's mean"}

def draw(figure, history, out_dim):
    figure.clear()
    panels = {"loss": ["loss"], "teacher entropy": ["teacher_entropy", "mean_entropy"],
              "norm of the center": ["center_norm"], "20-NN accuracy": ["knn"]}
    for axis, (title, keys) in zip(figure.subplots(1, 4), panels.items(), strict=True):
        for key in keys:
            points = [(r["step"], r[key]) for r in history if key in r]
            axis.plot([x for x, _ in points], [y for _, y in points], marker=".",
                      label=LABELS.get(key, key))
        if title in ("loss", "teacher entropy"):
            axis.axhline(math.log(out_dim), color="gray", linestyle=":", label=f"ln {out_dim}")
            axis.legend(fontsize=7, frameon=False, loc="lower right")
        axis.set(title=title, xlabel="update", ylim=(0, None))


# %% [markdown]
# `train(config, on_log=...)` calls a function with each line of the history as it is written. Ours redraws one picture in place. It can
# also interrupt the run, as if you had pressed the stop button.

# %%
class Live:
    def __init__(self, out_dim, history=(), stop_at=None):
        self.history, self.out_dim, self.stop_at = list(history), out_dim, stop_at
        self.figure = Figure(figsize=(10, 2.5), layout="constrained", dpi=80)
        draw(self.figure, self.history, out_dim)
        self.screen = display(self.figure, display_id=True)

    def __call__(self, record):
        self.history.append(record)
        draw(self.figure, self.history, self.out_dim)
        self.screen.update(self.figure)
        if record["step"] == self.stop_at:
            raise KeyboardInterrupt


# %% [markdown]
# We also want to *watch the attention emerge*. The history holds numbers only, so we wrap the trainer's `train_step`: before some of
# the updates it keeps the teacher's attention on the test pictures. (`train(config)` is no more than `build_trainer(config).run()`.)

# %%
WHEN = [round(share * trial.total_steps) for share in (0, 0.1, 0.25, 0.5, 0.75)]
snapshots = {}

def watched(trainer):
    """The same trainer, which now keeps the teacher's attention before some of its updates."""
    plain_step = trainer.train_step

    def train_step(views):
        if trainer.step in WHEN:
            snapshots[trainer.step] = trainer.probes.attention(trainer.teacher, 200)
        return plain_step(views)

    trainer.train_step = train_step
    return trainer


# %% [markdown]
# Start. Half-way the run is interrupted on purpose. The trainer saves a checkpoint, says so, and passes the interrupt on to us.

# %%
stop_at = trial.total_steps // 20 * 10  # a multiple of log_every near the middle
first_half = Live(config.out_dim, stop_at=stop_at)
try:
    watched(build_trainer(config, on_log=first_half)).run()
except KeyboardInterrupt:
    print("the interrupt reached the notebook")
assert (Path(config.output_dir) / "checkpoints" / f"step_{stop_at:08d}.pt").exists()
assert len(first_half.figure.axes) == 4

# %% [markdown]
# With `resume="auto"` the run goes on (without it the library refuses a folder that holds a run). A new trainer is built from nothing, as after a restart of the machine, and reads weights, optimizer, center
# and position from the newest checkpoint. The curves begin with what the folder's history holds, and show no seam: each update is logged
# once, in order. `run` and `train` return what one wants of a run: the teacher, as `load_teacher` will give it (its `.model` is the backbone, in eval mode and without the head), and the history.

# %%
resumed = replace(config, resume="auto")
second_half = Live(config.out_dim, history=read_history(config.output_dir))
teacher, history = watched(build_trainer(resumed, on_log=second_half)).run()
snapshots[trial.total_steps] = trial.probes.attention(teacher, 200)  # (200, heads, h, w)
steps = [r["step"] for r in history if "loss" in r]
print(steps)
assert steps == sorted(set(steps)) and stop_at in steps and len(second_half.history) == len(history)
assert history[-1]["step"] == trial.total_steps


# %% [markdown]
# **Exactly where it stopped?** A seam could be small enough to be missed by the eye. So take the tiny network, train it once in one
# go and once with an interrupt after update 5 of 8, and compare all weights bit by bit. No tolerance is needed: all that is random (order,
# views, stochastic depth) is drawn from the seed and the number of the update, never from where a generator happens to stand.

# %% tags=["equality"]
def run_smoke(name, resume="never", on_log=None):
    tiny = replace(smoke, output_dir=str(RUNS / name), eval_every=0, resume=resume)
    trainer = build_trainer(tiny, on_log=on_log)
    trainer.run()
    return trainer

def stop(record):
    if record["step"] == 5:
        raise KeyboardInterrupt

straight = run_smoke("straight")
try:
    run_smoke("broken", on_log=stop)
except KeyboardInterrupt:
    broken = run_smoke("broken", resume="auto")

for part in ("teacher", "student", "loss"):  # the loss holds the center
    one, other = getattr(straight, part).state_dict(), getattr(broken, part).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
assert [r["loss"] for r in straight.history] == [r["loss"] for r in broken.history]
print(f"{len(straight.history)} losses, center, teacher and student: equal bit by bit")


# %% [markdown]
# **Break it.** What if the center were forgotten when a run is resumed? Load the same checkpoint, set the center
# to zero, and take the same next update as the run that remembers.

# %% tags=["nbval-ignore-output"]
def next_loss(forget):
    longer = replace(smoke, epochs=3, eval_every=0, output_dir=str(RUNS / "forgets"))
    trainer = build_trainer(longer)
    for part in ("student", "teacher", "loss"):
        getattr(trainer, part).load_state_dict(getattr(straight, part).state_dict())
    if forget:
        trainer.loss.center.zero_()
    result = trainer.train_step(next(trainer.views.batches(0, batches)))
    return result["loss"].item(), teacher_entropies(result["probs"])[1]

(loss, spread), (loss_without, spread_without) = next_loss(False), next_loss(True)
print(f"loss {loss:.2f}, entropy of the batch's mean {spread:.2f}")
print(f"without the center: {loss_without:.2f}, {spread_without:.2f}")


# %% [markdown]
# ## 5 Attention, emerging
#
# The same eight pictures at six moments of the run. A ViT has several heads, and they look at different things. Which one to show is chosen *without* the object
# masks: the head whose most attended patches keep best away from the border, for the ground of a picture reaches its border more often than a creature does. It is chosen
# at the end and is the same in all rows.
#
# The score beside a row is that head's *above blind* over 200 pictures. It asks how often a patch of the object gets more attention than a patch where *other*
# pictures have their object: 0 for any map that is the same for all pictures, however well it sits in the middle, and 1 for the masks
# themselves. The white outlines are these masks, which training never saw. Each map has a colour scale of its own, and one that is all but even stays dark.

# %%
from dino_lib import above_blind, choose_head
from dino_lib.measure.masks import patch_masks

final = snapshots[trial.total_steps]  # (200, heads, h, w)
head = choose_head(final)
masks = trial.probes.masks  # None where a dataset has none
objects = None if masks is None else patch_masks(masks[:200], final.shape[2:])  # (200, h, w)

def title(step):
    if objects is None:
        return f"update {step}"
    return f"update {step}\nabove blind {above_blind(snapshots[step], objects)[head]:.2f}"


# %%
rows = {title(step): maps[:8, head] for step, maps in snapshots.items()}
shown = None if masks is None else masks[:8]
sheet = attention_sheet(trial.probes.queries[:8], rows, masks=shown)
assert len(sheet.axes) == 7 * 8 and len(rows) == 6
first, *_, last = rows.values()
assert not torch.allclose(first, last, atol=1e-3)
sheet.set_dpi(85)
sheet


# %% [markdown]
# At update 0 the map is nearly even, and what little it prefers has little to do with the creatures. Half-way through it is a shade lighter on them, which the score says
# more plainly than any eight examples; in the end it gathers there, on most pictures, not on all. It remains coarse: the network sees 8 by 8 patches, and each of them is one cell of the map.
#
# The evaluations log three numbers of this kind: of the head that is chosen at that moment; of the *best* head, which it takes the masks to find; and of the best of as many
# *blobs*, fixed spots near the middle that see no picture at all. Beside above blind stands the paper's Jaccard index (section 4.2.2): the overlap of the object with the patches that hold 60% of the
# attention. Its *best* is the paper's number, with the best head chosen anew for every picture.

# %% tags=["nbval-ignore-output"]
def with_rivals(record, key):  # the chosen head, the best one, the best of as many blind blobs
    values = [record[key], record[f"{key}_best"], record[f"{key}_blobs"]]
    return f"{key} {values[0]:.2f} (best {values[1]:.2f}, blobs {values[2]:.2f})"

for r in history:
    if "knn" in r:
        parts = [with_rivals(r, key) for key in ("above_blind", "jaccard") if key in r]
        print(f"update {r['step']:4}: knn {r['knn']:.2f}  " + "  ".join(parts))

# %% tags=["nbval-ignore-output"]
scores = [r for r in history if "knn" in r]

def gain(key):  # from the untrained network to the end; 0 without masks
    return scores[-1].get(key, 0) - scores[0].get(key, 0)

print("evaluated at updates", [r["step"] for r in scores])
for key in ("above_blind", "knn"):
    print(f"{key}: from {scores[0][key]:.2f} to {scores[-1][key]:.2f}, a gain of {gain(key):.2f}")
assert gain("above_blind") > 0.3 and gain("knn") < gain("above_blind") / 3

# %% [markdown]
# Read the Jaccard of the blobs before you trust any other. Creatures lie anywhere, but somewhat more of them near the middle, and a blob is as compact as they are: the best of eight blind
# blobs reaches 0.38 without seeing a picture, more than the heads of the untrained network chosen in the same way. Above blind takes this advantage away: about 0 for the blobs, 0.4 for the
# untrained network, nearly 0.9 in the end. And a Jaccard may fall while above blind stays, as in the long run of section 7: a head that looks at a part of each creature misses the rest of it.

# %% [markdown]
# ## 6 Reading the run
#
# **What the loss is made of.** For teacher probabilities $q$ and student probabilities $p$ the cross-entropy splits into two:
#
# $$-\sum_k q_k \ln p_k = \underbrace{-\sum_k q_k \ln q_k}_{\text{entropy of the teacher}} + \underbrace{\sum_k q_k \ln (q_k / p_k)}_{\text{divergence}}$$
#
# Only the divergence says how well the student predicts the teacher. The entropy is the teacher's own doing. So a *rising* loss
# can be good news: a teacher that uses more prototypes has more entropy. (In a history the loss is the mean since the line before, and the entropies are those of the line's
# last batch, so their difference is the divergence only roughly.)

# %%
q, p = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
cross = -(q * p.log()).sum()
entropy = -(q * q.log()).sum()
divergence = (q * (q / p).log()).sum()
print(f"cross-entropy {cross:.4f} = entropy {entropy:.4f} + divergence {divergence:.4f}")
torch.testing.assert_close(cross, entropy + divergence)


# %% [markdown]
# **Four questions**, each answered by a curve. Losses and entropies are taken as shares of $\ln K$, so that runs with different $K$
# can be compared; *one image* is the mean entropy of single targets, *batch mean* the entropy of the mean of all targets in a batch:
#
# | question | curve | healthy |
# | --- | --- | --- |
# | Does the student predict anything? | loss / ln K | below 1 |
# | Are many prototypes in use? | batch mean / ln K | far from 0 |
# | Does a target tell *which* picture it is? | gap = (batch mean − one image) / ln K | clearly above 0, and growing once the first swing is over |
# | Are the features different? | feature std | not near 0 |
#
# The gap is the information that a target carries about its picture. It is 0 in both collapses of the paper, and in a third that has the other lines look well: every picture gets the same, half-decided target.
# *Feature std* is the standard deviation over the batch of the teacher's L2-normalised features, mean over the dimensions, times the square root of their number:
# 0 if all features are one point, 1 if they are spread over the sphere.

# %% tags=["nbval-ignore-output"]
def signs(history, out_dim):
    last, top = [r for r in history if "loss" in r][-1], math.log(out_dim)
    one, mean = last["teacher_entropy"] / top, last["mean_entropy"] / top
    return {"loss": last["loss"] / top, "one image": one, "batch mean": mean, "gap": mean - one,
            "feature std": last["feature_std"]}

def show(signs):
    return "  ".join(f"{name} {value:.2f}" for name, value in signs.items())

run = signs(history, config.out_dim)
print(show(run))


# %% [markdown]
# And beside the bounds of a healthy run:

# %% tags=["nbval-ignore-output"]
print(f"loss {run['loss']:.0%} of ln K, healthy is below 98%")
print(f"batch mean {run['batch mean']:.0%} of ln K, healthy is above 30%")
print(f"gap {run['gap']:.0%} of ln K, healthy is above 2%")
print(f"feature std {run['feature std']:.2f}, healthy is above 0.1")
assert run["loss"] < 0.98 and run["batch mean"] > 0.3 and run["gap"] > 0.02


# %% [markdown]
# Healthy. But how would it look if it were not? The paper names two ways to collapse (section 3.1, "Avoiding collapse"; section 5.3). *One dimension
# wins*: every picture gets the same prototype; the center is there to prevent it. *Everything is uniform*: every picture gets all
# prototypes alike; the low teacher temperature is there to prevent that. Each cure alone leads into the other illness.
#
# **Break it.** A smaller network, forty updates, a few seconds for each run. Once as it should be, and then without the one cure and without the other.

# %%
tiny_vit = {**PRESETS["demo"].backbone_options, "embed_dim": 64, "depth": 2}
small = replace(PRESETS["demo"], limit=640, batch_size=32, epochs=2, warmup_epochs=0.25,
                n_local=2, out_dim=64, hidden_dim=128, bottleneck_dim=32, momentum=0.9,
                momentum_end=0.9, backbone_options=tiny_vit, eval_every=0, log_every=5,
                device="cpu", precision="fp32", progress=False)
CASES = {
    "as it should be": {},
    "no centering": {"center_momentum": 1.0, "teacher_temp": 0.02, "warmup_teacher_temp": 0.02},
    "no sharpening": {"teacher_temp": 0.3, "warmup_teacher_temp": 0.3},
}

# %% [markdown]
# A `center_momentum` of 1 keeps the center at zero for ever, which is no center at all; the temperature is lowered as well, only so that it collapses within forty updates. A teacher temperature of 0.3 is three times the
# student's, so that the teacher is always *less* decided than the student that learns from it. Solid in the pictures: the entropy of one
# image's target; dashed: that of the batch's mean; the dotted line is $\ln K$. What lies between solid and dashed is the gap.
#
# The library watches too: its *doctor* (`dino_lib.run.doctor`) reads each new line of a history and says what it finds, once. Its words may come a few updates earlier or later on
# another machine.

# %% tags=["nbval-ignore-output"]
small_runs = {}
for name, wrong in CASES.items():
    folder = str(RUNS / name.replace(" ", "_"))
    small_runs[name] = train(replace(small, output_dir=folder, **wrong))[1]

figure = Figure(figsize=(10, 2.6), layout="constrained", dpi=80)
for axis, (name, lines) in zip(figure.subplots(1, 3, sharey=True), small_runs.items(), strict=True):
    for key, style in [("teacher_entropy", "-"), ("mean_entropy", "--")]:
        axis.plot([r["step"] for r in lines], [r[key] for r in lines], style, marker=".",
                  label=LABELS[key])
    axis.axhline(math.log(small.out_dim), color="gray", linestyle=":")
    axis.set(title=name, xlabel="update", ylim=(0, None))
figure.axes[0].legend(fontsize=8, frameon=False)
assert [len(axis.lines) for axis in figure.axes] == [3, 3, 3]
figure

# %% [markdown]
# The numbers behind the pictures. Look at the *loss* of the two ill runs. In the first it is low, lower than the healthy one's, which one might
# call a triumph. In the second it sits at $\ln K$, as if nothing were learned. Neither tells what happened; the two entropies and their gap do.
# The features still differ in all three: the prototypes collapse first, the backbone follows later, so *feature std* is a late alarm.

# %% tags=["nbval-ignore-output"]
ends = {name: signs(lines, small.out_dim) for name, lines in small_runs.items()}
for name, values in ends.items():
    print(f"{name:16} {show(values)}")


# %% tags=["nbval-ignore-output"]
good, one, flat = ends.values()
for name, of in ends.items():
    print(f"{name:16} of ln K: loss {of['loss']:4.0%}, one image {of['one image']:4.0%}, "
          f"batch mean {of['batch mean']:4.0%}, gap {of['gap']:4.0%}")
assert good["batch mean"] > 0.3 and good["gap"] > 0.05
assert one["batch mean"] < 0.25 and one["one image"] < 0.1 and one["loss"] < min(0.2, good["loss"])
assert flat["batch mean"] > 0.99 and flat["gap"] < 0.01 and abs(flat["loss"] - 1) < 0.02

# %% [markdown]
# What to try, then, when a run looks ill:
#
# | what you see | what it is | what to try first |
# | --- | --- | --- |
# | one image and batch mean near 0 | one prototype for all | is the center subtracted, updated, saved and loaded? is its momentum below 1? |
# | one image and batch mean near $\ln K$, loss too | uniform | a lower teacher temperature (0.04); in fp16 or with a large rate, a longer warm-up |
# | batch mean well, gap near 0 | the same target for all pictures | do the views of a row come from *one* image, and is the teacher a copy of the student? |
# | gap grows, k-NN flat for long | nothing of use is shared by the views | crops too small for the pictures, or too little colour jitter: then colour alone answers the question |
# | all well, k-NN near the untrained one | the teacher stands still | the half-life of its momentum against the length of the run |
#
# `dino doctor RUN` goes through a finished or running folder with more rules of this kind and says from which step. And patience: a *healthy* run falls too, to a third of $\ln K$ or less for one image, in its first hundred updates. Worry when it does not come back within as many again.

# %% [markdown]
# ## 7 Beside a reference
#
# The repository ships the history of a full run of the `demo` preset, made on a CPU. It is not this notebook's run: it is longer, and
# its learning rate falls more slowly. Draw yours over it whenever you wonder whether a curve is normal.

# %%
from dino_lib.teachers.load import SHIPPED
reference = read_history(SHIPPED / "demo")

def share(record, key, k):  # of ln K; the gap is a difference of two shares
    if key == "gap":
        return (record["mean_entropy"] - record["teacher_entropy"]) / math.log(k)
    return record[key] if key == "knn" else record[key] / math.log(k)

figure = Figure(figsize=(10, 2.6), layout="constrained", dpi=80)
titles = {"loss": "loss / ln K", "mean_entropy": "batch mean / ln K", "gap": "gap",
          "knn": "20-NN accuracy"}
runs = [("reference", reference, PRESETS["demo"].out_dim), ("this run", history, config.out_dim)]
for axis, (key, title) in zip(figure.subplots(1, 4), titles.items(), strict=True):
    needs = "teacher_entropy" if key == "gap" else key
    for label, lines, k in runs:
        chosen = [r for r in lines if needs in r]
        axis.plot([r["step"] for r in chosen], [share(r, key, k) for r in chosen], label=label)
    axis.set(title=title, xlabel="update", ylim=(0, None))
figure.axes[0].legend(fontsize=8, frameon=False)
assert [len(axis.lines) for axis in figure.axes] == [2, 2, 2, 2]
figure


# %% [markdown]
# The two begin alike and part where their schedules do. In the first act the teacher decides too soon: loss and entropies fall, few prototypes are used, and the gap
# shrinks. Then the center pushes the others into use, and entropies *and loss* rise. In the reference they swing twice more, less deep. The second act is the long one, and only the reference has it: from about update 300 the loss and
# the batch's mean hardly move any more, while the gap grows from 0.13 to nearly 0.2, and the k-NN accuracy with it. Whoever watched the loss alone would have kept the teacher of update 60, where it was lowest.
#
# Here is the whole of the reference run, as `dino report` draws it for every run.

# %%
demo = PRESETS["demo"]
full, n_updates = signs(reference, demo.out_dim), reference[-1]["step"]
print(f"reference: {n_updates} updates, {n_updates * demo.batch_size} images seen, on a CPU")
print(show(full))
assert n_updates == demo.epochs * (4000 // 64), "the shipped teacher is not of this preset"
curves = training_curves(reference, demo.out_dim)
curves.set_dpi(85)
assert len(curves.axes) == 6
curves

# %% [markdown]
# ## 8 Where a step's time goes
#
# A run that is too slow has a reason, and it is seldom the one that comes to mind. So one measures. `profile` takes a few updates of a
# fresh trainer, notes the time wherever one part of the update ends and the next begins (by hooks on its networks, loss and optimizer), and writes nothing. Here it is for the `demo` preset:

# %%
from dino_lib.run.profile import PHASES, profile

fresh = build_trainer(replace(demo, eval_every=0, device="cpu", precision="fp32",
                              output_dir=str(RUNS / "profile")))
measured = profile(fresh, n_steps=3)
total = sum(measured["seconds"].values())
flops = measured["flops"] / demo.batch_size
print(f"{flops / 1e9:.2f} billion operations an image, in {len(PHASES)} phases")
assert set(measured["seconds"]) == set(PHASES) and min(measured["seconds"].values()) >= 0


# %% [markdown]
# The number of operations (multiplications and additions in products of matrices and convolutions) follows from the network and is the
# same on every machine. The times are not, so the tests leave the next cell out:

# %% tags=["nbval-ignore-output"]
for phase in PHASES:
    share = measured["seconds"][phase] / total
    print(f"{phase:>16} {share:6.1%} {'#' * round(50 * share)}")
rate = measured["flops"] / total
for dtype, ceiling in measured["ceiling"].items():
    print(f"{rate / 1e9:.0f} billion operations a second: {rate / ceiling:.0%} of a large "
          f"product's rate in {dtype}")


# %% [markdown]
# How to read it:
#
# - *views* above a quarter: the network waits for its input. With a store, fewer or smaller views; without one, more workers.
# - *optimizer* and *average* above a fifth: there are too few images for so many weights, since both cost the same whatever the batch is.
# - *loss* large: too many prototypes for the batch.
# - Else forward and backward take the time, and the question is how well the machine is used. A network as narrow as this one stays far
#   below what the machine can do: its products are small, and between them softmax, normalisation and GELU move many numbers and
#   multiply few. If bfloat16's ceiling is far above float32's, `precision="bf16"` is worth a try.
#
# `dino train --preset demo --profile` prints the same, with the peak of memory and with what to change in words.

# %% [markdown]
# ## 9 The same on a GPU
#
# Nothing in this notebook changes but the setting at its top. From a terminal the run is one line:
#
# ```
# dino train --preset gpu --output-dir runs/gpu --resume auto
# ```
#
# Press Ctrl-C, or let the session be cut off, and start the same line again. `dino report runs/gpu` draws the figures.
#
# **Several processes.** One for each GPU, started by torchrun. `batch_size` is that of the whole update, so the run stays the same
# run: each process takes its share of the same order of images, gradients are averaged, and the center is taken over all processes.
#
# ```
# torchrun --nproc-per-node 4 -m dino_lib train --preset gpu --output-dir runs/gpu --resume auto
# ```
#
# If you make the batch larger, apply the paper's rule yourself: learning rate = 0.0005 × batch / 256 (section 3.2). The preset's 512 images go with 0.001, a batch of 1024 with 0.002. (`demo` takes twenty times what the rule gives for 64 images:
# a tiny network with batch norm bears it, and has no time for less.)
#
# **Accumulation** cuts a batch into parts, one after the other, and makes one update of all of them. The mean of the parts' gradients
# is the gradient of the whole, *if* no image's output depends on the other images. Batch norm breaks that. Try both: one
# update in 1 part and in 4, without batch norm and with it.

# %% tags=["nbval-ignore-output"]
def difference(**changes):
    outputs = []
    for parts in (1, 4):
        trainer = build_trainer(replace(smoke, accumulate=parts, lr=1e-2, warmup_epochs=0.0,
                                        eval_every=0, **changes))
        views = next(trainer.views.batches(0, batches))
        trainer.train_step(views)
        outputs.append(trainer.student(views).detach())
    return (outputs[0] - outputs[1]).abs().max().item()

without, with_bn = (difference(use_bn=bn, conv_stem=bn) for bn in (False, True))
print(f"largest difference without batch norm {without:.0e}, with it {with_bn:.0e}")
assert without < 1e-3 and with_bn > 1e-2

# %% [markdown]
# The `gpu` preset has no batch norm, for this reason among others; so `accumulate` is a question of memory there, not of the result.
#
# **Half precision.** `precision="auto"` takes bf16 where the hardware computes it natively, fp16 with a gradient scaler on older
# cards such as the T4, and float32 elsewhere. fp16 has no large numbers, hence the scaler; bf16 has few digits. A teacher
# kept in bf16 would never move: a step of 0.004 × 0.25 = 0.001 is lost where the next number after 1 is 1.008. Here a teacher's weight is 1.0, and the student's,
# 1.25, pulls on it for two hundred updates.

# %%
big = torch.tensor(70000.0)
print("70000 in fp16:", big.half().item(), "| in bf16:", big.bfloat16().item())
for dtype in (torch.float32, torch.bfloat16):
    t, s = torch.tensor(1.0, dtype=dtype), torch.tensor(1.25, dtype=dtype)
    for _ in range(200):
        t.lerp_(s, 1 - 0.996)
    print(f"{dtype}: {t.item():.3f}")

# %% [markdown]
# So the library keeps the weights of both networks in float32 and lets only the matrix products run in half precision; the normalisations
# in the head and the loss are taken in float32 as well.
#
# **What was never exercised.** This notebook's outputs are those of the `"cpu"` setting. The download of STL-10, the `"gpu"` setting and
# the command with torchrun on several GPUs were not run to make it; times and memory for a GPU are arithmetic. The same code with
# several processes, parts of a batch and bf16 is tested on a CPU.
#
# ## What the teacher sees so far
#
# The last of the five pictures of this kind: the untrained network, the run above, and the teacher that ships with the repository,
# trained by the full `demo` run of section 7. Digits of a trained network differ from one processor to the next: your table may differ in the second one.

# %%
from dino_lib import load_teacher
from dino_lib.look.report import compare
from dino_lib.run.build import open_probes

probes = open_probes(demo, limit=400)
stages = {"untrained": build_student(config).backbone.eval(), "this run": teacher,
          "trained": load_teacher("demo")}
table, attention, clusters = compare(stages, probes)

# %% tags=["nbval-ignore-output"]
KEYS = ("knn", "nmi", "above_blind")
for name, scores in table.items():
    print(f"{name:11}" + "".join(f"  {key} {scores[key]:.2f}" for key in KEYS if key in scores))
blobs = table["trained"]["above_blind_blobs"]
print(f"{'blind blobs':11}{'above_blind':>34} {blobs:.2f}")

# %% tags=["nbval-ignore-output"]
base = table["untrained"]
for name in ("this run", "trained"):
    gains = [f"{key} {table[name][key] - base[key]:+.2f}" for key in KEYS if key in base]
    print(f"{name:10} over untrained: " + ", ".join(gains))

# %% [markdown]
# The attention on ten test pictures. Each row shows one head, which is chosen without the masks; the outlines are there for you to judge by.

# %%
attention.set_dpi(85)
assert len(attention.axes) == 4 * 10
attention

# %% [markdown]
# And the clusters: each point is a picture, its colour the class, its place a t-SNE of the features. The distances between clusters mean
# nothing; whether a colour is gathered in one place does.

# %%
clusters.set_dpi(85)
assert len(clusters.axes) == 3
clusters


# %% [markdown]
# Two epochs have gone a part of the way. The attention comes first: the network finds *where* the creatures are before it tells *which* they
# are. Of what the full run gains in above blind this one has nine tenths, of what it gains in k-NN accuracy next to nothing. That takes the epochs that
# this run does not have. Even after the full run the two kinds of one palette lie side by side among the clusters: colour is learned first.
#
# ## Summary
#
# - A plan on paper finds most mistakes: updates, half-lives of the momentum in the run, $\ln K$, memory, time.
# - One update is twenty lines; the order (loss, step, teacher; the center not before the loss) is part of the method.
# - The loss alone says little: it is the teacher's entropy plus a divergence. Read it with the two entropies, of one image and of the batch's mean, and their gap.
# - One prototype for all: both entropies near 0. Uniform: both near $\ln K$. Healthy: a gap between them.
# - A run that is interrupted continues bit by bit, because everything that is random is drawn from the seed and the number of the update.
#
# ## Exercises
#
# Fill in the body, run the cell, then run the check below it. The solutions are in [solutions/05_training_solutions.ipynb](solutions/05_training_solutions.ipynb).

# %% [markdown]
# ### Exercise 1: a run on paper (easy)
#
# Write `plan_run(n_images, batch_size, epochs, momentum)`. It returns three numbers: the updates in the whole run, the
# half-life of the momentum in updates, and how many half-lives fit into the run. The last, incomplete batch of an epoch is
# dropped, and `epochs` is a whole number here.

# %%
def plan_run(n_images, batch_size, epochs, momentum):
    ...  # (updates, half-life, half-lives in the run)


# %%
from dino_lib.course import training as checks

checks.check_plan_run(plan_run)


# %% [markdown]
# ### Exercise 2: what is left of the start (easy)
#
# Write `initial_share(momenta)`. `momenta` is an array with the momentum of each update of a run. Return one number: the
# weight with which the *initial* weights still count in the teacher after the last update.

# %%
def initial_share(momenta):
    ...  # one number between 0 and 1


# %%
checks.check_initial_share(initial_share)


# %% [markdown]
# ### Exercise 3: two parts of the loss (medium)
#
# Write `split_loss(student, teacher, center, student_temp, teacher_temp)` for one pair of views: `student` and `teacher` are
# logits of shape (B, K), `center` has shape (K,). Return two numbers, both batch means in nats: the entropy of the teacher's
# rows, and the Kullback-Leibler divergence from the teacher's rows to the student's. Their sum is the loss of the pair.

# %%
def split_loss(student, teacher, center, student_temp, teacher_temp):
    ...  # (entropy, divergence)


# %%
checks.check_split_loss(split_loss)


# %% [markdown]
# ### Exercise 4: a doctor in five lines (hard)
#
# Write `diagnose(history, out_dim)`, which reads a history, a list of dicts as `read_history` gives it, and returns one of four
# verdicts. Look at the last line *that has a teacher entropy* (lines of evaluations have none). With K = `out_dim`:
#
# - `"uniform"` if the entropy of one image's target (`teacher_entropy`) is above 95% of $\ln K$;
# - else `"one prototype"` if the entropy of the batch's mean (`mean_entropy`) is below 20% of $\ln K$;
# - else `"same for all"` if the two differ by less than 5% of $\ln K$;
# - else `"healthy"`.

# %%
def diagnose(history, out_dim):
    ...  # "uniform", "one prototype", "same for all" or "healthy"


# %%
checks.check_diagnose(diagnose)
