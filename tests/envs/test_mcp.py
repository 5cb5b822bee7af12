"""Tools of real MCP servers, over pipes and over HTTP: what the model reads, and that no server is left behind."""

from __future__ import annotations

import asyncio
import re
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from test_pool import Policy, is_gone

from asyncrl.envs import mcp as module
from asyncrl.envs.environment import Ask, Episode, Sampled
from asyncrl.envs.mcp import mcp_tools
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.envs.tools import RemoteTool, Toolbox
from asyncrl.envs.wire import Load
from asyncrl.errors import UserError
from asyncrl.task import Task

SERVER = '''
import os, pathlib, sys, time
from mcp.server.mcpserver import Image, MCPServer

server = MCPServer("test")
pathlib.Path(__file__).with_name("pid").write_text(str(os.getpid()))

@server.tool()
def add(a: int, b: int = 1) -> int:
    """The sum."""
    return a + b

@server.tool()
def fail() -> str:
    """Raises."""
    raise RuntimeError("the disk is full")

@server.tool()
def look() -> list:
    """A picture and a word."""
    return ["here", Image(data=b"png", format="png")]

@server.tool()
def secret() -> str:
    """What the environment holds."""
    return str(os.environ.get("SECRET"))

@server.tool()
async def hang() -> str:
    """Blocks the whole server."""
    time.sleep(1000)
    return ""

@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(3)

if sys.argv[1:]:
    server.run(transport="streamable-http", port=int(sys.argv[1]))
else:
    server.run()
'''


@pytest.fixture
def server(tmp_path: Path) -> Path:
    path = tmp_path / "server.py"
    path.write_text(SERVER)
    return path


def pid(server: Path) -> int:
    return int(server.with_name("pid").read_text())


async def answers(tools: list[RemoteTool], *calls: tuple[str, dict[str, Any]], timeout_s: float = 20.0) -> list[str]:
    box = Toolbox(tools, timeout_s)
    found = []
    for name, arguments in calls:
        found += [message["content"] for message in await box.answer([ToolCall("call_0_0", name, arguments)])]
    return found


def test_the_schema_is_the_servers_and_results_are_texts(server: Path) -> None:
    async def scenario() -> tuple[list[str], list[Any] | None]:
        async with mcp_tools(sys.executable, str(server), env={"SECRET": "xyz"}) as tools:
            calls = [
                ("add", {"a": 2, "b": 3}),
                ("add", {"a": "many"}),
                ("fail", {}),
                ("look", {}),
                ("secret", {}),
                ("nope", {}),
            ]
            return await answers(tools, *calls), Toolbox(tools, 1.0).schemas

    said, schemas = asyncio.run(scenario())
    assert said[0] == "5"
    assert re.match(r"Error.*a\b.*valid integer", said[1], re.DOTALL)
    assert re.match("Error.*fail", said[2])
    assert said[3:5] == ["here\n[image/png is left out]", "xyz"]
    assert said[5] == "Error: there is no tool 'nope', only add, fail, look, secret, hang, die"
    add = schemas[0]["function"]
    assert (add["name"], add["description"], add["parameters"]["required"]) == ("add", "The sum.", ["a"])
    assert is_gone(pid(server))


@pytest.mark.parametrize("how", ["hang", "die"])
def test_a_server_that_hangs_or_dies_is_an_observation_and_is_ended(server: Path, how: str) -> None:
    async def scenario() -> tuple[list[str], float]:
        async with mcp_tools(sys.executable, str(server)) as tools:
            return await answers(tools, (how, {}), ("add", {"a": 1}), timeout_s=1.0), time.monotonic()

    said, began = asyncio.run(scenario())
    if how == "hang":
        assert said == ["Error: hang took more than 1 s", "Error: add took more than 1 s"]
    else:
        assert all(re.match("Error: .*closed", text, re.IGNORECASE) for text in said), said
    assert time.monotonic() - began < module._END_S + 2
    assert is_gone(pid(server))


def test_over_http(server: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    process = subprocess.Popen([sys.executable, str(server), str(port)])

    async def scenario() -> list[str]:
        for _ in range(100):
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except OSError:
                await asyncio.sleep(0.2)
        async with mcp_tools(f"http://127.0.0.1:{port}/mcp", headers={"x-test": "1"}) as tools:
            return await answers(tools, ("add", {"a": 2}), ("die", {}), ("add", {"a": 2}), timeout_s=5.0)

    try:
        said = asyncio.run(asyncio.wait_for(scenario(), 60))
    finally:
        process.kill()
        process.wait()
    assert said[0] == "3"
    assert all(text.startswith("Error: ") for text in said[1:])


def test_a_server_that_does_not_start_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_S", 2.0)

    async def use(*command: str) -> None:
        async with mcp_tools(*command):
            raise AssertionError("it has no tools")

    cases = {
        ("/nowhere/server",): "`/nowhere/server` cannot be used: FileNotFoundError",
        (sys.executable, "-c", "pass"): "cannot be used: MCPError: Connection closed",
        ("sleep", "1000"): "`sleep 1000` cannot be used: it did not name its tools within 2 s",
        ("http://127.0.0.1:9/mcp",): "cannot be used: .*",
        (): "takes a command and its arguments, or a URL",
    }
    for command, said in cases.items():
        with pytest.raises(UserError, match=said):
            asyncio.run(use(*command))
    monkeypatch.setitem(sys.modules, "mcp.client.stdio", None)
    with pytest.raises(UserError, match=r"pip install 'asyncrl\[mcp\]'"):
        asyncio.run(use("sleep", "1"))


ENV = """
import pathlib, sys
from asyncrl.envs.mcp import mcp_tools

async def rollout(task, policy):
    async with mcp_tools(sys.executable, task.row["server"]) as tools:
        chat = policy.chat(task.messages, tools=tools)
        reply = await chat.run_tools()
        return {"reward": 1.0, "read": chat.messages[-2]["content"]}
"""


class Calls(Policy):
    """Calls a tool, then says `ok`."""

    def __init__(self, model: Path, tool: str) -> None:
        super().__init__(model)
        self.tool = tool

    async def generate(self, ask: Ask) -> Sampled:
        if self.asks:
            return await super().generate(ask)
        self.asks.append(ask)
        call = f'<tool_call>{{"name": "{self.tool}", "arguments": {{"a": 41}}}}</tool_call>'
        tokens = [*self.tokenizer(call).input_ids, self.tokenizer.eos_token_id]
        return Sampled(tokens, [0.0] * len(tokens), "stop", 0)


def test_in_an_environments_process_the_server_ends_with_its_episode(
    server: Path, tmp_path: Path, tiny_model: Path
) -> None:
    (tmp_path / "env.py").write_text(ENV)

    async def scenario() -> list[tuple[Episode, int]]:
        load = Load("./env.py:rollout", tmp_path, {}, str(tiny_model), {}, 100.0)
        pool = EnvPool(EnvSettings(load, 1, 10.0, 1.0))
        found = []
        try:
            await pool.start()
            for number, tool in enumerate(("add", "hang")):
                task = Task(number, 0, "hi", {"server": str(server)})
                episode = await pool.rollout(task, [5], Calls(tiny_model, tool), f"{number}.0.0")
                assert is_gone(pid(server)), "while the pool goes on"
                found.append(episode)
        finally:
            await pool.close()
        return found

    added, hung = asyncio.run(asyncio.wait_for(scenario(), 100))
    assert (added.score.reward, added.score.notes) == (1.0, {"read": "42"})
    assert hung.score.error == "the episode timed out after 10 s (env.episode_s)"
