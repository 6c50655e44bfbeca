"""Where the model looks: attention maps of a ViT's heads, what stands in for them in a CNN, and masks from them.

Fused attention never holds the matrix softmax(q k^T / sqrt(d)). So a hook takes the input of the block that is looked
at, q and k are computed again from the block's own parameters, and only the rows that are asked for are formed.
All functions take a Backbone, anything with one as `.backbone` or `.model` (student, teacher), or a timm model, with
normalised images (B, 3, H, W); they return float32 without gradient on the model's device and leave its mode alone.
"""

import numpy as np
import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import ClassAttn
from timm.models.eva import EvaAttention

from dino_lib.backbone import backbone_of
from dino_lib.measure.evaluate import check_images, eval_mode

READABLE = (Attention, AttentionRope, EvaAttention, BeitAttention, ClassAttn)


def cls_attention(model, images, *, layer=-1):
    """The CLS token's row over the patches, for each head of block `layer`: (B, heads, h, w).

    Not renormalised: CLS and register tokens hold the rest of 1. In XCiT and CaiT `layer` counts the class-attention
    blocks, the only ones with such a row. Raises TypeError where no CLS token attends (CNNs, Swin, mean-pooled ViTs),
    ValueError on a layer out of range and on image sizes that the model refuses.
    """
    _need_cls(model)
    return _row(model, images, layer, lambda grid: 0)


def patch_attention(model, images, row, col, *, layer=-1):
    """The row of the patch at (row, col) of the grid over all patches: (B, heads, h, w). Errors as `cls_attention`."""

    def token(grid):
        if not (0 <= row < grid[0] and 0 <= col < grid[1]):
            raise ValueError(f"patch ({row}, {col}) lies outside the grid of {grid[0]} x {grid[1]} patches")
        return _find(model)[1].num_prefix_tokens + row * grid[1] + col

    return _row(model, images, layer, token)


def full_attention(model, images, *, layer=-1):
    """softmax(q k^T / sqrt(d)) between all tokens, prefix tokens first: (B, heads, T, T). For small images."""
    [seen], _ = _look(model, images, [layer])
    return _softmax(*seen)


def every_layer(model, images):
    """What one forward pass tells: (`cls_attention` of every layer, `full_attention` of the last).

    The first is (layers, B, heads, h, w), or None without a CLS token; the second is (B, heads, T, T), or None where
    the CLS token alone asks. Raises TypeError where there is neither, ValueError as `cls_attention`.
    """
    blocks, grid = _look(model, images, range(len(_blocks(model))))
    rows = torch.stack([_patches(_softmax(*block, 0), grid) for block in blocks]) if _has_cls(model) else None
    return rows, _softmax(*blocks[-1]) if blocks[-1][0].shape[2] > 1 else None


def queries_keys_values(model, images, *, layer=-1):
    """q, k and v of block `layer` as its fused kernel gets them (normalised, rotated), each (B, heads, T, d).

    full_attention @ v, heads joined and projected, is the block's attention output; class attention has one query.
    """
    [(q, k, v, _)], _ = _look(model, images, [layer])
    return q.float(), k.float(), v.float()


def rollout(model, images):
    """Attention rollout (Abnar & Zuidema 2020, arXiv 2005.00928) of the CLS token: (B, h, w).

    The product over the blocks of (mean over the heads + identity) / 2: attention and residual, down to the input.
    """
    _need_cls(model)
    blocks, grid = _look(model, images, range(len(_blocks(model))))
    product = torch.eye(blocks[0][1].shape[2], device=blocks[0][1].device)
    for seen in blocks:
        product = (_softmax(*seen).mean(1) @ product + product) / 2  # (B, T, T)
    return product[:, 0, -grid[0] * grid[1] :].unflatten(1, grid)


