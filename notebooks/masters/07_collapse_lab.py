# %% [markdown]
# # 07 · The collapse lab: take one part out, see what it was for
#
# <!-- badge -->
#
# **You will** take DINO apart, one part at a time, on a network so small that a run takes seconds: centering, sharpening, the moving average, the stop-gradient, and more. Before each run you predict what will happen. A table, the *ledger*, keeps what the runs say.
#
# **You need** the loss of [notebook 03](03_loss.ipynb) and the teacher of [notebook 04](04_teacher.ipynb). About 60 minutes for the eight pieces, and as long again or a little longer to read, predict and look; after section 2 is a good place for a break. The cells take about 60 seconds of one CPU core.
#
# Before: [06 · Attention](06_attention.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# In the paper ([Caron et al. 2021](https://arxiv.org/abs/2104.14294)) table 7 takes parts out, and figure 7 shows the two collapses.

# %% tags=["equality"]
import copy, math
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from dino_lib import DINOLoss, teacher_entropies
from dino_lib.course import collapse as checks, collapse_runs as lab
from dino_lib.course.prediction import settle
from dino_lib.run.history import feature_rank

# %%
import inspect
import matplotlib.pyplot as plt
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. The lab
#
# A student that gives the same answer for every picture agrees with its teacher perfectly, and has learned nothing. This is a **collapse**, and the loss alone doesn't show it. DINO has several parts against it. What does each one do?
#
# The lab has 1,000 embedded pictures of ten kinds of creatures, 24 pixels wide. A batch is 32 pictures; each gives two large views of 16 pixels and two small ones of 8. The network is a vision transformer of one block, 64 wide, with four attention heads. Runs that you make here stop at update 60; the shipped ones go to 100.
#
# These are the settings of the healthy run. `targets="center"` means that a center is subtracted from the teacher's logits, `momentum` rises to `momentum_end` during the run, `n_local` is the number of small views, `out_dim` is K, the number of prototypes, and `use_bn` puts batch norm into the head.

# %%
for name, value in vars(lab.HEALTHY).items():
    print(f"{name:15}{'yes' if value is True else value}")

# %%
gallery, queries = lab.pictures()
large, small = lab.pool()
mean, std = [torch.tensor(values)[:, None, None] for values in lab.IMAGENET]
figure, axes = plt.subplots(3, 9, figsize=(9, 3.1), layout="constrained")
for k in range(9):
    shown = [gallery.images[k] / 255, large[0, k] * std + mean, small[0, k] * std + mean]
    for axis, picture in zip(axes[:, k], shown):
        axis.imshow(picture.permute(1, 2, 0).clamp(0, 1))
        axis.set_xticks([]), axis.set_yticks([])
for axis, name in zip(axes[:, 0], ["picture, 24 px", "large view, 16 px", "small view, 8 px"]):
    axis.set_ylabel(name, fontsize=8)

# %% [markdown] tags=["note"]
# **Teacher's note · 5 minutes.** Ask: "How could the student make the loss zero without looking at the picture?" Let the room find the constant answer. The common wrong idea is that a low loss is a good sign. Keep the sentence "the loss alone doesn't show it" on the board.

# %% [markdown]
# ## 2. Vital signs
#
# Take four pictures, four prototypes, and four teachers made by hand. Each row of a teacher is what it says of one picture: a distribution over the prototypes.

# %%
sure, unsure = torch.eye(4), torch.full((4, 4), 0.25)
teachers = {"each its own": sure,
            "all the same": sure[[2, 2, 2, 2]],
            "all undecided": unsure,
            "one mixed answer": torch.tensor([[0.5, 0.5, 0, 0]]).repeat(4, 1)}
for name, rows in teachers.items():
    of_one = torch.special.entr(rows).sum(-1).mean()
    of_mean = torch.special.entr(rows.mean(0)).sum()
    print(f"{name:17} entropy of one row {of_one:.2f}   of the mean row {of_mean:.2f}   gap {of_mean - of_one:.2f}")
print(f"{'':17} the largest possible is ln 4 = {math.log(4):.2f}")

# %% [markdown]
# The *entropy* of a distribution says how undecided it is: 0 for one sure choice, ln K for K equal ones. The **gap** between the two entropies says how much a row depends on the picture. Three teachers have none. They are the three collapses:
#
# - **one prototype**: sure, and the same for every picture;
# - **uniform**: undecided about every picture;
# - **one mixed answer**: something between, still the same for every picture.

# %% [markdown]
# **Your turn 1 · easy · 3 minutes · prototypes used.** Count how many prototypes are the first choice of at least one view. `q` holds probabilities in its last dimension, (..., K). What should come out: 4 for the first teacher above, 1 for the second.
#
# <details><summary>Hint</summary>
#
# `argmax(-1)` gives each row's first choice; `unique()` drops the repetitions.
#
# </details>

# %% tags=["stub", "equality"]
def used_prototypes(q):
    """q (..., K), probabilities -> the number of different first choices."""
    ### BEGIN SOLUTION
    return len(q.argmax(-1).unique())
    ### END SOLUTION

used_prototypes = checks.used_prototypes(used_prototypes)

# %% [markdown]
# The divergence of Kullback and Leibler, **KL**, says how far the student's answer is from the teacher's: 0 where they agree. The loss is entropy plus KL:
#
# $$\underbrace{-\sum_k q_k \log p_k}_{\text{loss}} \;=\; \underbrace{-\sum_k q_k \log q_k}_{\text{entropy of the teacher}} \;+\; \underbrace{\sum_k q_k \log \frac{q_k}{p_k}}_{\text{KL}}$$

