"""The loss: each student view is to predict what the teacher says of another view of the image."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn


class DINOLoss(nn.Module):
    """Cross-entropy between views, with a centred and sharpened teacher (equations 1, 3 and 4).

    Teacher: q_i = softmax((t_i - c) / teacher_temp). Student: p_v = softmax(s_v / student_temp).
    The loss is the mean over the pairs (teacher view i in {0, 1}, student view v != i) of the batch
    mean of -sum_k q_i[k] log p_v[k]: 2 (V - 1) pairs for V views.

    The buffer `center` (out_dim,) is an exponential moving average of the teacher's rows. It starts
    at 0, is saved with the state dict, and moves after the loss of the same step is taken.
    """

    def __init__(self, out_dim: int, *, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__()
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp} must be positive")
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"center_momentum={center_momentum} must lie in [0, 1]")
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(out_dim, dtype=torch.float32))

    def forward(
        self, student: Tensor, teacher: Tensor, teacher_temp: float, *, update_center: bool = True
    ) -> Tensor:
        """student (V, B, K) and teacher (2, B, K), logits -> scalar float32.

        The teacher's views are the student's first two; row b of every view comes from image b. In
        train mode the center moves after the loss is taken; with `update_center=False` it does not
        (accumulated batches call `update_center` once an update).
        """
        self._check(student, teacher)
        q = self.teacher_probs(teacher, teacher_temp)  # (2, B, K), no gradient
        terms = []
        for v, logits in enumerate(student):
            log_p = F.log_softmax(logits.float() / self.student_temp, dim=-1)  # (B, K)
            for i in range(2):
                if i != v:  # a view does not predict itself
                    terms.append(-(q[i] * log_p).sum(-1).mean())  # equation 1
        loss = torch.stack(terms).mean()
        if self.training and update_center:
            self.update_center(teacher)
        return loss

    def _check(self, student, teacher):
        k = len(self.center)
        expected = f"expected (V >= 2, B, {k}) and (2, B, {k})"
        if not (torch.is_tensor(student) and torch.is_tensor(teacher)):
            kinds = f"student {type(student).__name__} and teacher {type(teacher).__name__}"
            raise ValueError(f"{kinds}: {expected}")
        right = student.ndim == 3 and len(student) >= 2 and student.shape[2] == k
        if not right or teacher.shape != (2, *student.shape[1:]):
            shapes = f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)}"
            raise ValueError(f"{shapes} do not fit: {expected} with the same B")

    @torch.no_grad()
    def teacher_probs(self, teacher: Tensor, teacher_temp: float) -> Tensor:
        """softmax((t - c) / teacher_temp) in float32, same shape as `teacher`; has no gradient."""
        if not teacher_temp > 0:
            raise ValueError(f"teacher_temp={teacher_temp} must be positive")
        return F.softmax((teacher.float() - self.center) / teacher_temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_rows: Tensor) -> None:
        """c <- m c + (1 - m) mean of the rows (..., K), over leading dimensions and all ranks."""
        k = len(self.center)
        if teacher_rows.shape[-1] != k or not teacher_rows.numel():
            shape = tuple(teacher_rows.shape)
            expected = f"expected (..., {k}), one row at least"
            raise ValueError(f"teacher_rows {shape} do not fit the center: {expected}")
        rows = teacher_rows.float().reshape(-1, k)
        count = rows.new_tensor([len(rows)])  # summed up too, for ranks may be uneven
        total = torch.cat([rows.sum(0), count])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        self.center.lerp_(total[:-1] / total[-1], 1 - self.center_momentum)


@torch.no_grad()
def teacher_entropies(probs: Tensor) -> tuple[float, float]:
    """Two entropies in nats that tell a healthy teacher from a collapsed one; probs (2, B, K).

    Returns (mean entropy of the rows, entropy of the batch's mean row). Near (0, 0): one prototype
    for everything. Near (ln K, ln K): uniform. Healthy: the first well below the second.
    """
    rows = torch.special.entr(probs).sum(-1).mean()
    mean = torch.special.entr(probs.flatten(0, 1).mean(0)).sum()
    return rows.item(), mean.item()
