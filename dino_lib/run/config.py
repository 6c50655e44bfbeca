"""Every setting of a run, its type, its help and its presets: the command line is made from this one place."""

import argparse
import ast
import dataclasses
import json
import math
import numbers
from dataclasses import dataclass, field
from typing import Annotated, Literal, get_args, get_origin

from tyro.constructors import PrimitiveConstructorSpec

from dino_lib.augment import IMAGENET


def _read_pairs(words):
    """["depth", "2", "class_token", "False"] -> {"depth": 2, "class_token": False}; what is no literal is a str."""
    if len(words) % 2:
        raise ValueError(f"{words[-1]!r} has no value: give pairs, name value name value")

    def value(word):
        try:
            return ast.literal_eval(word)
        except (ValueError, SyntaxError):
            return word

    return {name: value(word) for name, word in zip(words[::2], words[1::2], strict=True)}


# a dict with a default would be read as one option for each key that the default happens to have
Options = Annotated[dict[str, int | float | bool | str], PrimitiveConstructorSpec(
    nargs="*", metavar="[NAME VALUE ...]", instance_from_str=_read_pairs,
    is_instance=lambda options: isinstance(options, dict),
    str_from_instance=lambda options: [str(word) for pair in options.items() for word in pair])]


def _fits(value, kind):
    """Whether a value is of an annotated type. An int is a float as well, a bool no number; numbers are finite."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _fits(value, parts[0])
    if origin is Literal:
        return isinstance(value, str) and value in parts
    if origin is tuple:
        many = len(value) if isinstance(value, tuple) else -1
        return many > 0 and (parts[-1] is ... or many == len(parts)) and all(_fits(v, parts[0]) for v in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits(k, parts[0]) and _fits(v, parts[1]) for k, v in value.items())
    if parts:  # a union
        return any(_fits(value, part) for part in parts)
    if kind in (int, float):
        number = numbers.Integral if kind is int else numbers.Real
        return isinstance(value, number) and not isinstance(value, bool) and math.isfinite(value)
    return isinstance(value, kind)


def _words(kind):
    """An annotated type in words."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return _words(parts[0])
    if origin is Literal:
        return f"one of {', '.join(parts)}"
    if origin is tuple:
        return f"a tuple of {'' if parts[-1] is ... else f'{len(parts)} '}finite numbers"
    if origin is dict:
        return "a dict of names and plain values"
    if parts:
        return " or ".join(map(_words, parts))
    return {int: "a whole number", float: "a finite number", bool: "True or False", str: "text"}.get(kind, "None")


