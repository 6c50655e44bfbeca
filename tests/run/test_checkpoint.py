"""Checkpoints that appear whole or not at all, and teachers from every source that load or say why not."""

import dataclasses
import os
import re
from argparse import Namespace
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dino_lib.augment import IMAGENET
from dino_lib.data.transforms import EvalTransform
from dino_lib.run import checkpoint
from dino_lib.run.build import build_backbone
from dino_lib.run.checkpoint import UnknownFormat, load_newest, read_checkpoint, save_checkpoint
from dino_lib.run.teacher_file import save_teacher
from dino_lib.run.train import train
from dino_lib.teachers.load import load_teacher

OFFICIAL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


class Touch:
    """Unpickled by a reader that runs code, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- full checkpoints -------------------------------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_saved(tmp_path, assert_same):
    state = {"model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)}, "config": {"scale": (0.4, 1.0)},
             "losses": [torch.tensor(0.5)], "seconds": 1.5, "nothing": None}
    path = save_checkpoint(tmp_path / "checkpoints", 12, state)
    assert path == tmp_path / "checkpoints" / "step_00000012.pt"
    assert_same(load_newest(path.parent), {"format": checkpoint.FORMAT, "step": 12, **state})


def test_the_newest_two_are_kept_by_their_number(tmp_path):
    for step in (2, 9, 10, 100):
        save_checkpoint(tmp_path, step, {})
    assert names(tmp_path) == ["step_00000010.pt", "step_00000100.pt"]
    assert load_newest(tmp_path)["step"] == 100
    save_checkpoint(tmp_path, 101, {}, keep=1)
    assert names(tmp_path) == ["step_00000101.pt"]


def test_no_checkpoint_at_all_is_none(tmp_path):
    assert load_newest(tmp_path) is None
    assert load_newest(tmp_path / "nowhere") is None


def test_an_interrupted_save_leaves_the_old_file_alone(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(3)})
    before = (tmp_path / "step_00000001.pt").read_bytes()

    def stops_half_way(state, file):
        file.write(b"half of it")
        assert (tmp_path / "step_00000001.pt").read_bytes() == before  # never under the final name
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", stops_half_way)
    for step in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            save_checkpoint(tmp_path, step, {"x": torch.zeros(3)})
    assert names(tmp_path) == ["step_00000001.pt"]
    assert (tmp_path / "step_00000001.pt").read_bytes() == before


def test_a_save_is_on_the_disk_before_it_takes_its_name_and_before_an_old_one_goes(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", 1, {}, keep=1)
    calls, replace, unlink = [], os.replace, Path.unlink
    monkeypatch.setattr(os, "fsync", lambda number: calls.append(("flushed", os.fstat(number).st_ino)))
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append(("renamed", Path(b))), replace(a, b)))
    monkeypatch.setattr(Path, "unlink", lambda path, **kw: (calls.append(("dropped", path)), unlink(path, **kw)))
    path = save_checkpoint(tmp_path / "run", 2, {}, keep=1)
    file, folder, above = (place.stat().st_ino for place in (path, path.parent, tmp_path))
    assert calls == [("flushed", file), ("renamed", path), ("flushed", folder), ("flushed", above),
                     ("dropped", path.with_name("step_00000001.pt"))]


def test_the_best_is_kept_beside_the_newest(tmp_path):
    scores = {0: 0.9}  # has no checkpoint
    for step, score in {1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: None, 6: 0.6, 7: 0.1, 8: 0.1}.items():
        scores |= {step: score} if score else {}
        save_checkpoint(tmp_path, step, {}, keep=2, scores=scores)
        best = {1: 1, 2: 2, 3: 2, 4: 2, 5: 2}.get(step, 6)
        kept = {step, max(step - 1, 1), best}
        assert names(tmp_path) == [f"step_{i:08d}.pt" for i in sorted(kept)]


def test_what_a_killed_save_left_goes_with_the_next(tmp_path):
    (tmp_path / "step_00000001.pt.part").write_bytes(b"half of it")
    save_checkpoint(tmp_path, 2, {})
    assert names(tmp_path) == ["step_00000002.pt"]


def test_copies_that_someone_made_are_left_alone(tmp_path):
    others = ["step_00000001 (1).pt", "step_best.pt"]
    for name in others:
        (tmp_path / name).write_bytes(b"")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, {})
    assert names(tmp_path) == sorted([*others, "step_00000002.pt", "step_00000003.pt"])
    assert load_newest(tmp_path)["step"] == 3


def test_damaged_checkpoints_do_not_count_among_the_kept(tmp_path, capsys):
    for step in (4, 8):
        newest = save_checkpoint(tmp_path, step, {})
    newest.write_bytes(b"")
    assert load_newest(tmp_path)["step"] == 4
    for step in (5, 6):
        save_checkpoint(tmp_path, step, {})
    assert names(tmp_path) == ["step_00000005.pt", "step_00000006.pt", "step_00000008.damaged"]


def test_a_folder_that_has_vanished_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "unmounted" / "checkpoints", 1, {})


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_full_disk_is_the_systems_error_and_nothing_is_dropped(tmp_path, monkeypatch, after):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {"x": torch.ones(3)})
    writes, write = [], checkpoint._Sealed.write

    class Full:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            writes.append(len(data))
            if len(writes) > after:
                raise OSError(28, "No space left on device")
            return self.file.write(data)

    def on_full_disk(self, data):
        self.file = self.file if isinstance(self.file, Full) else Full(self.file)
        return write(self, data)

    monkeypatch.setattr(checkpoint._Sealed, "write", on_full_disk)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(tmp_path, 3, {"x": torch.ones(3)})
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt"] and load_newest(tmp_path)["step"] == 2


def test_what_a_killed_save_left_is_not_read(tmp_path):
    save_checkpoint(tmp_path, 1, {})
    (tmp_path / "step_00000002.pt.part").write_bytes(b"half of it")
    assert load_newest(tmp_path)["step"] == 1


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint"],
                         ids=["cut short", "empty", "something else"])
def test_a_damaged_newest_falls_back_to_the_one_before_and_says_so(tmp_path, damage, capsys):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(1000)})
    newest = save_checkpoint(tmp_path, 2, {"x": torch.zeros(1000)})
    newest.write_bytes(damage(newest.read_bytes()))
    assert load_newest(tmp_path)["step"] == 1
    assert f"{newest} is damaged" in capsys.readouterr().out


def test_every_flipped_bit_is_found(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(4.0), "text": "abc"})
    whole = path.read_bytes()
    assert read_checkpoint(path)["text"] == "abc"
    for position in [*range(0, len(whole) - 80, 11), *range(len(whole) - 80, len(whole))]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match="is damaged") as error:
            read_checkpoint(path)
        assert not isinstance(error.value, UnknownFormat), position


def test_every_length_but_the_whole_is_found(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(4.0)})
    whole = path.read_bytes()
    for data in (*(whole[:n] for n in [*range(0, len(whole), 11), len(whole) - 1]), whole + b"\n", whole + whole):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)


def test_damaged_checkpoints_alone_are_an_error(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}).write_bytes(b"")
    with pytest.raises(ValueError, match=f"none of the 2 checkpoints in {re.escape(str(tmp_path))} can be read"):
        load_newest(tmp_path)


def test_an_unknown_format_is_refused_by_name(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, 1, {})
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    save_checkpoint(tmp_path, 2, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"step_00000002\.pt has format 99; this version reads format 2"):
        load_newest(tmp_path)
    torch.save({"format": 1, "step": 3}, tmp_path / "step_00000003.pt")  # as it was, without a checksum
    with pytest.raises(ValueError, match=r"step_00000003\.pt has format 1; this version reads format 2"):
        load_newest(tmp_path)


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    trap = tmp_path / "executed"
    save_checkpoint(tmp_path, 1, {"x": Touch(trap)})  # its checksum is right
    torch.save({"teacher": Touch(trap)}, tmp_path / "official.pth")
    with pytest.raises(ValueError, match="can be read"):
        load_newest(tmp_path)
    with pytest.raises(ValueError, match=r"step_00000001\.pt is damaged \(UnpicklingError\)"):
        load_teacher(tmp_path / "step_00000001.pt")
    with pytest.raises(ValueError, match=r"official\.pth is damaged, or holds more than tensors"):
        load_teacher(tmp_path / "official.pth")
    assert not trap.exists()
    torch.load(tmp_path / "official.pth", weights_only=False)
    assert trap.exists()  # the trap works


# --- teachers ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny, tmp_path):
    """A run's folder with a teacher in it, and the backbone that it holds."""
    torch.manual_seed(5)
    config = dataclasses.replace(tiny, drop_path=0.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    backbone = build_backbone(config)
    (tmp_path / "run").mkdir()
    save_teacher(tmp_path / "run" / "teacher.safetensors", backbone, config, step=8, images_seen=64)
    return tmp_path / "run", backbone, config


@pytest.mark.parametrize("name", ["", "teacher.safetensors"], ids=["folder", "file"])
def test_a_runs_teacher_gives_the_same_features(saved, assert_same, name):
    folder, backbone, config = saved
    teacher = load_teacher(str(folder / name))
    assert_same(dict(teacher.state_dict()), dict(backbone.state_dict()))
    x = torch.randn(3, 3, 24, 24)
    assert torch.equal(teacher(x), backbone.eval()(x))
    assert (teacher.config, teacher.about) == (config, {"step": 8, "images_seen": 64})


def test_a_loaded_teacher_is_to_be_looked_at_not_trained(saved):
    teacher = load_teacher(saved[0])
    assert not any(module.training for module in teacher.modules())
    assert not any(p.requires_grad for p in teacher.parameters())


def test_a_teachers_transform_makes_normalised_squares_of_the_runs_size(saved):
    folder, _, config = saved
    image = Image.new("RGB", (90, 60), (255, 0, 51))
    image.paste("white", (0, 0, 10, 60))  # cropped away
    x = load_teacher(folder).transform(image)
    assert (x.shape, x.dtype) == ((3, config.eval_size, config.eval_size), torch.float32)
    expected = torch.tensor([(1 - 0.1) / 0.5, (0 - 0.2) / 0.25, (0.2 - 0.3) / 0.2])[:, None, None]
    torch.testing.assert_close(x, expected.expand_as(x))


@pytest.mark.parametrize("size", [(64, 64), (40, 70), (70, 40), (16, 16)])
def test_the_eval_transform_keeps_the_middle_square(size):
    w, h = size
    image = Image.new("RGB", size)
    side = min(size)
    image.paste((255, 255, 255), ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2))
    x = EvalTransform(32, (0.0,) * 3, (1.0,) * 3)(image)
    assert x.shape == (3, 32, 32)
    assert x[:, 2:-2, 2:-2].min() > 0.99


