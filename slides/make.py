"""Slides of the notebooks: `make slides`, that is `python slides/make.py [NAME ...]`.

Every slide is taken from a teaching copy: the title; a slide a section, with its formulas and
tables, or what a cell prints where the text announces it; a slide a figure, with what the text says
before it; a slide for each thing to guess and to write. The speaker notes are the section's notes
for who teaches, what the text says after a figure, what the run says to a guess, and the hint of a
thing to write. So a change of a notebook changes the slides. Marp (its exact version below) makes
NAME.html, which needs no internet (p opens the notes), and NAME.pdf of NAME.md. It needs npm, and
Chromium or Chrome.
"""

import argparse
import base64
import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import nbformat
from PIL import Image

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
MARP = "@marp-team/marp-cli@4.5.1"
FRONT = "---\nmarp: true\ntheme: course\nmath: mathjax\npaginate: true\ntitle: {title}\n---\n"
PICTURES = {"image/png": "png", "image/jpeg": "jpg"}
FORMULA = re.compile(r"\$\$.+?\$\$", re.S)
FOLDED = re.compile(r"<details>.*?</details>", re.S)
HINT = re.compile(r"<details><summary>(Hint\b.*?)</summary>(.*?)</details>", re.S)
TABLE = re.compile(r"(?:^\|.*\n?)+", re.M)
CHOICE = re.compile(r"[ ·]+(?=\*\*[a-f]\*\* |[a-f]\) )")
TURN = re.compile(r"\*\*((?:Your turn|Exercise) \d+ · .+?)\*\*(.*)", re.S)
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\([^)]*\)")
LONGEST = 420  # letters that a slide takes beside its heading
ROOMY = 560  # letters in the usual size; more take a smaller one
TALL = 0.6  # height by width of a picture that takes all of a slide's height
MOST_LINES = 20  # of what a cell prints


class Deck:
    """The Markdown of a deck, slide by slide, and the pictures that it shows."""

    def __init__(self, folder, name):
        self.folder, self.name, self.slides, self.pictures = folder, name, [], 0

    def add(self, *parts, notes="", kind=""):
        """A slide of paragraphs; `kind` is its CSS class. Gives its notes, to be added to."""
        mark = f"<!-- _class: {kind} -->" if kind else ""
        shown = "\n\n".join(part for part in (mark, *parts) if part)
        shown = re.sub(r"\(\$([^$]+)\$\)", r"$(\1)$", shown)  # a line may end before a formula
        self.slides.append((shown, [notes]))
        return self.slides[-1][1]

    def picture(self, data, ending):
        """A picture, written beside the slides: as Markdown, and the class of its slide."""
        self.pictures += 1
        path = self.folder / "pictures" / f"{self.name}-{self.pictures:02d}.{ending}"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(data))
        with Image.open(path) as image:
            kind = "figure tall" if image.height > TALL * image.width else "figure"
        return f"![]({path.relative_to(self.folder).as_posix()})", kind

    def write(self, title):
        slides = []
        for shown, notes in self.slides:
            said = "\n\n".join(note for note in notes if note).replace("--", "- -")
            slides.append(f"{shown}\n\n<!--\n{said}\n-->" if said else shown)
        text = FRONT.format(title=title) + "\n\n---\n\n".join(slides) + "\n"
        path = self.folder / f"{self.name}.md"
        path.write_text(text, encoding="utf-8")
        return path


def plain(text):
    """A text for a slide: no folded hints, links or headings."""
    text = LINK.sub(r"\1", FOLDED.sub("", text))
    return re.sub(r"(?m)^(#+ .*|<!--.*)$", "", text).strip()


def start_of(text, longest=LONGEST):
    """The first sentences of a text, at least one, as many as a slide takes; no formula or list."""
    paragraphs = [p.strip() for p in FORMULA.sub("\n\n", plain(text)).split("\n\n")]
    words = [p for p in paragraphs if p and not re.match(r"[-*|>\d] |\d+\. |!\[", p)]
    kept = []
    for sentence in sentences_of(" ".join(words)):
        if kept and sum(map(len, kept)) + len(sentence) > longest:
            break
        kept.append(sentence)
    if len(kept) > 1 and kept[-1].endswith(":"):
        kept.pop()  # it announces what is not on the slide
    return " ".join(kept)


