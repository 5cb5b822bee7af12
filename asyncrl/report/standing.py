"""Where a run stands, in words and tables: generators, tasks, waits, warnings. Every function gives HTML."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from asyncrl.metric_names import nth
from asyncrl.observe.health import Health, Said
from asyncrl.report import page
from asyncrl.terminal.live import LEDGER_EVENTS, LEDGER_STATES

_LEDGER_WORDS = {
    "running": "started, not finished",
    "ready": "finished, waiting for the trainer",
    "leased": "in the batch that is being trained",
    "trained": "used in a step that is done",
    "filtered": "left out for a named reason",
    "failed": "given up",
    "stale": "attempts given up because they were too old (events)",
    "requeued": "attempts started again (events)",
}
_MOST_GENERATORS = 64


def ledger(records: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """Counts of tasks in each state: the final ones, else those of the last second, else of the last step."""
    counts = summary.get("ledger") or status.get("ledger")
    if not counts:
        last = records[-1] if records else {}
        names = ("trained", "filtered", "failed", "running", "ready", "stale", "requeued")
        counts = {name: last[f"groups/{name}"] for name in names if f"groups/{name}" in last}
        if not counts:
            return '<p class="none">No counts were recorded.</p>'
    rows = [("drawn", str(counts["drawn"]), "all tasks taken from the data")] if "drawn" in counts else []
    for name in (*LEDGER_STATES, *LEDGER_EVENTS):
        if name in counts:
            reasons = counts.get(f"{name}_reasons") or {}
            rows.append((name, str(counts[name]), _listed(reasons) or _LEDGER_WORDS[name]))
    if counts.get("skipped"):
        rows.append(
            ("skipped", str(counts["skipped"]), "draws left out: their rows were too easy or too hard when last tried")
        )
    return page.table(("state", "tasks", "what it means"), rows, "tasks by state") + _left_out(
        summary.get("data") or []
    )


def _left_out(sources: Sequence[Mapping[str, Any]]) -> str:
    """Rows that were never drawn; empty if all of them were."""
    rows = [
        (str(one["name"]), f"{sum(one['left_out'].values())} of {one['rows']}", _listed(one["left_out"]))
        for one in sources
        if one["left_out"]
    ]
    return page.table(("data", "rows left out", "why"), rows, "rows left out before the first draw") if rows else ""


def _listed(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{reason}: {count}" for reason, count in reasons.items())


def generators(status: Mapping[str, Any]) -> str:
    """One row for each; empty if nothing is known of them."""
    known = [g for g in status.get("generators") or () if isinstance(g, dict)]
    if not known:
        return ""
    heads = ("generator", "state", "version", "groups", "tokens/s", "busy", "paused", "idle")
    rows = []
    for one in known[:_MOST_GENERATORS]:
        speed = one.get("tokens_per_s")
        shares = ("-" if one.get(name) is None else f"{100 * one[name]:.0f} %" for name in ("busy", "paused", "idle"))
        figures = (str(one.get("version", "-")), str(one.get("groups", "-")), "-" if speed is None else f"{speed:.0f}")
        rows.append((str(one.get("name")), str(one.get("state")), *figures, *shares))
    left = len(known) - len(rows)
    more = f'<p class="soft">and {left} more in status.json</p>' if left else ""
    remark = "Version, groups in flight: when the run was last seen. Speed, shares of time: between the last two steps."
    return page.table(heads, rows, "generators") + more + f'<p class="soft">{remark}</p>'


def waits(status: Mapping[str, Any]) -> str:
    """The longest waits that are in flight."""
    waiting = status.get("waiting") or ()
    items = "".join(f"<li>{escape(str(wait))}</li>" for wait in waiting)
    return f'<ul class="card">{items}</ul>' if items else '<p class="none">Nothing is waited for.</p>'


def logged(status: Mapping[str, Any]) -> str:
    """What the driver warned of lately, the newest first; what it warns of once a step is not repeated."""
    rows = [
        (time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(when)), text)
        for when, text in reversed(status.get("log") or ())
        if not re.match(r"step \d+: ", text)
    ]
    return page.table(("UTC", "driver log"), rows, "warnings in the log") if rows else ""


def warnings(health: Health) -> str:
    """Those that hold now; empty if none does."""
    return "".join(
        page.line(f"{_when(said)}: {said.sentence}", warn=True)
        for name, said in health.said.items()
        if name in health.active
    )


def past(health: Health) -> str:
    """Of each warning that no longer holds, when it did and how it read last; empty if there is none."""
    rows = [(_when(said), said.sentence) for name, said in health.said.items() if name not in health.active]
    return page.table(("held", "warning"), rows, "warnings that no longer hold") if rows else ""


def _when(said: Said) -> str:
    if said.num_steps == 1:
        return f"at step {nth(said.last_step)}"
    share = "the" if said.num_steps == said.last_step - said.first_step + 1 else f"{said.num_steps} of the"
    return f"at {share} steps {nth(said.first_step)} to {nth(said.last_step)}"