def test_a_grey_runs_teacher_takes_one_channel(tiny, tmp_path):
    config = dataclasses.replace(tiny, mean=(0.5,), std=(0.25,))
    save_teacher(tmp_path / "teacher.safetensors", build_backbone(config), config)
    teacher = load_teacher(tmp_path)
    assert teacher(teacher.transform(Image.new("L", (30, 30)))[None]).shape == (1, 16)


def test_a_shipped_teacher_is_loaded_by_its_name(saved, tmp_path, monkeypatch):
    folder, _, _ = saved
    folder.rename(tmp_path / "meadow")
    monkeypatch.setattr("dino_lib.teachers.load.SHIPPED", tmp_path)
    assert load_teacher("meadow").about["step"] == 8
    with pytest.raises(FileNotFoundError, match=r"no teacher 'medow': expected a shipped one \(meadow\)"):
        load_teacher("medow")


def test_the_teachers_that_the_package_ships_load():
    for path in checkpoint.SHIPPED.glob("*/teacher.safetensors"):
        teacher = load_teacher(path.parent.name)
        assert teacher(teacher.transform(Image.new("RGB", (50, 40)))[None]).shape == (1, teacher.feature_dim)


def test_a_missing_teacher_names_what_can_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load_teacher(tmp_path / "nothing")
    for kind in (str(tmp_path / "nothing"), "teacher.safetensors", ".pth", "timm:MODEL"):
        assert kind in str(error.value)


