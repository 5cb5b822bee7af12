"""Whole runs with real Ray actors: the run directory, faults, resume. The simulated engine where no model matters."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from command import Forked
from transformers import AutoConfig, AutoModelForCausalLM

from asyncrl.buffer.records import groups
from asyncrl.checkpoint import files
from asyncrl.control.ledger import Ledger
from asyncrl.models import make_tiny_llama
from asyncrl.orchestrator import stamps
from asyncrl.rollout.trajectory import decode

pytestmark = pytest.mark.slow

SIMULATED = [
    "rollout.engine=simulated",
    "rollout.engine_args={token_s: 0.1}",
    "algorithm.loss=reinforce",
    "rollout.max_prompt_tokens=128",
    "track.wandb=off",
    "track.tensorboard=false",
]


def asyncrl(*arguments: str, background: bool = False, log: Path | None = None) -> Any:
    """The command line in a process group of its own; what it prints goes to `log`, or is returned with its code."""
    command = Forked(*arguments, log=log)
    if background:
        return command
    output, _ = command.communicate(timeout=240)
    return command.returncode, output


def records(run_dir: Path) -> list[dict[str, Any]]:
    path = run_dir / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def waits_for(process: Forked, run_dir: Path, what: str) -> bool:
    process.send_signal(signal.SIGUSR1)
    path = run_dir / "waiting.txt"
    return path.exists() and what in path.read_text()


def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def wait_for(condition: Any, process: Forked, what: str, deadline_s: float = 240) -> Any:
    """Poll until the condition holds; fails with the run's output if the run ends first."""
    deadline = time.monotonic() + deadline_s
    while not (result := condition()):
        if process.poll() is not None:
            pytest.fail(f"the run ended before {what}: {process.communicate()[0]}")
        assert time.monotonic() < deadline, f"{what} did not happen in {deadline_s} s"
        time.sleep(0.05)
    return result


def below(pid: int, title: str = "") -> list[psutil.Process]:
    """Processes below one that have this in their command line, by pid. Others may end while one looks."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if title in " ".join(child.cmdline()):
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def actor_pid(process: Forked, name: str, index: int) -> int:
    """Pid of the Ray worker that runs the index-th actor of a class; Ray puts the class name in its title."""
    title = f"ray::{name}"
    return wait_for(lambda: below(process.pid, title)[index : index + 1], process, f"{name} {index}")[0].pid


def check(run_dir: Path, steps: int, *, stopped: bool = False) -> dict[str, Any]:
    """What must hold of every run that has ended; one that was stopped may have groups in flight."""
    found = records(run_dir)
    assert [r["step"] for r in found] == list(range(steps))
    bound = summary(run_dir)["worst_case_staleness"]
    assert all(r["staleness/max"] <= bound for r in found)
    for role in ("trainer_time", "generator_time"):
        for record in found:
            assert sum(v for k, v in record.items() if k.startswith(role)) == pytest.approx(1, abs=0.02)
    ledger = summary(run_dir)["ledger"]
    Ledger(**ledger).check()
    assert stopped or (ledger["running"], ledger["ready"], ledger["leased"]) == (0, 0, 0)
    status = json.loads((run_dir / "status.json").read_text())
    assert (status["steps_done"], status["ledger"]) == (steps, ledger)
    assert (run_dir / "report.html").stat().st_size > 1000
    assert all((p / "COMPLETE").exists() for p in (run_dir / "checkpoints").glob("step_*"))
    return ledger


def kill_group(process: Forked) -> None:
    """kill -9 of the driver and everything below it, if it has not ended: its pid may be another process's then."""
    if process.poll() is not None:
        return
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for member in family:
        try:
            member.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(family, timeout=30)
    process.wait(30)


def kill_role(process: Forked, name: str) -> None:
    os.kill(actor_pid(process, name, 0), signal.SIGKILL)


