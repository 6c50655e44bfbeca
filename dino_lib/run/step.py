"""What stands around one update: its schedules and seed, its parts, and how it is taken back."""

import contextlib
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_lib.run.config import Config


def set_schedules(optimizer: torch.optim.Optimizer, now: dict[str, float]) -> None:
    """Learning rate and weight decay; none of that in the second group, of biases and norms."""
    decayed, others = optimizer.param_groups
    decayed["lr"] = others["lr"] = now["lr"]
    decayed["weight_decay"], others["weight_decay"] = now["weight_decay"], 0.0


def seed_drop_path(seed: int, step: int, rank: int) -> None:
    """A resumed run draws what the whole one would have drawn; each process something else."""
    torch.manual_seed(np.random.SeedSequence([seed, 1, step, rank]).generate_state(1)[0])


def split(views: Sequence[Tensor], n_parts: int) -> list[tuple[Tensor, ...]]:
    """Views of B images -> n_parts tuples of views of B / n_parts images."""
    return list(zip(*(view.chunk(n_parts) for view in views), strict=True))


def average_gradients(model: nn.Module, last_part: bool) -> contextlib.AbstractContextManager:
    """For a forward pass: several processes average their gradients once an update, at its end."""
    if last_part or not isinstance(model, DistributedDataParallel):
        return contextlib.nullcontext()
    return model.no_sync()


def drop_gradients(parameters: Iterable[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Limit the gradient's global norm (0: to nothing); returns the norm before, a scalar.

    The official code limits each tensor by itself.
    """
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf)


def mark(indices: Sequence[Tensor], n: int) -> Tensor:
    """(n,) bool: true at the indices."""
    marked = torch.zeros(n, dtype=torch.bool, device=indices[0].device)
    return marked.index_fill_(0, torch.cat(list(indices)), True)


class Buffers:
    """Copies of what a forward pass moves: the statistics of batch norm."""

    def __init__(self, *models: nn.Module) -> None:
        self.buffers = [buffer for model in models for buffer in model.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def restore(self) -> None:
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)


def check_batch(config: Config, n_images: int, processes: int) -> None:
    """ValueError where a batch cannot be made of so many images, or shared evenly."""
    size, parts = config.batch_size, config.accumulate
    if size % (processes * parts):
        raise ValueError(f"batch_size={size} must be divisible by accumulate={parts} times the "
                         f"number of processes, {processes}")
    if n_images < size:
        raise ValueError(f"batch_size={size} is larger than the {n_images} training images")
