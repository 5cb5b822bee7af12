"""One sequence of an episode that the model writes and, between two tokens of one turn, reads: below a chat's turns."""

from __future__ import annotations

from collections.abc import Sequence

from asyncrl.envs.chat import Generates
from asyncrl.envs.environment import Ask
from asyncrl.envs.template import Template
from asyncrl.task import Message


class Transcript:
    """Begins where the assistant does. What is written is trained, what is read is not."""

    def __init__(self, policy: Generates, template: Template, messages: Sequence[Message], train: bool = True) -> None:
        self._policy, self._template, self._train = policy, template, train
        self._tokens = template.render(messages)
        self._new: list[int] = []
        """What it has written since it read last."""
        self._earlier = ""
        """What it has written before."""
        self._taken = 0
        self.ended = False
        """The model has ended its turn."""

    @property
    def text(self) -> str:
        """What it has written since it read last, without what was taken."""
        return self._decoded(self._new)[self._taken :]

    @property
    def written(self) -> str:
        """All that it has written."""
        return self._earlier + self._decoded(self._new)

    def take(self, num_chars: int) -> None:
        """Looks no more at the first characters of the text."""
        self._taken += num_chars

    async def write(self, stop: Sequence[str], max_new_tokens: int | None = None) -> int:
        """Goes on with the turn: up to one of the texts `stop`, which may have begun before, to the end of the turn,
        or for `max_new_tokens`. Returns how many were sampled. Raises ContextFull."""
        stops = (*stop, *rests(self.text, stop))
        ends = self._template.stop_token_ids
        sampled = await self._policy.generate(Ask(self._tokens, max_new_tokens, stops, ends, self._train))
        self._tokens = [*self._tokens, *sampled.tokens]
        self._new += sampled.tokens
        new = self._decoded(sampled.tokens)
        self.ended = sampled.finish_reason == "stop" and not any(text in new for text in stops)
        return len(sampled.tokens)

    def read(self, text: str) -> None:
        """Puts it behind what was written; special tokens in it are text."""
        tokenizer = self._template.tokenizer
        self._tokens += tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        self._earlier, self._new, self._taken = self.written, [], 0

    def _decoded(self, tokens: list[int]) -> str:
        return str(self._template.tokenizer.decode(tokens, skip_special_tokens=True))


def rests(text: str, marks: Sequence[str]) -> list[str]:
    """What is missing of each mark that the text ends within: a token, or a limit of tokens, may end anywhere."""
    return [mark[size:] for mark in marks for size in range(1, len(mark)) if text.endswith(mark[:size])]
