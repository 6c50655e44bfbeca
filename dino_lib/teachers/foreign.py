"""Other people's networks: what the weights tell is read off them, the rest is asked for."""

import json
import re
from pathlib import Path
from typing import Any

from timm.layers import SwiGLUPacked
from timm.models.resnet import BasicBlock, Bottleneck
from torch import Tensor, nn

from dino_lib.augment import IMAGENET
from dino_lib.backbone import Backbone, create_backbone
from dino_lib.data.say import say
from dino_lib.data.transforms import EvalTransform
from dino_lib.run.teacher_file import Teacher
from dino_lib.run.weights import load_strictly, read_weights

# (width, blocks) of ViT-Ti, S, B, L, H and g, and their heads
STANDARD_HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16,
                  (1536, 40): 24}


def read_foreign(path: Path, device: Any = "cpu", num_heads: int | None = None) -> Teacher:
    """The Teacher in a file of official DINO or DINOv2, timm, Hugging Face, lightly, solo-learn.

    num_heads: of a ViT whose file doesn't tell. Without it a config.json beside the file does, or
    the number of a standard ViT of this size is taken, and a line says so. Raises ValueError, in
    one line, on a file with no network that is known here, and where num_heads must be given.
    """
    state, what = read_weights(path)
    try:
        if "patch_embed.proj.0.0.weight" in state:
            name, options = _xcit(state)
        elif "layer1.0.conv1.weight" in state:
            name, options = _resnet(state)
        else:
            name, options = _vit(state, path)
            options["num_heads"] = _heads(path, options, num_heads)
        backbone = create_backbone(name, **options)
    except Exception as error:  # whatever odd shapes lead to
        reason = " ".join(str(error.__cause__ or error).split())[:300]
        raise ValueError(f"{path} holds {what}, which can't be built: {reason}") from error
    load_strictly(backbone.model, state, path)
    transform = EvalTransform(_side(backbone), *_colours(path, options.get("in_chans", 3)))
    backbone.requires_grad_(False).eval().to(device)
    return Teacher(backbone, transform, about={"what": what})


def _vit(state: dict[str, Tensor], path: Path) -> tuple[str, dict[str, Any]]:
    width, channels, patch, _ = state["patch_embed.proj.weight"].shape
    block = {name.removeprefix("blocks.0."): value.shape for name, value in state.items()
             if name.startswith("blocks.0.")}
    registers = state["reg_token"].shape[1] if "reg_token" in state else 0
    has_cls = "cls_token" in state
    places = state["pos_embed"].shape[1]
    beside = 0 if _is_square(places) else has_cls + registers
    if not _is_square(places - beside):
        raise ValueError(f"{places} places in the position embedding are no square grid")
    hidden = block["mlp.fc1.weight"][0]
    options = {
        "img_size": round((places - beside) ** 0.5) * patch, "patch_size": patch,
        "in_chans": channels, "embed_dim": width, "depth": _count(state, "blocks"),
        "mlp_ratio": (hidden + 0.5) / width,  # timm rounds it down
        "qkv_bias": "attn.qkv.bias" in block, "qk_norm": "attn.q_norm.weight" in block,
        "init_values": 1e-5 if "ls1.gamma" in block else None,
        "class_token": has_cls, "reg_tokens": registers, "no_embed_class": beside == 0,
        "pre_norm": "norm_pre.weight" in state, "fc_norm": "fc_norm.weight" in state,
        "final_norm": "norm.weight" in state or "fc_norm.weight" in state,
        "global_pool": "token" if has_cls else "avg",
    }
    if "quickgelu" in str(_beside(path, "config.json").get("architecture")):
        options["act_layer"] = "quick_gelu"  # OpenAI's CLIP; the weights don't show it
    if hidden != block["mlp.fc2.weight"][1]:
        options |= {"mlp_layer": SwiGLUPacked, "act_layer": nn.SiLU}
    if options["qk_norm"]:
        options["num_heads"] = width // block["attn.q_norm.weight"][0]
    return "vit_base_patch16_224", options


def _heads(path: Path, options: dict[str, Any], asked: int | None) -> int:
    told = options.get("num_heads") or _beside(path, "config.json").get("num_attention_heads")
    if asked or told:
        return asked or told
    width, depth = options["embed_dim"], options["depth"]
    if (width, depth) not in STANDARD_HEADS:
        raise ValueError(f"it is {width} wide with {depth} blocks, and nothing tells how many "
                         "heads it has: give load_teacher num_heads, or the file a config.json "
                         "beside it with num_attention_heads")
    heads = STANDARD_HEADS[width, depth]
    say(f"{path}: {heads} heads, as a standard ViT of this size has; "
        "the file doesn't tell (num_heads=... if it has others)")
    return heads


def _xcit(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    width = state["cls_token"].shape[-1]
    convolutions = len({name for name in state
                        if re.fullmatch(r"patch_embed\.proj\.\d+\.0\.weight", name)})
    options = {
        "patch_size": 2**convolutions, "embed_dim": width, "depth": _count(state, "blocks"),
        "num_heads": state["blocks.0.attn.temperature"].shape[0],
        "cls_attn_layers": _count(state, "cls_attn_blocks"),
        "tokens_norm": width != 128,  # all but XCiT-nano
    }
    return "xcit_small_12_p16_224", options


def _resnet(state: dict[str, Tensor]) -> tuple[str, dict[str, Any]]:
    options = {
        "block": Bottleneck if "layer1.0.conv3.weight" in state else BasicBlock,
        "layers": tuple(_count(state, f"layer{i}") for i in range(1, 5)),
        "in_chans": state["conv1.weight"].shape[1],
    }
    return "resnet50", options


def _count(state: dict[str, Tensor], blocks: str) -> int:
    """How many numbered parts `blocks` has: those of a file that lacks some won't fit later."""
    return len({name.split(".")[1] for name in state if name.startswith(f"{blocks}.")})


def _is_square(n: int) -> bool:
    return n > 0 and round(n**0.5) ** 2 == n


def _side(backbone: Backbone) -> int:
    """The size of image that the weights were made for."""
    embed = getattr(backbone.model, "patch_embed", None)
    return getattr(embed, "img_size", (224, 224))[0]


def _colours(path: Path, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std of the images: what Hugging Face's or timm's file in the folder tells, else
    ImageNet's; of grey pictures the mean of ImageNet's three. ValueError where they don't fit.
    """
    of_timm = _beside(path, "config.json").get("pretrained_cfg")
    of_timm = of_timm if isinstance(of_timm, dict) else {}
    of_hub = _beside(path, "preprocessor_config.json")
    found = []
    for name, usual in zip(("mean", "std"), IMAGENET, strict=True):
        told = of_hub.get(f"image_{name}") or of_timm.get(name)
        if told is None:
            told = usual if channels == len(usual) else [sum(usual) / len(usual)] * channels
        if not isinstance(told, list | tuple) or len(told) != channels:
            raise ValueError(f"{path}: the file beside it says {name} {told!r}, and the network "
                             f"takes {channels} channel(s): a number for each is expected")
        found.append(tuple(float(value) for value in told))
    return found[0], found[1]


def _beside(path: Path, name: str) -> dict[str, Any]:
    """What a JSON file in the same folder says (Hugging Face, timm); {} where there is none."""
    try:
        found = json.loads((path.parent / name).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
