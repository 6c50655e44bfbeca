"""Other people's checkpoints: each layout, made from a tiny network, gives that network's features.

The names are those of the code that writes such files. What holds no network that is known here
is refused in one line.
"""

import json
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from dino_lib.augment import IMAGENET
from dino_lib.run.weights import NOT_READ
from dino_lib.teachers.load import load_teacher

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 4}


def network(name="vit_tiny_patch16_224", **options):
    """A timm model with random numbers everywhere, so that a mix-up shows."""
    torch.manual_seed(7)
    model = timm.create_model(name, num_classes=0, **options).eval()
    return randomised(model)


def randomised(model):
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def vit(**options):
    return network(**{**TINY, "dynamic_img_size": True, **options})


def under(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def doubled(state):
    """Other weights of the same shapes: the student's."""
    return {name: 2 * value for name, value in state.items()}


def renamed(state, *pairs):
    result = {}
    for name, value in state.items():
        for old, new in pairs:
            name = name.replace(old, new)
        result[name] = value
    return result


# --- how others write a ViT: functions of a timm model's state dict ------------------------------


def dinov2(state):
    """facebookresearch/dinov2: registers apart, and a place for the CLS token in any case."""
    state = {**state, "mask_token": torch.ones(1, 64)}
    if "reg_token" in state:
        place = torch.linspace(-1, 1, 64)[None, None]  # a constant would vanish in the norms
        state["register_tokens"] = state.pop("reg_token")
        state["cls_token"] = state["cls_token"] - place
        state["pos_embed"] = torch.cat([place, state["pos_embed"]], 1)
    return state


def chunked(state):
    """The same with block_chunks=2: each block keeps its number."""
    blocks = [(f"blocks.{i}.", f"blocks.{i // 2}.{i}.") for i in (0, 1, 2)]
    return renamed(state, *blocks)


def in_three(state, name, parts):
    """qkv as three tensors."""
    result = {}
    for key, value in state.items():
        if ".attn.qkv." in key:
            for part, piece in zip(parts, value.chunk(3), strict=True):
                result[key.replace(".attn.qkv.", f".{name}.{part}.")] = piece
        else:
            result[key] = value
    return result


def hugging_face(state):
    """transformers' Dinov2Model, Dinov2WithRegistersModel and (without layer scale) ViTModel."""
    if "blocks.0.ls1.gamma" in state:
        rows = [(".ls1.gamma", ".layer_scale1.lambda1"), (".ls2.gamma", ".layer_scale2.lambda1")]
        state = dinov2(state)
    else:
        rows = [
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
        ]
    state = in_three(state, "attention.attention", ("query", "key", "value"))
    tokens = ("cls_token", "mask_token", "register_tokens", "pos_embed")
    state = {
        f"embeddings.{name}" if name in tokens else name: value for name, value in state.items()
    }
    return renamed(
        state,
        *rows,
        ("blocks.", "encoder.layer."),
        (".attn.proj.", ".attention.output.dense."),
        ("embeddings.pos_embed", "embeddings.position_embeddings"),
        ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
    ) | {"layernorm.weight": state["norm.weight"], "layernorm.bias": state["norm.bias"]}


class Settings:
    """A class of another program, as omegaconf's in solo-learn's files."""

    def __init__(self):
        self.name = "vit"


def layouts():
    """name: (timm options, file name, what a state dict becomes)."""
    ls, registers = {"init_values": 1.0}, {"reg_tokens": 4, "no_embed_class": True}

    def official(state, prefix="module.backbone."):
        head = {"module.head.mlp.0.weight": torch.ones(2, 2)}
        return {
            "teacher": under(prefix, state) | head,
            "epoch": 3,
            "args": Namespace(arch="vit"),
            "student": under("module.backbone.", doubled(state)),
            "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}},
        }

    def lightly(state):
        return {
            "state_dict": under("student_backbone.vit.", doubled(state))
            | under("teacher_backbone.vit.", state)
            | {
                "teacher_backbone.mask_token": torch.ones(1, 1, 64),
                "teacher_head.layers.0.weight": torch.ones(3),
                "criterion.center": torch.ones(3),
            },
            "epoch": 2,
            "hyper_parameters": {"lr": 0.1},
            "pytorch-lightning_version": "2.4.0",
        }

    def solo(state):
        return {
            "state_dict": under("backbone.", doubled(state))
            | under("momentum_backbone.", state)
            | {"momentum_head.mlp.0.weight": torch.ones(2), "classifier.weight": torch.ones(2)},
            "hyper_parameters": Settings(),
            "loops": {"fit_loop": {"state_dict": {}}},
        }

    def moco(state):
        return {
            "arch": "vit_small",
            "state_dict": under("module.base_encoder.", doubled(state))
            | under("module.momentum_encoder.", state),
        }

    def mae(state):
        beside = {"mask_token": torch.ones(1), "decoder_pos_embed": torch.ones(1)}
        return {"model": {**state, **beside, "decoder_blocks.0.norm1.bias": torch.ones(2)}}

    def timms(state):
        return {
            "state_dict": doubled(state),
            "state_dict_ema": {
                **state,
                "head.weight": torch.ones(10, 64),
                "head.bias": torch.ones(10),
            },
        }

    return {
        "official, full": ({}, "checkpoint0300.pth", official),
        "official, teacher": ({}, "teacher.pth", lambda s: under("backbone.", s)),
        "official, backbone": ({}, "dino_deitsmall16_pretrain.pth", dict),
        "official DINOv2": (ls, "dinov2_vits14_pretrain.pth", dinov2),
        "official DINOv2, registers": ({**ls, **registers}, "dinov2_vits14_reg4.pth", dinov2),
        "official DINOv2, chunks": (ls, "chunks.pth", lambda s: chunked(dinov2(s))),
        "official DINOv2, training": (
            {**ls, **registers},
            "teacher_checkpoint.pth",
            lambda s: {
                "teacher": under("backbone.", chunked(dinov2(s)))
                | {"dino_head.mlp.0.weight": torch.ones(2)}
            },
        ),
        "Hugging Face DINO, safetensors": ({}, "model.safetensors", hugging_face),
        "Hugging Face DINO, bin": (
            {},
            "pytorch_model.bin",
            lambda s: under("vit.", hugging_face(s)),
        ),
        "Hugging Face DINOv2, safetensors": (ls, "model.safetensors", hugging_face),
        "Hugging Face DINOv2, registers": ({**ls, **registers}, "x.safetensors", hugging_face),
        "Hugging Face DINOv2, classifier": (
            ls,
            "pytorch_model.bin",
            lambda s: under("dinov2.", hugging_face(s)) | {"classifier.weight": torch.ones(2)},
        ),
        "lightly": ({}, "last.ckpt", lightly),
        "solo-learn": ({}, "dino-vit-ep=99.ckpt", solo),
        "pth.tar": ({}, "model_best.pth.tar", moco),
        "MAE": ({}, "mae_pretrain.pth", mae),
        "timm": ({}, "model_best.pth.tar", timms),
        "timm, no suffix": ({}, "weights", dict),
        "timm, safetensors": ({}, "timm.safetensors", dict),
        "timm, registers with places": ({"reg_tokens": 4}, "x.pth", dict),
        "timm, mean-pooled": ({"global_pool": "avg"}, "x.pth", dict),
        "timm, no bias": ({"qkv_bias": False}, "x.pth", dict),
        "timm, grey, flat patches": ({"in_chans": 1, "mlp_ratio": 2.7}, "x.pth", dict),
    }


def written(path, content):
    if path.suffix == ".safetensors":
        save_file(
            {name: value.clone() for name, value in content.items()},
            path,
            metadata={"format": "pt"},
        )
    else:
        torch.save(content, path)
    return path


@pytest.mark.parametrize("name", layouts())
def test_every_layout_of_a_vit_gives_timms_features(tmp_path, name):
    options, file, write = layouts()[name]
    model = vit(**options)
    path = written(tmp_path / file, write(model.state_dict()))
    teacher = load_teacher(path, num_heads=4)
    assert not any(p.requires_grad or teacher.model.training for p in teacher.model.parameters())
    assert (teacher.config, teacher.model.patch_size) == (None, (8, 8))
    for side in (32, 48):  # other sizes too: the tokens without a place are where they should be
        x = torch.randn(2, options.get("in_chans", 3), side, side)
        with torch.no_grad():
            expected = model.forward_features(x)[:, 0]
            expected = model.fc_norm(expected)
        assert expected.std() > 0.1
        torch.testing.assert_close(teacher.model(x), expected, atol=1e-5, rtol=1e-5)


def test_the_gated_mlp_of_dinov2_giant(tmp_path):
    from timm.layers import SwiGLUPacked

    model = vit(init_values=1.0, mlp_layer=SwiGLUPacked, act_layer=nn.SiLU, mlp_ratio=5.0)
    official = renamed(dinov2(model.state_dict()), (".fc1.", ".w12."), (".fc2.", ".w3."))
    theirs = renamed(
        hugging_face(model.state_dict()), (".fc1.", ".weights_in."), (".fc2.", ".weights_out.")
    )
    x = torch.randn(2, 3, 32, 32)
    for state in (official, theirs):
        teacher = load_teacher(written(tmp_path / "giant.pth", state), num_heads=4)
        with torch.no_grad():
            expected = model.forward_features(x)[:, 0]
        torch.testing.assert_close(teacher.model(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "teacher_backbone.vit."])
def test_torchvisions_vit_gives_torchvisions_features(tmp_path, prefix):
    torch.manual_seed(0)
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 256, num_classes=5).eval()
    path = written(tmp_path / "vit.pth", under(prefix, randomised(model).state_dict()))
    model.heads = nn.Identity()
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(x)
    found = load_teacher(path, num_heads=4).model(x)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "width", "patch"),
    [
        ("xcit_small_12_p16_224", 64, 16),
        ("xcit_small_12_p8_224", 64, 8),
        ("xcit_nano_12_p16_224", 128, 16),
    ],
)
def test_an_official_xcit_gives_timms_features(tmp_path, name, width, patch):
    model = network(name, embed_dim=width, depth=2, num_heads=4)
    state = {}
    for key, value in model.state_dict().items():
        key = key.replace("pos_embed.", "pos_embeder.")
        if "cls_attn_blocks" in key and ".attn.q." in key:  # official: one matrix
            parts = [key.replace(".q.", f".{part}.") for part in "qkv"]
            value = torch.cat([model.state_dict()[part] for part in parts])
            key = key.replace(".q.", ".qkv.")
        if not (key.startswith("cls_attn_blocks") and (".attn.k." in key or ".attn.v." in key)):
            state[key] = value
    path = written(tmp_path / "dino_xcit.pth", {"teacher": under("module.backbone.", state)})
    teacher = load_teacher(path)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model.forward_features(x)[:, 0]
    torch.testing.assert_close(teacher.model(x), expected, atol=1e-5, rtol=1e-5)
    assert teacher.model.patch_size == (patch, patch)