def sentences_of(text):
    """The sentences of a text; those in one pair of brackets are one."""
    found = []
    for sentence in re.split(r"(?<=[.?!:)]) (?=[A-Z*`$(])", joined(text)):
        if found and found[-1].count("(") > found[-1].count(")"):
            found[-1] += f" {sentence}"
        else:
            found.append(sentence)
    return found


def joined(text):
    """A text in one line: Marp keeps line breaks."""
    return " ".join(text.split())


def slides_of(path, folder):
    """Write the Markdown and the pictures of a teaching copy; gives the Markdown's path."""
    deck = Deck(folder, path.stem)
    cells = nbformat.read(path, 4).cells
    title = re.search(r"^# (.*)", cells[0].source, re.M)[1]
    opening = plain(cells[0].source)
    notes = deck.add(f"# {title}", start_of(cells[0].source), kind="title", notes=opening)
    heading, before, early, after_figure, guessed = title, "", [], False, None
    for cell, following in pairwise([*cells[1:], nbformat.NotebookNode(source="")]):
        if "note" in cell.metadata.get("tags", []):
            # most stand at the end of their section; one that names the next one, before it
            named = re.match(r"\*\*Section (\d+)\b", cell.source)
            next_one = sections(following.source)
            is_early = named and next_one and next_one[0][0].startswith(named[1])
            (early if is_early else notes).append(plain(cell.source))
        elif cell.cell_type == "markdown":
            told, *questions = re.split(r"(?=\*\*Predict)", cell.source)
            turn, before = TURN.search(FOLDED.sub("", told)), announcement(told, after_figure)
            found = sections(told)
            heading, guessed = (found[-1][0], None) if found else (heading, guessed)
            if found and not turn:
                notes = add_sections(deck, found, cell, printed(following))
                notes[:0], early, before = early, [], ""
            elif turn:
                parts = start_of(turn[2]), *tables(turn[2]), *formulas(turn[2])
                hints = [f"{name}: {plain(hint)}" for name, hint in HINT.findall(told)]
                deck.add(f"## {turn[1].rstrip('.')}", *parts, kind="turn", notes="\n\n".join(hints))
                before = ""
            elif "attachments" in cell:
                for shown, kind in pictures_in(cell, deck):
                    deck.add(f"## {heading}", shown, start_of(told, 200), notes=plain(told),
                             kind=kind)
            elif FORMULA.search(told):
                deck.add(f"## {heading}", *around_formula(told), notes=plain(told))
            elif tables(told):
                deck.add(f"## {heading}", announcing(told), *tables(told), notes=plain(told),
                         kind="dense")
                before = ""
            for question in questions:  # before the figure that answers it
                guessed = deck.add(f"## {heading}", *asked(question), kind="turn",
                                   notes=plain(question))
                before = ""
        else:
            if guessed and (said := answer(cell)):
                guessed.append(said)
                guessed = None
            for output in cell.outputs:
                for kind in PICTURES.keys() & output.get("data", {}).keys():
                    shown, place = deck.picture(output["data"][kind], PICTURES[kind])
                    deck.add(f"## {heading}", shown, before, kind=place,
                             notes=plain(re.split(r"(?m)^#", following.source)[0]))
                    before = ""
            after_figure = any(PICTURES.keys() & o.get("data", {}).keys() for o in cell.outputs)
            before = "" if cell.outputs else before
    return deck.write(title)


def announcement(text, after_figure):
    """What a text says of the picture that comes: its last paragraph. One that follows a picture
    and has no other speaks of that one.
    """
    paragraphs = [p for p in plain(text).split("\n\n") if p.strip()]
    if len(paragraphs) < 1 + after_figure:
        return ""
    return re.sub(":$", ".", start_of(paragraphs[-1], 200))


def announcing(text):
    """What a text says of its first table: the paragraph before it, or else how the text begins."""
    text = FOLDED.sub("", text)
    before = [p for p in text[:TABLE.search(text).start()].split("\n\n") if plain(p)]
    return (before and start_of(before[-1], 300)) or start_of(text, 250)


def answer(cell):
    """What a cell prints where it tells a guess from what came out, for the notes; else nothing."""
    said = "".join(o.text for o in cell.outputs if o.output_type == "stream").strip()
    return re.sub(r" \(you have not guessed.*\)", "", said) if "The run says" in said else ""


