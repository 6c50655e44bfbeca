"""The self-checks of notebook 06's closing exercises: entropy, boxes, a patch's row, rollout, the
first principal component.
"""

import functools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course.check import check, on


def head_entropy(yours: Callable) -> Callable:
    """`yours(maps (B, heads, h, w))`: each head's entropy in nats, averaged over B: (heads,)."""

    def entropies(maps):
        p = maps / maps.sum((-2, -1), keepdim=True)
        return torch.special.entr(p).sum((-2, -1))  # (B, heads)

    def finished(maps):
        return entropies(maps).mean(0)

    generator = torch.Generator().manual_seed(0)
    cases = []
    for shape, share in [((5, 3, 4, 6), 0.9), ((2, 6, 3, 3), 0.5), ((1, 2, 2, 5), 1.0)]:
        maps = share * torch.randn(shape, generator=generator).mul(2).flatten(2).softmax(-1)
        maps = maps.view(shape)
        maps[0, 0, 0, 0] = 0  # 0 ln 0 counts 0
        cases.append(on(maps))
    return check("head_entropy", yours, finished, cases, {
        "the maps don't sum to 1 yet: divide by what the patches hold together":
            lambda m: torch.special.entr(m).sum((-2, -1)).mean(0),
        "these are bits: take the natural logarithm": lambda m: finished(m) / math.log(2),
        "the entropies are summed over the pictures, not averaged": lambda m: entropies(m).sum(0),
        "that is the entropy of the mean map: average the entropies, not the maps":
            lambda m: torch.special.entr((m / m.sum((-2, -1), keepdim=True)).mean(0)).sum((-2, -1)),
        "that is the entropy of the mean of the maps as they are: make each sum to 1, then average "
        "the entropies": lambda m: finished(m.mean(0, keepdim=True)),
        "an entropy sums over the patches, it doesn't average":
            lambda m: finished(m) / m[0, 0].numel(),
        "that is one number a picture: average over the pictures, keep the heads":
            lambda m: entropies(m).mean(1),
        "that is one number a picture and head: average over the pictures": entropies,
        "that is one number for all heads: keep them apart": lambda m: entropies(m).mean(),
        "each map sums to 1 by itself, not all the heads of a picture together":
            lambda m: torch.special.entr(m / m.sum((1, 2, 3), keepdim=True)).sum((-2, -1)).mean(0),
        "each map sums to 1 over its patches, not each patch over the heads":
            lambda m: torch.special.entr(F.normalize(m, p=1, dim=1)).sum((-2, -1)).mean(0),
        "a map sums to 1 over both of its axes":
            lambda m: torch.special.entr(F.normalize(m, p=1, dim=-1)).sum((-2, -1)).mean(0),
        "the softmax is already taken: divide each map by its sum":
            lambda m: finished(m.flatten(2).softmax(-1)[..., None]),
        "divide by the sum over the patches, not by their mean": lambda m: torch.special.entr(
            m / m.mean((-2, -1), keepdim=True)).sum((-2, -1)).mean(0),
        "divide by the sum, not by the largest": lambda m: torch.special.entr(
            m / m.amax((-2, -1), keepdim=True)).sum((-2, -1)).mean(0),
        "divide by the sum, don't multiply with it": lambda m: torch.special.entr(
            m * m.sum((-2, -1), keepdim=True)).sum((-2, -1)).mean(0),
        "the mean of the entropies, not their exponential": lambda m: finished(m).exp(),
    }, used=False)


