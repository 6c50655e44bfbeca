# %% [markdown]
# # 04 · The teacher: a moving average, and the schedules
#
# <!-- badge -->
#
# **You will build** the teacher, a slow average of the student; the schedules that steer a run; and the whole training step. Then you train with it, and see what the teacher is for.
#
# **You need** the loss of [notebook 03](03_loss.ipynb).
#
# **Time.** The cells take about 55 seconds of one CPU core, most of them for the run in section 9. For you: about 35 minutes to read and predict, 33 for the four pieces, 50 for the five exercises.
#
# Before: [03 · The loss](03_loss.ipynb). After: [05 · Training](05_training.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# In the paper ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)) the teacher is in section 3.1, its worth in 5.2, the schedules in 3.2.
#
# Three words first. The **student** is the network that learns by gradient. The **teacher** is a second network of the same shape; it gives the student its targets. **k-NN** measures features without training: a picture gets the label that most of its 20 nearest neighbours have, the nearest counting most, among pictures whose labels we know.

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
from dino_lib.course.prediction import settle
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A slow follower
#
# Nobody has trained a teacher. The targets come from the student's own past: after each update the teacher takes a small step towards the student.
#
# The teacher's weight is 0; the student's has jumped to 1 and stays there. At each update the teacher keeps the share $m = 0.9$ of itself; $m$ is the **momentum**.

# %%
t, s, m = 0.0, 1.0, 0.9
for update in range(1, 23):
    t = m * t + (1 - m) * s
    if update in (1, 2, 3, 7, 22):
        print(f"after {update:2d} updates the teacher is at {t:.3f}")

# %% [markdown]
# After $n$ updates the share $m^n$ of the old weight is left. Half is left after the **half-life**, $n = \ln\tfrac12 / \ln m$ updates.

# %%
for m in [0.5, 0.9, 0.96, 0.99, 0.996, 0.9995]:
    print(f"momentum {m:<6}: half-life {math.log(0.5) / math.log(m):7.1f} updates")

# %% [markdown]
# The paper's 0.996 (173 updates) is meant for hundreds of thousands of updates. After the 240 updates of section 8, $0.996^{240}$ = 38% of that teacher would still be its random start; with 0.98, where the preset `demo` begins (a *preset* is a named set of settings), less than 1%. **The half-life must fit the run.**

# %% [markdown] tags=["note"]
# **Note · 8 minutes for sections 1 and 2.** Let the room guess the half-life of 0.9 before the table; most say 10. *Misconception:* "the teacher is a better network that somebody trained". It is the student's own past. *Ask:* how many updates has your last project had, and which momentum would fit?

# %% [markdown]
# ## 2. A low-pass filter
#
# Each batch pulls the weights another way. An average of the recent past keeps the drift and loses this noise. Here a student of one weight drifts from 0 to 1 under noise, and three teachers follow it.

# %%
steps = np.arange(400)
drift = np.clip(steps / 250, 0, 1)
student_path = drift + 0.3 * np.random.default_rng(0).standard_normal(400)
teacher_paths = {}
for m in [0.5, 0.96, 0.996]:
    path, t = [], student_path[0]
    for s in student_path:
        t = m * t + (1 - m) * s
        path.append(t)
    teacher_paths[m] = np.array(path)

# %% [markdown]
# **Predict.** Which teacher is nearest to the drift, by root mean square distance over the 400 updates? **a** the fastest, m = 0.5. **b** the middle one, m = 0.96. **c** the slowest, m = 0.996.

# %%
guess = "?"  # a, b or c

# %%
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
axis.plot(steps, student_path, color="0.8", label="student")
axis.plot(steps, drift, color="black", linestyle=":", label="drift")
for m, path in teacher_paths.items():
    axis.plot(steps, path, label=f"teacher, m = {m}, half-life {schedules.half_life(m):.0f}")
axis.set(xlabel="update", ylabel="weight")
_ = axis.legend(fontsize=8)

away = {m: np.sqrt(np.mean((path - drift) ** 2)) for m, path in teacher_paths.items()}
for m, path in teacher_paths.items():
    print(f"m {m:<6} jitter {np.diff(path).std():.3f}   behind at update 250 by {1 - path[250]:.2f}"
          f"   away from the drift {away[m]:.3f}")
print(f"student  jitter {np.diff(student_path).std():.3f}")
nearest = "abc"[list(away).index(min(away, key=away.get))]
settle(guess, {"a": "0.5 is nearest", "b": "0.96 is nearest", "c": "0.996 is nearest"}, nearest)

