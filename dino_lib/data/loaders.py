"""Where a step's views come from: a store in memory, or images decoded in workers.

Both give the same views for the same (seed, epoch, index), in whatever batch, worker or
process. So does a dataset that draws from Python's, NumPy's or torch's global generator (a
store decodes it once, in the same way each time); one with a generator of its own does
not, and its runs cannot be resumed exactly.
"""

import contextlib
import math
import multiprocessing.queues
import os
import pickle
import random
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dino_lib.augment import MultiCrop
from dino_lib.data.batch_views import BatchMultiCrop, to_device, view_uniforms
from dino_lib.data.images import InputError
from dino_lib.data.items import SkipUnreadable, report_skipped

PIECE = 8  # images that a worker hands over at a time: this bounds the shared memory
AHEAD = 4  # pieces that each worker prepares
PATIENCE = 2.0  # seconds for workers to end by themselves
RESTART = ("Where workers are started anew (macOS, Windows, Python 3.14) a script needs a "
           "main guard, and the dataset's class a module of its own; num_workers=0 does "
           "without workers")
# what torch and the system say when there is no room to hand something over
NO_ROOM = re.compile("shared memory|no space left|too many open files|bus error|ancdata"
                     "|can(no|')t allocate|temporarily unavailable", re.IGNORECASE)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n images in this epoch: (n,) int64, the same on every process."""
    return np.random.default_rng([seed, epoch]).permutation(n)


class StoreViews:
    """Views of a store, uint8 images (N, C, S, S), made for a whole batch on the device.

    skipped: what `decode_store` had to leave out.
    """

    def __init__(self, images: Tensor, multicrop: BatchMultiCrop, *, seed: int,
                 device: torch.device, skipped: Sequence[tuple[int, str]] = ()):
        self.images, self.skipped = images, skipped
        self.multicrop, self.seed = multicrop, seed
        self.device = device

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[list[Tensor]]:
        """For each array of indices in `batches`: a list of (B, C, h, w) views."""
        for indices in batches:
            rows = to_device(torch.from_numpy(indices), self.images.device)
            images = to_device(self.images.index_select(0, rows), self.device)
            uniforms = view_uniforms(self.seed, epoch, indices, self.multicrop.n_uniforms)
            yield self.multicrop(images, uniforms=uniforms)

    def report(self) -> str:
        """What could not be read, in one sentence."""
        return report_skipped(self.skipped, len(self.images) + len(self.skipped))


class WorkerViews:
    """Views of a dataset of pictures, one image at a time in worker processes.

    num_workers: over all processes of this machine; None: chosen from its cores. The
    workers stay from one epoch to the next, until `close()`.
    """

    def __init__(self, dataset: Any, multicrop: MultiCrop, *, seed: int,
                 device: torch.device, num_workers: int | None = None):
        self.images = SkipUnreadable(dataset, len(multicrop.mean))
        self.dataset = _ImageViews(self.images, multicrop, seed)
        self.device = device
        self.num_workers = share_of_workers(num_workers)
        self._asked = []  # the epoch's pieces; the loader reads this very list
        self._loader = self._loaded = None

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, epoch: int, batches: Sequence[np.ndarray]) -> Iterator[list[Tensor]]:
        """For each array of indices in `batches`: a list of (B, C, h, w) views.

        Raises InputError if a worker cannot start, dies or finds the dataset at fault. Left
        early, by a signal while it waits for example, it ends the workers.
        """
        pieces = [np.array_split(batch, math.ceil(len(batch) / PIECE)) for batch in batches]
        self._asked[:] = [[(epoch, int(i)) for i in piece] for own in pieces for piece in own]
        try:
            self._start()
            for batch, own in zip(batches, pieces, strict=True):
                views, used = self._put_together(len(batch), len(own))
                self.images.note(batch, used)
                yield views
        except BaseException as error:
            self.close()
            self._explain(error)
            raise

    def _put_together(self, n: int, n_pieces: int) -> tuple[list[Tensor], Tensor]:
        """The next n_pieces: views [(n, C, h, w), ...] on the device, and the images used (n,).

        Piece by piece: all of a large batch at once would fill the shared memory.
        """
        whole, used = [], []
        for _ in range(n_pieces):
            views, images = next(self._loaded)
            whole = whole or [view.new_empty(n, *view.shape[1:], device=self.device)
                              for view in views]
            start = sum(map(len, used))
            for view, piece in zip(whole, views, strict=True):
                view[start : start + len(piece)] = to_device(piece, self.device)
            used.append(images.clone())  # a view of it would keep its piece
            del views, images, piece
        return whole, torch.cat(used)

    def report(self) -> str:
        """What could not be read, in one sentence."""
        return self.images.report()

    def close(self) -> None:
        """End the workers, those that hang too."""
        loaded = self._loaded
        self._loader = self._loaded = None
        if self.num_workers and loaded is not None:
            workers = loaded._workers  # they hear no SIGTERM, which torch sends in the end
            end = threading.Timer(PATIENCE, lambda: [worker.kill() for worker in workers])
            end.start()
            loaded._shutdown_workers()
            end.cancel()
            for worker in workers:  # torch waits five seconds for each, a busy machine takes longer
                worker.kill()
                worker.join()

    def _start(self) -> None:
        """Begin an epoch, in new workers where there are none."""
        if self._loader is None:
            self._loader = DataLoader(
                self.dataset, batch_sampler=self._asked, num_workers=self.num_workers,
                worker_init_fn=_begin_worker, pin_memory=self.device.type == "cuda",
                persistent_workers=self.num_workers > 0,
                prefetch_factor=AHEAD if self.num_workers else None,
                generator=torch.Generator())  # or it would advance the global one
        try:
            self._loaded = iter(self._loader)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise InputError("the dataset cannot be handed to worker processes "
                             f"({error}). {RESTART}") from error
        # torch's own handler would raise a worker's death anywhere, in the midst of an update
        # too; without it, the next batch finds it out
        main = threading.current_thread() is threading.main_thread()
        if self.num_workers and main and hasattr(signal, "SIGCHLD"):
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def _explain(self, error: BaseException) -> None:
        """Raise the InputError that an error of the loader stands for, if it stands for one."""
        text = str(error).strip()
        if isinstance(error, InputError):  # from a worker it comes with a traceback before it
            raise InputError(text.rsplit("InputError: ")[-1]) from error
        if self.num_workers and isinstance(error, ConnectionError | EOFError) and (
                "Caught" not in text):  # it died while it handed over its views
            text = f"a DataLoader worker exited unexpectedly ({text or type(error).__name__})"
        died = "DataLoader worker" in text and "exited" in text
        if isinstance(error, RuntimeError | OSError | EOFError) and (died or NO_ROOM.search(text)):
            why = ": mostly for lack of memory or files" if died else ""
            raise InputError(
                f"{text.splitlines()[-1]}{why}; take num_workers=0, or fewer than "
                f"num_workers={self.num_workers}, or in a container more shared memory "
                f"(docker run --shm-size=8g). {RESTART}") from error


class _ImageViews(Dataset):
    """(epoch, index) -> (views, index of the image used), as a worker makes them."""

    def __init__(self, images: SkipUnreadable, multicrop: MultiCrop, seed: int):
        self.images, self.multicrop, self.seed = images, multicrop, seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[list[Tensor], int]:
        epoch, index = key
        state = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        seed = int(state[0]) >> 1
        with seeded(seed):
            image, _, used = self.images[index]
            torch.manual_seed(seed)  # the views, whatever the dataset drew before
            return self.multicrop(image), used


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Python's, NumPy's and torch's global generators start from `seed` inside, and are
    afterwards as they were."""
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


def share_of_workers(num_workers: int | None) -> int:
    """The workers of this process, of so many over all processes of this machine.

    None: one a core that may be used, less the one that trains; at most 16.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if num_workers is not None:
        return math.ceil(num_workers / processes)
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return min(max(cores // processes - 1, 1), 16)


def _begin_worker(worker: int) -> None:
    """In a worker, before its first image: which signals it hears, when it gives up.

    A terminal's Ctrl-C and a scheduler's SIGTERM reach the workers too. The trainer acts
    on them once its update is whole, and ends its workers itself.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    # what hands over would only print its error, and the trainer would wait for ever
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)
    sys.excepthook = _end_worker


def _end_worker(*error: object) -> None:
    os._exit(1)
