"""Why vLLM does not start, in one sentence: by its exceptions here, or the last words of its processes."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from asyncrl.errors import RunFailed, UserError
from asyncrl.processes.last_words import ErrorOutput, cause, of_memory
from asyncrl.rollout.engine import EngineConfig, EngineDead

_MOST_CHARS = 500


@contextmanager
def explained(config: EngineConfig) -> Iterator[None]:
    """Raises UserError for what vLLM refuses; RunFailed for what another try would repeat; EngineDead if somebody ended
    an engine process."""
    said = ErrorOutput()
    try:
        yield
    except (UserError, RunFailed, EngineDead):
        raise
    except Exception as error:
        if "initialization failed" not in str(error):
            words = _gist(error)
            raise UserError(f"vLLM refuses the model or rollout.engine_args: {words}{cure(words, config)}") from error
        raise _of_process(str(error), said.text(), config) from error


def _of_process(error: str, said: str, config: EngineConfig) -> Exception:
    """vLLM's error names the processes that ended, with their exit codes."""
    codes = [int(code) for code in re.findall(r": (-?\d+)[,}]", error)]
    killed = next((code for code in codes if code < 0), None)
    words = cause(said)
    if killed is None and words:
        return RunFailed(f"vLLM's engine ended as it started, with {words}{cure(words, config)}")
    if killed is None and codes and codes[0]:
        return RunFailed(f"vLLM's engine ended as it started, with exit code {codes[0]}; its log is among Ray's")
    # vLLM may notice the end before it has the code.
    name = signal.Signals(-killed).name if killed else "SIGKILL"
    kernel = f"; for memory, as a rule: {_memory_keys(config)}" if name == "SIGKILL" else ""
    by = f" by {name}" if killed else ""
    return EngineDead(f"the engine process was ended{by} while it started{kernel}")


def _gist(error: Exception) -> str:
    """Of pydantic's pages the first fault."""
    faults = error.errors() if hasattr(error, "errors") else []
    text = faults[0]["msg"] if faults else str(error) or type(error).__name__
    # vLLM lists all that it knows behind it.
    text = " ".join(text.removeprefix("Value error, ").partition(" Supported architectures")[0].split())
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."


def cure(words: str, config: EngineConfig) -> str:
    """What to do about the last words of a process."""
    if of_memory(words):
        return f"; {_memory_keys(config)}"
    if missing := re.search(r"No module named '([\w.]+)'", words):
        return f"; install {missing[1].partition('.')[0]} beside vLLM, or leave out what needs it"
    return ""


def _memory_keys(config: EngineConfig) -> str:
    if 0 < config.num_gpus < 1:
        return "lower rollout.kv_cache_gib or max_num_seqs in rollout.engine_args, or raise rollout.gpus_per_replica"
    if config.num_gpus:
        return "lower rollout.engine_args.gpu_memory_utilization or max_num_seqs, or raise rollout.gpus_per_replica"
    return "lower rollout.kv_cache_gib or rollout.replicas"
