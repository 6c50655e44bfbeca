"""What a network makes of labelled images: all that is said and drawn of it."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.backbone import Backbone, backbone_of
from dino_lib.measure.attention import cls_attention, pooled_similarity
from dino_lib.measure.clusters import chance_nmi, cluster_scores, embed_2d
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
    points: Tensor | None  # float32 (n, 2), the chosen queries in the plane; None if below 4
    maps: Tensor | None  # (pictures, h, w), None where there are no patches
    label: str  # what the maps are: "head 3", or why there are none


def examine(model: Any, probes: Probes, chosen: Tensor, pictures: Tensor,
            thorough: bool = False, features: tuple[Tensor, Tensor] | None = None) -> Findings:
    """Score a network, and take what is to be drawn of it.

    chosen: the queries that stand in the plane. pictures: those whose maps are wanted,
    of the head that `choose_head` takes, on a grid that is fine enough to look at.
    scores: those of `Probes.evaluate` and nmi; if thorough, all of `feature_scores`.
    features: (gallery (N, D), queries (M, D)) of `Probes.features`, if at hand.
    """
    backbone = backbone_of(model)
    gallery, queries = features or probes.features(backbone)
    scores = probes.evaluate(backbone, (gallery, queries))
    if thorough:
        scores |= feature_scores(probes, gallery, queries, chosen)
    else:
        scores["nmi"] = cluster_scores(queries[chosen], probes.query_labels[chosen])["nmi"]
    images = probes.normalize(probes.queries[pictures])
    maps, label = _maps(backbone, probes, images, scores.get("head"))
    points = embed_2d(queries[chosen]) if len(chosen) >= 4 else None
    return Findings(scores, points, maps, label)


def feature_scores(probes: Probes, gallery: Tensor, queries: Tensor,
                   chosen: Tensor | None = None) -> dict[str, float]:
    """What features of the gallery (N, D) and of the queries (M, D) are worth, whoever made them.

    knn and knn_per_class, as `Probes.evaluate`, and what `error_scores` says. Given
    `chosen`, int64 (n,), the queries that are clustered, also what takes longer: nmi, mean
    average precision of the retrieval ("map", where the gallery holds a class of theirs)
    and, where there are two classes or more, a linear probe's accuracy.
    """
    labels = probes.gallery_labels, probes.query_labels
    predicted = probes.predict(gallery, queries)
    overall, per_class = accuracy(predicted, labels[1])
    scores = {"knn": overall, "knn_per_class": per_class, **error_scores(probes, predicted)}
    if chosen is None:
        return scores
    scores["nmi"] = cluster_scores(queries[chosen], labels[1][chosen])["nmi"]
    if torch.isin(labels[1], labels[0]).any():
        scores["map"] = retrieval_map(gallery, labels[0], queries, labels[1])
    if len(labels[0].unique()) > 1:
        predicted = linear_probe(gallery, labels[0], queries)
        scores["linear"], scores["linear_per_class"] = accuracy(predicted, labels[1])
    return scores


def histogram_scores(probes: Probes, chosen: Tensor | None = None) -> dict[str, float]:
    """`feature_scores` of a colour histogram, which any learned feature has to beat."""
    features = (color_histogram(images) for images in (probes.gallery, probes.queries))
    return feature_scores(probes, *features, chosen)


def chance_scores(probes: Probes, chosen: Tensor) -> dict[str, float]:
    """What needs no picture: errors if every wrong class were as likely, and random clusters."""
    return {**error_scores(probes), "nmi": chance_nmi(probes.query_labels[chosen])}


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
