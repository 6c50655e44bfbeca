"""Everything that a first hour on a GPU should answer: `make gpu`, or `python benchmarks/gpu.py
--out runs/gpu`.

Four parts, each of which writes a JSON file into --out and is left out where that file lies there
already, so that a run that was cut off goes on:

- tests: those that run on every device (`tests/test_on_devices.py`), on this one
- speed: a step against the official recipe and lightly in turn, the share of the card's own matrix
  rate, the idle share, an epoch of 100,000 images at 96 px (`benchmarks/step.py`)
- compile: the same step with torch.compile and without
- training: the preset `colab` for some minutes, with its curve

`report.md` says what came out, in words. Without a GPU the two parts in the middle stay empty.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import step
import timm
import torch
import torchvision

from dino_lib.run.history import knn_scores, read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.profile import clock

ROOT = Path(__file__).resolve().parent.parent


def machine(device):
    """What everything below was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else "no CUDA device"
    packages = {"torch": torch.__version__, "torchvision": torchvision.__version__,
                "timm": timm.__version__}  # fmt: skip
    return {"device": name, "cores": os.cpu_count(), **packages}


def tests(device, minutes, out):
    """The tests that run on every device."""
    words = [sys.executable, "-m", "pytest", "-q", "tests/test_on_devices.py", "--device", device]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    return {"passed": done.returncode == 0, "last": done.stdout.strip().splitlines()[-12:]}


def speed(device, minutes, out):
    """Rows as `make bench` has them."""
    return step.cuda_rows(rounds=2, quick=False)


def compile_or_not(device, minutes, out):
    """Images a second of ViT-S/16 and of two presets, compiled and not, and the memory."""
    if device != "cuda":
        return []
    rows, cuda = [], torch.device("cuda")
    presets = {"ViT-S/16, 2 x 224 + 8 x 96, batch 64": replace(step.PAPER, batch_size=64)}
    presets |= {name: replace(PRESETS[name], **step.COMMON) for name in ("gpu", "colab")}
    for name, config in presets.items():
        for compiled in (False, True):
            torch.cuda.reset_peak_memory_stats()
            views = step.noise(config, cuda)
            one = step.ours(replace(config, compile=compiled), cuda)
            start = clock(cuda)
            one(views)
            first = clock(cuda) - start
            for _ in range(4):
                one(views)
            start = clock(cuda)
            for _ in range(20):
                one(views)
            rows.append({
                "network": name, "compile": compiled, "first step, s": first,
                "images/s": 20 * config.batch_size / (clock(cuda) - start),
                "peak, GiB": torch.cuda.max_memory_allocated() / 2**30,
            })  # fmt: skip
            del one
            torch.cuda.empty_cache()
    return rows


def training(device, minutes, out):
    """The preset `colab`, as many epochs as fit; on a CPU the preset smoke instead."""
    preset = "colab" if device == "cuda" else "smoke"
    run = out / "run"
    words = [sys.executable, "-m", "dino_lib", "train", "--preset", preset, "--output-dir",
             str(run), "--resume", "auto", "--progress", "False"]  # fmt: skip
    start = time.time()
    process = subprocess.Popen(words, cwd=ROOT)
    try:
        process.wait(60 * minutes)
    except subprocess.TimeoutExpired:
        process.terminate()  # it saves after the update at hand
        process.wait()
    history = read_history(run)
    rates = [line["images_per_second"] for line in history if "images_per_second" in line]
    return {"preset": preset, "seconds": time.time() - start, "updates": history[-1]["step"],
            "finished": (run / "teacher.safetensors").exists(), "knn": knn_scores(history),
            "images/s": sorted(rates)[len(rates) // 2]}  # fmt: skip


def report(found):
    """All of it in words."""
    on = found["machine"]
    lines = ["# What this machine does", "", ", ".join(f"{k} {v}" for k, v in on.items()), ""]
    lines += [f"Tests on this device: {'passed' if found['tests']['passed'] else 'FAILED'}."]
    lines += [f"    {line}" for line in found["tests"]["last"] if not found["tests"]["passed"]]
    lines += ["", "| figure | here | other | ratio | aim |", "| --- | --- | --- | --- | --- |"]
    for row in found["speed"]:
        other = "" if row["peer"] is None else f"{row['peer']:.4g}"
        lines.append(f"| {row['figure']} ({row['unit']}) | {row['ours']:.4g} | {other} "
                     f"| {row['ratio']:.2f} | {row.get('aim') or ''} |")  # fmt: skip
    if not found["speed"]:
        lines.append("| no CUDA device: nothing to measure | | | | |")
    for row in found["compile"]:
        words = [f"{k} {v:.4g}" if type(v) is float else f"{k} {v}" for k, v in row.items()]
        lines.append("- " + ", ".join(words))
    t = found["training"]
    end = "to its end" if t["finished"] else "then cut off; the same command goes on with it"
    lines += ["", f"Preset {t['preset']}: {t['updates']} updates in {t['seconds']:.0f} s, {end}; "
              f"{t['images/s']:.0f} images/s. k-NN by update: {t['knn']}"]  # fmt: skip
    return "\n".join(lines) + "\n"


PARTS = {"tests": tests, "speed": speed, "compile": compile_or_not, "training": training}


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", default="runs/gpu")
    parser.add_argument("--minutes", type=float, default=4, help="for the training")
    args = parser.parse_args(argv)
    out = Path(args.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found = {"machine": machine(device)}
    for name, part in PARTS.items():
        path = out / f"{name}.json"
        if not path.exists():
            start = time.time()
            result = part(device, args.minutes, out)
            path.write_text(json.dumps(result, indent=1))
            print(f"{name}: {time.time() - start:.0f} s", flush=True)
        found[name] = json.loads(path.read_text())
    (out / "report.md").write_text(report(found))
    print(report(found))


if __name__ == "__main__":
    main()