def mask_to_box(yours: Callable) -> Callable:
    """`yours(mask bool (h, w), patch_size)`: (top, left, height, width) in pixels."""

    def ends(mask, axis):
        found = mask.any(1 - axis).nonzero()[:, 0]
        return found[0].item(), found[-1].item() + 1

    def box(of: Callable, turned: bool = False) -> Callable:
        def piece(mask: Tensor, patch_size: int) -> Sequence[float]:
            mask = torch.as_tensor(mask)
            mask = mask.T if turned else mask
            return [value * patch_size for value in of(*ends(mask, 0), *ends(mask, 1))]

        return piece

    finished = box(lambda top, bottom, left, end: (top, left, bottom - top, end - left))

    def reading(first: bool, last: bool) -> Callable:
        """Left, or right, of the first, or last, True in reading order."""

        def piece(mask, patch_size):
            places = mask.nonzero()
            (top, bottom), (left, end) = ends(mask, 0), ends(mask, 1)
            left = places[0, 1].item() if first else left
            end = places[-1, 1].item() + 1 if last else end
            return [value * patch_size for value in (top, left, bottom - top, end - left)]

        return piece

    drawings = ["..... ..#.. .#... ..##. .....", "....... ..##... .####.. ...#...", "#.. ... ..#",
                "......... ....#.... ......... .#.....#. .........", ".... ...# .... ....",
                "#### #### ####", "...#. ..#.. .#..."]
    masks_ = [torch.tensor([[c == "#" for c in row] for row in text.split()]) for text in drawings]
    sizes = (8, 6, 14, 16, 8, 4, 7)
    cases = [on(mask, patch) for mask, patch in zip(masks_, sizes, strict=True)]
    return check("mask_to_box", yours, finished, cases, {
        "left is the smallest column of all True patches, not that of the first one in reading "
        "order": reading(True, False),
        "the right end is the largest column of all, not that of the last True in reading order":
            reading(False, True),
        "left and right come from all True patches, not from the first and the last in reading "
        "order": reading(True, True),
        "height and width are one patch short: the last patch belongs to the box": box(
            lambda top, bottom, left, end: (top, left, bottom - top - 1, end - left - 1)),
        "the height is one patch short: the last row belongs to the box": box(
            lambda top, bottom, left, end: (top, left, bottom - top - 1, end - left)),
        "the width is one patch short: the last column belongs to the box": box(
            lambda top, bottom, left, end: (top, left, bottom - top, end - left - 1)),
        "height and width are one patch too large": box(
            lambda top, bottom, left, end: (top, left, bottom - top + 1, end - left + 1)),
        "these are patches: multiply by the patch size": lambda mask, patch: finished(mask, 1),
        "top and left are patches still: multiply them by the patch size too": lambda mask, patch:
            [*finished(mask, 1)[:2], *finished(mask, patch)[2:]],
        "height and width are patches still: multiply them by the patch size too":
            lambda mask, patch: [*finished(mask, patch)[:2], *finished(mask, 1)[2:]],
        "the last patch is patch_size pixels wide, not one": lambda mask, patch:
            [*finished(mask, patch)[:2], *(v - patch + 1 for v in finished(mask, patch)[2:])],
        "rows and columns are exchanged: top and height go with rows": box(
            lambda top, bottom, left, end: (top, left, bottom - top, end - left), turned=True),
        "the order is (top, left, height, width)": box(
            lambda top, bottom, left, end: (top, left, end - left, bottom - top)),
        "the order is (top, left, height, width), not (left, top, ...)": box(
            lambda top, bottom, left, end: (left, top, bottom - top, end - left)),
        "these are corners: give height and width, not bottom and right": box(
            lambda top, bottom, left, end: (top, left, bottom, end)),
        "these are corners, one patch short: give height and width": box(
            lambda top, bottom, left, end: (top, left, bottom - 1, end - 1)),
        "that is the whole picture: only the True patches count": lambda mask, patch:
            [0, 0, patch * mask.shape[0], patch * mask.shape[1]],
        "height and width are negative: the last less the first": box(
            lambda top, bottom, left, end: (top, left, top - bottom + 2, left - end + 2)),
        "the first and the last are added: the last less the first": box(
            lambda top, bottom, left, end: (top, left, bottom + top, end + left)),
        "the height is the last row less the first, and one": box(
            lambda top, bottom, left, end: (top, left, bottom + top, end - left)),
        "the width is the last column less the first, and one": box(
            lambda top, bottom, left, end: (top, left, bottom - top, end + left)),
        "the height is two patches short: the last row belongs to the box": box(
            lambda top, bottom, left, end: (top, left, bottom - top - 2, end - left)),
        "the width is two patches short: the last column belongs to the box": box(
            lambda top, bottom, left, end: (top, left, bottom - top, end - left - 2)),
        "the height is one patch too large": box(
            lambda top, bottom, left, end: (top, left, bottom - top + 1, end - left)),
        "the width is one patch too large": box(
            lambda top, bottom, left, end: (top, left, bottom - top, end - left + 1)),
        "top is the first row with a True, not the last": box(
            lambda top, bottom, left, end: (bottom - 1, left, 1, end - left)),
        "left is the first column with a True, not the last": box(
            lambda top, bottom, left, end: (top, end - 1, bottom - top, 1)),
        "the columns come from mask.any(0), the rows from mask.any(1)": lambda mask, patch: [
            patch * v for v in (ends(mask, 0)[0], ends(mask, 0)[0],
                                ends(mask, 0)[1] - ends(mask, 0)[0],
                                ends(mask, 0)[1] - ends(mask, 0)[0])],
        "left belongs to the first True in reading order, and must be the smallest column of all":
            lambda mask, patch: [patch * v for v in (
                ends(mask, 0)[0], mask.nonzero()[0, 1].item(), ends(mask, 0)[1] - ends(mask, 0)[0],
                ends(mask, 1)[1] - ends(mask, 1)[0])],
        "top is the first row with a True, not the second": box(
            lambda top, bottom, left, end: (top + 1, left, bottom - top - 1, end - left)),
    }, used=False)


