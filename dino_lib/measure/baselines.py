"""Maps that no network made. What a head is worth shows only beside them.

From images uint8 (N, C, H, W), values in [0, 1], one map for each picture: (N, *grid), as
`F.adaptive_avg_pool2d` lays the cells. Maps that are the same for every picture
(`center_blobs`) and the measures are in masks.py.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def local_contrast(images: Tensor, grid: Sequence[int]) -> Tensor:
    """The deviation of the pixels in each cell, mean over the channels: (N, *grid).

    Fur against sky, a pattern on a plain ground: objects often have more of it.
    """
    x = _values(images)
    mean = _cells(x, grid)
    variance = _cells(x.square(), grid) - mean.square()  # (N, C, *grid)
    return variance.clamp(min=0).mean(1).sqrt()


def colour_distance(images: Tensor, grid: Sequence[int]) -> Tensor:
    """How far a cell's mean colour lies from that of the whole picture: (N, *grid)."""
    cells = _cells(_values(images), grid)
    whole = cells.mean((2, 3), keepdim=True)
    return (cells - whole).square().mean(1).sqrt()


def darkness(images: Tensor, grid: Sequence[int]) -> Tensor:
    """One less a cell's mean value: (N, *grid)."""
    return 1 - _cells(_values(images), grid).mean(1)


def red_less_green(images: Tensor, grid: Sequence[int]) -> Tensor:
    """A cell's red less its green, from 0 (green) to 1 (red): (N, *grid). Not grass.

    ValueError on images without colour.
    """
    if images.shape[1] != 3:
        raise ValueError(f"images {tuple(images.shape)} have no red and green")
    cells = _cells(_values(images), grid)
    return (1 + cells[:, 0] - cells[:, 1]) / 2


BASELINES = {
    "local contrast": local_contrast,
    "distance from the mean colour": colour_distance,
    "darkness": darkness,
    "red less green": red_less_green,
}


def _values(images):
    if images.dtype != torch.uint8 or images.ndim != 4:
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images are {kind}; expected uint8 (N, C, H, W)")
    return images.float() / 255


def _cells(x, grid):
    return F.adaptive_avg_pool2d(x, tuple(grid))
