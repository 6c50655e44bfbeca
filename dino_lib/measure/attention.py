"""Where the model looks: the attention maps of a ViT's heads, and a CNN's stand-in.

Fused attention never holds the matrix softmax(q k^T / sqrt(d)). So the blocks that are
looked at take timm's unfused path for one call: there the matrix goes through
`attn_drop`, where a hook reads it. All functions take what `backbone_of` takes, and
normalised images (B, C, H, W). They return float32 without gradient on the model's
device, and leave the model as it was.
"""

import contextlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor

from dino_lib.backbone import backbone_of
from dino_lib.measure.features import eval_mode, patch_features, to_model

ROOM = 2**26  # numbers that one layer's matrices may hold at a time: 256 MB


def cls_attention(model: Any, images: Tensor, *, layer: int = -1) -> Tensor:
    """The CLS token's row over the patches, for each head of a block: (B, heads, h, w).

    Not renormalised: CLS and register tokens hold the rest of 1. In XCiT and CaiT
    `layer` counts the class-attention blocks, the only ones with such a row. TypeError
    where no CLS token attends (CNNs, Swin, mean-pooled ViTs), ValueError on a layer out
    of range and on image sizes that the model refuses.
    """
    backbone = backbone_of(model)
    _need_cls(backbone)
    return _cls_maps(backbone, images, [_attention(backbone, layer)])[0]


def every_layer(model: Any, images: Tensor) -> Tensor:
    """`cls_attention` of every layer, in one pass: (layers, B, heads, h, w)."""
    backbone = backbone_of(model)
    _need_cls(backbone)
    return _cls_maps(backbone, images, _attentions(backbone))


def full_attention(model: Any, images: Tensor, *, layer: int = -1) -> Tensor:
    """softmax(q k^T / sqrt(d)) of all tokens, prefix tokens first: (B, heads, T, T).

    For small images. Errors as `cls_attention`, but no CLS token is needed. Of its rows the
    one of the patch (row, col) is number model.num_prefix_tokens + row * w + col.
    """
    backbone = backbone_of(model)
    [matrix], _ = _look(backbone, images, [_attention(backbone, layer)], _all_rows)
    return matrix


def rollout(model: Any, images: Tensor) -> Tensor:
    """Attention rollout of the CLS token (Abnar & Zuidema 2020, arXiv 2005.00928).

    (B, h, w). The product over the blocks of (mean over the heads + identity) / 2:
    attention and residual. Errors as `cls_attention`.
    """
    backbone = backbone_of(model)
    _need_cls(backbone)
    blocks = _attentions(backbone)
    matrices, grid = _look(backbone, images, blocks, lambda matrix: _all_rows(matrix).mean(1))
    product = torch.eye(matrices[0].shape[-1], device=matrices[0].device)
    for matrix in matrices:
        product = (matrix @ product + product) / 2  # (B, T, T)
    return _patches(product[:, 0], grid)


def pooled_similarity(model: Any, images: Tensor) -> Tensor:
    """Cosine of the last map's mean with each of its positions: (B, 1, h, w).

    For any model: what a CNN has in place of a CLS row. It shows where the map agrees
    with the feature that is pooled from it.
    """
    maps = patch_features(model, images)  # (B, h, w, D)
    return F.cosine_similarity(maps, maps.mean((1, 2), keepdim=True), dim=-1)[:, None]


