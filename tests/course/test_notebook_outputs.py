"""What the notebooks hold as they are committed: what their masters say, the output of each cell,
and nothing that differs between machines.
"""

import base64
import io
import itertools
import json
import re
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
sys.path.insert(0, str(ROOT / "notebooks"))
from build import COPIES, MASTERS, make_copy, read_master  # noqa: E402
from stamp import repository, stamp  # noqa: E402

TURN = re.compile(
    r"^\*\*(Your turn|Exercise) \d+ · (easy|medium|hard) · \d+ minutes · [^*]+\.\*\*", re.M
)
KINDS = {
    "text/plain",
    "image/png",
    "image/jpeg",
    "text/html",
}  # no widget: a viewer would show "loading", or nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_outputs_are_text_and_pictures(path):
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert "execution" not in cell.metadata, (
            f"cell {cell.id} holds times: use notebooks/execute.py"
        )
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", (
                f"cell {cell.id}: {output}"
            )
            assert set(output.get("data", {})) <= KINDS, (
                f"cell {cell.id}: {set(output.data) - KINDS}"
            )
            assert "%|" not in str(output.get("text")) + str(output.get("data")), (
                f"cell {cell.id} has a progress bar"
            )


def test_what_05_says_of_five_seeds_is_what_was_measured():
    rows = json.loads((ROOT / "benchmarks/short_run.json").read_text())["rows"]
    text = (MASTERS / "05_training.py").read_text(encoding="utf-8")
    gaps = [f"{100 * row['gap']:.1f}%" for row in rows]
    assert f"ended at {', '.join(gaps[:-1])} and {gaps[-1]} (`benchmarks/short_run.py`)" in text
    assert [row["seed"] for row in rows if row["gap"] < 0.05] == [2]
    assert 'The third is "same for all" to this doctor' in text
    rose = f"from {rows[2]['untrained, knn']:.0%} to {rows[2]['your run, knn']:.0%}, where"
    assert rose in text and round(100 * rows[2]["histogram, knn"]) == 44


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_cells_ran_in_order_from_a_fresh_kernel(path):
    counts = [
        cell.execution_count for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"
    ]
    assert counts == list(range(1, len(counts) + 1))


EACH_MASTER = pytest.mark.parametrize(
    "path", sorted(MASTERS.glob("*.py")), ids=lambda path: path.stem
)


def committed(path, kind):
    return nbformat.read(ROOT / "notebooks" / COPIES[kind] / f"{path.stem}.ipynb", 4)


def verdicts(notebook):
    """The first line that each check printed."""
    return [
        line
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and "stub" in cell.metadata.get("tags", [])
        for line in output.text.splitlines()
    ]


@EACH_MASTER
@pytest.mark.parametrize("kind", COPIES)
def test_each_copy_is_what_its_master_says(path, kind):
    want, found = make_copy(read_master(path), kind), committed(path, kind)
    place = f"notebooks/{COPIES[kind]}/{path.name}".replace("//", "/").replace(".py", ".ipynb")
    stamp(want, repository(), place)
    assert [c.source for c in found.cells] == [c.source for c in want.cells], "run build.py"


@EACH_MASTER
def test_students_copies_hold_no_solution(path):
    master, student = read_master(path), committed(path, "student")
    stubs = [c.source for c in master.cells if "stub" in c.metadata.get("tags", [])]
    text = "\n".join(c.source for c in student.cells)
    assert "SOLUTION" not in text
    for stub in stubs:
        solution = stub.split("### BEGIN SOLUTION\n")[1].split("### END SOLUTION")[0]
        assert solution.strip() and solution.strip() not in text
    assert len(verdicts(student)) == len(stubs)
    assert all(line.startswith("not done yet") for line in verdicts(student))


@EACH_MASTER
def test_solved_copies_turn_every_check_right(path):
    stubs = [c for c in read_master(path).cells if "stub" in c.metadata.get("tags", [])]
    found = verdicts(committed(path, "solved"))
    assert len(found) == len(stubs)
    assert all(line.startswith("right") for line in found)


@EACH_MASTER
def test_each_piece_has_its_level_its_minutes_and_a_folded_hint(path):
    cells = committed(path, "student").cells
    for before, cell in itertools.pairwise(cells):
        if "stub" in cell.metadata.get("tags", []):
            assert TURN.search(before.source), before.source
            assert "<details><summary>Hint</summary>" in before.source


@EACH_MASTER
def test_the_teachers_copy_shows_what_the_solved_one_gave(path):
    solved, teaching = committed(path, "solved"), committed(path, "teaching")
    outputs = {c.id: c.outputs for c in solved.cells if c.cell_type == "code"}
    shown = {c.id: c.outputs for c in teaching.cells if c.cell_type == "code"}
    assert outputs == shown
    assert any("note" in c.metadata.get("tags", []) for c in teaching.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pictures_are_wide_enough_and_not_blank(path):
    for cell in nbformat.read(path, 4).cells:
        for output in cell.get("outputs", []):
            for kind in ("image/png", "image/jpeg"):
                if kind in output.get("data", {}):
                    data = base64.b64decode(output.data[kind])
                    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
                    assert pixels.shape[1] >= 300, f"cell {cell.id}: {pixels.shape}"
                    assert pixels.std() > 8, f"cell {cell.id} shows a blank picture"
