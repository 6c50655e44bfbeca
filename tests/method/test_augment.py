import math

import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import RandomResizedCrop, v2
from torchvision.transforms.v2 import functional as F

from dino_lib.augment import IMAGENET, MultiCrop, Recipe
from dino_lib.data import batch_views, colours
from dino_lib.data.batch_views import CROP_TRIES, WIDTHS, BatchMultiCrop, crop_boxes, view_uniforms
from dino_lib.data.shapes import Shapes

PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}  # views in [0, 1]
WHOLE = {"global_scale": (1.0, 1.0), "local_scale": (1.0, 1.0)}  # of a square image: no crop
NO_COLOUR = {"color_jitter": (0, 0, 0, 0), "gray_p": 0.0, "blur_p": (0, 0, 0), "solarize_p": 0.0}


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def textured(n, *size, seed=0, channels=3):
    """Smooth patches with noise on them, and some pure black, white and grey pixels: float (n, C,
    H, W) in [0, 1].
    """
    x = (
        F.resize(rand(n, channels, 5, 6, seed=seed), list(size), antialias=True)
        + 0.2 * rand(n, channels, *size)
        - 0.1
    )
    x[:, :, 0, :3] = torch.tensor([0.0, 1.0, 0.5])
    return x.clamp(0, 1)


def as_uint8(x):
    return (x * 255).round().to(torch.uint8)


def many_views(kind, images, seed=0, **settings):
    """All views of all images by one of the two classes: a list of (B, C, h, w)."""
    if kind is BatchMultiCrop:
        return BatchMultiCrop(**settings)(images, torch.Generator().manual_seed(seed))
    multicrop = MultiCrop(**settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return [torch.stack(view) for view in zip(*map(multicrop, images), strict=True)]


both = pytest.mark.parametrize("kind", [MultiCrop, BatchMultiCrop])

# --- cropping and resizing -----------------------------------------------------------------------

BOXES = [
    (0, 0, 37, 52),
    (3, 5, 20, 31),
    (30, 40, 7, 12),
    (0, 47, 37, 5),
    (10, 10, 1, 1),
    (12, 0, 25, 25),
]


def by_pil(image, box, size):
    """A crop of one uint8 (C, H, W), resized by PIL, in [0, 1]."""
    top, left, h, w = box
    crop = F.to_pil_image(image).crop((left, top, left + w, top + h))
    return F.pil_to_tensor(crop.resize((size, size), Image.Resampling.BICUBIC)).float() / 255


def in_floats(image, box, size):
    """The same by torchvision in floats, where values beyond black and white are cut off at the end
    alone.
    """
    view = F.resized_crop(
        image.float() / 255, *box, [size, size], v2.InterpolationMode.BICUBIC, antialias=True
    )
    return view.clamp(0, 1)


@pytest.mark.parametrize(
    ("way", "reference", "levels"),
    [
        (
            batch_views.crops,
            by_pil,
            2.01,
        ),  # weights of 16 bits here, of 22 there: few pixels differ at all
        (batch_views.crops_by_products, in_floats, 0.51),  # rounded to whole levels
    ],
)
@pytest.mark.parametrize("size", [8, 24, 48, 50, 96])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_crop_resize_flip_is_the_references(way, reference, levels, size, flip, channels):
    x = as_uint8(textured(len(BOXES), 37, 52, channels=channels))
    flips, chosen = torch.tensor([flip, not flip] * 3), torch.tensor([2, 0, 2, 1, 5, 0])
    views = way(x, chosen, torch.tensor(BOXES).float(), flips, size)
    assert views.dtype == torch.float32 and views.is_contiguous()
    torch.testing.assert_close(views * 255, (views * 255).round(), rtol=0, atol=1e-3)
    for i, box, view, flipped in zip(chosen, BOXES, views, flips, strict=True):
        expected = reference(x[i], box, size)
        apart = (view - (expected.flip(-1) if flipped else expected)).mul(255).abs()
        assert apart.max() < levels and apart.mean() < 0.4


def plain_crop_box(tries, corner, height, width, scale):
    """RandomResizedCrop.get_params with its random numbers given; None where no try fits."""
    for a, r in tries.view(-1, 2).tolist():
        area = height * width * (scale[0] + (scale[1] - scale[0]) * a)
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * r)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return [int(corner[0] * (height - h + 1)), int(corner[1] * (width - w + 1)), h, w]
    return None


