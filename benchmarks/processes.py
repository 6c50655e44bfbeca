"""Two and three processes against one: `python benchmarks/processes.py --steps 50`.

The same global batches of 50 embedded images, which are no multiple of the batch of 12, train the
same network without batch norm (SyncBatchNorm refuses the CPU) on 1, 2 and 3 processes (gloo,
float32, CPU). Printed: the largest difference from one process in the student's and the teacher's
weights, in the key biases of attention (their true gradient is 0, so that Adam turns rounding into
drift), in the center, in the losses and in the teacher's features of 60 other images; and the
largest difference between the processes of one run, which should be 0. Fails above 1e-5 (the key
biases apart).
"""

import argparse
import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import torch.multiprocessing

from dino_lib.data.shapes import Shapes
from dino_lib.run.presets import PRESETS
from dino_lib.run.processes import process_group
from dino_lib.run.train import build_trainer

OPTIONS = {
    "img_size": 24,
    "patch_size": 6,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "mlp_ratio": 2.0,
}
CONFIG = replace(
    PRESETS["smoke"],
    limit=50,
    batch_size=12,
    store_size=24,
    global_size=24,
    local_size=12,
    n_local=2,
    out_dim=64,
    hidden_dim=64,
    bottleneck_dim=16,
    use_bn=False,
    conv_stem=False,
    drop_path=0.0,
    backbone_options=OPTIONS,
    lr=5e-4,
    min_lr=1e-6,
    warmup_epochs=0.5,
    freeze_last_layer=0.5,
    momentum=0.96,
    momentum_end=0.99,
    eval_every=0,
    save_every=1000,
    log_every=1,
    device="cpu",
    precision="fp32",
    progress=False,
)


def one_of(rank, processes, folder, steps, seed):
    """What each process does: the run, and what it ends with in a file."""
    torch.set_num_threads(1)
    config = replace(
        CONFIG,
        epochs=steps / (CONFIG.limit // CONFIG.batch_size),
        seed=seed,
        output_dir=f"{folder}/run",
    )

    def run():
        trainer = build_trainer(config, Shapes(config.limit, size=config.store_size))
        trainer.run()
        with torch.no_grad():
            images = Shapes(60, seed=5, size=24).images.float() / 255
            features = torch.nn.functional.normalize(trainer.teacher.backbone.eval()(images), dim=1)
        losses = torch.tensor([record["loss"] for record in trainer.history])
        torch.save(
            {
                "step": trainer.step,
                "student": trainer.student.state_dict(),
                "losses": losses,
                "teacher": trainer.teacher.state_dict(),
                "center": trainer.loss.center,
                "features": features,
            },
            f"{folder}/{rank}.pt",
        )

    if processes == 1:
        return run()
    with process_group(
        config, rank, init_method=(Path(folder) / "meet").as_uri(), rank=rank, world_size=processes
    ):
        run()


def ends_of(processes, steps, seed):
    """What each process of a run ended with."""
    with tempfile.TemporaryDirectory() as folder:
        # forked: imports are made once. No backward pass may have run in this process, so one
        # process is forked too
        torch.multiprocessing.start_processes(
            one_of, (processes, folder, steps, seed), processes, start_method="fork"
        )
        return [torch.load(f"{folder}/{rank}.pt", weights_only=True) for rank in range(processes)]


def differences(a, b):
    """The largest absolute differences of two ends, by kind."""
    found = {"steps": abs(a["step"] - b["step"]), "weights": 0.0, "key biases": 0.0}
    for model in ("student", "teacher"):
        for name, x in a[model].items():
            y, key = b[model][name], None
            if name.endswith("qkv.bias"):
                (q, key, v), (q_b, key_b, v_b) = x.chunk(3), y.chunk(3)
                x, y = torch.cat([q, v]), torch.cat([q_b, v_b])
                found["key biases"] = max(found["key biases"], (key - key_b).abs().max().item())
            found["weights"] = max(found["weights"], (x - y).abs().max().item())
    for name in ("center", "losses", "features"):
        if len(a[name]) and len(b[name]):  # rank 0 alone has the history
            found[name] = (a[name] - b[name]).abs().max().item()
    return found


def table(steps, seed, counts=(2, 3)):
    """processes -> (differences of their rank 0 from one process, of their other ranks from their
    rank 0).
    """
    (one,) = ends_of(1, steps, seed)
    result = {}
    for processes in counts:
        first, *others = ends_of(processes, steps, seed)
        result[processes] = differences(one, first), [differences(first, other) for other in others]
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    found, wrong = table(args.steps, args.seed), False
    print(
        f"after {args.steps} updates, largest difference from one process, "
        "and between the processes:"
    )
    for processes, (against_one, between) in found.items():
        apart = max(value for row in between for value in row.values())
        wrong |= apart > 0 or any(
            value > 1e-5 for name, value in against_one.items() if name != "key biases"
        )
        print(
            f"{processes} processes: "
            + ", ".join(f"{name} {value:.1e}" for name, value in against_one.items())
            + f"; between them {apart:.1e}"
        )
    if args.out:
        args.out.write_text(json.dumps(found, indent=1))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
