"""What a person at the terminal or a notebook sees of a run: a panel that is redrawn in place; or plain lines in a log.

    phase(text, total)   what is being done now, and how much of it     step(record)    the figures of a finished step
    state(status)        tasks, waits, generators, between the steps

On a terminal Python's logging goes through the same console, so that nothing tears the panel. Elsewhere there is
one line per step and one per change of phase, and one now and then while either lasts. NO_COLOR is respected; no
figure is told by colour alone.
"""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.logging import RichHandler
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from asyncrl.metric_names import has_answers
from asyncrl.terminal.console import RunConsole
from asyncrl.terminal.notebook import NotebookPanel
from asyncrl.terminal.progress import Heartbeat, Phase, duration

LEDGER_STATES = ("running", "ready", "leased", "trained", "filtered", "failed")
LEDGER_EVENTS = ("stale", "requeued")
_TRAINING = "training"
_FIRST_OF_STEP_S = 30.0
"""A step that takes longer has a line of its own in a log."""
_HISTORY = 40
_ETA_STEPS = 10
_MOST_GENERATORS = 8
_BLOCKS = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS = "_.-=+*#@"
_BESIDE = {"teacher KL": "distil/kl", "sft nll": "sft/nll"}
"""Of runs that have a teacher, or demonstrations beside what is sampled."""
_FIGURES = {
    "reward": "reward/mean",
    "accuracy": "accuracy/mean",
    **_BESIDE,
    "length": "completion/tokens_mean",
    "entropy": "trainer/entropy",
}
"""Those that the run has; accuracy, once anything is right."""
_OF_ANSWERS = {
    "loss": "trainer/loss",
    "perplexity": "sft/perplexity",
    "margin": "pairs/margin",
    "accuracy": "pairs/accuracy",
}
"""Of a run that samples nothing; those that it has."""
_TRAINER_STYLES = {
    "busy": "green",
    "wait_batch": "yellow",
    "wait_publish": "magenta",
    "checkpoint": "cyan",
    "unaccounted": "bright_black",
}
_GENERATOR_STYLES = {"busy": "green", "paused": "magenta", "idle": "yellow"}


