"""The projection heads, and the model that sends a list of views through backbone and head."""

from itertools import groupby
from numbers import Integral

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DINOHead(nn.Module):
    """The paper's head (section 3.1 and appendix C): MLP, L2 normalisation, prototypes.

    (N, in_dim) -> (N, out_dim). With z the L2-normalised bottleneck and w_k the unit direction of
    prototype k, logit k is gain_k * <z, w_k>; the gain stays 1 where `norm_last_layer` is true, so
    that a logit is a cosine. With `n_layers=1` a single Linear stands before the normalisation.

    `use_bn` puts batch norm after every hidden Linear. It speeds up tiny models, but its statistics
    are those of the rows at hand: gradient accumulation and several processes then differ from one
    large batch.

    Normalisation and prototypes are computed in float32 whatever autocast says (squares overflow in
    fp16). ValueError on widths that are no whole numbers, or below 1.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 65536,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        n_layers: int = 3,
        use_bn: bool = False,
        norm_last_layer: bool = True,
    ):
        super().__init__()
        _check(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim)
        _check(bottleneck_dim=bottleneck_dim, n_layers=n_layers)
        layers, width = [], in_dim
        for _ in range(n_layers - 1):
            layers.append(nn.Linear(width, hidden_dim))
            if use_bn:
                layers.append(nn.BatchNorm1d(hidden_dim))
            layers.append(nn.GELU())
            width = hidden_dim
        layers.append(nn.Linear(width, bottleneck_dim))
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp:
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        # initialised as a Linear without bias would be
        directions = nn.Linear(bottleneck_dim, out_dim, bias=False).weight
        self.directions = nn.Parameter(directions.detach().clone())
        self.gain = nn.Parameter(torch.ones(out_dim), requires_grad=not norm_last_layer)
        self.float()  # whatever torch's default number format is

    def forward(self, x: Tensor) -> Tensor:
        _check_features(x, self.mlp[0])
        z = self.mlp(x)  # (N, bottleneck_dim)
        with torch.autocast(x.device.type, enabled=False):
            z = F.normalize(z.float(), dim=-1, eps=1e-12)
            prototypes = F.normalize(self.directions, dim=-1) * self.gain[:, None]
            return z @ prototypes.T  # (N, out_dim)

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The parameters that `freeze_last_layer` holds still at the start of a run."""
        return [self.directions, self.gain]


class OriginalHead(nn.Module):
    """The five-layer head of the from-scratch repository this course starts from, not the paper's.

    (N, in_dim) -> (N, out_dim), each row of length 1. Four hidden Linears, each followed by GELU
    and a LayerNorm, then Linear to `out_dim`. There is no bottleneck and no prototype layer.
    """

    def __init__(self, in_dim: int, out_dim: int = 1000, *, hidden_dim: int = 2048):
        super().__init__()
        _check(in_dim=in_dim, out_dim=out_dim, hidden_dim=hidden_dim)
        layers, width = [], in_dim
        for _ in range(4):
            layers += [nn.Linear(width, hidden_dim), nn.GELU(), nn.LayerNorm(hidden_dim)]
            width = hidden_dim
        self.mlp = nn.Sequential(*layers, nn.Linear(hidden_dim, out_dim))
        self.float()

    def forward(self, x: Tensor) -> Tensor:
        _check_features(x, self.mlp[0])
        z = self.mlp(x)
        with torch.autocast(x.device.type, enabled=False):
            return F.normalize(z.float(), dim=-1, eps=1e-12)

    def last_layer_parameters(self) -> list[nn.Parameter]:
        """The parameters that `freeze_last_layer` holds still at the start of a run."""
        return list(self.mlp[-1].parameters())


def _check(**widths):
    for name, width in widths.items():
        if not isinstance(width, Integral) or width < 1:
            raise ValueError(f"{name}={width} must be a whole number, at least 1")


def _check_features(x, first):
    if x.shape[-1] != first.in_features:
        expected = f"expected (N, {first.in_features})"
        raise ValueError(f"features {tuple(x.shape)} do not fit the head: {expected}")


class MultiCropModel(nn.Module):
    """Backbone and head over a list of views: [(B, C, h_v, w_v)] * V -> (V, B, out_dim).

    Neighbouring views of one size go through the backbone in one pass, and all features through the
    head in one pass (so batch norm in the head, where there is any, sees all views of the batch).
    """

    def __init__(self, backbone: nn.Module, head: nn.Module):
        super().__init__()
        self.backbone = backbone
        self.head = head

    def features(self, views: list[Tensor]) -> Tensor:
        """[(B, C, h_v, w_v)] * V -> (V * B, D), view by view."""
        if len({len(view) for view in views}) != 1:
            shapes = [tuple(view.shape) for view in views]
            raise ValueError(f"views are {shapes}: expected (B, C, h, w) with one B")
        passes = groupby(views, key=lambda view: view.shape[-2:])
        return torch.cat([self.backbone(torch.cat(list(same))) for _, same in passes])

    def forward(self, views: list[Tensor]) -> Tensor:
        logits = self.head(self.features(views))  # (V * B, K)
        return logits.unflatten(0, (len(views), -1))
