"""The quizzes of the workshop: each has its form; the answers that can be computed are right."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from test_workshop import TEXTS, masters, named

import dino_lib
from dino_lib import (
    PRESETS,
    BatchMultiCrop,
    DINOHead,
    DINOLoss,
    MultiCropModel,
    Shapes,
    above_blind,
    cosine_schedule,
    create_backbone,
    knn_predict,
    load_teacher,
    mass_mask,
    read_history,
)
from dino_lib.course import collapse_runs, momentum
from dino_lib.data.batch_views import crop_boxes, crop_matrix
from dino_lib.run.advise import epochs_in, fit_images, momentum_of, store_bytes
from dino_lib.run.config import Config
from dino_lib.run.history import feature_rank
from dino_lib.run.survey import Survey
from dino_lib.schedules import half_life
from dino_lib.teachers.load import SHIPPED

QUIZZES = [name for name in TEXTS if re.fullmatch(r"quizzes/\w\d\.md", name)]


def questions(name):
    """The questions of a quiz: (text, {letter: choice}, right letter, explanation)."""
    found = []
    for part in re.split(r"^\*\*(?=\d+\. )", TEXTS[name], flags=re.M)[1:]:
        choices = dict(re.findall(r"^- ([a-d])\) (.+)$", part, re.M))
        folded = part.partition("<details><summary>Answer</summary>")[2]
        answer = re.search(r"^\n\n\*\*(\w)\.\*\* (.+?)\n\n</details>", folded, re.S)
        found.append((part.split("**")[0], choices, *answer.groups()))
    return found


def test_there_is_a_quiz_for_each_notebook():
    assert [name[8:-3] for name in QUIZZES] == list(masters())


@pytest.mark.parametrize("name", QUIZZES)
def test_a_quiz_has_its_form(name):
    quiz = questions(name)
    assert 6 <= len(quiz) <= 8
    assert f"\n{len(quiz)} questions, " in TEXTS[name]
    assert len({right for *_, right, _ in quiz}) > 1, "the right answer is always the same letter"
    for place, (text, choices, right, why) in enumerate(quiz, 1):
        assert text.startswith(f"{place}. ") and len(choices) >= 3 and right in choices
        assert len(why.split()) >= 12 and named(why)[0][0] == name[8:-3], f"{name}: {text}"


def colours_found(**changes):
    torch.manual_seed(0)
    a, b = BatchMultiCrop(48, 24, n_local=0, **changes)(Shapes(200, seed=9).images)
    nearest = torch.cdist(a.mean((2, 3)), b.mean((2, 3))).argmin(1)
    return f"{(nearest == torch.arange(200)).float().mean():.0%}"


def no_pixel_in_common():
    torch.manual_seed(0)
    u = torch.rand(2, 1000, 22)
    one, two = (crop_boxes(part[:, :20], part[:, 20:], (96, 96), (0.02, 0.1)) for part in u)
    ends = torch.minimum(one[:, :2] + one[:, 2:], two[:, :2] + two[:, 2:])
    return f"{((ends - torch.maximum(one[:, :2], two[:, :2])) <= 0).any(1).float().mean():.0%}"


def tokens():
    vit = load_teacher("demo").model.model
    return str(vit.forward_features(torch.zeros(1, 3, 48, 48)).shape[1])


def share_of_the_match():
    torch.manual_seed(0)
    z, w = torch.randn(1, 32), torch.randn(256, 32)
    cosines = (F.normalize(z) @ F.normalize(w).T)[0]
    cosines[0] = 0.6
    return f"{(cosines / 0.1).softmax(0)[0]:.2f}"


def passes():
    """How often a backbone runs for two large and four small views."""
    backbone = create_backbone("vit_tiny_patch16_224", img_size=48, patch_size=6, embed_dim=32,
                               depth=1, num_heads=2)
    runs = []
    backbone.register_forward_hook(lambda *of: runs.append(of))
    model = MultiCropModel(backbone, DINOHead(32, 16, hidden_dim=8, bottleneck_dim=4))
    model([torch.rand(1, 3, 48, 48)] * 2 + [torch.rand(1, 3, 24, 24)] * 4)
    return f"{len(runs)} times"


def loss_of(student, teacher):
    """DINOLoss for these logits, the same for each view, at temperature 1."""
    s, t = (torch.tensor(of).expand(n, 1, len(of)) for of, n in ((student, 4), (teacher, 2)))
    return DINOLoss(len(student), student_temp=1.0)(s, t, 1.0).item()


def student_at(setting):
    runs = [run for run in momentum.measured()["runs"] if run["momentum"] == setting]
    return f"{np.mean([run['lines'][-1]['student'] for run in runs]):.2f}"


def lowest_ill_loss():
    path = Path(dino_lib.__file__).parent / "course" / "measured" / "ill_runs.json"
    runs = json.loads(path.read_text())["runs"]
    ends = {case: np.mean([lines[-1]["loss"] for lines in of]) for case, of in runs.items()}
    ends.pop("as it should be")
    return {"no centering": "without centering"}.get(min(ends, key=ends.get), "another")


def lowest_loss_of_demo():
    lines = [line for line in read_history(SHIPPED / "demo") if "loss" in line]
    return f"about update {min(lines, key=lambda line: line['loss'])['step']}"


def bf16_teacher():
    t, s = torch.tensor(1.0, dtype=torch.bfloat16), torch.tensor(1.25, dtype=torch.bfloat16)
    for _ in range(200):
        t.lerp_(s, 1 - 0.996)
    return f"{t.item():.3f}"


def kept_entries():
    mask = mass_mask(torch.tensor([[[0.05, 0.40, 0.10, 0.30, 0.15]]]), 0.6)
    return "numbers " + " and ".join(str(i) for i in mask.flatten().nonzero()[:, 0].tolist())


def blind_score():
    objects = torch.eye(9).view(9, 3, 3).bool()
    middle = torch.tensor([[0.0, 1, 0], [1, 5, 1], [0, 1, 0]]).expand(9, 1, 3, 3)
    return f"{abs(above_blind(middle, objects).item()):.0f}"


def winner():
    gallery = F.normalize(torch.tensor([[3.0, 1], [2, 2], [1, 3], [0, 1]]), dim=-1)
    query = F.normalize(torch.tensor([[1.0, 0.2]]), dim=-1)
    return f"class {knn_predict(gallery, torch.tensor([0, 1, 1, 1]), query, k=3).item()}"


def column_sum():
    logits = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
    return f"{collapse_runs.sinkhorn(logits, 0.5, 50).sum(0).mean():.0f}"


def rank_of(singular):
    return f"{feature_rank(torch.diag(torch.tensor(singular))):.2f}"


def runs_of_lab(name, key):
    return [one["scores"][key] for one in collapse_runs.read_measured()["runs"][name].values()]


def one_low_temperature():
    ends = runs_of_lab("one low temperature", "of_one_end")
    return "uniform" if min(ends) > 0.9 * math.log(128) else "not uniform"


def row_of(n_in, n_out):
    return crop_matrix(torch.tensor([0.0]), torch.tensor([float(n_in)]), n_in, n_out)[0]


def overshoot():
    edge = row_of(6, 12) @ torch.tensor([0.0, 0, 0, 1, 1, 1])
    return "below 0, some above 1" if edge.min() < 0 and edge.max() > 1 else "between"


def in_demo(images):
    """A survey of coloured pictures, and the settings of `demo` that are made for it."""
    survey = Survey(images, 100, 3, (0.5,) * 3, (0.2,) * 3, 0.0, 0)
    return survey, fit_images(PRESETS["demo"], survey)[0]


def store():
    return f"{store_bytes(Config(store_size=96), in_demo(50_000)[0]) / 2**30:.1f} GiB"


def rank_correlation():
    losses, knn = [0.2, 0.5, 0.9, 7], [30, 40, 35, 90]
    assert round(float(np.corrcoef(losses, knn)[0, 1]), 2) == 0.99  # the wrong answer a
    return f"{spearmanr(losses, knn)[0]:.1f}"


def best_sign():
    runs = collapse_runs.read_measured()["runs"]
    most = [math.log(collapse_runs.VARIANTS[name].out_dim) for name in runs for _ in runs[name]]
    scores = [one["scores"] for of in runs.values() for one in of.values()]
    signs = [[s["loss_end"] / m for s, m in zip(scores, most, strict=True)],
             [s["rank"] for s in scores],
             [(s["of_mean_end"] - s["of_one_end"]) / m for s, m in zip(scores, most, strict=True)]]
    knn = [s["knn"] for s in scores]
    return f"{max(abs(spearmanr(sign, knn)[0]) for sign in signs):.2f}"


def decayed():
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight], lr=0.1, weight_decay=0.1).step()
    return f"{weight.item():.2f}"


NINE_TO_ONE = [math.log(0.9), math.log(0.1)]
NO_COLOUR = dict(color_jitter=(0, 0, 0, 0), gray_p=0, blur_p=(0, 0, 0), solarize_p=0,
                 mean=(0, 0, 0), std=(1, 1, 1))
COMPUTED = {  # (quiz, question) -> what stands in the right choice, and in no other
    ("01", 1): lambda: f"{round(math.sqrt(0.25 * 48 * 48))} pixels",
    ("01", 2): lambda: f"{2 * (224 // 16) ** 2 + 8 * (96 // 16) ** 2}",
    ("01", 3): lambda: f"{sum(i != v for i in range(2) for v in range(8))}",
    ("01", 6): lambda: colours_found(**NO_COLOUR),
    ("01", 7): no_pixel_in_common,
    ("02", 1): tokens,
    ("02", 2): lambda: f"{F.normalize(torch.tensor([3.0, 4]), dim=0)[0]:.1f}",
    ("02", 5): share_of_the_match,
    ("02", 6): passes,
    ("03", 1): lambda: f"{loss_of([0.0] * 1024, [k % 7.0 for k in range(1024)]):.2f}",
    ("03", 2): lambda: f"{loss_of(NINE_TO_ONE, NINE_TO_ONE):.3f}",
    ("03", 3): lambda: f"{math.exp(8.3178):,.0f}",
    ("03", 6): lambda: f"{math.exp(2.08):.0f}",
    ("04", 1): lambda: f"{half_life(0.9):.1f}",
    ("04", 2): lambda: f"{0.996 ** 400:.0%}",
    ("04", 5): lambda: student_at("0"),
    ("04", 6): lambda: student_at("1"),
    ("04", 7): lambda: f"{cosine_schedule(1.0, 0.0, 4)[-1]:.2f}",
    ("05", 1): lambda: f"{4000 // 64 * 13}",
    ("05", 2): lambda: f"{cosine_schedule(0.996, 1.0, 125).prod():.0%}",
    ("05", 4): lowest_ill_loss,
    ("05", 5): lowest_loss_of_demo,
    ("05", 7): lambda: f"{torch.tensor(1e-8).half().item():.0f}",
    ("05", 8): bf16_teacher,
    ("06", 2): kept_entries,
    ("06", 4): blind_score,
    ("06", 5): winner,
    ("07", 1): lambda: f"{math.log(4):.2f}",
    ("07", 3): lambda: rank_of([8.0, 1, 1, 1]),
    ("07", 4): one_low_temperature,
    ("07", 7): lambda: f"{(4 - 2) / np.std([1, 2, 3], ddof=1):.0f}, and no",
    ("07", 8): column_sum,
    ("08", 1): store,
    ("08", 2): lambda: f"{epochs_in(20 * 60, 0.5, 1000, 64):.0f}",
    ("08", 3): lambda: f"{momentum_of(0.02 * 5000):.4f}",
    ("08", 4): lambda: f"{in_demo(2000)[1].out_dim}",
    ("08", 5): rank_correlation,
    ("08", 6): best_sign,
    ("08", 7): decayed,
    ("A1", 1): lambda: str(tuple(row_of(4, 2).shape)),
    ("A1", 2): lambda: f"\N{MINUS SIGN}{-(-0.5 * 1.5**3 + 2.5 * 1.5**2 - 4 * 1.5 + 2):.4f}",
    ("A1", 3): overshoot,
    ("A1", 4): lambda: f"{int((row_of(30, 48)[24].abs() > 1e-6).sum())}",
}


@pytest.mark.parametrize("place", COMPUTED, ids=lambda place: f"{place[0]}-{place[1]}")
def test_an_answer_that_can_be_computed_is_right(place):
    _, choices, right, _ = questions(f"quizzes/{place[0]}.md")[place[1] - 1]
    value = COMPUTED[place]()
    whole = re.compile(rf"(?<![\d.,]){re.escape(value)}(?![\d%]|[.,]\d)")
    fits = [letter for letter, choice in choices.items() if whole.search(choice)]
    assert fits == [right], f"computed {value}: it stands in {fits}, the key says {right}"


def test_the_primer_s_three_checks_are_right():
    first, second, third = TEXTS["primer.md"].split("<details>")[1:]
    teacher = torch.zeros(2, 8, 1024)
    mean = teacher.mean(dim=(0, 1))
    assert str(tuple(mean.shape)) in first and (teacher - mean).shape == teacher.shape
    assert tokens() in second and str((24 // 6) ** 2 + 1) in second
    logits, half = torch.tensor([0.2, 0.0]), torch.tensor([0.5, 0.5])
    shares = [logits.softmax(0)[0], (logits / 0.1).softmax(0)[0], torch.special.entr(half).sum()]
    assert all(f"{share:.2f}" in third for share in shares)
