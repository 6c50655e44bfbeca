"""The doctor: each diagnosis on a real run made to go wrong in that way, silence on healthy ones,
and its command.
"""

import importlib.util
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dino_lib.cli import main
from dino_lib.run.checkpoint import load_newest
from dino_lib.run.config import Config
from dino_lib.run.doctor import ADVICE, diagnose
from dino_lib.run.history import feature_rank, read_history, relative_distance
from dino_lib.run.train import build_trainer, train
from dino_lib.run.trainer import Trainer
from dino_lib.teachers.load import SHIPPED

ROOT = Path(__file__).parents[2]
DEMO = SHIPPED / "demo"


def _load(path):
    spec = importlib.util.spec_from_file_location("benchmark", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


table = _load(ROOT / "benchmarks" / "doctor.py")  # its runs are the tests'


# --- the confusion table --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", table.SICK)
def test_a_run_made_sick_is_diagnosed(kind):
    expected, _, _ = table.SICK[kind]
    findings, history = table.run(kind)
    found = {finding.name: finding for finding in findings}
    assert expected in found
    assert 1 <= found[expected].step <= history[-1]["step"]
    assert "nan" not in found[expected].what.replace("finite", "")


@pytest.mark.parametrize("kind", list(table.HEALTHY)[:2])  # all ten in benchmarks/doctor.py
def test_the_doctor_is_silent_on_a_healthy_run(kind):
    findings, history = table.run(kind)
    assert findings == [] and len(history) == 10


def test_every_finding_has_its_sick_run():
    assert {expected for expected, _, _ in table.SICK.values()} == set(ADVICE)


# --- a history alone ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_the_shipped_histories_are_healthy(name):
    history = read_history(SHIPPED / name)
    config = Config.from_json((SHIPPED / name / "config.json").read_text())
    assert all(
        diagnose(history[:n], config) == [] for n in range(len(history) + 1)
    )  # as while it was trained
    needed = {"step", "epoch", "loss", "teacher_entropy", "mean_entropy", "lr", "momentum"}
    older = [{key: value for key, value in line.items() if key in needed} for line in history]
    assert diagnose(older, config) == []  # the other fields were added later


def lines(n=30, **changes):
    """A healthy history of n lines, ten updates each; changes: functions of the step."""
    healthy = {
        "loss": 3.0,
        "teacher_entropy": 1.0,
        "mean_entropy": 3.5,
        "lr": 1e-3,
        "momentum": 0.9,
    }
    return [
        {"step": s, "epoch": s / 10, **healthy, **{k: f(s) for k, f in changes.items()}}
        for s in range(10, 10 * n + 1, 10)
    ]


CONFIG = Config(out_dim=64, epochs=30, momentum=0.9, warmup_epochs=3, batch_size=64, log_every=10)


@pytest.mark.parametrize(
    ("sick", "expected"),
    [
        (lambda s: s >= 200, [200]),
        (lambda s: s >= 280, [280]),
        (lambda s: s >= 290, []),
        (lambda s: 50 < s < 290, []),
        (lambda s: True, [10]),
    ],
    ids=["from 200", "for three lines", "for two lines", "recovered", "always"],
)
def test_a_finding_begins_where_it_began_to_last(sick, expected):
    history = lines(mean_entropy=lambda s: 0.5 if sick(s) else 3.5, teacher_entropy=lambda s: 0.3)
    assert [f.step for f in diagnose(history, CONFIG) if f.name == "one prototype"] == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("teacher_entropy", 0.96 * math.log(64), "uniform"),
        ("teacher_entropy", 0.94 * math.log(64), None),
        ("mean_entropy", 0.19 * math.log(64), "one prototype"),
        ("mean_entropy", 0.21 * math.log(64), None),
        ("feature_rank", 1.9, "feature rank"),
        ("feature_rank", 2.1, None),
        ("loss", 1.11 * math.log(64), "no progress"),
        ("loss", 1.09 * math.log(64), None),
        # W is 0.009 with these constant schedules
        ("teacher_lag", 0.05, "teacher lagging"),
        ("teacher_lag", 0.04, None),
        ("input_share", 0.71, "input-bound"),
        ("input_share", 0.69, None),
    ],
)
def test_the_bounds(name, value, expected):
    found = [f.name for f in diagnose(lines(**{name: lambda s: value}), CONFIG)]
    assert found == ([expected] if expected else [])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"lr": 1e-6}, "learning rate, from step 1: too low"),
        ({"lr": 0.1}, "learning rate, from step 30: too high"),
        ({"warmup_epochs": 16}, "learning rate, from step 1: the warm-up takes 160 of 300"),
        ({"momentum": 0.997}, "momentum, from step 1: too high: after the 300 updates 6"),
        ({"momentum": 0.0, "momentum_end": 0.5}, "momentum, from step 1: too low"),
        ({"momentum": 0.7}, None),
    ],
)
def test_schedules_are_judged_from_the_first_line(changes, expected):
    found = diagnose(lines(1), replace(CONFIG, **changes))
    assert len(found) == (expected is not None)
    assert expected is None or found[0].line().startswith(f"doctor: {expected}")


