"""What became of a group, as the controller hears it."""

from __future__ import annotations

import logging

from asyncrl.control.messages import Event, GroupFailed, GroupFiltered, GroupFinished
from asyncrl.rollout.summary import GroupSummary

logger = logging.getLogger(__name__)


def outcome(summary: GroupSummary) -> Event:
    """The event; a failure that no reward explains is logged."""
    task, attempt = summary.task, summary.attempt
    if summary.outcome == "finished":
        return GroupFinished(task, attempt, summary.oldest_version, summary.newest_version, summary.num_tokens)
    if summary.outcome == "filtered":
        return GroupFiltered(task, attempt, summary.reason)
    if summary.outcome == "aborted":
        # Cancelled by a decision, it is obsolete and the controller ignores this; by the engine, it has failed.
        return GroupFailed(task, attempt, "aborted")
    if not summary.errors:  # the recorder says what rewards fail of
        logger.warning("task %d failed: %s", task, summary.reason)
    return GroupFailed(task, attempt, summary.reason)
