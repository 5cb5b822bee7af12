"""Trajectories and groups, and the one encoding in which they travel.

A group is encoded once, by the generator that made it. The buffer and the journal pass the bytes on; only
trainer ranks (and `inspect`) decode. Layout of a frame: 4 bytes little-endian header length, a msgpack
header, then the arrays of each trajectory as raw little-endian bytes: tokens, versions, logprobs, loss mask, and
of one with a teacher what that said of it, or reads before it. Format 2 lacks those, format 1 also whose member a
trajectory is, and where its prompt ends; both are read too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import msgspec
import numpy as np

from asyncrl.errors import UserError

_FORMAT, _READ = 3, (1, 2, 3)
_Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
_Length = Annotated[int, msgspec.Meta(ge=0, le=2**31)]


class NoGroup(UserError, ValueError):
    """Bytes that are no encoded group of this version."""


class _Member(msgspec.Struct):
    length: _Length
    reward: float | None
    finish_reason: str
    extras: dict[str, float]
    error: str | None
    notes: dict[str, str] = {}
    member: _Number | None = None
    prompt: _Number | None = None
    agent: str = ""
    turns: list[tuple[_Number, _Number, float]] = []
    scored: bool = False
    """Whether it has teacher_logprobs."""
    hinted: _Length = 0
    """Tokens of teacher_prompt."""


class _Form(msgspec.Struct):
    format: int


class Header(msgspec.Struct):
    """All of a group but the arrays."""

    task: _Number
    attempt: _Number
    row: _Number
    trajectories: list[_Member]
    source: str = ""


_DTYPES = ("<i4", "<i4", "<f4", "?")
"""Of the arrays, in their order."""
_TOKEN_BYTES = 13
_FORM, _HEADER = msgspec.msgpack.Decoder(_Form), msgspec.msgpack.Decoder(Header)


@dataclass(frozen=True, eq=False)
class Trajectory:
    """A token sequence of one rollout of one task; all arrays have length T = prompt tokens + completion tokens.

    A rollout is one such sequence as long as each of its prompts goes on from what was sampled before. Where one does
    not (a rewritten history, a side branch), it has several: trajectories of one member, which share its reward. Of
    several agents each has sequences and a reward of its own.
    """

    tokens: np.ndarray
    """int32 [T]."""
    versions: np.ndarray
    """int32 [T]: policy version that sampled the token; -1 where the token was not sampled (prompt, tools)."""
    logprobs: np.ndarray
    """float32 [T]: behaviour log-probs of sampled tokens; 0 elsewhere, NaN if the engine gives none."""
    loss_mask: np.ndarray
    """bool [T]: tokens to train. A subset of the sampled ones."""
    reward: float | None
    """None: the reward failed (I7); such a trajectory is masked, never trained as 0."""
    finish_reason: str
    """`stop`, `length` or `abort`."""
    extras: dict[str, float] = field(default_factory=dict)
    """Further values of a reward: of the dict that it returned, or logged."""
    error: str | None = None
    """Why the reward failed."""
    notes: dict[str, str] = field(default_factory=dict)
    """Texts that the reward logged."""
    member: int | None = None
    """Which rollout of its group it belongs to; None: one of its own."""
    prompt: int | None = None
    """Tokens of its first prompt; None: those before the first sampled one."""
    agent: str = ""
    """Which agent of the rollout sampled it; empty: the one that every rollout has."""
    turns: tuple[tuple[int, int, float], ...] = ()
    """Of rollouts with rewards of their turns: number of each turn in the rollout, the token after its last, reward."""
    teacher_logprobs: np.ndarray | None = None
    """float32 [T]: what a teacher's server gives the sampled tokens; NaN elsewhere."""
    teacher_prompt: np.ndarray | None = None
    """int32: what the teacher reads in the place of the first prompt."""

    @property
    def prompt_length(self) -> int:
        """Number of tokens of the first prompt."""
        if self.prompt is not None:
            return self.prompt
        sampled = np.flatnonzero(self.versions >= 0)
        return int(sampled[0]) if len(sampled) else len(self.tokens)


@dataclass(frozen=True, eq=False)
class Group:
    """The trajectories of the n rollouts of one task, as they leave a generator."""

    task: int
    """Sample index of the task: 0, 1, 2, … over all epochs."""
    attempt: int
    """0 at first; one more each time the task was started again."""
    row: int
    """Row of the data set."""
    trajectories: tuple[Trajectory, ...]
    source: str = ""
    """Name of the data source, where the recipe has several."""

    @property
    def members(self) -> list[list[int]]:
        """The places of each rollout's trajectories, in their order."""
        found: dict[tuple[bool, int], list[int]] = {}
        for place, trajectory in enumerate(self.trajectories):
            own = trajectory.member is None
            found.setdefault((own, place if trajectory.member is None else trajectory.member), []).append(place)
        return list(found.values())

    @property
    def firsts(self) -> list[Trajectory]:
        """Of each rollout the trajectory that carries its reward: the first of the agent that every rollout has."""
        rollouts = [[self.trajectories[place] for place in places] for places in self.members]
        return [next((t for t in rollout if not t.agent), rollout[0]) for rollout in rollouts]

    @property
    def version_range(self) -> tuple[int, int]:
        """Oldest and newest version among trained tokens; (-1, -1) if there are none."""
        trained = [t.versions[t.loss_mask] for t in self.trajectories]
        trained = [v for v in trained if len(v)]
        if not trained:
            return -1, -1
        return int(min(v.min() for v in trained)), int(max(v.max() for v in trained))


