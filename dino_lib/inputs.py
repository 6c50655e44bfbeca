"""Where a training step's views come from: a store in memory, or images decoded in worker processes.

Both give the same views for the same (seed, epoch, index), in whatever batch, worker or process.
"""

import os
from pathlib import Path

import numpy as np
import torch

from dino_lib.augment import BatchMultiCrop, MultiCrop, view_uniforms
from dino_lib.data import STORES, decode_store, open_dataset
from dino_lib.images import SkipUnreadable, report_skipped


def multicrop_settings(config):
    """The arguments of MultiCrop and BatchMultiCrop that a config holds."""
    names = ["global_size", "local_size", "n_local", "global_scale", "local_scale", "color_jitter", "gray_p", "blur_p",
             "solarize_p", "mean", "std"]
    return {name: getattr(config, name) for name in names}


def epoch_order(seed, epoch, n):
    """The order of n images in this epoch: (n,) int64, the same on every process."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class StoreViews:
    """Views of a dataset decoded once into a uint8 store (N, C, S, S), made for a whole batch on the device."""

    def __init__(self, dataset, config, device):
        self.images, _, self.skipped = decode_store(dataset, config.store_size, len(config.mean),
                                                          cache=Path(config.data_root) / STORES)
        self.n_asked, self.seed, self.device = len(dataset), config.seed, device
        self.multicrop = BatchMultiCrop(**multicrop_settings(config))

    def __len__(self):
        return len(self.images)

    def batches(self, epoch, batches):
        """For each array of indices in `batches`: a list of (B, C, h, w) views on the device."""
        for indices in batches:
            rows = torch.from_numpy(indices).to(self.images.device)
            images = self.images.index_select(0, rows).to(self.device, non_blocking=True)
            yield self.multicrop(images, uniforms=view_uniforms(self.seed, epoch, indices, self.multicrop.n_uniforms))

    def report(self):
        """What could not be read, in one sentence."""
        return report_skipped(self.skipped, self.n_asked)


class WorkerViews:
    """Views of a dataset of PIL images, one image at a time in worker processes."""

    def __init__(self, dataset, config, device):
        self.dataset, self.device = _ImageViews(SkipUnreadable(dataset, len(config.mean)), config), device
        self.num_workers = default_workers() if config.num_workers is None else config.num_workers

    def __len__(self):
        return len(self.dataset.images)

    def batches(self, epoch, batches):
        """For each array of indices in `batches`: a list of (B, C, h, w) views on the device."""
        asked = [[(epoch, int(i)) for i in indices] for indices in batches]
        loader = torch.utils.data.DataLoader(
            self.dataset, batch_sampler=asked, num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda", prefetch_factor=4 if self.num_workers else None)
        for indices, (views, used) in zip(batches, loader, strict=True):
            self.dataset.images.note(indices, used)
            yield [view.to(self.device, non_blocking=True) for view in views]

    def report(self):
        """What could not be read, in one sentence."""
        return self.dataset.images.report()


class _ImageViews(torch.utils.data.Dataset):
    """(epoch, index) -> (views, index of the image used). A plain class: worker processes may be spawned."""

    def __init__(self, images, config):
        self.images, self.seed = images, config.seed
        self.multicrop = MultiCrop(**multicrop_settings(config))

    def __getitem__(self, key):
        epoch, index = key
        image, _, used = self.images[index]
        seed = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(seed >> 1))
            return self.multicrop(image), used


def open_views(config, dataset, device):
    """The views that a config describes: of `dataset`, or where that is None of the one that the config names."""
    if dataset is None:
        dataset = open_dataset(config.dataset, config.data_root, "train", len(config.mean), config.download)
    if config.limit and config.limit < len(dataset):
        dataset = First(dataset, config.limit)
    return (StoreViews if config.store_size else WorkerViews)(dataset, config, device)


class First(torch.utils.data.Dataset):
    """The first n items of a dataset, and of its `images`, `labels` and `masks` where it has them."""

    def __init__(self, dataset, n):
        self.dataset, self.n = dataset, n
        for name in ("images", "labels", "masks"):
            if torch.is_tensor(getattr(dataset, name, None)):
                setattr(self, name, getattr(dataset, name)[:n])

    def __len__(self):
        return min(self.n, len(self.dataset))

    def __getitem__(self, i):
        return self.dataset[range(len(self))[i]]


def default_workers():
    """One worker a core that this process may use, less the one that trains; at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return min(max(cores - 1, 1), 16)
