"""What an environment samples with: one for each episode, and for each further agent of it."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from asyncrl.envs.chat import Chat
from asyncrl.envs.environment import Ask, Sampled, ToolUse
from asyncrl.envs.gateway import Gateway, Session
from asyncrl.envs.sandbox import Sandbox
from asyncrl.envs.template import Template
from asyncrl.envs.tools import RemoteTool, Toolbox
from asyncrl.envs.transcript import Transcript
from asyncrl.rewards.score import finite
from asyncrl.task import Message, Task


class Host(Protocol):
    """Of a policy: the process of environments."""

    template: Template
    tool_timeout_s: float
    temperature: float

    @property
    def gateway(self) -> Gateway: ...

    def warn(self, text: str) -> None: ...

    def require(self, name: str) -> None:
        """Raises EpisodeOver."""

    async def ask(self, name: str, ask: Ask) -> Sampled: ...


class Policy:
    """What an environment samples with. One for each episode."""

    def __init__(self, worker: Host, name: str, task: Task, prompt: list[int]) -> None:
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
        self._addresses: list[str] = []
        """Of further agents too."""
        self._sandboxes: list[Sandbox] = []

    @property
    def base_url(self) -> str:
        """Of an OpenAI-compatible endpoint that is this episode's alone."""
        if self.session is None:
            worker = self._worker
            worker.require(self._name)
            self.session = Session(self, worker.template, worker.temperature, worker.warn)
            self._address = worker.gateway.open(self.session)
            self._addresses.append(self._address)
        return self._address

    @property
    def api_key(self) -> str:
        return self._worker.gateway.token

    def end(self) -> None:
        """Its endpoints answer no more."""
        for address in self._addresses:
            self._worker.gateway.close(address)

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
        other._agent, other.session, other._turn = name, None, -1
        return other

    def score(self, reward: float) -> None:
        """Of a further agent, which gets the episode's otherwise. Raises ValueError for what is no finite number."""
        if not self._agent:
            raise ValueError("the rollout returns its own reward")
        self.rewards[self._agent] = _number(reward)

    def transcript(self, messages: Sequence[Message] | None = None, *, train: bool = True) -> Transcript:
        """One turn behind these messages (the task's if there are none), to write in pieces and to read in between."""
        return Transcript(self, self._worker.template, self._task.messages if messages is None else messages, train)

    def reward(self, reward: float, turn: int | None = None) -> None:
        """What a turn has earned, the last one if none is named (`Sampled.turn`, `Reply.turn`): for `algorithm.credit:
        turn`. It is a part of the episode's reward, and changes nothing of that. Raises ValueError."""
        place = self._turn if turn is None else turn
        if place < 0:
            raise ValueError("there is no turn that is trained")
        self.turn_rewards[place] = self.turn_rewards.get(place, 0.0) + _number(reward)

    def truncate(self) -> None:
        """Says that the episode was cut off; of a last completion that was, it is known."""
        self.truncated = True


def _number(reward: float) -> float:
    number = finite(reward)
    if number is None:
        raise ValueError(f"{reward!r} is no finite number")
    return number


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
