"""A holder keeps its own copy of the newest two versions, and gives out nothing that is damaged."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.checkpoint.holder import Holder, Shard, crc


def shard(content: bytes, attempt: str = "a", index: int = 0) -> Shard:
    data = np.frombuffer(content, dtype=np.uint8)
    return Shard(attempt, index, data, crc(data), {"num_bytes": len(content), "tensors": {}})


def holder_of(*versions: int) -> Holder:
    holder = Holder()
    for version in versions:
        assert holder.put(version, shard(b"version %d" % version, attempt=f"attempt {version}"))
    return holder


def test_what_is_put_is_got() -> None:
    given_shard = shard(b"weights", "attempt", 2)
    holder = Holder()
    holder.put(5, given_shard)
    got = holder.get(5)
    assert got is not None
    assert (got.attempt, got.index, got.crc, got.layout) == ("attempt", 2, given_shard.crc, given_shard.layout)
    assert got.data.tobytes() == b"weights"
    assert holder.get(4) is None
    assert holder.versions() == {5: "attempt"}


def test_the_copy_is_its_own() -> None:
    data = np.frombuffer(bytearray(b"weights"), dtype=np.uint8)
    holder = Holder()
    holder.put(0, Shard("a", 0, data, crc(data), {}))
    data[:] = 0
    got = holder.get(0)
    assert got is not None
    assert got.data.tobytes() == b"weights"


def test_the_newest_two_are_kept() -> None:
    holder = holder_of(1, 2, 5)
    assert holder.versions() == {2: "attempt 2", 5: "attempt 5"}


@pytest.mark.parametrize(("again", "left"), [(5, {2, 5}), (3, {2, 3}), (2, {2}), (1, {1})])
def test_a_version_put_again_drops_what_came_after_it(again: int, left: set[int]) -> None:
    holder = holder_of(1, 2, 5)
    holder.put(again, shard(b"new", attempt="new"))
    assert set(holder.versions()) == left
    assert holder.versions()[again] == "new"


@given(versions=st.lists(st.integers(0, 6), min_size=1, max_size=12))
def test_the_last_put_is_always_held_and_is_the_newest(versions: list[int]) -> None:
    held = sorted(holder_of(*versions).versions())
    assert held[-1] == versions[-1]
    assert len(held) <= 2


@given(content=st.binary(min_size=1, max_size=50), data=st.data())
def test_a_damaged_shard_counts_as_missing(content: bytes, data: st.DataObject) -> None:
    holder = Holder()
    holder.put(1, shard(b"whole"))
    holder.put(2, shard(content))
    got = holder.get(2)
    assert got is not None
    got.data[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert holder.get(2) is None
    assert holder.versions() == {1: "a"}


def test_a_shard_damaged_on_its_way_counts_as_missing() -> None:
    holder, sent = Holder(), shard(b"weights")
    holder.put(1, Shard(sent.attempt, sent.index, shard(b"wEights").data, sent.crc, sent.layout))
    assert holder.get(1) is None
    assert holder.versions() == {}


def test_an_empty_shard_is_a_shard() -> None:
    holder = Holder()
    holder.put(1, shard(b""))
    assert holder.versions() == {1: "a"}
