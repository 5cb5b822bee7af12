"""Every environment and agent that the documentation shows runs, in a process of its own, and scores."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from asyncrl.envs.environment import Ask, Episode, Sampled
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.sandbox import Sandbox
from asyncrl.envs.wire import Load
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.task import Task

ROOT = Path(__file__).resolve().parents[2]
TASK = Task(0, 0, "What is 2 + 3?", {"answer": "5"})


def shown() -> list[tuple[str, str]]:
    """Its name, `rollout` or `run`, and the block."""
    blocks = [
        block
        for page in (ROOT / "README.md", ROOT / "docs/environments.md")
        for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
    ]
    named = [(re.search(r"^(?:async )?def (rollout|run)\(", block, re.MULTILINE), block) for block in blocks]
    return [(name[1], block) for name, block in named if name]


class Five:
    """A policy that knows the answer."""

    def __init__(self, model: Path) -> None:
        self.tokenizer = load_tokenizer(str(model))

    async def generate(self, ask: Ask) -> Sampled:
        tokens = [*self.tokenizer("5").input_ids, self.tokenizer.eos_token_id]
        return Sampled(tokens, [0.0] * len(tokens), "stop", 0)


@pytest.mark.parametrize(("name", "block"), shown(), ids=lambda value: value if len(value) < 10 else "")
def test_an_environment_of_the_docs(name: str, block: str, tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "shown.py").write_text(block)

    async def scenario() -> Episode:
        if "policy.sandbox(" in block:
            try:
                await (await Sandbox().start()).close()
            except UserError as error:
                pytest.skip(str(error))
        pool = EnvPool(EnvSettings(Load(f"./shown.py:{name}", tmp_path, {}, str(tiny_model), {}, 5.0), 1, 60.0, 1.0))
        try:
            await pool.start()
            return await pool.rollout(TASK, [1], Five(tiny_model), "0.0.0")
        finally:
            await pool.close()

    episode = asyncio.run(scenario())
    assert episode.score is not None
    assert (episode.score.reward, episode.score.error) == (1.0, None)


def test_there_are_some_of_each_form() -> None:
    names = [name for name, _ in shown()]
    assert names.count("rollout") >= 3
    assert names.count("run") >= 1
