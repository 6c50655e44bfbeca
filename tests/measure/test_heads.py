import math

import pytest
import torch

from dino_lib.measure.heads import (
    agreement,
    choose_head,
    concentration,
    entropy,
    head_table,
    mirror_agreement,
    variety,
)
from dino_lib.measure.masks import above_blind, auc, blob


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


def test_concentration_runs_from_a_flat_map_to_one_patch():
    maps = torch.ones(2, 3, 4, 4)
    maps[:, 1] = 0
    maps[:, 1, 2, 2] = 0.1
    maps[:, 2, 2:] = 0
    torch.testing.assert_close(concentration(maps), torch.tensor([0, 1, 0.25]), atol=1e-6, rtol=0)
    torch.testing.assert_close(
        entropy(maps), torch.tensor([math.log(16), 0, math.log(8)]), atol=1e-6, rtol=0
    )


def test_variety_is_nothing_for_a_map_that_never_changes():
    maps = rand(6, 2, 5, 5)
    maps[:, 1] = maps[0, 1]
    scores = variety(maps)
    assert scores[1].abs() < 1e-6 and scores[0] > 0.3


def test_mirror_agreement_follows_the_picture():
    maps = rand(6, 3, 5, 7)
    mirrored = maps.flip(-1).clone()
    mirrored[:, 1] = maps[:, 1]  # stays where it is
    scores = mirror_agreement(torch.cat([maps, mirrored]))
    assert scores[0] == pytest.approx(1) and scores[1] < 0.5 and scores[2] == pytest.approx(1)
    with pytest.raises(ValueError, match="5 maps: expected pictures, then"):
        mirror_agreement(maps[:5])


def test_the_chosen_head_sees_the_object_and_no_mask_is_asked():
    masks, maps = heads()
    assert choose_head(maps) == 0 == above_blind(maps, masks).argmax()
    assert choose_head(maps.flip(1)) == 3
    assert choose_head(maps, by=lambda maps: torch.tensor([0, 1, 3, 2])) == 2
    for unfit in (maps[0], maps[:0]):
        with pytest.raises(ValueError, match=r"expected \(N >= 1, heads, h, w\)"):
            choose_head(unfit)


def test_the_table_tells_what_each_head_looks_at():
    masks, maps = heads()
    table = head_table(maps, masks)
    assert {name: column.shape for name, column in table.items()} == dict.fromkeys(
        ["object", "auc", "above_blind", "center", "entropy", "agreement"], (4,)
    )
    first = [(of * mask).sum() / of.sum() for of, mask in zip(maps[:, 0], masks, strict=True)]
    torch.testing.assert_close(table["object"][0], torch.stack(first).mean())
    assert table["center"].argmax() == 2 and table["center"][2] == pytest.approx(1)
    torch.testing.assert_close(table["auc"], auc(maps, masks))
    torch.testing.assert_close(table["above_blind"], above_blind(maps, masks))
    without = head_table(maps)
    assert list(without) == ["center", "entropy", "agreement"]
    torch.testing.assert_close(without["entropy"], table["entropy"])
