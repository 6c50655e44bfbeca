"""`dino doctor` without a run: what it finds missing, and the times that it says."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dino_lib.cli import main
from dino_lib.course import laptop

NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"
GB = 10**9


@pytest.fixture
def reference():
    return {
        "machine": "a reference",
        "work_seconds": 2.0,
        "checked": {"01_a": 1.25, "02_b": 0.5},
        "notebooks": {"01_a": {"seconds": 30, "memory": GB}, "02_b": {"seconds": 90, "memory": GB}},
    }


@pytest.fixture
def folder(reference, tmp_path, monkeypatch):
    """A folder where all is well: its notebooks are there, what shows them is installed, memory and
    disk are free.
    """
    no_packages_but(monkeypatch, laptop.NEEDED)
    monkeypatch.setattr(laptop, "read_reference", lambda: reference)
    monkeypatch.setattr(laptop, "work", lambda: (3.0, 1.0))
    memory = SimpleNamespace(available=4 * GB, total=8 * GB)
    monkeypatch.setattr(laptop.psutil, "virtual_memory", lambda: memory)
    monkeypatch.setattr(laptop.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * GB))
    for name in reference["notebooks"]:
        (tmp_path / f"{name}.ipynb").write_text("{}")
    return tmp_path


def no_packages_but(monkeypatch, names):
    """Of the packages that show notebooks, only these are installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name: (name in names or None) if name in laptop.NEEDED else find(name),
    )


def changes(folder):
    """What the check says to do, and whether the machine is ready."""
    said, ready = laptop.examine_machine(folder)
    return re.findall(r"-> (.*)", said), ready


def test_times_are_the_references_times_the_factor_of_the_work(folder):
    said, ready = laptop.examine_machine(folder)
    assert ready and said.endswith("This machine is ready.") and "LOOK" not in said
    rows = dict(re.findall(r"(?m)^  (\w+) +(\S+ \w+)", said))
    assert rows == {"01_a": "45 s", "02_b": "2.2 min", "together": "3.0 min"}
    (folder / "03_new.ipynb").write_text("{}")
    assert "  03_new  never measured" in laptop.examine_machine(folder)[0]
    assert "1.50 times as long as one of a reference" in said
    assert "01_a, 02_b took 0.50 to 1.25 times what it said" in said


def test_what_is_missing_is_named_with_what_to_do(folder, monkeypatch):
    small = SimpleNamespace(available=1.1 * GB, total=8 * GB)
    monkeypatch.setattr(laptop.psutil, "virtual_memory", lambda: small)
    assert changes(folder) == (["close other programs, browsers first"], False)
    monkeypatch.setattr(laptop.shutil, "disk_usage", lambda _: SimpleNamespace(free=GB / 2))
    monkeypatch.setattr(laptop, "work", lambda: (3.0, 2.0))
    found, ready = changes(folder)
    assert [c.split()[0] for c in found] == ["close", "make", "close"] and not ready


def test_a_busy_machine_is_ready(folder, monkeypatch):
    monkeypatch.setattr(laptop, "work", lambda: (3.0, 2.0))
    said, ready = laptop.examine_machine(folder)
    assert ready and said.endswith("This machine is ready, but busy.")
    assert "LOOK  other programs take the processor: all takes 2.0 times as long" in said


def test_packages_too_old_or_missing(folder, monkeypatch):
    needs = ["torch>=99", "no-such-package>=1", "numpy>=1", 'wandb>=99; extra == "wandb"']
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: needs)
    no_packages_but(monkeypatch, laptop.NEEDED.keys() - {"ipywidgets"})
    said, ready = laptop.examine_machine(folder)
    assert not ready and "numpy" not in said and "wandb" not in said
    assert re.search(r"torch \S+ \(needed: torch>=99\); no-such-package is missing", said)
    assert changes(folder)[0] == ["pip install -r requirements.txt", "pip install ipywidgets"]


def test_a_folder_without_its_notebooks_and_one_that_lacks_one(folder, capsys, monkeypatch):
    (folder / "02_b.ipynb").unlink()
    assert "02_b not in" in laptop.examine_machine(folder)[0]
    (folder / "01_a.ipynb").unlink()
    monkeypatch.chdir(folder)
    with pytest.raises(SystemExit) as end:
        main(["doctor"])
    said = capsys.readouterr().out
    assert end.value.code == 1 and "no notebook is in" in said
    assert said.rstrip().endswith("not ready yet: 1 of the lines above say LOOK.")


def test_the_reference_has_notebooks_that_are_there_and_its_work():
    reference = laptop.read_reference()
    assert reference["notebooks"].keys() <= {path.stem for path in NOTEBOOKS.glob("*.ipynb")}
    for row in reference["notebooks"].values():
        assert 1 < row["seconds"] < 3600 and 1e8 < row["memory"] < 4 * GB
    assert 0.1 < reference["work_seconds"] < 60 and reference["checked"]


def test_the_work_is_timed_once_it_is_warm(monkeypatch):
    """The first of the four runs, which also sets things up, is not the one that counts."""
    monkeypatch.setattr(laptop, "_plot", lambda n: None)
    clock, runs = [0.0], []
    costs = iter([9.0, 3.0, 2.0, 4.0])

    def train(updates):
        runs.append(updates)
        clock[0] += next(costs)

    monkeypatch.setattr(laptop, "_train", train)
    monkeypatch.setattr(laptop.time, "process_time", lambda: clock[0])
    monkeypatch.setattr(laptop.time, "perf_counter", lambda: 1.5 * clock[0])
    assert laptop.work() == (2.0, 1.5) and len(set(runs)) == 1
