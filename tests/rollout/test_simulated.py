"""The simulated engine keeps the contract of an engine: spans, versions, cancellation. Virtual speed: 0 s per token."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.rollout.engine import Completion, EngineConfig, SamplingParams
from asyncrl.rollout.simulated import SimulatedEngine
from asyncrl.weights.update import WeightUpdate

T = TypeVar("T")


def make_engine(vocabulary: int = 50) -> SimulatedEngine:
    args = {"token_s": 0.0, "vocabulary": vocabulary}
    return SimulatedEngine(EngineConfig("", "", "", 100, "keep", "", 0.0, 0, args))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        return await asyncio.wait_for(coroutine, 20)

    return asyncio.run(bounded())


async def turns(count: int) -> None:
    """Let the other coroutines go on `count` times."""
    for _ in range(count):
        await asyncio.sleep(0)


def versions_of(completion: Completion) -> list[int]:
    """Version per token; fails if the spans leave a gap, overlap or are empty."""
    versions: list[int] = []
    for span in completion.spans:
        assert span.start == len(versions)
        assert span.end > span.start
        versions += [span.version] * (span.end - span.start)
    assert len(versions) == len(completion.tokens)
    return versions


def long_seed(engine_max: int, at_least: int) -> int:
    """A seed whose completion is long enough to be interrupted."""

    async def length(seed: int) -> int:
        engine = make_engine()
        await engine.start()
        return len((await engine.generate([1], SamplingParams(engine_max, 1.0, seed), request_id="a")).tokens)

    return next(seed for seed in range(1000) if run(length(seed)) >= at_least)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 30), max_size=6), st.integers(0, 2**32 - 1), st.integers(1, 60))
def test_spans_cover_every_token_through_any_updates(pauses: list[int], seed: int, max_new: int) -> None:
    async def scenario() -> Completion:
        engine = make_engine()
        await engine.start()
        await engine.update_weights(WeightUpdate(3))
        task = asyncio.create_task(engine.generate([1], SamplingParams(max_new, 1.0, seed), request_id="a"))
        for version, pause in enumerate(pauses, 4):
            await turns(pause)
            await engine.update_weights(WeightUpdate(version))
            assert engine.version() == version
        return await task

    completion = run(scenario())
    versions = versions_of(completion)
    assert 1 <= len(versions) <= max_new
    assert versions == sorted(versions)
    assert set(versions) <= set(range(3, 4 + len(pauses)))
    assert all(0 <= token < 50 for token in completion.tokens)
    assert completion.logprobs is None
    assert completion.finish_reason == ("length" if len(completion.tokens) == max_new else "stop")


def test_versions_change_at_the_update_and_the_request_goes_on() -> None:
    seed = long_seed(80, at_least=40)

    async def scenario() -> tuple[Completion, Completion]:
        engine = make_engine()
        await engine.start()
        params = SamplingParams(80, 1.0, seed)
        plain = await engine.generate([1], params, request_id="plain")
        task = asyncio.create_task(engine.generate([1], params, request_id="updated"))
        await turns(10)
        await engine.update_weights(WeightUpdate(1))
        return plain, await task

    plain, updated = run(scenario())
    assert set(versions_of(plain)) == {0}
    assert [span.version for span in updated.spans] == [0, 1]
    assert 5 <= updated.spans[0].end <= 10
    assert updated.tokens == plain.tokens  # random tokens of the seed, whoever the update interrupts


def test_nothing_is_sampled_before_the_start() -> None:
    async def scenario() -> Completion:
        engine = make_engine()
        task = asyncio.create_task(engine.generate([1], SamplingParams(1, 1.0, 0), request_id="a"))
        await turns(20)
        assert not task.done()
        await engine.start()
        return await task

    assert versions_of(run(scenario())) == [0]


def test_cancel_ends_only_the_named_requests() -> None:
    seed = long_seed(80, at_least=40)

    async def scenario() -> list[Completion]:
        engine = make_engine()
        await engine.start()
        params = SamplingParams(80, 1.0, seed)
        tasks = [asyncio.create_task(engine.generate([1], params, request_id=name)) for name in "abc"]
        await turns(10)
        await engine.cancel(["a", "c"])
        done = await asyncio.gather(*tasks)
        again = await engine.generate([1], params, request_id="a")
        return [*done, again]

    first, second, third, again = run(scenario())
    for aborted in (first, third):
        assert aborted.finish_reason == "abort"
        assert aborted.tokens == second.tokens[: len(aborted.tokens)]
        assert len(versions_of(aborted)) < 15
    assert second.finish_reason == "stop"
    assert len(second.tokens) >= 40
    assert (again.finish_reason, again.tokens) == ("stop", second.tokens)


def test_there_is_no_model_to_score_with() -> None:
    with pytest.raises(RuntimeError, match="no model to score with"):
        run(make_engine().score([1, 2]))


def test_a_token_that_stops_is_the_last_one_and_what_is_cut_off_says_so() -> None:
    seed = long_seed(80, 40)

    async def scenario() -> None:
        engine = make_engine()
        await engine.start()
        free = await engine.generate([1], SamplingParams(80, 1.0, seed), request_id="a")
        params = SamplingParams(80, 1.0, seed, stop_token_ids=(free.tokens[10], 99))
        stopped = await engine.generate([1], params, request_id="b")
        length = free.tokens.index(free.tokens[10]) + 1
        assert (stopped.tokens, stopped.finish_reason) == (free.tokens[:length], "stop")
        assert stopped.spans[-1].end == length
        cut = await engine.generate([1], SamplingParams(1, 1.0, seed), request_id="c")
        assert (len(cut.tokens), cut.finish_reason) == (1, "length")
        assert (free.finish_reason, len(free.tokens) < 80) == ("stop", True)

    run(scenario())
