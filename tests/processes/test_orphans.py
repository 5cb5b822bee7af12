"""Ending real processes, and only those that are meant. Recycled pids are made by changing the start time."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.processes import orphans
from asyncrl.processes.orphans import ProcessId, ProcessTable, end, end_leftovers, family, identify

SECRET = f"r{os.getpid()}"
"""Of the run; whoever else tests at the same time has another, and ends what has it."""
# A process with a child and a grandchild; all wait for the end of a pipe that never comes.
TREE = """
import subprocess, sys
depth = int(sys.argv[1])
child = subprocess.Popen([sys.executable, "-c", sys.argv[2], str(depth - 1), sys.argv[2]]) if depth else None
if not depth:
    print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start() -> Iterator[Callable[[int], subprocess.Popen[str]]]:
    started: list[tuple[subprocess.Popen[str], list[ProcessId]]] = []

    def make(depth: int = 0, run: str = SECRET) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", TREE, str(depth), TREE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, orphans.RUN: run},
        )
        assert process.stdout.readline() == "ready\n", f"ended before that: {process.poll()}"
        started.append((process, family(process.pid)))
        return process

    yield make
    for process, descendants in started:
        process.kill()
        process.communicate()
        for descendant in descendants:
            if orphans._living(descendant):
                os.kill(descendant.pid, signal.SIGKILL)


def started_as(process: ProcessId, pid: int = 0, by_s: float = 0.0) -> ProcessId:
    return replace(process, pid=pid or process.pid, create_time=process.create_time + by_s)


def table_of(path: Path, **roles: list[ProcessId]) -> None:
    table = ProcessTable(path)
    for role, processes in roles.items():
        table.put(
            role,
            {
                "pid": 1,
                "host": socket.gethostname(),
                "run": SECRET,
                "node": "n",
                "processes": processes,
                "num_workers": 2,
            },
        )


def test_family_is_all_descendants(start) -> None:
    process = start(2)
    child, grandchild = family(process.pid)
    assert psutil.Process(child.pid).ppid() == process.pid
    assert psutil.Process(grandchild.pid).ppid() == child.pid
    assert family(grandchild.pid) == []


def test_a_process_that_is_gone_has_no_family(start) -> None:
    process = start()
    process.kill()
    process.wait()
    assert family(process.pid) == []


def test_what_outlived_its_parent_is_ended(start) -> None:
    process = start(2)
    descendants = family(process.pid)
    process.kill()
    process.wait()
    assert len(descendants) == 2
    assert all(orphans._living(d) for d in descendants)
    assert end(descendants, 20) == descendants
    assert not any(orphans._living(d) for d in descendants)
    assert end(descendants, 20) == []


def test_a_zombie_is_gone_and_does_not_hold_up(start) -> None:
    """Nobody has asked for its exit code when `end` returns, so its pid is still there."""
    process = start()
    known = identify(process.pid)
    assert end([known], 20) == [known]
    assert psutil.pid_exists(process.pid)
    assert end([known], 20) == []


@given(
    by_s=st.floats(3, 1e9) | st.floats(-1e9, -3),
)
def test_another_process_with_the_same_pid_is_not_touched(by_s: float) -> None:
    """Ourselves are the other process, which `end` would spare; so it is asked what it takes for the same one."""
    assert orphans._living(identify(os.getpid()))
    assert orphans._living(started_as(identify(os.getpid()), by_s=by_s)) is None


@pytest.mark.parametrize("by_s", [-10.0, 10.0])
def test_a_recycled_pid_is_not_killed(start, tmp_path: Path, by_s: float) -> None:
    process = start(0, "another run")
    stranger = started_as(identify(process.pid), by_s=by_s)
    path = tmp_path / "processes.json"
    table_of(path, trainer=[stranger])
    assert end([stranger], 20) == []
    assert end_leftovers(path, 20) == []
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.2)


@pytest.mark.parametrize("by_s", [-1.0, 1.0])
def test_a_clock_that_was_set_by_a_second_hides_nobody(start, by_s: float) -> None:
    process = start()
    known = started_as(identify(process.pid), by_s=by_s)
    assert end([known], 20) == [known]
    assert process.wait(20) == -signal.SIGKILL


def test_nobody_ends_himself() -> None:
    assert end([identify(os.getpid())], 20) == []


def test_what_does_not_die_is_not_called_ended(start, monkeypatch, caplog) -> None:
    process = start()
    known = identify(process.pid)
    monkeypatch.setattr(psutil.Process, "kill", lambda self: None)
    began = time.monotonic()
    assert end([known], 0.2) == []
    assert time.monotonic() - began < 10
    assert f"process {process.pid} (" in caplog.text
    assert "still there" in caplog.text


