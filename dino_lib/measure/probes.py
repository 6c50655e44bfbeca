"""Fixed images that a run is measured on: the gallery and the queries of the k-NN, and object masks where there are."""

import torch

from dino_lib.data.datasets import open_dataset
from dino_lib.data.store import decode_store
from dino_lib.data.transforms import normalize
from dino_lib.measure.attention import cls_attention, mass_mask, upsample
from dino_lib.measure.evaluate import accuracy, extract_features, jaccard, knn_predict


def spread(n, limit):
    """At most `limit` of n indices, in order, the same every time; drawn at random, since datasets are sorted by class
    or go through the classes in turn. int64.
    """
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:limit].sort().values


class Probes:
    """Labelled images of a dataset, decoded once: `gallery` and `queries` uint8 (N, C, S, S), their labels (N,),
    and `masks` bool (N, S, S) of the queries or None. `mean` and `std` normalise them.
    """

    def __init__(self, gallery, gallery_labels, queries, query_labels, masks, mean, std, classes=None):
        self.gallery, self.gallery_labels, self.queries, self.query_labels = (
            gallery, gallery_labels, queries, query_labels)
        self.masks, self.mean, self.std, self.classes = masks, mean, std, classes

    @classmethod
    def open(cls, config, limit=None):
        """The gallery and queries of the config's dataset at its `eval_size`; None where the dataset has no labels.

        At most `limit` gallery images and half as many queries (None: the config's eval_limit).
        """
        limit, parts = limit or config.eval_limit, []
        for split, n in [("gallery", limit), ("test", max(1, limit // 2))]:
            dataset = open_dataset(config.dataset, config.data_root, split, len(config.mean), config.download)
            if dataset is None:
                return None
            chosen = spread(len(dataset), n)
            if getattr(dataset, "masks", None) is not None and dataset.images.shape[-1] == config.eval_size:
                parts.append((dataset.images[chosen], dataset.labels[chosen], dataset.masks[chosen]))
            else:
                part = torch.utils.data.Subset(dataset, chosen.tolist())
                parts.append((*decode_store(part, config.eval_size, len(config.mean))[:2], None))
            classes = getattr(dataset, "classes", None)
        (gallery, gallery_labels, _), (queries, query_labels, masks) = parts
        return cls(gallery, gallery_labels, queries, query_labels, masks, config.mean, config.std, classes)

    def normalize(self, images):
        """uint8 (N, C, S, S) -> float32, normalised."""
        return normalize(images, self.mean, self.std)

    def features(self, backbone, dtype=torch.float32):
        """(gallery features, query features), L2-normalised on the CPU; `dtype` as in `extract_features`."""
        batches = [[self.normalize(part) for part in images.split(64)] for images in (self.gallery, self.queries)]
        return tuple(extract_features(backbone, part, dtype=dtype) for part in batches)

    def evaluate(self, backbone, features=None, n_masks=200, dtype=torch.float32):
        """A dict with knn and knn_per_class (20-NN accuracy, overall and mean over classes), and, where there are
        masks and the backbone has a CLS token, jaccard (60% mass mask of the last layer, best head, first `n_masks`).
        `features` are those of `self.features(backbone)`, where they are at hand; else `dtype` is theirs.
        """
        gallery, queries = features or self.features(backbone, dtype)
        predicted = knn_predict(gallery, self.gallery_labels, queries, k=min(20, len(gallery)))
        overall, per_class = accuracy(predicted, self.query_labels)
        scores = {"knn": overall, "knn_per_class": per_class}
        if self.masks is not None and backbone.has_cls:
            maps = self.attention(backbone, n_masks)
            masks = upsample(mass_mask(maps), self.masks.shape[-2:])
            scores["jaccard"] = jaccard(masks, self.masks[:n_masks])
        return scores

    def attention(self, backbone, n):
        """The last layer's CLS attention on the first n queries, (n, heads, h, w) on the CPU."""
        parts = self.normalize(self.queries[:n]).split(64)
        return torch.cat([cls_attention(backbone, part).cpu() for part in parts])
