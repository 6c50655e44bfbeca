"""A teacher; and a run's teacher, or its head, as a file: safetensors with the settings in its
header.

The header also holds the SHA-256 of the whole file, taken with 64 zeros in its own place.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from dino_lib.backbone import Backbone
from dino_lib.data.transforms import EvalTransform
from dino_lib.run.build import build_backbone, build_head
from dino_lib.run.checkpoint import LENGTH, NAMES, read_checkpoint, write_atomically
from dino_lib.run.config import Config
from dino_lib.run.weights import load_strictly, read_safetensors

FORMATS = ("1", "2")  # 1, that of the teachers in the package, has no checksum
ZEROS = 64 * "0"


@dataclass(frozen=True)
class Teacher:
    """A network to look at. All functions that take a model take a Teacher too.

    model: a Backbone in eval mode, without gradients. transform: a picture -> (C, H, W), normalised
    as the model expects it. config: the settings of its run, None for a network from elsewhere.
    about: plain values that tell where it comes from (`step` and `images_seen` of a run).
    """

    model: Backbone = field(repr=False)
    transform: Callable[[Any], Tensor]
    config: Config | None = field(default=None, repr=False)
    about: Mapping[str, Any] = field(default_factory=dict)


def save_teacher(path: str | Path, backbone: Backbone, config: Config, **about: Any) -> None:
    """Write a backbone, the settings of its run, and `about` (plain values) to a file."""
    _save(path, backbone.state_dict(), config, about)


def save_head(path: str | Path, head: nn.Module, center: Tensor, config: Config,
              **about: Any) -> None:
    """Write a projection head and the center of its loss to a file, as `save_teacher` does."""
    _save(path, {**head.state_dict(), "center": center}, config, about)


def _save(path: str | Path, tensors: Mapping[str, Tensor], config: Config, about: dict) -> None:
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    header = {"format": FORMATS[-1], "config": config.to_json(), "about": json.dumps(about),
              "sha256": ZEROS}
    data = save(tensors, header)
    checksum = hashlib.sha256(data).hexdigest()
    with write_atomically(path) as file:
        file.write(data.replace(ZEROS.encode(), checksum.encode(), 1))


def is_run_file(path: Path) -> bool:
    """Whether a file is a run's teacher or one of its checkpoints, and not someone else's weights.

    Damaged files count by what is left of them.
    """
    with open(path, "rb") as file:
        start = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - LENGTH))
        end = file.read()
    in_header = b'"about":' in start or b'"sha256":' in start
    return in_header or end.startswith(b"\nsha256 ") or path.match(NAMES)


def read_teacher(path: str | Path, device: str | torch.device = "cpu") -> Teacher:
    """The Teacher in a run's teacher.safetensors, or in one of its checkpoints.

    Raises OSError where the file can't be opened; ValueError where it is damaged, has another
    format, or its settings and weights don't fit.
    """
    path = Path(path)
    read = _of_checkpoint if _is_checkpoint(path) else _of_safetensors
    try:
        config, weights, about = read(path)
        backbone = build_backbone(dataclasses.replace(config, pretrained=False))
    except (KeyError, TypeError, AttributeError) as error:  # whole, and still something else
        raise ValueError(f"{path} holds no teacher: {error!r}") from error
    load_strictly(backbone, weights, path)
    transform = EvalTransform(config.eval_size, config.mean, config.std)
    backbone.requires_grad_(False).eval().to(device)
    return Teacher(backbone, transform, config, about)


def _is_checkpoint(path: Path) -> bool:
    """torch's files are zip archives. safetensors begins with its header's length, of which two
    bytes may be "PK" too, but never four."""
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def read_head(path: str | Path, device: str | torch.device = "cpu") -> tuple[nn.Module, Tensor]:
    """(head, center) of a file that `save_head` wrote, or of a checkpoint; as `read_teacher`."""
    path = Path(path)
    if _is_checkpoint(path):
        state = read_checkpoint(path)
        config = Config(**state["config"])
        weights = {name.removeprefix("head."): value for name, value in state["teacher"].items()
                   if name.startswith("head.")}
        center = state["loss"]["center"]
    else:
        config, weights, _ = _of_safetensors(path)
        center = weights.pop("center", None)
    if center is None or "mlp.0.weight" not in weights:
        raise ValueError(f"{path} holds no head with its center")
    head = build_head(config, weights["mlp.0.weight"].shape[1])
    load_strictly(head, weights, path)
    head.requires_grad_(False).eval().to(device)
    return head, center.to(device)


def _of_safetensors(path: Path) -> tuple[Config, dict[str, Tensor], dict]:
    header, weights = read_safetensors(path)
    if header.get("format") not in FORMATS:
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads format "
                         f"{' and '.join(FORMATS)}")
    if header["format"] != "1":
        found = header.get("sha256", "")
        data = path.read_bytes().replace(found.encode(), ZEROS.encode(), 1)
        if hashlib.sha256(data).hexdigest() != found:
            raise ValueError(f"{path} is damaged: its SHA-256 is another")
    return Config.from_json(header["config"]), weights, json.loads(header["about"])


def _of_checkpoint(path: Path) -> tuple[Config, dict[str, Tensor], dict]:
    state = read_checkpoint(path)
    config = Config(**state["config"])
    weights = {name.removeprefix("backbone."): value for name, value in state["teacher"].items()
               if name.startswith("backbone.")}
    about = {"step": state["step"], "images_seen": state["step"] * config.batch_size}
    return config, weights, about
