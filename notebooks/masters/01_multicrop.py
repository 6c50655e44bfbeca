# %% [markdown]
# # 01 · Multi-crop: many views of one image
#
# <!-- badge -->
#
# DINO learns from pictures without labels. This notebook opens the course, and builds the first part of DINO: the *views* of a picture.
#
# **You write** eight pieces: the box of a crop, the crop, a colour change, the list of views, the pairs of the loss, two measures, and the way of a map back to its picture. Where a check finds yours right, the notebook runs on it; until then on the finished one.
#
# **You need** PyTorch tensors and a little probability. Nothing is trained here.
#
# **Time.** About two hours: an hour for the pieces and the exercise, an hour for the reading. The cells take about 35 seconds of one CPU core (on a busy machine).
#
# Next: [02 · Backbone and head](02_head.ipynb).

# %% tags=["setup"]
# written by build.py

# %% [markdown]
# ## The course on one screen
#
# Below each picture is a map of where a network looks that DINO has trained. Nobody ever told it what is in a picture, or where. At the bottom is what it does before training.

# %% tags=["equality"]
import math

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as tv

from dino_lib import PRESETS, BatchMultiCrop, MultiCrop, Shapes
from dino_lib.augment import IMAGENET
from dino_lib.course import multicrop as checks
from dino_lib.course.prediction import settle
from dino_lib.data.batch_views import crop_boxes, view_uniforms
from dino_lib.look.pictures import show_images, show_views, to_image

pictures = Shapes(10, seed=34, size=96)
image = pictures.images[2]  # uint8 (3, 96, 96): a bee

# %% tags=["nbval-ignore-output"]
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image

import dino_lib
from dino_lib import choose_head, cls_attention, extract_features, load_teacher
from dino_lib.look.maps import attention_sheet
from dino_lib.run.build import build_student

folder = Path(dino_lib.__file__).parent / "data" / "photos"
photographs = [Image.open(path).convert("RGB").resize((120, 120))
               for path in sorted(folder.glob("*.jpg"))]
creatures = [pictures[i][0] for i in range(10)]
of_creatures, of_photographs = load_teacher("demo"), load_teacher("photos")
images, rows = [], {"trained": [], "untrained": []}
for trained, prepare, pixels, pick in [
        (of_creatures, of_creatures.transform, creatures, [0, 2, 3, 4, 7]),
        (of_photographs, of_photographs.transform.normalize, photographs, [1, 9, 7, 11])]:
    prepared = torch.stack([prepare(picture) for picture in pixels])
    looks = cls_attention(trained.model, prepared)
    head = choose_head(looks)
    untrained = build_student(trained.config).backbone.eval()
    images += [tv.pil_to_tensor(pixels[i]) for i in pick]
    rows["trained"] += looks[pick, head]
    rows["untrained"] += cls_attention(untrained, prepared[pick])[:, head]
attention_sheet(images, rows)

# %% [markdown]
# The network is a *vision transformer* (ViT). It cuts a picture into patches, and turns each patch into a *token*, a list of numbers. One more token, CLS, collects from all others: in the end it is the *feature*, one list of numbers for the whole picture. *Attention* says how much each token contributes to it: the picture stays grey where that is nothing, is purple at the mean, and glows at three or four times the mean. A network makes several such maps. `choose_head` chose one for the creatures and one for the photographs, as in section 9. The network of the photographs is another one, trained for 129 minutes of two cores on photographs of other things. Both are small. We picked these four, on which its map is good (the README shows the mean of its maps on eight), and five creatures of ten.
#
# ![One step of DINO](../figures/architecture.png)
#
# DINO trains with two networks of the same shape. Both see *views* of one picture: random crops with changed colours. The **student** must give, for each view, the answer that the **teacher** gives for another view of the same picture. Only the student learns by gradient. The teacher is a slow average of the student's past weights.
#
# An answer is a list of $K$ shares that sum to 1. Notebooks 02 to 04 build the boxes of the figure.
#
# <details><summary>The symbols in the figure</summary>
#
# A *head* turns the feature into *logits*, one number for each of the $K$ outputs, and *softmax* turns logits into shares. $s$ is the student's logits, $t$ the teacher's, $c$ the teacher's running mean. 0.1 and $\tau$ are *temperatures*: the smaller, the more decided the answer. $\theta_s$ and $\theta_t$ are the weights of the two networks, $m$ is a number just below 1, and $V$ counts the views.
#
# </details>
#
# **Why is it not enough to agree?** A network that gives the same answer for every picture always agrees with itself, and knows nothing. That is *collapse*. DINO changes the teacher's answer in two ways against it. *Centering* subtracts the running mean, so no single answer can win for every picture. *Sharpening* makes the answer favour few outputs, so it can't be "everything equally" either. Notebooks 03 and 07 take them out, one at a time.
#
# <details><summary>The methods before DINO, in one line each</summary>
#
# - **SimCLR** pushes views of different pictures apart, and needs many pictures in a batch for it.
# - **BYOL** has a slow teacher too. A small extra network, on the student alone, has to predict the teacher's feature.
# - **SwAV** sorts the views of a batch into clusters of equal size. Multi-crop comes from SwAV.
#
# </details>
#
# <details><summary>Why distributions, and not a distance between features?</summary>
#
# One can see in a distribution how decided it is, and over many pictures how evenly the outputs are used. Centering and sharpening act on just that. A bare distance has nothing of the kind to steer: every constant makes it 0.
#
# </details>
#
# Each notebook of the course proves its pieces equal to those of the finished library, `dino_lib`.

# %% [markdown] tags=["note"]
# **Teacher's note · 10 minutes.** Show the sheet first and say nothing for half a minute. Then ask: *what would the network have to know to light up there?* Expect "someone drew masks". No: no mask, no label. The common misconception is that the teacher is a person or a larger network. It's the student's own past. Be open about the photographs: there a two-block network is right in part.

# %% [markdown]
# ## 1. Why views at all
#
# Describe a picture with 128 numbers, and let the same numbers come out for *another part* of the picture. The colour of one corner won't do, because the other part doesn't show that corner. Brightness won't do if someone changes it in between. What is left is what both parts have in common. Often that is the bee.
#
# The paper (Caron et al. 2021, [arXiv 2104.14294](https://arxiv.org/abs/2104.14294), section 3.1) uses two large *global* views, which show most of the picture, and several small *local* views. Only the student sees the local ones. It has to say from a few stripes what the whole is.
#
# Small views are also cheap. A ViT with patches of 16 pixels cuts a 224-pixel view into 14 × 14 tokens, and a 96-pixel view into 6 × 6.

