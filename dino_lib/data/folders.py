"""Any folder of images: its files, their classes, and the parts that are held back."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image
from torch.utils.data import Dataset

from dino_lib.data.images import read_image
from dino_lib.data.items import Pictures
from dino_lib.data.say import say

NO_DECODER = {"BUFR", "GRIB", "HDF5", "MPEG", "PALM", "PDF"}  # PIL knows their extensions only
NEEDS_PLUGIN = {  # pictures that PIL alone may not read
    ".heic", ".heif", ".hif", ".avif", ".jxl", ".svg", ".exr", ".hdr", ".dng", ".cr2", ".cr3",
    ".nef", ".arw", ".orf", ".rw2", ".raf",
}
SPLITS = {  # the part of a split: how folders of it are called
    "train": r"train(ing|val)?|unlabell?ed",
    "val": r"val(id(ation)?)?|dev|eval(uation)?",
    "test": r"tests?|testing|hold.?out|held.?(out|back)|pred(iction)?s?",
}
SPLIT_NAMES = {
    part: re.compile(rf"(?<![a-z])({words})(set|data|images?|imgs?|split)?s?(?![a-z])")
    for part, words in SPLITS.items()
}


class Files(Dataset):
    """Images in files: items (PIL "RGB", label), from `paths`, `labels` and `classes`, the names.

    Reading a broken file raises UnreadableImage.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], classes: Sequence[str]):
        self.paths = paths
        self.labels = labels
        self.classes = classes

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        return read_image(self.paths[i]), self.labels[i]


class FolderOfImages(Files):
    """All images in a folder and below, sorted by path; links are followed, each folder once.

    A file belongs if its extension, in any case, is one of PIL's; names that begin with a dot do
    not. `left_out` counts the pictures that PIL cannot read, by extension. `labels` has one int an
    image: the first-level folder that it is in, whose names are `classes`; -1 outside of such a
    folder, and everywhere if there are fewer than two.

    Folders that look like parts of a split (train beside val, Training beside Testing, test beside
    the classes, ...), on the first level or inside of each class, are no classes. `parts` has one
    of "train", "val", "test" an image, or "" for what lies beside such folders. Raises
    FileNotFoundError where there is no folder or no image in it.
    """

    def __init__(self, root: str | os.PathLike):
        self.root = Path(os.path.expanduser(root))
        self.left_out = Counter()
        if not self.root.is_dir():
            raise FileNotFoundError(f"no folder of images at {self.root.absolute()}")
        formats = Image.registered_extensions()
        known = {extension for extension, kind in formats.items() if kind not in NO_DECODER}
        paths = []
        for path in _files_below(self.root):
            extension = path.suffix.lower()
            if extension in known:
                paths.append(path)
            elif extension in NEEDS_PLUGIN:
                self.left_out[extension] += 1
        if not paths:
            found = f"found {self.unread()}; " if self.left_out else ""
            raise FileNotFoundError(
                f"no images in {self.root.absolute()} or below: {found}looked for .jpg, .png and "
                f"{len(known) - 2} other extensions that PIL reads, leaving out dot files")
        paths.sort(key=lambda path: path.parts)
        places = _places([path.relative_to(self.root).parts[:-1] for path in paths])
        self.parts = [part for part, _ in places]
        classes = sorted({name for part, name in places if part and name})
        if len(classes) < 2:
            classes = []
        number = {name: i for i, name in enumerate(classes)}
        super().__init__(paths, [number.get(name, -1) for _, name in places], classes)

    def unread(self) -> str:
        """What was left out because PIL cannot read it, in words."""
        counts = [f"{n} {extension}" for extension, n in sorted(self.left_out.items())]
        heic = {".heic", ".heif", ".hif"} & set(self.left_out)
        remedy = "pip install pillow-heif" if heic else "convert them to .png or .jpg"
        return f"{', '.join(counts)} that PIL cannot read ({remedy})"