@pytest.mark.parametrize(
    ("name", "layout"),
    [("resnet18", "in a Sequential"), ("resnet18", "solo-learn"), ("resnet50", "official")],
)
def test_a_resnet_gives_torchvisions_features(tmp_path, name, layout):
    torch.manual_seed(0)
    model = torchvision.models.get_model(name).eval()
    model.fc = nn.Identity()
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean, -0.1, 0.1)
    if layout == "in a Sequential":  # as lightly's examples
        state = nn.Sequential(*list(model.children())[:-1]).state_dict()
        content = {"state_dict": under("backbone.", state)}
    elif layout == "solo-learn":
        content = {
            "state_dict": under("momentum_backbone.", model.state_dict())
            | under("backbone.", doubled(model.state_dict()))
        }
    else:
        content = {"teacher": under("module.backbone.", model.state_dict())}
    path = written(tmp_path / "resnet.pth", content)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
    torch.testing.assert_close(load_teacher(path).model(x), expected, atol=1e-5, rtol=1e-4)


# --- heads, sizes, colours ------------------------------------------------------------------------


def refused(path, **options):
    """The words of the ValueError: one line, and not a long one."""
    with pytest.raises(ValueError) as error:
        load_teacher(path, **options)
    words = str(error.value)
    assert "\n" not in words and len(words.replace(str(path), "")) < 400
    assert str(path) in words
    return words