# %%
tokens = {"global": (224 // 16) ** 2, "local": (96 // 16) ** 2}
multi_crop = 2 * tokens["global"] + 8 * tokens["local"]
print(f"2 global and 8 local views: {multi_crop} tokens; 10 global views: {10 * tokens['global']}")

# %% [markdown]
# Our pictures are drawn by code. There are ten kinds of creatures. Each has a palette, a texture and an outline, and lies anywhere in a clutter of all colours.

# %%
show_images(pictures.images, titles=pictures.classes)

# %% [markdown]
# ## 2. The box of a crop
#
# To crop is to slice: rows first, then columns. We write a box as (top, left, height, width).

# %%
numbered = torch.arange(36).view(6, 6)
top, left, h, w = 1, 2, 3, 4
print(numbered[top : top + h, left : left + w])

# %% [markdown]
# A *random resized crop* draws two numbers: the share $s$ of the image's area that the box covers, and its ratio $r$ of width to height. With $H$ and $W$ for the image's height and width, the box has the area $A = s\,H\,W$, and
#
# $$w = \sqrt{A\,r}, \qquad h = \sqrt{A / r},$$
#
# because then $w \cdot h = A$ and $w / h = r$. In numbers: a quarter of a 48-pixel image, a third wider than high.

# %%
area, ratio = 0.25 * 48 * 48, 4 / 3
w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
print(f"area {area:.0f} pixels: width {w:.1f}, height {h:.1f}; w * h = {w * h:.0f}, w / h = {w / h:.2f}")

# %% [markdown]
# **Your turn 1 · easy · 4 minutes · the sides of a box.** Write `crop_size`: from an image's height and width, a share of its area and a ratio (width / height), the box's height and width. What should come out: two whole numbers, rounded to the nearest, the height first. `crop_size(48, 48, 0.25, 4 / 3)` is (21, 28).
#
# <details><summary>Hint</summary>
#
# Work out the area first. `math.sqrt` takes the root, and `round` gives a whole number.
#
# </details>

# %% tags=["stub", "equality"]
def crop_size(height, width, share, ratio):
    """(h, w) of a box in whole pixels."""
    ### BEGIN SOLUTION
    area = share * height * width
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
    ### END SOLUTION

crop_size = checks.crop_size(crop_size)

# %% [markdown]
# The share is uniform between two bounds, the *scale* of the view. The ratio lies between 3/4 and 4/3, and its *logarithm* is uniform, so "a third wider" and "a third higher" are equally likely.
#
# A box may be larger than the image. Then we draw again, ten times at most. After that we take the whole image.
#
# We *hand in* the random numbers, all uniform in [0, 1): ten pairs for the tries, and one pair for the place.

# %% tags=["equality"]
def random_box(tries, corner, height, width, scale):
    """(top, left, h, w) on a square image, from 20 uniforms for the tries and 2 for the place."""
    low, high = math.log(3 / 4), math.log(4 / 3)
    for for_area, for_ratio in tries.view(-1, 2).tolist():
        share = scale[0] + (scale[1] - scale[0]) * for_area
        h, w = crop_size(height, width, share, math.exp(low + (high - low) * for_ratio))
        if w <= width and h <= height:
            return int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w
    return 0, 0, height, width


# %% [markdown]
# **Equal?** `crop_boxes` of the library works out the boxes of a whole batch. From the same numbers it has to give the same boxes.

# %% tags=["equality"]
torch.manual_seed(1)
tries, corner = torch.rand(200, 20), torch.rand(200, 2)
for scale in [(0.4, 1.0), (0.1, 0.4)]:
    mine = [random_box(t, c, 96, 96, scale) for t, c in zip(tries, corner, strict=True)]
    off = (torch.tensor(mine) - crop_boxes(tries, corner, (96, 96), scale)).abs().max().item()
    print(f"scale {scale}: largest difference over 200 boxes {off:.0f} pixels")
    assert off == 0

# %% [markdown]
# Three global boxes (scale 0.4 to 1) on the left, three local ones (0.1 to 0.4) on the right.

# %%
def draw_boxes(axis, image, boxes, title):
    axis.imshow(to_image(image))
    for (top, left, h, w), color in zip(boxes, ["white", "yellow", "magenta"]):
        axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color=color, linewidth=2))
    axis.set_title(title, fontsize=10)
    axis.set_axis_off()

figure, axes = plt.subplots(1, 2, figsize=(8, 4), layout="constrained", dpi=80)
for axis, scale in zip(axes, [(0.4, 1.0), (0.1, 0.4)]):
    boxes = [random_box(t, c, 96, 96, scale) for t, c in zip(tries[16:19], corner[16:19])]
    draw_boxes(axis, image, boxes, f"scale {scale[0]} to {scale[1]}")

# %% [markdown]
# ## 3. Crop and resize
#
# All global views of a batch need one size, and all local ones too. So each crop is resized. A new pixel is a weighted mean of old pixels near it. DINO uses *bicubic* weights, which keep edges crisp. Some are slightly negative, so a value can come out below 0 or above 1. Where a crop shrinks, each mean has to reach over all the pixels that the new one covers: *antialiasing*. The [appendix](A1_resampling.ipynb) derives the weights.

# %%
line = torch.tensor([0.0, 0, 0, 1, 1, 1, 0, 1])[None, None, None]  # a picture of one row
wide = F.interpolate(line, (1, 16), mode="bicubic", antialias=True).flatten()
print("8 pixels to 16: from", f"{wide.min():.2f} to {wide.max():.2f}")

# %% [markdown]
# **Your turn 2 · medium · 8 minutes · the crop.** Write `crop`: cut the box out of an image, and resize it to size × size pixels. The image is a tensor (channels, height, width), either float with values in [0, 1] or uint8 with values up to 255. What should come out: a tensor (channels, size, size) of the same type. Float values stay in [0, 1].
#
# <details><summary>Hint</summary>
#
# `F.interpolate(batch, (size, size), mode="bicubic", antialias=True)` wants a batch: `x[None]` adds the axis, `[0]` takes it away again. It rounds and clamps uint8 by itself; floats you clamp. `x.is_floating_point()` tells the two apart.
#
# </details>

