"""The panel of a run in a notebook, in a kernel of its own: one output that is replaced, beside what is printed."""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
CELL = """
import made_up
from asyncrl.terminal.live import LiveView

with LiveView(5, "sums", 2) as view:
    for record in made_up.records(5):
        view.phase("evaluating", 3)
        view.step(record, {"prompt": "<b>2 + 2</b>", "completion": "\\x1b[2J4"})
        view._live.refresh()
        print("of the cell")
"""


def test_it_is_one_output_that_is_replaced(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    client = NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/report'}"})
    (cell,) = notebook.cells
    (panel,) = (output for output in cell.outputs if output.output_type == "display_data")
    printed = "".join(output.text for output in cell.outputs if output.output_type == "stream")
    assert printed.count("of the cell") == 5
    shown = re.sub(r"<[^>]*>", "", panel.data["text/html"])
    assert "5/5 steps" in shown
    assert "asyncrl sums" in shown
    assert "&lt;b&gt;2 + 2&lt;/b&gt;" in shown
    assert "\\x1b[2J4" in shown
    assert "\x1b" not in panel.data["text/html"]
