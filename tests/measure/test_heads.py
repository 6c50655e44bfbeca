import copy
import math

import pytest
import torch

from dino_lib.backbone import create_backbone
from dino_lib.measure.attention import cls_attention
from dino_lib.measure.heads import (
    agreement,
    choose_head,
    entropy,
    foreground,
    head_table,
    inside,
    variety,
    without_head,
)
from dino_lib.measure.masks import above_blind, auc, blob

NO_MASKS = ["center", "entropy", "agreement", "inside", "variety"]


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def objects(n=20, size=8):
    """Masks (n, size, size) of squares that lie anywhere."""
    corners = torch.randint(0, size - 2, (n, 2), generator=torch.Generator().manual_seed(1))
    masks = torch.zeros(n, size, size, dtype=torch.bool)
    for mask, (row, col) in zip(masks, corners.tolist(), strict=True):
        mask[row : row + 3, col : col + 3] = True
    return masks


def heads():
    """Four heads: two that see the object, more and less clearly, the same place always, noise."""
    masks = objects()
    seen = masks.float()
    fixed = blob((8, 8)).expand(20, 8, 8)
    noise = rand(20, 8, 8)
    return masks, torch.stack(
        [seen + 0.3 * rand(20, 8, 8, seed=2), seen + 2 * rand(20, 8, 8, seed=3), fixed, noise], 1
    )


def correlation(a, b):
    return torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]


def test_agreement_is_the_correlation_with_the_mean_of_the_others():
    maps = rand(5, 3, 4, 6)
    others = (maps[:, 0] + maps[:, 2]) / 2
    expected = torch.stack(
        [correlation(a, b) for a, b in zip(maps[:, 1], others, strict=True)]
    ).mean()
    torch.testing.assert_close(agreement(maps)[1], expected)
    torch.testing.assert_close(agreement(1e-3 * maps), agreement(maps))
    assert agreement(maps[:, :1]).tolist() == [0]  # no other head


def test_entropy_runs_from_a_flat_map_to_one_patch():
    maps = torch.ones(2, 3, 4, 4)
    maps[:, 1] = 0
    maps[:, 1, 2, 2] = 0.1
    maps[:, 2, 2:] = 0
    expected = torch.tensor([math.log(16), 0, math.log(8)])
    torch.testing.assert_close(entropy(maps), expected, atol=1e-6, rtol=0)


def naive_inside(maps, border):
    """Of each map's patches, sorted, the first quarter; how many of them lie inside."""
    _, _, height, width = maps.shape
    scores = []
    for head in range(maps.shape[1]):
        found = []
        for picture in maps[:, head]:
            places = [(row, col) for row in range(height) for col in range(width)]
            places.sort(key=lambda place: -picture[place])
            for row, col in places[: round(len(places) / 4)]:
                away = min(row, col, height - 1 - row, width - 1 - col)
                found.append(away >= border)
        scores.append(sum(found) / len(found))
    return torch.tensor(scores)


@pytest.mark.parametrize("size, border", [((4, 6), 1), ((8, 8), 1), ((16, 16), 2)])
def test_inside_is_the_share_of_the_top_quarter_that_keeps_away_from_the_border(size, border):
    maps = rand(5, 3, *size)
    torch.testing.assert_close(inside(maps), naive_inside(maps, border))
    torch.testing.assert_close(inside(maps[:1]), naive_inside(maps[:1], border))


def test_a_head_that_never_changes_is_not_the_foreground():
    maps = rand(6, 2, 8, 8)
    maps[:, 1] = blob((8, 8))
    assert inside(maps).argmax() == 1
    scores = foreground(maps)
    assert scores[0] > 0.2 and scores[1] == -torch.inf
    assert foreground(maps[:1]).argmax() == 1  # of one picture nobody knows


def test_where_no_head_changes_much_the_most_varied_one_is_taken():
    maps = blob((8, 8)).expand(6, 3, -1, -1) + torch.tensor([0.01, 0.03, 0.02])[
        :, None, None] * rand(6, 3, 8, 8)
    assert (variety(maps) < 0.5).all()
    assert variety(maps).argmax() == 1 == choose_head(maps)
    assert foreground(maps).isfinite().sum() == 1


