from __future__ import annotations

import pytest

from asyncrl.control.settings import Settings

GOOD = {"groups_per_step": 2, "max_staleness": 1, "max_steps": 3, "tokens_per_group": 10}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups_per_step": 0}, "groups_per_step is 0; it must be at least 1"),
        ({"max_staleness": -1}, "max_staleness is -1; it must be at least 0"),
        ({"max_steps": 0}, "max_steps is 0"),
        ({"selection_window": 0}, "selection_window is 0"),
        ({"tokens_per_group": 0}, "tokens_per_group is 0"),
        ({"groups_per_replica": -1}, "groups_per_replica is -1; it must be at least 0"),
        ({"policy": "sync"}, "policy sync needs max_staleness 0, not 1"),
        ({"policy": "one_step", "max_staleness": 2}, "policy one_step needs max_staleness 1, not 2"),
        ({"policy": "stale_k", "max_staleness": 1.5}, "policy stale_k needs a whole max_staleness .*, not 1.5"),
        ({"policy": "stale_k", "max_staleness": 0}, "policy stale_k needs a whole max_staleness of at least 1, not 0"),
        (
            {"max_staleness": 1.5, "on_stale": "drop"},
            "max_staleness 1.5 needs on_stale wait, not drop; set it to 1 or 2",
        ),
        ({"max_staleness": 0.5, "on_stale": "mask"}, "not mask; set it to 0 or 1"),
        ({"max_staleness": 0.5, "policy": "sync"}, "policy sync needs max_staleness 0, not 0.5"),
        ({"max_staleness": 1.5, "policy": "one_step"}, "policy one_step needs max_staleness 1, not 1.5"),
        ({"policy": "sync", "max_staleness": 0, "push_lag": 2}, "set push_lag to at most 1"),
        ({"push_lag": 3}, "push_lag 3 would leave no slot .* set push_lag to at most 2"),
        ({"policy": "one_step", "push_lag": 2}, "set push_lag to at most 1"),
        ({"backup_groups": 1}, "backup_groups 1 needs on_stale drop .*, not wait and bounded; set backup_groups to 0"),
        ({"policy": "one_step", "selection_window": 2}, "set selection_window to 1"),
        ({"on_stale": "drop", "selection_window": 2}, "not bounded and drop; set selection_window to 1"),
        ({"on_stale": "mask", "selection_window": 2}, "not bounded and mask; set selection_window to 1"),
    ],
)
def test_a_bad_combination_says_what_to_change(changes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**GOOD | changes)


def test_good_ones() -> None:
    Settings(**GOOD)
    Settings(**GOOD | {"max_staleness": 0, "policy": "sync"})
    Settings(**GOOD | {"policy": "one_step"})
    Settings(**GOOD | {"selection_window": 4})
    Settings(**GOOD | {"max_staleness": 2.5, "push_lag": 3})
    Settings(**GOOD | {"max_staleness": 64, "policy": "stale_k"})
    Settings(**GOOD | {"on_stale": "drop", "backup_groups": 3})
