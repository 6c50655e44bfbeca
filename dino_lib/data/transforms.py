"""What a network sees of a picture when it is measured or looked at."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dino_lib.data.images import Picture, to_channels


def middle_square(image: Image.Image, size: int) -> Image.Image:
    """The middle square of a PIL image, resized to `size` pixels (antialiased bicubic).

    In one step: what is cropped away is not resized first.
    """
    return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """uint8 (..., C, H, W) -> float32, each channel less its mean, by its deviation (in [0, 1])."""
    options = {"dtype": torch.float32, "device": images.device}
    mean = torch.tensor(mean, **options)[:, None, None]
    std = torch.tensor(std, **options)[:, None, None]
    return (images.float() / 255 - mean) / std


class EvalTransform:
    """Any picture -> (C, size, size) float32, normalised: its middle square at `size` pixels.

    picture: all that `to_channels` takes, in any mode and turned any way; C is the number of
    entries in `mean` and `std`, 3 or 1. Raises what `to_channels` does.
    """

    def __init__(self, size: int, mean: Sequence[float], std: Sequence[float]):
        self.size = size
        self.mean = tuple(mean)
        self.std = tuple(std)

    def __call__(self, picture: Picture) -> Tensor:
        image = to_channels(picture, len(self.mean))
        return self.normalize(middle_square(image, self.size))

    def normalize(self, image: Image.Image) -> Tensor:
        """A PIL image with the right channels, as it is -> (C, H, W) float32."""
        return normalize(pil_to_tensor(image), self.mean, self.std)

    def __repr__(self) -> str:
        return f"EvalTransform(size={self.size}, mean={self.mean}, std={self.std})"


def as_seen(
    picture: Picture, transform: EvalTransform, patch_size: tuple[int, int], size: int | None = None
) -> tuple[Image.Image, Tensor]:
    """What a teacher sees of a picture: (that, as PIL image; the same normalised, (C, H, W)).

    transform: the teacher's own. Without `size` it crops as it always does. With it the whole image
    is seen, resized to about size x size pixels in all: its aspect is kept but for rounding both
    sides to whole patches of patch_size (height, width). Raises ValueError on another transform
    and on a size below one patch.
    """
    if not isinstance(transform, EvalTransform):
        raise ValueError("a teacher's .transform must be an EvalTransform, to show what it crops")
    image = to_channels(picture, len(transform.mean))
    if size is None:
        seen = middle_square(image, transform.size)
    elif size < max(patch_size):
        raise ValueError(f"size={size} is less than one patch of {patch_size} pixels")
    else:
        ratio = size / (image.width * image.height) ** 0.5
        height, width = patch_size
        wide = max(1, round(image.width * ratio / width)) * width
        high = max(1, round(image.height * ratio / height)) * height
        seen = image.resize((wide, high), Image.Resampling.BICUBIC)
    return seen, transform.normalize(seen)
