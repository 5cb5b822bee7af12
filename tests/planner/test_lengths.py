import math
import random
from dataclasses import replace
from statistics import correlation, fmean

import pytest

from asyncrl.planner.lengths import Lengths


@pytest.mark.parametrize(("mean", "longest"), [(100, 1000), (300, 512), (500, 512), (1, 20), (20, 20)])
def test_log_normal_has_its_mean_after_the_cut(mean: int, longest: int) -> None:
    lengths = Lengths.log_normal(mean, longest)
    assert lengths.mean == pytest.approx(mean, rel=1e-6)
    assert max(lengths.values) <= longest
    assert min(lengths.values) >= 1


def test_the_tail_is_long() -> None:
    values = sorted(Lengths.log_normal(100, 10_000).values)
    assert values[500] < 85
    assert 350 < values[990] < 450


def test_a_measured_shape_keeps_its_ratios() -> None:
    lengths = Lengths.measured([10, 20, 40], mean=70 / 3 * 2, longest=1000)
    assert lengths.values == pytest.approx((20, 40, 80))
    assert set(lengths.draw(random.Random(0), 40)) == set(lengths.values)


@pytest.mark.parametrize("mean", [0.5, 101])
def test_a_mean_beyond_the_longest_is_refused(mean: float) -> None:
    with pytest.raises(ValueError, match="is not between 1 and the longest, 100"):
        Lengths.log_normal(mean, 100)


@pytest.mark.parametrize("of_task", [0.0, 0.5, 0.9])
def test_rollouts_of_a_group_are_alike_and_their_mean_is_the_same(of_task: float) -> None:
    """The correlation of logarithms is that of the places, for a log-normal that is not cut."""
    lengths, rng = replace(Lengths.log_normal(100, 10_000), of_task=of_task), random.Random(0)
    pairs = [lengths.draw(rng, 2) for _ in range(20_000)]
    assert fmean(tokens for pair in pairs for tokens in pair) == pytest.approx(100, rel=0.03)
    one, other = zip(*((math.log(a), math.log(b)) for a, b in pairs), strict=True)
    assert correlation(one, other) == pytest.approx(of_task, abs=0.03)
