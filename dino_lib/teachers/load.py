"""A teacher by name or path: shipped, a run's, an official checkpoint, or timm's."""

import re
from argparse import Namespace
from pathlib import Path

import timm
import torch

from dino_lib.augment import IMAGENET
from dino_lib.backbone import create_backbone
from dino_lib.run.checkpoint import NAMES
from dino_lib.run.teacher_file import load_strictly, read_teacher, ready, teacher_of_checkpoint

SHIPPED = Path(__file__).parent


def load_teacher(name_or_path, device="cpu"):
    """A teacher to look at: a Backbone in eval mode, without gradients, with `.transform(PIL image)`.

    name_or_path: a shipped teacher ("demo"), a run's folder or its teacher.safetensors or one of its checkpoints
    (step_XXXXXXXX.pt), an official facebookresearch/dino checkpoint (.pth, teacher or full), or "timm:MODEL"
    (pretrained weights, downloaded).
    `.config` holds the run's settings (None for others), `.about` what its header says of it. Raises
    FileNotFoundError naming what can be loaded, ValueError on weights that do not fit.
    """
    name = str(name_or_path)
    if name.startswith("timm:"):
        backbone = create_backbone(name.removeprefix("timm:"), pretrained=True)
        data = timm.data.resolve_model_data_config(backbone.model)
        return ready(backbone, device, data["input_size"][-1], data["mean"], data["std"])
    path = _find(name)
    if path.match(NAMES):
        return teacher_of_checkpoint(path, device)
    return _load_official(path, device) if path.suffix in (".pth", ".pt") else read_teacher(path, device)


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


def _load_official(path, device):
    """Official ViT checkpoints: the architecture is read off the weights."""
    try:
        with torch.serialization.safe_globals([Namespace]):  # full checkpoints hold their arguments in one
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise ValueError(f"{path} is damaged, or holds more than tensors and plain values "
                         f"({type(error).__name__})") from error
    state = state.get("teacher", state) if isinstance(state, dict) else state
    state = {re.sub(r"^(module\.)?(backbone\.)?", "", str(key)): value for key, value in state.items()
             if torch.is_tensor(value)} if isinstance(state, dict) else {}
    state = {key: value for key, value in state.items() if not key.startswith("head.")}
    if "patch_embed.proj.weight" not in state:
        raise ValueError(f"{path} holds no official DINO ViT: no patch_embed.proj.weight among {list(state)[:5]}")
    try:
        width, _, patch, _ = state["patch_embed.proj.weight"].shape
        side = round((state["pos_embed"].shape[1] - 1) ** 0.5) * patch
        depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
        backbone = create_backbone("vit_base_patch16_224", img_size=side, patch_size=patch, embed_dim=width,
                                   depth=depth, num_heads=width // 64)
    except Exception as error:  # whatever timm makes of odd shapes
        raise ValueError(f"{path} holds no official DINO ViT: {error!r}") from error
    load_strictly(backbone.model, state, path)
    return ready(backbone, device, side, *IMAGENET)
