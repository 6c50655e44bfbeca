"""What ails a run, from its history: `python -m dino_lib.run.doctor runs/demo`; with no run, the environment.

A run is judged by its lines of history.jsonl. What lasts has to have held without a break up to the newest line: for
three lines, ten updates and a tenth of the run (at most 500 updates). Measured on the runs of `benchmarks/doctor.py`
(40 updates of a tiny network; healthy: ten seeds, from update 20 on) and on whole demo runs:

| finding         | sick if                          | healthy                     | made sick                       |
| --------------- | -------------------------------- | --------------------------- | ------------------------------- |
| uniform         | row entropy > 0.95 ln K          | 0.05 to 0.31, demo to 0.78  | 0.98 to 0.99 (teacher too warm) |
| one prototype   | entropy of the mean < 0.2 ln K   | 0.26 to 0.71                | 0.10 to 0.17 (no center, fast)  |
| dead prototypes | used < 0.1 of all within reach   | 0.125 to 0.31, demo to 0.04 | 0.02 to 0.08 (no center)        |
|                 | and entropy of the mean < 0.4    | 0.44 to 0.79, demo to 0.48  | 0.10 to 0.32                    |
| feature rank    | RankMe < 2                       | 3.8 to 5.5                  | 1.0 to 1.9 (lr 0.3, decay 300)  |
| no progress     | loss > 1.1 ln K past warm-up     | 0.36 to 0.83, demo to 0.96  | 1.4 to 2.5 (lr 1e-7; cold)      |
| teacher lagging | lag > 5 W                        | 1.8 to 2.4, demo 0.8 to 0.9 | 5 to 10 (teacher left behind)   |
| learning rate   | sum < 0.005 or peak > 0.02       | sum 0.03, demo 0.47         | sum 4e-6; peak 0.3              |
| momentum        | start kept > 0.2 or median < 0.5 | 0.05, demo 0                | 0.998; median 0                 |
| input-bound     | waiting > 0.7 of the time        | 0.22 to 0.37                | 0.72 to 0.82 (slow input)       |

W bounds a weight's distance from the teacher's: AdamW moves it by about lr (1 + decay * its size) an update, and
W <- momentum * (W + that). The size of the weights is about 0.05 (0.055 in the demo).
"""

import math
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from dino_lib.run.build import build_schedules, pick_device, pick_precision
from dino_lib.run.config import Config
from dino_lib.run.history import read_history, versions

# name: (what it is likely due to, what to change, the notebook and its section)
ADVICE = {
    "not finite": ("an lr too high, half precision, or images that are not numbers", "a lower lr or clip_grad, or "
                   "precision=fp32; look at that step's images", "02_head.ipynb: Half precision"),
    "uniform": ("a teacher less decided than the student: without sharpening both agree on nothing",
                "a teacher_temp (0.04) well below student_temp (0.1)", "03_loss.ipynb: 6. Two ways to learn nothing"),
    "one prototype": ("a center that does not move, a teacher too sharp, or an lr too high", "center_momentum 0.9, "
                      "a lower lr", "03_loss.ipynb: 3. Centering: no prototype may be everyone's favourite"),
    "dead prototypes": ("a weak center, an lr too high, more prototypes than kinds of images", "center_momentum 0.9, "
                        "a lower lr, a smaller out_dim", "02_head.ipynb: 2. The head: cosines with prototypes"),
    "feature rank": ("weights driven apart (lr) or to zero (weight_decay), or images that are all alike",
                     "a lower lr or weight_decay_end; look at the images", "05_training.ipynb: 6 Reading the run"),
    "no progress": ("a student that hardly moves, or that is colder than the teacher",
                    "student_temp 0.1, teacher_temp 0.04; check the views", "05_training.ipynb: 1 The plan, on paper"),
    "teacher lagging": ("a teacher that is not updated at each step, or not with the schedule's momentum",
                        "ema_update once an update, after optimizer.step()", "04_teacher.ipynb: 2. A low-pass filter"),
    "learning rate": ("an lr or a warm-up made for another run", "lr 0.0005 to 0.0015 (AdamW), a warm-up of a tenth of "
                      "the run, or more epochs", "04_teacher.ipynb: 5. Schedules: a run on paper"),
    "momentum": ("a half-life of the teacher, ln 2 / -ln(momentum) updates, made for another run", "a half-life of a "
                 "hundredth to a tenth of the run (0.96: 17 updates)", "04_teacher.ipynb: 1. A slow follower"),
    "input-bound": ("images that are decoded, or views that are made, more slowly than the network takes them",
                    "store_size, num_workers, a lower n_local", "01_multicrop.ipynb: 6. Views that can be made again"),
}


@dataclass(frozen=True)
class Finding:
    """What happened (`what`), from which step, what it is likely due to, what to change, and where to read on."""

    name: str
    step: int
    what: str
    why: str
    change: str
    read: str

    def line(self):
        return f"doctor: {self.name}, from step {self.step}: {self.what}. Likely {self.why}; try {self.change}"


def diagnose(history, config=None):
    """The findings on a run; an empty list if it looks healthy.

    history: list of dicts, as `read_history` and `train` give it; fields that are missing are not judged. config: the
    run's Config. Without it ln K is taken for the largest entropy there is, and the schedules are not judged.
    """
    lines = [r for r in history if "loss" in r]
    skipped, found = [r for r in history if r.get("skipped")], []
    if skipped:
        found.append(("not finite", skipped[0]["step"], f"the loss or its gradient was not finite; skipped: "
                      f"{len(skipped)}, at most {max(r['skipped'] for r in skipped)} in a row (3 stop the run)"))
    plan = build_schedules(config, max(1, round(lines[-1]["step"] / lines[-1]["epoch"]))) if config and lines else None
    total = len(plan["lr"]) if plan else lines[-1]["step"] if lines else 0
    if lines and total >= 20:  # a shorter run only tries the code
        found += [(name, step, what) for name, sick, what in _checks(lines, config)
                  if (step := _since(lines, sick, total)) is not None]
        found += _schedule_findings(plan["lr"], plan["momentum"]) if plan else []
    return [Finding(name, step, what, *ADVICE[name]) for name, step, what in found]


