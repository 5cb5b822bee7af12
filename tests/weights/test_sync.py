"""A real weight sync: the trainer's end of a transport -> real vLLM engine, while it generates."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from asyncrl.errors import RunFailed
from asyncrl.recipe.schema import Recipe
from asyncrl.registry import TRANSPORTS, Transport
from asyncrl.rollout.engine import Completion, SamplingParams
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model
from asyncrl.trainer.sharding import weight_shards
from asyncrl.weights.lora import Adapters
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig, open_sender
from asyncrl.weights.transports.gloo import _Seal
from asyncrl.weights.update import PublishReport

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
    return Learner(partial(load_model, str(tiny_model), RECIPE, device), RECIPE, device)


class Push:
    """One rank's end, connected; `publish` as the driver goes about it."""

    def __init__(
        self, transport: str, replicas: Any, model: torch.nn.Module, folder: Path, adapters: Adapters | None = None
    ) -> None:
        config = SenderConfig(transport, 0, "127.0.0.1", 60.0, "float32", folder, adapters=adapters)
        shared = folder / uuid.uuid4().hex if transport == "shared_memory" else None
        self.staged = StagedWeights(weight_shards(model), torch.float32, torch.device("cpu"), shared)
        self.sender = open_sender(config, self.staged)
        self.sender.connect(replicas, replicas.num_workers, [self.sender.endpoint()])

    def publish(self, version: int) -> PublishReport:
        self.staged.copy()
        return self.send(version)

    def send(self, version: int) -> PublishReport:
        report = self.sender.publish(version, self.staged, [self.sender.copy(version, self.staged)])
        assert report is not None
        return report


@pytest.fixture(scope="module", params=["gloo", "shared_memory", "disk", "toy"])
def push(
    request: pytest.FixtureRequest, one_replica: Any, learner: Learner, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Push]:
    # A transport more is a file and this line.
    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TRANSPORTS, "toy", Transport(str(Path(__file__).with_name("toy_transport.py"))))
        push = Push(request.param, one_replica, learner.model, tmp_path_factory.mktemp("channel"))
        yield push
        push.sender.close()


def perturb(learner: Learner, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in learner.model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)


TOKENS = list(range(5, 45))


def gap(learner: Learner, engine: Any, loop_thread: Any, version: int) -> float:
    """Nats per token between the engine, which must say that it has this version, and the trainer."""
    found, logprobs = loop_thread.run(engine.score(TOKENS))
    assert found == version
    ours = learner.score(TOKENS)
    return sum(abs(a - b) for a, b in zip(ours, logprobs, strict=True)) / len(ours)


def test_engine_and_trainer_agree_on_the_initial_weights(
    vllm_engine: Any, loop_thread: Any, learner: Learner, push: Push
) -> None:
    push.publish(0)
    assert gap(learner, vllm_engine, loop_thread, 0) < 1e-4


def test_push_replaces_every_weight(vllm_engine: Any, loop_thread: Any, learner: Learner, push: Push) -> None:
    push.publish(0)  # whatever came before
    perturb(learner, 1)
    assert gap(learner, vllm_engine, loop_thread, 0) > 1e-2
    report = push.publish(1)
    # What the trainer does with its copy afterwards is not the engine's.
    push.staged.flat.zero_()
    assert gap(learner, vllm_engine, loop_thread, 1) < 1e-4
    assert report.num_bytes == 4 * sum(p.numel() for p in learner.model.parameters())
    assert 0 < report.pause_s <= report.transfer_s


def test_one_wrong_parameter_is_noticed(vllm_engine: Any, loop_thread: Any, learner: Learner, push: Push) -> None:
    push.staged.copy()
    wrong = [shard.name for shard in push.staged.shards].index("model.layers.1.mlp.down_proj.weight")
    push.staged.views[wrong].zero_()
    push.send(1)
    assert gap(learner, vllm_engine, loop_thread, 1) > 1e-2
    push.publish(1)


