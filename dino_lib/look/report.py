"""What a teacher is worth: figures and report.json of a run, or of any other teacher."""

import dataclasses
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dino_lib.look.curves import training_curves
from dino_lib.look.features import cluster_plot, neighbour_sheet, thumbnail_plot
from dino_lib.look.maps import attention_sheet
from dino_lib.look.style import PALETTE, caption
from dino_lib.measure.knn import nearest
from dino_lib.measure.probes import Probes, spread
from dino_lib.measure.stages import Findings, chance_scores, examine, histogram_scores
from dino_lib.run.build import build_student, open_probes
from dino_lib.run.config import OWN, Config
from dino_lib.run.history import read_history
from dino_lib.teachers.load import SHIPPED, find_teacher, load_teacher

N_POINTS = 500  # queries in the plane, and clustered


def compare(stages: dict, probes: Probes, *, n_points: int = N_POINTS, n_pictures: int = 10,
            step: int = 1, thorough: bool = False,
            features: dict | None = None) -> tuple[dict, Figure | None, Figure | None]:
    """What several networks make of the same images: (table, attention, clusters).

    stages: name -> teacher or Backbone. features: name -> (gallery (N, D), queries (M, D))
    of `Probes.features`, if at hand. table: name -> scores, see `measure.stages.examine`.
    Then two figures: every `step`-th query with the map of the head that is chosen
    without masks (of a network without CLS token the pooled similarity; None where no
    network has patches), and the features in the plane, where the classes have colours,
    or small pictures stand if there are more classes than colours, or no names (None of
    fewer than 4 queries).
    """
    chosen = spread(len(probes.queries), n_points)
    pictures = torch.arange(len(probes.queries))[::step][:n_pictures]
    features = features or {}
    found = {name: examine(stage, probes, chosen, pictures, thorough, features.get(name))
             for name, stage in stages.items()}
    table = {name: findings.scores for name, findings in found.items()}
    return table, _attention(found, probes, pictures), _clusters(found, probes, chosen)


def _attention(found: dict[str, Findings], probes: Probes,
               pictures: torch.Tensor) -> Figure | None:
    rows = {f"{name}\n{findings.label}": findings.maps
            for name, findings in found.items() if findings.maps is not None}
    if not rows:
        return None
    masks = None if probes.masks is None else probes.masks[pictures]
    return attention_sheet(probes.queries[pictures], rows, masks=masks)


def _clusters(found: dict[str, Findings], probes: Probes,
              chosen: torch.Tensor) -> Figure | None:
    if any(findings.points is None for findings in found.values()):
        return None
    panels = {f"{name}: NMI {findings.scores['nmi']:.2f}": findings.points
              for name, findings in found.items()}
    if probes.classes and len(probes.classes) <= len(PALETTE):
        names = [caption(name) for name in probes.classes]
        return cluster_plot(panels, probes.query_labels[chosen], names)
    return thumbnail_plot(panels, probes.queries[chosen])


def neighbours(probes: Probes, features: tuple[Tensor, Tensor], n: int = 8, k: int = 8) -> Figure:
    """n queries, the same every time, and the k images of the gallery nearest to each.

    features: of the gallery (N, D) and of the queries (M, D), see `Probes.features`.
    """
    gallery, queries = features
    asked = spread(len(queries), n)
    _, found = nearest(gallery, queries[asked], min(k, len(gallery)))
    labels = probes.query_labels[asked]
    same = probes.gallery_labels[found] == labels[:, None]
    titles = [caption(probes.classes[label]) for label in labels] if probes.classes else None
    return neighbour_sheet(probes.queries[asked], probes.gallery[found], same, titles)


