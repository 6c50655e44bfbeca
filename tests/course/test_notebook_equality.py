"""The cells tagged `equality` prove what they say: they pass with dino_lib as it is, and not with
a mistake in it.

In each solved notebook these cells (imports, the reader's pieces with their checks, comparisons)
run by themselves, in order, in a process of their own in which the library may have been changed:
see breaks.py. A check that calls the solution wrong has noticed, too.
"""

import ast
import contextlib
import importlib
import io
import json
import linecache
import multiprocessing
import os
import pkgutil
import tempfile
import traceback
from pathlib import Path

import pytest
from breaks import BREAKS, smaller

ROOT = Path(__file__).resolve().parents[2]
SOLVED = sorted((ROOT / "notebooks" / "solutions").glob("[0A]*.ipynb"))
NOTEBOOKS = {path.name[:2]: path for path in SOLVED if path.name[:2] in BREAKS}


def equality_cells(notebook):
    """(id, source) of the tagged cells of a notebook, in order."""
    cells = json.loads(NOTEBOOKS[notebook].read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "equality" in cell["metadata"].get("tags", [])]
    return [(cell["id"], "".join(cell["source"])) for cell in tagged]


def import_all():
    """Import the whole library: a break must be seen by every module that uses what is broken."""
    os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", MPLBACKEND="Agg")
    package = importlib.import_module("dino_lib")
    for module in pkgutil.walk_packages(package.__path__, "dino_lib."):
        if not module.name.endswith(("__main__", ".make", ".ship")):
            importlib.import_module(module.name)
    importlib.import_module("torch._dynamo")  # AdamW takes it


def run_in_fork(cells, wrong, folder):
    """What `run_cells` returns in a process of its own; TimeoutError if it does not end."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(run_cells(cells, wrong, folder)))
    child.start()
    sender.close()
    try:
        if not receiver.poll(120):
            raise TimeoutError("the cells did not end within 120 seconds")
        return receiver.recv()
    finally:
        child.kill()
        child.join()


def run_cells(cells, wrong, folder):
    """None if all cells pass, else (the cell's id, whether a comparison failed, the traceback)."""
    os.chdir(folder)
    tempfile.tempdir = str(folder)
    smaller()
    if wrong:
        wrong()
    namespace = {"__name__": "__main__"}
    for cell, source in cells:
        file = f"<cell {cell}>"
        linecache.cache[file] = (len(source), None, source.splitlines(True), file)
        try:
            with contextlib.redirect_stdout(io.StringIO()) as said:
                exec(compile(source, file, "exec"), namespace)
            if any(line.startswith("wrong:") for line in said.getvalue().splitlines()):
                return cell, True, said.getvalue()
        except BaseException as error:  # notebook 05 also raises KeyboardInterrupt
            raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
            compared = raised_in == file or "testing" in Path(raised_in).parts  # torch's, NumPy's
            failed = isinstance(error, AssertionError) and compared
            return cell, failed, traceback.format_exc()
    return None


@pytest.fixture(scope="module", autouse=True)
def loaded():
    import_all()


def test_every_notebook_has_breaks():
    assert BREAKS.keys() == {name for name, breaks in BREAKS.items() if breaks}


@pytest.mark.parametrize("notebook", BREAKS)
def test_tagged_cells_compare(notebook):
    nodes = [
        node
        for _, source in equality_cells(notebook)
        for statement in ast.parse(source).body
        if not isinstance(statement, ast.FunctionDef | ast.ClassDef)
        for node in ast.walk(statement)
    ]
    assert any(
        isinstance(node, ast.Assert) or getattr(node, "attr", "").startswith("assert_")
        for node in nodes
    )


@pytest.mark.parametrize("notebook", BREAKS)
def test_tagged_cells_pass_by_themselves(notebook, tmp_path):
    result = run_in_fork(equality_cells(notebook), None, tmp_path)
    assert result is None, f"cell {result[0]}:\n{result[2]}"


@pytest.mark.parametrize(
    ("notebook", "what"), [(n, what) for n, found in BREAKS.items() for what in found]
)
def test_break_is_caught(notebook, what, tmp_path):
    result = run_in_fork(equality_cells(notebook), BREAKS[notebook][what], tmp_path)
    assert result is not None, f"dino_lib is broken ({what}), and no tagged cell noticed"
    cell, compared, error = result
    print(f"caught by {notebook} {cell}")
    assert compared, f"dino_lib is broken ({what}); cell {cell} failed otherwise:\n{error}"
