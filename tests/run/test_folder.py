"""A run's folder: what a run may go on with, and names of files that no terminal can show."""

import io
import os
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from dino_lib.run.folder import RunFolder
from dino_lib.run.train import build_trainer, train


def stop(record):
    raise KeyboardInterrupt


@pytest.fixture
def begun(tiny, pictures, tmp_path):
    """Settings of a run on a folder of 16 images, interrupted after its first update."""
    (tmp_path / "images").mkdir()
    for i in range(16):
        pictures[i][0].save(tmp_path / "images" / f"{i:02d}.png")
    config = replace(tiny, dataset=str(tmp_path / "images"), resume="auto", eval_every=0)
    with pytest.raises(KeyboardInterrupt):
        train(config, on_log=stop)
    return config


def test_the_same_folder_written_otherwise_is_the_same_run(begun, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("./images/", "images", "~/images"):
        with pytest.raises(KeyboardInterrupt):
            train(replace(begun, dataset=name), on_log=stop)
    assert len(train(begun)[1]) == 4


def test_a_run_goes_on_where_its_images_moved_to_and_says_so(begun, tmp_path, capsys):
    shutil.move(tmp_path / "images", tmp_path / "moved")
    _, history = train(replace(begun, dataset=str(tmp_path / "moved")))
    assert [record["step"] for record in history] == [1, 2, 3, 4]
    printed = capsys.readouterr().out
    assert f"read from {tmp_path / 'moved'}; before, from {tmp_path / 'images'}" in printed


def test_other_images_are_another_run(begun, tmp_path):
    with pytest.raises(ValueError, match="holds a run on 16 images, and here are 4000"):
        train(replace(begun, dataset="shapes"))
    (tmp_path / "images" / "03.png").unlink()
    with pytest.raises(ValueError, match="holds a run on 16 images, and here are 15"):
        train(begun)


def test_a_tilde_is_the_home_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert RunFolder(replace(tiny, output_dir="~/runs/x")).path == tmp_path / "runs" / "x"


def test_settings_that_differ_are_named_in_the_folders_words(begun):
    with pytest.raises(ValueError, match=r"other settings: lr=0\.5 \(was 0\.001\)"):
        train(replace(begun, lr=0.5))


def test_a_setting_that_an_older_version_lacked_had_its_default(tiny):
    before = asdict(tiny)
    del before["freeze_backbone"]
    state = {"config": before, "n_images": 16}
    RunFolder(tiny).check_same_run(state, 16)
    with pytest.raises(ValueError, match=r"other settings: freeze_backbone=1\.0 \(was 0\.0\)"):
        RunFolder(replace(tiny, freeze_backbone=1.0)).check_same_run(state, 16)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_the_terminal_cannot_show_end_no_run(
    tiny, pictures, tmp_path, monkeypatch, encoding
):
    folder = os.fsencode(tmp_path) + b"/photos"
    os.mkdir(folder)
    for i in range(9):
        pictures[i][0].save(os.fsdecode(folder) + f"/{i}.png")
    names = [b"/caf\xe9.png", "/\N{SNOWMAN}.png".encode()]
    for name in names:
        try:
            Path(os.fsdecode(folder + name)).write_bytes(b"")
        except OSError:
            pytest.skip("this file system takes no such names")
    output = os.fsdecode(os.fsencode(tmp_path) + b"/run\xff")
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    monkeypatch.setattr(sys, "stdout", screen)
    config = replace(
        tiny, dataset=os.fsdecode(folder), store_size=None, output_dir=output, resume="auto"
    )
    _, history = train(replace(config, eval_every=0))
    _, again = train(replace(config, eval_every=0))
    printed = screen.buffer.getvalue().decode(encoding)
    assert len(history) == len(again) == 2
    assert "2 of 11 images could not be read" in printed and "is finished" in printed
    assert r"caf\udce9.png" in printed and (r"\u2603" in printed) == (encoding == "ascii")


def test_a_broken_held_back_part_is_told_before_the_images_are_decoded(
    tiny, pictures, tmp_path, capsys
):
    for part in ("train", "val"):
        for i in range(16):
            path = tmp_path / "photos" / part / ("even", "odd")[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pictures[i][0].save(path)
            if part == "val":
                path.write_bytes(b"")
    config = replace(tiny, dataset=str(tmp_path / "photos"), data_root=str(tmp_path / "data"))
    with pytest.raises(Exception, match=r"could be read.*eval_every=0 trains without"):
        build_trainer(config)
    assert not [path for path in (tmp_path / "data").rglob("*") if path.is_file()]  # no store yet
    assert len(train(replace(config, eval_every=0))[1]) == 4


def test_an_error_of_the_training_images_does_not_blame_evaluations(tiny):
    with pytest.raises(ValueError, match="'shapez'") as error:
        build_trainer(replace(tiny, dataset="shapez"))
    assert "evaluations" not in str(error.value)


def test_labels_that_are_missing_are_told(tiny, begun, capsys):
    assert build_trainer(replace(begun, eval_every=1.0)).probes is None
    said = capsys.readouterr().out
    assert said.count("no k-NN: ") == 1 and begun.dataset in said


def test_labels_of_a_dataset_of_ones_own_are_not_used_without_a_word(tiny, pictures, capsys):
    assert build_trainer(tiny, pictures).probes is None
    said = capsys.readouterr().out
    assert said.count("no k-NN: ") == 1 and "eval_every=0" in said
    build_trainer(replace(tiny, eval_every=0), pictures)
    assert "no k-NN" not in capsys.readouterr().out
