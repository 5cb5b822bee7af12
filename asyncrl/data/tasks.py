"""From rows to tasks: which row is drawn when, what the prompt is, and its tokens.

The order is a pure function of (seed, sample index), so a resumed run draws what the first one would have drawn.
"""

from __future__ import annotations

import contextlib
import json
import logging
from array import array
from collections import Counter
from collections.abc import Iterator
from typing import Any

from asyncrl.chat_template import variables
from asyncrl.data.columns import columns_for
from asyncrl.data.demonstrations import END_MARK, AnswerReader, Renderer
from asyncrl.data.order import Draws, Order
from asyncrl.data.prompts import KWARGS_COLUMN, TOOLS_COLUMN, BadPrompt, PromptReader, traits
from asyncrl.data.selection import Seen, Selection, written
from asyncrl.data.source import Rows, columns_of, digest, made_on_demand
from asyncrl.data.success import TOO_EASY, TOO_HARD, SuccessRates
from asyncrl.errors import UserError, is_of_the_program
from asyncrl.recipe.data import DataRecipe
from asyncrl.task import Message, Task

_NUM_SHOWN = 3
_MOST_COUNTED = 10_000
"""Bad rows, where one is enough to refuse the data."""
_NUM_MEASURED = 200
_MOST_LOOKED_AT = 50_000
"""Rows of a table that are tokenised before anything starts: half a minute."""
_NUM_TRIED = 16
"""Prompts that a template may refuse, where bad rows are skipped, before it is the template that is wrong."""

logger = logging.getLogger(__name__)


