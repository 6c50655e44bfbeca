"""The self-checks of notebook 01: multi-crop."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course import one_image as finished
from dino_lib.course.check import Case, Mistake, check, on, unless
from dino_lib.course.view_list import pairs, views
from dino_lib.course.views_compared import found_by_colour, put_back, shared

__all__ = ["crop", "crop_size", "found_by_colour", "pairs", "put_back", "saturation", "shared",
           "views"]


def crop_size(yours: Callable) -> Callable:
    """`yours(height, width, share, ratio)` -> (h, w) of a box, in whole pixels."""

    def sides(finish: Callable, change: Callable = lambda *case: case) -> Callable:
        def piece(*case: float) -> tuple:
            height, width, share, ratio = change(*case)
            area = share * height * width
            return finish(math.sqrt(area / ratio)), finish(math.sqrt(area * ratio))

        return piece

    cases = [(48, 48, 0.25, 1.33), (96, 64, 0.5, 0.9), (224, 224, 0.4, 0.76), (100, 70, 0.1, 1.3),
             (96, 96, 1.0, 1.0), (30, 50, 0.33, 0.8), (48, 48, 1.0, 1.33), (41, 37, 0.0111, 0.8)]
    return check("crop_size", yours, finished.crop_size, [_whole_numbers(*c) for c in cases], {
        "the box may stick out of the image here: another one is drawn then, so cut nothing off":
            lambda h, w, s, r: tuple(map(min, finished.crop_size(h, w, s, r), (h, w))),
        "the area is cut off to whole pixels; only the sides are whole":
            lambda h, w, s, r: finished.crop_size(int(s * h * w), 1, 1, r),
        "each side comes from the area: this rounds one, and takes the other from it":
            lambda h, w, s, r: (round(round(math.sqrt(s * h * w * r)) / r),
                                round(math.sqrt(s * h * w * r))),
        "height and width are exchanged: the ratio is width / height, and the height comes first":
            lambda *c: finished.crop_size(*c)[::-1],
        "the share is applied to each side; it is a share of the area":
            sides(round, lambda h, w, s, r: (h, w, s * s, r)),
        "the root of the share is used, and then a second root: the area is share * H * W":
            sides(round, lambda h, w, s, r: (h, w, math.sqrt(s), r)),
        "the share is left out, so the box has the whole image's area":
            sides(round, lambda h, w, s, r: (h, w, 1, r)),
        "these are areas, not sides: take the square root of each":
            lambda h, w, s, r: (round(s * h * w / r), round(s * h * w * r)),
        "the ratio is used without a square root, so the area comes out wrong":
            sides(round, lambda h, w, s, r: (h, w, s, r * r)),
        "the sides are equal: the ratio is not used":
            sides(round, lambda h, w, s, r: (h, w, s, 1)),
        "the sides are cut off, not rounded to the nearest pixel": sides(int),
        "the sides are rounded up, not to the nearest pixel": sides(math.ceil),
        "the sides are not rounded to whole pixels": sides(float),
        "the height is as large as the width: divide the area by the ratio for the height":
            lambda *c: (finished.crop_size(*c)[1],) * 2,
        "the width is as small as the height: multiply the area by the ratio for the width":
            lambda *c: (finished.crop_size(*c)[0],) * 2,
        "the area is share * H * W: a side of the image is divided by instead":
            sides(round, lambda h, w, s, r: (h / w, 1, s, r)),
        "the area is share * H * W: the share is divided by instead":
            sides(round, lambda h, w, s, r: (h, w, 1 / s, r)),
        "the image is taken as a square: use its height and its width":
            sides(round, lambda h, w, s, r: (h, h, s, r)),
        "the image is taken as a square, of its width: use its height and its width":
            sides(round, lambda h, w, s, r: (w, w, s, r)),
        "the box is too large or too small: h * w should be the share of H * W":
            unless(yours, lambda f: abs(math.prod(f(1000, 2000, 0.5, 1.2)) / 1e6 - 1) < 0.01),
        "the box is too high or too wide: w / h should be the ratio":
            unless(yours, lambda f: abs(f(1000, 2000, 0.5, 1.2)[1] / f(1000, 2000, 0.5, 1.2)[0]
                                        - 1.2) < 0.01),
    })


def _whole_numbers(*case: float) -> Case:
    """The sides are to be ints: they cut slices."""

    def call(piece: Callable) -> object:
        found = on(*case)(piece)
        parts = [torch.as_tensor(side) for side in found] if hasattr(found, "__len__") else []
        if any(side.is_floating_point() and side.equal(side.round()) for side in parts):
            raise Mistake("the sides are whole, but floats: a slice takes int, which round gives")
        return found

    return call


def crop(yours: Callable) -> Callable:
    """`yours(x, box, size)`: x (C, H, W), uint8 or float in [0, 1], cut and resized."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 24, 32, generator=generator)
    grey = (torch.rand(1, 20, 20, generator=generator) * 255).to(torch.uint8)
    inputs = [(noise, (3, 5, 12, 20), 16), (noise, (0, 0, 24, 32), 8),
              (noise, (10, 20, 14, 12), 24), (grey, (2, 6, 15, 9), 12),
              ((noise * 255).to(torch.uint8), (1, 2, 20, 16), 10)]
    cases = [_typed(*of_case) for of_case in inputs]

    def resize(part: Tensor, size: int, **options: object) -> Tensor:
        options = {"mode": "bicubic", "antialias": True} | options
        return F.interpolate(part[None], (size, size), **options)[0]

    def cut(change: Callable, **options: object) -> Callable:
        """The resize of another part: change(top, left, h, w) -> rows, columns."""

        def piece(x: Tensor, box: tuple, size: int) -> Tensor:
            rows, columns = change(*box)
            return _in_range(resize(x[:, rows, columns], size, **options))

        return piece

    def alike(*wrong: Callable) -> Callable:
        """`yours`, if it is like one of the wrong pieces on a float image, clamped or not."""

        def differs(f: Callable) -> bool:
            view = torch.as_tensor(f(*inputs[0])).clamp(0, 1)
            return not any(torch.allclose(view, w(*inputs[0]), atol=0.006) for w in wrong)

        return unless(yours, differs)

    def resized(**options: object) -> Callable:
        def piece(x: Tensor, box: tuple, size: int) -> Tensor:
            return _in_range(resize(_part(x, box), size, **options).to(x.dtype))

        return piece

    def clamped(low: float | None, high: float | None) -> Callable:
        if low is None and high is None:
            return lambda x, box, size: resize(_part(x, box), size)
        return lambda x, box, size: resize(_part(x, box), size).clamp(low, high)

    def of_floats(change: Callable) -> Callable:
        """change(x, box, size) for float images; the right view for the others."""
        return lambda x, box, size: (change if x.is_floating_point() else finished.crop)(
            x, box, size)

    return check("crop", yours, finished.crop, cases, {
        "rows come first: top and h cut the rows, left and w the columns": alike(
            cut(lambda t, le, h, w: (slice(le, le + w), slice(t, t + h))),
            cut(lambda t, le, h, w: (slice(le, le + w), slice(t, t + h)), antialias=False),
            cut(lambda t, le, h, w: (slice(le, le + h), slice(t, t + w)))),
        "the height and the width of the box are exchanged":
            cut(lambda t, le, h, w: (slice(t, t + w), slice(le, le + h))),
        "the slice ends at top + h and left + w: the box gives a length, not an end":
            cut(lambda t, le, h, w: (slice(t, h), slice(le, w))),
        "the rows end at top + h: the box gives a length, not an end":
            cut(lambda t, le, h, w: (slice(t, h), slice(le, le + w))),
        "the columns end at left + w: the box gives a length, not an end":
            cut(lambda t, le, h, w: (slice(t, t + h), slice(le, w))),
        "the crop begins in the corner: top and left are not used":
            cut(lambda t, le, h, w: (slice(h), slice(w))),
        "nothing is cut out: this is the whole image, resized":
            cut(lambda t, le, h, w: (slice(None), slice(None))),
        "the slice is one pixel too long: its end does not belong to it":
            cut(lambda t, le, h, w: (slice(t, t + h + 1), slice(le, le + w + 1))),
        "the batch's axis is still there: [0] takes it away":
            lambda x, box, size: finished.crop(x, box, size)[None],
        "nothing is resized: the view has size x size pixels": lambda x, box, size: _part(x, box),
        "where the crop shrinks, it has to be antialiased: antialias=True averages over the pixels":
            alike(resized(antialias=False)),
        "this resize is bilinear: mode='bicubic' is asked for": resized(mode="bilinear"),
        "this resize is bilinear and skips pixels: mode='bicubic', antialias=True":
            resized(mode="bilinear", antialias=False),
        "this resize takes the nearest pixel: mode='bicubic', antialias=True":
            resized(mode="nearest", antialias=False),
        "bicubic weights overshoot: clamp the values of a float view to [0, 1]":
            clamped(None, None),
        "bicubic weights overshoot above 1: clamp there too": of_floats(clamped(0, None)),
        "bicubic weights overshoot below 0: clamp there too": of_floats(clamped(None, 1)),
        "the upper bound of a float view is 1": of_floats(clamped(0, 2)),
        "the lower bound of a float view is 0": of_floats(clamped(-1, 1)),
        "the bounds of the clamp are exchanged: the lower one comes first":
            of_floats(clamped(1, 0)),
        "a uint8 view keeps its values from 0 to 255; only float ones end at 1": clamped(0, 1),
        "the float and the uint8 images are exchanged: clamp the float views":
            lambda x, box, size: clamped(None, None)(x, box, size)
            if x.is_floating_point() else clamped(0, 1)(x, box, size),
        "a uint8 image comes out as uint8, from 0 to 255, and not divided by 255":
            lambda x, box, size: finished.crop(x if x.is_floating_point() else x / 255, box, size),
    }, tolerance=0.006)  # half a grey level of 255, if a float view is rounded


