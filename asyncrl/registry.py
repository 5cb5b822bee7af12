"""What is built in, by the name that a recipe gives it: a name stands in one of these tables, and nowhere else.

Nothing is imported before it is asked for, so that a recipe is checked without torch. What has no name here is a user's
own, by `package.module:name` or `./file.py:name` (`plugins.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from asyncrl.plugins import load_object


def find(table: Mapping[str, str], spec: str, base_dir: Path, key: str) -> Any:
    """What a recipe names under `key`: one of the table, or a user's own. Raises UserError as `load_object`."""
    return load_object(table.get(spec, spec), base_dir, key)


@dataclass(frozen=True)
class Transport:
    """A weight transport (`weights/transport.py`): `weights.channel`."""

    module: str
    """With both ends, `Sender` and `Receiver`."""
    copies: Literal["host", "shared_memory", "gpu"] = "host"
    """Where the trainer's copies of its weights lie. Adapters are merged into the base on the host."""
    rolling: bool = False
    """Whether one replica may read while the others wait for nobody."""
    vllm_engine: str = "asyncrl"
    """vLLM's name of the engine's end (`weights/plugin.py`)."""


TRANSPORTS = {
    "shared_memory": Transport("asyncrl.weights.transports.shared_memory", copies="shared_memory", rolling=True),
    "gloo": Transport("asyncrl.weights.transports.gloo"),
    "nccl": Transport("asyncrl.weights.transports.nccl", copies="gpu", vllm_engine="asyncrl_nccl"),
    "cuda_ipc": Transport("asyncrl.weights.transports.cuda_ipc", copies="gpu"),
    "disk": Transport("asyncrl.weights.transports.disk", rolling=True),
    "none": Transport("asyncrl.weights.transports.version_only"),
}

TRAINERS = {"fsdp": "asyncrl.trainer.fsdp:Fsdp"}
"""Trainer backends (`trainer/backend.py`): `trainer.backend`."""

TRACKERS = ("mlflow", "trackio")
"""For `track.also`: each is the name of a package, and of the extra that installs it."""
