# %% [markdown]
# # 03 · The loss: centering, sharpening, pairs of views
#
# <!-- badge -->
#
# **You will write** DINO's loss: the cross-entropy, the center, the pairs of views, and the loss itself. Then you watch ten small networks collapse in three ways, and train a vision transformer.
#
# **You need** the views of notebook 01 and the head of notebook 02, in the library's finished versions.
#
# **Time:** about 30 minutes for the seven "Your turn", 47 for the exercises, and 45 for reading and the runs. The notebook itself takes about 55 seconds of one CPU core.
#
# Before: [02 · Backbone and head](02_head.ipynb). After: [04 · The teacher](04_teacher.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# The paper is Caron et al. 2021, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294); the loss is in its section 3.1. The **student** learns to predict what the **teacher** says, a second network of the same shape that is not trained; notebook 04 builds it.

# %% tags=["equality"]
import math
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from dino_lib import DINOLoss, teacher_entropies
from dino_lib.course import loss as checks

# %%
import matplotlib.pyplot as plt
from dino_lib import ema_update, make_teacher
from dino_lib.course.prediction import settle
_ = torch.manual_seed(0)

# %% [markdown] tags=["note"]
# **Minutes:** sections 1 and 2: 15; 3: 10; 4 and 5: 20; 6: 20; 7: 15; exercises at home.
#
# **Ask the room before anything runs:** two networks are to agree about every picture. What is the laziest way to agree? Somebody says "always the same answer". Write it on the board. Section 6 shows it in three forms.

# %% [markdown]
# ## 1. Four prototypes and a temperature
#
# The head of notebook 02 turns an image into $K$ cosines, one for each **prototype**. Take $K = 4$ and one image.

# %% tags=["equality"]
logits = torch.tensor([0.6, 0.5, 0.1, -0.4])  # cosines: all of them lie between -1 and 1
logits.softmax(dim=-1)

# %% [markdown]
# Softmax turns them into shares that sum to one. The cosines are close together, so the shares are too. To stretch the differences we first divide by a small number, the **temperature** $\tau$.

# %%
figure, axes = plt.subplots(1, 4, figsize=(9, 2), sharey=True, layout="constrained")
for axis, temperature in zip(axes, [10.0, 1.0, 0.1, 0.04]):
    shares = (logits / temperature).softmax(-1)
    bars = axis.bar(range(4), shares)
    axis.bar_label(bars, [f"{share:.2f}" for share in shares], fontsize=8)
    axis.set(xticks=range(4), xlabel="prototype", ylim=(0, 1.15))
    axis.set_title(f"temperature {temperature}", fontsize=10)
_ = axes[0].set_ylabel("share")

# %% [markdown]
# A low temperature makes the distribution *sharp*, a high one flat. The order of the prototypes never changes.
#
# One number says how undecided a distribution $p$ is, its **entropy**:
#
# $$H(p) = -\sum_k p_k \ln p_k .$$
#
# It is 0 if one prototype has everything, and $\ln K$, its largest value, if all have the same share. The natural logarithm gives it in *nats*.

# %%
p = torch.tensor([0.5, 0.5, 0.0, 0.0])
print("terms:", [round(-x * math.log(x), 3) if x > 0 else 0.0 for x in p.tolist()])
print(f"their sum: {2 * 0.5 * math.log(2):.3f}, which is ln 2")

# %% [markdown]
# **Your turn 1 · easy · 3 minutes · entropy.** Write the entropy along the last dimension, for any shape $(\ldots, K)$. What should come out: 0.693 for the shares above, and 0 (not "nan") for a row with all its mass on one prototype.
#
# <details><summary>Hint</summary>
#
# The logarithm of 0 is minus infinity, and 0 times that is "nan". `torch.special.entr(p)` gives $-p \ln p$ with 0 in that place; so does a `clamp` before the logarithm. Sum over `dim=-1`.
#
# </details>

# %% tags=["stub", "equality"]
def entropy(p):
    """Entropy in nats of distributions along the last dimension: (..., K) -> (...)."""
    ### BEGIN SOLUTION
    return torch.special.entr(p).sum(dim=-1)
    ### END SOLUTION

entropy = checks.entropy(entropy)

# %%
for temperature in [10.0, 1.0, 0.1, 0.04]:
    print(f"temperature {temperature:4}: entropy {entropy((logits / temperature).softmax(-1)):.3f}")
print(f"the largest, ln 4:        {math.log(4):.3f}")

# %% [markdown]
# ## 2. One view predicts another
#
# For two views of one image, the teacher answers with $q$, the student with $p$: shares over the same $K$ prototypes. The **cross-entropy** says how badly $p$ predicts $q$:
#
# $$H(q, p) = -\sum_{k=1}^{K} q_k \ln p_k .$$
#
# The student gives $\ln p$ directly: `log_softmax` is exact where a share is too small for a float.

# %% [markdown]
# **Your turn 2 · easy · 3 minutes · cross-entropy.** Write it along the last dimension. What should come out: for $q = p$ the entropy of $q$, for a uniform $p$ always $\ln K$.
#
# <details><summary>Hint</summary>
#
# `log_p` holds logarithms already. Multiply it with `q`, sum over `dim=-1`, turn the sign. No mean: the loss takes that later. Stay in torch: the student's gradient has to get through.
#
# </details>

# %% tags=["stub", "equality"]
def cross_entropy(q, log_p):
    """-sum_k q_k ln p_k along the last dimension: two (..., K) -> (...)."""
    ### BEGIN SOLUTION
    return -(q * log_p).sum(dim=-1)
    ### END SOLUTION

