"""Settings for images of one's own, with the reasons: `dino advise FOLDER --minutes 60`.

Of the RUNGS, which are presets, the highest is taken for which the images are large enough, and
whose fewest updates fit into the time. How long an update takes is measured on this machine. The
other settings follow from the number of images and of updates.
"""

import math
import os
import shutil
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

from dino_lib.run.build import clock as device_clock
from dino_lib.run.build import pick_device
from dino_lib.run.config import Config
from dino_lib.run.options import command_of
from dino_lib.run.presets import PRESETS
from dino_lib.run.survey import Clock, Cost, Survey, cost, look_at
from dino_lib.run.teacher_file import read_teacher
from dino_lib.schedules import half_life

# preset, fewest updates that are worth a run of it, whether a CPU is asked to do it
RUNGS = (
    ("pocket", 100, True),
    ("demo", 1000, True),
    ("laptop", 1500, True),
    ("colab", 5000, False),
    ("gpu", 20000, False),
)
MOST_EPOCHS = 800  # the paper's longest runs end there
FEWEST_IMAGES = 16  # a batch
PLANNED = 0.9  # share of the time: saving, logging and a slower hour take the rest
EVALUATIONS = 4  # after the one before the first update
FOR_EVALUATIONS = 0.1  # share of the time, at most
BACKBONE = "backbone", "backbone_options", "conv_stem", "store_size", "global_size"
GENTLE = 0.99, 0.998  # least momentum, going on from pretrained weights, start and end
HALF_LIVES = 0.02, 0.085  # of the teacher's memory, as shares of the run, start and end
# In updates: with 10 and 43 the features shrank to a rank of 1.6 to 1.8 of 64 within 509 updates of
# the creatures, with 25 and 102 to 5.2 to 5.9 (three seeds each, `benchmarks/advise.py
# --half-lives`)
LEAST_HALF_LIVES = 25, 100


@dataclass(frozen=True)
class Advice:
    """A run that fits the images, the machine and the time, and why it looks as it does."""

    preset: str
    config: Config
    reasons: dict[str, str]
    """Setting -> why."""
    notes: tuple[str, ...]
    """What no setting can mend."""
    survey: Survey
    updates: int
    seconds: dict[str, float]
    """Of decoding, updates and evaluations."""
    store_bytes: int
    memory_bytes: int
    """Of the whole process; on CUDA of the tensors, at their peak."""

    @property
    def minutes(self) -> float:
        """How long the whole run should take."""
        return sum(self.seconds.values()) / 60

    def command(self) -> str:
        """What starts the run in a shell."""
        return command_of(self.config, self.preset, PRESETS[self.preset])

    def text(self) -> str:
        """All of it, for a screen."""
        survey = self.survey
        colour = "grey" if survey.channels == 1 else "coloured"
        held = f"{survey.queries} labelled ones are held back" if survey.queries else "no labels"
        lines = [f"{survey.images} {colour} images to train on, {survey.short_side} px along the "
                 f"shorter side; {held}", ""]
        for name, why in self.reasons.items():
            value = self.preset if name == "preset" else getattr(self.config, name)
            lines += textwrap.wrap(f"{name} {value}: {why}", 98, subsequent_indent="    ")
        parts = ", ".join(f"{name} {s / 60:.1f}" for name, s in self.seconds.items())
        lines += ["", f"time: {self.minutes:.1f} minutes ({parts}) for {self.updates} updates"]
        lines += [f"memory: about {self.memory_bytes / 2**20:.0f} MiB; the decoded images take "
                  f"{self.store_bytes / 2**20:.1f} MiB"]
        for note in self.notes:
            lines += textwrap.wrap(f"note: {note}", 98, subsequent_indent="    ")
        return "\n".join([*lines, "", self.command()])


