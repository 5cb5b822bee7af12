"""Run directories with checkpoints, as the orchestrator and a trainer actor leave them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from test_learner import groups, learner
from transformers import AutoTokenizer

from asyncrl.checkpoint import files
from asyncrl.orchestrator import same_model
from asyncrl.recipe.load import dump
from asyncrl.recipe.schema import Recipe
from asyncrl.storage import atomic
from asyncrl.trainer.learner import Learner

REWARDS = [[1.0, 0.0, 0.5], [0.0, 0.25, 1.0]]


def make_run(folder: Path, model: Path, lora: dict[str, Any] | None = None, **changes: Any) -> tuple[Path, Learner]:
    """A run directory with checkpoints of steps 1 and 2, as the orchestrator and a trainer actor leave it."""
    recipe = Recipe.model_validate(
        {
            "model": str(model),
            "data": {"path": "openai/gsm8k"},
            "reward": "./rewards.py:reward",
            "max_steps": 2,
            "rollout": {"temperature": 0.8, "max_new_tokens": 20},
            "trainer": {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 80, "lora": lora or {}},
            **changes,
        }
    )
    run_dir = folder / "run"
    (run_dir / "checkpoints").mkdir(parents=True)
    (run_dir / "recipe.yaml").write_text(dump(recipe))
    same_model.record(run_dir, recipe.model)
    torch.manual_seed(0)
    ours = learner(model, recipe)
    lines = []
    for step in range(2):
        ours.step(groups(step + 1, REWARDS, version=step), step, step)
        save(ours, run_dir, step + 1, recipe)
        lines.append(json.dumps({"step": step, "reward/mean": step + 0.25, "completion/tokens_mean": 7.0}))
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return run_dir, ours


def save(ours: Learner, run_dir: Path, step: int, recipe: Recipe) -> None:
    part = atomic.begin(run_dir / "checkpoints", step)
    files.write(ours.state(), part / "trainer", 0)
    ours.export(files.read(part / "trainer", "model."), part / "model", getattr(torch, recipe.weights.dtype))
    AutoTokenizer.from_pretrained(recipe.model).save_pretrained(part / "model")
    atomic.commit(part)
