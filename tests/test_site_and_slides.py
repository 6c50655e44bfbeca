"""What the site and the slides are made of; `make site` and `make slides` are run by hand."""

import importlib.util
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]


def script(path):
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE, SLIDES = script("site/make.py"), script("slides/make.py")


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