def patch_row(yours: Callable) -> Callable:
    """`yours(matrix (heads, T, T), row, col, grid, n_prefix)`: (heads, h, w)."""

    def finished(m, r, c, g, n):
        return m[:, n + r * g[1] + c, n:].unflatten(-1, tuple(g))

    def token(number: Callable) -> Callable:
        return lambda m, r, c, g, n: m[:, number(r, c, g, n), n:].unflatten(-1, tuple(g))

    cases = []
    for seed, (grid, prefix, row, col) in enumerate([((3, 5), 1, 1, 2), ((4, 3), 5, 2, 1),
                                                     ((2, 4), 1, 0, 1), ((3, 2), 2, 1, 0)]):
        tokens = prefix + grid[0] * grid[1]
        matrix = torch.randn(2, tokens, tokens, generator=torch.Generator().manual_seed(seed))
        cases.append(on(matrix.softmax(-1), row, col, grid, prefix))
    return check("patch_row", yours, finished, cases, {
        "the prefix tokens come first, so the patch's number moves on by them":
            token(lambda r, c, g, n: r * g[1] + c),
        "registers come before the patches too: the number moves on by n_prefix, not by 1":
            token(lambda r, c, g, n: 1 + r * g[1] + c),
        "the patch's number moves on by n_prefix, not back": token(lambda r, c, g, n:
                                                                   r * g[1] + c - n),
        "a row of the grid has as many patches as the grid is wide: grid[1]":
            token(lambda r, c, g, n: n + r * g[0] + c),
        "row and col are exchanged": token(lambda r, c, g, n: n + c * g[1] + r),
        "row and col are exchanged; the patches come row by row":
            token(lambda r, c, g, n: n + c * g[0] + r),
        "a whole row of the grid stands before each next one: row * grid[1]":
            token(lambda r, c, g, n: n + r + c),
        "the rows before it count on, not back": token(lambda r, c, g, n: n - r * g[1] + c),
        "col counts from the left": token(lambda r, c, g, n: n + r * g[1] - c),
        "that is the next patch: rows, columns and tokens count from 0":
            token(lambda r, c, g, n: n + r * g[1] + c + 1),
        "that is a column of the matrix, who reads the patch; its row says what it reads":
            lambda m, r, c, g, n: finished(m.mT, r, c, g, n),
        "the map begins with prefix tokens: leave them out": lambda m, r, c, g, n:
            m[:, n + r * g[1] + c, : g[0] * g[1]].unflatten(-1, tuple(g)),
        "only CLS is skipped; registers come before the patches too": lambda m, r, c, g, n:
            m[:, n + r * g[1] + c, 1 : 1 + g[0] * g[1]].unflatten(-1, tuple(g)),
        "that is the CLS token's row": lambda m, r, c, g, n: m[:, 0, n:].unflatten(-1, tuple(g)),
        "the map was made to sum to 1; give the entries as they are": lambda m, r, c, g, n:
            F.normalize(m[:, n + r * g[1] + c, n:], p=1, dim=-1).unflatten(-1, tuple(g)),
        "the entries are shares already: no softmax": lambda m, r, c, g, n:
            m[:, n + r * g[1] + c, n:].softmax(-1).unflatten(-1, tuple(g)),
        "the heads stay apart": lambda m, r, c, g, n: finished(m, r, c, g, n).mean(0),
        "give the map's grid (heads, h, w), not one long row": lambda *a: finished(*a).flatten(1),
        "the patches come row by row, and the grid was filled column by column":
            lambda m, r, c, g, n: m[:, n + r * g[1] + c, n:].unflatten(-1, tuple(g)[::-1]).mT,
        "the grid is (h, w): rows first": lambda m, r, c, g, n:
            m[:, n + r * g[1] + c, n:].unflatten(-1, tuple(g)[::-1]),
        "the matrix holds the softmax already": lambda m, r, c, g, n:
            m.softmax(-1)[:, n + r * g[1] + c, n:].unflatten(-1, tuple(g)),
        "the prefix tokens stand still in the row: leave them out":
            lambda m, r, c, g, n: m[:, n + r * g[1] + c],
    }, used=False)