# %% [markdown]
# *Jitter* is the standard deviation of the step from one update to the next. A slow teacher is quiet, and it lags. A fast one is up to date, and noisy. Here the best momentum is between the two.
#
# Written out, the teacher is a weighted sum of all past students:
#
# $$t_n = m^n\, s_0 + (1 - m) \sum_{j=1}^{n} m^{\,n-j}\, s_j .$$
#
# Here $s_0$ is the common start and $s_j$ the student after update $j$. So the teacher is an *ensemble* of past students, and recent ones count most. The paper compares it with Polyak averaging (section 5.2).

# %%
m, n = 0.96, 400  # s_1 ... s_400 are the student's 400 entries; the teacher starts at s_0 = s_1
weights = np.array([m**n] + [(1 - m) * m ** (n - j) for j in range(1, n + 1)])
by_sum = weights @ np.concatenate([student_path[:1], student_path])
print(f"by the sum {by_sum:.6f}, step by step {teacher_paths[0.96][-1]:.6f}")
print(f"the weights sum to {weights.sum():.6f}; "
      f"the last 17 students hold {weights[-17:].sum():.2f} of them")

# %% [markdown]
# ## 3. The same for a network
#
# With the teacher's parameters $\theta_t$, the student's $\theta_s$ and the momentum $m$:
#
# $$\theta_t \leftarrow m\,\theta_t + (1 - m)\,\theta_s .$$

# %% [markdown]
# **Your turn 1 · easy · 4 minutes · the moving average.** Write the update for two networks of the same shape. It changes the teacher's parameters in place and leaves no gradient. What should come out: after `ema_update(teacher, student, 0.9)` each weight of the teacher has gone a tenth of the way to the student's, and the student is as it was.
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
# A piece that is right is kept in the folder `my_pieces`, beside the notebook. Notebook 05 trains with it.
#
# Is it equal to the library's? Two copies of a small network follow a student that moves at random.

# %% tags=["equality"]
def small_network(seed):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 3))

