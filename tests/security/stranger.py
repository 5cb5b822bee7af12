"""Writes a run directory with every file that a command reads, and runs commands on it."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import Any

import made_up
import numpy as np

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUP, GROUPS_STREAM, ControlLog
from asyncrl.cli import main
from asyncrl.control.messages import Train
from asyncrl.observe.trace import Span, TraceFile
from asyncrl.rollout.trajectory import Group, Trajectory, encode

NOBODY = 65534
READ = ("recipe.yaml", "metrics.jsonl", "samples.jsonl", "summary.json", "status.json", "trace.json")
"""Files of a run that `report` reads."""


def write_run(run_dir: Path) -> Path:
    made_up.write_run(run_dir)
    recipe = made_up.RECIPE.replace("models/smollm2-135m-instruct", "random:tiny-llama")
    (run_dir / "recipe.yaml").write_text(recipe)
    (run_dir / "status.json").write_text(json.dumps(made_up.status()))
    (run_dir / "waiting.txt").write_text("trainer: a batch, for 70 s of 600 s\n")
    trace = TraceFile(run_dir / "trace.json")
    trace.write("trainer", [Span("steps", "forward", 10.0, 1.0), Span("steps", "backward", 11.0, 2.0)])
    trace.close()
    groups = log.JournalWriter(run_dir / "journal", GROUPS_STREAM)
    groups.append(GROUP, encode(Group(0, 0, 7, (trajectory(), trajectory(reward=None)))))
    groups.close()
    control = ControlLog(run_dir / "journal", {})
    control.decisions([Train(3, ((0, 0),), 1)])
    control.close()
    return run_dir


@cache
def _tokenizer() -> Any:
    from asyncrl.models import tiny_tokenizer

    return tiny_tokenizer().tokenizer


def trajectory(reward: float | None = 1.0, text: str = "2+2=four", **fields: object) -> Trajectory:
    """Its tokens are the bytes of the text in the tiny model's vocabulary."""
    tokens = np.array(_tokenizer().encode(text).ids, np.int32)
    versions = np.where(np.arange(len(tokens)) < 4, -1, 1).astype(np.int32)
    logprobs = np.zeros(len(tokens), np.float32)
    said = {"finish_reason": "stop", "extras": {"accuracy": 1.0}, "error": None, "notes": {"why": "so"}} | fields
    return Trajectory(tokens, versions, logprobs, versions >= 0, reward, **said)  # type: ignore[arg-type]


def replaced_by_link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def as_nobody(call: object) -> int:
    """Exit code of a child that is another user (the suite must be root)."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        call()  # type: ignore[operator]
        os._exit(0)
    except BaseException:
        os._exit(70)


def sentence(capsys: object, *command: str) -> str:
    """What a command says of bad input: one line, and exit code 2."""
    assert main(list(command)) == 2
    said: str = capsys.readouterr().err  # type: ignore[attr-defined]
    assert said.startswith("asyncrl: "), said[:1500]
    assert said.count("\n") == 1
    return said
