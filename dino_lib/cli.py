"""The command line: `dino advise`, `train`, `report`, ...; or `python -m dino_lib`.

What a command needs is imported when it is asked for, so that `dino --help` answers at once.
"""

import argparse
import contextlib
import dataclasses
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from dino_lib.data.say import printable, say

if TYPE_CHECKING:
    from dino_lib.run.config import Config


class _Parser(argparse.ArgumentParser):
    """Raises its errors, so that `main` tells all errors of all commands in the same way."""

    def __init__(self, command: str, about: str, **options: Any):
        name = f"dino {command}".strip()
        super().__init__(name, description=about, allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        if "--local-rank" in message or "--local_rank" in message:
            message = "torch.distributed.launch is no longer made for this: use torchrun"
        raise ValueError(message)


def read_settings(words: Sequence[str]) -> tuple["Config", bool]:
    """The Config that the words of `dino train` describe, and whether they ask for a profile.

    Raises ValueError on wrong ones.
    """
    from dino_lib.run.options import add_settings, config_of
    from dino_lib.run.presets import PRESETS

    first = _Parser("train", "", add_help=False)
    preset_help = "where all settings below start from (default: demo)"
    first.add_argument("--preset", choices=PRESETS, default="demo", help=preset_help)
    profile_help = "train nothing: say where the time of an update goes, and what to change"
    first.add_argument("--profile", action="store_true", help=profile_help)
    known, _ = first.parse_known_args(words)

    about = "Train a network, or go on with a run. Every setting is an option."
    parser = _Parser("train", about, parents=[first])
    parser.usage = "dino train [--preset NAME] [--SETTING VALUE ...] [--profile]"
    add_settings(parser, PRESETS[known.preset])
    return config_of(parser.parse_args(words), PRESETS[known.preset]), known.profile


def train(words: Sequence[str]) -> None:
    """train a network, or go on with a run"""
    config, profile = read_settings(words)
    from dino_lib.run.processes import process_group
    from dino_lib.run.profile import report
    from dino_lib.run.train import build_trainer
    from dino_lib.run.train import train as run

    rank, several = _rank()
    with process_group(config, rank) if several else contextlib.nullcontext():
        if profile:
            say(report(build_trainer(dataclasses.replace(config, eval_every=0))))
            return
        run(config)
    if rank == 0:
        files = "teacher.safetensors, history.jsonl, config.json, checkpoints/"
        say(f"{config.output_dir}: {files}")


def advise(words: Sequence[str]) -> None:
    """say which settings suit your images, this machine and your time"""
    about = "Look at images and at this machine: settings for a run, with reasons. Trains nothing."
    parser = _Parser("advise", about)
    parser.add_argument("dataset", help="a folder of images, or a dataset's name")
    parser.add_argument("--minutes", type=float, required=True, help="how long the run may take")
    parser.add_argument("--weights", help="a run's teacher.safetensors to go on from")
    parser.add_argument("--data-root", default="data", help="where decoded images go")
    parser.add_argument("--output-dir", default="runs/mine", help="the run's folder")
    _add_device(parser)
    given = parser.parse_args(words)

    from dino_lib.run.advise import advise

    say(advise(**vars(given)).text())


def report(words: Sequence[str]) -> None:
    """score a teacher, draw its figures and write report.json"""
    parser = _Parser("report", "Score a teacher, draw its figures and write report.json.")
    parser.add_argument("teacher", help="a run's folder, or what else load_teacher takes")
    parser.add_argument("--dataset", help="whose images to score it on (default: the run's)")
    parser.add_argument("--data-root", help="where they lie (default: the run's)")
    parser.add_argument("--out", help="the folder to write to (default: the run's)")
    _add_device(parser)
    given = parser.parse_args(words)

    from dino_lib.look.report import folder_of_report, in_words, report

    numbers = report(
        given.teacher,
        dataset=given.dataset,
        data_root=given.data_root,
        out=given.out,
        device=_device(given.device),
    )
    out = folder_of_report(given.teacher, given.out)
    say(in_words(numbers))
    say("wrote " + ", ".join(str(out / file) for file in [*numbers["figures"], "report.json"]))


def explore(words: Sequence[str]) -> None:
    """write a page that shows the attention of teachers in your images"""
    parser = _Parser("explore", "Write explorer.html and heads.png: what teachers attend to.")
    parser.add_argument("images", help="an image, or a folder of them (of a clip: dino video)")
    _add_look(parser)
    parser.add_argument(
        "--limit", type=int, default=12, help="the most images of a folder (default: 12)"
    )
    given = parser.parse_args(words)

    from dino_lib.look.explorer import write_explorer

    teachers = _teachers(given)
    _wrote(
        write_explorer(given.images, teachers, given.out, size=given.size, limit=given.limit)
    )


def video(words: Sequence[str]) -> None:
    """turn a clip into a clip of what a teacher's heads attend to"""
    parser = _Parser("video", "Write attention-TEACHER.mp4, or .gif of a GIF.")
    parser.add_argument("clip", help="what PyAV reads: .mp4, .webm, .gif, ...")
    _add_look(parser)
    parser.add_argument("--head", help='the number of a head, or "mean" (default: all of them)')
    given = parser.parse_args(words)
    if given.head is not None and given.head != "mean" and not given.head.isdecimal():
        raise ValueError(f"--head {given.head!r} must be a number, or mean")

    from dino_lib.look.video import write_videos

    head = int(given.head) if given.head and given.head.isdecimal() else given.head
    _wrote(write_videos(given.clip, _teachers(given), given.out, head=head, size=given.size))


def doctor(words: Sequence[str]) -> None:
    """say what ails runs and what to change"""
    parser = _Parser("doctor", "Say what ails a run, from which step, and what to change.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder")
    given = parser.parse_args(words)

    from dino_lib.run.doctor import examine

    for folder in given.runs:
        say(examine(folder))


def _add_look(parser: _Parser) -> None:
    teacher_help = "what load_teacher takes; may be repeated (default: demo)"
    size_help = "see images whole, at about so many pixels squared (default: a middle square)"
    parser.add_argument("--teacher", action="append", help=teacher_help)
    parser.add_argument("--out", default="explorer", help="the folder to write to")
    parser.add_argument("--size", type=int, help=size_help)
    _add_device(parser)


def _add_device(parser: _Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")


def _device(name: str) -> Any:
    from dino_lib.run.build import pick_device

    return pick_device(name)


def _teachers(given: argparse.Namespace) -> dict[str, Any]:
    """The teachers that were asked for, by name."""
    from dino_lib.teachers.load import load_teacher

    device = _device(given.device)
    return {name: load_teacher(name, device) for name in given.teacher or ["demo"]}


def _wrote(paths: Sequence[Path]) -> None:
    for path in paths:
        say(f"wrote {path} ({path.stat().st_size / 1e6:.1f} MB)")


COMMANDS = {
    "advise": advise,
    "train": train,
    "report": report,
    "explore": explore,
    "video": video,
    "doctor": doctor,
}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command. Exit status 2 and one line on wrong settings or data, 130 on an interrupt.

    A traceback shows that the mistake is in the code.
    """
    about = "\n".join(f"  {name:8} {run.__doc__}" for name, run in COMMANDS.items())
    parser = _Parser("", "DINO, built piece by piece.")
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"commands:\n{about}\n\n`dino COMMAND --help` says more of each."
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="...")
    given = argparse.Namespace(command=None)
    try:
        parser.parse_args(words, given)
        COMMANDS[given.command](given.words)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        _tell(error)
        if not _is_expected(error, given.command):
            raise
        sys.exit(2)


def _rank() -> tuple[int, bool]:
    """This process's number, and whether it is one of several that torchrun has started."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)) > 1


def _tell(error: Exception) -> None:
    """One line on stderr; of several processes the launcher hears of it too."""
    rank, several = _rank()
    who = f"rank {rank}: " if several else ""
    if several:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        from dino_lib.run.processes import LOST

        if LOST.search(str(error)):
            print(f"{who}stopped, since another process has ended", file=sys.stderr)
            time.sleep(1.5)  # torchrun takes the first to leave for the one at fault
            sys.exit(1)
        get_error_handler().record_exception(error)  # torchrun ends with it
    words = " ".join(printable(error).split()) or type(error).__name__
    print(f"{who}error: {words}", file=sys.stderr)


def _is_expected(error: Exception, command: str | None) -> bool:
    """Whether an error's message says all that there is to say."""
    from dino_lib.data.images import InputError

    if command in ("explore", "video") and isinstance(error, TypeError):
        return True  # a network without attention
    kinds = ValueError | OSError | MemoryError | FloatingPointError | ImportError | InputError
    return isinstance(error, kinds)
