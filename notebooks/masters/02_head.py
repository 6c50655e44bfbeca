# %% [markdown]
# # 02 · Backbone and head: from a view to 256 logits
#
# <!-- badge -->
#
# A view goes in, a *description* comes out. The **backbone** makes it: any image network, from a small ResNet to a large
# vision transformer. On top sits a small **head** that is needed for training only and thrown away afterwards. It gives
# $K = 256$ numbers here, one for each *prototype*; the preset `demo`, used from notebook 03 on, takes 1,024. (The
# paper's head also has an inner layer 256 wide: a coincidence.)
#
# **What you will build.** One interface to any timm model: feature, patch tokens, grid. The paper's head, every symbol of
# it, equal to the library's in outputs and gradients. And a forward pass for many views that wastes no time.
#
# **What you need.** [01 · Multi-crop](01_multicrop.ipynb), `nn.Module`, and a rough idea of a vision transformer.
#
# **Time.** The cells take about a minute on two CPU cores (an estimate: the machine was shared); a T4 or a larger GPU would
# take as long (an estimate too), for hardly anything is computed. Reading takes an hour.
#
# Before: [01 · Multi-crop](01_multicrop.ipynb). Next: [03 · The loss](03_loss.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# As before, `dino_lib` is there to be compared with, and `drawn` insists that no figure is blank.

# %% tags=["equality"]
import itertools
import numpy as np
import timm
import torch
import torch.nn.functional as F
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from dino_lib import DINOHead, MultiCropModel, OriginalHead, create_backbone
from dino_lib.course import head as checks
from dino_lib.look.maps import attention_sheet
from dino_lib.look.style import PALETTE

def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())  # (height, width, 4)
    assert pixels.shape[1] > 600 and pixels[..., :3].std() > 5
    return figure


# %% [markdown]
# ## 1. The backbone: tokens in numbers
#
# A vision transformer cuts an image into patches and turns each into a vector, a *token*. One more token is put in front
# that belongs to no patch: **CLS**. It collects from all the others, and at the end it is the description of the whole
# image. A tiny model like the course's (whose first layer is a stack of convolutions, see section 6) has patches of 6
# pixels and tokens of width $D = 128$; an image of 48 pixels makes $8 \times 8 = 64$ patches.

# %% tags=["equality"]
tiny = dict(img_size=48, patch_size=6, embed_dim=128, depth=2, num_heads=8, mlp_ratio=2.0)
torch.manual_seed(0)
vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **tiny).eval()
tokens = vit.forward_features(torch.rand(2, 3, 48, 48))
print(tuple(tokens.shape), "= (images, 1 CLS + 8 * 8 patches, width)")


# %% [markdown]
# The **feature** is the first token, after the network's last layer norm. The **patch tokens** are the rest, put back on
# their grid, in reading order.

# %% tags=["equality"]
def feature(vit, x):
    return vit.forward_features(x)[:, 0]  # (B, D)

def patch_tokens(vit, x, grid):
    return vit.forward_features(x)[:, 1:].unflatten(1, grid)  # (B, h, w, D)


# %% [markdown]
# **Equal?** `create_backbone` wraps a timm model so that both are at hand for any family. We give it the same
# weights. Two sizes are tried, since local views are smaller: the position embeddings are then interpolated.

