# %% [markdown]
# # 02 · Backbone and head: from a picture to its prototypes
#
# <!-- badge -->
#
# The **backbone** turns a picture into one vector, its *feature*. The **head** sits on top. It compares the feature with $K$ learned vectors, the *prototypes*. Training needs the head; afterwards only the backbone is kept.
#
# **You will write** the head of the paper and the pass of many views through one network, and see which pictures lie nearest to a prototype.
#
# **You need** [01 · Multi-crop](01_multicrop.ipynb), `nn.Module`, and a rough idea of a vision transformer.
#
# **Time.** About 105 minutes: 40 for the six pieces, 30 for the exercises, 35 for reading. The cells take about 35 seconds of one CPU core.
#
# Before: [01 · Multi-crop](01_multicrop.ipynb). Next: [03 · The loss](03_loss.ipynb).

# %% tags=["setup"]
# written by build.py

# %% tags=["equality"]
import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import nn

from dino_lib import DINOHead, MultiCropModel, create_backbone
from dino_lib.course import head as checks

# %%
import matplotlib.pyplot as plt
from dino_lib.course.prediction import settle
from dino_lib.look.style import PALETTE

# %% [markdown] tags=["note"]
# **Section 1: 10 minutes.** Draw the token row on the board: CLS in front, then the patches in reading order. *A question for the room:* where does the network learn which patch lies where? (From the position embeddings. They are added before the first block.) *A misconception:* "CLS is a summary from the start." It starts as the same learned vector for every picture, and attention fills it.

# %% [markdown]
# ## 1. The backbone: tokens
#
# A vision transformer cuts a picture into patches, and makes a vector of each, a *token*. One more token belongs to no patch: **CLS**. It stands in front, collects from all the others, and in the end stands for the whole picture.
#
# Our tiny model has patches of 6 pixels and tokens of width $D = 128$. A picture of 48 pixels gives $8 \times 8 = 64$ patches.

# %% tags=["equality"]
tiny = dict(img_size=48, patch_size=6, embed_dim=128, depth=2, num_heads=8, mlp_ratio=2.0)
torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **tiny).eval()
tokens = vit.forward_features(torch.rand(2, 3, 48, 48))
print(tuple(tokens.shape), "= (pictures, 1 CLS + 8 * 8 patches, width)")

# %% [markdown]
# **Your turn 1 · easy · 4 minutes · the feature and the patch tokens.** Split the tokens. The *feature* is the CLS token. The *patch tokens* are the rest, back on their grid of `h` rows and `w` columns. What should come out: for the tokens above and `grid = (8, 8)`, shapes (2, 128) and (2, 8, 8, 128).
#
# <details><summary>Hint</summary>
#
# `tokens[:, 0]` is the first token of each picture. `tokens[:, 1:].unflatten(1, grid)` makes two axes of one, in reading order.
#
# </details>

# %% tags=["stub", "equality"]
def split_tokens(tokens, grid):
    """(B, 1 + h * w, D), (h, w) -> the feature (B, D), the patch tokens (B, h, w, D)."""
    ### BEGIN SOLUTION
    return tokens[:, 0], tokens[:, 1:].unflatten(1, grid)
    ### END SOLUTION

split_tokens = checks.split_tokens(split_tokens)

# %% [markdown]
# **Equal?** The library's `create_backbone` gives both for any timm model. We try the sizes of global and of local views.

