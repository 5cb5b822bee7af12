"""`asyncrl inspect`: the trajectories in a run's journal, as a list, in full, or as a parquet file.

The journal is only read: the run may have ended, crashed, or still go on. It holds every group, or of a long run what
a resume needs (`journal.keep`); which step trained a group is known in either case.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.buffer.log import segments
from asyncrl.buffer.records import GROUPS_STREAM, groups, trained
from asyncrl.errors import UserError
from asyncrl.metric_names import nth
from asyncrl.models import TINY_LLAMA, tiny_tokenizer, tokenizer_here
from asyncrl.report.run_files import RunFiles
from asyncrl.rollout.trajectory import Trajectory, decode, header_of
from asyncrl.storage.run_dir import replacing, require_replaceable
from asyncrl.terminal.console import Console
from asyncrl.terminal.escape import visible

_MOST_TOKENS = 2**21
_STYLES = ("on blue", "on magenta", "on dark_green", "on dark_red", "on dark_cyan", "on grey37")

Range = tuple[float, float]
Decode = Callable[[list[int]], str]


@dataclass(frozen=True)
class Found:
    """A trajectory, and the step that trained it if one has (or is about to)."""

    task: int
    attempt: int
    member: int
    """Which rollout of its group."""
    row: int
    step: int | None
    trajectory: Trajectory
    sequence: int = 0
    """Which of the rollout's, if it has several."""

    @property
    def age(self) -> int | None:
        """Of its oldest trained token, in updates."""
        trained = self.trajectory.versions[self.trajectory.loss_mask]
        return None if self.step is None or not len(trained) else self.step - int(trained.min())

    @property
    def spans(self) -> list[tuple[int, int, int]]:
        """(version, first token, token after the last) of the sampled tokens; places in the whole trajectory."""
        versions = self.trajectory.versions
        starts = np.flatnonzero(np.diff(versions, prepend=versions[:1] - 1))
        ends = [*starts[1:], len(versions)]
        return [(int(versions[s]), int(s), int(e)) for s, e in zip(starts, ends, strict=True) if versions[s] >= 0]


@dataclass(frozen=True)
class Filters:
    """What to look at; None: all. Ranges include both ends."""

    task: int | None = None
    reward: Range | None = None
    age: Range | None = None

    def pass_(self, found: Found) -> bool:
        return (
            (self.task is None or found.task == self.task)
            and (self.reward is None or _within(found.trajectory.reward, self.reward))
            and (self.age is None or _within(found.age, self.age))
        )


def parse_range(text: str) -> Range:
    """`0.5:1`, `:2`, `3:` or `1`. Raises UserError."""
    low, colon, high = text.partition(":")
    try:
        least = float(low) if low else -float("inf")
        bounds = (least, float(high) if high else float("inf")) if colon else (float(text), float(text))
        if bounds[0] > bounds[1]:
            raise ValueError
        return bounds
    except ValueError:
        raise UserError(f"{text!r} is no range; write LOW:HIGH, LOW:, :HIGH or one number") from None


def find(run_dir: Path, filters: Filters) -> Iterator[Found]:
    """The trajectories of the journal that pass, in the order in which their groups were committed."""
    steps = trained(run_dir / "journal")
    for record in groups(run_dir / "journal"):
        if filters.task is not None and filters.task != header_of(record.payload).task:
            continue
        group = decode(record.payload)
        if (longest := max((len(t.tokens) for t in group.trajectories), default=0)) > _MOST_TOKENS:
            raise UserError(
                f"inspect: task {group.task} has a trajectory of {longest} tokens, over {_MOST_TOKENS}, which no "
                "model makes; --task looks at another"
            )
        step = steps.get((group.task, group.attempt))
        seen: Counter[int] = Counter()
        for place, trajectory in enumerate(group.trajectories):
            member = place if trajectory.member is None else trajectory.member
            seen[member] += 1
            found = Found(group.task, group.attempt, member, group.row, step, trajectory, seen[member] - 1)
            if filters.pass_(found):
                yield found


def count(run_dir: Path, filters: Filters) -> int:
    """How many pass. Their tokens are looked at only where their age is asked for."""
    if filters.age is not None:
        return sum(1 for _ in find(run_dir, filters))
    headers = (header_of(record.payload) for record in groups(run_dir / "journal"))
    return sum(
        filters.reward is None or _within(trajectory.reward, filters.reward)
        for header in headers
        if filters.task is None or filters.task == header.task
        for trajectory in header.trajectories
    )