def num_committed(run_dir: Path) -> int:
    return sum(1 for _ in groups(run_dir / "journal"))


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return files.read(sorted((run_dir / "checkpoints").glob("step_*"))[-1] / "trainer")


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_whoever_is_killed_the_fixed_schedule_gives_the_same_weights(tmp_path: Path) -> None:
    """I6. Generator, buffer and trainer are replaced within the run; the driver's end takes a resume."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    slow = ["policy=sync", "max_staleness=0", "max_steps=8", "rollout.engine_args={token_s: 0.2}", "journal.keep=all"]
    arguments = ["train", "recipes/tiny.yaml", *SIMULATED, *slow]
    undisturbed = asyncrl(*arguments, f"run_dir={whole}", background=True)
    process = asyncrl(*arguments, f"run_dir={killed}", background=True)
    try:
        for num_steps, role in ((1, "Buffer"), (2, "TrainerActor"), (3, "Generator")):
            wait_for(lambda n=num_steps: len(records(killed)) >= n, process, f"step {num_steps}")
            kill_role(process, role)
        wait_for(lambda: len(records(killed)) >= 4, process, "step 4")
        before = num_committed(killed)
        wait_for(lambda: num_committed(killed) > before, process, "the first group of step 5")
        # The driver stands still while others are committed: nobody hears of them before the resume.
        process.send_signal(signal.SIGSTOP)
        before = num_committed(killed)
        wait_for(lambda: num_committed(killed) > before, process, "a group that nobody heard of")
        output, _ = undisturbed.communicate(timeout=120)
    finally:
        kill_group(process)
        kill_group(undisturbed)
    assert undisturbed.returncode == 0, output
    assert len(records(killed)) < 8
    assert not (killed / "summary.json").exists()
    code, output = asyncrl("resume", str(killed))
    assert code == 0, output
    ours, theirs = check(killed, steps=8), check(whole, steps=8)
    ours.pop("requeued")  # a count of events: of what was running when somebody died
    assert theirs.pop("requeued") == 0
    assert ours == theirs
    assert same(weights(killed), weights(whole))
    samples = [json.loads(line)["step"] for line in (killed / "samples.jsonl").read_text().splitlines()]
    assert samples == sorted(samples)
    code, output = asyncrl("resume", str(killed))
    assert code == 2
    assert "has done all its 8 steps" in output


def test_asynchronous_run_with_a_lost_trainer_equals_the_replay_of_its_journal(tmp_path: Path) -> None:
    """The trainer comes back from a snapshot in memory; resumed with more generators, other bits must not change."""
    run_dir = tmp_path / "run"
    slow = ["rollout.engine_args={token_s: 0.2}", "journal.keep=all", "checkpoint.every_steps=4", "max_steps=9999"]
    arguments = ["train", "recipes/tiny.yaml", *SIMULATED, *slow, "checkpoint.snapshot_every_steps=1"]
    process = asyncrl(*arguments, f"run_dir={run_dir}", background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 2, process, "step 2")
        code, output = asyncrl("resume", str(run_dir))
        assert code == 2, "a second driver"
        assert str(process.pid) in output
        kill_role(process, "TrainerActor")
        # One step may have been done just before; a second one needs the trainer that was made again.
        num_steps = len(records(run_dir)) + 2
        wait_for(lambda: len(records(run_dir)) >= num_steps, process, f"step {num_steps}")
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "trainer is lost (its process was killed" in output
    assert "stopped by SIGTERM" in output
    before = (run_dir / "recipe.yaml").read_text()
    code, output = asyncrl("resume", str(run_dir), "seed=1")
    assert code == 2
    assert "was begun with another data (seed was 0, is 1)" in " ".join(output.split())
    assert (run_dir / "recipe.yaml").read_text() == before
    (tmp_path / "other.py").write_text("def reward(completion, **row):\n    return float(len(completion) % 3)\n")
    steps = len(records(run_dir)) + 4
    changes = [f"max_steps={steps}", "rollout.replicas=2", "data.shuffle=false", f"reward={tmp_path}/other.py:reward"]
    code, output = asyncrl("resume", str(run_dir), *changes, "--accept", "data,reward")
    assert code == 0, output
    assert check(run_dir, steps)["trained"] == 4 * steps
    accepted = summary(run_dir)["changes"]
    assert [change["kind"] for change in accepted[:2]] == ["data", "reward"]
    keys = {change["key"] for change in accepted[2:]}
    assert keys == {"max_steps", "rollout.replicas", "data.shuffle", "reward"}
    assert accepted[0]["what"] == "shuffle was true, is false"
    begun = json.loads((run_dir / "fingerprint.json").read_text())["draws"]
    trained = sorted(
        (group.task, group.row) for group in (decode(record.payload) for record in groups(run_dir / "journal"))
    )
    anew = [row for task, row in trained if task >= begun["first"]]
    # reasoning_gym's first rows in their order, under numbers that follow those of before.
    assert anew == [begun["first_row"] + len(begun["again"]) + i for i in range(len(anew))]
    assert begun["first_row"] == 10_000
    code, output = asyncrl("replay", str(run_dir), "--verify")
    assert code == 0, output
    assert f"steps 1 to {steps}: {4 * steps} groups, none twice" in output
    assert "trained again: bit for bit" in output
    damaged = next((run_dir / "journal").glob("control_*.log"))
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    code, output = asyncrl("replay", str(run_dir))
    assert code == 2
    assert f"{damaged.name}: the record at offset" in output


def test_ranks_are_lost_together_and_their_checkpoint_is_anyones(tmp_path: Path) -> None:
    """Two ranks, one of which is killed beside a push; then one rank goes on from what two have written."""
    run_dir = tmp_path / "run"
    slow = ["rollout.engine_args={token_s: 0.2}", "trainer.ranks=2", "max_steps=8"]
    process = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *slow, f"run_dir={run_dir}", background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 2, process, "step 2")
        (second,) = json.loads((run_dir / "processes.json").read_text())["trainer-1"]["processes"]
        # Ray's own choice is 15, with which any other busy program starves a run.
        assert psutil.Process(second["pid"]).nice() == psutil.Process(process.pid).nice()
        os.kill(second["pid"], signal.SIGKILL)
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert "trainer is lost (its process was killed" in output
    check(run_dir, steps=8)
    code, output = asyncrl("resume", str(run_dir), "trainer.ranks=1", "max_steps=10")
    assert code == 0, output
    check(run_dir, steps=10)


def test_reward_that_always_fails_stops_the_run(tmp_path: Path) -> None:
    """I7: a failed reward is not a zero reward, and a run that can learn nothing says so."""
    (tmp_path / "bad.py").write_text("def reward(completion, **row):\n    raise KeyError('gold')\n")
    run_dir = tmp_path / "run"
    code, output = asyncrl(
        "train", "recipes/tiny.yaml", *SIMULATED, f"reward={tmp_path / 'bad.py'}:reward", f"run_dir={run_dir}"
    )
    assert code == 1
    assert "the last 16 groups failed" in output
    assert "KeyError" in output
    assert "Traceback" not in output


_LOSES_WEIGHTS = """
import math
from asyncrl.rollout.simulated import SimulatedEngine