cross_entropy = checks.cross_entropy(cross_entropy)

# %%
q = torch.tensor([0.9, 0.1, 0.0, 0.0])
students = {"knows nothing": [0.25, 0.25, 0.25, 0.25], "is sure and wrong": [0.1, 0.8998, 1e-4, 1e-4],
            "repeats the teacher": [0.9, 0.0998, 1e-4, 1e-4]}
for name, p in students.items():
    print(f"a student that {name:20} pays {cross_entropy(q, torch.tensor(p).log()):.3f}")
print(f"entropy of the teacher's q {entropy(q):18.3f}")

# %% [markdown]
# A student that knows nothing pays $\ln 4 = 1.386$. One that is sure and wrong pays more. One that repeats the teacher pays the teacher's own entropy. Nothing gets below that, because the cross-entropy has two parts:
#
# $$H(q, p) = H(q) + \mathrm{KL}(q \| p), \qquad \mathrm{KL}(q \| p) = \sum_k q_k \ln (q_k / p_k) \geq 0 .$$
#
# The second part is the *Kullback-Leibler divergence*, **KL**. It is 0 only where $p = q$. Keep two numbers in mind: **a uniform student pays $\ln K$, and the entropy of $q$ is the floor.**
#
# The two networks get different temperatures. The student has $\tau_s = 0.1$, the teacher a smaller one, $\tau_t = 0.04$. What does the student learn where both have the very same logits?

# %%
s = logits.clone().requires_grad_()
q = (logits / 0.04).softmax(-1)            # the teacher: sharp
log_p = (s / 0.1).log_softmax(-1)          # the student: the same logits, less sharp
cross_entropy(q, log_p).backward()
print("teacher ", "  ".join(f"{x:6.3f}" for x in q))
print("student ", "  ".join(f"{x:6.3f}" for x in log_p.exp().detach()))
print("gradient", "  ".join(f"{x:6.3f}" for x in s.grad))

# %% [markdown]
# The gradient is $(p - q)/\tau_s$; exercise 9 derives it. It is negative for the favourite prototype, so a step against it raises that logit. Even where both agree, the student is told to be surer than it is. This is **sharpening**. It comes from $\tau_t < \tau_s$ alone.
#
# The cross-entropy can be written in another way. With $u = s / \tau_s$, the student's logits divided by their temperature,
#
# $$-\sum_k q_k \ln p_k \;=\; \operatorname{logsumexp}(u) - \sum_k q_k u_k .$$
#
# Softmax says $\ln p_k = u_k - \operatorname{logsumexp}(u)$; the logsumexp is the same for all $k$, and the $q_k$ sum to one. Exercises 9 and 10 use this form.

# %% tags=["equality"]
generator = torch.Generator().manual_seed(0)
q = torch.randn(5, 4, generator=generator).softmax(-1)
u = torch.randn(5, 4, generator=generator)
slow = cross_entropy(q, u.log_softmax(-1))
fast = u.logsumexp(-1) - (q * u).sum(-1)
torch.testing.assert_close(slow, fast)
print("equal for", len(slow), "rows")

# %% [markdown] tags=["note"]
# **At the gradient:** students expect 0, since both networks have the same logits. Let them guess first. **Misconception:** "the temperature only rescales the loss". Answer: it changes where the gradient is zero. With equal temperatures it would be zero here; with $\tau_t < \tau_s$ it is zero only where the student's *sharper* answer is reached.

# %% [markdown]
# ## 3. Centering: no prototype may be everyone's favourite
#
# Sharpening alone has an easy way out: the teacher names the same prototype for every image. Every prediction is right, and nothing has been learned. Three images whose logits all favour prototype 0:

# %%
teacher_logits = torch.tensor([[0.9, 0.3, 0.1, 0.0],
                               [0.9, 0.0, 0.4, 0.1],
                               [0.8, 0.1, 0.0, 0.4]])
print("prototype of each image:", (teacher_logits / 0.04).softmax(-1).argmax(-1).tolist())

# %% [markdown]
# What all images share says nothing about any one of them. So we subtract the mean of the teacher's logits over the batch, the **center** $c$: one number for each prototype.

# %%
center = teacher_logits.mean(dim=0)
print("center:", "  ".join(f"{x:.2f}" for x in center))
for name, sign in [("not used", 0), ("subtracted", -1), ("added", 1)]:
    rows = ((teacher_logits + sign * center) / 0.04).softmax(-1)
    shares = "  ".join(f"{x:.2f}" for x in rows.mean(0))
    print(f"{name:11} prototypes {rows.argmax(-1).tolist()},  mean shares {shares}")

# %% [markdown]
# The paper's text writes the teacher as $g_t(x) \leftarrow g_t(x) + c$, with a plus, and the third line shows what that does. Its pseudocode (Algorithm 1) and the official code *subtract* the center, and so do we.
#
# One batch is a small sample, so the center is a running mean (equation 4):
#
# $$c \leftarrow m\,c + (1 - m)\,\frac{1}{2B}\sum_{i=1}^{2B} t_i .$$
#
# The $t_i$ are the teacher's $2B$ rows of logits: two views of each of $B$ images. The share of the old center that stays is $m = 0.9$. The center starts at 0 and has no gradient.

# %% [markdown]
# **Your turn 3 · easy · 4 minutes · the center.** Write one update. What should come out: for a center at 0 and a momentum of 0.9, a tenth of the mean row of the batch, with shape $(K,)$.
#
# <details><summary>Hint</summary>
#
# `teacher` has shape (2, B, K). The mean runs over the first two dimensions: `mean(dim=(0, 1))`. `detach()` keeps the graph of this step from hanging on the center for ever.
#
# </details>

