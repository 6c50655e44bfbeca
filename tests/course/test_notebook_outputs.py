"""What the notebooks hold as they are committed: the output of each cell, and nothing that differs
between machines.
"""

from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(
    path for path in (ROOT / "notebooks").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)
KINDS = {
    "text/plain",
    "image/png",
    "image/jpeg",
    "text/html",
}  # no widget: a viewer would show "loading", or nothing


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_text_and_pictures(path):
    notebook = nbformat.read(path, 4)
    assert "widgets" not in notebook.metadata
    for cell in notebook.cells:
        assert "execution" not in cell.metadata, (
            f"cell {cell.id} holds times: use notebooks/execute.py"
        )
        for output in cell.get("outputs", []):
            assert output.output_type != "error" and output.get("name") != "stderr", (
                f"cell {cell.id}: {output}"
            )
            assert set(output.get("data", {})) <= KINDS, (
                f"cell {cell.id}: {set(output.data) - KINDS}"
            )
            assert "%|" not in str(output.get("text")) + str(output.get("data")), (
                f"cell {cell.id} has a progress bar"
            )


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_ran_in_order_from_a_fresh_kernel(path):
    counts = [
        cell.execution_count for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"
    ]
    assert counts == list(range(1, len(counts) + 1))
