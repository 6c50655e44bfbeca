"""Figures of numbers over a run: training curves and schedules."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dino_lib.look.style import WIDTH, new_figure

# a panel a line: its title, and the history's keys with their names in the legend
PANELS = {
    "loss": {"loss": "loss"},
    "teacher entropy (nats)": {"teacher_entropy": "of one image",
                               "mean_entropy": "of the batch's mean"},
    "feature std (1 = spread out)": {"feature_std": "feature std"},
    "scores of the teacher": {"knn": "20-NN accuracy",
                              "above_blind": "attention above blind",
                              "jaccard": "Jaccard"},
    "learning rate, momentum": {"lr": "lr / its peak", "momentum": "momentum"},
    "weight decay, teacher temperature": {"weight_decay": "weight decay",
                                          "teacher_temp": "temperature"},
}


def training_curves(history: list[dict], out_dim: int) -> Figure:
    """A run: loss against ln K, entropies, feature std, scores and schedules.

    history: a list of dicts as `read_history` gives; out_dim: K.
    """
    figure = new_figure(WIDTH, 5.2)
    axes = figure.subplots(2, 3)
    for axis, (title, curves) in zip(axes.flat, PANELS.items(), strict=True):
        for key, label in curves.items():
            _curve(axis, history, key, label)
        _dress(axis, title)
    for axis in axes.flat[:2]:
        axis.axhline(np.log(out_dim), color="gray", linestyle=":", label=f"ln {out_dim}")
    for axis in axes.flat:
        axis.set_ylim(bottom=min(0, axis.dataLim.y0))  # above blind may be negative
        axis.locator_params(axis="x", nbins=5)  # updates of five digits stay apart
        if axis.lines:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("update", fontsize=9)
    return figure


def show_schedules(schedules: dict[str, np.ndarray]) -> Figure:
    """Arrays (steps,) by name, each in its own small panel."""
    figure = new_figure(WIDTH, 2.2)
    axes = figure.subplots(1, len(schedules), squeeze=False)[0]
    for axis, (name, values) in zip(axes, schedules.items(), strict=True):
        axis.plot(values)
        _dress(axis, name.replace("_", " "))
        axis.set_xlabel("update", fontsize=8)
    return figure


def _curve(axis: Axes, history: list[dict], key: str, label: str) -> None:
    found = [record for record in history if key in record]
    if not found:
        return
    values = np.array([record[key] for record in found])
    if key == "lr":  # the other schedules lie between 0 and 1 as they are
        values = values / (values.max() or 1)
    axis.plot([record["step"] for record in found], values, label=label)


def _dress(axis: Axes, title: str) -> None:
    axis.set_title(title, fontsize=10)
    axis.grid(alpha=0.25)
    axis.tick_params(labelsize=8)