# %% tags=["stub", "equality"]
def crop(x, box, size):
    """x (C, H, W), box (top, left, h, w) -> (C, size, size)."""
    ### BEGIN SOLUTION
    top, left, h, w = box
    part = x[None, :, top : top + h, left : left + w]
    view = F.interpolate(part, (size, size), mode="bicubic", antialias=True)[0]
    return view.clamp(0, 1) if x.is_floating_point() else view
    ### END SOLUTION

crop = checks.crop(crop)

# %% [markdown]
# The notebook keeps a right `crop` as `my_pieces/crop.py`, and notebook 05 trains with it; so it does with `saturation` and `views`.
#
# **Equal?** First to torchvision. Then to `dino_lib.BatchMultiCrop`, which makes the views of a whole batch from one row of uniforms a picture: 36 numbers a view, namely 20 for the tries, 2 for the corner, 1 for the flip (a mirrored view), and 13 for the colours, which are off here. The library rounds to whole grey levels, so the two may differ by a level or two of 255.

# %% tags=["equality"]
x, box = image / 255, (36, 34, 30, 41)
for size in (16, 24, 48, 96):
    theirs = tv.resized_crop(x, *box, [size, size], InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    torch.testing.assert_close(crop(x, box, size), theirs, rtol=0, atol=2.5 / 255)

no_colour = dict(color_jitter=(0, 0, 0, 0), gray_p=0, blur_p=(0, 0, 0), solarize_p=0,
                 mean=(0, 0, 0), std=(1, 1, 1))
batch_crop = BatchMultiCrop(64, 32, n_local=2, local_scale=(0.1, 0.4), **no_colour)
uniforms = view_uniforms(seed=0, epoch=0, indices=range(10), n=batch_crop.n_uniforms)
batch_views = batch_crop(pictures.images, uniforms=uniforms)
print([tuple(v.shape) for v in batch_views], "from uniforms", tuple(uniforms.shape))

# %% tags=["equality"] jupyter={"source_hidden": true} cellView="form"
# @title 40 views, one by one
sizes, scales, largest = [64, 64, 32, 32], [(0.4, 1.0)] * 2 + [(0.1, 0.4)] * 2, 0
for of_view, numbers, size, scale in zip(batch_views, uniforms.chunk(4, dim=1), sizes, scales, strict=True):
    for picture, u, theirs in zip(pictures.images, numbers, of_view, strict=True):
        mine = crop(picture / 255, random_box(u[:20], u[20:22], 96, 96, scale), size)
        mine = mine.flip(-1) if u[22] < 0.5 else mine
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2.5 / 255)
        largest = max(largest, 255 * (mine - theirs).abs().max().item())
print(f"40 views; at most {largest:.0f} of 255 grey levels apart")

# %% [markdown] tags=["note"]
# **Teacher's note · 20 minutes for sections 2 and 3.** Ask before "Your turn 1": *what does a share of a quarter do to the sides?* Many say they shrink to a quarter; they halve. Two mistakes come up in `crop`: `x[top:h]` (a length taken for an end), and a missing `antialias=True`, which shows most where a crop shrinks (where it grows, torch takes slightly other weights). Leave out the appendix in class. It's for those who ask where the negative weights come from.

# %% [markdown]
# ## 4. Colour: what must not matter
#
# Light changes, cameras differ, and a bee stays a bee. So each view also gets a random change of colour. Three of the four parts of *colour jitter* have one form. They mix the image $x$ with a duller image $y$, with a factor $f$ drawn near 1:
#
# $$\text{blend}(x, y, f) = f\,x + (1 - f)\,y .$$
#
# For **brightness**, $y$ is black. For **contrast** it is the mean grey of the image, and for **saturation** the image's own grey version. A factor of 1 changes nothing, one below 1 makes duller, one above 1 more vivid. One pixel by hand:

# %%
red, green, blue = 0.8, 0.4, 0.2
grey = 0.2989 * red + 0.587 * green + 0.114 * blue  # the eye weighs green most and blue least
print(f"its grey is {grey:.3f}; half as saturated:", [round(0.5 * c + 0.5 * grey, 3) for c in (red, green, blue)])

# %% [markdown]
# **Your turn 3 · easy · 5 minutes · saturation.** Write `saturation`: blend an image with its own grey version. The image is a float tensor (3, height, width) with values in [0, 1]. What should come out: a new tensor of the same shape, with values in [0, 1]. Factor 1 leaves the image as it is, and factor 0 makes all three channels equal.
#
# <details><summary>Hint</summary>
#
# `x[0]` is the red channel. The grey has the shape (height, width), and PyTorch repeats it for the three channels when you add it. `clamp(0, 1)` comes last.
#
# </details>

# %% tags=["stub", "equality"]
def saturation(x, factor):
    """factor * x + (1 - factor) * grey, in [0, 1]."""
    ### BEGIN SOLUTION
    grey = 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return (factor * x + (1 - factor) * grey).clamp(0, 1)
    ### END SOLUTION

saturation = checks.saturation(saturation)

# %% [markdown]
# **Equal?** To torchvision's, and the two other blends with it.

# %% tags=["equality"]
def blend(x, y, f):
    return (f * x + (1 - f) * y).clamp(0, 1)

for f in (0.6, 1.0, 1.4):
    torch.testing.assert_close(saturation(x, f), tv.adjust_saturation(x, f), rtol=0, atol=3e-4)
    torch.testing.assert_close(blend(x, 0 * x, f), tv.adjust_brightness(x, f), rtol=0, atol=1e-4)
    grey_level = saturation(x, 0)[0].mean()
    torch.testing.assert_close(blend(x, grey_level, f), tv.adjust_contrast(x, f), rtol=0, atol=3e-4)
print(f"saturation 1.4: largest difference {(saturation(x, f) - tv.adjust_saturation(x, f)).abs().max():.0e}")

