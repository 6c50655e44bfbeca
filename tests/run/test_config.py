"""Settings: their checks, their JSON, their presets and the command line made from them."""

import dataclasses
import json
import re

import numpy as np
import pytest

from dino_lib.run.build import build_schedules
from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS
from dino_lib.run.train import parse_args

WRONG = [
    ({"global_size": 0}, "global_size=0"),
    ({"local_size": -96}, "local_size=-96"),
    ({"out_dim": 0}, "out_dim=0"),
    ({"hidden_dim": 0}, "hidden_dim=0"),
    ({"bottleneck_dim": -1}, "bottleneck_dim=-1"),
    ({"head_layers": 0}, "head_layers=0"),
    ({"epochs": 0, "warmup_epochs": 0}, "epochs=0"),
    ({"batch_size": 0}, "batch_size=0"),
    ({"accumulate": 0}, "accumulate=0"),
    ({"lr": 0.0}, "lr=0.0"),
    ({"lr": float("nan")}, "lr=nan"),
    ({"student_temp": 0.0}, "student_temp=0.0"),
    ({"teacher_temp": -0.04}, "teacher_temp=-0.04"),
    ({"warmup_teacher_temp": 0.0}, "warmup_teacher_temp=0.0"),
    ({"log_every": 0}, "log_every=0"),
    ({"eval_limit": 0}, "eval_limit=0"),
    ({"save_every": 0.0}, "save_every=0.0"),
    ({"n_local": -1}, "n_local=-1"),
    ({"min_lr": -1e-6}, "min_lr=-1e-06"),
    ({"warmup_epochs": -1.0}, "warmup_epochs=-1.0"),
    ({"warmup_teacher_temp_epochs": -1.0}, "warmup_teacher_temp_epochs=-1.0"),
    ({"weight_decay": -0.04}, "weight_decay=-0.04"),
    ({"weight_decay_end": -0.4}, "weight_decay_end=-0.4"),
    ({"clip_grad": -3.0}, "clip_grad=-3.0"),
    ({"freeze_last_layer": -1.0}, "freeze_last_layer=-1.0"),
    ({"eval_every": -1.0}, "eval_every=-1.0"),
    ({"seed": -1}, "seed=-1"),
    ({"gray_p": 1.2}, "gray_p=1.2"),
    ({"solarize_p": -0.1}, "solarize_p=-0.1"),
    ({"blur_p": (1.0, 2.0, 0.5)}, "blur_p=(1.0, 2.0, 0.5)"),
    ({"color_jitter": (0.4, -0.4, 0.2, 0.1)}, "color_jitter=(0.4, -0.4, 0.2, 0.1)"),
    ({"color_jitter": (0.4, 0.4, 0.2, 0.6)}, "color_jitter=(0.4, 0.4, 0.2, 0.6)"),
    ({"center_momentum": 1.1}, "center_momentum=1.1"),
    ({"momentum": -0.1}, "momentum=-0.1"),
    ({"momentum_end": 1.01}, "momentum_end=1.01"),
    ({"drop_path": 1.5}, "drop_path=1.5"),
    ({"global_scale": (0.0, 1.0)}, "global_scale=(0.0, 1.0)"),
    ({"local_scale": (0.4, 0.05)}, "local_scale=(0.4, 0.05)"),
    ({"local_scale": (0.4, 1.05)}, "local_scale=(0.4, 1.05)"),
    ({"epochs": 5.0, "warmup_epochs": 6.0}, "warmup_epochs=6.0"),
    ({"batch_size": 64, "accumulate": 3}, "batch_size=64 must be divisible by accumulate=3"),
    ({"mean": (0.5,)}, "mean=(0.5,)"),
    ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "mean=(0.5, 0.5)"),
    ({"std": (0.2, 0.0, 0.2)}, "std=(0.2, 0.0, 0.2)"),
    ({"limit": 0}, "limit=0"),
    ({"store_size": -48}, "store_size=-48"),
    ({"num_workers": -1}, "num_workers=-1"),
    ({"head": "original", "use_bn": True}, "use_bn"),
    ({"head": "linear"}, "head='linear' must be one of dino, original"),
    ({"keep": 0}, "keep=0"),
    ({"lr": "0.001"}, "lr='0.001' must be a finite number"),
    ({"lr": None}, "lr=None must be a finite number"),
    ({"epochs": float("inf")}, "epochs=inf must be a finite number"),
    ({"batch_size": 64.0}, "batch_size=64.0 must be a whole number"),
    ({"batch_size": True}, "batch_size=True must be a whole number"),
    ({"limit": "all"}, "limit='all' must be a whole number or None"),
    ({"download": "no"}, "download='no' must be True or False"),
    ({"dataset": None}, "dataset=None must be text"),
    ({"global_scale": 0.4}, "global_scale=0.4 must be a tuple of 2 finite numbers"),
    ({"blur_p": (1.0, 0.1)}, "blur_p=(1.0, 0.1) must be a tuple of 3 finite numbers"),
    ({"mean": ()}, "mean=() must be a tuple of finite numbers"),
    ({"mean": ("a",)}, "mean=('a',) must be a tuple of finite numbers"),
    ({"backbone_options": {"depth": None}}, "backbone_options={'depth': None} must be a dict of names and plain"),
    ({"backbone_options": ["depth", 2]}, "backbone_options=['depth', 2] must be a dict"),
    ({"device": ["cpu"]}, "device=['cpu'] must be one of auto"),
    ({"device": "tpu"}, "device='tpu' must be one of auto, cpu, cuda, mps"),
    ({"precision": "fp64"}, "precision='fp64' must be one of"),
    ({"tracker": "mlflow"}, "tracker='mlflow' must be one of"),
    ({"resume": "always"}, "resume='always' must be one of"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=[message.split()[0] for _, message in WRONG])
