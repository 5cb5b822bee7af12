"""One rollout's way to the engine, and the record of it: from calls to trajectories.

A call whose prompt goes on from a sequence, token by token, extends that sequence; any other begins one. So what was
sampled is trained once, in the sequence in which it was sampled, and is context wherever it is read again. What is
sampled in several calls with nothing read in between is one turn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from asyncrl.envs.environment import Ask, ContextFull, Sampled
from asyncrl.rewards.score import Score
from asyncrl.rollout.engine import Completion, Engine, SamplingParams
from asyncrl.rollout.trajectory import Trajectory


class GroupAborted(Exception):
    """The group was cancelled; whatever it had is thrown away."""


@dataclass(frozen=True)
class SamplingLimits:
    """Of every rollout of a run."""

    max_new_tokens: int
    """Of one turn."""
    max_tokens: int
    """Of prompt and completion together."""
    temperature: float
    seed: int
    max_turns: int = 1
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()


@dataclass
class _Sequence:
    prompt: int
    tokens: list[int]
    versions: list[int]
    logprobs: list[float]
    trained: list[bool] = field(default_factory=list)
    agent: str = ""
    ends: list[tuple[int, int]] = field(default_factory=list)
    """Number of each trained turn in the rollout, and the token after its last."""
    turn: int = 0
    """Tokens of the turn that it ends with; 0 if that is no call's to go on with."""

    @classmethod
    def begun(cls, prompt: list[int], agent: str = "") -> _Sequence:
        num = len(prompt)
        return cls(num, list(prompt), [-1] * num, [0.0] * num, [False] * num, agent)

    def observe(self, tokens: list[int]) -> None:
        num = len(tokens)
        self.tokens += tokens
        self.versions += [-1] * num
        self.logprobs += [0.0] * num
        self.trained += [False] * num

    def sample(self, completion: Completion, train: bool) -> None:
        num = len(completion.tokens)
        versions = [-1] * num
        for span in completion.spans:
            versions[span.start : span.end] = [span.version] * (span.end - span.start)
        if num and min(versions) < 0:
            raise RuntimeError(f"the engine stamped no version on some of {num} tokens: {completion.spans}")
        if completion.logprobs is not None and len(completion.logprobs) != num:
            raise RuntimeError(f"the engine gave {len(completion.logprobs)} log-probs for {num} tokens")
        self.tokens += completion.tokens
        self.versions += versions
        self.logprobs += [float("nan")] * num if completion.logprobs is None else completion.logprobs
        self.trained += [train] * num


