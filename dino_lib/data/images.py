"""Photographs as they are: grey, transparent, 16 bits, turned by a camera, cut off by a broken download.

What can be read becomes "RGB" or "L"; what cannot raises one exception, `UnreadableImage`, and in training another
image takes its place.
"""

import contextlib
import operator
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import Dataset

MODES = {1: "L", 3: "RGB"}  # PIL's mode for so many channels
NO_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"}  # PIL knows their extensions only
# what a dataset of images raises on a broken file; anything else is a mistake in its code, and ends the run
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

PHOTOS = Path(__file__).parent / "photos"  # sixteen photographs that no shipped teacher was trained on


class InputError(RuntimeError):
    """What is to be trained on cannot be had; the message says why, and what to do."""


class UnreadableImage(ValueError):
    """An image that cannot be decoded whole; the message is "file (reason)"."""


def read_image(path_or_file, channels=3):
    """The image in a file (of several frames the first) as PIL "RGB" or "L": see `to_channels`.

    Raises UnreadableImage if it is empty, cut off, no image, damaged or absurdly large (PIL's limit against
    decompression bombs), FileNotFoundError if there is none.
    """
    check_channels(channels)
    name = getattr(path_or_file, "name", "file") if hasattr(path_or_file, "read") else path_or_file
    with _naming(name), Image.open(path_or_file) as image:
        return _convert(image, channels)


def to_channels(image, channels=3):
    """Any PIL image as "RGB" (channels=3) or "L" (channels=1), turned upright as its EXIF says.

    Transparency is laid on white, which is what pages and viewers show behind it: drawings have dark lines. 16 bits
    are scaled to 8 by 255 / 65535; larger or negative integers and floats name no white level, so their own range is
    stretched to 0 .. 255. Raises UnreadableImage if the image cannot be decoded, TypeError if it is no PIL image.
    """
    check_channels(channels)
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL image, got {type(image).__name__}: give the dataset without a transform")
    with _naming(getattr(image, "filename", "") or "image"):
        return _convert(image, channels)  # datasets open files lazily, so this is where they are decoded


def check_channels(channels):
    if channels not in MODES:
        raise ValueError(f"channels={channels} must be 3 (RGB) or 1 (grey)")


@contextlib.contextmanager
def _naming(name):
    try:
        yield
    except FileNotFoundError:
        raise
    except UnidentifiedImageError as error:
        raise UnreadableImage(f"{name} (empty, or not an image that PIL can read)") from error
    except Exception as error:  # a decoder may stumble with any exception over broken bytes
        raise UnreadableImage(f"{name} ({str(error) or type(error).__name__})") from error


def _convert(image, channels):
    image.load()  # first, so that what follows cannot hide a broken file
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels, which are whole
        image = image.copy()
    if image.mode.startswith(("I", "F")):
        image = _to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert(MODES[channels])
    image.info = {}  # all of it is applied now: a second conversion changes nothing
    return image


def _to_8_bits(image):
    x = np.asarray(image).astype(np.float64)
    low, high = 0, 65535
    if image.mode == "F" or x.min() < low or x.max() > high:
        low, high = x.min(), x.max()
    if not np.isfinite([low, high]).all():
        raise ValueError("holds infinite values or NaN")
    return Image.fromarray(((x - low) * (255 / ((high - low) or 1))).round().astype(np.uint8))


