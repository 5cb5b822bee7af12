"""The generators as the weight channel sees them: every call goes to all of them at once, with one deadline."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle

from asyncrl.errors import DeadlineExceeded
from asyncrl.weights.update import WeightUpdate


@dataclass(frozen=True)
class RayReplicas:
    """Blocking; lives in the trainer's push thread. `workers` maps each replica to its engine workers."""

    handles: dict[str, ActorHandle]
    workers: dict[str, int]
    deadline_s: float

    @property
    def num_workers(self) -> int:
        return sum(self.workers.values())

    def join(self, init_info: dict[str, Any]) -> None:
        """Each replica joins at its own rank offset: independent engines would collide on rank 1 otherwise."""
        offset = init_info["rank_offset"]
        references = {}
        for name, handle in self.handles.items():
            references[name] = handle.join_channel.remote({**init_info, "rank_offset": offset})
            offset += self.workers[name]
        self._gather("to join the weight channel", references)

    def update(self, update: WeightUpdate, *, rolling: bool = False) -> dict[str, float]:
        """Seconds that each replica stood still. `rolling`: one after the other, so that the others go on."""
        what = f"to load version {update.version}"
        if not rolling:
            return self._gather(what, {name: h.update_weights.remote(update) for name, h in self.handles.items()})
        pauses: dict[str, float] = {}
        for name, handle in self.handles.items():
            pauses |= self._gather(what, {name: handle.update_weights.remote(update)})
        return pauses

    def _gather(self, purpose: str, references: dict[str, Any]) -> dict[str, Any]:
        pending = {reference: name for name, reference in references.items()}
        results = {}
        ends = time.monotonic() + self.deadline_s
        while pending:
            # The first error is raised at once: it may be why the others will not answer before the deadline.
            done, _ = ray.wait(list(pending), timeout=max(0.0, ends - time.monotonic()), fetch_local=False)
            if not done:
                raise DeadlineExceeded(f"waited {self.deadline_s:.0f} s for {', '.join(pending.values())} {purpose}")
            results[pending.pop(done[0])] = ray.get(done[0])
        return {name: results[name] for name in references}
