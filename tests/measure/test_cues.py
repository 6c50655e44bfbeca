import numpy as np
import pytest
import torch

from dino_lib.data.shapes import CLASSES, Shapes
from dino_lib.measure.cues import CUES, cues_by_chance, cues_of, cues_of_errors
from dino_lib.measure.knn import color_histogram, knn_predict

FOUR = [
    ("red", "dots", "disc"),
    ("red", "rings", "star"),
    ("blue", "rings", "disc"),
    ("blue", "dots", "leaf"),
]


def test_errors_are_counted_by_what_the_two_classes_share():
    labels = torch.tensor([0, 0, 0, 1, 1, 2, 3])
    predicted = torch.tensor([0, 1, 2, 0, 2, 2, 1])
    # wrong: red disc as red star, as blue disc; red star as red disc, as blue rings; leaf as star
    expected = {"palette": 2 / 5, "texture": 1 / 5, "outline": 1 / 5}
    assert cues_of_errors(predicted, labels, FOUR) == expected
    assert cues_of_errors(predicted.numpy(), labels.tolist(), FOUR) == expected
    assert cues_of_errors(labels, labels, FOUR) == {}  # no error


def test_chance_is_every_wrong_class_alike():
    # class 0 shares its palette with 1 of 3 others, its texture with 1, its outline with 1
    expected = {"palette": 1 / 3, "texture": 1 / 3, "outline": 1 / 3}
    assert cues_by_chance(torch.tensor([0, 0]), FOUR) == pytest.approx(expected)
    assert cues_by_chance([3], FOUR)["outline"] == 0
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4000)
    drawn = (labels + rng.integers(1, 4, 4000)) % 4
    found = cues_of_errors(drawn, labels, FOUR)
    assert cues_by_chance(labels, FOUR) == pytest.approx(found, abs=0.03)


def test_the_embedded_classes_alone_have_cues():
    assert cues_of(Shapes.classes) == list(CLASSES.values())
    assert cues_of(["moth", "bee"]) == [CLASSES["moth"], CLASSES["bee"]]
    assert {len(cues) for cues in cues_of(Shapes.classes)} == {len(CUES)}
    for others in (None, [], ["moth", "tench"]):
        assert cues_of(others) is None


def test_a_histogram_takes_classes_for_those_of_their_palette():
    gallery, queries = Shapes(400), Shapes(200, seed=1)
    features = [color_histogram(data.images) for data in (gallery, queries)]
    predicted = knn_predict(features[0], gallery.labels, features[1])
    cues = cues_of(Shapes.classes)
    found = cues_of_errors(predicted, queries.labels, cues)
    assert found["palette"] > 2 * cues_by_chance(queries.labels, cues)["palette"]
    assert found["palette"] > found["texture"]
