"""The self-checks of notebook 02's views: which go together, and all through one network."""

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dino_lib.course.check import Case, Mistake, check
from dino_lib.course.head_module import random_tensor
from dino_lib.head import MultiCropModel


def _runs(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """(start, stop) of each run of neighbours of one size."""
    return _from_lengths([len(list(same)) for _, same in itertools.groupby(sizes)])


def group_views(yours: Callable) -> Callable:
    """`yours(sizes)`: the list of (start, stop), one for each pass through the backbone."""

    def merged(sizes):
        return [(sizes.index(s), len(sizes) - sizes[::-1].index(s)) for s in dict.fromkeys(sizes)]

    def counted(sizes):
        return _from_lengths([sizes.count(s) for s in dict.fromkeys(sizes)])

    def sorted_first(sizes):
        return _runs(sorted(sizes))

    def on_sizes(*sizes: int) -> Case:
        def case(group):
            found = group(list(sizes))
            if found is None:
                return None
            return [(g.start, g.stop) if isinstance(g, slice) else tuple(g) for g in found]

        return case

    cases = [on_sizes(96, 96, 48, 48, 48), on_sizes(64), on_sizes(32, 32, 64, 32),
             on_sizes(48, 32, 32, 16), on_sizes(8, 8, 8), on_sizes(16, 32, 16, 32, 32)]
    return check("group_views", yours, _runs, cases, {
        "one pass for each view: neighbours of one size can share theirs":
            lambda s: [(i, i + 1) for i in range(len(s))],
        "everything in one pass: different sizes don't fit into one batch":
            lambda s: [(0, len(s))],
        "views that are not neighbours share a pass, so the order of the views is lost": merged,
        "views that are not neighbours were counted together": counted,
        "the sizes were sorted first, so the order of the views is lost": sorted_first,
        "`stop` is one past the last view, as in a slice":
            lambda s: [(a, b - 1) for a, b in _runs(s)],
        "the last group is missing": lambda s: _runs(s)[:-1],
        "the first group is missing": lambda s: _runs(s)[1:],
        "give (start, stop), not (start, length)": lambda s: [(a, b - a) for a, b in _runs(s)],
        "give (start, stop), positions in the list, not (size, length)":
            lambda s: [(s[a], b - a) for a, b in _runs(s)],
        "the views are counted from 0": lambda s: [(a + 1, b + 1) for a, b in _runs(s)],
        "stop comes before start": lambda s: [(b, a) for a, b in _runs(s)],
        "every group starts at 0: the next one starts where the last one stopped":
            lambda s: [(0, b) for _, b in _runs(s)],
        "every group ends with the list: it stops where the size changes":
            lambda s: [(a, len(s)) for a, _ in _runs(s)],
    })


def _from_lengths(lengths: Sequence[int]) -> list[tuple[int, int]]:
    stops = list(itertools.accumulate(lengths))
    return list(zip([0, *stops[:-1]], stops, strict=True))


class _Net(nn.Module):
    """A toy that takes any size and notes the calls: rows (N, ...) -> (N, width)."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.calls = nn.Parameter(random_tensor(4, width)), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        flat = x.flatten(1)
        parts = [flat.mean(1), flat[:, 0], flat[:, -1], flat.std(1)]
        return torch.stack(parts, 1) @ self.weight


def finished_views(backbone: nn.Module, head: nn.Module, views: Sequence[Tensor]) -> Tensor:
    """[(B, C, h_v, w_v)] * V -> (V, B, K); neighbours of one size take one pass."""
    return MultiCropModel(backbone, head)(views)


def forward_views(yours: Callable) -> Callable:
    """`yours(backbone, head, views)`: [(B, C, h_v, w_v)] * V -> (V, B, K), in few passes."""

    finished = finished_views

    def one_by_one(backbone, head, views):
        return torch.stack([head(backbone(view)) for view in views])

    def one_head(backbone, head, views):
        return head(torch.cat([backbone(view) for view in views])).unflatten(0, (len(views), -1))

    def head_by_groups(backbone, head, views):
        parts = [views[a:b] for a, b in _runs([v.shape[-1] for v in views])]
        rows = [head(backbone(torch.cat(part))) for part in parts]
        return torch.cat(rows).unflatten(0, (len(views), -1))

    def head_by_views(backbone, head, views):
        rows = MultiCropModel(backbone, nn.Identity())(views)
        return torch.stack([head(row) for row in rows])

    def rows_of(change):
        return lambda backbone, head, views: change(
            MultiCropModel(backbone, head)(views).flatten(0, 1), len(views))

    def by_size(backbone, head, views):
        return finished(backbone, head, sorted(views, key=lambda v: -v.shape[-1]))

    def small_first(backbone, head, views):
        return finished(backbone, head, sorted(views, key=lambda v: v.shape[-1]))

    cases = [_sent(3, 8, 8, 5, 5, 5), _sent(2, 8, 5, 8), _sent(4, 6, 6, 6, 6), _sent(1, 5, 9)]
    return check("forward_views", yours, finished, cases, {
        "right, but one pass for each view: neighbours of one size fit into one": one_by_one,
        "the head takes all features in one pass, but the backbone one view at a time: neighbours "
        "of one size fit into one pass": one_head,
        "no gradient reaches the backbone: its features are detached":
            lambda b, h, views: finished(lambda x: b(x).detach(), h, views),
        "no gradient comes back: the passes must not be under no_grad or detached":
            lambda b, h, views: finished(b, h, views).detach(),
        "the backbone takes few passes, but the head should take all features in one":
            head_by_groups,
        "the backbone takes few passes, but the head one view at a time: it should take all "
        "features in one": head_by_views,
        "images and views are mixed up: the rows come view by view":
            rows_of(lambda rows, v: rows.unflatten(0, (-1, v)).transpose(0, 1)),
        "the views were sorted by size, and their order is lost": by_size,
        "the views were sorted by size, small ones first, and their order is lost": small_first,
        "these are the features: the head is missing":
            lambda backbone, head, views: finished(backbone, nn.Identity(), views),
        "the last view is missing": lambda b, h, views: finished(b, h, views[:-1]),
        "only the first two views went through": lambda b, h, views: finished(b, h, views[:2]),
    })


def _sent(batch: int, *sides: int) -> Case:
    """Logits of views of these sides, the gradients of both networks, and the passes of backbone
    and head beyond what is needed.
    """

    def case(forward: Any) -> list[Tensor] | None:
        views = [random_tensor(batch, 3, side, side, seed=i) for i, side in enumerate(sides)]
        backbone, head = _Net(6), _Net(7)
        logits = forward(backbone, head, views)
        if logits is None:
            return None
        if not isinstance(logits, Tensor):
            raise Mistake("one tensor is needed, (V, B, K): torch.stack makes it of a list")
        if logits.ndim != 3 or (batch, len(views)) == logits.shape[:2] != (len(views), batch):
            raise Mistake(_shape_hint(tuple(logits.shape), len(views), batch))
        if logits.requires_grad:
            (logits * random_tensor(*logits.shape, seed=9)).sum().backward()
        grads = [torch.zeros(1) if net.weight.grad is None else net.weight.grad
                 for net in (backbone, head)]
        passes = (backbone.calls - len(_runs(sides)), head.calls - 1)
        return [logits, *grads, *(torch.tensor(float(max(0, n))) for n in passes)]

    return case


def _shape_hint(shape: tuple[int, ...], views: int, batch: int) -> str:
    """What is wrong with logits that have not three axes, or have them in another order."""
    if len(shape) == 3:
        return "the axes are (views, images, K), in this order; the rows come view by view"
    if shape[:1] == (views * batch,):
        return (f"the rows still have to go back to their views: the logits have shape {shape}, "
                f"and (V, B, K) is ({views}, {batch}, {shape[-1]})")
    if len(shape) == 2 and shape[0] == batch:
        return "a mean over the views is too early: each view has its own logits"
    return f"the logits have shape {shape}, and three axes are expected: (V, B, K)"
