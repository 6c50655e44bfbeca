"""A run's history as it lies in its folder, and the versions that it was made with."""

import contextlib
import importlib.metadata
import json
import os
import platform
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

PACKAGES = ("dino-lib", "torch", "torchvision", "timm", "numpy", "pillow", "scikit-learn")


def read_history(folder: str | os.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's history.jsonl; a last line that was cut short is left out.

    Raises ValueError on any other line that holds no step.
    """
    path = Path(folder).expanduser() / "history.jsonl"
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    records = []
    for i, line in enumerate(lines, 1):
        record = None
        with contextlib.suppress(ValueError):
            record = json.loads(line)
        if isinstance(record, dict) and "step" in record:
            records.append(record)
        elif i < len(lines):
            raise ValueError(f"{path}, line {i} is no line of a history: {line[:60]!r}. Remove it")
    return records


def versions() -> dict[str, str]:
    """Python's and the packages' versions, by name."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@torch.no_grad()
def feature_rank(features: Tensor) -> float:
    """RankMe (Garrido et al. 2023) of features (N, D), 1 to min(N, D).

    It is e to the entropy of their singular values.
    """
    z = features.detach().cpu().double()
    gram = z @ z.T if len(z) < z.shape[1] else z.T @ z  # the smaller; eigenvalues are the squares
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    return torch.special.entr(values / values.sum()).sum().exp().item()
