"""Write the repository's address into pyproject.toml and every notebook.

    python notebooks/stamp.py https://github.com/YOU/NAME
    python notebooks/stamp.py

On GitHub the workflow `stamp` runs this after a push, so that a fork's badges open the fork.
Without an address it takes the one in pyproject.toml, `Repository` of [project.urls], for instance
for a new notebook. The address goes into the set-up cell and into the badge line of the first cell,
where there is one. Running it again changes nothing.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
PYPROJECT = ROOT / "pyproject.toml"
COLAB = "https://colab.research.google.com"


def checked(address, where):
    """The address without a slash at its end; ValueError if it is not one of GitHub's."""
    address = address.rstrip("/")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(f"{where} = {address!r} must be like https://github.com/OWNER/NAME")
    return address


def repository():
    """The address in pyproject.toml; ValueError if there is none or it is not one of GitHub's."""
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    where = f"{PYPROJECT.name}: [project.urls] Repository"
    return checked(project.get("urls", {}).get("Repository", ""), where)


def stamp(notebook, address, path):
    """Set the address in one notebook, in place; `path` is its place in the repository."""
    slug = address.removeprefix("https://github.com/")
    picture = f"![Open in Colab]({COLAB}/assets/colab-badge.svg)"
    badge = f"[{picture}]({COLAB}/github/{slug}/blob/main/{path}) <!-- badge -->"
    line = f'REPOSITORY = "{address}"'
    first, setup = notebook.cells[:2]
    # the comment stands last: behind one, Markdown takes the rest of a line for HTML
    first.source = re.sub(r"(?m)^.*<!-- badge -->$", lambda _: badge, first.source)
    setup.source, found = re.subn(r'(?m)^REPOSITORY = "[^"]*"', lambda _: line, setup.source)
    if not found:
        raise ValueError(
            f'{path}: the second cell is not the set-up cell, for it has no line REPOSITORY = "..."'
        )


def write(path, text):
    """Write the file where its text is another, with "\\n" on Windows too; says so."""
    if path.read_text(encoding="utf-8").rstrip() != text.rstrip():
        path.write_text(text, encoding="utf-8", newline="\n")
        print(f"stamped {path.relative_to(ROOT)}")


def main(address=None):
    """Stamp every notebook with the address, or with that of pyproject.toml; says what changed."""
    if address:
        line = f'Repository = "{checked(address, "the address")}"'
        text = PYPROJECT.read_text(encoding="utf-8")
        write(PYPROJECT, re.sub(r'(?m)^Repository = "[^"]*"', lambda _: line, text, count=1))
    address = repository()
    for path in sorted(ROOT.glob("notebooks/**/*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        notebook = nbformat.reads(path.read_text(encoding="utf-8"), as_version=4)
        stamp(notebook, address, path.relative_to(ROOT).as_posix())
        write(path, nbformat.writes(notebook) + "\n")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:2])
    except ValueError as error:
        sys.exit(f"error: {error}")