# %% tags=["equality"]
backbone = create_backbone("vit_tiny_patch16_224", **tiny).eval()
backbone.model.load_state_dict(vit.state_dict())
for side in (48, 24):
    x = torch.rand(2, 3, side, side)
    torch.testing.assert_close(feature(vit, x), backbone(x))
    torch.testing.assert_close(patch_tokens(vit, x, (side // 6, side // 6)), backbone.patch_tokens(x))
    print(f"{side} px: feature {tuple(backbone(x).shape)}, patch tokens {tuple(backbone.patch_tokens(x).shape)}")

# %% [markdown]
# A ResNet has neither patches nor CLS, yet its last map is a grid of vectors, and the mean of that map is its feature. DINO
# doesn't mind: the paper trains a ResNet-50 too (section 4.1). The same two methods, then, on other families:

# %%
torch.manual_seed(0)
for name in ["vit_tiny_patch16_224", "resnet10t", "convnext_atto"]:
    net = create_backbone(name).eval()
    x = torch.rand(1, 3, 96, 96)
    print(f"{name:21s} feature {tuple(net(x).shape)}, map {tuple(net.patch_tokens(x).shape)}, CLS: {net.has_cls}")

# %% [markdown]
# For the ResNet, the claim "feature = mean of the map" is one line to prove:

# %% tags=["equality"]
torch.manual_seed(0)
resnet = create_backbone("resnet10t").eval()
x = torch.rand(2, 3, 64, 64)
torch.testing.assert_close(resnet(x), resnet.patch_tokens(x).mean((1, 2)))
print("the feature is the mean of the last map")

# %% [markdown]
# ## 2. The head: cosines with prototypes
#
# The loss of DINO compares probability distributions, so features must become $K$ numbers, one for each of $K$
# **prototypes**. Think of a prototype as a direction in space with a name that nobody chose: "stripes", or "blue and
# round". The head (section 3.1, and appendix C of the paper) takes three steps:
#
# $$h \;\to\; z = \text{MLP}(h) \;\to\; \hat z = \frac{z}{\lVert z \rVert} \;\to\; \ell_k = g_k\,\langle \hat z, \hat w_k \rangle,
# \qquad \hat w_k = \frac{w_k}{\lVert w_k \rVert}.$$
#
# In words: $h$ is the feature, $z$ the narrow **bottleneck** that a small network makes of it, $\lVert z \rVert$ its
# length, $\hat z$ its direction alone. $w_k$ is the vector of prototype $k$, $\hat w_k$ its direction, $g_k$ its *gain*,
# held at 1. $\langle\,,\rangle$ is the dot product and $\ell_k$ the **logit**. The dot product of two vectors of length 1
# is the cosine of the angle between them, so a logit is a cosine: between −1 and 1, always. With toy numbers:

# %%
z = torch.tensor([[3.0, 4.0]])                               # length 5
w = torch.tensor([[2.0, 0.0], [0.0, 0.5], [-1.0, -1.0]])     # three prototypes
z_hat, w_hat = z / z.norm(dim=1, keepdim=True), w / w.norm(dim=1, keepdim=True)
print("direction", z_hat.numpy().round(3), "logits", (z_hat @ w_hat.T).numpy().round(3))

# %% [markdown]
# On the unit circle: arrows are prototypes, dots are the directions $\hat z$ of descriptions, in the colour of the
# prototype that is nearest. The crosses are some of the $z$ that they came from, at any distance from the middle. Lengths
# play no role; only angles do.

# %%
torch.manual_seed(1)
raw, arrows = 0.6 * torch.randn(150, 2), F.normalize(torch.randn(5, 2), dim=1)
directions = F.normalize(raw, dim=1)
colors = [PALETTE[2 * k] for k in (directions @ arrows.T).argmax(1).tolist()]
figure = Figure(figsize=(7, 5), layout="constrained", dpi=90)
axis = figure.subplots()
axis.scatter(*directions.T, c=colors, s=18)
axis.scatter(*raw[:40].T, c=colors[:40], s=22, marker="x", linewidths=1)
for k, (dx, dy) in enumerate(arrows.tolist()):
    axis.annotate("", (0.9 * dx, 0.9 * dy), (0, 0), arrowprops={"arrowstyle": "->", "color": PALETTE[2 * k]})
axis.set_aspect("equal")
drawn(figure)


# %% [markdown]
# Now the readable head, with what PyTorch offers. `weight_norm` splits a Linear's weight into gains and directions, row
# by row: just what the formula asks for (PyTorch's names: `original0` for the gains, `original1` for the directions). The
# official code does the same. Between the three Linears stands GELU, a smooth relative of ReLU; behind the last there is
# none, for the normalisation follows. The Linears start small: weights from a normal distribution of deviation 0.02, cut
# off at the ends, and biases at 0.

# %% tags=["equality"]
class Head(nn.Module):
    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(in_dim, hidden_dim), nn.GELU(),
                                 nn.Linear(hidden_dim, hidden_dim), nn.GELU(),
                                 nn.Linear(hidden_dim, bottleneck_dim))
        for linear in self.mlp[::2]:  # every other module is a GELU
            nn.init.trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.last = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)         # the gains g
        self.last.parametrizations.weight.original0.requires_grad = False  # held there

    def forward(self, h):
        z = self.mlp(h)                # (N, bottleneck_dim)
        return self.last(F.normalize(z, dim=-1))  # (N, out_dim)


# %% [markdown]
# **Equal?** We copy the library's weights into ours, and compare outputs for a batch of features.

# %% tags=["equality"]
torch.manual_seed(0)
theirs = DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32)
mine = Head(128, 256, hidden_dim=64, bottleneck_dim=32)
mine.mlp.load_state_dict(theirs.mlp.state_dict())
mine.last.parametrizations.weight.original1.data.copy_(theirs.directions.data)
h = torch.randn(10, 128)
h_mine, h_theirs = h.clone().requires_grad_(), h.clone().requires_grad_()
torch.testing.assert_close(mine(h_mine), theirs(h_theirs))
print("logits", tuple(theirs(h).shape), "agree")

