"""What a change of the head does to a short run: dino_lib/course/measured/heads.json.

`python benchmarks/short_heads.py [--seeds 3]`. Each run is `dino_lib.course.short_run`: 120 updates
of 32 pictures, a network of one block, 256 prototypes. Notebook 02's exercise 9 changes one thing
and stops at update 40; these runs are there too. What is measured already stays; delete the file to
measure all anew.
"""

import argparse
import itertools
import json
from pathlib import Path

import torch.nn.functional as F

from dino_lib import DINOHead, Shapes
from dino_lib.course import short_run
from dino_lib.measure.knn import accuracy, color_histogram, knn_predict

FILE = Path(short_run.__file__).parent / "measured" / "heads.json"
SIZES = {"hidden_dim": 256, "bottleneck_dim": 64, "use_bn": True}


class PlainHead(DINOHead):
    """Dot products: the bottleneck keeps its length."""

    def forward(self, x):
        return self.mlp(x) @ F.normalize(self.directions, dim=-1).T


HEADS = {
    "gains held": lambda width: DINOHead(width, 256, **SIZES),
    "no L2 normalisation": lambda width: PlainHead(width, 256, **SIZES),
    "gains free": lambda width: DINOHead(width, 256, norm_last_layer=False, **SIZES),
}

CHANGES = {
    "nothing": HEADS["gains held"],
    "K = 2": lambda width: DINOHead(width, 2, **SIZES),
    "K = 4096": lambda width: DINOHead(width, 4096, **SIZES),
    "bottleneck = 2": lambda width: DINOHead(width, 256, **SIZES | {"bottleneck_dim": 2}),
    "Plain": HEADS["no L2 normalisation"],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    seeds = parser.parse_args().seeds
    pictures, queries = Shapes(1000), Shapes(300, seed=1)
    found = {"machine": "one core of an AMD EPYC, float32", "updates": 120, "batch": 32, "runs": {}}
    if FILE.exists():
        found = json.loads(FILE.read_text())
    gallery, rows = (color_histogram(p.images) for p in (pictures, queries))
    predicted = knn_predict(gallery, pictures.labels, rows)
    found["colour_histogram"] = round(accuracy(predicted, queries.labels)[0], 3)
    FILE.parent.mkdir(exist_ok=True)
    FILE.write_text(json.dumps(found, indent=1) + "\n")
    for part, heads, options in [
        ("runs", HEADS, {"every": 40}),
        ("exercise", CHANGES, {"stop": 40}),
    ]:
        for seed, (name, make) in itertools.product(range(seeds), heads.items()):
            runs = found.setdefault(part, {}).setdefault(name, {})
            if str(seed) not in runs:
                runs[str(seed)] = short_run.short_run(make, pictures, queries, seed=seed, **options)
                FILE.write_text(json.dumps(found, indent=1) + "\n")
                print(name, seed, runs[str(seed)], flush=True)


if __name__ == "__main__":
    main()
