"""Reward of recipes/code-7b.yaml: the share of a task's tests that the completion's last code block passes.

The code runs in a process of its own, with limits on time, memory and files, but with your user's rights: it is no
sandbox. `docs/safety.md` says what to put around it.
"""

import re
import resource
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

_TIMEOUT_S = 10
_MEMORY_BYTES = 2**30
_RUN = """
word = input()
import test_solution
names = [name for name in vars(test_solution) if name.startswith("test") and callable(getattr(test_solution, name))]
passed = 0
for name in names:
    try:
        getattr(test_solution, name)()
        passed += 1
    except Exception:
        pass
print(word, passed, len(names))
"""


def reward(completion: str, test: str, **row) -> dict:
    """`accuracy`: whether all tests pass. Code that does not end in time, or at all, has passed none."""
    blocks = re.findall(r"```(?:python)?\n(.*?)```", completion, re.DOTALL)
    share = _share(blocks[-1], test) if blocks else 0.0
    return {"reward": share, "accuracy": float(share == 1.0)}


def _share(solution: str, test: str) -> float:
    word = secrets.token_hex(8)  # a solution that prints a result of its own does not know it
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("solution", solution), ("test_solution", test), ("run", _RUN)):
            Path(folder, f"{name}.py").write_text(text)
        command = [sys.executable, "-B", "run.py"]
        options = {"cwd": folder, "capture_output": True, "text": True, "timeout": _TIMEOUT_S, "preexec_fn": _limit}
        try:
            done = subprocess.run(command, env={"PATH": ""}, input=word, check=False, **options)
        except (subprocess.TimeoutExpired, UnicodeDecodeError):
            return 0.0
    found = re.search(rf"{word} (\d+) (\d+)\n\Z", done.stdout)
    return int(found[1]) / int(found[2]) if found and done.returncode == 0 and int(found[2]) else 0.0


def _limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_TIMEOUT_S, _TIMEOUT_S))
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
