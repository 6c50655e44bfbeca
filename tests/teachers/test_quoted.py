"""What README, the cards and notebook 06 quote of the shipped teachers is what was measured.

report.json is that of the run, caltech101.json that of `dino report photos --dataset caltech101`,
horses_96.json that of `benchmarks/horses.py photos demo runs/laptop/seed0 runs/laptop/seed1
runs/laptop/seed2 --size 96`, where the last three are runs of the preset `laptop`, a third as long
as that of `photos`, as in seeds_laptop.json.
"""

import json
import re
from pathlib import Path

import pytest

from dino_lib.measure.baselines import BASELINES
from dino_lib.teachers.load import SHIPPED

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text("utf-8")
BENCHMARKS = ROOT / "benchmarks"
CARD = (SHIPPED / "photos" / "README.md").read_text("utf-8")
HORSES = json.loads((BENCHMARKS / "horses_96.json").read_text())
SEEDS = [f"runs/laptop/seed{seed}" for seed in range(3)]


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
    assert row(words.removesuffix(" accuracy"), cells(own, score, form)) in CARD


def test_random_clusters_and_means_over_the_classes_of_photographs():
    own, other = report("photos"), report("photos", "caltech101.json")
    said = " ".join(README.split())
    chance = [f"{found['nmi_chance']:.2f}" for found in (own, other)]
    assert f"Random clusters have an NMI of {chance[0]} and {chance[1]}, for 500" in said
    whose = ("trained", "untrained", "color_histogram")
    mean, blank, blind = (f"{other[f'knn_per_class_{who}']:.1%}" for who in whose)
    assert f"alike, the 20-NN is {mean} (untrained {blank}, histogram {blind})" in said
    assert f"random clusters {chance[1]})" in " ".join(CARD.split())
    assert f"over the classes {mean} ({blank}, {blind})" in " ".join(CARD.split())


def listed(values):
    """0.1, 0.2 and 0.3"""
    *first, last = [f"{value:.2f}" for value in values]
    return f"{', '.join(first)} and {last}"


def heads_of(name):
    """Above blind of the head chosen for the horses, of the best, and of the mean map."""
    mine = [one for one in HORSES if one["teacher"] == name]
    scores = mine[0]["above blind"]
    mean = next(one["above blind"][0] for one in mine if one["what"] == "the mean of its heads")
    return scores[mine[0]["chosen"]], max(scores), mean


def untrained_heads(name):
    """Of three seeds, the chosen heads' above blind and the best heads'."""
    mine = [one for one in HORSES if one["teacher"] == name]
    blank = [one for one in mine if one["what"].startswith("untrained")]
    assert len(blank) == 3
    picked = [one["above blind"][one["chosen"]] for one in blank]
    return picked, [max(one["above blind"]) for one in blank]


def test_what_notebook_06_says_of_horses():
    assert {one["size"] for one in HORSES} == {96} and {one["pictures"] for one in HORSES} == {251}
    master = (ROOT / "notebooks" / "masters" / "06_attention.py").read_text("utf-8")
    for name in ("demo", "photos"):
        chosen, best, _ = heads_of(name)
        assert f"# | `{name}` | {chosen:.2f} | {best:.2f} |" in master
        picked, most = untrained_heads(name)
        line = f"{min(picked):.2f} to {max(picked):.2f} | {min(most):.2f} to {max(most):.2f} |"
        assert f"# | `{name}` untrained, three seeds | {line}" in master
    for seed, name in enumerate(SEEDS):
        chosen, best, _ = heads_of(name)
        assert f"# | the preset `laptop`, seed {seed} | {chosen:.2f} | {best:.2f} |" in master
    mine = {one["what"]: one["above blind"] for one in HORSES if one["teacher"] == "photos"}
    for what, words in [
        ("local contrast", "local contrast"),
        ("darkness", "darkness"),
        ("red less green", "redness (red less green)"),
    ]:
        assert f"# | no network: {words} | {mine[what][0]:.2f} | |" in master
    chosen = f"more of a horse than its chosen head ({heads_of('photos')[0]:.2f}), and more"
    assert chosen in " ".join(master.replace("\n# ", " ").split())
    assert f"than local contrast ({mine['local contrast'][0]:.2f})." in master


