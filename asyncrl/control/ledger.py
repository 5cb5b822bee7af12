"""Where every task drawn is (I2): six states that add up, and two counts of events."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


class LedgerError(RuntimeError):
    """A task was lost or counted twice: a bug in the controller, never bad input."""


@dataclass(frozen=True)
class Ledger:
    """`running` … `failed` are states and add up to `drawn`; `stale` and `requeued` count events."""

    drawn: int
    running: int
    """Started, or requeued and waiting for a generator."""
    ready: int
    leased: int
    trained: int
    filtered: int
    failed: int
    stale: int
    """Attempts given up because they were too old."""
    requeued: int
    """Attempts given up, for age or because their generator was lost, and started again."""
    filtered_reasons: Mapping[str, int]
    failed_reasons: Mapping[str, int]
    skipped: int = 0
    """Draws that were left out, as their rows were solved always or never when last tried: no tasks."""

    def check(self) -> None:
        """Raises LedgerError if the counts do not balance."""
        states = {name: getattr(self, name) for name in ("running", "ready", "leased", "trained", "filtered", "failed")}
        if sum(states.values()) != self.drawn or min(states.values()) < 0:
            raise LedgerError(f"{self.drawn} tasks were drawn, but their states are {states}")
        for name, reasons in (("filtered", self.filtered_reasons), ("failed", self.failed_reasons)):
            if sum(reasons.values()) != states[name]:
                raise LedgerError(f"{states[name]} tasks are {name}, but the reasons given are {dict(reasons)}")
