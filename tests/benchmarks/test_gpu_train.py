"""`make gpu-train`, small: from the two archives, cut off twice, to its report."""

import contextlib
import sys
import tarfile
from pathlib import Path

import pytest
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import gpu_train
import pack_imagenette

from dino_lib import cli
from dino_lib.data.shapes import Shapes
from dino_lib.run.history import read_history


@pytest.fixture
def archives(tmp_path):
    """What a folder laid out as Imagenette's becomes: 24 pictures to train on, 8 held back."""
    data, source = Shapes(32, size=60), tmp_path / "imagenette2-160"
    for i in range(32):
        folder = source / ("train" if i < 24 else "val") / f"n0000000{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        data[i][0].resize((90, 60)).save(folder / f"{i}.JPEG")
    pack_imagenette.main([str(source), str(tmp_path / "small"), "--size", "48"])
    return tmp_path / "small"


def test_the_archives_hold_middle_squares_in_the_same_layout(archives, tmp_path):
    names = []
    for part in ("part-1.tar", "part-2.tar"):
        with tarfile.open(archives / part) as tar:
            assert len(tar.getnames()) == 16
            names += tar.getnames()
    train = {f"train/n0000000{i % 2}/{i}.jpg" for i in range(24)}
    assert {*names} == train | {f"val/n0000000{i % 2}/{i}.jpg" for i in range(24, 32)}
    with pytest.raises(FileNotFoundError, match=r"imagenette2-160\.tgz"):
        pack_imagenette.main([str(archives), str(tmp_path / "no")])


def in_this_process(*words):
    with contextlib.suppress(SystemExit):
        cli.main([str(word) for word in words])


def test_a_run_that_is_cut_off_twice_ends_with_teacher_and_report(
    archives, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(gpu_train, "dino", in_this_process)
    out = tmp_path / "out"
    words = ["--out", str(out), "--data", str(archives), "--preset", "smoke", "--device", "cpu",
             "--batch-size", "8", "--progress", "False", "--epochs"]  # fmt: skip
    steps = []
    for minutes in ("0.005", "0.005", "9"):
        gpu_train.main([*words, "30", "--minutes", minutes])
        steps.append(read_history(out / "run")[-1]["step"])
        assert (out / "curve.png").exists()
    said = capsys.readouterr().out
    assert 0 < steps[0] < steps[1] < steps[2] == 90
    assert "of 90 after" in said and "The same command goes on" in said and "finished: " in said
    words = (out / "report.md").read_text()
    assert "90 updates of 8 images, seed 0" in words and "colour histogram" in words
    half = load_file(out / "teacher-half.safetensors")
    assert {tensor.dtype.itemsize for tensor in half.values() if tensor.is_floating_point()} == {2}
