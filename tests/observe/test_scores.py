"""pass@k against all choices, intervals against what defines them."""

from __future__ import annotations

import math
from itertools import combinations
from statistics import fmean, stdev

import pytest

from asyncrl.observe.evaluations import passes
from asyncrl.observe.scores import interval, pass_at_k, powers
from asyncrl.verdicts import verdicts

CASES = [(n, c, k) for n in range(1, 6) for c in range(n + 1) for k in range(1, n + 1)]


@pytest.mark.parametrize(("num", "right", "k"), CASES)
def test_pass_at_k_is_the_share_of_choices_with_a_right_one(num: int, right: int, k: int) -> None:
    rollouts = [1] * right + [0] * (num - right)
    choices = list(combinations(rollouts, k))
    assert pass_at_k(num, right, k) == pytest.approx(sum(map(any, choices)) / len(choices))


@pytest.mark.parametrize("k", [0, 4])
def test_pass_at_more_than_there_are_is_refused(k: int) -> None:
    with pytest.raises(ValueError, match="needs 1 to 3 of 3"):
        pass_at_k(3, 0, k)


def test_passes_are_means_over_tasks_all_of_whose_rollouts_were_scored() -> None:
    tasks = [[1.0, 0.0], [0.0, 0.0], [1.0]]  # of the last task one failed
    assert passes(tasks, 2) == {"1": 0.25, "2": 0.5}
    assert passes([[0.5, 1.0]], 2) == {}
    assert powers(6) == [1, 2, 4, 6]


@pytest.mark.parametrize(("right", "number"), [(0, 20), (7, 20), (20, 20), (1, 1)])
def test_an_interval_of_shares_ends_where_the_share_would_be_significant(right: int, number: int) -> None:
    """Wilson's: the shares p with |found - p| = z sqrt(p (1 - p) / n)."""
    found = right / number
    low, high = interval([[1.0]] * right + [[0.0]] * (number - right))
    for end in (low, high):
        if end not in (0.0, 1.0):
            assert abs(found - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / number))
    assert low <= found <= high
    assert (low, high) != (found, found)


def test_rollouts_of_one_task_do_not_count_as_many_tasks() -> None:
    alike = [[1.0] * 8, [0.0] * 8] * 10
    once = [[1.0], [0.0]] * 10
    low, high = interval(alike)
    assert high - low == pytest.approx(interval(once)[1] - interval(once)[0], rel=0.05)
    spread = [[1.0, 0.0] * 4] * 19 + [[1.0] * 8]
    assert interval(spread)[1] - interval(spread)[0] < (high - low) / 2


def test_the_interval_of_other_rewards_is_the_normal_one() -> None:
    means = [0.2, 0.9, -1.0, 2.5]
    half = 1.959964 * stdev(means) / 2
    assert interval([[mean] for mean in means]) == pytest.approx((fmean(means) - half, fmean(means) + half))
    assert interval([[0.3]]) is None
    assert interval([[], []]) is None


def test_what_is_right_is_said_by_the_reward_or_is_a_reward_of_1() -> None:
    assert verdicts([[1.0, 0.5], [None, 1.0]], [[{}, {}], [{}, {}]]) == [[1.0, 0.0], [1.0]]
    assert verdicts([[3.0, 2.0]], [[{}, {}]]) == []
    assert verdicts([[3.0, 2.0]], [[{"accuracy": 1.0}, {"accuracy": 0.0}]]) == [[1.0, 0.0]]
    failed = [[{"accuracy": 1.0}, {"accuracy": 0.0}], [{"accuracy": 1.0}, {"accuracy": 1.0}]]
    assert verdicts([[None, 2.0], [None, None]], failed) == [[0.0], []], "a failed rollout is right or wrong to nobody"
