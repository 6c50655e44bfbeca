"""The self-check of notebook 02's head: the class that the reader writes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dino_lib.course.check import Case, Mistake, check


def random_tensor(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    """Normal numbers, the same each time."""
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_tensors(case: Case) -> Case:
    """The case, with a word where a piece that the notebook goes on with gives no tensors."""

    def of_tensors(piece: Any) -> Any:
        found = case(piece)
        parts = found if isinstance(found, tuple | list) else [found]
        if found is not None and not all(isinstance(part, Tensor) for part in parts):
            raise Mistake("the notebook goes on with tensors, not with lists or arrays")
        return found

    return of_tensors


class _Finished(nn.Module):
    """The paper's head, and with `change` one mistake in it."""

    def __init__(self, in_dim, out_dim, hidden_dim=2048, bottleneck_dim=256, use_bn=False, *,
                 change=""):
        super().__init__()
        self.change, layers, width = change, [], in_dim
        for _ in range(2):
            norm = [nn.BatchNorm1d(hidden_dim)] if use_bn and change != "no bn" else []
            norm = [nn.BatchNorm1d(hidden_dim)] if change == "always bn" else norm
            gelu = nn.ReLU() if change == "relu" else nn.GELU()
            order = [gelu, *norm] if change == "bn behind gelu" else [*norm, gelu]
            layers += [nn.Linear(width, hidden_dim, bias=change != "no biases"), *order]
            width = hidden_dim
        layers = layers[:-1] if change == "one gelu" else layers
        layers.append(nn.Linear(hidden_dim, bottleneck_dim, bias=change != "no biases"))
        layers += [nn.BatchNorm1d(bottleneck_dim)] if use_bn and change == "bn at the end" else []
        layers += [nn.GELU()] if change == "gelu at the end" else []
        self.mlp = nn.Sequential(*layers)
        for layer in self.mlp if change != "torch's start" else []:
            if isinstance(layer, nn.Linear):
                std = {"one": 1.0, "wide": 0.04}.get(change, 0.02)
                nn.init.trunc_normal_(layer.weight, std=std)
                if layer.bias is not None and change != "torch's biases":
                    nn.init.zeros_(layer.bias)
        self.directions = nn.Linear(bottleneck_dim, out_dim, bias=False).weight
        if change == "ones":
            nn.init.ones_(self.directions)
        if change == "zeros":
            nn.init.zeros_(self.directions)
        if change == "positive":
            nn.init.uniform_(self.directions)
        if change == "long":
            nn.init.normal_(self.directions)
        self.directions.requires_grad = change != "frozen"
        if change == "gains":
            self.gain = nn.Parameter(torch.ones(out_dim))
        if change in ("linear", "plain linear"):
            self.bias = nn.Parameter(torch.zeros(out_dim))

    def forward(self, h):
        z, w = self.mlp(h), self.directions
        plain = self.change in ("plain", "plain linear")
        z = z if plain or self.change == "plain z" else F.normalize(z, dim=-1)
        w = w if plain or self.change in ("plain w", "linear") else F.normalize(w, dim=-1)
        if self.change == "wrong axis":
            z = F.normalize(self.mlp(h), dim=0)
        if self.change == "cut":
            w = w.detach()
        if self.change == "detached":
            w = self.directions / self.directions.detach().norm(dim=-1, keepdim=True)
        logits = z @ w.T
        if self.change == "softmax":
            return logits.softmax(-1)
        return F.normalize(logits, dim=-1) if self.change == "normalised again" else logits


HEADS = {
    "plain": "neither z nor the prototypes are normalised: these are dot products, not cosines",
    "linear": "w is not normalised and has a bias: a plain Linear gives no cosines",
    "plain linear": "neither z nor w is normalised, and w has a bias: a plain Linear gives no "
                    "cosines",
    "plain z": "z is not normalised before the prototypes",
    "plain w": "the prototypes are not normalised: a long one would win",
    "wrong axis": "z is normalised over the batch: each row is one vector",
    "gelu at the end": "behind the last Linear there is no GELU: z goes straight to its direction",
    "one gelu": "a GELU is missing: one stands behind each hidden Linear",
    "relu": "that is ReLU, and the paper's head has GELU",
    "no bn": "use_bn=True changes nothing: a BatchNorm1d belongs behind each hidden Linear",
    "always bn": "use_bn=False still has batch norm",
    "bn behind gelu": "batch norm stands before the GELU, right behind its Linear",
    "bn at the end": "no batch norm behind the last Linear: only the hidden ones have it",
    "no biases": "the Linears of the MLP have biases",
    "torch's start": "weights and biases start as torch makes them: they should have the deviation "
                     "0.02, and the biases 0",
    "one": "the weights start 50 times too large: deviation 0.02",
    "wide": "the weights start too large: deviation 0.02",
    "torch's biases": "the biases have to start at 0",
    "ones": "all prototypes start as the same direction: draw them at random",
    "zeros": "prototypes that start at 0 have no direction: draw them at random",
    "positive": "the prototypes start with positive numbers alone, so they all look one way",
    "long": "the prototypes start too long: the logits don't show it, but a long vector turns "
            "slowly; take what a Linear starts from",
    "frozen": "the prototypes have to learn: requires_grad is off",
    "gains": "out_dim numbers too many are trained: the gains are held at 1, and the prototypes "
             "have no bias",
    "cut": "no gradient reaches the prototypes: they are detached",
    "detached": "the length of a prototype must not be detached: its gradient is part of it",
    "softmax": "that is a softmax; it belongs to the loss",
    "normalised again": "the logits are normalised again: cosines are ready",
}


