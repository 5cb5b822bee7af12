"""A plan: the divisions of the GPUs that fit, each simulated, the fastest first; or one recipe on CPUs, from a profile.

recipe, shape, GPU --speed.py--> seconds of a decode step, a training step, a push --simulate/--> samples per second
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from asyncrl.control.staleness import at_once
from asyncrl.errors import UserError
from asyncrl.models import fingerprint
from asyncrl.observe.bottleneck import bottleneck
from asyncrl.planner import gpus, memory, models, speed
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.figures import Figures, figures
from asyncrl.planner.gpus import Gpu
from asyncrl.planner.profile import Profile, simulated_steps
from asyncrl.planner.shape import Shape
from asyncrl.planner.simulation import Scene, simulate
from asyncrl.planner.split import Split, splits
from asyncrl.planner.work import Work, assumed
from asyncrl.recipe.load import control_settings
from asyncrl.recipe.schema import Recipe

SIMULATED = 5
"""Divisions that are simulated: those that a formula calls the fastest."""
MOST_GPUS = 2048
ALIKE = 0.98
"""Samples per second, over the most, that no plan tells apart."""
FIXED_SHARE_ON_CPU = 0.5
"""Of a CPU's decode step at the concurrency of the profile, that does not depend on the concurrency. It matters only
where the plan's differs from the profile's. An assumption."""


@dataclass(frozen=True)
class Row:
    """One way to run the recipe, and what it would give."""

    split: Split
    trainer: memory.Trainer | None
    generator: memory.Generator | None
    """None on CPUs."""
    scene: Scene
    figures: Figures

    @property
    def limit(self) -> str:
        """Which role limits, and what to change."""
        return bottleneck(self.figures.shares)


@dataclass(frozen=True)
class Plan:
    """Rows, the fastest first, and what they rest on."""

    recipe: Recipe
    rows: list[Row]
    gpu: Gpu | None
    shape: Shape | None
    model_origin: str
    work: Work
    profile: Profile | None

    @property
    def as_it_stands(self) -> Row | None:
        """The row of the recipe's own division."""
        return next((row for row in self.rows if row.split == Split.of(self.recipe)), None)


def plan(
    recipe: Recipe,
    base_dir: Path,
    num_gpus: int,
    gpu_name: str = gpus.DEFAULT,
    profile: Profile | None = None,
    mean_tokens: float | None = None,
) -> Plan:
    """Raises UserError if nothing fits, or if there is nothing to go by."""
    if profile is not None and not _is_same_model(profile, recipe.model, base_dir):
        raise UserError(
            f"--profile {profile.name} is of a run of {profile.recipe.model}, the plan is for {recipe.model}; "
            "take a run of the same model"
        )
    if num_gpus == 0:
        return _on_cpus(recipe, profile)
    if num_gpus > MOST_GPUS:
        raise UserError(f"{num_gpus} GPUs are more than a plan looks at, which is {MOST_GPUS}; plan for fewer")
    if any(not teacher.url for teacher in recipe.algorithm.teacher):
        raise UserError(
            "a plan does not count teachers; plan with algorithm.teacher=null and a reward, and leave room for them on "
            "the trainer's GPUs"
        )
    if recipe.algorithm.sft:
        raise UserError(
            "a plan does not count the demonstrations of algorithm.sft; plan with algorithm.sft=null, and leave time "
            "for their tokens on the trainer's GPUs"
        )
    gpu = gpus.find(gpu_name)
    shape, origin = models.find(recipe.model, base_dir)
    work = profile.work(recipe) if profile else assumed(recipe, mean_tokens)
    found = splits(recipe, shape, gpu, num_gpus, work)
    scene_of = scenes(recipe, shape, gpu, work, profile)
    quickest = sorted(found, key=lambda split: _estimate(recipe, scene_of(split)))[:SIMULATED]
    own = Split.of(recipe)
    if own in found and own not in quickest:
        quickest.append(own)
    rows = [
        Row(
            split,
            memory.trainer(recipe, shape, split.ranks, split.shard_ranks),
            memory.generator(recipe, shape, gpu, split.gpus_per_replica, work, split.kv_cache_gib),
            scene_of(split),
            simulated(recipe, scene_of(split)),
        )
        for split in quickest
    ]
    return Plan(recipe, _best_first(rows), gpu, shape, origin, work, profile)


