"""Runs a recipe's environment in processes of its own, each with many episodes at once.

An environment is the user's code: it may hang, hold the event loop, exhaust memory or crash. So it never runs in the
generator: a process that dies takes its own episodes with it, which are masked and counted, and another is started.
What an episode samples is recorded here (`rollout/policy.py`), where its code cannot change it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import msgspec

from asyncrl import memory
from asyncrl.envs.environment import Ask, ContextFull, Episode, Policy
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
        """Waits for: the episode, for `env.episode_s` at most. What the policy raises passes through."""
        process = min(self._processes, key=lambda p: len(p.episodes))
        try:
            await process.ready()
        except UserError as error:
            return Episode(failed(f"no process for the environment: {error}"))
        episode = process.begin(name, task, prompt, policy)
        try:
            async with asyncio.timeout(self._settings.episode_s):
                return await asyncio.shield(episode.ended)
        except TimeoutError:
            why = await process.cancel(episode)
            return Episode(failed(f"the episode timed out after {self._settings.episode_s:g} s (env.episode_s){why}"))
        except BaseException:
            # Cancelled, or the policy's own: the process need not be waited for.
            process.forget(episode)
            raise

    async def close(self) -> None:
        """Ends the processes and all that they started."""
        await asyncio.gather(*(process.end("the pool was closed") for process in self._processes))


@dataclass
class _Episode:
    name: str
    policy: Policy
    ended: asyncio.Future[Episode]
    calls: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)
    """The process has said that it ended, or is gone."""


class _Process:
    """One process, and the next one when it is gone."""

    def __init__(self, settings: EnvSettings) -> None:
        self._settings = settings
        self.episodes: dict[str, _Episode] = {}
        self._channel: Channel | None = None
        self._kept: Kept | None = None
        self._listening: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()
        self._loaded: asyncio.Future[Loaded] | None = None

    async def ready(self) -> None:
        """Returns once it has loaded the environment; starts one if there is none. Raises UserError if it cannot."""
        async with self._starting:
            if self._channel is None:
                await self._start()

    async def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            self._kept = Kept(self._settings.code, theirs.fileno())
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

    # -- episodes

    def begin(self, name: str, task: Task, prompt: list[int], policy: Policy) -> _Episode:
        episode = _Episode(name, policy, asyncio.get_running_loop().create_future())
        episode.ended.add_done_callback(lambda ended: ended.cancelled() or ended.exception())  # someone looked at it
        self.episodes[name] = episode
        self._say(Start(name, task, prompt))
        return episode

    async def cancel(self, episode: _Episode) -> str:
        """Ends an episode. If the process does not answer, its event loop is held by someone's code, and all of its
        episodes end with it; that is returned, for people."""
        self._stop_calls(episode)
        self._say(Cancel(episode.name))
        try:
            async with asyncio.timeout(_YIELD_S):
                await episode.told.wait()
        except TimeoutError:
            why = (
                f"the environment's process did not answer for {_YIELD_S:g} s: something holds its event loop; make "
                "what blocks a plain function, which runs in a thread, or await it"
            )
            await self.end(why)
            return f"; {why}"
        return ""

    def forget(self, episode: _Episode) -> None:
        """The same without waiting."""
        self._stop_calls(episode)
        self._say(Cancel(episode.name))

    def _stop_calls(self, episode: _Episode) -> None:
        for call in list(episode.calls.values()):
            call.cancel()

    def _say(self, message: Start | Cancel | Answer | Refusal) -> None:
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
            case Call(name=name) if name in self.episodes:
                episode = self.episodes[name]
                task = asyncio.create_task(self._call(episode, message))
                episode.calls[message.call] = task
                task.add_done_callback(lambda _, number=message.call: episode.calls.pop(number, None))
            case Drop(name=name, call=number) if name in self.episodes:
                if number in self.episodes[name].calls:
                    self.episodes[name].calls[number].cancel()
            case End(name=name) if name in self.episodes:
                episode = self.episodes.pop(name)
                self._stop_calls(episode)
                episode.told.set()
                if not episode.ended.done():
                    episode.ended.set_result(_episode(message))

    async def _call(self, episode: _Episode, call: Call) -> None:
        stop, ends = tuple(call.stop), tuple(call.stop_token_ids)
        ask = Ask(call.tokens, call.max_new_tokens, stop, ends, call.train)
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
        self._channel = self._kept = None
        self.episodes.clear()
        if channel is not None:
            channel.close()
        if self._listening is not None and self._listening is not asyncio.current_task():
            self._listening.cancel()
        words = await asyncio.to_thread(kept.kill) if kept is not None else ""
        if self._loaded is not None and not self._loaded.done():
            self._loaded.set_result(Loaded(why or words))
        for episode in episodes:
            self._stop_calls(episode)
            episode.told.set()
            if not episode.ended.done():
                episode.ended.set_result(Episode(failed(why or words)))


def _episode(end: End) -> Episode:
    if not end.is_scored:
        return Episode(None, end.finish_reason, end.why)
    return Episode(Score(end.reward, end.extras, end.error, end.notes), end.finish_reason)
