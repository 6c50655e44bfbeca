"""What ails a run, from its history: `dino doctor runs/demo`.

A run is judged by its lines of history.jsonl. What lasts has held without a break up to the newest
line: for three lines, ten updates and a tenth of the run (at most 500 updates). Measured on the
runs of `benchmarks/doctor.py` (40 updates of a tiny network; healthy: ten seeds, from update 20 on)
and on whole demo runs:

finding         | sick if                      | healthy                | made sick by
--------------- | ---------------------------- | ---------------------- | ------------------------
uniform         | row entropy > 0.95 ln K      | 0.05-0.31, demo < 0.79 | 0.98-0.99: teacher warm
one prototype   | entropy of mean < 0.2 ln K   | 0.26-0.71              | 0.10-0.17: no center, fast
dead prototypes | used < 0.1 of those in reach | 0.12-0.31, demo > 0.03 | 0.02-0.08: no center
                | and entropy of mean < 0.4    | 0.44-0.79, demo > 0.47 | 0.10-0.32
feature rank    | RankMe < 2                   | 3.8-5.5                | 1.0-1.9: lr 0.3, decay 300
no progress     | loss > 1.1 ln K past warm-up | 0.36-0.83, demo < 0.97 | 1.4-2.5: lr 1e-7; cold
teacher lagging | lag > 5 W                    | 1.8-2.4, demo 0.8-0.9  | 5-10: teacher left behind
learning rate   | sum < 0.005 or peak > 0.02   | sum 0.03, demo 0.47    | sum 4e-6; peak 0.3
momentum        | start > 0.2 or median < 0.5  | 0.05, demo 0           | 0.998; median 0
input-bound     | waiting > 0.7 of the time    | 0.22-0.37              | 0.72-0.82: slow input

W bounds a weight's distance from the teacher's: AdamW moves it by about lr (1 + decay * its size)
an update, and W <- momentum * (W + that). Weights are about 0.05 in size (0.055 in the demo).
"""

import math
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dino_lib.run.build import build_schedules
from dino_lib.run.config import Config
from dino_lib.run.history import read_history

WEIGHT_SIZE = 0.05

# name: (what it is likely due to, what to change, the notebook and its section)
ADVICE = {
    "not finite": (
        "an lr too high, half precision, or images that are not numbers",
        "a lower lr or clip_grad, or precision=fp32; look at that step's images",
        "05_training.ipynb: 8 Half precision",
    ),
    "uniform": (
        "a teacher less decided than the student: without sharpening both agree on nothing",
        "a teacher_temp (0.04) well below student_temp (0.1)",
        "03_loss.ipynb: 6. Three ways to learn nothing",
    ),
    "one prototype": (
        "a center that does not move, a teacher too sharp, or an lr too high",
        "center_momentum 0.9, a lower lr",
        "03_loss.ipynb: 3. Centering: no prototype may be everyone's favourite",
    ),
    "dead prototypes": (
        "a weak center, an lr too high, more prototypes than kinds of images",
        "center_momentum 0.9, a lower lr, a smaller out_dim",
        "02_head.ipynb: 2. The head: cosines with prototypes",
    ),
    "feature rank": (
        "weights driven apart (lr) or to zero (weight_decay), or images that are all alike",
        "a lower lr or weight_decay_end; look at the images",
        "05_training.ipynb: 6 Reading the run",
    ),
    "no progress": (
        "a student that hardly moves, or that is colder than the teacher",
        "student_temp 0.1, teacher_temp 0.04; check the views",
        "05_training.ipynb: 2 The plan, on paper",
    ),
    "teacher lagging": (
        "a teacher that is not updated at each step, or not with the schedule's momentum",
        "ema_update once an update, after optimizer.step()",
        "04_teacher.ipynb: 2. A low-pass filter",
    ),
    "learning rate": (
        "an lr or a warm-up made for another run",
        "lr 0.0005 to 0.0015 (AdamW), a warm-up of a tenth of the run, or more epochs",
        "04_teacher.ipynb: 5. Schedules: a run on paper",
    ),
    "momentum": (
        "a half-life of the teacher, ln 2 / -ln(momentum) updates, made for another run",
        "a half-life of a hundredth to a tenth of the run (0.96: 17 updates)",
        "04_teacher.ipynb: 1. A slow follower",
    ),
    "input-bound": (
        "images that are decoded, or views that are made, more slowly than the network takes them",
        "store_size, num_workers, a lower n_local",
        "01_multicrop.ipynb: 6. Views that can be made again",
    ),
}

