"""Notebook 05's part for a GPU, executed on the CPU: `RUN = "gpu"` with stand-ins for photographs
and network, and `RUN = "cpu"` as it ships. No cell fails, and what the texts say is so.
"""

import dataclasses
import json
import re
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import pytest
from matplotlib.figure import Figure

from dino_lib.cli import read_settings
from dino_lib.data.shapes import Shapes
from dino_lib.look import report
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.teachers.load import SHIPPED

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
from build import MASTERS, make_copy, read_master  # noqa: E402

CLASSES = ("n01440764", "n02102040", "n02979186", "n03000684", "n03028079", "n03394916",
           "n03417042", "n03425413", "n03445777", "n03888257")  # fmt: skip


@pytest.fixture
def photographs(tmp_path):
    """A data_root with ten classes of Imagenette: 80 pictures to train on and 30 to ask."""
    data = Shapes(110, size=64)
    for i in range(110):
        folder = (
            tmp_path / "data/imagenette2-160" / ("train" if i < 80 else "val") / CLASSES[i % 10]
        )
        folder.mkdir(parents=True, exist_ok=True)
        data[i][0].resize((90, 64)).save(folder / f"{i}.JPEG")
    return tmp_path / "data"


@pytest.fixture
def execute(monkeypatch, tmp_path):
    """The function that runs the part's cells with this RUN, all or up to the one that holds
    `until` -> (names, last values, pictures).
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    matplotlib.use("Agg")
    cells = make_copy(read_master(MASTERS / "05_training.py"), "solved").cells

    def run(kind, until=None):
        shown, names = [], {}

        def display(figure, display_id):
            shown.append(figure)
            return SimpleNamespace(update=shown.append)

        names["display"] = display
        for cell in cells:
            tags = cell.metadata.get("tags", [])
            first = cell.source.startswith(("import copy", "import matplotlib"))
            if not (first or "long" in tags or "def diagnose" in cell.source):
                continue
            source = cell.source.replace('RUN = "cpu"', f'RUN = "{kind}"')
            *lines, last = source.splitlines()
            exec("\n".join(lines) if last.isidentifier() else source, names)
            if last.isidentifier():
                shown.append(names[last])
            if until and until in source:
                break
        return names, shown

    return run


def stand_in(data_root):
    options = {"img_size": 48, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 2}
    return dataclasses.replace(
        PRESETS["colab"], data_root=str(data_root), download=False, store_size=64,
        backbone_options=options, global_size=48, local_size=24, n_local=2, out_dim=64,
        hidden_dim=32, bottleneck_dim=16, batch_size=16, epochs=6, warmup_epochs=2,
        warmup_teacher_temp_epochs=2, eval_every=3, save_every=3, log_every=5, device="cpu",
        progress=False)  # fmt: skip


def test_on_a_gpu_it_trains_on_photographs_and_shows_that_run(
    execute, photographs, monkeypatch, capsys
):
    config = stand_in(photographs)
    monkeypatch.setitem(PRESETS, "colab", config)
    names, shown = execute("gpu")
    said = capsys.readouterr().out
    history = read_history("runs/colab")
    assert history[-1]["step"] == 30 and history[0]["step"] == 0  # first measured, then trained
    assert "30 updates of 16 images, " in said
    command = re.search(r"the same from a terminal: (.*)", said)[1]
    words = shlex.split(command)[2:]
    assert read_settings(words) == (names["long"], None)
    assert "nan" not in said and "creature" not in said and "nothing is trained" not in said
    here = re.search(r"your run: 20-NN (\d+)%, untrained (\d+)%, colour histogram (\d+)%; ", said)
    assert here and f"{round(100 * history[-1]['knn'])}" == here[1]
    ships = json.loads((SHIPPED / "photos" / "report.json").read_text())["knn_trained"]
    assert "480 images seen" in said and f"photos, which ships: 20-NN {ships:.0%}" in said
    assert all(isinstance(figure, Figure) for figure in shown) and len(shown) >= 3
    assert names["where"] == Path("runs/colab") and len(names["rows"]) == 2
    # a session that ended: the same cells go on, here with nothing left
    reported = []
    monkeypatch.setattr(report, "report", lambda *of, **options: reported.append(of))
    execute("gpu", until="train(long")
    assert "is finished: nothing is left to train" in capsys.readouterr().out
    assert reported == [(Path("runs/colab"),)]


def test_without_a_gpu_it_reads_the_run_that_ships(execute, capsys, tmp_path):
    names, shown = execute("cpu")
    said = capsys.readouterr().out
    history = read_history(names["where"])
    about = (history[-1]["step"], round(names["minutes"]), names["long"].dataset)
    assert about == (17640, 129, "imagenette")  # as the text says
    assert "nothing is trained" in said and "nan" not in said and "your run" not in said
    assert history[0]["step"] == 0 and "knn" in history[0]
    assert not (tmp_path / "runs").exists() and len(shown) == 1
