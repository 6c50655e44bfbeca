# %% [markdown]
# # 03 · The loss: centering, sharpening, pairs of views
#
# <!-- badge -->
#
# **You will build** DINO's loss: the teacher's output is centred and sharpened, and every view of the student is asked to predict what the teacher says of *another* view of the same image. You will prove your loss equal to the library's, watch it fail in two opposite ways, and train a network with it for a minute.
#
# **You need** the views of notebook 01 and the backbone with its head of notebook 02; of their code, only the library's finished versions are used here.
#
# **Time:** about two minutes on two CPU cores, of which the training at the end takes less than one. Estimates, not measured: under a minute on a T4 or a larger GPU machine, since the networks are tiny and the CPU does the rest.
#
# Before: [02 · Backbone and head](02_head.ipynb). After: [04 · The teacher](04_teacher.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# The paper is Caron et al. 2021, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294); the loss is its section 3.1. Everything below uses plain PyTorch, and from the library only what this notebook does not write itself.

# %% tags=["equality"]
import math
import torch
import torch.nn.functional as F
from torch import nn
from dino_lib import DINOLoss, teacher_entropies

# %%
import matplotlib.pyplot as plt
import numpy as np
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. Four prototypes and a temperature
#
# The head of notebook 02 turns an image into $K$ numbers, one for each *prototype*: a cosine that says how well the image matches. Nobody tells the network what a prototype stands for. Take $K = 4$ and one image.

# %% tags=["equality"]
logits = torch.tensor([0.6, 0.5, 0.1, -0.4])  # cosines: all of them lie between -1 and 1
logits.softmax(dim=-1)

# %% [markdown]
# Softmax turns the four numbers into shares that sum to one. But cosines are close together, so the shares are too: this image is hardly assigned to anything. Dividing by a small number first, the **temperature** $\tau$, stretches the differences.

# %%
for temperature in [1.0, 0.1, 0.04]:
    shares = (logits / temperature).softmax(dim=-1)
    print(f"temperature {temperature:4}: ", "  ".join(f"{share:.3f}" for share in shares))


# %% [markdown]
# How undecided a distribution $p$ is, one number says: its **entropy** $-\sum_k p_k \ln p_k$. It is 0 if all the mass lies on one prototype, and $\ln K$, its largest value, if every prototype has the same share.

# %% tags=["equality"]
def entropy(p):
    """Entropy in nats of distributions along the last dimension: (..., K) -> (...)."""
    return torch.special.entr(p).sum(dim=-1)  # entr(p) = -p ln p, and 0 where p = 0

for temperature in [10.0, 1.0, 0.1, 0.04]:
    print(f"temperature {temperature:4}: entropy {entropy((logits / temperature).softmax(-1)):.3f}")
print(f"the ceiling, ln 4:        {math.log(4):.3f}")

# %% [markdown]
# The same in a picture: a low temperature makes a distribution *sharp*, a high one makes it flat. The order of the prototypes never changes.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2), sharey=True, layout="constrained")
for axis, temperature in zip(axes, [10.0, 1.0, 0.1, 0.04]):
    axis.bar(range(4), (logits / temperature).softmax(-1))
    axis.set_title(f"temperature {temperature}", fontsize=10)
    axis.set_xlabel("prototype")
axes[0].set_ylabel("share")
assert all(len(axis.patches) == 4 for axis in axes)


# %% [markdown]
# ## 2. One view predicts another
#
# Two views of one image go in. The teacher says $q$, the student says $p$, both are shares over the same $K$ prototypes. How badly $p$ predicts $q$ is the **cross-entropy**
#
# $$H(q, p) = -\sum_{k=1}^{K} q_k \ln p_k ,$$
#
# in words: the surprise of someone who believes $p$ and meets $q$, on average over the prototypes. Here $q_k$ is the teacher's share of prototype $k$, $p_k$ the student's.

# %% tags=["equality"]
def cross_entropy(q, log_p):
    """-sum_k q_k ln p_k along the last dimension: two (..., K) -> (...)."""
    return -(q * log_p).sum(dim=-1)

