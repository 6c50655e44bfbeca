"""Teachers by name and path: those that ship, a run's files, timm's; and what is said otherwise."""

import dataclasses
import os
import re
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dino_lib.backbone import backbone_of
from dino_lib.data.transforms import EvalTransform
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.features import extract_features
from dino_lib.run.build import build_backbone, build_student
from dino_lib.run.checkpoint import read_checkpoint
from dino_lib.run.history import read_history
from dino_lib.run.teacher_file import Teacher, read_teacher, save_head, save_teacher
from dino_lib.run.train import train
from dino_lib.teachers import load
from dino_lib.teachers.load import SHIPPED, find_teacher, load_head, load_teacher

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 1}


@pytest.fixture
def saved(tiny, tmp_path):
    """A run's folder with a teacher in it, and the backbone that it holds."""
    torch.manual_seed(5)
    config = dataclasses.replace(tiny, drop_path=0.5, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 0.2))
    backbone = build_backbone(config)
    (tmp_path / "run").mkdir()
    path = tmp_path / "run" / "teacher.safetensors"
    save_teacher(path, backbone, config, step=8, images_seen=64)
    return tmp_path / "run", backbone, config


def refused(path, **options):
    """The words of the ValueError: one line."""
    with pytest.raises(ValueError) as error:
        load_teacher(path, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- a run's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "teacher.safetensors"], ids=["folder", "file"])
def test_a_runs_teacher_gives_the_same_features(saved, assert_same, name):
    folder, backbone, config = saved
    teacher = load_teacher(str(folder / name))
    assert_same(dict(teacher.model.state_dict()), dict(backbone.state_dict()))
    x = torch.randn(3, 3, 24, 24)
    assert torch.equal(teacher.model(x), backbone.eval()(x))
    assert (teacher.config, teacher.about) == (config, {"step": 8, "images_seen": 64})


def test_a_loaded_teacher_is_to_be_looked_at_not_trained(saved):
    teacher = load_teacher(saved[0])
    assert not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())


def test_what_takes_a_model_takes_a_teacher(saved):
    teacher, x = load_teacher(saved[0]), torch.randn(2, 3, 24, 24)
    assert backbone_of(teacher) is teacher.model
    assert torch.equal(extract_features(teacher, x), extract_features(teacher.model, x))
    assert torch.equal(cls_attention(teacher, x), cls_attention(teacher.model, x))


def test_a_teacher_is_frozen_and_short_in_print(saved):
    teacher = load_teacher(saved[0])
    with pytest.raises(dataclasses.FrozenInstanceError):
        teacher.model = None
    assert "step" in repr(teacher) and "Linear" not in repr(teacher)


def test_a_teachers_transform_makes_normalised_squares_of_the_runs_size(saved):
    folder, _, config = saved
    image = Image.new("RGB", (90, 60), (255, 0, 51))
    image.paste("white", (0, 0, 10, 60))  # cropped away
    x = load_teacher(folder).transform(image)
    assert (x.shape, x.dtype) == ((3, config.eval_size, config.eval_size), torch.float32)
    colour = [(1 - 0.1) / 0.5, (0 - 0.2) / 0.25, (0.2 - 0.3) / 0.2]
    torch.testing.assert_close(x, torch.tensor(colour)[:, None, None].expand_as(x))


@pytest.mark.parametrize("size", [(64, 64), (40, 70), (70, 40), (16, 16)])
def test_the_eval_transform_keeps_the_middle_square(size):
    w, h = size
    image = Image.new("RGB", size)
    side = min(size)
    image.paste("white", ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2))
    x = EvalTransform(32, (0.0,) * 3, (1.0,) * 3)(image)
    assert x.shape == (3, 32, 32)
    assert x[:, 2:-2, 2:-2].min() > 0.99


