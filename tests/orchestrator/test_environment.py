"""A run whose tasks are episodes of an environment: its processes are killed, and so is the driver."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from test_run import SIMULATED, asyncrl, below, check, kill_group, records, summary, wait_for

from asyncrl.buffer.records import groups
from asyncrl.rollout.trajectory import decode

pytestmark = pytest.mark.slow

CODE = '''
import asyncio, subprocess

async def rollout(task, policy):
    """Two turns with a tool between; one episode in eight raises, each holds a program until its end."""
    sandbox = subprocess.Popen(["sleep", "1234"], start_new_session=True)
    try:
        first = await policy.generate(policy.prompt, max_new_tokens=6)
        if sum(first.tokens) % 8 == 0:
            raise RuntimeError("the sandbox is gone")
        await asyncio.sleep(0.05)
        read = policy.tokenizer("tool says 5").input_ids
        second = await policy.generate([*policy.prompt, *first.tokens, *read], max_new_tokens=6)
        return len(second.tokens) / 6
    finally:
        sandbox.kill()
        sandbox.wait()
'''


def sandboxes() -> set[int]:
    return {p.pid for p in psutil.process_iter(["cmdline"]) if p.info["cmdline"] == ["sleep", "1234"]}


def test_episodes_survive_kills_and_nothing_of_them_stays(tmp_path: Path) -> None:
    """kill -9 of the environment's process in the middle of episodes, then of the driver; the resumed run ends."""
    (tmp_path / "mine.py").write_text(CODE)
    run_dir, before = tmp_path / "run", sandboxes()
    keys = [f"env={tmp_path}/mine.py:rollout", "reward=null", "max_steps=10", "journal.keep=all"]
    keys += ["rollout.engine_args={token_s: 0.05}", "rollout.stop_token_ids=[1]"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *keys, f"run_dir={run_dir}", background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 2, process, "step 2")
        keeper = below(process.pid, "what='environment'")
        assert keeper, "environments run in processes of their own"
        os.kill(keeper[-1].pid, signal.SIGKILL)
        done = len(records(run_dir))
        wait_for(lambda: len(records(run_dir)) >= done + 2, process, "two steps after it")
    finally:
        kill_group(process)
    assert len(records(run_dir)) < 10
    code, output = asyncrl("resume", str(run_dir))
    assert code == 0, output
    assert sandboxes() == before, "what episodes had started is gone"
    assert check(run_dir, steps=10)["trained"] == 40
    reasons = summary(run_dir)["reward_failure_reasons"]
    assert any("the sandbox is gone" in reason for reason in reasons)
    last = records(run_dir)[-1]
    assert 1 <= last["completion/turns_mean"] <= 2
    assert last["completion/sequences_mean"] == 1
    read = list(b"tool says 5")
    for record in groups(run_dir / "journal"):
        for trajectory in decode(record.payload).trajectories:
            trained = trajectory.tokens[trajectory.loss_mask]
            sampled = trajectory.tokens[trajectory.versions >= 0]
            assert trajectory.reward is None or trained.tolist() == sampled.tolist()
            assert trajectory.reward is not None or not len(trained)
            assert trajectory.prompt is not None
            assert len(trajectory.tokens) - len(sampled) - trajectory.prompt in (0, len(read))
    code, output = asyncrl("replay", str(run_dir), "--verify")
    assert code == 0, output
    assert "trained again: bit for bit" in output
