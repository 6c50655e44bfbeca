"""Multi-crop: two large and several small views of one image (section 3.1; the recipe is the official code's).

`MultiCrop` is the readable one: torchvision on one image, in a data worker. `BatchMultiCrop` draws from the same
distribution for a whole batch at once, on the batch's device: every crop, resize and blur is a product with a
small matrix per image, every colour operation a batched formula. The tests hold the two together.
"""

import math

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BLUR_SIGMA, SOLARIZE_THRESHOLD, JITTER_P = (0.1, 2.0), 128, 0.8
BLUR_TAPS = 2 * math.ceil(3 * BLUR_SIGMA[1]) + 1  # three sigmas to each side at the strongest blur
CROP_RATIO, CROP_TRIES = (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop


class _Recipe:
    """The settings that both versions share, with one row of probabilities for each kind of view.

    Sizes are in pixels; scales are shares of the image's area; `color_jitter` is (brightness, contrast,
    saturation, hue) as in torchvision; `blur_p` is for global view 1, global view 2 and the local views;
    `solarize_p` for global view 2 only; mean and std have one entry a channel.
    """

    def __init__(self, global_size=224, local_size=96, n_local=8, global_scale=(0.4, 1.0), local_scale=(0.05, 0.4), *,
                 color_jitter=(0.4, 0.4, 0.2, 0.1), gray_p=0.2, blur_p=(1.0, 0.1, 0.5), solarize_p=0.2,
                 mean=IMAGENET[0], std=IMAGENET[1]):
        for name, scale in [("global_scale", global_scale), ("local_scale", local_scale)]:
            if np.shape(scale) != (2,) or not 0 < scale[0] <= scale[1] <= 1:
                raise ValueError(f"{name}={scale} must be (low, high) with 0 < low <= high <= 1")
        for name, values in [("gray_p", [gray_p]), ("blur_p", blur_p), ("solarize_p", [solarize_p])]:
            if not all(0 <= p <= 1 for p in values):
                raise ValueError(f"{name}={values} must hold probabilities between 0 and 1")
        if len(blur_p) != 3 or len(color_jitter) != 4 or min(color_jitter) < 0 or color_jitter[3] > 0.5:
            raise ValueError(f"blur_p={blur_p} must have 3 entries and color_jitter={color_jitter} 4, none negative "
                             "and hue, the last, at most 0.5")
        if np.shape(mean) != np.shape(std) or np.shape(mean) not in ((1,), (3,)):
            raise ValueError(f"mean={mean} and std={std} must both have 1 entry (grey) or 3 (RGB)")
        if min(std) <= 0:
            raise ValueError(f"std={std} must be positive")
        if any(n != int(n) for n in (n_local, global_size, local_size)):
            raise ValueError(f"n_local={n_local} and sizes ({global_size}, {local_size}) must be whole numbers")
        if n_local < 0 or min(global_size, local_size) < 8:  # smaller ones can't be mirrored far enough to be blurred
            raise ValueError(f"n_local={n_local} must not be negative, and sizes ({global_size}, {local_size}) "
                             "be at least 8 pixels")
        self.color_jitter, self.gray_p, self.mean, self.std = tuple(color_jitter), gray_p, tuple(mean), tuple(std)
        # one (size, scale, blur probability, solarize probability) a view, globals first
        self.views = [(global_size, global_scale, blur_p[0], 0.0), (global_size, global_scale, blur_p[1], solarize_p)]
        self.views += [(local_size, local_scale, blur_p[2], 0.0)] * n_local


class MultiCrop(_Recipe):
    """Views of one image: (PIL image or uint8 (C, H, W)) -> list of (C, h, w) normalised float32, globals first.

    The image must already have as many channels as `mean` (ValueError if not). Draws from torch's global generator.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.transforms = [self._transform(*view) for view in self.views]

    __init__.__doc__ = _Recipe.__doc__

    def _transform(self, size, scale, blur_p, solarize_p):
        blur = v2.GaussianBlur(BLUR_TAPS, BLUR_SIGMA)
        return v2.Compose([
            v2.RandomResizedCrop(size, scale=scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(*self.color_jitter)], p=JITTER_P),
            v2.RandomGrayscale(self.gray_p),
            v2.RandomApply([blur], p=blur_p),
            v2.RandomSolarize(SOLARIZE_THRESHOLD, p=solarize_p),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.mean, self.std),
        ])

    def __call__(self, image):
        if not isinstance(image, Image.Image | torch.Tensor):
            raise ValueError(f"expected a PIL image or a uint8 tensor, got {type(image).__name__}")
        channels, dtype = v2.functional.get_num_channels(image), getattr(image, "dtype", torch.uint8)
        if channels != len(self.mean) or dtype != torch.uint8:
            raise ValueError(f"expected a PIL image or a uint8 tensor with {len(self.mean)} channels, got {dtype} with "
                             f"{channels}")
        return [transform(image) for transform in self.transforms]


class BatchMultiCrop(_Recipe):
    """Views of a whole batch on its device: uint8 (B, C, H, W) -> list of (B, C, h, w) normalised float32.

    Every random decision about one image is one number in a row of uniforms, so the views are a function of that
    row alone: pass `uniforms` (B, n_uniforms) in [0, 1) to fix them image by image (see `view_uniforms`), or a CPU
    generator (None: torch's global one) to have them drawn.
    """

    # per view: area and ratio for each try, top, left, flip, jitter?, order (4), strength (4), grey?, blur?, sigma,
    # solarize?
    _PER_VIEW = 2 * CROP_TRIES + 16

    @property
    def n_uniforms(self):
        """Random numbers one image takes."""
        return self._PER_VIEW * len(self.views)

    def __call__(self, images, generator=None, *, uniforms=None):
        if not torch.is_tensor(images):
            raise ValueError(f"expected uint8 images (B, {len(self.mean)}, H, W), got {type(images).__name__}")
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise ValueError(f"expected uint8 images (B, {len(self.mean)}, H, W), got {images.dtype} "
                             f"{tuple(images.shape)}")
        if uniforms is None:
            uniforms = torch.rand(len(images), self.n_uniforms, generator=generator)
        elif uniforms.shape != (len(images), self.n_uniforms):
            raise ValueError(f"expected uniforms {(len(images), self.n_uniforms)}, got {tuple(uniforms.shape)}")
        rows = uniforms.float().to(images.device).split(self._PER_VIEW, dim=1)
        x = images.float() / 255
        return [self._view(x, u, *view) for u, view in zip(rows, self.views, strict=True)]

    def _view(self, x, u, size, scale, blur_p, solarize_p):
        tries, u = u[:, : 2 * CROP_TRIES], u[:, 2 * CROP_TRIES :]
        x = _crop_resize_flip(x, crop_boxes(tries, u[:, 0:2], x.shape[-2:], scale), size, flip=u[:, 2] < 0.5)
        if any(self.color_jitter):
            x = _apply_where(u[:, 3] < JITTER_P, self._jitter, x, u[:, 4:8], u[:, 8:12])
        if x.shape[1] == 3:
            x = _apply_where(u[:, 12] < self.gray_p, lambda x: _gray(x).expand(-1, 3, -1, -1), x)
        x = _apply_where(u[:, 13] < blur_p, _blur, x, BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * u[:, 14])
        x = _apply_where(u[:, 15] < solarize_p, lambda x: torch.where(x >= SOLARIZE_THRESHOLD / 255, 1 - x, x), x)
        mean, std = (torch.tensor(v, device=x.device)[:, None, None] for v in (self.mean, self.std))
        return (x - mean) / std

    def _jitter(self, x, order, strength):
        """Brightness, contrast, saturation and hue, each image in an order of its own."""
        order = order.argsort(1)  # uniform over the permutations
        low = torch.tensor([max(0.0, 1 - s) for s in self.color_jitter[:3]] + [-self.color_jitter[3]])
        high = torch.tensor([1 + s for s in self.color_jitter[:3]] + [self.color_jitter[3]])
        strength = low.to(x.device) + (high - low).to(x.device) * strength
        operations = [_brightness, _contrast] + ([_saturation, _hue] if x.shape[1] == 3 else [])
        for slot in range(4):
            for k, operation in enumerate(operations):
                if self.color_jitter[k]:
                    x = _apply_where(order[:, slot] == k, operation, x, strength[:, k])
        return x


def view_uniforms(seed, epoch, indices, n):
    """The uniforms of these images' views in this epoch: (len(indices), n) float32, whatever the batch they are in.

    Row i depends on (seed, epoch, indices[i]) alone, so views do not change with the number of workers,
    processes or accumulated batches.
    """
    rows = [np.random.Generator(np.random.Philox(key=[seed, (epoch << 40) + int(i)])).random(n, np.float32)
            for i in indices]
    return torch.from_numpy(np.stack(rows))


def crop_boxes(tries, corner, image_size, scale):
    """RandomResizedCrop's boxes from uniforms: tries (B, 2 * CROP_TRIES), corner (B, 2) -> (B, 4) top, left, h, w.

    As in torchvision: the first of ten draws of (area, log ratio) that fits into the image; if none does, the
    largest centred box within the ratios.
    """
    height, width = image_size
    area = height * width * (scale[0] + (scale[1] - scale[0]) * tries[:, 0::2])  # (B, CROP_TRIES)
    low, high = math.log(CROP_RATIO[0]), math.log(CROP_RATIO[1])
    ratio = torch.exp(low + (high - low) * tries[:, 1::2])
    w, h = torch.sqrt(area * ratio).round(), torch.sqrt(area / ratio).round()
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = fits.float().argmax(1, keepdim=True)
    w, h = w.gather(1, first)[:, 0], h.gather(1, first)[:, 0]
    top = (corner[:, 0] * (height - h + 1)).floor()
    left = (corner[:, 1] * (width - w + 1)).floor()
    ratio = min(max(width / height, CROP_RATIO[0]), CROP_RATIO[1])
    fallback_w, fallback_h = min(width, round(height * ratio)), min(height, round(width / ratio))
    fallback = w.new_tensor([(height - fallback_h) // 2, (width - fallback_w) // 2, fallback_h, fallback_w])
    return torch.where(fits.any(1, keepdim=True), torch.stack([top, left, h, w], 1), fallback)


def _apply_where(chosen, operation, x, *per_image):
    """`operation` on the chosen images only."""
    index = torch.nonzero(chosen)[:, 0]
    if len(index) == 0:
        return x
    return x.index_copy(0, index, operation(x[index], *(p[index] for p in per_image)))


def _resize_matrix(start, length, n_in, n_out):
    """Antialiased bicubic resampling (a = -0.5) of [start, start + length) to n_out pixels, (B, n_out, n_in).

    The weights of PIL and of `interpolate(antialias=True)`: the cubic kernel, stretched when it shrinks.
    """
    step = (length / n_out)[:, None, None]
    support = step.clamp(min=1)
    center = start[:, None, None] + (torch.arange(n_out, device=start.device)[:, None] + 0.5) * step
    pixel = torch.arange(n_in, device=start.device) + 0.5
    t = ((pixel - center) / support).abs()
    near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
    outside = (pixel < start[:, None, None]) | (pixel > (start + length)[:, None, None])
    weight = weight.masked_fill(outside, 0.0)  # a crop sees nothing of what lies around it
    return weight / weight.sum(-1, keepdim=True)


def _crop_resize_flip(x, boxes, size, flip):
    """Crop, resize to (size, size), flip where told: two matrix products an image; (B, C, H, W) in [0, 1]."""
    top, left, h, w = boxes.unbind(1)
    rows = _resize_matrix(top, h, x.shape[-2], size)  # (B, size, H)
    columns = _resize_matrix(left, w, x.shape[-1], size)  # (B, size, W)
    columns = torch.where(flip[:, None, None], columns.flip(1), columns)
    x = rows[:, None] @ x @ columns.transpose(1, 2)[:, None]
    return x.clamp(0, 1)


def _blur(x, sigma):
    """Gaussian blur with mirrored borders, one sigma (B,) an image: two matrix products."""
    size = x.shape[-1]
    offsets = torch.arange(BLUR_TAPS, device=x.device) - BLUR_TAPS // 2
    kernel = torch.exp(-0.5 * (offsets / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)  # (B, BLUR_TAPS)
    source = torch.arange(size, device=x.device)[:, None] + offsets  # (size, BLUR_TAPS)
    source = (size - 1) - (source.abs() - (size - 1)).abs()  # mirror at both ends
    matrix = x.new_zeros(len(x), size, size)
    matrix.scatter_add_(2, source.expand(len(x), -1, -1), kernel[:, None].expand(-1, size, -1).contiguous())
    return matrix[:, None] @ x @ matrix.transpose(1, 2)[:, None]


def _blend(x, other, factor):
    return torch.lerp(other, x, factor[:, None, None, None]).clamp(0, 1)


def _gray(x):
    if x.shape[1] == 1:
        return x
    return (x * x.new_tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)


def _brightness(x, factor):
    return _blend(x, torch.zeros_like(x), factor)


def _contrast(x, factor):
    return _blend(x, _gray(x).mean((1, 2, 3), keepdim=True).expand_as(x), factor)


def _saturation(x, factor):
    return _blend(x, _gray(x).expand_as(x), factor)


def _hue(x, shift):
    """Rotate the hue by `shift` turns, keeping saturation and value of HSV."""
    r, g, b = x.unbind(1)
    value, chroma = x.amax(1), x.amax(1) - x.amin(1)
    safe = torch.where(chroma > 0, chroma, 1.0)
    sector = torch.where(value == r, (g - b) / safe, torch.where(value == g, (b - r) / safe + 2, (r - g) / safe + 4))
    sector = torch.where(chroma > 0, sector, 0.0) + 6 * shift[:, None, None]  # hue in sixths of a turn
    channels = []
    for n in (5, 3, 1):
        k = torch.remainder(n + sector, 6)
        channels.append(value - chroma * torch.minimum(k, 4 - k).clamp(0, 1))
    return torch.stack(channels, 1)
