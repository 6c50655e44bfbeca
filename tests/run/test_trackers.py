"""The history in TensorBoard and Weights & Biases, as those programs themselves write it."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dino_lib.run.trackers import open_tracker
from dino_lib.run.train import train

# timm imports wandb wherever it is installed, which slows down every start of Python: so it is in
# the extra `test`, which the weekly workflow installs, and not in requirements.txt
WITHOUT_WANDB = "needs `pip install wandb`"


def test_tensorboard_gets_every_value_of_the_history(tiny, pictures):
    _, history = train(dataclasses.replace(tiny, tracker="tensorboard", log_every=3), pictures)
    events = EventAccumulator(tiny.output_dir).Reload()
    assert sorted(events.Tags()["scalars"]) == sorted(history[0].keys() - {"step"})
    for name in history[0].keys() - {"step"}:
        written = [(event.step, event.value) for event in events.Scalars(name)]
        assert [step for step, _ in written] == [3, 6, 8]
        assert [value for _, value in written] == pytest.approx(
            [record[name] for record in history], rel=1e-6
        )


def test_what_is_said_to_wandb(tiny, monkeypatch):
    """A stand-in for the client keeps what it is told."""
    said = []

    def init(**settings):
        said.append(("init", settings))
        return SimpleNamespace(
            log=lambda values, step: said.append((step, values)),
            finish=lambda: said.append("finish"),
        )

    monkeypatch.setitem(
        sys.modules, "wandb", SimpleNamespace(init=init, errors=SimpleNamespace(Error=OSError))
    )
    config = dataclasses.replace(tiny, tracker="wandb")
    with open_tracker(config) as track:
        track({"step": 3, "loss": 2.5})
        track({"step": 7, "knn": 0.5})
    settings = {"project": "dino", "dir": tiny.output_dir, "config": dataclasses.asdict(config)}
    assert said == [("init", settings), (3, {"loss": 2.5}), (7, {"knn": 0.5}), "finish"]


def test_wandb_writes_an_offline_run_into_the_runs_folder(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    wandb = pytest.importorskip("wandb", reason=WITHOUT_WANDB)
    (tmp_path / "run").mkdir()
    with open_tracker(dataclasses.replace(tiny, tracker="wandb")) as track:
        run = wandb.run
        track({"step": 3, "loss": 2.5})
        track({"step": 3, "knn": 0.5})  # an evaluation's line has the step of the line before it
        track({"step": 7, "loss": 2.25})
        assert (run.config["out_dim"], run.step) == (tiny.out_dim, 7)
    assert wandb.run is None  # finished
    (file,) = (tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")
    for _ in range(
        100
    ):  # wandb's own process may write the last of it a moment after the run is finished
        written = file.read_bytes()  # a log of protocol buffers, not compressed
        if all(word in written for word in (b"loss", b"2.25", b"knn")):
            return
        time.sleep(0.1)
    pytest.fail(f"{file} holds no loss, 2.25 and knn within 10 seconds: {written}")


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_named(tiny, monkeypatch, name):
    monkeypatch.setitem(
        sys.modules, {"tensorboard": "torch.utils.tensorboard"}.get(name, name), None
    )
    with (
        pytest.raises(ImportError, match=name),
        open_tracker(dataclasses.replace(tiny, tracker=name)),
    ):
        pass


def test_wandb_without_a_key_is_one_line(tmp_path):
    """In a process of its own: wandb remembers the mode that it was first started with."""
    pytest.importorskip("wandb", reason=WITHOUT_WANDB)
    script = """
from dino_lib import Config
from dino_lib.run.trackers import open_tracker
with open_tracker(Config(tracker="wandb", output_dir=".")):
    pass
"""
    known = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        env={**known, "HOME": str(tmp_path), "NETRC": str(tmp_path / "netrc")},
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("ValueError: tracker=wandb cannot start: ")
    assert re.search("wandb.login", last)  # `wandb login`, or before `wandb.login(...)`
    assert "WANDB_MODE=offline" in last


def test_a_tracker_that_fails_costs_its_lines_and_not_the_run(tiny, pictures, monkeypatch, capsys):
    def fails(*_):
        raise OSError("no space left")

    _, history = train(dataclasses.replace(tiny, output_dir=tiny.output_dir + "-whole"), pictures)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.add_scalar", fails)
    monkeypatch.setattr("torch.utils.tensorboard.SummaryWriter.close", fails)
    teacher, same = train(dataclasses.replace(tiny, tracker="tensorboard"), pictures)
    assert teacher.about["step"] == 8 and [r["loss"] for r in same] == [r["loss"] for r in history]
    said = capsys.readouterr()
    assert (said.out + said.err).count("tracker=tensorboard has failed (no space left)") == 1


@pytest.mark.parametrize("configured", [True, False])
def test_no_tracker_takes_records_and_writes_nothing(tiny, tmp_path, configured):
    with open_tracker(tiny if configured else None) as track:
        track({"step": 1, "loss": 1.0})
    assert list(tmp_path.iterdir()) == []
