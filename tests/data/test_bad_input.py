"""What is wrong gets one clear error, which names the value and what would be right: a table, and
nothing is lost.
"""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from dino_lib import cli
from dino_lib.augment import MultiCrop
from dino_lib.backbone import create_backbone
from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.datasets import open_dataset
from dino_lib.data.folders import FolderOfImages
from dino_lib.data.images import PHOTOS, InputError, read_image
from dino_lib.data.shapes import Shapes
from dino_lib.data.store import decode_store
from dino_lib.head import DINOHead, MultiCropModel, OriginalHead
from dino_lib.loss import DINOLoss
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import knn_predict
from dino_lib.measure.masks import jaccard, mass_mask
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.config import Config
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.train import build_trainer, train
from dino_lib.schedules import cosine_schedule
from dino_lib.teacher import ema_update, make_teacher
from dino_lib.teachers.load import SHIPPED, load_teacher

NAN, INF = float("nan"), float("inf")
VIT = {"img_size": 24, "patch_size": 6, "embed_dim": 16, "depth": 1, "num_heads": 2}
SMOKE = PRESETS["smoke"]


def vit():
    return create_backbone("vit_tiny_patch16_224", **VIT)


def rows(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def trainer(folder, images=None, **changes):
    return build_trainer(
        dataclasses.replace(SMOKE, output_dir=str(folder / "new"), **changes), images
    )


def written(folder, name, content):
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content) if isinstance(content, bytes) else path.write_text(content)
    return path


def history(folder, text):
    shutil.copy(SHIPPED / "demo" / "config.json", folder / "config.json")
    written(folder, "history.jsonl", text)
    return read_history(folder)


def saved(folder, content):
    torch.save(content, folder / "x.pth")
    return load_teacher(folder / "x.pth")


LINE = '{"step": 1, "epoch": 0.1}\n'

