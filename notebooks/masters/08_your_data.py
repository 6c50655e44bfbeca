# %% [markdown]
# # 08 · Your data: from a folder of pictures to a teacher
#
# <!-- badge -->
#
# **You will** plan a run on a folder of your own pictures before it starts: which settings, how long, how much memory. Then you run it, read it without labels, go on from pretrained weights, and publish the teacher.
#
# **You need** the teacher of [notebook 04](04_teacher.ipynb) and the signs of collapse of [notebook 07](07_collapse_lab.ipynb). You write five pieces in about 32 minutes; reading and runs take 40 more. Running the whole notebook takes about 40 seconds of one CPU core.
#
# Before: [07 · The collapse lab](07_collapse_lab.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# Put the path of your own folder into `FOLDER`. Folders inside it are taken for classes; without them DINO trains all the same. With `None` this notebook writes 400 embedded pictures into a new folder, in ten classes, and uses that.

# %%
FOLDER = None  # for example "holiday/photographs"
MINUTES = 1  # how long may the run take?

# %% tags=["equality"]
import math
import numpy as np
import torch
from torch import nn
from dino_lib.course import your_data as checks
from dino_lib.course.prediction import settle

# %%
import shutil, tempfile, time
from dataclasses import replace
from pathlib import Path
import matplotlib.pyplot as plt
from dino_lib import PRESETS, Shapes, diagnose, load_teacher, read_history, train
from dino_lib.course import collapse_runs as lab
from dino_lib.course.going_on import RECIPES, TWO_TEACHERS, advised, go_on, read_measured
from dino_lib.data.folders import FolderOfImages
from dino_lib.run.advise import advise
from dino_lib.run.survey import look_at
from dino_lib.teachers.load import find_teacher
_ = torch.manual_seed(0)
torch.set_num_threads(1)
work = Path(tempfile.mkdtemp())
if FOLDER is None:
    FOLDER, pictures = work / "pictures", Shapes(400)
    for i in range(400):
        image, label = pictures[i]
        place = FOLDER / f"kind {label}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:03d}.png")

# %% [markdown]
# ## 1. Look before you train
#
# A minute spent looking at the pictures saves an hour of training. Are they upright? Are there blank ones? Is the object in the middle?

# %%
files = FolderOfImages(FOLDER)
figure, axes = plt.subplots(1, 8, figsize=(9, 1.5), layout="constrained")
for axis, i in zip(axes, np.linspace(0, len(files) - 1, 8).astype(int)):
    picture, label = files[i]
    axis.imshow(picture)
    axis.set_title(files.classes[label] if label >= 0 else "no class", fontsize=8)
    axis.axis("off")

# %% [markdown]
# The library looks at a sample too. It tells how many pictures there are to train on, how large they are, and whether any has colour. If there are classes, every fifth picture is held back. So a k-NN can be measured on pictures that the network has never seen.

# %%
survey = look_at(FOLDER)
print(f"{survey.images} to train on, {survey.queries} held back, {survey.short_side} px along the shorter side, "
      f"{survey.channels} channels")

# %% [markdown]
# Files are slow to decode. A run decodes each one once, to a small square, and keeps the squares: the *store*. A number of the store is one byte. A coloured pixel has three of them.

# %% [markdown]
# **Your turn 1 · easy · 3 minutes · the store.** Write how much room the store takes, in mebibytes (MiB): 2²⁰ bytes each. What should come out: 26.4 for 4,000 coloured pictures at 48 pixels.
#
# <details><summary>Hint</summary>
#
# Bytes first: pictures times channels times pixels. A square of side `size` has `size**2` pixels.
#
# </details>

# %% tags=["stub", "equality"]
def store_mebibytes(images, size, channels):
    """images squares of side size, one byte for each channel of a pixel -> MiB."""
    ### BEGIN SOLUTION
    return images * channels * size**2 / 2**20
    ### END SOLUTION

store_mebibytes = checks.store_mebibytes(store_mebibytes)

