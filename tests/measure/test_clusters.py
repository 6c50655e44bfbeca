import pytest
import torch
import torch.nn.functional as F

from dino_lib.measure.clusters import cluster_scores, embed_2d


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(n_per_class=30, n_classes=3, dim=5, spread=0.1):
    labels = torch.arange(n_classes).repeat(n_per_class)
    return F.one_hot(labels, dim).float() + spread * randn(len(labels), dim), labels


def test_clusters_that_are_the_classes():
    features, labels = blobs()
    scores = cluster_scores(features, labels + 4)
    assert (
        scores["nmi"] == pytest.approx(1)
        and scores["ari"] == pytest.approx(1)
        and scores["accuracy"] == 1
    )
    assert scores["clusters"].dtype == torch.int64
    assert torch.equal(scores["assignment"][scores["clusters"]], labels + 4)


def test_cluster_accuracy_is_the_best_assignment():
    # the greedy choice (left = class 0) would score 5 of 13, the best one 8
    features = torch.cat([torch.zeros(9, 2), torch.ones(4, 2)]) + 0.01 * randn(13, 2)
    labels = torch.tensor([0] * 5 + [1] * 4 + [0] * 4)
    scores = cluster_scores(features, labels)
    assert scores["accuracy"] == pytest.approx(8 / 13)
    assert (
        scores["assignment"][scores["clusters"][0]] == 1
        and scores["assignment"][scores["clusters"][-1]] == 0
    )
    assert 0 < scores["nmi"] < 1 and scores["ari"] < 0.5


def test_more_clusters_than_classes():
    features, labels = blobs()
    scores = cluster_scores(features, labels.clamp(max=1), n_clusters=3)
    assert sorted(scores["assignment"].tolist()) == [-1, 0, 1] and scores[
        "accuracy"
    ] == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no more clusters"):
        cluster_scores(features, labels, n_clusters=91)


def test_clusters_are_seeded():
    features = randn(60, 4)
    first, second = (
        cluster_scores(features, torch.arange(60) % 6, seed=3)["clusters"] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_embedding_keeps_neighbours_together():
    features, labels = blobs(n_per_class=12, spread=0.02)
    points = embed_2d(features)
    assert (
        points.shape == (36, 2)
        and points.dtype == torch.float32
        and torch.equal(points, embed_2d(features))
    )
    nearest = torch.cdist(points, points).fill_diagonal_(torch.inf).argmin(1)
    assert torch.equal(labels[nearest], labels)
    assert embed_2d(randn(4, 3)).shape == (4, 2)
    with pytest.raises(ValueError, match="at least 4"):
        embed_2d(randn(3, 3))


def test_the_pca_map_is_the_projection_on_the_first_two_directions():
    features = randn(40, 5) * torch.tensor([1.0, 5.0, 1.0, 3.0, 1.0])
    points = embed_2d(features, method="pca")
    x = features - features.mean(0)
    expected = x @ torch.linalg.svd(x, full_matrices=False).Vh[:2].T
    torch.testing.assert_close(points.abs(), expected.abs(), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="method='umap' must be"):
        embed_2d(features, method="umap")
