"""Every figure of the course; nothing is computed here. Each function returns a matplotlib Figure."""

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

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


def _overlay(axis, picture, heat):
    """A map (h, w) over a grey picture, which shows through everywhere: most where the map is low.

    The scale ends at the 98th percentile, or one bright patch would darken all the others.
    """
    heat = heat.detach().float().cpu()
    low, high = heat.min().item(), heat.quantile(0.98).item()
    strength = ((heat - low) / max(high - low, 1e-12)).clamp(0, 1).numpy()
    extent = (0, picture.shape[1], picture.shape[0], 0)
    axis.imshow(0.6 * picture.mean(2, keepdims=True).repeat(3, 2), extent=extent)
    axis.imshow(heat.numpy(), cmap=CMAP, vmin=low, vmax=max(high, low + 1e-12), extent=extent,
                interpolation="bilinear", alpha=0.15 + 0.6 * strength)


def attention_sheet(images, rows, *, masks=None, titles=None):
    """Images above, one row of maps below for each entry of `rows`.

    images uint8 (N, C, H, W), or a list of (C, H, W) of any sizes, such as one image at several resolutions; rows:
    dict of label -> maps (N, h, w), or a list of (h, w), drawn over a grey picture, each on its own scale, or colours
    (N, h, w, 3) in [0, 1], drawn as they are; masks bool (N, H, W) are outlined in the first row; titles: one a column.
    """
    n = len(images)
    figure, axes = _grid(1 + len(rows), n)
    for i in range(n):
        picture = to_image(images[i])
        axes[0, i].imshow(picture, interpolation="nearest")
        if masks is not None:
            axes[0, i].contour(masks[i].numpy(), [0.5], colors="white", linewidths=1)
        if titles:
            axes[0, i].set_title(titles[i], fontsize=8)
        for axis, maps in zip(axes[1:, i], rows.values(), strict=True):
            if maps[i].ndim == 3:
                axis.imshow(maps[i].cpu().numpy(), interpolation="nearest",
                            extent=(0, picture.shape[1], picture.shape[0], 0))
            else:
                _overlay(axis, picture, maps[i])
    for axis in axes.flat:
        _bare(axis)
    for j, label in enumerate(["image", *rows]):
        _row_label(axes[j, 0], label)
    return figure


def layer_sheet(image, maps):
    """One image's maps through the network: a row for each head, a column for each layer.

    image uint8 (C, H, W); maps (layers, heads, h, w), each on its own scale.
    """
    layers, heads = maps.shape[:2]
    figure, axes = _grid(heads, layers)
    picture = to_image(image)
    for head in range(heads):
        _row_label(axes[head, 0], f"head {head}")
        for layer in range(layers):
            _overlay(axes[head, layer], picture, maps[layer, head])
            _bare(axes[head, layer])
    for layer, axis in enumerate(axes[0]):
        axis.set_title(f"layer {layer}", fontsize=8)
    return figure


def _box(axis, picture, grid, place, **kwargs):
    """The outline of patch (row, col) of a grid (h, w) laid over the picture."""
    height, width = picture.shape[0] / grid[0], picture.shape[1] / grid[1]
    axis.add_patch(Rectangle((place[1] * width, place[0] * height), width, height, fill=False, **kwargs))