# %% tags=["stub", "equality"]
def update_center(center, teacher, momentum=0.9):
    """center (K,), teacher (2, B, K) logits -> the new center (K,)."""
    ### BEGIN SOLUTION
    batch_mean = teacher.detach().mean(dim=(0, 1))
    return momentum * center + (1 - momentum) * batch_mean
    ### END SOLUTION

update_center = checks.update_center(update_center)

# %% [markdown]
# How fast is that? We feed the same batch again and again.

# %%
c, batch = torch.zeros(4), teacher_logits.expand(2, 3, 4)
for step in range(1, 31):
    c = update_center(c, batch)
    if step in (1, 5, 10, 30):
        print(f"after {step:2d} steps: {(c / center)[0]:.0%} of the way")

# %% [markdown]
# Centering pushes the average answer towards uniform; sharpening pushes the other way. Section 6 sets the two against each other.

# %% [markdown] tags=["note"]
# **At the three lines:** let somebody explain why "added" keeps prototype 0 for all. **Misconception:** "the center is learned". It is a running mean; no gradient reaches it. **Another:** "it is a batch norm". It is half of one: the mean comes off, the spread stays.

# %% [markdown]
# ## 4. Which view predicts which
#
# Of the $V$ views of notebook 01, views 0 and 1 are global. The teacher sees these two, the student all. A pair is (teacher's view $i$, student's view $v$), and $v \neq i$: the point is to predict *another* view. For $V = 3$ the pairs are (0, 1), (0, 2), (1, 0) and (1, 2).

# %% [markdown]
# **Your turn 4 · easy · 3 minutes · the pairs.** List them for any number of views, in any order. What should come out: $2 (V - 1)$ pairs; for six views, ten.
#
# <details><summary>Hint</summary>
#
# Two loops: `i` over `range(2)`, `v` over `range(n_views)`. A pair counts where `v != i`. Views 0 and 1 do predict each other.
#
# </details>

# %% tags=["stub", "equality"]
def view_pairs(n_views):
    """n_views >= 2, the two global ones first -> a list of (teacher's view, student's view)."""
    ### BEGIN SOLUTION
    return [(i, v) for i in range(2) for v in range(n_views) if v != i]
    ### END SOLUTION

view_pairs = checks.view_pairs(view_pairs)

# %%
V = 6  # two global views, four local ones
used = np.full((2, V), np.nan)
for i, v in view_pairs(V):
    used[i, v] = 1
figure, axis = plt.subplots(figsize=(6.5, 1.9), layout="constrained")
axis.pcolormesh(used, cmap="Blues", vmin=0, vmax=1.6, edgecolors="white", linewidth=3)
for i, v in np.ndindex(2, V):
    axis.text(v + 0.5, i + 0.5, "–" if np.isnan(used[i, v]) else f"{i}, {v}", ha="center", va="center")
names = ["global 0", "global 1"] + [f"local {v}" for v in range(2, V)]
axis.set_xticks(np.arange(V) + 0.5, names, fontsize=8)
axis.set_yticks([0.5, 1.5], ["global 0", "global 1"], fontsize=8)
axis.set(title=f"the {len(view_pairs(V))} pairs of {V} views", xlabel="the student sees", ylabel="teacher")
axis.invert_yaxis()

# %% [markdown]
# Now the whole formula: equations 1 and 3 of the paper, as a mean over the pairs, which is what the official code computes.
#
# $$L = \frac{1}{2(V-1)} \sum_{(i, v)} \; \frac{1}{B} \sum_{b=1}^{B} \; -\sum_{k=1}^{K} q_{ibk} \ln p_{vbk}$$
#
# $$q_{ib} = \operatorname{softmax}\!\big((t_{ib} - c)/\tau_t\big), \qquad p_{vb} = \operatorname{softmax}(s_{vb}/\tau_s)$$
#
# - $t_{ib}$: the teacher's logits for view $i$ of image $b$; $s_{vb}$: the student's for view $v$ of the same image.
# - $c$: the center; $\tau_t$ and $\tau_s$: the two temperatures.
# - $q$ and $p$: the shares that come of them; $k$ counts the prototypes.

# %% [markdown]
# **Your turn 5 · medium · 10 minutes · the loss.** Put the pieces together: shares, pairs, cross-entropy, mean. What should come out: one number with a gradient for the student and none for the teacher; $\ln K$ for a student whose logits are all equal.
#
# <details><summary>Hint</summary>
#
# Subtract the center from the teacher's logits first, then divide by `teacher_temp`, then softmax over the last dimension, then `detach()`. The student gets `log_softmax` and no center. Take `cross_entropy(q[i], log_p[v]).mean()` for each pair, and `torch.stack(terms).mean()` at the end. Change no input in place: the center's update needs the teacher's logits after the loss.
#
# </details>

# %% tags=["stub", "equality"]
def dino_loss(student, teacher, center, student_temp=0.1, teacher_temp=0.04):
    """student (V, B, K), teacher (2, B, K) logits, center (K,) -> the mean over the pairs."""
    ### BEGIN SOLUTION
    q = ((teacher - center) / teacher_temp).softmax(dim=-1).detach()  # targets have no gradient
    log_p = (student / student_temp).log_softmax(dim=-1)
    terms = []
    for i, v in view_pairs(len(student)):
        terms.append(cross_entropy(q[i], log_p[v]).mean())  # mean over the batch
    return torch.stack(terms).mean()
    ### END SOLUTION

dino_loss = checks.dino_loss(dino_loss)

