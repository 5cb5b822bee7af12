"""`asyncrl compare`: one self-contained page with the curves of several runs over each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.metric_names import has_answers, nth
from asyncrl.recipe.paths import leaves
from asyncrl.report import page
from asyncrl.report.charts import Chart, Series, grid, script
from asyncrl.report.curves import thin
from asyncrl.report.run_files import RunFiles
from asyncrl.terminal.live import number
from asyncrl.terminal.progress import duration

_MOST_COLUMNS = 300
_COLOURS = ("blue", "amber", "green", "violet", "red", "teal")
_CHARTS = {
    "reward/mean": ("Reward", "reward"),
    "accuracy/mean": ("Accuracy", "share of trajectories"),
    "completion/tokens_mean": ("Length of completions", "tokens"),
    "completion/truncated_share": ("Completions cut off", "share of trajectories"),
    "staleness/mean": ("Staleness of trained tokens", "age (updates)"),
    "throughput/samples_per_s": ("Samples trained", "samples/s"),
    "trainer_time/wait_batch": ("Trainer waits for a batch", "share of time"),
    "generator_time/idle": ("Generators idle", "share of time"),
    "offpolicy/logprob_gap": ("Gap between trainer's and engine's log-probs", "nats per token"),
    "offpolicy/ess": ("Effective sample size", "share of tokens"),
}
_OF_ANSWERS = {
    "trainer/loss": ("Loss", "loss"),
    "sft/perplexity": ("Perplexity", "perplexity"),
    "pairs/accuracy": ("Pairs in which the chosen is preferred", "share of pairs"),
}
"""Of runs that sample nothing."""
_FIGURES = {"reward/mean": "final reward", "accuracy/mean": "final accuracy"}

Records = Sequence[Mapping[str, Any]]


def write_comparison(run_dirs: Sequence[Path], out: Path | None = None) -> Path:
    """Write the page, by default to compare.html in the working directory. Raises UserError if that is another file of
    the user's, a run has no step, or there are too many to tell apart."""
    path = out or page.of_ours(Path("compare.html"))
    if len(run_dirs) > len(_COLOURS):
        raise UserError(f"compare: {len(run_dirs)} runs are more than the {len(_COLOURS)} that can be told apart")
    names = _names(run_dirs)
    runs = dict(zip(names, map(_records, run_dirs), strict=True))
    longest = max(map(len, runs.values()))
    thinned = {name: thin(records, _MOST_COLUMNS, longest) for name, records in runs.items()}
    answers = any(has_answers(records[-1]) for records in runs.values())
    words_of = {**(_OF_ANSWERS if answers else {}), **_CHARTS}
    charts = grid(_chart(key, *words, thinned) for key, words in words_of.items())
    parts = [
        f"<h1>{escape(' · '.join(runs))}</h1>",
        _table(runs),
        page.section("What the recipes say otherwise", _differences(dict(zip(names, run_dirs, strict=True)))),
        page.section("By step", charts),
        script(),
    ]
    return page.write(path, "asyncrl compare", parts)


def _names(run_dirs: Sequence[Path]) -> list[str]:
    """Of each run its directory's name, or as much of the path as tells it from the others."""
    parts = [run_dir.resolve().parts for run_dir in run_dirs]
    if len(set(parts)) < len(parts):
        raise UserError("compare: the same run is given twice")

    def ends(own: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        return (own[-length:] for length in range(1, len(own) + 1))

    return ["/".join(next(e for e in ends(p) if sum(q[-len(e) :] == e for q in parts) == 1)) for p in parts]


def _records(run_dir: Path) -> list[dict[str, Any]]:
    files = RunFiles(run_dir)
    files.refresh()
    if not files.records:
        raise UserError(f"{run_dir} has no finished step to compare")
    return files.records


def _chart(key: str, title: str, unit: str, runs: Mapping[str, Records]) -> Chart:
    steps = sorted({record["step"] for records in runs.values() for record in records})
    series = []
    for colour, (name, records) in zip(_COLOURS, runs.items(), strict=False):
        by_step = {record["step"]: record.get(key) for record in records}
        series.append(Series(name, [by_step.get(step) for step in steps], colour))
    return Chart(
        title, unit, [*map(nth, steps)], series, percent=unit.startswith("share"), from_zero=key != "reward/mean"
    )


def _table(runs: Mapping[str, Records]) -> str:
    rows = []
    for name, records in runs.items():
        last = records[-1]
        figures = [number(last.get(key)) for key in _FIGURES]
        time_s = last.get("time_s") or 0.0
        rows.append((name, str(last["step"] + 1), duration(time_s), *figures, number(_samples_per_s(records))))
    heads = ("run", "steps", "elapsed", *_FIGURES.values(), "samples/s, mean")
    return page.table(heads, rows, "the runs")


def _differences(run_dirs: Mapping[str, Path]) -> str:
    """Keys whose values are not the same in all recipes."""
    recipes = [dict(leaves(RunFiles(run_dir).recipe)) for run_dir in run_dirs.values()]
    keys = [key for key in {key: None for recipe in recipes for key in recipe} if key != "run_dir"]
    rows = [[key, *(str(recipe.get(key, "-")) for recipe in recipes)] for key in keys]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    return page.table(["key", *run_dirs], differing, "keys that differ") if differing else ""


def _samples_per_s(records: Records) -> float | None:
    """Over all steps: a step's own says little of a run whose batches are ready at times."""
    ends = [record.get("time_s") or 0.0 for record in records]
    lengths = [max(0.0, end - begin) for begin, end in pairwise([0.0, *ends])]
    rates = [record.get("throughput/samples_per_s") or 0.0 for record in records]
    whole_s = sum(lengths)
    return sum(rate * length for rate, length in zip(rates, lengths, strict=True)) / whole_s if whole_s else None
