"""From rows that have the answers to tokens: which of them are learnt, as the model's own chat template writes them.

    row -> prompt and answers: one of a demonstration, or the chosen and the rejected
        -> the conversation up to each answer as it is asked for, and the answer up to the token that ends it
        -> one sequence as long as each rendering goes on from the one before, else several

A prompt is tokenised as for sampling, and an answer ends with the token that a sampled one would end with.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, replace
from itertools import takewhile
from typing import Any

from asyncrl.data.columns import Columns
from asyncrl.data.prompts import BadPrompt, Prompt, PromptReader
from asyncrl.errors import UserError, is_of_the_program
from asyncrl.task import Message, Task

END_MARK = "answer_has_end_mark"
"""Reason of a row whose answer ends before its end: the model would learn to go on behind its own end-of-turn mark."""


class AnswerReader:
    """What a recipe makes of the rows of one table that have answers."""

    def __init__(self, prompts: PromptReader, columns: Columns) -> None:
        self._prompts, self._columns = prompts, columns

    def read(self, row: dict[str, Any]) -> Prompt:
        """Raises BadPrompt."""
        if not self._columns.answers:
            messages = self._conversation(row[self._columns.prompt])
            first = next((i for i, m in enumerate(messages) if m["role"] == "assistant"), None)
            if first is None:
                raise BadPrompt("answer_empty", "has no message of the assistant")
            return self._prompt(row, messages[:first], [messages[first:]])
        answers = [self._answer(row[name], name) for name in self._columns.answers]
        asked: Any = row[self._columns.prompt]
        if len(answers) == 2:
            if answers[0] == answers[1]:
                raise BadPrompt("answers_equal", "has a rejected answer that is the chosen one")
            if all(not isinstance(answer, str) and answer[0]["role"] != "assistant" for answer in answers):
                # Whole conversations: what they have in common is the prompt.
                same = takewhile(lambda both: both[0] == both[1], zip(*answers, strict=False))
                asked = [message for message, _ in same]
                answers = [answer[len(asked) :] for answer in answers]
        return self._prompt(row, asked, answers)

    def _prompt(self, row: dict[str, Any], asked: Any, answers: list[Any]) -> Prompt:
        as_chat = any(not isinstance(answer, str) for answer in answers)
        if as_chat and isinstance(asked, str) and self._prompts.messages(asked) is None:
            asked = [{"role": "user", "content": asked}]
        prompt = self._prompts.read({**row, self._columns.prompt: asked})
        if not isinstance(prompt.value, str):
            answers = [[{"role": "assistant", "content": a}] if isinstance(a, str) else a for a in answers]
        for answer in answers:
            self._check(answer)
        return replace(prompt, answers=tuple(answers))

    def _conversation(self, value: Any) -> list[Message]:
        messages = self._prompts.messages(value)
        if messages is None:
            raise BadPrompt("prompt_malformed", f"must be a list of chat messages, not {value!r:.60}")
        return messages

    def _answer(self, value: Any, column: str) -> str | list[Message]:
        if value is None or value == "" or value == []:
            raise BadPrompt("answer_empty", f"has no answer in column '{column}'")
        messages = self._prompts.messages(value)
        if messages is None and not isinstance(value, str):
            raise BadPrompt(
                "prompt_malformed",
                f"has an answer in column '{column}' that is neither text nor a list of chat messages: {value!r:.60}",
            )
        return value if messages is None else messages

    def _check(self, answer: str | list[Message]) -> None:
        if isinstance(answer, str):
            self._prompts.check_text(answer)
            if not answer.strip():
                raise BadPrompt("answer_empty", "has an empty answer")
            return
        if not answer or answer[0]["role"] != "assistant":
            raise BadPrompt("answer_empty", "has an answer that does not begin with a message of the assistant")
        for message in answer:
            self._prompts.check_text(message.get("content") or "")
            says = (message.get("content") or "").strip() or message.get("tool_calls")
            if message["role"] == "assistant" and not says:
                raise BadPrompt("answer_empty", "has an empty message of the assistant")


@dataclass
class Rendered:
    """One sequence of tokens."""

    tokens: list[int]
    learnt: list[tuple[int, int]] = field(default_factory=list)
    """First token of each answer, and the one after the token that ends it."""


class Renderer:
    """Of one model's tokenizer. Not for several threads."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._ends: dict[str, int] = {}

    @functools.cached_property
    def _special(self) -> dict[str, int]:
        return {str(t): token for token, t in self.tokenizer.added_tokens_decoder.items() if t.special}

    def render(self, task: Task, most: int | None = None) -> list[list[Rendered]]:
        """The sequences of each answer of the task. Raises BadPrompt: the template refuses it, it has more than `most`
        tokens, an answer has the mark that ends one, or an answer of a pair has several sequences."""
        if self.has_mark(task):
            raise BadPrompt(END_MARK, f"{task.where} has an answer with {self._mark(task)} in it, which ends an answer")
        rendered = []
        for answer in task.answers:
            if isinstance(answer, str):
                sequences = [self._completion(task, answer)]
            else:
                sequences = self._chat(task, [*task.messages, *answer], len(task.messages))
            if len(task.answers) > 1 and len(sequences) > 1:
                raise BadPrompt(
                    "several_sequences",
                    f"{task.where} has an answer of several turns, of which the chat template rewrites earlier ones",
                )
            longest = max(len(sequence.tokens) for sequence in sequences)
            if most is not None and longest > most:
                raise BadPrompt("row_too_long", f"{task.where} has {longest} tokens with its answer")
            rendered.append(sequences)
        return rendered

    def has_mark(self, task: Task) -> bool:
        """Whether an answer has the mark that ends one in its text; a text, not a chat, may end with it."""
        if not task.answers or (mark := self._mark(task)) is None:
            return False
        return any(mark in text for answer in task.answers for text in _texts(answer, mark))

    def _mark(self, task: Task) -> str | None:
        end = self.tokenizer.eos_token_id if isinstance(task.answers[0], str) else self._end(task)
        return next((text for text, token in self._special.items() if token == end), None)

    def _completion(self, task: Task, answer: str) -> Rendered:
        prompt = self.ids(task.prompt, special=True)
        end = self.tokenizer.eos_token_id
        if end is None:
            raise UserError("model: its tokenizer has no end-of-sequence token, so that no answer would end; name one")
        tokens = self._goes_on(prompt, self.ids(f"{task.prompt}{answer}", special=True), answer)
        return _joined(Rendered(prompt), [], tokens, end)

    def _chat(self, task: Task, messages: list[Message], first: int) -> list[Rendered]:
        end, sequences, written = self._end(task), [Rendered([])], ""
        mark = self._mark(task)
        for place in range(first, len(messages)):
            if messages[place]["role"] != "assistant":
                continue
            asked = self._text(task, messages[:place], True)
            whole = self._text(task, messages[: place + 1], False)
            if not whole.startswith(asked):
                raise BadPrompt(
                    "template_differs",
                    f"{task.where} has an answer that the chat template writes otherwise than it asks for one (does it "
                    "ask for thoughts?); look at data.chat_template_kwargs",
                )
            said = whole[len(asked) :]
            if mark is not None and mark in said:
                said = said[: said.rfind(mark) + len(mark)]
            before = self.ids(asked)
            own = sequences[-1]
            if written and asked.startswith(written):
                context = self._goes_on(own.tokens, before, asked[len(written) :])
            else:
                own, context = Rendered([]), before
                sequences.append(own)
            _joined(own, context, self._goes_on(before, self.ids(asked + said), said), end)
            written = asked + said
            if mark is not None and not said.endswith(mark):
                written += mark
        return [sequence for sequence in sequences if sequence.tokens]

    def _goes_on(self, before: list[int], both: list[int], text: str) -> list[int]:
        """The tokens of `text` where it stands, if the ones before it stay what they are; else those of it alone."""
        return both[len(before) :] if both[: len(before)] == before else self.ids(text)

    def _end(self, task: Task) -> int:
        """The token that ends an answer: the first special one behind it, or the one that begins the next message."""
        key = repr(sorted(task.template_kwargs.items()))
        if key not in self._ends:
            asked = {"role": "user", "content": "a"}
            chat = [asked, {"role": "assistant", "content": "zq"}]
            texts = []
            for probe in (chat, [*chat, asked]):
                try:
                    text = self._text(task, probe, False)
                except BadPrompt:
                    continue  # what it takes is seen with the row itself
                texts.append(text[text.rfind("zq") + 2 :] if "zq" in text else "")
            found = (self._special[t] for text in texts if (t := self._first_special(text)))
            end = next(found, self.tokenizer.eos_token_id)
            if end is None:
                raise UserError("model: neither its chat template nor its tokenizer ends an answer; name an eos_token")
            self._ends[key] = end
        return self._ends[key]

    def _first_special(self, text: str) -> str | None:
        found = [(place, -len(mark), mark) for mark in self._special if (place := text.find(mark)) >= 0]
        return min(found)[2] if found else None

    def _text(self, task: Task, messages: list[Message], asks: bool) -> str:
        try:
            text: str = self.tokenizer.apply_chat_template(
                messages, tools=task.tools, add_generation_prompt=asks, tokenize=False, **task.template_kwargs
            )
        # A template is a program of the model's authors: whatever it raises is said of the row.
        except BaseException as error:
            if not is_of_the_program(error):
                raise
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise BadPrompt(
                "template_refused", f"{task.where} is refused by the model's chat template: {why}"
            ) from error
        return text

    def ids(self, text: Any, special: bool = False) -> list[int]:
        """Token ids; `special`: with what the tokenizer puts around a text. One token begins a text, never two."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=special).input_ids
        while len(tokens) > 1 and tokens[0] == tokens[1] == self.tokenizer.bos_token_id:
            tokens = tokens[1:]
        return tokens


def _texts(answer: str | list[Message], mark: str) -> list[str]:
    """What the assistant says."""
    if isinstance(answer, str):
        return [answer.removesuffix(mark)]
    return [json.dumps(message, ensure_ascii=False) for message in answer if message["role"] == "assistant"]


def _joined(sequence: Rendered, context: list[int], answer: list[int], end: int) -> Rendered:
    """The sequence with what comes before the answer, and the answer with its end."""
    sequence.tokens += context
    first = len(sequence.tokens)
    sequence.tokens += answer if answer[-1:] == [end] else [*answer, end]
    sequence.learnt.append((first, len(sequence.tokens)))
    return sequence