# %%
B, K = 8, 1024
student, teacher = torch.randn(V, B, K) / 4, torch.randn(2, B, K) / 4
loss = dino_loss(student, teacher, torch.zeros(K))
print("student", tuple(student.shape), " teacher", tuple(teacher.shape), " loss", tuple(loss.shape))
uniform = dino_loss(torch.zeros(V, B, K), teacher, torch.zeros(K))
print(f"uniform student: {uniform:.4f}   ln {K} = {math.log(K):.4f}")

# %% [markdown]
# Does the loss of your run stand still at $\ln K$ (6.931 for 1,024 prototypes)? Then suspect a student that says nothing. It is no proof: one that is sure and sometimes wrong can pay as much. Its entropy tells the two apart.
#
# ## 5. The same as the library's
#
# `dino_lib.loss.DINOLoss` is the same double loop. It moves the center *after* the loss of the same step. We take six steps with a changing teacher temperature, and compare loss, gradient and center at each.

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
# The folded cell proves the defaults, and that no gradient reaches the teacher.

# %% tags=["equality"] cellView="form" jupyter={"source_hidden": true}
# @title The defaults, and no gradient for the teacher
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
# ## 6. Three ways to learn nothing
#
# A teacher that gives every image the same answer has collapsed: all views agree, and the features are worthless. There are three such answers:
#
# - **uniform**: every prototype has the same share;
# - **one prototype**: it gets everything, for every image;
# - **the same mixed answer**: some prototypes get more, some less, but alike for every image.
#
# Two entropies tell these apart: the **entropy of one image**, the mean entropy of the rows, and the **entropy of the batch's mean**, the entropy of the average row.

# %% [markdown]
# **Your turn 6 · easy · 5 minutes · two entropies.** Write the pair for the shares of a batch, over both views and all images, in nats. What should come out: for eight images that each have a prototype of their own, 0 and $\ln 8$.
#
# <details><summary>Hint</summary>
#
# `probs` has shape (2, B, K). First number: `entropy(probs)`, then the mean of all its values. Second number: average the rows over both leading dimensions first, then take one entropy.
#
# </details>

# %% tags=["stub", "equality"]
def two_entropies(probs):
    """probs (2, B, K), rows sum to one -> (mean entropy of the rows, entropy of the mean row)."""
    ### BEGIN SOLUTION
    return entropy(probs).mean(), entropy(probs.mean(dim=(0, 1)))
    ### END SOLUTION

two_entropies = checks.two_entropies(two_entropies)

# %% tags=["equality"]
probs = (4 * torch.randn(2, 32, 16, generator=generator)).softmax(-1)
torch.testing.assert_close(tuple(map(float, two_entropies(probs))), teacher_entropies(probs))
print("equal to the library's teacher_entropies:", [round(float(x), 3) for x in two_entropies(probs)])

# %% [markdown]
# In every collapse the two entropies are *equal*: the average answer is the answer of each image. So we judge by the **gap**, the second less the first. $e^{\text{gap}}$ reads as a number of groups: 8 where eight images are each sure of a prototype of their own, and 1 where all get one answer. It says how unlike the answers are, not whether they are useful.

# %% [markdown]
# **Your turn 7 · easy · 2 minutes · groups told apart.** Turn the two entropies into this number. What should come out: 8 for (0, ln 8), and 1 for any two equal entropies.
#
# <details><summary>Hint</summary>
#
# `math.exp` of the second less the first.
#
# </details>

# %% tags=["stub", "equality"]
def groups_told_apart(of_one_image, of_the_mean):
    """Two entropies in nats (floats) -> e to the power of the gap."""
    ### BEGIN SOLUTION
    return math.exp(of_the_mean - of_one_image)
    ### END SOLUTION

groups_told_apart = checks.groups_told_apart(groups_told_apart)

# %%
B, K = 64, 16
own = F.one_hot(torch.arange(B) % 8, K).float()
mixed = torch.tensor([0.4, 0.3, 0.2, 0.1] + [0.0] * 12)
cases = {"eight groups": own, "eight groups, unsure": 0.5 * own + 0.5 / K,
         "uniform": torch.full((B, K), 1 / K), "one prototype": own[:1].expand(B, K),
         "the same mixed answer": mixed.expand(B, K)}
print(f"ln K = {math.log(K):.2f}       of one image   of the mean   groups")
for name, rows in cases.items():
    one, mean = (float(x) for x in two_entropies(rows.expand(2, B, K)))
    print(f"{name:22} {one:8.2f} {mean:13.2f} {groups_told_apart(one, mean):11.1f}")

# %% [markdown]
# One entropy alone can't do this: "of one image near 0" fits eight groups and one prototype. Unsure answers count for less, as in the second row.
#
# Now real, tiny runs. The eight "images" are points in eight dimensions with much in common, and the "views" add noise. The student is a small MLP with 16 prototypes. The teacher follows it slowly, as a moving average with momentum 0.97 (a momentum of its own, not that of the center). Ten networks with ten sets of points train side by side in one tensor, because one seed proves little.

# %%
class Toys(nn.Module):
    """Ten small networks side by side: (V, 10, B, 8) points -> (V, 10, B, 16) cosines."""
    def __init__(self):
        super().__init__()
        sizes = [(8, 64), (1, 64), (64, 16), (1, 16), (16, 16)]  # weights and biases in turn
        fan_in = [8, 8, 64, 64, 16]
        self.weights = nn.ParameterList([(2 * torch.rand(10, *size) - 1) / math.sqrt(n)
                                         for size, n in zip(sizes, fan_in)])

    def forward(self, x):
        w1, b1, w2, b2, prototypes = self.weights
        x = F.gelu(x @ w1 + b1) @ w2 + b2
        return F.normalize(x, dim=-1) @ F.normalize(prototypes, dim=-2)

