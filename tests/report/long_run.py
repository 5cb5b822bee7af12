"""A made-up run of 2,000 steps and 500,000 trajectories, written by the run's own writers: what looks at runs must
stay quick. `python tests/report/long_run.py MODEL RUN_DIR` writes one with its journal, which takes a while.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from asyncrl.buffer import log
from asyncrl.buffer.records import GROUP, GROUPS_STREAM, ControlLog
from asyncrl.control.messages import GroupFinished, Publish, Start, StepDone, Train, WeightsLive
from asyncrl.observe.trace import Span, TraceFile
from asyncrl.rollout.trajectory import Group, Trajectory, encode

NUM_STEPS, GROUPS, GROUP_SIZE = 2000, 25, 10
_PROMPT, _LENGTH = 16, 48


def write(run_dir: Path, made_up: Any, model: str = "none") -> Path:
    """All files that pages are made from, but the journal."""
    run_dir.mkdir(parents=True, exist_ok=True)
    recipe = made_up.RECIPE.replace("models/smollm2-135m-instruct", model)
    (run_dir / "recipe.yaml").write_text(recipe.replace("max_steps: 20", f"max_steps: {NUM_STEPS}"))
    lines = [json.dumps(record) for record in made_up.records(NUM_STEPS)]
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with (run_dir / "samples.jsonl").open("w") as file:
        file.writelines(json.dumps(_sample(number)) + "\n" for number in range(2 * NUM_STEPS))
    spans = [Span("steps", ("forward", "backward")[i % 2], i * 0.01, 0.01) for i in range(200_000)]
    TraceFile(run_dir / "trace.json").write("trainer", spans)
    return run_dir


def _sample(number: int) -> dict[str, Any]:
    step = number // 2
    return {
        "step": step,
        "task": GROUPS * step + number % 2,
        "prompt": "p" * 300,
        "completion": "ab" * 300,
        "tokens": ["ab"] * 300,
        "versions": [max(0, step - 1)] * 150 + [step] * 150,
        "reward": 1.0,
        "gaps": [round(0.004 * (place % 17) ** 2, 4) for place in range(300)],
    }


def write_journal(run_dir: Path) -> None:
    """500,000 trajectories in 50,000 groups, and what the controller decided about them."""
    rng = np.random.default_rng(0)
    groups = log.JournalWriter(run_dir / "journal", GROUPS_STREAM)
    control = ControlLog(run_dir / "journal", {})
    for step in range(NUM_STEPS):
        batch = range(GROUPS * step, GROUPS * (step + 1))
        control.decisions([Start(task, 0, "generator-0") for task in batch])
        for task in batch:
            groups.append(GROUP, encode(_group(task, step, rng)))
            control.event(GroupFinished(task, 0, step, step, GROUP_SIZE * (_LENGTH - _PROMPT)))
        control.decisions([Train(step, tuple((task, 0) for task in batch), max(0, step - 2))])
        control.event(StepDone(step))
        control.decisions([Publish(step + 1)])
        control.event(WeightsLive(step + 1))
    groups.close()
    control.sync()
    control.close()


def _group(task: int, version: int, rng: np.random.Generator) -> Group:
    versions = np.where(np.arange(_LENGTH) < _PROMPT, -1, version).astype(np.int32)
    sampled = versions >= 0
    tokens = rng.integers(32, 120, (GROUP_SIZE, _LENGTH)).astype(np.int32)
    logprobs = np.where(sampled, -0.5, 0.0).astype(np.float32)
    rewards = rng.integers(0, 2, GROUP_SIZE)
    members = (
        Trajectory(t, versions, logprobs, sampled, float(r), "stop") for t, r in zip(tokens, rewards, strict=True)
    )
    return Group(task, 0, task, tuple(members))


if __name__ == "__main__":
    import made_up

    write_journal(write(Path(sys.argv[2]), made_up, sys.argv[1]))
