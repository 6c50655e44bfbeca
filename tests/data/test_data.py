"""Photographs as they are: every kind of broken file, every dataset's three roles, and the store in memory."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.datasets as tv
from PIL import Image, ImageFile
from torch.utils.data import DataLoader

from dino_lib.data import datasets, images, store
from dino_lib.data.datasets import open_dataset
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import InputError, UnreadableImage, read_image, to_channels
from dino_lib.data.items import Pictures, SkipUnreadable, report_skipped
from dino_lib.data.shapes import Shapes
from dino_lib.data.store import decode_store

ORIENTATION = 0x0112  # the EXIF tag


def noise(height=24, width=32, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def halves(size=(32, 16)):
    """Left half red, right half blue."""
    image = Image.new("RGB", size, "red")
    image.paste("blue", (size[0] // 2, 0, *size))
    return image


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def close(pixel, expected, tolerance=4):
    return np.abs(np.subtract(pixel, expected)).max() <= tolerance


@pytest.fixture
def broken_folder(tmp_path):
    """Twelve files with images' names: 3, 4 and 11 are broken, the others grey levels of 20 times their number."""
    for i in range(12):
        Image.new("RGB", (20, 20), (20 * i,) * 3).save(tmp_path / f"{i:02d}.png")
    whole = encoded(noise(), "JPEG")
    (tmp_path / "03.png").write_bytes(b"")
    (tmp_path / "04.png").write_bytes(whole[:-100])
    (tmp_path / "11.png").write_text("this is a letter")
    return tmp_path


# --- one image ---


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "LA", "RGBA", "I;16", "I", "F"])
@pytest.mark.parametrize("channels, expected", [(1, "L"), (3, "RGB")])
def test_every_mode_becomes_the_asked_one(mode, channels, expected):
    gray = mode.startswith(("I", "F"))
    image = Image.fromarray(np.full((4, 6), 9, np.float32)).convert(mode) if gray else Image.new(mode, (6, 4))
    converted = to_channels(image, channels)
    assert (converted.mode, converted.size) == (expected, (6, 4))


def test_what_is_rgb_already_stays_the_same():
    image = noise()
    converted = to_channels(image)
    assert converted.tobytes() == image.tobytes()
    assert to_channels(to_channels(image, 1), 3).getpixel((3, 3)) == (image.convert("L").getpixel((3, 3)),) * 3


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bits_are_scaled_not_clipped(tmp_path, kind):
    values = np.array([[0, 257, 300 * 257 // 3, 40000, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep", kind)
    got = np.asarray(read_image(tmp_path / "deep", 1))
    assert got.tolist() == [[0, 1, 100, 156, 255]]
    assert np.asarray(read_image(tmp_path / "deep"))[0, 3].tolist() == [156] * 3
    Image.fromarray(values[:, 1:4]).save(tmp_path / "dim", kind)  # a dim picture stays dim
    assert np.asarray(read_image(tmp_path / "dim", 1)).tolist() == [[1, 100, 156]]


def test_integers_and_floats_of_32_bits():
    def levels(values, dtype):
        return np.asarray(to_channels(Image.fromarray(np.array([values], dtype)), 1))[0].tolist()

    assert levels([0, 25700, 65535], np.int32) == [0, 100, 255]  # older PIL's mode for 16-bit files
    assert levels([-1000, 0, 1000], np.int32) == [0, 128, 255]
    assert levels([0, 100_000, 200_000], np.int32) == [0, 128, 255]
    assert levels([0.0, 0.2, 1.0], np.float32) == [0, 51, 255]
    assert levels([7.0, 7.0], np.float32) == [0, 0]
    with pytest.raises(UnreadableImage, match="infinite values or NaN"):
        levels([0.0, np.nan], np.float32)


def test_transparency_is_laid_on_white(tmp_path):
    rgba = Image.new("RGBA", (4, 1), (255, 0, 0, 255))
    rgba.putpixel((1, 0), (255, 0, 0, 0))
    rgba.putpixel((2, 0), (0, 0, 0, 51))
    assert [to_channels(rgba).getpixel((x, 0)) for x in range(3)] == [(255, 0, 0), (255, 255, 255), (204, 204, 204)]
    la = Image.new("LA", (1, 1), (0, 0))
    assert to_channels(la, 1).getpixel((0, 0)) == 255

    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "index.png", transparency=0)  # one index
    palette.save(tmp_path / "bytes.png", transparency=bytes([0, 255]))  # one opacity an index
    palette.save(tmp_path / "opaque.png")
    for name, first in [("index.png", (255, 255, 255)), ("bytes.png", (255, 255, 255)), ("opaque.png", (10, 20, 30))]:
        image = read_image(tmp_path / name)
        assert [image.getpixel((x, 0)) for x in range(2)] == [first, (200, 100, 50)], name

    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "key.png", transparency=(1, 2, 3))
    assert read_image(tmp_path / "key.png").getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_jpeg(tmp_path):
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "print.jpg", quality=95)
    assert close(read_image(tmp_path / "print.jpg").getpixel((8, 8)), (255, 0, 0))