# %% tags=["equality"]
from dino_lib.run.advise import store_bytes
from dino_lib.run.config import Config
from dino_lib.run.survey import Survey
for images, size, channels in [(4000, 48, 3), (700, 72, 1)]:
    tensor = torch.zeros(images, channels, size, size, dtype=torch.uint8)
    seen = Survey(images, 100, channels, (0.5,) * channels, (0.2,) * channels, 0.0, 0)
    np.testing.assert_allclose(store_mebibytes(images, size, channels), tensor.nbytes / 2**20)
    np.testing.assert_allclose(store_mebibytes(images, size, channels) * 2**20, store_bytes(Config(store_size=size), seen))
    print(f"{images} pictures, {size} px, {channels} channels: {store_mebibytes(images, size, channels):.1f} MiB")

# %% [markdown]
# What would yours take, at the sizes of the presets?

# %%
for name in ("pocket", "demo", "laptop", "colab"):
    size = PRESETS[name].store_size
    print(f"{name:7} {size:3} px: {store_mebibytes(survey.images, size, survey.channels):6.2f} MiB for your pictures, "
          f"{store_mebibytes(1_000_000, size, 3) / 1024:5.1f} GiB for a million")

# %% [markdown] tags=["note"]
# **Teacher's note · 10 minutes.** Ask: "Which pictures of yours would you rather not train on?" Screenshots, near copies and blank frames come up. The common mistake is to start a run on 20,000 files at full size, where decoding takes longer than the training.

# %% [markdown]
# ## 2. What to set
#
# Three numbers decide most settings: how many pictures, how many pixels, how many minutes.
#
# | what you have | what it decides | why |
# | --- | --- | --- |
# | minutes, and the time of an update | the number of updates, so the preset | a larger network wants more updates before it is worth its price |
# | updates | momentum, warm-up | the teacher's memory is a share of the run |
# | pictures | batch, K | an epoch wants several updates; prototypes want pictures |
# | pixels | image size, views, patch | a picture that is blown up shows nothing new |
#
# Begin with the time. A run of so many seconds has a whole number of updates. An epoch has as many updates as there are whole batches.

# %% [markdown]
# **Your turn 2 · medium · 7 minutes · the length.** Write how many epochs fit into `seconds`, if an update takes `update` seconds. Round the updates down, and the updates of an epoch too. Epochs may be fractions; 800 are the most, as the paper's longest runs end there. What should come out: 166.5 for 100 seconds, 0.3 s an update, 130 pictures and a batch of 64.
#
# <details><summary>Hint</summary>
#
# `int(seconds / update)` updates, `images // batch_size` of them in an epoch. `min` at the end.
#
# </details>

# %% tags=["stub", "equality"]
def epochs_that_fit(seconds, update, images, batch_size):
    """-> epochs, at most 800; of each epoch, what fills no batch is left out."""
    ### BEGIN SOLUTION
    updates = int(seconds / update)
    per_epoch = images // batch_size
    return min(800, updates / per_epoch)
    ### END SOLUTION

epochs_that_fit = checks.epochs_that_fit(epochs_that_fit)

# %% [markdown]
# Next the teacher. With momentum m it has forgotten half of what it was after h updates, where mʰ = ½. The preset `demo` starts with a half-life of 2.3 % of its run and ends with 9.2 %; the adviser takes 2 % and 8.5 %. A run of another length needs another momentum. (In a run of fewer than some 1,200 updates that would be a very short memory: there the adviser takes 25 and 100 updates; you will see why.)

# %% [markdown]
# **Your turn 3 · medium · 6 minutes · the teacher's memory.** Write the momentum whose half-life is `share` of the `updates`, and 0.9 at least. What should come out: 0.977 for 1,500 updates and a share of 0.02.
#
# <details><summary>Hint</summary>
#
# The half-life is `share * updates`. Solve mʰ = 0.5 for m: it's a root.
#
# </details>

# %% tags=["stub", "equality"]
def momentum_for(updates, share):
    """-> the momentum that halves the teacher's memory in share * updates updates, 0.9 at least."""
    ### BEGIN SOLUTION
    half_life = share * updates
    return max(0.9, 0.5 ** (1 / half_life))
    ### END SOLUTION

momentum_for = checks.momentum_for(momentum_for)

