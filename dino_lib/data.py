"""Datasets by name, any folder of images, and the uint8 store that keeps a small dataset in memory.

Photographs come as they are: grey, transparent, 16 bits, turned by a camera, cut off by a broken download. What
can be read becomes "RGB" or "L"; what cannot is one exception, and is replaced in training and named in the end.
"""

import contextlib
import functools
import math
import operator
import os
import re
import struct
import tarfile
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets as tv
from PIL import Image, ImageOps, UnidentifiedImageError
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.shapes import Shapes

MODES = {1: "L", 3: "RGB"}  # PIL's mode for so many channels
NO_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"}  # PIL knows their extensions only
# what a dataset of images raises on a broken file; anything else is a mistake in the code, and stays one
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
NO_DOWNLOAD = (OSError, RuntimeError, ValueError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile)
BY_HAND = {  # name: (archive, its page, what lies under the root once it is unpacked)
    "stl10": ("stl10_binary.tar.gz", "https://cs.stanford.edu/~acoates/stl10/", "stl10_binary/train_X.bin"),
    "cifar10": ("cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html",
                "cifar-10-batches-py/data_batch_1"),
    "caltech101": ("caltech-101.zip (and unpack the 101_ObjectCategories.tar.gz in it)",
                   "https://data.caltech.edu/records/mzrjq-6wc02", "caltech101/101_ObjectCategories/accordion"),
    "imagenette": ("imagenette2-160.tgz", "https://github.com/fastai/imagenette", "imagenette2-160/train"),
}


class UnreadableImage(ValueError):
    """An image that cannot be decoded whole; the message is "file (reason)"."""


def read_image(path_or_file, channels=3):
    """The image in a file (of several frames the first) as PIL "RGB" or "L": see `to_channels`.

    Raises UnreadableImage if it is empty, cut off, no image, damaged or absurdly large (PIL's limit against
    decompression bombs), FileNotFoundError if there is none.
    """
    _check_channels(channels)
    name = getattr(path_or_file, "name", "file") if hasattr(path_or_file, "read") else path_or_file
    with _naming(name), Image.open(path_or_file) as image:
        return _convert(image, channels)


def to_channels(image, channels=3):
    """Any PIL image as "RGB" (channels=3) or "L" (channels=1), turned upright as its EXIF says.

    Transparency is laid on white, which is what pages and viewers show behind it: drawings have dark lines. 16 bits
    are scaled to 8 by 255 / 65535; larger or negative integers and floats name no white level, so their own range is
    stretched to 0 .. 255. Raises UnreadableImage if the image cannot be decoded, TypeError if it is no PIL image.
    """
    _check_channels(channels)
    if not isinstance(image, Image.Image):
        raise TypeError(f"expected a PIL image, got {type(image).__name__}: give the dataset without a transform")
    with _naming(getattr(image, "filename", "") or "image"):
        return _convert(image, channels)  # datasets open files lazily, so this is where they are decoded


def _check_channels(channels):
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
        _check_channels(channels)
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
    """(PIL image, label) from an item that is an image, or begins with (image, label); -1 for no whole number."""
    try:
        item = dataset[index]
        image, label = item[:2] if isinstance(item, (tuple, list)) else (item, -1)
        image = to_channels(image, channels)
    except UnreadableImage:
        raise
    except BROKEN as error:
        raise UnreadableImage(f"image {index} ({error})") from error
    try:
        return image, operator.index(label)
    except TypeError:
        return image, -1


class SkipUnreadable(Dataset):
    """A dataset of PIL images in which the next readable image stands in for an unreadable one.

    Item i -> (PIL image, label, used): `used` is i, or the first readable index after it, wrapping around, so batches
    keep their size and the choice is the same in every run. `bad` maps unreadable indices to "file (reason)". Worker
    processes fill copies of it: tell the main process by `note(asked, used)` for each batch. Raises RuntimeError if
    no image can be read, ValueError if there are none.
    """

    def __init__(self, dataset, channels=3):
        _check_channels(channels)
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
        raise RuntimeError(f"none of the {n} images could be read; the first: {self.bad[0]}")

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


class Pictures(Dataset):
    """The items of a dataset at `indices` (None: all), their images in so many channels: (PIL image, int label).

    `classes` are the labels' names, None where the dataset has none.
    """

    def __init__(self, dataset, indices=None, *, channels=3):
        self.dataset, self.channels = dataset, channels
        self.indices = range(len(dataset)) if indices is None else indices
        classes = getattr(dataset, "classes", None) or getattr(dataset, "categories", None)
        self.classes = classes and [name if isinstance(name, str) else name[0] for name in classes]  # [0]: of synonyms

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, i):
        image, label = self.dataset[self.indices[i]]
        return to_channels(image, self.channels), label


