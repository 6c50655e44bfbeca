"""A clip's attention as a clip: each frame, and beside it what the heads see in it.

Frames are read, looked at and written a few at a time: an hour takes no more memory
than a minute.
"""

import itertools
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from tqdm.auto import tqdm

from dino_lib.backbone import backbone_of
from dino_lib.data.transforms import as_seen
from dino_lib.look.clips import CLOCKS, read_frames, write_clip
from dino_lib.look.maps import VIVID
from dino_lib.look.style import CMAP
from dino_lib.measure.attention import cls_attention

BATCH = 8  # frames that the teacher sees at a time
COLUMNS = 4  # at most so many panels side by side


def attention_video(teacher: Any, source: str | Path, path: str | Path, *, layer: int = -1,
                    head: int | str | None = None, size: int | None = None, panel: int = 320,
                    progress: bool = True) -> Path:
    """Write the CLS attention of `teacher` in each frame of a clip to `path`; the Path.

    teacher: what `load_teacher` gives, a ViT with a CLS token. source: what PyAV
    decodes (.mp4, .webm, .mov, .gif, ...). path: an .mp4 or .gif. Frames are seen whole,
    at about size x size pixels in all (None: the teacher's own size), their aspect kept
    but for rounding to whole patches. Beside the picture stand all heads of block
    `layer`, the one of number `head`, or their mean ("mean"), in panels whose longer side
    is `panel` pixels.

    Colours: 0 is darkest. Brightest is the map's maximum, or 3 times its mean if that
    is more, averaged over the frames so far with a time constant of one second: it
    follows the scene and doesn't flicker. Times are kept, also of a changing frame
    rate; but a GIF shows no frame for less than 0.02 s, so beyond 50 a second some are
    left out. Sound is dropped. `path` is written whole or not at all; progress=False
    shows no bar. Raises FileNotFoundError; ValueError on a source that is no clip,
    damaged or empty, and on a `path`, head, layer or size that cannot be; TypeError
    where no CLS token attends; ImportError where PyAV is missing.
    """
    path = Path(path).expanduser()
    kind = path.suffix.lower()
    if kind not in CLOCKS:
        raise ValueError(f"{path}: the attention of a clip is written as {' or '.join(CLOCKS)}")
    part = path.with_name(path.name + ".part")
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    try:
        with (read_frames(source) as (frames, count), write_clip(part, kind) as write,
              tqdm(total=count, desc="attention", unit="frame", leave=False,
                   disable=hidden) as bar):
            end = None
            for sheet, start, end in _sheets(teacher, frames, layer, head, size, panel):
                write(sheet, start, end)
                bar.update()
            if end is None:
                raise ValueError(f"{source} (holds no frame)")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def write_videos(clip: str | Path, teachers: dict, out: str | Path, *,
                 head: int | str | None = None, size: int | None = None) -> list[Path]:
    """Write attention-TEACHER.mp4, or .gif of a GIF, to `out` for each teacher.

    teachers: name -> what `load_teacher` gives; the others as in `attention_video`.
    """
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    suffix = ".gif" if Path(clip).suffix.lower() == ".gif" else ".mp4"
    return [attention_video(teacher, clip, out / f"attention-{word}{suffix}", head=head, size=size)
            for word, teacher in zip(file_words(teachers), teachers.values(), strict=True)]


def file_words(names: Iterable[str]) -> list[str]:
    """Teachers' names as parts of files': runs/mine -> runs-mine; numbered where two are alike."""
    words: list[str] = []
    for name in names:
        word = re.sub(r"\W+", "-", name).strip("-") or "teacher"
        counted = (f"{word}-{i}" for i in itertools.count(2))
        words.append(next(one for one in itertools.chain([word], counted) if one not in words))
    return words


def _sheets(teacher, frames: Iterator, layer: int, head: int | str | None, size: int | None,
            panel: int) -> Iterator[tuple[Image.Image, float, float]]:
    """The frames of the video, with their times."""
    backbone = backbone_of(teacher)
    patch = backbone.patch_size
    transform = getattr(teacher, "transform", None)
    size = getattr(transform, "size", None) if size is None else size
    top = None
    before = 0.0
    seen = ((as_seen(image, transform, patch, size)[1], _shrink(image, panel), start, end)
            for image, start, end in frames)
    while batch := list(itertools.islice(seen, BATCH)):
        inputs = torch.stack([x for x, *_ in batch])
        maps = cls_attention(backbone, inputs, layer=layer).cpu()
        maps, names = _choose(maps, head)
        for (_, picture, start, end), of_heads in zip(batch, maps, strict=True):
            means = of_heads.mean((1, 2), keepdim=True)  # (heads, 1, 1)
            largest = of_heads.amax((1, 2), keepdim=True)
            now = largest.maximum(VIVID * means).clamp(min=1e-12)
            keep = math.exp(before - start)
            top = now if top is None else keep * top + (1 - keep) * now
            before = start
            yield _sheet(picture, (of_heads / top).clamp(max=1), names), start, end


def _shrink(image: Image.Image, panel: int) -> Image.Image:
    """To a longer side of `panel` pixels; both sides even, as H.264 wants them."""
    ratio = panel / max(image.size) / 2
    sides = [max(2, 2 * round(side * ratio)) for side in image.size]
    return image.convert("RGB").resize(sides)


def _choose(maps: Tensor, head: int | str | None) -> tuple[Tensor, list[str]]:
    """Maps (B, heads, h, w) of the heads to show, and their names."""
    if head is None:
        return maps, [f"head {i}" for i in range(maps.shape[1])]
    if head == "mean":
        return maps.mean(1, keepdim=True), ["mean of heads"]
    if head not in range(maps.shape[1]):
        raise ValueError(f"head={head!r} must be 0 to {maps.shape[1] - 1}, 'mean', or None for all "
                         "side by side")
    return maps[:, [head]], [f"head {head}"]


def _sheet(picture: Image.Image, maps: Tensor, names: list[str]) -> Image.Image:
    """The picture, and dimmed under the colours of each map (h, w) in [0, 1]."""
    width, height = picture.size
    dimmed = picture.point(lambda value: 0.35 * value)
    panels = [picture, *(_coloured(dimmed, values) for values in maps.numpy())]
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    sheet = Image.new("RGB", (columns * width, rows * height))
    font = ImageFont.load_default(max(9, min(width, height) // 12))
    for i, (image, name) in enumerate(zip(panels, ["picture", *names], strict=True)):
        ImageDraw.Draw(image).text((4, 2), name, "white", font, stroke_width=1,
                                   stroke_fill="black")
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet


def _coloured(dimmed: Image.Image, values) -> Image.Image:
    colours = matplotlib.colormaps[CMAP](values, bytes=True)[..., :3]
    alpha = (255 * (0.25 + 0.75 * values)).round().astype("uint8")
    layers = [Image.fromarray(part.copy()).resize(dimmed.size, Image.Resampling.BILINEAR)
              for part in (colours, alpha)]
    return Image.composite(layers[0], dimmed, layers[1])
