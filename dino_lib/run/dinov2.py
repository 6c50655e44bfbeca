"""Two parts that DINOv2 puts beside DINO's own (Oquab et al. 2023, arXiv 2304.07193, section 4).

The paper's recipe, `dino_lib.loss`, does without them; a small network on few photographs learns
faster with them.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dino_lib.head import MultiCropModel
from dino_lib.loss import DINOLoss
from dino_lib.run.processes import Ranks

ITERATIONS = 3  # as in SwAV and DINOv2


class SinkhornLoss(DINOLoss):
    """DINOLoss whose targets are balanced over the batch at hand, by Sinkhorn-Knopp, in place of a
    running center (Caron et al. 2020, arXiv 2006.09882, section 3.1).

    The center is still kept, for the count of prototypes in use. It has no part in the loss.
    """

    @torch.no_grad()
    def teacher_probs(self, teacher: Tensor, teacher_temp: float) -> Tensor:
        """`sinkhorn` of the logits (..., K) of all rows and processes, in the same shape."""
        if not teacher_temp > 0:
            raise ValueError(f"teacher_temp={teacher_temp} must be positive")
        return sinkhorn(teacher.flatten(0, -2).float() / teacher_temp).view(teacher.shape)


def sinkhorn(logits: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """(N, K) -> (N, K): rows of sum 1 in which each prototype has about the same share, N / K.

    It divides the columns of e^logits by their sums, then the rows, again and again. The columns
    are those of all processes.
    """
    log_q = logits
    for _ in range(iterations):
        log_q = log_q - Ranks().gather(log_q.logsumexp(0)[None]).logsumexp(0)
        log_q = log_q - log_q.logsumexp(1, keepdim=True)
    return log_q.exp()


class KoLeo:
    """Pushes each picture's feature away from the one nearest to it in the batch (Sablayrolles et
    al. 2019, arXiv 1806.03198): called after a forward pass, it gives `weight` times

        -1/n sum_i log min_j ||z_i - z_j||

    of the student's features z, of unit length: what went into its head. Of each global view by
    itself, then their mean; of several processes each looks at its own pictures, as in DINOv2.
    """

    def __init__(self, student: MultiCropModel, weight: float):
        self.weight = weight
        if weight:
            student.head.register_forward_pre_hook(self._see)

    def _see(self, head, inputs):
        self.features = inputs[0]  # (V * B, D), view by view

    def __call__(self, batch_size: int) -> Tensor | float:
        """A scalar with a gradient, of the first two views of B pictures; 0 without a weight."""
        if not self.weight:
            return 0.0
        first, second = self.features[: 2 * batch_size].chunk(2)
        return self.weight * (koleo(first) + koleo(second)) / 2


def koleo(features: Tensor) -> Tensor:
    """(B, D) -> scalar: minus the mean log distance to the nearest of the others, unit length."""
    z = F.normalize(features.float(), dim=-1)
    with torch.no_grad():
        nearest = (z @ z.T).fill_diagonal_(-1).argmax(1)
    return -(z - z[nearest]).norm(dim=1).clamp(min=1e-8).log().mean()
