"""The buffer commits groups to the journal, hands them out, outlives its process, and forgets what nobody needs."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.buffer import log
from asyncrl.buffer.actor import START, Buffer, BufferActor, Cursor, Key
from asyncrl.buffer.log import JournalCorrupt, JournalWriteError
from asyncrl.buffer.records import GROUP, GROUPS_STREAM, groups
from asyncrl.recipe.schema import JournalRecipe
from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode, key_of

RECIPE = JournalRecipe(sync_window_s=0)


def frame(task: int, attempt: int = 0, num_tokens: int = 6) -> bytes:
    rng = np.random.default_rng([task, attempt])
    sampled = np.arange(num_tokens) >= 2
    trajectory = Trajectory(
        rng.integers(0, 50_000, num_tokens).astype(np.int32),
        np.where(sampled, 3, -1).astype(np.int32),
        np.where(sampled, rng.normal(size=num_tokens), 0).astype(np.float32),
        sampled,
        float(rng.normal()),
        "stop",
    )
    return encode(Group(task, attempt, 7 * task, (trajectory, trajectory)))


async def put(buffer: Buffer, *keys: Key) -> None:
    await asyncio.gather(*(buffer.put([key], [frame(*key)]) for key in keys))


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(coroutine, 30)

    return asyncio.run(bounded())


def written(folder: Path) -> list[Key]:
    return [key_of(record.payload) for record in groups(folder)]


def segments(folder: Path) -> list[int]:
    return log.segments(folder, GROUPS_STREAM)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two groups fill a segment."""
    monkeypatch.setattr(log.JournalWriter.__init__, "__defaults__", (len(frame(0)) + 20,))


# -- commit and take


def test_take_gives_the_groups_in_the_order_asked_for_and_keeps_them(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0), (1, 0), (2, 0), (1, 1))
        assert await buffer.take([(2, 0), (1, 1), (0, 0)]) == [frame(2), frame(1, 1), frame(0)]
        assert await buffer.take([(2, 0)]) == [frame(2)]
        assert decode((await buffer.take([(1, 1)]))[0]).attempt == 1
        assert await buffer.holds([(5, 0), (1, 1), (1, 2), (0, 0)]) == [(1, 1), (0, 0)]

    run(scenario())


def test_a_group_that_is_not_here_is_a_key_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0))
        with pytest.raises(KeyError):
            await buffer.take([(0, 0), (0, 1)])

    run(scenario())


def test_a_repeated_put_writes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0), (0, 0), (1, 0))
        await put(buffer, (0, 0), (1, 0))
        again = Buffer(tmp_path, RECIPE)
        await put(again, (1, 0), (0, 0), (2, 0))
        assert written(tmp_path) == [(0, 0), (1, 0), (2, 0)]

    run(scenario())


def test_another_group_under_a_key_takes_the_place_of_the_one_that_the_crash_left(tmp_path: Path) -> None:
    """The task's start was in the control stream that the machine lost; what it is told of now is the new group."""

    async def scenario() -> None:
        await put(Buffer(tmp_path, RECIPE), (0, 0), (1, 0))
        new = frame(0, num_tokens=9)
        for buffer in (Buffer(tmp_path, RECIPE), Buffer(tmp_path, RECIPE)):
            await buffer.put([(0, 0)], [new])
            assert await buffer.take([(0, 0), (1, 0)]) == [new, frame(1)]
            assert [found for _, found in await buffer.since(START, 9, 1)] == [frame(1), new]
        assert written(tmp_path) == [(0, 0), (1, 0), (0, 0)]

    run(scenario())


def test_a_group_is_in_the_file_and_fsynced_once_put_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes_synced: list[int] = []
    real_fsync = os.fsync

    def fsync(file: int) -> None:
        size = os.fstat(file).st_size
        real_fsync(file)
        sizes_synced.append(size)

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        monkeypatch.setattr(os, "fsync", fsync)
        for task in range(3):
            await put(buffer, (task, 0))
            assert sizes_synced[-1] == log.segment_path(tmp_path, GROUPS_STREAM, 0).stat().st_size
            assert written(tmp_path)[-1] == (task, 0)

    run(scenario())


