"""Settings: what is refused and in which words, their JSON, their presets."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from dino_lib.run.build import build_backbone, build_schedules, build_student, pick_device
from dino_lib.run.config import Config
from dino_lib.run.presets import PRESETS
from dino_lib.teachers.load import SHIPPED

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
    ({"seed": 2**64}, f"seed={2**64}"),
    ({"gray_p": 1.2}, "gray_p=1.2"),
    ({"solarize_p": -0.1}, "solarize_p=-0.1"),
    ({"blur_p": (1.0, 2.0, 0.5)}, "blur_p.1=2.0: Input should be less than or equal to 1"),
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
    ({"mean": (0.5,)}, "mean=(0.5,)"),
    ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "mean=(0.5, 0.5)"),
    ({"std": (0.2, 0.0, 0.2)}, "std=(0.2, 0.0, 0.2)"),
    ({"limit": 0}, "limit=0"),
    ({"store_size": -48}, "store_size=-48"),
    ({"num_workers": -1}, "num_workers=-1"),
    ({"head": "original", "use_bn": True}, "use_bn"),
    ({"head": "linear"}, "head='linear': Input should be 'dino' or 'original'"),
    ({"keep": 0}, "keep=0"),
    ({"lr": "0.001"}, "lr='0.001': Input should be a valid number"),
    ({"lr": None}, "lr=None: Input should be a valid number"),
    ({"lr": True}, "lr=True: Input should be a valid number"),
    ({"epochs": float("inf")}, "epochs=inf: Input should be a finite number"),
    ({"batch_size": 64.0}, "batch_size=64.0: Input should be a valid integer"),
    ({"batch_size": True}, "batch_size=True: Input should be a valid integer"),
    ({"limit": "all"}, "limit='all': Input should be a valid integer"),
    ({"download": "no"}, "download='no': Input should be a valid boolean"),
    ({"dataset": None}, "dataset=None: must be a path"),
    ({"output_dir": ""}, "output_dir='': must be a path"),
    ({"global_scale": 0.4}, "global_scale=0.4: Input should be a valid tuple"),
    ({"blur_p": (1.0, 0.1)}, "blur_p.2=(1.0, 0.1): Field required"),
    ({"blur_p": (1.0, 0.1, 0.0, 0.0)}, "blur_p=(1.0, 0.1, 0.0, 0.0): Tuple should"),
    ({"mean": ()}, "mean=()"),
    ({"mean": ("a",)}, "mean.0='a': Input should be a valid number"),
    ({"backbone_options": {"depth": None}}, "backbone_options.depth.int=None: Input should be"),
    ({"backbone_options": ["depth", 2]}, "backbone_options=('depth', 2): Input should be"),
    ({"device": ["cpu"]}, "device=('cpu',): Input should be a valid string"),
    ({"device": "tpu"}, "device='tpu': String should match pattern '^(auto|cpu|mps|cuda"),
    ({"device": "cuda:one"}, "device='cuda:one': String should match"),
    ({"device": "cpu:0"}, "device='cpu:0': String should match"),
    ({"precision": "fp64"}, "precision='fp64': Input should be 'auto', 'fp32', 'bf16' or 'fp16'"),
    ({"tracker": "mlflow"}, "tracker='mlflow': Input should be"),
    ({"resume": "always"}, "resume='always': Input should be 'never' or 'auto'"),
    ({"pretrained": True, "weights": "a.pth"}, "pretrained=True and weights='a.pth'"),
    ({"learning_rate": 1}, "learning_rate=1: Unexpected keyword argument"),
]


@pytest.mark.parametrize(
    ("settings", "message"), WRONG, ids=[message.split()[0] for _, message in WRONG]
)
def test_wrong_settings_are_refused_by_name_and_value(settings, message):
    with pytest.raises(ValueError) as error:
        Config(**settings)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_every_wrong_setting_is_named_at_once():
    with pytest.raises(ValueError) as error:
        Config(lr=-1, momentum=2, batch_sise=3, blur_p=(2.0, -1.0, 0.0))
    for part in [
        "lr=-1: Input should be greater than 0; ",
        "momentum=2: Input should be less than or equal to 1; ",
        "batch_sise=3: Unexpected keyword argument",
        "blur_p.0=2.0: Input should be less",
        "blur_p.1=-1.0: Input should be greater",
    ]:
        assert part in str(error.value)


def test_a_changed_copy_is_checked_like_a_new_one():
    with pytest.raises(ValueError, match=r"^lr=-1: Input should be greater than 0$"):
        dataclasses.replace(PRESETS["demo"], lr=-1)
    with pytest.raises(ValueError, match=r"^epoch=4: Unexpected keyword argument$"):
        dataclasses.replace(PRESETS["demo"], epoch=4)


def test_numpys_numbers_lists_and_paths_are_taken_for_plain_ones(tmp_path):
    config = Config(
        lr=np.float32(0.5), seed=np.int64(3), global_scale=[0.5, 1], epochs=20, output_dir=tmp_path
    )
    assert (config.lr, config.seed, config.global_scale) == (0.5, 3, (0.5, 1.0))
    assert [type(v) for v in (config.lr, config.seed, config.epochs)] == [float, int, float]
    assert config.output_dir == str(tmp_path) and Config.from_json(config.to_json()) == config


@pytest.mark.parametrize("name", ["dataset", "data_root", "output_dir", "weights"])
def test_a_tilde_is_the_home_folder(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert getattr(Config(**{name: "~/x"}), name) == str(tmp_path / "x")
    assert getattr(Config(**{name: Path("~/x")}), name) == str(tmp_path / "x")
    assert getattr(Config(**{name: "./a~b/"}), name) == "./a~b/"  # otherwise as it was given


def test_a_run_starts_from_the_weights_of_a_file(tiny, tmp_path):
    other = build_student(dataclasses.replace(tiny, seed=tiny.seed + 1)).backbone
    torch.save(other.model.state_dict(), tmp_path / "other.pth")
    config = dataclasses.replace(tiny, weights=tmp_path / "other.pth")
    mine, plain = build_student(config), build_student(tiny)
    for name, value in other.state_dict().items():
        assert torch.equal(mine.backbone.state_dict()[name], value), name
    assert torch.equal(mine.head.mlp[0].weight, plain.head.mlp[0].weight)  # of the seed, as ever
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pth"):
        build_student(dataclasses.replace(tiny, weights="nowhere.pth"))


@pytest.mark.parametrize("what", [build_student, build_backbone])
def test_networks_are_float32_whatever_the_default_is(tiny, what):
    torch.set_default_dtype(torch.float64)
    try:
        built = what(tiny)
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    expected = what(tiny) if what is build_student else built
    assert {p.dtype for p in built.parameters()} == {torch.float32}
    for a, b in zip(built.parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("name", "cards", "rank", "expected"),
    [
        ("cuda", 2, 0, "cuda:0"),
        ("cuda:1", 2, 0, "cuda:1"),
        ("cuda", 2, 1, "cuda:1"),
        ("cuda:2", 2, 0, "device=cuda:2 is not available here"),
        ("cuda:0", 0, 0, "device=cuda:0 is not available here; available: .*'cpu'"),
        ("cuda:1", 2, 1, "device=cuda:1 is one card for several processes: take device=cuda"),
    ],
)
def test_a_card_of_several_is_taken_by_its_number(name, cards, rank, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    if expected.startswith("cuda"):
        assert pick_device(name) == torch.device(expected)
    else:
        with pytest.raises(ValueError, match=expected):
            pick_device(name)


@pytest.mark.parametrize("device", ["auto", "cpu", "mps", "cuda", "cuda:0", "cuda:11"])
def test_a_device_may_be_one_card_of_several(device):
    assert Config(device=device).device == device


@pytest.mark.parametrize(
    "settings",
    [
        {"n_local": 0},
        {"min_lr": 0.0},
        {"warmup_epochs": 0.0},
        {"epochs": 10, "warmup_epochs": 10},
        {"clip_grad": 0.0},
        {"eval_every": 0.0},
        {"weight_decay": 0.0},
        {"freeze_last_layer": 0.0},
        {"momentum": 1.0},
        {"gray_p": 1.0},
        {"drop_path": 0.0},
        {"local_scale": (0.4, 0.4)},
        {"mean": (0.5,), "std": (0.5,)},
        {"num_workers": 0},
        {"color_jitter": (0.0, 0.0, 0.0, 0.5)},
        {"batch_size": 64, "accumulate": 64},
        {"seed": 0},
    ],
)
def test_values_at_the_edge_are_allowed(settings):
    config = Config(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_json_keeps_every_setting(tiny):
    config = dataclasses.replace(tiny, limit=7, mean=(0.25,), std=(0.5,), blur_p=(0.1, 0.2, 0.3))
    assert Config.from_json(config.to_json()) == config
    assert json.loads(config.to_json()).keys() == {f.name for f in dataclasses.fields(Config)}


def test_json_with_unknown_or_wrong_settings_is_refused():
    with pytest.raises(
        ValueError, match="learning_rate=1: Unexpected keyword argument; batch_sise=2: Unexpected"
    ):
        Config.from_json('{"learning_rate": 1, "batch_sise": 2}')
    with pytest.raises(ValueError, match="lr=-1"):
        Config.from_json('{"lr": -1}')
    with pytest.raises(ValueError, match="lr=nan"):
        Config.from_json('{"lr": NaN}')
    with pytest.raises(ValueError, match=r"settings must be a JSON object, not '\[1, 2\]'"):
        Config.from_json("[1, 2]")
    with pytest.raises(ValueError, match="line 1 column 2"):
        Config.from_json("{")


@pytest.mark.parametrize("name", ["demo", "photos"])
def test_settings_written_by_earlier_versions_are_read(name):
    text = (SHIPPED / name / "config.json").read_text()
    config = Config.from_json(text)
    written = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in json.loads(text).items()
    }
    assert written.items() <= dataclasses.asdict(config).items()
    assert config.weights is None and config.recompute is False  # which came later


def test_settings_cannot_be_changed_in_place(tiny):
    with pytest.raises(dataclasses.FrozenInstanceError):
        tiny.lr = 1.0


def test_evaluations_see_the_stores_size_or_the_global_views():
    assert Config(store_size=64, global_size=48).eval_size == 64
    assert Config(store_size=None, global_size=48).eval_size == 48


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid_and_can_be_written_down(name):
    config = PRESETS[name]
    assert dataclasses.replace(config) == config  # the checks run anew
    assert Config.from_json(config.to_json()) == config


def test_presets_have_folders_of_their_own():
    folders = [config.output_dir for config in PRESETS.values()]
    assert len(set(folders)) == len(folders)


def test_the_original_preset_is_the_run_of_the_repository_this_course_starts_from():
    config = PRESETS["original"]
    assert (config.dataset, config.backbone, config.pretrained, config.train_backbone) == (
        "stl10",
        "vit_base_patch16_224",
        True,
        True,
    )
    assert (config.global_size, config.local_size, config.n_local) == (224, 96, 2)
    assert (config.batch_size, config.num_workers, config.epochs, config.save_every) == (
        2048,
        16,
        10,
        5,
    )
    assert (config.head, config.out_dim, config.student_temp) == ("original", 1000, 0.1)
    schedules = build_schedules(config, 48)
    assert {name: len(values) for name, values in schedules.items()} == dict.fromkeys(
        schedules, 480
    )
    for name, value in {
        "lr": 5e-4,
        "weight_decay": 0.04,
        "momentum": 0.996,
        "teacher_temp": 0.04,
    }.items():
        np.testing.assert_allclose(schedules[name], value, rtol=1e-12, err_msg=name)
