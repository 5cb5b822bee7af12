"""What only a GPU shows. Without one these tests are skipped; with ASYNCRL_DEVICE=cpu they run on CPUs, where they show
that nothing but the device is missing. `scripts/test_gpu` runs them one by one."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

DEVICE = os.environ.get("ASYNCRL_DEVICE", "cuda")
NUM_GPUS = int(os.environ.get("FAKE_GPUS", torch.cuda.device_count()))
"""As Ray counts them: it may have been told that one is several."""
sys.path += [str(Path(__file__).parents[1] / room) for room in ("orchestrator", "trainer")]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if DEVICE == "cuda" and not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="no GPU"))


@pytest.fixture
def device() -> torch.device:
    return torch.device(DEVICE)


@pytest.fixture
def two_gpus() -> None:
    if DEVICE == "cuda" and NUM_GPUS < 2:
        pytest.skip("one GPU, and Ray has not been told that it is two")


@pytest.fixture
def one_shared(device: torch.device) -> list[str]:
    """Trainer and generator on one GPU."""
    shares = ["rollout.gpus_per_replica=0.4", "trainer.gpus_per_rank=0.5"]
    return shares if device.type == "cuda" else []


@pytest.fixture
def one_each(device: torch.device, two_gpus: None) -> list[str]:
    """A GPU for each. The engine's memory is said, for they may be the same one under two names."""
    memory = "rollout.engine_args={enforce_eager: true, gpu_memory_utilization: 0.2, kv_cache_memory_bytes: 268435456}"
    return ["rollout.gpus_per_replica=1", "trainer.gpus_per_rank=1", memory] if device.type == "cuda" else []
