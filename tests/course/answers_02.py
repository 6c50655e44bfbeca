"""Answers to the pieces of notebook 02: right ones in another style, wrong ones, and changes of the
solution that are still right.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

# --- split_tokens -------------------------------------------------------------------------------


def split_reshape(tokens, grid):
    feature, patches = tokens[:, 0, :], tokens[:, 1:, :]
    return [feature, patches.reshape(len(tokens), grid[0], grid[1], -1)]


def split_by_parts(tokens, grid):
    feature, patches = tokens.split([1, tokens.shape[1] - 1], dim=1)
    return feature.squeeze(1), torch.stack(list(patches.chunk(grid[0], dim=1)), dim=1)


SPLIT_WRONG = {
    "CLS at the end": lambda t, g: (t[:, -1], t[:, :-1].unflatten(1, g)),
    "the last token": lambda t, g: (t[:, -1], t[:, 1:].unflatten(1, g)),
    "the mean of all": lambda t, g: (t.mean(1), t[:, 1:].unflatten(1, g)),
    "the mean of the patches": lambda t, g: (t[:, 1:].mean(1), t[:, 1:].unflatten(1, g)),
    "the first image": lambda t, g: (t[0], t[:, 1:].unflatten(1, g)),
    "one axis too many": lambda t, g: (t[:, :1], t[:, 1:].unflatten(1, g)),
    "flat patches": lambda t, g: (t[:, 0], t[:, 1:]),
    "columns first": lambda t, g: (t[:, 0], t[:, 1:].unflatten(1, g[::-1]).transpose(1, 2)),
    "width first": lambda t, g: (t[:, 0], t[:, 1:].unflatten(1, g[::-1])),
    "without the last": lambda t, g: (t[:, 0], t[:, :-1].unflatten(1, g)),
    "channels first": lambda t, g: (t[:, 0], t[:, 1:].unflatten(1, g).permute(0, 3, 1, 2)),
    "the wrong order": lambda t, g: (t[:, 1:].unflatten(1, g), t[:, 0]),
    "only the feature": lambda t, g: t[:, 0],
}

# --- cosine_logits ------------------------------------------------------------------------------


def cosines_by_hand(z, directions):
    z = z / z.norm(dim=1, keepdim=True)
    return z @ (directions / directions.norm(dim=1, keepdim=True)).T


def cosines_in_place(z, directions):
    z /= z.norm(dim=-1, keepdim=True)
    directions /= (directions**2).sum(-1, keepdim=True).sqrt()
    return F.linear(z, directions)


def cosines_of_torch(z, directions):
    return F.cosine_similarity(z[:, None], directions[None], dim=-1)


def cosines_loop(z, directions):
    rows = [torch.stack([a @ b / a.norm() / b.norm() for b in directions]) for a in z]
    return torch.stack(rows)


def cosines_without_gradient(z, directions):
    return torch.tensor([[a @ b / a.norm() / b.norm() for b in directions] for a in z])


def cosines_with_detached_lengths(z, directions):
    z = z / z.detach().norm(dim=1, keepdim=True)
    return z @ (directions / directions.detach().norm(dim=1, keepdim=True)).T


COSINE_WRONG = {
    "in place": cosines_in_place,
    "no gradient": cosines_without_gradient,
    "detached lengths": cosines_with_detached_lengths,
    "plain": lambda z, w: z @ w.T,
    "plain z": lambda z, w: z @ F.normalize(w, dim=1).T,
    "plain w": lambda z, w: F.normalize(z, dim=1) @ w.T,
    "columns": lambda z, w: F.normalize(z, dim=0) @ F.normalize(w, dim=0).T,
    "columns of z": lambda z, w: F.normalize(z, dim=0) @ F.normalize(w, dim=1).T,
    "transposed": lambda z, w: cosines_by_hand(w, z),
    "softmax": lambda z, w: cosines_by_hand(z, w).softmax(1),
    "temperature": lambda z, w: cosines_by_hand(z, w) / 0.1,
    "one length": lambda z, w: z / z.norm() @ F.normalize(w, dim=1).T,
    "squared length": lambda z, w: z / (z**2).sum(1, True) @ (w / (w**2).sum(1, True)).T,
    "no transpose": lambda z, w: F.normalize(z, dim=1) @ F.normalize(w, dim=1),
    "twice": lambda z, w: F.normalize(cosines_by_hand(z, w), dim=1),
    "nearly": lambda z, w: cosines_by_hand(z, w) + 1e-3,
    "the first prototype": lambda z, w: cosines_by_hand(z, w)[:, 0],
    "pairs": lambda z, w: (F.normalize(z, dim=1)[: len(w)] * F.normalize(w, dim=1)[: len(z)]).sum(
        1
    ),
}

# --- Head ---------------------------------------------------------------------------------------


def mlp(in_dim, hidden_dim, bottleneck_dim, use_bn, gelu=nn.GELU, biases=True):
    layers = []
    for a, b in [(in_dim, hidden_dim), (hidden_dim, hidden_dim)]:
        layers += [nn.Linear(a, b, bias=biases), *([nn.BatchNorm1d(b)] if use_bn else []), gelu()]
    return nn.Sequential(*layers, nn.Linear(hidden_dim, bottleneck_dim, bias=biases))


def start(module):
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class WeightNormHead(nn.Module):
    """As the official code does it."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__()
        self.mlp = mlp(in_dim, hidden_dim, bottleneck_dim, use_bn)
        start(self.mlp)
        self.last = weight_norm(nn.Linear(bottleneck_dim, out_dim, bias=False))
        self.last.parametrizations.weight.original0.data.fill_(1)
        self.last.parametrizations.weight.original0.requires_grad = False

    def forward(self, h):
        return self.last(F.normalize(self.mlp(h), dim=-1))


