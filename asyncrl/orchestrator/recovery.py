"""What a run directory says about where its run broke off: nothing but files is read here.

journal/control ----fold----> controller, as it was          (control/history.py)
newest checkpoint c + the batches c, c+1, … of the journal -> where the trainer starts, and what it trains again
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from asyncrl.buffer.records import groups, read_control
from asyncrl.control.controller import Controller
from asyncrl.control.history import Decisions, Entry, HistoryError, Snapshot, replay
from asyncrl.control.messages import Train
from asyncrl.control.settings import Settings
from asyncrl.errors import UserError
from asyncrl.metric_names import nth
from asyncrl.storage import atomic
from asyncrl.storage.run_dir import json_object


@dataclass(frozen=True)
class Recovered:
    """A run that broke off."""

    controller: Controller
    checkpoint: Path | None
    """None: the trainer starts from the initial model."""
    version: int
    """Of the checkpoint; 0 without one."""
    batches: dict[int, Train]
    """By step, from `version` on: those done, and the one that was in flight."""


def recover(run_dir: Path, settings: Settings, read: Callable[[int], None] = lambda num_bytes: None) -> Recovered:
    """Raises UserError if there is nothing to resume, or the settings cannot continue it; JournalCorrupt.

    `read` is told how much of the journal has been read, of `control_bytes`.
    """
    complete = atomic.complete(run_dir / "checkpoints")
    checkpoint = complete[-1] if complete else None
    control = json_object(checkpoint, "control.json") if checkpoint else {}
    version = control.get("steps_done", 0)
    if type(version) is not int:
        raise UserError(
            f"{checkpoint}/control.json is not as asyncrl writes it; remove {checkpoint} to resume from the checkpoint "
            "before"
        )
    try:
        entries = list(read_control(run_dir / "journal", read))
        if entries:
            controller = replay(entries)
        elif checkpoint:
            _require_no_newer_groups(run_dir, version)
            controller = replay([Snapshot(control["controller"])])
        else:
            raise UserError(
                f"{run_dir} has neither a checkpoint nor a journal to resume from; start it again with `asyncrl train`"
            )
    except (HistoryError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{run_dir}/journal does not fit this version of asyncrl ({error}); move it away to go on from "
            f"checkpoint {version}, at the cost of what was done since"
        ) from error
    batches = {step: batch for step, batch in leases(entries).items() if step >= version}
    missing = next((step for step in range(version, controller.steps_done) if step not in batches), None)
    if missing is not None:
        raise UserError(
            f"{run_dir}/journal lacks the batch of step {nth(missing)}, which checkpoint {version} does not contain; "
            "put the missing segments back, or move the folder away to go on from the checkpoint"
        )
    controller.change(settings)
    return Recovered(controller, checkpoint, version, batches)


def _require_no_newer_groups(run_dir: Path, version: int) -> None:
    """Raises UserError if groups are left of which only the lost control stream knew: they may be of later versions
    than the checkpoint, under the numbers of those that are generated next."""
    if next(groups(run_dir / "journal"), None) is not None:
        raise UserError(
            f"{run_dir}/journal has groups and no record of what became of them (control_*.log); put those files back, "
            f"or move the folder away to go on from checkpoint {version}"
        )


def leases(entries: list[Entry]) -> dict[int, Train]:
    """The batch of every step, as it was decided."""
    decided = (decision for entry in entries if isinstance(entry, Decisions) for decision in entry.decisions)
    return {decision.step: decision for decision in decided if isinstance(decision, Train)}