class LosesWeights(SimulatedEngine):
    holds_weights = True

    async def score(self, tokens):
        return self._version, [-math.log(259) - 3.0 * (self._version > 0)] * (len(tokens) - 1)
"""


def test_the_first_push_is_verified_whatever_the_recipe_says(tmp_path: Path) -> None:
    """Once, in the last step of a run, too: an engine that computes something else after it ends the run."""
    (tmp_path / "mine.py").write_text(_LOSES_WEIGHTS)
    run_dir = tmp_path / "run"
    keys = [f"rollout.engine={tmp_path}/mine.py:LosesWeights", "weights.verify=false", "max_steps=1"]
    code, output = asyncrl("train", "recipes/tiny.yaml", *SIMULATED, *keys, f"run_dir={run_dir}")
    assert code == 1, output
    assert re.search(r"generator-0 does not compute with the weights of version 1 as the trainer does: .* 3", output)
    assert "Traceback" not in output
    assert len(records(run_dir)) == 1


# In TRL's signature; scores the length, which it cannot tell of every fifth.
_TRL_REWARD = """
def reward(prompts, completions, answer, trainer_state, log_extra, log_metric, finish_reason, scale, **columns):
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    log_extra("stopped", [reason == "stop" for reason in finish_reason])
    log_extra("in_words", list(finish_reason))
    return [scale * float(len(c)) if len(c) % 5 else None for c in completions]