@pytest.mark.parametrize(
    ("size", "scale"), [((40, 60), (0.05, 0.4)), ((48, 48), (0.4, 1.0)), ((30, 90), (0.3, 0.9))]
)
def test_boxes_are_the_first_try_that_fits(size, scale):
    tries, corner = rand(400, 2 * CROP_TRIES), rand(400, 2, seed=1)
    corner[0], corner[1] = 0.0, 1 - 2**-24  # the ends of [0, 1)
    boxes = crop_boxes(tries, corner, size, scale)
    expected = [
        plain_crop_box(t, c, *size, scale) for t, c in zip(tries, corner.tolist(), strict=True)
    ]
    found = [i for i, box in enumerate(expected) if box is not None]
    # a box in a thousand may round the other way in float32
    assert sum(boxes[i].tolist() != expected[i] for i in found) <= 1 and len(found) > 200
    top, left, h, w = boxes.unbind(1)
    assert (
        (top >= 0).all()
        and (left >= 0).all()
        and (top + h <= size[0]).all()
        and (left + w <= size[1]).all()
    )


@pytest.mark.parametrize(
    ("size", "scale"), [((40, 60), (0.05, 0.4)), ((48, 48), (0.4, 1.0)), ((24, 100), (0.2, 0.8))]
)
def test_boxes_are_distributed_as_torchvisions(size, scale):
    n = 2500
    ours = crop_boxes(rand(n, 2 * CROP_TRIES), rand(n, 2, seed=1), size, scale)
    image = torch.empty(3, *size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs = torch.tensor(
            [RandomResizedCrop.get_params(image, scale, (3 / 4, 4 / 3)) for _ in range(n)]
        )
    boxes, counts = theirs.unique(dim=0, return_counts=True)
    commonest = boxes[counts.argmax()]  # where a box seldom fits it is the fallback
    shares = [(b == commonest).all(1).float().mean().item() for b in (ours, theirs)]
    assert shares[0] == pytest.approx(shares[1], abs=4 * math.sqrt(0.5 / n)) and (
        shares[1] > 0.2
    ) == (size[1] == 100)
    for statistic in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3],
        lambda b: b[:, 2] / b[:, 3],
        lambda b: b[:, 0] / (size[0] - b[:, 2] + 1),
        lambda b: b[:, 1] / (size[1] - b[:, 3] + 1),
    ):
        assert ks_2samp(statistic(ours.double()), statistic(theirs.double())).pvalue > 1e-3


@pytest.mark.parametrize("size", [(10, 300), (300, 10), (11, 300)])
def test_where_no_box_fits_it_is_torchvisions_fallback(size):
    box = crop_boxes(rand(3, 2 * CROP_TRIES), rand(3, 2, seed=1), size, (0.9, 1.0))
    expected = RandomResizedCrop.get_params(torch.empty(3, *size), (0.9, 1.0), (3 / 4, 4 / 3))
    assert box.tolist() == [list(map(float, expected))] * 3


@both
def test_each_kind_of_view_has_its_size_and_its_share_of_the_image(kind):
    """Red rises along x and green along y, so that a view's own ranges tell what it shows."""
    ramp = torch.linspace(0, 255, 64)
    image = torch.stack(
        [ramp.expand(64, 64), ramp[:, None].expand(64, 64), torch.zeros(64, 64)]
    ).to(torch.uint8)
    views = many_views(
        kind,
        image.expand(60, -1, -1, -1),
        global_size=32,
        local_size=16,
        n_local=3,
        global_scale=(0.5, 0.8),
        local_scale=(0.1, 0.3),
        **NO_COLOUR,
        **PLAIN,
    )
    assert [tuple(view.shape) for view in views] == [(60, 3, 32, 32)] * 2 + [(60, 3, 16, 16)] * 3
    assert all(view.dtype == torch.float32 for view in views)
    for view, (low, high) in zip(views, [(0.5, 0.8)] * 2 + [(0.1, 0.3)] * 3, strict=True):
        size = view.shape[-1]
        ranges = [
            (view[:, c].amax((1, 2)) - view[:, c].amin((1, 2))) * size / (size - 1) for c in (0, 1)
        ]
        share = ranges[0] * ranges[1]
        assert share.min() > low - 0.05 and share.max() < high + 0.05
        assert share.max() - share.min() > 0.5 * (high - low)
        assert view[:, 2].abs().max() == 0