# %% [markdown]
# The fourth part, **hue**, turns the colour circle by a small angle: 0.1 is a tenth of a turn. Three more operations have a probability each:
#
# - **grey** takes all colour away, so colour alone can't carry the feature;
# - **blur** takes fine texture away. It is a weighted mean over the neighbours, with weights $e^{-d^2 / 2\sigma^2}$ at distance $d$ pixels and $\sigma$ between 0.1 and 2;
# - **solarize** turns each value from 128 up into 255 minus itself.
#
# Side by side, each at a strong setting (saturation beyond the recipe's own):

# %%
changed = {"as it is": image, "brightness 1.4": tv.adjust_brightness(image, 1.4),
           "contrast 0.6": tv.adjust_contrast(image, 0.6),
           "saturation 0.3": (255 * saturation(x, 0.3)).to(torch.uint8),
           "hue +0.1": tv.adjust_hue(image, 0.1), "grey": tv.rgb_to_grayscale(image, 3),
           "blur 2": tv.gaussian_blur(image, 13, 2.0), "solarize": tv.solarize(image, 128)}
show_images(torch.stack(list(changed.values())), titles=list(changed))

# %% [markdown]
# The two global views are made *unlike* on purpose: the first is always blurred, the second is sometimes solarized. The official code's settings; the last five columns are probabilities:
#
# | view | size | scale | flip | jitter | grey | blur | solarize |
# | --- | --- | --- | --- | --- | --- | --- | --- |
# | global 1 | 224 | 0.4 to 1 | 0.5 | 0.8 | 0.2 | 1.0 | never |
# | global 2 | 224 | 0.4 to 1 | 0.5 | 0.8 | 0.2 | 0.1 | 0.2 |
# | each local | 96 | 0.05 to 0.4 | 0.5 | 0.8 | 0.2 | 0.5 | never |
#
# Jitter has the strengths (0.4, 0.4, 0.2, 0.1) for brightness, contrast, saturation and hue. Strength 0.4 means a factor from [0.6, 1.4].
#
# ## 5. The list of views
#
# Three recipes make all views: one for each global view, one for the local ones. Each draws its own random numbers whenever it's called, and starts from the whole image.

# %% [markdown]
# **Your turn 4 · easy · 4 minutes · the list of views.** Write `views`. `first`, `second` and `local` are functions from an image to a view. What should come out: a list of 2 + `n_local` views. The two global ones come first, then the local ones, each with random numbers of its own. Call the functions in this order, too: all draw from one generator.
#
# <details><summary>Hint</summary>
#
# `[local(image)] * 3` is a list of the same view, three times over. A list comprehension calls `local` anew each time.
#
# </details>

# %% tags=["stub", "equality"]
def views(image, first, second, local, n_local):
    """[global 1, global 2, local, local, ...]"""
    ### BEGIN SOLUTION
    return [first(image), second(image)] + [local(image) for _ in range(n_local)]
    ### END SOLUTION

views = checks.views(views)

# %% [markdown]
# torchvision has every step that you have seen. At the end stands the normalisation: subtract a mean and divide by a standard deviation, channel by channel, with ImageNet's figures.
#
# Our pictures are small, so the views are too: 96 and 48 pixels. A local crop of 5 % would be a handful of pixels, so we raise the lower bound to 10 %.

# %% tags=["equality"]
def recipe(size, scale, blur_p, solarize_p):
    return v2.Compose([
        v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
        v2.RandomHorizontalFlip(),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
        v2.RandomGrayscale(0.2),
        v2.RandomApply([v2.GaussianBlur(13, (0.1, 2.0))], p=blur_p),
        v2.RandomSolarize(128, p=solarize_p),
        v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(*IMAGENET),
    ])

first = recipe(96, (0.4, 1.0), blur_p=1.0, solarize_p=0.0)
second = recipe(96, (0.4, 1.0), blur_p=0.1, solarize_p=0.2)
local = recipe(48, (0.1, 0.4), blur_p=0.5, solarize_p=0.0)

# %% [markdown]
# **Equal?** `dino_lib.MultiCrop` draws from the same random generator in the same order, so under one seed it gives the same eighty views.