@dataclass(frozen=True)
class Config:
    """A DINO run. Durations called epochs may be fractions; sizes are in pixels."""

    dataset: str = "shapes"
    """What to train on: shapes, stl10, cifar10, caltech101, imagenette, or the path of a folder of images."""
    data_root: str = "data"
    """Where the named datasets are, or are downloaded to."""
    download: bool = True
    """Download a named dataset that is not in data_root yet."""
    limit: int | None = None
    """Use only the first images of the training set, at most this many."""
    store_size: int | None = None
    """Decode every image once to a square of this side, kept in memory, and make the views of a whole batch at a
    time on the device. Without it each image is decoded anew, at full size, in worker processes."""
    mean: tuple[float, ...] = IMAGENET[0]
    """Mean of each channel in [0, 1]; one entry for grey images, three for RGB."""
    std: tuple[float, ...] = IMAGENET[1]
    """Standard deviation of each channel."""

    global_size: int = 224
    """Side of the two global views."""
    local_size: int = 96
    """Side of the local views."""
    n_local: int = 8
    """Number of local views."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area that a global view covers (lowest, highest)."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """Share of the image's area that a local view covers. Raise the lower bound for small images."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast, saturation and hue jitter."""
    gray_p: float = 0.2
    """Probability of a grey view."""
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    """Probability of blur in global view 1, global view 2 and the local views."""
    solarize_p: float = 0.2
    """Probability of solarization in global view 2."""

    backbone: str = "vit_small_patch16_224"
    """Name of any timm model."""
    backbone_options: Options = field(default_factory=dict)
    """The model's own options, as pairs that replace the preset's: img_size 96 patch_size 8."""
    conv_stem: bool = False
    """Embed the patches of a ViT by a stack of convolutions: for tiny models and budgets."""
    pretrained: bool = False
    """Start from timm's pretrained weights (downloaded)."""
    train_backbone: bool = True
    """False trains the head alone on a frozen backbone."""
    drop_path: float = 0.1
    """Stochastic depth in the student; the teacher has none."""

    head: Literal["dino", "original"] = "dino"
    """The paper's head, or the five-layer head of the repository that this course starts from."""
    out_dim: int = 65536
    """Number of prototypes K. 65536 is for ImageNet; small data wants 256 to 4096."""
    hidden_dim: int = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: int = 256
    """Width of the head's normalised bottleneck."""
    head_layers: int = 3
    """Linear layers in the head before the normalisation."""
    use_bn: bool = False
    """Batch norm in the head. Speeds up tiny models; accumulation and several processes then differ from one large
    batch, since the statistics are those of the rows at hand."""
    norm_last_layer: bool = True
    """Hold the gain of the prototypes at 1."""

    student_temp: float = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: float = 0.04
    """Final temperature of the teacher's softmax; above 0.07 is unstable."""
    warmup_teacher_temp: float = 0.04
    """Temperature of the teacher at the start."""
    warmup_teacher_temp_epochs: float = 0.0
    """Length of the linear warm-up of the teacher temperature."""
    center_momentum: float = 0.9
    """Share of the old center kept at each update."""

    epochs: float = 100.0
    """Length of the run."""
    batch_size: int = 64
    """Images an update, over all processes and accumulated parts."""
    accumulate: int = 1
    """Parts that a batch is cut into to save memory; the update is that of the whole batch."""
    lr: float = 5e-4
    """Peak learning rate, used as it is. The official rule, 0.0005 * batch_size / 256, is for you to apply."""
    min_lr: float = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_epochs: float = 10.0
    """Length of the linear warm-up of the learning rate."""
    weight_decay: float = 0.04
    """Weight decay at the start; none on biases and other 1-D parameters."""
    weight_decay_end: float = 0.4
    """Weight decay at the end of its cosine."""
    momentum: float = 0.996
    """Momentum of the teacher at the start. Its half-life must fit the run: 0.996 is 173 updates, 0.98 is 34."""
    momentum_end: float = 1.0
    """Momentum of the teacher at the end of its cosine."""
    clip_grad: float = 3.0
    """Largest global norm of the gradient (the official code clips each tensor by itself); 0 for no clipping."""
    freeze_last_layer: float = 1.0
    """Epochs in which the head's last layer is not updated."""

    seed: int = 0
    """Seed of the weights, the order of the images and their views."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Where to train."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; auto takes what the hardware is made for and says which."""
    compile: bool = False
    """Compile the backbone with torch.compile. Takes a C++ compiler and a minute or more before the first update."""
    recompute: bool = False
    """Compute the student's blocks again in the backward pass instead of keeping what they hold: less memory, more
    time."""
    num_workers: int | None = None
    """Processes that decode images where there is no store; chosen from the machine if not given."""
    log_every: int = 10
    """Updates between two lines of history.jsonl."""
    eval_every: float = 1.0
    """Epochs between two evaluations (k-NN, and Jaccard where there are masks); 0 for none."""
    eval_limit: int = 2000
    """Images of the gallery, and half as many queries, that an evaluation uses at most."""
    save_every: float = 1.0
    """Epochs between two checkpoints. One is saved as well wherever an evaluation's k-NN is the best so far."""
    keep: int = 2
    """Newest checkpoints that are kept; the best one by k-NN is kept besides."""
    progress: bool = True
    """Show a progress bar, in a terminal or a notebook."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the history to TensorBoard or Weights & Biases (extras)."""
    output_dir: str = "runs/dino"
    """The run's folder."""
    resume: Literal["never", "auto"] = "never"
    """auto goes on from the newest checkpoint in output_dir, or starts."""

    def __post_init__(self):
        # types first: the other checks compare numbers
        wrong = [f"{f.name}={getattr(self, f.name)!r} must be {_words(f.type)}" for f in dataclasses.fields(self)
                 if not _fits(getattr(self, f.name), f.type)] or [message for ok, message in self._checks() if not ok]
        if wrong:
            raise ValueError("; ".join(wrong))

    def _checks(self):
        for name in ["dataset", "data_root", "backbone", "output_dir"]:
            yield getattr(self, name).strip(), f"{name}={getattr(self, name)!r} must not be empty"
        for name in ["global_size", "local_size"]:  # smaller views cannot be mirrored far enough to be blurred
            yield getattr(self, name) >= 8, f"{name}={getattr(self, name)} must be at least 8 pixels"
        positive = ["out_dim", "hidden_dim", "bottleneck_dim", "head_layers", "epochs",
                    "batch_size", "accumulate", "lr", "student_temp", "teacher_temp", "warmup_teacher_temp",
                    "log_every", "eval_limit", "save_every", "keep"]
        for name in positive:
            yield getattr(self, name) > 0, f"{name}={getattr(self, name)} must be positive"
        not_negative = ["n_local", "min_lr", "warmup_epochs", "warmup_teacher_temp_epochs", "weight_decay",
                        "weight_decay_end", "clip_grad", "freeze_last_layer", "eval_every", "seed"]
        for name in not_negative:
            yield getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative"
        for name in ["gray_p", "solarize_p", "center_momentum", "momentum", "momentum_end", "drop_path"]:
            yield 0 <= getattr(self, name) <= 1, f"{name}={getattr(self, name)} must lie between 0 and 1"
        yield all(0 <= p <= 1 for p in self.blur_p), f"blur_p={self.blur_p} must hold probabilities"
        yield min(self.color_jitter) >= 0 and self.color_jitter[3] <= 0.5, (
            f"color_jitter={self.color_jitter} must not be negative, and hue, the last, be at most 0.5")
        for name in ["global_scale", "local_scale"]:
            low, high = getattr(self, name)
            yield 0 < low <= high <= 1, f"{name}={(low, high)} must be (low, high) with 0 < low <= high <= 1"
        yield self.warmup_epochs <= self.epochs, (
            f"warmup_epochs={self.warmup_epochs} must not be longer than epochs={self.epochs}")
        yield self.batch_size % max(1, self.accumulate) == 0, (
            f"batch_size={self.batch_size} must be divisible by accumulate={self.accumulate}")
        yield len(self.mean) == len(self.std) and len(self.mean) in (1, 3), (
            f"mean={self.mean} and std={self.std} must both have 1 entry (grey) or 3 (RGB)")
        yield min(self.std) > 0, f"std={self.std} must be positive"
        for name in ["limit", "store_size"]:
            value = getattr(self, name)
            yield value is None or value > 0, f"{name}={value} must be positive, or left out"
        yield self.num_workers is None or self.num_workers >= 0, f"num_workers={self.num_workers} must not be negative"
        yield self.head == "dino" or not self.use_bn, "use_bn belongs to the dino head: the original head has LayerNorm"

    @property
    def eval_size(self):
        """Side of the square images that evaluations see."""
        return self.store_size or self.global_size

    def to_json(self):
        """All settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text):
        """The inverse of `to_json`; ValueError on text that is no JSON object, on settings that do not exist or fit."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"settings are no JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"settings must be a JSON object, not {text[:40]!r}")
        unknown = set(values) - {f.name for f in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings {sorted(unknown)} (of a newer version?); known: "
                             f"{[f.name for f in dataclasses.fields(cls)]}")
        return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


