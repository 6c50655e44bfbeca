"""Open notebooks in JupyterLab in a browser, run them and look at them: `python tests/browser.py
[NOTEBOOK ...]`.

A server of its own serves a copy of the notebooks folder without outputs, so that what is seen has
been computed now and no file is changed. Each notebook is run by the menu, as a reader does. It
fails if a cell fails, has no number or writes to stderr, if a picture that is committed is missing
or leaves its cell, or if a formula is not set. Screenshots of the whole notebook go to the folder
--out. It needs Chromium or Chrome on the machine, and no network.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import nbformat
from playwright.sync_api import TimeoutError, sync_playwright

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SETTINGS = {
    # every cell stands in the page, not only those in sight, and nothing behind the last
    "notebook-extension/tracker": {"windowingMode": "none", "scrollPastEnd": False},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
POLL = 1000  # ms between two looks at the page: the processor is the kernel's
# no kernel, a dead kernel: nothing would ever come to rest
DIALOG = "document.querySelector('.jp-Dialog')"
# JupyterLab says "idle" also while it has no kernel yet, and a click on Run is lost then
IDLE = """(document.querySelector('.jp-Notebook-ExecutionIndicator')?.dataset.status === 'idle' &&
           !['', 'No Kernel'].includes(document.querySelector('.jp-KernelName').textContent))"""
# of code cells in sight: a folded one has a placeholder without a number
PROMPT = ".jp-CodeCell .jp-InputPrompt:not(.jp-Placeholder-prompt)"
PROMPTS = f"[...document.querySelectorAll('{PROMPT}')].map(p => p.textContent.trim())"
SCALES = (
    "[...document.querySelectorAll('.jp-Notebook .jp-OutputArea img')]"
    ".map(e => e.width / (e.naturalWidth || 1))"
)
FAULTS = """() => {
    const cells = [...document.querySelectorAll('.jp-Notebook .jp-Cell')];
    const faults = [], number = new Map(cells.map((c, i) => [c, i]));
    const found = selector => document.querySelectorAll('.jp-Notebook ' + selector);
    const each = (selector, fault) => found(selector).forEach(e => {
        const text = fault(e);
        if (text) faults.push(`cell ${number.get(e.closest('.jp-Cell'))}: ${text}`);
    });
    const mime = '[data-mime-type="application/vnd.jupyter.';
    each(`${mime}stderr"], ${mime}error"]`,
         e => 'an error, or text on stderr, that ends: ' + e.textContent.trim().split('\\n').pop());
    each('PROMPT', e => /^\\[\\d+\\]:$/.test(e.textContent.trim()) ? '' :
        `the prompt is ${e.textContent.trim()}, not a number`);
    each('.jp-OutputArea img', e => {
        if (!(e.complete && e.naturalWidth > 0 && e.checkVisibility()))
            return 'a picture is not shown';
        const {left, right} = e.getBoundingClientRect();
        const cell = e.closest('.jp-Cell').getBoundingClientRect();
        if (left < cell.left - 1 || right > cell.right + 1)
            return `a picture of ${Math.round(right - left)} px leaves its cell of `
                + `${Math.round(cell.width)} px`;
    });
    each('.jp-RenderedMarkdown', e => {
        const text = document.createTreeWalker(e, NodeFilter.SHOW_TEXT,
            n => n.parentElement.closest('code, mjx-container')
                ? NodeFilter.FILTER_REJECT : NodeFilter.FILTER_ACCEPT);
        while (text.nextNode())
            if (text.currentNode.data.includes('$')) return 'a formula is left as it was typed';
        if (e.querySelector('mjx-merror, [data-mjx-error]')) return 'a formula has an error';
        const wide = f => f.scrollWidth > f.clientWidth + 1;
        if ([e, ...e.querySelectorAll('mjx-container[display="true"]')].some(wide))
            return 'a formula, or a table, is wider than its cell';
    });
    return faults;
}""".replace("PROMPT", PROMPT)


def find_browser():
    """The path of the machine's Chromium or Chrome; FileNotFoundError, saying how to install it, if
    it has none.
    """
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    raise FileNotFoundError(
        f"none of {', '.join(BROWSERS)} is on the PATH. Debian: apt-get install chromium; "
        "elsewhere install Chromium or Chrome and name its program with --browser"
    )


def inside(path):
    """A notebook's path relative to the notebooks folder; FileNotFoundError or ValueError if it is
    not in there.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} is no file; a notebook is wanted, like notebooks/02_head.ipynb"
        )
    if path.suffix != ".ipynb" or NOTEBOOKS not in path.parents:
        raise ValueError(f"{path} is not a notebook in {NOTEBOOKS}")
    return path.relative_to(NOTEBOOKS)