def similarity_sheet(images, maps, place, columns=6):
    """How much every patch resembles one of them, on one scale for all images.

    images uint8 (N, C, H, W); maps (N, h, w), cosines as `patches.patch_similarity` gives; place: (image, row, col) of
    the patch that was asked for, outlined.
    """
    n = len(images)
    columns = min(columns, n)
    figure, axes = _grid(2 * -(-n // columns), columns, cell=1.4, legend=0.7)
    for axis in axes.flat:
        _bare(axis)
    low, high = (v.item() for v in (maps.min(), maps.max()))
    for i in range(n):
        above, below = axes[2 * (i // columns) : 2 * (i // columns) + 2, i % columns]
        picture = to_image(images[i])
        above.imshow(picture, interpolation="nearest")
        drawn = below.imshow(maps[i].cpu().numpy(), cmap="viridis", vmin=low, vmax=high, interpolation="nearest",
                             extent=(0, picture.shape[1], picture.shape[0], 0))
        if i == place[0]:
            for axis in (above, below):
                _box(axis, picture, maps.shape[1:], place[1:], edgecolor="black", linewidth=3.5)
                _box(axis, picture, maps.shape[1:], place[1:], edgecolor="white", linewidth=1.5)
    figure.colorbar(drawn, ax=axes, label="cosine", shrink=0.6).ax.tick_params(labelsize=8)
    return figure


def correspondence(images, grids, places):
    """Two images side by side, a line from each patch of the first to its match in the second.

    images: two uint8 (C, H, W); grids: their (h, w) in patches; places: two int (n, 2), (row, col) as
    `patches.best_matches` and `mutual_matches` give them.
    """
    pictures = [to_image(image) for image in images]
    widths = [picture.shape[1] / picture.shape[0] for picture in pictures]  # both are drawn with height 1
    gap, offsets = 0.15, (0, widths[0] + 0.15)
    total = sum(widths) + gap
    width = min(WIDTH, 3.4 * total)
    figure = Figure(figsize=(width, width / total), layout="constrained", dpi=110)
    axis = figure.subplots()
    ends = []
    for picture, offset, grid, where in zip(pictures, offsets, grids, places, strict=True):
        wide = picture.shape[1] / picture.shape[0]
        axis.imshow(picture, extent=(offset, offset + wide, 1, 0), interpolation="nearest")
        rows, cols = np.asarray(where).reshape(-1, 2).T
        ends.append(np.stack([offset + (cols + 0.5) / grid[1] * wide, (rows + 0.5) / grid[0]], 1))
    for i, (start, end) in enumerate(zip(*ends, strict=True)):
        axis.plot(*np.stack([start, end]).T, color=PALETTE[i % len(PALETTE)], linewidth=1.4, marker="o", markersize=5,
                  markeredgecolor="white", path_effects=[Stroke(linewidth=2.8, foreground="white"), Normal()])
    axis.set_xlim(0, total)
    axis.set_ylim(1, 0)
    _bare(axis)
    return figure


def jaccard_heatmap(table, keeps):
    """The table of `patches.jaccard_table` (heads, len(keeps)) with its numbers; the largest stands in a frame."""
    heads, n = table.shape
    figure = Figure(figsize=(min(WIDTH, 1.2 + 0.75 * n), 0.8 + 0.32 * heads), layout="constrained", dpi=110)
    axis = figure.subplots()
    drawn = axis.imshow(table.numpy(), cmap="viridis", aspect="auto")
    best = divmod(table.argmax().item(), n)
    for head in range(heads):
        for j in range(n):
            dark = drawn.norm(table[head, j].item()) < 0.6
            axis.text(j, head, f"{table[head, j]:.2f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")
    axis.add_patch(Rectangle((best[1] - 0.5, best[0] - 0.5), 1, 1, fill=False, edgecolor=PALETTE[0], linewidth=2.5))
    axis.set_xticks(range(n), [f"{keep:.0%}" for keep in keeps], fontsize=8)
    axis.set_yticks(range(heads), [f"head {head}" for head in range(heads)], fontsize=8)
    axis.set_xlabel("attention kept", fontsize=9)
    axis.set_title("Jaccard with the object", fontsize=10)
    return figure


def neighbour_sheet(queries, neighbours, same, titles=None):
    """Each query on the left, its nearest neighbours to the right: in a blue frame if of its class, else in a red one.

    queries uint8 (M, C, H, W); neighbours uint8 (M, k, C, H, W), nearest first; same bool (M, k); titles: one a query.
    """
    m, k = same.shape
    figure, axes = _grid(m, k + 2, width_ratios=[1, 0.12, *[1] * k])
    for i in range(m):
        axes[i, 1].remove()  # the gap between the query and the others
        axes[i, 0].imshow(to_image(queries[i]), interpolation="nearest")
        _bare(axes[i, 0])
        if titles:
            _row_label(axes[i, 0], titles[i])
        for j, axis in enumerate(axes[i, 2:]):
            axis.imshow(to_image(neighbours[i, j]), interpolation="nearest")
            axis.set_xticks([])
            axis.set_yticks([])
            for spine in axis.spines.values():
                spine.set(edgecolor="#1f77b4" if same[i, j] else "#d62728", linewidth=2.5,
                          linestyle="-" if same[i, j] else (0, (2, 1)))
    axes[0, 0].set_title("query", fontsize=9)
    axes[0, 2].set_title("nearest", fontsize=9)
    handles = [Line2D([], [], color="#1f77b4", linewidth=2.5, label="same class"),
               Line2D([], [], color="#d62728", linewidth=2.5, linestyle=(0, (2, 1)), label="another class")]
    figure.legend(handles=handles, loc="outside lower right", ncols=2, fontsize=8, frameon=False)
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


def thumbnail_plot(panels, images, size=0.36):
    """Embeddings, two to a row, with small pictures at their points, as many as have room; a dot for each other one.

    panels: dict of title -> (N, 2) points; images uint8 (N, C, H, W); size: a picture's longer side in inches.
    """
    columns = min(2, len(panels))
    figure, axes = _grid(-(-len(panels) // columns), columns, cell=4.8)
    side = figure.get_size_inches()[0] / columns - 0.4
    for axis in axes.flat[len(panels):]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, panels.items(), strict=False):
        points = np.asarray(points, dtype=float)
        low, high = points.min(0), points.max(0)
        points = (points - low) / np.maximum(high - low, 1e-12)  # the panel is a unit square
        axis.scatter(*points.T, s=4, color="#9a9a9a", linewidths=0)
        shown = []
        for i, point in enumerate(points):  # the first in order that overlaps none before it
            if not shown or (np.abs(points[shown] - point).max(1) > size / side).all():
                shown.append(i)
                picture = to_image(images[i])
                axis.add_artist(AnnotationBbox(OffsetImage(picture, zoom=72 * size / max(picture.shape[:2])), point,
                                               pad=0.08, bboxprops={"linewidth": 0.4, "edgecolor": "#555555"}))
        margin = 0.6 * size / side
        axis.set_xlim(-margin, 1 + margin)
        axis.set_ylim(-margin, 1 + margin)
        axis.set_title(title, fontsize=10)
        _bare(axis)
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