def rollout(yours: Callable) -> Callable:
    """`yours([matrix (heads, T, T) of block 1, 2, ...])`: the class token's row (T,)."""

    def product(matrices, kept=0.5, mixed=0.5, heads=lambda m: m.mean(0), last_first=False):
        identity = torch.eye(matrices[0].shape[-1])
        total = identity
        for matrix in matrices:
            step = mixed * heads(matrix) + kept * identity
            total = total @ step if last_first else step @ total
        return total

    def row(**changed):
        return lambda matrices: product(list(matrices), **changed)[0]

    def finished(matrices):
        return product(list(matrices))[0]

    generator = torch.Generator().manual_seed(0)
    cases = [on([(2 * torch.randn(heads, t, t, generator=generator)).softmax(-1)
                 for _ in range(depth)])
             for heads, t, depth in [(3, 6, 3), (2, 5, 2), (4, 7, 4)]]
    return check("rollout", yours, finished, cases, {
        "the blocks are multiplied in the wrong order: the last one stands on the left":
            row(last_first=True),
        "the residual connection is missing: add the identity to each mean":
            row(kept=0.0, mixed=1.0),
        "each sum of mean and identity is halved, or the rows don't sum to 1":
            row(kept=1.0, mixed=1.0),
        "the identity is halved too": row(kept=1.0),
        "the mean over the heads is halved too": row(mixed=1.0),
        "the identity is added, not taken away": row(kept=-0.5),
        "that is a column of the product; row 0 belongs to CLS":
            lambda m: product(m)[:, 0],
        "that is the whole product: give its row 0": product,
        "row 0 belongs to CLS; that is row 1": lambda m: product(m)[1],
        "row 0 belongs to CLS; that is the last one": lambda m: product(m)[-1],
        "the identity is added to each mean before they are multiplied": lambda m: (
            functools.reduce(lambda total, a: (a.mean(0) @ total + torch.eye(len(total))) / 2,
                             m, torch.eye(len(m[0][0])))[0]),
        "the heads are averaged; that is their maximum": row(heads=lambda m: m.amax(0)),
        "the heads are averaged; that is the first one alone": row(heads=lambda m: m[0]),
        "the heads are averaged, not summed": row(heads=lambda m: m.sum(0)),
        "the last block is missing": lambda m: product(m[:-1])[0],
        "the first block is missing": lambda m: product(m[1:])[0],
        "that is the last block alone: multiply through all": lambda m: product(m[-1:])[0],
        "that is the first block alone: multiply through all": lambda m: product(m[:1])[0],
        "the blocks are multiplied (@), not added": lambda m:
            sum((a.mean(0) + torch.eye(len(a[0]))) / 2 for a in m)[0],
        "matrices are multiplied by @; * multiplies entry by entry": lambda m:
            math.prod([(a.mean(0) + torch.eye(len(a[0]))) / 2 for a in m[1:]],
                      start=(m[0].mean(0) + torch.eye(len(m[0][0]))) / 2)[0],
        "matrices are multiplied by @; * leaves only the identity's diagonal": lambda m:
            torch.eye(len(m[0][0]))[0] * math.prod((a.mean(0)[0] + 1) / 2 for a in m),
        "that is the last block's own row: multiply through all": lambda m: m[-1].mean(0)[0],
        "the sum needs brackets: (mean + identity) / 2, and then @": lambda m:
            _no_brackets(m, lambda mean, one, total: mean + one / 2 @ total)[0],
        "the sum needs brackets: the whole of (mean + identity) / 2 meets what is there": lambda m:
            _no_brackets(m, lambda mean, one, total: mean / 2 + one / 2 @ total)[0],
        "the average goes over the heads, axis 0": row(heads=lambda m: m.mean(1)),
        "the start is the identity, and each block is halved once":
            lambda m: product(m)[0] / 2,
        "the sum of mean and identity is halved, not doubled": row(kept=2.0, mixed=2.0),
        "that is the identity alone: multiply the blocks": lambda m: torch.eye(m[0].shape[-1])[0],
        "each sum of mean and identity is divided by 2, not by 3": row(kept=1 / 3, mixed=1 / 3),
        "each sum of mean and identity is halved once, not twice": row(kept=0.25, mixed=0.25),
        "add the identity (torch.eye), not 1 to every entry": lambda m: _ones(m),
        "it counts the first block twice": lambda m: product([m[0], *m])[0],
    }, used=False)


