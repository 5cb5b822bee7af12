"""From rows to tasks: which row is drawn when, what the prompt is, and its tokens.

The order is a pure function of (seed, sample index), so a resumed run draws what the first one would have drawn.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from asyncrl.chat_template import variables
from asyncrl.control.controller import Controller
from asyncrl.data.demonstrations import AnswerReader, Columns, Renderer, columns_of_answers
from asyncrl.data.prompts import KWARGS_COLUMN, TOOLS_COLUMN, BadPrompt, Prompt, PromptReader
from asyncrl.data.source import Rows, columns_of, digest
from asyncrl.errors import UserError, is_of_the_program
from asyncrl.recipe.data import DataRecipe
from asyncrl.task import Message, Task

_PROMPT_COLUMNS = ("prompt", "question", "problem", "messages")
_NUM_SHOWN = 3
_MOST_COUNTED = 10_000
"""Bad rows, where one is enough to refuse the data."""
_NUM_MEASURED = 200
_NUM_TRIED = 16
"""Prompts that a template may refuse, where bad rows are skipped, before it is the template that is wrong."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Draws:
    """Where a table begins in the draws of a run: at 0, or later if it took the place of another."""

    first: int = 0
    """Draws before this one were of the other table..."""
    again: list[int] = field(default_factory=list)
    """...but these, which were to be started again, and take the first places."""
    first_row: int = 0
    """Number of its first row; those below were rows of the other table."""

    @classmethod
    def begun_anew(cls, controller: Controller, first_row: int) -> Draws:
        """From the next draw on, and for what is running now."""
        done = {task for task, _ in controller.ready()}
        if controller.training is not None:
            done |= {task for task, _ in controller.training.groups}
        return cls(controller.ledger.drawn, sorted(set(controller.attempts()) - done), first_row)

    def place(self, draw: int) -> int:
        """Of the task among those of this table."""
        if draw >= self.first:
            return draw - self.first + len(self.again)
        return self.again.index(draw) if draw in self.again else draw


