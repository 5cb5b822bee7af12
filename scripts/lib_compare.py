"""What `compare_objectives` found: kept on disk, as a table, in words, as curves in SVG. Imports nothing of asyncrl."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

Run = dict[str, Any]
CLIPPED, MASKED = "grpo", "m2po"
"""Plain clipping around the behaviour policy, and the second-moment mask."""
_SHARES = ("clip_fraction", "masked_fraction", "kl", "norm_clipped")
_COLUMNS, _PANEL_W, _PANEL_H = 4, 190, 132
_LEFT, _TOP, _GAP_X, _GAP_Y, _BOTTOM = 52, 62, 16, 30, 40
_BLUE, _ORANGE, _INK, _PALE = "#0072b2", "#d55e00", "#333", "#ddd"


def write_whole(path: Path, text: str) -> None:
    """The file is the old or the new one, never half of one."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text)
    os.replace(unfinished, path)


def final(steps: Sequence[int], rewards: Sequence[float]) -> float:
    """Mean reward of the versions of the last tenth of the steps."""
    return round(fmean(r for s, r in zip(steps, rewards, strict=True) if s >= 0.9 * steps[-1]), 4)


class Runs:
    """The finished runs in `path`, by (objective, staleness, seed)."""

    def __init__(self, path: Path, settings: dict[str, Any], fresh: bool) -> None:
        self.path, self.settings = path, settings
        self._runs: dict[tuple[str, int, int], Run] = {}
        if path.exists() and not fresh:
            kept = json.loads(path.read_text())
            if _differ(kept["settings"], settings):
                raise SystemExit(f"{path} has runs of other settings: start anew with --fresh, or choose another --out")
            self._runs = {self._key(run): run for run in kept["runs"]}

    @staticmethod
    def _key(run: Run) -> tuple[str, int, int]:
        return run["objective"], run["staleness"], run["seed"]

    def __contains__(self, key: tuple[str, int, int]) -> bool:
        return key in self._runs

    def add(self, run: Run) -> None:
        self._runs[self._key(run)] = run
        runs = ",\n".join(json.dumps(self._runs[key]) for key in sorted(self._runs))
        write_whole(self.path, f'{{"settings": {json.dumps(self.settings)},\n"runs": [\n{runs}\n]}}\n')

    def of(self, objectives: Iterable[str], stalenesses: Iterable[int], seeds: int) -> dict[tuple[str, int], list[Run]]:
        """The seeds' runs by objective and staleness, in the order given."""
        return {(o, s): [self._runs[o, s, seed] for seed in range(seeds)] for o in objectives for s in stalenesses}


def _differ(kept: dict[str, Any], settings: dict[str, Any]) -> bool:
    """Whether runs of the one say nothing of the other. One may have objectives that the other has not."""
    before, now = kept["objectives"], settings["objectives"]
    same = all(before[name] == now[name] for name in before.keys() & now.keys())
    return not same or {**kept, "objectives": {}} != {**settings, "objectives": {}}


# -- table and words