"""
POLICIES = {
    "lag": ["experimental.policy=stale_k", "max_staleness=2"],
    "drop": ["on_stale=drop", "max_staleness=2", "experimental.backup_groups=2"],
    "mask": ["on_stale=mask", "algorithm.filter_equal_rewards=true", "reward={folder}/parity.py:reward"],
    "window": [
        *(
            "max_staleness=1.5",
            "experimental.selection_window=3",
            "experimental.push_lag=2",
            "reward={folder}/trl.py:reward",
        ),
        *("rewards.kwargs={scale: 2}", "rewards.skip_special_tokens=false", "rollout.stop_token_ids=[97, 98]"),
        *("data.path={folder}/rows.jsonl.gz", "data.options={}", "data.on_bad_row=skip"),
        "model={folder}/capped",
    ],
}


def capped_model(folder: Path) -> None:
    """A tiny Gemma 2, whose attention caps its scores, with the tokenizer of the tiny Llama."""
    make_tiny_llama(folder, seed=0)
    llama = json.loads((folder / "config.json").read_text())
    kept = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim")
    config = AutoConfig.for_model("gemma2", num_key_value_heads=1, **{name: llama[name] for name in kept})
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def says_that_it_is_slow(run_dir: Path, output: str) -> None:
    """A warning of the trainer's reaches the terminal, and what is made from status.json and the records."""
    reason = "is trained one trajectory at a time, which takes several times as long: its attention caps its scores"
    assert re.search(rf"trainer: \S+/capped {reason}", output)
    assert any(reason in text for _, text in json.loads((run_dir / "status.json").read_text())["log"])
    (warning,) = (w for w in summary(run_dir)["warnings"] if "every trajectory passes the model alone" in w["sentence"])
    assert (warning["first_step"], warning["last_step"]) == (0, 5)
    page = (run_dir / "report.html").read_text()
    assert reason in page
    assert warning["sentence"] in page


def test_policies(tmp_path: Path) -> None:
    """Each keeps its bound over real actors; slow tokens make pushes meet running groups. Side by side: they wait."""
    (tmp_path / "parity.py").write_text("def reward(completion, **row):\n    return float(len(completion) % 2)\n")
    (tmp_path / "trl.py").write_text(_TRL_REWARD)
    capped_model(tmp_path / "capped")
    # One prompt in four is null, one too long: such rows are left out.
    prompts = ["1+1=", "2+1=", None, "3+1=" * 99] * 3
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as rows:
        rows.writelines(json.dumps({"prompt": prompt, "answer": "4"}) + "\n" for prompt in prompts)
    runs, outputs = {}, {}
    for name, keys in POLICIES.items():
        keys = [key.replace("{folder}", str(tmp_path)) for key in keys]
        arguments = ["train", "recipes/tiny.yaml", *SIMULATED, *keys, f"run_dir={tmp_path / name}"]
        runs[name] = asyncrl(*arguments, background=True)
    try:
        for name, process in runs.items():
            output, _ = process.communicate(timeout=240)
            assert process.returncode == 0, output
            assert check(tmp_path / name, steps=6)["trained"] == 24
            outputs[name] = output
            if name == "window":
                says_that_it_is_slow(tmp_path / name, output)
    finally:
        for process in runs.values():
            kill_group(process)
    assert records(tmp_path / "window")[-1]["reward/mean"] > 1
    last = records(tmp_path / "window")[-1]
    assert 2 / 6 <= last["reward/progress"] <= 5 / 6
    assert last["reward/stopped"] == pytest.approx(1 - last["completion/truncated_share"])
    counts = summary(tmp_path / "window")
    assert counts["reward_failures"] > 0
    assert counts["reward_failure_reasons"] == {"the reward is None, not a finite number": counts["reward_failures"]}
    assert outputs["window"].count("a reward failed, and its trajectory is not trained") == 1
    assert summary(tmp_path / "window")["ledger"]["filtered"] == 0
    (data,) = summary(tmp_path / "window")["data"]
    assert (data["rows"], data["left_out"]) == (12, {"prompt_empty": 3, "prompt_too_long": 3})
    said = " ".join(outputs["window"].split())
    assert re.search(r"3 of 12 rows have no usable prompt, and these are skipped \(data.on_bad_row\): .*is null", said)
    assert re.search(r"3 of 12 rows are left out: 3 prompt_too_long \(.* line 4, .* has 396 tokens\)", said)
    # One group in eight has equal rewards; others took their place.
    assert summary(tmp_path / "mask")["ledger"]["filtered"] > 0
    assert all(r["reward/std"] > 0 for r in records(tmp_path / "mask"))
    ages = [(r["staleness/mean"], r["staleness/max"]) for r in records(tmp_path / "lag")]
    assert ages == [(0, 0), (1, 1)] + [(2, 2)] * 4