class OwnNamesHead(nn.Module):
    """Layers one by one, the prototypes in a Linear whose weight is normalised each time."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__()
        self.first = nn.Linear(in_dim, hidden_dim)
        self.second = nn.Linear(hidden_dim, hidden_dim)
        self.third = nn.Linear(hidden_dim, bottleneck_dim)
        self.norms = nn.ModuleList(
            [nn.BatchNorm1d(hidden_dim) if use_bn else nn.Identity() for _ in range(2)]
        )
        for layer in (self.first, self.second, self.third):
            layer.weight.data.normal_(0, 0.02)
            layer.bias.data.zero_()
        self.prototypes = nn.Linear(bottleneck_dim, out_dim, bias=False)

    def forward(self, h):
        h = F.gelu(self.norms[0](self.first(h)))
        h = F.gelu(self.norms[1](self.second(h)))
        z = self.third(h)
        z = z / z.norm(dim=1, keepdim=True)
        w = self.prototypes.weight
        return z @ (w / w.norm(dim=1, keepdim=True)).T


class GainHead(WeightNormHead):
    """The gains are a parameter that stands still."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        del self.last
        self.w = nn.Parameter(F.normalize(torch.randn(out_dim, bottleneck_dim), dim=1))
        self.gain = nn.Parameter(torch.ones(out_dim, 1), requires_grad=False)

    def forward(self, h):
        return F.linear(F.normalize(self.mlp(h), dim=1), self.gain * F.normalize(self.w, dim=1))


class WrongHead(nn.Module):
    """The head, with parts of it replaced."""

    gelu, biases, at_end, started = nn.GELU, True, None, True

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__()
        self.mlp = mlp(in_dim, hidden_dim, bottleneck_dim, use_bn, self.gelu, self.biases)
        if self.at_end:
            self.mlp.append(self.at_end())
        if self.started:
            start(self.mlp)
        self.directions = nn.Parameter(self.draw(out_dim, bottleneck_dim))

    def draw(self, *shape):
        return 0.1 * torch.randn(*shape)

    def forward(self, h):
        return F.normalize(self.mlp(h), dim=-1) @ F.normalize(self.directions, dim=-1).T


class PlainZ(WrongHead):
    def forward(self, h):
        return self.mlp(h) @ F.normalize(self.directions, dim=-1).T


class PlainW(WrongHead):
    def forward(self, h):
        return F.normalize(self.mlp(h), dim=-1) @ self.directions.T


class Plain(WrongHead):
    def forward(self, h):
        return self.mlp(h) @ self.directions.T


class Relu(WrongHead):
    gelu = nn.ReLU


class GeluAtTheEnd(WrongHead):
    at_end = nn.GELU


class NoBiases(WrongHead):
    biases = False


class TorchStart(WrongHead):
    started = False


class AllAlike(WrongHead):
    def draw(self, *shape):
        return torch.ones(*shape)


class LongPrototypes(WrongHead):
    def draw(self, *shape):
        return torch.randn(*shape)


class Zeros(WrongHead):
    def draw(self, *shape):
        return torch.zeros(*shape)


class DetachedPrototypes(WrongHead):
    def forward(self, h):
        return F.normalize(self.mlp(h), dim=-1) @ F.normalize(self.directions.detach(), dim=-1).T


