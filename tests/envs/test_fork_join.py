"""recipes/fork_join_env.py: workers beside their organizer, what each reads, the critical path, and the reward."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import fork_join_env
import pytest
from fork_join_env import Organized
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import LIMITS, QUESTION, TOKENIZER, Script, ScriptedPolicy, run, spans, trained

from asyncrl.rewards.score import Score
from asyncrl.rollout.policy import SamplingLimits
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.task import Task

ORGANIZER = "Go."


def organized(
    organizer: str, workers: Mapping[str, str], agents: int = 10, limits: SamplingLimits = LIMITS
) -> tuple[Organized, ScriptedPolicy, float]:
    """workers: what each writes, by its sub-query. A token takes a second, and the ends of turns no time."""
    scripts = {query: Script.of((text, 1.0)) for query, text in workers.items()}
    policy = ScriptedPolicy({ORGANIZER: Script.of((organizer, 1.0)), **scripts}, limits)
    how, took_s = run(fork_join_env.organize(policy, QUESTION, [], agents))
    return how, policy, took_s


def size(text: str) -> int:
    return len(TOKENIZER(text, add_special_tokens=False).input_ids)


def test_workers_are_sequences_of_their_own_and_what_they_return_is_read() -> None:
    text = "<FORK1>first</FORK1><FORK2>second</FORK2><JOIN2>, <JOIN1>done"
    how, policy, _ = organized(text, {"first": "one", "second": "so <RETURN> two </RETURN> and more"})
    assert (how.answer, how.joins, how.error) == ("done", 2, "")
    by_start = {spans(t)[0][1][:4]: t for t in policy.trajectories}
    assert spans(by_start["<FOR"]) == [
        (True, "<FORK1>first</FORK1><FORK2>second</FORK2><JOIN2>"),
        (False, "two</JOIN2>\n"),
        (True, ", <JOIN1>"),
        (False, "one</JOIN1>\n"),
        (True, "done</s>"),
    ]
    assert spans(by_start["one<"]) == [(True, "one</s>")]
    assert spans(by_start["so <"]) == [(True, "so <RETURN> two </RETURN>")]
    assert "first" in TOKENIZER.decode(by_start["one<"].tokens[: by_start["one<"].prompt_length])


def test_no_mark_goes_across_what_is_read() -> None:
    """One token ends the join and begins another."""
    how, policy, _ = organized("<FORK1>first</FORK1><JOIN1><JOIN1>", {"first": "one"})
    assert how.error == ""
    organizer = max((spans(t) for t in policy.trajectories), key=len)
    assert organizer[1:] == [(False, "one</JOIN1>\n"), (True, "JOIN1></s>")]


def test_all_sequences_are_one_rollout_with_one_reward() -> None:
    _, policy, _ = organized("<FORK1>first</FORK1><JOIN1>", {"first": "one"})
    group = Group(0, 0, 0, tuple(policy.record.trajectories([1], Score(0.5), "stop")))
    assert group.members == [[0, 1]]
    assert [t.reward for t in group.trajectories] == [0.5, 0.5]


@dataclass(frozen=True)
class Plan:
    """Text of an organizer, and what the paper's recurrence says of it."""

    text: str
    workers: dict[str, str]
    latency: int


def plan(rng: random.Random) -> Plan:
    """l_i = max(l_{i-1} + f_i, l_{j-1} + f_j up to fork k + q_k): fragment i ends with the join of k, that j forked."""
    number = rng.randint(1, 6)
    order = [("fork", i) for i in range(1, number + 1)]
    for i in rng.sample(range(1, number + 1), rng.randint(0, number)):
        order.insert(rng.randint(order.index(("fork", i)) + 1, len(order)), ("join", i))
    # A word of its own between all marks, so that no token spans two of them.
    workers = {f"part{i}": "w" * rng.randint(1, 120) for i in range(1, number + 1)}
    text, done, fragment, forked = "", 0, 0, {}
    for action, i in order:
        words = " " + "thinking " * rng.randint(0, 6)
        mark = f"<FORK{i}>part{i}</FORK{i}>" if action == "fork" else f"<JOIN{i}>"
        text += words + mark
        fragment += size(words + mark)
        if action == "fork":
            forked[i] = done + fragment
        else:
            # The end of a turn is a token too.
            done, fragment = max(done + fragment, forked[i] + len(workers[f"part{i}"]) + 1), 0
    rest = " so it is"
    return Plan(text + rest, workers, done + fragment + size(rest) + 1)


