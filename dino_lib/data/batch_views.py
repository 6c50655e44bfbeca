"""Multi-crop of a whole batch at once, on the batch's device.

`BatchMultiCrop` draws from the same distribution as `dino_lib.augment.MultiCrop`, the readable form
beside this fast one; tests hold the two together. Every operation is a formula over many views.
"""

import math
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from dino_lib.augment import BLUR_SIGMA, JITTER_P, Recipe, View
from dino_lib.data import colours

CROP_RATIO = (3 / 4, 4 / 3)  # width / height, as in torchvision's RandomResizedCrop
CROP_TRIES = 10
# Numbers in the largest tensor on the way, for views that are made together. On a CPU the tensors
# then stay in its cache; on a GPU they are large enough to keep it busy.
CPU_CHUNK = 2**19
GPU_CHUNK = 2**25


# Of the uniform numbers in [0, 1) that make one view: area and ratio of each try, the corner, flip,
# jitter or none, the order and the strength of brightness, contrast, saturation and hue, grey,
# blur, its sigma, solarization.
WIDTHS = (2 * CROP_TRIES, 2, 1, 1, 4, 4, 1, 1, 1, 1)


class Plan(NamedTuple):
    """What is to be done to n views of one size. All of it is known on the CPU, and stays there."""

    image: Tensor  # (n,), the number of the image
    box: Tensor  # (n, 4): top, left, height, width
    flip: Tensor  # (n,) bool
    steps: Tensor  # (n, 4), numbers of the colour operations in their order, -1 for none
    factor: Tensor  # (n, 4), of brightness, contrast, saturation and hue
    gray: Tensor  # (n,) bool
    blur: Tensor  # (n,) bool
    sigma: Tensor  # (n,)
    solarize: Tensor  # (n,) bool

    def rows(self, index: Tensor) -> "Plan":
        """The same for some of the views."""
        return Plan(*(column[index] for column in self))