def open_folder(root: str | os.PathLike, split: str) -> Pictures | None:
    """One role of a folder of images: "train", "gallery" or "test", as in `open_dataset`.

    Says in one line what is not trained on (for "train"), or why there is no k-NN (for the others).
    Raises ValueError if everything looks held back, FileNotFoundError as FolderOfImages does.
    """
    folder = FolderOfImages(root)
    where = {part: [i for i, own in enumerate(folder.parts) if own == part]
             for part in ("train", "val", "test", "")}
    train = where["train"]
    if not train:
        raise ValueError(f"{folder.root}: all of its folders look held back, and none is left to "
                         "train on; give the path of one of them")
    gallery = [i for i in train if folder.labels[i] >= 0]
    if where["val"] or where["test"]:
        known = {folder.labels[i] for i in gallery}
        val, test = [[i for i in where[part] if folder.labels[i] in known]
                     for part in ("val", "test")]
        queries = val or test
    else:
        gallery, queries = every_fifth(gallery)
        train = sorted({*train} - {*queries})
    if split == "train":
        _say_what_is_left(folder, where)
        return Pictures(folder, train)
    if not queries:
        say(f"no k-NN: no image of a known class is held back in {folder.root}. Its folders are "
            "the classes, two at least, by the same names in each part of a split; if they lie "
            "deeper, give the path of the folder that they are in")
        return None
    return Pictures(folder, gallery if split == "gallery" else queries)


def every_fifth(indices: Sequence[int]) -> tuple[list[int], list[int]]:
    """(what is trained on, what is held back): every fifth, from the first on, is held back."""
    kept = [index for i, index in enumerate(indices) if i % 5]
    return kept, list(indices[::5])


def _files_below(root: Path) -> Iterator[Path]:
    """All files, without dot files. A folder that links lead to again and again counts once."""
    seen, starts = set(), [os.fspath(root)]
    while starts:
        links = []  # followed when all real folders are known: none takes the place of one
        for start in starts:
            for folder, below, names in os.walk(start):
                real = os.path.realpath(folder)
                if real in seen:
                    below.clear()
                    continue
                seen.add(real)
                below[:] = sorted(name for name in below if not name.startswith("."))
                paths = [os.path.join(folder, name) for name in below]
                links += [path for path in paths if os.path.islink(path)]
                yield from (Path(folder, name) for name in names if not name.startswith("."))
        starts = links


def _looks_like(name: str) -> str | None:
    """The part of a split that a folder's name speaks of."""
    for part, words in SPLIT_NAMES.items():
        if words.search(name.lower()):
            return part
    return None


def _split(names: set[str], inside: bool) -> dict[str, str]:
    """The part of each folder among these, which lie side by side; {} if they are no split.

    `inside` of a class it takes a folder to train on as well: a lone "test" may be anything there.
    """
    parts = {name: _looks_like(name) for name in names}
    held_back = {name: part for name, part in parts.items() if part in ("val", "test")}
    if held_back and "train" in parts.values():
        return {name: part or "" for name, part in parts.items()}
    if inside or {"valid", "invalid"} <= {name.lower() for name in names}:  # two classes
        return {}
    # without a train beside it, only a folder that is called nothing else
    return {name: part for name, part in held_back.items()
            if SPLIT_NAMES[part].fullmatch(re.sub("[^a-z]", "", name.lower()))}


def _places(folders: list[tuple[str, ...]]) -> list[tuple[str, str | None]]:
    """(part, class or None) of an image in each of these folders, names from the root on."""
    below = defaultdict(set)  # what lies in the root, (), and in each folder in it, (name,)
    for where in set(folders):
        for depth, name in enumerate(where[:2]):
            below[where[:depth]].add(name)
    splits = {where: _split(names, inside=len(where) > 0) for where, names in below.items()}
    beside = "" if "train" in splits.get((), {}).values() else "train"
    places = []
    for where in folders:
        part, names = beside, list(where)
        for depth, name in enumerate(where[:2]):
            found = splits[where[:depth]].get(name)
            if found is not None:
                part = found
                names.remove(name)
                break
        places.append((part, names[0] if names else None))
    return places


def _say_what_is_left(folder: FolderOfImages, where: dict[str, list[int]]) -> None:
    notes = [f"{len(where[part])} held back ({part})" for part in ("val", "test") if where[part]]
    if where[""]:
        notes.append(f"{len(where[''])} left out, which lie beside these")
    trained_on = {folder.labels[i] for i in where["train"]}
    strange = [folder.labels[i] for part in ("val", "test") for i in where[part]
               if folder.labels[i] >= 0 and folder.labels[i] not in trained_on]
    if strange:
        names = ", ".join(folder.classes[label] for label in sorted(set(strange)))
        notes.append(f"{len(strange)} of them no queries, for no image to train on has their "
                     f"class: {names}")
    suspects = [name for name in folder.classes if _looks_like(name)]
    if suspects:
        notes.append(f"{', '.join(suspects)} taken for a class")
    if folder.left_out:
        notes.append(f"besides {folder.unread()}")
    if notes:
        trained = f"{len(where['train'])} of {len(folder)} images are trained on"
        say(f"{folder.root}: {trained}; {'; '.join(notes)}")