@contextlib.contextmanager
def lab():
    """Serve a copy of the notebooks, cleared of outputs and numbers, in JupyterLab: yields
    (address, token).
    """
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w+") as log:
        root, settings = Path(folder, "notebooks"), Path(folder, "settings")
        shutil.copytree(NOTEBOOKS, root, ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
        for path in root.rglob("*.ipynb"):
            notebook = nbformat.read(path, 4)
            for cell in notebook.cells:
                if cell.cell_type == "code":
                    cell.outputs, cell.execution_count = [], None
            nbformat.write(notebook, path)
        for name, values in SETTINGS.items():
            file = settings / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(values))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        address, token = f"http://127.0.0.1:{port}", secrets.token_hex(16)
        own = {
            "JUPYTER_TOKEN": token,
            "JUPYTER_CONFIG_DIR": f"{folder}/config",
            "JUPYTERLAB_SETTINGS_DIR": str(settings),
            "JUPYTERLAB_WORKSPACES_DIR": f"{folder}/workspaces",
        }
        command = [
            sys.executable,
            "-m",
            "jupyterlab",
            "--no-browser",
            "--allow-root",
            f"--ServerApp.root_dir={root}",
            "--ServerApp.ip=127.0.0.1",
            f"--ServerApp.port={port}",
            "--ServerApp.port_retries=0",
        ]
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
        try:
            wait_for(server, address, log)
            yield address, token
        finally:
            server.terminate()  # which ends its kernels too
            try:
                server.wait(30)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def wait_for(server, address, log, timeout=120):
    """Return once the server answers; RuntimeError with the end of its log if it ends, or is mute
    for `timeout` s.
    """
    start = time.monotonic()
    while server.poll() is None and time.monotonic() - start < timeout:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=5):
            return
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"JupyterLab did not start:\n{log.read()[-2000:]}")


def photograph(page, stem):
    """Screenshots of the notebook from top to bottom, `<stem>_01.png`, ...; none if it was not
    opened.
    """
    scroller = page.locator(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-WindowedPanel-outer")
    if not scroller.count():
        return
    total, height = scroller.evaluate("e => [e.scrollHeight, e.clientHeight]")
    step = height - 40  # 40 px are seen twice, so that no line is cut
    for i, top in enumerate(range(0, total - height + step, step), 1):
        scroller.evaluate("(e, top) => { e.scrollTop = top; }", top)
        page.wait_for_timeout(300)
        page.screenshot(path=f"{stem}_{i:02d}.png")


def check(page, address, token, name, out, timeout):
    """Run one notebook, photograph it and return what is wrong with it, a list of sentences; prints
    one line.
    """
    cells = nbformat.read(NOTEBOOKS / name, 4).cells
    coded = [cell for cell in cells if cell.cell_type == "code"]
    wanted = sum(
        any(mime.startswith("image/") for mime in output.get("data", {}))
        for cell in coded
        for output in cell.outputs
    )
    faults, start = [], time.monotonic()

    def wait(condition, seconds):
        page.wait_for_function(f"{DIALOG} || {condition}", polling=POLL, timeout=seconds * 1000)

    try:
        page.goto(f"{address}/lab/tree/{name.as_posix()}?reset&token={token}", timeout=120_000)
        wait(
            f"{IDLE} && document.querySelectorAll('.jp-Notebook .jp-Cell').length === {len(cells)}",
            120,
        )
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        wait(f"{PROMPTS}.some(prompt => prompt !== '[ ]:')", 60)  # all cells are marked [*] at once
        wait(f"{IDLE} && !{PROMPTS}.includes('[*]:')", timeout)
    except TimeoutError as error:
        faults.append(f"not run to its end: {error}")
    seconds = time.monotonic() - start
    photograph(page, out / name.stem)
    faults += [
        f"a dialog: {' '.join(text.split())}"
        for text in page.locator(".jp-Dialog").all_inner_texts()
    ]
    faults += page.evaluate(FAULTS)
    shown, scales = page.locator(".jp-Notebook .jp-Cell").count(), page.evaluate(SCALES)
    if shown != len(cells):
        faults.append(f"{shown} cells are shown, of {len(cells)}")
    if len(scales) < wanted:
        faults.append(f"{len(scales)} pictures are shown, {wanted} are committed")
    print(
        f"{name}: {shown} cells, {len(scales)} pictures "
        f"(the smallest scale is {min(scales, default=1):.0%}), "
        f"{seconds:.0f} s, {'FAILED' if faults else 'ok'}",
        flush=True,
    )
    return faults


def main():
    """The command: exits with 1 if a notebook has a fault."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "notebooks", nargs="*", help="files in notebooks/; default: those of the course"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/browser"), help="folder of the screenshots"
    )
    parser.add_argument(
        "--timeout", type=float, default=900, help="seconds that one notebook may run"
    )
    parser.add_argument(
        "--browser", help="the program of Chromium or Chrome; default: the one on the PATH"
    )
    options = parser.parse_args()
    try:
        names = [inside(path) for path in options.notebooks or sorted(NOTEBOOKS.glob("*.ipynb"))]
        browser = options.browser or find_browser()
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    options.out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended in any case
    failed = False
    with lab() as (address, token), sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=browser)
        for name in names:
            page = chromium.new_page(viewport={"width": 1280, "height": 900})
            for fault in check(page, address, token, name, options.out, options.timeout):
                failed = True
                print(f"  {fault}")
            headers = {"Authorization": f"token {token}"}
            for session in page.request.get(f"{address}/api/sessions", headers=headers).json():
                page.request.delete(f"{address}/api/sessions/{session['id']}", headers=headers)
            page.close()
    sys.exit(failed)


if __name__ == "__main__":
    main()