student, followed = small_network(0), small_network(1)
theirs = copy.deepcopy(followed)
for momentum in [0.9, 0.996, 0.5, 0.0, 1.0, 0.96]:
    with torch.no_grad():
        for p in student.parameters():
            p.add_(torch.randn_like(p))
    before = [p.clone() for p in student.parameters()]
    ema_update(followed, student, momentum)
    library.ema_update(theirs, student, momentum)
    torch.testing.assert_close(list(followed.parameters()), list(theirs.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(before, student.parameters()))
print("equal after 6 updates")

# %% [markdown]
# Why not mix the two `state_dict`s? They also hold *buffers*, such as the running mean of batch norm. The update leaves those alone: the teacher sees views itself, and keeps its own statistics.

# %% tags=["equality"]
student[1].running_mean.fill_(7.0)
library.ema_update(theirs, student, 0.0)  # momentum 0: take over every parameter
assert torch.equal(theirs[0].weight, student[0].weight)
assert torch.equal(theirs[1].running_mean, torch.zeros(8))
print("the teacher's running mean is still its own:", theirs[1].running_mean.tolist()[:3], "...")

# %% [markdown] tags=["note"]
# **Note · 8 minutes.** *Misconception:* "`t = m * t + (1 - m) * s` changes the network". It binds a name. Let one person run it and print the teacher before and after. *Ask:* what would `t.data_ptr()` say?

# %% [markdown]
# ## 4. A copy with no gradient and no noise
#
# The teacher starts as a copy of the student, backbone and head. Two random networks would not agree on what prototype 17 stands for.
#
# The copy needs its own storage and no gradient. *Drop path*, which skips blocks of the student at random, is switched off: targets should not be noisy on purpose.

# %% [markdown]
# **Your turn 2 · easy · 6 minutes · the teacher.** Make the copy. What should come out: the same numbers in other storage; no parameter of it takes a gradient; every `DropPath` in it, at any depth, has `drop_prob` 0; the student is as it was. The teacher stays in train mode, as in the official code: batch norm then uses the batch's own statistics.
#
# <details><summary>Hint</summary>
#
# `copy.deepcopy(student)` copies storage too. `requires_grad_(False)` works on a whole network. `teacher.modules()` goes through all modules at any depth, `children()` only through the first level. `hasattr(module, "drop_prob")` finds drop path without an import.
#
# </details>

# %% tags=["stub", "equality"]
def make_teacher(student):
    """A copy of the student with its own storage, no gradient and no drop path."""
    ### BEGIN SOLUTION
    teacher = copy.deepcopy(student).requires_grad_(False)
    for module in teacher.modules():
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.0
    return teacher
    ### END SOLUTION

make_teacher = checks.make_teacher(make_teacher)

# %% [markdown]
# Yours and the library's, for the smallest preset, `smoke`, with two blocks and strong drop path. Each sentence above becomes one assertion.

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
    difference = (student(views) - student(views)).abs().max().item()
    assert difference > 0  # drop path: the student is noisy
print(f"two looks at the same views: the student differs, the teacher by {(teacher_says - again).abs().max():.1f}")

# %% [markdown]
# ## 5. Schedules: a run on paper
#
# Four settings may change during a run; in `demo` three do. Each is an array with one value a step, computed *before* training.
#
# - The **learning rate** warms up linearly, then falls along half a cosine. The warm-up protects the first updates, when the optimizer knows little of the gradient's scale.
# - The **weight decay** rises along half a cosine, from 0.04 to 0.4: the weights are free early and held small late.
# - The teacher's **momentum** rises too: the teacher leaves its random start early and settles late.
# - The teacher's **temperature** is 0.04: sharp targets. On large data it may warm up to 0.07 at most.
#
# The cosine part starts from $b$ and approaches $f$ in $N$ steps, $i = 0 \dots N - 1$:
#
# $$f + \tfrac12\,(b - f)\,\big(1 + \cos(\pi i / N)\big).$$

# %%
b, f, N = 1.0, 0.0, 4
for i in range(N + 1):
    bracket = 1 + math.cos(math.pi * i / N)
    print(f"i = {i}: bracket {bracket:.2f}, value {f + 0.5 * (b - f) * bracket:.2f}"
          + ("   (one step after the end)" if i == N else ""))

# %% [markdown]
# **Your turn 3 · medium · 8 minutes · the schedule.** `total_steps` values in all. The first `warmup_steps` go in a straight line from `start` to `base`, both ends included. The rest is the cosine from `base` towards `final`, and its $i$ starts at 0. What should come out: `cosine_schedule(1.0, 0.0, 8, 4)` is 0, ⅓, ⅔, 1, 1, 0.85, 0.5, 0.15, with the 1 twice.
#
# <details><summary>Hint</summary>
#
# `np.linspace(a, b, n)` gives n values with both ends. The cosine has `total_steps - warmup_steps` values; `np.arange` counts them. `np.concatenate([first, second])` joins two arrays.
#
# </details>

# %% tags=["stub", "equality"]
def cosine_schedule(base, final, total_steps, warmup_steps=0, start=0.0):
    """total_steps values: warmup_steps from start to base, both ends included, then the cosine."""
    ### BEGIN SOLUTION
    warmup = np.linspace(start, base, warmup_steps)
    n = total_steps - warmup_steps
    bracket = 1 + np.cos(np.pi * np.arange(n) / n)
    return np.concatenate([warmup, final + 0.5 * (base - final) * bracket])
    ### END SOLUTION

cosine_schedule = checks.cosine_schedule(cosine_schedule)

# %% tags=["equality"]
for arguments in [(2e-3, 1e-5, 100, 10, 0.0), (0.04, 0.4, 50, 0, 0.0),
                  (0.996, 1.0, 7, 3, 0.9), (1.0, 0.1, 5, 5, 0.0)]:
    base, final, total, warmup, start = arguments
    theirs = schedules.cosine_schedule(base, final, total, warmup_steps=warmup, start=start)
    mine = np.asarray(cosine_schedule(*arguments))
    assert mine.shape == theirs.shape == (total,)
    np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-6)
print("equal for 4 schedules")

# %% [markdown]
# The four schedules of `demo`, from the library. With 4,000 images an epoch is 125 updates of 32.

# %%
config = PRESETS["demo"]
run = build_schedules(config, steps_per_epoch=125)
show_schedules(run)

# %%
for name in ("lr", "weight_decay", "momentum"):
    values = run[name]
    print(f"{name:13} first {values[0]:.5f}   largest {values.max():.5f}   last {values[-1]:.5f}")
mine = np.asarray(cosine_schedule(config.momentum, config.momentum_end, len(run["momentum"])))
print(f"your momentum differs from the library's by {abs(mine - run['momentum']).max():.6f} at most")

