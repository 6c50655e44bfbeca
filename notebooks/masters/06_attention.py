# %% [markdown]
# # 06 · Attention: see what the teacher sees
#
# <!-- badge -->
#
# DINO became known for its pictures: nobody told the network what an object is, and its attention
# lies on objects. Here you take a trained teacher apart. What does each head see? How does a map
# become a mask, and the mask a score? What does a map get that sees nothing?
#
# **You write** the attention row of the class token, its mask, the k-NN classifier, and five more
# pieces at the end.
#
# **You need** a vision transformer with a class token (notebook 02). Two trained teachers ship with
# the course.
#
# **Time:** about 85 minutes for the reading and *your turn* 1 to 3, 160 with the exercises; sections
# 6, 7 and 9 can be left for another day. The cells take about 45 seconds of one CPU core.
#
# [Before: 05, training](05_training.ipynb) · after: [07, the collapse lab](07_collapse_lab.ipynb)

# %% tags=["setup"]
# written by build.py

# %%
# %config InlineBackend.print_figure_kwargs = {"dpi": 80}

# %% tags=["equality"]
import copy
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from scipy.stats import spearmanr
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.transforms.v2.functional import pil_to_tensor

from dino_lib import PRESETS, explore, extract_features, knn_predict, load_teacher
from dino_lib import above_blind, auc, choose_head, cls_attention, jaccard
from dino_lib import mass_mask as finished_mask
from dino_lib.course import attention as checks
from dino_lib.course.prediction import settle
from dino_lib.data.images import PHOTOS, read_image
from dino_lib.data.transforms import EvalTransform, as_seen, middle_square
from dino_lib.look.features import cluster_plot, neighbour_sheet
from dino_lib.look.maps import attention_sheet, brightness, heads_of
from dino_lib.measure import attention
from dino_lib.measure.baselines import darkness, local_contrast
from dino_lib.measure.clusters import cluster_scores, embed_2d
from dino_lib.measure.components import principal_components
from dino_lib.measure.features import patch_features
from dino_lib.measure.heads import head_table, without_head
from dino_lib.measure.knn import color_histogram, nearest
from dino_lib.measure.masks import center_blobs, jaccard_one_head, patch_masks, upsample
from dino_lib.run.build import build_student, open_probes

# %% [markdown]
# ## 1. A teacher and a photograph
#
# Change these two lines, run all cells again, and everything below is about another teacher or
# photograph.

# %% tags=["equality"]
TEACHER = "demo"
PHOTO = PHOTOS / "llama.jpg"

# %% [markdown]
# | `TEACHER = ` | what it is |
# | --- | --- |
# | `"demo"` | ships with the course, trained for minutes on the embedded creatures |
# | `"photos"` | ships with the course, trained on photographs, 129 minutes of two CPU cores |
#
# <details><summary>Other teachers</summary>
#
# | `TEACHER = ` | what it is |
# | --- | --- |
# | `"runs/mine"` | the folder of your own run |
# | `"dino_deitsmall16_pretrain.pth"` | a file with the official weights, as torch.hub has them |
# | `"timm:vit_small_patch16_224.dino"` | Meta's own ViT-S/16 of the paper, downloaded |
# | `"timm:vit_small_patch14_reg4_dinov2.lvd142m"` | DINOv2 with registers, downloaded |
# | `"timm:vit_small_patch16_dinov3.lvd1689m"` | DINOv3, downloaded |
#
# The course was made without Meta's weights: a test runs every cell on networks and files of the
# same form with random ones.
#
# </details>
#
# `PHOTO` is any picture file; sixteen lie in `PHOTOS`, such as `panda.jpg`, and no shipped teacher
# has seen them. The sentences below describe `demo` and the llama.

# %% tags=["equality"]
teacher = load_teacher(TEACHER)
network = teacher.model  # image -> feature, behind one small interface; network.model is timm's
patch = network.patch_size  # (height, width) in pixels
channels = len(teacher.transform.mean)
size = 16 * max(patch)  # the photograph gets as many pixels as 16 x 16 patches have
photo, x_photo = as_seen(PHOTO, teacher.transform, patch, size)
photo_maps = cls_attention(teacher, x_photo[None])[0]  # (heads, h, w); TypeError without a CLS token
n_heads, *grid = photo_maps.shape
print(f"{TEACHER}: {n_heads} heads, patches of {patch[0]} x {patch[1]} pixels, "
      f"{network.num_prefix_tokens} token(s) before those of the patches; "
      f"the photograph has {grid[0]} x {grid[1]} patches")

# %% [markdown]
# Beside everything the teacher shows, we put the same network *untrained*: the weights it had
# before its first update. A network from elsewhere gets new random weights of the usual size.

# %%
@torch.no_grad()
def before_training(teacher):
    """The teacher's network with weights as before training."""
    if teacher.config:
        config = replace(teacher.config, pretrained=False, weights=None)
        return build_student(config).backbone.eval()
    torch.manual_seed(0)
    fresh = copy.deepcopy(teacher.model)
    for name, p in fresh.named_parameters():
        if p.ndim > 1:
            nn.init.trunc_normal_(p, std=0.02)
        elif "gamma" in name:
            p.fill_(1e-5)  # the layer scale of DINOv2 and DINOv3
        else:
            p.fill_(float("norm" in name and name.endswith("weight")))
    return fresh

untrained = before_training(teacher)

def over_photo(maps, picture=photo, name=Path(PHOTO).stem):
    """The photograph, and beside it maps (h, w) over it in grey, on one scale."""
    values, (low, high) = brightness(list(maps.values()))
    wide = 9.6 / (1 + len(values))
    figure = Figure((9.6, wide * picture.height / picture.width + 0.4), layout="constrained")
    axes = figure.subplots(1, 1 + len(values))
    extent = (0, picture.width, picture.height, 0)
    for axis, title, of in zip(axes, [name, *maps], [None, *values]):
        axis.imshow(picture.convert("L" if of is not None else "RGB"), cmap="gray", extent=extent)
        if of is not None:
            axis.imshow(of, cmap="inferno", vmin=low, vmax=high, extent=extent, alpha=0.7)
        axis.set_title(title, fontsize=10)
        axis.axis("off")
    return figure

untrained_maps = cls_attention(untrained, x_photo[None])[0]
over_photo({"teacher, mean of the heads": photo_maps.mean(0),
            "untrained, mean of the heads": untrained_maps.mean(0)})

# %% [markdown]
# Bright is much attention; both maps have one scale. The untrained network looks at everything
# alike, the teacher at the llama. `demo` has never seen a photograph, so how can that be? Section
# 10 tries one answer.

# %% [markdown] tags=["note"]
# **Note · 5 minutes.** Ask the room before anyone scrolls: "Is this proof that the network knows
# llamas?" Collect the doubts: one picture, chosen because it came out well; the llama is dark. Come
# back to the list in section 10. Common belief: "attention shows what the network thinks." It shows
# where the class token reads in one block, no more.

# %% [markdown]
# ## 2. One row of a matrix
#
# A *token* is the vector of one patch; the *class token* (CLS) is one more that stands for the
# whole picture. Each token asks a question (its *query*) and offers an answer (its *key*). The
# softmax of their products says how much of each token's *value* is read. In numbers: three tokens,
# the first of them CLS, with queries and keys of length 4.

# %%
queries = torch.tensor([[2.0, 0, 0, 2], [0, 1, 0, 0], [0, 0, 1, 0]])
keys = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 1], [0, 1, 1, 0]])
scores = queries @ keys.T / math.sqrt(4)
print(scores)
print(scores.softmax(-1).round(decimals=2))

