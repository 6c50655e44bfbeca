"""Which head to show, chosen without masks, and a table of what each head looks at.

Users of the official code pick by hand (facebookresearch/dino #92, #120). A criterion
takes maps (N, heads, h, w) and gives each head's score (heads,), the higher the better.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.measure.masks import above_blind, auc, blob


def agreement(maps: Tensor) -> Tensor:
    """Correlation of a head's map with the mean of the other heads' maps.

    Heads that found the object find it in the same place. 0 for a head alone.
    """
    heads = maps.shape[1]
    others = (maps.sum(1, keepdim=True) - maps) / max(1, heads - 1)
    return _correlation(maps, others).mean(0)


def concentration(maps: Tensor) -> Tensor:
    """Low entropy: 0 for a flat map, 1 for one that holds a single patch."""
    return 1 - entropy(maps) / math.log(maps[0, 0].numel())


def variety(maps: Tensor) -> Tensor:
    """One minus the correlation of a head's maps with their mean over the pictures.

    A head that always looks at the middle, or at a border, gets 0.
    """
    return 1 - _correlation(maps, maps.mean(0, keepdim=True).expand_as(maps)).mean(0)


def mirror_agreement(maps: Tensor) -> Tensor:
    """Correlation of a picture's map with that of the mirrored picture.

    maps: those of torch.cat([images, images.flip(-1)]). ValueError on an odd number.
    """
    if len(maps) % 2:
        raise ValueError(f"{len(maps)} maps: expected pictures, then their mirror images")
    maps, mirrored = maps.chunk(2)
    return _correlation(maps, mirrored.flip(-1)).mean(0)


def choose_head(maps: Tensor, by: Callable[[Tensor], Tensor] = agreement) -> int:
    """The number of the head to show, chosen without masks from maps (N, heads, h, w).

    `agreement` chooses best among the criteria above. ValueError on other shapes.
    """
    if maps.ndim != 4 or len(maps) == 0:
        raise ValueError(f"maps {tuple(maps.shape)}: expected (N >= 1, heads, h, w)")
    return by(maps).argmax().item()


def entropy(maps: Tensor) -> Tensor:
    """Mean entropy of the maps, renormalised over the patches, in nats: (heads,)."""
    return torch.special.entr(_shares(maps)).sum(-1).mean(0)


def head_table(maps: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
    """What each head looks at, by column, each (heads,).

    maps (N, heads, h, w) of attention; masks bool (N, h, w), see `patch_masks`. `object`:
    the share of the mass on the object (the rest is on the background), `auc` and
    `above_blind`, if there are masks. `center`: correlation with a blob in the middle.
    `entropy` in nats. `agreement`: with the other heads.
    """
    middle = blob(maps.shape[2:]).to(maps).expand_as(maps)
    table = {
        "center": _correlation(maps, middle).mean(0),
        "entropy": entropy(maps),
        "agreement": agreement(maps),
    }
    if masks is None:
        return table
    on_object = _shares(maps) * masks.to(maps.device).flatten(1)[:, None]
    return {
        "object": on_object.sum(-1).mean(0),
        "auc": auc(maps, masks),
        "above_blind": above_blind(maps, masks),
        **table,
    }


def _shares(maps):
    return F.normalize(maps.flatten(2), p=1, dim=-1)  # (N, heads, P), sum 1


def _correlation(a, b):
    """Pearson's correlation over the patches of (N, heads, h, w): (N, heads)."""
    a, b = a.flatten(2), b.flatten(2)
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(a, b, dim=-1)
