"""Execute notebooks from a fresh kernel and save them: `python notebooks/execute.py NOTEBOOK ...`.

A notebook is a student's or a solved copy; the teacher's copy takes the outputs of the solved one.

Pictures are stored with 256 colours, photographs as JPEG, which keeps a notebook small. Execution
times are not kept. Exits with an error if a cell fails, writes to stderr or shows a widget, such as
a progress bar, and then leaves the file as it was.
"""

import base64
import io
import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

WIDGET = "application/vnd.jupyter.widget-view+json"


def shrink(png):
    """A base64 PNG -> (type, base64) of the same picture.

    With 256 colours, or as JPEG if that is a third smaller.
    """
    image = Image.open(io.BytesIO(base64.b64decode(png))).convert("RGB")
    few, photo = io.BytesIO(), io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(few, "PNG", optimize=True)
    image.save(photo, "JPEG", quality=72, optimize=True)
    if 3 * len(photo.getvalue()) < 2 * len(few.getvalue()):
        return "image/jpeg", base64.b64encode(photo.getvalue()).decode()
    return "image/png", base64.b64encode(few.getvalue()).decode()


def execute(path):
    """Run one notebook in its own folder and write it back."""
    notebook = nbformat.read(path, 4)
    NotebookClient(
        notebook,
        timeout=1800,
        startup_timeout=600,
        coalesce_streams=True,  # a busy machine would cut one text into several
        resources={"metadata": {"path": path.parent}},
    ).execute()
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if output.output_type == "stream" and output.name == "stderr":
                sys.exit(f"{path}, cell {cell.id}, wrote to stderr: {output.text}")
            if WIDGET in output.get("data", {}):
                sys.exit(f"{path}, cell {cell.id}, shows a widget: {output.data.get('text/plain')}")
            if "image/png" in output.get("data", {}):
                kind, picture = shrink(output.data.pop("image/png"))
                output.data[kind] = picture
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.write(notebook, path)
    print(f"{path}: {path.stat().st_size // 1000} KB")


if __name__ == "__main__":
    # tqdm on stderr, where ipywidgets is missing
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    for name in sys.argv[1:]:
        execute(Path(name))
