"""Features without labels: clusters, how they fit the classes, and maps of them in the plane."""

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score


def cluster_scores(features, labels, n_clusters=None, seed=0):
    """k-means against the classes. Returns a dict:

    `nmi`, `ari`: normalised mutual information and adjusted Rand index. `accuracy`: the share that is right when
    every cluster stands for one class, by the best one-to-one assignment (Hungarian). `clusters` int64 (N,): each
    row's cluster. `assignment` int64 (n_clusters,): each cluster's class, -1 if there are more clusters than classes.
    """
    labels = np.asarray(labels)
    classes, truth = np.unique(labels, return_inverse=True)
    n_clusters = len(classes) if n_clusters is None else n_clusters
    if not len(features) == len(labels) >= n_clusters:
        raise ValueError(f"{len(features)} features, {len(labels)} labels, {n_clusters} clusters: expected a label "
                         "for each feature and no more clusters than features")
    clusters = KMeans(n_clusters, n_init=10, random_state=seed).fit_predict(np.asarray(features))
    table = np.zeros((n_clusters, len(classes)), dtype=np.int64)
    np.add.at(table, (clusters, truth), 1)
    rows, columns = linear_sum_assignment(table, maximize=True)
    assignment = np.full(n_clusters, -1)
    assignment[rows] = classes[columns]
    return {"nmi": float(normalized_mutual_info_score(truth, clusters)),
            "ari": float(adjusted_rand_score(truth, clusters)),
            "accuracy": float(table[rows, columns].sum() / len(labels)),
            "clusters": torch.from_numpy(clusters).long(),
            "assignment": torch.from_numpy(assignment).long()}


def embed_2d(features, *, method="tsne", seed=0):
    """Features (N, D) in the plane, for the eye: float32 (N, 2). Raises ValueError if N < 4.

    "tsne" (van der Maaten & Hinton 2008) keeps neighbours together; distances between clusters mean nothing. It starts
    from the principal components, with perplexity min(30, (N - 1) / 3). "pca": the two directions of most variance, a
    projection in which distances mean something, though most of the variance is left out.
    """
    if len(features) < 4:
        raise ValueError(f"{len(features)} features: a map of them needs at least 4")
    if method not in ("tsne", "pca"):
        raise ValueError(f'method={method!r} must be "tsne" or "pca"')
    perplexity = min(30.0, (len(features) - 1) / 3)
    embed = (PCA(2, random_state=seed) if method == "pca" else
             TSNE(init="pca", perplexity=perplexity, random_state=seed))
    return torch.from_numpy(embed.fit_transform(np.asarray(features))).float()
