"""What notebook 05 puts the reader's pieces together with."""

import pytest
import torch

from dino_lib import BatchMultiCrop, Shapes
from dino_lib.course import pieces, whole

RECIPE = BatchMultiCrop(36, 18, 2, color_jitter=(0.4, 0.4, 0.4, 0.08), blur_p=(0.5, 0.5, 0.5))


def views_of(images, **changed):
    parts = {name: whole.FINISHED[name] for name in ("crop", "saturation", "views")} | changed
    torch.manual_seed(0)
    return whole.batch_views(RECIPE, **parts)(images)


def test_a_batch_of_views_is_like_the_librarys():
    images = Shapes(200).images
    mine = views_of(images)
    theirs = RECIPE(images, torch.Generator().manual_seed(0))
    assert [view.shape for view in mine] == [view.shape for view in theirs]
    for a, b in zip(mine, theirs, strict=True):
        assert a.mean().item() == pytest.approx(b.mean().item(), abs=0.1)
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.1)


def test_the_readers_crop_and_saturation_are_used():
    images = Shapes(20).images
    black = views_of(images, crop=lambda x, box, size: torch.zeros(3, size, size))
    mean, std = (torch.tensor(row)[:, None, None] for row in (RECIPE.mean, RECIPE.std))
    assert ((black[0] * std + mean).amax((1, 2, 3)) < 1e-6).sum() > 10  # solarized ones are white
    calls = []
    views_of(images, saturation=lambda x, factor: calls.append(factor) or x)
    assert len(calls) > 40
    assert 0.0 in calls  # grey


def test_collect_says_whose_each_piece_is(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(pieces, "FOLDER", tmp_path)
    right = (
        "def ema_update(teacher, student, momentum):\n"
        "    with torch.no_grad():\n"
        "        for t, s in zip(teacher.parameters(), student.parameters()):\n"
        "            t.lerp_(s, 1 - momentum)\n"
    )
    (tmp_path / "ema_update.py").write_text(pieces.HEADER + right)
    found = pieces.collect(ema_update=whole.ema_update, unknown=len)
    said = capsys.readouterr().out.split()
    assert said == ["ema_update", "yours", "unknown", "finished"]
    assert found.ema_update is not whole.ema_update
    assert found.unknown is len
    (tmp_path / "ema_update.py").write_text(pieces.HEADER + right.replace("1 - momentum", "1.0"))
    found = pieces.collect(ema_update=whole.ema_update)
    assert "finished (wrong:" in capsys.readouterr().out
