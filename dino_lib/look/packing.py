"""Maps, attention and features as few bytes, for the explorer page.

The attention of every patch of the last layer would be T x T numbers a head: 90 MB for
a dozen images. Its logarithm is a product of queries and keys, up to a constant a row,
so it has a low rank, and two small int8 factors hold it.
"""

import base64

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_DIMS = 48


def quantise(maps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Maps (..., P) -> uint8 (..., P), low (..., 1), step (..., 1).

    maps = low + step * uint8, to half a step.
    """
    low = maps.amin(-1, keepdim=True).clamp(max=0)  # of attention it is 0
    step = ((maps.amax(-1, keepdim=True) - low) / 255).clamp(min=1e-12)
    return ((maps - low) / step).round().to(torch.uint8), low, step


def factorise(attention: Tensor, n_patches: int,
              room: float) -> tuple[Tensor, Tensor, Tensor, float]:
    """Attention (heads, T, T) as a product of two factors, and how far it is off.

    Returns int8 queries (heads, P, r), keys (heads, T, r), scale (heads, r) and `off`.
    softmax(queries * scale @ keys^T) are about the last P = n_patches rows; the mean
    total variation from the true ones is the share of mass out of place. Queries and
    keys take at most `room` bytes, but r is 4 at least.
    """
    heads, n_tokens, _ = attention.shape
    rows = attention[:, -n_patches:]
    scores = rows.clamp(min=1e-30).log()
    scores = scores - scores.mean(-1, keepdim=True)  # a dimension less
    rank = int(room / (heads * (n_patches + n_tokens)))
    rank = min(max(4, min(64, rank)), n_patches)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank starts from random vectors
        left, sizes, right = torch.svd_lowrank(scores, q=rank, niter=4)
    kept = max(1, int((sizes > 1e-4 * sizes.max()).any(0).sum()))
    queries, query_step = _to_int8(left[..., :kept])
    keys, key_step = _to_int8(right[..., :kept])
    scale = sizes[:, None, :kept] * query_step * key_step  # (heads, 1, r)
    again = (queries * scale @ keys.float().transpose(1, 2)).softmax(-1)
    off = (again - rows).abs().sum(-1).mean().item() / 2
    return queries, keys, scale[:, 0], off


def compress(tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Features (N, D) -> int8 (N, r), scale (r,), directions (D, r).

    int8 * scale, about unit features @ directions, keeps the cosines.
    """
    x = F.normalize(tokens.double(), dim=-1)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :FEATURE_DIMS]  # largest first
    values, step = _to_int8((x @ directions).float())
    return values, step[0], directions


def _to_int8(x: Tensor) -> tuple[Tensor, Tensor]:
    """(..., N, r) -> int8 (..., N, r), step (..., 1, r): each column reaches 127."""
    step = x.abs().amax(-2, keepdim=True).clamp(min=1e-12) / 127
    return (x / step).round().to(torch.int8), step


def to_base64(tensor: Tensor) -> str:
    """The tensor's bytes, as JavaScript's atob takes them."""
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def to_short(tensor: Tensor) -> list[float]:
    """All values with six digits."""
    return [float(f"{value:.6g}") for value in tensor.flatten().tolist()]
