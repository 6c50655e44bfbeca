import itertools

import pytest
import torch
import torch.nn.functional as F

from dino_lib.course import head as checks


def cosine_logits(x, w):
    return F.normalize(x, dim=1) @ F.normalize(w, dim=1).T


def head_parameters(in_dim, out_dim, hidden_dim, bottleneck_dim):
    widths = [in_dim, hidden_dim, hidden_dim, bottleneck_dim]
    return sum(a * b + b for a, b in itertools.pairwise(widths)) + out_dim * bottleneck_dim


def group_views(sizes):
    starts = [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def normalize_backward(z, grad):
    length = z.norm(dim=-1, keepdim=True)
    unit = z / length
    return (grad - (grad * unit).sum(-1, keepdim=True) * unit) / length


def by_size(sizes):
    places = {size: [i for i, s in enumerate(sizes) if s == size] for size in sizes}
    return [(where[0], where[-1] + 1) for where in places.values()]


def by_count(sizes):
    ends = list(itertools.accumulate(sizes.count(size) for size in dict.fromkeys(sizes)))
    return list(zip([0, *ends[:-1]], ends, strict=True))


RIGHT = {
    "cosine_logits": cosine_logits,
    "head_parameters": head_parameters,
    "group_views": group_views,
    "normalize_backward": normalize_backward,
}

WRONG = [
    ("cosine_logits", lambda x, w: x @ w.T, "nothing is normalised"),
    ("cosine_logits", lambda x, w: x @ F.normalize(w, dim=1).T, "features are not normalised"),
    ("cosine_logits", lambda x, w: F.normalize(x, dim=1) @ w.T, "prototypes are not normalised"),
    ("cosine_logits", lambda x, w: F.normalize(x, dim=0) @ F.normalize(w, dim=0).T, "wrong axis"),
    ("cosine_logits", lambda x, w: cosine_logits(w, x), "transposed"),
    ("cosine_logits", lambda x, w: cosine_logits(x, w).softmax(1), "softmax"),
    ("cosine_logits", lambda x, w: cosine_logits(x, w)[:, 0], "shapes"),
    ("head_parameters", lambda d, k, h, b: d * h + h * h + h * b + k * b, "biases"),
    ("head_parameters", lambda d, k, h, b: head_parameters(d, k, h, b) + k, "gains"),
    ("head_parameters", lambda d, k, h, b: head_parameters(d, k, h, b) + h, "each of its outputs"),
    (
        "head_parameters",
        lambda d, k, h, b: head_parameters(d, k, h, b) + b,
        "the bottleneck has one",
    ),
    ("head_parameters", lambda d, k, h, b: f"{head_parameters(d, k, h, b)}", "str"),
    ("head_parameters", lambda d, k, h, b: d * h + h + h * b + b + k * b, "second hidden"),
    (
        "head_parameters",
        lambda d, k, h, b: head_parameters(d, k, h, b) - k * b,
        "prototypes are missing",
    ),
    ("head_parameters", lambda d, k, h, b: d * h + h + h * h + h + k * h, "bottleneck"),
    ("group_views", lambda sizes: [(i, i + 1) for i in range(len(sizes))], "one pass for each"),
    ("group_views", lambda sizes: [(0, len(sizes))], "everything in one pass"),
    ("group_views", by_size, "order of the views is lost"),
    ("group_views", by_count, "not neighbours were joined"),
    ("group_views", lambda sizes: [(a, b - 1) for a, b in group_views(sizes)], "one past"),
    ("group_views", lambda sizes: group_views(sizes)[:-1], "last group"),
    (
        "group_views",
        lambda sizes: [(sizes[a], b - a) for a, b in group_views(sizes)],
        "sizes or counts",
    ),
    ("normalize_backward", lambda z, g: g / z.norm(dim=1, keepdim=True), "still there"),
    (
        "normalize_backward",
        lambda z, g: normalize_backward(z, g) * z.norm(dim=1, keepdim=True),
        "division",
    ),
    (
        "normalize_backward",
        lambda z, g: (g - (g * z).sum(1, keepdim=True) * z) / z.norm(dim=1, keepdim=True),
        "itself",
    ),
    (
        "normalize_backward",
        lambda z, g: g / z.norm(dim=1, keepdim=True) - normalize_backward(z, g),
        "the part to remove",
    ),
    (
        "normalize_backward",
        lambda z, g: 2 * g / z.norm(dim=1, keepdim=True) - normalize_backward(z, g),
        "added",
    ),
    (
        "normalize_backward",
        lambda z, g: normalize_backward(z, g) * z.norm(dim=1, keepdim=True) / z.norm(),
        "whole batch",
    ),
]


def said(capsys, name, function):
    getattr(checks, f"check_{name}")(function)
    out = capsys.readouterr().out
    assert out.count("\n") == 1
    return out.strip()


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_accepted(capsys, name):
    assert said(capsys, name, RIGHT[name]) == "right"


@pytest.mark.parametrize("name", RIGHT)
def test_an_empty_stub_is_not_done_yet(capsys, name):
    assert said(capsys, name, lambda *_: None) == "not done yet"


@pytest.mark.parametrize(("name", "function", "word"), WRONG)
def test_a_mistake_is_named(capsys, name, function, word):
    verdict = said(capsys, name, function)
    assert verdict.startswith("wrong: ") and word in verdict


def test_nearly_right_is_close_and_says_how_far_off(capsys):
    assert said(capsys, "cosine_logits", lambda x, w: cosine_logits(x, w) + 1e-3).startswith(
        "close: largest difference 1.0e-03"
    )


def test_one_parameter_too_many_is_refused(capsys):
    assert said(capsys, "head_parameters", lambda *sizes: head_parameters(*sizes) + 1).startswith(
        "wrong: "
    )


def test_autograd_agrees_with_the_solution():
    z = torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_()
    F.normalize(z, dim=-1).sum().backward()
    torch.testing.assert_close(z.grad, normalize_backward(z.detach(), torch.ones(3, 4)))


@pytest.mark.parametrize("number", [float, torch.tensor])
def test_a_count_may_be_any_kind_of_number(capsys, number):
    assert (
        said(capsys, "head_parameters", lambda *sizes: number(head_parameters(*sizes))) == "right"
    )