# %% [markdown] tags=["note"]
# **Note · 10 minutes.** At the picture: the learning rate and the momentum mirror each other; late in the run the student moves little and the teacher hardly follows. *Misconception:* "the schedule ends at `final`". It stops one step before. *Ask:* what goes wrong if a run is resumed and the schedule starts again?

# %% [markdown]
# ## 6. The whole step, from an empty cell
#
# You have every part now. This is one update of DINO, and the order matters.
#
# 1. Set this step's learning rate in both of the optimizer's groups, and the weight decay in the first. The first group holds the matrices. The second holds biases and the scale vectors of layer norm, which have no reason to be near 0.
# 2. The teacher looks at the two global views, `views[:2]`, without a gradient.
# 3. The student looks at all views, and the loss compares them. `loss_fn(student_says, teacher_says, teacher_temp)` also moves the center, after the loss.
# 4. The student takes a step: clear the old gradient, go backward, clip the norm of the whole gradient to `clip_grad`, step.
# 5. The teacher follows.
#
# The official code does two things otherwise: it clips the gradient of each tensor by itself, and for the first epoch it takes the gradient of the prototypes away.

# %% tags=["equality"]
def set_up(config):
    """Student, teacher, loss and optimizer of a run, before its first step."""
    student = build_student(config)
    matrices = [p for p in student.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in student.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.lr)
    return student, make_teacher(student), DINOLoss(config.out_dim), optimizer

# %% [markdown]
# **Your turn 4 · hard · 15 minutes · the training step.** Write the five steps. `now` is a dict with this step's `lr`, `weight_decay`, `momentum` and `teacher_temp`. What should come out: the loss as a number; student, teacher and center have moved. The check looks at them after two updates.
#
# <details><summary>Hint</summary>
#
# `optimizer.param_groups` is a list of two dicts with the keys `"lr"` and `"weight_decay"`. `torch.no_grad()` goes around the teacher's look. `nn.utils.clip_grad_norm_(student.parameters(), clip_grad)` stands between `backward` and `step`. The last line but one is your `ema_update`. `loss.item()` is the number.
#
# </details>

# %% tags=["stub", "equality"]
def train_step(views, student, teacher, loss_fn, optimizer, now, clip_grad=3.0):
    """One update; `now` holds this step's lr, weight_decay, momentum, teacher_temp -> the loss."""
    ### BEGIN SOLUTION
    for group in optimizer.param_groups:
        group["lr"] = now["lr"]
    optimizer.param_groups[0]["weight_decay"] = now["weight_decay"]
    with torch.no_grad():
        targets = teacher(views[:2])  # (2, B, K): global views only
    loss = loss_fn(student(views), targets, now["teacher_temp"])  # then the center moves
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), clip_grad)
    optimizer.step()
    ema_update(teacher, student, now["momentum"])
    return loss.item()
    ### END SOLUTION

train_step = checks.train_step(train_step)

# %% [markdown]
# Three mistakes run without an error; the check names them, a run would not:
#
# - The teacher follows *before* the optimizer's step. Then it averages a student that is one update older.
# - You call `loss_fn.update_center` too. Then the center moves twice in a step.
# - `zero_grad` is missing. Then old gradients add up.
#
# The library's `Trainer.train_step` is this step with a few lines more, for parts of a batch, half precision and several processes. Both start from the same seed and get the same views, for three steps.

# %% tags=["equality"]
tiny = dataclasses.replace(smoke, precision="fp32", device="cpu", eval_every=0, progress=False)
trainer = build_trainer(tiny)
parts = set_up(tiny)
generator = torch.Generator().manual_seed(0)
for step in range(3):
    views = [torch.randn(16, 3, size, size, generator=generator) for size in (36, 36, 18, 18)]
    now = {name: float(values[step]) for name, values in trainer.schedules.items()}
    mine = float(train_step(views, *parts, now, tiny.clip_grad))
    theirs = trainer.train_step(views)["loss"].item()
    assert math.isclose(mine, theirs, rel_tol=1e-4)