@pytest.mark.parametrize("seed", range(60))
def test_the_critical_path_is_that_of_the_recurrence_and_of_the_clock(seed: int) -> None:
    made = plan(random.Random(seed))
    scripts = {query: Script.of((text, 1.0)).closed(1.0) for query, text in made.workers.items()}
    policy = ScriptedPolicy({ORGANIZER: Script.of((made.text, 1.0)).closed(1.0), **scripts})
    how, took_s = run(fork_join_env.organize(policy, QUESTION, [], 10))
    assert how.error == ""
    assert how.latency == made.latency
    assert took_s == made.latency


def test_concurrency_is_the_mean_number_of_agents_that_write() -> None:
    """By counting who writes at each step."""
    text = "<FORK1>first</FORK1> <FORK2>second</FORK2> and <JOIN1> <JOIN2> sum"
    workers = {"first": "a" * 50, "second": "b" * 80}
    how, _, _ = organized(text, workers)
    starts = {name: size(text[: text.index(name) + len(name) + len("</FORK1>")]) for name in workers}
    first = range(starts["first"], starts["first"] + 51)
    second = range(starts["second"], starts["second"] + 81)
    joined = size(text[: text.index("<JOIN2>") - 1])
    organizer = [*range(joined), *range(first.stop, first.stop + 8), *range(second.stop, how.latency)]
    active = [sum(t in who for who in (first, second, organizer)) for t in range(how.latency)]
    assert how.latency == second.stop + size(" sum") + 1
    assert how.concurrency == pytest.approx(sum(active) / len(active))


def test_without_a_fork_one_agent_is_at_work() -> None:
    how, _, _ = organized("it is so", {})
    assert (how.concurrency, how.latency, how.joins) == (1.0, 9, 0)


@pytest.mark.parametrize(
    ("num_tokens", "latency", "agents", "reward"),
    [(100, 100, 4, 0.5), (150, 100, 4, 0.75), (200, 100, 4, 1.0), (390, 100, 4, 1.0), (0, 0, 4, 0.0)],
)
def test_the_concurrency_reward_is_that_of_the_paper(num_tokens: int, latency: int, agents: int, reward: float) -> None:
    """min(eta / c, tau) / tau, with tau = 0.5."""
    assert Organized(num_tokens=num_tokens, latency=latency).concurrency_reward(agents) == reward


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("<JOIN1>", "<JOIN1>: there is no such worker"),
        ("<FORK1>a1</FORK1><FORK1>a2</FORK1>", "<FORK1>: 1 was forked before"),
        ("<FORK1>a1</FORK1><JOIN1> <FORK1>a2</FORK1>", "<FORK1>: 1 was forked before"),
        ("<FORK1>a1</FORK1><JOIN1> <JOIN1>", "<JOIN1>: there is no such worker"),
        ("<FORK1>a1</FORK1><FORK2>a2</FORK2><FORK3>a3</FORK3>", "<FORK3>: no agent of 3 is free"),
        ("<FORK1>a1</FORK1><JOIN1> <FORK2>a2</FORK2><FORK3>a3</FORK3><JOIN3>", ""),
        ("<FORK1>a1 <JOIN2> </FORK1><JOIN1>", ""),
        ("<FORK1>a1</FORK2><JOIN1> </FORK1><JOIN1>", ""),
        ("<FORK0>a1</FORK0>", ""),
    ],
)
def test_what_is_out_of_order(text: str, error: str) -> None:
    how, policy, _ = organized(text + " words", {"a1": "one", "a2": "two", "a3": "three"}, agents=3)
    assert how.error == error
    for t in policy.trajectories:
        trained(t)


def test_a_worker_that_is_cut_off_returns_what_it_has() -> None:
    limits = replace(LIMITS, max_new_tokens=30)
    how, policy, _ = organized("<FORK1>a1</FORK1><JOIN1>yes", {"a1": "z" * 100}, limits=limits)
    assert (how.answer, how.error) == ("yes", "")
    assert ("z" * 30) + "</JOIN1>\n" in [text for is_written, text in spans(policy.trajectories[0]) if not is_written]


def test_an_episode_that_is_cancelled_leaves_no_worker() -> None:
    async def scenario() -> None:
        text = "<FORK1>a1</FORK1><FORK2>a2</FORK2><JOIN1>"
        workers = {name: Script.of(("w" * 1000, 1.0)) for name in ("a1", "a2")}
        policy = ScriptedPolicy({ORGANIZER: Script.of((text, 1.0)), **workers})
        episode = asyncio.create_task(fork_join_env.organize(policy, QUESTION, [], 3))
        await asyncio.sleep(200)
        assert len(policy.record.running) == 2
        episode.cancel()
        with pytest.raises(asyncio.CancelledError):
            await episode
        assert not policy.record.running

    run(scenario())