# %% [markdown]
# And the gradients, which is where two formulas that look alike often differ: by the input, by each Linear and by the
# directions. The gains must have none.

# %% tags=["equality"]
target = torch.randn(10, 256)
(mine(h_mine) * target).sum().backward()
(theirs(h_theirs) * target).sum().backward()
torch.testing.assert_close(h_mine.grad, h_theirs.grad, rtol=1e-4, atol=1e-3)
for a, b in zip(mine.mlp.parameters(), theirs.mlp.parameters(), strict=True):
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-3)
torch.testing.assert_close(mine.last.parametrizations.weight.original1.grad, theirs.directions.grad,
                           rtol=1e-4, atol=1e-3)
assert theirs.gain.grad is None
print("gradients agree, and the gains have none")

# %% [markdown]
# **Equal at the start?** Both heads draw small weights, so $z$ is tiny. The normalisation makes up for it: however small
# $z$ is, the logits are cosines. Random directions in $d$ dimensions are nearly at right angles: cosines whose typical
# size is $1/\sqrt d$.

# %% tags=["equality"]
fresh = Head(128, 256, hidden_dim=64, bottleneck_dim=32)
for name, head in [("mine", fresh), ("theirs", theirs)]:
    linear = head.mlp[0]
    bias = linear.bias.abs().max()
    print(f"{name}: weights deviate by {linear.weight.std():.3f}, largest bias {bias:.0f}")
    for layer in head.mlp[::2]:
        assert abs(layer.weight.std() - 0.02) < 0.002 and (layer.bias == 0).all()
    logits = head(h).detach()
    print(f"  logits: largest {logits.abs().max():.1f}, deviation {logits.std():.1f}")
    assert logits.abs().max() <= 1 and 0.1 < logits.std() < 0.25
print(f"cosines whose typical size is 1 / sqrt(32) = {32**-0.5:.2f}")

# %% [markdown]
# How sharp can a softmax over cosines be? The loss divides them by a *temperature*. At temperature 1 even a
# perfect match hardly stands out among 256; at 0.04, the teacher's, it takes everything. That is why DINO needs
# temperatures that small.

# %%
perfect = torch.zeros(256)
perfect[0] = 1.0  # one prototype matched exactly, the others at right angles
for temperature in (1.0, 0.1, 0.04):
    print(f"temperature {temperature}: the match gets {(perfect / temperature).softmax(0)[0]:.3f}")