# %% [markdown]
# Row 0 is what CLS reads: mostly token 1. For one head, with $q$ the query of CLS, $k_j$ the key of
# token $j$, $d$ their length and $T$ the number of tokens,
#
# $$a_j = \frac{\exp(q \cdot k_j / \sqrt d)}{\sum_{i=1}^{T} \exp(q \cdot k_i / \sqrt d)} .$$
#
# The map is the CLS row of the *last* block, laid out on the grid of patches, one map a head.
#
# The fused kernel that makes attention fast never forms the matrix. But queries, keys and values go
# into it, and a `TorchFunctionMode` sees them.

# %% tags=["equality"]
class AtTheDoor(TorchFunctionMode):
    """Keeps what goes into every attention kernel."""

    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            self.heard.append(args[:3])
        return function(*args, **(kwargs or {}))

@torch.no_grad()
def queries_keys_values(model, images):
    """(q, k, v) of each block, each (B, heads, T, d)."""
    with AtTheDoor() as door:
        model(images)
    return door.heard

q, k, v = queries_keys_values(network, x_photo[None])[-1]
print("queries of the last block:", tuple(q.shape), "= (pictures, heads, tokens, d)")

# %% [markdown]
# **Your turn 1 · medium · 10 minutes · the attention row.** From queries and keys of one block, write the maps of the CLS token. CLS is token 0. Other tokens may stand between CLS and the patches (*registers*, section 7); the patches come last, row by row of the grid. All tokens take part in the softmax; only the patches stand in the map. What should come out: `attention_row(q, k, grid)` has shape (pictures, heads, h, w), and each map sums to a little less than 1.
#
# <details><summary>Hint</summary>
#
# `q[:, :, :1] @ k.transpose(-2, -1)` are the scores of CLS alone, (B, heads, 1, T). Divide by the root of `q.shape[-1]`, take the softmax, keep the last h · w entries, and `unflatten` them.
#
# </details>

# %% tags=["stub", "equality"]
def attention_row(q, k, grid):
    """q, k (B, heads, T, d), the patches' tokens last; grid (h, w) -> (B, heads, h, w)."""
    ### BEGIN SOLUTION
    scores = q[:, :, :1] @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (B, heads, 1, T)
    row = scores.softmax(-1)[:, :, 0]
    n_patches = grid[0] * grid[1]
    return row[:, :, -n_patches:].unflatten(-1, tuple(grid))
    ### END SOLUTION

attention_row = checks.attention_row(attention_row)

# %% [markdown]
# **Equal?** The library's map comes from timm without the fused kernel. We compare in every block.

# %% tags=["equality"]
torch.manual_seed(0)
noise = torch.randn(2, channels, 3 * patch[0], 5 * patch[1])
blocks = queries_keys_values(network, noise)
for layer, (q, k, v) in enumerate(blocks):
    mine = torch.as_tensor(attention_row(q, k, (3, 5)))
    theirs = cls_attention(teacher, noise, layer=layer)
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)
print(f"equal in {len(blocks)} block(s): {tuple(mine.shape)}")

# %% [markdown]
# Is this the matrix that the block used? Then the matrix times the values is what the block passes
# on. We ask its last linear map, `proj`, what it got.

# %% tags=["equality"]
got = []
hook = network.model.blocks[-1].attn.proj.register_forward_pre_hook(
    lambda module, args: got.append(args[0]))
_, _, v = queries_keys_values(network, noise)[-1]
hook.remove()
matrix = attention.full_attention(teacher, noise)  # (B, heads, T, T)
joined = (matrix @ v).transpose(1, 2).flatten(2)  # (B, T, D): the heads side by side
torch.testing.assert_close(matrix.sum(-1), torch.ones(matrix.shape[:3]), rtol=0, atol=1e-4)
torch.testing.assert_close(joined, got[0], rtol=1e-3, atol=1e-4)
print("matrix times values is what the block passes on:", tuple(joined.shape))

# %% [markdown]
# **Predict, then run.** Forget the $\sqrt d$. How many patches share the attention then? The
# *entropy* counts them: $e$ to the entropy is the number of patches that would share it evenly.
#
# a) fewer: the map is sharper. b) more: the map is flatter. c) as many: the softmax divides it out.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
def patches_that_share(maps):
    """(heads, h, w) -> how many patches would share the attention evenly, mean of the heads."""
    shares = F.normalize(maps.flatten(1), p=1, dim=-1)
    return torch.special.entr(shares).sum(-1).exp().mean().item()

q, k, _ = queries_keys_values(network, x_photo[None])[-1]
q = q * q.shape[-1] ** 0.5  # undoes the division by the root that attention_row will do
without_root = torch.as_tensor(attention_row(q, k, grid))[0]
counts = patches_that_share(photo_maps), patches_that_share(without_root)
print(f"{counts[0]:.0f} of {math.prod(grid)} patches share the attention; without the root {counts[1]:.0f}")
answers = {"a": "the map is sharper", "b": "the map is flatter", "c": "no difference"}
ratio = counts[1] / counts[0]
settle(guess, answers, "a" if ratio < 0.9 else "b" if ratio > 1.1 else "c")
over_photo({"as the network computes": photo_maps.mean(0), "without the root": without_root.mean(0)})

# %% [markdown]
# Sharper is not better: the llama falls apart into spots, and it isn't what the network computes.
#
# ## 3. Heads
#
# Each head has its own queries and keys, so each may look elsewhere. In colours, each place has the
# colour of the head that looks at it most, and stays grey where none looks much. (These maps are
# smoothed from patch to patch.)

# %%
heads_of(pil_to_tensor(photo), photo_maps)

# %% [markdown]
# Head 0 looks at the sky, most of all in front of the llama's face; head 7 at everything but the
# llama, most at the grass; the other six at the llama.
#
# One photograph proves little. So we take the embedded creatures, with their outlines. `demo` was
# trained on others of the same kind, never on an outline. Each picture gets 8 × 8 patches; a
# teacher with larger patches sees it enlarged.

# %% tags=["equality"]
probes = open_probes(PRESETS["demo"], limit=400)  # 400 gallery pictures, 200 queries with outlines
side = 8 * max(patch)
mean, std = teacher.transform.mean, teacher.transform.std

def enlarged(pictures):
    """uint8 (N, 3, 48, 48) -> uint8 (N, channels, side, side)."""
    pictures = F.interpolate(pictures.float(), (side, side), mode="bicubic", antialias=True)
    pictures = pictures if channels == 3 else pictures.mean(1, keepdim=True)
    return pictures.round().clamp(0, 255).to(torch.uint8)

probes = replace(probes, gallery=enlarged(probes.gallery), queries=enlarged(probes.queries),
                 masks=upsample(probes.masks, (side, side)), mean=mean, std=std)
print(f"{len(probes.gallery)} + {len(probes.queries)} pictures of {len(probes.classes)} kinds, {side} pixels")

# %%
maps = probes.attention(teacher, 200)  # (200, heads, h, w)
blank = probes.attention(untrained, 200)
chosen, chosen_blank = choose_head(maps), choose_head(blank)
six = slice(2, 8)
rows = {f"head {head}": maps[six, head] for head in range(n_heads)}
rows[f"untrained\nhead {chosen_blank}"] = blank[six, chosen_blank]
attention_sheet(probes.queries[six], rows, masks=probes.masks[six])

# %% [markdown]
# Heads 1, 2, 3 and 4 are on the creatures in all six pictures, heads 5 and 6 in most. Heads 0 and 7
# look at spots of the ground and at some creatures. The last row is the untrained network's head
# that section 5 chooses: almost flat.
#
# **Predict, then run.** Nothing in the loss asks heads to differ, or to agree. The *correlation* of
# two heads' maps is 1 for the same pattern, 0 for none in common. What do two heads of the teacher
# get on average?
#
# a) below 0.2: they divide the work. b) between 0.2 and 0.8: they agree in part. c) above 0.8: one
# head would do.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
def agreement(maps):
    """(N, heads, P...) -> the mean correlation of each pair of heads (heads, heads)."""
    flat = maps.flatten(2)
    flat = F.normalize(flat - flat.mean(-1, keepdim=True), dim=-1)
    return (flat @ flat.transpose(1, 2)).mean(0)

