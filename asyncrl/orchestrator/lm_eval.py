"""`asyncrl eval --lm-eval`: tasks of lm-evaluation-harness (PyPI: lm-eval) by name, on a model or a run's checkpoint.

    vllm serve MODEL  <--tokens; log-probs, texts--  lm_eval run --model local-completions  --> results_*.json
lm_eval renders and tokenizes, so that prompts are those of its other backends. Both are processes of their own, whose
output is in files beside the results. Waits for: the server to load the model; lm_eval, as long as it says something.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from asyncrl.errors import DeadlineExceeded, RunFailed, UserError
from asyncrl.models import TINY_LLAMA, hub_config, is_local, load_tokenizer, local_config, make_tiny_llama
from asyncrl.observe.lm_eval import FILE, lines_of
from asyncrl.observe.metrics import MetricsWriter
from asyncrl.processes.last_words import cause, tail
from asyncrl.processes.program import Program
from asyncrl.recipe.check import context_of, folder_of
from asyncrl.recipe.cores import usable_cores
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.vllm_server import Server, serving
from asyncrl.storage import private
from asyncrl.storage.run_dir import json_object
from asyncrl.terminal.progress import shown

PYTHON = "ASYNCRL_LM_EVAL_PYTHON"
"""Environment variable: the Python that has lm_eval, where it is not this one."""
_OURS = {
    **dict.fromkeys(("--tasks", "-t"), "--lm-eval TASK[,TASK...]"),
    **dict.fromkeys(("--output_path", "-o"), "--out DIR"),
    **dict.fromkeys(("--model", "-M", "--model_args", "-a", "--device"), "the first argument, and rollout.engine_args"),
}
"""Options of lm_eval that asyncrl says to it, and what says them to asyncrl."""
_CACHE = ("--use_cache", "-c")
"""Of answers by request, whatever model gave them."""
_REQUESTS = re.compile(r"Requesting API:[^\r\n]*?(\d+)/(\d+) \[")
"""lm_eval's own progress."""
_OF_HUB = re.compile(r"\bHub\b|huggingface|ConnectionError|OfflineMode|DatasetNotFound")
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""Modules of the working directory are not for its imports."""
_CHECK_S = 600.0
_LOOK_S = 0.2
_CONTEXT_ON_CPU = 4096
_AT_ONCE = 64
"""Requests in flight; the server batches them."""


def check(recipe: Recipe, tasks: Sequence[str], options: Sequence[str]) -> None:
    """Raises UserError if the model can be none, or lm_eval is not there or does not know a task or an option."""
    if recipe.model != TINY_LLAMA:
        folder_of("model", recipe.model, Path.cwd())
    said = [word.partition("=")[0] for word in options if re.match(r"--?[A-Za-z]\w*(=|$)", word)]
    for word in said:
        if word in _OURS:
            raise UserError(f"{word} behind -- is not for lm_eval: asyncrl says it, by {_OURS[word]}")
        if word in _CACHE:
            raise UserError(f"{word} of lm_eval gives the answers of one model for those of the next; leave it out")
    known = set(re.findall(r"(?<![\w-])--?[A-Za-z]\w*", _asked("run", "--help")))
    for word in said:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1)
            raise UserError(f"lm_eval has no option {word}" + (f"; did you mean {near[0]}?" if near else ""))
    names = [task for task in tasks if not re.search(r"[*?\[/]|\.yaml$", task)]
    if names:
        _asked("validate", "--tasks", ",".join(names), *_of_options(options, "--include_path"))


def _of_options(options: Sequence[str], name: str) -> list[str]:
    """This option alone, with its value."""
    for place, word in enumerate(options):
        if word.startswith(f"{name}="):
            return [word]
        if word == name:
            return list(options[place : place + 2])
    return []


def _asked(*words: str) -> str:
    """What lm_eval prints. Raises UserError if it refuses."""
    command = [*_lm_eval(), *words]
    try:
        with shown("lm_eval looks for its tasks"):
            here = {**os.environ, **_SAFE_PATH}
            done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_CHECK_S, env=here)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"lm_eval, started by {command[0]}, said nothing within {_CHECK_S:g} s") from error
    if "No module named lm_eval" in done.stderr:
        raise UserError(
            f"{command[0]} has no lm_eval; pip install 'asyncrl[lm-eval]', or name the Python that has it in {PYTHON}"
        )
    if missing := re.search(r"Tasks not found: (.*)", done.stdout):
        raise UserError(
            f"lm_eval has no task {missing[1]}; `lm_eval ls tasks` lists them, and -- --include_path FOLDER adds yours"
        )
    if done.returncode:
        words_ = cause(done.stderr) or " ".join(done.stderr.split())[-500:] or f"exit code {done.returncode}"
        raise UserError(f"lm_eval cannot be started by {command[0]}: {words_}")
    return done.stdout


def _lm_eval() -> list[str]:
    given = os.environ.get(PYTHON) or sys.executable
    found = shutil.which(given)
    if found is None:
        raise UserError(f"{PYTHON}: there is no program {given}")
    return [os.path.abspath(found), "-m", "lm_eval"]


def evaluate(
    recipe: Recipe, version: int, name: str, tasks: Sequence[str], options: Sequence[str], out: Path
) -> list[dict[str, Any]]:
    """The figures of these tasks on the recipe's `model`, which lines call `name`; written to `out`, a folder.

    `tasks` and `options` have been checked. Raises UserError for what lm_eval or vLLM refuses, RunFailed if one of them
    ends otherwise.
    """
    kept = out / "evaluations"
    kept.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"lm_eval-{version:06d}-", dir=kept.resolve()))
    work_dir = private.make(out.resolve())
    try:
        model = str(make_tiny_llama(work_dir / "model", recipe.seed)) if recipe.model == TINY_LLAMA else recipe.model
        model = os.path.abspath(model) if is_local(model) else model
        config, adds_bos = engine_config(recipe, model), _adds_bos(model, options)
        with ExitStack() as stack:
            with shown(f"vLLM loads {model}"):
                log = folder / "server.log"
                server = stack.enter_context(serving(config, name, log, recipe.deadlines.start_s))
            timeout_s = recipe.deadlines.rollout_s
            command = _command(server, config, name, adds_bos, folder, timeout_s)
            _run([*command, f"--tasks={','.join(tasks)}", *options], server, folder, 2 * timeout_s)
    finally:
        private.remove(work_dir)
    return _kept(folder, version, name, out)


def engine_config(recipe: Recipe, model: str) -> EngineConfig:
    """Of the server: the recipe's engine, with all of the model's context, or as much as memory has room for."""
    rollout = recipe.rollout
    engine_args = dict(rollout.engine_args) if rollout.engine == "vllm" else {}
    context = context_of(local_config(Path(model)) if is_local(model) else hub_config(model))
    # On CPUs prompts are not read in parts: memory for the longest is taken at the start.
    longest = -1 if rollout.gpus_per_replica else min(context or _CONTEXT_ON_CPU, _CONTEXT_ON_CPU)
    return EngineConfig(
        model=model,
        dtype=recipe.weights.dtype,
        channel="none",
        max_tokens=engine_args.get("max_model_len", longest),
        kv_after_update=rollout.kv_after_update,
        cpu_cores=rollout.cpu_cores or ",".join(map(str, usable_cores())),
        kv_cache_gib=rollout.kv_cache_gib,
        seed=recipe.seed,
        engine_args=engine_args,
        num_gpus=rollout.gpus_per_replica,
    )


def _command(
    server: Server, config: EngineConfig, name: str, adds_bos: bool, folder: Path, timeout_s: float
) -> list[str]:
    """Without its tasks and options."""
    model_args = {
        "model": name,
        "base_url": f"{server.url}/completions",
        "tokenizer": config.model,
        "tokenizer_backend": "huggingface",
        "add_bos_token": adds_bos,
        "max_length": server.max_tokens,
        "num_concurrent": config.engine_args.get("max_num_seqs", _AT_ONCE),
        "timeout": round(timeout_s),
    }
    said = {"model": "local-completions", "model_args": json.dumps(model_args), "output_path": folder / "results.json"}
    return [*_lm_eval(), "run", *(f"--{key}={value}" for key, value in said.items())]


def _adds_bos(model: str, options: Sequence[str]) -> bool:
    """Whether prompts begin with a token of the tokenizer's own. lm_eval's other backends leave that to the tokenizer;
    this one has to be told. A chat template writes it itself. Raises UserError if there is no tokenizer."""
    tokenizer = load_tokenizer(model)
    of_template = any(word.startswith("--apply_chat_template") for word in options)
    return not of_template and tokenizer("a").input_ids[:-1] == [tokenizer.bos_token_id]


def _run(command: Sequence[str], server: Server, folder: Path, silent_s: float) -> None:
    """Until lm_eval has ended well. Raises RunFailed, or UserError for what its command line refuses."""
    log = folder / "lm_eval.log"
    environment = {"OPENAI_API_KEY": server.key, "TOKENIZERS_PARALLELISM": "false", **_SAFE_PATH}
    program = Program("lm_eval", command, environment, log)
    try:
        with ExitStack() as showing:
            _watch(program, log, server, silent_s, showing)
    finally:
        code, how = program.end()
    if code == 2:
        raise UserError(f"lm_eval refuses its command line: {' '.join(tail(log).split())[-500:]}")
    if code != 0:
        server.require()
        raise RunFailed(f"lm_eval has no scores: {_why(tail(log), how)}; its log is {log}")


def _watch(program: Program, log: Path, server: Server, silent_s: float, showing: ExitStack) -> None:
    """Until lm_eval has ended, shows what its log says of its progress."""
    advance = showing.enter_context(shown("lm_eval loads its tasks"))
    total, said, since = 0, -1, time.monotonic()
    while not program.ended:
        if server.program.ended:
            server.require()
        if (size := log.stat().st_size if log.exists() else 0) != said:
            said, since = size, time.monotonic()
            for done, of in _REQUESTS.findall(tail(log))[-1:]:
                if int(of) != total:
                    showing.close()
                    total = int(of)
                    advance = showing.enter_context(shown("lm_eval asks the model", total))
                advance(int(done))
        if time.monotonic() > since + silent_s:
            raise DeadlineExceeded(
                f"lm_eval has said nothing for {silent_s:g} s (twice deadlines.rollout_s); its log is {log}"
            )
        time.sleep(_LOOK_S)


def _why(said: str, how: str) -> str:
    words = cause(said)
    if words is None:
        return how
    cure = "; see that the hub can be reached, or that its cache has the tasks' data" if _OF_HUB.search(words) else ""
    return f"{words}{cure}"


def _kept(folder: Path, version: int, name: str, out: Path) -> list[dict[str, Any]]:
    """The figures of the results file, also as lines of `out`."""
    found = sorted(folder.glob("results_*.json"))
    results = json_object(folder, found[-1].name) if found else {}
    now = {
        "model": name,
        "lm_eval": results.get("lm_eval_version"),
        "limit": (results.get("config") or {}).get("limit"),
    }
    now |= {"results": f"evaluations/{folder.name}", "time": time.time()}
    lines = [{"version": version, **line, **now} for line in lines_of(results)] if results.get("results") else []
    if not lines:
        raise RunFailed(f"lm_eval gave no figure; see {folder}")
    for line in lines:
        MetricsWriter(out / FILE).write(line)
    return lines