def _is_same_model(profile: Profile, model: str, base_dir: Path) -> bool:
    """By the folder that is meant, or by what is in it; hub names are paths that lead nowhere here."""
    path, before = (base_dir / model).resolve(), (base_dir / profile.recipe.model).resolve()
    return path == before or profile.model_fingerprint == fingerprint(str(path) if path.is_dir() else model)


def _best_first(rows: list[Row]) -> list[Row]:
    """By samples per second; of those that are as fast as the fastest, the one with the smallest engines first."""
    ordered = sorted(rows, key=lambda row: -row.figures.samples_per_s)
    alike = [r for r in ordered if r.figures.samples_per_s >= ALIKE * ordered[0].figures.samples_per_s]
    best = min(alike, key=lambda row: row.split.gpus_per_replica)
    return [best, *(row for row in ordered if row is not best)]


def scenes(recipe: Recipe, shape: Shape, gpu: Gpu, work: Work, profile: Profile | None) -> Callable[[Split], Scene]:
    """What each division comes to: by the formulas, and if there is a profile of GPUs, corrected by what it measured
    over what the formulas say of it."""

    def by_formula(recipe: Recipe, work: Work, split: Split) -> Scene:
        train = speed.train(recipe, shape, gpu, split.ranks, split.shard_ranks, work)
        slower = speed.SHARED if split.gpus_per_rank < 1 else 1.0
        return Scene(
            group_size=recipe.group_size,
            lengths=work.lengths,
            replicas=split.replicas,
            decode=speed.decode(recipe, shape, gpu, split.gpus_per_replica, work, split.kv_cache_gib).scaled(slower),
            train_token_s=train.token_s * slower,
            train_step_s=train.step_s * slower,
            push_s=speed.push(recipe, shape, gpu, split.num_gpus, split.ranks),
            rolling=recipe.weights.rolling,
            checkpoint_s=speed.checkpoint(recipe, shape, split.shard_ranks),
            checkpoint_every_steps=recipe.checkpoint.every_steps,
        )

    if profile is None or not profile.on_gpus:
        share = profile.filtered_share if profile else 0.0
        return lambda split: replace(by_formula(recipe, work, split), filtered_share=share)
    theirs = by_formula(profile.recipe, profile.work(profile.recipe), Split.of(profile.recipe))
    run = _measured(profile, replace(theirs, filtered_share=profile.filtered_share))
    settings = control_settings(profile.recipe)
    decode_factor = profile.calibrated(settings, run).step_s / theirs.decode.step_s
    train_s = theirs.train_step_s + theirs.train_token_s * profile.num_samples * theirs.lengths.mean
    train_factor = profile.figures.seconds("trainer_time/busy") / train_s
    push_factor = profile.push_s / theirs.push_s

    def corrected(split: Split) -> Scene:
        scene = by_formula(recipe, work, split)
        return replace(
            scene,
            decode=scene.decode.scaled(decode_factor),
            train_token_s=scene.train_token_s * train_factor,
            train_step_s=scene.train_step_s * train_factor,
            push_s=scene.push_s * push_factor,
            driver_s=profile.driver_s,
            filtered_share=profile.filtered_share,
        )

    return corrected


def _measured(profile: Profile, scene: Scene) -> Scene:
    """The scene with the trainer and the pushes that the run had."""
    return replace(
        scene,
        train_token_s=profile.train_token_s,
        train_step_s=0.0,
        push_s=profile.push_s,
        checkpoint_s=profile.checkpoint_s,
        driver_s=profile.driver_s,
        filtered_share=profile.filtered_share,
    )


