"""What the files of a run hold, as far as it is shown: what is of another type, or too large to add up, is left out.

A run of asyncrl writes nothing else; a file that someone has edited, or made up, is shown as if that were missing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import msgspec

_LARGEST = 10**15
Figure = Annotated[float, msgspec.Meta(ge=-_LARGEST, le=_LARGEST)]
Count = Annotated[int, msgspec.Meta(ge=0, le=_LARGEST)]
Time = Annotated[float, msgspec.Meta(ge=0, le=10**11)]
Step = Annotated[int, msgspec.Meta(ge=0, le=10**9)]
_Version = Annotated[int, msgspec.Meta(ge=-1, le=10**9)]
_Counts = dict[str, Count | dict[str, Count]]
HISTOGRAM = "staleness/histogram"


class Generator(TypedDict, total=False):
    name: str
    state: str
    version: _Version
    groups: Count
    tokens_per_s: Figure | None
    busy: Figure | None
    paused: Figure | None
    idle: Figure | None


class Change(TypedDict):
    step: Step
    kind: str
    what: str


SUMMARY: dict[str, Any] = {
    "changes": list[Change],
    "ledger": _Counts,
    "wall_s": Figure,
    "worst_case_staleness": Figure,
    "reward_failures": Count,
    "bottleneck": str,
}
STATUS: dict[str, Any] = {
    "time_s": Time,
    "phase": str,
    "steps_done": Step,
    "live": _Version,
    "ledger": _Counts,
    "waiting": list[str],
    "generators": list[Generator],
    "warnings": list[str],
    "log": list[tuple[Time, str]],
    "began_s": Time,
    "host": str,
    "asyncrl": str,
}
EVALUATION: dict[str, Any] = {
    "name": str,
    "version": Step,
    "tasks": Count,
    "n": Count,
    "accuracy": Figure | None,
    "accuracy_low": Figure | None,
    "accuracy_high": Figure | None,
    "reward": Figure | None,
    "reward_low": Figure | None,
    "reward_high": Figure | None,
    "pass_at": dict[str, Figure],
    "failed_share": Figure,
    "other_versions_share": Figure,
}
LM_EVAL: dict[str, Any] = {
    "task": str,
    "metric": str,
    "filter": str,
    "version": Step,
    "value": Figure,
    "stderr": Figure | None,
    "samples": Count | None,
    "all_samples": Count | None,
    "shots": Count | None,
}
SAMPLE: dict[str, Any] = {
    "step": Step,
    "task": Count,
    "prompt": str,
    "completion": str,
    "expected": str,
    "tokens": list[str],
    "versions": list[_Version],
    "gaps": list[Figure | None] | None,
    "reward": Figure | None,
    "notes": dict[str, str],
}


def fitting(found: Mapping[str, Any], shape: Mapping[str, Any]) -> dict[str, Any]:
    """Of what was found, what is of its type."""
    fits = {}
    for name, kind in shape.items():
        if name in found:
            try:
                fits[name] = msgspec.convert(found[name], kind)
            except (msgspec.ValidationError, UnicodeEncodeError, RecursionError):
                continue
    if "ledger" in fits:
        # How many for each reason, and nothing else, is a mapping.
        ledger = fits["ledger"].items()
        fits["ledger"] = {name: n for name, n in ledger if isinstance(n, dict) == name.endswith("_reasons")}
    return fits


def record(found: Mapping[str, Any]) -> dict[str, Any]:
    """Of a line of metrics.jsonl its figures; {} if it is of no step."""
    kept = {name: value for name, value in found.items() if is_figure(value)}
    kept |= fitting(found, {"step": Step, HISTOGRAM: list[Count]})
    return kept if type(kept.get("step")) is int and 0 <= kept["step"] <= 10**9 else {}


def is_figure(value: Any) -> bool:
    """Whether it is a number that can be shown, and added to others."""
    return type(value) in (int, float) and abs(value) <= _LARGEST and math.isfinite(value)