q = torch.tensor([0.9, 0.1, 0.0, 0.0])
for p in [[0.25, 0.25, 0.25, 0.25], [0.1, 0.9, 0.0001, 0.0001], [0.9, 0.1, 0.0001, 0.0001]]:
    print(p, f"-> {cross_entropy(q, torch.tensor(p).log()):.3f}")
print(f"entropy of q itself: {entropy(q):.3f}")

# %% [markdown]
# A student that knows nothing pays $\ln 4 = 1.386$. One that believes the wrong thing pays more. One that repeats the teacher pays the teacher's own entropy, and nothing can get below that, for the cross-entropy has two parts:
#
# $$H(q, p) = H(q) + \mathrm{KL}(q \| p), \qquad \mathrm{KL}(q \| p) = \sum_k q_k \ln (q_k / p_k) \geq 0 .$$
#
# $H(q)$ is the entropy of $q$, and the second part, the *Kullback-Leibler divergence*, is 0 only where $p = q$. Keep the two numbers in mind: **$\ln K$ is what a uniform student pays, the entropy of $q$ is the floor.**
#
# The two networks get different temperatures: the student $\tau_s = 0.1$, the teacher a smaller one, $\tau_t = 0.04$. Let both give the very same logits.

# %%
s = logits.clone().requires_grad_()
q = (logits / 0.04).softmax(-1)            # the teacher: sharp
log_p = (s / 0.1).log_softmax(-1)          # the student: the same logits, less sharp
cross_entropy(q, log_p).backward()
print("teacher ", "  ".join(f"{x:6.3f}" for x in q))
print("student ", "  ".join(f"{x:6.3f}" for x in log_p.exp().detach()))
print("gradient", "  ".join(f"{x:6.3f}" for x in s.grad))

# %% [markdown]
# The gradient of the logits is $(p - q)/\tau_s$ (you will derive it in an exercise). It is negative for the favourite prototype: a step *against* it raises that logit and lowers the rest. Even where both agree, the student is told to be surer than it is. This is **sharpening**, and it is done by nothing but $\tau_t < \tau_s$.
#
# There is a second way to write the same number; two of the exercises use it. With $u = s / \tau_s$, the student's logits divided by their temperature,
#
# $$-\sum_k q_k \ln p_k \;=\; \operatorname{logsumexp}(u) - \sum_k q_k u_k .$$
#
# Why: $\ln p_k = u_k - \operatorname{logsumexp}(u)$ by the definition of softmax, and since the $q_k$ sum to one, the second term comes out of the sum untouched. In this form nobody needs the log-probabilities of all prototypes: a row of the student gives one logsumexp, whatever it is paired with, and each pair adds one product.

# %% tags=["equality"]
generator = torch.Generator().manual_seed(0)
q = torch.randn(5, 4, generator=generator).softmax(-1)
u = torch.randn(5, 4, generator=generator)
slow = cross_entropy(q, u.log_softmax(-1))
fast = u.logsumexp(-1) - (q * u).sum(-1)
torch.testing.assert_close(slow, fast)
print("equal for", len(slow), "rows")

# %% [markdown]
# ## 3. Centering: no prototype may be everyone's favourite
#
# Sharpening alone has an easy way out: say the same prototype for every image, very surely. Then every prediction is right and nothing has been learned. Three images whose logits all favour prototype 0:

# %%
teacher_logits = torch.tensor([[0.9, 0.3, 0.1, 0.0],
                               [0.9, 0.0, 0.4, 0.1],
                               [0.8, 0.1, 0.0, 0.4]])
print("prototype of each image:", (teacher_logits / 0.04).softmax(-1).argmax(-1).tolist())

# %% [markdown]
# What all images share says nothing about any of them. So the teacher's logits are compared with their own mean over the batch, the **center** $c$: a vector with one entry for each prototype. Subtracting it leaves what is special about an image.

# %%
center = teacher_logits.mean(dim=0)
print("center:", "  ".join(f"{x:.2f}" for x in center))
shares = ((teacher_logits - center) / 0.04).softmax(-1)
print("prototype of each image:", shares.argmax(-1).tolist())