def _since(lines, sick, total):
    """The first step of the unbroken row of sick lines up to the newest; None if it is too short."""
    count = next((i for i, r in enumerate(reversed(lines)) if not sick(r)), len(lines))
    healthy = lines[-count - 1]["step"] if count < len(lines) else 0
    lasting = count >= 3 and lines[-1]["step"] - healthy >= max(10, min(total / 10, 500))
    return lines[-count]["step"] if lasting else None


def _checks(lines, config):
    """(name, whether a line is sick, what there is to say of the newest one) for all that is measured."""
    k = config.out_dim if config else math.exp(max(r.get("mean_entropy", 0.0) for r in lines))
    rows = 2 * config.batch_size * config.log_every if config else math.inf  # from one line to the next
    top, usable, warm = max(math.log(k), 1e-9), min(1.0, rows / k), max(lines, key=lambda r: r.get("lr", 0))["step"]
    bound, w, before = {}, 0.0, 0  # W at each line
    for r in lines:
        move, m = r.get("lr", math.nan) * (1 + 0.05 * r.get("weight_decay", 0)), min(r.get("momentum", 0), 1 - 1e-9)
        kept = m ** (r["step"] - before)
        w, before = kept * w + move * m * (1 - kept) / (1 - m), r["step"]
        bound[before] = w

    def of(name, r=lines[-1]):
        return r.get(name, math.nan)  # no comparison with it is true

    part = {name: f"{of(name) / top:.0%} of ln K" for name in ("teacher_entropy", "mean_entropy", "loss")}

    yield ("uniform", lambda r: of("teacher_entropy", r) > 0.95 * top,
           f"all prototypes get the same share: the entropy of the teacher's rows is {part['teacher_entropy']}")
    yield ("one prototype", lambda r: of("mean_entropy", r) < 0.2 * top,
           f"all images get the same prototype: the entropy of the teacher's mean is {part['mean_entropy']}")
    yield ("dead prototypes", lambda r: of("prototypes_used", r) < 0.1 * usable and of("mean_entropy", r) < 0.4 * top,
           f"only {of('prototypes_used'):.1%} of the {k:.0f} prototypes are any view's first choice")
    yield ("feature rank", lambda r: of("feature_rank", r) < 2,
           f"the teacher's features lie along {of('feature_rank'):.1f} directions")
    yield ("no progress", lambda r: r["step"] > warm and r["loss"] > 1.1 * top,
           f"the loss is {part['loss']}, and to know nothing costs 100%")
    yield ("teacher lagging", lambda r: of("teacher_lag", r) > 5 * bound[r["step"]],
           f"the teacher is {of('teacher_lag'):.1%} away from the student, more than its momentum explains")
    yield ("input-bound", lambda r: of("input_share", r) > 0.7,
           f"{of('input_share'):.0%} of the time went by waiting for views")


def _schedule_findings(lr, momentum):
    """What a run's schedules say before it is over; the step is that from which it matters."""
    n, peak, start = len(lr), int(lr.argmax()) + 1, float(np.prod(momentum))
    if lr.sum() < 0.005:
        yield "learning rate", 1, f"too low: its sum over {n} updates is {lr.sum():.1g}, and no weight moves by more"
    elif lr.max() > 0.02:
        yield "learning rate", peak, f"too high: its peak is {lr.max():.2g}, and the weights are about 0.05 in size"
    elif peak > n / 2:
        yield "learning rate", 1, f"the warm-up takes {peak} of {n} updates"
    if start > 0.2:
        yield "momentum", 1, f"too high: after the {n} updates {start:.0%} of the teacher would still be its start"
    elif np.median(momentum) < 0.5:
        yield "momentum", 1, f"too low: at {np.median(momentum):.2g} the teacher is hardly more than the student's copy"


def environment():
    """Versions, machine and what "auto" takes, a line each: what a report of a problem should hold."""
    device, found = pick_device(), versions()
    yield f"python {found.pop('python')} on {platform.platform()}, {os.cpu_count()} cores"
    yield ", ".join(f"{name} {version}" for name, version in found.items())
    card = f" ({torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda})" if device.type == "cuda" else ""
    yield f"device {device}{card}, {pick_precision('auto', device)}, {torch.get_num_threads()} threads"


def main(argv=None):
    folders = sys.argv[1:] if argv is None else argv
    if not folders:
        print("\n".join(environment()))
    for folder in folders:
        try:
            config, history = Config.from_json((Path(folder) / "config.json").read_text()), read_history(folder)
        except (FileNotFoundError, NotADirectoryError, ValueError) as error:
            sys.exit(f"error: {folder} is not a run's folder: {error}")
        findings = diagnose(history, config)
        print(f"{folder}: {len(findings) or 'no'} finding{'s' * (len(findings) != 1)}, {len(history)} lines of history")
        for f in findings:
            print(f"\n{f.name}, from step {f.step}: {f.what}")
            print(f"  likely due to: {f.why}\n  change: {f.change}\n  read: notebooks/{f.read}")


if __name__ == "__main__":
    main()