# %% tags=["equality"]
from dino_lib.run.advise import epochs_in, momentum_of
for case in [(100, 0.3, 130, 64), (3600, 0.1, 60, 16), (3600, 0.45, 5000, 64)]:
    np.testing.assert_allclose(epochs_that_fit(*case), epochs_in(*case))
for updates, share in [(1500, 0.02), (1500, 0.085), (100, 0.02), (20000, 0.02)]:
    np.testing.assert_allclose(momentum_for(updates, share), momentum_of(share * updates), atol=1e-4)
    print(f"{updates:5} updates, {share:.1%} of the run: momentum {momentum_for(updates, share):.4f}")

# %% [markdown]
# K, the number of prototypes, follows from the pictures: about one for four of them, 64 at least. The batch is the preset's, or less where an epoch would have fewer than eight updates. The adviser does all of this. It looks at a sample, takes a few updates on noise to see how long they take here, and says why. In a shell it is `dino advise FOLDER --minutes 60`.

# %% tags=["nbval-ignore-output"]
advice = advise(FOLDER, MINUTES, data_root=str(work / "data"), output_dir=str(work / "run"), device="cpu",
                clock=time.process_time)
print(advice.text())

# %% [markdown]
# Read the reasons from the top. (The adviser scales the learning rate with the root of the batch, as DINOv2 does, not with the batch, as the paper's rule in notebook 05. And it starts higher: the paper's 0.0005 is for large networks and hundreds of thousands of updates.) Here the minutes are the processor's, on one core: other programs don't count. The time and the memory stand there before anything has started. The last line is the command.
#
# Does the advice hold? `benchmarks/advise.py` asked it for 0.4 minutes of processor time on each of five folders, and trained as it said: 1,000 embedded creatures, 800 photographs of Caltech-101 and 800 of Imagenette, 500 grey photographs, and a folder of 60. Three seeds each; the table has the first.

# %%
seeds = [read_measured(advised(seed))["rows"] for seed in range(3)]
print(f"{'':12}pictures updates   K   minutes said, taken   entropy of one, of the mean")
for name, row in seeds[0].items():
    print(f"{name:12}{row['images']:8}{row['updates']:8}{row['K']:5}{row['minutes_said']:12.2f}{row['minutes_taken']:8.2f}"
          f"{row['row_entropy']:16.2f}{row['mean_entropy']:14.2f}")
apart = [row["gap"] for rows in seeds for row in rows.values()]
taken = [row["minutes_taken"] for rows in seeds for row in rows.values()]
print(f"all {len(apart)} runs: entropies {min(apart):.2f} to {max(apart):.2f} apart at the end, {min(taken):.2f} to {max(taken):.2f} minutes taken")
of_demo = [line for line in read_history(find_teacher("demo")[1]) if "loss" in line]
gaps = [(line["mean_entropy"] - line["teacher_entropy"]) / math.log(PRESETS["demo"].out_dim) for line in of_demo]
print(f"the shipped demo: {min(gaps):.2f} apart at update {of_demo[int(np.argmin(gaps))]['step']}, {gaps[-1]:.2f} at the end")

# %% [markdown]
# The entropies are shares of ln K. In a collapsed run the two are equal (notebook 07). They come close for a while in a healthy one too: the last line shows it for the shipped teacher. Before you look at the k-NN: *untrained* is the same network before its first update, and the colour histogram sees nothing but colours.

# %% [markdown]
# **Predict.** What does such a short run do on the folder of 60 pictures?
#
# a) The run collapses. b) It doesn't collapse, and the k-NN is better than the untrained network's by ten points or more. c) It doesn't collapse, and the k-NN gains less than ten points.

# %%
guess = "?"  # a, b or c

