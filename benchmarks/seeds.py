"""The preset `demo` with five seeds: what a run gives that nobody chose.

    python benchmarks/seeds.py --runs runs/seeds

trains each (six to fifteen minutes on two cores), scores it as `dino report` does, and writes the
scores to seeds.json beside this file: README quotes them. It goes on where it was cut off.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from dino_lib import PRESETS, train
from dino_lib.look.report import report

PATH = Path(__file__).with_name("seeds.json")
# what knows nothing of the objects
BLIND = ("knn_color_histogram", "above_blind_blobs_trained", "above_blind_contrast_trained")
OF_BOTH = ("knn", "linear", "nmi", "above_blind", "auc")  # untrained and trained


def scores(run: Path, seed: int) -> dict[str, float]:
    if not (run / "report.json").exists():
        config = replace(PRESETS["demo"], seed=seed, output_dir=str(run), progress=False)
        train(replace(config, resume="auto"))
        report(run)
    found = json.loads((run / "report.json").read_text())
    wanted = [f"{score}_{stage}" for score in OF_BOTH for stage in ("untrained", "trained")]
    return {"seed": seed, **{key: round(found[key], 4) for key in [*wanted, *BLIND]}}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    args = parser.parse_args()
    rows = [scores(args.runs / f"seed{seed}", seed) for seed in args.seeds]
    found = {
        "what": "the preset demo, embedded dataset, 806 updates, float32",
        "machine": f"{platform.machine()}, torch {torch.__version__}",
        "rows": rows,
    }
    PATH.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
