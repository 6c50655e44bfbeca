"""Own photographs on the explorer page, as far as no browser is needed: what the page holds, how
its script makes a picture small (by Node.js, where it is), and what is said when something lacks.
"""

import base64
import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from dino_lib.backbone import create_backbone
from dino_lib.cli import main
from dino_lib.data.transforms import EvalTransform, as_seen
from dino_lib.look import own_photos
from dino_lib.look.explorer import PAGE, explore
from dino_lib.look.own_photos import FILES, PACKAGE, packed_runtime
from dino_lib.look.packing import compress

PICTURE = PAGE.with_name("explorer-picture.js")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
RUN = """
const jobs = JSON.parse(require("fs").readFileSync(0))
console.log(JSON.stringify(jobs.map(({ width, height, rgba, own }) => {
  const image = toChannels({ data: rgba, width, height }, own.mean.length)
  const seen = asSeen(image, own)
  return [seen.height, seen.width, [...seen.pixels], [...normalise(seen, own.mean, own.std)]]
})))
"""
SIZES = [(131, 97), (123, 97), (122, 97), (97, 131), (40, 30), (7, 5), (1, 1), (48, 48), (60, 200),
         (300, 2), (301, 200)]  # fmt: skip


@pytest.mark.skipif(shutil.which("node") is None, reason="needs Node.js")
@pytest.mark.parametrize("size", [None, 51, 40])  # at 51 a square has 8.5 patches
@pytest.mark.parametrize("channels", [3, 1])
def test_the_page_sees_a_picture_as_the_library_does(size, channels):
    """Bit for bit, as PIL 13 resizes; an older PIL takes the page's other order."""
    transform = EvalTransform(48, MEAN[:channels], STD[:channels])
    own = {"side": 48, "size": size, "patch": [6, 6], "mean": MEAN[:channels]}
    own |= {"std": STD[:channels], "tallFirst": int(PIL.__version__.split(".")[0]) >= 13}
    generator = np.random.default_rng(0)
    jobs, expected = [], []
    for height, width in SIZES:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        expected.append(as_seen(pixels, transform, (6, 6), size))
        rgba = np.concatenate([pixels, np.full((height, width, 1), 255, np.uint8)], 2)
        jobs.append({"width": width, "height": height, "rgba": rgba.ravel().tolist(), "own": own})
    words = ["node", "-e", PICTURE.read_text() + RUN]
    done = subprocess.run(words, input=json.dumps(jobs), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for (h, w, pixels, x), (seen, y), shape in zip(
        json.loads(done.stdout), expected, SIZES, strict=True
    ):
        assert (w, h) == seen.size, shape
        assert pixels == np.asarray(seen).ravel().tolist(), shape
        torch.testing.assert_close(torch.tensor(x).view_as(y), y, atol=1e-6, rtol=0)


# --- what the page holds --------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and stand-ins for the runtime's files, whose checksums are known."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    files = {kind: (name, hashlib.sha256(kind.encode()).hexdigest())
             for kind, (name, _) in FILES.items()}  # fmt: skip
    monkeypatch.setattr(own_photos, "FILES", files)
    return tmp_path / "cache" / "dino_lib" / PACKAGE


@pytest.fixture
def kept(cache):
    cache.mkdir(parents=True)
    for kind, (name, _) in FILES.items():
        (cache / name).write_bytes(kind.encode())
    return cache


def unpack(text):
    return gzip.decompress(base64.b64decode(text))


def test_what_is_kept_goes_into_the_page(kept):
    assert {kind: unpack(text) for kind, text in packed_runtime().items()} == {
        "script": b"script",
        "wasm": b"wasm",
    }


def test_another_file_is_refused(kept):
    (kept / FILES["wasm"][0]).write_bytes(b"another")
    with pytest.raises(ValueError, match=r"ort-wasm.*is not that of onnxruntime-web.*remove"):
        packed_runtime()