# %% tags=["equality"]
theirs, largest = MultiCrop(96, 48, n_local=6, local_scale=(0.1, 0.4)), 0
for i, (picture, _) in enumerate(pictures):
    torch.manual_seed(i)
    mine = views(picture, first, second, local, 6)
    torch.manual_seed(i)
    for a, b in zip(mine, theirs(picture), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        largest = max(largest, (a - b).abs().max().item())
print(f"80 views, largest difference {largest:.0e}")

# %% [markdown]
# Now the views of the bee, made by *your* pieces and torchvision's remaining steps.

# %% tags=["nbval-ignore-output"]
from dino_lib.course.one_image import views_of_batch

settings = MultiCrop(96, 48, n_local=6, local_scale=(0.1, 0.4))
torch.manual_seed(4)
of_bee = views_of_batch(pictures.images[2:3], settings, crop=crop, saturation=saturation, views=views)
show_views([view[0] for view in of_bee], *IMAGENET)

# %% [markdown] tags=["note"]
# **Teacher's note · 15 minutes for sections 4 and 5.** At the picture of the views, cover the bee and show one local view alone: *what is this?* The trap of "Your turn 4" is `[local(image)] * n_local`. It runs, every shape is right, and the student gets one local view six times. Misconception: "augmentation is there against overfitting". Here it *is* the task: it says what the feature has to ignore.

# %% [markdown]
# ## 6. Views that can be made again
#
# A run that was interrupted and goes on should see the very same views. A global random generator can't give that: its numbers depend on who drew before. So the numbers of an image come from three that everybody knows: **the run's seed, the epoch, and the image's index**. A counter-based generator (Philox) turns them into as many uniforms as one likes.

# %% tags=["equality"]
def uniforms_of(seed, epoch, index, n):
    key = [seed, (epoch << 40) + index]  # two numbers of 64 bits: room for 2^40 images
    return torch.from_numpy(np.random.Generator(np.random.Philox(key=key)).random(n, np.float32))

mine = torch.stack([uniforms_of(4, 3, i, 5) for i in (7, 2)])
torch.testing.assert_close(mine, view_uniforms(seed=4, epoch=3, indices=[7, 2], n=5), rtol=0, atol=0)

def views_of(epoch, indices):
    uniforms = view_uniforms(0, epoch, indices, batch_crop.n_uniforms)
    return batch_crop(pictures.images[indices], uniforms=uniforms)[0]

here = views_of(0, [7, 3])[0]
other_batch, other_epoch = views_of(0, [1, 2, 7])[2], views_of(1, [7])[0]
torch.testing.assert_close(here, other_batch, rtol=0, atol=1e-6)
print(f"image 7, largest difference in another batch: {(here - other_batch).abs().max():.1f}")
print(f"image 7, largest difference in another epoch: {(here - other_epoch).abs().max():.1f}")

# %% [markdown]
# ## 7. Which view goes to whom
#
# From each of its views the student predicts what the teacher says of a global view, but never of the very same one: there would be nothing to predict (section 3.1, equation 3).

# %%
for i in range(2):
    print(f"teacher, global {i + 1}:", " ".join("." if v == i else "x" for v in range(8)))

# %% [markdown]
# **Your turn 5 · easy · 4 minutes · the pairs.** Write `pairs`: all pairs of the loss for `n_views` views, where views 0 and 1 are the global ones. What should come out: a list of (teacher's view, student's view), in any order. For eight views it has 14 pairs.
#
# <details><summary>Hint</summary>
#
# Two loops in one list comprehension, and a condition that leaves two crosses out.
#
# </details>

# %% tags=["stub", "equality"]
def pairs(n_views):
    """[(teacher's view, student's view), ...]"""
    ### BEGIN SOLUTION
    return [(i, v) for i in range(2) for v in range(n_views) if v != i]
    ### END SOLUTION

pairs = checks.pairs(pairs)

# %%
for n_views in (2, 4, 10):
    print(f"{n_views:2d} views: {len(pairs(n_views)):2d} pairs = 2 · ({n_views} - 1)")

# %% [markdown]
# One more rule: **all views of a row come from one image**. Row $b$ of every tensor of views belongs to image $b$.
#
# ## 8. Break it
#
# ### Crops of the wrong scale
#
# The task says: these two views show the same thing. We need a measure of what two boxes have in common.

# %% [markdown]
# **Your turn 6 · medium · 8 minutes · what two boxes share.** Write `shared(a, b)` for two boxes (top, left, height, width): the area that both cover, as a share of the smaller box. What should come out: one number. It is 1 if one box lies inside the other, and 0 if they don't meet.
#
# <details><summary>Hint</summary>
#
# Of the shared rows, the first is the larger of the two tops, and the end is the smaller of the two bottoms. If boxes don't meet, the difference is negative. Two negative numbers have a positive product.
#
# </details>

# %% tags=["stub", "equality"]
def shared(a, b):
    """The area of the overlap / the area of the smaller box."""
    ### BEGIN SOLUTION
    tall = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    wide = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(tall, 0) * max(wide, 0) / min(a[2] * a[3], b[2] * b[3])
    ### END SOLUTION

shared = checks.shared(shared)

# %% [markdown]
# **Equal?** To counting pixels: paint both boxes into a grid, and count where both have paint.

# %% tags=["equality"]
for a, b in zip(crop_boxes(tries, corner, (96, 96), (0.02, 0.4)).int().tolist(),
                crop_boxes(tries, corner.flip(0), (96, 96), (0.02, 0.4)).int().tolist()):
    painted = torch.zeros(2, 96, 96)
    for grid, (top, left, h, w) in zip(painted, (a, b)):
        grid[top : top + h, left : left + w] = 1
    by_pixels = painted.prod(0).sum() / painted.sum((1, 2)).min()
    torch.testing.assert_close(float(shared(a, b)), by_pixels.item(), rtol=0, atol=1e-6)
print("200 pairs of boxes, counted pixel by pixel")

# %% [markdown]
# **Predict, then run.** Global views of scale 0.02 to 0.1 show between a fiftieth and a tenth of the picture. Of a thousand pairs of such views, how many have not one pixel in common?
#
# - **a**: about one in ten
# - **b**: about one in three
# - **c**: more than half

# %%
guess = "?"  # a, b or c

# %%
torch.manual_seed(0)
u = torch.rand(2, 1000, 22)
in_common = {}
for scale in [(0.95, 1.0), (0.4, 1.0), (0.1, 0.4), (0.02, 0.1)]:
    one, two = (crop_boxes(part[:, :20], part[:, 20:], (96, 96), scale).int().tolist() for part in u)
    in_common[scale] = np.array([shared(a, b) for a, b in zip(one, two)])
    print(f"scale {scale}: {in_common[scale].mean():.2f} in common; "
          f"nothing in common {(in_common[scale] == 0).mean():.2f}")
nothing = (in_common[0.02, 0.1] == 0).mean()
settle(guess, {"a": "about one in ten", "b": "about one in three", "c": "more than half"},
       "a" if nothing < 0.2 else "b" if nothing < 0.5 else "c")

# %%
figure, axis = plt.subplots(figsize=(8, 2.8), layout="constrained", dpi=90)
for scale, values in in_common.items():
    axis.plot(np.sort(values), np.linspace(0, 100, len(values)), label=f"scale {scale[0]} to {scale[1]}")
axis.set(xlabel="share of the smaller box that both views show", ylabel="pairs up to there, %")
_ = axis.legend(fontsize=8, loc="upper left", bbox_to_anchor=(0.07, 0.72))

# %% [markdown]
# About half of the green pairs (0.1 to 0.4) share half of the smaller box or less. With the official 0.4 to 1, nearly all pairs share more than half. With 0.02 to 0.1 most share nothing: the teacher then speaks of one place and the student of another. With 0.95 to 1 the two views are nearly one picture, and there is little to learn from agreeing.
#
# Here are views of the bee at scale 0.02 to 0.1, with local ones below 0.03. Would *you* know what it is?

# %% tags=["nbval-ignore-output"]
torch.manual_seed(3)
tiny = MultiCrop(96, 48, n_local=6, global_scale=(0.02, 0.1), local_scale=(0.01, 0.03))
show_views(tiny(pictures[2][0]), *IMAGENET)

# %% [markdown]
# ### No colour changes: a shortcut
#
# If a cheap cue solves the task, a network learns that cue. So we try the cheapest feature there is, the **mean colour** of a view: three numbers. Of 200 images with two views each, find for each first view the second view of the same image. A guess is right 1 time in 200.

# %% [markdown]
# **Your turn 7 · medium · 8 minutes · found by colour.** Write `found_by_colour(a, b)`. Row $i$ of `a` and row $i$ of `b`, both (N, 3, height, width), are views of image $i$. What should come out: one number, the share of rows of `a` whose nearest row of `b`, by mean colour, is row $i$.
#
# <details><summary>Hint</summary>
#
# `a.mean((2, 3))` is (N, 3). `torch.cdist` gives the distances between all rows of two such tables. Compare the `argmin` of each row with `torch.arange(N)`.
#
# </details>

# %% tags=["stub", "equality"]
def found_by_colour(a, b):
    """Views (N, 3, h, w) of N images, twice -> the share whose partner has the nearest colour."""
    ### BEGIN SOLUTION
    distances = torch.cdist(a.mean((2, 3)), b.mean((2, 3)))
    return (distances.argmin(1) == torch.arange(len(a))).float().mean()
    ### END SOLUTION

found_by_colour = checks.found_by_colour(found_by_colour)

# %% [markdown]
# **Predict, then run.** Without any colour change, and with views that share more than half, how often do three numbers find the right one among 200?
#
# - **a**: hardly more often than a guess, below 2 %
# - **b**: about 10 %
# - **c**: more than a quarter of the time

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
crowd = Shapes(200, seed=9).images

def found(**settings):
    """found_by_colour for two global views of each image of the crowd."""
    torch.manual_seed(0)
    return float(found_by_colour(*BatchMultiCrop(48, 24, n_local=0, **settings)(crowd)))

plain = found(**no_colour)
print(f"found: {plain:.0%} without colour changes, {found():.0%} with the whole recipe; a guess {1 / 200:.1%}")
settle(guess, {"a": "hardly more often than a guess", "b": "about 10 %", "c": "more than a quarter"},
       "a" if plain < 0.02 else "b" if plain < 0.25 else "c")

# %% [markdown]
# Three numbers go a long way, unless colours change. The whole recipe nearly closes the shortcut.
#
# ### Views of different images
#
# Now shift the second views by one row, as a shuffle in the wrong place would. Row $i$ then holds views of two images. No error is raised, and every shape is right.

# %% tags=["nbval-ignore-output"]
torch.manual_seed(0)
one, two = BatchMultiCrop(48, 24, n_local=0, **no_colour)(crowd)
print(f"found: {float(found_by_colour(one, two)):.1%}; "
      f"shifted by one row: {float(found_by_colour(one, two.roll(1, 0))):.1%}; a guess: {1 / 200:.1%}")

# %% [markdown]
# A run on such rows has a loss like any other, but nothing in one view helps with the other.

# %% [markdown] tags=["note"]
# **Teacher's note · 25 minutes.** Let everyone write the guess down before the cell runs; a show of hands is enough. Misconception: "more crops of less area are harder, so better". At 0.02 to 0.1 the task can't be solved for most pairs: 71 % share no pixel. Ask the room: *which other cheap cue might two views share?* Good answers: sharpness, the noise of the camera, a border, a watermark.

# %% [markdown]
# ## 9. What a trained teacher sees in crops
#
# Does the network look at the creature, wherever the crop lies? The trained teacher of the first screen and the same network untrained each get two global views of one picture, with the colour changes of that training. To compare the two maps, we lay them back over the picture they were cut from.

# %% [markdown]
# **Your turn 8 · hard · 12 minutes · back to the picture.** Write `put_back(map_, box, flipped, size)`. `map_` has one number for each patch of a view. The view was cut at `box` from a picture of size × size pixels, and then mirrored if `flipped`. What should come out: a tensor (size, size) with the map where the view was cut, enlarged bilinearly, and 0 elsewhere.
#
# <details><summary>Hint</summary>
#
# Undo the steps in reverse order: mirror the map back, stretch it to the box's height and width (`F.interpolate` with `mode="bilinear"` wants (1, 1, h, w)), and write it into zeros.
#
# </details>

# %% tags=["stub", "equality"]
def put_back(map_, box, flipped, size):
    """A map (h, w) over a view -> (size, size) over its picture."""
    ### BEGIN SOLUTION
    top, left, h, w = box
    whole = torch.zeros(size, size)
    if flipped:
        map_ = map_.flip(-1)
    part = F.interpolate(map_[None, None], (h, w), mode="bilinear")
    whole[top : top + h, left : left + w] = part[0, 0]
    return whole
    ### END SOLUTION

put_back = checks.put_back(put_back)

# %% [markdown]
# **Equal?** A smooth grey picture, cropped and put back, has to come out the same.

# %% tags=["equality"]
grey_picture = pictures.images[2].float().mean(0) / 255
smooth = tv.gaussian_blur(grey_picture[None], [25, 25], [6.0, 6.0])
for box, flipped in [((20, 10, 60, 72), False), ((5, 30, 48, 64), True)]:
    view = crop(smooth, box, 48)
    again = put_back((view.flip(-1) if flipped else view)[0], box, flipped, 96)
    covered = put_back(torch.ones(2, 2), box, flipped, 96) > 0
    off = (again - smooth[0])[covered].abs().max().item()
    assert off < 0.02 and int(covered.sum()) == box[2] * box[3]
    print(f"largest difference {off:.2f} over {int(covered.sum())} pixels")

# %% [markdown]
# Two measures for each pair of maps:
#
# - **agreement**: the correlation of the two maps over the pixels that both views show.
# - **preference for the object**: the attention's mean share on the object, divided by the object's mean share of the view. 1 means that the map doesn't care. Only this number uses the objects' outlines; training never saw them.
#
# A number needs its blind baseline. So three maps without a network stand beside: a blob in the middle of each view, *darkness* (one minus the brightness of a patch) and *local contrast* (the standard deviation of its pixels). Of each network's eight maps of attention (its *heads*, another word for which is in section 2 of notebook 02) `choose_head` takes the one that keeps away most from the border. The views have the colour changes of that teacher's training: stronger jitter than in section 5, and little blur.
#
# **Predict, then run.** Which of these agrees best with itself in two crops?
#
# - **a**: the trained teacher
# - **b**: the untrained network
# - **c**: a map without a network

# %%
guess = "?"  # a, b or c

# %%
from dino_lib.measure.baselines import darkness, local_contrast
from dino_lib.measure.masks import blob

shapes = Shapes(600, seed=7)  # 48 pixels; training drew other ones
queries, masks, labels = shapes.images[400:], shapes.masks[400:], torch.as_tensor(shapes.labels)
networks = {"untrained": build_student(PRESETS["demo"]).backbone.eval(), "trained": load_teacher("demo").model}
mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)

