"""How long each notebook takes: `python benchmarks/notebooks.py [--out FILE] [NAME ...]`.

Executes the student's copies on one core and writes the CPU seconds and the largest memory of each
kernel. Before each notebook, and after the last, `laptop.work` is timed; the file has the median.
Without --out nothing is written; what `dino doctor` would have said stands beside what was
measured, which shows how good its estimate is on this machine. To see it on a slower processor,
forbid torch the new one's instructions:

ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \
    python benchmarks/notebooks.py 01_multicrop 02_head
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from dino_lib.course.laptop import MEASURED, estimate, read_reference

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
USED = """
import json, resource
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"seconds": sum(u.ru_utime + u.ru_stime for u in used),
                  "memory": 1024 * max(u.ru_maxrss for u in used)}))
"""
QUALITY = (
    "How good the table is: with older instructions forbidden to its processor, the reference "
    "machine took {least:.2f} to {most:.2f} times what the table said of it."
)


def measure(path):
    """{"seconds", "memory" in bytes} of a kernel that runs a notebook, in a folder of its own."""
    notebook = nbformat.read(path, 4)
    notebook.cells.append(nbformat.v4.new_code_cell(USED))
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "notebooks"
        place.mkdir()
        shutil.copytree(NOTEBOOKS.parent / "figures", Path(folder) / "figures")
        where = {"metadata": {"path": place}}
        NotebookClient(notebook, timeout=3600, startup_timeout=600, resources=where).execute()
    return json.loads(notebook.cells[-1].outputs[-1]["text"])


def work_seconds():
    """The CPU seconds of `laptop.work`, in a process of its own."""
    code = "from dino_lib.course.laptop import work; print(work()[0])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
    parser.add_argument("names", nargs="*", default=names)
    parser.add_argument("--out", type=Path, help=f"e.g. {MEASURED.name}")
    parser.add_argument("--machine", default="the machine at hand", help="its name in the file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    works, rows = [], {}
    for name in args.names:
        works.append(work_seconds())
        rows[name] = measure(NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {rows[name]['seconds']:.1f} CPU s, work {works[-1]:.2f} s", flush=True)
    works.append(work_seconds())
    found = {"machine": args.machine, "work_seconds": statistics.median(works), "works": works,
             "notebooks": rows}
    if MEASURED.exists():
        said = estimate(read_reference(), found["work_seconds"])
        for name, row in rows.items():
            print(f"{name}: the doctor says {said[name]:.0f} s, measured {row['seconds']:.0f} s, "
                  f"{row['seconds'] / said[name]:.2f} of it")
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
