"""The attention explorer: what teachers see in a few images, as one HTML file.

The page needs no kernel and no network. Beside the CLS token's attention it shows that
of any patch in the last layer, and what resembles a patch.
"""

import base64
import html
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.backbone import Backbone, backbone_of
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import to_channels
from dino_lib.data.items import SkipUnreadable
from dino_lib.data.say import printable, say
from dino_lib.data.transforms import as_seen
from dino_lib.look.maps import attention_sheet, heads_of
from dino_lib.look.own_photos import packed_runtime, packed_teacher
from dino_lib.look.packing import compress, factorise, quantise, to_base64, to_short
from dino_lib.look.video import file_words
from dino_lib.measure.attention import every_layer, full_attention, pooled_similarity
from dino_lib.measure.features import patch_features

PAGE = Path(__file__).with_name("explorer.html")
PARTS = ("-data", "-picture", "", "-own")
SCRIPTS = [PAGE.with_name(f"explorer{part}.js") for part in PARTS]
# for the patch attention of a page: 15 dimensions a head for two ViT-S/8 and 12 images
FACTOR_BYTES = 3_500_000


class Explorer:
    """A page that was written to `path`; a notebook shows it as the value of a cell.

    `seen` is a dict of teacher -> list of (picture, maps): the PIL image as the teacher
    saw it, and float32 maps (layers, heads, h, w), CLS attention or, with one layer and
    one head, the pooled similarity.
    """

    def __init__(self, path: Path, page: str, seen: dict[str, list[tuple[Image.Image, Tensor]]]):
        self.path = path
        self.html = page
        self.seen = seen

    def _repr_html_(self) -> str:
        return (f'<iframe srcdoc="{html.escape(self.html)}" title="attention explorer" '
                'loading="lazy" style="width: 100%; height: 860px; border: 0"></iframe>')


def explore(teacher: Any, images: Any, *, path: str | Path = "explorer.html",
            size: int | None = None, limit: int = 12, own_photos: bool = False,
            progress: bool = True) -> Explorer:
    """Write the explorer of `images` as seen by `teacher` to `path`.

    teacher: what `load_teacher` gives, or a dict of name -> teacher, several stages of
    one run too, {"step 0": ..., "step 100": ...}; one without `.transform`, such as an
    untrained network, takes that of the first which has one. images: a PIL image, a path,
    a list of these, or a folder, of which at most `limit` readable images are taken,
    evenly spread. size: None for the teacher's own transform (the middle
    square), or the whole image is seen, resized to about size x size pixels in all, its
    aspect kept but for rounding to whole patches. own_photos: the page lets these teachers
    look at photographs of its visitor's too; it grows by 5 MB and the teachers, plain ViTs,
    and what `own_photos.py` says is needed. progress=False shows no bar. Raises
    UnreadableImage, FileNotFoundError, ValueError, TypeError where there are no patches;
    for own_photos ImportError and OSError where something is missing.
    """
    teachers = teacher if isinstance(teacher, dict) else {"teacher": teacher}
    transforms = [t.transform for t in teachers.values() if hasattr(t, "transform")]
    if not transforms:
        raise ValueError("no teacher has a .transform(PIL image): set one, as "
                         "data.transforms.EvalTransform makes it")
    path = Path(path).expanduser()
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    names, images = _gather(images, limit)
    runtime = packed_runtime() if own_photos else None
    room = FACTOR_BYTES / (len(images) * len(teachers))
    pictures: list[str] = []
    entries = []
    seen = {}
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    for name, model in teachers.items():
        transform = getattr(model, "transform", transforms[0])
        bar = tqdm(images, desc=f"{name} looks", leave=False, disable=hidden)
        looks = [_look(backbone_of(model), image, transform, size) for image in bar]
        entry, directions = _entry(str(name), looks, pictures, room)
        if own_photos:
            entry["own"] = packed_teacher(backbone_of(model), transform, directions, size)
        entries.append(entry)
        seen[name] = [(look["picture"], look["maps"]) for look in looks]
    page = {"names": names, "pictures": pictures, "teachers": entries, "runtime": runtime}
    data = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c")  # ends no script
    script = "\n".join(file.read_text("utf-8") for file in SCRIPTS)
    text = PAGE.read_text("utf-8").replace("{{script}}", script).replace("{{data}}", data)
    path.write_text(text, "utf-8")
    return Explorer(path, text, seen)


