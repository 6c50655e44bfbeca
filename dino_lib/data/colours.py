"""Colour operations on a whole batch: x (n, C, H, W) in [0, 1], one factor (n,) an image.

They are torchvision's functions of the same names, which take one factor for all images.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from dino_lib.augment import BLUR_TAPS, SOLARIZE_THRESHOLD


def adjust_brightness(x: Tensor, factor: Tensor) -> Tensor:
    """torchvision's adjust_brightness. Changes x, as the three others do."""
    return x.mul_(factor[:, None, None, None]).clamp_(0, 1)


def adjust_contrast(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, the image's mean grey."""
    factor = factor[:, None, None, None]
    mean = gray(x).mean((1, 2, 3), keepdim=True)
    return x.mul_(factor).add_(mean * (1 - factor)).clamp_(0, 1)


def adjust_saturation(x: Tensor, factor: Tensor) -> Tensor:
    """Away from, or towards, each pixel's own grey."""
    return torch.lerp(to_gray(x), x, factor[:, None, None, None], out=x).clamp_(0, 1)


def adjust_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turn the hue of HSV by `shift` (n,) turns, at most one; value and chroma stay.

    In sixths of a turn the hue is 1 + (g - r) / chroma where blue is the smallest channel,
    3 + (b - g) / chroma where red is, and 5 + (r - b) / chroma where green is.
    """
    red, green, blue = x.unbind(1)
    largest = torch.maximum(red, green).maximum(blue)
    smallest = torch.minimum(red, green).minimum(blue)
    chroma = largest - smallest
    # 0 where it is the smallest, else 1; a CPU takes three times as long to compare
    more_red = (red - smallest).sign()
    more_blue = (blue - smallest).sign()
    hue = torch.lerp(blue - green + 3 * chroma, red - blue + 5 * chroma, more_red)
    hue = torch.lerp(green - red + chroma, hue, more_blue)
    hue = hue / (6 * chroma).clamp(min=1e-12)  # in turns
    hue = 6 * (hue + 1 + shift[:, None, None]).frac()  # in sixths again
    # each channel is at its top for a third of the circle, and at its bottom for another
    x[:, 0] = smallest + (hue - 3).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    x[:, 1] = largest - (hue - 2).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    x[:, 2] = largest - (hue - 4).abs_().sub_(1).clamp_(0, 1).mul_(chroma)
    return x


def gray(x: Tensor) -> Tensor:
    """Luminance, (n, 1, H, W), with torchvision's weights."""
    if x.shape[1] == 1:
        return x
    red, green, blue = x.split(1, dim=1)
    return (0.2989 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114)


def to_gray(x: Tensor) -> Tensor:
    """Luminance in all channels."""
    return gray(x).expand_as(x)


def solarize(x: Tensor) -> Tensor:
    """Bright values inverted."""
    return torch.where(x >= SOLARIZE_THRESHOLD / 255, 1 - x, x)


def blur(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur with mirrored borders and one sigma (n,) an image: rows, then columns."""
    n, channels, height, width = x.shape
    reach = BLUR_TAPS // 2
    offset = torch.arange(-reach, reach + 1, device=x.device)
    kernel = torch.exp(-0.5 * (offset / sigma[:, None]) ** 2)
    kernel = kernel / kernel.sum(1, keepdim=True)
    kernel = kernel.repeat_interleave(channels, 0)[:, None, :, None]  # (n * C, 1, BLUR_TAPS, 1)
    x = F.pad(x, [reach] * 4, mode="reflect").flatten(0, 1)[None]  # every channel by itself
    if x.device.type == "cpu":  # several times as fast in this layout
        x = x.contiguous(memory_format=torch.channels_last)
    x = F.conv2d(x, kernel, groups=n * channels)
    x = F.conv2d(x, kernel.transpose(2, 3), groups=n * channels)
    return x.view(n, channels, height, width)
