"""Engines by name: `vllm`, `simulated`, or a user's own by `package.module:name` or `./file.py:name`."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def engine_class(spec: str, base_dir: Path) -> Any:
    """The class that implements `rollout.engine.Engine`. Imports only what is asked for."""
    if spec == "vllm":
        from asyncrl.rollout.vllm_engine import VllmEngine

        return VllmEngine
    if spec == "simulated":
        from asyncrl.rollout.simulated import SimulatedEngine

        return SimulatedEngine
    from asyncrl.plugins import load_object

    return load_object(spec, base_dir, "rollout.engine")
