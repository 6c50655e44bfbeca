"""A preset with several seeds: what a run gives that nobody chose.

    python benchmarks/seeds.py --runs runs/seeds
    python benchmarks/seeds.py --runs runs/laptop --preset laptop --seeds 0 1 2
    python benchmarks/seeds.py --runs runs/laptop --preset laptop --seeds 0 1 2 --dataset caltech101

trains each (`demo` in four to ten minutes of two cores, `laptop` in one to three hours of one),
scores it as `dino report` does, on its own images or on those of --dataset, and writes the scores
to seeds_demo.json, seeds_laptop.json or seeds_laptop_caltech101.json beside this file: README
quotes them. With them stand the run's seconds and, by update, the 20-NN that it measured itself, of
fewer pictures. It goes on where it was cut off.

Of pictures with masks also the Jaccard index of masks with 60 % of a map's mass, the paper's share,
and with more: the best single head, one for all pictures, trained and untrained, against as many
blind blobs, of which each picture has its best one.
"""

import argparse
import json
import platform
from dataclasses import replace
from pathlib import Path

import torch

from dino_lib import PRESETS, jaccard, load_teacher, mass_mask, train
from dino_lib.look.report import report
from dino_lib.measure.masks import center_blobs, jaccard_one_head, upsample
from dino_lib.run.build import build_student, open_probes
from dino_lib.run.config import Config
from dino_lib.run.history import read_history

HERE = Path(__file__).parent
# what knows nothing of the objects
BLIND = ("knn_color_histogram", "above_blind_blobs_trained", "above_blind_contrast_trained")
SHARES = (0.6, 0.75, 0.9)  # of the mass, in a mask
N_MASKS = 200  # as many as `Probes.score` takes
OF_BOTH = ("knn", "linear", "nmi", "map", "above_blind", "auc")  # untrained and trained


def scores(config: Config, run: Path, dataset: str | None) -> dict[str, float]:
    out = run / Path(dataset).name if dataset else run
    if (run / "config.json").exists():
        was = Config.from_json((run / "config.json").read_text())
        told = [(of.dataset, of.epochs, of.seed, of.lr, of.momentum) for of in (was, config)]
        if told[0] != told[1]:
            raise ValueError(f"{run} holds a run of {told[0]}, and not of {told[1]}: other --runs?")
    if not (out / "report.json").exists():
        train(replace(config, output_dir=str(run), progress=False, resume="auto"))
        report(run, dataset=dataset, data_root=config.data_root, out=out)
    found = json.loads((out / "report.json").read_text())
    wanted = [f"{score}_{stage}" for score in OF_BOTH for stage in ("untrained", "trained")]
    there = [key for key in [*wanted, *BLIND] if key in found]  # photographs have no masks
    row = {"seed": config.seed, **{key: round(found[key], 4) for key in there}}
    if dataset is None:
        curve = {line["step"]: round(line["knn"], 4) for line in read_history(run) if "knn" in line}
        row |= {"seconds": round(found["seconds"]), "knn_by_update": curve}
    return row | jaccards(run) if "jaccard_trained" in found else row


def jaccards(run: Path) -> dict[str, float]:
    """For each share: one head for all pictures, trained and untrained, and the blobs' best."""
    teacher = load_teacher(run)
    probes = open_probes(teacher.config)
    truth = probes.masks[:N_MASKS]
    maps = probes.attention(teacher, N_MASKS)
    blank = probes.attention(build_student(teacher.config).backbone.eval(), N_MASKS)
    blobs = center_blobs(maps.shape[1], maps.shape[2:]).expand_as(maps)
    found = {}
    for share in SHARES:
        of_maps, of_blank, of_blobs = (
            upsample(mass_mask(of, share), truth.shape[1:]) for of in (maps, blank, blobs)
        )
        scores = {
            "one_head": jaccard_one_head(of_maps, truth).max().item(),
            "one_head_untrained": jaccard_one_head(of_blank, truth).max().item(),
            "blobs": jaccard(of_blobs, truth),
        }
        found |= {f"jaccard_{what}_{share:.0%}": round(of, 4) for what, of in scores.items()}
    return found


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
    names = ["seeds", args.preset, *([Path(args.dataset).name] if args.dataset else [])]
    path = HERE / f"{'_'.join(names)}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