def test_a_group_is_not_held_before_it_is_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `holds` says may be written to the other stream, and must not be the only one to survive."""
    events: list[str] = []
    real_sync = log.JournalWriter.sync

    def sync(writer: log.JournalWriter) -> None:
        real_sync(writer)
        events.append("synced")

    async def scenario() -> None:
        buffer = Buffer(tmp_path, JournalRecipe(sync_window_s=0.05))
        monkeypatch.setattr(log.JournalWriter, "sync", sync)
        putting = asyncio.create_task(buffer.put([(0, 0)], [frame(0)]))
        await asyncio.sleep(0)
        assert written(tmp_path) == [(0, 0)]
        assert events == []
        assert await buffer.holds([(0, 0)]) == [(0, 0)]
        assert events == ["synced"]
        await putting

    run(scenario())


def test_what_a_dead_buffer_left_is_durable_before_it_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that was killed may have handed a group over without an fsync."""
    run(put(Buffer(tmp_path, RECIPE), (0, 0)))
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda file: synced.append(os.readlink(f"/proc/self/fd/{file}")))
    assert run(Buffer(tmp_path, RECIPE).holds([(0, 0)])) == [(0, 0)]
    assert synced[0] == str(log.segment_path(tmp_path, GROUPS_STREAM, 0))


def test_concurrent_puts_share_an_fsync(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, JournalRecipe(sync_window_s=0.2))
        await put(buffer, *((task, 0) for task in range(30)))
        assert buffer._commit.num_syncs == 1

    run(scenario())


def test_a_full_disk_is_said_to_the_caller_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, parts: list[bytes]) -> int:
        raise OSError(28, os.strerror(28))

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "writev", full)
            with pytest.raises(JournalWriteError, match=f"{tmp_path}/groups_000000.log: No space left"):
                await put(buffer, (1, 0))
        assert await buffer.holds([(0, 0), (1, 0)]) == [(0, 0)]
        await put(buffer, (1, 0))
        assert await buffer.take([(1, 0)]) == [frame(1)]

    run(scenario())


# -- built again


@settings(max_examples=20, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), max_size=6), max_size=4))
def test_a_rebuilt_buffer_holds_the_same_groups_bit_for_bit(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[Key]]
) -> None:
    folder = tmp_path_factory.mktemp("journal")

    async def scenario() -> None:
        known: set[Key] = set()
        for keys in lives:
            buffer = Buffer(folder, RECIPE)
            assert await buffer.take(sorted(known)) == [frame(*key) for key in sorted(known)]
            await put(buffer, *keys)
            known |= set(keys)
        asked = [(task, attempt) for task in range(8) for attempt in range(4)]
        assert await Buffer(folder, RECIPE).holds(asked) == sorted(known)

    run(scenario())


@pytest.mark.parametrize("call", ["put", "holds", "take", "since", "release"])
def test_a_damaged_journal_is_said_by_the_first_call(tmp_path: Path, call: str) -> None:
    run(put(Buffer(tmp_path, RECIPE), (0, 0), (1, 0)))
    path = log.segment_path(tmp_path, GROUPS_STREAM, 0)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        arguments = {
            "put": ([(2, 0)], [frame(2)]),
            "holds": ([(0, 0)],),
            "take": ([(0, 0)],),
            "since": (START, 1, 1.0),
            "release": ({}, 0),
        }[call]
        for _ in range(2):
            with pytest.raises(JournalCorrupt, match=f"{path}: the record at offset {17 + len(frame(0))} is damaged"):
                await getattr(buffer, call)(*arguments)

    run(scenario())
    assert segments(tmp_path) == [0], "nothing is written after damage"


def test_damage_that_comes_later_is_said_by_take(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0), (1, 0))
        with log.segment_path(tmp_path, GROUPS_STREAM, 0).open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"\x55")
        with pytest.raises(JournalCorrupt, match="is damaged"):
            await buffer.take([(1, 0)])
        assert await buffer.take([(0, 0)]) == [frame(0)]

    run(scenario())