class BatchMultiCrop(Recipe):
    """Views of a batch: uint8 (B, C, H, W) -> list of normalised float32 (B, C, h, w).

    Every random decision about one image is one number in a row of uniforms, so its views are a
    function of that row alone. Pass `uniforms` (B, n_uniforms) in [0, 1) to fix them image by image
    (see `view_uniforms`), or a CPU generator to draw them from (None: torch's global one).
    """

    @property
    def n_uniforms(self) -> int:
        """How many random numbers one image takes."""
        return sum(WIDTHS) * len(self.views)

    def __call__(
        self,
        images: Tensor,
        generator: torch.Generator | None = None,
        *,
        uniforms: Tensor | None = None,
    ) -> list[Tensor]:
        self._check_images(images)
        shape = (len(images), self.n_uniforms)
        if uniforms is None:
            uniforms = torch.rand(shape, generator=generator, dtype=torch.float32)
        elif uniforms.shape != shape:
            raise ValueError(f"expected uniforms {shape}, got {tuple(uniforms.shape)}")
        # (V, B, numbers a view)
        uniforms = uniforms.float().cpu().unflatten(1, (-1, sum(WIDTHS))).transpose(0, 1)
        images = images.contiguous(memory_format=torch.channels_last)  # crops in few pieces
        large = self._one_size(images, uniforms[:2], self.views[:2])
        if not self.n_local:
            return large
        return large + self._one_size(images, uniforms[2:], self.views[2:])

    def _check_images(self, images):
        if not torch.is_tensor(images):
            got = type(images).__name__
        elif images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            got = f"{images.dtype} {tuple(images.shape)}"
        else:
            return
        raise ValueError(f"expected uint8 images (B, {len(self.mean)}, H, W), got {got}")

    def _one_size(self, images: Tensor, uniforms: Tensor, views: list[View]) -> list[Tensor]:
        """All views of one size: uniforms (V, B, numbers a view) -> (B, C, size, size) * V."""
        plan = self._plan(uniforms, views, images.shape[2:])
        size, device, channels = views[0].size, images.device, len(self.mean)
        mean = torch.tensor(self.mean, dtype=torch.float32, device=device)[:, None, None]
        std = torch.tensor(self.std, dtype=torch.float32, device=device)[:, None, None]
        out = torch.empty(len(plan.image), channels, size, size, dtype=torch.float32, device=device)
        for part in torch.arange(len(out)).split(views_at_once(device, out[0].numel())):
            chosen = plan.rows(part)
            x = crops(images, chosen.image, chosen.box, chosen.flip, size)
            out[part[0] : part[-1] + 1] = self._colours(x, chosen).sub_(mean).div_(std)
        return list(out.unflatten(0, (len(views), -1)))

    def _plan(self, uniforms, views, image_size):
        """Uniforms (V, B, numbers a view) -> the Plan of V * B views."""
        n_images = uniforms.shape[1]
        columns = uniforms.flatten(0, 1).split(WIDTHS, dim=1)
        tries, corner, flip, jitter, order, strength, gray, blur, sigma, solarize = columns
        blur_p = torch.tensor([view.blur_p for view in views], dtype=torch.float32)
        solarize_p = torch.tensor([view.solarize_p for view in views], dtype=torch.float32)
        most = torch.tensor(self.color_jitter, dtype=torch.float32)
        low = torch.cat([(1 - most[:3]).clamp(min=0), -most[3:]])
        high = torch.cat([1 + most[:3], most[3:]])
        return Plan(
            image=torch.arange(n_images).repeat(len(views)),
            box=crop_boxes(tries, corner, image_size, views[0].scale),
            flip=flip[:, 0] < 0.5,
            steps=torch.where(jitter < JITTER_P, order.argsort(1), -1),  # uniform over the orders
            factor=low + (high - low) * strength,
            gray=gray[:, 0] < self.gray_p,
            blur=blur[:, 0] < blur_p.repeat_interleave(n_images),
            sigma=BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * sigma[:, 0],
            solarize=solarize[:, 0] < solarize_p.repeat_interleave(n_images),
        )

    def _colours(self, x, plan):
        """Jitter, grey, blur and solarization of views (n, C, size, size) in [0, 1]. Changes x."""
        operations = [
            colours.adjust_brightness,
            colours.adjust_contrast,
            colours.adjust_saturation,
            colours.adjust_hue,
        ]
        used = [bool(strength) for strength in self.color_jitter]
        if x.shape[1] == 1:
            used[2:] = [False, False]  # grey images have neither saturation nor hue
        factor = to_device(plan.factor, x.device)
        for place in plan.steps.unbind(1):  # each view's first operation, its second, ...
            for k in range(4):
                if used[k]:
                    apply_where(place == k, x, operations[k], factor[:, k])
        if x.shape[1] == 3:
            apply_where(plan.gray, x, colours.to_gray)
        apply_where(plan.blur, x, colours.blur, to_device(plan.sigma, x.device))
        apply_where(plan.solarize, x, colours.solarize)
        return x


def view_uniforms(seed: int, epoch: int, indices: Iterable[int], n: int) -> Tensor:
    """The uniforms of these images' views in this epoch: (len(indices), n) float32.

    Row i depends on (seed, epoch, indices[i]) alone, so views do not change with the number of
    workers, processes or accumulated batches.
    """
    rows = []
    for index in indices:
        stream = np.random.Philox(key=[seed, (epoch << 40) + int(index)])
        rows.append(np.random.Generator(stream).random(n, np.float32))
    return torch.from_numpy(np.stack(rows))


