"""What README, the cards and notebook 06 quote of the shipped teachers is what was measured.

report.json is that of the run, caltech101.json that of `dino report photos --dataset caltech101`,
horses_96.json that of `benchmarks/horses.py photos demo runs/laptop/seed0 runs/laptop/seed1 --size
96`, where seed0 and seed1 are two more runs of `photos`' recipe, as in seeds_laptop.json.
"""

import json
from pathlib import Path

import pytest

from dino_lib.teachers.load import SHIPPED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BENCHMARKS = ROOT / "benchmarks"


def report(name, file="report.json"):
    return json.loads((SHIPPED / name / file).read_text())


def cells(found, score, form):
    """`score` of a report as a table has it: untrained, histogram if there is one, trained."""
    keys = [f"{score}_{stage}" for stage in ("untrained", "color_histogram", "trained")]
    return " | ".join(f"{found[key]:{form}}" if key in found else "" for key in keys)


def row(words, *of):
    """A line of a table; an empty cell has one space."""
    return f"| {words} | {' | '.join(of)} |".replace("|  |", "| |")


def test_the_demo_in_the_readme():
    found = report("demo")
    for words, score, form in [
        ("20-NN accuracy", "knn", ".1%"),
        ("clusters against classes (NMI)", "nmi", ".2f"),
        ("linear probe", "linear", ".1%"),
        ("attention above blind, head chosen without masks", "above_blind", ".2f"),
        ("AUC of that head", "auc", ".2f"),
    ]:
        [line] = [line for line in README.splitlines() if line.startswith(f"| {words} |")][:1]
        said = [cell.strip() for cell in line.split("|")[2:-1]]
        assert said[0] == f"{found[f'{score}_untrained']:{form}}", words
        assert said[2] == f"{found[f'{score}_trained']:{form}}", words
        for blind in ("blobs", "contrast"):
            if f"{score}_{blind}_trained" in found:
                assert f"{found[f'{score}_{blind}_trained']:{form}}" in said[1], words
    for score, form, last in [("knn", ".1%", " |"), ("nmi", ".2f", ","), ("linear", ".1%", " |")]:
        histogram = f"| {found[f'{score}_color_histogram']:{form}} (colour histogram){last}"
        assert histogram in README
    assert f"{found['nmi_chance']:.2f} (random clusters) |" in README
    said = " ".join(README.split())
    assert (
        f"of its errors {found['errors_palette_trained']:.0%} take a class for the other one of "
        f"its palette (untrained {found['errors_palette_untrained']:.0%}, the colour histogram "
        f"{found['errors_palette_color_histogram']:.0%}, by chance "
        f"{found['errors_palette_chance']:.0%}), and {found['errors_texture_trained']:.0%} for"
    ) in said
    assert found["head_untrained"] == found["head_trained"]  # what the figure's caption says
    assert (
        f"Blobs in the middle get {found['above_blind_blobs_trained']:.2f}, local contrast "
        f"{found['above_blind_contrast_trained']:.2f} and this head untrained, the best one there, "
        f"{found['above_blind_best_untrained']:.2f}."
    ) in said


@pytest.mark.parametrize(
    ("words", "score", "form"),
    [
        ("20-NN accuracy", "knn", ".1%"),
        ("linear probe", "linear", ".1%"),
        ("retrieval in the gallery (mean average precision)", "map", ".1%"),
        ("clusters against classes (NMI)", "nmi", ".2f"),
    ],
)
def test_the_photographs_in_the_readme_and_on_the_card(words, score, form):
    own, other = report("photos"), report("photos", "caltech101.json")
    assert row(words, cells(own, score, form), cells(other, score, form)) in README
    card = (SHIPPED / "photos" / "README.md").read_text("utf-8")
    assert row(words.removesuffix(" accuracy"), cells(own, score, form)) in card