tables = {"teacher": agreement(maps), "untrained": agreement(blank)}
pairs = ~torch.eye(n_heads, dtype=bool)
means = {name: of[pairs].mean().item() for name, of in tables.items()}
print(", ".join(f"{name}: {value:.2f}" for name, value in means.items()))
answers = {"a": "they divide the work", "b": "they agree in part", "c": "one would do"}
settle(guess, answers, "a" if means["teacher"] < 0.2 else "c" if means["teacher"] > 0.8 else "b")
figure = Figure((8, 3.4), layout="constrained")
for axis, (name, of) in zip(figure.subplots(1, 2), tables.items()):
    shown = axis.imshow(of, cmap="RdBu_r", vmin=-1, vmax=1)
    axis.set(title=name, xlabel="head", ylabel="head", xticks=range(n_heads), yticks=range(n_heads))
figure.colorbar(shown, ax=figure.axes, label="mean correlation")
figure

# %% [markdown]
# Heads 1, 2 and 3 of `demo` agree closely, so do heads 5 and 6, and head 1 with these; any two of
# heads 1 to 6 agree in part, and heads 0 and 7 go their own ways. So it matters *which* head a paper shows. The
# untrained heads have nothing in common on average.

# %% [markdown] tags=["note"]
# **Note · 10 minutes for sections 2 and 3.** At the sheet of heads, ask: "Which head would you put
# into a paper? How did you choose it?" Everyone used the outline. That is the point of section 5:
# choosing with the answer in hand flatters any network. Misconception: "heads are specialists by
# design." They start alike; what differs comes from their random weights.

# %% [markdown]
# ## 4. From a map to a mask
#
# To compare a map with an object, the paper turns it into a mask: the *smallest set of patches that
# holds 60% of the mass* (section 4.2.2). In numbers:

# %%
toy = torch.tensor([0.05, 0.40, 0.10, 0.30, 0.15])
mass, order = toy.sort(descending=True)
larger = mass.cumsum(0) - mass
print("sorted:", mass.numpy().round(2), "| held by the larger ones:", larger.numpy().round(2))
print("kept:", order[larger < 0.6].tolist())

# %% [markdown]
# A patch belongs to the set if the larger ones *before* it hold less than 60%.
#
# **Your turn 2 · medium · 10 minutes · the mass mask.** Write it for maps of any number of leading axes. The mass is that of the patches alone: a map need not sum to 1. What should come out: a bool tensor of the maps' shape; `mass_mask(toy[None], 0.6)` keeps entries 1 and 3.
#
# <details><summary>Hint</summary>
#
# Flatten the last two axes. Sort descending, take the cumulative sum less the entry itself, and compare with `keep` times the sum. `torch.zeros_like(inside).scatter(-1, order, inside)` puts the answers back into their places.
#
# </details>

# %% tags=["stub", "equality"]
def mass_mask(maps, keep=0.6):
    """maps (..., h, w), not negative -> bool, the smallest set with the share `keep` of the mass."""
    ### BEGIN SOLUTION
    flat = maps.flatten(-2)
    mass, order = flat.sort(dim=-1, descending=True)
    larger = mass.cumsum(-1) - mass
    inside = larger < keep * flat.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter(-1, order, inside).view(maps.shape)
    ### END SOLUTION

mass_mask = checks.mass_mask(mass_mask)

# %% [markdown]
# The score is the *Jaccard index* of mask $M$ and object $O$: what they share, over what either
# has, $\frac{|M \cap O|}{|M \cup O|}$. The paper takes the *best head of each picture* and averages
# over the pictures.

# %% tags=["equality"]
def my_jaccard(masks, truth):
    """masks bool (N, heads, H, W), truth bool (N, H, W) -> the index of each (N, heads)."""
    shared = (masks & truth[:, None]).sum((-2, -1))
    either = (masks | truth[:, None]).sum((-2, -1))
    return shared / either.clamp(min=1)

def masks_of(maps, share=0.6):
    """The mass masks, from `mass_mask`, as bool tensors."""
    return torch.as_tensor(mass_mask(maps.clone(), share)).bool()

# %% tags=["equality"] jupyter={"source_hidden": true} cellView="form"
# @title Check: masks and scores against the library's
generator = torch.Generator().manual_seed(1)
random_maps = torch.rand(20, 3, 6, 9, generator=generator) ** 2
truth = torch.rand(20, 12, 18, generator=generator) > 0.7
for keep in (0.3, 0.6, 0.9):
    mine = masks_of(random_maps, keep)
    assert torch.equal(mine, finished_mask(random_maps, keep))
    large = mine.repeat_interleave(2, -2).repeat_interleave(2, -1)
    assert torch.equal(large, upsample(mine, (12, 18)))
    index = my_jaccard(large, truth)  # (20, 3)
    torch.testing.assert_close(index.mean(0), jaccard_one_head(large, truth))
    assert abs(index.amax(1).mean().item() - jaccard(large, truth)) < 1e-6
print("masks and scores are equal at shares 0.3, 0.6 and 0.9")

# %% [markdown]
# **Predict, then run.** A blind rival: as many fixed *blobs* near the middle as there are heads, the
# same for every picture. The paper's score (best head of each picture) for three sets of maps:
#
# a) teacher > untrained > blobs. b) teacher > blobs > untrained. c) blobs beat the teacher.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
blobs = center_blobs(n_heads, (8, 8)).expand_as(maps)
looks = {"teacher": maps, "untrained": blank, "blobs": blobs}

def paper_score(maps, keep=0.6):
    return jaccard(upsample(masks_of(maps, keep), (side, side)), probes.masks)

papers = {name: paper_score(of) for name, of in looks.items()}
for name, score in papers.items():
    print(f"Jaccard, best of {n_heads} for each picture: {score:.2f} {name}")
answers = {"a": "teacher > untrained > blobs", "b": "teacher > blobs > untrained",
           "c": "blobs beat the teacher"}
measured = "a" if papers["untrained"] > papers["blobs"] else "b"
settle(guess, answers, measured if papers["teacher"] > papers["blobs"] else "c")

# %% [markdown]
# The masks, with the outlines. Every row shows the head (or the blob) that fits best, chosen for
# each picture with the outline in hand, as the paper's score does:

# %%
def best_masks(maps, which):
    masks = upsample(masks_of(maps[which]), (side, side))  # with sharp edges
    index = my_jaccard(masks, probes.masks[which])
    return masks[range(len(masks)), index.argmax(1)].float()

rows = {name: best_masks(of, six) for name, of in looks.items()}
attention_sheet(probes.queries[six], rows, masks=probes.masks[six])

# %% [markdown]
# **Here the paper's score is half blind.** (On PASCAL the paper has 46 for DINO, 27 for a
# supervised network and 22 for random weights; for a blob it gives no number.) `demo` gets 0.40,
# but blobs that never see a picture get 0.39, more than the untrained network: of eight blobs one often lies right. And the teacher's
# masks lie mostly on the creature, but seldom cover it: so is it the 60%?

# %% tags=["nbval-ignore-output"]
for share in (0.3, 0.6, 0.9):
    scores = [f"{name} {paper_score(of, share):.2f}" for name, of in looks.items()]
    print(f"{share:.0%} of the mass:", ", ".join(scores))

# %% [markdown]
# With 90% the teacher is far ahead; with 30% it is behind. Its maps are peaked, so that little
# mass fills little of the creature. The rank of the three hangs on a number that somebody chose. We
# need a score without a threshold, in which a blind map gets nothing.
#
# ## 5. A score that a blind map can't get
#
# **AUC**: take a patch of the object and one of the background. How often has the object's the
# larger value (ties count half)? Chance is 0.5, but a blob in the middle gets more. So the object
# plays against the places where *other* pictures have their objects. In numbers: two pictures of
# three patches; the object is the middle patch in the first, the right one in the second.

