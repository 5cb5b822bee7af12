"""An engine that does not start says why, and what to change."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from asyncrl.errors import RunFailed, UserError
from asyncrl.processes import last_words
from asyncrl.rollout.engine import EngineConfig, EngineDead
from asyncrl.rollout.vllm_start import explained

FAILED = "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore_0': %d}"


@pytest.fixture(autouse=True)
def stderr(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Of a Ray worker it is a file."""
    monkeypatch.setattr(last_words, "_STDERR", tmp_path / "worker.err")
    (tmp_path / "worker.err").write_text("ValueError: of an earlier engine\n")
    return tmp_path / "worker.err"


def start(stderr: Path, code: str, num_gpus: float = 0) -> None:
    """As vLLM: its process writes the traceback, the caller hears of an exit code."""
    config = EngineConfig("x", "bfloat16", "gloo", 64, "keep", "0", 1.0, 0, {}, num_gpus)
    with explained(config), stderr.open("ab") as file:
        ended = subprocess.run([sys.executable, "-c", code], stderr=file)
        raise RuntimeError(FAILED % ended.returncode)


RAISES = "raise {}\n"
MEMORY_OF_CPUS = "lower rollout.kv_cache_gib or rollout.replicas"
MEMORY_OF_GPUS = "lower rollout.engine_args.gpu_memory_utilization or max_num_seqs, or raise rollout.gpus_per_replica"

MEMORY_OF_SHARES = (
    "lower rollout.kv_cache_gib or max_num_seqs in rollout.engine_args, or raise rollout.gpus_per_replica"
)


@pytest.mark.parametrize(
    ("error", "num_gpus", "said"),
    [
        ("ValueError('no such layer')", 0, "with ValueError: no such layer"),
        ("ValueError('Available memory is less than requested memory for kv')", 0, f"for kv; {MEMORY_OF_CPUS}"),
        ("MemoryError", 0, f"with MemoryError; {MEMORY_OF_CPUS}"),
        ("RuntimeError('CUDA error: out of memory')", 1, f"CUDA error: out of memory; {MEMORY_OF_GPUS}"),
        ("RuntimeError('CUDA error: out of memory')", 0.4, f"CUDA error: out of memory; {MEMORY_OF_SHARES}"),
        ("ModuleNotFoundError(\"No module named 'tensorizer'\")", 1, "; install tensorizer beside vLLM, or leave"),
    ],
)  # fmt: skip
def test_the_exception_of_its_process_is_said(stderr: Path, error: str, num_gpus: float, said: str) -> None:
    with pytest.raises(RunFailed) as found:
        start(stderr, RAISES.format(error), num_gpus)
    assert str(found.value).startswith("vLLM's engine ended as it started, with ")
    assert said in str(found.value)


def test_the_cause_is_said_and_not_who_heard_of_it(stderr: Path) -> None:
    code = (
        "import sys; sys.stderr.write('(Worker_TP1 pid=7) torch.OutOfMemoryError: CUDA out of memory\\n')\n"
        "raise Exception('WorkerProc initialization failed due to an exception. See stack trace')"
    )
    with pytest.raises(RunFailed, match=r"with torch.OutOfMemoryError: CUDA out of memory; lower"):
        start(stderr, code, 2)


@pytest.mark.parametrize(("name", "more"), [("SIGKILL", f"; for memory, as a rule: {MEMORY_OF_CPUS}"), ("SIGSEGV", "")])
def test_what_somebody_ended_is_started_again(stderr: Path, name: str, more: str) -> None:
    with pytest.raises(EngineDead) as found:
        start(stderr, f"import os, signal; os.kill(os.getpid(), signal.{name})")
    assert str(found.value) == f"the engine process was ended by {name} while it started{more}"


def test_an_end_that_vllm_has_no_code_of_yet_is_a_death_too() -> None:
    config = EngineConfig("x", "bfloat16", "gloo", 64, "keep", "0", 1.0, 0)
    with (
        pytest.raises(EngineDead, match=r"was ended while it started; for memory, as a rule: lower"),
        explained(config),
    ):
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")


def test_one_that_says_nothing_has_an_exit_code(stderr: Path) -> None:
    with pytest.raises(RunFailed, match="with exit code 3"):
        start(stderr, "import os; os._exit(3)")


class Page(ValueError):
    """As pydantic's."""

    def errors(self) -> list[dict[str, Any]]:
        return [
            {
                "msg": "Value error, Model architectures ['Odd'] are not supported. Supported architectures: "
                + "x" * 2000
            }
        ]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Page("1 validation error"), "vLLM refuses the model or rollout.engine_args: Model architectures ['Odd']"),
        (TypeError("got an unexpected keyword argument 'colour'"), "unexpected keyword argument 'colour'"),
        (ImportError("No module named 'bitsandbytes'"), "; install bitsandbytes beside vLLM"),
    ],
)  # fmt: skip
def test_what_vllm_refuses_is_bad_input(error: Exception, said: str) -> None:
    config = EngineConfig("x", "bfloat16", "gloo", 64, "keep", "0", 1.0, 0)
    with pytest.raises(UserError) as found, explained(config):
        raise error
    assert said in str(found.value)
    assert len(str(found.value)) < 200


def test_words_of_ours_are_left_alone() -> None:
    config = EngineConfig("x", "bfloat16", "gloo", 64, "keep", "0", 1.0, 0)
    with pytest.raises(UserError, match=r"^ours$"), explained(config):
        raise UserError("ours")
