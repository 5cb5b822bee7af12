"""Agent of recipes/openai-agent.yaml: a program that knows nothing of training, only the `openai` package."""

from __future__ import annotations

import json
from typing import Any

from openai import OpenAI

SYSTEM = (
    "You have a tool: multiply(a, b). To call it, write "
    '<tool_call>{"name": "multiply", "arguments": {"a": 3, "b": 5}}</tool_call>, read the result, and answer with it.'
)
INTEGER = {"type": "integer"}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "multiply",
            "description": "The product of two whole numbers.",
            "parameters": {"type": "object", "properties": {"a": INTEGER, "b": INTEGER}, "required": ["a", "b"]},
        },
    }
]


def run(task: Any, base_url: str, api_key: str) -> float:
    """1 for the right number as the answer, else 0."""
    client = OpenAI(base_url=base_url, api_key=api_key, max_retries=0)
    example = '<tool_call>{"name": "multiply", "arguments": {"a": 12, "b": 34}}</tool_call>'
    messages: list[Any] = [{"role": "system", "content": SYSTEM}]
    for role, text in (("user", "What is 12 * 34?"), ("assistant", example), ("tool", "408"), ("assistant", "408")):
        messages.append({"role": role, "content": text})
    messages.append({"role": "user", "content": f"What is {task.row['metadata']['expression']}?"})
    for _ in range(3):
        answer = client.chat.completions.create(model="policy", messages=messages, tools=TOOLS).choices[0]
        messages.append(answer.message.model_dump(exclude_none=True))
        if answer.finish_reason != "tool_calls":
            return float((answer.message.content or "").strip() == task.row["answer"])
        for call in answer.message.tool_calls:
            try:
                arguments = json.loads(call.function.arguments)
                result = str(arguments["a"] * arguments["b"])
            except (KeyError, TypeError) as error:
                result = f"Error: {error!r}"
            messages.append({"role": "tool", "tool_call_id": call.id, "content": result[:100]})
    return 0.0
