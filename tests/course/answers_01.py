"""Answers to the pieces of notebook 01: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as tv


def size(h, w, s, r):
    area = s * h * w
    return round(math.sqrt(area / r)), round(math.sqrt(area * r))


def size_arrays(h, w, s, r):
    return np.rint(np.sqrt(s * h * w * np.array([1 / r, r]))).astype(int)


def size_by_width(height, width, share, ratio):
    w = (share * height * width * ratio) ** 0.5
    return [int(w / ratio + 0.5), int(w + 0.5)]


def size_tensor(h, w, s, r):
    return torch.tensor(s * h * w).mul(torch.tensor([1 / r, r])).sqrt().round().int()


def crop_of_torchvision(x, box, size):
    view = tv.resized_crop(x, *box, [size, size], InterpolationMode.BICUBIC, antialias=True)
    return view.clamp(0, 1) if x.dtype == torch.float32 else view


def crop_in_two_steps(x, box, size):
    rows, columns = range(box[0], box[0] + box[2]), range(box[1], box[1] + box[3])
    part = x[:, list(rows)][:, :, list(columns)].float()
    most = 255 if x.dtype == torch.uint8 else 1
    options = {"size": size, "mode": "bicubic", "antialias": True, "align_corners": False}
    view = F.interpolate(part.unsqueeze(0), **options).squeeze(0).clamp(0, most)
    return view.round().to(x.dtype) if most == 255 else view


def crop_narrow(x, box, size):
    part = x.narrow(1, box[0], box[2]).narrow(2, box[1], box[3])
    view = F.interpolate(part[None], (size, size), mode="bicubic", antialias=True)[0]
    return torch.clip(view, 0, 1 if x.is_floating_point() else 255)


def resize(part, size, **options):
    options = {"mode": "bicubic", "antialias": True} | options
    view = F.interpolate(part[None], (size, size), **options)[0]
    return view.clamp(0, 1) if part.is_floating_point() else view


def in_bounds(x):
    return x.clamp(0, 1)


def gray(x):
    return 0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2]


def saturation(x, f):
    return (f * x + (1 - f) * gray(x)).clamp(0, 1)


def saturation_in_place(x, factor):
    y = tv.rgb_to_grayscale(x, 3)
    return x.mul_(factor).add_(y * (1 - factor)).clamp_(0, 1)


def saturation_by_channels(x, factor):
    y = gray(x)
    return torch.stack([torch.clamp(y + factor * (c - y), min=0, max=1) for c in x])


def saturation_einsum(x, factor):
    y = torch.einsum("c,chw->hw", torch.tensor([0.2989, 0.587, 0.114]), x)
    return torch.lerp(y.expand_as(x), x, factor).clip(0, 1)


def views_called_in_another_order(image, first, second, local, n_local):
    small = [local(image) for _ in range(n_local)]
    return [first(image), second(image), *small]


def _common(a, b):
    high = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    return high, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])


def shared_with_two_gaps(a, b):
    if a[0] + a[2] < b[0] or a[1] + a[3] < b[1]:
        return 0.0
    high, wide = _common(a, b)
    return high * wide / min(a[2] * a[3], b[2] * b[3])


def shared_by_the_narrower(a, b):
    high, wide = (max(side, 0) for side in _common(a, b))
    _, _, h, w = min(a, b, key=lambda box: box[3])
    return high * wide / (h * w)


def found_by_median(a, b):
    a, b = (x.flatten(2).median(2).values for x in (a, b))
    return (torch.cdist(a, b).argmin(1) == torch.arange(len(a))).float().mean()


def views_by_append(image, first, second, local, n_local):
    found = []
    for recipe in (first, second):
        found.append(recipe(image))
    for _ in range(n_local):
        found += [local(image)]
    return found


def views_as_tuple(image, first, second, local, n_local):
    return (first(image), second(image), *(local(image) for _ in range(n_local)))


def views_by_recipes(image, first, second, local, n_local):
    return [recipe(image) for recipe in [first, second] + [local] * n_local]


def right_views(image, first, second, local, n):
    return [first(image), second(image)] + [local(image) for _ in range(n)]


def pairs(n):
    return [(i, v) for i in (0, 1) for v in range(n) if v != i]


def pairs_loop(n_views):
    found = []
    for v in range(n_views):
        if v != 0:
            found.append([0, v])
        if v != 1:
            found.append([1, v])
    return found


def shared_by_pixels(a, b):
    grids = [np.zeros((60, 60), bool), np.zeros((60, 60), bool)]
    for grid, (top, left, h, w) in zip(grids, (a, b), strict=True):
        grid[top : top + h, left : left + w] = True
    return (grids[0] & grids[1]).sum() / min(grids[0].sum(), grids[1].sum())


def shared_tensors(a, b):
    a, b = torch.tensor(a), torch.tensor(b)
    sides = torch.minimum(a[:2] + a[2:], b[:2] + b[2:]) - torch.maximum(a[:2], b[:2])
    return sides.clamp(min=0).prod() / torch.minimum(a[2:].prod(), b[2:].prod())


def shared_ranges(a, b):
    rows = set(range(a[0], a[0] + a[2])) & set(range(b[0], b[0] + b[2]))
    columns = set(range(a[1], a[1] + a[3])) & set(range(b[1], b[1] + b[3]))
    return [len(rows) * len(columns) / min(a[2] * a[3], b[2] * b[3])]


def sides_of(a, b):
    return (
        min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]),
        min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]),
    )


def area_of(a, b):
    tall, wide = sides_of(a, b)
    return max(tall, 0) * max(wide, 0)


def smaller(a, b):
    return min(a[2] * a[3], b[2] * b[3])


def found_loop(a, b):
    hits = 0
    colours = [view.mean(axis=(1, 2)) for view in b.numpy()]
    for i, view in enumerate(a.numpy()):
        off = [((view.mean(axis=(1, 2)) - colour) ** 2).sum() for colour in colours]
        hits += int(np.argmin(off)) == i
    return hits / len(a)


def found_broadcast(a, b):
    a, b = a.flatten(2).mean(-1), b.flatten(2).mean(-1)
    off = (a[:, None] - b[None]).square().sum(-1)
    return off.topk(1, largest=False).indices[:, 0].eq(torch.arange(len(a))).double().mean().item()


def distances(a, b):
    return torch.cdist(a.mean((2, 3)), b.mean((2, 3)))


def own(off, axis=1):
    return (off.argmin(axis) == torch.arange(len(off))).float().mean()


def stretched(map_, h, w, **options):
    return F.interpolate(map_[None, None], (h, w), **({"mode": "bilinear"} | options))[0, 0]


def put_back_padded(map_, box, flipped, size):
    top, left, h, w = box
    part = stretched(map_.fliplr() if flipped else map_, h, w, align_corners=False)
    return F.pad(part, (left, size - left - w, top, size - top - h))


def put_back_late_flip(map_, box, flipped, size):
    top, left, h, w = box
    whole = np.zeros((size, size), np.float32)
    part = stretched(map_, h, w).numpy()
    whole[top : top + h, left : left + w] = part[:, ::-1] if flipped else part
    return whole


def put_back_torchvision(map_, box, flipped, size):
    top, left, h, w = box
    if flipped:
        map_ = torch.flip(map_, [1])
    whole = torch.zeros(1, size, size)
    whole[:, top : top + h, left : left + w] = tv.resize(map_[None], [h, w], antialias=True)
    return whole


def laid(box, part, size, fill=0.0):
    top, left = box[:2]
    whole = torch.full((size, size), fill)
    whole[top : top + part.shape[0], left : left + part.shape[1]] = part
    return whole


def back(map_, flipped):
    return map_.flip(-1) if flipped else map_


STYLES = {
    "crop_size": [size_arrays, size_by_width, size_tensor],
    "crop": [crop_of_torchvision, crop_in_two_steps, crop_narrow],
    "saturation": [saturation_by_channels, saturation_einsum],
    "views": [views_by_append, views_as_tuple, views_by_recipes],
    "pairs": [pairs_loop, lambda n: torch.tensor(pairs(n)), lambda n: set(pairs(n))],
    "shared": [shared_by_pixels, shared_tensors, shared_ranges],
    "found_by_colour": [found_loop, found_broadcast],
    "put_back": [put_back_padded, put_back_late_flip, put_back_torchvision],
}
WRONG = {
    "crop_size": {
        "exchanged": lambda h, w, s, r: size(h, w, s, 1 / r),
        "share of sides": lambda h, w, s, r: size(h, w, s * s, r),
        "areas": lambda h, w, s, r: (round(s * h * w / r), round(s * h * w * r)),
        "ratio not rooted": lambda h, w, s, r: size(h, w, s, r * r),
        "no ratio": lambda h, w, s, r: size(h, w, s, 1),
        "cut off": lambda h, w, s, r: (int((s * h * w / r) ** 0.5), int((s * h * w * r) ** 0.5)),
        "not rounded": lambda h, w, s, r: ((s * h * w / r) ** 0.5, (s * h * w * r) ** 0.5),
        "square image": lambda h, w, s, r: size(h, h, s, r),
        "height alone": lambda h, w, s, r: size(h, w, s, r)[0],
        "inside the image": lambda h, w, s, r: tuple(map(min, size(h, w, s, r), (h, w))),
        "a whole area": lambda h, w, s, r: size(int(s * h * w), 1, 1, r),
        "floats": lambda h, w, s, r: tuple(map(float, size(h, w, s, r))),
        "an array of floats": lambda *box: size_arrays(*box).astype(float),
        "a tensor of floats": lambda *box: size_tensor(*box).float(),
        "no share": lambda h, w, s, r: size(h, w, 1, r),
        "rounded before the root": lambda h, w, s, r: size(h, w, round(s, 1), r),
        "sums for products": lambda h, w, s, r: size(h + w, 1, s, r),
    },
    "crop": {
        "squeezed": lambda x, box, n: crop_narrow(x, box, n).squeeze(),
        "an array": lambda x, box, n: crop_narrow(x, box, n).numpy(),
        "float for uint8": lambda x, b, s: crop_in_two_steps(x, b, s).float(),
        "columns first": lambda x, b, s: resize(x[:, b[1] : b[1] + b[3], b[0] : b[0] + b[2]], s),
        "ends for lengths": lambda x, b, s: resize(x[:, b[0] : b[2], b[1] : b[3]], s),
        "channels cut": lambda x, b, s: resize(x[b[0] : b[0] + b[2], b[1] : b[1] + b[3]], s),
        "corner": lambda x, b, s: resize(x[:, : b[2], : b[3]], s),
        "whole image": lambda x, b, s: resize(x, s),
        "not resized": lambda x, b, s: x[:, b[0] : b[0] + b[2], b[1] : b[1] + b[3]],
        "bilinear": lambda x, b, s: resize(
            x[:, b[0] : b[0] + b[2], b[1] : b[1] + b[3]], s, mode="bilinear"
        ),
        "batch kept": lambda x, b, s: crop_narrow(x, b, s)[None],
        "divided": lambda x, b, s: crop_in_two_steps(x if x.is_floating_point() else x / 255, b, s),
        "resized first": lambda x, b, s: resize(x, s)[:, b[0] : b[0] + b[2], b[1] : b[1] + b[3]],
        "no clamp": lambda x, b, s: tv.resized_crop(
            x, *b, [s, s], InterpolationMode.BICUBIC, antialias=True
        ),
        "no antialias": lambda x, b, s: resize(
            x[:, b[0] : b[0] + b[2], b[1] : b[1] + b[3]], s, antialias=False
        ),
        "neither antialias nor clamp": lambda x, b, s: tv.resized_crop(
            x, *b, [s, s], InterpolationMode.BICUBIC, antialias=False
        ),
        "width for rows": lambda x, b, s: resize(
            x[:, b[1] : b[1] + b[2], b[0] : b[0] + b[3]], s, antialias=False
        ),
        "clamped to 1": lambda x, b, s: in_bounds(torch.as_tensor(crop_narrow(x, b, s))),
    },
    "saturation": {
        "an array": lambda x, f: saturation_einsum(x, f).numpy(),
        "the image changed in place": saturation_in_place,
        "exchanged": lambda x, f: saturation(x, 1 - f),
        "plain mean": lambda x, f: in_bounds(f * x + (1 - f) * x.mean(0)),
        "no clamp": lambda x, f: f * x + (1 - f) * gray(x),
        "contrast": lambda x, f: tv.adjust_contrast(x, f),
        "brightness": lambda x, f: tv.adjust_brightness(x, f),
        "one channel": lambda x, f: saturation(x, f)[:1],
        "blue first": lambda x, f: in_bounds(f * x + (1 - f) * gray(x.flip(0))),
        "grey alone": lambda x, f: gray(x).expand_as(x),
        "mean over the picture": lambda x, f: in_bounds(f * x + (1 - f) * x.mean()),
        "green alone": lambda x, f: in_bounds(f * x + (1 - f) * x[1]),
        "no factor on the grey": lambda x, f: in_bounds(f * x + gray(x)),
        "the grey of hsv": lambda x, f: in_bounds(f * x + (1 - f) * x.amax(0)),
    },
    "views": {
        "local ones first": views_called_in_another_order,
        "a list in a list": lambda x, a, b, c, n: [a(x), b(x), [c(x) for _ in range(n)]],
        "stacked": lambda x, a, b, c, n: torch.stack([a(x), b(x), *(c(x) for _ in range(n))]),
        "recipes": lambda x, a, b, c, n: [a, b] + [c] * n,
        "repeated": lambda x, a, b, c, n: [a(x), b(x)] + [c(x)] * n,
        "locals first": lambda x, a, b, c, n: [c(x) for _ in range(n)] + [a(x), b(x)],
        "first twice": lambda x, a, b, c, n: right_views(x, a, a, c, n),
        "n in all": lambda x, a, b, c, n: right_views(x, a, b, c, n - 2),
        "crops of a crop": lambda x, a, b, c, n: (lambda v: [v, b(x)] + [c(v) for _ in range(n)])(
            a(x)
        ),
        "one local": lambda x, a, b, c, n: [a(x), b(x), c(x)],
        "no second": lambda x, a, b, c, n: [a(x)] + [c(x) for _ in range(n)],
        "nested": lambda x, a, b, c, n: [[a(x), b(x)], c(x)],
        "a generator": lambda x, a, b, c, n: (recipe(x) for recipe in [a, b] + [c] * n),
        "two recipes": lambda x, a, b, c, n: [recipe for recipe in (a, b)],
        "recipes, not views": lambda x, a, b, c, n: [a, b] + [c] * n,
        "a chain": lambda x, a, b, c, n: [a(x), b(a(x))] + [c(x) for _ in range(n)],
        "one more": lambda x, a, b, c, n: right_views(x, a, b, c, n + 1),
        "globals missing": lambda x, a, b, c, n: [c(x) for _ in range(n)],
    },
    "pairs": {
        "itself": lambda n: [(i, v) for i in (0, 1) for v in range(n)],
        "all teachers": lambda n: [(i, v) for i in range(n) for v in range(n) if i != v],
        "locals alone": lambda n: [(i, v) for i in (0, 1) for v in range(2, n)],
        "exchanged": lambda n: [(v, i) for i, v in pairs(n)],
        "once": lambda n: [(i, v) for i in (0, 1) for v in range(n) if i < v],
        "outside": lambda n: [(i, v) for i in (0, 1) for v in range(n + 1) if i != v],
        "from one": lambda n: [(i, v) for i in (1, 2) for v in range(1, n + 1) if i != v],
        "teacher 0": lambda n: [(0, v) for v in range(1, n)],
        "twice": lambda n: pairs(n) + pairs(n),
        "students alone": lambda n: [v for _, v in pairs(n)],
        "the number": lambda n: 2 * (n - 1),
        "last missing": lambda n: [(i, v) for i in (0, 1) for v in range(n - 1) if i != v],
        "zip": lambda n: list(zip((0, 1), range(n), strict=False)),
        "a generator": lambda n: (pair for pair in pairs(n)),
    },
    "shared": {
        "two gaps of four": shared_with_two_gaps,
        "the narrower box": shared_by_the_narrower,
        "gaps": lambda a, b: max(sides_of(a, b)[0] * sides_of(a, b)[1], 0) / smaller(a, b),
        "no clamp": lambda a, b: sides_of(a, b)[0] * sides_of(a, b)[1] / smaller(a, b),
        "larger": lambda a, b: area_of(a, b) / max(a[2] * a[3], b[2] * b[3]),
        "first": lambda a, b: area_of(a, b) / (a[2] * a[3]),
        "union": lambda a, b: area_of(a, b) / (a[2] * a[3] + b[2] * b[3] - area_of(a, b)),
        "pixels": area_of,
        "rows alone": lambda a, b: max(sides_of(a, b)[0], 0) / min(a[2], b[2]),
        "corners": lambda a, b: shared_ranges(
            (a[0], a[1], a[2] - a[0], a[3] - a[1]), (b[0], b[1], b[2] - b[0], b[3] - b[1])
        ),
        "whether": lambda a, b: area_of(a, b) > 0,
        "abs": lambda a, b: abs(sides_of(a, b)[0]) * abs(sides_of(a, b)[1]) / smaller(a, b),
        "smaller sides": lambda a, b: area_of(a, b) / (min(a[2], b[2]) * min(a[3], b[3])),
        "a percentage": lambda a, b: 100 * area_of(a, b) / smaller(a, b),
    },
    "found_by_colour": {
        "median": found_by_median,
        "farthest": lambda a, b: own(-distances(a, b)),
        "the other way": lambda a, b: own(distances(a, b), 0),
        "counted": lambda a, b: len(a) * own(distances(a, b)),
        "itself": lambda a, b: own(distances(a, a)),
        "grey": lambda a, b: own(
            torch.cdist(a.mean((1, 2, 3))[:, None], b.mean((1, 2, 3))[:, None])
        ),
        "red alone": lambda a, b: own(distances(a[:, :1], b[:, :1])),
        "sums": lambda a, b: own(torch.cdist(a.sum((2, 3)), b.sum((2, 3)))),
        "one pixel": lambda a, b: own(distances(a[:, :, :1, :1], b[:, :, :1, :1])),
        "dot product": lambda a, b: own(-a.mean((2, 3)) @ b.mean((2, 3)).T),
        "each row": lambda a, b: distances(a, b).argmin(1) == torch.arange(len(a)),
        "nearest rows": lambda a, b: distances(a, b).argmin(1),
        "mean distance": lambda a, b: distances(a, b).diagonal().mean(),
        "batch averaged": lambda a, b: own(torch.cdist(a.mean((0, 2)), b.mean((0, 2)))),
        "colours of columns": lambda a, b: own(torch.cdist(a.mean((1, 2)), b.mean((1, 2)))),
        "lost": lambda a, b: 1 - own(distances(a, b)),
    },
    "put_back": {
        "columns first": lambda m, b, f, s: laid(
            (b[1], b[0], b[3], b[2]), stretched(m.flip(-1) if f else m, b[3], b[2]), s
        ),
        "not mirrored": lambda m, b, f, s: laid(b, stretched(m, *b[2:]), s),
        "always mirrored": lambda m, b, f, s: laid(b, stretched(m.flip(-1), *b[2:]), s),
        "upside down": lambda m, b, f, s: laid(b, stretched(m.flip(0) if f else m, *b[2:]), s),
        "whole mirrored": lambda m, b, f, s: back(laid(b, stretched(m, *b[2:]), s), f),
        "part alone": lambda m, b, f, s: stretched(back(m, f), *b[2:]),
        "corner": lambda m, b, f, s: laid((0, 0), stretched(back(m, f), *b[2:]), s),
        "all over": lambda m, b, f, s: stretched(back(m, f), s, s),
        "nearest": lambda m, b, f, s: laid(b, stretched(back(m, f), *b[2:], mode="nearest"), s),
        "not stretched": lambda m, b, f, s: laid(b, back(m, f), s),
        "transposed": lambda m, b, f, s: put_back_padded(m, b, f, s).T,
        "nan around": lambda m, b, f, s: laid(b, stretched(back(m, f), *b[2:]), s, float("nan")),
        "corners aligned": lambda m, b, f, s: laid(
            b, stretched(back(m, f), *b[2:], align_corners=True), s
        ),
        "ones around": lambda m, b, f, s: laid(b, stretched(back(m, f), *b[2:]), s, 1.0),
    },
}
EQUIVALENT = {
    "crop_size": ["area = height * share", "area = share * width", "area = width * height * share"],
    "crop": ["antialias=True)[-1]"],
    "shared": [
        "min(b[0] + b[2], a[0] + a[2])",
        "min(b[1] + b[3], a[1] + a[3])",
        "max(b[0], a[0])",
        "max(b[1], a[1])",
        "max(0, tall)",
        "max(0, wide)",
        "min(b[2] * b[3], a[2] * a[3])",
    ],
    "put_back": ["part[-1, 0]", "part[0, -1]", "map_.flip(1)"],
}
