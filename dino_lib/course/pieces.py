"""The pieces of DINO that a reader has written and a check has found right, kept as files.

A notebook keeps them beside itself, in `my_pieces/NAME.py`; notebook 05 trains with them.
"""

import ast
import contextlib
import importlib
import inspect
import io
import linecache
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dino_lib

FOLDER = Path("my_pieces")
DONE = "done.txt"  # in FOLDER: a line for each piece and exercise that was right once
HEADER = """import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

"""

# the pieces that a run is made of -> the module with their check, in the order of the course
PIECES = {
    "crop": "multicrop",
    "saturation": "multicrop",
    "views": "multicrop",
    "cosine_logits": "head",
    "Head": "head",
    "group_views": "head",
    "forward_views": "head",
    "cross_entropy": "loss",
    "update_center": "loss",
    "view_pairs": "loss",
    "dino_loss": "loss",
    "make_teacher": "teacher",
    "ema_update": "teacher",
    "cosine_schedule": "teacher",
    "train_step": "teacher",
    "attention_row": "attention",
    "mass_mask": "attention",
    "knn": "attention",
}


def keep(name: str, piece: Any) -> None:
    """Write the source of a piece to `my_pieces`, in a notebook; elsewhere nothing happens."""
    if name not in PIECES or not hasattr(sys.modules["__main__"], "get_ipython"):
        return
    try:
        source = _source(piece)
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / f"{name}.py").write_text(HEADER + source, encoding="utf-8")
    except (OSError, TypeError, SyntaxError, StopIteration) as error:
        print(f"{name} could not be kept for notebook 05: {error}")


def note_done(name: str) -> None:
    """Note in `my_pieces/done.txt` that a check has said "right", in a notebook of the course;
    elsewhere nothing happens.

    Two notebooks have a piece of the same name: the module with the check tells them apart.
    """
    main = sys.modules["__main__"]
    if not (hasattr(main, "get_ipython") and hasattr(main, "checks")):
        return
    line = f"{main.checks.__name__.rpartition('.')[2]}.{name}"
    path = FOLDER / DONE
    try:
        FOLDER.mkdir(exist_ok=True)
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        if line not in before.split():
            path.write_text(f"{before}{line}\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        print(f"{path} could not be written: {error}")


def _source(piece: Any) -> str:
    """The source of a function or class; `inspect` finds no class that a cell defines."""
    if not isinstance(piece, type):
        return inspect.getsource(piece)
    method = next(m for m in vars(piece).values() if inspect.isfunction(m))
    lines = linecache.getlines(method.__code__.co_filename)
    for node in ast.parse("".join(lines)).body:
        if isinstance(node, ast.ClassDef) and node.name == piece.__name__:
            return "".join(lines[node.lineno - 1:node.end_lineno])
    raise OSError(f"no class {piece.__name__} is found in its cell")


def load(name: str, finished: Callable) -> Callable:
    """The reader's piece, if `my_pieces` has it and its check still finds it right; else the
    finished one. A line says which.
    """
    if not (FOLDER / f"{name}.py").exists():
        print(f"{name}: not written yet (the finished one is used)")
        return finished
    # one piece may call another, which is the library's where it is not written
    namespace = {key: getattr(dino_lib, key) for key in PIECES if key in dino_lib.__all__}
    namespace["__name__"] = "my_pieces"
    for path in sorted(FOLDER.glob("*.py")):
        try:
            exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), namespace)
        except Exception as error:
            print(f"{path} is left out: {type(error).__name__}: {error}")
    print(f"{name}: ", end="")
    module = importlib.import_module(f"dino_lib.course.{PIECES[name]}")
    return getattr(module, name)(namespace.get(name))


def collect(**finished: Any) -> SimpleNamespace:
    """Of each name the reader's piece, where `my_pieces` has a right one, else the finished one
    that is given here. A table says whose each is.
    """
    found = {}
    for name, piece in finished.items():
        with contextlib.redirect_stdout(io.StringIO()) as said:
            found[name] = load(name, piece) if name in PIECES else piece
        said = said.getvalue().strip().removeprefix(f"{name}: ")
        yours = said.startswith("right")
        print(f"{name:16} {'yours' if yours else 'finished'}"
              + (f" ({said})" if said.startswith("wrong") else ""))
    return SimpleNamespace(**found)
