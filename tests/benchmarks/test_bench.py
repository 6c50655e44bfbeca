"""The benchmark runs, and its steps are the same step."""

import contextlib
import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
import bench
import peers
import step

CPU = torch.device("cpu")


def test_the_official_rendering_takes_the_librarys_step():
    """From the same weights, with no clipping: it differs in how, not in what."""
    config = replace(
        step.SMALL, clip_grad=1e9, precision="fp32", device="cpu", use_bn=False, batch_size=4
    )
    trainer, other = step.trainer_of(config), peers.official(config, CPU)
    for module in (other.student, other.teacher):
        module.backbone.load_state_dict(trainer.student.backbone.state_dict())
        module.head.mlp.load_state_dict(trainer.student.head.mlp.state_dict())
        module.head.last.weight_v.data.copy_(trainer.student.head.directions)
    views = step.noise(config, CPU)
    for schedule, value in [
        ("lr", config.lr),
        ("weight_decay", config.weight_decay),
        ("momentum", config.momentum),
    ]:
        trainer.schedules[schedule][:] = value
    for _ in range(3):
        assert other(views).item() == pytest.approx(
            trainer.train_step(views)["loss"].item(), abs=1e-4
        )
    torch.testing.assert_close(
        other.teacher.head.last.weight_v, trainer.teacher.head.directions, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize(
    ("row", "verdict"),
    [
        ({"ratio": 3.1, "aim": 3.0, "sign": ">="}, "met"),
        ({"ratio": 2.9, "aim": 3.0}, "missed"),
        ({"ratio": 0.5, "aim": 0.6, "sign": "<="}, "met"),
        ({"ratio": 0.7, "aim": 0.6, "sign": "<="}, "missed"),
        ({"ratio": 0.7, "aim": None}, ""),
    ],
)
def test_verdict(row, verdict):
    assert bench.verdict(row) == verdict


@pytest.fixture
def one_process_alone(monkeypatch):
    """Our first step has a process of its own; the others take this one, which has the imports."""

    def run(words, **options):
        name = words[4]
        if name == "ours":
            return subprocess.run(words, **options)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            step.first_step(name, "--quick" in words)
        return subprocess.CompletedProcess(words, 0, said.getvalue())

    monkeypatch.setattr(step, "subprocess", SimpleNamespace(run=run))


def test_it_runs_and_writes_its_rows(tmp_path, capsys, one_process_alone):
    pytest.importorskip("lightly")
    bench.main(["--quick", "--only", "step", "--out", str(tmp_path / "bench.json")])
    printed = capsys.readouterr().out
    rows = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert len(rows) == 10 and all(row["ratio"] > 0 for row in rows)
    assert all(row["figure"] in printed for row in rows)
