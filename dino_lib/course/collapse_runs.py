"""The runs of notebook 07: DINO on a model so small that a run takes seconds, one part changed.

The healthy run and its variants are `Setting`s; `run` trains one. `benchmarks/collapse.py` trains
all of them with three seeds and keeps what it measures in `measured/collapse.json`.
"""

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lib.augment import IMAGENET
from dino_lib.backbone import create_backbone
from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import normalize
from dino_lib.head import DINOHead, MultiCropModel
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import color_histogram, knn_predict
from dino_lib.measure.masks import above_blind, patch_masks
from dino_lib.run.build import parameter_groups
from dino_lib.run.history import feature_rank
from dino_lib.schedules import cosine_schedule
from dino_lib.teacher import ema_update, make_teacher

MEASURED = Path(__file__).parent / "measured" / "collapse.json"
SIZE, GLOBAL, LOCAL = 24, 16, 8  # sides of a picture and of its views, in pixels
POOL = 6  # large views, and small ones, that are made of each picture, once for all runs
BATCH, CLIP = 32, 3.0
VIT = {"img_size": SIZE, "patch_size": 4, "embed_dim": 64, "depth": 1, "num_heads": 4,
       "mlp_ratio": 2.0}
COLOURS = {"color_jitter": (0.3, 0.3, 0.2, 0.0), "gray_p": 0.0, "solarize_p": 0.0,
           "blur_p": (0.1, 0.1, 0.05)}


@dataclass(frozen=True)
class Setting:
    """A run of the lab; the defaults are those of the healthy one."""

    student_temp: float = 0.1
    teacher_temp: float = 0.06
    targets: str = "center"  # or "no center", or "sinkhorn" in its place
    momentum: float = 0.9  # of the teacher at the start; 0: the student itself; 1: it never moves
    momentum_end: float = 0.98
    stop_gradient: bool = True  # False: the student's own answers are the targets, gradient and all
    n_local: int = 2
    out_dim: int = 128
    use_bn: bool = True


HEALTHY = Setting()
VARIANTS = {
    "healthy": HEALTHY,
    "no center": replace(HEALTHY, targets="no center"),
    "no sharpening": replace(HEALTHY, teacher_temp=0.1),
    "neither": replace(HEALTHY, targets="no center", teacher_temp=0.1),
    "one low temperature": replace(HEALTHY, student_temp=0.06),
    "teacher = student": replace(HEALTHY, momentum=0.0, momentum_end=0.0),
    "frozen random teacher": replace(HEALTHY, momentum=1.0, momentum_end=1.0),
    "momentum 0.5": replace(HEALTHY, momentum=0.5, momentum_end=0.5),
    "momentum 0.998": replace(HEALTHY, momentum=0.998, momentum_end=0.998),
    "no stop-gradient": replace(HEALTHY, stop_gradient=False),
    "no multi-crop": replace(HEALTHY, n_local=0),
    "K = 8": replace(HEALTHY, out_dim=8),
    "K = 1024": replace(HEALTHY, out_dim=1024),
    "no batch norm in the head": replace(HEALTHY, use_bn=False),
    "Sinkhorn": replace(HEALTHY, targets="sinkhorn"),
}


def lab_loss(student: Tensor, teacher: Tensor, center: Tensor, student_temp: float,
             teacher_temp: float, stop_gradient: bool = True) -> Tensor:
    """DINO's loss for logits (V, B, K) and (2, B, K), with a teacher that may have a gradient."""
    if stop_gradient:
        teacher = teacher.detach()
    q = F.softmax((teacher - center) / teacher_temp, dim=-1)
    return cross_entropy(q, student, student_temp)


def cross_entropy(q: Tensor, student: Tensor, student_temp: float) -> Tensor:
    """The mean over the pairs of views; targets q (2, B, K), the student's logits (V, B, K)."""
    log_p = F.log_softmax(student / student_temp, dim=-1)
    pairs = [(i, v) for i in range(2) for v in range(len(student)) if v != i]
    return torch.stack([-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs]).mean()


@torch.no_grad()
def sinkhorn(logits: Tensor, temp: float, n_iterations: int = 3) -> Tensor:
    """Targets (N, K) of logits (N, K): each row sums to 1, each prototype gets about N / K."""
    q = torch.exp(logits / temp)
    for _ in range(n_iterations):
        q = q / q.sum(0, keepdim=True)
        q = q / q.sum(1, keepdim=True)
    return q


