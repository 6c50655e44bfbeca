"""The loss: every student view is to predict what the teacher says of another view of the same image."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable


class _PairsOfViews(torch.autograd.Function):
    """student (V, B, K) logits, teacher's q (2, B, K) -> each row's terms, (V, B): sum of -q_i . log p_v over i != v.

    No loop over the pairs: -q_i . log softmax(s_v) = logsumexp(s_v) - q_i . s_v, because q_i sums to one; so a view
    needs one logsumexp and the sum of the teacher's views that it is paired with. Its gradient by s_v is the number of
    these times softmax(s_v), less that sum. Autograd would keep several copies of the logits, the largest tensors of a
    step where K is large; here one view at a time is taken to float32, and the gradient is the only copy.
    """

    @staticmethod
    def forward(ctx, student, q, student_temp):
        targets = torch.stack([q[1], q[0], q.sum(0)])  # of view 0, of view 1, of each further view
        log_sums, rows = [], []
        for v, logits in enumerate(student):
            s = logits.to(q.dtype) / student_temp  # (B, K)
            log_sums.append(s.logsumexp(-1))
            rows.append((1 if v < 2 else 2) * log_sums[-1] - s.mul_(targets[min(v, 2)]).sum(-1))
        ctx.save_for_backward(student, targets, torch.stack(log_sums))
        ctx.student_temp = student_temp
        return torch.stack(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_rows):
        student, targets, log_sums = ctx.saved_tensors
        gradient = torch.empty_like(student)
        for v, logits in enumerate(student):
            p = (logits.to(targets.dtype) / ctx.student_temp).sub_(log_sums[v, :, None]).exp_()  # softmax, (B, K)
            p.mul_(1 if v < 2 else 2).sub_(targets[min(v, 2)]).mul_(grad_rows[v, :, None] / ctx.student_temp)
            gradient[v] = p
        return gradient, None, None


class DINOLoss(nn.Module):
    """Cross-entropy between views, with a centred and sharpened teacher (equations 1, 3 and 4).

    Teacher: q_i = softmax((t_i - c) / teacher_temp), student: p_v = softmax(s_v / student_temp). The loss is
    the mean over the pairs (teacher view i in {0, 1}, student view v != i) of the batch mean of
    -sum_k q_i[k] log p_v[k]: 2 (V - 1) pairs for V views.

    The buffer `center` (out_dim,) is an exponential moving average of the teacher's rows; it starts at 0,
    is saved with the state dict, and moves after the loss of the same step is taken.
    """

    def __init__(self, out_dim, *, student_temp=0.1, center_momentum=0.9):
        super().__init__()
        if not student_temp > 0:
            raise ValueError(f"student_temp={student_temp} must be positive")
        if not 0 <= center_momentum <= 1:
            raise ValueError(f"center_momentum={center_momentum} must lie in [0, 1]")
        self.student_temp, self.center_momentum = student_temp, center_momentum
        self.register_buffer("center", torch.zeros(out_dim))

    def forward(self, student, teacher, teacher_temp, *, update_center=True):
        """student (V, B, K) logits, teacher (2, B, K) logits of the views 0 and 1 -> scalar float32.

        Row b of every view must come from image b. In train mode the center moves after the loss is taken;
        with `update_center=False` it does not (accumulated batches call `update_center` once an update).
        """
        n_views, k = len(student), len(self.center)
        if not (torch.is_tensor(student) and torch.is_tensor(teacher)):
            raise ValueError(f"student {type(student).__name__} and teacher {type(teacher).__name__}: expected tensors "
                             f"(V >= 2, B, {k}) and (2, B, {k})")
        if student.ndim != 3 or n_views < 2 or student.shape[2] != k or teacher.shape != (2, *student.shape[1:]):
            raise ValueError(
                f"student {tuple(student.shape)} and teacher {tuple(teacher.shape)} do not fit: expected "
                f"(V >= 2, B, {k}) and (2, B, {k}) with the same B")
        q = self.teacher_probs(teacher, teacher_temp)
        rows = _PairsOfViews.apply(student, q, self.student_temp)  # (V, B)
        loss = rows.mean(1).sum() / (2 * (n_views - 1))
        if self.training and update_center:
            self.update_center(teacher)
        return loss

    @torch.no_grad()
    def teacher_probs(self, teacher, teacher_temp):
        """softmax((t - c) / teacher_temp) in float32, same shape as `teacher`; carries no gradient."""
        if not teacher_temp > 0:
            raise ValueError(f"teacher_temp={teacher_temp} must be positive")
        return F.softmax((teacher.float() - self.center) / teacher_temp, dim=-1)

    @torch.no_grad()
    def update_center(self, teacher_rows):
        """c <- m c + (1 - m) mean of the rows, over all leading dimensions and all ranks; (..., K)."""
        if teacher_rows.shape[-1] != len(self.center) or not teacher_rows.numel():
            raise ValueError(f"teacher_rows {tuple(teacher_rows.shape)} do not fit the center: expected (..., "
                             f"{len(self.center)}), one row at least")
        rows = teacher_rows.float().reshape(-1, len(self.center))
        total = torch.cat([rows.sum(0), rows.new_tensor([len(rows)])])  # the count too: ranks may be uneven
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
        self.center.lerp_(total[:-1] / total[-1], 1 - self.center_momentum)


@torch.no_grad()
def teacher_entropies(probs):
    """Two entropies in nats that tell a healthy teacher from a collapsed one; probs (2, B, K).

    Returns (mean entropy of the rows, entropy of the batch's mean row). Near (0, 0): one prototype for
    everything. Near (ln K, ln K): uniform. Healthy: the first well below the second.
    """
    rows = torch.special.entr(probs).sum(-1).mean()
    mean = torch.special.entr(probs.flatten(0, 1).mean(0)).sum()
    return rows.item(), mean.item()
