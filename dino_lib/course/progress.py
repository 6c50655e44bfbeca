"""What readers have done: `dino progress notebooks/`, and of a class, `dino progress class/*/`.

A piece is done once its check has said "right". Two places tell: the output under the piece in the
saved notebook, and `my_pieces/done.txt` beside it, which `pieces.note_done` writes and which
outlives a notebook whose outputs are cleared.
"""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dino_lib.course.pieces import DONE, FOLDER

CHECKS = re.compile(r"^from dino_lib\.course import .*?\b(\w+) as checks\b", re.M)
CHECK = re.compile(r"^(\w+) = checks\.\1\(\1\)", re.M)
LABEL = re.compile(r"\*\*(Your turn|Exercise) \d+")
STATES = ("right", "wrong", "not done yet")


@dataclass(frozen=True)
class Piece:
    """One thing to write. `kind`: "piece" or "exercise". `state`: one of STATES."""

    name: str
    kind: str
    state: str


@dataclass(frozen=True)
class Copy:
    """A reader's folder: the pieces of each notebook in it, and files that could not be read."""

    reader: str
    notebooks: dict[str, list[Piece]]
    unread: tuple[str, ...] = ()

    def done(self, notebook: str, kind: str | None = None) -> tuple[int, int]:
        """How many pieces of a notebook are right, and of how many; (0, 0) where it is missing."""
        pieces = [p for p in self.notebooks.get(notebook, []) if kind in (None, p.kind)]
        return sum(p.state == "right" for p in pieces), len(pieces)

    def wrong(self) -> list[str]:
        """The pieces whose check says so now."""
        return [p.name for pieces in self.notebooks.values() for p in pieces if p.state == "wrong"]


def read_copy(folder: str | os.PathLike) -> Copy:
    """What a reader has done in a folder, or in the folder `notebooks` in it.

    ValueError where no notebook of the course is there. A file that is no notebook is left out and
    stands in `unread`.
    """
    given = Path(folder)
    if not given.is_dir():
        raise ValueError(f"{given} is no folder: give one that holds a reader's notebooks")
    inside = given / "notebooks"
    place = inside if inside.is_dir() else given
    by_checks: dict[str, tuple[str, list[Piece]]] = {}
    unread = []
    for path in sorted(place.glob("*.ipynb")):
        try:
            module, pieces = read_notebook(path)
        except ValueError as error:
            unread.append(str(error))
            continue
        name, before = by_checks.get(module, (path.stem, []))
        by_checks[module] = min(name, path.stem, key=len), _best(before, pieces)
    by_checks.pop("", None)
    if not by_checks:
        why = f" ({'; '.join(unread)})" if unread else ""
        raise ValueError(f"{place} holds no notebook of the course with pieces to write{why}")
    try:
        done = _read_done(place / FOLDER / DONE)
    except (OSError, ValueError) as error:  # the notebooks tell most of it
        unread.append(f"{FOLDER}/{DONE} can't be read: {error}")
        done = set()
    notebooks = {
        name: [replace(p, state="right") if f"{module}.{p.name}" in done else p for p in pieces]
        for module, (name, pieces) in by_checks.items()
    }
    return Copy(str(given), dict(sorted(notebooks.items())), tuple(unread))


def read_class(folders: Sequence[str | os.PathLike]) -> list[Copy]:
    """The copies of several readers, named by what tells their folders apart.

    A folder without notebooks of the course stays as a row without any; ValueError if all are such.
    """
    copies = []
    for folder in folders:
        try:
            copies.append(read_copy(folder))
        except ValueError as error:
            copies.append(Copy(str(folder), {}, (str(error),)))
    if not any(copy.notebooks for copy in copies):
        raise ValueError(copies[0].unread[0])
    places = [Path(folder).resolve() for folder in folders]
    places = [place.parent if place.name == "notebooks" else place for place in places]
    above = Path(os.path.commonpath([place.parent for place in places]))
    return [replace(copy, reader=place.relative_to(above).as_posix())
            for copy, place in zip(copies, places, strict=True)]