def test_a_teacher_that_does_not_fit_its_settings_lists_what_is_wrong(saved):
    folder, _, config = saved
    path = folder / "teacher.safetensors"
    state = load_file(path)
    del state["model.norm.weight"]
    state["model.extra"], state["model.norm.bias"] = torch.ones(2), torch.ones(7)
    save_file(state, path, metadata={"format": "1", "config": config.to_json(), "about": "{}"})
    with pytest.raises(ValueError) as error:
        load_teacher(folder)
    for part in (str(path), "missing ['model.norm.weight']", "unexpected ['model.extra']",
                 "model.norm.bias (7,) for (16,)"):
        assert part in str(error.value)


@pytest.mark.parametrize("metadata", [None, {"format": "3"}], ids=["foreign", "newer"])
def test_safetensors_of_another_format_are_refused_by_name(tmp_path, metadata):
    save_file({"w": torch.ones(2)}, tmp_path / "teacher.safetensors", metadata=metadata)
    found = "None" if metadata is None else "'3'"
    with pytest.raises(ValueError, match=rf"teacher\.safetensors has format {found}; this .* reads format 1 and 2"):
        load_teacher(tmp_path)


def test_a_damaged_teacher_is_named(saved):
    path = saved[0] / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"teacher\.safetensors is damaged"):
        load_teacher(saved[0])
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"teacher\.safetensors is damaged"):
        load_teacher(saved[0])
    (saved[0] / "cut.pth").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match=r"cut\.pth is damaged"):
        load_teacher(saved[0] / "cut.pth")