class EnginePolicy:
    """Of one member of a group."""

    def __init__(
        self, engine: Engine, limits: SamplingLimits, task: int, attempt: int, member: int, prefix: str = ""
    ) -> None:
        self._engine, self._limits = engine, limits
        self._task, self._member = task, member
        self.name = prefix + request_id(task, attempt, member)
        """Tells it from all others that run."""
        self._sequences: list[_Sequence] = []
        self.last: Completion | None = None
        """What was sampled last, of what is trained; not by further agents."""
        self._calls = 0
        self._turns = {True: 0, False: 0}
        """Turns that are trained, and those that are not."""
        self._ended = 0
        """Trained ones that have ended, for their numbers."""
        self.running: set[str] = set()
        """Requests of the engine."""

    async def generate(self, ask: Ask) -> Sampled:
        """Raises ContextFull, GroupAborted, ValueError for what is no prompt, and what the engine raises."""
        limits, call, had = self._limits, self._calls, self._turns[ask.train]
        if not ask.tokens or not 0 <= min(ask.tokens) <= max(ask.tokens) < 2**31:
            raise ValueError("a prompt is one token or more, by their ids from 0 on")
        if ask.max_new_tokens is not None and ask.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {ask.max_new_tokens}; it must be 1 or more")
        room = limits.max_tokens - len(ask.tokens)
        if room < 1:
            raise ContextFull(
                f"the prompt has {len(ask.tokens)} tokens, and env.max_context_tokens is {limits.max_tokens}"
            )
        unfinished = self._unfinished(ask)
        before = unfinished.turn if unfinished else 0
        if before >= limits.max_new_tokens:
            raise ContextFull(f"the turn has its {before} tokens, and rollout.max_new_tokens is {before}")
        if unfinished is not None:
            unfinished.turn = 0
        elif had >= limits.max_turns:
            raise ContextFull(f"the rollout has had its {had} turns, and env.max_turns is {limits.max_turns}")
        else:
            self._turns[ask.train] += 1
        self._calls += 1
        left = limits.max_new_tokens - before
        longest = min(room, left, ask.max_new_tokens or left)
        stop, ends = (*limits.stop, *ask.stop), (*limits.stop_token_ids, *ask.stop_token_ids)
        params = SamplingParams(longest, limits.temperature, self._seed(call), stop, ends)
        request = f"{self.name}.{call}" if call else self.name
        self.running.add(request)
        try:
            completion = await self._engine.generate(ask.tokens, params, request_id=request)
        finally:
            self.running.discard(request)
        if completion.finish_reason == "abort":
            raise GroupAborted
        turn = self._record(ask, completion, before)
        version = completion.spans[-1].version if completion.spans else self._engine.version()
        return Sampled(completion.tokens, completion.logprobs, completion.finish_reason, version, turn)

    def _unfinished(self, ask: Ask) -> _Sequence | None:
        """The sequence whose last turn the call goes on with: its prompt is all of it."""
        own = (s for s in self._sequences if s.agent == ask.agent and s.turn and s.trained[-1] == ask.train)
        return next((s for s in own if s.tokens == ask.tokens), None)

    def _seed(self, call: int) -> int:
        # The same rollout for the same task and member, whoever samples it and however often it is started.
        entropy = [self._limits.seed, self._task, self._member, *([call] if call else [])]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _record(self, ask: Ask, completion: Completion, before: int) -> int:
        """The number of the turn."""
        if ask.train and not ask.agent:
            self.last = completion
        own = [s for s in self._sequences if s.agent == ask.agent]
        begins = [s for s in own if ask.tokens[: len(s.tokens)] == s.tokens]
        sequence = max(begins, key=lambda s: len(s.tokens), default=None)
        if sequence is None:
            sequence = _Sequence.begun(ask.tokens, ask.agent)
            self._sequences.append(sequence)
        else:
            sequence.observe(ask.tokens[len(sequence.tokens) :])
        sequence.sample(completion, ask.train)
        sequence.turn = before + len(completion.tokens)
        if not ask.train:
            return -1
        if before:
            number, _ = sequence.ends.pop()
        else:
            number, self._ended = self._ended, self._ended + 1
        sequence.ends.append((number, len(sequence.tokens)))
        return number

    def trajectories(
        self,
        prompt: list[int],
        score: Score,
        finish_reason: str,
        rewards: Mapping[str, float] | None = None,
        turn_rewards: Mapping[int, float] | None = None,
    ) -> list[Trajectory]:
        """One for each sequence, the longest-lived first; of a rollout that sampled nothing its prompt alone. The
        sampled tokens are the trained ones unless there is no reward (I7). `rewards`: of agents that have their own."""
        of = dict(rewards or {}) if score.reward is not None else {}
        earned = turn_rewards or {}
        return [
            Trajectory(
                tokens=np.array(s.tokens, np.int32),
                versions=np.array(s.versions, np.int32),
                logprobs=np.array(s.logprobs, np.float32),
                loss_mask=np.array(s.trained, np.bool_) & (score.reward is not None),
                reward=of.get(s.agent, score.reward),
                finish_reason=finish_reason,
                extras=score.extras,
                error=score.error,
                notes=score.notes,
                member=self._member,
                prompt=s.prompt,
                agent=s.agent,
                turns=tuple((turn, end, earned.get(turn, 0.0)) for turn, end in s.ends) if earned else (),
            )
            for s in self._sequences or [_Sequence.begun(prompt)]
        ]


def request_id(task: int, attempt: int, member: int) -> str:
    """Of a member's first request to the engine."""
    return f"{task}.{attempt}.{member}"
