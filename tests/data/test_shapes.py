import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_lib.data.shapes import CLASSES, PALETTES, Shapes, _outline, _texture
from dino_lib.measure.knn import accuracy, color_histogram, knn_predict


@pytest.fixture(scope="module")
def shapes():
    return Shapes(500, seed=3)


def hue_of(images):
    """uint8 (..., 3, H, W) -> hue in turns, saturation, both (..., H, W)."""
    x = images.float() / 255
    r, g, b = x.unbind(-3)
    hue = torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b) / (2 * math.pi)
    return hue, x.amax(-3) - x.amin(-3)


def circular_mean(hue, weight):
    """Mean direction in turns, and how much the directions agree, from 0 to 1."""
    angle = 2 * math.pi * hue
    x, y, total = (weight * angle.cos()).sum(), (weight * angle.sin()).sum(), weight.sum()
    return math.atan2(y, x) / (2 * math.pi), (math.hypot(x, y) / total).item()


# --- the design ----------------------------------------------------------------------------------


def test_every_cue_belongs_to_two_classes_and_two_classes_share_one_at_most():
    assert len(CLASSES) == 10 and tuple(CLASSES) == Shapes.classes
    for cue in range(3):
        assert set(Counter(cues[cue] for cues in CLASSES.values()).values()) == {2}
    for a, b in itertools.combinations(CLASSES.values(), 2):
        assert len(set(a) & set(b)) <= 1
    assert {cues[0] for cues in CLASSES.values()} == set(PALETTES)


def test_textures_differ_and_have_their_symmetry():
    axis = torch.linspace(-1, 1, 41)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    u, v, freq = u[None], v[None], torch.full((1, 1, 1), 2.3)
    textures = {
        kind: _texture(kind, u, v, freq)[0] for kind in {cues[1] for cues in CLASSES.values()}
    }
    assert set(textures) == {"dots", "rings", "stripes", "rays", "checks"}
    assert all(t.std() > 0.4 for t in textures.values())
    for a, b in itertools.combinations(textures.values(), 2):
        assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1].abs() < 0.6
    assert (textures["stripes"] == textures["stripes"][:1]).all()  # along u alone
    assert torch.allclose(textures["rings"], textures["rings"].T, atol=1e-5)  # of the radius alone
    assert torch.allclose(
        textures["rays"][20, 25:], textures["rays"][20, 40:], atol=1e-5
    )  # of the angle alone
    assert torch.allclose(textures["dots"], textures["dots"].T, atol=1e-5)
    assert torch.allclose(textures["checks"], -textures["checks"].flip(0), atol=1e-5)


def test_outlines_differ_and_hold_their_center():
    axis = torch.linspace(-1.5, 1.5, 61)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    masks = {kind: _outline(kind, u, v) > 0 for kind in {cues[2] for cues in CLASSES.values()}}
    assert set(masks) == {"disc", "star", "flower", "drop", "leaf"}
    for mask in masks.values():
        assert mask[30, 30] and not mask[0].any() and not mask[:, 0].any()
        assert torch.equal(mask, mask.flip(0))  # upside down it is the same
    for a, b in itertools.combinations(masks.values(), 2):
        assert (a & b).sum() / (a | b).sum() < 0.85


# --- the pictures --------------------------------------------------------------------------------


def test_types_and_balance(shapes):
    assert len(shapes) == 500
    assert shapes.images.shape == (500, 3, 48, 48) and shapes.images.dtype == torch.uint8
    assert shapes.masks.shape == (500, 48, 48) and shapes.masks.dtype == torch.bool
    assert shapes.labels.dtype == torch.int64 and torch.equal(
        shapes.labels.bincount(), torch.full((10,), 50)
    )
    assert torch.equal(Shapes(13).labels.bincount(minlength=10), torch.tensor([2, 2, 2] + [1] * 7))
    image, label = shapes[17]
    assert isinstance(image, Image.Image) and image.mode == "RGB" and image.size == (48, 48)
    assert type(label) is int and label == 7
    assert torch.equal(torch.from_numpy(np.array(image)).permute(2, 0, 1), shapes.images[17])


def test_same_arguments_same_pictures_other_seed_other_pictures(shapes):
    again, other = Shapes(500, seed=3), Shapes(500, seed=4)
    assert torch.equal(again.images, shapes.images) and torch.equal(again.masks, shapes.masks)
    assert torch.equal(other.labels, shapes.labels)
    assert (
        len(torch.cat([shapes.images, other.images]).flatten(1).unique(dim=0)) == 1000
    )  # no picture comes twice
    assert not torch.equal(other.masks, shapes.masks)


