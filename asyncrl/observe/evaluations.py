"""`evaluations.jsonl`: one line for each evaluation that is done, with what its scores come to.

Scores are those of weights, not of a moment: a line says which version sampled its tokens, and how many another did.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from asyncrl.observe.metrics import read_lines
from asyncrl.observe.scores import interval, pass_at_k, powers

FILE = "evaluations.jsonl"
_LARGEST = 1e100
EVALUATION = "eval/"
"""How the names of its metrics begin: eval/NAME/accuracy."""


def mean_and_interval(tasks: Sequence[Sequence[float]]) -> tuple[float | None, tuple[float, float] | None]:
    """Mean over the tasks that have a value, and its 95 % interval; None of values that no float can add up."""
    if any(abs(value) > _LARGEST for values in tasks for value in values):
        return None, None
    means = [statistics.fmean(values) for values in tasks if values]
    return (statistics.fmean(means) if means else None), interval(tasks)


def passes(tasks: Sequence[Sequence[float]], num: int) -> dict[str, float]:
    """pass@k by k, over the tasks all of whose `num` rollouts were scored with 0 or 1."""
    whole = [values for values in tasks if len(values) == num and all(value in (0, 1) for value in values)]
    if num < 2 or not whole:
        return {}
    return {str(k): statistics.fmean(pass_at_k(num, round(sum(values)), k) for values in whole) for k in powers(num)}


def newest_accuracy(lines: Sequence[Mapping[str, Any]]) -> float | None:
    """Of the newest version that has one."""
    scored = [line for line in lines if line.get("accuracy") is not None]
    return max(scored, key=lambda line: line["version"])["accuracy"] if scored else None


def of_run(run_dir: Path) -> list[dict[str, Any]]:
    """The lines of the evaluations that the run made itself; not those of `asyncrl eval`, whose recipe may differ."""
    lines = read_lines(run_dir / FILE)
    return [line for line in lines if {"name", "version"} <= line.keys() and not line.get("alone")]


def scores_by_version(run_dir: Path, metric: str) -> dict[int, float]:
    """By version, of the evaluations that are done."""
    found = {line["version"]: flat(line).get(metric) for line in of_run(run_dir)}
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