def test_npm_fetches_what_is_not_there_once(cache, tmp_path, monkeypatch, capsys):
    for kind, (name, _) in FILES.items():
        (tmp_path / name).write_bytes(kind.encode())
    asked = []

    def npm(words, **options):
        asked.append(words)
        with tarfile.open(Path(words[-1]) / "onnxruntime-web.tgz", "w:gz") as archive:
            for name, _ in FILES.values():
                archive.add(tmp_path / name, f"package/dist/{name}")
        return subprocess.CompletedProcess(words, 0, "", "")

    monkeypatch.setattr(own_photos.shutil, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(own_photos.subprocess, "run", npm)
    first = packed_runtime()
    assert packed_runtime() == first and len(asked) == 1 and PACKAGE in asked[0]
    assert "33 MB" in capsys.readouterr().out
    assert sorted(path.name for path in cache.iterdir()) == sorted(n for n, _ in FILES.values())


@pytest.mark.parametrize("npm, words", [(None, "install Node.js"), ("npm", "no route to the net")])
def test_what_lacks_is_said_in_a_line_before_anything_is_written(
    cache, tmp_path, monkeypatch, capsys, npm, words
):
    def fails(given, **options):
        return subprocess.CompletedProcess(given, 1, "", "npm error\nno route to the net")

    monkeypatch.setattr(own_photos.shutil, "which", lambda name: npm)
    monkeypatch.setattr(own_photos.subprocess, "run", fails)
    Image.new("RGB", (60, 60), "teal").save(tmp_path / "a.png")
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as end:
        main(["explore", str(tmp_path / "a.png"), "--own-photos", "--out", str(out)])
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.count("\n") == 1 and words in error
    assert not (out / "explorer.html").exists()


def test_a_page_holds_the_teacher_and_how_it_looks(kept, tmp_path, monkeypatch):
    """The network itself is what test_export.py compares; here a stand-in takes its place."""
    asked = []

    def write(path, backbone, transform, outputs):
        asked.append(outputs)
        path.write_bytes(b"a network")

    monkeypatch.setattr(own_photos, "write_onnx", write)
    torch.manual_seed(0)
    teacher = create_backbone("vit_tiny_patch16_224", img_size=48, patch_size=6, depth=1)
    teacher.transform = EvalTransform(48, MEAN, STD)
    pictures = [Image.new("RGB", (60, 60), colour) for colour in ("teal", "red")]
    page = explore(teacher, pictures, path=tmp_path / "a.html", own_photos=True)
    data = json.loads(re.search(r'id="data">(.*?)</script>', page.html, re.DOTALL)[1])
    [entry] = data["teachers"]
    own = entry["own"]
    assert asked == [("layers", "patches", "matrix")] and unpack(own["network"]) == b"a network"
    assert unpack(data["runtime"]["wasm"]) == b"wasm"
    assert (own["side"], own["size"], own["patch"]) == (48, None, [6, 6])
    assert own["mean"] == list(MEAN) and own["std"] == list(STD)
    directions = np.frombuffer(base64.b64decode(own["directions"]), np.float32)
    assert directions.size == 192 * len(entry["features"])
    plain = explore(teacher, pictures, path=tmp_path / "b.html")
    assert '"runtime":null' in plain.html and '"own":' not in plain.html


def test_a_network_that_is_no_plain_vit_is_refused(kept, tmp_path):
    cnn = create_backbone("resnet10t")
    cnn.transform = EvalTransform(64, MEAN, STD)
    with pytest.raises(TypeError, match="plain ViT"):
        explore(cnn, Image.new("RGB", (64, 64)), path=tmp_path / "a.html", own_photos=True)
    assert not (tmp_path / "a.html").exists()


def test_products_with_the_pages_features_are_those_along_its_directions():
    torch.manual_seed(0)
    tokens = torch.nn.functional.normalize(torch.randn(30, 64), dim=-1)
    values, scale, directions = compress(tokens)
    own = torch.nn.functional.normalize(torch.randn(5, 64), dim=-1)
    found = (own @ directions.float()) @ (values * scale).T
    along = directions.float() @ directions.float().T
    torch.testing.assert_close(found, own @ along @ tokens.T, atol=0.02, rtol=0)
    torch.testing.assert_close(found, own @ tokens.T, atol=0.02, rtol=0)  # 30 span less than 48
