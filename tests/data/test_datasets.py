"""Datasets by name: the three roles of each, and what is said where one cannot be had."""

import hashlib
import os
import pickle
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from made import noise
from PIL import Image

from dino_lib.data import datasets
from dino_lib.data.datasets import open_dataset
from dino_lib.data.items import Pictures, SkipUnreadable
from dino_lib.data.shapes import Shapes
from dino_lib.data.store import decode_store


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise URLError("no network")

    for module in (tv.stl10, tv.cifar, tv.caltech, tv.imagenette):
        monkeypatch.setattr(module, "download_and_extract_archive", refuse)


@pytest.mark.usefixtures("no_network")
def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def write(name, content):
        raw = pickle.dumps(content)
        (folder / name).write_bytes(raw)
        return [name, md5(raw)]

    rows = np.arange(3, dtype=np.uint8)[:, None].repeat(3072, 1)
    train = [
        write(f"data_batch_{k}", {"data": rows + 10 * k, "labels": [k, 0, 9]}) for k in range(1, 6)
    ]
    test = write("test_batch", {"data": rows[:2] + 100, "labels": [4, 5]})
    meta = write("batches.meta", {"label_names": [f"class {k}" for k in range(10)]})
    monkeypatch.setattr(tv.CIFAR10, "train_list", train)
    monkeypatch.setattr(tv.CIFAR10, "test_list", [test])
    monkeypatch.setattr(
        tv.CIFAR10, "meta", {"filename": meta[0], "md5": meta[1], "key": "label_names"}
    )

    for split, n in [("train", 15), ("gallery", 15), ("test", 2)]:
        assert len(open_dataset("cifar10", tmp_path, split)) == n
    train, test = (
        open_dataset("cifar10", tmp_path, split, channels=1) for split in ("train", "test")
    )
    image, label = train[3]
    assert (image.mode, image.size, image.getpixel((0, 0)), label) == ("L", (32, 32), 20, 2)
    assert (test[1][0].getpixel((5, 5)), test[1][1]) == (101, 5)
    assert train.classes[4] == "class 4"


