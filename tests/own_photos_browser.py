"""Drop photographs onto the explorer page in a browser without network: `python
tests/own_photos_browser.py`.

Pages of the shipped teachers are made by `explore(..., own_photos=True)`: of both on the middle
square, and of one on whole images. Pictures of many kinds are dropped or chosen; what the page
makes of them is compared with the library on the same files. It fails if a pixel of a PNG differs,
if a head differs from PyTorch's by 1e-4, if a control shows nothing of the photograph, if a request
leaves, or if the page says nothing to a file that is no image. Screenshots go to the folder --out.
It needs the extras export and browser, npm once, and Chromium or Chrome.
"""

import argparse
import base64
import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from browser import find_browser
from explorer_browser import SCREENS, Watch
from PIL import Image
from playwright.sync_api import sync_playwright

from dino_lib.data.images import PHOTOS, to_channels
from dino_lib.data.transforms import as_seen
from dino_lib.look.explorer import explore
from dino_lib.measure.attention import every_layer, full_attention
from dino_lib.teachers.load import load_teacher

CLOSE = 1e-4
DROP = """([name, content]) => {
    const bytes = Uint8Array.from(atob(content), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], name));
    return transfer;
}"""
IN_SIGHT = """() => {  // whether the chosen image's button is in its strip's window
    const strip = document.getElementById('images'), chosen = strip.lastChild;
    return chosen.getAttribute('aria-pressed') === 'true' &&
        chosen.getBoundingClientRect().right <= strip.getBoundingClientRect().right + 1;
}"""
FOUND = """number => {
    const t = data.teachers[number], item = t.images.at(-1), flat = a => Array.from(a).flat();
    const all = data.teachers.map((_, i) => i);
    return {
        name: data.names.at(-1), grid: item.grid, width: item.seen.width,
        pixels: Array.from(item.seen.pixels),
        layers: item.layers.map(heads => heads.map(map => Array.from(map))),
        matrix: item.matrix.map(head => Array.from(head)),
        cosines: item.rows.map(a => item.rows.map(b => a.reduce((s, v, i) => s + v * b[i], 0))),
    };
}"""


def made_files():
    """name -> the bytes of a file, of every kind that people drop."""
    noise = np.random.default_rng(0)
    llama = Image.open(PHOTOS / "llama.jpg")
    large = llama.resize((1501, 1003), Image.Resampling.BICUBIC)
    turned = llama.getexif()
    turned[0x0112] = 6  # a telephone held upright
    clear = Image.fromarray(noise.integers(0, 256, (90, 130, 4), dtype=np.uint8), "RGBA")
    kinds = {
        "noise.png": (Image.fromarray(noise.integers(0, 256, (131, 97, 3), dtype=np.uint8)), {}),
        "tall.png": (Image.fromarray(noise.integers(0, 256, (400, 90, 3), dtype=np.uint8)), {}),
        "tiny.png": (Image.fromarray(noise.integers(0, 256, (7, 5, 3), dtype=np.uint8)), {}),
        "large.png": (large, {}),
        "grey.png": (llama.convert("L"), {}),
        "palette.png": (llama.convert("P"), {}),
        "transparent.png": (clear, {}),
        "photo.jpg": (large, {"quality": 92}),
        "turned.jpg": (large, {"quality": 92, "exif": turned}),
        "photo.webp": (large, {"quality": 90}),
    }
    files = {}
    for name, (image, options) in kinds.items():
        buffer = io.BytesIO()
        image.save(buffer, {"png": "PNG", "jpg": "JPEG", "webp": "WEBP"}[name[-4:].strip(".")],
                   **options)
        files[name] = buffer.getvalue()
    return files


def compare(found, content, teacher, size):
    """Largest differences from the library on the same file: pixels (of 255), the heads in every
    layer given the page's pixels, the same from the file on, patch attention, cosines.
    """
    backbone, transform = teacher.model, teacher.transform
    seen, x = as_seen(to_channels(Image.open(io.BytesIO(content))), transform,
                      backbone.patch_size, size)
    theirs = torch.tensor(found["pixels"]).view(seen.height, found["width"], 3)
    ours = torch.from_numpy(np.array(seen)).long()
    same = transform.normalize(Image.fromarray(theirs.byte().numpy()))[None]
    layers = torch.tensor(found["layers"]).unflatten(-1, found["grid"])

    def off(a, b):
        return (a - b).abs().max().item()

    patches = torch.nn.functional.normalize(backbone.patch_tokens(same).flatten(0, 2), dim=-1)
    matrix = full_attention(backbone, same)[0]
    return {
        "pixels": off(theirs, ours),
        "heads": off(layers, every_layer(backbone, same)[:, 0]),
        "heads from the file": off(layers, every_layer(backbone, x[None])[:, 0]),
        "matrix": off(torch.tensor(found["matrix"]).view_as(matrix), matrix),
        "cosines": off(torch.tensor(found["cosines"]), patches @ patches.T),
    }


