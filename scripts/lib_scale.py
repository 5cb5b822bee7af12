"""Published settings at scale, as far as they say enough to be simulated: their figure, their policy, ours.
`scripts/scale` writes the tables into docs/scale.md; the text around them is the page's own."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from lib_pages import DOCS, between

from asyncrl.control.settings import Settings
from asyncrl.planner import gpus, models, speed
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.figures import figures
from asyncrl.planner.gpus import Gpu
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.shape import Shape
from asyncrl.planner.simulation import Record, Scene, simulate
from asyncrl.planner.work import Work
from asyncrl.recipe.load import load
from asyncrl.recipe.schema import Recipe

PAGE = DOCS / "scale.md"
ANY_ORDER = 10**6
"""A selection window that lets whatever is finished be trained."""
H20 = Gpu("H20", 97_871 * 2**20, 148e12, 4.0e12, 450e9)
"""NVIDIA's data sheet of 2024; not in the planner's table, as it is sold in one country only."""
MOST_OFF = 0.2


def recipe_of(model: str, groups: int, longest: int, *more: str) -> Recipe:
    keys = [f"model={model}", f"groups_per_step={groups}", f"rollout.max_new_tokens={longest}", *more]
    return load(DOCS.parent / "recipes/dapo-7b.yaml", [*keys, "rollout.max_prompt_tokens=2048"])


def keys(groups: int, staleness: float, steps: int, **more: object) -> Settings:
    always = {"groups_per_step": groups, "max_staleness": staleness, "max_steps": steps, "tokens_per_group": 10**5}
    return Settings(**always, **more)  # type: ignore[arg-type]


def middle(settings: Settings, scene: Scene, seed: int = 0) -> list[Record]:
    """Of a run, without the steps that fill it and those that draw no more. Batches that a straggler has held up are
    trained at once when it ends, so it takes several times S + 1 steps to know the pace."""
    ends = int(settings.max_staleness) + settings.push_lag
    return simulate(replace(settings, max_steps=2 * ends + settings.max_steps), scene, seed)[ends:-ends]


def step_s(settings: Settings, scene: Scene) -> float:
    records = middle(settings, scene)
    return (records[-1]["time_s"] - records[0]["time_s"]) / (len(records) - 1)


# -- verl's fully asynchronous trainer


@dataclass(frozen=True)
class Verl:
    """Seconds of their tables, per 512 prompts: of the synchronous run, and of the asynchronous one, whose `wait_s`
    they call gen. Half of the GPUs generate there."""

    num_gpus: int
    sync_s: float
    sync_gen_s: float
    async_s: float
    wait_s: float
    update_s: float
    threshold: float = 0.5

    @property
    def sync_gpu_s(self) -> tuple[int, float, float]:
        return self.num_gpus, self.sync_s, self.sync_gen_s


VERL = [
    Verl(32, 790.10, 357.41, 294.77, 21.26, 269.80),
    Verl(64, 365.28, 150.72, 189.26, 28.46, 156.98),
    Verl(128, 356.30, 177.85, 150.63, 33.14, 113.16),
    Verl(128, 356.30, 177.85, 146.11, 38.88, 103.22, 0.3),
    Verl(128, 356.30, 177.85, 171.30, 58.17, 109.12, 0.1),
    Verl(128, 356.30, 177.85, 231.34, 128.47, 98.77, 0.0),
]
VERL_LONGEST, VERL_PROMPTS, VERL_UPDATES = 28_672, 512, 4
VERL_RECIPE = ("Qwen/Qwen2.5-7B", VERL_PROMPTS, VERL_LONGEST)


def verl_decode(lengths: Lengths) -> DecodeSpeed:
    recipe = recipe_of(*VERL_RECIPE)
    shape, _ = models.find(recipe.model, DOCS)
    return speed.decode(recipe, shape, H20, 1, Work(VERL_PROMPTS, 16, 200.0, lengths, ""))


def verl_sync(row: Verl, mean: float) -> Scene:
    """All GPUs generate, then all train."""
    lengths = replace(Lengths.log_normal(mean, VERL_LONGEST), of_task=0.5)
    rest_s = row.sync_s - row.sync_gen_s
    return Scene(
        group_size=16, lengths=lengths, replicas=row.num_gpus, decode=verl_decode(lengths),
        train_token_s=0.0, train_step_s=rest_s,
    )  # fmt: skip


def verl_mean(row: Verl) -> float:
    """Tokens of an answer with which the synchronous step takes as long as theirs."""
    low, high = 1000.0, 5_000.0
    for _ in range(6):
        mean = (low + high) / 2
        low, high = (mean, high) if step_s(keys(VERL_PROMPTS, 0, 3), verl_sync(row, mean)) < row.sync_s else (low, mean)
    return (low + high) / 2


def verl_async(row: Verl, mean: float, updates: int) -> Scene:
    """Half of the GPUs generate; the trainer takes what theirs took, and both stand still for the push."""
    push_s = row.async_s - row.wait_s - row.update_s
    return replace(
        verl_sync(row, mean), replicas=row.num_gpus // 2, train_step_s=row.update_s / updates,
        push_s=push_s, driver_s=push_s / updates,
    )  # fmt: skip


def verl_policy(row: Verl, steps: int = 16) -> Settings:
    """Theirs in our keys: batches of 128 prompts as they finish, a push after four, (1 + threshold) x 512 prompts."""
    S = (1 + row.threshold) * VERL_UPDATES - 1
    return keys(128, S if S % 1 else int(S), steps, push_lag=VERL_UPDATES, selection_window=ANY_ORDER)


def verl() -> Iterator[str]:
    yield "| GPUs | threshold | theirs | their policy, simulated | off | ours, `max_staleness: 1` | 2 |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    means: dict[tuple[int, float, float], float] = {}
    for row in VERL:
        mean = means.get(row.sync_gpu_s) or verl_mean(row)
        means[row.sync_gpu_s] = mean
        theirs = row.sync_s / row.async_s
        same = row.sync_s / (VERL_UPDATES * step_s(verl_policy(row), verl_async(row, mean, VERL_UPDATES)))
        off = same / theirs - 1
        ours = ["", ""]
        if row.threshold == VERL[0].threshold:  # ours has none
            walls = [step_s(keys(VERL_PROMPTS, S, 4 * S + 4), verl_async(row, mean, 1)) for S in (1, 2)]
            ours = [f"{row.sync_s / wall_s:.2f}x" for wall_s in walls]
        said = " (more than 20 %)" if abs(off) > MOST_OFF else ""
        yield (
            f"| {row.num_gpus} | {row.threshold:g} | {theirs:.2f}x | {same:.2f}x | {off:+.0%}{said} | "
            f"{ours[0]} | {ours[1]} |"
        )
    yield ""
    said = ", ".join(f"{mean:.0f} tokens at {gpus} GPUs" for (gpus, *_), mean in means.items())
    yield f"Mean answers with which the synchronous step takes as long as theirs: {said}."


# -- 1,024 GPUs and a long tail

TAIL_GPUS, TAIL_GROUPS, TAIL_LONGEST, TENSOR_PARALLEL, TAIL_ENGINES = 1024, 512, 32_768, 4, 144
TAIL_SPREAD = 0.99
"""Sigma with which the 99th percentile is ten times the median: ln 10 / 2.326."""


def tail(median: float) -> Lengths:
    free = Lengths.log_normal(median * 1.5, 10**9, TAIL_SPREAD)
    middle = sorted(free.values)[len(free.values) // 2]
    cut = tuple(min(TAIL_LONGEST, value * median / middle) for value in free.values)
    return Lengths(cut, of_task=0.5)


def tail_scene(recipe: Recipe, shape: Shape, gpu: Gpu, lengths: Lengths, replicas: int, ranks: int) -> Scene:
    work = Work(TAIL_GROUPS, 16, 500.0, lengths, "")
    train = speed.train(recipe, shape, gpu, ranks, min(ranks, 64), work)
    return Scene(
        group_size=16, lengths=lengths, replicas=replicas,
        decode=speed.decode(recipe, shape, gpu, TENSOR_PARALLEL, work),
        train_token_s=train.token_s, train_step_s=train.step_s,
        push_s=speed.push(recipe, shape, gpu, TAIL_GPUS, ranks), driver_s=0.1,
    )  # fmt: skip


def long_tail() -> Iterator[str]:
    recipe = recipe_of("Qwen/Qwen3-32B", TAIL_GROUPS, TAIL_LONGEST, f"rollout.gpus_per_replica={TENSOR_PARALLEL}")
    shape, _ = models.find(recipe.model, DOCS)
    gpu, lengths = gpus.find("H100"), tail(2000.0)
    whole = tail_scene(recipe, shape, gpu, lengths, TAIL_GPUS // TENSOR_PARALLEL, TAIL_GPUS)
    sync_s = step_s(keys(TAIL_GROUPS, 0, 8), whole)
    yield f"Answers of {lengths.mean:.0f} tokens in the mean; a synchronous step, colocated: {sync_s:.0f} s."
    yield ""
    yield "| `max_staleness` | `on_stale` | speed | trainer, generators busy | age | masked | length |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    scene = tail_scene(recipe, shape, gpu, lengths, TAIL_ENGINES, TAIL_GPUS - TENSOR_PARALLEL * TAIL_ENGINES)
    for S, on_stale in ((1, "wait"), (4, "wait"), (8, "wait"), (4, "mask"), (8, "mask")):
        records = middle(keys(TAIL_GROUPS, S, 4 * S + 4, on_stale=on_stale), scene)
        found = figures(records, TAIL_GROUPS * 16, TAIL_ENGINES)
        tokens = sum(r["completion/tokens_mean"] * TAIL_GROUPS * 16 for r in records)
        masked = max(0.0, 1 - sum(r["tokens/trained"] for r in records) / tokens)
        bias = fmean(r["completion/tokens_mean"] for r in records) / lengths.mean
        yield (
            f"| {S} | `{on_stale}` | {found.samples_per_s * sync_s / (TAIL_GROUPS * 16):.2f}x | "
            f"{found.shares['trainer_time/busy']:.0%}, {found.shares['generator_time/busy']:.0%} | "
            f"{found.staleness_mean:.2f} | {masked:.1%} | {bias:.2f} |"
        )


# -- one policy at a time


def limits() -> Iterator[str]:
    """`experimental.groups_per_replica` against none, trained tokens per second over five seeds."""
    yield "| `on_stale` | `max_staleness` | rollouts that an engine runs at once | limit of 8 groups against none |"
    yield "| --- | --- | --- | --- |"
    yield limit("drop", 1, 32)
    yield limit("drop", 2, 32)
    yield limit("wait", 0, 32)
    yield limit("wait", 2, 32)
    yield limit("drop", 1, 1000)


def limit(on_stale: str, staleness: int, places: int) -> str:
    scene = Scene(
        group_size=8, lengths=replace(Lengths.log_normal(100, 1600, 1.2), of_task=0.8), replicas=4,
        decode=DecodeSpeed(0.01, 0.0, places), train_token_s=0.0, train_step_s=0.3, push_s=0.25,
    )  # fmt: skip
    ratios = []
    for seed in range(5):
        made = []
        for most in (0, 8):
            records = middle(keys(128, staleness, 12, on_stale=on_stale, groups_per_replica=most), scene, seed)
            found = figures(records, 128 * 8, 4)
            made.append(found.samples_per_s * found.completion_tokens)
        ratios.append(made[1] / made[0])
    return f"| `{on_stale}` | {staleness} | {places} | {min(ratios):.2f} to {max(ratios):.2f}x |"


PARTS = {"verl": verl, "tail": long_tail, "limits": limits}


def main() -> int:
    """Of the parts that are named, or all."""
    for name in sys.argv[1:] or PARTS:
        text = "\n".join(PARTS[name]())
        print(text, file=sys.stderr, flush=True)
        PAGE.write_text(between(PAGE.read_text(), name, text))
    print(json.dumps({"bench": "scale", "page": str(PAGE.relative_to(Path.cwd()))}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
