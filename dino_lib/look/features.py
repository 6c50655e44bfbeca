"""Figures of features: nearest neighbours, and maps of them in the plane."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from torch import Tensor

from dino_lib.look.pictures import to_image
from dino_lib.look.style import PALETTE, bare, grid, label_row

# lines that tell the two apart without colours too
SAME = {"color": "#1f77b4", "linewidth": 2.5}
OTHER = {"color": "#d62728", "linewidth": 2.5, "linestyle": (0, (1.5, 1))}


def neighbour_sheet(queries: Tensor, neighbours: Tensor, same: Tensor,
                    titles: Sequence[str] | None = None) -> Figure:
    """Each query on the left, its nearest neighbours to the right, framed by their class.

    queries uint8 (M, C, H, W); neighbours uint8 (M, k, C, H, W), nearest first; same
    bool (M, k): a solid blue frame where True, else a dashed red one; titles: one a
    query.
    """
    m, k = same.shape
    figure, axes = grid(m, k + 1)
    for i in range(m):
        bare(axes[i, 0])
        if titles:
            label_row(axes[i, 0], titles[i])
        for axis, picture in zip(axes[i], [queries[i], *neighbours[i]], strict=True):
            axis.imshow(to_image(picture), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
        for axis, alike in zip(axes[i, 1:], same[i], strict=True):
            # spines end in square caps, which would fill the gaps between the dashes
            axis.spines[:].set(capstyle="butt", **(SAME if alike else OTHER))
    axes[0, 0].set_title("query", fontsize=9)
    axes[0, 1].set_title("nearest", fontsize=9)
    handles = [Line2D([], [], label="same class", **SAME),
               Line2D([], [], label="another class", **OTHER)]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, handlelength=3,
                  fontsize=8, frameon=False)
    return figure


def cluster_plot(panels: dict[str, Tensor], labels: Tensor,
                 classes: Sequence[str] | None = None) -> Figure:
    """Embeddings, three to a row, coloured by class.

    panels: dict of title -> (N, 2) points; labels (N,) ints; classes: their names for
    the legend.
    """
    figure, axes = _panels(panels, 3, cell=4, legend=1.1 if classes else 0.0)
    labels = np.asarray(labels)
    for axis, points in zip(axes, panels.values(), strict=True):
        points = np.asarray(points)
        for label in np.unique(labels):
            x, y = points[labels == label].T
            axis.scatter(x, y, s=9, color=PALETTE[label % len(PALETTE)], linewidths=0,
                         label=classes[label] if classes else str(label))
    if classes:
        handles, names = axes[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside right center", fontsize=8, frameon=False,
                      markerscale=2)
    return figure


def thumbnail_plot(panels: dict[str, Tensor], images: Tensor, size: float = 0.36) -> Figure:
    """Embeddings, two to a row: small pictures where there is room, else dots.

    panels: dict of title -> (N, 2) points; images uint8 (N, C, H, W); size: a picture's
    longer side in inches.
    """
    figure, axes = _panels(panels, 2, cell=4.8)
    side = figure.get_size_inches()[0] / min(2, len(panels)) - 0.4
    room = size / side  # a picture's side where the panel is a unit square
    for axis, points in zip(axes, panels.values(), strict=True):
        points = np.asarray(points, dtype=float)
        low, high = points.min(0), points.max(0)
        points = (points - low) / np.maximum(high - low, 1e-12)
        axis.scatter(*points.T, s=4, color="#9a9a9a", linewidths=0)
        shown = []
        for i, point in enumerate(points):  # those that overlap none before
            if not shown or (np.abs(points[shown] - point).max(1) > room).all():
                shown.append(i)
                _thumbnail(axis, to_image(images[i]), point, size)
        axis.set_xlim(-0.6 * room, 1 + 0.6 * room)
        axis.set_ylim(-0.6 * room, 1 + 0.6 * room)
    return figure


def _panels(panels: dict, most: int, **options) -> tuple[Figure, list[Axes]]:
    """A bare axis for each panel, with its title; at most so many in a row."""
    columns = min(most, len(panels))
    figure, axes = grid(-(-len(panels) // columns), columns, **options)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    used = list(axes.flat[:len(panels)])
    for axis, title in zip(used, panels, strict=True):
        axis.set_title(title, fontsize=10)
        bare(axis)
    return figure, used


def _thumbnail(axis: Axes, picture: np.ndarray, point: np.ndarray, size: float) -> None:
    drawn = OffsetImage(picture, zoom=72 * size / max(picture.shape[:2]))  # 72 points an inch
    frame = {"linewidth": 0.4, "edgecolor": "#555555"}
    axis.add_artist(AnnotationBbox(drawn, point, pad=0.08, bboxprops=frame))
