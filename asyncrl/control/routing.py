"""Which generator gets the next group: the one with the least outstanding tokens.

The length of a group is known only if an earlier attempt of it finished (and was too old); otherwise the mean
of all groups finished so far stands for it. So the rule amounts to the fewest running groups, corrected for
restarted groups of known length. A slow generator keeps its groups longer and so gets fewer.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class _Load:
    num_unknown: int = 0
    """Running groups whose length is not known yet."""
    known_tokens: int = 0
    """Tokens of the others."""


class Router:
    """Generators that serve, in the order in which they joined, and their loads."""

    def __init__(self, tokens_per_group: int, num_finished: int = 0, finished_tokens: int = 0) -> None:
        self._first_estimate = tokens_per_group
        self.num_finished = num_finished
        self.finished_tokens = finished_tokens
        self._loads: dict[str, _Load] = {}

    @property
    def alive(self) -> bool:
        """Whether any generator serves."""
        return bool(self._loads)

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