# %% [markdown]
# ## 3. Break it
#
# ### No normalisation
#
# Why not use plain dot products? Because then there is a way to lower the loss that teaches nothing: **grow**. Let $z$
# point exactly along its prototype, at temperature 0.1, and only make it longer.

# %%
torch.manual_seed(0)
w = F.normalize(torch.randn(32, 8), dim=1)
for length in (1, 2, 4, 8):
    z = length * w[0]  # the same perfect match, at any length
    plain, normalised = (-(w @ v / 0.1).log_softmax(0)[0] for v in (z, F.normalize(z, dim=0)))
    print(f"length {length}: plain loss {plain:z.4f}, normalised {normalised:.4f}")


# %% [markdown]
# The plain loss falls to zero although no angle has changed; the normalised one stays. And gradient descent takes that
# way. From a random description we follow the gradient towards one prototype; once on the plain vector, once with the
# normalisation.

# %%
def climb(normalised, steps=300):
    torch.manual_seed(0)
    z, w = (0.1 * torch.randn(8)).requires_grad_(), F.normalize(torch.randn(32, 8), dim=1)
    lengths, losses = [], []
    for _ in range(steps):
        logits = w @ (F.normalize(z, dim=0) if normalised else z)
        loss = -(logits / 0.1).log_softmax(0)[0]
        [grad] = torch.autograd.grad(loss, z)
        z = (z - 0.1 * grad).detach().requires_grad_()
        lengths.append(logits.norm().item())
        losses.append(loss.item())
    return lengths, losses

free, bound = climb(False), climb(True)
print(f"length of the plain logits: {free[0][0]:.1f} at the start, {free[0][-1]:.1f} at the end")
print(f"normalised: {bound[0][0]:.1f} and {bound[0][-1]:.1f};",
      f"32 cosines can't be longer than sqrt(32) = {32**0.5:.1f}")

# %%
figure = Figure(figsize=(10, 3.2), layout="constrained", dpi=80)
titles = ("length of the logits", "loss (logarithmic)")
for axis, k, title in zip(figure.subplots(1, 2), (0, 1), titles, strict=True):
    axis.plot(free[k], label="plain")
    axis.plot(bound[k], label="normalised")
    axis.set_title(title, fontsize=10)
    axis.set_xlabel("step", fontsize=9)
    axis.legend(frameon=False)
axis.set_yscale("log")
drawn(figure)

# %% [markdown]
# The plain loss goes on falling by length alone, and as the softmax becomes certain, the gradient that one could learn
# from fades with it. The normalised loss flattens out towards a floor that only better *angles* can lower.
#
# ### One gain set free
#
# The same on the side of the prototypes. With all gains at 1, random descriptions fall on all of them; with a single gain
# at 3, that prototype wins far more than its share of 1 in 256. In training such a lead can run away until one prototype
# has everything, a *collapse*; that is known from training, and not shown here. Hence the gains stay at 1: the library
# calls it `norm_last_layer`, as the official code does. That code also holds the whole last layer still in the first
# epoch (`freeze_last_layer`, on in notebook 05's preset `gpu`).

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
h = torch.randn(2000, 128)
with torch.no_grad():
    before = (theirs(h).argmax(1) == 0).float().mean()
    theirs.gain[0] = 3.0
    after = (theirs(h).argmax(1) == 0).float().mean()
    theirs.gain[0] = 1.0
print(f"prototype 0 wins {before:.3f} of the rows at gain 1, {after:.3f} at gain 3;",
      f"its share is {1 / 256:.3f}")
assert before < 10 / 256 < after

