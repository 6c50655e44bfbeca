"""Features without labels: clusters, how they fit the classes, maps in the plane."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from dino_lib.measure.knn import Labels, class_ids


def cluster_scores(
    features: Tensor, labels: Labels, n_clusters: int | None = None, seed: int = 0
) -> dict[str, float | Tensor]:
    """k-means against the classes. Returns a dict:

    `nmi`, `ari`: normalised mutual information, adjusted Rand index. `accuracy`: the
    share that is right if every cluster stands for one class, by the best one-to-one
    assignment (Hungarian). `clusters` int64 (N,): each row's cluster. `assignment` int64
    (n_clusters,): each cluster's class, -1 for clusters beyond the classes.
    n_clusters=None: one for each class. ValueError on more clusters than features.
    """
    labels = class_ids(labels, len(features)).numpy()
    classes, truth = np.unique(labels, return_inverse=True)
    n_clusters = len(classes) if n_clusters is None else n_clusters
    if not len(features) >= n_clusters >= 1:
        raise ValueError(
            f"{len(features)} features and {n_clusters} clusters: expected one cluster "
            "or more, and no more clusters than features"
        )
    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    clusters = kmeans.fit_predict(_array(features))
    table = np.zeros((n_clusters, len(classes)), dtype=np.int64)
    np.add.at(table, (clusters, truth), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assignment = np.full(n_clusters, -1)
    assignment[rows] = classes[columns]
    return {
        "nmi": float(normalized_mutual_info_score(truth, clusters)),
        "ari": float(adjusted_rand_score(truth, clusters)),
        "accuracy": float(table[rows, columns].sum() / len(labels)),
        "clusters": torch.from_numpy(clusters).long(),
        "assignment": torch.from_numpy(assignment).long(),
    }


def embed_2d(features: Tensor, *, method: str = "tsne", seed: int = 0) -> Tensor:
    """Features (N, D) in the plane, for the eye: float32 (N, 2). ValueError if N < 4.

    "tsne" (van der Maaten & Hinton 2008) keeps neighbours together; distances between
    clusters mean nothing. It starts from the principal components, with perplexity
    min(30, (N - 1) / 3). "pca": the two directions of most variance, a projection in
    which distances mean something, though most of the variance is left out.
    """
    n = len(features)
    if n < 4:
        raise ValueError(f"{n} features: a map of them needs at least 4")
    if method == "pca":
        embed = PCA(2, random_state=seed)
    elif method == "tsne":
        embed = TSNE(init="pca", perplexity=min(30.0, (n - 1) / 3), random_state=seed)
    else:
        raise ValueError(f'method={method!r} must be "tsne" or "pca"')
    return torch.from_numpy(embed.fit_transform(_array(features))).float()


def _array(features):
    return torch.as_tensor(features).cpu().numpy()