def queries_keys_values(
    model: Any, images: Tensor, *, layer: int = -1
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of a plain ViT's block, each (B, heads, T, d).

    full_attention @ v, heads joined and projected, is the block's attention output.
    TypeError where the block is not timm's plain `Attention`.
    """
    backbone = backbone_of(model)
    attention = _attention(backbone, layer)
    if type(attention) is not Attention:
        name, kind = type(backbone.model).__name__, type(attention).__name__
        raise TypeError(
            f"{name} has {kind}: queries, keys and values are read from timm's plain "
            "ViT blocks alone"
        )

    def split(qkv):  # (b, T, 3 D) -> (b, 3, heads, T, d)
        q, k, v = qkv.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return torch.stack([attention.q_norm(q), attention.k_norm(k), v], 1)

    [found], _ = _pass(backbone, images, [attention.qkv], split)
    return found.unbind(1)


def _need_cls(backbone):
    if not backbone.has_cls:
        name = type(backbone.model).__name__
        raise TypeError(f"{name} has no CLS token that attends: use pooled_similarity")


def _attentions(backbone):
    """Each block's attention; in XCiT and CaiT that of the class-attention blocks."""
    for name in ("cls_attn_blocks", "blocks_token_only", "blocks"):
        blocks = getattr(backbone.model, name, None) or []
        attentions = [getattr(block, "attn", None) for block in blocks]
        if attentions and all(hasattr(one, "attn_drop") for one in attentions):
            return attentions
    raise _unreadable(backbone)


def _attention(backbone, layer):
    attentions = _attentions(backbone)
    n = len(attentions)
    if layer not in range(-n, n):
        name = type(backbone.model).__name__
        raise ValueError(
            f"layer={layer!r}: {name} has {n} such blocks, {-n} to {n - 1}"
        )
    return attentions[layer]


def _cls_maps(backbone, images, attentions):
    """The CLS token's rows over the patches, (len(attentions), B, heads, h, w)."""
    # a view would keep the whole matrix alive
    rows, grid = _look(backbone, images, attentions, lambda matrix: matrix[:, :, 0].clone())
    return _patches(torch.stack(rows), grid)


def _look(backbone, images, attentions, keep):
    """What `keep` makes of each one's matrix (b, heads, T, T), and the grid (h, w).

    Class attention has (b, heads, 1, T).
    """
    fused = [getattr(attention, "fused_attn", False) for attention in attentions]
    try:
        for attention in attentions:
            attention.fused_attn = False
        kept, grid = _pass(backbone, images, [one.attn_drop for one in attentions], keep)
    finally:
        for attention, flag in zip(attentions, fused, strict=True):
            attention.fused_attn = flag
    n_tokens = backbone.num_prefix_tokens + grid[0] * grid[1]
    shapes = [None if matrix is None else matrix.shape for matrix in kept]
    if any(shape is None or shape[0] != len(images) or shape[-1] != n_tokens for shape in shapes):
        raise _unreadable(backbone)  # windows, channels, SAM's heads, or no CLS token yet
    return kept, grid


@torch.no_grad()
def _pass(backbone, images, modules, keep):
    """What `keep` makes of each module's output (None: it never ran); the grid."""
    kept = {module: [] for module in modules}

    def hook(module, inputs, output):
        kept[module].append(keep(output).float())

    images = to_model(backbone, images)
    with eval_mode(backbone), contextlib.ExitStack() as stack:
        for module in modules:
            stack.callback(module.register_forward_hook(hook).remove)
        for part in images.split(_images_at_a_time(backbone, images)):
            grid = tuple(backbone.patch_tokens(part).shape[1:3])
    return [torch.cat(found) if found else None for found in kept.values()], grid


def _images_at_a_time(backbone, images):
    n_tokens = math.prod(backbone.grid(images.shape[-2:])) + 1
    heads = getattr(_attentions(backbone)[-1], "num_heads", 1)
    return max(1, ROOM // (heads * n_tokens**2))


def _unreadable(backbone):
    name = type(backbone.model).__name__
    return TypeError(
        f"{name} has no attention over all tokens that can be read: "
        "use pooled_similarity"
    )


def _all_rows(matrix):
    if matrix.shape[2] == 1:
        raise TypeError("this is class attention, only the CLS token asks: cls_attention")
    return matrix


def _patches(rows, grid):
    """(..., T) -> (..., h, w): the share of CLS and registers is left out."""
    return rows[..., -grid[0] * grid[1] :].unflatten(-1, grid)
