"""Checkpoints: saved atomically, resumed exactly; teachers: saved as safetensors, loaded by name or path.

Nothing that could run code is ever unpickled: full checkpoints hold tensors and plain values and are read with
`weights_only`, teachers are safetensors with their settings as JSON in the header. Both carry the SHA-256 of all their
bytes, in the same file, so that one rename brings file and checksum.
"""

import contextlib
import hashlib
import os
import re
from pathlib import Path

import torch

FORMAT = 2  # of full checkpoints; 1 had no checksum
SEAL = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")  # the last 73 bytes of a checkpoint, behind what torch wrote
NAMES = f"step_{8 * '[0-9]'}.pt"  # and no copy that someone made beside


class UnknownFormat(ValueError):
    """A whole file, of a format that this version does not read."""


def save_checkpoint(folder, step, state, keep=2, scores=None):
    """Write `state` to folder/step_XXXXXXXX.pt, drop all but the `keep` newest and the best; returns the path.

    scores: {step: score}; the best is the checkpoint with the highest one, of equals the earliest. Nothing is dropped
    before the new file is whole and on the disk. A newer file than this one is damaged, or the run would have gone on
    from it: it is renamed to .damaged, so as not to count. Raises OSError if that fails; the folder's parent must
    exist, or a mount that has vanished would be taken for a new folder.
    """
    folder = Path(folder)
    folder.mkdir(exist_ok=True)
    for part in folder.glob("*.part"):  # of a save that was killed: it may be what fills the disk
        part.unlink()
    path = folder / f"step_{step:08d}.pt"
    with write_atomically(path) as file:
        sealed = _Sealed(file)
        torch.save({"format": FORMAT, "step": step, **state}, sealed)
        sealed.close()
    for newer in folder.glob(NAMES):
        if newer.name > path.name:
            newer.replace(newer.with_suffix(".damaged"))
    saved = {int(old.stem.removeprefix("step_")): old for old in sorted(folder.glob(NAMES))}
    scored = [old for old in saved if old in (scores or {})]
    kept = [*saved][-keep:] + ([max(scored, key=scores.get)] if scored else [])
    for old in saved.keys() - kept:
        saved[old].unlink()
    return path


def read_checkpoint(path, device="cpu"):
    """The dict in a checkpoint. Raises ValueError if a bit of it is not as it was written, or the file is no checkpoint
    at all; UnknownFormat, a ValueError too, if it is of another format.
    """
    path, sealed = Path(path), True
    try:
        sealed, whole = _verify(path)
        if sealed and not whole:
            raise ValueError("its SHA-256 is another")
        state = torch.load(path, map_location=device, weights_only=True)
        found = state["format"]
    except MemoryError:
        raise
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = _reason(error) if sealed else "its last line, the SHA-256, is missing"
        raise ValueError(f"{path} is damaged ({reason})") from error
    if found != FORMAT:
        raise UnknownFormat(f"{path} has format {found!r}; this version reads format {FORMAT}")
    if not sealed:
        raise ValueError(f"{path} is damaged (its last line, the SHA-256, is missing)")
    return state


def _verify(path):
    """(whether the file ends with a checksum, whether that is the checksum of what stands before it)."""
    digest, left = hashlib.sha256(), path.stat().st_size - 73
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, 2**20))):
            digest.update(block)
            left -= len(block)
        seal = SEAL.fullmatch(file.read())
    return bool(seal), bool(seal) and seal[1].decode() == digest.hexdigest()


def _reason(error):
    """One line on an error of our own or the system's; of a foreign one, whose text may fill a screen, its type."""
    return str(error) if type(error) is ValueError or isinstance(error, OSError) else type(error).__name__


def load_newest(folder, device="cpu"):
    """The newest whole checkpoint of a folder as a dict, or None if there is none.

    A file that is cut short or damaged is reported and passed over for the one before it. An unknown format
    raises ValueError, and so does a folder whose every checkpoint is damaged: starting afresh would hide a loss.
    """
    paths = sorted(Path(folder).glob(NAMES), reverse=True)
    for path in paths:
        try:
            return read_checkpoint(path, device)
        except UnknownFormat:
            raise
        except ValueError as error:
            print(f"{error}; trying the one before it")
    if paths:
        raise ValueError(f"none of the {len(paths)} checkpoints in {folder} can be read: move them away to start anew")
    return None


@contextlib.contextmanager
def write_atomically(path):
    """`with write_atomically(path) as file`: a binary file that takes the place of `path` once it is on the disk.

    After an error or an interrupt `path` is as it was before; after a kill a file of its name and .part lies there too.
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
    for folder in (path.parent, path.parent.parent):  # the new name, and the folder's own if that is new
        with contextlib.suppress(OSError):  # Windows opens no folders, and some mounts do not sync them
            number = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(number)
            finally:
                os.close(number)


class _Sealed:
    """What torch.save writes to: hashed on its way to the file, its SHA-256 as the last line. Errors wait for `close`,
    since torch would answer one with an error of its own."""

    def __init__(self, file):
        self.file, self.digest, self.error = file, hashlib.sha256(), None

    def write(self, data):
        if self.error is None:
            try:
                self.digest.update(data)
                self.file.write(data)
            except BaseException as error:  # of an interrupt as well
                self.error = error
        return len(data)

    def flush(self):
        pass

    def close(self):
        if self.error is not None:
            raise self.error
        self.file.write(b"\nsha256 %s\n" % self.digest.hexdigest().encode())