def advise(dataset: str | os.PathLike, minutes: float, *, data_root: str = "data",
           device: str = "auto", output_dir: str = "runs/mine",
           weights: str | os.PathLike | None = None, clock: Clock | None = None) -> Advice:
    """Settings for a run of at most `minutes` on a folder of images, or a dataset by its name.

    weights: the teacher.safetensors of a run with a preset's backbone, to go on from. clock: what
    the minutes are counted by, in seconds (None: the time of day, once the device is done).

    Takes four updates of each rung that may fit: seconds in all. Raises ValueError where `minutes`
    is not positive, the images are too few for a batch, or no preset has the backbone of `weights`;
    and what `open_dataset` does.
    """
    if not 0 < minutes < math.inf:
        raise ValueError(f"minutes={minutes} must be positive: how long may the run take?")
    kind = pick_device(device)
    clock = clock or (lambda: device_clock(kind))
    survey = look_at(dataset, data_root, clock)
    if survey.images < FEWEST_IMAGES:
        raise ValueError(f"{dataset} has {survey.images} images to train on; a batch takes at "
                         f"least {FEWEST_IMAGES}, and features that are of use some hundreds")
    place = dict(dataset=os.fspath(dataset), data_root=data_root, device=device,
                 output_dir=output_dir)
    chosen, why = None, "no preset is larger"
    if weights:
        survey = replace(survey, channels=3)  # as the presets' networks have
    for preset, fewest, for_cpu in RUNGS if weights is None else [preset_of(weights)]:
        base = replace(PRESETS[preset], **place)
        refused = chosen and _refused(base, survey, kind.type == "cpu" and not for_cpu)
        if not refused:
            config, reasons = fit_images(base, survey)
            measured = cost(config, clock)
            wanted = fewest * measured.update / 60
            if chosen and wanted > PLANNED * minutes:
                refused = f"wants {fewest} updates of {measured.update:.2f} s"
        if refused:
            why = f"{preset}, the next one, {refused}"
            break
        chosen = preset, config, reasons, measured
    preset, config, reasons, measured = chosen
    if weights:
        config, why = replace(config, weights=os.fspath(weights)), "it has the weights' backbone"
    reasons = {"preset": f"the largest that fits; {why}" if not weights else why, **reasons}
    return _plan(preset, config, reasons, survey, measured, minutes)


def preset_of(weights: str | os.PathLike) -> tuple[str, int, bool]:
    """The one of RUNGS with the backbone of a run's teacher; ValueError where there is none."""
    run = read_teacher(weights).config
    for rung in RUNGS:
        preset = PRESETS[rung[0]]
        if all(getattr(run, name) == getattr(preset, name) for name in BACKBONE):
            return rung
    raise ValueError(f"no preset has the backbone of {weights}: take the settings of its run, "
                     f"freeze_backbone, and lr={run.lr / 10:.1g}, a tenth of what it was")


def _refused(config: Config, survey: Survey, needs_gpu: bool) -> str | None:
    """Why a rung is out of the question, whatever the time."""
    if needs_gpu:
        return "is for a GPU"
    if config.store_size > 1.5 * survey.short_side:
        return f"would blow the images up to {config.store_size} px"
    there = next(p for p in (Path(config.data_root), *Path(config.data_root).absolute().parents)
                 if p.exists())
    if store_bytes(config, survey) > shutil.disk_usage(there).free:
        return f"decodes more than there is room for in {there}"
    return None


def store_bytes(config: Config, survey: Survey) -> int:
    """What the decoded images take, one byte a channel."""
    return survey.images * survey.channels * config.store_size**2


def fit_images(config: Config, survey: Survey) -> tuple[Config, dict[str, str]]:
    """A preset made for so many images of this kind, and the reasons, by setting."""
    n, batch = survey.images, config.batch_size
    while batch > 16 and n < 8 * batch:
        batch //= 2
    k = min(config.out_dim, max(64, 2 ** round(math.log2(n / 4))))
    settings = {"batch_size": batch, "out_dim": k,
                "lr": float(f"{config.lr * math.sqrt(batch / config.batch_size):.1e}")}
    reasons = {
        "store_size": f"what the preset is made for; the images have {survey.short_side} px",
        "batch_size": f"{n // batch} updates see every image once; the center and batch norm want "
                      "16 rows at least",
        "out_dim": f"K: about a prototype for four images ({n / 4:.0f}), not under 64, not over "
                   f"the preset's {config.out_dim}",
        "lr": "the preset's" + (f" {config.lr} * sqrt({batch} / {config.batch_size}), for the "
                                "smaller batch" if batch < config.batch_size else ""),
        "n_local": f"the preset's, at {config.local_size} px; each costs about "
                   f"{(config.local_size / config.global_size) ** 2:.0%} of a global view",
    }
    if survey.channels == 1:
        brightness, contrast = config.color_jitter[:2]
        settings |= {"mean": survey.mean, "std": survey.std, "gray_p": 0.0,
                     "color_jitter": (brightness, contrast, 0.0, 0.0)}
        reasons["mean"] = "no picture of the sample has colour: one channel, its own mean and std"
    return replace(config, **settings), reasons


