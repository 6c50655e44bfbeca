"""Hand a teacher on to programs without `dino_lib`: ONNX, timm, Hugging Face; with a model card.

Another project's layout to write belongs here; how layouts are read is in `run/weights.py`.
"""

import inspect
import json
import os
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.layers import Mlp, PatchEmbed
from timm.models import save_for_hf
from torch import Tensor, nn

from dino_lib.backbone import Backbone, ConvStem, _prime_factors
from dino_lib.data.transforms import EvalTransform
from dino_lib.teachers.card import model_card
from dino_lib.teachers.graph import check_plain, write_onnx
from dino_lib.teachers.load import load_teacher

STEM = '''"""The convolutional patch embedding of this network: timm has none like it."""

import torch
from timm.layers import PatchEmbed
from torch import Tensor, nn


'''


def export(name_or_path: str | os.PathLike, layout: str, out: str | os.PathLike) -> list[Path]:
    """Write a teacher to the new folder `out`, with a model card (README.md); the files' paths.

    name_or_path: what `load_teacher` takes. layout: "onnx", "timm" or "huggingface". Raises what
    `load_teacher` does, TypeError where the layout has no place for such a network, ImportError
    where a package is missing, ValueError on another layout and where `out` holds files.
    """
    if layout not in LAYOUTS:
        raise ValueError(f"format {layout!r} must be one of {', '.join(LAYOUTS)}")
    out = Path(out).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: an export wants a folder of its own")
    teacher = load_teacher(name_or_path)
    card = model_card(name_or_path, teacher, layout)
    was_there = out.exists()
    out.mkdir(parents=True, exist_ok=True)
    try:
        LAYOUTS[layout](out, teacher.model, teacher.transform)
    except BaseException:
        for path in out.iterdir():  # it held nothing before
            path.unlink()
        if not was_there:
            out.rmdir()
        raise
    (out / "README.md").write_text(card, "utf-8")
    return sorted(out.iterdir())


def _to_timm(out: Path, backbone: Backbone, transform: EvalTransform) -> None:
    """model.safetensors and the config.json that `timm.create_model("local-dir:...")` reads."""
    if "data_config" not in inspect.signature(save_for_hf).parameters:
        raise ImportError(f"timm {timm.__version__} can't write this layout: it takes timm 1.0.31, "
                          "pip install --upgrade timm")
    seen = {
        "input_size": (len(transform.mean), transform.size, transform.size),
        "mean": transform.mean, "std": transform.std,
        "interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center",
    }
    arguments = {}
    if isinstance(getattr(backbone.model, "patch_embed", None), ConvStem):
        arguments["embed_layer"] = "ConvStem of stem.py"  # JSON holds no class
        parts = [inspect.getsource(part) for part in (ConvStem, _prime_factors)]
        (out / "stem.py").write_text(STEM + "\n\n".join(parts), "utf-8")
    told = {"pretrained_cfg": {"tag": "dino", "license": "see README.md"}}
    try:
        save_for_hf(backbone.model, str(out), told, arguments, safe_serialization=True,
                    data_config=seen)
    except ValueError as error:  # built with a class, such as DINOv2's MLP, that JSON can't hold
        raise TypeError(f"timm's config.json can't describe this network: {error}") from error


