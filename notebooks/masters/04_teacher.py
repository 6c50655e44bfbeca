# %% [markdown]
# # 04 · The teacher: a moving average, and the schedules
#
# <!-- badge -->
#
# **You will build** the teacher, which is nothing but a slow average of the student; the schedules that steer a run; and then, from an empty cell, the whole DINO training step. At the end you train with it for a minute.
#
# **You need** the loss of [notebook 03](03_loss.ipynb). Of the code written there only the library's version, which you proved equal, is used.
#
# **Time:** about two minutes on two CPU cores, of which the training at the end takes at most one. Estimates, not measured: under a minute with a T4 or a larger GPU.
#
# Before: [03 · The loss](03_loss.ipynb). After: [05 · Training](05_training.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# The paper is Caron et al. 2021, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294): the teacher is in section 3.1 ("Teacher network"), what it is worth in section 5.2, the schedules in section 3.2.

# %% tags=["equality"]
import copy, dataclasses, math
import numpy as np
import torch
from torch import nn
from dino_lib import PRESETS, DINOLoss, schedules, teacher as library
from dino_lib.course import teacher as checks
from dino_lib.look.curves import show_schedules
from dino_lib.run.build import build_schedules, build_student
from dino_lib.run.train import build_trainer

# %%
import matplotlib.pyplot as plt
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A slow follower
#
# Where do the targets come from, if nobody has trained a teacher? From the student's own past. After each update the teacher takes a small step towards the student. One number first: the teacher's weight is 0, the student's has jumped to 1 and stays there, and the teacher keeps the share $m = 0.9$ of itself at each update.

# %%
t, s, m = 0.0, 1.0, 0.9
for update in range(1, 23):
    t = m * t + (1 - m) * s
    if update in (1, 2, 3, 7, 22):
        print(f"after {update:2d} updates the teacher is at {t:.3f}")

# %% [markdown]
# After $n$ updates the share $m^n$ of the old weight is left. How long until it is half? Solve $m^n = \tfrac12$: the **half-life** is $n = \ln\tfrac12 / \ln m$.

# %%
for m in [0.5, 0.9, 0.96, 0.99, 0.996, 0.9995]:
    print(f"momentum {m:<6}: half-life {math.log(0.5) / math.log(m):7.1f} updates")
assert math.isclose(math.log(0.5) / math.log(0.996), schedules.half_life(0.996))

# %% [markdown]
# This is the one number to check before a run. The paper's 0.996 (173 updates) is meant for hundreds of thousands of updates. After a run of four hundred, $0.996^{400}$ = 20% of that teacher would still be its random start (45% if the momentum also rises to 1, as in the paper); the preset `demo` begins with 0.96, and nothing is left of the start. **Momentum's half-life must fit the run.**
#
# ## 2. A low-pass filter
#
# Training is noisy: each batch pulls the weights elsewhere. An average of the recent past keeps the drift and loses the noise, as a low-pass filter does in sound. Each weight of a network goes through this filter by itself. Here a "student" of one weight drifts from 0 to 1 under noise, with three teachers behind it.

# %%
steps = np.arange(400)
student_path = np.clip(steps / 250, 0, 1) + 0.15 * np.random.default_rng(0).standard_normal(400)
teacher_paths = {}
for m in [0.5, 0.96, 0.996]:
    path, t = [], student_path[0]
    for s in student_path:
        t = m * t + (1 - m) * s
        path.append(t)
    teacher_paths[m] = np.array(path)

# %%
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
axis.plot(steps, student_path, color="0.8", label="student")
for m, path in teacher_paths.items():
    axis.plot(steps, path, label=f"teacher, m = {m}, half-life {schedules.half_life(m):.0f}")
axis.set(xlabel="update", ylabel="weight")
axis.legend(fontsize=8)
assert len(axis.lines) == 4 and all(np.isfinite(line.get_ydata()).all() for line in axis.lines)

