"""The same on every device that is there: views, loss, an update, resuming, evaluation, attention.

`pytest --device cuda` asks for one of them. A CPU in float32 is what each is compared with.
"""

import dataclasses

import numpy as np
import pytest
import torch

from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.loss import DINOLoss
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import knn_predict
from dino_lib.run.build import build_student
from dino_lib.run.train import build_trainer, train

CPU = torch.device("cpu")


def rand(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def close(a, b, tolerance=1e-3):
    torch.testing.assert_close(a.cpu().float(), b.cpu().float(), rtol=tolerance, atol=tolerance)


def test_views(each_device):
    images = (255 * rand(6, 3, 40, 40)).byte()
    multicrop = BatchMultiCrop(global_size=32, local_size=16, n_local=2)
    uniforms = rand(6, multicrop.n_uniforms)
    there = multicrop(images.to(each_device), uniforms=uniforms)
    for a, b in zip(there, multicrop(images, uniforms=uniforms), strict=True):
        assert a.device.type == each_device.type
        # a crop on a GPU is rounded once, on a CPU after rows and columns: two levels of 255
        assert (a.cpu() - b).abs().max() < 2 * 2 / 255 / min(multicrop.std)


def test_loss_and_center(each_device):
    student, teacher = rand(4, 5, 8), rand(2, 5, 8)
    found = []
    for where in (each_device, CPU):
        loss = DINOLoss(8).to(where)
        logits = student.to(where).requires_grad_()
        value = loss(logits, teacher.to(where), 0.04)
        value.backward()
        found.append((value, logits.grad, loss.center))
    for a, b in zip(*found, strict=True):
        close(a, b, 1e-4)


def test_updates(each_device, tiny, pictures, tmp_path):
    """Losses of a run in float32, update by update."""
    losses = {}
    for name in {each_device.type, "cpu"}:
        config = dataclasses.replace(
            tiny, device=name, eval_every=0, output_dir=str(tmp_path / name)
        )
        losses[name] = [line["loss"] for line in train(config, pictures)[1] if "loss" in line]
    np.testing.assert_allclose(losses[each_device.type], losses["cpu"], rtol=0.02)


def test_resuming(each_device, tiny, pictures, tmp_path):
    """A run in two parts ends where the whole one ends."""
    config = dataclasses.replace(tiny, device=each_device.type, eval_every=0)
    whole, _ = train(dataclasses.replace(config, output_dir=str(tmp_path / "whole")), pictures)

    def stop(line):
        if line["step"] == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(config, pictures, on_log=stop)
    again, _ = train(dataclasses.replace(config, resume="auto"), pictures)
    for a, b in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        close(a, b, 0 if each_device == CPU else 1e-3)


def test_an_update_that_is_not_finite_changes_nothing(each_device, tiny, pictures):
    config = dataclasses.replace(tiny, device=each_device.type, eval_every=0, use_bn=True)
    trainer = build_trainer(config, pictures)
    views = next(trainer.views.batches(0, np.arange(8)[None]))
    trainer.train_step(views)
    tensors = [t for m in (trainer.student, trainer.teacher, trainer.loss)
               for t in m.state_dict().values()]  # fmt: skip
    before = [tensor.clone() for tensor in tensors]
    views[0][0, 0, 0, 0] = float("nan")
    assert not trainer.train_step(views)["finite"]
    assert all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))
    views[0][0, 0, 0, 0] = 0.0
    assert trainer.train_step(views)["finite"]
    assert not all(torch.equal(a, b) for a, b in zip(tensors, before, strict=True))


def test_evaluation_and_attention(each_device, tiny):
    backbone = build_student(tiny).backbone.eval()
    images, labels = rand(12, 3, 24, 24), torch.arange(12) % 3
    features, maps = extract_features(backbone, images), cls_attention(backbone, images)
    backbone.to(each_device)
    close(extract_features(backbone, images), features)
    close(cls_attention(backbone, images.to(each_device)), maps)
    found = knn_predict(
        features.to(each_device), labels.to(each_device), features.to(each_device), k=1
    )
    assert torch.equal(found.cpu(), labels)
