"""Every map is drawn where it lies, on a scale that lets maps be compared."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from dino_lib.look.maps import (
    attention_sheet,
    brightness,
    heads_of,
)
from dino_lib.look.pictures import to_image


def attention(*shape):
    """Random maps (*shape, h, w) that sum to 0.8 each: the rest is the CLS token's."""
    maps = torch.rand(*shape, generator=torch.Generator().manual_seed(0)) ** 3
    return 0.8 * maps / maps.sum((-2, -1), keepdim=True)


def test_an_attention_sheet_has_a_row_of_maps_for_each_entry(pictures, draw):
    rows = {"untrained": attention(3, 4, 4), "trained": attention(3, 4, 4).flip(0)}
    figure = attention_sheet(pictures.images[:3], rows, masks=pictures.masks[:3])
    assert draw(figure).std() > 1
    axes = np.array(figure.axes).reshape(3, 3)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["image", "untrained", "trained"]
    assert [len(axis.collections) for axis in axes.flat] == [1] * 9  # the outlines, on maps too
    for j, maps in enumerate(rows.values(), start=1):
        for i in range(3):
            picture, heat = axes[j, i].images
            np.testing.assert_allclose(heat.get_array(), maps[i] / maps[i].mean(), rtol=1e-5)
            gray = 0.6 * to_image(pictures.images[i]).mean(2)
            np.testing.assert_allclose(picture.get_array(), np.stack([gray] * 3, 2), rtol=1e-5)
            assert list(heat.get_extent()) == list(picture.get_extent()) == [0, 24, 24, 0]
    heats = [axis.images[1] for axis in axes[1]]
    assert len({heat.get_clim() for heat in heats}) == 1  # one scale a row
    assert max(heat.get_alpha().max() for heat in heats) == pytest.approx(0.75)


def test_maps_that_are_all_but_even_look_even(pictures):
    """5 % around an even share are no blobs; an object that draws the attention is one."""
    even = torch.full((2, 8, 8), 0.9 / 64) * (0.95 + 0.1 * torch.rand(2, 8, 8))
    blob = even.clone()
    blob[:, 2:5, 2:5] *= 20
    figure = attention_sheet(pictures.images[:2], {"even": even, "blob": blob / blob.sum() * 2})
    flat, peaked = (figure.axes[i].images[1] for i in (2, 4))
    shown = flat.norm(flat.get_array())
    assert np.ptp(shown) < 0.05 and shown.max() < 0.4
    shown = peaked.norm(peaked.get_array())
    assert shown[2:5, 2:5].min() > 0.6 and np.delete(shown, slice(2, 5), 0).max() < 0.1


def test_maps_of_several_grids_share_a_scale():
    small, large = attention(2, 4, 4), attention(1, 8, 8)
    drawn, (low, high) = brightness([*small, *large])
    assert all(values.mean() == pytest.approx(1) for values in drawn) and low == 0
    values = torch.cat([values.flatten() for values in drawn])
    assert high == pytest.approx(max(3, values.quantile(0.98).item()))


def test_other_maps_are_drawn_as_they_are():
    cosines = torch.linspace(-0.5, 1, 32).view(2, 4, 4)
    drawn, scale = brightness(cosines)
    assert torch.equal(torch.stack(drawn), cosines)
    assert scale == pytest.approx((-0.5, cosines.quantile(0.98).item()))
    _, (low, high) = brightness(torch.ones(1, 4, 4))  # nothing to tell apart is no division by 0
    assert low < high


def test_an_attention_sheet_takes_colours_titles_and_images_of_several_sizes(pictures, draw):
    images = [pictures.images[0], pictures.images[1][:, :12]]
    colours = [torch.rand(3, 4, 3), torch.rand(2, 4, 3)]
    figure = attention_sheet(images, {"colours": colours}, titles=["whole", "half"])
    draw(figure)
    axes = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["whole", "half"]
    [drawn] = axes[1, 1].images
    np.testing.assert_allclose(drawn.get_array(), colours[1])
    assert list(drawn.get_extent()) == [0, 24, 12, 0]


@pytest.mark.parametrize("heads", [1, 3, 8, 13])
def test_heads_of_one_picture_are_large_and_stand_in_colours(pictures, draw, heads):
    maps = attention(heads, 3, 6)
    image = pictures.images[0][:, :12]  # 24 x 12 pixels
    figure = heads_of(image, maps)
    pixels = draw(figure)
    assert pixels.shape[1] > 1000
    whole, together, *each = figure.axes
    np.testing.assert_allclose(whole.images[0].get_array(), to_image(image), atol=1e-6)
    assert together.images[0].get_array().shape == (12, 24, 3)
    assert len(each) == heads
    for axis, values in zip(each, maps, strict=True):
        drawn = axis.images[1].get_array()
        np.testing.assert_allclose(drawn, values / values.mean(), rtol=1e-5)
        assert axis.get_window_extent().width > 200
    assert each[-1].get_title() == f"■ head {heads - 1}"


def test_a_place_has_the_colour_of_the_head_that_looks_at_it():
    maps = torch.full((2, 4, 4), 0.01)
    maps[0, :, 0] = 0.2  # the left, in red
    maps[1, :, 3] = 0.2  # the right, in orange
    image = torch.full((3, 40, 40), 128, dtype=torch.uint8)
    figure = heads_of(image, maps)
    colours = figure.axes[1].images[0].get_array()
    for column, axis in [(2, figure.axes[2]), (37, figure.axes[3])]:
        expected = to_rgb(axis.title.get_color())
        np.testing.assert_allclose(
            colours[20, column] / colours[20, column].max(),
            np.array(expected) / max(expected),
            atol=0.02,
        )
    middle = colours[20, 20]
    assert np.ptp(middle) < 0.02 and middle.max() < 0.3  # no head looks: dark and grey


@pytest.mark.parametrize("sides", [(8, 800), (800, 8)])
def test_heads_of_a_strip_make_no_figure_of_metres(sides, draw):
    figure = heads_of(torch.zeros(3, *sides, dtype=torch.uint8), attention(4, 2, 2))
    assert max(draw(figure).shape) < 3000
