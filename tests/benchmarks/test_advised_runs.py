"""What `benchmarks/advise.py` calls a collapse, and the folders that it writes."""

import importlib.util
from pathlib import Path

import pytest
from PIL import Image

from dino_lib.course.going_on import TWO_TEACHERS, advised, read_measured
from dino_lib.run.advise import HALF_LIVES, half_lives

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


def test_a_short_run_wants_the_teacher_that_a_longer_one_has_by_itself():
    """What 08, README and the comment beside LEAST_HALF_LIVES say."""
    rows = read_measured(TWO_TEACHERS)["rows"]
    assert {row["updates"] for row in rows} == {509, 1291}
    short, long = (
        [
            [row for row in rows if (row["updates"], row["half_lives"]) == (updates, list(shares))]
            for shares in (benchmark.SLOW_HALF_LIVES, HALF_LIVES)
        ]
        for updates in (509, 1291)
    )
    for slow, fast in (short, long):
        assert [row["seed"] for row in slow] == [row["seed"] for row in fast] == [0, 1, 2]
    slow, fast = short
    assert all(map(benchmark.collapsed, fast)) and not any(map(benchmark.collapsed, slow))
    assert {round(row["trained"]["rank"], 1) for row in fast} == {1.6, 1.8}
    assert all(5.15 < row["trained"]["rank"] < 5.95 for row in slow)
    assert all(
        a["trained"]["knn"] > b["trained"]["knn"] + 0.13 for a, b in zip(slow, fast, strict=True)
    )
    slow, fast = long
    assert not any(map(benchmark.collapsed, slow + fast))
    assert all(
        b["trained"]["knn"] > a["trained"]["knn"] + 0.06 for a, b in zip(slow, fast, strict=True)
    )
    # in updates the better ones are alike, and the adviser's
    for updates, shares in ((509, benchmark.SLOW_HALF_LIVES), (1291, HALF_LIVES)):
        of_best = [share * updates for share in shares]
        assert of_best == pytest.approx(half_lives(updates), rel=0.1)
    said = " ".join((PATH.parents[1] / "README.md").read_text("utf-8").split())

    def knn(rows):
        return [f"{of(100 * row['trained']['knn'] for row in rows):.1f}" for of in (min, max)]

    slow, fast = short
    assert "509 updates ends with a 20-NN of {} to {}%".format(*knn(fast)) in said
    assert "with 5 and 20% at {} to {}%".format(*knn(slow)) in said
    slow, fast = long
    assert "are ahead: {} to {}% against {} to {}%".format(*knn(fast), *knn(slow)) in said


def test_what_readme_and_08_say_of_three_minutes():
    rows = read_measured(advised(0, 3))["rows"]
    gains, leads = (
        {name: 100 * (row["trained"]["knn"] - row[than]["knn"]) for name, row in rows.items()}
        for than in ("untrained", "histogram")
    )
    updates = [row["updates"] for row in rows.values()]
    said = " ".join((PATH.parents[1] / "README.md").read_text("utf-8").split())
    assert f"({min(updates):,} to {max(updates):,} updates on one core" in said
    assert f"are {min(gains.values()):.0f} to {max(gains.values()):.0f} points of 20-NN" in said
    on_photographs = [leads[name] for name in ("caltech", "imagenette", "grey")]
    low, high = min(on_photographs), max(on_photographs)
    assert (
        f"{int(leads['creatures'])} points on the creatures, by {low:.0f} to {high:.0f} on "
        "photographs (100 to 160 queries,"
    ) in said
    queries = sorted(row["queries"] for name, row in rows.items() if name != "sixty")
    assert queries[0] == 100 and queries[-1] >= 160
    assert round(leads["sixty"] * rows["sixty"]["queries"] / 100) == 1  # query
    master = (PATH.parents[1] / "notebooks" / "masters" / "08_your_data.py").read_text("utf-8")
    assert (
        f"by {gains['creatures']:.0f} points on the creatures, {gains['caltech']:.0f} on "
        f"Caltech-101, {gains['imagenette']:.0f} on Imagenette, {gains['grey']:.0f} on the grey "
        f"photographs and {gains['sixty']:.0f} on the sixty"
    ) in master
