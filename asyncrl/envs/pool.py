"""Runs a recipe's environment in processes of its own, each with many episodes at once.

An environment is the user's code: it may hang, hold the event loop, exhaust memory or crash. So it never runs in the
generator: a process that dies takes its own episodes with it, which are masked and counted, and another is started.
What an episode samples is recorded here (`rollout/policy.py`), where its code cannot change it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from asyncrl import memory
from asyncrl.envs.environment import Ask, ContextFull, Episode, Policy, ToolUse
from asyncrl.envs.wire import (
    Answer,
    Call,
    Cancel,
    Channel,
    Drop,
    End,
    FromProcess,
    Load,
    Loaded,
    Note,
    Ping,
    Pong,
    Refusal,
    Start,
    from_process,
    to_process,
)
from asyncrl.errors import UserError
from asyncrl.processes.keeper import Code
from asyncrl.processes.kept import Kept
from asyncrl.rewards.score import Score, failed
from asyncrl.task import Task

logger = logging.getLogger(__name__)

_START_S = 300.0
_YIELD_S = 10.0
"""For an episode that was cancelled to end, before its process is taken for stuck."""


@dataclass(frozen=True)
class EnvSettings:
    """The part of the recipe that the pool needs."""

    load: Load
    workers: int
    episode_s: float
    file_gib: float
    memory_gib: float | None = None
    """None: half of the memory there is."""
    log: Path | None = None

    @cached_property
    def code(self) -> Code:
        limit = self.memory_gib or memory.total() / 2**31
        log = str(self.log or "")
        return Code("environment", "asyncrl.envs.worker", limit, "env.memory_gib", self.file_gib, log)


class EnvPool:
    """An Environment. Lives on one event loop, whose thread must live as long as its processes."""

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        _ = settings.code  # now, as it remembers the cores
        self._processes = [_Process(settings) for _ in range(settings.workers)]

    async def start(self) -> None:
        """Starts the processes, which load the environment. Raises UserError if they cannot."""
        await asyncio.gather(*(process.ready() for process in self._processes))

    async def rollout(self, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
        """Waits for: the process to be loaded; the episode, for `env.episode_s` at most. What the policy raises passes
        through."""
        process = min(self._processes, key=lambda p: p.load)
        process.load += 1
        try:
            await process.ready()
            return await self._rolled_out(process, task, prompt, policy, name)
        except UserError as error:
            return Episode(failed(f"no process for the environment: {error}"))
        finally:
            process.load -= 1

    async def _rolled_out(self, process: _Process, task: Task, prompt: list[int], policy: Policy, name: str) -> Episode:
        episode = process.begin(name, task, prompt, policy)
        try:
            async with asyncio.timeout(self._settings.episode_s) as deadline:
                return await asyncio.shield(episode.ended)
        except TimeoutError:
            if not deadline.expired():  # the policy's own
                process.forget(episode)
                raise
            why = await process.cancel(episode)
            return Episode(failed(f"the episode timed out after {self._settings.episode_s:g} s (env.episode_s){why}"))
        except BaseException:
            # Cancelled, or the policy's own: nobody waits for the process.
            process.forget(episode)
            raise

    async def close(self) -> None:
        """Ends the processes and all that they started; no other is started."""
        await asyncio.gather(*(process.close() for process in self._processes))


@dataclass
class _Episode:
    name: str
    policy: Policy
    ended: asyncio.Future[Episode]
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """The process has said that it ended, or is gone."""
    is_over: bool = False
    """Nothing is sampled for it any more."""

    def stop(self) -> None:
        self.is_over = True
        for call in list(self.calls.values()):
            call.cancel()


class _Process:
    """One process, and the next one when it is gone."""

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        self.episodes: dict[str, _Episode] = {}
        self._channel: Channel | None = None
        self._kept: Kept | None = None
        self._listening: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[None] | None = None
        """To start one; all who wait for it share its outcome."""
        self._loaded: asyncio.Future[Loaded] | None = None
        self._answered = asyncio.Event()
        self._background: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.load = 0
        """Rollouts that it has, or that wait for it."""

    async def ready(self) -> None:
        """Returns once it has loaded the environment; starts one if there is none. Raises UserError if it cannot."""
        if self._attempt is None or (self._attempt.done() and self._channel is None):
            self._attempt = asyncio.create_task(self._start())
        await asyncio.shield(self._attempt)

    async def _start(self) -> None:
        if self._closed:
            raise UserError("the pool is closed")
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                self._kept = Kept(self._settings.code, theirs.fileno())
        except OSError as error:
            ours.close()
            raise UserError(f"no process can be started: {error}") from error
        self._channel = Channel(*await asyncio.open_connection(sock=ours, limit=2**20))
        self._loaded = asyncio.get_running_loop().create_future()
        self._listening = asyncio.create_task(self._listen(self._channel))
        self._channel.send(to_process(self._settings.load))
        try:
            async with asyncio.timeout(_START_S):
                loaded = await asyncio.shield(self._loaded)
        except TimeoutError:
            await self.end(why := f"env '{self._settings.load.spec}' did not load within {_START_S:g} s")
            raise UserError(why) from None
        if loaded.error:
            await self.end(loaded.error)
            raise UserError(loaded.error)

    async def close(self) -> None:
        self._closed = True
        await self.end("the pool was closed")

    # -- episodes

    def begin(self, name: str, task: Task, prompt: list[int], policy: Policy) -> _Episode:
        episode = _Episode(name, policy, asyncio.get_running_loop().create_future())
        episode.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # someone looked at it
        if self._channel is None:
            _end(episode, Episode(failed("the environment's process died before the episode began")))
            return episode
        self.episodes[name] = episode
        self._say(Start(name, task, prompt))
        return episode

    async def cancel(self, episode: _Episode) -> str:
        """Ends an episode. If its process does not answer at all, its event loop is held by someone's code, and all of
        its episodes end with it; that is returned, for people."""
        episode.stop()
        self._say(Cancel(episode.name))
        if await _within(_YIELD_S, episode.told):
            return ""
        self._answered.clear()
        self._say(Ping())
        if await _within(_YIELD_S, self._answered):
            # Only this one does not end: it cleans up for long, or catches its cancellation.
            self.episodes.pop(episode.name, None)
            return "; it has not ended since"
        why = (
            f"the environment's process did not answer for {_YIELD_S:g} s: something holds its event loop; make "
            "what blocks a plain function, which runs in a thread, or await it"
        )
        await self.end(why)
        return f"; {why}"

    def forget(self, episode: _Episode) -> None:
        """The same, and nobody waits for it."""
        task = asyncio.create_task(self.cancel(episode))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _say(self, message: Start | Cancel | Ping | Answer | Refusal) -> None:
        if self._channel is not None:
            self._channel.send(to_process(message))

    # -- what the process says

    async def _listen(self, channel: Channel) -> None:
        why = ""
        try:
            while (payload := await channel.receive()) is not None:
                self._heard(from_process(payload))
        except (msgspec.DecodeError, ValueError) as error:
            why = f"the environment's process sent what is no message: {error}"
        if self._channel is channel:
            await self.end(why)

    def _heard(self, message: FromProcess) -> None:
        match message:
            case Loaded():
                if self._loaded is not None and not self._loaded.done():
                    self._loaded.set_result(message)
            case Note(text=text):
                logger.warning("%s", text)
            case Pong():
                self._answered.set()
            case Call(name=name) if name in self.episodes and not self.episodes[name].is_over:
                episode = self.episodes[name]
                task = asyncio.create_task(self._call(episode, message))
                episode.calls[message.call] = task
                task.add_done_callback(lambda _, number=message.call: episode.calls.pop(number, None))
            case Drop(name=name, call=number) if name in self.episodes:
                if number in self.episodes[name].calls:
                    self.episodes[name].calls[number].cancel()
            case End(name=name) if name in self.episodes:
                _end(self.episodes.pop(name), _episode(message))

    async def _call(self, episode: _Episode, call: Call) -> None:
        stop, ends = tuple(call.stop), tuple(call.stop_token_ids)
        ask = Ask(call.tokens, call.max_new_tokens, stop, ends, call.train, call.agent)
        try:
            self._say(Answer(call.call, await episode.policy.generate(ask)))
        except ContextFull as full:
            self._say(Refusal(call.call, str(full)))
        except ValueError as error:  # tokens that the model does not have, say: the environment's doing
            self._say(Refusal(call.call, str(error), full=False))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            if not episode.ended.done():
                episode.ended.set_exception(error)

    async def end(self, why: str) -> None:
        """Ends the process; its episodes have failed, for `why` or for what it died of. The next `ready` starts one."""
        channel, kept, episodes = self._channel, self._kept, list(self.episodes.values())
        loaded = self._loaded
        self._channel = self._kept = None
        self.episodes.clear()
        if channel is not None:
            channel.close()  # `_listen` ends by this
        words = "the environment's process was ended"
        try:
            if kept is not None:
                words = await asyncio.to_thread(kept.kill)
        finally:
            if loaded is not None and not loaded.done():
                loaded.set_result(Loaded(why or words))
            for episode in episodes:
                _end(episode, Episode(failed(why or words)))


async def _within(seconds: float, event: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


def _end(episode: _Episode, outcome: Episode) -> None:
    episode.stop()
    episode.told.set()
    if not episode.ended.done():
        episode.ended.set_result(outcome)


def _episode(end: End) -> Episode:
    """A user's code may have written it."""
    reason = end.finish_reason if end.finish_reason in ("stop", "length") else "stop"
    use = ToolUse(end.tool_calls, end.tool_failures, end.tool_s if math.isfinite(end.tool_s) else 0.0)
    rewards = {name: number for name, number in end.rewards.items() if math.isfinite(number)}
    turns = {turn: number for turn, number in end.turn_rewards.items() if math.isfinite(number)}
    if not end.is_scored:
        return Episode(None, reason, end.why, use, rewards, turns)
    error = end.error
    if error is None and (end.reward is None or not math.isfinite(end.reward)):
        error = f"the environment failed: the reward is {end.reward}, not a finite number"
    extras = {name: number for name, number in end.extras.items() if math.isfinite(number)}
    return Episode(Score(None if error else end.reward, extras, error, end.notes), reason, "", use, rewards, turns)
