"""The self-checks of notebook 02: backbone and head."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course.check import Case, Mistake, check, on
from dino_lib.course.head_module import Head, as_tensors, random_tensor
from dino_lib.course.head_views import forward_views, group_views

__all__ = ["Head", "cosine_logits", "forward_views", "group_views", "head_parameters",
           "nearest_pictures", "normalize_backward", "split_tokens"]


def split_tokens(yours: Callable) -> Callable:
    """`yours(tokens, grid)`: (B, 1 + h w, D) -> feature (B, D), patch tokens (B, h, w, D)."""

    def finished(tokens, grid):
        return tokens[:, 0], tokens[:, 1:].unflatten(1, tuple(grid))

    def with_feature(feature):
        return lambda t, grid: (feature(t), finished(t, grid)[1])

    def with_patches(patches):
        return lambda t, grid: (t[:, 0], patches(t, *grid))

    def of_grid(h, w):
        case = as_tensors(on(random_tensor(2, 1 + h * w, 5), (h, w)))

        def with_axes(piece):
            found = case(piece)
            parts = found if isinstance(found, tuple | list) else [found]
            if len(parts) != 2 and found is not None:
                raise Mistake("two tensors are expected: the feature, and the patch tokens on "
                              "their grid")
            if found is not None and [part.ndim for part in parts if part is not None] == [3, 4]:
                raise Mistake("the feature has one axis too many: (B, D), not (B, 1, D)")
            return found

        return with_axes

    cases = [of_grid(2, 3), of_grid(4, 4), of_grid(1, 5)]
    return check("split_tokens", yours, finished, cases, {
        "CLS is the first token, not the last": with_feature(lambda t: t[:, -1]),
        "CLS is the first token, not the last, and the patch tokens are all the others":
            lambda t, grid: (t[:, -1], t[:, :-1].unflatten(1, tuple(grid))),
        "the feature is CLS alone, not the mean of all tokens": with_feature(lambda t: t.mean(1)),
        "the feature is CLS alone, not the mean of the patches":
            with_feature(lambda t: t[:, 1:].mean(1)),
        "that is the first image, not the first token of each": with_feature(lambda t: t[0]),
        "that is the second token; counting starts at 0": with_feature(lambda t: t[:, 1]),
        "that is the first number of each token": with_feature(lambda t: t[:, :, 0]),
        "CLS is in front, so drop the first token, not the last":
            with_patches(lambda t, h, w: t[:, :-1].unflatten(1, (h, w))),
        "the patch tokens still have to go on their grid: (B, h, w, D)":
            with_patches(lambda t, h, w: t[:, 1:]),
        "the order is reading order: h rows of w patches":
            with_patches(lambda t, h, w: t[:, 1:].unflatten(1, (w, h)).transpose(1, 2)),
        "the grid is (h, w), rows first":
            with_patches(lambda t, h, w: t[:, 1:].unflatten(1, (w, h))),
        "CLS is among the patches: they start one token later":
            with_patches(lambda t, h, w: t[:, :h * w].unflatten(1, (h, w))),
        "the width D comes last: (B, h, w, D), not (B, D, h, w)":
            with_patches(lambda t, h, w: t[:, 1:].unflatten(1, (h, w)).permute(0, 3, 1, 2)),
        "the feature comes first, then the patch tokens": lambda t, g: finished(t, g)[::-1],
    })


def cosine_logits(yours: Callable) -> Callable:
    """`yours(z, directions)`: (N, d), (K, d) -> (N, K), the cosine of each row with each row."""

    def unit(t, dim=1):
        return t / t.norm(dim=dim, keepdim=True)

    def finished(z, w):
        return F.normalize(z, dim=1, eps=1e-12) @ F.normalize(w, dim=1, eps=1e-12).T

    shapes = [(5, 7, 4), (5, 5, 5), (1, 3, 2)]
    pairs = [(random_tensor(n, d, scale=3.0), random_tensor(k, d, seed=1, scale=0.2))
             for n, k, d in shapes]
    cases = [as_tensors(_with_gradients(*pair)) for pair in pairs]
    return check("cosine_logits", yours, finished, cases, {
        "nothing is normalised: these are plain dot products": lambda z, w: z @ w.T,
        "z is not normalised": lambda z, w: z @ unit(w).T,
        "the prototypes are not normalised": lambda z, w: unit(z) @ w.T,
        "the lengths are taken over the wrong axis: each row is one vector":
            lambda z, w: unit(z, 0) @ unit(w, 0).T,
        "the lengths of z are taken over the wrong axis: each row is one vector":
            lambda z, w: unit(z, 0) @ unit(w).T,
        "the lengths of the prototypes are taken over the wrong axis: each row is one vector":
            lambda z, w: unit(z) @ unit(w, 0).T,
        "all of z gets one length: each row has its own": lambda z, w: z / z.norm() @ unit(w).T,
        "all prototypes get one length: each row has its own":
            lambda z, w: unit(z) @ (w / w.norm()).T,
        "both get one length for all rows: each row has its own":
            lambda z, w: z / z.norm() @ (w / w.norm()).T,
        "rows are pictures and columns prototypes: the result is transposed":
            lambda z, w: finished(w, z),
        "that is a softmax; it belongs to the loss": lambda z, w: finished(z, w).softmax(1),
        "that is divided by a temperature; it belongs to the loss":
            lambda z, w: finished(z, w) / 0.1,
        "the prototypes have to be transposed for the product": lambda z, w: unit(z) @ unit(w),
        "the length is the root of the sum of squares, not the sum of squares":
            lambda z, w: z / (z**2).sum(1, keepdim=True) @ (w / (w**2).sum(1, keepdim=True)).T,
        "the length is the root of the sum of squares, not the sum of sizes":
            lambda z, w: F.normalize(z, p=1, dim=1) @ F.normalize(w, p=1, dim=1).T,
        "the result is normalised again: cosines are ready": lambda z, w: unit(finished(z, w)),
    })


def _with_gradients(z: Tensor, directions: Tensor) -> Case:
    """The logits. The head learns through them, so gradients must reach both inputs, the lengths'
    part of them too, and the inputs stay as they are.
    """

    def case(piece: Callable) -> Any:
        given = [part.clone().requires_grad_() for part in (z, directions)]
        # a leaf that autograd watches can't be changed in place: hand on what is made of one
        handed = [part * 1.0 for part in given]
        logits = piece(*handed)
        if not all(map(torch.equal, handed, (z, directions))):
            raise Mistake("it changes z or the prototypes in place: make new ones, without /=")
        if torch.is_tensor(logits) and not logits.requires_grad:
            raise Mistake("no gradient gets through: no detach, no torch.no_grad")
        if torch.is_tensor(logits) and logits.shape == (len(z), len(directions)):
            weight = random_tensor(*logits.shape, seed=2)
            slopes = torch.autograd.grad((logits * weight).sum(), given, allow_unused=True)
            right = F.normalize(z, dim=1) @ F.normalize(directions, dim=1).T
            for name, part, slope in zip(("z", "the prototypes"), given, slopes, strict=True):
                if slope is None:
                    raise Mistake(f"no gradient reaches {name}: no detach")
                along = (slope * part).sum(1).abs().max()  # no cosine changes with a length
                if (along > 1e-3 * slope.norm() * part.norm()
                        and torch.allclose(logits, right, atol=1e-4)):
                    raise Mistake(f"the length of {name} is detached: its gradient is part of the "
                                  "cosine's")
        return logits

    return case


def nearest_pictures(yours: Callable) -> Callable:
    """`yours(logits, prototype, n)`: the n rows of (N, K) with the largest logit, largest first."""

    def finished(logits, prototype, n):
        return logits[:, prototype].topk(n).indices

    def sorted_by(key):
        return lambda x, k, n: key(x, k).argsort(descending=True)[:n]

    cases = [on(random_tensor(30, 10), 2, 9), on(random_tensor(8, 8, seed=1), 0, 3),
             on(random_tensor(12, 5, seed=2), 4, 1), on(random_tensor(40, 40, seed=3), 7, 5)]
    return check("nearest_pictures", yours, finished, cases, {
        "these are the farthest: the largest cosine is nearest":
            lambda x, k, n: x[:, k].argsort()[:n],
        "these are the cosines; the positions are asked for": lambda x, k, n: x[:, k].topk(n)[0],
        "a prototype is a column, not a row": lambda x, k, n: x[k].topk(n).indices,
        "nearest first: the order is turned round": lambda x, k, n: finished(x, k, n).flip(0),
        "these are the right pictures, but nearest first is asked for":
            lambda x, k, n: finished(x, k, n).sort().values,
        "the largest size is not the largest cosine: -1 points the other way":
            sorted_by(lambda x, k: x[:, k].abs()),
        "one too many": lambda x, k, n: finished(x, k, n + 1),
        "the nearest one is missing": lambda x, k, n: finished(x, k, n + 1)[1:],
        "that is another prototype: counting starts at 0": lambda x, k, n: finished(x, k - 1, n),
        "that is the next prototype": lambda x, k, n: finished(x, (k + 1) % x.shape[1], n),
        "these are the first rows, in their own order": lambda x, k, n: torch.arange(n),
        "that is `n` of all prototypes: take the column of one first":
            lambda x, k, n: x.topk(min(n, len(x)), dim=0).indices,
        "that is the rank of each picture, not the pictures in order of rank":
            lambda x, k, n: x[:, k].argsort(descending=True).argsort()[:n],
        "that is the list of all pictures: only the first `n` are asked for":
            lambda x, k, n: x[:, k].argsort(descending=True),
    })


def head_parameters(yours: Callable) -> Callable:
    """`yours(in_dim, out_dim, hidden_dim, bottleneck_dim)`: the head's trainable parameters."""

    def finished(d, k, h, b):
        return (d * h + h) + (h * h + h) + (h * b + b) + k * b

    def off(difference):
        return lambda *sizes: finished(*sizes) + difference(*sizes)

    sizes = [(384, 65536, 2048, 256), (128, 1024, 512, 128), (7, 5, 11, 3), (3, 11, 5, 7)]
    return check("head_parameters", yours, finished, [on(*four) for four in sizes], {
        "the biases of the three Linears are missing": off(lambda d, k, h, b: -2 * h - b),
        "the biases of the hidden Linears are missing": off(lambda d, k, h, b: -2 * h),
        "the bias of one hidden Linear is missing": off(lambda d, k, h, b: -h),
        "the bias of the bottleneck is missing": off(lambda d, k, h, b: -b),
        "the frozen gains are counted, or biases that prototypes do not have":
            off(lambda d, k, h, b: k),
        "one bias vector too many: each Linear has one bias for each of its outputs":
            off(lambda d, k, h, b: h),
        "one bias vector too many: the bottleneck has one": off(lambda d, k, h, b: b),
        "batch norms are counted, and they don't count here": off(lambda d, k, h, b: 4 * h),
        "a bias for each input: a Linear has one for each output": off(lambda d, k, h, b: d - b),
        "the second hidden Linear, hidden to hidden, is missing":
            off(lambda d, k, h, b: -h * h - h),
        "there are two hidden Linears, not three": off(lambda d, k, h, b: h * h + h),
        "the prototypes are missing": off(lambda d, k, h, b: -k * b),
        "the first Linear is missing": off(lambda d, k, h, b: -d * h - h),
        "the Linear to the bottleneck is missing": off(lambda d, k, h, b: -h * b - b),
        "the prototypes lie in the bottleneck's space, not in the hidden one":
            off(lambda d, k, h, b: k * h - k * b - h * b - b),
        "the prototypes lie in the bottleneck's space, b wide, not in the hidden one":
            off(lambda d, k, h, b: k * h - k * b),
    }, tolerance=0.0, used=False)