# %% [markdown]
# In numbers: the *jitter* is the standard deviation of the step from one update to the next, the lag is how far the teacher is behind when the student has just arrived at 1.

# %%
print(f"student        jitter {np.diff(student_path).std():.3f}")
for m, path in teacher_paths.items():
    jitter, behind = np.diff(path).std(), 1 - path[250]
    print(f"teacher {m:<6} jitter {jitter:.3f}   behind at update 250 by {behind:.2f}")

# %% [markdown]
# The price of quiet is lag: the slower the teacher, the older what it says. Written out, the teacher is a weighted sum of all the students there have been,
#
# $$t_n = m^n\, s_0 + (1 - m) \sum_{j=1}^{n} m^{\,n-j}\, s_j ,$$
#
# where $s_0$ is the common start, $s_j$ the student after update $j$, and $n$ the number of updates. So the teacher is an *ensemble* of past students, the recent ones counting most; the paper compares it with Polyak averaging (section 5.2), and finds it better than the student all through training. That is why it can teach.

# %%
m, n = 0.96, 400  # s_0 is student_path[0]; s_1 ... s_400 are its 400 entries
weights = np.array([m**n] + [(1 - m) * m ** (n - j) for j in range(1, n + 1)])
print(f"the weights sum to {weights.sum():.6f}; "
      f"the last 17 students hold {weights[-17:].sum():.2f} of them")
by_sum = weights @ np.concatenate([student_path[:1], student_path])
assert np.isclose(by_sum, teacher_paths[0.96][-1])


# %% [markdown]
# ## 3. The same for a network
#
# With $\theta_t$ for the teacher's parameters, $\theta_s$ for the student's and $m$ for the momentum,
#
# $$\theta_t \leftarrow m\,\theta_t + (1 - m)\,\theta_s .$$
#
# It runs after the optimizer's step, in place and without a gradient.

# %% [markdown]
# **Your turn 1 · easy · 4 minutes · the moving average.** Write the update for two networks of the same shape. It runs after the optimizer's step, changes the teacher's parameters in place, and leaves no gradient. What should come out: after `ema_update(teacher, student, 0.9)` each weight of the teacher has gone a tenth of the way to the student's, and the student is as it was.
#
# <details><summary>Hint</summary>
#
# Go through `teacher.parameters()` and `student.parameters()` together with `zip`. `t.mul_(a)` and `t.add_(b)` change a tensor in place; `t = ...` would only give the name to another one. `torch.no_grad()` keeps autograd out.
#
# </details>

# %% tags=["stub", "equality"]
def ema_update(teacher, student, momentum):
    """theta_t <- momentum * theta_t + (1 - momentum) * theta_s, parameter by parameter."""
    ### BEGIN SOLUTION
    with torch.no_grad():
        for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
            t.mul_(momentum).add_(s, alpha=1 - momentum)
    ### END SOLUTION

ema_update = checks.ema_update(ema_update)

# %% [markdown]
# Equal to the library's? Its `ema_update` is this loop too, with `lerp_` for the two products, after a check that the two networks fit each other. Two copies of a small network are updated side by side with changing momenta, while the student moves at random. The student itself must stay as it is.

# %% tags=["equality"]
def small_network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))

student, mine = small_network(0), small_network(1)
theirs = copy.deepcopy(mine)
for momentum in [0.9, 0.996, 0.5, 0.0, 1.0, 0.96]:
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in student.parameters()]
    ema_update(mine, student, momentum)
    library.ema_update(theirs, student, momentum)
    torch.testing.assert_close(list(mine.parameters()), list(theirs.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters()))
print("equal after 6 updates")

# %% [markdown]
# Why not simply `load_state_dict` a mixture of both? Because the update is for parameters only. *Buffers*, such as batch norm's running mean, are not averaged: the teacher sees views itself and keeps its own.