def test_a_teachers_flipped_bits_are_found(saved):
    path = saved[0] / "teacher.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for position in [*range(9), *range(9, header, 13), *range(header, len(whole), 997), len(whole) - 1]:
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"teacher\.safetensors (is damaged|has format)"):
            load_teacher(path)


def test_a_runs_checkpoint_is_a_teacher_too(tiny, pictures, tmp_path, assert_same):
    teacher, _ = train(tiny, pictures)
    loaded = load_teacher(tmp_path / "run" / "checkpoints" / "step_00000008.pt")
    assert_same(dict(loaded.state_dict()), dict(teacher.state_dict()))
    assert (loaded.config, loaded.about) == (tiny, teacher.about)


def test_an_interrupted_save_of_a_teacher_leaves_the_old_one(saved, monkeypatch):
    folder, backbone, config = saved
    before = (folder / "teacher.safetensors").read_bytes()

    def full(number):
        raise OSError("no space left on the device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_teacher(folder / "teacher.safetensors", backbone, config)
    assert (names(folder), (folder / "teacher.safetensors").read_bytes()) == (["teacher.safetensors"], before)


def test_a_teachers_header_holds_its_settings(saved):
    with safe_open(saved[0] / "teacher.safetensors", framework="pt") as file:
        assert file.metadata()["config"] == saved[2].to_json()


# --- official and timm ------------------------------------------------------------------------------------------------


@pytest.fixture
def official():
    """A timm ViT in eval mode, and its weights under the names that the official teacher has them."""
    torch.manual_seed(7)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, dynamic_img_size=True, **OFFICIAL).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.1)  # biases and norms too, so that a mix-up shows
    state = {f"module.backbone.{key}": value for key, value in model.state_dict().items()}
    return model, state | {"module.head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_v": torch.ones(2)}


