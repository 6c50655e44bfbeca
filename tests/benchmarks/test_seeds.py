"""README's five seeds of the preset `demo` are those that `benchmarks/seeds.py` measured."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from dino_lib import PRESETS
from dino_lib.teachers.load import SHIPPED

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks" / "seeds_demo.json").read_text())["rows"]
README = " ".join((ROOT / "README.md").read_text("utf-8").split())


def test_five_seeds_were_measured():
    assert [row["seed"] for row in ROWS] == [0, 1, 2, 3, 4]


def test_readme_quotes_every_seed_and_the_range_of_the_untrained():
    said = re.search(r"Five seeds, 0 to 4.*?to 0\.69\)", README)[0]
    knn = [f"{100 * row['knn_trained']:.1f}%" for row in ROWS]
    above = [f"{row['above_blind_trained']:.2f}" for row in ROWS]
    assert f"20-NN {', '.join(knn[:-1])} and {knn[-1]}" in said
    assert f"above blind {', '.join(above[:-1])} and {above[-1]}" in said
    for score, form, scale in (("knn", ".1f", 100), ("above_blind", ".2f", 1), ("auc", ".2f", 1)):
        values = [scale * row[f"{score}_untrained"] for row in ROWS]
        assert f"{min(values):{form}} to {max(values):{form}}" in said, score
    assert "0.96 to 0.97" in said
    assert {f"{row['auc_trained']:.2f}" for row in ROWS} == {"0.96", "0.97"}


def test_the_card_has_the_same_seeds_and_their_mean():
    path = ROOT / "dino_lib" / "teachers" / "demo" / "README.md"
    card = " ".join(path.read_text("utf-8").split())
    knn = [100 * row["knn_trained"] for row in ROWS]
    said = f"{', '.join(f'{one:.1f}' for one in knn[:-1])} and {knn[-1]:.1f} %"
    assert f"a 20-NN of {said} (`benchmarks/seeds.py`), mean {sum(knn) / len(knn):.1f}" in card


def test_each_seed_is_ahead_of_what_sees_no_object():
    for row in ROWS:
        assert row["knn_trained"] > max(row["knn_color_histogram"], row["knn_untrained"]) + 0.35
        blind = ("untrained", "blobs_trained", "contrast_trained")
        best = max(row[f"above_blind_{name}"] for name in blind)
        assert row["above_blind_trained"] > best + 0.3


def test_readme_says_at_which_share_one_head_is_ahead_of_the_blobs():
    said = re.search(r"The best single head of the five seeds.*?with more mass on all", README)[0]
    heads, blobs, untrained = (
        {share: [row[f"jaccard_{what}_{share}%"] for row in ROWS] for share in (60, 75, 90)}
        for what in ("one_head", "blobs", "one_head_untrained")
    )
    for share, words in (
        (60, "{} to {} there"),
        (75, "{} to {} with 75% of the mass"),
        (90, "{} to {} with 90%"),
    ):
        assert words.format(*(f"{of(heads[share]):.2f}" for of in (min, max))) in said
    assert f"untrained at most {max(max(of) for of in untrained.values()):.2f}" in said
    first, *others, last = (f"{max(of):.2f}" for of in blobs.values())
    assert f"for each picture, {first}, {', '.join(others)} and {last}" in said
    assert sum(a > b for a, b in zip(heads[60], blobs[60], strict=True)) == 3
    for share in (75, 90):
        assert min(heads[share]) > max(blobs[share])


def test_a_run_of_other_settings_is_not_taken_for_the_wanted(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import seeds

    shutil.copytree(SHIPPED / "demo", tmp_path / "seed0")
    assert seeds.scores(PRESETS["demo"], tmp_path / "seed0", None)["seed"] == 0
    for other in (PRESETS["laptop"], replace(PRESETS["demo"], seed=1)):
        with pytest.raises(ValueError, match="holds a run of"):
            seeds.scores(other, tmp_path / "seed0", None)
