"""The pictures in this folder, from the shipped teachers and a history: `make figures`."""

import copy
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.transforms.v2.functional import pil_to_tensor

from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import PHOTOS
from dino_lib.data.transforms import EvalTransform, middle_square
from dino_lib.look.curves import training_curves
from dino_lib.look.maps import attention_sheet
from dino_lib.look.report import compare
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.baselines import local_contrast
from dino_lib.measure.components import principal_components
from dino_lib.measure.features import patch_features
from dino_lib.measure.heads import choose_head
from dino_lib.measure.masks import above_blind, patch_masks
from dino_lib.measure.probes import Probes
from dino_lib.measure.stages import fine_attention
from dino_lib.run.build import build_student, open_probes
from dino_lib.run.config import Config
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.teacher_file import Teacher
from dino_lib.run.train import build_trainer
from dino_lib.teachers.load import SHIPPED, load_teacher

HERE = Path(__file__).parent
STUDENT, TEACHER, PLAIN = "#cfe2f3", "#fce5cd", "#eeeeee"  # fillings
DARK, BLUE, BROWN = "#333333", "#1155cc", "#b45f06"  # lines and words
EIGHT = [1, 2, 7, 8, 9, 10, 11, 14]  # of the sixteen photographs
MOMENTS = (60, 120, 240)  # updates after which the run of `demo` is looked at


def box(axis: Axes, x: float, y: float, width: float, text: str, color: str) -> None:
    """A rounded box of height 0.7 with its left middle at (x, y)."""
    shape = "round,pad=0.02,rounding_size=0.12"
    axis.add_patch(
        FancyBboxPatch((x, y - 0.35), width, 0.7, boxstyle=shape, facecolor=color, edgecolor=DARK)
    )
    axis.text(x + width / 2, y, text, ha="center", va="center", fontsize=10)


def arrow(axis: Axes, start: tuple, end: tuple, color: str = DARK, **options) -> None:
    """An arrow between two points."""
    axis.add_patch(
        FancyArrowPatch(
            start, end, arrowstyle="-|>", mutation_scale=13, color=color, linewidth=1.3, **options
        )
    )


def canvas(width: float, height: float, x: tuple, y: tuple) -> tuple[Figure, Axes]:
    """A figure of so many inches with one bare axis over these ranges."""
    figure = Figure(figsize=(width, height), layout="constrained", dpi=120)
    axis = figure.subplots()
    axis.set_xlim(*x)
    axis.set_ylim(*y)
    axis.axis("off")
    return figure, axis


def architecture() -> Figure:
    """One step of DINO in one picture."""
    figure, axis = canvas(11, 4.4, x=(0, 15.3), y=(-0.5, 5.2))
    box(axis, 0.1, 2.05, 1.6, "one image", PLAIN)
    box(axis, 2.9, 3.4, 2.3, "all V views", STUDENT)
    box(axis, 2.9, 0.7, 2.3, "2 global views", TEACHER)
    arrow(axis, (1.75, 2.3), (2.85, 3.3))
    arrow(axis, (1.75, 1.8), (2.85, 0.8))
    axis.text(1.35, 3.0, "multi-crop", fontsize=10, ha="center")
    for y, color, name in [(3.4, STUDENT, "student"), (0.7, TEACHER, "teacher")]:
        box(axis, 6.0, y, 1.9, "backbone", color)
        box(axis, 8.5, y, 1.3, "head", color)
        axis.add_patch(
            Rectangle((5.8, y - 0.55), 4.2, 1.1, fill=False, edgecolor=DARK, linestyle=":")
        )
        axis.text(5.8, y + 0.62, name, fontsize=10)
        arrow(axis, (5.25, y), (5.95, y))
        arrow(axis, (7.95, y), (8.45, y))
        arrow(axis, (9.85, y), (10.75, y))
    box(axis, 10.8, 3.4, 2.3, "softmax(s / 0.1)", STUDENT)
    box(axis, 10.8, 0.7, 2.3, "softmax((t - c) / \u03c4)", TEACHER)
    box(axis, 13.2, 2.05, 1.9, "cross-entropy\nof the pairs", PLAIN)
    arrow(axis, (13.15, 3.3), (13.9, 2.48))
    arrow(axis, (13.15, 0.8), (13.9, 1.62))
    arrow(axis, (7.9, 2.82), (7.9, 1.28), BROWN)  # of the frame: backbone and head
    formula = "\u03b8\u209c \u2190 m \u03b8\u209c + (1 - m) \u03b8\u209b"
    average = f"moving average of the weights:\n{formula}"
    axis.text(8.05, 2.05, average, fontsize=10, color=BROWN, va="center")
    axis.plot([14.5, 14.5, 7.9], [2.45, 4.5, 4.5], BLUE, linewidth=1.3, linestyle="--")
    arrow(axis, (7.9, 4.5), (7.9, 3.92), BLUE)
    axis.text(11.2, 4.65, "gradient: to the student alone", fontsize=10, color=BLUE, ha="center")
    center = "center c: a running mean of the teacher's rows"
    axis.text(12.5, -0.05, center, fontsize=10, ha="center", color=BROWN)
    return figure


