"""vLLM's scheduler with a prefix cache that holds for one set of weights; it runs in vLLM's engine process.

vLLM hashes the blocks of a prompt when the request arrives, and looks them up when it is scheduled. A push may lie
between: the request waited, or arrived in the pause. So here the salt of the hashes is set when they are looked up: the
number of pushes so far. Whatever is computed from its first token on, because it is new or was preempted, reads only
blocks that the present weights have written; a running request keeps what it has (`kv_after_update: keep`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request

# A mixin: the scheduler that vLLM would take depends on the machine.
_Base = Scheduler if TYPE_CHECKING else object


class _OneVersion(_Base):
    _num_pushes = 0

    def set_pause_state(self, pause_state: PauseState) -> None:
        if pause_state == PauseState.UNPAUSED and self.pause_state != pause_state:
            self._num_pushes += 1
            self._restart_unfinished_prefills()
        super().set_pause_state(pause_state)

    def _restart_unfinished_prefills(self) -> None:
        """Let requests that the pause met between two chunks of their prompt begin anew. They have no token yet whose
        span could say that a part of their KV is older. Nothing is in flight on the device (`reset_prefix_cache` does
        the same to all requests)."""
        halfway = [r for r in self.running if not r.num_output_tokens or r.num_computed_tokens < r.num_tokens - 1]
        for request in reversed(halfway):
            self.running.remove(request)
            self._preempt_request(request, request.arrival_time, drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request.request_id)

    def _get_local_prefix_cache_hit(self, request: Request) -> Any:
        if request.cache_salt != (salt := f"pushes: {self._num_pushes}"):
            request.cache_salt = salt
            request.block_hashes = []
            request.update_block_hashes()
        return super()._get_local_prefix_cache_hit(request)


class OneVersionScheduler(_OneVersion, Scheduler):
    """For engines that schedule a step when the one before is done (CPUs)."""


class OneVersionAsyncScheduler(_OneVersion, AsyncScheduler):
    """For engines that schedule a step while the one before runs (GPUs)."""


def one_version(scheduler: type) -> str:
    """The name of the class to take for vLLM's own choice. Raises ValueError if there is none."""
    for ours in (OneVersionScheduler, OneVersionAsyncScheduler):
        if scheduler is ours.__bases__[-1]:
            return f"{__name__}.{ours.__name__}"
    raise ValueError(f"vLLM would schedule with {scheduler.__name__}, which cannot tell the weights of cached prefixes")