# %%
blind = [0.1, 0.6, 0.3], [0.1, 0.6, 0.3]  # left, middle, right: the same map for both pictures
sees = [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]
for name, (first, second) in {"blind": blind, "sees ": sees}.items():
    against_other = [first[1] > first[2], second[2] > second[1]]  # there the other has its object
    against_all = [*against_other, first[1] > first[0], second[2] > second[0]]
    print(f"{name}: the object wins {np.mean(against_all):.2f} against all of the background, "
          f"{np.mean(against_other):.2f} against the other's place")

# %% [markdown]
# The blind map gets 0.75 against the background, for it is bright where objects often are. Against
# the other's place it loses on one picture what it wins on the other. In general:
#
# $$s = \frac{1}{|O|} \sum_{p \in O} \sum_{q} w_q
# \left( [a_p > a_q] + \tfrac12\,[a_p = a_q] \right), \qquad
# \text{above blind} = \frac{\bar s - \frac12}{\bar s^{\,\circ} - \frac12}$$
#
# $w_q$ says how often *other* pictures have their object at $q$, and sums to 1; $s$ is how often a
# patch of the object beats one drawn so. $\bar s$ is the mean over the pictures, and
# $\bar s^{\,\circ}$ the same with the masks as maps. So the masks get 1. A map that is the same for
# every picture gets 0 (exactly, if all objects are equally large). ($\bar s$ alone is
# known as *shuffled AUC*.)

# %% tags=["equality"]
def my_above_blind(maps, objects):
    """maps (N, heads, h, w), objects bool (N, h, w) -> (heads,)."""
    a, y = maps.flatten(2), objects.flatten(1).float()  # (N, heads, P), (N, P)
    w = y.sum(0) - y  # how many of the other objects lie on each patch
    w = w / w.sum(1, keepdim=True)

    def mean_s(a):
        p, q = a[..., :, None], a[..., None, :]
        wins = (p > q).float() + (p == q).float() / 2  # (N, heads, P, P)
        s = torch.einsum("np,nhpq,nq->nh", y, wins, w) / y.sum(1, keepdim=True)
        return s.mean(0)

    return (mean_s(a) - 0.5) / (mean_s(y[:, None]) - 0.5)

# %% tags=["equality"] jupyter={"source_hidden": true} cellView="form"
# @title Check: above blind and AUC against the library's
places = torch.rand(20, 6, 9, generator=generator) > 0.6
coarse = (4 * random_maps).round()  # with many ties
for some in (random_maps, coarse, random_maps + places[:, None]):
    torch.testing.assert_close(my_above_blind(some, places), above_blind(some, places),
                               rtol=1e-4, atol=1e-5)
wins = [a[y][:, None] > a[~y] for a, y in zip(random_maps[:, 0], places)]  # no ties here
mine = torch.stack([won.float().mean() for won in wins]).mean()
torch.testing.assert_close(mine, auc(random_maps[:, [0]], places)[0], rtol=1e-4, atol=1e-5)
print("above blind is equal on 3 sets of maps, AUC on 1")

# %% [markdown]
# Two more rivals see the picture without a network: how much the pixels of a patch differ (*local
# contrast*), and how *dark* it is. A patch counts as the object's if that covers more than half of
# it.
#
# Which head do we show? `choose_head` uses no outline. It takes the head whose brightest quarter
# has the fewest patches on the border, because the ground reaches the border more often than an
# object does; of heads that are about level there, the one that the others agree with. Heads whose
# maps hardly change from picture to picture are left out: a blob in the middle would win.

# %% tags=["nbval-ignore-output"]
objects = patch_masks(probes.masks, (8, 8))  # (200, 8, 8)
for baseline in (local_contrast, darkness):
    looks[baseline.__name__.replace("_", " ")] = baseline(probes.queries, (8, 8))[:, None]
worth = {name: above_blind(of, objects) for name, of in looks.items()}
figure = Figure((8, 3), layout="constrained")
axis = figure.subplots()
for place, (name, of) in enumerate(worth.items()):
    axis.scatter(of, [place] * len(of), s=70, alpha=0.6)
    print(f"{name:15} above blind {of.min():5.2f} to {of.max():5.2f}")
for place, head in [(0, chosen), (1, chosen_blank)]:
    of = list(worth.values())[place][head]
    axis.scatter(of, place, s=150, facecolors="none", edgecolors="black")
axis.set(yticks=range(len(worth)), yticklabels=worth, xlabel="above blind: 0 blind, 1 the outlines")
axis.invert_yaxis()
axis.axvline(0, color="grey", linewidth=0.8)
figure

# %% [markdown]
# Each dot is a head, a blob or a map; the circle is the head that `choose_head` takes. The blobs
# get about 0 (-0.05 to -0.03: the creatures differ in size). Six heads of `demo` lie above every
# rival, the other two at 0 and below. The strongest rivals are darkness, for most creatures are
# darker than their ground, and local contrast: those are the numbers to beat.
#
# **Where is it worst?** The chosen head's six worst and six best pictures, by the AUC of each, and
# its mask. Over all pictures: does the AUC go with how dark a creature is against its ground, or
# with its size?

# %%
of_each = torch.cat([auc(maps[i : i + 1, [chosen]], objects[i : i + 1])
                     if objects[i].any() else torch.tensor([0.5]) for i in range(len(maps))])

def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].item()

def rank_correlation(a, b):
    return spearmanr(a.flatten(), b.flatten()).statistic

dark = looks["darkness"][:, 0]
told = [i for i in range(len(maps)) if objects[i].any()]  # the others cover no patch
darker = torch.stack([dark[i][objects[i]].mean() - dark[i][~objects[i]].mean() for i in told])
large = objects[told].sum((1, 2))
print(f"rank correlation of the AUC with how much darker the creature is: "
      f"{rank_correlation(of_each[told], darker):.2f}, with its size: "
      f"{rank_correlation(of_each[told], large):.2f}")
order = of_each.argsort()
ends = torch.cat([order[:6], order[-6:]])
masks = upsample(masks_of(maps[ends, chosen]), (side, side)).float()
rows = {f"head {chosen}": maps[ends, chosen], "its mask": masks,
        "untrained": blank[ends, chosen_blank]}
titles = [f"{value:.2f}" for value in of_each[ends]]
attention_sheet(probes.queries[ends], rows, masks=probes.masks[ends], titles=titles)

# %% [markdown]
# AUC counts the order of the patches, not how bright they are: a pale map can score well, and of
# two creatures one may stay dim as long as it is above the ground. Over all pictures darker creatures
# do a little better, and larger ones a little worse.

# %% [markdown] tags=["note"]
# **Note · 12 minutes for sections 4 and 5.** Let the room say why eight blobs beat an untrained
# network. Wanted: "because the best of eight is picked with the outline". Then ask what *above blind*
# gives to a map that is always brightest in the middle, in pictures whose objects are always in the
# middle. (Nothing: the objects can't be told from their place, and `above_blind` refuses.)

# %% [markdown]
# ## 6. Through the layers
#
# What do the earlier blocks see? Each head's score, block by block, and the strongest rival.

# %% tags=["nbval-ignore-output"]
by_layer = {}
for name, model in {"teacher": teacher, "untrained": untrained}.items():
    layers = attention.every_layer(model, probes.normalize(probes.queries))
    by_layer[name] = torch.stack([above_blind(of, objects) for of in layers])  # (layers, heads)
