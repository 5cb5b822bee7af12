"""A role that sees another run directory than the driver says so before it loads anything."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.buffer.actor import Buffer
from asyncrl.errors import UserError
from asyncrl.recipe.schema import JournalRecipe, Recipe
from asyncrl.rollout.generator import Generator
from asyncrl.storage import sight
from asyncrl.storage.sight import Sight
from asyncrl.trainer.actor import TrainerActor

RECIPE = Recipe.model_validate({"model": "x", "data": {"path": "x"}, "reward": "x", "max_steps": 1})


@pytest.fixture
def driver(tmp_path: Path) -> Sight:
    (tmp_path / "run").mkdir()
    return Sight.begin(tmp_path / "run")


@pytest.fixture(params=["missing", "empty", "of an earlier run"])
def elsewhere(request: pytest.FixtureRequest, driver: Sight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sight:
    """What an actor gets whose node has something else at that path."""
    monkeypatch.setattr(sight, "_PATIENCE_S", 0.0)
    other = tmp_path / "other"
    if request.param != "missing":
        other.mkdir()
    if request.param == "of an earlier run":
        Sight.begin(other)
    return replace(driver, run_dir=other, host="head")


def test_the_same_directory_by_another_name_will_do(driver: Sight, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(driver.run_dir)
    replace(driver, run_dir=tmp_path / "link").require("trainer rank 1")


def test_a_disk_that_shows_it_late_will_do(driver: Sight, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sight, "_POLL_S", 0.01)
    threading.Timer(0.05, lambda: driver.run_dir.rename(tmp_path / "late")).start()
    replace(driver, run_dir=tmp_path / "late").require("trainer rank 1")


def starts(role: str, seen: Sight, channel: str = "gloo", model: str = "x") -> Any:
    if role == "the buffer":
        return asyncio.run(Buffer(seen.run_dir / "journal", JournalRecipe()).see(seen))
    if role == "trainer rank 1":
        rank = SimpleNamespace(recipe=RECIPE, sight=seen, rank=1)
        return TrainerActor.__ray_metadata__.modified_class.start(rank, None, None, None)
    engine = SimpleNamespace(channel=channel, model=model)
    config = SimpleNamespace(engine_config=engine, sight=seen, name=role)
    return asyncio.run(Generator.__ray_metadata__.modified_class.start(SimpleNamespace(config=config)))


@pytest.mark.parametrize("role", ["the buffer", "trainer rank 1", "generator-0"])
def test_who_reads_or_writes_there_must_see_it(role: str, elsewhere: Sight) -> None:
    said = rf"run_dir: {role}, on node \S+, does not see {elsewhere.run_dir} of the driver, on head; set run_dir to"
    with pytest.raises(UserError, match=said):
        starts(role, elsewhere, channel="disk")
    assert not any(path.is_dir() for path in elsewhere.run_dir.glob("*")), "nothing is written there"


def test_so_must_a_generator_whose_model_is_there(elsewhere: Sight) -> None:
    with pytest.raises(UserError, match="generator-0"):
        starts("generator-0", elsewhere, model=str(elsewhere.run_dir / "initial_model"))
