from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from asyncrl.recipe import cores
from asyncrl.recipe.cores import SPIN, engine_cores, trainer_threads, usable_cores
from asyncrl.recipe.load import load

RECIPE = Path(__file__).parents[2] / "recipes/tiny.yaml"


@pytest.mark.parametrize(
    ("number", "settings", "list_of_cores", "threads"),
    [
        (8, "max_staleness=1", "0,1,2,3", 4),
        (8, "max_staleness=1 trainer.ranks=2", "0,1,2,3", 2),
        (7, "max_staleness=1", "0,1,2", 4),
        (2, "max_staleness=1 trainer.ranks=4", "0", 1),
        (1, "max_staleness=1", "0", 1),
        (8, "max_staleness=0 on_stale=drop", "0,1,2,3,4,5,6,7", 8),
        (8, "max_staleness=1 rollout.gpus_per_replica=1", "0,1,2,3,4,5,6,7", 8),
        (8, "max_staleness=1 trainer.gpus_per_rank=1", "0,1,2,3,4,5,6,7", 8),
        (8, "max_staleness=1 rollout.engine=data", "0,1,2,3,4,5,6,7", 8),
        (8, "max_staleness=1 rollout.cpu_cores=5,7 trainer.cpu_threads=3", "5,7", 3),
    ],
)
def test_roles_side_by_side_share_the_cores(
    monkeypatch: pytest.MonkeyPatch, number: int, settings: str, list_of_cores: str, threads: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(number)), raising=False)
    recipe = load(RECIPE, settings.split())
    assert (engine_cores(recipe), trainer_threads(recipe)) == (list_of_cores, threads)


@pytest.mark.parametrize(
    ("number", "engines", "expected"),
    [(8, 2, ["0,1", "2,3"]), (8, 3, ["0", "1", "2"]), (4, 3, ["0", "1", "0"]), (2, 2, ["0", "0"])],
)
def test_engines_on_one_machine_have_cores_of_their_own(
    monkeypatch: pytest.MonkeyPatch, number: int, engines: int, expected: list[str]
) -> None:
    """Two teams of threads bound to the same cores wait for each other at the end of every loop."""
    monkeypatch.setattr(cores, "usable_cores", lambda: list(range(number)))
    recipe = load(RECIPE, [])
    assert [engine_cores(recipe, i, engines) for i in range(engines)] == expected


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000\n", [2, 3, 6, 7]),
        ("200000 100000\n", [2, 3]),
        ("150000 100000\n", [2, 3]),
        ("50000 100000\n", [2]),
        ("900000 100000\n", [2, 3, 6, 7]),
        (None, [2, 3, 6, 7]),
    ],
)
def test_cores_are_those_that_the_process_may_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: str | None, expected: list[int]
) -> None:
    """A list from 0 on would pin the engine to cores of others; threads without time make all the others wait."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {7, 2, 6, 3}, raising=False)
    monkeypatch.setattr(cores, "_CPU_MAX", tmp_path / "cpu.max")
    if limit:
        (tmp_path / "cpu.max").write_text(limit)
    assert usable_cores() == expected


def test_the_openmp_that_computes_here_takes_the_spin_count() -> None:
    """By another name, or with another library of OpenMP, it would do nothing, and say nothing."""
    environment = {**os.environ, **SPIN, "OMP_DISPLAY_ENV": "verbose"}
    code = "import torch; torch.ones(9, 9) @ torch.ones(9, 9)"
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=100)
    assert f"GOMP_SPINCOUNT = '{SPIN['GOMP_SPINCOUNT']}'" in ran.stderr
