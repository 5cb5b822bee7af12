"""From the `env:` line of a recipe to a rollout function.

async def rollout(task, policy)              the policy is called by hand, or through `policy.chat(...)`
def run(task, base_url, api_key)             any program that speaks to an OpenAI-compatible endpoint
class Game: reset(task) / step(action)       Gymnasium's words, with texts; `close()` if there is one
verifiers:NAME                               a taskset of that package (`verifiers_tasksets.py`)
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from asyncrl.envs.environment import ContextFull
from asyncrl.envs.tools import called
from asyncrl.envs.verifiers_tasksets import Rollouts
from asyncrl.errors import UserError
from asyncrl.plugins import load_object
from asyncrl.task import VERIFIERS, Task

Rollout = Callable[[Task, Any], Awaitable[Any]]
"""(task, policy) -> reward: a number, a dict with `reward` or `score`, or None for the recipe's reward function."""

_GIVEN = ("task", "policy", "base_url", "api_key")


def check(spec: str, base_dir: Path, kwargs: Mapping[str, Any]) -> None:
    """As `load`, but nothing is made of it yet."""
    _found(spec, base_dir, kwargs)


def load(spec: str, base_dir: Path, kwargs: Mapping[str, Any]) -> Rollout:
    """Raises UserError if it does not import, or is no environment of a known form."""
    return _found(spec, base_dir, kwargs)()


def _found(spec: str, base_dir: Path, kwargs: Mapping[str, Any]) -> Callable[[], Rollout]:
    if spec.startswith(VERIFIERS):
        return _recognised(spec, Rollouts, {**kwargs, "name": spec.removeprefix(VERIFIERS)})
    return _recognised(spec, load_object(spec, base_dir, "env"), kwargs)


def _recognised(spec: str, found: Any, kwargs: Mapping[str, Any]) -> Callable[[], Rollout]:
    """What makes the rollout function. Raises UserError."""
    if not callable(found):
        raise UserError(f"env '{spec}' is of type {type(found).__name__}, neither a function nor a class")
    if not inspect.isclass(found):
        rollout = _function(spec, found, kwargs)
        return lambda: rollout
    _check_arguments(spec, found, kwargs, ())
    if hasattr(found, "reset") and hasattr(found, "step"):
        return lambda: _game(found, kwargs)
    if hasattr(found, "rollout"):
        return lambda: _function(spec, found(**kwargs).rollout, {})
    raise UserError(f"env '{spec}' is a class with neither rollout(task, policy) nor reset(task) and step(action)")


def _function(spec: str, function: Callable[..., Any], kwargs: Mapping[str, Any]) -> Rollout:
    _check_arguments(spec, function, kwargs, _GIVEN)
    takes = inspect.signature(function).parameters
    is_async = inspect.iscoroutinefunction(function)
    if not {"policy", "base_url"} & set(takes):
        raise UserError(
            f"env '{spec}' takes neither policy nor base_url, so it can sample nothing; write async def "
            "rollout(task, policy), or def run(task, base_url, api_key)"
        )
    if "policy" in takes and not is_async:
        raise UserError(
            f"env '{spec}' takes the policy, whose calls are awaited: write async def, or take base_url and api_key"
        )

    async def rollout(task: Task, policy: Any) -> Any:
        arguments = {name: task if name == "task" else policy for name in ("task", "policy") if name in takes}
        arguments |= {name: getattr(policy, name) for name in ("base_url", "api_key") if name in takes}
        if is_async:
            return await function(**arguments, **kwargs)
        return await asyncio.to_thread(function, **arguments, **kwargs)

    return rollout


def _check_arguments(
    spec: str, function: Callable[..., Any], kwargs: Mapping[str, Any], given: tuple[str, ...]
) -> None:
    """Raises UserError unless it can be called with what is given and the recipe's further arguments."""
    parameters = inspect.signature(function).parameters.values()
    names = {p.name for p in parameters}
    any_name = any(p.kind is p.VAR_KEYWORD for p in parameters)
    plain = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if missing := [p.name for p in plain if p.default is p.empty and p.name not in (*given, *kwargs)]:
        known = f" (the only ones that are: {', '.join(given)})" if given else ""
        raise UserError(
            f"env '{spec}' has a parameter '{missing[0]}' that is not filled{known}; set env.kwargs.{missing[0]}, or "
            "give it a default"
        )
    if unknown := [name for name in kwargs if name not in names and not any_name]:
        known = ", ".join(sorted(names)) or "nothing"
        raise UserError(f"env.kwargs: env '{spec}' takes no '{unknown[0]}', only {known}")
    if taken := [name for name in kwargs if name in given]:
        raise UserError(f"env.kwargs: '{taken[0]}' is given to every environment; take another name")


def _game(kind: type, kwargs: Mapping[str, Any]) -> Rollout:
    """A class of Gymnasium's form: what `reset` and `step` return are texts for the model, the rewards are summed."""

    async def rollout(task: Task, policy: Any) -> Any:
        game = await called(kind, **kwargs)
        try:
            return await _play(game, task, policy)
        finally:
            if hasattr(game, "close"):
                await called(game.close)

    return rollout


async def _play(game: Any, task: Task, policy: Any) -> dict[str, Any]:
    messages = task.messages
    if observed := _first(await called(game.reset, task)):
        # Templates want turns to alternate.
        said = messages.pop()["content"] + "\n\n" if messages and messages[-1]["role"] == "user" else ""
        messages.append({"role": "user", "content": said + observed})
    chat = policy.chat(messages)
    total, extras, done, acted = 0.0, {}, False, False
    while not done:
        try:
            reply = await chat.reply()
        except ContextFull:
            if not acted:
                raise
            break
        acted = True
        if reply.finish_reason == "length":
            break  # half an action is none
        observed, reward, done, info = _step(await called(game.step, reply.text))
        policy.reward(reward)
        total += reward
        extras.update(info)
        chat.add(observed)
    if not done:
        policy.truncate()
    return {**extras, "reward": total}


def _first(observed: Any) -> str:
    """Of `reset`: a text, or Gymnasium's (text, info); None or nothing: the task's prompt says it all."""
    first = observed[0] if isinstance(observed, tuple) and observed else observed
    return "" if first is None else str(first)


def _step(result: Any) -> tuple[str, float, bool, dict[str, Any]]:
    """(observation, reward, done), with an info, or Gymnasium's (observation, reward, terminated, truncated, info)."""
    match result:
        case (observed, reward, done):
            return str(observed), float(reward), bool(done), {}
        case (observed, reward, done, dict() as info):
            return str(observed), float(reward), bool(done), info
        case (observed, reward, terminated, truncated, dict() as info):
            return str(observed), float(reward), bool(terminated or truncated), info
    raise TypeError(f"step returned {result!r}, not (observation, reward, done)")