def test_what_the_readme_and_the_card_say_of_horses():
    mine = {one["what"]: one for one in HORSES if one["teacher"] == "photos"}
    own, chosen = mine["photos"], mine["photos"]["chosen"]
    whole, *thirds = [heads_of(name) for name in ("photos", *SEEDS)]
    said = " ".join(README.split())
    for words, *rows in [("`photos`", whole), ("the preset `laptop`, seeds 0, 1, 2", *thirds)]:
        values = (", ".join(f"{one[i]:.2f}" for one in rows) for i in range(3))
        assert row(words, *values) in README
    assert row("`demo`, of drawn creatures", *(f"{one:.2f}" for one in heads_of("demo"))) in README
    spans = (f"{min(of):.2f} to {max(of):.2f}" for of in untrained_heads("photos"))
    assert row("`photos` untrained, three seeds", *spans, "") in README
    blob = mine["one blob"]
    darkness, redness = (mine[what]["above blind"][0] for what in ("darkness", "red less green"))
    assert whole[0] < min(darkness, redness) and abs(whole[2] - redness) < 0.01  # as it says
    for what, words in [
        ("one blob", "a blob in the middle"),
        *((what, what) for what in ("local contrast", "darkness", "red less green")),
    ]:
        value = f"{mine[what]['above blind'][0]:.2f}"
        assert f"| no network: {words} | {value} | | |" in README
    assert (
        f"The AUC of the chosen head of `photos` is {own['AUC'][chosen]:.2f}, the highest of its "
        f"heads {max(own['AUC']):.2f}, and a blob in the middle has {blob['AUC'][0]:.2f}."
    ) in said
    for words, values in [
        ("the head chosen without masks", [one[0] for one in (whole, *thirds)]),
        ("the best head, by the masks", [one[1] for one in (whole, *thirds)]),
        ("the mean of the heads", [one[2] for one in (whole, *thirds)]),
    ]:
        assert row(words, *(f"{value:.2f}" for value in values)) in CARD


def test_what_the_first_component_of_the_tokens_tells():
    found = {(one["teacher"], one["what"]): one for one in HORSES}

    def first(teacher, what="its tokens", measure="above blind"):
        return found[teacher, f"first component: {what}"][measure][0]

    blank = [first("photos", f"its tokens, untrained, seed {seed}") for seed in range(3)]
    span = f"{min(blank):.2f} to {max(blank):.2f}"
    own, colour = f"{first('photos'):.2f}", f"{first('photos', 'the mean colour'):.2f}"
    three = ", ".join(f"{first(name):.2f}" for name in SEEDS)
    words = "no masks: first principal component of the last patch tokens of `photos`"
    assert f"| {words} | {own} (untrained {span}) | | |" in README
    assert f"| no masks: the same of the preset, seeds 0, 1, 2 | {three} | | |" in README
    assert f"| no masks: the same of a patch's mean colour | {colour} | | |" in README
    reach = f"{first('photos', measure='AUC'):.2f}"
    border = found["photos", "unlike the border: the mean colour"]
    rival, its_auc = f"{border['above blind'][0]:.2f}", f"{border['AUC'][0]:.2f}"
    words = "no network: how unlike the picture's border a patch's mean colour is"
    assert f"| {words} | {rival} | | |" in README
    said = " ".join(README.split())
    assert f"that has {its_auc}, the component {reach} with `photos`." in said
    card = " ".join(CARD.split())
    assert f"{own} above blind, AUC {reach} (the preset's seeds: {three} and" in card
    assert f"untrained {span}, of the patches' mean colours {colour}." in card
    assert f"has {rival} and an AUC of {its_auc}:" in card
    master = (ROOT / "notebooks" / "masters" / "06_attention.py").read_text("utf-8")
    for words, value in [
        ("tokens of `photos`", own),
        ("of the preset `laptop`, seeds 0, 1, 2", three),
        ("untrained, three seeds", span),
        ("mean colours of the patches", colour),
        ("*no component*: how unlike its picture's border a patch's mean colour is", rival),
    ]:
        assert f"# | {words} | {value} |" in master
    quiz = (ROOT / "workshop" / "quizzes" / "06.md").read_text("utf-8")
    assert f"tokens has {own} above blind, its chosen head {heads_of('photos')[0]:.2f};" in quiz
    assert f"mean colour is, {rival}. What follows?" in quiz
    blind = [found["photos", what]["above blind"][0] for what in BASELINES]
    blind.append(border["above blind"][0])
    for name in ("photos", *SEEDS):  # ahead of its chosen head and of what no network made
        assert first(name) > max(heads_of(name)[0], float(colour), *blind)


