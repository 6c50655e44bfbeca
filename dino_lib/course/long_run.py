"""What a long run from a notebook needs: a folder that lasts, a timetable, pictures by time."""

import os
import time
from collections.abc import Callable
from pathlib import Path

from dino_lib.run.config import Config
from dino_lib.run.history import read_history

OnLog = Callable[[dict], None]


def lasting_folder(name: str, ask: Callable[[str], str] = input) -> Path:
    """The folder of a run that is called `name`: runs/NAME here.

    Colab empties its disk when it stops; there it asks whether to keep the run in Google Drive, and
    Drive asks for its own permission.
    """
    if os.environ.get("COLAB_RELEASE_TAG"):
        answer = ask("Keep the run in your Google Drive, so that it outlives this session? (y/n) ")
        if answer.strip().lower().startswith("y"):
            from google.colab import drive

            drive.mount("/content/drive")
            return Path("/content/drive/MyDrive/dino-runs") / name
    return Path("runs") / name


def timetable(config: Config, minutes: float) -> str:
    """What happens when in a run that takes so many minutes, a line each."""

    def at(epoch: float) -> float:
        return minutes * min(epoch / config.epochs, 1)

    events = [(0.0, "the untrained teacher is measured"),
              (at(config.warmup_epochs), "the learning rate is at its peak, and falls from here"),
              (minutes, "the end: the teacher is measured and kept")]
    if config.eval_every:
        events.append((at(config.eval_every), "the teacher is measured again, and then every "
                       f"{at(config.eval_every):.1f} minutes"))
    if config.warmup_teacher_temp_epochs:
        events.append((at(config.warmup_teacher_temp_epochs),
                       f"the teacher's temperature has reached {config.teacher_temp}"))
    return "\n".join(f"minute {when:5.1f}: {what}" for when, what in sorted(events))


def redraw(draw: Callable[[list[dict]], None], seconds: float, before: str | Path | None = None,
           now: Callable[[], float] = time.monotonic) -> OnLog:
    """An `on_log` that calls draw(history) when so many seconds have passed since it last did.

    By time, not by update: a picture takes half a second. before: the folder of a run that goes
    on, whose lines come first.
    """
    lines = _lines_of(before)
    last = float("-inf")

    def on_log(line: dict) -> None:
        nonlocal last
        while lines and lines[-1]["step"] > line["step"]:  # after the checkpoint it went on from
            lines.pop()
        lines.append(line)
        if now() - last >= seconds:
            draw(lines)
            last = now()

    return on_log


def _lines_of(folder: str | Path | None) -> list[dict]:
    there = folder is not None and (Path(folder) / "history.jsonl").exists()
    return read_history(folder) if there else []
