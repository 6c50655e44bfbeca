import math

import numpy as np
import pytest
import torch

from dino_lib.backbone import create_backbone
from dino_lib.course import attention as checks
from dino_lib.measure.attention import full_attention
from dino_lib.measure.attention import rollout as library_rollout


def head_entropy(maps):
    p = maps / maps.sum((-2, -1), keepdim=True)
    return torch.special.entr(p).sum((-2, -1)).mean(0)


def mask_to_box(mask, patch_size):
    rows, columns = (torch.nonzero(mask.any(axis))[:, 0] for axis in (1, 0))
    sides = (rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1)
    return tuple(patch_size * int(side) for side in sides)


def patch_row(matrix, row, col, grid, n_prefix):
    return matrix[:, n_prefix + row * grid[1] + col, n_prefix:].reshape(-1, *grid)


def rollout(matrices, halves=True, reverse=False, heads=lambda m: m.mean(0), residual=True):
    total = torch.eye(matrices[0].shape[-1])
    for matrix in matrices[::-1] if reverse else matrices:
        step = heads(matrix) + torch.eye(len(total)) if residual else heads(matrix)
        total = (step / 2 if halves and residual else step) @ total
    return total[0]


RIGHT = {
    "head_entropy": head_entropy,
    "mask_to_box": mask_to_box,
    "patch_row": patch_row,
    "rollout": rollout,
}

WRONG = [
    ("head_entropy", lambda m: torch.special.entr(m).sum((-2, -1)).mean(0), "prefix tokens"),
    ("head_entropy", lambda m: head_entropy(m) / math.log(2), "bits"),
    ("head_entropy", lambda m: -head_entropy(m), "minus sign"),
    ("head_entropy", lambda m: len(m) * head_entropy(m), "not averaged"),
    (
        "head_entropy",
        lambda m: head_entropy((m / m.sum((-2, -1), keepdim=True)).mean(0, keepdim=True)),
        "mean map",
    ),
    ("head_entropy", lambda m: head_entropy(m) / m[0, 0].numel(), "sums over the patches"),
    ("head_entropy", lambda m: head_entropy(m).mean(), "shapes"),
    (
        "head_entropy",
        lambda m: -((p := m / m.sum((-2, -1), keepdim=True)) * p.log()).sum((-2, -1)).mean(0),
        "not finite",
    ),
    (
        "mask_to_box",
        lambda m, p: (*(b := mask_to_box(m, p))[:2], b[2] - p, b[3] - p),
        "one patch short",
    ),
    ("mask_to_box", lambda m, p: mask_to_box(m, 1), "multiply by the patch size"),
    ("mask_to_box", lambda m, p: mask_to_box(m.T, p), "exchanged"),
    (
        "mask_to_box",
        lambda m, p: (*(b := mask_to_box(m, p))[:2], b[0] + b[2], b[1] + b[3]),
        "not bottom and right",
    ),
    (
        "mask_to_box",
        lambda m, p: (*(b := mask_to_box(m, p))[:2], b[0] + b[2] - p, b[1] + b[3] - p),
        "short: give",
    ),
    ("mask_to_box", lambda m, p: mask_to_box(torch.ones_like(m), p), "whole picture"),
    ("patch_row", lambda m, r, c, g, n: m[:, r * g[1] + c, n:].reshape(-1, *g), "moved on by them"),
    ("patch_row", lambda m, r, c, g, n: patch_row(m, 0, r * g[0] + c, g, n), "as the grid is wide"),
    ("patch_row", lambda m, r, c, g, n: patch_row(m, 0, c * g[1] + r, g, n), "exchanged"),
    ("patch_row", lambda m, r, c, g, n: patch_row(m.mT, r, c, g, n), "column of the matrix"),
    (
        "patch_row",
        lambda m, r, c, g, n: m[:, n + r * g[1] + c, : g[0] * g[1]].reshape(-1, *g),
        "begins with prefix",
    ),
    ("patch_row", lambda m, r, c, g, n: m[:, 0, n:].reshape(-1, *g), "CLS token's row"),
    (
        "patch_row",
        lambda m, *a: (x := patch_row(m, *a)) / x.sum((-2, -1), keepdim=True),
        "as they are",
    ),
    ("patch_row", lambda m, *a: patch_row(m, *a).flatten(1), "shapes"),
    ("rollout", lambda m: rollout(m, reverse=True), "wrong order"),
    ("rollout", lambda m: rollout(m, residual=False), "residual connection"),
    ("rollout", lambda m: rollout(m, halves=False), "halved"),
    ("rollout", lambda m: rollout(m, heads=lambda of: of.amax(0)), "maximum"),
    ("rollout", lambda m: rollout(m, heads=lambda of: of.sum(0)), "not summed"),
    ("rollout", lambda m: rollout(m[:-1]), "last block is missing"),
    ("rollout", lambda m: rollout(m, heads=lambda of: of[0]), "first one alone"),
]


def said(capsys, name, function):
    getattr(checks, f"check_{name}")(function)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_accepted(capsys, name):
    assert said(capsys, name, RIGHT[name]) == "right"


@pytest.mark.parametrize("name", RIGHT)
def test_an_empty_stub_is_not_done_yet(capsys, name):
    assert said(capsys, name, lambda *_: None) == "not done yet"


@pytest.mark.parametrize(("name", "function", "word"), WRONG)
def test_a_mistake_is_named(capsys, name, function, word):
    verdict = said(capsys, name, function)
    assert verdict.startswith("wrong: ") and word in verdict


def test_nearly_right_is_close_and_says_how_far_off(capsys):
    assert said(capsys, "head_entropy", lambda m: head_entropy(m) + 1e-3).startswith(
        "close: largest difference"
    )


def test_the_right_rollout_is_the_library_s():
    model = create_backbone(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=12, depth=3, num_heads=3
    )
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    matrices = [full_attention(model, images, layer=layer)[0] for layer in range(3)]
    np.testing.assert_allclose(
        rollout(matrices)[1:].reshape(4, 4), library_rollout(model, images)[0], atol=1e-6
    )
