"""All measurements of speed and memory: `make bench`, or `python benchmarks/bench.py --out
runs/bench.json`.

Everything in turn in one process, medians over the rounds, and the ratio to a peer or a ceiling
beside the aim. It takes some five minutes on two CPU cores and wants the machine for itself;
--quick runs every line once on a tiny network, to see that it runs. Needs `pip install -e
'.[bench]'`.
"""

import argparse
import importlib
import json
import platform
from pathlib import Path

import torch

MODULES = ("views", "step")


def verdict(row):
    """ "met" or "missed", "" for a row without an aim."""
    if row.get("aim") is None:
        return ""
    met = row["ratio"] <= row["aim"] if row.get("sign") == "<=" else row["ratio"] >= row["aim"]
    return "met" if met else "missed"


def number(value):
    return "" if value is None else f"{value:.4g}"


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", default="runs/bench.json", help="the rows, as JSON")
    parser.add_argument("--only", choices=MODULES, help="one of the modules")
    parser.add_argument(
        "--quick", action="store_true", help="a tiny network, one round: does it run?"
    )
    args = parser.parse_args(argv)
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    found = []
    for name in [args.only] if args.only else MODULES:
        options = {"quick": True, "rounds": 1} if args.quick else {"rounds": args.rounds}
        found += importlib.import_module(name).rows(**options)
    print(f"{machine}\n{'figure':<72}{'ours':>9}{'peer':>9} {'unit':<9}{'ratio':>7}  aim")
    for row in found:
        aim = (
            f"{row.get('sign', '>=')} {row['aim']} {verdict(row)}"
            if row.get("aim") is not None
            else ""
        )
        print(
            f"{row['figure']:<72}{number(row['ours']):>9}{number(row['peer']):>9} "
            f"{row.get('unit', ''):<9}"
            f"{row['ratio']:7.2f}  {aim}"
        )
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(
        json.dumps({"machine": machine, "rounds": args.rounds, "rows": found}, indent=2)
    )


if __name__ == "__main__":
    main()
