"""`make gpu` without a GPU: all that it would measure runs, on a CPU and small; its words are
right; it goes on where it was cut off.
"""

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import card
import gpu
import gpu_report
import step

from dino_lib import cli
from dino_lib.run.history import read_history

CPU = torch.device("cpu")


@pytest.fixture
def contestants(monkeypatch):
    """Without the compiled one, which takes a minute."""
    few = {name: make for name, make in card.CONTESTANTS.items() if "compiled" not in name}
    monkeypatch.setattr(card, "CONTESTANTS", few)
    return few


def test_all_that_a_card_is_asked_runs_on_a_cpu(contestants):
    def broken(config, device):
        raise RuntimeError("no compiler\nat all")

    contestants["here, compiled"] = broken
    found = card.measure(step.SMALL, CPU, rounds=1, seconds=0.01)
    rows = found["rows"]
    assert rows.pop("here, compiled") == {"failed": "RuntimeError: no compiler"}
    rows.pop("lightly")  # may not be installed
    for row in rows.values():
        assert row["share"] == pytest.approx(row["images/s"] * found["flops"] / found["rate"])
        assert row["images/s"] > 0 and row["host, ms"] > 0 and row["idle"] is None
    words = "\n".join(gpu_report.table_in_words(found))
    assert f"| here | {rows['here']['images/s']:,.0f} |" in words


def test_where_memory_does_not_suffice_all_begin_anew_with_half_the_batch(contestants):
    contestants.clear()
    sizes = []

    def hungry(config, device):
        sizes.append(config.batch_size)
        if config.batch_size > 4:
            raise torch.OutOfMemoryError("too much")
        return lambda views: len(views[0])

    contestants["here"] = hungry
    assert card.measure(step.SMALL, CPU, rounds=1, seconds=0.001)["batch"] == 4
    assert sizes == [16, 8, 4]


def test_busy_time_counts_what_overlaps_once_and_kernels_alone():
    def event(cat, ts, dur):
        return {"cat": cat, "ts": ts, "dur": dur}

    events = [event("kernel", 0, 10), event("kernel", 5, 10), event("gpu_memcpy", 30, 5),
              event("gpu_user_annotation", 0, 100), event("cuda_runtime", 15, 15), {"ph": "M"},
              event("kernel", 1, 2)]  # fmt: skip
    assert card.busy_of(events, 2) == (pytest.approx(10e-6), 2)


def measured(here, compiled, official, views):
    """What `card.measure` gives for such images a second."""
    rates = {"here": here, "here, compiled": compiled, "official recipe": official,
             "here, with its views": views}  # fmt: skip
    rest = {"peak, GiB": 3.0, "idle": 0.04, "host, ms": 2.0, "kernels": 1200, "first step, s": 0.5}
    rows = {name: {"images/s": rate, "share": rate / 10_000, **rest}
            for name, rate in rates.items()}  # fmt: skip
    rows["lightly"] = {"failed": "ModuleNotFoundError: No module named 'lightly'"}
    return {"batch": 64, "precision": "bfloat16", "rate": 7e14, "flops": 7e10, "rows": rows}


def test_the_report_says_which_aims_are_met():
    names = list(card.NETWORKS)
    tables = {names[0]: measured(3000, 4600, 1000, 2500), names[1]: measured(90, 80, 30, 5000),
              names[2]: None}  # fmt: skip
    words = gpu_report.report({
        "machine": {"device": "a card"}, "tests": {"passed": True, "last": ["12 passed in 3.1s"]},
        "tables": tables, "training": {"failed": "RuntimeError: no"}})  # fmt: skip
    assert "All passed: 12 passed in 3.1s." in words and "There is no GPU" not in words
    assert f"| {names[0]}: times the official recipe's images/s, at least 4 | 4.6 | met |" in words
    assert (
        f"| {names[1]}: times the official recipe's images/s, at least 4 | 3.0 | missed |" in words
    )
    assert f"| {names[2]}: times the official recipe's images/s, at least 4 |  |  |" in words
    assert "at least 45 % | 46% | met |" in words and "idle, at most 5 % | 4% | met |" in words
    assert "at most 30 s | 20 s | met |" in words
    assert "| here | 3,000 | 30% | 3.0 | 4% | 2.0 | 1,200 | 0.5 |" in words
    assert "lightly: not measured (ModuleNotFoundError" in words
    assert "It failed: RuntimeError: no" in words


def test_a_part_is_not_done_twice_and_one_that_failed_is(tmp_path):
    done = []
    for _ in range(2):
        assert gpu.part(tmp_path, "tests", lambda: done.append(1) or {"a": 1}) == {"a": 1}
        assert "failed" in gpu.part(tmp_path, "broken", lambda: done.append(2) or 1 / 0)
        assert gpu.part(tmp_path, "table-0", lambda: None) is None  # no card: nothing is kept
    assert done == [1, 2, 2] and [p.name for p in tmp_path.iterdir()] == ["tests.json"]


def in_this_process(*words):
    with contextlib.suppress(SystemExit):
        cli.main([str(word) for word in words])


def test_without_a_gpu_it_runs_to_its_end_and_goes_on_where_it_was_cut_off(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(gpu, "dino", in_this_process)
    (tmp_path / "tests.json").write_text('{"passed": true, "last": ["6 passed"]}')
    long = {"preset": "smoke", "changes": {"epochs": 500, "save_every": 500, "eval_every": 500}}
    (tmp_path / "plan.json").write_text(json.dumps(long))
    steps = []
    for _ in range(2):  # cut off in its midst, and then again
        gpu.main(["--out", str(tmp_path), "--minutes", "0.02"])
        assert "There is no GPU here" in (tmp_path / "report.md").read_text()
        steps.append(read_history(tmp_path / "run")[-1]["step"])
        assert not (tmp_path / "training.json").exists() and (tmp_path / "curve.png").exists()
    assert 0 < steps[0] < steps[1] < 2000
    assert "then it was cut off; the same command goes on" in capsys.readouterr().out