def test_a_grey_runs_teacher_takes_one_channel(tiny, tmp_path):
    config = dataclasses.replace(tiny, mean=(0.5,), std=(0.25,))
    save_teacher(tmp_path / "teacher.safetensors", build_backbone(config), config)
    teacher = load_teacher(tmp_path)
    assert teacher.model(teacher.transform(Image.new("L", (30, 30)))[None]).shape == (1, 16)


def test_a_runs_checkpoint_is_a_teacher_too_under_any_name(tiny, pictures, tmp_path, assert_same):
    teacher, _ = train(tiny, pictures)
    path = tmp_path / "run" / "checkpoints" / "step_00000008.pt"
    copy = tmp_path / "best.ckpt"
    copy.write_bytes(path.read_bytes())
    assert isinstance(teacher, Teacher)
    for loaded in (load_teacher(path), load_teacher(copy), read_teacher(path)):
        assert_same(dict(loaded.model.state_dict()), dict(teacher.model.state_dict()))
        assert (loaded.config, loaded.about) == (teacher.config, teacher.about)


def test_a_runs_head_and_center_come_from_its_newest_checkpoint(tiny, pictures, assert_same):
    train(tiny, pictures)
    path = Path(tiny.output_dir) / "checkpoints" / "step_00000008.pt"
    saved = read_checkpoint(path)
    for place in (tiny.output_dir, path):
        head, center = load_head(place)
        want = {name: saved["teacher"][f"head.{name}"] for name in head.state_dict()}
        assert_same(dict(head.state_dict()), want)
        assert torch.equal(center, saved["loss"]["center"])
        assert not any(p.requires_grad for p in head.parameters())
        assert not any(module.training for module in head.modules())


@pytest.mark.parametrize("kind", ["dino", "original"])
def test_a_head_beside_its_teacher_gives_the_same_logits(saved, kind):
    folder, _, config = saved
    config = dataclasses.replace(config, head=kind)
    head, center = build_student(config).head, torch.arange(float(config.out_dim))
    save_head(folder / "head.safetensors", head, center, config)
    loaded, its_center = load_head(folder)
    h = torch.randn(5, 16)
    assert torch.equal(loaded(h), head.eval()(h))
    assert torch.equal(its_center, center)


def test_without_a_head_it_is_said_where_one_was_looked_for(saved):
    with pytest.raises(FileNotFoundError, match=r"head\.safetensors or checkpoints"):
        load_head(saved[0])
    with pytest.raises(FileNotFoundError, match="no head"):
        load_head("timm:vit_small_patch16_224.dino")


def test_a_teachers_file_is_no_head(saved):
    folder, _, _ = saved
    (folder / "head.safetensors").write_bytes((folder / "teacher.safetensors").read_bytes())
    with pytest.raises(ValueError, match="holds no head with its center"):
        load_head(folder)


def test_the_shipped_demo_has_the_head_of_its_settings():
    teacher, (head, center) = load_teacher("demo"), load_head("demo")
    config = teacher.config
    logits = head(teacher.model(torch.randn(4, 3, 48, 48)))
    assert logits.shape == (4, config.out_dim) and center.shape == (config.out_dim,)
    assert logits.abs().max() <= 1 + 1e-6  # cosines
    assert 0 < center.abs().max() < 1


def test_a_runs_teacher_under_another_name_is_still_the_runs(saved):
    path = saved[0] / "teacher.safetensors"
    path = path.rename(saved[0] / "mine.pth")
    assert load_teacher(path).about == {"step": 8, "images_seen": 64}
    assert "knows its own" in refused(path, num_heads=2)


def test_a_teacher_that_does_not_fit_its_settings_lists_what_is_wrong(saved):
    folder, _, config = saved
    path = folder / "teacher.safetensors"
    state = load_file(path)
    del state["model.norm.weight"]
    state["model.extra"], state["model.norm.bias"] = torch.ones(2), torch.ones(7)
    save_file(state, path, metadata={"format": "1", "config": config.to_json(), "about": "{}"})
    error = refused(folder)
    for part in (
        str(path),
        'Missing key(s) in state_dict: "model.norm.weight"',
        'Unexpected key(s) in state_dict: "model.extra"',
        "size mismatch for model.norm.bias",
    ):
        assert part in error


