"""Broken and hostile input: `python benchmarks/fuzz.py --minutes 10`. Needs hypothesis (in the
extra `test`).

Hypothesis makes bytes that are no image, settings or checkpoint; it flips, cuts, drops, doubles
and overwrites parts of real ones (17 images of 12 formats, JSON and command lines of settings,
checkpoints, a run's teacher, other people's); and it makes whole files whose content is wrong:
missing and odd values, shapes and settings. Readers may answer with a result or with the errors
that they document, and with nothing else:

- `read_image`: UnreadableImage; `to_channels` and `EvalTransform` on pictures of all of PIL's
  modes, on arrays and tensors: UnreadableImage, TypeError
- `open_dataset` on folders in many layouts, with splits, links and files that are no images:
  ValueError, FileNotFoundError. What is trained on is no query, and nothing of a folder that
  stands beside "train" as "val" or "test" does
- `Config.from_json`: ValueError; `read_settings`: ValueError
- `load_newest`: ValueError; `load_teacher`: ValueError, FileNotFoundError

An example that takes more than 20 seconds ends the command (a hang), and so does a crash of the
interpreter. Pickles that call a function stand in many of the checkpoints; the function would
make a folder, and none may be there in the end. Checkpoints are tried with the checksum that
they had and with a right one for what they have become.
"""

import argparse
import contextlib
import dataclasses
import faulthandler
import hashlib
import io
import json
import logging
import os
import pickle
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import HypothesisWarning
from PIL import Image
from safetensors.torch import load, save

from dino_lib.backbone import create_backbone
from dino_lib.cli import read_settings
from dino_lib.data.datasets import open_dataset
from dino_lib.data.images import UnreadableImage, read_image, to_channels
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import EvalTransform
from dino_lib.run.build import build_backbone
from dino_lib.run.checkpoint import load_newest, save_checkpoint
from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS
from dino_lib.run.teacher_file import ZEROS, save_teacher
from dino_lib.run.weights import load_weights
from dino_lib.teachers.load import load_teacher

SECONDS = 20  # for one example
SMALL = dataclasses.replace(
    PRESETS["smoke"],
    conv_stem=False,
    store_size=24,
    global_size=24,
    local_size=12,
    out_dim=16,
    hidden_dim=16,
    backbone_options={
        "img_size": 24,
        "patch_size": 6,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "mlp_ratio": 2.0,
    },
)
OFFICIAL = {"img_size": 16, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 1}
WORDS = [
    "dataset",
    "epochs",
    "lr",
    "0",
    "-1",
    "1e999",
    "nan",
    "None",
    "True",
    "shapes",
    "auto",
    "{}",
    "()",
    "--",
    "-h",
]


MODES = [
    "1",
    "L",
    "P",
    "LA",
    "PA",
    "La",
    "RGB",
    "RGBA",
    "RGBa",
    "RGBX",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16L",
    "I;16B",
]
HELD_BACK = ["val", "Valid", "validation", "test", "Testing", "test1"]
FOLDERS = [
    "train",
    "Training",
    *HELD_BACK,
    "cat",
    "dog",
    "invalid",
    "latest",
    ".hidden",
    "photos",
    "f\xfcnf",
]
FILES = ["0.png", "1.PNG", "2.jpg", "3.heic", "4.txt", ".5.png", "6", "\udcff.png"]


def paths_of(part):
    """The files of a part that `open_dataset` gives, None for one that isn't there: a set."""
    if part is None:
        return set()
    files, indices = part.dataset, part.indices
    while not hasattr(files, "paths"):  # a part of a part
        files, indices = files.dataset, [files.indices[i] for i in indices]
    return {files.paths[i] for i in indices}


