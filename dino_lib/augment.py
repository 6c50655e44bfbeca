"""Multi-crop: two large and several small views of one image (section 3.1).

The recipe is the official code's. `MultiCrop` makes the views of one image with torchvision;
`dino_lib.data.batch_views.BatchMultiCrop` draws from the same distribution for a whole batch.
"""

from dataclasses import KW_ONLY, dataclass
from numbers import Integral
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))  # mean and standard deviation
JITTER_P = 0.8
BLUR_SIGMA = (0.1, 2.0)
BLUR_TAPS = 13  # three sigmas to each side at the strongest blur, and the pixel itself
SOLARIZE_THRESHOLD = 128


class View(NamedTuple):
    """What sets one kind of view apart from the others."""

    size: int
    scale: tuple[float, float]
    blur_p: float
    solarize_p: float


@dataclass(eq=False)
class Recipe:
    """The settings of the views. ValueError, naming the setting, on a value that makes no sense.

    Sizes are sides in pixels. Scales are the lowest and highest share of the image's area.
    `color_jitter` is (brightness, contrast, saturation, hue) as in torchvision. `blur_p` is for
    global view 1, global view 2 and the local views; `solarize_p` for global view 2 alone.
    `mean` and `std` have one entry for each channel.
    """

    global_size: int = 224
    local_size: int = 96
    n_local: int = 8
    global_scale: tuple[float, float] = (0.4, 1.0)
    local_scale: tuple[float, float] = (0.05, 0.4)
    _: KW_ONLY
    color_jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    gray_p: float = 0.2
    blur_p: tuple[float, float, float] = (1.0, 0.1, 0.5)
    solarize_p: float = 0.2
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    @property
    def views(self) -> list[View]:
        """One entry for each view, the two global ones first."""
        first = View(self.global_size, self.global_scale, self.blur_p[0], 0.0)
        second = View(self.global_size, self.global_scale, self.blur_p[1], self.solarize_p)
        local = View(self.local_size, self.local_scale, self.blur_p[2], 0.0)
        return [first, second] + [local] * self.n_local

    def __post_init__(self):
        def must(fits: bool, name: str, rule: str) -> None:
            if not fits:
                raise ValueError(f"{name}={getattr(self, name)} must {rule}")

        for name in ("global_size", "local_size", "n_local"):
            value = getattr(self, name)
            must(isinstance(value, Integral), name, "be a whole number")
        for name in ("global_size", "local_size"):
            # smaller views cannot be mirrored far enough to be blurred
            must(getattr(self, name) >= 8, name, "be at least 8 pixels")
        must(self.n_local >= 0, "n_local", "not be negative")
        for name in ("global_scale", "local_scale"):
            scale = getattr(self, name)
            fits = np.shape(scale) == (2,) and 0 < scale[0] <= scale[1] <= 1
            must(fits, name, "be (low, high) with 0 < low <= high <= 1")
        for name in ("gray_p", "solarize_p"):
            p = getattr(self, name)
            must(not np.ndim(p) and 0 <= p <= 1, name, "be a probability between 0 and 1")
        fits = np.shape(self.blur_p) == (3,) and all(0 <= p <= 1 for p in self.blur_p)
        must(fits, "blur_p", "hold 3 probabilities between 0 and 1")
        jitter = self.color_jitter
        fits = np.shape(jitter) == (4,) and min(jitter) >= 0 and jitter[3] <= 0.5
        must(fits, "color_jitter",
             "have 4 entries, none negative, and hue, the last, at most 0.5")
        if np.shape(self.mean) != np.shape(self.std) or np.shape(self.mean) not in ((1,), (3,)):
            raise ValueError(
                f"mean={self.mean} and std={self.std} must both have 1 entry (grey) or 3 (RGB)"
            )
        # normalised values beyond 100 are taken for pixels that nobody has normalised
        must(min(self.std) >= 0.01, "std", "be at least 0.01")


class MultiCrop(Recipe):
    """Views of one image: (PIL image or uint8 (C, H, W)) -> list of (C, h, w), globals first.

    The views are normalised float32. The image must already have as many channels as `mean`;
    ValueError if not. All that is random comes from torch's global generator.
    """

    def __post_init__(self):
        super().__post_init__()
        self.transforms = [self._transform(view) for view in self.views]

    def _transform(self, view: View) -> v2.Compose:
        jitter = v2.ColorJitter(*self.color_jitter)
        blur = v2.GaussianBlur(BLUR_TAPS, BLUR_SIGMA)
        return v2.Compose([
            v2.RandomResizedCrop(view.size, view.scale, interpolation=InterpolationMode.BICUBIC),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([jitter], p=JITTER_P),
            v2.RandomGrayscale(self.gray_p),
            v2.RandomApply([blur], p=view.blur_p),
            v2.RandomSolarize(SOLARIZE_THRESHOLD, p=view.solarize_p),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(self.mean, self.std),
        ])

    def __call__(self, image: Image.Image | Tensor) -> list[Tensor]:
        expected = f"expected a PIL image or a uint8 tensor with {len(self.mean)} channels"
        if not isinstance(image, Image.Image | Tensor):
            raise ValueError(f"{expected}, got {type(image).__name__}")
        channels = v2.functional.get_num_channels(image)
        dtype = getattr(image, "dtype", torch.uint8)
        if channels != len(self.mean) or dtype != torch.uint8:
            raise ValueError(f"{expected}, got {dtype} with {channels}")
        return [transform(image) for transform in self.transforms]