figure = Figure((7, 3), layout="constrained")
axis = figure.subplots()
numbers = range(1, 1 + len(by_layer["teacher"]))
rival = max(worth["local contrast"][0], worth["darkness"][0]).item()
for (name, of), color, aside in zip(by_layer.items(), ("C0", "C7"), (-0.05, 0.05)):
    for number, heads in zip(numbers, of):
        axis.scatter([number + aside] * len(heads), heads, color=color, alpha=0.6,
                     label=f"{name}, a head" if number == 1 else None)
        ahead = (heads > rival + 0.1).sum()
        print(f"{name:10} block {number}: best head {heads.max():.2f}; {ahead} of {len(heads)} are "
              "ahead of the rivals by more than 0.1")
axis.axhline(rival, color="C3", linestyle="--", label="strongest rival, no network")
axis.set(xlabel="block", ylabel="above blind", xticks=numbers, xlim=(0.5, len(numbers) + 0.5))
axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
figure

# %% [markdown]
# In the first block of `demo` five of the eight heads are far above the rivals, and one is level
# with darkness; in the second six are far above.
#
# In every block a token also keeps its old self (the residual connection). *Rollout* ([Abnar &
# Zuidema 2020](https://arxiv.org/abs/2005.00928)) counts this as attention to itself and multiplies
# through. With $\bar A_l$ the mean over the heads of block $l$ and $I$ the identity, the rows of
#
# $$R = \tfrac12(\bar A_L + I) \cdots \tfrac12(\bar A_2 + I)\,\tfrac12(\bar A_1 + I)$$
#
# say from which *input* patches each token was mixed. Exercise 7 lets you write it.

# %% tags=["nbval-ignore-output"]
rolled = attention.rollout(teacher, probes.normalize(probes.queries))[:, None]
print(f"above blind: mean map of the last block {above_blind(maps.mean(1, keepdim=True), objects)[0]:.2f}, "
      f"rollout {above_blind(rolled, objects)[0]:.2f}")

# %% [markdown]
# Here it adds nothing: two blocks leave little to multiply.
#
# ## 7. Registers and long tokens
#
# Some large networks use a few patches of plain background as a scratch pad: DINOv2, supervised and
# CLIP networks, though not the first DINO. These tokens are *very long*, and attention on them
# tells nothing about the picture ([Darcet et al. 2023](https://arxiv.org/abs/2309.16588)). The remedy: spare tokens for that purpose, *registers*.
# `photos` has four.
#
# **Predict, then run.** How does the longest patch token of `photos` compare with the median?
#
# a) less than 3 times. b) 3 to 10 times. c) more than 10 times, a scratch pad as in large
# networks.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def lengths(model, x):
    """(CLS and registers (B, prefix), patches (B, P)): tokens' lengths after the last block."""
    kept = []
    hook = model.model.blocks[-1].register_forward_hook(lambda module, args, out: kept.append(out))
    model(x)
    hook.remove()
    n = model.num_prefix_tokens
    norms = kept[0].norm(dim=-1)
    return norms[:, :n], norms[:, n:]

registered = load_teacher("photos")
_, x_registered = as_seen(PHOTO, registered.transform, registered.model.patch_size, 128)
found = {TEACHER: (network, x_photo), "photos": (registered.model, x_registered)}
found |= {f"{name}, untrained": (before_training(of), x)
          for name, of, x in [(TEACHER, teacher, x_photo), ("photos", registered, x_registered)]}
longest = {}
figure = Figure((9, 3), layout="constrained")
axis = figure.subplots()
for name, (model, x) in found.items():
    prefix, of = lengths(model, x[None])
    of, prefix = of[0] / of.median(), prefix[0] / of.median()
    longest[name] = of.max().item()
    axis.hist(of.numpy(), bins=50, range=(0.4, 2.4), histtype="step", linewidth=2, label=name,
              linestyle="--" if "untrained" in name else "-")
    lens = ", ".join(f"{value:.1f}" for value in prefix[1:]) or "none"
    print(f"{name:18} longest patch {longest[name]:.1f} medians; registers: {lens}")
answers = {"a": "no long tokens", "b": "some long tokens", "c": "as in large networks"}
settle(guess, answers, "a" if longest["photos"] < 3 else "b" if longest["photos"] < 10 else "c")
axis.set(xlabel="length of a patch's token / median", ylabel="patches", yscale="log")
axis.legend(frameon=False, fontsize=8)
figure

# %% [markdown]
# `demo` has a tail, to 2.2, and `photos` one to 1.9, both far from 10; its registers are at most half
# as long again as the median patch: no such long tokens here. Within DINOv2, too, Darcet et al. find
# them in the largest networks alone. To see them, set
# `TEACHER` to `timm:vit_large_patch14_dinov2.lvd142m`, then to
# `timm:vit_large_patch14_reg4_dinov2.lvd142m`.
#
# ## 8. Neighbours
#
# What is a *feature*, the vector of the whole picture, worth? Look for the most similar ones among
# pictures with known classes (the *gallery*), and let them vote. In numbers: a query, four gallery
# features of two classes, and their *cosines*.

# %%
toy_gallery = F.normalize(torch.tensor([[3.0, 1], [2, 2], [1, 3], [0, 1]]), dim=-1)
toy_labels = torch.tensor([0, 1, 1, 1])
toy_query = F.normalize(torch.tensor([[1.0, 0.2]]), dim=-1)
cosine, index = (toy_query @ toy_gallery.T).topk(3)
weight = (cosine / 0.07).exp()
print("nearest:", index[0].tolist(), "classes:", toy_labels[index[0]].tolist(),
      "cosines:", cosine[0].numpy().round(2))
for c in (0, 1):
    print(f"class {c}: {weight[toy_labels[index] == c].sum() / weight.sum():.2f} of the vote")

# %% [markdown]
# Class 1 has two of the three neighbours, but class 0 wins: the weight is $\exp(\cos / 0.07)$.
#
# **Your turn 3 · medium · 10 minutes · k-NN.** Write the classifier. Features come with any length, so normalise them first. What should come out: `knn(toy_gallery, toy_labels, toy_query, k=3)` is class 0.
#
# <details><summary>Hint</summary>
#
# `F.normalize(…, dim=-1)` on both; their product are the cosines, (M, N). `topk(k)` gives values and indices, `labels[indices]` the neighbours' classes (M, k). `F.one_hot(classes)` times the weights, summed over the neighbours, are the votes; then `argmax`.
#
# </details>

# %% tags=["stub", "equality"]
def knn(gallery, labels, queries, k=20, temperature=0.07):
    """gallery (N, D), labels int (N,), queries (M, D) -> the class of each query, int (M,)."""
    ### BEGIN SOLUTION
    gallery, queries = F.normalize(gallery, dim=-1), F.normalize(queries, dim=-1)
    cosine, index = (queries @ gallery.T).topk(k)  # (M, k)
    weights = (cosine / temperature).exp()
    votes = weights[:, :, None] * F.one_hot(labels[index])  # (M, k, classes)
    return votes.sum(1).argmax(-1)
    ### END SOLUTION

knn = checks.knn(knn)

# %% tags=["equality"]
generator = torch.Generator().manual_seed(2)
some, asked = torch.randn(200, 8, generator=generator), torch.randn(100, 8, generator=generator)
classes = torch.randint(5, (200,), generator=generator)
for number in (1, 5, 20):
    mine = knn(some, classes, asked, k=number)
    assert torch.equal(torch.as_tensor(mine), knn_predict(some, classes, asked, k=number))
print("100 queries get the same class as the library's for k = 1, 5 and 20")

# %% [markdown]
# **Predict, then run.** 20-NN on the creatures, gallery of 400, 200 queries. A rival is the *colour
# histogram*: how often each colour occurs. *Level* means: within two standard errors of the
# difference.
#
# a) the teacher is ahead, the other two are level. b) the teacher is ahead, and one of the others
# clearly beats the third. c) a rival is level with the teacher, or ahead.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
features = {"teacher": probes.features(teacher), "untrained": probes.features(untrained),
            "colour histogram": tuple(map(color_histogram, (probes.gallery, probes.queries)))}