student, teacher, loss_fn, optimizer = parts
for ours, others in zip(optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
    assert ours["weight_decay"] == others["weight_decay"]
torch.testing.assert_close(loss_fn.center, trainer.loss.center, rtol=1e-3, atol=1e-5)
torch.testing.assert_close(teacher(views), trainer.teacher(views), rtol=1e-3, atol=1e-4)
torch.testing.assert_close(student(views), trainer.student(views), rtol=1e-3, atol=1e-4)
assert not torch.equal(student(views), teacher(views))
print("losses, center, student and teacher agree over 3 steps")

# %% [markdown]
# The cell compares outputs, not parameters: some biases inside attention have a gradient of rounding alone, and the optimizer turns it into a drift without meaning.
#
# What is kept after a run is the *teacher's backbone*, in eval mode, without the head.

# %% [markdown] tags=["note"]
# **Note · 20 minutes.** Let pairs write the step on paper first, as five lines of words. *Misconception:* "the student should see only the local views". It sees all of them; each global view of the student is compared with the other global view of the teacher. *Ask:* which two lines could you swap without a change? (`zero_grad` and the teacher's look, for example.)

# %% [markdown]
# ## 7. Break it
#
# What if the teacher takes the gradient too? A toy like that of notebook 03 shows it within a second: eight points in eight dimensions (with less in common than 03's), noise for views, and a small MLP with sixteen prototypes.

# %%
class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 16))
        self.prototypes = nn.Linear(16, 16, bias=False)

    def forward(self, x):  # (..., 8) -> (..., 16) cosines
        z = nn.functional.normalize(self.body(x), dim=-1)
        return z @ nn.functional.normalize(self.prototypes.weight, dim=-1).T

# %% [markdown]
# Two teachers, both without a center. A **frozen** one stands still, as with momentum 1. The other is trained by the same loss as its student. Then the loss has two ways down: a better prediction, or *an easier question*.
#
# Notebook 03 judged a teacher by a **gap**: the entropy of the batch's mean answer, less the entropy of one answer. $e^{\text{gap}}$ is the number of groups that the teacher tells apart.

# %%
def easy_questions(frozen, steps=60, seed=0):
    """The toy with a frozen teacher, or with one that the same loss trains; no center.

    Returns (steps, 3): the loss, the teacher's entropy for one point, and that of the batch's mean.
    """
    torch.manual_seed(seed)
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

# %% [markdown]
# **Predict.** After 60 updates, which of the two has the lower loss? **a** the frozen teacher. **b** the teacher with a gradient. **c** they differ by less than 0.1.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 2, figsize=(9, 2.8), sharey=True, layout="constrained")
curves = {frozen: easy_questions(frozen) for frozen in (True, False)}
labels = ["loss", "teacher's entropy, one point", "teacher's entropy, the mean"]
for axis, frozen in zip(axes, (True, False)):
    for values, label in zip(curves[frozen].T, labels):
        axis.plot(values, label=label)
    title = "frozen teacher" if frozen else "teacher with a gradient"
    axis.set(title=title, xlabel="update", ylabel="nats", ylim=(0, None))
_ = axes[1].legend(fontsize=8)
frozen_end, trained_end = curves[True][-1], curves[False][-1]
for k, label in enumerate(labels):
    print(f"{label} ends at {frozen_end[k]:.2f}, and at {trained_end[k]:.2f} with a gradient")
print("groups told apart, seeds 0 to 4: frozen, with a gradient")
for seed in range(5):
    ends = [easy_questions(frozen, seed=seed)[-1] for frozen in (True, False)]
    print(*[f"{math.exp(end[2] - end[1]):5.1f}" for end in ends], f"   losses {ends[0][0]:.2f}, {ends[1][0]:.2f}")
by = frozen_end[0] - trained_end[0]
lower = "c" if abs(by) < 0.1 else "b" if by > 0 else "a"
settle(guess, {"a": "the frozen one is lower", "b": "the one with a gradient is lower",
               "c": "they are alike"}, lower)

# %% [markdown]
# The run with a gradient has the lower loss, and so with every seed: 0.00 or 0.01. Did its teacher learn more? With some seeds it tells more groups apart than the frozen one, which never learned anything, with others fewer. The low loss says only that its answers have become easy to guess. **Never judge a run by its loss alone.**

# %% [markdown] tags=["note"]
# **Note · 12 minutes.** At the picture: cover the titles and ask which run the room would keep. Most choose the lower loss. *Misconception:* "a lower loss is a better network". The target moves; the loss is measured against it. *Ask:* what else could you log to tell the two apart?

