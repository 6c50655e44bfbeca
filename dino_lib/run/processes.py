"""Several processes that train as one, and signals that wait until nothing is half done."""

import contextlib
import datetime
import os
import re
import signal
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from dino_lib.run.build import pick_device
from dino_lib.run.config import Config

# The others wait while rank 0 evaluates or downloads. A process that dies is noticed at once,
# since its connections close.
PATIENCE = datetime.timedelta(hours=6)
GRACE = 20.0  # seconds: see Interrupts
LOST = re.compile("connection (closed|reset|was aborted|refused)|broken pipe|heartbeat", re.I)


@contextlib.contextmanager
def process_group(config: Config, rank_here: int, **meet: Any) -> Iterator[None]:
    """The processes find each other; all but rank 0 keep silent, unless they fail."""
    device = pick_device(config.device)
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(device)
        meet["device_id"] = device
    # the stem's last convolution is 1x1: its gradient has other strides, which costs one small copy
    warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
    dist.init_process_group(backend, timeout=PATIENCE, **meet)
    with open(os.devnull, "w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(
            nowhere if rank_here else sys.stdout):
        yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


class Ranks:
    """This process among those that train together; alone, a value comes back as it is."""

    def __init__(self) -> None:
        self.together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if self.together else 0
        self.world = dist.get_world_size() if self.together else 1

    def wait(self) -> None:
        """Until all have come here."""
        if self.together:
            dist.barrier()

    def mean(self, x: Tensor) -> Tensor:
        """The mean over the processes, of the same shape."""
        if not self.together:
            return x
        total = x.clone()
        dist.all_reduce(total)
        return total / self.world

    def any(self, x: Tensor) -> Tensor:
        """bool: where x is true in one process at least."""
        return self.mean(x.float()) > 0 if self.together else x

    def gather(self, rows: Tensor) -> Tensor:
        """(B, ...) of this process -> float32 (processes * B, ...) of all."""
        rows = rows.float().contiguous()
        if not self.together:
            return rows
        parts = [torch.empty_like(rows) for _ in range(self.world)]
        dist.all_gather(parts, rows)
        return torch.cat(parts)

    def must_agree(self, what: str, value: Any) -> None:
        """ValueError, in every process, where the value is not the same in all."""
        if self.together:
            values = [None] * self.world
            dist.all_gather_object(values, value)
            if len(set(values)) > 1:
                raise ValueError(f"the processes differ in {what}, by rank: {values}")


class Interrupts:
    """Ctrl-C and SIGTERM, which wait for the end of an update: none is saved half done.

    `leave` tells the trainer to leave after the update. A second signal exits unsaved. In the
    block of `at_once`, where the trainer waits for a batch and nothing is half done, a signal
    raises KeyboardInterrupt: a worker that hangs would be waited for forever.

    Several processes leave after the same update, and a launcher hands on to each of them what
    the terminal has sent to all, so a second signal says nothing. A process that still waits for
    its batch GRACE seconds after the first one leaves alone.

    minutes: after so many it is as if a first signal had come.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.asked, self.minutes = False, minutes
        self.agreed = False  # what the processes have told each other in this update
        self.waiting = False
        self.before, self.alarm, self.limit = {}, None, None

    def __enter__(self) -> "Interrupts":
        if self.minutes:
            self.limit = threading.Timer(60 * self.minutes, setattr, (self, "asked", True))
            self.limit.daemon = True
            self.limit.start()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for timer in (self.alarm, self.limit):
            if timer:
                timer.cancel()
        for number, handler in self.before.items():
            signal.signal(number, handler)

    @property
    def leave(self) -> bool:
        """Whether to leave after this update. A signal that comes once the processes have spoken
        of it waits for the next update: a process that left alone would take the others along
        before they have saved."""
        return self.agreed if dist.is_initialized() else self.asked

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        self.waiting = True
        try:
            if self.asked and not dist.is_initialized():  # just before the block
                raise KeyboardInterrupt
            yield
        finally:
            self.waiting = False

    def _handle(self, number: int, frame: object) -> None:
        leave = self.waiting
        if dist.is_initialized():
            if not self.asked:
                self._come_again(number)
            leave = leave and time.monotonic() >= self.patient_until
        elif self.asked and not leave:
            raise SystemExit(130)
        self.asked = True
        if leave:
            self.waiting = False
            raise KeyboardInterrupt

    def _come_again(self, number: int) -> None:
        """The same signal once more, GRACE seconds from now."""
        self.patient_until = time.monotonic() + GRACE
        if hasattr(signal, "pthread_kill"):  # not on Windows
            main = threading.main_thread().ident
            self.alarm = threading.Timer(GRACE + 0.1, signal.pthread_kill, (main, number))
            self.alarm.daemon = True
            self.alarm.start()
