"""From a config to what a run is made of: device, number format, networks, schedules and parameter groups."""

import ctypes
import os
import sys
from pathlib import Path

import torch

from dino_lib.augment import BatchMultiCrop, MultiCrop
from dino_lib.backbone import create_backbone
from dino_lib.data.datasets import open_dataset
from dino_lib.data.items import Pictures, check_dataset
from dino_lib.data.loaders import StoreViews, WorkerViews, seeded
from dino_lib.data.store import STORES, decode_store
from dino_lib.head import DINOHead, MultiCropModel, OriginalHead
from dino_lib.measure.evaluate import eval_mode
from dino_lib.schedules import cosine_schedule, linear_warmup


def pick_device(name="auto"):
    """torch.device for "auto", "cpu", "cuda" or "mps"; ValueError if it is not there."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    if not available[name]:
        raise ValueError(f"device={name} is not available here; available: {[k for k, v in available.items() if v]}")
    local_rank = int(os.environ.get("LOCAL_RANK", 0))
    return torch.device(name, local_rank) if name == "cuda" else torch.device(name)


def pick_precision(name, device):
    """The autocast dtype, torch.float32 for none. "auto" takes what the hardware computes natively:
    bf16 or else fp16 on CUDA (older cards emulate bf16), bf16 on CPUs that have it, float32 elsewhere."""
    if name != "auto":
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        has = torch.cpu.get_capabilities()
        if has.get("avx512_bf16") or has.get("amx_bf16"):
            return torch.bfloat16
    return torch.float32


def build_backbone(config, *, pretrained=None):
    """The backbone that a config describes; (C, H, W) inputs have one channel for each entry of `mean`."""
    options = dict(config.backbone_options)
    if len(config.mean) != 3:
        options["in_chans"] = len(config.mean)
    if config.drop_path:
        options["drop_path_rate"] = config.drop_path
    pretrained = config.pretrained if pretrained is None else pretrained
    return create_backbone(config.backbone, pretrained=pretrained, conv_stem=config.conv_stem, **options)


def build_student(config):
    """Backbone and head of a config, initialised from its seed."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config)
    backbone.requires_grad_(config.train_backbone).train(config.train_backbone)  # frozen: batch norm's buffers too
    if config.head == "original":
        head = OriginalHead(backbone.feature_dim, config.out_dim, hidden_dim=config.hidden_dim)
        return MultiCropModel(backbone, head)
    head = DINOHead(backbone.feature_dim, config.out_dim, hidden_dim=config.hidden_dim, n_layers=config.head_layers,
                    bottleneck_dim=config.bottleneck_dim, use_bn=config.use_bn, norm_last_layer=config.norm_last_layer)
    return MultiCropModel(backbone, head)


def check_sizes(config, backbone):
    """ValueError, naming the setting, if the backbone refuses an image of a size that the run will show it."""
    for name in ["global_size", "local_size"] * (config.n_local > 0) or ["global_size"]:
        _try_size(backbone, f"{name}={getattr(config, name)}", getattr(config, name), len(config.mean))
    if config.eval_every:
        name = "store_size" if config.store_size else "global_size"
        _try_size(backbone, f"{name}={config.eval_size} (what evaluations see)", config.eval_size, len(config.mean))


def _try_size(backbone, what, size, channels):
    device = next(backbone.parameters()).device
    try:
        with torch.no_grad(), eval_mode(backbone):
            backbone(torch.zeros(1, channels, size, size, device=device))
    except Exception as error:  # each model has its own way to refuse
        raise ValueError(f"{what} does not suit the backbone: {error}") from error


def pick_kernels(student, config, device, dtype):
    """How a student computes on this device, not what: attention, memory layout, recomputation; in place."""
    model = student.backbone.model
    if device.type == "cpu" and dtype != torch.float32:
        # torch's fused attention is made for GPUs: in bf16 its backward pass takes a CPU 3 to 5 times as long as the
        # plain products and softmax
        for module in model.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = False
    if not student.backbone.has_cls:
        student.to(memory_format=torch.channels_last)  # convolutions like it; other layers don't mind
    if config.recompute:
        if not hasattr(model, "set_grad_checkpointing"):
            raise ValueError(f"recompute=True: timm's {config.backbone} can't compute its blocks again")
        model.set_grad_checkpointing()


def keep_freed_memory():
    """From now on, memory that this process frees stays with it, for the next step to use.

    Linux clears each page that it hands out, and a small step whose memory goes back and forth is slower for it.
    Elsewhere, and where the C library is not glibc, nothing happens.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_threshold = -1, -3  # from malloc.h
        libc.mallopt(m_trim_threshold, 2**31 - 1)
        libc.mallopt(m_mmap_threshold, 2**25)  # the most that glibc takes


def build_schedules(config, steps_per_epoch):
    """The run's schedules by name, float64 arrays with one value a step: lr, weight_decay, momentum, teacher_temp."""
    c, total = config, max(1, round(config.epochs * steps_per_epoch))
    return {
        "lr": cosine_schedule(c.lr, c.min_lr, total, warmup_steps=min(total, round(c.warmup_epochs * steps_per_epoch))),
        "weight_decay": cosine_schedule(c.weight_decay, c.weight_decay_end, total),
        "momentum": cosine_schedule(c.momentum, c.momentum_end, total),
        "teacher_temp": linear_warmup(c.warmup_teacher_temp, c.teacher_temp, total,
                                      round(c.warmup_teacher_temp_epochs * steps_per_epoch)),
    }


def parameter_groups(model):
    """Two AdamW groups of the trainable parameters: with weight decay, and (biases, 1-D parameters) without."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [{"params": [p for p in parameters if p.ndim > 1]},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0}]


def multicrop_settings(config):
    """The arguments of MultiCrop and BatchMultiCrop that a config holds."""
    names = ["global_size", "local_size", "n_local", "global_scale", "local_scale", "color_jitter",
             "gray_p", "blur_p", "solarize_p", "mean", "std"]
    return {name: getattr(config, name) for name in names}


def open_views(config, dataset, device):
    """The views that a config describes: of `dataset`, or (None) of the one that the config names.

    Raises InputError where there is nothing that can be read, TypeError on what is no dataset.
    """
    channels = len(config.mean)
    if dataset is None:
        dataset = open_dataset(
            config.dataset, config.data_root, "train", channels, config.download)
    check_dataset(dataset)
    if config.limit is not None and config.limit < len(dataset):
        dataset = Pictures(dataset, range(config.limit), channels=channels)
    settings = multicrop_settings(config)
    if config.store_size is None:
        return WorkerViews(dataset, MultiCrop(**settings), seed=config.seed, device=device,
                           num_workers=config.num_workers)
    with seeded(config.seed):  # a dataset may draw from the global generators
        images, _, skipped = decode_store(
            dataset, config.store_size, channels, cache=Path(config.data_root) / STORES)
    return StoreViews(images, BatchMultiCrop(**settings), seed=config.seed, device=device,
                      skipped=skipped)