# %%
q, p = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.25, 0.25])
loss, entropy, kl = -(q * p.log()).sum(), -(q * q.log()).sum(), (q * (q / p).log()).sum()
print(f"loss {loss:.3f} = entropy {entropy:.3f} + KL {kl:.3f}")

# %% [markdown]
# **Your turn 2 · hard · 18 minutes · the vital signs.** Write the three numbers for a whole batch: the entropy of one target (the mean over views and pictures), the entropy of the mean target, and the KL (the mean over pictures and over the pairs of a teacher view i and a student view v ≠ i). `q` (2, B, K) are the targets, `log_p` (V, B, K) the logarithms of the student's probabilities. The student's views 0 and 1 are the teacher's two. What should come out: three numbers, and no `nan` where a target holds zeros.
#
# <details><summary>Hint</summary>
#
# `torch.special.entr(q)` is −q log q, and 0 at q = 0. The KL is the loss less the first entropy; for the loss collect one term for each pair (i, v).
#
# </details>

# %% tags=["stub", "equality"]
def vital_signs(q, log_p):
    """q (2, B, K), log_p (V, B, K) -> (entropy of one, entropy of the mean, KL), in nats."""
    ### BEGIN SOLUTION
    of_one = torch.special.entr(q).sum(-1).mean()
    of_mean = torch.special.entr(q.mean((0, 1))).sum()
    terms = []
    for i in range(2):
        for v in range(len(log_p)):
            if v != i:
                terms.append(-(q[i] * log_p[v]).sum(-1).mean())
    return of_one, of_mean, torch.stack(terms).mean() - of_one
    ### END SOLUTION

vital_signs = checks.vital_signs(vital_signs)

# %% [markdown]
# Against the library's entropies and PyTorch's divergence:

# %% tags=["equality"]
generator = torch.Generator().manual_seed(0)
s, t = torch.randn(4, 8, 16, generator=generator), torch.randn(2, 8, 16, generator=generator)
q, log_p = (t / 0.5).softmax(-1), s.log_softmax(-1)
of_one, of_mean, kl = vital_signs(q, log_p)
np.testing.assert_allclose([of_one, of_mean], teacher_entropies(q), rtol=1e-5)
pairs = [F.kl_div(log_p[v], q[i], reduction="batchmean") for i in range(2) for v in range(4) if v != i]
torch.testing.assert_close(kl, torch.stack(pairs).mean())
print(f"equal: {of_one:.3f}, {of_mean:.3f} and {kl:.3f}")

# %% [markdown]
# **Your turn 3 · easy · 5 minutes · the diagnosis.** Say which kind of teacher it is, by three questions in this order. Is the gap above a tenth of ln K: `"healthy"`. Else, is the entropy of the mean below a fifth of ln K: `"one prototype"`. Else, is the entropy of one above nine tenths of ln K: `"uniform"`. Else `"one mixed answer"`. What should come out: one of these four texts.
#
# <details><summary>Hint</summary>
#
# Work out `most = math.log(n_prototypes)` first. The gap is `of_mean - of_one`.
#
# </details>

# %% tags=["stub", "equality"]
def diagnose(of_one, of_mean, n_prototypes):
    """Two entropies in nats, and K -> "healthy", "one prototype", "uniform" or "one mixed answer"."""
    ### BEGIN SOLUTION
    most = math.log(n_prototypes)
    if of_mean - of_one > 0.1 * most:
        return "healthy"
    if of_mean < 0.2 * most:
        return "one prototype"
    if of_one > 0.9 * most:
        return "uniform"
    return "one mixed answer"
    ### END SOLUTION

diagnose = checks.diagnose(diagnose)

# %%
for name, rows in teachers.items():
    of_one, of_mean, _ = vital_signs(rows.repeat(2, 1, 1), (rows + 1e-9).log().repeat(2, 1, 1))
    print(f"{name:17} {used_prototypes(rows)} used: {diagnose(of_one, of_mean, 4)}")

# %% [markdown]
# The signs so far judge the *head*. What is used later are the **features**, which the backbone gives before the head. Their *effective rank* counts the directions in which they lie, each by its weight: with $\sigma_j$ the singular values of the features and $s_j = \sigma_j / \sum \sigma$ their shares, it is $e^{-\sum s_j \ln s_j}$. A rank near 1 is a warning.

# %%
for singular in ([1.0, 1, 1, 1], [8.0, 1, 1, 1], [1.0, 0, 0, 0]):
    shares = torch.tensor(singular) / sum(singular)
    print(singular, f"effective rank {torch.special.entr(shares).sum().exp():.2f}")