@pytest.mark.parametrize("kind", ["full", "teacher", "backbone"])
def test_official_checkpoints_give_timms_features(official, tmp_path, kind):
    model, state = official
    content = {
        "full": {"teacher": state, "student": {"x": torch.ones(1)}, "epoch": 3, "args": Namespace(arch="vit_tiny")},
        "teacher": {key.removeprefix("module."): value for key, value in state.items()},
        "backbone": dict(model.state_dict()),
    }[kind]
    torch.save(content, tmp_path / "dino.pth")
    teacher = load_teacher(tmp_path / "dino.pth")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teacher(x), model.forward_features(x)[:, 0], atol=1e-6, rtol=1e-6)
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert (teacher.config, teacher.patch_size) == (None, (8, 8))
    mean, std = (torch.tensor(v)[:, None, None] for v in IMAGENET)
    white = teacher.transform(Image.new("RGB", (50, 40), "white"))
    torch.testing.assert_close(white, ((1 - mean) / std).expand(3, 32, 32))


def test_official_weights_that_do_not_fit_are_listed(official, tmp_path):
    _, state = official
    del state["module.backbone.norm.bias"]
    state["module.backbone.blocks.0.ls1.gamma"] = torch.ones(64)
    torch.save({"teacher": state}, tmp_path / "dino.pth")
    with pytest.raises(ValueError, match=r"missing \['norm.bias'\], unexpected \['blocks.0.ls1.gamma'\]"):
        load_teacher(tmp_path / "dino.pth")


def test_a_pth_of_something_else_is_refused_by_name(tmp_path):
    torch.save({"conv1.weight": torch.ones(2)}, tmp_path / "resnet.pth")
    with pytest.raises(ValueError, match=r"resnet\.pth holds no official DINO ViT: no patch_embed.*conv1\.weight"):
        load_teacher(tmp_path / "resnet.pth")


def test_timm_models_come_pretrained_with_their_own_size_and_mean(monkeypatch):
    asked, create = [], timm.create_model

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained))
        return create(name, pretrained=False, **{**options, **OFFICIAL})

    monkeypatch.setattr(timm, "create_model", offline)
    teacher = load_teacher("timm:vit_base_patch16_224")
    assert asked == [("vit_base_patch16_224", True)]
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    white = teacher.transform(Image.new("RGB", (300, 300), "white"))
    torch.testing.assert_close(white, torch.ones(3, 224, 224))  # this model's mean and std are 0.5
    with pytest.raises(ValueError, match=r"vit_bse_patch16_224.*vit_base_patch16_224"):
        load_teacher("timm:vit_bse_patch16_224")


def test_the_pretrained_models_that_the_texts_name_are_timms():
    root = Path(checkpoint.__file__).parents[2]
    texts = [root / "README.md", *root.glob("dino_lib/**/*.py"), *root.glob("notebooks/**/*.ipynb")]
    names = {name for path in texts for name in re.findall(r"\b\w+_patch\d+_\w+\.\w+", path.read_text("utf-8"))}
    assert {"vit_small_patch16_224.dino", "deit_small_patch16_224.fb_in1k"} <= names <= set(timm.list_pretrained())


# --- the backbone of a config -----------------------------------------------------------------------------------------


def test_the_configs_backbone_has_its_options_channels_and_drop_path(tiny):
    config = dataclasses.replace(tiny, drop_path=0.3, backbone_options={**tiny.backbone_options, "depth": 3})
    backbone = build_backbone(config)
    assert [getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks] == pytest.approx(
        [0.0, 0.15, 0.3])
    assert (backbone.feature_dim, backbone.patch_size) == (16, (6, 6))
    stem = build_backbone(dataclasses.replace(tiny, conv_stem=True, mean=(0.5,), std=(0.5,)))
    assert type(stem.model.patch_embed).__name__ == "ConvStem" and stem(torch.zeros(1, 1, 24, 24)).shape == (1, 16)
    assert "drop_path_rate" not in config.backbone_options  # the settings are not touched


@pytest.mark.parametrize(("override", "asked"), [(None, True), (False, False)])
def test_pretrained_weights_are_asked_for_unless_a_teacher_is_loaded(tiny, monkeypatch, override, asked):
    calls = []
    monkeypatch.setattr(checkpoint, "create_backbone", lambda name, **options: calls.append(options))
    build_backbone(dataclasses.replace(tiny, pretrained=True), pretrained=override)
    assert calls[0]["pretrained"] is asked