def inspect(run_dir: Path, filters: Filters, limit: int, whole: bool, path: Path | None) -> int:
    """What the command does: print the first `limit` trajectories, in full if `whole`; or write all to `path`.

    Returns how many."""
    if not segments(run_dir / "journal", GROUPS_STREAM):
        raise UserError(
            f"inspect: {run_dir}/journal has no trajectories: the run broke off before the first group was scored, all "
            "groups failed, or the journal is lost"
        )
    tokenizer = _tokenizer(run_dir)
    found, console = find(run_dir, filters), Console()
    if path is not None:
        num_rows = export(path, found, tokenizer.decode)
        console.print(f"{num_rows} trajectories in {path}", markup=False, highlight=False, soft_wrap=True)
        return num_rows
    shown = islice(found, limit)
    if whole:
        num_shown = 0
        for num_shown, one in enumerate(shown, 1):  # noqa: B007
            show(console, one, tokenizer.decode)
    else:
        lines = listing(shown, tokenizer.decode, console.width)
        num_shown = len(lines) - 1
        if num_shown:
            console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)
    if not num_shown:
        said = f"no such trajectory in {run_dir / 'journal'}{_tasks(run_dir, filters)}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if num_shown == limit and (left_out := count(run_dir, filters) - limit) > 0:
        console.print(f"{left_out} more: raise --limit, or narrow --task, --reward, --age", highlight=False)
    return num_shown


def _tasks(run_dir: Path, filters: Filters) -> str:
    """Which tasks there are, if the one that is asked for is none of them."""
    if filters.task is None:
        return ""
    tasks = {header_of(record.payload).task for record in groups(run_dir / "journal")}
    if filters.task in tasks or not tasks:
        return ""
    return f", which has {len(tasks)} task{'s' if len(tasks) > 1 else ''} from {min(tasks)} to {max(tasks)}"


def rows(run_dir: Path, filters: Filters) -> Iterator[dict[str, Any]]:
    """The trajectories that pass, as they are exported."""
    tokenizer = _tokenizer(run_dir)
    return (_row(found, tokenizer.decode) for found in find(run_dir, filters))


def _tokenizer(run_dir: Path) -> Any:
    model = RunFiles(run_dir).recipe.get("model")
    if not isinstance(model, str):
        raise UserError(f"inspect: {run_dir}/recipe.yaml names no model, whose tokenizer it takes; put the file back")
    return tiny_tokenizer() if model == TINY_LLAMA else tokenizer_here(model)


def _within(value: float | None, bounds: Range) -> bool:
    return value is not None and bounds[0] <= value <= bounds[1]


# -- for people


def listing(found: Iterable[Found], decode_tokens: Decode, width: int) -> list[str]:
    """A heading, and a line for each with the beginning of the completion; of at most `width` characters. One is held
    at a time."""
    rows = [("task", "step", "reward", "tokens", "versions", "age", "end", "completion")]
    for f in found:
        t = f.trajectory
        versions = "-".join(dict.fromkeys(str(f.spans[place][0]) for place in (0, -1))) if f.spans else "-"
        sampled = t.tokens[t.prompt_length :].tolist()
        num_sampled = int((t.versions >= 0).sum())
        text = visible(json.dumps(decode_tokens(sampled[: 4 * width]), ensure_ascii=False)[1:-1])[:width]
        figures = (_step(f), _reward(t), str(num_sampled), versions, _or_dash(f.age))
        rows.append((_name(f), *figures, _on_a_line(t.finish_reason), text))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *figures, end, text in rows:
        middle = "  ".join(figure.rjust(w) for figure, w in zip(figures, widths[1:], strict=False))
        lines.append(f"{name:<{widths[0]}}  {middle}  {end:<{widths[-2]}}  {text}"[:width])
    return lines


def _step(found: Found) -> str:
    return _or_dash(None if found.step is None else nth(found.step))


