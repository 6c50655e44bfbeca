"""k-NN of runs that go on from pretrained weights: `python benchmarks/going_on.py`.

For notebook 08: the teacher `demo` with a new head, four recipes, three seeds; about eight minutes
of one core. Writes dino_lib/course/measured/going_on.json.
"""

import argparse
import json
import time

import torch

from dino_lib.course.going_on import MEASURED, RECIPES, go_on, settings

KEYS = ("step", "loss", "teacher_entropy", "mean_entropy", "feature_rank", "knn")


def main(seeds, path):
    torch.set_num_threads(1)
    start, runs = time.process_time(), []
    for seed in range(seeds):
        for recipe in RECIPES:
            clock = time.process_time()
            lines = go_on(recipe, seed)
            runs.append(
                {
                    "recipe": recipe,
                    "seed": seed,
                    "cpu_seconds": round(time.process_time() - clock, 1),
                    "lines": [
                        {key: round(line[key], 4) for key in KEYS if key in line} for line in lines
                    ],
                }
            )
            scores = {line["step"]: line["knn"] for line in lines if "knn" in line}
            print(f"{recipe:20} seed {seed}: {scores}, {runs[-1]['cpu_seconds']} s", flush=True)
            config = settings(recipe, seed)
            found = {
                "what": "20-NN accuracy, going on from the teacher demo with a new head",
                "machine": "one core of a shared x86-64 server CPU, float32",
                "torch": torch.__version__.partition("+")[0],
                "cpu_seconds": round(time.process_time() - start),
                "updates": int(config.epochs * config.limit / config.batch_size),
                "batch_size": config.batch_size,
                "gallery": config.eval_limit,
                "queries": config.eval_limit // 2,
                "runs": runs,
            }
            path.write_text(json.dumps(found) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args().seeds, MEASURED)
