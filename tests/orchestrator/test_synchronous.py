"""I5: max_staleness 0 is synchronous training, bit for bit the same as a plain serial loop."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from asyncrl.cli import main
from asyncrl.data.source import load_rows
from asyncrl.data.tasks import TaskSource, tokenize
from asyncrl.models import load_tokenizer
from asyncrl.observe.metrics import read_lines
from asyncrl.plugins import load_object
from asyncrl.recipe.load import load
from asyncrl.rollout.engine import SamplingParams
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import Sender, SenderConfig, open_sender

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
# One sequence at a time: how requests are batched changes the last bits of a matrix product.
OVERRIDES = [
    "policy=sync",
    "max_staleness=0",
    "max_steps=3",
    "rollout.cpu_cores=0",
    "rollout.engine_args={enforce_eager: true, enable_prefix_caching: false, max_num_seqs: 1}",
    "trainer.cpu_threads=1",
    "checkpoint.every_steps=0",
    "track.wandb=off",
    "track.tensorboard=false",
]


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def serial_loop(recipe: Any, model: Path, one_replica: Any) -> dict[str, torch.Tensor]:
    """Draw, sample, score, train, push; one thing after the other. No actors, no controller, no buffer."""
    engine, loop_thread = one_replica.engine, one_replica.loop_thread
    device = torch.device("cpu")
    learner = Learner(partial(load_model, str(model), recipe, device), recipe, device)
    staged = StagedWeights(learner.weight_shards(), torch.float32, device)
    sender = open_sender(SenderConfig("gloo", 0, "127.0.0.1", 60.0, "float32", Path()), staged)
    sender.connect(one_replica, 1, [sender.endpoint()])
    tokenizer = load_tokenizer(str(model))
    tasks = TaskSource(load_rows(recipe.data, recipe.seed), recipe.data, recipe.seed)
    reward = load_object(recipe.reward, ROOT, "reward")
    push(0, sender, staged)
    for step in range(recipe.max_steps):
        batch = []
        for number in range(step * recipe.groups_per_step, (step + 1) * recipe.groups_per_step):
            task = tasks.task(number)
            prompt = tokenize(task, tokenizer)
            members = []
            for member in range(recipe.group_size):
                seed = int(np.random.SeedSequence([recipe.seed, number, member]).generate_state(1)[0])
                params = SamplingParams(recipe.rollout.max_new_tokens, recipe.rollout.temperature, seed)
                call = engine.generate(prompt, params, request_id=f"serial-{number}-{member}")
                completion = loop_thread.run(call)
                sampled = np.array([False] * len(prompt) + [True] * len(completion.tokens))
                members.append(
                    Trajectory(
                        tokens=np.array(prompt + completion.tokens, np.int32),
                        versions=np.where(sampled, step, -1).astype(np.int32),
                        logprobs=np.array([0.0] * len(prompt) + completion.logprobs, np.float32),
                        loss_mask=sampled,
                        reward=reward(tokenizer.decode(completion.tokens, skip_special_tokens=True), **task.row),
                        finish_reason=completion.finish_reason,
                    )
                )
            batch.append(Group(number, 0, task.row_index, tuple(members)))
        learner.step(batch, step, min_version=step)
        push(step + 1, sender, staged)
    sender.close()
    return {f"model.{name}": p.detach().clone() for name, p in learner.model.named_parameters()}


def push(version: int, sender: Sender, staged: StagedWeights) -> None:
    staged.copy()
    sender.publish(version, staged, [sender.copy(version, staged)])


def test_staleness_zero_equals_a_serial_loop(
    one_replica: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_thread: None
) -> None:
    """Also of the second run of a process: it inherits nothing from one before it, of another recipe and seed."""
    monkeypatch.chdir(ROOT)
    run_dir = tmp_path / "run"
    before = [
        "seed=7",
        "max_steps=1",
        "trainer.learning_rate=0.1",
        "trainer.optimizer.weight_decay=0.3",
        "data.chat=true",
    ]
    assert main(["train", "recipes/tiny.yaml", *OVERRIDES, *before, f"run_dir={tmp_path / 'before'}"]) == 0
    assert main(["train", "recipes/tiny.yaml", *OVERRIDES, f"run_dir={run_dir}"]) == 0
    # A finished event loop leaves none behind, which vLLM's client in this process expects to find.
    asyncio.set_event_loop(asyncio.new_event_loop())
    # Trainer and engine hold the same weights at every step: the gap of each sampled token is rounding.
    samples = read_lines(run_dir / "samples.jsonl")
    gaps = [sample["gaps"] for sample in samples if "gaps" in sample]
    assert len(gaps) >= 3
    assert all(len(sample["gaps"]) == len(sample["tokens"]) for sample in samples if "gaps" in sample)
    assert max(gap for of_sample in gaps for gap in of_sample) < 1e-3
    trained = load_file(run_dir / "checkpoints/step_000003/trainer/rank_0.safetensors")
    recipe = load(ROOT / "recipes/tiny.yaml", OVERRIDES)
    expected = serial_loop(recipe, run_dir / "initial_model", one_replica)
    initial = load_file(run_dir / "initial_model/model.safetensors")
    for name, weights in expected.items():
        assert torch.equal(trained[name], weights), name
        assert not torch.equal(initial[name.removeprefix("model.")], weights), f"{name} was never trained"
