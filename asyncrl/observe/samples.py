"""Sample trajectories for the report: prompt, completion with its tokens coloured by policy version, reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_NUM_COLOURS = 6
_MOST_SAMPLES = 5
_MOST_CHARS = 6000


def choose(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One sample of each of a few steps from first to last: the one with the most versions in it."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        if isinstance(sample.get("step"), int):
            by_step.setdefault(sample["step"], []).append(sample)
    steps = sorted(by_step)
    last = len(steps) - 1
    count = min(_MOST_SAMPLES, len(steps))
    picked = sorted({round(i * last / max(1, count - 1)) for i in range(count)})
    return [max(by_step[steps[i]], key=lambda s: len(_spans(s))) for i in picked]


def html(sample: Mapping[str, Any]) -> str:
    """One card."""
    spans = _spans(sample)
    reward = sample.get("reward")
    shown = f"reward {reward:.3g}" if isinstance(reward, int | float) else "reward failed"
    versions = sorted({version for version, _, _ in spans})
    colours = {version: f"c{index % _NUM_COLOURS}" for index, version in enumerate(versions)}
    keys = "".join(f'<span class="key {colours[v]}">version {v}</span>' for v in versions)
    return (
        f'<div class="card"><b>step {sample["step"]}, task {escape(str(sample.get("task", "?")))}, {shown}</b> {keys}'
        f'<dl><dt>prompt</dt><dd class="text">{_cut(str(sample.get("prompt", "")))}</dd>'
        f'<dt>completion</dt><dd class="text">{_completion(sample, spans, colours)}</dd></dl></div>'
    )


def _completion(sample: Mapping[str, Any], spans: list[tuple[int, int, int]], colours: Mapping[int, str]) -> str:
    tokens = sample.get("tokens")
    if not tokens or not spans:
        return _cut(str(sample.get("completion", "")))
    parts, chars = [], 0
    for version, start, end in spans:
        text = "".join(map(str, tokens[start:end]))
        kept = text[: _MOST_CHARS - chars]
        chars += len(kept)
        tip = f"version {version}, tokens {start} to {end - 1}"
        parts.append(f'<span class="{colours[version]}" title="{tip}">{escape(kept)}</span>')
        if len(kept) < len(text):
            return "".join(parts) + " … (cut)"
    return "".join(parts)


def _cut(text: str) -> str:
    return escape(text) if len(text) <= _MOST_CHARS else escape(text[:_MOST_CHARS]) + " … (cut)"


def _spans(sample: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(version, first token, token after the last), from spans or from one version per token."""
    versions = sample.get("versions") or []
    if all(isinstance(entry, list | tuple) and len(entry) == 3 for entry in versions):
        return [(int(v), int(start), int(end)) for v, start, end in versions]
    spans: list[tuple[int, int, int]] = []
    for index, version in enumerate(versions):
        if spans and spans[-1][0] == version:
            spans[-1] = (version, spans[-1][1], index + 1)
        else:
            spans.append((version, index, index + 1))
    return spans
