import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.neighbors import KNeighborsClassifier

from dino_lib.measure.clusters import cluster_scores
from dino_lib.measure.knn import (
    accuracy,
    class_ids,
    color_histogram,
    knn_predict,
    linear_probe,
    nearest,
    retrieval_map,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def blobs(n_per_class=30, n_classes=3, dim=5, spread=0.1):
    labels = torch.arange(n_classes).repeat(n_per_class)
    return F.one_hot(labels, dim).float() + spread * randn(len(labels), dim), labels


def naive_knn(train, labels, test, k, temperature):
    train, test, predicted = F.normalize(train, dim=1), F.normalize(test, dim=1), []
    for row in test:
        similarity = train @ row
        scores = torch.zeros(int(labels.max()) + 1, dtype=torch.float64)
        for i in similarity.argsort(descending=True)[:k]:
            scores[labels[i]] += torch.exp(similarity[i].double() / temperature)
        predicted.append(int(scores.argmax()))
    return torch.tensor(predicted)


@pytest.mark.parametrize("k, temperature", [(1, 0.07), (5, 0.07), (20, 0.07), (20, 1.0), (60, 0.2)])
def test_knn_is_the_definition(k, temperature):
    train, labels, test = 3 * randn(60, 6), torch.arange(60) % 7, randn(40, 6, seed=1)
    predicted = knn_predict(train, labels, test, k=k, temperature=temperature)
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, naive_knn(train, labels, test, k, temperature))


def test_knn_defaults_are_twenty_neighbours_at_007():
    train, labels, test = randn(200, 3), torch.arange(200) % 5, randn(300, 3, seed=1)
    assert torch.equal(knn_predict(train, labels, test), naive_knn(train, labels, test, 20, 0.07))
    assert not torch.equal(
        knn_predict(train, labels, test), naive_knn(train, labels, test, 19, 0.07)
    )
    assert not torch.equal(
        knn_predict(train, labels, test), naive_knn(train, labels, test, 20, 0.1)
    )


def test_knn_agrees_with_sklearn():
    train, labels, test = (
        F.normalize(randn(80, 8), dim=1),
        torch.arange(80) % 4,
        F.normalize(randn(50, 8, seed=1)),
    )
    reference = KNeighborsClassifier(
        10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07)
    )
    reference.fit(train.numpy(), labels.numpy())
    assert (
        knn_predict(train, labels, test, k=10).tolist() == reference.predict(test.numpy()).tolist()
    )


def test_temperature_weighs_nearness_against_number():
    train, labels = torch.tensor([[1.0, 0.0], [0.8, 0.6], [0.8, 0.6]]), torch.tensor([0, 1, 1])
    near, far = torch.tensor([[1.0, 0.0]]), 10.0
    assert knn_predict(train, labels, near, k=3, temperature=0.07).tolist() == [0]
    assert knn_predict(train, labels, near, k=3, temperature=far).tolist() == [1]
    assert knn_predict(train, labels, near, k=3, temperature=1e-4).tolist() == [
        0
    ]  # exp(10000) without overflow
    assert knn_predict(train, labels, -near, k=3, temperature=1e-4).tolist() == [1]


def test_equal_scores_go_to_the_lower_class():
    train = torch.eye(3)[[0, 0, 1, 1]]
    for labels in ([5, 2, 9, 9], [2, 5, 9, 9]):
        assert knn_predict(train, torch.tensor(labels), torch.eye(3)[:1], k=2).tolist() == [2]


def test_class_ids_need_not_be_dense():
    train, labels = blobs()
    ids = torch.tensor([3, 10**12, 7])
    assert torch.equal(
        knn_predict(train, ids[labels], train, k=5), ids[knn_predict(train, labels, train, k=5)]
    )


def test_knn_in_blocks_is_knn():
    train, labels = randn(2**14, 3), torch.arange(2**14) % 11
    test = randn(1030, 3, seed=1)  # blocks of 1024 rows
    predicted = knn_predict(train, labels, test)
    assert torch.equal(predicted[-20:], naive_knn(train, labels, test[-20:], 20, 0.07))
    assert torch.equal(predicted[:20], naive_knn(train, labels, test[:20], 20, 0.07))
    assert len(predicted) == 1030 and len(knn_predict(train, labels, test[:0])) == 0


