"""The self-checks of notebook 06: attention. Beside it stand that of the k-NN, in `attention_knn`,
and those of the closing exercises, in `attention_exercises`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from dino_lib.course.attention_exercises import (
    first_component,
    head_entropy,
    mask_to_box,
    patch_row,
    rollout,
)
from dino_lib.course.attention_knn import knn
from dino_lib.course.cases import or_say
from dino_lib.course.check import check, on
from dino_lib.measure import masks

__all__ = ["attention_row", "first_component", "head_entropy", "knn", "mask_to_box", "mass_mask",
           "patch_row", "rollout"]


def attention_row(yours: Callable) -> Callable:
    """`yours(q, k, grid)`: the class token's row over the patches, (B, heads, h, w)."""

    def row(q, k, grid, ask=lambda s: s[:, :, 0], power=0.5, start=None, scale=None):
        n_patches = grid[0] * grid[1]
        scores = q @ k.transpose(-2, -1)  # (B, heads, T, T)
        scores = scores / q.shape[-1] ** power if scale is None else scores * scale(q, grid)
        found = ask(scores)
        start = found.shape[-1] - n_patches if start is None else start
        return found[..., start : start + n_patches].unflatten(-1, tuple(grid))

    def finished(q, k, grid):
        return row(q, k, grid, lambda s: s.softmax(-1)[:, :, 0])

    def wrong(ask=lambda s: s.softmax(-1)[:, :, 0], **changed):
        return lambda q, k, grid: row(q, k, grid, ask, **changed)

    cases = [on(*_queries_keys(2, 3, 1, (3, 5), 8)), on(*_queries_keys(1, 2, 5, (4, 2), 16)),
             on(*_queries_keys(3, 1, 1, (2, 2), 4))]
    return check("attention_row", yours, finished, cases, {
        "the scores have to be divided by the root of d, the length of a query": wrong(power=0),
        "divide by the root of d, not by d": wrong(power=1),
        "the scores have to be multiplied by 1 / root of d, not by the root": wrong(power=-0.5),
        "d is the length of a query in one head, not that of all heads together":
            wrong(scale=lambda q, grid: (q.shape[1] * q.shape[-1]) ** -0.5),
        "d is the length of a query, not the number of tokens":
            wrong(scale=lambda q, grid: q.shape[2] ** -0.5),
        "d is the length of a query, not the number of heads":
            wrong(scale=lambda q, grid: q.shape[1] ** -0.5),
        "these are scores: the softmax is missing": wrong(lambda s: s[:, :, 0]),
        "these are logarithms: take the softmax": wrong(lambda s: s.log_softmax(-1)[:, :, 0]),
        "the maps sum to 1: the prefix tokens take part in the softmax and are cut off after it, "
        "with no division after that":
            lambda q, k, grid: row(q, k[:, :, -grid[0] * grid[1]:], grid,
                                   lambda s: s.softmax(-1)[:, :, 0]),
        "the registers take part in the softmax too: cut them off afterwards":
            lambda q, k, grid: row(
                q, torch.cat([k[:, :, :1], k[:, :, -grid[0] * grid[1]:]], 2), grid,
                lambda s: s.softmax(-1)[:, :, 0]),
        "the map was made to sum to 1; give the entries as they are":
            lambda q, k, grid: (m := finished(q, k, grid)) / m.sum((-2, -1), keepdim=True),
        "the patches come last: registers may stand between CLS and them": wrong(start=1),
        "the patches come last: the map starts with the prefix tokens": wrong(start=0),
        "the softmax goes over the keys, the last axis, not over the queries":
            wrong(lambda s: s.softmax(-2)[:, :, 0]),
        "that is a column, how much each token reads CLS; CLS's own row is asked for":
            wrong(lambda s: s.softmax(-1)[..., 0]),
        "CLS is token 0; that is the row of another token": wrong(lambda s: s.softmax(-1)[:, :, 1]),
        "CLS is token 0; that is the last token's row": wrong(lambda s: s.softmax(-1)[:, :, -1]),
        "that is the mean row of all tokens; CLS is token 0":
            wrong(lambda s: s.softmax(-1).mean(2)),
        "the heads stay apart: give one map a head, not their mean":
            wrong(lambda s: s.softmax(-1)[:, :, 0].mean(1)),
        "queries and keys are swapped: the query of CLS meets all keys":
            lambda q, k, grid: finished(k, q, grid),
        "keep the grid: h rows of w patches":
            lambda q, k, grid: finished(q, k, grid).flatten(2),
        "the grid is (h, w), rows first; the patches come row by row":
            lambda q, k, grid: finished(q, k, grid[::-1]),
        "the patches come row by row, and the grid was filled column by column":
            lambda q, k, grid: finished(q, k, grid[::-1]).mT,
        "the sign of the scores is turned: large products get much":
            wrong(lambda s: (-s).softmax(-1)[:, :, 0]),
        "the softmax goes over the keys, the last axis; over the one query everything is 1":
            lambda q, k, grid: torch.ones(*q.shape[:2], *grid),
        "the softmax goes over the keys alone, not over the heads":
            wrong(lambda s: s.softmax(1)[:, :, 0]),
    })


