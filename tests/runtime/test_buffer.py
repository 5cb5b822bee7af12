"""The buffer keeps, hands out and forgets encoded groups, and journals what happened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from asyncrl.journal.log import GROUP, LEASE, read
from asyncrl.runtime.buffer import Buffer


def journal(folder: Path) -> list[tuple[int, object]]:
    return [(r.kind, r.payload if r.kind == GROUP else msgspec.msgpack.decode(r.payload)) for r in read(folder)]


def test_take_gives_the_frames_in_the_order_asked_for_and_keeps_them(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 4)
    for task in range(3):
        buffer.put(task, 0, b"frame %d" % task)
    assert buffer.take(1, [(2, 0), (0, 0)]) == [b"frame 2", b"frame 0"]
    assert buffer.take(2, [(0, 0)]) == [b"frame 0"]


def test_attempts_of_one_task_are_different_groups(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 4)
    buffer.put(0, 0, b"first")
    buffer.put(0, 1, b"second")
    buffer.drop([(0, 0)])
    assert buffer.take(0, [(0, 1)]) == [b"second"]
    with pytest.raises(KeyError):
        buffer.take(0, [(0, 0)])


def test_over_capacity_is_an_error_that_keeps_what_there_is(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 2)
    buffer.put(0, 0, b"a")
    buffer.put(1, 0, b"b")
    with pytest.raises(RuntimeError, match="holds 2 groups already; task 7"):
        buffer.put(7, 0, b"c")
    assert journal(tmp_path) == [(GROUP, b"a"), (GROUP, b"b")]
    assert buffer.take(0, [(0, 0), (1, 0)]) == [b"a", b"b"]
    buffer.drop([(0, 0)])
    buffer.put(7, 0, b"c")
    assert buffer.take(1, [(7, 0)]) == [b"c"]


def test_unknown_groups_are_dropped_without_a_word(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 1)
    buffer.put(0, 0, b"a")
    buffer.drop([(5, 0), (0, 1)])
    assert buffer.take(0, [(0, 0)]) == [b"a"]


def test_the_journal_has_groups_and_leases_in_the_order_they_happened(tmp_path: Path) -> None:
    buffer = Buffer(tmp_path, 4)
    buffer.put(3, 0, b"three")
    buffer.put(4, 1, b"four")
    buffer.take(0, [(4, 1), (3, 0)])
    buffer.drop([(4, 1), (3, 0)])
    buffer.put(5, 0, b"five")
    # Read while the buffer lives: a group is in the journal once `put` has returned.
    assert journal(tmp_path) == [(GROUP, b"three"), (GROUP, b"four"), (LEASE, [0, [[4, 1], [3, 0]]]), (GROUP, b"five")]


def test_a_restarted_buffer_begins_empty_and_goes_on_in_a_new_segment(tmp_path: Path) -> None:
    Buffer(tmp_path, 1).put(0, 0, b"a")
    again = Buffer(tmp_path, 1)
    again.put(1, 0, b"b")
    assert journal(tmp_path) == [(GROUP, b"a"), (GROUP, b"b")]
    assert len(list(tmp_path.iterdir())) == 2
