"""Actors' warnings are said by the driver, and no actor holds anyone up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError

from asyncrl.observe.relay import Notice
from asyncrl.orchestrator import notices
from asyncrl.orchestrator.notices import Notices

Answer = Callable[[], Coroutine[Any, Any, list[Notice]]]


class Handle:
    """Stands for an actor: answers as it is told to."""

    def __init__(self, answer: Answer) -> None:
        self.take_notices = self
        self.num_calls, self._answer = 0, answer

    def remote(self) -> Coroutine[Any, Any, list[Notice]]:
        self.num_calls += 1
        return self._answer()


def saying(*answers: list[Notice] | Exception) -> Handle:
    """One after another, then nothing."""
    left = list(answers)

    async def answer() -> list[Notice]:
        now = left.pop(0) if left else []
        if isinstance(now, Exception):
            raise now
        return now

    return Handle(answer)


async def hang() -> list[Notice]:
    await asyncio.sleep(3600)
    raise AssertionError


def said(actors: dict[str, Handle], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> list[str]:
    monkeypatch.setattr(notices, "EVERY_S", 0.01)
    monkeypatch.setattr(notices, "_LAST_S", 0.2)

    async def run() -> None:
        asked = Notices()
        for name, handle in actors.items():
            asked.of(name, handle)  # type: ignore[arg-type]
        async with asked.said():
            await asyncio.sleep(0.1)

    with caplog.at_level(logging.WARNING, logger="asyncrl"):
        asyncio.run(run())
    return [record.getMessage() for record in caplog.records]


def warning(text: str) -> Notice:
    return Notice(logging.WARNING, text)


def test_each_is_said_with_the_actors_name(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    actors = {"trainer": saying([warning("slow")], [], [Notice(logging.ERROR, "bad")]), "buffer": saying()}
    assert said(actors, monkeypatch, caplog) == ["trainer: slow", "trainer: bad"]
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]


def test_a_hanging_one_is_asked_once_and_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    stuck = Handle(hang)
    assert said({"a": stuck, "b": saying([warning("x")])}, monkeypatch, caplog) == ["b: x"]
    assert stuck.num_calls == 1


def test_one_that_is_away_is_asked_again_and_a_dead_one_is_not(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = saying(ActorUnavailableError("restarts", b"0" * 16), [warning("back")])
    dead = saying(ActorDiedError(), [warning("never")])
    assert said({"away": away, "dead": dead}, monkeypatch, caplog) == ["away: back"]
    assert dead.num_calls == 1


def test_what_many_say_alike_is_said_of_a_few(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = {f"trainer-{i}": saying([warning("slow")]) for i in range(64)}
    found = said(ranks, monkeypatch, caplog)
    assert found == [*(f"trainer-{i}: slow" for i in range(3)), "trainer-9: slow (for the 10th time)"]