# %% tags=["equality"]
backbone = create_backbone("vit_tiny_patch16_224", **tiny).eval()
backbone.model.load_state_dict(vit.state_dict())
for side in (48, 24):
    x = torch.rand(2, 3, side, side)
    feature, patches = split_tokens(vit.forward_features(x), (side // 6, side // 6))
    torch.testing.assert_close(feature, backbone(x))
    torch.testing.assert_close(patches, backbone.patch_tokens(x))
    print(f"{side} px: feature {tuple(feature.shape)}, patch tokens {tuple(patches.shape)}")

# %% [markdown]
# A ResNet has no CLS. Its feature is the mean of its last map, a grid of vectors.

# %% tags=["equality"]
torch.manual_seed(0)
net, x = create_backbone("resnet10t").eval(), torch.rand(1, 3, 96, 96)
print(f"resnet10t: feature {tuple(net(x).shape)}, map {tuple(net.patch_tokens(x).shape)}")
torch.testing.assert_close(net(x), net.patch_tokens(x).mean((1, 2)))

# %% [markdown] tags=["note"]
# **Section 2: 25 minutes, most of it for the class.** *At the circle:* cover the crosses with a hand. What the head sees is only where a dot sits on the circle. *A misconception:* "a prototype is a picture, or a class." It is a direction that gradient descent found; nobody named it. *A question for the room:* can two prototypes be the same? (Yes. Nothing in the head forbids it; section 5 counts how many are in use.)

# %% [markdown]
# ## 2. The head: cosines with prototypes
#
# DINO compares probability distributions, so each feature must become $K$ numbers. A **prototype** is a direction in space that stands for something, say "stripes". The head takes three steps (section 3.1 and appendix C of the paper):
#
# $$h \;\to\; z = \text{MLP}(h) \;\to\; \hat z = \frac{z}{\lVert z \rVert} \;\to\; \ell_k = g_k\,\langle \hat z, \hat w_k \rangle,
# \qquad \hat w_k = \frac{w_k}{\lVert w_k \rVert}.$$
#
# - $h$ is the feature. A small network, the MLP, makes the narrow **bottleneck** $z$ of it.
# - $\hat z$ is its direction: the same vector at length 1.
# - $w_k$ is the vector of prototype $k$, and $\hat w_k$ its direction. The *gain* $g_k$ is a number, 1 at the start.
# - $\ell_k$ is the **logit**. With gain 1 it is the cosine of the angle between the two directions, between −1 and 1.

# %%
z = torch.tensor([[3.0, 4.0]])                               # length 5
w = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])     # three prototypes
z_hat, w_hat = z / z.norm(dim=1, keepdim=True), w / w.norm(dim=1, keepdim=True)
print("direction", z_hat.numpy().round(3), "logits", (z_hat @ w_hat.T).numpy().round(3))

# %% [markdown]
# **Your turn 2 · easy · 4 minutes · cosines.** Write the two normalisations and the product for any number of rows. What should come out: for the toy above, `[[0.6, 0.8, -0.99]]`.
#
# <details><summary>Hint</summary>
#
# `F.normalize(z, dim=1)` gives each row length 1. The product of (N, d) with the transposed (K, d) is (N, K).
#
# </details>

# %% tags=["stub", "equality"]
def cosine_logits(z, directions):
    """(N, d), (K, d) -> (N, K): the cosine of each row of z with each prototype."""
    ### BEGIN SOLUTION
    return F.normalize(z, dim=1) @ F.normalize(directions, dim=1).T
    ### END SOLUTION

cosine_logits = checks.cosine_logits(cosine_logits)

# %% [markdown]
# On a plane you can see it. The arrows are five prototypes. The crosses are some $z$, the dots their directions $\hat z$, in the colour of the nearest prototype. Only angles count.

# %%
torch.manual_seed(1)
angles = torch.tensor([20, 85, 150, 215, 290]).deg2rad()
z, arrows = 0.6 * torch.randn(60, 2), torch.stack([angles.cos(), angles.sin()], dim=1)
colors = [PALETTE[2 * k] for k in cosine_logits(z, arrows).argmax(1).tolist()]
figure, axis = plt.subplots(figsize=(6.5, 5), layout="constrained")
axis.scatter(*z.T, c=colors, s=26, marker="x", linewidths=1, label="z, as the MLP gives it")
axis.scatter(*F.normalize(z, dim=1).T, c=colors, s=18, label="its direction, at length 1")
for k, (dx, dy) in enumerate(arrows.tolist()):
    axis.annotate("", (0.9 * dx, 0.9 * dy), (0, 0), arrowprops={"arrowstyle": "->", "color": PALETTE[2 * k], "lw": 2})
    axis.text(1.12 * dx, 1.12 * dy, f"prototype {k}", color=PALETTE[2 * k], va="center", fontsize=8,
              ha="left" if dx > 0 else "right", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8})
axis.set(xlabel="first number", ylabel="second number", aspect="equal", ylim=(-1.4, 1.4))
_ = axis.legend(fontsize=8, loc="lower left")

# %% [markdown]
# Now the whole head:
#
# - The MLP has three Linears, `in_dim` → `hidden_dim` → `hidden_dim` → `bottleneck_dim`.
# - A GELU, a smooth relative of ReLU, stands behind the first two, and none behind the third.
# - With `use_bn` a batch norm stands between each hidden Linear and its GELU.
# - The MLP's weights start small: normal with standard deviation 0.02. Its biases start at 0.
# - The prototypes start as the weights of a Linear do, without biases. There are no gains: they stay at 1.