def test_a_newer_format_is_refused_by_name(saved):
    path = saved[0] / "teacher.safetensors"
    header = {"format": "3", "config": "{}", "about": "{}"}
    save_file({"w": torch.ones(2)}, path, metadata=header)
    assert "teacher.safetensors has format '3'; this version reads format 1 and 2" in refused(path)


def test_a_header_whose_length_reads_pk_is_no_checkpoint(saved, tmp_path):
    _, backbone, config = saved
    path, wanted = tmp_path / "teacher.safetensors", int.from_bytes(b"PK", "little")
    words = wanted
    for _ in range(3):  # the header is padded to eights
        save_teacher(path, backbone, config, step=8, images_seen=64, words="x" * words)
        words -= int.from_bytes(path.read_bytes()[:8], "little") - wanted
    assert path.read_bytes()[:2] == b"PK"
    assert read_teacher(path).about["step"] == 8


def test_a_damaged_teacher_is_named(saved):
    path = saved[0] / "teacher.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "teacher.safetensors is damaged" in refused(saved[0])
    path.write_bytes(b"")
    assert "teacher.safetensors is damaged" in refused(saved[0])


def test_a_teachers_flipped_bits_are_found(saved):
    path = saved[0] / "teacher.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [*range(9), *range(9, header, 13), *range(header, len(whole), 997), len(whole) - 1]
    for word in (b'"config"', b'"about"', b'"sha256"', b'"format"'):  # what it is known by
        places.append(whole.index(word) + 2)
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(ValueError, match=r"teacher\.safetensors (is damaged|has format)"):
            load_teacher(path)