def _plan(preset: str, config: Config, reasons: dict[str, str], survey: Survey, measured: Cost,
          minutes: float) -> Advice:
    """The length of the run, and what depends on it."""
    notes, per_epoch = [], survey.images // config.batch_size
    decoding = survey.images * survey.decode_seconds
    limit, evaluation = 100, 0.0
    if survey.queries:
        looks = FOR_EVALUATIONS * 60 * minutes / (EVALUATIONS + 1) / measured.evaluated
        limit = int(min(config.eval_limit, max(100, looks / 1.5)))
        seen = min(limit, survey.images) + min(limit // 2, survey.queries)
        evaluation = (EVALUATIONS + 1) * seen * measured.evaluated
        decoding += seen * survey.decode_seconds
    left = PLANNED * 60 * minutes - decoding - evaluation
    affordable = epochs_in(left, measured.update, survey.images, config.batch_size)
    epochs = max(1, math.floor(100 * affordable) / 100)
    updates = max(1, round(epochs * per_epoch))
    if epochs == MOST_EPOCHS:
        notes.append(f"{MOST_EPOCHS} epochs are as long as the paper's longest runs: the rest of "
                     f"the {minutes:g} minutes would go into learning these images by heart")
    seconds = {"decoding": decoding, "updates": updates * measured.update,
               "evaluations": evaluation}
    if sum(seconds.values()) > 60 * minutes:
        notes.append(f"decoding, evaluations and one epoch take {sum(seconds.values()) / 60:.1f} "
                     f"minutes, more than {minutes:g}: give it more, or fewer images")
    if updates < RUNGS[0][1]:
        notes.append(f"{updates} updates hardly change a network: give it more minutes")
    if survey.images < 500:
        notes.append(f"{survey.images} images are few to learn from: compare the k-NN with that "
                     "of the untrained network, or go on from pretrained weights, --weights FILE")
    start, end = [momentum_of(half) for half in half_lives(updates)]
    warmup, lr, frozen = round(0.15 * epochs, 2), config.lr, 0.0
    if config.weights:
        start, end = max(start, GENTLE[0]), max(end, GENTLE[1])
        lr, frozen = lr / 10, round(max(0.1 * epochs, min(epochs, 20 / per_epoch)), 2)
        reasons["lr"] = "a tenth of the preset's: a larger one undoes what the weights know"
        reasons["freeze_backbone"] = "the new head learns to read the features before they move"
    every = round(epochs / EVALUATIONS, 3) if survey.queries else 0.0
    reasons |= {
        "epochs": f"{updates} updates of {measured.update:.2f} s fill {PLANNED:.0%} of the time "
                  "that decoding and evaluations leave" if affordable >= 1 and not notes else
                  f"{updates} updates of {measured.update:.2f} s",
        "warmup_epochs": "0.15 of the run",
        "momentum": f"the teacher forgets half in {half_life(start):.0f} updates, "
                    f"{half_life(start) / updates:.1%} of the run",
        "momentum_end": f"{half_life(end):.0f} updates, {half_life(end) / updates:.1%}",
        "eval_every": f"{EVALUATIONS + 1} times a k-NN of {limit} images"
                      if survey.queries else "without labels there is no k-NN",
    }
    config = replace(
        config, lr=lr, freeze_backbone=frozen, epochs=epochs, warmup_epochs=warmup, momentum=start,
        momentum_end=end, freeze_last_layer=min(config.freeze_last_layer, warmup),
        warmup_teacher_temp_epochs=min(config.warmup_teacher_temp_epochs, epochs / 3),
        eval_every=every, eval_limit=limit, save_every=max(1.0, round(epochs / 10, 2)))
    return Advice(preset, config, reasons, tuple(notes), survey, updates, seconds,
                  store_bytes(config, survey), measured.bytes)


def epochs_in(seconds: float, update: float, images: int, batch_size: int) -> float:
    """How often a run of whole updates of `update` seconds sees all images; 800 at most.

    What is left over of the images in an epoch is left out.
    """
    return min(MOST_EPOCHS, int(seconds / update) / (images // batch_size))


def half_lives(updates: int) -> tuple[float, float]:
    """Of the teacher's memory in a run of so many updates, start and end, in updates."""
    start, end = [max(share * updates, least)
                  for share, least in zip(HALF_LIVES, LEAST_HALF_LIVES, strict=True)]
    return start, end


def momentum_of(updates: float) -> float:
    """The momentum that halves what the teacher remembers in so many updates: 0.9 to 0.9999."""
    return min(max(0.9, round(0.5 ** (1 / max(updates, 1)), 4)), 0.9999)
