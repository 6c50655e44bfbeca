"""Weights from a file into a backbone that is already there."""

import dataclasses

import pytest
import timm
import torch
from safetensors.torch import save_file

from dino_lib.backbone import create_backbone
from dino_lib.run.build import build_backbone
from dino_lib.run.checkpoint import save_checkpoint
from dino_lib.run.teacher_file import save_teacher
from dino_lib.run.weights import load_weights, read_weights

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2}


def vit(seed, **options):
    torch.manual_seed(seed)
    backbone = create_backbone("vit_tiny_patch16_224", **{**TINY, **options})
    for parameter in backbone.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return backbone.eval()


def test_a_backbone_takes_the_weights_of_a_file(tmp_path):
    there, here = vit(0), vit(1)
    path = tmp_path / "last.ckpt"
    state = {f"teacher_backbone.vit.{name}": v for name, v in there.model.state_dict().items()}
    torch.save({"state_dict": state}, path)
    x = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(here(x), there(x), atol=0.1)
    load_weights(here, path)
    torch.testing.assert_close(here(x), there(x))
    assert all(p.requires_grad for p in here.parameters())  # to be trained


def test_read_weights_gives_timms_names_and_what_it_is(tmp_path, assert_same):
    state = vit(0).model.state_dict()
    chunks = {name.replace("blocks.", "blocks.0."): value for name, value in state.items()}
    torch.save({"teacher": chunks | {"mask_token": torch.ones(1)}}, tmp_path / "x")
    found, what = read_weights(tmp_path / "x")
    assert_same(found, dict(state))
    assert "ViT" in what


@pytest.mark.parametrize("name", ["cait_xxs24_224", "convit_tiny"])
def test_families_that_say_nothing_of_their_positions_take_their_own(tmp_path, name, assert_same):
    there, here = (create_backbone(name, depth=2) for _ in range(2))
    torch.save(there.model.state_dict(), tmp_path / "x.pth")
    load_weights(here, tmp_path / "x.pth")
    assert_same(dict(here.state_dict()), dict(there.state_dict()))


@pytest.mark.parametrize("name", ["convnext_atto", "mobilenetv3_small_050", "xcit_nano_12_p16_224"])
def test_any_family_takes_its_own_names(tmp_path, name):
    torch.manual_seed(0)
    there = timm.create_model(name, num_classes=10).eval()
    torch.save(
        {"state_dict": {f"module.{k}": v for k, v in there.state_dict().items()}},
        tmp_path / "x.pth.tar",
    )
    torch.manual_seed(1)
    here = create_backbone(name).eval()
    load_weights(here, tmp_path / "x.pth.tar")
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = there.forward_features(x)
        torch.testing.assert_close(here.model.forward_features(x), expected)


@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 4, "no_embed_class": True}, {"reg_tokens": 4}]
)
def test_positions_are_resampled_to_the_backbones_grid(tmp_path, options):
    there, here = vit(0, **options), vit(1, img_size=64, **options)
    ramp = torch.linspace(-1, 1, 4)[None, :, None].expand(4, 4, 64).reshape(1, 16, 64)
    n = there.model.pos_embed.shape[1] - 16
    there.model.pos_embed.data[:, n:] = ramp
    torch.save(there.model.state_dict(), tmp_path / "x.pth")
    load_weights(here, tmp_path / "x.pth")
    found = here.model.pos_embed.data
    torch.testing.assert_close(found[:, :n], there.model.pos_embed.data[:, :n])
    grid = found[0, n:, 0].view(8, 8)
    assert (grid.diff(dim=1) >= 0).all() and grid.std(0).max() < 1e-5  # still a ramp, from left


def test_a_runs_files_are_weights_too(tiny, tmp_path):
    config = dataclasses.replace(tiny, conv_stem=True)
    torch.manual_seed(0)
    there = build_backbone(config).eval()
    save_teacher(tmp_path / "teacher.safetensors", there, config)
    teacher = {f"backbone.{name}": value for name, value in there.state_dict().items()}
    student = {name: value + 1 for name, value in teacher.items()}
    (tmp_path / "checkpoints").mkdir()
    path = save_checkpoint(tmp_path / "checkpoints", 1, {"student": student, "teacher": teacher})
    x = torch.randn(2, 3, 24, 24)
    for file in (tmp_path / "teacher.safetensors", path):
        torch.manual_seed(1)
        here = build_backbone(config).eval()
        load_weights(here, file)
        torch.testing.assert_close(here(x), there(x))


def test_the_home_folder_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    save_file(vit(0).model.state_dict(), tmp_path / "x.safetensors")
    load_weights(vit(1), "~/x.safetensors")
    assert read_weights("~/x.safetensors")[0].keys() == vit(0).model.state_dict().keys()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"embed_dim": 32}, "size mismatch for cls_token"),
        ({"depth": 1}, 'Missing key(s) in state_dict: "blocks.1.'),
        ({"depth": 3}, 'Unexpected key(s) in state_dict: "blocks.2.'),
        ({"patch_size": 16}, "size mismatch for patch_embed.proj.weight"),
    ],
)
def test_weights_of_another_network_are_refused_in_one_line(tmp_path, options, words):
    torch.save(vit(0, **options).model.state_dict(), tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth does not fit") as error:
        load_weights(vit(1), tmp_path / "x.pth")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_missing_file_is_the_systems_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_weights(vit(0), tmp_path / "none.pth")
