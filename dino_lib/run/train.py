"""Train, from Python; `dino train` does it from the command line. The loop is in trainer.py."""

import os
import tempfile
from pathlib import Path

import torch

from dino_lib.run.build import float32_by_default
from dino_lib.run.history import read_history
from dino_lib.run.processes import process_group
from dino_lib.run.teacher_file import read_teacher
from dino_lib.run.trainer import Trainer


@float32_by_default()
def train(config, dataset=None, *, on_log=None):
    """A run from Python; returns (teacher, history).

    config: a Config, for example `dataclasses.replace(PRESETS["demo"], epochs=4)`. dataset: a map-style dataset of PIL
    images or (image, label) pairs to train on instead of the one that the config names. on_log is called with each
    line of the history as it is written. An interrupt leaves the run's folder ready for resume="auto".

    The teacher is what `load_teacher(config.output_dir)` gives; the history a list of dicts, one for each log step
    and each evaluation.

    Without a store, worker processes decode the images. macOS and Windows (and Linux from Python 3.14) start them
    anew: a script must then call this under `if __name__ == "__main__":`, and a dataset's class must be importable
    from a module, not defined in a notebook's cell; or take num_workers=0. Raises InputError if a worker dies or the
    dataset fails: the last whole update is saved.
    """
    return Trainer(config, dataset, on_log=on_log).run()


def launch(config, processes):
    """`train` in several processes on this machine, from a notebook or a script: what torchrun does on a command line.

    config: as for `train`; of each batch a process takes batch_size / processes images of the dataset that it names.
    CUDA: a card each. CPU: a share of the cores each. Returns (teacher, history) as `train` does; an interrupt saves
    and ends all processes. In a script, call it under `if __name__ == "__main__":`. Raises ValueError on a wrong
    number of processes, torch.multiprocessing.ProcessRaisedException with the traceback of the first that fails, and
    ProcessExitedException where one is killed; the others end too.
    """
    if isinstance(processes, bool) or not isinstance(processes, int) or processes < 1:
        raise ValueError(f"processes={processes!r} must be a whole number, at least 1")
    with tempfile.TemporaryDirectory() as folder:
        meet = (Path(folder) / "meet").as_uri()
        context = torch.multiprocessing.spawn(_one_of, (processes, meet, config), processes, join=False)
        try:
            while not context.join():
                pass
        except KeyboardInterrupt:
            for process in context.processes:
                process.terminate()  # SIGTERM: save and leave
            for process in context.processes:
                process.join()
            raise
    if not (Path(config.output_dir) / "teacher.safetensors").exists():  # a signal has reached the processes alone
        raise KeyboardInterrupt(f"interrupted and saved: go on with resume='auto' in {config.output_dir}")
    return read_teacher(Path(config.output_dir) / "teacher.safetensors"), read_history(config.output_dir)


def _one_of(rank, processes, meet, config):
    """What each process of `launch` does."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with process_group(config, rank, init_method=meet, rank=rank, world_size=processes):
        Trainer(config).run()
