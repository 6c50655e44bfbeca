"""Advice: what follows from images, machine and time; that its command says the same; its errors.

What an update costs is made up here, but for one run in the end.
"""

import math
import shlex
from dataclasses import replace

import pytest
import torch
from PIL import Image

from dino_lib.cli import main, read_settings
from dino_lib.data.shapes import Shapes
from dino_lib.run import advise as module
from dino_lib.run.advise import advise, fit_images, momentum_of
from dino_lib.run.doctor import diagnose
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.run.survey import Cost, Survey, look_at
from dino_lib.run.train import build_trainer
from dino_lib.schedules import half_life
from dino_lib.teachers.load import find_teacher

UPDATE = {32: 0.1, 48: 0.25, 96: 2.0, 128: 4.0}  # seconds, by the store's side
DEMO = str(find_teacher("demo")[0])


@pytest.fixture
def made_up(monkeypatch):
    """No update is taken: its cost is that of the table."""
    monkeypatch.setattr(
        module, "cost", lambda config, clock: Cost(UPDATE[config.store_size], 1e-3, 2**29)
    )


def survey_of(images, **changes):
    found = Survey(images, 100, 3, (0.5,) * 3, (0.25,) * 3, 1e-4, images // 4)
    return replace(found, **changes)


@pytest.fixture
def of(made_up, monkeypatch):
    """The function (images, minutes, survey's changes) -> advice."""

    def ask(images, minutes, **changes):
        monkeypatch.setattr(module, "look_at", lambda *_: survey_of(images, **changes))
        return advise("some where", minutes, device="cpu")

    return ask


def parse(command):
    words = shlex.split(command)
    assert words[:2] == ["dino", "train"]
    return read_settings(words[2:])[0]


@pytest.mark.parametrize("images", [16, 60, 700, 4000, 100_000])
@pytest.mark.parametrize("minutes", [0.05, 1, 8, 60, 6000])
def test_the_command_says_the_same_and_the_run_fits_the_time(of, images, minutes):
    advice = of(images, minutes)
    assert parse(advice.command()) == advice.config
    per_epoch = images // advice.config.batch_size
    assert advice.updates == max(1, round(advice.config.epochs * per_epoch))
    if advice.minutes > minutes:  # one epoch at least, and it is said
        assert advice.updates <= per_epoch
        assert any("and one epoch take" in note for note in advice.notes)
        assert "fill" not in advice.reasons["epochs"]
    else:
        assert not any("and one epoch take" in note for note in advice.notes)
    assert advice.config.epochs <= 800


def test_more_time_is_never_a_smaller_preset_or_a_shorter_run(of):
    order = [rung[0] for rung in module.RUNGS]
    found = [of(4000, minutes) for minutes in (1, 2, 4, 8, 16, 32, 64, 128)]
    ranks = [(order.index(a.preset), a.updates) for a in found]
    assert ranks == sorted(ranks)
    assert [found[i].preset for i in (0, -1)] == ["pocket", "laptop"]
    assert "colab, the next one, is for a GPU" in found[-1].reasons["preset"]


def test_the_demos_length_on_the_demos_images_gives_the_demos_settings(of):
    demo = PRESETS["demo"]
    advice = of(4000, 1500 * UPDATE[48] / 60 / 0.9, queries=0, short_side=48, decode_seconds=0.0)
    assert advice.preset == "demo"
    assert (advice.config.out_dim, advice.config.batch_size) == (demo.out_dim, demo.batch_size)
    assert advice.config.lr == demo.lr
    assert advice.config.epochs == pytest.approx(demo.epochs, abs=0.1)
    assert advice.config.warmup_epochs == pytest.approx(demo.warmup_epochs, abs=0.25)
    assert advice.config.momentum == pytest.approx(demo.momentum, abs=0.005)
    assert advice.config.momentum_end == pytest.approx(demo.momentum_end, abs=0.002)


def test_the_teacher_forgets_half_in_a_share_of_the_run_and_keeps_the_last_hundred_updates(of):
    for minutes, short_side, preset in [(30, 48, "demo"), (30, 30, "pocket"), (0.5, 30, "pocket")]:
        advice = of(4000, minutes, short_side=short_side)
        assert advice.preset == preset
        start, end = max(0.02 * advice.updates, 25), max(0.085 * advice.updates, 100)
        assert (minutes < 1) == ((start, end) == (25, 100))
        momentum, momentum_end = advice.config.momentum, advice.config.momentum_end
        assert momentum**start == pytest.approx(0.5, abs=0.03)
        assert momentum_end**end == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("images", "batch", "k"), [(16, 16, 64), (60, 16, 64), (300, 32, 64),
                                                    (700, 32, 128), (4000, 32, 1024)])  # fmt: skip
def test_batch_and_prototypes_follow_from_the_images(images, batch, k):
    config, reasons = fit_images(PRESETS["demo"], survey_of(images))
    assert (config.batch_size, config.out_dim) == (batch, k)
    assert config.lr == pytest.approx(1.8e-3 * math.sqrt(batch / 32), rel=0.05)
    assert f"{images // batch} updates" in reasons["batch_size"]