def test_what_the_readme_says_of_the_component_and_texture():
    printed = (ROOT / "notebooks" / "06_attention.ipynb").read_text("utf-8")
    form = r"\b(untrained|trained) +rank correlation with local contrast (\d\.\d\d)"
    found = dict(re.findall(form, printed))
    said = f"with local contrast {found['trained']}, untrained {found['untrained']})"
    assert said in " ".join(README.split())


def test_what_a_readout_with_masks_finds():
    """What README, the card and 06 say beside the heads of `photos`."""

    def found(what, teacher="photos"):
        told = [one for one in HORSES if one["teacher"] == teacher]
        return next(
            one["above blind"][0] for one in told if one["what"] == f"readout with masks: {what}"
        )

    def three(what):
        values = [found(f"{what}, untrained, seed {seed}") for seed in range(3)]
        return f"{min(values):.2f} to {max(values):.2f}"

    own, stem = (f"{found(what):.2f}" for what in ("its tokens", "its stem"))
    thirds, third_stems = (
        listed(found(what, name) for name in SEEDS) for what in ("its tokens", "its stem")
    )
    blank, blank_stem = three("its tokens"), three("its stem")
    colour, place = (f"{found(what):.2f}" for what in ("the mean colour", "where a patch lies"))
    assert (
        f"gets {own} from the last patch tokens of `photos` (untrained {blank}), {stem} from what "
        f"its stem gives, the convolutions before the blocks (untrained {blank_stem}), and "
        f"{colour} from a patch's mean colour."
    ) in " ".join(README.split())
    card = " ".join(CARD.split())
    assert (
        f"gets {own} above blind on the rest (the preset's seeds: {thirds}), untrained {blank}."
    ) in card
    assert (
        f"it gets {stem} ({third_stems}), untrained {blank_stem}; on the mean colour of a patch "
        f"{colour}, on where the patch lies {place}"
    ) in card
    master = (ROOT / "notebooks" / "masters" / "06_attention.py").read_text("utf-8")
    for words, value in (
        ("tokens of `photos`", own),
        ("of the preset `laptop`, seeds 0, 1, 2", thirds.replace(" and ", ", ")),
        ("untrained, three seeds", blank),
        ("what the stem of `photos` gives", stem),
        ("its stem untrained, three seeds", blank_stem),
        ("mean colours of the patches", colour),
    ):
        line = next(one for one in master.splitlines() if one.startswith(f"# | {words} |"))
        assert line.endswith(f"| {value} |")


def test_three_seeds_of_the_photographs():
    found = json.loads((BENCHMARKS / "seeds_laptop.json").read_text())["rows"]
    own = report("photos")
    assert [one["seed"] for one in found] == [0, 1, 2]
    assert own["knn_trained"] > max(one["knn_trained"] for one in found)  # three times as long
    card = " ".join(CARD.split())
    lines = (SHIPPED / "photos" / "history.jsonl").read_text().splitlines()
    curve = {line["step"]: line["knn"] for line in map(json.loads, lines) if "knn" in line}
    ends = [100 * one["knn_by_update"]["5880"] for one in found]
    assert (
        f"it had {curve[5880]:.1%} after 5,880 updates, where the preset's three seeds end with "
        f"{ends[0]:.1f}, {ends[1]:.1f} and {ends[2]:.1f}%; from 7,350 ({curve[7350]:.1%}) on it "
        f"stands still ({curve[17640]:.1%} in the end;"
    ) in card
    half = [100 * one["knn_by_update"]["2940"] for one in found]
    assert f"({curve[2940]:.1%}; {half[0]:.1f}, {half[1]:.1f} and {half[2]:.1f}%)" in card
    seconds = [f"{one['seconds']:,}" for one in found]
    assert f"({seconds[0]} and {seconds[1]} s with seeds 0 and 1)" in card
    knn, linear = (
        [f"{one[key]:.1%}" for one in found] for key in ("knn_trained", "linear_trained")
    )
    said = " ".join(README.split())
    assert f"with {knn[0]}, {knn[1]} and {knn[2]} by 20-NN and a linear probe of" in said
    assert f"linear probe of {linear[0]}, {linear[1]} and {linear[2]}" in said
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
