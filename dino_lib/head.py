"""The projection heads, and the model that sends a list of views through backbone and head."""

import itertools
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import nn


class DINOHead(nn.Module):
    """The paper's head (section 3.1 and appendix C): MLP, L2 normalisation, weight-normalised prototypes.

    (N, in_dim) -> (N, out_dim). With z the L2-normalised bottleneck and w_k the unit direction of
    prototype k, logit k is gain_k * <z, w_k>; the gain stays 1 where `norm_last_layer` is true, so that
    a logit is a cosine. With `n_layers=1` a single Linear stands before the normalisation.

    `use_bn` puts batch norm after every hidden Linear. It speeds up tiny models, but the statistics are
    those of the rows at hand: gradient accumulation and several processes then differ from one large batch.

    Normalisation and prototypes are computed in float32 whatever autocast says (fp16 squares overflow).
    """

    def __init__(self, in_dim, out_dim=65536, *, hidden_dim=2048, bottleneck_dim=256, n_layers=3,
                 use_bn=False, norm_last_layer=True):
        super().__init__()
        _check_widths(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim, bottleneck_dim=bottleneck_dim,
                      n_layers=n_layers)
        widths = [in_dim] + [hidden_dim] * (n_layers - 1) + [bottleneck_dim]
        layers = []
        for i, (d_in, d_out) in enumerate(itertools.pairwise(widths)):
            layers.append(nn.Linear(d_in, d_out))
            if i < n_layers - 1:  # the bottleneck is followed by the L2 normalisation alone
                layers += [nn.BatchNorm1d(d_out), nn.GELU()] if use_bn else [nn.GELU()]
        self.mlp = nn.Sequential(*layers)
        for module in self.mlp:
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        # the default initialisation of a Linear without bias: only the directions count
        self.directions = nn.Parameter(nn.Linear(bottleneck_dim, out_dim, bias=False).weight.detach().clone())
        self.gain = nn.Parameter(torch.ones(out_dim), requires_grad=not norm_last_layer)

    def forward(self, x):
        _check_features(x, self.mlp[0])
        z = self.mlp(x)  # (N, bottleneck_dim)
        with torch.autocast(x.device.type, enabled=False):
            z = F.normalize(z.float(), dim=-1, eps=1e-12)
            # gain * directions / |directions|, as torch's own weight_norm has it: one pass, and one back
            prototypes = torch._weight_norm(self.directions, self.gain[:, None], 0)
            return z @ prototypes.T  # (N, out_dim)

    def last_layer_parameters(self):
        """The parameters that `freeze_last_layer` holds still at the start of a run."""
        return [self.directions, self.gain]


class OriginalHead(nn.Module):
    """The five-layer head of the from-scratch repository this course starts from, not the paper's.

    (N, in_dim) -> (N, out_dim), each row of length 1. Four hidden Linears, each followed by GELU and its
    own LayerNorm, then Linear to `out_dim`. There is no bottleneck and no prototype layer.
    """

    def __init__(self, in_dim, out_dim=1000, *, hidden_dim=2048):
        super().__init__()
        _check_widths(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim)
        layers = []
        for d_in in [in_dim] + [hidden_dim] * 3:
            layers += [nn.Linear(d_in, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim)]
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))

    def forward(self, x):
        _check_features(x, self.mlp[0])
        z = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(z.float(), dim=-1, eps=1e-12)

    def last_layer_parameters(self):
        """The parameters that `freeze_last_layer` holds still at the start of a run."""
        return list(self.mlp[-1].parameters())


def _check_widths(**widths):
    for name, width in widths.items():
        if not isinstance(width, Integral) or width < 1:
            raise ValueError(f"{name}={width} must be a whole number, at least 1")


def _check_features(x, first):
    if x.shape[-1] != first.in_features:
        raise ValueError(f"features {tuple(x.shape)} do not fit the head: expected (N, {first.in_features})")


class MultiCropModel(nn.Module):
    """Backbone and head over a list of views: [(B, C, h_v, w_v)] * V -> (V, B, out_dim).

    Consecutive views of one size go through the backbone in one pass, and all features through the head
    in one pass (so batch norm in the head, where there is any, sees all views of the batch together).
    """

    def __init__(self, backbone, head):
        super().__init__()
        self.backbone, self.head = backbone, head

    def features(self, views):
        """[(B, C, h_v, w_v)] * V -> (V * B, D), view by view."""
        if len({len(view) for view in views}) != 1:
            raise ValueError(f"views are {[tuple(view.shape) for view in views]}: expected (B, C, h, w) with one B")
        features, start = [], 0
        for stop in range(1, len(views) + 1):
            if stop == len(views) or views[stop].shape[-2:] != views[start].shape[-2:]:
                features.append(self.backbone(torch.cat(views[start:stop])))  # (n * B, D)
                start = stop
        return torch.cat(features)

    def forward(self, views):
        logits = self.head(self.features(views))  # (V * B, K)
        return logits.unflatten(0, (len(views), -1))