preset = PRESETS["demo"]
colours = dict(color_jitter=preset.color_jitter, gray_p=preset.gray_p, blur_p=preset.blur_p, solarize_p=preset.solarize_p)
two_crops = BatchMultiCrop(48, 24, n_local=0, **colours)
numbers = view_uniforms(0, 0, range(200), two_crops.n_uniforms)
two_views = two_crops(queries, uniforms=numbers)  # normalised, as a network wants them
boxes = [crop_boxes(u[:, :20], u[:, 20:22], (48, 48), (0.4, 1.0)).int().tolist() for u in numbers.chunk(2, 1)]
flips = [(u[:, 22] < 0.5).tolist() for u in numbers.chunk(2, 1)]

maps, as_pixels = {}, [((v * std + mean).clamp(0, 1) * 255).to(torch.uint8) for v in two_views]
for name, network in networks.items():
    head = choose_head(cls_attention(network, (queries / 255 - mean) / std))
    maps[name] = [cls_attention(network, v)[:, head] for v in two_views]
maps["blob in the middle"] = [blob((8, 8)).expand(200, 8, 8)] * 2
maps["darkness"] = [darkness(v, (8, 8)) for v in as_pixels]
maps["local contrast"] = [local_contrast(v, (8, 8)) for v in as_pixels]