class LastLinear(WrongHead):
    """A Linear as torch makes it, with a bias and rows of any length."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        del self.directions
        self.last = nn.Linear(bottleneck_dim, out_dim)

    def forward(self, h):
        return self.last(F.normalize(self.mlp(h), dim=-1))


class LastLinearPlain(LastLinear):
    def forward(self, h):
        return self.last(self.mlp(h))


class BiasUnused(LastLinear):
    def forward(self, h):
        return F.normalize(self.mlp(h), dim=-1) @ F.normalize(self.last.weight, dim=-1).T


class ThreeHidden(WrongHead):
    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        self.mlp = nn.Sequential(*self.mlp[:-1], nn.Linear(hidden_dim, hidden_dim), nn.GELU(),
                                 self.mlp[-1])  # fmt: skip
        start(self.mlp)


class TrainedGains(WeightNormHead):
    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.last.parametrizations.weight.original0.requires_grad = True


class GainsLeft(WeightNormHead):
    """The gains keep the length that torch drew."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        self.last.parametrizations.weight.original0.data.fill_(0.5)


class NoBatchNorm(WrongHead):
    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim)


class TwoLinears(WrongHead):
    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False):
        super().__init__(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        self.mlp = nn.Sequential(
            nn.Linear(in_dim, hidden_dim), nn.GELU(), nn.Linear(hidden_dim, bottleneck_dim)
        )


class Softmax(WrongHead):
    def forward(self, h):
        return super().forward(h).softmax(-1)


# --- group_views --------------------------------------------------------------------------------


def starts_of(sizes):
    return [i for i, size in enumerate(sizes) if i == 0 or size != sizes[i - 1]]


def groups_zip(sizes):
    starts = starts_of(sizes)
    return list(zip(starts, [*starts[1:], len(sizes)], strict=True))


def groups_slices(sizes):
    return [slice(a, b) for a, b in groups_zip(sizes)]


def groups_array(sizes):
    return np.array(groups_zip(sizes))


def groups_yield(sizes):
    start = 0
    for _, same in itertools.groupby(sizes):
        stop = start + len(list(same))
        yield [start, torch.tensor(stop)]
        start = stop


GROUP_WRONG = {
    "one each": lambda s: [(i, i + 1) for i in range(len(s))],
    "all at once": lambda s: [(0, len(s))],
    "by size": lambda s: [(s.index(x), len(s) - s[::-1].index(x)) for x in dict.fromkeys(s)],
    "sorted": lambda s: groups_zip(sorted(s)),
    "sorted, large first": lambda s: groups_zip(sorted(s, reverse=True)),
    "last included": lambda s: [(a, b - 1) for a, b in groups_zip(s)],
    "no last": lambda s: groups_zip(s)[:-1],
    "lengths": lambda s: [(a, b - a) for a, b in groups_zip(s)],
    "size and length": lambda s: [(s[a], b - a) for a, b in groups_zip(s)],
    "from 1": lambda s: [(a + 1, b + 1) for a, b in groups_zip(s)],
    "starts": lambda s: [(a, a) for a, b in groups_zip(s)],
    "the views": lambda s: [list(same) for _, same in itertools.groupby(s)],
}

# --- forward_views ------------------------------------------------------------------------------


def views_by_lists(backbone, head, views):
    features, start = [], 0
    while start < len(views):
        stop = start
        while stop < len(views) and views[stop].shape == views[start].shape:
            stop += 1
        features.append(backbone(torch.cat(views[start:stop])))
        start = stop
    logits = head(torch.cat(features))
    return torch.stack(logits.chunk(len(views)))


def views_of_any_order(backbone, head, views):
    """All views of one size together, neighbours or not, and each back to its place."""
    features = [None] * len(views)
    for side in {view.shape[-1] for view in views}:
        places = [i for i, view in enumerate(views) if view.shape[-1] == side]
        rows = backbone(torch.cat([views[i] for i in places])).chunk(len(places))
        for i, part in zip(places, rows, strict=True):
            features[i] = part
    return head(torch.cat(features)).reshape(len(views), len(views[0]), -1)


def grouped(backbone, head, views):
    return views_by_lists(backbone, head, views)


VIEWS_WRONG = {
    "one by one": lambda b, h, v: torch.stack([h(b(x)) for x in v]),
    "head for each": lambda b, h, v: torch.stack([h(f) for f in feature_parts(b, v)]),
    "mixed up": lambda b, h, v: grouped(b, h, v).flatten(0, 1).unflatten(0, (-1, len(v))),
    "images first": lambda b, h, v: grouped(b, h, v).transpose(0, 1),
    "read as images first": lambda b, h, v: (
        grouped(b, h, v).flatten(0, 1).unflatten(0, (-1, len(v))).transpose(0, 1)
    ),
    "flat": lambda b, h, v: grouped(b, h, v).flatten(0, 1),
    "mean": lambda b, h, v: grouped(b, h, v).mean(0),
    "small first": lambda b, h, v: grouped(b, h, sorted(v, key=lambda x: x.shape[-1])),
    "features": lambda b, h, v: grouped(b, lambda x: x, v),
    "no last": lambda b, h, v: grouped(b, h, v[:-1]),
    "all in one": lambda b, h, v: h(b(torch.cat(v))).unflatten(0, (len(v), -1)),
    "one head": lambda b, h, v: h(torch.cat([b(x) for x in v])).unflatten(0, (len(v), -1)),
    "one by one and flat": lambda b, h, v: h(torch.cat([b(x) for x in v])),
    "features detached": lambda b, h, v: grouped(lambda x: b(x).detach(), h, v),
    "logits detached": lambda b, h, v: grouped(b, h, v).detach(),
    "no grad": torch.no_grad()(lambda b, h, v: grouped(b, h, v)),
    "head before backbone": lambda b, h, v: torch.stack([b(h(x)) for x in v]),
}


def feature_parts(backbone, views):
    """The features of each view, in few passes."""
    return grouped(backbone, lambda x: x, views)


# --- nearest_pictures ---------------------------------------------------------------------------


def nearest_sorted(logits, prototype, n):
    order = sorted(range(len(logits)), key=lambda i: -logits[i, prototype].item())
    return order[:n]


def nearest_numpy(logits, prototype, n):
    return np.argsort(-logits.numpy()[:, prototype])[:n]


NEAREST_WRONG = {
    "farthest": lambda x, k, n: x[:, k].argsort()[:n],
    "values": lambda x, k, n: x[:, k].topk(n).values,
    "a row": lambda x, k, n: x[k].topk(n).indices,
    "turned round": lambda x, k, n: x[:, k].argsort()[-n:],
    "by size": lambda x, k, n: x[:, k].abs().topk(n).indices,
    "one too many": lambda x, k, n: x[:, k].topk(n + 1).indices,
    "without the first": lambda x, k, n: x[:, k].topk(n + 1).indices[1:],
    "ranks": lambda x, k, n: x[:, k].argsort(descending=True).argsort()[:n],
    "all": lambda x, k, n: x[:, k].argsort(descending=True),
    "the first n": lambda x, k, n: torch.arange(n),
    "all columns": lambda x, k, n: x.topk(n, dim=0).indices,
    "the prototype before": lambda x, k, n: x[:, k - 1].topk(n).indices,
    "the next prototype": lambda x, k, n: x[:, (k + 1) % x.shape[1]].topk(n).indices,
}

# --- head_parameters ----------------------------------------------------------------------------


def count(in_dim, out_dim, hidden_dim, bottleneck_dim):
    widths = [in_dim, hidden_dim, hidden_dim, bottleneck_dim]
    return sum(a * b + b for a, b in itertools.pairwise(widths)) + out_dim * bottleneck_dim


def count_with_torch(in_dim, out_dim, hidden_dim, bottleneck_dim):
    with torch.device("meta"):
        head = WeightNormHead(in_dim, out_dim, hidden_dim, bottleneck_dim)
    return torch.tensor(sum(p.numel() for p in head.parameters() if p.requires_grad))


COUNT_WRONG = {
    "batch norms": lambda d, k, h, b: count(d, k, h, b) + 4 * h,
    "no biases": lambda d, k, h, b: d * h + h * h + h * b + k * b,
    "gains": lambda d, k, h, b: count(d, k, h, b) + k,
    "one bias too many": lambda d, k, h, b: count(d, k, h, b) + h,
    "bottleneck's bias twice": lambda d, k, h, b: count(d, k, h, b) + b,
    "no bias of the bottleneck": lambda d, k, h, b: count(d, k, h, b) - b,
    "two Linears": lambda d, k, h, b: d * h + h + h * b + b + k * b,
    "four Linears": lambda d, k, h, b: count(d, k, h, b) + h * h + h,
    "no prototypes": lambda d, k, h, b: count(d, k, h, b) - k * b,
    "no bottleneck": lambda d, k, h, b: d * h + h + h * h + h + k * h,
    "wide prototypes": lambda d, k, h, b: count(d, k, h, b) - k * b + k * h,
    "as text": lambda d, k, h, b: f"{count(d, k, h, b)}",
    "one too many": lambda d, k, h, b: count(d, k, h, b) + 1,
    "biases of the inputs": lambda d, k, h, b: count(d, k, h, b) + d - b,
}

# --- normalize_backward -------------------------------------------------------------------------


def backward_norm(z, grad):
    length = z.norm(dim=-1, keepdim=True)
    unit = z / length
    return (grad - (grad * unit).sum(-1, keepdim=True) * unit) / length


def backward_projection(z, grad):
    out = []
    for row, g in zip(z, grad, strict=True):
        u = row / row.norm()
        out.append((torch.eye(len(u)) - torch.outer(u, u)) @ g / row.norm())
    return torch.stack(out)


def backward_einsum(z, grad):
    square = torch.einsum("nd,nd->n", z, z)[:, None]
    along = torch.einsum("nd,nd->n", z, grad)[:, None]
    return grad / square.sqrt() - z * along / square**1.5


def backward_autograd(z, grad):
    z = z.requires_grad_()
    F.normalize(z, dim=1).backward(grad)
    return z.grad


def length_of(z):
    return z.norm(dim=1, keepdim=True)


BACKWARD_WRONG = {
    "nothing removed": lambda z, g: g / length_of(z),
    "no division": lambda z, g: backward_norm(z, g) * length_of(z),
    "times the length": lambda z, g: backward_norm(z, g) * length_of(z) ** 2,
    "divided twice": lambda z, g: backward_norm(z, g) / length_of(z),
    "z itself": lambda z, g: (g - (g * z).sum(1, keepdim=True) * z) / length_of(z),
    "z once": lambda z, g: (g - (g * z / length_of(z)).sum(1, True) * z) / length_of(z),
    "only along": lambda z, g: g / length_of(z) - backward_norm(z, g),
    "added": lambda z, g: 2 * g / length_of(z) - backward_norm(z, g),
    "one length": lambda z, g: backward_norm(z, g) * length_of(z) / z.norm(),
    "as it came": lambda z, g: g,
    "zeros": lambda z, g: torch.zeros_like(g),
    "swapped": lambda z, g: backward_norm(g, z),
    "autograd": backward_autograd,
    "mean": lambda z, g: (g - (g * F.normalize(z)).mean(1, True) * F.normalize(z)) / length_of(z),
}

STYLES = {
    "split_tokens": [split_reshape, split_by_parts],
    "cosine_logits": [cosines_by_hand, cosines_of_torch, cosines_loop],
    "Head": [WeightNormHead, OwnNamesHead, GainHead],
    "group_views": [groups_zip, groups_slices, groups_array, groups_yield],
    "forward_views": [views_by_lists, views_of_any_order],
    "nearest_pictures": [nearest_sorted, nearest_numpy],
    "head_parameters": [count, count_with_torch, lambda *sizes: float(count(*sizes))],
    "normalize_backward": [backward_norm, backward_projection, backward_einsum],
}
WRONG = {
    "split_tokens": SPLIT_WRONG,
    "cosine_logits": COSINE_WRONG,
    "Head": {
        c.__name__: c
        for c in [
            PlainZ,
            PlainW,
            Plain,
            Relu,
            GeluAtTheEnd,
            NoBiases,
            TorchStart,
            AllAlike,
            LongPrototypes,
            TrainedGains,
            GainsLeft,
            NoBatchNorm,
            TwoLinears,
            Softmax,
            Zeros,
            DetachedPrototypes,
            LastLinear,
            LastLinearPlain,
            BiasUnused,
            ThreeHidden,
        ]
    },
    "group_views": GROUP_WRONG,
    "forward_views": VIEWS_WRONG,
    "nearest_pictures": NEAREST_WRONG,
    "head_parameters": COUNT_WRONG,
    "normalize_backward": BACKWARD_WRONG,
}
EQUIVALENT = {
    "cosine_logits": ["F.normalize(z) @", "F.normalize(directions).T"],  # dim=1 is the default
    # only the weight of that Linear is kept: its bias, if it has one, is thrown away
    "Head": ["(bottleneck_dim, out_dim).weight", "(bottleneck_dim, out_dim, bias=True).weight"],
    "forward_views": ["view.shape[-2]"],  # views are square
}
