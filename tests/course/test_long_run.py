"""A long run from a notebook: its folder, its timetable, its picture."""

import dataclasses
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from dino_lib.course.long_run import lasting_folder, redraw, timetable
from dino_lib.run.presets import PRESETS


def test_a_run_is_kept_in_drive_where_colab_is_and_that_is_wanted(monkeypatch):
    def never(question):
        raise AssertionError(question)

    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    assert lasting_folder("colab", never) == Path("runs/colab")
    mounted = []
    colab = ModuleType("google.colab")
    colab.drive = SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release")
    assert lasting_folder("colab", lambda _: "n") == Path("runs/colab") and mounted == []
    kept = lasting_folder("colab", lambda _: " Yes")
    assert kept == Path("/content/drive/MyDrive/dino-runs/colab") and mounted == ["/content/drive"]


def test_a_timetable_follows_the_settings():
    lines = timetable(PRESETS["colab"], 40).splitlines()
    assert [line[7:12].strip() for line in lines] == ["0.0", "2.0", "4.0", "4.0", "40.0"]
    assert "every 2.0 minutes" in lines[1] and "learning rate" in lines[2]
    assert "temperature has reached 0.06" in lines[3]
    short = dataclasses.replace(PRESETS["colab"], epochs=20, eval_every=0)
    assert "again" not in timetable(short, 5)
    assert "minute   2.5: the learning" in timetable(short, 5)


def test_a_picture_is_drawn_by_time_and_not_by_update(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 4}\n{"step": 8}\n{"step": 9}\n')
    time, seen = [0.0], []
    on_log = redraw(lambda lines: seen.append([line["step"] for line in lines]), 5, tmp_path,
                    lambda: time[0])  # fmt: skip
    for step in (8, 8, 10, 12, 14):  # it goes on after update 8, where it is evaluated too
        on_log({"step": step})
        time[0] += 2
    assert seen == [[4, 8, 8], [4, 8, 8, 8, 10, 12]]