# %% [markdown]
# A single batch is a noisy sample, so the center is a running mean (equation 4 of the paper):
#
# $$c \leftarrow m\,c + (1 - m)\,\frac{1}{2B}\sum_{i=1}^{2B} t_i ,$$
#
# where $t_i$ are the teacher's $2B$ rows of logits (two views of each of $B$ images), $B$ is the batch size and $m = 0.9$ the share of the old center that is kept. It starts at 0. It is not learned: no gradient goes through it, or it would drag the graph of every step before along. (In a run on several GPUs the mean is over the rows of all of them.)

# %% tags=["equality"]
def update_center(center, teacher, momentum=0.9):
    """center (K,), teacher (2, B, K) logits -> the new center (K,)."""
    return momentum * center + (1 - momentum) * teacher.detach().flatten(0, 1).mean(dim=0)


# %% [markdown]
# How fast does it get there? Feed it the same batch again and again and look at the share of the way that it has gone.

# %%
c, batch = torch.zeros(4), teacher_logits.expand(2, 3, 4)
for step in range(1, 31):
    c = update_center(c, batch)
    if step in (1, 5, 10, 30):
        print(f"after {step:2d} steps: {(c / center)[0]:.0%} of the way")
assert torch.allclose(c, 0.958 * center, atol=1e-3)

# %% [markdown]
# Note what centering does *not* do: it shifts each prototype for all images alike, and so it pushes the average towards uniform. On its own it would favour saying nothing at all. Sharpening pushes the other way. Section 6 puts the two against each other.
#
# ## 4. Which view predicts which
#
# Notebook 01 made $V$ views: two global ones, 0 and 1, then the local ones. The teacher sees only the global two; the student sees all. A pair is (teacher view $i$, student view $v$), and a view never predicts itself: $v \neq i$.

# %%
V = 6  # two global views, four local ones
pairs = [(i, v) for i in range(2) for v in range(V) if v != i]
print(len(pairs), "pairs; 2 (V - 1) =", 2 * (V - 1))
print(pairs)

# %%
used = np.zeros((2, V))
for i, v in pairs:
    used[i, v] = 1
figure, axis = plt.subplots(figsize=(6, 2.2), layout="constrained")
axis.imshow(used, cmap="Blues", vmin=0, vmax=1.6)
names = ["global 0", "global 1"] + [f"local {v}" for v in range(2, V)]
axis.set_xticks(range(V), names, fontsize=8)
axis.set_yticks([0, 1], ["teacher's global 0", "teacher's global 1"], fontsize=8)
axis.set(title="the pairs that count", xlabel="student's view", ylabel="target")
assert used.sum() == 2 * (V - 1) and used[0, 0] == used[1, 1] == 0


# %% [markdown]
# Now the whole formula (equations 1 and 3 of section 3.1, as a mean over the pairs, which is what the official code computes):
#
# $$L = \frac{1}{2(V-1)} \sum_{i \in \{0,1\}} \; \sum_{v \neq i} \; \frac{1}{B} \sum_{b=1}^{B} \; -\sum_{k=1}^{K} q_{ibk} \ln p_{vbk}$$
#
# $$q_{ib} = \operatorname{softmax}\!\big((t_{ib} - c)/\tau_t\big), \qquad p_{vb} = \operatorname{softmax}(s_{vb}/\tau_s)$$
#
# In words: $t_{ib}$ are the teacher's logits for view $i$ of image $b$, $s_{vb}$ the student's for view $v$ of the same image, $c$ the center, $\tau_t$ and $\tau_s$ the two temperatures, $q$ and $p$ the shares that come of them, $k$ counts the prototypes. The sums run over the pairs, the images and the prototypes. As code it is a double loop.

# %% tags=["equality"]
def dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
    """student (V, B, K), teacher (2, B, K) logits, center (K,) -> the mean over the pairs."""
    q = ((teacher - center) / teacher_temp).softmax(dim=-1).detach()  # targets have no gradient
    log_p = (student / student_temp).log_softmax(dim=-1)
    terms = []
    for i in range(2):
        for v in range(len(student)):
            if v != i:  # a view does not predict itself
                terms.append(cross_entropy(q[i], log_p[v]).mean())  # mean over the batch
    return torch.stack(terms).mean()


