"""What a run may not do in silence: take one dataset for another, write over another run, judge a
batch by a part of it.
"""

import json
import os
import signal
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from dino_lib.backbone import create_backbone
from dino_lib.look.report import report
from dino_lib.run import folder as run_folder
from dino_lib.run.build import build_student, check_normalisation
from dino_lib.run.config import OWN, Config
from dino_lib.run.train import build_trainer, train
from dino_lib.teacher import make_teacher
from dino_lib.teachers.card import model_card
from dino_lib.teachers.load import load_teacher


def stop(line):
    if line["step"] == 3:
        raise KeyboardInterrupt


def test_a_report_and_a_card_do_not_take_ones_own_dataset_for_the_creatures(tiny, pictures):
    train(tiny, pictures)
    with pytest.raises(ValueError, match=r"nothing tells what .* was trained on: .*--dataset"):
        report(tiny.output_dir)
    card = model_card(tiny.output_dir, load_teacher(tiny.output_dir), "timm")
    assert "creatures" not in card and "fill in" in card


def test_two_runs_cannot_write_to_one_folder(tiny, pictures, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.3)
    first, second = (build_trainer(replace(tiny, seed=seed), pictures) for seed in (0, 1))
    with first.folder.held(), pytest.raises(BlockingIOError, match="another run is writing to"):
        second.run()
    assert first.run()[1][-1]["step"] == 8  # the lock is gone


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_lives_on_holds_no_folder(tiny, pictures, monkeypatch):
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.3)
    folder = run_folder.RunFolder(tiny)
    with folder.held():
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
    try:
        with folder.held():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_run_on_ones_own_dataset_goes_on_with_it_alone(tiny, pictures):
    with pytest.raises(KeyboardInterrupt):
        train(tiny, pictures, on_log=stop)
    again = replace(tiny, resume="auto", dataset="shapes", limit=len(pictures), store_size=48)
    with pytest.raises(ValueError, match="came as an argument of train: pass dataset= again"):
        train(replace(again, dataset=OWN))
    state = {"config": vars(tiny) | {"dataset": OWN}, "n_images": 32}
    with pytest.raises(ValueError, match="came as an argument of train: pass dataset= again"):
        run_folder.RunFolder(tiny).check_same_run(state, 32)


def test_a_run_goes_on_without_the_weights_that_it_began_with(tiny, pictures, tmp_path, capsys):
    train(replace(tiny, output_dir=str(tmp_path / "first")), pictures)
    start = tmp_path / "start.safetensors"
    start.write_bytes((tmp_path / "first" / "teacher.safetensors").read_bytes())
    config = replace(tiny, weights=str(start))
    with pytest.raises(KeyboardInterrupt):
        train(config, pictures, on_log=stop)
    start.unlink()
    _, history = train(replace(config, resume="auto", log_every=2), pictures)
    assert history[-1]["step"] == 8 and "are not read" not in capsys.readouterr().out
    written = json.loads((tmp_path / "run" / "config.json").read_text())
    assert written["log_every"] == 2  # what it went on with


def test_a_runs_folder_is_weights_too(tiny, pictures, tmp_path, assert_same):
    teacher, _ = train(replace(tiny, output_dir=str(tmp_path / "first")), pictures)
    started = build_student(replace(tiny, seed=1, weights=str(tmp_path / "first")))
    assert_same(dict(started.backbone.state_dict()), dict(teacher.model.state_dict()))


def test_the_signs_of_accumulated_parts_are_the_batchs(tiny, pictures):
    lines = []
    for parts in (1, 8):  # one image a part
        config = replace(tiny, accumulate=parts, output_dir=f"{tiny.output_dir}{parts}")
        lines.append(train(config, pictures)[1][0])
    for name in ("teacher_entropy", "mean_entropy", "feature_rank", "feature_std"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=1e-4), name


def test_pretrained_weights_that_expect_other_pictures_are_told(capsys):
    model = SimpleNamespace(pretrained_cfg={"mean": (0.5,) * 3, "std": (0.5,) * 3})
    backbone = SimpleNamespace(model=model)
    check_normalisation(Config(pretrained=True), backbone)
    assert "--mean 0.5 0.5 0.5 --std 0.5 0.5 0.5" in capsys.readouterr().out
    check_normalisation(Config(pretrained=True, mean=(0.5,) * 3, std=(0.5,) * 3), backbone)
    check_normalisation(Config(), backbone)
    assert not capsys.readouterr().out


def test_one_setting_for_stochastic_depth(tiny, pictures):
    options = {**tiny.backbone_options, "drop_path_rate": 0.3}
    with pytest.raises(ValueError, match=r"are one setting: give drop_path=0\.3 alone"):
        train(replace(tiny, drop_path=0.1, backbone_options=options), pictures)


def test_the_masking_of_hiera_is_the_students_alone():
    hiera = create_backbone("hiera_tiny_224", img_size=64, embed_dim=8, num_heads=1,
                            stages=(1, 1, 1, 1), patch_drop_rate=0.5)  # fmt: skip
    teacher = make_teacher(hiera).train()
    x = torch.rand(2, 3, 64, 64)
    assert torch.equal(teacher(x), teacher(x)) and not torch.equal(hiera(x), hiera(x))