@torch.no_grad()
def pooled_similarity(model, images):
    """Cosine of the last map's mean with each of its positions: (B, 1, h, w), in [-1, 1]. Not attention; any model.

    What a CNN has instead of a CLS row: where the map agrees with the feature that is pooled from it.
    """
    vit = _find(model)[1]
    with eval_mode(vit):
        maps = backbone_of(model).patch_tokens(on_device(vit, images)).float()  # (B, h, w, D)
    return F.cosine_similarity(maps, maps.mean((1, 2), keepdim=True), dim=-1)[:, None]


def mass_mask(maps, keep=0.6):
    """The smallest set of patches that holds the share `keep` of each map's mass (section 4.2.2): bool, same shape.

    maps (..., h, w), not negative, are renormalised over the patches; of equal patches the first in reading order
    goes in. keep=1 takes every patch with mass; a map without mass gives an empty mask. Raises ValueError on a
    `keep` outside (0, 1] and on negative or NaN maps (clamp a `pooled_similarity` at 0 first).
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep={keep} must lie in (0, 1]")
    if not torch.is_tensor(maps) or maps.ndim < 2:
        raise ValueError(f"maps {tuple(np.shape(maps))}: expected a tensor (..., h, w)")
    if not (maps >= 0).all():
        raise ValueError("maps hold negative or NaN values: a mass is needed, 0 or more everywhere")
    if keep == 1:
        return maps > 0
    mass, order = maps.flatten(-2).cpu().double().sort(dim=-1, descending=True, stable=True)  # MPS has no double
    before = mass.cumsum(-1) - mass  # what the larger ones hold together
    # the tolerance forgives rounding: in float32 0.35 + 0.25 falls just short of 0.6 and would call in a third patch
    inside = before < keep * (1 - 1e-6) * mass.sum(-1, keepdim=True)
    return torch.zeros_like(inside).scatter_(-1, order, inside).view(maps.shape).to(maps.device)


def upsample(maps, size):
    """Nearest neighbour from (..., h, w), of any type, bool too, to (..., H, W) with size = (H, W)."""
    rows, cols = ((2 * torch.arange(new, device=maps.device) + 1) * old // (2 * new)  # pixel centres, in integers
                  for new, old in zip(size, maps.shape[-2:], strict=True))
    return maps[..., rows[:, None], cols]


def on_device(model, images):
    """Images on the model's device; TypeError or ValueError if they are no normalised images (B, C, H, W)."""
    check_images(images)
    return images.to(next(model.parameters()).device)


def _find(model):
    """(its Backbone, its timm model)."""
    backbone = backbone_of(model)
    return backbone, backbone.model


def _has_cls(model):
    return getattr(_find(model)[1], "cls_token", None) is not None


def _need_cls(model):
    if not _has_cls(model):
        name = type(_find(model)[1]).__name__
        raise TypeError(f"{name} has no CLS token, so no attention map of it: use pooled_similarity")


def _blocks(model):
    """The blocks in which all tokens attend to all; where the CLS token alone does (XCiT, CaiT), those blocks."""
    vit = _find(model)[1]
    for name in ("cls_attn_blocks", "blocks_token_only", "blocks"):
        blocks = getattr(vit, name, None) or []
        if len(blocks) and all(isinstance(getattr(block, "attn", None), READABLE) for block in blocks):
            return blocks
    raise TypeError(f"{type(vit).__name__} has no attention over all tokens that can be read: use pooled_similarity")


