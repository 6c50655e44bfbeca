"""Everything that a first hour on a GPU should answer, in ten minutes: `make gpu`, or `python
benchmarks/gpu.py --out runs/gpu`.

Each part writes a JSON file into --out and is left out where that file lies there already: a run
that was cut off goes on with the same command.

- tests: those that run on every device (`tests/test_on_devices.py`), on this one
- a table for each of three networks: images a second, the share of the card's measured matrix rate,
  memory, idle share and host time of a step, beside the official recipe and lightly, compiled and
  not (`card.py`)
- training: the preset `colab` on Imagenette's photographs, as many epochs as fit, with its curve

`report.md` says what came out, in words. Without a GPU the tables stay empty, and a stand-in of
seconds takes the training's place.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import card
import timm
import torch
import torchvision
from gpu_report import EXPECTED, report

from dino_lib.data.datasets import open_dataset
from dino_lib.look.curves import training_curves
from dino_lib.run.checkpoint import write_atomically
from dino_lib.run.history import knn_scores, read_history
from dino_lib.run.presets import PRESETS

ROOT = Path(__file__).resolve().parent.parent
IMAGES = 9469  # of Imagenette's training set
LEFT = 130  # what `dino` exits with where a run was stopped and saved


def machine(device):
    """What everything below was measured on."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else "no CUDA device"
    packages = {"torch": torch.__version__, "torchvision": torchvision.__version__,
                "timm": timm.__version__}  # fmt: skip
    return {"device": name, "cores": os.cpu_count(), **packages}


def tests(device):
    """The tests that run on every device."""
    words = [sys.executable, "-m", "pytest", "tests/test_on_devices.py", "--device"]
    done = run_here([*words, device.type], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).strip().splitlines() or ["it printed nothing"]
    return {"passed": done.returncode == 0, "last": lines[-12:]}


def run_here(words, **options):
    return subprocess.run(words, cwd=ROOT, env=environment(), **options)


def environment():
    """This checkout's library, whatever is installed."""
    return os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}


def table(name, device):
    """What `card.measure` says of a network; without a card nothing."""
    return card.measure(card.NETWORKS[name], device) if device.type == "cuda" else None


def plan(args, device, rate):
    """The settings of the training: photographs where they are to be had, as many epochs as fit
    into the minutes at `rate` images a second; a whole run, so that its schedules end."""
    if device.type != "cuda":
        return {"preset": "smoke", "changes": {}}
    try:
        open_dataset(args.dataset, args.data_root, "train")
    except (ValueError, OSError, RuntimeError) as error:
        return {"preset": "demo", "changes": {}, "why": str(error)[:300]}
    epochs = max(5, min(100, int(0.8 * 60 * args.minutes * rate / IMAGES)))
    every = max(1, epochs // 8)
    changes = {"epochs": epochs, "warmup_epochs": epochs / 10, "eval_every": every,
               "warmup_teacher_temp_epochs": epochs / 10, "save_every": every,
               "dataset": args.dataset, "data_root": args.data_root}  # fmt: skip
    return {"preset": "colab", "changes": changes}


def training(planned, minutes, out):
    """The planned training, or as much of it as fits into the minutes; the same call goes on."""
    run = out / "run"
    words = ["--preset", planned["preset"], "--output-dir", run, "--resume", "auto"]
    for name, value in planned["changes"].items():
        words += [f"--{name.replace('_', '-')}", value]
    start = time.time()
    dino("train", *words, "--stop-after", minutes, "--progress", False)
    history = read_history(run)
    rates = [line["images_per_second"] for line in history if "images_per_second" in line]
    config = replace(PRESETS[planned["preset"]], **planned["changes"])
    training_curves(history, config.out_dim).savefig(out / "curve.png")
    finished = (run / "teacher.safetensors").exists()
    return {**planned, "seconds": time.time() - start, "updates": history[-1]["step"],
            "finished": finished, "knn": knn_scores(history),
            "images/s": sorted(rates)[len(rates) // 2] if rates else None}  # fmt: skip


def dino(*words):
    """The command `dino`, in a process of its own; RuntimeError where it fails. A run that leaves
    after its --stop-after has not failed."""
    done = run_here([sys.executable, "-m", "dino_lib", *map(str, words)])
    if done.returncode not in (0, LEFT):
        raise RuntimeError(f"dino {words[0]} failed; why, stands above")


def part(out, name, work):
    """What `work` gives, from its file if that is there; a part that fails is told and tried again
    by the next call."""
    path = out / f"{name}.json"
    if path.exists():
        return json.loads(path.read_text())
    start = time.time()
    try:
        result = work()
    except Exception as error:  # the other parts still count
        print(f"{name} failed: {type(error).__name__}: {error}", flush=True)
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}
    print(f"{name}: {time.time() - start:.0f} s", flush=True)
    if result is not None and (name != "training" or result["finished"]):
        with write_atomically(path) as file:
            file.write(json.dumps(result, indent=1).encode())
    return json.loads(json.dumps(result))


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--minutes", type=float, default=3, help="for the training")
    parser.add_argument("--dataset", default="imagenette", help="photographs to train on")
    parser.add_argument("--data-root", default="data", help="where they are, or are downloaded to")
    args = parser.parse_args(argv)
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cuda":
        print("expected: " + ", ".join(f"{name} {m:g} min" for name, m in EXPECTED.items()))
    found = {"machine": machine(device), "tests": part(out, "tests", lambda: tests(device))}
    found["tables"] = {
        name: part(out, f"table-{i}", lambda name=name: table(name, device))
        for i, name in enumerate(card.NETWORKS)
    }
    colab = (found["tables"]["preset colab"] or {}).get("rows", {})
    rate = colab.get("here, with its views", {}).get("images/s", 1000.0)
    planned = part(out, "plan", lambda: plan(args, device, rate))
    found["training"] = part(out, "training", lambda: training(planned, args.minutes, out))
    (out / "report.md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
