"""What a map is worth: masks from it, and how well both fit the object's own mask.

Maps are (N, heads, h, w), one value a patch; objects are bool masks of pixels (N, H, W)
or, from `patch_masks`, of patches (N, h, w). Objects mostly lie in the middle, and so a
map that sees nothing fits them too: compare with `center_blobs`, or use `above_blind`.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def mass_mask(maps: Tensor, keep: float = 0.6) -> Tensor:
    """The smallest set of patches that holds the share `keep` of each map's mass: bool.

    Section 4.2.2 of the paper. maps (..., h, w), not negative, are renormalised over the
    patches; of equal patches the first in reading order goes in. keep=1 takes every patch
    with mass; a map without mass gives an empty mask. ValueError on a `keep` outside
    (0, 1] and on negative or NaN maps (clamp a `pooled_similarity` at 0 first).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]")
    if not torch.is_tensor(maps) or maps.ndim < 2:
        raise ValueError(f"maps {tuple(np.shape(maps))}: expected a tensor (..., h, w)")
    if not (maps >= 0).all():
        raise ValueError("maps hold negative or NaN values: a mass must be 0 or more")
    if keep == 1:
        return maps > 0
    values = maps.flatten(-2).cpu().double()  # on the CPU: MPS has no float64
    mass, order = values.sort(dim=-1, descending=True, stable=True)
    before = mass.cumsum(-1) - mass  # what the larger ones hold together
    # the tolerance is for rounding: in float32 0.35 + 0.25 falls just short of 0.6
    wanted = keep * (1 - 1e-6) * mass.sum(-1, keepdim=True)
    inside = before < wanted
    mask = torch.zeros_like(inside).scatter_(-1, order, inside)
    return mask.view(maps.shape).to(maps.device)


