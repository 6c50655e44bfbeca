"""Train, from Python; `dino train` does it from the command line. The loop is in trainer.py."""

import dataclasses
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp

from dino_lib.data.datasets import open_dataset
from dino_lib.data.images import InputError
from dino_lib.data.say import say
from dino_lib.loss import DINOLoss
from dino_lib.run.build import (
    build_schedules,
    build_student,
    check_normalisation,
    check_sizes,
    float32_by_default,
    open_probes,
    open_views,
    parameter_groups,
    pick_device,
    pick_kernels,
    pick_precision,
)
from dino_lib.run.config import OWN, Config
from dino_lib.run.dinov2 import SinkhornLoss
from dino_lib.run.folder import RunFolder
from dino_lib.run.history import read_history
from dino_lib.run.processes import Ranks, process_group
from dino_lib.run.step import check_batch
from dino_lib.run.teacher_file import Teacher, read_teacher
from dino_lib.run.trainer import Trainer
from dino_lib.teacher import make_teacher

OnLog = Callable[[dict], None]
Result = tuple[Teacher, list[dict]]


@float32_by_default()
def train(config: Config, dataset: Any = None, *, on_log: OnLog | None = None) -> Result:
    """A run from Python; returns (teacher, history).

    config: a Config, for example `dataclasses.replace(PRESETS["demo"], epochs=4)`. dataset: a
    map-style dataset of PIL images or (image, label) pairs to train on instead of the one that the
    config names. on_log is called with each line of the history as it is written. An interrupt
    leaves the run's folder ready for resume="auto".

    The teacher is what `load_teacher(config.output_dir)` gives; the history a list of dicts, one
    for each log step and each evaluation.

    Without a store, worker processes decode the images. macOS and Windows (and Linux from Python
    3.14) start them anew: a script must then call this under `if __name__ == "__main__":`, and a
    dataset's class must be importable from a module, not defined in a notebook's cell; or take
    num_workers=0. Raises InputError if a worker dies or the dataset fails: the last whole update
    is saved.
    """
    return build_trainer(config, dataset, on_log=on_log).run()


@float32_by_default()
def build_trainer(config: Config, dataset: Any = None, *, on_log: OnLog | None = None) -> Trainer:
    """The Trainer of a config: its parts made, nothing written yet. The arguments are `train`'s.

    What can be wrong is found before hours of decoding: settings, sizes, the data of evaluations.
    """
    if dataset is not None:  # or a report and a card would speak of the one that the config names
        config = dataclasses.replace(config, dataset=OWN)
    elif config.dataset == OWN:
        raise ValueError("the images of this run came as an argument of train: pass dataset= "
                         "again, or name a dataset or a folder")
    if config.drop_path and "drop_path_rate" in config.backbone_options:
        rate = config.backbone_options["drop_path_rate"]
        raise ValueError(f"drop_path={config.drop_path} and drop_path_rate={rate} among the "
                         f"backbone_options are one setting: give drop_path={rate} alone")
    ranks, device = Ranks(), pick_device(config.device)
    check_batch(config, config.batch_size, ranks.world)
    folder = RunFolder(config)
    # a checkpoint holds all weights, wherever the run has started from
    start = dataclasses.replace(config, pretrained=False, weights=None)
    student = build_student(start if folder.goes_on() else config)
    check_sizes(config, student.backbone)
    check_normalisation(config, student.backbone)
    student.to(device)
    pick_kernels(student, config, device, pick_precision(config.precision, device))

    images = _open_images(config, ranks) if dataset is None else dataset
    probes = _open_probes(config, dataset) if ranks.rank == 0 else None
    views = open_views(config, images, device)
    ranks.must_agree("the number of training images", len(views))

    teacher = make_teacher(student)
    if config.compile:
        torch.compiler.reset()  # a process compiles a function eight times: not earlier runs' too
        for model in (student, teacher):
            model.backbone.compile(dynamic=False)  # once for each size of views
    kind = SinkhornLoss if config.centering == "sinkhorn" else DINOLoss
    loss = kind(config.out_dim, student_temp=config.student_temp,
                center_momentum=config.center_momentum).to(device)
    schedules = build_schedules(config, len(views) // config.batch_size)
    optimizer = torch.optim.AdamW(parameter_groups(student), lr=config.lr, fused=True)
    return Trainer(config, views, student, teacher, loss, schedules, optimizer, folder,
                   probes=probes, on_log=on_log)


def _open_images(config: Config, ranks: Ranks) -> Any:
    """The training images; one process a machine downloads them, and the others find them there."""
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not first:
        ranks.wait()
    asked = (config.dataset, config.data_root, "train", len(config.mean), config.download)
    images = open_dataset(*asked)
    if first:
        ranks.wait()
    return images


def _open_probes(config: Config, dataset: Any) -> Any:
    """What evaluations measure; None where they are not wanted, or nothing labelled is held back.

    A line says why, here or where a folder is opened.
    """
    if not config.eval_every:
        return None
    if dataset is not None:
        say("no k-NN: of a dataset that comes as an argument nothing is held back; a folder or "
            "name in the settings, dataset=, has a part for it (eval_every=0: none is wanted)")
        return None
    try:
        return open_probes(config)
    except (ValueError, OSError, InputError) as error:
        raise type(error)(f"{error}. That is for evaluations; eval_every=0 trains without "
                          "them") from error


def launch(config: Config, processes: int, dataset: Any = None, *,
           on_log: OnLog | None = None) -> Result:
    """`train` in several processes on this machine, as torchrun does on a command line.

    config, dataset and on_log: as for `train`; of each batch a process takes batch_size /
    processes images. The dataset is pickled for each process. on_log is called in this one.
    CUDA: a card each. CPU: a share of the cores each. Returns (teacher, history) as `train` does;
    an interrupt saves and ends all processes. In a script, call it under
    `if __name__ == "__main__":`.

    Raises ValueError on a wrong number of processes,
    torch.multiprocessing.ProcessRaisedException with the traceback of the first process that
    fails, and ProcessExitedException where one is killed; the others end too.
    """
    if processes < 1:
        raise ValueError(f"processes={processes} must be at least 1")
    lines = mp.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory() as folder:
        meet = (Path(folder) / "meet").as_uri()
        arguments = (processes, meet, config, dataset, lines)
        context = mp.spawn(_one_of, arguments, processes, join=False)
        try:
            while not context.join(timeout=0.1):
                _pass_on(lines, on_log)
            _pass_on(lines, on_log)
        except BaseException:
            _end(context.processes, lines)
            raise
    output = RunFolder(config)
    if not output.teacher.exists():  # a signal has reached the processes alone
        raise KeyboardInterrupt("interrupted and saved: go on with resume='auto' in "
                                f"{output.path}")
    return read_teacher(output.teacher), read_history(output.path)


def _one_of(rank: int, processes: int, meet: str, config: Config, dataset: Any,
            lines: Any) -> None:
    """What each process of `launch` does."""
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}  # as torchrun
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with process_group(config, rank, init_method=meet, rank=rank, world_size=processes):
        build_trainer(config, dataset, on_log=lines.put).run()


def _pass_on(lines: Any, on_log: OnLog | None) -> None:
    while not lines.empty():
        line = lines.get()
        if on_log is not None:
            on_log(line)


def _end(processes: list, lines: Any) -> None:
    """SIGTERM: they save and leave. One that is writing a line goes on only if that is read."""
    for process in processes:
        process.terminate()
    while any(process.is_alive() for process in processes):
        _pass_on(lines, None)
        time.sleep(0.05)
