"""A reward function and how its signature wants to be called.

Four signatures are accepted as they are, sync or async:

    reward(completion, **row) -> float | dict                               one completion; may name columns, `prompt`
    reward(prompts, completions, **columns) -> list[float | None]           TRL's: the group at once, columns as lists
    compute_score(data_source, solution_str, ground_truth, extra_info)      verl's: one completion
    compute_score(data_sources, solution_strs, ground_truths, extra_infos)  verl's batch manager's: the group at once

Each may name `completion_ids`, `finish_reason`, `trainer_state`, `log_extra` and `log_metric` too.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from asyncrl.errors import UserError
from asyncrl.plugins import one_line
from asyncrl.processes.children import one_process
from asyncrl.rewards.logs import Logs
from asyncrl.rewards.score import NO_LISTS, RewardRequest, Score, failed, to_score

_TRL_GIVES = frozenset({"completion_ids", "trainer_state", "log_extra", "log_metric"})
_ON_REQUEST = _TRL_GIVES | {"finish_reason"}
"""Whatever the signature, these are given to who names them."""
_NOT_HERE = {"environments": "TRL", "reward_router_address": "verl", "reward_model_tokenizer": "verl"}
"""Arguments of others that nothing here corresponds to."""


class Style(Enum):
    """Which of the signatures; the value holds the arguments that do not come from columns."""

    TRAJECTORY = frozenset({"completion", "prompt"})
    TRL = frozenset({"completions", "prompts"})
    VERL = frozenset({"solution_str", "data_source", "ground_truth", "extra_info"})
    VERL_BATCH = frozenset({"solution_strs", "data_sources", "ground_truths", "extra_infos"})


_MARKS = {
    "completions": Style.TRL,
    "solution_strs": Style.VERL_BATCH,
    "solution_str": Style.VERL,
    "completion": Style.TRAJECTORY,
    # TRL hands over all by name, so its functions may leave out what they do not read.
    "prompts": Style.TRL,
    "completion_ids": Style.TRL,
}


@dataclass(frozen=True)
class RewardFunction:
    """A callable together with its style and parameters."""

    spec: str
    call: Callable[..., Any]
    """A function, an object that can be called, or a class of such."""
    style: Style
    parameters: dict[str, inspect.Parameter]
    dataset: str
    """What verl's functions get as data_source if the row has none."""
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments, of every call, or of a class's one instance."""

    @property
    def name(self) -> str:
        return self.spec.rpartition(":")[2]

    @property
    def per_group(self) -> bool:
        """Whether one call scores all completions of a request."""
        return self.style in (Style.TRL, Style.VERL_BATCH)

    @property
    def required_columns(self) -> list[str]:
        """Parameters without a default that must be columns of the data set (verl's gold: see check_columns)."""
        of_calls = () if isinstance(self.call, type) else self.kwargs
        given = {*self.style.value, *_ON_REQUEST, *of_calls}
        return [
            name
            for name, parameter in self.parameters.items()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
            and name not in given
        ]

    def check_columns(self, columns: Iterable[str]) -> None:
        """Raises UserError if the data set lacks a column that every call needs."""
        columns = list(columns)
        missing = [name for name in self.required_columns if name not in columns]
        verl = self.style in (Style.VERL, Style.VERL_BATCH)
        if verl and not {"reward_model", "ground_truth", "answer"} & set(columns):
            missing.append("answer")
        for name in _ON_REQUEST & set(self.parameters) & set(columns):
            raise UserError(
                f"reward '{self.spec}' names '{name}', which asyncrl gives it, and the data set has a column of that "
                "name; rename one of them"
            )
        for name in missing:
            if name in _NOT_HERE:
                owner = _NOT_HERE[name]
                raise UserError(
                    f"reward '{self.spec}' takes '{name}', which only {owner} has; give the parameter a default"
                )
            raise UserError(
                f"reward '{self.spec}' needs column '{name}', the data set has: {', '.join(columns)}; take one of "
                "these, or give it by kwargs"
            )

    @functools.cached_property
    def ready(self) -> Callable[..., Any]:
        """What is called. A class is instantiated, once per process. Raises UserError if that fails."""
        if not isinstance(self.call, type):
            return functools.partial(self.call, **self.kwargs)
        try:
            made: Callable[..., Any] = self.call(**self.kwargs)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"reward '{self.spec}' cannot be instantiated: {one_line(error)}") from error
        return made

    def score(self, request: RewardRequest) -> list[Score]:
        """Calls the function; one Score per completion. Whatever it raises becomes failed scores, but for MemoryError:
        that one is raised, as this process may be short of memory from now on."""
        parts = [request] if self.per_group else request.split()
        return [score for part in parts for score in self._score(part)]

    def _score(self, request: RewardRequest) -> list[Score]:
        """Of one call."""
        number = len(request.completions)
        logs = Logs(number)
        try:
            with one_process():
                value = self._invoke(request, logs)
                if self.per_group and isinstance(value, NO_LISTS):
                    kind = type(value).__name__
                    return [
                        failed(f"{self.name} returned {kind} for {number} completions; return a list, a reward each")
                    ] * number
                values = list(value) if self.per_group else [value]
                if len(values) != number:
                    return [failed(f"{self.name} returned {len(values)} rewards for {number} completions")] * number
                return logs.onto([to_score(value) for value in values])
        except MemoryError:
            raise
        except BaseException as error:  # sys.exit() in a reward must not end the worker
            return [failed(one_line(error))] * number

    def _invoke(self, request: RewardRequest, logs: Logs) -> Any:
        arguments = _ARGUMENTS[self.style](request, self.dataset)
        asked = _on_request(request, logs, self.per_group)
        takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())
        if takes_all and self.style is Style.TRL:
            arguments |= {name: asked[name] for name in _TRL_GIVES}
        if not takes_all or self.style in (Style.VERL, Style.VERL_BATCH):
            arguments = {name: value for name, value in arguments.items() if name in self.parameters}
        arguments |= {name: value for name, value in asked.items() if name in self.parameters}
        # As verl has it, the recipe's own arguments come before a column of that name.
        call = self.ready
        if not isinstance(self.call, type):
            arguments = {name: value for name, value in arguments.items() if name not in self.kwargs}
        value = call(**arguments)
        return _event_loop().run(_wait_for(value)) if inspect.isawaitable(value) else value


