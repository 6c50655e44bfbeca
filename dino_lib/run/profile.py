"""Where a training step's time goes, and what to change: `python -m dino_lib.run.train --preset NAME --profile`."""

import sys
import time

import torch
from torch.utils.flop_counter import FlopCounterMode

PHASES = ("views", "teacher forward", "student forward", "loss", "backward", "optimizer", "average")
aten = torch.ops.aten


def clock(device):
    """Seconds, after all that the device was told to do is done."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


def _attention_flops(q, k, products):
    return 2 * products * q[0] * q[1] * q[2] * k[2] * q[3]  # (B, heads, N, D) each


# two products forward and four back, whatever the kernel; PyTorch's own table lacks the CPU's and counts five back
_ATTENTION = {}
for _kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
    _forward = getattr(aten, f"_scaled_dot_product_{_kernel}")
    _backward = getattr(aten, f"_scaled_dot_product_{_kernel}_backward")
    _ATTENTION[_forward] = lambda q, k, *rest, out_shape=None, **options: _attention_flops(q, k, 2)
    _ATTENTION[_backward] = lambda grad, q, k, *rest, out_shape=None, **options: _attention_flops(q, k, 4)


def count_flops(step):
    """Floating-point operations of the matrix products and convolutions in `step()`; a multiply-add is two."""
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter, torch.compiler.set_stance("force_eager"):
        step()
    return counter.get_total_flops()


def product_ceiling(device, dtype):
    """FLOP/s of the largest square matrix product that is worth waiting for: what this machine can do at best."""
    n = 2048 if device.type == "cpu" else 8192
    a, seconds = torch.randn(n, n, device=device).to(dtype), []
    for _ in range(6):
        start = clock(device)
        a @ a
        seconds.append(clock(device) - start)
    return 2 * n**3 / min(seconds)


def peak_memory(device):
    """Bytes: on CUDA what tensors took at most, elsewhere the process's largest resident set; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Stopwatch:
    """Seconds of each phase of a Trainer's steps, by hooks on its parts: the loop itself knows nothing of it."""

    def __init__(self, trainer):
        self.device, self.seconds = trainer.device, dict.fromkeys(PHASES, 0.0)
        self.phase, self.since, parts_left = None, None, trainer.config.accumulate

        def backward_done(_):
            nonlocal parts_left
            parts_left -= 1
            self.mark("optimizer" if parts_left % trainer.config.accumulate == 0 else "teacher forward")

        trained = [p for p in trainer.student.parameters() if p.requires_grad]
        self.hooks = [
            trainer.forward.register_forward_pre_hook(lambda *_: self.mark("student forward")),
            trainer.loss.register_forward_pre_hook(lambda *_: self.mark("loss")),
            trainer.loss.register_forward_hook(lambda *_: self.mark("backward")),
            torch.autograd.graph.register_multi_grad_hook(trained, backward_done),
            trainer.optimizer.register_step_post_hook(lambda *_: self.mark("average"))]

    def mark(self, phase):
        """From now on the time is this phase's; None stops the clock."""
        now = clock(self.device)
        if self.phase:
            self.seconds[self.phase] += now - self.since
        self.phase, self.since = phase, now

    def remove(self):
        for hook in self.hooks:
            hook.remove()


def profile(trainer, n_steps=8):
    """Takes `n_steps` steps of a fresh Trainer's networks and batches (they move; nothing is written), after two to
    warm up. Returns a dict: seconds a step by phase, flops a step, ceiling (FLOP/s) by dtype, peak_bytes.
    """
    order = torch.randperm(len(trainer.views)).repeat(n_steps + 3)[: (n_steps + 3) * trainer.config.batch_size]
    batches = iter(trainer.views.batches(0, order.view(-1, trainer.config.batch_size).numpy()))

    def step(views):
        trainer.step = trainer.total_steps - 1  # the last layer is not frozen there
        return trainer.train_step(views)

    for _ in range(2):
        views = next(batches)
        step(views)
    watch = Stopwatch(trainer)
    for _ in range(n_steps):
        watch.mark("views")
        views = next(batches)
        watch.mark("teacher forward")
        step(views)
        watch.mark(None)
    watch.remove()
    peak = peak_memory(trainer.device)  # before anything is measured that training doesn't do
    formats = dict.fromkeys([trainer.dtype, torch.bfloat16, torch.float32])
    return {"seconds": {phase: s / n_steps for phase, s in watch.seconds.items()},
            "flops": count_flops(lambda: step(views)), "peak_bytes": peak,
            "ceiling": {dtype: product_ceiling(trainer.device, dtype) for dtype in formats}}


def report(trainer):
    """Profiles a Trainer and says in words where a step's time goes and what to change; returns the text."""
    c, dtype, result = trainer.config, trainer.dtype, profile(trainer)
    seconds, ceiling = result["seconds"], result["ceiling"][dtype]
    total, rate = sum(seconds.values()), result["flops"] / sum(seconds.values())
    name = str(dtype).removeprefix("torch.")
    lines = [f"{trainer.device} in {name}: {1e3 * total:.0f} ms a step of {c.batch_size} images, "
             f"{c.batch_size / total:.1f} images a second"]
    lines += [f"{phase:>16} {1e3 * s:9.1f} ms {s / total:6.1%} {'#' * round(40 * s / total)}"
              for phase, s in seconds.items()]
    lines += [f"{result['flops'] / 1e9:.1f} GFLOP a step, {rate / 1e9:.1f} GFLOP/s: {rate / ceiling:.0%} of the "
              f"{ceiling / 1e9:.0f} GFLOP/s that a large product of matrices reaches here in {name}"]
    if result["peak_bytes"]:
        what = "of tensors" if trainer.device.type == "cuda" else "of the whole process"
        lines += [f"peak memory {what}: {result['peak_bytes'] / 2**20:.0f} MiB"]
    return "\n".join(lines + advice(c, dtype, {phase: s / total for phase, s in seconds.items()}, rate / ceiling,
                                    result["ceiling"]))


def advice(config, dtype, share, efficiency, ceiling):
    """What to change, as sentences: from the shares of the phases, of the ceiling, and the ceilings by dtype."""
    faster = ceiling[torch.bfloat16] / ceiling[torch.float32]
    found = [
        (share["views"] > 0.25 and config.store_size is None,
         "the step waits for its views: more --num-workers, or --store-size if the images fit into memory"),
        (share["views"] > 0.25 and config.store_size is not None,
         "the views take long: fewer --n-local, smaller --global-size and --local-size, or less blur in --blur-p"),
        (dtype == torch.float32 and faster > 1.4,
         f"products of matrices are {faster:.1f} times as fast in bfloat16 here: try --precision bf16"),
        (share["optimizer"] + share["average"] > 0.2,
         "the weights' own updates take long for so few images: a larger --batch-size, or a smaller --out-dim"),
        (share["loss"] > 0.15, "the loss takes long: a smaller --out-dim"),
        (efficiency < 0.4,
         "the products are small, and what lies between them takes most of the time: a larger --batch-size or a wider "
         "network would use the machine better"),
    ]
    sentences = [sentence for wrong, sentence in found if wrong]
    return sentences or ["nothing stands out: most of the time goes into products of matrices. A smaller network, "
                         "smaller or fewer views, or a faster machine make it faster"]
