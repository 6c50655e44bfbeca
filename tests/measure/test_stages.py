"""What a report takes of a network: the head to show, maps that are fine enough to see."""

import dataclasses

import pytest
import torch

from dino_lib.backbone import create_backbone
from dino_lib.data.shapes import CLASSES, Shapes
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.heads import choose_head
from dino_lib.measure.knn import accuracy, knn_predict
from dino_lib.measure.masks import above_blind, patch_masks
from dino_lib.measure.probes import Probes
from dino_lib.measure.stages import (
    chance_scores,
    error_scores,
    examine,
    fine_attention,
    histogram_scores,
)


@pytest.fixture(scope="module")
def probes():
    gallery, queries = Shapes(40), Shapes(30, seed=1)
    return Probes(
        gallery.images,
        gallery.labels,
        queries.images,
        queries.labels,
        queries.masks,
        (0.5,) * 3,
        (0.25,) * 3,
        Shapes.classes,
    )


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return create_backbone(
        "vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=16, depth=1, num_heads=2
    ).eval()


def test_the_head_that_is_shown_is_chosen_without_masks(probes, backbone):
    pictures = torch.arange(4)
    found = examine(backbone, probes, torch.arange(20), pictures)
    maps = probes.attention(backbone, 200)
    head = choose_head(maps)
    assert found.scores["head"] == head and found.label == f"head {head}"
    objects = patch_masks(probes.masks, maps.shape[2:])
    assert found.scores["above_blind"] == pytest.approx(above_blind(maps, objects)[head].item())
    images = probes.normalize(probes.queries[pictures])
    torch.testing.assert_close(found.maps, fine_attention(backbone, images)[:, head])
    bare = dataclasses.replace(probes, masks=None)
    again = examine(backbone, bare, torch.arange(20), pictures)
    assert again.label == found.label and torch.equal(again.maps, found.maps)


def test_features_at_hand_are_not_computed_again(probes, backbone):
    generator = torch.Generator().manual_seed(0)
    features = [torch.randn(*of.shape, generator=generator) for of in probes.features(backbone)]
    found = examine(backbone, probes, torch.arange(20), torch.arange(2), True, tuple(features))
    assert found.scores["knn"] == accuracy(probes.predict(*features), probes.query_labels)[0]
    assert found.scores["knn"] != probes.evaluate(backbone)["knn"]


@pytest.mark.parametrize(
    "side, grid", [(4, (6, 6)), (12, (12, 12)), (16, (18, 18)), (99, (24, 24))]
)
def test_maps_to_look_at_are_finer_where_the_network_takes_larger_pictures(backbone, side, grid):
    images = torch.randn(2, 3, 48, 48)
    assert fine_attention(backbone, images, side).shape == (2, 2, *grid)
    torch.testing.assert_close(fine_attention(backbone, images, 4), cls_attention(backbone, images))


def test_a_network_that_takes_its_own_size_alone_shows_its_own_grid():
    beit = create_backbone(
        "beitv2_base_patch16_224", depth=1, embed_dim=48, num_heads=2, img_size=64
    )
    assert fine_attention(beit, torch.randn(1, 3, 64, 64)).shape == (1, 2, 4, 4)


def test_the_colour_histogram_tells_plain_colours_apart():
    images = torch.zeros(30, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(30) % 3
    images[torch.arange(30), labels] = 200
    probes = Probes(images, labels, images[:9], labels[:9], None, (0.5,) * 3, (0.5,) * 3)
    assert histogram_scores(probes) == {"knn": 1.0, "knn_per_class": 1.0}
    found = histogram_scores(probes, torch.arange(9))
    assert all(found[name] == pytest.approx(1) for name in ("knn", "nmi", "map", "linear"))
    probes.query_labels = (labels[:9] + 1) % 3
    assert histogram_scores(probes) == {"knn": 0.0, "knn_per_class": 0.0}


def test_errors_are_told_by_what_they_share_with_the_right_class(probes, backbone):
    found = examine(backbone, probes, torch.arange(20), torch.arange(2), thorough=True).scores
    names = ["errors_palette", "errors_texture", "errors_outline"]
    gallery, queries = probes.features(backbone)
    predicted = knn_predict(gallery, probes.gallery_labels, queries)
    wrong = (predicted != probes.query_labels).nonzero()[:, 0]
    pairs = [(predicted[i].item(), probes.query_labels[i].item()) for i in wrong]
    cues = list(CLASSES.values())
    for i, name in enumerate(names):
        share = sum(cues[a][i] == cues[b][i] for a, b in pairs) / len(pairs)
        assert found[name] == pytest.approx(share)
    assert list(histogram_scores(probes)) == ["knn", "knn_per_class", *names]
    assert all(0 <= error_scores(probes)[name] < 1 for name in names)
    strangers = dataclasses.replace(probes, classes=list("abcdefghij"))
    assert list(histogram_scores(strangers)) == ["knn", "knn_per_class"]
    assert error_scores(strangers) == {}
    assert list(chance_scores(strangers, torch.arange(20))) == ["nmi"]
    assert list(chance_scores(probes, torch.arange(20))) == [*names, "nmi"]