def test_few_rows_can_use_few_prototypes_only():
    config = replace(CONFIG, out_dim=65536, log_every=10)  # 1280 rows a line: 2% at most
    low = 0.3 * math.log(65536)
    found = [
        diagnose(
            lines(prototypes_used=lambda s, used=used: used, mean_entropy=lambda s: low), config
        )
        for used in (0.003, 0.0015)
    ]
    assert [[f.name for f in findings] for findings in found] == [[], ["dead prototypes"]]


def test_a_try_of_the_code_and_an_empty_history_are_not_judged():
    sick = lines(2, teacher_entropy=lambda s: 4.2)
    assert diagnose([], CONFIG) == diagnose([{"step": 0, "epoch": 0.0, "knn": 0.1}], CONFIG) == []
    assert diagnose(sick[:1], replace(CONFIG, epochs=1.9, warmup_epochs=0.0)) == []


def test_every_section_to_read_is_in_its_notebook():
    for name, (_, _, read) in ADVICE.items():
        notebook, section = read.split(": ", 1)
        cells = json.loads((ROOT / "notebooks" / notebook).read_text())["cells"]
        titles = [
            line.lstrip("# ").strip()
            for cell in cells
            if cell["cell_type"] == "markdown"
            for line in "".join(cell["source"]).splitlines()
            if line.startswith("#")
        ]
        assert section in titles, name


# --- what is measured -----------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 6), (6, 40)])
def test_the_rank_is_the_number_of_equal_directions(shape):
    u, _, v = torch.linalg.svd(
        torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False
    )
    for n in (1, 3, 6):
        assert feature_rank(u[:, :n] @ v[:n]) == pytest.approx(n, rel=1e-3)
    values = torch.tensor([4.0, 2.0, 1.0, 1.0])
    shares = (0.5, 0.25, 0.125, 0.125)
    expected = math.exp(-sum(share * math.log(share) for share in shares))
    assert feature_rank(u[:, :4] * values @ v[:4]) == pytest.approx(expected, rel=1e-3)


def test_the_lag_is_relative_and_of_what_is_trained(tiny, pictures):
    trainer = build_trainer(replace(tiny, train_backbone=False), pictures)
    assert relative_distance(trainer.teacher, trainer.student) == 0
    with torch.no_grad():
        for p in trainer.teacher.parameters():
            p.mul_(1.25)
    assert relative_distance(trainer.teacher, trainer.student) == pytest.approx(0.25, rel=1e-4)


def test_a_line_measures_the_updates_since_the_last(tiny, pictures, monkeypatch):
    seen, norms, inside = [], [], Trainer.train_step
    monkeypatch.setattr(
        Trainer,
        "train_step",
        lambda self, views: (
            seen.append((self.teacher(views[:2]) - self.loss.center).argmax(-1)),
            inside(self, views),
        )[1],
    )
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(
        torch.nn.utils,
        "clip_grad_norm_",
        lambda p, limit: (norms.append(clip(p, limit)), norms[-1])[1],
    )
    _, history = train(replace(tiny, log_every=4), pictures)
    used = [torch.cat(part).unique().numel() / tiny.out_dim for part in (seen[:4], seen[4:])]
    assert [r["prototypes_used"] for r in history] == used
    assert [r["grad_norm"] for r in history] == [norms[3].item(), norms[7].item()]
    assert all(
        0 < r["input_share"] < 1 and r["teacher_lag"] > 0 and 1 < r["feature_rank"] <= 16
        for r in history
    )


# --- steps that are not taken ---------------------------------------------------------------------


def state(trainer):
    return {
        f"{name}.{k}": v.clone()
        for name in ("student", "teacher", "loss")
        for k, v in getattr(trainer, name).state_dict().items()
    }


def counted(tally):
    """How many losses the next line of the history is the mean of."""
    return sum(math.isfinite(loss) for loss in tally.losses)


def test_a_step_that_is_not_finite_changes_nothing_and_is_reported(
    tiny, pictures, capsys, assert_same
):
    trainer, lost = (
        build_trainer(replace(tiny, use_bn=True, conv_stem=True, log_every=3), pictures),
        [],
    )
    inside = trainer.train_step

    def train_step(views):
        if trainer.step != 4:
            return inside(views)
        before = state(trainer), counted(trainer.tally), trainer.tally.used.clone()
        result = inside([view * math.inf for view in views])
        lost.append(result["finite"])
        assert_same((state(trainer), counted(trainer.tally), trainer.tally.used), before)
        return result

    trainer.train_step = train_step
    _, history = trainer.run()
    assert lost == [False] and trainer.step == 8
    assert [(r["step"], r.get("skipped")) for r in history] == [
        (3, None),
        (5, 1),
        (6, None),
        (8, None),
    ]
    assert history[2]["images_per_second"] * history[2]["seconds"] == pytest.approx(
        16
    )  # two of the three
    assert (
        len(
            re.findall(
                r"step 5: the loss is nan, so this update is skipped", capsys.readouterr().out
            )
        )
        == 1
    )


