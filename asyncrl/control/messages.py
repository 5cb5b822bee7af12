"""Events that the driver reports to the controller, and decisions that it carries out.

A task is a sample index 0, 1, 2, …; the driver maps it to a data row by a pure function, so the data cursor is the
next index that is neither drawn nor skipped. An attempt is one start of a task: 0 at first, one more after every
requeue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class GeneratorJoined:
    """A generator serves from now on; it holds the live version or a newer one, and takes part in every
    publish decided from now on. If a publish is in flight, `WeightsLive` for it covers this generator too."""

    generator: str


@dataclass(frozen=True)
class GeneratorLost:
    """A generator is gone, with everything it was running. Reporting the same loss twice is harmless."""

    generator: str


@dataclass(frozen=True)
class GroupFinished:
    """All trajectories of a group are in the buffer; versions are those of its trainable tokens."""

    task: int
    attempt: int
    oldest_version: int
    newest_version: int
    num_tokens: int
    """Tokens generated for the group; routing learns its estimate from them."""
    skip: tuple[int, ...] = ()
    """Later draws of its row, which are left out: it needs no practice for a while."""


@dataclass(frozen=True)
class GroupFiltered:
    """The group is not worth training (equal rewards, no trainable token, prompt too long, …)."""

    task: int
    attempt: int
    reason: str
    skip: tuple[int, ...] = ()
    """As of GroupFinished."""


@dataclass(frozen=True)
class GroupFailed:
    """The group could not be made, and another try would not help."""

    task: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class GroupLost:
    """The bytes of a finished group that no batch has taken are gone; it starts again."""

    task: int
    attempt: int


@dataclass(frozen=True)
class StepDone:
    """Batch `step` was trained with weights `step`; version `step + 1` exists."""

    step: int


@dataclass(frozen=True)
class WeightsLive:
    """Every serving generator holds at least this version: the one being published, or the trainer's weights
    (version 0, or that of the checkpoint), which the driver pushes at start-up. Nothing is started before."""

    version: int


@dataclass(frozen=True)
class PublishFailed:
    """The publish in flight has ended without making its version live; some generators may hold it."""

    version: int


Event = (
    GeneratorJoined
    | GeneratorLost
    | GroupFinished
    | GroupFiltered
    | GroupFailed
    | GroupLost
    | StepDone
    | WeightsLive
    | PublishFailed
)


@dataclass(frozen=True)
class Start:
    """Generate a group for this task on this generator."""

    task: int
    attempt: int
    generator: str


@dataclass(frozen=True)
class Cancel:
    """Stop this attempt; whatever it still reports is obsolete."""

    task: int
    attempt: int
    generator: str


@dataclass(frozen=True)
class Discard:
    """The buffer no longer needs the bytes of this attempt."""

    task: int
    attempt: int


@dataclass(frozen=True)
class Train:
    """Train this batch, and no token older than `min_version` in it."""

    step: int
    groups: tuple[tuple[int, int], ...]
    """(task, attempt) of `groups_per_step` groups, in the order of their draw."""
    min_version: int


@dataclass(frozen=True)
class Publish:
    """Send this version, the trainer's newest, to all generators; answer WeightsLive or PublishFailed."""

    version: int


Decision = Start | Cancel | Discard | Train | Publish