def sections(text):
    """(heading, what stands under it) of each heading in a text."""
    parts = re.split(r"(?m)^##+ (.*)$", FOLDED.sub("", text))
    return [(h.strip(), under) for h, under in zip(parts[1::2], parts[2::2], strict=True)]


def pictures_in(cell, deck):
    """The pictures that a text shows, and the classes of their slides."""
    return [deck.picture(of["image/png"], "png") for of in cell.get("attachments", {}).values()]


def add_sections(deck, found, cell, output):
    """A slide a heading of a cell: its first sentences, formulas, tables, points, and pictures; and
    the output of the next cell, where the last sentence announces it. Gives the notes of the last.
    """
    pictures = pictures_in(cell, deck)
    for heading, under in found:
        points, of_table = points_of(under), tables(under)
        if FORMULA.search(under):
            parts = around_formula(under)
        else:
            parts = [announcing(under) if of_table else
                     start_of(under, 250 if points else LONGEST)]
        if parts[-1].endswith(":") and not (points or of_table) and heading == found[-1][0]:
            of_table = [output] if output else []
            parts = [*parts[:-1], parts[-1] if output else f"{parts[-1][:-1]}."]
        if any(parts) or points or pictures:
            length = sum(map(len, parts)) + len(points)
            is_long = length > (LONGEST if points else ROOMY)
            size = "dense" if is_long or of_table else "short" if length < 200 else ""
            deck.add(f"## {heading}", *[shown for shown, _ in pictures], *parts, *of_table, points,
                     notes=plain(under), kind=pictures[0][1] if pictures else size)
            pictures = []
    return deck.slides[-1][1]


def printed(cell):
    """What a cell prints, as Markdown; nothing where a slide has no room for it."""
    texts = [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
    text = "".join(texts).strip("\n")
    return f"```text\n{text}\n```" if text and len(text.splitlines()) <= MOST_LINES else ""


def asked(question):
    """The question of a *Predict*, and its choices as a list."""
    told, *choices = CHOICE.split(joined(plain(question)))
    points = [f"- {choice}" for choice in choices] or [points_of(question)]
    return (told if choices else start_of(question)), "\n".join(points)


def tables(text):
    """The tables of a text that aren't folded."""
    return [table.strip() for table in TABLE.findall(FOLDED.sub("", text))]


def points_of(text):
    """The list in a text, as far as a slide takes it."""
    found = re.findall(r"(?m)^((?:- |\d+\. ).*(?:\n(?!- |\d+\. ).+)*)", plain(text))
    points = [joined(point) for point in found]
    while sum(map(len, points)) > 700:
        points.pop()
    return "\n".join(points)


def around_formula(text):
    """What stands right before the first formula of a text, the formula, and what stands after."""
    formula = FORMULA.search(text)
    before = [p for p in plain(text[:formula.start()]).split("\n\n") if p]
    after = start_of(FORMULA.split(text[formula.end():])[0], 250)
    sentences = re.split(r"(?<=[.?!]) ", joined(" ".join(before[-1:])))
    while len(sentences) > 1 and sum(map(len, sentences)) > 250:
        sentences.pop(0)
    return " ".join(sentences), formula[0], after


def formulas(text):
    """The displayed formulas of a text, at most two."""
    return FORMULA.findall(FOLDED.sub("", text))[:2]


def main():
    names = sorted(path.stem for path in (ROOT / "notebooks" / "teaching").glob("*.ipynb"))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=names, metavar="NAME")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "slides")
    args = parser.parse_args()
    shutil.rmtree(args.out, ignore_errors=True)
    args.out.mkdir(parents=True)
    for name in args.names:
        text = slides_of(ROOT / "notebooks" / "teaching" / f"{name}.ipynb", args.out)
        for ending in (["--html", "false"], ["--pdf", "--pdf-notes", "--pdf-outlines"]):
            marp = ["npx", "--yes", MARP, "--no-stdin", "--allow-local-files", "--theme-set",
                    str(HERE / "course.css"), *ending, text.name]
            subprocess.run(marp, check=True, cwd=args.out)
        print(f"{args.out / name}.html and .pdf")


if __name__ == "__main__":
    main()
