"""Which head to show, chosen without masks, and a table of what each head looks at.

Users of the official code pick by hand (facebookresearch/dino #92, #120). A criterion
takes maps (N, heads, h, w) and gives each head's score (heads,), the higher the better.
`benchmarks/heads.py` compares them with others that didn't make it into the library.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.backbone import backbone_of
from dino_lib.measure.masks import above_blind, auc, away_from_border, blob


def foreground(maps: Tensor, least_variety: float = 0.5) -> Tensor:
    """How much a head seems to look at objects: `inside` plus a tenth of `agreement`, (heads,).

    maps (N, heads, h, w). Of heads that are about equally inside it is the one that the
    others agree with; no head loses by standing alone, for the others may agree about
    the ground. A blob in the middle would score high, so heads that change little with
    the picture (`variety` below `least_variety`; with one picture nobody knows) get
    -inf, but for the most varied one where all of them do.
    """
    scores = inside(maps) + 0.1 * agreement(maps).clamp(min=0)
    if len(maps) == 1:
        return scores
    varied = variety(maps)
    return scores.masked_fill(varied < varied.max().clamp(max=least_variety), -torch.inf)


def inside(maps: Tensor, share: float = 0.25) -> Tensor:
    """How much of the top quarter of a head's patches keeps away from the border: (heads,).

    maps (N, heads, h, w). From 0 to 1. It assumes one thing of the pictures, that their
    ground reaches the border more often than their objects do; and so it tells figure
    from ground where heads that agree may agree about the ground. The border is that of
    `away_from_border`.
    """
    middle = away_from_border(maps.shape[2:]).float().to(maps.device)
    n_top = max(1, round(share * middle.numel()))
    top = maps.flatten(2).topk(n_top).indices  # (N, heads, n_top)
    return middle.flatten()[top].mean((0, 2))


def agreement(maps: Tensor) -> Tensor:
    """Correlation of a head's map with the mean of the other heads' maps.

    Heads that found the object find it in the same place. 0 for a head alone.
    """
    heads = maps.shape[1]
    others = (maps.sum(1, keepdim=True) - maps) / max(1, heads - 1)
    return _correlation(maps, others).mean(0)


def variety(maps: Tensor) -> Tensor:
    """One minus the correlation of a head's maps with their mean over the pictures.

    A head that always looks at the middle, or at a border, gets 0.
    """
    return 1 - _correlation(maps, maps.mean(0, keepdim=True).expand_as(maps)).mean(0)


def choose_head(maps: Tensor, by: Callable[[Tensor], Tensor] = foreground) -> int:
    """The number of the head to show, chosen without masks from maps (N, heads, h, w).

    The more pictures, the surer. ValueError on other shapes.
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
    `entropy` in nats. `agreement` with the other heads, `inside` and `variety`: what
    `foreground` goes by.
    """
    middle = blob(maps.shape[2:]).to(maps).expand_as(maps)
    table = {
        "center": _correlation(maps, middle).mean(0),
        "entropy": entropy(maps),
        "agreement": agreement(maps),
        "inside": inside(maps),
        "variety": variety(maps),
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


@contextlib.contextmanager
def without_head(model: Any, head: int, layer: int = -1) -> Iterator[None]:
    """Inside, what this head of a block found is not written: it is 0 before the projection.

    The other heads' maps in that block stay as they are. TypeError where the blocks have
    no such projection, ValueError on a head that is not there.
    """
    block = getattr(backbone_of(model).model, "blocks", [None])[layer]
    attention = getattr(block, "attn", None)
    n_heads = getattr(attention, "num_heads", None)
    if n_heads is None or not hasattr(attention, "proj"):
        name = type(backbone_of(model).model).__name__
        raise TypeError(f"{name} has no heads that could be taken out")
    if head not in range(n_heads):
        raise ValueError(f"head={head}: there are {n_heads}")

    def silence(module, inputs):
        heads = inputs[0].unflatten(-1, (n_heads, -1))  # (B, T, heads, d)
        kept = torch.arange(n_heads, device=heads.device) != head
        return (heads * kept[:, None]).flatten(-2)

    with attention.proj.register_forward_pre_hook(silence):
        yield


def _shares(maps):
    return F.normalize(maps.flatten(2), p=1, dim=-1)  # (N, heads, P), sum 1


def _correlation(a, b):
    """Pearson's correlation over the patches of (N, heads, h, w): (N, heads)."""
    a, b = a.flatten(2), b.flatten(2)
    a = a - a.mean(-1, keepdim=True)
    b = b - b.mean(-1, keepdim=True)
    return F.cosine_similarity(a, b, dim=-1)
