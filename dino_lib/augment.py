"""Multi-crop: two large and several small views of one image (section 3.1; the recipe is the official code's).

`MultiCrop` is the readable one: torchvision on one image, in a data worker. `BatchMultiCrop` draws from the same
distribution for a whole batch at once, on the batch's device: every colour operation is a batched formula, every blur
a product with small matrices per image, and so is the resize where there is a GPU. The tests hold the two together.
"""

import itertools
import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode, v2

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
BLUR_SIGMA, SOLARIZE_THRESHOLD, JITTER_P = (0.1, 2.0), 128, 0.8
BLUR_TAPS = 2 * math.ceil(3 * BLUR_SIGMA[1]) + 1  # three sigmas to each side at the strongest blur
CROP_RATIO, CROP_TRIES = (3 / 4, 4 / 3), 10  # torchvision's RandomResizedCrop
BLOCK = 16  # rows that are resampled together
CPU_CHUNK, GPU_CHUNK = 2**19, 2**26  # numbers in the views that are made together: on a CPU they stay in its cache


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
        x = images.contiguous(memory_format=torch.channels_last)  # a crop is read in few pieces
        rows = uniforms.float().cpu().reshape(len(images), -1, self._PER_VIEW).transpose(0, 1)
        return self._one_size(x, rows[:2], self.views[:2]) + self._one_size(x, rows[2:], self.views[2:])

    def _one_size(self, x, u, views):
        """Views of one size and scale: x (B, C, H, W), uniforms (V, B, _PER_VIEW) -> V tensors (B, C, size, size).

        What is drawn is known on the CPU, so a GPU is never waited for. Sorted by it, views that take the same
        colour operations in the same order stand together, and go through them together.
        """
        if not views:
            return []
        (size, scale, _, _), images = views[0], len(x)
        blur_p, solarize_p = (torch.tensor([view[k] for view in views]).repeat_interleave(images) for k in (2, 3))
        image = torch.arange(images).repeat(len(views))
        tries, u = u.flatten(0, 1).tensor_split([2 * CROP_TRIES], dim=1)
        boxes = crop_boxes(tries, u[:, 0:2], x.shape[2:], scale)
        steps = torch.where(u[:, 3:4] < JITTER_P, u[:, 4:8].argsort(1), -1)  # uniform over the permutations
        gray, blur, solarize = u[:, 12] < self.gray_p, u[:, 13] < blur_p, u[:, 15] < solarize_p
        order = (steps * torch.tensor([64, 16, 4, 1])).sum(1).argsort(stable=True)
        longest = _longest_side(x.shape[2:], scale)
        there = {"device": x.device, "non_blocking": True}
        mean, std = (torch.tensor(v)[:, None, None].to(**there) for v in (self.mean, self.std))
        out = [torch.empty(images, x.shape[1], size, size, device=x.device) for _ in views]
        places = [place for view in out for place in view.unbind()]
        room = CPU_CHUNK if x.device.type == "cpu" else GPU_CHUNK
        for part in order.split(max(1, room // places[0].numel())):
            draws = u[part].to(**there)
            crops, flip = (image[part].to(**there), boxes[part].to(**there)), draws[:, 2] < 0.5
            if x.device.type == "cpu":
                y = _crop_resize_flip(x, *crops, size, flip)
            else:  # so many small calls would keep a GPU waiting
                y = _crop_resize_flip_by_products(x, *crops, size, flip, longest)
            y = self._jitter(y, steps[part], u[part, 8:12])
            if y.shape[1] == 3:
                y = _apply_where(gray[part], lambda y: _gray(y).expand(-1, 3, -1, -1), y)
            y = _apply_where(blur[part], _blur, y, BLUR_SIGMA[0] + (BLUR_SIGMA[1] - BLUR_SIGMA[0]) * draws[:, 14])
            y = _apply_where(solarize[part], lambda y: torch.where(y >= SOLARIZE_THRESHOLD / 255, 1 - y, y), y)
            torch._foreach_copy_([places[i] for i in part.tolist()], list(y.sub_(mean).div_(std)))
        return out

    def _jitter(self, x, steps, strength):
        """Brightness, contrast, saturation and hue, each image in an order of its own. Changes x.

        `steps` (B, 4), -1 for none, and `strength` (B, 4) in [0, 1) are on the CPU.
        """
        low = torch.tensor([max(0.0, 1 - s) for s in self.color_jitter[:3]] + [-self.color_jitter[3]])
        high = torch.tensor([1 + s for s in self.color_jitter[:3]] + [self.color_jitter[3]])
        strength = (low + (high - low) * strength).to(x.device, non_blocking=True)
        operations = [_brightness_, _contrast_] + ([_saturation_, _hue_] if x.shape[1] == 3 else [])
        use = [k for k in range(len(operations)) if self.color_jitter[k]]
        for own, run in _runs(steps.tolist()):
            for k in own:
                if k in use:
                    operations[k](x[run], strength[run, k])
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


def _longest_side(image_size, scale):
    """No crop has a longer side, in pixels."""
    side = math.sqrt(math.prod(image_size) * scale[1] * CROP_RATIO[1])
    return math.ceil(side) if side <= min(image_size) else max(image_size)  # then one may not fit: the fallback


def _runs(keys):
    """(key, slice) of each run of equal keys."""
    start = 0
    for key, same in itertools.groupby(keys):
        stop = start + len(list(same))
        yield key, slice(start, stop)
        start = stop


def _apply_where(chosen, operation, x, *per_image):
    """`operation` on the chosen (B,) of the images x (B, C, H, W), with their rows of each `per_image`. Changes x."""
    if chosen.any():
        own = chosen.nonzero()[:, 0]
        here = own.to(x.device, non_blocking=True)
        y = operation(x.index_select(0, here), *(p.index_select(0, here) for p in per_image))
        torch._foreach_copy_([x[i] for i in own.tolist()], list(y))  # x[here] = y is slow on a CPU
    return x


def _crop_resize_flip(x, image, boxes, size, flip):
    """Crops (top, left, height, width) of the images x[image], resized and flipped where told.

    uint8 (N, C, H, W) -> float32 (n, C, size, size) in [0, 1]. Antialiased bicubic with a = -0.5, computed as PIL does
    it, in whole numbers.
    """
    views = []
    for i, (top, left, h, w), mirror in zip(image.tolist(), boxes.long().tolist(), flip.tolist(), strict=True):
        crop = x[i : i + 1, :, top : top + h, left : left + w]
        view = F.interpolate(crop, (size, size), mode="bicubic", antialias=True)
        views.append(view.flip(-1) if mirror else view)
    return torch.cat(views).float().contiguous().div_(255)


def _crop_resize_flip_by_products(x, image, boxes, size, flip, longest=None):
    """`_crop_resize_flip` by matrix products, for many crops at once; rounded to whole numbers in the end alone.

    x uint8 (N, C, H, W), image (n,), boxes (n, 4), flip (n,) -> float32 (n, C, size, size) in [0, 1]; `longest` as in
    `_resize_bands`.
    """
    (top, left, h, w), (_, channels, height, width) = boxes.unbind(1), x.shape
    rows = x.permute(0, 2, 3, 1).flatten(2)  # (N, H, W * C)
    y = _weighted_rows(rows, image, *_resize_bands(top, h, height, size, longest=longest))
    y = y.unflatten(2, (width, channels)).permute(0, 2, 3, 1, 4).flatten(3)[..., :size].flatten(2)  # (n, W, C * size)
    each = torch.arange(len(y), device=x.device)
    y = _weighted_rows(y, each, *_resize_bands(left, w, width, size, longest=longest))
    y = torch.cat(y.unflatten(2, (channels, size)).unbind(1), -1)[..., :size].round_().clamp_(0, 255).div_(255)
    return torch.where(flip[:, None, None, None], y.flip(-1), y)


def _weighted_rows(x, image, rows, weights):
    """Weighted sums of rows of x[image], transposed: two of these, one after the other, resample an image.

    x (N, H, W), image (n,), rows (n, blocks, window), weights (n, blocks, block, window) -> (n, blocks, W, block). A
    row of the result needs few neighbours, so the matrix product goes by blocks of rows, and each looks at its window
    only.
    """
    n, blocks, window = rows.shape
    source = x.shape[1] * image[:, None, None] + rows
    windows = x.flatten(0, 1).index_select(0, source.flatten()).view(n, blocks, window, -1).float()
    return windows.transpose(2, 3) @ weights.transpose(2, 3)


def _blocks(size):
    """(number, length) of the blocks of about BLOCK rows that an image is resampled in; they may go beyond its end."""
    number = max(1, round(size / BLOCK))
    return number, math.ceil(size / number)


def _resize_bands(start, length, n_in, n_out, *, longest=None):
    """Antialiased bicubic resampling (a = -0.5) of [start, start + length) to n_out pixels.

    The rows (n, blocks, window) that each block of the result looks at, and their weights (n, blocks, block, window):
    those of PIL and of `interpolate(antialias=True)`, the cubic kernel, stretched when it shrinks. `longest` is an
    upper bound of the lengths.
    """
    start, length, step = (v[:, None, None] for v in (start, length, length / n_out))
    number, block = _blocks(n_out)
    position = torch.arange(number * block, device=start.device).view(number, block) + 0.5
    center, support = start + position * step, step.clamp(min=1)  # (n, blocks, block)
    largest = (longest or n_in) / n_out
    window = min(n_in, math.ceil((block - 1) * largest + 4 * max(1, largest)) + 1)
    first = (center.amin(-1, keepdim=True) - 2 * support).floor().clamp(0, n_in - window)
    pixel = first + torch.arange(window, device=start.device) + 0.5  # (n, blocks, window)
    t = (pixel[:, :, None] - center[..., None]).div_(support[..., None]).abs_()
    # clamps, for comparisons take ten times as long on a CPU: |t| < 2, |t| < 1, inside the crop
    u, v = (2 - t).clamp_(min=0), (1 - t).clamp_(min=0)
    weight = (0.5 * u).sub_(0.5).mul_(u).mul_(u).add_((-2 * v).add_(1).mul_(v).mul_(v))
    inside = (pixel - start + 0.5).clamp(0, 1) * (start + length - pixel + 0.5).clamp(0, 1)
    weight *= inside[:, :, None]  # a crop sees nothing of what lies around it
    return pixel.long(), weight.div_(weight.sum(-1, keepdim=True))


def _blur(x, sigma):
    """Gaussian blur with mirrored borders, one sigma (B,) an image: x (B, C, S, S), by matrix products."""
    (n, channels, size, _), half = x.shape, BLUR_TAPS // 2
    number, block = _blocks(size)
    offset = torch.arange(block + 2 * half, device=x.device) - torch.arange(block, device=x.device)[:, None] - half
    weight = torch.exp(-0.5 * (offset / sigma[:, None, None]) ** 2) * (offset.abs() <= half)
    weight = weight / weight.sum(-1, keepdim=True)  # (B, block, window): a block of rows needs few neighbours
    beyond = half + number * block - size
    x = F.pad(x, (half, beyond, half, beyond), mode="reflect").flatten(0, 1)
    windows = [slice(start, start + weight.shape[-1]) for start in range(0, size, block)]
    x = torch.cat([weight.repeat_interleave(channels, 0) @ x[:, window] for window in windows], 1)[:, :size]
    x = x.reshape(n, channels * size, -1)
    x = torch.cat([x[:, :, window] @ weight.transpose(1, 2) for window in windows], 2)[..., :size]
    return x.view(n, channels, size, size)


def _gray(x):
    if x.shape[1] == 1:
        return x
    r, g, b = x.split(1, 1)
    return (0.2989 * r).add_(g, alpha=0.587).add_(b, alpha=0.114)


def _brightness_(x, factor):
    return x.mul_(factor[:, None, None, None]).clamp_(0, 1)


def _contrast_(x, factor):
    factor = factor[:, None, None, None]
    mean = _gray(x).mean((1, 2, 3), keepdim=True)
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def _saturation_(x, factor):
    return torch.lerp(_gray(x).expand_as(x), x, factor[:, None, None, None], out=x).clamp_(0, 1)


def _hue_(x, shift):
    """Rotate the hue by `shift` turns (at most one), keeping saturation and value of HSV.

    In sixths of a turn the hue is 1 + (g - r) / chroma where blue is the smallest, and so on around the circle. Signs
    and clamps, for comparisons take ten times as long on a CPU.
    """
    r, g, b = x.unbind(1)
    largest, smallest = torch.maximum(r, g).maximum(b), torch.minimum(r, g).minimum(b)
    chroma = largest - smallest
    some_blue, some_red = (b - smallest).sign_(), (r - smallest).sign_()  # 0 where it is the smallest
    hue = torch.lerp((b - g).add_(chroma, alpha=3), (r - b).add_(chroma, alpha=5), some_red)
    hue = torch.lerp((g - r).add_(chroma), hue, some_blue).div_((6 * chroma).clamp_(min=1e-12))
    hue = hue.add_(1 + shift[:, None, None]).frac_().mul_(6)
    torch.addcmul(smallest.sub_(chroma), chroma, (hue - 3).abs_().clamp_(1, 2), out=r)
    largest += chroma
    for channel, center in ((g, 2), (b, 4)):
        torch.addcmul(largest, chroma, (hue - center).abs_().clamp_(1, 2), value=-1, out=channel)
    return x