def test_images_are_not_blown_up(of):
    assert of(4000, 6000, short_side=28).preset == "pocket"
    assert of(4000, 6000, short_side=32).preset == "demo"  # 48 px of 32
    assert "96 px" in of(4000, 6000, short_side=32).reasons["preset"]


def test_few_images_get_a_note_and_no_endless_run(of):
    advice = of(60, 600)
    assert advice.config.epochs == 800
    assert any("800 epochs" in note for note in advice.notes)
    assert any("60 images are few" in note for note in advice.notes)
    assert not of(4000, 8).notes
    assert any("hardly change" in note for note in of(4000, 0.1).notes)


def test_without_labels_nothing_is_evaluated(of):
    advice = of(4000, 8, queries=0)
    assert advice.config.eval_every == 0 and advice.seconds["evaluations"] == 0
    assert "no labels" in advice.text()


def test_every_setting_that_differs_has_a_reason_or_belongs_to_one(of):
    advice = of(300, 30, channels=1, mean=(0.4,), std=(0.2,))
    belongs = {"dataset", "data_root", "device", "output_dir", "eval_limit", "save_every",
               "std", "gray_p", "color_jitter"}  # fmt: skip
    base = PRESETS[advice.preset]
    differ = {name for name, value in vars(advice.config).items() if value != getattr(base, name)}
    assert differ - belongs <= advice.reasons.keys()
    assert all(why in " ".join(advice.text().split()) for why in advice.reasons.values())


def test_going_on_is_gentle_and_takes_the_weights_network(made_up, monkeypatch):
    grey = survey_of(4000, channels=1, mean=(0.4,), std=(0.2,))
    monkeypatch.setattr(module, "look_at", lambda *_: grey)
    advice = advise("x", 600, device="cpu", weights=DEMO)
    assert advice.preset == "demo" and advice.config.weights == DEMO
    assert advice.config.lr == pytest.approx(1.8e-4)
    assert advice.config.freeze_backbone == pytest.approx(0.1 * advice.config.epochs, abs=0.01)
    assert advice.config.momentum >= 0.99 and advice.config.momentum_end >= 0.998
    assert len(advice.config.mean) == 3
    assert parse(advice.command()) == advice.config


def test_weights_of_no_preset_are_refused(made_up, tiny, pictures, labelled_folder, tmp_path):
    trainer = build_trainer(replace(tiny, epochs=1), pictures)
    trainer.run()
    path = tmp_path / "run" / "teacher.safetensors"
    with pytest.raises(ValueError, match="no preset has the backbone of"):
        advise(labelled_folder, 1, weights=path)


def test_wrong_questions_say_what_is_right(made_up, labelled_folder, tmp_path, capsys):
    for i in range(8):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="has 8 images to train on; a batch takes at least 16"):
        advise(tmp_path, 1)
    for minutes in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="must be positive"):
            advise(labelled_folder, minutes)
    for words in (["advise"], ["advise", "no such folder", "--minutes", "1"]):
        with pytest.raises(SystemExit):
            main(words)
        assert "\n" not in capsys.readouterr().err.strip()


def test_a_sample_tells_grey_from_colour_and_skips_what_is_broken(tmp_path):
    for i in range(6):
        shade = Image.new("RGB", (40, 30 + i), (20 * i,) * 3)
        shade.save(tmp_path / f"{i}.png")
    (tmp_path / "9.png").write_bytes(b"no picture")
    found = look_at(tmp_path)
    assert (found.images, found.channels, found.short_side, found.queries) == (6, 1, 32, 0)
    assert found.mean == (pytest.approx(50 / 255, abs=1e-3),)
    Image.new("RGB", (40, 40), (200, 0, 0)).save(tmp_path / "8.png")
    assert look_at(tmp_path).channels == 3
    for path in tmp_path.glob("[0-8].png"):
        path.write_bytes(b"")
    with pytest.raises(ValueError, match="can be read"):
        look_at(tmp_path)


def test_advice_on_grey_files_starts_a_run_that_ends_well(tmp_path, capsys, monkeypatch):
    torch.set_num_threads(1)
    pictures = Shapes(48, size=32)
    for i in range(48):
        place = tmp_path / "my pictures" / "ab"[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        pictures[i][0].convert("L").save(place / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    main(["advise", "my pictures", "--minutes", "0.1", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "grey images" in said and "time: " in said and "memory: about" in said
    words = shlex.split(said.strip().splitlines()[-1])
    main([*words[1:], "--epochs", "10", "--warmup-epochs", "1", "--eval-every", "5"])
    config, history = read_settings(words[2:])[0], read_history("runs/mine")
    assert len(config.mean) == 1
    assert not {"uniform", "one prototype"} & {f.name for f in diagnose(history, config)}


@pytest.mark.parametrize("updates", [1, 17, 1386, 6931, 50_000])
def test_a_teacher_always_moves_however_long_the_run(updates):
    momentum = momentum_of(updates)
    assert 0.9 <= momentum <= 0.9999
    if 7 < updates < 6931:
        assert half_life(momentum) == pytest.approx(updates, rel=0.05)
