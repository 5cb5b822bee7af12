"""Which generator gets the next group: the one with the least outstanding tokens.

The length of a group is known only if an earlier attempt of it finished (and was too old); otherwise the mean
of all groups finished so far stands for it. So the rule amounts to the fewest running groups, corrected for
restarted groups of known length. A slow generator keeps its groups longer and so gets fewer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass
class _Load:
    num_unknown: int = 0
    """Running groups whose length is not known yet."""
    known_tokens: int = 0
    """Tokens of the others."""


class Router:
    """Generators that serve, in the order in which they joined, and their loads."""

    def __init__(self, tokens_per_group: int) -> None:
        self._first_estimate = tokens_per_group
        self.num_finished = 0
        self.finished_tokens = 0
        self._loads: dict[str, _Load] = {}

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
        self._loads[generator] = _Load()

    def lose(self, generator: str) -> None:
        self._loads.pop(generator, None)

    def pick(self) -> str:
        """The generator for the next group; of equal ones the first to have joined."""

        def outstanding_tokens(generator: str) -> float:
            load = self._loads[generator]
            return load.known_tokens + load.num_unknown * self.expected_tokens

        return min(self._loads, key=outstanding_tokens)

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
        if num_tokens is None:
            self._loads[generator].num_unknown += sign
        else:
            self._loads[generator].known_tokens += sign * num_tokens

    def state(self) -> dict[str, Any]:
        """Everything but the first estimate, JSON-able."""
        return {
            "num_finished": self.num_finished,
            "finished_tokens": self.finished_tokens,
            "loads": {name: [load.num_unknown, load.known_tokens] for name, load in self._loads.items()},
        }

    @classmethod
    def restore(cls, tokens_per_group: int, state: dict[str, Any]) -> Router:
        """Inverse of `state`."""
        router = cls(tokens_per_group)
        router.num_finished, router.finished_tokens = state["num_finished"], state["finished_tokens"]
        router._loads = {name: _Load(*load) for name, load in state["loads"].items()}
        return router