def tensors(c: Config) -> list[tuple[str, str, str, str]]:
    """What comes about in one step, in order: (name, shape, color, note)."""
    n_views = 2 + c.n_local
    b = c.batch_size
    k = c.out_dim
    d = c.backbone_options["embed_dim"]
    views = (
        f"2 x ({b}, 3, {c.global_size}, {c.global_size}),  "
        f"{c.n_local} x ({b}, 3, {c.local_size}, {c.local_size})"
    )
    pairs = f"mean over {2 * (n_views - 1)} pairs of different views"
    return [
        (
            "images, as bytes",
            f"({b}, 3, {c.store_size}, {c.store_size})",
            PLAIN,
            "the store, in this epoch's order",
        ),
        ("views", views, PLAIN, "multi-crop; drawn by (seed, epoch, index)"),
        ("teacher's features", f"({2 * b}, {d})", TEACHER, "the two global views; no gradient"),
        ("teacher's logits t", f"(2, {b}, {k})", TEACHER, "the head: cosines with K prototypes"),
        ("targets q", f"(2, {b}, {k})", TEACHER, "softmax((t - center) / teacher temperature)"),
        (
            "student's features",
            f"({n_views * b}, {d})",
            STUDENT,
            "all views, one pass for each size",
        ),
        ("student's logits s", f"({n_views}, {b}, {k})", STUDENT, "one pass of the head"),
        ("loss", "()", PLAIN, pairs),
        ("center c", f"({k},)", TEACHER, "0.9 c + 0.1 mean of t, after the loss"),
        (
            "gradient",
            "that of the student's weights",
            STUDENT,
            "norm clipped; AdamW takes the step",
        ),
        (
            "teacher's weights",
            "those of the student",
            TEACHER,
            "m t + (1 - m) s, after the optimizer's step",
        ),
    ]


def data_flow(config: Config) -> Figure:
    """The tensors of one step with their shapes, in the order in which they come about."""
    rows = tensors(config)
    figure, axis = canvas(10, 5.4, x=(0, 13.6), y=(-len(rows) + 0.4, 0.6))
    for i, (name, shape, color, note) in enumerate(rows):
        box(axis, 0.2, -i, 2.6, name, color)
        axis.text(3.2, -i, shape, va="center", fontsize=10, family="monospace")
        axis.text(8.6, -i, note, va="center", fontsize=10, color="#444444")
        if i:
            arrow(axis, (1.5, -i + 0.62), (1.5, -i + 0.38))
    return figure


def squares(teacher: Teacher, side: int) -> tuple[Tensor, Tensor]:
    """Photographs that the teacher has never seen: uint8 and normalised (16, 3, side, side)."""
    folder = FolderOfImages(PHOTOS)
    images = [middle_square(folder[i][0], side) for i in range(len(folder))]
    transform = EvalTransform(side, teacher.config.mean, teacher.config.std)
    return (
        torch.stack([pil_to_tensor(image) for image in images]),
        torch.stack([transform(image) for image in images]),
    )