class TaskSource:
    """Draws tasks: every epoch visits each row once, in an order of its own."""

    def __init__(self, rows: Rows, recipe: DataRecipe, seed: int, num_answers: int = 0) -> None:
        """`num_answers`: that each row has, 0 to 2. Raises UserError if there are no such columns."""
        self._rows = rows
        self._recipe = recipe
        self._seed = seed % 2**64
        self.draws = Draws()
        self._examples: dict[str, int] = {}
        """The first row with each trait of a prompt that a chat template may not take (`_traits`)."""
        columns = _columns(rows.column_names, recipe, num_answers)
        self.column, self.answers = columns.prompt, columns.answers
        prompts = PromptReader(recipe, self.column, frozenset(rows.column_names), from_arrow=hasattr(rows, "features"))
        self._reader = AnswerReader(prompts, columns) if num_answers else prompts
        # Draws near the end of an epoch and the beginning of the next come interleaved.
        self._order = functools.lru_cache(maxsize=2)(self._make_order)

    @property
    def columns(self) -> list[str]:
        return self._rows.column_names

    @property
    def num_rows(self) -> int:
        return len(self._rows)

    def digest(self) -> str:
        """A hash that tells these rows from others."""
        return digest(self._rows, self._recipe)

    def described(self) -> list[str]:
        """Nothing to say of shares: all tasks are of these rows."""
        return []

    def row_of(self, draw: int) -> int:
        """Index of the row of sample index `draw`."""
        epoch, place = divmod(self.draws.place(draw), len(self._rows))
        return int(self._order(epoch)[place]) if self._recipe.shuffle else place

    def task(self, draw: int) -> Task:
        """The task of sample index `draw`. Raises BadPrompt if its row has no usable prompt."""
        return self._task(draw, self.row_of(draw))

    def _task(self, draw: int, index: int) -> Task:
        row = self._rows[index]
        where = self._where(index)
        try:
            prompt = self._reader.read(row)
        except BadPrompt as fault:
            raise BadPrompt(fault.reason, f"{where} {fault}") from fault
        number = self.draws.first_row + index
        epoch = self.draws.place(draw) / len(self._rows)
        said = prompt.value, row, prompt.tools, prompt.template_kwargs, where, epoch
        return Task(draw, number, *said, answers=prompt.answers)

    def _where(self, index: int) -> str:
        where = getattr(self._rows, "where", None)
        return f"{where(index) if where else f'row {index}'}, column '{self.column}',"

    def prompts(self, most: int) -> Iterator[str]:
        """A text for each of the first usable prompts, the same for the same prompt."""
        for index in range(min(most, len(self._rows))):
            with contextlib.suppress(BadPrompt):
                yield json.dumps(self._reader.read(self._rows[index]).value)

    def check_prompts(self) -> None:
        """Reads the prompt of every row. Bad ones are refused with a UserError, or logged if the recipe skips them."""
        faults: list[str] = []
        reasons: Counter[str] = Counter()
        num_rows = 0
        for index, row in columns_of(self._rows, (self.column, *self.answers, TOOLS_COLUMN, KWARGS_COLUMN)):
            num_rows += 1
            try:
                prompt = self._reader.read(row)
            except BadPrompt as fault:
                reasons[fault.reason] += 1
                if len(faults) < _NUM_SHOWN:
                    faults.append(f"{self._where(index)} {fault}")
                if self._recipe.on_bad_row == "error" and reasons.total() == _MOST_COUNTED:
                    break
            else:
                self._check_chat(prompt.value)
                for trait in _traits(prompt):
                    self._examples.setdefault(trait, index)
        if not reasons:
            return
        first = "" if num_rows == len(self._rows) else "the first "
        what = "prompt and answer" if self._has_answers else "prompt"
        bad = f"{reasons.total()} of {first}{num_rows} rows have no usable {what}"
        shown = "; ".join(faults) + ("; and others" if reasons.total() > len(faults) else "")
        if self._recipe.on_bad_row == "error" or reasons.total() == num_rows:
            raise UserError(f"data.path: {bad}: {shown}. Mend them, or set data.on_bad_row=skip to leave them out")
        logger.warning("%s, and these are skipped (data.on_bad_row): %s", bad, shown)

    def _check_chat(self, prompt: str | list[Message]) -> None:
        """Raises UserError if the recipe has something for chats, and the prompt is none."""
        for key in ("system", "chat_template_kwargs"):
            if getattr(self._recipe, key) and isinstance(prompt, str):
                raise UserError(f"data.{key} needs chat prompts: set data.chat=true, or leave data.{key} out")

    def first_prompt(self, tokenizer: Any) -> tuple[Task, list[int]]:
        """The first task that is one, and its tokens, as the model will see them.

        Raises UserError if prompts are chats and there is no chat template, or it refuses them: the first drawn, or the
        first of the rows that has what the first drawn has not (after `check_prompts`, which looks for those).
        """
        last = min(_NUM_TRIED, len(self._rows)) - 1
        for draw in range(last + 1):
            try:
                task = self.task(draw)
                tokens = self._tokens_of(task, tokenizer)
            except BadPrompt as fault:
                if self._recipe.on_bad_row == "error" or draw == last:
                    raise UserError(f"data.path: the first prompt, {fault}; take prompts that fit the model") from fault
            else:
                self._check_examples(task, tokenizer)
                return task, tokens
        raise AssertionError("a table has at least one row")

    def measured(self, tokenizer: Any, most: int) -> tuple[list[int], Counter[str]]:
        """Tokens of the first `most` prompts drawn, or rows with their answers, and by reason how many are none."""
        lengths, reasons, renderer = [], Counter[str](), Renderer(tokenizer)
        for draw in range(min(most, len(self._rows))):
            try:
                task = self.task(draw)
                sequences = [sequence.tokens for answer in renderer.render(task) for sequence in answer]
                lengths.append(max(map(len, sequences or [tokenize(task, tokenizer)])))
            except BadPrompt as fault:
                reasons[fault.reason] += 1
        return lengths, reasons

    def check_lengths(self, tokenizer: Any, most: int, key: str = "rollout.max_prompt_tokens") -> None:
        """Looks at what is drawn first, prompts, or rows with their answers. If all have more than `most` tokens, which
        `key` says, that is a UserError, if some a warning: they are filtered."""
        what = "rows" if self._has_answers else "prompts"
        lengths, _ = self.measured(tokenizer, _NUM_MEASURED)
        number = sum(length > most for length in lengths)
        over = f"more than the {most} tokens of {key}"
        if lengths and number == len(lengths):
            raise UserError(
                f"data.path: all of the first {number} {what} have {over}, {min(lengths)} and more; raise it, or take "
                f"shorter {what}"
            )
        if number:
            first, longest = len(lengths), max(lengths)
            logger.warning(
                "%d of the first %d %s have %s, up to %d, and are filtered", number, first, what, over, longest
            )

    @property
    def _has_answers(self) -> bool:
        return isinstance(self._reader, AnswerReader)

    def _check_examples(self, first: Task, tokenizer: Any) -> None:
        seen = set(_traits(first))
        for trait, index in self._examples.items():
            if trait in seen:
                continue
            task = self._task(0, index)
            seen.update(_traits(task))
            try:
                self._tokens_of(task, tokenizer)
            except BadPrompt as fault:
                if self._recipe.on_bad_row == "error":
                    raise UserError(
                        f"data.path: {fault}; take prompts that fit the model, or set data.on_bad_row=skip to leave "
                        "such rows out"
                    ) from fault

    def _tokens_of(self, task: Task, tokenizer: Any) -> list[int]:
        self._check_template(task, tokenizer)
        if self._has_answers:
            Renderer(tokenizer).render(task)
        return tokenize(task, tokenizer)

    def _check_template(self, task: Task, tokenizer: Any) -> None:
        if isinstance(task.prompt, str):
            if TOOLS_COLUMN in self._rows.column_names:
                logger.warning("the prompts are text, so the model does not see the tools in column '%s'", TOOLS_COLUMN)
            return
        if not tokenizer.chat_template:
            raise UserError(
                f"the prompts are chats (data.chat, or messages in column '{self.column}'), but the model's "
                "tokenizer has no chat template; use an instruct model, or text prompts with data.chat=false"
            )
        known = variables(tokenizer.get_chat_template(tools=task.tools))
        for name in self._recipe.chat_template_kwargs:
            if name not in known:
                raise UserError(
                    f"data.chat_template_kwargs: the model's chat template has no variable '{name}', only "
                    f"{', '.join(sorted(known)) or 'the messages'}; leave it out"
                )
        if task.tools and TOOLS_COLUMN not in known:
            logger.warning("the model's chat template shows no tools: the model does not see column '%s'", TOOLS_COLUMN)

    def _make_order(self, epoch: int) -> np.ndarray:
        return np.random.Generator(np.random.PCG64([self._seed, epoch])).permutation(len(self._rows))


