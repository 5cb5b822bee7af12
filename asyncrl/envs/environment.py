"""What an environment is: it rolls a task out with the policy, and says what the rollout was worth.

    generator --task, policy--> Environment.rollout --tokens--> policy.generate --> engine
                                     |                                |
                                  Episode                     the record of every call
The policy is the only way to the engine. It keeps what was read and sampled, token by token, so that nothing of a
rollout is ever tokenised again; the environment only decides what to read next, and the score.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from asyncrl.rewards.score import Score
from asyncrl.task import Task


class ContextFull(Exception):
    """There is no room for another token: the prompt has all of `env.max_context_tokens`, the turn all of
    `rollout.max_new_tokens`, or no turn is left."""


class EpisodeOver(Exception):
    """Nobody may sample for an episode that has ended."""


@dataclass(frozen=True)
class Sampled:
    """What the policy answered to one prompt; C tokens."""

    tokens: list[int]
    """C token ids, the one that ended it included."""
    logprobs: list[float] | None
    """C log-probs of the distribution that was sampled; None from an engine that gives none."""
    finish_reason: str
    """`stop`, or `length` if it was cut off."""
    version: int
    """Updates of the weights that sampled the last token."""
    turn: int = -1
    """Which turn of the rollout it ends, 0, 1, ... of all that are trained; -1: it is not trained."""


@dataclass(frozen=True)
class Ask:
    """One call of the policy."""

    tokens: list[int]
    """The whole prompt."""
    max_new_tokens: int | None = None
    """Default, and most: what the turn has left of `rollout.max_new_tokens`, and the context has room for."""
    stop: tuple[str, ...] = ()
    """Texts that end it, beside those of the recipe."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that do."""
    train: bool = True
    """False: what it samples is not trained (a judge, a summary, a title)."""
    agent: str = ""
    """Whose turn it is, where there are several."""


@dataclass
class ToolUse:
    """Calls that were asked for in one rollout, or several."""

    calls: int = 0
    failed: int = 0
    """Those that could not be made, raised, or took too long: the model reads why."""
    seconds: float = 0.0
    """Of all calls together."""

    def add(self, other: ToolUse) -> None:
        self.calls += other.calls
        self.failed += other.failed
        self.seconds += other.seconds


@dataclass(frozen=True)
class Episode:
    """How a rollout ended."""

    score: Score | None
    """None: the recipe's reward function judges the last completion."""
    finish_reason: str = "stop"
    """`length` if it was cut off: a completion at its longest, the context, or the number of turns."""
    why: str = ""
    """There is no score: more than that the environment returned none."""
    tools: ToolUse = field(default_factory=ToolUse)
    rewards: dict[str, float] = field(default_factory=dict)
    """Of agents that have one of their own; the others get that of the score."""
    turn_rewards: dict[int, float] = field(default_factory=dict)
    """What of the score was earned by single turns, by their numbers."""


class Policy(Protocol):
    """One rollout's way to the engine."""

    async def generate(self, ask: Ask) -> Sampled:
        """Raises ContextFull if there is room for nothing, and ValueError for what is no prompt."""


class Environment(Protocol):
    """Called by the generator, once for each rollout of a group; any number at a time."""

    async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
        """`prompt`: the task's, in tokens. `name` tells the rollout from all others that run. What goes wrong in the
        environment is an episode whose score has an error, never an exception; what the policy raises, but for
        ContextFull, passes through."""
