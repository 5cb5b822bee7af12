"""`asyncrl replay`: a run again from its journal, without generating anything, and whether it comes out the same.

control stream --fold--> every decision made again and compared; each task trained at most once, each step once
groups stream  --train the leased batches in order--> weights compared bit for bit with each checkpoint
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUPS_STREAM, groups, read_control
from asyncrl.checkpoint import files
from asyncrl.control.history import Decisions, HistoryError, replay
from asyncrl.control.messages import Train
from asyncrl.errors import RunFailed, UserError
from asyncrl.metric_names import nth
from asyncrl.models import TINY_LLAMA
from asyncrl.orchestrator.fingerprint import require_demonstrations, trained_anew_at
from asyncrl.orchestrator.same_model import require_model
from asyncrl.plugins import one_line
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import decode, key_of
from asyncrl.storage import atomic
from asyncrl.terminal.progress import shown
from asyncrl.trainer.backend import Setup, TrainerBackend, backend_class

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Replayed:
    """What a replay found to be so; what it found not to be so is an error."""

    num_entries: int
    steps: range
    """Steps whose batches the journal holds."""
    trained: int
    compared: tuple[int, ...]
    """Versions whose weights and optimizer state came out bit for bit as in their checkpoint."""


def replay_run(run_dir: Path, recipe: Recipe, verify: bool) -> Replayed:
    """Fold the history; with `verify` also train it. Raises RunFailed at the first difference."""
    journal = run_dir / "journal"
    entries = list(read_control(journal))
    if not entries:
        raise UserError(f"{run_dir} has no journal to replay: the run broke off before its first entry, or lost it")
    try:
        controller = replay(entries)
    except HistoryError as error:
        raise RunFailed(f"{run_dir}/journal contradicts itself: {error}") from error
    controller.ledger.check()
    batches = _batches([d for e in entries if isinstance(e, Decisions) for d in e.decisions if isinstance(d, Train)])
    steps = range(min(batches, default=controller.steps_done), controller.steps_done)
    missing = next((step for step in steps if step not in batches), None)
    if missing is not None:
        raise RunFailed(f"{run_dir}/journal contradicts itself: step {nth(missing)} is done, and has no batch")
    try:
        compared = tuple(_train(run_dir, recipe, [batches[step] for step in steps])) if verify else ()
    except (LookupError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, RunFailed):
            raise
        raise RunFailed(
            f"{run_dir} cannot be trained again: {one_line(error)}; its checkpoints or its journal are not those of a "
            "run with this recipe"
        ) from error
    trained = sum(len(batches[step].groups) for step in steps)
    return Replayed(len(entries), steps, trained, compared)


def _batches(decided: list[Train]) -> dict[int, Train]:
    """By step. Raises RunFailed if a step or a task was trained twice."""
    for what, counts in (
        ("step", Counter(batch.step for batch in decided)),
        ("task", Counter(task for batch in decided for task, _ in batch.groups)),
    ):
        if twice := [number for number, count in counts.items() if count > 1]:
            number = nth(twice[0]) if what == "step" else twice[0]
            raise RunFailed(f"{what} {number} was trained {counts[twice[0]]} times")
    return {batch.step: batch for batch in decided}


def _train(run_dir: Path, recipe: Recipe, batches: list[Train]) -> Iterator[int]:
    """Train the batches from the oldest state there is; yields each version that equals its checkpoint."""
    if recipe.trainer.ranks > 1:
        raise UserError(
            f"{run_dir} was trained by {recipe.trainer.ranks} ranks, whose sums one process cannot repeat bit for bit"
        )
    require_model(run_dir, recipe.model, recipe.model)
    require_demonstrations(run_dir, recipe, Path.cwd())
    checkpoints = {int(p.name.removeprefix("step_")): p for p in atomic.complete(run_dir / "checkpoints")}
    first = batches[0].step if batches else max(checkpoints, default=0)
    if anew := trained_anew_at(run_dir):
        # What a checkpoint of that step or a later one holds was trained by whatever recipe there was.
        begun = min((version for version in checkpoints if version >= anew), default=anew)
        first = max(first, begun)
        logger.warning(
            "a resume changed how step %d and later ones are trained: those before step %d are not trained again",
            nth(anew),
            nth(begun),
        )
    if first:
        # Checkpoint `first` may be gone by now, where newer ones came.
        first = min((version for version in checkpoints if version >= first), default=first)
    later = [version for version in checkpoints if version > first]
    if not later:
        raise UserError(
            f"{run_dir} has the batches from step {nth(first)} on, and no checkpoint after that to compare with; "
            "a run with journal.keep=all and checkpoint.every_steps can be verified"
        )
    batches = [batch for batch in batches if first <= batch.step < max(later)]
    trainer = _trainer(recipe, run_dir)
    if first:
        trainer.restore(files.read(checkpoints[first] / "trainer"))
    positions = {key_of(record.payload): record.position for record in groups(run_dir / "journal")}
    with shown("training the batches again", total=len(batches)) as advance:
        for done, batch in enumerate(batches, 1):
            frames = [log.read_at(run_dir / "journal", GROUPS_STREAM, positions[key]) for key in batch.groups]
            trainer.step([decode(frame) for frame in frames], batch.step, batch.min_version)
            advance(done)
            if (version := batch.step + 1) in checkpoints:
                _compare(version, trainer.state(), files.read(checkpoints[version] / "trainer"))
                yield version


def _trainer(recipe: Recipe, run_dir: Path) -> TrainerBackend:
    """As the trainer actor makes it."""
    model = str(run_dir / "initial_model") if recipe.model == TINY_LLAMA else recipe.model
    return backend_class(recipe, Path.cwd())(Setup(recipe, model, Path.cwd()))


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one, other)


def _compare(version: int, ours: dict[str, torch.Tensor], theirs: files.Saved) -> None:
    names = (ours.keys() | theirs.keys()) - {"rng"}
    differ = sorted(n for n in names if not (n in ours and n in theirs and _equal(ours[n].cpu(), theirs[n][...])))
    if differ:
        raise RunFailed(
            f"version {version} trained again differs from its checkpoint in {len(differ)} tensors: {differ[0]}"
        )
