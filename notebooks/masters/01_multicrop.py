# %% [markdown]
# # 01 · Multi-crop: many views of one image
#
# <!-- badge -->
#
# DINO learns from images without labels. Its only lesson is this: *two different views of one picture should be described
# alike*. So the way in which views are made decides what the network can learn at all, and that is where the course begins.
#
# **What you will build.** Random resized crops, written by hand from four random numbers; the resize itself as a product
# with two small matrices; the colour operations; the whole multi-crop recipe as one list comprehension; and views that
# come out the same on every machine. Each piece is proved equal to the finished one in `dino_lib`.
#
# **What you need.** PyTorch tensors and a little probability. No training happens here.
#
# **Time.** The cells run for about a minute on two CPU cores (an estimate: they were timed on a shared machine); on a T4
# or a larger GPU it should be much the same (an estimate), since there is hardly anything to compute. Reading takes about
# an hour.
#
# This is the first notebook. Next: [02 · Backbone and head](02_head.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# We import the finished code from `dino_lib` only to compare with it, and to draw. Everything else is plain PyTorch and
# torchvision. Since pictures can't be compared each time a notebook is tested, every figure goes through `drawn`, which
# draws it and insists that it is not blank.

# %% tags=["equality"]
import math

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from dino_lib import BatchMultiCrop, MultiCrop, Shapes
from dino_lib.augment import IMAGENET
from dino_lib.course import multicrop as checks
from dino_lib.data.batch_views import crop_boxes, view_uniforms
from dino_lib.look.pictures import show_images, show_views, to_image
from dino_lib.look.style import CMAP

