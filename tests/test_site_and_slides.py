"""What site, slides and bundle are made of; `make site`, `slides`, `bundle` are run by hand."""

import importlib.util
import re
from dataclasses import fields
from pathlib import Path

import nbformat
import pytest

import dino_lib

ROOT = Path(__file__).resolve().parents[1]


def script(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE, SLIDES = script("site/make.py"), script("slides/make.py")
BUNDLE = script("bundle/make.py")


def test_every_notebook_stands_in_the_sites_list():
    listed = re.findall(r"^(\w\d_\w+)$", (ROOT / "site" / "index.md").read_text(), re.M)
    assert listed == sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_a_page_has_its_solutions_folded_its_pictures_as_files_and_no_setup():
    notebook = nbformat.read(ROOT / "notebooks" / "solutions" / "01_multicrop.ipynb", 4)
    page = SITE.page_of(notebook)
    tags = {tag for cell in page.cells for tag in cell.metadata.tags}
    assert {"remove-cell", "hide-input"} <= tags and not any("attachments" in c for c in page.cells)
    for cell in page.cells:
        assert "# @title Solution" not in cell.source or "hide-input" in cell.metadata.tags
        if cell.cell_type == "markdown":
            assert "attachment:" not in cell.source and "colab-badge" not in cell.source
            assert "/solutions/" not in cell.source  # a reader writes in the student's copy
            for picture in re.findall(r"\((figures/[^)]*)\)", cell.source):
                assert (ROOT / picture).exists()


def test_the_api_page_has_every_public_name_and_every_setting_with_its_help():
    page = SITE.api_page()
    for name in dino_lib.__all__:
        value = getattr(dino_lib, name)
        if callable(value):
            assert re.search(rf"^\.\. auto(class|function):: [\w.]+\.{name}\b", page, re.M)
    assert "Annotated" not in page
    rows = re.findall(r"^\| `(\w+)` \| `(.+)` \| (.+) \|$", page, re.M)
    assert [row[0] for row in rows] == [field.name for field in fields(dino_lib.Config)]
    assert ("n_local", "8", "Number of local views.") in rows
    assert ("backbone_options", "{}") in [row[:2] for row in rows]


def test_links_that_lead_nowhere_are_found(tmp_path):
    page = '<a href="{}">x</a><script src="{}"></script><p id="here">'
    for name, *links in [
        ("good", "bad.html#here", "a.js"), ("bad", "good.html#there", "no.js"),
        ("outside", "https://example.org", "https://example.org/x.js"),
    ]:  # fmt: skip
        (tmp_path / f"{name}.html").write_text(page.format(*links))
    (tmp_path / "a.js").touch()
    assert SITE.broken_links(tmp_path) == [
        "bad.html: good.html#there has no such anchor",
        "bad.html: no.js leads nowhere",
        "outside.html: https://example.org/x.js is loaded from elsewhere",
    ]


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks" / "teaching").glob("*.ipynb")), ids=lambda path: path.stem
)
def test_every_figure_and_every_note_of_a_notebook_is_in_its_slides(path, tmp_path):
    cells = nbformat.read(path, 4).cells
    figures = sum("image/png" in o.get("data", {}) or "image/jpeg" in o.get("data", {})
                  for cell in cells if cell.cell_type == "code" for o in cell.outputs)
    figures += sum(len(cell.get("attachments", {})) for cell in cells)
    text = SLIDES.slides_of(path, tmp_path).read_text()
    shown = re.findall(r"!\[\]\(([^)]*)\)", text)
    assert len(shown) == figures == len(list((tmp_path / "pictures").iterdir()))
    slides = text.split("\n\n---\n\n")
    for cell in cells:
        if "note" in cell.metadata.get("tags", []):
            assert SLIDES.plain(cell.source).replace("--", "- -")[:60] in text
    for slide in slides:  # a comment in a comment would show the notes to the class
        assert slide.count("<!--") == slide.count("-->") <= 2
        visible = re.sub(r"<!--.*?-->", "", slide, flags=re.S)
        assert len(visible) < 1300 and "<details>" not in visible


def test_the_choices_of_a_guess_stand_below_each_other():
    for text in ("**Predict.** Which? **a** this one. **b** that one.",
                 "**Predict.** Which?\n\na) this one. b) that one.",
                 "**Predict.** Which?\n\na) this one. · b) that one."):
        question, choices = SLIDES.asked(text)
        assert question == "**Predict.** Which?"
        words = [re.sub(r"\W", "", line) for line in choices.splitlines()]
        assert words == ["athisone", "bthatone"]
    question, choices = SLIDES.asked("**Predict.** Which?\n\n- a: this\n- b: that\n")
    assert (question, choices) == ("**Predict.** Which?", "- a: this\n- b: that")


