"""Minutes for each section of each notebook: `python workshop/minutes.py` writes minutes.md.

HONEST holds the minutes of a whole notebook, by careful first readers; those of 08 are what its
header says.
Of them a section gets the minutes that its pieces are marked with, and of the rest its share, by
two for a prediction and the words, text and code, at WORDS_A_MINUTE. So a section's minutes are an
estimate of an estimate.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

WORKSHOP = Path(__file__).resolve().parent
MASTERS = WORKSHOP.parent / "notebooks" / "masters"
HONEST = {"01": 130, "02": 105, "03": 125, "04": 115, "05": 85, "06": 160, "07": 125, "08": 70,
          "A1": 35}
WORDS_A_MINUTE = 200
PIECE = re.compile(r"\*\*(?:Your turn|Exercise) \d+ · \w+ · (\d+) minutes")
NAME = re.compile(r"^(?:def|class) (\w+)", re.M)


@dataclass
class Section:
    """A section of the second level, with its smaller ones: words as a student reads them."""

    heading: str
    headings: list[str] = field(default_factory=list)  # its own and the smaller ones'
    pieces: dict[str, int] = field(default_factory=dict)  # name -> marked minutes
    other: int = 0  # marked minutes of exercises that write no piece
    words: int = 0
    guesses: int = 0

    @property
    def marked(self) -> int:
        """The minutes that its pieces and experiments are marked with."""
        return sum(self.pieces.values()) + self.other


def plain(heading: str) -> str:
    """A heading without its hashes and its number: "## 5. Views" -> "Views"."""
    return re.sub(r"^#+\s+(\d+\.?\s+)?", "", heading).strip()


def masters() -> dict[str, Path]:
    """The number of a notebook -> its master, in the order of the course."""
    return {path.stem[:2]: path for path in sorted(MASTERS.glob("*.py")) if path.stem[:2] in HONEST}


def read_sections(path: Path) -> list[Section]:
    """The sections of a master; what stands before the first heading is called "Start"."""
    found, marked = [Section("Start")], 0
    for cell in re.split(r"^# %%", path.read_text(encoding="utf-8"), flags=re.M)[1:]:
        tags, _, text = cell.partition("\n")
        if '"note"' in tags:
            continue
        if "[markdown]" not in tags:
            stub = NAME.search(text) if '"stub"' in tags else None
            if stub and marked:
                found[-1].pieces[stub[1]], marked = marked, 0
            found[-1].words += len(text.split())
            found[-1].guesses += 'guess = "?"' in text
            continue
        for line in re.sub(r"^# ?", "", text, flags=re.M).splitlines():
            if line.startswith("#") and not line.startswith("# "):
                found[-1].other, marked = found[-1].other + marked, 0
                if line.startswith("## "):
                    found.append(Section(plain(line)))
                found[-1].headings.append(plain(line))
            elif piece := PIECE.search(line):
                found[-1].other, marked = found[-1].other + marked, int(piece[1])
            found[-1].words += len(line.split())
    found[-1].other += marked
    return found


def seconds(path: Path) -> int:
    """The seconds of one CPU core that the header of a master says."""
    return int(re.search(r"about (\d+) seconds of one CPU core", path.read_text())[1])


def minutes(sections: list[Section], honest: int) -> list[int]:
    """Whole minutes for each section that sum to the notebook's honest minutes."""
    reading = [2 * s.guesses + s.words / WORDS_A_MINUTE for s in sections]
    left = honest - sum(s.marked for s in sections)
    exact = [
        s.marked + left * each / sum(reading) for s, each in zip(sections, reading, strict=True)
    ]
    whole = [int(each) for each in exact]
    by_rest = sorted(range(len(exact)), key=lambda i: whole[i] - exact[i])
    for i in by_rest[: honest - sum(whole)]:  # the largest remainders get the minutes that are left
        whole[i] += 1
    return whole


HEAD = """# Minutes for each section

*Written by `python workshop/minutes.py`; don't edit it by hand.*

The total of a notebook is what careful first readers, after all of it with the exercises, said
that a person needs; nobody has been timed with a clock. For 06 and 07 two readers differ (125 and
195, 110 and 140 minutes), and their mean stands here; for 08 it is its header's. A section's
minutes are what its pieces are marked with, and its share of the rest, by two for each prediction
and the words at 200 a minute. The seconds are of one CPU core, from the notebooks' headers; two
idle cores share a training.

The rule of the plans here: a task takes a mixed room half again as long as its mark, and telling a
section takes three minutes in place of the reading.
"""


def table(number: str, path: Path) -> str:
    """One notebook's table in Markdown."""
    sections = read_sections(path)
    lines = [f"## {number} · {HONEST[number]} minutes, {seconds(path)} seconds of execution", "",
             "| section | minutes | of them, marked | pieces |", "| --- | --- | --- | --- |"]
    for section, whole in zip(sections, minutes(sections, HONEST[number]), strict=True):
        pieces = ", ".join(f"`{name}` {n}" for name, n in section.pieces.items())
        pieces += f"{', ' if pieces else ''}an experiment {section.other}" if section.other else ""
        lines.append(f"| {section.heading} | {whole} | {section.marked or ''} | {pieces} |")
    return "\n".join(lines)


def render() -> str:
    """The text of minutes.md."""
    return "\n\n".join([HEAD.rstrip(), *(table(*item) for item in masters().items())]) + "\n"


if __name__ == "__main__":
    (WORKSHOP / "minutes.md").write_text(render(), encoding="utf-8")
