import pytest
import torch
import torch.nn.functional as F

from dino_lib.measure.clusters import chance_nmi, cluster_scores, embed_2d


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(n_per_class=30, n_classes=3, dim=5, spread=0.1):
    labels = torch.arange(n_classes).repeat(n_per_class)
    return F.one_hot(labels, dim).float() + spread * randn(len(labels), dim), labels


def test_clusters_that_are_the_classes():
    features, labels = blobs()
    scores = cluster_scores(features, labels + 4)
    assert scores["nmi"] == pytest.approx(1) and scores["ari"] == pytest.approx(1)
    assert scores["clusters"].dtype == torch.int64 and len(scores["clusters"].unique()) == 3


def test_another_number_of_clusters():
    features, labels = blobs()
    scores = cluster_scores(features, labels.clamp(max=1), n_clusters=3)
    assert 0 < scores["nmi"] < 1 and len(scores["clusters"].unique()) == 3
    with pytest.raises(ValueError, match="n_clusters=91"):
        cluster_scores(features, labels, n_clusters=91)


def test_clusters_are_seeded():
    features = randn(60, 4)
    first, second = (
        cluster_scores(features, torch.arange(60) % 6, seed=3)["clusters"] for _ in range(2)
    )
    assert torch.equal(first, second)


def test_random_clusters_score_more_the_fewer_pictures_they_hold():
    few, many = torch.arange(300) % 100, torch.arange(3000) % 10
    for labels in (few, many):
        n = len(labels.unique())
        nmi = [
            cluster_scores(randn(len(labels), 8, seed=seed), labels, n)["nmi"] for seed in range(3)
        ]
        assert chance_nmi(labels) == pytest.approx(sum(nmi) / 3, abs=0.02)
    assert chance_nmi(few) > 0.5 and chance_nmi(many) < 0.01
    assert chance_nmi(few + 7) == chance_nmi(few) != chance_nmi(few, seed=1)


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


@pytest.mark.parametrize("n", [4, 6, 30])
def test_features_that_are_all_alike_are_drawn(n):
    """scikit-learn's principal components of them would end the process."""
    row = F.normalize(randn(1, 8), dim=1)
    for features in (torch.ones(n, 8), row.expand(n, -1).clone()):
        points = embed_2d(features)
        assert points.shape == (n, 2) and points.isfinite().all()


def test_features_of_half_the_bits():
    features, labels = blobs()
    assert cluster_scores(features.bfloat16(), labels)["nmi"] > 0.9
    assert embed_2d(features.half()).shape == (len(features), 2)