def table(chosen: dict[tuple[str, int], list[Run]], settings: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(Markdown, ratio/ours/theirs of the line of JSON)."""
    objectives, stalenesses = _axes(chosen)
    oldest = max(stalenesses)
    heads = ["objective", *(f"s = {s}" for s in stalenesses), "kept", "cut or masked", "KL", "norm clipped"]
    rows = [_row(heads), _row(["---"] + ["---:"] * (len(heads) - 1))]
    for objective in objectives:
        finals = [_spread([run["final"] for run in chosen[objective, s]]) for s in stalenesses]
        base, last = (fmean(run["final"] for run in chosen[objective, s]) for s in (min(stalenesses), oldest))
        kept = f"{100 * last / base:.0f} %" if base else "-"
        shares = {name: _mean(run[name] for run in chosen[objective, oldest]) for name in _SHARES}
        cut = shares["clip_fraction"] + shares["masked_fraction"]
        rest = [kept, f"{100 * cut:.0f} %", f"{shares['kl']:.2f}", f"{100 * shares['norm_clipped']:.0f} %"]
        rows.append(_row([f"`{objective}`", *finals, *rest]))
    words, line = _verdict(chosen, stalenesses)
    return "\n".join([_heading(settings, chosen), *rows, "", _legend(stalenesses), "", words, ""]), line


def _axes(chosen: dict[tuple[str, int], list[Run]]) -> tuple[list[str], list[int]]:
    return list(dict.fromkeys(o for o, _ in chosen)), sorted({s for _, s in chosen})


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _mean(values: Iterable[float | None]) -> float:
    known = [v for v in values if v is not None]
    return fmean(known) if known else 0.0


def _spread(values: Sequence[float]) -> str:
    return f"{fmean(values):.2f} ± {stdev(values):.2f}" if len(values) > 1 else f"{values[0]:.2f}"


def _heading(settings: dict[str, Any], chosen: dict[tuple[str, int], list[Run]]) -> str:
    seeds = len(next(iter(chosen.values())))
    start = fmean(run["rewards"][0] for runs in chosen.values() for run in runs)
    return (
        "# Objectives against staleness\n\n"
        "Made by `scripts/compare_objectives`, whose head says what is simplified. Final reward: share of right "
        f"answers of the versions of the last tenth of {settings['steps']} steps, {settings['rollouts_per_step']} "
        f"rollouts each, learning rate {settings['learning_rate']:g} for all; mean ± standard deviation over {seeds} "
        f"seed{'s' if seeds > 1 else ''}. The model starts at {start:.2f}. s: the age of every token in updates.\n"
    )


def _legend(stalenesses: Sequence[int]) -> str:
    curves = ", ".join(f"[s = {s}](curves_{s}.svg)" for s in stalenesses)
    return (
        f"Curves: {curves}. *kept*: final reward at s = {max(stalenesses)} over that at s = {min(stalenesses)}. The "
        f"rest is at s = {max(stalenesses)}, over the whole run. *cut or masked*: tokens that a clip, a truncation or "
        "a mask touched. *KL*: from the behaviour policy, nats per token. *norm clipped*: steps whose gradient was "
        "scaled down to norm 1.\n\n"
        "`grpo`, `dr_grpo` and `gspo` here clip around the behaviour policy, as their presets do by default. Around "
        "the weights at the start of the step nothing is ever clipped with one update per batch: with a truncated "
        "weight that is `grpo_tis`, with a full one `decoupled_ppo`. No objective was tuned, each has the constants "
        "of its preset. AdamW makes one learning rate fit losses of any scale, but where the gradient's norm is "
        "clipped in nearly every step the clip decides how the steps compare, and the learning rate was not chosen "
        "for that."
    )


def _verdict(chosen: dict[tuple[str, int], list[Run]], stalenesses: Sequence[int]) -> tuple[str, dict[str, Any]]:
    """Whether second-moment masking survives staleness where clipping degrades; only what the numbers say."""
    fresh, oldest = stalenesses[0], stalenesses[-1]
    finals = {key: [run["final"] for run in runs] for key, runs in chosen.items()}
    if any((o, fresh) not in finals for o in (CLIPPED, MASKED)):
        return f"`{CLIPPED}` and `{MASKED}` were not both run.", {"ratio": None, "ours": None, "theirs": None}
    clipped, masked = ({s: finals[o, s] for s in stalenesses} for o in (CLIPPED, MASKED))
    degraded = [s for s in stalenesses if _is_below(clipped[s], clipped[fresh])]
    better = [s for s in degraded if _is_below(clipped[s], masked[s])]
    if not degraded:
        answer = "Plain clipping degrades nowhere, so this says nothing of masking."
    elif not better:
        answer = f"No. Plain clipping degrades at {_at(degraded)}; masking is better at none of them."
    else:
        answer = f"Plain clipping degrades at {_at(degraded)}; masking is better at {_at(better)}" + (
            "." if better == degraded else " only."
        )
    start = f"At s = {fresh} `{CLIPPED}` ends at {fmean(clipped[fresh]):.2f}, `{MASKED}` at {fmean(masked[fresh]):.2f}."
    sentences = [_sentence(s, clipped, masked, fresh) for s in stalenesses if s > fresh]
    means = {o: fmean(finals[o, oldest]) for o, _ in finals}
    ranked = [f"`{o}` ({means[o]:.2f})" for o in sorted(means, key=lambda o: -means[o])]
    words = [
        f"**Does second-moment masking survive staleness where plain clipping degrades?** {answer}",
        " ".join([start, *sentences]),
        f"From best to worst at s = {oldest}: {', '.join(ranked)}.",
        "A difference counts here if it is larger than the sum of the two standard deviations over the seeds.",
    ]
    ours, theirs = means[MASKED], means[CLIPPED]
    ratio = round(ours / theirs, 3) if theirs else None
    return "\n\n".join(words), {"ratio": ratio, "ours": round(ours, 4), "theirs": round(theirs, 4)}


def _at(stalenesses: Sequence[int]) -> str:
    return "s = " + ", ".join(map(str, stalenesses))


def _is_below(a: Sequence[float], b: Sequence[float]) -> bool:
    """Beyond the spread of the seeds; of one seed, by 0.05."""
    noise = stdev(a) + stdev(b) if len(a) > 1 else 0.05
    return fmean(b) - fmean(a) > noise


def _sentence(s: int, clipped: dict[int, list[float]], masked: dict[int, list[float]], fresh: int) -> str:
    ends = " and ".join(
        f"`{name}` at {fmean(finals[s]):.2f} ({'degraded' if _is_below(finals[s], finals[fresh]) else 'not degraded'})"
        for name, finals in ((CLIPPED, clipped), (MASKED, masked))
    )
    beyond = _is_below(masked[s], clipped[s]) or _is_below(clipped[s], masked[s])
    gap = fmean(masked[s]) - fmean(clipped[s])
    return f"At s = {s} {ends}: {gap:+.2f}, which is {'more' if beyond else 'no more'} than the seeds' spread."


# -- curves


def write_charts(folder: Path, chosen: dict[tuple[str, int], list[Run]]) -> None:
    objectives, stalenesses = _axes(chosen)
    for s in stalenesses:
        write_whole(folder / f"curves_{s}.svg", _svg({o: chosen[o, s] for o in objectives}, s))


def _svg(by_objective: dict[str, list[Run]], staleness: int) -> str:
    """A panel for each objective, plain clipping in all of them; reward 0 to 1 against the step."""
    num_rows = -(-len(by_objective) // _COLUMNS)
    width = _LEFT + _COLUMNS * (_PANEL_W + _GAP_X)
    height = _TOP + num_rows * (_PANEL_H + _GAP_Y) + _BOTTOM - _GAP_Y
    last = max(run["steps"][-1] for runs in by_objective.values() for run in runs)
    panels = []
    for i, (name, runs) in enumerate(by_objective.items()):
        x, y = _LEFT + i % _COLUMNS * (_PANEL_W + _GAP_X), _TOP + i // _COLUMNS * (_PANEL_H + _GAP_Y)
        lowest = i + _COLUMNS >= len(by_objective)
        drawn = _grid(last, left=i % _COLUMNS == 0, lowest=lowest)
        if name != CLIPPED and CLIPPED in by_objective:
            drawn += _curve(by_objective[CLIPPED], last, _ORANGE, "5 3", band=False)
        drawn += _curve(runs, last, _BLUE, "", band=True)
        title = f'<text x="0" y="-6" font-weight="bold">{escape(name)}</text>'
        figure = f"{fmean(run['final'] for run in runs):.2f}"
        title += f'<text x="{_PANEL_W}" y="-6" text-anchor="end" fill="{_BLUE}">{figure}</text>'
        panels.append(f'<g transform="translate({x} {y})">{title}{drawn}</g>')
    middle = _TOP + (height - _TOP - _BOTTOM) / 2
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="sans-serif" font-size="11" fill="{_INK}" role="img" '
        f'aria-label="reward at staleness {staleness}">'
        f'<rect width="{width}" height="{height}" fill="#fff"/>'
        f'<text x="{_LEFT}" y="20" font-size="14">Reward of the newest weights, every token {staleness} updates old'
        f"</text>{_key(by_objective)}{''.join(panels)}"
        f'<text x="{_LEFT + (width - _LEFT) / 2}" y="{height - 6}" text-anchor="middle">step</text>'
        f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">share of right answers'
        "</text></svg>\n"
    )


def _key(by_objective: dict[str, list[Run]]) -> str:
    seeds = len(next(iter(by_objective.values())))
    band = f"mean of {seeds} seeds ± standard deviation; at the right, the final reward" if seeds > 1 else "one seed"
    y = 36
    return (
        f'<line x1="{_LEFT}" x2="{_LEFT + 22}" y1="{y - 4}" y2="{y - 4}" stroke="{_BLUE}" stroke-width="2"/>'
        f'<text x="{_LEFT + 28}" y="{y}">the objective named, {band}</text>'
        f'<line x1="{_LEFT + 470}" x2="{_LEFT + 492}" y1="{y - 4}" y2="{y - 4}" stroke="{_ORANGE}" stroke-width="1.5" '
        f'stroke-dasharray="5 3"/><text x="{_LEFT + 498}" y="{y}">plain clipping ({CLIPPED})</text>'
    )


def _grid(last: int, left: bool, lowest: bool) -> str:
    parts = []
    for value in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = _PANEL_H * (1 - value)
        parts.append(f'<line x1="0" x2="{_PANEL_W}" y1="{y}" y2="{y}" stroke="{_PALE if value else _INK}"/>')
        if left:
            parts.append(f'<text x="-6" y="{y + 4}" text-anchor="end">{value:g}</text>')
    for step, anchor in ((0, "start"), (last // 2, "middle"), (last, "end")) if lowest else ():
        x = _PANEL_W * step / last
        parts.append(f'<text x="{x:.1f}" y="{_PANEL_H + 14}" text-anchor="{anchor}">{step}</text>')
    return "".join(parts)


def _curve(runs: list[Run], last: int, colour: str, dash: str, band: bool) -> str:
    columns = list(zip(*(run["rewards"] for run in runs), strict=True))
    means = [fmean(column) for column in columns]
    xs = [_PANEL_W * step / last for step in runs[0]["steps"]]
    drawn = ""
    if band and len(runs) > 1:
        spreads = [stdev(column) for column in columns]
        upper = [(x, min(m + d, 1.0)) for x, m, d in zip(xs, means, spreads, strict=True)]
        lower = [(x, max(m - d, 0.0)) for x, m, d in zip(xs, means, spreads, strict=True)]
        drawn = f'<polygon points="{_points(upper + lower[::-1])}" fill="{colour}" fill-opacity="0.2"/>'
    points = _points(zip(xs, means, strict=True))
    style = f'stroke-width="{2 if band else 1.5}" stroke-dasharray="{dash or "none"}" stroke-linejoin="round"'
    return drawn + f'<polyline points="{points}" fill="none" stroke="{colour}" {style}/>'


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{_PANEL_H * (1 - y):.1f}" for x, y in points)
