"""What the patches' tokens differ in most: principal components, over many pictures."""

import torch
from sklearn.decomposition import PCA
from torch import Tensor

from dino_lib.measure.masks import away_from_border


def principal_components(tokens: Tensor, k: int = 1) -> Tensor:
    """The first k principal components of patches' tokens, over all pictures: (N, k, h, w).

    tokens (N, h, w, D), as `patch_features` gives. Figure 1 of DINOv2 (Oquab et al. 2023) shows
    three as colours and takes the first, above a threshold, for the object. A component has no
    sign of its own: here it is such that the border (see `away_from_border`) is lower in the mean,
    since ground reaches it more often than objects do. ValueError on other shapes, on k that is
    not from 1 to D, and on fewer patches than k.
    """
    if tokens.ndim != 4:
        raise ValueError(f"tokens {tuple(tokens.shape)}: expected (N, h, w, D)")
    n, height, width, dim = tokens.shape
    most = min(dim, n * height * width)
    if not 1 <= k <= most:
        raise ValueError(f"k={k}: expected 1 to {most}")
    rows = tokens.detach().double().cpu().flatten(0, 2).numpy()
    found = torch.from_numpy(PCA(k, svd_solver="full").fit_transform(rows))
    maps = found.float().view(n, height, width, k).movedim(-1, 1)
    middle = away_from_border((height, width))
    if middle.any() and not middle.all():
        ahead = maps[..., middle].mean((0, 2)) >= maps[..., ~middle].mean((0, 2))  # (k,)
        maps = torch.where(ahead[:, None, None], maps, -maps)
    return maps
