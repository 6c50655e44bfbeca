"""Run the notebooks as Colab does: `make colab`, or `.venv-colab/bin/python tests/colab.py
[NOTEBOOK ...]`.

The environment has the versions of requirements-colab.txt and no dino_lib. Each notebook lies alone
in an empty folder, and its set-up cell installs the course from an archive of the working tree, in
place of GitHub's. It fails if a cell fails or writes to stderr, or if the set-up cell changed
anything in the environment but dino_lib. It needs the network: pip fetches setuptools to build the
archive.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
import zipfile
from importlib import metadata
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).resolve().parent.parent
PINS = ROOT / "requirements-colab.txt"
PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
SETUP_DONE = 1  # the set-up cell is the second cell


def installed():
    """name -> version of every package of the environment but dino_lib."""
    found = {
        re.sub(r"[-_.]+", "-", package.metadata["Name"]).lower(): package.version
        for package in metadata.distributions()
    }
    found.pop("dino-lib", None)
    return found


def differences(before, after):
    """Sentences on what one environment has and the other has not, or in another version."""
    return [
        f"{name} was {before.get(name, 'missing')} and is {after.get(name, 'missing')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def pins():
    """name -> version of requirements-colab.txt."""
    lines = re.findall(r"(?m)^([\w.-]+)==(\S+)", PINS.read_text(encoding="utf-8"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in lines}


def archive(path):
    """A zip of the working tree, laid out like GitHub's: one folder with everything in it."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    )
    path.parent.mkdir(parents=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name in sorted({*listed.stdout.decode().split("\0")} - {""}):
            if (ROOT / name).is_file():
                file.write(ROOT / name, f"dino-course-main/{name}")


def forget_the_course():
    """Uninstall dino_lib, where an earlier notebook has installed it."""
    quiet = ["--quiet"] * 3
    subprocess.run([*PIP, "uninstall", *quiet, "--yes", "dino-lib"], check=True)


def faults_of(notebook):
    """What cells wrote to stderr, as sentences."""
    return [
        f"cell {cell.id} wrote to stderr: {output.text.strip()}"
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream" and output.name == "stderr"
    ]


def cpu_seconds():
    """What the processes that this one has started, and that have ended, have used so far."""
    used = os.times()
    return used.children_user + used.children_system


def check(path, repository):
    """Run one notebook in a fresh environment; returns what is wrong, sentences. Prints a line."""
    forget_the_course()
    before, start, cpu, seconds = installed(), time.monotonic(), cpu_seconds(), []
    notebook = nbformat.read(path, 4)
    setup = notebook.cells[SETUP_DONE]
    setup.source = re.sub(r"(?m)^REPOSITORY = .*$", f'REPOSITORY = "{repository}"', setup.source)
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=1800,
            startup_timeout=600,
            resources={"metadata": {"path": folder}},
            on_cell_executed=lambda **_: seconds.append(time.monotonic() - start),
        )
        try:
            client.execute()
            faults = []
        except CellExecutionError as error:
            faults = [str(error)]
    faults += faults_of(notebook) + differences(before, installed())
    print(
        f"{path.name}: {len(seconds)} code cells, set up after {seconds[0]:.0f} s, "
        f"{(time.monotonic() - start) / 60:.1f} minutes ({(cpu_seconds() - cpu) / 60:.1f} of CPU), "
        f"{'FAILED' if faults else 'passed'}",
        flush=True,
    )
    return faults


def main():
    """The command: exits with 1 if a notebook has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="default: the students' copies")
    paths = parser.parse_args().notebooks or sorted((ROOT / "notebooks").glob("*.ipynb"))
    have = installed()
    here = {name: have[name] for name in pins() if name in have}
    if wrong := differences(pins(), here):
        sys.exit(f"error: not the environment of {PINS.name}: {'; '.join(wrong)}. Use `make colab`")
    os.environ.pop("PYTHONPATH", None)
    os.environ.update(
        COLAB_RELEASE_TAG="test",
        PIP_DISABLE_PIP_VERSION_CHECK="1",
        PYDEVD_DISABLE_FILE_VALIDATION="1",  # else the kernel's debugger warns at each start
    )
    start, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as folder:
        archive(Path(folder, "archive", "HEAD.zip"))
        for path in paths:
            faults = check(path, Path(folder).as_uri())
            failed += bool(faults)
            for fault in faults:
                print(f"  {fault}")
    forget_the_course()
    print(
        f"{len(paths) - failed} of {len(paths)} notebooks passed, "
        f"{(time.monotonic() - start) / 60:.1f} minutes"
    )
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
