"""Does an advised run learn, and does it take as long as was said? `python benchmarks/advise.py`.

Five kinds of images, written to a folder that goes away: embedded creatures, Caltech-101 and
Imagenette (20 and 10 classes), grey photographs, and 60 photographs in all. For each the advice for
`--minutes` of this process's processor time, the run, and what it came to: the doctor's findings,
the two entropies as shares of ln K, RankMe and 20-NN beside the untrained network's and a colour
histogram's. Fails if a run collapses. DATA holds caltech101/101_ObjectCategories and
imagenette2-160/train. Writes dino_lib/course/measured/advise_MINUTESmin_SEED.json; with `--only
creatures` those rows alone.

`--half-lives` compares two teachers instead: the creatures, advised for 1.2 minutes and for 3, with
half-lives of 5 and 20 % of the run and of 2 and 8.5 %, seeds 0 to 2. Writes half_lives.json, and
takes half an hour.
"""

import argparse
import itertools
import json
import math
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image

from dino_lib import Shapes
from dino_lib.course.going_on import TWO_TEACHERS, advised
from dino_lib.measure.knn import accuracy, color_histogram
from dino_lib.run.advise import HALF_LIVES, advise, momentum_of
from dino_lib.run.doctor import diagnose
from dino_lib.run.history import feature_rank
from dino_lib.run.train import build_trainer


def creatures(folder, n=1000):
    """Embedded pictures, a folder a class."""
    pictures = Shapes(n)
    for i in range(n):
        image, label = pictures[i]
        place = folder / f"class{label}"
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{i:04d}.png")


def copy(source, folder, classes, each, *, first=0, mode="RGB"):
    """The first `each` pictures of so many of the largest classes."""
    places = [path for path in source.iterdir() if path.name not in ("Faces_easy",)]
    places.sort(key=lambda path: (-len(list(path.iterdir())), path.name))
    for place in places[first : first + classes]:
        (folder / place.name).mkdir(parents=True)
        for path in sorted(place.iterdir())[:each]:
            with Image.open(path) as image:
                image.convert(mode).save(folder / place.name / f"{path.stem}.png")


def write(name, data, folder):
    caltech = data / "caltech101" / "101_ObjectCategories"
    if name == "creatures":
        creatures(folder)
    elif name == "caltech":
        copy(caltech, folder, 20, 40)
    elif name == "imagenette":
        copy(data / "imagenette2-160" / "train", folder, 10, 80)
    elif name == "grey":
        copy(caltech, folder, 10, 50, first=20, mode="L")
    else:
        copy(caltech, folder, 3, 20)


SLOW_HALF_LIVES = 0.05, 0.2
DATASETS = ("creatures", "caltech", "imagenette", "grey", "sixty")


def scores(probes, backbone, features=None):
    """20-NN accuracy and the rank of a network's features, or of others."""
    gallery, queries = features or probes.features(backbone)
    knn, _ = accuracy(probes.predict(gallery, queries), probes.query_labels)
    return {"knn": round(knn, 4), "rank": round(feature_rank(gallery), 2)}


def ask(folder, minutes, runs):
    """Advice on a folder of images."""
    return advise(folder, minutes, data_root=str(runs / "data"), device="cpu",
                  output_dir=str(runs / "run"), clock=time.process_time)  # fmt: skip