# %%
def run_toys(centering=True, teacher_temp=0.04, momentum=0.97, student_temp=0.1, steps=200):
    """Train ten networks; -> the two entropies at every fifth step, in nats (steps / 5, 10, 2)."""
    torch.manual_seed(0)
    points = 0.7 * torch.randn(10, 8, 8) + 3 * torch.randn(10, 1, 8)  # ten times eight "images"
    student, center, path = Toys(), torch.zeros(10, 16), []
    teacher, optimizer = make_teacher(student), torch.optim.Adam(student.parameters(), lr=3e-3)
    for step in range(steps):
        images = points[torch.arange(10)[:, None], torch.randint(8, (10, 64))]  # (10, 64, 8)
        views = images + 0.3 * torch.randn(4, 10, 64, 8)
        targets = teacher(views[:2])  # (2, 10, 64, 16)
        # each network has its own center, so it comes off here; the loss gets a center of 0
        centred = targets - center[:, None]
        loss = dino_loss(student(views).flatten(1, 2), centred.flatten(1, 2), torch.zeros(16),
                         student_temp, teacher_temp)
        optimizer.zero_grad()
        (10 * loss).backward()  # the loss is a mean over ten networks; each gets its own gradient
        optimizer.step()
        if step % 5 == 4:
            q = (centred / teacher_temp).softmax(-1)
            path.append([[float(x) for x in two_entropies(q[:, n])] for n in range(10)])
        if centering:
            center = torch.stack([update_center(center[n], targets[:, n]) for n in range(10)])
        ema_update(teacher, student, momentum)
    return np.array(path)

# %% [markdown]
# **Predict, then run.** There are four cases: centering or not, sharpening or not. "No sharpening" gives the teacher the student's temperature, 0.1. Centering alone should end in a uniform answer, and sharpening alone in one prototype. What happens with *neither*?
#
# - **a**: the two dangers cancel out, and the teacher tells images apart;
# - **b**: it ends in one prototype for every image;
# - **c**: it gives every image the same mixed answer.

# %%
guess = "?"  # a, b or c

# %%
runs = {("centering", "sharpening"): run_toys(),
        ("centering", "no sharpening"): run_toys(teacher_temp=0.1),
        ("no centering", "sharpening"): run_toys(centering=False),
        ("no centering", "no sharpening"): run_toys(centering=False, teacher_temp=0.1)}

# %%
def draw(axis, path, title):
    """Ten thin lines for each of the two entropies, as shares of ln 16."""
    steps = 5 * np.arange(1, len(path) + 1)
    for k, (color, name) in enumerate([("tab:blue", "of one image"), ("tab:orange", "of the mean")]):
        lines = axis.plot(steps, path[..., k] / math.log(16), color=color, linewidth=0.8, alpha=0.7)
        lines[0].set_label(name)
    axis.axhline(math.log(8) / math.log(16), color="gray", linestyle=":", linewidth=1)
    axis.set_title(title, fontsize=10)
    axis.set(ylim=(-0.04, 1.06), yticks=[0, 0.5, 1])

figure, axes = plt.subplots(2, 2, figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained")
for axis, (names, path) in zip(axes.flat, runs.items()):
    draw(axis, path, ", ".join(names))
for axis in axes[1]:
    axis.set_xlabel("step")
for axis in axes[:, 0]:
    axis.set_ylabel("entropy / ln K")
axes[0, 0].legend(fontsize=8, loc="upper right")
plt.show()

# %% [markdown]
# Two lines apart: the teacher tells images apart. Two lines on top of each other: a collapse. (The dotted line is $\ln 8$: each image sure of a prototype of its own.) A function reads them for all ten seeds. Its limits are ours: less than 1.25 groups is a collapse, more than 2.5 is told apart, and between them are about two groups.

# %% tags=["nbval-ignore-output"]
def ending(one, mean):
    groups = groups_told_apart(one, mean)
    if groups > 1.25:
        return "told apart" if groups > 2.5 else "about two groups"
    if one > 0.85 * math.log(16):
        return "uniform"
    return "one prototype" if one < 0.05 * math.log(16) else "mixed answer"

def endings(path):
    """The ending of each seed, from the mean of the last 20 steps, and the groups."""
    last = path[-4:].mean(axis=0)
    return [ending(*pair) for pair in last], [groups_told_apart(*pair) for pair in last]

def count(found):
    return ", ".join(f"{found.count(name)} x {name}" for name in sorted(set(found)))

for names, path in runs.items():
    found, groups = endings(path)
    print(f"{names[0]:12} {names[1]:13}  groups {min(groups):.1f} to {max(groups):.1f}:  {count(found)}")
found, groups = endings(run_toys(momentum=1.0))
print(f"blind: both, and a teacher that stays random  groups {min(groups):.1f} to {max(groups):.1f}")
found, _ = endings(runs["no centering", "no sharpening"])
most = max(set(found), key=found.count)
settle(guess, {"a": "told apart", "b": "one prototype", "c": "the same mixed answer"},
       {"told apart": "a", "one prototype": "b"}.get(most, "c"))

# %% [markdown]
# Each of the two, alone, leads to a collapse of its own. Without the center, one prototype takes all in most seeds; in the others, two share the images. Without sharpening the shares become uniform. With neither, every image gets the same mixed answer from the first point on: the points have much in common, so an untrained network answers so, and nothing moves it from there.
#
# With both, the ten teachers tell more images apart than one that stays random, without pairs of *different* images and without a second loss.
#
# The paper says that centering and sharpening suffice *in presence of a momentum teacher* (section 3.1). So take the momentum away: with momentum 0 the teacher is a copy of the student after every step.
#
# **Predict, then run.** Centering and sharpening stay. Momentum is 0.
#
# - **a**: most seeds still tell images apart;
# - **b**: most seeds end uniform;
# - **c**: most seeds end in another collapse.

# %%
guess = "?"  # a, b or c

# %%
copied = run_toys(momentum=0.0)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.5), sharey=True, layout="constrained")
draw(axes[0], runs["centering", "sharpening"], "both, momentum 0.97")
draw(axes[1], copied, "both, momentum 0")
for axis in axes:
    axis.set_xlabel("step")
