"""What of a run lies in its folder: the history, checkpoints to go on from exactly, the teacher in the end."""

import dataclasses
import json
import os
import tempfile
from pathlib import Path

from tqdm.auto import tqdm

from dino_lib.run.checkpoint import load_newest, save_checkpoint, write_atomically
from dino_lib.run.history import read_history, versions
from dino_lib.run.teacher_file import save_teacher


class RunFolder:
    """The part of a Trainer that writes and reads `folder`: a folder that fails in mid-run costs no update."""

    _GATHERED = ("losses", "used", "skipped", "seconds", "waited")
    _STATE = ("student", "teacher", "loss", "optimizer", "scaler")
    _MAY_CHANGE = ("output_dir", "resume", "data_root", "download", "device", "num_workers", "log_every", "eval_every",
                   "eval_limit", "save_every", "keep", "progress", "tracker", "precision", "compile", "recompute",
                   "accumulate")

    def _log(self, values):
        if self.rank > 0:
            return
        record = {"step": self.step, "epoch": self.step / self.steps_per_epoch, **values}
        self.history.append(record)
        try:
            if self.behind:
                self._write_history(self.folder)
            else:
                with open(self.folder / "history.jsonl", "a") as file:
                    file.write(json.dumps(record) + "\n")
            self.behind = False
        except OSError as error:
            if not self.behind:
                tqdm.write(f"update {self.step}: the history could not be written ({error}); training goes on, and "
                           "its lines are written as soon as they can be")
            self.behind = True
        self.track(record)
        if self.on_log:
            self.on_log(record)

    def save(self):
        """A checkpoint to go on from exactly: no generator's state, since every draw is seeded by the step.

        Raises OSError where the run's folder cannot be written.
        """
        if self.rank == 0:
            self._save_to(self.folder)

    def _save_to(self, folder, done=False):
        """The history first: the checkpoint is worth no more than what leads up to it."""
        if self.behind or folder != self.folder:
            self._write_history(folder)
        else:
            with open(folder / "history.jsonl", "rb+") as file:
                os.fsync(file.fileno())
        save_checkpoint(folder / "checkpoints", self.step, {
            "config": dataclasses.asdict(self.config), "versions": versions(),
            **{k: getattr(self, k) for k in self._GATHERED},
            **{k: getattr(self, k).state_dict() for k in self._STATE}}, self.config.keep, self._scores())
        if done:
            save_teacher(folder / "teacher.safetensors", self.teacher.backbone, self.config, step=self.step,
                         images_seen=self.step * self.config.batch_size)

    def _save_or_go_on(self):
        """In the middle of a run a full disk or a vanished folder costs a checkpoint, and not the run."""
        try:
            self.save()
        except OSError as error:
            self.behind = True
            tqdm.write(f"update {self.step} could not be saved ({error}); training goes on, and the next save tries "
                       "again")

    def _save_before_leaving(self, done=False):
        """Save; where the run's folder cannot be written, in a new one for temporary files. Returns the folder.

        OSError where that fails as well. run() goes on, or ends the run, from memory if it is called again.
        """
        self.paused = True
        if self.rank > 0:
            return self.folder
        try:
            self._save_to(self.folder, done)
            return self.folder
        except OSError as error:
            self.behind, failed = True, error
        try:
            spare = Path(tempfile.mkdtemp(prefix="dino-"))
            (spare / "config.json").write_text(self.config.to_json())
            self._save_to(spare, done)
        except OSError as error:
            raise OSError(f"update {self.step} could be saved neither in {self.folder} ({failed}) nor for the time "
                          f"being ({error}): the newest checkpoint there is what is left, unless this Trainer is still "
                          "at hand to run() again") from error
        tqdm.write(f"{self.folder} could not be written ({failed}): saved in {spare} for the time being")
        return spare

    def _write_history(self, folder):
        with write_atomically(folder / "history.jsonl") as file:
            file.write("".join(json.dumps(record) + "\n" for record in self.history).encode())

    def _scores(self):
        """Step -> k-NN accuracy of the evaluations: the checkpoint of the highest one is kept."""
        return {record["step"]: record["knn"] for record in self.history if "knn" in record}

    def _best_so_far(self):
        """Whether this very step has been evaluated, and better than every trained one before."""
        scores = self._scores() if self.history and "knn" in self.history[-1] else {}
        now = scores.get(self.step)
        return now is not None and all(now > score for step, score in scores.items() if 0 < step < self.step)

    def _start_or_resume(self):
        state = load_newest(self.folder / "checkpoints", self.device)
        if self.paused and (state is None or state["step"] <= self.step):
            return
        if state is None:
            if (self.folder / "teacher.safetensors").exists():
                raise FileExistsError(f"{self.folder} holds the teacher of a finished run, and no checkpoint: move it "
                                      "away, or choose another --output-dir")
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.rank == 0:
                with write_atomically(self.folder / "config.json") as file:
                    file.write(self.config.to_json().encode())
                self._write_history(self.folder)
            return
        if self.config.resume != "auto" and not self.paused:
            raise FileExistsError(f"{self.folder} holds a run at step {state['step']}: go on with --resume auto, or "
                                  "choose another --output-dir")
        mine, theirs = dataclasses.asdict(self.config), state["config"]
        changed = [f"{k}={mine[k]} (was {theirs.get(k)})" for k in mine
                   if k not in self._MAY_CHANGE and mine[k] != theirs.get(k)]
        if changed:
            raise ValueError(f"{self.folder} holds a run with other settings: {', '.join(changed)}. Take the old "
                             "settings, or another --output-dir")
        for name in self._STATE:
            if state[name]:  # empty: the scaler of a run in another precision
                getattr(self, name).load_state_dict(state[name])
        self.step = state["step"]
        for name in self._GATHERED:
            setattr(self, name, state[name])
        # lines written after the checkpoint are of steps that will be run again
        self.history = [r for r in read_history(self.folder) if r["step"] <= self.step]
        if self.rank == 0:
            self._write_history(self.folder)
            others = [f"{name} {state['versions'].get(name)}, now {version}" for name, version in versions().items()
                      if state["versions"].get(name) != version]
            if others:
                print(f"going on with other versions, so the last digits may differ: {'; '.join(others)}")
