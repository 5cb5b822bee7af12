"""Waits end at their deadline, are logged at doubling ages, and leave the registry. Time is virtual."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from asyncrl.errors import DeadlineExceeded, RunFailed
from asyncrl.orchestrator import waiting
from asyncrl.orchestrator.waiting import WaitingFor


class Time:
    """Stands still but for `wait`, which takes exactly its timeout unless the future ends in it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.ends: dict[float, asyncio.Future[Any]] = {}

    def asyncio(self) -> SimpleNamespace:
        return SimpleNamespace(wait=self.wait, wait_for=asyncio.wait_for, ensure_future=asyncio.ensure_future)

    async def wait(self, futures: Iterable[asyncio.Future[Any]], timeout: float) -> None:  # noqa: ASYNC109
        assert timeout >= 0
        # What is ready to run does so before time goes on.
        await asyncio.sleep(0)
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
    monkeypatch.setattr(waiting, "asyncio", time.asyncio())
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


# -- other waits


async def together(waits: WaitingFor, time: Time, *others: tuple[str, str, float]) -> str:
    """Starts the others at their times, then a wait of 5 s for w; returns the sentence that this one ends in."""
    tasks = []
    for whom, what, at in others:
        time.now = at
        tasks.append(asyncio.create_task(waits(never(), whom, what, 1e6)))
        await asyncio.sleep(0)
    time.now = 1100.0
    with pytest.raises(DeadlineExceeded) as caught:
        await waits(never(), "w", "x", 5)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return str(caught.value)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    """A clock that only the test moves, but for the wait for w, which is over at once."""
    clock = Time()

    async def wait(futures: Iterable[asyncio.Future[Any]], timeout: float) -> None:  # noqa: ASYNC109
        if timeout <= 5:
            clock.now += timeout
        else:
            await asyncio.wait(futures)

    monkeypatch.setattr(clock, "wait", wait)
    monkeypatch.setattr(waiting, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(waiting, "asyncio", clock.asyncio())
    return clock


def test_the_error_names_the_three_longest_of_the_other_waits_that_are_old(clock: Time) -> None:
    others = [("a", "p", 1000), ("b", "q", 1010), ("c", "r", 1020), ("d", "s", 1030), ("e", "t", 1099)]
    text = run(together(WaitingFor(warn_s=30), clock, *others))
    assert text == "waited 5 s for w: x; meanwhile waiting for a (p, 105 s), b (q, 95 s), c (r, 85 s)"


def test_the_error_names_no_young_wait_and_not_itself(clock: Time) -> None:
    assert run(together(WaitingFor(warn_s=30), clock, ("a", "p", 1090))) == "waited 5 s for w: x"
    assert run(together(WaitingFor(warn_s=1), clock)) == "waited 5 s for w: x"


def test_dump_writes_all_waits_oldest_first(tmp_path: Path, clock: Time) -> None:
    path = tmp_path / "waiting.txt"
    waits = WaitingFor(warn_s=1e9)

    async def scenario() -> None:
        tasks = []
        for whom, what in (("trainer", "step 3"), ("generator-0", "task\n7"), ("disk", "room")):
            tasks.append(asyncio.create_task(waits(never(), whom, what, 600)))
            await asyncio.sleep(0)
            clock.now += 10
        text = waits.dump(path)
        assert text.splitlines() == [
            "trainer: step 3, for 30 s of 600 s",
            "generator-0: task 7, for 20 s of 600 s",
            "disk: room, for 10 s of 600 s",
        ]
        assert path.read_text() == text
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    run(scenario())
    assert waits.dump(path) == path.read_text() == ""
    assert list(tmp_path.iterdir()) == [path]


# -- the callback


def test_on_overdue_is_called_at_the_warning_age_and_at_the_deadline(time: Time) -> None:
    calls: list[tuple[str, float, list[str]]] = []
    waits = WaitingFor(10, lambda whom: calls.append((whom, time.now, waits.oldest(9))))
    with pytest.raises(DeadlineExceeded):
        run(waits(never(), "trainer", "a batch", 100))
    assert calls == [
        ("trainer", 1010, ["trainer: a batch, for 10 s of 100 s"]),
        ("trainer", 1100, ["trainer: a batch, for 100 s of 100 s"]),
    ]


def test_an_awaitable_on_overdue_is_over_before_the_error() -> None:
    over = []

    async def look(whom: str) -> None:
        await asyncio.sleep(0.1)
        over.append(whom)

    async def scenario() -> None:
        with pytest.raises(DeadlineExceeded):
            await WaitingFor(0.01, look)(never(), "w", "x", 0.02)
        assert over == ["w", "w"]

    run(scenario())


def test_a_wait_that_ends_in_time_is_never_overdue() -> None:
    calls: list[str] = []
    assert run(WaitingFor(60, calls.append)(asyncio.sleep(0, 1), "w", "x", 90)) == 1
    assert calls == []


@pytest.mark.parametrize("kind", ["raises", "raises later"])
def test_an_on_overdue_that_fails_is_logged_and_hides_nothing(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    def fail(whom: str) -> Any:
        async def later() -> None:
            await asyncio.sleep(0)
            raise KeyError("no stacks")

        if kind == "raises later":
            return later()
        raise KeyError("no stacks")

    with pytest.raises(DeadlineExceeded, match="waited 0 s for w: x"):
        run(WaitingFor(0.01, fail)(never(), "w", "x", 0.02))
    assert len(re.findall("looking into w, .* failed: KeyError: 'no stacks'", caplog.text)) == 2


@pytest.mark.parametrize("stubborn", [False, True])
def test_an_on_overdue_that_hangs_holds_up_neither_result_nor_error(
    stubborn: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stubborn: it does not let itself be cancelled."""
    monkeypatch.setattr(waiting, "_OVERDUE_S", 0.05)

    over = False

    async def hang(whom: str) -> None:
        while not over:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if not stubborn:
                    raise

    async def scenario() -> None:
        nonlocal over
        waits = WaitingFor(0.01, hang)
        try:
            assert await asyncio.wait_for(waits(asyncio.sleep(0.03, "result"), "w", "x", 60), 10) == "result"
            with pytest.raises(DeadlineExceeded):
                await asyncio.wait_for(waits(never(), "w", "x", 0.02), 10)
        finally:
            over = True

    run(scenario())
