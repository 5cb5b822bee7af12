"""The environments of recipes/, played by a script in place of a model."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from chats import THINKING, tokenizer
from sandboxes import needs_a_sandbox

from asyncrl.envs.chat import Chat
from asyncrl.envs.environment import Ask, ContextFull, Sampled
from asyncrl.envs.sandbox import Sandbox
from asyncrl.envs.template import Template
from asyncrl.envs.tools import Toolbox
from asyncrl.task import Task

RECIPES = Path(__file__).parents[2] / "recipes"
TEMPLATE = Template(tokenizer(THINKING, "<|im_end|>"))
TESTS = """
from solution import double

def test_two():
    assert double(2) == 4

def test_five():
    assert double(5) == 10
"""


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Scripted:
    """A policy that answers with these texts, then has no room."""

    def __init__(self, task: Task, *texts: str) -> None:
        self.task, self.texts, self.asks, self.truncated = task, list(texts), [], False
        self.sandboxes: list[Sandbox] = []

    async def generate(self, ask: Ask) -> Sampled:
        self.asks.append(ask)
        if not self.texts:
            raise ContextFull("full")
        tokens = TEMPLATE.tokenizer(self.texts.pop(0), add_special_tokens=False).input_ids
        return Sampled([*tokens, TEMPLATE.end], None, "stop", 0)

    def chat(self, messages: list[dict[str, Any]], tools: Any = ()) -> Chat:
        return Chat(self, TEMPLATE, messages, Toolbox(tools, 20.0))

    async def sandbox(self, **limits: Any) -> Sandbox:
        self.sandboxes.append(await Sandbox(**limits).start())
        return self.sandboxes[-1]

    def truncate(self) -> None:
        self.truncated = True

    @property
    def read(self) -> str:
        """By the last call."""
        return TEMPLATE.tokenizer.decode(self.asks[-1].tokens)


def played(name: str, row: dict[str, Any], *texts: str, **kwargs: Any) -> tuple[Any, Scripted]:
    async def play() -> tuple[Any, Scripted]:
        task = Task(0, 0, row.get("question", "?"), row)
        policy = Scripted(task, *texts)
        try:
            return await module(name).rollout(task, policy, **kwargs), policy
        finally:
            for sandbox in policy.sandboxes:
                await sandbox.close()

    return asyncio.run(play())


def call(tool: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': tool, 'arguments': arguments})}</tool_call>"


@needs_a_sandbox
def test_python_tool() -> None:
    score, policy = played("python_env", {}, call("python", code="print(19 ** 3)"), "\\boxed{6859}")
    assert score is None  # the recipe's reward judges the last turn
    assert "<tool_response>6859</tool_response>" in policy.read


@needs_a_sandbox
@pytest.mark.parametrize(
    ("solution", "share"),
    [
        ("def double(x): return 2 * x", 1.0),
        ("def double(x): return 4", 0.5),
        ("print('pass', 2, 2); raise SystemExit", 0.0),
        ("import sys; sys.stdin.read(); print(1)\ndef double(x): return 2 * x", 1.0),
        ("def double(x):\n    while True: pass", 0.0),
    ],
)
def test_shell_agent_is_judged_by_tests_that_it_has_not_seen(
    solution: str, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scripted, "sandbox", lambda self, call_s: _short(self))
    write = call("shell", command=f"cat > solution.py <<'END'\n{solution}\nEND\nls")
    score, policy = played("shell_env", {"test": TESTS}, write, "Done.")
    assert score == {"reward": share, "accuracy": float(share == 1.0)}
    assert "<tool_response>solution.py</tool_response>" in policy.read  # and no test


async def _short(policy: Scripted) -> Sandbox:
    policy.sandboxes.append(await Sandbox(call_s=3.0).start())
    return policy.sandboxes[-1]


@needs_a_sandbox
def test_shell_agent_that_writes_nothing_or_has_no_room() -> None:
    nothing, _ = played("shell_env", {"test": TESTS}, "Done.")
    full, policy = played("shell_env", {"test": TESTS})
    assert nothing == full == {"reward": 0.0, "accuracy": 0.0}
    assert policy.truncated


@pytest.fixture
def retrieval() -> Iterator[str]:
    """A server of Search-R1's form."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            found = [{"document": {"contents": f"about {asked['queries'][0]}"}, "score": 1.0}] * asked["topk"]
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"result": [found]}).encode())

        def log_message(self, *_: Any) -> None:
            """Nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/retrieve"
    server.shutdown()
    server.server_close()
    thread.join(10)


def test_search_agent(retrieval: str) -> None:
    row = {"question": "Who wrote it?", "golden_answers": ["The Brontë sisters", "Emily Brontë"]}
    texts = (call("search", query="it"), "<answer>Nobody</answer> <answer>Brontë Sisters.</answer>")
    score, policy = played("search_env", row, *texts, url=retrieval, results=2)
    assert score == 1.0
    assert "<tool_response>about it\n\nabout it</tool_response>" in policy.read
    assert played("search_env", row, "It was Emily Brontë.", url=retrieval)[0] == 0.0
    assert played("search_env", row, "<answer>Emily</answer>", url=retrieval)[0] == 0.0


def test_guess_halves_what_is_left() -> None:
    game = module("guess_env").Guess()
    game.reset(Task(0, 0, "?", {"secret": 11}))
    steps = [game.step(action) for action in ("8", "12.", "I say 10", "11")]
    assert steps == [
        ("Higher.", 0.0, False),
        ("Lower.", 0.0, False),
        ("Answer with one number.", 0.0, False),
        ("Right.", 1.0, True),
    ]


def test_guess_ends_with_the_fourth_try() -> None:
    game = module("guess_env").Guess()
    game.reset(Task(0, 0, "?", {"secret": 1}))
    assert [game.step("2")[2] for _ in range(4)] == [False, False, False, True]
