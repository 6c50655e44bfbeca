"""Where a training step's time goes, and what to change."""

from collections.abc import Callable

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dino_lib.run.build import clock, product_ceiling
from dino_lib.run.config import Config
from dino_lib.run.trainer import Trainer

PHASES = ("views", "teacher forward", "student forward", "loss", "backward", "optimizer", "average")


def count_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of the products and convolutions in a step; a multiply-add is two.

    Attention is taken apart into its products: PyTorch's table lacks the CPU's fused kernel.
    """
    plain_attention = sdpa_kernel(SDPBackend.MATH)
    eager = torch.compiler.set_stance("force_eager")
    with FlopCounterMode(display=False) as counter, plain_attention, eager:
        step()
    return counter.get_total_flops()


def memory(device: torch.device) -> int:
    """Bytes: on CUDA what tensors took at most, elsewhere what the whole process takes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return psutil.Process().memory_info().rss


class Stopwatch:
    """Seconds of each phase of a Trainer's updates, by hooks on its parts."""

    def __init__(self, trainer: Trainer) -> None:
        self.device, self.seconds = trainer.device, dict.fromkeys(PHASES, 0.0)
        self.phase, self.since = None, 0.0
        self.parts, self.parts_done = trainer.config.accumulate, 0
        trained = [p for p in trainer.student.parameters() if p.requires_grad]
        self.hooks = [
            trainer.forward.register_forward_pre_hook(lambda *_: self.mark("student forward")),
            trainer.loss.register_forward_pre_hook(lambda *_: self.mark("loss")),
            trainer.loss.register_forward_hook(lambda *_: self.mark("backward")),
            torch.autograd.graph.register_multi_grad_hook(trained, self._after_backward),
            trainer.optimizer.register_step_post_hook(lambda *_: self.mark("average"))]

    def mark(self, phase: str | None) -> None:
        """From now on the time is this phase's; None stops the clock."""
        now = clock(self.device)
        if self.phase:
            self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now

    def _after_backward(self, gradients: list[Tensor]) -> None:
        self.parts_done += 1
        last = self.parts_done % self.parts == 0
        self.mark("optimizer" if last else "teacher forward")

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()


def try_update(trainer: Trainer, views: list[torch.Tensor]) -> None:
    """An update from (B, C, h, w) views as late in a run as can be: nothing is frozen there."""
    trainer.step = trainer.total_steps - 1
    trainer.train_step(views)


def seconds_of_update(trainer: Trainer, n: int, now: Callable[[], float],
                      warm_up: int = 2) -> float:
    """Of one update of a fresh Trainer, views and all: the mean over n, by the clock `now`.

    The first ones, which choose kernels, are not measured. Nothing is written.
    """
    size = trainer.config.batch_size
    indices = np.arange(size * (n + warm_up)).reshape(-1, size) % len(trainer.views)
    for i, views in enumerate(trainer.views.batches(0, indices)):
        try_update(trainer, views)
        if i + 1 == warm_up:
            start = now()
    seconds = (now() - start) / n
    if hasattr(trainer.views, "close"):
        trainer.views.close()
    return seconds


def profile(trainer: Trainer, n_steps: int = 8) -> dict:
    """Takes `n_steps` updates of a fresh Trainer, after two to warm up; writes nothing.

    Returns a dict: seconds an update by phase, flops an update, ceiling (FLOP/s) by dtype,
    bytes.
    """
    size = trainer.config.batch_size
    order = torch.randperm(len(trainer.views)).repeat(n_steps + 3)[: (n_steps + 3) * size]
    batches = iter(trainer.views.batches(0, order.view(-1, size).numpy()))
    for _ in range(2):
        try_update(trainer, next(batches))
    watch = Stopwatch(trainer)
    for _ in range(n_steps):
        watch.mark("views")
        views = next(batches)
        watch.mark("teacher forward")
        try_update(trainer, views)
        watch.mark(None)
    watch.remove()
    taken = memory(trainer.device)  # before anything is measured that training doesn't do
    dtypes = dict.fromkeys([trainer.dtype, torch.bfloat16, torch.float32])
    return {"seconds": {phase: s / n_steps for phase, s in watch.seconds.items()},
            "flops": count_flops(lambda: try_update(trainer, views)), "bytes": taken,
            "ceiling": {dtype: product_ceiling(trainer.device, dtype) for dtype in dtypes}}


def report(trainer: Trainer) -> str:
    """Profiles a Trainer and says in words where an update's time goes and what to change."""
    config, dtype, result = trainer.config, trainer.dtype, profile(trainer)
    seconds, ceiling = result["seconds"], result["ceiling"][dtype]
    total = sum(seconds.values())
    rate = result["flops"] / total
    share = {phase: s / total for phase, s in seconds.items()}
    name = str(dtype).removeprefix("torch.")
    lines = [f"{trainer.device} in {name}: {1e3 * total:.0f} ms a step of {config.batch_size} "
             f"images, {config.batch_size / total:.1f} images a second"]
    lines += [f"{phase:>16} {1e3 * seconds[phase]:9.1f} ms {s:6.1%} {'#' * round(40 * s)}"
              for phase, s in share.items()]
    lines.append(f"{result['flops'] / 1e9:.1f} GFLOP a step, {rate / 1e9:.1f} GFLOP/s: "
                 f"{rate / ceiling:.0%} of the {ceiling / 1e9:.0f} GFLOP/s that a large product "
                 f"of matrices reaches here in {name}")
    what = "tensors, at their peak" if trainer.device.type == "cuda" else "the whole process"
    lines.append(f"memory of {what}: {result['bytes'] / 2**20:.0f} MiB")
    lines += advice(config, dtype, share, rate / ceiling, result["ceiling"])
    return "\n".join(lines)


def advice(config: Config, dtype: torch.dtype, share: dict[str, float], efficiency: float,
           ceiling: dict[torch.dtype, float]) -> list[str]:
    """What to change, as sentences: from the shares of the phases and the ceilings by dtype."""
    faster = ceiling[torch.bfloat16] / ceiling[torch.float32]
    slow_views, stored = share["views"] > 0.25, config.store_size is not None
    found = [
        (slow_views and not stored, "the step waits for its views: more --num-workers, or "
         "--store-size if the images fit into memory"),
        (slow_views and stored, "the views take long: fewer --n-local, smaller --global-size and "
         "--local-size, or less blur in --blur-p"),
        (dtype == torch.float32 and faster > 1.4, f"products of matrices are {faster:.1f} times as "
         "fast in bfloat16 here: try --precision bf16"),
        (share["optimizer"] + share["average"] > 0.2, "the weights' own updates take long for so "
         "few images: a larger --batch-size, or a smaller --out-dim"),
        (share["loss"] > 0.15, "the loss takes long: a smaller --out-dim"),
        (efficiency < 0.4, "the products are small, and what lies between them takes most of the "
         "time: a larger --batch-size or a wider network would use the machine better"),
    ]
    sentences = [sentence for wrong, sentence in found if wrong]
    return sentences or ["nothing stands out: most of the time goes into products of matrices. A "
                         "smaller network, smaller or fewer views, or a faster machine make it "
                         "faster"]
