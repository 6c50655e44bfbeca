"""A dataset decoded once: squares, labels, what is left out, and the file that is kept."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from made import Items, close, noise, photo_folder
from PIL import Image

from dino_lib.data import store
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.items import InMemory, Pictures
from dino_lib.data.shapes import Shapes
from dino_lib.data.store import decode_store


@pytest.mark.parametrize("channels", [1, 3])
def test_store_leaves_out_the_broken_and_keeps_labels_aligned(broken_folder, channels, capsys):
    class Numbered(FolderOfImages):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], i

    state = torch.get_rng_state()
    images, labels, skipped = decode_store(Numbered(broken_folder), 16, channels)
    assert images.shape == (9, channels, 16, 16) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert torch.equal(images, (20 * labels)[:, None, None, None].expand_as(images).byte())
    assert [index for index, _ in skipped] == [3, 4, 11] and "truncated" in skipped[1][1]
    assert torch.equal(state, torch.get_rng_state())
    out, err = capsys.readouterr()
    assert "12 images at 16 px: 0.0 MiB" in out and err == ""


def test_store_over_several_batches(capsys):
    items = [(Image.new("L", (8, 8), i), i) for i in range(70)]
    images, labels, skipped = decode_store(Items(*items[:40], OSError("gone"), *items[41:]), 128)
    assert labels.tolist() == [*range(40), *range(41, 70)] and len(skipped) == 1
    assert torch.equal(images[:, 0, 5, 5], labels.byte())
    assert "3.3 MiB" in capsys.readouterr().out  # 70 * 3 * 128 * 128


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (10, 3)])
def test_store_resizes_the_shorter_side_and_crops_the_centre(size):
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    stored = decode_store(Items((image, 0)), 20)[0][0]
    scale = 20 / min(size)
    resized = image.resize(
        (round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC
    )
    left, top = (resized.width - 20) // 2, (resized.height - 20) // 2
    expected = np.asarray(resized.crop((left, top, left + 20, top + 20))).transpose(2, 0, 1)
    assert close(stored.numpy().astype(int), expected.astype(int), 6)


def test_store_is_antialiased():
    stripes = Image.fromarray((np.arange(64) % 2 * 255).astype(np.uint8)[None].repeat(64, 0))
    assert close(decode_store(Items((stripes, 0)), 16, 1)[0][:, :, :, 2:-2].int().numpy(), 127, 6)


def test_a_very_long_image_is_stored_without_its_length():
    image = Image.new("L", (30_000, 2), 50)  # 112 times enlarged as a whole it would take 750 MB
    assert (decode_store(Items((image, 0)), 224, 1)[0] == 50).all()


def test_images_of_the_right_size_are_used_as_they_are(capsys):
    shapes = Shapes(20, size=16)
    images, labels, skipped = decode_store(shapes, 16)
    assert images is shapes.images and labels is shapes.labels and skipped == []
    assert capsys.readouterr().out == ""
    assert decode_store(shapes, 8)[0].shape == (20, 3, 8, 8)
    assert decode_store(shapes, 16, channels=1)[0].shape == (20, 1, 16, 16)


def test_a_store_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(store, "available_memory", lambda: 2**20)
    image = (noise(), 0)
    assert len(decode_store(Items(*[image] * 6), 224)[0]) == 6
    with pytest.raises(
        MemoryError, match="8 images at 224 px need 1 MiB of memory, 1 MiB are free"
    ):
        decode_store(Items(*[image] * 8), 224)


def test_available_memory_is_that_of_a_machine():
    assert (
        2**26 < store.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    )


def test_available_memory_honours_a_containers_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "CGROUP", tmp_path)
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300\n")
    (tmp_path / "memory.max").write_text("2000\n")
    assert store.available_memory() == 1300
    (tmp_path / "memory.max").write_text("max\n")
    assert store.available_memory() > 2**26


def test_a_kept_store_is_read_again_until_a_file_changes(tmp_path, capsys):
    folder, cache = photo_folder(tmp_path / "photos"), tmp_path / "stores"
    plain = decode_store(Pictures(FolderOfImages(folder)), 16)

    def decoded(size=16, indices=None):
        capsys.readouterr()
        store = decode_store(Pictures(FolderOfImages(folder), indices), size, cache=cache)
        return store, "decoding" in capsys.readouterr().out

    for first in (True, False):
        store, built = decoded()
        assert built is first and store[2] == plain[2] and len(store[2]) == 1
        assert torch.equal(store[0], plain[0]) and torch.equal(store[1], plain[1])
    assert decoded(size=8)[1] and decoded(indices=[0, 1])[1] and not decoded()[1]
    Image.new("RGB", (20, 24), "white").save(folder / "0.png")
    os.utime(folder / "0.png", ns=(1, 1))
    store, built = decoded()
    assert built and (store[0][0] == 255).all()


def test_a_store_in_memory_has_no_file(tmp_path):
    assert len(decode_store(Items((noise(), 0)), 8, cache=tmp_path)[0]) == 1
    assert not list(tmp_path.iterdir())


def decode_and_die(folder, cache, how):
    """What a process does that ends at the sixth file."""
    read = FolderOfImages.__getitem__

    def dies(self, i):
        if i == 5:
            raise KeyboardInterrupt if how == "ctrl-c" else os.kill(os.getpid(), signal.SIGKILL)
        return read(self, i)

    FolderOfImages.__getitem__ = dies
    decode_store(FolderOfImages(folder), 16, cache=cache)


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_an_interrupted_store_is_not_taken_for_whole(tmp_path, how, capsys):
    folder, cache = photo_folder(tmp_path / "photos"), tmp_path / "stores"
    # forked where that works: a process that is spawned imports all anew
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    process = context.Process(target=decode_and_die, args=(folder, cache, how))
    process.start()
    process.join()
    assert process.exitcode
    assert len(list(cache.iterdir())) == (how == "kill")
    store = decode_store(FolderOfImages(folder), 16, cache=cache)
    assert "decoding" in capsys.readouterr().out and len(store[0]) == 5
    decode_store(FolderOfImages(folder), 16, cache=cache)
    assert "decoding" not in capsys.readouterr().out


def decoded_in_memory(cache, folder, capsys, words):
    capsys.readouterr()
    images = decode_store(FolderOfImages(folder), 16, cache=cache)[0]
    said = capsys.readouterr().out
    assert words in said and "MiB of memory" in said
    return torch.equal(images, decode_store(FolderOfImages(folder), 16)[0])


def test_a_full_disk_is_no_hindrance(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    folder, cache = photo_folder(tmp_path / "photos"), tmp_path / "stores"
    assert decoded_in_memory(cache, folder, capsys, "6 images at 16 px need 0 MiB of disk")
    assert not list(cache.iterdir())
    monkeypatch.setattr(store, "available_memory", lambda: 100)
    with pytest.raises(MemoryError, match="6 images at 16 px need 0 MiB of memory"):
        decode_store(FolderOfImages(folder), 16, cache=cache)


def test_a_folder_that_cannot_be_written_is_no_hindrance(tmp_path, capsys, monkeypatch):
    folder = photo_folder(tmp_path / "photos")
    (tmp_path / "file").write_text("not a folder")
    assert decoded_in_memory(tmp_path / "file" / "stores", folder, capsys, "nothing can be kept in")
    (tmp_path / "stores").mkdir()

    def refuse(**options):
        raise PermissionError(13, "Read-only file system")

    monkeypatch.setattr(store.tempfile, "mkdtemp", refuse)
    assert decoded_in_memory(tmp_path / "stores", folder, capsys, "Read-only file system")


# --- a kept store belongs to its pixels alone ---


def level(dataset, cache):
    """The grey level of the first image in a store of this dataset."""
    images = decode_store(dataset, 8, cache=cache)[0]
    return images[0].float().mean().item()


@pytest.fixture
def cats_and_dogs(tmp_path):
    """Two images of each class: cats of grey level 40, dogs of 200."""
    for name, grey in (("cat", 40), ("dog", 200)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (9, 9), (grey,) * 3).save(tmp_path / "photos" / name / f"{i}.png")
    return tmp_path / "photos"


def test_a_dataset_that_is_cut_is_another(cats_and_dogs, tmp_path):
    cache = tmp_path / "stores"
    folder = FolderOfImages(cats_and_dogs)
    assert level(folder, cache) == 40
    folder.paths = folder.paths[2:]
    folder.labels = folder.labels[2:]
    assert level(folder, cache) == 200
    assert level(Pictures(FolderOfImages(cats_and_dogs), [2, 3]), cache) == 200


def test_torchvisions_datasets_are_never_mixed_up(cats_and_dogs, tmp_path):
    cache = tmp_path / "stores"
    dogs = tv.ImageFolder(cats_and_dogs)
    dogs.samples = [pair for pair in dogs.samples if pair[1] == 1]
    second = tv.ImageFolder(
        cats_and_dogs, is_valid_file=lambda path: "dog" in path, allow_empty=True
    )
    inverted = tv.ImageFolder(
        cats_and_dogs, loader=lambda path: Image.new("RGB", (9, 9), (7, 7, 7))
    )
    transformed = tv.ImageFolder(cats_and_dogs, lambda image: image.point(lambda x: x + 1))
    assert level(tv.ImageFolder(cats_and_dogs), cache) == 40
    found = [level(dataset, cache) for dataset in (dogs, second, inverted, transformed)]
    assert found == [200, 200, 7, 41]


def test_arrays_that_are_cut_are_others(tmp_path):
    class Arrays(tv.VisionDataset):
        def __init__(self):
            super().__init__(tmp_path)
            self.data = np.full((4, 9, 9, 3), [[[[40]]], [[[40]]], [[[200]]], [[[200]]]], np.uint8)

        def __len__(self):
            return 2

        def __getitem__(self, i):
            return Image.fromarray(self.data[i]), 0

    whole, cut = Arrays(), Arrays()
    cut.data = cut.data[2:]
    assert [level(dataset, tmp_path / "stores") for dataset in (whole, cut)] == [40, 200]


def test_roots_under_a_folder_that_is_named_like_the_stores(tmp_path):
    for name, grey in (("one", 40), ("two", 200)):
        root = tmp_path / "stores" / name
        root.mkdir(parents=True)
        Image.new("RGB", (9, 9), (grey,) * 3).save(root / "a.png")
        os.utime(root / "a.png", ns=(1, 1))
    found = [
        level(FolderOfImages(tmp_path / "stores" / name), tmp_path / "cache")
        for name in ("one", "two")
    ]
    assert found == [40, 200]


def test_a_subclass_that_reads_otherwise_is_not_kept(cats_and_dogs, tmp_path):
    class Inverted(FolderOfImages):
        def __getitem__(self, i):
            image, label = super().__getitem__(i)
            return image.point(lambda x: 255 - x), label

    cache = tmp_path / "stores"
    found = [level(kind(cats_and_dogs), cache) for kind in (FolderOfImages, Inverted)]
    assert found == [40, 215]
    assert level(Pictures(Inverted(cats_and_dogs)), cache) == 215


def test_labels_and_channels_belong_to_the_store(cats_and_dogs, tmp_path):
    cache = tmp_path / "stores"
    folder = FolderOfImages(cats_and_dogs)
    assert decode_store(folder, 8, cache=cache)[1].tolist() == [0, 0, 1, 1]
    folder.labels = [5, 6, 7, 8]
    assert decode_store(folder, 8, cache=cache)[1].tolist() == [5, 6, 7, 8]
    Image.new("RGB", (9, 9), (255, 0, 0)).save(cats_and_dogs / "cat" / "0.png")
    of_grey = [
        decode_store(
            Pictures(Pictures(FolderOfImages(cats_and_dogs), channels=channels)), 8, cache=cache
        )[0][0, :, 4, 4].tolist()
        for channels in (3, 1)
    ]
    assert of_grey == [[255, 0, 0], [76, 76, 76]]


def test_another_version_of_the_reader_decodes_anew(cats_and_dogs, tmp_path, monkeypatch, capsys):
    cache = tmp_path / "stores"
    level(FolderOfImages(cats_and_dogs), cache)
    for what, name in ((store, "FORMAT"), (store.PIL, "__version__")):
        capsys.readouterr()
        level(FolderOfImages(cats_and_dogs), cache)
        assert "decoding" not in capsys.readouterr().out
        monkeypatch.setattr(what, name, "another")
        level(FolderOfImages(cats_and_dogs), cache)
        assert "decoding" in capsys.readouterr().out


def test_nothing_to_store():
    with pytest.raises(RuntimeError, match="none of the 1 images could be read"):
        decode_store(Items(OSError("no")), 8)
    with pytest.raises(ValueError, match="no images"):
        decode_store([], 8)
    with pytest.raises(ValueError, match="size=0"):
        decode_store([noise()], 0)


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError()])
def test_a_picture_that_the_system_did_not_give_is_asked_for_again(
    cats_and_dogs, tmp_path, monkeypatch, error, capsys
):
    folder, cache = FolderOfImages(cats_and_dogs), tmp_path / "stores"
    real, asked = Image.open, []

    def fails_at_first(*args, **options):
        asked.append(args)
        if len(asked) <= 2:  # for the file, and once more for the memory
            raise error
        return real(*args, **options)

    monkeypatch.setattr(Image, "open", fails_at_first)
    images, _, skipped = decode_store(folder, 8, cache=cache)
    assert len(images) == len(folder) - 1 and len(skipped) == 1
    assert "nothing can be kept" in capsys.readouterr().out and not list(cache.iterdir())
    assert len(decode_store(folder, 8, cache=cache)[0]) == len(folder)


def test_what_a_dataset_makes_of_its_images_is_what_is_stored():
    class Darker:
        images, classes = torch.full((4, 3, 8, 8), 200, dtype=torch.uint8), ["a"]

        def __len__(self):
            return 4

        def __getitem__(self, i):
            return self.images[i] // 10, 0

    class DarkerStill(InMemory):
        __getitem__ = Darker.__getitem__

    ready = DarkerStill(Darker.images, torch.zeros(4, dtype=torch.int64), ["a"])
    for dataset in (Darker(), Pictures(Darker()), ready, Pictures(ready)):
        images, labels, _ = decode_store(dataset, 8)
        assert images.unique().tolist() == [20] and labels.tolist() == [0] * 4
    assert Pictures(Shapes(4), [1]).images.shape == (1, 3, 48, 48)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux lists what is open")
def test_a_store_is_closed_before_it_is_named(cats_and_dogs, tmp_path, monkeypatch):
    real, still_open = Path.rename, []

    def watched(self, target):
        still_open.append(str(self) in Path("/proc/self/maps").read_text())
        return real(self, target)

    monkeypatch.setattr(Path, "rename", watched)  # Windows refuses to rename what is open
    decode_store(FolderOfImages(cats_and_dogs), 8, cache=tmp_path / "stores")
    assert still_open == [False]


@pytest.mark.parametrize(
    ("name", "left"), [("rest.json", 0), ("images.npy", 0.5), ("images.npy", 0)]
)
def test_a_damaged_store_is_named_and_made_anew(cats_and_dogs, tmp_path, name, left, capsys):
    folder, cache = FolderOfImages(cats_and_dogs), tmp_path / "stores"
    first = decode_store(folder, 8, cache=cache)[0].clone()
    [kept] = cache.iterdir()
    os.truncate(kept / name, int(left * (kept / name).stat().st_size))
    capsys.readouterr()
    for said in (True, False):
        assert torch.equal(decode_store(folder, 8, cache=cache)[0], first)
        assert (f"{kept} is damaged" in capsys.readouterr().out) is said
