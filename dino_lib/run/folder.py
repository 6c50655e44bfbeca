"""The folder of a run: the history, checkpoints to go on from exactly, the teacher in the end."""

import contextlib
import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dino_lib.data.say import say
from dino_lib.run.checkpoint import NAMES, load_newest, save_checkpoint, write_atomically
from dino_lib.run.config import OWN, Config
from dino_lib.run.history import Tally, knn_scores, read_history
from dino_lib.run.teacher_file import save_teacher

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

if TYPE_CHECKING:
    from dino_lib.run.trainer import Trainer

# A run may go on with other values of these: they change how it is computed, shown and kept, and
# where its images, and the weights that it began with, lie.
MAY_CHANGE = (
    "output_dir", "resume", "stop_after", "dataset", "data_root", "download", "weights", "device",
    "num_workers", "log_every", "eval_every", "eval_limit", "save_every", "keep", "progress",
    "tracker", "precision", "compile", "recompute", "accumulate")

LOCK_SECONDS = 10  # that a run waits for another one's lock

PARTS = ("student", "teacher", "loss", "optimizer", "scaler")  # of a Trainer, in a checkpoint


class RunFolder:
    """A run's config.json, history.jsonl, checkpoints/ and teacher.safetensors.

    A folder that fails in mid-run, as on a full disk or a lost network drive, costs no update:
    what is missing is written as soon as it can be, and in the end to another folder.
    """

    def __init__(self, config: Config, path: str | Path | None = None) -> None:
        """path: the config's output_dir if not given.

        Raises ValueError where it is no folder that can be written to.
        """
        self.config = config
        self.path = Path(path or config.output_dir)
        self.teacher = self.path / "teacher.safetensors"
        self.lacks_lines = False  # whether history.jsonl may be behind the history
        there = next(p for p in (self.path, *self.path.absolute().parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ValueError(f"output_dir={self.path}: {there} is not a folder that can be "
                             "written to")

    def start(self, history: list[dict]) -> None:
        """Make the folder, with its settings and history."""
        self.path.mkdir(parents=True, exist_ok=True)
        with write_atomically(self.path / "config.json") as file:
            file.write(self.config.to_json().encode())
        self.write_history(history)

    def write_history(self, history: list[dict]) -> None:
        with write_atomically(self.path / "history.jsonl") as file:
            for record in history:
                file.write(json.dumps(record).encode() + b"\n")
        self.lacks_lines = False

    def add_line(self, history: list[dict]) -> None:
        """Write the newest line of the history, and those that are missing in the file."""
        try:
            if self.lacks_lines:
                self.write_history(history)
                return
            with open(self.path / "history.jsonl", "a") as file:
                file.write(json.dumps(history[-1]) + "\n")
        except OSError as error:
            if not self.lacks_lines:
                say(f"update {history[-1]['step']}: the history could not be written ({error}); "
                    "training goes on, and its lines are written as soon as they can be")
            self.lacks_lines = True

    def save(self, run: "Trainer", teacher: nn.Module | None = None) -> None:
        """A checkpoint, and the teacher's backbone if one is given; OSError where that fails.

        The history first: a checkpoint is worth no more than what leads up to it.
        """
        if self.lacks_lines:
            self.write_history(run.history)
        with open(self.path / "history.jsonl", "rb+") as file:
            os.fsync(file.fileno())
        scores = knn_scores(run.history)
        save_checkpoint(self.path / "checkpoints", run.step, state_of(run), self.config.keep,
                        scores)
        if teacher is not None:
            seen = run.step * self.config.batch_size
            save_teacher(self.teacher, teacher, self.config, step=run.step, images_seen=seen)

    def try_to_save(self, run: "Trainer", *teacher: nn.Module) -> bool:
        """Save, or say why not: in mid-run a folder that fails costs a checkpoint alone."""
        try:
            self.save(run, *teacher)
            return True
        except OSError as error:
            self.lacks_lines = True
            say(f"update {run.step} could not be saved in {self.path} ({error}); the next save "
                "tries again")
            return False

    def save_somewhere(self, run: "Trainer", *teacher: nn.Module) -> Path:
        """Save here, or else in a new folder for temporary files; returns the folder's path.

        OSError where neither can be written.
        """
        if self.try_to_save(run, *teacher):
            return self.path
        spare = RunFolder(self.config, tempfile.mkdtemp(prefix="dino-"))
        spare.start(run.history)
        spare.save(run, *teacher)
        say(f"saved for the time being: go on with --output-dir {spare.path}")
        return spare.path

    def newest(self, device: torch.device) -> dict | None:
        """The state in the newest whole checkpoint; None where no run has begun.

        Raises FileExistsError where there is only a teacher: it would be overwritten.
        """
        state = load_newest(self.path / "checkpoints", device)
        if state is None and self.teacher.exists():
            raise FileExistsError(f"{self.path} holds the teacher of a finished run, and no "
                                  "checkpoint: move it away, or choose another --output-dir")
        return state

    def goes_on(self) -> bool:
        """Whether a run that takes this folder goes on from a checkpoint."""
        return self.config.resume == "auto" and any(self.path.glob(f"checkpoints/{NAMES}"))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The folder is this process's alone inside; BlockingIOError where another run has it.

        Two runs would overwrite each other's checkpoints. The lock ends with the process, however
        that ends, and with its workers, which outlive a kill by some seconds: so it is waited for.
        On network drives it may hold within one machine alone; Windows has none.
        """
        if fcntl is None:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        number = os.open(self.path, os.O_RDONLY)
        try:
            self._lock(number)
            yield
        finally:
            with contextlib.suppress(OSError):
                fcntl.flock(number, fcntl.LOCK_UN)  # a forked child may hold the file open
            os.close(number)

    def _lock(self, number: int) -> None:
        asked = time.monotonic()
        said = False
        while True:
            try:
                return fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if not said:
                    say(f"another run holds {self.path}: waiting {LOCK_SECONDS} s for its end")
                    said = True
                if time.monotonic() > asked + LOCK_SECONDS:
                    raise BlockingIOError(f"another run is writing to {self.path}: wait until it "
                                          "has ended, or choose another --output-dir") from error
            except OSError:  # this drive knows no locks
                return None
            time.sleep(0.2)

    def check_same_run(self, state: dict, n_images: int) -> None:
        """ValueError where a checkpoint is of a run with other settings, or so many other images.

        Images and weights in another place are told and no more.
        """
        defaults = {field.name: field.default for field in dataclasses.fields(self.config)}
        now, before = dataclasses.asdict(self.config), defaults | state["config"]  # new ones
        changed = [f"{name}={value} (was {before[name]})" for name, value in now.items()
                   if name not in MAY_CHANGE and value != before[name]]
        if changed:
            raise ValueError(f"{self.path} holds a run with other settings: {', '.join(changed)}. "
                             "Take the old settings, or another --output-dir")
        if state["n_images"] != n_images:
            raise ValueError(f"{self.path} holds a run on {state['n_images']} images, and here are "
                             f"{n_images}. Take the same images, or another --output-dir")
        if before["dataset"] == OWN != now["dataset"]:
            raise ValueError(f"the images of the run in {self.path} came as an argument of train: "
                             "pass dataset= again, or take another --output-dir")
        if before["dataset"] != now["dataset"]:
            say(f"the images are read from {now['dataset']}; before, from {before['dataset']}")
        if before["weights"] != now["weights"]:
            say(f"weights={now['weights']} are not read: the run goes on from its checkpoint")


def state_of(run: "Trainer") -> dict[str, Any]:
    """All that a run goes on from exactly; no generator's, since the step seeds every draw."""
    return {"step": run.step, "skipped": run.skipped, "n_images": len(run.views),
            "config": dataclasses.asdict(run.config), **vars(run.tally),
            **{name: getattr(run, name).state_dict() for name in PARTS}}


def set_state(run: "Trainer", state: dict[str, Any]) -> None:
    """Bring a Trainer to where `state_of` was taken."""
    run.step, run.skipped = state["step"], state["skipped"]
    run.tally = Tally(**{name: state[name] for name in vars(run.tally)})
    for name in PARTS:
        if state[name]:  # the scaler's is empty after a run in another precision
            getattr(run, name).load_state_dict(state[name])


def start_or_resume(trainer: "Trainer") -> None:
    """Bring a Trainer to where the run in its folder stands, or start one there.

    A Trainer whose run() was left goes on from the newest checkpoint whatever `resume` says.
    """
    folder, first = trainer.folder, trainer.ranks.rank == 0
    state = folder.newest(trainer.device)
    if state is None:
        if first:
            folder.start(trainer.history)
    else:
        if trainer.config.resume != "auto" and trainer.step == 0:
            raise FileExistsError(f"{folder.path} holds a run at step {state['step']}: go on with "
                                  "--resume auto, or choose another --output-dir")
        folder.check_same_run(state, len(trainer.views))
        set_state(trainer, state)
        # updates after the checkpoint are made once more, and so are their lines
        lines = read_history(folder.path)
        trainer.history = [record for record in lines if record["step"] <= trainer.step]
        if first:
            if trainer.step < trainer.total_steps:
                folder.start(trainer.history)  # with the settings that it goes on with
            else:
                folder.write_history(trainer.history)
    trainer.ranks.wait()
    settings = folder.path / "config.json"
    trainer.ranks.must_agree(f"the step, and whether they see {settings}: every machine must have "
                             "the same output_dir", (trainer.step, settings.exists()))
