"""A conversation with the policy: messages in, replies out, no token rendered twice."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from asyncrl.envs.environment import Ask, ContextFull, Sampled
from asyncrl.envs.template import Template
from asyncrl.envs.tool_calls import ToolCall
from asyncrl.envs.tools import Toolbox
from asyncrl.task import Message


class Generates(Protocol):
    """The part of a policy that a conversation needs."""

    async def generate(self, ask: Ask) -> Sampled: ...


@dataclass(frozen=True)
class Reply:
    """One turn of the assistant."""

    text: str
    """What it says, without thoughts and tool calls."""
    thoughts: str | None
    tool_calls: list[ToolCall]
    """Calls that it asked for, those with an error too; none of a turn that was cut off."""
    finish_reason: str
    """`stop`, or `length` if it was cut off."""
    message: Message
    """As it stands in the conversation."""
    num_prompt_tokens: int = 0
    num_tokens: int = 0
    """Sampled."""
    turn: int = -1
    """As `Sampled.turn`."""


class Chat:
    """`messages` is the conversation so far."""

    def __init__(
        self,
        policy: Generates,
        template: Template,
        messages: Sequence[Message],
        toolbox: Toolbox,
        train: bool = True,
        turn: int = 0,
    ) -> None:
        """turn: from which on its replies are counted, for the ids of their tool calls."""
        self.messages: list[Message] = [dict(message) for message in messages]
        self._policy, self._template, self._toolbox, self._train = policy, template, toolbox, train
        self._prompt: list[int] = []
        self._sampled: list[int] = []
        self._answered: list[Message] = []
        """Messages up to the last reply, it included, as they were then."""
        self._turn = turn

    def fork(self) -> Chat:
        """One that goes on from here by itself; what was sampled so far is trained once."""
        other = copy.copy(self)
        other.messages = list(self.messages)
        return other

    def add(self, *messages: str | Message) -> None:
        """What the model reads next; a text is the user's."""
        self.messages += [{"role": "user", "content": m} if isinstance(m, str) else dict(m) for m in messages]

    async def reply(self, *, max_new_tokens: int | None = None, stop: Sequence[str] = ()) -> Reply:
        """The next turn of the assistant. Raises ContextFull if there is no room for it, NoTemplate if the model's
        template refuses the conversation."""
        prompt = self._next_prompt()
        ends, stops = self._template.stop_token_ids, (stop,) if isinstance(stop, str) else tuple(stop)
        sampled = await self._policy.generate(Ask(prompt, max_new_tokens, stops, ends, self._train))
        parsed = self._template.parse(sampled.tokens, prompt, self._turn, self._toolbox.schemas)
        cut = sampled.finish_reason == "length"
        self._prompt, self._sampled = prompt, sampled.tokens
        self._turn += 1
        self.messages.append(parsed.message)
        self._answered = copy.deepcopy(self.messages)
        calls = [] if cut else parsed.tool_calls
        sizes = len(prompt), len(sampled.tokens)
        return Reply(parsed.text, parsed.thoughts, calls, sampled.finish_reason, parsed.message, *sizes, sampled.turn)

    def _next_prompt(self) -> list[int]:
        schemas = self._toolbox.schemas
        number = len(self._answered)
        if number and self.messages[:number] == self._answered:  # else someone has changed the history
            bridge = self._template.bridge(self._sampled, self._answered, self.messages[number:], schemas)
            if bridge is not None:
                return [*self._prompt, *self._sampled, *bridge]
        return self._template.render(self.messages, schemas)

    async def run_tools(self, *, max_turns: int | None = None, max_new_tokens: int | None = None) -> Reply:
        """Replies, and makes the calls that are asked for, until a turn asks for none or is cut off. Where the next
        turn has no room, the last one is returned as cut off (`length`)."""
        reply = await self.reply(max_new_tokens=max_new_tokens)
        turns = 1
        while reply.tool_calls:
            self.add(*await self._toolbox.answer(reply.tool_calls))
            if turns == max_turns:
                return _cut(reply)
            try:
                reply = await self.reply(max_new_tokens=max_new_tokens)
            except ContextFull:
                return _cut(reply)
            turns += 1
        return reply


def _cut(reply: Reply) -> Reply:
    return replace(reply, finish_reason="length")