# --- colour, blur, solarize ----------------------------------------------------------------------

FACTORS = torch.tensor([0.0, 0.6, 0.8, 1.0, 1.4])
OPERATIONS = [
    (colours.adjust_brightness, F.adjust_brightness, FACTORS),
    (colours.adjust_contrast, F.adjust_contrast, FACTORS),
    (colours.adjust_saturation, F.adjust_saturation, FACTORS),
    (colours.adjust_hue, F.adjust_hue, torch.tensor([-0.5, -0.1, 0.0, 0.1, 0.37])),
]


@pytest.mark.parametrize(("ours", "theirs", "factors"), OPERATIONS)
def test_colour_operation_is_torchvisions(ours, theirs, factors):
    x = textured(5, 16, 20)
    out = ours(x.clone(), factors)
    for image, factor, y in zip(x, factors.tolist(), out, strict=True):
        torch.testing.assert_close(y, theirs(image, factor), rtol=0, atol=1e-4)
    assert (out - x).abs().amax((1, 2, 3)).gt(0.02).sum() >= 4


@pytest.mark.parametrize(("ours", "theirs", "factors"), OPERATIONS[:2])
def test_colour_operation_on_grey_images_is_torchvisions(ours, theirs, factors):
    x = textured(5, 16, 20, channels=1)
    for image, factor, y in zip(x, factors.tolist(), ours(x.clone(), factors), strict=True):
        torch.testing.assert_close(y, theirs(image, factor), rtol=0, atol=1e-4)


def test_gray_is_torchvisions():
    x = textured(2, 16, 20)
    torch.testing.assert_close(colours.gray(x), F.rgb_to_grayscale(x), rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [8, 12, 24, 96])
def test_blur_is_torchvisions(size):
    x, sigmas = textured(4, size, size), torch.tensor([0.1, 0.5, 1.3, 2.0])
    for image, sigma, y in zip(x, sigmas.tolist(), colours.blur(x, sigmas), strict=True):
        expected = F.gaussian_blur(
            image, [13, 13], [sigma, sigma]
        )  # three sigmas of 2 to each side
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-4)


def test_jitter_draws_strengths_and_orders_image_by_image():
    """torchvision's functions, one after the other, in the order and with the factors that the
    uniforms stand for.
    """
    images = as_uint8(textured(30, 16, 16))
    multicrop = BatchMultiCrop(
        16, 16, 0, **{**NO_COLOUR, "color_jitter": (1.5, 0.4, 0.3, 0.1)}, **WHOLE, **PLAIN
    )
    uniforms = rand(30, multicrop.n_uniforms, seed=1)
    # views into it: the first view's
    tries, _, flip, jitter, order, strength = uniforms.split(WIDTHS * 2, dim=1)[:6]
    tries[:], flip[:], jitter[:] = 0.5, 0.9, 0.0
    jitter[::7] = 0.81  # these are not jittered
    view = multicrop(images, uniforms=uniforms)[0]
    steps, low, high = (
        order.argsort(1),
        [0.0, 0.6, 0.7, -0.1],
        [2.5, 1.4, 1.3, 0.1],
    )  # 1 - 1.5 stops at 0
    low, high = torch.tensor(low), torch.tensor(high)
    factors = low + (high - low) * strength
    for i, (image, y) in enumerate(zip(images.float() / 255, view, strict=True)):
        for k in steps[i].tolist() if i % 7 else []:
            image = OPERATIONS[k][1](image, factors[i, k].item())
        torch.testing.assert_close(y, image, rtol=0, atol=1e-3)
    assert len({tuple(own) for own in steps.tolist()}) > 12


