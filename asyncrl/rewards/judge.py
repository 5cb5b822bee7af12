"""A language model as judge, at any OpenAI-compatible endpoint:

    reward:
      - fn: asyncrl.rewards.judge:Judge
        kwargs: {rubric: "Is the answer polite and to the point?", model: qwen3-32b, base_url: "http://judge:8000/v1"}

What it does not answer, or answers without a score, is a reward that failed: counted, never a zero (I7).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asyncrl.errors import UserError

_ASK = (
    "{rubric}\n\nSay why in a few sentences, then end with a line `Score: N`, where N is a number from 0 to {most:g}."
)
_PATTERN = r"(?i)score\W*?(-?\d+(?:\.\d+)?)"
_MOST_CACHED = 100_000
_TRIES = 3
_AGAIN = (408, 429, 500, 502, 503, 504)
"""HTTP statuses of servers that may answer later."""


class Judge:
    """A reward from 0 to 1: the score that the model gives divided by the best one."""

    def __init__(
        self,
        rubric: str,
        model: str,
        base_url: str,
        best_score: float = 10.0,
        pattern: str = _PATTERN,
        reference_column: str | None = None,
        api_key_variable: str = "OPENAI_API_KEY",
        max_tokens: int = 1024,
        timeout_s: float = 20.0,
        concurrency: int = 16,
        options: dict[str, Any] | None = None,
    ) -> None:
        """`pattern`: a regular expression whose first group is the score; its last match counts. `reference_column`:
        with the right answer, which the judge sees too. `api_key_variable`: of the environment; without it no key is
        sent. `options`: further fields of the request. Raises UserError for a pattern without a group."""
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise UserError(f"the judge's pattern {pattern!r} is no regular expression: {error}") from error
        if not self.pattern.groups:
            raise UserError(f"the judge's pattern {pattern!r} has no group; put the score in parentheses")
        self.instruction = _ASK.format(rubric=rubric.strip(), most=best_score)
        self.url = f"{base_url.rstrip('/')}/chat/completions"
        self.best_score, self.reference_column, self.timeout_s = best_score, reference_column, timeout_s
        self.fixed = {"model": model, "temperature": 0, "max_tokens": max_tokens, **(options or {})}
        self.key = os.environ.get(api_key_variable)
        self.replies: OrderedDict[str, str] = OrderedDict()
        """By what was asked; those of this process."""
        self.threads = ThreadPoolExecutor(concurrency, "judge")

    def __call__(self, prompts: list[Any], completions: list[Any], **columns: Any) -> list[Any]:
        """Of each completion a dict, or the exception that it failed with. The same text is asked once."""
        references = columns[self.reference_column] if self.reference_column else [None] * len(completions)
        bodies = [self._body(*one) for one in zip(prompts, completions, references, strict=True)]
        cached = {body: True for body in bodies if _digest(body) in self.replies}
        running = {body: self.threads.submit(self._reply, body) for body in dict.fromkeys(bodies)}
        return [self._verdict(running[body], body in cached) for body in bodies]

    def _body(self, prompt: Any, completion: Any, reference: Any) -> str:
        shown = {"prompt": _text(prompt), "answer": _text(completion)}
        if self.reference_column is not None:
            shown["reference"] = str(reference)
        asked = "\n".join(f"<{name}>\n{text}\n</{name}>" for name, text in shown.items())
        messages = [{"role": "system", "content": self.instruction}, {"role": "user", "content": asked}]
        return json.dumps({**self.fixed, "messages": messages})

    def _verdict(self, reply: Any, cached: bool) -> Any:
        try:
            text = reply.result()
            score = self._score(text)
        except Exception as error:
            return error
        return {"reward": score / self.best_score, "cached": float(cached), "verdict": text}

    def _score(self, text: str) -> float:
        found = [match.group(1) for match in self.pattern.finditer(text)]
        if not found:
            raise ValueError("the judge's reply has no score")
        try:
            score = float(found[-1])
        except (TypeError, ValueError):
            raise ValueError(f"the judge's score is no number: {found[-1]!r:.40}") from None
        if not 0 <= score <= self.best_score:
            raise ValueError(f"the judge's score {score:g} is not from 0 to {self.best_score:g}")
        return score

    def _reply(self, body: str) -> str:
        digest = _digest(body)
        if digest not in self.replies:
            self.replies[digest] = self._asked(body)
            while len(self.replies) > _MOST_CACHED:
                self.replies.popitem(last=False)
        return self.replies[digest]

    def _asked(self, body: str) -> str:
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        for attempt in range(_TRIES):
            if attempt:
                time.sleep(2.0 ** (attempt - 1))
            request = urllib.request.Request(self.url, body.encode(), headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                    content = json.load(response)["choices"][0]["message"]["content"]
                    if not isinstance(content, str):
                        raise ValueError("the judge's reply has no text")
                    return content
            except urllib.error.HTTPError as error:
                failure = f"the judge at {self.url} answers HTTP {error.code} {error.reason}"
                if error.code not in _AGAIN:
                    break
            except OSError as error:
                failure = f"the judge at {self.url} cannot be reached: {getattr(error, 'reason', error)}"
        raise ConnectionError(failure)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def _text(said: Any) -> str:
    """Of a text, or of chat messages; of a completion its text alone."""
    if isinstance(said, str):
        return said
    if len(said) == 1 and said[0]["role"] == "assistant":
        return str(said[0]["content"])
    return "\n".join(f"{message['role']}: {message.get('content') or ''}" for message in said)