# name: (what is done in an empty folder, the error, the words that it has)
CALLS = {
    # settings, from Python
    "a number as text": (
        lambda f: Config(batch_size="64"),
        ValueError,
        "batch_size='64': Input should be a valid integer",
    ),
    "none for a number": (
        lambda f: Config(epochs=None),
        ValueError,
        "epochs=None: Input should be a valid number",
    ),
    "a fraction of an image": (
        lambda f: Config(batch_size=64.5),
        ValueError,
        "batch_size=64.5: Input should be a valid integer",
    ),
    "true for a number": (
        lambda f: Config(n_local=True),
        ValueError,
        "n_local=True: Input should be a valid integer",
    ),
    "one for true": (lambda f: Config(use_bn=1), ValueError, "use_bn=1: Input should be"),
    **{
        f"{f.name} is {value}": (
            lambda _, n=f.name, v=value: Config(**{n: v}),
            ValueError,
            f"{f.name}={value}: Input should be a finite number",
        )
        for f in dataclasses.fields(Config)
        if f.type is float
        for value in (NAN, INF)
    },
    "nan in a tuple": (
        lambda f: Config(local_scale=(NAN, 1.0)),
        ValueError,
        "local_scale.0=nan: Input should be a finite number",
    ),
    "too few in a tuple": (
        lambda f: Config(blur_p=(1.0, 0.1)),
        ValueError,
        "blur_p.2=(1.0, 0.1): Field required",
    ),
    "a mean of two": (
        lambda f: Config(mean=(0.5, 0.5), std=(0.2, 0.2)),
        ValueError,
        "1 entry (grey) or 3 (RGB)",
    ),
    "a number for text": (lambda f: Config(output_dir=3), ValueError, "output_dir=3: must be"),
    "no dataset's name": (
        lambda f: Config(dataset=""),
        ValueError,
        "dataset='': must be a path",
    ),
    "no folder's name": (
        lambda f: Config(output_dir=""),
        ValueError,
        "output_dir='': must be a path",
    ),
    "momentum 1.5": (
        lambda f: Config(momentum=1.5),
        ValueError,
        "momentum=1.5: Input should be less than or equal to 1",
    ),
    "views of 4 pixels": (
        lambda f: Config(local_size=4),
        ValueError,
        "local_size=4 must be at least 8 pixels",
    ),
    "an option that is a class": (
        lambda f: Config(backbone_options={"act": dict}),
        ValueError,
        "backbone_options.act.int=<class 'dict'>: Input should be a valid integer",
    ),
    # settings, from JSON
    "no JSON": (lambda f: Config.from_json("epochs: 3"), ValueError, "line 1 column 1"),
    "a list": (
        lambda f: Config.from_json("[1]"),
        ValueError,
        "settings must be a JSON object, not '[1]'",
    ),
    "a newer version's": (
        lambda f: Config.from_json('{"warp": 1}'),
        ValueError,
        "warp=1: Unexpected keyword argument",
    ),
    "text in JSON": (
        lambda f: Config.from_json('{"lr": "1e-3"}'),
        ValueError,
        "lr='1e-3': Input should be a valid number",
    ),
    # settings that do not suit each other, before anything is decoded
    "global views no multiple of the patch": (
        lambda f: trainer(f, global_size=40),
        ValueError,
        "global_size=40 does not suit the backbone: image sides (40, 40)",
    ),
    "local views no multiple": (
        lambda f: trainer(f, local_size=20),
        ValueError,
        "local_size=20 does not suit",
    ),
    "a store no multiple": (
        lambda f: trainer(f, store_size=50),
        ValueError,
        "store_size=50 does not suit the backbone",
    ),
    "a view smaller than a patch": (
        lambda f: trainer(
            f, backbone_options={"img_size": 48, "patch_size": 16}, global_size=48, local_size=8
        ),
        ValueError,
        "local_size=8 does not suit the backbone: image sides (8, 8) must be divisible by the "
        "patch size (16, 16)",
    ),
    "an option that timm does not know": (
        lambda f: trainer(f, backbone_options={"depht": 2}),
        ValueError,
        "refuses the options {'depht': 2",
    ),
    "heads that do not divide the width": (
        lambda f: trainer(f, backbone_options={"num_heads": 7}),
        ValueError,
        "vit_tiny_patch16_224 refuses the options",
    ),
    "a depth of nothing": (
        lambda f: trainer(f, backbone_options={"depth": -1}),
        ValueError,
        "vit_tiny_patch16_224 refuses the options",
    ),
    "a patch of 0": (
        lambda f: trainer(f, backbone_options={"patch_size": 0}),
        ValueError,
        "vit_tiny_patch16_224 refuses the options",
    ),
    "a model that there is not": (
        lambda f: trainer(f, backbone="vit_tinny_patch16_224"),
        ValueError,
        "timm has no model 'vit_tinny_patch16_224'",
    ),
    "an output folder that is a file": (
        lambda f: build_trainer(
            dataclasses.replace(SMOKE, output_dir=str(written(f, "file", "x")))
        ),
        ValueError,
        "file is not a folder that can be written to",
    ),
    "an output folder below a file": (
        lambda f: build_trainer(
            dataclasses.replace(SMOKE, output_dir=str(written(f, "file", "x") / "run"))
        ),
        ValueError,
        "file is not a folder that can be written to",
    ),
    # datasets and images
    "a dataset that there is not": (
        lambda f: trainer(f, dataset="shapez"),
        ValueError,
        "'shapez': the names are shapes",
    ),
    "an empty folder": (lambda f: trainer(f, dataset=str(f)), FileNotFoundError, "no images in"),
    "a dataset that is a file": (
        lambda f: trainer(f, dataset=str(written(f, "a.txt", "x"))),
        FileNotFoundError,
        "no folder of images at",
    ),
    "a download that is not allowed": (
        lambda f: trainer(f, dataset="cifar10", data_root=str(f), download=False),
        InputError,
        "By hand: get cifar-10",
    ),
    "a part that there is not": (
        lambda f: open_dataset("shapes", f, "val"),
        ValueError,
        "split='val' must be",
    ),
    "an empty dataset": (lambda f: trainer(f, []), ValueError, "the dataset holds no images"),
    "a stream": (
        lambda f: trainer(f, (i for i in range(9))),
        TypeError,
        "dataset is a generator: expected pictures by number",
    ),
    "tensors for images": (
        lambda f: trainer(f, [rows(3, 24, 24)] * 20),
        InputError,
        "float32 (3, 24, 24) with values outside of [0, 1]",
    ),
    "a dataset that fails": (
        lambda f: trainer(f, dict.fromkeys([0, *range(2, 20)], Image.new("RGB", (9, 9)))),
        InputError,
        "item 1 of the dataset raised KeyError",
    ),
    "only broken images": (
        lambda f: decode_store(FolderOfImages(written(f, "a.png", b"").parent), 8),
        InputError,
        "none of the 1 images could be read",
    ),
    "a store of no size": (
        lambda f: decode_store(Shapes(2), 0),
        ValueError,
        "size=0 must be at least 1 pixel",
    ),
    "no image in a file": (
        lambda f: read_image(written(f, "a.png", b"no")),
        ValueError,
        "not an image that PIL can read",
    ),
    "an image cut off": (
        lambda f: read_image(written(f, "a.png", (PHOTOS / "bonsai.jpg").read_bytes()[:4000])),
        ValueError,
        "a.png (",
    ),
    "no image at all": (lambda f: read_image(f / "nothing.png"), FileNotFoundError, "nothing.png"),
    "channels": (
        lambda f: read_image(f, channels=4),
        ValueError,
        "channels=4 must be 3 (RGB) or 1 (grey)",
    ),
    # checkpoints, teachers and histories
    "no teacher": (lambda f: load_teacher(f), FileNotFoundError, "expected one that ships"),
    "a teacher that is text": (
        lambda f: load_teacher(written(f, "teacher.safetensors", "x").parent),
        ValueError,
        "is damaged",
    ),
    "a tensor for weights": (lambda f: saved(f, torch.ones(3)), ValueError, "x.pth"),
    "weights of something else": (
        lambda f: saved(f, {"fc": torch.ones(3)}),
        ValueError,
        "no ViT, XCiT or ResNet",
    ),
    "a model that timm has not": (
        lambda f: load_teacher("timm:vit"),
        ValueError,
        "timm has no model 'vit'",
    ),
    "checkpoints of nothing": (
        lambda f: load_newest(written(f, "step_00000001.pt", b"").parent),
        ValueError,
        "none of the 1 checkpoints",
    ),
    "no history": (lambda f: read_history(f), FileNotFoundError, "history.jsonl"),
    "a line that is no JSON": (
        lambda f: history(f, LINE + "lost\n" + LINE),
        ValueError,
        "history.jsonl, line 2 is no line of a history: 'lost'",
    ),
    "a line that is a number": (
        lambda f: history(f, "5\n" + LINE),
        ValueError,
        "line 1 is no line of a history: '5'",
    ),
    "a line without its step": (
        lambda f: history(f, '{"loss": 1}\n' + LINE),
        ValueError,
        "line 1 is no line of a history",
    ),
    # views
    "a scale of one number": (
        lambda f: MultiCrop(global_scale=0.4),
        ValueError,
        "global_scale=0.4 must be (low, high)",
    ),
    "a scale upside down": (
        lambda f: MultiCrop(local_scale=(1.0, 0.4)),
        ValueError,
        "local_scale=(1.0, 0.4) must be",
    ),
    "a mean of one number": (
        lambda f: MultiCrop(mean=0.5, std=0.5),
        ValueError,
        "mean=0.5 and std=0.5 must both have",
    ),
    "a deviation of 0": (
        lambda f: BatchMultiCrop(std=(0.0, 1.0, 1.0)),
        ValueError,
        "std=(0.0, 1.0, 1.0) must be at least 0.01",
    ),
    "a hue of a whole turn": (
        lambda f: BatchMultiCrop(color_jitter=(0, 0, 0, 1)),
        ValueError,
        "hue, the last, at most 0.5",
    ),
    "a size with a fraction": (
        lambda f: MultiCrop(global_size=22.5),
        ValueError,
        "global_size=22.5 must be a whole number",
    ),
    "an array": (
        lambda f: MultiCrop()(np.zeros((24, 24, 3))),
        ValueError,
        "expected a PIL image or a uint8 tensor",
    ),
    "a float image": (
        lambda f: MultiCrop()(rows(3, 24, 24)),
        ValueError,
        "expected a PIL image or a uint8 tensor",
    ),
    "a grey image": (
        lambda f: MultiCrop()(Image.new("L", (24, 24))),
        ValueError,
        "with 3 channels",
    ),
    "one image as a batch": (
        lambda f: BatchMultiCrop()(torch.zeros(3, 24, 24, dtype=torch.uint8)),
        ValueError,
        "expected uint8 images (B, 3",
    ),
    "a list as a batch": (
        lambda f: BatchMultiCrop()([1, 2]),
        ValueError,
        "expected uint8 images (B, 3, H, W)",
    ),
    "too few uniforms": (
        lambda f: BatchMultiCrop()(
            torch.zeros(2, 3, 24, 24, dtype=torch.uint8), uniforms=torch.zeros(2, 3)
        ),
        ValueError,
        "expected uniforms (2,",
    ),
    # networks
    "a head of no layers": (
        lambda f: DINOHead(8, 4, n_layers=0),
        ValueError,
        "n_layers=0 must be a whole number",
    ),
    "a head of no prototypes": (
        lambda f: DINOHead(8, 0),
        ValueError,
        "out_dim=0 must be a whole number, at least 1",
    ),
    "a width with a fraction": (
        lambda f: OriginalHead(8, 4, hidden_dim=2.5),
        ValueError,
        "hidden_dim=2.5 must be a whole",
    ),
    "features of another width": (
        lambda f: DINOHead(8, 4)(rows(2, 7)),
        ValueError,
        "features (2, 7) do not fit the head: expected (N, 8)",
    ),
    "the same, original": (lambda f: OriginalHead(8, 4)(rows(2, 7)), ValueError, "expected (N, 8)"),
    "no views": (
        lambda f: MultiCropModel(vit(), DINOHead(16, 4))([]),
        ValueError,
        "views are []: expected",
    ),
    "views of several batches": (
        lambda f: MultiCropModel(vit(), DINOHead(16, 4))([rows(4, 3, 24, 24), rows(2, 3, 24, 24)]),
        ValueError,
        "views are [(4, 3, 24, 24), (2, 3, 24, 24)]: expected (B, C, h, w) with one B",
    ),
    "an image side": (
        lambda f: vit()(rows(1, 3, 24, 25)),
        ValueError,
        "(24, 25) must be divisible by the patch size (6, 6)",
    ),
    "an image's channels": (
        lambda f: vit()(rows(1, 1, 24, 24)),
        ValueError,
        "images (1, 1, 24, 24): expected (B, 3, H, W)",
    ),
    "one image": (
        lambda f: vit()(rows(3, 24, 24)),
        ValueError,
        "images (3, 24, 24): expected (B, 3, H, W)",
    ),
    "momentum beyond 1": (
        lambda f: ema_update(vit(), vit(), 1.5),
        ValueError,
        "momentum=1.5 must lie in [0, 1]",
    ),
    "momentum as text": (
        lambda f: ema_update(vit(), vit(), "0.9"),
        ValueError,
        "momentum='0.9' must be a number in [0, 1]",
    ),
    "another network": (
        lambda f: ema_update(vit(), DINOHead(8, 4), 0.9),
        ValueError,
        "build the teacher with make_teacher(student)",
    ),
    # loss and schedules
    "a student of one view": (
        lambda f: DINOLoss(4)(rows(1, 2, 4), rows(2, 2, 4), 0.04),
        ValueError,
        "(V >= 2, B, 4)",
    ),
    "a list of views": (
        lambda f: DINOLoss(4)([rows(2, 4)] * 2, rows(2, 2, 4), 0.04),
        ValueError,
        "student list and",
    ),
    "another number of prototypes": (
        lambda f: DINOLoss(4)(rows(2, 2, 5), rows(2, 2, 5), 0.04),
        ValueError,
        "(V >= 2, B, 4)",
    ),
    "a temperature of 0": (
        lambda f: DINOLoss(4)(rows(2, 2, 4), rows(2, 2, 4), 0.0),
        ValueError,
        "teacher_temp=0.0 must be positive",
    ),
    "a student's temperature": (
        lambda f: DINOLoss(4, student_temp=-0.1),
        ValueError,
        "student_temp=-0.1 must be positive",
    ),
    "a center's momentum": (
        lambda f: DINOLoss(4, center_momentum=1.5),
        ValueError,
        "center_momentum=1.5 must lie in [0, 1]",
    ),
    "rows for another center": (
        lambda f: DINOLoss(4).update_center(rows(3, 8)),
        ValueError,
        "teacher_rows (3, 8) do not fit the center: expected",
    ),
    "no rows for the center": (
        lambda f: DINOLoss(4).update_center(rows(0, 4)),
        ValueError,
        "teacher_rows (0, 4)",
    ),
    "a warm-up beyond the end": (
        lambda f: cosine_schedule(1, 0, 5, warmup_steps=6),
        ValueError,
        "warmup_steps=6 must lie between 0 and total",
    ),
    "half a step": (
        lambda f: cosine_schedule(1, 0, 5.5),
        ValueError,
        "total_steps=5.5 and warmup_steps=0 must be whole",
    ),
    "a schedule from nan": (
        lambda f: cosine_schedule(NAN, 0, 5),
        ValueError,
        "base=nan, final=0 and start=0.0 must be finite",
    ),
    # what is measured
    "images with nan": (
        lambda f: extract_features(vit(), rows(2, 3, 24, 24) * NAN),
        ValueError,
        "images hold NaN or infinite",
    ),
    "images not normalised": (
        lambda f: extract_features(vit(), rows(2, 3, 24, 24).abs() * 255),
        ValueError,
        "normalise them first",
    ),
    "uint8 images": (
        lambda f: extract_features(vit(), torch.zeros(2, 3, 24, 24, dtype=torch.uint8)),
        TypeError,
        "images are torch.uint8",
    ),
    "an array of images": (
        lambda f: extract_features(vit(), np.zeros((2, 3, 24, 24))),
        TypeError,
        "images are ndarray",
    ),
    "images without channels": (
        lambda f: extract_features(vit(), rows(2, 24, 24)),
        ValueError,
        "images (2, 24, 24): expected (B, C, H, W)",
    ),
    "no images": (
        lambda f: extract_features(vit(), rows(0, 3, 24, 24)),
        ValueError,
        "no images: expected at least one",
    ),
    "k=0": (
        lambda f: knn_predict(rows(4, 2), [0, 1, 0, 1], rows(2, 2), k=0),
        ValueError,
        "k=0 must lie between 1 and",
    ),
    "a k beyond the gallery": (
        lambda f: knn_predict(rows(4, 2), [0, 1, 0, 1], rows(2, 2), k=5),
        ValueError,
        "to search, 4",
    ),
    "labels of another length": (
        lambda f: knn_predict(rows(4, 2), [0, 1], rows(2, 2), k=1),
        ValueError,
        "expected 4 integers",
    ),
    "negative labels": (
        lambda f: knn_predict(rows(2, 2), [0, -1], rows(2, 2), k=1),
        ValueError,
        "hold -1: class ids start at 0",
    ),
    "a temperature of nan": (
        lambda f: knn_predict(rows(2, 2), [0, 1], rows(2, 2), k=1, temperature=NAN),
        ValueError,
        "temperature=nan must be",
    ),
    "features with nan": (
        lambda f: knn_predict(rows(2, 2) * NAN, [0, 1], rows(2, 2), k=1),
        ValueError,
        "features hold NaN or infinite",
    ),
    "an array of features": (
        lambda f: knn_predict(np.ones((2, 2)), [0, 1], rows(2, 2), k=1),
        TypeError,
        "features are ndarray",
    ),
    "masks of numbers": (
        lambda f: jaccard(rows(1, 1, 2, 2), rows(1, 2, 2)),
        TypeError,
        "expected bool",
    ),
    "masks of another size": (
        lambda f: jaccard(rows(1, 1, 2, 2) > 0, rows(1, 3, 3) > 0),
        ValueError,
        "upsample brings masks",
    ),
    "no masks": (
        lambda f: jaccard(rows(0, 1, 2, 2) > 0, rows(0, 2, 2) > 0),
        ValueError,
        "(N, heads, H, W)",
    ),
    "a layer that there is not": (
        lambda f: cls_attention(vit(), rows(1, 3, 24, 24), layer=1),
        ValueError,
        "layer=1: ",
    ),
    "a layer by name": (
        lambda f: cls_attention(vit(), rows(1, 3, 24, 24), layer="last"),
        ValueError,
        "layer='last': ",
    ),
    "attention of a CNN": (
        lambda f: cls_attention(create_backbone("resnet18"), rows(1, 3, 32, 32)),
        TypeError,
        "ResNet has no CLS token",
    ),
    "attention to nan": (
        lambda f: cls_attention(vit(), rows(1, 3, 24, 24) * NAN),
        ValueError,
        "images hold NaN or infinite",
    ),
    "all of the mass and more": (
        lambda f: mass_mask(rows(2, 2).abs(), 60),
        ValueError,
        "keep=60 must lie in (0, 1]",
    ),
    "negative mass": (
        lambda f: mass_mask(rows(4, 4)),
        ValueError,
        "maps hold negative or NaN values",
    ),
    "a row for a map": (
        lambda f: mass_mask(torch.ones(4)),
        ValueError,
        "maps (4,): expected a tensor (..., h, w)",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_bad_call_is_refused_in_clear_words(tmp_path, name):
    call, kind, words = CALLS[name]
    with pytest.raises(kind) as error:
        call(tmp_path)
    assert type(error.value) is kind or (
        issubclass(type(error.value), kind) and kind in (ValueError, InputError)
    )
    assert words in str(error.value)
    assert not (tmp_path / "new").exists()  # nor is a folder left of a run that never was


def test_the_table_is_long_enough():
    assert len(CALLS) + len(COMMANDS) >= 60


# command line -> what its line on stderr says; {} is a folder with a finished run, `run`, and a few
# wrong things
TRAIN = ["--preset", "smoke", "--eval-every", "0", "--output-dir", "{}/new"]
COMMANDS = {
    "an unknown setting": ("train", [*TRAIN, "--batch-sise", "3"], "--batch-sise"),
    "an unknown preset": ("train", ["--preset", "smok"], "invalid choice: 'smok' (choose from"),
    "text for a number": ("train", [*TRAIN, "--batch-size", "many"], "many"),
    "a fraction": ("train", [*TRAIN, "--batch-size", "64.5"], "64.5"),
    "nan": ("train", [*TRAIN, "--lr", "nan"], "lr='nan': Input should be a valid number"),
    "too few values": ("train", [*TRAIN, "--global-scale", "0.3"], "--global-scale"),
    "an option without value": (
        "train",
        [*TRAIN, "--backbone-options", "depth"],
        "'depth' has no value",
    ),
    "an option that timm refuses": (
        "train",
        [*TRAIN, "--backbone-options", "depht", "2"],
        "refuses the options",
    ),
    "a size": ("train", [*TRAIN, "--local-size", "20"], "local_size=20 does not suit the backbone"),
    "more than there is": (
        "train",
        [*TRAIN, "--batch-size", "128"],
        "batch_size=128 is larger than the 64 training images",
    ),
    "a dataset": ("train", [*TRAIN, "--dataset", "{}/nowhere"], "no dataset or folder is called"),
    "a download": (
        "train",
        [*TRAIN, "--dataset", "stl10", "--download", "False", "--data-root", "{}"],
        "By hand: get stl10",
    ),
    "a file for a folder": (
        "train",
        [*TRAIN[:-1], "{}/file"],
        "is not a folder that can be written to",
    ),
    "a device": ("train", [*TRAIN, "--device", "mps"], "device=mps is not available here"),
    "a run that is there": ("train", [*TRAIN[:-1], "{}/run"], "go on with --resume auto"),
    "another run's settings": (
        "train",
        [*TRAIN[:-1], "{}/run", "--resume", "auto", "--lr", "1"],
        "lr=1.0 (was",
    ),
    "report: no folder": ("report", ["{}/nowhere"], "no teacher"),
    "report: no run": ("report", ["{}/empty"], "no teacher"),
    "report: nothing": ("report", [], "the following arguments are required: teacher"),
    "report: a broken history": ("report", ["{}/broken"], "line 2 is no line of a history"),
    "doctor: no folder": ("doctor", ["{}/nowhere"], "is not a run's folder"),
    "doctor: a file": ("doctor", ["{}/file"], "is not a run's folder"),
    "doctor: a broken history": ("doctor", ["{}/broken"], "line 2 is no line of a history"),
    "doctor: a newer run": (
        "doctor",
        ["{}/newer"],
        "warp=9: Unexpected keyword argument",
    ),
    "explore: no image": ("explore", ["{}/nowhere"], "no folder of images at"),
    "explore: an empty folder": ("explore", ["{}/empty"], "no images in"),
    "explore: no such teacher": ("explore", ["{}/a.png", "--teacher", "dmeo"], "no teacher 'dmeo'"),
    "explore: a broken image": ("explore", ["{}/bad.png"], "bad.png ("),
    "explore: less than a patch": (
        "explore",
        ["{}/a.png", "--size", "2"],
        "size=2 is less than one patch",
    ),
    "explore: no image to take": (
        "explore",
        ["{}/images", "--limit", "0"],
        "limit=0 must be at least 1",
    ),
    "video: a head's name": (
        "video",
        ["{}/a.png", "--head", "first"],
        "--head 'first' must be a number, or mean",
    ),
    "explore: a file to write into": ("explore", ["{}/a.png", "--out", "{}/file"], "file"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("wrong")
    train(dataclasses.replace(SMOKE, eval_every=0, epochs=0.5, output_dir=str(root / "run")))
    for name in ("empty", "images"):
        (root / name).mkdir()
    Image.new("RGB", (50, 50)).save(root / "a.png")
    Image.new("RGB", (50, 50)).save(root / "images" / "a.png")
    (root / "bad.png").write_bytes(b"no image")
    (root / "file").write_text("a file")
    for name in ("broken", "newer"):
        shutil.copytree(SHIPPED / "demo", root / name)
    with open(root / "broken" / "history.jsonl", "r+") as file:
        lines = file.readlines()
        file.seek(0)
        file.writelines([lines[0], "lost\n", *lines[1:]])
    settings = json.loads((root / "newer" / "config.json").read_text())
    (root / "newer" / "config.json").write_text(json.dumps({**settings, "warp": 9}))
    return root


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_bad_command_ends_in_one_line_and_loses_nothing(
    folder, tmp_path, monkeypatch, capsys, name
):
    command, words, expected = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    before = contents(folder)
    with pytest.raises(SystemExit) as error:
        cli.main([command, *(word.format(folder) for word in words)])
    said = (
        capsys.readouterr().err or f"{error.value.code}\n"
    )  # sys.exit(text): Python writes it to stderr
    assert error.value.code == 2 or isinstance(error.value.code, str)  # with a text: 1
    assert expected in said and said.count("\n") == 1, said
    assert contents(folder) == before and not list(tmp_path.rglob("*.html"))


def test_a_folder_without_permission_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may do everything
    with pytest.raises(ValueError, match="is not a folder that can be written to"):
        trainer(tmp_path)


def test_the_same_calls_with_what_is_right_pass(tmp_path):
    """What the table's mends could have forbidden."""
    assert len(cosine_schedule(1, 0, np.int64(5), warmup_steps=np.int64(2))) == 5
    DINOHead(np.int64(8), 4)(rows(2, 3, 8))
    ema_update(make_teacher(vit()), vit(), torch.tensor(0.5))
    ema_update(make_teacher(vit()), vit(), np.float64(0.5))
    loss = DINOLoss(4)
    assert loss(rows(3, 2, 4).half(), rows(2, 2, 4).half(), np.float64(0.04)) > 0
    loss.update_center(rows(2, 5, 4))
    MultiCrop(global_scale=[0.4, 1], mean=[0.5] * 3, std=[0.2] * 3)
    assert mass_mask(torch.ones(2, 3, 4, 4)).shape == (2, 3, 4, 4)
    assert read_history(history(tmp_path, LINE + '{"step": 2, "lo') and tmp_path) == [
        json.loads(LINE)
    ]
