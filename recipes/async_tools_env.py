"""Environment of recipes/async-tools.yaml: calls that run while the model goes on writing (AsyncLM, arXiv:2412.07017).

The model writes  [CALL] name [HEAD] tool(1, 2) [END]   the call begins, and the model goes on
                  [TRAP]                                the model waits for all calls that run
and reads         [INTR] name [HEAD] result [END]       as soon as a call has ended, but in no mark and no other call
The end of the turn is the end: what runs then is cancelled.
"""

from __future__ import annotations

import ast
import asyncio
import random
import re
from typing import Any

from asyncrl.envs.environment import ContextFull
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.envs.tools import Toolbox
from asyncrl.envs.transcript import Transcript, rests
from asyncrl.task import Message

MARKS = ("[END]", "[TRAP]")
"""Where the model is looked at, at the latest."""
DONE = re.compile(r"\[CALL\](?P<call>.*?)\[END\]|\[TRAP\]", re.DOTALL)


async def write_with_tools(transcript: Transcript, toolbox: Toolbox, chunk_tokens: int) -> list[ToolCall]:
    """Writes to the end of the turn, or of the room there is (then it has not `ended`); returns the calls. While calls
    run the model is looked at every `chunk_tokens`."""
    calls: list[ToolCall] = []
    running: set[asyncio.Task[None]] = set()
    results: list[str] = []

    async def run(call: ToolCall) -> None:
        (answer,) = await toolbox.answer([call])
        results.append(f"\n[INTR] {call.id} [HEAD] {answer['content']} [END]\n")

    try:
        while not transcript.ended:
            await transcript.write(MARKS, chunk_tokens if running or results else None)
            waits = False
            while done := complete(transcript.text):
                transcript.take(done.end())
                if done["call"] is None:
                    waits = True
                else:
                    calls.append(parsed(done["call"], toolbox))
                    running.add(asyncio.create_task(run(calls[-1])))
            if waits and running:
                await asyncio.wait(running)
            running = {task for task in running if not task.done()}
            if results and is_outside(transcript.text):
                transcript.read("".join(results))
                results.clear()
    except ContextFull:
        pass
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return calls


def complete(text: str) -> re.Match[str] | None:
    """The first call, or trap that stands in no call."""
    done = DONE.search(text)
    return done if done and "[CALL]" not in text[: done.start()] else None


def is_outside(text: str) -> bool:
    """It ends in no call, no mark and no character."""
    return "[CALL]" not in text and not rests(text, ("[CALL]", *MARKS)) and not text.endswith("\ufffd")


def parsed(block: str, toolbox: Toolbox) -> ToolCall:
    """What stands between [CALL] and [END]; its id is the name. The call is Python with literals as arguments."""
    name, _, code = (part.strip() for part in block.partition("[HEAD]"))
    try:
        call = ast.parse(code, mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError
        values = [ast.literal_eval(value) for value in call.args]
        named = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return ToolCall(name, "", {}, f"{code!r} is no call; write [HEAD] tool(1, 2)")
    schemas = [schema["function"] for schema in toolbox.schemas or ()]
    names = next((list(s["parameters"].get("properties", ())) for s in schemas if s["name"] == call.func.id), [])
    if names and len(values) > len(names):
        return ToolCall(name, call.func.id, {}, f"{call.func.id} takes {len(names)} arguments")
    return ToolCall(name, call.func.id, {**dict(zip(names, values, strict=False)), **named})


# -- the task: two products, by a calculator that takes its time


def example(a: int, b: int, c: int, d: int, *order: str) -> list[Message]:
    """A question and how it is answered; `order`: in which the results come."""
    product = {"x": a * b, "y": c * d}
    calls = f"[CALL] x [HEAD] multiply({a}, {b}) [END]\n[CALL] y [HEAD] multiply({c}, {d}) [END]\n[TRAP]"
    results = "".join(f"\n[INTR] {name} [HEAD] {product[name]} [END]\n" for name in order)
    answer = f"x = {a * b}, y = {c * d}"
    return [
        {"role": "user", "content": question(a, b, c, d)},
        {"role": "assistant", "content": calls + results + answer},
    ]


def question(a: int, b: int, c: int, d: int) -> str:
    return f"x = {a} * {b}, y = {c} * {d}"


FIRST: list[Message] = [
    {
        "role": "system",
        "content": "You have a tool, multiply(a, b). [CALL] name [HEAD] multiply(3, 5) [END] begins a call, [TRAP] "
        "waits, and the result comes as [INTR] name [HEAD] 15 [END]. Then answer.",
    },
    *example(12, 34, 56, 78, "x", "y"),
    *example(91, 20, 45, 67, "y", "x"),
]


async def multiply(a: int, b: int) -> int:
    """The product of two whole numbers."""
    await asyncio.sleep(random.uniform(0.5, 3.0))
    return a * b


async def rollout(task: Any, policy: Any, chunk_tokens: int = 8) -> dict[str, float]:
    """A quarter for each call that was asked for, and for each number that is right if the turn has an end."""
    a, b, c, d = map(int, task.row["metadata"]["expression"].split(" * "))
    transcript = policy.transcript([*FIRST, {"role": "user", "content": question(a, b, c, d)}])
    calls = await write_with_tools(transcript, policy.toolbox([multiply]), chunk_tokens)
    if not transcript.ended:
        policy.truncate()
    num_called = sum({"a": x, "b": y} in [call.arguments for call in calls] for x, y in ((a, b), (c, d)))
    said = dict(re.findall(r"\b([xy]) = (\d+)", transcript.written))  # what it said last, wherever
    num_right = (said.get("x") == str(a * b)) + (said.get("y") == str(c * d)) if transcript.ended else 0
    return {"reward": (num_called + num_right) / 4, "both_right": float(num_right == 2)}
