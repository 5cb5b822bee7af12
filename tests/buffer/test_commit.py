"""Nobody is told that a record is durable before an fsync that began after its write has returned."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import subprocess
import sys
import threading
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from asyncrl.buffer.commit import GroupCommit
from asyncrl.buffer.log import JournalWriteError, JournalWriter, read

FOREVER_S = 1000.0
"""A window that only bytes can end within a test."""


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(coroutine, 30)

    asyncio.run(bounded())


async def settle() -> None:
    """Lets everything happen that needs neither time nor a thread."""
    for _ in range(50):
        await asyncio.sleep(0)


class Disk:
    """Stands between a commit and the fsync of its writer: each begins, and then waits until it is let through."""

    def __init__(self, commit: GroupCommit) -> None:
        self._sync, self._loop = commit.writer.sync, asyncio.get_running_loop()
        self._begun: asyncio.Queue[float] = asyncio.Queue()
        self._let = threading.Semaphore(0)
        self.error: Exception | None = None
        commit.writer.sync = self._blocking  # type: ignore[method-assign]

    def _blocking(self) -> None:
        self._loop.call_soon_threadsafe(self._begun.put_nowait, self._loop.time())
        assert self._let.acquire(timeout=20)
        if self.error is not None:
            raise self.error
        self._sync()

    async def begins(self) -> float:
        """When the next fsync began."""
        return await self._begun.get()

    @property
    def idle(self) -> bool:
        return self._begun.empty()

    def let(self) -> None:
        self._let.release()


def make(folder: Path, window_s: float = 0.0, window_bytes: int = 2**20, **options: int) -> GroupCommit:
    return GroupCommit(JournalWriter(folder, "s", **options), window_s, window_bytes)


def put(commit: GroupCommit, payload: bytes) -> asyncio.Task[None]:
    commit.write(1, payload)
    return asyncio.create_task(commit.durable())


def payloads(folder: Path) -> list[bytes]:
    return [record.payload for record in read(folder, "s")]


def test_nobody_returns_before_the_fsync(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path)
        disk = Disk(commit)
        puts = [put(commit, b"%d" % n) for n in range(5)]
        await disk.begins()
        assert payloads(tmp_path) == [b"%d" % n for n in range(5)], "handed over before the fsync begins"
        await settle()
        assert not any(task.done() for task in puts)
        disk.let()
        await asyncio.gather(*puts)
        assert commit.num_syncs == 1
        assert disk.idle

    run(scenario())


def test_what_is_written_during_an_fsync_waits_for_the_next(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path)
        disk = Disk(commit)
        first = put(commit, b"first")
        await disk.begins()
        later = [put(commit, b"second"), put(commit, b"third")]
        await settle()
        disk.let()
        await first
        await disk.begins()
        await settle()
        assert not any(task.done() for task in later)
        disk.let()
        await asyncio.gather(*later)
        assert commit.num_syncs == 2

    run(scenario())


def test_those_who_come_within_the_window_share_an_fsync(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path, window_s=0.2)
        disk = Disk(commit)
        loop = asyncio.get_running_loop()
        start = loop.time()
        puts = []
        while loop.time() < start + 0.05:
            puts.append(put(commit, b"x"))
            await asyncio.sleep(0.005)
        assert await disk.begins() >= start + 0.19
        disk.let()
        await asyncio.gather(*puts)
        assert len(puts) > 1
        assert commit.num_syncs == 1

    run(scenario())


def test_bytes_end_the_window_early(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path, window_s=FOREVER_S, window_bytes=100)
        disk = Disk(commit)
        for _ in range(2):  # The second window counts its own bytes only.
            puts = [put(commit, bytes(30)) for _ in range(3)]
            await settle()
            assert disk.idle
            puts.append(put(commit, bytes(10)))
            await disk.begins()
            disk.let()
            await asyncio.gather(*puts)
        assert commit.num_syncs == 2

    run(scenario())


def test_bytes_written_during_an_fsync_end_the_next_window(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path, window_s=FOREVER_S, window_bytes=100)
        disk = Disk(commit)
        first = put(commit, bytes(100))
        await disk.begins()
        second = put(commit, bytes(100))
        disk.let()
        await first
        await disk.begins()
        disk.let()
        await second

    run(scenario())


def test_an_error_reaches_everyone_who_waits_for_that_fsync(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path)
        disk = Disk(commit)
        disk.error = JournalWriteError("the disk is on fire")
        puts = [put(commit, b"x") for _ in range(4)]
        await disk.begins()
        later = put(commit, b"y")
        await settle()
        disk.let()
        outcomes = await asyncio.gather(*puts, return_exceptions=True)
        assert outcomes == [disk.error] * 4
        await disk.begins()
        assert not later.done()
        disk.error = None
        disk.let()
        await later

    run(scenario())


def test_after_a_failed_fsync_nothing_is_durable_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fsync that failed may have been the only one to hear of bytes that were written while it ran."""
    real_fsync, failures = os.fsync, [OSError(errno.EIO, os.strerror(errno.EIO))]

    def fsync(file: int) -> None:
        if failures:
            raise failures.pop()
        real_fsync(file)

    async def scenario() -> None:
        commit = make(tmp_path)
        monkeypatch.setattr(os, "fsync", fsync)
        for _ in range(3):
            with pytest.raises(JournalWriteError, match=r"s_000000.log: Input/output error"):
                await put(commit, b"x")
        assert not failures

    run(scenario())


