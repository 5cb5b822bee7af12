"""Failures of rewards by kind."""

from __future__ import annotations

import pytest

from asyncrl.observe.failures import RewardFailures


@pytest.mark.parametrize(
    "others",
    [
        ["KeyError: 'gold' (mine.py:3)", "KeyError: 'answer' (mine.py:3)"],
        ["ValueError: two\nlines (mine.py:3)", "ValueError (mine.py:3)"],
        ["timed out after 30 s", "timed out after 2.5 s"],
        ["the reward is 'yes', not a finite number", "the reward is 'no', not a finite number"],
        ["reward returned 3 rewards for 4 completions", "reward returned 1 rewards for 4 completions"],
    ],
)
def test_messages_of_one_kind_are_one(others: list[str]) -> None:
    failures = RewardFailures()
    assert failures.add(others) == others[:1]
    assert failures.add(others) == []
    assert failures.counts == {others[0]: 4}


def test_kinds_that_differ_are_several_the_most_frequent_first() -> None:
    failures = RewardFailures()
    kinds = ["KeyError: 'a' (mine.py:3)", "KeyError: 'a' (mine.py:4)", "TypeError: 'a' (mine.py:3)", "KeyError: 'a'"]
    assert failures.add(kinds) == kinds
    failures.add(kinds[2:3])
    assert failures.counts == {kinds[2]: 2, kinds[0]: 1, kinds[1]: 1, kinds[3]: 1}


def test_very_many_kinds_are_counted_together() -> None:
    failures = RewardFailures()
    many = [f"Error{chr(97 + i)}x: no (mine.py:{i})" for i in range(26)]
    assert failures.add(many) == many[:20]
    assert failures.counts["others"] == 6
    assert sum(failures.counts.values()) == 26