@pytest.mark.parametrize("kind, quality", [("JPEG", {"quality": 95}), ("PNG", {}), ("TIFF", {})])
@pytest.mark.parametrize(
    "orientation, size, red, blue",
    [
        (1, (32, 16), (4, 8), (28, 8)),
        (2, (32, 16), (28, 8), (4, 8)),
        (3, (32, 16), (28, 8), (4, 8)),
        (6, (16, 32), (8, 4), (8, 28)),  # turned clockwise: what was left is on top
        (8, (16, 32), (8, 28), (8, 4)),
    ],
)
def test_camera_rotation_is_undone_once(tmp_path, kind, quality, orientation, size, red, blue):
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    halves().save(tmp_path / "turned", kind, exif=exif, **quality)
    image = read_image(tmp_path / "turned")
    assert image.size == size
    assert close(image.getpixel(red), (255, 0, 0), 12) and close(image.getpixel(blue), (0, 0, 255), 12)
    again = to_channels(image)
    assert again.size == size and again.tobytes() == image.tobytes()
    assert not image.info  # nothing is left for others to apply once more


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_cost_the_picture(tmp_path):
    halves().save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03")
    assert read_image(tmp_path / "a.jpg").size == (32, 16)


def test_exif_that_makes_pil_stumble_does_not_cost_the_picture(monkeypatch):
    def stumble(image):
        raise TypeError("bad tag")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", stumble)
    assert to_channels(halves()).tobytes() == halves().tobytes()


@pytest.mark.parametrize("kind, options", [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}),
                                           ("WEBP", {}), ("BMP", {})])
def test_a_file_cut_anywhere_is_unreadable_or_whole(kind, options):
    """Half grey pictures are never given silently; a missing end mark costs nothing."""
    whole = encoded(noise(), kind, **options)
    pixels = read_image(io.BytesIO(whole)).tobytes()
    refused = 0
    for length in range(0, len(whole), 7):
        try:
            assert read_image(io.BytesIO(whole[:length])).tobytes() == pixels
        except UnreadableImage:
            refused += 1
    assert refused >= len(whole) // 7 * 0.95


@pytest.mark.parametrize("content, reason", [
    (b"", "empty, or not an image"),
    (b"this is a letter", "empty, or not an image"),
    (encoded(noise(), "JPEG")[:-300], "truncated"),
    (encoded(noise(), "PNG").replace(b"IDAT", b"IDAX"), "noise.jpg"),
])
def test_unreadable_files_are_named_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "noise.jpg"
    path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as error:
        read_image(path)
    assert str(path) in str(error.value)
    with path.open("rb") as file, pytest.raises(UnreadableImage, match=r"noise\.jpg"):
        read_image(file)


