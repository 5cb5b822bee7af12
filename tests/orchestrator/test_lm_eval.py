"""`asyncrl eval --lm-eval`: with a stand-in for lm_eval (lm_eval_stand_in.py), and with the package itself where it is
installed, or where ASYNCRL_LM_EVAL_PYTHON names a Python that has it. The server is vLLM's own, the model a tiny one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from asyncrl.cli import main
from asyncrl.errors import DeadlineExceeded, RunFailed, UserError
from asyncrl.models import load_tokenizer
from asyncrl.observe.lm_eval import cells, lines_of, newest
from asyncrl.orchestrator import lm_eval as module
from asyncrl.processes.program import Program
from asyncrl.report.report import write_report
from asyncrl.rollout import vllm_server
from asyncrl.rollout.engine import EngineConfig
from asyncrl.rollout.vllm_server import Server, _option

sys.path.append(str(Path(__file__).parent))
from command import fresh

PACKAGE = os.environ.get(module.PYTHON) or (sys.executable if importlib.util.find_spec("lm_eval") else None)
SAID = """\
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""
WRITTEN = """\
task: own_words
dataset_path: json
dataset_kwargs: {data_files: {test: %s}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{word}}"
generation_kwargs: {until: ["|"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
metadata: {version: 1.0}
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Named as the Python that has lm_eval."""
    program = tmp_path / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("lm_eval_stand_in.py")} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv(module.PYTHON, str(program))
    return program


class Transformers:
    """The same figures without vLLM and without lm_eval."""

    def __init__(self, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False).input_ids

    @torch.inference_mode()
    def log_likelihood(self, context: str, continuation: str) -> float:
        ids, begin = self.ids(context + continuation), len(self.ids(context))
        logprobs = self.model(torch.tensor([ids])).logits[0].log_softmax(-1)
        return sum(float(logprobs[place - 1, ids[place]]) for place in range(begin, len(ids)))

    @torch.inference_mode()
    def most_likely(self, prompt: str, num_tokens: int) -> str:
        ids = torch.tensor([self.ids(prompt)])
        made = self.model.generate(ids, max_new_tokens=num_tokens, do_sample=False, attention_mask=ids * 0 + 1)
        return self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True).partition("|")[0]


@pytest.fixture(scope="module")
def rows(tiny_model: Path) -> list[dict[str, Any]]:
    """Of the 12, the model is right on 5 of the choices, and on 3 of the texts: one disagreement shows."""
    judge, made = Transformers(tiny_model), []
    for number in range(12):
        question, choices = f"{number} + 3 =", [f"{number + 3}", f"{number + 40}!", "seven"]
        sums = [judge.log_likelihood(question, f" {choice}") for choice in choices]
        best, text = sums.index(max(sums)), judge.most_likely(question, 6)
        answer = best if number < 5 else (best + 1) % 3
        word = text if number < 3 else f"not {text}"
        made.append({"question": question, "choices": choices, "answer": answer, "word": word, "sums": sums})
    return made