def _queries_keys(n: int, heads: int, prefix: int, grid: tuple[int, int],
                  d: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    generator = torch.Generator().manual_seed(d)
    shape = (n, heads, prefix + grid[0] * grid[1], d)
    q, k = [1.5 * torch.randn(shape, generator=generator) for _ in range(2)]
    return q, k, grid


def mass_mask(yours: Callable) -> Callable:
    """`yours(maps (..., h, w), keep=0.6)`: bool, the smallest set with that share of the mass."""

    def mask(maps, keep=0.6, inside=lambda larger, mass, all_of, keep: larger < keep * all_of,
             descending=True, back=True):
        flat = maps.flatten(-2)
        mass, order = flat.sort(-1, descending=descending)
        chosen = inside(mass.cumsum(-1) - mass, mass, flat.sum(-1, keepdim=True), keep)
        chosen = torch.zeros_like(chosen).scatter(-1, order, chosen) if back else chosen
        return chosen.view(maps.shape)

    def wrong(inside=lambda larger, mass, all_of, keep: larger < keep * all_of, **changed):
        return lambda maps, keep=0.6: mask(maps, keep, inside, **changed)

    def sorted_inside(maps, keep):
        mass = maps.flatten(-2).sort(-1, descending=True).values
        return mass.cumsum(-1) - mass < keep * mass.sum(-1, keepdim=True)

    def quantile(maps, keep):
        return maps.flatten(-2).quantile(1 - keep, dim=-1)[..., None, None]

    generator = torch.Generator().manual_seed(0)
    maps = [scale * torch.rand(*shape, generator=generator) ** 3 for shape, scale in
            [((2, 3, 4, 5), 0.02), ((3, 6, 3), 4.0), ((5, 4), 0.03)]]
    exact = torch.tensor([[[1.0, 8], [2, 5]], [[4, 1], [2, 1]]])  # 8 of 16 and 4 of 8 are a half
    any_axes = "it stops where another number of axes stands before (h, w): use flatten(-2)"

    def size(piece):  # of equal patches any may go in
        return torch.as_tensor(piece(torch.full((2, 5), 0.1), 0.55)).sum()

    cases = [on(maps[0]), on(maps[0][:1], keep=0.75), or_say(any_axes, on(maps[1], 0.9)),
             or_say(any_axes, on(maps[2], 0.3)), on(exact, 0.5), on(exact, 0.51),
             on(exact[1], 0.75), size]
    return check("mass_mask", yours, masks.mass_mask, cases, {
        "the smallest set is built from the largest patches: sort descending":
            wrong(descending=False),
        "it misses the patch that crosses the share: compare what the larger ones hold before it":
            wrong(lambda larger, mass, all_of, keep: larger + mass < keep * all_of),
        "it misses the patch that crosses the share (a set that holds exactly it stops there)":
            wrong(lambda larger, mass, all_of, keep: larger + mass <= keep * all_of),
        "where the larger ones hold exactly the share, the set is full: < and not <=":
            wrong(lambda larger, mass, all_of, keep: larger <= keep * all_of),
        "the maps don't sum to 1: compare with `keep` times their sum":
            wrong(lambda larger, mass, all_of, keep: larger < keep),
        "the maps don't sum to 1, and the patch that crosses the share is missing":
            wrong(lambda larger, mass, all_of, keep: larger + mass < keep),
        "of equal patches only as many go in as the share needs":
            lambda maps, keep=0.6: maps >= maps.where(
                mask(maps, keep), torch.inf).amin((-2, -1), keepdim=True),
        "`keep` is an argument: 0.6 is only its default":
            lambda maps, keep=0.6: mask(maps, 0.6),
        "that is the order of size: put the answers back into their places (scatter)":
            wrong(back=False),
        "`order` says where each answer came from: put it back with scatter, not gather":
            lambda maps, keep=0.6: sorted_inside(maps, keep).gather(-1, maps.flatten(-2).sort(
                -1, descending=True).indices).view(maps.shape),
        "each map by itself, not all of them in one row: flatten the last two axes, flatten(-2)":
            lambda maps, keep=0.6: mask(maps.reshape(1, -1), keep).view(maps.shape),
        "each map by itself: flatten(-2), for any number of axes may stand before the last two":
            lambda maps, keep=0.6: mask(maps.flatten(1)[:, None], keep).view(maps.shape),
        "a quantile counts patches; the mass has to be added up":
            lambda maps, keep=0.6: maps >= quantile(maps, keep),
        "a quantile counts patches, and the mass has to be added up":
            lambda maps, keep=0.6: maps > quantile(maps, keep),
        "that is the share of the patches, not of the mass":
            wrong(lambda larger, mass, all_of, keep:
                  (torch.arange(mass.shape[-1]) < keep * mass.shape[-1]).expand_as(mass)),
        "that takes patches above a share of the largest; the mass has to be added up":
            wrong(lambda larger, mass, all_of, keep: mass > keep * mass.amax(-1, keepdim=True)),
        "that takes what the mask should leave out": wrong(
            lambda larger, mass, all_of, keep: ~(larger < keep * all_of)),
        "that keeps 1 - keep of the mass": wrong(
            lambda larger, mass, all_of, keep: larger < (1 - keep) * all_of),
        "each map has its own mass: sum over its own patches alone, not over all maps":
            wrong(lambda larger, mass, all_of, keep: larger < keep * all_of.sum()),
        "a mask says which patches, not how much they hold": lambda maps, keep=0.6:
            mask(maps, keep) * maps,
        "the sum goes over the patches, not their mean": wrong(
            lambda larger, mass, all_of, keep: larger < keep * all_of / mass.shape[-1]),
        "the mask has the maps' shape (..., h, w)": lambda maps, keep=0.6:
            mask(maps, keep).flatten(-2),
        "that is twice the share": wrong(
            lambda larger, mass, all_of, keep: larger < 2 * keep * all_of),
        "a patch counts what the larger ones hold, without itself": wrong(
            lambda larger, mass, all_of, keep: larger + 2 * mass < keep * all_of),
        "the sums are added up, not multiplied (cumsum)": wrong(
            lambda larger, mass, all_of, keep: mass.cumprod(-1) - mass < keep * all_of),
        "`scatter` takes the places first and the answers after them": wrong(
            lambda larger, mass, all_of, keep: torch.zeros_like(mass, dtype=torch.bool)),
    }, counted="patches are wrong")
