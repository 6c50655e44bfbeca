"""Fixed images that a run is measured on: a gallery, queries, masks of objects."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from dino_lib.backbone import backbone_of
from dino_lib.data.transforms import normalize
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.baselines import local_contrast
from dino_lib.measure.features import extract_features
from dino_lib.measure.heads import choose_head
from dino_lib.measure.knn import accuracy, knn_predict
from dino_lib.measure.masks import (
    above_blind,
    are_comparable,
    auc,
    center_blobs,
    jaccard,
    jaccard_one_head,
    mass_mask,
    patch_masks,
    upsample,
)


def spread(n: int, limit: int) -> Tensor:
    """At most `limit` of n indices, in order, the same every time: int64.

    Drawn at random: datasets are sorted by class, or go through the classes in turn.
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randperm(n, generator=generator)[:limit].sort().values


@dataclass
class Probes:
    """Labelled images, decoded once. `run.build.open_probes` opens those of a config."""

    gallery: Tensor  # uint8 (N, C, S, S)
    gallery_labels: Tensor  # int64 (N,)
    queries: Tensor  # uint8 (M, C, S, S)
    query_labels: Tensor  # int64 (M,)
    masks: Tensor | None  # bool (M, S, S), True on the queries' objects
    mean: Sequence[float]  # C numbers each, to normalise with
    std: Sequence[float]
    classes: Sequence[str] | None = None

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 (N, C, S, S) -> float32, normalised."""
        return normalize(images, self.mean, self.std)

    def batches(self, images: Tensor) -> Iterator[Tensor]:
        """Normalised batches, one at a time: floats take four times the room of uint8."""
        for part in images.split(64):
            yield self.normalize(part)

    def features(
        self, model: Any, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """(Gallery features, query features); arguments as in `extract_features`."""
        gallery = extract_features(model, self.batches(self.gallery), dtype=dtype)
        return gallery, extract_features(model, self.batches(self.queries), dtype=dtype)

    def predict(self, gallery: Tensor, queries: Tensor) -> Tensor:
        """What 20-NN takes each query for: features (N, D), (M, D) -> int64 (M,)."""
        k = min(20, len(gallery))
        return knn_predict(gallery, self.gallery_labels, queries, k=k)

    def attention(self, model: Any, n: int) -> Tensor:
        """CLS attention of the last layer on the first n queries: (n, heads, h, w)."""
        backbone = backbone_of(model)
        parts = self.batches(self.queries[:n])
        return torch.cat([cls_attention(backbone, part).cpu() for part in parts])

    def evaluate(
        self,
        model: Any,
        features: tuple[Tensor, Tensor] | None = None,
        n_masks: int = 200,
        dtype: torch.dtype = torch.float32,
    ) -> dict[str, float]:
        """The scores of a network.

        knn, knn_per_class: 20-NN accuracy, overall and mean over the classes. Where there
        are masks and the CLS token's attention can be read, also what `score_maps` says of
        it on the first `n_masks` queries. `features`: those of `self.features`, if at hand.
        """
        backbone = backbone_of(model)
        gallery, queries = features or self.features(backbone, dtype)
        predicted = self.predict(gallery, queries)
        overall, per_class = accuracy(predicted, self.query_labels)
        scores = {"knn": overall, "knn_per_class": per_class}
        if self.masks is None:
            return scores
        try:
            maps = self.attention(backbone, n_masks)
        except TypeError:  # no CLS token, or one like TNT's
            return scores
        return scores | score_maps(maps, self.masks[:n_masks], self.queries[:n_masks])


def score_maps(maps: Tensor, masks: Tensor, images: Tensor) -> dict[str, float]:
    """What maps (N, heads, h, w) know of objects, masks bool (N, H, W).

    `head`: the one that `choose_head` takes, without masks. Of it: `above_blind`, `auc`,
    and `jaccard` of its 60 % mass mask. With `_best`: the best head's; of jaccard the
    best for each picture, as in the paper. Beside these the same best of what knows
    nothing: with `_blobs` of as many blind blobs in the middle, with `_others` of the
    same maps against the masks of other pictures, and with `_contrast` the score of the
    local contrast of the images, uint8 (N, C, H, W). Without two objects that differ
    there is `head` alone.
    """
    head = choose_head(maps)
    grid = maps.shape[2:]
    objects = patch_masks(masks, grid)
    scores = {"head": head}
    if not are_comparable(objects):
        return scores
    blobs = center_blobs(maps.shape[1], grid).expand_as(maps)
    contrast = local_contrast(images, grid)[:, None]
    for name, measure in [("above_blind", above_blind), ("auc", auc)]:
        of_heads = measure(maps, objects)
        scores[name] = of_heads[head].item()
        scores[f"{name}_best"] = of_heads.max().item()
        scores[f"{name}_blobs"] = measure(blobs, objects).max().item()
        scores[f"{name}_others"] = measure(maps, objects.roll(1, 0)).max().item()
        scores[f"{name}_contrast"] = measure(contrast, objects).item()
    covered = _covered(maps, masks)
    scores["jaccard"] = jaccard_one_head(covered, masks)[head].item()
    scores["jaccard_best"] = jaccard(covered, masks)
    scores["jaccard_blobs"] = jaccard(_covered(blobs, masks), masks)
    scores["jaccard_others"] = jaccard(covered, masks.roll(1, 0))
    scores["jaccard_contrast"] = jaccard(_covered(contrast, masks), masks)
    return scores


def _covered(maps, masks):
    """The 60 % mass masks, on the pixels of the masks."""
    return upsample(mass_mask(maps), masks.shape[-2:])
