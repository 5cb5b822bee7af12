"""`evaluations.jsonl`: one line for each evaluation that is done, with what its scores come to.

Scores are those of weights, not of a moment: a line says which version sampled its tokens, and how many another did.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncrl.observe.metrics import accuracy, read_lines
from asyncrl.observe.scores import interval, pass_at_k, powers

FILE = "evaluations.jsonl"
EVALUATION = "eval/"
"""How the names of its metrics begin: eval/NAME/accuracy."""


def correct(
    rewards: Sequence[Sequence[float | None]], extras: Sequence[Sequence[Mapping[str, float]]]
) -> list[list[float]]:
    """Of each task, whether its rollouts that were scored were right, by the rule of `accuracy/mean`; [] if nobody
    said."""
    everyone = [extra for task in extras for extra in task]
    if accuracy([reward for task in rewards for reward in task], everyone) is None:
        return []
    named = next((name for name in ("accuracy", "acc") if any(name in extra for extra in everyone)), None)

    def values(task: Sequence[float | None], extras: Sequence[Mapping[str, float]]) -> list[float]:
        if named is not None:
            return [extra[named] for extra in extras if named in extra]
        return [float(reward == 1.0) for reward in task if reward is not None]

    return [values(*task) for task in zip(rewards, extras, strict=True)]


def mean_and_interval(tasks: Sequence[Sequence[float]]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over the tasks that have a value, and its 95 % interval."""
    means = [statistics.fmean(values) for values in tasks if values]
    return (statistics.fmean(means) if means else None), interval(tasks)


def passes(tasks: Sequence[Sequence[float]], num: int) -> dict[str, float]:
    """pass@k by k, over the tasks all of whose `num` rollouts were scored with 0 or 1."""
    whole = [values for values in tasks if len(values) == num and all(value in (0, 1) for value in values)]
    if num < 2 or not whole:
        return {}
    return {str(k): statistics.fmean(pass_at_k(num, round(sum(values)), k) for values in whole) for k in powers(num)}


def scores_by_version(run_dir: Path, metric: str) -> dict[int, float]:
    """By version, of the evaluations that are done."""
    lines = (line for line in read_lines(run_dir / FILE) if {"name", "version"} <= line.keys())
    found = {line["version"]: flat(line).get(metric) for line in lines if metric in flat(line)}
    return {version: value for version, value in found.items() if value is not None}


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a line by the names that trackers get."""
    place = f"{EVALUATION}{line['name']}"
    kept = ("version", "accuracy", "accuracy_low", "accuracy_high", "reward", "failed_share", "truncated_share")
    more = ("tokens_mean", "other_versions_share")
    found = {f"{place}/{key}": line.get(key) for key in (*kept, *more)}
    return found | {f"{place}/pass_at_{k}": value for k, value in line.get("pass_at", {}).items()}


def sentence(line: Mapping[str, Any]) -> str:
    """A line for people."""
    size = f"{line['tasks']} tasks" + (f" x {line['n']}" if line["n"] > 1 else "")
    key, unit = ("accuracy", 100.0) if line.get("accuracy") is not None else ("reward", 1.0)
    if line.get(key) is None:
        return f"{line['name']} of version {line['version']}: no rollout of {size} was scored"
    number = (lambda value: f"{value * unit:.1f}") if unit > 1 else (lambda value: f"{value:.3f}")
    low, high = line.get(f"{key}_low"), line.get(f"{key}_high")
    spread = f", 95 % interval {number(low)} to {number(high)}" if low is not None and high is not None else ""
    passed = "".join(f", pass@{k} {100 * v:.1f} %" for k, v in line.get("pass_at", {}).items() if k != "1")
    percent = " %" if unit > 1 else ""
    return f"{line['name']} of version {line['version']}: {key} {number(line[key])}{percent} ({size}{spread}){passed}"