def test_random_clusters_and_means_over_the_classes_of_photographs():
    own, other = report("photos"), report("photos", "caltech101.json")
    said = " ".join(README.split())
    chance = [f"{found['nmi_chance']:.2f}" for found in (own, other)]
    assert f"Random clusters have an NMI of {chance[0]} and {chance[1]}, for 500" in said
    whose = ("trained", "untrained", "color_histogram")
    mean, blank, blind = (f"{other[f'knn_per_class_{who}']:.1%}" for who in whose)
    assert f"over the classes is {mean} (untrained {blank}, histogram {blind})" in said
    assert f"random clusters {chance[1]})" in " ".join(
        (SHIPPED / "photos" / "README.md").read_text("utf-8").split()
    )


def test_what_notebook_06_and_the_readme_say_of_horses():
    rows = json.loads((BENCHMARKS / "horses_96.json").read_text())
    assert {one["size"] for one in rows} == {96} and {one["pictures"] for one in rows} == {251}
    master = (ROOT / "notebooks" / "masters" / "06_attention.py").read_text("utf-8")
    for name in ("demo", "photos"):
        mine = [one for one in rows if one["teacher"] == name]
        scores = mine[0]["above blind"]
        chosen, best = scores[mine[0]["chosen"]], max(scores)
        assert f"# | `{name}` | {chosen:.2f} | {best:.2f} |" in master
        blank = [one for one in mine if one["what"].startswith("untrained")]
        picked = [one["above blind"][one["chosen"]] for one in blank]
        most = [max(one["above blind"]) for one in blank]
        line = f"{min(picked):.2f} to {max(picked):.2f} | {min(most):.2f} to {max(most):.2f} |"
        assert f"# | the same network untrained, three seeds | {line}" in master
    mine = {one["what"]: one["above blind"] for one in rows if one["teacher"] == "photos"}
    for what, words in [
        ("local contrast", "local contrast, no network"),
        ("darkness", "darkness, no network"),
        ("red less green", "redness (red less green), no network"),
    ]:
        assert f"# | {words} | {mine[what][0]:.2f} | |" in master
        assert f"{mine[what][0]:.2f} ({what})" in " ".join(README.split())
    assert f"get {mine['one blob'][0]:.2f} (a blob)" in " ".join(README.split())
    own, first, second = (
        (one["above blind"][one["chosen"]], max(one["above blind"]))
        for name in ("photos", "runs/laptop/seed0", "runs/laptop/seed1")
        for one in rows
        if one["what"] == name
    )
    for seed, (chosen, most) in enumerate([first, second]):
        assert f"# | the same recipe, seed {seed} | {chosen:.2f} | {most:.2f} |" in master
    said = " ".join(README.split())
    assert (
        f"the best head of `photos` gets {own[1]:.2f} above blind, and those of seeds 0 and 1 "
        f"{first[1]:.2f} and {second[1]:.2f}; the one chosen without masks {own[0]:.2f}, "
        f"{first[0]:.2f} and {second[0]:.2f}; the mean"
    ) in said
    means = [one["above blind"][0] for one in rows if one["what"] == "the mean of its heads"]
    assert f"the mean of the eight {means[0]:.2f}, {means[2]:.2f} and {means[3]:.2f}." in said
    aucs = rows[0]["AUC"]  # of photos
    assert rows[0]["what"] == "photos"
    blob = next(one["AUC"][0] for one in rows if one["what"] == "one blob")
    assert (
        f"The AUC of the chosen head of `photos` is {aucs[rows[0]['chosen']]:.2f}, that of its "
        f"best one {max(aucs):.2f}, and a blob in the middle has {blob:.2f}."
    ) in said
    card = (SHIPPED / "photos" / "README.md").read_text("utf-8")
    for words, values in [
        ("the head chosen without masks", [own[0], first[0], second[0]]),
        ("the best head, by the masks", [own[1], first[1], second[1]]),
        ("the mean of the heads", [means[0], *means[2:]]),
    ]:
        assert row(words, *(f"{value:.2f}" for value in values)) in card


