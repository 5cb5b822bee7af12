"""Names of the figures in a step record; others rely on them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TRAINER_KEYS = tuple(f"offpolicy/{name}" for name in ("logprob_gap", "ess", "clip_fraction", "kl"))
"""What a trainer says of each step; null if it does not."""
REWARD_KEYS = ("reward/mean", "reward/std", "reward/min", "reward/max")
"""Of the rewards of a step's batch; other names under `reward/` are what rewards returned by those names."""
STEP_KEYS: tuple[str, ...] = (
    "step",
    "version",
    "time_s",
    *REWARD_KEYS[:2],
    "accuracy/mean",
    "rewards/failed_share",
    "completion/truncated_share",
    *(f"staleness/{name}" for name in ("mean", "max", "in_flight", "in_queue")),
    *(f"groups/{name}" for name in ("trained", "filtered", "stale", "failed", "requeued", "running", "ready")),
    *(f"tokens/{name}" for name in ("generated", "trained")),
    *(f"throughput/{name}" for name in ("samples_per_s", "tokens_per_s")),
    *(f"trainer_time/{name}" for name in ("busy", "wait_batch", "wait_publish", "checkpoint", "unaccounted")),
    *(f"generator_time/{name}" for name in ("busy", "paused", "idle")),
    *(f"publish/{name}" for name in ("pause_s", "transfer_s", "bytes")),
    *TRAINER_KEYS,
)
"""Names that every record has (design, part 6); a record may have more."""
MORE_KEYS: tuple[str, ...] = (
    *REWARD_KEYS[2:],
    *(f"completion/{name}" for name in ("tokens_mean", "turns_mean", "sequences_mean", "context_max")),
    *(f"tools/{name}" for name in ("calls_mean", "failed_share", "latency_s")),
    *("trajectories/mixed_versions", "reward_time/waiting", "health/warnings"),
    *("rewards/failed", "generators/serving", "generators/wanted"),
    *(f"staleness/{name}" for name in ("bound", "updates_mean", "updates_max")),
    *(f"offpolicy/{name}" for name in ("logprob_gap_age0", "kl_k1", "masked_fraction")),
    *(f"replay/{name}" for name in ("share", "age_mean", "age_max")),
    *(f"distil/{name}" for name in ("kl", "teacher_logprob", "taught_share", "failed")),
    *(f"trainer/{name}" for name in ("loss", "value_loss", "grad_norm", "entropy", "learning_rate", "step_s")),
    *(f"trainer/{name}" for name in ("forward_tokens", "trajectory_tokens", "prefix_trees", "masked_truncated")),
    *(f"trainer/{name}" for name in ("skipped_zero_advantage", "skipped_steps")),
    *("data/epoch", "data/skipped", "sft/nll", "sft/rows", "sft/perplexity", "pairs/margin", "pairs/accuracy"),
)
"""Figures that a record may have besides, and those that a reward returns: reward/NAME."""


def nth(step: int) -> int:
    """A step as people are told of it: from 1 on, so that step N ends in version N and checkpoint step_N. Files and
    messages count from 0."""
    return step + 1


def has_answers(record: Mapping[str, Any]) -> bool:
    """Whether it is of a run whose data has the answers, so that nothing was sampled and no reward given."""
    return "data/epoch" in record


VERDICTS = ("accuracy", "acc")
"""Of what a reward returns beside the reward: what says whether a completion is right. The second is verl's."""
JUDGED = "judged"
"""1 if one of several parts of a reward said so, 0 if none did: their sum does not."""
