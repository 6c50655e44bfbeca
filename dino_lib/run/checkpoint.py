"""Checkpoints that appear whole or not at all, and are read exactly as they were written.

Nothing that could run code is ever unpickled: a checkpoint holds tensors and plain values and is
read with `weights_only`. Its last line is the SHA-256 of all bytes before it; one rename brings
both.
"""

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch

from dino_lib.data.say import say

FORMAT = 2
LENGTH = 73  # of the last line
NAMES = f"step_{8 * '[0-9]'}.pt"  # a glob that leaves out copies which someone made


def save_checkpoint(folder: str | Path, step: int, state: dict, keep: int = 2,
                    scores: dict[int, float] | None = None) -> Path:
    """Write `state` to folder/step_XXXXXXXX.pt, then drop all but the `keep` newest and the best.

    scores: {step: score}; the best checkpoint has the highest one, of equals the earliest. An old
    one goes only when the new file is whole and on the disk. A file of a later step is damaged, or
    the run would have gone on from it: it is renamed to .damaged, so that it does not count.

    Returns the path. Raises OSError where it cannot be written, and where the parent of `folder`
    is missing: that may be a drive that is not mounted.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for part in folder.glob("*.part"):  # left by a kill in mid-save; it may be what fills the disk
        part.unlink()
    path = folder / f"step_{step:08d}.pt"
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "step": step, **state}, buffer)
    content = buffer.getbuffer()
    with write_atomically(path) as file:
        file.write(content)
        file.write(_last_line(content))

    for other in folder.glob(NAMES):
        if other.name > path.name:
            other.replace(other.with_suffix(".damaged"))
    saved = {int(old.stem.removeprefix("step_")): old for old in sorted(folder.glob(NAMES))}
    kept = list(saved)[-keep:]
    scored = [old for old in saved if old in (scores or {})]
    if scored:
        kept.append(max(scored, key=scores.get))
    for old in saved.keys() - kept:
        saved[old].unlink()
    return path


def _last_line(content: memoryview) -> bytes:
    return b"\nsha256 %s\n" % hashlib.sha256(content).hexdigest().encode()


def read_checkpoint(path: str | Path, device: torch.device | str = "cpu") -> dict:
    """The dict in a checkpoint.

    Raises ValueError where a bit of it is not as it was written, where it is of another format,
    and where the file is no checkpoint at all.
    """
    data = Path(path).read_bytes()
    if data[-LENGTH:] != _last_line(memoryview(data)[:-LENGTH]):
        raise ValueError(f"{path} is damaged: its last line is not the SHA-256 of the others")
    try:
        state = torch.load(io.BytesIO(data), map_location=device, weights_only=True)
        found = state["format"]
    except Exception as error:  # what is sealed and no checkpoint may raise anything
        raise ValueError(f"{path} cannot be read ({type(error).__name__})") from error
    if found != FORMAT:
        raise ValueError(f"{path} has format {found!r}; this version reads format {FORMAT}")
    return state


def load_newest(folder: str | Path, device: torch.device | str = "cpu") -> dict | None:
    """The newest whole checkpoint of a folder, or None if there is none.

    One that cannot be read is reported, and the one before it taken. Raises ValueError where none
    can be read: to start anew would hide a loss.
    """
    paths = sorted(Path(folder).glob(NAMES), reverse=True)
    for path in paths:
        try:
            return read_checkpoint(path, device)
        except ValueError as error:
            say(f"{error}; trying the one before it")
    if paths:
        raise ValueError(f"none of the {len(paths)} checkpoints in {folder} can be read: move "
                         "them away to start anew")
    return None


@contextlib.contextmanager
def write_atomically(path: str | Path) -> Iterator[BinaryIO]:
    """`with write_atomically(path) as file`: takes the place of `path` once it is on the disk.

    After an error or an interrupt `path` is as it was before; a kill leaves a .part beside it.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    try:
        with open(part, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent):  # the new name, and a new folder's name
        with contextlib.suppress(OSError):  # Windows opens no folders; some mounts sync none
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)
