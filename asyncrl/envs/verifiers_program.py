"""A program for the Python that has the package `verifiers` (0.4), which need not be asyncrl's own.

    python -P verifiers_program.py tasks       one line in, a line for each task of the taskset out
    python -P verifiers_program.py rollouts    a line in for each rollout, a line out when it has ended
Lines are JSON; what goes wrong as a whole is {"error": ...}. It imports nothing of asyncrl. Waits for: lines; the
taskset's code; the endpoint of the policy. Unblocked by: its parent, which cancels rollouts and closes the input.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from itertools import chain
from typing import Any

import httpx
from verifiers.v1 import EvalClientConfig, Harness, HarnessConfig, ModelContext, ProgramResult, TrainClientConfig
from verifiers.v1.configs.agent import agent_config_fields
from verifiers.v1.dialects.chat import message_to_wire
from verifiers.v1.harnesses.utils.compaction import bound_tool_message
from verifiers.v1.harnesses.utils.mcp import call_mcp, connect_mcp
from verifiers.v1.types import content_text
from verifiers.v1.utils import loaders

__all__ = ["ChatHarness"]

CHAT = "asyncrl_chat"
KEY = "ASYNCRL_API_KEY"
_INFINITE_SIZE = 10_000

Say = Callable[[dict[str, Any]], None]


class ChatHarness(Harness[HarnessConfig]):
    """The conversation of a task with its tools, in this process: verifiers' `null` without a program of its own."""

    APPENDS_SYSTEM_PROMPT = True
    SUPPORTS_MCP = True
    SUPPORTS_RESUME = True
    EXECUTES_CODE = False
    NEEDS_CONTAINER = False
    _http: httpx.AsyncClient | None = None

    async def launch(
        self, ctx: Any, trace: Any, runtime: Any, endpoint: str, secret: str, mcp_urls: dict[str, str], data: Any
    ) -> ProgramResult:
        system, prompt = self.resolve_prompt(data)
        messages = [{"role": "system", "content": system}] if system else []
        if isinstance(prompt, str):
            messages.append({"role": "user", "content": prompt})
        elif prompt is not None:
            messages += [message_to_wire(message) for message in prompt]
        servers = {name: {"url": url, "timeout": self.config.tool_timeout} for name, url in mcp_urls.items()}
        async with AsyncExitStack() as stack:
            tools, dispatch, connections = await connect_mcp({"mcpServers": servers}, stack)
            body = {"model": ctx.model, "messages": messages, **({"tools": tools} if tools else {})}
            while True:
                answer = await self._ask(endpoint, secret, body)
                if answer.status_code >= 400:
                    full = "context_length_exceeded" in answer.text
                    return ProgramResult(0 if full else 1, "", answer.text)
                message = answer.json()["choices"][0]["message"]
                messages.append(message)
                if not message.get("tool_calls"):
                    return ProgramResult(0, "", "")
                for call in message["tool_calls"]:
                    said = await _called(call["function"], connections, dispatch)
                    named = {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"]}
                    messages.append(bound_tool_message({**named, "content": said}))

    async def _ask(self, endpoint: str, secret: str, body: dict[str, Any]) -> httpx.Response:
        if ChatHarness._http is None:  # one for all: each would take 20 ms and 1 MB
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
            ChatHarness._http = httpx.AsyncClient(timeout=None, limits=limits, trust_env=False)
        headers = {"authorization": f"Bearer {secret}"}
        return await ChatHarness._http.post(f"{endpoint}/chat/completions", json=body, headers=headers)


async def _called(function: dict[str, Any], connections: Any, dispatch: dict[str, Any]) -> Any:
    """What the model reads of a call."""
    name = function["name"]
    try:
        arguments = json.loads(function.get("arguments") or "{}")
    except ValueError as error:
        return f"Error: the arguments are no JSON: {error}"
    if not isinstance(arguments, dict):
        return "Error: the arguments are no JSON object"
    if name not in dispatch:
        return f"Error: there is no tool {name!r}, only {', '.join(dispatch) or 'none'}"
    return await call_mcp(connections, dispatch, name, arguments)


# -- tasks


def tasks(asked: dict[str, Any], say: Say) -> None:
    config = asked["taskset"]
    taskset = loaders.load_taskset(loaders.taskset_config_type(config["id"]).model_validate(config))
    size = asked["size"] or (_INFINITE_SIZE if taskset.INFINITE else None)
    data_type = type(taskset).task_type().data_type()
    if hidden := [name for name, field in data_type.model_fields.items() if field.exclude]:
        raise ValueError(f"{data_type.__name__} keeps {hidden} out of what is serialized, so that no task can be sent")
    for task in taskset if size is None else taskset.take(size):
        say({"prompt": list(_messages(task.data)), "task": task.data.model_dump(mode="json")})


def _messages(data: Any) -> Iterator[dict[str, str]]:
    """The texts that a task begins with; where the user is simulated, what else names it."""
    if data.system_prompt:
        yield {"role": "system", "content": data.system_prompt}
    if isinstance(data.prompt, str) and data.prompt:
        yield {"role": "user", "content": data.prompt}
    elif data.prompt:
        for message in data.prompt:
            yield {"role": message.role, "content": content_text(message.content)}
    else:
        yield {"role": "user", "content": data.description or data.name or f"task {data.idx}"}


# -- rollouts


class Rollouts:
    """Of one environment, on one event loop."""

    def __init__(self, asked: dict[str, Any], say: Say) -> None:
        self._say = say
        self._env = loaders.load_environment(loaders.resolve_env_config(with_defaults(asked["env"])))
        endpoint = {"base_url": asked["base_url"], "api_key_var": KEY}
        renderer = asked["renderer"]
        self._client = (
            EvalClientConfig(**endpoint)
            if renderer is None
            else TrainClientConfig(**endpoint, renderer=renderer, renderer_model_name=asked["tokenizer"])
        )
        self._running: dict[int, asyncio.Task[None]] = {}

    async def serve(self, reader: asyncio.StreamReader) -> None:
        async with self._env.serving():
            self._say({"ready": True})
            while line := await reader.readline():
                asked = json.loads(line)
                if "cancel" in asked:
                    if running := self._running.get(asked["cancel"]):
                        running.cancel()
                    continue
                running = self._running[asked["run"]] = asyncio.create_task(self._run(asked))
                running.add_done_callback(lambda _, number=asked["run"]: self._running.pop(number))
            for running in self._running.values():
                running.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _run(self, asked: dict[str, Any]) -> None:
        try:
            ended = await self._rolled_out(asked["task"], asked["model"])
        except Exception as error:
            ended = {"error": f"{type(error).__name__}: {error}"}
        self._say({"run": asked["run"], **ended})

    async def _rolled_out(self, data: dict[str, Any], model: str) -> dict[str, Any]:
        kind = type(self._env.taskset).task_type()
        task = kind(kind.data_type().model_validate(data), self._env.config.taskset.task)
        (slot,) = self._env.slots(task)
        episode = await self._env.run_slot(slot, ModelContext(model=model, client=self._client))
        trained = [trace for trace in episode.traces if trace.agent.trainable]
        wrong = [error for one in (episode, *episode.traces) for error in one.errors]
        if wrong or not trained:
            first = wrong[0] if wrong else None
            return {"error": f"{first.type}: {first.message}" if first else "no agent of the taskset is trainable"}
        named = chain.from_iterable(chain(trace.metrics.items(), _rewards(trace)) for trace in trained)
        numbers = {name: float(value) for name, value in named if value is not None}
        reward = sum(trace.reward for trace in trained)
        return {"reward": reward, "metrics": numbers, "truncated": any(trace.is_truncated for trace in trained)}


def _rewards(trace: Any) -> Iterator[tuple[str, float]]:
    """Each by its name, where there are several."""
    if len(trace.rewards) > 1:
        yield from ((name, reward.value) for name, reward in trace.rewards.items() if reward is not None)


def with_defaults(raw: dict[str, Any]) -> dict[str, Any]:
    """Settings of an environment, whose agents are run here unless they are told otherwise: in this process where
    neither they nor the taskset name a harness, and where their harness lets the model run no commands."""
    config = loaders.resolve_env_config(raw)
    roles = agent_config_fields(config)
    if ours := [name for name, role in roles.items() if role.client is None][1:]:
        raise ValueError(
            f"the environment plays several agents ({', '.join(roles)}), and one can be trained: give the others, "
            f"{', '.join(ours)}, a client of their own (env.kwargs.{ours[0]}.client)"
        )
    taskset = config.taskset.id
    for name, role in roles.items():
        given = dict(raw.get(name) or {})
        if role.harness is None and loaders.default_harness_id(taskset) == "bash":
            given["harness"] = {"id": CHAT}
        if "runtime" not in role.model_fields_set:
            harness = given.get("harness", {}).get("id")
            if harness not in (None, CHAT, taskset) and loaders.harness_class(harness).EXECUTES_CODE:
                raise ValueError(
                    f"the harness {harness!r} runs commands of the model; say where: env.kwargs.{name}.runtime.type is "
                    "docker, say, or subprocess for this machine"
                )
            given["runtime"] = {"type": "subprocess"}
        raw = {**raw, name: given}
    return raw


async def rollouts(asked: dict[str, Any], say: Say) -> None:
    served = Rollouts(asked, say)
    reader = asyncio.StreamReader(limit=2**28)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    await served.serve(reader)


def main() -> None:
    # What a taskset prints is not for the parent.
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(message: dict[str, Any]) -> None:
        out.write(json.dumps(message) + "\n")
        out.flush()

    sys.modules[CHAT] = sys.modules[__name__]
    # Unbuffered: what follows the first line is for the event loop.
    asked = json.loads(b"".join(iter(lambda: os.read(0, 1), b"\n")))
    sys.path += asked["path"]
    # Its servers of tools are programs of their own.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), *asked["path"]]))
    try:
        if sys.argv[1] == "tasks":
            tasks(asked, say)
        else:
            asyncio.run(rollouts(asked, say))
    except (Exception, SystemExit) as error:
        say({"error": f"{type(error).__name__}: {error}"})
        raise


if __name__ == "__main__":
    main()
