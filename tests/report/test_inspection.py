"""`asyncrl inspect` on a journal written by the journal's own writers."""

from __future__ import annotations

import time
import tracemalloc
from pathlib import Path

import long_run
import numpy as np
import pytest
from datasets import load_dataset

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUP, GROUPS_STREAM, ControlLog
from asyncrl.cli import main
from asyncrl.control.messages import Train
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.report import inspection
from asyncrl.report.inspection import Filters, count, find, parse_range
from asyncrl.rollout.trajectory import Group, Trajectory, encode


@pytest.fixture
def run_dir(tiny_model: Path, tmp_path: Path) -> Path:
    """Task 0 trained at step 3, task 1 not yet; two trajectories each, the last of which has no reward."""
    tokenizer = load_tokenizer(str(tiny_model))
    prompt, one, two = (tokenizer.encode(text) for text in ("2+2=", "four", "[bold]"))

    def trajectory(reward: float | None, newest: int) -> Trajectory:
        tokens = np.array(prompt + one + two, np.int32)
        versions = np.array([-1] * len(prompt) + [1] * len(one) + [newest] * len(two), np.int32)
        trained = (versions >= 0) & (reward is not None)
        logprobs = np.where(versions >= 0, -0.5, 0.0).astype(np.float32)
        error = "ValueError: no number" if reward is None else None
        return Trajectory(tokens, versions, logprobs, trained, reward, "stop", {"accuracy": 1.0}, error)

    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_model}\n")
    writer = log.JournalWriter(tmp_path / "journal", GROUPS_STREAM)
    for task in (0, 1):
        rewards = (1.0, 0.25) if task == 0 else (0.5, None)
        members = tuple(trajectory(reward, newest=2 + task) for reward in rewards)
        writer.append(GROUP, encode(Group(task, task, 10 + task, members)))
    writer.sync()
    writer.close()
    control = ControlLog(tmp_path / "journal", {})
    control.decisions([Train(3, ((0, 0),), 1)])
    control.sync()
    control.close()
    return tmp_path


@pytest.mark.parametrize(
    ("filters", "found"),
    [
        (Filters(), [(0, 0), (0, 1), (1, 0), (1, 1)]),
        (Filters(task=1), [(1, 0), (1, 1)]),
        (Filters(reward=(0.5, 1.0)), [(0, 0), (1, 0)]),  # one without a reward is in no range
        (Filters(age=(2, 2)), [(0, 0), (0, 1)]),  # step 3, oldest token of version 1
        (Filters(age=(0, 1)), []),
        (Filters(task=0, reward=(0, 0.3)), [(0, 1)]),
    ],
)
def test_filters(run_dir: Path, filters: Filters, found: list[tuple[int, int]]) -> None:
    assert [(f.task, f.member) for f in find(run_dir, filters)] == found
    assert count(run_dir, filters) == len(found)


def test_ranges() -> None:
    inf = float("inf")
    assert [parse_range(text) for text in ("1:2", "1:", ":2", "-1", ":")] == [
        (1, 2), (1, inf), (-inf, 2), (-1, -1), (-inf, inf),
    ]  # fmt: skip


def test_the_list(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_dir), "--limit", "3"]) == 0
    head, first, _, third, caption = capsys.readouterr().out.splitlines()
    assert head.split() == ["task", "step", "reward", "tokens", "versions", "age", "end", "completion"]
    assert first.split() == ["0.0", "4", "1", "10", "1-2", "2", "stop", "four[bold]"]
    assert third.split() == ["1.0", "(attempt", "1)", "-", "0.5", "10", "1-3", "-", "stop", "four[bold]"]
    assert caption.startswith("1 more: raise --limit")


def test_in_full(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_dir), "--task", "1", "--show"]) == 0
    text = capsys.readouterr().out
    for words in ("2+2=", "version 1, tokens 4 to 7, mean log-prob -0.500", "[bold]", "reward failed", "no number"):
        assert words in text


