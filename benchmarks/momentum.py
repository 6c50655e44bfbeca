"""What the teacher's momentum does to k-NN, for notebook 04: `python benchmarks/momentum.py`.

Momentum 0, 0.96, 1, and 0.96 rising to 0.99, on the embedded pictures at 24 px, three
seeds each, all four of a seed from one start and on the same views. Beside them what needs no
training: the untrained network and a colour histogram. Twelve runs of a network of 25,000 weights,
with one thread about three minutes. Writes dino_lib/course/measured/momentum.json.
"""

import argparse
import json
import time

import torch

from dino_lib.course.momentum import (
    GALLERY,
    MEASURED,
    PICTURES,
    QUERIES,
    RISING,
    SIZE,
    UPDATES,
    follow,
    histogram_score,
)
from dino_lib.course.step import finished_step

MOMENTA = {"0": 0.0, "0.96": 0.96, "1": 1.0, RISING: RISING}


def main(seeds, path):
    torch.set_num_threads(1)
    start, runs = time.process_time(), []
    for seed in range(seeds):
        for name, lines in follow(finished_step, MOMENTA, seed).items():
            runs.append({"momentum": name, "seed": seed, "lines": lines})
            print(name, seed, [(line["update"], line["teacher"]) for line in lines], flush=True)
        found = {
            "what": "20-NN accuracy of teacher and student on embedded pictures, tiny ViT",
            "machine": "one core of a shared x86-64 server CPU, float32",
            "torch": torch.__version__.partition("+")[0],
            "cpu_seconds": round(time.process_time() - start),
            "updates": UPDATES,
            "pictures": PICTURES,
            "size": SIZE,
            "gallery": GALLERY,
            "queries": QUERIES,
            "histogram": histogram_score(),
            "runs": runs,
        }
        path.write_text(json.dumps(found, indent=0) + "\n", encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition(":")[0])
    parser.add_argument("--seeds", type=int, default=3)
    main(parser.parse_args().seeds, MEASURED)
