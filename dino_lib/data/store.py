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
from torch.utils.data import DataLoader
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.data.folders import Files, FolderOfImages
from dino_lib.data.items import Pictures, SkipUnreadable, check_dataset
from dino_lib.data.say import say
from dino_lib.data.transforms import middle_square

STORES = "stores"  # the folder under data_root that holds decoded datasets
FORMAT = 2  # of what this module makes of a file: raise it when the pixels change
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_MEMORY = [  # a container's limit, what it uses, and details: version 2, version 1
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
]

Store = tuple[Tensor, Tensor, list[tuple[int, str]]]  # images, labels, what was skipped


def decode_store(dataset: Any, size: int, channels: int = 3, progress: bool = True,
                 num_workers: int = 0, cache: str | os.PathLike | None = None) -> Store:
    """A dataset's `middle_square`s: uint8 (N, channels, size, size), labels int64 (N,), and
    what was skipped, [(index, "file (reason)")] for `report_skipped`: N counts the others.

    A label that is no whole number becomes -1. A dataset whose `images` have that shape
    already is used as it is. Images in files that this library reads itself (Files,
    FolderOfImages, Pictures of them) are kept in the folder `cache`, if one is given, as a
    memory-mapped file that may be larger than the memory; the next call reads it as long as
    no file has changed. All others, and all where `cache` cannot be written, are kept in
    memory. Prints the size of the store. Raises MemoryError naming it if the memory does
    not suffice, InputError if no image is readable.
    """
    check_dataset(dataset)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    ready = getattr(dataset, "images", None)
    if getattr(ready, "shape", None) == (len(dataset), channels, size, size):
        return ready, dataset.labels, []
    decode = functools.partial(_decode, dataset, size, channels, progress, num_workers)
    key = _store_key(dataset, size, channels) if cache else None
    if key is None:
        return decode(None)
    cache = Path(os.path.expanduser(cache))
    try:
        if not (cache / key).exists():
            _write(cache, key, decode)
        return _read(cache / key)
    except OSError as error:
        say(f"nothing can be kept in {cache} ({error}): decoding into memory")
        return decode(None)


def available_memory() -> int:
    """Bytes that are free: the machine's, within a container's limit."""
    free = [psutil.virtual_memory().available]
    for limit, used, stat in CGROUP_MEMORY:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max": no limit
            room = int((CGROUPS / limit).read_text()) - int((CGROUPS / used).read_text())
            text = (CGROUPS / stat).read_text()
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", text, re.MULTILINE)
            free.append(room + int(cached[1] if cached else 0))  # files that are read again
    return max(0, min(free))


def _store_key(dataset: Any, size: int, channels: int) -> str | None:
    """A name made of all that decides the store's pixels; None where that is not known: a
    dataset of another library may read and change its images in any way."""
    sources = _sources(dataset)
    if sources is None:
        return None
    digest = hashlib.sha256(repr((FORMAT, PIL.__version__, size, channels)).encode())
    for path, *how in sources:
        try:
            found = os.stat(path)
            state = (found.st_size, found.st_mtime_ns)
        except OSError:  # gone: it will count as unreadable
            state = None
        digest.update(repr((os.path.abspath(path), state, how)).encode())
    return digest.hexdigest()[:16]


def _sources(dataset: Any) -> list[tuple] | None:
    """For each item: its file, its label, and the channels that it goes through."""
    if type(dataset) in (Files, FolderOfImages):  # a subclass may do anything
        pairs = zip(dataset.paths, dataset.labels, strict=True)
        return [(path, label, dataset.channels) for path, label in pairs]
    if type(dataset) is Pictures:
        inner = _sources(dataset.dataset)
        return inner and [(*inner[i], dataset.channels) for i in dataset.indices]
    return None


def _write(cache: Path, key: str, decode) -> None:
    """A store in the folder cache/key, which has its own name only once it is whole."""
    cache.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=cache))
    try:
        _, labels, skipped = decode(part / "images.npy")
        rest = {"labels": labels.tolist(), "skipped": skipped}
        (part / "rest.json").write_text(json.dumps(rest))
        with contextlib.suppress(OSError):  # another process was faster: its store is the same
            part.rename(cache / key)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _read(folder: Path) -> Store:
    rest = json.loads((folder / "rest.json").read_text())
    images = torch.from_numpy(np.load(folder / "images.npy", mmap_mode="c"))
    labels = torch.tensor(rest["labels"])
    return images[: len(labels)], labels, [tuple(pair) for pair in rest["skipped"]]


def _decode(dataset, size, channels, progress, num_workers, file) -> Store:
    """The store, in `file` or (None) in memory."""
    n = len(dataset)
    safe = SkipUnreadable(dataset, channels)
    shape = (n, channels, size, size)
    _check_room(shape, file)
    if file is None:
        images = torch.empty(shape, dtype=torch.uint8)
    else:
        images = torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.uint8, shape))
    labels = []
    loader = DataLoader(safe, batch_size=32, num_workers=num_workers,
                        collate_fn=functools.partial(_collate, size),
                        generator=torch.Generator())  # or it would advance the global one
    orders = torch.arange(n).split(loader.batch_size)
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    bar = tqdm(loader, desc="decoding", leave=False, disable=hidden)
    for asked, (squares, found, used) in zip(orders, bar, strict=True):
        safe.note(asked, used)
        kept = asked == used  # the others are stand-ins
        images[len(labels) : len(labels) + int(kept.sum())] = squares[kept]
        labels += found[kept].tolist()
    return images[: len(labels)], torch.tensor(labels), sorted(safe.bad.items())


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


def _collate(size: int, items: Sequence[tuple]) -> tuple[Tensor, Tensor, Tensor]:
    """A batch, collated in the worker: squares uint8 (B, C, size, size), labels (B,), used (B,)."""
    images, labels, used = zip(*items, strict=True)
    squares = [pil_to_tensor(middle_square(image, size)) for image in images]
    return torch.stack(squares), torch.tensor(labels), torch.tensor(used)
