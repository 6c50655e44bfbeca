"""Features without labels: clusters, how they fit the classes, maps in the plane."""

import torch
from sklearn.cluster import KMeans
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

from dino_lib.measure.knn import Labels, class_ids


def cluster_scores(
    features: Tensor, labels: Labels, n_clusters: int | None = None, seed: int = 0
) -> dict[str, float | Tensor]:
    """k-means against the classes. Returns a dict:

    `nmi`, `ari`: normalised mutual information, adjusted Rand index. `clusters` int64
    (N,): each row's cluster. n_clusters=None: one for each class. ValueError, by
    scikit-learn, on more clusters than features.
    """
    labels = class_ids(labels, len(features))
    if n_clusters is None:
        n_clusters = len(labels.unique())
    kmeans = KMeans(n_clusters, n_init=10, random_state=seed)
    clusters = kmeans.fit_predict(features.detach().float().cpu().numpy())
    return {
        "nmi": float(normalized_mutual_info_score(labels, clusters)),
        "ari": float(adjusted_rand_score(labels, clusters)),
        "clusters": torch.from_numpy(clusters).long(),
    }


def chance_nmi(labels: Labels, draws: int = 10, seed: int = 0) -> float:
    """The NMI of random clusters, as many as labels (N,) has classes: the mean of some draws.

    It is far from 0 where clusters hold few pictures: the measure isn't adjusted for
    chance (Vinh, Epps & Bailey 2010).
    """
    labels = class_ids(labels, len(labels))
    n_clusters = len(labels.unique())
    generator = torch.Generator().manual_seed(seed)
    found = [torch.randint(n_clusters, (len(labels),), generator=generator) for _ in range(draws)]
    return sum(normalized_mutual_info_score(labels, one) for one in found) / draws


def embed_2d(features: Tensor, *, seed: int = 0) -> Tensor:
    """Features (N, D) in the plane, for the eye: float32 (N, 2). ValueError if N < 4.

    t-SNE (van der Maaten & Hinton 2008) keeps neighbours together; distances between
    clusters mean nothing. It starts from the principal components, with perplexity
    min(30, (N - 1) / 3). Features that are all alike, of a collapsed teacher say, have
    none, and scikit-learn would crash: they start at random.
    """
    n = len(features)
    if n < 4:
        raise ValueError(f"{n} features: a map of them needs at least 4")
    features = features.detach().float().cpu()
    apart = (features - features.mean(0)).abs().max() > 1e-6 * features.abs().max()
    start = "pca" if apart else "random"
    embed = TSNE(init=start, perplexity=min(30.0, (n - 1) / 3), random_state=seed)
    return torch.from_numpy(embed.fit_transform(features.numpy())).float()