def test_a_lazily_opened_broken_file_is_named_too(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(encoded(noise(), "JPEG")[:-300])
    with Image.open(path) as image, pytest.raises(UnreadableImage, match=r"cut\.jpg \(.*truncated"):
        to_channels(image)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    noise().save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 24 * 32 // 2 - 1)
    with pytest.raises(UnreadableImage, match=r"bomb\.png \(.*decompression bomb"):
        read_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("error", [IndexError("index out of range"), MemoryError(), OverflowError("too large")])
def test_whatever_a_decoder_raises_is_one_exception(tmp_path, monkeypatch, error):
    def load(self):
        raise error

    noise().save(tmp_path / "odd.png")
    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(UnreadableImage, match=r"odd\.png \(\w+"):
        read_image(tmp_path / "odd.png")


def test_wrong_arguments_are_not_unreadable_images(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "none.jpg")
    with pytest.raises(TypeError, match="expected a PIL image, got Tensor"):
        to_channels(torch.zeros(3, 4, 4))
    for call in (lambda: read_image(tmp_path / "none.jpg", 4), lambda: to_channels(noise(), 2),
                 lambda: SkipUnreadable([noise()], 2), lambda: FolderOfImages(tmp_path, 0)):
        with pytest.raises(ValueError, match="must be 3") as error:
            call()
        assert not isinstance(error.value, UnreadableImage)


# --- a folder ---


def save_all(root, *names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, 0, 0)).save(root / name, "PNG")


def test_a_flat_folder_has_sorted_images_without_labels(tmp_path):
    save_all(tmp_path, "b.PNG", "a.jpg", ".hidden.png", "c.Jpeg")
    for other in ["notes.txt", "labels.h5", "clip.mpg", "paper.pdf"]:
        (tmp_path / other).write_text("no image")
    folder = FolderOfImages(tmp_path, 1)
    assert [path.name for path in folder.paths] == ["a.jpg", "b.PNG", "c.Jpeg"]
    assert (len(folder), folder.labels, folder.classes) == (3, [-1, -1, -1], [])
    image, label = folder[0]
    assert (image.mode, label) == ("L", -1)


def test_first_level_folders_are_the_classes(tmp_path):
    save_all(tmp_path, "dog/x/2.png", "cat/1.png", "top.png", "dog/1.png", ".git/1.png", "ape/.thumbs/1.png",
             "cat/0.png", "empty.png/readme.png")
    (tmp_path / "empty.png" / "readme.png").unlink()
    folder = FolderOfImages(str(tmp_path))
    assert folder.classes == ["cat", "dog"]
    found = [(path.relative_to(tmp_path).as_posix(), label)
             for path, label in zip(folder.paths, folder.labels, strict=True)]
    assert found == [("cat/0.png", 0), ("cat/1.png", 0), ("dog/1.png", 1), ("dog/x/2.png", 1), ("top.png", -1)]
    assert folder[3][1] == 1 and folder[3][0].getpixel((0, 0)) == (0, 0, 0)
    assert folder[0][0].getpixel((0, 0)) == (6, 0, 0)


def test_linked_folders_count(tmp_path):
    save_all(tmp_path, "elsewhere/1.png", "photos/cat/1.png")
    (tmp_path / "photos" / "dog").symlink_to(tmp_path / "elsewhere")
    assert FolderOfImages(tmp_path / "photos").classes == ["cat", "dog"]


def test_one_class_alone_is_no_class(tmp_path):
    save_all(tmp_path, "photos/1.png", "photos/2.png")
    assert FolderOfImages(tmp_path).labels == [-1, -1]


