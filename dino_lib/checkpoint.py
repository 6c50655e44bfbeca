"""Checkpoints: saved atomically, resumed exactly; teachers: saved as safetensors, loaded by name or path.

Nothing that could run code is ever unpickled: full checkpoints hold tensors and plain values and are read with
`weights_only`, teachers are safetensors with their settings as JSON in the header.
"""

import json
import os
import re
from argparse import Namespace
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torchvision.transforms import v2

from dino_lib.augment import IMAGENET
from dino_lib.backbone import create_backbone
from dino_lib.config import Config
from dino_lib.images import to_channels

FORMAT = 1
SHIPPED = Path(__file__).parent / "teachers"


def save_checkpoint(folder, step, state, keep=2):
    """Write `state` to folder/step_XXXXXXXX.pt and drop all but the `keep` newest; returns the path.

    The file appears whole or not at all: it is written under another name, flushed to the disk and renamed.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step_{step:08d}.pt"
    with _atomic(path) as part:
        torch.save({"format": FORMAT, "step": step, **state}, part)
    for old in sorted(folder.glob("step_*.pt"))[:-keep]:
        old.unlink()
    return path


def load_newest(folder, device="cpu"):
    """The newest readable checkpoint of a folder as a dict, or None if there is none.

    A file that is cut short or damaged is reported and passed over for the one before it. An unknown format
    raises ValueError, and so does a folder whose every checkpoint is damaged: starting afresh would hide a loss.
    """
    paths = sorted(Path(folder).glob("step_*.pt"), reverse=True)
    for path in paths:
        try:
            state = torch.load(path, map_location=device, weights_only=True)
        except Exception as error:  # whatever a damaged file makes the reader raise
            print(f"{path} is damaged ({type(error).__name__}); trying the one before it")
            continue
        if state.get("format") != FORMAT:
            raise ValueError(f"{path} has format {state.get('format')!r}; this version reads format {FORMAT}")
        return state
    if paths:
        raise ValueError(f"none of the {len(paths)} checkpoints in {folder} can be read: move them away to start anew")
    return None


def save_teacher(path, backbone, config, **about):
    """The teacher's backbone as safetensors, with the run's settings and `about` (plain values) in its header."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    header = {"format": str(FORMAT), "config": config.to_json(), "about": json.dumps(about)}
    with _atomic(Path(path)) as part:
        save_file(tensors, part, metadata=header)


