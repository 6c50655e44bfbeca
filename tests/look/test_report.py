"""What a finished run shows, and the probe images that it is measured on."""

import dataclasses
import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnnotationBbox
from PIL import Image

from dino_lib.backbone import create_backbone
from dino_lib.cli import main
from dino_lib.data import datasets as data
from dino_lib.data.datasets import open_dataset
from dino_lib.data.shapes import Shapes
from dino_lib.look.pictures import to_image
from dino_lib.look.report import compare, in_words, neighbours, report
from dino_lib.measure.features import extract_features
from dino_lib.measure.knn import knn_predict, retrieval_map
from dino_lib.measure.probes import spread
from dino_lib.run.build import build_student, open_probes
from dino_lib.run.teacher_file import save_teacher
from dino_lib.run.train import train
from dino_lib.teachers.load import load_teacher


@pytest.fixture(autouse=True, scope="module")
def few_shapes():
    """The embedded dataset with fewer of its images: 40 to train on and 50 to test with."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "_shapes", lambda n, seed: Shapes({4000: 40, 1000: 50}[n], seed=seed))
        yield


def on_shapes(config):
    """A run on the embedded dataset, at its own size, that is evaluated on all of it."""
    options = {**config.backbone_options, "img_size": 48, "patch_size": 8}
    return dataclasses.replace(
        config,
        dataset="shapes",
        store_size=48,
        global_size=48,
        local_size=24,
        epochs=1,
        backbone_options=options,
        eval_limit=4000,
    )


@pytest.fixture
def config(tiny):
    return on_shapes(tiny)


@pytest.fixture(scope="module")
def reported(settings, tmp_path_factory):
    """The folder of a run that was reported, its history, and the numbers."""
    folder = tmp_path_factory.mktemp("reported")
    config = on_shapes(settings(folder))
    _, history = train(config)
    return folder, history, report(folder)


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are made, not drawn, which takes half of a report's time: their files are empty."""
    monkeypatch.setattr(Figure, "savefig", lambda self, path: Path(path).touch())


def command(*words):
    main(["report", *(str(word) for word in words)])


def official(folder):
    """Weights of a ViT without settings; a config.json beside them tells its heads."""
    torch.manual_seed(0)
    options = {"img_size": 48, "patch_size": 16, "embed_dim": 64, "depth": 1, "num_heads": 2}
    vit = create_backbone("vit_base_patch16_224", **options)
    torch.save(vit.model.state_dict(), folder / "official.pth")
    (folder / "config.json").write_text('{"num_attention_heads": 2}')
    return folder / "official.pth"


def picture(path):
    return np.asarray(Image.open(path).convert("RGB")).astype(float)


def test_a_report_has_the_figures_and_the_numbers(reported):
    folder, history, returned = reported
    for name, width, height in [
        ("curves.png", 1000, 500),
        ("attention.png", 1000, 300),
        ("clusters.png", 800, 400),
        ("neighbours.png", 1000, 700),
    ]:
        pixels = picture(folder / name)
        assert pixels.shape[0] > height and pixels.shape[1] > width and pixels.std() > 10, name
    numbers = json.loads((folder / "report.json").read_text())
    assert numbers == returned
    kinds = ("", "_best", "_blobs", "_others", "_contrast")
    errors = ["errors_palette", "errors_texture", "errors_outline"]
    keys = [
        "knn",
        "knn_per_class",
        "nmi",
        "map",
        "linear",
        "linear_per_class",
        *errors,
        *(f"{key}{kind}" for key in ("above_blind", "auc", "jaccard") for kind in kinds),
    ]
    scores = [f"{key}_{stage}" for key in keys for stage in ("untrained", "trained")]
    assert numbers.keys() == {
        "seconds",
        "images_seen",
        *(f"{key}_color_histogram" for key in keys[:6]),
        "nmi_chance",
        "head_untrained",
        "head_trained",
        "figures",
        *(f"{key}_{blind}" for key in errors for blind in ("color_histogram", "chance")),
        *scores,
    }
    assert all(-1 <= numbers[key] <= 1 for key in scores)
    assert numbers["figures"] == sorted(path.name for path in folder.glob("*.png"))
    assert numbers["images_seen"] == 40
    assert numbers["seconds"] == pytest.approx(sum(record.get("seconds", 0) for record in history))
    assert numbers["seconds"] > 0