# %% [markdown]
# ### Half precision
#
# The length of $z$ is a sum of squares, and float16 ends at 65504: squared by hand, one entry of 300 is already too much.
# torch's own normalisation adds the squares up in 32 bits, but rounds what comes out to 16. The head doesn't rely on
# either: under mixed precision it normalises in 32 bits, whatever the rest of the network does. (bfloat16 has the range
# of 32 bits, so nothing overflows, but even fewer digits.)

# %%
z = torch.tensor([300.0, 400.0])
for dtype in (torch.float32, torch.float16, torch.bfloat16):
    small = z.to(dtype)
    by_torch = [round(v, 4) for v in F.normalize(small, dim=0).tolist()]
    print(f"{dtype}: sum of squares {(small * small).sum().item():.0f}, normalised by torch {by_torch}")

# %% [markdown]
# ### Batch norm
#
# With `use_bn=True` the head gets a batch norm behind each hidden Linear. It helps tiny models off the ground. But in
# training mode each row then depends on all the others: two half batches are not one whole. So with `use_bn` it also
# matters which views pass through the head together (section 5).

# %%
h = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
for use_bn in (False, True):
    torch.manual_seed(0)
    head = DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32, use_bn=use_bn)
    with torch.no_grad():
        whole, halves = head(h), torch.cat([head(h[:32]), head(h[32:])])
    largest = (whole - halves).abs().max()
    print(f"use_bn={use_bn}: largest difference of two halves from the whole {largest:.1f}")


# %% [markdown]
# ## 4. The original head
#
# The repository that this course grew from has another head: five Linears, each of the first four followed by GELU and a
# layer norm, and an L2 normalisation at the very end. There is no bottleneck and there are no prototypes with
# directions of their own.

# %% tags=["equality"]
class MyOriginalHead(nn.Module):
    def __init__(self, in_dim, out_dim, hidden_dim):
        super().__init__()
        layers = []
        for d_in in [in_dim, hidden_dim, hidden_dim, hidden_dim]:
            layers += [nn.Linear(d_in, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim)]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))

    def forward(self, h):
        return F.normalize(self.mlp(h), dim=-1)


# %% [markdown]
# **Equal?** Forward and gradient again.

# %% tags=["equality"]
torch.manual_seed(0)
mine, theirs_ = MyOriginalHead(128, 100, 64), OriginalHead(128, 100, hidden_dim=64)
mine.load_state_dict(theirs_.state_dict())
rows = torch.randn(3, 128)
a, b = rows.clone().requires_grad_(), rows.clone().requires_grad_()
torch.testing.assert_close(mine(a), theirs_(b))
mine(a)[:, 0].sum().backward()
theirs_(b)[:, 0].sum().backward()
torch.testing.assert_close(a.grad, b.grad)
print("rows of length", mine(a).norm(dim=1).detach().numpy().round(3))

# %% [markdown]
# The whole row has length 1 here, so its $K$ entries share that length: with $K = 1000$ they are about 0.03 each, against
# cosines that may each reach 1. The two heads' sizes, for a ViT-S feature (384 wide); the paper's own $K$ is 65,536:

# %%
heads = [("the paper's head, K = 4096", DINOHead(384, 4096)),
         ("the original repository's, K = 1000", OriginalHead(384, 1000))]
for name, head in heads:
    print(f"{name}: {sum(p.numel() for p in head.parameters() if p.requires_grad) / 1e6:.1f} million parameters")


# %% [markdown]
# ## 5. Many views in few passes
#
# The student sees all views, and small passes waste a GPU. Views of one size fit into one batch, so we put neighbours of
# the same size together: two passes, whether there are four views or ten. Then all features go through the head at once.
# First the plain way, one view at a time:

# %% tags=["equality"]
def forward_views(backbone, head, views):
    """[(B, 3, h, w)] * V -> (V, B, K)"""
    return torch.stack([head(backbone(view)) for view in views])


# %% [markdown]
# Now the fast one. Neighbours of one size are concatenated; the backbone runs once for each size and the head once for
# all; then every row goes back to its view. No row mixes with another on the way, so nothing but the speed may change.
# (Batch norm would mix them: here there is none.)