# %%
gain = np.mean([rows["sixty"]["trained"]["knn"] - rows["sixty"]["untrained"]["knn"] for rows in seeds])
measured = "a" if min(rows["sixty"]["gap"] for rows in seeds) < 0.03 else "b" if gain >= 0.1 else "c"
settle(guess, {"a": "it collapses", "b": "it gains ten points or more", "c": "it gains less than ten points, in the mean"}, measured)
figure, axis = plt.subplots(figsize=(9, 2.8), layout="constrained")
place = np.arange(len(seeds[0]))
for shift, (key, label, colour) in enumerate([("untrained", "untrained", "0.75"), ("histogram", "colour histogram", "tab:orange"),
                                              ("trained", "trained as advised", "tab:blue")]):
    knn = np.array([[100 * row[key]["knn"] for row in rows.values()] for rows in seeds])
    x = place + 0.27 * (shift - 1)
    axis.bar(x, knn.mean(0), 0.25, label=label, color=colour)
    axis.plot(np.tile(x, 3), knn.ravel(), "k.", ms=3, label="a seed" if shift == 2 else None)
    for at, mean, top in zip(x, knn.mean(0), knn.max(0)):
        axis.text(at, top + 2, f"{mean:.0f}", ha="center", fontsize=8)
axis.hlines([100 * row["chance"] for row in seeds[0].values()], place - 0.4, place + 0.4, color="k", lw=1, label="chance")
axis.set_xticks(place, [f"{name}\n{r['images']} pictures, {r['queries']} queries" for name, r in seeds[0].items()], fontsize=8)
axis.set_ylabel("20-NN accuracy, %"), axis.set_ylim(0, 100)
_ = axis.legend(fontsize=8, ncols=5)

# %% [markdown]
# Some 130 to 500 updates are little, and the bars say so: on the three folders of photographs with more than 60 the colour histogram is ahead with every seed, and on each of them a run or two end below their own start, or level with it. On the creatures the trained network and the histogram are about level. The sixty gain most, and are still not ahead of the histogram. A folder of 60 has a dozen queries, and one query more or less moves its dot by eight points. None of these runs collapses (here that is a gap below 3 %; 05 draws the line at 5, 07 at 10: rules of thumb for runs of other lengths), and they end about in time, though on a crowded machine a processor's minute is worth less.
#
# Are more minutes better? The same folders, advised for 3 minutes, seed 0, on a fast core (a slower one has time for fewer updates):

# %%
longer = read_measured(advised(0, minutes=3))["rows"]
print(f"{'':12}updates   rank before, after   20-NN: untrained, histogram, trained")
for name, row in longer.items():
    print(f"{name:12}{row['updates']:7}{row['untrained']['rank']:14.1f}{row['trained']['rank']:7.1f}"
          f"{row['untrained']['knn']:17.0%}{row['histogram']['knn']:10.0%}{row['trained']['knn']:10.0%}")

# %% [markdown]
# Now each run is ahead of its own start: by 48 points on the creatures, 21 on Caltech-101, 16 on Imagenette, 13 on the grey photographs and 42 on the sixty, which is five queries. (On the creatures seed 0 starts some ten points below the other two seeds of the table before, so part of that is luck.) The colour histogram is clearly passed on the creatures alone, by 36 points. On the large folders of photographs the runs have drawn level with it: they are 3 to 5 points ahead, with 100 to 160 queries and one seed, which is within the error. On the sixty it is one query of 12. A teacher of photographs takes an hour or two, of one core or two (`photos`: 79 % on Imagenette's ten classes, the histogram 47 %), or pretrained weights.
#
# How long should the teacher's memory be? The creatures once more, in a shorter and in a longer run, each with two teachers: with half-lives of 2 % of the run at the start and 8.5 % in the end, and with 5 % and 20 %.

# %%
print("updates   half-life: start, end      seed   gap / ln K   rank   20-NN: untrained, trained")
for row in sorted(read_measured(TWO_TEACHERS)["rows"], key=lambda row: (row["updates"], row["half_lives"])):
    n = row["updates"]
    start, end = [f"{share:.1%} = {share * n:.0f}" for share in row["half_lives"]]
    print(f"{n:7}{start:>12},{end:>13}{row['seed']:7}{row['gap']:13.2f}{row['trained']['rank']:7.1f}"
          f"{row['untrained']['knn']:18.0%}{row['trained']['knn']:9.1%}")