def test_a_worker_that_nobody_joins_is_cancelled() -> None:
    how, policy, took_s = organized("<FORK1>a1</FORK1>no", {"a1": "w" * 1000})
    assert (how.answer, how.joins) == ("no", 0)
    assert took_s < 50
    assert not policy.record.running
    assert how.concurrency == 1.0, "what it wrote counts for nothing"


SCRAPS = ["<FORK1>a1</FORK1>", "<FORK2>a2</FORK2>", "<JOIN1>", "<JOIN2>", "so ", "<", "><", "<FORK", "</FORK1>", "é"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(SCRAPS), max_size=10), st.lists(st.integers(1, 100)), st.integers(1, 60))
def test_whatever_the_organizer_writes(texts: list[str], cuts: list[int], length: int) -> None:
    """What was sampled is trained, each token once and as it was, and what was read is not; no task is left (`run`)."""
    organizer, worker = Script.of(("".join(texts), 1.0), cuts=cuts), Script.of(("w" * length, 1.0))
    policy = ScriptedPolicy({ORGANIZER: organizer, "a1": worker, "a2": worker})
    how, _ = run(fork_join_env.organize(policy, QUESTION, [], 3))
    by_organizer: dict[bool, list[Trajectory]] = {True: [], False: []}
    for t in policy.trajectories:
        by_organizer[ORGANIZER in TOKENIZER.decode(t.tokens[: t.prompt_length])].append(t)
    (one,), others = by_organizer[True], by_organizer[False]
    whole = [*organizer.tokens, TOKENIZER.eos_token_id]
    assert trained(one) == (whole if not how.error else whole[: len(trained(one))])
    assert all(trained(t) == [*worker.tokens, TOKENIZER.eos_token_id] for t in others)
    assert how.joins <= len(others) <= 2
    read = [text for is_written, text in spans(one) if not is_written]
    assert "".join(read).count("w" * length + "</JOIN") == how.joins


@pytest.mark.parametrize(
    ("answer", "reward", "right"),
    [("8 + 11 = 19", 3 / 3, 1.0), ("19", 3 / 3, 1.0), ("20", 2 / 3, 0.0), ("", 2 / 3, 0.0)],
)
def test_the_recipe_scores_the_answer(answer: str, reward: float, right: float) -> None:
    text = f"<FORK1>3 + 5</FORK1><FORK2>2 + 9</FORK2><JOIN1> <JOIN2>{answer}"
    scored = rollout(text, LIMITS)
    assert (scored["reward"], scored["right"], scored["joins"], scored["bad_format"]) == (reward, right, 2, 0.0)
    weighed = rollout(text, LIMITS, concurrency_weight=0.1)
    assert weighed["reward"] == pytest.approx(reward + 0.1 * min(weighed["concurrency"] / 3, 0.5) / 0.5)


def test_what_is_out_of_order_or_cut_off_earns_nothing() -> None:
    assert rollout("19", LIMITS)["reward"] == 1 / 3
    assert rollout("<FORK1>3 + 5</FORK1>20", LIMITS)["reward"] == 1 / 6
    assert rollout("<FORK1>2 + 9</FORK1><JOIN1>20", LIMITS)["reward"] == 2 / 6
    out_of_order = rollout("<JOIN1>19", LIMITS, concurrency_weight=0.1)
    assert (out_of_order["reward"], out_of_order["bad_format"]) == (0.0, 1.0)
    cut_off = rollout("thinking " * 30 + "19", replace(LIMITS, max_new_tokens=20))
    assert (cut_off["reward"], cut_off["right"], cut_off["truncated"]) == (0.0, 0.0, True)


def rollout(text: str, limits: SamplingLimits, **kwargs: Any) -> dict[str, Any]:
    scripts = {"3 + 5 + 2 + 9": text, "3 + 5": "3 + 5 = 8", "2 + 9": "2 + 9 = 11"}
    policy = ScriptedPolicy({f"user\n{key}<|im_end|>": Script.of((t, 1.0)) for key, t in scripts.items()}, limits)
    task = Task(0, 0, "", {"metadata": {"expression": "3 + 5 + 2 + 9"}, "answer": "19"})
    return {**run(fork_join_env.rollout(task, policy, **kwargs))[0], "truncated": policy.truncated}
