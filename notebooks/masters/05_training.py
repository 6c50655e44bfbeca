# %% [markdown]
# # 05 · Training: the whole run
#
# <!-- badge -->
#
# You have written the pieces of DINO: views (01), head (02), loss and center (03), teacher, schedules and step (04). Now you put them together and train. You plan the run, train for a minute, and *read* what happened. Then you meet what a long run needs: checkpoints, half precision, a watchful eye, and a GPU if you have one.
#
# **You need** notebooks 01 to 04, or their ideas: views, prototypes, two temperatures, a center, a slow teacher. If a piece of yours is missing, the finished one takes its place.
#
# **Time:** about 75 minutes with the reading, 54 of them *your turn*; 15 more for the exercise at the end. The notebook itself takes about 70 seconds of one CPU core; half of that is the training.
#
# [Before: 04, the teacher](04_teacher.ipynb) · after: [06, attention](06_attention.ipynb)

# %% tags=["setup"]
# written by build.py

# %% tags=["equality"]
import copy, json, math, tempfile, time
from dataclasses import replace
from pathlib import Path
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from dino_lib import PRESETS, BatchMultiCrop, read_history
from dino_lib.course import pieces, training as checks, whole
from dino_lib.course.long_run import lasting_folder, redraw, timetable
from dino_lib.course.prediction import settle
from dino_lib.data.datasets import open_dataset
from dino_lib.data.loaders import epoch_order
from dino_lib.run.build import build_schedules, build_student
from dino_lib.run.config import multicrop_settings
from dino_lib.run.train import build_trainer

preset = PRESETS["demo"]
# two fifths of the work in an update, and a teacher and a student that move faster
short = replace(preset, batch_size=16, n_local=2, lr=2.5e-3, momentum=0.96, momentum_end=0.99)
RUNS = Path(tempfile.mkdtemp())  # for runs that you want to keep: Path("runs")

# %%
import matplotlib.pyplot as plt

# %% [markdown]
# ## 1 Your pieces
#
# When a check said "right", the notebook kept your piece in the folder `my_pieces`. Here they are loaded and checked once more. The table says which pieces are yours. For the others the finished ones are used, and nothing else changes.

# %% tags=["equality", "nbval-ignore-output"]
mine = pieces.collect(**whole.FINISHED)

# %% [markdown] tags=["note"]
# **Section 1, 3 minutes.** Ask who has a full table. Nobody needs one: the notebook runs with any mixture. *Misconception:* "with the finished pieces it would train better." Each piece passed a check against the finished one, so both give the same run up to rounding.

# %% [markdown]
# ## 2 The plan, on paper
#
# A few numbers can be worked out before anything is computed. Many failed runs show in them.
#
# One **update** uses one batch. The last, incomplete batch of an epoch is dropped. The **half-life** of the momentum is the number of updates after which an old weight counts half in the teacher: $\ln \frac12 / \ln m$.

# %% [markdown]
# **Your turn 1 · easy · 5 minutes · a run on paper.** Write `plan_run`. It returns three numbers: the updates in the whole run, the half-life of the momentum in updates, and how many half-lives fit into the run. `epochs` is a whole number. What should come out: `plan_run(1000, 300, 7, 0.97)` gives 21 updates, a half-life of 22.8 and 0.92 half-lives.
#
# <details><summary>Hint</summary>
#
# `//` divides and drops the rest. Drop it in each epoch, not once at the end. `math.log` is the natural logarithm.
#
# </details>

# %% tags=["stub", "equality"]
def plan_run(n_images, batch_size, epochs, momentum):
    """-> (updates, half-life, half-lives in the run)"""
    ### BEGIN SOLUTION
    updates = n_images // batch_size * epochs
    half_life = math.log(0.5) / math.log(momentum)
    return updates, half_life, updates / half_life
    ### END SOLUTION

plan_run = checks.plan_run(plan_run)

# %% [markdown]
# Three runs on paper: the one of this notebook, the whole preset `demo`, and the preset `gpu` for 100,000 photographs. Beside them stands $\ln K$. That is the loss of a student that knows nothing: it gives each of the $K$ prototypes the probability $1/K$, so its cross-entropy is $-\sum_k q_k \ln \frac1K = \ln K$, whatever the teacher's $q_k$ are. It is not the worst: a student that is sure and wrong loses more than $\ln K$.

# %%
gpu = PRESETS["gpu"]
for name, n, c, epochs in [("this notebook", 2000, short, 1), ("demo", 4000, preset, preset.epochs),
                           ("gpu", 100_000, gpu, gpu.epochs)]:
    updates, life, lives = plan_run(n, c.batch_size, int(epochs), c.momentum)
    print(f"{name:13} {updates:6} updates of {c.batch_size}, half-life {life:3.0f} updates, "
          f"{lives:5.1f} of them fit; ln K = {math.log(c.out_dim):.2f}")

# %% [markdown]
# The momentum changes during a run. What is left of the teacher's random start is then the product of all momenta.

# %% [markdown]
# **Your turn 2 · easy · 3 minutes · what is left of the start.** Write `initial_share(momenta)`. `momenta` is an array with the momentum of each update. It returns one number: the weight with which the *initial* weights still count in the teacher after the last update. What should come out: three updates at 0.9 leave 0.729.
#
# <details><summary>Hint</summary>
#
# Each update multiplies what is left by its momentum.
#
# </details>

# %% tags=["stub", "equality"]
def initial_share(momenta):
    """-> one number between 0 and 1"""
    ### BEGIN SOLUTION
    share = 1.0
    for momentum in momenta:
        share = share * momentum
    return share
    ### END SOLUTION

initial_share = checks.initial_share(initial_share)

# %% [markdown]
# **Predict.** The paper's momentum rises from 0.996 to 1. Take it for a run of 125 updates. How much of the teacher is still its random start in the end?
#
# a) less than a tenth · b) about a third · c) more than two thirds

# %%
guess = "?"  # a, b or c

# %%
momenta = {  # this run's schedule is made for 744 updates; you stop after 125
    "this run's, from 0.96": mine.cosine_schedule(short.momentum, short.momentum_end, 744)[:125],
    "the paper's, from 0.996": mine.cosine_schedule(0.996, 1.0, 125)}
left = {label: [initial_share(values[:n]) for n in range(126)] for label, values in momenta.items()}
share = left["the paper's, from 0.996"][-1]
settle(guess, {"a": "less than a tenth", "b": "about a third", "c": "more than two thirds"},
       "a" if share < 0.1 else "c" if share > 2 / 3 else "b")
figure, axis = plt.subplots(figsize=(8, 2.4), layout="constrained")
for label, values in left.items():
    axis.plot(values, label=f"{label}: {values[-1]:.1%} in the end")