axes[0].set_ylabel("entropy / ln K")
axes[0].legend(fontsize=8, loc="upper right")
plt.show()

# %% tags=["nbval-ignore-output"]
found, groups = endings(copied)
print(f"groups {min(groups):.1f} to {max(groups):.1f}:  {count(found)}")
letter = "a" if found.count("told apart") > 5 else "b" if found.count("uniform") > 5 else "c"
settle(guess, {"a": "most tell images apart", "b": "most are uniform", "c": "most collapse otherwise"},
       letter)

# %% [markdown]
# In the right panel the blue lines are hidden behind the orange ones: the gap is 0 nearly everywhere. The one answer that all images get keeps jumping. In this toy of eight points the slow teacher is needed as well. The paper's own study is on ImageNet: figure 7 shows the two collapses, table 7 a run without momentum. Notebook 07 takes out one part at a time on pictures.

# %% [markdown] tags=["note"]
# **Minutes:** 20. Let everybody write down a letter before the grid runs; count hands.
#
# **At the grid:** go panel by panel and ask "are the two lines apart?". Only then ask where they lie. **Misconception:** "low entropy is good". Point at the lower left panel: the lowest entropy of all, and nothing learned. **Misconception:** "no centering always ends at exactly one prototype". Some seeds keep two; a single seed could have shown anything.
#
# The number $e^{\text{gap}}$ has a name for those who ask: the gap is the mutual information between the image and its prototype.

# %% [markdown]
# ## 7. A real network, and your loss
#
# Now pictures. The student is a vision transformer of one block, with 256 prototypes. The loss and the center are yours; the views and the moving teacher are the library's. We train it twice from the same start, on the same views: once as it should be, and once with a center that stays at 0.
#
# We look at the loss, its floor (the teacher's entropy), the distance between the two, which is the **KL**, and the groups told apart.

# %%
from dataclasses import replace
from dino_lib import PRESETS, BatchMultiCrop, Shapes
from dino_lib.run.build import build_student
from dino_lib.run.config import multicrop_settings

small = PRESETS["demo"].backbone_options | {"depth": 1}  # one block: seconds, not minutes
config = replace(PRESETS["demo"], backbone_options=small, out_dim=256, n_local=2)
images = Shapes(1000).images  # uint8 (1000, 3, 48, 48); the labels are not looked at
crop = BatchMultiCrop(**multicrop_settings(config))
print([tuple(view.shape) for view in crop(images[:32])])

# %%
def train(centering, updates=30, batch=32):
    """-> what each update says, and the shares of 256 images: untrained and in the end."""
    torch.manual_seed(0)
    student = build_student(config)
    teacher, center, log = make_teacher(student), torch.zeros(config.out_dim), []
    optimizer = torch.optim.AdamW(student.parameters(), lr=1.5e-3)
    torch.manual_seed(0)
    probe = crop(images[-256:])[:2]
    shares = [((teacher(probe) - center) / 0.04).softmax(-1)]
    for step in range(updates):
        first = batch * step % 704  # 22 batches, then again; the probe's 256 pictures stay out
        views = crop(images[first : first + batch])
        targets = teacher(views[:2])
        loss = dino_loss(student(views), targets, center)
        optimizer.param_groups[0]["lr"] = 1.5e-3 * min(1, (step + 1) / 10)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 3.0)
        optimizer.step()
        one, mean = two_entropies(((targets - center) / 0.04).softmax(-1))
        log.append([loss.item(), float(one), float(mean)])
        center = update_center(center, targets) if centering else center
        ema_update(teacher, student, 0.96)
    shares.append(((teacher(probe) - center) / 0.04).softmax(-1))
    return np.array(log), shares

# %% [markdown]
# **Predict, then run.** Which run has the lower KL after 30 updates?
#
# - **a**: the one with centering: it learns more;
# - **b**: the one without: agreeing is easier there;
# - **c**: there is hardly a difference so early.

# %%
guess = "?"  # a, b or c

# %%
centred, (untrained, healthy) = train(centering=True)
lazy, (_, collapsed) = train(centering=False)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7), layout="constrained")
for name, log, color in [("centering", centred, "tab:green"), ("no centering", lazy, "tab:red")]:
    steps = np.arange(1, len(log) + 1)
    axes[0].plot(steps, log[:, 0], color=color, label=name)
    axes[0].plot(steps, log[:, 1], color=color, linestyle="--", linewidth=1)
    axes[1].plot(steps, log[:, 0] - log[:, 1], color=color)
    axes[2].plot(steps, np.exp(log[:, 2] - log[:, 1]), color=color)
axes[0].axhline(math.log(256), color="gray", linestyle=":", label="ln 256")
axes[0].set(title="loss, and its floor (dashed)", ylim=(0, 8.5), ylabel="nats")
axes[1].set(title="loss - floor = KL", ylim=(0, None), ylabel="nats")
axes[2].set(title="groups told apart", ylim=(1, None))
for axis in axes:
    axis.set_xlabel("update")