# %% [markdown]
# In the short run the fast teacher ruins the features: they keep one or two directions (*rank*), the doctor names it with every seed, and two of the runs end below their own start. In the long run the same shares are the better ones, by 6 to 10 points. In *updates* the two winners are alike: 25 and 102, 26 and 110. What longer runs want, these two lengths can't say. A teacher that is close behind the student asks for little that the student doesn't already say. That is why the adviser takes the shares, but 25 and 100 updates at least. Watch the rank, and if it falls towards 1, take a slower teacher.

# %% [markdown] tags=["note"]
# **Teacher's note · 15 minutes.** The misconception here: "more prototypes are better, the paper has 65,536". Ask how many pictures ImageNet has for each prototype (about 20), and how many a folder of 300 would have. Let the room run `dino advise` with 1, 10 and 60 minutes and find which settings change.

# %% [markdown]
# ## 3. The run
#
# The run below is cut to 40 updates, so that this page stays quick. In these a teacher with a memory of 25 updates and more would keep half of its start. So this one is fast, with half-lives of 7 and 8 updates (momentum 0.9, the floor of *your turn* 3, at the start), and you will see what that does. Yours should take the whole command.

# %% tags=["nbval-ignore-output"]
per_epoch = survey.images // advice.config.batch_size
length = min(advice.config.epochs, 40 / per_epoch)
short = replace(advice.config, epochs=length, warmup_epochs=0.15 * length, eval_every=length, eval_limit=200,
                log_every=2, progress=False, precision="fp32", momentum=momentum_for(40, 0.05), momentum_end=momentum_for(40, 0.2))
shutil.rmtree(short.output_dir, ignore_errors=True)  # of the time before, if this runs again
teacher, history = train(short)
findings = diagnose(history, short)
print("the doctor finds:", ", ".join(finding.name for finding in findings) or "nothing")
last = [line for line in history if "loss" in line][-1]
print(f"the end, in shares of ln K: gap {(last['mean_entropy'] - last['teacher_entropy']) / math.log(short.out_dim):.2f}, "
      f"loss above the entropy of one {(last['loss'] - last['teacher_entropy']) / math.log(short.out_dim):.2f}")

# %%
lines = [line for line in history if "loss" in line]
steps, ln_k = [line["step"] for line in lines], math.log(short.out_dim)
figure, axes = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
for key, label, colour in [("loss", "loss", "k"), ("teacher_entropy", "entropy of one", "tab:red"), ("mean_entropy", "entropy of the mean", "tab:blue")]:
    axes[0].plot(steps, [line[key] / ln_k for line in lines], color=colour, label=label)
axes[0].set_ylabel("share of ln K"), axes[0].set_ylim(0, 1.3), axes[0].legend(fontsize=8)
axes[1].plot(steps, [line["feature_rank"] for line in lines], color="tab:green")
axes[1].set_ylabel("rank of the features"), axes[1].set_ylim(0, None)
for axis in axes:
    axis.set_xlabel("update")

# %% [markdown]
# Two things to look for, and neither needs a label. Does the red line stay away from the blue one? Then the teacher says different things of different pictures. Does the rank stay above a few directions? With the embedded pictures the lines come close, to 0.06 of ln K, and the rank falls from 13 to 3. (This rank is that of one batch's views. The table's was of whole pictures: compare each with its own start.) The doctor names dead prototypes: from update 28 on about five of the 64, or fewer, are any view's first choice. And at the end the loss leaves the entropies behind: the student no longer follows its teacher. So this short run isn't quite well. It hasn't collapsed either, where the lines would meet and the rank be near 1: by the card in section 6 its k-NN is ahead of the untrained network's, if not of the colour histogram's.

# %% [markdown]
# ## 4. Which sign tells how good a run is?
#
# Without labels there is no k-NN. Can the loss, the rank or the gap between the entropies stand in for it? Notebook 07 shipped 45 runs: 15 recipes, healthy and ill, three seeds each. For each there is a k-NN to compare with.
#
# The scales differ, so compare *ranks*: the lowest number gets 0, the next 1. With $d_i$ the difference between the two ranks of run i, Spearman's rank correlation of n runs is
#
# $$\rho = 1 - \frac{6 \sum_i d_i^2}{n\,(n^2 - 1)}$$
#
# It is 1 if both put the runs in the same order, −1 if in opposite orders, and about 0 if one says nothing of the other.