axis.set(xlabel="update", ylabel="initial weights", ylim=(0, 1.05))
_ = axis.legend(frameon=False)

# %% [markdown]
# With the paper's momentum most of this teacher would never be trained, and no error would say so. Several half-lives should fit into a run. That is why this run begins at 0.96, and `demo`, which is longer, at 0.98.
#
# Your run is a part of a longer one: its schedules are made for 744 updates, here 12 times 62, and you stop after 125 of them, at the dotted line. (We chose 744 so that the warm-up ends within your run. An epoch, all 4,000 pictures in batches of 16, would be 250 updates.) The whole preset `demo` takes twice as many, 1,500, with a lower learning rate and a slower teacher. To save time, your updates are also smaller: 16 pictures instead of 32, and two local views instead of four. Your curves can be laid over those of the full run later.

# %% tags=["equality"]
def plan(config, steps_per_epoch):
    """The four schedules of a run, from your cosine."""
    total = round(config.epochs * steps_per_epoch)
    warmup = round(config.warmup_epochs * steps_per_epoch)
    cosine = mine.cosine_schedule
    return {"lr": cosine(config.lr, config.min_lr, total, warmup_steps=warmup),
            "weight_decay": cosine(config.weight_decay, config.weight_decay_end, total),
            "momentum": cosine(config.momentum, config.momentum_end, total),
            "teacher_temp": np.full(total, config.teacher_temp)}

# %%
from dino_lib.look.curves import show_schedules

figure = show_schedules(plan(short, 62))
for axis in figure.axes:
    axis.axvline(125, color="black", linestyle=":")
figure

# %% [markdown] tags=["note"]
# **Section 2, 15 minutes.** At the picture: the orange line is a run that reports no error and has a teacher of noise. *Misconception:* "more momentum is safer." It is safer against noise and useless in a short run. *Ask:* what momentum would you take for 20,000 updates? (Several half-lives must fit: 0.996 gives 115 of them.)

# %% [markdown]
# ## 3 What the loss is made of
#
# For the teacher's probabilities $q$ and the student's $p$ the cross-entropy has two parts:
#
# $$-\sum_k q_k \ln p_k = \underbrace{-\sum_k q_k \ln q_k}_{\text{entropy of the teacher}} + \underbrace{\sum_k q_k \ln (q_k / p_k)}_{\text{divergence}}$$
#
# Only the divergence says how well the student predicts the teacher. The entropy is the teacher's own doing.

# %%
q, p = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
print(f"cross-entropy {-(q * p.log()).sum():.4f} = entropy {-(q * q.log()).sum():.4f} "
      f"+ divergence {(q * (q / p).log()).sum():.4f}")

# %% [markdown]
# **Your turn 3 · medium · 8 minutes · the two parts.** Write `split_loss` for one pair of views. `student` and `teacher` are logits of shape (B, K), `center` has shape (K,). Return two numbers: the entropy of the teacher's rows, and the divergence from the teacher's rows to the student's, each as the mean over the batch. What should come out: two numbers that add up to the loss of this pair.
#
# <details><summary>Hint</summary>
#
# The teacher's rows are `((teacher - center) / teacher_temp).softmax(-1)`. `log_softmax` gives the logarithms in one go. Sum over the prototypes first, then take the mean over the batch.
#
# </details>

# %% tags=["stub", "equality"]
def split_loss(student, teacher, center, student_temp, teacher_temp):
    """-> (entropy, divergence), means over the batch in nats"""
    ### BEGIN SOLUTION
    log_q = F.log_softmax((teacher - center) / teacher_temp, dim=-1)
    log_p = F.log_softmax(student / student_temp, dim=-1)
    q = log_q.exp()
    entropy = -(q * log_q).sum(-1).mean()
    divergence = (q * (log_q - log_p)).sum(-1).mean()
    return entropy, divergence
    ### END SOLUTION

split_loss = checks.split_loss(split_loss)

# %% [markdown]
# ## 4 The loop
#
# Around the update stands a loop. Each epoch goes through the images in a new order and drops the incomplete batch. A counter of updates runs through *all* epochs, because the schedules have one value for each update of the whole run.

# %% [markdown]
# **Your turn 4 · medium · 10 minutes · the training loop.** Write it. `orders` holds one array of image numbers for each epoch, not always of all images. `make_views(images)` gives the views of a batch. `update(views, now)` makes one update and returns its loss; `now` is a dict with this update's value of each schedule. Return the list of all losses. What should come out: with 10 images, batches of 4 and two orders, four updates, with the schedules' values 0, 1, 2 and 3.
#
# <details><summary>Hint</summary>
#
# `range(0, len(order) - batch_size + 1, batch_size)` gives the start of each whole batch. The number of losses so far is the number of the update.
#
# </details>

# %% tags=["stub", "equality"]
def training_loop(images, orders, batch_size, schedules, make_views, update):
    """One epoch for each of `orders` -> the losses of all updates"""
    ### BEGIN SOLUTION
    losses = []
    for order in orders:
        for start in range(0, len(order) - batch_size + 1, batch_size):
            batch = images[order[start:start + batch_size]]
            now = {name: float(values[len(losses)]) for name, values in schedules.items()}
            losses.append(update(make_views(batch), now))
    return losses
    ### END SOLUTION

training_loop = checks.training_loop(training_loop)

# %% [markdown]
# Now everything is put together. `Student` sends views through timm's network and your head. `Loss` holds your loss and your center in the form that your step calls.

