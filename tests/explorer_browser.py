"""Use every control of the explorer page in a browser and look at it: `python tests/explorer_browser.py [PAGE.html]`.

Without a page one is made of the shipped teacher, the same network untrained and 12 images of the embedded dataset. It
fails if a control changes nothing that is shown, if a request leaves, if anything is written to the console, if the
first paint takes a second, or if the file has 10 MB. Screenshots in light and dark, of a desktop and a phone, go to the
folder --out. It needs playwright, Chromium or Chrome on the machine, and no network.
"""

import argparse
import os
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

from dino_lib.build import build_student
from dino_lib.checkpoint import load_teacher
from dino_lib.explore import explore
from dino_lib.shapes import Shapes

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SCREENS = {"desktop": {"width": 1280, "height": 900}, "phone": {"width": 390, "height": 844}}
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime"
SHOWN = """() => {  // a hash of the pixels of every canvas, by the panel or strip that it is in
    const copy = new OffscreenCanvas(1, 1), context = copy.getContext('2d', {willReadFrequently: true});
    const hash = canvas => {
        Object.assign(copy, {width: canvas.width, height: canvas.height});
        context.drawImage(canvas, 0, 0);
        const pixels = context.getImageData(0, 0, copy.width, copy.height).data;
        return new Uint32Array(pixels.buffer).reduce((a, b) => (31 * a + b) | 0, 7);
    };
    return Object.fromEntries([...document.querySelectorAll('#seen, #patch, #like, .strip')].map(e =>
        [e.id, (e.matches('canvas') ? [e] : [...e.querySelectorAll('canvas')]).map(hash).join()]));
}"""
STRIPS = {"images", "heads", "layers"}
ALL = {"seen", "patch", "like"} | STRIPS


def make_page(path):
    """The page of the shipped teacher and of its network untrained; returns its path."""
    teacher = load_teacher("demo")
    untrained = build_student(teacher.config).backbone
    return explore({"untrained": untrained, "trained": teacher}, [image for image, _ in Shapes(12, seed=1)],
                   path=path).path


