"""One file per tracker; each imports its package only when it is made, and is made with a `trackers.TrackedRun`."""

from __future__ import annotations

import importlib
import os
from typing import Any


def make(module: str, name: str, *arguments: Any) -> Any:
    return getattr(importlib.import_module(f"asyncrl.observe.backends.{module}"), name)(*arguments)


def quiet_wandb(mode: str) -> None:
    """wandb's own service reads these. In the main thread, before wandb's starts: the environment has no lock."""
    if mode == "offline":
        # Not only an argument: the service must not ask for a key.
        os.environ["WANDB_MODE"] = "offline"
    os.environ.setdefault("WANDB_SILENT", "true")
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
