"""The process of environments: runs a user's episodes on one event loop, and asks the generator for tokens.

Waits for: the generator's messages; the user's code. Unblocked by: the generator, which cancels an episode at its
deadline and ends the process if its loop does not answer.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import socket
import sys
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from typing import Any

from asyncrl.envs.environment import Ask, ContextFull, EpisodeOver, Sampled
from asyncrl.envs.gateway import Gateway
from asyncrl.envs.load import Rollout, load
from asyncrl.envs.policy import Policy
from asyncrl.envs.template import NoTemplate, Template
from asyncrl.envs.tool_calls import HERMES, tool_parser
from asyncrl.envs.watchdog import Watchdog
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
    from_generator,
    to_generator,
)
from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes.children import die_with_parent
from asyncrl.rewards.score import to_score
from asyncrl.task import Task

_MOST_NOTES = 100
_THREADS = 1024
"""For plain functions: each episode that runs one holds one."""


def main(handle: int, parent_pid: int) -> None:
    """Serves the socket `handle` until the other end hangs up."""
    die_with_parent(parent_pid)
    os.set_inheritable(handle, False)
    asyncio.run(_serve(socket.socket(fileno=handle)))


async def _serve(connection: socket.socket) -> None:
    reader, writer = await asyncio.open_connection(sock=connection, limit=2**20)
    worker = Worker(Channel(reader, writer))
    asyncio.get_running_loop().set_default_executor(_Threads(worker.warn))
    await worker.serve()


class _Threads(ThreadPoolExecutor):
    """Says so when they are all taken. Used by the event loop's thread alone."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        super().__init__(_THREADS, "environment")
        self._warn, self._futures = warn, set[Future[Any]]()

    def submit(self, *arguments: Any, **kwargs: Any) -> Future[Any]:
        self._futures = {future for future in self._futures if not future.done()}
        if len(self._futures) >= _THREADS:
            self._warn(
                f"{_THREADS} plain functions of the environment run, and others wait until one returns: those of an "
                "episode that has ended go on; give what waits a timeout"
            )
        future = super().submit(*arguments, **kwargs)
        self._futures.add(future)
        return future