def read_notebook(path: Path) -> tuple[str, list[Piece]]:
    """The module of a notebook's checks ("" where it has none), and the pieces to write in it.

    ValueError where the file is no notebook.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells]
        outputs = [_printed(cell) for cell in cells]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path.name} is no notebook: {type(error).__name__}: {error}") from error
    module = CHECKS.search("\n".join(sources))
    pieces, kind = [], "piece"
    for source, printed in zip(sources, outputs, strict=True):
        label, check = LABEL.search(source), CHECK.search(source)
        if label:
            kind = "exercise" if label[1] == "Exercise" else "piece"
        if check:
            said = next((s for s in STATES if re.search(rf"^{s}\b", printed, re.M)), STATES[-1])
            pieces.append(Piece(check[1], kind, said))
    return module[1] if module and pieces else "", pieces


def _printed(cell: dict) -> str:
    """What a cell has printed; a cell that ended in an error, of syntax say, says "wrong"."""
    return "".join(
        "\nwrong: an error" if output.get("output_type") == "error"
        else "".join(output.get("text", "")) for output in cell.get("outputs", [])
    )


def _best(one: list[Piece], other: list[Piece]) -> list[Piece]:
    """Of two copies of a notebook, what is done in either."""
    right = {p.name for p in one if p.state == "right"}
    return [replace(p, state="right") if p.name in right else p for p in other]


def _read_done(path: Path) -> set[str]:
    return set(path.read_text(encoding="utf-8").split()) if path.exists() else set()


def table_of_one(copy: Copy) -> str:
    """A line a notebook: how much is done, and the names of what is missing."""
    rows = [("notebook", "pieces", "exercises", "missing")]
    for notebook, pieces in copy.notebooks.items():
        counts = [copy.done(notebook, kind) for kind in ("piece", "exercise")]
        missing = ", ".join(_missing(p) for p in pieces if p.state != "right")
        rows.append((notebook, *(f"{n} of {of}" for n, of in counts), missing or "-"))
    totals = [copy.done(name) for name in copy.notebooks]
    total = f"{sum(n for n, _ in totals)} of {sum(of for _, of in totals)} are done."
    return "\n".join([_aligned(rows), total, *(f"left out: {u}" for u in copy.unread)])


def _missing(piece: Piece) -> str:
    return f"{piece.name} (wrong)" if piece.state == "wrong" else piece.name


def _of_class(copies: Sequence[Copy]) -> tuple[list[str], dict[str, int]]:
    """The notebooks of a class, and how many pieces each has."""
    names = sorted({name for copy in copies for name in copy.notebooks})
    return names, {name: max(copy.done(name)[1] for copy in copies) for name in names}


def table_of_class(copies: Sequence[Copy]) -> str:
    """A line a reader: how much of each notebook is done; and what the class has wrong now."""
    names, of = _of_class(copies)
    rows = [("reader", *(name.split("_")[0] for name in names), "done", "wrong now")]
    wrong: dict[str, int] = {}
    for copy in copies:
        cells = [f"{copy.done(n)[0]}/{of[n]}" if n in copy.notebooks else "-" for n in names]
        done = sum(copy.done(name)[0] for name in names)
        mistaken = copy.wrong()
        for name in mistaken:
            wrong[name] = wrong.get(name, 0) + 1
        total = f"{done}/{sum(of.values())}"
        rows.append((copy.reader, *cells, total, ", ".join(mistaken) or "-"))
    lines = [_aligned(rows)]
    several = sorted((name for name in wrong if wrong[name] > 1), key=lambda name: -wrong[name])
    if several:
        counts = ", ".join(f"{name} ({wrong[name]})" for name in several)
        lines.append(f"wrong with more than one reader: {counts}")
    lines += [f"left out: {copy.reader}: {u}" for copy in copies for u in copy.unread]
    return "\n".join(lines)


def csv_of_class(copies: Sequence[Copy]) -> str:
    """A row a reader: the number done in each notebook (empty where it is missing), done, of, the
    pieces that are wrong now, and files that could not be read.
    """
    names, of = _of_class(copies)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["reader", *names, "done", "of", "wrong", "unread"])
    for copy in copies:
        counts = [copy.done(name)[0] if name in copy.notebooks else "" for name in names]
        done = sum(copy.done(name)[0] for name in names)
        row = [copy.reader, *counts, done, sum(of.values()), " ".join(copy.wrong())]
        writer.writerow([*row, "; ".join(copy.unread)])
    return text.getvalue()


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
