"""Use every control of the explorer page in a browser and look at it: `python
tests/explorer_browser.py [PAGE.html]`.

Without a page one is made of the shipped teacher, the same network untrained and 12 images of the
embedded dataset, or with --photos of the teacher of photographs and 12 of them, or with --large of
two networks of the size of ViT-S/8. It fails if a control changes nothing that is shown, if a
request leaves, if anything is written to the console, if the first paint takes a second, if the
file has 10 MB, or if it can't be clicked as the output of a cell in JupyterLab. Screenshots in
light and dark, of a desktop and a phone, go to the folder --out. It needs playwright, JupyterLab,
Chromium or Chrome on the machine, and no network.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from browser import IDLE, find_browser, lab
from playwright.sync_api import TimeoutError, sync_playwright

from dino_lib.backbone import create_backbone
from dino_lib.data.images import PHOTOS
from dino_lib.data.shapes import Shapes
from dino_lib.data.transforms import EvalTransform
from dino_lib.look.explorer import explore
from dino_lib.run.build import build_student
from dino_lib.teachers.load import load_teacher

SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SHOWN = """() => {  // a hash of the pixels of every canvas, by the panel or strip that it is in
    const copy = new OffscreenCanvas(1, 1);
    const context = copy.getContext('2d', {willReadFrequently: true});
    const hash = canvas => {
        Object.assign(copy, {width: canvas.width, height: canvas.height});
        context.drawImage(canvas, 0, 0);
        const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
        return new Uint32Array(pixels.buffer).reduce((a, b) => (31 * a + b) | 0, 7);
    };
    const all = [...document.querySelectorAll('#seen, #patch, #like, .strip')];
    return Object.fromEntries(all.map(e =>
        [e.id, (e.matches('canvas') ? [e] : [...e.querySelectorAll('canvas')]).map(hash).join()]));
}"""
STRIPS = {"images", "heads", "layers"}
ALL = {"seen", "patch", "like"} | STRIPS


def make_page(path, large, photos):
    """The page of a shipped teacher and its network untrained, or of two ViT-S/8; its path."""
    images = [image for image, _ in Shapes(12, seed=1)]
    if large:
        vits = {f"ViT-S/8, seed {seed}": _vit(seed) for seed in (0, 1)}
        return explore(vits, [image.resize((224, 224)) for image in images], path=path).path
    teacher = load_teacher("photos" if photos else "demo")
    untrained = build_student(teacher.config).backbone
    images, size = (PHOTOS, 128) if photos else (images, None)
    return explore({"untrained": untrained, "trained": teacher}, images, path=path, size=size).path


def _vit(seed):
    torch.manual_seed(seed)
    vit = create_backbone("vit_small_patch8_224")
    vit.transform = EvalTransform(224, (0.5,) * 3, (0.5,) * 3)
    return vit


class Watch:
    """Opens a page and notes its faults: console lines, errors, requests for another file."""

    def __init__(self, browser, path, **options):
        self.faults, self.page = [], browser.new_page(**options)
        self.page.on("console", lambda line: self.faults.append(f"console: {line.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith(("file:", "data:"))
                or self.faults.append(f"request: {request.url[:100]}")
            ),
        )
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_function("document.querySelector('#images canvas')")
        self.paint = self.page.evaluate(PAINT)

    def expect(self, what, action, changed, same=frozenset()):
        """Do it: canvases of `changed` show something else, those of `same` what they showed."""
        before = self.page.evaluate(SHOWN)
        action()
        self.page.evaluate(
            "new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"
        )
        after = self.page.evaluate(SHOWN)
        self.faults += [f"{what}: {id} did not change" for id in changed if before[id] == after[id]]
        self.faults += [f"{what}: {id} changed" for id in same if before[id] != after[id]]


def use(watch, touch):
    """Every control once."""
    page, expect = watch.page, watch.expect

    def press(key):
        return lambda: page.keyboard.press(key)

    def point(id, x, y):
        def act():
            canvas = page.locator(f"#{id}")
            canvas.scroll_into_view_if_needed()
            box = canvas.bounding_box()
            (page.touchscreen.tap if touch else page.mouse.click)(
                box["x"] + x * box["width"], box["y"] + y * box["height"]
            )

        return act

    def choose(strip, n):
        button = page.locator(f"#{strip} button").nth(n)
        return button.tap if touch else button.click

    expect("T", press("t"), {"seen"} | STRIPS)
    expect("shift T", press("T"), {"seen"} | STRIPS)
    expect(
        "a patch of the first panel",
        point("seen", 0.3, 0.3),
        {"seen", "patch", "like", "images", "heads"},
        {"layers"},
    )
    expect(
        "a patch of the second",
        point("patch", 0.6, 0.6),
        {"patch", "like", "images", "heads"},
        {"layers"},
    )
    expect(
        "a patch of the third",
        point("like", 0.9, 0.1),
        {"patch", "like", "images", "heads"},
        {"layers"},
    )
    expect("a teacher's button", choose("teachers", 0), ALL)
    expect("the other's", choose("teachers", 1), ALL)
    expect(
        "arrow down", press("ArrowDown"), {"seen", "patch", "layers"}, {"like", "images", "heads"}
    )
    expect("arrow up", press("ArrowUp"), {"seen", "patch", "layers"}, {"like", "images", "heads"})
    expect(
        "arrow right", press("ArrowRight"), {"seen", "like", "heads", "layers"}, {"patch", "images"}
    )
    expect(
        "arrow left", press("ArrowLeft"), {"seen", "like", "heads", "layers"}, {"patch", "images"}
    )
    expect(
        "shift and an arrow",
        press("Shift+ArrowDown"),
        {"patch", "like", "images", "heads"},
        {"layers"},
    )
    expect("L", press("l"), {"seen", "heads"}, {"patch", "like", "images", "layers"})
    expect("shift L", press("L"), {"seen", "heads"}, {"patch", "like", "images", "layers"})
    expect("M", press("m"), {"seen", "heads", "layers"}, {"patch", "like", "images"})
    expect("+", press("+"), {"seen"}, {"patch", "like"})
    expect("-", press("-"), {"seen"}, {"patch", "like"})
    expect(
        "the slider",
        lambda: page.locator("#keep").fill("0.2"),
        {"seen", "heads", "layers"},
        {"patch", "like"},
    )
    expect("M again", press("m"), {"seen", "heads", "layers"}, {"patch", "like", "images"})
    expect(
        "an image's button",
        choose("images", 2),
        {"seen", "like", "heads", "layers"},
        {"patch", "images"},
    )
    expect("a head's", choose("heads", 3), {"seen", "patch", "layers"}, {"like", "heads"})
    expect("a layer's", choose("layers", 0), {"seen", "heads"}, {"patch", "like", "layers"})
    expect("Esc", press("Escape"), {"patch", "like", "images", "heads"}, {"seen", "layers"})
    for action in (press("d"), page.locator("#theme").click):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        expect("the theme", action, set(), ALL)
        if page.evaluate("getComputedStyle(document.body).backgroundColor") == colour:
            watch.faults.append("the theme did not change the background")
    scale = page.evaluate(
        "quantile(Float32Array.from({length: 101}, (_, i) => (7 * i) % 101), 0.98)"
    )
    if scale != 98:
        watch.faults.append(f"the scale of a map ends at {scale}, not at its 98th percentile")
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        watch.faults.append("the page is wider than the screen")


def in_lab(browser, path, out):
    """The faults of the page in a cell of JupyterLab, where a click must change what is shown."""
    source = (
        "from dino_lib.look.explorer import Explorer\n"
        f"Explorer(None, open({str(path.resolve())!r}).read(), None)"
    )
    cell = {
        "cell_type": "code",
        "source": source,
        "metadata": {},
        "outputs": [],
        "execution_count": None,
    }
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    content = {"cells": [cell], "metadata": kernel, "nbformat": 4, "nbformat_minor": 4}
    with lab() as (address, token):
        page = browser.new_page(viewport={"width": 1500, "height": 1100})
        made = page.request.put(
            f"{address}/api/contents/explorer.ipynb",
            headers={"Authorization": f"token {token}"},
            data={"type": "notebook", "content": content},
        )
        if not made.ok:
            return [f"JupyterLab took no notebook: {made.status}"]
        page.goto(f"{address}/lab/tree/explorer.ipynb?reset&token={token}", timeout=120_000)
        try:
            page.wait_for_function(IDLE, timeout=120_000)
            page.get_by_role("menuitem", name="Run", exact=True).click()
            page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            frame = page.frame_locator("iframe[title='attention explorer']")
            frame.locator("#images canvas").first.wait_for(timeout=120_000)
            frame.locator("#seen").click(position={"x": 60, "y": 60})
            frame.locator("#patch-text", has_text="What this patch").wait_for(timeout=10_000)
        except TimeoutError as error:
            return [f"not to be clicked in JupyterLab: {error}"]
        finally:
            page.screenshot(path=out / "explorer-lab.png")
            page.close()
    return []


def main():
    """The command line; exits 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("page", nargs="?", type=Path, help="a page to use; default: one is made")
    parser.add_argument(
        "--photos", action="store_true", help="make it of the teacher of photographs"
    )
    parser.add_argument(
        "--large", action="store_true", help="make it of two ViT-S/8, untrained: takes minutes"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/browser"), help="folder of the screenshots"
    )
    parser.add_argument(
        "--browser", help="the program of Chromium or Chrome; default: the one on the PATH"
    )
    options = parser.parse_args()
    try:
        browser = options.browser or find_browser()
    except FileNotFoundError as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    path, faults = (
        options.page or make_page(options.out / "explorer.html", options.large, options.photos),
        [],
    )
    size = path.stat().st_size / 1e6
    if size > 10:
        faults.append(f"{size:.1f} MB are more than 10")
    with sync_playwright() as playwright:
        sandbox = not hasattr(os, "getuid") or os.getuid() != 0  # Chromium refuses it to root
        chromium = playwright.chromium.launch(executable_path=browser, chromium_sandbox=sandbox)
        for screen, viewport in SCREENS.items():
            for scheme in ("light", "dark"):
                watch = Watch(
                    chromium,
                    path,
                    viewport=viewport,
                    color_scheme=scheme,
                    has_touch=screen == "phone",
                )
                if not watch.paint or watch.paint > 1000:
                    watch.faults.append(f"first paint after {watch.paint} ms")
                watch.page.screenshot(
                    path=options.out / f"explorer-{screen}-{scheme}.png", full_page=True
                )
                use(watch, touch=screen == "phone")
                for key in ("ArrowUp", "m", "Shift+ArrowDown"):
                    watch.page.keyboard.press(key)
                watch.page.wait_for_timeout(100)
                watch.page.screenshot(
                    path=options.out / f"explorer-{screen}-{scheme}-used.png", full_page=True
                )
                print(
                    f"{screen}, {scheme}: first paint {watch.paint:.0f} ms, "
                    f"{len(watch.faults)} faults",
                    flush=True,
                )
                faults += [f"{screen}, {scheme}: {fault}" for fault in watch.faults]
                watch.page.close()
        faults += in_lab(chromium, path, options.out)
        chromium.close()
    print(f"{path}: {size:.2f} MB", *faults, sep="\n  ")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
