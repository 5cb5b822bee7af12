"""A run goes on to its end wherever it is called from."""

from __future__ import annotations

import asyncio
import threading

import pytest

from asyncrl.cluster import ray_cluster
from asyncrl.orchestrator.loop import complete


async def where() -> threading.Thread:
    await asyncio.sleep(0)
    return threading.current_thread()


def test_without_a_loop_it_is_this_threads() -> None:
    assert complete(where()) is threading.current_thread()


def test_beside_a_running_loop_it_has_a_thread_of_its_own() -> None:
    async def cell() -> threading.Thread:
        return complete(where())

    assert asyncio.run(cell()) is not threading.current_thread()


def test_an_error_comes_out_of_either() -> None:
    async def fails() -> None:
        raise ValueError("gone")

    async def cell() -> None:
        complete(fails())

    for run in (lambda: complete(fails()), lambda: asyncio.run(cell())):
        with pytest.raises(ValueError, match="gone"):
            run()


def test_an_interrupt_lets_it_clean_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a notebook's stop button does it: in the thread that waits."""
    done: list[str] = []
    began = threading.Event()

    async def forever() -> None:
        began.set()
        try:
            await asyncio.sleep(60)
        finally:
            done.append("cleaned up")

    def interrupted(*_: object) -> None:
        began.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr("concurrent.futures.Future.result", interrupted)

    async def cell() -> None:
        with pytest.raises(KeyboardInterrupt):
            complete(forever())

    asyncio.run(cell())
    assert done == ["cleaned up"]


def test_a_wait_ends_when_ray_has_died(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "_WATCH_S", 0.01)
    answers = iter([None, None, "the Ray node of the driver has died"])
    monkeypatch.setattr(ray_cluster, "death", lambda: next(answers))

    async def run() -> None:
        async with ray_cluster.watched("asyncrl resume runs/mine"):
            await asyncio.sleep(60)

    with pytest.raises(ray_cluster.ClusterDied) as error:
        asyncio.run(run())
    assert str(error.value) == (
        "the Ray node of the driver has died, and with it all actors of the run; `asyncrl resume runs/mine` goes on"
    )


def test_a_cancelled_wait_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "death", lambda: None)

    async def run() -> None:
        async with ray_cluster.watched("asyncrl resume runs/mine"):
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(run())
