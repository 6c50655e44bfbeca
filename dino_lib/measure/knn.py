"""What a feature is worth: nearest neighbours, retrieval, a linear probe, accuracy.

Features are tensors (N, D), one row an image. Queries ask, the gallery is searched.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

ROOM = 2**24  # similarities at a time: 64 MB
Labels = Tensor | np.ndarray | Sequence[int]  # (N,)


@torch.no_grad()
def nearest(gallery: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the gallery (N, D) most like each of the queries (M, D).

    (cosine float32 (M, k), index int64 (M, k)), nearest first, on the features' device.
    ValueError on a k outside 1..N.
    """
    _check_features(gallery)
    _check_features(queries)
    n = len(gallery)
    if not 1 <= k <= n:
        raise ValueError(f"k={k} must lie between 1 and the features to search, {n}")
    gallery = F.normalize(gallery.float(), dim=1)
    found = [
        (F.normalize(rows.float(), dim=1) @ gallery.T).topk(k)
        for rows in queries.split(max(1, ROOM // n))
    ]
    return torch.cat([of.values for of in found]), torch.cat([of.indices for of in found])


@torch.no_grad()
def knn_predict(
    train_features: Tensor,
    train_labels: Labels,
    test_features: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
) -> Tensor:
    """Weighted k-NN (Wu et al. 2018, arXiv 1805.01978, section 3.4): int64 (M,).

    train_features (N, D), train_labels (N,) whole numbers, test_features (M, D); rows
    are L2-normalised here. The score of class c is the sum of exp(cosine / temperature)
    over those of the k nearest training rows that have class c. Equal scores go to the
    lower class id. ValueError on a k outside 1..N, on labels that are negative, text or of
    another number, and on a temperature that is not positive.
    """
    labels = class_ids(train_labels, len(train_features), "train_labels")
    if not temperature > 0:
        raise ValueError(f"temperature={temperature} must be positive")
    cosine, index = nearest(train_features, test_features, k)
    cosine, index = cosine.cpu(), index.cpu()  # MPS has no float64
    # measured from the nearest: the winner stays, and exp can't overflow
    weights = ((cosine - cosine[:, :1]).double() / temperature).exp()  # (M, k)
    classes, column = labels.unique(return_inverse=True)  # sorted, for equal scores
    scores = weights.new_zeros(len(weights), len(classes))
    scores.scatter_add_(1, column[index], weights)
    return classes[scores.argmax(1)].to(test_features.device)


@torch.no_grad()
def retrieval_map(
    gallery: Tensor, gallery_labels: Labels, queries: Tensor, query_labels: Labels
) -> float:
    """Mean average precision of image retrieval, in [0, 1].

    Each query (M, D) ranks the whole gallery (N, D) by cosine; what has its label is
    relevant. Average precision is scikit-learn's, without interpolation; the mean is over
    the queries, so large classes count more. Queries without a relevant image are left
    out, as in the Oxford and Paris benchmarks; a query must not stand in the gallery.
    ValueError as `knn_predict`, and if no query has a relevant image.
    """
    from sklearn.metrics import average_precision_score  # see linear_probe

    gallery_labels = class_ids(gallery_labels, len(gallery), "gallery_labels")
    query_labels = class_ids(query_labels, len(queries), "query_labels")
    precisions = []
    for rows in torch.arange(len(queries)).split(256):
        cosine, index = nearest(gallery, queries[rows], len(gallery))  # (m, N)
        relevant = gallery_labels[index.cpu()] == query_labels[rows, None]
        for right, near in zip(relevant.numpy(), cosine.cpu().numpy(), strict=True):
            if right.any():
                precisions.append(average_precision_score(right, near))
    if not precisions:
        raise ValueError("no query has an image of its class in the gallery")
    return float(np.mean(precisions))


def linear_probe(train_features: Tensor, train_labels: Labels, test_features: Tensor) -> Tensor:
    """Multinomial logistic regression on the features: predicted class ids, int64 (M,).

    scikit-learn's L-BFGS with its own defaults (L2 penalty, C = 1, intercept) on features
    standardised by the training set's mean and deviation. The paper trains a linear layer
    by SGD on augmented images instead. ValueError as `knn_predict`, and on one class.
    """
    # here, since importing it takes a second, and a training run, which imports k-NN, needs none
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    labels = class_ids(train_labels, len(train_features), "train_labels")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    probe.fit(_numpy(train_features), labels.numpy())
    return torch.from_numpy(probe.predict(_numpy(test_features))).long()


def accuracy(predicted: Labels, labels: Labels) -> tuple[float, float]:
    """(Share of all that is right, mean of that share over the classes in `labels`)."""
    if len(predicted) == 0:
        raise ValueError("nothing is predicted: expected (N >= 1,)")
    predicted = class_ids(predicted, len(predicted), "predicted", least=-1)
    labels = class_ids(labels, len(predicted))
    right = (predicted == labels).double()
    per_class = torch.stack([right[labels == c].mean() for c in labels.unique()])
    return right.mean().item(), per_class.mean().item()


def color_histogram(images_uint8: Tensor, bins: int = 8) -> Tensor:
    """Joint colour histogram, a baseline for features: uint8 (N, C, H, W) -> (N, D).

    D is bins ** C. The square root is taken before the L2 normalisation: a dot product is
    then the Bhattacharyya coefficient of two histograms.
    """
    if images_uint8.dtype != torch.uint8 or images_uint8.ndim != 4:
        kind = f"{images_uint8.dtype} {tuple(images_uint8.shape)}"
        raise ValueError(f"images are {kind}; expected uint8 (N, C, H, W)")
    n_codes = bins ** images_uint8.shape[1]
    counts = []
    for image in images_uint8.cpu().int():
        codes = torch.zeros_like(image[0])
        for channel in image:
            codes = codes * bins + channel * bins // 256
        counts.append(codes.flatten().bincount(minlength=n_codes))
    return F.normalize(torch.stack(counts).float().sqrt(), dim=1)


def class_ids(labels: Labels, n: int, name: str = "labels", *, least: int = 0) -> Tensor:
    """Labels as int64 (n,) on the CPU; ValueError if they are no class ids."""
    if not torch.is_tensor(labels):
        labels = np.asarray(labels)
        if labels.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} hold {str(labels.flat[0])!r}: expected whole numbers; from names, "
                "np.unique(labels, return_inverse=True) makes (names, numbers)"
            )
        if labels.dtype.kind == "u":
            labels = labels.astype(np.int64)  # torch can do little with uint16 to uint64
    ids = torch.as_tensor(labels).cpu()
    if ids.shape != (n,) or ids.is_floating_point():
        kind = f"{ids.dtype} {tuple(ids.shape)}"
        raise ValueError(f"{name} are {kind}; expected {n} integers")
    if n and ids.min() < least:
        raise ValueError(f"{name} hold {ids.min().item()}: class ids start at {least}")
    return ids.long()


def _check_features(features):
    if not torch.is_tensor(features):
        kind = type(features).__name__
        raise TypeError(f"features are {kind}: expected a tensor (N, D)")
    if not features.isfinite().all():
        raise ValueError("features hold NaN or infinite values")


def _numpy(features):
    _check_features(features)
    return features.detach().float().cpu().numpy()
