"""A teacher by name or path: one that ships, a run's, someone else's weights, or timm's."""

import os
from pathlib import Path
from typing import Any

import timm
from torch import Tensor, nn

from dino_lib.backbone import create_backbone
from dino_lib.data.say import say
from dino_lib.data.transforms import EvalTransform
from dino_lib.run.checkpoint import NAMES
from dino_lib.run.teacher_file import Teacher, is_run_file, read_head, read_teacher
from dino_lib.teachers.foreign import read_foreign

SHIPPED = Path(__file__).parent
HEAD = "head.safetensors"  # a projection head and its center, beside the teacher
IN_A_FOLDER = ("teacher.safetensors", "model.safetensors", "pytorch_model.bin")  # Hugging Face's
HUB = ("timm:", "hf-hub:")


def load_teacher(name_or_path: str | os.PathLike, device: Any = "cpu", *,
                 num_heads: int | None = None) -> Teacher:
    """A teacher to look at: its `.model`, a Backbone in eval mode, and its `.transform`.

    name_or_path: one that ships ("demo"; "./demo" is a folder here); a run's folder, its
    teacher.safetensors or one of its checkpoints; weights of official DINO or DINOv2, timm,
    Hugging Face, lightly or solo-learn (ViT, XCiT, ResNet, whatever the file's name); "timm:MODEL"
    or "hf-hub:OWNER/MODEL" (pretrained weights, downloaded). num_heads: of a ViT whose file doesn't
    tell. Raises FileNotFoundError naming what can be loaded, OSError where a download fails,
    ValueError, in one line, on weights that can't be read.
    """
    name = str(name_or_path)
    if name.startswith(HUB):
        return _of_timm(name.removeprefix("timm:"), device)
    path, _ = find_teacher(name_or_path)
    if path.is_relative_to(SHIPPED) and path.parent.name == name and Path(name).exists():
        say(f"{name} is the teacher that ships with the package; the folder here is ./{name}")
    if not is_run_file(path):
        return read_foreign(path, device, num_heads)
    if num_heads is not None:
        raise ValueError(f"num_heads={num_heads}: {path} knows its own")
    return read_teacher(path, device)


def load_head(name_or_path: str | os.PathLike, device: Any = "cpu") -> tuple[nn.Module, Tensor]:
    """The projection head of a teacher, features (N, D) -> logits (N, K), and its center (K,).

    name_or_path: a teacher that ships with them ("demo"), a run's folder (its newest checkpoint is
    read) or a checkpoint. The head is in eval mode and without gradients. The teacher's share of
    each prototype is softmax((logits - center) / temperature). Raises FileNotFoundError where
    there is none, ValueError on files that can't be read.
    """
    weights, _ = find_teacher(name_or_path)
    if weights is None:
        raise FileNotFoundError(f"{name_or_path} has no head: timm's models come without")
    if not weights.match(NAMES):
        folder = weights.parent
        places = [folder / HEAD, *sorted(folder.glob(f"checkpoints/{NAMES}"), reverse=True)]
        if not any(place.is_file() for place in places):
            raise FileNotFoundError(f"no head beside {weights}: expected {HEAD} or checkpoints")
        weights = next(place for place in places if place.is_file())
    return read_head(weights, device)


def find_teacher(name_or_path: str | os.PathLike) -> tuple[Path | None, Path | None]:
    """(the file with a teacher's weights, the folder of its run with history.jsonl or None).

    A bare name of a teacher that ships means that one, also where a folder of this name lies here.
    Both are None for timm's names. Raises FileNotFoundError.
    """
    name = str(name_or_path)
    if name.startswith(HUB):
        return None, None
    path = Path(name_or_path).expanduser()
    shipped = {file.parent.name: file.parent for file in SHIPPED.glob("*/teacher.safetensors")}
    if name_or_path in shipped:  # no Path: that is a place
        path = shipped[name]
    files = [path, *(path / file for file in IN_A_FOLDER)]
    weights = next((file for file in files if file.is_file()), None)
    if weights is None:
        if checkpoints := sorted(path.glob(f"checkpoints/{NAMES}")):
            raise FileNotFoundError(f"the run in {name!r} has not ended, so it has no teacher yet: "
                                    f"name a checkpoint, such as {checkpoints[-1]}")
        raise FileNotFoundError(
            f"no teacher {name!r}: expected one that ships ({', '.join(sorted(shipped))}), a run's "
            "folder with teacher.safetensors in it, weights (.safetensors, .pth, .ckpt, .bin), "
            "timm:MODEL or hf-hub:OWNER/MODEL")
    is_runs = weights.name == IN_A_FOLDER[0] and (weights.parent / "history.jsonl").is_file()
    return weights, weights.parent if is_runs else None


def _of_timm(name: str, device: Any) -> Teacher:
    try:
        backbone = create_backbone(name, pretrained=True)
    except OSError as error:
        reason = " ".join(str(error).split())
        raise OSError(f"the weights of {name} could not be downloaded: {reason[:200]}") from error
    data = timm.data.resolve_model_data_config(backbone.model)
    transform = EvalTransform(data["input_size"][-1], data["mean"], data["std"])
    backbone.requires_grad_(False).eval().to(device)
    return Teacher(backbone, transform, about={"what": f"timm's {name}"})
