"""Shared fixtures: a tiny random model on disk, and an event loop that a real vLLM engine can live on."""

from __future__ import annotations

import asyncio
import functools
import os
import secrets
import shutil
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import ModuleType
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
# A call of Ray's without a Ray is an error, not the start of one that later tests find.
os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
# Else Ray would write one into this user's home.
os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
# Helpers of that room; importlib mode puts no folder on the path.
sys.path.append(str(Path(__file__).parent / "report"))


_LONGEST = (
    "test_new_user.py",
    "test_run.py",
    "test_ends.py",
    "test_lost_node.py",
    "test_placed_rewards.py",
    "test_environment.py",
    "test_backend.py",
    "test_answers.py",
    "test_killed.py",
    "test_safety.py",
    "test_prometheus.py",
    "test_lm_eval.py",
)
"""Whole runs, half a minute and more each: every test by itself."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Those that take longest first, and what shares a fixture in one process (`--dist loadgroup`): then several
    processes end at about the same time, with one engine."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: (places.get(item.path.name, len(places)), item.path not in slow))
    for item in items if config.pluginmanager.hasplugin("xdist") else ():
        with_engine = "vllm_engine" in getattr(item, "fixturenames", ())
        group = "vllm_engine" if with_engine else item.path if item.path.name not in places else item.nodeid
        item.add_marker(pytest.mark.xdist_group(str(group)))


@pytest.fixture(autouse=True)
def rays_environment() -> Iterator[None]:
    """As it was: a command sets what Ray reads for its own process (`RAY_AUTH_MODE`), and a test may have called it in
    this one, from which runs are forked."""
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    yield
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture
def served() -> Iterator[Callable[[type[BaseHTTPRequestHandler]], str]]:
    """Serves with such a handler until the test ends; gives the URL."""
    running: list[tuple[ThreadingHTTPServer, threading.Thread]] = []

    def serve(handler: type[BaseHTTPRequestHandler]) -> str:
        http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        http.daemon_threads = True
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        running.append((http, thread))
        return f"http://127.0.0.1:{http.server_port}"

    yield serve
    for http, thread in running:
        http.shutdown()
        http.server_close()
        thread.join(10)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama with a byte-level tokenizer."""
    from asyncrl.models import make_tiny_llama

    return make_tiny_llama(tmp_path_factory.mktemp("tiny"), seed=0)


@pytest.fixture(scope="session")
def made_up() -> ModuleType:
    """Makes run directories without a run (tests/report/made_up.py)."""
    import made_up

    return made_up


@pytest.fixture(scope="session")
def mixture(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a random mixture of experts of a family, with a tokenizer."""
    sys.path.append(str(Path(__file__).parent / "trainer"))
    from families import make_model

    @functools.cache
    def make(family: str) -> Path:
        folder: Path = make_model(family, tmp_path_factory.mktemp(family))
        for path in tiny_model.iterdir():
            if path.name.startswith(("tokenizer", "chat_template")):
                shutil.copy(path, folder)
        return folder

    return make


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


def start_engine(model: Path, loop_thread: LoopThread) -> Any:
    from asyncrl.rollout.engine import EngineConfig
    from asyncrl.rollout.vllm_engine import VllmEngine

    async def start() -> VllmEngine:
        config = EngineConfig(
            model=str(model),
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

    return loop_thread.run(start(), 240)


@pytest.fixture(scope="session")
def vllm_engine(tiny_model: Path, loop_thread: LoopThread) -> Iterator[Any]:
    """A real vLLM engine with the tiny model in fp32, shared by the session."""
    engine = start_engine(tiny_model, loop_thread)
    yield engine
    loop_thread.run(engine.close())


@pytest.fixture(scope="session")
def one_replica(vllm_engine: Any, loop_thread: LoopThread) -> OneReplica:
    return OneReplica(vllm_engine, loop_thread)


@pytest.fixture
def mixture_replica(
    request: pytest.FixtureRequest, mixture: Callable[[str], Path], loop_thread: LoopThread
) -> Iterator[OneReplica]:
    """The same with a mixture of experts, of the family that the test is parametrised with."""
    engine = start_engine(mixture(request.param), loop_thread)
    yield OneReplica(engine, loop_thread)
    loop_thread.run(engine.close())


@pytest.fixture(scope="module")
def local_ray() -> Iterator[Callable[..., None]]:
    """Starts Ray in this process, with the arguments of ray.init; also one that did not come up is ended."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
        pytest.fail("an earlier test left Ray running in this process")

    def start(**more: Any) -> None:
        # Ray adds handlers to pytest's logging otherwise.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, configure_logging=False, **more)

    try:
        yield start
    finally:
        ray.shutdown()