@torch.no_grad()
def _look(model, images, layers):
    """([(q, k, v, bias) of each layer], (h, w)), from one forward pass in eval mode."""
    vit, blocks, seen = _find(model)[1], _blocks(model), []
    for layer in layers:
        if layer not in range(-len(blocks), len(blocks)):
            raise ValueError(f"layer={layer!r}: {type(vit).__name__} has {len(blocks)} such blocks, "
                             f"{-len(blocks)} to {len(blocks) - 1}")

    def catch(attn, args, kwargs):
        seen.append(_qkv_bias(attn, *args, **kwargs))

    hooks = [blocks[layer].attn.register_forward_pre_hook(catch, with_kwargs=True) for layer in layers]
    try:
        with eval_mode(vit):
            vit.forward_features(on_device(vit, images))
    except AssertionError as error:  # timm's word on an image size
        size = tuple(images.shape[-2:])
        remedy = f" Create it with img_size={size}." if getattr(vit.patch_embed, "strict_img_size", False) else ""
        raise ValueError(f"{type(vit).__name__} refuses images of {size}: {error}{remedy}") from error
    finally:
        for hook in hooks:
            hook.remove()

    (height, width), embed, n_tokens = images.shape[-2:], vit.patch_embed, seen[0][1].shape[2]
    if hasattr(embed, "dynamic_feat_size"):
        grid = embed.dynamic_feat_size((height, width))
    else:  # XCiT's convolutions
        grid = (height // embed.patch_size, width // embed.patch_size)
    if vit.num_prefix_tokens + grid[0] * grid[1] != n_tokens:
        raise ValueError(f"image sides {(height, width)} must be divisible by the patch size: {n_tokens} tokens are "
                         f"not {vit.num_prefix_tokens} and a grid of {grid}")
    return seen, grid


def _qkv_bias(attn, x, rope=None, shared_rel_pos_bias=None, **_):
    """What the block's own fused kernel gets: q, k, v (B, heads, T, d), and the bias of its scores (1, heads, T, T)."""
    if getattr(attn, "qkv", None) is not None:
        qkv = attn.qkv(x)
        if getattr(attn, "q_bias", None) is not None:  # EVA and BEiT: the keys have no bias
            qkv = qkv + torch.cat([attn.q_bias, torch.zeros_like(attn.q_bias), attn.v_bias])
        q, k, v = qkv.unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    else:
        only_cls = isinstance(attn, ClassAttn)
        to_q, to_k, to_v = (attn.q, attn.k, attn.v) if only_cls else (attn.q_proj, attn.k_proj, attn.v_proj)
        q = to_q(x[:, :1] if only_cls else x).unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        k, v = (to(x).unflatten(-1, (-1, q.shape[-1])).transpose(1, 2) for to in (to_k, to_v))
    if hasattr(attn, "q_norm"):
        q, k = attn.q_norm(q), attn.k_norm(k)
    if rope is not None:  # prefix tokens have no place in the image
        n = attn.num_prefix_tokens
        q, k = (torch.cat([t[:, :, :n], apply_rot_embed_cat(t[:, :, n:], rope, half=attn.rotate_half)], 2)
                for t in (q, k))
    groups = q.shape[1] // k.shape[1]  # grouped-query attention: several heads share a key
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    bias = q.new_zeros(1, 1, 1, 1)
    if shared_rel_pos_bias is not None:
        bias = bias + shared_rel_pos_bias
    if getattr(attn, "relative_position_bias_table", None) is not None:  # BEiT
        bias = bias + attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1)
    return q, k, v, bias


def _softmax(q, k, v, bias, token=None):
    """softmax(q k^T / sqrt(d) + bias): of all queries, or of one token's alone (B, heads, 1, T)."""
    if token != 0 and q.shape[2] != k.shape[2]:
        raise TypeError("this is class attention: only the CLS token asks, its row is cls_attention")
    asked = slice(None) if token is None else slice(token, token + 1)
    bias = bias.expand(-1, -1, q.shape[2], -1)[:, :, asked].float()
    return (q[:, :, asked].float() @ k.float().transpose(-2, -1) / q.shape[-1] ** 0.5 + bias).softmax(-1)


def _row(model, images, layer, token):
    """The row of one token over the patches; `token` gives its index from the grid (h, w)."""
    [seen], grid = _look(model, images, [layer])
    return _patches(_softmax(*seen, token(grid)), grid)


def _patches(rows, grid):
    """(B, heads, 1, T) -> (B, heads, h, w): the share of CLS and registers is left out."""
    return rows[:, :, 0, -grid[0] * grid[1] :].unflatten(-1, grid)