# %% [markdown]
# **Your turn 4 · hard · 10 minutes · rank correlation.** Write it for two lists of numbers, all different. What should come out: one number from −1 to 1; −1 for `[1, 2, 3, 4]` and `[9, 7, 5, 3]`.
#
# <details><summary>Hint</summary>
#
# `np.argsort(x)` gives the order: which element comes first. `np.argsort` of that order gives the ranks.
#
# </details>

# %% tags=["stub", "equality"]
def rank_correlation(a, b):
    """Two lists of n different numbers -> Spearman's correlation, from -1 to 1."""
    ### BEGIN SOLUTION
    d = np.argsort(np.argsort(a)) - np.argsort(np.argsort(b))
    n = len(d)
    return 1 - 6 * (d**2).sum() / (n * (n**2 - 1))
    ### END SOLUTION

rank_correlation = checks.rank_correlation(rank_correlation)

# %% tags=["equality"]
from scipy.stats import spearmanr
random = np.random.default_rng(0)
a = random.normal(size=30)
b = a + random.normal(size=30)
np.testing.assert_allclose(float(rank_correlation(a, b)), spearmanr(a, b)[0])
print(f"equal to SciPy's: {rank_correlation(a, b):.3f}")

# %% [markdown]
# **Predict.** How closely does the best of the three signs follow the k-NN over the 45 runs, whatever its direction?
#
# a) Closely: above 0.9. b) Well: from 0.6 to 0.9. c) Loosely: below 0.6.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
runs = [(lab.VARIANTS[name], seeds[seed]["scores"]) for name, seeds in lab.read_measured()["runs"].items() for seed in seeds]
knn = np.array([scores["knn"] for _, scores in runs])
most = np.array([math.log(setting.out_dim) for setting, _ in runs])
signs = {"loss / ln K": np.array([s["loss_end"] for _, s in runs]) / most,
         "rank of the features": np.array([s["rank"] for _, s in runs]),
         "gap / ln K": np.array([s["of_mean_end"] - s["of_one_end"] for _, s in runs]) / most}
found = {name: spearmanr(values, knn)[0] for name, values in signs.items()}
figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
for axis, (name, values) in zip(axes, signs.items()):
    axis.scatter(values, 100 * knn, s=14, color="tab:blue", alpha=0.7)
    axis.set_xlabel(name), axis.set_title(f"rank correlation {found[name]:+.2f}, {len(knn)} runs", fontsize=9)
axes[0].set_ylabel("20-NN accuracy, %")
for axis in axes:
    axis.axhline(100 * np.mean([u["knn"] for u in lab.read_measured()["untrained"]]), color="0.6", ls=":")
best = max(abs(value) for value in found.values())
settle(guess, {"a": "above 0.9", "b": "from 0.6 to 0.9", "c": "below 0.6"}, "a" if best > 0.9 else "b" if best > 0.6 else "c")

# %% [markdown]
# The dotted line is the untrained network. Some numbers are equal here, so SciPy's function stands in: it gives equal numbers the mean of their ranks. None of the three signs is close to ±1. Below a rank of 2 most runs are worse than untrained; above 3 nearly all are better, and how much better the rank doesn't say. For that, label some hundreds of pictures by hand and ask the k-NN: of a hundred, an accuracy is uncertain by five points.

# %% [markdown] tags=["note"]
# **Teacher's note · 15 minutes.** Ask the room to find a run with a high rank and a low k-NN in the middle plot. The misconception: "a correlation over many runs lets me choose between two". Cover the left half of the plot with a hand, and the trend is gone.

# %% [markdown]
# ## 5. Going on from pretrained weights
#
# Few pictures or few minutes? Start from weights that know something. There are two traps. The head is new, and its first gradients are noise, which flows into a backbone that was good. And a recipe made for a random start, with its learning rate and its fast teacher, moves good weights too far. One user of DINOv2 saw the k-NN fall from 80 % to 10 % within 20,000 pictures ([dinov2 #204](https://github.com/facebookresearch/dinov2/issues/204)), although the heads had been trained first: that alone didn't save it.
#
# One remedy is a *head warm-up*: in the first updates only the head learns. The other is a gentle recipe: a tenth of the learning rate, and a slower teacher.

