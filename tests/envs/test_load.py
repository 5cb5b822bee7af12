"""What `env:` may name, and what is said of anything else."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from asyncrl.envs.chat import Reply
from asyncrl.envs.environment import ContextFull
from asyncrl.envs.load import check, load
from asyncrl.errors import UserError
from asyncrl.task import Task

CODE = '''
import threading

MADE = []

async def rollout(task, policy, bonus=0.0):
    return task.number + bonus

def run(task, base_url, api_key):
    is_main = threading.current_thread() is threading.main_thread()
    return {"reward": 1.0, "where": f"{base_url} {api_key}", "main": is_main}

def plain(task, policy): ...
def needs(task, policy, what): ...
async def aneeds(task, policy, what): ...
async def samples_nothing(task): ...
NOTHING = 5

class Empty: ...

class Holds:
    def __init__(self, base=1.0):
        MADE.append(self)
        self.base = base

    async def rollout(self, task, policy):
        return self.base + task.number

class Game:
    """Says 'no' until it has been asked three times."""
    def __init__(self, fails=False):
        self.fails = fails

    def reset(self, task):
        self.turns = 0
        return "guess"

    def step(self, action):
        self.turns += 1
        if self.fails:
            raise RuntimeError("the board is broken")
        return f"no {action}", 0.5, self.turns == 3

    def close(self):
        MADE.append("closed")

class Five(Game):
    def reset(self, task):
        super().reset(task)
        return "guess", {"seed": 1}

    def step(self, action):
        return "no", 1.0, True, False, {"won": 1.0}

class Silent(Game):
    def reset(self, task):
        return None

    async def step(self, action):
        return "over", 2.0, True
'''


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "env.py").write_text(CODE)
    return tmp_path


class Conversation:
    def __init__(self, messages: Any, replies: list[Any]) -> None:
        self.messages, self.replies = list(messages), replies

    def add(self, text: str) -> None:
        self.messages.append({"role": "user", "content": text})

    async def reply(self) -> Reply:
        answer = self.replies.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


class Policy:
    base_url, api_key = "http://here", "secret"

    def __init__(self, *replies: Any) -> None:
        self.replies, self.truncated = list(replies), False
        self.rewards: list[float] = []

    def chat(self, messages: Any) -> Conversation:
        self.conversation = Conversation(messages, self.replies)
        return self.conversation

    def reward(self, reward: float) -> None:
        """Of the turn."""
        self.rewards.append(reward)

    def truncate(self) -> None:
        self.truncated = True


def says(text: str, reason: str = "stop") -> Reply:
    return Reply(text, None, [], reason, {})


def rolled(folder: Path, name: str, policy: Policy | None = None, **kwargs: Any) -> Any:
    rollout = load(f"./env.py:{name}", folder, kwargs)
    return asyncio.run(rollout(Task(3, 0, "hello", {}), policy or Policy()))


def test_functions_and_classes_are_called_with_what_they_take(folder: Path) -> None:
    assert rolled(folder, "rollout") == 3
    assert rolled(folder, "rollout", bonus=0.5) == 3.5
    assert rolled(folder, "Holds", base=2.0) == 5.0
    assert rolled(folder, "run") == {"reward": 1.0, "where": "http://here secret", "main": False}


def test_a_game_is_played_to_its_end_and_closed(folder: Path) -> None:
    policy = Policy(says("a"), says("b"), says("c"))
    assert rolled(folder, "Game", policy) == {"reward": 1.5}
    contents = [message["content"] for message in policy.conversation.messages]
    assert contents == ["hello\n\nguess", "no a", "no b", "no c"], "what reset says is in the first prompt"
    assert not policy.truncated
    assert policy.rewards == [0.5, 0.5, 0.5], "each step's is its turn's"


def test_gymnasiums_own_form_and_async_steps(folder: Path) -> None:
    assert rolled(folder, "Five", Policy(says("a"))) == {"reward": 1.0, "won": 1.0}
    policy = Policy(says("a"))
    assert rolled(folder, "Silent", policy) == {"reward": 2.0}
    assert policy.conversation.messages[0]["content"] == "hello"


@pytest.mark.parametrize("last", [says("half an act", "length"), ContextFull("full")])
def test_a_game_that_is_cut_off_keeps_its_reward(folder: Path, last: Any) -> None:
    policy = Policy(says("a"), last)
    assert rolled(folder, "Game", policy) == {"reward": 0.5}
    assert policy.truncated


def test_a_game_that_does_not_fit_is_no_game_of_reward_0(folder: Path) -> None:
    with pytest.raises(ContextFull):
        rolled(folder, "Game", Policy(ContextFull("the first prompt is too long")))


def test_a_game_that_raises_is_closed(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="the board is broken"):
        rolled(folder, "Game", Policy(says("a")), fails=True)
    import importlib

    from asyncrl.folders import module_name

    assert "closed" in importlib.import_module(module_name(folder / "env.py")).MADE


def test_nothing_is_made_to_look_at_it(folder: Path) -> None:
    check("./env.py:Holds", folder, {"base": 2.0})
    import importlib

    from asyncrl.folders import module_name

    assert importlib.import_module(module_name(folder / "env.py")).MADE == []


@pytest.mark.parametrize(
    ("name", "kwargs", "said"),
    [
        ("NOTHING", {}, "is of type int, neither a function nor a class"),
        ("Empty", {}, r"a class with neither rollout\(task, policy\) nor reset\(task\) and step\(action\)"),
        ("plain", {}, "takes the policy, whose calls are awaited: write async def"),
        ("aneeds", {}, r"has a parameter 'what' that is not filled .*; set env.kwargs.what, or give it a default"),
        ("samples_nothing", {}, "takes neither policy nor base_url, so it can sample nothing"),
        ("Holds", {"nope": 1}, "takes no 'nope', only base"),
        ("rollout", {"nope": 1}, "takes no 'nope', only bonus, policy, task"),
        ("rollout", {"task": 1}, "'task' is given to every environment"),
        ("missing", {}, "has no 'missing'"),
    ],
)
def test_what_is_no_environment(folder: Path, name: str, kwargs: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        check(f"./env.py:{name}", folder, kwargs)