@pytest.mark.usefixtures("undrawn")
def test_the_command_prints_the_figures_and_what_it_wrote(reported, tmp_path, capsys):
    folder, _, _ = reported
    (tmp_path / "older.png").touch()
    command(folder, "--out", tmp_path)
    *words, wrote = capsys.readouterr().out.splitlines()
    assert words[-11:] == in_words(json.loads((tmp_path / "report.json").read_text())).splitlines()
    names = ("attention.png", "clusters.png", "curves.png", "neighbours.png", "report.json")
    assert wrote == "wrote " + ", ".join(str(tmp_path / name) for name in names)


@pytest.mark.usefixtures("undrawn")
def test_a_dot_and_a_tilde_are_folders(unlabelled, tmp_path, monkeypatch):
    folder, numbers = unlabelled
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert report(folder, out=".") == numbers
    assert (tmp_path / "here" / "report.json").exists()
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    assert report(folder, out="~/there") == numbers
    assert (folder.parent / "there" / "curves.png").exists()
    monkeypatch.chdir(folder)
    (folder / "report.json").unlink()
    report(".")
    assert (folder / "report.json").exists()


def test_untrained_is_the_runs_own_network_at_step_0_and_trained_its_teacher(reported):
    folder, history, _ = reported
    numbers = json.loads((folder / "report.json").read_text())
    first, last = (record for record in history if "knn" in record)
    assert (first["step"], last["step"]) == (0, 5)
    for record, stage in [(first, "untrained"), (last, "trained")]:
        for key in ("knn", "knn_per_class", "jaccard", "above_blind"):
            assert numbers[f"{key}_{stage}"] == pytest.approx(record[key], abs=1e-9), (key, stage)
    assert any(first[key] != last[key] for key in ("knn", "jaccard"))


@pytest.fixture(scope="module")
def unlabelled(settings, pictures, tmp_path_factory):
    """The folder of a run on pictures without labels, and the numbers of its report."""
    root = tmp_path_factory.mktemp("unlabelled")
    (root / "photos").mkdir()
    for i in range(8):
        pictures[i][0].save(root / "photos" / f"{i}.png")
    train(dataclasses.replace(settings(root / "run"), dataset=str(root / "photos"), epochs=1))
    return root / "run", report(root / "run")


