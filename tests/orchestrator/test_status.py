"""status.json while something runs, and what a run says in it."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from asyncrl.orchestrator import status
from asyncrl.orchestrator.status import told

DEADLINE_S = 10.0


def test_it_is_told_again_and_again_and_once_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "EVERY_S", 0.01)
    path, shown = tmp_path / "status.json", []
    steps = 0
    third = asyncio.Event()

    def show(now: dict[str, Any]) -> None:
        shown.append(now["steps_done"])
        if len(shown) == 3:
            third.set()

    async def run() -> None:
        nonlocal steps
        async with told(path, lambda: {"steps_done": steps}, show):
            await asyncio.wait_for(third.wait(), DEADLINE_S)
            assert json.loads(path.read_text())["steps_done"] == 0
            steps = 5

    asyncio.run(run())
    assert shown[:3] == [0, 0, 0]
    found = json.loads(path.read_text())
    assert (found["steps_done"], shown[-1]) == (5, 5)
    assert found["time_s"] > 1e9
    assert [p.name for p in tmp_path.iterdir()] == ["status.json"]


def test_the_last_warnings_of_asyncrl_are_in_it(tmp_path: Path) -> None:
    path = tmp_path / "status.json"

    async def run() -> None:
        async with told(path, lambda: {}, lambda _: None):
            logging.getLogger("asyncrl.orchestrator.fleet").warning("%s is lost", "generator-0")
            logging.getLogger("asyncrl.orchestrator.fleet").info("not this")
            for number in range(30):
                logging.getLogger("another").warning("not this %d", number)
        logging.getLogger("asyncrl").warning("nor this")

    asyncio.run(run())
    ((when, text),) = json.loads(path.read_text())["log"]
    assert text == "generator-0 is lost"
    assert when > 1e9


def test_a_disk_that_takes_nothing_ends_no_run_and_hides_no_error(tmp_path: Path) -> None:
    async def run() -> None:
        async with told(tmp_path / "missing" / "status.json", lambda: {}, lambda _: None):
            raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        asyncio.run(run())
