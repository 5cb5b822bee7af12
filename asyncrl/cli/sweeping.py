"""`asyncrl sweep`: one run for each combination of values, each with a folder and a log of its own.

    key=[a,b] key=[c,d]  -->  4 x `asyncrl train RECIPE key=... run_dir=DIR/NAME --or-resume`  -->  a table, one page
Waits for: the runs, which have deadlines of their own. A sweep that is called again with the same folder goes on: what
is done is not run again, what broke off is resumed.
"""

from __future__ import annotations

import argparse
import itertools
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from asyncrl.cli.common import say
from asyncrl.cli.running import loaded
from asyncrl.errors import UserError
from asyncrl.observe.evaluations import FILE as EVALUATIONS
from asyncrl.observe.evaluations import newest_accuracy
from asyncrl.observe.metrics import read_lines
from asyncrl.terminal.progress import duration

_MOST_RUNS = 1000
_MOST_COMPARED = 6
_MOST_NAME_CHARS = 120
_LOOK_S = 0.2
_COMMAND = (sys.executable, "-m", "asyncrl")


@dataclass(frozen=True)
class Point:
    """One combination of values."""

    values: dict[str, str]
    """As they stand after `key=`."""

    @property
    def name(self) -> str:
        """Of its run directory."""
        text = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items())
        return re.sub(r"[^\w.,=+-]", "_", text)[:_MOST_NAME_CHARS]

    @property
    def overrides(self) -> list[str]:
        return [f"{key}={value}" for key, value in self.values.items()]


def points(overrides: Sequence[str]) -> tuple[list[Point], list[str]]:
    """Every combination of the lists among `key=value`, and the rest, which is the same for all. Raises UserError."""
    swept: dict[str, list[str]] = {}
    fixed = []
    for override in overrides:
        key, _, text = override.partition("=")
        if not text.startswith("["):
            fixed.append(override)
            continue
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"sweep: {override} is no list: {str(error).splitlines()[0]}") from error
        if not values:
            raise UserError(f"sweep: {override} has no values; name some, as in trainer.learning_rate=[1e-6,3e-6]")
        swept[key] = [_flow(value) for value in values]
    if not swept:
        raise UserError("sweep: no key has a list of values; name one, as in trainer.learning_rate=[1e-6,3e-6]")
    found = [Point(dict(zip(swept, values, strict=True))) for values in itertools.product(*swept.values())]
    if len(found) > _MOST_RUNS:
        raise UserError(f"sweep: {len(found)} combinations are more than {_MOST_RUNS}; take fewer values")
    if len({point.name for point in found}) < len(found):
        raise UserError("sweep: two combinations would have the same folder; take values that differ in their text")
    return found, fixed


def _flow(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**9)
    return text.removesuffix("...\n").strip()


def sweep(arguments: argparse.Namespace, command: Sequence[str] = _COMMAND) -> int:
    """Exit code 1 if a run failed; the others go on."""
    found, fixed = points(arguments.overrides)
    if taken := [o for o in fixed if o.startswith("run_dir=")]:
        raise UserError(f"sweep: {taken[0]}: every run has a folder of its own; say --out DIR")
    for point in found:  # all of them before the first one starts
        loaded(arguments.recipe, [*fixed, *point.overrides])
    out = arguments.out or Path(f"runs/sweep-{arguments.recipe.stem[:200]}-{time.strftime('%Y%m%d-%H%M%S')}")
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    failed = _run_all(command, arguments.recipe, fixed, found, out, arguments.jobs)
    say(*_table(found, out))
    done = [out / point.name for point in found if (out / point.name / "metrics.jsonl").exists()]
    if 1 < len(done) <= _MOST_COMPARED:
        from asyncrl.report.compare import write_comparison

        say(f"curves: {write_comparison(done, out / 'compare.html')}")
    return 1 if failed else 0


def _run_all(
    command: Sequence[str], recipe: Path, fixed: list[str], found: list[Point], out: Path, jobs: int
) -> list[Point]:
    """At most `jobs` at once; those that failed."""
    waiting, running, failed = list(enumerate(found, 1)), {}, []
    with _stopping(running):
        while waiting or running:
            while waiting and len(running) < jobs:
                number, point = waiting.pop(0)
                if (out / point.name / "summary.json").exists():
                    say(f"{number}/{len(found)}  {point.name}: done before")
                    continue
                words = [*command, "train", str(recipe), *fixed, *point.overrides, f"run_dir={out / point.name}"]
                say(f"{number}/{len(found)}  {point.name}: runs, log {out / point.name}.log")
                with open(out / f"{point.name}.log", "ab") as log:
                    # In a session of its own: Ctrl-C is for this process, which passes it on once.
                    process = subprocess.Popen(
                        [*words, "--or-resume"],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                running[process] = number, point, time.monotonic()
            time.sleep(_LOOK_S)
            for process in [one for one in running if one.poll() is not None]:
                number, point, began = running.pop(process)
                took = duration(time.monotonic() - began)
                ended = "done" if process.returncode == 0 else f"FAILED, exit code {process.returncode}"
                say(f"{number}/{len(found)}  {point.name}: {ended} after {took}")
                if process.returncode:
                    failed.append(point)
    return failed


@contextmanager
def _stopping(running: dict[subprocess.Popen[bytes], Any]) -> Iterator[None]:
    """An interrupt is for the runs too: each finishes its step and saves."""
    try:
        yield
    except BaseException:
        for process in running:
            process.send_signal(signal.SIGTERM)
        for process in running:
            process.wait()
        raise


def _table(found: list[Point], out: Path) -> list[str]:
    """A line for each run: its values, steps, reward and held-out score."""
    keys = list(found[0].values)
    heads = [*(key.rpartition(".")[2] for key in keys), "steps", "reward", "held-out", "folder"]
    rows = [[*point.values.values(), *_scores(out / point.name), point.name] for point in found]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in [heads, *rows]
    ]


def _scores(run_dir: Path) -> list[str]:
    records = read_lines(run_dir / "metrics.jsonl")
    held_out = newest_accuracy(read_lines(run_dir / EVALUATIONS))
    reward = records[-1].get("reward/mean") if records else None
    return [
        str(len(records)) + ("" if (run_dir / "summary.json").exists() else " (not done)"),
        "-" if reward is None else f"{reward:.3f}",
        "-" if held_out is None else f"{100 * held_out:.1f} %",
    ]
