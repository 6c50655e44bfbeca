"""Every setting of a run: its type, its default and its help, which the command line shows too."""

import dataclasses
import functools
import json
import os
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PlainValidator,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic.dataclasses import dataclass

from dino_lib.augment import IMAGENET, Recipe


def _path(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("must be a path")
    return os.path.expanduser(value)


Path = Annotated[str, PlainValidator(_path)]  # pydantic's str is UTF-8, and not every name is
Share = Annotated[float, Field(ge=0, le=1)]
Device = Annotated[str, Field(pattern="^(auto|cpu|mps|cuda(:[0-9]+)?)$")]


def errors_in_one_line(cls: type) -> type:
    """Make a pydantic class raise its errors as a ValueError of one line, all of them at once."""
    init = cls.__init__

    @functools.wraps(init)
    def one_line_init(self: Any, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError("; ".join(map(_in_words, error.errors()))) from None

    cls.__init__ = one_line_init
    return cls


def _in_words(error: dict[str, Any]) -> str:
    """`lr=-1: Input should be greater than 0`"""
    name = ".".join(str(part) for part in error["loc"])
    words = error["msg"].removeprefix("Value error, ")
    return f"{name}={error['input']!r}: {words}" if name else words


OWN = "an argument of train"  # a run's `dataset` where no name or path tells it


@errors_in_one_line
@dataclass(
    frozen=True,
    config=ConfigDict(
        strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    ),
)
class Config:
    """A DINO run. Durations called epochs may be fractions; sizes are in pixels."""

    dataset: Path = "shapes"
    """shapes, stl10, cifar10, caltech101, imagenette, or the path of a folder of images."""
    data_root: Path = "data"
    """Where the named datasets are, or are downloaded to."""
    download: bool = True
    """Download a named dataset that is not in data_root yet."""
    limit: PositiveInt | None = None
    """Use only so many images of the training set, drawn from all of it, the same every time."""
    store_size: PositiveInt | None = None
    """Decode every image once, to a square of this side, and make views of a whole batch on the
    device. Without it worker processes decode each image anew, at full size."""
    mean: tuple[float, ...] = IMAGENET[0]
    """Mean of each channel in [0, 1]; one entry for grey images, three for RGB."""
    std: tuple[float, ...] = IMAGENET[1]
    """Standard deviation of each channel."""

    global_size: PositiveInt = 224
    """Side of the two global views."""
    local_size: PositiveInt = 96
    """Side of the local views."""
    n_local: NonNegativeInt = 8
    """Number of local views."""
    global_scale: tuple[float, float] = (0.4, 1.0)
    """Share of the image's area that a global view covers (lowest, highest)."""
    local_scale: tuple[float, float] = (0.05, 0.4)
    """The same of a local view. Raise the lower bound for small images."""
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    """Strength of brightness, contrast, saturation and hue jitter."""
    gray_p: Share = 0.2
    """Probability of a grey view."""
    blur_p: tuple[Share, Share, Share] = (1.0, 0.1, 0.5)
    """Probability of blur in global view 1, global view 2 and the local views."""
    solarize_p: Share = 0.2
    """Probability of solarization in global view 2."""

    backbone: str = "vit_small_patch16_224"
    """Name of any timm model."""
    backbone_options: dict[str, int | float | bool | str] = dataclasses.field(default_factory=dict)
    """The model's own options, as pairs that replace the preset's: img_size 96 patch_size 8."""
    conv_stem: bool = False
    """Embed the patches of a ViT by a stack of convolutions: for tiny models and budgets."""
    pretrained: bool = False
    """Start from timm's pretrained weights (downloaded)."""
    weights: Path | None = None
    """Start from a file instead: a teacher.safetensors, or a checkpoint of another project."""
    train_backbone: bool = True
    """False trains the head alone on a frozen backbone."""
    drop_path: Share = 0.1
    """Stochastic depth in the student; the teacher has none."""

    head: Literal["dino", "original"] = "dino"
    """The paper's head, or the five-layer head of the repository that this course starts from,
    for which only out_dim and hidden_dim count."""
    out_dim: PositiveInt = 65536
    """Number of prototypes K. 65536 is for ImageNet; small data wants 256 to 4096."""
    hidden_dim: PositiveInt = 2048
    """Width of the head's hidden layers."""
    bottleneck_dim: PositiveInt = 256
    """Width of the head's normalised bottleneck."""
    head_layers: PositiveInt = 3
    """Linear layers in the head before the normalisation."""
    use_bn: bool = False
    """Batch norm in the head: faster for tiny models. Its statistics are those of the rows at
    hand, so accumulation and several processes then differ from one large batch."""
    norm_last_layer: bool = True
    """Hold the gain of the prototypes at 1."""

    student_temp: PositiveFloat = 0.1
    """Temperature of the student's softmax."""
    teacher_temp: PositiveFloat = 0.04
    """Final temperature of the teacher's softmax; above 0.07 is unstable."""
    warmup_teacher_temp: PositiveFloat = 0.04
    """Temperature of the teacher at the start of its warm-up, if it has one."""
    warmup_teacher_temp_epochs: NonNegativeFloat = 0.0
    """Length of the linear warm-up of the teacher temperature."""
    centering: Literal["center", "sinkhorn"] = "center"
    """What keeps the prototypes in balance: the paper's running center, or DINOv2's Sinkhorn-Knopp
    over the batch, which a small batch needs at low teacher temperatures."""
    center_momentum: Share = 0.9
    """Share of the old center kept at each update."""
    koleo: NonNegativeFloat = 0.0
    """Weight of DINOv2's KoLeo term, which pushes the features of a batch apart."""

    epochs: PositiveFloat = 100.0
    """Length of the run."""
    batch_size: PositiveInt = 64
    """Images an update, over all processes and accumulated parts."""
    accumulate: PositiveInt = 1
    """Parts that a batch is cut into to save memory; the update is that of the whole batch."""
    lr: PositiveFloat = 5e-4
    """Peak learning rate, used as it is; officially 0.0005 * batch_size / 256."""
    min_lr: NonNegativeFloat = 1e-6
    """Learning rate at the end of the cosine."""
    warmup_epochs: NonNegativeFloat = 10.0
    """Length of the linear warm-up of the learning rate."""
    weight_decay: NonNegativeFloat = 0.04
    """Weight decay at the start; none on biases and other 1-D parameters."""
    weight_decay_end: NonNegativeFloat = 0.4
    """Weight decay at the end of its cosine."""
    momentum: Share = 0.996
    """Momentum of the teacher at the start: a half-life of 173 updates at 0.996, 34 at 0.98."""
    momentum_end: Share = 1.0
    """Momentum of the teacher at the end of its cosine."""
    clip_grad: NonNegativeFloat = 3.0
    """Largest global norm of the gradient; 0 for no clipping."""
    freeze_last_layer: NonNegativeFloat = 1.0
    """Epochs in which the head's last layer is not updated."""
    freeze_backbone: NonNegativeFloat = 0.0
    """Epochs in which the backbone is not updated: going on from pretrained weights, a new head
    learns to read their features first."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of the weights, the order of the images and their views."""
    device: Device = "auto"
    """Where to train: auto, cpu, cuda, one card of several as in cuda:1, or mps."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the matrix products; auto takes what the hardware is made for."""
    compile: bool = False
    """Compile the backbone: takes a C++ compiler, and a minute or more at first."""
    recompute: bool = False
    """Compute the student's blocks again in the backward pass: less memory, more time."""
    num_workers: NonNegativeInt | None = None
    """Processes that decode images where there is no store; None: as the machine has cores."""
    log_every: PositiveInt = 10
    """Updates between two lines of history.jsonl."""
    eval_every: NonNegativeFloat = 1.0
    """Epochs between two evaluations (k-NN, and Jaccard where there are masks); 0 for none."""
    eval_limit: PositiveInt = 2000
    """Images of the gallery, and half as many queries, that an evaluation uses at most."""
    save_every: PositiveFloat = 1.0
    """Epochs between two checkpoints; wherever the k-NN is the best so far one is saved too."""
    keep: PositiveInt = 2
    """Newest checkpoints that are kept; the best one by k-NN is kept besides."""
    progress: bool = True
    """Show a progress bar, in a terminal or a notebook."""
    tracker: Literal["none", "tensorboard", "wandb"] = "none"
    """Also send the history to TensorBoard or Weights & Biases (extras)."""
    output_dir: Path = "runs/dino"
    """The run's folder."""
    stop_after: PositiveFloat | None = None
    """Minutes of training after which the run saves and leaves; resume auto goes on with it."""
    resume: Literal["never", "auto"] = "never"
    """auto goes on from the newest checkpoint in output_dir, or starts."""

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """NumPy's numbers count as numbers, lists (JSON has no tuples) as tuples, paths as text."""
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, list):
            return tuple(value)
        return os.fspath(value) if isinstance(value, os.PathLike) else value

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        """What no setting shows alone. The views' own rules are those of `dino_lib.augment`."""
        Recipe(**multicrop_settings(self))
        if self.warmup_epochs > self.epochs:
            raise ValueError(
                f"warmup_epochs={self.warmup_epochs} must not be longer than epochs={self.epochs}"
            )
        if self.head == "original" and self.use_bn:
            raise ValueError("use_bn=True belongs to the dino head: the original has LayerNorm")
        if self.accumulate > 1 and (self.koleo or self.centering == "sinkhorn"):
            raise ValueError(f"accumulate={self.accumulate}: centering=sinkhorn and koleo look at "
                             "a whole batch at once, so accumulate must be 1")
        if self.pretrained and self.weights:
            raise ValueError(f"pretrained=True and weights={self.weights!r}: choose one of the two")
        return self

    @property
    def eval_size(self) -> int:
        """Side of the square images that evaluations see."""
        return self.store_size or self.global_size

    def to_json(self) -> str:
        """All settings as a JSON object."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; settings that are not in `text` take their defaults.

        Raises ValueError on text that is no JSON object, and on settings that do not exist or fit.
        """
        values = json.loads(text)
        if not isinstance(values, dict):
            raise ValueError(f"settings must be a JSON object, not {text[:40]!r}")
        return cls(**values)


def multicrop_settings(config: Config) -> dict[str, Any]:
    """The arguments of MultiCrop and BatchMultiCrop that a config holds."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    return {name: getattr(config, name) for name in names}
