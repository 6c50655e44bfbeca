"""A preset with several seeds: what a run gives that nobody chose.

    python benchmarks/seeds.py --runs runs/seeds
    python benchmarks/seeds.py --runs runs/laptop --preset laptop --seeds 0 1 2
    python benchmarks/seeds.py --runs runs/laptop --preset laptop --seeds 0 1 2 --dataset caltech101

trains each (`demo` in four to ten minutes of two cores, `laptop` in one to three hours of one),
scores it as `dino report` does, on its own images or on those of --dataset, and writes the scores
to seeds_demo.json, seeds_laptop.json or seeds_laptop_caltech101.json beside this file: README
quotes them. It goes on where it was cut off.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from dino_lib import PRESETS, train
from dino_lib.look.report import report
from dino_lib.run.config import Config

HERE = Path(__file__).parent
# what knows nothing of the objects
BLIND = ("knn_color_histogram", "above_blind_blobs_trained", "above_blind_contrast_trained")
OF_BOTH = ("knn", "linear", "nmi", "map", "above_blind", "auc")  # untrained and trained


def scores(config: Config, run: Path, dataset: str | None) -> dict[str, float]:
    out = run / dataset if dataset else run
    if not (out / "report.json").exists():
        train(replace(config, output_dir=str(run), progress=False, resume="auto"))
        report(run, dataset=dataset, data_root=config.data_root, out=out)
    found = json.loads((out / "report.json").read_text())
    wanted = [f"{score}_{stage}" for score in OF_BOTH for stage in ("untrained", "trained")]
    there = [key for key in [*wanted, *BLIND] if key in found]  # photographs have no masks
    return {"seed": config.seed, **{key: round(found[key], 4) for key in there}}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--preset", choices=PRESETS, default="demo")
    parser.add_argument("--dataset", help="score on other images than the run's own")
    parser.add_argument("--data-root", default="data", help="where the photographs are")
    args = parser.parse_args()
    preset = replace(PRESETS[args.preset], data_root=args.data_root)
    rows = [
        scores(replace(preset, seed=seed), args.runs / f"seed{seed}", args.dataset)
        for seed in args.seeds
    ]
    scored = f", scored on {args.dataset}" if args.dataset else ""
    found = {
        "what": f"the preset {args.preset}, {preset.dataset}, {preset.epochs:g} epochs{scored}",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "rows": rows,
    }
    path = HERE / f"{'_'.join(filter(None, ('seeds', args.preset, args.dataset)))}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
