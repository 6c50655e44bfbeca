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


INSTEAD = {
    "profile": "where the time of an update goes, and what to change",
    "estimate": "how long the run will take, and how much memory",
}


def read_settings(words: Sequence[str]) -> tuple["Config", str | None]:
    """The Config that the words of `dino train` describe, and what of INSTEAD they ask for, or
    None. Raises ValueError on wrong ones.
    """
    from dino_lib.run.options import add_settings, config_of
    from dino_lib.run.presets import PRESETS

    first = _Parser("train", "", add_help=False)
    preset_help = "where all settings below start from (default: demo)"
    first.add_argument("--preset", choices=PRESETS, default="demo", help=preset_help)
    instead = first.add_mutually_exclusive_group()
    for name, what in INSTEAD.items():
        flag = {"action": "store_const", "const": name, "dest": "instead"}
        instead.add_argument(f"--{name}", help=f"train nothing: say {what}", **flag)
    known, _ = first.parse_known_args(words)

    about = "Train a network, or go on with a run. Every setting is an option."
    parser = _Parser("train", about, parents=[first])
    parser.usage = "dino train [--preset NAME] [--SETTING VALUE ...] [--profile | --estimate]"
    add_settings(parser, PRESETS[known.preset])
    return config_of(parser.parse_args(words), PRESETS[known.preset]), known.instead


def train(words: Sequence[str]) -> None:
    """train a network, or go on with a run"""
    config, instead = read_settings(words)
    from dino_lib.run.estimate import estimate
    from dino_lib.run.processes import process_group
    from dino_lib.run.profile import report
    from dino_lib.run.train import build_trainer
    from dino_lib.run.train import train as run

    rank, several = _rank()
    with process_group(config, rank) if several else contextlib.nullcontext():
        if instead == "estimate":
            say(str(estimate(config)))
            return
        if instead == "profile":
            say(report(build_trainer(dataclasses.replace(config, eval_every=0))))
            return
        run(config)
    if rank == 0:
        say(f"{config.output_dir}: teacher.safetensors, history.jsonl, config.json, checkpoints/")


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

    numbers = report(given.teacher, dataset=given.dataset, data_root=given.data_root,
                     out=given.out, device=_device(given.device))
    say(in_words(numbers))
    out = folder_of_report(given.teacher, given.out)
    say("wrote " + ", ".join(str(out / file) for file in [*numbers["figures"], "report.json"]))


def explore(words: Sequence[str]) -> None:
    """write a page that shows the attention of teachers in your images"""
    parser = _Parser("explore", "Write explorer.html and heads.png: what teachers attend to.")
    parser.add_argument("images", help="an image, or a folder of them (of a clip: dino video)")
    _add_look(parser)
    limit_help = "the most images of a folder (default: 12)"
    parser.add_argument("--limit", type=int, default=12, help=limit_help)
    own_help = "the page looks at its visitor's own photographs too (fetches 33 MB by npm, once)"
    parser.add_argument("--own-photos", action="store_true", help=own_help)
    given = parser.parse_args(words)

    from dino_lib.look.explorer import write_explorer

    options = {"size": given.size, "limit": given.limit, "own_photos": given.own_photos}
    _wrote(write_explorer(given.images, _teachers(given), given.out, **options))


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


def export(words: Sequence[str]) -> None:
    """write a teacher for other programs: ONNX, timm, Hugging Face"""
    parser = _Parser("export", "Write a teacher for programs without dino_lib, and a model card.")
    parser.add_argument("teacher", help="a run's folder, or what else load_teacher takes")
    parser.add_argument("--format", required=True, help="onnx, timm or huggingface")
    parser.add_argument("--out", required=True, help="the folder to write, a new one")
    given = parser.parse_args(words)

    from dino_lib.teachers.export import export

    _wrote(export(given.teacher, given.format, given.out))


def doctor(words: Sequence[str]) -> None:
    """say what ails runs and what to change; without a run, whether this machine is ready"""
    about = "Say what ails a run, from which step, and what to change. Without a run: whether this "
    parser = _Parser("doctor", f"{about}machine is ready, and how long each notebook takes on it.")
    parser.add_argument("runs", nargs="*", metavar="RUN", help="a run's folder")
    given = parser.parse_args(words)
    from dino_lib.course.laptop import examine_machine
    from dino_lib.run.doctor import examine

    for folder in given.runs:
        say(examine(folder))
    if not given.runs:
        said, ready = examine_machine()
        say(said)
        sys.exit(not ready)


def progress(words: Sequence[str]) -> None:
    """say which pieces of the course a reader, or a class, has written"""
    about = "Say which pieces of the course are done: of one reader each, of a class a line each."
    parser = _Parser("progress", about)
    folder_help = "a reader's folder of notebooks, as saved; of a class, one a reader"
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help=folder_help)
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write a row a reader, too")
    given = parser.parse_args(words)

    from dino_lib.course.progress import csv_of_class, read_class, table_of_class, table_of_one

    copies = read_class(given.folders)
    say(table_of_one(copies[0]) if len(copies) == 1 else table_of_class(copies))
    if given.csv:
        given.csv.write_text(csv_of_class(copies), encoding="utf-8")
        say(f"wrote {given.csv}")


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


COMMANDS = {run.__name__: run for run in
            (advise, train, report, explore, video, export, doctor, progress)}


def main(words: Sequence[str] | None = None) -> None:
    """Run a command. Exit status 2 and one line on wrong settings or data, 130 on an interrupt; a
    traceback shows that the mistake is in the code.
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

    if command in ("explore", "video", "export") and isinstance(error, TypeError):
        return True  # a network without attention, or one that a format has no place for
    return isinstance(error, ValueError | OSError | MemoryError | FloatingPointError |
                      ImportError | InputError)
