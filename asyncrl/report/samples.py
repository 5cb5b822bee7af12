"""Sample trajectories: prompt, completion with its tokens coloured by policy version or by log-prob gap, reward.

Both colours are in the page, as classes `c0` ... and `g0` ... of each piece of text; two radio buttons and the style
sheet choose which is shown (`page.py`), so no script is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any, TypeVar

from asyncrl.metric_names import nth

T = TypeVar("T")

GAP_BOUNDS_NATS = (0.01, 0.05, 0.2, 1.0)
"""Where one colour ends and the next begins: below the first is rounding in bf16, above the last the trainer thinks the
token e times more or less likely than the engine did."""
_NUM_COLOURS = 6
_MOST_SAMPLES = 5
_MOST_CHARS = 6000


def spread(found: Sequence[T], most: int = _MOST_SAMPLES) -> list[T]:
    """A few of them, from first to last, at even distances."""
    last, count = len(found) - 1, min(most, len(found))
    return [found[place] for place in sorted({round(i * last / max(1, count - 1)) for i in range(count)})]


def extremes(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The one with the highest reward and the one with the lowest, of several the newest; none if all are equal."""
    judged = [sample for sample in samples if isinstance(sample.get("reward"), int | float)]
    best = max(judged, key=lambda s: (s["reward"], s["step"]), default={})
    worst = min(judged, key=lambda s: (s["reward"], -s["step"]), default={})
    return [best, worst] if best.get("reward") != worst.get("reward") else []


