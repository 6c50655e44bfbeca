"""`dino progress`: what is read of a reader's notebooks and of `my_pieces/done.txt`, the tables."""

import csv
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dino_lib.cli import main
from dino_lib.course import pieces, progress
from dino_lib.course import teacher as checks
from dino_lib.course.progress import csv_of_class, read_class, read_copy, table_of_class

ROOT = Path(__file__).resolve().parents[2]
STUDENT = ROOT / "notebooks"


def save(folder, name="02_head", **said):
    """A reader's copy of a notebook in which the checks of the named pieces have said something."""
    notebook = json.loads((STUDENT / f"{name}.ipynb").read_text())
    for cell in notebook["cells"]:
        last = "".join(cell["source"]).strip().split("\n")[-1]
        piece = last.partition(" = ")[0]
        if piece in said and last == f"{piece} = checks.{piece}({piece})":
            cell["outputs"] = [{"output_type": "stream", "name": "stdout", "text": [said[piece]]}]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.ipynb").write_text(json.dumps(notebook))
    return folder


RIGHT, WRONG = "right: from here on it is yours\n", "wrong: the sign (until yours is right, ...)\n"


def states(copy, notebook="02_head"):
    return {p.name: p.state for p in copy.notebooks[notebook] if p.state != "not done yet"}


def test_the_outputs_tell_what_is_done(tmp_path):
    copy = read_copy(save(tmp_path, Head=RIGHT, head_parameters="right\n", cosine_logits=WRONG))
    assert states(copy) == {"Head": "right", "head_parameters": "right", "cosine_logits": "wrong"}
    assert copy.done("02_head", "piece") == (1, 6) and copy.done("02_head", "exercise") == (1, 2)


def test_a_piece_that_ends_in_an_error_is_wrong_and_not_left_out(tmp_path):
    path = save(tmp_path) / "02_head.ipynb"
    notebook = json.loads(path.read_text())
    (cell,) = [c for c in notebook["cells"] if "Head = checks.Head(Head)" in "".join(c["source"])]
    error = {"output_type": "error", "ename": "SyntaxError", "evalue": "", "traceback": []}
    cell["outputs"] = [error]
    path.write_text(json.dumps(notebook))
    assert states(read_copy(tmp_path)) == {"Head": "wrong"}


@pytest.mark.parametrize("path", sorted(STUDENT.glob("*.ipynb")), ids=lambda path: path.stem)
def test_every_stub_of_the_course_is_found_none_done_and_all_in_the_solutions(path):
    cells = json.loads(path.read_text())["cells"]
    stubs = sum("stub" in cell["metadata"].get("tags", []) for cell in cells)
    module, found = progress.read_notebook(path)
    assert len(found) == stubs and {p.state for p in found} == {"not done yet"}
    solved, all_done = progress.read_notebook(path.parent / "solutions" / path.name)
    assert module == solved != "" and {p.state for p in all_done} == {"right"}
    assert [(p.name, p.kind) for p in found] == [(p.name, p.kind) for p in all_done]


def test_what_was_right_once_stays_done_in_its_own_notebook_alone(tmp_path, monkeypatch):
    save(save(tmp_path), "05_training", diagnose=WRONG)
    save(tmp_path, "07_collapse_lab")
    (tmp_path / "my_pieces").mkdir()
    (tmp_path / "my_pieces" / "done.txt").write_text("collapse.diagnose\nhead.Head\n")
    copy = read_copy(tmp_path)
    assert states(copy) == {"Head": "right"}
    assert states(copy, "05_training") == {"diagnose": "wrong"}
    assert states(copy, "07_collapse_lab") == {"diagnose": "right"}


def test_a_check_notes_what_is_right_once_and_in_a_notebook_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pieces.note_done("ema_update")
    assert not (tmp_path / "my_pieces").exists()  # no notebook
    main_module = SimpleNamespace(get_ipython=None, checks=checks)
    monkeypatch.setitem(sys.modules, "__main__", main_module)

    def momentum_for(steps, share=0.5):
        return 0.5 ** (1 / (share * steps))

    def wrong(steps, share=0.5):
        return 1 - share / steps

    for piece in (wrong, momentum_for, momentum_for):
        checks.momentum_for(piece)
    kept = tmp_path / "my_pieces" / "done.txt"
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["wrong", "right", "right"], said
    assert kept.read_text() == "teacher.momentum_for\n"
    pieces.note_done("ema_update")
    assert kept.read_text() == "teacher.momentum_for\nteacher.ema_update\n"
    kept.unlink()
    kept.mkdir()
    pieces.note_done("ema_update")  # says so, and does not stop the notebook
    assert "could not be written" in capsys.readouterr().out


