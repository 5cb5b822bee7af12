"""Reward of recipes/tiny.yaml: random text earns some of it already."""

import string


def reward(completion: str, **row) -> float:
    """Share of lowercase letters in the completion."""
    return sum(character in string.ascii_lowercase for character in completion) / max(len(completion), 1)
