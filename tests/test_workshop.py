"""The workshop: its minutes add up, and every section, piece, picture and file it names exists."""

import json
import re
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
WORKSHOP = ROOT / "workshop"
sys.path.insert(0, str(WORKSHOP))
from minutes import masters, read_sections, render  # noqa: E402
from walk import LAST, PIECES, as_student  # noqa: E402

TEXTS = {path.relative_to(WORKSHOP).as_posix(): path.read_text(encoding="utf-8")
         for path in sorted(WORKSHOP.rglob("*.md"))}
PLANS = {"half_day.md": 1, "day.md": 1, "two_days.md": 2}  # -> days
SECTIONS = {number: read_sections(path) for number, path in masters().items()}
LINK = re.compile(r"\[([^\]]*)\]\(([^)]+)\)")
NAMED = re.compile(r"(\w\d) · (.+)")


def links(text):
    return [(" ".join(label.split()), target) for label, target in LINK.findall(text)]


def named(text):
    """The (notebook, heading) pairs that a text names in its links."""
    return [NAMED.fullmatch(label).groups() for label, _ in links(text) if NAMED.fullmatch(label)]


def headings(number):
    return [heading for section in SECTIONS[number] for heading in section.headings]


def pieces(number):
    """name -> (marked minutes, the headings of its section)"""
    return {name: (minutes, section.headings) for section in SECTIONS[number]
            for name, minutes in section.pieces.items()}


def rows(text):
    """The rows of a plan: (clock in minutes, minutes, what, where, names of pieces)."""
    found = re.findall(r"^\| (\d\d):(\d\d) \| (\d+) \| (.*?) \| (.*?) ?\| (.*?) ?\|$", text, re.M)
    return [(60 * int(h) + int(m), int(length), what, where, re.findall(r"`(\w+)`", write))
            for h, m, length, what, where, write in found]


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_resolves_and_every_section_exists(name):
    for label, target in links(TEXTS[name]):
        if not target.startswith("http"):
            assert (WORKSHOP / name).parent.joinpath(target).exists(), f"{name}: {target}"
        elif "github.com" in target:
            kind = r"https://github\.com/([\w-]+/[\w-]+)/(?:issues|pull)/(\d+)"
            assert label == " #".join(re.fullmatch(kind, target).groups()), f"{name}: {label}"
        if found := NAMED.fullmatch(label):
            number, heading = found.groups()
            assert heading in headings(number), f"{name}: {number} has no section {heading!r} now"
            assert Path(target).name.startswith(number), f"{name}: {label} leads to {target}"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_s_minutes_add_up(name):
    text, plan = TEXTS[name], rows(TEXTS[name])
    assert len(plan) == len(re.findall(r"^\| \d\d:", text, re.M)), "a row isn't read"
    said = re.search(r"Total: (\d+) minutes, (\d+) of them breaks", text)
    total, breaks = map(int, said.groups())
    assert sum(row[1] for row in plan) == total
    assert sum(row[1] for row in plan if re.match(r"(Break|Lunch)\.", row[2])) == breaks
    starts = [row for row in plan if row[0] == 9 * 60]
    assert len(starts) == PLANS[name]
    for one, after in pairwise(plan):
        assert after[0] == one[0] + one[1] or after in starts, f"{name}: the clock at {after[2]!r}"


@pytest.mark.parametrize("name", PLANS)
def test_a_plan_leaves_time_for_its_pieces(name):
    """Half again the marks, and three minutes to tell each section; the pieces exist there."""
    written = []
    for _, length, what, where, names in rows(TEXTS[name]):
        places, marked = named(where), 0
        for piece in names:
            homes = [pieces(n)[piece] for n, heading in places
                     if piece in pieces(n) and heading in pieces(n)[piece][1]]
            assert homes, f"{name}: no section of {what!r} has a piece {piece}"
            marked += homes[0][0]
            written.append(homes[0][0])
        if names:
            assert length >= 1.5 * marked + 3 * len(places), f"{name}: {what!r} is too short"
    said = re.search(r"students write:\*\* (\d+) pieces, marked with\s(\d+) minutes", TEXTS[name])
    assert [len(written), sum(written)] == [int(x) for x in said.groups()]


def test_two_days_go_through_every_notebook_and_the_others_send_the_last_one_home():
    told = {number for number, _ in named(TEXTS["two_days.md"])}
    assert told == {number for number in masters() if number[0] == "0"}
    for name in ("half_day.md", "day.md"):
        last = rows(TEXTS[name])[-1]
        assert "(../notebooks/08_your_data.ipynb)" in last[2], f"{name}: {last[2]}"


