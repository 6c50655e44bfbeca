"""A folder with the whole course for machines without internet: `make bundle`.

The folder, and an archive of it, hold the wheels for machines of this kind (system, processor and
Python), the notebooks, the workshop, the teachers (they ship in the library's wheel), the site, and
install.py, which needs no internet. The slides come along where `make slides` has made them.

On Linux torch brings CUDA along, most of the size. With --cpu (`make bundle CPU=1`) pip looks in
PyTorch's own index too, and takes its builds for the CPU: their version, such as 2.14.1+cpu, counts
as the newer one.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PARTS = {"notebooks": "notebooks", "workshop": "workshop", "figures": "figures",
         "runs/site": "site", "runs/slides": "slides"}
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
LEFT_OUT = shutil.ignore_patterns("my_pieces", "runs", ".ipynb_checkpoints", "__pycache__")


def download(wheels, cpu):
    """The library's wheel and all that it and the notebooks need, in the tested versions.

    cpu: torch and torchvision without CUDA. Exits where pip found only those with it.
    """
    pip = [sys.executable, "-m", "pip"]
    build = [*pip, "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    subprocess.run(build, check=True)
    [own] = wheels.glob("dino_lib-*.whl")
    needs = f"dino-lib[notebooks] @ {own.as_uri()}"
    tested = ["--constraint", str(ROOT / "requirements.txt")]
    words = ["--quiet", "--only-binary", ":all:", "--dest", str(wheels), *tested, needs]
    words += ["--extra-index-url", CPU_INDEX] if cpu else []
    subprocess.run([*pip, "download", *words], check=True)
    with_cuda = [path.name for path in wheels.glob("torch*.whl") if "+cpu" not in path.name]
    if cpu and with_cuda and sys.platform == "linux":
        sys.exit(f"error: {CPU_INDEX} gave no build for the CPU of: {', '.join(with_cuda)}")


def size(folder):
    """The bytes of all files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "bundle")
    parser.add_argument("--cpu", action="store_true", help="torch without CUDA: far smaller")
    args = parser.parse_args()
    out = args.out.resolve()
    folder = out / "dino-course"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "wheels").mkdir(parents=True)
    download(folder / "wheels", args.cpu)
    for source, target in PARTS.items():
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, folder / target, ignore=LEFT_OUT)
        else:
            print(f"left out: {source} has not been made")
    for path in (HERE / "install.py", HERE / "README.txt", ROOT / "LICENSE"):
        shutil.copy(path, folder)
    for part in sorted(folder.iterdir()):
        if part.is_dir():
            print(f"{part.name:10} {size(part) / 1e6:7.1f} MB")
    archive = shutil.make_archive(str(folder), "tar", out, folder.name)  # wheels are compressed
    print(f"{archive}: {Path(archive).stat().st_size / 1e6:.0f} MB; see README.txt in it")


if __name__ == "__main__":
    main()