def test_the_number_of_heads_is_asked_for_where_nothing_tells_it(tmp_path):
    path = written(tmp_path / "x.pth", vit().state_dict())
    assert "64 wide with 3 blocks, and nothing tells how many heads it has" in refused(path)
    assert "divisible by num_heads" in refused(path, num_heads=7)
    tiny = vit(embed_dim=192, num_heads=6)  # the width of ViT-Ti, but not its depth
    assert "num_heads" in refused(written(tmp_path / "tiny.pth", tiny.state_dict()))


def test_a_standard_size_takes_the_standard_heads_and_says_so(tmp_path, capsys):
    model = vit(embed_dim=192, depth=12, num_heads=6)  # 6 x 32, where ViT-Ti has 3 x 64
    path = written(tmp_path / "x.pth", model.state_dict())
    assert load_teacher(path).model.model.blocks[0].attn.num_heads == 3
    said = capsys.readouterr().out
    assert str(path) in said and "3 heads" in said and "num_heads=" in said
    teacher, x = load_teacher(path, num_heads=6), torch.randn(2, 3, 32, 32)
    assert capsys.readouterr().out == ""
    with torch.no_grad():
        expected = model.forward_features(x)[:, 0]
    torch.testing.assert_close(teacher.model(x), expected, atol=1e-5, rtol=1e-5)