def test_missing_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no folder of images at .*nowhere"):
        FolderOfImages(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(FileNotFoundError, match=r"no images in .* looked for \.jpg, \.png"):
        FolderOfImages(tmp_path)


# --- broken images in a dataset ---


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_size_and_the_report_names_the_files(broken_folder, workers):
    safe = SkipUnreadable(FolderOfImages(broken_folder))
    order = [4, 0, 3, 11, 5, 2, 9, 10]

    def collate(items):
        images, labels, used = zip(*items, strict=True)
        return [image.getpixel((0, 0))[0] // 20 for image in images], labels, torch.tensor(used)

    batches = list(DataLoader(safe, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate))
    assert [len(used) for _, _, used in batches] == [4, 4]
    used = [index for batch in batches for index in batch[2].tolist()]
    assert used == [5, 0, 5, 0, 5, 2, 9, 10]
    assert [gray for batch in batches for gray in batch[0]] == used
    for i, batch in enumerate(batches):
        safe.note(order[4 * i : 4 * i + 4], batch[2])
    assert sorted(safe.bad) == [3, 4, 11]
    report = safe.report()
    assert report.startswith("3 of 12 images could not be read and were skipped: ")
    assert report.index("03.png") < report.index("04.png")
    for name, reason in [("03.png", "empty"), ("04.png", "truncated"), ("11.png", "not an image")]:
        assert f"{broken_folder / name} (" in report and reason in report


def test_note_tells_the_bad_ones_between_asked_and_used(broken_folder):
    safe = SkipUnreadable(FolderOfImages(broken_folder))
    safe.note([0, 7], [0, 7])
    assert safe.bad == {} and safe.report() == "all 12 images could be read"
    safe.note(torch.tensor([11, 3, 1]), [0, 5, 2])
    assert sorted(safe.bad) == [1, 3, 4, 11]
    assert safe.bad[1] == "image 1 (readable when tried again)"
    assert "truncated" in safe.bad[4]
    safe.note([11], [1])  # around the end
    assert sorted(safe.bad) == [0, 1, 3, 4, 11]


def test_a_bad_image_is_decoded_once(broken_folder):
    class Counting(FolderOfImages):
        def __getitem__(self, i):
            asked.append(i)
            return super().__getitem__(i)

    asked = []
    safe = SkipUnreadable(Counting(broken_folder))
    assert safe[3][2] == safe[3][2] == 5
    assert asked == [3, 4, 5, 5]
    safe.note([3], [5])
    assert asked == [3, 4, 5, 5]
    assert safe[-1][2] == 0  # after the last the first
    with pytest.raises(IndexError):
        safe[12]


class Items:
    """A dataset whose items are values, or exceptions to raise."""

    def __init__(self, *items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


@pytest.mark.parametrize("item, label", [
    (noise(), -1), ((noise(), 7), 7), ((noise(), torch.tensor(7)), 7), ([noise(), np.int64(7), "more"], 7),
    ((noise(), None), -1), ((noise(), "cat"), -1), ((noise(), {"boxes": []}), -1), ((noise().convert("LA"), 2), 2),
])
def test_items_of_every_form(item, label):
    image, got, used = SkipUnreadable(Items(item), 1)[0]
    assert (image.mode, got, used) == ("L", label, 0)


@pytest.mark.parametrize("error", [
    OSError("broken pipe"), SyntaxError("broken PNG file"), ValueError("bad header"), EOFError("end"),
    Image.DecompressionBombError("too large"), Image.UnidentifiedImageError("what is this"), UnreadableImage("x (y)"),
    FileNotFoundError("gone.jpg"),
])
def test_what_decoders_raise_is_skipped(error):
    safe = SkipUnreadable(Items(error, noise()))
    assert safe[0][2] == 1
    assert str(error) in safe.bad[0]


def test_mistakes_in_the_code_are_not_skipped():
    with pytest.raises(InputError, match="item 0 of the dataset raised KeyError: 'path'"):
        SkipUnreadable(Items(KeyError("path"), noise()))[0]
    with pytest.raises(TypeError, match="expected a PIL image"):
        SkipUnreadable(Items((torch.zeros(3, 4, 4), 0), noise()))[0]


def test_nothing_readable_and_nothing_at_all():
    with pytest.raises(RuntimeError, match=r"none of the 2 images could be read; the first: image 0 \(no\)"):
        SkipUnreadable(Items(OSError("no"), OSError("neither")))[1]
    with pytest.raises(ValueError, match="no images"):
        SkipUnreadable([])


def test_a_long_report_is_cut():
    skipped = [(i, f"{i}.jpg (truncated)") for i in range(5)]
    assert report_skipped(skipped, 9, limit=2) == (
        "5 of 9 images could not be read and were skipped: 0.jpg (truncated), 1.jpg (truncated), and 3 more")
    assert report_skipped(skipped[:2], 9, limit=2).endswith("0.jpg (truncated), 1.jpg (truncated)")


# --- datasets by name ---


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
    train = [write(f"data_batch_{k}", {"data": rows + 10 * k, "labels": [k, 0, 9]}) for k in range(1, 6)]
    test = write("test_batch", {"data": rows[:2] + 100, "labels": [4, 5]})
    meta = write("batches.meta", {"label_names": [f"class {k}" for k in range(10)]})
    monkeypatch.setattr(tv.CIFAR10, "train_list", train)
    monkeypatch.setattr(tv.CIFAR10, "test_list", [test])
    monkeypatch.setattr(tv.CIFAR10, "meta", {"filename": meta[0], "md5": meta[1], "key": "label_names"})

    for split, n in [("train", 15), ("gallery", 15), ("test", 2)]:
        assert len(open_dataset("cifar10", tmp_path, split)) == n
    train, test = (open_dataset("cifar10", tmp_path, split, channels=1) for split in ("train", "test"))
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

    monkeypatch.setattr(tv.STL10, "train_list", [
        write("train_X.bin", pixels(10, 20)), write("train_y.bin", [1, 10]), write("unlabeled_X.bin", pixels(1, 2, 3))])
    monkeypatch.setattr(tv.STL10, "test_list", [write("test_X.bin", pixels(50)), write("test_y.bin", [3])])
    expected = {"train": [(1, -1), (2, -1), (3, -1)], "gallery": [(10, 0), (20, 9)], "test": [(50, 2)]}
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
    splits = {split: open_dataset("caltech101", tmp_path, split) for split in ("train", "gallery", "test")}
    assert splits["train"].classes == ["Faces", "Faces_easy", "accordion", "yin_yang"]
    labels = {split: [dataset[i][1] for i in range(len(dataset))] for split, dataset in splits.items()}
    # the rest in order: Faces 0-3, accordion 4-8, yin_yang 9-11; held back: 0, 5, 10
    assert labels["test"] == [0, 2, 3]
    assert labels["train"] == labels["gallery"] == [0] * 3 + [2] * 4 + [3] * 2
    assert sorted([*splits["train"].indices, *splits["test"].indices]) == [*range(4), *range(11, 19)]
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
    train, gallery, test = (open_dataset("imagenette", tmp_path, split, channels=1)
                            for split in ("train", "gallery", "test"))
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
    train, gallery, test = (open_dataset("shapes", None, split) for split in ("train", "gallery", "test"))
    assert torch.equal(train.images, Shapes(40, seed=0).images) and torch.equal(gallery.images, train.images)
    assert torch.equal(test.images, Shapes(10, seed=1).images)
    assert open_dataset("shapes", None, "test", channels=1)[0][0].mode == "L"


@pytest.mark.parametrize("name, page, inside", [
    ("stl10", "https://cs.stanford.edu/~acoates/stl10/", "stl10_binary"),
    ("cifar10", "https://www.cs.toronto.edu/~kriz/cifar.html", "cifar-10-batches-py"),
    ("caltech101", "https://data.caltech.edu/records/mzrjq-6wc02", "caltech101/101_ObjectCategories"),
    ("imagenette", "https://github.com/fastai/imagenette", "imagenette2-160/train"),
])
@pytest.mark.parametrize("download", [True, False])
@pytest.mark.usefixtures("no_network")
def test_a_failed_download_says_what_to_do_by_hand(tmp_path, name, page, inside, download):
    with pytest.raises(RuntimeError) as error:
        open_dataset(name, tmp_path, "train", download=download)
    for part in (name, page, str(tmp_path / inside), "no network" if download else "download=False"):
        assert part in str(error.value)
    assert ("no network" in str(error.value)) == download


def test_what_is_there_is_opened_without_a_download(tmp_path, monkeypatch):
    def older(root, split, size, *, loader, download):  # older torchvisions refuse to download over a folder
        if download:
            raise RuntimeError("The directory already exists")
        return Items((noise(), 3))

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
    with pytest.raises(ValueError, match=r"'cifar11'.*shapes, stl10, cifar10, caltech101, imagenette.*the path of"):
        open_dataset("cifar11", tmp_path, "train")
    with pytest.raises(ValueError, match="split='val' must be"):
        open_dataset("shapes", tmp_path, "val")
    with pytest.raises(ValueError, match="channels=2"):
        open_dataset("shapes", tmp_path, "test", channels=2)


def test_a_folder_by_its_path(tmp_path):
    save_all(tmp_path, *[f"cat/{i}.png" for i in range(7)], *[f"dog/{i}.png" for i in range(4)], "z.png")
    splits = {split: open_dataset(str(tmp_path), None, split) for split in ("train", "gallery", "test")}
    red = {split: [dataset[i][0].getpixel((0, 0))[0] for i in range(len(dataset))] for split, dataset in splits.items()}
    assert red["test"] == [0, 5, 10]
    assert red["gallery"] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert red["train"] == [*red["gallery"], 11]  # the one without a label serves to train
    assert [splits["test"][i][1] for i in range(3)] == [0, 0, 1] and splits["test"].classes == ["cat", "dog"]


@pytest.mark.parametrize("held_back", ["val", "test"])
def test_a_folder_with_train_and_val_is_two_parts(tmp_path, held_back):
    save_all(tmp_path, "train/ant/0.png", "train/ant/1.png", "train/bee/2.png",
             f"{held_back}/ant/3.png", f"{held_back}/bee/4.png")
    parts = {split: open_dataset(str(tmp_path), "", split) for split in ("train", "gallery", "test")}
    assert {split: [label for _, label in part] for split, part in parts.items()} == {
        "train": [0, 0, 1], "gallery": [0, 0, 1], "test": [0, 1]}
    assert parts["test"].classes == ["ant", "bee"]

    (tmp_path / held_back / "bee").rename(tmp_path / held_back / "wasp")
    assert len(open_dataset(str(tmp_path), "", "train")) == 3
    with pytest.raises(ValueError, match=r"same class folders.*\['bee', 'wasp'\]"):
        open_dataset(str(tmp_path), "", "test")


def test_train_and_val_without_classes_have_no_evaluation(tmp_path):
    save_all(tmp_path, "train/0.png", "val/0.png")
    assert [open_dataset(str(tmp_path), "", split) for split in ("gallery", "test")] == [None, None]
    assert [label for _, label in open_dataset(str(tmp_path), "", "train")] == [-1]


def test_a_flat_folder_has_no_evaluation(tmp_path):
    save_all(tmp_path, *[f"{i}.png" for i in range(6)])
    assert len(open_dataset(tmp_path, None, "train")) == 6
    assert open_dataset(tmp_path, None, "gallery") is None and open_dataset(tmp_path, None, "test") is None


# --- the store ---


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("channels", [1, 3])
def test_store_leaves_out_the_broken_and_keeps_labels_aligned(broken_folder, workers, channels, capsys):
    class Numbered(FolderOfImages):
        def __getitem__(self, i):
            return super().__getitem__(i)[0], i

    state = torch.get_rng_state()
    images, labels, skipped = decode_store(Numbered(broken_folder), 16, channels, False, workers)
    assert images.shape == (9, channels, 16, 16) and images.dtype == torch.uint8
    assert labels.dtype == torch.int64 and labels.tolist() == [0, 1, 2, 5, 6, 7, 8, 9, 10]
    assert torch.equal(images, (20 * labels)[:, None, None, None].expand_as(images).byte())
    assert [index for index, _ in skipped] == [3, 4, 11] and "truncated" in skipped[1][1]
    assert torch.equal(state, torch.get_rng_state())
    out, err = capsys.readouterr()
    assert "12 images at 16 px: 0.0 MiB" in out and err == ""


def test_store_over_several_batches(capsys):
    items = [(Image.new("L", (8, 8), i), i) for i in range(70)]
    images, labels, skipped = decode_store(Items(*items[:40], OSError("gone"), *items[41:]), 128, 3, False)
    assert labels.tolist() == [*range(40), *range(41, 70)] and len(skipped) == 1
    assert torch.equal(images[:, 0, 5, 5], labels.byte())
    assert "3.3 MiB" in capsys.readouterr().out  # 70 * 3 * 128 * 128


@pytest.mark.parametrize("size", [(60, 40), (40, 60), (40, 40), (10, 3)])
def test_store_resizes_the_shorter_side_and_crops_the_centre(size):
    x, y = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    image = Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))
    stored = decode_store(Items((image, 0)), 20, progress=False)[0][0]
    scale = 20 / min(size)
    resized = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BICUBIC)
    left, top = (resized.width - 20) // 2, (resized.height - 20) // 2
    expected = np.asarray(resized.crop((left, top, left + 20, top + 20))).transpose(2, 0, 1)
    assert close(stored.numpy().astype(int), expected.astype(int), 6)


