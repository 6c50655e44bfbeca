"""What a teacher is worth: `dino report runs/demo` draws a run's figures and writes report.json.

    dino report photos --data-root data --out runs/photos-again
    dino report timm:vit_small_patch16_224.dino --dataset caltech101 --out runs/dino
"""

import dataclasses
import json
from pathlib import Path

from dino_lib.backbone import backbone_of
from dino_lib.look import plots
from dino_lib.measure.attention import cls_attention, mass_mask, upsample
from dino_lib.measure.clusters import cluster_scores, embed_2d
from dino_lib.measure.evaluate import (
    accuracy,
    color_histogram,
    jaccard_by_head,
    knn_predict,
    linear_probe,
    nearest,
    retrieval_map,
)
from dino_lib.measure.probes import Probes, spread
from dino_lib.run.build import build_student
from dino_lib.run.history import read_history
from dino_lib.run.presets import PRESETS
from dino_lib.teachers.load import find_teacher, load_teacher


def histogram_knn(probes):
    """(overall, per class) 20-NN accuracy of a colour histogram: what any learned feature has to beat."""
    gallery, queries = color_histogram(probes.gallery), color_histogram(probes.queries)
    predicted = knn_predict(gallery, probes.gallery_labels, queries, k=min(20, len(gallery)))
    return accuracy(predicted, probes.query_labels)


def best_head(maps, masks):
    """(N, heads, h, w) maps -> (N, h, w) of the head whose mass masks fit best on average, and its number.

    Without masks: the mean over heads, and None.
    """
    if masks is None:
        return maps.mean(1), None
    head = jaccard_by_head(upsample(mass_mask(maps), masks.shape[-2:]), masks[: len(maps)]).argmax().item()
    return maps[:, head], head


def compare(stages, probes, *, n_points=500, n_pictures=10, step=1, thorough=False):
    """What several networks make of the same images: the closing section of every notebook and of every run.

    stages: dict of name -> Backbone. Returns (table, attention, clusters): a dict of name -> scores (knn,
    knn_per_class, nmi, jaccard where there are masks, and if `thorough` the mAP of retrieval and, where there are two
    classes or more, a linear probe's), and two Figures. The attention shown is of the head whose mass mask fits the
    objects best, the mean of heads where there are no masks; None without CLS tokens. Its pictures are every `step`-th
    query: a dataset that is sorted by class would show one class otherwise. In the map of the features the classes
    have colours, or small pictures stand in it where they are more than the colours, or have no names.
    """
    chosen = spread(len(probes.queries), n_points)
    labels, table, panels, rows = probes.query_labels[chosen], {}, {}, {}
    pictures = slice(0, n_pictures * step, step)
    for name, backbone in stages.items():
        features = probes.features(backbone)
        table[name] = probes.evaluate(backbone, features)
        table[name]["nmi"] = cluster_scores(features[1][chosen], labels)["nmi"]
        if thorough:
            table[name]["map"] = retrieval_map(features[0], probes.gallery_labels, features[1], probes.query_labels)
        if thorough and len(probes.gallery_labels.unique()) > 1:
            predicted = linear_probe(features[0], probes.gallery_labels, features[1])
            table[name]["linear"], table[name]["linear_per_class"] = accuracy(predicted, probes.query_labels)
        panels[f"{name}: NMI {table[name]['nmi']:.2f}"] = embed_2d(features[1][chosen])
        if backbone_of(backbone).has_cls:
            head = best_head(probes.attention(backbone, 200), probes.masks)[1]
            maps = cls_attention(backbone, probes.normalize(probes.queries[pictures])).cpu()
            rows[f"{name}\n{'mean of heads' if head is None else f'head {head}'}"] = (
                maps.mean(1) if head is None else maps[:, head])
    few = probes.classes is not None and len(probes.classes) <= len(plots.PALETTE)
    clusters = (plots.cluster_plot(panels, labels, probes.classes) if few else
                plots.thumbnail_plot(panels, probes.queries[chosen]))
    masks = None if probes.masks is None else probes.masks[pictures]
    attention = plots.attention_sheet(probes.queries[pictures], rows, masks=masks) if rows else None
    return table, attention, clusters


