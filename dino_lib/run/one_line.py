"""What pydantic finds wrong with settings, in one line that names each with its value."""

import dataclasses
import difflib
import functools
import re
from typing import Any

from pydantic import ValidationError


def in_one_line(cls: type) -> type:
    """Make a pydantic class raise its errors as a ValueError of one line, all of them at once."""
    init = cls.__init__

    @functools.wraps(init)
    def one_line_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_in_words(cls, error, kwargs)) from None

    cls.__init__ = one_line_init
    return cls


def _in_words(cls: type, error: ValidationError, given: dict[str, Any]) -> str:
    """`lr=-1 must be greater than 0; blur_p=(1.0, 2.0, 0.5): 2.0 must be less than ...`"""
    found: dict[str, list[str]] = {}
    for one in error.errors():
        name, *inside = one["loc"] or [""]
        words = re.sub(r"^Value error, ", "", one["msg"])
        words = re.sub(r"^\w+ should ", "must ", words)
        subject = f"{name}={given.get(name)!r}"
        if not name:  # several settings together: the message names them
            subject = ""
        elif one["type"] == "unexpected_keyword_argument":
            subject = f"no setting is called {name!r}"
            words = _close_names(cls, name)
        elif one["type"] in ("missing", "too_long"):
            n = len(cls.__pydantic_fields__[name].default)
            words = f"must have {n} values"
        elif inside:
            subject += f": {one['input']!r}"
        words_so_far = found.setdefault(subject, [])
        if words not in words_so_far:  # a union gives one error for each of its types
            words_so_far.append(words)
    parts = [f"{subject} {' or '.join(words)}" for subject, words in found.items()]
    return "; ".join(part.strip() for part in parts)


def _close_names(cls: type, name: str) -> str:
    names = [field.name for field in dataclasses.fields(cls)]
    close = difflib.get_close_matches(name, names)
    there = f"there is {', '.join(close)}" if close else "`dino train --help` lists them all"
    return f"(of a newer version?): {there}"
