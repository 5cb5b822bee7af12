"""The curves of a run by step: which figures there are, in which charts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from asyncrl.metric_names import has_answers
from asyncrl.report.charts import Chart, Series

_TRAINER = {
    "busy": "green",
    "wait_batch": "amber",
    "wait_publish": "violet",
    "checkpoint": "teal",
    "unaccounted": "grey",
}
_GENERATORS = {"busy": "green", "paused": "violet", "idle": "amber"}
_AGE_COLOURS = ("green", "teal", "blue", "violet", "amber", "red")


def charts(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of a run."""
    steps = [r["step"] for r in records]

    def line(name: str, key: str, colour: str, spread: str | None = None) -> Series:
        values = column(records, key)
        return Series(name, values, colour, band=_around(values, column(records, spread)) if spread else None)

    if records and has_answers(records[-1]):
        return _of_answers(steps, records)
    bound = Series("bound", column(records, "staleness/bound"), "red", dashed=True)
    return [
        *_beside(steps, records),
        Chart(
            "Reward",
            "reward",
            steps,
            [line("mean, band ± 1 std", "reward/mean", "blue", "reward/std")],
            from_zero=False,
        ),
        Chart("Accuracy", "share of trajectories", steps, [line("accuracy", "accuracy/mean", "green")], percent=True),
        Chart(
            "Completions cut off, rewards that failed",
            "share of trajectories",
            steps,
            [line("cut off", "completion/truncated_share", "amber"), line("failed", "rewards/failed_share", "red")],
            percent=True,
        ),
        Chart(
            "Staleness of trained tokens",
            "age (updates)",
            steps,
            [line("mean", "staleness/mean", "blue"), line("max", "staleness/max", "amber"), bound],
        ),
        _ages(steps, records),
        Chart(
            "Where groups grow old",
            "age (updates)",
            steps,
            [line("in flight", "staleness/in_flight", "blue"), line("in the queue", "staleness/in_queue", "amber")],
        ),
        Chart(
            "Weight push",
            "time (s)",
            steps,
            [line("generators paused", "publish/pause_s", "violet"), line("transfer", "publish/transfer_s", "blue")],
        ),
        _stack("The trainer's time", "trainer_time", _TRAINER, steps, records),
        _stack("The generators' time", "generator_time", _GENERATORS, steps, records),
        Chart("Samples trained", "samples/s", steps, [line("samples", "throughput/samples_per_s", "teal")]),
        Chart("Tokens trained", "tokens/s", steps, [line("tokens", "throughput/tokens_per_s", "teal")]),
        Chart(
            "Gap between trainer's and engine's log-probs",
            "nats per token",
            steps,
            [line("mean gap", "offpolicy/logprob_gap", "violet"), line("KL", "offpolicy/kl", "teal")],
        ),
        Chart(
            "Importance weights",
            "share of tokens",
            steps,
            [line("effective sample size", "offpolicy/ess", "blue"), line("clipped", "offpolicy/clip_fraction", "red")],
            percent=True,
        ),
    ]


_BESIDE = {
    "distil/kl": ("Reverse KL from the teacher", "estimate from the sampled tokens"),
    "sft/nll": ("Loss of the demonstrations", "-log pi of the learnt tokens"),
}
"""Titles and names, by metric."""


def _beside(steps: Sequence[int], records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """What is learnt beside rewards; none without it."""
    found = []
    for key, (title, name) in _BESIDE.items():
        values = column(records, key)
        if any(value is not None for value in values):
            found.append(Chart(title, "nats per token", steps, [Series(name, values, "blue")]))
    return found


def _around(means: Sequence[float | None], spreads: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """Mean ± spread of each step."""
    return [
        None if mean is None else (mean - (spread or 0.0), mean + (spread or 0.0))
        for mean, spread in zip(means, spreads, strict=True)
    ]


def _of_answers(steps: Sequence[int], records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of a run that samples nothing."""

    def chart(title: str, unit: str, key: str, colour: str, from_zero: bool = True, percent: bool = False) -> Chart:
        series = [Series(title.lower(), column(records, key), colour)]
        return Chart(title, unit, steps, series, from_zero=from_zero, percent=percent)

    found = [
        chart("Loss", "loss", "trainer/loss", "blue", from_zero=False),
        chart("Perplexity", "perplexity", "sft/perplexity", "green", from_zero=False),
        chart("Margin of the chosen", "beta x nats", "pairs/margin", "green", from_zero=False),
        chart("Pairs in which the chosen is preferred", "share of pairs", "pairs/accuracy", "teal", percent=True),
        chart("Gradient norm", "norm", "trainer/grad_norm", "violet"),
        chart("Learning rate", "learning rate", "trainer/learning_rate", "grey"),
        chart("Samples trained", "samples/s", "throughput/samples_per_s", "teal"),
        chart("Tokens trained", "tokens/s", "throughput/tokens_per_s", "teal"),
    ]
    shown = [one for one in found if any(value is not None for value in one.series[0].values)]
    return [*shown, _stack("The trainer's time", "trainer_time", _TRAINER, steps, records)]


def _stack(
    title: str, role: str, colours: Mapping[str, str], steps: Sequence[int], records: Sequence[Mapping[str, Any]]
) -> Chart:
    layers = [Series(name, column(records, f"{role}/{name}"), colour) for name, colour in colours.items()]
    return Chart(title, "share of time", steps, layers, percent=True, stacked=True)


def _ages(steps: Sequence[int], records: Sequence[Mapping[str, Any]]) -> Chart:
    """A column per step: the shares of the trained tokens by age, the oldest of many ages together."""
    histograms = [_histogram(record) for record in records]
    num_ages = max((len(counts) for counts in histograms), default=0)
    colours = _AGE_COLOURS[:num_ages]
    layers = []
    for age, colour in enumerate(colours):
        to = num_ages if age == len(colours) - 1 else age + 1
        name = f"age {age}" if to == age + 1 else f"age {age} to {to - 1}"
        shares = [sum(counts[age:to]) / sum(counts) if sum(counts) else None for counts in histograms]
        layers.append(Series(name, shares, colour))
    return Chart("Age of trained tokens", "share of tokens", steps, layers, percent=True, stacked=True)


def thin(records: Sequence[Mapping[str, Any]], most: int, of: int | None = None) -> list[dict[str, Any]]:
    """At most `most` records: means over equal runs of steps, but the maximum of staleness/max; nothing if few.
    `of`: as if there were so many, to be shown beside another run."""
    stride = -(-(of or len(records)) // most)
    if stride <= 1:
        return [dict(record) for record in records]
    return [_mean(records[start : start + stride]) for start in range(0, len(records), stride)]


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in records[0]:
        values = [r[key] for r in records if isinstance(r.get(key), int | float)]
        merged[key] = (max(values) if key == "staleness/max" else statistics.fmean(values)) if values else None
    merged["step"] = records[0]["step"]
    counts = zip_longest(*(_histogram(record) for record in records), fillvalue=0)
    merged["staleness/histogram"] = [sum(tokens) for tokens in counts]
    return merged


def _histogram(record: Mapping[str, Any]) -> list[int]:
    """Trained tokens by age; empty if the record has no such list."""
    counts = record.get("staleness/histogram")
    return counts if isinstance(counts, list) and all(isinstance(n, int) for n in counts) else []


def column(records: Sequence[Mapping[str, Any]], key: str) -> list[float | None]:
    values = (record.get(key) for record in records)
    return [value if isinstance(value, int | float) else None for value in values]