k = min(20, len(probes.gallery))

def hits_of(gallery, queries):
    """1 for each query whose class the k-NN finds, else 0: (queries,)."""
    answer = knn(gallery.clone(), probes.gallery_labels, queries.clone(), k=k)
    return (torch.as_tensor(answer) == probes.query_labels).float()

def standard_error(values):
    return values.std().item() / math.sqrt(len(values))

hit = {name: hits_of(*of) for name, of in features.items()}
right = {name: of.mean().item() for name, of in hit.items()}
for name, of in hit.items():
    print(f"{k}-NN, gallery of {len(probes.gallery)}: {right[name]:.2f} ± {standard_error(of):.2f} {name}")

def ahead(one, other):
    """By how many standard errors of the difference `one` is ahead of `other`."""
    difference = hit[one] - hit[other]
    return difference.mean().item() / max(standard_error(difference), 1e-6)

answers = {"a": "the teacher is ahead, the other two are level",
           "b": "the teacher is ahead, and one of the others clearly beats the third",
           "c": "a rival is level with the teacher, or ahead"}
apart = ahead("untrained", "colour histogram")
lead = min(ahead("teacher", name) for name in ("untrained", "colour histogram"))
print(f"teacher ahead by {lead:.0f} standard errors, untrained of the histogram by {apart:.1f}")
settle(guess, answers, "c" if lead <= 2 else "a" if abs(apart) <= 2 else "b")

# %% [markdown]
# Three queries and their five nearest pictures in the gallery:

# %%
asked = [0, 3, 7]
sheet = {name: nearest(*of, 5)[1][asked] for name, of in features.items()}
index = torch.cat(list(sheet.values()))
labels = probes.query_labels[asked].repeat(len(sheet))
titles = [name for name in sheet for _ in asked]
neighbour_sheet(probes.queries[asked].repeat(len(sheet), 1, 1, 1), probes.gallery[index],
                probes.gallery_labels[index] == labels[:, None], titles)

# %% [markdown]
# `demo`'s neighbours have the query's kind more often, in other places and turns.
#
# ## 9. Take a head out
#
# A map shows where a head reads. Does the feature need it? `without_head` silences one head of the
# last block: what it read is not passed on. Then we ask the k-NN again.
#
# **Predict, then run.** Which head costs the k-NN most?
#
# a) the head that sees the creatures best. b) another head. c) no head costs more than twice the
# standard error of the difference.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
@torch.no_grad()
def features_without(model, x):
    """Features (heads + 1, N, D): without each head of the last block, and with all of them."""
    last, kept = model.model.blocks[-1], []
    hook = last.register_forward_pre_hook(lambda m, args, kwargs: kept.append((args, kwargs)),
                                          with_kwargs=True)
    model(x)
    hook.remove()
    [(args, kwargs)] = kept
    found = []
    for head in range(n_heads):
        with without_head(model, head):
            found.append(model.model.norm(last(*args, **kwargs))[:, 0])
    return torch.stack([*found, model.model.norm(last(*args, **kwargs))[:, 0]])

galleries = features_without(network, probes.normalize(probes.gallery))
queries = features_without(network, probes.normalize(probes.queries))
hits = torch.stack([hits_of(*of) for of in zip(galleries, queries)])  # (heads + 1, N)
differences = hits[:-1] - hits[-1]
change = differences.mean(1)
error = differences.std(1) / math.sqrt(hits.shape[1])
best = worth["teacher"].argmax().item()
print(f"with all heads {hits[-1].mean():.2f}; without one of them "
      + ", ".join(f"{value:.2f}" for value in hits[:-1].mean(1)))
worst = change.argmin().item()
answers = {"a": "the head that sees the creatures best", "b": "another head", "c": "none that tells"}
settle(guess, answers, "c" if -change[worst] <= 2 * error[worst] else "a" if worst == best else "b")
figure = Figure((8, 3), layout="constrained")
left, right_ = figure.subplots(1, 2)
left.bar(range(n_heads), change, yerr=error, color=["C1" if h == best else "C0" for h in range(n_heads)])
left.axhline(0, color="grey", linewidth=0.8)
left.set(xlabel="head taken out", ylabel="change of 20-NN", xticks=range(n_heads))
table = head_table(maps, objects)
right_.bar(range(n_heads), table["above_blind"],
           color=["C1" if h == best else "C0" for h in range(n_heads)])
right_.set(xlabel="head", ylabel="above blind", xticks=range(n_heads))
figure

# %% [markdown]
# Orange is the head that sees the creatures best, head 1: without it nothing is lost. The thin lines
# are one standard error; the most is lost without head 5, less than two of them. Five other heads
# read the same places, and the token keeps what the earlier blocks gave it. So a good map doesn't
# prove that the feature hangs on it.

# %% [markdown] tags=["note"]
# **Note · 10 minutes for sections 8 and 9.** Ask before the plot: "If I remove the head with the most
# beautiful map, what should happen?" Most expect a collapse. Misconception: "attention explains the
# decision." A head taken out is an experiment, a map is only a look. Have someone read the error bars
# aloud before anyone names a head.

# %% [markdown]
# ## 10. The llama, or the dark?
#
# The llama is black. We change one thing: in the photograph's *negative* dark is light.
#
# **Predict, then run.** Where does the mean map go?
#
# a) it stays where it was. b) it goes where the negative is dark. c) neither: it goes elsewhere.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
negative = photo.point(lambda value: 255 - value)
x_negative = teacher.transform.normalize(negative)
there = cls_attention(teacher, x_negative[None])[0].mean(0)
dark, dark_before = [darkness(pil_to_tensor(of)[None], grid)[0] for of in (negative, photo)]
before = [correlation(of.mean(0), dark_before) for of in (photo_maps, untrained_maps)]
stays, follows = correlation(there, photo_maps.mean(0)), correlation(there, dark)
blind = correlation(cls_attention(untrained, x_negative[None])[0].mean(0), dark)
print(f"the photograph's map: correlation {before[0]:.2f} with the photograph's dark places "
      f"(untrained: {before[1]:.2f})")
print(f"the negative's map: correlation {stays:.2f} with the photograph's map, {follows:.2f} with the "
      f"negative's dark places (untrained: {blind:.2f})")
answers = {"a": "it stays", "b": "it follows the dark", "c": "it goes elsewhere"}
settle(guess, answers, "c" if max(stays, follows) < 0.2 else "a" if stays > follows else "b")
over_photo({"teacher": there, "untrained": cls_attention(untrained, x_negative[None])[0].mean(0)},
           negative, "its negative")

# %% [markdown]
# The shape is the same, and the map leaves most of the llama for spots along its outline, and one in
# the sky. So the shape alone doesn't hold it. How much is the dark? On the photograph the correlation
# is 0.63, but the untrained network's almost flat map has 0.59 by itself. On the negative it is 0.10
# against -0.19. So the dark draws the teacher a little, but alone it doesn't hold the map either. What
# does, we don't know.
#
# ### Horses
#
# One llama is an anecdote. `benchmarks/horses.py` measured 251 photographs of horses with outlines
# (96 pixels; they don't ship). Beside `demo` and `photos` stand three seeds of the preset `laptop`: it
# has the network and the photographs of `photos`, and a third of its updates.
#
# | above blind | chosen head | best head |
# | --- | --- | --- |
# | `demo` | 0.38 | 0.41 |
# | `demo` untrained, three seeds | 0.10 to 0.24 | 0.10 to 0.25 |
# | `photos` | 0.32 | 0.53 |
# | the preset `laptop`, seed 0 | 0.45 | 0.45 |
# | the preset `laptop`, seed 1 | 0.41 | 0.41 |
# | the preset `laptop`, seed 2 | 0.41 | 0.55 |
# | `photos` untrained, three seeds | 0.11 to 0.25 | 0.11 to 0.31 |
# | no network: local contrast | 0.26 | |
# | no network: darkness | 0.34 | |
# | no network: redness (red less green) | 0.42 | |
#
# The heads chosen for the preset's seeds are ahead of contrast and darkness, the one for `demo` a
# little; the one for `photos` is behind darkness. None is far from redness, which takes no network. The
# heads that are clearly ahead of it, at 0.53 and 0.55, aren't chosen: we know of them by the masks.
# This is a beginning. The paper's maps come from 1.3 million photographs and days of GPU time.

