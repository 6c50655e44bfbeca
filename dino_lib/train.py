"""The training loop and its command line: `python -m dino_lib.train --preset demo`.

Algorithm 1 of Caron et al. 2021 with what a real run needs around it: accumulation, mixed precision, several
processes, evaluation, a history and checkpoints that resume exactly.
"""

import argparse
import contextlib
import dataclasses
import datetime
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import tyro
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from dino_lib.build import (
    build_schedules,
    build_student,
    check_sizes,
    parameter_groups,
    pick_device,
    pick_kernels,
    pick_precision,
)
from dino_lib.checkpoint import load_newest, load_teacher, save_checkpoint, save_teacher, write_atomically
from dino_lib.config import PRESETS, Config
from dino_lib.data import open_dataset
from dino_lib.doctor import diagnose, feature_rank, read_history, versions
from dino_lib.images import InputError
from dino_lib.inputs import epoch_order, open_views
from dino_lib.loss import DINOLoss, teacher_entropies
from dino_lib.probes import Probes
from dino_lib.profiling import report
from dino_lib.teacher import ema_update, make_teacher
from dino_lib.trackers import open_tracker

# the others wait while rank 0 evaluates or downloads. A process that dies closes its connections: that is seen at once
PATIENCE = datetime.timedelta(hours=6)