axes[0].legend(fontsize=8, loc="upper left", ncols=2)
plt.show()

# %% tags=["nbval-ignore-output"]
kl = {name: (log[-5:, 0] - log[-5:, 1]).mean() for name, log in [("a", centred), ("b", lazy)]}
print(f"KL of the last five updates: {kl['a']:.2f} with centering, {kl['b']:.2f} without")
far = abs(kl["a"] - kl["b"]) > 0.1
settle(guess, {"a": "with centering", "b": "without centering", "c": "hardly a difference"},
       min(kl, key=kl.get) if far else "c")

# %% [markdown]
# The run without a center looks better in the loss and in the KL: there is almost nothing left to disagree about. **A falling KL is progress only while the groups stay apart.** The green line falls too, from about four groups to two; more of that below.
#
# Each bar is a prototype, and its height is how many of 512 views (two of each of 256 pictures) have it as their favourite.

# %%
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.5), sharey=True, layout="constrained")
stages = {"untrained": untrained, "30 updates, centering": healthy, "30 updates, no centering": collapsed}
for axis, (name, shares) in zip(axes, stages.items()):
    counts = torch.bincount(shares.argmax(-1).flatten(), minlength=256).sort(descending=True).values
    axis.bar(range(24), counts[:24], color="tab:red" if "no c" in name else "tab:green")
    axis.set_title(f"{name}:\n{int((counts > 0).sum())} of 256 prototypes used", fontsize=10)
    axis.set_xlabel("prototype, by use")
axes[0].set_ylabel("views")
plt.show()

# %% [markdown]
# In the run without a center every view has the same favourite. The healthy run uses few prototypes too, so early. Is that an illness? Here is the history of a whole run: the teacher `demo`, with two blocks, 1,024 prototypes and 1,500 updates of 32 images. One seed.

# %%
import json
from pathlib import Path
import dino_lib

history = Path(dino_lib.__file__).parent / "teachers" / "demo" / "history.jsonl"
lines = [json.loads(line) for line in history.read_text().splitlines()]
lines = [line for line in lines if "loss" in line]
step, loss, one, mean, used = (np.array([line[key] for line in lines]) for key in
                               ["step", "loss", "teacher_entropy", "mean_entropy", "prototypes_used"])
figure, axes = plt.subplots(1, 3, figsize=(9.6, 2.7), layout="constrained")
axes[0].plot(step, one, color="tab:blue", label="of one image")
axes[0].plot(step, mean, color="tab:orange", label="of the mean")
axes[0].plot(step, loss, color="black", linewidth=0.8, label="loss")
axes[0].axhline(math.log(1024), color="gray", linestyle=":", label="ln K")
axes[0].set(title="two entropies and the loss, nats", ylim=(0, None))
axes[0].legend(fontsize=8, loc="lower right")
axes[1].plot(step, [groups_told_apart(*pair) for pair in zip(one, mean)], color="tab:green")
axes[1].set(title="groups told apart", ylim=(1, None))
axes[2].plot(step, 1024 * used, color="tab:green")
axes[2].set(title="prototypes used in ten updates", ylim=(0, None))
for axis in axes:
    axis.set_xlabel("update")
plt.show()
print(f"ln K = {math.log(1024):.2f}")
for n in [20, 50, 80, 150, 400, 800, 1500]:
    k = int(np.argmin(abs(step - n)))
    print(f"update {n:4}: {1024 * used[k]:3.0f} prototypes used, "
          f"{groups_told_apart(one[k], mean[k]):.1f} groups told apart, loss {loss[k]:.2f}")

# %% [markdown]
# The whole run dips as well. From update 80 to about 140 it uses some 25 prototypes, and at update 150 only 1.9 groups are left. Then both climb, the groups to the end. (The loss is the mean of ten updates, the entropies are those of the last one: where all change fast, the black line less the blue one is not quite the KL.)
#
# But the most groups of all stand in the first 20 updates. Did training make the teacher worse? The groups can't say: the answers of a random network are unlike as well. Nor can the loss: it is lowest of all at update 80, 5.28, with 29 prototypes in use. The features can: the same history has the accuracy of their 20 nearest neighbours among 2,000 pictures, 44 % untrained, 69 % at update 375 and 92 % in the end (of 500 asked, so other numbers than in the README, where a colour histogram has 46 %). So compare a run's groups with its own minimum, not with its random start.
#
# A dip in the first updates is no alarm while the gap stays open.
#
# ## Summary
#
# - A temperature sets how sure a softmax is. The teacher's is lower than the student's: that is sharpening.
# - The center is a running mean of the teacher's logits. It is subtracted, so that no prototype is everyone's favourite.
# - The loss is the mean cross-entropy over the $2 (V - 1)$ pairs of different views.
# - A collapse is one answer for every image. The two entropies are then equal.
# - In the toy, centering and sharpening keep all ten seeds apart beside a teacher that follows slowly, and not beside a copy of the student.
# - A low loss is no success by itself, and many groups alone are none either.
#
# ## Exercises

# %% [markdown] tags=["note"]
# **At the loss curves:** ask who would stop the green run and keep the red one. By the loss alone, everybody should. **Question for the room:** which two numbers would you log to be warned? (The two entropies.) **Misconception:** "the loss must fall". With a moving target the floor moves too.