def encode(group: Group) -> bytes:
    """One self-contained frame."""
    header: dict[str, Any] = {
        "format": _FORMAT,
        "task": group.task,
        "attempt": group.attempt,
        "row": group.row,
        "trajectories": [
            {
                "length": len(t.tokens),
                "reward": t.reward,
                "finish_reason": t.finish_reason,
                "extras": t.extras,
                "error": t.error,
                "notes": t.notes,
                **({} if t.member is None else {"member": t.member}),
                **({} if t.prompt is None else {"prompt": t.prompt}),
                **({"agent": t.agent} if t.agent else {}),
                **({"turns": t.turns} if t.turns else {}),
                **({} if t.teacher_logprobs is None else {"scored": True}),
                **({} if t.teacher_prompt is None else {"hinted": len(t.teacher_prompt)}),
            }
            for t in group.trajectories
        ],
        **({"source": group.source} if group.source else {}),
    }
    head = msgspec.msgpack.encode(header)
    parts = [len(head).to_bytes(4, "little"), head]
    for t in group.trajectories:
        parts += [
            t.tokens.astype("<i4").tobytes(),
            t.versions.astype("<i4").tobytes(),
            t.logprobs.astype("<f4").tobytes(),
            t.loss_mask.astype("?").tobytes(),
            *([] if t.teacher_logprobs is None else [t.teacher_logprobs.astype("<f4").tobytes()]),
            *([] if t.teacher_prompt is None else [t.teacher_prompt.astype("<i4").tobytes()]),
        ]
    return b"".join(parts)


def key_of(frame: bytes) -> tuple[int, int]:
    """(task, attempt) of an encoded group."""
    header = header_of(frame)
    return header.task, header.attempt


def header_of(frame: bytes | memoryview) -> Header:
    """Raises NoGroup."""
    head = frame[4 : 4 + int.from_bytes(frame[:4], "little")]
    try:
        form = _FORM.decode(head).format
        if form not in _READ:
            raise _no_group(f"it is of format {form}, this version reads {_FORMAT}")
        return _HEADER.decode(head)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise _no_group(str(error)) from error


def _no_group(why: str) -> NoGroup:
    return NoGroup(f"a group of trajectories cannot be read: {why}; if a journal has it, restore that from a copy")


def decode(frame: bytes) -> Group:
    """Inverse of `encode`, of anything that holds its bytes; arrays are read-only views of that. Raises NoGroup."""
    view = memoryview(frame)
    header = header_of(view)
    offset = 4 + int.from_bytes(view[:4], "little")
    described = offset + sum((_TOKEN_BYTES + 4 * t.scored) * t.length + 4 * t.hinted for t in header.trajectories)
    if described != len(view):
        raise _no_group(f"it has {len(view)} bytes, its header describes {described}")
    trajectories = []
    for t in header.trajectories:
        arrays: list[Any] = []
        shapes = [*((dtype, t.length) for dtype in _DTYPES), ("<f4", t.length * t.scored), ("<i4", t.hinted)]
        for dtype, length in shapes:
            arrays.append(np.frombuffer(view, dtype, length, offset))
            offset += arrays[-1].nbytes
        *arrays, scored, hinted = arrays
        if t.length and (arrays[0].min() < 0 or arrays[3].view(np.uint8).max() > 1):
            raise _no_group("it has a token below 0, or a mask of neither 0 nor 1")
        if t.prompt is not None and t.prompt > t.length:
            raise _no_group(f"it has a prompt of {t.prompt} tokens among {t.length}")
        if t.hinted and hinted.min() < 0:
            raise _no_group("what its teacher reads has a token below 0")
        if any(end > t.length for _, end, _ in t.turns):
            raise _no_group(f"it has a turn that ends behind its {t.length} tokens")
        said = t.reward, t.finish_reason, t.extras, t.error, t.notes, t.member, t.prompt, t.agent, tuple(t.turns)
        taught = scored if t.scored else None, hinted if t.hinted else None
        trajectories.append(Trajectory(*arrays, *said, *taught))
    return Group(header.task, header.attempt, header.row, tuple(trajectories), header.source)
