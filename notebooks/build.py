"""One master, three notebooks: `python notebooks/build.py [NAME ...]`, then notebooks/execute.py.

A master is `masters/NAME.py` in jupytext's percent format. It becomes

- `NAME.ipynb`, the student's copy: of each cell with the tag `stub`, what stands between
  `### BEGIN SOLUTION` and `### END SOLUTION` is left out, and what a run says is folded from a
  guess on to the cell that settles it, until the reader runs it;
- `solutions/NAME.ipynb`, the solved copy: the solutions stand in cells that JupyterLab and Colab
  fold;
- `teaching/NAME.ipynb`, the teacher's copy: solved, with the cells that have the tag `note`, and
  with the outputs of the solved copy.

A cell with the tag `setup` is written here, and so is the address of the repository. A picture that
a text shows, `![...](../figures/NAME.png)`, goes into the notebook. Outputs stay as far as no code
before them has changed; what is printed needs to be executed again.
"""

import base64
import re
import sys
from pathlib import Path

import jupytext
import nbformat
from stamp import repository, stamp

NOTEBOOKS = Path(__file__).resolve().parent
MASTERS = NOTEBOOKS / "masters"
COPIES = {"student": "", "solved": "solutions", "teaching": "teaching"}
SOLUTION = re.compile(r"^([ \t]*)### BEGIN SOLUTION\n(.*?)^[ \t]*### END SOLUTION\n?", re.M | re.S)
PICTURE = re.compile(r"(!\[[^\]]*\])\((\.\./figures/[\w.]+)\)")
FOLDED = {"jupyter": {"source_hidden": True}, "cellView": "form"}  # JupyterLab's word, and Colab's
SETUP = """\
# @title Set-up
# Where the course's package is missing, Colab and Kaggle install it, and of what it needs only what
# is missing or too old: their torch stays. Elsewhere a line says what to do.
import importlib, importlib.util, os, subprocess, sys
REPOSITORY = "https://github.com/OWNER/dino-course"
if not importlib.util.find_spec("dino_lib"):
    if not (os.environ.get("COLAB_RELEASE_TAG") or os.environ.get("KAGGLE_KERNEL_RUN_TYPE")):
        sys.exit("The course's package is missing here. Run `pip install -e .` with this kernel's "
                 "Python in the course's folder, or `make lab`; then restart the kernel.")
    if "/OWNER/" in REPOSITORY:
        sys.exit("Write the address of your copy of the course, a public repository of GitHub's, "
                 "into the line REPOSITORY of this cell, and run it again.")
    pip = [sys.executable, "-m", "pip", "install", "-q", f"{REPOSITORY}/archive/HEAD.zip"]
    if subprocess.run(pip).returncode:
        sys.exit(f"pip can't install {REPOSITORY}: is it public, and is the Internet on? "
                 "(On Kaggle it has a switch in the settings.)")
    importlib.invalidate_caches()
%matplotlib inline
import timm, torch
print(f"torch {torch.__version__}, timm {timm.__version__}, "
      f"{'a GPU' if torch.cuda.is_available() else 'no GPU'}")"""


def read_master(path):
    """The notebook of a master, with ids that stay, and the set-up cell written out."""
    notebook = jupytext.read(path, fmt="py:percent")
    notebook.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem[:2]}-{number:03d}"
        cell.metadata.pop("lines_to_next_cell", None)
        if "setup" in cell.metadata.get("tags", []):
            cell.source = SETUP
            cell.metadata.tags = ["nbval-ignore-output"]
            cell.metadata.update(FOLDED)
        if cell.cell_type == "markdown":
            embed(cell)
    return notebook


def embed(cell):
    """Put the pictures of a text into the cell: Colab has no folder `figures`."""
    for _, link in PICTURE.findall(cell.source):
        picture = NOTEBOOKS / link
        data = base64.b64encode(picture.read_bytes()).decode()
        cell.setdefault("attachments", {})[picture.name] = {"image/png": data}
    cell.source = PICTURE.sub(lambda m: f"{m[1]}(attachment:{Path(m[2]).name})", cell.source)


def make_copy(master, kind):
    """The student's, the solved or the teaching copy of a master, without outputs."""
    copy = nbformat.from_dict(master)  # a deep copy
    copy.cells = [
        cell
        for cell in copy.cells
        if kind == "teaching" or "note" not in cell.metadata.get("tags", [])
    ]
    if kind == "student":
        fold_answers(copy)
    for cell in copy.cells:
        if "stub" not in cell.metadata.get("tags", []):
            continue
        if kind == "student":
            cell.source = SOLUTION.sub(r"\1...\n", cell.source).rstrip()
        else:
            cell.source = SOLUTION.sub(r"\2", cell.source).rstrip()
        if kind == "solved":
            name = re.search(r"^(?:def|class) (\w+)", cell.source, re.M)
            cell.source = f"# @title Solution: {name[1] if name else ''}\n{cell.source}"
            cell.metadata.update(FOLDED)
    return copy


def fold_answers(notebook):
    """Fold the outputs from `guess = "?"` on to its `settle(...)`: a reader guesses first."""
    guessing = False
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        guessing = guessing or 'guess = "?"' in cell.source
        if guessing:
            cell.metadata.update({"collapsed": True, "jupyter": {"outputs_hidden": True}})
        if "settle(" in cell.source:
            guessing = False


def keep_outputs(notebook, old):
    """Take over the outputs of `old` up to the first code cell that differs.

    The set-up cell may differ: no other cell's output hangs on it.
    """
    before = [cell for cell in old.cells if cell.cell_type == "code"]
    now = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell, other in zip(now, before, strict=False):
        if cell.source != other.source and "REPOSITORY = " not in cell.source:
            break
        cell.outputs = other.outputs
        cell.execution_count = other.execution_count


def show_outputs(teaching, solved):
    """The teacher's copy shows what the solved one gave."""
    found = {cell.id: cell for cell in solved.cells}
    for cell in teaching.cells:
        if cell.cell_type == "code" and cell.id in found:
            cell.outputs = found[cell.id].outputs
            cell.execution_count = found[cell.id].execution_count


def build(path):
    """Write the three copies of a master; the outputs that are still right stay."""
    master, made = read_master(path), {}
    for kind, folder in COPIES.items():
        target = NOTEBOOKS / folder / f"{path.stem}.ipynb"
        made[kind] = make_copy(master, kind)
        stamp(made[kind], repository(), target.relative_to(NOTEBOOKS.parent).as_posix())
        if kind == "teaching":
            show_outputs(made[kind], made["solved"])
        elif target.exists():
            keep_outputs(made[kind], nbformat.read(target, 4))
        target.parent.mkdir(exist_ok=True)
        nbformat.write(made[kind], target)


if __name__ == "__main__":
    for name in sys.argv[1:] or sorted(path.stem for path in MASTERS.glob("*.py")):
        build(MASTERS / f"{Path(name).stem}.py")
