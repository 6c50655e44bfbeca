# %% [markdown]
# # A1 · Appendix: a resize is a matrix
#
# <!-- badge -->
#
# [Notebook 01](01_multicrop.ipynb) resizes its crops with `F.interpolate`. Here you see what that does: crop and resize are products with two small matrices, equal to torchvision's and the library's.
#
# **You write** two pieces. **You need** notebook 01, sections 2 and 3. Nothing later depends on this appendix.
#
# **Time.** 20 minutes for the two pieces, 20 for the reading. The cells take about 15 seconds of one CPU core, nearly all for imports.

# %% tags=["setup"]
# written by build.py

# %% tags=["equality"]
import math

import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv

from dino_lib import Shapes
from dino_lib.course import resampling as checks
from dino_lib.course.prediction import settle
from dino_lib.data import batch_views
from dino_lib.look.pictures import to_image

pictures = Shapes(10, seed=34, size=96)
x = pictures.images[2] / 255  # a bee

# %% [markdown]
# ## 1. A line of pixels
#
# A crop of 30 × 41 pixels has to become a view of 48 × 48. Each new pixel is a weighted mean of old ones nearby. A table of weights is a matrix. Take one row of four pixels, and halve it. The plainest matrix averages neighbours.

# %%
row = torch.tensor([0.0, 10.0, 20.0, 30.0])
halve = torch.tensor([[0.5, 0.5, 0, 0],
                      [0, 0, 0.5, 0.5]])  # (2 new pixels, 4 old ones)
print(halve @ row)

# %% [markdown]
# Which weights are good ones? The official code uses *bicubic* ones. The weight of an old pixel depends only on its distance $t$ from the new pixel's centre, in pixels:
#
# $$k(t) = \begin{cases} 1.5\,|t|^3 - 2.5\,|t|^2 + 1 & |t| < 1\\ -0.5\,|t|^3 + 2.5\,|t|^2 - 4\,|t| + 2 & 1 \le |t| < 2\\
# 0 & \text{else}\end{cases}$$
#
# It is 1 at distance 0 and 0 at every other whole distance, so a resize to the same size changes nothing. Beyond 1 it is slightly negative.

# %% [markdown]
# **Your turn 1 · easy · 5 minutes · the kernel.** Write `cubic(t)` for a tensor of distances, positive and negative ones. What should come out: a tensor of the same shape. `cubic` of 0, 0.5, 1, 1.5 and 2 is 1, 0.5625, 0, −0.0625 and 0.
#
# <details><summary>Hint</summary>
#
# Take `t.abs()` first. `torch.where(condition, a, b)` chooses number by number, and one may stand inside another.
#
# </details>

# %% tags=["stub", "equality"]
def cubic(t):
    """The weight of a pixel at distance t."""
    ### BEGIN SOLUTION
    t = t.abs()
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    ### END SOLUTION

cubic = checks.cubic(cubic)

# %% [markdown]
# Now the table of distances. Pixel $j$ reaches from $j$ to $j + 1$, so its centre is $j + 0.5$. One new pixel covers `step` old ones, and the centre of new pixel $i$ is $(i + 0.5)\cdot$ `step`. Where the image shrinks (`step` above 1), the kernel is stretched by `step`, so that it averages over all it covers: *antialiasing*. The weights of a row then sum to about `step`, and to less at the borders, where the kernel sticks out of the image. So each row is divided by its sum.

# %% tags=["equality"]
def resize_matrix(n_in, n_out):
    """Weights (n_out, n_in) that resize a line of n_in pixels to n_out."""
    step = n_in / n_out
    centers = (torch.arange(n_out) + 0.5) * step
    pixels = torch.arange(n_in) + 0.5
    weights = cubic((pixels - centers[:, None]) / max(step, 1))
    return weights / weights.sum(1, keepdim=True)

print(resize_matrix(4, 2).numpy().round(2), resize_matrix(4, 2) @ torch.tensor([0.0, 10.0, 20.0, 30.0]))

# %% [markdown]
# What do the negative weights do? Enlarge an edge, from black (0) to white (1).

