"""Which generator gets the next group: of those that have room, the one with the least outstanding tokens.

The length of a group is known only if an earlier attempt of it finished (and was too old); otherwise the mean
of all groups finished so far stands for it. So the rule amounts to the fewest running groups, corrected for
restarted groups of known length. A slow generator keeps its groups longer and so gets fewer.

With `most_groups` a group beyond those waits for the first generator that has room, rather than in the queue of one
that may be the slowest: queue scheduling, as in ROLL Flash (arXiv:2510.11345, section 5.1.1).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any


@dataclass
class _Load:
    num_unknown: int = 0
    """Running groups whose length is not known yet."""
    known_tokens: int = 0
    """Tokens of the others."""
    num_groups: int = 0
    """Of both kinds."""
    place: int = -1
    """In the order of joining."""
    listed: set[tuple[int, int]] = field(default_factory=set)
    """Loads under which it is in a heap."""


class Router:
    """Generators that serve, in the order in which they joined, and their loads. The cost of a pick hardly grows with
    their number: there may be a thousand."""

    def __init__(self, tokens_per_group: int, most_groups: int = 0) -> None:
        self._first_estimate = tokens_per_group
        self._most_groups = most_groups
        self.num_finished = 0
        self.finished_tokens = 0
        self._loads: dict[str, _Load] = {}
        self._places = count()
        self._lightest: dict[int, list[tuple[int, int, str]]] = {}
        """By the number of running groups of unknown length: a heap of (known tokens, place, generator). An entry
        counts if that is the generator's load now, and it has room."""

    def __bool__(self) -> bool:
        """Whether any generator serves."""
        return bool(self._loads)

    @property
    def alive(self) -> tuple[str, ...]:
        """Generators that serve, in the order in which they joined."""
        return tuple(self._loads)

    @property
    def expected_tokens(self) -> float:
        """Tokens of a group of unknown length."""
        return self.finished_tokens / self.num_finished if self.num_finished else self._first_estimate

    def join(self, generator: str) -> None:
        """Raises ValueError if the generator serves already."""
        if generator in self._loads:
            raise ValueError(f"generator {generator!r} joined, but it is already serving; report its loss first")
        self._loads[generator] = _Load(place=next(self._places))
        self._list(generator)

    def lose(self, generator: str) -> None:
        self._loads.pop(generator, None)

    def limit(self, most_groups: int) -> None:
        """Of each generator from now on; 0: no limit."""
        self._most_groups = most_groups
        for generator in self._loads:
            self._list(generator)

    def pick(self) -> str | None:
        """The generator for the next group; of equal ones the first to have joined. None if none has room."""
        lightest = []
        for num_unknown in list(self._lightest):
            if top := self._top(num_unknown):
                known_tokens, place, generator = top
                lightest.append((known_tokens + num_unknown * self.expected_tokens, place, generator))
        return min(lightest)[2] if lightest else None

    def _top(self, num_unknown: int) -> tuple[int, int, str] | None:
        """The lightest of those with so many groups of unknown length."""
        heap = self._lightest[num_unknown]
        while heap:
            known_tokens, place, generator = heap[0]
            load = self._loads.get(generator)
            if load is not None and load.place == place:
                if self._has_room(load) and (load.num_unknown, load.known_tokens) == (num_unknown, known_tokens):
                    return heap[0]
                load.listed.discard((num_unknown, known_tokens))
            heapq.heappop(heap)
        del self._lightest[num_unknown]
        return None

    def _has_room(self, load: _Load) -> bool:
        return not self._most_groups or load.num_groups < self._most_groups

    def _list(self, generator: str) -> None:
        load = self._loads[generator]
        if self._has_room(load) and (entry := (load.num_unknown, load.known_tokens)) not in load.listed:
            load.listed.add(entry)
            heap = self._lightest.setdefault(load.num_unknown, [])
            heapq.heappush(heap, (load.known_tokens, load.place, generator))

    def add(self, generator: str, num_tokens: int | None) -> None:
        """A group starts; `num_tokens` if an earlier attempt of it finished."""
        self._change(generator, num_tokens, +1)

    def remove(self, generator: str, num_tokens: int | None) -> None:
        """The group ends in whatever way; `num_tokens` as given at its start."""
        self._change(generator, num_tokens, -1)

    def observe(self, num_tokens: int) -> None:
        """A group finished with this many tokens."""
        self.num_finished += 1
        self.finished_tokens += num_tokens

    def _change(self, generator: str, num_tokens: int | None, sign: int) -> None:
        self._loads[generator].num_groups += sign
        if num_tokens is None:
            self._loads[generator].num_unknown += sign
        else:
            self._loads[generator].known_tokens += sign * num_tokens
        self._list(generator)

    def state(self) -> dict[str, Any]:
        """Everything but the first estimate, the limit and the numbers of groups, JSON-able."""
        return {
            "num_finished": self.num_finished,
            "finished_tokens": self.finished_tokens,
            "loads": {name: [load.num_unknown, load.known_tokens] for name, load in self._loads.items()},
        }

    @classmethod
    def restore(
        cls, tokens_per_group: int, state: dict[str, Any], num_groups: Mapping[str, int], most_groups: int = 0
    ) -> Router:
        """Inverse of `state`; `num_groups` that run on each generator."""
        router = cls(tokens_per_group, most_groups)
        router.num_finished, router.finished_tokens = state["num_finished"], state["finished_tokens"]
        for name, (num_unknown, known_tokens) in state["loads"].items():
            router._loads[name] = _Load(num_unknown, known_tokens, num_groups.get(name, 0), next(router._places))
            router._list(name)
        return router
