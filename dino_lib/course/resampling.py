"""The self-checks of appendix A1: a resize is a matrix."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dino_lib.course.check import Case, Mistake, check, on, unless
from dino_lib.data import batch_views
from dino_lib.data.batch_views import BatchMultiCrop


def _cubic(t: Tensor) -> Tensor:
    """The bicubic weight of a pixel at distance t."""
    t = t.abs()
    return torch.where(t < 1, _near(t), torch.where(t < 2, _far(t), 0.0))


def _near(t: Tensor) -> Tensor:
    return 1.5 * t**3 - 2.5 * t**2 + 1


def _far(t: Tensor) -> Tensor:
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2


def cubic(yours: Callable) -> Callable:
    """`yours(t)`: the bicubic weights of pixels at distances t, of any shape."""
    t = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 0.25, 1.75, 3.5])
    cases = [_weighed(t), _weighed(-t), _weighed(torch.linspace(-3, 3, 40).view(8, 5)),
             _weighed(t + 0.1)]

    def value(at: float) -> float:
        return float(yours(torch.tensor([at]))[0])

    def at(distance: float) -> Callable:
        want = float(_cubic(torch.tensor([distance]))[0])
        return unless(yours, lambda f: abs(value(distance) - want) < 1e-5)

    return check("cubic", yours, _cubic, cases, {
        "negative distances count as well: take t.abs() first":
            lambda t: torch.where(t < 1, _near(t), torch.where(t < 2, _far(t), 0.0)),
        "beyond 2 the weight is 0": lambda t: torch.where(t.abs() < 1, _near(t.abs()),
                                                           _far(t.abs())),
        "beyond 1 the second formula holds; here it is 0":
            lambda t: torch.where(t.abs() < 1, _near(t.abs()), 0.0),
        "the first formula ends at 1": lambda t: torch.where(t.abs() < 2, _near(t.abs()), 0.0),
        "the two formulas are exchanged": lambda t: torch.where(
            t.abs() < 1, _far(t.abs()), torch.where(t.abs() < 2, _near(t.abs()), 0.0)),
        "this is the weight of a bilinear resize": lambda t: (1 - t.abs()).clamp(min=0),
        "this is the bicubic kernel with a = -0.75; here a is -0.5": _other_kernel,
        "at distance 0 it should be 1": at(0.0),
        "at distance 0.5 it should be 0.5625: follow the first formula": at(0.5),
        "at distance 1.5 it should be -0.0625: follow the second formula": at(1.5),
        "at distance 2.5 it should be 0": at(2.5),
        "negative distances should weigh what positive ones do":
            unless(yours, lambda f: abs(value(-0.3) - value(0.3)) < 1e-5),
        "near distance 0.9 it is wrong: the first formula holds up to 1": at(0.9),
        "near distance 1.1 it is wrong: the second formula holds from 1 on": at(1.1),
        "near distance 1.9 it is wrong: the second formula holds up to 2": at(1.9),
    })


def _weighed(t: Tensor) -> Case:
    """The weights at distances t, which the piece may not change."""

    def case(piece: Callable) -> Tensor:
        given = t.clone()
        found = piece(given)
        if not torch.equal(given, t):
            raise Mistake("it changes the tensor that it gets: t.abs(), say, not t.abs_()")
        return found

    return case


def _other_kernel(t: Tensor, a: float = -0.75) -> Tensor:
    t = t.abs()
    near = (a + 2) * t**3 - (a + 3) * t**2 + 1
    far = a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a
    return torch.where(t < 1, near, torch.where(t < 2, far, 0.0))


def crop_matrix(yours: Callable) -> Callable:
    """`yours(start, length, n_in, n_out)` -> (n_out, n_in) weights."""
    cases = [_of_shape(3, 9, 20, 6), _of_shape(0, 5, 12, 8), _of_shape(10, 10, 20, 10),
             _of_shape(6, 14, 20, 5)]

    def right(start: int, length: int, n_in: int, n_out: int) -> Tensor:
        place = torch.tensor([start]), torch.tensor([length])
        return batch_views.crop_matrix(*place, n_in, n_out)[0]

    def formula(antialias: bool = True, normalise: bool = True, mask: bool = True,
                corner: tuple[float, float] = (0.5, 0.5), whole_step: bool = False,
                ends: tuple[int, int] = (0, 0), absolute: bool = False,
                begin: bool = True) -> Callable:
        def piece(start: int, length: int, n_in: int, n_out: int) -> Tensor:
            step = (n_in if whole_step else length) / n_out
            place = begin * start + (torch.arange(n_out)[:, None] + corner[1]) * step
            t = torch.arange(n_in) + corner[0] - place
            weight = _cubic(t / ((step if absolute else max(step, 1)) if antialias else 1))
            if mask:
                weight[:, : start + ends[0]] = 0
                weight[:, start + length + ends[1] :] = 0
            return weight / weight.sum(1, keepdim=True) if normalise else weight

        return piece

    def late(start: int, length: int, n_in: int, n_out: int) -> Tensor:
        weight = formula(mask=False)(start, length, n_in, n_out)
        weight[:, :start] = weight[:, start + length :] = 0
        return weight

    def sums(f: Callable) -> bool:
        rows = torch.as_tensor(f(3, 9, 20, 6)).sum(1)
        return bool((rows - 1).abs().max() < 1e-4)

    def outside(f: Callable) -> bool:
        weights = torch.as_tensor(f(3, 9, 20, 6))
        return bool((weights[:, :3] == 0).all() and (weights[:, 12:] == 0).all())

    def full(f: Callable) -> bool:
        weights = torch.as_tensor(f(3, 9, 20, 6))
        return bool((weights.nan_to_num() != 0).any(1).all())

    return check("crop_matrix", yours, right, cases, {
        "the kernel looks beyond the crop: pixels outside start ... start + length weigh nothing":
            formula(mask=False),
        "the kernel is not stretched where the crop shrinks, so pixels are skipped":
            formula(antialias=False),
        "the kernel must not get narrower where the crop grows: max(step, 1)":
            formula(absolute=True),
        "the rows do not sum to 1: divide by their sum after masking": formula(normalise=False),
        "a row does not sum to 1: mask first, then divide": late,
        "the crop begins at pixel 0, so `start` seems unused":
            lambda start, *rest: right(0, *rest),
        "the centres of the new pixels begin at `start`: add it": formula(begin=False),
        "two things: the centres of the new pixels begin at `start`, and pixels outside of the "
        "crop weigh nothing": formula(begin=False, mask=False),
        "the centre of pixel i lies at i + 0.5, not at i": formula(corner=(0.0, 0.0)),
        "the centre of an old pixel j lies at j + 0.5": formula(corner=(0.0, 0.5)),
        "the centre of a new pixel i lies at (i + 0.5) * step": formula(corner=(0.5, 0.0)),
        "the step is length / n_out, not n_in / n_out": formula(whole_step=True),
        "one pixel before the crop still weighs something": formula(ends=(-1, 0)),
        "the first pixel of the crop is left out": formula(ends=(1, 0)),
        "the last pixel of the crop is left out": formula(ends=(0, -1)),
        "one pixel behind the crop still weighs something": formula(ends=(0, 1)),
        "a row is all zero: are the centres inside start ... start + length?":
            unless(yours, full),
        "pixels outside start ... start + length weigh something": unless(yours, outside),
        "the rows do not sum to 1": unless(yours, sums),
    }, used=True)


def _of_shape(start: int, length: int, n_in: int, n_out: int) -> Case:
    """The matrix; of a wrong shape, the case says itself what is wrong with it."""
    plain = on(start, length, n_in, n_out)

    def case(piece: Callable) -> Any:
        found = plain(piece)
        shape, wanted = tuple(getattr(found, "shape", ())), (n_out, n_in)
        if shape == (n_in, n_out) != wanted:
            raise Mistake(f"the shape is (n_in, n_out) = {shape}; it should be (n_out, n_in) = "
                          f"{wanted}, a row for each new pixel")
        if shape == (n_out, length) != wanted:
            raise Mistake(f"the shape is (n_out, length) = {shape}, with the crop's columns alone; "
                          f"it should be (n_out, n_in) = {wanted}, with zeros outside of the crop")
        return found

    return case


def away_from_the_batch(matrix: Callable, images: Tensor) -> tuple[int, float]:
    """Views of BatchMultiCrop beside the same ones by two products each, with `matrix` as
    crop_matrix -> their number, and the largest difference in grey levels of 255.

    images: uint8 (N, 3, n, n). The views are cropped, resized and mirrored, nothing else.
    """
    n = images.shape[-1]
    crop = BatchMultiCrop(64, 32, n_local=2, local_scale=(0.1, 0.4), color_jitter=(0, 0, 0, 0),
                          gray_p=0, blur_p=(0, 0, 0), solarize_p=0, mean=(0, 0, 0), std=(1, 1, 1))
    numbers = batch_views.view_uniforms(seed=0, epoch=0, indices=range(len(images)),
                                        n=crop.n_uniforms)
    count, largest = 0, 0.0
    views = crop(images, uniforms=numbers)
    of_view = numbers.chunk(len(views), 1)  # of each view: 20 numbers for the box, 2 for its place
    for view, u, scale in zip(views, of_view, [(0.4, 1.0)] * 2 + [(0.1, 0.4)] * 2, strict=True):
        boxes = batch_views.crop_boxes(u[:, :20], u[:, 20:22], (n, n), scale).int().tolist()
        for picture, (top, left, h, w), flip, theirs in zip(images / 255, boxes, u[:, 22] < 0.5,
                                                            view, strict=True):
            rows, columns = (torch.as_tensor(matrix(*side, n, view.shape[-1]), dtype=torch.float32)
                             for side in ((top, h), (left, w)))
            mine = (rows @ picture @ columns.T).clamp(0, 1)
            mine = mine.flip(-1) if flip else mine
            count, largest = count + 1, max(largest, 255 * (mine - theirs).abs().max().item())
    return count, largest
