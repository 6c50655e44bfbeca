"""Answers to the pieces of appendix A1: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import numpy as np
import torch
import torch.nn.functional as F


def near(t):
    return 1.5 * t**3 - 2.5 * t**2 + 1


def far(t):
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2


def cubic(t):
    t = t.abs()
    return torch.where(t < 1, near(t), torch.where(t < 2, far(t), 0.0))


def cubic_horner(t):
    t = np.abs(t.numpy())
    inner, outer = (1.5 * t - 2.5) * t * t + 1, ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.select([t < 1, t < 2], [inner, outer])


def cubic_by_masks(t):
    t = t.abs()
    return near(t) * (t <= 1) + far(t) * ((t > 1) & (t <= 2))


def matrix(start, length, n_in, n_out, mask=True, stretch=True, divide=True, step=None):
    step = step or length / n_out
    centers = start + (torch.arange(n_out) + 0.5) * step
    t = torch.arange(n_in) + 0.5 - centers[:, None]
    weight = cubic(t / max(step, 1) if stretch else t)
    if mask:
        weight[:, :start] = 0
        weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True) if divide else weight


def centers_at_zero(start, length, n_in, n_out, mask=True):
    step = length / n_out
    t = torch.arange(n_in) + 0.5 - (torch.arange(n_out)[:, None] + 0.5) * step
    weight = cubic(t / max(step, 1))
    if mask:
        weight[:, :start] = weight[:, start + length :] = 0
    return weight / weight.sum(1, keepdim=True)


def matrix_of_torch(start, length, n_in, n_out):
    rows = torch.eye(n_in)[None, None, start : start + length]
    return F.interpolate(rows, (n_out, n_in), mode="bicubic", antialias=True)[0, 0]


def matrix_padded(start, length, n_in, n_out):
    return F.pad(matrix(0, length, length, n_out), (start, n_in - start - length)).numpy()


def matrix_as_list(start, length, n_in, n_out):
    return list(matrix(start, length, n_in, n_out))


def masked_late(start, length, n_in, n_out):
    weight = matrix(start, length, n_in, n_out, mask=False)
    weight[:, :start] = weight[:, start + length :] = 0
    return weight


STYLES = {
    "cubic": [cubic_horner, cubic_by_masks],
    "crop_matrix": [matrix_of_torch, matrix_padded, matrix_as_list],
}
WRONG = {
    "cubic": {
        "no abs": lambda t: torch.where(t < 1, near(t), torch.where(t < 2, far(t), 0.0)),
        "near alone": lambda t: torch.where(t.abs() < 1, near(t.abs()), 0.0),
        "never 0": lambda t: torch.where(t.abs() < 1, near(t.abs()), far(t.abs())),
        "bilinear": lambda t: (1 - t.abs()).clamp(min=0),
        "the caller's tensor changes": lambda t: cubic(t.abs_()),
        "a Gaussian": lambda t: torch.exp(-(t**2)),
    },
    "crop_matrix": {
        "unmasked": lambda *c: matrix(*c, mask=False),
        "skipping": lambda *c: matrix(*c, stretch=False),
        "not divided": lambda *c: matrix(*c, divide=False),
        "masked late": masked_late,
        "step of the line": lambda s, n, n_in, n_out: matrix(s, n, n_in, n_out, step=n_in / n_out),
        "start forgotten": lambda s, n, n_in, n_out: matrix(0, n, n_in, n_out),
        "centres without start": centers_at_zero,
        "centres without start, unmasked": lambda *c: centers_at_zero(*c, mask=False),
        "only the crop": lambda s, n, n_in, n_out: matrix(0, n, n, n_out),
        "twice": lambda *c: 2 * matrix(*c),
        "transposed": lambda *c: matrix(*c).T,
    },
}
EQUIVALENT = {
    "cubic": ["t <= 1", "t <= 2"],
    "crop_matrix": ["max(1, step)"],
}
