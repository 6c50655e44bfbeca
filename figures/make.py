"""The pictures in this folder, from the shipped teacher and its history: `make figures`."""

from pathlib import Path

import torch
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from dino_lib.data.batch_views import BatchMultiCrop, view_uniforms
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import PHOTOS
from dino_lib.data.loaders import multicrop_settings
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import EvalTransform
from dino_lib.look import plots
from dino_lib.look.report import compare
from dino_lib.measure.attention import cls_attention
from dino_lib.run.build import build_student, open_probes
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.teachers.load import SHIPPED, load_teacher

HERE = Path(__file__).parent


def box(axis, x, y, width, text, color):
    """A rounded box of height 0.7 with its left middle at (x, y)."""
    axis.add_patch(FancyBboxPatch((x, y - 0.35), width, 0.7, boxstyle="round,pad=0.02,rounding_size=0.12",
                                  facecolor=color, edgecolor="#333333", linewidth=1))
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=10)


def arrow(axis, start, end, text="", color="#333333", style="-", rad=0.0):
    """An arrow between two points, its text above the middle."""
    axis.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=13, color=color, linestyle=style,
                                   connectionstyle=f"arc3,rad={rad}", linewidth=1.3))
    if text:
        axis.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.13, text, ha="center", fontsize=9, color=color)


def architecture():
    """One step of DINO in one picture."""
    figure = Figure(figsize=(11, 4.2), layout="constrained", dpi=120)
    axis = figure.subplots()
    axis.set_xlim(0, 15.2)
    axis.set_ylim(-0.4, 5.2)
    axis.axis("off")
    student, teacher, plain = "#cfe2f3", "#fce5cd", "#eeeeee"
    box(axis, 0.1, 2.0, 1.6, "one image", plain)
    box(axis, 2.9, 3.4, 2.3, "all V views", student)
    box(axis, 2.9, 0.7, 2.3, "2 global views", teacher)
    arrow(axis, (1.75, 2.2), (2.85, 3.3))
    arrow(axis, (1.75, 1.8), (2.85, 0.8))
    axis.text(1.45, 2.95, "multi-crop", fontsize=9, ha="center")
    for y, color, name in [(3.4, student, "student"), (0.7, teacher, "teacher")]:
        box(axis, 6.0, y, 2.0, f"{name}\nbackbone", color)
        box(axis, 8.7, y, 1.3, "head", color)
        arrow(axis, (5.25, y), (5.95, y))
        arrow(axis, (8.05, y), (8.65, y))
        arrow(axis, (10.05, y), (10.75, y))
    box(axis, 10.8, 3.4, 2.3, "softmax(s / 0.1)", student)
    box(axis, 10.8, 0.7, 2.3, "softmax((t - c) / \u03c4)", teacher)
    box(axis, 13.2, 2.05, 1.9, "cross-entropy\nof the pairs", plain)
    arrow(axis, (13.15, 3.3), (13.9, 2.48))
    arrow(axis, (13.15, 0.8), (13.9, 1.62))
    arrow(axis, (7.0, 2.98), (7.0, 1.12), color="#b45f06")
    axis.text(7.15, 2.05, "EMA after each update:\nt \u2190 m t + (1 - m) s", fontsize=9, color="#b45f06", va="center")
    arrow(axis, (14.2, 2.45), (7.6, 3.85), color="#1155cc", style="--", rad=0.42)
    axis.text(12.7, 4.45, "gradient, to the student alone", fontsize=9, color="#1155cc")
    axis.text(11.95, -0.05, "center c: a running mean of the teacher's rows", fontsize=9, ha="center", color="#b45f06")
    return figure


