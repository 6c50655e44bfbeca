"""Write the repository's address into every notebook: `python notebooks/stamp.py`.

To be run after a fork, or for a new notebook. The address stands in pyproject.toml alone, as
`Repository` of [project.urls]. From there it goes into the set-up cell and into the badge line of
the first cell, where there is one. Running it again changes nothing.
"""

import re
import sys
import tomllib
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parent.parent
COLAB = "https://colab.research.google.com"


def repository(pyproject=ROOT / "pyproject.toml"):
    """The address in pyproject.toml; ValueError if there is none or it is not one of GitHub's."""
    project = tomllib.loads(pyproject.read_text())["project"]
    address = project.get("urls", {}).get("Repository", "").rstrip("/")
    if not re.fullmatch(r"https://github\.com/[\w.-]+/[\w.-]+", address):
        raise ValueError(
            f"{pyproject.name}: [project.urls] Repository = {address!r} must be an "
            "address like https://github.com/OWNER/NAME"
        )
    return address


def stamp(notebook, address, path):
    """Set the address in one notebook, in place; `path` is its place in the repository."""
    slug = address.removeprefix("https://github.com/")
    picture = f"![Open in Colab]({COLAB}/assets/colab-badge.svg)"
    badge = f"<!-- badge --> [{picture}]({COLAB}/github/{slug}/blob/main/{path})"
    line = f'REPOSITORY = "{address}"'
    first, setup = notebook.cells[:2]
    first.source = re.sub(r"(?m)^<!-- badge -->.*$", lambda _: badge, first.source)
    setup.source, found = re.subn(r'(?m)^REPOSITORY = "[^"]*"', lambda _: line, setup.source)
    if not found:
        raise ValueError(
            f'{path}: the second cell is not the set-up cell, for it has no line REPOSITORY = "..."'
        )


def main():
    """Stamp every notebook; says which were changed."""
    address = repository()
    for path in sorted(ROOT.glob("notebooks/**/*.ipynb")):
        if ".ipynb_checkpoints" in path.parts:
            continue
        before = path.read_text()
        notebook = nbformat.reads(before, as_version=4)
        stamp(notebook, address, path.relative_to(ROOT).as_posix())
        after = nbformat.writes(notebook) + "\n"
        if after.rstrip() != before.rstrip():
            path.write_text(after)
            print(f"stamped {path.relative_to(ROOT)}")


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