# %% [markdown]
# Shapes in, one number out. A student whose logits are all equal must pay exactly ln K, whatever the teacher says.

# %%
V, B, K = 6, 8, 1024
student, teacher = torch.randn(V, B, K) / 4, torch.randn(2, B, K) / 4
loss = dino_loss(student, teacher, torch.zeros(K))
print("student", tuple(student.shape), " teacher", tuple(teacher.shape), " loss", tuple(loss.shape))
uniform = dino_loss(torch.zeros(V, B, K), teacher, torch.zeros(K))
print(f"uniform student: {uniform:.4f}   ln {K} = {math.log(K):.4f}")

# %% [markdown]
# If the loss of a run of yours stands still at ln K (6.931 for 1,024 prototypes, 11.09 for 65,536), you now have a first suspicion: a student that says nothing. It is no proof, since a student that is sure and sometimes wrong can pay as much; its entropy tells. It is the first thing to look at in any curve.
#
# ## 5. The same as the library's
#
# `dino_lib.loss.DINOLoss` is the same double loop, with the views outside and the teacher's two inside. Around it, it checks the shapes, computes in float32 whatever the logits come in, keeps the center as a buffer, so that it is saved with the weights, and moves it *after* the loss of the same step is taken. Is it the same function? Six steps with a moving center and a changing teacher temperature; the loss, the student's gradient and the center are compared at each.

# %% tags=["equality"]
library = DINOLoss(16, student_temp=0.1, center_momentum=0.9)
center = torch.zeros(16)
generator = torch.Generator().manual_seed(1)
for teacher_temp in [0.04, 0.045, 0.05, 0.055, 0.06, 0.07]:
    student = torch.randn(5, 8, 16, generator=generator) / 4
    teacher = torch.randn(2, 8, 16, generator=generator) / 4 + torch.linspace(-0.5, 0.5, 16)
    mine, theirs = student.clone().requires_grad_(), student.clone().requires_grad_()
    my_loss = dino_loss(mine, teacher, center, teacher_temp=teacher_temp)
    their_loss = library(theirs, teacher, teacher_temp)
    my_loss.backward()
    their_loss.backward()
    center = update_center(center, teacher)  # after the loss
    torch.testing.assert_close(my_loss, their_loss)
    torch.testing.assert_close(mine.grad, theirs.grad)
    torch.testing.assert_close(center, library.center)
print(f"loss, gradient and center agree over 6 steps; the center's norm is {center.norm():.1f}")

# %% [markdown]
# The defaults deserve the same proof, and so does the promise that no gradient reaches the teacher.

# %% tags=["equality"]
defaults = DINOLoss(16)
assert (defaults.student_temp, defaults.center_momentum) == (0.1, 0.9)
assert torch.equal(defaults.center, torch.zeros(16))
teacher.requires_grad_()
mine.grad = None
defaults(mine, teacher, 0.04).backward()
assert teacher.grad is None and mine.grad is not None
moved = 0.1 * teacher.detach().mean(dim=(0, 1))  # from 0, a tenth of the way to the batch's mean
torch.testing.assert_close(defaults.center, moved)
q = ((teacher.detach() - moved) / 0.05).softmax(-1)
torch.testing.assert_close(defaults.teacher_probs(teacher, 0.05), q)
print("no gradient in the teacher; the center moved after the loss")

# %% [markdown]
# ## 6. Two ways to learn nothing
#
# A teacher can fail in two opposite ways. It may say *the same share for every prototype*, or *the same one prototype for every image*. In both, all views agree perfectly and the features are worthless. One number can't tell these from health; two can:
#
# - the **entropy of one image**: the mean entropy of the rows $q_{ib}$. Is the teacher sure?
# - the **entropy of the batch's mean**: the entropy of the average row. Does it use many prototypes?
#
# The library's `teacher_entropies` returns the two; you will write it in exercise 2.