def test_a_gradient_alone_that_is_not_finite_is_skipped_and_two_in_a_row_do_not_stop(
    tiny, pictures, capsys
):
    trainer = build_trainer(tiny, pictures)
    trainer.student.head.mlp[0].weight.register_hook(
        lambda g: g * math.inf if trainer.step in (1, 2, 4, 5) else g
    )
    _, history = trainer.run()
    assert [r["skipped"] for r in history if "skipped" in r] == [1, 2, 1, 2]
    assert capsys.readouterr().out.count("the gradient is") == 4


def test_three_in_a_row_stop_the_run_with_the_checkpoint_from_before(tiny, pictures, monkeypatch):
    trainer = build_trainer(replace(tiny, save_every=0.25), pictures)
    trainer.student.head.mlp[0].weight.register_hook(
        lambda g: g * math.nan if trainer.step >= 3 else g
    )
    with pytest.raises(
        FloatingPointError, match="the gradient is nan at step 4; so it was three times in a row"
    ):
        trainer.run()
    assert load_newest(trainer.folder.path / "checkpoints")["step"] == 3
    assert [r["step"] for r in read_history(trainer.folder.path) if "skipped" in r] == [4, 5, 6]
    assert [f.name for f in diagnose(trainer.history, trainer.config)] == ["not finite"]


def test_float16s_first_scales_are_no_illness(tiny, pictures):
    trainer = build_trainer(replace(tiny, precision="fp16"), pictures)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60)
    trainer.run()
    assert trainer.scaler.get_scale() == 2.0**52  # halved at each of the eight
    assert len(trainer.history) == 8 and not any(
        {"skipped", "grad_norm"} & r.keys() for r in trainer.history
    )


def test_skipped_updates_and_the_gathered_numbers_resume_exactly(
    tiny, pictures, tmp_path, assert_same
):
    def run(config, until=None):
        def stop(record):
            if record["step"] == until:
                raise KeyboardInterrupt

        trainer = build_trainer(config, pictures, on_log=stop)
        trainer.student.head.mlp[0].weight.register_hook(
            lambda g: g * math.nan if trainer.step in (4, 5) else g
        )
        trainer.run()
        return trainer

    config = replace(tiny, log_every=4, save_every=100)
    whole = run(replace(config, output_dir=str(tmp_path / "whole")))
    with pytest.raises(KeyboardInterrupt):
        run(config, until=5)  # between two lost updates
    resumed = run(replace(config, resume="auto"))
    assert [r.get("skipped") for r in resumed.history] == [None, 1, 2, None]
    clock = {"seconds", "images_per_second", "input_share"}
    assert_same(
        *(
            [{k: v for k, v in r.items() if k not in clock} for r in t.history]
            for t in (whole, resumed)
        )
    )
    assert_same(state(whole), state(resumed))


# --- while it trains, and the command -------------------------------------------------------------


def test_a_finding_is_said_once_while_the_run_goes_on(tiny, pictures, capsys):
    train(
        replace(tiny, epochs=6, teacher_temp=5.0, warmup_teacher_temp=5.0, momentum=0.9999),
        pictures,
    )
    said = [
        line.split(",")[0]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("doctor: ")
    ]
    assert {"doctor: momentum", "doctor: uniform"} <= set(said) and len(said) == len(set(said))


def test_the_command_says_what_why_and_where_to_read(tmp_path, capsys):
    (tmp_path / "config.json").write_text(CONFIG.to_json())
    (tmp_path / "history.jsonl").write_text(
        "".join(
            json.dumps(r) + "\n"
            for r in lines(teacher_entropy=lambda s: 4.15, mean_entropy=lambda s: 4.15)
        )
    )
    main(["doctor", str(tmp_path), str(DEMO)])
    printed = capsys.readouterr().out
    for text in (
        f"{tmp_path}: 1 finding, 30 lines",
        "uniform, from step 10: ",
        "100% of ln K",
        *ADVICE["uniform"],
        f"{DEMO}: no findings",
    ):
        assert text in printed


def test_a_folder_without_a_run_ends_in_one_line(tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["doctor", str(tmp_path)])
    [line] = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and line.startswith(f"error: {tmp_path} is not a run's folder")


@pytest.mark.parametrize(
    ("used", "entropy", "expected"),
    [(0.09, 0.39, ["dead prototypes"]), (0.11, 0.39, []), (0.09, 0.41, [])],
)
def test_few_first_choices_are_an_illness_where_the_rest_have_no_share_either(
    used, entropy, expected
):
    history = lines(
        prototypes_used=lambda s: used,
        mean_entropy=lambda s: entropy * math.log(64),
        teacher_entropy=lambda s: 0.1,
    )
    assert [f.name for f in diagnose(history, CONFIG)] == expected
