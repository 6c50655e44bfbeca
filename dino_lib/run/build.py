"""From a config to what a run is made of: device, number format, networks, schedules, groups."""

import contextlib
import functools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dino_lib.augment import MultiCrop
from dino_lib.backbone import Backbone, create_backbone
from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.datasets import open_dataset
from dino_lib.data.items import Pictures, check_dataset
from dino_lib.data.loaders import StoreViews, WorkerViews, seeded
from dino_lib.data.say import say
from dino_lib.data.store import STORES, decode_store
from dino_lib.head import DINOHead, MultiCropModel, OriginalHead
from dino_lib.measure.features import eval_mode
from dino_lib.measure.probes import Probes, spread
from dino_lib.run.config import Config, multicrop_settings
from dino_lib.run.weights import load_weights
from dino_lib.schedules import cosine_schedule, linear_warmup

FORMATS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The torch.device that a config's `device` names; "auto" takes the fastest kind there is.

    Of several processes each takes its own card. On CUDA, float32 means float32 from here on:
    cuDNN's convolutions would take TF32, with a mantissa of 10 bits. ValueError if it is not there.
    """
    there = ["cuda"] * torch.cuda.is_available() + ["mps"] * torch.backends.mps.is_available()
    there.append("cpu")
    kind, _, number = (there[0] if name == "auto" else name).partition(":")
    if kind not in there or int(number or 0) >= max(1, torch.cuda.device_count()):
        raise ValueError(f"device={name} is not available here; available: {there}")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    if number and local_rank:
        raise ValueError(f"device={name} is one card for several processes: take device=cuda")
    if kind == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        return torch.device(kind, int(number or local_rank))
    return torch.device(kind)


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The autocast dtype, torch.float32 for none. "auto" takes what the hardware computes natively.

    That is bf16 or else fp16 on CUDA (older cards emulate bf16), bf16 on CPUs whose products it
    makes faster, and float32 elsewhere.
    """
    if name != "auto":
        return FORMATS[name]
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if native else torch.float16
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        if (has.get("avx512_bf16") or has.get("amx_bf16")) and _bfloat16_is_faster():
            return torch.bfloat16
    return torch.float32


@functools.cache
def _bfloat16_is_faster():
    """Intel's AVX-512 makes products in bf16 at half the rate where AMX is missing."""
    cpu = torch.device("cpu")
    return product_ceiling(cpu, torch.bfloat16) > 1.2 * product_ceiling(cpu, torch.float32)


def clock(device: torch.device) -> float:
    """Seconds, after all that the device was told to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)  # it may not be the first card
    elif device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def product_ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large square matrix product: what this machine can do at best."""
    n = 1024 if device.type == "cpu" else 8192
    generator = torch.Generator(device).manual_seed(0)  # the run's own numbers stay as they are
    a = torch.randn(n, n, device=device, generator=generator).to(dtype)
    seconds = []
    for _ in range(4):
        start = clock(device)
        a @ a
        seconds.append(clock(device) - start)
    return 2 * n**3 / min(seconds)


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """New tensors are float32 inside, whatever torch.set_default_dtype was told."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@float32_by_default()
def build_backbone(config: Config) -> Backbone:
    """The backbone that a config describes: (B, C, H, W), a channel for each entry of `mean`."""
    options = dict(config.backbone_options)
    if len(config.mean) != 3:
        options["in_chans"] = len(config.mean)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    return create_backbone(
        config.backbone, pretrained=config.pretrained, conv_stem=config.conv_stem, **options
    )


@float32_by_default()
def build_student(config: Config) -> MultiCropModel:
    """Backbone and head of a config, initialised from its seed or from its `weights`."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config)
    if config.weights:
        load_weights(backbone, config.weights)
    backbone.requires_grad_(config.train_backbone)
    backbone.train(config.train_backbone)  # a frozen one's batch norm stands still too
    return MultiCropModel(backbone, build_head(config, backbone.num_features))


def build_head(config: Config, in_dim: int) -> DINOHead | OriginalHead:
    """The head of a config, for features of `in_dim` numbers."""
    if config.head == "original":
        return OriginalHead(in_dim, config.out_dim, hidden_dim=config.hidden_dim)
    return DINOHead(
        in_dim,
        config.out_dim,
        hidden_dim=config.hidden_dim,
        bottleneck_dim=config.bottleneck_dim,
        n_layers=config.head_layers,
        use_bn=config.use_bn,
        norm_last_layer=config.norm_last_layer,
    )


def check_sizes(config: Config, backbone: Backbone) -> None:
    """Show the backbone an image of each size that the run will have.

    Raises ValueError, which names the setting, where it refuses one.
    """
    sizes = {"global_size": config.global_size}
    if config.n_local:
        sizes["local_size"] = config.local_size
    if config.store_size and config.eval_every:  # what evaluations see
        sizes["store_size"] = config.store_size
    for name, size in sizes.items():
        image = torch.zeros(1, len(config.mean), size, size, dtype=torch.float32)
        try:
            with torch.no_grad(), eval_mode(backbone):
                backbone(image)
        except Exception as error:  # each model has its own way to refuse
            raise ValueError(f"{name}={size} does not suit the backbone: {error}") from error