# %%
B, K = 64, 16
one_hot = F.one_hot(torch.arange(B) % K, K).float()
cases = {"healthy": 0.9 * one_hot + 0.1 / K, "uniform": torch.full((B, K), 1 / K),
         "one prototype": one_hot[:1].expand(B, K)}
print(f"ln K = {math.log(K):.2f}")
for name, rows in cases.items():
    of_one_image, of_the_mean = teacher_entropies(rows.expand(2, B, K))
    print(f"{name:14} of one image {of_one_image:.2f}   of the batch's mean {of_the_mean:.2f}")


# %% [markdown]
# Healthy is: each image sure, the batch diverse; the first number well below the second. Both near ln K: uniform. Both near 0: one prototype for everything. Note that "of one image near 0" alone is no alarm.
#
# Now a real, tiny run. The "images" are eight points in eight dimensions with much in common, the "views" add noise, the student is a small MLP with 16 prototypes, and the teacher follows it as an exponential moving average (notebook 04 is about that line).

# %%
class Toy(nn.Module):
    """A student small enough for a second of training: (..., 8) -> 16 cosines."""
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 64), nn.GELU(), nn.Linear(64, 16))
        self.prototypes = nn.Linear(16, 16, bias=False)

    def forward(self, x):
        return F.normalize(self.body(x), dim=-1) @ F.normalize(self.prototypes.weight, dim=-1).T


# %%
from dino_lib import ema_update, make_teacher

def run_toy(student_temp=0.1, teacher_temp=0.04, centering=True):
    """Train for 150 steps; returns each step's loss and two entropies, these as shares of ln 16."""
    torch.manual_seed(0)
    spots = 0.5 * torch.randn(8, 8) + torch.randn(8)  # eight "images" with much in common
    student = Toy()
    teacher, optimizer = make_teacher(student), torch.optim.Adam(student.parameters(), lr=3e-3)
    center, losses, entropies = torch.zeros(16), [], []
    for step in range(150):
        views = spots[torch.randint(8, (64,))] + 0.3 * torch.randn(4, 64, 8)
        targets = teacher(views[:2])
        value = dino_loss(student(views), targets, center, student_temp, teacher_temp)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        entropies.append(teacher_entropies(((targets - center) / teacher_temp).softmax(-1)))
        losses.append(value.item())
        center = update_center(center, targets) if centering else center
        ema_update(teacher, student, 0.9)
    return np.array(losses), np.array(entropies) / math.log(16)


# %% [markdown]
# Three runs: with both, without the center, and with a teacher *flatter* than the student, at twice its temperature. The two lines are the two entropies, as shares of ln K. The dotted line is what eight different points on sixteen prototypes can reach at most, $\ln 8 / \ln 16 = 0.75$.

# %%
runs = {"centering and sharpening": run_toy(), "no centering": run_toy(centering=False),
        "teacher flatter than student": run_toy(teacher_temp=0.2)}
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.6), sharey=True, layout="constrained")
for axis, (name, (_, entropies)) in zip(axes, runs.items()):
    axis.plot(entropies[:, 0], label="of one image")
    axis.plot(entropies[:, 1], label="of the batch's mean")
    axis.axhline(0.75, color="gray", linestyle=":", label="eight points")
    axis.set(title=name, xlabel="step", ylim=(-0.03, 1.05))
axes[0].set_ylabel("entropy / ln K")
axes[1].legend(fontsize=8, loc="upper right")
assert all(np.isfinite(entropies).all() and len(entropies) == 150 for _, entropies in runs.values())


# %% [markdown]
# The paper's figure 7 (section 5.3) is such a study on ImageNet, by entropy and KL divergence. A function reads the two lines for us; its limits are generous, for the three endings lie far apart.

# %%
def verdict(entropies):
    of_one_image, of_the_mean = entropies[-20:].mean(axis=0)
    if of_one_image > 0.85:
        return "uniform"
    return "one prototype" if of_the_mean < 0.15 else "healthy"

for name, (_, entropies) in runs.items():
    print(f"{name:29} {verdict(entropies)}")