def _to_huggingface(out: Path, backbone: Backbone, transform: EvalTransform) -> None:
    """config.json, model.safetensors and preprocessor_config.json as `ViTModel` reads them."""
    vit = check_plain(backbone, "a ViTModel of Hugging Face")
    _check_vit_model(vit, backbone)
    block = vit.blocks[0]
    config = {
        "architectures": ["ViTModel"], "model_type": "vit",
        "hidden_size": vit.embed_dim, "num_hidden_layers": len(vit.blocks),
        "num_attention_heads": block.attn.num_heads,
        "intermediate_size": block.mlp.fc1.out_features, "hidden_act": "gelu",
        "layer_norm_eps": vit.norm.eps, "qkv_bias": block.attn.qkv.bias is not None,
        "image_size": vit.patch_embed.img_size[0], "patch_size": vit.patch_embed.patch_size[0],
        "num_channels": len(transform.mean),
        "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "torch_dtype": "float32",
    }
    side = transform.size
    seen = {
        "image_processor_type": "BitImageProcessor", "do_convert_rgb": len(transform.mean) == 3,
        "do_resize": True, "size": {"shortest_edge": side}, "resample": 3,  # bicubic
        "do_center_crop": True, "crop_size": {"height": side, "width": side},
        "do_rescale": True, "rescale_factor": 1 / 255,
        "do_normalize": True, "image_mean": transform.mean, "image_std": transform.std,
    }
    save_file(_in_hugging_faces_names(vit), out / "model.safetensors", {"format": "pt"})
    for name, content in (("config.json", config), ("preprocessor_config.json", seen)):
        (out / name).write_text(json.dumps(content, indent=2) + "\n", "utf-8")


def _check_vit_model(vit: nn.Module, backbone: Backbone) -> None:
    """TypeError that names all for which a ViTModel has no place."""
    block, embed = vit.blocks[0], vit.patch_embed
    identity = nn.Identity
    extra = {
        "a convolutional stem": type(embed) is not PatchEmbed,
        "a norm of the patches": type(embed) is PatchEmbed and type(embed.norm) is not identity,
        "registers": vit.reg_token is not None,
        "normalised queries and keys": type(block.attn.q_norm) is not identity,
        "layer scale": type(block.ls1) is not identity,
        "a norm before the blocks": type(vit.norm_pre) is not identity,
        "another norm than LayerNorm at the end": not isinstance(vit.norm, nn.LayerNorm)
        or type(vit.fc_norm) is not identity,
        "another MLP than two layers with GELU":
            type(block.mlp) is not Mlp or getattr(block.mlp.act, "approximate", "") != "none",
        "patches or images that are not square":
            len(set(backbone.patch_size)) > 1 or len(set(embed.img_size)) > 1,
    }
    found = [what for what, there in extra.items() if there]
    if found:
        raise TypeError("a ViTModel of Hugging Face has no place for what this teacher has: "
                        f"{', '.join(found)}. --format timm takes it, or --format onnx")


def _in_hugging_faces_names(vit: nn.Module) -> dict[str, Tensor]:
    state = dict(vit.state_dict())
    places = state.pop("pos_embed")
    if vit.no_embed_class:
        places = torch.cat([torch.zeros_like(places[:, :1]), places], 1)
    found = {
        "embeddings.cls_token": state["cls_token"], "embeddings.position_embeddings": places,
    }
    for kind in ("weight", "bias"):
        found[f"embeddings.patch_embeddings.projection.{kind}"] = state[f"patch_embed.proj.{kind}"]
        found[f"layernorm.{kind}"] = state[f"norm.{kind}"]
        for i in range(len(vit.blocks)):
            ours, theirs = f"blocks.{i}", f"encoder.layer.{i}"
            for our, their in BLOCK.items():
                found[f"{theirs}.{their}.{kind}"] = state[f"{ours}.{our}.{kind}"]
            together = state.get(f"{ours}.attn.qkv.{kind}")  # no bias with qkv_bias=False
            if together is not None:
                for part, value in zip(("query", "key", "value"), together.chunk(3), strict=True):
                    found[f"{theirs}.attention.attention.{part}.{kind}"] = value
    return {name: value.cpu().contiguous().clone() for name, value in found.items()}


BLOCK = {  # a block's parts in timm's names -> in Hugging Face's
    "norm1": "layernorm_before", "norm2": "layernorm_after",
    "attn.proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense",
}
LAYOUTS = {"onnx": lambda out, *teacher: write_onnx(out / "model.onnx", *teacher),
           "timm": _to_timm, "huggingface": _to_huggingface}
