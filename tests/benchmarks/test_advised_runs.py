"""What `benchmarks/advise.py` calls a collapse, and the folders that it writes."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from dino_lib.course.going_on import TWO_TEACHERS, advised, read_measured
from dino_lib.run.advise import HALF_LIVES, OWN_HALF_LIVES

PATH = Path(__file__).parents[2] / "benchmarks" / "advise.py"
SPEC = importlib.util.spec_from_file_location("benchmark_advise", PATH)
benchmark = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(benchmark)


@pytest.mark.parametrize(
    ("gap", "findings", "expected"),
    [
        (0.3, [], False),
        (0.3, ["learning rate"], False),
        (0.07, [], False),
        (0.02, [], True),
        (0.3, ["dead prototypes"], True),
        (0.3, ["one prototype", "momentum"], True),
    ],
)
def test_a_collapse_is_a_narrow_gap_or_a_finding_that_says_so(gap, findings, expected):
    assert benchmark.collapsed({"gap": gap, "findings": findings}) is expected


def test_the_largest_classes_are_copied_in_one_kind(tmp_path):
    for name, n in [("few", 2), ("many", 5), ("some", 4), ("Faces_easy", 9)]:
        (tmp_path / "from" / name).mkdir(parents=True)
        for i in range(n):
            Image.new("RGB", (9, 9), (9 * i, 0, 0)).save(tmp_path / "from" / name / f"{i}.jpg")
    benchmark.copy(tmp_path / "from", tmp_path / "to", 2, 3, mode="L")
    found = sorted(
        path.relative_to(tmp_path / "to").as_posix() for path in tmp_path.rglob("to/*/*")
    )
    assert found == [f"{name}/{i}.png" for name in ("many", "some") for i in range(3)]
    with Image.open(tmp_path / "to" / "many" / "0.png") as image:
        assert image.mode == "L"


@pytest.mark.parametrize(("seed", "minutes"), [(0, 0.4), (1, 0.4), (2, 0.4), (0, 3)])
def test_no_shipped_run_collapsed_and_the_notebook_shows_every_folder(seed, minutes):
    shipped = read_measured(advised(seed, minutes))
    assert f"seed {seed};" in shipped["what"] and shipped["minutes"] == minutes
    assert tuple(shipped["rows"]) == benchmark.DATASETS
    assert not any(map(benchmark.collapsed, shipped["rows"].values()))


def test_pockets_own_teacher_keeps_more_of_the_features_with_every_seed():
    """What 08 and the comment beside OWN_HALF_LIVES say."""
    rows = read_measured(TWO_TEACHERS)["rows"]
    slow, fast = (
        [row for row in rows if row["half_lives"] == list(shares)]
        for shares in (OWN_HALF_LIVES["pocket"], HALF_LIVES)
    )
    assert [row["seed"] for row in slow] == [row["seed"] for row in fast] == [0, 1, 2]
    assert {row["updates"] for row in rows} == {520}
    assert not any(map(benchmark.collapsed, slow)) and sum(map(benchmark.collapsed, fast)) == 2
    assert all(5.4 < row["trained"]["rank"] < 6.05 for row in slow)
    assert all(1.3 < row["trained"]["rank"] < 2.45 for row in fast)
    behind = [row["trained"]["knn"] < row["untrained"]["knn"] for row in fast]
    assert sum(behind) == 1 and all(
        mine["trained"]["knn"] > max(other["trained"]["knn"], mine["histogram"]["knn"])
        for mine, other in zip(slow, fast, strict=True)
    )