# %% tags=["nbval-ignore-output"]
def back(name, k, i):
    """Map `name` of view k of picture i, over the picture."""
    return put_back(maps[name][k][i], boxes[k][i], flips[k][i], 48)

inside = [[put_back(torch.ones(1, 1), boxes[k][i], False, 48) > 0 for i in range(200)] for k in range(2)]
agreement, preference = {}, {}
for name in maps:
    both, on_object, cover = [], [], []
    for i in range(200):
        laid, seen = [back(name, k, i) for k in range(2)], inside[0][i] & inside[1][i]
        both.append(np.corrcoef(laid[0][seen], laid[1][seen])[0, 1])
        on_object += [(map_[masks[i]].sum() / map_.sum()).item() for map_ in laid]
        cover += [(masks[i] & inside[k][i]).sum().item() / inside[k][i].sum().item() for k in range(2)]
    agreement[name], preference[name] = np.nanmean(both), np.mean(on_object) / np.mean(cover)
    print(f"{name:18s} agreement {agreement[name]:.2f}   preference for the object {preference[name]:.2f}")
best = max(agreement, key=agreement.get)
settle(guess, {"a": "the trained teacher", "b": "the untrained network", "c": f"without a network: {best}"},
       {"trained": "a", "untrained": "b"}.get(best, "c"))

# %% [markdown]
# Agreement can't tell a trained map from a blind one. Darkness stays where it is when a crop moves, so its map agrees with itself best of all, and even a blob comes close to the teacher's map. Only the second column can tell: the trained teacher gives the object three times its share, the untrained network just its share, and the maps without a network little more. (One trained teacher, seed 0; 200 pictures that it never saw.)
#
# The same in pictures: the two crops, white and yellow, then two maps each, laid back. Black is 0, bright is three times the mean of the crop or more. The untrained maps have a pattern too, but it is too faint to see. The three pictures are those whose crops have least in common, where both crops show half of the object or more.

# %% tags=["nbval-ignore-output"]
from dino_lib.look.pictures import outline
from dino_lib.look.style import CMAP

def shown_of(k, i):
    """How much of the object crop k shows."""
    return (masks[i] & inside[k][i]).sum() / masks[i].sum()

both_show = [i for i in range(200) if min(shown_of(0, i), shown_of(1, i)) > 0.5]
picked = sorted(both_show, key=lambda i: float(shared(boxes[0][i], boxes[1][i])))[:3]
print("shared by the two crops:", [round(float(shared(boxes[0][i], boxes[1][i])), 2) for i in picked])
figure, axes = plt.subplots(3, 7, figsize=(10, 4.6), layout="constrained", dpi=100)
for row, i in zip(axes, picked):
    draw_boxes(row[0], queries[i], [boxes[0][i], boxes[1][i]], "two crops" if i == picked[0] else "")
    outline(row[0], masks[i], 1.5)
    shown = [(name, k) for name in [*networks, "darkness"] for k in range(2)]
    for axis, (name, k) in zip(row[1:], shown):
        map_ = back(name, k, i)
        axis.imshow(map_ / map_[inside[k][i]].mean(), cmap=CMAP, vmin=0, vmax=3)
        outline(axis, masks[i], 1.5)
        top, left, h, w = boxes[k][i]
        axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), w, h, fill=False, color=["white", "yellow"][k], linestyle=":"))
        axis.set_title(f"{name}, crop {k + 1}" if i == picked[0] else "", fontsize=8)
        axis.set_axis_off()

# %% [markdown]
# ### Neighbours of views
#
# If a feature says what is in a picture, a view should lie near *other* pictures of its kind. We take the five nearest of 400 whole pictures, by the cosine of the features, and count how many belong to the view's class: 10 % by chance. The blind baseline is a *colour histogram*: how often each of 512 colours occurs.
#
# **Predict, then run.** For whole pictures, 82 % of the trained teacher's neighbours have the right class. How many are left for global views, which show 40 % to all of a picture in changed colours?
#
# - **a**: about as many, above 65 %
# - **b**: about half of the neighbours
# - **c**: no more than the colour histogram has

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
from dino_lib.measure.knn import color_histogram, nearest

torch.manual_seed(0)
_, global_view, local_view = BatchMultiCrop(48, 24, n_local=1, local_scale=(0.15, 0.5), **colours)(queries)
kinds = {"whole": (queries / 255 - mean) / std}
for kind, setting in {"crop alone": no_colour | dict(mean=preset.mean, std=preset.std),
                      "colours alone": colours | dict(global_scale=(1, 1))}.items():
    torch.manual_seed(0)
    kinds[kind] = BatchMultiCrop(48, 24, n_local=0, **setting)(queries)[1]