def test_wrong_settings_are_refused_by_name_and_value(settings, message):
    with pytest.raises(ValueError) as error:
        Config(**settings)
    assert message in str(error.value)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError, match=r"lr=-1 must be positive; .*momentum=2 must lie between 0 and 1"):
        Config(lr=-1, momentum=2)


@pytest.mark.parametrize("settings", [
    {"n_local": 0}, {"min_lr": 0.0}, {"warmup_epochs": 0.0}, {"epochs": 10, "warmup_epochs": 10}, {"clip_grad": 0.0},
    {"eval_every": 0.0}, {"weight_decay": 0.0}, {"freeze_last_layer": 0.0}, {"momentum": 1.0}, {"gray_p": 1.0},
    {"drop_path": 0.0}, {"local_scale": (0.4, 0.4)}, {"mean": (0.5,), "std": (0.5,)}, {"num_workers": 0},
    {"color_jitter": (0.0, 0.0, 0.0, 0.5)}, {"batch_size": 64, "accumulate": 64}, {"seed": 0}])
def test_values_at_the_edge_are_allowed(settings):
    config = Config(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_json_keeps_every_setting(tiny):
    config = dataclasses.replace(tiny, limit=7, mean=(0.25,), std=(0.5,), blur_p=(0.1, 0.2, 0.3))
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json()).keys() == {f.name for f in dataclasses.fields(Config)}


def test_json_with_unknown_or_wrong_settings_is_refused():
    with pytest.raises(ValueError, match=r"\['batch_sise', 'learning_rate'\].*batch_size"):
        Config.from_json('{"learning_rate": 1, "batch_sise": 2}')
    with pytest.raises(ValueError, match="lr=-1"):
        Config.from_json('{"lr": -1}')
    with pytest.raises(ValueError, match=r"settings must be a JSON object, not '\[1, 2\]'"):
        Config.from_json("[1, 2]")


