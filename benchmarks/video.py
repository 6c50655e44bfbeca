"""Attention videos, wall time and peak memory at 10 and 60 seconds: `python benchmarks/video.py`.

Clips of 640 x 360 pixels at 25 frames a second are made here, creatures of the embedded dataset
that move over a textured ground, and each is turned into a video of all heads in a process of its
own. --teacher and --size choose who looks and at how many pixels; "untrained:MODEL" is a timm
model with random weights. Memory is the process's largest resident set, of which the libraries
take a part: the line "none" has them alone, with the teacher loaded.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RATE, SIZE = 25, (640, 360)


# the two that follow run in processes of their own and import for themselves: a process's largest
# resident set is never less than that of the one which started it, so that one stays small


def make_clip(path, seconds):
    from PIL import Image

    from dino_lib.data.shapes import Shapes
    from dino_lib.look.clips import write_clip

    ground = Image.effect_noise(SIZE, 40).convert("RGB")
    creatures = [image.resize((140, 140)) for image, _ in Shapes(3, seed=1)]
    with write_clip(path, ".mp4") as write:
        for i in range(seconds * RATE):
            frame, t = ground.copy(), i / RATE
            for k, creature in enumerate(creatures):
                x, y = math.sin(0.7 * t + 2 * k), math.cos((0.5 + 0.2 * k) * t)
                frame.paste(creature, (round(250 + 240 * x), round(110 + 105 * y)))
            write(frame, t, t + 1 / RATE)


def measure(name, size, source, out):
    import torch

    from dino_lib.backbone import create_backbone
    from dino_lib.data.transforms import EvalTransform
    from dino_lib.look.video import attention_video
    from dino_lib.run.teacher_file import Teacher
    from dino_lib.teachers.load import load_teacher

    if name.startswith("untrained:"):
        torch.manual_seed(0)
        backbone = create_backbone(name.removeprefix("untrained:"))
        teacher = Teacher(backbone, EvalTransform(224, (0.5,) * 3, (0.5,) * 3))
    else:
        teacher = load_teacher(name)
    clock = time.perf_counter()
    if source:
        attention_video(teacher, source, out, size=size)
    seconds = time.perf_counter() - clock
    unit = 1e6 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    print(
        json.dumps(
            {"seconds": seconds, "MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
        )
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", default="demo")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--seconds", type=int, nargs="+", default=[10, 60])
    parser.add_argument("--kind", choices=("mp4", "gif"), default="mp4", help="what is written")
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--measure", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.make:
        return make_clip(Path(args.make[0]), int(args.make[1]))
    if args.measure:
        return measure(args.teacher, args.size, *args.measure)
    print(f"{'clip':>8} {'frames':>7} {'wall time':>10} {'a frame':>9} {'peak memory':>12}")
    with tempfile.TemporaryDirectory() as folder:
        for seconds in [0, *args.seconds]:
            clip = Path(folder, f"{seconds}.mp4") if seconds else ""
            if seconds:
                subprocess.run(
                    [sys.executable, __file__, "--make", str(clip), str(seconds)], check=True
                )
            command = [
                sys.executable,
                __file__,
                "--teacher",
                args.teacher,
                "--size",
                str(args.size),
            ]
            done = subprocess.run(
                [*command, "--measure", str(clip), f"{folder}/out.{args.kind}"],
                check=True,
                stdout=subprocess.PIPE,
                text=True,
            )
            found, frames = json.loads(done.stdout), seconds * RATE
            print(
                f"{f'{seconds} s' if seconds else 'none':>8} {frames:7} {found['seconds']:8.1f} s "
                f"{1000 * found['seconds'] / max(frames, 1):6.0f} ms {found['MB']:9.0f} MB",
                flush=True,
            )


if __name__ == "__main__":
    main()
