"""One run: Algorithm 1 of Caron et al. 2021, with what a real run needs around it."""

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from dino_lib.data.images import InputError
from dino_lib.data.loaders import epoch_order
from dino_lib.data.say import say
from dino_lib.loss import DINOLoss
from dino_lib.run.build import pick_precision
from dino_lib.run.checkpoint import NAMES
from dino_lib.run.config import Config
from dino_lib.run.dinov2 import KoLeo
from dino_lib.run.doctor import diagnose
from dino_lib.run.folder import RunFolder, start_or_resume
from dino_lib.run.history import Tally, is_best, knn_scores, measure, said_of
from dino_lib.run.processes import Interrupts, Ranks
from dino_lib.run.step import (
    Buffers,
    Seen,
    average_gradients,
    check_batch,
    clip_gradients,
    hold_still,
    momentum_if,
    seed_drop_path,
    set_schedules,
    split,
    step_if,
    wake,
)
from dino_lib.run.teacher_file import Teacher, read_teacher
from dino_lib.run.trackers import open_tracker
from dino_lib.teacher import ema_update


class Trainer:
    """One run from its parts; `run()` takes it from where it stands to its end.

    `build_trainer(config)` makes the parts that a config describes. By hand, for example:

        optimizer = torch.optim.AdamW(parameter_groups(student))
        trainer = Trainer(config, views, student, make_teacher(student), DINOLoss(config.out_dim),
                          schedules, optimizer, RunFolder(config))

    views: has len(), the number of images; batches(epoch, indices), a generator of one list of
    (B, C, h, w) views for each row of indices, the two global ones first; and report().
    schedules: arrays with one value a step: lr, weight_decay, momentum, teacher_temp.
    optimizer: of two groups of parameters, with weight decay and without.
    probes: what evaluations measure, or None. on_log: called with each line of the history.

    Raises ValueError where the batch does not fit the images, its parts or the processes.
    """

    def __init__(self, config: Config, views: Any, student: nn.Module, teacher: nn.Module,
                 loss: DINOLoss, schedules: dict[str, np.ndarray],
                 optimizer: torch.optim.Optimizer, folder: RunFolder, *, probes: Any = None,
                 on_log: Callable[[dict], None] | None = None) -> None:
        self.config, self.views = config, views
        self.student, self.teacher, self.loss = student, teacher, loss
        self.schedules, self.optimizer = schedules, optimizer
        self.folder, self.probes, self.on_log = folder, probes, on_log
        self.koleo = KoLeo(student, config.koleo)
        self.ranks = Ranks()
        check_batch(config, len(views), self.ranks.world)
        self.steps_per_epoch = len(views) // config.batch_size  # what is left over is left out
        self.total_steps = len(schedules["lr"])

        self.device = next(student.parameters()).device
        self.dtype = pick_precision(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.forward = student
        if self.ranks.together:
            devices = [self.device] if self.device.type == "cuda" else None
            self.forward = DistributedDataParallel(student, device_ids=devices)

        self.step = 0
        self.skipped = 0  # updates in a row, up to the newest
        self.unread = []  # updates whose numbers the host has not looked at
        self.history = []
        self.tally = Tally.empty(config.out_dim, self.device)
        self.findings_said = set()
        self.interrupts = Interrupts()

    # --- one update: Algorithm 1 ----------------------------------------------------------------

    def train_step(self, views: list[Tensor]) -> dict[str, Any]:
        """One update from a list of (B, C, h, w) views, the two global ones first.

        Returns the loss, the gradient's norm, whether both were finite (if not, nothing has
        changed) and the schedules' values; the first three as tensors (), for the host reads
        nothing here and waits for nothing. Of a step that is logged also what the teacher said of
        each part (`said_of`).
        """
        now = {name: float(values[self.step]) for name, values in self.schedules.items()}
        set_schedules(self.optimizer, now)
        seed_drop_path(self.config.seed, self.step, self.ranks.rank)
        if self.config.freeze_backbone:
            wake(self.student, self.teacher, self.config, self.step, self.steps_per_epoch)
        buffers, seen, said = Buffers(self.student, self.teacher, self.loss), Seen(), []
        self.optimizer.zero_grad(set_to_none=True)
        logged = self._is_logged(self.step + 1)
        parts = split(views, self.config.accumulate)
        for i, part in enumerate(parts):
            with average_gradients(self.forward, i == len(parts) - 1), self._autocast():
                with torch.no_grad():
                    features = self.teacher.features(part[:2])  # (2 B, D)
                    targets = self.teacher.head(features).unflatten(0, (2, -1))  # (2, B, K)
                predictions = self.forward(part)  # (V, B, K)
            loss = self.loss(predictions, targets, now["teacher_temp"], update_center=False)
            seen.add(loss, targets, self.loss.center)
            if logged:
                probs = self.loss.teacher_probs(targets, now["teacher_temp"])
                said.append(said_of(features, probs))
            self.scaler.scale((loss + self.koleo(len(part[0]))) / len(parts)).backward()
        hold_still(self.student, self.config, self.step, self.steps_per_epoch)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.student, self.config.clip_grad)
        loss, used, asked = seen.by_all(self.ranks, self.interrupts)
        finite = (loss + norm).isfinite()
        step_if(finite, self.optimizer, self.scaler)
        ema_update(self.teacher, self.student, momentum_if(finite, now["momentum"]))
        self.loss.update_center(torch.stack(seen.rows))
        buffers.restore_unless(finite)
        self.tally.add(loss, used, finite)
        self.scaler.update()
        self.step += 1
        return now | {"step": self.step, "loss": loss, "grad_norm": norm, "finite": finite,
                      "asked": asked, "said": said}

    def _autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    # --- the run --------------------------------------------------------------------------------

    def run(self) -> tuple[Teacher, list[dict]]:
        """Train to the end; returns (what `load_teacher(output_dir)` gives, the history).

        Raises BlockingIOError where another run is writing to the same folder.
        """
        with self.folder.held() if self.ranks.rank == 0 else contextlib.nullcontext():
            return self._run()

    def _run(self) -> tuple[Teacher, list[dict]]:
        start_or_resume(self)
        precision = str(self.dtype).removeprefix("torch.")
        say(f"{self.device} in {precision}, {len(self.views)} images, {self.total_steps} updates "
            f"of {self.config.batch_size} images")
        if self.step == self.total_steps and self.folder.teacher.exists():
            say(f"{self.folder.path} is finished: nothing is left to train")
            return read_teacher(self.folder.teacher, self.device), self.history
        self.interrupts = Interrupts(self.config.stop_after)
        first = self.ranks.rank == 0
        hidden = None if self.config.progress and first else True  # None: where it's no terminal
        bar = tqdm(total=self.total_steps, initial=self.step, unit="step", leave=False,
                   disable=hidden)
        with open_tracker(self.config if first else None) as self.track, self.interrupts, bar:
            self._train(bar)
            folder = self._save(self.teacher.backbone)  # in here: a signal waits until it is done
            self.ranks.wait()  # until rank 0 has written the teacher
        if folder != self.folder.path:
            raise OSError(f"the run is complete, but {self.folder.path} could not be written: all "
                          f"of it is in {folder}")
        say(self.views.report())
        return read_teacher(self.folder.teacher, self.device), self.history

    def _train(self, bar: tqdm) -> None:
        """All updates that are left; what stops it comes between two, so that it is saved."""
        try:
            self._evaluate_if_due()
            while self.step < self.total_steps:
                self._epoch(self.step // self.steps_per_epoch, bar)
        except (InputError, KeyboardInterrupt):
            self._save()
            say(f"interrupted after update {self.step} and saved: go on with --resume auto and "
                "the same settings")
            raise
        finally:
            if hasattr(self.views, "close"):
                self.views.close()  # ends its workers

    def _epoch(self, epoch: int, bar: tqdm) -> None:
        """The rest of an epoch, from the step that the run stands at."""
        clock = time.perf_counter()
        with contextlib.closing(self._batches(epoch)) as batches:
            for views in batches:
                update = self.train_step(views)
                self.tally.seconds += time.perf_counter() - clock
                bar.update()
                self._after_update(update)
                if self.interrupts.leave:
                    raise KeyboardInterrupt
                clock = time.perf_counter()

    def _batches(self, epoch: int) -> Iterator[list[Tensor]]:
        """This process's views of the updates that are left of an epoch."""
        size, start = self.config.batch_size, self.step % self.steps_per_epoch
        order = epoch_order(self.config.seed, epoch, len(self.views))
        indices = order[: self.steps_per_epoch * size].reshape(-1, size)
        indices = indices[start : start + self.total_steps - self.step]
        indices = indices[:, self.ranks.rank :: self.ranks.world]
        with contextlib.closing(self.views.batches(epoch, indices)) as batches:
            while True:
                clock = time.perf_counter()
                with self.interrupts.at_once():
                    views = next(batches, None)
                if views is None:
                    return
                self.tally.waited += time.perf_counter() - clock
                yield views

    def _after_update(self, update: dict[str, Any]) -> None:
        """Log, evaluate and save what is due.

        What an update's numbers say is read one update later, so that the host can send a GPU the
        next one while this one runs; at once on a CPU, and where something is due.
        """
        config, last = self.config, self.step == self.total_steps
        logged = self._is_logged(self.step)
        saved = self._is_due(config.save_every) or self._is_due(config.eval_every)
        self.unread.append(update)
        late = 0 if logged or saved or self.device.type == "cpu" else 1
        while len(self.unread) > late:
            self._read(self.unread.pop(0))
        if logged and not self.skipped:
            self._log_update(update)
        self._evaluate_if_due()
        if self.skipped or last or self.ranks.rank > 0:
            return
        if self._is_due(config.save_every) or is_best(self.history, self.step):
            self.folder.try_to_save(self)

    def _read(self, update: dict[str, Any]) -> None:
        self.interrupts.agreed = bool(update["asked"])
        self.skipped = 0 if update["finite"] else self.skipped + 1
        if self.skipped:
            self._log_skipped(update)

    def _is_due(self, epochs: float) -> bool:
        """Whether what happens every so many epochs happens at this step."""
        return epochs > 0 and self.step % max(1, round(epochs * self.steps_per_epoch)) == 0

    def _is_logged(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total_steps

    # --- the history ----------------------------------------------------------------------------

    def _log_update(self, update: dict[str, Any]) -> None:
        """A line of the history on the updates since the last one."""
        record = {name: update[name] for name in self.schedules}
        record |= measure(self, update) | self.tally.as_line(self.config.batch_size)
        self.tally = Tally.empty(self.config.out_dim, self.device)
        self._log(record)
        for finding in diagnose(self.history[-1000:], self.config):
            if finding.name not in self.findings_said:
                self.findings_said.add(finding.name)
                say(finding.line())

    def _log_skipped(self, update: dict[str, Any]) -> None:
        """A line on an update that was not made; FloatingPointError for the third in a row."""
        what, value = "loss", update["loss"].item()
        if math.isfinite(value):
            what, value = "gradient", update["grad_norm"].item()
            if self.scaler.is_enabled() and self.scaler.get_scale() >= 1:
                # float16's scale was too large and has been halved: that is no illness
                self.skipped = 0
                return
        step = update["step"]
        self._log({"skipped": self.skipped}, step)
        if self.ranks.rank == 0:
            say(f"step {step}: the {what} is {value}, so this update is skipped")
        if self.skipped == 3:
            saved = sorted(self.folder.path.glob(f"checkpoints/{NAMES}"))
            start = f", with --weights {saved[-1]}, which is from before," if saved else ""
            go_on = ("Go on with --resume auto and precision=fp32, or begin"
                     if saved and self.dtype != torch.float32 else "Begin")
            raise FloatingPointError(
                f"the {what} is {value} at step {step - 2}; so it was three times in a row. "
                f"{go_on} anew in another --output-dir{start} with a lower lr={self.config.lr} or "
                f"clip_grad={self.config.clip_grad}")

    def _evaluate_if_due(self) -> None:
        """At step 0, every `eval_every` epochs and at the end; a resumed run repeats none."""
        every = self.config.eval_every
        due = self._is_due(every) or (every > 0 and self.step == self.total_steps)
        if due and self.probes is not None and self.step not in knn_scores(self.history):
            self._log(self.probes.evaluate(self.teacher.backbone, dtype=self.dtype))

    def _log(self, values: dict[str, float], step: int | None = None) -> None:
        if self.ranks.rank == 0:
            step = step or self.step
            self.history.append({"step": step, "epoch": step / self.steps_per_epoch, **values})
            self.folder.add_line(self.history)
            self.track(self.history[-1])
            if self.on_log:
                self.on_log(self.history[-1])

    def _save(self, *teacher: nn.Module) -> Path:
        """With the teacher at the end of the run; returns the folder that could be written."""
        if self.ranks.rank > 0:
            return self.folder.path
        return self.folder.save_somewhere(self, *teacher)