# %% [markdown]
# **Exercise 8 · easy · 5 minutes · where the center stands.** The teacher's batch mean is the same vector $b$ at every step. The center starts at 0 and keeps the share $m$ of itself. Where does it stand after $n$ steps? What should come out: $0.1\,b$ after one step with $m = 0.9$, and nearly $b$ after many. The check refuses a loop.
#
# <details><summary>Hint</summary>
#
# Look at what is still missing, $b - c$. By which factor does it shrink in one step?
#
# </details>

# %% tags=["stub"]
def center_after(batch_mean, momentum, n_steps):
    """batch_mean (K,), momentum in [0, 1), n_steps >= 1 -> the center (K,)."""
    ### BEGIN SOLUTION
    # what is missing shrinks by the factor m at each step: b - c_n = m^n (b - 0)
    return (1 - momentum**n_steps) * batch_mean
    ### END SOLUTION

center_after = checks.center_after(center_after)

# %% [markdown]
# **Exercise 9 · medium · 12 minutes · the gradient on paper.** For one pair of views, derive the gradient of the batch mean of $-\sum_k q_k \ln p_k$ with respect to the student's logits $s$, where $p = \operatorname{softmax}(s/\tau_s)$. No autograd in the function. What should come out: zero where $p = q$, and a gradient whose rows sum to zero.
#
# <details><summary>Hint</summary>
#
# Use the logsumexp form of section 2. The gradient of $\operatorname{logsumexp}(u)$ is $\operatorname{softmax}(u)$, and that of $\sum_k q_k u_k$ is $q$. Mind the two divisions: by $\tau_s$, since $u = s / \tau_s$, and by the rows of the batch.
#
# </details>

# %% tags=["stub"]
def student_gradient(s, q, student_temp):
    """s (B, K) logits, q (B, K) targets -> the gradient (B, K)."""
    ### BEGIN SOLUTION
    p = (s / student_temp).softmax(dim=-1)  # the gradient of logsumexp is softmax, that of q.s is q
    return (p - q) / student_temp / len(s)
    ### END SOLUTION

student_gradient = checks.student_gradient(student_gradient)

# %% [markdown]
# **Exercise 10 · hard · 20 minutes · no loop over the pairs.** Write the loss with no loop over views or pairs and without `log_softmax`, by the logsumexp form. Each student view needs one logsumexp and the sum of the targets that it is paired with. What should come out: the same value and gradient as `dino_loss`.
#
# <details><summary>Hint</summary>
#
# View 0 has the target $q_1$, view 1 has $q_0$, and each local view has the sum $q_0 + q_1$. **The classic error** is to count a local view's logsumexp once. It is in *two* pairs, so its logsumexp counts twice: as often as its row of targets sums to.
#
# </details>

# %% tags=["stub"]
def fast_loss(student, teacher, center, student_temp, teacher_temp):
    """student (V, B, K), teacher (2, B, K), center (K,) -> scalar, equal to dino_loss."""
    ### BEGIN SOLUTION
    u, n_views = student / student_temp, len(student)
    q = ((teacher - center) / teacher_temp).softmax(dim=-1).detach()
    local = q.sum(dim=0, keepdim=True).expand(n_views - 2, -1, -1)  # these predict both global ones
    targets = torch.cat([q[1:], q[:1], local])  # (V, B, K); views 0 and 1 predict each other
    # a row of targets sums to the number of the view's pairs, 1 or 2
    rows = targets.sum(dim=-1) * u.logsumexp(dim=-1) - (targets * u).sum(dim=-1)
    return rows.mean(dim=1).sum() / (2 * (n_views - 1))
    ### END SOLUTION

fast_loss = checks.fast_loss(fast_loss)

# %% [markdown]
# **Exercise 11 · easy · 10 minutes · change the run.** Change one setting of the ten small networks: `teacher_temp` (0.02 to 0.12), `momentum` (0 to 0.999), `student_temp`, `steps`, or `centering`. What should come out: your run beside the one that works. As it stands, the teacher's temperature is 0.07. The paper's runs warm up to it from 0.04, and collapse at a constant 0.08.
#
# **Predict, then run.** With your change, the ten teachers …
#
# - **a**: tell as many groups apart, or more;
# - **b**: tell fewer groups apart, but more than one;
# - **c**: collapse (fewer than 1.25 groups), five of them or more.

# %%
CHANGED = {"teacher_temp": 0.07}
guess = "?"  # a, b or c

# %%
changed = run_toys(**CHANGED)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.5), sharey=True, layout="constrained")
draw(axes[0], runs["centering", "sharpening"], "as it was")
draw(axes[1], changed, ", ".join(f"{name} {value}" for name, value in CHANGED.items()))
for axis in axes:
    axis.set_xlabel("step")
axes[0].set_ylabel("entropy / ln K")
axes[0].legend(fontsize=8, loc="upper right")
plt.show()

# %% tags=["nbval-ignore-output"]
before, after = (np.median(endings(path)[1]) for path in (runs["centering", "sharpening"], changed))
print(f"groups told apart, the median of ten seeds: {before:.1f} as it was, {after:.1f} with your change")
found, groups = endings(changed)
print(f"with your change: groups {min(groups):.1f} to {max(groups):.1f}:  {count(found)}")
n_collapsed = sum(n < 1.25 for n in groups)
letter = "c" if n_collapsed >= 5 else "a" if after > before - 0.5 else "b"
settle(guess, {"a": "as many groups, or more", "b": "fewer groups, more than one",
               "c": "five or more collapse"}, letter)

# %% [markdown] tags=["note"]
# **Exercise 11** is a good last quarter of an hour in class: each pair of students takes one setting, and the results go on the board as a table. Ask: at which teacher temperature does it tip? Is it at the student's?