def test_the_table_of_files_says_what_the_plans_say():
    text, words = TEXTS["README.md"], ["eight", "nine", "ten"]
    said = dict(re.findall(r"^\| \[([\w.]+)\]\(.*?\) \|.*?\| (.*) \|$", text, re.M))
    for name, days in PLANS.items():
        plan = rows(TEXTS[name])
        minutes, pieces = sum(row[1] for row in plan) // days, sum(len(row[4]) for row in plan)
        assert f"{minutes} minutes, {pieces} pieces" in said[name], f"README.md: {name}"
    quizzes = [name for name in TEXTS if re.fullmatch(r"quizzes/\w\d\.md", name)]
    assert said["quizzes"].split()[0] == words[len(quizzes) - 8]


@pytest.mark.parametrize("name", ["half_day.md", "day.md"])
def test_the_board_has_the_numbers_of_its_tasks(name):
    board = re.findall(r"^\| (\d\d) \| (.*Your turn.*?) \| (.*) \|$", TEXTS[name], re.M)
    on_board = []
    for number, write, _ in board:
        master = masters()[number].read_text(encoding="utf-8")
        for turn, piece in re.findall(r"\*Your turn (\d+)\*, `(\w+)`", write):
            after = master[master.index(f"**Your turn {turn} ·"):]
            assert re.search(r"^(?:def|class) (\w+)", after, re.M)[1] == piece, f"{number}: {piece}"
            on_board.append(piece)
    assert on_board == [piece for row in rows(TEXTS[name]) for piece in row[4]]


def test_the_walk_fills_the_pieces_of_the_plan_and_leaves_the_others():
    stubs = [cell.source for number, heading in LAST.items()
             for cell in as_student(masters()[number].stem, heading).cells
             if "stub" in cell.metadata.get("tags", [])]
    names = [re.search(r"^(?:def|class) (\w+)", stub, re.M)[1] for stub in stubs]
    filled = [name for name, stub in zip(names, stubs, strict=True) if "    ...\n" not in stub]
    assert filled == PIECES and len(names) > len(filled)
    with pytest.raises(ValueError, match="no section"):
        as_student(masters()["01"].stem, "No such heading")


def test_minutes_are_those_of_the_masters():
    assert TEXTS["minutes.md"] == render(), "run `python workshop/minutes.py`"


def test_every_picture_has_its_line():
    told = set(named(TEXTS["pictures.md"]))
    for number, path in masters().items():
        notebook = json.loads((ROOT / f"notebooks/teaching/{path.stem}.ipynb").read_text())
        heading, shown = None, set()
        for cell in notebook["cells"]:
            found = re.findall(r"^##+ +(?:\d+\.? )?(.+)$", "".join(cell["source"]), re.M)
            heading = found[-1].strip() if found and cell["cell_type"] == "markdown" else heading
            if any(kind.startswith("image/") for output in cell.get("outputs", [])
                   for kind in output.get("data", {})):
                shown.add((number, heading))
        assert shown == {place for place in told if place[0] == number}


def test_every_misconception_has_a_section_and_a_thread():
    items = re.split(r"^## \d+\. ", TEXTS["misconceptions.md"], flags=re.M)[1:]
    assert len(items) >= 15
    for item in items:
        assert named(item) and "https://github.com/" in item, item[:60]


def said_by(number):
    """All that a teacher's copy says and prints."""
    notebook = json.loads((ROOT / f"notebooks/teaching/{masters()[number].stem}.ipynb").read_text())
    printed = ["".join(output.get("text", [])) for cell in notebook["cells"]
               for output in cell.get("outputs", [])]
    return "\n".join(["".join(cell["source"]) for cell in notebook["cells"]] + printed)


ELSEWHERE = {"8.3178", "0.99"}  # ln 4,096, which a quiz computes; a user's momentum, in the thread


@pytest.mark.parametrize("name", ["misconceptions.md", "pictures.md", "questions.md"])
def test_a_decimal_stands_in_the_notebook_that_is_shown(name):
    text, said = TEXTS[name], {number: said_by(number) for number in masters()}
    for item in re.split(r"^(?=## )", text, flags=re.M)[1:]:
        shown = "\n".join(said[number] for number in {place[0] for place in named(item)})
        numbers = re.findall(r"(?<![\d.])\d+\.\d+(?![\d.])", LINK.sub("", item))
        for number in set(numbers) - ELSEWHERE:
            assert re.search(rf"(?<![\d.]){re.escape(number)}(?!\d)", shown), f"{name}: {number}"