# %% [markdown]
# The healthy batch line wavers well below its dotted ceiling: points that lie close together share a prototype, and that is no illness while the lines stay apart. Centering and sharpening each prevent one collapse and, alone, invite the other. Together they balance: that is the whole trick, and no negative pairs, no second loss and no clustering are needed.
#
# ## 7. Break it
#
# Every line below is a mistake that runs without an error. Guess the verdict before you look. First the temperatures: one changed, then the two swapped.

# %%
for name, temperatures in {"as it should be": (0.1, 0.04), "teacher's raised": (0.1, 0.2),
                           "swapped": (0.04, 0.1)}.items():
    losses, entropies = run_toy(*temperatures)
    of_student, of_teacher = temperatures
    print(f"student {of_student:5}, teacher {of_teacher:5}  {name:16} {verdict(entropies):9}"
          f" loss {losses[-20:].mean() / math.log(16):.1f} ln K")


# %% [markdown]
# Swapped temperatures flatten: the student is told to be *less* sure than it is, the teacher follows, and within a hundred steps nobody says anything; the loss stands at $\ln K$. The paper warms the teacher's temperature up from 0.04 to 0.07, and the official code warns that more is unstable.
#
# Now let a view predict itself. The loss *is* lower, before anything is trained, which looks like a success.

# %%
def loss_with_own_pairs(student, teacher, center, student_temp, teacher_temp):
    q = ((teacher - center) / teacher_temp).softmax(-1).detach()
    log_p = (student / student_temp).log_softmax(-1)
    return torch.stack([cross_entropy(q[i], p).mean() for i in range(2) for p in log_p]).mean()

torch.manual_seed(1)
noisy = torch.randn(1, 64, 8) + 1.0 * torch.randn(4, 64, 8)  # strong: the views differ much
logits = Toy()(noisy).detach()
honest = dino_loss(logits, logits[:2], logits[:2].mean((0, 1)))
cheating = loss_with_own_pairs(logits, logits[:2], logits[:2].mean((0, 1)), 0.1, 0.04)
print(f"6 honest pairs: {honest:.2f}; with the 2 of a view with itself: {cheating:.2f}")

# %% [markdown]
# Teacher and student were the *same untrained network* here, so nothing was learned that would explain the lower loss. A view that predicts itself is right by construction; its term asks for nothing that is common to two views, and only dilutes those that do.
#
# Last, what a wrong center does in a single step: added instead of subtracted, it makes the favourite more of a favourite.

# %%
center = teacher_logits.mean(dim=0)
for name, sign in [("not used", 0), ("subtracted", -1), ("added", 1)]:
    rows = ((teacher_logits + sign * center) / 0.04).softmax(-1)
    of_the_mean = entropy(rows.mean(0))
    print(f"{name:11} prototypes {rows.argmax(-1).tolist()}, entropy of the mean {of_the_mean:.2f}")

# %% [markdown]
# ## 8. What the teacher sees so far
#
# Time to use the loss on images. The moving teacher of section 6 waits for the next notebook; take the simplest one: a **frozen copy** of the untrained student. Its targets are those of a random network; the only thing to learn from it is that two views of one image belong together. The images are the course's embedded dataset, ten kinds of small creatures drawn by code; the settings are those of the preset `demo`: views of 36 and 18 pixels of 48, a few local ones instead of eight, strong jitter, for else colours are all that is learned, and no solarize, for the creatures are small and simple.

# %%
from dino_lib import PRESETS, BatchMultiCrop, Shapes
from dino_lib.run.build import build_student
from dino_lib.run.config import multicrop_settings

config = PRESETS["demo"]
images = Shapes(4000).images  # uint8 (4000, 3, 48, 48); the labels are not looked at
crop = BatchMultiCrop(**multicrop_settings(config))  # sizes, scales and strengths of the preset
student = build_student(config)
teacher = make_teacher(student)
print([tuple(view.shape) for view in crop(images[:2])])

# %% [markdown]
# Forty-five updates of 64 images with your own `dino_loss` and `update_center`: at most a minute on two idle cores. The learning rate rises over the first updates, and the gradient's norm is clipped, as in the paper's recipe.

