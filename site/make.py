"""The site: `make site`, that is `python site/make.py`.

Gathers its pages in runs/site-source: the solved notebooks, their solutions folded, an API page
made of the public names, and the explorer of the shipped photographs. Then Sphinx writes them to
runs/site, and the links inside it are checked. No notebook is executed.
"""

import argparse
import html.parser
import re
import shutil
import subprocess
import sys
import urllib.parse
from pathlib import Path

import nbformat

import dino_lib
from dino_lib.cli import main as dino

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
PAGES = ("index.md", "explorer.md", "conf.py", "site.css")


def page_of(notebook):
    """A solved notebook as a page, in place: its pictures as files, its solutions folded."""
    for cell in notebook.cells:
        tags = cell.metadata.setdefault("tags", [])
        if cell.cell_type == "markdown":
            for name in cell.pop("attachments", {}):
                cell.source = cell.source.replace(f"attachment:{name}", f"figures/{name}")
            cell.source = "\n".join(map(_badge, cell.source.splitlines()))
        elif "nbval-ignore-output" in tags and "REPOSITORY =" in cell.source:
            tags.append("remove-cell")
        elif cell.metadata.get("jupyter", {}).get("source_hidden"):
            tags.append("hide-input")
    return notebook


def _badge(line):
    """The line with Colab's picture, which lies elsewhere, as a link to the student's copy."""
    if not line.endswith("<!-- badge -->"):
        return line
    address = line.removesuffix(" <!-- badge -->").rpartition("](")[2].rstrip(")")
    address = address.replace("/notebooks/solutions/", "/notebooks/")
    return f"[Write it yourself, in Colab]({address})"


def api_page():
    """Markdown: every public name with its docstring, by module, in reading order."""
    lines = ["# The library", "", "`from dino_lib import ...`: the public names, in reading order."]
    modules = {}
    for name in dino_lib.__all__:
        value = getattr(dino_lib, name)
        if callable(value):
            modules.setdefault(value.__module__, []).append(name)
    for module, names in modules.items():
        lines += ["", f"## {module.removeprefix('dino_lib.')}"]
        for name in names:
            value = getattr(dino_lib, name)
            kind = "autoclass" if isinstance(value, type) else "autofunction"
            has_settings = hasattr(value, "__pydantic_fields__")
            call = "(**settings)" if has_settings else ""  # not fifty types with their bounds
            lines += ["", "```{eval-rst}", f".. {kind}:: {module}.{name}{call}"]
            lines += ["   :members:"] * (kind == "autoclass" and not has_settings) + ["```"]
            lines += settings_table(value) if has_settings else []
    return "\n".join(lines) + "\n"


def settings_table(config):
    """Lines of Markdown: a setting, its default and its help, a row each."""
    lines = ["", "| setting | default | what it is |", "| --- | --- | --- |"]
    for name, field in config.__pydantic_fields__.items():
        default = repr(field.get_default(call_default_factory=True))
        lines.append(f"| `{name}` | `{default}` | {' '.join(field.description.split())} |")
    return lines


def gather(source):
    """Write all that Sphinx reads to the folder `source`."""
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    for name in PAGES:
        shutil.copy(HERE / name, source)
    shutil.copytree(ROOT / "figures", source / "figures", ignore=shutil.ignore_patterns("*.py"))
    shutil.copy(ROOT / "dino_lib" / "backbones.md", source)
    (source / "api.md").write_text(api_page())
    for path in sorted((ROOT / "notebooks" / "solutions").glob("*.ipynb")):
        nbformat.write(page_of(nbformat.read(path, 4)), source / path.name)
    explorer = source / "extra" / "explorer"
    photos = str(ROOT / "dino_lib" / "data" / "photos")
    dino(["explore", photos, "--teacher", "demo", "--teacher", "photos", "--limit", "16",
          "--out", str(explorer)])


class _Page(html.parser.HTMLParser):
    """A page's links, its anchors, and what it loads when it is opened."""

    def __init__(self, text):
        super().__init__()
        self.links, self.loads, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        of = dict(attrs)
        address = of.get("src") or of.get("href")
        if address:
            self.links.append(address)
            if "src" in of or (tag == "link" and of.get("rel") == "stylesheet"):
                self.loads.append(address)
        self.anchors.update(of[key] for key in ("id", "name") if of.get(key))


def broken_links(site):
    """What is wrong with the links of a folder of pages, a line each.

    A link inside must lead to a file, and to an anchor in it; a picture, a script or a style sheet
    must not lie elsewhere, for the site works offline.
    """
    pages = {p: _Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    wrong = []
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            if parts.scheme or link.startswith("//"):
                continue
            target = path
            if parts.path:
                target = (path.parent / urllib.parse.unquote(parts.path)).resolve()
                target = target / "index.html" if target.is_dir() else target
            if not target.exists():
                wrong.append(f"{path.relative_to(site)}: {link} leads nowhere")
            elif parts.fragment and target in pages and (
                urllib.parse.unquote(parts.fragment) not in pages[target].anchors
            ):
                wrong.append(f"{path.relative_to(site)}: {link} has no such anchor")
        wrong += [f"{path.relative_to(site)}: {address} is loaded from elsewhere"
                  for address in page.loads if re.match("(https?:)?//", address)]
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "site")
    out = parser.parse_args().out.resolve()
    source = out.parent / "site-source"
    gather(source)
    shutil.rmtree(out, ignore_errors=True)
    sphinx = [sys.executable, "-m", "sphinx", "--quiet", "--fail-on-warning", "--keep-going"]
    subprocess.run([*sphinx, "-d", str(out.parent / "site-doctrees"), str(source), str(out)],
                   check=True)
    wrong = broken_links(out)
    print("\n".join(wrong) or f"every link inside leads somewhere: {out}/index.html")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
