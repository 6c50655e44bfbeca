"""One run: Algorithm 1 of Caron et al. 2021 with what a real run needs around it: accumulation, mixed precision,
several processes, evaluation and a history.
"""

import contextlib
import math
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from tqdm.auto import tqdm

from dino_lib.data.datasets import open_dataset
from dino_lib.data.images import InputError
from dino_lib.data.loaders import epoch_order
from dino_lib.loss import DINOLoss, teacher_entropies
from dino_lib.measure.probes import Probes
from dino_lib.run.build import (
    build_schedules,
    build_student,
    check_sizes,
    keep_freed_memory,
    open_views,
    parameter_groups,
    pick_device,
    pick_kernels,
    pick_precision,
)
from dino_lib.run.config import Config
from dino_lib.run.doctor import diagnose, feature_rank
from dino_lib.run.folder import RunFolder
from dino_lib.run.processes import between_steps
from dino_lib.run.teacher_file import read_teacher
from dino_lib.run.trackers import open_tracker
from dino_lib.teacher import ema_update, make_teacher


class Trainer(RunFolder):
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
        if self.device.type == "cpu":
            keep_freed_memory()
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
            return read_teacher(self.folder / "teacher.safetensors", self.device), self.history
        hidden = True if self.rank > 0 or not self.config.progress else None  # None: hidden in a file, not on a screen
        if "ipykernel" in sys.modules:  # a notebook is a screen too
            hidden = bool(hidden)
        bar = tqdm(total=self.total_steps, initial=self.step, unit="step", disable=hidden, leave=False)
        tracker = open_tracker(self.config if self.rank == 0 else None)
        with tracker as self.track, between_steps() as self.interrupted, bar:
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
        return read_teacher(self.folder / "teacher.safetensors", self.device), self.history

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
            self._log(self.probes.evaluate(self.teacher.backbone, dtype=self.dtype))


@torch.no_grad()
def relative_distance(teacher, student):
    """||teacher - student|| / ||student|| over the parameters that are trained."""
    pairs = [(t, s) for t, s in zip(teacher.parameters(), student.parameters(), strict=True) if s.requires_grad]
    t, s = ([p.detach() for p in column] for column in zip(*pairs, strict=True))
    apart, norm = (torch.stack(torch._foreach_norm(values)).norm() for values in (torch._foreach_sub(t, s), s))
    return (apart / norm).item()
