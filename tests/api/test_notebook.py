"""docs/notebook.ipynb, in a kernel of its own: two runs and an evaluation in one process whose event loop runs."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from asyncrl.api.run import Run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(ROOT / "docs/notebook.ipynb", as_version=4)
    client = NotebookClient(notebook, timeout=800, resources={"metadata": {"path": str(tmp_path)}})
    client.execute(env={**os.environ, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"})
    outputs = {cell.source: str(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"}
    assert not any("Traceback" in output for output in outputs.values())
    panels = [sum("asyncrl python" in str(o.get("data")) for o in c.outputs) for c in notebook.cells if "outputs" in c]
    assert sum(panels) == 2, "one for the run, one for its resume, each replaced in place"
    (run_dir,) = (folder for folder in (tmp_path / "runs").iterdir() if (folder / "recipe.yaml").exists())
    run = Run(run_dir)
    assert list(run.metrics.index) == list(range(8)), "stopped after step 3, resumed to step 8"
    assert list(run.evaluations["version"]) == [0, 2, 4, 6, 8, 8]
    assert (run.evaluations["other_versions_share"] < 1).all()
    assert set(run.checkpoints) >= {8}
    assert run.summary["ledger"]["trained"] == 32
    assert (run.trajectories()["reward"].between(0, 1)).all()
    assert "objects/lowercase_" in (run_dir / "recipe.yaml").read_text()
