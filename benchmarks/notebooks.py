"""How long each notebook takes: `python benchmarks/notebooks.py --machine "its name"`.

Executes the student's copies on one core, and keeps the CPU seconds and the largest memory of each
kernel in dino_lib/course/measured/notebooks.json, which `dino doctor` reads. Before each notebook,
and after the last, `laptop.work` is timed; its median is kept.

`--only NAME ...` measures these again and leaves the others; the seconds are scaled by `work` to
those of the machine in the file.

`--check NAME ...` compares instead: what the doctor says here of these notebooks, beside what they
take. The ratios go into the file too, and the doctor says them. To see it on a slower processor,
forbid torch the newer instructions:

ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 \\
    python benchmarks/notebooks.py --check 01_multicrop 02_head
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


def measure_all(names):
    """(each notebook's row, the seconds of `work` between them)."""
    works, rows = [], {}
    for name in names:
        works.append(work_seconds())
        rows[name] = measure(NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {rows[name]['seconds']:.1f} CPU s, work {works[-1]:.2f} s", flush=True)
    return rows, [*works, work_seconds()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="notebooks to measure again")
    parser.add_argument("--check", nargs="+", metavar="NAME", help="notebooks to compare")
    parser.add_argument("--machine", default="the reference machine", help="its name in the file")
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    names = args.check or args.only or sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))
    rows, works = measure_all(names)
    found = {"machine": args.machine, "work_seconds": statistics.median(works), "works": works,
             "notebooks": rows, "checked": {}}
    here = found["work_seconds"]
    if args.only or args.check:
        found = read_reference()
    if args.only:
        for name, row in rows.items():
            seconds = row["seconds"] * found["work_seconds"] / here
            found["notebooks"][name] = row | {"seconds": seconds}
            print(f"{name}: {seconds:.0f} s where `work` takes {found['work_seconds']:.2f} s")
    if args.check:
        said = estimate(found, here)
        for name, row in rows.items():
            found["checked"][name] = round(row["seconds"] / said[name], 2)
            print(f"{name}: the doctor says {said[name]:.0f} s, measured {row['seconds']:.0f} s; "
                  f"work {here:.2f} s")
    MEASURED.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
