"""Any folder of images: its files, its classes, and what is held back."""

import os

import pytest
from made import save_all
from PIL import Image

from dino_lib.data.datasets import open_dataset
from dino_lib.data.folders import FolderOfImages, open_folder


def test_a_flat_folder_has_sorted_images_without_labels(tmp_path):
    save_all(tmp_path, "b.PNG", "a.jpg", ".hidden.png", "c.Jpeg")
    for other in ["notes.txt", "labels.h5", "clip.mpg", "paper.pdf"]:
        (tmp_path / other).write_text("no image")
    folder = FolderOfImages(tmp_path)
    assert [path.name for path in folder.paths] == ["a.jpg", "b.PNG", "c.Jpeg"]
    assert (len(folder), folder.labels, folder.classes) == (3, [-1, -1, -1], [])
    image, label = folder[0]
    assert (image.mode, label) == ("RGB", -1)


def test_first_level_folders_are_the_classes(tmp_path):
    save_all(
        tmp_path,
        "dog/x/2.png",
        "cat/1.png",
        "top.png",
        "dog/1.png",
        ".git/1.png",
        "ape/.thumbs/1.png",
        "cat/0.png",
        "empty.png/readme.png",
    )
    (tmp_path / "empty.png" / "readme.png").unlink()
    folder = FolderOfImages(str(tmp_path))
    assert folder.classes == ["cat", "dog"]
    found = [
        (path.relative_to(tmp_path).as_posix(), label)
        for path, label in zip(folder.paths, folder.labels, strict=True)
    ]
    assert found == [
        ("cat/0.png", 0),
        ("cat/1.png", 0),
        ("dog/1.png", 1),
        ("dog/x/2.png", 1),
        ("top.png", -1),
    ]
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


# --- the three roles of a folder ---


def test_a_folder_by_its_path(tmp_path):
    save_all(
        tmp_path, *[f"cat/{i}.png" for i in range(7)], *[f"dog/{i}.png" for i in range(4)], "z.png"
    )
    splits = {
        split: open_dataset(str(tmp_path), None, split) for split in ("train", "gallery", "test")
    }
    red = {
        split: [dataset[i][0].getpixel((0, 0))[0] for i in range(len(dataset))]
        for split, dataset in splits.items()
    }
    assert red["test"] == [0, 5, 10]
    assert red["gallery"] == [1, 2, 3, 4, 6, 7, 8, 9]
    assert red["train"] == [*red["gallery"], 11]  # the one without a label serves to train
    assert [splits["test"][i][1] for i in range(3)] == [0, 0, 1] and splits["test"].classes == [
        "cat",
        "dog",
    ]


@pytest.mark.parametrize("held_back", ["val", "test"])
def test_a_folder_with_train_and_val_is_two_parts(tmp_path, held_back):
    save_all(
        tmp_path,
        "train/ant/0.png",
        "train/ant/1.png",
        "train/bee/2.png",
        f"{held_back}/ant/3.png",
        f"{held_back}/bee/4.png",
    )
    parts = {
        split: open_dataset(str(tmp_path), "", split) for split in ("train", "gallery", "test")
    }
    assert {split: [label for _, label in part] for split, part in parts.items()} == {
        "train": [0, 0, 1],
        "gallery": [0, 0, 1],
        "test": [0, 1],
    }
    assert parts["test"].classes == ["ant", "bee"]


def roles(root):
    """What each role holds: {split: [(path below root, class)]}, and what was said on the way."""
    found = {}
    for split in ("train", "gallery", "test"):
        part = open_dataset(str(root), "", split)
        if part is None:
            found[split] = None
            continue
        names = [*part.classes, None] if part.classes else [None]  # [-1]: none
        paths = [part.dataset.paths[i].relative_to(root).as_posix() for i in part.indices]
        found[split] = [(path, names[part[i][1]]) for i, path in enumerate(paths)]
    return found


SPLITS = [
    ("train", "val"),
    ("train", "valid"),
    ("train", "validation"),
    ("train", "dev"),
    ("train", "eval"),
    ("train", "test"),
    ("train", "test1"),
    ("train", "test_stg1"),
    ("Training", "Testing"),
    ("TRAIN", "TEST"),
    ("Train", "Valid"),
    ("train2017", "val2017"),
    ("seg_train", "seg_test"),
    ("train_images", "test_images"),
    ("trainset", "testset"),
    ("TrainSet", "ValSet"),
    ("x-train", "x-validation"),
    ("train", "holdout"),
    ("trainval", "tests"),
    ("unlabeled", "evaluation"),
]


