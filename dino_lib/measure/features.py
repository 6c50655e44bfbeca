"""From images to features: a frozen network in eval mode, batch by batch."""

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lib.backbone import backbone_of
from dino_lib.head import MultiCropModel


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[nn.Module]:
    """Eval mode inside; afterwards, also on an error, each submodule's own mode."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in modes:  # train(mode) would give all of them one mode
            module.training = training


def check_images(images: Tensor) -> None:
    """TypeError or ValueError if these are not normalised images (B, C, H, W)."""
    if not torch.is_tensor(images):
        kind = type(images).__name__
        raise TypeError(f"images are {kind}: expected a normalised tensor (B, C, H, W)")
    if not images.is_floating_point():
        raise TypeError(f"images are {images.dtype}: normalise them to floats first")
    if images.ndim != 4:
        raise ValueError(f"images {tuple(images.shape)}: expected (B, C, H, W)")
    if not images.isfinite().all():
        raise ValueError("images hold NaN or infinite values")
    # normalised values stay below 3, with small deviations below 20
    if images.numel() and images.abs().max() > 100:
        raise ValueError(
            f"images reach {images.abs().max():.0f}: normalise them first, as a teacher's "
            "transform does"
        )


def to_model(model: nn.Module, images: Tensor) -> Tensor:
    """Checked images, on the model's device and in its number format."""
    check_images(images)
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return images.to(parameter.device, parameter.dtype)
    return images


# not torch.inference_mode: cached buffers (rotary positions) could not be trained later
@torch.no_grad()
def extract_features(
    model: Any,
    images_or_loader: Tensor | Iterable,
    *,
    batch_size: int = 256,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Features of images: float32 (N, D) on the CPU, each row of length 1.

    model: a Teacher, a Backbone, a student or teacher in training (their backbone is
    used), a timm model, or any module that gives (B, D). images_or_loader: normalised
    images (N, C, H, W), or anything that yields batches x or (x, y, ...) of them. dtype:
    what products are computed in; bfloat16 or float16 is faster where the hardware has
    it. TypeError on images that are no floats; ValueError on other shapes, NaN, values
    far from normalised, no images, and a model that gives no (B, D).
    """
    if isinstance(images_or_loader, Tensor):
        images_or_loader = images_or_loader.split(batch_size)
    network = _network(model)
    device = next(network.parameters(), torch.empty(0)).device
    features = []
    reduced = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    with eval_mode(network), reduced:
        for batch in images_or_loader:
            images = to_model(network, _images(batch))
            if len(images):
                rows = _check_rows(network, network(images))
                features.append(F.normalize(rows.float(), dim=1).cpu())
    if not features:
        raise ValueError("no images: expected at least one")
    return torch.cat(features)


@torch.no_grad()
def patch_features(model: Any, images: Tensor) -> Tensor:
    """The last layer's features of each patch of (B, C, H, W), after the final norm: float32
    (B, h, w, D). Errors as `extract_features`.
    """
    backbone = backbone_of(model)
    with eval_mode(backbone):
        return backbone.patch_tokens(to_model(backbone, images)).float()


def _network(model):
    """The module whose forward gives the features."""
    is_timm = hasattr(model, "forward_features")
    if isinstance(model, MultiCropModel) or is_timm or not isinstance(model, nn.Module):
        return backbone_of(model)
    return model


def _images(batch):
    """The images of a loader's batch: x, or the first of (x, y, ...)."""
    if isinstance(batch, dict):
        raise TypeError(
            f"batches are dicts with {', '.join(map(str, batch))}: give their images "
            'alone, as in (batch["image"] for batch in loader)'
        )
    return batch[0] if isinstance(batch, tuple | list) else batch


def _check_rows(network, output):
    """The output if it is (B, D); we don't guess which entry of a dict is meant."""
    if torch.is_tensor(output) and output.ndim == 2:
        return output
    gave = tuple(output.shape) if torch.is_tensor(output) else type(output).__name__
    raise ValueError(
        f"{type(network).__name__} gave {gave}; expected a tensor (B, D): wrap it in a module "
        "whose forward returns what you mean"
    )