Line = dict[str, Any]  # of the history


@dataclass(frozen=True)
class Finding:
    """What happened (`what`), from which step, why, what to change, and where to read on."""

    name: str
    step: int
    what: str
    why: str
    change: str
    read: str

    def line(self) -> str:
        """In one line, for a run that is going on."""
        return (
            f"doctor: {self.name}, from step {self.step}: {self.what}. "
            f"Likely {self.why}; try {self.change}"
        )

    def paragraph(self) -> str:
        """In four lines, for a report."""
        return (
            f"{self.name}, from step {self.step}: {self.what}\n"
            f"  likely due to: {self.why}\n"
            f"  change: {self.change}\n"
            f"  read: notebooks/{self.read}"
        )


def diagnose(history: Sequence[Line], config: Config) -> list[Finding]:
    """The findings on a run; an empty list if it looks healthy.

    history: as `read_history` and `train` give it; fields that are missing are not judged.
    """
    lines = [line for line in history if "loss" in line]
    found = list(_skipped(history))
    if lines:
        steps_per_epoch = max(1, round(lines[-1]["step"] / lines[-1]["epoch"]))
        plan = build_schedules(config, steps_per_epoch)
        total = len(plan["lr"])
        if total >= 20:  # a shorter run only tries the code
            found += _lasting(lines, config, total)
            found += _schedule_findings(plan["lr"], plan["momentum"])
    return [Finding(name, step, what, *ADVICE[name]) for name, step, what in found]


def _skipped(history: Sequence[Line]) -> Iterator[tuple[str, int, str]]:
    """Updates that were not taken; (name, step, what), as all findings here."""
    skipped = [line for line in history if line.get("skipped")]
    if skipped:
        in_a_row = max(line["skipped"] for line in skipped)
        yield (
            "not finite",
            skipped[0]["step"],
            f"the loss or its gradient was not finite; skipped: {len(skipped)}, "
            f"at most {in_a_row} in a row (3 stop the run)",
        )


def _lasting(
    lines: list[Line], config: Config, total: int
) -> Iterator[tuple[str, int, str]]:
    """What has been sick without a break up to the newest line, for long enough."""
    peak = max(lines, key=lambda line: line.get("lr", 0))["step"]
    bounds = _lag_bounds(lines)
    judged = [_judge(line, config, line["step"] > peak, bounds[line["step"]]) for line in lines]
    for name, (_, what) in judged[-1].items():
        healthy = [i for i, found in enumerate(judged) if not found[name][0]]
        first = healthy[-1] + 1 if healthy else 0  # of the sick lines
        before = lines[first - 1]["step"] if first else 0
        long_enough = lines[-1]["step"] - before >= max(10, min(total / 10, 500))
        if len(lines) - first >= 3 and long_enough:
            yield name, lines[first]["step"], what


