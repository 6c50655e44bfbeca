import itertools
import math
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from dino_lib.data import shapes as shapes_module
from dino_lib.data.shapes import (
    AREAS,
    CLASSES,
    LEVELS,
    PALETTES,
    Shapes,
    _outline,
    _texture,
)
from dino_lib.measure.knn import accuracy, color_histogram, knn_predict
from dino_lib.measure.masks import auc, center_blobs, patch_masks


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


def test_objects_are_small_and_large_and_lie_anywhere(shapes):
    share = shapes.masks.float().mean((1, 2))
    assert 0.15 < share.mean() < 0.3
    assert 0.03 < share.quantile(0.02) < 0.12 and 0.33 < share.quantile(0.98) < 0.6
    on_object = shapes.masks.float().mean(0)
    quarters = on_object.unflatten(0, (2, 24)).unflatten(2, (2, 24)).mean((1, 3))
    assert (quarters / quarters.mean() - 1).abs().max() < 0.15
    rim = torch.cat([on_object[0], on_object[-1], on_object[:, 0], on_object[:, -1]])
    assert rim.mean() > 0.3 * on_object.mean()  # cut by the border


def test_one_picture_in_five_has_two_creatures(monkeypatch):
    """A second creature adds to the mask: without it pictures of the same numbers have less."""
    with_two = Shapes(500, seed=3).masks.sum()
    only_first = shapes_module._Artist.creature

    def creature(artist, name, scale):
        paint, inside = only_first(artist, name, scale)
        return paint, inside if scale == 1 else torch.full_like(inside, -1)

    monkeypatch.setattr(shapes_module._Artist, "creature", creature)
    alone = Shapes(500, seed=3).masks
    more = with_two / alone.sum() - 1
    assert 0.05 < more < 0.2


def test_a_map_that_sees_no_picture_finds_little(shapes):
    objects = patch_masks(shapes.masks, (8, 8))
    blobs = center_blobs(1, (8, 8)).expand(len(objects), -1, -1, -1)
    assert auc(blobs, objects).item() < 0.65


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
    class is. Those that the border cuts have no say, and the median leaves out pairs.
    """
    by_outline = {outline: [] for _, _, outline in CLASSES.values()}
    for label, (_, _, outline) in enumerate(CLASSES.values()):
        fill = []
        for mask in shapes.masks[shapes.labels == label]:
            rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
            if min(rows[0], columns[0]) > 0 and max(rows[-1], columns[-1]) < 47:
                box = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
                fill.append((mask.sum() / box).item())
        by_outline[outline].append(np.median(fill))
    assert all(a == pytest.approx(b, abs=0.06) for a, b in by_outline.values())
    mean = {outline: sum(pair) / 2 for outline, pair in by_outline.items()}
    assert mean["disc"] == pytest.approx(math.pi / 4, abs=0.03)
    assert mean["star"] < mean["leaf"] - 0.05 and mean["leaf"] < mean["disc"] - 0.05


def test_the_classes_of_a_palette_have_equally_large_objects_equally_much_painted():
    """And none of them faintly: a small network can't tell dots from rings that hardly show."""
    axis = torch.linspace(-1.5, 1.5, 601)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    for outline, area in AREAS.items():
        assert (_outline(outline, u, v) > 0).float().mean() * 9 == pytest.approx(area, rel=0.01)
    u, v, freq = u[120:-120, 120:-120], v[120:-120, 120:-120], torch.tensor([[2.3]])
    painted = {
        texture: (_texture(texture, u, v, freq) > level).float().mean().item()
        for texture, level in LEVELS.items()
    }
    by_palette = {palette: [] for palette in PALETTES}
    for palette, texture, _ in CLASSES.values():
        by_palette[palette].append(painted[texture])
    assert all(a == pytest.approx(b, abs=0.05) for a, b in by_palette.values())
    assert min(painted.values()) > 0.35


def test_colours_alone_tell_less_than_half_of_the_pictures():
    """The full 4,000 tell 46 %."""
    train, test = Shapes(1500, seed=0), Shapes(500, seed=1)
    predicted = knn_predict(
        color_histogram(train.images), train.labels, color_histogram(test.images)
    )
    assert 0.2 < accuracy(predicted, test.labels)[0] < 0.5


@pytest.mark.parametrize("size", [16, 33, 96])
def test_any_size_from_16_up(size):
    shapes = Shapes(12, size=size)
    assert shapes.images.shape == (12, 3, size, size) and shapes.masks.shape == (12, size, size)
    assert 0.1 < shapes.masks.float().mean() < 0.4


@pytest.mark.parametrize("arguments", [{"n": 0}, {"n": 5, "size": 15}])
def test_too_little_is_refused(arguments):
    with pytest.raises(
        ValueError,
        match=f"n={arguments['n']} must be at least 1 and size={arguments.get('size', 48)}",
    ):
        Shapes(**arguments)
