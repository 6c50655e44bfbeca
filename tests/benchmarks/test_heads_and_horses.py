"""The benchmarks that ask what a head knows of objects run, and their rows are the measures."""

import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import heads
import horses

from dino_lib.backbone import create_backbone
from dino_lib.data import datasets
from dino_lib.data.shapes import Shapes
from dino_lib.measure.components import principal_components
from dino_lib.measure.features import patch_features
from dino_lib.measure.heads import foreground
from dino_lib.measure.masks import above_blind, patch_masks
from dino_lib.teachers.load import load_teacher

MADE = ("first component", "unlike the border")
READ = (
    "its tokens",
    "its stem",
    *(f"its {what}, untrained, seed {seed}" for seed in range(3) for what in ("tokens", "stem")),
    "the mean colour",
    "where a patch lies",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six creatures, laid out as the horses are; the masks are smaller than the pictures."""
    folder = tmp_path_factory.mktemp("horses")
    data = Shapes(6, seed=3, size=60)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for i in range(6):
        picture = Image.fromarray(data.images[i].permute(1, 2, 0).numpy()).resize((90, 60))
        picture.save(folder / "images" / f"{i}.jpg", quality=95)
        mask = Image.fromarray(data.masks[i].numpy().astype("uint8") * 255).resize((60, 40))
        mask.save(folder / "masks" / f"{i}.png")
    return folder


def test_horses_are_middle_squares_with_their_masks(folder):
    images, masks = horses.read_horses(folder, 48)
    assert images.shape == (6, 3, 48, 48) and images.dtype == torch.uint8
    assert masks.shape == (6, 48, 48) and masks.dtype == torch.bool
    # stretched to 90 x 60 and cut to the middle 60 x 60
    whole = Shapes(6, seed=3, size=60).masks[:, :, 10:50].float()[:, None]
    expected = torch.nn.functional.interpolate(whole, (48, 48), mode="bilinear")[:, 0] > 0.5
    assert (masks == expected).float().mean() > 0.95


def test_a_teacher_stands_beside_what_knows_nothing(folder, tmp_path, capsys):
    out = tmp_path / "horses.json"
    arguments = ["demo", "--data", str(folder), "--size", "48", "--out", str(out)]
    assert horses.main(arguments) == 0
    rows = json.loads(out.read_text())
    assert [row["what"] for row in rows] == [
        "demo",
        "its heads, other pictures' masks",
        "the mean of its heads",
        *(f"untrained, seed {seed}" for seed in range(3)),
        "8 blobs",
        "one blob",
        "local contrast",
        "distance from the mean colour",
        "darkness",
        "red less green",
        *(f"{made}: {what}" for what in READ[:-1] for made in MADE),
        *(f"readout with masks: {what}" for what in READ),
    ]
    teacher = load_teacher("demo")
    images, masks = horses.read_horses(folder, 48)
    look = {"mean": teacher.transform.mean, "std": teacher.transform.std}
    maps = horses.attention(teacher.model, images, **look)
    expected = above_blind(maps, patch_masks(masks, (8, 8)))
    torch.testing.assert_close(torch.tensor(rows[0]["above blind"]), expected)
    assert rows[0]["chosen"] == foreground(maps).argmax() and rows[6]["chosen"] is None
    mean = above_blind(maps.mean(1, keepdim=True), patch_masks(masks, (8, 8)))
    torch.testing.assert_close(torch.tensor(rows[2]["above blind"]), mean)
    x = horses.normalize(images, **look)
    tokens = patch_features(teacher, x)
    for what, maps in [
        ("first component", principal_components(tokens)),
        ("unlike the border", horses.unlike_the_border(tokens)),
        ("readout with masks", horses.readout(tokens, patch_masks(masks, (8, 8)))),
    ]:
        of_tokens = next(one for one in rows if one["what"] == f"{what}: its tokens")
        expected_of_tokens = above_blind(maps, patch_masks(masks, (8, 8)))
        torch.testing.assert_close(torch.tensor(of_tokens["above blind"]), expected_of_tokens)
    table = capsys.readouterr().out
    assert "demo: 6 horses, 48 px, 8 x 8 patches" in table
    chosen = rows[0]["above blind"][rows[0]["chosen"]]
    assert f"| demo | {chosen:.2f}; {expected.max():.2f} |" in table


def test_unlike_the_border_against_a_loop():
    tokens = torch.randn(2, 4, 5, 3, generator=torch.Generator().manual_seed(0))
    maps = horses.unlike_the_border(tokens, k=2)
    border = [(y, x) for y in range(4) for x in range(5) if y in (0, 3) or x in (0, 4)]
    for n in range(2):
        for y in range(4):
            for x in range(5):
                alike = sorted(
                    torch.cosine_similarity(tokens[n, y, x], tokens[n, i, j], dim=0).item()
                    for i, j in border
                )
                assert maps[n, 0, y, x].item() == pytest.approx(1 - sum(alike[-2:]) / 2, abs=1e-5)


def test_a_readout_finds_what_tokens_hold_and_nothing_by_the_place():
    generator = torch.Generator().manual_seed(0)
    masks = Shapes(60, seed=5).masks
    objects = patch_masks(masks, (8, 8))
    noise = torch.randn(60, 8, 8, 4, generator=generator)
    told = torch.cat([noise, noise[..., :1] + 4 * objects[..., None]], -1)
    maps = horses.readout(told, objects)
    assert maps.shape == (60, 1, 8, 8)
    assert above_blind(maps, objects) > 0.95
    assert above_blind(horses.readout(noise, objects), objects).abs() < 0.1
    assert above_blind(horses.readout(horses.places(60, (8, 8)), objects), objects).abs() < 0.15
    # a picture's own mask has no say in its map
    other = objects.clone()
    other[0] = ~other[0]
    torch.testing.assert_close(horses.readout(told, other)[0], maps[0])


def test_without_horses_a_line_says_so(tmp_path, capsys):
    assert horses.main(["demo", "--data", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"skipped: no horses in {tmp_path}")


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    options = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
    return create_backbone("vit_tiny_patch16_224", reg_tokens=2, **options).eval()


@torch.no_grad()
def test_what_a_head_writes_is_its_part_of_the_attentions_output(vit):
    x = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    attention = vit.model.blocks[-1].attn
    attention.proj.bias.zero_()
    found = []
    hook = attention.register_forward_hook(lambda module, inputs, output: found.append(output))
    vit(x)
    hook.remove()
    wrote = heads._wrote(vit, x)
    assert wrote.shape == (2, 3, 24)
    torch.testing.assert_close(wrote.sum(1), found[0][:, 0], atol=1e-5, rtol=1e-4)


def test_every_criterion_scores_every_head(vit):
    data = Shapes(20, seed=1)
    look = heads.look_at(vit, data.images, (0.5,) * 3, (0.25,) * 3)
    for name, criterion in heads.CRITERIA.items():
        scores = criterion(look)
        assert scores.shape == (3,) and scores.isfinite().all(), name
    found = heads.choices(vit, data.images, data.masks, (0.5,) * 3, (0.25,) * 3)
    assert set(found["chosen"]) == {*heads.CRITERIA, "a random head", "head 0"}
    assert found["chosen"]["a random head"] == pytest.approx(sum(found["heads"]) / 3)


def test_the_table_holds_ratios_to_the_best_head():
    found = {
        "a": {"heads": [0.5, 0.25], "chosen": {"x": 0.25, "y": 0.5}},
        "b": {"heads": [0.1, -0.9], "chosen": {"x": -0.9, "y": 0.1}},
    }
    assert heads.choice_table(found).splitlines()[2:] == [
        "| best head | 0.50 | 0.10 | |",
        "| y | 1.00 | 1.00 | 1.000 |",
        "| x | 0.50 | -1.00 | -0.250 |",
    ]


def test_the_heads_of_the_shipped_demo(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets, "_shapes", lambda n, seed: Shapes(n // 50, seed=seed))
    out = tmp_path / "heads.json"
    heads.main(["demo", "--n", "20", "--out", str(out)])
    tables = json.loads(out.read_text())["heads"]["demo"]
    assert {len(column) for column in tables.values()} == {8}
    assert "20-NN lost" in tables and "mean map lost" in tables
    assert "The heads of demo:" in capsys.readouterr().out
