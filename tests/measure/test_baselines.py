import math

import pytest
import torch

from dino_lib.data.shapes import Shapes
from dino_lib.measure.baselines import (
    BASELINES,
    colour_distance,
    darkness,
    local_contrast,
    red_less_green,
)
from dino_lib.measure.masks import above_blind, patch_masks


def pictures(channels=3, height=12, width=18):
    generator = torch.Generator().manual_seed(0)
    shape = 3, channels, height, width
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def cells(image, grid):
    """The pixels of each cell, as lists of (channel values): rows of columns."""
    _, height, width = image.shape
    high, wide = height // grid[0], width // grid[1]
    for row in range(grid[0]):
        for col in range(grid[1]):
            yield [
                [value / 255 for value in image[:, y, x].tolist()]
                for y in range(row * high, (row + 1) * high)
                for x in range(col * wide, (col + 1) * wide)
            ]


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def naive_contrast(pixels, everywhere):
    channels = list(zip(*pixels, strict=True))
    return math.sqrt(mean(mean((v - mean(one)) ** 2 for v in one) for one in channels))


def naive_distance(pixels, everywhere):
    own = [mean(one) for one in zip(*pixels, strict=True)]
    whole = [mean(one) for one in zip(*everywhere, strict=True)]
    return math.sqrt(mean((a - b) ** 2 for a, b in zip(own, whole, strict=True)))


def naive_darkness(pixels, everywhere):
    return 1 - mean(mean(pixel) for pixel in pixels)


def naive_red(pixels, everywhere):
    return mean((1 + red - green) / 2 for red, green, _ in pixels)


NAIVE = {
    local_contrast: naive_contrast,
    colour_distance: naive_distance,
    darkness: naive_darkness,
    red_less_green: naive_red,
}


@pytest.mark.parametrize("baseline", NAIVE)
@pytest.mark.parametrize("grid", [(4, 6), (2, 3)])
def test_a_baseline_is_its_definition(baseline, grid):
    images = pictures()
    expected = []
    for image in images:
        everywhere = [pixel for pixels in cells(image, grid) for pixel in pixels]
        expected.append([NAIVE[baseline](pixels, everywhere) for pixels in cells(image, grid)])
    expected = torch.tensor(expected).view(3, *grid)
    torch.testing.assert_close(baseline(images, grid), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_they_take_any_channels_and_grid_and_stay_between_0_and_1(channels):
    images = pictures(channels, 25, 17)
    for baseline in BASELINES.values():
        if baseline is red_less_green and channels != 3:
            with pytest.raises(ValueError, match="have no red and green"):
                baseline(images, (4, 3))
            continue
        maps = baseline(images, (4, 3))
        assert maps.shape == (3, 4, 3) and maps.min() >= 0 and maps.max() <= 1


def test_one_colour_has_no_contrast_and_no_distance():
    flat = torch.full((2, 3, 16, 16), 77, dtype=torch.uint8)
    assert local_contrast(flat, (4, 4)).max() < 1e-3 and colour_distance(flat, (4, 4)).max() == 0
    for unfit in (flat.float(), flat[0]):
        with pytest.raises(ValueError, match="expected uint8"):
            local_contrast(unfit, (4, 4))


def test_they_know_something_of_objects():
    """So a head has to know more."""
    shapes = Shapes(100, seed=1)
    contrast = local_contrast(shapes.images, (8, 8))[:, None]
    assert above_blind(contrast, patch_masks(shapes.masks, (8, 8))) > 0.1
