"""Installs the course from this folder, without internet: `python3 install.py`."""

import subprocess
import sys
import time
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


def main():
    wheels = HERE / "wheels"
    [torch] = wheels.glob("torch-*.whl")
    wanted = torch.name.split("-")[2]  # cp311: CPython 3.11
    here = f"cp{sys.version_info.major}{sys.version_info.minor}"
    if here != wanted:
        sys.exit(f"error: these wheels are for Python {wanted[2]}.{wanted[3:]}, and this is "
                 f"{sys.version.split()[0]}: run python{wanted[2]}.{wanted[3:]} install.py")
    clock = time.perf_counter()
    venv.create(HERE / ".venv", with_pip=True, clear=True)
    programs = HERE / ".venv" / ("Scripts" if sys.platform == "win32" else "bin")
    pip = [str(programs / "python"), "-m", "pip", "install", "--quiet", "--no-index"]
    done = subprocess.run([*pip, "--find-links", str(wheels), "dino-lib[notebooks]"])
    if done.returncode:
        sys.exit("error: pip could not install; these wheels may be for another kind of machine")
    print(f"installed in {(time.perf_counter() - clock) / 60:.1f} minutes; now, in this folder:")
    print(f"  {programs / 'dino'} doctor\n  {programs / 'jupyter'} lab --notebook-dir notebooks")


if __name__ == "__main__":
    main()
