"""The checks of the course: right answers pass in any style, wrong ones don't, and most are named.

The right answer of each piece is the solution in the notebook's master. The wrong ones are made of
it by small changes of its source (mutate.py) and written by hand (answers_NN.py).
"""

import ast
import contextlib
import importlib
import io
import re
import sys
from pathlib import Path

import pytest
from mutate import mutants

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
from build import MASTERS, SOLUTION, read_master  # noqa: E402

MODULES = {"01": "multicrop", "02": "head", "03": "loss", "04": "teacher", "05": "training",
           "06": "attention", "07": "collapse",
           "08": "your_data", "A1": "resampling"}  # fmt: skip
HEADER = importlib.import_module("dino_lib.course.pieces").HEADER
NOT_NAMED = re.compile(r"wrong: (it is off by|\d+ of \d+ cases are right)")


def stubs():
    """(notebook, name, its source, the sources of the pieces before it) of each stub."""
    for path in sorted(MASTERS.glob("*.py")):
        before = []
        for cell in read_master(path).cells:
            if "stub" not in cell.metadata.get("tags", []):
                continue
            solved = SOLUTION.sub(r"\2", cell.source)
            definitions = [
                ast.unparse(node)
                for node in ast.parse(solved).body
                if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)
            ]
            name = re.search(r"^(?:def|class) (\w+)", solved, re.M)[1]
            yield path.stem[:2], name, "\n".join(definitions), list(before)
            before += definitions


STUBS = {(notebook, name): rest for notebook, name, *rest in stubs()}


def answers(notebook):
    return importlib.import_module(f"answers_{notebook}")


def piece_of(source, name, before):
    """The function or class that a source defines, beside the pieces before it."""
    namespace = {"__name__": "answer"}
    exec(HEADER, namespace)
    for text in before:
        exec(text, namespace)
    exec(compile(source, "<answer>", "exec"), namespace)
    return namespace[name]


def verdict(notebook, name, piece):
    """The line that the check prints, and what it returns."""
    check = getattr(importlib.import_module(f"dino_lib.course.{MODULES[notebook]}"), name)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        used = check(piece)
    lines = said.getvalue().splitlines()
    assert len(lines) == 1, lines
    return lines[0], used


EACH = pytest.mark.parametrize(("notebook", "name"), STUBS)


@EACH
def test_the_solution_is_right_and_is_used(notebook, name):
    piece = piece_of(STUBS[notebook, name][0], name, STUBS[notebook, name][1])
    said, used = verdict(notebook, name, piece)
    assert said.startswith("right")
    assert used is piece


@EACH
def test_an_empty_stub_is_not_done_and_the_finished_piece_is_used(notebook, name):
    source, before = STUBS[notebook, name]
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.body = [ast.Expr(ast.Constant(...))]
    empty = piece_of(ast.unparse(tree), name, before)
    said, used = verdict(notebook, name, empty)
    assert said.startswith("not done yet")
    assert used is not empty
    again, _ = verdict(notebook, name, used)
    assert again.startswith("right"), "the finished piece does not pass its own check"


@EACH
def test_right_answers_in_another_style_pass(notebook, name):
    styles = answers(notebook).STYLES[name]
    assert len(styles) >= 2
    for number, piece in enumerate(styles):
        said, used = verdict(notebook, name, piece)
        assert said.startswith("right"), f"style {number}: {said}"
        assert used is piece


def wrong_answers(notebook, name):
    """(what, piece) of each wrong answer: written by hand, and made of the solution."""
    source, before = STUBS[notebook, name]
    yield from answers(notebook).WRONG[name].items()
    right = answers(notebook).EQUIVALENT.get(name, ())
    for mutant in mutants(source):
        if not any(line in mutant for line in right):
            try:
                yield mutant, piece_of(mutant, name, before)
            except Exception:
                continue  # no Python: nobody would hand it in


@pytest.mark.parametrize("notebook", sorted({notebook for notebook, _ in STUBS}))
def test_no_wrong_answer_passes_and_four_of_five_are_named(notebook):
    """One test a notebook: each wrong answer is judged once."""
    every = []
    for name in (name for number, name in STUBS if number == notebook):
        found = [(what, verdict(notebook, name, p)[0]) for what, p in wrong_answers(notebook, name)]
        for what, said in found:
            print(f"{name}: {said}\n    {what}")
        passed = [what for what, said in found if not said.startswith("wrong")]
        assert not passed, f"{name}: {len(passed)} of {len(found)} pass; the first:\n{passed[0]}"
        assert len(found) >= 12, f"{name}: {len(found)} wrong answers"
        every += [said for _, said in found]
    named = [said for said in every if not NOT_NAMED.match(said)]
    print(f"{notebook}: {len(every)} wrong answers, {len(named) / len(every):.0%} named")
    assert len(named) >= 0.8 * len(every)