def test_tokens_in_flight_keep_their_version(vllm_engine: Any, loop_thread: Any, learner: Learner, push: Push) -> None:
    """I3: a completion that a push interrupts comes back with both versions, stamped per token by the engine."""
    push.publish(1)
    perturb(learner, 2)
    tokens = list(range(5, 25))

    async def generate() -> list[Any]:
        calls = [vllm_engine.generate(tokens, SamplingParams(200, 1.0, i), request_id=f"flight-{i}") for i in range(3)]
        return await asyncio.gather(*calls)

    running = asyncio.run_coroutine_threadsafe(generate(), loop_thread.loop)
    while vllm_engine.llm.get_num_unfinished_requests() < 3:
        assert not running.done()
    # First come, first served: when a fourth has its token, the three have theirs.
    loop_thread.run(vllm_engine.generate(tokens, SamplingParams(1, 1.0, 3), request_id="flight-3"))
    push.publish(2)
    completions = running.result(60)
    assert {s.version for c in completions for s in c.spans} == {1, 2}
    for completion in completions:
        assert [s.start for s in completion.spans] == [0, *(s.end for s in completion.spans[:-1])]
        assert completion.spans[-1].end == len(completion.tokens) == len(completion.logprobs)
        assert [s.version for s in completion.spans] == sorted(s.version for s in completion.spans)


@pytest.mark.parametrize("kv", ["keep", "recompute"])
def test_a_request_that_had_not_begun_is_all_of_its_stamp(
    vllm_engine: Any,
    loop_thread: Any,
    learner: Learner,
    one_replica: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kv: str,
) -> None:
    """I3: the prefix cache has the prompt by the version before; one waits for a seat at the push, one comes in it."""
    monkeypatch.setattr(vllm_engine, "config", replace(vllm_engine.config, kv_after_update=kv))
    push = Push("shared_memory", one_replica, learner.model, tmp_path)
    tokens = list(range(5, 105))

    def start(name: str, num_tokens: int, seed: int = 0) -> Future[Completion]:
        params = SamplingParams(num_tokens, 1.0, seed)
        return loop_thread.start(vllm_engine.generate(tokens, params, request_id=name))

    def gaps(completion: Completion) -> np.ndarray:
        return np.abs(np.array(learner.score(tokens + completion.tokens)[len(tokens) - 1 :]) - completion.logprobs)

    perturb(learner, 2)
    push.publish(2)
    perturb(learner, 3)
    push.staged.copy()
    running = [start(f"seat-{i}", 150, seed=i) for i in range(3)]
    start("first come, first served: when this is done, those have begun", 1).result(60)
    # More than may end by themselves before the pause.
    queue = [start(f"queue-{i}", 150, seed=i) for i in range(3, 12)]
    waiting = start("waiting", 20)
    while vllm_engine.llm.get_num_unfinished_requests() < 10:
        assert not waiting.done()
    loop_thread.run(vllm_engine.llm.pause_generation(mode="keep", clear_cache=False))
    coming = start("coming", 20)
    push.send(3)
    for request in (waiting, coming):
        assert {span.version for span in request.result(60).spans} == {3}
        assert gaps(request.result()).max() < 1e-4
    met = [request.result(60) for request in running if len(request.result(60).spans) > 1]
    assert met
    for completion in met:
        before, after = completion.spans
        assert (before.version, after.version) == (2, 3)
        assert (gaps(completion)[after.start :].max() < 1e-4) == (kv == "recompute")
    for request in queue:
        request.result(60)
    push.sender.close()


@pytest.mark.parametrize("backend", ["gloo", "shared_memory"])
def test_channel_can_be_rebuilt(
    vllm_engine: Any, loop_thread: Any, learner: Learner, one_replica: Any, tmp_path: Path, backend: str
) -> None:
    again = Push(backend, one_replica, learner.model, tmp_path)
    perturb(learner, 3)
    if backend == "gloo":
        before = vllm_engine.version
        again.sender._seal = _Seal(b"x" * 32)  # type: ignore[attr-defined]
        with pytest.raises(RunFailed, match="not those that rank 0 of the trainer sent"):
            again.publish(3)
        assert vllm_engine.version == before
        again.sender.close()
        again = Push(backend, one_replica, learner.model, tmp_path)
    again.publish(3)
    assert gap(learner, vllm_engine, loop_thread, 3) < 1e-4
    again.sender.close()