# A tiny ViT with a convolutional stem (a linear patch embedding learns next to nothing in a few hundred updates).
_TINY_VIT = {"img_size": 48, "patch_size": 6, "embed_dim": 128, "depth": 4, "num_heads": 8, "mlp_ratio": 2.0}

_DEMO = Config(
    dataset="shapes", store_size=48, backbone="vit_tiny_patch16_224", backbone_options=_TINY_VIT, conv_stem=True,
    drop_path=0.0, global_size=36, local_size=18, n_local=4, local_scale=(0.15, 0.5),
    # strong colour jitter, for the light differs from picture to picture; little blur, for texture is a cue
    color_jitter=(0.4, 0.4, 0.4, 0.08), gray_p=0.2, solarize_p=0.0, blur_p=(0.1, 0.1, 0.05),
    out_dim=256, hidden_dim=512, bottleneck_dim=128, use_bn=True,  # batch norm: a faster start
    # a teacher that follows fast (half-life 17 updates, 69 in the end): the run has only some hundred
    epochs=9, batch_size=64, lr=1.5e-3, min_lr=1e-5, warmup_epochs=2, momentum=0.96, momentum_end=0.99,
    freeze_last_layer=0.0, eval_every=2, eval_limit=1000, output_dir="runs/demo",
)

