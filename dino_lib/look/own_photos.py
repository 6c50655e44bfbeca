"""What an explorer page needs to look at the visitor's own photographs, without a kernel.

That is each teacher as ONNX, and onnxruntime-web (MIT licence), which runs it in a browser. Its
WebAssembly has 14 MB, 3.7 packed: it is no part of this repository but fetched by npm, once.
"""

import base64
import gzip
import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import PIL
from torch import Tensor

from dino_lib.backbone import Backbone
from dino_lib.data.say import say
from dino_lib.data.transforms import EvalTransform
from dino_lib.look.packing import to_base64
from dino_lib.run.checkpoint import write_atomically
from dino_lib.teachers.graph import write_onnx

PACKAGE = "onnxruntime-web@1.30.0"
FILES = {  # of its folder dist: what it is in the page -> name, SHA-256
    "script": ("ort.wasm.bundle.min.mjs",
               "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90"),
    "wasm": ("ort-wasm-simd-threaded.wasm",
             "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}


def packed_runtime() -> dict[str, str]:
    """onnxruntime-web for a page: `script` and `wasm`, gzipped, as base64.

    It is kept in the user's cache; the first time npm fetches it. Raises OSError where npm is
    missing or fails, ValueError where a file is another than the one that was tested.
    """
    folder = _cache() / PACKAGE
    if not all((folder / name).is_file() for name, _ in FILES.values()):
        _fetch(folder)
    packed = {}
    for kind, (name, checksum) in FILES.items():
        content = (folder / name).read_bytes()
        if hashlib.sha256(content).hexdigest() != checksum:
            raise ValueError(f"{folder / name} is not that of {PACKAGE}: remove {folder}")
        packed[kind] = _pack(content)
    return packed


def packed_teacher(backbone: Backbone, transform: EvalTransform, directions: Tensor,
                   size: int | None) -> dict:
    """A teacher for a page: its `network` (ONNX, gzipped, base64), and how it sees a picture.

    directions (D, r) are those of `packing.compress`; size as in `explore`. Raises TypeError where
    the network is no plain ViT, ImportError without the packages of ONNX.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.onnx"
        write_onnx(path, backbone, transform, ("layers", "patches", "matrix"))
        network = _pack(path.read_bytes())
    return {
        "network": network, "directions": to_base64(directions.float()),
        "side": transform.size, "size": size, "patch": backbone.patch_size,
        "mean": transform.mean, "std": transform.std,
        "tallFirst": int(PIL.__version__.split(".")[0]) >= 13,  # the page resizes as PIL does here
    }


def _pack(content: bytes) -> str:
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dino_lib"


def _fetch(folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        names = " and ".join(name for name, _ in FILES.values())
        raise OSError(f"{PACKAGE} runs the teacher in the page and is fetched by npm, which is not "
                      f"here: install Node.js (npm is part of it), or put {names} from the "
                      f"package's folder dist into {folder}")
    say(f"fetching {PACKAGE} by npm (33 MB), once")
    with tempfile.TemporaryDirectory() as place:
        words = [npm, "pack", PACKAGE, "--silent", "--pack-destination", place]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        archives = list(Path(place).glob("*.tgz"))
        if done.returncode or not archives:
            reason = " ".join(done.stderr.split())[:200] or f"status {done.returncode}"
            raise OSError(f"npm could not fetch {PACKAGE}: {reason}")
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archives[0]) as archive:
            for name, _ in FILES.values():
                content = archive.extractfile(f"package/dist/{name}")
                with write_atomically(folder / name) as file:
                    shutil.copyfileobj(content, file)