# %% [markdown] tags=["note"]
# **Note · 5 minutes.** Go through the room's list from section 1: which doubts did the negative settle,
# which the horses? Then cover the last three rows and ask what a head has to reach before one may say
# that it found the horse. *Misconception:* "a better network has better maps." `photos` has the better
# features, and not the better heads.

# %% [markdown]
# ## 11. What the patches know
#
# A map shows what one head reads. One can also look at the patches' tokens themselves, those after
# the last block, without a head and without masks. Collect them from *many* pictures, find the
# direction in which they differ most, and see how far each patch lies along it: their *first
# principal component*. In figure 1 of [DINOv2](https://arxiv.org/abs/2304.07193) the patches above a
# threshold are the object. (Which end is up, no component says. Here the border is low, as in
# `choose_head`. Exercise 8 lets you write it, with a simpler rule for the sign.)
#
# **Predict, then run.** Above blind of the first component on the 200 creatures, with `demo`:
#
# a) like that of the untrained tokens, or of the patches' mean colours. b) more than both by 0.1. c)
# more than the chosen head, too.

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
def mean_colours(images, grid):
    """uint8 (N, 3, H, W) -> (N, *grid, 3)."""
    return F.adaptive_avg_pool2d(images / 255, grid).movedim(1, -1)

x = probes.normalize(probes.queries)
tokens = {"teacher": patch_features(teacher, x), "untrained": patch_features(untrained, x),
          "mean colour": mean_colours(probes.queries, objects.shape[1:])}
first = {name: above_blind(principal_components(of), objects)[0].item() for name, of in tokens.items()}
for name, value in first.items():
    print(f"first component, {name:11} above blind {value:.2f}")
print(f"the head that is chosen, teacher  {worth['teacher'][chosen]:.2f}")
answers = {"a": "as the untrained", "b": "ahead of untrained and colour", "c": "ahead of the head"}
best = max(first["untrained"], first["mean colour"])
settle(guess, answers, "c" if first["teacher"] > worth["teacher"][chosen]
       else "b" if first["teacher"] > best + 0.1 else "a")

# %% [markdown]
# It is ahead of the strongest rivals of section 5 as well, and behind the chosen head.
#
# Now photographs, with the teacher `photos`. The component is that of all sixteen; each row has one
# scale. Beside it, how the patches' ranks go with two maps that no network made.

# %%
paths = sorted(PHOTOS.glob("*.jpg"))
squares = [middle_square(read_image(path), 240) for path in paths]
pixels = torch.stack([pil_to_tensor(square) for square in squares])
x = torch.stack([registered.transform.normalize(square) for square in squares])
tokens = {"mean colour,\nno network": mean_colours(pixels, (30, 30)),
          "untrained": patch_features(before_training(registered), x),
          "trained": patch_features(registered, x)}
components = {name: principal_components(of)[:, 0] for name, of in tokens.items()}
for name, of in components.items():
    with_contrast, with_dark = [rank_correlation(of, baseline(pixels, (30, 30)))
                                for baseline in (local_contrast, darkness)]
    print(f"{name.split(',')[0]:12} rank correlation with local contrast {with_contrast:.2f}, "
          f"with darkness {with_dark:.2f}")
attention_sheet(pixels[:8], {name: of[:8] for name, of in components.items()})

# %%
attention_sheet(pixels[8:], {name: of[8:] for name, of in components.items()})

# %% [markdown]
# Mean colours differ most in how dark they are; the trained tokens, in texture. Where the object alone
# has it, the component fills the object: the bonsai, the chair, the motorbike, the leopard with the
# grass at its feet. Of the butterfly and the sunflower it takes a part. Where the ground has texture
# too, it fills the scene (elephant, kangaroo, rooster) or the ground (panda). Darkness gives away the
# llama, the chair and the motorbike, and not the leopard. Nobody asked for this direction.
#
# The horses of section 10, with the component of all 251. A *readout* is told the masks of four
# fifths of the horses (a logistic regression on the tokens), and finds the rest. The *stem* is the
# stack of convolutions that makes the tokens, before the first block.
#
# | above blind | first component | readout, with masks |
# | --- | --- | --- |
# | tokens of `photos` | 0.48 | 0.72 |
# | of the preset `laptop`, seeds 0, 1, 2 | 0.49, 0.54, 0.50 | 0.67, 0.67, 0.69 |
# | untrained, three seeds | 0.18 to 0.31 | 0.40 to 0.46 |
# | what the stem of `photos` gives | | 0.76 |
# | its stem untrained, three seeds | | 0.53 to 0.58 |
# | mean colours of the patches | 0.35 | 0.57 |
# | *no component*: how unlike its picture's border a patch's mean colour is | 0.46 | |
#
# So without masks the tokens of `photos` tell more of a horse than its chosen head (0.32), and more
# than local contrast (0.26). Colour alone comes close, if it may look at the border, as the component's
# sign does. With masks, colour has most of what there is to find; training adds the rest in the stem,
# and by this measure the blocks add nothing that a readout can use.

# %% [markdown] tags=["note"]
# **Note · 5 minutes.** Cover the last rows and have the room say which pictures darkness alone would
# give away (the llama, the motorbike: dark on light). Then ask for one that it can't: the
# leopard is as dark as its grass. *Misconception:* "the component is an object detector." It is
# the direction of the largest differences, whatever these are; with other pictures beside them the
# same patches get another one.

# %% [markdown]
# ## The closing picture
#
# Attention and clusters, before training and after. Each row shows the head that `choose_head`
# takes. In the plane (t-SNE: near features stay near) each dot is a picture and each colour a kind.
# *NMI* compares ten clusters, found without labels, with the kinds: 1 is the same. The last line of
# the table, clusters of random numbers, is chance.

# %%
ten = slice(10, 20)
rows = {f"untrained\nhead {chosen_blank}": blank[ten, chosen_blank],
        f"teacher\nhead {chosen}": maps[ten, chosen]}
attention_sheet(probes.queries[ten], rows, masks=probes.masks[ten])

# %% tags=["nbval-ignore-output"]
panels, table = {}, {}
for name in ("colour histogram", "untrained", "teacher"):
    of = features[name][1]
    table[name] = cluster_scores(of, probes.query_labels)["nmi"]
    panels[f"{name}: NMI {table[name]:.2f}"] = embed_2d(of)
print(f"{'':17} 20-NN   NMI   above blind, chosen head")
for name, head in [("colour histogram", None), ("untrained", chosen_blank), ("teacher", chosen)]:
    last = "" if head is None else f"{worth[name][head]:.2f}"
    print(f"{name:17} {right[name]:.2f}    {table[name]:.2f}  {last}")
random = [torch.randn(features["teacher"][1].shape, generator=generator) for _ in range(3)]
chance = [cluster_scores(of, probes.query_labels)["nmi"] for of in random]
print(f"{'random numbers':17}         {np.mean(chance):.2f}")
cluster_plot(panels, probes.query_labels, probes.classes)

# %% [markdown]
# ## Your own photographs
#
# `explore` writes one page that needs no kernel: choose picture, layer, head and threshold, click
# on a patch to see what it attends to. It takes a folder of yours in place of `PHOTO`; `page` alone
# on the last line shows it here.

# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp())  # to keep it: Path(".")
page = explore({"teacher": teacher, "untrained": untrained}, PHOTO, path=folder / "explorer.html",
               size=size, progress=False)
print(f"{page.path.name}: {page.path.stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# From a terminal: `dino explore FOLDER --teacher photos --out seen`; `dino video CLIP` makes a film
# of a clip's attention; `dino report` scores a teacher on your labelled pictures.
#
# ## Summary
#
# - A map is the CLS token's row of softmax(q kᵀ / √d). Matrix times values is what the block passes
#   on.
# - A mask is the smallest set of patches with 60% of the mass. "Jaccard, best of the heads" is half
#   blind: fixed blobs come close to the teacher, and with another share the ranks change.
# - Above blind gives any fixed map about 0 and the outlines 1. Maps that no network made belong
#   beside it.
# - A fine map doesn't prove that the feature needs the head: take it out and measure.
# - A fine map on one photograph doesn't prove that the object was seen: change one thing and look.
# - The patch tokens can be asked without a head: their first principal component needs no masks. What
#   it parts, here texture from flat ground, nobody chose.
#
# ## Exercises

# %% [markdown]
# **Exercise 4 · easy · 10 minutes · the spread of a head.** The entropy in nats of each head's map, averaged over the pictures. The prefix tokens' share is no part of a map, so make each map sum to 1 first. What should come out: one number a head, at most the logarithm of the number of patches.
#
# <details><summary>Hint</summary>
#
# `torch.special.entr(p)` is $-p \ln p$, and 0 at 0. Sum over the patches, then average over the pictures.
#
# </details>

# %% tags=["stub"]
def head_entropy(maps):
    """maps (B, heads, h, w), not negative -> (heads,)."""
    ### BEGIN SOLUTION
    p = maps / maps.sum((-2, -1), keepdim=True)
    return torch.special.entr(p).sum((-2, -1)).mean(0)
    ### END SOLUTION

head_entropy = checks.head_entropy(head_entropy)

# %% [markdown]
# **Exercise 5 · easy · 10 minutes · a box around it.** From a bool mask on the grid of patches give the smallest box around *all* its True patches, in pixels: (top, left, height, width). `patch_size` is one whole number, for the patches are square. What should come out: four whole numbers.
#
# <details><summary>Hint</summary>
#
# `mask.any(1)` says which rows hold a True, `mask.any(0)` which columns. The first True in reading order need not be the leftmost.
#
# </details>

# %% tags=["stub"]
def mask_to_box(mask, patch_size):
    """mask bool (h, w), at least one True; patch_size: pixels a side -> (top, left, height, width)."""
    ### BEGIN SOLUTION
    rows, cols = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
    top, left = rows[0].item(), cols[0].item()
    height, width = rows[-1].item() - top + 1, cols[-1].item() - left + 1
    return tuple(patch_size * value for value in (top, left, height, width))
    ### END SOLUTION

mask_to_box = checks.mask_to_box(mask_to_box)

# %% [markdown]
# **Exercise 6 · medium · 10 minutes · what a patch attends to.** From the whole matrix of one picture, prefix tokens first, take the row of the patch at (row, col) of the grid, over the patches. What should come out: (heads, h, w), the entries as they are.
#
# <details><summary>Hint</summary>
#
# The patches' tokens come row by row, `grid[1]` in each, after `n_prefix` others.
#
# </details>

# %% tags=["stub"]
def patch_row(matrix, row, col, grid, n_prefix):
    """matrix (heads, T, T), grid (h, w), T = n_prefix + h w -> (heads, h, w)."""
    ### BEGIN SOLUTION
    token = n_prefix + row * grid[1] + col
    return matrix[:, token, n_prefix:].unflatten(-1, tuple(grid))
    ### END SOLUTION

patch_row = checks.patch_row(patch_row)

# %% [markdown]
# **Exercise 7 · hard · 15 minutes · rollout.** The formula of section 6 for the CLS token: from the matrices of all blocks, first block first, to its row over all tokens. What should come out: a row that sums to 1.
#
# <details><summary>Hint</summary>
#
# Start with the identity. Each block multiplies from the left with half of (mean over the heads + identity).
#
# </details>

# %% tags=["stub", "equality"]
def rollout(matrices):
    """A list of (heads, T, T), block 1 first -> (T,), the row of token 0."""
    ### BEGIN SOLUTION
    identity = torch.eye(matrices[0].shape[-1])
    total = identity
    for matrix in matrices:
        total = (matrix.mean(0) + identity) / 2 @ total
    return total[0]
    ### END SOLUTION

rollout = checks.rollout(rollout)

# %% tags=["equality"]
every = [attention.full_attention(teacher, noise[:1], layer=layer)[0] for layer in range(len(blocks))]
row = torch.as_tensor(rollout(every))[-15:].view(3, 5)
torch.testing.assert_close(row, attention.rollout(teacher, noise[:1])[0], rtol=1e-3, atol=1e-5)
print("rollout is equal on a grid of", tuple(row.shape))

# %% [markdown]
# **Exercise 8 · medium · 15 minutes · the first principal component.** From the patches' tokens of many pictures, along which direction do they differ most, and how far does each patch lie along it? Take away the mean of all patches first. A simple rule for the sign: the last patch of the last picture is negative. What should come out: one number a patch, on its grid.
#
# <details><summary>Hint</summary>
#
# Rows of centred tokens $X = U S V^\top$ (`torch.linalg.svd`, `full_matrices=False`, gives $U$, $S$, $V^\top$): the first row of $V^\top$ is the direction, and $X$ times it says how far.
#
# </details>

# %% tags=["stub", "equality"]
def first_component(tokens):
    """tokens (N, h, w, D) -> (N, h, w), negative in the last patch of the last picture."""
    ### BEGIN SOLUTION
    rows = tokens.flatten(0, 2)
    rows = rows - rows.mean(0)
    directions = torch.linalg.svd(rows, full_matrices=False)[2]
    along = rows @ directions[0]
    along = -along[-1].sign() * along
    return along.view(tokens.shape[:3])
    ### END SOLUTION

first_component = checks.first_component(first_component)

# %% tags=["equality"]
some = torch.randn(3, 4, 5, 6, generator=generator) * torch.tensor([4.0, 2, 1, 1, 1, 1]) + 3
mine = torch.as_tensor(first_component(some.clone()))
theirs = principal_components(some)[:, 0]
theirs = theirs * torch.sign(theirs[-1, -1, -1] * mine[-1, -1, -1])  # whichever sign it has
torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
print("first_component is equal on", tuple(mine.shape), "patches")

# %% [markdown]
# **Exercise 9 · easy · 10 minutes · change the mask, the size, the head.** Set the share of the mask, the
# size of the photograph in patches a side, and the head (or `None` for their mean); run the cell for several values of one of them. Which matters most: share, size, or head?
#
# <details><summary>What we saw</summary>
#
# The head matters most. With 24 patches a side and 60%, heads 1 to 6 lie on the llama with little of
# the ground, heads 0 and 7 on sky and grass. The share comes next: 30% leaves pieces of body and legs,
# and 90% fills the body, but takes much of the grass and the sky too. The size changes least where the
# mask lies: 48 patches a side show legs and neck, but the mask gets holes along the back.
#
# </details>

# %%
share, patches_a_side, head = 0.6, 24, None

picture, x = as_seen(PHOTO, teacher.transform, patch, patches_a_side * max(patch))
masks = {}
for name, model in {"teacher": teacher, "untrained": untrained}.items():
    of = cls_attention(model, x[None])[0]
    masks[f"{name}: {share:.0%} mask"] = masks_of(of.mean(0) if head is None else of[head], share).float()
over_photo(masks, picture)