# %% [markdown]
# **Your turn 4 · medium · 5 minutes · the effective rank.** Write it for features (N, D). What should come out: a number between 1 and min(N, D).
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svdvals` gives the singular values. Divide by their sum, take the entropy, then `exp`.
#
# </details>

# %% tags=["stub", "equality"]
def effective_rank(features):
    """features (N, D) -> e to the entropy of the singular values' shares."""
    ### BEGIN SOLUTION
    singular = torch.linalg.svdvals(features.double())
    shares = singular / singular.sum()
    return torch.special.entr(shares).sum().exp()
    ### END SOLUTION

effective_rank = checks.effective_rank(effective_rank)

# %% [markdown]
# The library's `feature_rank` takes another way, by eigenvalues, to the same number:

# %% tags=["equality"]
x = torch.randn(60, 10, generator=generator) * torch.arange(1.0, 11)
np.testing.assert_allclose(float(effective_rank(x)), feature_rank(x), rtol=1e-4)
print(f"equal: {effective_rank(x):.2f} of 10 directions")

# %% [markdown] tags=["note"]
# **Teacher's note · 20 minutes.** The misconception here: "entropy near 0 means collapse". A sure teacher is fine if it is sure of different things. Draw the four hand-made teachers as 4 × 4 grids and ask which of them know the picture. The gap is the mutual information between picture and prototype; say so if the room knows the word.

# %% [markdown]
# ## 3. A loss with a switch
#
# Two parts stand inside the loss: the *center*, which is subtracted from the teacher's logits, and the *sharpening*, a teacher temperature below the student's. The stop-gradient is a third: targets carry no gradient. The lab's loss has a switch for it.

# %% [markdown]
# **Your turn 5 · medium · 10 minutes · a loss with a switch.** Write DINO's loss for logits `student` (V, B, K) and `teacher` (2, B, K): targets softmax((teacher − center) / teacher_temp), cross-entropy with the student at its own temperature, the mean over pictures and over the pairs i, v with v ≠ i. With `stop_gradient=True` no gradient flows into the teacher's logits; with `False` it does. What should come out: one number that `backward` works on.
#
# <details><summary>Hint</summary>
#
# `teacher.detach()` has the same values and no gradient. `F.log_softmax(student / student_temp, dim=-1)` is the student's part. The pairs are those of `vital_signs`.
#
# </details>

# %% tags=["stub", "equality"]
def lab_loss(student, teacher, center, student_temp, teacher_temp, stop_gradient=True):
    """Logits (V, B, K) and (2, B, K), center (K,) -> the mean cross-entropy over the pairs."""
    ### BEGIN SOLUTION
    if stop_gradient:
        teacher = teacher.detach()
    q = F.softmax((teacher - center) / teacher_temp, dim=-1)
    log_p = F.log_softmax(student / student_temp, dim=-1)
    terms = []
    for i in range(2):
        for v in range(len(student)):
            if v != i:
                terms.append(-(q[i] * log_p[v]).sum(-1).mean())
    return torch.stack(terms).mean()
    ### END SOLUTION

lab_loss = checks.lab_loss(lab_loss)

# %% [markdown]
# With the stop-gradient it has to be the library's loss, in value and in gradient.

# %% tags=["equality"]
s = torch.randn(4, 8, 16, generator=generator).requires_grad_()
t = torch.randn(2, 8, 16, generator=generator).requires_grad_()
theirs = DINOLoss(16)
theirs.center.copy_(torch.randn(16, generator=generator))
mine = lab_loss(s, t, theirs.center.clone(), 0.1, 0.06)
wanted = theirs(s, t, 0.06)
torch.testing.assert_close(mine, wanted)
mine, wanted = [torch.autograd.grad(value, [s, t], allow_unused=True) for value in (mine, wanted)]
torch.testing.assert_close(mine[0], wanted[0])
assert mine[1] is None and wanted[1] is None
print(f"equal, and so is the student's gradient, of norm {mine[0].norm():.3f}; the teacher has none")

# %% [markdown]
# ## 4. The healthy run
#
# The loop of the lab, with your `lab_loss` and your `vital_signs`. `s` and `t` are the logits of student and teacher:

# %%
source = inspect.getsource(lab.run)
print(source[source.index("    for update in"):source.index("        for name, number")])

# %% [markdown]
# The ledger starts with what knows nothing: the **untrained** student, and a histogram of the colours. Its columns:
#
# | column | what it says |
# | --- | --- |
# | loss, KL | the loss, and how far the student is from the teacher |
# | H one, H mean | the entropy of one target, and of the mean target; ln K = 4.85 is the most |
# | used | the first choices among the targets; where H one is near ln K, it is noise |
# | rank | the effective rank of the features |
# | k-NN | a picture's kind guessed from its 20 nearest among 1,000; chance is 0.10 |
# | above | *above blind*, attention on the creature: about 0 for a map that doesn't depend on the picture, 1 for the outline; mean of the four heads |
#
# Loss, KL, entropies (in *nats*) and *used* are those of the last ten updates. k-NN is measured on 500 other pictures, above blind on 200. From the fourth line on you see the healthy run and the newest one.

# %%
ledger, live = [], {}

def enter(name, one=None, scores=None, setting=lab.HEALTHY):
    """A line of the ledger: a run made here, or scores alone. Shows it beside the healthy one."""
    scores = dict(scores or one["scores"])
    if one is not None:
        live[name] = one
        scores["used"] = used_prototypes(one["targets"])
        scores["rank"] = float(effective_rank(lab.features_of(one["student"], queries)))
        scores["is"] = diagnose(scores["of_one_end"], scores["of_mean_end"], setting.out_dim)
    ledger.append((name, scores))
    show_ledger()

COLUMNS = {"loss_end": "loss", "of_one_end": "H one", "of_mean_end": "H mean", "kl_end": "KL",
           "used": "used", "rank": "rank", "knn": "k-NN", "above_blind": "above"}

def show_ledger():
    print(f"{'':22}" + "".join(f"{title:>8}" for title in COLUMNS.values()) + "  diagnosis")
    first = [line for line in ledger if line[0] == "healthy"][-1:]
    for name, scores in ledger if len(ledger) < 4 else [*first, ledger[-1]]:
        digits = {"used": 0, "rank": 1}
        cells = [f"{scores[c]:8.{digits.get(c, 2)}f}" if c in scores else " " * 8 for c in COLUMNS]
        print(f"{name:22}" + "".join(cells) + "  " + scores.get("is", ""))

# %% tags=["nbval-ignore-output"]
ledger.append(("colour histogram", {"knn": lab.histogram_knn()}))
enter("untrained", scores=lab.measure(lab.build(lab.HEALTHY, seed=0)))

# %%
def train(name, setting, **pieces):
    """Train with the pieces that you wrote, and enter the run into the ledger."""
    one = lab.run(setting, seed=0, updates=60, loss=lab_loss, signs=vital_signs, **pieces)
    enter(name, one, setting=setting)
    return one

# %% tags=["nbval-ignore-output"]
healthy = train("healthy", lab.HEALTHY)

# %%
def show_run(*names):
    """Loss, both entropies and KL of runs made here, a panel a run; the first losses lie above it."""
    figure, axes = plt.subplots(1, len(names), figsize=(4.6 * len(names), 2.8), sharey=True,
                                squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names):
        labels = ["loss", "entropy of one", "entropy of the mean", "KL"]
        for key, label in zip(live[name]["log"], labels):
            axis.plot(live[name]["log"][key], label=label, lw=2.5 if key == "loss" else 1.5)
        axis.axhline(math.log(lab.HEALTHY.out_dim), color="gray", ls=":", label="ln K")
        axis.set(title=name, xlabel="update", ylim=(-0.1, 5.2))
    axes[0, 0].set_ylabel("nats")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8)

show_run("healthy")

# %% [markdown]
# The loss starts above the frame and falls, and rises a little in the last twenty updates, with the entropy of one. The gap between the entropies stays open. The KL falls too, but not to 0: something is left to learn. The features beat the untrained ones, and the attention goes from blind to well above it. The colour histogram stays ahead in k-NN: this tiny network has seen 60 batches. So the lab compares variants with each other and with the untrained network.

# %% [markdown] tags=["note"]
# **Teacher's note · 10 minutes.** At the picture ask: "Where is the gap, and where is the KL?" The loss lies on the entropy of one plus the KL. The misconception: "the KL should reach 0". Where it does, teacher and student agree on everything, and there is nothing left to learn from.

# %% [markdown]
# ## 5. Without the center, without sharpening
#
# The center pulls towards equal use of the prototypes. It does not get there: the healthy run uses few of its 128. The sharpening makes each target surer than the student. Take out one at a time. "No sharpening" gives both networks one temperature, 0.1.

# %% [markdown]
# **Predict.** The center is gone, and everything else stays. What happens?
#
# - a: one prototype wins: both entropies go to 0;
# - b: the targets become uniform: both entropies go to ln K;
# - c: the run stays healthy, with fewer prototypes;
# - d: one mixed answer for every picture.

# %%
guess = "?"  # a, b, c or d

# %% tags=["nbval-ignore-output"]
no_center = train("no center", lab.VARIANTS["no center"])
found = ledger[-1][1]["is"]
answers = {"a": "one prototype wins", "b": "the targets become uniform", "c": "the gap stays open",
           "d": "one mixed answer"}
kinds = {"one prototype": "a", "uniform": "b", "healthy": "c", "one mixed answer": "d"}
settle(guess, answers, kinds[found])

# %% [markdown]
# **Predict.** Now the center is back, and the teacher's temperature is the student's, 0.1. What happens?
#
# - a: one prototype wins;
# - b: the targets become uniform;
# - c: the run stays healthy;
# - d: one mixed answer for every picture.

# %%
guess = "?"  # a, b, c or d

# %% tags=["nbval-ignore-output"]
no_sharpening = train("no sharpening", lab.VARIANTS["no sharpening"])
found = ledger[-1][1]["is"]
settle(guess, answers, kinds[found])

# %%
show_run("no center", "no sharpening")

# %% [markdown]
# Two different ends. Without the center both entropies go to 0: every picture gets the same prototype. Without sharpening both go to ln K. In both the gap closes, and the KL falls, to 0.01 and to 0.05. And the run without a center has by far the lowest loss. **A low loss is no sign of health.**

# %% [markdown]
# One seed may be luck. `benchmarks/collapse.py` trained each variant with three seeds. Here are the four combinations of center and sharpening: one thin line a seed.

# %%
measured = lab.read_measured()

def curves(name, key):
    return np.array([one["curves"][key] for one in measured["runs"][name].values()])

def scores_of(name, key):
    if name == "untrained":
        return [scores[key] for scores in measured["untrained"]]
    return [one["scores"][key] for one in measured["runs"][name].values()]

def spread(values):
    """The standard deviation over the seeds."""
    return np.std(values, ddof=1)

n_seeds = [len(runs) for runs in measured["runs"].values()]
print(f"{len(n_seeds)} variants, {min(n_seeds)} seeds each, "
      f"{measured['about']['updates']} updates, {measured['about']['machine']}")

# %%
def show_seeds(names):
    """Entropies and KL, a line a seed, a panel a variant."""
    figure, axes = plt.subplots(1, len(names), figsize=(9.6, 2.8), sharey=True,
                                layout="constrained")
    top = max(5, *[curves(name, "kl").max() for name in names]) + 0.2
    for axis, name in zip(axes, names):
        for key, label, color in [("of_one", "entropy of one", "tab:orange"),
                                  ("of_mean", "entropy of the mean", "tab:green"),
                                  ("kl", "KL", "tab:red")]:
            updates = measured["about"]["every"] * (0.5 + np.arange(curves(name, key).shape[1]))
            lines = axis.plot(updates, curves(name, key).T, color=color, lw=1)
            lines[0].set_label(label)
        most = math.log(lab.VARIANTS[name].out_dim)
        axis.axhline(most, color="gray", ls=":", label="ln K")
        axis.set_title(name, fontsize=9)
        axis.set(xlabel="update", ylim=(-0.15, max(top, most + 0.2)))
    axes[0].set_ylabel("nats")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncol=4, fontsize=8)

show_seeds(["healthy", "no center", "no sharpening", "neither"])

# %%
def show_scores(names):
    """Mean and standard deviation over the seeds."""
    print(f"{'':26}" + "".join(f"{title:>14}" for title in ["H one", "H mean", "loss", "KL", "k-NN", "above"]))
    for name in names:
        cells = []
        for key in ("of_one_end", "of_mean_end", "loss_end", "kl_end", "knn", "above_blind"):
            if name == "untrained" and key.endswith("end"):
                cells.append(" " * 14)
                continue
            values = scores_of(name, key)
            cells.append(f"{np.mean(values):8.2f} ± {spread(values):.2f}"[-14:].rjust(14))
        print(f"{name:26}" + "".join(cells))

show_scores(["untrained", "healthy", "no center", "no sharpening", "neither"])

# %% [markdown]
# The paper says: with one operation missing the KL goes to 0, a collapse; the entropy goes to 0 without centering and to ln K without sharpening. Without sharpening all three seeds do that here. Without a center one of the three is down to a single prototype by update 100; the other two have stopped at three prototypes with a gap of 0.4 and 0.7. With neither, the two entropies lie on each other below ln K: one mixed answer, the third collapse.
#
# From about update 15 the healthy targets get surer, until update 30 to 45, then less sure again; the gap stays between 0.7 and 1.2. Your run of section 4 stops earlier, and its targets end surer.
#
# One thing differs from the paper, where a collapsed run ends at chance. Here the k-NN stays near the healthy run's 0.41: of the nine runs with a part missing seven end at 0.40 to 0.43, and two, both of seed 0, at 0.36 and 0.37, nearer to the untrained 0.34. The attention stays far above the untrained network's: the head has collapsed, the backbone has not. How long is the gradient, before it is clipped?

# %% tags=["nbval-ignore-output"]
for name in ("healthy", "no center", "no sharpening"):
    norms = live[name]["norms"]
    print(f"{name:14} norm of the gradient: {np.mean(norms[:10]):.2f} in the first ten updates, "
          f"{np.mean(norms[-10:]):.2f} in the last ten")

# %% [markdown]
# Without a center the gradient falls to less than a hundredth of its first length, without sharpening to about a twenty-fifth, in the healthy run to less than a fifth. We think that this is why their backbones keep what they learned before: little pulls at them. It's no proof, since the optimizer divides each step by the usual size of the gradient.

# %% [markdown] tags=["note"]
# **Teacher's note · 15 minutes.** Show the paper's figure 7 beside the four panels. Then ask: "If the head has collapsed, why is the k-NN not at chance?" Let them look at the norms of the gradient and at the KL. Nothing destroys the backbone in 100 updates.

# %% [markdown]
# ## 6. The teacher, and the stop-gradient
#
# What if the teacher *is* the student (momentum 0)? What if it never moves (momentum 1)? And what if the gradient flows into the targets as well?
#
# **Predict.** The teacher is the student itself, and the stop-gradient is gone: the loss may change question and answer together. What happens to the targets?
#
# - a: they become sure, since a sure target has the smallest entropy;
# - b: they become uniform;
# - c: the center holds them where they are.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
no_stop = train("no stop-gradient", lab.VARIANTS["no stop-gradient"])
with_stop, without = [one["scores"]["of_one_end"] for one in (healthy, no_stop)]
settle(guess, {"a": "the targets are surer than in the healthy run",
               "b": "the targets are nearly uniform", "c": "nothing much changes"},
       "a" if without < 0.5 * with_stop else "b" if without > 0.8 * math.log(128) else "c")

# %% [markdown]
# The run is not at its end: the entropy of one is at nine tenths of ln K, just where `diagnose` parts "uniform" from "one mixed answer", and the rounding of your processor may take it to either side. At update 100 the shipped runs are at 0.99. And the student's own answers, for one batch of views?

# %% tags=["nbval-ignore-output"]
views = lab.draw_views(2, torch.Generator().manual_seed(0))
for name in ("healthy", "no stop-gradient"):
    with torch.no_grad():
        p = (live[name]["student"](views) / 0.1).softmax(-1)
    votes = p.argmax(-1).flatten().bincount()
    print(f"{name:17} first choices of {votes.sum()} views: {used_prototypes(p)} prototypes; "
          f"the most frequent one has {votes.max()} views")

# %%
TEACHERS = ["healthy", "teacher = student", "momentum 0.5", "momentum 0.998",
            "frozen random teacher", "no stop-gradient"]
show_seeds(["teacher = student", "momentum 0.5", "momentum 0.998", "frozen random teacher", "no stop-gradient"])

# %%
show_scores(["untrained", *TEACHERS])

# %% [markdown]
# Row by row, beside a healthy KL of 0.43:
#
# - **Teacher = student** (momentum 0): the k-NN is 0.32, no better than the untrained network's 0.34, and the attention is 0.19, far below the healthy run's 0.68. The entropies swing: each update changes the question at once. The gap is open, so `diagnose` calls this run healthy; the rank, 1.8 in section 8, warns. No single number sees every failure. In the paper, too, a copy of the student as teacher does not converge (section 5.2): center and sharpening avoid collapse *in the presence of a momentum teacher*.
# - **Momentum 0.5**: half of the old teacher is left after one update (its *half-life*), which is still too short. The curves swing as well, and the k-NN is 0.36, little above the untrained network's. The attention, 0.60, shows it less.
# - **Momentum 0.998**: the half-life is 346 updates, and the run has 100. The teacher hardly moves; the KL is 0.87.
# - **Frozen random teacher**: it can't collapse, for its answers never change. The KL stays at 1.97, and yet the k-NN, 0.40, is level with the healthy run's, and the attention, 0.58, not far below: much of what 100 updates teach here takes no teacher that learns.
# - **No stop-gradient**: a free gradient first makes the targets sure, and both entropies fall below 1. Then they end *uniform* (in the figure orange lies under green). The student's own answers are nearly all the same, as the first choices above show. The targets come from the same answers, less the center, and little is left: the center hides one collapse under another. The loss, 8.43, lies far above ln K = 4.85. The attention is no better than the untrained network's.

# %% [markdown] tags=["note"]
# **Teacher's note · 10 minutes.** The misconception: "the stop-gradient only saves memory". Ask what the loss rewards if it may also change the question: an easy question. Then ask why the frozen teacher does not collapse (its answers can't move), and why that is no way to learn for long.

# %% [markdown]
# ## 7. Sinkhorn in place of the center
#
# The center balances the prototypes slowly, over many batches. SwAV, and later DINOv2, balance them within each batch. Take $e^{t/\tau}$ for every view and prototype. Divide each column by its sum: all prototypes get the same weight. Divide each row by its sum: each view has a distribution again, and the columns are a little off. Repeat both: this is the **Sinkhorn-Knopp** algorithm.

# %%
logits = torch.tensor([[2.0, 1.0, 0.0], [2.0, 0.0, 0.5], [1.5, 0.2, 0.0]])
q = torch.exp(logits)
for step in range(3):
    q = q / q.sum(0, keepdim=True)
    q = q / q.sum(1, keepdim=True)
    print(f"round {step + 1}: the columns sum to", [round(x, 2) for x in q.sum(0).tolist()])
print("softmax alone:            ", [round(x, 2) for x in logits.softmax(-1).sum(0).tolist()])

# %% [markdown]
# **Your turn 6 · easy · 5 minutes · Sinkhorn-Knopp.** Write it for `logits` (N, K) with a temperature. Start from exp(logits / temp), without a softmax. In each round first the columns, then the rows. What should come out: (N, K), each row sums to 1.
#
# <details><summary>Hint</summary>
#
# `q.sum(0, keepdim=True)` holds the sums of the columns, one for each prototype; `q.sum(1, keepdim=True)` those of the rows.
#
# </details>

# %% tags=["stub", "equality"]
def sinkhorn(logits, temp, n_iterations=3):
    """logits (N, K) -> targets (N, K): rows sum to 1, columns to about N / K."""
    ### BEGIN SOLUTION
    q = torch.exp(logits / temp)
    for _ in range(n_iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q
    ### END SOLUTION

sinkhorn = checks.sinkhorn(sinkhorn)

# %% [markdown]
# It agrees with the lab's. With many rounds the columns come out even: 12 views, 4 prototypes, 3 for each.

# %% tags=["equality"]
logits = torch.randn(12, 4, generator=generator)
torch.testing.assert_close(sinkhorn(logits, 0.5), lab.sinkhorn(logits, 0.5))
many = sinkhorn(logits, 0.5, 50)
torch.testing.assert_close(many.sum(1), torch.ones(12))
torch.testing.assert_close(many.sum(0), torch.full((4,), 3.0), rtol=1e-3, atol=1e-3)
print("columns after 50 rounds:", [round(x, 2) for x in many.sum(0).tolist()])

# %% [markdown]
# **Predict.** Sinkhorn stands in place of the center; a batch has 64 target rows for 128 prototypes. How many prototypes does the teacher use, compared with the healthy run?
#
# - a: fewer;
# - b: about as many (within a quarter);
# - c: more.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
balanced = train("Sinkhorn", lab.VARIANTS["Sinkhorn"], sinkhorn=sinkhorn)
ratio = used_prototypes(balanced["targets"]) / used_prototypes(healthy["targets"])
settle(guess, {"a": "fewer", "b": "about as many", "c": "more"},
       "a" if ratio < 0.75 else "c" if ratio > 1.25 else "b")

# %%
show_run("healthy", "Sinkhorn")

# %% [markdown]
# The entropy of the mean lies at ln K from the first update on: balance is enforced in each batch. One prototype can't win. Uniform would still be balanced; what keeps the orange line below the green one is the teacher's low temperature. The gap here is about 0.6, just above the bound of 0.49, a tenth of ln K; the three shipped runs end at 0.7 to 1.0.

# %% [markdown]
# ## 8. What differs by more than the seeds do?
#
# The shipped table also holds variants that were not run here: no small views, another number of prototypes, no batch norm in the head, one low temperature for both networks. A difference counts only if it is larger than what another seed does.

# %% [markdown]
# **Your turn 7 · easy · 5 minutes · beyond the seeds.** `a` and `b` are lists of one number a seed. Give the difference of the means, b less a, divided by the spread of a single run: the root of the mean of the two variances, each with n − 1 (`ddof=1`). What should come out: about 2 for `[1, 2, 3]` and `[3, 4, 5]`.
#
# <details><summary>Hint</summary>
#
# `np.var(a, ddof=1)` is the variance with n − 1. Average the two, then take the root.
#
# </details>

# %% tags=["stub", "equality"]
def beyond_seeds(a, b):
    """Two lists of one number a seed -> (mean of b - mean of a) / spread of a run."""
    ### BEGIN SOLUTION
    spread = math.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2)
    return (np.mean(b) - np.mean(a)) / spread
    ### END SOLUTION

beyond_seeds = checks.beyond_seeds(beyond_seeds)

# %% [markdown]
# With three seeds a value within ±2 says nothing, one beyond ±4 says something, and what lies between is open. (Seeds alone give a 2 or more once in 14 comparisons, a 4 once in 124, and the table has 28.) Each variant against the healthy one:

# %%
print(f"{'means over the seeds':26}{'diagnosis':>18}{'used':>6}{'rank':>6}{'k-NN':>14}{'vs healthy':>11}{'above':>14}{'vs healthy':>11}")
for name in lab.VARIANTS:
    setting = lab.VARIANTS[name]
    kinds = [diagnose(one, mean, setting.out_dim)
             for one, mean in zip(scores_of(name, "of_one_end"), scores_of(name, "of_mean_end"))]
    kind = kinds[0] if len(set(kinds)) == 1 else "differs by seed"
    line = f"{name:26}{kind:>18}{np.mean(scores_of(name, 'used')):6.0f}{np.mean(scores_of(name, 'rank')):6.1f}"
    for key in ("knn", "above_blind"):
        values, healthy_values = scores_of(name, key), scores_of("healthy", key)
        apart = f"{beyond_seeds(healthy_values, values):+.1f}" if name != "healthy" else ""
        line += f"{np.mean(values):9.2f} ±{spread(values):4.2f}{apart:>11}"
    print(line)

# %%
names = ["untrained", *lab.VARIANTS]
figure, axes = plt.subplots(1, 2, figsize=(9.5, 4.6), sharey=True, layout="constrained")
for axis, key, title in zip(axes, ["knn", "above_blind"], ["20-NN accuracy", "attention above blind"]):
    for row, name in enumerate(names):
        values = scores_of(name, key)
        axis.errorbar(np.mean(values), row, xerr=spread(values), fmt="|", color="0.4",
                      ms=14, capsize=3)
        axis.plot(values, [row] * len(values), "o", ms=5, alpha=0.8,
                  color="tab:blue" if name == "healthy" else "0.6" if name == "untrained" else "tab:orange")
    axis.axvline(np.mean(scores_of("untrained", key)), color="gray", ls=":", lw=1)
    axis.axvline(np.mean(scores_of("healthy", key)), color="tab:blue", ls=":", lw=1)
    axis.set_title(title, fontsize=10)
axes[0].axvline(measured["histogram"], color="tab:red", ls="--", lw=1, label="colour histogram")
axes[0].legend(fontsize=8, loc="lower left")
axes[0].set_yticks(range(len(names)), names, fontsize=9)
axes[0].invert_yaxis()

# %% [markdown]
# In k-NN three variants are more than 4 below the healthy run: no batch norm in the head, momentum 0.5 and the student as its own teacher. No stop-gradient lies between 2 and 4. All others are within 2, the runs without center or sharpening among them.
#
# The attention gives another order. No stop-gradient and the student as its own teacher (both −11) are far below the healthy run. Five lie between 2 and 4 below it: no batch norm in the head (−3.4, for its seeds lie far apart), the frozen teacher, momentum 0.5, and, just, one low temperature and K = 8. **No variant is above the healthy run by more than 2, in either number**: this is the strongest support that the table gives to DINO's parts.
#
# Two diagnoses differ by seed. Without a center one of three gaps ends above the bound of a tenth of ln K. With K = 1,024 one gap is 9 % of ln K, just below it; the k-NN and the attention of that run are near the healthy run's.
#
# The rank is near 1 (1.5 to 1.8) in the three variants with the lowest attention: the student as its own teacher, no stop-gradient, no batch norm. Momentum 0.5 comes next, with 2.5. Without center or sharpening the rank is above the healthy run's, so a high one proves nothing.

# %% [markdown] tags=["note"]
# **Teacher's note · 10 minutes.** Ask each reader for one row that they may *not* draw a conclusion from. Three seeds give a rough spread only. The misconception: "the mean is higher, so the variant is better".

# %% [markdown]
# ## 9. Beside the paper
#
# The paper's table 7 (ViT-S/16, ImageNet, 300 epochs, k-NN), and its figure 6 for the student as teacher:

# %%
paper = {"healthy": ("DINO as it is", 72.8), "teacher = student": ("no momentum: teacher = student", 0.1),
         "Sinkhorn": ("Sinkhorn in place of the center", 72.2), "no multi-crop": ("no multi-crop", 67.9)}
print(f"{'k-NN accuracy in %':34}{'paper':>6}{'here':>12}")
for name, (part, there) in paper.items():
    values = 100 * np.array(scores_of(name, "knn"))
    print(f"{part:34}{there:6.1f}{values.mean():7.1f} ±{spread(values):4.1f}")
print(f"{'untrained':34}{'':6}{100 * np.mean(scores_of('untrained', 'knn')):7.1f}")
print(f"{'colour histogram':34}{'':6}{100 * measured['histogram']:7.1f}")

# %% [markdown]
# - **The colour histogram** is above every row here: the table ranks recipes by 100 updates of a tiny network, it shows no useful features.
# - **The student as its own teacher** fails in both: at chance there, no better than the untrained network after 100 updates here.
# - **Sinkhorn** does as well as the center in both, with a momentum teacher.
# - **No multi-crop** costs five points in the paper, and nothing that can be seen here. A small view has 8 pixels, and many hold no creature.
# - **Batch norm**: the paper's head has none and trains well. Here the run without it becomes uniform. We think that the tiny network needs batch norm to spread its features in the first updates.
# - **K**: the paper gains a little from more prototypes, up to 65,536. Here the k-NN of 8, 128 and 1,024 prototypes is 0.38, 0.41 and 0.41: both steps from 128 are within ±1.
# - **One low temperature** (0.06 for both) becomes uniform as well: what counts is that the teacher is *sharper than the student*, not that it is sharp.

# %% [markdown]
# ## 10. What a collapsed network looks at
#
# Eight pictures that no network was trained on, and the attention of four networks from this notebook, the mean of their four heads.

# %% tags=["nbval-ignore-output"]
rows = {"untrained": lab.build(lab.HEALTHY, seed=0), "healthy": healthy["student"],
        "no center": no_center["student"], "no sharpening": no_sharpening["student"]}
above = {name: scores["above_blind"] for name, scores in ledger if name in rows}
figure, axes = plt.subplots(5, 8, figsize=(9, 5.4), layout="constrained")
axes[0, 0].set_ylabel("picture", fontsize=9)
for k in range(8):
    axes[0, k].imshow(queries.images[k].permute(1, 2, 0))
for axis_row, (name, network) in zip(axes[1:], rows.items()):
    maps = lab.attention_of(network, queries, 8).mean(1)
    for k in range(8):
        axis_row[k].imshow(maps[k], cmap="inferno", vmin=0, vmax=0.1)
        axis_row[k].contour(np.linspace(-0.5, 5.5, 24), np.linspace(-0.5, 5.5, 24),
                            queries.masks[k].float(), levels=[0.5], colors="white", linewidths=0.8)
    axis_row[0].set_ylabel(f"{name}\nabove {above[name]:.2f}", fontsize=9)
for axis in axes.flat:
    axis.set_xticks([]), axis.set_yticks([])

# %% [markdown]
# All maps have one colour scale. The number is *above blind* on 200 pictures, and the white line the creature's outline, which no network has seen. The untrained maps are even. The healthy network's lie on the creature in most pictures. Eight pictures don't rank the two collapsed networks; their numbers lie between those two rows: they had learned something before their answers became the same.

# %% [markdown]
# ## Summary
#
# - A collapse is an answer that doesn't depend on the picture. There are three: one prototype, uniform, one mixed answer. The gap between two entropies shows all three; the loss by itself proves none: it is lowest in one of them, and at ln K in another. Bad features behind an open gap can show in a rank near 1 and in the attention.
# - The center works against one prototype, the sharpening against uniform. Each alone goes too far.
# - Both need a teacher that is not the student. The stop-gradient and the slow average keep the question fixed while the student learns to answer it.
# - Sinkhorn balances each batch by force and works as well as the center.
# - A head can collapse while k-NN still looks fair. Watch the entropies from the first update.
# - One seed is an anecdote; three seeds give a rough spread.
#
# ## Exercises

# %% [markdown]
# **Exercise 8 · medium · 10 minutes · half-lives.** Write a function that gives a `Setting` like the one it gets, but with a constant momentum whose half-life is `updates`: after so many updates half of the old teacher is left. What should come out: for a half-life of 1 the `momentum` and the `momentum_end` are 0.5.
#
# <details><summary>Hint</summary>
#
# `dataclasses.replace(setting, momentum=..., momentum_end=...)` gives a changed copy; import `dataclasses` inside your function. Solve $m^{\text{updates}} = \tfrac12$.
#
# </details>

# %% tags=["stub", "equality"]
def with_half_life(setting, updates):
    """A Setting with a constant momentum: half of the teacher is left after so many updates."""
    ### BEGIN SOLUTION
    import dataclasses
    momentum = 0.5 ** (1 / updates)
    return dataclasses.replace(setting, momentum=momentum, momentum_end=momentum)
    ### END SOLUTION

with_half_life = checks.with_half_life(with_half_life)

# %% [markdown]
# **Predict.** Half-lives of 1, 10 and 1,000 updates, in runs of 40. In which run is the KL largest at the end?
#
# - a: half-life 1;
# - b: half-life 10;
# - c: half-life 1,000.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
sweep = {}
for half_life in (1, 10, 1000):
    setting = with_half_life(lab.HEALTHY, half_life)
    sweep[half_life] = lab.run(setting, seed=0, updates=40, loss=lab_loss, signs=vital_signs)
ends = {h: one["scores"]["kl_end"] for h, one in sweep.items()}
answers = {"a": 1, "b": 10, "c": 1000}
settle(guess, {letter: f"half-life {h}, KL {ends[h]:.2f}" for letter, h in answers.items()},
       max(answers, key=lambda letter: ends[answers[letter]]))

# %% tags=["nbval-ignore-output"]
figure, axes = plt.subplots(1, 3, figsize=(9.5, 2.8), layout="constrained")
for axis, key, title in zip(axes, ["of_one", "of_mean", "kl"], ["entropy of one", "entropy of the mean", "KL"]):
    for half_life, one in sweep.items():
        axis.plot(one["log"][key], label=f"half-life {half_life}")
    axis.set(title=title, xlabel="update", ylim=(0, None))
_ = axes[0].legend(fontsize=8)

# %% [markdown]
# With a half-life of 1 the teacher is nearly the student: the curves swing. With 1,000 it stays where it was, and the student runs after a fixed target. Change the three half-lives and run the cells again: where does the swing begin?
