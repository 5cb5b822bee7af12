"""An engine in virtual time: its running sequences advance side by side, one token each per decode step.

A step takes longer the more sequences there are, so a sequence's end moves with every arrival. What does not move is
the number of steps it still needs: ends are kept in steps, `depth` counts those that were made.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

STATES = ("busy", "paused", "idle")


@dataclass(frozen=True)
class DecodeSpeed:
    """A step that gives n sequences a token each takes `step_s + n token_s`."""

    step_s: float
    """What does not depend on n: the weights are read once."""
    token_s: float
    """What each sequence adds: its KV cache is read, its products are made; its share of the prompt's too."""
    max_sequences: int
    """More than so many wait in the engine's queue."""

    def of(self, num_sequences: int) -> float:
        """Seconds of a step."""
        return self.step_s + num_sequences * self.token_s

    def scaled(self, factor: float) -> DecodeSpeed:
        return DecodeSpeed(self.step_s * factor, self.token_s * factor, self.max_sequences)


@dataclass(eq=False)
class Group:
    """Rollouts of one task, as they are generated."""

    task: int
    attempt: int
    lengths: Sequence[float]
    """Of each rollout, in tokens."""
    tokens: dict[int, float] = field(default_factory=lambda: defaultdict(float))
    """By the version that sampled them."""

    def __post_init__(self) -> None:
        self.num_left = len(self.lengths)

    @property
    def num_tokens(self) -> float:
        return sum(self.tokens.values())


class Engine:
    """Every method takes the time `now`, which must not go back."""

    def __init__(self, speed: DecodeSpeed) -> None:
        self._speed = speed
        self._now = self._depth = 0.0
        self._running: list[tuple[float, int, float, Group]] = []
        """Depth at which a rollout is done, its number, the depth at which it began, its group."""
        self._queue: deque[tuple[Group, float]] = deque()
        self._paused = False
        self._versions: list[tuple[float, int]] = [(0.0, 0)]
        """Depth from which on a version samples, and the version."""
        self.num_ended = 0
        """Rollouts, since the beginning."""
        self._numbers = count()
        self.seconds = dict.fromkeys(STATES, 0.0)
        """Spent in each state since the last `take_seconds`."""

    @property
    def _state(self) -> str:
        if self._paused:
            return "paused"
        return "busy" if self._running else "idle"

    def advance(self, now: float) -> None:
        elapsed_s, state = now - self._now, self._state
        self.seconds[state] += elapsed_s
        if state == "busy":
            self._depth += elapsed_s / self._speed.of(len(self._running))
        self._now = now

    def take_seconds(self, now: float) -> dict[str, float]:
        self.advance(now)
        taken, self.seconds = self.seconds, dict.fromkeys(STATES, 0.0)
        return taken

    def start(self, now: float, group: Group) -> None:
        self.advance(now)
        self._queue.extend((group, length) for length in group.lengths)
        self._admit()

    def cancel(self, now: float, group: Group) -> None:
        self.advance(now)
        self._running = [rollout for rollout in self._running if rollout[3] is not group]
        heapq.heapify(self._running)
        self._queue = deque(waiting for waiting in self._queue if waiting[0] is not group)
        self._admit()

    def pause(self, now: float) -> None:
        self.advance(now)
        self._paused = True

    def resume(self, now: float, version: int) -> None:
        """Go on, with these weights."""
        self.advance(now)
        self._paused = False
        self._versions.append((self._depth, version))

    def next_end(self) -> float:
        """When the next rollout ends, if nothing happens before."""
        if self._paused or not self._running:
            return math.inf
        steps = max(0.0, self._running[0][0] - self._depth)
        return self._now + steps * self._speed.of(len(self._running))

    def end_next(self, now: float) -> list[Group]:
        """The rollouts that end at `next_end`, which is now: the groups that are complete with them."""
        self.advance(now)
        # Not back: what starts now would have a last bit of the version before the one that has just come.
        self._depth = max(self._depth, self._running[0][0])
        complete = []
        while self._running and self._running[0][0] <= self._depth:
            end, _, begin, group = heapq.heappop(self._running)
            self._count(begin, end, group)
            self.num_ended += 1
            group.num_left -= 1
            if not group.num_left:
                complete.append(group)
        self._admit()
        return complete

    def _admit(self) -> None:
        while self._queue and len(self._running) < self._speed.max_sequences:
            group, length = self._queue.popleft()
            heapq.heappush(self._running, (self._depth + length, next(self._numbers), self._depth, group))

    def _count(self, begin: float, end: float, group: Group) -> None:
        """Its tokens, by version."""
        for since, version in reversed(self._versions):
            if since <= begin:
                group.tokens[version] += end - begin
                break
            if end > since:
                group.tokens[version] += end - since
                end = since