def write_explorer(images: str | Path, teachers: dict, out: str | Path, *, size: int | None = None,
                   limit: int = 12, own_photos: bool = False) -> list[Path]:
    """Write explorer.html and the heads' figures to the folder `out`; the files' paths.

    Each teacher gets heads.png (heads-TEACHER.png where there are several): of one image its heads
    large, of more images a sheet. Arguments as in `explore`.
    """
    out = Path(out).expanduser()
    out.mkdir(parents=True, exist_ok=True)
    page = explore(teachers, images, path=out / "explorer.html", size=size, limit=limit,
                   own_photos=own_photos)
    paths = [page.path]
    for word, looks in zip(file_words(page.seen), page.seen.values(), strict=True):
        suffix = f"-{word}" if len(page.seen) > 1 else ""
        paths.append(out / f"heads{suffix}.png")
        _heads(looks).savefig(paths[-1])
    return paths


def _heads(looks: list[tuple[Image.Image, Tensor]]) -> Figure:
    """The heads of a teacher's last layer in the pictures that it saw."""
    pictures = [pil_to_tensor(picture) for picture, _ in looks]
    maps = [of_layers[-1] for _, of_layers in looks]
    if len(maps[0]) == 1:
        return attention_sheet(pictures, {"similarity": [heads[0] for heads in maps]})
    if len(maps) == 1:
        return heads_of(pictures[0], maps[0])
    rows = {f"head {i}": [heads[i] for heads in maps] for i in range(len(maps[0]))}
    return attention_sheet(pictures, rows)


def _look(backbone: Backbone, image: Image.Image, transform, size: int | None) -> dict:
    """What a teacher sees of one image.

    `picture`, `kind` of the maps, `maps` (layers, heads, h, w), `attention` between all
    tokens (heads, T, T) or None, `features` of the patches (h * w, D).
    """
    picture, x = as_seen(image, transform, backbone.patch_size, size)
    x = x[None].to(next(backbone.parameters()).device)
    try:
        maps = every_layer(backbone, x)
        kind = "CLS attention"
    except TypeError:
        maps = pooled_similarity(backbone, x)[None]
        kind = "pooled similarity"
    try:
        attention = full_attention(backbone, x)[0].cpu()
    except TypeError:  # of a CNN, or where the CLS token alone asks
        attention = None
    features = patch_features(backbone, x).flatten(0, 2).cpu()
    return {"picture": picture, "kind": kind, "maps": maps[:, 0].cpu(), "attention": attention,
            "features": features}


def _entry(name: str, looks: list[dict], pictures: list[str], room: float) -> tuple[dict, Tensor]:
    """One teacher's part of the page's data, and the directions of its features.

    New pictures are added to `pictures`.
    """
    features, scale, directions = compress(torch.cat([look["features"] for look in looks]))
    features = features.split([len(look["features"]) for look in looks])
    images = []
    for look, packed in zip(looks, features, strict=True):
        uri = _data_uri(look["picture"])
        if uri not in pictures:
            pictures.append(uri)
        values, low, step = quantise(look["maps"].flatten(2))
        image = {
            "picture": pictures.index(uri), "grid": look["maps"].shape[2:],
            "maps": to_base64(values), "low": to_short(low), "step": to_short(step),
            "features": to_base64(packed),
        }
        if look["attention"] is not None:
            queries, keys, widths, off = factorise(look["attention"], len(packed), room)
            image |= {
                "queries": to_base64(queries), "keys": to_base64(keys), "scale": to_short(widths),
                "rank": keys.shape[2], "tokens": keys.shape[1], "off": round(off, 5),
            }
        images.append(image)
    layers, heads = looks[0]["maps"].shape[:2]
    return {"name": printable(name), "map": looks[0]["kind"], "layers": layers, "heads": heads,
            "features": to_short(scale), "images": images}, directions


def _gather(images, limit: int) -> tuple[list[str], list[Image.Image]]:
    """(names, PIL images) of one image or path, of a list of them, or of a folder."""
    if isinstance(images, str | os.PathLike) and not Path(images).expanduser().is_file():
        return _from_folder(images, limit)
    is_one = isinstance(images, str | os.PathLike | Image.Image)
    images = [images] if is_one else list(images)
    if not images:
        raise ValueError("no images to look at: the list is empty")
    names = [printable(Path(image).name) if isinstance(image, str | os.PathLike) else f"image {i}"
             for i, image in enumerate(images)]
    return names, [to_channels(image) for image in images]


def _from_folder(path: str | Path, limit: int) -> tuple[list[str], list[Image.Image]]:
    if limit < 1:
        raise ValueError(f"limit={limit} must be at least 1")
    folder = FolderOfImages(path)
    chosen = torch.linspace(0, len(folder) - 1, min(limit, len(folder))).round().long()
    safe = SkipUnreadable(folder)
    found = {}
    for i in chosen.tolist():
        image, _, used = safe[i]
        found[used] = image
    if safe.bad:
        say(safe.report())
    names = [printable(folder.paths[i].relative_to(folder.root)) for i in found]
    return names, list(found.values())


def _data_uri(picture: Image.Image) -> str:
    kind = "png" if max(picture.size) <= 128 else "jpeg"  # small ones are enlarged
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=90)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