class LiveView:
    """Progress of one run on `console` (default: stdout); `close` puts the terminal and the logging back."""

    def __init__(
        self,
        total_steps: int,
        recipe_name: str,
        bound: int,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.total_steps = total_steps
        self.recipe_name = recipe_name
        self.bound = bound
        self.console = console or RunConsole()
        self._clock = clock
        self._phase = Phase("starting", clock())
        self._record: Mapping[str, Any] = {}
        self._sample: Mapping[str, Any] = {}
        self._history: dict[str, list[float]] = {key: [] for key in (*_FIGURES.values(), *_OF_ANSWERS.values())}
        self._times_s: list[float] = []
        self._status: Mapping[str, Any] = {}
        self._replaced: list[tuple[logging.Logger, logging.Handler, logging.Handler]] = []
        self._live: Live | NotebookPanel | None = None
        self._heart: Heartbeat | None = None
        if self.console.is_jupyter:
            self._live = NotebookPanel(self._panel)
        elif self.console.is_terminal and not self.console.is_dumb_terminal:
            self._live = Live(get_renderable=self._panel, console=self.console, refresh_per_second=4)

    # -- told by the run

    def phase(self, text: str, total: int = 0) -> Phase:
        """What the run does now; stays until the next phase or the end of a step. `total`: how much of it there is;
        who does it counts `done` up."""
        if text != self._phase.text:
            self._phase = Phase(text, self._clock(), total)
            self._line(text)
        return self._phase

    @contextmanager
    def during(self, text: str, total: int = 0) -> Iterator[Phase]:
        """A phase within another, to which it returns."""
        before, phase = self._phase, self.phase(text, total)
        try:
            yield phase
        finally:
            if self._phase is phase:
                self._phase = before

    def step(self, record: Mapping[str, Any], sample: Mapping[str, Any] | None = None) -> None:
        """The figures of a step that is done (names of `metric_names.STEP_KEYS`), and a trajectory that it trained:
        prompt, completion, reward."""
        self._record, self._sample = record, sample or {}
        for key, values in self._history.items():
            if record.get(key) is not None:
                values.append(record[key])
                del values[:-_HISTORY]
        if not self._times_s and record["step"] == 0:
            self._times_s = [0.0]
        self._times_s = [*self._times_s, record["time_s"]][-_ETA_STEPS - 1 :]
        self._phase = Phase(_TRAINING, self._clock(), first_s=_FIRST_OF_STEP_S)
        self._line(step_line(record, self.total_steps, self.bound))

    def state(self, status: Mapping[str, Any]) -> None:
        """Where the run stands between its steps (`orchestrator/status.py`)."""
        self._status = status

    @property
    def doing(self) -> str:
        """The phase, and how much of it is done."""
        return self._phase.name

    # -- life

    def __enter__(self) -> LiveView:
        if self._live:
            self._take_logging()
            self._live.start()
        else:
            self._heart = Heartbeat(self._beat)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        if self._live:
            self._live.stop()
            self._give_logging_back()
            self._live = None
        if self._heart:
            self._heart.stop()
            self._heart = None

    def _take_logging(self) -> None:
        """Replace the handlers, of any logger, that write to a terminal."""
        known = logging.Logger.manager.loggerDict.values()
        for logger in (logging.getLogger(), *(entry for entry in known if isinstance(entry, logging.Logger))):
            for handler in logger.handlers:
                # Some libraries install a handler before they have a stream for it.
                stream = getattr(handler, "stream", None)
                if isinstance(handler, logging.StreamHandler) and stream is not None and stream.isatty():
                    ours = RichHandler(handler.level, self.console, show_path=False, log_time_format="%H:%M:%S")
                    self._replaced.append((logger, handler, ours))
        for logger, handler, ours in self._replaced:
            logger.removeHandler(handler)
            logger.addHandler(ours)

    def _give_logging_back(self) -> None:
        for logger, handler, ours in self._replaced:
            logger.removeHandler(ours)
            logger.addHandler(handler)
        self._replaced = []

    # -- plain lines

    def _line(self, text: str) -> None:
        if self._live is None:
            stamped = f"{time.strftime('%H:%M:%S')}  {text}"
            self.console.print(stamped, markup=False, highlight=False, soft_wrap=True)

    def _beat(self) -> None:
        """What lasts is said again."""
        if self._phase.due(now_s := self._clock()):
            waits = "; ".join(self._status.get("waiting", ()))
            self._line(f"{self._phase.words(now_s)}{': waiting for ' if waits else ''}{waits}")

    # -- the panel

    def _panel(self) -> Panel:
        rows = Table.grid(padding=(0, 2))
        rows.add_column(style="bold", no_wrap=True)
        rows.add_column(ratio=1)
        rows.add_row("progress", self._progress())
        rows.add_row("phase", self._doing())
        if self._record:
            self._add_figures(rows)
        status = self._status
        for row in () if has_answers(self._record) else generator_lines(status.get("generators", ())):
            rows.add_row(*row)
        if "ledger" in status:
            rows.add_row("tasks", _counts(status["ledger"]))
        waiting = status.get("waiting")
        rows.add_row("waiting for", Group(*map(Text, waiting)) if waiting else Text("nothing", "dim"))
        if warnings := status.get("warnings"):
            rows.add_row("warnings", Group(*(Text(sentence, "yellow") for sentence in warnings)))
        return Panel(rows, title=Text(f"asyncrl {self.recipe_name}"), title_align="left", border_style="blue")

    def _progress(self) -> Table:
        done = self._record["step"] + 1 if self._record else 0
        figures = f"{done}/{self.total_steps} steps   {self._eta(self.total_steps - done)}"
        return _bar(self.total_steps, done, figures)

    def _doing(self) -> Text | Table:
        words = self._phase.words(self._clock())
        return _bar(self._phase.total, self._phase.done, words) if self._phase.total else Text(words)

    def _eta(self, steps_left: int) -> str:
        if not steps_left:
            return f"took {duration(self._times_s[-1])}"
        gaps_s = [after - before for before, after in zip(self._times_s, self._times_s[1:], strict=False)]
        return f"{duration(steps_left * statistics.fmean(gaps_s))} left" if gaps_s else "time left unknown"

    def _add_figures(self, rows: Table) -> None:
        record = self._record
        blocks = _ASCII_BLOCKS if self.console.options.ascii_only else _BLOCKS
        answers = has_answers(record)
        for name, key in _OF_ANSWERS.items() if answers else _FIGURES.items():
            if record.get(key) is None or (key == "accuracy/mean" and not any(self._history[key])):
                continue
            figure = Text(f"{number(record.get(key)):>7}  ")
            rows.add_row(name, figure.append(sparkline(self._history[key], blocks), "cyan"))
        mean, oldest = number(record.get("staleness/mean"), 2), number(record.get("staleness/max"), 0)
        if answers:
            rows.add_row("epoch", Text(f"{number(record.get('data/epoch'), 2):>7}"))
        else:
            rows.add_row("staleness", Text(f"mean {mean}   max {oldest}   bound {self.bound}"))
        rows.add_row("trainer", _share_line(record, "trainer_time", _TRAINER_STYLES))
        if not answers:
            rows.add_row("generators", _share_line(record, "generator_time", _GENERATOR_STYLES))
        samples, tokens = record.get("throughput/samples_per_s"), record.get("throughput/tokens_per_s")
        for part in ("prompt", "completion") if self._sample else ():
            rows.add_row(
                part, Text(" ".join(str(self._sample.get(part, "")).split()), no_wrap=True, overflow="ellipsis")
            )
        rows.add_row("throughput", Text(f"{number(samples, 1)} samples/s   {number(tokens, 0)} tokens/s"))


def _bar(total: int, done: int, words: str) -> Table:
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(ratio=1)
    grid.add_column(no_wrap=True)
    grid.add_row(ProgressBar(total, done), Text(words))
    return grid


_WAIT, _NOTICEABLE = "reward_time/waiting", 0.15
"""A share of the generators' busy time that is not the engine's; said from here on."""


def step_line(record: Mapping[str, Any], total_steps: int, bound: int) -> str:
    """One aligned line for the log: steps done, then the figures of the last one."""

    def percent(key: str) -> str:
        return f"{number(_times_100(record.get(key)), 0):>3} %"

    width = len(str(total_steps))
    if has_answers(record):
        known = {name: record[key] for name, key in _OF_ANSWERS.items() if record.get(key) is not None}
        return "  ".join(
            (
                f"{record['step'] + 1:>{width}}/{total_steps}",
                *(f"{name} {number(value):>6}" for name, value in known.items()),
                f"epoch {number(record.get('data/epoch'), 2)}",
                f"trainer busy {percent('trainer_time/busy')} wait {percent('trainer_time/wait_batch')}",
                f"{number(record.get('throughput/samples_per_s'), 1):>5} samples/s",
                f"{number(record.get('throughput/tokens_per_s'), 0):>5} tok/s",
                duration(record["time_s"]),
            )
        )
    mean, oldest = number(record.get("staleness/mean"), 2), number(record.get("staleness/max"), 0)
    return "  ".join(
        (
            f"{record['step'] + 1:>{width}}/{total_steps}",
            *([] if _unrewarded(record) else [f"reward {number(record.get('reward/mean')):>6}"]),
            *([] if _unrewarded(record) else [f"acc {percent('accuracy/mean')}"]),
            *(f"{name} {number(record[key], 3)}" for name, key in _BESIDE.items() if record.get(key) is not None),
            f"stale {mean} max {oldest}/{bound}",
            f"trainer busy {percent('trainer_time/busy')} wait {percent('trainer_time/wait_batch')}",
            f"gen busy {percent('generator_time/busy')} idle {percent('generator_time/idle')}",
            *([f"wait for rewards {percent(_WAIT)}"] if (record.get(_WAIT) or 0) >= _NOTICEABLE else []),
            f"{number(record.get('throughput/samples_per_s'), 1):>5} samples/s",
            f"{number(record.get('throughput/tokens_per_s'), 0):>5} tok/s",
            duration(record["time_s"]),
        )
    )


def _unrewarded(record: Mapping[str, Any]) -> bool:
    """Whether a teacher is all there is to learn from."""
    return "distil/taught_share" in record and record.get("reward/mean") is None


def sparkline(values: Sequence[float], blocks: str = _BLOCKS) -> str:
    """One character per value, from the lowest to the highest of them; flat values stay low."""
    if not values:
        return ""
    low, span = min(values), max(values) - min(values)
    top = len(blocks) - 1
    return "".join(blocks[round((v - low) / span * top) if span else 0] for v in values)


def number(value: float | None, digits: int = 3) -> str:
    """`-` for a figure that a step does not have."""
    return "-" if value is None else f"{value:.{digits}f}"


def _times_100(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _counts(ledger: Mapping[str, Any]) -> Text:
    states = "   ".join(f"{name} {ledger[name]}" for name in LEDGER_STATES if name in ledger)
    events = "   ".join(f"{name} {ledger[name]}" for name in LEDGER_EVENTS if ledger.get(name))
    return Text(states).append(f"   ({events})" if events else "", "dim")


def generator_lines(generators: Sequence[Mapping[str, Any]]) -> list[tuple[str, Text]]:
    """Name and figures of each, but of many only the first."""
    lines = []
    for generator in generators[:_MOST_GENERATORS]:
        line = (
            Text(f"version {generator['version']}   {generator['groups']} groups") if "version" in generator else None
        )
        if line and "tokens_per_s" in generator:
            line.append(f"   {generator['tokens_per_s']:.0f} tokens/s")
        lines.append((generator["name"], line or Text(generator["state"], "yellow")))
    if left := len(generators) - len(lines):
        lines.append(("", Text(f"and {left} more", "dim")))
    return lines


def _share_line(record: Mapping[str, Any], role: str, styles: Mapping[str, str]) -> Text:
    """Every share of a role's time that the record has."""
    present = {name: record[f"{role}/{name}"] for name in styles if record.get(f"{role}/{name}") is not None}
    line = Text()
    for name, share in present.items():
        line.append(f"{name} {100 * share:.0f} %", styles[name]).append("   ")
    return line
