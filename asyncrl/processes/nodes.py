"""Where Ray puts things: an actor's share of a node, and running a small function on the node of some process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

T = TypeVar("T")

ALMOST_NO_CPU = 0.001
"""CPUs that an actor asks for. One that asks for nothing is placed at random, whatever its scheduling strategy."""


async def call_on(node_id: str, function: Callable[..., T], *arguments: Any, deadline_s: float) -> T:
    """The function's answer: in a thread if `node_id` (Ray's, in hex) is this node, else in a Ray task over there.

    Raises what the function raises, TimeoutError past the deadline, RayError if the node is gone.
    """
    async with asyncio.timeout(deadline_s):
        if node_id == ray.get_runtime_context().get_node_id():
            return await asyncio.to_thread(function, *arguments)
        there = NodeAffinitySchedulingStrategy(node_id, soft=False)
        task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
        answer: T = await task.remote(*arguments)
        return answer