def test_two_copies_of_a_notebook_count_once_the_better_of_both(tmp_path):
    save(tmp_path, Head=RIGHT)
    (tmp_path / "02_head.ipynb").rename(tmp_path / "02_head-Copy1.ipynb")
    save(tmp_path, cosine_logits=RIGHT)
    copy = read_copy(tmp_path)
    assert states(copy) == {"Head": "right", "cosine_logits": "right"}
    assert list(copy.notebooks) == ["02_head"]


def test_of_one_folder_a_line_a_notebook_with_what_is_missing(tmp_path, capsys):
    said = {name: RIGHT for name in ("Head", "split_tokens", "group_views", "forward_views")}
    save(tmp_path / "notebooks", **said, cosine_logits=WRONG, normalize_backward="right\n")
    main(["progress", str(tmp_path)])  # the folder `notebooks` is found
    lines = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", lines[0]) == ["notebook", "pieces", "exercises", "missing"]
    assert re.split(r"  +", lines[1]) == [
        "02_head", "4 of 6", "1 of 2", "cosine_logits (wrong), nearest_pictures, head_parameters",
    ]  # fmt: skip
    assert lines[2] == "5 of 8 are done."


def test_of_a_class_a_row_a_reader_and_the_same_as_csv(tmp_path, capsys):
    save(tmp_path / "ada" / "notebooks", Head=RIGHT, cosine_logits=WRONG)
    save(tmp_path / "ben", "04_teacher", ema_update=RIGHT)
    save(tmp_path / "ben", cosine_logits=WRONG)
    (tmp_path / "cleo").mkdir()
    (tmp_path / "ben" / "broken.ipynb").write_text("{")
    folders = [str(tmp_path / name) for name in ("ada", "ben", "cleo")]
    main(["progress", *folders, "--csv", str(tmp_path / "class.csv")])
    lines = [re.split(r"  +", line) for line in capsys.readouterr().out.splitlines()]
    assert lines[:4] == [
        ["reader", "02", "04", "done", "wrong now"],
        ["ada", "1/8", "-", "1/16", "cosine_logits"],
        ["ben", "0/8", "1/8", "1/16", "cosine_logits"],
        ["cleo", "-", "-", "0/16", "-"],
    ]
    assert lines[4] == ["wrong with more than one reader: cosine_logits (2)"]
    assert lines[5][0].startswith("left out: ben: broken.ipynb is no notebook: JSONDecodeError")
    assert lines[6][0].startswith("left out: cleo: ")
    rows = list(csv.DictReader((tmp_path / "class.csv").read_text().splitlines()))
    assert [(r["reader"], r["02_head"], r["04_teacher"], r["done"], r["of"]) for r in rows] == [
        ("ada", "1", "", "1", "16"), ("ben", "0", "1", "1", "16"), ("cleo", "", "", "0", "16"),
    ]  # fmt: skip
    assert rows[0]["wrong"] == "cosine_logits" and "broken.ipynb" in rows[1]["unread"]


def test_readers_are_told_apart_by_what_differs_in_their_paths(tmp_path):
    for name in ("ada", "ben"):
        save(tmp_path / name / "dino" / "notebooks")
    copies = read_class([tmp_path / "ada" / "dino", tmp_path / "ben" / "dino" / "notebooks"])
    assert [copy.reader for copy in copies] == ["ada/dino", "ben/dino"]
    assert table_of_class(copies).count("\n") == csv_of_class(copies).count("\n") - 1 == 2


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "is no folder"),
        ({}, "holds no notebook of the course"),
        ({"a.ipynb": '{"cells": 3}'}, r"a\.ipynb is no notebook: TypeError"),
        ({"a.ipynb": "\xff"}, r"a\.ipynb is no notebook: JSONDecodeError"),
        ({"a.ipynb": '{"cells": [{"source": "x = 1"}]}'}, "holds no notebook of the course"),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, capsys, content, says):
    folder = tmp_path / "given"
    for name, text in (content or {}).items():
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    if content is not None:
        folder.mkdir(exist_ok=True)
    with pytest.raises(SystemExit) as end:
        main(["progress", str(folder)])
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and re.search(says, line) and "given" in line


@pytest.mark.parametrize("kind", ["UTF-16", "a folder"])
def test_notes_of_what_is_done_that_cannot_be_read_leave_the_notebooks_counted(tmp_path, kind):
    save(tmp_path, Head=RIGHT)
    done = tmp_path / "my_pieces" / "done.txt"
    done.parent.mkdir()
    done.mkdir() if kind == "a folder" else done.write_bytes("head.Head".encode("utf-16"))
    copy = read_copy(tmp_path)
    assert states(copy) == {"Head": "right"}
    assert len(copy.unread) == 1 and "my_pieces/done.txt can't be read" in copy.unread[0]
