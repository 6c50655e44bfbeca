"""A run's curves hold its history."""

import numpy as np
import pytest

from dino_lib.look.curves import show_schedules, training_curves
from dino_lib.schedules import cosine_schedule


def history(updates=6):
    trained = [
        {
            "step": i,
            "loss": 3 - 0.1 * i,
            "teacher_entropy": 2.0,
            "mean_entropy": 2.5,
            "feature_std": 0.9,
            "lr": 1e-3 * i,
            "momentum": 0.9,
            "weight_decay": 0.04,
            "teacher_temp": 0.05,
        }
        for i in range(1, updates + 1)
    ]
    return [
        {"step": 0, "knn": 0.3, "jaccard": 0.4, "above_blind": -0.1},
        *trained,
        {"step": updates, "knn": 0.6, "jaccard": 0.5, "above_blind": 0.8},
    ]


def test_training_curves_hold_the_history(draw):
    figure = training_curves(history(), out_dim=64)
    draw(figure)
    lines = {line.get_label(): line for axis in figure.axes for line in axis.lines}
    steps = np.arange(1, 7)
    for label, x, y in [
        ("loss", steps, 3 - 0.1 * steps),
        ("of one image", steps, np.full(6, 2.0)),
        ("of the batch's mean", steps, np.full(6, 2.5)),
        ("feature std", steps, np.full(6, 0.9)),
        ("20-NN accuracy", [0, 6], [0.3, 0.6]),
        ("attention above blind", [0, 6], [-0.1, 0.8]),
        ("Jaccard", [0, 6], [0.4, 0.5]),
        ("lr / its peak", steps, steps / 6),
        ("momentum", steps, np.full(6, 0.9)),
        ("weight decay", steps, np.full(6, 0.04)),
        ("temperature", steps, np.full(6, 0.05)),
    ]:
        np.testing.assert_allclose(lines[label].get_xdata(), x, err_msg=label)
        np.testing.assert_allclose(lines[label].get_ydata(), y, err_msg=label)
    assert figure.axes[3].get_ylim()[0] <= -0.1 < figure.axes[0].get_ylim()[0] == 0
    for axis in figure.axes[:2]:
        ceiling = [line for line in axis.lines if line.get_label() == "ln 64"]
        assert ceiling[0].get_ydata()[0] == pytest.approx(np.log(64))


def test_training_curves_draw_what_there_is(draw):
    assert draw(training_curves([], out_dim=64)).std() > 1
    scores = [len(axis.lines) for axis in training_curves(history()[:1], out_dim=64).axes]
    assert scores == [1, 1, 0, 3, 0, 0]  # the two ceilings, and the scores
    assert [len(axis.lines) for axis in training_curves(history()[1:-1], out_dim=64).axes] == [
        2,
        3,
        1,
        0,
        2,
        2,
    ]


def test_schedules_have_a_panel_each(draw):
    schedules = {"lr": cosine_schedule(1.0, 0.0, 20), "teacher_temp": np.full(20, 0.04)}
    figure = show_schedules(schedules)
    draw(figure)
    assert [axis.get_title() for axis in figure.axes] == ["lr", "teacher temp"]
    for axis, values in zip(figure.axes, schedules.values(), strict=True):
        np.testing.assert_array_equal(axis.lines[0].get_ydata(), values)
