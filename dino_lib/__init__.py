"""DINO, self-distillation with no labels (Caron et al. 2021): the finished code of the course.

Read the method in this order: augment, backbone, head, loss, teacher, schedules. What is listed
here can be imported from the package itself: `from dino_lib import MultiCrop`.
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "augment": ["MultiCrop"],
    "backbone": ["Backbone", "create_backbone", "backbone_of"],
    "head": ["DINOHead", "OriginalHead", "MultiCropModel"],
    "loss": ["DINOLoss", "teacher_entropies"],
    "teacher": ["make_teacher", "ema_update"],
    "schedules": ["cosine_schedule", "linear_warmup"],
    "data.batch_views": ["BatchMultiCrop"],
    "data.shapes": ["Shapes"],
    "data.datasets": ["open_dataset"],
    "measure.features": ["extract_features"],
    "measure.knn": ["knn_predict"],
    "measure.attention": ["cls_attention"],
    "measure.masks": ["mass_mask", "jaccard", "auc", "above_blind"],
    "measure.heads": ["choose_head"],
    "run.config": ["Config"],
    "run.presets": ["PRESETS"],
    "run.train": ["train", "launch"],
    "run.history": ["read_history"],
    "run.doctor": ["diagnose"],
    "teachers.load": ["load_teacher", "load_head"],
    "look.explorer": ["explore"],
    "look.video": ["attention_video"],
    "look.report": ["report"],
}
_MODULES = {name: module for module, names in _PUBLIC.items() for name in names}
__all__ = ["__version__", *_MODULES]


def __getattr__(name: str) -> Any:
    """Imports a public name's module when the name is first asked for."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
