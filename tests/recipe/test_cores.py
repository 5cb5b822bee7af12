from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncrl.recipe.cores import engine_cores, trainer_threads
from asyncrl.recipe.load import load

RECIPE = Path(__file__).parents[2] / "recipes/tiny.yaml"


@pytest.mark.parametrize(
    ("number", "settings", "cores", "threads"),
    [
        (8, "max_staleness=1", "0-3", 4),
        (8, "max_staleness=1 trainer.ranks=2", "0-3", 2),
        (7, "max_staleness=1", "0-2", 4),
        (2, "max_staleness=1 trainer.ranks=4", "0-0", 1),
        (1, "max_staleness=1", "0-0", 1),
        (8, "max_staleness=0 over_age=drop", "0-7", 8),
        (8, "max_staleness=1 rollout.gpus_per_replica=1", "0-7", 8),
        (8, "max_staleness=1 trainer.gpus_per_rank=1", "0-7", 8),
        (8, "max_staleness=1 rollout.cpu_cores=5,7 trainer.cpu_threads=3", "5,7", 3),
    ],
)
def test_roles_side_by_side_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, number: int, settings: str, cores: str, threads: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: number)
    recipe = load(RECIPE, settings.split())
    assert (engine_cores(recipe), trainer_threads(recipe)) == (cores, threads)