@both
def test_normalisation(kind):
    images, mean, std = as_uint8(textured(2, 32, 32)), (0.2, 0.4, 0.6), (0.5, 0.25, 0.125)
    settings = {"global_size": 32, "local_size": 16, "n_local": 1, **NO_COLOUR}
    plain = many_views(kind, images, **settings, **PLAIN)
    for view, normalised in zip(
        plain, many_views(kind, images, **settings, mean=mean, std=std), strict=True
    ):
        torch.testing.assert_close(normalised, F.normalize(view, mean, std), rtol=0, atol=1e-5)


@both
def test_solarize_and_gray_on_whole_images(kind):
    images = as_uint8(textured(20, 16, 16))
    settings = {"global_size": 16, "local_size": 16, "n_local": 1, **WHOLE, **PLAIN}
    for more, theirs, touched in [
        ({"gray_p": 1.0}, lambda x: F.rgb_to_grayscale(x, 3), (0, 1, 2)),
        ({"solarize_p": 1.0}, lambda x: F.solarize(x, 128), (1,)),
    ]:
        for v, view in enumerate(many_views(kind, images, **settings, **{**NO_COLOUR, **more})):
            expected = (theirs(images) if v in touched else images).float() / 255
            assert same_or_flipped(view, expected, 0.005).all()


# --- how often -----------------------------------------------------------------------------------


def same_or_flipped(view, x, tolerance):
    return ((view - x).abs().amax((1, 2, 3)) < tolerance) | (
        (view - x.flip(-1)).abs().amax((1, 2, 3)) < tolerance
    )


def whole_views(kind, n, image=None, **more):
    """n times the views of one 16 px image, not cropped, and that image in [0, 1]; operations are
    off if not given.
    """
    image = as_uint8(textured(1, 16, 16)[0] if image is None else image)
    views = many_views(
        kind,
        image.expand(n, -1, -1, -1),
        global_size=16,
        local_size=16,
        n_local=1,
        **WHOLE,
        **PLAIN,
        **{**NO_COLOUR, **more},
    )
    return views, image.float() / 255


@both
@pytest.mark.parametrize(
    ("more", "shares"),
    [
        ({"color_jitter": (0.4, 0.4, 0.2, 0.1)}, (0.8, 0.8, 0.8)),
        ({"gray_p": 0.2}, (0.2, 0.2, 0.2)),
        (
            {"blur_p": (1.0, 0.1, 0.5)},
            (0.91, 0.091, 0.455),
        ),  # a sigma under 0.27 changes no pixel by half a level
        ({"solarize_p": 0.2}, (0.0, 0.2, 0.0)),
    ],
)
def test_share_of_each_operation_in_each_view(kind, more, shares):
    n = 1500 if kind is BatchMultiCrop else 250
    views, x = whole_views(kind, n, **more)
    for view, share in zip(views, shares, strict=True):
        changed = (~same_or_flipped(view, x, 0.002)).float().mean().item()
        assert changed == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / n) + 0.03 * share
        )
        unflipped = ((view - x).abs().amax((1, 2, 3)) < 0.002).float().mean().item()
        assert unflipped == pytest.approx(
            (1 - changed) / 2, abs=4 * math.sqrt((1 - changed) / 4 / n)
        )