@pytest.mark.timeout(600)
def test_two_real_replicas_one_killed_in_a_push(tmp_path: Path, mixture: Callable[[str], Path]) -> None:
    """Real vLLM, a mixture of experts, each engine's first push verified: an engine process is killed, not its actor;
    another takes its place and gets the live weights first. Own rank offset each, KV cache recomputed after a push.
    More requests than engines take at once, so some wait while the weights change; every token's stamp is true."""
    run_dir, log = tmp_path / "run", tmp_path / "log"
    overrides = ["rollout.replicas=2", "rollout.kv_after_update=recompute", "rollout.engine_args.max_num_seqs=3"]
    overrides += ["rollout.max_new_tokens=32", "weights.channel=shared_memory", "weights.rolling=true"]
    overrides += ["max_steps=9999", "journal.keep=all", "checkpoint.every_steps=1", "checkpoint.keep_every=1"]
    overrides += [f"model={mixture('qwen3_moe')}"]
    overrides += ["eval={data: {path: 'reasoning_gym:gcd'}, every_steps: 9999, max_tasks: 8, n: 2}"]
    process = asyncrl("train", "recipes/tiny.yaml", *overrides, f"run_dir={run_dir}", background=True, log=log)
    try:
        # Until then the run waits for the engines' log-probs too, which a stopped one does not give.
        verified = re.compile(r"generator-(\d) computes with version \d+ as the trainer does")
        wait_for(lambda: len(set(verified.findall(log.read_text()))) == 2, process, "two verified engines")
        engine = below(process.pid, "EngineCore")[0]

        def stopped_in_a_push() -> bool:
            """A control call that vLLM has sent and that is never answered. Where what the trainer waits for is on this
            engine, no push comes while it stands still."""
            engine.suspend()
            until = time.monotonic() + 5
            while time.monotonic() < until:
                if waits_for(process, run_dir, "generators: version"):
                    return True
                time.sleep(0.05)
            engine.resume()
            time.sleep(1.0)
            return False

        wait_for(stopped_in_a_push, process, "a push")
        engine.kill()
        wait_for(lambda: "serves again, with version" in log.read_text(), process, "its replacement")
        done = len(records(run_dir))
        wait_for(lambda: len(records(run_dir)) >= done + 3, process, "three more steps")
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        kill_group(process)
    assert process.returncode == 0, log.read_text()
    assert re.search(r"generator-\d is lost", log.read_text())
    steps = len(records(run_dir))
    ledger = check(run_dir, steps, stopped=True)
    assert (ledger["trained"], ledger["failed"]) == (4 * steps, 0)
    assert all(r["publish/bytes"] > 0 for r in records(run_dir)[2:])
    # A step without a gradient passes no model, so it knows no gap.
    fresh = [r["offpolicy/logprob_gap"] for r in records(run_dir) if r["staleness/max"] == 0]
    assert max(gap for gap in fresh if gap is not None) < 1e-3
    evaluated = [json.loads(line) for line in (run_dir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["version"] for line in evaluated] == [0]
    assert (evaluated[0]["tasks"], evaluated[0]["failed"]) == (8, 0)
    assert evaluated[0]["other_versions_share"] < 1
    assert list((run_dir / "wandb").glob("offline-run-*"))
    assert list((run_dir / "tensorboard").iterdir())
    code, output = asyncrl("replay", str(run_dir), "--verify")
    assert code == 0, output
    scored = list(stamps.check(run_dir, sample=100))
    assert [one for one in scored if one.wrong] == []
    assert sum(len(one.spans.parts) > 1 for one in scored) >= 5
    assert sum(one.told for one in scored) > len(scored) / 2