def test_settings_cannot_be_changed_in_place(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.lr = 1.0


def test_evaluations_see_the_stores_size_or_the_global_views():
    assert Config(store_size=64, global_size=48).eval_size == 64
    assert Config(store_size=None, global_size=48).eval_size == 48


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_written_down(name, as_arguments):
    config = PRESETS[name]
    assert dataclasses.replace(config) == config  # the checks run anew
    assert Config.from_json(config.to_json()) == config
    assert parse_args(["--preset", name]) == config
    assert parse_args(as_arguments(config)) == config


def test_presets_have_folders_of_their_own():
    folders = [config.output_dir for config in PRESETS.values()]
    assert len(set(folders)) == len(folders)


def test_the_original_preset_is_the_run_of_the_repository_this_course_starts_from():
    config = PRESETS["original"]
    assert (config.dataset, config.backbone, config.pretrained, config.train_backbone) == (
        "stl10", "vit_base_patch16_224", True, True)
    assert (config.global_size, config.local_size, config.n_local) == (224, 96, 2)
    assert (config.batch_size, config.num_workers, config.epochs, config.save_every) == (2048, 16, 10, 5)
    assert (config.head, config.out_dim, config.student_temp) == ("original", 1000, 0.1)
    schedules = build_schedules(config, 48)
    assert {name: len(values) for name, values in schedules.items()} == dict.fromkeys(schedules, 480)
    for name, value in {"lr": 5e-4, "weight_decay": 0.04, "momentum": 0.996, "teacher_temp": 0.04}.items():
        np.testing.assert_allclose(schedules[name], value, rtol=1e-12, err_msg=name)


def test_command_line_sets_what_it_names_and_leaves_the_rest_to_the_preset():
    config = parse_args(["--preset", "smoke", "--batch-size", "32", "--lr", "1e-3", "--download", "False",
                         "--global-scale", "0.3", "0.9", "--limit", "None", "--store-size", "64", "--use-bn", "False",
                         "--head", "original", "--mean", "0.5", "--std", "0.25", "--resume", "auto",
                         "--output-dir", "x"])
    assert config == dataclasses.replace(
        PRESETS["smoke"], batch_size=32, lr=1e-3, download=False, global_scale=(0.3, 0.9), limit=None, store_size=64,
        head="original", use_bn=False, mean=(0.5,), std=(0.25,), resume="auto", output_dir="x")


def test_command_line_starts_from_the_demo():
    assert parse_args(["--seed", "7"]) == dataclasses.replace(PRESETS["demo"], seed=7)


def test_backbone_options_are_pairs_that_replace_the_presets():
    pairs = ["img_size", "32", "mlp_ratio", "2.5", "class_token", "False", "global_pool", "avg"]
    assert parse_args(["--backbone-options", *pairs]).backbone_options == {
        "img_size": 32, "mlp_ratio": 2.5, "class_token": False, "global_pool": "avg"}
    assert parse_args(["--backbone", "resnet18", "--backbone-options"]).backbone_options == {}


@pytest.mark.parametrize(("arguments", "message"), [
    (["--preset", "smok"], "'smok' (choose from"),
    (["--batch-sise", "32"], "--batch-size"),
    (["--teacher_tmp", "0.07"], "--teacher-temp"),
    (["--batch-size", "many"], "'many'"),
    (["--batch-size", "-3"], "batch_size=-3 must be positive"),
    (["--device", "tpu"], "'tpu'"),
    (["--global-scale", "0.3"], "--global-scale"),
    (["--blur-p", "0.1", "2", "0"], "blur_p=(0.1, 2.0, 0.0)"),
    (["--backbone-options", "depth"], "'depth' has no value"),
])
def test_wrong_command_lines_exit_with_2_and_say_what_is_right(arguments, message, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as error:
        parse_args(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_help_describes_every_setting(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as error:
        parse_args(["--preset", "smoke", "--help"])
    assert error.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text.splitlines()[0] for name in PRESETS)
    options = re.split(r"^\W*--", text, flags=re.M)[2:]  # after the usage and the heading
    described = {option.split()[0]: option.partition("  ")[2].partition("(default:")[0] for option in options}
    for f in dataclasses.fields(Config):
        words = re.findall(r"\w+", described[f.name.replace("_", "-")])
        assert len(words) >= 3, f"{f.name}: {words}"
