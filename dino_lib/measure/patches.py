"""What the patches hold: their features, as colours, and what resembles what."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.backbone import backbone_of
from dino_lib.measure.attention import queries_keys_values
from dino_lib.measure.features import eval_mode, to_model

KINDS = ("queries", "keys", "values")


@torch.no_grad()
def patch_features(model: Any, images: Tensor, *, of: str = "tokens") -> Tensor:
    """The last layer's features of each patch of (B, C, H, W): float32 (B, h, w, D).

    of: "tokens", after the final norm; or "queries", "keys", "values" of the last block,
    its heads side by side (TypeError where `queries_keys_values` can't read them).
    """
    if of not in ("tokens", *KINDS):
        raise ValueError(f"of={of!r} must be one of {('tokens', *KINDS)}")
    backbone = backbone_of(model)
    if of == "tokens":
        with eval_mode(backbone):
            return backbone.patch_tokens(to_model(backbone, images)).float()
    part = queries_keys_values(backbone, images)[KINDS.index(of)]  # (B, heads, T, d)
    patches = part[:, :, backbone.model.num_prefix_tokens :].transpose(1, 2).flatten(2)
    return patches.unflatten(1, backbone.grid(images.shape[-2:]))


def patch_pca(tokens: Tensor, foreground: Tensor | None = None) -> Tensor:
    """Three principal components of all patches, as colours (B, h, w, 3) in [0, 1].

    tokens (B, h, w, D). Each component runs from 0 at its 1st percentile to 1 at its
    99th; its sign makes the direction's largest entry positive. With `foreground`
    (B, h, w) bool, components and percentiles come from those patches alone and the
    others are 0 (black): `mass_mask(cls_attention(model, images).mean(1))` takes what the
    CLS token attends to. (The DINOv2 paper thresholds the first component instead; which
    of its sides is the object has to be seen by eye.) ValueError on D < 3 or fewer than 4
    patches.
    """
    if foreground is None:
        foreground = torch.ones(tokens.shape[:3], dtype=torch.bool)
    chosen = foreground.cpu()
    fits = tokens.ndim == 4 and chosen.shape == tokens.shape[:3]
    if not fits or tokens.shape[-1] < 3 or chosen.sum() < 4:
        raise ValueError(
            f"tokens {tuple(tokens.shape)} with {int(chosen.sum())} foreground patches of "
            f"{tuple(chosen.shape)}; expected (B, h, w, D >= 3) and at least 4 patches"
        )
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


def best_matches(
    a: Tensor, b: Tensor, places: Tensor | Sequence[tuple[int, int]]
) -> tuple[Tensor, Tensor]:
    """For each of `places` (row, col) in a (h, w, D), the most similar patch of b.

    (Its place in b (h', w', D), int64 (n, 2); cosine (n,)). ValueError on places outside
    of a and on widths that differ.
    """
    rows, cols = torch.as_tensor(places).view(-1, 2).to(a.device).unbind(1)
    height, width, _ = a.shape
    if not ((rows >= 0) & (rows < height) & (cols >= 0) & (cols < width)).all():
        raise ValueError(f"places reach outside the grid of {height} x {width} patches")
    cosine, found = _cosines(a[rows, cols], b).max(1)
    return _places(found, b), cosine


def mutual_matches(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Patches of a (h, w, D) and b (h', w', D) that are each other's best match.

    (Places in a int64 (n, 2), places in b (n, 2), cosine (n,)), most similar first; n is
    at least 1 (the most similar pair).
    """
    cosines = _cosines(a.flatten(0, 1), b)  # (h w, h' w')
    cosine, there = cosines.max(1)
    back = cosines.argmax(0)[there]
    mutual = (back == torch.arange(len(there), device=there.device)).nonzero()[:, 0]
    mutual = mutual[cosine[mutual].argsort(descending=True, stable=True)]
    return _places(mutual, a), _places(there[mutual], b), cosine[mutual]


def _cosines(rows, b):
    if rows.shape[-1] != b.shape[-1]:
        widths = f"{rows.shape[-1]} and {b.shape[-1]} dimensions"
        raise ValueError(f"features of {widths} are not of one model")
    rows = F.normalize(rows.float(), dim=-1)
    return rows @ F.normalize(b.flatten(0, 1).float(), dim=-1).T


def _places(numbers, grid):
    width = grid.shape[1]
    return torch.stack([numbers // width, numbers % width], 1)
