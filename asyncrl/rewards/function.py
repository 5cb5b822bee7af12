"""A reward function and how its signature wants to be called.

Three signatures are accepted as they are, sync or async:

    reward(completion, **row) -> float | dict                             one completion; may name columns, `prompt`
    reward(prompts, completions, **columns) -> list[float | None]         TRL's: the group at once, columns as lists
    compute_score(data_source, solution_str, ground_truth, extra_info)    verl's: one completion
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.rewards.score import RewardRequest, Score, failed, to_score


class Style(Enum):
    """Which of the three signatures; the value holds the arguments that do not come from columns."""

    TRAJECTORY = frozenset({"completion", "prompt"})
    TRL = frozenset({"completions", "prompts", "completion_ids"})
    VERL = frozenset({"solution_str", "data_source", "ground_truth", "extra_info"})


_MARKS = {"completions": Style.TRL, "solution_str": Style.VERL, "completion": Style.TRAJECTORY}


@dataclass(frozen=True)
class RewardFunction:
    """A callable together with its style and parameters."""

    spec: str
    call: Callable[..., Any]
    style: Style
    parameters: dict[str, inspect.Parameter]
    dataset: str
    """What verl's functions get as data_source if the row has none."""

    @property
    def per_group(self) -> bool:
        """Whether one call scores all completions of a request."""
        return self.style is Style.TRL

    @property
    def required_columns(self) -> list[str]:
        """Parameters without a default that must be columns of the data set (verl's gold: see check_columns)."""
        return [
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in self.style.value
        ]

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raises UserError if the data set lacks a column that every call needs."""
        columns = list(columns)
        missing = [name for name in self.required_columns if name not in columns]
        if self.style is Style.VERL and not {"reward_model", "answer"} & set(columns):
            missing.append("answer")
        if missing:
            raise UserError(f"reward '{self.spec}' needs column '{missing[0]}', the data set has: {', '.join(columns)}")

    def score(self, request: RewardRequest) -> list[Score]:
        """Calls the function; one Score per completion. Whatever it raises becomes failed scores, but for MemoryError:
        that one is raised, as this process may be short of memory from now on."""
        if self.per_group:
            return self._score_group(request)
        return [self._score_one(request, text) for text in request.completions]

    def _score_one(self, request: RewardRequest, completion: str) -> Score:
        try:
            if self.style is Style.VERL:
                arguments = _verl_arguments(request.row, completion, self.dataset)
            else:
                arguments = {**request.row, "prompt": request.prompt, "completion": completion}
            return to_score(self._invoke(arguments))
        except MemoryError:
            raise
        except BaseException as error:  # sys.exit() in a reward must not end the worker
            return failed(one_line(error))

    def _score_group(self, request: RewardRequest) -> list[Score]:
        number = len(request.completions)
        chat = not isinstance(request.prompt, str)
        arguments = {
            **{name: [value] * number for name, value in request.row.items()},
            "prompts": [request.prompt] * number,
            "completions": [[{"role": "assistant", "content": text}] if chat else text for text in request.completions],
            "completion_ids": request.completion_ids,
        }
        # TRL does not pass these as columns: they would repeat `prompts` and `completions`.
        for name in ("prompt", "completion"):
            arguments.pop(name, None)
        try:
            values = list(self._invoke(arguments))
        except MemoryError:
            raise
        except BaseException as error:  # sys.exit() in a reward must not end the worker
            return [failed(one_line(error))] * number
        if len(values) != number:
            return [failed(f"{len(values)} rewards were returned for {number} completions")] * number
        return [to_score(value) for value in values]

    def _invoke(self, arguments: dict[str, Any]) -> Any:
        open_ended = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        if not open_ended or self.style is Style.VERL:
            arguments = {name: value for name, value in arguments.items() if name in self.parameters}
        value = self.call(**arguments)
        return _event_loop().run(_wait_for(value)) if inspect.isawaitable(value) else value


def recognise(call: Callable[..., Any], spec: str, dataset: str) -> RewardFunction:
    """Finds out the style. Raises UserError if the signature is none of the three."""
    try:
        parameters = dict(inspect.signature(call).parameters)
    except (TypeError, ValueError):
        parameters = {}
    by_name = all(p.kind is not p.POSITIONAL_ONLY for p in parameters.values())
    style = next((style for mark, style in _MARKS.items() if mark in parameters), None)
    if style is None or not by_name:
        raise UserError(
            f"reward '{spec}' takes ({', '.join(map(str, parameters.values()))}), but must take "
            "(completion, **row), TRL's (prompts, completions, **columns) or verl's "
            "(data_source, solution_str, ground_truth, extra_info), by name"
        )
    return RewardFunction(spec, call, style, parameters, dataset)


def _verl_arguments(row: dict[str, Any], completion: str, dataset: str) -> dict[str, Any]:
    gold = row.get("reward_model")
    return {
        **row,
        "data_source": row.get("data_source", dataset),
        "solution_str": completion,
        "ground_truth": gold["ground_truth"] if isinstance(gold, dict) and "ground_truth" in gold else row["answer"],
        "extra_info": row.get("extra_info"),
    }


@functools.cache
def _event_loop() -> asyncio.Runner:
    # One loop for all calls, so that an async reward can keep a client open between them.
    return asyncio.Runner()


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value
