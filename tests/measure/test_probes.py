import json

import pytest
import torch

from dino_lib.backbone import create_backbone
from dino_lib.data.shapes import Shapes
from dino_lib.measure import probes as module
from dino_lib.measure.baselines import local_contrast
from dino_lib.measure.heads import choose_head
from dino_lib.measure.masks import (
    above_blind,
    auc,
    center_blobs,
    jaccard,
    jaccard_one_head,
    mass_mask,
    patch_masks,
    upsample,
)
from dino_lib.measure.probes import Probes, score_maps

SCORES = [
    "above_blind",
    "above_blind_best",
    "above_blind_blobs",
    "above_blind_others",
    "above_blind_contrast",
    "auc",
    "auc_best",
    "auc_blobs",
    "auc_others",
    "auc_contrast",
    "jaccard",
    "jaccard_best",
    "jaccard_blobs",
    "jaccard_others",
    "jaccard_contrast",
]


@pytest.fixture(scope="module")
def shapes():
    return Shapes(150, seed=1)


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return create_backbone(
        "vit_tiny_patch16_224", img_size=48, patch_size=8, embed_dim=24, depth=1, num_heads=3
    )


def probes_of(shapes, n_queries=70):
    n = len(shapes) - n_queries
    return Probes(
        shapes.images[:n],
        shapes.labels[:n],
        shapes.images[n:],
        shapes.labels[n:],
        shapes.masks[n:],
        (0.5, 0.4, 0.3),
        (0.2, 0.3, 0.4),
        shapes.classes,
    )


def test_images_become_floats_a_batch_at_a_time(shapes, vit, monkeypatch):
    events, normalize = [], Probes.normalize
    monkeypatch.setattr(
        Probes, "normalize", lambda self, images: events.append("made") or normalize(self, images)
    )
    hook = vit.register_forward_hook(lambda *args: events.append("seen"))
    probes_of(shapes).features(vit)  # 80 and 70 images
    hook.remove()
    assert events == ["made", "seen"] * 4


def test_features_and_attention_are_those_of_all_images_at_once(shapes, vit):
    probes = probes_of(shapes)
    mean, std = (torch.tensor(values)[:, None, None] for values in (probes.mean, probes.std))
    x = (probes.queries / 255 - mean) / std
    torch.testing.assert_close(probes.features(vit)[1], module.extract_features(vit, x))
    torch.testing.assert_close(probes.attention(vit, 66), module.cls_attention(vit, x[:66]))
    torch.testing.assert_close(probes.attention(vit.model, 3), module.cls_attention(vit, x[:3]))


def test_an_evaluation_scores_the_attention_on_the_first_queries(shapes, vit):
    probes = probes_of(shapes)
    scores = probes.evaluate(vit, n_masks=40)
    assert list(scores) == ["knn", "knn_per_class", "head", *SCORES]
    maps = score_maps(probes.attention(vit, 40), probes.masks[:40], probes.queries[:40])
    assert maps.items() <= scores.items()
    json.dumps(scores, allow_nan=False)  # a line of the history
    assert probes.evaluate(vit, probes.features(vit), n_masks=40) == scores
    probes.masks = None
    assert list(probes.evaluate(vit)) == ["knn", "knn_per_class"]


def test_a_cnn_has_knn_alone(shapes):
    assert list(probes_of(shapes).evaluate(create_backbone("resnet10t"))) == [
        "knn",
        "knn_per_class",
    ]


def test_a_cls_token_whose_attention_cannot_be_read_ends_no_evaluation(shapes):
    backbone = create_backbone("pit_ti_224", img_size=48)
    assert backbone.has_cls
    assert list(probes_of(shapes).evaluate(backbone)) == ["knn", "knn_per_class"]


def test_what_maps_are_scored_by(shapes):
    masks = shapes.masks[:30]
    maps = torch.rand(30, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    objects = patch_masks(masks, (6, 6))
    maps[:, 2] += objects  # the best one
    maps[:, 1] += 0.3 * objects
    scores = score_maps(maps, masks, shapes.images[:30])
    head = choose_head(maps)
    large = upsample(mass_mask(maps), (48, 48))
    assert scores["head"] == head and scores["jaccard"] == jaccard_one_head(large, masks)[head]
    assert (
        scores["above_blind"] == above_blind(maps, objects)[head]
        and scores["auc"] == auc(maps, objects)[head]
    )
    assert (
        scores["above_blind_best"] == above_blind(maps, objects)[2]
        and scores["auc_best"] == auc(maps, objects)[2]
    )
    assert scores["jaccard_best"] == jaccard(large, masks) != scores["jaccard"]
    blobs = center_blobs(4, (6, 6)).expand(30, -1, -1, -1)
    assert scores["above_blind_blobs"] == above_blind(blobs, objects).max()
    assert scores["auc_blobs"] == auc(blobs, objects).max()
    assert scores["jaccard_blobs"] == jaccard(upsample(mass_mask(blobs), (48, 48)), masks)
    others = torch.cat([objects[-1:], objects[:-1]])  # each picture with another's mask
    assert scores["above_blind_others"] == above_blind(maps, others).max() < 0.3
    assert scores["auc_others"] == auc(maps, others).max() < scores["auc_best"]
    assert scores["jaccard_others"] == jaccard(large, torch.cat([masks[-1:], masks[:-1]]))
    contrast = local_contrast(shapes.images[:30], (6, 6))[:, None]
    assert scores["above_blind_contrast"] == above_blind(contrast, objects)
    assert scores["auc_contrast"] == auc(contrast, objects)
    of_contrast = upsample(mass_mask(contrast), (48, 48))
    assert scores["jaccard_contrast"] == jaccard(of_contrast, masks)


def test_pictures_that_tell_nothing_of_a_map_end_no_run(shapes, vit):
    maps = torch.rand(30, 4, 6, 6)
    for masks in (shapes.masks[:1], torch.zeros(30, 48, 48).bool(), torch.ones(30, 48, 48).bool()):
        n = len(masks)
        assert list(score_maps(maps[:n], masks, shapes.images[:n])) == ["head"]
    assert list(probes_of(shapes, n_queries=1).evaluate(vit)) == ["knn", "knn_per_class", "head"]