class TaskSource:
    """Draws tasks: every epoch visits each row once, in an order of its own."""

    def __init__(self, rows: Rows, recipe: DataRecipe, seed: int, num_answers: int = 0) -> None:
        """`num_answers`: that each row has, 0 to 2. Raises UserError if there are no such columns."""
        self.rows = rows
        self._recipe = recipe
        online = recipe.online_success_rate
        self._order = Order(seed, recipe.shuffle, online.skip_epochs if online else 0)
        self.draws = Draws()
        self.selection = Selection(len(rows))
        self._sizes = array("I")
        """Bytes of each row's prompt and answers, once all are read: 0 of one that is no prompt."""
        self._examples: dict[str, int] = {}
        """The first row with each trait of a prompt that a chat template may not take (`traits`)."""
        columns = columns_for(rows.column_names, recipe, num_answers)
        self.column, self.answers = columns.prompt, columns.answers
        prompts = PromptReader(recipe, self.column, frozenset(rows.column_names), from_arrow=hasattr(rows, "features"))
        self._reader = AnswerReader(prompts, columns) if num_answers else prompts

    @property
    def columns(self) -> list[str]:
        return self.rows.column_names

    @property
    def num_rows(self) -> int:
        """Of the table, those that are left out too."""
        return len(self.rows)

    @property
    def num_drawn(self) -> int:
        """Rows that an epoch visits."""
        return len(self.selection.rows)

    def digest(self) -> str:
        """A hash that tells these rows, and which of them are drawn, from others."""
        return self.selection.digest(digest(self.rows, self._recipe))

    def selected(self) -> list[dict[str, Any]]:
        """How many rows there are, and of those left out how many for each reason."""
        return [{"name": self._recipe.title, "rows": self.num_rows, "left_out": dict(self.selection.reasons)}]

    def counted(self) -> str:
        """How many rows there are, and how many of them are drawn."""
        drawn = "" if self.num_drawn == self.num_rows else f"{self.num_drawn} of "
        return f"{drawn}{self.num_rows} rows"

    def described(self) -> list[str]:
        """Nothing to say of shares: all tasks are of these rows."""
        return []

    def row_of(self, draw: int) -> int:
        """Index of the row of sample index `draw`."""
        rows = self.selection.rows
        return int(rows[self._order.row(self.draws.place(draw), len(rows))])

    def foresee(self, draws: int) -> None:
        """A run will draw so many tasks, or less: what takes long to find out of them is, before it begins."""

    def skipped_after(self, draw: int, success_rate: float | None) -> list[int]:
        """Later draws of the row of `draw` that are left out, as it was solved at this rate; None: nobody says."""
        online = self._recipe.online_success_rate
        if online is None or success_rate is None or online.min < success_rate < online.max or not self.draws.has(draw):
            return []
        later = self._order.later(self.draws.place(draw), self.num_drawn, online.skip_epochs)
        return [self.draws.at(place) for place in later]

    def task(self, draw: int) -> Task:
        """The task of sample index `draw`. Raises BadPrompt if its row has no usable prompt."""
        return self._task(draw, self.row_of(draw))

    def _task(self, draw: int, index: int) -> Task:
        row = self.rows[index]
        where = self._where(index)
        try:
            prompt = self._reader.read(row)
        except BadPrompt as fault:
            raise BadPrompt(fault.reason, f"{where} {fault}") from fault
        number = self.draws.first_row + index
        epoch = self.draws.place(draw) / self.num_drawn
        said = prompt.value, row, prompt.tools, prompt.template_kwargs, where, epoch
        return Task(draw, number, *said, answers=prompt.answers)

    def _where(self, index: int) -> str:
        where = getattr(self.rows, "where", None)
        return f"{where(index) if where else f'row {index}'}, column '{self.column}',"

    def prompts(self, most: int) -> Iterator[str]:
        """A text for each of the first usable prompts, the same for the same prompt."""
        for index in self.selection.rows[:most]:
            with contextlib.suppress(BadPrompt):
                yield json.dumps(self._reader.read(self.rows[int(index)]).value)

    def check_prompts(self, seen: Seen | None = None) -> None:
        """Reads the prompt of every row. Bad ones are refused with a UserError, or left out if the recipe skips them;
        so are duplicates, if it says so, of what was `seen` before too, and what is too hard or too easy."""
        recipe, seen, bad, num_rows = self._recipe, seen or Seen(), Counter[str](), 0
        rates = SuccessRates(recipe.success_rate, self.columns) if recipe.success_rate else None
        columns = [self.column, *self.answers, TOOLS_COLUMN, KWARGS_COLUMN, *([rates.column or ""] if rates else [])]
        faults: list[str] = []
        for index, row in columns_of(self.rows, columns, whole=recipe.deduplicate or rates is not None):
            num_rows += 1
            try:
                prompt = self._reader.read(row)
            except BadPrompt as fault:
                bad[fault.reason] += 1
                if len(faults) < _NUM_SHOWN:
                    faults.append(f"{self._where(index)} {fault}")
                if recipe.on_bad_row == "error" and bad.total() == _MOST_COUNTED:
                    break
                self.selection.leave_out(index, fault.reason, f"{self._where(index)} {fault}")
                self._sizes.append(0)
                continue
            self._check_chat(prompt.value)
            text = written(prompt)
            self._sizes.append(len(text))
            if rates is not None and (fault := rates.fault(index, row, prompt, self._where(index))):
                self.selection.leave_out(index, *fault)
                continue
            if recipe.deduplicate and seen.before(text):
                self.selection.leave_out(index, "duplicate", f"{self._where(index)} is that of an earlier row")
                continue
            for trait in traits(prompt):
                self._examples.setdefault(trait, index)
        if bad:
            self._refuse(bad, num_rows, faults)
        if said := [reason for reason in ("duplicate", TOO_HARD, TOO_EASY) if self.selection.reasons[reason]]:
            logger.warning("data: %s", self.selection.said(said))
        if rates is not None and rates.num_unknown:
            logger.warning("data.success_rate: %d rows have no rate, and are drawn", rates.num_unknown)
        self._require_rows("data")

    def _refuse(self, bad: Counter[str], num_rows: int, faults: list[str]) -> None:
        """UserError, or a warning if such rows are skipped and there are others."""
        first = "" if num_rows == len(self.rows) else "the first "
        what = "prompt and answer" if self._has_answers else "prompt"
        said = f"{bad.total()} of {first}{num_rows} rows have no usable {what}"
        shown = "; ".join(faults) + ("; and others" if bad.total() > len(faults) else "")
        if self._recipe.on_bad_row == "error" or bad.total() == num_rows:
            skip = ", or set data.on_bad_row=skip to leave them out" if bad.total() < num_rows else ""
            raise UserError(f"data.path: {said}: {shown}. Mend them{skip}")
        logger.warning("%s, and these are skipped (data.on_bad_row): %s", said, shown)

    def _require_rows(self, key: str) -> None:
        if not self.num_drawn:
            raise UserError(f"{key}: no row of {self._recipe.title} is left to draw: {self.selection.said()}")

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
        last = min(_NUM_TRIED, self.num_drawn) - 1
        for draw in range(last + 1):
            try:
                task = self.task(draw)
                tokens = self._tokens_of(task, tokenizer)
            except BadPrompt as fault:
                # An answer with an end mark is refused with all others of the kind (`leave_out`).
                if (self._recipe.on_bad_row == "error" and fault.reason != END_MARK) or draw == last:
                    raise UserError(f"data.path: the first prompt, {fault}; take prompts that fit the model") from fault
            else:
                self._check_examples(task, tokenizer)
                return task, tokens
        raise AssertionError("a table has at least one row")

    def first(self, tokenizer: Any) -> tuple[Task, list[int]]:
        """As `first_prompt`, after it."""
        for draw in range(self.num_drawn):
            with contextlib.suppress(BadPrompt):
                task = self.task(draw)
                return task, tokenize(task, tokenizer)
        raise UserError(f"data.path: no prompt of {self._recipe.title} fits the model")

    def measured(self, tokenizer: Any, most: int) -> tuple[list[int], Counter[str]]:
        """Tokens of the first `most` prompts drawn, or rows with their answers, and by reason how many are none."""
        lengths, reasons, renderer = [], Counter[str](), Renderer(tokenizer)
        for draw in range(min(most, self.num_drawn)):
            try:
                task = self.task(draw)
                sequences = [sequence.tokens for answer in renderer.render(task) for sequence in answer]
                lengths.append(max(map(len, sequences or [tokenize(task, tokenizer)])))
            except BadPrompt as fault:
                reasons[fault.reason] += 1
        return lengths, reasons

    def check_lengths(
        self, tokenizer: Any, most: int, key: str = "rollout.max_prompt_tokens", warn: bool = True
    ) -> None:
        """Looks at what is drawn first, prompts, or rows with their answers. If all have more tokens than `most`, which
        `key` says, that is a UserError; if some, a warning: they are filtered. `warn`: not if all are looked at."""
        what = "rows" if self._has_answers else "prompts"
        lengths, _ = self.measured(tokenizer, _NUM_MEASURED)
        number = sum(length > most for length in lengths)
        over = f"more than the {most} tokens of {key}"
        if lengths and number == len(lengths):
            raise UserError(
                f"data.path: all of the first {number} {what} have {over}, {min(lengths)} and more; raise it, or take "
                f"shorter {what}"
            )
        if number and (warn or made_on_demand(self.rows)):
            first, longest = len(lengths), max(lengths)
            logger.warning(
                "%d of the first %d %s have %s, up to %d, and are filtered", number, first, what, over, longest
            )

    def leave_out(self, tokenizer: Any, most: int) -> None:
        """Leaves out the rows that are too long or cannot be rendered, of those that may be: which have more bytes
        than `most`, or an answer with the mark that ends one. After `check_prompts`; not of rows that are made on
        demand. Raises UserError for answers with such a mark, unless the recipe skips bad rows, and if none is left."""
        if len(self._sizes) < self.num_rows:
            return
        renderer, found, marked = Renderer(tokenizer), list[tuple[int, str, str]](), list[str]()
        for number, index in enumerate(self._doubtful(renderer, most)):
            if number == _MOST_LOOKED_AT:
                logger.warning(
                    "more than %d rows may be too long, which only their tokens say: from row %d on they are looked at "
                    "when they are drawn, and count in shares",
                    *(number, index),
                )
                break
            try:
                task = self._task(0, index)
                if not renderer.render(task, most) and len(tokens := tokenize(task, tokenizer)) > most:
                    raise BadPrompt("prompt_too_long", f"{task.where} has {len(tokens)} tokens")
            except BadPrompt as fault:
                found.append((index, fault.reason, str(fault)))
                if fault.reason == END_MARK:
                    marked.append(str(fault))
        if marked and self._recipe.on_bad_row == "error":
            more = "; and others" if len(marked) > _NUM_SHOWN else ""
            raise UserError(
                f"data.path: {'; '.join(marked[:_NUM_SHOWN])}{more}. Take the marks out of {len(marked)} answers, "
                "or set data.on_bad_row=skip to leave such rows out"
            )
        # At the end: what is drawn is made anew after each.
        for one in found:
            self.selection.leave_out(*one)
        if found:
            logger.warning("data: %s", self.selection.said(sorted({reason for _, reason, _ in found})))
        self._require_rows("data.path")

    def _doubtful(self, renderer: Renderer, most: int) -> Iterator[int]:
        """Rows that may be too long, as a token has at least a byte, or have the mark within an answer."""
        for index in map(int, self.selection.rows):
            size = self._sizes[index]
            if size > most or (self._has_answers and renderer.has_mark(self._task(0, index))):
                yield index

    @property
    def _has_answers(self) -> bool:
        return isinstance(self._reader, AnswerReader)

    def _check_examples(self, first: Task, tokenizer: Any) -> None:
        seen = set(traits(first))
        for trait, index in self._examples.items():
            if trait in seen:
                continue
            task = self._task(0, index)
            seen.update(traits(task))
            try:
                self._tokens_of(task, tokenizer)
            except BadPrompt as fault:
                if self._recipe.on_bad_row == "error" and fault.reason != END_MARK:
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
            if TOOLS_COLUMN in self.rows.column_names:
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
