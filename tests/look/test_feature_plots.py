"""Neighbours and maps of features hold what they were given."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from dino_lib.look.features import (
    OTHER,
    SAME,
    cluster_plot,
    neighbour_sheet,
    thumbnail_plot,
)
from dino_lib.look.pictures import to_image
from dino_lib.look.style import PALETTE, caption


def test_neighbours_are_framed_by_whether_their_class_is_the_query_s(pictures, draw):
    same = torch.tensor([[True, False], [False, True]])
    figure = neighbour_sheet(
        pictures.images[:2], pictures.images[2:6].unflatten(0, (2, 2)), same, ["a", "b"]
    )
    draw(figure)
    rows = [figure.axes[:3], figure.axes[3:]]
    assert [row[0].get_ylabel() for row in rows] == ["a", "b"]
    for i, row in enumerate(rows):
        for j, axis in enumerate(row[1:]):
            np.testing.assert_allclose(
                axis.images[0].get_array(), to_image(pictures.images[2 + 2 * i + j])
            )
            blue = tuple(axis.spines["left"].get_edgecolor()[:3]) == pytest.approx(
                (0.122, 0.467, 0.706), abs=1e-2
            )
            assert blue == bool(same[i, j])


def test_the_frames_are_dashed_as_the_legend_says(draw):
    """Of another class' frame about half is drawn, as in the legend; of its own class' all."""
    black = torch.zeros(2, 3, 24, 24, dtype=torch.uint8)
    figure = neighbour_sheet(black[:1], black[None], torch.tensor([[True, False]]))
    pixels = draw(figure).astype(int)
    for axis, color, least, most in [
        (figure.axes[1], SAME["color"], 0.95, 1.0),
        (figure.axes[2], OTHER["color"], 0.3, 0.8),
    ]:
        box = axis.get_window_extent()
        rows = slice(len(pixels) - int(box.y1) + 5, len(pixels) - int(box.y0) - 5)
        edge = pixels[rows, round(box.x0), :3]
        near = np.abs(edge - 255 * np.array(to_rgb(color))).max(1) < 40
        assert least <= near.mean() <= most


def test_class_names_of_any_kind_can_be_drawn(draw):
    """Folders' names: bytes that are no UTF-8, and signs that matplotlib takes for formulas."""
    points, labels = torch.randn(4, 2), torch.tensor([0, 1, 2, 3])
    names = [caption(name) for name in ("caf\udce9", "$100$", "$x_{$", "a_b")]
    figure = cluster_plot({"all": points}, labels, names)
    draw(figure)
    assert len(figure.legends[0].get_texts()) == 4


def test_thumbnails_do_not_overlap_and_the_others_are_dots(pictures, draw):
    points = torch.tensor(
        [[0.0, 0.0], [0.01, 0.0], [1.0, 1.0], [1.0, 0.0]]
    )  # the second has no room
    figure = thumbnail_plot({"t-SNE": points, "PCA": points}, pictures.images[:4])
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["t-SNE", "PCA"]
    for axis in figure.axes:
        boxes = [artist for artist in axis.artists if hasattr(artist, "xybox")]
        assert [tuple(box.xy) for box in boxes] == [(0, 0), (1, 1), (1, 0)]
        assert len(axis.collections[0].get_offsets()) == 4


def test_a_cluster_plot_colours_the_points_of_each_class(draw):
    torch.manual_seed(0)
    labels, points = torch.tensor([0, 0, 2, 1, 2, 2]), torch.randn(6, 2)
    figure = cluster_plot(
        {"before": points, "after": 2 * points}, labels, classes=["bee", "fern", "moth"]
    )
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, scale in zip(figure.axes, (1, 2), strict=True):
        for label, dots in enumerate(axis.collections):
            np.testing.assert_allclose(dots.get_offsets(), scale * points[labels == label])
    assert len({tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bee", "fern", "moth"]
    assert not cluster_plot({"one": points}, labels).legends


def test_ten_classes_have_colours_of_their_own():
    assert len(set(PALETTE)) == 10