def drop(watch, name, content):
    """Drop a file; what the page says in the end."""
    page = watch.page
    given = page.evaluate_handle(DROP, [name, base64.b64encode(content).decode()])
    page.dispatch_event("body", "dragover", {"dataTransfer": given})
    page.dispatch_event("body", "drop", {"dataTransfer": given})
    page.wait_for_function(
        "name => document.getElementById('own-text').textContent.startsWith(name) && "
        "!document.getElementById('own-text').textContent.includes('is looking')", arg=name,
        timeout=60_000)
    return page.locator("#own-text").text_content()


def try_page(chromium, path, teachers, size, out):
    """Drop all files on a page, compare, use the controls; (faults, largest differences)."""
    watch = Watch(chromium, path, viewport=SCREENS["desktop"], color_scheme="light")
    page, faults, worst = watch.page, watch.faults, {}
    page.context.set_offline(True)
    given = page.evaluate_handle(DROP, ["a.png", ""])
    page.dispatch_event("body", "dragover", {"dataTransfer": given})
    page.screenshot(path=out / f"own-{path.stem}-before.png")
    for name, content in made_files().items():
        said = drop(watch, name, content)
        if "has not left this computer" not in said:
            faults.append(f"{name}: {said}")
            continue
        for number, (teacher_name, teacher) in enumerate(teachers.items()):
            found = page.evaluate(FOUND, number)
            numbers = compare(found, content, teacher, size)
            print(f"  {name}, {teacher_name}: "
                  + ", ".join(f"{what} {value:.2g}" for what, value in numbers.items()), flush=True)
            is_exact = name.endswith(".png") and name != "transparent.png"
            limits = {"heads": CLOSE, "matrix": CLOSE, "cosines": CLOSE}
            limits |= {"pixels": 0, "heads from the file": CLOSE} if is_exact else {"pixels": 2}
            faults += [f"{name}, {teacher_name}: {what} off by {numbers[what]:.2g}"
                       for what, limit in limits.items() if numbers[what] > limit]
            worst = {what: max(value, worst.get(what, 0)) for what, value in numbers.items()}
        if name == "photo.jpg":
            page.screenshot(path=out / f"own-{path.stem}.png", full_page=True)
    said = drop(watch, "notes.txt", b"no image")
    if "no image that this browser can read" not in said:
        faults.append(f"a text: {said}")
    page.locator("#file").set_input_files(PHOTOS / "leopards.jpg")
    page.locator("#own-text", has_text="leopards.jpg: looked").wait_for()
    page.wait_for_timeout(200)
    if not page.evaluate(IN_SIGHT):
        faults.append("the photograph's button is not in sight")
    use(watch, len(teachers))
    page.screenshot(path=out / f"own-{path.stem}-used.png", full_page=True)
    page.set_viewport_size(SCREENS["phone"])
    page.wait_for_timeout(200)
    page.screenshot(path=out / f"own-{path.stem}-phone.png", full_page=True)
    if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
        faults.append("the page is wider than a phone")
    page.close()
    own = "request: blob:"  # the runtime, which the page itself holds
    return [fault for fault in faults if not fault.startswith(own)], worst


def use(watch, n_teachers):
    """The controls on a photograph of one's own, which is the last image."""
    page, press = watch.page, watch.page.keyboard.press
    box = page.locator("#seen").bounding_box()
    at = (box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.6)
    watch.expect("a patch of one's own", lambda: page.mouse.click(*at), {"patch", "like", "images"})
    watch.expect("its head", lambda: press("ArrowDown"), {"seen", "patch", "layers"}, {"like"})
    watch.expect("its layer", lambda: press("l"), {"seen", "heads"}, {"patch", "like"})
    watch.expect("the image before", lambda: press("ArrowLeft"), {"seen", "like"}, {"patch"})
    watch.expect("and back", lambda: press("ArrowRight"), {"seen", "like"}, {"patch"})
    watch.expect("its mask", lambda: press("m"), {"seen", "heads"}, {"patch"})
    watch.expect("no mask", lambda: press("m"), {"seen", "heads"}, {"patch"})
    if n_teachers > 1:
        watch.expect("another teacher", lambda: press("t"), {"seen", "patch", "like", "heads"})


def main():
    """The command line; exits 1 if there is a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/browser"), help="screenshots")
    parser.add_argument("--browser", help="the program of Chromium; default: the one on the PATH")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    teachers = {name: load_teacher(name) for name in ("demo", "photos")}
    pages = {"squares": (teachers, None), "whole": ({"photos": teachers["photos"]}, 128)}
    faults = []
    with sync_playwright() as playwright:
        sandbox = not hasattr(os, "getuid") or os.getuid() != 0  # Chromium refuses it to root
        browser = options.browser or find_browser()
        chromium = playwright.chromium.launch(executable_path=browser, chromium_sandbox=sandbox)
        for name, (of_page, size) in pages.items():
            path = options.out / f"{name}.html"
            explore(of_page, PHOTOS, path=path, size=size, limit=4, own_photos=True)
            print(f"{path}: {path.stat().st_size / 1e6:.2f} MB", flush=True)
            found, worst = try_page(chromium, path, of_page, size, options.out)
            print(f"largest: {worst}")
            faults += [f"{name}: {fault}" for fault in found]
        chromium.close()
    print(*faults or ["no faults"], sep="\n  ")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
