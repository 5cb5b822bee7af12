"""What a run has measured, for the plan of another: lengths, tokens per second while busy, pushes, what is filtered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from asyncrl.buffer.records import groups
from asyncrl.control.settings import Settings
from asyncrl.control.staleness import slots
from asyncrl.errors import UserError
from asyncrl.models import MODEL_FILE
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.figures import Figures, figures, steady
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.simulation import Scene, simulate
from asyncrl.planner.work import Work, assumed
from asyncrl.recipe.load import control_settings, load
from asyncrl.recipe.schema import Recipe
from asyncrl.report.run_files import RunFiles
from asyncrl.rollout.trajectory import decode
from asyncrl.storage.run_dir import json_object
from asyncrl.storage.run_dir import text as read_text

LEAST_STEPS = 4
_LEAST_SAMPLES = 16
_MOST_GROUPS = 500
_ROUNDS = 4
_MOST_STALENESS, _MOST_SAMPLES = 1000, 1_000_000
"""Of a run that can be simulated: in a step, for the second."""


@dataclass(frozen=True)
class Profile:
    """A run's figures, without its first steps."""

    name: str
    recipe: Recipe
    figures: Figures
    sample: Sequence[float]
    """Completions, in tokens: one trajectory each of two groups a step. Empty if there are too few."""
    prompt_tokens: float | None
    """In the mean; None if nothing of the run says it."""
    model_fingerprint: object
    """As `models.fingerprint`, of the model that it began with; None if it kept none."""
    push_s: float
    checkpoint_s: float
    """Of one."""
    filtered_share: float

    @property
    def on_gpus(self) -> bool:
        return bool(self.recipe.rollout.gpus_per_replica and self.recipe.trainer.gpus_per_rank)

    @property
    def num_samples(self) -> int:
        return self.recipe.groups_per_step * self.recipe.group_size

    @property
    def train_token_s(self) -> float:
        """Seconds of the trainer per completion token of a batch."""
        return self.figures.seconds("trainer_time/busy") / (self.num_samples * self.figures.completion_tokens)

    @property
    def driver_s(self) -> float:
        """Of a step, that the trainer stands still for none of the measured reasons."""
        names = ("trainer_time/unaccounted", "trainer_time/wait_publish")
        return sum(self.figures.seconds(name) for name in names)

    def work(self, recipe: Recipe) -> Work:
        """Of another recipe for the same model, whose rollouts end at its own limit."""
        longest = recipe.max_sampled_tokens
        mean = min(max(1.0, self.figures.completion_tokens), longest)
        shape = Lengths.measured(self.sample, mean, longest) if self.sample else Lengths.log_normal(mean, longest)
        prompt = self.prompt_tokens
        origin = f"measured in {self.name}: prompts of {prompt or 0:.0f} tokens and completions of {mean:.0f}"
        if prompt is None:
            prompt = assumed(recipe).prompt_tokens
            origin = (
                f"measured in {self.name}: completions of {mean:.0f} tokens; assumed: prompts of {prompt:.0f}, as "
                "its journal has none"
            )
        return Work(recipe.groups_per_step, recipe.group_size, prompt, shape, origin)

    def calibrated(self, settings: Settings, scene: Scene) -> DecodeSpeed:
        """The scene's decoding, faster or slower, so that the run it was measured in, simulated, makes as many tokens
        per second of busy time as it did. `settings` and `scene` are that run's."""
        decode = scene.decode
        steps = simulated_steps(settings, scene.group_size)
        with _of_a_run(self.name):
            for _ in range(_ROUNDS):
                records = simulate(replace(settings, max_steps=steps), replace(scene, decode=decode))
                made = figures(steady(records), self.num_samples, scene.replicas).busy_tokens_per_s
                decode = decode.scaled(made / self.figures.busy_tokens_per_s)
        return decode


