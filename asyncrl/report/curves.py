"""The curves of a run by step: which figures there are, in which charts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

from asyncrl.metric_names import JUDGED, REWARD_KEYS, VERDICTS, has_answers, nth
from asyncrl.report.charts import Chart, Series

_TRAINER = {
    "busy": "green",
    "wait_batch": "amber",
    "wait_publish": "violet",
    "checkpoint": "teal",
    "unaccounted": "grey",
}
_GENERATORS = {"busy": "green", "paused": "violet", "idle": "amber"}
_OF_MANY = {"max": max, "min": min}
_MOST_PARTS = 12
_AGE_COLOURS = ("green", "teal", "blue", "violet", "amber", "red")


def learning(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """What the run is for, and whether it learns; what a reader looks for first comes first."""
    if records and has_answers(records[-1]):
        return _of_answers(records)
    chart = _Charts(records)
    return [
        *chart.one(
            "Reverse KL from the teacher", "nats per token", "distil/kl", "blue", "estimate from sampled tokens"
        ),
        *chart.one("Loss of the demonstrations", "nats per token", "sft/nll", "blue", "-log pi of the learnt tokens"),
        *([] if is_taught_alone(records) else _of_rewards(chart, records)),
        *chart.one("Completion length", "tokens", "completion/tokens_mean", "teal", "mean"),
        chart.of(
            "Truncated completions, failed rewards",
            "share of trajectories",
            {"truncated": ("completion/truncated_share", "amber"), "failed": ("rewards/failed_share", "red")},
        ),
        *chart.one("Entropy", "nats per token", "trainer/entropy", "violet"),
        *chart.one("Gradient norm", "norm", "trainer/grad_norm", "blue"),
        *chart.one("Loss", "loss", "trainer/loss", "blue", from_zero=False),
        *chart.one("Learning rate", "learning rate", "trainer/learning_rate", "grey"),
        *_of_parts(chart, _parts(records)),
    ]


def machinery(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Staleness, weight pushes, time and throughput, and how far the policies are apart."""
    chart = _Charts(records)
    if records and has_answers(records[-1]):
        return [*_throughput(chart), chart.stack("Trainer time", "trainer_time", _TRAINER)]
    bound = Series("bound", column(records, "staleness/bound"), "red", dashed=True)
    ages = chart.of(
        "Staleness of trained tokens",
        "age (updates)",
        {"mean": ("staleness/mean", "blue"), "max": ("staleness/max", "amber")},
    )
    gaps = {"mean gap": ("offpolicy/logprob_gap", "violet"), "KL": ("offpolicy/kl", "teal")}
    weights = {"effective sample size": ("offpolicy/ess", "blue"), "clipped": ("offpolicy/clip_fraction", "red")}
    where = {"in flight": ("staleness/in_flight", "blue"), "in the queue": ("staleness/in_queue", "amber")}
    push = {"generators paused": ("publish/pause_s", "violet"), "transfer": ("publish/transfer_s", "blue")}
    return [
        replace(ages, series=[*ages.series, bound]),
        _ages(chart.steps, records),
        chart.of("Where groups grow old", "age (updates)", where),
        chart.of("Weight push", "time (s)", push),
        chart.stack("Trainer time", "trainer_time", _TRAINER),
        chart.stack("Generator time", "generator_time", _GENERATORS),
        *_throughput(chart),
        chart.of("Gap between trainer's and engine's log-probs", "nats per token", gaps),
        chart.of("Importance weights", "share of tokens", weights),
    ]


class _Charts:
    """Charts of figures of some records."""

    def __init__(self, records: Sequence[Mapping[str, Any]]) -> None:
        self._records = records
        self.steps = [nth(record["step"]) for record in records]

    def of(self, title: str, unit: str, lines: Mapping[str, tuple[str, str]], from_zero: bool = True) -> Chart:
        """A line for each name: key and colour."""
        series = [Series(name, column(self._records, key), colour) for name, (key, colour) in lines.items()]
        return Chart(title, unit, self.steps, series, percent=unit.startswith("share"), from_zero=from_zero)

    def one(self, title: str, unit: str, key: str, colour: str, name: str = "", from_zero: bool = True) -> list[Chart]:
        """Of one line; none if no record has the figure."""
        if all(value is None for value in column(self._records, key)):
            return []
        return [self.of(title, unit, {name or title.lower(): (key, colour)}, from_zero)]

    def stack(self, title: str, role: str, colours: Mapping[str, str]) -> Chart:
        layers = [Series(name, column(self._records, f"{role}/{name}"), colour) for name, colour in colours.items()]
        return Chart(title, "share of time", self.steps, layers, percent=True, stacked=True)


