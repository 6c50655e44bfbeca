"""Put a finished run among the teachers that ship: `ship.py RUN NAME [--half]`.

Copies the history and the report, and writes the weights, the head with its center (of the run's
newest checkpoint) and the settings without this machine's paths. `--half` stores float16, half the
size; loading makes float32 of it again.
"""

import argparse
import dataclasses
import shutil
from pathlib import Path

from dino_lib.run.teacher_file import save_head, save_teacher
from dino_lib.teachers.load import HEAD, SHIPPED, load_head, load_teacher

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("run", type=Path, help="the run's folder, with a report.json")
parser.add_argument("name", help="the name that load_teacher will know")
parser.add_argument("--half", action="store_true", help="store float16")
options = parser.parse_args()

teacher = load_teacher(options.run)
head, center = load_head(options.run)
config = dataclasses.replace(
    teacher.config, data_root="data", download=True, output_dir=f"runs/{options.name}",
    resume="never")
folder = SHIPPED / options.name
folder.mkdir(exist_ok=True)
for name in ("history.jsonl", "report.json"):
    shutil.copyfile(options.run / name, folder / name)
(folder / "config.json").write_text(config.to_json() + "\n")
backbone = teacher.model.half() if options.half else teacher.model
path = folder / "teacher.safetensors"
save_teacher(path, backbone, config, **teacher.about)
save_head(folder / HEAD, head.half() if options.half else head, center, config, **teacher.about)
print(f"{folder}: {path.stat().st_size / 1e6:.1f} MB")