def drawn(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    pixels = np.asarray(canvas.buffer_rgba())  # (height, width, 4)
    assert pixels.shape[1] > 600 and pixels[..., :3].std() > 5
    return figure


# %% [markdown]
# The course brings a small dataset of its own, drawn by code, so that nothing needs to be downloaded: ten kinds of
# creatures, each with a palette, a texture and an outline, that lie anywhere in a clutter of all colours. Here are ten
# pictures, 96 pixels wide.

# %% tags=["equality"]
pictures = Shapes(10, seed=34, size=96)
image = pictures.images[2]  # uint8 (3, 96, 96): a bee
print(tuple(pictures.images.shape), pictures.images.dtype)
print(" ".join(pictures.classes))
drawn(show_images(pictures.images))

# %% [markdown]
# ## 1. Why views at all
#
# Suppose you must describe a picture with 128 numbers, and all that you are asked is that a second description, made from
# *another part* of the same picture, agrees with it. The colour of one corner won't do: the other part doesn't show that
# corner. Brightness won't do if someone changes it at random in between. What survives is what both parts have in common,
# and often that is the bee.
#
# The paper (Caron et al. 2021, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294), section 3.1) takes its views from an
# earlier method, SwAV: two *global* views that show most of the picture, and several small *local* views. Small views are
# cheap, and they set the better task: from a few
# stripes, say what the whole is.
#
# How cheap? A ViT with patches of 16 pixels cuts a 224-pixel view into 14 × 14 tokens, and a 96-pixel view into 6 × 6.
# The official code takes eight local views; we shall vary the number.

# %%
tokens = {"global": (224 // 16) ** 2, "local": (96 // 16) ** 2}
multi_crop = 2 * tokens["global"] + 8 * tokens["local"]
all_large = 10 * tokens["global"]
print(tokens, "| ten views:", multi_crop, "tokens; ten large ones would be", all_large)

# %% [markdown]
# ## 2. A crop, by hand
#
# To crop is to slice. Rows come first, then columns; a box is written as (top, left, height, width).

# %%
x = torch.arange(36).view(6, 6)
top, left, h, w = 1, 2, 3, 4
print(x[top : top + h, left : left + w])

# %% [markdown]
# A *random resized crop* draws two things: the share $s$ of the image's area that the box covers, and its ratio $r$ of
# width to height. From these the sides follow. With $H$ and $W$ the image's height and width, the box's area is
# $A = s\,H\,W$, and
#
# $$w = \sqrt{A\,r}, \qquad h = \sqrt{A / r},$$
#
# because then $w \cdot h = A$ and $w / h = r$. In numbers: a quarter of a 48-pixel image, a third wider than high.

# %%
height = width = 48
share, ratio = 0.25, 4 / 3
area = share * height * width
w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
print(f"area {area:.0f} pixels: width {w:.1f}, height {h:.1f}; w * h = {w * h:.0f}, w / h = {w / h:.2f}")


# %% [markdown]
# The share is uniform between two bounds, the *scale* of the view. The ratio lies between 3/4 and 4/3, and it is its
# *logarithm* that is uniform: so "a third wider" and "a third higher" are equally likely. A plain uniform draw would
# favour wide boxes: the middle of that range is 1.04, and more than half of it lies above 1.
#
# A box may turn out larger than the image: a share near 1 with a ratio away from 1. Then one simply draws again, ten times
# at most, and in the end takes the largest box that fits; on a square image that is all of it.
#
# We write the function so that its random numbers are *handed in*: ten pairs for the tries and one pair for the place, all
# uniform in [0, 1). Later this is what makes views reproducible.

# %% tags=["equality"]
def random_box(tries, corner, height, width, scale):
    """(top, left, h, w) on a square image, from 10 pairs of uniforms for the tries and one pair for the place."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for for_area, for_ratio in tries.view(-1, 2).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * for_area)
        ratio = math.exp(low + (high - low) * for_ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if w <= width and h <= height:
            return int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w
    return 0, 0, height, width


# %% [markdown]
# **Equal?** `dino_lib.data.batch_views.crop_boxes` computes the boxes of a whole batch at once, without a loop. Fed with the same
# numbers it must give the same boxes, for global and for local scales.

# %% tags=["equality"]
torch.manual_seed(1)
tries, corner = torch.rand(200, 20), torch.rand(200, 2)
for scale in [(0.4, 1.0), (0.1, 0.4)]:
    mine = [random_box(t, c, 96, 96, scale) for t, c in zip(tries, corner, strict=True)]
    torch.testing.assert_close(torch.tensor(mine).float(), crop_boxes(tries, corner, (96, 96), scale))
print("200 global and 200 local boxes agree")

# %% [markdown]
# Drawn on the bee: three global boxes (scale 0.4 to 1) on the left and three local ones (0.1 to 0.4) on the right. Any
# two global boxes overlap a good deal, while local ones can lie far apart. The paper says only that global views show,
# for example, more than half of the image and local ones less (section 3.1); the bound of 0.4 is the official code's.

# %%
figure = Figure(figsize=(10, 5), layout="constrained", dpi=80)
for axis, scale in zip(figure.subplots(1, 2), [(0.4, 1.0), (0.1, 0.4)], strict=True):
    axis.imshow(to_image(image))
    boxes = crop_boxes(tries, corner, (96, 96), scale)[16:19].tolist()
    for (top, left, h, w), color in zip(boxes, ["white", "yellow", "magenta"], strict=True):
        axis.add_patch(Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color=color, linewidth=2))
    axis.set_title(f"scale {scale[0]} to {scale[1]}", fontsize=10)
    axis.set_axis_off()
drawn(figure)

# %% [markdown]
# ## 3. A resize is a matrix
#
# A crop of 30 × 41 pixels must become a view of 48 × 48. Every new pixel is a weighted mean of old ones nearby, and weights
# in a table are a matrix. Take one row of four pixels, and halve it: the plainest matrix averages neighbours.

# %% tags=["equality"]
row = torch.tensor([0.0, 10.0, 20.0, 30.0])
halve = torch.tensor([[0.5, 0.5, 0, 0],
                      [0, 0, 0.5, 0.5]])  # (2 new pixels, 4 old ones)
print(halve @ row)


# %% [markdown]
# Which weights are good ones? The paper's code uses *bicubic* ones. The weight of an old pixel depends only on its distance
# $t$ from the new pixel's centre, measured in pixels:
#
# $$k(t) = \begin{cases} 1.5\,|t|^3 - 2.5\,|t|^2 + 1 & |t| < 1\\ -0.5\,|t|^3 + 2.5\,|t|^2 - 4\,|t| + 2 & 1 \le |t| < 2\\
# 0 & \text{else}\end{cases}$$
#
# It is 1 at distance 0, it is 0 at every other whole distance (so a resize to the same size changes nothing), and it is
# slightly negative beyond 1, which keeps edges crisp.

# %% tags=["equality"]
def cubic(t):
    t = t.abs()
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))

print(cubic(torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0])))


# %% [markdown]
# Now the table of distances. Pixel $j$ occupies the stretch from $j$ to $j + 1$, so its centre is $j + 0.5$. One new pixel
# covers `step` old ones, and the centre of new pixel $i$ is $(i + 0.5)\cdot$ `step`. When the image shrinks (`step` above 1)
# the kernel is stretched by the same factor, so that it averages over everything it covers and skips nothing: that is
# what *antialias* means. At the borders the kernel sticks out of the image, hence the division by the row's sum.

# %% tags=["equality"]
def resize_matrix(n_in, n_out):
    """Weights (n_out, n_in) that resize a line of n_in pixels to n_out."""
    step = n_in / n_out
    centers = (torch.arange(n_out) + 0.5) * step
    pixels = torch.arange(n_in) + 0.5
    weights = cubic((pixels - centers[:, None]) / max(step, 1))
    return weights / weights.sum(1, keepdim=True)

print(resize_matrix(4, 2).numpy().round(2), resize_matrix(4, 2) @ row)


# %% [markdown]
# A picture has rows and columns, so it takes two matrices: with $x$ the crop ($h \times w$), $R$ the matrix for its rows
# ($\text{size} \times h$) and $C$ the one for its columns ($\text{size} \times w$), the view is
#
# $$\text{view} = R\,x\,C^\top .$$
#
# That is the whole of crop-and-resize. The clamp catches the small overshoots of the negative weights.

# %% tags=["equality"]
def crop_resize(x, box, size):
    """x (C, H, W) in [0, 1], box (top, left, h, w) -> (C, size, size)."""
    top, left, h, w = box
    crop = x[:, top : top + h, left : left + w]
    return (resize_matrix(h, size) @ crop @ resize_matrix(w, size).T).clamp(0, 1)

x = image / 255
box = (36, 34, 30, 41)
view = crop_resize(x, box, 48)
print(tuple(x.shape), "->", tuple(view.shape))

# %% [markdown]
# **Equal?** First against torchvision, for several sizes, with shrinking and with enlarging.

# %% tags=["equality"]
for size in (16, 24, 48, 96):
    theirs = F.resized_crop(x, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    torch.testing.assert_close(crop_resize(x, box, size), theirs, rtol=0, atol=1e-4)
print("crop_resize is torchvision's resized_crop")

# %% [markdown]
# What the matrices look like: a diagonal band. Enlarging makes a steep band with many rows, shrinking a flat one in which
# every row spreads over several old pixels. Each
# of its weights is small, so the second panel has a colour range of its own. Then the source with its box, and the view
# that comes out.

# %%
figure = Figure(figsize=(12, 3.2), layout="constrained", dpi=80)
axes = figure.subplots(1, 4)
for axis, n_in, n_out, most in [(axes[0], 30, 48, 1), (axes[1], 48, 12, 0.3)]:
    axis.imshow(resize_matrix(n_in, n_out), cmap="RdBu_r", vmin=-most, vmax=most, interpolation="nearest")
    axis.set_title(f"{n_in} pixels to {n_out}, colours ±{most}", fontsize=10)
top, left, h, w = box
axes[2].imshow(to_image(image))
axes[2].add_patch(Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color="white", linewidth=2))
axes[2].set_title("the source and its box", fontsize=10)
axes[3].imshow(to_image(view))
axes[3].set_title("the view, R x C^T", fontsize=10)
drawn(figure)

# %% [markdown]
# **Why bother with matrices?** Because a batch of them is one call of `torch.bmm`. In a data loader each image is cropped
# by itself, in Python, and on small images that can cost more than the network does. `dino_lib.BatchMultiCrop` makes the
# views of a whole batch at once; on a GPU it crops and resizes by products with small matrices, as you have just done.
# (On a CPU it calls torch's own resize for whole numbers, crop by crop, which is faster there.)
#
# **Equal?** It takes one row of uniforms per image, here 144: 36 for each of the four views. Of these 20 are for the
# tries, 2 for the corner, 1 for the flip, and 13 for the colours of section 4: jitter or not, the order of its four parts
# (4), their strengths (4), grey or not, blur or not, how much blur, solarize or not. With all colour settings at 0 only
# the first 23 count. A flip is a mirrored column order. Like PIL the library rounds to whole grey levels, so the two agree
# to a level or two of the 255.

# %% tags=["equality"]
no_colour = dict(color_jitter=(0, 0, 0, 0), gray_p=0, blur_p=(0, 0, 0), solarize_p=0,
                 mean=(0, 0, 0), std=(1, 1, 1))
batch_crop = BatchMultiCrop(64, 32, n_local=2, local_scale=(0.1, 0.4), **no_colour)
uniforms = view_uniforms(seed=0, epoch=0, indices=range(10), n=batch_crop.n_uniforms)
batch_views = batch_crop(pictures.images, uniforms=uniforms)
print([tuple(v.shape) for v in batch_views], "from uniforms", tuple(uniforms.shape))

sizes, scales = [64, 64, 32, 32], [(0.4, 1.0)] * 2 + [(0.1, 0.4)] * 2
for views, numbers, size, scale in zip(batch_views, uniforms.chunk(4, dim=1), sizes, scales, strict=True):
    for picture, u, theirs in zip(pictures.images, numbers, views, strict=True):
        mine = crop_resize(picture / 255, random_box(u[:20], u[20:22], 96, 96, scale), size)
        mine = mine.flip(-1) if u[22] < 0.5 else mine
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2.5 / 255)
print("40 views agree")


# %% [markdown]
# ## 4. Colour: what must not matter
#
# Light changes and cameras differ, and neither makes a bee less of a bee. So every view also gets a random change of
# colour, which the description has to survive. Three of the four parts of *colour jitter* have the same form: mix the image
# $x$ with a duller image $y$, with a factor $f$ drawn near 1,
#
# $$\text{blend}(x, y, f) = f\,x + (1 - f)\,y .$$
#
# Here $y$ is black for **brightness**, the mean grey of the image for **contrast**, and the image's own grey version for
# **saturation**. A factor of 1 changes nothing, below 1 is duller, above 1 is more vivid. One pixel by hand:

# %% tags=["equality"]
def blend(x, y, f):
    return (f * x + (1 - f) * y).clamp(0, 1)

def gray(x):
    """(3, H, W) -> (1, H, W): the eye weighs green most and blue least."""
    return (x * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)

pixel = torch.tensor([0.8, 0.4, 0.2])[:, None, None]
print(f"its grey is {gray(pixel).item():.3f}; half as saturated:", blend(pixel, gray(pixel), 0.5).flatten())

# %% [markdown]
# **Equal?** Against torchvision's three functions, on the bee.

# %% tags=["equality"]
for f in (0.6, 1.0, 1.4):
    torch.testing.assert_close(blend(x, 0 * x, f), F.adjust_brightness(x, f), rtol=0, atol=1e-4)
    torch.testing.assert_close(blend(x, gray(x).mean(), f), F.adjust_contrast(x, f), rtol=0, atol=1e-4)
    torch.testing.assert_close(blend(x, gray(x), f), F.adjust_saturation(x, f), rtol=0, atol=1e-4)
print("brightness, contrast and saturation agree")

# %% [markdown]
# The fourth part, **hue**, turns the colour circle by a small angle (0.1 is a tenth of a turn). Then come three more
# operations, each with a probability of its own:
#
# - **grey** drops all colour, so that colour alone can never carry the description;
# - **blur** takes fine texture away, by a mean with weights $e^{-d^2 / 2\sigma^2}$ at distance $d$ pixels, with $\sigma$
#   between 0.1 and 2;
# - **solarize** turns every value from 128 up into 255 minus itself: a harsh change that keeps the outlines.
#
# Blur is again a matrix with weights that sum to 1, and solarize is one line:

# %%
distance = torch.arange(-6, 7)  # three sigmas of 2 to each side
weights = torch.exp(-distance**2 / (2 * 1.0**2))
print("blur, sigma 1:", (weights / weights.sum())[4:9].numpy().round(3))
values = torch.tensor([0, 100, 127, 128, 200, 255], dtype=torch.uint8)
solarized = torch.where(values >= 128, 255 - values, values)
assert torch.equal(solarized, F.solarize(values.view(1, 1, 6), 128).flatten())
print("solarized:", solarized.tolist())

# %% [markdown]
# Side by side, each at a strong setting:

# %%
changed = {"as it is": image, "brightness 1.4": F.adjust_brightness(image, 1.4),
           "contrast 0.6": F.adjust_contrast(image, 0.6), "saturation 0.3": F.adjust_saturation(image, 0.3),
           "hue +0.1": F.adjust_hue(image, 0.1), "grey": F.rgb_to_grayscale(image, 3),
           "blur 2": F.gaussian_blur(image, 13, 2.0), "solarize": F.solarize(image, 128)}
drawn(show_images(torch.stack(list(changed.values())), titles=list(changed)))


# %% [markdown]
# Not every view gets the same treatment. The two global views are made *unlike* on purpose, so that the teacher's two
# answers differ in more than the crop (the settings are those of the official code):
#
# | view | size | scale | flip | jitter | grey | blur | solarize |
# | --- | --- | --- | --- | --- | --- | --- | --- |
# | global 1 | 224 | 0.4 to 1 | 0.5 | 0.8 | 0.2 | 1.0 | never |
# | global 2 | 224 | 0.4 to 1 | 0.5 | 0.8 | 0.2 | 0.1 | 0.2 |
# | each local | 96 | 0.05 to 0.4 | 0.5 | 0.8 | 0.2 | 0.5 | never |
#
# The last five columns are probabilities. Jitter has strengths (0.4, 0.4, 0.2, 0.1) for brightness, contrast, saturation
# and hue: strength 0.4 means a factor drawn from [0.6, 1.4], and for hue 0.1 means a turn in [−0.1, 0.1]. torchvision
# shuffles the order of the four parts each time.
#
# ## 5. Multi-crop in one list comprehension
#
# Now we let torchvision do what we have understood. One function makes the pipeline of one kind of view. It ends with the
# normalisation: subtract a mean, divide by a standard deviation, channel by channel, with ImageNet's figures.
#
# Our pictures are small, so the views are too: 96 and 48 pixels. Local crops of 5% of a small image would be a handful of
# pixels; for small images the lower bound is raised, here to 10%.

# %% tags=["equality"]
def view_transform(size, scale, blur_p, solarize_p):
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur_p),
        v2.RandomSolarize(128, p=solarize_p),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET),
    ])

transforms = [view_transform(96, (0.4, 1.0), blur_p=1.0, solarize_p=0.0),
              view_transform(96, (0.4, 1.0), blur_p=0.1, solarize_p=0.2)]
transforms += [view_transform(48, (0.1, 0.4), blur_p=0.5, solarize_p=0.0)] * 6

def multicrop(picture):
    return [transform(picture) for transform in transforms]


# %% [markdown]
# Shape check: one picture in, eight views out, the global ones first.

# %%
torch.manual_seed(4)
bee, label = pictures[2]  # a PIL image and its class
views = multicrop(bee)
print([tuple(view.shape) for view in views], views[0].dtype)
drawn(show_views(views, *IMAGENET))

# %% [markdown]
# **Equal?** `dino_lib.MultiCrop` draws from the same random generator in the same order. Under one seed, all ten
# pictures must give the same eighty views, to within float rounding.

# %% tags=["equality"]
theirs = MultiCrop(96, 48, n_local=6, local_scale=(0.1, 0.4))
for i, (picture, _) in enumerate(pictures):
    torch.manual_seed(i)
    mine = multicrop(picture)
    torch.manual_seed(i)
    torch.testing.assert_close(mine, theirs(picture), rtol=0, atol=1e-6)
print("80 views agree")


# %% [markdown]
# The batched version can't agree number for number, since it draws in another order. Its *distribution* is the same, and
# the library's tests hold the two together.
#
# ## 6. Views that can be made again
#
# A run that is interrupted and resumed, or that uses four workers in place of two, should see the very same views;
# otherwise no bug can be reproduced. A global generator can't give that: it depends on who drew before. So the random numbers
# of an image come from three numbers that everybody knows: **the run's seed, the epoch, and the image's index**. A
# counter-based generator (Philox) turns them into as many uniforms as one likes. So image 7 has the same views whatever
# batch it is in, and other views in the next epoch.

# %% tags=["equality"]
def uniforms_of(seed, epoch, index, n):
    key = [seed, (epoch << 40) + index]  # two numbers of 64 bits: room for 2^40 images
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(n, np.float32))

mine = torch.stack([uniforms_of(4, 3, i, 5) for i in (7, 2)])
torch.testing.assert_close(mine, view_uniforms(seed=4, epoch=3, indices=[7, 2], n=5), rtol=0, atol=0)

def views_of(epoch, indices):
    uniforms = view_uniforms(0, epoch, indices, batch_crop.n_uniforms)
    return batch_crop(pictures.images[indices], uniforms=uniforms)[0]

first = views_of(0, [7, 3])[0]
other_batch, other_epoch = views_of(0, [1, 2, 7])[2], views_of(1, [7])[0]
torch.testing.assert_close(first, other_batch, rtol=0, atol=1e-6)
print(f"largest difference in another batch: {(first - other_batch).abs().max():.1f}")
print(f"largest difference in another epoch: {(first - other_epoch).abs().max():.1f}")

# %% [markdown]
# ## 7. Which view goes to whom
#
# DINO has two networks, and [notebook 04](04_teacher.ipynb) builds both. The **teacher** sees the two global views only; the
# **student** sees all of them. The student predicts, from each of its views, what the teacher says of a global view, but
# never of the same one: there would be nothing to predict (section 3.1, equation 3). For $V$ views that makes
# $2\,(V - 1)$ pairs. A cross marks the pairs of eight views:

# %%
n_views = 8
allowed = torch.ones(2, n_views, dtype=torch.bool)
allowed[0, 0] = allowed[1, 1] = False  # the same view
for i in range(2):
    print(f"teacher, global {i + 1}:", " ".join("x" if ok else "." for ok in allowed[i]))
print("pairs:", int(allowed.sum()), "=", 2 * (n_views - 1))


# %% [markdown]
# One more rule is easily broken by an innocent shuffle: **all views of a row come from one image**. Row $b$ of every
# (B, 3, h, w) tensor belongs to image $b$. The next section breaks it, among other things.
#
# ## 8. Break it
#
# ### Crops of the wrong scale
#
# The lesson is "these two views show the same thing". If the global views are too small, they don't. We draw a thousand
# pairs of boxes and ask how much of the smaller box the other one covers, on average, and how often the two share nothing.

# %%
def shared(a, b):
    """The overlap of boxes (N, 4) as a share of the smaller box: (N,)."""
    start, end = torch.maximum(a[:, :2], b[:, :2]), torch.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    overlap = (end - start).clamp(min=0).prod(1)
    return overlap / torch.minimum(a[:, 2:].prod(1), b[:, 2:].prod(1))

torch.manual_seed(0)
u = torch.rand(2, 1000, 22)
for scale in [(0.4, 1.0), (0.1, 0.4), (0.02, 0.1), (0.95, 1.0)]:
    a, b = (crop_boxes(part[:, :20], part[:, 20:], (96, 96), scale) for part in u)
    nothing = (shared(a, b) == 0).float().mean()
    print(f"scale {scale}: {shared(a, b).mean():.1f} in common; nothing in common {nothing:.1f}")

# %% [markdown]
# At the first scale two global views almost always share more than half of the smaller one. At a tenth of the image and
# less, most pairs share not one pixel; the teacher then speaks of one place and the student of another, and agreement can
# only be reached on what all places have in common. Look at such views of the bee: would *you* know?

# %%
torch.manual_seed(3)
tiny = MultiCrop(96, 48, n_local=6, global_scale=(0.02, 0.1), local_scale=(0.01, 0.03))
drawn(show_views(tiny(pictures[2][0]), *IMAGENET))

# %% [markdown]
# The other extreme is no better: with a scale of (0.95, 1), the last row of the table, all views are nearly one picture.
# Agreement then comes almost for free, and little is left to learn from it.
#
# ### No colour changes: a short cut
#
# Networks are lazy. If a cheap cue solves the task, that cue is what they learn. So we play the task with the cheapest
# description there is, the **mean colour** of a view, three numbers. Out of 200 images, find the second view of the same
# image by its mean colour alone: pure guessing is right 1 time in 200.

# %% tags=["nbval-ignore-output"]
crowd = Shapes(200, seed=9).images

def matched(a, b):
    """Share of rows of a (N, 3, h, w) whose nearest row of b, by mean colour, is their own."""
    nearest = torch.cdist(a.mean((2, 3)), b.mean((2, 3))).argmin(1)
    return (nearest == torch.arange(len(a))).float().mean().item()

torch.manual_seed(0)
plain = BatchMultiCrop(48, 24, n_local=0, **no_colour)(crowd)
recoloured = BatchMultiCrop(48, 24, n_local=0)(crowd)
without, whole = matched(*plain), matched(*recoloured)
print(f"found: {without:.3f} without colour changes, {whole:.3f} with the whole recipe;",
      f"guessing: {1 / len(crowd):.3f}")
assert without > 0.25 and whole < 0.125


# %% [markdown]
# Three numbers and no network go a long way without colour changes; with the whole recipe (jitter, grey, blur and
# solarize) the short cut is nearly closed. That is the reason for the colour operations: without them, colour alone goes
# a long way to solve the task.
#
# ### Views of different images
#
# Now shift the second view by one row, so that each pair holds two different images. Then nothing that is in one view
# helps to predict the other. To see this with a learner rather than with words, we fit a linear map from the pixels of
# view 1 (shrunk to 4 × 4) to those of view 2, on 1000 pairs, and measure on 500 fresh pairs how much of the variance it
# predicts: 1 is all of it, 0 is as good as always answering the mean. It can't be much, for the colours change and the
# views are cut from different places.

# %% tags=["nbval-ignore-output"]
def predicted(a, b, n_train=1000):
    """R^2 on fresh rows of a ridge regression from a to b."""
    a, b = (F.resize(v, [4, 4], antialias=True).flatten(1).double() for v in (a, b))
    a, b = a - a[:n_train].mean(0), b - b[:n_train].mean(0)
    train = a[:n_train]
    map_ = torch.linalg.solve(train.T @ train + 10 * torch.eye(a.shape[1]), train.T @ b[:n_train])
    rest = b[n_train:] - a[n_train:] @ map_
    return 1 - (rest.var() / b[n_train:].var()).item()

torch.manual_seed(0)
recipe = BatchMultiCrop(48, 24, n_local=0, blur_p=(0, 0, 0), solarize_p=0)
first, second = recipe(Shapes(1500, seed=4).images)
same, shifted = predicted(first, second), predicted(first, second.roll(1, 0))
print(f"predicted: {same:.2f} of the variance for views of one image,",
      f"{shifted:.2f} for views of different ones")
assert same > 0.05 and shifted < 0.02

# %% [markdown]
# No error is raised and every shape is right; a training run on such pairs has a loss like any other, and learns
# nothing. Keep that in mind when you write a data loader.

# %% [markdown]
# ## 9. What the teacher sees so far
#
# There is no teacher yet. So we take two networks that differ in nothing but their weights: one **untrained**, as the
# random generator left it, and one **trained** with DINO on these shapes, which ships with the course. Both are tiny
# vision transformers; the next notebook takes them apart. Here we use one fact: their last layer holds an *attention
# map*, which says for every patch of a view how much it contributes to the description.
#
# There are eight such maps, made side by side by eight *attention heads* (parts of that layer; the projection head of
# notebook 02 is another thing). We show one head for each network. `choose_head` takes the one whose brightest patches
# keep away most from the border, which what lies behind reaches more often than objects do; heads whose map hardly
# changes with the picture are left out. The objects' masks have no say in that choice and none in training: they serve
# for measuring only.

# %%
from dino_lib import PRESETS, choose_head, cls_attention, load_teacher
from dino_lib.look.report import compare
from dino_lib.run.build import build_student, open_probes

# 400 labelled pictures, and 200 queries with the masks of their objects
probes = open_probes(PRESETS["demo"], limit=400)
stages = {"untrained": build_student(PRESETS["demo"]).backbone.eval(),
          "trained": load_teacher("demo").model}
heads = {name: choose_head(probes.attention(net, 200)) for name, net in stages.items()}
print(tuple(probes.gallery.shape), tuple(probes.queries.shape), tuple(probes.masks.shape))
print("heads to show:", heads)

# %% [markdown]
# Views of one image, each given to both networks by itself. The views are made without colour changes, so that you can
# see what they show; a network gets them normalised. The object's mask is cropped by the same uniforms, so we know where
# the object is in every view.

# %%
crop = BatchMultiCrop(48, 24, n_local=4, local_scale=(0.15, 0.5), **no_colour)
numbers = view_uniforms(0, 0, range(200), crop.n_uniforms)
views = crop(probes.queries, uniforms=numbers)  # two of 48 pixels, four of 24
as_images = (probes.masks[:, None].expand(-1, 3, -1, -1) * 255).to(torch.uint8)
mask_views = crop(as_images, uniforms=numbers)
mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)

def attention(name, view):
    return cls_attention(stages[name], (view - mean) / std)[:, heads[name]]  # (B, h, w)

print([tuple(attention("trained", view).shape) for view in views])

# %% [markdown]
# From top to bottom: the view with the outline of the object, the untrained network's map, the trained one's. Each map is
# divided by its mean, and all share one colour range: black is 0, the middle of the range 1.5, and the brightest 3 times
# the mean or more.

# %%
i = 3  # the picture
figure = Figure(figsize=(10, 5.2), layout="constrained", dpi=80)
for v, column in enumerate(figure.subplots(3, 6).T):
    side = views[v].shape[-1]
    column[0].imshow(to_image(views[v][i]))
    column[0].contour(mask_views[v][i, 0], [0.5], colors="white", linewidths=1.5)
    column[0].set_title(f"global {v + 1}" if v < 2 else f"local {v - 1}", fontsize=10)
    for axis, name in zip(column[1:], stages, strict=True):
        map_ = attention(name, views[v])[i]
        axis.imshow(map_ / map_.mean(), cmap=CMAP, vmin=0, vmax=3, extent=(0, side, side, 0))
        axis.set_title(name, fontsize=9)
    for axis in column:
        axis.set_axis_off()
drawn(figure)


# %% [markdown]
# If a network has learned what the creature is, then its attention stays *with the creature* while the crop moves.
#
# To put a number on it, we take the share of the attention that falls on the object, divided by the object's share of the
# view. At 1 the map doesn't care about the object; above 1 it prefers it.

# %% tags=["nbval-ignore-output"]
def preference(name, v):
    maps = attention(name, views[v])  # (200, h, w)
    grid = list(maps.shape[1:])
    cover = F.resize(mask_views[v][:, :1], grid, antialias=True)[:, 0]  # the object's share
    on_object = (maps * cover).sum((1, 2)) / maps.sum((1, 2))
    return (on_object.mean() / cover.mean()).item()

preferences = {name: [preference(name, v) for v in range(6)] for name in stages}
for name, values in preferences.items():
    print(f"{name:10s}", " ".join(f"{value:.2f}" for value in values))
assert all(value < 1.1 for value in preferences["untrained"])
assert all(value > 1.4 for value in preferences["trained"])

# %% [markdown]
# And now the table and the two figures that close every notebook. The **k-NN** score asks whether the 20 nearest
# descriptions of a picture belong to its class (chance is 0.1); **NMI** whether clusters found without labels match the
# classes (0 to 1). From notebook 03 on the table has a third row, "this notebook", for what you trained there.
#
# The third number asks how well the shown head's map finds the object, and here is a trap. Even where objects may lie
# anywhere, the middle of a picture belongs to one more often than a corner does, so a map that never looks at the picture
# finds some of them too. Try eight blind blobs near the middle, the same for every picture. How often does a patch of the
# object have a larger value than a patch of the background?

# %%
from dino_lib.measure.masks import above_blind, auc, center_blobs, patch_masks

blobs = center_blobs(8, (8, 8)).expand(200, -1, -1, -1)  # (pictures, blobs, h, w)
objects = patch_masks(probes.masks, (8, 8))  # True where the object covers most of a patch
print(f"the best blob is larger on the object: {auc(blobs, objects).max():.2f} of the time")

# %% [markdown]
# Chance would be 0.50, and no blob has looked at any picture. In photographs, whose objects mostly lie near the middle,
# blobs do better still. So we compare with other patches: not with the background, but with the places where the *other*
# pictures have their objects. A map that is the same for every picture now wins about half of the time. **Above blind**
# is that share, stretched so that 0 stands for a half and 1 for what the objects' masks themselves would get as maps.
# (The blobs end near 0, as they should.)
#
# The last digits may differ on your machine, so the exact table is not compared.

# %% tags=["nbval-ignore-output"]
table, attention_figure, cluster_figure = compare(stages, probes)
for name, scores in table.items():
    print(f"{name:11s} k-NN {scores['knn']:.2f}   NMI {scores['nmi']:.2f}",
          f"  above blind {scores['above_blind']:.2f}")
print(f"{'blind blobs':34s} above blind {above_blind(blobs, objects).max():.2f}")
for score, least in {"knn": 0.2, "nmi": 0.2, "above_blind": 0.3}.items():
    assert table["trained"][score] > table["untrained"][score] + least

# %% [markdown]
# The untrained network's map is nearly even: its preference was 1.01. Yet it is not at 0 above blind. Both are right:
# above blind asks only which patch has the larger value, by however little, and random filters already answer to light
# and contrast, and a creature is darker than the clutter behind it and has sharper edges. So read a trained network's
# number against the row "untrained", not against 0 alone.
#
# In the figure each row shows the head that was chosen, over the picture in grey: bright patches get several times the
# mean attention of their picture, and a map that is all but even looks even. The objects are outlined. The pictures are
# enlarged first, for a finer grid of patches.

# %%
drawn(attention_figure)

# %% [markdown]
# The descriptions of the pictures, laid out in the plane by t-SNE, which keeps neighbours together; each colour is a
# class. Where the trained network's classes still mix, most share a palette, as ladybirds and starfish do.

# %%
drawn(cluster_figure)


# %% [markdown]
# There is no row "this notebook" yet, and rightly: augmentation alone changes no weight. Note how much the untrained
# network can do already: random filters keep colours, and colours say something of the class. That is the bar which
# training has to clear. The third row comes with notebook 03.
#
# ## Summary
#
# - A view is a random crop, resized, flipped and recoloured; views define what a description must ignore.
# - Crop and resize are two matrix products, $R\,x\,C^\top$, which is why a whole batch can be done at once.
# - Two global views show most of an image, local ones a part; local views are cheap and make the task harder.
# - Random numbers keyed by (seed, epoch, index) give every image the same views on every machine.
# - Wrong scales, missing colour changes or mixed-up rows raise no error, and spoil all that follows.
#
# ## Exercises
#
# Each has a stub and a check that says *right*, *close* or *wrong* with a hint, and never the answer. Solutions are in
# [solutions/01_multicrop_solutions.ipynb](solutions/01_multicrop_solutions.ipynb). After them comes
# [02 · Backbone and head](02_head.ipynb), which turns views into descriptions.
#
# **Exercise 1 (easy).** From an image's height and width, a share of its area and a ratio (width / height), give
# the crop's height and width in whole pixels, rounded to the nearest.

# %%
def crop_size(height, width, share, ratio):
    ...  # -> (h, w)

checks.check_crop_size(crop_size)


# %% [markdown]
# **Exercise 2 (easy).** Saturation: blend an image with its own grey version; factor 1 leaves it as it is. Values stay
# in [0, 1].

# %%
def saturation(x, factor):
    ...  # x (3, H, W) in [0, 1] -> (3, H, W)

checks.check_saturation(saturation)


# %% [markdown]
# **Exercise 3 (easy).** All pairs of the loss for `n_views` views, as a list of (teacher view, student view), with
# views 0 and 1 the global ones. The order of the list doesn't matter.

# %%
def pairs(n_views):
    ...  # -> list of (i, v)

checks.check_pairs(pairs)


# %% [markdown]
# **Exercise 4 (hard).** `resize_matrix` needs the crop cut out first, so crops of different sizes don't fit into one
# batch. Write the matrix that crops *and* resizes: it acts on the whole line of `n_in` pixels, keeps `length` pixels from
# `start` on, and gives `n_out`. What lies outside the crop must not shine through. You may use `cubic` from above.

# %%
def crop_matrix(start, length, n_in, n_out):
    ...  # -> (n_out, n_in)

checks.check_crop_matrix(crop_matrix)