# %% tags=["equality"]
def forward_grouped(backbone, head, views):
    """[(B, 3, h, w)] * V -> (V, B, K), one pass through the backbone for each run of views of one size"""
    groups = [torch.cat(list(group)) for _, group in itertools.groupby(views, key=lambda view: view.shape)]
    features = torch.cat([backbone(group) for group in groups])     # (V * B, D), view by view
    return head(features).unflatten(0, (len(views), -1))


# %% [markdown]
# **Equal?** To the plain way, and to the library's `MultiCropModel`. A hook writes down what goes through the backbone.

# %% tags=["equality"]
torch.manual_seed(0)
views = [torch.randn(3, 3, 48, 48) for _ in range(2)] + [torch.randn(3, 3, 24, 24) for _ in range(4)]
model = MultiCropModel(backbone, DINOHead(128, 256, hidden_dim=64, bottleneck_dim=32))
plain = forward_views(backbone, model.head, views)
passes = []
hook = backbone.register_forward_hook(lambda module, inputs, output: passes.append(tuple(inputs[0].shape)))
grouped, library = forward_grouped(backbone, model.head, views), model(views)
hook.remove()
torch.testing.assert_close(grouped, plain, rtol=1e-4, atol=1e-5)
torch.testing.assert_close(grouped, library, rtol=1e-4, atol=1e-5)
assert passes[:2] == passes[2:]
print(tuple(grouped.shape), "from the passes", passes[:2], "instead of", len(views))

# %% [markdown]
# The gradients agree as well: a batch is only a way to compute.

# %% tags=["equality"]
weights = [p for p in model.parameters() if p.requires_grad]
some = torch.randn(grouped.shape, generator=torch.Generator().manual_seed(1))
one_by_one, by_group, by_library = (torch.autograd.grad((out * some).sum(), weights)
                                    for out in (plain, grouped, library))