# %% [markdown]
# ## 8. What the teacher is for: one student, four momenta
#
# A script, `benchmarks/momentum.py`, has trained a tiny network with four teachers, three seeds each: momentum **0**, the student of a moment ago; **0.96**; **1**, a teacher that never moves; and a schedule, **0.96 to 0.99**. All four start from the same weights and see the same views. Every 30 updates it measured the k-NN of teacher and student.
#
# Three grey lines are *baselines*: chance (ten kinds of pictures: 10%), the untrained network, and a histogram of the colours, which needs no network. A thin line is one seed, a thick line the mean of three.

# %%
from dino_lib.course.momentum import follow, measured

found = measured()
print(f"{len(found['runs'])} runs of {found['updates']} updates: {found['pictures']} pictures of {found['size']} px; "
      f"k-NN among {found['gallery']} others, {found['queries']} questions")

# %% [markdown]
# **Predict.** Where does the *student* of momentum 0 end, in the mean of the three seeds? **a** as high as that of 0.96, within 3 points. **b** lower, and above the untrained network. **c** at the untrained network or below.

# %%
guess = "?"  # a, b or c

# %%
def lines_of(momentum, key, start=0):
    """(seeds, points): one curve a seed, from the measured runs."""
    return np.array([[line[key] for line in run["lines"][start:]]
                     for run in found["runs"] if run["momentum"] == momentum])

colours = {"0": "tab:red", "0.96": "tab:blue", "0.96 to 0.99": "tab:green", "1": "tab:orange"}
updates = [line["update"] for line in found["runs"][0]["lines"]]
untrained = lines_of("0", "teacher")[:, 0].mean()

def draw(axis, key):
    for momentum, colour in colours.items():
        curves = lines_of(momentum, key)
        axis.plot(updates, curves.T, color=colour, alpha=0.3, linewidth=1)
        axis.plot(updates, curves.mean(0), color=colour, linewidth=2.5, label=f"momentum {momentum}")
    axis.axhline(untrained, color="0.5", linestyle=":", label="untrained")
    axis.axhline(found["histogram"], color="0.5", linestyle="--", label="colour histogram")
    axis.axhline(0.1, color="0.5", linewidth=0.7, label="chance")
    axis.set(xlabel="update", ylim=(0, None))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained")
for axis, key in zip(axes, ("teacher", "student")):
    draw(axis, key)
    axis.set_title(f"k-NN of the {key}", fontsize=10)
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)

# %%
for momentum in colours:
    teacher, student = (lines_of(momentum, key)[:, -1] for key in ("teacher", "student"))
    seeds = ["  ".join(f"{value:.2f}" for value in of) for of in (teacher, student)]
    print(f"momentum {momentum:13} teacher {teacher.mean():.2f} ({seeds[0]})   student {student.mean():.2f} ({seeds[1]})")
print(f"untrained {untrained:.2f}, colour histogram {found['histogram']:.2f}")
zero, middle = (lines_of(m, "student")[:, -1].mean() for m in ("0", "0.96"))
place = "c" if zero <= untrained else "a" if zero > middle - 0.03 else "b"
settle(guess, {"a": "as high as 0.96", "b": "between the untrained network and 0.96",
               "c": "no better than the untrained network"}, place)

# %% [markdown]
# - **Momentum 0** teaches nothing: its teacher and student end no better than the untrained network, at 0.25 and 0.26 against 0.28 in the mean, with one seed of the three a little above it.
# - **Momentum 1** helps its student, although the teacher knows nothing: from 0.28 to 0.37. The student learns to say the same of all views of a picture, and that alone orders the features.
# - **0.96** and the **schedule** do best, and they are alike. In so short a run the moving targets add 2 points to momentum 1 in the mean, and most of that comes from one seed.
# - So too fast a teacher is fatal here, and too slow a one costs its *student* little. The teacher of momentum 1, which one would keep, ends at 0.25, below the untrained network.
# - The paper reports a teacher that is better than its student all through training (section 5.2). Here it is behind at first. With 0.96 it ends ahead in all three seeds, 0.41 against 0.39 in the mean; with the schedule in two of them, 0.40 against 0.39.
# - The teacher of momentum 1 keeps its weights. Its k-NN changes because its batch norm's running statistics adapt to the views it sees.
# - **No line reaches the colour histogram.** A tiny network with 240 updates learns less than the colours give away.
#
# On ImageNet, too, a teacher that copies the student of the update before does not converge (section 5.2). What happens to it? Take $B$, the entropy of its mean answer to a batch. Then $e^B$ says over how many of the 256 prototypes its answers together spread. (It isn't the *used* of notebook 03, which counts first choices: an undecided teacher spreads over all 256.)