@pytest.mark.parametrize(
    "change, message",
    [
        ({"k": 11}, "k=11"),
        ({"k": 0}, "k=0"),
        ({"train_labels": torch.arange(9)}, "10 integers"),
        ({"train_labels": torch.rand(10)}, "10 integers"),
        ({"train_labels": torch.arange(10) - 1}, "hold -1"),
        ({"temperature": 0.0}, "temperature=0"),
    ],
)
def test_knn_refuses(change, message):
    arguments = {
        "train_features": randn(10, 4),
        "train_labels": torch.arange(10),
        "test_features": randn(4, 4),
        "k": 5,
    }
    assert len(knn_predict(**arguments)) == 4
    with pytest.raises(ValueError, match=message):
        knn_predict(**{**arguments, **change})


def test_accuracy_overall_and_by_class():
    overall, per_class = accuracy(torch.tensor([0, 0, 0, 1, 7]), torch.tensor([0, 0, 0, 0, 7]))
    assert overall == pytest.approx(4 / 5) and per_class == pytest.approx((3 / 4 + 1) / 2)
    with pytest.raises(ValueError, match="expected 2 integers"):
        accuracy([0, 1], [0])
    with pytest.raises(ValueError, match="N >= 1"):
        accuracy([], [])
    with pytest.raises(ValueError, match="predicted hold 'cat': expected whole numbers"):
        accuracy(["cat"], [0])
    assert accuracy([-1, 3], [1, 3]) == (
        0.5,
        0.5,
    )  # no class is predicted, as by a cluster beyond the classes


@pytest.mark.parametrize("bins", [1, 3, 8])
def test_color_histogram_is_numpys(bins):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 3, 9, 7), dtype=np.uint8)
    images[0, :, 0] = 255
    features = color_histogram(torch.from_numpy(images), bins)
    assert features.shape == (3, bins**3) and features.dtype == torch.float32
    edges = [np.linspace(0, 256, bins + 1)] * 3
    for image, feature in zip(images, features, strict=True):
        share = np.histogramdd(image.reshape(3, -1).T, bins=edges)[0].ravel() / (9 * 7)
        np.testing.assert_allclose(feature, np.sqrt(share), atol=1e-6)