@pytest.fixture
def tasks(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    """A folder for --include_path."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "own_choice.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "said.yaml").write_text(SAID % data)
    (folder / "written.yaml").write_text(WRITTEN % data)
    return folder


ARGUMENTS = ("weights.dtype=float32", "rollout.kv_cache_gib=0.25", "rollout.engine_args={enforce_eager: true}")


def evaluated(model: str, out: Path, names: str, tasks: Path, *more: str) -> list[dict[str, Any]]:
    where = [] if model.startswith(str(out)) else ["--out", str(out)]
    asked = ["eval", model, *ARGUMENTS, *where, "--lm-eval", names, "--", f"--include_path={tasks}"]
    assert main([*asked, *more]) == 0
    return [json.loads(line) for line in (out / "lm_eval.jsonl").read_text().splitlines()]


# -- with vLLM's server


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_task_from_the_command_to_the_report(
    stand_in: Path, tiny_model: Path, tasks: Path, tmp_path: Path, made_up: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = made_up.write_run(tmp_path / "run")
    for step in (10, 20):
        checkpoint = run_dir / f"checkpoints/step_{step:06d}"
        shutil.copytree(tiny_model, checkpoint / "model")
        (checkpoint / "COMPLETE").touch()
    (line,) = evaluated(f"{run_dir}@10", run_dir, "own_choice", tasks)
    assert (line["task"], line["metric"], line["version"], line["samples"]) == ("own_choice", "acc", 10, 12)
    assert line["value"] == pytest.approx(5 / 12)
    assert line["stderr"] == pytest.approx((5 / 12 * 7 / 12 / 11) ** 0.5)
    said = capsys.readouterr().out
    assert re.search(r"^own_choice +acc +0\.4167 +0\.1486 +12 +0$", said, re.MULTILINE), said
    assert (run_dir / line["results"] / "server.log").exists()
    report = write_report(run_dir).read_text()
    assert "Held-out tasks" in report
    assert re.search(r"<td[^>]*>10</td><td>own_choice</td><td>acc</td><td[^>]*>0.4167</td><td[^>]*>0.1486</td>", report)
    left = [
        one.name() for one in psutil.Process().children(recursive=True) if "vllm" in " ".join(one.cmdline()).lower()
    ]
    assert not left


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(PACKAGE is None, reason="lm_eval is not installed, nor does ASYNCRL_LM_EVAL_PYTHON name its Python")
def test_the_package_itself_gives_what_transformers_gives(
    tiny_model: Path, tasks: Path, rows: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(module.PYTHON, str(PACKAGE))
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    found = evaluated(str(tiny_model), out, "own_choice,own_words", tasks, "--log_samples")
    by_task = {line["task"]: line for line in found}
    assert by_task["own_choice"]["value"] == pytest.approx(5 / 12)
    assert by_task["own_choice"]["stderr"] == pytest.approx((5 / 12 * 7 / 12 / 11) ** 0.5)
    assert by_task["own_words"]["metric"] == "exact_match"
    assert by_task["own_words"]["value"] == pytest.approx(3 / 12)
    (samples,) = (out / by_task["own_choice"]["results"]).glob("samples_own_choice_*.jsonl")
    for sample in map(json.loads, samples.read_text().splitlines()):
        sums = [float(first) for ((first, _),) in sample["resps"]]
        assert sums == pytest.approx(rows[sample["doc_id"]]["sums"], abs=1e-3)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_sigterm_ends_the_server_and_lm_eval(stand_in: Path, tiny_model: Path, tmp_path: Path) -> None:
    out, marker = tmp_path / "out", str(tmp_path)
    command = fresh("eval", str(tiny_model), *ARGUMENTS, "--out", str(out), "--lm-eval", "hangs")
    try:
        until(
            600, lambda: [path for path in out.glob("evaluations/*/lm_eval.log") if "pid" in path.read_text()], command
        )
        (log,) = out.glob("evaluations/*/lm_eval.log")
        pids = [command.pid, *(child.pid for child in psutil.Process(command.pid).children(recursive=True))]
        family = [psutil.Process(pid) for pid in pids]
        assert int(log.read_text().split()[1]) in pids
        assert any("vllm.entrypoints" in " ".join(one.cmdline()) for one in family)
        command.send_signal(signal.SIGTERM)
        said, _ = command.communicate(timeout=120)
        assert (command.returncode, said.splitlines()[-1]) == (143, "asyncrl: ended by SIGTERM")
        _, alive = psutil.wait_procs(family, timeout=60)
        assert not alive
    finally:
        if command.poll() is None:
            command.kill()
            command.wait(60)
    assert not list(out.glob("asyncrl.*")), marker


def until(deadline_s: float, condition: Any, command: Any) -> None:
    ends = time.monotonic() + deadline_s
    while not condition():
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < ends
        time.sleep(0.2)


# -- without it


def test_a_model_that_is_none(stand_in: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "runs/none", "--lm-eval", "hangs"]) == 2
    assert "model runs/none does not exist in " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--lm-eval", "nope"], "lm_eval has no task nope; `lm_eval ls tasks` lists them"),
        (["--lm-eval", "own_choice,nope", "--", "--include_path", "TASKS"], "lm_eval has no task nope; "),
        (["--lm-eval", "hangs", "--", "--limitt", "3"], "lm_eval has no option --limitt; did you mean --limit?"),
        (
            ["--lm-eval", "hangs", "--", "--model", "hf"],
            "--model behind -- is not for lm_eval: asyncrl says it, by the",
        ),
        (
            ["--lm-eval", "hangs", "--", "--tasks=a"],
            "--tasks behind -- is not for lm_eval: asyncrl says it, by --lm-eval",
        ),
        (["--lm-eval", "hangs", "--", "--use_cache", "a"], "--use_cache of lm_eval gives the answers of one model for"),
        (["--lm-eval", "a,,b"], "argument --lm-eval: 'a,,b' has a task without a name; see asyncrl eval --help"),
        (["--", "--limit", "3"], "what follows -- is for lm_eval; name its tasks with --lm-eval TASK[,TASK...]"),
        (["--lm-eval", "hangs", "rollout.engine_arg=1"], "did you mean"),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    stand_in: Path,
    tasks: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    there = sorted(tmp_path.rglob("*"))
    assert main(["eval", "random:tiny-llama", *(word.replace("TASKS", str(tasks)) for word in words)]) == 2
    assert said in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == there


RECIPE: Any = SimpleNamespace(model="random:tiny-llama")


def test_where_lm_eval_is_missing_it_is_said_how_to_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{sys.executable}: No module named lm_eval' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv(module.PYTHON, str(python))
    with pytest.raises(UserError, match=r"has no lm_eval; pip install 'asyncrl\[lm-eval\]', or name the Python"):
        module.check(RECIPE, ["hellaswag"], [])
    monkeypatch.setenv(module.PYTHON, str(tmp_path / "none"))
    with pytest.raises(UserError, match=f"{module.PYTHON}: there is no program"):
        module.check(RECIPE, ["hellaswag"], [])


class Models(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps({"data": [{"max_model_len": 512}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def asked_of(tmp_path: Path, url: str, task: str, server_command: list[str], silent_s: float) -> None:
    """lm_eval runs beside such a server."""
    log = tmp_path / "server.log"
    program = Program("server", server_command, {}, log)
    server = Server(url, "key", 512, program, log)
    command = [*module._lm_eval(), "run", f"--output_path={tmp_path / 'results.json'}", f"--tasks={task}"]
    try:
        module._run(command, server, tmp_path, silent_s)
    finally:
        program.end()


SLEEPS = ["sleep", "600"]


@pytest.mark.parametrize(
    ("task", "server", "silent_s", "error", "said"),
    [
        (
            "fails",
            SLEEPS,
            120,
            RunFailed,
            r"no scores: ConnectionError: Couldn't reach 'some/data' .*; see that the hub",
        ),
        ("refuses", SLEEPS, 120, UserError, "lm_eval refuses its command line"),
        ("hangs", SLEEPS, 3, DeadlineExceeded, r"lm_eval has said nothing for 3 s .*; its log is "),
        (
            "hangs",
            [sys.executable, "-c", "raise MemoryError('none left')"],
            120,
            RunFailed,
            "with MemoryError: none left",
        ),
    ],
)
def test_how_it_may_end(
    stand_in: Path,
    tmp_path: Path,
    served: Any,
    task: str,
    server: list[str],
    silent_s: float,
    error: type[Exception],
    said: str,
) -> None:
    with pytest.raises(error, match=said):
        asked_of(tmp_path, served(Models), task, server, silent_s)
    assert not [one for one in psutil.Process().children(recursive=True) if str(tmp_path) in " ".join(one.cmdline())]


def test_a_server_that_no_longer_answers_is_why_lm_eval_fails(stand_in: Path, tmp_path: Path) -> None:
    with pytest.raises(RunFailed, match="vLLM's server ended too early, with the server process died"):
        asked_of(tmp_path, "http://127.0.0.1:9/v1", "fails", SLEEPS, 120.0)


def test_a_program_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """It may tidy up, as may what it started; who does not end is killed."""
    slow = "import signal, time; signal.signal(signal.SIGTERM, lambda *_: None)\nwhile True: time.sleep(1)"
    last = "trap 'sleep 1; echo tidied > last; exit' USR1; touch ready; while :; do sleep 0.1; done"
    (tmp_path / "last.sh").write_text(last)
    tidy = f"cd {tmp_path}; trap 'kill -USR1 $below; exit 0' TERM; sh last.sh & below=$!; sleep 600 &"
    tidy += " while [ ! -e ready ]; do sleep 0.1; done; echo up; wait"
    before = psutil.Process().children(recursive=True)
    program = Program("shell", ["sh", "-c", tidy], {"SOME": "thing"}, tmp_path / "log")
    until_written(tmp_path / "log", "up")
    family = [one for one in psutil.Process().children(recursive=True) if one not in before]
    assert {one.environ()["SOME"] for one in family if one.name() == "sh"} == {"thing"}
    assert program.end() == program.end() == (0, "the shell process died (exit code 0)")
    assert (tmp_path / "last").read_text() == "tidied\n", "what it started had time, too"
    assert not psutil.wait_procs(family, timeout=60)[1]
    deaf = Program("python", [sys.executable, "-c", f"print('up', flush=True)\n{slow}"], {}, tmp_path / "deaf")
    until_written(tmp_path / "deaf", "up")
    assert deaf.end() == (None, "the python process was killed (SIGKILL; out of memory?)")
    done = Program("shell", ["sh", "-c", "exit 3"], {}, tmp_path / "log")
    ends = time.monotonic() + 120
    while not done.ended:
        assert time.monotonic() < ends
        time.sleep(0.05)
    assert done.end() == (3, "the shell process died (exit code 3)")


def until_written(log: Path, text: str) -> None:
    ends = time.monotonic() + 120
    while not (log.exists() and text in log.read_text()):
        assert time.monotonic() < ends
        time.sleep(0.05)


def test_why_a_server_does_not_start(tmp_path: Path) -> None:
    config = EngineConfig("x", "float32", "none", 512, "keep", "0", 0.25, 0)

    def said(code: int | None, words: str) -> Exception:
        return vllm_server._refusal(code, "the server process died", words, config, tmp_path)

    refused = said(2, "usage: api [-h]\napi: error: argument --block-size: invalid choice:\n  7\n")
    assert isinstance(refused, UserError)
    assert str(refused) == "vLLM refuses the model or rollout.engine_args: argument --block-size: invalid choice: 7"
    failed = said(1, "Traceback\nValueError: not enough memory for the cache\n")
    assert isinstance(failed, RunFailed)
    assert "with ValueError: not enough memory for the cache; lower rollout.kv_cache_gib" in str(failed)
    assert str(said(None, "")).startswith("vLLM's server ended as it started, the server process died; its log is ")


def test_options_as_vllm_serve_takes_them() -> None:
    assert _option("max_num_seqs", 4) == ["--max-num-seqs=4"]
    assert _option("enforce_eager", True) == ["--enforce-eager"]
    assert _option("enable_chunked_prefill", False) == ["--no-enable-chunked-prefill"]
    assert _option("hf_overrides", {"a": 1}) == ['--hf-overrides={"a": 1}']
    assert _option("middleware", ["a", "b"]) == ["--middleware", "a", "b"]
    assert _option("distributed_executor_backend", int) == _option("revision", None) == []


def test_a_tokenizer_that_begins_with_a_token_of_its_own_does_so_here(tiny_model: Path, tmp_path: Path) -> None:
    from tokenizers.processors import TemplateProcessing

    assert not module._adds_bos(str(tiny_model), [])
    tokenizer = load_tokenizer(str(tiny_model))
    special = [("<s>", tokenizer.bos_token_id)]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=special)
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((tiny_model / "config.json").read_text())
    assert module._adds_bos(str(tmp_path), ["--limit=3"])
    assert not module._adds_bos(str(tmp_path), ["--apply_chat_template"]), "the template writes it"
    config = EngineConfig(str(tmp_path), "float32", "none", 512, "keep", "0", 0.25, 0)
    server: Any = SimpleNamespace(url="http://127.0.0.1:1/v1", max_tokens=512)
    (said,) = [word for word in module._command(server, config, "tiny", True, tmp_path, 5.0) if "model_args" in word]
    assert json.loads(said.partition("=")[2])["add_bos_token"] is True


RESULTS = {
    "results": {
        "mmlu": {"alias": "mmlu", "acc,none": 0.25, "acc_stderr,none": 0.01},
        "gsm8k": {
            "alias": "gsm8k",
            "sample_len": 20,
            "exact_match,strict-match": 0.5,
            "exact_match_stderr,strict-match": 0.1,
            "exact_match,flexible-extract": 0.6,
            "exact_match_stderr,flexible-extract": "N/A",
        },
    },
    "n-shot": {"gsm8k": 5},
    "n-samples": {"gsm8k": {"original": 1319, "effective": 20}},
    "higher_is_better": {"gsm8k": {"exact_match": True}},
    "versions": {"gsm8k": 3.0},
}


def test_lines_of_a_results_file() -> None:
    """As lm_eval 0.4.13 writes it: filters, groups, what has no standard error."""
    group, strict, flexible = lines_of(RESULTS)
    assert (group["task"], group["value"], group["samples"], group["shots"]) == ("mmlu", 0.25, None, None)
    assert (strict["filter"], strict["value"], strict["stderr"], strict["shots"]) == ("strict-match", 0.5, 0.1, 5)
    assert (flexible["filter"], flexible["stderr"], flexible["higher_is_better"]) == ("flexible-extract", None, True)
    assert cells(strict) == ["gsm8k", "exact_match (strict-match)", "0.5000", "0.1000", "20 of 1319", "5"]
    assert cells(group) == ["mmlu", "acc", "0.2500", "0.0100", "-", "-"]
    anew = {**strict, "value": 0.4}
    assert newest([group, strict, flexible, anew]) == [group, flexible, anew]


@pytest.mark.parametrize("results", [None, {"results": {}}, {"results": {"own": {"alias": "own", "bypass,none": "x"}}}])
def test_results_without_a_figure_are_no_scores(tmp_path: Path, results: Any) -> None:
    if results is not None:
        (tmp_path / "results_2026.json").write_text(json.dumps(results))
    with pytest.raises(RunFailed, match="lm_eval gave no figure; see "):
        module._kept(tmp_path, 0, "model", tmp_path)
    assert not (tmp_path / "lm_eval.jsonl").exists()