# %%
figure, axis = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
in_use = {m: np.exp(math.log(256) * lines_of(m, "mean", start=1)) for m in colours}  # stored: B / ln 256
for momentum, colour in colours.items():
    axis.plot(updates[1:], in_use[momentum].T, color=colour, alpha=0.3, linewidth=1)
    axis.plot(updates[1:], in_use[momentum].mean(0), color=colour, linewidth=2.5, label=momentum)
axis.set(title="prototypes that the answers spread over", xlabel="update", ylabel="of 256", ylim=(0, 260))
_ = figure.legend(*axis.get_legend_handles_labels(), loc="outside right center", title="momentum", fontsize=8)

# %%
early = [60 <= update <= 120 for update in updates[1:]]
for momentum in colours:
    found_so_far = in_use[momentum][:, early]
    print(f"momentum {momentum:13} spread over, updates 60 to 120: {found_so_far.min():5.1f} to "
          f"{found_so_far.max():5.1f} (most in the mean of the seeds: {found_so_far.mean(0).max():5.1f})")

# %% [markdown]
# At update 30 two seeds of momentum 0 still spread over more than 30 prototypes. From 60 to 120 the teacher has few, at times fewer than two, and 10 at most in the mean of the seeds. In that time the slower teachers never fall below 46.
#
# Our guess at the reason: the student's last step is the next target, so a small shift towards some prototypes comes back at once and grows; a slow teacher averages over such swings. Later, in two of the three seeds, the answers together spread over many prototypes again, but so do the single ones, and the student's k-NN stays below that of every other student.

# %% [markdown] tags=["note"]
# **Note · 15 minutes.** Take the guesses before the plot; nearly everybody expects momentum 0 to be fine, "since it is the newest network". *Misconception:* "momentum 1 can't teach anything". Its student gets better than the untrained network. *Ask:* why does no line reach the histogram, and why do we draw it all the same?

# %% [markdown]
# ## 9. Train: your own step
#
# Now a live run with your `train_step` and a momentum that has not been measured, from the start and with the views of seed 0.
#
# **Predict.** With 0.5 the teacher's half-life is one update. Where does your student end? **a** among the three runs of 0.96, or above. **b** lower, but nearer to their mean than to that of momentum 0. **c** nearer to the mean of momentum 0, or below it.

# %%
guess = "?"  # a, b or c
my_momentum = 0.5  # or another number between 0 and 1

# %%
mine = follow(train_step, {"mine": my_momentum}, seed=0)["mine"]

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), sharey=True, layout="constrained")
for axis, key in zip(axes, ("teacher", "student")):
    draw(axis, key)
    axis.plot([line["update"] for line in mine], [line[key] for line in mine], color="black",
              linewidth=3, linestyle=(0, (2, 1)), label=f"yours, {my_momentum}")
    axis.set_title(f"k-NN of the {key}", fontsize=10)
_ = figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)

of_middle, of_zero = (lines_of(m, "student")[:, -1] for m in ("0.96", "0"))
last = mine[-1]["student"]
print(f"your student ends at {last:.2f}; momentum 0.96, three seeds: {of_middle.min():.2f} to "
      f"{of_middle.max():.2f}; momentum 0: {of_zero.min():.2f} to {of_zero.max():.2f}")
half_way = (of_middle.mean() + of_zero.mean()) / 2
place = "a" if last >= of_middle.min() else "b" if last > half_way else "c"
settle(guess, {"a": "as high as 0.96", "b": "nearer to 0.96", "c": "nearer to momentum 0"}, place)

# %% [markdown]
# One run is one seed, and the thin red lines show how far apart seeds end with so fast a teacher. Rounding alone moves such a run, too: on other processors this one ended between 0.17 and 0.29, well below the runs of 0.96 in any case. The runs of momentum 0 move as well.

# %% [markdown]
# **Exercise 5 · easy · 10 minutes · a momentum of your own.** (Exercises 6 to 9 come after the summary.) Set `my_momentum` to 0.9, 0.99 or 0.996, work out how many half-lives fit into 240 updates, guess, and run the three cells above again. What should come out: your line in black among the measured ones. With 0.996 look at the left plot too: how much of this teacher is still its random start, and does its student mind?

# %% [markdown]
# ## Summary
#
# - The teacher is a running average of the student: a low-pass filter, and an ensemble of past students.
# - Its half-life, ln ½ / ln m, must fit the length of the run.
# - It starts as a copy: its own storage and buffers, no gradient, no drop path.
# - Schedules are arrays: plot them before you train.
# - The step has five parts. The center moves after the loss, and the teacher after the optimizer.
#
# ## Exercises