def test_store_is_antialiased():
    stripes = Image.fromarray((np.arange(64) % 2 * 255).astype(np.uint8)[None].repeat(64, 0))
    assert close(decode_store(Items((stripes, 0)), 16, 1, False)[0][:, :, :, 2:-2].int().numpy(), 127, 6)


def test_a_very_long_image_is_stored_without_its_length():
    image = Image.new("L", (30_000, 2), 50)  # 112 times enlarged as a whole it would take 750 MB
    assert (decode_store(Items((image, 0)), 224, 1, False)[0] == 50).all()


def test_images_of_the_right_size_are_used_as_they_are(capsys):
    shapes = Shapes(20, size=16)
    images, labels, skipped = decode_store(shapes, 16)
    assert images is shapes.images and labels is shapes.labels and skipped == []
    assert capsys.readouterr().out == ""
    assert decode_store(shapes, 8, progress=False)[0].shape == (20, 3, 8, 8)
    assert decode_store(shapes, 16, channels=1, progress=False)[0].shape == (20, 1, 16, 16)


def test_a_store_that_does_not_fit_is_refused(monkeypatch):
    monkeypatch.setattr(store, "available_memory", lambda: 2**20)
    image = (noise(), 0)
    assert len(decode_store(Items(*[image] * 6), 224, progress=False)[0]) == 6
    with pytest.raises(MemoryError, match="8 images at 224 px need 1 MiB of memory, 1 MiB are free"):
        decode_store(Items(*[image] * 8), 224, progress=False)


