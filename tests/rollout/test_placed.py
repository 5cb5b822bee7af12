"""A request for placed rewards goes to an actor that is there, and is answered, or failed in words."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from ray.exceptions import RayActorError

from asyncrl.rewards.score import RewardRequest, Score
from asyncrl.rollout.placed import PlacedRewards

REQUEST = RewardRequest("prompt", ["a", "b"], [[1], [2]], ["stop", "stop"], {})
SCORES = [Score(0.0), Score(1.0)]


class Actor:
    """A handle. `dies`: under so many requests; it is there again at once if it `returns`, else with `returned`."""

    def __init__(self, dies: int = 0, hangs: bool = False, returns: bool = False) -> None:
        self.dies, self.hangs, self.asked, self.pinged = dies, hangs, 0, 0
        self.returned, self.was_pinged = asyncio.Event(), asyncio.Event()
        if returns:
            self.returned.set()
        self.score, self.ping = SimpleNamespace(remote=self._score), SimpleNamespace(remote=self._ping)

    async def _score(self, name: str, request: RewardRequest) -> list[Score]:
        assert (name, request) == ("held", REQUEST)
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if self.dies:
            self.dies -= 1
            raise RayActorError
        return SCORES

    async def _ping(self) -> None:
        self.pinged += 1
        self.was_pinged.set()
        await self.returned.wait()


def asking(actors: Callable[[], list[Actor]], ask: Callable[..., Any]) -> None:
    async def scene() -> None:
        there = actors()
        rewards = PlacedRewards(there, "held", 5.0)  # type: ignore[arg-type]
        await asyncio.wait_for(ask(rewards, *there), 30)
        rewards.close()

    asyncio.run(scene())


def test_who_is_lost_is_asked_again_once_it_has_returned() -> None:
    async def ask(rewards: PlacedRewards, lost: Actor, other: Actor) -> None:
        for _ in range(3):
            assert await rewards.score(REQUEST) == SCORES
            await asyncio.sleep(0)
        assert (lost.asked, lost.pinged, other.asked) == (1, 1, 3)
        lost.returned.set()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert await rewards.score(REQUEST) == SCORES
        assert (lost.asked, other.asked) == (2, 3)

    asking(lambda: [Actor(dies=1), Actor()], ask)


def test_requests_go_to_the_actor_that_has_fewest() -> None:
    async def ask(rewards: PlacedRewards, *actors: Actor) -> None:
        requests = [asyncio.create_task(rewards.score(REQUEST)) for _ in range(6)]
        await asyncio.sleep(0.01)
        assert [actor.asked for actor in actors] == [2, 2, 2]
        for request in requests:
            request.cancel()
        await asyncio.wait(requests)
        requests = [asyncio.create_task(rewards.score(REQUEST)) for _ in range(3)]
        await asyncio.sleep(0.01)
        assert [actor.asked for actor in actors] == [3, 3, 3], "what was cancelled is in flight no more"
        for request in requests:
            request.cancel()

    asking(lambda: [Actor(hangs=True) for _ in range(3)], ask)


def test_a_request_under_which_every_actor_dies_has_failed_and_says_so() -> None:
    async def ask(rewards: PlacedRewards, *actors: Actor) -> None:
        scores = await rewards.score(REQUEST)
        assert [score.reward for score in scores] == [None, None]
        assert scores[0].error == "actors of rewards.placement died under it 4 times"
        assert sum(actor.asked for actor in actors) == 4

    asking(lambda: [Actor(dies=9, returns=True), Actor(dies=9, returns=True)], ask)


def test_if_all_are_lost_the_first_that_returns_is_asked() -> None:
    async def ask(rewards: PlacedRewards, one: Actor, other: Actor) -> None:
        request = asyncio.create_task(rewards.score(REQUEST))
        await one.was_pinged.wait()
        await other.was_pinged.wait()
        assert not request.done()
        other.returned.set()
        assert await request == SCORES
        assert (one.asked, other.asked) == (1, 2)

    asking(lambda: [Actor(dies=1), Actor(dies=1)], ask)


def test_without_an_answer_in_time_the_rewards_have_failed() -> None:
    async def ask(rewards: PlacedRewards, actor: Actor) -> None:
        rewards = PlacedRewards([actor], "held", 0.05)  # type: ignore[list-item]
        [error, _] = [score.error for score in await rewards.score(REQUEST)]
        assert error == "no answer from rewards.placement within 0.05 s (half of deadlines.rollout_s)"

    asking(lambda: [Actor(hangs=True)], ask)