def test_nothing_found_is_said_and_is_exit_code_1(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(run_dir), "--task", "7"]) == 1
    tasks = {found.task for found in find(run_dir, Filters())}
    there = f"journal, which has {len(tasks)} tasks from {min(tasks)} to {max(tasks)}"
    assert there in capsys.readouterr().out
    assert main(["inspect", str(run_dir), "--task", str(min(tasks)), "--reward", "77"]) == 1
    assert capsys.readouterr().out == f"no such trajectory in {run_dir / 'journal'}\n"
    assert main(["inspect", str(run_dir), "--task", "7", "--export", str(run_dir / "none.parquet")]) == 1
    assert "0 trajectories in " in capsys.readouterr().out


@pytest.mark.parametrize("out", [("--limit", "20"), ("--limit", "20", "--show"), ("--export", "out.parquet")])
def test_memory_holds_one_group(
    run_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, out: tuple[str, ...]
) -> None:
    """Whatever the journal's groups weigh: here 13 MB each, of a million tokens."""
    monkeypatch.chdir(run_dir)
    monkeypatch.setattr(inspection, "_TOKENS_AT_ONCE", 10)
    monkeypatch.setattr(inspection, "tokenizer_here", lambda _: Decoder())
    writer = log.JournalWriter(run_dir / "journal", GROUPS_STREAM)
    size = 2**20
    for task in range(2, 12):
        tokens, versions = np.zeros(size, np.int32), np.full(size, 1, np.int32)
        member = Trajectory(tokens, versions, np.zeros(size, np.float32), np.ones(size, bool), 1.0, "length", {}, None)
        writer.append(GROUP, encode(Group(task, 0, task, (member,))))
    writer.close()
    tracemalloc.start()
    assert main(["inspect", str(run_dir), *out]) == 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "length" in capsys.readouterr().out or len(load_dataset("parquet", data_files="out.parquet")["train"]) == 14
    assert peak < 10 * 13 * size


def test_a_trajectory_that_no_model_makes_is_refused(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "_MOST_TOKENS", 5)
    with pytest.raises(UserError, match="task 0 has a trajectory of 14 tokens, over 5, which no model makes"):
        list(find(run_dir, Filters()))


class Decoder:
    def decode(self, tokens: list[int]) -> str:
        return "0" * min(3, len(tokens))


@pytest.mark.slow
def test_half_a_million_trajectories(tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the journal's own writers; the list has its first lines and counts the rest, without all the tokens."""
    (tmp_path / "recipe.yaml").write_text(f"model: {tiny_model}\n")
    long_run.write_journal(tmp_path)
    began = time.process_time()
    assert main(["inspect", str(tmp_path), "--limit", "5"]) == 0
    assert main(["inspect", str(tmp_path), "--task", "40000", "--reward", "1:", "--limit", "1"]) == 0
    assert time.process_time() - began < 20
    lines = capsys.readouterr().out.splitlines()
    assert lines[6].startswith("499995 more: raise --limit")
    name, step, reward = lines[8].split()[:3]
    assert (name.partition(".")[0], step, reward) == ("40000", "1601", "1")
    assert count(tmp_path, Filters(task=40000)) == 10


def test_export_is_read_by_datasets(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out.parquet"
    assert main(["inspect", str(run_dir), "--reward", "0.4:", "--export", str(path)]) == 0
    assert capsys.readouterr().out.startswith("2 trajectories in ")
    rows = load_dataset("parquet", data_files=str(path), split="train", cache_dir=str(tmp_path / "cache")).to_list()
    assert [(r["task"], r["step"], r["age"], r["reward"], r["completion"]) for r in rows] == [
        (0, 3, 2, 1.0, "four[bold]"),
        (1, None, None, 0.5, "four[bold]"),
    ]
    assert rows[0]["versions"] == [-1] * 4 + [1] * 4 + [2] * 6


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--reward", "high"], "'high' is no range; write LOW:HIGH"),
        (["--age", "1:x"], "'1:x' is no range"),
        (["--export", "journal"], "--export: journal: Is a directory"),
        (["--task", "x"], "argument --task: invalid int value: 'x'"),
    ],
)
def test_bad_input(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    sentence: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(run_dir)
    assert main(["inspect", str(run_dir), *arguments]) == 2
    message = capsys.readouterr().err
    assert sentence in message
    assert message.count("\n") == 1
    assert not list(run_dir.glob("*.part*"))