@pytest.mark.parametrize("more", [{"solarize_p": 0.5}, {"blur_p": (0.5, 0.5, 0.5)}])
def test_operations_are_drawn_independently_of_each_other_and_of_the_other_views(more):
    n, flags = 2000, []
    views, x = whole_views(BatchMultiCrop, n, gray_p=0.5, **more)
    candidates = [x, F.rgb_to_grayscale(x, 3)]
    candidates += [torch.where(c >= 128 / 255, 1 - c, c) for c in candidates]
    candidates = torch.stack(
        candidates + [c.flip(-1) for c in candidates]
    )  # (flip, solarize, gray) as a number
    for v, view in enumerate(views):
        soft = [colours.blur(y, torch.full((len(y),), 2.0)).flatten(1) for y in (view, candidates)]
        best = torch.cdist(*soft).argmin(1)
        flags += [best % 2 == 1, best >= 4]
        if "blur_p" in more:
            flags.append((view - candidates[best]).abs().amax((1, 2, 3)) > 0.002)
        elif v == 1:
            flags.append(best % 4 >= 2)
    flags = torch.stack(flags).float()
    torch.testing.assert_close(flags.mean(1), torch.full((len(flags),), 0.5), rtol=0, atol=0.09)
    assert (torch.corrcoef(flags) - torch.eye(len(flags))).abs().max() < 4 / math.sqrt(n)


def test_blur_sigmas_fill_their_range_evenly():
    point = torch.zeros(3, 16, 16)
    point[:, 8, 8] = 1
    views, _ = whole_views(BatchMultiCrop, 1500, point, blur_p=(1.0, 0.0, 0.0))
    sigmas = torch.linspace(0.1, 2.0, 2000)
    peaks = colours.blur(point.expand(2000, -1, -1, -1), sigmas).amax(
        (1, 2, 3)
    )  # falls as sigma rises
    drawn = sigmas[
        torch.searchsorted(peaks.flip(0), views[0].amax((1, 2, 3))).sub(1999).neg().clamp(0, 1999)
    ]
    drawn = drawn[drawn > 0.35]  # below it the peak is 1, whatever the sigma
    assert len(drawn) / 1500 == pytest.approx(1.65 / 1.9, abs=0.04)
    assert kstest(drawn.double(), "uniform", args=(0.35, 1.65)).pvalue > 1e-3


def hue(r, g, b):
    return torch.atan2(math.sqrt(3) * (g - b), 2 * r - g - b) / (2 * math.pi)


@pytest.mark.parametrize("operation", ["brightness", "contrast", "saturation", "hue"])
def test_jitter_factors_fill_their_range_evenly(operation):
    strengths = [
        0.3 * (operation == name) for name in ("brightness", "contrast", "saturation", "hue")
    ]
    image = torch.tensor([0.5, 0.4, 0.35])[:, None, None].repeat(1, 16, 16)
    image[:, :, 8:] -= 0.1  # contrast needs two colours
    views, x = whole_views(BatchMultiCrop, 1500, image, color_jitter=tuple(strengths))
    view = torch.where(
        (views[0][:, 0, 0, 0] < views[0][:, 0, 0, 15])[:, None, None, None],
        views[0].flip(-1),
        views[0],
    )
    (r, g, b), right = view[..., 0, 0].unbind(1), view[:, 0, 0, 15]
    old_r, old_g, old_b, old_right = *x[:, 0, 0], x[0, 0, 15]
    factor = {
        "brightness": r / old_r - 1,
        "contrast": (r - right) / (old_r - old_right) - 1,
        "saturation": (r - b) / (old_r - old_b) - 1,
        "hue": (hue(r, g, b) - hue(old_r, old_g, old_b) + 0.5) % 1 - 0.5,
    }[operation]
    drawn = factor[factor.abs() > 2e-3]
    assert len(drawn) / 1500 == pytest.approx(0.8, abs=0.05)
    assert drawn.abs().max() < 0.3 + (
        0.01 if operation == "hue" else 1e-3
    )  # the hue of a circle is not quite HSV's
    assert kstest(drawn.double(), "uniform", args=(-0.3, 0.6)).pvalue > 1e-3


# --- the two versions together -------------------------------------------------------------------


def describe(view):
    """A few numbers an image: means, deviations, saturation, detail along x and y, and the squares
    of all these.
    """
    spread = view.amax(1) - view.amin(1)
    numbers = torch.stack(
        [
            *view.mean((2, 3)).unbind(1),
            *view.std((2, 3)).unbind(1),
            spread.mean((1, 2)),
            view.diff(dim=3).abs().mean((1, 2, 3)),
            view.diff(dim=2).abs().mean((1, 2, 3)),
            view.amax((1, 2, 3)),
            view.amin((1, 2, 3)),
        ]
    )
    return torch.cat([numbers, numbers.square()])  # (22, B)