# %% tags=["equality"]
student[1].running_mean.fill_(7.0)
library.ema_update(theirs, student, 0.0)  # momentum 0: take over every parameter
assert torch.equal(theirs[0].weight, student[0].weight)
assert torch.equal(theirs[1].running_mean, torch.zeros(8))
print("the teacher's running mean is still its own:", theirs[1].running_mean.tolist()[:3], "...")

# %% [markdown]
# ## 4. A copy with no gradient and no noise
#
# The teacher starts as a copy of the student, backbone and head. It needs storage of its own, no gradient, and one more thing: *drop path*, which skips blocks of the student at random as a regulariser, is switched off, for targets should not be noisy on purpose.

# %% tags=["equality"]
from timm.layers import DropPath

def make_teacher(student):
    """A copy of the student with its own storage, no gradient and no drop path."""
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
    return teacher


# %% [markdown]
# Why a copy at all, and not a second random network? Two networks that start apart don't agree on what prototype 17 stands for; a copy does from the first step. Try it on a student of the smallest preset, with two blocks and strong drop path. Each sentence of the paragraph above becomes one assertion, on your teacher and on the library's.

# %% tags=["equality"]
smoke = PRESETS["smoke"]
two_blocks = {**smoke.backbone_options, "depth": 2}
noisy = dataclasses.replace(smoke, drop_path=0.5, backbone_options=two_blocks)
student = build_student(noisy)
for build in (make_teacher, library.make_teacher):
    teacher = build(student)
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        assert torch.equal(t, s) and t.data_ptr() != s.data_ptr() and not t.requires_grad
    views = [torch.randn(8, 3, 36, 36)] * 2
    teacher_says, again = teacher(views), teacher(views)
    assert torch.equal(teacher_says, again) and not teacher_says.requires_grad and teacher.training
    assert not torch.equal(student(views), student(views))  # drop path: the student is noisy
print("a copy, its own storage, no gradient, no drop path:", tuple(teacher_says.shape))


# %% [markdown]
# Note `teacher.training`: the teacher stays in train mode, as in the official code. Where there is batch norm it uses the statistics of its own batch, not running ones.
#
# ## 5. Schedules: a run on paper
#
# Nothing about a DINO run is constant. The learning rate warms up linearly and then falls along half a cosine; the weight decay rises along one; so does the teacher's momentum, so that the teacher settles; the teacher's temperature warms up. All of them are arrays with one value a step, computed *before* training, and so they can be plotted and checked.

# %% [markdown]
# The cosine part, with $b$ the value it starts from, $f$ the value it approaches, $N$ its number of steps and $i = 0 \dots N - 1$:
#
# $$f + \tfrac12\,(b - f)\,\big(1 + \cos(\pi i / N)\big).$$
#
# At $i = 0$ the bracket is 2 and the value is $b$; halfway it is the mean of both; $f$ itself would come at $i = N$, one step after the end.

# %% tags=["equality"]
def cosine_schedule(base, final, total_steps, warmup_steps=0, start=0.0):
    """total_steps values: warmup_steps from start to base, both ends included, then the cosine."""
    values = []
    for step in range(warmup_steps):
        values.append(start + (base - start) * step / max(1, warmup_steps - 1))
    n = total_steps - warmup_steps
    for i in range(n):
        values.append(final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / n)))
    return np.array(values)

print(cosine_schedule(1.0, 0.0, 8, warmup_steps=4).round(3))

# %% [markdown]
# The 1 comes twice: at the end of the warm-up and at $i = 0$. And the first value is 0, so that the very first update changes no weight. Is it the library's?

# %% tags=["equality"]
for arguments in [(2e-3, 1e-5, 100, 10, 0.0), (0.04, 0.4, 50, 0, 0.0),
                  (0.996, 1.0, 7, 3, 0.9), (1.0, 0.1, 5, 5, 0.0)]:
    base, final, total, warmup, start = arguments
    theirs = schedules.cosine_schedule(base, final, total, warmup_steps=warmup, start=start)
    mine = cosine_schedule(*arguments)
    assert mine.shape == theirs.shape == (total,)
    np.testing.assert_allclose(mine, theirs, rtol=1e-12)