# %% [markdown]
# **Your turn 3 · medium · 15 minutes · the head.** Write the class: the layers in `__init__`, the three steps in `forward`. Call `cosine_logits` for the last one. What should come out: `Head(128, 1024)(torch.randn(5, 128))` has shape (5, 1024), and no entry is beyond ±1.
#
# <details><summary>Hint</summary>
#
# Build a list of layers and give it to `nn.Sequential(*layers)`. Then go through it: `nn.init.trunc_normal_(layer.weight, std=0.02)` and `nn.init.zeros_(layer.bias)` for each `nn.Linear`. The prototypes are one parameter of shape (out_dim, bottleneck_dim), `nn.Linear(bottleneck_dim, out_dim, bias=False).weight`.
#
# </details>

# %% tags=["stub", "equality"]
class Head(nn.Module):
    """The paper's head: (N, in_dim) -> (N, out_dim), cosines with out_dim prototypes."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__()
        ### BEGIN SOLUTION
        layers = []
        for width in (in_dim, hidden_dim):
            layers.append(nn.Linear(width, hidden_dim))
            if use_bn:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim))
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        self.directions = nn.Linear(bottleneck_dim, out_dim, bias=False).weight
        ### END SOLUTION

    def forward(self, h):
        ### BEGIN SOLUTION
        return cosine_logits(self.mlp(h), self.directions)
        ### END SOLUTION

Head = checks.Head(Head)

# %% [markdown]
# **Equal?** We copy the library's weights into yours. The logits must agree, and so must the gradients of the input, the weights and the prototypes.

# %% tags=["equality"] jupyter={"source_hidden": true} cellView="form"
# @title copy_head: the same weights in both
def copy_head(theirs, mine):
    """Copy the Linears and the prototypes, whatever they are called."""
    ours = [[m for m in head.modules() if isinstance(m, nn.Linear)][:3] for head in (theirs, mine)]
    rows = [next(p for p in head.parameters() if p.shape == theirs.directions.shape) for head in (theirs, mine)]
    rows[1].data.copy_(rows[0].data)
    for a, b in zip(*ours):
        b.load_state_dict(a.state_dict())
    return [[layer.weight for layer in linears] + [w] for linears, w in zip(ours, rows)]

# %% tags=["equality"]
torch.manual_seed(0)
theirs, mine = (build(128, 256, hidden_dim=64, bottleneck_dim=32) for build in (DINOHead, Head))
weights, my_weights = copy_head(theirs, mine)
h, target = torch.randn(10, 128), torch.randn(10, 256)
h_mine, h_theirs = h.clone().requires_grad_(), h.clone().requires_grad_()
torch.testing.assert_close(mine(h_mine), theirs(h_theirs))
(mine(h_mine) * target).sum().backward()
(theirs(h_theirs) * target).sum().backward()
assert theirs.gain.grad is None
for a, b in zip([h_mine, *my_weights], [h_theirs, *weights]):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
print(f"{10 * 256} logits and {1 + len(weights)} gradients agree")

# %% [markdown]
# Both start alike. $z$ is tiny, but only its direction counts. Random directions in $d$ dimensions are nearly at right angles: their cosines have a standard deviation of $1/\sqrt d$.

# %% tags=["equality"]
for name, head in [("mine", Head(128, 256, 64, 32)), ("theirs", DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32))]:
    linears = [m for m in head.modules() if isinstance(m, nn.Linear)][:3]
    for layer in linears:
        assert abs(layer.weight.std() - 0.02) < 0.002, f"{name}: a Linear's weights don't start at deviation 0.02"
        assert (layer.bias == 0).all(), f"{name}: a Linear's bias doesn't start at 0"
    logits = head(h).detach()
    assert logits.abs().max() <= 1 + 1e-6, f"{name}: a logit is beyond 1, so it is no cosine"
    assert 0.1 < logits.std() < 0.25, f"{name}: the logits deviate by {logits.std():.2f}, not by about 0.18"
    print(f"{name}: weights {linears[0].weight.std():.2f}, logits {logits.std():.2f} (standard deviations)")
print(f"1 / sqrt(32) = {32**-0.5:.2f}")

# %% [markdown]
# A softmax over cosines is flat, so the loss divides them by a *temperature* first. Suppose one prototype of 256 matches $z$ well, with a cosine of 0.6; the others are random. At the student's temperature, 0.1, the match doesn't even get a third. The teacher's 0.04 gives it nearly all.

# %%
torch.manual_seed(0)
cosines = cosine_logits(torch.randn(1, 32), torch.randn(256, 32))[0]
cosines[0] = 0.6
print(f"the largest of the others: {cosines[1:].max():.2f}")
for temperature in (1.0, 0.1, 0.04):
    print(f"temperature {temperature}: the match gets {(cosines / temperature).softmax(0)[0]:.2f}")

# %% [markdown] tags=["note"]
# **Section 3: 15 minutes.** Let the room vote before each run, and write the votes down. *A misconception:* "normalisation is there for numerical stability." Mostly it closes a way out: growing longer. *At the second figure:* ask who expected the free gains to be bad. Point at the spread of the three thin lines before anyone compares means.

# %% [markdown]
# ## 3. Take a part out
#
# ### The length of z
#
# Why cosines, and not plain dot products? Gradient descent pulls a random $z$ to one of 32 prototypes, for 300 steps: once the plain $z$, once its direction. The loss is minus the logarithm of that prototype's share at temperature 0.1.
#
# **Predict, then run.** What does gradient descent do with the plain $z$?
#
# - **a**: it turns $z$ to the prototype, and the loss stops falling there
# - **b**: it makes $z$ longer and longer, and the loss goes on falling
# - **c**: it makes $z$ shorter, and the loss rises

# %%
guess = "?"  # a, b or c

# %%
def climb(normalised, steps=300):
    torch.manual_seed(0)
    z, w = (0.1 * torch.randn(8)).requires_grad_(), F.normalize(torch.randn(32, 8), dim=1)
    largest, losses = [], []
    for _ in range(steps):
        logits = w @ (F.normalize(z, dim=0) if normalised else z)
        loss = -(logits / 0.1).log_softmax(0)[0]
        [grad] = torch.autograd.grad(loss, z)
        z = (z - 0.1 * grad).detach().requires_grad_()
        largest.append(logits.max().item())
        losses.append(loss.item())
    return largest, losses

plain, bound = climb(False), climb(True)
grows, falls = plain[0][-1] > 1.1 * plain[0][50], plain[1][-1] < 0.5 * bound[1][-1]
settle(guess, {"a": "z turns, and the loss stops", "b": "z grows, and the loss goes on falling",
               "c": "z shrinks"}, "b" if grows and falls else "c" if plain[0][-1] < plain[0][0] else "a")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.2), layout="constrained")
for axis, k, title in zip(axes, (0, 1), ("largest of the 32 logits", "loss (logarithmic)")):
    axis.plot(plain[k], label="plain z")
    axis.plot(bound[k], "--", label="direction of z")
    axis.set(title=title, xlabel="step")
axes[0].axhline(1, color="0.4", linestyle=":", label="no cosine is above 1")
axes[0].legend(frameon=False)
_ = axes[1].set_yscale("log")

# %% [markdown]
# With the plain $z$, the largest logit passes 1, because $z$ gets longer, and the loss goes on falling. A cosine can't pass the dotted line: only a better angle lowers that loss, ever more slowly.
#
# ### The gains
#
# A gain acts as the length of a prototype would, if the cosine had one. Here 2,000 random features meet a head whose gain 0 we raise.

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
features, gained = torch.randn(2000, 128), DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32)
for gain in (1.0, 1.5, 3.0):
    gained.gain.data[0] = gain
    won = (gained(features).argmax(1) == 0).float().mean()
    print(f"gain {gain}: prototype 0 wins {won:.1%} of the features, the mean prototype {1 / 256:.1%}")

# %% [markdown]
# Should training move the gains? The official code holds them for ViT-B and frees them for ViT-S (`norm_last_layer`).
#
# We measured three heads: a network of one block, 1,000 of our drawn creatures, 120 updates, three seeds. "Gains held" is the head above, "gains free" lets training move them, and "no L2 normalisation" holds them and takes the plain $z$.
#
# We judge the features by their **20-NN accuracy**. For each of 300 other pictures, the 20 training pictures with the most similar features vote for its class; the accuracy is the share of pictures that get their right class.
#
# **Predict, then run.** The untrained network's 20-NN accuracy is 42% here, in the mean of the seeds. What happens to it in 120 updates with no L2 normalisation?
#
# - **a**: it rises more than with the gains held
# - **b**: it rises as much, within 2 percentage points
# - **c**: it rises less than with the gains held, or not at all

# %%
guess = "?"  # a, b or c

# %%
import json
from pathlib import Path
import dino_lib

measured = json.loads((Path(dino_lib.__file__).parent / "course/measured/heads.json").read_text())
runs = {name: list(of.values()) for name, of in measured["runs"].items()}
last = {name: np.mean([run[-1]["knn"] for run in of]) for name, of in runs.items()}
for name, of in runs.items():
    print(f"{name:20s} k-NN after {measured['updates']} updates: {last[name]:.2f}", [run[-1]["knn"] for run in of])
difference = last["no L2 normalisation"] - last["gains held"]
settle(guess, {"a": "more than with the gains held", "b": "as much", "c": "less than with the gains held"},
       "a" if difference > 0.02 else "c" if difference < -0.02 else "b")

# %%
def draw_runs(axes, runs):
    for color, (name, of) in zip(PALETTE[5::-2], runs.items()):
        for k, run in enumerate(of):
            for axis, key in zip(axes, ("knn", "largest")):  # a line a seed
                axis.plot([line["update"] for line in run], [line[key] for line in run], color=color,
                          linewidth=1, label=name if k == 0 else None)
    for axis, title in zip(axes, ("20-NN accuracy", "largest logit of the teacher")):
        axis.set(title=title, xlabel="update")
    axes[0].axhline(measured["colour_histogram"], color="0.4", linestyle=":", label="colour histogram")
    axes[0].legend(frameon=False, fontsize=8)

figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
draw_runs(axes, runs)

# %% [markdown]
# Each thin line is one seed; the dotted line is blind, 20-NN on colour histograms.
#
# Without the L2 normalisation the network learns less, with each seed: after 120 updates no seed's k-NN is above its start, and only one of three above the colour histogram's. With the gains held all three are above both, by 2 to 6 percentage points. The toy's logits grew; here the largest one falls to less than half with two seeds, and with the third it falls and comes back. A run has a teacher, a center and batch norm too. Held and free gains can't be told apart in so short a run.
#
# ### Batch norm
#
# With `use_bn` each row depends on the others of its batch, in training mode. So it matters which views go through the head together. The paper's head for ViTs has none. The tiny network of notebook 07 needs it: without it, all three of its runs end in one even answer to every picture. So the preset `demo` has it.

# %%
h = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
for use_bn in (False, True):
    torch.manual_seed(0)
    head = Head(128, 256, 64, 32, use_bn=use_bn)
    with torch.no_grad():
        whole, halves = head(h), torch.cat([head(h[:32]), head(h[32:])])
    print(f"with{'' if use_bn else 'out'} batch norm: the halves differ from the whole by up to {(whole - halves).abs().max():.1f}")

# %% [markdown]
# ## 4. Many views in few passes
#
# Views of one size can go through the backbone together, and then all features through the head at once. First the plain way:

# %% tags=["equality"]
def one_by_one(backbone, head, views):
    """[(B, 3, h, w)] * V -> (V, B, K)"""
    return torch.stack([head(backbone(view)) for view in views])

# %% [markdown]
# **Your turn 4 · medium · 8 minutes · which views go together.** From the list of the views' sides, give (start, stop) for each pass: all of `views[start:stop]` have one size. Only neighbours are joined, so that no view changes its place. What should come out: `group_views([96, 96, 48])` is `[(0, 2), (2, 3)]`.
#
# <details><summary>Hint</summary>
#
# A new group starts at 0 and wherever a size differs from the one before. Each group stops where the next one starts, and the last one stops at `len(sizes)`.
#
# </details>

# %% tags=["stub", "equality"]
def group_views(sizes):
    """[96, 96, 48] -> [(0, 2), (2, 3)]"""
    ### BEGIN SOLUTION
    starts = [i for i in range(len(sizes)) if i == 0 or sizes[i] != sizes[i - 1]]
    stops = [*starts[1:], len(sizes)]
    return list(zip(starts, stops))
    ### END SOLUTION

group_views = checks.group_views(group_views)

# %% [markdown]
# **Your turn 5 · medium · 8 minutes · all views through one network.** Send each group through the backbone in one pass, and all features through the head in one. What should come out: logits of shape (views, pictures, K), the same as one by one.
#
# <details><summary>Hint</summary>
#
# `torch.cat(views[start:stop])` puts a group into one batch, view by view. Concatenate the features of the groups; then `head(features).unflatten(0, (len(views), -1))` gives every row back to its view.
#
# </details>

# %% tags=["stub", "equality"]
def forward_views(backbone, head, views):
    """[(B, 3, h, w)] * V -> (V, B, K), one pass through the backbone for each group."""
    ### BEGIN SOLUTION
    groups = group_views([view.shape[-1] for view in views])
    features = [backbone(torch.cat(views[start:stop])) for start, stop in groups]
    return head(torch.cat(features)).unflatten(0, (len(views), -1))
    ### END SOLUTION

forward_views = checks.forward_views(forward_views)

# %% [markdown]
# **Equal?** To the plain way and to the library's `MultiCropModel`, in logits and in gradients. (No batch norm here: with it, the plain way would differ.)

# %% tags=["equality"]
torch.manual_seed(0)
views = [torch.randn(3, 3, 48, 48) for _ in range(2)] + [torch.randn(3, 3, 24, 24) for _ in range(4)]
model = MultiCropModel(backbone, DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32))
plain_logits = one_by_one(backbone, model.head, views)
passes = []
hook = backbone.register_forward_hook(lambda module, inputs, output: passes.append(tuple(inputs[0].shape)))
mine, library = forward_views(backbone, model.head, views), model(views)
hook.remove()
torch.testing.assert_close(mine, plain_logits, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(mine, library, rtol=1e-4, atol=1e-5)
weights = [p for p in model.parameters() if p.requires_grad]
some = torch.randn(mine.shape, generator=torch.Generator().manual_seed(1))
grads = [torch.autograd.grad((out * some).sum(), weights) for out in (plain_logits, mine, library)]
for a, b, c in zip(*grads):
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(b, c, rtol=1e-3, atol=1e-4)
print(f"{tuple(mine.shape)} from {passes[:2]}: {len(passes) // 2} passes for {len(views)} views")

# %% [markdown] tags=["note"]
# **Section 5: 10 minutes.** *At the nine pictures:* ask what the nine have in common before you read the class from the title. Some prototypes stand for a palette and mix two classes: each palette of these pictures belongs to two. *A misconception:* "a class has one prototype." Every class here has several, from 3 to 21, and most prototypes are never the nearest.

# %% [markdown]
# ## 5. What prototypes stand for
#
# A trained teacher ships with the course: a two-block transformer after 1,500 updates of DINO. With its head comes the *center*, the running mean of the teacher's logits. We subtract it, so that no prototype leads in every picture. The untrained network has the same layers, and we subtract its mean logits.
#
# The pictures are 1,000 that no training saw, a hundred of each of ten kinds.

# %%
from dino_lib import PRESETS, Shapes, load_head, load_teacher
from dino_lib.data.transforms import normalize
from dino_lib.run.build import build_student

pictures, demo = Shapes(1000, seed=1), PRESETS["demo"]
x = normalize(pictures.images, demo.mean, demo.std)
teacher, (head, center) = load_teacher("demo"), load_head("demo")
fresh = build_student(demo).eval()

def all_logits(backbone, head):
    with torch.no_grad():
        return torch.cat([head(backbone(part)) for part in x.split(100)])  # (1000, 1024)

untrained = all_logits(fresh.backbone, fresh.head)
of_all = {"untrained": untrained - untrained.mean(0), "trained": all_logits(teacher.model, head) - center}

# %% [markdown]
# **Your turn 6 · easy · 4 minutes · the nearest pictures.** From the logits of all pictures, take the `n` that are nearest to one prototype, nearest first. What should come out: `n` positions in the list of pictures.
#
# <details><summary>Hint</summary>
#
# A prototype is a column: `logits[:, prototype]`. `topk(n)` gives the largest values, and `.indices` says where they are.
#
# </details>

# %% tags=["stub", "equality"]
def nearest_pictures(logits, prototype, n):
    """(N, K), the number of a prototype -> the n pictures with its largest logits, largest first."""
    ### BEGIN SOLUTION
    return logits[:, prototype].topk(n).indices
    ### END SOLUTION

nearest_pictures = checks.nearest_pictures(nearest_pictures)

# %% [markdown]
# We take the prototypes that are some picture's first choice, and count how many of their nine nearest pictures belong to one class. Two baselines are blind: nine pictures drawn at random, and the nine nearest to a picture by *colour histogram*.
#
# **Predict, then run.** How many of the nine share a class in the trained network, in the mean?
#
# - **a**: about 3, as at random
# - **b**: about 5
# - **c**: 7 or more

# %%
guess = "?"  # a, b or c

# %%
from dino_lib.measure.knn import color_histogram

def share_of_nine(rows):
    """How many of nine pictures belong to their most frequent class."""
    return pictures.labels[rows].bincount().max().item()

used = {name: table.argmax(1).unique().tolist() for name, table in of_all.items()}
found = {name: np.mean([share_of_nine(nearest_pictures(table, k, 9)) for k in used[name]])
         for name, table in of_all.items()}
colours = color_histogram(pictures.images)
alike = cosine_logits(colours, colours)
found["nine of one colour"] = np.mean([share_of_nine(nearest_pictures(alike, k, 9)) for k in range(200)])
draw = np.random.default_rng(0)
found["nine at random"] = np.mean([share_of_nine(draw.choice(1000, 9, replace=False)) for _ in range(200)])
for name, n in found.items():
    print(f"{name:18s} {n:.1f} of 9" + (f"   {len(used[name])} prototypes" if name in used else ""))
settle(guess, {"a": "about 3", "b": "about 5", "c": "7 or more"},
       "a" if found["trained"] < 4 else "b" if found["trained"] < 6.5 else "c")

# %% [markdown]
# For each network, here are the four prototypes that most pictures choose first.

# %%
from torchvision.utils import make_grid

def show_nearest(of_all, n=4):
    _, axes = plt.subplots(2, n, figsize=(9.5, 5.6), layout="constrained")
    for row, (name, table) in zip(axes, of_all.items()):
        for axis, k in zip(row, table.argmax(1).bincount().topk(n).indices.tolist()):
            nine = nearest_pictures(table, k, 9)
            counts, classes = pictures.labels[nine].bincount().topk(2)
            names = [f"{n} {pictures.classes[c]}" for n, c in zip(counts, classes) if n > 0]
            axis.imshow(make_grid(pictures.images[nine], 3, padding=2, pad_value=255).permute(1, 2, 0))
            axis.set_title(f"{name}, prototype {k}\n{', '.join(names)}", fontsize=9)
            axis.axis("off")

show_nearest(of_all)

# %% [markdown]
# Each title names the two most frequent classes of its nine. The untrained network sorts mostly by colour, and does no better than the colour histogram.
#
# Three of the trained prototypes have nine of one class each: bees, asters, snowflakes. Each of these shares its palette with another class, and is told from it by texture or outline. The second one mixes the two classes of a palette, ladybird and starfish.
#
# And where does the network look? Below are the nine of the first trained prototype, with one *attention head* of each network (nothing to do with the head above). Its map says how much CLS takes from each patch. `choose_head` takes the one that keeps away from the border, without the creatures' outlines (white).

# %%
from dino_lib import choose_head, cls_attention
from dino_lib.look.maps import attention_sheet

first = of_all["trained"].argmax(1).bincount().argmax().item()
nine = nearest_pictures(of_all["trained"], first, 9)
maps = {}
for name, net in {"untrained": fresh.backbone, "trained": teacher.model}.items():
    with torch.no_grad():
        heads = cls_attention(net, x[:200])
        maps[name] = cls_attention(net, x[nine])[:, choose_head(heads)]
attention_sheet(pictures.images[nine], maps, masks=pictures.masks[nine])

# %% [markdown]
# The untrained attention is spread over the picture, the trained one sits on the creature, or on one of two. No loss asked for that. (Nine pictures prove little: over 200, and beside maps that no network made, notebook 01 measures it.)
#
# ## Summary
#
# - A backbone gives one feature for the picture, and a grid of patch tokens.
# - The head is an MLP and $K$ prototypes. Each logit is a cosine.
# - A plain $z$ can lower the loss by growing; its direction can't.
# - Views of one size share a pass.
# - A trained prototype gathers pictures that belong together.
#
# After the exercises comes [03 · The loss](03_loss.ipynb).
#
# ## Exercises
#
# **Exercise 7 · easy · 5 minutes · count.** How many *trainable* numbers has the paper's head, with its gains held? What should come out: for `head_parameters(128, 1024, 512, 128)`, 525,440. Batch norms don't count.
#
# <details><summary>Hint</summary>
#
# A Linear from `a` to `b` has `a * b` weights and `b` biases. The prototypes lie in the bottleneck's space and have no biases.
#
# </details>

# %% tags=["stub"]
def head_parameters(in_dim, out_dim, hidden_dim, bottleneck_dim):
    """The number of trainable parameters."""
    ### BEGIN SOLUTION
    mlp = (in_dim + 1) * hidden_dim + (hidden_dim + 1) * hidden_dim + (hidden_dim + 1) * bottleneck_dim
    return mlp + out_dim * bottleneck_dim
    ### END SOLUTION

head_parameters = checks.head_parameters(head_parameters)

# %% [markdown]
# **Exercise 8 · hard · 15 minutes · the normalisation backwards.** You have $z$ and the gradient of the loss by $\hat z = z / \lVert z \rVert$, row by row. Write the gradient by $z$ as a formula, without autograd. What should come out: a tensor like `z`, and each of its rows at a right angle to that row of `z`.
#
# <details><summary>Hint</summary>
#
# If $z$ moves along itself, $\hat z$ stays. So remove from the gradient its part along $\hat z$. And a long $z$ turns slowly: divide by its length.
#
# </details>

# %% tags=["stub"]
def normalize_backward(z, grad):
    """(N, d), (N, d) -> (N, d)"""
    ### BEGIN SOLUTION
    length = z.norm(dim=1, keepdim=True)
    unit = z / length
    along = (grad * unit).sum(1, keepdim=True)
    return (grad - along * unit) / length
    ### END SOLUTION

normalize_backward = checks.normalize_backward(normalize_backward)

# %% [markdown]
# **Exercise 9 · medium · 10 minutes · another head, another run.** Here your own `Head` trains, up to update 40, drawn over the measured runs. Make one change and say first what you expect: `K = 2`, `K = 4096`, `bottleneck = 2`, or a class `Plain(Head)` whose `forward` leaves the normalisation of $z$ out (the prototypes keep length 1). What should come out: one thick line in each plot, near the thin ones as long as nothing is changed.
#
# <details><summary>Hint</summary>
#
# In the finished `Head`, `forward` is `self.mlp`, the normalisation, and cosines with `self.directions`. With `bottleneck = 2` the prototypes lie on a circle, as in the figure of section 2. With `K = 2` the teacher can say one of two things. Look at `used`: how many prototypes are some picture's first choice?
#
# </details>

# %% tags=["nbval-ignore-output"]
from dino_lib.course.short_run import short_run

K, bottleneck = 256, 64  # yours to change
mine = short_run(lambda width: Head(width, K, 256, bottleneck, use_bn=True),
                 Shapes(1000), Shapes(300, seed=1), stop=40)
figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.4), layout="constrained")
draw_runs(axes, runs)
for axis, key in zip(axes, ("knn", "largest")):
    axis.plot([line["update"] for line in mine], [line[key] for line in mine], color="black", linewidth=3)
for line in mine:
    print(f"update {line['update']:2d}: k-NN {line['knn']:.2f}, largest logit {line['largest']:.2f}, "
          f"{line['used']} prototypes used")

# %% [markdown]
# <details><summary>What we saw</summary>
#
# 20-NN accuracy at the start and at update 40, for the seeds 0, 1 and 2 (`measured["exercise"]`):
#
# | change | start | update 40 | prototypes used at update 40 |
# | --- | --- | --- | --- |
# | nothing | 0.40, 0.40, 0.45 | 0.40, 0.39, 0.40 | 8, 8, 7 |
# | `K = 2` | 0.40, 0.40, 0.45 | 0.32, 0.33, 0.33 | 2, 2, 2 |
# | `K = 4096` | 0.40, 0.40, 0.45 | 0.38, 0.44, 0.38 | 9, 9, 8 |
# | `bottleneck = 2` | 0.40, 0.40, 0.45 | 0.30, 0.34, 0.40 | 9, 10, 18 |
# | `Plain` | 0.40, 0.40, 0.45 | 0.37, 0.36, 0.36 | 23, 21, 17 |
#
# The number of used prototypes falls from about 100 to 7 or 8 in the unchanged run too, and at update 40 nothing is gained in k-NN. It looks like a collapse, but later both rise: at update 120 the three seeds of section 3 use 15, 14 and 12, and their k-NN is above its start. So don't judge a run by this number alone. `Plain` uses more prototypes and learns less. Its largest logit falls from 1.31 to 0.79 with seed 0. With `K = 2` and `bottleneck = 2` k-NN falls in all three seeds, and further than in the unchanged run (with `bottleneck = 2` and seed 2 by one picture of 300). We think: two answers say little about a picture, and a circle has little room. With `K = 4096` two seeds fall and one rises.
#
# </details>