def _on_cpus(recipe: Recipe, profile: Profile | None) -> Plan:
    if profile is None:
        raise UserError(
            "a recipe on CPUs (--gpus 0) has no figures to go by: say --profile RUN_DIR of a run on them, or --gpus N"
        )
    ran = profile.recipe
    if profile.on_gpus:
        raise UserError(f"--profile {profile.name} ran on GPUs, which says nothing of CPUs; say --gpus, or another run")
    for key, here, there in (
        ("rollout.replicas", recipe.rollout.replicas, ran.rollout.replicas),
        ("trainer.ranks", recipe.trainer.ranks, ran.trainer.ranks),
        ("rollout.engine", recipe.rollout.engine, ran.rollout.engine),
    ):
        if here != there:
            raise UserError(
                f"{key} is {here}, and was {there} in --profile {profile.name}: on CPUs the roles share the cores, so "
                f"that a run with one says nothing of the other; set {key}={there}, or run it"
            )
    work, settings = profile.work(recipe), control_settings(ran)
    is_simulated = ran.rollout.engine == "simulated"
    limit = int(ran.rollout.engine_args.get("max_num_seqs", 2**31 if is_simulated else speed.MAX_SEQUENCES[False]))
    num_running = min(limit, at_once(settings, ran.rollout.replicas) * ran.group_size / ran.rollout.replicas)
    fixed = 1.0 if is_simulated else FIXED_SHARE_ON_CPU
    step_s = num_running / profile.figures.busy_tokens_per_s
    run = _measured(
        profile,
        Scene(
            group_size=ran.group_size,
            lengths=profile.work(ran).lengths,
            replicas=ran.rollout.replicas,
            decode=DecodeSpeed(fixed * step_s, (1 - fixed) * step_s / num_running, limit),
            train_token_s=profile.train_token_s,
            rolling=ran.weights.rolling,
            checkpoint_every_steps=ran.checkpoint.every_steps,
        ),
    )
    scene = replace(
        run,
        group_size=recipe.group_size,
        lengths=work.lengths,
        decode=profile.calibrated(settings, run),
        rolling=recipe.weights.rolling,
        checkpoint_every_steps=recipe.checkpoint.every_steps,
    )
    row = Row(Split.of(recipe), None, None, scene, simulated(recipe, scene))
    return Plan(recipe, [row], None, None, "", work, profile)


def _estimate(recipe: Recipe, scene: Scene) -> float:
    """Seconds of a step, roughly: of the slower role, or of the longest completion, which S + 1 steps have time for."""
    settings = control_settings(recipe)
    num_samples = recipe.groups_per_step * recipe.group_size
    running = max(
        1, min(scene.decode.max_sequences, at_once(settings, scene.replicas) * recipe.group_size // scene.replicas)
    )
    step_s, mean = scene.decode.of(running), scene.lengths.mean
    generate_s = num_samples * mean * step_s / running / scene.replicas
    train_s = scene.train_step_s + scene.train_token_s * num_samples * mean
    if recipe.max_staleness == 0:
        return max(generate_s, max(scene.lengths.values) * step_s) + train_s + scene.push_s
    longest_s = max(scene.lengths.values) * step_s / (recipe.max_staleness + 1)
    return max(generate_s + scene.push_s, train_s, longest_s)


def simulated(recipe: Recipe, scene: Scene) -> Figures:
    """Of steps in the middle of a run: the first fill the queues, and the last draw no new tasks."""
    settings, ends = control_settings(recipe), int(recipe.max_staleness) + 1
    steps = simulated_steps(settings, recipe.group_size)
    records = simulate(replace(settings, max_steps=steps), scene)[ends:-ends]
    return figures(records, recipe.groups_per_step * recipe.group_size, scene.replicas)
