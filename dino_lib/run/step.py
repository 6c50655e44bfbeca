"""What stands around one update: its schedules and seed, its parts, and how it is taken back."""

import contextlib
import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dino_lib.head import MultiCropModel
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


def wake(student: MultiCropModel, teacher: MultiCropModel, config: Config, step: int,
         steps_per_epoch: int) -> None:
    """The backbones' mode: eval in the epochs of `freeze_backbone`, then train.

    So the statistics of batch norm stand still as long as the weights do.
    """
    awake = config.train_backbone and step >= config.freeze_backbone * steps_per_epoch
    for model in (student, teacher):
        model.backbone.train(awake)


def hold_still(model: MultiCropModel, config: Config, step: int, steps_per_epoch: int) -> None:
    """Take the gradients of what stands still in this step: the last layer, the backbone.

    Without one the optimizer neither moves nor decays a parameter, and the norm leaves it out.
    """
    if step < config.freeze_last_layer * steps_per_epoch:
        for parameter in model.head.last_layer_parameters():
            parameter.grad = None
    if step < config.freeze_backbone * steps_per_epoch:
        for parameter in model.backbone.parameters():
            parameter.grad = None


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

    def by_all(self, ranks: Ranks, interrupts: Interrupts) -> tuple[Tensor, Tensor, Tensor]:
        """(mean loss, bool (K,): the prototypes that were some view's first choice, whether a
        process was interrupted).

        All of all processes: they leave after the same update. They skip the same updates too,
        since the gradient's norm is the same in all.
        """
        loss = torch.stack(self.losses).mean()
        used = torch.zeros(self.n_prototypes, dtype=torch.bool, device=loss.device)
        used.index_fill_(0, torch.cat(self.choices), True)
        asked = torch.full((), float(interrupts.asked), device=loss.device)
        loss, asked = ranks.mean(torch.stack([loss, asked]))
        return loss, ranks.any(used), asked > 0


class Buffers:
    """Copies of what an update moves beside the parameters: batch norm's statistics, the center."""

    def __init__(self, *modules: nn.Module) -> None:
        self.buffers = [buffer for module in modules for buffer in module.buffers()]
        self.before = [buffer.clone() for buffer in self.buffers]

    def restore_unless(self, finite: Tensor) -> None:
        """finite: bool (); what it says is not waited for."""
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(torch.where(finite, buffer, before))


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler) -> None:
    """The optimizer's step, or none: finite is bool (), on the device.

    A fused optimizer reads there, as it does for GradScaler; the host waits for any other, and on
    a Mac, whose fused kernels didn't look (pytorch #186360).
    """
    fused = getattr(optimizer, "_step_supports_amp_scaling", False)
    if fused and finite.device.type != "mps":
        optimizer.found_inf = 1 - finite.float()
        scaler.step(optimizer)
    elif finite:
        scaler.step(optimizer)


def momentum_if(finite: Tensor, momentum: float) -> Tensor:
    """The momentum where finite, bool (), is true; else 1, with which the teacher stays."""
    exact = torch.float32 if finite.device.type == "mps" else torch.float64
    return 1 - finite.to(exact) * (1 - momentum)


def check_batch(config: Config, n_images: int, processes: int) -> None:
    """ValueError where a batch cannot be made of so many images, or shared evenly."""
    size, parts = config.batch_size, config.accumulate
    if size % (processes * parts):
        raise ValueError(f"batch_size={size} must be divisible by accumulate={parts} times the "
                         f"number of processes, {processes}")
    if n_images < size:
        raise ValueError(f"batch_size={size} is larger than the {n_images} training images")