def check_normalisation(config: Config, backbone: Backbone) -> None:
    """Say so where timm's pretrained weights expect pictures normalised in another way."""
    expected = getattr(backbone.model, "pretrained_cfg", {})
    here = {"mean": config.mean, "std": config.std}
    there = {name: tuple(expected.get(name) or values) for name, values in here.items()}
    if config.pretrained and len(config.mean) == 3 and there != here:
        words = (f"--{name} {' '.join(map(str, values))}" for name, values in there.items())
        say(f"the pretrained {config.backbone} expects other pictures: {' '.join(words)}")


def pick_kernels(
    student: MultiCropModel, config: Config, device: torch.device, dtype: torch.dtype
) -> None:
    """How a student computes on this device, not what: attention, memory layout, recomputation.

    In place. Raises ValueError where timm's model cannot recompute.
    """
    model = student.backbone.model
    if device.type == "cpu" and dtype != torch.float32:
        # torch's fused attention is made for GPUs: in bf16 its backward pass takes a CPU 3 to 5
        # times as long as the plain products and softmax
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    if not student.backbone.has_cls:
        # convolutions are faster so; other layers don't mind
        student.to(memory_format=torch.channels_last)
    if config.recompute:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"recompute=True: timm's {config.backbone} can't recompute its blocks")
        model.set_grad_checkpointing()


def build_schedules(config: Config, steps_per_epoch: int) -> dict[str, np.ndarray]:
    """The run's schedules by name, float64 arrays with one value a step."""
    total = max(1, round(config.epochs * steps_per_epoch))
    warmup = min(total, round(config.warmup_epochs * steps_per_epoch))
    temp_warmup = round(config.warmup_teacher_temp_epochs * steps_per_epoch)
    return {
        "lr": cosine_schedule(config.lr, config.min_lr, total, warmup_steps=warmup),
        "weight_decay": cosine_schedule(config.weight_decay, config.weight_decay_end, total),
        "momentum": cosine_schedule(config.momentum, config.momentum_end, total),
        "teacher_temp": linear_warmup(
            config.warmup_teacher_temp, config.teacher_temp, total, temp_warmup
        ),
    }


def parameter_groups(model: nn.Module) -> list[dict]:
    """Two AdamW groups of the trainable parameters.

    With weight decay; and biases and other 1-D parameters, without.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def open_views(
    config: Config, dataset: Any, device: torch.device
) -> StoreViews | WorkerViews:
    """The views that a config describes: of `dataset`, or (None) of the one that the config names.

    Raises InputError where there is nothing that can be read, TypeError on what is no dataset.
    """
    channels = len(config.mean)
    if dataset is None:
        dataset = open_dataset(
            config.dataset, config.data_root, "train", channels, config.download
        )
    check_dataset(dataset)
    if config.limit is not None and config.limit < len(dataset):
        dataset = Pictures(dataset, spread(len(dataset), config.limit), channels=channels)
    settings = multicrop_settings(config)
    if config.store_size is None:
        return WorkerViews(
            dataset,
            MultiCrop(**settings),
            seed=config.seed,
            device=device,
            num_workers=config.num_workers,
        )
    with seeded(config.seed):  # a dataset may draw from the global generators
        images, _, skipped = decode_store(
            dataset, config.store_size, channels, cache=Path(config.data_root) / STORES
        )
    multicrop = BatchMultiCrop(**settings)
    images = on_card(images, device)
    return StoreViews(images, multicrop, seed=config.seed, device=device, skipped=skipped)


def on_card(images: Tensor, device: torch.device) -> Tensor:
    """A store on the GPU if it takes at most a third of the memory that is free there."""
    if device.type == "cuda" and 3 * images.nbytes <= torch.cuda.mem_get_info(device)[0]:
        return images.to(device)
    return images


def open_probes(config: Config, limit: int | None = None) -> Probes | None:
    """The gallery and queries of a config's dataset at its `eval_size`.

    At most `limit` gallery images and half as many queries (None: the config's eval_limit). None
    where the dataset has no labels.
    """
    limit = limit or config.eval_limit
    channels, size = len(config.mean), config.eval_size
    parts = []
    for split, n in [("gallery", limit), ("test", max(1, limit // 2))]:
        dataset = open_dataset(config.dataset, config.data_root, split, channels, config.download)
        if dataset is None:
            return None
        part = Pictures(dataset, spread(len(dataset), n), channels=channels)
        parts.append(decode_store(part, size, channels))
    (gallery, gallery_labels, _), (queries, query_labels, _) = parts
    masks = getattr(part, "masks", None)
    if masks is not None and masks.shape[-1] != size:
        masks = None
    if masks is None and config.dataset == "shapes":
        say("no attention scores: the creatures' masks fit their own 48 pixels and three channels")
    pictures = (gallery, gallery_labels, queries, query_labels, masks)
    return Probes(*pictures, config.mean, config.std, part.classes)