def test_a_picture_has_the_words_that_announce_it_and_not_those_about_the_one_before():
    about, ahead = "The red line rises. It ends high.", "Now the same for ten seeds:"
    assert SLIDES.announcement(f"{about}\n\n{ahead}", True) == "Now the same for ten seeds."
    assert SLIDES.announcement(about, True) == ""
    assert SLIDES.announcement(about, False) == about


def slides_of(tmp_path, *cells):
    """The slides of a notebook with a title and these cells, without the front and the title."""
    path, title = tmp_path / "tiny.ipynb", nbformat.v4.new_markdown_cell("# Tiny")
    nbformat.write(nbformat.v4.new_notebook(cells=[title, *cells]), path)
    return SLIDES.slides_of(path, tmp_path).read_text().split("\n\n---\n\n")[1:]


def test_tables_outputs_and_hints_come_along(tmp_path):
    markdown, code = nbformat.v4.new_markdown_cell, nbformat.v4.new_code_cell
    stream = nbformat.v4.new_output("stream", text="k-NN 40.4\n")
    long = nbformat.v4.new_output("stream", text="line\n" * 60)
    said = "0.83\nThe run says b: two (you have not guessed)."
    settled = nbformat.v4.new_output("stream", text=said)
    table = "| a | b |\n| --- | --- |\n| 1 | 2 |"
    hint = "<details><summary>Hint</summary>\n\nAdd them.\n\n</details>"
    found = slides_of(
        tmp_path, markdown(f"## One\n\nThree numbers.\n\n{table}\n\nAnd so on."),
        markdown("## Two\n\nWhat came out:"), code("", outputs=[stream]),
        markdown("## Three\n\nAll of it:"), code("", outputs=[long]),
        markdown(f"**Your turn 1 · easy · 3 minutes · add.** Write it.\n\n{hint}"),
        markdown("## Four\n\nBut why?\n\n**Predict.** Which? **a** one. **b** two."),
        code("guess"), code("", outputs=[settled]),
        markdown(f"## Five\n\nOf the figure.\n\nOf the table:\n\n{table}\n\nAnd so on."),
    )  # fmt: skip
    one, two, three, turn, four, guess, five = found
    assert five.startswith(f"<!-- _class: dense -->\n\n## Five\n\nOf the table:\n\n{table}")
    assert "0.83\nThe run says b: two.\n-->" in guess
    assert table in one and "What came out:\n\n```text\nk-NN 40.4\n```" in two
    assert "All of it.\n" in three and "line" not in three
    shown, _, notes = turn.partition("<!--\n")
    assert "Write it." in shown and "Add them." not in shown and "Hint: Add them." in notes
    assert "But why?" in four and "Which?" not in four.partition("<!--\n")[0]
    assert "**Predict.** Which?\n\n- **a** one.\n- **b** two." in guess


def test_a_bracket_stays_whole():
    text = "One. (Two in a bracket. Three in it.) Four."
    assert SLIDES.sentences_of(text) == ["One.", "(Two in a bracket. Three in it.)", "Four."]


def test_a_formula_stays_with_its_bracket(tmp_path):
    [slide] = slides_of(tmp_path, nbformat.v4.new_markdown_cell("## One\n\nThe crop ($h$) is."))
    assert "The crop $(h)$ is." in slide


@pytest.mark.parametrize(
    ("cpu", "torch", "fails"),
    [(False, "2.14.1", False), (True, "2.14.1+cpu", False), (True, "2.14.1", True)],
)
def test_a_bundle_for_the_cpu_has_no_cuda_in_it_or_says_so(
    cpu, torch, fails, tmp_path, monkeypatch
):  # fmt: skip
    asked = []

    def pip(words, check):
        asked.append(words)
        name = "dino_lib-1-py3.whl" if "wheel" in words else f"torch-{torch}-cp311.whl"
        (tmp_path / name).touch()

    monkeypatch.setattr(BUNDLE.subprocess, "run", pip)
    monkeypatch.setattr(BUNDLE.sys, "platform", "linux")
    if fails:
        with pytest.raises(SystemExit, match="no build for the CPU of: torch-2"):
            BUNDLE.download(tmp_path, cpu)
    else:
        BUNDLE.download(tmp_path, cpu)
    assert (BUNDLE.CPU_INDEX in asked[-1]) is cpu and "download" in asked[-1]
