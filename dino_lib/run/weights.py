"""Weights from a file, whoever wrote it: the tensors of one network, under timm's names.

A file is known by its content, not by its suffix. Nothing in it is run: pickles are read with
torch's `weights_only`, and a class that torch doesn't know becomes a stand-in that does nothing.
"""

import contextlib
import json
import math
import re
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from dino_lib.backbone import Backbone

AVERAGED = {"teacher", "momentum", "ema", "target"}  # words for the network that DINO keeps
NOT_READ = [  # what a name in the file tells of it, and timm's model of that kind
    (r"rope_embed|storage_tokens", "a DINOv3 network", "vit_small_patch16_dinov3.lvd1689m"),
    (r"layers\.\d+\.blocks\.\d+\.attn\.relative_position", "a Swin Transformer",
     "swin_tiny_patch4_window7_224.ms_in1k"),
    (r"attn\.(q_bias|relative_position_bias)", "a BEiT", "beit_base_patch16_224.in22k_ft_in22k"),
    (r"depthwise_conv|conv_dw\.|dwconv\.", "a ConvNeXt", "convnext_tiny.fb_in1k"),
    (r"visual\.(transformer|conv1)|vision_model\.", "a CLIP network",
     "vit_base_patch16_clip_224.openai"),
]

HUGGING_FACE = [  # of ViT, DINO, DINOv2, and DINOv2 with registers
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.register_tokens", "reg_token"),
    (r"^embeddings\.(\w+)", r"\1"),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.attention\.", ".attn."),
    (r"\.intermediate\.dense\.|\.mlp\.weights_in\.", ".mlp.fc1."),
    (r"\.output\.dense\.|\.mlp\.weights_out\.", ".mlp.fc2."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
]
TORCHVISION = [
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token", "cls_token"),
    (r"^encoder\.pos_embedding", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_", "blocks."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
]
OFFICIAL = [
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),  # in chunks, each block with its number in the whole
    (r"^register_tokens", "reg_token"),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    (r"^pos_embeder\.", "pos_embed."),  # XCiT
]
SEQUENTIAL = [  # nn.Sequential(*resnet.children()), as lightly's examples make it
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^([4-7])\.", lambda m: f"layer{int(m[1]) - 3}."),
]
LAYOUTS = [  # a name that the layout has, whose it is, and how its names become timm's
    ("patch_embed.proj.weight", "a ViT under timm's or the official names", OFFICIAL),
    ("embeddings.patch_embeddings.projection.weight", "a ViT of Hugging Face", HUGGING_FACE),
    ("conv_proj.weight", "a ViT of torchvision", TORCHVISION),
    ("patch_embed.proj.0.0.weight", "an XCiT", OFFICIAL),
    ("layer1.0.conv1.weight", "a ResNet", []),
    ("4.0.conv1.weight", "a ResNet in a Sequential", SEQUENTIAL),
]
# heads, and what masked training needs beside the network
BESIDE = r"^(head|heads|head_dist|fc|classifier|pooler)\.|^(decoder|mask_token|masked_embed)"


def read_weights(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """(the tensors of the network in a file, under timm's names; what it is, in words).

    Of student and teacher, the teacher. Raises OSError where the file can't be opened; ValueError,
    in one line, on a file that is damaged, holds no network, or one of a kind that isn't read here.
    """
    return _in_timms_names(read_tensors(path), path)


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Put the weights of a file into `backbone`.

    A file with all of the timm model's own names fits whatever its family; others are read as by
    `read_weights`. Position embeddings are resampled to the backbone's grid. Raises as
    `read_weights`, and ValueError where the weights have other shapes than the backbone.
    """
    tensors = read_tensors(path)
    expected = backbone.model.state_dict()
    state = _network(tensors, next(iter(expected)))
    if not expected.keys() <= state.keys():
        state, _ = _in_timms_names(tensors, path)
    state = {name: value for name, value in state.items()
             if name in expected or not re.match(BESIDE, name)}
    _fit_positions(state, backbone.model)
    load_strictly(backbone.model, state, path)


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Every tensor in a file by its full name: the keys of nested dicts, joined by dots.

    Of a run's folder, that of its teacher.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        path = path / "teacher.safetensors"  # of a run
    with open(path, "rb") as file:
        start = file.read(32)
    if start.startswith((b"<", b"version https://git-lfs")):
        raise ValueError(f"{path} is a web page or a pointer, not the weights: download it again")
    content = read_safetensors(path)[1] if start[8:9] == b"{" else _read_pickle(path)
    tensors = dict(_flatten(content))
    if not tensors:
        raise ValueError(f"{path} holds no tensors by name: save the network's state_dict()")
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """(the words in the header, the tensors) of a safetensors file; ValueError if it is damaged."""
    data = Path(path).read_bytes()  # safetensors itself opens no path that is not UTF-8
    try:
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    end = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:end]).get("__metadata__", {}), tensors


class _StandIn:
    """What an object of a class that torch doesn't know is read as. It keeps and does nothing."""

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _read_pickle(path: Path) -> Any:
    unknown = []
    try:
        with contextlib.suppress(ValueError):  # not a zip file: torch.save before 1.6
            unknown = torch.serialization.get_unsafe_globals_in_checkpoint(path)
        allowed = [(_StandIn, name) for name in unknown if name != "argparse.Namespace"]
        with torch.serialization.safe_globals([Namespace, *allowed]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = type(error).__name__
        raise ValueError(f"{path} is damaged, or more than tensors and plain values ({reason}): "
                         "save the network's state_dict()") from error


def _flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    if torch.is_tensor(value) and prefix:
        yield prefix, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from _flatten(inner, f"{prefix}.{key}" if prefix else str(key))


def _network(tensors: dict[str, Tensor], known: str) -> dict[str, Tensor]:
    """The network that has the tensor `known`, without what stands before its names; {} if none.

    Of several, the averaged one, else the one with the shortest names.
    """
    places = [name.removesuffix(known) for name in tensors if f".{name}".endswith(f".{known}")]
    if not places:
        return {}

    def rank(place: str) -> tuple[bool, int]:
        return AVERAGED.isdisjoint(re.split(r"[._]", place)), len(place)

    place = min(places, key=rank)
    return {name.removeprefix(place): value for name, value in tensors.items()
            if name.startswith(place)}


def _in_timms_names(tensors: dict[str, Tensor], path: str | Path) -> tuple[dict[str, Tensor], str]:
    for pattern, what, name in NOT_READ:
        if any(re.search(pattern, key) for key in tensors):
            raise ValueError(f"{path} holds {what}, which isn't read from a file here: "
                             f"timm:{name}, or another of timm's, would do")
    layouts = [layout for layout in LAYOUTS if _network(tensors, layout[0])]
    if not layouts:
        first = ", ".join(list(tensors)[:3])
        raise ValueError(f"{path} holds no ViT, XCiT or ResNet that is known here (it starts with "
                         f"{first}): of timm's names, timm:NAME takes any")
    known, what, changes = layouts[0]
    state = _network(tensors, known)
    renamed = {}
    for name, value in state.items():
        for pattern, new in changes:
            name = re.sub(pattern, new, name)
        if not re.match(BESIDE, name):
            renamed[name] = value
    try:
        return _regrouped(renamed, any("register_tokens" in name for name in state)), what
    except (IndexError, KeyError, RuntimeError, TypeError) as error:  # of odd shapes
        raise ValueError(f"{path} holds {what} that doesn't fit together: {error!r}") from error


def _regrouped(state: dict[str, Tensor], dinov2_registers: bool) -> dict[str, Tensor]:
    """Tensors that timm keeps together, or apart, are made so."""
    if dinov2_registers:  # timm's model gives the patches alone a place: add the CLS token's to it
        state["cls_token"] = state["cls_token"] + state["pos_embed"][:, :1]
        state["pos_embed"] = state["pos_embed"][:, 1:]
    for name in [name for name in state if ".attn.query." in name]:
        names = [name.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        parts = [state.pop(part) for part in names]
        state[name.replace(".query.", ".qkv.")] = torch.cat(parts)
    for name in [name for name in state if re.match(r"cls_attn_blocks\.\d+\.attn\.qkv\.", name)]:
        for part, value in zip("qkv", state.pop(name).chunk(3), strict=True):
            state[name.replace(".qkv.", f".{part}.")] = value
    return state


def _fit_positions(state: dict[str, Tensor], model: nn.Module) -> None:
    """Resample the position embeddings to the model's grid, where they are those of a square."""
    positions, expected = state.get("pos_embed"), getattr(model, "pos_embed", None)
    if not torch.is_tensor(expected) or getattr(positions, "ndim", None) != 3:
        return
    if positions.shape == expected.shape:
        return
    grid = list(model.patch_embed.grid_size)
    beside = expected.shape[1] - math.prod(grid)  # CLS and registers, where they have places
    side = math.isqrt(max(0, positions.shape[1] - beside))
    if side**2 == positions.shape[1] - beside:
        state["pos_embed"] = resample_abs_pos_embed(positions, grid, [side, side], beside)


def load_strictly(module: nn.Module, state: dict[str, Tensor], path: str | Path) -> None:
    """load_state_dict; ValueError, in one line, where a name or a shape differs."""
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        faults = " ".join(str(error).partition(":")[2].split())
        raise ValueError(f"{path} does not fit: {faults[:300]}") from error