@pytest.mark.parametrize("train, held_back", SPLITS)
def test_folders_that_look_like_a_split_are_no_classes(tmp_path, capsys, train, held_back):
    save_all(
        tmp_path,
        f"{train}/ant/0.png",
        f"{train}/bee/1.png",
        f"{held_back}/ant/2.png",
        f"{held_back}/bee/3.png",
    )
    found = roles(tmp_path)
    assert found["train"] == [(f"{train}/ant/0.png", "ant"), (f"{train}/bee/1.png", "bee")]
    assert found["gallery"] == found["train"]
    assert found["test"] == [(f"{held_back}/ant/2.png", "ant"), (f"{held_back}/bee/3.png", "bee")]
    assert FolderOfImages(tmp_path).classes == ["ant", "bee"]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "2 of 4 images are trained on; 2 held back (" in said


@pytest.mark.parametrize("train, held_back", SPLITS)
def test_flat_folders_that_look_like_a_split_are_no_classes(tmp_path, capsys, train, held_back):
    save_all(tmp_path, f"{train}/0.png", f"{held_back}/1.png", f"{held_back}/2.png")
    assert roles(tmp_path) == {"train": [(f"{train}/0.png", None)], "gallery": None, "test": None}
    said = capsys.readouterr().out
    assert "1 of 3 images are trained on; 2 held back" in said and "no k-NN: " in said


@pytest.mark.parametrize("train, held_back", SPLITS[:9])
def test_a_split_inside_of_each_class_is_found(tmp_path, train, held_back):
    save_all(
        tmp_path,
        f"cup/{train}/good/0.png",
        f"cup/{held_back}/bad/1.png",
        f"nut/{train}/good/2.png",
        f"nut/{held_back}/bad/3.png",
    )
    found = roles(tmp_path)
    assert [name for _, name in found["train"]] == ["cup", "nut"]
    assert all(held_back in path for path, _ in found["test"]) and len(found["test"]) == 2


def test_val_is_taken_before_test_and_neither_is_trained_on(tmp_path, capsys):
    save_all(
        tmp_path,
        *[
            f"{part}/{name}/0.png"
            for part in ("test", "train", "val", "docs")
            for name in ("ant", "bee")
        ],
        "cover.png",
    )
    found = roles(tmp_path)
    assert [path for path, _ in found["train"]] == ["train/ant/0.png", "train/bee/0.png"]
    assert [path for path, _ in found["test"]] == ["val/ant/0.png", "val/bee/0.png"]
    assert capsys.readouterr().out == (
        f"{tmp_path}: 2 of 9 images are trained on; 2 held back (val); 2 held back (test); 3 left "
        "out, which lie beside these\n"
    )


def test_flat_val_gives_way_to_a_test_with_labels(tmp_path):
    save_all(tmp_path, "train/ant/0.png", "train/bee/1.png", "val/2.png", "test/bee/3.png")
    assert roles(tmp_path)["test"] == [("test/bee/3.png", "bee")]


def test_a_test_beside_the_classes_is_held_back(tmp_path, capsys):
    save_all(tmp_path, "ant/0.png", "bee/1.png", "test/ant/2.png", "test/bee/3.png")
    found = roles(tmp_path)
    assert found["train"] == found["gallery"] == [("ant/0.png", "ant"), ("bee/1.png", "bee")]
    assert found["test"] == [("test/ant/2.png", "ant"), ("test/bee/3.png", "bee")]
    assert "2 of 4 images are trained on; 2 held back (test)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "names", [("train", "bus", "car"), ("valid", "invalid"), ("train", "train_extra")]
)
def test_a_class_that_looks_like_a_split_is_named(tmp_path, capsys, names):
    save_all(tmp_path, *[f"{name}/{i}.png" for name in names for i in range(5)])
    assert {name for _, name in roles(tmp_path)["train"]} == set(names)
    suspects = ", ".join(name for name in names if name not in ("bus", "car", "invalid"))
    assert f"; {suspects} taken for a class\n" in capsys.readouterr().out


def test_valid_is_held_back_beside_a_train_folder_also_if_there_is_an_invalid(tmp_path):
    names = ("train", "Training", "Valid", "invalid")
    save_all(tmp_path, *[f"{name}/{i}.png" for name in names for i in range(2)])
    assert {path.split("/")[0] for path, _ in roles(tmp_path)["train"]}.isdisjoint(
        {"Valid", "invalid"}
    )


@pytest.mark.parametrize("names", [("contest", "latest"), ("trainer", "values"), ("sub", "way")])
def test_other_words_are_classes_without_a_word(tmp_path, capsys, names):
    save_all(tmp_path, *[f"{name}/{i}.png" for name in names for i in range(5)])
    assert {name for _, name in roles(tmp_path)["train"]} == set(names)
    assert capsys.readouterr().out == ""


def test_nothing_but_held_back_folders_are_refused(tmp_path):
    save_all(tmp_path, "val/0.png", "test/1.png")
    with pytest.raises(ValueError, match=r"all of its folders look held back.*the path of one"):
        open_dataset(str(tmp_path), "", "train")
    assert len(open_dataset(str(tmp_path / "val"), "", "train")) == 1


