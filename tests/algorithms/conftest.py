"""Packed batches of random tokens, in float64, with everything that some loss asks for."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

LENGTHS = [0, 1, 7, 0, 2000, 3, 5, 1, 0]
MASKED_SEGMENT = 6
"""A trajectory without any token that counts."""
SEQUENCE_LOSSES = ("trajectory_balance", "dpo", "ipo")


def packed(seed: int) -> dict[str, Any]:
    """Arguments of every loss by name; numbers [N] are float64 tensors."""
    rng = np.random.default_rng(seed)
    segments = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
    n = len(segments)
    prox = -rng.exponential(1.0, n) - 0.01

    def near(scale: float, shift: float = 0.0) -> np.ndarray:
        return prox + rng.normal(0, scale, n) + rng.normal(0, shift, len(LENGTHS))[segments]

    def of_trajectory(values: np.ndarray) -> np.ndarray:
        return values[segments]

    mask = rng.random(n) < 0.8
    mask[segments == MASKED_SEGMENT] = False
    mask[segments == 1] = True
    numbers = {
        "logprobs": near(0.7, 0.3),
        "behaviour_logprobs": near(0.5),
        "prox_logprobs": prox,
        "advantages": rng.normal(0, 1, n),
        "ref_logprobs": near(0.05),
        "rewards": of_trajectory(rng.random(len(LENGTHS))),
        "log_z": of_trajectory(rng.normal(0, 5, len(LENGTHS))),
        "partner": of_trajectory(rng.normal(0, 5, len(LENGTHS))),
        "side": of_trajectory(rng.choice([-1.0, 1.0], len(LENGTHS))),
    }
    return {
        **{name: torch.tensor(values, dtype=torch.float64) for name, values in numbers.items()},
        **{name: torch.tensor(rng.random(n) < 0.3) for name in ("cov_band", "cov_top")},
        "mask": torch.tensor(mask),
        "segments": torch.tensor(segments),
        "num_segments": len(LENGTHS),
        "clip_low": 0.2,
        "clip_high": 0.28,
        "beta": 0.1,
    }


@pytest.fixture(params=range(3))
def batch(request: pytest.FixtureRequest) -> dict[str, Any]:
    return packed(request.param)
