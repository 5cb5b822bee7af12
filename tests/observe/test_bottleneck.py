"""Which role limits, on made-up shares with known answers."""

from __future__ import annotations

import pytest

from asyncrl.observe.bottleneck import bottleneck, bottleneck_of_answers


@pytest.mark.parametrize(
    ("shares", "begins", "says"),
    [
        ({"trainer_time/busy": 1.0, "generator_time/idle": 0.71}, "trainer-bound", "71 %"),
        ({"trainer_time/wait_batch": 0.6, "generator_time/busy": 1.0}, "generator-bound", "60 %"),
        ({"trainer_time/wait_batch": 0.9, "reward_time/waiting": 0.8}, "reward-bound", "rewards.workers"),
        ({"trainer_time/wait_batch": 0.9, "reward_time/waiting": 0.3}, "generator-bound", "90 %"),
        ({"generator_time/paused": 0.4, "generator_time/idle": 0.1}, "publish-bound", "40 %"),
        ({"trainer_time/checkpoint": 0.5}, "checkpoint-bound", "50 %"),
        ({"trainer_time/unaccounted": 0.3}, "driver-bound", "30 %"),
        ({"trainer_time/wait_batch": 0.45, "generator_time/idle": 0.5}, "taking turns", "max_staleness"),
        ({"trainer_time/wait_batch": 0.77, "generator_time/idle": 0.24}, "generator-bound", "77 %"),
        ({"trainer_time/wait_batch": 0.2, "generator_time/idle": 0.6}, "trainer-bound", "60 %"),
        ({"trainer_time/busy": 0.95, "generator_time/busy": 0.95}, "balanced", ""),
    ],
)
def test_bottleneck(shares: dict[str, float], begins: str, says: str) -> None:
    line = bottleneck(shares)
    assert line.startswith(begins)
    assert says in line


@pytest.mark.parametrize(
    ("shares", "begins"),
    [
        ({"trainer_time/busy": 0.95, "generator_time/idle": 0.99}, "trainer-bound"),
        ({"trainer_time/wait_batch": 0.5, "generator_time/idle": 0.4}, "data-bound"),
        ({"trainer_time/checkpoint": 0.5}, "checkpoint-bound"),
    ],
)
def test_who_has_nothing_to_sample_limits_nothing(shares: dict[str, float], begins: str) -> None:
    line = bottleneck_of_answers(shares)
    assert line.startswith(begins)
    assert "generators idle" not in line
