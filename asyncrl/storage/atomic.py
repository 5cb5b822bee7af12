"""Checkpoint folders that are either whole or not there.

checkpoints/.step_000010.part   written and fsynced
checkpoints/step_000010         renamed
checkpoints/step_000010/COMPLETE  last, fsynced: only now it counts
"""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from asyncrl.errors import RunFailed, UserError, is_of_a_disk
from asyncrl.storage.run_dir import json_object, sync

_NAME = re.compile(r"step_(\d{6,})")


def begin(root: Path, step: int) -> Path:
    """An empty folder to write the checkpoint of `step` steps done into; what a crash left there is removed."""
    part = root / f".step_{step:06d}.part"
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    return part


def commit(part: Path) -> Path:
    """Make the written folder durable, give it its name and mark it complete."""
    _sync_below(part)
    final = part.with_name(part.name.removeprefix(".").removesuffix(".part"))
    _remove(final)
    part.rename(final)
    sync(final.parent)
    (final / "COMPLETE").touch()
    sync(final)
    return final


def complete(root: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [p for p in root.glob("step_*") if _NAME.fullmatch(p.name) and (p / "COMPLETE").exists()]
    return sorted(found, key=step_of)


def chosen(run_dir: Path, step: int | None) -> Path:
    """The checkpoint after `step` steps; None: the newest. Raises UserError if it is not there."""
    found = {step_of(folder): folder for folder in complete(run_dir / "checkpoints")}
    if not found or step not in (None, *found):
        there = ", ".join(map(str, found)) or "none"
        raise UserError(f"{run_dir} has no checkpoint{'' if step is None else f' of step {step}'}; it has {there}")
    return found[max(found) if step is None else step]


def model_of(target: str) -> Path | None:
    """The model of a checkpoint, if there is one that `RUN_DIR@STEP` names."""
    run_dir, at, step = target.rpartition("@")
    folder = Path(run_dir) / "checkpoints" / f"step_{int(step):06d}" / "model" if at and step.isdecimal() else None
    return folder if folder and folder.is_dir() else None


def prune(
    root: Path,
    keep_last: int,
    keep_every: int | None = None,
    best: str | None = None,
    known: Mapping[int, float] | None = None,
    awaited: Callable[[int], bool] | None = None,
) -> None:
    """Delete all but the newest `keep_last` complete checkpoints, and every incomplete one.

    Kept besides: those whose step is a multiple of `keep_every`; the one with the highest value (the newest of equal
    ones) of the metric `best`: by step in `known`, or in its control.json; those whose value is `awaited`.
    """
    found = complete(root)
    keep = set(found[-keep_last:])
    if keep_every is not None:
        keep |= {folder for folder in found if step_of(folder) % keep_every == 0}
    keep |= {folder for folder in found if awaited is not None and awaited(step_of(folder))}
    if best is not None:
        values = [(_metric(folder, best) if known is None else known.get(step_of(folder)), folder) for folder in found]
        scored = [(value, step_of(folder), folder) for value, folder in values if value is not None]
        keep |= {max(scored)[2]} if scored else set()
    for folder in [*root.glob("step_*"), *root.glob(".step_*.part")]:
        if folder not in keep:
            _remove(folder)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder to write, which is `path`, whole and durable, once the block has ended well; else nothing is left.

    Raises UserError if there is something of that name, or where it cannot be made; RunFailed if the disk is full.
    """
    if not path.name or os.path.lexists(path):
        raise UserError(f"{path} exists; move it away, or name another folder")
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise UserError(f"{path} cannot be made: {error.strerror}; name another folder") from error
    try:
        yield part
        _sync_below(part)
        part.rename(path)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if is_of_a_disk(error):
            raise RunFailed(f"{path} could not be written: {error}; free or repair the disk") from error
        raise
    sync(path.parent)


def _sync_below(root: Path) -> None:
    for folder, _, files in os.walk(root):
        for name in files:
            sync(Path(folder, name))
        sync(Path(folder))


def step_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step_"))


def _metric(folder: Path, name: str) -> float | None:
    """The metric as the checkpoint recorded it; None if it has none, or none that can be compared (NaN)."""
    try:
        value = (json_object(folder, "control.json").get("metrics") or {}).get(name)
    except (OSError, UserError, AttributeError):
        # An old checkpoint that cannot be read is no reason to end a healthy run.
        return None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _remove(folder: Path) -> None:
    # COMPLETE goes first: a crash half-way must not leave a folder that looks whole.
    (folder / "COMPLETE").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