def test_an_interrupted_save_of_a_teacher_leaves_the_old_one(saved, monkeypatch):
    folder, backbone, config = saved
    before = (folder / "teacher.safetensors").read_bytes()

    def full(number):
        raise OSError("no space left on the device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        save_teacher(folder / "teacher.safetensors", backbone, config)
    assert [path.name for path in folder.iterdir()] == ["teacher.safetensors"]
    assert (folder / "teacher.safetensors").read_bytes() == before


def test_a_teachers_header_holds_its_settings(saved):
    with safe_open(saved[0] / "teacher.safetensors", framework="pt") as file:
        assert file.metadata()["config"] == saved[2].to_json()


# --- names --------------------------------------------------------------------------------------


def test_the_teachers_that_the_package_ships_load():
    names = [path.parent.name for path in SHIPPED.glob("*/teacher.safetensors")]
    assert {"demo", "photos"} <= {*names}
    for name in names:
        teacher = load_teacher(name)
        x = teacher.transform(Image.new("RGB", (50, 40)))[None]
        assert teacher.model(x).shape == (1, teacher.config.backbone_options["embed_dim"])
        assert find_teacher(name) == (SHIPPED / name / "teacher.safetensors", SHIPPED / name)


def test_scores_in_shipped_histories_are_called_what_probes_call_them():
    for path in SHIPPED.glob("*/history.jsonl"):
        for record in read_history(path.parent):
            # once, the best head's of each picture was called `jaccard`
            assert "jaccard" not in record or "jaccard_best" in record, path


def test_a_bare_name_means_the_teacher_that_ships_also_beside_a_folder_of_that_name(
    saved, tmp_path, monkeypatch, capsys
):
    folder = saved[0].rename(tmp_path / "demo")
    (folder / "history.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert load_teacher("demo").about["step"] == 1500
    assert "demo is the teacher that ships with the package" in capsys.readouterr().out
    assert find_teacher("demo")[1] == SHIPPED / "demo"
    for here in ("./demo", Path("demo"), str(folder), "demo/", folder / "teacher.safetensors"):
        capsys.readouterr()
        assert load_teacher(here).about["step"] == 8
        weights, run = find_teacher(here)  # weights and history from the same place
        assert weights.parent.samefile(folder) and run.samefile(folder)
        assert capsys.readouterr().out == ""


def test_without_a_folder_of_its_name_nothing_is_said_of_a_shipped_teacher(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    load_teacher("demo")
    assert capsys.readouterr().out == ""


def test_no_history_no_run(saved):
    assert find_teacher(saved[0]) == (saved[0] / "teacher.safetensors", None)
    assert find_teacher("timm:vit_small_patch16_224.dino") == (None, None)


def test_the_home_folder_may_be_written_as_a_tilde(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved[0].parent))
    monkeypatch.setenv("USERPROFILE", str(saved[0].parent))
    for name in ("~/run", "~/run/teacher.safetensors", Path("~/run")):
        assert load_teacher(name).about["step"] == 8
        assert find_teacher(name)[0] == saved[0] / "teacher.safetensors"


@pytest.mark.parametrize("name", ["nothing", "medow", "runs/none", "", ".", "teachers"])
def test_a_missing_teacher_names_what_can_be_loaded(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as error:
        load_teacher(name)
    for words in (
        f"no teacher {name!r}",
        "demo, photos",
        "teacher.safetensors",
        ".pth",
        "timm:MODEL",
        "hf-hub:OWNER/MODEL",
    ):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_has_not_ended_names_its_newest_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (4, 12):
        (tmp_path / "checkpoints" / f"step_{step:08}.pt").touch()
    newest = re.escape(str(tmp_path / "checkpoints" / "step_00000012.pt"))
    with pytest.raises(FileNotFoundError, match=f"has not ended.* such as {newest}$"):
        load_teacher(tmp_path)


# --- timm's -------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch):
    """timm without a network: (name, pretrained) of each model that it is asked for."""
    asked, create = [], timm.create_model

    def offline(name, pretrained=False, **options):
        asked.append((name, pretrained))
        known = name if timm.is_model(name) else "vit_base_patch16_224"
        return create(known, pretrained=False, **{**options, **SMALL})

    monkeypatch.setattr(timm, "create_model", offline)
    return asked


def test_timm_models_come_pretrained_with_their_own_size_and_mean(asked):
    teacher = load_teacher("timm:vit_base_patch16_224")
    assert asked == [("vit_base_patch16_224", True)]
    assert not any(module.training for module in teacher.model.modules())
    assert not any(p.requires_grad for p in teacher.model.parameters())
    white = teacher.transform(Image.new("RGB", (300, 300), "white"))
    torch.testing.assert_close(white, torch.ones(3, 224, 224))  # this model's mean and std are 0.5
    assert re.search(
        "vit_bse_patch16_224.*vit_base_patch16_224", refused("timm:vit_bse_patch16_224")
    )


@pytest.mark.parametrize("name", ["hf-hub:timm/some_vit", "timm:hf-hub:timm/some_vit"])
def test_models_of_the_hub_go_through_timm(asked, name):
    teacher = load_teacher(name)
    assert asked == [("hf-hub:timm/some_vit", True)] and teacher.config is None


@pytest.mark.parametrize("name", ["hf-hub:timm/some_vit", "timm:vit_base_patch16_224"])
def test_without_a_network_one_line_says_what_could_not_be_downloaded(monkeypatch, name):
    def offline(*args, **options):
        raise OSError("An error happened\n\nwhile trying to locate the file" + 500 * ".")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(OSError) as error:
        load_teacher(name)
    assert f"{name.removeprefix('timm:')} could not be downloaded: An error" in str(error.value)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


def test_the_pretrained_models_that_the_texts_name_are_timms():
    root = Path(load.__file__).parents[2]
    texts = [root / "README.md", *root.glob("dino_lib/**/*.py"), *root.glob("notebooks/**/*.ipynb")]
    names = {
        name
        for path in texts
        for name in re.findall(r"\b\w+_patch\d+_\w+\.\w+", path.read_text("utf-8"))
    }
    needed = {"vit_small_patch16_224.dino"}
    assert needed <= names <= set(timm.list_pretrained())