def test_heads_that_can_be_read_are_read(tmp_path):
    path = written(tmp_path / "normed.pth", vit(qk_norm=True).state_dict())
    assert load_teacher(path).model.model.blocks[0].attn.num_heads == 4
    assert "size mismatch for blocks.0.attn.q_norm" in refused(path, num_heads=2)
    folder = tmp_path / "dinov2-tiny"
    folder.mkdir()
    written(folder / "model.safetensors", hugging_face(vit(init_values=1.0).state_dict()))
    (folder / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    assert load_teacher(folder).model.model.blocks[0].attn.num_heads == 4


def test_a_foreign_teacher_sees_pictures_of_its_size_in_imagenets_colours_or_its_own(tmp_path):
    white = Image.new("RGB", (50, 40), "white")
    path = written(tmp_path / "x.pth", vit().state_dict())
    mean, std = (torch.tensor(values)[:, None, None] for values in IMAGENET)
    seen = load_teacher(path, num_heads=4).transform(white)
    torch.testing.assert_close(seen, ((1 - mean) / std).expand(3, 32, 32))
    colours = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.25, 0.25]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(colours))
    seen = load_teacher(path, num_heads=4).transform(white)
    torch.testing.assert_close(seen, torch.full((3, 32, 32), 2.0))


def test_timms_own_file_tells_the_colours_too(tmp_path):
    path = written(tmp_path / "x.pth", vit().state_dict())
    timms = {"architecture": "x", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(timms))
    transform = load_teacher(path, num_heads=4).transform
    assert (transform.mean, transform.std) == ((0.5,) * 3, (0.25,) * 3)


def test_a_grey_network_sees_grey(tmp_path):
    path = written(tmp_path / "x.pth", vit(in_chans=1).state_dict())
    teacher = load_teacher(path, num_heads=4)
    assert teacher.transform.mean == (pytest.approx(sum(IMAGENET[0]) / 3),)
    x = teacher.transform(Image.new("RGB", (50, 40), "white"))[None]
    assert x.shape == (1, 1, 32, 32) and teacher.model(x).shape[0] == 1


@pytest.mark.parametrize("told", [0.5, [0.5, 0.5], "0.5"])
def test_colours_that_do_not_fit_are_named(tmp_path, told):
    path = written(tmp_path / "x.pth", vit().state_dict())
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"image_mean": told}))
    with pytest.raises(ValueError, match=r"says mean .* takes 3 channel\(s\)"):
        load_teacher(path, num_heads=4)


def test_the_activation_of_openais_clip_is_asked_for(tmp_path):
    model = vit(act_layer="quick_gelu")
    path = written(tmp_path / "x.pth", model.state_dict())
    timms = {"architecture": "vit_base_patch16_clip_quickgelu_224"}
    (tmp_path / "config.json").write_text(json.dumps(timms))
    teacher = load_teacher(path, num_heads=4)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.model.model(x), model.eval()(x), atol=1e-5, rtol=1e-4)


# --- what isn't read ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "what", "name"),
    [
        ("swin_tiny_patch4_window7_224", "Swin", "timm:swin"),
        ("convnext_atto", "ConvNeXt", "timm:convnext"),
        ("beit_base_patch16_224", "BEiT", "timm:beit"),
    ],
)
def test_other_families_are_named_with_the_timm_model_that_would_do(tmp_path, model, what, name):
    state = timm.create_model(model, num_classes=0).state_dict()
    state = {key: torch.zeros(1) for key in state}
    words = refused(written(tmp_path / "x.ckpt", {"state_dict": under("backbone.", state)}))
    assert what in words and name in words