def choose(samples: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """One sample of each step: one that passed the trainer's model, and of these the one with the most versions."""
    by_step: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_step.setdefault(sample["step"], []).append(sample)
    return [max(by_step[step], key=lambda s: (_gaps(s) is not None, _num_versions(s))) for step in sorted(by_step)]


def html(samples: Sequence[Mapping[str, Any]]) -> str:
    """The switch, the legend of the gaps, and a card for each."""
    if not samples:
        return ""
    if not any(map(_is_sampled, samples)):
        return f'<div class="samples">{"".join(map(_card, samples))}</div>'
    choices = "".join(
        f'<label><input type="radio" name="colour" id="by-{key}"{checked}> {text}</label>'
        for key, text, checked in (("version", "policy version", " checked"), ("gap", "log-prob gap", ""))
    )
    switch = f'<fieldset class="switch"><legend>Colour the tokens by</legend>{choices}</fieldset>'
    return f'<div class="samples">{switch}{_gap_legend()}{"".join(map(_card, samples))}</div>'


def _gap_legend() -> str:
    ends = [f"below {GAP_BOUNDS_NATS[0]:g}", *(f"from {bound:g}" for bound in GAP_BOUNDS_NATS)]
    keys = "".join(f'<span class="key g{place}">{text}</span>' for place, text in enumerate(ends))
    words = "|trainer's log-prob - engine's log-prob| of the token in the step that trained it, in nats:"
    return f'<p class="gap-only">{words}<br>{keys}<span class="key gx">not trained</span></p>'


def _card(sample: Mapping[str, Any]) -> str:
    reward = sample.get("reward")
    shown = f", reward {reward:.3g}" if isinstance(reward, int | float) else ", reward failed"
    versions = sorted({v for v in _versions(sample) if v >= 0})
    if not _is_sampled(sample):
        shown, versions = "", []
    colours = {version: f"c{index % _NUM_COLOURS}" for index, version in enumerate(versions)}
    keys = "".join(f'<span class="key version-only {colours[v]}">version {v}</span>' for v in versions)
    title = f"step {nth(sample['step'])}, task {escape(str(sample.get('task', '?')))}{shown}"
    gaps = [gap for gap in _gaps(sample) or () if gap is not None]
    said = (
        f"mean gap {sum(gaps) / len(gaps):.3g}"
        if gaps
        else "no gaps: it was not trained, or the engine gives no log-probs"
    )
    coloured = f'{keys}<span class="gap-only soft">{said}</span>' if _is_sampled(sample) else ""
    return (
        f'<article class="card"><h3>{title}</h3> {coloured}'
        f"<dl><dt>prompt</dt>{_text(_cut(str(sample.get('prompt', ''))), f'prompt of {title}')}"
        f"<dt>completion</dt>{_text(_completion(sample, colours), f'completion of {title}')}"
        f"{_expected(sample)}"
        f"{_notes(sample)}</dl></article>"
    )


def _is_sampled(sample: Mapping[str, Any]) -> bool:
    """An answer that the data has was sampled by no version, and nobody judged it."""
    return "reward" in sample


def _expected(sample: Mapping[str, Any]) -> str:
    """The answer that its row has."""
    return f"<dt>expected</dt><dd>{escape(str(sample['expected']))}</dd>" if "expected" in sample else ""


def _notes(sample: Mapping[str, Any]) -> str:
    """What the reward logged about it in words."""
    notes = sample.get("notes")
    known = notes.items() if isinstance(notes, dict) else ()
    return "".join(f"<dt>{escape(str(name))}</dt><dd>{_cut(str(text))}</dd>" for name, text in known)


def _text(html: str, name: str) -> str:
    """It may be long, and scrolls: so the keyboard must get there."""
    return f'<dd><div class="text" tabindex="0" role="region" aria-label="{name}">{html}</div></dd>'


def _completion(sample: Mapping[str, Any], colours: Mapping[int, str]) -> str:
    """Of a conversation each turn in a block of its own, and what was read between them."""
    tokens, versions = sample.get("tokens") or [], _versions(sample)
    if not tokens or len(versions) != len(tokens):
        return _cut(str(sample.get("completion", "")))
    runs = [list(run) for _, run in groupby(range(len(tokens)), key=lambda place: versions[place] >= 0)]
    parts, left, turn = [], _MOST_CHARS, 0
    for run in runs:
        spans, left = _spans(sample, run, colours, left)
        is_sampled = versions[run[0]] >= 0
        turn += is_sampled
        kind, who = ("turn", f"turn {turn}") if is_sampled else ("read", "read")
        parts.append(f'<div class="{kind}"><span class="who">{who}</span>{spans}</div>' if len(runs) > 1 else spans)
        if left < 0:
            return "".join(parts) + " … (cut)"
    return "".join(parts)


def _spans(sample: Mapping[str, Any], run: list[int], colours: Mapping[int, str], left: int) -> tuple[str, int]:
    """The tokens at the places of `run`, and how many more characters may be shown: below 0, it was cut. Neighbours
    that look alike in both colours are one piece."""
    tokens, versions = sample["tokens"], _versions(sample)
    gaps = _gaps(sample) or [None] * len(tokens)
    parts = []
    for (version, gap_class), piece in groupby(run, key=lambda place: (versions[place], _gap_class(gaps[place]))):
        places = list(piece)
        text = "".join(str(tokens[place]) for place in places)
        tip = _tip(_who(sample, version), places, [gaps[place] for place in places])
        classes = f"{colours.get(version, '')} {gap_class}".strip()
        parts.append(f'<span class="{classes}" title="{tip}">{escape(text[:left])}</span>')
        left -= len(text)
        if left < 0:
            break
    return "".join(parts), left


def _who(sample: Mapping[str, Any], version: int) -> str:
    if not _is_sampled(sample):
        return "learnt" if version >= 0 else "not learnt"
    return f"version {version}" if version >= 0 else "not sampled"


def _tip(who: str, places: list[int], gaps: list[float | None]) -> str:
    where = f"tokens {places[0]} to {places[-1]}" if len(places) > 1 else f"token {places[0]}"
    known = [f"{gap:.3g}" for gap in gaps if gap is not None]
    return f"{who}, {where}" + (f", gap {' '.join(known)}" if known else "")


def _gap_class(gap: float | None) -> str:
    return "gx" if gap is None else f"g{sum(gap >= bound for bound in GAP_BOUNDS_NATS)}"


def _cut(text: str) -> str:
    return escape(text) if len(text) <= _MOST_CHARS else escape(text[:_MOST_CHARS]) + " … (cut)"


def _versions(sample: Mapping[str, Any]) -> list[int]:
    versions = sample.get("versions")
    return versions if isinstance(versions, list) and all(isinstance(version, int) for version in versions) else []


def _num_versions(sample: Mapping[str, Any]) -> int:
    return len(set(_versions(sample)))


def _gaps(sample: Mapping[str, Any]) -> list[float | None] | None:
    """None if it has none, or not one for each token."""
    gaps = sample.get("gaps")
    known = isinstance(gaps, list) and len(gaps) == len(sample.get("tokens") or ())
    return [gap if isinstance(gap, int | float) else None for gap in gaps] if known and gaps else None