def test_a_report_of_pictures_without_labels_has_the_curves_alone(unlabelled):
    folder, numbers = unlabelled
    assert numbers.keys() == {"seconds", "images_seen", "figures", "left_out"}
    assert sorted(path.name for path in folder.glob("*.png")) == ["curves.png"]
    assert in_words(numbers).splitlines() == [
        f"8 images seen in {numbers['seconds']:.0f} seconds.",
        f"No scores: the images of {folder.parent / 'photos'} have no labels.",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_report_without_masks_says_nothing_of_objects(tiny, labelled_folder, tmp_path):
    train(dataclasses.replace(tiny, dataset=str(labelled_folder), epochs=1))
    numbers = report(tmp_path / "run")
    assert "knn_trained" in numbers and "jaccard_trained" not in numbers
    assert (tmp_path / "run" / "attention.png").exists()
    assert "Jaccard" not in in_words(numbers) and "AUC" not in in_words(numbers)


@pytest.mark.parametrize(
    ("classes", "each", "says"), [(2, 7, "too few to draw"), (25, 1, "No retrieval")]
)
def test_a_report_on_few_pictures_leaves_out_what_needs_more(
    tiny, tmp_path, classes, each, says
):
    for i in range(classes * each):
        path = tmp_path / "few" / f"{i % classes:02}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    train(dataclasses.replace(tiny, epochs=1), Shapes(16))
    numbers = report(tmp_path / "run", dataset=str(tmp_path / "few"), out=tmp_path / "out")
    written = json.loads((tmp_path / "out" / "report.json").read_text())
    assert written == numbers and 0 <= numbers["knn_trained"] <= 1
    assert says in " ".join(numbers.get("left_out", []))
    assert ("clusters.png" in numbers["figures"]) == (each == 1)  # of 25 pictures 5 are queries
    assert ("map_trained" in numbers) == (each > 1)


def test_untrained_is_untrained_also_where_a_run_started_from_weights(tiny, tmp_path):
    train(tiny, Shapes(16))
    teacher = load_teacher(tmp_path / "run")
    numbers = {}
    for weights in (None, str(tmp_path / "gone.pth")):  # they aren't even looked for
        config = dataclasses.replace(teacher.config, weights=weights)
        save_teacher(tmp_path / "x.safetensors", teacher.model, config, step=8, images_seen=64)
        found = report(tmp_path / "x.safetensors", dataset="shapes", out=tmp_path / "out")
        numbers[weights] = {key: value for key, value in found.items() if "untrained" in key}
    plain, started = numbers.values()
    assert plain == started and "knn_untrained" in plain


def test_a_runs_own_report_stays_where_other_images_are_scored(reported, labelled_folder, tmp_path):
    folder = reported[0]
    before = (folder / "report.json").read_bytes()
    with pytest.raises(ValueError, match=r"the report on shapes: say where that on .* with --out"):
        report(folder, dataset=str(labelled_folder))
    assert (folder / "report.json").read_bytes() == before


def test_a_place_that_cannot_be_written_is_found_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("dino_lib.look.report.open_probes", lambda *of, **options: 1 / 0)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        report("demo", out=tmp_path / "file" / "out")


def test_a_run_on_grey_pictures_is_reported(tiny, labelled_folder):
    config = dataclasses.replace(
        tiny, dataset=str(labelled_folder), epochs=1, mean=(0.5,), std=(0.5,)
    )
    train(config)
    numbers = report(config.output_dir)
    assert len(numbers["figures"]) == 4 and 0 <= numbers["knn_color_histogram"] <= 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are Linux's")
def test_classes_whose_names_are_no_utf8_are_drawn(tiny, pictures, tmp_path):
    for i in range(40):
        folder = tmp_path / "photos" / os.fsdecode([b"caf\xe9", b"$100$"][i % 2])
        folder.mkdir(parents=True, exist_ok=True)
        pictures[i % 32][0].save(folder / f"{i:02d}.png")
    train(dataclasses.replace(tiny, dataset=str(tmp_path / "photos"), epochs=1))
    assert len(report(tmp_path / "run")["figures"]) == 4


def test_in_words_holds_the_figures():
    text = in_words(
        {
            "images_seen": 640,
            "seconds": 41.6,
            "knn_untrained": 0.4321,
            "knn_trained": 0.6789,
            "knn_color_histogram": 0.5555,
            "errors_palette_untrained": 0.31,
            "errors_palette_trained": 0.52,
            "errors_palette_color_histogram": 0.73,
            "errors_palette_chance": 0.11,
            "nmi_untrained": 0.111,
            "nmi_trained": 0.222,
            "nmi_color_histogram": 0.151,
            "nmi_chance": 0.021,
            "map_untrained": 0.1234,
            "map_trained": 0.5678,
            "linear_untrained": 0.4567,
            "linear_trained": 0.7654,
            "above_blind_untrained": 0.11,
            "above_blind_trained": 0.92,
            "above_blind_blobs_untrained": 0.01,
            "above_blind_blobs_trained": 0.06,
            "above_blind_others_untrained": 0.02,
            "above_blind_others_trained": 0.03,
            "above_blind_contrast_trained": 0.24,
            "auc_untrained": 0.51,
            "auc_trained": 0.97,
            "auc_blobs_trained": 0.62,
            "jaccard_best_untrained": 0.333,
            "jaccard_best_trained": 0.444,
            "jaccard_blobs_trained": 0.6,
        }
    )
    text = text.replace("(above blind: any fixed map 0, the masks 1)", "")
    assert re.findall(r"\d+\.?\d*%?", text.replace("20-NN", "")) == [
        "640",
        "42",
        "43.2%",
        "67.9%",
        "55.5%",
        "31%",
        "52%",
        "73%",
        "11%",
        "0.11",
        "0.22",
        "0.15",
        "0.02",
        "12.3%",
        "56.8%",
        "45.7%",
        "76.5%",
        "0.11",
        "0.92",
        "0.06",
        "0.03",
        "0.24",
        "0.51",
        "0.97",
        "0.62",
        "0.33",
        "0.44",
        "0.60",
    ]
    assert [line.split()[0] for line in text.splitlines()] == [
        "640",
        "20-NN",
        "Of",
        "Clusters",
        "Retrieval",
        "Linear",
        "Attention",
        "The",
        "Jaccard",
    ]
    assert in_words({"knn_trained": 0.5, "knn_color_histogram": 0.25}) == (
        "20-NN accuracy: 50.0% trained, 25.0% by a colour histogram."
    )


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ([], "required: teacher"),
        (["nothing"], "no teacher 'nothing'"),
        (["demo"], "demo is no run's folder"),
        (["{official}", "--out", "{folder}"], "--dataset"),
        (["demo", "--dataset", "nowhere", "--out", "{folder}"], "nowhere"),
    ],
)
def test_the_command_says_in_a_line_what_is_missing(arguments, reason, tmp_path, capsys):
    names = {"official": official(tmp_path), "folder": tmp_path / "out"}
    with pytest.raises(SystemExit) as end:
        command(*(word.format(**names) for word in arguments))
    error = capsys.readouterr().err
    assert end.value.code == 2 and reason in error and "Traceback" not in error
    assert not arguments or error.count("\n") == 1


