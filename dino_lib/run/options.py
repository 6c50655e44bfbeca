"""Settings as options of a command line: each has its type, its help and its preset's value."""

import argparse
import ast
import dataclasses
from typing import Any, Literal, get_args, get_origin

from dino_lib.run.config import Config

FIELDS = Config.__pydantic_fields__  # by name: types and help


def add_settings(parser: argparse.ArgumentParser, preset: Config) -> None:
    """An option for every setting; its help shows the preset's value."""
    for name, field in FIELDS.items():
        value = getattr(preset, name)
        if isinstance(value, dict):
            value = [word for pair in value.items() for word in pair]
        if isinstance(value, list | tuple):
            value = " ".join(str(word) for word in value)
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs=_count(field.annotation),
            metavar=_metavar(field.annotation),
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {value})".replace("%", "%%"),
        )


def config_of(given: argparse.Namespace, preset: Config) -> Config:
    """The preset, with the settings that a command line gives; ValueError on wrong ones."""
    changes = {
        name: _read(words, FIELDS[name].annotation)
        for name, words in vars(given).items()
        if name in FIELDS
    }
    return dataclasses.replace(preset, **changes)


def _count(kind: Any) -> str | int | None:
    """How many words an option of this type takes, as argparse says it."""
    if get_origin(kind) is tuple:
        return "+" if get_args(kind)[-1] is ... else len(get_args(kind))
    return "*" if get_origin(kind) is dict else None


def _metavar(kind: Any) -> str:
    """What stands for an option's value in the help."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(get_args(kind)) + "}"
    if get_origin(kind) is dict:
        return "NAME VALUE"
    while get_args(kind):  # of a tuple or a union the first
        kind = get_args(kind)[0]
    return {int: "N", float: "X", bool: "BOOL"}.get(kind, "TEXT")


def _read(words: str | list[str], kind: Any) -> Any:
    """An option's words as plain values; whether they fit is for Config to say."""
    if get_origin(kind) is dict:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value: give pairs, name value name value")
        values = [_literal(word) for word in words[1::2]]
        return dict(zip(words[::2], values, strict=True))
    if isinstance(words, list):
        return tuple(_literal(word) for word in words)
    if kind is str or get_origin(kind) is Literal:
        return words
    if str in get_args(kind):  # text, or None
        return None if words == "None" else words
    return _literal(words)


def _literal(word: str) -> Any:
    """2 -> 2, 1e-3 -> 0.001, False -> False; a word that is no literal of Python is text."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return word