print("equal for 4 schedules")

# %% [markdown]
# Each rises or falls for a reason. A large step is useful early and harmful late, so the learning rate falls; the warm-up protects the first updates, when the optimizer knows little of the gradient's scale. Weight decay grows because regularisation matters more once there is something to overfit. And the momentum grows so that the teacher settles down at the end: a slow teacher early would hold on to its random start, a fast one late would pass on the noise. The teacher's temperature starts low, at 0.04: sharp targets, far from the uniform collapse; on large data it may rise, to 0.07 at most, once the center has settled. `demo` holds it constant.
#
# The four schedules of the preset `demo`, as the library computes them from its settings. An epoch of 4,000 images is 62 updates of 64.

# %%
config = PRESETS["demo"]
run = build_schedules(config, steps_per_epoch=62)
figure = show_schedules(run)
assert len(figure.axes) == 4 and len({len(values) for values in run.values()}) == 1
figure

# %% tags=["nbval-ignore-output"]
for name in ("lr", "weight_decay", "momentum"):
    values = run[name]
    print(f"{name:13} first {values[0]:.5f}   largest {values.max():.5f}   last {values[-1]:.5f}")
mine = cosine_schedule(config.momentum, config.momentum_end, len(run["momentum"]))
np.testing.assert_allclose(run["momentum"], mine)


# %% [markdown]
# ## 6. The whole step, from an empty cell
#
# You have every part now: views, student, teacher, loss, schedules. One update of DINO, in the order that matters:
#
# 1. set this step's learning rate and weight decay;
# 2. the teacher looks at the two global views, without a gradient;
# 3. the student looks at all views, and the loss compares them; the center moves, not before the loss is taken;
# 4. the student takes a step, its gradient's norm clipped; weight decay is for matrices alone, since a bias or a norm's gain has no reason to be near 0;
# 5. the teacher follows.

# %% tags=["equality"]
def train_step(views, student, teacher, loss_fn, optimizer, now, clip_grad=3.0):
    """One update; `now` holds this step's lr, weight_decay, momentum, teacher_temp -> the loss."""
    for group, decay in zip(optimizer.param_groups, (now["weight_decay"], 0.0)):
        group["lr"], group["weight_decay"] = now["lr"], decay
    with torch.no_grad():
        targets = teacher(views[:2])  # (2, B, K): global views only
    loss = loss_fn(student(views), targets, now["teacher_temp"])  # inside, then, the center moves
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
    optimizer.step()
    ema_update(teacher, student, now["momentum"])
    return loss.item()

def set_up(config):
    """Student, teacher, loss and optimizer of a run, before its first step."""
    student = build_student(config)
    matrices = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in student.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors}], lr=config.lr)
    return student, make_teacher(student), DINOLoss(config.out_dim), optimizer


# %% [markdown]
# Read it once more and look for what could be in the wrong place. If the teacher followed *before* the optimizer's step, it would average a student that is one update older. If the center moved before the loss, the targets would be centred by themselves. If the teacher saw the local views as well, its targets would be opinions on a corner of the picture. Only the last one is caught, by the library's loss, which expects two teacher views; with a loss of your own it would run.
#
# That is nearly all of it. Longer runs also hold the prototypes still for the first epoch (`freeze_last_layer` in the preset `gpu`; `demo` does not), and what is evaluated and kept in the end is the *teacher's backbone*, in eval mode and without the head. The rest of any implementation is bookkeeping.
#
# Is it the step that the library takes? Its `Trainer` is put together from the same parts; `build_trainer(config)` makes those that a config describes. `Trainer.train_step` in `dino_lib/run/trainer.py` is your step with a few lines more: a batch may come in parts, in half precision or from several processes, and an update whose loss or gradient isn't finite is skipped. So there the center moves at the end, beside the teacher, and only if the update counts. Both start from the same seed and get the same views, three steps long.

