"""All runs of notebook 07, three seeds each: `python benchmarks/collapse.py`.

Trains every variant of `dino_lib/course/collapse_runs.py` and writes what it measures to
dino_lib/course/measured/collapse.json after each run; a run that is there already is not repeated
(--again NAME repeats a variant's). 45 runs of 100 updates take some minutes on one idle core.
"""

import argparse
import json
import platform
import time

import torch

from dino_lib.course.collapse_runs import (
    HEALTHY,
    MEASURED,
    VARIANTS,
    build,
    histogram_knn,
    measure,
    read_measured,
    run,
)

UPDATES, EVERY = 100, 5  # of the curves, each fifth update is kept, the mean of five


def untrained(seed):
    """What the student is worth before its first update, and the frozen random teacher for good."""
    return measure(build(HEALTHY, seed))


def thin(values):
    """The mean of each EVERY values, to four digits."""
    means = torch.tensor(values).view(-1, EVERY).mean(1)
    return [float(f"{v:.4g}") for v in means.tolist()]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--again", nargs="*", default=[], help="variants to measure anew")
    options = parser.parse_args()
    torch.set_num_threads(1)

    about = {"updates": UPDATES, "every": EVERY, "machine": f"{platform.machine()} CPU, one core",
             "torch": torch.__version__}  # fmt: skip
    found = read_measured() if MEASURED.exists() else {"about": about, "runs": {}}
    found["histogram"] = histogram_knn()
    found["untrained"] = [untrained(seed) for seed in options.seeds]
    for name in options.again:
        found["runs"].pop(name, None)
    for seed in options.seeds:
        for name, setting in VARIANTS.items():
            runs = found["runs"].setdefault(name, {})
            if str(seed) in runs:
                continue
            start = time.process_time()
            one = run(setting, seed, UPDATES)
            curves = {key: thin(values) for key, values in one["log"].items()}
            scores = {key: round(value, 4) for key, value in one["scores"].items()}
            runs[str(seed)] = {"scores": scores, "curves": curves}
            MEASURED.parent.mkdir(exist_ok=True)
            MEASURED.write_text(json.dumps(found) + "\n", encoding="utf-8")
            print(f"{name}, seed {seed}: {time.process_time() - start:.0f} s", scores, flush=True)


if __name__ == "__main__":
    main()