def test_both_versions_draw_from_one_distribution():
    images = Shapes(300, seed=7).images
    settings = {"global_size": 32, "local_size": 16, "n_local": 1, **PLAIN}
    single = torch.stack([describe(v) for v in many_views(MultiCrop, images, **settings)])
    batch = [
        torch.stack([describe(v) for v in many_views(BatchMultiCrop, images, seed, **settings)])
        for seed in range(6)
    ]
    difference = single - torch.stack(batch).mean(0)  # of the same image: (3 views, 22, 300)
    z = difference.mean(2) / (difference.std(2) / math.sqrt(300))
    assert z.abs().max() < 4, z


def test_both_versions_have_the_same_histograms():
    """Of red, and of the spread of the channels, in every view: share of the pixels in each of 16
    steps.
    """
    images = Shapes(300, seed=7).images
    settings = {"global_size": 32, "local_size": 16, "n_local": 1, **PLAIN}

    def histograms(views):
        pairs = [(view[:, 0], view.amax(1) - view.amin(1)) for view in views]
        return torch.stack(
            [
                torch.stack([((x * 15.999).long() == k).float().mean((1, 2)) for k in range(16)])
                for pair in pairs
                for x in pair
            ]
        )  # (6, 16, 300)

    batch = torch.stack(
        [histograms(many_views(BatchMultiCrop, images, seed, **settings)) for seed in range(6)]
    )
    difference = histograms(many_views(MultiCrop, images, **settings)) - batch.mean(0)
    z = difference.mean(2) / (difference.std(2) / math.sqrt(300)).clamp(min=1e-4)
    assert z.abs().max() < 4.5, z


# --- seeds ---------------------------------------------------------------------------------------


def test_reproducible_from_a_generator():
    images = as_uint8(textured(3, 40, 40))
    settings = {"global_size": 32, "local_size": 16, "n_local": 2}
    a, b, c = (many_views(BatchMultiCrop, images, seed, **settings) for seed in (1, 1, 2))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    assert not any(torch.equal(x, y) for x, y in zip(a, c, strict=True))
    multicrop = BatchMultiCrop(**settings)
    torch.manual_seed(1)
    assert torch.equal(multicrop(images)[0], a[0])  # without one: torch's global generator


def test_views_of_an_image_do_not_depend_on_its_batch():
    images = as_uint8(textured(6, 40, 40))
    multicrop = BatchMultiCrop(global_size=32, local_size=16, n_local=2)
    assert multicrop.n_uniforms == 4 * sum(WIDTHS) == 4 * (2 * CROP_TRIES + 16)
    together = multicrop(images, uniforms=view_uniforms(3, 2, range(10, 16), multicrop.n_uniforms))
    for part in ([4], [5, 0, 3]):
        alone = multicrop(
            images[part], uniforms=view_uniforms(3, 2, [10 + i for i in part], multicrop.n_uniforms)
        )
        for view, expected in zip(alone, together, strict=True):
            torch.testing.assert_close(view, expected[part], rtol=0, atol=1e-4)


def test_the_views_of_a_seed_stay_what_they_are():
    """Shipped runs depend on them."""
    multicrop = BatchMultiCrop(32, 16, 1)
    views = multicrop(
        Shapes(4, seed=7).images, uniforms=view_uniforms(3, 1, range(4), multicrop.n_uniforms)
    )
    means = [
        [-0.7260, 0.2955, 0.0068, 0.1697],
        [0.0335, -0.5876, -0.5428, -0.6697],
        [-0.1802, 0.4087, -0.6153, -0.3177],
    ]
    deviations = [
        [0.6072, 0.5839, 0.5116, 1.1023],
        [0.8941, 0.6001, 0.5022, 0.5042],
        [0.8648, 0.7150, 0.4553, 0.7224],
    ]
    for view, mean, deviation in zip(views, means, deviations, strict=True):
        torch.testing.assert_close(view.mean((1, 2, 3)), torch.tensor(mean), rtol=0, atol=5e-4)
        torch.testing.assert_close(view.std((1, 2, 3)), torch.tensor(deviation), rtol=0, atol=5e-4)


