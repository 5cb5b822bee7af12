"""The part of a recipe that names an environment."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator

from asyncrl.recipe.part import Gib, NonNegativeInt, Part, PositiveInt, Processes, Seconds


class EnvRecipe(Part):
    path: str
    """`package.module:name` or `./file.py:name`: `async def rollout(task, policy)`, a function of task, base_url and
    api_key that speaks to an OpenAI-compatible endpoint, or a class with reset and step; or `verifiers:NAME`, a taskset
    (docs/environments.md)."""
    kwargs: dict[str, Any] = {}
    """Further keyword arguments of every call; of a class, of its constructor."""
    workers: Processes = 1
    """Environment processes per generator; each runs many episodes at once."""
    max_turns: PositiveInt = 16
    """Completions of one episode; then it is cut off."""
    max_context_tokens: PositiveInt | None = None
    """Longest sequence of an episode, prompts and completions of all turns together; default: rollout.max_prompt_tokens
    + max_turns x rollout.max_new_tokens, but not more than trainer.tokens_per_microbatch."""
    redundant_rollouts: NonNegativeInt = 0
    """Rollouts of a group beyond group_size: the first group_size that end without failing are trained, the others are
    cancelled. Slow or failing environments hold up no group then; episodes that take long are trained less often."""
    episode_s: Seconds = 600.0
    """An episode that takes longer is ended, masked and counted."""
    tool_parser: str | None = None
    """In which form the model writes tool calls: `hermes`, or the name of one of vLLM's parsers (`llama3_json`,
    `mistral`, ...); default: what the chat template shows."""
    tool_timeout_s: Seconds = 30.0
    """A tool that takes longer is given up; the model reads that it was."""
    memory_gib: Gib | None = None
    """What an environment process and all that it starts may hold together, in GiB; with more they are ended. Default:
    half of the machine's memory."""
    file_gib: Gib = 16.0
    """No file that they write may be longer, in GiB."""


Env = Annotated[EnvRecipe | None, BeforeValidator(lambda env: {"path": env} if isinstance(env, str) else env)]
"""A text is its path."""