def _typed(x: Tensor, box: tuple, size: int) -> Case:
    """A view keeps the image's type. A batch of one is no view, though it holds the same numbers:
    it counts as 4, its axes.
    """
    plain = on(x, box, size)

    def strict(piece: Callable) -> object:
        view = plain(piece)
        if view is not None and not isinstance(view, Tensor):
            raise Mistake(f"a view is a tensor, not a {type(view).__name__}")
        if getattr(view, "ndim", 3) == 2:
            raise Mistake("the channels' axis is gone as well: take the batch's alone away, by [0]")
        whole = isinstance(view, Tensor) and view.max() > 1
        if whole and view.is_floating_point() and not x.is_floating_point():
            raise Mistake("a uint8 image comes out as uint8: round, and turn the type back")
        return 4 if getattr(view, "ndim", 3) == 4 else view

    return strict


def _part(x: Tensor, box: tuple) -> Tensor:
    top, left, h, w = box
    return x[:, top : top + h, left : left + w]


def _in_range(x: Tensor) -> Tensor:
    return x.clamp(0, 1) if x.is_floating_point() else x


def saturation(yours: Callable) -> Callable:
    """`yours(x, factor)`: x (3, H, W) in [0, 1], blended with its own grey."""
    x = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    cases = [_whole(x, factor) for factor in (0.5, 0.0, 1.0, 1.6)] + [_whole(x[:, :2, :5] / 2, 0.8)]

    def blend(other: Callable, change: Callable = lambda f: f, last: Callable = _in_range):
        return lambda x, f: last(change(f) * x + (1 - change(f)) * other(x))

    def grey(x: Tensor) -> Tensor:
        return (x * torch.tensor(finished.GREY)[:, None, None]).sum(0)

    def weighed(x: Tensor) -> Tensor:
        """The grey with the weights that `yours` gives to red, green and blue."""
        pure = torch.eye(3)[:, :, None] / 2  # a red, a green and a blue pixel
        weights = 2 * torch.as_tensor(yours(pure, 0.0))[0, :, 0]
        return (x * weights[:, None, None].to(x)).sum(0)

    r, g, b = finished.GREY
    return check("saturation", yours, finished.saturation, cases, {
        "factor and 1 - factor are exchanged: factor 1 must leave the image as it is":
            blend(grey, lambda f: 1 - f),
        "the grey is the plain mean of the channels: green must weigh most and blue least":
            blend(lambda x: x.mean(0)),
        "the grey is the plain sum of the channels: weigh them, so that the weights sum to 1":
            blend(lambda x: x.sum(0)),
        "the weights of the grey are in the wrong order: red, green, blue":
            blend(lambda x: b * x[0] + g * x[1] + r * x[2]),
        "values leave [0, 1]: clamp them": blend(grey, last=lambda y: y),
        "values are above 1: clamp there too": blend(grey, last=lambda y: y.clamp(min=0)),
        "values are below 0: clamp there too": blend(grey, last=lambda y: y.clamp(max=1)),
        "the upper bound is 1": blend(grey, last=lambda y: y.clamp(0, 2)),
        "the lower bound is 0": blend(grey, last=lambda y: y.clamp(-1, 1)),
        "this is contrast: blend each pixel with its own grey, not with the mean of all":
            blend(lambda x: grey(x).mean()),
        "this is brightness: blend the image with its grey, not with black":
            blend(torch.zeros_like),
        "this is the grey image alone: blend it with the image":
            lambda x, f: grey(x).expand_as(x),
        "the grey is added whole: it should come with 1 - factor":
            lambda x, f: (f * x + grey(x)).clamp(0, 1),
        "the image stays whole: it should come with the factor":
            lambda x, f: (x + (1 - f) * grey(x)).clamp(0, 1),
        "the grey is subtracted: add it, with 1 - factor":
            lambda x, f: (f * x - (1 - f) * grey(x)).clamp(0, 1),
        "the grey comes with 1 + factor: it should come with 1 - factor":
            lambda x, f: (f * x + (1 + f) * grey(x)).clamp(0, 1),
        "the two weights have to sum to 1: the factor and 1 - factor":
            lambda x, f: (f * x + (2 - f) * grey(x)).clamp(0, 1),
        "the clamp comes too early: factors above 1 are cut, not the values":
            blend(grey, lambda f: min(f, 1.0)),
        "the weights of red, green and blue in the grey are 0.299, 0.587 and 0.114":
            blend(weighed),
    }, tolerance=3e-4)  # 0.299 or 0.2989


def _whole(x: Tensor, factor: float) -> Case:
    """A change of colour leaves its image as it is: the next view starts from it."""

    def case(piece: Callable) -> object:
        given = x.clone()
        found = piece(given, factor)
        if not torch.equal(given, x):
            raise Mistake("it changes the image that it gets: make a new one, as the next view "
                          "starts from the old")
        if found is not None and not isinstance(found, Tensor):
            raise Mistake(f"the changed image is a tensor, not a {type(found).__name__}")
        return found

    return case