def vital_signs(q: Tensor, log_p: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(Entropy of one view's target, entropy of the mean target, KL from teacher to student).

    q (2, B, K), log_p (V, B, K): the student's log probabilities. In nats.
    """
    of_one = torch.special.entr(q).sum(-1).mean()
    of_mean = torch.special.entr(q.mean((0, 1))).sum()
    pairs = [(i, v) for i in range(2) for v in range(len(log_p)) if v != i]
    loss = torch.stack([-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs]).mean()
    return of_one, of_mean, loss - of_one


def used_prototypes(q: Tensor) -> int:
    """How many prototypes are the first choice of some row of q (..., K)."""
    return len(q.argmax(-1).unique())


@functools.cache
def pictures() -> tuple[Shapes, Shapes]:
    """1,000 pictures to train on, which are the gallery too, and 500 queries."""
    return Shapes(1000, size=SIZE), Shapes(500, seed=1, size=SIZE)


@functools.cache
def pool() -> tuple[Tensor, Tensor]:
    """Views that all runs draw from: (POOL, 1000, 3, 16, 16) large and (POOL, 1000, 3, 8, 8)."""
    crop = BatchMultiCrop(GLOBAL, LOCAL, 2, (0.5, 1.0), (0.3, 0.6), **COLOURS)
    generator = torch.Generator().manual_seed(0)
    sets = [crop(pictures()[0].images, generator) for _ in range(POOL // 2)]
    large = [view for views in sets for view in views[:2]]
    small = [view for views in sets for view in views[2:]]
    return torch.stack(large), torch.stack(small)


def draw_views(n_local: int, generator: torch.Generator) -> list[Tensor]:
    """A batch: two large views and n_local small ones of BATCH pictures."""
    large, small = pool()
    index = torch.randint(large.shape[1], (BATCH,), generator=generator)
    of_large, of_small = [torch.rand(POOL, BATCH, generator=generator).argsort(0) for _ in range(2)]
    return [*large[of_large[:2], index], *small[of_small[:n_local], index]]


def build(setting: Setting, seed: int) -> MultiCropModel:
    """A one-block ViT with a convolutional stem, and a small head."""
    torch.manual_seed(seed)
    backbone = create_backbone("vit_tiny_patch16_224", conv_stem=True, **VIT)
    head = DINOHead(backbone.num_features, setting.out_dim, hidden_dim=128, bottleneck_dim=32,
                    use_bn=setting.use_bn)
    return MultiCropModel(backbone, head)


def run(setting: Setting = HEALTHY, seed: int = 0, updates: int = 100, lr: float = 3e-3, *,
        loss: Callable = lab_loss, signs: Callable = vital_signs,
        sinkhorn: Callable = sinkhorn) -> dict[str, Any]:
    """Train a student: {"log": lists of one number an update, "scores", "student", "teacher",
    "targets": those of the last ten updates, (640, K), "norms": of each update's gradient before
    it is clipped}. `loss`, `signs` and `sinkhorn` are the pieces that the reader writes.
    """
    student = build(setting, seed)
    teacher = make_teacher(student)
    optimizer = torch.optim.AdamW(parameter_groups(student), weight_decay=1e-3, fused=True)
    lrs = cosine_schedule(lr, 1e-5, updates, warmup_steps=updates // 10)
    momenta = cosine_schedule(setting.momentum, setting.momentum_end, updates)
    generator = torch.Generator().manual_seed(seed)
    center = torch.zeros(setting.out_dim)
    log = {"loss": [], "of_one": [], "of_mean": [], "kl": []}
    targets, norms = [], []

    for update in range(updates):
        views = draw_views(setting.n_local, generator)
        s = student(views)  # (V, B, K)
        with torch.no_grad():
            t = teacher(views[:2])  # (2, B, K)
        if not setting.stop_gradient:
            t = s[:2]

        if setting.targets == "sinkhorn":
            q = sinkhorn(t.flatten(0, 1), setting.teacher_temp).view_as(t)
            value = cross_entropy(q, s, setting.student_temp)
        else:
            value = loss(s, t, center, setting.student_temp, setting.teacher_temp,
                         setting.stop_gradient)
            q = F.softmax((t.detach() - center) / setting.teacher_temp, dim=-1)
        if setting.targets == "center":
            center = 0.9 * center + 0.1 * t.detach().mean((0, 1))

        for group in optimizer.param_groups:
            group["lr"] = lrs[update]
        optimizer.zero_grad()
        value.backward()
        norms.append(float(nn.utils.clip_grad_norm_(student.parameters(), CLIP)))
        optimizer.step()
        ema_update(teacher, student, momenta[update])

        seen = signs(q, F.log_softmax(s.detach() / setting.student_temp, dim=-1))
        for name, number in zip(log, [value.detach(), *seen], strict=True):
            log[name].append(float(number))
        targets = [*targets, q.flatten(0, 1)][-10:]
    targets = torch.cat(targets)
    scores = measure(student) | {"used": used_prototypes(targets)}
    scores |= {f"{name}_end": float(np.mean(values[-10:])) for name, values in log.items()}
    scores["knn_teacher"] = measure(teacher)["knn"]
    return {"log": log, "scores": scores, "student": student, "teacher": teacher,
            "targets": targets, "norms": norms}


def measure(model: nn.Module) -> dict[str, float]:
    """20-NN accuracy, RankMe of the queries' features, attention above blind (mean of heads)."""
    gallery, queries = pictures()
    features = [features_of(model, part) for part in (gallery, queries)]
    found = knn_predict(features[0], gallery.labels, features[1])
    maps = attention_of(model, queries, 200)
    objects = patch_masks(queries.masks[:200], maps.shape[2:])
    return {"knn": (found == queries.labels).float().mean().item(),
            "rank": feature_rank(features[1]),
            "above_blind": above_blind(maps, objects).mean().item()}


def features_of(model: nn.Module, part: Shapes) -> Tensor:
    """The backbone's features of the pictures, (N, 64) of length 1."""
    return extract_features(model, normalize(part.images, *IMAGENET))


def attention_of(model: nn.Module, part: Shapes, n: int) -> Tensor:
    """CLS attention on the first n pictures: (n, 4 heads, 6, 6)."""
    return cls_attention(model, normalize(part.images[:n], *IMAGENET))


def histogram_knn() -> float:
    """20-NN accuracy of colour histograms, which know nothing but colours."""
    gallery, queries = pictures()
    found = knn_predict(color_histogram(gallery.images), gallery.labels,
                        color_histogram(queries.images))
    return (found == queries.labels).float().mean().item()


def read_measured() -> dict[str, Any]:
    """What `benchmarks/collapse.py` measured: "about", "untrained", "histogram", "runs"."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))