def normalize_backward(yours: Callable) -> Callable:
    """`yours(z, grad)`: the gradient by z, where `grad` is the one by z / |z|, row by row."""

    def parts(z, grad):
        length = z.norm(dim=1, keepdim=True)
        unit = z / length
        return length, unit, (grad * unit).sum(1, keepdim=True)

    def finished(z, grad):
        length, unit, along = parts(z, grad)
        return (grad - along * unit) / length

    def wrong(rule):
        return lambda z, grad: rule(z, grad, *parts(z, grad))

    cases = [on(random_tensor(n, d, scale=scale), random_tensor(n, d, seed=1))
             for n, d, scale in [(4, 6, 3.0), (1, 2, 0.5), (5, 5, 1.0)]]
    return check("normalize_backward", yours, finished, cases, {
        "the part along z is still there: moving along z does not change its direction":
            wrong(lambda z, g, length, u, a: g / length),
        "the division by the length of z is missing: a long z turns slowly":
            wrong(lambda z, g, length, u, a: g - a * u),
        "that is the gradient as it came: neither length nor direction is dealt with":
            lambda z, g: g,
        "multiplied by the length, where a division belongs: a long z turns slowly":
            wrong(lambda z, g, length, u, a: (g - a * u) * length),
        "the projection uses z itself, where it needs z divided by its length":
            wrong(lambda z, g, length, u, a: (g - (g * z).sum(1, keepdim=True) * z) / length),
        "one of the two z in the projection is not divided by its length":
            wrong(lambda z, g, length, u, a: (g - a * z) / length),
        "only the part along z is left, and that is the part to remove":
            wrong(lambda z, g, length, u, a: a * u / length),
        "the part along z is added instead of removed":
            wrong(lambda z, g, length, u, a: (g + a * u) / length),
        "one length for the whole batch: each row has its own":
            wrong(lambda z, g, length, u, a: (g - a * u) / z.norm()),
        "the division is by the squared length":
            wrong(lambda z, g, length, u, a: (g - a * u) / length**2),
        "the dot product needs a sum over the row, not a mean":
            wrong(lambda z, g, length, u, a: (g - a / z.shape[1] * u) / length),
        "the sum has to go over each row, not over all of it":
            wrong(lambda z, g, length, u, a: (g - (g * u).sum() * u) / length),
        "the product is still entry by entry: sum it over the row":
            wrong(lambda z, g, length, u, a: (g - g * u * u) / length),
        "only a part of the first term is divided: the length goes under both":
            wrong(lambda z, g, length, u, a: g - a * u / length),
        "z and grad are swapped": lambda z, g: finished(g, z),
    }, rule=_by_hand, used=False)


def _by_hand(piece: Any) -> str | None:
    names = set(getattr(getattr(piece, "__code__", None), "co_names", ()))
    if names & {"backward", "autograd", "vjp"}:
        return "the values are right, but autograd made them: write the formula"
    return None
