"""Every figure of the course; nothing is computed here. Each function returns a matplotlib Figure."""

import numpy as np
import torch
from matplotlib.figure import Figure

CMAP = "inferno"
PALETTE = ["#d62728", "#ff7f0e", "#e6b800", "#2ca02c", "#17becf", "#1f77b4", "#5e3c99", "#e377c2", "#8c564b", "#7f7f7f"]


WIDTH = 9.6  # inches at most: a notebook shrinks what is wider than its column, and the text with it


def _grid(rows, columns, *, cell=1.15, legend=0.0, **kwargs):
    cell = min(cell, (WIDTH - legend) / columns)
    figure = Figure(figsize=(columns * cell + legend, rows * cell), layout="constrained", dpi=110)
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs)
    return figure, axes


def to_image(x, mean=None, std=None):
    """uint8 or (with mean and std) normalised float (C, H, W) -> (H, W, C) in [0, 1] for imshow."""
    x = x.float() / 255 if x.dtype == torch.uint8 else x.detach().float().cpu()
    if mean is not None:
        x = x * torch.tensor(std)[:, None, None] + torch.tensor(mean)[:, None, None]
    x = x.clamp(0, 1).permute(1, 2, 0)
    return x.expand(-1, -1, 3).numpy()


def _bare(axis):
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def _row_label(axis, text):
    axis.set_ylabel(text, rotation=0, ha="right", va="center", fontsize=9, labelpad=6)


def show_views(views, mean, std, titles=None):
    """The views of one image side by side, each at its own size: list of (C, h, w) normalised -> Figure."""
    sizes = [v.shape[-1] for v in views]
    figure = Figure(figsize=(10, 10 * max(sizes) / sum(sizes) + 0.35), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(views), squeeze=False, width_ratios=sizes)[0]
    for i, (axis, view) in enumerate(zip(axes, views, strict=True)):
        axis.imshow(to_image(view, mean, std), interpolation="nearest")
        axis.set_title(titles[i] if titles else f"{'global' if i < 2 else 'local'} {view.shape[-1]} px", fontsize=8)
        _bare(axis)
    return figure


def show_images(images, *, masks=None, titles=None, columns=10):
    """A sheet of uint8 images (N, C, H, W), with the outline of bool masks (N, H, W) where given."""
    n = len(images)
    columns = min(columns, n)
    figure, axes = _grid(-(-n // columns), columns)
    for i, axis in enumerate(axes.flat):
        _bare(axis)
        if i < n:
            axis.imshow(to_image(images[i]), interpolation="nearest")
            if masks is not None:
                axis.contour(masks[i].numpy(), [0.5], colors="white", linewidths=1)
            if titles:
                axis.set_title(titles[i], fontsize=8)
    return figure


def attention_sheet(images, rows, *, masks=None):
    """Images above, one row of maps below for each entry of `rows`.

    images uint8 (N, C, H, W), or a list of (C, H, W) of any sizes; rows: dict of label -> maps (N, h, w), or a list,
    drawn over a dimmed picture, each map on its own scale; masks bool (N, H, W) are outlined in the first row.
    """
    n = len(images)
    figure, axes = _grid(1 + len(rows), n)
    for i in range(n):
        picture, size = to_image(images[i]), images[i].shape[-2:]
        axes[0, i].imshow(picture, interpolation="nearest")
        if masks is not None:
            axes[0, i].contour(masks[i].numpy(), [0.5], colors="white", linewidths=1)
        for j, maps in enumerate(rows.values(), start=1):
            heat = maps[i].detach().float().cpu()
            axes[j, i].imshow(0.35 * picture, extent=(0, size[1], size[0], 0))
            alpha = ((heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-12)).numpy()
            axes[j, i].imshow(heat.numpy(), cmap=CMAP, extent=(0, size[1], size[0], 0), interpolation="bilinear",
                              alpha=0.25 + 0.75 * alpha)
    for axis in axes.flat:
        _bare(axis)
    for j, label in enumerate(["image", *rows]):
        _row_label(axes[j, 0], label)
    return figure


def cluster_plot(panels, labels, classes=None):
    """Embeddings, three to a row, coloured by class.

    panels: dict of title -> (N, 2) points; labels (N,) ints; classes: their names for the legend.
    """
    columns = min(3, len(panels))
    figure, axes = _grid(-(-len(panels) // columns), columns, cell=4, legend=1.1 if classes else 0.0)
    labels = np.asarray(labels)
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=False):
        points = np.asarray(points)
        for label in np.unique(labels):
            chosen = labels == label
            axis.scatter(*points[chosen].T, s=9, color=PALETTE[label % len(PALETTE)], linewidths=0,
                         label=classes[label] if classes else str(label))
        axis.set_title(title, fontsize=10)
        _bare(axis)
    if classes:
        figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right center", fontsize=8, frameon=False,
                      markerscale=2)
    return figure


def _curve(axis, history, key, **kwargs):
    points = [(r["step"], r[key]) for r in history if key in r]
    if points:
        axis.plot(*np.array(points).T, **kwargs)


def training_curves(history, out_dim):
    """What a run looks like: loss against ln K, the teacher's entropies, feature std, scores and schedules.

    history: a list of dicts as `read_history` gives; out_dim: K.
    """
    figure = Figure(figsize=(WIDTH, 5.2), layout="constrained", dpi=110)
    axes = figure.subplots(2, 3)
    ceiling = np.log(out_dim)
    panels = [("loss", [("loss", "loss", 1)], ceiling), (
        "teacher entropy (nats)", [("teacher_entropy", "of one image", 1), ("mean_entropy", "of the batch's mean", 1)],
        ceiling), ("feature std (1 = spread out)", [("feature_std", "feature std", 1)], None), (
        "scores of the teacher", [("knn", "20-NN accuracy", 1), ("jaccard", "Jaccard, best head", 1)], None), (
        "learning rate, momentum", [("lr", "lr / its peak", None), ("momentum", "momentum", 1)], None), (
        "weight decay, teacher temperature", [("weight_decay", "weight decay", 1), ("teacher_temp", "temperature", 1)],
        None)]
    for axis, (title, curves, line) in zip(axes.flat, panels, strict=True):
        for key, label, scale in curves:
            values = [r[key] for r in history if key in r]
            scale = scale or max(values, default=1)
            _curve(axis, [{"step": r["step"], key: r[key] / scale} for r in history if key in r], key, label=label)
        if line is not None:
            axis.axhline(line, color="gray", linestyle=":", label=f"ln {out_dim}")
        axis.set_title(title, fontsize=10)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=8, frameon=False)
    for axis in axes[1]:
        axis.set_xlabel("update", fontsize=9)
    return figure


def show_schedules(schedules):
    """Dict of name -> (steps,) arrays, each in its own small panel."""
    figure = Figure(figsize=(WIDTH, 2.2), layout="constrained", dpi=110)
    axes = figure.subplots(1, len(schedules), squeeze=False)[0]
    for axis, (name, values) in zip(axes, schedules.items(), strict=True):
        axis.plot(values)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.set_xlabel("update", fontsize=8)
        axis.grid(alpha=0.25)
        axis.tick_params(labelsize=8)
    return figure
