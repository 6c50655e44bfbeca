"""Datasets by name, and any folder of images by its path."""

import functools
import os
from pathlib import Path

import torch
import torchvision.datasets as tv
from torch.utils.data import Dataset

from dino_lib.data.folders import Files, every_fifth, open_folder
from dino_lib.data.images import InputError, check_channels
from dino_lib.data.items import InMemory, Pictures
from dino_lib.data.say import say
from dino_lib.data.shapes import Shapes

BY_HAND = {  # name: (archive, its page, what lies under the root once it is unpacked)
    "stl10": ("stl10_binary.tar.gz", "https://cs.stanford.edu/~acoates/stl10/",
              "stl10_binary/train_X.bin"),
    "cifar10": ("cifar-10-python.tar.gz", "https://www.cs.toronto.edu/~kriz/cifar.html",
                "cifar-10-batches-py/data_batch_1"),
    "caltech101": ("caltech-101.zip (and unpack the 101_ObjectCategories.tar.gz in it)",
                   "https://data.caltech.edu/records/mzrjq-6wc02",
                   "caltech101/101_ObjectCategories/accordion"),
    "imagenette": ("imagenette2-160.tgz", "https://github.com/fastai/imagenette",
                   "imagenette2-160/train"),
}


def open_dataset(name_or_path: str | os.PathLike, root: str | os.PathLike | None, split: str,
                 channels: int = 3, download: bool = True) -> Dataset | None:
    """One role of a dataset: "train" (what DINO trains on), "gallery" (labelled, for k-NN) or
    "test" (the queries, never trained on).

    Items are (PIL image, label), the image with `channels` channels, the label -1 where
    there is none.

    - "shapes": the embedded one, 4000 images of seed 0; test: 1000 of seed 1.
    - "stl10": train is its unlabelled part, gallery its labelled training set.
    - "cifar10", "imagenette" (160 px; test is its "val"): gallery is train.
    - "caltech101": without Faces_easy (crops of Faces); of the rest, in torchvision's order,
      every fifth image is test. Labels are torchvision's: Faces_easy keeps its number.
    - the path of a folder: FolderOfImages. Folders that look like a split are one, as in
      ImageNet's layout; test is val, or else test. Without a split every fifth image with a
      label is test. Without labels a line says why there is no evaluation: gallery and test
      are None, train is everything.

    torchvision's datasets lie under `root` and are downloaded if they do not. Raises
    InputError with what to fetch by hand where that fails, ValueError on an unknown name.
    """
    check_channels(channels)
    if split not in ("train", "gallery", "test"):
        raise ValueError(f'split={split!r} must be "train", "gallery" or "test"')
    if name_or_path in ("shapes", *OPENERS) and os.path.isdir(name_or_path) and split == "train":
        say(f"{name_or_path} is the dataset of that name; the folder here is "
            f"{os.path.join(os.curdir, name_or_path)}")
    if name_or_path == "shapes":
        dataset = _shapes(1000, seed=1) if split == "test" else _shapes(4000, seed=0)
    elif name_or_path in OPENERS:
        where = Path(os.path.expanduser(root))
        dataset = _downloaded(name_or_path, where, split, download)
    elif os.path.exists(os.path.expanduser(name_or_path)):
        dataset = open_folder(name_or_path, split)
    else:
        raise ValueError(
            f"no dataset or folder is called {str(name_or_path)!r}: the names are shapes, "
            f"{', '.join(OPENERS)}; or give the path of a folder of images")
    if dataset is None or channels == 3:
        return dataset
    return Pictures(dataset, channels=channels)


_shapes = functools.lru_cache(maxsize=2)(Shapes)  # a run opens it to train on and as its gallery


def _open_stl10(root: Path, split: str, download: bool) -> InMemory:
    part = {"train": "unlabeled", "gallery": "train", "test": "test"}[split]
    dataset = tv.STL10(root, part, download=download)
    labels = torch.as_tensor(dataset.labels).long()
    classes = getattr(dataset, "classes", None)  # in a file of its own, which may be missing
    return InMemory(torch.as_tensor(dataset.data), labels, classes)


def _open_cifar10(root: Path, split: str, download: bool) -> InMemory:
    dataset = tv.CIFAR10(root, train=split != "test", download=download)
    images = torch.as_tensor(dataset.data).permute(0, 3, 1, 2).contiguous()
    return InMemory(images, torch.as_tensor(dataset.targets), dataset.classes)


def _open_caltech101(root: Path, split: str, download: bool) -> Files:
    dataset = tv.Caltech101(root, download=download)
    names = dataset.categories
    kept = [i for i, label in enumerate(dataset.y) if names[label] != "Faces_easy"]
    train, test = every_fifth(kept)
    chosen = test if split == "test" else train
    labels = [dataset.y[i] for i in chosen]
    folder = Path(dataset.root, "101_ObjectCategories")
    paths = [folder / names[dataset.y[i]] / f"image_{dataset.index[i]:04d}.jpg" for i in chosen]
    return Files(paths, labels, names)


def _open_imagenette(root: Path, split: str, download: bool) -> Files:
    dataset = tv.Imagenette(root, "val" if split == "test" else "train", "160px", download=download)
    paths = [Path(path) for path, _ in dataset._samples]
    labels = [label for _, label in dataset._samples]
    return Files(paths, labels, [synonyms[0] for synonyms in dataset.classes])


OPENERS = {"stl10": _open_stl10, "cifar10": _open_cifar10,
           "caltech101": _open_caltech101, "imagenette": _open_imagenette}


def _downloaded(name: str, root: Path, split: str, download: bool) -> Dataset:
    """A dataset of torchvision's, downloaded first if it is not there and that is allowed."""
    why = None
    # what is there is never fetched again, whatever torchvision's version
    for fetch in (False, True) if download else (False,):
        try:
            return OPENERS[name](root, split, fetch)
        except Exception as error:  # a network, an archive and a disk fail in many ways
            why = error
    archive, page, inside = BY_HAND[name]
    what = "could not be downloaded" if download else "is not there, and download=False"
    raise InputError(
        f"{name} {what} ({why}). By hand: get {archive} from {page} and unpack it so that "
        f"{root / inside} exists; if something incomplete lies there, remove it first.") from why