def photographs(teacher: Teacher, side: int = 240) -> tuple[Figure, Figure]:
    """Attention over eight photographs: all heads' mean, and each.

    Beside the mean the same of the untrained network, and a map that no network made.
    """
    pixels, seen = [images[EIGHT] for images in squares(teacher, side)]
    maps = cls_attention(teacher, seen)
    before = cls_attention(build_student(teacher.config).backbone.eval(), seen)
    contrast = local_contrast(pixels, maps.shape[2:])
    means = {
        "local contrast,\nno network": contrast / contrast.sum((1, 2), keepdim=True),
        "untrained,\nmean of heads": before.mean(1),
        "trained,\nmean of heads": maps.mean(1),
    }
    each = {f"head {head}": maps[:, head] for head in range(maps.shape[1])}
    return attention_sheet(pixels, means), attention_sheet(pixels, each)


def patches(teacher: Teacher, side: int = 240) -> Figure:
    """The first principal component of the patches of sixteen photographs, over eight of them.

    Beside that of the trained tokens those of the untrained network and of the mean colours.
    """
    pixels, seen = squares(teacher, side)
    tokens = patch_features(teacher, seen)
    colours = adaptive_avg_pool2d(pixels / 255, tokens.shape[1:3])
    found = {
        "mean colour,\nno network": colours.movedim(1, -1),
        "untrained": patch_features(build_student(teacher.config).backbone.eval(), seen),
        "trained": tokens,
    }
    rows = {name: principal_components(of)[EIGHT, 0] for name, of in found.items()}
    return attention_sheet(pixels[EIGHT], rows)


def while_it_trains(teacher: Teacher, probes: Probes, pictures: slice) -> Figure:
    """One head of `demo` before, during and after its run, over the same pictures.

    It is the head that is chosen without masks in the finished teacher. The first part of
    the run is made again, as `make demo` makes it, so this takes minutes.
    """
    backbones = {"untrained": build_student(teacher.config).backbone}

    def keep(line: dict) -> None:
        if line["step"] in MOMENTS:
            backbones[f"{line['step']} updates"] = copy.deepcopy(trainer.teacher.backbone)

    with tempfile.TemporaryDirectory() as folder:
        config = replace(teacher.config, output_dir=folder, eval_every=0, resume="never")
        trainer = build_trainer(config, on_log=keep)
        trainer.total_steps = max(MOMENTS)  # the schedules stay those of the whole run
        trainer.run()
    backbones[f"{read_history(SHIPPED / 'demo')[-1]['step']} updates"] = teacher.model
    head = choose_head(probes.attention(teacher, 200))
    images = probes.normalize(probes.queries[pictures])
    rows = {}
    for name, backbone in backbones.items():
        maps = probes.attention(backbone.eval(), 200)
        masks = patch_masks(probes.masks[:200], maps.shape[2:])
        score = above_blind(maps, masks)[head]
        rows[f"{name}\nabove blind {score:.2f}"] = fine_attention(backbone, images)[:, head]
    return attention_sheet(probes.queries[pictures], rows, masks=probes.masks[pictures])


def main() -> None:
    """Draw and save everything."""
    config = PRESETS["demo"]
    teacher = load_teacher("demo")
    untrained = build_student(teacher.config).backbone.eval()
    stages = {"untrained": untrained, "trained": teacher}
    probes = open_probes(config, limit=10**9)
    _, attention, clusters = compare(stages, probes)
    figures = {
        "architecture": architecture(),
        "data_flow": data_flow(config),
        "attention": attention,
        "clusters": clusters,
        "training": while_it_trains(teacher, probes, slice(10, 18)),
        "curves": training_curves(read_history(SHIPPED / "demo"), config.out_dim),
    }
    photos = load_teacher("photos")
    figures["photos"], figures["photos_heads"] = photographs(photos)
    figures["photos_patches"] = patches(photos)
    for name, figure in figures.items():
        figure.savefig(HERE / f"{name}.png", dpi=72 if name == "photos_heads" else "figure")


if __name__ == "__main__":
    main()