# %% [markdown]
# **Your turn 5 · medium · 6 minutes · head first.** Call it after `backward` and before the optimizer's step: in the first `frozen` updates it takes the backbone's gradients away. `step` counts from 0. What should come out: nothing; the backbone's weights stay bit for bit for `frozen` updates, whatever the optimizer, and move after.
#
# <details><summary>Hint</summary>
#
# For each of `backbone.parameters()`, set `.grad` to `None`. A gradient of zeros isn't enough: AdamW's weight decay would still move the weights.
#
# </details>

# %% tags=["stub", "equality"]
def head_first(backbone, step, frozen):
    """In place: no gradient for the backbone while step < frozen."""
    ### BEGIN SOLUTION
    if step < frozen:
        for parameter in backbone.parameters():
            parameter.grad = None
    ### END SOLUTION

head_first = checks.head_first(head_first)

# %% [markdown]
# The library has the setting `freeze_backbone`, in epochs. Here are both, with ten updates to an epoch.

# %% tags=["equality"]
from dino_lib.head import MultiCropModel
from dino_lib.run.step import hold_still
model = MultiCropModel(nn.Linear(4, 3), nn.Linear(3, 2))
for step in (0, 4, 5, 9):
    gone = []
    for take in (lambda step=step: head_first(model.backbone, step, 5),
                 lambda step=step: hold_still(model, Config(freeze_backbone=0.5, freeze_last_layer=0.0), step, 10)):
        model([torch.ones(2, 4)]).sum().backward()
        take()
        gone.append([parameter.grad is None for parameter in model.parameters()])
    assert gone[0] == gone[1]
    print(f"step {step}: {sum(gone[0])} of {len(gone[0])} parameters have no gradient")

# %% [markdown]
# `benchmarks/going_on.py` went on from the shipped teacher `demo` with a new head, on 640 of the pictures that it was trained on: 60 updates of 32 pictures, four recipes, three seeds. The head warm-up takes the first 20.

# %% [markdown]
# **Predict.** Which recipe keeps the k-NN from ever falling by more than half a point, with any of the three seeds?
#
# a) The head warm-up alone is enough. b) It takes the gentle recipe as well. c) Nothing helps.

# %%
guess = "?"  # a, b or c

# %%
going = read_measured()
curves = {name: [[(line["step"], line["knn"]) for line in run["lines"] if "knn" in line] for run in going["runs"] if run["recipe"] == name]
          for name in RECIPES}
falls = {name: max(curve[0][1] - min(score for _, score in curve) for curve in found) for name, found in curves.items()}
for name, fall in falls.items():
    print(f"{name:20} falls by {100 * fall:.1f} points at most, of {100 * curves[name][0][0][1]:.1f}")
held = [falls[name] < 0.0051 for name in ("head first", "head first, gentle")]
settle(guess, {"a": "the head warm-up is enough", "b": "it takes the gentle recipe too", "c": "nothing helps"},
       "a" if held[0] else "b" if held[1] else "c")

# %%
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained")
for (name, found), colour in zip(curves.items(), ["tab:red", "tab:orange", "tab:cyan", "tab:blue"]):
    for number, curve in enumerate(found):
        axis.plot(*zip(*[(step, 100 * score) for step, score in curve]), marker="o", ms=3, color=colour, label=name if number == 0 else None)
axis.axvspan(0, 20, color="0.93", label="head warm-up")
axis.set_xlabel("update"), axis.set_ylabel("20-NN accuracy, %")
_ = axis.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))

# %% [markdown]
# The preset's own recipe falls by 1.3 points at most, with the head warm-up alone by 2.0. Gentle alone falls by 0.8, which is three queries of 400, and with the warm-up not at all. So here it takes both, though these are differences of a few queries, with three seeds.
#
# Now a piece of one line, live: with the head warm-up, gentle, and another seed, on fewer pictures.

