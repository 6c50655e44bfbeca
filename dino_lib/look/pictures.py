"""Figures of pictures as they are: the views of one image, a sheet of images."""

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from dino_lib.look.style import bare, grid, new_figure


def to_image(x: Tensor, mean: Sequence[float] | None = None,
             std: Sequence[float] | None = None) -> np.ndarray:
    """A tensor (C, H, W), C 1 or 3, as imshow wants it: (H, W, 3) in [0, 1].

    uint8, or float: as it is, or with `mean` and `std` normalised by them.
    """
    x = x.float() / 255 if x.dtype == torch.uint8 else x.detach().float().cpu()
    if mean is not None:
        x = x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    return x.clamp(0, 1).permute(1, 2, 0).expand(-1, -1, 3).numpy()


def outline(axis: Axes, mask: Tensor, width: float = 1.0, corner: float = -0.5) -> None:
    """The outline of a bool mask (H, W) over a picture of that size, if it has one.

    corner: where the picture's upper left corner lies, -0.5 for imshow without an extent.
    """
    if mask.any() and not mask.all():
        rows, cols = (corner + 0.5 + np.arange(side) for side in mask.shape)
        axis.contour(cols, rows, mask.cpu().numpy(), [0.5], colors="white", linewidths=width)


def show_views(views: Sequence[Tensor], mean: Sequence[float], std: Sequence[float],
               titles: Sequence[str] | None = None) -> Figure:
    """The views of one image side by side, each at its own size: normalised (C, h, w)."""
    sizes = [view.shape[-1] for view in views]
    if titles is None:
        kinds = ["global", "global"] + ["local"] * len(views)
        titles = [f"{kind} {size} px" for kind, size in zip(kinds, sizes, strict=False)]
    figure = new_figure(10, 10 * max(sizes) / sum(sizes) + 0.35)
    axes = figure.subplots(1, len(views), squeeze=False, width_ratios=sizes)[0]
    for axis, view, title in zip(axes, views, titles, strict=True):
        axis.imshow(to_image(view, mean, std), interpolation="nearest")
        axis.set_title(title, fontsize=8)
        bare(axis)
    return figure


def show_images(images: Tensor, *, masks: Tensor | None = None,
                titles: Sequence[str] | None = None, columns: int = 10) -> Figure:
    """A sheet of uint8 images (N, C, H, W); outlines of bool masks (N, H, W) if given."""
    columns = min(columns, len(images))
    figure, axes = grid(-(-len(images) // columns), columns)
    for axis in axes.flat:
        bare(axis)
    for i, axis in enumerate(axes.flat[:len(images)]):
        axis.imshow(to_image(images[i]), interpolation="nearest")
        if masks is not None:
            outline(axis, masks[i])
        if titles:
            axis.set_title(titles[i], fontsize=8)
    return figure
