"""Train, from Python or the command line: `python -m dino_lib.run.train --preset demo`. The loop is in trainer.py."""

import argparse
import contextlib
import dataclasses
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import torch
import tyro
from torch.distributed.elastic.multiprocessing.errors import get_error_handler

from dino_lib.data.images import InputError
from dino_lib.run.config import PRESETS, Config
from dino_lib.run.doctor import read_history
from dino_lib.run.processes import LOST, process_group
from dino_lib.run.profile import report
from dino_lib.run.teacher_file import read_teacher
from dino_lib.run.trainer import Trainer

EXPECTED = (ValueError, OSError, MemoryError, FloatingPointError, InputError)  # their message says it all


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


def parse_args(argv):
    """The Config that a command line describes: `--preset NAME` first, then any setting by its name."""
    parser = argparse.ArgumentParser("error", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument("--preset", choices=list(PRESETS), default="demo")
    preset, rest = parser.parse_known_args(argv)
    if any(flag in rest for flag in ("-h", "--help")):
        print(f"--preset {{{','.join(PRESETS)}}} sets the defaults of all options below; now: {preset.preset}\n"
              "--profile trains nothing: it says where a step's time goes, and what to change\n")
    said = io.StringIO()  # what tyro has to say stands in a box of several lines
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(Config, default=PRESETS[preset.preset], args=rest, prog="python -m dino_lib.run.train",
                            config=(tyro.conf.FlagConversionOff,))
    finally:
        words = " ".join(re.sub(r"[^\x20-\x7e]", " ", said.getvalue()).split())
        if words:
            print(f"error: {words}", file=sys.stderr)


def main(argv=None):
    """The command line; exits with 2 and one line on wrong settings or data, with a traceback on anything else."""
    rank, several = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) > 1
    who = f"rank {rank}: " if several else ""
    try:
        words = argv if argv is not None else sys.argv[1:]
        config = parse_args([word for word in words if word != "--profile"])
        with process_group(config, rank) if several else contextlib.nullcontext():
            if "--profile" in words:
                return print(report(Trainer(dataclasses.replace(config, eval_every=0))))
            Trainer(config).run()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if several and LOST.search(str(error)):
            print(f"{who}stopped, since another process has ended", file=sys.stderr)
            time.sleep(1.5)  # torchrun takes the first to leave for the one at fault
            sys.exit(1)
        print(f"{who}error: {error or type(error).__name__}", file=sys.stderr)
        if several:
            get_error_handler().record_exception(error)  # torchrun ends with it
        if not isinstance(error, EXPECTED):
            raise
        sys.exit(2)
    if rank == 0:
        print(f"{config.output_dir}: teacher.safetensors, history.jsonl, config.json, checkpoints/")


if __name__ == "__main__":
    main()
