"""kill -9 and power cuts: `python benchmarks/kill.py`. No run is lost, and none ends differently.

A small run with everything that has a state (batch norm, drop path, a last layer that is frozen at
first, evaluations) writes a line of history at every update and a checkpoint at every third. First
it runs to its end. Then it is killed (SIGKILL) at 50 random moments, each time in a process of its
own that goes on from what the one before left: half of the kills wait for a save to begin. Last,
power cuts: the newest checkpoint of a half-done run is cut at 20 random lengths, and then has a bit
flipped, and then a page of zeros, at 20 random places each; every time the run goes on.

The command fails unless the newest checkpoint is whole after every kill and no older than any that
was seen before, every damage is reported and the checkpoint before it used, and every run ends with
the weights, the optimizer, the center, the teacher's file and the history (but for its clocks) of
the uninterrupted one, bit for bit. `--quick` takes seconds: a shorter run, 4 kills, 2 of each
damage.
"""

import argparse
import contextlib
import io
import multiprocessing
import random
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from dino_lib.data.shapes import Shapes
from dino_lib.run.checkpoint import load_newest, read_checkpoint
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.train import train

CONFIG = replace(
    PRESETS["smoke"],
    limit=None,
    batch_size=8,
    warmup_epochs=1,
    drop_path=0.3,
    freeze_last_layer=2.0,
    store_size=24,
    global_size=24,
    local_size=12,
    backbone_options={"img_size": 24, "patch_size": 6, "embed_dim": 32, "depth": 2, "num_heads": 2},
    log_every=1,
    save_every=0.5,
    eval_every=2,
    device="cpu",
    precision="fp32",
    progress=False,
)
PER_EPOCH = 6  # updates: of the 60 images 48 are trained on
CLOCKS = ("seconds", "waited", "images_per_second", "input_share")


def live(config, log):
    """A life of the run, in a process of its own."""
    torch.set_num_threads(1)
    with open(log, "a") as file, contextlib.redirect_stdout(file):
        train(replace(config, resume="auto"))


def outcome(folder):
    """All that a finished run leaves, less its clocks."""
    state = load_newest(folder / "checkpoints")
    history = [
        {k: v for k, v in record.items() if k not in CLOCKS} for record in read_history(folder)
    ]
    return (
        {k: v for k, v in state.items() if k not in ("config", *CLOCKS)},
        history,
        load_file(folder / "teacher.safetensors"),
    )


def same(a, b):
    """Whether two nested values are equal, their tensors bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return torch.equal(a, b) if torch.is_tensor(a) else a == b


def steps(folder):
    """The steps of the checkpoints in a run's folder, oldest first."""
    return sorted(
        int(path.stem.removeprefix("step_")) for path in (folder / "checkpoints").glob("step_*.pt")
    )


def kill_many(context, config, kills, life, chance):
    """Kill the run so many times, after at most 2 * life seconds each; returns what was found, by
    name.
    """
    folder = Path(config.output_dir)
    found, seen = {"in a save": 0, "in the history": 0, "lost": 0, "damaged": 0}, 0
    for _ in range(kills):
        process = context.Process(target=live, args=(config, folder.with_suffix(".log")))
        process.start()
        time.sleep(chance.uniform(0, 2 * life))
        if chance.random() < 1 / 2:
            while process.is_alive() and not [*(folder / "checkpoints").glob("*.part")]:
                pass
            time.sleep(chance.uniform(0, 0.005))  # about what a save takes
        seen = max([seen, *steps(folder)])
        process.kill()
        process.join()
        if process.exitcode != -9:
            sys.exit(
                f"the run was over before its kill (exit status {process.exitcode}): "
                "take more --updates"
            )
        found["in a save"] += bool([*(folder / "checkpoints").glob("*.part")])
        found["in the history"] += (folder / "history.jsonl.part").exists()
        for step in steps(folder):
            try:
                read_checkpoint(folder / "checkpoints" / f"step_{step:08d}.pt")
            except ValueError as error:
                found["damaged"] += 1
                print(error)
        found["lost"] += seen > max([0, *steps(folder)])
    return found


def damages(data, count, chance):
    """(name, damaged bytes) of a file: cut short, a flipped bit, a page of zeros."""
    for length in [0, len(data) - 1, *(chance.randrange(len(data)) for _ in range(count - 2))]:
        yield f"cut at {length} of {len(data)} bytes", data[:length]
    for _ in range(count):
        place, bit = chance.randrange(len(data)), chance.randrange(8)
        yield (
            f"bit {bit} of byte {place} flipped",
            data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :],
        )
    for _ in range(count):
        start = chance.randrange(len(data)) // 4096 * 4096
        zeros = bytes(len(data[start : start + 4096]))
        yield f"zeros from byte {start}", data[:start] + zeros + data[start + 4096 :]


