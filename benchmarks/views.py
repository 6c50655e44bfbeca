"""Multi-crop on one core, images a second: `python benchmarks/bench.py --only views`.

Two settings: 96 px squares to 2 x 96 + 6 x 48, as on STL-10, and 256 px squares to 2 x 224 + 8 x
96, the paper's. Four ways, in turn in one process, medians over the rounds: the official recipe
(torchvision on one PIL image, written here from the paper's and its code's settings), lightly's
DINOTransform where `pip install lightly` was run, MultiCrop and BatchMultiCrop on batches of 64.
Images are decoded and resized beforehand; the photographs that come with the package are scaled to
the size, for the time depends on the pixels' number alone.
"""

import random
import statistics
import time

import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision import transforms as tv
from torchvision.transforms.v2.functional import pil_to_tensor

from dino_lib.augment import IMAGENET, MultiCrop
from dino_lib.data.batch_views import BatchMultiCrop, view_uniforms
from dino_lib.data.images import PHOTOS

# name: side of the source, global size, local size, local views, aim over the official recipe
SETTINGS = {"96/48": (96, 96, 48, 6, 4.0), "224/96": (256, 224, 96, 8, 2.0)}
BATCH = 64


class Official:
    """The official recipe on one PIL image: one torchvision pipeline a view, blur and solarize by
    PIL.
    """

    def __init__(self, global_size, local_size, n_local):
        jitter = [
            tv.RandomHorizontalFlip(),
            tv.RandomApply([tv.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            tv.RandomGrayscale(0.2),
        ]
        tail = [tv.ToTensor(), tv.Normalize(*IMAGENET)]

        def crop(size, scale):
            return tv.RandomResizedCrop(size, scale, interpolation=tv.InterpolationMode.BICUBIC)

        def blur(p):
            return tv.RandomApply(
                [lambda image: image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2)))], p=p
            )

        solarize = tv.RandomApply([ImageOps.solarize], p=0.2)
        self.views = [
            tv.Compose([crop(global_size, (0.4, 1)), *jitter, blur(1.0), *tail]),
            tv.Compose([crop(global_size, (0.4, 1)), *jitter, blur(0.1), solarize, *tail]),
        ]
        self.views += [
            tv.Compose([crop(local_size, (0.05, 0.4)), *jitter, blur(0.5), *tail])
        ] * n_local

    def __call__(self, image):
        return [view(image) for view in self.views]


def lightly_transform(global_size, local_size, n_local):
    """lightly's DINOTransform of the same settings, None where lightly is not installed."""
    try:
        from lightly.transforms import DINOTransform
    except ImportError:
        return None
    return DINOTransform(
        global_crop_size=global_size,
        global_crop_scale=(0.4, 1.0),
        local_crop_size=local_size,
        local_crop_scale=(0.05, 0.4),
        n_local_views=n_local,
        gaussian_blur=(1.0, 0.1, 0.5),
        sigmas=(0.1, 2),
        solarization_prob=0.2,
        normalize={"mean": IMAGENET[0], "std": IMAGENET[1]},
    )


def batch_images(size):
    """BATCH photographs as PIL squares of this side."""
    photos = [
        ImageOps.fit(Image.open(path).convert("RGB"), (size, size), Image.Resampling.BICUBIC)
        for path in sorted(PHOTOS.glob("*.jpg"))
    ]
    return [photos[i % len(photos)] for i in range(BATCH)]


def contestants(size, *sizes):
    """name: a function that makes all views of a number of images and returns that number."""
    photos = batch_images(size)
    stack = torch.stack([pil_to_tensor(photo) for photo in photos])
    multicrop = BatchMultiCrop(*sizes)
    epoch = iter(range(10**9))

    def batched():
        multicrop(stack, uniforms=view_uniforms(0, next(epoch), range(BATCH), multicrop.n_uniforms))
        return BATCH

    def single(transform, images):
        def run():
            for image in images:
                transform(image)
            return len(images)

        return run

    singles = {
        "official": (Official(*sizes), photos),
        "lightly": (lightly_transform(*sizes), photos),
        "MultiCrop": (MultiCrop(*sizes), list(stack)),
    }
    return {
        name: single(transform, images[:16])
        for name, (transform, images) in singles.items()
        if transform
    } | {"BatchMultiCrop": batched}


def rows(rounds=7, quick=False):
    """Images a second of every setting and way: rows of the table of `bench.py`; `quick`: of the
    first setting only.
    """
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    for setting, (size, *sizes, aim) in list(SETTINGS.items())[: 1 if quick else None]:
        ways = contestants(size, *sizes)
        rates = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, run in ways.items():
                start = time.perf_counter()
                n = run()
                if turn:  # the first warms up
                    rates[name].append(n / (time.perf_counter() - start))
        median = {name: statistics.median(values) for name, values in rates.items()}
        for name in list(median)[:-1]:
            ratios = [a / b for a, b in zip(rates["BatchMultiCrop"], rates[name], strict=True)]
            found.append(
                {
                    "figure": f"views {setting}, one core, BatchMultiCrop against {name}",
                    "ours": median["BatchMultiCrop"],
                    "peer": median[name],
                    "unit": "images/s",
                    "ratio": statistics.median(ratios),
                    "aim": aim if name == "official" else None,
                }
            )
    torch.set_num_threads(threads)
    return found
