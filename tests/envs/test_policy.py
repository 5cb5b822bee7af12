"""What an environment samples with: agents, rewards of agents and turns, and what ends with the episode."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from chats import CHATML, tokenizer

from asyncrl.envs.environment import Ask, Sampled
from asyncrl.envs.policy import Policy
from asyncrl.envs.template import Template
from asyncrl.task import Task


class Gateway:
    token = "secret"

    def __init__(self) -> None:
        self.open_addresses: list[str] = []

    def open(self, session: Any) -> str:
        self.open_addresses.append(f"http://here/s/{len(self.open_addresses)}/v1")
        return self.open_addresses[-1]

    def close(self, address: str) -> None:
        self.open_addresses.remove(address)


class Host:
    """Answers one token; every call is a turn."""

    tool_timeout_s, temperature = 1.0, 1.0

    def __init__(self) -> None:
        self.template, self.gateway, self.asks = Template(tokenizer(CHATML, "<|im_end|>")), Gateway(), []

    def warn(self, text: str) -> None:
        raise AssertionError(text)

    def require(self, name: str) -> None:
        """It runs."""

    async def ask(self, name: str, ask: Ask) -> Sampled:
        self.asks.append(ask)
        return Sampled([self.template.end], [0.0], "stop", 0, len(self.asks) - 1 if ask.train else -1)


def made() -> tuple[Policy, Host]:
    host = Host()
    return Policy(host, "0.0.0", Task(0, 0, "hi", {}), [1]), host


def test_agents_ask_under_their_names() -> None:
    policy, host = made()

    async def scenario() -> None:
        await policy.chat().reply()
        await policy.agent("judge").chat().reply()

    asyncio.run(scenario())
    assert [ask.agent for ask in host.asks] == ["", "judge"]


def test_endpoints_of_all_agents_end_with_the_episode() -> None:
    policy, host = made()
    judge = policy.agent("judge")
    assert len({policy.base_url, judge.base_url, judge.base_url}) == 2
    policy.end()
    assert host.gateway.open_addresses == []


def test_rewards_of_agents_are_theirs() -> None:
    policy, _ = made()
    policy.agent("judge").score(0.5)
    assert policy.rewards == {"judge": 0.5}
    with pytest.raises(ValueError, match="returns its own"):
        policy.score(1.0)
    with pytest.raises(ValueError, match="no finite number"):
        policy.agent("judge").score(float("nan"))
    with pytest.raises(ValueError, match="not 'the judge'"):
        policy.agent("the judge")


def test_a_reward_is_the_last_turns_or_that_of_the_one_named() -> None:
    policy, _ = made()

    async def scenario() -> None:
        first = await policy.chat().reply()
        await policy.chat(train=False).reply()
        policy.reward(0.25)
        await policy.chat().reply()
        policy.reward(1.0)
        policy.reward(0.5, first.turn)

    with pytest.raises(ValueError, match="no turn that is trained"):
        policy.reward(1.0)
    asyncio.run(scenario())
    assert policy.turn_rewards == {0: 0.75, 2: 1.0}
    with pytest.raises(ValueError, match="no finite number"):
        policy.reward(float("inf"))
