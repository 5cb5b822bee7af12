"""Tokens and texts in a thread of their own: long ones must not hold up the event loop."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class Texts:
    """`tokenizer` is a copy, for its thread alone: none may be used by two."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self._thread = copy.deepcopy(tokenizer), ThreadPoolExecutor(1, "text")

    async def words(self, tokens: list[int]) -> list[str]:
        """The text of each token."""
        return await self.beside(lambda: [self.tokenizer.decode([token]) for token in tokens])

    async def text(self, tokens: list[int]) -> str:
        """All of it, special tokens too."""
        return await self.beside(self.tokenizer.decode, tokens)

    async def beside(self, function: Callable[..., T], *arguments: Any) -> T:
        """What the function returns, called in the thread."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, *arguments)
