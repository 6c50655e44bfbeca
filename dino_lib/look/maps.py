"""Figures of attention maps over their pictures."""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from torch import Tensor

from dino_lib.look.pictures import outline, to_image
from dino_lib.look.style import CMAP, PALETTE, WIDTH, bare, grid, label_row

VIVID = 3  # times a picture's mean attention at least: the brightest colour


def attention_sheet(images: Sequence[Tensor], rows: dict[str, Sequence[Tensor]], *,
                    masks: Tensor | None = None, titles: Sequence[str] | None = None) -> Figure:
    """Images above, below them a row of maps for each entry of `rows`.

    images: uint8 (N, C, H, W), or a list of (C, H, W) of any sizes, such as one image
    at several resolutions. rows: label -> N maps (h, w), drawn over a grey picture, a
    row on one scale (see `brightness`), or N colours (h, w, 3) in [0, 1], drawn as they
    are. masks: bool (N, H, W), outlined everywhere. titles: one a column.
    """
    n = len(images)
    figure, axes = grid(1 + len(rows), n, cell=1.15 if n > 4 else 2.3)
    pictures = [to_image(image) for image in images]
    for axis, picture in zip(axes[0], pictures, strict=True):
        axis.imshow(picture, interpolation="nearest", extent=_extent(picture))
    for line, maps in zip(axes[1:], rows.values(), strict=True):
        if maps[0].ndim == 2:
            maps, scale = brightness(maps)
        for axis, picture, values in zip(line, pictures, maps, strict=True):
            if values.ndim == 2:
                _overlay(axis, picture, values, scale)
            else:
                axis.imshow(values.cpu().numpy(), interpolation="nearest", extent=_extent(picture))
    for axis, label in zip(axes[:, 0], ["image", *rows], strict=True):
        label_row(axis, label)
    for i in range(n):
        if titles:
            axes[0, i].set_title(titles[i], fontsize=8)
        for axis in axes[:, i]:
            bare(axis)
            if masks is not None:
                outline(axis, masks[i], corner=0)
    return figure


def heads_of(image: Tensor, maps: Tensor) -> Figure:
    """One picture's heads, large: all over it in colours, and each alone.

    In colours, as in figure 3 of the paper, a place has that of the head which looks at
    it most, as strong as it looks; where none does it is dark. image uint8 (C, H, W);
    maps (heads, h, w).
    """
    picture = to_image(image)
    shares = [brightness([values]) for values in maps]
    tall = picture.shape[0] / picture.shape[1]
    columns = 4
    lines = math.ceil(len(maps) / columns)
    cell = min(WIDTH / columns, 3.2 / tall)
    height = max(0.3, cell * tall) * (2 + lines) + 0.25 * (1 + lines)  # and the titles
    figure = Figure(figsize=(columns * cell, height), layout="constrained", dpi=130)
    places = figure.add_gridspec(2 + lines, columns)
    whole = figure.add_subplot(places[:2, :2])
    whole.imshow(picture)
    whole.set_title("the picture", fontsize=10)
    together = figure.add_subplot(places[:2, 2:])
    together.imshow(_in_colours(picture, shares))
    together.set_title("its heads in colours", fontsize=10)
    for head, ([values], scale) in enumerate(shares):
        axis = figure.add_subplot(places[2 + head // columns, head % columns])
        _overlay(axis, picture, values, scale)
        axis.set_title(f"■ head {head}", fontsize=10, color=PALETTE[head % len(PALETTE)])
    for axis in figure.axes:
        bare(axis)
    return figure


def brightness(maps: Sequence[Tensor]) -> tuple[list[Tensor], tuple[float, float]]:
    """One scale for several maps (h, w): the values, and (darkest, brightest).

    Attention, which sums to at most 1, is drawn as multiples of its picture's mean.
    Dark is 0, and bright is the 98th percentile of all (one bright patch would darken
    the others), or 3 times the mean where that is more: a map that is all but even
    looks even. Other maps, cosines or masks, are drawn as they are, from their least
    value to that percentile.
    """
    maps = [values.detach().float().cpu() for values in maps]
    if all(values.min() >= 0 and values.sum() <= 1.01 for values in maps):
        maps = [values / values.mean().clamp(min=1e-12) for values in maps]
        low, least_high = 0.0, VIVID
    else:
        low = min(values.min().item() for values in maps)
        least_high = low + 1e-12
    high = torch.cat([values.flatten() for values in maps]).quantile(0.98).item()
    return maps, (low, max(high, least_high))


def _extent(picture: np.ndarray) -> tuple[int, int, int, int]:
    return 0, picture.shape[1], picture.shape[0], 0


def _overlay(axis: Axes, picture: np.ndarray, values: Tensor, scale: tuple[float, float]) -> None:
    """A map (h, w) over a grey picture, which shows through most where it is low."""
    low, high = scale
    strength = ((values - low) / (high - low)).clamp(0, 1).numpy()
    gray = 0.6 * picture.mean(2, keepdims=True).repeat(3, 2)
    axis.imshow(gray, extent=_extent(picture))
    axis.imshow(values.numpy(), cmap=CMAP, vmin=low, vmax=high, extent=_extent(picture),
                interpolation="bilinear", alpha=0.15 + 0.6 * strength)


def _in_colours(picture: np.ndarray, shares: list) -> np.ndarray:
    """The darkened picture under the colours of its heads: (H, W, 3)."""
    values = torch.stack([maps[0] / high for maps, (_, high) in shares])  # (heads, h, w)
    values = F.interpolate(values[None], picture.shape[:2], mode="bilinear")[0]
    strength, head = values.max(0)
    # below a third of the brightest all heads look at everything a little
    strength = (1.5 * strength - 0.5).clamp(0, 1)[..., None].numpy()  # (H, W, 1)
    palette = to_rgba_array(PALETTE)[:, :3]
    gray = picture.mean(2, keepdims=True)
    lit = palette[head.numpy() % len(PALETTE)] * (0.55 + 0.45 * gray)
    return 0.4 * gray * (1 - strength) + lit * strength
