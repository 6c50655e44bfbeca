"""What the teacher's momentum does to k-NN: a run of DINO that is small enough for a notebook.

`follow` trains one tiny network for each momentum, all of them on the same views, with a
`train_step` of the reader's. benchmarks/momentum.py measured the lines of several seeds with it;
`measured()` reads them.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.data.batch_views import BatchMultiCrop
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import normalize
from dino_lib.loss import DINOLoss, teacher_entropies
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import accuracy, color_histogram, knn_predict
from dino_lib.run.build import build_schedules, build_student, parameter_groups
from dino_lib.run.config import Config, multicrop_settings
from dino_lib.run.presets import PRESETS, TINY_VIT
from dino_lib.teacher import make_teacher

MEASURED = Path(__file__).parent / "measured" / "momentum.json"
PICTURES, GALLERY, QUERIES, SIZE = 2000, 1000, 500, 24
UPDATES, EVERY = 240, 30

# the preset `pocket` with patches of 6 pixels and half the width
TINY = replace(
    PRESETS["pocket"],
    backbone_options={**TINY_VIT, "img_size": SIZE, "embed_dim": 32, "num_heads": 2},
    epochs=UPDATES,  # one update is counted as an epoch
    warmup_epochs=40,
    precision="fp32",
    device="cpu",
)


RISING = "0.96 to 0.99"


def schedules_of(momentum: float | str, config: Config = TINY) -> dict[str, np.ndarray]:
    """The run's schedules with a constant momentum, or RISING, as `config` has it."""
    plan = build_schedules(config, steps_per_epoch=1)
    if momentum != RISING:
        plan["momentum"] = np.full(len(plan["lr"]), float(momentum))
    return plan


def follow(train_step: Callable, momenta: Mapping[str, float | str], seed: int = 0,
           config: Config = TINY) -> dict[str, list[dict[str, float]]]:
    """Train a network for each momentum, from the same start and on the same views.

    train_step: `train_step(views, student, teacher, loss_fn, optimizer, now)` of notebook 04.
    Returns, for each name, a line every EVERY updates: the update, the k-NN accuracy of teacher and
    student, the loss, and the two entropies of the teacher over ln K (`row`, `mean`).
    """
    config = replace(config, seed=seed)
    images = Shapes(PICTURES).images
    crop = BatchMultiCrop(**multicrop_settings(config))
    generator = torch.Generator().manual_seed(seed)
    runs = {name: _parts(config) for name in momenta}
    plans = {name: schedules_of(m, config) for name, m in momenta.items()}
    score = probe(config)
    lines = {name: [{"update": 0} | _scores(score, *parts[:2])] for name, parts in runs.items()}
    for update in range(int(config.epochs)):
        batch = torch.randint(PICTURES, (config.batch_size,), generator=generator)
        views = crop(images[batch], generator=generator)
        for name, parts in runs.items():
            now = {key: float(values[update]) for key, values in plans[name].items()}
            loss = train_step(views, *parts, now)
            if (update + 1) % EVERY == 0:
                line = {"update": update + 1, "loss": round(float(loss), 3)}
                line |= _entropies(views, *parts[1:3], now["teacher_temp"])
                lines[name].append(line | _scores(score, *parts[:2]))
    return lines


def probe(config: Config = TINY) -> Callable[[torch.nn.Module], float]:
    """A function: a network -> its 20-NN accuracy on pictures that no run has seen."""
    gallery, queries = Shapes(GALLERY, seed=1), Shapes(QUERIES, seed=2)
    gallery_pictures, query_pictures = small(gallery.images), small(queries.images)

    def score(model: torch.nn.Module) -> float:
        features = [
            extract_features(model, normalize(pictures, config.mean, config.std))
            for pictures in (gallery_pictures, query_pictures)
        ]
        return _knn(*features, gallery.labels, queries.labels)

    return score


def histogram_score() -> float:
    """The 20-NN accuracy of a colour histogram on the same pictures: what needs no network."""
    gallery, queries = Shapes(GALLERY, seed=1), Shapes(QUERIES, seed=2)
    features = [color_histogram(small(part.images)) for part in (gallery, queries)]
    return _knn(*features, gallery.labels, queries.labels)


def small(images: Tensor) -> Tensor:
    """uint8 (N, 3, 48, 48) -> uint8 (N, 3, SIZE, SIZE)."""
    return F.avg_pool2d(images.float(), images.shape[-1] // SIZE).round().to(torch.uint8)


def measured() -> dict:
    """What benchmarks/momentum.py wrote."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def _parts(config):
    """Student, teacher, loss and optimizer of a run, before its first update."""
    student = build_student(config)
    optimizer = torch.optim.AdamW(parameter_groups(student), lr=config.lr)
    return student, make_teacher(student), DINOLoss(config.out_dim), optimizer


def _knn(gallery, queries, gallery_labels, query_labels):
    predicted = knn_predict(gallery, torch.as_tensor(gallery_labels), queries)
    return accuracy(predicted, query_labels)[0]


def _scores(score, student, teacher):
    return {"teacher": round(score(teacher.backbone), 4),
            "student": round(score(student.backbone), 4)}


@torch.no_grad()
def _entropies(views, teacher, loss_fn, temperature):
    """The mean entropy of the teacher's rows, and that of its mean row, over ln K."""
    found = teacher_entropies(loss_fn.teacher_probs(teacher(views[:2]), temperature))
    top = np.log(len(loss_fn.center))
    return {"row": round(float(found[0] / top), 3), "mean": round(float(found[1] / top), 3)}
