"""A reward on a few rows: what the right answer gives, and a wrong one. In processes of its own, as in a run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.recipe.schema import Recipe
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score

_NUM_ROWS = 3
_WRONG = "I do not know."
_MOST_CHARS = 40
_START_S = 120.0


def lines(
    recipe: Recipe, tasks: TaskSource, base_dir: Path, gold: Callable[[dict[str, Any]], str | None]
) -> Iterator[str]:
    """A line for each of the first tasks. `gold`: the right answer of a row, if it is known. Raises UserError if the
    reward fails on all of them."""
    requests = []
    for draw in range(min(_NUM_ROWS, tasks.num_rows)):
        try:
            task = tasks.task(draw)
        except BadPrompt:
            continue
        texts = [text for text in (gold(task.row), _WRONG) if text is not None]
        ends = ["stop"] * len(texts)
        requests.append(RewardRequest(task.prompt, texts, [[0]] * len(texts), ends, task.row))
    scores = asyncio.run(_scores(recipe, base_dir, requests))
    errors = [one.error for of_row in scores for one in of_row if one.error]
    if errors and len(errors) == sum(map(len, scores)):
        raise UserError(f"new: the reward fails on each of {len(requests)} rows tried: {errors[0]}")
    for number, (request, of_row) in enumerate(zip(requests, scores, strict=True)):
        given = ", ".join(map(_one, request.completions, of_row))
        yield f"{'reward' if not number else '':<10} {given}"


async def _scores(recipe: Recipe, base_dir: Path, requests: list[RewardRequest]) -> list[list[Score]]:
    rewards = recipe.rewards
    limits = {"memory_gib": rewards.memory_gib, "file_gib": rewards.file_gib, "start_timeout_s": _START_S}
    pool = RewardPool(recipe.reward_parts, base_dir, 1, rewards.timeout_s, **limits)  # type: ignore[arg-type]
    try:
        return [await pool.score(request) for request in requests]
    finally:
        pool.close()


def _one(text: str, score: Score) -> str:
    short = repr(text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}...")
    if score.reward is None and not score.error:
        return f"{short} is masked"
    return f"{short} fails: {score.error}" if score.reward is None else f"{short} gives {score.reward:g}"
