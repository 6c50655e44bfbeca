"""What is said on the screen, and names as text: a file's name may be what no screen can show."""

import sys

from tqdm import tqdm


def printable(text: object, encoding: str = "utf-8") -> str:
    """The text, with codes like \\xe9 for what the encoding lacks: not every name is valid text."""
    return str(text).encode(encoding, "backslashreplace").decode(encoding)


def say(text: object) -> None:
    """Print a line, above a progress bar if there is one: no run should end over a message."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    tqdm.write(printable(text, encoding))
    sys.stdout.flush()