def test_who_gives_up_waiting_does_not_disturb_the_others(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path)
        disk = Disk(commit)
        impatient, patient = put(commit, b"x"), put(commit, b"y")
        await disk.begins()
        impatient.cancel()
        await settle()
        disk.let()
        await patient
        assert impatient.cancelled()
        disk.let()
        await put(commit, b"z")

    run(scenario())


def test_a_record_that_cannot_be_written_does_not_disturb_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: int, parts: list[bytes]) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def scenario() -> None:
        commit = make(tmp_path)
        before = put(commit, b"before")
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(JournalWriteError, match="No space left"):
                commit.write(1, b"refused")
        await before
        await put(commit, b"after")
        assert payloads(tmp_path) == [b"before", b"after"]

    run(scenario())


def test_segments_may_roll_between_commits(tmp_path: Path) -> None:
    async def scenario() -> None:
        commit = make(tmp_path, segment_bytes=100)
        await asyncio.gather(*(put(commit, b"%d" % n) for n in range(50)))
        assert commit.writer.segment > 5
        assert payloads(tmp_path) == [b"%d" % n for n in range(50)]

    run(scenario())


CHILD = """
import asyncio, itertools, os, sys
from pathlib import Path
from asyncrl.buffer.commit import GroupCommit
from asyncrl.buffer.log import JournalWriter

async def main():
    commit = GroupCommit(JournalWriter(Path(sys.argv[1]), "s", segment_bytes=200_000), 0.002, 30_000)
    numbers = itertools.count(int(sys.argv[2]))

    async def put():
        for number in numbers:
            commit.write(1, number.to_bytes(4, "little") * (1 + number % 1500))
            await commit.durable()
            os.write(1, number.to_bytes(4, "little"))

    await asyncio.gather(*(put() for _ in range(8)))

asyncio.run(main())
"""


def test_everything_acknowledged_outlives_kill_9(tmp_path: Path) -> None:
    rng, acknowledged, first = random.Random(7), set(), 0
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, str(first)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        acks = child.stdout.read(4 * rng.randint(1, 400))
        child.kill()
        acks += child.stdout.read()
        child.stdout.close()
        assert child.wait() == -9
        now = {int.from_bytes(acks[at : at + 4], "little") for at in range(0, len(acks), 4)}
        assert now
        acknowledged |= now
        found = payloads(tmp_path)
        numbers = [int.from_bytes(payload[:4], "little") for payload in found]
        assert numbers == sorted(set(numbers))
        assert acknowledged <= set(numbers)
        assert found == [number.to_bytes(4, "little") * (1 + number % 1500) for number in numbers]
        first = numbers[-1] + 1
    assert len(list(tmp_path.iterdir())) > 6, "some runs rolled"