# %% [markdown]
# **Exercise 6 · easy · 5 minutes · a momentum that fits.** In a run of `total_steps` updates the teacher's half-life is to be the given share of the run. Which momentum do you set? What should come out: 400 updates and a share of 0.1 give about 0.983.
#
# <details><summary>Hint</summary>
#
# The half-life is n = share · total_steps updates. Solve m^n = ½ for m.
#
# </details>

# %% tags=["stub"]
def momentum_for(total_steps, share):
    """total_steps updates, share of the run in (0, 1) -> the momentum with that half-life."""
    ### BEGIN SOLUTION
    return 0.5 ** (1 / (share * total_steps))  # m^n = 1/2 at n = share * total_steps
    ### END SOLUTION

momentum_for = checks.momentum_for(momentum_for)

# %% [markdown]
# **Exercise 7 · easy · 5 minutes · the teacher's temperature.** It goes in a straight line from `start` to `final` over the first `warmup_steps` values, both ends included, and stays there. What should come out: one value a step, `total_steps` in all; `temperature_schedule(0.04, 0.07, 6, 4)` is 0.04, 0.05, 0.06, 0.07, 0.07, 0.07.
#
# <details><summary>Hint</summary>
#
# `np.linspace` for the first part, `np.full` for the second.
#
# </details>

# %% tags=["stub"]
def temperature_schedule(start, final, total_steps, warmup_steps):
    """-> float array (total_steps,); 2 <= warmup_steps <= total_steps."""
    ### BEGIN SOLUTION
    warmup = np.linspace(start, final, warmup_steps)
    return np.concatenate([warmup, np.full(total_steps - warmup_steps, final)])
    ### END SOLUTION

temperature_schedule = checks.temperature_schedule(temperature_schedule)

# %% [markdown]
# **Exercise 8 · medium · 10 minutes · the students in the teacher.** Section 2 gave the weights of past students for one momentum. Give them for a schedule: `momenta[j]` is used at update j + 1. What should come out: n + 1 weights that sum to 1. Entry 0 belongs to the common start, entry j to the student after update j.
#
# <details><summary>Hint</summary>
#
# Follow one update. What happens to the weights that are there already? Which weight comes new? A loop over `momenta` does it.
#
# </details>

# %% tags=["stub"]
def ema_weights(momenta):
    """momenta (n,) -> weights (n + 1,) of the start and of the students after updates 1 .. n."""
    ### BEGIN SOLUTION
    weights = np.array([1.0])
    for m in momenta:  # each update shrinks all that is there, and adds the newest student
        weights = np.append(m * weights, 1 - m)
    return weights
    ### END SOLUTION

ema_weights = checks.ema_weights(ema_weights)

# %% [markdown]
# **Exercise 9 · hard · 20 minutes · the same step in less memory.** Write one update that gives the networks one part of the batch at a time, and still equals that of the whole batch. `parts` is a list of tensors (V, b, 8), the views of b images each. `loss_fn(student, teacher, teacher_temp, update_center=False)` is a part's loss; `loss_fn.update_center(rows)` moves the center, with rows of any shape (..., K). There are no schedules and no clipping here. What should come out: the student, teacher and center of a whole batch, with one part's graph in memory at a time.
#
# <details><summary>Hint</summary>
#
# `backward` adds gradients up, and it frees the graph. The loss of a batch is a mean; a part's loss has to count 1 / len(parts). Three things happen once an update: the center, the optimizer's step, the teacher.
#
# </details>

# %% tags=["stub"]
def accumulated_step(parts, student, teacher, loss_fn, optimizer, momentum, teacher_temp):
    """parts: a list of (V, b, 8) views; updates student, teacher and center in place."""
    ### BEGIN SOLUTION
    rows = []
    optimizer.zero_grad()
    for views in parts:
        with torch.no_grad():
            targets = teacher(views[:2])
        loss = loss_fn(student(views), targets, teacher_temp, update_center=False)
        (loss / len(parts)).backward()  # gradients add up over the parts; the loss is a mean
        rows.append(targets)
    loss_fn.update_center(torch.cat(rows, dim=1))  # once, from all rows
    optimizer.step()
    ema_update(teacher, student, momentum)
    ### END SOLUTION

accumulated_step = checks.accumulated_step(accumulated_step)
