"""Datasets of every form, parts of them, and broken images in them."""

import errno
import io

import numpy as np
import pytest
import torch
from made import Items, noise
from PIL import Image
from torch.utils.data import DataLoader

from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import InputError, UnreadableImage
from dino_lib.data.items import Pictures, SkipUnreadable, report_skipped
from dino_lib.data.say import say
from dino_lib.data.shapes import Shapes
from dino_lib.data.store import decode_store


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_size_and_the_report_names_the_files(broken_folder, workers):
    safe = SkipUnreadable(FolderOfImages(broken_folder))
    order = [4, 0, 3, 11, 5, 2, 9, 10]

    def collate(items):
        images, labels, used = zip(*items, strict=True)
        return [image.getpixel((0, 0))[0] // 20 for image in images], labels, torch.tensor(used)

    batches = list(
        DataLoader(safe, batch_size=4, sampler=order, num_workers=workers, collate_fn=collate)
    )
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


@pytest.mark.parametrize(
    "item, label",
    [
        (noise(), -1),
        ((noise(), 7), 7),
        ((noise(), torch.tensor(7)), 7),
        ([noise(), np.int64(7), "more"], 7),
        ((noise(), None), -1),
        ((noise(), "cat"), -1),
        ((noise(), {"boxes": []}), -1),
        ((noise().convert("LA"), 2), 2),
        (np.asarray(noise()), -1),
        ((np.asarray(noise()), 3), 3),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), -1),
        ((noise(),), -1),
        ({"image": noise(), "label": 4}, 4),
        ({"img": noise(), "fine_label": 5}, 5),
        ({"image": np.asarray(noise())}, -1),
        ({"image": noise(), "label": None}, -1),
    ],
)
def test_items_of_every_form(item, label):
    image, got, used = SkipUnreadable(Items(item), 1)[0]
    assert (image.mode, got, used) == ("L", label, 0)


@pytest.mark.parametrize(
    "error",
    [
        OSError("broken pipe"),
        SyntaxError("broken PNG file"),
        ValueError("bad header"),
        EOFError("end"),
        Image.DecompressionBombError("too large"),
        Image.UnidentifiedImageError("what is this"),
        UnreadableImage("x (y)"),
        FileNotFoundError("gone.jpg"),
    ],
)
def test_what_decoders_raise_is_skipped(error):
    safe = SkipUnreadable(Items(error, noise()))
    assert safe[0][2] == 1
    assert str(error) in safe.bad[0]


def test_mistakes_in_the_code_are_not_skipped():
    with pytest.raises(InputError, match="item 0 of the dataset raised KeyError: 'path'"):
        SkipUnreadable(Items(KeyError("path"), noise()))[0]
    with pytest.raises(InputError, match=r"item 0 .* TypeError: .* leave out the normalisation"):
        SkipUnreadable(Items((torch.full((3, 4, 4), -0.5), 0), noise()))[0]


def test_nothing_readable_and_nothing_at_all():
    with pytest.raises(
        RuntimeError, match=r"none of the 2 images could be read; the first: image 0 \(no\)"
    ):
        SkipUnreadable(Items(OSError("no"), OSError("neither")))[1]
    with pytest.raises(ValueError, match="no images"):
        SkipUnreadable([])


def test_a_long_report_is_cut():
    skipped = [(i, f"{i}.jpg (truncated)") for i in range(5)]
    assert report_skipped(skipped, 9, limit=2) == (
        "5 of 9 images could not be read and were skipped: 0.jpg (truncated), 1.jpg (truncated), "
        "and 3 more"
    )
    assert report_skipped(skipped[:2], 9, limit=2).endswith("0.jpg (truncated), 1.jpg (truncated)")


def test_paths_are_items(tmp_path):
    noise().save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(b"")
    paths = [
        tmp_path / "b.png",
        str(tmp_path / "a.png"),
        (tmp_path / "a.png", 3),
        tmp_path / "gone.png",
        {"image": str(tmp_path / "a.png"), "label": 2},
    ]
    safe = SkipUnreadable(paths)
    found = [safe[i] for i in range(5)]
    assert all(image.tobytes() == noise().tobytes() for image, _, _ in found)
    assert [rest for _, *rest in found] == [[-1, 1], [-1, 1], [3, 2], [2, 4], [2, 4]]
    assert "b.png (empty" in safe.bad[0] and "gone.png" in safe.bad[3]