def cut_many(config, half, whole, count, chance):
    """Damage the newest checkpoint of a half-done run and go on, many times: (undetected, not
    recovered, differing).
    """
    folder, wrong, tried = Path(config.output_dir), [0, 0, 0], 0
    before, newest = steps(half)[-2:]
    data = (half / "checkpoints" / f"step_{newest:08d}.pt").read_bytes()
    for name, damaged in damages(data, count, chance):
        if damaged == data:
            continue  # the page was all zeros
        tried += 1
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(half, folder)
        path = folder / "checkpoints" / f"step_{newest:08d}.pt"
        path.write_bytes(damaged)
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            state = load_newest(folder / "checkpoints")
            train(replace(config, resume="auto"))
        verdicts = (
            f"{path} is damaged" in printed.getvalue(),
            state["step"] == before,
            same(outcome(folder), whole),
        )
        wrong = [n + (not right) for n, right in zip(wrong, verdicts, strict=True)]
        if not all(verdicts):
            print(f"{name}: detected, recovered, equal in the end: {verdicts}")
    return tried, wrong


def stop_half_way(config, updates):
    """Run a config up to some update, by an interrupt that saves."""

    def on_log(record):
        if record["step"] == updates:
            raise KeyboardInterrupt

    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(KeyboardInterrupt):
        train(config, on_log=on_log)


def main(argv=None):
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--updates", type=int, default=900)
    parser.add_argument("--cuts", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args(argv)
    if args.quick:
        args.kills, args.updates, args.cuts = 4, 42, 2
    torch.set_num_threads(1)
    chance = random.Random(args.seed)
    context = multiprocessing.get_context(
        "fork" if sys.platform == "linux" else "spawn"
    )  # fork: no imports each time
    with tempfile.TemporaryDirectory() as place:
        place, shapes = Path(place), Shapes(60, size=24)
        for i in range(60):
            image, label = shapes[i]
            (place / "images" / f"{label % 3}").mkdir(parents=True, exist_ok=True)
            image.save(place / "images" / f"{label % 3}" / f"{i:02d}.png")
        config = replace(CONFIG, dataset=str(place / "images"), epochs=args.updates / PER_EPOCH)

        clock = time.perf_counter()
        once = replace(config, output_dir=str(place / "whole"))
        process = context.Process(target=live, args=(once, place / "whole.log"))
        process.start()
        process.join()
        seconds, whole = time.perf_counter() - clock, outcome(place / "whole")
        print(
            f"uninterrupted: {args.updates} updates, {args.updates // 3} saves, in {seconds:.1f} s",
            flush=True,
        )

        config = replace(config, output_dir=str(place / "killed"))
        clock = time.perf_counter()
        life = 0.25 * seconds / args.kills  # the first run may have been the slowest by far
        found = kill_many(context, config, args.kills, life, chance)
        live(config, place / "killed.log")
        equal = same(outcome(place / "killed"), whole)
        print(
            f"{args.kills} kills: {found['in a save']} left half a checkpoint, "
            f"{found['in the history']} half a history; checkpoints lost {found['lost']}, "
            f"damaged {found['damaged']}; in the end bit for bit the "
            f"uninterrupted run: {equal}; {time.perf_counter() - clock:.0f} s",
            flush=True,
        )

        clock = time.perf_counter()
        config = replace(CONFIG, dataset=str(place / "images"), epochs=2)
        stop_half_way(replace(config, output_dir=str(place / "half")), 8)
        with contextlib.redirect_stdout(io.StringIO()):
            train(replace(config, output_dir=str(place / "short")))
        tried, wrong = cut_many(
            replace(config, output_dir=str(place / "cut")),
            place / "half",
            outcome(place / "short"),
            args.cuts,
            chance,
        )
        print(
            f"{tried} power cuts: undetected {wrong[0]}, not recovered from the checkpoint "
            f"before {wrong[1]}, "
            f"different in the end {wrong[2]}; {time.perf_counter() - clock:.0f} s"
        )
    sys.exit(0 if equal and not (found["lost"] or found["damaged"] or any(wrong)) else 1)


if __name__ == "__main__":
    main()