@pytest.mark.parametrize(
    ("names", "what"),
    [
        (
            ["cls_token", "storage_tokens", "rope_embed.periods", "blocks.0.attn.qkv.weight"],
            "DINOv3",
        ),
        (["embeddings.patch_embeddings.weight", "rope_embeddings.inv_freq"], "DINOv3"),
        (["visual.class_embedding", "visual.transformer.resblocks.0.ln_1.weight"], "CLIP"),
        (["vision_model.embeddings.patch_embedding.weight"], "CLIP"),
        (["conv1.weight", "features.0.weight"], "it starts with conv1.weight, features.0.weight"),
    ],
)
def test_what_a_file_is_stands_in_the_error(tmp_path, names, what):
    assert what in refused(written(tmp_path / "x.bin", {name: torch.ones(1) for name in names}))


def test_the_models_that_the_errors_name_are_timms():
    assert {name for _, _, name in NOT_READ} <= set(timm.list_pretrained())


def test_weights_that_do_not_fit_are_listed_shortly(tmp_path):
    state = vit().state_dict()
    for name in [name for name in state if "norm1" in name]:
        del state[name]
    state["blocks.1.extra"], state["norm.weight"] = torch.ones(64), torch.ones(7)
    words = refused(written(tmp_path / "x.pth", state), num_heads=4)
    assert 'does not fit: Missing key(s) in state_dict: "blocks.0.norm1.weight"' in words
    path = written(tmp_path / "x.pth", vit().state_dict() | {"norm.weight": torch.ones(7)})
    assert "size mismatch for norm.weight" in refused(path, num_heads=4)


def test_resnets_of_any_depth_are_read_and_other_stems_named(tmp_path):
    state = torchvision.models.resnet18().state_dict()
    state["conv1.weight"] = torch.ones(64, 3, 3, 3)
    assert "size mismatch for conv1.weight" in refused(written(tmp_path / "cifar.pth", state))
    model = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 1, 2, 1]).eval()
    path = written(tmp_path / "x.pth", model.state_dict())
    model.fc = nn.Identity()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(load_teacher(path).model(x), model(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"PK\x03\x04", "is damaged"),
        (b"", "is damaged"),
        (b"no weights at all", "is damaged"),
        (b"<!DOCTYPE html><html></html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer"),
        (b"\x05\x00\x00\x00\x00\x00\x00\x00{]}{}", "is damaged"),
    ],
)
def test_files_that_hold_nothing(tmp_path, content, what):
    for name in ("x.pth", "x.safetensors", "x.ckpt", "x"):
        (tmp_path / name).write_bytes(content)
        assert what in refused(tmp_path / name)


@pytest.mark.filterwarnings("ignore")  # TorchScript is deprecated; its files are still about
def test_files_without_tensors_by_name(tmp_path):
    class_and_all = nn.Sequential(nn.Linear(2, 2))
    for content in ({}, [torch.ones(2)], torch.ones(2), class_and_all, {"epoch": 3}, None):
        assert "state_dict()" in refused(written(tmp_path / "x.pth", content))
    torch.jit.script(class_and_all).save(str(tmp_path / "script.pt"))
    assert "state_dict()" in refused(tmp_path / "script.pt")


# --- nothing is run -------------------------------------------------------------------------------


class Touch:
    """Unpickled by a reader that runs code, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return touch, (self.path,)


def touch(path):
    Path(path).touch()


class Method(Touch):
    """The same by the method of an object."""

    def __reduce__(self):
        return Path(self.path).touch, ()


class Setter:
    """The same by the way of __setstate__."""

    def __init__(self, path):
        self.path = path

    def __setstate__(self, state):
        Path(state["path"]).touch()


@pytest.mark.parametrize(
    ("kind", "zipped"),
    [(Touch, True), (Setter, True), (Method, True), (Touch, False), (Setter, False)],
)
def test_nothing_in_a_file_is_run_and_healthy_weights_beside_it_are_read(tmp_path, kind, zipped):
    trap, model = tmp_path / "executed", vit()
    path = tmp_path / "x.ckpt"
    content = {"hyper_parameters": kind(trap), "state_dict": model.state_dict()}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    if zipped and kind is not Method:
        x = torch.randn(1, 3, 32, 32)
        with torch.no_grad():
            expected = model.forward_features(x)[:, 0]
        torch.testing.assert_close(load_teacher(path, num_heads=4).model(x), expected)
    else:
        assert "is damaged, or more than tensors" in refused(path)
    torch.save({"teacher": kind(trap)}, path, _use_new_zipfile_serialization=zipped)
    refused(path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works
