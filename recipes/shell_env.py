"""Environment of recipes/shell-agent-7b.yaml: an agent with a shell writes a program until its own trials
pass; tests that it has not seen judge it."""

from __future__ import annotations

import secrets
from typing import Any

from asyncrl.envs.environment import ContextFull

SYSTEM = (
    "You work in a Linux shell with Python. Write the solution to solution.py in the current folder, try it, mend it. "
    "When you are sure, say so without calling a tool."
)
TESTS = """
import sys
sys.path.insert(0, "")
word = sys.stdin.readline().strip()
import test_solution
tests = [test for name, test in vars(test_solution).items() if name.startswith("test") and callable(test)]
passed = 0
for test in tests:
    try:
        test()
        passed += 1
    except Exception:
        pass
print(word, passed, len(tests))
"""


async def rollout(task: Any, policy: Any) -> dict[str, float]:
    """The share of the row's tests that pass, which is 0 where nothing was written; `accuracy`: all did."""
    sandbox = await policy.sandbox(call_s=20)
    chat = policy.chat([{"role": "system", "content": SYSTEM}, *task.messages], tools=[sandbox.shell])
    try:
        await chat.run_tools()
    except ContextFull:
        policy.truncate()
    for name, text in (("test_solution.py", task.row["test"]), ("run_tests.py", TESTS)):
        await sandbox.run(["/bin/sh", "-c", f"rm -rf {name}; cat > {name}"], text)
    word = secrets.token_hex(8)  # a solution that prints a result of its own does not know it
    ran = await sandbox.run(["/bin/sh", "-c", "python3 -B run_tests.py"], word)
    last = ran.output.strip().splitlines()[-1:] if ran.status == 0 else []
    said, passed, of = (*(last[0].split() if last else []), "", "0", "0")[:3]
    share = int(passed) / int(of) if said == word and int(of) else 0.0
    return {"reward": share, "accuracy": float(share == 1.0)}
