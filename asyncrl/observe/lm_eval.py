"""`lm_eval.jsonl`: a line for each figure that lm-evaluation-harness gave of a checkpoint or a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

FILE = "lm_eval.jsonl"
_STDERR = "_stderr"


def lines_of(results: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The figures of a results file of lm_eval (0.4), in its order: those of tasks, and those of groups of tasks."""

    def of_task(key: str, task: str) -> Any:
        return (results.get(key) or {}).get(task)

    for task, figures in results["results"].items():
        samples = of_task("n-samples", task) or {}
        for key, value in figures.items():
            metric, comma, filtered = key.partition(",")
            if not comma or metric.endswith(_STDERR) or not _is_number(value):
                continue
            stderr = figures.get(f"{metric}{_STDERR},{filtered}")
            yield {
                "task": task,
                "metric": metric,
                "filter": filtered,
                "value": float(value),
                "stderr": float(stderr) if _is_number(stderr) else None,
                "higher_is_better": (of_task("higher_is_better", task) or {}).get(metric),
                "shots": of_task("n-shot", task),
                "samples": samples.get("effective"),
                "all_samples": samples.get("original"),
                "task_version": of_task("versions", task),
            }


def newest(lines: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without those that were measured anew: of the same figure, version, shots and samples."""
    keys = ("task", "metric", "filter", "version", "shots", "samples")
    found: dict[tuple[Any, ...], Mapping[str, Any]] = {}
    for line in lines:
        key = tuple(line.get(name) for name in keys)
        found.pop(key, None)
        found[key] = line
    return list(found.values())


HEADS = ("task", "metric", "value", "standard error", "samples", "shots")


def cells(line: Mapping[str, Any]) -> list[str]:
    """A line for people, under HEADS."""
    filtered = line.get("filter")
    metric = line["metric"] + (f" ({filtered})" if filtered not in (None, "none") else "")
    samples, of = line.get("samples"), line.get("all_samples")
    number = "-" if samples is None else f"{samples} of {of}" if of not in (None, samples) else f"{samples}"
    shots = line.get("shots")
    return [
        *(line["task"], metric, figure(line["value"]), figure(line.get("stderr")), number),
        "-" if shots is None else str(shots),
    ]


def figure(value: float | None) -> str:
    """Shares with four digits, as lm_eval prints them."""
    return "-" if value is None else f"{value:.4f}" if abs(value) < 100 else f"{value:.4g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
