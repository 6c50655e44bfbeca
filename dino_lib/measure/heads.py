"""Which head to show: choices that need no masks, and a table of what each head looks at.

Users of the official code pick a head by hand (facebookresearch/dino #92, #120). Each criterion
here takes maps (N, heads, h, w) and gives a score for every head (heads,), the higher the better.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.measure.masks import above_blind, auc, blob


def agreement(maps: Tensor) -> Tensor:
    """Correlation of a head's map with the mean of the other heads', mean over the pictures.

    Heads that found the object find it in the same place. 0 where there is one head alone.
    """
    heads = maps.shape[1]
    others = (maps.sum(1, keepdim=True) - maps) / max(1, heads - 1)
    return _correlation(maps, others).mean(0)


def concentration(maps: Tensor) -> Tensor:
    """One minus the entropy of a map as a share of a flat map's: 0 if flat, 1 on a single patch."""
    return 1 - entropy(maps) / torch.tensor(maps[0, 0].numel()).log()


def variety(maps: Tensor) -> Tensor:
    """How little of a head's maps is the same in every picture: 1 - correlation with their mean.

    A head that always looks at the middle, or at a border, gets 0.
    """
    return 1 - _correlation(maps, maps.mean(0, keepdim=True).expand_as(maps)).mean(0)


def mirror_agreement(maps: Tensor) -> Tensor:
    """Correlation of a picture's map with that of the same picture mirrored.

    maps are those of torch.cat([images, images.flip(-1)]). ValueError on an odd number.
    """
    if len(maps) % 2:
        raise ValueError(f"{len(maps)} maps: expected those of pictures, then of their mirrors")
    maps, mirrored = maps.chunk(2)
    return _correlation(maps, mirrored.flip(-1)).mean(0)


def choose_head(maps: Tensor, by: Callable[[Tensor], Tensor] = agreement) -> int:
    """The number of the head to show, chosen without masks from maps (N, heads, h, w).

    `agreement` chose best among the criteria above. Raises ValueError on other shapes.
    """
    if maps.ndim != 4 or len(maps) == 0:
        raise ValueError(f"maps {tuple(maps.shape)}: expected (N, heads, h, w), N at least 1")
    return by(maps).argmax().item()


def entropy(maps: Tensor) -> Tensor:
    """Entropy of the maps, renormalised over the patches, in nats: (heads,), mean over pictures."""
    shares = F.normalize(maps.flatten(2), p=1, dim=-1)
    return torch.special.entr(shares).sum(-1).mean(0)


def head_table(maps: Tensor, masks: Tensor | None = None) -> dict[str, Tensor]:
    """What each head looks at, by column, each (heads,).

    maps (N, heads, h, w) of attention; masks bool (N, h, w), see `patch_masks`. `object`: the
    share of the map's mass on the object (the rest is on the background), `auc`, `above_blind`,
    with masks alone. `center`: correlation with a blob in the middle. `entropy` in nats.
    `agreement`: with the other heads.
    """
    middle = blob(maps.shape[2:]).to(maps).expand_as(maps)
    table = {
        "center": _correlation(maps, middle).mean(0),
        "entropy": entropy(maps),
        "agreement": agreement(maps),
    }
    if masks is None:
        return table
    shares = F.normalize(maps.flatten(2), p=1, dim=-1)
    on_object = (shares * masks.to(maps.device).flatten(1)[:, None]).sum(-1).mean(0)
    return {
        "object": on_object,
        "auc": auc(maps, masks),
        "above_blind": above_blind(maps, masks),
        **table,
    }


def _correlation(a, b):
    """Pearson's correlation over the patches: (N, heads, h, w) twice -> (N, heads)."""
    a, b = a.flatten(2), b.flatten(2)
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(a, b, dim=-1)