def report(name: str | Path, *, dataset: str | None = None, data_root: str | None = None,
           out: str | Path | None = None, device: str = "cpu") -> dict:
    """Score and draw a teacher and, if its settings are known, its network with random weights.

    name: what `load_teacher` takes. dataset, data_root: whose labelled images, all of
    them; without them those that the teacher was trained on (a teacher of others, an
    official .pth or timm's, and one whose images were an argument of train need it).
    Writes report.json, and of curves.png (a run's history), attention.png, clusters.png
    and neighbours.png what can be drawn, to the folder `out`, without it the run's own
    (not of other images than the run's, which would overwrite its report). Returns the
    numbers; "figures" names those that were drawn, and "left_out" says in sentences what
    could not be. Raises FileNotFoundError, ValueError, InputError.
    """
    teacher = load_teacher(name, device)
    given, out = out, folder_of_report(name, out)
    own = teacher.config and teacher.config.dataset
    if own in (None, OWN) and dataset is None:
        raise ValueError(f"nothing tells what {name} was trained on: name images with "
                         "labels, with --dataset")
    if given is None and own != OWN and dataset not in (None, own):
        raise ValueError(f"{out} is for the report on {own}: say where that on {dataset} goes, "
                         "with --out")
    out.mkdir(parents=True, exist_ok=True)  # not after minutes of work
    seen = teacher.transform
    config = teacher.config or Config(global_size=seen.size, mean=seen.mean, std=seen.std)
    numbers = {}
    figures = {}
    left_out = []
    run = find_teacher(name)[1]
    if run:
        history = read_history(run)
        numbers["seconds"] = sum(record.get("seconds", 0.0) for record in history)
        numbers["images_seen"] = teacher.about["images_seen"]
        figures["curves.png"] = training_curves(history, config.out_dim)
    else:
        left_out.append(f"No training curves: {name} comes without a history.")
    data = dataclasses.replace(config, dataset=dataset or config.dataset,
                               data_root=data_root or config.data_root)
    probes = open_probes(data, limit=10**9)
    if probes is None:
        left_out.append(f"No scores: the images of {data.dataset} have no labels.")
    else:
        stages = {"trained": teacher}
        if teacher.config:  # untrained also where the run started from weights
            blank = dataclasses.replace(config, pretrained=False, weights=None)
            stages = {"untrained": build_student(blank).backbone.eval().to(device), **stages}
        else:
            left_out.append(f"Nothing untrained beside it: {name} comes without settings.")
        _score_and_draw(stages, probes, numbers, figures, left_out)
    numbers["figures"] = sorted(figures)
    if left_out:
        numbers["left_out"] = left_out
    for file, figure in figures.items():
        figure.savefig(out / file)
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def folder_of_report(name: str | Path, out: str | Path | None = None) -> Path:
    """The folder that a report is written to; ValueError where there is none."""
    if out is not None:
        return Path(out).expanduser()
    run = find_teacher(name)[1]
    if run is None or run.is_relative_to(SHIPPED):
        raise ValueError(f"{name} is no run's folder to write to: say where, with --out")
    return run


def in_words(numbers: dict) -> str:
    """The report as a few plain sentences."""
    lines = []
    if "seconds" in numbers:
        seconds = f"{numbers['seconds']:.0f} seconds"
        lines.append(f"{numbers['images_seen']} images seen in {seconds}.")
    for key, (title, form) in TITLES.items():
        found = [f"{numbers[name]:{form}} {whose}"
                 for name, whose in _beside(key).items() if name in numbers]
        if found:
            lines.append(f"{title}: {', '.join(found)}.")
    return "\n".join(lines + numbers.get("left_out", []))


def _beside(key: str) -> dict[str, str]:
    """What stands in one line of the report: the number's name -> whose it is."""
    of_maps = key.removesuffix("_best")
    return {
        f"{key}_untrained": "untrained",
        f"{key}_trained": "trained",
        f"{key}_color_histogram": "by a colour histogram",
        f"{key}_chance": "by chance",
        f"{of_maps}_blobs_trained": "by blind blobs in the middle",
        f"{of_maps}_others_trained": "against other pictures' objects",
        f"{of_maps}_contrast_trained": "by local contrast",
    }


TITLES = {
    "knn": ("20-NN accuracy", ".1%"),
    "errors_palette": ("Of its errors, those that take a class for one of the same palette",
                       ".0%"),
    "errors_texture": ("Of the same texture", ".0%"),
    "errors_outline": ("Of the same outline", ".0%"),
    "nmi": ("Clusters against classes (NMI)", ".2f"),
    "map": ("Retrieval (mean average precision)", ".1%"),
    "linear": ("Linear probe", ".1%"),
    "above_blind": ("Attention against objects, head chosen without masks "
                    "(above blind: any fixed map 0, the masks 1)", ".2f"),
    "auc": ("The same head's AUC", ".2f"),
    "jaccard_best": ("Jaccard of each picture's best head, as in the paper", ".2f"),
}


def _score_and_draw(stages: dict, probes: Probes, numbers: dict, figures: dict,
                    left_out: list[str]) -> None:
    """Adds to all three."""
    step = max(1, (len(probes.queries) - 1) // 9)  # the last picture is of the last class
    features = {name: probes.features(stage) for name, stage in stages.items()}
    table, attention, clusters = compare(stages, probes, step=step, thorough=True,
                                         features=features)
    chosen = spread(len(probes.queries), N_POINTS)
    table |= {"color_histogram": histogram_scores(probes, chosen),
              "chance": chance_scores(probes, chosen)}
    for stage, scores in table.items():
        numbers |= {f"{key}_{stage}": value for key, value in scores.items()}
    if "map_trained" not in numbers:
        left_out.append("No retrieval: the gallery holds no class of the queries.")
    if clusters is None:
        left_out.append(f"No clusters: {len(probes.queries)} queries are too few to draw.")
    else:
        figures["clusters.png"] = clusters
    figures["neighbours.png"] = neighbours(probes, features["trained"])
    if attention is None:
        left_out.append("No maps: this network gives no grid of patches.")
    else:
        figures["attention.png"] = attention