def neighbours(backbone, probes, n=8, k=8):
    """A sheet of n queries, drawn once and for all, and the k images of the gallery nearest to each; a Figure."""
    gallery, queries = probes.features(backbone)
    asked = spread(len(queries), n)
    _, found = nearest(gallery, queries[asked], min(k, len(gallery)))
    same = probes.gallery_labels[found] == probes.query_labels[asked][:, None]
    titles = [str(probes.classes[label]) if probes.classes else "" for label in probes.query_labels[asked].tolist()]
    return plots.neighbour_sheet(probes.queries[asked], probes.gallery[found], same, titles)


def report(name, *, dataset=None, data_root=None, out=None, device="cpu"):
    """Score and draw a teacher and, where its settings are known, the same network before training.

    name: what `load_teacher` takes. dataset, data_root: whose labelled images, all of them; without them those that
    the teacher was trained on (a teacher of others, an official .pth or timm's, needs `dataset`). Writes curves.png (of
    a run's history), attention.png, clusters.png, neighbours.png and report.json to the folder `out`, without it the
    run's own; returns the numbers. Datasets without labels get the curves alone.
    """
    run = find_teacher(name)[1]
    teacher = load_teacher(name, device)
    out = Path(out or (name if Path(name).is_dir() else ""))
    if out == Path():
        raise ValueError(f"{name} is no run's folder to write to: say where, with --out")
    if teacher.config is None and dataset is None:
        raise ValueError(f"nothing tells what {name} was trained on: name images with labels, with --dataset")
    out.mkdir(parents=True, exist_ok=True)
    config, numbers = teacher.config or _as_it_sees(teacher), {}
    changed = {key: value for key, value in [("dataset", dataset), ("data_root", data_root)] if value is not None}
    if run:
        history = read_history(run)
        numbers = {"seconds": sum(r.get("seconds", 0.0) for r in history), "images_seen": teacher.about["images_seen"]}
        plots.training_curves(history, config.out_dim).savefig(out / "curves.png")
    probes = Probes.open(dataclasses.replace(config, **changed), limit=10**9)
    if probes is not None:
        numbers["knn_color_histogram"], numbers["knn_per_class_color_histogram"] = histogram_knn(probes)
        stages = {"untrained": build_student(config).backbone.eval().to(device)} if teacher.config else {}
        table, attention, clusters = compare({**stages, "trained": teacher}, probes, thorough=True,
                                              step=max(1, (len(probes.queries) - 1) // 9))
        numbers |= {f"{key}_{name}": value for name, scores in table.items() for key, value in scores.items()}
        clusters.savefig(out / "clusters.png")
        neighbours(teacher, probes).savefig(out / "neighbours.png")
        if attention is not None:
            attention.savefig(out / "attention.png")
    (out / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def _as_it_sees(teacher):
    """Settings of the images of a teacher that has none: its transform's size, mean and deviation."""
    resize, *_, normalize = teacher.transform.transforms
    return dataclasses.replace(PRESETS["laptop"], global_size=resize.size[0], store_size=None,
                               mean=tuple(normalize.mean), std=tuple(normalize.std))


def in_words(numbers):
    """The report as a few plain sentences."""
    pairs = [("20-NN accuracy", "knn", ".1%"), ("Clusters against classes (NMI)", "nmi", ".2f"),
             ("Retrieval (mean average precision)", "map", ".1%"), ("Linear probe", "linear", ".1%"),
             ("Attention against object masks (Jaccard, best head)", "jaccard", ".2f")]
    lines = []
    if "seconds" in numbers:
        lines.append(f"{numbers['images_seen']} images seen in {numbers['seconds']:.0f} seconds.")
    for title, key, form in pairs:
        found = [f"{numbers[f'{key}_{stage}']:{form}} {stage}" for stage in ("untrained", "trained")
                 if f"{key}_{stage}" in numbers]
        if found:
            histogram = f" (a colour histogram: {numbers['knn_color_histogram']:.1%})" if key == "knn" else ""
            lines.append(f"{title}: {', '.join(found)}{histogram}.")
    return "\n".join(lines)
