"""Checkpoint folders that are either whole or not there.

checkpoints/.step_000010.part   written and fsynced
checkpoints/step_000010         renamed
checkpoints/step_000010/COMPLETE  last, fsynced: only now it counts
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from asyncrl.errors import UserError

_NAME = re.compile(r"step_(\d{6,})")


def begin(root: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` steps done into; what a crash left there is removed."""
    part = root / f".step_{step:06d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def commit(part: Path) -> Path:
    """Make the written folder durable, give it its name and mark it complete."""
    for folder, _, files in os.walk(part):
        for name in files:
            _fsync(Path(folder, name))
        _fsync(Path(folder))
    final = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    _remove(final)
    part.rename(final)
    _fsync(final.parent)
    (final / "COMPLETE").touch()
    _fsync(final)
    return final


def complete(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in root.glob("step_*") if _NAME.fullmatch(p.name) and (p / "COMPLETE").exists()]
    return sorted(found, key=lambda p: int(p.name.removeprefix("step_")))


def latest(run_dir: Path) -> Path:
    """The newest complete checkpoint. Raises UserError if the run has none."""
    found = complete(run_dir / "checkpoints")
    if not found:
        raise UserError(f"{run_dir} has no complete checkpoint to resume from; start it again with `asyncrl train`")
    return found[-1]


def prune(root: Path, keep_last: int) -> None:
    """Delete all but the newest `keep_last` complete checkpoints, and every incomplete one."""
    keep = set(complete(root)[-keep_last:])
    for folder in [*root.glob("step_*"), *root.glob(".step_*.part")]:
        if folder not in keep:
            _remove(folder)


def _remove(folder: Path) -> None:
    # COMPLETE goes first: a crash half-way must not leave a folder that looks whole.
    (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
