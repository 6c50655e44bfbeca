"""What the patches hold: their features, as colours, and what resembles what."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.backbone import backbone_of
from dino_lib.measure.features import eval_mode, to_model


@torch.no_grad()
def patch_features(model: Any, images: Tensor) -> Tensor:
    """The last layer's features of each patch of (B, C, H, W): float32 (B, h, w, D).

    They are those after the final norm; `attention.queries_keys_values` has the last block's.
    """
    backbone = backbone_of(model)
    with eval_mode(backbone):
        return backbone.patch_tokens(to_model(backbone, images)).float()


def patch_pca(tokens: Tensor, foreground: Tensor | None = None) -> Tensor:
    """Three principal components of all patches, as colours (B, h, w, 3) in [0, 1].

    tokens (B, h, w, D). Each component runs from 0 at its 1st percentile to 1 at its
    99th; its sign makes the direction's largest entry positive. With `foreground`
    (B, h, w) bool, components and percentiles come from those patches alone and the
    others are 0 (black): `mass_mask(cls_attention(model, images).mean(1))` takes what the
    CLS token attends to. (The DINOv2 paper thresholds the first component instead; which
    of its sides is the object has to be seen by eye.)
    """
    if foreground is None:
        foreground = torch.ones(tokens.shape[:3], dtype=torch.bool)
    chosen = foreground.cpu()
    x = tokens.detach().cpu().double()[chosen]
    x = x - x.mean(0)  # (n, D)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)  # largest first
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scores = x @ (directions * largest.sign())  # (n, 3)
    low, high = scores.quantile(torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)
    scaled = (scores - low) / (high - low).clamp(min=1e-12)
    colours = torch.zeros(*chosen.shape, 3)
    colours[chosen] = scaled.clamp(0, 1).float()
    return colours.to(tokens.device)


def patch_similarity(tokens: Tensor, image: int, row: int, col: int) -> Tensor:
    """Cosine of one patch with every patch of every image: (B, h, w, D) -> (B, h, w).

    Raises ValueError if there is no patch (row, col) in image number `image`.
    """
    place = (image, row, col)
    if not all(0 <= i < n for i, n in zip(place, tokens.shape[:3], strict=True)):
        shape = tuple(tokens.shape[:3])
        raise ValueError(f"image {image}, patch ({row}, {col}) lies outside {shape}")
    return F.cosine_similarity(tokens, tokens[place], dim=-1)


def mutual_matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of a (h, w, D) and b (h', w', D) that are each other's best match.

    (Places in a int64 (n, 2), places in b (n, 2), cosine (n,)), most similar first; n is
    at least 1 (the most similar pair).
    """
    rows = F.normalize(a.flatten(0, 1).float(), dim=-1)
    cosines = rows @ F.normalize(b.flatten(0, 1).float(), dim=-1).T  # (h w, h' w')
    cosine, there = cosines.max(1)
    back = cosines.argmax(0)[there]
    mutual = (back == torch.arange(len(there), device=there.device)).nonzero()[:, 0]
    mutual = mutual[cosine[mutual].argsort(descending=True, stable=True)]
    return _places(mutual, a), _places(there[mutual], b), cosine[mutual]


def _places(numbers, grid):
    width = grid.shape[1]
    return torch.stack([numbers // width, numbers % width], 1)
