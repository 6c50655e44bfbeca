import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from dino_lib.measure.masks import (
    above_blind,
    are_comparable,
    auc,
    blob,
    center_blobs,
    jaccard,
    jaccard_one_head,
    mass_mask,
    patch_masks,
    upsample,
)


def test_mask_by_hand():
    maps = torch.tensor(
        [[[4.0, 1.0], [2.0, 3.0]], [[0.0, 0.02], [0.0, 0.06]]]
    )  # any scale: renormalised
    for keep, expected in [
        (0.3, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]),
        (0.4, [[[1, 0], [0, 0]], [[0, 0], [0, 1]]]),
        (0.41, [[[1, 0], [0, 1]], [[0, 0], [0, 1]]]),
        (0.76, [[[1, 0], [1, 1]], [[0, 1], [0, 1]]]),
        (1.0, [[[1, 1], [1, 1]], [[0, 1], [0, 1]]]),
    ]:
        mask = mass_mask(maps, keep)
        assert mask.dtype == torch.bool and mask.int().tolist() == expected, keep


def test_mask_keeps_six_tenths_unless_said():
    maps = torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (
        torch.equal(mass_mask(maps), mass_mask(maps, 0.6)) and mass_mask(maps).shape == maps.shape
    )


@pytest.mark.parametrize("n", [4, 10, 30, 60, 100, 3600])
@pytest.mark.parametrize("keep", [0.1, 0.5, 0.6])
def test_uniform_maps_lose_nothing_to_rounding(n, keep):
    maps = torch.full((1, n), 1.0).softmax(-1)
    mask = mass_mask(maps[None], keep)
    assert mask.sum() == -(-n * round(keep * 10) // 10)  # n * keep rounded up, in integers
    assert mask.flatten()[: mask.sum()].all()  # the first in reading order


def test_a_share_that_rounding_just_misses_is_reached():
    maps = torch.tensor([[0.35, 0.25], [0.2, 0.2]])
    assert maps[0].double().sum() / maps.double().sum() < 0.6
    assert mass_mask(maps, 0.6).tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("keep", [1e-9, 0.2, 0.6, 0.95])
def test_mask_is_the_smallest_that_reaches_the_share(keep):
    maps = (3 * torch.randn(4, 6, 7, 5, generator=torch.Generator().manual_seed(0))).exp()
    share = (maps / maps.sum((2, 3), keepdim=True)).double()
    mask = mass_mask(maps, keep)
    held = (share * mask).sum((2, 3))
    smallest = share.masked_fill(~mask, torch.inf).amin((2, 3))
    assert (held >= keep).all() and (held - smallest < keep).all()
    assert (share.masked_fill(mask, 0).amax((2, 3)) <= smallest).all()


def test_all_the_mass_is_every_patch_with_mass():
    maps = torch.tensor([[1.0, 1e-12], [0.0, 1.0]])
    assert mass_mask(maps, 1.0).tolist() == [[True, True], [False, True]]
    assert not mass_mask(torch.zeros(2, 2), 0.5).any()


@pytest.mark.parametrize("keep", [0.0, -0.1, 1.01, float("nan")])
def test_unfit_shares_are_refused(keep):
    with pytest.raises(ValueError, match="keep="):
        mass_mask(torch.ones(2, 2), keep)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_maps_that_are_no_mass_are_refused(value):
    with pytest.raises(ValueError, match="negative or NaN"):
        mass_mask(torch.tensor([[1.0, value]]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bool, torch.uint8])
def test_upsampling_repeats(dtype):
    maps = torch.tensor([[[0, 1], [1, 1]]]).to(dtype)
    up = upsample(maps, (4, 6))
    assert up.dtype == dtype
    assert torch.equal(up, maps.repeat_interleave(2, 1).repeat_interleave(3, 2))
    assert torch.equal(upsample(up, (2, 2)), maps)


@pytest.mark.parametrize("size", [(7, 5), (50, 3), (2, 9)])
def test_upsampling_to_any_size_is_torchs_nearest_exact(size):
    maps = torch.rand(2, 3, 4, 6)
    assert torch.equal(upsample(maps, size), F.interpolate(maps, size, mode="nearest-exact"))


def test_jaccard_by_hand():
    truth = torch.zeros(3, 2, 2, dtype=torch.bool)
    truth[0, 0] = True  # the upper row
    truth[1] = True
    masks = torch.zeros(3, 2, 2, 2, dtype=torch.bool)
    masks[0, 0, 0, 0] = True  # half the row: 1/2
    masks[0, 1, :, 0] = True  # one in, one out of it: 1/3
    masks[1, 1, 0, 0] = True  # 1/4; head 0 is empty: 0
    # image 2: nothing anywhere, an empty union
    assert jaccard(masks, truth) == pytest.approx((1 / 2 + 1 / 4 + 0) / 3)
    torch.testing.assert_close(
        jaccard_one_head(masks, truth), torch.tensor([1 / 6, (1 / 3 + 1 / 4) / 3])
    )


@pytest.mark.parametrize(
    "masks, truth, error",
    [
        (torch.ones(1, 2, 4, 4), torch.ones(1, 4, 4).bool(), TypeError),
        (torch.ones(1, 2, 4, 4).bool(), torch.ones(1, 4, 4), TypeError),
        (torch.ones(1, 2, 4, 4).bool(), torch.ones(1, 8, 8).bool(), ValueError),
        (torch.ones(1, 4, 4).bool(), torch.ones(1, 4, 4).bool(), ValueError),
    ],
)
def test_jaccard_refuses(masks, truth, error):
    for score in (jaccard, jaccard_one_head):
        with pytest.raises(error, match="expected"):
            score(masks, truth)


# --- maps against objects ------------------------------------------------------------------------


def objects_and_maps(n=7, heads=3, grid=(4, 5), seed=0):
    """Objects of several sizes, and maps with many ties."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(n, *grid, generator=generator) > torch.linspace(0.3, 0.8, n)[:, None, None]
    maps = torch.randint(0, 4, (n, heads, *grid), generator=generator) / 4 + 0.3 * masks[:, None]
    return maps, masks


def against(a, b):
    return float(a > b) + 0.5 * float(a == b)


def naive_auc(values, mask):
    pairs = list(itertools.product(values[mask].tolist(), values[~mask].tolist()))
    return np.mean([against(a, b) for a, b in pairs])


def naive_shuffled(maps, masks):
    """One head's maps (N, h, w): the mean over the pictures with an object of s, in loops."""
    shown, scores = [i for i in range(len(masks)) if masks[i].any()], []
    for i in shown:
        others = sum(masks[j].double() for j in shown if j != i)
        weights = (others / others.sum()).flatten().tolist()
        values = maps[i].flatten().tolist()
        inside = masks[i].flatten().nonzero()[:, 0].tolist()
        scores.append(
            np.mean(
                [
                    sum(w * against(values[p], v) for w, v in zip(weights, values, strict=True))
                    for p in inside
                ]
            )
        )
    return np.mean(scores)


def naive_above_blind(maps, masks):
    best = naive_shuffled(masks.double(), masks)
    return [
        (naive_shuffled(maps[:, head], masks) - 0.5) / (best - 0.5) for head in range(maps.shape[1])
    ]


def test_auc_is_the_share_of_pairs_that_are_in_order():
    maps, masks = objects_and_maps()
    for head, found in enumerate(auc(maps, masks)):
        expected = np.mean([naive_auc(maps[i, head], masks[i]) for i in range(7)])
        assert found.item() == pytest.approx(expected, abs=1e-6)
    assert auc(maps, masks).shape == (3,) and auc(maps, masks).dtype == torch.float32


def test_auc_of_perfect_blind_flat_and_reversed_maps():
    _, masks = objects_and_maps()
    truth = masks[:, None].float()
    assert auc(torch.cat([truth, 1 - truth, torch.ones_like(truth)], 1), masks).tolist() == [
        1,
        0,
        0.5,
    ]


@pytest.mark.parametrize("seed", range(3))
def test_above_blind_is_its_definition(seed):
    maps, masks = objects_and_maps(seed=seed)
    np.testing.assert_allclose(above_blind(maps, masks), naive_above_blind(maps, masks), atol=1e-6)
    masks[2] = False  # nothing there
    masks[4] = True  # all over
    np.testing.assert_allclose(above_blind(maps, masks), naive_above_blind(maps, masks), atol=1e-6)


def test_the_masks_themselves_are_one_above_blind_also_with_empty_and_full_ones():
    _, masks = objects_and_maps()
    for change in (None, False, True):
        if change is not None:
            masks[3] = change
        assert above_blind(masks[:, None].float(), masks).item() == pytest.approx(1, abs=1e-6)


def test_a_fixed_map_is_zero_above_blind_where_objects_are_equally_large():
    generator = torch.Generator().manual_seed(0)
    places = torch.rand(40, 36, generator=generator).argsort(1)[:, :7]
    masks = torch.zeros(40, 36, dtype=torch.bool).scatter_(1, places, True).view(40, 6, 6)
    fixed = torch.cat(
        [torch.rand(2, 6, 6, generator=generator), center_blobs(3, (6, 6)), torch.ones(1, 6, 6)]
    )
    scores = above_blind(fixed.expand(40, -1, -1, -1), masks)
    torch.testing.assert_close(scores, torch.zeros(6), atol=1e-6, rtol=0)
    assert auc(fixed.expand(40, -1, -1, -1), masks)[-1] == 0.5


def test_objects_in_the_middle_fool_auc_but_not_above_blind():
    rng = np.random.default_rng(0)
    masks = torch.stack([blob((12, 12), *rng.uniform(-0.2, 0.2, 2), 0.4) > 0.6 for _ in range(100)])
    blind = center_blobs(4, (12, 12)).expand(100, -1, -1, -1)
    assert auc(blind, masks).max() > 0.9 and above_blind(blind, masks).abs().max() < 0.1


def test_pictures_without_an_object_or_a_background_have_no_say():
    maps, masks = objects_and_maps()
    empty = torch.zeros_like(masks[:1])
    more = torch.cat([masks, empty]), torch.cat([maps, torch.rand(1, 3, 4, 5)])
    torch.testing.assert_close(auc(more[1], more[0]), auc(maps, masks))
    torch.testing.assert_close(above_blind(more[1], more[0]), above_blind(maps, masks))
    torch.testing.assert_close(auc(more[1], torch.cat([masks, ~empty])), auc(maps, masks))


def test_objects_that_tell_nothing_are_refused():
    maps, masks = objects_and_maps(n=3)
    alike = masks[:1].expand(3, -1, -1)
    for some in (
        alike,
        masks & torch.tensor([True, False, False])[:, None, None],
        torch.ones_like(masks),
    ):
        assert not are_comparable(some)
        with pytest.raises(ValueError, match="two objects or more that lie differently"):
            above_blind(maps, some)
    assert are_comparable(masks)
    for some in (torch.zeros_like(masks), torch.ones_like(masks)):
        with pytest.raises(ValueError, match="no patch or all"):
            auc(maps, some)


@pytest.mark.parametrize(
    "maps, masks, error, words",
    [
        (torch.ones(2, 3, 4, 4), torch.ones(2, 4, 4), TypeError, "expected bool"),
        (torch.ones(2, 3, 4, 4), torch.ones(2, 8, 8).bool(), ValueError, "patch_masks brings"),
        (torch.ones(2, 4, 4), torch.ones(2, 4, 4).bool(), ValueError, "do not fit"),
        (torch.full((2, 3, 4, 4), torch.nan), torch.ones(2, 4, 4).bool(), ValueError, "NaN"),
    ],
)
def test_unfit_maps_and_masks_are_refused(maps, masks, error, words):
    for score in (auc, above_blind):
        with pytest.raises(error, match=words):
            score(maps, masks)


def test_a_patch_is_the_objects_if_more_than_half_is():
    masks = torch.zeros(1, 4, 6, dtype=torch.bool)
    masks[0, :2, 0] = True  # 2 of 4 pixels: not more than half
    masks[0, :2, 2:4] = True
    masks[0, 2, 4:] = masks[0, 3, 4] = True  # 3 of 4
    assert patch_masks(masks, (2, 3)).int().tolist() == [[[0, 1, 0], [0, 0, 1]]]
    assert torch.equal(patch_masks(masks, (4, 6)), masks)
    with pytest.raises(ValueError, match=r"torch.float32 .*expected bool \(N, H, W\)"):
        patch_masks(masks.float(), (2, 3))


def test_blobs_are_seeded_near_the_middle_and_differ():
    blobs = center_blobs(5, (9, 13), seed=3)
    assert blobs.shape == (5, 9, 13) and torch.equal(blobs, center_blobs(5, (9, 13), seed=3))
    assert not torch.equal(blobs, center_blobs(5, (9, 13), seed=4))
    for one in blobs:
        row, col = divmod(one.argmax().item(), 13)
        assert 2 <= row <= 6 and 4 <= col <= 8 and one[row, col] > 0.9 > one[0, 0] > 0
    assert torch.cdist(blobs.flatten(1), blobs.flatten(1)).fill_diagonal_(1).min() > 0.1