def test_available_memory_is_that_of_a_machine():
    assert 2**26 < store.available_memory() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(("v2", "limit", "stat"), [(True, "memory.max", "inactive_file 300\n"),
                                                   (False, "memory.limit_in_bytes", "total_inactive_file 300\n")])
def test_available_memory_honours_a_containers_limit(tmp_path, monkeypatch, v2, limit, stat):
    folder = tmp_path if v2 else tmp_path / "memory"
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(store, "CGROUPS", tmp_path)
    (folder / ("memory.current" if v2 else "memory.usage_in_bytes")).write_text("1000\n")
    (folder / "memory.stat").write_text(f"anon 5\n{stat}")
    (folder / limit).write_text("2000\n")
    assert store.available_memory() == 1300
    (folder / limit).write_text("max\n")
    assert store.available_memory() > 2**26


def photo_folder(root, n=6):
    root.mkdir()
    for i in range(n):
        Image.new("RGB", (20 + i, 24), (40 * i, 0, 0)).save(root / f"{i}.png")
    (root / "3.png").write_bytes(b"")
    return root


def test_a_kept_store_is_read_again_until_a_file_changes(tmp_path, capsys):
    folder, cache = photo_folder(tmp_path / "photos"), tmp_path / "stores"
    plain = decode_store(Pictures(FolderOfImages(folder)), 16, progress=False)

    def decoded(size=16, indices=None):
        capsys.readouterr()
        store = decode_store(Pictures(FolderOfImages(folder), indices), size, progress=False, cache=cache)
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
    assert len(decode_store(Items((noise(), 0)), 8, progress=False, cache=tmp_path)[0]) == 1
    assert not list(tmp_path.iterdir())


