"""The long training on a GPU, in pieces of ten minutes: `make gpu-train`, or `python
benchmarks/gpu_train.py --out runs/gpu-train`.

It trains the preset `imagenette`, a design that has never been run, for --minutes of training, and
is called again until it says that the run is finished. Then it scores the teacher (`dino report`),
writes it in half precision beside, and says in report.md what came out. --data is a folder of
photographs, or one with the archives of `pack_imagenette.py`, which are unpacked; without it
Imagenette is looked for in data/, or downloaded.
"""

import argparse
import json
import os
import tarfile
import time
from pathlib import Path

import torch
from gpu import dino, machine

from dino_lib.look.curves import training_curves
from dino_lib.look.report import in_words
from dino_lib.run.config import Config
from dino_lib.run.history import knn_scores, read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.teacher_file import save_teacher
from dino_lib.teachers.load import load_teacher


def unpacked(folder):
    """The folder of photographs: `folder`, or what its archives hold, unpacked beside them once."""
    archives = sorted(folder.glob("*.tar"))
    if not archives:
        return folder
    inside = folder / "photographs"
    for archive in archives:
        done = inside / f".{archive.stem}"  # a dot file is no photograph
        if not done.exists():
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter="data")
            done.touch()
    return inside


def in_report(config, history, total, minutes, scores):
    """report.md of a finished run."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lines = ["# A long training", "", ", ".join(f"{k} {v}" for k, v in machine(device).items()), "",
             f"{config.backbone} {config.backbone_options}: {total} updates of {config.batch_size} "
             f"images, seed {config.seed}, {minutes:.1f} minutes of training.", "",
             in_words(scores), ""]  # fmt: skip
    found = knn_scores(history)
    if found:
        best = max(found, key=found.get)
        lines += [
            f"The last teacher counts. On the way the best 20-NN was {found[best]:.1%}, after "
            f"update {best}: chosen by the queries themselves, and so no result.",
            "",
        ]
    return "\n".join([*lines, "![The curves](curve.png)", ""])


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/gpu-train"))
    parser.add_argument("--data", type=Path, help="a folder of photographs, or of the archives")
    parser.add_argument("--minutes", type=float, default=8, help="of training in this call")
    parser.add_argument("--preset", choices=PRESETS, default="imagenette")
    args, settings = parser.parse_known_args(argv)
    start, run = time.time(), args.out.absolute() / "run"
    words = ["--preset", args.preset, "--output-dir", run, "--resume", "auto", *settings]
    if args.data:
        words += ["--dataset", unpacked(args.data.absolute())]
    dino("train", *words, "--stop-after", args.minutes)
    history = read_history(run)
    minutes = sum(line.get("seconds", 0) for line in history) / 60
    config = Config.from_json((run / "config.json").read_text())
    training_curves(history, config.out_dim).savefig(args.out / "curve.png")
    step, epoch = history[-1]["step"], history[-1]["epoch"]
    total = round(config.epochs * step / epoch) if epoch else 0
    if not (run / "teacher.safetensors").exists():
        left = minutes * (total / step - 1) if step else float("nan")
        print(f"update {step} of {total} after {minutes:.1f} minutes of training; about {left:.0f} "
              f"minutes are left ({time.time() - start:.0f} s this time). The same command goes "
              "on")  # fmt: skip
        return
    dino("report", run)
    scores = json.loads((run / "report.json").read_text())
    teacher = load_teacher(run)
    half = args.out / "teacher-half.safetensors"
    save_teacher(half, teacher.model.half(), teacher.config, **teacher.about)
    words = in_report(config, history, total, minutes, scores)
    (args.out / "report.md").write_text(words)
    print(f"{words}\nfinished: {run}, and {half} ({os.path.getsize(half) / 2**20:.1f} MiB)")


if __name__ == "__main__":
    main()
