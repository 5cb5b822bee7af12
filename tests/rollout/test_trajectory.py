"""The encoding loses nothing and refuses frames that are not whole."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.rollout.trajectory import Group, NoGroup, Trajectory, decode, encode

TOKEN = st.integers(0, 2**31 - 1)
SOME = settings(max_examples=40)
NUMBERS = st.floats(allow_nan=False)


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    token = st.tuples(TOKEN, st.integers(-1, 9), st.floats(width=32), st.booleans())
    columns = list(zip(*draw(st.lists(token, max_size=8)), strict=True)) or [()] * 4
    return Trajectory(
        tokens=np.array(columns[0], np.int32),
        versions=np.array(columns[1], np.int32),
        logprobs=np.array(columns[2], np.float32),
        loss_mask=np.array(columns[3], np.bool_),
        reward=draw(st.none() | NUMBERS),
        finish_reason=draw(st.sampled_from(["stop", "length", "abort"])),
        extras=draw(st.dictionaries(st.text(max_size=5), NUMBERS, max_size=3)),
        error=draw(st.none() | st.text(max_size=20)),
        member=draw(st.none() | st.integers(0, 9)),
        prompt=draw(st.none() | st.integers(0, len(columns[0]))),
        agent=draw(st.sampled_from(["", "judge"])),
        turns=tuple(draw(st.lists(st.tuples(st.integers(0, 9), st.integers(0, len(columns[0])), NUMBERS), max_size=3))),
        teacher_logprobs=draw(st.none() | st.just(np.array(columns[2], np.float32))),
        teacher_prompt=draw(st.none() | st.lists(TOKEN, min_size=1, max_size=5).map(partial(np.array, dtype=np.int32))),
    )


def groups() -> st.SearchStrategy[Group]:
    counts = st.integers(0, 2**63 - 1)
    members = st.lists(trajectories(), max_size=4).map(tuple)
    return st.builds(Group, counts, counts, counts, members)


def make(versions: list[int], mask: list[bool]) -> Trajectory:
    n = len(versions)
    return Trajectory(
        np.arange(n, dtype=np.int32), np.array(versions, np.int32), np.zeros(n, np.float32), np.array(mask), 1.0, "stop"
    )


@SOME
@given(groups())
def test_round_trip(group: Group) -> None:
    back = decode(encode(group))
    assert (back.task, back.attempt, back.row) == (group.task, group.attempt, group.row)
    assert len(back.trajectories) == len(group.trajectories)
    for got, sent in zip(back.trajectories, group.trajectories, strict=True):
        for name in ("tokens", "versions", "logprobs", "loss_mask"):
            before, after = getattr(sent, name), getattr(got, name)
            assert after.dtype == before.dtype
            np.testing.assert_array_equal(after, before)
        assert (got.reward, got.finish_reason, got.extras, got.error, got.member, got.prompt, got.agent, got.turns) == (
            sent.reward,
            sent.finish_reason,
            sent.extras,
            sent.error,
            sent.member,
            sent.prompt,
            sent.agent,
            sent.turns,
        )
    assert encode(back) == encode(group)


def test_a_frame_cut_anywhere_raises() -> None:
    frame = encode(Group(5, 1, 2, (make([-1, 0], [False, True]), make([-1, 0, 1], [False, True, True]))))
    for cut in range(len(frame)):
        with pytest.raises((ValueError, msgspec.DecodeError)):
            decode(frame[:cut])


@SOME
@given(groups(), st.binary(min_size=1, max_size=8))
def test_bytes_after_the_frame_raise(group: Group, tail: bytes) -> None:
    with pytest.raises(ValueError, match="its header describes"):
        decode(encode(group) + tail)


def test_another_format_raises() -> None:
    head = msgspec.msgpack.encode({"format": 4, "trajectories": []})
    with pytest.raises(ValueError, match="format 4"):
        decode(len(head).to_bytes(4, "little") + head)


def test_frames_of_the_first_format_are_read() -> None:
    """As they lie in journals: each trajectory is a member of its own, its prompt ends where sampling begins."""
    member = {"length": 3, "reward": 0.5, "finish_reason": "stop", "extras": {}, "error": None, "notes": {}}
    head = msgspec.msgpack.encode({"format": 1, "task": 7, "attempt": 1, "row": 2, "trajectories": [member] * 2})
    arrays = (
        np.array([5, 6, 7], "<i4"),
        np.array([-1, 0, 0], "<i4"),
        np.zeros(3, "<f4"),
        np.array([False, True, True]),
    )
    group = decode(len(head).to_bytes(4, "little") + head + 2 * b"".join(array.tobytes() for array in arrays))
    assert (group.task, group.attempt, group.row, group.members) == (7, 1, 2, [[0], [1]])
    assert [t.prompt_length for t in group.trajectories] == [1, 1]


def test_members_are_those_that_say_the_same_number() -> None:
    made = [replace(make([-1, 0], [False, True]), member=m) for m in (0, 1, 0, None, None, 1)]
    assert Group(0, 0, 0, tuple(made)).members == [[0, 2], [1, 5], [3], [4]]


def test_a_prompt_longer_than_its_trajectory_raises() -> None:
    with pytest.raises(ValueError, match="prompt of 3 tokens among 2"):
        decode(encode(Group(0, 0, 0, (replace(make([-1, 0], [False, True]), prompt=3),))))


def test_decoded_arrays_are_read_only_views() -> None:
    frame = encode(Group(0, 0, 0, (make([-1, 0], [False, True]),)))
    (trajectory,) = decode(frame).trajectories
    for array in (trajectory.tokens, trajectory.versions, trajectory.logprobs, trajectory.loss_mask):
        assert not array.flags.writeable
        assert not array.flags.owndata


def test_wider_arrays_are_sent_in_the_frame_types() -> None:
    sent = Trajectory(np.array([1, 2]), np.array([-1, 3]), np.array([0.0, -0.5]), np.array([0, 1]), None, "length")
    (got,) = decode(encode(Group(0, 0, 0, (sent,)))).trajectories
    assert [a.dtype for a in (got.tokens, got.versions, got.logprobs, got.loss_mask)] == ["<i4", "<i4", "<f4", "?"]
    assert got.versions.tolist() == [-1, 3]
    assert got.logprobs.tolist() == [0.0, -0.5]
    assert got.loss_mask.tolist() == [False, True]


@SOME
@given(groups())
def test_version_range_spans_the_trained_tokens(group: Group) -> None:
    trained = [int(v) for t in group.trajectories for v, m in zip(t.versions, t.loss_mask, strict=True) if m]
    assert group.version_range == ((min(trained), max(trained)) if trained else (-1, -1))


def test_version_range_ignores_masked_tokens_and_trajectories() -> None:
    masked = make([-1, 0, 9], [False, False, False])
    mixed = make([-1, 2, 4, 7], [False, True, True, False])
    assert Group(0, 0, 0, (masked, mixed)).version_range == (2, 4)
    assert Group(0, 0, 0, (masked,)).version_range == (-1, -1)
    assert Group(0, 0, 0, ()).version_range == (-1, -1)


@pytest.mark.parametrize(("versions", "length"), [([-1, -1, 0, -1, 1], 2), ([0, 0], 0), ([-1, -1], 2), ([], 0)])
def test_prompt_length(versions: list[int], length: int) -> None:
    assert make(versions, [False] * len(versions)).prompt_length == length


def test_a_turn_behind_its_trajectory_raises() -> None:
    beyond = replace(make([-1, 0], [False, True]), turns=((0, 3, 1.0),))
    with pytest.raises(NoGroup, match="a turn that ends behind its 2 tokens"):
        decode(encode(Group(0, 0, 0, (beyond,))))
