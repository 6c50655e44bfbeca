"""What the patches hold: their features as colours, what resembles what, and their masks against the object's own."""

import torch
import torch.nn.functional as F

from dino_lib.backbone import backbone_of
from dino_lib.measure.attention import mass_mask, on_device, queries_keys_values, upsample
from dino_lib.measure.evaluate import eval_mode, jaccard_by_head


@torch.no_grad()
def patch_features(model, images, *, of="tokens"):
    """The last layer's features of each patch: normalised images (B, 3, H, W) -> float32 (B, h, w, D).

    of: "tokens", after the final norm; or "queries", "keys", "values" of the last block, its heads side by side.
    Raises ValueError on another word, and what `queries_keys_values` raises where there is no attention.
    """
    kinds = ("queries", "keys", "values")
    if of not in ("tokens", *kinds):
        raise ValueError(f'of={of!r} must be one of "tokens", "queries", "keys", "values"')
    backbone = backbone_of(model)
    with eval_mode(backbone):
        tokens = backbone.patch_tokens(on_device(backbone, images)).float()
    if of == "tokens":
        return tokens
    grid = tokens.shape[1:3]
    parts = queries_keys_values(model, images)[kinds.index(of)]  # (B, heads, T, d)
    if parts.shape[2] == 1:
        raise TypeError(f"{type(backbone.model).__name__} has class attention: only the CLS token has queries")
    return parts[:, :, -grid[0] * grid[1] :].transpose(1, 2).flatten(2).unflatten(1, grid)


def patch_pca(tokens, foreground=None):
    """First three principal components of all patches together, as colours: (B, h, w, D) -> (B, h, w, 3) in [0, 1].

    Each component runs from its 1st to its 99th percentile; its sign is fixed so that the direction's largest entry
    is positive. With `foreground` (B, h, w) bool, components and percentiles come from those patches alone and the
    others are 0 (black): `mass_mask(cls_attention(model, images).mean(1))` takes what the CLS token attends to. (The
    DINOv2 paper thresholds the first component instead; which of its sides is the object has to be seen by eye.)
    Raises ValueError on D < 3 or fewer than 4 patches.
    """
    chosen = (torch.ones(tokens.shape[:3], dtype=torch.bool) if foreground is None else foreground).cpu()
    if tokens.ndim != 4 or tokens.shape[-1] < 3 or chosen.shape != tokens.shape[:3] or chosen.sum() < 4:
        raise ValueError(f"tokens {tuple(tokens.shape)} with {int(chosen.sum())} foreground patches of "
                         f"{tuple(chosen.shape)}; expected (B, h, w, D >= 3) and at least 4 patches of (B, h, w)")
    x = tokens.detach().cpu().double()[chosen]
    x = x - x.mean(0)  # (n, D)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors[:, -3:].flip(1)  # (D, 3), largest variance first
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    scores = x @ (directions * largest.sign())  # (n, 3)
    low, high = scores.quantile(torch.tensor([0.01, 0.99], dtype=scores.dtype), dim=0)
    colours = torch.zeros(*chosen.shape, 3)
    colours[chosen] = ((scores - low) / (high - low).clamp(min=1e-12)).clamp(0, 1).float()
    return colours.to(tokens.device)


def patch_similarity(tokens, image, row, col):
    """Cosine of one patch with every patch of every image: (B, h, w, D) -> (B, h, w) in [-1, 1].

    Raises ValueError if there is no patch (row, col) in image number `image`.
    """
    if not all(0 <= i < n for i, n in zip((image, row, col), tokens.shape[:3], strict=True)):
        raise ValueError(f"image {image}, patch ({row}, {col}) lies outside {tuple(tokens.shape[:3])}")
    return F.cosine_similarity(tokens, tokens[image, row, col], dim=-1)


def best_matches(a, b, places):
    """For each of `places`, patches (row, col) of a (h, w, D), the patch of b (h', w', D) with the largest cosine.

    Returns (its places int64 (n, 2), cosine (n,)). Raises ValueError on places outside of a and on widths that differ.
    """
    rows, cols = torch.as_tensor(places).view(-1, 2).to(a.device).unbind(1)
    if not ((rows >= 0) & (rows < a.shape[0]) & (cols >= 0) & (cols < a.shape[1])).all():
        raise ValueError(f"places reach outside the grid of {a.shape[0]} x {a.shape[1]} patches")
    cosine, found = _cosines(a[rows, cols], b).max(1)
    return _places(found, b), cosine


def mutual_matches(a, b):
    """Patches of a (h, w, D) and b (h', w', D) that are each other's best match, most similar first.

    Returns (places in a int64 (n, 2), places in b (n, 2), cosine (n,)); n is at least 1 (the most similar pair).
    """
    cosines = _cosines(a.flatten(0, 1), b)  # (h w, h' w')
    cosine, there = cosines.max(1)
    mutual = (cosines.argmax(0)[there] == torch.arange(len(there), device=there.device)).nonzero()[:, 0]
    mutual = mutual[cosine[mutual].argsort(descending=True, stable=True)]
    return _places(mutual, a), _places(there[mutual], b), cosine[mutual]


def _cosines(rows, b):
    if rows.shape[-1] != b.shape[-1]:
        raise ValueError(f"features of {rows.shape[-1]} and {b.shape[-1]} dimensions: expected the same, of one model")
    return F.normalize(rows.float(), dim=-1) @ F.normalize(b.flatten(0, 1).float(), dim=-1).T


def _places(numbers, grid):
    return torch.stack([numbers // grid.shape[1], numbers % grid.shape[1]], 1)


def jaccard_table(maps, truth, keeps=(0.2, 0.4, 0.6, 0.8, 0.9)):
    """The mean intersection over union of each head's mass mask with the object, by threshold: (heads, len(keeps)).

    maps (N, heads, h, w), not negative; truth bool (N, H, W), True on the object. Errors as `mass_mask` and `jaccard`.
    """
    maps, size = maps.to(truth.device), truth.shape[-2:]
    return torch.stack([jaccard_by_head(upsample(mass_mask(maps, keep), size), truth) for keep in keeps], 1)