class Trainer:
    """One run: `run()` takes it from where it stands to its end."""

    def __init__(self, config, dataset=None, *, on_log=None):
        if not isinstance(config, Config):
            raise TypeError(f"config must be a Config, one of PRESETS for example, not {type(config).__name__}")
        if on_log is not None and not callable(on_log):
            raise TypeError(f"on_log={on_log!r} must be a function of one line of the history")
        self.config, self.on_log = config, on_log
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        if config.batch_size % (self.world * config.accumulate):
            raise ValueError(f"batch_size={config.batch_size} must be divisible by accumulate={config.accumulate} "
                             f"times the number of processes, {self.world}")
        self.device = pick_device(config.device)
        self.dtype = pick_precision(config.precision, self.device)
        self.folder = Path(config.output_dir)
        there = next(p for p in (self.folder, *self.folder.absolute().parents) if p.exists())
        if not (there.is_dir() and os.access(there, os.W_OK)):
            raise ValueError(f"output_dir={config.output_dir}: {there} is not a folder that can be written to")
        self.student = build_student(config).to(self.device)
        check_sizes(config, self.student.backbone)  # before hours of decoding
        if self.world > 1 and dataset is None:  # one process a machine downloads, the others find it there
            if int(os.environ.get("LOCAL_RANK", 0)) == 0:
                open_dataset(config.dataset, config.data_root, "train", len(config.mean), config.download)
            dist.barrier()
        self.views = open_views(config, dataset, self.device)
        self._must_agree("the number of training images", len(self.views))
        # a dataset of the caller's own says nothing of labels; one that the config names may have held some back
        self.probes = Probes.open(config) if self.rank == 0 and dataset is None and config.eval_every else None
        if len(self.views) < config.batch_size:
            raise ValueError(f"batch_size={config.batch_size} is larger than the {len(self.views)} training images")
        self.steps_per_epoch = len(self.views) // config.batch_size  # the last, smaller batch of an epoch is dropped
        self.schedules = build_schedules(config, self.steps_per_epoch)
        self.total_steps = len(self.schedules["lr"])

        pick_kernels(self.student, config, self.device, self.dtype)
        self.teacher = make_teacher(self.student)
        self.uncompiled = config.compile  # until the first update
        if config.compile:
            for module in (self.student, self.teacher):
                module.backbone.compile(dynamic=False)  # once for each size of views
        self.loss = DINOLoss(config.out_dim, student_temp=config.student_temp,
                             center_momentum=config.center_momentum).to(self.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.student), lr=config.lr, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.step, self.history, self.said = 0, [], set()
        self.paused = False  # run() has been left with all that it needs to go on in this very object
        self.behind = False  # history.jsonl lacks a line, or may
        self.skipped = 0  # updates in a row, up to the last one
        self.interrupted = self.leave = lambda: False  # whether this process was asked to leave; whether all are to
        self._start_line()
        self.forward = self.student
        if self.world > 1:
            devices = [self.device] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(self.student, device_ids=devices)

    # --- one step -------------------------------------------------------------------------------------------------

    def train_step(self, views):
        """One update from a list of (B, C, h, w) views; returns what there is to log of it, as tensors."""
        c, now = self.config, {name: float(values[self.step]) for name, values in self.schedules.items()}
        for group, decay in zip(self.optimizer.param_groups, (now["weight_decay"], 0.0), strict=True):
            group["lr"], group["weight_decay"] = now["lr"], decay
        torch.manual_seed(np.random.SeedSequence([c.seed, 1, self.step, self.rank]).generate_state(1)[0])  # drop path

        self.optimizer.zero_grad(set_to_none=True)
        buffers = [*self.student.buffers(), *self.teacher.buffers()]  # batch norm's: a forward pass moves them
        before = [buffer.clone() for buffer in buffers]
        losses, rows, largest, parts = [], [], [], list(zip(*(v.chunk(c.accumulate) for v in views), strict=True))
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            with contextlib.nullcontext() if last or self.world == 1 else self.forward.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    with torch.no_grad():
                        features = self.teacher.features(part[:2])
                        targets = self.teacher.head(features).unflatten(0, (2, -1))  # (2, B, K)
                    predictions = self.forward(part)  # (V, B, K)
                loss = self.loss(predictions, targets, now["teacher_temp"], update_center=False)
                self.scaler.scale(loss / len(parts)).backward()
            losses.append(loss.detach())
            rows.append(targets.flatten(0, 1).float().mean(0))
            largest.append((targets - self.loss.center).argmax(-1).flatten())
        probs = self.loss.teacher_probs(targets, now["teacher_temp"])  # of the last part, before the center moves

        if self.step < c.freeze_last_layer * self.steps_per_epoch:
            for p in self.student.head.last_layer_parameters():
                p.grad = None
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.student.parameters(), c.clip_grad or math.inf)
        used = torch.zeros_like(self.used).index_fill_(0, torch.cat(largest), True)
        loss, used = self._of_all(torch.stack(losses).mean(), norm, used)
        finite = math.isfinite((loss + norm).item())
        if finite:
            self.scaler.step(self.optimizer)
            ema_update(self.teacher, self.student, now["momentum"])
            self.loss.update_center(torch.stack(rows))
            self.used |= used
            self.losses.append(loss)
        else:
            for buffer, old in zip(buffers, before, strict=True):
                buffer.copy_(old)
        self.scaler.update()
        self.step += 1
        return {"loss": loss, "probs": probs, "features": features, "grad_norm": norm, "finite": finite, **now}

    def _of_all(self, loss, norm, used):
        """(mean loss, used prototypes) of all processes; they also agree here on whether to leave after this update.

        All of them skip an update, or none does: the gradient's norm is the same everywhere already.
        """
        if self.world == 1:
            return loss, used
        asked = self.interrupted()
        total = torch.cat([torch.stack([loss, loss.new_tensor(asked)]), used.float()])
        dist.all_reduce(total)
        loss, asked = total[0] / self.world, bool(total[1] > 0)
        self.leave = lambda: asked
        return loss, total[2:] > 0

    def _must_agree(self, what, value):
        if self.world > 1:
            values = [None] * self.world
            dist.all_gather_object(values, value)
            if len(set(values)) > 1:
                raise ValueError(f"the processes differ in {what}, by rank: {values}")

    def _gather(self, rows):
        """(B, ...) of this process -> float32 (processes * B, ...) of all."""
        parts = [torch.empty_like(rows, dtype=torch.float32) for _ in range(self.world)]
        if self.world == 1:
            return rows.float()
        dist.all_gather(parts, rows.float().contiguous())
        return torch.cat(parts)

    # --- the run --------------------------------------------------------------------------------------------------

    def run(self):
        """Train to the end; returns (the teacher's backbone in eval mode, the history as a list of dicts)."""
        self._start_or_resume()
        if self.world > 1:
            dist.barrier()  # rank 0 has written config.json
        self._must_agree(f"the step, and whether they see {self.folder / 'config.json'}: every machine must have the "
                         "same output_dir", (self.step, (self.folder / "config.json").exists()))
        print(f"{self.device} in {str(self.dtype).removeprefix('torch.')}, {len(self.views)} images, "
              f"{self.total_steps} updates of {self.config.batch_size} images", flush=True)
        if self.step == self.total_steps and (self.folder / "teacher.safetensors").exists():
            print(f"{self.folder} is finished: nothing is left to train")
            return load_teacher(self.folder, self.device), self.history
        hidden = True if self.rank > 0 or not self.config.progress else None  # None: hidden in a file, not on a screen
        if "ipykernel" in sys.modules:  # a notebook is a screen too
            hidden = bool(hidden)
        bar = tqdm(total=self.total_steps, initial=self.step, unit="step", disable=hidden, leave=False)
        tracker = open_tracker(self.config if self.rank == 0 else None)
        with tracker as self.track, _between_steps() as self.interrupted, bar:
            if self.world == 1:
                self.leave = self.interrupted
            try:
                self._evaluate_if_due()
                while self.step < self.total_steps:
                    self._epoch(self.step // self.steps_per_epoch, bar)
            except InputError as error:  # raised between two updates: there is something whole to save
                folder = self._save_before_leaving()
                raise InputError(f"{error}. Update {self.step} is saved: go on with --resume auto, and --output-dir "
                                 f"{folder}") from error
            except KeyboardInterrupt:
                folder = self._save_before_leaving()
                print(f"interrupted after update {self.step} and saved: go on with --resume auto and the same settings"
                      + (f", but --output-dir {folder}" if folder != self.folder else ""))
                raise
        folder = self._save_before_leaving(done=True)
        if folder != self.folder:
            raise OSError(f"the run is complete, but {self.folder} could not be written: all of it is in {folder}")
        self.paused = False
        if self.rank == 0:
            print(self.views.report())
        if self.world > 1:
            dist.barrier()  # the others wait until the teacher is written
        return load_teacher(self.folder, self.device), self.history

    def _epoch(self, epoch, bar):
        """The rest of an epoch, from the step that the run stands at."""
        c, first = self.config, self.step % self.steps_per_epoch
        order = epoch_order(c.seed, epoch, len(self.views))[: self.steps_per_epoch * c.batch_size]
        batches = order.reshape(-1, c.batch_size)[first : first + self.total_steps - self.step, self.rank :: self.world]
        clock = time.perf_counter()
        for views in self.views.batches(epoch, batches):
            self.waited += time.perf_counter() - clock
            result = self.train_step(views)
            if self.uncompiled:
                tqdm.write(f"compiled: the first update took {time.perf_counter() - clock:.0f} s")
                self.uncompiled = False
            self.seconds += time.perf_counter() - clock
            bar.update()
            done = self.step == self.total_steps
            self.skipped = 0 if result["finite"] else self.skipped + 1
            if self.skipped:
                self._log_skipped(result)
            if not self.skipped and (self.step % c.log_every == 0 or done):
                self._log_step(result)
            self._evaluate_if_due()
            if (self._due(c.save_every) or self._best_so_far()) and not done and not self.skipped:
                self._save_or_go_on()
            if self.leave():
                raise KeyboardInterrupt
            clock = time.perf_counter()

    def _due(self, epochs):
        """Whether a thing that happens every `epochs` epochs happens at this step."""
        return epochs > 0 and self.step % max(1, round(epochs * self.steps_per_epoch)) == 0

    def _start_line(self):
        """What is gathered from one line of the history to the next."""
        self.losses, self.seconds, self.waited = [], 0.0, 0.0
        self.used = torch.zeros(self.config.out_dim, dtype=torch.bool, device=self.device)

    def _log_step(self, result):
        entropy, mean_entropy = teacher_entropies(self._gather(result["probs"].transpose(0, 1)).transpose(0, 1))
        rows = self._gather(result["features"])
        features = F.normalize(rows, dim=1)
        record = {name: result[name] for name in self.schedules}
        record |= {"loss": torch.stack(self.losses).mean().item(), "teacher_entropy": entropy,
                   "mean_entropy": mean_entropy, "center_norm": self.loss.center.norm().item(),
                   "feature_std": (features.std(0).mean() * features.shape[1] ** 0.5).item(),
                   "feature_rank": feature_rank(rows), "prototypes_used": self.used.float().mean().item(),
                   "teacher_lag": relative_distance(self.teacher, self.student),
                   "seconds": self.seconds, "input_share": self.waited / self.seconds,
                   "images_per_second": len(self.losses) * self.config.batch_size / self.seconds}
        if result["finite"]:
            record["grad_norm"] = result["grad_norm"].item()
        self._start_line()
        self._log(record)
        for finding in diagnose(self.history[-1000:], self.config):
            if finding.name not in self.said:
                self.said.add(finding.name)
                tqdm.write(finding.line())

    def _log_skipped(self, result):
        """A line on a step that was not taken; FloatingPointError for the third in a row."""
        what = "loss" if not math.isfinite(result["loss"]) else "gradient"
        value = result["loss" if what == "loss" else "grad_norm"].item()
        if what == "gradient" and self.scaler.is_enabled() and self.scaler.get_scale() >= 1:
            self.skipped = 0  # float16's scale was too large and has been halved: no illness
            self.losses.append(result["loss"])
            return
        self._log({"skipped": self.skipped})
        if self.rank == 0:
            tqdm.write(f"step {self.step}: the {what} is {value}, so this update is skipped")
        if self.skipped == 3:
            raise FloatingPointError(f"the {what} is {value} at step {self.step - 2}; so it was three times in a row, "
                                     f"and the newest checkpoint in {self.folder / 'checkpoints'} is from before. "
                                     f"Lower lr={self.config.lr} or clip_grad={self.config.clip_grad}, or take "
                                     "precision=fp32")

    def _evaluate_if_due(self):
        """At step 0, every `eval_every` epochs and at the end, but not again where a resumed run has it already."""
        due = self._due(self.config.eval_every) or (self.config.eval_every > 0 and self.step == self.total_steps)
        if due and self.probes is not None and not any(r["step"] == self.step and "knn" in r for r in self.history):
            self._log(self.probes.evaluate(self.teacher.backbone))

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

    # --- save and resume ------------------------------------------------------------------------------------------

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

    _GATHERED = ("losses", "used", "skipped", "seconds", "waited")
    _STATE = ("student", "teacher", "loss", "optimizer", "scaler")
    _MAY_CHANGE = ("output_dir", "resume", "data_root", "download", "device", "num_workers", "log_every", "eval_every",
                   "eval_limit", "save_every", "keep", "progress", "tracker", "precision", "compile", "recompute",
                   "accumulate")

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


@contextlib.contextmanager
def _between_steps():
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


@torch.no_grad()
def relative_distance(teacher, student):
    """||teacher - student|| / ||student|| over the parameters that are trained."""
    pairs = [(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True) if s.requires_grad]
    t, s = ([p.detach() for p in column] for column in zip(*pairs, strict=True))
    apart, norm = (torch.stack(torch._foreach_norm(values)).norm() for values in (torch._foreach_sub(t, s), s))
    return (apart / norm).item()


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
    return load_teacher(config.output_dir), read_history(config.output_dir)


def _one_of(rank, processes, meet, config):
    """What each process of `launch` does."""
    os.environ["LOCAL_RANK"] = str(rank)
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    with _process_group(config, rank, init_method=meet, rank=rank, world_size=processes):
        Trainer(config).run()


@contextlib.contextmanager
def _process_group(config, rank_here, **meet):
    """The processes find each other; all but rank 0 keep silent, unless they fail."""
    device = pick_device(config.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE, **meet)
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere if rank_here else sys.stdout):
        yield
    dist.destroy_process_group()  # not after an error: it would wait for the others


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
            return tyro.cli(Config, default=PRESETS[preset.preset], args=rest, prog="python -m dino_lib.train",
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
        with _process_group(config, rank) if several else contextlib.nullcontext():
            if "--profile" in words:
                return print(report(Trainer(dataclasses.replace(config, eval_every=0))))
            Trainer(config).run()
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        if several and _LOST.search(str(error)):
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


EXPECTED = (ValueError, OSError, MemoryError, FloatingPointError, InputError)  # their message says it all
_LOST = re.compile("connection (closed|reset|was aborted|refused)|broken pipe|heartbeat", re.IGNORECASE)


if __name__ == "__main__":
    main()
