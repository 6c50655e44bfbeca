"""Whether this machine is ready for the course, and how long each notebook takes on it: `dino
doctor`, without a run.

`measured/notebooks.json`, made by `benchmarks/notebooks.py`, has the CPU seconds and the memory of
each notebook on one core of a reference machine, and the seconds that the same core took for `work`
there. The seconds of `work` here over those there are the factor between the machines. CPU seconds,
since another program takes from the wall clock alone; on an idle core both are the same.
"""

import importlib.metadata
import importlib.util
import io
import json
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.shapes import Shapes
from dino_lib.loss import DINOLoss
from dino_lib.run.build import build_student
from dino_lib.run.config import multicrop_settings
from dino_lib.run.presets import PRESETS
from dino_lib.teacher import ema_update, make_teacher

MEASURED = Path(__file__).parent / "measured" / "notebooks.json"
NEEDED = {  # what the notebooks import beside the library's own requirements
    "jupyterlab": "JupyterLab",
    "ipykernel": "the kernel that runs a notebook",
    "ipywidgets": "progress bars",
}
SPARE_DISK = 1e9  # bytes: runs, videos, and what Jupyter saves


@dataclass(frozen=True)
class Finding:
    """One line of the check. `change`: what to do about it; "" where all is well."""

    what: str
    change: str = ""


def work() -> tuple[float, float]:
    """Do about what notebooks do, on one thread: draw creatures, make views, train, plot.

    Gives the CPU seconds of this process, and how many times as long the wall clock took. The best
    of three: what else runs costs some CPU time too, for it takes the caches.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    best, waited = math.inf, math.inf
    try:
        for warm in (False, True, True, True):  # torch and matplotlib set up things the first time
            clock, wall = time.process_time(), time.perf_counter()
            _train(2)
            _plot(2)
            seconds = time.process_time() - clock
            if warm:
                best = min(best, seconds)
                waited = min(waited, (time.perf_counter() - wall) / seconds)
    finally:
        torch.set_num_threads(threads)
    return best, waited


def _train(updates: int) -> None:
    """A few updates of the preset `demo`, 32 images each."""
    config = PRESETS["demo"]
    creatures = Shapes(32, size=48)
    images = torch.stack([torch.as_tensor(creatures.images[i]) for i in range(32)])
    views_of = BatchMultiCrop(**multicrop_settings(config))
    with torch.random.fork_rng(devices=[]):
        student = build_student(config)
        teacher, loss_of = make_teacher(student), DINOLoss(config.out_dim)
        optimizer = torch.optim.AdamW(student.parameters())
        for _ in range(updates):
            views = views_of(images)
            with torch.no_grad():
                targets = teacher(views[:2])
            loss = loss_of(student(views), targets, 0.04)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ema_update(teacher, student, 0.99)


def _plot(figures: int) -> None:
    """Figures of ten small pictures, as files in memory; no window is opened."""
    from matplotlib.figure import Figure

    for _ in range(figures):
        figure = Figure(figsize=(8, 3), layout="constrained")
        for i, axis in enumerate(figure.subplots(2, 5).flat):
            axis.imshow([[i, 1], [2, 3]])
            axis.set_title(f"picture {i}")
        figure.savefig(io.BytesIO(), dpi=100)


def read_reference() -> dict[str, Any]:
    """The measured reference: its machine, the seconds of `work`, and each notebook's row."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def estimate(reference: dict[str, Any], work_seconds: float) -> dict[str, float]:
    """Notebook -> the seconds of one core that it takes where `work` takes `work_seconds`."""
    factor = work_seconds / reference["work_seconds"]
    return {name: row["seconds"] * factor for name, row in reference["notebooks"].items()}


def check_machine(reference: dict[str, Any], folder: Path) -> Iterator[Finding]:
    """What the course needs of a machine, a line each; `folder`: where its notebooks should be."""
    python = platform.python_version()
    yield Finding(
        f"Python {python}",
        "" if sys.version_info >= (3, 11) else "install Python 3.11 or newer",
    )
    yield from _packages()
    memory = psutil.virtual_memory()
    need = max(row["memory"] for row in reference["notebooks"].values())
    yield Finding(
        f"memory: {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB are free; the "
        f"largest notebook takes {need / 1e9:.1f} GB",
        "" if memory.available > 1.2 * need else "close other programs, browsers first",
    )
    free = shutil.disk_usage(folder).free
    yield Finding(
        f"disk: {free / 1e9:.1f} GB are free in {folder.resolve()}",
        "" if free > SPARE_DISK else f"make room for {SPARE_DISK / 1e9:.0f} GB",
    )
    yield _notebooks(reference, folder)
    device = "a GPU is there" if torch.cuda.is_available() else "no GPU is there"
    yield Finding(f"{device}, and none is needed; nor is the internet")