def measure(advice, seed, half_lives=None):
    """An advised run, and what it came to.

    half_lives: of the teacher, start and end, as shares of the run, in place of those advised.
    """
    config = replace(advice.config, seed=seed, progress=False, precision="fp32")
    if half_lives:
        start, end = [momentum_of(share * advice.updates) for share in half_lives]
        config = replace(config, momentum=start, momentum_end=end)
    start = time.process_time()
    trainer = build_trainer(config)
    built = time.process_time()
    probes = trainer.probes
    untrained = scores(probes, trainer.teacher.backbone)
    gallery, queries = color_histogram(probes.gallery), color_histogram(probes.queries)
    histogram = scores(probes, None, (gallery, queries))
    beside = time.process_time() - built
    teacher, history = trainer.run()
    spent = time.process_time() - start - beside
    last, ln_k = [line for line in history if "loss" in line][-1], math.log(config.out_dim)
    gap = (last["mean_entropy"] - last["teacher_entropy"]) / ln_k
    return {
        "images": advice.survey.images,
        "short_side": advice.survey.short_side,
        "channels": advice.survey.channels,
        "preset": advice.preset,
        "K": config.out_dim,
        "batch_size": config.batch_size,
        "epochs": config.epochs,
        "updates": trainer.total_steps,
        "momentum": [config.momentum, config.momentum_end],
        "minutes_said": round(advice.minutes, 2),
        "minutes_taken": round(spent / 60, 2),
        "MiB_said": round(advice.memory_bytes / 2**20),
        "findings": [finding.name for finding in diagnose(history, config)],
        "row_entropy": round(last["teacher_entropy"] / ln_k, 3),
        "mean_entropy": round(last["mean_entropy"] / ln_k, 3),
        "gap": round(gap, 3),
        "loss": round(last["loss"] / ln_k, 3),
        "trained": scores(probes, teacher),
        "untrained": untrained,
        "histogram": histogram,
        "queries": len(probes.queries),
        "chance": round(1 / len(set(probes.query_labels.tolist())), 3),
    }


def collapsed(row):
    """A finding of the doctor's that says so, or entropies that are all but equal.

    The shipped demo's were 0.09 ln K apart after 150 updates, when it had only begun, and
    0.19 in the end; those of the collapsed runs in ill_runs.json end 0 to 0.06 apart.
    """
    ill = {"uniform", "one prototype", "dead prototypes", "feature rank", "not finite"}
    return row["gap"] < 0.03 or bool(ill & set(row["findings"]))


def compare_teachers(minutes, seeds=3):
    """The creatures with either teacher: a row for each, and the seed and half-lives in it."""
    rows = []
    with tempfile.TemporaryDirectory() as place:
        creatures(Path(place) / "creatures")
        advice = ask(Path(place) / "creatures", minutes, Path(place))  # once: as many updates each
        for seed, half_lives in itertools.product(range(seeds), (SLOW_HALF_LIVES, HALF_LIVES)):
            config = replace(advice.config, output_dir=f"{place}/{len(rows)}")
            row = measure(replace(advice, config=config), seed, half_lives)
            rows.append({"seed": seed, "half_lives": half_lives, **row})
            print(json.dumps(rows[-1]), "COLLAPSED" if collapsed(row) else "", flush=True)
    return rows


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="see above")
    parser.add_argument("--half-lives", action="store_true", help="compare two teachers")
    parser.add_argument("--minutes", type=float, default=0.4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=DATASETS, default=DATASETS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    measured = {
        "machine": "one core of a shared x86-64 server CPU, float32",
        "torch": torch.__version__.partition("+")[0],
    }
    if args.half_lives:
        found = {
            "what": "creatures, advised for 1.2 and 3 minutes, with two teachers; entropies and "
            "loss as shares of ln K",
            **measured,
            "rows": compare_teachers(1.2) + compare_teachers(3),
        }
        (args.out or TWO_TEACHERS).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        return
    if not args.data:
        parser.error("--data is missing: the folder of caltech101 and imagenette2-160")
    out = args.out or advised(args.seed, args.minutes)
    # with --only, a file that is there keeps its other rows
    rows = json.loads(out.read_text("utf-8"))["rows"] if out.exists() else {}
    for name in args.only:
        with tempfile.TemporaryDirectory() as place:
            write(name, args.data, Path(place) / name)
            row = measure(ask(Path(place) / name, args.minutes, Path(place)), args.seed)
        rows[name] = row
        print(name, json.dumps(row), "COLLAPSED" if collapsed(row) else "", flush=True)
        found = {
            "what": f"runs advised for {args.minutes:g} minutes of processor time, seed "
            f"{args.seed}; entropies and loss as shares of ln K",
            "minutes": args.minutes,
            **measured,
            "rows": rows,
        }
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.exit(1 if any(map(collapsed, rows.values())) else 0)


if __name__ == "__main__":
    main()