def _traits(of: Prompt | Task) -> Iterator[str]:
    """What a chat template may not take, or not show: which role follows which, tools, calls of them, variables."""
    prompt = of.value if isinstance(of, Prompt) else of.prompt
    if isinstance(prompt, str):
        yield "text"
        return
    for messages in [[*prompt, *answer] for answer in of.answers] or [prompt]:
        yield from (f"{role} after {before}" for before, role in pairwise(["", *(str(m["role"]) for m in messages)]))
        if any(message.get("tool_calls") for message in messages):
            yield "tool calls"
    if of.tools:
        yield "tools"
    yield from (f"variable {name}" for name in of.template_kwargs)


def tokenize(task: Task, tokenizer: Any) -> list[int]:
    """Token ids of the prompt: text with the tokenizer's special tokens, chats up to where the assistant begins.

    Raises BadPrompt if the template or the tokenizer does.
    """
    is_text = isinstance(task.prompt, str)
    try:
        if is_text:
            tokens = tokenizer(task.prompt).input_ids
        else:
            tokens = tokenizer.apply_chat_template(
                task.prompt,
                tools=task.tools,
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **task.template_kwargs,
            )
    # A template is a program of the model's authors: whatever it raises is said of the row.
    except BaseException as error:
        if not is_of_the_program(error):
            raise
        by = "tokenizer" if is_text else "chat template"
        text = " ".join(str(error).split())
        why = f"{task.where} is refused by the model's {by}: {type(error).__name__}: {text}"
        raise BadPrompt("template_refused", why) from error
    # A text or a message may begin with the token that tokenizer or template puts before it.
    while len(tokens) > 1 and tokens[0] == tokens[1] == tokenizer.bos_token_id:
        tokens = tokens[1:]
    if not tokens:
        raise BadPrompt("prompt_empty", f"{task.where} has no tokens")
    return tokens


def _columns(names: list[str], recipe: DataRecipe, num_answers: int) -> Columns:
    """Raises UserError if there are none."""
    if not num_answers:
        return Columns(_prompt_column(names, recipe.prompt_column))
    pairs = num_answers > 1
    if (found := columns_of_answers(names, pairs, recipe.prompt_column, recipe.completion_column)) is not None:
        return found
    wanted = "columns chosen and rejected" if pairs else "column of chats (messages), nor of prompts and answers"
    cure = "rename them" if pairs else "name them by data.prompt_column and data.completion_column"
    raise UserError(f"data.path: the data set has no {wanted}, only {', '.join(names)}; {cure}")


def _prompt_column(columns: list[str], named: str | None) -> str:
    """Raises UserError if there is none, with what may be the cause."""
    candidates = _PROMPT_COLUMNS if named is None else (named,)
    for column in candidates:
        if column in columns:
            return column
    wanted = f"no column '{named}'" if named else f"none of the columns {', '.join(_PROMPT_COLUMNS)}"
    cure = "name one of them"
    if len(columns) == 1 and (separator := next((mark for mark in ";\t|" if mark in columns[0]), None)):
        cure = f"for a CSV with this separator set data.options.sep={separator!r}"
    elif len(columns) == 1:
        cure += f", or if the rows are under this key of a .json file, set data.options.field={columns[0]}"
    raise UserError(f"data.prompt_column: the data set has {wanted}, only {', '.join(columns)}; {cure}")