def upsample(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour from (..., h, w), of any type, bool too, to (..., *size)."""
    height, width = maps.shape[-2:]
    rows = _centers(height, size[0], maps.device)
    cols = _centers(width, size[1], maps.device)
    return maps[..., rows[:, None], cols]


def _centers(old, new, device):
    """The old cell under the centre of each new one, in whole numbers: (new,)."""
    return (2 * torch.arange(new, device=device) + 1) * old // (2 * new)


def jaccard(masks: Tensor, truth: Tensor) -> float:
    """The paper's number: each image's best head's intersection over union, the mean.

    Section 4.2.2. masks bool (N, heads, H, W), truth bool (N, H, W). An empty union
    counts 0. The best head is chosen for every image with the truth in hand, so more
    heads score higher, blind ones too: quote it beside that of as many `center_blobs`.
    """
    return _iou(masks, truth).amax(1).mean().item()


def jaccard_one_head(masks: Tensor, truth: Tensor) -> Tensor:
    """Each head's mean intersection over union, one head for all images: (heads,)."""
    return _iou(masks, truth).mean(0).float()


def _iou(masks, truth):
    """Intersection over union, (N, heads); an empty union counts 0."""
    if masks.dtype != torch.bool or truth.dtype != torch.bool:
        raise TypeError(f"masks are {masks.dtype}, truth is {truth.dtype}; expected bool")
    fits = masks.ndim == 4 and truth.shape == (len(masks), *masks.shape[2:])
    if not fits or len(masks) == 0:
        raise ValueError(
            f"masks {tuple(masks.shape)} and truth {tuple(truth.shape)} do not fit: "
            "expected (N, heads, H, W) and (N, H, W); upsample brings masks to the "
            "truth's size"
        )
    truth = truth[:, None]
    intersection = (masks & truth).sum((2, 3)).cpu()
    union = (masks | truth).sum((2, 3)).cpu()
    return intersection.double() / union.clamp(min=1)


def patch_masks(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """Pixel masks bool (N, H, W) -> (N, *grid): patches covered by more than half."""
    if masks.dtype != torch.bool or masks.ndim != 3:
        kind = f"{masks.dtype} {tuple(masks.shape)}"
        raise ValueError(f"masks are {kind}; expected bool (N, H, W)")
    return F.adaptive_avg_pool2d(masks[:, None].float(), tuple(grid))[:, 0] > 0.5


def auc(maps: Tensor, masks: Tensor) -> Tensor:
    """How often a patch of the object has a larger value than one beside it: (heads,).

    maps (N, heads, h, w), masks bool (N, h, w), see `patch_masks`. Ties count half; the
    mean is over the pictures. Those whose object covers no patch or all of them have no
    say; ValueError where there are no others. Chance is 0.5, but a blind blob in the
    middle gets more.
    """
    values, objects = _flatten(maps, masks)
    share = objects.mean(1)
    told = (share > 0) & (share < 1)
    if not told.any():
        raise ValueError("every picture's object covers no patch or all of them")
    return _wins(values, objects, 1 - objects)[told].mean(0).float()


def above_blind(maps: Tensor, masks: Tensor) -> Tensor:
    """How much better a head finds objects than a map that sees no picture: (heads,).

    maps (N, heads, h, w), masks bool (N, h, w), see `patch_masks`. Shuffled AUC: a patch
    of the object is compared with all patches, and each of those counts by how many other
    pictures have their object there. Then put on a scale from 0, any fixed map (exactly
    so if all objects are equally large), to 1, the masks themselves. Pictures whose
    object covers no patch have no say. ValueError unless `are_comparable(masks)`.
    """
    values, objects = _flatten(maps, masks)
    if not are_comparable(masks):
        raise ValueError("above_blind needs two objects or more that lie differently")
    shown = objects.any(1)
    values, objects = values[shown], objects[shown]
    elsewhere = objects.sum(0) - objects  # how many other objects lie on a patch
    score = _wins(values, objects, elsewhere).mean(0)
    best = _wins(objects[:, None], objects, elsewhere).mean()
    return ((score - 0.5) / (best - 0.5)).float()


def are_comparable(masks: Tensor) -> bool:
    """Whether `auc` and `above_blind` can be taken: some two objects differ."""
    objects = masks.flatten(1)
    objects = objects[objects.any(1)]
    return len(objects) > 1 and bool((objects != objects[0]).any())


def center_blobs(n: int, grid: Sequence[int], seed: int = 0) -> Tensor:
    """n fixed blobs near the middle, what blind heads could look at: (n, *grid).

    `.expand(N, -1, -1, -1)` makes maps of N pictures. In units of the half side, they lie
    up to 0.3 from the middle in each direction, and their deviation is 0.3 to 0.6.
    """
    rng = np.random.default_rng(seed)
    centers = rng.uniform(-0.3, 0.3, (n, 2))
    sigmas = rng.uniform(0.3, 0.6, n)
    places = zip(centers, sigmas, strict=True)
    return torch.stack([blob(grid, y, x, sigma) for (y, x), sigma in places])


def blob(grid: Sequence[int], y: float = 0, x: float = 0, sigma: float = 0.5) -> Tensor:
    """A Gaussian blob (*grid); place and deviation in units of the half side."""
    rows, cols = [(torch.arange(side) + 0.5) / side * 2 - 1 for side in grid]
    squares = (rows[:, None] - y) ** 2 + (cols - x) ** 2
    return (-squares / (2 * sigma**2)).exp()


def away_from_border(grid: Sequence[int]) -> Tensor:
    """bool (*grid): False in a border an eighth of each side wide, one patch at least."""
    height, width = grid
    rows, cols = max(1, height // 8), max(1, width // 8)
    middle = torch.zeros(height, width, dtype=torch.bool)
    middle[rows : height - rows, cols : width - cols] = True
    return middle


def _flatten(maps, masks):
    """Float64 (N, heads, P) and (N, P), on the CPU: MPS has no float64."""
    if masks.dtype != torch.bool:
        raise TypeError(f"masks are {masks.dtype}; expected bool")
    if maps.ndim != 4 or masks.shape != (len(maps), *maps.shape[2:]):
        raise ValueError(
            f"maps {tuple(maps.shape)} and masks {tuple(masks.shape)} do not fit: expected "
            "(N, heads, h, w) and (N, h, w); patch_masks brings pixel masks to the grid"
        )
    if not maps.isfinite().all():
        raise ValueError("maps hold NaN or infinite values")
    return maps.flatten(2).cpu().double(), masks.flatten(1).cpu().double()


def _wins(values, objects, weights):
    """How often an object's patch has a larger value than one drawn by weight.

    values (N, heads, P), objects and weights (N, P) -> (N, heads). Ties count half. By
    sorting, as all pairs would be many: a value beats the weight of those below it.
    """
    weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
    values = values.contiguous()
    ordered, order = values.sort(-1)
    upto = weights[:, None].expand_as(values).gather(-1, order).cumsum(-1)
    upto = F.pad(upto, (1, 0))  # (N, heads, P + 1): of the first 0, 1, ... P
    below = upto.gather(-1, torch.searchsorted(ordered, values))
    not_above = upto.gather(-1, torch.searchsorted(ordered, values, right=True))
    wins = (below + not_above) / 2
    objects = objects[:, None]
    return (wins * objects).sum(-1) / objects.sum(-1).clamp(min=1)
