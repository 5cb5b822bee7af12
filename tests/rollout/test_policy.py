"""From calls to trajectories: each sampled token is trained once, in the sequence in which it was sampled."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.envs.environment import Ask, ContextFull
from asyncrl.rewards.score import Score, failed
from asyncrl.rollout.engine import Completion, SamplingParams, VersionSpan
from asyncrl.rollout.policy import EnginePolicy, GroupAborted, SamplingLimits
from asyncrl.rollout.summary import summarise
from asyncrl.rollout.trajectory import Group, Trajectory

LIMITS = SamplingLimits(max_new_tokens=30, max_tokens=1000, temperature=1.0, seed=0, max_turns=50)


@dataclass
class Script:
    """An engine that answers what it was given to, in order."""

    completions: list[Completion]
    asked: list[tuple[list[int], SamplingParams, str]] = field(default_factory=list)

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        self.asked.append((list(tokens), params, request_id))
        await asyncio.sleep(0)
        return self.completions[len(self.asked) - 1]

    def version(self) -> int:
        return 4


def completion(tokens: list[int], version: int = 0, reason: str = "stop") -> Completion:
    return Completion(tokens, [-0.5] * len(tokens), [VersionSpan(version, 0, len(tokens))], reason)


def rolled(
    calls: list[tuple[list[int], Completion]], limits: SamplingLimits = LIMITS, **ask: Any
) -> tuple[EnginePolicy, Script]:
    engine = Script([answer for _, answer in calls])

    async def scenario() -> EnginePolicy:
        policy = EnginePolicy(engine, limits, 3, 1, 2)
        for prompt, _ in calls:
            await policy.generate(Ask(prompt, **ask))
        return policy

    return asyncio.run(scenario()), engine


def trajectories(calls: list[tuple[list[int], Completion]], score: Score | None = None) -> list[Trajectory]:
    return rolled(calls)[0].trajectories([1], score or Score(1.0), "stop")


def test_a_prompt_that_goes_on_extends_the_sequence() -> None:
    (one,) = trajectories([([1, 2], completion([3, 4], 5)), ([1, 2, 3, 4, 8, 9], completion([6], 7))])
    assert one.tokens.tolist() == [1, 2, 3, 4, 8, 9, 6]
    assert one.versions.tolist() == [-1, -1, 5, 5, -1, -1, 7]
    assert one.logprobs.tolist() == [0, 0, -0.5, -0.5, 0, 0, -0.5]
    assert one.loss_mask.tolist() == [False, False, True, True, False, False, True]
    assert (one.member, one.prompt, one.prompt_length) == (2, 2, 2)
    assert [a.dtype for a in (one.tokens, one.versions, one.logprobs, one.loss_mask)] == ["i4", "i4", "f4", "?"]


def test_a_rewritten_history_begins_another_sequence() -> None:
    """The template dropped what was thought: token 3 is gone from the second prompt."""
    first, second = trajectories([([1, 2], completion([3, 4])), ([1, 2, 4, 8], completion([6]))])
    assert first.tokens.tolist() == [1, 2, 3, 4]
    assert second.tokens.tolist() == [1, 2, 4, 8, 6]
    assert second.loss_mask.tolist() == [False] * 4 + [True]
    assert (first.member, second.member, second.prompt) == (2, 2, 4)


def test_a_fork_trains_what_came_before_it_once() -> None:
    calls = [([1], completion([2])), ([1, 2, 7], completion([3])), ([1, 2, 8], completion([4]))]
    left, right = trajectories(calls)
    assert left.tokens[left.loss_mask].tolist() == [2, 3]
    assert right.tokens[right.loss_mask].tolist() == [4]


@settings(max_examples=200)
@given(st.data())
def test_each_sampled_token_is_trained_once_and_no_other(data: st.DataObject) -> None:
    """Whatever the prompts: continuations of any earlier call, of parts of them, or of nothing."""
    calls: list[tuple[list[int], Completion]] = []
    known: list[list[int]] = [[]]
    for turn in range(data.draw(st.integers(1, 6))):
        before = data.draw(st.sampled_from(known))
        kept = data.draw(st.integers(0, len(before)) | st.just(len(before)))
        prompt = before[:kept] + data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3))
        # Told from all observed tokens, and from other calls'.
        answer = [1000 * (turn + 1) + i for i in range(data.draw(st.integers(0, 4)))]
        calls.append((prompt, completion(answer, turn)))
        known += [prompt, prompt + answer]
    made = trajectories(calls)
    trained = [int(token) for t in made for token in t.tokens[t.loss_mask]]
    sampled = [token for _, answer in calls for token in answer.tokens]
    assert sorted(trained) == sorted(sampled)
    for t in made:
        assert ((t.versions >= 0) == t.loss_mask).all()
        assert not t.loss_mask[: t.prompt_length].any()
        for place in np.flatnonzero(t.loss_mask):
            # What stands before a trained token is the prompt that it was sampled from, and its completion so far.
            turn, number = divmod(int(t.tokens[place]), 1000)
            prompt, answer = calls[turn - 1]
            assert t.tokens[:place].tolist() == prompt + answer.tokens[:number]
            assert t.versions[place] == turn - 1


def test_what_is_not_to_be_trained_is_recorded_with_its_version() -> None:
    policy, _ = rolled([([1], completion([2], 3))], train=False)
    (one,) = policy.trajectories([1], Score(1.0), "stop")
    assert one.versions.tolist() == [-1, 3]
    assert not one.loss_mask.any()


def test_a_failed_score_masks_every_sequence() -> None:
    made = trajectories([([1], completion([2])), ([5], completion([6]))], failed("the sandbox is gone"))
    assert len(made) == 2
    assert not any(t.loss_mask.any() for t in made)
    assert {t.error for t in made} == {"the sandbox is gone"}


def test_a_rollout_that_sampled_nothing_is_its_prompt() -> None:
    policy, _ = rolled([])
    (one,) = policy.trajectories([5, 6], failed("it raised"), "stop")
    assert one.tokens.tolist() == [5, 6]
    assert (one.prompt_length, one.member, one.loss_mask.any()) == (2, 2, False)


def test_seeds_and_requests_are_those_of_the_turn() -> None:
    calls = [([1], completion([2])), ([1, 2, 3], completion([4]))]
    _, engine = rolled(calls)
    assert [request for _, _, request in engine.asked] == ["3.1.2", "3.1.2.1"]
    first, second = (params.seed for _, params, _ in engine.asked)
    assert first != second
    again = [params.seed for _, params, _ in rolled(calls)[1].asked]
    assert again == [first, second]


@pytest.mark.parametrize(("length", "most"), [(998, 2), (999, 1), (960, 30)])
def test_a_completion_gets_the_room_there_is(length: int, most: int) -> None:
    """One below, at and above the limit of the context; never more than the longest completion."""
    _, engine = rolled([([1] * length, completion([2]))])
    assert engine.asked[0][1].max_new_tokens == most


def test_a_shorter_completion_may_be_asked_for() -> None:
    _, engine = rolled([([1], completion([2]))], max_new_tokens=5)
    assert engine.asked[0][1].max_new_tokens == 5


def test_without_room_or_turns_nothing_is_sampled() -> None:
    with pytest.raises(ContextFull, match=r"1000 tokens, and env\.max_context_tokens is 1000"):
        rolled([([1] * 1000, completion([2]))])
    with pytest.raises(ContextFull, match=r"its 1 turns, and env\.max_turns is 1"):
        rolled([([1], completion([2])), ([1], completion([2]))], replace(LIMITS, max_turns=1))


ONE_TURN = replace(LIMITS, max_turns=1)
GOES_ON = [([1], completion([2, 3])), ([1, 2, 3], completion([4], 1)), ([1, 2, 3, 4], completion([5], 2))]


def test_calls_with_nothing_read_in_between_are_one_turn() -> None:
    policy, engine = rolled(GOES_ON, ONE_TURN)
    (one,) = policy.trajectories([1], Score(1.0), "stop")
    assert one.tokens[one.loss_mask].tolist() == [2, 3, 4, 5]
    assert [params.max_new_tokens for _, params, _ in engine.asked] == [30, 28, 27]
    assert [request for _, _, request in engine.asked] == ["3.1.2", "3.1.2.1", "3.1.2.2"]
    assert len({params.seed for _, params, _ in engine.asked}) == 3
    assert summarise(Group(3, 1, 0, (one,))).num_turns == 1


def test_a_turn_in_pieces_is_no_longer_than_one() -> None:
    whole = ([1], completion([2] * 30))
    with pytest.raises(ContextFull, match=r"the turn has its 30 tokens, and rollout\.max_new_tokens is 30"):
        rolled([whole, ([1] + [2] * 30, completion([3]))])
    _, engine = rolled([whole, ([1] + [2] * 30 + [9], completion([3]))])
    assert engine.asked[1][1].max_new_tokens == 30, "something was read, and a turn begins"


@pytest.mark.parametrize("prompt", [[1], [1, 2], [1, 2, 3, 9]])
def test_any_other_call_is_another_turn(prompt: list[int]) -> None:
    with pytest.raises(ContextFull, match=r"env\.max_turns is 1"):
        rolled([GOES_ON[0], (prompt, completion([4]))], ONE_TURN)


def test_a_turn_goes_on_once() -> None:
    """A second branch from the same place is another turn, one after the other or at the same time."""
    with pytest.raises(ContextFull, match=r"env\.max_turns is 1"):
        rolled([GOES_ON[0], GOES_ON[1], ([1, 2, 3], completion([7]))], ONE_TURN)

    async def scenario() -> list[Any]:
        policy = EnginePolicy(Script([completion([2, 3]), completion([4]), completion([5])]), ONE_TURN, 3, 1, 2)
        await policy.generate(Ask([1]))
        branches = (policy.generate(Ask([1, 2, 3])) for _ in range(2))
        return await asyncio.gather(*branches, return_exceptions=True)

    first, second = asyncio.run(scenario())
    assert first.tokens == [4]
    assert isinstance(second, ContextFull)


def test_what_is_not_trained_is_no_piece_of_a_turn_that_is() -> None:
    async def scenario() -> None:
        policy = EnginePolicy(Script([completion([2]), completion([3])]), ONE_TURN, 3, 1, 2)
        await policy.generate(Ask([1]))
        await policy.generate(Ask([1, 2], train=False))
        assert policy._turns == {True: 1, False: 1}

    asyncio.run(scenario())


@pytest.mark.parametrize(("tokens", "more"), [([], {}), ([5, -1], {}), ([2**31], {}), ([5], {"max_new_tokens": 0})])
def test_what_is_no_prompt_is_refused(tokens: list[int], more: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"a prompt is one token|must be 1 or more"):
        rolled([(tokens, completion([2]))], **more)


def test_an_aborted_request_aborts_the_rollout() -> None:
    with pytest.raises(GroupAborted):
        rolled([([1], completion([], reason="abort"))])


def test_an_engine_without_logprobs_gives_nan_not_zero() -> None:
    (one,) = trajectories([([1], Completion([7], None, [VersionSpan(0, 0, 1)], "stop"))])
    assert one.logprobs[0] == 0
    assert np.isnan(one.logprobs[1])


@pytest.mark.parametrize("spans", [[], [VersionSpan(0, 0, 1)], [VersionSpan(0, 1, 2)]])
def test_a_token_without_a_version_is_an_error(spans: list[VersionSpan]) -> None:
    with pytest.raises(RuntimeError, match="stamped no version"):
        trajectories([([1], Completion([7, 8], [0.0, 0.0], spans, "stop"))])


def test_log_probs_that_are_not_as_many_as_the_tokens_are_an_error() -> None:
    with pytest.raises(RuntimeError, match="1 log-probs for 2 tokens"):
        trajectories([([1], Completion([7, 8], [0.0], [VersionSpan(0, 0, 2)], "stop"))])


def test_an_empty_completion_has_nothing_to_train() -> None:
    (one,) = trajectories([([1, 2], Completion([], [], [], "stop"))])
    assert one.tokens.tolist() == [1, 2]
    assert not one.loss_mask.any()


def test_agents_of_one_rollout_have_sequences_and_rewards_of_their_own() -> None:
    """The judge's second call goes on from its own first, although the solver's sequence would fit too."""
    engine = Script([completion([2]), completion([5]), completion([6]), completion([9])])

    async def scenario() -> EnginePolicy:
        policy = EnginePolicy(engine, LIMITS, 3, 1, 2)
        await policy.generate(Ask([1]))
        await policy.generate(Ask([1, 2, 4], agent="judge"))
        await policy.generate(Ask([1, 2, 4, 5, 7], agent="judge"))
        await policy.generate(Ask([1, 2, 8], agent="other"))
        return policy

    policy = asyncio.run(scenario())
    solver, judge, other = policy.trajectories([1], Score(1.0), "stop", {"judge": 0.25})
    assert [(t.agent, t.reward, t.member) for t in (solver, judge, other)] == [
        ("", 1.0, 2), ("judge", 0.25, 2), ("other", 1.0, 2),
    ]  # fmt: skip
    assert [t.tokens[t.loss_mask].tolist() for t in (solver, judge, other)] == [[2], [5, 6], [9]]
    assert policy.last.tokens == [2], "what the reward function sees"
    failed = policy.trajectories([1], Score(None, error="no"), "stop", {"judge": 0.25})
    assert [(t.reward, t.loss_mask.any()) for t in failed] == [(None, False)] * 3


def test_turns_are_numbered_as_they_end_and_keep_what_they_earned() -> None:
    """Of two sequences; what goes on with a turn is that turn, and what is not trained is none."""
    engine = Script([completion([2]), completion([9]), completion([3]), completion([5]), completion([6])])

    async def scenario() -> tuple[EnginePolicy, list[int]]:
        policy = EnginePolicy(engine, LIMITS, 3, 1, 2)
        asks = [Ask([1]), Ask([7], train=False), Ask([1, 2]), Ask([8]), Ask([1, 2, 3, 4])]
        return policy, [(await policy.generate(ask)).turn for ask in asks]

    policy, numbers = asyncio.run(scenario())
    assert numbers == [0, -1, 0, 1, 2]
    found = policy.trajectories([1], Score(1.0), "stop", None, {0: 0.25, 2: 0.5})
    assert [t.turns for t in found] == [((0, 3, 0.25), (2, 5, 0.5)), (), ((1, 2, 0.0),)]
    assert [t.turns for t in policy.trajectories([1], Score(1.0), "stop")] == [()] * 3