class Trap:
    """Unpickled by a reader that runs code, it makes a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.makedirs, (str(self.path),)


def images():
    """One picture as a file of each of many formats, and of the modes that take other paths through
    the reader.
    """
    picture = Shapes(1, size=24)[0][0]
    for kind, mode in [
        ("JPEG", "RGB"),
        ("JPEG", "CMYK"),
        ("PNG", "RGBA"),
        ("PNG", "I;16"),
        ("PNG", "P"),
        ("GIF", "P"),
        ("TIFF", "RGB"),
        ("TIFF", "F"),
        ("WEBP", "RGB"),
        ("BMP", "RGB"),
        ("PPM", "RGB"),
        ("TGA", "RGB"),
        ("ICO", "RGBA"),
        ("JPEG2000", "RGB"),
        ("SGI", "L"),
        ("PCX", "P"),
        ("DDS", "RGBA"),
    ]:
        file, options = io.BytesIO(), {}
        if (kind, mode) == ("JPEG", "RGB"):
            exif = Image.Exif()
            exif[0x0112], options = 6, {"exif": exif}
        with contextlib.suppress(OSError, KeyError):  # a Pillow that was built without it
            # older Pillows make 16 bits only of grey
            source = picture.convert("L") if mode == "I;16" else picture
            source.convert(mode).save(file, kind, **options)
            yield file.getvalue()


@st.composite
def mutated(draw, originals):
    """The bytes of one of them, changed in a few places."""
    data = bytearray(draw(st.sampled_from(originals)))
    for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3, 6]))):
        size = len(data)  # most of what a format says stands at its ends
        ends = st.integers(0, min(64, size)) | st.integers(max(0, size - 300), size)
        place = draw(st.integers(0, size) | ends)
        length = draw(st.sampled_from([1, 1, 2, 4, 8, 64, 1000]))
        how = draw(
            st.sampled_from(
                ["flip", "flip", "overwrite", "overwrite", "insert", "drop", "double", "cut"]
            )
        )
        if how == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "overwrite":
            data[place : place + length] = (
                draw(st.sampled_from([bytes(length), b"\xff" * length]))
                if length > 2
                else (draw(st.binary(min_size=length, max_size=length)))
            )
        elif how == "insert":
            data[place:place] = draw(st.binary(max_size=8))
        elif how == "drop":
            del data[place : place + length]
        elif how == "double":
            data[place:place] = data[place : place + length]
        elif how == "cut":
            del data[place:]
    return bytes(data)


@st.composite
def pictures(draw):
    """A PIL image of any mode, with what may hang on one; an array or a tensor of any kind of
    number.
    """
    height, width = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 9, 300]))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        mode = draw(st.sampled_from(MODES))
        empty = Image.new(mode, (width, height))
        raw = rng.bytes(len(empty.tobytes()))
        image = Image.frombytes(mode, empty.size, raw)
        if mode in ("P", "PA") and draw(st.booleans()):
            image.putpalette(rng.bytes(draw(st.sampled_from([3, 30, 768]))))
        if draw(st.booleans()):
            image.info["transparency"] = draw(
                st.sampled_from([0, 3, 255, 999, b"\0\xff", (1, 2, 3), "x", None])
            )
        if draw(st.booleans()):
            image.info["exif"] = draw(st.binary(max_size=20))
        elif draw(st.booleans()):
            image.getexif()[0x0112] = draw(st.sampled_from([1, 3, 6, 8, 0, 99, "x"]))
        return image
    shape = draw(
        st.sampled_from(
            [
                (height, width),
                (height, width, 3),
                (3, height, width),
                (height, width, 1),
                (height, width, 4),
                (1, height, width),
                (height, width, 7),
                (0, 3),
                (2,),
                (),
            ]
        )
    )
    kinds = [
        "uint8",
        "uint16",
        "int64",
        "float16",
        "float32",
        "float64",
        "bool",
        "complex64",
        "object",
    ]
    numbers = np.array(rng.random(shape) * draw(st.sampled_from([1, 1, 255, -1, np.nan, np.inf])))
    with np.errstate(all="ignore"):
        array = numbers.astype(draw(st.sampled_from(kinds)))
    if draw(st.booleans()) and array.dtype != object:
        array = torch.from_numpy(array)
    return array


@st.composite
def layouts(draw):
    """{path below a folder: whole, empty or broken}, up to three levels deep."""
    place = st.lists(st.sampled_from(FOLDERS), max_size=3).map("/".join)
    content = st.sampled_from(
        ["whole", "whole", "whole", "empty", "broken", "link to the folder", "link to nothing"]
    )
    return draw(st.dictionaries(st.tuples(place, st.sampled_from(FILES)), content, max_size=12))


def json_values():
    scalars = (
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats()
        | st.text(max_size=8)
        | st.sampled_from(WORDS)
    )
    return st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
        ),
        max_leaves=6,
    )


def tensors():
    """Tensors of a few numbers, of odd kinds too."""
    shape = st.lists(st.sampled_from([0, 1, 2, 8, 16, 64]), max_size=4).filter(
        lambda s: torch.Size(s).numel() < 10**5
    )
    kind = st.sampled_from(
        [torch.float32, torch.int64, torch.bool, torch.complex64, torch.bfloat16]
    )
    plain = st.builds(lambda s, k: torch.zeros(s, dtype=k), shape, kind)
    return plain | st.sampled_from([torch.eye(3).to_sparse(), torch.empty(2, 2, device="meta")])


@st.composite
def spoiled(draw, original):
    """A nested dict with some of its values, at any depth, dropped, renamed or replaced."""
    value = dict(original)
    for _ in range(draw(st.integers(1, 3))):
        key = draw(st.sampled_from([*value, "teacher"]))
        how = draw(st.sampled_from(["drop", "rename", "replace", "inside", "inside"]))
        if how == "inside" and isinstance(value.get(key), dict) and value[key]:
            value[key] = draw(spoiled(value[key]))
        elif how == "rename" and key in value:
            value[draw(st.text(max_size=5) | st.integers())] = value.pop(key)
        elif how == "replace":
            value[key] = draw(tensors() | json_values())
        else:
            value.pop(key, None)
        value = value or {"x": 1}
    return value


def flatten(value, name="x"):
    """(name, tensor) of every tensor in nested dicts."""
    if torch.is_tensor(value):
        yield name, value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}")


def foreign(trap):
    """Small checkpoints in the layouts of other people, some with a trap beside the weights."""
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, **OFFICIAL).state_dict()
    yield {"teacher": {f"backbone.{k}": v for k, v in plain.items()}}
    yield {
        "state_dict": {f"momentum_backbone.{k}": v for k, v in plain.items()},
        "hyper_parameters": trap,
        "optimizer_states": [{"state": {0: torch.ones(2)}}],
    }
    with_scale = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, init_values=1.0, **OFFICIAL
    ).state_dict()
    place = with_scale["cls_token"]
    registers = {
        "register_tokens": torch.ones(1, 4, 64),
        "pos_embed": torch.cat([place, with_scale["pos_embed"]], 1),
    }
    yield (
        with_scale
        | {k.replace("blocks.", "blocks.0."): v for k, v in with_scale.items()}
        | registers
    )
    theirs = {}
    for k, v in plain.items():
        for old, new in [
            ("blocks.", "encoder.layer."),
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("norm1", "layernorm_before"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
            ("attn.proj", "attention.output.dense"),
        ]:
            k = k.replace(old, new)
        parts = (
            zip(("query", "key", "value"), v.chunk(3), strict=True) if ".qkv." in k else [("", v)]
        )
        theirs |= {
            k.replace("attn.qkv", f"attention.attention.{part}"): piece for part, piece in parts
        }
    yield theirs | {"layernorm.weight": plain["norm.weight"], "layernorm.bias": plain["norm.bias"]}
    xcit = timm.create_model(
        "xcit_nano_12_p16_224", num_classes=0, embed_dim=16, depth=1, num_heads=2
    ).state_dict()
    yield {
        "teacher": {
            f"module.backbone.{k.replace('pos_embed.', 'pos_embeder.')}": v for k, v in xcit.items()
        }
    }


class Targets:
    """What is fuzzed: each method is a hypothesis test of one reader."""

    def __init__(self, folder):
        self.folder, self.trap, self.counts = folder, folder / "executed", {}
        (folder / "checkpoints").mkdir()
        torch.manual_seed(0)
        backbone = build_backbone(SMALL)
        state = {
            "config": dataclasses.asdict(SMALL),
            "teacher": {f"backbone.{k}": v for k, v in backbone.state_dict().items()},
            "losses": [torch.tensor(0.5)],
        }
        save_teacher(folder / "teacher.safetensors", backbone, SMALL, step=1)
        self.vit = create_backbone("vit_tiny_patch16_224", **OFFICIAL)
        self.foreign_states = [*foreign(Trap(self.trap))]
        torch.save(self.foreign_states[0], folder / "official.pth")
        torch.save({"teacher": Trap(self.trap)}, folder / "trap.pth")
        torch.save({"x": Trap(self.trap)}, folder / "old.pth", _use_new_zipfile_serialization=False)
        self.state = state
        self.checkpoints = [
            save_checkpoint(folder / "checkpoints", 1, {**state, **more}).read_bytes()
            for more in ({}, {"x": Trap(self.trap)})
        ]
        self.pickles = [
            (folder / name).read_bytes() for name in ("official.pth", "trap.pth", "old.pth")
        ]
        self.pickles.append(pickle.dumps(Trap(self.trap)))
        self.teacher = (folder / "teacher.safetensors").read_bytes()
        self.weights = load(self.teacher)
        self.images, self.json = [*images()], SMALL.to_json()

    def image(self):
        data = st.binary(max_size=200) | mutated(self.images)

        @given(data, st.sampled_from([1, 3]))
        def test(data, channels):
            with self.example("image", data, UnreadableImage):
                assert read_image(io.BytesIO(data), channels).mode == {1: "L", 3: "RGB"}[channels]

        return test

    def picture(self):
        @given(pictures(), st.sampled_from([1, 3]))
        def test(picture, channels):
            with self.example("picture", repr(picture).encode(), (UnreadableImage, TypeError)):
                image = to_channels(picture, channels)
                assert image.mode == {1: "L", 3: "RGB"}[channels]
                assert to_channels(image, channels).tobytes() == image.tobytes()
                seen = EvalTransform(8, [0.5] * channels, [0.25] * channels)(picture)
                assert (
                    seen.shape == (channels, 8, 8)
                    and seen.dtype == torch.float32
                    and seen.abs().max() <= 2
                )

        return test

    def folder_layout(self):
        root = self.folder / "layout"

        @given(layouts(), st.sampled_from([1, 3]))
        def test(layout, channels):
            shutil.rmtree(root, ignore_errors=True)
            root.mkdir()
            for (place, name), content in layout.items():
                path = root / place / name
                path.parent.mkdir(parents=True, exist_ok=True)
                if content.startswith("link"):
                    path.symlink_to(root if content.endswith("folder") else root / "nothing")
                else:
                    data = self.images[2]
                    path.write_bytes({"whole": data, "empty": b"", "broken": data[:-40]}[content])
            with self.example(
                "folder", repr(layout).encode(errors="replace"), (ValueError, FileNotFoundError)
            ):
                parts = {
                    split: open_dataset(root, "", split, channels)
                    for split in ("train", "gallery", "test")
                }
                paths = {split: paths_of(part) for split, part in parts.items()}
                assert (
                    paths["train"]
                    and paths["gallery"] <= paths["train"]
                    and not paths["train"] & paths["test"]
                )
                assert bool(paths["gallery"]) == bool(paths["test"])
                if any(path.relative_to(root).parts[0] == "train" for path in paths["train"]):
                    assert not {path.relative_to(root).parts[0] for path in paths["train"]} & {
                        *HELD_BACK
                    }
                for part in filter(None, parts.values()):
                    for i in range(len(part)):
                        with contextlib.suppress(UnreadableImage):
                            assert part[i][0].mode == {1: "L", 3: "RGB"}[channels]

        return test

    def settings_json(self):
        fields = st.sampled_from([f.name for f in dataclasses.fields(Config)])
        changed = st.dictionaries(fields, json_values(), max_size=3).map(
            lambda changes: json.dumps({**json.loads(self.json), **changes})
        )
        text = st.one_of(
            st.text(max_size=50),
            json_values().map(json.dumps),
            changed,
            mutated([self.json.encode()]).map(lambda b: b.decode(errors="replace")),
        )

        @given(text)
        def test(text):
            with self.example("settings", text.encode(errors="replace"), ValueError):
                Config.from_json(text)

        return test

    def command_line(self):
        options = [f"--{f.name.replace('_', '-')}" for f in dataclasses.fields(Config)]
        words = st.lists(
            st.sampled_from([*options, *PRESETS, "--preset", *WORDS]) | st.text(max_size=6),
            max_size=8,
        )
        pairs = st.tuples(
            st.sampled_from(options), st.sampled_from(WORDS) | st.text(max_size=6)
        ).map(list)

        @given(words | pairs)
        def test(words):
            with (
                self.example("command line", json.dumps(words).encode(), ()),
                contextlib.redirect_stdout(io.StringIO()),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                try:
                    read_settings(words)
                except ValueError:
                    self.counts["command line refused"] = (
                        self.counts.get("command line refused", 0) + 1
                    )
                except SystemExit as end:
                    assert end.code == 0 and {"-h", "--help"} & {*words}

        return test

    def checkpoint(self):
        data, path = (
            st.binary(max_size=200) | mutated(self.checkpoints),
            self.folder / "checkpoints/step_00000001.pt",
        )

        @given(data, st.booleans())
        def test(data, seal):
            if seal:
                data = (
                    data[:-73] + b"\nsha256 %s\n" % hashlib.sha256(data[:-73]).hexdigest().encode()
                )
            path.write_bytes(data)
            with self.example("checkpoint", data, ValueError):
                assert isinstance(load_newest(path.parent), dict)
            with self.example("checkpoint as teacher", data, ValueError):
                load_teacher(path)

        return test

    def checkpoint_of_odd_state(self):
        @given(spoiled(self.state))
        def test(state):
            path = save_checkpoint(
                self.folder / "checkpoints", 1, {str(k): v for k, v in state.items()}
            )
            data = path.read_bytes()
            with self.example("odd checkpoint", data, ValueError):
                assert isinstance(load_newest(path.parent), dict)
            with self.example("odd checkpoint as teacher", data, ValueError):
                load_teacher(path)

        return test

    def odd_foreign(self):
        """Other people's layouts with odd content: whole files, of both formats, under any name."""
        whole = st.sampled_from(self.foreign_states).flatmap(spoiled)
        names = st.sampled_from(["x.pth", "x.ckpt", "x.bin", "x.safetensors", "x.pth.tar", "x"])
        heads = st.sampled_from([None, 1, 1, 1, 3, 0, -1, 64])

        beside = st.sampled_from(["", "", "", "[]", "{"]) | json_values().map(
            lambda value: json.dumps({"num_attention_heads": value})
        )

        @given(
            whole | whole | whole | json_values() | tensors(), names, heads, st.booleans(), beside
        )
        def test(state, name, heads, as_safetensors, beside):
            path = self.folder / "foreign" / name
            path.parent.mkdir(exist_ok=True)
            (path.parent / "config.json").write_text(beside)
            try:
                flat = {key: value.clone() for key, value in flatten(state)}
                data = save(flat) if as_safetensors else None
            except Exception:  # what safetensors doesn't take: sparse, meta
                data = None
            if data is None:
                torch.save(state, path)
            else:
                path.write_bytes(data)
            with self.example("odd foreign", path.read_bytes(), ValueError):
                load_teacher(path, num_heads=heads)
            with self.example("odd weights", path.read_bytes(), ValueError):
                load_weights(self.vit, path)

        return test

    def pickle(self):
        path = self.folder / "official.pth"

        @given(st.binary(max_size=200) | mutated(self.pickles))
        def test(data):
            path.write_bytes(data)
            with self.example("pickle", data, ValueError):
                load_teacher(path, num_heads=1)

        return test

    def safetensors(self):
        path = self.folder / "teacher.safetensors"
        header = st.fixed_dictionaries(
            {},
            optional={
                "format": st.sampled_from(["1", "2", "", "x"]),
                "config": st.text(max_size=8) | st.just(self.json),
                "about": st.text(max_size=8) | st.just("{}"),
                "sha256": st.text(max_size=8),
            },
        )

        def seal(data):
            return data.replace(ZEROS.encode(), hashlib.sha256(data).hexdigest().encode(), 1)

        fields = st.sampled_from([f.name for f in dataclasses.fields(Config)])
        changed = st.dictionaries(fields, json_values(), max_size=2)
        options = st.dictionaries(
            st.sampled_from(["img_size", "patch_size", "embed_dim", "depth", "num_heads", "x"]),
            st.sampled_from([-1, 0, 1, 5, 12, 24, "a", 0.5, False]),
            max_size=2,
        )

        def odd(changes, options):
            config = json.loads(self.json)
            config |= changes | {"backbone_options": config["backbone_options"] | options}
            header = {"format": "2", "config": json.dumps(config), "about": "{}", "sha256": ZEROS}
            return save(self.weights, header)

        whole = mutated([seal_removed(self.teacher)]) | st.builds(odd, changed, options)

        @given(
            st.binary(max_size=100)
            | header.map(lambda h: save({"x": torch.ones(2)}, h))
            | mutated([self.teacher])
            | whole.map(seal)
        )
        def test(data):
            path.write_bytes(data)
            with self.example("teacher", data, ValueError):
                load_teacher(path)

        return test

    @contextlib.contextmanager
    def example(self, name, data, documented):
        """Run one example: the documented errors are fine, others go through, and what takes too
        long ends it all.
        """
        self.counts[name] = self.counts.get(name, 0) + 1
        (self.folder / "last").write_bytes(data)
        faulthandler.dump_traceback_later(SECONDS, exit=True, file=sys.__stderr__)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                yield
        except documented:
            self.counts[f"{name} refused"] = self.counts.get(f"{name} refused", 0) + 1
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert not self.trap.exists(), "code was run"