def test_view_uniforms_are_a_function_of_seed_epoch_and_index():
    rows = view_uniforms(3, 2, [10, 11, 12], 50)
    assert rows.shape == (3, 50) and rows.dtype == torch.float32
    assert torch.equal(view_uniforms(3, 2, torch.tensor([12, 10]), 50), rows[[2, 0]])
    keys = [(s, e, i) for s in range(3) for e in range(3) for i in range(3)]
    every = torch.cat([view_uniforms(s, e, [i], 400) for s, e, i in keys])
    assert len(every.flatten().unique()) > 0.99 * every.numel()
    assert (
        every.min() >= 0
        and every.max() < 1
        and kstest(every.flatten().double(), "uniform").pvalue > 1e-3
    )
    assert (torch.corrcoef(every) - torch.eye(27)).abs().max() < 0.25


# --- what comes from one image -------------------------------------------------------------------


@both
def test_every_view_of_a_row_comes_from_one_image(kind):
    colours = rand(8, 3)
    images = as_uint8(colours)[:, :, None, None].expand(-1, -1, 40, 50)
    for view in many_views(
        kind, images, global_size=32, local_size=16, n_local=3, **NO_COLOUR, **PLAIN
    ):
        expected = (colours * 255).round()[:, :, None, None] / 255
        torch.testing.assert_close(view, expected.expand_as(view), rtol=0, atol=0.005)


@both
def test_views_of_one_image_differ_and_so_do_rows(kind):
    images = as_uint8(textured(1, 48, 48)).expand(4, -1, -1, -1)
    views = many_views(kind, images, global_size=16, local_size=16, n_local=2, **NO_COLOUR, **PLAIN)
    crops = torch.cat(views)  # 16 crops of one picture
    distance = (crops[:, None] - crops).abs().mean((2, 3, 4))
    assert (distance + torch.eye(16)).min() > 0.01


# --- input ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
def test_multicrop_takes_pil_and_tensor(channels):
    tensor = as_uint8(textured(1, 40, 50, channels=channels))[0]
    image = Image.fromarray(tensor.permute(1, 2, 0).squeeze(2).numpy())
    multicrop = MultiCrop(
        global_size=32,
        local_size=16,
        n_local=2,
        mean=IMAGENET[0][:channels],
        std=IMAGENET[1][:channels],
    )
    results = []
    for x in (tensor, image):
        torch.manual_seed(0)
        results.append(multicrop(x))
        assert [tuple(v.shape) for v in results[-1]] == [(channels, 32, 32)] * 2 + [
            (channels, 16, 16)
        ] * 2
        assert all(v.dtype == torch.float32 and not isinstance(v, Image.Image) for v in results[-1])
    for a, b in zip(*results, strict=True):
        assert (
            a - b
        ).abs().mean() < 0.1  # PIL rounds where tensors do not; in units of a deviation


def test_batch_of_grey_images():
    images = as_uint8(textured(5, 40, 50, channels=1))
    views = many_views(
        BatchMultiCrop, images, global_size=32, local_size=16, n_local=2, mean=(0.5,), std=(0.2,)
    )
    assert [tuple(v.shape) for v in views] == [(5, 1, 32, 32)] * 2 + [(5, 1, 16, 16)] * 2
    assert all(v.isfinite().all() and v.dtype == torch.float32 for v in views)


def test_defaults_are_the_papers():
    recipe = BatchMultiCrop()
    # size, scale, probability of blur and of solarization
    assert recipe.views[:2] == [(224, (0.4, 1.0), 1.0, 0.0), (224, (0.4, 1.0), 0.1, 0.2)]
    assert recipe.views[2:] == [(96, (0.05, 0.4), 0.5, 0.0)] * 8
    assert recipe.color_jitter == (0.4, 0.4, 0.2, 0.1) and recipe.gray_p == 0.2
    assert recipe.mean == (0.485, 0.456, 0.406) and recipe.std == (0.229, 0.224, 0.225)
    assert MultiCrop().views == recipe.views and len(MultiCrop().transforms) == 10


