"""A training run of a small network in seconds: what a change of the head does to it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import normalize
from dino_lib.head import MultiCropModel
from dino_lib.loss import DINOLoss
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import accuracy, knn_predict
from dino_lib.run.build import build_backbone, parameter_groups
from dino_lib.run.config import Config, multicrop_settings
from dino_lib.run.presets import PRESETS, TINY_VIT
from dino_lib.schedules import cosine_schedule
from dino_lib.teacher import ema_update, make_teacher

BATCH = 32


def settings() -> Config:
    """The preset `demo` with one block that is 64 wide, two local views and a faster teacher."""
    options = {**TINY_VIT, "embed_dim": 64, "depth": 1, "num_heads": 4}
    return replace(PRESETS["demo"], backbone_options=options, n_local=2, lr=2.5e-3, momentum=0.96,
                   momentum_end=0.99)


def short_run(make_head: Callable[[int], nn.Module], pictures: Shapes, queries: Shapes, *,
              updates: int = 120, stop: int | None = None, every: int = 20,
              seed: int = 0) -> list[dict[str, Any]]:
    """Train a network of one block with DINO: a line for the start and for each `every` updates.

    make_head: the width of a feature -> the head, (N, D) -> (N, K). pictures: what is trained on,
    and the gallery of k-NN. stop: end the run early, after so many of its `updates`. A line holds
    `update`; `knn`, 20-NN accuracy of `queries`; `used`, the prototypes that some query has as its
    first; `largest`, the largest logit; `entropy`, of the teacher's answers, mean over the queries,
    and `entropy_of_mean`, of the mean of them.
    """
    config = settings()
    torch.manual_seed(seed)
    backbone = build_backbone(config)
    student = MultiCropModel(backbone, make_head(backbone.num_features))
    teacher = make_teacher(student)
    loss_fn = DINOLoss(student.head(torch.zeros(2, backbone.num_features)).shape[1])
    optimizer = torch.optim.AdamW(parameter_groups(student))
    rates = cosine_schedule(config.lr, config.min_lr, updates, warmup_steps=updates // 10)
    crop, draw = BatchMultiCrop(**multicrop_settings(config)), torch.Generator().manual_seed(seed)
    lines = [_look(0, teacher, loss_fn.center, pictures, queries, config)]
    for update in range(stop or updates):
        rows = torch.randperm(len(pictures), generator=draw)[:BATCH]
        views = crop(pictures.images[rows], generator=draw)
        loss = loss_fn(student(views), teacher(views[:2]), config.teacher_temp)
        for group in optimizer.param_groups:
            group["lr"] = rates[update]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), config.clip_grad)
        optimizer.step()
        ema_update(teacher, student, config.momentum)
        if (update + 1) % every == 0:
            lines.append(_look(update + 1, teacher, loss_fn.center, pictures, queries, config))
    return lines


@torch.no_grad()
def _look(update: int, teacher: MultiCropModel, center: torch.Tensor, pictures: Shapes,
          queries: Shapes, config: Config) -> dict[str, Any]:
    """The line of one moment."""
    parts = [normalize(p.images, config.mean, config.std) for p in (pictures, queries)]
    gallery, features = (extract_features(teacher.backbone, part) for part in parts)
    predicted = knn_predict(gallery, pictures.labels, features)
    before = [b.clone() for b in teacher.buffers()]  # of the head's batch norms and the stem's
    logits = teacher.head(teacher.backbone(parts[1]))  # in train mode, as in the run
    for buffer, old in zip(teacher.buffers(), before, strict=True):
        buffer.copy_(old)
    share = ((logits - center) / config.teacher_temp).softmax(1)
    return {
        "update": update, "knn": round(accuracy(predicted, queries.labels)[0], 3),
        "used": len(share.argmax(1).unique()), "largest": round(logits.max().item(), 3),
        "entropy": round(_entropy(share), 3),
        "entropy_of_mean": round(_entropy(share.mean(0, keepdim=True)), 3),
    }


def _entropy(p: torch.Tensor) -> float:
    """Mean over the rows, in nats."""
    return float(-(p * p.clamp(min=1e-12).log()).sum(1).mean())
