"""What all figures share: their width, their colours, a grid of axes and bare axes."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dino_lib.data.say import printable

WIDTH = 9.6  # inches at most: a notebook shrinks wider ones, and their text
CMAP = "inferno"
PALETTE = ["#d62728", "#ff7f0e", "#e6b800", "#2ca02c", "#17becf",
           "#1f77b4", "#5e3c99", "#e377c2", "#8c564b", "#7f7f7f"]


def new_figure(width: float, height: float) -> Figure:
    """A figure of so many inches that finds room for its titles and labels by itself."""
    return Figure(figsize=(width, height), layout="constrained", dpi=110)


def grid(rows: int, columns: int, *, cell: float = 1.15,
         legend: float = 0.0) -> tuple[Figure, np.ndarray]:
    """A figure with (rows, columns) axes of `cell` inches, less if WIDTH is too little.

    `legend` inches are left for what stands beside them.
    """
    cell = min(cell, (WIDTH - legend) / columns)
    figure = new_figure(columns * cell + legend, rows * cell)
    return figure, figure.subplots(rows, columns, squeeze=False)


def bare(axis: Axes) -> None:
    """No ticks and no frame: for pictures."""
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)


def label_row(axis: Axes, text: str) -> None:
    """The name of a row, to the left of its first picture."""
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)


def caption(name: str) -> str:
    """A name as text for a figure, where dollar signs would stand around a formula."""
    return printable(name).replace("$", r"\$")
