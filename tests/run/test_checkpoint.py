"""Checkpoints that appear whole or not at all, and come back as they were."""

import dataclasses
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from dino_lib.run import build, checkpoint
from dino_lib.run.build import build_backbone
from dino_lib.run.checkpoint import load_newest, read_checkpoint, save_checkpoint
from dino_lib.run.teacher_file import read_teacher, save_teacher


class Touch:
    """Unpickled by a reader that runs code, it creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# --- full checkpoints -----------------------------------------------------------------------------


def test_a_checkpoint_gives_back_what_was_saved(tmp_path, assert_same):
    state = {
        "model": {"w": torch.arange(6.0).view(2, 3), "n": torch.tensor(3)},
        "config": {"scale": (0.4, 1.0)},
        "losses": [torch.tensor(0.5)],
        "seconds": 1.5,
        "nothing": None,
    }
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


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_save_that_stops_half_way_leaves_the_old_file_alone(tmp_path, monkeypatch, error):
    save_checkpoint(tmp_path, 1, {"x": torch.ones(3)})
    before = (tmp_path / "step_00000001.pt").read_bytes()

    def stops(number):
        assert len(names(tmp_path)) == 2 and names(tmp_path)[-1].endswith(".part")
        assert (tmp_path / "step_00000001.pt").read_bytes() == before  # never under the final name
        raise error

    monkeypatch.setattr(os, "fsync", stops)
    for step in (1, 2):
        with pytest.raises(error):
            save_checkpoint(tmp_path, step, {"x": torch.zeros(3)})
    assert names(tmp_path) == ["step_00000001.pt"]
    assert (tmp_path / "step_00000001.pt").read_bytes() == before


def test_a_save_is_on_the_disk_before_it_takes_its_name_and_before_an_old_one_goes(
    tmp_path, monkeypatch
):
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run", 1, {}, keep=1)
    calls, replace, unlink = [], os.replace, Path.unlink
    monkeypatch.setattr(
        os, "fsync", lambda number: calls.append(("flushed", os.fstat(number).st_ino))
    )
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(("renamed", Path(b))), replace(a, b))
    )
    monkeypatch.setattr(
        Path, "unlink", lambda path, **kw: (calls.append(("dropped", path)), unlink(path, **kw))
    )
    path = save_checkpoint(tmp_path / "run", 2, {}, keep=1)
    file, folder, above = (place.stat().st_ino for place in (path, path.parent, tmp_path))
    assert calls == [
        ("flushed", file),
        ("renamed", path),
        ("flushed", folder),
        ("flushed", above),
        ("dropped", path.with_name("step_00000001.pt")),
    ]


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


@pytest.mark.skipif(sys.platform == "win32", reason="a limit of Unix")
@pytest.mark.parametrize("room", [0, 1, 3000, 12000])
def test_a_full_disk_is_the_systems_error_and_nothing_is_dropped(tmp_path, room):
    """The system refuses files of more than so many bytes, as it refuses a disk's last ones."""
    import resource

    state = {"x": torch.ones(3000)}  # 12000 bytes, and what stands around them
    for step in (1, 2):
        save_checkpoint(tmp_path, step, state)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            save_checkpoint(tmp_path, 3, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.pt"]
    assert load_newest(tmp_path)["step"] == 2


def test_what_a_killed_save_left_is_not_read(tmp_path):
    save_checkpoint(tmp_path, 1, {})
    (tmp_path / "step_00000002.pt.part").write_bytes(b"half of it")
    assert load_newest(tmp_path)["step"] == 1


@pytest.mark.parametrize(
    "damage",
    [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"no checkpoint"],
    ids=["cut short", "empty", "something else"],
)
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
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)


def test_every_length_but_the_whole_is_found(tmp_path):
    path = save_checkpoint(tmp_path, 1, {"x": torch.arange(4.0)})
    whole = path.read_bytes()
    for data in (
        *(whole[:n] for n in [*range(0, len(whole), 11), len(whole) - 1]),
        whole + b"\n",
        whole + whole,
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="is damaged"):
            read_checkpoint(path)


def test_damaged_checkpoints_alone_are_an_error(tmp_path):
    for step in (1, 2):
        save_checkpoint(tmp_path, step, {}).write_bytes(b"")
    with pytest.raises(
        ValueError, match=f"none of the 2 checkpoints in {re.escape(str(tmp_path))} can be read"
    ):
        load_newest(tmp_path)


def test_an_unknown_format_is_told_by_name_and_not_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(checkpoint, "FORMAT", 99)
    path = save_checkpoint(tmp_path, 2, {})
    monkeypatch.undo()
    with pytest.raises(ValueError, match="none of the 1 checkpoints"):
        load_newest(tmp_path)
    assert f"{path} has format 99; this version reads format 2" in capsys.readouterr().out
    save_checkpoint(tmp_path, 1, {})
    assert load_newest(tmp_path)["step"] == 1
    assert names(tmp_path) == ["step_00000001.pt", "step_00000002.damaged"]


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    trap = tmp_path / "executed"
    path = save_checkpoint(tmp_path, 1, {"x": Touch(trap)})  # its checksum is right
    with pytest.raises(ValueError, match="can be read"):
        load_newest(tmp_path)
    assert not trap.exists()
    torch.load(path, weights_only=False)
    assert trap.exists()  # the trap works


# --- the backbone of a config ---------------------------------------------------------------------


def test_the_configs_backbone_has_its_options_channels_and_drop_path(tiny):
    config = dataclasses.replace(
        tiny, drop_path=0.3, backbone_options={**tiny.backbone_options, "depth": 3}
    )
    backbone = build_backbone(config)
    assert [
        getattr(block.drop_path1, "drop_prob", 0.0) for block in backbone.model.blocks
    ] == pytest.approx([0.0, 0.15, 0.3])
    assert (backbone.num_features, backbone.patch_size) == (16, (6, 6))
    stem = build_backbone(dataclasses.replace(tiny, conv_stem=True, mean=(0.5,), std=(0.5,)))
    assert type(stem.model.patch_embed).__name__ == "ConvStem" and stem(
        torch.zeros(1, 1, 24, 24)
    ).shape == (1, 16)
    assert "drop_path_rate" not in config.backbone_options  # the settings are not touched


def test_pretrained_weights_are_asked_for_unless_a_teacher_is_loaded(tiny, tmp_path, monkeypatch):
    config = dataclasses.replace(tiny, pretrained=True)
    save_teacher(tmp_path / "teacher.safetensors", build_backbone(tiny), config)
    calls, create = [], build.create_backbone

    def offline(name, *, pretrained, **options):
        calls.append(pretrained)
        return create(name, **options)

    monkeypatch.setattr(build, "create_backbone", offline)
    build_backbone(config)
    read_teacher(tmp_path / "teacher.safetensors")
    assert calls == [True, False]