def first_component(yours: Callable) -> Callable:
    """`yours(tokens (N, h, w, D))`: the first principal component over all patches, (N, h, w),
    negative in the last patch of the last picture.
    """

    def corner(along):
        return -along.flatten()[-1].sign() * along

    def component(tokens, centre=lambda rows: rows - rows.mean(0), number=0, along=None,
                  sign=corner):
        rows = centre(tokens.flatten(0, 2))
        u, s, directions = torch.linalg.svd(rows, full_matrices=False)
        found = rows @ directions[number] if along is None else along(rows, u, s, directions)
        return sign(found).view(tokens.shape[:3])

    def finished(tokens):
        return component(tokens)

    def wrong(**changed):
        return lambda tokens: component(tokens, **changed)

    def each_alone(tokens, turned=True):
        rows = tokens.flatten(1, 2) - tokens.mean((1, 2))[:, None]
        directions = torch.linalg.svd(rows, full_matrices=False)[2][:, 0]  # (N, D)
        along = torch.einsum("npd,nd->np", rows, directions)
        return (-along[:, -1:].sign() * along if turned else along).view(tokens.shape[:3])

    generator = torch.Generator().manual_seed(0)
    cases = []
    for shape in 2 * [(3, 4, 5, 6), (2, 3, 3, 4), (4, 2, 6, 3)]:  # an SVD gives both signs in six
        # spread that halves from one axis to the next, axes that are turned, and a mean
        spread = 8.0 * 0.5 ** torch.arange(shape[-1])
        turned = torch.linalg.qr(torch.randn(shape[-1], shape[-1], generator=generator))[0]
        of_pictures = 3 * torch.randn(shape[0], 1, 1, shape[-1], generator=generator)
        tokens = torch.randn(shape, generator=generator) * spread + of_pictures
        cases.append(on(tokens @ turned + 5 * torch.randn(shape[-1], generator=generator)))
    return check("first_component", yours, finished, cases, {
        "the mean of all patches has to be taken away first": wrong(centre=lambda rows: rows),
        "the mean is taken over the patches, not over a token's numbers":
            wrong(centre=lambda rows: rows - rows.mean(1, keepdim=True)),
        "one mean for all numbers is too coarse: each of the D has its own":
            wrong(centre=lambda rows: rows - rows.mean()),
        "the mean is taken away, not added": wrong(centre=lambda rows: rows + rows.mean(0)),
        "the mean, not the sum, is taken away": wrong(centre=lambda rows: rows - rows.sum(0)),
        "the mean of all pictures' patches, not of each picture": lambda tokens: component(
            tokens - tokens.mean((1, 2), keepdim=True)),
        "the direction is that of all pictures together, not of each": each_alone,
        "the direction is that of all pictures together, and each picture has one here":
            lambda tokens: corner(each_alone(tokens, turned=False)),
        "the tokens keep their spread: don't divide by the deviation":
            wrong(centre=lambda rows: (rows - rows.mean(0)) / rows.std(0)),
        "the tokens keep their lengths: don't normalise them": wrong(
            centre=lambda rows: F.normalize(rows - rows.mean(0), dim=-1)),
        "the sign is the other one: the last patch of the last picture is negative":
            lambda tokens: -component(tokens),
        "the sign is free in an SVD: choose that with which the last patch is negative":
            wrong(sign=lambda along: along),
        "the sign is free in an SVD, and turning it always helps no more: ask the last patch":
            wrong(sign=lambda along: -along),
        "each patch has a sign of its own: turn all of them together":
            wrong(sign=lambda along: -along.abs()),
        "each patch has a sign of its own: turn all of them, don't take their sizes":
            wrong(sign=lambda along: along.abs()),
        "the sign is that of one patch, not of each": wrong(sign=lambda along:
                                                            -along.sign() * along),
        "turn by the sign alone, not by the value": wrong(
            sign=lambda along: -along.flatten()[-1] * along),
        "turning is multiplying by the sign": wrong(
            sign=lambda along: along - along.flatten()[-1].sign()),
        "the last patch decides, not the first": wrong(
            sign=lambda along: -along.flatten()[0].sign() * along),
        "the last patch decides, not the second": wrong(
            sign=lambda along: -along.flatten()[1].sign() * along),
        "the last patch decides, not the one before it": wrong(
            sign=lambda along: -along.flatten()[-2].sign() * along),
        "that is the second direction: they count from 0": wrong(number=1),
        "that is the last direction, in which they differ least": wrong(number=-1),
        "directions are the rows of Vᵀ, not its columns":
            wrong(along=lambda rows, u, s, v: rows @ v[:, 0]),
        "that is U, whose columns have length 1: times the singular value":
            wrong(along=lambda rows, u, s, v: u[:, 0]),
        "project the centred tokens, not the tokens as they are": lambda tokens: corner(
            tokens.flatten(0, 2) @ torch.linalg.svd(
                tokens.flatten(0, 2) - tokens.mean((0, 1, 2)), full_matrices=False)[2][0]
        ).view(tokens.shape[:3]),
        "that is squared: how far, not how far squared":
            wrong(along=lambda rows, u, s, v: (rows @ v[0]).square()),
        "give the grid (N, h, w), not one long row": lambda tokens: finished(tokens).flatten(),
    }, tolerance=1e-4, used=False)


def _no_brackets(matrices: Sequence[Tensor], step: Callable) -> Tensor:
    identity = total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = step(matrix.mean(0), identity, total)
    return total


def _ones(matrices: Sequence[Tensor]) -> Tensor:
    total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices:
        total = (matrix.mean(0) + 1) / 2 @ total
    return total[0]
