"""From a task to a group, with the simulated engine and rewards made up here."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from transformers import AddedToken

from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import tokenize
from asyncrl.envs.environment import Ask, Episode, Policy
from asyncrl.models import load_tokenizer
from asyncrl.rewards.score import RewardRequest, Score, TrainerState, failed
from asyncrl.rollout.engine import Completion, EngineConfig, SamplingParams
from asyncrl.rollout.episode import Finished, GroupRunner, RolloutSettings
from asyncrl.rollout.occupancy import Occupancy
from asyncrl.rollout.policy import GroupAborted, SamplingLimits, request_id
from asyncrl.rollout.simulated import SimulatedEngine
from asyncrl.rollout.trajectory import Group
from asyncrl.task import Task
from asyncrl.weights.update import WeightUpdate

TASK = Task(17, 4, "two plus two is", {"answer": "4"}, epoch=0.25)
LIMITS = SamplingLimits(max_new_tokens=30, max_tokens=94, temperature=0.7, seed=11)
SETTINGS = RolloutSettings(group_size=3, max_prompt_tokens=64, limits=LIMITS, max_steps=9)


class Rewards:
    """A reward pool without processes: scores completion i with `score_of(i)`."""

    def __init__(self, score_of: Callable[[int], Score] = lambda i: Score(float(i))) -> None:
        self.score_of = score_of
        self.requests: list[RewardRequest] = []

    async def score(self, request: RewardRequest) -> list[Score]:
        self.requests.append(request)
        return [self.score_of(i) for i in range(len(request.completions))]


class RecordingEngine(SimulatedEngine):
    """Remembers what each request asked for."""

    def __init__(self) -> None:
        super().__init__(EngineConfig("", "", "", 100, "keep", "", 0.0, 0, {"token_s": 0.0}))
        self.asked: dict[str, tuple[list[int], SamplingParams]] = {}
        self.completions: dict[str, Completion] = {}

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        self.asked[request_id] = (tokens, params)
        self.completions[request_id] = await super().generate(tokens, params, request_id=request_id)
        return self.completions[request_id]


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


def make_runner(tokenizer: Any, rewards: Rewards | None = None, settings: RolloutSettings = SETTINGS) -> GroupRunner:
    return GroupRunner(RecordingEngine(), tokenizer, rewards or Rewards(), settings, Occupancy())


def run_group(
    runner: GroupRunner, task: Task = TASK, attempt: int = 0, meanwhile: Callable[[Any], Any] | None = None
) -> tuple[Group, list[str]]:
    async def scenario() -> tuple[Group, list[str]]:
        await runner.engine.start()
        await runner.engine.update_weights(WeightUpdate(5))
        group = asyncio.create_task(runner.run(task, attempt))
        if meanwhile is not None:
            for _ in range(3):  # the group begins, then its members
                await asyncio.sleep(0)
            assert len(runner.engine.asked) == runner.settings.group_size
            await meanwhile(runner.engine)
        finished = await asyncio.wait_for(group, 20)
        return finished.group, finished.texts

    return asyncio.run(scenario())


class SlowTokenizer:
    """Takes a moment for each text, and notes where."""

    bos_token_id = eos_token_id = pad_token_id = None
    added_tokens_decoder: ClassVar[dict[int, Any]] = {}
    threads: ClassVar[set[str]] = set()

    def __call__(self, text: str, **_: Any) -> Any:
        return SimpleNamespace(input_ids=[1, 2])

    def decode(self, tokens: list[int], **_: Any) -> str:
        self.threads.add(threading.current_thread().name)
        time.sleep(0.05)
        return "text"


def test_long_texts_do_not_hold_up_the_engine() -> None:
    runner, beats = make_runner(SlowTokenizer()), []

    async def scenario() -> list[str]:
        async def beat() -> None:
            while True:
                beats.append(time.monotonic())
                await asyncio.sleep(0.005)

        await runner.engine.start()
        beating = asyncio.create_task(beat())
        await runner.run(TASK, 0)
        words = await runner.texts.words([1, 2, 3])
        beating.cancel()
        return words

    assert asyncio.run(scenario()) == ["text"] * 3
    assert len(beats) > 15, "0.3 s of decoding"
    assert SlowTokenizer.threads == {"text_0"}


def test_a_group_is_prompt_and_completions_with_their_scores(tokenizer: Any) -> None:
    rewards = Rewards(lambda i: Score(i / 2, {"length": float(i)}))
    runner = make_runner(tokenizer, rewards)
    group, texts = run_group(runner, attempt=2)
    prompt = tokenize(TASK, tokenizer)
    assert (group.task, group.attempt, group.row) == (17, 2, 4)
    completions = [runner.engine.completions[f"17.2.{i}"] for i in range(3)]
    for i, (got, completion) in enumerate(zip(group.trajectories, completions, strict=True)):
        assert got.tokens.tolist() == prompt + completion.tokens
        assert got.versions.tolist() == [-1] * len(prompt) + [5] * len(completion.tokens)
        assert got.loss_mask.tolist() == [False] * len(prompt) + [True] * len(completion.tokens)
        assert got.prompt_length == len(prompt)
        assert (got.reward, got.extras, got.error, got.finish_reason) == (i / 2, {"length": i}, None, "stop")
    (request,) = rewards.requests
    tokens = [c.tokens for c in completions]
    state = TrainerState(global_step=5, max_steps=9, epoch=0.25)
    assert request == RewardRequest(TASK.prompt, texts, tokens, ["stop"] * 3, TASK.row, state)
    assert texts == [tokenizer.decode(c.tokens, skip_special_tokens=True) for c in completions]


def test_a_reward_sees_special_tokens_on_request(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Without, it is told once that there are some which may mean something."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(AddedToken("[THINK]", special=True))
    think = tokenizer.convert_tokens_to_ids("[THINK]")
    completion = [think, *tokenizer("ab").input_ids, tokenizer.eos_token_id]
    runner = make_runner(tokenizer)
    plain = runner._texts([completion, completion])
    assert plain == runner._texts([completion, completion])
    assert "[THINK]" not in plain[0]
    (record,) = caplog.records
    assert "special tokens ([THINK]) that the reward does not see" in record.message
    caplog.clear()
    runner = make_runner(tokenizer, settings=replace(SETTINGS, skip_special_tokens=False))
    assert runner._texts([completion])[0].startswith("[THINK]")
    assert runner._texts([completion])[0].endswith(tokenizer.eos_token)
    assert caplog.records == []


def test_the_prompt_and_the_settings_reach_the_engine(tokenizer: Any) -> None:
    runner = make_runner(tokenizer)
    run_group(runner)
    assert list(runner.engine.asked) == [request_id(17, 0, i) for i in range(3)]
    for tokens, params in runner.engine.asked.values():
        assert tokens == tokenize(TASK, tokenizer)
        assert (params.max_new_tokens, params.temperature) == (30, 0.7)


def test_chat_prompts_go_through_the_template(tokenizer: Any) -> None:
    runner = make_runner(tokenizer)
    messages = [{"role": "user", "content": "hi"}]
    run_group(runner, Task(0, 0, messages, {}))
    tokens, _ = runner.engine.asked["0.0.0"]
    assert tokenizer.decode(tokens) == "<user>hi\n<assistant>"


def test_a_failed_reward_masks_the_trajectory_and_no_other(tokenizer: Any) -> None:
    runner = make_runner(tokenizer, Rewards(lambda i: failed("it crashed") if i == 1 else Score(0.0)))
    group, _ = run_group(runner)
    zero, lost, _ = group.trajectories
    assert lost.reward is None
    assert lost.error == "it crashed"
    assert not lost.loss_mask.any()
    assert (lost.versions >= 0).any()  # it was sampled all the same
    assert zero.reward == 0.0
    assert zero.loss_mask.any()
    assert zero.error is None


def test_versions_follow_an_update_during_the_group(tokenizer: Any) -> None:
    async def update(engine: RecordingEngine) -> None:
        for _ in range(4):
            await asyncio.sleep(0)
        await engine.update_weights(WeightUpdate(6))

    runner = make_runner(tokenizer)
    group, _ = run_group(runner, meanwhile=update)
    num_prompt = len(tokenize(TASK, tokenizer))
    seen = set()
    for i, got in enumerate(group.trajectories):
        spans = runner.engine.completions[f"17.0.{i}"].spans
        expected = [-1] * num_prompt + [s.version for s in spans for _ in range(s.start, s.end)]
        assert got.versions.tolist() == expected
        seen |= set(expected)
    assert seen == {-1, 5, 6}
    assert group.version_range == (5, 6)


def test_a_long_prompt_is_refused_before_it_is_sampled(tokenizer: Any) -> None:
    length = len(tokenize(TASK, tokenizer))
    fits = replace(SETTINGS, max_prompt_tokens=length)
    run_group(make_runner(tokenizer, settings=fits))
    runner = make_runner(tokenizer, settings=replace(SETTINGS, max_prompt_tokens=length - 1))
    with pytest.raises(BadPrompt) as caught:
        run_group(runner)
    assert (caught.value.reason, str(caught.value)) == ("prompt_too_long", f"the prompt has {length} tokens")
    assert runner.engine.asked == {}


@pytest.mark.parametrize("members", [[1], [0, 1, 2]])
def test_one_aborted_member_aborts_the_group_unscored(tokenizer: Any, members: list[int]) -> None:
    rewards = Rewards()
    with pytest.raises(GroupAborted):
        run_group(
            make_runner(tokenizer, rewards),
            meanwhile=lambda engine: engine.cancel([request_id(17, 0, i) for i in members]),
        )
    assert rewards.requests == []


def seeds(tokenizer: Any, task: int, attempt: int = 0, seed: int = 11) -> list[int]:
    runner = make_runner(tokenizer, settings=replace(SETTINGS, limits=replace(LIMITS, seed=seed)))
    run_group(runner, Task(task, 0, "two", {}), attempt)
    return [params.seed for _, params in runner.engine.asked.values()]


def test_seeds_depend_on_recipe_task_and_member_only(tokenizer: Any) -> None:
    first = seeds(tokenizer, 0)
    assert seeds(tokenizer, 0, attempt=3) == first
    others = [*first, *seeds(tokenizer, 1), *seeds(tokenizer, 0, seed=12)]
    assert len(set(others)) == 9


class Cancelled(SimulatedEngine):
    """Takes its time, so that a group can be cancelled."""

    def __init__(self) -> None:
        super().__init__(EngineConfig("", "", "", 100, "keep", "", 0.0, 0, {"token_s": 0.05}))


def test_a_cancelled_group_is_aborted_wherever_its_rollouts_are(tokenizer: Any) -> None:
    """One asks the engine, the others do something else."""

    class Elsewhere:
        async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
            if name.endswith(".0"):
                await policy.generate(Ask(prompt))
            await asyncio.sleep(60)
            raise AssertionError

    async def scenario() -> None:
        runner = GroupRunner(Cancelled(), tokenizer, None, SETTINGS, Occupancy(), Elsewhere())
        await runner.engine.start()
        running = asyncio.create_task(runner.run(TASK, 0))
        await asyncio.sleep(0.1)
        await runner.cancel(17, 0)
        with pytest.raises(GroupAborted):
            await asyncio.wait_for(running, 10)

    asyncio.run(scenario())


def test_an_environment_scores_or_leaves_it_to_the_reward(tokenizer: Any) -> None:
    """Rollout 0 has a score of the environment, 1 failed there, 2 is judged by its last completion."""

    class Mixed:
        async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
            first = await policy.generate(Ask(prompt))
            if name.endswith(".0"):
                return Episode(Score(0.25), "length")
            if name.endswith(".1"):
                return Episode(failed("no room on the sandbox's disk"))
            await policy.generate(Ask([*prompt, *first.tokens, 9, 9]))
            return Episode(None)

    rewards = Rewards(lambda i: Score(7.0))
    runner = make_runner(tokenizer, rewards, replace(SETTINGS, limits=replace(LIMITS, max_turns=2)))
    runner.environment = Mixed()
    group, texts = run_group(runner)
    assert [t.reward for t in group.trajectories] == [0.25, None, 7.0]
    assert [t.finish_reason for t in group.trajectories] == ["length", "stop", "stop"]
    assert [t.loss_mask.any() for t in group.trajectories] == [True, False, True]
    (request,) = rewards.requests
    assert request.completions == [texts[2]]
    assert request.completion_ids == [runner.engine.completions["17.0.2.1"].tokens]


def test_where_a_teacher_is_all_there_is_every_reward_is_0(tokenizer: Any) -> None:
    runner = make_runner(tokenizer, settings=replace(SETTINGS, unscored=True))
    runner.rewards = None
    group, _ = run_group(runner)
    assert [(t.reward, t.error, bool(t.loss_mask.any())) for t in group.trajectories] == [(0.0, None, True)] * 3


def test_without_a_reward_function_the_environment_must_score(tokenizer: Any) -> None:
    runner = make_runner(tokenizer)
    runner.rewards = None
    group, _ = run_group(runner)
    assert {t.error for t in group.trajectories} == {
        "the environment returned no reward, and the recipe names no reward function"
    }
    assert not any(t.loss_mask.any() for t in group.trajectories)


class Paced:
    """An environment whose rollouts, by member, fail or take some time."""

    def __init__(self, *paces: float | str) -> None:
        self.paces, self.cancelled = paces, []

    async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
        member = int(name.rpartition(".")[2])
        pace = self.paces[member]
        if isinstance(pace, str):
            return Episode(failed(pace))
        await policy.generate(Ask(prompt))
        try:
            await asyncio.sleep(pace)
        except asyncio.CancelledError:
            self.cancelled.append(member)
            raise
        return Episode(Score(float(member)))


@pytest.mark.parametrize(
    ("paces", "kept", "cancelled", "replaced"),
    [
        ((0.0, 9.0, 0.1, 0.0, 9.0), [0, 2, 3], [1, 4], []),
        (("broken", 0.0, 0.0, 0.0, 9.0), [1, 2, 3], [4], ["broken"]),
        (("one", "two", 0.0, "three", 0.1), [0, 2, 4], [], ["two", "three"]),
        ((0.0, 0.0, 0.0, 0.05, 0.05), [0, 1, 2], [3, 4], []),
    ],
)
def test_the_first_rollouts_that_end_well_are_kept(
    tokenizer: Any, paces: tuple[Any, ...], kept: list[int], cancelled: list[int], replaced: list[str]
) -> None:
    """Of three and two redundant ones; a failed one only where there is no other, and no failure is lost."""
    environment = Paced(*paces)
    settings = replace(SETTINGS, redundant_rollouts=2)
    runner = GroupRunner(RecordingEngine(), tokenizer, None, settings, Occupancy(), environment)

    async def scenario() -> Finished:
        await runner.engine.start()
        return await asyncio.wait_for(runner.run(TASK, 0), 5)

    finished = asyncio.run(scenario())
    assert [finished.group.trajectories[places[0]].member for places in finished.group.members] == kept
    assert (sorted(environment.cancelled), finished.replaced) == (cancelled, replaced)
    assert len(finished.texts) == 3


def test_a_group_with_redundant_rollouts_is_cancelled_whole(tokenizer: Any) -> None:
    environment = Paced(0.0, 9.0, 9.0, 9.0, 9.0)
    settings = replace(SETTINGS, redundant_rollouts=2)
    runner = GroupRunner(RecordingEngine(), tokenizer, None, settings, Occupancy(), environment)

    async def scenario() -> None:
        await runner.engine.start()
        running = asyncio.create_task(runner.run(TASK, 0))
        await asyncio.sleep(0.2)
        await runner.cancel(TASK.number, 0)
        with pytest.raises(GroupAborted):
            await asyncio.wait_for(running, 5)

    asyncio.run(scenario())
    assert sorted(environment.cancelled) == [1, 2, 3, 4]
