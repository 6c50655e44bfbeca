"""What a finished run shows: `python -m dino_lib.report runs/demo` draws its figures and writes report.json."""

import json
import sys
from pathlib import Path

from dino_lib import plots
from dino_lib.attention import cls_attention, mass_mask, upsample
from dino_lib.build import build_student
from dino_lib.checkpoint import load_teacher
from dino_lib.clusters import cluster_scores, embed_2d
from dino_lib.evaluate import accuracy, color_histogram, jaccard_by_head, knn_predict, linear_probe
from dino_lib.images import InputError
from dino_lib.probes import Probes, spread
from dino_lib.train import read_history


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


def compare(stages, probes, *, n_points=500, n_pictures=10, step=1, linear=False):
    """What several networks make of the same images: the closing section of every notebook and of every run.

    stages: dict of name -> Backbone. Returns (table, attention, clusters): a dict of name -> scores (knn,
    knn_per_class, nmi, jaccard where there are masks, and with `linear` those of a linear probe where there are two
    classes or more), and two Figures. The attention shown is of the head whose mass mask fits the objects best, the
    mean of heads where there are no masks; None without CLS tokens. Its pictures are every `step`-th query: a dataset
    that is sorted by class would show one class otherwise.
    """
    chosen = spread(len(probes.queries), n_points)
    labels, table, panels, rows = probes.query_labels[chosen], {}, {}, {}
    pictures = slice(0, n_pictures * step, step)
    for name, backbone in stages.items():
        features = probes.features(backbone)
        table[name] = probes.evaluate(backbone, features)
        table[name]["nmi"] = cluster_scores(features[1][chosen], labels)["nmi"]
        if linear and len(probes.gallery_labels.unique()) > 1:
            predicted = linear_probe(features[0], probes.gallery_labels, features[1])
            table[name]["linear"], table[name]["linear_per_class"] = accuracy(predicted, probes.query_labels)
        panels[f"{name}: NMI {table[name]['nmi']:.2f}"] = embed_2d(features[1][chosen])
        if backbone.has_cls:
            head = best_head(probes.attention(backbone, 200), probes.masks)[1]
            maps = cls_attention(backbone, probes.normalize(probes.queries[pictures])).cpu()
            rows[f"{name}\n{'mean of heads' if head is None else f'head {head}'}"] = (
                maps.mean(1) if head is None else maps[:, head])
    few = probes.classes is not None and len(probes.classes) <= len(plots.PALETTE)
    clusters = plots.cluster_plot(panels, labels, probes.classes if few else None)
    masks = None if probes.masks is None else probes.masks[pictures]
    attention = plots.attention_sheet(probes.queries[pictures], rows, masks=masks) if rows else None
    return table, attention, clusters


def report(folder):
    """Compare a run's teacher with the same network before training, on all labelled images of its dataset.

    Writes attention.png, clusters.png, curves.png and report.json into the run's folder; returns the numbers. Datasets
    without labels get the curves alone.
    """
    folder = Path(folder)
    teacher, history = load_teacher(folder), read_history(folder)
    config = teacher.config
    numbers = {"seconds": sum(r.get("seconds", 0.0) for r in history), "images_seen": teacher.about["images_seen"]}
    plots.training_curves(history, config.out_dim).savefig(folder / "curves.png")
    probes = Probes.open(config, limit=10**9)
    if probes is not None:
        numbers["knn_color_histogram"], numbers["knn_per_class_color_histogram"] = histogram_knn(probes)
        stages = {"untrained": build_student(config).backbone.eval(), "trained": teacher}
        table, attention, clusters = compare(stages, probes, linear=True,
                                              step=max(1, (len(probes.queries) - 1) // 9))
        numbers |= {f"{key}_{name}": value for name, scores in table.items() for key, value in scores.items()}
        clusters.savefig(folder / "clusters.png")
        if attention is not None:
            attention.savefig(folder / "attention.png")
    (folder / "report.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def in_words(numbers):
    """The report as a few plain sentences."""
    lines = [f"{numbers['images_seen']} images seen in {numbers['seconds']:.0f} seconds."]
    if "knn_trained" in numbers:
        lines.append(f"20-NN accuracy: {numbers['knn_untrained']:.1%} untrained, {numbers['knn_trained']:.1%} trained "
                     f"(a colour histogram: {numbers['knn_color_histogram']:.1%}).")
        lines.append(f"Clusters against classes (NMI): {numbers['nmi_untrained']:.2f} untrained, "
                     f"{numbers['nmi_trained']:.2f} trained.")
    if "linear_trained" in numbers:
        lines.append(f"Linear probe: {numbers['linear_untrained']:.1%} untrained, "
                     f"{numbers['linear_trained']:.1%} trained.")
    if "jaccard_trained" in numbers:
        lines.append(f"Attention against object masks (Jaccard, best head): {numbers['jaccard_untrained']:.2f} "
                     f"untrained, {numbers['jaccard_trained']:.2f} trained.")
    return "\n".join(lines)


def main(argv=None):
    """The command line; one line and exit status 1 on a folder that holds no finished run."""
    words = sys.argv[1:] if argv is None else argv
    if len(words) != 1:
        sys.exit("usage: python -m dino_lib.report RUN_FOLDER")
    try:
        print(in_words(report(words[0])))
    except (ValueError, OSError, MemoryError, InputError) as error:
        sys.exit(f"error: {error}")
    written = [*sorted(Path(words[0]).glob("*.png")), Path(words[0], "report.json")]
    print("wrote " + ", ".join(map(str, written)))


if __name__ == "__main__":
    main()