def data_flow(config):
    """The tensors of one step with their shapes, in the order in which they come about."""
    c, n_views = config, 2 + config.n_local
    b, k, d = c.batch_size, c.out_dim, c.backbone_options["embed_dim"]
    student, teacher, plain = "#cfe2f3", "#fce5cd", "#eeeeee"
    rows = [
        ("images, as bytes", f"({b}, 3, {c.store_size}, {c.store_size})", plain, "the store, in this epoch's order"),
        ("views", f"2 x ({b}, 3, {c.global_size}, {c.global_size}),  {c.n_local} x ({b}, 3, {c.local_size}, "
         f"{c.local_size})", plain, "multi-crop; drawn by (seed, epoch, index)"),
        ("teacher's features", f"({2 * b}, {d})", teacher, "the two global views; no gradient"),
        ("teacher's logits t", f"(2, {b}, {k})", teacher, "the head: cosines with K prototypes"),
        ("targets q", f"(2, {b}, {k})", teacher, "softmax((t - center) / teacher temperature)"),
        ("student's features", f"({n_views * b}, {d})", student, "all views, one pass for each size"),
        ("student's logits s", f"({n_views}, {b}, {k})", student, "one pass of the head"),
        ("loss", "()", plain, f"mean over {2 * (n_views - 1)} pairs of different views"),
        ("gradient", "that of the student's weights", student, "norm clipped; AdamW takes the step"),
        ("center c", f"({k},)", teacher, "0.9 c + 0.1 mean of t, after the loss"),
        ("teacher's weights", "those of the student", teacher, "m t + (1 - m) s, after the optimizer's step"),
    ]
    figure = Figure(figsize=(9.6, 5.4), layout="constrained", dpi=110)
    axis = figure.subplots()
    axis.set_xlim(0, 13.4)
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    axis.axis("off")
    for i, (name, shape, color, note) in enumerate(rows):
        box(axis, 0.2, -i, 2.6, name, color)
        axis.text(3.2, -i, shape, va="center", fontsize=9.5, family="monospace")
        axis.text(8.6, -i, note, va="center", fontsize=9, color="#444444")
        if i:
            arrow(axis, (1.5, -i + 0.62), (1.5, -i + 0.38))
    return figure


def photographs(teacher, side=96):
    """The heads of a teacher's last block over eight of the photographs that it has never seen."""
    transform = EvalTransform(side, teacher.config.mean, teacher.config.std)
    x = torch.stack([transform(image) for image, _ in FolderOfImages(PHOTOS)])[[1, 2, 7, 8, 9, 10, 11, 14]]
    mean, std = (torch.tensor(v)[:, None, None] for v in (teacher.config.mean, teacher.config.std))
    maps = cls_attention(teacher, x)
    rows = {f"head {head}": maps[:, head] for head in range(maps.shape[1])} | {"mean of heads": maps.mean(1)}
    return plots.attention_sheet(((x * std + mean).clamp(0, 1) * 255).round().to(torch.uint8), rows)


def main():
    """Draw and save everything."""
    architecture().savefig(HERE / "architecture.png")
    data_flow(PRESETS["demo"]).savefig(HERE / "data_flow.png")
    config, teacher = PRESETS["demo"], load_teacher("demo")
    shapes = Shapes(40, seed=1)
    plots.show_images(shapes.images, masks=shapes.masks).savefig(HERE / "shapes.png")
    multicrop = BatchMultiCrop(**multicrop_settings(config))
    views = multicrop(shapes.images[3:4], uniforms=view_uniforms(0, 0, [3], multicrop.n_uniforms))
    plots.show_views([v[0] for v in views], config.mean, config.std).savefig(HERE / "views.png")
    torch.manual_seed(config.seed)
    probes = open_probes(config, limit=10**9)
    untrained = build_student(teacher.config).backbone.eval()
    _, attention, clusters = compare({"untrained": untrained, "trained": teacher}, probes)
    attention.savefig(HERE / "attention.png")
    clusters.savefig(HERE / "clusters.png")
    plots.training_curves(read_history(SHIPPED / "demo"), config.out_dim).savefig(HERE / "curves.png")
    photographs(load_teacher("photos")).savefig(HERE / "photos.png", dpi=72)


if __name__ == "__main__":
    main()