def test_color_histogram_of_grey_images():
    images = torch.randint(
        0, 256, (4, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    counts = torch.stack([torch.histc(image[0].float(), 8, 0, 256) for image in images])
    torch.testing.assert_close(color_histogram(images), F.normalize((counts / 64).sqrt()))


def test_color_histogram_of_many_images():
    images = torch.randint(
        0, 256, (350, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    features = color_histogram(images, bins=4)
    torch.testing.assert_close(features[-12:], color_histogram(images[-12:], bins=4))
    assert len(features) == 350


@pytest.mark.parametrize("images", [torch.zeros(2, 3, 4, 4), torch.zeros(3, 4, 4).byte()])
def test_color_histogram_refuses(images):
    with pytest.raises(ValueError, match=r"uint8 \(N, C, H, W\)"):
        color_histogram(images)


def test_linear_probe_standardises():
    features, labels = blobs(spread=0.3)
    classes = torch.tensor([4, 1, 6])
    test, test_labels = features[60:] + 0.05, classes[labels[60:]]
    predicted = linear_probe(features[:60], classes[labels[:60]], test)
    assert predicted.dtype == torch.int64 and (predicted == test_labels).float().mean() > 0.9
    scale = torch.tensor([1e-4, 1.0, 100.0, 1.0, 1.0])
    assert torch.equal(
        linear_probe(features[:60] * scale, classes[labels[:60]], test * scale), predicted
    )


def test_the_nearest_come_first_whatever_the_lengths():
    gallery = torch.tensor([[1.0, 0.0], [10.0, 10.0], [0.0, 0.1]])
    cosine, index = nearest(gallery, torch.tensor([[0.2, 0.1]]), 3)
    assert index.tolist() == [[1, 0, 2]]
    torch.testing.assert_close(
        cosine, torch.tensor([[3, 2, 1]]) / torch.tensor([[10**0.5, 5**0.5, 5**0.5]])
    )


def test_average_precision_by_hand():
    # by cosine with (1, 0): a, b, a, b; the precision at the two relevant ranks is 1 / 1 and 2 / 3
    gallery = torch.tensor([[1.0, 0.0], [1.0, 0.2], [1.0, 0.5], [1.0, 0.9]])
    query = torch.tensor([[2.0, 0.0]])
    assert retrieval_map(gallery, [0, 1, 0, 1], query, [0]) == pytest.approx((1 + 2 / 3) / 2)
    assert retrieval_map(gallery, [0, 1, 0, 1], query, [1]) == pytest.approx((1 / 2 + 2 / 4) / 2)
    # a query without a relevant image has no say
    assert retrieval_map(gallery, [0, 1, 0, 1], query.expand(2, -1), [0, 7]) == pytest.approx(
        (1 + 2 / 3) / 2
    )


def test_average_precision_against_a_naive_loop():
    gallery, labels = blobs(spread=0.6)
    queries, asked = randn(300, 5, seed=2), torch.arange(300) % 3  # more than a block
    expected = []
    for query, label in zip(queries, asked, strict=True):
        relevant = labels[(gallery @ query / gallery.norm(dim=1)).argsort(descending=True)] == label
        ranks = relevant.nonzero()[:, 0]
        expected.append(((torch.arange(len(ranks)) + 1) / (ranks + 1)).mean().item())
    assert retrieval_map(gallery, labels, queries, asked) == pytest.approx(
        np.mean(expected), abs=1e-5
    )


def test_unfit_retrievals_are_refused():
    with pytest.raises(ValueError, match="k=4 must lie between 1 and"):
        nearest(randn(3, 2), randn(1, 2), 4)
    with pytest.raises(ValueError, match=r"gallery_labels .*expected 3 integers"):
        retrieval_map(randn(3, 2), [0, 1], randn(1, 2), [0])
    with pytest.raises(ValueError, match="no query has"):
        retrieval_map(randn(3, 2), [0, 1, 1], randn(1, 2), [2])


NAMES = ["cat", "dog", "cat", "dog", "cat", "dog"]
TAKES_LABELS = {  # every function that takes labels, with the features of six images
    "knn_predict": lambda f, labels: knn_predict(f, labels, f, k=1),
    "linear_probe": lambda f, labels: linear_probe(f, labels, f),
    "accuracy": lambda f, labels: accuracy(np.unique(NAMES, return_inverse=True)[1], labels),
    "retrieval_map, gallery": lambda f, labels: retrieval_map(f, labels, f[:2], [0, 1]),
    "retrieval_map, queries": lambda f, labels: retrieval_map(f, [0, 1] * 3, f, labels),
    "cluster_scores": lambda f, labels: cluster_scores(f, labels),
}


@pytest.mark.parametrize("name", TAKES_LABELS)
def test_labels_that_are_text_are_refused_with_the_remedy_which_works(name):
    call, features = TAKES_LABELS[name], F.one_hot(torch.tensor([0, 1] * 3), 4).float()
    for text in (NAMES, np.array(NAMES), np.array(NAMES, dtype=object), tuple(NAMES)):
        with pytest.raises(
            ValueError, match=r"hold 'cat': expected whole numbers; .*np.unique\(labels, return_inv"
        ):
            call(features, text)
    call(features, np.unique(NAMES, return_inverse=True)[1])
    call(features, torch.tensor([0, 1] * 3))
    with pytest.raises(ValueError, match="class ids start at 0"):
        call(features, [0, 1, 0, 1, 0, -1])
    with pytest.raises(ValueError, match="expected 6 integers"):
        call(features, [0, 1, 0, 1])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.uint32, np.uint64])
def test_class_ids_without_a_sign(kind):
    assert class_ids(np.array([0, 3, 200], kind), 3).tolist() == [0, 3, 200]
