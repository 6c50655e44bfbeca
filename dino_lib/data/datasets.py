"""Datasets by name, any folder of images, and the uint8 store of images that are decoded once.

An image that cannot be read is replaced in training, left out of a store, and named in the end.
"""

import contextlib
import functools
import hashlib
import json
import math
import os
import re
import shutil
import tarfile
import tempfile
import zipfile
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
import torchvision.datasets as tv
from PIL import Image, ImageOps
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2.functional import pil_to_tensor
from tqdm.auto import tqdm

from dino_lib.data.images import (
    FolderOfImages,
    InputError,
    SkipUnreadable,
    check_channels,
    read_image,
    to_channels,
)
from dino_lib.data.shapes import Shapes

STORES = "stores"  # the folder under data_root that holds decoded datasets
CGROUPS = Path("/sys/fs/cgroup")
CGROUP_MEMORY = [("memory.max", "memory.current", "memory.stat"),  # version 2, version 1
                 ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat")]
NO_DOWNLOAD = (OSError, RuntimeError, ValueError, EOFError, HTTPException, tarfile.TarError, zipfile.BadZipFile)
BY_HAND = {  # name: (archive, its page, what lies under the root once it is unpacked)
    "stl10": ("stl10_binary.tar.gz", "https://cs.stanford.edu/~acoates/stl10/", "stl10_binary/train_X.bin"),
    "cifar10": ("cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html",
                "cifar-10-batches-py/data_batch_1"),
    "caltech101": ("caltech-101.zip (and unpack the 101_ObjectCategories.tar.gz in it)",
                   "https://data.caltech.edu/records/mzrjq-6wc02", "caltech101/101_ObjectCategories/accordion"),
    "imagenette": ("imagenette2-160.tgz", "https://github.com/fastai/imagenette", "imagenette2-160/train"),
}


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
    - the path of a folder with `train` and `val` (or `test`) in it, as ImageNet is laid out: train and gallery are the
      one, test is the other; both have the same class folders, or the test has no labels to compare and is None.

    torchvision's datasets lie under `root` and are downloaded there if they do not. Raises InputError with what to
    fetch by hand where that fails, ValueError on an unknown name or split.
    """
    check_channels(channels)
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
    root = Path(name_or_path).expanduser()
    held_back = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
    if held_back and (root / "train").is_dir():
        return _open_parts(root / "train", held_back, split, channels)
    folder = FolderOfImages(root, channels)
    labelled = [i for i, label in enumerate(folder.labels) if label >= 0]
    if split != "train":
        return Pictures(folder, _hold_back(labelled, split), channels=channels) if labelled else None
    test = set(_hold_back(labelled, "test"))
    return Pictures(folder, [i for i in range(len(folder)) if i not in test], channels=channels)


def _open_parts(train, held_back, split, channels):
    classes = [FolderOfImages(part).classes for part in (train, held_back)]
    if split == "train":
        return Pictures(FolderOfImages(train, channels), channels=channels)
    if not all(classes):
        return None
    if classes[0] != classes[1]:
        raise ValueError(f"{train} and {held_back} must have the same class folders; in one of them only: "
                         f"{sorted(set(classes[0]) ^ set(classes[1]))}")
    return Pictures(FolderOfImages(held_back if split == "test" else train, channels), channels=channels)


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
        raise InputError(
            f"{name} {'could not be downloaded' if download else 'is not there, and download=False'} "
            f"({error}). By hand: get {archive} from {page} and unpack it so that {root / inside} exists; if "
            "something incomplete lies there, remove it first.") from error


def decode_store(dataset, size, channels=3, progress=True, num_workers=0, cache=None):
    """Decode a dataset of PIL images once: uint8 (N, channels, size, size), labels int64 (N,), what was skipped.

    Each image is resized (antialiased bicubic) so that its shorter side is `size` pixels and cropped to the central
    square. Unreadable ones are left out: N counts the others, the third value is [(index, "file (reason)")] for
    `report_skipped`. A label that is no whole number becomes -1. A dataset whose `images` have that shape already is
    used as it is. Images that lie in files are kept in the folder `cache`, if one is given, as a memory-mapped file
    that may be larger than the memory; the next call reads it as long as no file has changed. All others are kept in
    memory. Prints the size of the store beforehand; raises MemoryError naming it if the memory does not suffice,
    OSError if the disk does not, InputError if no image is readable. torch's global generator is not drawn from.
    """
    n = len(dataset)
    if size < 1:
        raise ValueError(f"size={size} must be at least 1 pixel")
    if getattr(getattr(dataset, "images", None), "shape", None) == (n, channels, size, size):
        return dataset.images, dataset.labels, []
    content = _content(dataset) if cache else None
    if content is None:
        return _decode(dataset, size, channels, progress, num_workers, None)
    key = hashlib.sha256(repr((size, channels, content)).encode()).hexdigest()[:16]
    cache = Path(cache).expanduser()
    if not (cache / key).exists():
        cache.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f"{key}.part-", dir=cache))  # whole only once it has its own name
        try:
            _, labels, skipped = _decode(dataset, size, channels, progress, num_workers, part / "images.npy")
            (part / "rest.json").write_text(json.dumps({"labels": labels.tolist(), "skipped": skipped}))
            with contextlib.suppress(OSError):  # another process was faster: its store is the same
                part.rename(cache / key)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    rest = json.loads((cache / key / "rest.json").read_text())
    images = torch.from_numpy(np.load(cache / key / "images.npy", mmap_mode="c"))
    labels = torch.tensor(rest["labels"])
    return images[: len(labels)], labels, [tuple(pair) for pair in rest["skipped"]]


def _content(dataset):
    """What tells one set of files from another: names, sizes and times of change; None for what is not in files, or is
    read by code that is not known here: a reader's own dataset may change its images in any way.
    """
    known = type(dataset).__module__.partition(".")[0] in ("dino_lib", "torch", "torchvision")
    if known and hasattr(dataset, "dataset"):  # a part of another one
        inner, part = _content(dataset.dataset), getattr(dataset, "indices", None)
        return inner and (inner, len(dataset), None if part is None else [int(i) for i in part])
    root = getattr(dataset, "root", None)
    if not known or root is None or not Path(root).is_dir():
        return None
    files = [Path(folder, name) for folder, _, names in os.walk(root, followlinks=True) for name in names
             if STORES not in Path(folder).parts]
    # torchvision's datasets describe themselves, with the split, in their repr; an object's address says nothing
    about = [type(dataset).__name__, len(dataset)] + [repr(dataset)] * isinstance(dataset, tv.VisionDataset)
    return about, sorted((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files)


def _decode(dataset, size, channels, progress, num_workers, file):
    n, place = len(dataset), "memory" if file is None else f"disk in {file.parent.parent}"
    safe, need = SkipUnreadable(dataset, channels), n * channels * size * size
    free = _available_memory() if file is None else shutil.disk_usage(file.parent).free
    print(f"decoding {n} images at {size} px: {need / 2**20:.1f} MiB of {place}")
    if need > free:
        raise (MemoryError if file is None else OSError)(
            f"{n} images at {size} px need {need / 2**20:.0f} MiB of {place}, {free / 2**20:.0f} MiB are free: "
            "take a smaller size, fewer images, or read them from disk while training")
    shape = (n, channels, size, size)
    images = (torch.empty(shape, dtype=torch.uint8) if file is None else
              torch.from_numpy(np.lib.format.open_memmap(file, "w+", np.uint8, shape)))
    labels = []
    # a generator of its own, or the loader would advance the global one
    loader = DataLoader(safe, batch_size=32, num_workers=num_workers, collate_fn=functools.partial(_squares, size),
                        generator=torch.Generator())
    orders = torch.arange(n).split(loader.batch_size)
    hidden = None if progress else True  # None: hidden in a file, shown on a screen
    for asked, batch in zip(orders, tqdm(loader, desc="decoding", leave=False, disable=hidden), strict=True):
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
    """Bytes: what Linux calls available, within a container's limit; elsewhere the machine's whole memory; infinite
    where nothing tells."""
    if not Path("/proc/meminfo").exists():
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else math.inf
    free = [1024 * int(re.search(r"MemAvailable:\s*(\d+)", Path("/proc/meminfo").read_text())[1])]
    for limit, used, stat in CGROUP_MEMORY:
        with contextlib.suppress(OSError, ValueError):  # not there, or "max": no limit
            cached = re.search(r"^(?:total_)?inactive_file (\d+)", (CGROUPS / stat).read_text(), re.M)
            free.append(int((CGROUPS / limit).read_text()) - int((CGROUPS / used).read_text())
                        + int(cached[1] if cached else 0))
    return max(0, min(free))