class Watch:
    """Opens a page and notes every fault that it has: console lines, errors, requests for anything but the file."""

    def __init__(self, browser, path, **options):
        self.faults, self.page = [], browser.new_page(**options)
        self.page.on("console", lambda line: self.faults.append(f"console: {line.text}"))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", lambda request: request.url.startswith(("file:", "data:")) or
                     self.faults.append(f"request: {request.url[:100]}"))
        self.page.goto(path.resolve().as_uri())
        self.page.wait_for_function("document.querySelector('#images canvas')")
        self.paint = self.page.evaluate(PAINT)

    def expect(self, what, action, changed, same=frozenset()):
        """Do it: the canvases of `changed` show something else, and those of `same` what they showed."""
        before = self.page.evaluate(SHOWN)
        action()
        self.page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
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
            (page.touchscreen.tap if touch else page.mouse.click)(box["x"] + x * box["width"],
                                                                  box["y"] + y * box["height"])
        return act

    def choose(strip, n):
        button = page.locator(f"#{strip} button").nth(n)
        return button.tap if touch else button.click

    expect("T", press("t"), {"seen"} | STRIPS)
    expect("shift T", press("T"), {"seen"} | STRIPS)
    expect("a patch of the first panel", point("seen", 0.3, 0.3), {"seen", "patch", "like", "images", "heads"},
           {"layers"})
    expect("a patch of the second", point("patch", 0.6, 0.6), {"patch", "like", "images", "heads"}, {"layers"})
    expect("a patch of the third", point("like", 0.9, 0.1), {"patch", "like", "images", "heads"}, {"layers"})
    expect("a teacher's button", choose("teachers", 0), ALL)
    expect("the other's", choose("teachers", 1), ALL)
    expect("arrow down", press("ArrowDown"), {"seen", "patch", "layers"}, {"like", "images", "heads"})
    expect("arrow up", press("ArrowUp"), {"seen", "patch", "layers"}, {"like", "images", "heads"})
    expect("arrow right", press("ArrowRight"), {"seen", "like", "heads", "layers"}, {"patch", "images"})
    expect("arrow left", press("ArrowLeft"), {"seen", "like", "heads", "layers"}, {"patch", "images"})
    expect("shift and an arrow", press("Shift+ArrowDown"), {"patch", "like", "images", "heads"}, {"layers"})
    expect("L", press("l"), {"seen", "heads"}, {"patch", "like", "images", "layers"})
    expect("shift L", press("L"), {"seen", "heads"}, {"patch", "like", "images", "layers"})
    expect("M", press("m"), {"seen", "heads", "layers"}, {"patch", "like", "images"})
    expect("+", press("+"), {"seen"}, {"patch", "like"})
    expect("-", press("-"), {"seen"}, {"patch", "like"})
    expect("the slider", lambda: page.locator("#keep").fill("0.2"), {"seen", "heads", "layers"}, {"patch", "like"})
    expect("M again", press("m"), {"seen", "heads", "layers"}, {"patch", "like", "images"})
    expect("an image's button", choose("images", 2), {"seen", "like", "heads", "layers"}, {"patch", "images"})
    expect("a head's", choose("heads", 3), {"seen", "patch", "layers"}, {"like", "heads"})
    expect("a layer's", choose("layers", 0), {"seen", "heads"}, {"patch", "like", "layers"})
    expect("Esc", press("Escape"), {"patch", "like", "images", "heads"}, {"seen", "layers"})
    for action in (press("d"), page.locator("#theme").click):
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        expect("the theme", action, set(), ALL)
        if page.evaluate("getComputedStyle(document.body).backgroundColor") == colour:
            watch.faults.append("the theme did not change the background")
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        watch.faults.append("the page is wider than the screen")


def main():
    """The command line; exits 1 if there is a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", nargs="?", type=Path, help="a page to use; default: one is made")
    parser.add_argument("--out", type=Path, default=Path("runs/browser"), help="folder of the screenshots")
    parser.add_argument("--browser", help="the program of Chromium or Chrome; default: the one on the PATH")
    options = parser.parse_args()
    browser = options.browser or next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is on the PATH: install one, or name its program with --browser")
    options.out.mkdir(parents=True, exist_ok=True)
    path, faults = options.page or make_page(options.out / "explorer.html"), []
    size = path.stat().st_size / 1e6
    if size > 10:
        faults.append(f"{size:.1f} MB are more than 10")
    with sync_playwright() as playwright:
        sandbox = not hasattr(os, "getuid") or os.getuid() != 0  # Chromium refuses it to root
        chromium = playwright.chromium.launch(executable_path=browser, chromium_sandbox=sandbox)
        for screen, viewport in SCREENS.items():
            for scheme in ("light", "dark"):
                watch = Watch(chromium, path, viewport=viewport, color_scheme=scheme, has_touch=screen == "phone")
                if not watch.paint or watch.paint > 1000:
                    watch.faults.append(f"first paint after {watch.paint} ms")
                watch.page.screenshot(path=options.out / f"explorer-{screen}-{scheme}.png", full_page=True)
                use(watch, touch=screen == "phone")
                for key in ("ArrowUp", "m", "Shift+ArrowDown"):
                    watch.page.keyboard.press(key)
                watch.page.wait_for_timeout(100)
                watch.page.screenshot(path=options.out / f"explorer-{screen}-{scheme}-used.png", full_page=True)
                print(f"{screen}, {scheme}: first paint {watch.paint:.0f} ms, {len(watch.faults)} faults", flush=True)
                faults += [f"{screen}, {scheme}: {fault}" for fault in watch.faults]
                watch.page.close()
        chromium.close()
    print(f"{path}: {size:.2f} MB", *faults, sep="\n  ")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