# %% tags=["equality"]
tiny = dataclasses.replace(smoke, precision="fp32", device="cpu", eval_every=0, progress=False)
trainer = build_trainer(tiny)
parts = set_up(tiny)
generator = torch.Generator().manual_seed(0)
for step in range(3):
    views = [torch.randn(16, 3, size, size, generator=generator) for size in (36, 36, 18, 18)]
    now = {name: float(values[step]) for name, values in trainer.schedules.items()}
    mine = train_step(views, *parts, now, tiny.clip_grad)
    theirs = trainer.train_step(views)["loss"].item()
    assert math.isclose(mine, theirs, rel_tol=1e-4)
student, teacher, loss_fn, optimizer = parts
for mine, theirs in zip(optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
    assert mine["weight_decay"] == theirs["weight_decay"]
torch.testing.assert_close(loss_fn.center, trainer.loss.center, rtol=1e-3, atol=1e-5)
torch.testing.assert_close(teacher(views), trainer.teacher(views), rtol=1e-3, atol=1e-4)
torch.testing.assert_close(student(views), trainer.student(views), rtol=1e-3, atol=1e-4)
assert not torch.equal(student(views), teacher(views))
print("losses, center, student and teacher agree over 3 steps")


# %% [markdown]
# Outputs are compared here, not parameters: some biases inside attention have a gradient that is zero but for rounding, and the optimizer turns rounding into a drift that means nothing.
#
# ## 7. Break it
#
# A second is enough to see what each mistake does, on the toy of notebook 03: eight points in eight dimensions, with noise for views, and a small MLP with sixteen prototypes. `follow` takes the update of the teacher as an argument; everything else stays as it should be. Two distances are recorded: how far the teacher is from the student, and how far it has come from its own start.

# %%
class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 16))
        self.prototypes = nn.Linear(16, 16, bias=False)

    def forward(self, x):  # (..., 8) -> (..., 16) cosines
        z = nn.functional.normalize(self.body(x), dim=-1)
        return z @ nn.functional.normalize(self.prototypes.weight, dim=-1).T

def distance(a, b):
    pairs = zip(a.parameters(), b.parameters(), strict=True)
    return math.sqrt(sum((p - q).square().sum().item() for p, q in pairs))


# %%
def follow(update, steps=60):
    """Train the toy: how far is the teacher from the student, and from its start, at every step?"""
    torch.manual_seed(0)
    spots, student = torch.randn(8, 8), Toy()
    teacher, start, loss_fn = make_teacher(student), copy.deepcopy(student), DINOLoss(16)
    optimizer, behind, moved = torch.optim.Adam(student.parameters(), lr=3e-3), [], []
    for _ in range(steps):
        views = spots[torch.randint(8, (64,))] + 0.3 * torch.randn(4, 64, 8)
        loss = loss_fn(student(views), teacher(views[:2]), 0.04)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        update(teacher, student)
        behind.append(distance(teacher, student))
        moved.append(distance(teacher, start))
    return np.array(behind), np.array(moved)


# %%
runs = {}
for m in (0.0, 0.5, 0.9, 0.99, 1.0):
    runs[f"momentum {m}"] = follow(lambda t, s, m=m: ema_update(t, s, m))
runs["reversed, 0.9"] = follow(lambda t, s: ema_update(t, s, 1 - 0.9))
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
for axis, title, k in zip(axes, ["behind the student", "moved from the start"], range(2)):
    for name, distances in runs.items():
        axis.plot(distances[k], label=name, linestyle="--" if "reversed" in name else "-",
                  linewidth=4 if name == "momentum 0.0" else 1.5)
    axis.set(title=f"teacher: {title}", xlabel="update")
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
assert all(len(axis.lines) == 6 for axis in axes)

