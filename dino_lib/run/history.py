"""The history of a run: what a line of history.jsonl says of the updates since the line before."""

import contextlib
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from dino_lib.run.trainer import Trainer


def read_history(folder: str | Path) -> list[dict]:
    """The lines of a run's history.jsonl; a last line that was cut short is left out.

    Raises ValueError on any other line that holds no step.
    """
    path = Path(folder).expanduser() / "history.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for number, line in enumerate(lines, 1):
        record = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if isinstance(record, dict) and "step" in record:
            records.append(record)
        elif line and number < len(lines):
            raise ValueError(f"{path}, line {number} is no line of a history: {line[:60]!r}. "
                             "Remove it")
    return records


def knn_scores(history: list[dict]) -> dict[int, float]:
    """Step -> k-NN accuracy, for the steps that were evaluated."""
    return {record["step"]: record["knn"] for record in history if "knn" in record}


def is_best(history: list[dict], step: int) -> bool:
    """Whether this step was evaluated, and better than every trained one before."""
    scores = knn_scores(history)
    before = [score for other, score in scores.items() if 0 < other < step]
    return step in scores and all(scores[step] > score for score in before)


@dataclass
class Tally:
    """What is gathered from one line of the history to the next; a checkpoint holds it too."""

    used: Tensor  # (K,) bool: the prototypes that were some view's first choice
    losses: list[Tensor] = field(default_factory=list)
    seconds: float = 0.0
    waited: float = 0.0  # of these, for views

    @classmethod
    def empty(cls, n_prototypes: int, device: torch.device) -> "Tally":
        return cls(torch.zeros(n_prototypes, dtype=torch.bool, device=device))

    def add(self, loss: Tensor, used: Tensor, finite: Tensor) -> None:
        """Of an update that was skipped nothing is counted: its loss is kept as nan."""
        self.losses.append(torch.where(finite, loss, math.nan))
        self.used |= used & finite

    def as_line(self, batch_size: int) -> dict[str, float]:
        losses = torch.stack(self.losses)
        losses = losses[losses.isfinite()]
        loss = {"loss": losses.mean().item()} if len(losses) else {}  # float16 may skip them all
        return {**loss, "prototypes_used": self.used.float().mean().item(),
                "seconds": self.seconds, "input_share": self.waited / self.seconds,
                "images_per_second": len(losses) * batch_size / self.seconds}


def said_of(features: Tensor, probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a history keeps of the teacher's features (2 B, D) and probs (2, B, K) of a part.

    The features, the rows' mean entropy (), and their mean (K,): not the rows, which would fill
    the memory that parts save.
    """
    return features, torch.special.entr(probs).sum(-1).mean(), probs.flatten(0, 1).mean(0)


def measure(trainer: "Trainer", update: dict) -> dict[str, float]:
    """What a line says of a Trainer just after an update.

    teacher_entropy and mean_entropy: see `teacher_entropies`. feature_std: the standard deviation
    of a unit feature's entries times sqrt(D), 1 where the teacher's features point everywhere and
    0 where all are the same. feature_rank and teacher_lag: see `feature_rank` and
    `relative_distance`. Between processes travel the features, and one row of the probs.
    """
    ranks = trainer.ranks
    features, rows, mean_rows = zip(*update["said"], strict=True)  # of each part, all equally large
    features, rows = ranks.gather(torch.cat(features)), torch.stack(rows).mean()
    mean_row = ranks.mean(torch.stack(mean_rows).mean(0))
    spread = F.normalize(features, dim=1).std(0).mean() * features.shape[1] ** 0.5
    values = {"teacher_entropy": ranks.mean(rows).item(),
              "mean_entropy": torch.special.entr(mean_row).sum().item(),
              "center_norm": trainer.loss.center.norm().item(), "feature_std": spread.item(),
              "feature_rank": feature_rank(features),
              "teacher_lag": relative_distance(trainer.teacher, trainer.student)}
    if update["finite"]:
        values["grad_norm"] = update["grad_norm"].item()
    return values


@torch.no_grad()
def feature_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023) of features (N, D), between 1 and min(N, D).

    It is e^(entropy of their singular values).
    """
    z = features.detach()
    z = z.cpu().double() if z.device.type == "mps" else z.double()  # MPS has no float64
    # the eigenvalues of this matrix are the squares of the singular values
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum()).sum().exp().item()


@torch.no_grad()
def relative_distance(teacher: nn.Module, student: nn.Module) -> float:
    """||teacher - student|| / ||student|| over the parameters that are trained."""
    apart, size = [], []
    for t, s in zip(teacher.parameters(), student.parameters(), strict=True):
        if s.requires_grad:
            apart.append((t - s).norm())
            size.append(s.norm())
    return (torch.stack(apart).norm() / torch.stack(size).norm()).item()
