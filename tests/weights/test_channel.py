"""A real push: trainer-side gloo engine -> real vLLM engine, while it generates."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch

from asyncrl.algorithms.losses import LOSSES
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import SamplingParams
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model
from asyncrl.weights.channel import TransferChannel
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.verify import Probe, WeightMismatch

RECIPE = Recipe.model_validate(
    {
        "model": "x",
        "data": {"path": "x"},
        "reward": "x",
        "max_steps": 1,
        "trainer": {"precision": "fp32"},
        "weights": {"dtype": "float32"},
    }
)


@pytest.fixture(scope="module")
def learner(tiny_model: Any) -> Learner:
    device = torch.device("cpu")
    return Learner(partial(load_model, str(tiny_model), RECIPE, device), RECIPE, LOSSES["ppo"], device)


@pytest.fixture(scope="module")
def channel(one_replica: Any) -> Iterator[TransferChannel]:
    channel = TransferChannel("gloo", one_replica, "127.0.0.1", timeout_s=60)
    yield channel
    channel.close()


def staged(learner: Learner) -> StagedWeights:
    weights = StagedWeights(learner.model, torch.float32, torch.device("cpu"))
    weights.copy_from(learner.model)
    return weights


def perturb(learner: Learner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


PROBE = Probe(list(range(5, 45)))


def test_engine_and_trainer_agree_on_the_initial_weights(
    vllm_engine: Any, loop_thread: Any, learner: Learner, channel: TransferChannel
) -> None:
    channel.publish(0, staged(learner))
    PROBE.expect(0, learner.score(PROBE.tokens))
    gaps = PROBE.check(0, {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}, "float32")
    assert gaps["replica"] < 1e-4


def test_push_replaces_every_weight(
    vllm_engine: Any, loop_thread: Any, learner: Learner, channel: TransferChannel
) -> None:
    perturb(learner, 1)
    PROBE.expect(1, learner.score(PROBE.tokens))
    before = {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}
    with pytest.raises(WeightMismatch, match="replica does not hold version 1"):
        PROBE.check(1, before, "float32")
    report = channel.publish(1, staged(learner))
    gaps = PROBE.check(1, {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}, "float32")
    assert gaps["replica"] < 1e-4
    assert report.num_bytes == 4 * sum(p.numel() for p in learner.model.parameters())
    assert 0 < report.pause_s <= report.transfer_s


def test_one_wrong_parameter_is_noticed(
    vllm_engine: Any, loop_thread: Any, learner: Learner, channel: TransferChannel
) -> None:
    weights = staged(learner)
    dict(weights.items())["model.layers.1.mlp.down_proj.weight"].zero_()
    channel.publish(1, weights)
    with pytest.raises(WeightMismatch):
        PROBE.check(1, {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}, "float32")
    channel.publish(1, staged(learner))


def test_tokens_in_flight_keep_their_version(
    vllm_engine: Any, loop_thread: Any, learner: Learner, channel: TransferChannel
) -> None:
    """I3: a completion that a push interrupts comes back with both versions, stamped per token by the engine."""
    perturb(learner, 2)
    weights = staged(learner)
    tokens = list(range(5, 25))

    async def generate() -> list[Any]:
        calls = [vllm_engine.generate(tokens, SamplingParams(200, 1.0, i), request_id=f"flight-{i}") for i in range(4)]
        return await asyncio.gather(*calls)

    running = asyncio.run_coroutine_threadsafe(generate(), loop_thread.loop)
    while vllm_engine.llm.get_num_unfinished_requests() < 4:
        assert not running.done()
    channel.publish(2, weights)
    completions = running.result(60)
    assert {s.version for c in completions for s in c.spans} == {1, 2}
    for completion in completions:
        assert [s.start for s in completion.spans] == [0, *(s.end for s in completion.spans[:-1])]
        assert completion.spans[-1].end == len(completion.tokens) == len(completion.logprobs)
        assert [s.version for s in completion.spans] == sorted(s.version for s in completion.spans)


def test_channel_can_be_rebuilt(vllm_engine: Any, loop_thread: Any, learner: Learner, one_replica: Any) -> None:
    again = TransferChannel("gloo", one_replica, "127.0.0.1", timeout_s=60)
    perturb(learner, 3)
    PROBE.expect(3, learner.score(PROBE.tokens))
    again.publish(3, staged(learner))
    PROBE.check(3, {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}, "float32")
    again.close()


def test_adapters_alone_are_sent_and_merged_into_the_base(
    vllm_engine: Any, loop_thread: Any, tiny_model: Any, one_replica: Any
) -> None:
    """Twice, and the second does not add up with the first."""
    keys = RECIPE.model_dump()
    keys["trainer"]["lora"]["rank"] = 4
    recipe, device = Recipe.model_validate(keys), torch.device("cpu")
    adapted = Learner(partial(load_model, str(tiny_model), recipe, device), recipe, LOSSES["ppo"], device)
    channel = TransferChannel("gloo", one_replica, "127.0.0.1", timeout_s=60, lora_scale=recipe.trainer.lora.scale)
    try:
        for version in (4, 5):
            generator = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for parameter in adapted.optimizer.named.values():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            PROBE.expect(version, adapted.score(PROBE.tokens))
            report = channel.publish(version, staged(adapted))
            gaps = PROBE.check(version, {"replica": loop_thread.run(vllm_engine.score(PROBE.tokens))}, "float32")
            assert gaps["replica"] < 1e-4
        assert report.num_bytes == 4 * sum(p.numel() for p in adapted.optimizer.named.values())
    finally:
        channel.close()