def test_classes_are_told_apart_by_name(tmp_path):
    """A class that is not in both parts costs nothing."""
    save_all(
        tmp_path,
        "train/ant/0.png",
        "train/bee/1.png",
        "train/cat/2.png",
        "val/cat/3.png",
        "val/bee/4.png",
        "val/wasp/5.png",
    )
    found = roles(tmp_path)
    assert found["test"] == [("val/bee/4.png", "bee"), ("val/cat/3.png", "cat")]
    assert [name for _, name in found["gallery"]] == ["ant", "bee", "cat"]


@pytest.mark.parametrize(
    "names",
    [
        ["0.png", "1.png"],
        ["train/ant/0.png", "train/bee/1.png"],
        ["photos/a/0.png", "photos/b/1.png"],
        ["train/ant/0.png", "train/bee/1.png", "val/2.png"],
        ["train/0.png", "val/ant/1.png", "val/bee/2.png"],
        ["train/ant/0.png", "train/bee/1.png", "val/wasp/2.png", "val/fly/3.png"],
    ],
)
def test_one_line_says_why_there_is_no_knn(tmp_path, capsys, names):
    save_all(tmp_path, *names)
    assert open_dataset(str(tmp_path), "", "gallery") is None
    said = capsys.readouterr().out
    assert said.startswith("no k-NN: ") and said.count("\n") == 1 and "the classes" in said
    assert open_dataset(str(tmp_path), "", "test") is None


def test_labels_that_are_there_are_used_without_a_word(tmp_path, capsys):
    save_all(tmp_path, *[f"{name}/{i}.png" for name in ("ant", "bee") for i in range(5)])
    assert all(roles(tmp_path).values()) and capsys.readouterr().out == ""


# --- what is left out, and links ---


def test_pictures_that_need_a_plugin_are_counted_and_named(tmp_path, capsys):
    save_all(tmp_path, "a.png")
    for name in ("1.HEIC", "2.heic", "3.CR2", "notes.txt", ".hidden.heic"):
        (tmp_path / name).write_bytes(b"x")
    open_dataset(str(tmp_path), "", "train")
    assert capsys.readouterr().out == (
        f"{tmp_path}: 1 of 1 images are trained on; besides 1 .cr2, 2 .heic that PIL cannot read "
        "(pip install pillow-heif)\n"
    )
    (tmp_path / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"found 1 \.cr2, 2 \.heic .*pillow-heif"):
        open_dataset(str(tmp_path), "", "train")


def test_links_that_lead_back_are_followed_once(tmp_path):
    save_all(tmp_path, "ant/0.png", "bee/1.png")
    for name in ("ant/up", "bee/up", "bee/again"):
        (tmp_path / name).symlink_to(tmp_path)
    (tmp_path / "bee" / "ants").symlink_to("../ant")
    folder = FolderOfImages(tmp_path)
    assert [path.relative_to(tmp_path).as_posix() for path in folder.paths] == [
        "ant/0.png",
        "bee/1.png",
    ]


def test_a_link_does_not_take_the_place_of_the_folder(tmp_path):
    save_all(tmp_path, "zebra/0.png", "bee/1.png")
    (tmp_path / "all").symlink_to(tmp_path)
    assert FolderOfImages(tmp_path).classes == ["bee", "zebra"]


def test_names_that_are_no_text_can_be_printed(tmp_path, capsys):
    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    for name in ("train", "val"):
        os.makedirs(f"{root}/{name}")
        Image.new("RGB", (8, 8)).save(f"{root}/{name}/0.png")
    assert len(open_dataset(root, "", "train")) == 1
    assert open_dataset(root, "", "gallery") is None
    assert capsys.readouterr().out.count("caf\\udce9") == 2


def test_a_home_folder_is_found(tmp_path, monkeypatch):
    save_all(tmp_path, "photos/a.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(open_dataset("~/photos", "", "train")) == 1


def test_a_link_deep_in_one_class_takes_no_place_of_another(tmp_path):
    for name in ("bears", "cats", "dogs"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "bears" / "more").symlink_to(tmp_path / "dogs")
    folder = FolderOfImages(tmp_path)
    assert folder.classes == ["bears", "cats", "dogs"] and folder.labels == [0, 1, 2]


def test_queries_of_a_class_that_is_not_trained_on_are_told(tmp_path, capsys):
    for where in ("train/cat", "train/dog", "val/cat", "val/Dog", "val/Dog"):
        (tmp_path / where).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / where / "0.png")
    open_folder(tmp_path, "train")
    said = capsys.readouterr().out
    assert "1 of them no queries, for no image to train on has their class: Dog" in said


def test_a_folder_that_is_called_like_a_dataset_is_told(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shapes").mkdir()
    open_dataset("shapes", None, "train")
    assert "the folder here is ./shapes" in capsys.readouterr().out