def _judge(
    line: Line, config: Config, past_peak: bool, lag_bound: float
) -> dict[str, tuple[bool, str]]:
    """Name -> (whether a line is sick of it, what there is to say of the line)."""
    of = defaultdict(lambda: math.nan, line)  # no comparison with nan is true
    k = config.out_dim
    ln_k = max(math.log(k), 1e-9)
    rows = 2 * config.batch_size * config.log_every  # the teacher's, from one line to the next
    too_few = of["prototypes_used"] < 0.1 * min(1, rows / k)
    return {
        "uniform": (
            of["teacher_entropy"] > 0.95 * ln_k,
            "all prototypes get the same share: the entropy of the teacher's rows is "
            f"{of['teacher_entropy'] / ln_k:.0%} of ln K",
        ),
        "one prototype": (
            of["mean_entropy"] < 0.2 * ln_k,
            "all images get the same prototype: the entropy of the teacher's mean is "
            f"{of['mean_entropy'] / ln_k:.0%} of ln K",
        ),
        "dead prototypes": (
            too_few and of["mean_entropy"] < 0.4 * ln_k,
            f"only {of['prototypes_used']:.1%} of the {k} prototypes are any view's first choice",
        ),
        "feature rank": (
            of["feature_rank"] < 2,
            f"the teacher's features lie along {of['feature_rank']:.1f} directions",
        ),
        "no progress": (
            past_peak and of["loss"] > 1.1 * ln_k,
            f"the loss is {of['loss'] / ln_k:.0%} of ln K, and to know nothing costs 100%",
        ),
        "teacher lagging": (
            of["teacher_lag"] > 5 * lag_bound,
            f"the teacher is {of['teacher_lag']:.1%} away from the student, more than its "
            "momentum explains",
        ),
        "input-bound": (
            of["input_share"] > 0.7,
            f"{of['input_share']:.0%} of the time went by waiting for views",
        ),
    }


def _lag_bounds(lines: list[Line]) -> dict[int, float]:
    """W by step: how far behind the schedules alone leave the teacher."""
    bounds: dict[int, float] = {}
    w, before = 0.0, 0
    for line in lines:
        move = line.get("lr", math.nan) * (1 + WEIGHT_SIZE * line.get("weight_decay", 0))
        momentum = min(line.get("momentum", 0), 1 - 1e-9)
        kept = momentum ** (line["step"] - before)
        w = kept * w + move * momentum * (1 - kept) / (1 - momentum)
        before = line["step"]
        bounds[before] = w
    return bounds


def _schedule_findings(lr: np.ndarray, momentum: np.ndarray) -> Iterator[tuple[str, int, str]]:
    """What schedules say before the run is over; the step is that from which it matters."""
    n = len(lr)
    peak = int(lr.argmax()) + 1
    start_left = float(np.prod(momentum))  # share of the teacher's start in its end
    median = float(np.median(momentum))
    if lr.sum() < 0.005:
        what = f"its sum over {n} updates is {lr.sum():.1g}, and no weight moves by more"
        yield "learning rate", 1, f"too low: {what}"
    elif lr.max() > 0.02:
        what = f"its peak is {lr.max():.2g}, and the weights are about {WEIGHT_SIZE} in size"
        yield "learning rate", peak, f"too high: {what}"
    elif peak > n / 2:
        yield "learning rate", 1, f"the warm-up takes {peak} of {n} updates"
    if start_left > 0.2:
        what = f"after the {n} updates {start_left:.0%} of the teacher would still be its start"
        yield "momentum", 1, f"too high: {what}"
    elif median < 0.5:
        what = f"at {median:.2g} the teacher is hardly more than the student's copy"
        yield "momentum", 1, f"too low: {what}"


def examine(folder: str | os.PathLike) -> str:
    """The findings on the run in a folder, as text; ValueError where there is no run."""
    try:
        text = (Path(folder).expanduser() / "config.json").read_text()
        config, history = Config.from_json(text), read_history(folder)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise ValueError(f"{folder} is not a run's folder: {error}") from error
    findings = diagnose(history, config)
    count = f"{len(findings) or 'no'} finding{'s' * (len(findings) != 1)}"
    title = f"{folder}: {count}, {len(history)} lines of history"
    return "\n\n".join([title, *(finding.paragraph() for finding in findings)])