def _packages() -> Iterator[Finding]:
    """The packages that are installed too old, or not at all."""
    from packaging.requirements import Requirement  # it comes with matplotlib

    wrong = []
    for word in importlib.metadata.requires("dino-lib") or []:
        needed = Requirement(word)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not needed.specifier.contains(version, prereleases=True):
            wrong.append(f"{needed.name} {version or 'is missing'} (needed: {needed})")
    yield Finding(
        f"packages: {'; '.join(wrong) or f'all there, torch {torch.__version__}'}",
        "pip install -r requirements.txt" if wrong else "",
    )
    for name, what in NEEDED.items():
        if importlib.util.find_spec(name) is None:
            yield Finding(f"{name} is missing: {what}", f"pip install {name}")


def _notebooks(reference: dict[str, Any], folder: Path) -> Finding:
    missing = [n for n in reference["notebooks"] if not (folder / f"{n}.ipynb").exists()]
    if missing:
        which = "no notebook is" if len(missing) == len(reference["notebooks"]) else (
            f"{', '.join(missing)} not")
        return Finding(f"{which} in {folder.resolve()}", "run this in the course's folder")
    if not os.access(folder, os.W_OK):
        return Finding(f"{folder.resolve()} cannot be written to", "copy the course to your home")
    return Finding(f"{len(reference['notebooks'])} notebooks in {folder.resolve()}")


def examine_machine(folder: Path | None = None) -> tuple[str, bool]:
    """The whole check in words, and whether the machine is ready. Takes some seconds."""
    inside = Path("notebooks")
    folder = folder or (inside if inside.is_dir() else Path("."))
    reference = read_reference()
    findings = list(check_machine(reference, folder))
    todo = [f for f in findings if f.change]
    cpu, waited = work()
    if waited > 1.3:  # no reason to call the machine unfit
        findings.append(Finding(
            f"other programs take the processor: all takes {waited:.1f} times as long as it would",
            "close them; else all takes longer than the table says",
        ))
    lines = [f"LOOK  {f.what}\n      -> {f.change}" if f.change else f"ok    {f.what}"
             for f in findings]
    ready = "This machine is ready" + (", but busy." if waited > 1.3 else ".")
    lines += ["", _table(reference, cpu, folder), "", ready]
    if todo:
        lines[-1] = f"This machine is not ready yet: {len(todo)} of the lines above say LOOK."
    return "\n".join(lines), not todo


def _table(reference: dict[str, Any], work_seconds: float, folder: Path) -> str:
    """A line a notebook: the time it takes here, and its memory; those never measured say so."""
    there = reference["work_seconds"]
    seconds = estimate(reference, work_seconds)
    unknown = sorted({path.stem for path in folder.glob("*.ipynb")} - seconds.keys())
    width = max(map(len, [*seconds, *unknown]))
    lines = [
        f"One core here takes {work_seconds / there:.2f} times as long as one of "
        f"{reference['machine']} ({work_seconds:.1f} s for work that took {there:.1f} s).",
        "Running all cells of a notebook once, on one core:",
    ]
    for name, row in reference["notebooks"].items():
        memory = f"{row['memory'] / 1e9:6.1f} GB"
        lines.append(f"  {name:{width}} {_duration(seconds[name]):>9} {memory}")
    lines.append(f"  {'together':{width}} {_duration(sum(seconds.values())):>9}")
    lines += [f"  {name:{width}}  never measured" for name in unknown]
    return "\n".join([*lines, _quality(reference["checked"])])


def _quality(checked: dict[str, float]) -> str:
    """How good the table is: measured over said, where the doctor was checked."""
    if not checked:
        return "How good this table is has not been measured."
    return (f"How good this table is: on the reference machine, slowed down by forbidding it newer "
            f"instructions, {', '.join(sorted(checked))} took {min(checked.values()):.2f} to "
            f"{max(checked.values()):.2f} times what it said.")


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.1f} min"