for a, b, c in zip(one_by_one, by_group, by_library, strict=True):
    torch.testing.assert_close(b, a, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(b, c, rtol=1e-3, atol=1e-4)
print(len(weights), "gradients agree")

# %% [markdown]
# ## 6. What the teacher sees so far
#
# Nothing has been trained yet, but we have several backbones. What does an untrained *architecture* already separate? A
# ResNet has no attention, so we take a measure that all share: the cosine between each place of the last map and the mean
# of the map (`pooled_similarity`). Mind what that is: most of a picture is background, so the mean is mostly
# background too, and bright means "like most of the picture".

# %%
from dino_lib import PRESETS, load_teacher
from dino_lib.look.report import compare
from dino_lib.measure.attention import pooled_similarity
from dino_lib.run.build import build_student, open_probes

probes = open_probes(PRESETS["demo"], limit=400)
torch.manual_seed(0)
stages = {"untrained ResNet": create_backbone("resnet10t", output_stride=8).eval(),
          "linear ViT": create_backbone("vit_tiny_patch16_224", **tiny).eval(),
          "untrained": build_student(PRESETS["demo"]).backbone.eval(),
          "trained": load_teacher("demo").model}

# %% [markdown]
# "linear ViT" embeds its patches by one linear map, as the paper's does; "untrained" is the course's tiny ViT, whose patches
# go through a small stack of convolutions; "trained" is the latter after a run with DINO, and ships with the course.

# %%
x = probes.normalize(probes.queries[:10])
maps = {name: pooled_similarity(net, x)[:, 0] for name, net in stages.items()}
print({name: tuple(m.shape[1:]) for name, m in maps.items()})
drawn(attention_sheet(probes.queries[:10], maps, masks=probes.masks[:10]))

# %% [markdown]
# Random filters already respond to edges and colours, so some creatures stand out, most of them dark: they are unlike the
# clutter, in the trained network still more often than in the others. This is *not* attention: nothing here looks at the object; the maps only show which places are alike.
#
# Now the table and the figures that close every notebook. *Above blind*, from notebook 01, says how much better than a
# fixed map the attention finds the object: 0 for a map that never looks at the picture, 1 for the objects' masks. It is
# that of one head for each network, chosen without masks; a ResNet has no attention, so none. Last digits may differ, so
# the exact table is not compared.

# %% tags=["nbval-ignore-output"]
table, attention_figure, cluster_figure = compare(stages, probes)
for name, scores in table.items():
    found = f"{scores['above_blind']:.2f}" if "above_blind" in scores else "-"
    print(f"{name:16s} k-NN {scores['knn']:.2f}   NMI {scores['nmi']:.2f}   above blind {found}")
print(f"{'blind blobs':39s} above blind {scores['above_blind_blobs']:.2f}")
for score, least in {"knn": 0.2, "nmi": 0.2, "above_blind": 0.2}.items():
    *untrained, trained = (scores[score] for scores in table.values() if score in scores)
    assert trained > max(untrained) + least

# %% [markdown]
# The blobs too are from notebook 01: they lie near the middle and never look at a picture. Untrained attention is all but
# even, as the figure shows, and what it has above blind lies in tiny differences. Yet those are worth nearly half of what
# the masks would get, with a linear map of the patches as with a stem of convolutions: creatures are darker than the
# clutter and richer in contrast. No object is known by that: a map of mere darkness or of local contrast, made without
# any network, gets half and more. The ResNet's row shows the similarity from above in place of attention.

# %%
drawn(attention_figure)

# %%
drawn(cluster_figure)


# %% [markdown]
# There is still no row "this notebook": no weight has been trained here. Untrained networks differ among themselves, and
# all stay below the trained one: an architecture is not knowledge. In the next notebook the loss starts to move weights.
#
# ## Summary
#
# - A backbone gives one feature for the image (the CLS token, or the mean of a map) and a grid of patch tokens.
# - The head is an MLP, a direction of length 1, and prototypes of length 1: each logit is a cosine.
# - Without the normalisation, growing longer beats learning; with one gain free, one prototype can swallow the rest.
# - Cosines need small temperatures; squares need 32 bits, not float16; batch norm ties the rows of a batch together.
# - Views of one size share a pass, with the same outputs and gradients as one by one.
#
# ## Exercises
#
# Each check says *right*, *close* or *wrong* with a hint. Solutions are in
# [solutions/02_head_solutions.ipynb](solutions/02_head_solutions.ipynb); after them comes
# [03 · The loss](03_loss.ipynb).
#
# **Exercise 1 (easy).** Cosine logits of N features with K prototype directions, none of them of length 1 yet.

# %%
def cosine_logits(features, directions):
    ...  # (N, d), (K, d) -> (N, K)

checks.check_cosine_logits(cosine_logits)


# %% [markdown]
# **Exercise 2 (easy).** How many *trainable* parameters has the paper's head: three Linears with biases, and prototypes
# whose gains are frozen?

# %%
def head_parameters(in_dim, out_dim, hidden_dim, bottleneck_dim):
    ...  # -> int

checks.check_head_parameters(head_parameters)


# %% [markdown]
# **Exercise 3 (medium).** Which views go through the backbone together? From the list of their sides, in order, give
# (start, stop) for each pass, such that `views[start:stop]` all have one size and only neighbours are joined.

# %%
def group_views(sizes):
    ...  # [96, 96, 48] -> list of (start, stop)

checks.check_group_views(group_views)


# %% [markdown]
# **Exercise 4 (hard).** The backward pass of the normalisation, by hand. Given $z$ and the gradient of the loss by
# $\hat z = z / \lVert z \rVert$, row by row, give the gradient by $z$. Think of what happens when $z$ moves along itself.

# %%
def normalize_backward(z, grad):
    ...  # (N, d), (N, d) -> (N, d)

checks.check_normalize_backward(normalize_backward)