kinds |= {"global view": global_view, "local view": local_view}
gallery = (shapes.images[:400] / 255 - mean) / std

def histogram(x):
    return color_histogram(((x * std + mean).clamp(0, 1) * 255).round().to(torch.uint8))

features = {name: (lambda x, network=network: extract_features(network, x)) for name, network in networks.items()}
features["colour histogram"] = histogram
neighbours, scores = {}, {}
for name, feature in features.items():
    known = feature(gallery)
    neighbours[name] = {kind: nearest(known, feature(x), 5)[1] for kind, x in kinds.items()}
    scores[name] = [(labels[:400][found_rows] == labels[400:, None]).float().mean().item()
                    for found_rows in neighbours[name].values()]
    print(f"{name:17s}", "  ".join(f"{kind} {score:.0%}" for kind, score in zip(kinds, scores[name])))
left, by_colour = (scores[name][list(kinds).index("global view")] for name in ("trained", "colour histogram"))
settle(guess, {"a": "above 65 %", "b": "about half", "c": "no more than the colour histogram"},
       "a" if left > 0.65 else "b" if left > by_colour + 0.05 else "c")

# %%
figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained", dpi=90)
for name, values in scores.items():
    axis.plot(list(kinds), [100 * v for v in values], marker="o", label=name)
axis.axhline(10, color="0.6", linestyle=":", label="chance")
axis.set(ylabel="same class among 5 nearest, %", ylim=(0, 100))
_ = axis.legend(fontsize=8)

# %%
from dino_lib.look.features import neighbour_sheet

asked = [(name, i) for i in range(3) for name in networks]  # the first three
as_seen = ((global_view * std + mean).clamp(0, 1) * 255).to(torch.uint8)
rows = [neighbours[name]["global view"][i] for name, i in asked]
neighbour_sheet(torch.stack([as_seen[i] for _, i in asked]),
                torch.stack([shapes.images[r] for r in rows]),
                torch.stack([labels[r] == labels[400 + i] for r, (_, i) in zip(rows, asked)]),
                titles=[name for name, _ in asked])

# %% [markdown]
# For the trained teacher, crops and colours each cost something. The untrained network and the histogram lose almost only by the colours: they go by tint. The trained teacher stays above the colour histogram throughout; the untrained network stays below it. (One trained teacher, one untrained network, 200 queries, and colours drawn anew for each column. So a few points between two columns mean nothing: that the untrained network and the histogram have more with crops and colours than with colours alone is no sign of anything.)
#
# In the sheet, the first three queries, each a global view; its five nearest pictures are framed by their class. The untrained network finds pictures of a like tint. The trained one finds the creature in the first and the third example; in the second it goes by the tint as well, with other patterns.

# %% [markdown] tags=["note"]
# **Teacher's note · 20 minutes.** Put the table of agreement on the screen and ask: *is the map of darkness a better network?* It agrees best and knows nothing. One number can always be won by something blind, so look for the pair of numbers that can't. At the pictures: the untrained maps look like one flat colour inside the crop. That is no fault of the drawing: untrained attention is nearly even, and its pattern is faint. Misconception: "attention is a segmentation". It's the weight of patches in the feature.

# %% [markdown]
# ## Exercise: change a setting
#
# **Exercise 9 · easy · 8 minutes · how much grey.** `gray_p` is the share of views that lose all colour. The cell below plays the game of section 8 with views that have no other colour change. Run it; then change `SCALE` to (0.1, 0.4) and to (0.95, 1.0), and run it again. What should come out: a curve for `gray_p` from 0 to 1, and the number at the official 0.2.
#
# **Predict, then run.** With half of the views grey, how often does the mean colour still find the right image among 200?
#
# - **a**: about as often as without grey
# - **b**: between a quarter and two thirds as often
# - **c**: no more often than a guess

# %%
guess = "?"  # a, b or c

# %% tags=["nbval-ignore-output"]
SCALE = (0.4, 1.0)

gray_ps = [0, 0.2, 0.5, 0.8, 1]
curve = [found(**no_colour | {"gray_p": p, "global_scale": SCALE}) for p in gray_ps]
print(f"gray_p 0.2: {curve[1]:.0%} found; gray_p 0: {curve[0]:.0%}; whole recipe: {found(global_scale=SCALE):.0%}")
left = curve[2] / curve[0]
settle(guess, {"a": "about as often", "b": "between a quarter and two thirds", "c": "no more than a guess"},
       "a" if left > 0.67 else "b" if left > 0.25 else "c")

figure, axis = plt.subplots(figsize=(7, 2.8), layout="constrained", dpi=90)
axis.plot(gray_ps, [100 * value for value in curve], marker="o", label="grey alone")
axis.axhline(100 * found(global_scale=SCALE), color="C1", linestyle="--", label="whole recipe")
axis.axhline(0.5, color="0.6", linestyle=":", label="a guess")
axis.set(xlabel="gray_p", ylabel="found by mean colour, %")
_ = axis.legend(fontsize=8)

# %% [markdown]
# A pair is lost when one of its views is grey and the other is not, and mostly when both are: brightness alone tells less than colour. At the official 0.2, grey alone leaves most of the shortcut open; the other colour changes do the rest.
#
# At scale 0.95 to 1 almost all are found without grey, and even of all-grey views nearly one in four, by the brightness. At 0.1 to 0.4 the views show different places, and hardly one in fifteen is found even without grey: the crop alone closes most of the shortcut.
#
# ## Summary
#
# - A view is a random crop, resized, mirrored and recoloured. What views don't share, the feature learns to ignore.
# - Two global views show most of an image, local ones a part, and are cheap.
# - The teacher sees the global views, the student all; $V$ views make $2\,(V - 1)$ pairs.
# - Random numbers keyed by (seed, epoch, index) give every image the same views on every machine.
# - Wrong scales, missing colour changes or mixed-up rows raise no error.
# - A number needs its blind baseline: a map of darkness agrees with itself better than a trained teacher.
#
# Next: [02 · Backbone and head](02_head.ipynb), which turns views into features.