def views_at_once(device: torch.device, numbers: int) -> int:
    """How many views of so many numbers are made together, so that memory stays bounded."""
    return max(1, (CPU_CHUNK if device.type == "cpu" else GPU_CHUNK) // numbers)


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """x on the device. CUDA is not waited for, which is safe from pinned memory alone."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def apply_where(
    chosen: Tensor, x: Tensor, operation: Callable[..., Tensor], *per_image: Tensor
) -> None:
    """`operation` on the chosen (n,) of the images x, with their rows of `per_image`. Changes x."""
    if chosen.any():
        rows = to_device(chosen.nonzero()[:, 0], x.device)
        arguments = [tensor.index_select(0, rows) for tensor in (x, *per_image)]
        x.index_copy_(0, rows, operation(*arguments))


def crop_boxes(
    tries: Tensor, corner: Tensor, image_size: tuple[int, int], scale: tuple[float, float]
) -> Tensor:
    """RandomResizedCrop's boxes: tries (n, 2 * CROP_TRIES), corner (n, 2) -> (n, 4).

    A box is (top, left, height, width). As in torchvision it is the first of ten draws of (area,
    log ratio) that fits into the image; if none does, the largest centred one within the ratios.
    """
    height, width = image_size
    share = scale[0] + (scale[1] - scale[0]) * tries[:, 0::2]  # (n, CROP_TRIES)
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * tries[:, 1::2])
    area = height * width * share
    w = torch.sqrt(area * ratio).round()
    h = torch.sqrt(area / ratio).round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.float().argmax(1, keepdim=True)
    w = w.gather(1, first)[:, 0]
    h = h.gather(1, first)[:, 0]
    top = (corner[:, 0] * (height - h + 1)).floor()
    left = (corner[:, 1] * (width - w + 1)).floor()
    box = torch.stack([top, left, h, w], 1)

    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    largest_w = min(width, round(height * ratio))
    largest_h = min(height, round(width / ratio))
    corner = ((height - largest_h) // 2, (width - largest_w) // 2)
    largest = box.new_tensor([*corner, largest_h, largest_w])
    return torch.where(fits.any(1, keepdim=True), box, largest)


def crops(images: Tensor, image: Tensor, box: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops of images[image], resized, mirrored where told: float32 (n, C, size, size) in [0, 1].

    images uint8 (N, C, H, W); image (n,), box (n, 4) and flip (n,) on the CPU. Antialiased bicubic
    with a = -0.5, as in PIL. One crop after the other on a CPU, where PyTorch computes it in whole
    numbers as PIL does; so many small calls would keep a GPU waiting.
    """
    if images.device.type != "cpu":
        at_once = max(1, GPU_CHUNK // images[0].numel())
        parts = zip(*(column.split(at_once) for column in (image, box, flip)), strict=True)
        return torch.cat([crops_by_products(images, *part, size) for part in parts])
    views = []
    boxes = zip(image.tolist(), box.int().tolist(), flip.tolist(), strict=True)
    for i, (top, left, h, w), mirror in boxes:
        crop = images[i : i + 1, :, top : top + h, left : left + w]
        view = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        views.append(view.flip(-1) if mirror else view)
    return torch.cat(views).float().contiguous().div_(255)


def crops_by_products(
    images: Tensor, image: Tensor, box: Tensor, flip: Tensor, size: int
) -> Tensor:
    """`crops` as two matrix products a view: rows @ image @ columns. Rounded once, in the end."""
    device, (height, width) = images.device, images.shape[2:]
    top, left, h, w = to_device(box, device).unbind(1)
    rows = crop_matrix(top, h, height, size)[:, None]  # (n, 1, size, H)
    columns = crop_matrix(left, w, width, size)[:, None]  # (n, 1, size, W)
    x = images.index_select(0, to_device(image, device)).float()
    x = rows @ x @ columns.transpose(2, 3)
    x = x.round_().clamp_(0, 255).div_(255)
    return torch.where(to_device(flip, device)[:, None, None, None], x.flip(-1), x)


def crop_matrix(start: Tensor, length: Tensor, n_in: int, n_out: int) -> Tensor:
    """Weights that resample pixels start .. start + length of n_in to n_out: (n, n_out, n_in).

    start and length (n,) in pixels. Those of PIL and of `interpolate(antialias=True)`: the cubic
    kernel with a = -0.5, stretched when it shrinks. A crop sees nothing of what lies around it.
    """
    start, length = start[:, None, None], length[:, None, None]
    step = length / n_out
    place = torch.arange(n_out, dtype=torch.float32, device=start.device)[:, None] + 0.5
    pixel = torch.arange(n_in, dtype=torch.float32, device=start.device) + 0.5
    t = ((pixel - start - place * step) / step.clamp(min=1)).abs()  # (n, n_out, n_in)
    near = (1.5 * t - 2.5) * t * t + 1
    far = ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0))
    weight = weight * ((pixel > start) & (pixel < start + length))
    return weight / weight.sum(-1, keepdim=True)
