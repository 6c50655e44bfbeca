"""What a network makes of labelled images: all that is said and drawn of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.backbone import Backbone, backbone_of
from dino_lib.measure.attention import cls_attention, pooled_similarity
from dino_lib.measure.clusters import cluster_scores, embed_2d
from dino_lib.measure.cues import cues_by_chance, cues_of, cues_of_errors
from dino_lib.measure.heads import choose_head
from dino_lib.measure.knn import (
    accuracy,
    color_histogram,
    linear_probe,
    retrieval_map,
)
from dino_lib.measure.probes import Probes


@dataclass
class Findings:
    """What one network makes of the probes."""

    scores: dict[str, float]
    points: Tensor  # float32 (n, 2), the chosen queries in the plane
    maps: Tensor | None  # (pictures, h, w), None where there are no patches
    label: str  # what the maps are: "head 3", or why there are none


def examine(model: Any, probes: Probes, chosen: Tensor, pictures: Tensor,
            thorough: bool = False, features: tuple[Tensor, Tensor] | None = None) -> Findings:
    """Score a network, and take what is to be drawn of it.

    chosen: the queries that stand in the plane. pictures: those whose maps are wanted,
    of the head that `choose_head` takes, on a grid that is fine enough to look at.
    scores: those of `Probes.evaluate` and nmi; if thorough, retrieval's mean average
    precision ("map"), what the k-NN's errors share with the right classes (see
    `error_scores`) and, where there are two classes or more, a linear probe's accuracy.
    features: (gallery (N, D), queries (M, D)) of `Probes.features`, if at hand.
    """
    backbone = backbone_of(model)
    gallery, queries = features or probes.features(backbone)
    labels = probes.gallery_labels, probes.query_labels
    scores = probes.evaluate(backbone, (gallery, queries))
    scores["nmi"] = cluster_scores(queries[chosen], labels[1][chosen])["nmi"]
    if thorough:
        scores |= error_scores(probes, probes.predict(gallery, queries))
        scores["map"] = retrieval_map(gallery, labels[0], queries, labels[1])
    if thorough and len(labels[0].unique()) > 1:
        predicted = linear_probe(gallery, labels[0], queries)
        scores["linear"], scores["linear_per_class"] = accuracy(predicted, labels[1])
    images = probes.normalize(probes.queries[pictures])
    maps, label = _maps(backbone, probes, images, scores.get("head"))
    return Findings(scores, embed_2d(queries[chosen]), maps, label)


def histogram_scores(probes: Probes) -> dict[str, float]:
    """What a colour histogram gets, which any learned feature has to beat.

    knn and knn_per_class, as `Probes.evaluate`, and what `error_scores` says.
    """
    gallery = color_histogram(probes.gallery)
    predicted = probes.predict(gallery, color_histogram(probes.queries))
    overall, per_class = accuracy(predicted, probes.query_labels)
    scores = {"knn": overall, "knn_per_class": per_class}
    return scores | error_scores(probes, predicted)


def error_scores(probes: Probes, predicted: Tensor | None = None) -> dict[str, float]:
    """Of the wrong answers (M,), how many share a cue with the right class.

    errors_palette, errors_texture, errors_outline; nothing where the classes aren't the
    embedded dataset's. Without `predicted`: if every wrong class were as likely.
    """
    cues = cues_of(probes.classes)
    if cues is None:
        return {}
    labels = probes.query_labels
    if predicted is None:
        found = cues_by_chance(labels, cues)
    else:
        found = cues_of_errors(predicted, labels, cues)
    return {f"errors_{name}": share for name, share in found.items()}


def fine_attention(model: Any, images: Tensor, side: int = 16) -> Tensor:
    """The last layer's CLS attention on a grid of about `side` patches a side.

    Where the images give fewer they are enlarged: a ViT takes larger ones than it was
    trained on. One that refuses shows its own grid. (B, C, H, W) -> (B, heads, h, w);
    errors: `cls_attention`.
    """
    maps = cls_attention(model, images)
    times = min(4, round(side / min(maps.shape[-2:])))
    if times < 2:
        return maps
    try:
        return cls_attention(model, F.interpolate(images, scale_factor=times, mode="bicubic"))
    except ValueError:
        return maps


def _maps(backbone: Backbone, probes: Probes, images: Tensor,
          head: int | None) -> tuple[Tensor | None, str]:
    """Maps to draw, (B, h, w) on the CPU, and what they are."""
    try:
        if not backbone.has_cls:
            return pooled_similarity(backbone, images)[:, 0].cpu(), "similarity"
        maps = torch.cat([fine_attention(backbone, part).cpu() for part in images.split(16)])
    except TypeError as error:
        return None, str(error)
    if head is None:
        head = choose_head(probes.attention(backbone, 200))
    return maps[:, head], f"head {head}"