def test_what_a_readout_with_masks_finds():
    """What README, the card and 06 say beside the heads of `photos`."""
    rows = json.loads((BENCHMARKS / "horses_96.json").read_text())

    def found(what, teacher="photos"):
        told = [one for one in rows if one["teacher"] == teacher]
        return next(
            one["above blind"][0] for one in told if one["what"] == f"readout with masks: {what}"
        )

    def three(what):
        values = [found(f"{what}, untrained, seed {seed}") for seed in range(3)]
        return f"{min(values):.2f} to {max(values):.2f}"

    sisters = ("photos", "runs/laptop/seed0", "runs/laptop/seed1")
    own, stem = (
        [f"{found(what, teacher):.2f}" for teacher in sisters]
        for what in ("its tokens", "its stem")
    )
    blank, blank_stem = three("its tokens"), three("its stem")
    colour, place = (f"{found(what):.2f}" for what in ("the mean colour", "where a patch lies"))
    said = " ".join(README.split())
    assert (
        f"gets {own[0]} above blind on the rest (untrained {blank}), one of what the stem gives "
        f"{stem[0]} (untrained {blank_stem}), and one of a patch's mean colour {colour}."
    ) in said
    card = " ".join((SHIPPED / "photos" / "README.md").read_text("utf-8").split())
    assert (
        f"gets {own[0]} above blind on the rest (seeds 0 and 1: {own[1]} and {own[2]}), untrained "
        f"{blank}."
    ) in card
    assert (
        f"it gets {stem[0]} ({stem[1]} and {stem[2]}), untrained {blank_stem}; on the mean colour "
        f"of a patch {colour}, on where the patch lies {place}"
    ) in card
    master = (ROOT / "notebooks" / "masters" / "06_attention.py").read_text("utf-8")
    for words, value in (
        ("a linear readout of the patch tokens of `photos`", own[0]),
        ("of the tokens untrained, three seeds", blank),
        ("of what its stem gives", stem[0]),
        ("of the stem untrained, three seeds", blank_stem),
        ("of the mean colour of a patch", colour),
    ):
        assert f": {words} | {value} | |" in master


def test_three_seeds_of_the_photographs():
    found = json.loads((BENCHMARKS / "seeds_laptop.json").read_text())["rows"]
    own = report("photos")
    assert [one["seed"] for one in found] == [0, 1, 2]
    assert found[2]["knn_trained"] == round(own["knn_trained"], 4)
    knn, linear = (
        [f"{one[key]:.1%}" for one in found] for key in ("knn_trained", "linear_trained")
    )
    said = " ".join(README.split())
    assert f"with {knn[0]}, {knn[1]} and {knn[2]} by 20-NN and a linear probe of" in said
    assert f"linear probe of {linear[0]}, {linear[1]} and {linear[2]}" in said
    card = (SHIPPED / "photos" / "README.md").read_text("utf-8")
    assert f"20-NN {', '.join(knn)}; linear probe {', '.join(linear)};" in card
    master = (ROOT / "notebooks" / "masters" / "08_your_data.py").read_text("utf-8")
    blind = found[2]["knn_color_histogram"]
    assert f"`photos`: {own['knn_trained']:.0%}".replace("%", " %") in master
    assert f"the histogram {blind:.0%}".replace("%", " %") in master
    other = json.loads((BENCHMARKS / "seeds_laptop_caltech101.json").read_text())["rows"]
    assert [one["seed"] for one in other] == [0, 1, 2]
    knn = [f"{one['knn_trained']:.1%}" for one in other]
    assert f"on Caltech-101 with {knn[0]}, {knn[1]} and {knn[2]} by 20-NN" in said
    for one in found:
        assert one["knn_trained"] > 0.7 and one["knn_trained"] > one["knn_color_histogram"] + 0.2
