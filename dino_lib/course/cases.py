"""More kinds of cases for the checks."""

from collections.abc import Callable
from typing import Any

from dino_lib.course.check import Case, Mistake


def or_say(hint: str, case: Case) -> Case:
    """The case with a hint for a piece that stops with an error in it, though not before."""

    def hinted(piece: Callable) -> Any:
        try:
            return case(piece)
        except Mistake:
            raise
        except Exception as error:
            raise Mistake(hint) from error

    return hinted
