"""Where a training step's views come from: a store in memory, or images decoded in worker processes.

Both give the same views for the same (seed, epoch, index), in whatever batch, worker or process. So does a dataset
that draws from Python's, NumPy's or torch's global generator (a store decodes it once, in the same way each time); one
with a generator object of its own does not, and its runs cannot be resumed exactly.
"""

import contextlib
import os
import pickle
import random
import signal
import threading
from pathlib import Path

import numpy as np
import torch

from dino_lib.augment import MultiCrop
from dino_lib.data.batch_views import BatchMultiCrop, view_uniforms
from dino_lib.data.datasets import STORES, decode_store, open_dataset
from dino_lib.data.images import InputError, SkipUnreadable, report_skipped

REMEDY = ("Where workers are started anew (macOS, Windows, Python 3.14) a script needs a main guard, and "
          "the dataset's class a module of its own; num_workers=0 does without workers")


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
        with seeded(config.seed):
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
        """For each array of indices in `batches`: a list of (B, C, h, w) views on the device.

        Raises InputError, always between two batches, if a worker process cannot start, dies or finds the dataset at
        fault.
        """
        asked = [[(epoch, int(i)) for i in indices] for indices in batches]
        loader = torch.utils.data.DataLoader(
            self.dataset, batch_sampler=asked, num_workers=self.num_workers, worker_init_fn=_leave_signals,
            pin_memory=self.device.type == "cuda", prefetch_factor=4 if self.num_workers else None)
        loaded = self._start(loader)
        for indices in batches:
            views, used = self._next(loaded)
            self.dataset.images.note(indices, used)
            yield [view.to(self.device, non_blocking=True) for view in views]

    def report(self):
        """What could not be read, in one sentence."""
        return self.dataset.images.report()

    def _start(self, loader):
        """iter(loader), without torch's handler of SIGCHLD: it would raise a worker's death wherever the main process
        is, in the midst of an update too. Left alone, the next batch finds it out."""
        watched = hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread()
        before = signal.getsignal(signal.SIGCHLD) if watched else None
        try:
            return iter(loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError(f"the dataset cannot be handed to worker processes ({error}). {REMEDY}") from error
        finally:
            if watched:
                mine = getattr(before, "__module__", "").startswith("torch.utils.data") or before is None
                signal.signal(signal.SIGCHLD, signal.SIG_DFL if mine else before)

    def _next(self, loaded):
        try:
            return next(loaded)
        except InputError as error:  # from a worker it comes with a traceback before it
            raise InputError(str(error).rsplit("InputError: ")[-1].strip()) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error) or "exited" not in str(error):
                raise
            raise InputError(f"{error}: mostly for lack of memory; take fewer than num_workers={self.num_workers}. "
                             f"{REMEDY}") from error


class _ImageViews(torch.utils.data.Dataset):
    """(epoch, index) -> (views, index of the image used). A plain class: worker processes may be spawned."""

    def __init__(self, images, config):
        self.images, self.seed = images, config.seed
        self.multicrop = MultiCrop(**multicrop_settings(config))

    def __getitem__(self, key):
        epoch, index = key
        seed = int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)[0] >> 1)
        with seeded(seed):
            image, _, used = self.images[index]
            torch.manual_seed(seed)  # the views, whatever the dataset drew before
            return self.multicrop(image), used


@contextlib.contextmanager
def seeded(seed):
    """Python's, NumPy's and torch's global generators start from `seed` inside, and are afterwards as they were."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)


def _leave_signals(worker):
    """A terminal's Ctrl-C and a scheduler's SIGTERM reach the workers too. The trainer, which sees to them after its
    update, would find its workers gone before; it ends them itself."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def open_views(config, dataset, device):
    """The views that a config describes: of `dataset`, or where that is None of the one that the config names."""
    if dataset is not None and not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(f"dataset is a {type(dataset).__name__}: expected PIL images by number, with len(dataset) and "
                        "dataset[i]")
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
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(max(cores - 1, 1), 16)