@pytest.mark.usefixtures("no_network")
def test_stl10(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()

    def write(name, values):
        raw = np.asarray(values, np.uint8).tobytes()
        (folder / name).write_bytes(raw)
        return [name, md5(raw)]

    def pixels(*levels):
        return np.array(levels)[:, None].repeat(3 * 96 * 96, 1)

    monkeypatch.setattr(
        tv.STL10,
        "train_list",
        [
            write("train_X.bin", pixels(10, 20)),
            write("train_y.bin", [1, 10]),
            write("unlabeled_X.bin", pixels(1, 2, 3)),
        ],
    )
    monkeypatch.setattr(
        tv.STL10, "test_list", [write("test_X.bin", pixels(50)), write("test_y.bin", [3])]
    )
    expected = {
        "train": [(1, -1), (2, -1), (3, -1)],
        "gallery": [(10, 0), (20, 9)],
        "test": [(50, 2)],
    }
    for split, items in expected.items():
        dataset = open_dataset("stl10", tmp_path, split)
        got = [dataset[i] for i in range(len(dataset))]
        assert [(image.getpixel((0, 0))[0], label) for image, label in got] == items
        assert got[0][0].size == (96, 96)


@pytest.mark.usefixtures("no_network")
def test_caltech101(tmp_path):
    counts = {"BACKGROUND_Google": 2, "Faces": 4, "Faces_easy": 7, "accordion": 5, "yin_yang": 3}
    for name, n in counts.items():
        folder = tmp_path / "caltech101" / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for i in range(1, n + 1):
            Image.new("L" if i == 1 else "RGB", (30, 20)).save(folder / f"image_{i:04d}.jpg")
    splits = {
        split: open_dataset("caltech101", tmp_path, split) for split in ("train", "gallery", "test")
    }
    assert splits["train"].classes == ["Faces", "Faces_easy", "accordion", "yin_yang"]
    labels = {
        split: [dataset[i][1] for i in range(len(dataset))] for split, dataset in splits.items()
    }
    # the rest in order: Faces 0-3, accordion 4-8, yin_yang 9-11; held back: 0, 5, 10
    assert labels["test"] == [0, 2, 3]
    assert labels["train"] == labels["gallery"] == [0] * 3 + [2] * 4 + [3] * 2
    files = [
        path.relative_to(tmp_path / "caltech101" / "101_ObjectCategories").as_posix()
        for split in ("train", "test")
        for path in splits[split].paths
    ]
    assert sorted(files) == [
        f"{name}/image_{i:04d}.jpg"
        for name, n in counts.items()
        if name in ("Faces", "accordion", "yin_yang")
        for i in range(1, n + 1)
    ]
    assert splits["test"][0][0].mode == "RGB"

    broken = tmp_path / "caltech101" / "101_ObjectCategories" / "Faces" / "image_0002.jpg"
    broken.write_bytes(broken.read_bytes()[:-20])
    safe = SkipUnreadable(splits["train"])
    assert safe[0][1:] == (0, 1) and str(broken) in safe.report()


@pytest.mark.usefixtures("no_network")
def test_imagenette(tmp_path):
    for split, n in [("train", 3), ("val", 2)]:
        for wnid in ("n02979186", "n01440764"):
            folder = tmp_path / "imagenette2-160" / split / wnid
            folder.mkdir(parents=True)
            for i in range(n):
                noise().save(folder / f"{i}.JPEG")
    train, gallery, test = (
        open_dataset("imagenette", tmp_path, split, channels=1)
        for split in ("train", "gallery", "test")
    )
    assert (len(train), len(gallery), len(test)) == (6, 6, 4)
    assert train.classes == ["tench", "cassette player"]
    assert [test[i][1] for i in range(4)] == [0, 0, 1, 1] and test[0][0].mode == "L"
    broken = tmp_path / "imagenette2-160" / "val" / "n01440764" / "0.JPEG"
    broken.write_bytes(broken.read_bytes()[:-20])
    safe = SkipUnreadable(test)
    assert safe[0][2] == 1 and str(broken) in safe.report()


def test_shapes(monkeypatch):
    assert datasets._shapes(10, seed=3) is datasets._shapes(10, seed=3)  # drawn once
    # a hundredth of the images: drawing all takes seconds
    monkeypatch.setattr(datasets, "_shapes", lambda n, **options: Shapes(n // 100, **options))
    train, gallery, test = (
        open_dataset("shapes", None, split) for split in ("train", "gallery", "test")
    )
    assert torch.equal(train.images, Shapes(40, seed=0).images) and torch.equal(
        gallery.images, train.images
    )
    assert torch.equal(test.images, Shapes(10, seed=1).images)
    assert open_dataset("shapes", None, "test", channels=1)[0][0].mode == "L"


@pytest.mark.parametrize(
    "name, page, inside",
    [
        ("stl10", "https://cs.stanford.edu/~acoates/stl10/", "stl10_binary"),
        ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar-10-batches-py"),
        (
            "caltech101",
            "https://data.caltech.edu/records/mzrjq-6wc02",
            "caltech101/101_ObjectCategories",
        ),
        ("imagenette", "https://github.com/fastai/imagenette", "imagenette2-160/train"),
    ],
)
@pytest.mark.parametrize("download", [True, False])
@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_what_to_do_by_hand(tmp_path, name, page, inside, download):
    with pytest.raises(RuntimeError) as error:
        open_dataset(name, tmp_path, "train", download=download)
    for part in (
        name,
        page,
        str(tmp_path / inside),
        "no network" if download else "download=False",
    ):
        assert part in str(error.value)
    assert ("no network" in str(error.value)) == download


def test_what_is_there_is_opened_without_a_download(tmp_path, monkeypatch):
    def older(
        root, split, size, *, download
    ):  # older torchvisions refuse to download over a folder
        if download:
            raise RuntimeError("The directory already exists")
        return SimpleNamespace(_samples=[(tmp_path / "a.png", 3)], classes=[("tench", "fish")])

    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(tv, "Imagenette", older)
    assert open_dataset("imagenette", tmp_path, "train")[0][1] == 3


def test_a_wrong_checksum_is_a_failed_download(tmp_path, monkeypatch):
    def truncated(url, path, *args):
        with open(path, "wb") as file:
            file.write(b"half of it")

    monkeypatch.setattr(tv.utils, "_get_redirect_url", lambda url, max_hops: url)
    monkeypatch.setattr(tv.utils, "_urlretrieve", truncated)
    with pytest.raises(RuntimeError, match=r"corrupted.*get cifar-10-python\.tar\.gz from"):
        open_dataset("cifar10", tmp_path, "test")


def test_unknown_names_and_splits(tmp_path):
    with pytest.raises(
        ValueError, match=r"'cifar11'.*shapes, stl10, cifar10, caltech101, imagenette.*the path of"
    ):
        open_dataset("cifar11", tmp_path, "train")
    with pytest.raises(ValueError, match="split='val' must be"):
        open_dataset("shapes", tmp_path, "val")
    with pytest.raises(ValueError, match="channels=2"):
        open_dataset("shapes", tmp_path, "test", channels=2)


@pytest.mark.skipif(
    "DINO_DATA" not in os.environ, reason="DINO_DATA names no folder with caltech101"
)
def test_the_real_photographs():
    train, gallery, test = (
        open_dataset("caltech101", os.environ["DINO_DATA"], split, download=False)
        for split in ("train", "gallery", "test")
    )
    # 8,242 without Faces_easy; a copy with fewer is split alike
    n = len(train) + len(test)
    assert len(train.classes) == 101 and len(gallery) == len(train) and n in (7214, 8242)
    assert len(test) == pytest.approx(n / 5, abs=1)
    easy = train.classes.index("Faces_easy")
    assert {*test.labels} == {*train.labels} == {*range(101)} - {easy}
    assert not {*test.paths} & {*train.paths}
    images, labels, skipped = decode_store(Pictures(test, range(0, len(test), 40)), 32)
    assert len(images) == len(range(0, len(test), 40)) and skipped == [] and labels.min() >= 0
