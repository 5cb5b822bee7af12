"""Lets the tests of this room share the helpers in test_run.py: pytest's importlib mode puts no folder on the path."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray

sys.path.append(str(Path(__file__).parent))


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Callable[..., None]]:
    """Starts Ray in this process, with the arguments of ray.init; also one that did not come up is ended."""
    if ray.is_initialized():
        ray.shutdown()
        pytest.fail("an earlier test left Ray running in this process")

    def start(**more: Any) -> None:
        # Ray adds handlers to pytest's logging otherwise.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False, **more)

    try:
        yield start
    finally:
        ray.shutdown()
