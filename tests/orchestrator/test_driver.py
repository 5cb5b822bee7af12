"""The driver against groups that do not end, on an event loop with a clock of its own."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import pytest
from test_interleavings import check, recipe_of
from world import Plan, World


@pytest.mark.parametrize(("endless", "lost"), [({1}, []), ({0, 1, 2, 3}, ["generator-0", "generator-1"])])
def test_a_slow_group_fails_and_a_generator_that_finishes_none_is_replaced(
    endless: set[int], lost: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = recipe_of(deadlines={"rollout_s": 300})
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder, caplog.at_level(logging.WARNING):
        world = World(recipe, Path(folder) / "run", Plan(), monkeypatch)
        world.endless = endless
        if lost:
            # It is the engines that hang: the ones that take their place get through.
            create = world.create_generator

            def created(name: str, buffer: object) -> object:
                if name in world.generators:
                    world.endless = set()
                return create(name, buffer)

            monkeypatch.setattr(world, "create_generator", created)
        driver = world.live()
        check(world, driver)
    assert sorted({m.split()[0] for m in caplog.messages if " is lost (" in m}) == lost
    slow = [m for m in caplog.messages if "not done in 300 s (deadlines.rollout_s), while generator-" in m]
    assert len(slow) == driver.controller.ledger.failed == (0 if lost else 1)
