"""The attention explorer: what teachers see in a few images, as one HTML file that needs no kernel and no network.

    python -m dino_lib.look.explore photos/ --teacher demo --teacher runs/mine --out seen
    python -m dino_lib.look.explore clip.mp4 --teacher demo --size 96 --out seen        # a video of the heads instead

Beside CLS attention the page rebuilds the last layer's attention of any patch. All of it would be T x T numbers a
head: 90 MB for a dozen images. Its logarithm is a product of queries and keys, up to a constant a row, so it has a low
rank, and two small int8 factors hold it.
"""

import argparse
import base64
import contextlib
import html
import io
import json
import os
import re
import sys
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.backbone import backbone_of
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import InputError, read_image, to_channels
from dino_lib.data.items import SkipUnreadable
from dino_lib.data.transforms import as_seen
from dino_lib.look.clips import is_clip
from dino_lib.look.plots import attention_sheet
from dino_lib.look.video import attention_video
from dino_lib.measure.attention import every_layer, pooled_similarity
from dino_lib.measure.evaluate import eval_mode
from dino_lib.run.config import OneLineParser
from dino_lib.teachers.load import load_teacher

TEMPLATE = Path(__file__).with_name("explorer.html")
FACTOR_BYTES = 3_500_000  # for all patch attention of a page: 15 dimensions a head for 2 ViT-S/8 and 12 images
FEATURE_DIMS = 48


class Explorer:
    """A page that was written to `path`; a notebook shows it where it is the value of a cell.

    `seen` is a dict of teacher -> list of (picture, maps): the PIL image as the teacher saw it, and float32 maps
    (layers, heads, h, w), CLS attention or, with one layer and one head, the pooled similarity.
    """

    def __init__(self, path, page, seen):
        self.path, self.html, self.seen = path, page, seen

    def _repr_html_(self):
        return (f'<iframe srcdoc="{html.escape(self.html)}" title="attention explorer" loading="lazy" '
                'style="width: 100%; height: 860px; border: 0"></iframe>')


def explore(teacher, images, *, path="explorer.html", size=None, limit=12, progress=True):
    """Write the explorer of `images` as seen by `teacher` to `path`; returns an Explorer, which a notebook shows.

    teacher: a Backbone as `load_teacher` gives it, or a dict of name -> Backbone, several stages of one run too,
    {"step 0": ..., "step 100": ...}; one without `.transform`, such as an untrained network, takes that of the first
    which has one. images: a PIL image, a path, a list of these, or a folder, of which at most `limit` readable images
    are taken, evenly spread. `size`: without it the teacher's own transform is used (the middle square); with it the
    whole image, resized to about size x size pixels in all, its aspect kept but for rounding to whole patches.
    progress=False shows no bar. Raises UnreadableImage, FileNotFoundError, ValueError or TypeError.
    """
    teachers = teacher if isinstance(teacher, dict) else {"teacher": teacher}
    transforms = [t.transform for t in teachers.values() if hasattr(t, "transform")]
    if not transforms:
        raise ValueError("no teacher has a .transform(PIL image): set one, EvalTransform(size, mean, std)")
    names, images = _gather(images, limit)
    pictures, entries, seen = [], [], {}
    room = FACTOR_BYTES / (len(images) * len(teachers))
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    for name, model in teachers.items():
        backbone = backbone_of(model)
        entries.append(entry := {"name": str(name), "images": []})
        seen[name], tokens = [], []
        for image in tqdm(images, desc=f"{name} looks", leave=False, disable=hidden):
            picture, x = as_seen(image, getattr(model, "transform", transforms[0]), backbone.patch_size, size)
            kind, maps, attention, features = _see(backbone, x[None])
            uri = _data_uri(picture)
            if uri not in pictures:
                pictures.append(uri)
            values, low, step = quantise(maps.flatten(2))
            entry |= {"map": kind, "layers": maps.shape[0], "heads": maps.shape[1]}
            entry["images"].append({"picture": pictures.index(uri), "grid": maps.shape[2:], "maps": _base64(values),
                                    "low": _short(low), "step": _short(step)})
            if attention is not None:
                queries, keys, scale, off = factorise(attention, features.shape[0], room)
                entry["images"][-1] |= {"queries": _base64(queries), "keys": _base64(keys), "scale": _short(scale),
                                        "rank": keys.shape[2], "tokens": keys.shape[1], "off": round(off, 5)}
            seen[name].append((picture, maps))
            tokens.append(features)
        values, scale = compress(torch.cat(tokens))
        entry["features"] = _short(scale)
        for item, part in zip(entry["images"], values.split([len(t) for t in tokens]), strict=True):
            item["features"] = _base64(part)
    data = json.dumps({"names": names, "pictures": pictures, "teachers": entries}, separators=(",", ":"))
    page = TEMPLATE.read_text("utf-8").replace("{{data}}", data.replace("<", "\\u003c"))  # no name ends the script
    Path(path).write_text(page, "utf-8")
    return Explorer(Path(path), page, seen)


