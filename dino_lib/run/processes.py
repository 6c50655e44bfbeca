"""Several processes that train as one, and signals that wait for the end of an update."""

import contextlib
import datetime
import os
import re
import signal
import sys
import threading

import torch
import torch.distributed as dist

from dino_lib.run.build import pick_device

# the others wait while rank 0 evaluates or downloads. A process that dies closes its connections: that is seen at once
PATIENCE = datetime.timedelta(hours=6)
LOST = re.compile("connection (closed|reset|was aborted|refused)|broken pipe|heartbeat", re.IGNORECASE)


@contextlib.contextmanager
def process_group(config, rank_here, **meet):
    """The processes find each other; all but rank 0 keep silent, unless they fail."""
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE, **meet)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank_here else sys.stdout):
        yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


@contextlib.contextmanager
def between_steps():
    """Ctrl-C and SIGTERM wait for the end of the step: no half-done update is saved. A second one exits unsaved, but
    not where a launcher hands on to each of its processes what the terminal has sent to all of them already."""
    asked = []

    def handler(signum, frame):
        if asked and not dist.is_initialized():
            raise SystemExit(130)
        asked.append(signum)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    old = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(asked)
    finally:
        for number, before in old.items():
            signal.signal(number, before)