def _throughput(chart: _Charts) -> list[Chart]:
    return [
        *chart.one("Samples trained", "samples/s", "throughput/samples_per_s", "teal", "samples"),
        *chart.one("Tokens trained", "tokens/s", "throughput/tokens_per_s", "teal", "tokens"),
    ]


def _of_answers(records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    """Of a run that samples nothing."""
    chart = _Charts(records)
    return [
        *chart.one("Loss", "loss", "trainer/loss", "blue", from_zero=False),
        *chart.one("Perplexity", "perplexity", "sft/perplexity", "green", from_zero=False),
        *chart.one("Margin of the chosen", "beta x nats", "pairs/margin", "green", from_zero=False),
        *chart.one("Pairs in which the chosen is preferred", "share of pairs", "pairs/accuracy", "teal"),
        *chart.one("Gradient norm", "norm", "trainer/grad_norm", "violet"),
        *chart.one("Learning rate", "learning rate", "trainer/learning_rate", "grey"),
    ]


def has_accuracy(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether anything was right: a reward that measures no accuracy never is."""
    return any(value for value in column(records, "accuracy/mean"))


def is_taught_alone(records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a teacher is all that was learnt from, and nobody rewarded."""
    last = records[-1] if records else {}
    return last.get("reward/mean") is None and last.get("distil/kl") is not None


def _of_rewards(chart: _Charts, records: Sequence[Mapping[str, Any]]) -> list[Chart]:
    low, high = _range(records)
    means = column(records, "reward/mean")
    around = _around(means, column(records, "reward/std"))
    clipped = [None if band is None else (max(band[0], low), min(band[1], high)) for band in around]
    reward = Series("mean, band ± 1 std", means, "blue", band=clipped)
    found = [Chart("Reward", "reward", chart.steps, [reward], from_zero=False)]
    if has_accuracy(records):
        found += chart.one("Accuracy", "share of trajectories", "accuracy/mean", "green")
    return found


def _range(records: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """The rewards that there were; records of older versions do not say."""
    lowest = [value for value in column(records, "reward/min") if value is not None]
    highest = [value for value in column(records, "reward/max") if value is not None]
    return min(lowest, default=-math.inf), max(highest, default=math.inf)


def _of_parts(chart: _Charts, names: Sequence[str]) -> Iterator[Chart]:
    for name in names[:_MOST_PARTS]:
        source = name.removeprefix("mean/")
        title = f"Reward part: {name}" if source == name else f"Reward on {source}"
        yield from chart.one(title, "mean", f"reward/{name}", "teal", from_zero=False)


def _parts(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """What rewards returned by names of their own, but for what is right: that is the accuracy."""
    keys = {key for record in records for key in record if key.startswith("reward/")}
    return sorted({key.removeprefix("reward/") for key in keys - {*REWARD_KEYS}} - {*VERDICTS, JUDGED})


def _around(means: Sequence[float | None], spreads: Sequence[float | None]) -> list[tuple[float, float] | None]:
    """Mean ± spread of each step."""
    return [
        None if mean is None else (mean - (spread or 0.0), mean + (spread or 0.0))
        for mean, spread in zip(means, spreads, strict=True)
    ]


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
    """At most `most` records: means over equal runs of steps, but the largest of .../max, the smallest of .../min.
    `of`: as if there were so many, to be shown beside another run."""
    stride = -(-(of or len(records)) // most)
    if stride <= 1:
        return [dict(record) for record in records]
    return [_mean(records[start : start + stride]) for start in range(0, len(records), stride)]


def _mean(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for key in records[0]:
        values = [r[key] for r in records if isinstance(r.get(key), int | float)]
        merged[key] = _OF_MANY.get(key.rpartition("/")[2], statistics.fmean)(values) if values else None
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