def test_a_process_of_another_user_is_a_warning(start, monkeypatch, caplog) -> None:
    process = start()

    def deny(self: psutil.Process) -> None:
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "kill", deny)
    assert end([identify(process.pid)], 20) == []
    assert "another user's" in caplog.text


# -- the table


def test_what_a_copied_or_forged_table_names_is_left_alone(start, tmp_path: Path, caplog) -> None:
    """Pids and start times are no secret; the environment of a process is."""
    its, another, no = start(), start(0, "another run"), start(0, "")
    path = tmp_path / "processes.json"
    table_of(path, its=[identify(its.pid)], another=[identify(another.pid)], no=[identify(no.pid)])
    (copied := tmp_path / "copy").mkdir()
    shutil.copy(path, copied)
    assert end_leftovers(copied / path.name, 20) == []
    assert "is not of this run; it is left alone" in caplog.text
    assert end_leftovers(path, 20) == ["its"]
    assert all(orphans._living(identify(process.pid)) for process in (another, no))


def test_leftovers_of_all_roles_are_ended_actor_or_not(start, tmp_path: Path) -> None:
    path = tmp_path / "processes.json"
    lives, died, whole = start(2), start(2), start(0, "another run")
    table_of(
        path,
        lives=[identify(lives.pid), *family(lives.pid)],
        died=[identify(died.pid), *family(died.pid)],
        gone=[started_as(identify(whole.pid), by_s=-1000)],
    )
    known = [*family(lives.pid), *family(died.pid)]
    died.kill()
    died.wait()
    assert end_leftovers(path, 20) == ["lives", "died"]
    assert lives.wait(20) == -signal.SIGKILL
    assert not any(orphans._living(process) for process in known)
    assert end_leftovers(path, 20) == []
    assert orphans._living(identify(whole.pid))


def test_what_was_started_after_the_table_was_written_is_ended_too(start, tmp_path: Path) -> None:
    path = tmp_path / "processes.json"
    process = start(2)
    later = family(process.pid)
    table_of(path, generator=[identify(process.pid)])
    assert end_leftovers(path, 20) == ["generator"]
    assert not any(orphans._living(p) for p in later)


def test_what_lost_its_parents_all_at_once_is_ended_too(start, tmp_path: Path) -> None:
    """A program in a session of its own, whom nobody named."""
    path = tmp_path / "processes.json"
    named, stray, another = start(), start(), start(0, "another run")
    table_of(path, generator=[identify(named.pid)])
    named.kill()
    named.wait()
    assert end_leftovers(path, 20) == [orphans.STRAYS]
    assert stray.wait(20) == -signal.SIGKILL
    assert orphans._living(identify(another.pid))


def test_processes_of_another_host_are_left_alone(start, tmp_path: Path) -> None:
    path = tmp_path / "processes.json"
    mine, other = start(), start(0, "another run")
    table_of(path, mine=[identify(mine.pid)], other=[identify(other.pid)])
    text = json.loads(path.read_text())
    text["other"]["host"] = "elsewhere"
    path.write_text(json.dumps(text))
    assert end_leftovers(path, 20) == ["mine"]
    assert orphans._living(identify(other.pid))


def test_the_table_forgets_who_was_replaced_or_popped(start, tmp_path: Path) -> None:
    path = tmp_path / "processes.json"
    first, second, third = (identify(start(0, run).pid) for run in ("x", "y", SECRET))
    host = socket.gethostname()
    table = ProcessTable(path)
    table.put("a", {"host": host, "run": SECRET, "processes": [first]})
    table.put("b", {"host": host, "run": SECRET, "processes": [second]})
    table.put("a", {"host": host, "run": SECRET, "processes": [third]})
    assert table.pop("b") == {"host": host, "run": SECRET, "processes": [second]}
    assert table.pop("b") is table.get("b") is None
    assert table["a"]["processes"] == [third]
    assert end_leftovers(path, 20) == ["a"]
    assert orphans._living(first)
    assert orphans._living(second)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', '{"a": {"host": "h", "processes": [{"pid": 1}]}}'])
def test_a_table_that_cannot_be_read_is_a_warning(tmp_path: Path, text: str, caplog) -> None:
    path = tmp_path / "processes.json"
    path.write_text(text)
    with caplog.at_level(logging.WARNING):
        assert end_leftovers(path, 20) == []
    assert str(path) in caplog.text


def test_no_table_no_leftovers(tmp_path: Path, caplog) -> None:
    assert end_leftovers(tmp_path / "processes.json", 20) == []
    assert not caplog.records