def test_a_torn_group_was_never_committed_and_can_be_put_again(tmp_path: Path) -> None:
    run(put(Buffer(tmp_path, RECIPE), (0, 0), (1, 0)))
    path = log.segment_path(tmp_path, GROUPS_STREAM, 0)
    os.truncate(path, path.stat().st_size - 1)

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        assert await buffer.holds([(0, 0), (1, 0)]) == [(0, 0)]
        await put(buffer, (1, 0))
        assert await Buffer(tmp_path, RECIPE).take([(0, 0), (1, 0)]) == [frame(0), frame(1)]

    run(scenario())


# -- release


ALL = [(task, attempt) for task in range(6) for attempt in range(3)]


@settings(max_examples=30, deadline=None)
@given(st.sets(st.sampled_from(ALL)), st.dictionaries(st.integers(0, 5), st.integers(0, 2)), st.integers(0, 6))
def test_release_forgets_what_no_recovery_asks_for_and_no_more(
    tmp_path_factory: pytest.TempPathFactory, keys: set[Key], needed: dict[int, int], drawn: int
) -> None:
    folder = tmp_path_factory.mktemp("journal")

    def stays(task: int, attempt: int) -> bool:
        if task >= drawn:  # Drawn after this was said.
            return True
        return task in needed and attempt >= needed[task]

    async def scenario() -> None:
        buffer = Buffer(folder, RECIPE)
        await put(buffer, *sorted(keys))
        await buffer.release(needed, drawn)
        left = [key for key in sorted(keys) if stays(*key)]
        assert await buffer.holds(ALL) == left
        assert await buffer.take(left) == [frame(*key) for key in left]

    run(scenario())


@pytest.mark.usefixtures("small_segments")
def test_a_segment_goes_when_nothing_in_it_is_needed(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        for task in range(7):
            await put(buffer, (task, 0))
        assert written(tmp_path) == [(task, 0) for task in range(7)]
        assert segments(tmp_path) == [0, 1, 2, 3], "0 1 | 2 3 | 4 5 | 6"
        await buffer.release({1: 0, 4: 0, 5: 0, 6: 0}, 7)
        assert segments(tmp_path) == [0, 2, 3]
        await buffer.release({5: 0}, 7)
        assert segments(tmp_path) == [2, 3], "the one being written stays, even if nothing in it is needed"
        await put(buffer, (7, 0), (8, 0))
        await buffer.release({5: 0, 8: 0}, 9)
        assert segments(tmp_path) == [2, 4]
        again = Buffer(tmp_path, RECIPE)
        assert await again.take([(5, 0), (8, 0)]) == [frame(5), frame(8)]
        await again.release({}, 9)
        assert segments(tmp_path) == [again._commit.writer.segment]
        await put(again, (9, 0))
        assert await Buffer(tmp_path, RECIPE).holds([*ALL, (7, 0), (8, 0), (9, 0)]) == [(9, 0)]

    run(scenario())


@pytest.mark.usefixtures("small_segments")
def test_a_group_being_put_during_a_release_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, JournalRecipe(sync_window_s=0.05))
        putting = [asyncio.create_task(put(buffer, (task, 0))) for task in range(5)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(written(tmp_path)) == 5
        await buffer.release({}, 2)
        await asyncio.gather(*putting)
        assert await Buffer(tmp_path, RECIPE).take([(task, 0) for task in (2, 3, 4)]) == [frame(2), frame(3), frame(4)]

    run(scenario())


@pytest.mark.usefixtures("small_segments")
def test_keep_all_deletes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        buffer = Buffer(tmp_path, JournalRecipe(keep="all", sync_window_s=0))
        keys = [(task, 0) for task in range(7)]
        for key in keys:
            await put(buffer, key)
        await buffer.release({}, 7)
        assert segments(tmp_path) == [0, 1, 2, 3]
        assert await buffer.take(keys) == [frame(*key) for key in keys]

    run(scenario())


def test_other_files_of_the_folder_are_left_alone(tmp_path: Path) -> None:
    control = log.JournalWriter(tmp_path, "control")
    control.append(GROUP, b"not a group of the buffer")

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0))
        await buffer.release({}, 1)

    run(scenario())
    assert log.segments(tmp_path, "control") == [0]


# -- consumers with a cursor of their own


