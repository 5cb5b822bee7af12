"""Waits end at their deadline, are logged at doubling ages, and leave the registry. Time is virtual."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.errors import DeadlineExceeded, RunFailed
from asyncrl.runtime import waiting
from asyncrl.runtime.waiting import WaitingFor


class Time:
    """Stands still but for `wait`, which takes exactly its timeout unless the future ends in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ends: dict[float, asyncio.Future[Any]] = {}

    async def wait(self, futures: Iterable[asyncio.Future[Any]], timeout: float) -> None:  # noqa: ASYNC109
        assert timeout >= 0
        until = self.now + timeout
        due = [at for at, future in self.ends.items() if at <= until and future in futures]
        self.now = min([until, *due])
        for at in due:
            self.ends.pop(at).set_result(at)
        await asyncio.sleep(0)


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    time = Time()
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: time.now))
    monkeypatch.setattr(waiting, "asyncio", SimpleNamespace(wait=time.wait, ensure_future=asyncio.ensure_future))
    return time


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 20)

    return asyncio.run(bounded())


async def never() -> None:
    await asyncio.get_running_loop().create_future()


def test_the_deadline_names_whom_and_what(time: Time) -> None:
    waits = WaitingFor(warn_s=1e9)
    with pytest.raises(DeadlineExceeded, match=re.escape("waited 30 s for generator 2: the weights of version 7")):
        run(waits(never(), "generator 2", "the weights of version 7", 30))
    assert time.now == 1030
    assert waits.oldest(9) == []
    assert issubclass(DeadlineExceeded, RunFailed)


def test_what_was_waited_for_is_cancelled_at_the_deadline(time: Time) -> None:
    async def scenario() -> bool:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(DeadlineExceeded):
            await WaitingFor(1e9)(future, "w", "x", 5)
        return future.cancelled()

    assert run(scenario())


def test_warnings_come_at_the_age_and_at_each_doubling(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, waiting.__name__)
    with pytest.raises(DeadlineExceeded):
        run(WaitingFor(warn_s=10)(never(), "trainer", "a batch", 100))
    # The text as it was handled: a record put into words later would show a later age.
    lines = caplog.text.splitlines()
    assert len(lines) == 4
    for line, age in zip(lines, (10, 20, 40, 80), strict=True):
        assert line.endswith(f"still waiting for trainer: a batch, for {age} s of 100 s")


def test_a_short_wait_is_not_logged(time: Time, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> Any:
        time.ends[1009.0] = future = asyncio.get_running_loop().create_future()
        return await WaitingFor(warn_s=10)(future, "w", "x", 100)

    assert run(scenario()) == 1009.0
    assert caplog.records == []


def test_a_result_after_warnings_and_before_the_deadline_is_passed(time: Time, caplog: Any) -> None:
    waits = WaitingFor(warn_s=10)

    async def scenario() -> Any:
        time.ends[1099.0] = future = asyncio.get_running_loop().create_future()
        return await waits(future, "w", "x", 100)

    assert run(scenario()) == 1099.0
    assert len(caplog.records) == 4
    assert waits.oldest(9) == []


def test_a_coroutines_result_is_passed() -> None:
    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    waits = WaitingFor(warn_s=60)
    assert run(waits(answer(), "w", "x", 60)) == 42
    assert waits.oldest(9) == []


def test_a_coroutines_exception_is_passed() -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("lost")

    waits = WaitingFor(warn_s=60)
    with pytest.raises(KeyError, match="lost"):
        run(waits(fail(), "w", "x", 60))
    assert waits.oldest(9) == []


def test_cancelling_the_wait_cancels_what_it_waits_for() -> None:
    waits = WaitingFor(warn_s=60)

    async def scenario() -> bool:
        future = asyncio.get_running_loop().create_future()
        wait = asyncio.create_task(waits(future, "w", "x", 60))
        await asyncio.sleep(0)
        assert waits.oldest(9)
        wait.cancel()
        with pytest.raises(asyncio.CancelledError):
            await wait
        return future.cancelled()

    assert run(scenario())
    assert waits.oldest(9) == []


def test_oldest_lists_the_longest_waits_first(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: now))
    waits = WaitingFor(warn_s=1e6)

    async def scenario() -> None:
        nonlocal now
        tasks = []
        for whom in ("a", "b", "c"):
            tasks.append(asyncio.create_task(waits(never(), whom, "x", 1000)))
            await asyncio.sleep(0)
            now += 10
        assert waits.oldest(2) == ["a: x, for 30 s of 1000 s", "b: x, for 20 s of 1000 s"]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario())
    assert waits.oldest(9) == []
