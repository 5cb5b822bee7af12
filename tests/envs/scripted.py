"""An engine that samples given texts, in a time that jumps: what an episode takes is exact, and takes no time."""

from __future__ import annotations

import asyncio
import itertools
import selectors
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import chats

from asyncrl.envs.environment import Ask, Sampled
from asyncrl.envs.template import Template
from asyncrl.envs.tools import Toolbox
from asyncrl.envs.transcript import Transcript
from asyncrl.rewards.score import Score
from asyncrl.rollout.engine import Completion, SamplingParams, VersionSpan
from asyncrl.rollout.policy import EnginePolicy, SamplingLimits
from asyncrl.rollout.trajectory import Trajectory
from asyncrl.task import Message

T = TypeVar("T")
LIMITS = SamplingLimits(max_new_tokens=10_000, max_tokens=20_000, temperature=1.0, seed=0, max_turns=200)
TOKENIZER = chats.tokenizer(chats.CHATML, pairs=("><", "][", "]x", "12"))
"""`><` ends one mark and begins another."""
QUESTION: list[Message] = [{"role": "user", "content": "Go."}]


class _Jumping(selectors.DefaultSelector):
    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "deadlock: nothing is ready, and no timer runs"
            self.now += max(timeout, 0.0)
        return ready


class JumpingLoop(asyncio.SelectorEventLoop):
    """Its time goes on only when nothing is ready, and then to the next timer. Not for threads."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(scenario: Coroutine[Any, Any, T]) -> tuple[T, float]:
    """What it returns, and the seconds that it took. No task is left."""

    async def watched() -> tuple[T, float]:
        result = await scenario
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return result, asyncio.get_running_loop().time()

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(watched())


@dataclass
class Script:
    """What one sequence samples, and the seconds of each token; then the end of the turn, in no time."""

    tokens: list[int]
    seconds: list[float]

    @classmethod
    def of(cls, *pieces: tuple[str, float], cuts: Sequence[int] = ()) -> Script:
        """Pieces of text, and the seconds that each of their tokens takes. A token of the text ends at each cut."""
        tokens, seconds = [], []
        for text, token_s in pieces:
            places = [0, *sorted({cut for cut in cuts if 0 < cut < len(text)}), len(text)]
            for start, end in itertools.pairwise(places):
                part = TOKENIZER(text[start:end], add_special_tokens=False, split_special_tokens=True).input_ids
                tokens += part
                seconds += [token_s] * len(part)
        return cls(tokens, seconds)

    def closed(self, seconds: float) -> Script:
        """The end of the turn takes its time too."""
        return Script([*self.tokens, TOKENIZER.eos_token_id], [*self.seconds, seconds])


@dataclass
class _Sequence:
    script: Script
    seen: list[int]
    place: int = 0


@dataclass
class ScriptedEngine:
    """Goes on with the script of a sequence, whatever was read in between."""

    script_of: Callable[[str], Script]
    """By the text of the first prompt."""
    sequences: list[_Sequence] = field(default_factory=list)

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        going_on = [s for s in self.sequences if s.place and tokens[: len(s.seen)] == s.seen]
        sequence = max(going_on, key=lambda s: len(s.seen), default=None)
        if sequence is None:
            sequence = _Sequence(self.script_of(TOKENIZER.decode(tokens)), tokens)
            self.sequences.append(sequence)
        sampled: list[int] = []
        reason = "length"
        while reason == "length" and len(sampled) < params.max_new_tokens:
            place = sequence.place + len(sampled)
            is_over = place >= len(sequence.script.tokens)
            await asyncio.sleep(0 if is_over else sequence.script.seconds[place])
            sampled.append(TOKENIZER.eos_token_id if is_over else sequence.script.tokens[place])
            text = TOKENIZER.decode(sampled)
            if sampled[-1] in params.stop_token_ids or any(stop in text for stop in params.stop):
                reason = "stop"
        sequence.place += len(sampled)
        sequence.seen = [*tokens, *sampled]
        return Completion(sampled, [-0.5] * len(sampled), [VersionSpan(0, 0, len(sampled))], reason)

    def version(self) -> int:
        return 0


class ScriptedPolicy:
    """What an environment samples with, over the record of the generator. One for each episode."""

    def __init__(self, scripts: Script | Mapping[str, Script], limits: SamplingLimits = LIMITS) -> None:
        """scripts: of the sequence whose first prompt has the key in it."""

        def script_of(prompt: str) -> Script:
            if isinstance(scripts, Script):
                return scripts
            return next(script for key, script in scripts.items() if key in prompt)

        self.record = EnginePolicy(ScriptedEngine(script_of), limits, 0, 0, 0)  # type: ignore[arg-type]
        self.truncated = False

    async def generate(self, ask: Ask) -> Sampled:
        return await self.record.generate(ask)

    def transcript(self, messages: Sequence[Message] = QUESTION) -> Transcript:
        return Transcript(self, Template(TOKENIZER), messages)

    def toolbox(self, tools: Sequence[Callable[..., Any]], tool_timeout_s: float = 5.0) -> Toolbox:
        return Toolbox(tools, tool_timeout_s)

    def truncate(self) -> None:
        self.truncated = True

    @property
    def trajectories(self) -> list[Trajectory]:
        return self.record.trajectories([1], Score(1.0), "stop")


def trained(trajectory: Trajectory) -> list[int]:
    """Its trained tokens, which are those that were sampled."""
    assert ((trajectory.versions >= 0) == trajectory.loss_mask).all()
    return [int(token) for token in trajectory.tokens[trajectory.loss_mask]]


def spans(trajectory: Trajectory) -> list[tuple[bool, str]]:
    """Behind the prompt: what was written (True) and what was read, in turns, as texts."""
    found: list[tuple[bool, list[int]]] = []
    for place in range(trajectory.prompt_length, len(trajectory.tokens)):
        is_written = bool(trajectory.loss_mask[place])
        if not found or found[-1][0] != is_written:
            found.append((is_written, []))
        found[-1][1].append(int(trajectory.tokens[place]))
    return [(is_written, TOKENIZER.decode(tokens)) for is_written, tokens in found]