# %% tags=["nbval-ignore-output"]
live = go_on("head first, gentle", seed=7, limit=320, epochs=2, eval_limit=200)
for line in live:
    if "knn" in line:
        print(f"update {line['step']:2}: k-NN {100 * line['knn']:.1f} %")

# %% [markdown]
# Ten updates long nothing has moved, so the first two numbers are equal; here the third is, too. The doctor's lines are about the length: twenty updates are no run. `dino advise FOLDER --minutes 60 --weights runs/mine/teacher.safetensors` writes all of this into its command.

# %% [markdown] tags=["note"]
# **Teacher's note · 15 minutes.** The misconception: "pretrained weights can only help". Point at the orange lines: with the head warm-up alone one seed falls by two points as soon as the backbone learns too, one falls by one and comes nearly back, one ends higher by half a point; ask what a lecture with one seed would have said. Of 400 queries, one is a quarter of a point.

# %% [markdown]
# ## 6. Publish it
#
# A run's folder holds `teacher.safetensors`: the weights, with all settings and a checksum in the header. Anyone with the library can load it by its path. Put a card beside it. A card says what the teacher was trained on, what it is good for, and what its numbers are beside what knows nothing.

# %% tags=["nbval-ignore-output"]
from dino_lib.measure.stages import histogram_scores
from dino_lib.run.build import open_probes

again = load_teacher(work / "run")
scores = [line["knn"] for line in history if "knn" in line]
worth = "no labels"
if scores:
    blind = histogram_scores(open_probes(short))["knn"]  # of the same pictures
    worth = f"{scores[-1]:.1%}; untrained: {scores[0]:.1%}; a colour histogram: {blind:.1%}"
card = f"""# A DINO teacher of {survey.images} pictures

- trained on: {Path(FOLDER).name}, {survey.images} pictures at {again.config.store_size} px, seed {again.config.seed}
- network: {again.config.backbone}, {again.config.backbone_options['depth']} blocks, {sum(p.numel() for p in again.model.parameters()):,} weights
- trained for: {again.about['step']} updates of {again.config.batch_size} pictures
- 20-NN on {survey.queries} pictures held back: {worth}
- not for: faces, medicine, or pictures unlike these
"""
(work / "run" / "README.md").write_text(card, encoding="utf-8")
print(card)
print(*sorted(f"{path.name}: {path.stat().st_size / 1024:.0f} KiB" for path in (work / "run").iterdir() if path.is_file()), sep="\n")

# %% [markdown]
# Forty updates are below the colour histogram, and a card has to say so.
#
# What would a user of a good teacher see? Here is the closing test: for six creatures that were held back, the nearest ones of the gallery. Above by the untrained network, below by the shipped teacher `demo`. Before you publish yours, put `again` in its place. The second picture of a pair is right if it shows the same kind.

# %%
from dino_lib.course.going_on import settings
from dino_lib.measure.knn import nearest
from dino_lib.run.build import build_backbone
config = settings("the preset's", 0)
probes = open_probes(config, 200)
networks = {"untrained": build_backbone(config).eval(), "demo": load_teacher("demo").model}
figure, axes = plt.subplots(2, 12, figsize=(9, 2.1), layout="constrained")
for row, (name, network) in zip(axes, networks.items()):
    features, asked = probes.features(network)
    index = nearest(features, asked[:6], 1)[1][:, 0]
    for k in range(6):
        right = probes.gallery_labels[index[k]] == probes.query_labels[k]
        for axis, picture in [(row[2 * k], probes.queries[k]), (row[2 * k + 1], probes.gallery[index[k]])]:
            axis.imshow(picture.permute(1, 2, 0))
            axis.set_xticks([]), axis.set_yticks([])
        row[2 * k + 1].set_xlabel("right" if right else "wrong", fontsize=8, color="tab:green" if right else "tab:red")
    row[0].set_ylabel(name, fontsize=8)

# %% [markdown]
# **To remember.** Look at the pictures first. Let minutes choose the network, updates the momentum, pictures the batch and K. Read the entropies and the rank while it runs. Going on from weights, be gentle and watch the k-NN. Publish numbers beside their baselines.
