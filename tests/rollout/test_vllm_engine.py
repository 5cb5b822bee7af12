"""What vLLM is started with, and on what it computes: what was asked for, not what the machine has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncrl.errors import UserError
from asyncrl.rollout import vllm_engine
from asyncrl.rollout.engine import EngineConfig


def arguments(num_gpus: int, **engine_args: Any) -> dict[str, Any]:
    return vllm_engine.arguments(EngineConfig("x", "bfloat16", "nccl", 64, "keep", "0", 1.0, 0, engine_args, num_gpus))


def test_several_workers_are_processes_of_the_engine() -> None:
    """vLLM's own choice in a placement group is Ray, which refuses a bundle of several GPUs."""
    for sizes in ({"tensor_parallel_size": 2}, {"pipeline_parallel_size": 2}):
        assert arguments(2, **sizes)["distributed_executor_backend"] == "mp"
    assert "distributed_executor_backend" not in arguments(1)
    own = arguments(2, tensor_parallel_size=2, distributed_executor_backend="ray")
    assert own["distributed_executor_backend"] == "ray"


@pytest.mark.parametrize("there", [True, False])
def test_zero_gpus_is_a_cpu(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert arguments(0)["kv_cache_memory_bytes"] == 2**30
    assert "kv_cache_memory_bytes" not in arguments(1)


@pytest.mark.parametrize(("built_for_cpus", "num_gpus"), [(True, 1), (True, 4), (False, 0)])
def test_a_vllm_for_something_else_is_refused(
    built_for_cpus: bool, num_gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import vllm.platforms

    monkeypatch.setattr(vllm.platforms, "current_platform", SimpleNamespace(is_cpu=lambda: built_for_cpus))
    there = "CPUs; install asyncrl.gpu." if built_for_cpus else "GPUs; set it to 1, or install asyncrl.cpu."
    with pytest.raises(UserError, match=f"gpus_per_replica is {num_gpus}, but the vLLM on .* is built for {there}"):
        vllm_engine.require_build(num_gpus)
    vllm_engine.require_build(0 if built_for_cpus else 1)
