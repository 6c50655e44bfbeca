"""Pictures are drawn as they are."""

import numpy as np
import pytest
import torch

from dino_lib.look.pictures import show_images, show_views, to_image


def test_to_image_turns_both_kinds_of_tensor_into_pixels():
    image = torch.tensor([[[0, 255]], [[51, 102]], [[0, 0]]], dtype=torch.uint8)
    expected = np.array([[[0, 0.2, 0], [1, 0.4, 0]]], dtype=np.float32)
    np.testing.assert_allclose(to_image(image), expected, atol=1e-6)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.4, 0.5)
    normalised = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[
        :, None, None
    ]
    np.testing.assert_allclose(to_image(normalised, mean, std), expected, atol=1e-6)
    assert (
        to_image(torch.full((1, 2, 2), 3.0)).tolist() == np.ones((2, 2, 3)).tolist()
    )  # grey, clipped


def test_views_stand_side_by_side_at_their_own_sizes(draw):
    views = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.ones(3, 4, 4)]
    figure = show_views(views, (0.5,) * 3, (0.25,) * 3)
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == [
        "global 8 px",
        "global 8 px",
        "local 4 px",
    ]
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert [x.shape for x in shown] == [(8, 8, 3), (8, 8, 3), (4, 4, 3)]
    assert [float(x.mean()) for x in shown] == [0.5, 0.75, 0.75]
    widths = [axis.get_position().width for axis in figure.axes]
    assert widths[0] == pytest.approx(2 * widths[2], rel=0.05)
    titled = show_views(views, (0.5,) * 3, (0.25,) * 3, titles=["a", "b", "c"])
    assert [axis.get_title() for axis in titled.axes] == ["a", "b", "c"]


def test_a_sheet_holds_every_image_its_outline_and_its_title(pictures, draw):
    figure = show_images(
        pictures.images[:7], masks=pictures.masks[:7], titles=list("abcdefg"), columns=4
    )
    draw(figure)
    assert len(figure.axes) == 8
    assert [len(axis.images) for axis in figure.axes] == [1] * 7 + [0]
    assert [len(axis.collections) for axis in figure.axes] == [1] * 7 + [0]
    assert [axis.get_title() for axis in figure.axes] == [*"abcdefg", ""]
    np.testing.assert_allclose(figure.axes[6].images[0].get_array(), to_image(pictures.images[6]))
    assert len(show_images(pictures.images[:2]).axes) == 2
