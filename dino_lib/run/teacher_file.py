"""A teacher as a file: safetensors, with the run's settings and a SHA-256 of all its bytes in the header."""

import hashlib
import json

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from dino_lib.data.transforms import EvalTransform
from dino_lib.run.build import build_backbone
from dino_lib.run.checkpoint import read_checkpoint, write_atomically
from dino_lib.run.config import Config

TEACHER_FORMATS = ("1", "2")  # 1, that of the teachers in the package, has no checksum
ZEROS = 64 * "0"


def save_teacher(path, backbone, config, **about):
    """The teacher's backbone as safetensors, with the run's settings and `about` (plain values) in its header.

    The header holds the SHA-256 of the file too, taken with 64 zeros in its place.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in backbone.state_dict().items()}
    header = {"format": TEACHER_FORMATS[-1], "config": config.to_json(), "about": json.dumps(about), "sha256": ZEROS}
    data = save(tensors, header)
    with write_atomically(path) as file:
        file.write(data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1))


def read_teacher(path, device="cpu"):
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if header.get("format") not in TEACHER_FORMATS:
        raise ValueError(f"{path} has format {header.get('format')!r}; this version reads format "
                         f"{' and '.join(TEACHER_FORMATS)}")
    if header["format"] != "1":
        found = header.get("sha256", "")
        if hashlib.sha256(path.read_bytes().replace(found.encode(), ZEROS.encode(), 1)).hexdigest() != found:
            raise ValueError(f"{path} is damaged: its SHA-256 is another")
    try:
        config, about = Config.from_json(header["config"]), json.loads(header["about"])
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} has settings that cannot be read: {error}") from error
    return _ready_for(config, state, path, device, about)


def teacher_of_checkpoint(path, device):
    state = read_checkpoint(path)
    try:
        config = Config(**state["config"])
        weights = {key.removeprefix("backbone."): value for key, value in state["teacher"].items()
                   if key.startswith("backbone.") and torch.is_tensor(value)}
        about = {"step": state["step"], "images_seen": state["step"] * config.batch_size}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} does not hold the state of a run: {error!r}") from error
    return _ready_for(config, weights, path, device, about)


def _ready_for(config, state, path, device, about):
    try:
        backbone = build_backbone(config, pretrained=False)
    except Exception as error:  # whatever timm makes of odd options
        raise ValueError(f"{path} asks for a network that cannot be built: {error}") from error
    load_strictly(backbone, state, path)
    return ready(backbone, device, config.eval_size, config.mean, config.std, config, about)


def load_strictly(module, state, path):
    expected = {key: value.shape for key, value in module.state_dict().items()}
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    misfit = [f"{k} {tuple(state[k].shape)} for {tuple(expected[k])}" for k in expected.keys() & state.keys()
              if state[k].shape != expected[k]]
    if missing or unexpected or misfit:
        raise ValueError(f"{path} does not fit: missing {missing}, unexpected {unexpected}, wrong shapes {misfit}")
    try:
        module.load_state_dict(state)
    except RuntimeError as error:  # sparse, quantised
        raise ValueError(f"{path} does not fit: {error}") from error


def ready(backbone, device, size, mean, std, config=None, about=None):
    backbone.transform = EvalTransform(size, mean, std)  # a Module too, so before eval()
    backbone.config, backbone.about = config, about or {}
    return backbone.requires_grad_(False).eval().to(device)