def show(console: Console, found: Found, decode_tokens: Decode) -> None:
    """One trajectory in full, its tokens coloured by version."""
    t = found.trajectory
    console.rule(f"task {_name(found)}", align="left")
    said = f"row {found.row}   step {_step(found)}   reward {_reward(t)}   end {_on_a_line(t.finish_reason)}"
    console.print(said, markup=False)
    for name, value in t.extras.items():
        console.print(f"{name} {value:g}", markup=False)
    for name, text in t.notes.items():
        console.print(f"{name}: {text}", markup=False, style="dim")
    if t.error:
        console.print(f"the reward failed: {t.error}", markup=False, style="red")
    console.print("prompt", style="bold")
    console.print(decode_tokens(t.tokens[: t.prompt_length].tolist()), markup=False, highlight=False)
    versions, read = sorted({version for version, _, _ in found.spans}), t.prompt_length
    for version, start, end in found.spans:
        if start > read:
            console.print(f"not sampled, tokens {read} to {start - 1}", style="bold")
            console.print(decode_tokens(t.tokens[read:start].tolist()), markup=False, highlight=False)
        read = end
        logprobs = t.logprobs[start:end]
        mean = f", mean log-prob {logprobs.mean():.3f}" if len(logprobs) and np.isfinite(logprobs).all() else ""
        console.print(f"version {version}, tokens {start} to {end - 1}{mean}", style="bold")
        style = _STYLES[versions.index(version) % len(_STYLES)]
        console.print(decode_tokens(t.tokens[start:end].tolist()), markup=False, highlight=False, style=style)


def _on_a_line(text: str) -> str:
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")[:40]


def _name(found: Found) -> str:
    """task.member, the agent if it is a further one, and the sequence and the attempt if they are not the first."""
    agent = f" {found.trajectory.agent}" if found.trajectory.agent else ""
    sequence = f" sequence {found.sequence + 1}" if found.sequence else ""
    return f"{found.task}.{found.member}{agent}{sequence}" + (f" (attempt {found.attempt})" if found.attempt else "")


def _reward(trajectory: Trajectory) -> str:
    return "failed" if trajectory.reward is None else f"{trajectory.reward:.3g}"


def _or_dash(value: int | None) -> str:
    return "-" if value is None else str(value)


# -- for programs

_ROWS_AT_ONCE, _TOKENS_AT_ONCE = 5000, 2**22
"""All of a long run would not fit in memory."""
_COLUMNS = {
    **dict.fromkeys(("task", "attempt", "member", "row", "step", "age"), "int64"),
    **dict.fromkeys(("prompt", "completion"), "string"),
    "reward": "float64",
    **dict.fromkeys(("extras", "finish_reason", "error"), "string"),
}
_TOKEN_COLUMNS = {"tokens": "int32", "versions": "int32", "logprobs": "float32", "loss_mask": "bool_"}
"""One entry for each token."""


def export(path: Path, found: Iterator[Found], decode_tokens: Decode) -> int:
    """Write a parquet file, a row per trajectory, which `datasets.load_dataset("parquet", ...)` reads; returns the
    number of rows. The file is whole or not there. Raises UserError if it cannot be written."""
    import pyarrow
    from pyarrow import parquet

    schema = pyarrow.schema([(name, getattr(pyarrow, kind)()) for name, kind in _COLUMNS.items()])
    for name, kind in _TOKEN_COLUMNS.items():
        schema = schema.append(pyarrow.field(name, pyarrow.list_(getattr(pyarrow, kind)())))
    num_rows = 0
    try:
        require_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file, parquet.ParquetWriter(file, schema) as writer:
            for rows in _batches(found, decode_tokens):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                num_rows += len(rows)
    except OSError as error:
        raise UserError(f"--export: {path}: {error.strerror or error}") from error
    return num_rows


def _batches(found: Iterator[Found], decode_tokens: Decode) -> Iterator[list[dict[str, Any]]]:
    rows: list[dict[str, Any]] = []
    num_tokens = 0
    for one in found:
        rows.append(_row(one, decode_tokens))
        num_tokens += len(one.trajectory.tokens)
        if len(rows) == _ROWS_AT_ONCE or num_tokens > _TOKENS_AT_ONCE:
            yield rows
            rows, num_tokens = [], 0
    if rows:
        yield rows


def _row(found: Found, decode_tokens: Decode) -> dict[str, Any]:
    t = found.trajectory
    return {
        "task": found.task,
        "attempt": found.attempt,
        "member": found.member,
        "row": found.row,
        "step": found.step,
        "age": found.age,
        "prompt": decode_tokens(t.tokens[: t.prompt_length].tolist()),
        "completion": decode_tokens(t.tokens[t.prompt_length :].tolist()),
        "reward": t.reward,
        "extras": json.dumps(t.extras),
        "finish_reason": t.finish_reason,
        "error": t.error,
        "tokens": t.tokens,
        "versions": t.versions,
        "logprobs": t.logprobs,
        "loss_mask": t.loss_mask,
    }