def test_of_heads_that_are_equally_inside_the_others_agree_with_the_better_one():
    maps = torch.zeros(8, 4, 8, 8)  # the top quarter of each lies within the middle 6 x 6
    maps[:, :, 1:-1, 1:-1] = rand(8, 4, 6, 6) - 0.4
    maps[:, 2] = maps[:, [0, 1, 3]].mean(1)
    assert inside(maps).tolist() == [1] * 4
    assert choose_head(maps) == 2


def test_a_grid_that_is_all_border_ends_nothing():
    assert inside(rand(3, 2, 2, 5)).tolist() == [0, 0] and choose_head(rand(3, 2, 1, 1)) == 0


def test_variety_is_nothing_for_a_map_that_never_changes():
    maps = rand(6, 2, 5, 5)
    maps[:, 1] = maps[0, 1]
    scores = variety(maps)
    assert scores[1].abs() < 1e-6 and scores[0] > 0.3


def test_the_chosen_head_sees_the_object_and_no_mask_is_asked():
    masks, maps = heads()
    assert choose_head(maps) == 0 == above_blind(maps, masks).argmax()
    assert choose_head(maps.flip(1)) == 3
    assert choose_head(maps, by=lambda maps: torch.tensor([0, 1, 3, 2])) == 2
    for unfit in (maps[0], maps[:0]):
        with pytest.raises(ValueError, match=r"expected \(N >= 1, heads, h, w\)"):
            choose_head(unfit)


def test_heads_that_agree_about_the_ground_are_not_chosen():
    masks = objects()
    seen = masks.float()
    noise = rand(20, 4, 8, 8)
    ground = [1 - seen + 0.2 * noise[:, i] for i in range(3)]
    maps = torch.stack([*ground, seen + noise[:, 3]], 1)
    assert choose_head(maps, by=agreement) < 3 and choose_head(maps) == 3
    assert above_blind(maps, masks).argmax() == 3


def test_the_table_tells_what_each_head_looks_at():
    masks, maps = heads()
    table = head_table(maps, masks)
    assert {name: column.shape for name, column in table.items()} == dict.fromkeys(
        ["object", "auc", "above_blind", *NO_MASKS], (4,)
    )
    first = [(of * mask).sum() / of.sum() for of, mask in zip(maps[:, 0], masks, strict=True)]
    torch.testing.assert_close(table["object"][0], torch.stack(first).mean())
    assert table["center"].argmax() == 2 and table["center"][2] == pytest.approx(1)
    torch.testing.assert_close(table["auc"], auc(maps, masks))
    torch.testing.assert_close(table["above_blind"], above_blind(maps, masks))
    without = head_table(maps)
    assert list(without) == NO_MASKS
    torch.testing.assert_close(without["entropy"], table["entropy"])


@pytest.fixture
def vit():
    torch.manual_seed(0)
    return create_backbone(
        "vit_tiny_patch16_224", img_size=24, patch_size=8, embed_dim=24, depth=2, num_heads=3
    ).eval()


@pytest.mark.parametrize("layer", [-1, 0])
def test_a_head_that_is_taken_out_is_one_whose_columns_are_zero(vit, layer):
    images = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    before = vit(images)
    for head in range(3):
        naive = copy.deepcopy(vit)
        naive.model.blocks[layer].attn.proj.weight.data[:, 8 * head : 8 * head + 8] = 0
        with without_head(vit, head, layer):
            torch.testing.assert_close(vit(images), naive(images))
            assert (vit(images) - before).abs().max() > 1e-4
    with without_head(vit.model, 1), pytest.raises(RuntimeError):
        vit(torch.ones(2, 3, 24, 24, dtype=torch.int64))
    torch.testing.assert_close(vit(images), before, atol=0, rtol=0)  # the hook is gone
    with without_head(vit, 2):
        others = cls_attention(vit, images)
    torch.testing.assert_close(others, cls_attention(vit, images))


def test_what_cannot_be_taken_out_is_said(vit):
    with pytest.raises(ValueError, match="head=3: there are 3"), without_head(vit, 3):
        pass
    cnn = create_backbone("resnet10t")
    with pytest.raises(TypeError, match="ResNet has no heads"), without_head(cnn, 0):
        pass
