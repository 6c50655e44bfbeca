"""The self-checks of notebook 01, third part: what two views have in common."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.course import one_image as finished
from dino_lib.course.check import Case, Mistake, check, on, unless


def shared(yours: Callable) -> Callable:
    """`yours(a, b)`: how much of the smaller box (top, left, h, w) the other one covers."""
    right = finished.shared
    boxes = [((0, 0, 10, 10), (5, 5, 10, 10)), ((0, 0, 4, 4), (6, 7, 3, 3)),
             ((2, 3, 20, 10), (4, 5, 6, 4)), ((0, 0, 4, 8), (2, 20, 5, 5)),
             ((10, 2, 6, 6), (0, 0, 11, 30)), ((5, 1, 7, 9), (5, 1, 7, 9)),
             ((1, 2, 3, 14), (0, 7, 12, 2)), ((0, 0, 5, 5), (5, 0, 5, 5)),
             ((8, 1, 9, 4), (2, 3, 10, 8)), ((0, 0, 4, 8), (9, 2, 4, 8)),
             ((9, 2, 4, 8), (0, 0, 4, 8)), ((2, 20, 5, 5), (0, 0, 4, 8)),
             ((0, 0, 20, 3), (0, 0, 4, 5)), ((0, 0, 6, 4), (3, 0, 2, 14))]

    def sides(a: tuple, b: tuple) -> tuple[int, int]:
        """How many rows and columns two boxes share, below 0 where there is a gap."""
        return (min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]),
                min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))

    def areas(a: tuple, b: tuple) -> tuple[int, int]:
        return a[2] * a[3], b[2] * b[3]

    def both(a: tuple, b: tuple) -> int:
        tall, wide = sides(a, b)
        return max(tall, 0) * max(wide, 0)

    def by(divide: Callable) -> Callable:
        return lambda a, b: both(a, b) / divide(*areas(a, b), both(a, b))

    def at_least(tall: int | None, wide: int | None) -> Callable:
        def piece(a: tuple, b: tuple) -> float:
            found = sides(a, b)
            product = 1
            for side, least in zip(found, (tall, wide), strict=True):
                product *= side if least is None else max(side, least)
            return product / min(areas(a, b))

        return piece

    def boxed(change: Callable) -> Callable:
        """The right share, of boxes that were misread."""
        return lambda a, b: right(change(a), change(b)) if min(*change(a)[2:], *change(b)[2:]) > 0 \
            else 0.0

    return check("shared", yours, right, [on(a, b) for a, b in boxes], {
        "two gaps make a positive area: clamp height and width at 0 before they are multiplied":
            lambda a, b: max(sides(a, b)[0] * sides(a, b)[1], 0) / min(areas(a, b)),
        "boxes apart share nothing: clamp height and width at 0": at_least(None, None),
        "boxes side by side share nothing: the width below 0 has to be clamped":
            at_least(0, None),
        "boxes above each other share nothing: the height below 0 has to be clamped":
            at_least(None, 0),
        "divide by the area of the smaller box, not of the larger": by(lambda p, q, o: max(p, q)),
        "divide by the smaller box, not by the first": by(lambda p, q, o: p),
        "divide by the smaller box, not by the second": by(lambda p, q, o: q),
        "this is the intersection over the union: divide by the smaller box alone":
            by(lambda p, q, o: p + q - o),
        "the smaller box has the smaller area, not the smaller width":
            lambda a, b: both(a, b) / min((a, b), key=lambda z: z[3])[2:][0]
            / min((a, b), key=lambda z: z[3])[3],
        "the smaller box has the smaller area, not the smaller sum of its sides":
            lambda a, b: both(a, b) / min((a, b), key=lambda z: z[2] + z[3])[2]
            / min((a, b), key=lambda z: z[2] + z[3])[3],
        "divide by the smaller box, not by both together": by(lambda p, q, o: p + q),
        "these are pixels: divide by the area of the smaller box": both,
        "this multiplies by the smaller area: divide by it":
            lambda a, b: both(a, b) * min(areas(a, b)),
        "a box is (top, left, height, width), not (left, top, right, bottom)":
            boxed(lambda z: (z[0], z[1], z[2] - z[0], z[3] - z[1])),
        "height belongs to top, and width to left: they are mixed up":
            boxed(lambda z: (z[0], z[1], z[3], z[2])),
        "the shared height begins at the larger top, and ends at the smaller bottom":
            lambda a, b: max(max(a[0] + a[2], b[0] + b[2]) - min(a[0], b[0]), 0)
            * max(sides(a, b)[1], 0) / min(areas(a, b)),
        "this is the box around both: the shared one begins at the larger top and left":
            lambda a, b: (max(a[0] + a[2], b[0] + b[2]) - min(a[0], b[0]))
            * (max(a[1] + a[3], b[1] + b[3]) - min(a[1], b[1])) / min(areas(a, b)),
        "only the rows are compared": lambda a, b: max(sides(a, b)[0], 0) / min(a[2], b[2]),
        "only the columns are compared": lambda a, b: max(sides(a, b)[1], 0) / min(a[3], b[3]),
        "this says whether they meet; a share between 0 and 1 is asked for":
            lambda a, b: float(both(a, b) > 0),
        "height and width are added: an area is their product":
            lambda a, b: (max(sides(a, b)[0], 0) + max(sides(a, b)[1], 0)) / min(areas(a, b)),
        "each side is divided by the smaller side; the smaller area is asked for":
            lambda a, b: both(a, b) / (min(a[2], b[2]) * min(a[3], b[3])),
        "boxes of which one lies above the other share nothing; here they do":
            unless(yours, lambda f: f((0, 0, 4, 8), (9, 0, 4, 8)) == f((9, 0, 4, 8), (0, 0, 4, 8))
                   == 0),
        "boxes of which one lies beside the other share nothing; here they do":
            unless(yours, lambda f: f((0, 0, 8, 4), (0, 9, 8, 4)) == f((0, 9, 8, 4), (0, 0, 8, 4))
                   == 0),
        "a box shares all of itself with itself, so 1 should come out; try it with one box twice":
            unless(yours, lambda f: abs(f((3, 5, 7, 4), (3, 5, 7, 4)) - 1) < 1e-5),
        "it should not matter which box comes first: in one place a stands for b, or b for a":
            unless(yours, lambda f: all(abs(f(a, b) - f(b, a)) < 1e-5 for a, b in boxes)),
        "rows and columns are not treated alike: tops and heights need what lefts and widths do":
            unless(yours, lambda f: all(abs(f(a, b) - f(_turned(a), _turned(b))) < 1e-5
                                        for a, b in boxes)),
        "if both boxes move by the same step, nothing should change: follow the tops and lefts":
            unless(yours, lambda f: all(abs(f(a, b) - f(_moved(a), _moved(b))) < 1e-5
                                        for a, b in boxes)),
    })


def _turned(box: tuple) -> tuple:
    return box[1], box[0], box[3], box[2]


def _moved(box: tuple) -> tuple:
    return box[0] + 3, box[1] + 5, box[2], box[3]


def found_by_colour(yours: Callable) -> Callable:
    """`yours(a, b)`, views (N, 3, h, w) twice: how many rows of a find their own row of b."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for n, noise in ((16, 0.12), (9, 0.3), (16, 0.0), (25, 0.15)):
        base = torch.rand(n, 3, 1, 1, generator=generator)
        skewed = torch.rand(n, 3, 6, 6, generator=generator) ** 4  # so that the median is no mean
        a = base + torch.rand(n, 3, 1, 1, generator=generator) * skewed
        b = base + noise * torch.randn(n, 3, 1, 1, generator=generator) * torch.ones(1, 1, 4, 8)
        cases.append(_of_any_size(a, b))

    def means(x: Tensor) -> Tensor:
        return x.mean((2, 3))

    def own(distance: Tensor, axis: int = 1) -> Tensor:
        return (distance.argmin(axis) == torch.arange(len(distance))).float()

    def by(feature: Callable) -> Callable:
        return lambda a, b: own(torch.cdist(feature(a), feature(b))).mean()

    def distances(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(means(a), means(b))

    return check("found_by_colour", yours, finished.found_by_colour, cases, {
        "this is the farthest row, not the nearest: argmin":
            lambda a, b: own(-distances(a, b)).mean(),
        "each row of b looks for its row of a; a's rows should look":
            lambda a, b: own(distances(a, b), 0).mean(),
        "the number of rows is counted; divide by all of them":
            lambda a, b: own(distances(a, b)).sum(),
        "this is one answer a row: take the mean of them": lambda a, b: own(distances(a, b)),
        "these are the nearest rows: count those that are a row's own":
            lambda a, b: distances(a, b).argmin(1),
        "this is the share that is not found": lambda a, b: 1 - own(distances(a, b)).mean(),
        "this is a percentage; a share between 0 and 1 is asked for":
            lambda a, b: 100 * own(distances(a, b)).mean(),
        "a is compared with itself: its rows should be looked for in b":
            lambda a, b: own(distances(a, a)).mean(),
        "b is compared with itself: a's rows should look for theirs in b":
            lambda a, b: own(distances(b, b)).mean(),
        "the channels are averaged too: a colour is three numbers": by(
            lambda x: x.mean((1, 2, 3), keepdim=True)[:, :, 0, 0]),
        "the rows of pixels are taken for the channels: a colour is the mean over dims 2 and 3":
            by(lambda x: x.mean((1, 2))),
        "only the rows of pixels are averaged: a colour is the mean over dims 2 and 3":
            by(lambda x: x.mean(2)[:, :, 0]),
        "only the first channel is compared: a colour is three numbers":
            by(lambda x: means(x)[:, :1]),
        "this is the sum of a view's pixels: views of other sizes need the mean":
            by(lambda x: x.sum((2, 3))),
        "this is the median colour; the mean is asked for": by(lambda x: x.flatten(2).median(2)[0]),
        "distances of colours are roots of sums of squares, not sums of sizes":
            lambda a, b: own(torch.cdist(means(a), means(b), p=1)).mean(),
        "each view of a looks for the nearest of b by itself: argmin(1)":
            lambda a, b: (distances(a, b).argmin() == torch.arange(len(a))).float().mean(),
        "one pixel's colour is compared, not the mean colour": by(lambda x: x[:, :, 0, 0]),
        "rows are compared at their own place alone: look for the nearest of all rows":
            lambda a, b: (means(a) - means(b)).norm(dim=1).mean(),
        "the largest product is not the nearest colour: take the distance":
            lambda a, b: own(-(means(a) @ means(b).T)).mean(),
        "the angle between colours is compared: take the distance":
            lambda a, b: own(-(F.normalize(means(a)) @ F.normalize(means(b)).T)).mean(),
    })


def _of_any_size(a: Tensor, b: Tensor) -> Case:
    """Views of two sizes; what fails on them, but not on views of one, compares no colours."""

    def case(piece: Callable) -> Tensor:
        try:
            return on(a, b)(piece)
        except RuntimeError:
            on(a, a)(piece)
        raise Mistake("average over height and width, axes 2 and 3: three numbers are left a view")

    return case


def put_back(yours: Callable) -> Callable:
    """`yours(map_, box, flipped, size)`: a view's map, laid where the view was cut."""
    map_ = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    cases = [on(map_, (3, 5, 12, 9), False, 20), on(map_, (2, 6, 10, 14), True, 24),
             on(map_[:3, :2], (0, 0, 16, 16), True, 16), on(map_, (5, 1, 7, 4), False, 12)]

    def laid(place: Callable = lambda t, le, h, w: (t, le, h, w), fill: float = 0.0,
             turn: Callable = lambda m, flipped: m.flip(-1) if flipped else m,
             **options: object) -> Callable:
        def piece(map_: Tensor, box: tuple, flipped: bool, size: int) -> Tensor:
            top, left, h, w = place(*box)
            whole = torch.full((size, size), fill)
            part = _stretched(turn(map_, flipped), h, w, **options)
            whole[top : top + h, left : left + w] = part
            return whole

        return piece

    right = finished.put_back
    return check("put_back", yours, right, cases, {
        "a mirrored view has to be mirrored back": laid(turn=lambda m, flipped: m),
        "it is mirrored where it was not, and not where it was":
            laid(turn=lambda m, flipped: m if flipped else m.flip(-1)),
        "it is mirrored always: only where `flipped` says so":
            laid(turn=lambda m, flipped: m.flip(-1)),
        "it is turned upside down: a view is mirrored along its columns, the last axis":
            laid(turn=lambda m, flipped: m.flip(0) if flipped else m),
        "the whole image is mirrored: mirror the map, before it is laid back":
            lambda m, b, f, s: right(m, b, False, s).flip(-1) if f else right(m, b, False, s),
        "top and left are exchanged": laid(lambda t, le, h, w: (le, t, h, w)),
        "the box's height and width are exchanged": laid(lambda t, le, h, w: (t, le, w, h)),
        "rows come first: top and h belong to the rows, left and w to the columns":
            laid(lambda t, le, h, w: (le, t, w, h)),
        "it lies in the corner: top and left are not used": laid(lambda t, le, h, w: (0, 0, h, w)),
        "it fills the whole image: stretch it to the box, and leave 0 around it":
            lambda m, b, f, s: _stretched(m.flip(-1) if f else m, s, s),
        "around the view it should be 0, not 1": laid(fill=1.0),
        "around the view it should be 0, not NaN": laid(fill=float("nan")),
        "it takes the nearest patch: mode='bilinear'": laid(mode="nearest"),
        "this is bicubic: mode='bilinear'": laid(mode="bicubic"),
        "the corners are aligned: leave align_corners as it is": laid(align_corners=True),
        "it is stretched to the image, and then cut: stretch it to the box's h and w":
            lambda m, b, f, s: right(m, b, f, s) * 0 + _cut(_stretched(
                m.flip(-1) if f else m, s, s), b),
        "only the part is here: lay it into an image of zeros":
            lambda m, b, f, s: _stretched(m.flip(-1) if f else m, *b[2:]),
    })


def _stretched(map_: Tensor, h: int, w: int, mode: str = "bilinear", **options: object) -> Tensor:
    return F.interpolate(map_[None, None], (h, w), mode=mode, **options)[0, 0]


def _cut(whole: Tensor, box: tuple) -> Tensor:
    """0 outside the box."""
    top, left, h, w = box
    inside = torch.zeros_like(whole)
    inside[top : top + h, left : left + w] = 1
    return whole * inside