class _atomic:
    """`with _atomic(path) as part`: write to `part`; on success it is flushed and takes the place of `path`."""

    def __init__(self, path):
        self.path, self.part = path, path.with_name(path.name + ".part")

    def __enter__(self):
        return self.part

    def __exit__(self, kind, value, traceback):
        if kind is not None:
            self.part.unlink(missing_ok=True)
            return
        with open(self.part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(self.part, self.path)


def build_backbone(config, *, pretrained=None):
    """The backbone that a config describes; (C, H, W) inputs have one channel for each entry of `mean`."""
    options = dict(config.backbone_options)
    if len(config.mean) != 3:
        options["in_chans"] = len(config.mean)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    pretrained = config.pretrained if pretrained is None else pretrained
    return create_backbone(config.backbone, pretrained=pretrained, conv_stem=config.conv_stem, **options)


def eval_transform(size, mean, std):
    """PIL image -> (C, size, size) normalised: the shorter side to `size`, then the middle square."""
    return v2.Compose([
        v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
    ])


def as_seen(image, transform, patch_size, size=None):
    """What a teacher sees of a PIL image: (that picture, as PIL image; the same normalised, (C, H, W)).

    transform: the teacher's own, of `eval_transform`. Without `size` it crops as it always does. With it the whole
    image is seen, resized to about size x size pixels in all: its aspect is kept but for rounding both sides to whole
    patches of patch_size (height, width). Raises ValueError on another transform and on a size below one patch.
    """
    steps = getattr(transform, "transforms", [])
    start = next((i for i, step in enumerate(steps) if isinstance(step, v2.ToImage)), None)
    if start is None:
        raise ValueError("a teacher's .transform must be made by checkpoint.eval_transform, to show what it crops")
    if size is None:
        picture = v2.Compose(steps[:start])(image)
    elif size < max(patch_size):
        raise ValueError(f"size={size} is less than one patch of {patch_size} pixels")
    else:
        ratio = size / (image.width * image.height) ** 0.5
        sides = [max(1, round(side * ratio / p)) * p for side, p in zip(image.size, patch_size[::-1], strict=True)]
        picture = image.resize(sides, Image.Resampling.BICUBIC)
    picture = to_channels(picture, len(steps[-1].mean))
    return picture, v2.Compose(steps[start:])(picture)


def load_teacher(name_or_path, device="cpu"):
    """A teacher to look at: a Backbone in eval mode, without gradients, with `.transform(PIL image)`.

    name_or_path: a shipped teacher ("demo"), a run's folder or its teacher.safetensors, an official
    facebookresearch/dino checkpoint (.pth, teacher or full), or "timm:MODEL" (pretrained weights, downloaded).
    `.config` holds the run's settings (None for others), `.about` what its header says of it. Raises
    FileNotFoundError naming what can be loaded, ValueError on weights that do not fit.
    """
    name = str(name_or_path)
    if name.startswith("timm:"):
        backbone = create_backbone(name.removeprefix("timm:"), pretrained=True)
        data = timm.data.resolve_model_data_config(backbone.model)
        return _ready(backbone, device, data["input_size"][-1], data["mean"], data["std"])
    path = _find(name)
    return _load_official(path, device) if path.suffix in (".pth", ".pt") else _load_safetensors(path, device)


def _find(name):
    shipped = SHIPPED / name / "teacher.safetensors"
    candidates = [shipped] if "/" not in name and shipped.exists() else []
    candidates += [Path(name), Path(name) / "teacher.safetensors"]
    for path in candidates:
        if path.is_file():
            return path
    names = sorted(p.parent.name for p in SHIPPED.glob("*/teacher.safetensors"))
    raise FileNotFoundError(
        f"no teacher {name!r}: expected a shipped one ({', '.join(names) or 'none here'}), a run's folder with "
        f"teacher.safetensors in it, a .safetensors file, an official .pth checkpoint, or timm:MODEL")


def _load_safetensors(path, device):
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if header.get("format") != str(FORMAT):
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads format {FORMAT}")
    config = Config.from_json(header["config"])
    backbone = build_backbone(config, pretrained=False)
    _load_strictly(backbone, state, path)
    return _ready(backbone, device, config.eval_size, config.mean, config.std, config, json.loads(header["about"]))


def _load_official(path, device):
    """Official ViT checkpoints: the architecture is read off the weights."""
    try:
        with torch.serialization.safe_globals([Namespace]):  # full checkpoints hold their arguments in one
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain values "
                         f"({type(error).__name__})") from error
    state = state.get("teacher", state)
    state = {re.sub(r"^(module\.)?(backbone\.)?", "", key): value for key, value in state.items()}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    if "patch_embed.proj.weight" not in state:
        raise ValueError(f"{path} holds no official DINO ViT: no patch_embed.proj.weight among {list(state)[:5]}")
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    backbone = create_backbone("vit_base_patch16_224", img_size=side, patch_size=patch, embed_dim=width, depth=depth,
                               num_heads=width // 64)
    _load_strictly(backbone.model, state, path)
    return _ready(backbone, device, side, *IMAGENET)


def _load_strictly(module, state, path):
    expected = {key: value.shape for key, value in module.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    misfit = [f"{k} {tuple(state[k].shape)} for {tuple(expected[k])}" for k in expected.keys() & state.keys()
              if state[k].shape != expected[k]]
    if missing or unexpected or misfit:
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}, wrong shapes {misfit}")
    module.load_state_dict(state)


def _ready(backbone, device, size, mean, std, config=None, about=None):
    backbone.transform = eval_transform(size, mean, std)  # a Module too, so before eval()
    backbone.config, backbone.about = config, about or {}
    return backbone.requires_grad_(False).eval().to(device)
