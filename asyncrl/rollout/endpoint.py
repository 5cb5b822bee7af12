"""Log-probs of given tokens from a vLLM server: a completion of one token, with those of the prompt
(`prompt_logprobs` of its OpenAI-compatible API). They are of the raw logits: temperature 1, over the server's whole
vocabulary.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from typing import Any

import aiohttp
import numpy as np

from asyncrl.errors import UserError
from asyncrl.recipe.teacher import TeacherRecipe

_AGAIN = (408, 425, 429, 500, 502, 503, 504)
"""HTTP statuses of servers that may answer later."""
_LONGEST_PAUSE_S = 10.0
_PROBE_S = 10.0
"""For which a server is asked that did not answer the call before."""
_MOST_SAID = 300


class NoAnswer(Exception):
    """A server has not scored what it was asked for, and why."""


class Endpoint:
    """One teacher's server; any number of calls at a time, of which `concurrency` are in flight."""

    def __init__(self, teacher: TeacherRecipe) -> None:
        assert teacher.url
        self._teacher, self.url = teacher, f"{teacher.url.rstrip('/').removesuffix('/v1')}/v1/completions"
        self._slots = asyncio.Semaphore(teacher.concurrency)
        self._session: aiohttp.ClientSession | None = None
        self._is_silent = False
        """The last call got no answer in its time."""

    async def logprobs(self, tokens: list[int]) -> np.ndarray:
        """float32 [T]: of each token given those before it; NaN for the first. Tries again until `timeout_s` has
        passed since it began to be asked; of a server that was silent for so long, until an answer would have come.
        Raises NoAnswer."""
        async with self._slots:
            timeout_s = min(self._teacher.timeout_s, _PROBE_S) if self._is_silent else self._teacher.timeout_s
            deadline, pause_s = time.monotonic() + timeout_s, 0.5
            while True:
                answer = await self._asked(tokens, deadline - time.monotonic())
                if not isinstance(answer, str):
                    self._is_silent = False
                    return answer
                if time.monotonic() + pause_s >= deadline:
                    self._is_silent = True
                    raise NoAnswer(f"{self._who} {answer}, for {timeout_s:g} s (timeout_s)")
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _asked(self, tokens: list[int], timeout_s: float) -> np.ndarray | str:
        """The answer, or why there is none yet."""
        body = {"model": self._teacher.model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 0}
        key = os.environ.get(self._teacher.api_key_variable)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if self._session is None:
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        limit = aiohttp.ClientTimeout(total=max(timeout_s, 0.001))
        try:
            async with self._session.post(self.url, json=body, headers=headers, timeout=limit) as response:
                text = await response.text(errors="replace")
        except TimeoutError:
            return "does not answer"
        except aiohttp.ClientError as error:
            return f"cannot be reached: {error}"
        if response.status in _AGAIN:
            return f"answers HTTP {response.status}"
        if response.status != 200:
            raise NoAnswer(f"{self._who} answers HTTP {response.status}: {_said(text)}")
        try:
            return _read(json.loads(text), tokens)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError) as error:
            raise NoAnswer(f"{self._who} gives no log-probs of the prompt as vLLM does: {error!r:.200}") from error

    @property
    def _who(self) -> str:
        return f"the teacher at {self._teacher.url}"

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None


async def require_answer(teacher: TeacherRecipe, tokens: list[int]) -> None:
    """Raises UserError if the server does not score these tokens: before a run, rather than of its first groups."""
    endpoint = Endpoint(teacher)
    try:
        await endpoint.logprobs(tokens)
    except NoAnswer as error:
        raise UserError(f"algorithm.teacher: {error}; start it with `vllm serve`, or see url and model") from error
    finally:
        await endpoint.close()


def _read(answer: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """Raises ValueError and others for what is no answer to these tokens."""
    said = answer["choices"][0]["prompt_logprobs"]
    if said is None or len(said) != len(tokens):
        raise ValueError(f"of {len(tokens)} tokens it has {'none' if said is None else len(said)}")
    values = [entry[str(token)]["logprob"] for entry, token in zip(said[1:], tokens[1:], strict=True)]
    found = np.array([np.nan, *values], np.float32)
    if not np.isfinite(found[1:]).all():
        raise ValueError("one is not finite")
    return found


def _said(text: str) -> str:
    """The message of an error, as vLLM and OpenAI have it."""
    try:
        found = json.loads(text)
        message = found.get("message") or found["error"]["message"]
    except (ValueError, KeyError, TypeError, AttributeError):
        message = text
    return " ".join(str(message).split())[:_MOST_SAID]
