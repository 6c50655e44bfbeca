"""The self-checks of notebook 06: attention."""

import math
from collections.abc import Callable

import torch

from dino_lib.course.verdict import each, verdict


def check_head_entropy(your_function: Callable) -> None:
    """your_function(maps (B, heads, h, w)) -> (heads,): the entropy in nats of a head's maps,
    averaged over B.
    """
    maps = 0.9 * torch.randn(5, 3, 4, 6, generator=torch.Generator().manual_seed(0)).flatten(
        2
    ).softmax(-1)
    maps[0, 0, 0] = 0  # 0 ln 0 counts 0
    p = maps / maps.sum(-1, keepdim=True)
    entropy = torch.special.entr(p).sum(-1)  # (B, heads)
    verdict(
        "head_entropy",
        your_function(maps.unflatten(-1, (4, 6))),
        entropy.mean(0),
        {
            "the maps don't sum to 1 yet: divide out what the prefix tokens "
            "hold": torch.special.entr(maps).sum(-1).mean(0),
            "these are bits: take the natural logarithm": entropy.mean(0) / math.log(2),
            "an entropy has a minus sign in front": -entropy.mean(0),
            "the entropies are summed over the pictures, not averaged": entropy.sum(0),
            "that is the entropy of the mean map: average the entropies, not the "
            "maps": torch.special.entr(p.mean(0)).sum(-1),
            "an entropy sums over the patches, not averages": entropy.mean(0) / 24,
            "that is one number a picture: average over the pictures, keep the heads": entropy.mean(
                1
            ),
            "each map sums to 1 by itself, not all the heads of a picture "
            "together": torch.special.entr(maps / maps.sum((1, 2), keepdim=True)).sum(-1).mean(0),
        },
    )


def check_mask_to_box(your_function: Callable) -> None:
    """your_function(mask bool (h, w), patch_size) -> (top, left, height, width) in pixels."""
    cases = []
    for seed, patch in enumerate((8, 6, 14)):
        mask = torch.zeros(7, 9, dtype=torch.bool)
        mask[seed + 1 : 5, 2 : 8 - seed] = (
            torch.rand(4 - seed, 6 - seed, generator=torch.Generator().manual_seed(seed)) > 0.6
        )
        cases.append((mask, patch))

    def ends(mask, axis):
        found = mask.any(1 - axis).nonzero()[:, 0]
        return found[0].item(), found[-1].item() + 1

    def boxes(box):
        return [
            [value * patch for value in box(*ends(mask, 0), *ends(mask, 1))]
            for mask, patch in cases
        ]

    right = boxes(lambda top, bottom, left, end: (top, left, bottom - top, end - left))
    verdict(
        "mask_to_box",
        each(your_function, cases),
        right,
        {
            "height and width are one patch short: the last patch belongs to the box": boxes(
                lambda top, bottom, left, end: (top, left, bottom - top - 1, end - left - 1)
            ),
            "these are patches: multiply by the patch size": [
                [value // patch for value in box]
                for box, (_, patch) in zip(right, cases, strict=True)
            ],
            "rows and columns look exchanged: top and height go with rows": boxes(
                lambda top, bottom, left, end: (left, top, end - left, bottom - top)
            ),
            "these look like corners: give height and width, not bottom and right": boxes(
                lambda top, bottom, left, end: (top, left, bottom, end)
            ),
            "these look like corners, one patch short: give height and width": boxes(
                lambda top, bottom, left, end: (top, left, bottom - 1, end - 1)
            ),
            "that is the whole picture: only the True patches count": [
                [0, 0, 7 * patch, 9 * patch] for _, patch in cases
            ],
        },
    )


def check_patch_row(your_function: Callable) -> None:
    """your_function(matrix (heads, T, T), row, col, grid, n_prefix) -> (heads, h, w)."""
    cases = []
    for seed, (grid, n_prefix, row, col) in enumerate([((3, 5), 1, 1, 2), ((4, 3), 5, 2, 1)]):
        tokens = n_prefix + grid[0] * grid[1]
        matrix = torch.randn(
            2, tokens, tokens, generator=torch.Generator().manual_seed(seed)
        ).softmax(-1)
        cases.append((matrix, row, col, grid, n_prefix))

    def rows(take):
        return [take(*case) for case in cases]

    verdict(
        "patch_row",
        each(your_function, cases),
        rows(lambda m, r, c, g, n: m[:, n + r * g[1] + c, n:].unflatten(-1, g)),
        {
            "the prefix tokens come first, so the patch's number must be moved on by them": rows(
                lambda m, r, c, g, n: m[:, r * g[1] + c, n:].unflatten(-1, g)
            ),
            "a row of the grid has as many patches as the grid is wide": rows(
                lambda m, r, c, g, n: m[:, n + r * g[0] + c, n:].unflatten(-1, g)
            ),
            "row and col look exchanged": rows(
                lambda m, r, c, g, n: m[:, n + c * g[1] + r, n:].unflatten(-1, g)
            ),
            "that is a column of the matrix, who attends to the patch; its row says what it "
            "attends to": rows(lambda m, r, c, g, n: m[:, n:, n + r * g[1] + c].unflatten(-1, g)),
            "the map still begins with prefix tokens: leave them out": rows(
                lambda m, r, c, g, n: m[:, n + r * g[1] + c, : g[0] * g[1]].unflatten(-1, g)
            ),
            "only CLS is skipped; registers come before the patches too": rows(
                lambda m, r, c, g, n: m[:, n + r * g[1] + c, 1 : 1 + g[0] * g[1]].unflatten(-1, g)
            ),
            "that is the CLS token's row": rows(lambda m, r, c, g, n: m[:, 0, n:].unflatten(-1, g)),
            "the map was made to sum to 1; give the entries as they are": rows(
                lambda m, r, c, g, n: (
                    m[:, n + r * g[1] + c, n:] / m[:, n + r * g[1] + c, n:].sum(-1, keepdim=True)
                ).unflatten(-1, g)
            ),
        },
    )


def check_rollout(your_function: Callable) -> None:
    """your_function([matrix (heads, T, T) of block 1, 2, ...]) -> (T,): the CLS token's row of the
    rollout.
    """
    generator = torch.Generator().manual_seed(0)
    matrices = [(2 * torch.randn(3, 6, 6, generator=generator)).softmax(-1) for _ in range(3)]
    identity = torch.eye(6)

    def product(kept=0.5, heads=lambda m: m.mean(0), last_first=False, which=3):
        total = identity
        for matrix in matrices[:which]:
            step = (1 - kept) * heads(matrix) + kept * identity
            total = total @ step if last_first else step @ total
        return total

    right = product()[0]
    summed = torch.linalg.multi_dot([m.mean(0) + identity for m in reversed(matrices)])[0]
    verdict(
        "rollout",
        your_function([matrix.clone() for matrix in matrices]),
        right,
        {
            "the blocks are multiplied in the wrong order: the last one stands on the "
            "left": product(last_first=True)[0],
            "the residual connection is missing: add the identity to each mean": product(kept=0.0)[
                0
            ],
            "each sum of mean and identity must be halved, or the rows don't sum to 1": summed,
            "that is a column of the product; row 0 belongs to the CLS token": product()[:, 0],
            "that is the whole product: give its row 0": product(),
            "the heads are averaged; that is their maximum": product(heads=lambda m: m.amax(0))[0],
            "the heads are averaged; that is the first one alone": product(heads=lambda m: m[0])[0],
            "the heads are averaged, not summed": product(heads=lambda m: m.sum(0))[0],
            "the last block is missing": product(which=2)[0],
        },
    )
