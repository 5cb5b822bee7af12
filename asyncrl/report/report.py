"""The page of a run: `report.html` as one self-contained file, and the same parts for `asyncrl watch`.

Every file of the run may be missing or cut short (it crashed or still goes on); the page says what is not there.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from html import escape
from pathlib import Path
from typing import Any

from asyncrl.metric_names import has_answers, nth
from asyncrl.observe.bottleneck import SHARES, bottleneck, bottleneck_of_answers
from asyncrl.recipe.paths import leaves
from asyncrl.recipe.secret import masked
from asyncrl.report import evaluations, page, samples, standing
from asyncrl.report.charts import grid, script
from asyncrl.report.curves import column, has_accuracy, is_taught_alone, learning, machinery
from asyncrl.report.run_files import RunFiles, Signature
from asyncrl.report.timeline import timeline
from asyncrl.storage.run_dir import alike
from asyncrl.terminal.live import number
from asyncrl.terminal.progress import duration

_MOST_LISTED = 50
_NEWEST = 10
"""Steps of which the best and the worst sample are shown."""
_MAIN = (
    *("group_size", "groups_per_step", "max_staleness", "algorithm.advantage", "algorithm.loss"),
    *("trainer.learning_rate", "rollout.max_new_tokens", "rollout.temperature"),
)
_MAIN_OF_ANSWERS = ("groups_per_step", "algorithm.loss", "trainer.learning_rate")
"""Keys that the top of the page names."""
_LISTED = {
    "step": "step",
    "reward/mean": "reward",
    "accuracy/mean": "accuracy",
    "staleness/mean": "mean age",
    "staleness/max": "largest age",
    "offpolicy/logprob_gap": "log-prob gap",
    "offpolicy/ess": "ess",
    "throughput/samples_per_s": "samples/s",
    "throughput/tokens_per_s": "tokens/s",
    "publish/pause_s": "pause (s)",
    "time_s": "time (s)",
}
"""Columns of the table that has in figures what the charts draw."""
_OF_ANSWERS = {
    "loss": "trainer/loss",
    "perplexity": "sft/perplexity",
    "margin": "pairs/margin",
    "accuracy on pairs": "pairs/accuracy",
}
"""Of a run that samples nothing; those that it has."""
_LISTED_OF_ANSWERS = {
    "data/epoch": "epoch",
    "trainer/grad_norm": "gradient norm",
    "trainer/learning_rate": "learning rate",
    "throughput/samples_per_s": "samples/s",
    "throughput/tokens_per_s": "tokens/s",
    "time_s": "time (s)",
}


def write_report(run_dir: Path, out: Path | None = None) -> Path:
    """Write the page anew and return its path: `out`, by default RUN_DIR/report.html, or, if the directory is another
    user's, NAME.html in the working directory. Raises UserError if that is another file of the user's.

    In the directory it is for the run's readers; elsewhere for whom the umask says.
    """
    own = run_dir.stat().st_uid == os.geteuid()
    path = out or (run_dir / "report.html" if own else page.of_ours(Path(f"{run_dir.resolve().name}.html")))
    title = f"{run_dir.resolve().name} - asyncrl"
    sections = Sections(run_dir)
    parts = sections.html()
    if not sections.files.summary:
        said = "There is no readable summary.json: the run crashed, was stopped, or still goes on."
        parts = {"title": parts.pop("title"), "state": page.line(said, warn=True), **parts}
    places = [page.place(name, html) for name, html in parts.items()]
    with alike(run_dir) if own and path.resolve().is_relative_to(run_dir.resolve()) else nullcontext():
        return page.write(path, title, [*places, script()])


class Sections:
    """The parts of the page. One whose files have not changed is not made again."""

    def __init__(self, run_dir: Path) -> None:
        self.files = RunFiles(run_dir)
        self._made: dict[str, tuple[list[Signature], str]] = {}

    def html(self) -> dict[str, str]:
        """By their names, in their order; one that has nothing to show is empty."""
        # Before the files are read: what changes meanwhile is then made once more.
        now = {name: [self.files.signature(source) for source in sources] for name, (_, sources) in _PARTS.items()}
        self.files.refresh()
        for name, (make, _) in _PARTS.items():
            if name not in self._made or self._made[name][0] != now[name]:
                self._made[name] = (now[name], make(self.files))
        return {name: html for name, (_, html) in self._made.items()}


# -- the parts


def _title(files: RunFiles) -> str:
    recipe = files.recipe
    data = recipe.get("data")
    paths = [
        part.get("path", "") if isinstance(part, dict) else part
        for part in (data if isinstance(data, list) else [data or ""])
    ]
    source = ", ".join(map(str, paths))
    # A folder by its name; the recipe below says where it is.
    name = "/".join(Path(str(recipe.get("model", ""))).parts[-2:])
    model = f"{name}, {source}" if "model" in recipe else "recipe.yaml is missing or not readable"
    track = recipe.get("track")
    notes = str(track.get("notes") or "") if isinstance(track, dict) else ""
    main = _MAIN_OF_ANSWERS if files.records and has_answers(files.records[-1]) else _MAIN
    shown = (model, _settings(recipe, main), _origin(files.status), notes)
    lines = "".join(f'<p class="soft">{escape(line)}</p>' for line in shown if line)
    return f"<h1>{escape(files.run_dir.resolve().name)}</h1>{lines}"


def _settings(recipe: Mapping[str, Any], keys: Sequence[str]) -> str:
    values = dict(leaves(recipe))
    return ", ".join(f"{key} {values[key]}" for key in keys if values.get(key) is not None)


def _origin(status: Mapping[str, Any]) -> str:
    """When and where the run was last started, and by which version."""
    if "began_s" not in status:
        return ""
    began = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(status["began_s"]))
    return f"started {began} on {status.get('host', '?')}, asyncrl {status.get('asyncrl', '?')}"


def _headline(files: RunFiles) -> str:
    recipe, records, summary = files.recipe, files.records, files.summary
    if not records:
        return page.line("No step is done: metrics.jsonl has none.")
    last = records[-1]
    planned = recipe.get("max_steps")
    changes = [f"From step {nth(c['step'])} on: {c['kind']}, {c['what']}" for c in summary.get("changes", ())]
    answers = has_answers(last)
    limits = summary.get("bottleneck") or (bottleneck_of_answers if answers else bottleneck)(_mean_shares(records))
    lines = "".join(map(page.line, [limits, *changes]))
    if answers:
        return page.tiles(_figures_of_answers(files)) + lines
    failed = summary.get("reward_failures", last.get("rewards/failed"))
    share = next((s for r in reversed(records) if (s := r.get("rewards/failed_share")) is not None), None)
    worst = max((r["staleness/max"] for r in records if r.get("staleness/max") is not None), default=None)
    word = "final" if summary else "last"
    figures = [
        *evaluations.tiles(files.evaluations),
        *_learnt(records, word),
        (f"{last['step'] + 1}", "steps", f"of {planned} planned" if planned else ""),
        (duration(summary.get("wall_s") or last.get("time_s") or 0.0), "wall time", ""),
        (number(worst, 0), "largest staleness", f"bound {number(_bound(records, summary), 0)} updates"),
        (f"{last.get('tokens/generated') or 0:,}", "tokens generated", ""),
        (f"{failed or 0:,}", "rewards failed", f"{_percent(share)} lately"),
    ]
    return page.tiles(figures) + lines


def _learnt(records: Sequence[Mapping[str, Any]], word: str) -> list[tuple[str, str, str]]:
    """Tiles of accuracy, where anything was ever right, for not every reward says what is; and of the reward. Of a run
    with a teacher and without rewards, how far it is from that."""
    first, last = records[0], records[-1]
    if is_taught_alone(records):
        said = f"first step {number(first.get('distil/kl'))}, nats per token"
        return [(number(last["distil/kl"]), f"{word} KL from the teacher", said)]
    right = [_percent(record.get("accuracy/mean")) for record in (first, last)]
    tile = (number(last.get("reward/mean")), f"{word} reward", f"first step {number(first.get('reward/mean'))}")
    return [*([(right[1], f"{word} accuracy", f"first step {right[0]}")] if has_accuracy(records) else []), tile]


def _figures_of_answers(files: RunFiles) -> list[tuple[str, str, str]]:
    """Tiles of a run that samples nothing."""
    records, summary = files.records, files.summary
    first, last = records[0], records[-1]
    word = "final" if summary else "last"
    figures = [
        (number(last.get(key)), f"{word} {name}", f"first step {number(first.get(key))}")
        for name, key in _OF_ANSWERS.items()
        if last.get(key) is not None
    ]
    planned = files.recipe.get("max_steps")
    return [
        *figures,
        (f"{last['step'] + 1}", "steps", f"of {planned} planned" if planned else ""),
        (number(last.get("data/epoch"), 2), "epochs", "passes over the data"),
        (duration(summary.get("wall_s") or last.get("time_s") or 0.0), "wall time", ""),
        (f"{last.get('tokens/generated') or 0:,}", "tokens of answers", ""),
        (number(last.get("throughput/tokens_per_s"), 0), "tokens/s", "of answers, in the last step"),
    ]


def _evaluations(files: RunFiles) -> str:
    return evaluations.html(files.evaluations, files.lm_eval)


def _warnings(files: RunFiles) -> str:
    return standing.warnings(files.health)


def _past(files: RunFiles) -> str:
    return page.section("Messages", standing.past(files.health) + standing.logged(files.status))


def _charts(files: RunFiles) -> str:
    if not files.records:
        return ""
    drawn = grid(learning(files.thinned), first=not files.evaluations)
    return page.section("Training", drawn + _listed(files.records))


def _machinery(files: RunFiles) -> str:
    if not files.records:
        return ""
    return page.section("Staleness, weights, time", grid(machinery(files.thinned), first=False))


def _listed(records: Sequence[Mapping[str, Any]]) -> str:
    keys = _LISTED
    if has_answers(records[-1]):
        keys = {key: name for name, key in _OF_ANSWERS.items() if records[-1].get(key) is not None}
        keys = {"step": "step", **keys, **_LISTED_OF_ANSWERS}
    shown = [{**record, "step": nth(record["step"])} for record in reversed(records[-_MOST_LISTED:])]
    rows = [[_figure(record.get(key)) for key in keys] for record in shown]
    return page.folded(
        f"The last {len(rows)} steps in figures", page.table(list(keys.values()), rows, "figures by step")
    )


def _timeline(files: RunFiles) -> str:
    busy = timeline(files.run_dir)
    return page.section("Who was busy with what, at the end", busy and f"<figure>{busy}</figure>")


def _generators(files: RunFiles) -> str:
    if files.records and has_answers(files.records[-1]):
        return ""
    return page.section("Generators", standing.generators(files.status))


def _ledger(files: RunFiles) -> str:
    return page.section("Where the tasks are", standing.ledger(files.records, files.summary, files.status))


def _samples(files: RunFiles) -> str:
    steps = files.sampled_steps
    newest = samples.extremes(files.samples(steps[-_NEWEST:]))
    over_time = [one for one in samples.choose(files.samples(samples.spread(steps))) if one not in newest]
    return page.section("Samples", samples.html([*newest, *over_time]))


def _recipe(files: RunFiles) -> str:
    return page.section(
        "Recipe", page.folded("recipe.yaml", f'<pre tabindex="0">{escape(masked(files.recipe_text))}</pre>')
    )


_PARTS: dict[str, tuple[Callable[[RunFiles], str], tuple[str, ...]]] = {
    "title": (_title, ("recipe.yaml", "metrics.jsonl", "status.json")),
    "warnings": (_warnings, ("metrics.jsonl",)),
    "headline": (_headline, ("recipe.yaml", "metrics.jsonl", "summary.json", "evaluations.jsonl")),
    "evaluations": (_evaluations, ("evaluations.jsonl", "lm_eval.jsonl")),
    "charts": (_charts, ("recipe.yaml", "metrics.jsonl", "summary.json", "evaluations.jsonl")),
    "samples": (_samples, ("samples.jsonl",)),
    "machinery": (_machinery, ("metrics.jsonl",)),
    "timeline": (_timeline, ("trace.json",)),
    "generators": (_generators, ("status.json", "metrics.jsonl")),
    "ledger": (_ledger, ("status.json", "metrics.jsonl", "summary.json")),
    "messages": (_past, ("metrics.jsonl", "status.json")),
    "recipe": (_recipe, ("recipe.yaml",)),
}
"""How each part is made, and from which files."""


# -- figures


def _mean_shares(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    columns = {key: [v for v in column(records, key) if v is not None] for key in SHARES}
    return {key: statistics.fmean(values) for key, values in columns.items() if values}


def _bound(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> float | None:
    """The largest: a resume may change it. Records of older versions have none."""
    bounds = [bound for bound in column(records, "staleness/bound") if bound is not None]
    return max(bounds, default=summary.get("worst_case_staleness"))


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _figure(value: Any) -> str:
    if not isinstance(value, int | float):
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
