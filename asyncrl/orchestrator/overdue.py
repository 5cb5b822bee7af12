"""What is written down when a wait lasts: who waits for whom, and where the one waited for stands."""

from __future__ import annotations

import logging
from pathlib import Path

from asyncrl.orchestrator.waiting import WaitingFor
from asyncrl.processes import stacks
from asyncrl.processes.orphans import ProcessTable

logger = logging.getLogger(__name__)


class Overdue:
    def __init__(self, run_dir: Path, processes: ProcessTable) -> None:
        self._run_dir, self._processes = run_dir, processes
        self._asked: set[str] = set()

    async def __call__(self, role: str, waiting: WaitingFor) -> None:
        """A wait for this role is overdue."""
        waiting.dump(self._run_dir / "waiting.txt")
        known = self._processes.get(role)
        if known is None or role in self._asked:
            return
        # Many waits for one role come due together: once is enough.
        self._asked.add(role)
        path = await stacks.collect(self._run_dir / "stacks", role, known["pid"], known["node"], deadline_s=4.0)
        self._asked.discard(role)
        if path is not None:
            logger.warning("%s, which is waited for, has written its stacks to %s", role, path)