def test_object_is_neither_a_speck_nor_the_whole_picture(shapes):
    share = shapes.masks.float().mean((1, 2))
    assert share.min() > 0.05 and share.max() < 0.75
    assert 0.2 < share.mean() < 0.5
    assert share.std() > 0.03  # sizes vary
    rows, columns = shapes.masks.any(2).float(), shapes.masks.any(1).float()
    center = torch.stack([(m * torch.arange(48)).sum(1) / m.sum(1) for m in (rows, columns)])
    assert (center.std(1) > 2).all()  # places too


def test_every_class_has_the_colour_of_its_palette_inside_its_mask_alone(shapes):
    hue, chroma = hue_of(shapes.images)
    eroded = -F.max_pool2d(-shapes.masks[:, None].float(), 5, 1, 2)[:, 0]
    for label, (palette, _, _) in enumerate(CLASSES.values()):
        mine = shapes.labels == label
        mean, agreement = circular_mean(hue[mine], chroma[mine] * eroded[mine])
        distance = (mean - PALETTES[palette] + 0.5) % 1 - 0.5
        assert abs(distance) < 0.06 and agreement > 0.6, Shapes.classes[label]
        _, outside = circular_mean(hue[mine], chroma[mine] * ~shapes.masks[mine])
        assert outside < 0.4, Shapes.classes[label]


def test_masks_lie_on_the_objects(shapes):
    """Colour changes across the mask's edge; across a shifted or mirrored mask's edge it changes
    less.
    """
    x, masks = shapes.images[:100].float(), shapes.masks[:100]

    def step_across(masks):
        m = masks.float()[:, None]
        ring_in = m * F.max_pool2d(1 - m, 5, 1, 2)
        ring_out = (1 - m) * F.max_pool2d(m, 5, 1, 2)
        inner, outer = (
            F.avg_pool2d(x * ring, 7, 1, 3) / F.avg_pool2d(ring, 7, 1, 3).clamp(min=1e-6)
            for ring in (ring_in, ring_out)
        )
        return ((inner - outer).abs().mean(1, keepdim=True) * ring_in).sum() / ring_in.sum()

    wrong = [masks.roll(s, d) for s, d in [(3, 1), (-3, 1), (3, 2), (-3, 2)]]
    wrong += [masks.flip(1), masks.flip(2), masks.transpose(1, 2), masks.roll(10, 0)]
    assert step_across(masks) > 1.1 * max(step_across(m) for m in wrong)


def test_objects_have_their_outline(shapes):
    """The share of its own bounding box that an object fills is the outline's, whatever else the
    class is.
    """
    fill = []
    for mask in shapes.masks:
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        fill.append(mask.sum() / ((rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)))
    fill = torch.stack(fill)
    by_outline = {outline: [] for _, _, outline in CLASSES.values()}
    for label, (_, _, outline) in enumerate(CLASSES.values()):
        by_outline[outline].append(fill[shapes.labels == label].mean().item())
    assert all(a == pytest.approx(b, abs=0.04) for a, b in by_outline.values())
    mean = {outline: sum(pair) / 2 for outline, pair in by_outline.items()}
    assert mean["disc"] == pytest.approx(math.pi / 4, abs=0.03)
    assert mean["star"] < mean["leaf"] - 0.1 and mean["leaf"] < mean["disc"] - 0.05


def test_a_palette_alone_does_not_give_the_class_away():
    train, test = Shapes(1500, seed=0), Shapes(500, seed=1)
    predicted = knn_predict(
        color_histogram(train.images), train.labels, color_histogram(test.images)
    )
    assert 0.2 < accuracy(predicted, test.labels)[0] < 0.65


@pytest.mark.parametrize("size", [16, 33, 96])
def test_any_size_from_16_up(size):
    shapes = Shapes(12, size=size)
    assert shapes.images.shape == (12, 3, size, size) and shapes.masks.shape == (12, size, size)
    assert 0.15 < shapes.masks.float().mean() < 0.6


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 5, "size": 15}])
def test_too_little_is_refused(arguments):
    with pytest.raises(
        ValueError,
        match=f"n={arguments['n']} must be at least 1 and size={arguments.get('size', 48)}",
    ):
        Shapes(**arguments)
