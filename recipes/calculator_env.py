"""Environment of recipes/calculator.yaml: a product that the model cannot do in its head, and a tool that can."""

from __future__ import annotations

from typing import Any


def multiply(a: int, b: int) -> int:
    """The product of two whole numbers."""
    return a * b


# The model's chat template shows no tools, so the first messages say what there is, with one example.
FIRST = [
    {
        "role": "system",
        "content": "You have a tool: multiply(a, b). To call it, write "
        '<tool_call>{"name": "multiply", "arguments": {"a": 3, "b": 5}}</tool_call>, read the result, and answer '
        "with it.",
    },
    {"role": "user", "content": "What is 12 * 34?"},
    {"role": "assistant", "content": '<tool_call>{"name": "multiply", "arguments": {"a": 12, "b": 34}}</tool_call>'},
    {"role": "tool", "content": "408"},
    {"role": "assistant", "content": "408"},
]


async def rollout(task: Any, policy: Any) -> float:
    """1 for the right number as the answer, else 0."""
    question = {"role": "user", "content": f"What is {task.row['metadata']['expression']}?"}
    chat = policy.chat([*FIRST, question], tools=[multiply])
    reply = await chat.run_tools()
    return float(reply.text.strip() == task.row["answer"])
