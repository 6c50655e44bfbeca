"""Settings as options of a command line: each has its type, its help and its preset's value."""

import argparse
import ast
import dataclasses
import shlex
from typing import Any, Literal, get_args, get_origin

from dino_lib.run.config import Config

FIELDS = Config.__pydantic_fields__  # by name: types and help


def add_settings(parser: argparse.ArgumentParser, preset: Config) -> None:
    """An option for every setting; its help shows the preset's value."""
    for name, field in FIELDS.items():
        kind = field.annotation
        choices = get_args(kind) if get_origin(kind) is Literal else None
        default = " ".join(_words(getattr(preset, name)))
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            nargs=_count(kind),
            choices=choices,
            metavar=None if choices else "VALUE",
            default=argparse.SUPPRESS,
            help=f"{field.description} (default: {default})".replace("%", "%%"),
        )


def config_of(given: argparse.Namespace, preset: Config) -> Config:
    """The preset, with the settings that a command line gives; ValueError on wrong ones."""
    changes = {
        name: _read(words, FIELDS[name].annotation)
        for name, words in vars(given).items()
        if name in FIELDS
    }
    return dataclasses.replace(preset, **changes)


def command_of(config: Config, name: str, preset: Config) -> str:
    """The command line that trains with this config: the preset of this name, and what differs."""
    words = ["dino", "train", "--preset", name]
    for field in FIELDS:
        value = getattr(config, field)
        if value == getattr(preset, field):
            continue
        words += [f"--{field.replace('_', '-')}", *_words(value)]
    return shlex.join(words)


def _words(value: Any) -> list[str]:
    """A setting's value as one types it."""
    if isinstance(value, dict):
        value = [word for pair in value.items() for word in pair]
    return [str(word) for word in (value if isinstance(value, list | tuple) else [value])]


def _count(kind: Any) -> str | int | None:
    """How many words an option of this type takes, as argparse says it."""
    if get_origin(kind) is tuple:
        return "+" if get_args(kind)[-1] is ... else len(get_args(kind))
    return "*" if get_origin(kind) is dict else None


def _read(words: str | list[str], kind: Any) -> Any:
    """An option's words as plain values; whether they fit is for Config to say."""
    if get_origin(kind) is dict:
        if len(words) % 2:
            raise ValueError(f"{words[-1]!r} has no value: give pairs, name value name value")
        return dict(zip(words[::2], map(_literal, words[1::2]), strict=True))
    if isinstance(words, list):
        return tuple(_literal(word) for word in words)
    # text, or text or None; a path is text with an annotation
    is_text = str in (kind, *(getattr(one, "__origin__", one) for one in get_args(kind)))
    return words if is_text and words != "None" else _literal(words)


def _literal(word: str) -> Any:
    """2 -> 2, 1e-3 -> 0.001, False -> False; a word that is no literal of Python is text."""
    try:
        return ast.literal_eval(word)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return word
