"""Wrong answers that readers gave, and the words that the hint must hold."""

import math

import pytest
import torch
from test_checks import verdict


def ema_of_buffers_in_place(teacher, student, momentum):
    with torch.no_grad():
        theirs = student.state_dict()
        for name, t in teacher.state_dict().items():
            t.mul_(momentum).add_((1 - momentum) * theirs[name])


def mask_of_four_axes(maps, keep=0.6):
    mass, order = maps.flatten(-2).sort(-1, descending=True)
    inside = mass.cumsum(-1) - mass < keep * mass.sum(-1, keepdim=True)
    n, heads, h, w = maps.shape
    return torch.zeros_like(inside).scatter(-1, order, inside).view(n, heads, h, w)


def mask_with_a_fixed_share(maps):
    return maps > 0


def entropy_of_log_zero(maps):
    p = maps.flatten(2)
    p = p / p.sum(-1, keepdim=True)
    return -(p * p.log()).sum(-1).mean(0)


def row_with_a_softmax(matrix, row, col, grid, n_prefix):
    found = matrix[:, n_prefix + row * grid[1] + col, n_prefix:]
    return found.softmax(-1).unflatten(-1, grid)


def signs_of_four_views(q, log_p):
    entr = torch.special.entr
    pairs = [(i, v) for i in range(2) for v in range(4) if v != i]
    loss = torch.stack([-(q[i] * log_p[v]).sum(-1).mean() for i, v in pairs]).mean()
    of_one = entr(q).sum(-1).mean()
    return of_one, entr(q.mean((0, 1))).sum(), loss - of_one


def diagnose_of_the_last_line(history, out_dim):
    return "uniform" if history[-1]["teacher_entropy"] > 0.95 * math.log(out_dim) else "healthy"


def diagnose_with_uniform_last(history, out_dim):
    last = [line for line in history if "teacher_entropy" in line][-1]
    one, mean = (last[key] / math.log(out_dim) for key in ("teacher_entropy", "mean_entropy"))
    if mean < 0.2:
        return "one prototype"
    if mean - one < 0.05:
        return "same for all"
    return "uniform" if one > 0.95 else "healthy"


@pytest.mark.parametrize(
    ("notebook", "name", "piece", "words"),
    [
        ("04", "ema_update", ema_of_buffers_in_place, "buffers are averaged"),
        ("05", "diagnose", diagnose_of_the_last_line, "the last line may be an evaluation"),
        ("05", "diagnose", diagnose_with_uniform_last, "it is asked first"),
        ("06", "mass_mask", mask_of_four_axes, "another number of axes"),
        ("06", "mass_mask", mask_with_a_fixed_share, "unexpected keyword argument 'keep'"),
        ("06", "head_entropy", entropy_of_log_zero, "a logarithm of 0"),
        ("06", "patch_row", row_with_a_softmax, "no softmax"),
        ("07", "vital_signs", signs_of_four_views, "two views"),
    ],
)
def test_the_hint_names_the_mistake(notebook, name, piece, words):
    said, used = verdict(notebook, name, piece)
    assert said.startswith("wrong: ")
    assert words in said
    assert used is not piece


@pytest.mark.parametrize(
    "odd", [10**400, torch.zeros(15).to_sparse(), torch.empty(2, device="meta")]
)
def test_an_answer_of_an_odd_kind_is_wrong_and_raises_nothing(odd):
    said, _ = verdict("06", "head_entropy", lambda maps: odd)
    assert said.startswith("wrong: ")
