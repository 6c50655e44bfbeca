"""Walk the half day as a student: `python workshop/walk.py` says where one waits, and how long.

Runs the student's copies up to the last section that students run themselves, in a folder of its
own. The pieces on the board of half_day.md get their solutions; all others stay stubs. It prints
what each check says, every cell that takes longer than five seconds, and for each notebook the
seconds of the clock and of the CPU. Run it on the slowest laptop of the room.
"""

import re
import tempfile
import time
from pathlib import Path

import nbformat
from minutes import NAME, masters, plain
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
PLAN = Path(__file__).with_name("half_day.md").read_text(encoding="utf-8")
PIECES = re.findall(r"\*Your turn \d+\*, `(\w+)`", PLAN)
LAST = {"01": "No colour changes: a shortcut", "03": "Three ways to learn nothing",
        "04": "The whole step, from an empty cell", "05": "The run"}  # a notebook's last section


def up_to(cells: list, heading: str) -> list:
    """The cells up to the end of a section; ValueError if there is none of this name."""
    inside = False
    for number, cell in enumerate(cells):
        titles = re.findall(r"^##+ .+$", cell.source, re.M) if cell.cell_type == "markdown" else []
        if inside and titles:
            return cells[:number]
        inside = inside or heading in map(plain, titles)
    if not inside:
        raise ValueError(f"there is no section {heading!r}: set LAST to a heading of the master")
    return cells


def as_student(name: str, heading: str) -> nbformat.NotebookNode:
    """A student's copy with the pieces of the plan filled in, cut off after a section."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4)
    solved = nbformat.read(NOTEBOOKS / "solutions" / f"{name}.ipynb", 4)
    solutions = {cell.id: cell.source for cell in solved.cells}
    notebook.cells = up_to(notebook.cells, heading)
    for cell in notebook.cells:
        piece = NAME.search(cell.source)
        if "stub" in cell.metadata.get("tags", []) and piece and piece[1] in PIECES:
            cell.source = solutions[cell.id]
    clock = "import time\nprint(time.process_time())"
    notebook.cells.append(nbformat.v4.new_code_cell(clock))
    return notebook


def walk(name: str, heading: str, folder: str) -> None:
    """Run one notebook to the end of a section and print where one waits."""
    notebook = as_student(name, heading)
    client = NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": folder}})
    waited, printed = 0.0, ""
    with client.setup_kernel():
        for number, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            start = time.perf_counter()
            client.execute_cell(cell, number)
            seconds = time.perf_counter() - start
            waited += seconds
            printed = "".join(o.text for o in cell.outputs if o.output_type == "stream")
            if "stub" in cell.metadata.get("tags", []) and not printed.startswith("not done"):
                print(f"  {printed.strip()}")
            elif seconds > 5:
                print(f"  {seconds:4.0f} s: {cell.source.splitlines()[0][:70]}")
    of_cpu = float(printed)
    print(f"{name} to {heading!r}: {waited:.0f} s, {of_cpu:.0f} of one CPU core", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for number, heading in LAST.items():
            walk(masters()[number].stem, heading, folder)
