"""Tasksets of verifiers: with a stand-in for the program that imports the package, and with the package itself where
ASYNCRL_VERIFIERS_PYTHON names a Python that has it (`pip install verifiers==0.4.*` in a virtual environment).
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from test_chat import Script
from test_gateway import Server, asked
from test_mcp import Calls
from test_pool import Policy

from asyncrl.envs import verifiers_tasksets as module
from asyncrl.envs.environment import ContextFull, Episode
from asyncrl.envs.load import check
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.verifiers_tasksets import Rollouts, load_tasks
from asyncrl.envs.wire import Load
from asyncrl.errors import UserError
from asyncrl.task import Task

STAND_IN = """
import json, os, sys, time, urllib.request

asked = json.loads(sys.stdin.readline())

def say(message):
    print(json.dumps(message), flush=True)

if sys.argv[1] == "tasks":
    if asked["taskset"].get("broken"):
        say({"error": "ValueError: no such\\n  split"})
        sys.exit(1)
    for number in range(asked["size"] or 3):
        say({"prompt": [{"role": "user", "content": f"What is {number}?"}], "task": {"idx": number}})
    sys.exit()

if asked["env"].get("broken"):
    say({"error": "ValueError: no such harness"})
    sys.exit(1)
say({"ready": True})
for line in sys.stdin:
    todo = json.loads(line)
    if "cancel" in todo:
        open(os.environ["CANCELLED"], "a").write(f"{todo['cancel']}\\n")
        continue
    task = todo["task"]
    if task.get("die"):
        os._exit(3)
    if task.get("hang"):
        continue
    body = {"model": todo["model"], "messages": [{"role": "user", "content": "hi"}]}
    headers = {"authorization": "Bearer " + os.environ["ASYNCRL_API_KEY"]}
    url = asked["base_url"] + "/chat/completions"
    try:
        urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)).read()
    except urllib.error.HTTPError as error:
        say({"run": todo["run"], "error": f"ProviderError: {error}"})
        continue
    say({"run": todo["run"], "reward": 0.5, "metrics": {"turns": 1.0}, "truncated": False})
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "program.py"
    path.write_text(STAND_IN)
    monkeypatch.setattr(module, "_PROGRAM", path)
    monkeypatch.setenv("CANCELLED", str(tmp_path / "cancelled"))
    return path


class Episodes:
    """What `Rollouts` needs of the policy of an episode."""

    def __init__(self, server: Server) -> None:
        self.base_url, self.api_key, self.session = server.url, server.gateway.token, server.session
        self.tokenizer, self.truncated = server.session._template.tokenizer, False

    def truncate(self) -> None:
        self.truncated = True


async def end(environment: Rollouts) -> None:
    """Its program, which else ends with the process."""
    process = (await environment._starting)._process
    process.stdin.close()
    await asyncio.wait_for(process.wait(), 20)


def row(name: str = "sums", **task: Any) -> dict[str, Any]:
    played = {"python": sys.executable, "path": [], "taskset": {"id": name}}
    return {"prompt": "hi", "task": task, "verifiers": played}


