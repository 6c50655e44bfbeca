"""Every figure draws what it was given: the number and the values of what stands in its axes."""

import numpy as np
import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg

from dino_lib.look import plots
from dino_lib.schedules import cosine_schedule


def draw(figure):
    """The figure's pixels, drawn by Agg as savefig does."""
    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())


def test_to_image_turns_both_kinds_of_tensor_into_pixels():
    image = torch.tensor([[[0, 255]], [[51, 102]], [[0, 0]]], dtype=torch.uint8)
    expected = np.array([[[0, 0.2, 0], [1, 0.4, 0]]], dtype=np.float32)
    np.testing.assert_allclose(plots.to_image(image), expected, atol=1e-6)
    mean, std = (0.5, 0.25, 0.1), (0.2, 0.4, 0.5)
    normalised = (image / 255 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    np.testing.assert_allclose(plots.to_image(normalised, mean, std), expected, atol=1e-6)
    assert plots.to_image(torch.full((1, 2, 2), 3.0)).tolist() == np.ones((2, 2, 3)).tolist()  # grey, clipped


def test_views_stand_side_by_side_at_their_own_sizes():
    views = [torch.zeros(3, 8, 8), torch.ones(3, 8, 8), torch.ones(3, 4, 4)]
    figure = plots.show_views(views, (0.5,) * 3, (0.25,) * 3)
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["global 8 px", "global 8 px", "local 4 px"]
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert [x.shape for x in shown] == [(8, 8, 3), (8, 8, 3), (4, 4, 3)]
    assert [float(x.mean()) for x in shown] == [0.5, 0.75, 0.75]
    widths = [axis.get_position().width for axis in figure.axes]
    assert widths[0] == pytest.approx(2 * widths[2], rel=0.05)
    titled = plots.show_views(views, (0.5,) * 3, (0.25,) * 3, titles=["a", "b", "c"])
    assert [axis.get_title() for axis in titled.axes] == ["a", "b", "c"]


def test_a_sheet_holds_every_image_its_outline_and_its_title(pictures):
    figure = plots.show_images(pictures.images[:7], masks=pictures.masks[:7], titles=list("abcdefg"), columns=4)
    draw(figure)
    assert len(figure.axes) == 8
    assert [len(axis.images) for axis in figure.axes] == [1] * 7 + [0]
    assert [len(axis.collections) for axis in figure.axes] == [1] * 7 + [0]
    assert [axis.get_title() for axis in figure.axes] == [*"abcdefg", ""]
    np.testing.assert_allclose(figure.axes[6].images[0].get_array(), plots.to_image(pictures.images[6]))
    assert len(plots.show_images(pictures.images[:2]).axes) == 2


def test_an_attention_sheet_has_a_row_of_maps_for_each_entry(pictures):
    torch.manual_seed(0)
    rows = {"untrained": torch.rand(3, 4, 4), "trained": torch.rand(3, 4, 4)}
    rows["trained"][1] = 0.5  # a map without a maximum
    figure = plots.attention_sheet(pictures.images[:3], rows, masks=pictures.masks[:3])
    assert draw(figure).std() > 1
    axes = np.array(figure.axes).reshape(3, 3)
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["image", "untrained", "trained"]
    assert [len(axis.collections) for axis in axes[0]] == [1, 1, 1]  # the outlines, in the first row alone
    assert not any(axis.collections for axis in axes[1:].flat)
    for j, maps in enumerate(rows.values(), start=1):
        for i in range(3):
            picture, heat = axes[j, i].images
            np.testing.assert_allclose(heat.get_array(), maps[i])
            gray = 0.6 * plots.to_image(pictures.images[i]).mean(2)
            np.testing.assert_allclose(picture.get_array(), np.stack([gray] * 3, 2), rtol=1e-5)
            assert list(heat.get_extent()) == list(picture.get_extent()) == [0, 24, 24, 0]
    heat, first = axes[1, 0].images[1], rows["untrained"][0]
    assert (heat.get_alpha().min(), heat.get_alpha().max()) == pytest.approx((0.15, 0.75))
    assert heat.get_clim() == pytest.approx((first.min().item(), first.quantile(0.98).item()))


def test_an_attention_sheet_takes_colours_titles_and_images_of_several_sizes(pictures):
    images = [pictures.images[0], pictures.images[1][:, :12]]
    colours = [torch.rand(3, 4, 3), torch.rand(2, 4, 3)]
    figure = plots.attention_sheet(images, {"colours": colours}, titles=["whole", "half"])
    draw(figure)
    axes = np.array(figure.axes).reshape(2, 2)
    assert [axis.get_title() for axis in axes[0]] == ["whole", "half"]
    [drawn] = axes[1, 1].images
    np.testing.assert_allclose(drawn.get_array(), colours[1])
    assert list(drawn.get_extent()) == [0, 24, 12, 0]


def test_a_layer_sheet_has_a_row_a_head_and_a_column_a_layer(pictures):
    maps = torch.rand(3, 2, 4, 4)
    figure = plots.layer_sheet(pictures.images[0], maps)
    draw(figure)
    axes = np.array(figure.axes).reshape(2, 3)
    assert [axis.get_title() for axis in axes[0]] == ["layer 0", "layer 1", "layer 2"]
    assert [axis.get_ylabel() for axis in axes[:, 0]] == ["head 0", "head 1"]
    np.testing.assert_allclose(axes[1, 2].images[1].get_array(), maps[2, 1])


def test_similarities_share_one_scale_and_the_asked_patch_is_outlined(pictures):
    maps = torch.rand(3, 4, 4)
    figure = plots.similarity_sheet(pictures.images[:3], maps, (1, 0, 3), columns=2)
    draw(figure)
    axes = np.array(figure.axes[:8]).reshape(4, 2)
    below = [axes[1, 0], axes[1, 1], axes[3, 0]]
    for axis, of in zip(below, maps, strict=True):
        np.testing.assert_allclose(axis.images[0].get_array(), of)
        assert axis.images[0].get_clim() == pytest.approx((maps.min().item(), maps.max().item()))
    assert [len(axis.patches) for axis in below] == [0, 2, 0]
    assert below[1].patches[0].get_bbox().bounds == (18, 0, 6, 6)  # row 0, column 3 of 4 x 4 on 24 pixels


def test_correspondences_end_in_the_middle_of_their_patches(pictures):
    figure = plots.correspondence(pictures.images[:2], [(4, 4), (2, 2)], [[(0, 0), (3, 1)], [(1, 1), (0, 0)]])
    draw(figure)
    [axis] = figure.axes
    first, second = (line.get_xydata() for line in axis.lines)
    np.testing.assert_allclose(first, [[0.125, 0.125], [1.15 + 0.75, 0.75]])
    np.testing.assert_allclose(second, [[0.375, 0.875], [1.15 + 0.25, 0.25]])


def test_the_heatmap_shows_the_numbers_and_frames_the_largest():
    table = torch.tensor([[0.11, 0.42], [0.33, 0.29], [0.05, 0.07]])
    figure = plots.jaccard_heatmap(table, (0.6, 0.9))
    draw(figure)
    [axis] = figure.axes
    assert [text.get_text() for text in axis.texts] == ["0.11", "0.42", "0.33", "0.29", "0.05", "0.07"]
    assert axis.patches[0].get_xy() == (0.5, -0.5)
    assert [label.get_text() for label in axis.get_xticklabels()] == ["60%", "90%"]


def test_neighbours_are_framed_by_whether_their_class_is_the_query_s(pictures):
    same = torch.tensor([[True, False], [False, True]])
    figure = plots.neighbour_sheet(pictures.images[:2], pictures.images[2:6].unflatten(0, (2, 2)), same, ["a", "b"])
    draw(figure)
    rows = [figure.axes[:3], figure.axes[3:]]
    assert [row[0].get_ylabel() for row in rows] == ["a", "b"]
    for i, row in enumerate(rows):
        for j, axis in enumerate(row[1:]):
            np.testing.assert_allclose(axis.images[0].get_array(), plots.to_image(pictures.images[2 + 2 * i + j]))
            blue = tuple(axis.spines["left"].get_edgecolor()[:3]) == pytest.approx((0.122, 0.467, 0.706), abs=1e-2)
            assert blue == bool(same[i, j])


def test_thumbnails_do_not_overlap_and_the_others_are_dots(pictures):
    points = torch.tensor([[0.0, 0.0], [0.01, 0.0], [1.0, 1.0], [1.0, 0.0]])  # the second has no room
    figure = plots.thumbnail_plot({"t-SNE": points, "PCA": points}, pictures.images[:4])
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["t-SNE", "PCA"]
    for axis in figure.axes:
        boxes = [artist for artist in axis.artists if hasattr(artist, "xybox")]
        assert [tuple(box.xy) for box in boxes] == [(0, 0), (1, 1), (1, 0)]
        assert len(axis.collections[0].get_offsets()) == 4


def test_a_cluster_plot_colours_the_points_of_each_class():
    torch.manual_seed(0)
    labels, points = torch.tensor([0, 0, 2, 1, 2, 2]), torch.randn(6, 2)
    figure = plots.cluster_plot({"before": points, "after": 2 * points}, labels, classes=["bee", "fern", "moth"])
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["before", "after"]
    for axis, scale in zip(figure.axes, (1, 2), strict=True):
        for label, dots in enumerate(axis.collections):
            np.testing.assert_allclose(dots.get_offsets(), scale * points[labels == label])
    assert len({tuple(dots.get_facecolor()[0]) for dots in figure.axes[0].collections}) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["bee", "fern", "moth"]
    assert not plots.cluster_plot({"one": points}, labels).legends


def history(updates=6):
    trained = [{"step": i, "loss": 3 - 0.1 * i, "teacher_entropy": 2.0, "mean_entropy": 2.5, "feature_std": 0.9,
                "lr": 1e-3 * i, "momentum": 0.9, "weight_decay": 0.04, "teacher_temp": 0.05}
               for i in range(1, updates + 1)]
    return [{"step": 0, "knn": 0.3, "jaccard": 0.4}, *trained, {"step": updates, "knn": 0.6, "jaccard": 0.5}]


def test_training_curves_hold_the_history():
    figure = plots.training_curves(history(), out_dim=64)
    draw(figure)
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    steps = np.arange(1, 7)
    for label, x, y in [("loss", steps, 3 - 0.1 * steps), ("of one image", steps, np.full(6, 2.0)),
                        ("of the batch's mean", steps, np.full(6, 2.5)), ("feature std", steps, np.full(6, 0.9)),
                        ("20-NN accuracy", [0, 6], [0.3, 0.6]), ("Jaccard, best head", [0, 6], [0.4, 0.5]),
                        ("lr / its peak", steps, steps / 6), ("momentum", steps, np.full(6, 0.9)),
                        ("weight decay", steps, np.full(6, 0.04)), ("temperature", steps, np.full(6, 0.05))]:
        np.testing.assert_allclose(lines[label].get_xdata(), x, err_msg=label)
        np.testing.assert_allclose(lines[label].get_ydata(), y, err_msg=label)
    for axis in figure.axes[:2]:
        ceiling = [line for line in axis.lines if line.get_label() == "ln 64"]
        assert ceiling[0].get_ydata()[0] == pytest.approx(np.log(64))


def test_training_curves_draw_what_there_is():
    assert draw(plots.training_curves([], out_dim=64)).std() > 1
    scores = [len(axis.lines) for axis in plots.training_curves(history()[:1], out_dim=64).axes]
    assert scores == [1, 1, 0, 2, 0, 0]  # the two ceilings, accuracy and Jaccard
    assert [len(axis.lines) for axis in plots.training_curves(history()[1:-1], out_dim=64).axes] == [2, 3, 1, 0, 2, 2]


def test_schedules_have_a_panel_each():
    schedules = {"lr": cosine_schedule(1.0, 0.0, 20), "teacher_temp": np.full(20, 0.04)}
    figure = plots.show_schedules(schedules)
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["lr", "teacher temp"]
    for axis, values in zip(figure.axes, schedules.values(), strict=True):
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), values)


def test_ten_classes_have_colours_of_their_own():
    assert len(set(plots.PALETTE)) == 10
