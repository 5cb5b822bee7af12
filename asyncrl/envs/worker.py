"""The process of environments: runs a user's episodes on one event loop, and asks the generator for tokens.

Waits for: the generator's messages; the user's code. Unblocked by: the generator, which cancels an episode at its
deadline and ends the process if its loop does not answer.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import operator
import os
import socket
import sys
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from typing import Any

from asyncrl.envs.chat import Chat
from asyncrl.envs.environment import Ask, ContextFull, EpisodeOver, Sampled, ToolUse
from asyncrl.envs.gateway import Gateway, Session
from asyncrl.envs.load import Rollout, load
from asyncrl.envs.sandbox import Sandbox
from asyncrl.envs.template import NoTemplate, Template
from asyncrl.envs.tool_calls import HERMES, tool_parser
from asyncrl.envs.tools import RemoteTool, Toolbox
from asyncrl.envs.transcript import Transcript
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
from asyncrl.rewards.score import finite, to_score
from asyncrl.task import Message, Task

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


class Policy:
    """What an environment samples with. One for each episode."""

    def __init__(self, worker: Worker, name: str, task: Task, prompt: list[int]) -> None:
        self._worker, self._name, self._task = worker, name, task
        self.prompt = prompt
        """The task's prompt in tokens, as the model's chat template has it."""
        self.truncated = False
        self.tool_use = ToolUse()
        self.rewards: dict[str, float] = {}
        """Of further agents, by name."""
        self.turn_rewards: dict[int, float] = {}
        self._turn = -1
        self._agent = ""
        self.session: Session | None = None
        self._address = ""
        self._sandboxes: list[Sandbox] = []

    @property
    def base_url(self) -> str:
        """Of an OpenAI-compatible endpoint that is this episode's alone."""
        if self.session is None:
            worker = self._worker
            worker.require(self._name)
            self.session = Session(self, worker.template, worker.temperature, worker.warn)
            self._address = worker.gateway.open(self.session)
        return self._address

    @property
    def api_key(self) -> str:
        return self._worker.gateway.token

    def end(self) -> None:
        """Its endpoint answers no more."""
        if self.session is not None:
            self._worker.gateway.close(self._address)

    async def close_sandboxes(self) -> None:
        for sandbox in self._sandboxes:
            await sandbox.close()

    @property
    def tokenizer(self) -> Any:
        return self._worker.template.tokenizer

    async def generate(
        self,
        tokens: Sequence[int] | Ask,
        *,
        max_new_tokens: int | None = None,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        train: bool = True,
    ) -> Sampled:
        """One completion of the prompt `tokens`. What goes on from an earlier prompt and its completion extends that
        sequence, and its turn if nothing comes between. `train=False`: what is sampled is not trained.

        Raises ContextFull if there is no room for a token, or no turn is left, and ValueError for what is no prompt.
        """
        ask = tokens if isinstance(tokens, Ask) else Ask(list(tokens), max_new_tokens, stop, stop_token_ids, train)
        sampled = await self._worker.ask(self._name, replace(_checked(ask), agent=self._agent))
        if ask.train:
            self._turn = sampled.turn
            self.truncated = sampled.finish_reason == "length"
        return sampled

    def chat(
        self,
        messages: Sequence[Message] | None = None,
        *,
        tools: Sequence[Callable[..., Any] | RemoteTool] = (),
        tool_timeout_s: float | None = None,
        train: bool = True,
    ) -> Chat:
        """A conversation that begins with these messages (the task's if there are none). `tools`: functions that the
        model may call, their parameters with type hints, or tools of a server (`mcp.py`). Raises UserError if one
        cannot be a tool."""
        toolbox = self.toolbox(tools, tool_timeout_s)
        begin = self._task.messages if messages is None else messages
        if said := self._worker.template.unseen(toolbox.names, begin):
            self._worker.warn(said)
        if self._worker.template.end is None:
            self._worker.warn(
                "the model's chat template ends no turn with a token of its own, so that every turn of a conversation "
                "is a sequence of its own (completion/sequences_mean)"
            )
        return Chat(self, self._worker.template, begin, toolbox, train)

    def toolbox(self, tools: Sequence[Callable[..., Any]], tool_timeout_s: float | None = None) -> Toolbox:
        """For calls that are read in another way than a chat's. Raises UserError if one cannot be a tool."""
        return Toolbox(tools, tool_timeout_s or self._worker.tool_timeout_s, use=self.tool_use)

    async def sandbox(self, **limits: Any) -> Sandbox:
        """A place for code that the model writes, without files and network of the machine; it ends with the episode.
        `limits`: fields of Sandbox. Raises UserError where the machine allows none."""
        self._worker.require(self._name)
        sandbox = Sandbox(**limits)
        self._sandboxes.append(sandbox)
        return await sandbox.start()

    def agent(self, name: str) -> Policy:
        """A further agent of the episode, with sequences, reward and advantage of its own: it is compared with the
        agents of that name in the group's other rollouts."""
        if not name.isidentifier():
            raise ValueError(f"an agent's name is a word like judge, not {name!r}")
        other = copy.copy(self)
        other._agent = name
        return other

    def score(self, reward: float) -> None:
        """Of a further agent, which gets the episode's otherwise. Raises ValueError for what is no finite number."""
        number = finite(reward)
        if number is None or not self._agent:
            raise ValueError(
                f"{reward!r} is no finite number" if number is None else "the rollout returns its own reward"
            )
        self.rewards[self._agent] = number

    def transcript(self, messages: Sequence[Message] | None = None, *, train: bool = True) -> Transcript:
        """One turn behind these messages (the task's if there are none), to write in pieces and to read in between."""
        return Transcript(self, self._worker.template, self._task.messages if messages is None else messages, train)

    def reward(self, reward: float, turn: int | None = None) -> None:
        """What a turn has earned, the last one if none is named (`Sampled.turn`, `Reply.turn`): for `algorithm.credit:
        turn`. It is a part of the episode's reward, and changes nothing of that. Raises ValueError."""
        number, place = finite(reward), self._turn if turn is None else turn
        if number is None or place < 0:
            raise ValueError(
                f"{reward!r} is no finite number" if number is None else "there is no turn that is trained"
            )
        self.turn_rewards[place] = self.turn_rewards.get(place, 0.0) + number

    def truncate(self) -> None:
        """Says that the episode was cut off; of a last completion that was, it is known."""
        self.truncated = True


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


def _checked(ask: Ask) -> Ask:
    """As the generator reads it. Raises ValueError for what would be no message."""
    try:
        tokens = [operator.index(token) for token in ask.tokens]
        most = None if ask.max_new_tokens is None else operator.index(ask.max_new_tokens)
        ends = tuple(operator.index(token) for token in ask.stop_token_ids)
    except TypeError as error:
        raise ValueError(f"tokens, stop_token_ids and max_new_tokens are whole numbers: {error}") from error
    stop = (ask.stop,) if isinstance(ask.stop, str) else tuple(ask.stop)
    if not all(isinstance(text, str) and text for text in stop):
        raise ValueError(f"stop is one text or more, not {stop!r}")
    if not all(-(2**63) <= number < 2**63 for number in (*tokens, *ends, most or 0)):
        raise ValueError("a number of the call has more than 64 bits")
    return Ask(tokens, most, stop, ends, bool(ask.train))


def _cut_off(name: str, full: str) -> End:
    """The policy's own doing, no fault of the environment's: a reward function may judge it."""
    why = f"the episode was cut off ({full}; raise it, or catch asyncrl.envs.environment.ContextFull)"
    return End(name, finish_reason="length", why=why)