# %% tags=["equality"]
class Student(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.backbone = build_student(config).backbone
        width = self.backbone.num_features
        self.head = mine.Head(width, config.out_dim, hidden_dim=config.hidden_dim,
                              bottleneck_dim=config.bottleneck_dim, use_bn=config.use_bn)

    def forward(self, views):
        return mine.forward_views(self.backbone, self.head, views)

# %% tags=["equality"]
class Loss(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.student_temp, self.center_momentum = config.student_temp, config.center_momentum
        self.register_buffer("center", torch.zeros(config.out_dim))

    def forward(self, student, teacher, teacher_temp):
        loss = mine.dino_loss(student, teacher, self.center, self.student_temp, teacher_temp)
        with torch.no_grad():  # the center moves after the loss
            self.center = mine.update_center(self.center, teacher, self.center_momentum)
        return loss

# %% [markdown]
# `Run` holds the parts of a run. Its `update` is your step.

# %% tags=["equality"]
class Run:
    def __init__(self, config, student=None):
        self.student = student or Student(config)
        self.teacher = mine.make_teacher(self.student)
        self.loss = Loss(config)
        # two groups: your step sets the weight decay of the first, and biases and norms have none
        matrices = [p for p in self.student.parameters() if p.requires_grad and p.ndim > 1]
        vectors = [p for p in self.student.parameters() if p.requires_grad and p.ndim <= 1]
        self.optimizer = torch.optim.AdamW([{"params": matrices}, {"params": vectors, "weight_decay": 0.0}])

    def update(self, views, now):
        return mine.train_step(views, self.student, self.teacher, self.loss, self.optimizer, now)

# %% [markdown]
# **Is the whole the library's?** Notebook 04 proved one step. Here the *loop* is compared: two epochs of the tiny preset `smoke`, with your loop and with the library's `Trainer`. Both start from the same weights and see the same views. The teacher's temperature moves, so that a wrong schedule would show.

# %% tags=["equality"]
smoke = replace(PRESETS["smoke"], teacher_temp=0.07, warmup_teacher_temp_epochs=1, device="cpu",
                precision="fp32", progress=False, eval_every=0,
                output_dir=tempfile.mkdtemp(dir=RUNS))  # a folder of its own, each time
trainer = build_trainer(smoke)
smoke_run, views = Run(smoke, copy.deepcopy(trainer.student)), trainer.views
orders = [torch.from_numpy(epoch_order(smoke.seed, epoch, 64)) for epoch in range(2)]
done = []

def update(views, now):
    done.append(now)
    return smoke_run.update(views, now)

def same_views(numbers):  # four updates an epoch
    return next(views.batches(len(done) // 4, [numbers.numpy()]))

losses = training_loop(torch.arange(64), orders, 16, trainer.schedules, same_views, update)
_, history = trainer.run()
torch.testing.assert_close(losses, [line["loss"] for line in history], rtol=1e-3, atol=1e-4)
torch.testing.assert_close(smoke_run.loss.center, trainer.loss.center, rtol=1e-3, atol=1e-5)
for mine_, theirs in zip(smoke_run.optimizer.param_groups, trainer.optimizer.param_groups, strict=True):
    for setting in ("lr", "weight_decay"):
        assert math.isclose(mine_[setting], theirs[setting], rel_tol=1e-6)
    assert [p.shape for p in mine_["params"]] == [
        p.shape for p in theirs["params"] if p.requires_grad]
print(f"{len(losses)} losses agree, and so do the center and the optimizer's settings")

# %% [markdown] tags=["note"]
# **Sections 3 and 4, 25 minutes.** *Misconception:* "a falling loss is a learning student." Half of the room will say so; keep the answer for the next picture. *Ask:* which line of the loop would still run, and ruin the run, if the counter started again in each epoch? (The learning rate would warm up in every epoch.)

# %% [markdown]
# ## 5 The run
#
# The real thing: the network of `demo`, and half an epoch of the 4,000 embedded pictures. How long will it take *here*? Measure an update, in seconds of one CPU core, and multiply. The first one is slower, so the second counts. `make_views` makes the views of a batch with your crop, your saturation and your list of views.

# %% tags=["nbval-ignore-output"]
images = open_dataset("shapes", None, "train").images  # uint8 (4000, 3, 48, 48)
trial = Run(short)
schedules = plan(short, 62)
recipe = BatchMultiCrop(**multicrop_settings(short))
make_views = whole.batch_views(recipe, mine.crop, mine.saturation, mine.views)
for step in range(2):
    start = time.process_time()
    now = {name: values[0] for name, values in schedules.items()}
    trial.update(make_views(images[:short.batch_size]), now)
seconds = time.process_time() - start
print(f"an update: {seconds:.1f} s of one core; 125 of them: {125 * seconds:.0f} s "
      f"(cores at work here: {torch.get_num_threads()})")

# %% [markdown]
# What we note every ten updates: the loss, its two parts for one pair of views, and the entropy of the mean target of the batch. The teacher is measured before the first update and after the last one. **20-NN** asks the 20 nearest of 500 labelled pictures, the *gallery*, for the class of each of 250 others. **Above blind** says how well one attention head finds the creatures: about 0 for a map that is the same for all pictures, 1 for the creatures' masks. The head is chosen without the masks.

# %%
def look(run, config, views, now, loss):
    """A line of the history, just after an update."""
    with torch.no_grad():
        said, predicted = run.teacher(views[:2]), run.student(views)
    center, temp = run.loss.center, now["teacher_temp"]
    entropy, divergence = split_loss(predicted[1], said[0], center, config.student_temp, temp)
    mean = ((said - center) / temp).softmax(-1).mean((0, 1))  # (K,)
    return {"loss": loss, "teacher_entropy": float(entropy), "divergence": float(divergence),
            "mean_entropy": torch.special.entr(mean).sum().item()}

def watched(run, config, lines, every, after=lambda line: None):
    """The run's update, which also adds a line to `lines` now and then."""
    step = 0
    def update(views, now):
        nonlocal step
        step += 1
        loss = run.update(views, now)
        if step == 1 or step % every == 0:
            lines.append({"step": step, **look(run, config, views, now, loss)})
            after(lines[-1])
        return loss
    return update

# %%
from dino_lib.run.build import open_probes

probes = open_probes(preset, limit=500)
torch.manual_seed(0)
run, history = Run(short), []
untrained = copy.deepcopy(run.teacher.backbone).eval()

def draw(axis):
    steps, parts = [r["step"] for r in history], ["teacher_entropy", "divergence"]
    axis.clear()
    axis.stackplot(steps, [[r[part] for r in history] for part in parts],
                   labels=["entropy of the teacher", "divergence"], colors=["#9ecae1", "#fdae6b"])
    axis.axhline(math.log(preset.out_dim), color="gray", linestyle=":", label="ln K")
    axis.set(xlabel="update", ylabel="nats", ylim=(0, 8.5), xlim=(0, 125))
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper right")

def show(lines):
    draw(figure.axes[0])
    screen.update(figure)

show_now_and_then = redraw(show, seconds=10)  # by time: a picture takes as long as two updates

# %% [markdown]
# **Predict.** The network is small, and half an epoch is little. After 125 updates, which will have come further on its way to the fully trained teacher: its attention or its k-NN?
#
# a) the attention · b) the k-NN · c) both about as far
#
# **Predict, too.** Somewhere in this run the loss will *rise* for some fifty updates. Which part of it rises?
#
# d) the entropy of the teacher · e) the divergence · f) both

# %%
guess = "?"  # a, b or c
guess_of_the_rise = "?"  # d, e or f

# %% [markdown]
# Start. The picture grows while the network trains.

# %% tags=["nbval-ignore-output"]
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained")
screen = display(figure, display_id=True)
orders = [torch.from_numpy(epoch_order(short.seed, 0, 4000))[:2000]]  # half an epoch
losses = training_loop(images, orders, short.batch_size, schedules, make_views,
                       watched(run, short, history, every=10, after=show_now_and_then))
show(history)
plt.close(figure)

# %% [markdown]
# Beside your run stand the same network untrained, and the teacher that ships with the repository (the whole preset, 1,500 updates). The last two rows have learned nothing: a colour histogram instead of features, and instead of attention the *local contrast*, that is, how much the pixels in a patch differ.

# %% tags=["nbval-ignore-output"]
from dino_lib import load_teacher
from dino_lib.look.report import compare
from dino_lib.measure.stages import histogram_scores

stages = {"untrained": untrained, "your run": run.teacher.backbone.eval(),
          "the whole preset": load_teacher("demo")}
table, attention, clusters = compare(stages, probes, n_pictures=8)
print(f"{'':18} 20-NN, gallery of 500   above blind")
for name, score in table.items():
    print(f"{name:18} {score['knn']:21.0%}   {score['above_blind']:11.2f}")
print(f"{'colour histogram':18} {histogram_scores(probes)['knn']:21.0%}")
print(f"{'local contrast':18} {'':21}   {table['untrained']['above_blind_contrast']:11.2f}")

# %% tags=["nbval-ignore-output"]
def way(key):  # the share of the way from untrained to the whole preset
    start, here, end = (table[name][key] for name in stages)
    return (here - start) / (end - start)

print(f"of the way to the whole preset: attention {way('above_blind'):.0%}, k-NN {way('knn'):.0%}")
ahead = way("above_blind") - way("knn")
settle(guess, {"a": "the attention", "b": "the k-NN", "c": "both about as far"},
       "a" if ahead > 0.15 else "b" if ahead < -0.15 else "c")
low = min(range(2, 8), key=lambda i: history[i]["loss"])  # where the loss was lowest
high = max(range(low, len(history)), key=lambda i: history[i]["loss"])
rise = {key: history[high][key] - history[low][key] for key in ("teacher_entropy", "divergence")}
print(f"from update {history[low]['step']} to {history[high]['step']}: "
      + ", ".join(f"{key} {value:+.1f}" for key, value in rise.items()))
settle(guess_of_the_rise, {"d": "the entropy of the teacher", "e": "the divergence", "f": "both"},
       "f" if min(rise.values()) > 0.3 else "d" if rise["teacher_entropy"] > 0.3 else "e")

# %% [markdown]
# The network finds *where* the creatures are before it tells *which* they are. Its map of attention is clearly better than local contrast, while its k-NN has gained a few points and is about level with the colour histogram's: with 250 test pictures, each of these accuracies is uncertain by some three points. And the loss alone is a poor guide. It falls while the teacher grows surer and uses few prototypes. Then the center pushes other prototypes into use. The teacher's entropy rises, and the loss rises with it.

# %% [markdown] tags=["note"]
# **Section 5, 10 minutes.** At the growing picture: stop talking and let it grow. Then ask which part of the loss the student can do anything about. *Misconception:* "the loss rises, so the learning rate is too high." Point to the two parts. *Ask:* who keeps the model with the lowest loss, which update does he keep?

# %% [markdown]
# ## 6 Reading the run
#
# **A reference.** The repository ships the history of a full run of `demo`. Pictures and network are those of your run. Its batches are twice as large, with four local views, and its teacher is slower. Losses and entropies are drawn as shares of $\ln K$. *One image* is the mean entropy of single targets. *Batch mean* is the entropy of the mean target of a batch. Their difference is the **gap**: it says how much a target tells about its picture. At the start most runs have a wide gap, ill ones too (not the one without sharpening): an untrained network answers differently to different colours. So the gap says nothing before the first swing is over, that is, before the loss has fallen and come back.

# %% tags=["nbval-ignore-output"]
from dino_lib.teachers.load import SHIPPED

reference = read_history(SHIPPED / "demo")

def curves(lines, out_dim):
    top = math.log(out_dim)
    return {"loss": [r["loss"] / top for r in lines],
            "batch mean": [r["mean_entropy"] / top for r in lines],
            "gap": [(r["mean_entropy"] - r["teacher_entropy"]) / top for r in lines]}

figure, axes = plt.subplots(1, 4, figsize=(10, 3), layout="constrained")
logged = [r for r in reference if "loss" in r]
for label, lines, style in [("reference", logged, "-"), ("your run", history, ".-")]:
    for axis, (name, values) in zip(axes, curves(lines, preset.out_dim).items()):
        axis.plot([r["step"] for r in lines], values, style, label=label)
        axis.set(title=f"{name} / ln K", xlabel="update", ylim=(0, 1.1 if name != "gap" else 0.3),
                 xscale="log")
evaluated = [r for r in reference if "knn" in r]
axes[3].plot([r["step"] for r in evaluated], [r["knn"] for r in evaluated], "-")
axes[3].plot([0, 125], [table[name]["knn"] for name in ("untrained", "your run")], ".-")
axes[3].axhline(histogram_scores(probes)["knn"], color="gray", ls="--", label="colour histogram,\ngallery of 500")
axes[3].set(title="20-NN accuracy", xlabel="update", ylim=(0, 1))
axes[3].legend(frameon=False, fontsize=7, loc="lower right")
_ = axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# (Three axes are logarithmic, so that the start has room.) The reference's k-NN has a gallery of 2,000, yours of 500. Your run is the first swing: loss and batch mean fall, and come back. The reference begins with such a swing too, and a smaller one. From about update 200 on its loss and batch mean hardly move any more, while the gap and the k-NN go on growing.
#
# **Health.** Three questions to the last line of a history, in this order:
#
# | question | an ill run | its name |
# | --- | --- | --- |
# | Is each single target undecided? | one image above 95% of $\ln K$ | uniform |
# | Do all pictures share one prototype? | batch mean below 20% of $\ln K$ | one prototype |
# | Does a target tell nothing about its picture? | gap below 5% of $\ln K$ | same for all |
#
# A run that passes all three is called healthy. The bounds are rules of thumb for the end of the first swing and later. (Notebook 07 asks in another order and with another bound, so a run on the edge can get another name there; it calls the last one *one mixed answer*.)

# %% [markdown]
# **Your turn 5 · hard · 12 minutes · a doctor in five lines.** Write `diagnose(history, out_dim)`. `history` is a list of dicts. Take the last one *that has a* `"teacher_entropy"`: lines of evaluations have none. `"teacher_entropy"` is *one image*, `"mean_entropy"` is *batch mean*, both in nats. Ask the table's three questions in order and return `"uniform"`, `"one prototype"`, `"same for all"` or `"healthy"`. What should come out: with K = 64, entropies of 2.0 (one image) and 3.0 (batch mean) are healthy.
#
# <details><summary>Hint</summary>
#
# `[line for line in history if "teacher_entropy" in line][-1]` is the line. All bounds are shares of `math.log(out_dim)`.
#
# </details>

# %% tags=["stub", "equality"]
def diagnose(history, out_dim):
    """-> one of the four words"""
    ### BEGIN SOLUTION
    last = [line for line in history if "teacher_entropy" in line][-1]
    one = last["teacher_entropy"] / math.log(out_dim)
    mean = last["mean_entropy"] / math.log(out_dim)
    if one > 0.95:
        return "uniform"
    if mean < 0.2:
        return "one prototype"
    if mean - one < 0.05:
        return "same for all"
    return "healthy"
    ### END SOLUTION

diagnose = checks.diagnose(diagnose)

# %% [markdown]
# Its patients: your run, the reference, and small runs that were made ill on purpose, three seeds each. `benchmarks/ill_runs.py` trained them: 40 updates of a smaller network with K = 64, without centering (and with a teacher temperature of 0.02, so that 40 updates are enough for the collapse), with the reverse of sharpening (a temperature of 0.3, three times the student's), and with a mistake in the data: the views of a row come from *different* pictures.
#
# **Predict.** Which of the three ill runs has the *lowest* loss?
#
# a) no centering · b) no sharpening · c) views of different pictures

# %%
guess = "?"  # a, b or c

# %%
measured = json.loads((Path(pieces.__file__).parent / "measured" / "ill_runs.json").read_text())
k = measured["about"]["out_dim"]
for case, runs in measured["runs"].items():
    print(case)
    for seed, lines in enumerate(runs):
        loss, mean, gap = (values[-1] for values in curves(lines, k).values())
        print(f"   seed {seed}: loss {loss:.2f}, batch mean {mean:.2f}, gap {gap:4.0%} of ln K: "
              f"{diagnose(lines, k)}")
ill = list(measured["runs"])[1:]
lowest = min(ill, key=lambda case: measured["runs"][case][0][-1]["loss"])
settle(guess, dict(zip("abc", ill)), "abc"[ill.index(lowest)])

# %%
figure, axes = plt.subplots(1, 4, figsize=(10, 2.4), sharey=True, layout="constrained")
for axis, (case, runs) in zip(axes, measured["runs"].items()):
    for lines, style in zip(runs, ("-", "--", ":")):  # one style a seed
        steps = [r["step"] for r in lines]
        axis.plot(steps, [r["mean_entropy"] for r in lines], "C1", ls=style, label="batch mean")
        axis.plot(steps, [r["teacher_entropy"] for r in lines], "C0", ls=style, label="one image")
    axis.axhline(math.log(k), color="gray", linestyle=":")
    axis.set(title=case, xlabel="update", ylim=(0, 4.4))
    axis.title.set_size(9)
axes[0].set_ylabel("entropy (nats)")
_ = axes[0].legend(*[of[:2] for of in axes[0].get_legend_handles_labels()], frameon=False, fontsize=8)

# %% tags=["nbval-ignore-output"]
for label, lines in (("your run", history), ("the reference", reference)):
    gap = curves([r for r in lines if "loss" in r], preset.out_dim)["gap"][-1]
    print(f"{label}: gap {gap:.0%} of ln K at the end: {diagnose(lines, preset.out_dim)}")

# %% [markdown]
# The lowest loss belongs to a collapsed run: every picture gets the same prototype, and that is easy to guess. Each seed has its own line style. Between its orange line and its blue line lies its gap.
#
# The last patient is the hard one. The doctor lets two of its three seeds pass, with gaps of 6% and 7% of $\ln K$, where the healthy runs have 11% to 13%. Yours is hardly wider, since your run is young: with the seeds 0 to 4 it ended at 7.2%, 7.5%, 4.8%, 8.3% and 5.4% (`benchmarks/short_run.py`). The third is "same for all" to this doctor. Yet its k-NN rose from 40% to 46%, where the colour histogram has 44%. The reference has 10% after 125 updates, and climbs to 19%. So a gap tells little by itself. Three bounds don't find every illness. Look at the k-NN as well.
#
# What to try when a run looks ill:
#
# | you see | try first |
# | --- | --- |
# | one prototype | Is the center subtracted, updated, saved and loaded? Is its momentum below 1? |
# | uniform | a lower teacher temperature (0.04); a longer warm-up |
# | same for all | Do the views of a row come from *one* image? Did the teacher start as a copy, and does it follow slowly? |
# | healthy, but k-NN as untrained | the half-life of the momentum against the length of the run |
#
# Be patient, too. A healthy run also falls at first, and comes back: look at the first panel of the reference. `dino doctor RUN` asks more questions of this kind.

# %% [markdown] tags=["note"]
# **Section 6, 20 minutes.** At the four panels: cover the titles and let the room name them. *Misconception:* "the loss at $\ln K$ means that nothing is wrong yet." Without sharpening it stays there for ever. *Ask:* which single number would you log, if you could log only one? (The gap. In the collapses it is small, 0% to 6% of $\ln K$, where the healthy runs have 11% to 13%.)

# %% [markdown]
# ## 7 Interrupted
#
# A long run is cut off sooner or later. To go on as if nothing had happened it needs five things: the number of the update, student, teacher, center, and the optimizer with its averages.

# %% [markdown]
# **Your turn 6 · medium · 8 minutes · a checkpoint.** Write `take_checkpoint`. It returns a dict with the keys `"step"`, `"student"`, `"teacher"`, `"center"` and `"optimizer"`; for networks and optimizer take their `state_dict()`. The run goes on afterwards, and the checkpoint must stay as it is. What should come out: the same numbers, however many updates follow.
#
# <details><summary>Hint</summary>
#
# A state dict holds the live tensors themselves, and the next update changes them in place. `detach()` still shares their memory. `copy.deepcopy` copies all of it.
#
# </details>

# %% tags=["stub", "equality"]
def take_checkpoint(step, student, teacher, center, optimizer):
    """-> a dict of the five that stays as it is"""
    ### BEGIN SOLUTION
    return copy.deepcopy({"step": step, "student": student.state_dict(),
                          "teacher": teacher.state_dict(), "center": center,
                          "optimizer": optimizer.state_dict()})
    ### END SOLUTION

take_checkpoint = checks.take_checkpoint(take_checkpoint)

# %% [markdown]
# **Predict.** Somebody forgets the center in the checkpoint. The run goes on with a center of zero. What happens to the entropy of the batch mean, the measure of how many prototypes are in use?
#
# a) it falls by more than a tenth · b) it stays within a tenth · c) it rises by more than a tenth

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
run.teacher.train()
saved = take_checkpoint(125, run.student, run.teacher, run.loss.center, run.optimizer)
views, now = make_views(images[:16]), {name: values[125] for name, values in schedules.items()}
spread = {}
for center in ("kept", "forgotten"):
    run.loss.center = saved["center"] if center == "kept" else torch.zeros(preset.out_dim)
    spread[center] = look(run, short, views, now, 0.0)["mean_entropy"]
    print(f"center {center}: entropy of the batch mean {spread[center]:.2f}")
run.loss.center = saved["center"].clone()  # no harm done
change = spread["forgotten"] / spread["kept"] - 1
settle(guess, {"a": "it falls", "b": "it stays", "c": "it rises"},
       "a" if change < -0.1 else "c" if change > 0.1 else "b")

# %% [markdown]
# Without its center the teacher falls back on the prototypes that lead in every picture: e to 5.13 is about 170 of the 1,024, e to 6.49 some 660. The targets change at once, and the student runs after them.
#
# **The library's `Trainer`** is your loop with all this around it: a history in a file, checkpoints, interrupts. Here it trains the tiny preset, and we interrupt it after update 5 of 8, as if you had pressed the stop button. With `resume="auto"` it goes on from the newest checkpoint.

# %% tags=["equality"]
def run_smoke(name, resume="never", on_log=None):
    trainer = build_trainer(replace(smoke, output_dir=f"{smoke.output_dir}/{name}", resume=resume),
                            on_log=on_log)
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

# %%
folder = Path(smoke.output_dir) / "broken"
for path in sorted(folder.rglob("*")):
    print(path.relative_to(folder))

# %% [markdown]
# **Exactly where it stopped?** One run went straight through, the other was interrupted. All weights are compared bit by bit. No tolerance is needed: everything random is drawn from the seed and from what stands in the checkpoint: the number of the update, and with it epoch and image.

# %% tags=["equality"]
for part in ("teacher", "student", "loss"):  # the loss holds the center
    one, other = getattr(straight, part).state_dict(), getattr(broken, part).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)
assert [r["loss"] for r in straight.history] == [r["loss"] for r in broken.history]
print(f"{len(straight.history)} losses, center, teacher and student: equal bit by bit")

# %% [markdown]
# From a terminal a long run is one line, and the same line goes on after an interrupt. Here it is the preset `gpu` of section 2, which downloads STL-10's 100,000 unlabelled photographs first. `batch_size` is that of the whole update, so with several processes it stays the same run. `--stop-after 10` would save and leave after ten minutes.
#
# ```
# dino train --preset gpu --output-dir runs/gpu --resume auto
# torchrun --nproc-per-node 4 -m dino_lib train --preset gpu --output-dir runs/gpu --resume auto
# ```
#
# With a larger batch apply the paper's rule yourself: learning rate = 0.0005 × batch / 256 (section 3.2). It is made for networks like the paper's; the tiny ones here take some thirty times as much.

# %% [markdown] tags=["note"]
# **Section 7, 12 minutes.** *Misconception:* "a checkpoint is the weights." Without the optimizer's averages the next steps are wild; without the center the targets change at once. *Ask:* why does the resumed run see the same views? (They are a function of seed, epoch and image, and no generator has to be saved.)

# %% [markdown]
# ## 8 Half precision
#
# Cards such as the T4 compute fastest in **fp16**. Its largest number is 65,504, and its smallest above 0 is about $6 \cdot 10^{-8}$. Gradients are small, and what is less than half of that rounds to 0: it *underflows*. A **scaler** multiplies the loss, and with it all gradients, by a large number before the backward pass, and divides afterwards in float32. The cost: some gradients may now *overflow*. Then the update is skipped, and the scale is halved.

# %% [markdown]
# **Your turn 7 · medium · 8 minutes · the way through fp16.** Write `scaled_gradient(gradient, scale)`. `gradient` is a float32 tensor. Multiply by the scale, go to fp16, come back to float32, divide by the scale. Return two things: what arrives, and whether the update must be skipped. Skip if a value in fp16 is infinite or nan; then give zeros everywhere. `gradient` itself stays as it is: it is used again. What should come out: `1e-8` arrives as 0 with scale 1, and as about `1e-8` with scale 65,536.
#
# <details><summary>Hint</summary>
#
# `x.half()` goes to fp16, `x.float()` comes back. `x.isfinite()` is false for infinite values and for nan. Divide *after* the way back.
#
# </details>

# %% tags=["stub", "equality"]
def scaled_gradient(gradient, scale):
    """-> (the gradient that arrives, whether to skip)"""
    ### BEGIN SOLUTION
    half = (gradient * scale).half()
    if not half.isfinite().all():
        return torch.zeros_like(gradient), True
    return half.float() / scale, False
    ### END SOLUTION

scaled_gradient = checks.scaled_gradient(scaled_gradient)

# %% [markdown]
# Try it on real gradients: those that flow into the first block of *your* network, for one batch.
#
# **Predict.** How many of them does fp16 lose without a scale?
#
# a) none · b) some, up to one in ten · c) more than one in ten

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
flowing = []
block = run.student.backbone.model.blocks[0]
hook = block.register_full_backward_hook(lambda module, inputs, outputs: flowing.append(outputs[0]))
with torch.no_grad():
    targets = run.teacher(views[:2])
mine.dino_loss(run.student(views), targets, run.loss.center, preset.student_temp, preset.teacher_temp).backward()
hook.remove()
gradient = torch.cat([g.flatten() for g in flowing])
gradient = gradient[gradient != 0]
scales = 2.0 ** np.arange(0, 41, 2)
arrived = [scaled_gradient(gradient, float(scale)) for scale in scales]
lost = [1.0 if skip else (value == 0).float().mean().item() for value, skip in arrived]
print(f"{len(gradient):,} gradients, the median {gradient.abs().median():.0e}; "
      f"fp16 loses {lost[0]:.1%} without a scale, {lost[8]:.1%} at 2^16")
settle(guess, {"a": "none", "b": "some, up to one in ten", "c": "more than one in ten"},
       "a" if lost[0] == 0 else "b" if lost[0] <= 0.1 else "c")

# %% tags=["nbval-ignore-output"]
figure, (left_axis, axis) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
left_axis.hist(gradient.abs().log10().numpy(), bins=80, range=(-12, -2), color="#9ecae1")
left_axis.axvline(math.log10(2**-25), color="black", linestyle=":")
left_axis.set(title="gradients; left of the line fp16 gives 0", xlabel="power of ten", yticks=[])
axis.plot(np.log2(scales), lost, ".-")
axis.set_yscale("symlog", linthresh=1e-4)  # logarithmic, and 0 has a place
axis.set(title="share lost (1: the update is skipped)", xlabel="scale, power of two",
         yticks=[0, 1e-4, 1e-3, 1e-2, 1e-1, 1], ylim=(-2e-5, 2));

# %% [markdown]
# Between underflow on the left and overflow on the right there is room for the scale. The scaler finds it: it doubles the scale after many good updates and halves it after a bad one.
#
# **bf16**, on newer cards, has the range of float32 and needs no scaler. It has few digits instead. A teacher kept in bf16 would never move: next to 1 the next larger number is 1.008. Here a teacher's weight is 1.0, and the student's 1.25 pulls on it for two hundred updates.

# %%
for dtype in (torch.float32, torch.bfloat16):
    t, s = torch.tensor(1.0, dtype=dtype), torch.tensor(1.25, dtype=dtype)
    for _ in range(200):
        t.lerp_(s, 1 - 0.996)
    print(f"{str(dtype):15} {t.item():.3f}")

# %% [markdown]
# So the library keeps all weights in float32 and lets only the matrix products run in half precision.

# %% [markdown] tags=["note"]
# **Section 8, 12 minutes.** *Misconception:* "the scaler is there because fp16 overflows." It is the other way round: the scaler fights underflow, and overflow is what it pays with. Let the room find both ends in the right picture. *Ask:* why does bf16 need no scaler? (Its exponent has as many bits as float32's.)

# %% [markdown]
# ## 9 What your network sees
#
# No label was shown to anybody. The attention of the last block on eight test pictures: each row shows one head, chosen without the masks. The outlines are there for you to judge by; training never saw them.

# %% tags=["nbval-ignore-output"]
attention.set_dpi(85)
attention

# %% [markdown]
# Untrained, the map is nearly even. In your run it gathers on most creatures, and spots of the ground still get their share. The whole preset leaves the ground almost alone and looks at a part of each creature. The grid is coarse, because a map has one cell for each patch.
#
# The clusters: each point is one of 250 test pictures, its colour is the class, its place a t-SNE of the features, a drawing in which near neighbours stay near. Distances between clusters mean nothing. **NMI** compares ten clusters, found without labels, with the ten classes: 1 means that they are the same. Two kinds of creature share each *palette*, the colours they are painted with. So NMI counts clusters of whole palettes as largely right. k-NN needs the class itself.

# %% tags=["nbval-ignore-output"]
by_colour = histogram_scores(probes, torch.arange(len(probes.queries)))["nmi"]
print(f"NMI of a colour histogram of the same pictures: {by_colour:.2f}")
clusters.set_dpi(85)
clusters

# %% [markdown]
# Your run is level with the histogram: so far it pulls the cloud apart by colour. The whole preset parts more classes, some of them with the same palette. That takes the updates that your run doesn't have. With `short = preset`, `plan(short, 125)` and `orders` for twelve epochs you get them, in some fifteen minutes of one core.

# %% [markdown]
# ## 10 The long run, on a GPU
#
# An hour and a GPU turn this into a run on photographs. The preset `colab` trains a ViT-Ti with patches of 8 pixels on Imagenette: 9,469 photographs of ten classes, 100 epochs. It has never been run on a GPU, so there are no minutes to quote. Counting its operations, a T4 should need twenty to sixty minutes. That is why it is measured first: a few updates say how long the whole run takes, how much memory it needs, and into how many parts a batch must be cut.
#
# Set `RUN = "gpu"` to train. With `RUN = "cpu"` nothing is trained. Then the same cells read a run that ships: `photos`, on the same photographs, with a much smaller network and smaller views: the preset `laptop`, three times as long and with a slower teacher. It was trained on two CPU cores, 17,640 updates in 129 minutes. For `colab` itself one core would need 158 hours: 7,300 updates of 78 seconds, by the same estimate.

# %% tags=["long"]
RUN = "cpu"  # "gpu" trains the preset colab

# %% tags=["long"]
from dino_lib import load_teacher, train
from dino_lib.look.curves import training_curves
from dino_lib.look.report import report
from dino_lib.run.build import pick_device
from dino_lib.run.config import Config
from dino_lib.run.estimate import estimate
from dino_lib.run.options import command_of
from dino_lib.teachers.load import SHIPPED

if RUN == "gpu":
    where = lasting_folder("colab")  # on Colab it asks for your Google Drive
    found = estimate(replace(PRESETS["colab"], output_dir=str(where), resume="auto"))
    long, minutes = found.config, found.minutes
    print(found)
    print("the same from a terminal:", command_of(long, "colab", PRESETS["colab"]))
else:
    where = SHIPPED / "photos"
    long = Config.from_json((where / "config.json").read_text())
    minutes = sum(line.get("seconds", 0) for line in read_history(where)) / 60
    print(f"nothing is trained: this is the run `photos`, which ships; {minutes:.0f} minutes")
print(timetable(long, minutes))

# %% [markdown]
# Two things stay the same in any such run. The first measurement of the teacher comes before the first update. And the loss starts near $\ln K$, falls, and may rise again, as in section 5 (balanced by Sinkhorn, `photos` doesn't): a rising loss is no reason to stop.
#
# The next cell trains where you asked for it. A bar shows what is left, and the picture is drawn anew every ten seconds. If the session ends, run the notebook's first cells and this section again: the run goes on from its newest checkpoint. With `RUN = "cpu"` you see the curves of `photos`.

# %% tags=["long"]
if RUN == "gpu":
    screen = display(training_curves([], long.out_dim), display_id=True)
    draw_curves = redraw(lambda lines: screen.update(training_curves(lines, long.out_dim)),
                         seconds=10, before=where)
    train(long, on_log=draw_curves)
    report(where, device=pick_device(long.device))  # writes report.json beside the run
training_curves(read_history(where), long.out_dim)

# %% [markdown]
# What came out, beside what knows less: the same network untrained, and a colour histogram. The numbers are of all labelled pictures that are held back, with all training pictures as the gallery; the curve asks fewer, of a smaller gallery, and so it lies lower. If you trained, `photos` stands beside your run as a reference: the same photographs and classes, a network of two blocks instead of twelve, and another recipe: among other things smaller views, a colder teacher, Sinkhorn-Knopp in place of the center (section 7 of notebook 07), and KoLeo, which keeps features apart. So compare the accuracies, and of the other curves the shapes.

# %% tags=["long"]
runs = {"photos, which ships": SHIPPED / "photos"}
if RUN == "gpu":
    runs["your run"] = where
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.5), layout="constrained")
for label, folder in runs.items():
    lines, c = read_history(folder), Config.from_json((folder / "config.json").read_text())
    logged, top = [line for line in lines if "loss" in line], math.log(c.out_dim)
    share = [line["step"] / lines[-1]["step"] for line in logged]
    gap = [(line["mean_entropy"] - line["teacher_entropy"]) / top for line in logged]
    axes[0].plot(share, [line["loss"] / top for line in logged], label=label)
    axes[1].plot(share, gap, label=label)
    measured = [line for line in lines if "knn" in line]
    axes[2].plot([line["step"] / lines[-1]["step"] for line in measured],
                 [line["knn"] for line in measured], ".-", label=label)
    numbers = json.loads((folder / "report.json").read_text())
    print(f"{label}: 20-NN {numbers['knn_trained']:.0%}, untrained {numbers['knn_untrained']:.0%}, "
          f"colour histogram {numbers['knn_color_histogram']:.0%}; {diagnose(lines, c.out_dim)}; "
          f"{numbers['images_seen']:,} images seen in {numbers['seconds'] / 60:.0f} minutes")
for axis, title in zip(axes, ("loss / ln K", "gap / ln K", "20-NN accuracy")):
    axis.set(title=title, xlabel="share of the run", ylim=(0, None))
_ = axes[0].legend(frameon=False, fontsize=8)

# %% [markdown]
# And its attention, on eight photographs that neither run has seen. Each row shows one head, chosen without masks. Ask of every picture: does the map follow the animal or the thing, or only what is dark, bright or in the middle? The untrained network is the row to beat.

# %% tags=["long"]
from PIL import Image
from dino_lib.data.images import PHOTOS, read_image
from dino_lib.data.transforms import middle_square, normalize
from dino_lib.look.maps import attention_sheet
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.heads import choose_head
from torchvision.transforms.v2.functional import pil_to_tensor

paths = sorted(PHOTOS.glob("*.jpg"))[:8]
photos = torch.stack([pil_to_tensor(middle_square(read_image(path), 120)) for path in paths])
rows = {}
for name, backbone in {"untrained": build_student(long).backbone.eval(),
                       "trained": load_teacher(where).model}.items():
    maps = cls_attention(backbone, normalize(photos, long.mean, long.std))
    head = choose_head(maps)
    rows[f"{name}\nhead {head}"] = maps[:, head]
figure = attention_sheet(photos, rows)
figure.set_dpi(85)
figure

# %% [markdown] tags=["note"]
# **Section 10, 10 minutes without the training.** With a class on Colab: start it at the beginning of the lesson and come back to it. *Misconception:* "a GPU makes the method better." It makes the run longer and the pictures larger; all that sections 5 to 8 say holds. *Ask:* the run stops after forty minutes, and Colab takes the machine away. What is lost? (Nothing but the updates since the newest checkpoint, if the folder is in Drive; everything, if it is not.)

# %% [markdown]
# ## Summary
#
# - A plan on paper finds most mistakes: updates, half-lives of the momentum, $\ln K$, minutes.
# - A run is a loop around your step, and one counter that runs through all epochs.
# - The loss is the teacher's entropy plus a divergence. Read it with the two entropies and their gap.
# - A checkpoint holds five things, copied: step, student, teacher, center, optimizer.
# - fp16 loses small gradients. A scaler saves them, and pays with an overflow now and then.
# - A long run wants an estimate, a folder that lasts, and one command that starts it and goes on with it.
#
# ## Exercises

# %% [markdown]
# **Exercise 8 · medium · 15 minutes · change a run.** Change one setting of a small run and see what it does to the three curves. Choose one of `CHANGES`, or write your own: another `out_dim` (K), `batch_size`, `student_temp` or `teacher_temp`. Write your guess first. The small run takes a few seconds: 320 pictures, two epochs, your pieces. What should come out: a picture with the run as it is and yours beside it.
#
# <details><summary>Hint</summary>
#
# Start with K: eight prototypes for ten kinds of creatures. Then try the temperatures, and think about who is sharper, student or teacher. The gap falls where the targets say less about their picture.
#
# </details>

# %%
TINY_VIT = {**preset.backbone_options, "embed_dim": 64, "depth": 1}
small = replace(preset, batch_size=16, epochs=2, warmup_epochs=0.5, n_local=2, out_dim=64,
                hidden_dim=128, bottleneck_dim=32, momentum=0.9, momentum_end=0.9,
                backbone_options=TINY_VIT)
print(f"as it is: K = {small.out_dim}, batches of {small.batch_size}, temperatures: "
      f"student {small.student_temp}, teacher {small.teacher_temp}")

# %%
CHANGES = {"K": {"out_dim": 8}, "batch": {"batch_size": 32}, "student": {"student_temp": 0.3},
           "teacher": {"teacher_temp": 0.1}}
CHANGE = CHANGES["teacher"]  # your choice
guess = "?"  # the gap at the end: a) smaller than half, b) about as it is, c) larger by half

# %% tags=["nbval-ignore-output"]
def small_run(config):
    torch.manual_seed(0)
    run, lines = Run(config), []
    recipe = BatchMultiCrop(**multicrop_settings(config))
    training_loop(images[:320], [torch.from_numpy(epoch_order(0, epoch, 320)) for epoch in range(2)],
                  config.batch_size, plan(config, 320 // config.batch_size),
                  whole.batch_views(recipe, mine.crop, mine.saturation, mine.views),
                  watched(run, config, lines, every=4))
    return lines

runs = {"as it is": (small, small_run(small))}
changed = replace(small, **CHANGE)
runs["changed"] = (changed, small_run(changed))

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), layout="constrained")
for label, (c, lines) in runs.items():
    for axis, (name, values) in zip(axes, curves(lines, c.out_dim).items()):
        axis.plot([r["step"] * c.batch_size for r in lines], values, ".-", label=label)
        axis.set(title=f"{name} / ln K", xlabel="images seen")
for axis in axes:
    axis.set_ylim(0, max(1.1 if axis is not axes[2] else 0.3, axis.dataLim.ymax * 1.05))
axes[0].legend(frameon=False, fontsize=8)
gap = {label: curves(lines, c.out_dim)["gap"][-1] for label, (c, lines) in runs.items()}
ratio = gap["changed"] / gap["as it is"]
print(f"gap: {gap['as it is']:.2f} as it is, {gap['changed']:.2f} with {CHANGE}")
settle(guess, {"a": "smaller than half", "b": "about as it is", "c": "larger by half"},
       "a" if ratio < 0.5 else "c" if ratio > 1.5 else "b")
print("diagnosis:", {label: diagnose(lines, c.out_dim) for label, (c, lines) in runs.items()})