def simulated_steps(settings: Settings, group_size: int) -> int:
    """Enough to leave the start behind and to average over, and not so many that a plan takes long."""
    return 2 * (int(settings.max_staleness) + 2) + max(8, min(32, 8000 // (settings.groups_per_step * group_size)))


def read(run_dir: Path) -> Profile:
    """Raises UserError if it is no run, or too short a one."""
    if not (text := read_text(run_dir, "recipe.yaml")):
        raise UserError(f"--profile {run_dir} is not a run directory: it has no recipe.yaml")
    with _of_a_run(str(run_dir)):
        return _read(run_dir, load(run_dir / "recipe.yaml", text=text))


@contextmanager
def _of_a_run(name: str) -> Iterator[None]:
    """Raises UserError for figures that cannot be calculated with."""
    try:
        yield
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        raise UserError(
            f"--profile {name}: its metrics are not those of a run ({error!r:.100}); take another"
        ) from error


def _read(run_dir: Path, recipe: Recipe) -> Profile:
    num_samples = recipe.groups_per_step * recipe.group_size
    if recipe.max_staleness > _MOST_STALENESS or num_samples > _MOST_SAMPLES:
        raise UserError(
            f"--profile {run_dir}: its recipe has max_staleness {recipe.max_staleness} and {num_samples} trajectories "
            f"a step; over {_MOST_STALENESS} and {_MOST_SAMPLES} cannot be simulated; take another"
        )
    settings = control_settings(recipe)
    at_once = slots(settings) * recipe.group_size
    in_all = simulated_steps(settings, recipe.group_size) * num_samples
    if at_once > _MOST_SAMPLES or in_all > 10 * _MOST_SAMPLES:
        raise UserError(
            f"--profile {run_dir}: its recipe has {at_once} trajectories in flight at once, a simulation would make "
            f"{in_all}; over {_MOST_SAMPLES} and {10 * _MOST_SAMPLES} take too long; take another"
        )
    files = RunFiles(run_dir)
    files.refresh()
    records = files.records
    if len(records) < LEAST_STEPS:
        raise UserError(f"--profile {run_dir} has {len(records)} steps; a plan needs a run of at least {LEAST_STEPS}")
    kept = steady(records)
    found = figures(kept, num_samples, recipe.rollout.replicas)
    if not found.busy_tokens_per_s:
        raise UserError(f"--profile {run_dir} has no generator that was ever busy; take a run that generates")
    sampled = (sample for step in files.sampled_steps for sample in files.samples([step]))
    lengths = [len(sample["tokens"]) for sample in sampled if sample.get("tokens")]
    last = kept[-1]
    ended = last["groups/filtered"] + last["groups/trained"]
    return Profile(
        name=str(run_dir),
        recipe=recipe,
        figures=found,
        sample=lengths if len(lengths) >= _LEAST_SAMPLES else (),
        prompt_tokens=_prompt_tokens(run_dir),
        model_fingerprint=json_object(run_dir, MODEL_FILE).get("fingerprint"),
        push_s=fmean(record["publish/pause_s"] or 0.0 for record in kept),
        checkpoint_s=_checkpoint_s(recipe, kept),
        filtered_share=last["groups/filtered"] / ended if ended else 0.0,
    )


def _prompt_tokens(run_dir: Path) -> float | None:
    """In the mean over the groups that the journal begins with; None if it has none."""
    frames = (record.payload for record in islice(groups(run_dir / "journal"), _MOST_GROUPS))
    lengths = [decode(frame).trajectories[0].prompt_length for frame in frames]
    return fmean(lengths) if lengths else None


def _checkpoint_s(recipe: Recipe, records: Sequence[Mapping[str, Any]]) -> float:
    every = recipe.checkpoint.every_steps
    num_samples = recipe.groups_per_step * recipe.group_size
    spent = sum(r["trainer_time/checkpoint"] * num_samples / r["throughput/samples_per_s"] for r in records)
    # The copy stalls the step after the one that was saved.
    saved = sum(r["step"] % every == 0 and r["step"] > 0 for r in records) if every else 0
    return spent / saved if saved else 0.0