def test_none_is_skipped_and_named():
    safe = SkipUnreadable(Items(None, (None, 3), {"image": None}, noise()))
    assert [safe[i][2] for i in range(4)] == [3, 3, 3, 3]
    assert safe.report() == (
        "3 of 4 images could not be read and were skipped: image 0 (the "
        "dataset gave None), image 1 (the dataset gave None), image 2 (the "
        "dataset gave None)"
    )


class Stream(torch.utils.data.IterableDataset):
    def __len__(self):
        return 3

    def __iter__(self):
        return iter([noise()] * 3)


@pytest.mark.parametrize(
    "dataset, words",
    [
        (iter([noise()]), "dataset is a list_iterator: expected pictures by number"),
        (Stream(), "of a stream give list(dataset)"),
        ({"a.png"}, "dataset is a set: expected pictures by number"),
        (DataLoader([1, 2]), "dataset is a DataLoader: expected pictures by number"),
        (
            {"train": [noise()], "test": [noise()]},
            "dataset is a dict of ['train', 'test']: give one",
        ),
        ("photos", "dataset is a str: a path goes into the settings, as dataset='photos'"),
    ],
)
@pytest.mark.parametrize("take", [SkipUnreadable, Pictures, lambda data: decode_store(data, 8)])
def test_what_is_no_dataset_is_refused_with_the_remedy(dataset, words, take):
    with pytest.raises(TypeError) as error:
        take(dataset)
    assert words in str(error.value)


def test_a_dict_without_a_picture_names_its_keys():
    with pytest.raises(InputError, match=r"item 0 .*\['pixels'\]: expected the key image or img"):
        SkipUnreadable(Items({"pixels": noise()}))[0]


def test_too_many_open_files_end_the_run():
    error = OSError(errno.EMFILE, "Too many open files")
    with pytest.raises(InputError, match="take num_workers=0"):
        SkipUnreadable(Items(error, noise()))[0]


def test_a_part_has_the_items_and_the_ready_tensors_at_its_indices():
    whole = Shapes(20, size=16)
    part = Pictures(whole, [7, 3])
    assert len(part) == 2 and [label for _, label in part] == [7, 3]
    assert np.array_equal(np.asarray(part[1][0]), np.asarray(whole[3][0]))
    for name in ("images", "labels", "masks"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[7, 3]])
    assert part.classes == list(Shapes.classes)
    assert Pictures(whole).images is whole.images  # all of it is not copied
    assert len(Pictures(part, torch.tensor([1]))) == 1 and Pictures(part, [1])[0][1] == 3
    assert not hasattr(Pictures(whole, channels=1), "images")
    assert Pictures(whole, channels=1)[0][0].mode == "L"


def test_a_part_takes_items_of_every_form():
    dataset = Items({"image": noise(), "label": 4}, OSError("gone"), np.asarray(noise()))
    part = Pictures(dataset, [2, 1, 0])
    assert [part[i][1] for i in (0, 2)] == [-1, 4]
    safe = SkipUnreadable(part)
    assert safe[1][1:] == (4, 2) and safe.bad == {1: "image 1 (gone)"}
    with pytest.raises(InputError, match=r"^item 0 of the dataset raised KeyError: 'x'; mend"):
        SkipUnreadable(Pictures(Items(KeyError("x"))))[0]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_the_report_can_be_printed_on_any_screen(monkeypatch, encoding):
    screen = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", screen)
    say(report_skipped([(0, "\u732b.jpg (cut)"), (1, "\udce9.jpg (empty)")], 2))
    assert b".jpg (cut), \\udce9.jpg (empty)" in screen.buffer.getvalue()


@pytest.mark.parametrize(
    ("names", "told"),
    [(np.array(["a", "b"]), ["a", "b"]), ([0, 1], ["0", "1"]), ([("a", "x"), "b"], ["a", "b"]),
     ([], None), (None, None)],
)  # fmt: skip
def test_names_of_classes_in_every_form(names, told):
    dataset = Items((Image.new("L", (8, 8)), 0), (Image.new("L", (8, 8)), 1))
    dataset.classes = names
    assert Pictures(dataset, [0]).classes == told
