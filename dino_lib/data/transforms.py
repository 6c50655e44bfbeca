"""What a network sees of a photograph when it is measured or looked at."""

import torch
from PIL import Image
from torchvision.transforms import v2

from dino_lib.data.images import to_channels


def eval_transform(size, mean, std):
    """PIL image -> (C, size, size) normalised: the shorter side to `size`, then the middle square."""
    return v2.Compose([
        v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
        v2.CenterCrop(size),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean, std),
    ])


def as_seen(image, transform, patch_size, size=None):
    """What a teacher sees of a PIL image: (that picture, as PIL image; the same normalised, (C, H, W)).

    transform: the teacher's own, of `eval_transform`. Without `size` it crops as it always does. With it the whole
    image is seen, resized to about size x size pixels in all: its aspect is kept but for rounding both sides to whole
    patches of patch_size (height, width). Raises ValueError on another transform and on a size below one patch.
    """
    steps = getattr(transform, "transforms", [])
    start = next((i for i, step in enumerate(steps) if isinstance(step, v2.ToImage)), None)
    if start is None:
        raise ValueError("a teacher's .transform must be made by checkpoint.eval_transform, to show what it crops")
    if size is None:
        picture = v2.Compose(steps[:start])(image)
    elif size < max(patch_size):
        raise ValueError(f"size={size} is less than one patch of {patch_size} pixels")
    else:
        ratio = size / (image.width * image.height) ** 0.5
        sides = [max(1, round(side * ratio / p)) * p for side, p in zip(image.size, patch_size[::-1], strict=True)]
        picture = image.resize(sides, Image.Resampling.BICUBIC)
    picture = to_channels(picture, len(steps[-1].mean))
    return picture, v2.Compose(steps[start:])(picture)
