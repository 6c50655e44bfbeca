"""A clip's attention as a clip: each frame's picture, and beside it what the heads see in it.

Frames are read, looked at and written a few at a time, so an hour takes no more memory than a minute.
"""

import itertools
import math
import os
from pathlib import Path

import matplotlib
import torch
from PIL import Image, ImageDraw, ImageFont
from tqdm.auto import tqdm

from dino_lib.data.transforms import as_seen
from dino_lib.look.clips import WRITERS, read_frames
from dino_lib.look.plots import CMAP
from dino_lib.backbone import backbone_of
from dino_lib.measure.attention import cls_attention

BATCH = 8  # frames that the teacher sees at a time
COLUMNS = 4  # at most so many panels side by side


def attention_video(teacher, source, path, *, layer=-1, head=None, size=None, panel=320, progress=True):
    """Write the CLS attention of `teacher` in each frame of the clip `source` to `path`, an .mp4 or .gif; the Path.

    teacher: a Backbone as `load_teacher` gives it, a ViT with a CLS token. source: what PyAV decodes (.mp4, .webm,
    .mov, ...), or an animated GIF, PNG or WebP. Frames are seen whole, at about size x size pixels in all (None: the
    teacher's own size), their aspect kept but for rounding to whole patches. Beside the picture stand all heads of
    block `layer`, the one of number `head`, or their mean ("mean"), in panels whose longer side is `panel` pixels.

    Colours: 0 is darkest. Brightest is the map's maximum, averaged over the frames so far with a time constant of one
    second: it follows the scene and doesn't flicker. Times are kept, also of a changing frame rate; but a GIF shows no
    frame for less than 0.02 s, so beyond 50 a second some are left out. Sound is dropped. `path` is written whole or
    not at all; progress=False shows no bar. Raises FileNotFoundError; ValueError on a source that is no clip, damaged
    or empty, and on a `path`, head, layer or size that cannot be; TypeError where no CLS token attends; ImportError
    where PyAV is missing.
    """
    path, backbone = Path(path), backbone_of(teacher)
    if path.suffix.lower() not in WRITERS:
        raise ValueError(f"{path}: the attention of a clip is written as {' or '.join(WRITERS)}")
    if not hasattr(teacher, "transform"):
        raise ValueError("the teacher has no .transform: set one, EvalTransform(size, mean, std)")
    if panel < 16:
        raise ValueError(f"panel={panel}: 16 pixels are the least")
    if size is None:  # its own is the side of the square that it crops
        size = as_seen(Image.new("RGB", (9, 9)), teacher.transform, backbone.patch_size)[0].width
    part, scale, last = path.with_name(path.name + ".part"), None, 0.0
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    try:
        with read_frames(source) as (frames, count), WRITERS[path.suffix.lower()](part) as write, \
                tqdm(total=count, desc="attention", unit="frame", leave=False, disable=hidden) as bar:
            small = ((as_seen(image, teacher.transform, backbone.patch_size, size)[1], _shrink(image, panel), *times)
                     for image, *times in frames)
            while batch := list(itertools.islice(small, BATCH)):
                maps = cls_attention(backbone, torch.stack([x for x, *_ in batch]), layer=layer).cpu()
                maps, names = _choose(maps, head)
                for (_, picture, start, end), of_heads in zip(batch, maps, strict=True):
                    top = of_heads.amax((1, 2), keepdim=True)  # (heads, 1, 1)
                    keep = math.exp(last - start)
                    scale, last = top if scale is None else keep * scale + (1 - keep) * top, start
                    write(_sheet(picture, (of_heads / scale.clamp(min=1e-12)).clamp(max=1), names), start, end)
                bar.update(len(batch))
            if scale is None:
                raise ValueError(f"{source} (holds no frame)")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _shrink(image, panel):
    """To a longer side of `panel` pixels; both sides even, as H.264 wants them."""
    ratio = panel / max(image.size) / 2
    return image.convert("RGB").resize([max(2, 2 * round(side * ratio)) for side in image.size])


def _choose(maps, head):
    """Maps (B, heads, h, w) of the heads to show, and their names."""
    if head is None:
        return maps, [f"head {i}" for i in range(maps.shape[1])]
    if head == "mean":
        return maps.mean(1, keepdim=True), ["mean of heads"]
    if head not in range(maps.shape[1]):
        raise ValueError(f"head={head!r} must be 0 to {maps.shape[1] - 1}, 'mean', or None for all side by side")
    return maps[:, [head]], [f"head {head}"]


def _sheet(picture, maps, names):
    """The picture, and the dimmed picture under the colours of each map (h, w) in [0, 1], as in an attention_sheet."""
    width, height = picture.size
    panels, dimmed = [picture], picture.point(lambda value: 0.35 * value)
    for values in maps.numpy():
        colours = Image.fromarray(matplotlib.colormaps[CMAP](values, bytes=True)[..., :3].copy())
        alpha = Image.fromarray((255 * (0.25 + 0.75 * values)).round().astype("uint8"))
        colours, alpha = (part.resize(picture.size, Image.Resampling.BILINEAR) for part in (colours, alpha))
        panels.append(Image.composite(colours, dimmed, alpha))
    rows = math.ceil(len(panels) / COLUMNS)
    columns = math.ceil(len(panels) / rows)
    sheet = Image.new("RGB", (columns * width, rows * height))
    font = ImageFont.load_default(max(9, min(width, height) // 12))
    for i, (image, name) in enumerate(zip(panels, ["picture", *names], strict=True)):
        ImageDraw.Draw(image).text((4, 2), name, "white", font, stroke_width=1, stroke_fill="black")
        sheet.paste(image, (i % columns * width, i // columns * height))
    return sheet
