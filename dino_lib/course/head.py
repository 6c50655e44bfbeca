"""The self-checks of notebook 02: backbone and head."""

from collections.abc import Callable

import numpy as np
import torch

from dino_lib.course.verdict import each, verdict
from dino_lib.head import DINOHead, MultiCropModel


def check_cosine_logits(your_function: Callable) -> None:
    """your_function(features (N, d), directions (K, d)) -> (N, K) cosines."""
    generator = torch.Generator().manual_seed(0)
    x, w = torch.randn(5, 5, generator=generator), 2 * torch.randn(5, 5, generator=generator)
    unit_x, unit_w = (t / t.norm(dim=1, keepdim=True) for t in (x, w))
    layer = DINOHead(5, 5, bottleneck_dim=5, n_layers=1).requires_grad_(False)
    layer.mlp[0].weight.copy_(torch.eye(5))
    layer.directions.copy_(w)
    verdict(
        "cosine_logits",
        your_function(x, w),
        layer(x),
        {
            "nothing is normalised: these are plain dot products": x @ w.T,
            "the features are not normalised": x @ unit_w.T,
            "the prototypes are not normalised": unit_x @ w.T,
            "the length is taken over the wrong axis: each row is one vector": (x / x.norm(dim=0))
            @ (w / w.norm(dim=0)).T,
            "rows are prototypes and columns features: the result is transposed": unit_w @ unit_x.T,
            "this is a softmax of the logits; it belongs to the loss": (unit_x @ unit_w.T).softmax(
                1
            ),
        },
    )


def check_head_parameters(your_function: Callable) -> None:
    """your_function(in_dim, out_dim, hidden_dim, bottleneck_dim) -> trainable parameters of the
    three-layer head.
    """
    cases = [(384, 65536, 2048, 256), (128, 256, 512, 128), (7, 5, 11, 3)]

    with torch.device("meta"):  # shapes without numbers
        heads = [DINOHead(d, k, hidden_dim=hidden, bottleneck_dim=b) for d, k, hidden, b in cases]
    right = [sum(p.numel() for p in head.parameters() if p.requires_grad) for head in heads]

    def off(difference):
        return [1 + difference(*case) for case in cases]

    # compare differences, plus 1: among millions, one bias vector too many would pass for close
    yours = each(your_function, cases)
    if yours is not None and all(
        isinstance(n, int | float | np.generic | torch.Tensor) for n in yours
    ):
        yours = [1 + n - exact for n, exact in zip(yours, right, strict=True)]
    verdict(
        "head_parameters",
        yours,
        off(lambda *_: 0),
        {
            "the biases of the three Linears are missing": off(lambda d, k, h, b: -2 * h - b),
            "the frozen gains are counted, or biases that prototypes do not have": off(
                lambda d, k, h, b: k
            ),
            "one bias vector too many: each Linear has one bias for each of its outputs": off(
                lambda d, k, h, b: h
            ),
            "one bias vector too many: the bottleneck has one": off(lambda d, k, h, b: b),
            "the second hidden Linear, hidden to hidden, is missing": off(
                lambda d, k, h, b: -h * h - h
            ),
            "the prototypes are missing": off(lambda d, k, h, b: -k * b),
            "the bottleneck is missing: prototypes lie in its space, not in the hidden one": off(
                lambda d, k, h, b: k * h - k * b - h * b - b
            ),
        },
        tolerance=1e-12,
    )


def check_group_views(your_function: Callable) -> None:
    """your_function(sizes) -> list of (start, stop), one for each pass through the backbone."""
    cases = [([96, 96, 48, 48, 48],), ([64],), ([32, 32, 64, 32],), ([48, 32, 32, 16],)]

    def runs(sizes):
        """The passes that MultiCropModel makes: as many views as come in at once."""
        passes = []

        def backbone(x):
            passes.append(len(x))
            return x.flatten(1)[:, :1]

        MultiCropModel(backbone, None).features([torch.zeros(1, 1, size, size) for size in sizes])
        stops = np.cumsum(passes).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    def table(groups):
        """Always the same shape, however many groups: (8, 2), filled up with -1."""
        rows = [[float(a), float(b)] for a, b in groups][:8]
        return torch.tensor(rows + [[-1.0, -1.0]] * (8 - len(rows)))

    def tables(function):
        found = each(function, cases)
        return found and [table(groups) for groups in found]

    def merged(sizes):
        return [(sizes.index(s), len(sizes) - sizes[::-1].index(s)) for s in dict.fromkeys(sizes)]

    def counted(sizes):
        stops = np.cumsum([sizes.count(s) for s in dict.fromkeys(sizes)]).tolist()
        return list(zip([0, *stops[:-1]], stops, strict=True))

    verdict(
        "group_views",
        tables(your_function),
        tables(runs),
        {
            "one pass for each view: consecutive views of one size can share theirs": tables(
                lambda sizes: [(i, i + 1) for i in range(len(sizes))]
            ),
            "everything in one pass: tensors of different sizes don't fit into one batch": tables(
                lambda sizes: [(0, len(sizes))]
            ),
            "views that are not neighbours share a pass, so the order of the views is lost": tables(
                merged
            ),
            "views that are not neighbours were joined": tables(counted),
            "`stop` is one past the last view, as in a slice": tables(
                lambda sizes: [(a, b - 1) for a, b in runs(sizes)]
            ),
            "the last group is missing": tables(lambda sizes: runs(sizes)[:-1]),
            "these look like sizes or counts: give (start, stop), positions in the list": tables(
                lambda sizes: [(sizes[a], b - a) for a, b in runs(sizes)]
            ),
        },
    )


def check_normalize_backward(your_function: Callable) -> None:
    """your_function(z (N, d), grad (N, d)) -> the gradient by z, where grad is the one by z /
    |z|.
    """
    generator = torch.Generator().manual_seed(0)
    z, grad = 3 * torch.randn(4, 6, generator=generator), torch.randn(4, 6, generator=generator)
    x = z.clone().requires_grad_()
    torch.nn.functional.normalize(x, dim=-1, eps=1e-12).backward(grad)
    length = z.norm(dim=1, keepdim=True)
    unit = z / length
    along = (grad * unit).sum(1, keepdim=True) * unit
    verdict(
        "normalize_backward",
        your_function(z, grad),
        x.grad,
        {
            "the part along z is still there: moving along z does not change its direction": grad
            / length,
            "the division by the length of z is missing: a long z turns slowly": grad - along,
            "the projection uses z itself, where it needs z divided by its length": (
                grad - (grad * z).sum(1, keepdim=True) * z
            )
            / length,
            "only the part along z is left, and that is the part to remove": along / length,
            "the part along z is added instead of removed": (grad + along) / length,
            "one length for the whole batch: each row has its own": (grad - along) / z.norm(),
        },
    )
