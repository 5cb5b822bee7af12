"""Reward of recipes/dapo-7b.yaml, with verl's signature: DAPO's prompts ask for a last line `Answer: ...`."""

import re

from asyncrl.rewards.math import math_verify


def compute_score(data_source, solution_str, ground_truth, extra_info=None) -> dict:
    """1 for the right answer, -1 for a wrong one or none; `accuracy` is 1 or 0."""
    answers = re.findall(r"^\W*Answer:\s*(.+)$", solution_str, re.MULTILINE | re.IGNORECASE)
    right = bool(answers) and math_verify(f"${answers[-1].strip(' $.*')}$", ground_truth) == 1.0
    return {"score": 1.0 if right else -1.0, "accuracy": float(right)}
