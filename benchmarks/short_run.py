"""The short run of notebook 05 with several seeds: `python benchmarks/short_run.py`.

The cells of the solved notebook up to the table of its run, as they stand, with the seeds 0 to 4
for the weights, the order of the pictures and their views. For each seed: the gap between the two
entropies at the end as a share of ln K, and 20-NN and above blind of the teacher, beside those of
the same network untrained, a colour histogram and local contrast. With one thread some five
minutes. Writes short_run.json beside this file, to which a test holds the notebook's words.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import torch

ROOT = Path(__file__).parents[1]
MEASURED = Path(__file__).with_suffix(".json")
sys.path.insert(0, str(ROOT / "notebooks"))
from build import MASTERS, make_copy, read_master  # noqa: E402

LAST = "for name, score in table.items()"  # in the cell that prints the table
SEEDED = {
    'preset = PRESETS["demo"]': 'preset = replace(PRESETS["demo"], seed={seed})',
    "torch.manual_seed(0)\nrun, history": "torch.manual_seed({seed})\nrun, history",
}


def sources(seed):
    """The code of the notebook's cells, in order, with another seed."""
    found = []
    for cell in make_copy(read_master(MASTERS / "05_training.py"), "solved").cells:
        if cell.cell_type == "code" and "\n%" not in f"\n{cell.source}":
            found.append(cell.source)
            if LAST in cell.source:
                break
    text = "\n\n".join(found)
    for plain, seeded in SEEDED.items():
        assert text.count(plain) == 1, plain
        text = text.replace(plain, seeded.format(seed=seed))
    return text


def run(seed):
    """What the notebook's run with a seed came to."""
    screen = SimpleNamespace(update=lambda figure: None)
    names = {"__name__": "notebook", "display": lambda *_, **__: screen}
    exec(compile(sources(seed), "<notebook 05>", "exec"), names)
    last, ln_k = names["history"][-1], math.log(names["preset"].out_dim)
    table = names["table"]
    return {
        "seed": seed,
        "gap": round((last["mean_entropy"] - last["teacher_entropy"]) / ln_k, 4),
        **{f"{name}, {key}": round(table[name][key], 3)
           for name in ("untrained", "your run") for key in ("knn", "above_blind")},
        "local contrast, above_blind": round(table["untrained"]["above_blind_contrast"], 3),
        "histogram, knn": round(names["histogram_scores"](names["probes"])["knn"], 3),
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=MEASURED)
    args = parser.parse_args()
    matplotlib.use("agg")
    torch.set_num_threads(1)
    rows = []
    for seed in range(args.seeds):
        rows.append(run(seed))
        print(json.dumps(rows[-1]), flush=True)
    found = {
        "what": "notebook 05's short run, 125 updates of 16 pictures; gap as a share of ln K",
        "machine": "one core of a shared x86-64 server CPU, float32",
        "torch": torch.__version__.partition("+")[0],
        "rows": rows,
    }
    args.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