def recognise(
    call: Callable[..., Any],
    spec: str,
    dataset: str,
    kwargs: Mapping[str, Any] | None = None,
    key: str = "rewards.kwargs",
) -> RewardFunction:
    """Finds out the style. Raises UserError if the signature is none of those above, or does not take `kwargs`, which
    the recipe has under `key`."""
    if isinstance(call, type) and "__call__" not in dir(call):
        raise UserError(f"reward '{spec}' is a class whose instances cannot be called; give it a method __call__")
    parameters = _parameters(call.__call__, bound=False) if isinstance(call, type) else _parameters(call)
    by_name = all(p.kind is not p.POSITIONAL_ONLY for p in parameters.values())
    style = next((style for mark, style in _MARKS.items() if mark in parameters), None)
    if style is None or not by_name:
        raise UserError(
            f"reward '{spec}' takes ({', '.join(map(str, parameters.values()))}), but must take "
            "(completion, **row), TRL's (prompts, completions, **columns) or verl's "
            "(data_source, solution_str, ground_truth, extra_info), by name"
        )
    _check_kwargs(call, spec, style, parameters, kwargs or {}, key)
    return RewardFunction(spec, call, style, parameters, dataset, kwargs or {})


def _parameters(call: Callable[..., Any], bound: bool = True) -> dict[str, inspect.Parameter]:
    try:
        found = list(inspect.signature(call).parameters.items())
    except (TypeError, ValueError):
        return {}
    return dict(found if bound else found[1:])


def _check_kwargs(
    call: Callable[..., Any],
    spec: str,
    style: Style,
    parameters: Mapping[str, inspect.Parameter],
    kwargs: Mapping[str, Any],
    key: str,
) -> None:
    takes = parameters
    if isinstance(call, type):
        takes, style_gives = _parameters(call), frozenset()
    else:
        style_gives = style.value | _ON_REQUEST
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for name, parameter in takes.items() if isinstance(call, type) else ():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and name not in kwargs:
            raise UserError(f"{key}: reward '{spec}' is instantiated with '{name}', which has no default; give it")
    for name in kwargs:
        if name in style_gives:
            raise UserError(f"{key}.{name}: reward '{spec}' gets '{name}' from asyncrl; rename it")
        if name not in takes and not takes_all:
            raise UserError(f"{key}.{name}: reward '{spec}' has no parameter '{name}', only {', '.join(takes)}")


def _on_request(request: RewardRequest, logs: Logs, per_group: bool) -> dict[str, Any]:
    lists = {"completion_ids": request.completion_ids, "finish_reason": request.finish_reasons}
    return {
        **(lists if per_group else {name: values[0] for name, values in lists.items()}),
        "trainer_state": request.state,
        "log_extra": logs.log_extra,
        "log_metric": logs.log_metric,
    }


def _of_trajectory(request: RewardRequest, dataset: str) -> dict[str, Any]:
    return {**request.row, "prompt": request.prompt, "completion": request.completions[0]}


def _of_trl(request: RewardRequest, dataset: str) -> dict[str, Any]:
    number = len(request.completions)
    chat = not isinstance(request.prompt, str)
    # TRL does not pass these columns: they would repeat `prompts`, `completions` and `completion_ids`.
    own = ("prompt", "completion", "completion_ids")
    return {
        **{name: [value] * number for name, value in request.row.items() if name not in own},
        "prompts": [request.prompt] * number,
        "completions": [[{"role": "assistant", "content": text}] if chat else text for text in request.completions],
    }


def _of_verl(request: RewardRequest, dataset: str) -> dict[str, Any]:
    row = request.row
    gold = row.get("reward_model")
    if isinstance(gold, dict) and "ground_truth" in gold:
        truth = gold["ground_truth"]
    else:
        truth = row["ground_truth"] if "ground_truth" in row else row["answer"]
    return {
        **row,
        "data_source": row.get("data_source", dataset),
        "solution_str": request.completions[0],
        "ground_truth": truth,
        # A copy, as verl's functions may write into it.
        "extra_info": copy.deepcopy(row.get("extra_info") or {}),
    }


def _of_verl_batch(request: RewardRequest, dataset: str) -> dict[str, Any]:
    each = [_of_verl(part, dataset) for part in request.split()]
    return {name: [one[name.removesuffix("s")] for one in each] for name in Style.VERL_BATCH.value}


_ARGUMENTS: dict[Style, Callable[[RewardRequest, str], dict[str, Any]]] = {
    Style.TRAJECTORY: _of_trajectory,
    Style.TRL: _of_trl,
    Style.VERL: _of_verl,
    Style.VERL_BATCH: _of_verl_batch,
}


@functools.cache
def _event_loop() -> asyncio.Runner:
    # One loop for all calls, so that an async reward can keep a client open between them.
    return asyncio.Runner()


async def _wait_for(value: Awaitable[Any]) -> Any:
    return await value
