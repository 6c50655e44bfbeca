"""What wrong answers share with the right ones: the embedded classes' palette, say.

A class of the embedded dataset joins a palette, a texture and an outline, each shared
with other classes. So errors tell what a feature goes by: a colour histogram mostly
takes a class for one of the same palette.
"""

from collections.abc import Sequence

from torch import Tensor

from dino_lib.data.shapes import CLASSES
from dino_lib.measure.knn import Labels, class_ids

CUES = ("palette", "texture", "outline")


def cues_of(classes: Sequence[str] | None) -> list[tuple[str, ...]] | None:
    """Each class's cues by class id, None where they aren't the embedded dataset's."""
    if not classes or not set(classes) <= set(CLASSES):
        return None
    return [CLASSES[name] for name in classes]


def cues_of_errors(
    predicted: Labels, labels: Labels, cues: Sequence[Sequence[str]]
) -> dict[str, float]:
    """Cue -> of the wrong answers, the share whose class has that cue of the right one.

    predicted and labels (N,) are class ids, cues the classes' (palette, texture,
    outline). Nothing where every answer is right. Errors as `class_ids`.
    """
    n = len(labels)
    pairs = class_ids(predicted, n, "predicted"), class_ids(labels, n)
    wrong = [(a, b) for a, b in zip(*map(Tensor.tolist, pairs), strict=True) if a != b]
    return {
        name: sum(cues[a][i] == cues[b][i] for a, b in wrong) / len(wrong)
        for i, name in enumerate(CUES)
        if wrong
    }


def cues_by_chance(labels: Labels, cues: Sequence[Sequence[str]]) -> dict[str, float]:
    """The same where every wrong class is as likely: labels (N,) of the right ones."""
    ids = class_ids(labels, len(labels)).tolist()
    answers = [(a, b) for b in ids for a in range(len(cues)) if a != b]
    predicted, right = zip(*answers, strict=True)
    return cues_of_errors(predicted, right, cues)