KILLED = """
import os, sys
from dino_lib.data.datasets import FolderOfImages, decode_store
class Dies(FolderOfImages):
    def __getitem__(self, i):
        if i == 5:
            raise KeyboardInterrupt if sys.argv[3] == "ctrl-c" else os.kill(os.getpid(), 9)
        return super().__getitem__(i)
Dies.__name__, Dies.__module__ = "FolderOfImages", "dino_lib.data.images"
decode_store(Dies(sys.argv[1]), 16, progress=False, cache=sys.argv[2])
"""


@pytest.mark.parametrize("how", ["ctrl-c", "kill"])
def test_an_interrupted_store_is_not_taken_for_whole(tmp_path, how, capsys):
    folder, cache = photo_folder(tmp_path / "photos"), tmp_path / "stores"
    assert subprocess.run([sys.executable, "-c", KILLED, folder, cache, how], capture_output=True).returncode
    assert len(list(cache.iterdir())) == (how == "kill")
    store = decode_store(FolderOfImages(folder), 16, progress=False, cache=cache)
    assert "decoding" in capsys.readouterr().out and len(store[0]) == 5
    decode_store(FolderOfImages(folder), 16, progress=False, cache=cache)
    assert "decoding" not in capsys.readouterr().out


def test_a_full_disk_is_said_before_building(tmp_path, monkeypatch):
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    with pytest.raises(OSError, match="6 images at 16 px need"):
        decode_store(FolderOfImages(photo_folder(tmp_path / "photos")), 16, progress=False, cache=tmp_path / "stores")
    assert not list((tmp_path / "stores").iterdir())


def test_nothing_to_store():
    with pytest.raises(RuntimeError, match="none of the 1 images could be read"):
        decode_store(Items(OSError("no")), 8, progress=False)
    with pytest.raises(ValueError, match="no images"):
        decode_store([], 8, progress=False)
    with pytest.raises(ValueError, match="size=0"):
        decode_store([noise()], 0, progress=False)


@pytest.mark.skipif("DINO_DATA" not in os.environ, reason="DINO_DATA names no folder with caltech101")
def test_the_real_photographs():
    train, gallery, test = (open_dataset("caltech101", os.environ["DINO_DATA"], split, download=False)
                            for split in ("train", "gallery", "test"))
    whole = train.dataset
    rest = len(whole) - sum(whole.categories[label] == "Faces_easy" for label in whole.y)
    assert len(whole.categories) == 101 and rest > 7000
    assert (len(train), len(gallery), len(test)) == (rest - -(-rest // 5), len(train), -(-rest // 5))
    assert {whole.y[i] for i in test.indices} == {whole.y[i] for i in train.indices}
    images, labels, skipped = decode_store(Pictures(test, range(0, len(test), 40)), 32, progress=False)
    assert len(images) == len(range(0, len(test), 40)) and skipped == [] and labels.min() >= 0
