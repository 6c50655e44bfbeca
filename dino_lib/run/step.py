"""What stands around one update: its schedules and seed, its parts, and how it is taken back."""

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_lib.run.config import Config
from dino_lib.run.processes import Interrupts, Ranks


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


def clip_gradients(model: nn.Module, limit: float) -> Tensor:
    """Limit the gradient's global norm (0: to nothing); returns the norm before, a scalar.

    The official code limits each tensor by itself.
    """
    return torch.nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf)


class Seen:
    """What the parts of a batch leave behind: their losses, and what the teacher said of them."""

    def __init__(self) -> None:
        self.losses, self.rows, self.choices = [], [], []

    def add(self, loss: Tensor, targets: Tensor, center: Tensor) -> None:
        """targets: the teacher's logits (2, B, K)."""
        self.losses.append(loss.detach())
        self.rows.append(targets.flatten(0, 1).float().mean(0))  # (K,)
        self.choices.append((targets - center).argmax(-1).flatten())  # (2 B,)
        self.n_prototypes = len(center)

    def by_all(self, ranks: Ranks, interrupts: Interrupts) -> tuple[Tensor, Tensor]:
        """(mean loss, bool (K,): the prototypes that were some view's first choice).

        Both of all processes, which also tell each other here whether one was interrupted: all
        leave after the same update. They skip the same updates too, since the gradient's norm is
        the same in all.
        """
        loss = torch.stack(self.losses).mean()
        used = torch.zeros(self.n_prototypes, dtype=torch.bool, device=loss.device)
        used.index_fill_(0, torch.cat(self.choices), True)
        if ranks.together:
            asked = loss.new_tensor(float(interrupts.asked))
            loss, asked = ranks.mean(torch.stack([loss, asked]))
            interrupts.agreed = bool(asked > 0)
        return loss, ranks.any(used)


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
