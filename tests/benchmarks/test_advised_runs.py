"""What `benchmarks/advise.py` calls a collapse, and the folders that it writes."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from dino_lib.course.going_on import advised, read_measured

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
