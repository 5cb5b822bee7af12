"""Losses by name, or a user's own by path."""

from __future__ import annotations

from pathlib import Path

from asyncrl.algorithms.losses import LOSSES, Loss
from asyncrl.plugins import load_object


def load_loss(spec: str, base_dir: Path) -> Loss:
    """One of `algorithms.losses.LOSSES`, or `package.module:name` / `./file.py:name` with the same signature."""
    return LOSSES[spec] if spec in LOSSES else load_object(spec, base_dir, "algorithm.loss")