def seal_removed(data):
    """A teacher's file with zeros in the place of its checksum."""
    start = data.index(b'"sha256":"') + 10
    return data[:start] + ZEROS.encode() + data[start + 64 :]


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--examples", type=int, default=200, help="of each kind, in one round")
    parser.add_argument("--keep", type=Path, help="a folder for the inputs that fail")
    args = parser.parse_args(argv)
    faulthandler.enable(sys.__stderr__)
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore", HypothesisWarning)
    torch.set_num_threads(1)
    clock, rounds, wrong = time.perf_counter(), 0, {}
    with tempfile.TemporaryDirectory() as folder:
        targets = Targets(Path(folder))
        tests = [
            targets.image,
            targets.picture,
            targets.folder_layout,
            targets.settings_json,
            targets.command_line,
            targets.checkpoint,
            targets.checkpoint_of_odd_state,
            targets.pickle,
            targets.odd_foreign,
            targets.safetensors,
        ]
        while rounds == 0 or time.perf_counter() - clock < 60 * args.minutes:
            for test in tests:
                run = settings(
                    max_examples=args.examples,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                    phases=[Phase.generate],
                    print_blob=False,
                )(seed(args.seed + rounds)(test()))
                try:
                    run()
                except Exception as error:
                    inner = error.exceptions[0] if isinstance(error, ExceptionGroup) else error
                    place = inner.__traceback__
                    while place.tb_next:
                        place = place.tb_next
                    code = place.tb_frame.f_code
                    where = (
                        f"{test.__name__}: {type(inner).__name__} in "
                        f"{code.co_filename}:{place.tb_lineno}"
                    )
                    if where not in wrong:
                        wrong[where] = str(inner)[:300]
                        print(f"{where}: {wrong[where]}", flush=True)
                        if args.keep:
                            args.keep.mkdir(parents=True, exist_ok=True)
                            (args.keep / f"{len(wrong)}_{test.__name__}").write_bytes(
                                Path(folder, "last").read_bytes()
                            )
            rounds += 1
        executed = targets.trap.exists()
        targets.trap.parent.mkdir(exist_ok=True)
        torch.save({"teacher": Trap(targets.trap)}, Path(folder, "trap.pth"))
        torch.load(Path(folder, "trap.pth"), weights_only=False)
        works = targets.trap.exists()
    counts = targets.counts
    print(
        "; ".join(
            f"{name}: {n} examples, {counts.get(f'{name} refused', 0)} refused"
            for name, n in counts.items()
            if not name.endswith("refused")
        )
    )
    print(
        f"{rounds} rounds in {time.perf_counter() - clock:.0f} s: {len(wrong)} kinds of foreign "
        f"errors, code "
        f"executed: {executed} (the trap works: {works})"
    )
    sys.exit(1 if wrong or executed or not works else 0)


if __name__ == "__main__":
    main()
