"""vLLM's real scheduler and prefix cache, on a device that only notes which weights wrote each slot of its KV cache.

I3: what a token was sampled from is what its stamp says, whatever waits, arrives, is preempted or cancelled when."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import AsyncEngineArgs
from vllm import SamplingParams as VllmSamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from asyncrl.rollout.vllm_scheduler import OneVersionAsyncScheduler, OneVersionScheduler, one_version

BLOCK = 4
PROMPTS = [list(range(100, 100 + n)) for n in (1, 9, 13)] + [list(range(100, 109)) + [7] * 8]


@dataclass
class Sampled:
    """A token: the version that sampled it, and those that wrote the KV of all before it."""

    version: int
    kv: list[int]


@dataclass
class Row:
    """A request on the device."""

    num_tokens: int
    blocks: list[int] = field(default_factory=list)
    sampled: list[Sampled] = field(default_factory=list)


class World:
    """An engine process: the scheduler, the device, and pushes. `hits`: prompt tokens found in the prefix cache."""

    def __init__(self, scheduler: type, config: Any, num_blocks: int) -> None:
        spec = FullAttentionSpec(block_size=BLOCK, num_kv_heads=1, head_size=4, dtype=torch.float32)
        cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)], hash_block_size=BLOCK)
        config.cache_config.num_gpu_blocks = num_blocks
        self.scheduler = scheduler(config, cache, StructuredOutputManager(config), BLOCK, BLOCK)
        # One step ahead, as vLLM's engine process with this scheduler.
        self.depth = 2 if issubclass(scheduler, AsyncScheduler) else 1
        self.hasher = get_request_block_hasher(BLOCK, get_hash_fn_by_name("sha256"))
        self.slots: dict[tuple[int, int], int] = {}
        self.rows: dict[str, Row] = {}
        self.under_way: deque[tuple[Any, ModelRunnerOutput]] = deque()
        self.version = self.hits = self.preempted = 0

    def add(self, prompt: list[int], max_tokens: int) -> Row:
        name = f"r{len(self.rows)}"
        params = VllmSamplingParams(max_tokens=max_tokens, ignore_eos=True)
        params.update_from_generation_config({})
        self.rows[name] = Row(len(prompt))
        self.scheduler.add_request(Request(name, prompt, params, None, block_hasher=self.hasher))
        return self.rows[name]

    def cancel(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)

    def step(self) -> None:
        output = self.scheduler.schedule()
        if output.total_num_scheduled_tokens:
            self.under_way.append((output, self._run(output)))
        while len(self.under_way) >= self.depth or (self.under_way and not output.total_num_scheduled_tokens):
            self.scheduler.update_from_output(*self.under_way.popleft())

    def push(self, recompute: bool = False) -> None:
        self.scheduler.set_pause_state(PauseState.PAUSED_ALL)
        while self.under_way:
            self.step()
        if recompute:
            self.scheduler.reset_prefix_cache(reset_running_requests=True)
        self.version += 1

    def resume(self) -> None:
        self.scheduler.set_pause_state(PauseState.UNPAUSED)

    def finish(self) -> None:
        self.resume()
        for _ in range(2000):
            if not self.scheduler.has_unfinished_requests():
                return
            self.step()
        raise AssertionError("requests are never finished")

    def _slots(self, name: str, end: int) -> list[tuple[int, int]]:
        return [(self.rows[name].blocks[place // BLOCK], place % BLOCK) for place in range(end)]

    def _run(self, output: Any) -> ModelRunnerOutput:
        starts: dict[str, int] = {}
        for new in output.scheduled_new_reqs:
            starts[new.req_id] = new.num_computed_tokens
            self.rows[new.req_id].blocks = list(new.block_ids[0])
            self.hits += new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for name, blocks, start in zip(cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True):
            starts[name] = start
            if name in cached.resumed_req_ids:
                self.preempted += 1
                self.rows[name].blocks = []
            self.rows[name].blocks += list(blocks[0]) if blocks else []
        ends = {name: start + output.num_scheduled_tokens[name] for name, start in starts.items()}
        # A layer writes the KV of all rows before any of them attends.
        for name, start in starts.items():
            self.slots |= dict.fromkeys(self._slots(name, ends[name])[start:], self.version)
        tokens: list[list[int]] = []
        for name, end in ends.items():
            row = self.rows[name]
            whole = end == row.num_tokens
            tokens.append([1] if whole else [])
            if whole:
                row.sampled.append(Sampled(self.version, [self.slots[slot] for slot in self._slots(name, end)]))
                row.num_tokens += 1
        return ModelRunnerOutput(list(starts), {name: i for i, name in enumerate(starts)}, tokens)


Make = Callable[..., World]


@pytest.fixture(scope="module")
def make(tiny_model: Path) -> Make:
    init_none_hash(get_hash_fn_by_name("sha256"))
    args = AsyncEngineArgs(str(tiny_model), max_model_len=64, max_num_seqs=3, block_size=BLOCK)
    config = args.create_engine_config()
    config.scheduler_config.enable_chunked_prefill = True

    def make(scheduler: type, num_blocks: int = 64, chunk: int = 64) -> World:
        """chunk: most tokens of a step."""
        config.scheduler_config.max_num_batched_tokens = config.scheduler_config.max_num_scheduled_tokens = chunk
        return World(scheduler, config, num_blocks)

    return make


def check(row: Row, prompt: list[int], recompute: bool) -> None:
    """A token's KV is all of its own version, or kept: each part from the version that its stamps show there. KV of a
    sampled token is written when the next one is sampled."""
    if recompute:
        assert all(version == token.version for token in row.sampled for version in token.kv)
    for n, token in enumerate(row.sampled):
        first = row.sampled[0].version
        kept = [first] * len(prompt) + [t.version for t in row.sampled[1 : n + 1]]
        since = [t.version for t in row.sampled[: n + 1]]
        # Recomputed at any of the versions since: all before is of that one.
        recomputed = [[max(version, v) for v in kept] for version in dict.fromkeys(since)]
        assert token.kv in recomputed, (n, token, since)


ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(PROMPTS), st.integers(1, 14)),
    st.tuples(st.just("step"), st.integers(1, 4)),
    st.tuples(st.just("push"), st.integers(1, 2)),
    st.tuples(st.just("resume")),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
)


@pytest.mark.parametrize("scheduler", [OneVersionScheduler, OneVersionAsyncScheduler])
@settings(max_examples=300)
@given(st.lists(ACTIONS, max_size=30), st.sampled_from([9, 12, 64]), st.sampled_from([3, 5, 64]), st.booleans())
def test_a_stamp_is_true(
    make: Make, scheduler: type, actions: list[Any], num_blocks: int, chunk: int, recompute: bool
) -> None:
    world, prompts = make(scheduler, num_blocks, chunk), []
    for action in actions:
        match action:
            case "add", prompt, max_tokens:
                world.add(prompt, max_tokens)
                prompts.append(prompt)
            case "step", times:
                for _ in range(times):
                    world.step()
            case "push", times:
                for _ in range(times):
                    world.push(recompute)
            case ("resume",):
                world.resume()
            case "cancel", number if number < len(prompts):
                world.cancel(f"r{number}")
    world.finish()
    for row, prompt in zip(world.rows.values(), prompts, strict=True):
        check(row, prompt, recompute)


@pytest.mark.parametrize("scheduler", [OneVersionScheduler, OneVersionAsyncScheduler])
def test_within_one_version_prompts_are_shared(make: Make, scheduler: type) -> None:
    """As by vLLM's own scheduler; a push costs each prompt that is asked again one more reading."""
    hits = []
    for cls in (scheduler, scheduler.__bases__[-1]):
        world = make(cls)
        for _ in range(2):
            for _ in range(4):
                world.add(PROMPTS[1], 3)
            world.finish()
            hits.append(world.hits)
            world.push()
    first, both, first_of_vllm, both_of_vllm = hits
    assert first == first_of_vllm == 3 * 8
    assert both == 2 * first
    assert both_of_vllm == 7 * 8


def test_only_schedulers_with_a_counterpart_are_taken() -> None:
    assert one_version(Scheduler) == "asyncrl.rollout.vllm_scheduler.OneVersionScheduler"
    assert one_version(AsyncScheduler) == "asyncrl.rollout.vllm_scheduler.OneVersionAsyncScheduler"
    with pytest.raises(ValueError, match="vLLM would schedule with OneVersionScheduler"):
        one_version(OneVersionScheduler)
