"""Notebook 06 works for whatever teacher and photograph stand at its top: every cell of the
student's copy runs with them, on fewer pictures.

No weights are downloaded: the files have the official layouts and random weights, and timm's
network is the real one with two blocks.
"""

import ast
import contextlib
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch

from dino_lib import PRESETS, create_backbone, train
from dino_lib.data import datasets
from dino_lib.data.images import PHOTOS
from dino_lib.data.shapes import Shapes
from dino_lib.run import build
from dino_lib.teachers import load

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "notebooks"))
from build import MASTERS, make_copy, read_master  # noqa: E402

SETTINGS = 'TEACHER = "demo"\nPHOTO = PHOTOS / "llama.jpg"'
FEWER = ("limit=400", "limit=24")


@pytest.fixture(scope="module", autouse=True)
def drawn_once():
    """Drawing 5,000 embedded pictures takes seconds: a fiftieth of them, and once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "_shapes", lambda n, seed: Shapes(n // 50, seed=seed))
        probes = build.open_probes(PRESETS["demo"], limit=24)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "open_probes", lambda config, limit: probes)
        yield


def run(teacher, photo):
    """What the cells print, and their names, with this teacher and this photograph."""
    names, said = {"__name__": "notebook"}, io.StringIO()
    sources = [
        c.source
        for c in make_copy(read_master(MASTERS / "06_attention.py"), "student").cells
        if c.cell_type == "code" and "\n%" not in f"\n{c.source}"
    ]
    text = "\n\n".join(sources)
    assert text.count(SETTINGS) == 1 and text.count(FEWER[0]) == 1
    text = text.replace(SETTINGS, f"TEACHER = {str(teacher)!r}\nPHOTO = {str(photo)!r}")
    with contextlib.redirect_stdout(said):
        exec(compile(ast.parse(text.replace(*FEWER)), "<notebook 06>", "exec"), names)
    assert "wrong" not in said.getvalue()
    assert said.getvalue().count("not done yet") == 8
    return names, said.getvalue()


def official(folder, **options):
    """The weights of a random ViT under the official names; pos_embed has the CLS token's place."""
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=64, **options)
    state = {
        name: value + 0.02 * torch.randn_like(value) for name, value in vit.state_dict().items()
    }
    if "reg_token" in state:
        state["register_tokens"] = state.pop("reg_token")
        cls = torch.zeros_like(state["pos_embed"][:, :1])
        state["pos_embed"] = torch.cat([cls, state["pos_embed"]], 1)
        state["mask_token"] = torch.zeros(1, state["pos_embed"].shape[-1])
    path = folder / "official.pth"
    torch.save(state, path)
    return path


def test_another_teacher_that_ships():
    names, _ = run("photos", PHOTOS / "car_side.jpg")
    assert names["n_heads"] == 8


def test_a_runs_folder(tmp_path):
    config = replace(PRESETS["smoke"], epochs=1, output_dir=str(tmp_path / "run"))
    with contextlib.redirect_stdout(io.StringIO()):
        train(config)
    names, _ = run(tmp_path / "run", PHOTOS / "watch.jpg")
    assert names["n_heads"] == 2 and names["teacher"].config.limit == 64


def test_a_file_with_the_official_layout(tmp_path):
    names, _ = run(official(tmp_path), PHOTOS / "panda.jpg")
    assert names["n_heads"] == 3 and names["teacher"].config is None
    assert names["grid"] != [16, 16]


def test_a_file_of_dinov2_with_twelve_heads_and_four_registers(tmp_path):
    sizes = {"embed_dim": 96, "depth": 2, "num_heads": 12, "init_values": 0.5}
    path = official(tmp_path, **sizes, reg_tokens=4, no_embed_class=True)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 12}))
    names, said = run(path, PHOTOS / "flamingo.jpg")
    assert names["n_heads"] == 12 and names["network"].num_prefix_tokens == 5
    assert "5 token(s) before those of the patches" in said


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_224.dino", "vit_small_patch16_dinov3.lvd1689m"]
)
def test_timms_names(name, monkeypatch):
    def random_weights(name, *, pretrained):
        torch.manual_seed(0)
        return create_backbone(name, depth=2)

    monkeypatch.setattr(load, "create_backbone", random_weights)
    names, _ = run(f"timm:{name}", PHOTOS / "rooster.jpg")
    assert names["n_heads"] == 6 and names["teacher"].config is None
    assert names["network"].num_prefix_tokens == (5 if "dinov3" in name else 1)
