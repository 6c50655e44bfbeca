"""A dataset decoded once: a uint8 tensor in memory, or in a file that is kept for the next run."""

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import psutil
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.data.folders import Files, FolderOfImages
from dino_lib.data.images import InputError, UnreadableImage
from dino_lib.data.items import Pictures, check_dataset, read_item, ready_images
from dino_lib.data.say import say
from dino_lib.data.transforms import middle_square

STORES = "stores"  # the folder under data_root that holds decoded datasets
FORMAT = 2  # of what this module makes of a file: raise it when the pixels change
CGROUP = Path("/sys/fs/cgroup")  # a container's limits, in version 2

Store = tuple[Tensor, Tensor, list[tuple[int, str]]]  # images, labels, what was skipped


def decode_store(dataset: Any, size: int, channels: int = 3,
                 cache: str | os.PathLike | None = None) -> Store:
    """A dataset's `middle_square`s: uint8 (N, channels, size, size), labels int64 (N,), and
    what was skipped, [(index, "file (reason)")] for `report_skipped`: N counts the others.

    A label that is no whole number becomes -1. An InMemory, or Pictures of it, whose `images`
    have that shape already is used as it is. Images in files that this library reads itself (Files,
    FolderOfImages, Pictures of them) are kept in the folder `cache`, if one is given, as a
    memory-mapped file that may be larger than the memory; the next call reads it as long as
    no file has changed. All others are kept in memory, and so are all where `cache` cannot
    be written, or where the system has failed to read a picture (as a network drive may).
    Prints the size of the store. Raises MemoryError naming it if the memory does not
    suffice, InputError if no image is readable, ValueError if there are none.
    """
    check_dataset(dataset)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    ready = ready_images(dataset)
    if ready is not None and ready.shape == (len(dataset), channels, size, size):
        return ready, dataset.labels, []
    decode = functools.partial(_decode, dataset, size, channels)
    key = _store_key(dataset, size, channels) if cache else None
    if key is None:
        return decode(None)
    cache = Path(os.path.expanduser(cache))
    try:
        if not (cache / key).exists():
            _write(cache, key, decode)
        try:
            return _read(cache / key)
        except (ValueError, KeyError, TypeError, EOFError) as error:  # after a power cut
            say(f"{cache / key} is damaged ({error}): decoding anew")
            shutil.rmtree(cache / key)
            _write(cache, key, decode)
            return _read(cache / key)
    except OSError as error:
        say(f"nothing can be kept in {cache} ({error}): decoding into memory")
        return decode(None)


def available_memory() -> int:
    """Bytes that are free: the machine's, within a container's limit."""
    free = psutil.virtual_memory().available
    with contextlib.suppress(OSError, ValueError):  # not there, or "max": no limit
        room = int((CGROUP / "memory.max").read_text())
        room -= int((CGROUP / "memory.current").read_text())
        cached = re.search(r"^inactive_file (\d+)", (CGROUP / "memory.stat").read_text(), re.M)
        free = min(free, room + int(cached[1]))  # files that are read again
    return max(0, free)


def _store_key(dataset: Any, size: int, channels: int) -> str | None:
    """A name made of all that decides the store's pixels; None where that is not known: a
    dataset of another library may read and change its images in any way."""
    sources = _sources(dataset)
    if sources is None:
        return None
    digest = hashlib.sha256(repr((FORMAT, PIL.__version__, size, channels)).encode())
    for path, *how in sources:
        state = None  # gone: it will count as unreadable
        with contextlib.suppress(OSError):
            found = os.stat(path)
            state = found.st_size, found.st_mtime_ns
        digest.update(repr((os.path.abspath(path), state, how)).encode())
    return digest.hexdigest()[:16]


def _sources(dataset: Any) -> list[tuple] | None:
    """For each item: its file, its label, and the channels that it goes through."""
    if type(dataset) in (Files, FolderOfImages):  # a subclass may do anything
        return list(zip(dataset.paths, dataset.labels, strict=True))
    if type(dataset) is Pictures:
        inner = _sources(dataset.dataset)
        return inner and [(*inner[i], dataset.channels) for i in dataset.indices]
    return None


def _write(cache: Path, key: str, decode) -> None:
    """A store in the folder cache/key, which has its own name only once it is whole."""
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=cache))
    try:
        labels, skipped = decode(part / "images.npy")[1:]  # Windows renames no file that is open
        rest = {"labels": labels.tolist(), "skipped": skipped}
        (part / "rest.json").write_text(json.dumps(rest))
        for name in ("images.npy", "rest.json"):
            with open(part / name, "rb+") as file:
                os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # another process was faster: its store is the same
            part.rename(cache / key)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path) -> Store:
    rest = json.loads((folder / "rest.json").read_text())
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    labels = torch.tensor(rest["labels"])
    return images[: len(labels)], labels, [tuple(pair) for pair in rest["skipped"]]


def _decode(dataset: Any, size: int, channels: int, file: Path | None) -> Store:
    """The store, in `file` or (None) in memory."""
    n = len(dataset)
    shape = (n, channels, size, size)
    _check_room(shape, file)
    if file is None:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        images = torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.uint8, shape))
    labels = []
    skipped = []
    # the bar comes after 10 s: most stores are made by then
    for i in tqdm(range(n), desc="decoding", leave=False, disable=None, delay=10):
        try:
            image, label = read_item(dataset, i, channels)
        except UnreadableImage as error:
            if file is not None and _may_pass(error):
                raise OSError(str(error)) from error  # so that no picture is left out for good
            skipped.append((i, str(error)))
            continue
        images[len(labels)] = pil_to_tensor(middle_square(image, size))
        labels.append(label)
    if not labels:
        raise InputError(f"none of the {n} images could be read; the first: {skipped[0][1]}")
    return images[: len(labels)], torch.tensor(labels), skipped


def _may_pass(error: UnreadableImage) -> bool:
    """Whether the system failed, as a network drive does, and the picture may be whole."""
    cause = error.__cause__
    if isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError):
        return cause.errno is not None  # PIL's own errors have no number
    return isinstance(cause, MemoryError)  # and a file that is gone is told by the store's name


def _check_room(shape: Sequence[int], file: Path | None) -> None:
    """Print how large the store will be; MemoryError or OSError if there is no room for it."""
    need = int(np.prod(shape))
    if file is None:
        place, free, error = "memory", available_memory(), MemoryError
    else:
        place, free, error = "disk", shutil.disk_usage(file.parent).free, OSError
    what = f"{shape[0]} images at {shape[-1]} px"
    if need > free:
        raise error(f"{what} need {need / 2**20:.0f} MiB of {place}, {free / 2**20:.0f} MiB "
                    "are free: take a smaller size, fewer images, or read them from disk "
                    "while training")
    say(f"decoding {what}: {need / 2**20:.1f} MiB of {place}")