class FolderOfImages(Dataset):
    """All images in a folder and below: items (PIL image, label), sorted by path; links are followed.

    A file belongs if its extension, in any case, is one of PIL's; names that begin with a dot do not. `paths` holds
    the files, `classes` the names of the first-level folders with images, `labels` one int an image: its class, or -1
    outside of such a folder. With fewer than two of them there is nothing to tell apart: all labels are -1.
    Raises FileNotFoundError where there is no folder or no image in it. Broken files are listed: reading one raises
    UnreadableImage.
    """

    def __init__(self, root, channels=3):
        check_channels(channels)
        self.root, self.channels = Path(root).expanduser(), channels
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder of images at {self.root.absolute()}")
        known = {ext for ext, kind in Image.registered_extensions().items() if kind not in NO_DECODER}
        found = []
        for folder, below, files in os.walk(self.root, followlinks=True):
            below[:] = [name for name in below if not name.startswith(".")]
            found += [Path(folder, name) for name in files
                      if not name.startswith(".") and Path(name).suffix.lower() in known]
        if not found:
            raise FileNotFoundError(f"no images in {self.root.absolute()} or below: looked for .jpg, .png and "
                                    f"{len(known) - 2} other extensions that PIL reads, leaving out dot files")
        self.paths = sorted(found, key=lambda path: path.parts)
        inside = [path.relative_to(self.root).parts for path in self.paths]
        self.classes = sorted({parts[0] for parts in inside if len(parts) > 1})
        if len(self.classes) < 2:
            self.classes = []
        number = {name: i for i, name in enumerate(self.classes)}
        self.labels = [number.get(parts[0], -1) if len(parts) > 1 else -1 for parts in inside]

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return read_image(self.paths[i], self.channels), self.labels[i]


def _read_item(dataset, index, channels):
    """(PIL image, label) from an item that is an image, or begins with (image, label); -1 for no whole number.

    Raises UnreadableImage on a broken image, InputError on what else the dataset raises.
    """
    try:
        item = dataset[index]
        image, label = item[:2] if isinstance(item, (tuple, list)) else (item, -1)
        image = to_channels(image, channels)
    except UnreadableImage:
        raise
    except BROKEN as error:
        raise UnreadableImage(f"image {index} ({error})") from error
    except TypeError as error:  # no image at all, from to_channels, or a dataset's own
        raise TypeError(f"image {index}: {error}") from error
    except Exception as error:
        raise InputError(f"item {index} of the dataset raised {type(error).__name__}: {error}; mend the dataset's "
                         "__getitem__ or its data") from error
    try:
        return image, operator.index(label)
    except TypeError:
        return image, -1


class SkipUnreadable(Dataset):
    """A dataset of PIL images in which the next readable image stands in for an unreadable one.

    Item i -> (PIL image, label, used): `used` is i, or the first readable index after it, wrapping around, so batches
    keep their size and the choice is the same in every run. `bad` maps unreadable indices to "file (reason)". Worker
    processes fill copies of it: tell the main process by `note(asked, used)` for each batch. Raises InputError if
    no image can be read and if the dataset fails otherwise, ValueError if there are no images.
    """

    def __init__(self, dataset, channels=3):
        check_channels(channels)
        if len(dataset) == 0:
            raise ValueError("the dataset holds no images")
        self.dataset, self.channels, self.bad = dataset, channels, {}

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, i):
        n = len(self)
        if not -n <= i < n:
            raise IndexError(f"index {i} is outside of {n} images")
        for used in ((i + step) % n for step in range(n)):
            item = None if used in self.bad else self._try(used)
            if item:
                return *item, used
        raise InputError(f"none of the {n} images could be read; the first: {self.bad[0]}")

    def _try(self, index):
        try:
            return _read_item(self.dataset, index, self.channels)
        except UnreadableImage as error:
            self.bad[index] = str(error)

    def note(self, asked, used):
        """Record what a batch's indices tell: from the asked one up to the used one all images are unreadable."""
        for first, last in zip(torch.as_tensor(asked).tolist(), torch.as_tensor(used).tolist(), strict=True):
            for index in ((first + step) % len(self) for step in range((last - first) % len(self))):
                if index not in self.bad and self._try(index):  # tried here once more, to learn the reason
                    self.bad[index] = f"image {index} (readable when tried again)"

    def report(self):
        """The closing sentence: how many images were skipped so far, which and why."""
        return report_skipped(sorted(self.bad.items()), len(self))


def report_skipped(skipped, total, limit=20):
    """The closing sentence from [(index, "file (reason)")], naming the first `limit` of them."""
    if not skipped:
        return f"all {total} images could be read"
    names = [name for _, name in skipped[:limit]] + [f"and {len(skipped) - limit} more"] * (len(skipped) > limit)
    return f"{len(skipped)} of {total} images could not be read and were skipped: {', '.join(names)}"