# %% tags=["nbval-ignore-output"]
for name, (behind, moved) in runs.items():
    print(f"{name:14} behind the student {behind[-1]:.2f}   moved from the start {moved[-1]:.2f}")


# %% tags=["nbval-ignore-output"]
assert runs["momentum 0.0"][0][-1] == 0 and runs["momentum 1.0"][1][-1] == 0
for name in ("reversed, 0.9", "momentum 0.5", "momentum 0.99"):
    print(f"{name}: {runs[name][0][-1]:.3f} behind the student in the end")


# %% [markdown]
# - **Momentum 1**: the teacher never moves. The student learns to agree with a random network, and that is as far as it gets (the closing run of notebook 03 was exactly this).
# - **Momentum 0**: the teacher *is* the student of a moment ago. No ensemble, no filter; the paper reports that this does not converge on ImageNet (section 5.2).
# - **Reversed**, $(1 - m)\,\theta_t + m\,\theta_s$: with $m = 0.9$ the half-life is 0.3 updates, nearly the same as momentum 0. It runs without an error; only the numbers of the teacher beside those of the student give it away.
#
# What if the teacher isn't frozen? Let the gradient flow into the targets as well and train both networks. The loss has then two ways down: a better prediction, or *an easier question*.

# %%
def easy_questions(frozen, steps=60):
    """The toy with a teacher that never moves (frozen) or that is trained by the same loss.

    Returns, for every step, the loss, the teacher's entropy for one point, and that of the
    batch's mean: (steps, 3). There is no center in either case.
    """
    torch.manual_seed(0)
    spots, student = torch.randn(8, 8), Toy()
    teacher = copy.deepcopy(student).requires_grad_(not frozen)
    weights = [p for p in [*student.parameters(), *teacher.parameters()] if p.requires_grad]
    optimizer, curves = torch.optim.Adam(weights, lr=3e-3), []
    for _ in range(steps):
        views = spots[torch.randint(8, (64,))] + 0.3 * torch.randn(4, 64, 8)
        q = (teacher(views[:2]) / 0.04).softmax(-1)
        log_p = (student(views) / 0.1).log_softmax(-1)
        pairs = [(i, v) for i in range(2) for v in range(4) if v != i]
        loss = torch.stack([-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        q = q.detach()
        of_one = torch.special.entr(q).sum(-1).mean()
        of_the_mean = torch.special.entr(q.mean((0, 1))).sum()
        curves.append([loss.item(), of_one, of_the_mean])
    return np.array(curves)


# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
curves = {frozen: easy_questions(frozen) for frozen in (True, False)}
labels = ["loss", "teacher's entropy, one point", "teacher's entropy, the mean"]
for axis, frozen in zip(axes, (True, False)):
    for values, label in zip(curves[frozen].T, labels):
        axis.plot(values, label=label)
    title = "frozen teacher" if frozen else "teacher with a gradient"
    axis.set(title=title, xlabel="update", ylim=(0, None))
axes[1].legend(fontsize=8)
ends = {frozen: curves[frozen][-1] for frozen in curves}
for k, what in enumerate(["the loss", "the entropy for one point", "the entropy of the mean"]):
    print(f"{what} ends at {ends[True][k]:.2f}, and at {ends[False][k]:.2f} with a gradient in the teacher")
    assert ends[False][k] < ends[True][k] - 0.1


# %% [markdown]
# The second picture has the prettier loss and is worth less: the teacher is bent until its answers are easy to guess. Surer answers alone would be no harm; but the entropy of the batch's *mean* falls too, from 1.8 to 0.9. With $e^{1.8} \approx 6$ prototypes in use eight spots can nearly be told apart, with $e^{0.9} \approx 2.5$ they can't. A stop-gradient and a slow average are what keeps the question honest. (Centering, left out here, would spread the answers again; the gradient would go on narrowing them.) Never judge a run by its loss alone.

# %%
from dino_lib import BatchMultiCrop, Shapes
from dino_lib.run.config import multicrop_settings

STEPS = 60
short = dataclasses.replace(config, epochs=STEPS / 62, warmup_epochs=10 / 62)
plan = build_schedules(short, steps_per_epoch=62)
images = Shapes(4000).images  # uint8 (4000, 3, 48, 48)
crop = BatchMultiCrop(**multicrop_settings(config))  # sizes, scales and strengths of the preset
print(len(plan["lr"]), "updates;", [tuple(view.shape) for view in crop(images[:2])])

# %%
parts = set_up(config)
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
losses = []
for step in range(STEPS):
    views = crop(images[order[64 * step : 64 * (step + 1)]])
    now = {name: float(values[step]) for name, values in plan.items()}
    losses.append(train_step(views, *parts, now))
student, teacher = parts[:2]

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(7, 2.4), layout="constrained")
axis.plot(losses, label="loss")
axis.axhline(math.log(config.out_dim), color="gray", linestyle=":", label="ln K")
axis.set(xlabel="update", ylabel="nats", ylim=(0, 1.1 * math.log(config.out_dim)))
axis.legend(fontsize=8)
print(f"ln K is {math.log(config.out_dim):.2f}; the loss starts at {losses[0]:.2f}, is {min(losses):.2f} "
      f"at its lowest and {losses[-1]:.2f} at the end")
assert losses[-1] < math.log(config.out_dim)

# %% [markdown]
# Don't expect a smooth fall. The teacher's entropy is the floor of the loss, and the floor itself moves now that the teacher moves: it sinks while the teacher grows surer, and rises when it spreads over more prototypes. Here the loss falls for some twenty updates and then climbs most of the way back. `demo`, which warms up for longer, goes through the same swing in its first hundred updates, only deeper. Sixty updates end with the swing, before the kinds of creatures have begun to part. What a loss curve can and can't tell is a subject of notebook 05.

# %%
from dino_lib import load_teacher
from dino_lib.look.report import compare
from dino_lib.run.build import open_probes

stages = {
    "untrained": build_student(config).backbone.eval(),
    "this notebook": teacher.backbone.eval(),
    "trained": load_teacher("demo"),
}
table, attention, clusters = compare(stages, open_probes(config, limit=400), n_pictures=7)
attention.set_dpi(80)

# %% [markdown]
# The columns are those of notebook 03: *k-NN* accuracy (chance is 0.1), *NMI* of ten clusters with the ten kinds, and *above blind*, how well one attention head, chosen without masks, finds the creature: 0 for a map that doesn't depend on the picture, 1 for the creatures' masks themselves. The last line is the best of eight blind blobs in the middle, chosen with the masks. A trained network's digits differ from one processor to the next: your table may differ from this one in the second digit.

# %% tags=["nbval-ignore-output"]
for name, scores in table.items():
    knn, nmi, above_blind = scores["knn"], scores["nmi"], scores["above_blind"]
    print(f"{name:14}  k-NN {knn:.2f}  NMI {nmi:.2f}  above blind {above_blind:.2f}")
blobs = table["trained"]["above_blind_blobs"]
print(f"{'blind blobs':35}  above blind {blobs:.2f}")

# %% tags=["nbval-ignore-output"]
assert list(table) == list(stages)
assert all(0 <= scores[key] <= 1 for scores in table.values() for key in ("knn", "nmi"))
assert all(scores["above_blind"] <= 1 for scores in table.values())
for key in ("knn", "nmi"):
    print(f"{key}: {table['this notebook'][key]:.2f} here, {table['trained'][key]:.2f} trained")
    assert table["trained"][key] > table["this notebook"][key] + 0.05

# %% [markdown]
# The evaluations of the full run, from the history that ships with its teacher: k-NN after so many updates.

# %%
from dino_lib import read_history
from dino_lib.teachers.load import SHIPPED

print({r["step"]: round(r["knn"], 2) for r in read_history(SHIPPED / "demo") if "knn" in r})


# %%
attention

# %%
clusters

# %%
from matplotlib.backends.backend_agg import FigureCanvasAgg

for picture in (attention, clusters):
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (height, width, 3)
    assert pixels.shape[1] > 600 and pixels.std() > 10, "a picture is blank"
print("two pictures, neither blank")


# %% [markdown]
# Each row of the attention shows the head that was chosen without masks in that network, so the heads' numbers differ; after so few updates the maps are still almost even, only a little lighter on the creatures. The trained head leaves the ground alone and looks at a part of each creature. Compare the middle row with that of notebook 03, where the teacher stood still for about as many updates: after so few, a moving teacher does much what a frozen one does, in either table. The attention leans towards the creatures, and the k-NN accuracy has not moved. The difference is what comes after. The frozen teacher's targets stay a random network's opinions, so that row has nowhere to go; here each improvement of the student flows back into the targets, and the line above shows where that leads, sixty updates being a thirteenth of the run. Even there the two kinds of one palette lie side by side among the clusters: colour is learned first. No label was shown to anybody.
#
# ## Summary
#
# - The teacher is a running average of the student: a low-pass filter, and an ensemble of past students.
# - Its half-life, ln ½ / ln m, must fit the length of the run.
# - It starts as a copy, with its own storage, without a gradient and without drop path; buffers stay its own.
# - Schedules are arrays with one value a step: linear warm-up, then half a cosine; plot them before you train.
# - The whole step is under twenty lines, and yours agrees with the library's; the center moves not before the loss, the teacher after the optimizer.
#
# ## Exercises
#
# Each stub returns nothing, and its check says "not done yet". Fill it in and run both cells again. Solutions: [solutions/04_teacher_solutions.ipynb](solutions/04_teacher_solutions.ipynb).

# %% [markdown]
# **1 (easy). A momentum that fits.** You plan a run of `total_steps` updates, and the teacher's half-life is to be the given share of it. Which momentum do you set?

# %%
def momentum_for(total_steps, share):
    """total_steps updates, share of the run in (0, 1) -> the momentum with that half-life."""
    ...


# %%
from dino_lib.course.teacher import check_momentum_for
check_momentum_for(momentum_for)


# %% [markdown]
# **2 (easy). The teacher's temperature.** It rises linearly from `start` to `final` over the first `warmup_steps` values, both ends included, and stays there. Return a NumPy array with one value a step.

# %%
def temperature_schedule(start, final, total_steps, warmup_steps):
    """-> float array (total_steps,); 2 <= warmup_steps <= total_steps."""
    ...


# %%
from dino_lib.course.teacher import check_temperature_schedule
check_temperature_schedule(temperature_schedule)


# %% [markdown]
# **3 (medium). Who is in the teacher?** Section 2 gave the weights of past students for a constant momentum. Give them for a schedule: `momenta[j]` is used at update j + 1. Entry 0 of the answer belongs to the common start, entry j to the student after update j.

# %%
def ema_weights(momenta):
    """momenta (n,) -> weights (n + 1,) of the start and of the students after updates 1 .. n."""
    ...


# %%
from dino_lib.course.teacher import check_ema_weights
check_ema_weights(ema_weights)


# %% [markdown]
# **4 (hard). The same step in less memory.** Write one update that gives the network only one part of the batch at a time and still equals the update of the whole batch: `parts` is a list of tensors (V, b, 8), the views of b images each. Call `loss_fn(student, teacher, teacher_temp, update_center=False)` for a part's loss and `loss_fn.update_center(rows)`, rows of any shape (..., K), for the center. The check compares student, teacher and center after two updates with those of a whole batch (plain SGD, no batch norm, no clipping).

# %%
def accumulated_step(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp):
    """parts: a list of (V, b, 8) views; updates student, teacher and center in place."""
    ...


# %%
from dino_lib.course.teacher import check_accumulated_step
check_accumulated_step(accumulated_step)
