"""A trainer backend that is not in the package: a table of bigrams, trained by REINFORCE with its gradient by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from asyncrl.errors import RunFailed
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.backend import Setup, StepReport, TrainerBackend
from asyncrl.weights.shards import Held, Shard

SIZE = 512


class Table(TrainerBackend):
    """log pi(t | s) = log softmax(table[s])[t]."""

    def __init__(self, setup: Setup) -> None:
        self.rate = setup.recipe.trainer.learning_rate
        self.table, self.steps = torch.zeros(SIZE, SIZE), torch.zeros(1)
        self.before_update = lambda: None

    @staticmethod
    def trained_shapes(model: str, recipe: Recipe) -> dict[str, tuple[int, ...]]:
        return {"table": (SIZE, SIZE)}

    def step(self, groups: list[Group], step: int, min_version: int) -> StepReport:
        gradient, ages = torch.zeros_like(self.table), []
        for group in groups:
            mean = np.mean([t.reward for t in group.trajectories])
            for trajectory in group.trajectories:
                for place in np.flatnonzero(trajectory.loss_mask):
                    before, token = trajectory.tokens[place - 1] % SIZE, trajectory.tokens[place] % SIZE
                    gradient[before] -= (trajectory.reward - mean) * self.table[before].softmax(0)
                    gradient[before, token] += trajectory.reward - mean
                    ages.append(step - trajectory.versions[place])
        self.before_update()
        self.table += self.rate * gradient
        self.steps += 1
        metrics = {"trainer/grad_norm": float(gradient.norm()), "trainer/loss": 0.0}
        return StepReport(metrics, len(ages), len(ages), tuple(np.bincount(ages).tolist()))

    def weight_shards(self) -> list[Held]:
        return [Held(self.table, (Shard("table", (SIZE, SIZE), (0, 0), (SIZE, SIZE)),))]

    def state(self) -> dict[str, torch.Tensor]:
        return {"model.table": self.table, "steps": self.steps}

    def restore(self, tensors: Mapping[str, Any]) -> None:
        self.table.copy_(tensors["model.table"][...])
        self.steps.copy_(tensors["steps"][...])

    def export(self, state: Mapping[str, Any], folder: Path, dtype: torch.dtype) -> None:
        folder.mkdir()
        save_file({"table": state["model.table"][...].to(dtype)}, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"model_type": "table"}))

    def compare_export(
        self, state: Mapping[str, Any], folder: Path, expected: list[float], text: list[int], dtype: torch.dtype
    ) -> None:
        if not torch.equal(load_file(folder / "model.safetensors")["table"], state["model.table"][...].to(dtype)):
            raise RunFailed(f"{folder} holds another table")

    def score(self, tokens: list[int]) -> list[float]:
        places = torch.tensor(tokens) % SIZE
        return self.table.log_softmax(1)[places[:-1], places[1:]].tolist()
