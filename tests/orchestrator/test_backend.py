"""A whole run, its resume and its replay with a trainer backend that is not in the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file
from test_run import SIMULATED, asyncrl

pytestmark = pytest.mark.slow

TOY = Path(__file__).resolve().parents[1] / "trainer" / "toy_backend.py"


def test_a_run_its_resume_and_its_replay(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    keys = [f"trainer.backend={TOY}:Table", *SIMULATED, "rollout.engine_args={token_s: 0.001}", "journal.keep=all"]
    code, output = asyncrl("train", "recipes/tiny.yaml", f"run_dir={run_dir}", "max_steps=2", *keys)
    assert code == 0, output
    code, output = asyncrl("resume", str(run_dir), "max_steps=4")
    assert code == 0, output
    state = load_file(run_dir / "checkpoints/step_000004/trainer/rank_0.safetensors")
    assert state["steps"] == 4
    assert state["model.table"].any()
    model = load_file(run_dir / "checkpoints/step_000004/model/model.safetensors")
    assert (model["table"] == state["model.table"]).all()
    code, output = asyncrl("replay", str(run_dir), "--verify")
    assert code == 0, output