class Worker:
    """Lives on one event loop."""

    template: Template
    rollout: Rollout
    tool_timeout_s: float
    temperature: float

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._episodes: dict[str, asyncio.Task[End]] = {}
        self._calls: dict[int, asyncio.Future[Sampled]] = {}
        self._of: dict[int, str] = {}
        """Whose call it is."""
        self._numbers = itertools.count()
        self._said: set[str] = set()

    @cached_property
    def gateway(self) -> Gateway:
        return Gateway()

    async def serve(self) -> None:
        watching = asyncio.create_task(Watchdog(self.warn).watch())
        try:
            await self._serve()
        finally:
            watching.cancel()

    async def _serve(self) -> None:
        while (payload := await self._channel.receive()) is not None:
            match from_generator(payload):
                case Load() as begin:
                    self._say(self._load(begin))
                case Start(name, task, prompt):
                    self._begin(name, task, prompt)
                case Cancel(name) if name in self._episodes:
                    self._episodes[name].cancel()
                case Ping():
                    self._say(Pong())
                case Answer(call, sampled):
                    self._settle(call, sampled)
                case Refusal(call, why, full):
                    self._settle(call, ContextFull(why) if full else ValueError(why))

    def _settle(self, call: int, outcome: Sampled | Exception) -> None:
        future = self._calls.pop(call, None)
        if future is None or future.done():
            return
        if isinstance(outcome, Sampled):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)

    def _say(self, message: FromProcess) -> None:
        self._channel.send(to_generator(message))

    def warn(self, text: str) -> None:
        """In the run's log, once; of a process that has said a hundred things no more."""
        if text not in self._said and len(self._said) < _MOST_NOTES:
            self._said.add(text)
            self._say(Note(text))

    def _load(self, begin: Load) -> Loaded:
        from asyncrl.models import load_tokenizer

        self.tool_timeout_s, self.temperature = begin.tool_timeout_s, begin.temperature
        try:
            tokenizer = load_tokenizer(begin.model)
            name, parser = tool_parser(begin.tool_parser, tokenizer)
            if begin.tool_parser is None and name != HERMES:
                self.warn(f"tool calls are read in the form of the chat template (env.tool_parser={name})")
            self.template = Template(tokenizer, begin.template_kwargs, parser)
            self.rollout = load(begin.spec, begin.base_dir, begin.kwargs)
        except UserError as error:
            return Loaded(str(error))
        except Exception as error:
            return Loaded(f"env '{begin.spec}' cannot be made: {one_line(error)}")
        return Loaded(None)

    def require(self, name: str) -> None:
        """Raises EpisodeOver."""
        if name not in self._episodes:
            raise EpisodeOver("the episode has ended")

    async def ask(self, name: str, ask: Ask) -> Sampled:
        self.require(name)
        call = next(self._numbers)
        self._of[call] = name
        future = self._calls[call] = asyncio.get_running_loop().create_future()
        stop, ends = list(ask.stop), list(ask.stop_token_ids)
        self._say(Call(name, call, ask.tokens, ask.max_new_tokens, stop, ends, ask.train, ask.agent))
        try:
            return await future
        except asyncio.CancelledError:
            self._say(Drop(name, call))
            raise
        finally:
            self._calls.pop(call, None)
            self._of.pop(call, None)

    def _begin(self, name: str, task: Task, prompt: list[int]) -> None:
        policy = Policy(self, name, task, prompt)
        episode = self._episodes[name] = asyncio.create_task(self._rolled_out(policy, name, task))
        # Not in the coroutine: one that is cancelled before its first line never gets to its last.
        episode.add_done_callback(lambda ended: self._ended(name, policy, ended))

    def _ended(self, name: str, policy: Policy, episode: asyncio.Task[End]) -> None:
        """Tells the generator how it ended, however it did."""
        del self._episodes[name]
        policy.end()
        for call in [call for call, owner in self._of.items() if owner == name]:
            self._settle(call, EpisodeOver("the episode has ended"))
        error = "the episode was cancelled" if episode.cancelled() else None
        if error is None and (raised := episode.exception()) is not None:
            error = f"the environment failed: {one_line(raised)}"
        end = episode.result() if error is None else End(name, error=error, is_scored=True)
        use, end.rewards, end.turn_rewards = policy.tool_use, policy.rewards, policy.turn_rewards
        end.tool_calls, end.tool_failures, end.tool_s = use.calls, use.failed, use.seconds
        self._say(end)

    async def _rolled_out(self, policy: Policy, name: str, task: Task) -> End:
        try:
            value = await self.rollout(task, policy)
            if value is None and policy.session is not None:
                value = policy.session.reward
            score = None if value is None else to_score(value)
        except ContextFull as full:
            return _cut_off(name, str(full))
        except (NoTemplate, UserError) as error:
            return End(name, error=f"the environment failed: {error}", is_scored=True)
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # SystemExit too: an agent may be a program
            # Its client has an exception of its own for a context that is full.
            if policy.session is not None and policy.session.full:
                return _cut_off(name, policy.session.full)
            # Where it prints goes to RUN_DIR/environments.log.
            sys.stderr.write(f"episode {name}:\n{''.join(traceback.format_exception(error))}")
            sys.stderr.flush()
            return End(name, error=f"the environment failed: {one_line(error)}", is_scored=True)
        finally:
            await policy.close_sandboxes()
        reason = "length" if policy.truncated else "stop"
        if score is None:
            return End(name, finish_reason=reason)
        error = score.error and f"the environment failed: {score.error}"
        return End(name, score.reward, score.extras, score.notes, error, True, reason)


def _cut_off(name: str, full: str) -> End:
    """The policy's own doing, no fault of the environment's: a reward function may judge it."""
    why = f"the episode was cut off ({full}; raise it, or catch asyncrl.envs.environment.ContextFull)"
    return End(name, finish_reason="length", why=why)
