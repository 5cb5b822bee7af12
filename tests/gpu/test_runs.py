"""Whole runs: pushes that are verified, a resume, and everyone killed once."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from test_run import actor_pid, asyncrl, check, kill_group, records, wait_for
from transformers import LlamaConfig, LlamaForCausalLM

from asyncrl.models import make_tiny_llama

STEPS = 8


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random, with heads as wide as kernels of GPUs want them."""
    folder = make_tiny_llama(tmp_path_factory.mktemp("model"), seed=0)
    config = LlamaConfig.from_pretrained(folder)
    config.update({"hidden_size": 128, "head_dim": 64, "intermediate_size": 256})
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def arguments(model: Path, tmp_path: Path) -> list[str]:
    run_dir = tmp_path / "run"
    more = ["track.wandb=off", "journal.keep=all", "weights.verify=true", f"max_steps={STEPS}", f"model={model}"]
    return ["train", "recipes/tiny.yaml", f"run_dir={run_dir}", *more]


def verified(output: str) -> int:
    return len(re.findall(r"computes with version \d+ as the trainer does", output))


def test_shares_of_one_gpu(arguments: list[str], one_shared: list[str], tmp_path: Path) -> None:
    code, output = asyncrl(*arguments, *one_shared)
    assert code == 0, output
    assert verified(output), output
    check(tmp_path / "run", STEPS)


def test_bf16(arguments: list[str], one_shared: list[str], tmp_path: Path) -> None:
    code, output = asyncrl(*arguments, *one_shared, "trainer.precision=bf16", "weights.dtype=bfloat16")
    assert code == 0, output
    check(tmp_path / "run", STEPS)
    gaps = [record["offpolicy/logprob_gap_age0"] for record in records(tmp_path / "run")]
    assert max(gap for gap in gaps if gap is not None) < 0.05


@pytest.mark.parametrize("channel", ["nccl", "shared_memory", "gloo"])
def test_a_gpu_each(channel: str, arguments: list[str], one_each: list[str], tmp_path: Path) -> None:
    if channel == "nccl" and not one_each:
        pytest.skip("NCCL is between GPUs")
    code, output = asyncrl(*arguments, *one_each, f"weights.channel={channel}")
    assert code == 0, output
    assert verified(output), output
    check(tmp_path / "run", STEPS)


def test_a_run_that_was_killed_goes_on(arguments: list[str], one_shared: list[str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    process = asyncrl(*arguments, *one_shared, background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 3, process, "step 3")
    finally:
        kill_group(process)
    code, output = asyncrl("resume", str(run_dir))
    assert code == 0, output
    check(run_dir, STEPS)
    code, output = asyncrl("replay", str(run_dir))
    assert code == 0, output


@pytest.mark.parametrize(
    ("actor", "said"), [("TrainerActor", "it is started again"), ("Generator", "serves again, with version")]
)
def test_who_is_killed_is_replaced(
    actor: str, said: str, arguments: list[str], one_shared: list[str], tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = asyncrl(*arguments, *one_shared, f"max_steps={3 * STEPS}", background=True)
    try:
        wait_for(lambda: len(records(run_dir)) >= 2, process, "step 2")
        os.kill(actor_pid(process, actor, 0), signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert said in output
    check(run_dir, 3 * STEPS)


def test_two_ranks(arguments: list[str], one_each: list[str], tmp_path: Path) -> None:
    code, output = asyncrl(
        *arguments, *one_each, "rollout.gpus_per_replica=0", "trainer.ranks=2", "weights.channel=auto"
    )
    assert code == 0, output
    check(tmp_path / "run", STEPS)


def test_a_tensor_parallel_engine(arguments: list[str], one_each: list[str], tmp_path: Path) -> None:
    if not one_each:
        pytest.skip("a model is divided over GPUs")
    sizes = ["rollout.engine_args.tensor_parallel_size=2", "rollout.gpus_per_replica=2"]
    sizes += ["trainer.gpus_per_rank=0", "weights.channel=shared_memory"]
    code, output = asyncrl(*arguments, *one_each, *sizes)
    assert code == 0, output
    check(tmp_path / "run", STEPS)
