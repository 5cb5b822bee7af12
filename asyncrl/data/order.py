"""In which order rows are visited: a pure function of the seed, so that a cursor of one number says where a run is.

draw of the run --Draws--> place in the visits of this table --Order--> epoch, and which of its rows
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

import numpy as np

from asyncrl.control.controller import Controller


@dataclass(frozen=True)
class Draws:
    """Where a table begins in the draws of a run: at 0, or later if it took the place of another."""

    first: int = 0
    """Draws before this one were of the other table..."""
    again: list[int] = field(default_factory=list)
    """...but these, which were to be started again, and take the first places."""
    first_row: int = 0
    """Number of its first row; those below were rows of the other table."""

    @classmethod
    def begun_anew(cls, controller: Controller, first_row: int) -> Draws:
        """From the next draw on, and for what is running now."""
        done = {task for task, _ in controller.ready()}
        if controller.training is not None:
            done |= {task for task, _ in controller.training.groups}
        return cls(controller.next_draw, sorted(set(controller.attempts()) - done), first_row)

    def place(self, draw: int) -> int:
        """Of the task among those of this table."""
        if draw >= self.first:
            return draw - self.first + len(self.again)
        return self.again.index(draw) if draw in self.again else draw

    def has(self, draw: int) -> bool:
        """Whether the task is of this table."""
        return draw >= self.first or draw in self.again

    def at(self, place: int) -> int:
        """Inverse of `place`, of those that `has`."""
        return self.again[place] if place < len(self.again) else place - len(self.again) + self.first


class Order:
    """Every epoch visits each of a number of rows once; in an order of its own, if they are shuffled."""

    def __init__(self, seed: int, shuffle: bool, later: int = 0) -> None:
        """`later`: epochs that are looked at beside that of a visit."""
        self._seed, self._shuffle = seed % 2**64, shuffle
        # Draws near the end of an epoch and the beginning of the next come interleaved.
        self._rows = functools.lru_cache(maxsize=2 + later)(self._make)
        self._places = functools.lru_cache(maxsize=2 + later)(self._inverse)

    def row(self, place: int, num_rows: int) -> int:
        """Which row the visit of this number is of."""
        epoch, within = divmod(place, num_rows)
        return int(self._rows(epoch, num_rows)[within]) if self._shuffle else within

    def later(self, place: int, num_rows: int, epochs: int) -> list[int]:
        """Places of the same row in so many epochs after that of `place`."""
        epoch, row = place // num_rows, self.row(place, num_rows)
        following = range(epoch + 1, epoch + 1 + epochs)
        return [one * num_rows + (int(self._places(one, num_rows)[row]) if self._shuffle else row) for one in following]

    def _inverse(self, epoch: int, num_rows: int) -> np.ndarray:
        return np.argsort(self._rows(epoch, num_rows))

    def _make(self, epoch: int, num_rows: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(num_rows)