@pytest.mark.parametrize("mixture_replica", ["mixtral"], indirect=True)
def test_a_mixture_of_experts_is_replaced_whole(mixture_replica: Any, loop_thread: Any, tmp_path: Path) -> None:
    """Twice: what the CPU's kernels packed is packed anew each time."""
    engine, device = mixture_replica.engine, torch.device("cpu")
    learner = Learner(partial(load_model, engine.config.model, RECIPE, device), RECIPE, device)
    push = Push("shared_memory", mixture_replica, learner.model, tmp_path)
    try:
        assert gap(learner, engine, loop_thread, 0) < 1e-4
        for version in (1, 2):
            perturb(learner, version)
            assert gap(learner, engine, loop_thread, version - 1) > 1e-2
            push.publish(version)
            assert gap(learner, engine, loop_thread, version) < 1e-4
    finally:
        push.sender.close()


class _MoreThanTheEngine(torch.nn.Module):
    """A model with a bias that the engine's has not."""

    def __init__(self, model: torch.nn.Module, leave_out: str) -> None:
        super().__init__()
        for name, parameter in model.named_parameters():
            if name != leave_out:
                self._at(name, parameter)
        if not leave_out:
            self._at("model.layers.0.mlp.down_proj.bias", torch.nn.Parameter(torch.ones(64)))

    def _at(self, name: str, parameter: torch.nn.Parameter) -> None:
        *path, last = name.split(".")
        module: torch.nn.Module = self
        for part in path:
            if part not in dict(module.named_children()):
                module.add_module(part, torch.nn.Module())
            module = getattr(module, part)
        module.register_parameter(last, parameter)


@pytest.mark.parametrize(
    ("leave_out", "sentence"),
    [
        ("", "it has no place for model.layers.0.mlp.down_proj.bias"),
        ("model.layers.1.mlp.up_proj.weight", "nothing was sent for model.layers.1.mlp.up_proj.weight"),
        ("model.norm.weight", "nothing was sent for model.norm.weight"),
    ],
)
def test_every_name_sent_is_used_and_every_weight_is_sent(
    learner: Learner, one_replica: Any, tmp_path: Path, leave_out: str, sentence: str
) -> None:
    """vLLM passes over a bias that it does not expect in silence, and over what nothing came for (I8)."""
    push = Push("shared_memory", one_replica, _MoreThanTheEngine(learner.model, leave_out), tmp_path)
    try:
        with pytest.raises(RunFailed, match=sentence):
            push.publish(9)
    finally:
        push.sender.close()
    # What came of it is no part of the next one.
    whole = Push("shared_memory", one_replica, learner.model, tmp_path)
    perturb(learner, 9)
    whole.publish(9)
    whole.sender.close()
    assert gap(learner, one_replica.engine, one_replica.loop_thread, 9) < 1e-4


def test_adapters_alone_are_sent_and_merged_into_the_base(
    vllm_engine: Any, loop_thread: Any, tiny_model: Any, one_replica: Any, tmp_path: Path
) -> None:
    """Twice, and the second does not add up with the first."""
    keys = RECIPE.model_dump()
    keys["trainer"]["lora"]["rank"] = 4
    recipe, device = Recipe.model_validate(keys), torch.device("cpu")
    adapted = Learner(partial(load_model, str(tiny_model), recipe, device), recipe, device)
    push = Push("gloo", one_replica, adapted.model, tmp_path, Adapters(recipe.trainer.lora.scale))
    try:
        for version in (4, 5):
            generator = torch.Generator().manual_seed(version)
            with torch.no_grad():
                for parameter in adapted.optimizer.named.values():
                    parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
            report = push.publish(version)
            assert gap(adapted, vllm_engine, loop_thread, version) < 1e-4
        assert report.num_bytes == 4 * sum(p.numel() for p in adapted.optimizer.named.values())
    finally:
        push.sender.close()
