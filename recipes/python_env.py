"""Environment of recipes/python-tool-3b.yaml: mathematics with Python at hand. The recipe's reward judges
the last turn."""

from __future__ import annotations

from typing import Any

SYSTEM = "Solve the problem. You may run Python code as often as you like. End with the answer in \\boxed{}."


async def rollout(task: Any, policy: Any) -> None:
    sandbox = await policy.sandbox(call_s=10)
    chat = policy.chat([{"role": "system", "content": SYSTEM}, *task.messages], tools=[sandbox.python])
    await chat.run_tools()
