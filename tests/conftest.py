"""Shared fixtures: a tiny random model on disk, and an event loop that a real vLLM engine can live on."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from collections.abc import Coroutine, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import settings

from asyncrl.recipe.cores import SPIN

# How long an example takes says more about what else the machine does than about the code.
settings.register_profile("asyncrl", deadline=None)
settings.load_profile("asyncrl")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# As the command line has it; the package reads it once, when it is imported.
os.environ["HF_DATASETS_DISABLE_PROGRESS_BARS"] = "1"
# As in a run's processes; libgomp reads it when torch is imported.
os.environ.update(SPIN)
# Else Ray would write one into this user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer."""
    from asyncrl.models import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), seed=0)


T = TypeVar("T")


class LoopThread:
    """An event loop in a thread of its own, as in a Ray actor; `run` blocks on it with a deadline."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any], timeout_s: float = 120.0) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout_s)

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


class OneReplica:
    """An engine on a loop thread as the only replica of a weight channel."""

    num_workers = 1

    def __init__(self, engine: Any, loop_thread: LoopThread) -> None:
        self.engine, self.loop_thread = engine, loop_thread

    def join(self, init_info: dict[str, Any]) -> None:
        self.loop_thread.run(self.engine.join_channel(init_info))

    def update(self, update: Any, *, rolling: bool = False) -> dict[str, float]:
        return {"replica": self.loop_thread.run(self.engine.update_weights(update))}


@pytest.fixture(scope="session")
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread()
    yield thread
    thread.close()


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: Path, loop_thread: LoopThread) -> Iterator[Any]:
    """A real vLLM engine with the tiny model in fp32, shared by the session."""
    from asyncrl.rollout.engine import EngineConfig
    from asyncrl.rollout.vllm_engine import VllmEngine

    async def start() -> VllmEngine:
        config = EngineConfig(
            model=str(tiny_model),
            dtype="float32",
            channel="gloo",
            max_tokens=256,
            kv_after_update="keep",
            cpu_cores="0",
            kv_cache_gib=0.25,
            seed=0,
            engine_args={"enforce_eager": True, "max_num_seqs": 4},
        )
        engine = VllmEngine(config)
        await engine.start()
        return engine

    engine = loop_thread.run(start(), 240)
    yield engine
    loop_thread.run(engine.close())


@pytest.fixture(scope="session")
def one_replica(vllm_engine: Any, loop_thread: LoopThread) -> OneReplica:
    return OneReplica(vllm_engine, loop_thread)
