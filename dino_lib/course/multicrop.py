"""The self-checks of notebook 01: multi-crop."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchvision.transforms.v2.functional import adjust_saturation, rgb_to_grayscale

from dino_lib.course.verdict import each, verdict


def check_crop_size(your_function: Callable) -> None:
    """your_function(height, width, share, ratio) -> (h, w) of a crop, whole pixels."""
    cases = [(48, 48, 0.25, 1.33), (96, 64, 0.5, 0.9), (224, 224, 0.4, 0.76), (100, 70, 0.1, 1.3)]

    def sides(height, width, share, ratio, finish):
        area = share * height * width
        return [finish(math.sqrt(area / ratio)), finish(math.sqrt(area * ratio))]

    def right(*case):
        return sides(*case, round)

    verdict(
        "crop_size",
        each(your_function, cases),
        each(right, cases),
        {
            "height and width look exchanged: the ratio is width / height": each(
                lambda *c: right(*c)[::-1], cases
            ),
            "the share looks applied to each side; it is a share of the area": each(
                lambda h, w, s, r: [
                    round(s * math.sqrt(h * w / r)),
                    round(s * math.sqrt(h * w * r)),
                ],
                cases,
            ),
            "these are areas, not sides: take the square root of each": each(
                lambda h, w, s, r: [round(s * h * w / r), round(s * h * w * r)], cases
            ),
            "the ratio looks used without a square root, so the area comes out wrong": each(
                lambda h, w, s, r: [
                    round(math.sqrt(s * h * w) / r),
                    round(math.sqrt(s * h * w) * r),
                ],
                cases,
            ),
            "the sides are equal: the ratio is not used": each(
                lambda h, w, s, r: sides(h, w, s, 1, round), cases
            ),
            "the sides look cut off, not rounded to the nearest pixel": each(
                lambda *c: sides(*c, int), cases
            ),
            "the sides are not rounded to whole pixels": each(lambda *c: sides(*c, float), cases),
        },
    )


def check_saturation(your_function: Callable) -> None:
    """your_function(x, factor), x (3, H, W) in [0, 1] -> the same shape, in [0, 1]."""
    x = torch.rand(3, 6, 7, generator=torch.Generator().manual_seed(0))
    cases = [(x, factor) for factor in (0.0, 0.5, 1.0, 1.6)]
    gray, mean = rgb_to_grayscale(x).expand_as(x), x.mean(0).expand_as(x)

    def blends(other):
        return [torch.lerp(other, x, factor).clamp(0, 1) for _, factor in cases]

    verdict(
        "saturation",
        each(your_function, cases),
        [adjust_saturation(x, factor) for _, factor in cases],
        {
            "factor and 1 - factor look exchanged: factor 1 must leave the image as it is": [
                torch.lerp(x, gray, factor).clamp(0, 1) for _, factor in cases
            ],
            "the grey looks like the plain mean of the channels: green must weigh most and blue "
            "least": blends(mean),
            "values leave [0, 1]: clamp them": [torch.lerp(gray, x, factor) for _, factor in cases],
            "this is contrast: blend each pixel with its own grey, not with the mean grey of the "
            "image": blends(gray.mean().expand_as(x)),
            "this is brightness: blend the image with its grey, not with black": blends(
                torch.zeros_like(x)
            ),
        },
    )


def check_pairs(your_function: Callable) -> None:
    """your_function(n_views) -> list of (teacher view, student view)."""
    cases = [(2,), (3,), (6,)]

    def counted(pairs, n):
        """(n, n): how often teacher view i is paired with student view v; -1 everywhere if there
        is no such view.
        """
        table = torch.zeros(n, n)
        for i, v in pairs:
            if not (0 <= i < n and 0 <= v < n):
                return torch.zeros(n, n) - 1
            table[i, v] += 1
        return table

    def tables(function):
        lists = each(function, cases)
        return lists and [counted(pairs, n) for pairs, (n,) in zip(lists, cases, strict=True)]

    def grid(teachers, students, keep=lambda i, v: i != v):
        return tables(lambda n: [(i, v) for i in teachers(n) for v in students(n) if keep(i, v)])

    def globals_(n):
        return range(2)

    verdict(
        "pairs",
        tables(your_function),
        grid(globals_, range),
        {
            "a view is paired with itself: there is nothing to predict in it": grid(
                globals_, range, lambda i, v: True
            ),
            "local views appear as the teacher's, and the teacher sees the two global views "
            "only": grid(range, range),
            "global views are missing on the student's side: it sees all views": grid(
                globals_, lambda n: range(2, n)
            ),
            "teacher and student look exchanged: each pair is (teacher view, student view)": grid(
                range, globals_
            ),
            "(0, 1) and (1, 0) are two pairs, and one of them is missing": grid(
                globals_, range, lambda i, v: i < v
            ),
            "a view has a number outside 0 .. n_views - 1": [
                torch.zeros(n, n) - 1 for (n,) in cases
            ],
        },
    )


def check_crop_matrix(your_function: Callable) -> None:
    """your_function(start, length, n_in, n_out) -> (n_out, n_in) weights."""
    cases = [(3, 9, 20, 6), (0, 5, 12, 8), (10, 10, 20, 10), (6, 14, 20, 5)]

    def formula(start, length, n_in, n_out, antialias=True, normalise=True, mask=True, corner=0.5):
        step, pixel = length / n_out, torch.arange(n_in) + corner
        center = start + (torch.arange(n_out)[:, None] + corner) * step
        t = ((pixel - center) / (max(step, 1) if antialias else 1)).abs()
        near, far = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
        weight = torch.where(t < 1, near, torch.where(t < 2, far, 0.0))
        if mask:
            weight[:, :start] = weight[:, start + length :] = 0
        return weight / weight.sum(1, keepdim=True) if normalise else weight

    def matrices(**change):
        return each(lambda *case: formula(*case, **change), cases)

    def masked_late(start, length, n_in, n_out):
        weight = formula(start, length, n_in, n_out, mask=False)
        weight[:, :start] = weight[:, start + length :] = 0
        return weight

    def right(start, length, n_in, n_out):
        # torch's own resize, of the rows of an identity matrix: they come out as the weights
        rows = torch.eye(n_in)[None, None, start : start + length]
        return F.interpolate(rows, (n_out, n_in), mode="bicubic", antialias=True)[0, 0]

    yours = each(your_function, cases)
    if any(
        torch.is_tensor(m) and m.ndim == 2 and (m.isnan() | (m == 0)).all(1).any()
        for m in yours or []
    ):
        return print(
            "wrong: a row is all zero: are the centres inside start ... start + length?"
        )  # 0 / 0 is NaN
    verdict(
        "crop_matrix",
        yours,
        each(right, cases),
        {
            "the kernel looks beyond the crop: pixels outside start .. start + length must weigh "
            "nothing": matrices(mask=False),
            "the kernel is not stretched where the crop shrinks, so pixels are skipped": matrices(
                antialias=False
            ),
            "the rows do not sum to 1: divide by their sum after masking": matrices(
                normalise=False
            ),
            "a row does not sum to 1: mask first, then divide": each(masked_late, cases),
            "the crop begins at pixel 0, so `start` seems unused": each(
                lambda start, *rest: formula(0, *rest), cases
            ),
            "the centre of pixel i lies at i + 0.5, not at i": matrices(corner=0.0),
        },
    )
