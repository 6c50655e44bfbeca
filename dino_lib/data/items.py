"""What a dataset gives: a picture and a label, in whatever form; parts of it; and broken ones.

An item may be a picture (all that `to_channels` takes, so a path too), a pair (picture, label), or
a dict with "image" and "label" as Hugging Face's datasets give it.
"""

import operator
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from dino_lib.data.images import InputError, UnreadableImage, check_machine, to_channels
from dino_lib.data.say import printable

IMAGE_KEYS = ("image", "img")
LABEL_KEYS = ("label", "labels", "fine_label")
# what a dataset raises on a broken file; anything else is a mistake in its code, and ends the run
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error,
          Image.DecompressionBombError)


def check_dataset(dataset: Any) -> None:
    """TypeError, with the remedy, if `dataset` cannot be asked for its length and its items;
    ValueError if it has none.
    """
    what = f"dataset is a {type(dataset).__name__}"
    if isinstance(dataset, str | os.PathLike):
        raise TypeError(f"{what}: a path goes into the settings, as dataset={str(dataset)!r}")
    numbered = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if not numbered or isinstance(dataset, IterableDataset):
        raise TypeError(f"{what}: expected pictures by number, with len(dataset) and dataset[i]; "
                        "of a stream give list(dataset), if that fits into the memory")
    if isinstance(dataset, Mapping) and 0 not in dataset:
        raise TypeError(f"{what} of {list(dataset)[:5]}: give one of these parts")
    if len(dataset) == 0:
        raise ValueError("the dataset holds no images")


def read_item(dataset: Any, index: int, channels: int = 3) -> tuple[Image.Image, int]:
    """(PIL image of so many channels, label) of an item; -1 for a label that is no whole number.

    Raises UnreadableImage on a broken image, InputError on whatever else the dataset raises.
    """
    try:
        picture, label = _split(dataset[index])
        if picture is None:
            raise UnreadableImage(f"image {index} (the dataset gave None)")
        image = to_channels(picture, channels)
    except (UnreadableImage, InputError):
        raise
    except BROKEN as error:
        check_machine(error)
        raise UnreadableImage(f"image {index} ({printable(error)})") from error
    except Exception as error:
        raise InputError(f"item {index} of the dataset raised {type(error).__name__}: {error}; "
                         "mend the dataset's __getitem__ or its data") from error
    try:
        return image, operator.index(label)
    except TypeError:
        return image, -1


def _split(item: Any) -> tuple[Any, Any]:
    """(picture, label) of an item, -1 where it has no label."""
    if isinstance(item, Mapping):
        for key in IMAGE_KEYS:
            if key in item:
                return item[key], next((item[name] for name in LABEL_KEYS if name in item), -1)
        raise TypeError(f"a dict of {list(item)}: expected the key {' or '.join(IMAGE_KEYS)}")
    if isinstance(item, tuple | list):
        return item[0], item[1] if len(item) > 1 else -1
    return item, -1


def ready_images(dataset: Any) -> Tensor | None:
    """The `images`, uint8 (N, C, H, W), of an InMemory or of Pictures of it; None of any other.

    What a user's dataset calls so may be what its __getitem__ still changes.
    """
    own = (Pictures.__getitem__, InMemory.__getitem__)
    found = getattr(type(dataset), "__getitem__", None)
    return getattr(dataset, "images", None) if found in own else None


def _one_name(name: Any) -> str:
    """Of several synonyms the first."""
    return str(name[0] if isinstance(name, tuple | list) else name)


class Pictures(Dataset):
    """The items of a dataset at `indices` (None: all) as (PIL image of so many channels, label).

    `classes` are the labels' names, None where the dataset has none. What an InMemory holds ready
    as tensors, `images` (N, C, H, W), `labels` (N,) and `masks` (N, H, W), is there too.
    """

    def __init__(self, dataset: Any, indices: Sequence[int] | None = None, *, channels: int = 3):
        check_dataset(dataset)
        self.dataset, self.channels = dataset, channels
        self.indices = range(len(dataset)) if indices is None else [int(i) for i in indices]
        found = (getattr(dataset, name, None) for name in ("classes", "categories"))
        names = next((names for names in found if names is not None and len(names)), None)
        self.classes = None if names is None else [_one_name(name) for name in names]
        ready = ready_images(dataset)
        if ready is not None and ready.shape[1] == channels:
            for name in ("images", "labels", "masks"):
                rows = getattr(dataset, name, None)
                setattr(self, name, rows if rows is None or indices is None else rows[self.indices])

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return read_item(self.dataset, self.indices[i], self.channels)


class InMemory(Dataset):
    """Pictures as one tensor: `images` uint8 (N, 3, H, W), `labels` int64 (N,), `classes` names.

    `masks` bool (N, H, W), True on the object, or None. Items are (PIL image, label).
    """

    def __init__(self, images: Tensor, labels: Tensor,
                 classes: Sequence[str] | None = None, masks: Tensor | None = None):
        self.images, self.labels = images, labels
        self.classes, self.masks = classes, masks

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return to_channels(self.images[i]), int(self.labels[i])


class SkipUnreadable(Dataset):
    """A dataset in which the next readable image stands in for an unreadable one.

    Item i -> (PIL image, label, used): `used` is i, or the first readable index after it,
    so batches keep their size and the choice is the same in every run. `bad` maps unreadable
    indices to "file (reason)". Worker processes fill copies of it: tell the main process by
    `note(asked, used)`. Raises InputError if no image can be read or the dataset fails
    otherwise, ValueError if there are no images, TypeError if it is no dataset.
    """

    def __init__(self, dataset: Any, channels: int = 3):
        check_dataset(dataset)
        self.dataset, self.channels = dataset, channels
        self.bad = {}

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, i: int) -> tuple[Image.Image, int, int]:
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"index {i} is outside of {n} images")
        for used in (index % n for index in range(i, i + n)):
            if used in self.bad:
                continue
            try:
                return *read_item(self.dataset, used, self.channels), used
            except UnreadableImage as error:
                self.bad[used] = str(error)
        raise InputError(f"none of the {n} images could be read; the first: {self.bad[0]}")

    def note(self, asked: Sequence[int] | Tensor, used: Sequence[int] | Tensor) -> None:
        """Learn from a batch: from an index asked for up to the one used, all are unreadable."""
        n = len(self)
        pairs = zip(torch.as_tensor(asked).tolist(), torch.as_tensor(used).tolist(), strict=True)
        for first, last in pairs:
            for step in range((last - first) % n):
                index = (first + step) % n
                # tried again, for the reason
                if index not in self.bad and self[index][2] == index:
                    self.bad[index] = f"image {index} (readable when tried again)"

    def report(self) -> str:
        """The closing sentence: how many images were skipped so far, which and why."""
        return report_skipped(sorted(self.bad.items()), len(self))


def report_skipped(skipped: Sequence[tuple[int, str]], total: int, limit: int = 20) -> str:
    """The closing sentence from [(index, "file (reason)")], naming the first `limit` of them."""
    if not skipped:
        return f"all {total} images could be read"
    names = [name for _, name in skipped[:limit]]
    if len(skipped) > limit:
        names.append(f"and {len(skipped) - limit} more")
    count = f"{len(skipped)} of {total} images could not be read and were skipped"
    return printable(f"{count}: {', '.join(names)}")
