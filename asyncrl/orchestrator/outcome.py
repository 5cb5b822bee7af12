"""What became of a group, as the controller hears it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from asyncrl.control.messages import Event, GroupFailed, GroupFiltered, GroupFinished
from asyncrl.rollout.summary import GroupSummary

logger = logging.getLogger(__name__)


def outcome(summary: GroupSummary, skip: Sequence[int] = ()) -> Event:
    """The event; a failure that no reward explains is logged. `skip`: later draws of the row that are left out."""
    task, attempt = summary.task, summary.attempt
    if summary.outcome == "finished":
        versions = summary.oldest_version, summary.newest_version
        return GroupFinished(task, attempt, *versions, summary.num_tokens, tuple(skip))
    if summary.outcome == "filtered":
        return GroupFiltered(task, attempt, summary.reason, tuple(skip))
    if summary.outcome == "aborted":
        # Cancelled by a decision, it is obsolete and the controller ignores this; by the engine, it has failed.
        return GroupFailed(task, attempt, "aborted")
    if not summary.errors:  # the recorder says what rewards fail of
        logger.warning("task %d failed: %s", task, summary.reason)
    return GroupFailed(task, attempt, summary.reason)
