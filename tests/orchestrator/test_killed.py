"""kill -9 of a whole run, driver and all, in the middle of an evaluation, of answers from the data, of distillation:
the resumed run has what an undisturbed one has, to the last bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from test_run import SIMULATED, asyncrl, check, kill_group, records, same, wait_for, waits_for, weights

from asyncrl.models import make_tiny_llama

pytestmark = pytest.mark.slow

# Nothing depends on who was faster.
FIXED = ["policy=sync", "max_staleness=0", "rollout.engine_args={token_s: 0.15}", "checkpoint.every_steps=2"]
HELD_OUT = 'eval={data: {path: "reasoning_gym:gcd"}, name: gcd, every_steps: 2, max_tasks: 6, n: 2}'


@dataclass(frozen=True)
class Case:
    """`command`: of a run, given a folder for what it needs; `is_time`: to kill it, given it and its directory."""

    command: Callable[[Path], list[str]]
    is_time: Callable[[Any, Path], bool]
    metric: str
    """That each step has, from the data or the teacher."""


def evaluated(run_dir: Path) -> dict[tuple[str, int], Any]:
    """Scores; a line for each version once."""
    path = run_dir / "evaluations.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    found = {(line["name"], line["version"]): (line["reward"], line["accuracy"], line["tokens_mean"]) for line in lines}
    assert len(found) == len(lines)
    return found


def with_evaluation(folder: Path) -> list[str]:
    return ["train", "recipes/tiny.yaml", *SIMULATED, *FIXED, HELD_OUT]


def on_answers(folder: Path) -> list[str]:
    rows = [{"prompt": f"{n} + 1 = ", "completion": str(n + 1)} for n in range(7)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = ["groups_per_step: 3", "max_steps: 9", "trainer: {precision: fp32, learning_rate: 1.0e-3}"]
    data = ["model: random:tiny-llama", "data: {path: rows.jsonl, max_tokens: 40}", "checkpoint: {every_steps: 2}"]
    (folder / "warm.yaml").write_text("\n".join([*data, *keys, 'track: {wandb: "off", tensorboard: false}', ""]))
    return ["sft", str(folder / "warm.yaml")]


def with_teacher(folder: Path) -> list[str]:
    """That reads a hint, and teaches in the loss: the simulated engine has no log-probs."""
    teacher = make_tiny_llama(folder / "teacher", seed=5)
    taught = [f"algorithm.teacher={{model: {teacher}, hint: answer}}", "algorithm.teacher_in=loss", "reward=null"]
    return ["train", "recipes/tiny.yaml", *SIMULATED, *FIXED, *taught]


CASES = {
    "evaluation": Case(
        with_evaluation,
        lambda run, run_dir: len(records(run_dir)) == 2 and waits_for(run, run_dir, "evaluation gcd"),
        "reward/mean",
    ),
    "answers": Case(on_answers, lambda _, run_dir: len(records(run_dir)) >= 3, "sft/nll"),
    "teacher": Case(with_teacher, lambda _, run_dir: len(records(run_dir)) >= 3, "distil/teacher_logprob"),
}


@pytest.mark.parametrize("name", CASES)
def test_killed_in_the_middle_it_ends_as_if_nothing_had_been(tmp_path: Path, name: str) -> None:
    case, killed, whole = CASES[name], tmp_path / "killed", tmp_path / "whole"
    command = case.command(tmp_path)
    # Until then it must not have ended; its steps may take no time at all.
    process = asyncrl(*command, "max_steps=9999", f"run_dir={killed}", background=True)
    try:
        wait_for(lambda: case.is_time(process, killed), process, "the time to kill it")
    finally:
        kill_group(process)
    before, steps = records(killed), len(records(killed)) + 3
    assert not (killed / "summary.json").exists()
    done = evaluated(killed)
    undisturbed = asyncrl(*command, f"max_steps={steps}", f"run_dir={whole}", background=True)
    try:
        code, output = asyncrl("resume", str(killed), f"max_steps={steps}")
        theirs, _ = undisturbed.communicate(timeout=240)
    finally:
        kill_group(undisturbed)
    assert code == 0, output
    assert undisturbed.returncode == 0, theirs
    counts = [check(run_dir, steps) for run_dir in (killed, whole)]
    for ledger in counts:
        ledger.pop("requeued")  # a count of events: of what was running when it was killed
    assert counts[0] == counts[1]
    assert same(weights(killed), weights(whole))
    # What was recorded before is as it was, and the figures of each step are those of the undisturbed run.
    assert records(killed)[: len(before)] == before
    assert [r[case.metric] for r in records(killed)] == [r[case.metric] for r in records(whole)]
    assert None not in [r[case.metric] for r in records(killed)]
    assert evaluated(killed) == evaluated(whole)
    assert done.items() <= evaluated(killed).items()
    if name == "evaluation":
        assert [version for _, version in done] == [0]
        assert [version for _, version in evaluated(killed)] == [0, 2, 4, 5]
