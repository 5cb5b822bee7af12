"""A plan in words: what it rests on, a table of divisions, and the keys that set the best."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from asyncrl.cluster.shape import pieces
from asyncrl.observe.bottleneck import MOST
from asyncrl.planner import profile
from asyncrl.planner.gpus import GIB
from asyncrl.planner.plan import Plan, Row, plan
from asyncrl.planner.split import Split
from asyncrl.recipe.schema import Recipe

_HEADS = ("generators", "trainer", "samples/s", "s/step", "limit", "trainer GiB", "generator GiB", "sequences", "age")
_SHOWN_PARTS = 4


def report(
    recipe: Recipe,
    base_dir: Path,
    num_gpus: int | None,
    gpu_name: str,
    run_dir: Path | None = None,
    mean_tokens: int | None = None,
) -> list[str]:
    """What `asyncrl plan` prints. `num_gpus` None: as many as the recipe asks for. Raises UserError."""
    asked = math.ceil(sum(piece.num_gpus for piece in pieces(recipe)) - 1e-6) if num_gpus is None else num_gpus
    measured = profile.read(run_dir) if run_dir else None
    return list(lines(plan(recipe, base_dir, asked, gpu_name, measured, mean_tokens)))


def lines(plan: Plan) -> Iterator[str]:
    if plan.gpu and plan.shape:
        count = plan.shape.parameters / 1e9
        yield f"model     {plan.recipe.model}: {count:.2f} billion parameters ({plan.model_origin})"
        if plan.shape.experts:
            yield "          a mixture of experts: a trainer has been tried with small ones on CPUs alone"
        yield f"GPU       {plan.gpu.name} of {plan.gpu.memory_gib:.0f} GiB, by its published figures"
    yield f"lengths   {plan.work.origin}"
    yield f"speeds    {_speeds(plan)}"
    yield ""
    yield from _table([_HEADS, *(_cells(row, row is plan.as_it_stands) for row in plan.rows)])
    best = plan.rows[0]
    yield ""
    yield f"limit     {best.limit}"
    if plan.gpu is None and plan.profile and _side_by_side(plan.recipe) != _side_by_side(plan.profile.recipe):
        yield (
            "caution   with max_staleness 0 each role has all cores, else half of them (unless rollout.cpu_cores and "
            "trainer.cpu_threads say which), and the speeds are those of the profile"
        )
    waiting = plan.profile.figures.shares.get("reward_time/waiting", 0.0) if plan.profile else 0.0
    if plan.profile and waiting >= MOST:
        yield (
            f"caution   {plan.profile.name} was reward-bound: its generators only waited for rewards "
            f"{100 * waiting:.0f} % of the time, which a plan takes for slow generation; raise rewards.workers, or "
            "make the reward faster"
        )
    if best.trainer is not None:
        yield f"memory    {memory_line(best)}"
    own = plan.as_it_stands
    if best is own:
        yield "set by    the recipe as it stands"
    else:
        yield f"set by    {best.split.overrides(plan.recipe)}"
    if plan.gpu and own:
        yield f"as it is  {line(plan, own)}"


def line(plan: Plan, row: Row) -> str:
    """A row in one line, as recipes and docs quote it."""
    assert plan.gpu is not None
    found = row.figures
    return (
        f"{row.split.num_gpus} x {plan.gpu.name}: "
        f"{trainer_gib(row):.0f} of {plan.gpu.memory_gib:.0f} GiB on a trainer rank, "
        f"{found.samples_per_s:.3g} samples/s, {found.step_s:.3g} s a step, {row.limit.partition(':')[0]}"
    )


def trainer_gib(row: Row) -> float:
    assert row.trainer is not None
    return row.trainer.total / GIB


def memory_line(row: Row) -> str:
    """Where a trainer rank's and a generator's bytes are."""
    assert row.trainer is not None
    assert row.generator is not None
    largest = sorted(row.trainer.parts.items(), key=lambda part: -part[1])[:_SHOWN_PARTS]
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in largest)
    return (
        f"trainer rank {trainer_gib(row):.1f} GiB ({parts}); generator "
        f"weights {row.generator.weights / GIB:.1f}, KV cache {row.generator.kv_cache / GIB:.1f} for "
        f"{row.generator.sequences} sequences of mean length"
    )


def _side_by_side(recipe: Recipe) -> bool:
    """Whether roles on CPUs run at the same time (`recipe/cores.py`)."""
    return recipe.max_staleness > 0


def _speeds(plan: Plan) -> str:
    if plan.profile is None:
        return "from the GPU's figures and assumed efficiencies; not checked against a run"
    if plan.gpu is None:
        return f"measured in {plan.profile.name}"
    if plan.profile.on_gpus:
        return f"measured in {plan.profile.name}, carried over to other divisions by the formulas"
    return f"from the GPU's figures and assumed efficiencies: {plan.profile.name} ran on CPUs"


def _cells(row: Row, as_it_stands: bool) -> tuple[str, ...]:
    found = row.figures
    memory = ("-", "-")
    if row.trainer is not None and row.generator is not None:
        memory = f"{trainer_gib(row):.0f}", f"{(row.generator.weights + row.generator.kv_cache) / GIB:.0f}"
    return (
        _generators(row.split),
        _ranks(row.split) + (" *" if as_it_stands else ""),
        f"{found.samples_per_s:.3g}",
        f"{found.step_s:.3g}",
        row.limit.partition(":")[0],
        *memory,
        f"<={min(row.scene.decode.max_sequences, 99_999)}",
        f"{found.staleness_mean:.1f} (max {found.staleness_max})",
    )


def _generators(split: Split) -> str:
    size = split.gpus_per_replica
    return f"{split.replicas} x {size:g} GPU" if size else f"{split.replicas} on CPU"


def _ranks(split: Split) -> str:
    copies = split.ranks // split.shard_ranks
    if split.gpus_per_rank < 1:
        return f"{split.ranks} x {split.gpus_per_rank:g} GPU"
    return f"{split.ranks}" + (f" = {copies} x {split.shard_ranks}" if copies > 1 else "")


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
