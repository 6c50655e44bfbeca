"""Principal components of patches' tokens."""

import numpy as np
import pytest
import torch

from dino_lib.measure.components import principal_components
from dino_lib.measure.masks import away_from_border


def naive(tokens, k):
    """Eigenvectors of the covariance, each with the sign that leaves the border lower."""
    n, h, w, d = tokens.shape
    rows = tokens.double().reshape(-1, d).numpy()
    rows = rows - rows.mean(0)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    maps = (rows @ vectors[:, ::-1][:, :k]).reshape(n, h, w, k)
    for i in range(k):
        edge = [
            maps[:, y, x, i].mean()
            for y in range(h)
            for x in range(w)
            if y in (0, h - 1) or x in (0, w - 1)
        ]
        inner = maps[:, 1:-1, 1:-1, i].mean()
        if inner < np.mean(edge):
            maps[..., i] *= -1
    return torch.from_numpy(maps).movedim(-1, 1).float()


@pytest.mark.parametrize("k", [1, 3, 5])
def test_against_the_covariance(k):
    tokens = torch.randn(4, 6, 7, 5, generator=torch.Generator().manual_seed(0))
    tokens = tokens * torch.tensor([5.0, 1.0, 3.0, 0.5, 2.0]) + 7
    maps = principal_components(tokens, k)
    assert maps.shape == (4, k, 6, 7)
    torch.testing.assert_close(maps, naive(tokens, k), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("grid", [(8, 8), (16, 24)])
def test_what_lies_inside_is_high(sign, grid):
    """A direction that only the inside has, whichever way it points, and noise."""
    generator = torch.Generator().manual_seed(1)
    direction = sign * torch.randn(32, generator=generator)
    inside = away_from_border(grid)
    tokens = 0.1 * torch.randn(5, *grid, 32, generator=generator) + inside[..., None] * direction
    maps = principal_components(tokens)[:, 0]
    assert (maps[:, inside].amin() > maps[:, ~inside].amax()).item()


def test_it_is_taken_over_all_pictures():
    """Two pictures, each of one kind of patch: what differs is the picture."""
    tokens = torch.zeros(2, 4, 4, 3)
    tokens[1] += torch.tensor([0.0, 2.0, 0.0])
    maps = principal_components(tokens)[:, 0]
    assert maps[0].std() == maps[1].std() == 0
    assert (maps[0] - maps[1]).abs().mean().item() == pytest.approx(2)


def test_a_grid_that_is_all_border():
    assert principal_components(torch.randn(3, 2, 1, 4)).shape == (3, 1, 2, 1)


@pytest.mark.parametrize(
    ("shape", "k", "words"),
    [
        ((4, 16, 8), 1, r"tokens \(4, 16, 8\): expected \(N, h, w, D\)"),
        ((2, 4, 4, 8), 0, "k=0: expected 1 to 8"),
        ((2, 4, 4, 8), 9, "k=9: expected 1 to 8"),
        ((1, 2, 2, 8), 5, "k=5: expected 1 to 4"),
    ],
)
def test_what_it_refuses(shape, k, words):
    with pytest.raises(ValueError, match=words):
        principal_components(torch.randn(shape), k)


def test_gradients_and_half_precision_are_left_behind():
    tokens = torch.randn(2, 4, 4, 8, requires_grad=True)
    whole = principal_components(tokens)
    assert not whole.requires_grad
    half = principal_components(tokens.half())
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)
