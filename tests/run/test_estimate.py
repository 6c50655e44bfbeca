"""What a run will take, before it starts."""

import dataclasses
import shlex

import pytest
import torch

from dino_lib.cli import main, read_settings
from dino_lib.run import estimate as module
from dino_lib.run.build import clock
from dino_lib.run.estimate import estimate
from dino_lib.run.options import command_of
from dino_lib.run.presets import PRESETS


def test_it_measures_and_leaves_nothing_behind(tiny, pictures, tmp_path):
    found = estimate(tiny, pictures, updates=2)
    assert found.updates == 8 and found.config == tiny and found.free is None
    assert found.seconds > 0 and found.minutes == pytest.approx(8 * found.seconds / 60)
    assert found.bytes > 2**20 and "8 updates of 8 images, " in str(found)
    assert not (tmp_path / "run").exists()


def test_where_memory_does_not_suffice_the_batch_is_cut(tiny, pictures, monkeypatch):
    build = module.build_trainer

    def small(config, dataset):
        trainer = build(config, dataset)
        step = trainer.train_step

        def train_step(views):
            if len(views[0]) / config.accumulate > 2:
                raise torch.OutOfMemoryError("too much")
            return step(views)

        trainer.train_step = train_step
        return trainer

    monkeypatch.setattr(module, "build_trainer", small)
    found = estimate(tiny, pictures, updates=1)
    assert found.config == dataclasses.replace(tiny, accumulate=4)
    assert "8 updates of 8 images in 4 parts" in str(found)
    monkeypatch.setattr(module, "memory", lambda device: 1 / 0)
    with pytest.raises(torch.OutOfMemoryError):  # a batch of 6 has no quarters
        estimate(dataclasses.replace(tiny, batch_size=6), pictures, updates=1)


def test_the_command_says_it(tmp_path, capsys):
    main(["train", "--preset", "smoke", "--estimate", "--output-dir", str(tmp_path / "run")])
    assert "8 updates of 16 images, " in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


def test_a_command_line_is_the_config_that_it_was_made_of():
    preset = PRESETS["colab"]
    config = dataclasses.replace(
        preset, output_dir="/content/my drive/run", resume="auto", accumulate=4,
        local_scale=(0.1, 0.3),
        backbone_options={"img_size": 96, "depth": 2}, stop_after=9.5)  # fmt: skip
    words = shlex.split(command_of(config, "colab", preset))
    assert words[:2] == ["dino", "train"] and read_settings(words[2:]) == (config, None)
    assert command_of(preset, "colab", preset) == "dino train --preset colab"


def test_it_asks_the_card_that_the_run_is_for(tiny, pictures, monkeypatch):
    """A stand-in for the second of two cards: it notes what it is asked; the run is the CPU's."""
    second, asked = torch.device("cuda:1"), []
    for name in ("mem_get_info", "reset_peak_memory_stats", "synchronize"):
        monkeypatch.setattr(
            torch.cuda, name, lambda device=None, name=name: asked.append((name, device)) or (7, 8)
        )
    monkeypatch.setattr(module, "pick_device", lambda name: second)
    assert estimate(tiny, pictures, updates=1).free == 7
    clock(second)
    assert {name for name, _ in asked} == {"mem_get_info", "reset_peak_memory_stats", "synchronize"}
    assert {device for _, device in asked} == {second}