# %%
STEPS = 45
optimizer = torch.optim.AdamW(student.parameters(), lr=config.lr)
center, losses, floors = torch.zeros(config.out_dim), [], []
order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
torch.manual_seed(0)
for step in range(STEPS):
    views = crop(images[order[64 * step : 64 * (step + 1)]])
    with torch.no_grad():
        targets = teacher(views[:2])  # (2, 64, 1024)
    loss = dino_loss(student(views), targets, center)
    optimizer.param_groups[0]["lr"] = config.lr * min(1, (step + 1) / 10)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(student.parameters(), config.clip_grad)
    optimizer.step()
    floors.append(teacher_entropies(((targets - center) / 0.04).softmax(-1))[0])
    losses.append(loss.item())
    center = update_center(center, targets)

# %% tags=["nbval-ignore-output"]
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
left.plot(losses, label="loss")
left.plot(floors, label="the teacher's entropy: the floor")
left.axhline(math.log(config.out_dim), color="gray", linestyle=":", label="ln K: a uniform student")
left.set(xlabel="update", ylabel="nats", ylim=(0, None))
left.legend(fontsize=8)
gap = np.array(losses) - np.array(floors)  # the divergence, the part that can be learned
right.plot(gap)
right.set(title="loss - floor = KL", xlabel="update", ylabel="nats")
print(f"the divergence: {gap[:5].mean():.2f} nats in the first five updates, "
      f"{gap[-5:].mean():.2f} in the last five; the largest loss {max(losses) / math.log(config.out_dim):.2f} ln K")
assert gap.min() > 0 and gap[:5].mean() - gap[-5:].mean() > 0.1


# %% [markdown]
# The loss begins close to $\ln K$ and moves little. What falls is the distance to the floor, the divergence: the student does learn to predict the teacher. It stays large because a random network says rather different things of two views, and much of that can't be predicted from another view. The floor rises meanwhile, while the center finds its place, and hides the progress in the loss.

# %%
from dino_lib import load_teacher
from dino_lib.look.report import compare
from dino_lib.run.build import open_probes

stages = {
    "untrained": build_student(config).backbone.eval(),
    "this notebook": student.backbone.eval(),
    "trained": load_teacher("demo"),
}
table, attention, clusters = compare(stages, open_probes(config, limit=400), n_pictures=7)
attention.set_dpi(80)

# %% [markdown]
# Three networks of one shape, none of which has ever seen a label: the untrained one, which is also the frozen teacher; the student of this notebook; and the teacher of a full run of `demo`, which ships with the library. *k-NN* is the share of images whose kind is guessed right from their nearest neighbours (chance is 10%), *NMI* says how well ten clusters match the ten kinds, and *above blind* how well an attention head finds the creature.
#
# That last number needs a definition, for the middle of a picture belongs to a creature more often than a corner does, and a map that sees no picture finds some of them there. So the head's values on the patches of a picture's creature are compared with its values where the creatures of *other* pictures lie: how often are they larger? Any fixed map, a blob in the middle say, wins about as often as it loses; that is set to 0, and what the creatures' own masks reach is set to 1. The head is chosen without masks: the one whose brightest patches keep away most from the border, which the ground reaches more often than the creatures do. The last line of the table is the best of eight blind blobs, and that one is chosen with the masks in hand.
#
# The digits of a trained network differ between processors, so your table may differ from this one in the second digit.

# %% tags=["nbval-ignore-output"]
for name, scores in table.items():
    knn, nmi, above_blind = scores["knn"], scores["nmi"], scores["above_blind"]
    print(f"{name:14}  k-NN {knn:.2f}  NMI {nmi:.2f}  above blind {above_blind:.2f}")
blobs = table["trained"]["above_blind_blobs"]
print(f"{'blind blobs':35}  above blind {blobs:.2f}")

# %%
attention

# %%
clusters

# %% tags=["nbval-ignore-output"]
from matplotlib.backends.backend_agg import FigureCanvasAgg

for picture in (attention, clusters):
    canvas = FigureCanvasAgg(picture)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())[..., :3]  # (height, width, 3)
    assert pixels.shape[1] > 600 and pixels.std() > 10, "a picture is blank"