def open_dataset(name_or_path, root, split, channels=3, download=True):
    """One role of a dataset: split "train" (what DINO trains on), "gallery" (labelled, for k-NN) or "test".

    Items are (PIL image, label), the image with `channels` channels, the label -1 where there is none.

    - "shapes": the embedded one, 4000 images of seed 0; test: 1000 of seed 1.
    - "stl10": train is its unlabelled part, gallery its labelled training set. "cifar10", "imagenette" (160 px; test
      is its "val"): gallery is train.
    - "caltech101": without Faces_easy (crops of Faces); of the rest, in torchvision's order, every fifth image
      (i % 5 == 0) is held back as test. Labels are torchvision's: Faces_easy keeps its number, unused.
    - the path of a folder: FolderOfImages. Of the images with a label every fifth is held back as test. Without
      labels there is no evaluation: gallery and test are None, train is everything.

    torchvision's datasets lie under `root` and are downloaded there if they do not. Raises RuntimeError with what to
    fetch by hand where that fails, ValueError on an unknown name or split.
    """
    _check_channels(channels)
    if split not in ("train", "gallery", "test"):
        raise ValueError(f'split={split!r} must be "train", "gallery" or "test"')
    if name_or_path == "shapes":
        shapes = _shapes(1000, seed=1) if split == "test" else _shapes(4000, seed=0)
        return shapes if channels == 3 else Pictures(shapes, channels=channels)
    if name_or_path in BY_HAND:
        dataset = _open_torchvision(name_or_path, Path(root).expanduser(), split, channels, download)
        if name_or_path != "caltech101":
            return Pictures(dataset, channels=channels)
        kept = [i for i, label in enumerate(dataset.y) if dataset.categories[label] != "Faces_easy"]
        return Pictures(dataset, _hold_back(kept, split), channels=channels)
    if not Path(name_or_path).expanduser().exists():
        raise ValueError(f"no dataset or folder is called {str(name_or_path)!r}: the names are shapes, "
                         f"{', '.join(BY_HAND)}; or give the path of a folder of images")
    folder = FolderOfImages(name_or_path, channels)
    labelled = [i for i, label in enumerate(folder.labels) if label >= 0]
    if split != "train":
        return Pictures(folder, _hold_back(labelled, split), channels=channels) if labelled else None
    test = set(_hold_back(labelled, "test"))
    return Pictures(folder, [i for i in range(len(folder)) if i not in test], channels=channels)


_shapes = functools.lru_cache(maxsize=2)(Shapes)  # a run opens it as its training set and as its gallery


def _hold_back(indices, split):
    return [j for i, j in enumerate(indices) if (i % 5 == 0) == (split == "test")]


def _open_torchvision(name, root, split, channels, download):
    opener = {
        "stl10": lambda **kw: tv.STL10(root, {"train": "unlabeled", "gallery": "train", "test": "test"}[split], **kw),
        "cifar10": lambda **kw: tv.CIFAR10(root, train=split != "test", **kw),
        "caltech101": lambda **kw: tv.Caltech101(root, **kw),
        "imagenette": lambda **kw: tv.Imagenette(root, "val" if split == "test" else "train", "160px", **kw,
                                                 loader=functools.partial(read_image, channels=channels)),
    }[name]
    try:
        try:
            return opener(download=False)  # what is there is never fetched again, whatever torchvision's version
        except NO_DOWNLOAD:
            if not download:
                raise
            return opener(download=True)
    except NO_DOWNLOAD as error:
        archive, page, inside = BY_HAND[name]
        raise RuntimeError(
            f"{name} {'could not be downloaded' if download else 'is not there, and download=False'} "
            f"({error}). By hand: get {archive} from {page} and unpack it so that {root / inside} exists; if "
            "something incomplete lies there, remove it first.") from error


def decode_store(dataset, size, channels=3, progress=True, num_workers=0):
    """Decode a dataset of PIL images once: uint8 (N, channels, size, size), labels int64 (N,), what was skipped.

    Each image is resized (antialiased bicubic) so that its shorter side is `size` pixels and cropped to the central
    square. Unreadable ones are left out: N counts the others, the third value is [(index, "file (reason)")] for
    `report_skipped`. A label that is no whole number becomes -1. A dataset whose `images` have that shape already is
    used as it is. Prints the size of the store beforehand; raises MemoryError naming it if the memory does not
    suffice, RuntimeError if no image is readable. torch's global generator is not drawn from.
    """
    n = len(dataset)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    if getattr(getattr(dataset, "images", None), "shape", None) == (n, channels, size, size):
        return dataset.images, dataset.labels, []
    safe, need, free = SkipUnreadable(dataset, channels), n * channels * size * size, _available_memory()
    print(f"decoding {n} images at {size} px: {need / 2**20:.1f} MiB of memory")
    if need > free:
        raise MemoryError(f"{n} images at {size} px need {need / 2**20:.0f} MiB, {free / 2**20:.0f} MiB are free: "
                          "take a smaller size, fewer images, or read them from disk while training")
    images, labels = torch.empty(n, channels, size, size, dtype=torch.uint8), []  # (N, C, S, S)
    # a generator of its own, or the loader would advance the global one
    loader = DataLoader(safe, batch_size=32, num_workers=num_workers, collate_fn=functools.partial(_squares, size),
                        generator=torch.Generator())
    orders = torch.arange(n).split(loader.batch_size)
    for asked, batch in zip(orders, tqdm(loader, desc="decoding", leave=False, disable=not progress), strict=True):
        squares, found, used = batch
        safe.note(asked, used)
        kept = asked == used  # the others are stand-ins
        images[len(labels) : len(labels) + int(kept.sum())] = squares[kept]
        labels += found[kept].tolist()
    return images[: len(labels)], torch.tensor(labels), sorted(safe.bad.items())


def _squares(size, items):
    """A batch, collated in the worker: squares uint8 (B, C, size, size), labels (B,), used indices (B,)."""
    images, labels, used = zip(*items, strict=True)
    squares = [ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC) for image in images]
    return torch.stack([pil_to_tensor(square) for square in squares]), torch.tensor(labels), torch.tensor(used)


def _available_memory():
    """Bytes: what Linux calls available, elsewhere the machine's whole memory; infinite where nothing tells."""
    if Path("/proc/meminfo").exists():
        return 1024 * int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1])
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return math.inf
