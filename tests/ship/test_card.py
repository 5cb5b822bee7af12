"""The model card says what a model was trained by, and has the curve of that."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from asyncrl.recipe.schema import Recipe
from asyncrl.ship.card import card
from asyncrl.ship.wish import Wish

RL = {"reward": "./rewards.py:reward"}
TEACHER = {"teacher": {"model": "org/teacher"}}
DATA = {"rollout": {"engine": "data"}}
SFT = {"sft": {"data": {"path": "org/talks"}, "rows_per_step": 8}}


@pytest.mark.parametrize(
    ("keys", "figures", "tags", "said", "column"),
    [
        (RL, {"reward/mean": 0.5}, ["reinforcement-learning"], "reinforcement learning", "mean reward"),
        (DATA, {"sft/perplexity": 0.5}, ["sft"], "supervised fine-tuning on demonstrations", "perplexity"),
        (
            {**DATA, "algorithm": {"loss": "dpo", "beta": 0.1}},
            {"pairs/accuracy": 0.5},
            ["dpo"],
            "preference optimization (DPO) on pairs of answers",
            "share of pairs in which it is preferred",
        ),
        (
            {"algorithm": TEACHER},
            {"distil/kl": 0.5},
            ["on-policy-distillation"],
            "on-policy distillation from org/teacher",
            "reverse KL from the teacher",
        ),
        (
            {**RL, "algorithm": {**TEACHER, **SFT}},
            {"sft/nll": 0.5},
            ["reinforcement-learning", "on-policy-distillation", "sft"],
            "reinforcement learning and on-policy distillation from org/teacher and supervised fine-tuning on "
            "demonstrations beside it",
            "loss of the demonstrations, nats a token",
        ),
    ],
)
def test_it_says_what_the_model_was_trained_by(
    keys: dict[str, Any], figures: dict[str, float], tags: list[str], said: str, column: str, tmp_path: Path
) -> None:
    recipe = Recipe.model_validate({"model": "org/base", "data": {"path": "org/rows"}, "max_steps": 4, **keys})
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, **figures}) + "\n")
    text = card(tmp_path, recipe, 1, Wish(1), torch.bfloat16)
    assert f"tags: {json.dumps(['asyncrl', *tags])}\n" in text
    assert f"\norg/base, trained by {said} with asyncrl.\n" in text
    assert f"| step | {column} |\n| --- | --- |\n| 1 | 0.5 |\n" in text
    assert ("reinforcement" in text) == ("reward" in keys)
    assert ("max_staleness" in text) != recipe.from_data