assert list(table) == list(stages)
assert all(0 <= scores[key] <= 1 for scores in table.values() for key in ("knn", "nmi"))
assert all(scores["above_blind"] <= 1 for scores in table.values())
for key in ("knn", "nmi"):
    print(f"{key}: {table['this notebook'][key]:.2f} here, {table['trained'][key]:.2f} trained")
    assert table["trained"][key] > table["this notebook"][key] + 0.05


# %% [markdown]
# Look at the rows; the colours count multiples of a map's own mean, so that a network without favourite places stays dark. The untrained network looks everywhere nearly alike. Against a frozen copy the attention begins to lean towards the creature before anything else happens, in about half of the pictures here and plainly in the table: what two crops share and other pictures don't is the creature rather than the clutter. The clusters are sorted a little better, by colour, but the k-NN accuracy hardly moves. The reason is the teacher: its targets are a random network's opinions, agreeing with them is all that can be learned, and it never gets better, however well it is agreed with. The trained teacher differs in that it *moves*, and in a far longer run. The next notebook tells the two apart. (Each row of the attention shows the head that was chosen without masks in that network.)
#
# ## Summary
#
# - A temperature sets how sure a softmax is; the teacher's is lower than the student's, and that is sharpening.
# - The center, a running mean of the teacher's logits, is subtracted so that no prototype is everyone's favourite.
# - The loss is the mean cross-entropy over the 2 (V − 1) pairs of different views; yours equals the library's in value and gradient.
# - Without sharpening the outputs become uniform, without centering one prototype takes all; the entropies of one image and of the batch's mean tell which.
# - A loss at ln K is a student that says nothing; the teacher's entropy is the floor that the loss can't go below.
#
# ## Exercises
#
# Each stub below returns nothing, and its check says "not done yet". Fill it in and run both cells again. Solutions: [solutions/03_loss_solutions.ipynb](solutions/03_loss_solutions.ipynb).

# %% [markdown]
# **1 (easy). Where the center stands.** The teacher's batch mean is the same vector $b$ at every step, the center starts at 0 and keeps the share $m$ of itself. Write down where it stands after $n$ steps, without a loop.

# %%
def center_after(batch_mean, momentum, n_steps):
    """batch_mean (K,), momentum in [0, 1), n_steps >= 1 -> the center (K,)."""
    ...


# %%
from dino_lib.course.loss import check_center_after
check_center_after(center_after)


# %% [markdown]
# **2 (easy). Two entropies.** Write the pair of numbers of section 6 for the shares of a batch: the mean entropy of the rows, and the entropy of the mean row, over both views and all images, in nats.

# %%
def two_entropies(probs):
    """probs (2, B, K), rows sum to one -> (mean entropy of the rows, entropy of the mean row)."""
    ...


# %%
from dino_lib.course.loss import check_two_entropies
check_two_entropies(two_entropies)


# %% [markdown]
# **3 (medium). The gradient on paper.** For one pair of views, derive the gradient of the batch mean of $-\sum_k q_k \ln p_k$ with respect to the student's logits $s$, where $p = \operatorname{softmax}(s/\tau_s)$. Use the logsumexp form of section 2 and mind the two divisions, by $\tau_s$ and by the rows of the batch; no autograd in the function.

# %%
def student_gradient(s, q, student_temp):
    """s (B, K) logits, q (B, K) targets -> the gradient (B, K)."""
    ...


# %%
from dino_lib.course.loss import check_student_gradient
check_student_gradient(student_gradient)


# %% [markdown]
# **4 (hard). No loop over the pairs.** Write the loss with no loop over views or pairs and without `log_softmax`, by the logsumexp form: each student view needs one logsumexp and the sum of the targets that it is paired with. The check compares the value and the student's gradient, and looks for a gradient in the teacher; that there is no loop it leaves to you. (The library keeps the loop, which reads like the formula.)

# %%
def fast_loss(student, teacher, center, student_temp, teacher_temp):
    """student (V, B, K), teacher (2, B, K), center (K,) -> scalar, equal to dino_loss."""
    ...


# %%
from dino_lib.course.loss import check_fast_loss
check_fast_loss(fast_loss)