PRESETS = {
    # seconds: for tests
    "smoke": dataclasses.replace(
        _DEMO, limit=64, batch_size=16, epochs=2, warmup_epochs=0.5, out_dim=32, hidden_dim=32, bottleneck_dim=16,
        backbone_options={**_TINY_VIT, "embed_dim": 32, "depth": 1, "num_heads": 2}, n_local=2, eval_limit=60,
        log_every=1, output_dir="runs/smoke"),
    # minutes on two CPU cores: the embedded dataset
    "demo": _DEMO,
    # an hour on two CPU cores: photographs
    "laptop": dataclasses.replace(
        _DEMO, dataset="caltech101", store_size=72,
        backbone_options={**_TINY_VIT, "img_size": 64, "patch_size": 8, "qk_norm": True, "reg_tokens": 4},
        global_size=64, local_size=32, local_scale=(0.1, 0.4), color_jitter=(0.4, 0.4, 0.2, 0.1), solarize_p=0.2,
        out_dim=512, epochs=20, momentum=0.98, momentum_end=0.998, eval_every=2, eval_limit=3000,
        output_dir="runs/laptop"),
    # one GPU: STL-10's 100,000 unlabelled images
    "gpu": Config(
        dataset="stl10", store_size=96, backbone="vit_small_patch16_224",
        backbone_options={"img_size": 96, "patch_size": 8}, global_size=96, local_size=48, n_local=6,
        local_scale=(0.1, 0.4), out_dim=4096, epochs=100, batch_size=512, lr=1e-3, momentum=0.996,
        warmup_teacher_temp_epochs=10, teacher_temp=0.07, eval_every=5, save_every=5, output_dir="runs/gpu"),
    # the from-scratch repository that this course starts from: its settings, all of them constant
    "original": Config(
        dataset="stl10", backbone="vit_base_patch16_224", pretrained=True, global_size=224, local_size=96, n_local=2,
        drop_path=0.0, head="original", out_dim=1000, student_temp=0.1, teacher_temp=0.04, warmup_teacher_temp=0.04,
        epochs=10, batch_size=2048, accumulate=32, lr=5e-4, min_lr=5e-4, warmup_epochs=0.0, weight_decay=0.04,
        weight_decay_end=0.04, momentum=0.996, momentum_end=0.996, clip_grad=0.0, freeze_last_layer=0.0,
        num_workers=16, save_every=5, output_dir="runs/original"),
}


class OneLineParser(argparse.ArgumentParser):
    """A command's parser whose errors are one line and exit status 2."""

    def error(self, message):
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")
