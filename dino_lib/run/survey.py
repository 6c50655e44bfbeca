"""What images are like, from a sample, and what a run on them costs on this machine."""

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from dino_lib.data.datasets import open_dataset
from dino_lib.data.images import UnreadableImage
from dino_lib.data.items import InMemory, read_item
from dino_lib.data.transforms import middle_square
from dino_lib.measure.features import extract_features
from dino_lib.measure.probes import spread
from dino_lib.run.config import Config
from dino_lib.run.profile import memory, seconds_of_update
from dino_lib.run.train import build_trainer

Clock = Callable[[], float]  # seconds
SAMPLE = 48  # images that are looked at


@dataclass(frozen=True)
class Survey:
    """What a sample says of the images that a run would train on."""

    images: int
    """All, less the share of the sample that cannot be read."""
    short_side: int
    """Median of the sample, in pixels."""
    channels: int
    """1 where no picture of the sample has colour, else 3."""
    mean: tuple[float, ...]
    """Of each channel, in [0, 1]."""
    std: tuple[float, ...]
    decode_seconds: float
    """Of one image."""
    queries: int
    """Labelled images that are held back; 0 where there are none."""


def look_at(dataset: str | os.PathLike, data_root: str = "data",
            clock: Clock = time.perf_counter) -> Survey:
    """Looks at a SAMPLE of the images that a run would train on, drawn at random.

    clock: what decoding is timed by. Raises what `open_dataset` does, and ValueError where none of
    the sample can be read.
    """
    images = open_dataset(dataset, data_root, "train")
    queries = open_dataset(dataset, data_root, "test")
    sides, pixels, why, start = [], [], "", clock()
    tried = spread(len(images), SAMPLE).tolist()
    for i in tried:
        try:
            image, _ = read_item(images, i)
        except UnreadableImage as error:
            why = error
            continue
        sides.append(min(image.size))
        pixels.append(np.asarray(middle_square(image, 64)).reshape(-1, 3) / 255)
    if not sides:
        raise ValueError(f"none of the images that were tried in {dataset} can be read; "
                         f"the last: {why}")
    seconds = (clock() - start) / len(sides)
    colours = np.concatenate(pixels)  # (pixels, 3)
    channels = 3 if np.ptp(colours, axis=1).max() > 0.02 else 1
    mean, std = colours.mean(0)[:channels], colours.std(0)[:channels].clip(0.05)
    rounded = [tuple(round(float(x), 3) for x in values) for values in (mean, std)]
    readable = len(images) * len(sides) // len(tried)
    return Survey(readable, int(statistics.median(sides)), channels, *rounded, seconds,
                  len(queries) if queries else 0)


@dataclass(frozen=True)
class Cost:
    """What a run takes here, in seconds by the clock that measured it, and in bytes."""

    update: float
    evaluated: float
    """One image through the teacher, for an evaluation."""
    bytes: int
    """Of the whole process; on CUDA of the tensors, at their peak."""


def cost(config: Config, clock: Clock, n: int = 3) -> Cost:
    """Takes `n` updates of a config on noise, after one to warm up; writes nothing.

    clock: waits for the device, and gives seconds.
    """
    size, channels = config.store_size, len(config.mean)
    noise = torch.randint(0, 256, (config.batch_size, channels, size, size), dtype=torch.uint8)
    pictures = InMemory(noise, torch.full((len(noise),), -1))
    quiet = dict(eval_every=0, limit=None, progress=False)
    trainer = build_trainer(replace(config, **quiet), pictures)
    update = seconds_of_update(trainer, n, clock, warm_up=1)
    taken = memory(trainer.device)
    few = torch.rand(64, channels, size, size)
    extract_features(trainer.teacher.backbone, few)
    start = clock()
    extract_features(trainer.teacher.backbone, few)
    return Cost(update, (clock() - start) / len(few), taken)
