import math

import pytest
import torch
from torchvision.transforms.v2 import functional as F

from dino_lib.course import multicrop as checks


def crop_size(height, width, share, ratio):
    area = share * height * width
    return round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))


def saturation(x, factor):
    gray = 0.2989 * x[0] + 0.587 * x[1] + 0.114 * x[2]
    return (factor * x + (1 - factor) * gray).clamp(0, 1)


def pairs(n_views):
    return [(i, v) for i in (0, 1) for v in range(n_views) if v != i]


def kernel(t):
    t = t.abs()
    return torch.where(
        t < 1,
        1.5 * t**3 - 2.5 * t**2 + 1,
        torch.where(t < 2, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2, 0.0),
    )


def crop_matrix(start, length, n_in, n_out):
    step = length / n_out
    centers = start + (torch.arange(n_out) + 0.5) * step
    weight = kernel((torch.arange(n_in) + 0.5 - centers[:, None]) / max(step, 1))
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True)


def unmasked(start, length, n_in, n_out):
    step = length / n_out
    centers = start + (torch.arange(n_out) + 0.5) * step
    weight = kernel((torch.arange(n_in) + 0.5 - centers[:, None]) / max(step, 1))
    return weight / weight.sum(1, keepdim=True)


def not_normalised(start, length, n_in, n_out):
    step = length / n_out
    weight = kernel(
        (torch.arange(n_in) + 0.5 - start - (torch.arange(n_out)[:, None] + 0.5) * step)
        / max(step, 1)
    )
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight


def skipping(start, length, n_in, n_out):
    centers = start + (torch.arange(n_out) + 0.5) * length / n_out
    weight = kernel(torch.arange(n_in) + 0.5 - centers[:, None])
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True)


def masked_late(start, length, n_in, n_out):
    weight = unmasked(start, length, n_in, n_out)
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight


def step_of_the_line(start, length, n_in, n_out):
    step = n_in / n_out
    centers = start + (torch.arange(n_out) + 0.5) * step
    weight = kernel((torch.arange(n_in) + 0.5 - centers[:, None]) / max(step, 1))
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True)


def start_forgotten(start, length, n_in, n_out):
    step = length / n_out
    centers = (torch.arange(n_out) + 0.5) * step
    weight = kernel((torch.arange(n_in) + 0.5 - centers[:, None]) / max(step, 1))
    weight[:, :start] = 0
    weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True)


CASES = {
    "crop_size": crop_size,
    "saturation": saturation,
    "pairs": pairs,
    "crop_matrix": crop_matrix,
}

WRONG = [
    ("crop_size", lambda h, w, s, r: crop_size(h, w, s, 1 / r), "exchanged"),
    (
        "crop_size",
        lambda h, w, s, r: (round(s * math.sqrt(h * w / r)), round(s * math.sqrt(h * w * r))),
        "each side",
    ),
    (
        "crop_size",
        lambda h, w, s, r: (round(s * h * w / r), round(s * h * w * r)),
        "areas, not sides",
    ),
    ("crop_size", lambda h, w, s, r: crop_size(h, w, s, r * r), "without a square root"),
    ("crop_size", lambda h, w, s, r: crop_size(h, w, s, 1), "not used"),
    (
        "crop_size",
        lambda h, w, s, r: (int((s * h * w / r) ** 0.5), int((s * h * w * r) ** 0.5)),
        "cut off",
    ),
    (
        "crop_size",
        lambda h, w, s, r: ((s * h * w / r) ** 0.5, (s * h * w * r) ** 0.5),
        "whole pixels",
    ),
    ("saturation", lambda x, f: saturation(x, 1 - f), "exchanged"),
    ("saturation", lambda x, f: (f * x + (1 - f) * x.mean(0)).clamp(0, 1), "plain mean"),
    ("saturation", lambda x, f: f * x + (1 - f) * F.rgb_to_grayscale(x), "clamp"),
    ("saturation", lambda x, f: F.adjust_contrast(x, f), "contrast"),
    ("saturation", lambda x, f: F.adjust_brightness(x, f), "brightness"),
    ("saturation", lambda x, f: saturation(x, f)[:1], "shape"),
    ("pairs", lambda n: [(i, v) for i in (0, 1) for v in range(n)], "itself"),
    (
        "pairs",
        lambda n: [(i, v) for i in range(n) for v in range(n) if i != v],
        "two global views only",
    ),
    ("pairs", lambda n: [(i, v) for i in (0, 1) for v in range(2, n)], "sees all views"),
    ("pairs", lambda n: [(v, i) for i, v in pairs(n)], "look exchanged"),
    ("pairs", lambda n: [(i, v) for i in (0, 1) for v in range(n) if i < v], "two pairs"),
    ("pairs", lambda n: [(i, v) for i in (0, 1) for v in range(n + 1) if i != v], "outside"),
    ("crop_matrix", unmasked, "beyond the crop"),
    ("crop_matrix", skipping, "skipped"),
    ("crop_matrix", not_normalised, "after masking"),
    ("crop_matrix", masked_late, "mask first, then divide"),
    ("crop_matrix", step_of_the_line, "row is all zero"),
    ("crop_matrix", start_forgotten, "row is all zero"),
    ("crop_matrix", lambda *case: start_forgotten(*case).nan_to_num(), "row is all zero"),
    ("crop_matrix", lambda *case: 2 * crop_matrix(*case), "off by"),
    (
        "crop_matrix",
        lambda start, length, n_in, n_out: crop_matrix(0, length, n_in, n_out),
        "pixel 0",
    ),
    (
        "crop_matrix",
        lambda start, length, n_in, n_out: crop_matrix(0, length, length, n_out),
        "shape",
    ),
]


def said(capsys, name, function):
    getattr(checks, f"check_{name}")(function)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


@pytest.mark.parametrize("name", CASES)
def test_a_right_answer_is_accepted(capsys, name):
    assert said(capsys, name, CASES[name]) == "right"


@pytest.mark.parametrize("name", CASES)
def test_an_empty_stub_is_not_done_yet(capsys, name):
    assert said(capsys, name, lambda *_: None) == "not done yet"


@pytest.mark.parametrize(("name", "function", "word"), WRONG)
def test_a_mistake_is_named(capsys, name, function, word):
    verdict = said(capsys, name, function)
    assert verdict.startswith("wrong: ") and word in verdict


def test_nearly_right_is_close_and_says_how_far_off(capsys):
    verdict = said(capsys, "saturation", lambda x, f: saturation(x, f) + 1e-3)
    assert verdict.startswith("close: largest difference 1.0e-03")