@both
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"global_scale": (0.5, 0.4)}, "global_scale"),
        ({"global_scale": (0.4, 1.1)}, "global_scale"),
        ({"local_scale": (0.0, 0.4)}, "local_scale"),
        ({"gray_p": 1.2}, "gray_p"),
        ({"solarize_p": -0.1}, "solarize_p"),
        ({"blur_p": (1.0, 0.1, 1.5)}, "blur_p"),
        ({"blur_p": (1.0, 0.1)}, r"blur_p=\(1.0, 0.1\) must hold 3"),
        ({"gray_p": (0.1, 0.2)}, r"gray_p=\(0.1, 0.2\) must be a prob"),
        ({"color_jitter": (0.4, 0.4, 0.2)}, "color_jitter"),
        ({"color_jitter": (0.4, -0.4, 0.2, 0.1)}, "color_jitter"),
        ({"mean": (0.5,)}, "mean"),
        ({"mean": (0.5, 0.5), "std": (0.2, 0.2)}, "mean"),
        ({"n_local": -1}, "n_local=-1"),
        ({"local_size": 7}, "at least 8"),
    ],
)
def test_wrong_settings_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


@both
def test_views_are_float32_whatever_torchs_default(kind, double_by_default):
    images = as_uint8(textured(4, 40, 40).float())
    views = many_views(kind, images, global_size=32, local_size=16, n_local=2)
    assert {view.dtype for view in views} == {torch.float32}


def test_a_gpus_crops_are_made_in_parts_that_bound_the_largest_tensor(monkeypatch):
    """Of large pictures fewer crops are made at a time; none is left out."""
    n_numbers, most, by_products = 3 * 40 * 30, [], batch_views.crops_by_products

    def watched(images, image, box, flip, size):
        most.append(len(image))
        return by_products(images, image, box, flip, size)

    monkeypatch.setattr(batch_views, "crops_by_products", watched)
    monkeypatch.setattr(batch_views, "GPU_CHUNK", 4 * n_numbers)
    images = torch.empty(2, 3, 40, 30, dtype=torch.uint8, device="meta")
    box = torch.tensor([[0, 0, 20, 20]]).repeat(10, 1)
    image, flip = torch.zeros(10, dtype=torch.int64), torch.zeros(10, dtype=torch.bool)
    assert batch_views.crops(images, image, box, flip, 16).shape == (10, 3, 16, 16)
    assert most == [4, 4, 2]


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(2, 3, 16, 16),
        torch.zeros(2, 1, 16, 16, dtype=torch.uint8),
        torch.zeros(3, 16, 16, dtype=torch.uint8),
    ],
)
def test_batch_of_wrong_dtype_or_channels_is_refused(images):
    with pytest.raises(ValueError, match=r"expected uint8 images \(B, 3, H, W\), got torch"):
        BatchMultiCrop()(images)


def test_wrong_uniforms_are_refused():
    multicrop = BatchMultiCrop(n_local=0)
    with pytest.raises(
        ValueError, match=rf"expected uniforms \(2, {multicrop.n_uniforms}\), got \(2, 5\)"
    ):
        multicrop(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), uniforms=torch.zeros(2, 5))


@pytest.mark.parametrize(
    "image",
    [
        torch.zeros(3, 16, 16),
        torch.zeros(1, 16, 16, dtype=torch.uint8),
        Image.new("L", (16, 16)),
        Image.new("RGBA", (16, 16)),
    ],
)
def test_single_image_of_wrong_dtype_or_channels_is_refused(image):
    with pytest.raises(ValueError, match="expected a PIL image or a uint8 tensor with 3 channels"):
        MultiCrop()(image)


@pytest.mark.parametrize("name", ["global_size", "local_size", "n_local"])
def test_sizes_and_numbers_of_views_are_whole_numbers(name):
    with pytest.raises(ValueError, match=f"{name}=32.0 must be a whole number"):
        Recipe(**{name: 32.0})  # as many as 32, but no list has 32.0 entries