async def all_since(buffer: Buffer, cursor: Cursor, most: int) -> list[Key]:
    """Read to the end, `most` at a time."""
    found: list[Key] = []
    while committed := await buffer.since(cursor, most, wait_s=0.01):
        assert len(committed) <= most
        found += [key_of(frame) for _, frame in committed]
        cursor = committed[-1][0]
    return found


@settings(max_examples=20, deadline=None)
@given(st.lists(st.sampled_from(ALL), unique=True), st.integers(1, 5), st.data())
def test_every_consumer_reads_every_group_once_in_the_order_of_the_commits(
    tmp_path_factory: pytest.TempPathFactory, keys: list[Key], most: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")

    async def scenario() -> None:
        buffer = Buffer(folder, RECIPE)
        await put(buffer, *keys)
        order = written(folder)
        assert await all_since(buffer, START, most) == order
        committed = await buffer.since(START, len(ALL), wait_s=0.01)
        for number, (cursor, _) in enumerate(committed):
            reader = data.draw(st.sampled_from([buffer, Buffer(folder, RECIPE)]))
            assert await all_since(reader, cursor, most) == order[number + 1 :], "a cursor outlives the process"
        gone = set(data.draw(st.lists(st.sampled_from(range(6)))))
        await buffer.release({task: 0 for task in range(6) if task not in gone}, 6)
        assert await all_since(buffer, START, most) == [key for key in order if key[0] not in gone]

    run(scenario())


def test_a_consumer_waits_for_the_next_group_until_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync = log.JournalWriter.sync

    def sync(writer: log.JournalWriter) -> None:
        real_sync(writer)
        events.append("synced")

    async def scenario() -> None:
        buffer = Buffer(tmp_path, RECIPE)
        await put(buffer, (0, 0))
        (first, _), *_ = await buffer.since(START, 9, 1.0)
        waiting = [asyncio.create_task(buffer.since(first, 9, 20.0)) for _ in range(2)]
        assert await buffer.since(first, 9, wait_s=0.01) == []
        monkeypatch.setattr(log.JournalWriter, "sync", sync)
        await put(buffer, (1, 0))
        for found in await asyncio.gather(*waiting):
            assert [key_of(frame) for _, frame in found] == [(1, 0)]
        assert events

    run(scenario())


# -- the real actor


@pytest.fixture(scope="module")
def one_cpu(local_ray: Callable[..., None]) -> None:
    local_ray(num_cpus=1)


def process_of_the_buffer(other_than: int = -1) -> psutil.Process:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for process in psutil.Process().children(recursive=True):
            try:
                if (
                    process.cmdline()[:1]
                    and process.cmdline()[0].startswith("ray::Buffer")
                    and process.pid != other_than
                ):
                    return process
            except (psutil.NoSuchProcess, psutil.ZombieProcess):
                continue
        time.sleep(0.05)
    raise AssertionError("no process of the buffer")


@pytest.mark.slow
@pytest.mark.usefixtures("one_cpu")
def test_kill_9_of_the_buffer_loses_no_group_and_writes_none_twice(tmp_path: Path) -> None:
    actor = BufferActor.remote(tmp_path, JournalRecipe())
    keys = [(task, 0) for task in range(20)]
    later = [(task, 0) for task in range(20, 40)]

    def puts(wanted: list[Key]) -> list[ray.ObjectRef]:
        return [actor.put.remote([key], [frame(*key)]) for key in wanted]

    ray.get(puts(keys), timeout=60)
    first = process_of_the_buffer()
    under_way = puts(later)
    os.kill(first.pid, signal.SIGKILL)
    ray.get(under_way, timeout=60)
    second = process_of_the_buffer(other_than=first.pid)
    os.kill(second.pid, signal.SIGKILL)
    ray.get(puts(keys), timeout=60)
    taken = ray.get(actor.take.remote(keys + later), timeout=60)
    assert [bytes(f) for f in taken] == [frame(*key) for key in keys + later]
    assert ray.get(actor.holds.remote(later), timeout=60) == later
    assert sorted(written(tmp_path)) == keys + later
    assert len(segments(tmp_path)) >= 2
    assert process_of_the_buffer().pid not in (first.pid, second.pid)
