"""The pieces of notebook 01, finished: the views of one image in plain steps, and what is measured
of them. `views_of_batch` makes a batch of views with the reader's own pieces.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from dino_lib.augment import BLUR_SIGMA, BLUR_TAPS, JITTER_P, SOLARIZE_THRESHOLD, Recipe, View
from dino_lib.data.batch_views import CROP_TRIES, crop_boxes

GREY = (0.2989, 0.587, 0.114)  # what red, green and blue weigh in a grey


def crop_size(height: int, width: int, share: float, ratio: float) -> tuple[int, int]:
    """(h, w) in whole pixels of a box with this share of the area and this width / height."""
    area = share * height * width
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


def crop(x: Tensor, box: Sequence[int], size: int) -> Tensor:
    """x (C, H, W), uint8 or float in [0, 1], box (top, left, h, w) -> (C, size, size), as x is."""
    top, left, h, w = box
    part = x[None, :, top : top + h, left : left + w]
    view = F.interpolate(part, (size, size), mode="bicubic", antialias=True)[0]
    return view.clamp(0, 1) if x.is_floating_point() else view


def saturation(x: Tensor, factor: float) -> Tensor:
    """x (3, H, W) in [0, 1]: towards its own grey (factor < 1) or away from it (factor > 1)."""
    grey = (x * torch.tensor(GREY)[:, None, None]).sum(0)
    return (factor * x + (1 - factor) * grey).clamp(0, 1)


def views(image: Tensor, first: Callable, second: Callable, local: Callable,
          n_local: int) -> list[Tensor]:
    """Two global views and n_local local ones, each made anew from the whole image."""
    return [first(image), second(image)] + [local(image) for _ in range(n_local)]


def pairs(n_views: int) -> list[tuple[int, int]]:
    """(teacher's view, student's view) of each term of the loss; views 0 and 1 are global."""
    return [(i, v) for i in range(2) for v in range(n_views) if v != i]


def shared(a: Sequence[int], b: Sequence[int]) -> float:
    """How much of the smaller of two boxes (top, left, h, w) the other one covers: 0 to 1."""
    tall = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    wide = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    return max(tall, 0) * max(wide, 0) / min(a[2] * a[3], b[2] * b[3])


def found_by_colour(a: Tensor, b: Tensor) -> Tensor:
    """Views (N, 3, h, w) of N images, twice: the share of a's rows whose nearest row of b, by mean
    colour, is their own.
    """
    nearest = torch.cdist(a.mean((2, 3)), b.mean((2, 3))).argmin(1)
    return (nearest == torch.arange(len(a))).float().mean()


def put_back(map_: Tensor, box: Sequence[int], flipped: bool, size: int) -> Tensor:
    """A map (h', w') over a view -> (size, size) over the image, 0 where the view does not reach.

    box: the view's (top, left, h, w); flipped: whether it was mirrored after the crop.
    """
    top, left, h, w = box
    map_ = map_.flip(-1) if flipped else map_
    whole = torch.zeros(size, size)
    part = F.interpolate(map_[None, None], (h, w), mode="bilinear")[0, 0]
    whole[top : top + h, left : left + w] = part
    return whole


def views_of_batch(images: Tensor, recipe: Recipe, *, crop: Callable = crop,
                   saturation: Callable = saturation, views: Callable = views) -> list[Tensor]:
    """uint8 (B, 3, H, W) -> list of normalised float32 (B, 3, h, w), globals first.

    The crop, the saturation and the list of views may be the reader's; the other steps are
    torchvision's. One image after the other; all that is random comes from torch's generator.
    """
    kinds = [lambda x, view=view: _one_view(x, view, recipe, crop, saturation)
             for view in recipe.views]
    local = kinds[2] if recipe.n_local else kinds[0]
    rows = [views(image, kinds[0], kinds[1], local, recipe.n_local) for image in images]
    return [torch.stack(column) for column in zip(*rows, strict=True)]


def _one_view(image: Tensor, view: View, recipe: Recipe, crop: Callable,
              saturation: Callable) -> Tensor:
    """One random view of a uint8 image (3, H, W): normalised float32 (3, size, size)."""
    tries, corner = torch.rand(1, 2 * CROP_TRIES), torch.rand(1, 2)
    box = crop_boxes(tries, corner, tuple(image.shape[1:]), view.scale)[0].int().tolist()
    x = crop(image / 255, box, view.size)
    x = x.flip(-1) if torch.rand(()) < 0.5 else x
    if torch.rand(()) < JITTER_P:
        adjust = (tv.adjust_brightness, tv.adjust_contrast, saturation, tv.adjust_hue)
        for k in torch.randperm(4).tolist():
            strength = recipe.color_jitter[k]
            factor = torch.empty(()).uniform_(-strength, strength).item()
            x = adjust[k](x, factor if k == 3 else max(0.0, 1 + factor))
    if torch.rand(()) < recipe.gray_p:
        x = saturation(x, 0.0)
    if torch.rand(()) < view.blur_p:
        sigma = torch.empty(()).uniform_(*BLUR_SIGMA).item()
        x = tv.gaussian_blur(x, [BLUR_TAPS, BLUR_TAPS], [sigma, sigma])
    if torch.rand(()) < view.solarize_p:
        x = tv.solarize(x, SOLARIZE_THRESHOLD / 255)
    return tv.normalize(x, list(recipe.mean), list(recipe.std))