# %%
edge = torch.tensor([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
print((resize_matrix(6, 12) @ edge).numpy().round(2))

# %% [markdown]
# Beside the edge the dark side falls below 0, and the bright side rises above 1. This *overshoot* makes the edge look crisper. But a picture has no values below 0 or above 1, so they have to be clamped.

# %% [markdown]
# ## 2. A picture
#
# A picture has rows and columns, so it takes two matrices. With $x$ the crop ($h \times w$), $R$ the matrix for its rows ($\text{size} \times h$) and $C$ the one for its columns ($\text{size} \times w$), the view is
#
# $$\text{view} = R\,x\,C^\top .$$
#
# The clamp catches the overshoot.

# %% tags=["equality"]
def crop_resize(x, box, size):
    """x (C, H, W) in [0, 1], box (top, left, h, w) -> (C, size, size)."""
    top, left, h, w = box
    part = x[:, top : top + h, left : left + w]
    return (resize_matrix(h, size) @ part @ resize_matrix(w, size).T).clamp(0, 1)

# %% [markdown]
# **Equal?** To torchvision, for several sizes, shrinking and enlarging.

# %% tags=["equality"]
box = (36, 34, 30, 41)
for size in (16, 24, 48, 96):
    theirs = tv.resized_crop(x, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    torch.testing.assert_close(crop_resize(x, box, size), theirs, rtol=0, atol=1e-4)
    print(f"30 × 41 to {size:2d} × {size}: equal within 1e-4")

# %% [markdown]
# **Predict, then run.** In the matrix that enlarges 30 pixels to 48, how many weights of a row, in the middle, are not 0?
#
# - **a**: 2, one on each side
# - **b**: 4, two on each side
# - **c**: all 30

# %%
guess = "?"  # a, b or c

# %%
n = int((resize_matrix(30, 48)[22].abs() > 1e-6).sum())
print(f"30 to 48: {n} weights; 48 to 12: {int((resize_matrix(48, 12)[6].abs() > 1e-6).sum())} weights")
settle(guess, {"a": "2", "b": "4", "c": "all 30"}, "a" if n <= 2 else "b" if n < 30 else "c")

# %% [markdown]
# The first panel is the whole matrix: a diagonal band. The other two show one row each, as bars. Enlarging, four weights count, and the outer two are negative. Shrinking, the kernel is stretched: more weights count, and each is smaller (mind the scales).

# %%
import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 3, figsize=(11, 2.8), layout="constrained", dpi=80)
shown = axes[0].imshow(resize_matrix(30, 48), cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
axes[0].set(title="30 pixels to 48", xlabel="old pixel", ylabel="new pixel")
figure.colorbar(shown, ax=axes[0])
for axis, n_in, n_out, i in [(axes[1], 30, 48, 22), (axes[2], 48, 12, 6)]:
    weights = resize_matrix(n_in, n_out)[i]
    axis.bar(range(n_in), weights, color=["tab:red" if w > 0 else "tab:blue" for w in weights])
    axis.axhline(0, color="0.5", linewidth=0.7)
    middle = (i + 0.5) * n_in / n_out - 0.5
    axis.set(title=f"{n_in} to {n_out}: the weights of new pixel {i}", xlabel="old pixel",
             xlim=(middle - 9, middle + 9))

# %% [markdown]
# Then the picture with its box, and the view. The box of 30 × 41 pixels becomes a square, so all in it is stretched in height.

# %%
figure, axes = plt.subplots(1, 2, figsize=(6, 3.2), layout="constrained", dpi=80)
top, left, h, w = box
axes[0].imshow(to_image(x))
axes[0].add_patch(plt.Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color="white", linewidth=2))
axes[0].set_title("the picture and the box")
axes[1].imshow(to_image(crop_resize(x, box, 48)))
axes[1].set_title(r"the view, $R\,x\,C^\top$")
for axis in axes:
    axis.set_axis_off()

# %% [markdown] tags=["note"]
# **Teacher's note · 25 minutes, for those who ask.** Question: "where are the 16 pixels that one reads about?" Four weights in a row, times four in a column: two matrices, one after the other. Ask: *what happens if the kernel isn't stretched when shrinking 48 to 12?* Each new pixel looks at its own block of 4 in a row, but nearly only at the middle 2, and takes a little of the outer ones away: fine patterns come out wrong.

# %% [markdown]
# ## 3. A whole batch at once
#
# A batch of matrices is one call of `torch.bmm`. On a GPU that is how `dino_lib.BatchMultiCrop` crops and resizes a whole batch. (On a CPU it calls torch's own resize, which is faster there.) But crops of different sizes don't fit into one tensor. So the library crops *by the matrix too*: one matrix acts on the whole line of pixels, and weighs what lies outside the crop with 0.

# %% [markdown]
# **Exercise 2 · hard · 15 minutes · crop and resize in one matrix.** Write `crop_matrix(start, length, n_in, n_out)`. It acts on a line of `n_in` pixels, keeps `length` of them from `start` on, and resizes these to `n_out`. What should come out: weights (n_out, n_in), 0 for all pixels outside the crop, with rows that sum to 1. You may use `cubic`.
#
# <details><summary>Hint</summary>
#
# Begin with `resize_matrix`. The step is now `length / n_out`, and the centres begin at `start`. Set the columns outside the crop to 0 *before* each row is divided by its sum.
#
# </details>

# %% tags=["stub", "equality"]
def crop_matrix(start, length, n_in, n_out):
    """Weights (n_out, n_in): crop and resize."""
    ### BEGIN SOLUTION
    step = length / n_out
    centers = start + (torch.arange(n_out) + 0.5) * step
    weights = cubic((torch.arange(n_in) + 0.5 - centers[:, None]) / max(step, 1))
    weights[:, :start] = 0
    weights[:, start + length :] = 0
    return weights / weights.sum(1, keepdim=True)
    ### END SOLUTION

crop_matrix = checks.crop_matrix(crop_matrix)

# %% [markdown]
# **Equal?** First to the library's `crop_matrix`, which makes many at once.

# %% tags=["equality"]
generator = torch.Generator().manual_seed(0)
tries, places = torch.rand(10, 20, generator=generator), torch.rand(10, 2, generator=generator)
boxes = batch_views.crop_boxes(tries, places, (96, 96), (0.1, 0.6))  # rows of top, left, h, w
for size in (16, 48, 96):
    theirs = batch_views.crop_matrix(boxes[:, 0], boxes[:, 2], 96, size)
    mine = torch.stack([crop_matrix(top, h, 96, size) for top, _, h, _ in boxes.int().tolist()])
    torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5)
print("30 matrices: equal within 1e-5")

# %% [markdown]
# Then to its views of ten pictures, some of them mirrored. The library rounds to whole grey levels, so a level or two of 255 may lie between.

# %% tags=["equality"]
def by_matrices(x, box, size):
    top, left, h, w = box
    return (crop_matrix(top, h, 96, size) @ x @ crop_matrix(left, w, 96, size).T).clamp(0, 1)

mirrored = torch.arange(10) % 2 == 0
theirs = batch_views.crops_by_products(pictures.images, torch.arange(10), boxes, mirrored, 48)
each = zip(pictures.images / 255, boxes.int().tolist(), mirrored, theirs, strict=True)
for picture, box, flip, view in each:
    mine = by_matrices(picture, box, 48)
    torch.testing.assert_close(mine.flip(-1) if flip else mine, view, rtol=0, atol=2.5 / 255)
print("10 views by products: equal within 2.5 grey levels")

# %% [markdown]
# At last to whole views of `BatchMultiCrop`, all colour changes off: `away_from_the_batch` makes the same views by two products each, with your `crop_matrix`.

# %% tags=["equality"]
n, levels = checks.away_from_the_batch(crop_matrix, pictures.images)
assert levels < 2.5
print(f"{n} views of the batch: equal within 2.5 grey levels")

# %% [markdown]
# Back to [01 · Multi-crop](01_multicrop.ipynb), or on to [02 · Backbone and head](02_head.ipynb).
