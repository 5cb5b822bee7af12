"""Rewards for length and form, to stand beside one that judges the answer:

reward:
  - asyncrl.rewards.math:math_verify
  - {fn: asyncrl.rewards.shaping:soft_overlong, kwargs: {max_tokens: 4096, buffer_tokens: 1024}}
"""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path
from typing import Any

from asyncrl.errors import UserError
from asyncrl.plugins import load_object


def soft_overlong(completion: str, completion_ids: list[int], max_tokens: int, buffer_tokens: int, **row: Any) -> float:
    """DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13): 0 up to max_tokens - buffer_tokens, from there on
    linear down to -1 at max_tokens, and -1 beyond."""
    if not 0 < buffer_tokens <= max_tokens:
        raise ValueError(f"buffer_tokens {buffer_tokens} must be from 1 to max_tokens {max_tokens}")
    over = len(completion_ids) - (max_tokens - buffer_tokens)
    return -min(max(over, 0) / buffer_tokens, 1.0)


def matches(completion: str, pattern: str, **row: Any) -> float:
    """1 if the regular expression matches the whole completion, white space around it apart, else 0. `.` matches line
    ends too, as in `<think>.*</think>\\s*<answer>.*</answer>`."""
    return float(re.fullmatch(pattern, completion.strip(), re.DOTALL) is not None)


class Cosine:
    """The cosine reward of "Demystifying Long Chain-of-Thought Reasoning in LLMs" (arXiv:2502.03373): a right answer is
    worth more the shorter it is, a wrong one less, so that thinking on pays; what is too long is worth `exceeded`."""

    def __init__(
        self,
        max_tokens: int,
        judge: str = "asyncrl.rewards.math:last_number",
        right: tuple[float, float] = (2.0, 1.0),
        wrong: tuple[float, float] = (-10.0, 0.0),
        exceeded: float = -10.0,
    ) -> None:
        """`judge`: a function `(completion, **row)` that gives 1 for a right answer, or a dict whose accuracy,
        else reward, is 1. `right`, `wrong`: what an answer
        of no tokens and one of max_tokens are worth. Raises UserError if there is no such function."""
        self.judge = load_object(judge, Path.cwd(), "judge")
        if not callable(self.judge):
            raise UserError(f"judge '{judge}' is no function")
        self.max_tokens, self.right, self.wrong, self.exceeded = max_tokens, right, wrong, exceeded

    def __call__(self, completion: str, completion_ids: list[int], **row: Any) -> dict[str, float]:
        said = self.judge(completion=completion, **row)
        if inspect.isawaitable(said):
            raise TypeError("the judge of Cosine is async; name a plain function")
        is_right = (said.get("accuracy", said.get("reward")) if isinstance(said, dict) else said) == 1.0
        num_tokens = len(completion_ids)
        reward = self.exceeded
        if num_tokens < self.max_tokens:
            none, most = self.right if is_right else self.wrong
            reward = most + (none - most) / 2 * (1 + math.cos(math.pi * num_tokens / self.max_tokens))
        return {"reward": reward, "accuracy": float(is_right)}