def test_rows_are_the_tasks_in_order_and_say_what_plays_them(stand_in: Path) -> None:
    rows = load_tasks("sums", {"size": 2, "split": "test"})
    assert [row["prompt"][0]["content"] for row in rows] == ["What is 0?", "What is 1?"]
    assert rows[1]["task"] == {"idx": 1}
    taskset = {"id": "sums", "split": "test"}
    assert rows[0]["verifiers"] == {"python": sys.executable, "path": [os.getcwd()], "taskset": taskset}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"broken": True}, "verifiers:sums cannot be loaded by .*: ValueError: no such split$"),
        ({"python": "/nowhere/python"}, "data.options.python: there is no program /nowhere/python"),
        ({"size": "many"}, "data.options.size is 'many'"),
        ({"size": 0}, "data.options.size is 0"),
    ],
)
def test_what_cannot_be_loaded_is_one_sentence(stand_in: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_tasks("sums", options)


def test_without_the_package_it_says_what_to_install() -> None:
    with pytest.raises(UserError, match=r"No module named 'verifiers.*pip install verifiers==0\.4\.\*"):
        load_tasks("sums", {})


def test_rollouts_share_a_program_and_are_scored(stand_in: Path) -> None:
    script = Script(*["yes"] * 4)

    async def do(server: Server) -> list[Any]:
        environment = Rollouts("sums")
        policies = [Episodes(server) for _ in range(4)]
        todo = [environment.rollout(Task(i, i, "hi", row()), policy) for i, policy in enumerate(policies)]
        ended = await asyncio.gather(*todo)
        await end(environment)
        return ended

    assert asked(script, do) == [{"turns": 1.0, "reward": 0.5}] * 4
    assert len(script.asks) == 4


def test_a_program_that_ends_fails_its_rollouts_and_the_next_begins_another(stand_in: Path) -> None:
    async def do(server: Server) -> Any:
        environment, policy = Rollouts("sums"), Episodes(server)
        hanging = asyncio.create_task(environment.rollout(Task(0, 0, "hi", row(hang=True)), policy))
        await asyncio.sleep(0.5)
        with pytest.raises(UserError, match=r"verifiers' process ended \(exit code 3\)"):
            await environment.rollout(Task(0, 0, "hi", row(die=True)), policy)
        with pytest.raises(UserError, match="verifiers' process ended"):
            await hanging
        ended = await environment.rollout(Task(0, 0, "hi", row()), policy)
        await end(environment)
        return ended

    assert asked(Script("yes"), do) == {"turns": 1.0, "reward": 0.5}


def test_a_rollout_that_is_cancelled_is_cancelled_there(stand_in: Path, tmp_path: Path) -> None:
    async def do(server: Server) -> None:
        environment, policy = Rollouts("sums"), Episodes(server)
        hanging = asyncio.create_task(environment.rollout(Task(0, 0, "hi", row(hang=True)), policy))
        await asyncio.sleep(0.5)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await environment.rollout(Task(0, 0, "hi", row()), policy)  # behind it
        assert (tmp_path / "cancelled").read_text() == "0\n"
        await end(environment)

    asked(Script("yes"), do)


def test_a_full_context_is_the_policys_doing_and_other_errors_are_the_tasksets(stand_in: Path) -> None:
    async def do(server: Server) -> None:
        environment = Rollouts("sums")
        with pytest.raises(ContextFull, match="full"):
            await environment.rollout(Task(0, 0, "hi", row()), Episodes(server))
        await end(environment)
        with pytest.raises(UserError, match=r"verifiers cannot start by .*: ValueError: no such harness"):
            await Rollouts("sums", broken=True).rollout(Task(0, 0, "hi", row()), Episodes(server))
        for wrong in ({}, row("others")):
            with pytest.raises(UserError, match=r"env verifiers:sums plays the tasks of data.path=verifiers:sums"):
                await Rollouts("sums").rollout(Task(0, 0, "hi", wrong), Episodes(server))

    asked(Script(), do)
    with pytest.raises(UserError, match=r"settings of a taskset are data.options"):
        Rollouts("sums", taskset={"split": "test"})
    check("verifiers:sums", Path(), {"agent": {"max_turns": 5}, "renderer": {"name": "qwen3"}})


# -- with the package

PYTHON = os.environ.get("ASYNCRL_VERIFIERS_PYTHON")
needs_the_package = pytest.mark.skipif(PYTHON is None, reason="ASYNCRL_VERIFIERS_PYTHON names no Python with verifiers")


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    monkeypatch.chdir(Path(__file__).parent)
    return load_tasks("sums_taskset", {"python": PYTHON, "shift": 40})


def play(
    rows: list[dict[str, Any]], policies: list[Any], model: Path, episode_s: float = 200.0, **kwargs: Any
) -> list[Episode]:
    """In a real process of environments, at once."""

    async def scenario() -> list[Episode]:
        load = Load("verifiers:sums_taskset", Path(), kwargs, str(model), {}, 5.0)
        pool = EnvPool(EnvSettings(load, 1, episode_s, 1.0))
        try:
            await pool.start()
            todo = [
                pool.rollout(Task(i, i, row["prompt"], row), [5], policy, f"{i}.0.0")
                for i, (row, policy) in enumerate(zip(rows, policies, strict=True))
            ]
            return await asyncio.gather(*todo)
        finally:
            await pool.close()

    return asyncio.run(asyncio.wait_for(scenario(), 250))


@needs_the_package
def test_the_tasks_of_a_taskset_are_rows(rows: list[dict[str, Any]]) -> None:
    system = {"role": "system", "content": "Be brief."}
    assert rows[1]["prompt"] == [system, {"role": "user", "content": "What is 41 + 1?"}]
    assert rows[4]["prompt"] == [system, {"role": "user", "content": "sum 4"}], "its user speaks first"
    assert (rows[1]["task"]["idx"], rows[1]["task"]["answer"]) == (1, "42")
    with pytest.raises(UserError, match="shif Extra inputs are not permitted"):
        load_tasks("sums_taskset", {"python": PYTHON, "shif": 40})


@needs_the_package
def test_a_tasksets_rollouts(rows: list[dict[str, Any]], tiny_model: Path) -> None:
    """One is right, one calls a tool of the taskset, one's reward fails, one's hangs, one has no room."""
    policies = [Policy(tiny_model), Calls(tiny_model, "calculator_add"), *(Policy(tiny_model) for _ in range(3))]
    policies[4].asks = [None] * 3
    rows[4] = rows[0]
    easy, tool, broken, slow, full = play(rows, policies, tiny_model, episode_s=100.0)
    assert easy.score.error is None
    assert (easy.score.reward, easy.finish_reason) == (1.5, "stop")
    assert easy.score.extras == {"turns": 1.0, "right": 1.0, "short": 0.5}
    assert (tool.score.reward, tool.score.extras["turns"]) == (1.5, 2.0)
    first, second = policies[1].asks
    assert second.tokens[: len(first.tokens)] == first.tokens, "what was sampled is not rendered again"
    assert "TaskError" in broken.score.error
    assert "the judge is away" in broken.score.error
    assert slow.score.error == "the episode timed out after 100 s (env.episode_s)"
    assert (full.score and full.score.reward, full.finish_reason) == (0.5, "length")


@needs_the_package
def test_a_tasksets_rollouts_by_tokens(rows: list[dict[str, Any]], tiny_model: Path) -> None:
    """As `renderers` renders them: the same prompt as the chat template's."""
    policy = Policy(tiny_model)
    (episode,) = play(rows[:1], [policy], tiny_model, renderer={"name": "default", "tool_parser": "qwen3"})
    assert (episode.score.reward, episode.score.error) == (1.5, None)
    assert policy.asks[0].tokens == policy.tokenizer.apply_chat_template(
        rows[0]["prompt"], add_generation_prompt=True, return_dict=False
    )


@needs_the_package
@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"agent": {"harness": {"id": "bash"}}}, "runs commands of the model; say where"),
        ({"agent": {"harness": {"id": "nope"}}}, "harness 'nope' not found"),
        ({"agnt": {}}, "agnt Extra inputs are not permitted"),
        ({"id": "best_of_n", "nothing": 1}, "nothing"),
    ],
)
def test_settings_that_verifiers_does_not_take(
    rows: list[dict[str, Any]], tiny_model: Path, kwargs: dict[str, Any], said: str
) -> None:
    (episode,) = play(rows[:1], [Policy(tiny_model)], tiny_model, **kwargs)
    assert "verifiers cannot start" in episode.score.error
    assert said in episode.score.error