@pytest.mark.usefixtures("undrawn")
def test_a_shipped_teacher_is_scored_on_its_own_dataset_and_on_another(labelled_folder, tmp_path):
    numbers = report("demo", out=tmp_path / "out")
    probes, teacher = open_probes(load_teacher("demo").config), load_teacher("demo")
    assert (
        numbers["knn_trained"] == probes.evaluate(teacher)["knn"]
        and numbers["images_seen"] == 1500 * 32
    )
    gallery, queries = probes.features(teacher)
    expected = retrieval_map(gallery, probes.gallery_labels, queries, probes.query_labels)
    assert (
        numbers["map_trained"] == pytest.approx(expected)
        and numbers["map_untrained"] != numbers["map_trained"]
    )
    other = report("demo", dataset=str(labelled_folder), out=tmp_path / "other")
    assert other["knn_trained"] != numbers["knn_trained"] and "jaccard_trained" not in other
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        "attention.png",
        "clusters.png",
        "curves.png",
        "neighbours.png",
        "report.json",
    ]


@pytest.mark.usefixtures("undrawn")
def test_a_folder_called_as_a_shipped_teacher_is_mentioned_once(
    unlabelled, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    photos = unlabelled[0].parent / "photos"
    command("demo", "--dataset", photos, "--out", tmp_path / "out")
    assert capsys.readouterr().out.count("the folder here is ./demo") == 1


@pytest.mark.usefixtures("undrawn")
def test_a_teacher_without_settings_is_scored_as_its_transform_sees(labelled_folder, tmp_path):
    path = official(tmp_path)
    numbers = report(path, dataset=str(labelled_folder), out=tmp_path / "out")
    assert "knn_untrained" not in numbers and not (tmp_path / "out" / "curves.png").exists()
    assert [line.split(":")[0] for line in numbers["left_out"]] == [
        "No training curves",
        "Nothing untrained beside it",
    ]
    teacher, hits = load_teacher(path), 0
    seen = [
        [
            (extract_features(teacher, teacher.transform(image)[None])[0], label)
            for image, label in open_dataset(str(labelled_folder), "", split)
        ]
        for split in ("gallery", "test")
    ]
    gallery, labels = (
        torch.stack([x for x, _ in seen[0]]),
        torch.tensor([label for _, label in seen[0]]),
    )
    for feature, label in seen[1]:
        hits += knn_predict(gallery, labels, feature[None], k=20).item() == label
    assert numbers["knn_trained"] == pytest.approx(hits / len(seen[1]))


def test_the_nearest_of_the_gallery_stand_beside_each_query(config):
    probes, backbone = open_probes(config), build_student(config).backbone.eval()
    gallery, queries = probes.features(backbone)
    figure = neighbours(probes, (gallery, queries), n=3, k=4)
    shown = [axis.images[0].get_array() for axis in figure.axes]
    assert len(shown) == 3 * (1 + 4)
    for i, asked in enumerate(spread(len(queries), 3).tolist()):
        np.testing.assert_allclose(shown[5 * i], to_image(probes.queries[asked]), atol=1e-6)
        nearest = (gallery @ queries[asked]).argmax().item()
        np.testing.assert_allclose(shown[5 * i + 1], to_image(probes.gallery[nearest]), atol=1e-6)
        assert figure.axes[5 * i].get_ylabel() == probes.classes[probes.query_labels[asked]]


def test_report_of_no_run_says_what_could_be_loaded(tmp_path):
    with pytest.raises(FileNotFoundError, match="no teacher"):
        report(tmp_path / "nothing")


# --- comparing stages ----------------------------------------------------------


def test_compare_scores_every_stage_and_draws_it(config):
    probes = open_probes(config)
    a, b = (
        build_student(dataclasses.replace(config, seed=seed)).backbone.eval() for seed in (0, 1)
    )
    table, attention, clusters = compare(
        {"first": a, "second": b}, probes, n_points=20, n_pictures=4
    )
    assert list(table) == ["first", "second"] and table["first"] != table["second"]
    assert table["second"] == compare({"x": b}, probes, n_points=20)[0]["x"]
    assert [axis.get_title() for axis in clusters.axes] == [
        f"{name}: NMI {table[name]['nmi']:.2f}" for name in ("first", "second")
    ]
    assert sum(len(dots.get_offsets()) for dots in clusters.axes[0].collections) == 20
    assert len(attention.axes) == 3 * 4 and len(clusters.legends) == 1
    assert attention.axes[4].get_ylabel().startswith("first\nhead ")


def test_more_classes_than_colours_are_shown_as_pictures(config):
    probes, backbone = open_probes(config), build_student(config).backbone.eval()
    probes.classes = [*probes.classes, "an eleventh"]
    clusters = compare({"x": backbone}, probes, n_points=20)[2]
    assert (
        any(isinstance(artist, AnnotationBbox) for artist in clusters.axes[0].artists)
        and not clusters.legends
    )


def test_compare_shows_every_step_th_query(config):
    probes, backbone = open_probes(config), build_student(config).backbone.eval()
    attention = compare({"x": backbone}, probes, n_points=20, n_pictures=3, step=5)[1]
    for i, axis in enumerate(attention.axes[:3]):
        np.testing.assert_allclose(
            axis.images[0].get_array(), to_image(probes.queries[5 * i]), atol=1e-6
        )


def test_compare_draws_what_a_network_without_cls_token_has(config):
    options = {"backbone": "resnet18", "backbone_options": {}}
    cnn = build_student(dataclasses.replace(config, **options)).backbone.eval()
    table, attention, _ = compare({"cnn": cnn}, open_probes(config))
    assert attention.axes[10].get_ylabel() == "cnn\nsimilarity"
    assert "jaccard" not in table["cnn"] and 0 <= table["cnn"]["knn"] <= 1


def test_compare_of_networks_without_patches_has_no_maps(config, monkeypatch):
    def refuse(x):
        raise TypeError("Mixer has no grid of patches")

    probes = open_probes(config)
    bare, vit = (build_student(config).backbone.eval() for _ in range(2))
    monkeypatch.setattr(type(bare), "has_cls", property(lambda self: self is vit))
    bare.patch_tokens = refuse
    table, attention, clusters = compare({"bare": bare}, probes, n_points=20)
    assert attention is None and 0 <= table["bare"]["knn"] <= 1 and clusters.axes
    _, attention, _ = compare({"bare": bare, "vit": vit}, probes, n_points=20, n_pictures=3)
    assert len(attention.axes) == 2 * 3 and attention.axes[3].get_ylabel().startswith("vit\nhead")


# --- probes ---------------------------------------------------------------------


def test_probes_are_the_gallery_and_the_test_images_of_the_dataset(config):
    probes, gallery, test = (
        open_probes(config),
        *(open_dataset("shapes", "", split) for split in ("gallery", "test")),
    )
    assert torch.equal(probes.gallery, gallery.images) and torch.equal(
        probes.gallery_labels, gallery.labels
    )
    assert torch.equal(probes.queries, test.images) and torch.equal(
        probes.query_labels, test.labels
    )
    assert torch.equal(probes.masks, test.masks) and tuple(probes.classes) == Shapes.classes


def test_probes_keep_to_the_limit(config):
    probes = open_probes(dataclasses.replace(config, eval_limit=20))
    assert (len(probes.gallery), len(probes.queries), len(probes.masks)) == (20, 10, 10)
    gallery = open_dataset("shapes", "", "gallery")
    assert torch.equal(probes.gallery, gallery.images[spread(40, 20)])
    assert torch.equal(probes.gallery_labels, gallery.labels[spread(40, 20)])
    more = open_probes(config, limit=30)
    assert (len(more.gallery), len(more.queries)) == (30, 15)


def test_the_limit_takes_every_class_whatever_their_order():
    chosen = spread(1000, 100)
    assert (
        chosen.tolist() == sorted(set(chosen.tolist()))
        and len(chosen) == 100
        and 0 <= chosen[0] < chosen[-1] < 1000
    )
    for labels in (torch.arange(1000) % 10, torch.arange(1000) // 100):
        assert labels[chosen].bincount(minlength=10).min() >= 3
    assert torch.equal(spread(1000, 100), chosen) and spread(7, 10**9).tolist() == list(range(7))


def test_probes_have_the_evaluations_size_and_no_masks_at_another(config, tiny, labelled_folder):
    small = open_probes(dataclasses.replace(config, store_size=None, global_size=24))
    assert small.gallery.shape[1:] == (3, 24, 24) and small.masks is None
    folder = open_probes(dataclasses.replace(tiny, dataset=str(labelled_folder)))
    assert (len(folder.gallery), len(folder.queries), folder.classes) == (32, 8, ["even", "odd"])
    assert folder.gallery.shape[1:] == (3, 24, 24) and set(folder.query_labels.tolist()) == {0, 1}


@pytest.mark.usefixtures("undrawn")
def test_a_report_of_one_class_has_no_linear_probe(tiny, pictures, tmp_path):
    (tmp_path / "photos" / "train" / "cat").mkdir(parents=True)
    for i in range(10):
        pictures[i % len(pictures)][0].save(tmp_path / "photos" / "train" / "cat" / f"{i}.png")
    train(dataclasses.replace(tiny, dataset=str(tmp_path / "photos" / "train"), epochs=1))
    numbers = report(tmp_path / "run")
    assert "linear_trained" not in numbers and "Linear" not in in_words(numbers)