def Head(yours: Any) -> Any:
    """`yours(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)`: the paper's head, a module."""
    cases = [_filled(3, 7, 5, 4, False), _filled(6, 9, 4, 3, False), _filled(3, 7, 5, 4, True),
             _started(12, 40, 160, 8), _counted(3, 7, 5, 4), _counted(3, 7)]
    mistakes = {hint: lambda *sizes, change=change, **named: _Finished(
        *sizes, change=change, **named) for change, hint in HEADS.items()}
    return check("Head", yours, _Finished, cases, mistakes)


def _parts(head: nn.Module, out_dim: int, bottleneck_dim: int) -> tuple[list, nn.Parameter]:
    """The three Linears of a head's MLP, and its directions: whatever they are called. A bias that
    the directions should not have is set to 0.
    """
    directions = [p for p in head.parameters() if p.shape == (out_dim, bottleneck_dim)]
    if len(directions) != 1:
        raise Mistake(f"it should have one parameter of shape (out_dim, bottleneck_dim) for "
                      f"the prototypes, and {len(directions)} are found")
    linears = []
    for layer in (m for m in head.modules() if isinstance(m, nn.Linear)):
        if layer.weight.shape != (out_dim, bottleneck_dim):
            linears.append(layer)
        elif layer.bias is not None:
            nn.init.zeros_(layer.bias)
    if len(linears) != 3:
        raise Mistake(f"its MLP should have three Linears, and {len(linears)} are found")
    return linears, directions[0]


def _filled(in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int, use_bn: bool) -> Case:
    """Logits and gradients, with the same weights in every head."""

    def case(build: Any) -> list[Tensor]:
        head = build(in_dim, out_dim, hidden_dim, bottleneck_dim, use_bn)
        linears, directions = _parts(head, out_dim, bottleneck_dim)
        for seed, layer in enumerate(linears):
            layer.weight.data.copy_(random_tensor(*layer.weight.shape, seed=seed))
            if layer.bias is not None:
                layer.bias.data.copy_(random_tensor(len(layer.bias), seed=10 + seed))
        directions.data.copy_(random_tensor(*directions.shape, seed=5))
        h = random_tensor(6, in_dim, seed=6).requires_grad_()
        logits = head(h)
        (logits * random_tensor(6, out_dim, seed=7)).sum().backward()
        grads = [h.grad, *(layer.weight.grad for layer in linears), directions.grad]
        return [logits, *(torch.zeros(1) if g is None else g for g in grads)]

    return case


def _started(in_dim: int, out_dim: int, hidden_dim: int, bottleneck_dim: int) -> Case:
    """What a fresh head starts from, roughly: 1 for each that is as it should be."""

    def case(build: Any) -> list[Tensor]:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            head = build(in_dim, out_dim, hidden_dim, bottleneck_dim)
            linears, directions = _parts(head, out_dim, bottleneck_dim)
            ratios = [layer.weight.std() / 0.02 for layer in linears]
            biases = [0 if m.bias is None else m.bias.abs().max() for m in linears]
            w = F.normalize(directions, dim=-1)
            alike = (w @ w.T).mean().abs()
            known = [0.8 < r < 1.25 for r in ratios]
            known += [layer.weight.mean().abs() < 0.005 for layer in linears]
            if not all(known):
                found = ", ".join(f"{layer.weight.mean():.3f} ± {layer.weight.std():.3f}"
                                  for layer in linears)
                started = all(r > 0 for r in ratios) and ratios[0] < 40
                if started and all(m.bias is not None and m.bias.abs().max() == 0 for m in linears):
                    raise Mistake(f"the weights start at {found} (mean ± deviation); they should "
                                  "have mean 0 and deviation 0.02")
            lengths = directions.norm(dim=1)
            known += [*(b == 0 for b in biases), alike < 0.2, lengths.mean() < 1.5]
            known.append(lengths.min() > 0)
            return [torch.tensor(float(x)) for x in known]

    return case


def _counted(*sizes: int) -> Case:
    """The trainable numbers of a head of these sizes, counted without making them."""

    def case(build: Any) -> int:
        with torch.device("meta"):
            head = build(*sizes)
        return sum(p.numel() for p in head.parameters() if p.requires_grad)

    return case