def quantise(maps):
    """Maps (..., P) -> uint8 (..., P), low (..., 1), step (..., 1): maps = low + step * uint8, to step / 2."""
    low = maps.amin(-1, keepdim=True).clamp(max=0)  # of attention it is 0, a cosine may be negative
    step = ((maps.amax(-1, keepdim=True) - low) / 255).clamp(min=1e-12)
    return ((maps - low) / step).round().to(torch.uint8), low, step


def factorise(attention, n_patches, room):
    """Attention (heads, T, T) -> int8 queries (heads, n_patches, r), keys (heads, T, r), scale (heads, r), off.

    softmax(queries * scale @ keys^T) are about the last n_patches rows; `off`, the mean total variation from the
    true ones, is the share of mass out of place. Queries and keys take at most `room` bytes, but r is 4 at least.
    """
    heads, n_tokens, _ = attention.shape
    rows = attention[:, -n_patches:]
    scores = rows.clamp(min=1e-30).log()
    scores = scores - scores.mean(-1, keepdim=True)  # softmax does not see it, and it would cost a dimension
    rank = max(4, min(64, int(room / (heads * (n_patches + n_tokens)))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # svd_lowrank starts from random vectors
        left, sizes, right = torch.svd_lowrank(scores, q=min(rank, n_patches), niter=4)
    kept = max(1, int((sizes > 1e-4 * sizes.max()).any(0).sum()))
    queries, keys = (factor[..., :kept] for factor in (left, right))
    tops = [factor.abs().amax(1, keepdim=True).clamp(min=1e-12) / 127 for factor in (queries, keys)]  # (heads, 1, r)
    queries, keys = ((factor / top).round() for factor, top in zip((queries, keys), tops, strict=True))
    scale = sizes[:, None, :kept] * tops[0] * tops[1]
    off = ((queries * scale) @ keys.transpose(1, 2)).softmax(-1).sub(rows).abs().sum(-1).mean().item() / 2
    return queries.to(torch.int8), keys.to(torch.int8), scale[:, 0], off


def compress(tokens):
    """Features (N, D) -> int8 (N, r), scale (r,): the rows of int8 * scale have about the features' cosines."""
    x = torch.nn.functional.normalize(tokens.double(), dim=-1)
    directions = torch.linalg.eigh(x.T @ x).eigenvectors.flip(1)[:, :FEATURE_DIMS]  # largest first, not centred
    x = (x @ directions).float()
    scale = x.abs().amax(0).clamp(min=1e-12) / 127
    return (x / scale).round().to(torch.int8), scale


@torch.no_grad()
def _see(backbone, x):
    """(1, C, H, W) -> kind of maps, maps (layers, heads, h, w), attention (heads, T, T) or None, features (h w, D)."""
    with eval_mode(backbone):
        features = backbone.patch_tokens(x.to(next(backbone.parameters()).device)).float().flatten(0, 2).cpu()
    maps = attention = None
    with contextlib.suppress(TypeError):  # a CNN has no attention; where the CLS token alone asks, patches have none
        maps, attention = every_layer(backbone, x)
    attention = None if attention is None else attention[0].cpu()
    if maps is None:
        return "pooled similarity", pooled_similarity(backbone, x).cpu(), attention, features
    return "CLS attention", maps[:, 0].cpu(), attention, features


def _gather(images, limit):
    """(names, PIL images) of one image or path, of a list of them, or of a folder."""
    if isinstance(images, str | os.PathLike) and not Path(images).expanduser().is_file():
        folder = FolderOfImages(images)
        if limit < 1:
            raise ValueError(f"limit={limit} must be at least 1")
        chosen = torch.linspace(0, len(folder) - 1, min(limit, len(folder))).round().long().tolist()
        safe = SkipUnreadable(folder)
        found = {used: image for image, _, used in (safe[i] for i in chosen)}
        if safe.bad:
            print(safe.report())
        return [str(folder.paths[i].relative_to(folder.root)) for i in found], list(found.values())
    images = [images] if isinstance(images, str | os.PathLike | Image.Image) else list(images)
    if not images:
        raise ValueError("images is empty: give a PIL image, a path, a list of these or a folder")
    paths = [Path(image).expanduser() if isinstance(image, str | os.PathLike) else None for image in images]
    return ([path.name if path else f"image {i}" for i, path in enumerate(paths)],
            [read_image(path) if path else to_channels(image) for path, image in zip(paths, images, strict=True)])


def _data_uri(picture):
    kind = "png" if max(picture.size) <= 128 else "jpeg"  # small ones are shown enlarged, with every artefact
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _base64(tensor):
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def _short(tensor):
    return [float(f"{value:.6g}") for value in tensor.flatten().tolist()]


def _head(word):
    if word != "mean" and not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} must be a number or mean")
    return word if word == "mean" else int(word)


def main(words=None):
    """The command line: writes explorer.html and heads.png; of a clip attention-TEACHER.mp4, or .gif of a GIF."""
    parser = OneLineParser("dino_lib.look.explore", description=explore.__doc__.splitlines()[0])
    parser.add_argument("images", help="an image, a folder of them, or a clip (.mp4, .webm, .gif, ...)")
    parser.add_argument("--teacher", action="append", help='what load_teacher takes ("demo"); may be repeated')
    parser.add_argument("--out", default="explorer", help="the folder to write to")
    parser.add_argument("--size", type=int, help="see whole images at about size x size pixels, their aspect kept")
    parser.add_argument("--head", type=_head,
                        help='of a clip: one head\'s number, or "mean"; without it all stand side by side')
    parser.add_argument("--limit", type=int, default=12, help="the most images to take from a folder")
    options = parser.parse_args(words)
    try:
        teachers = {name: load_teacher(name) for name in options.teacher or ["demo"]}
        out = Path(options.out)
        out.mkdir(parents=True, exist_ok=True)
        if is_clip(options.images):
            suffix = ".gif" if Path(options.images).suffix.lower() == ".gif" else ".mp4"
            for name, teacher in teachers.items():
                path = out / f"attention-{re.sub(r'[^A-Za-z0-9]+', '-', name).strip('-')}{suffix}"
                attention_video(teacher, options.images, path, head=options.head, size=options.size)
                print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")
            return
        page = explore(teachers, options.images, path=out / "explorer.html", size=options.size, limit=options.limit)
    except (OSError, ValueError, TypeError, ImportError, InputError) as error:
        parser.error(str(error))
    rows = {f"{name}\n{f'head {head}' if maps.shape[1] > 1 else 'similarity'}": [m[-1, head] for _, m in seen]
            for name, seen in page.seen.items() for maps in [seen[0][1]] for head in range(maps.shape[1])}
    pictures = [pil_to_tensor(picture) for picture, _ in next(iter(page.seen.values()))]
    attention_sheet(pictures, rows).savefig(out / "heads.png")
    for path in (page.path, out / "heads.png"):
        print(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    sys.exit(main())
