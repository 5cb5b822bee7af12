import os
import re
import shutil
import signal
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from asyncrl.cli import main
from asyncrl.errors import DeadlineExceeded, UserError
from asyncrl.recipe.load import load

REPOSITORY = Path(__file__).parents[1]
RECIPES = ("arithmetic", "tiny", "gsm8k-qwen")
MAX_CPU_S = 1.5
"""Of a dry run; one data set of reasoning_gym is imported without matplotlib and sympy, which the others need."""
HELP_CPU_S = 0.3
# Runs the command line as the entry point does, then tells what it loaded and what it cost.
PROBE = """
import sys, time
from asyncrl.cli import main
try:
    code = main(sys.argv[1:])
except SystemExit as exit:
    code = exit.code
heavy = [name for name in ("torch", "ray", "vllm") if name in sys.modules]
print(f"code={code or 0} heavy={heavy} cpu_s={time.process_time():.3f}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the shipped recipes, a stand-in for SmolLM2, reward files and an old run."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(REPOSITORY / "recipes", tmp_path / "recipes", ignore=shutil.ignore_patterns("__pycache__"))
    model = tmp_path / "models/smollm2-135m-instruct"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "runs/old").mkdir(parents=True)
    (tmp_path / "runs/old/recipe.yaml").write_text("model: x\n")
    (tmp_path / "runs/old/checkpoints/step_000002").mkdir(parents=True)
    return tmp_path


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = [p for p in folder.rglob("*")]
    return {str(p): (p.stat().st_mtime_ns, p.read_bytes() if p.is_file() else b"") for p in files}


def probe(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize("name", RECIPES)
def test_dry_run_prints_recipe_slots_and_bound_at_once_without_torch_ray_or_vllm(folder: Path, name: str) -> None:
    (folder / "models/smollm2-135m-instruct/chat_template.jinja").write_text("{{ messages }}")
    before = snapshot(folder)
    done = probe("train", f"recipes/{name}.yaml", "--dry-run", "max_staleness=3")
    assert done.stderr == ""
    *lines, ok, cost = done.stdout.splitlines()
    assert ok == "ok"
    assert cost.startswith("code=0 heavy=[] ")
    assert float(cost.rpartition("=")[2]) < MAX_CPU_S
    end_of_recipe = lines.index("")
    (folder / "resolved.yaml").write_text("\n".join(lines[:end_of_recipe]))
    recipe = load(Path("resolved.yaml"))
    assert recipe == load(Path(f"recipes/{name}.yaml"), ["max_staleness=3"])
    slots, staleness, episodes = lines[end_of_recipe + 1 : end_of_recipe + 4]
    assert slots.split()[:2] == ["slots", str(4 * recipe.groups_per_step)]
    assert "older than 3 update" in staleness
    assert f"up to {4 * recipe.groups_per_step * recipe.group_size} rollouts" in episodes
    (folder / "resolved.yaml").unlink()
    assert snapshot(folder).keys() == before.keys()


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"], []])
def test_help_is_instant(folder: Path, arguments: list[str]) -> None:
    done = probe(*arguments)
    *lines, cost = done.stdout.splitlines()
    assert lines[0].startswith(("usage: asyncrl", "asyncrl 0."))
    for page in re.findall(r"docs/\w+\.md", lines[-1]):
        assert (REPOSITORY / page).is_file()
    assert ("docs/reference.md" in lines[-1]) == (arguments in (["--help"], []))
    assert cost.startswith("code=0 heavy=[] ")
    assert float(cost.rpartition("=")[2]) < HELP_CPU_S


def test_the_installed_command_has_no_traceback(folder: Path) -> None:
    command = Path(sys.executable).with_name("asyncrl")
    done = subprocess.run([command, "train", "none.yaml"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "asyncrl: none.yaml does not exist\n")


@pytest.mark.parametrize("arguments", [["--version"], ["train", "recipes/tiny.yaml", "--dry-run"]])
def test_output_that_nobody_reads_any_more_is_no_fault(folder: Path, arguments: list[str]) -> None:
    """`asyncrl … | head`."""
    reads, writes = os.pipe()
    os.close(reads)
    command = [sys.executable, "-m", "asyncrl", *arguments]
    done = subprocess.run(command, stdout=writes, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    os.close(writes)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """Stand-ins for what the commands hand over to; `outcome` is returned, or raised if it is an error."""
    seen = types.SimpleNamespace(calls=[], outcome=0)

    def call(*arguments: Any) -> Any:
        seen.calls.append(arguments)
        if isinstance(seen.outcome, BaseException):
            raise seen.outcome
        return seen.outcome

    for name, functions in {
        "asyncrl.orchestrator.run": ("train", "resume"),
        "asyncrl.report.report": ("write_report",),
        "asyncrl.observe.doctor": ("doctor",),
    }.items():
        module = types.ModuleType(name)
        for function in functions:
            setattr(module, function, call)
        monkeypatch.setitem(sys.modules, name, module)
    return seen


def test_train_hands_over_the_checked_recipe(folder: Path, runtime: types.SimpleNamespace) -> None:
    assert main(["train", "recipes/tiny.yaml", "max_steps=4"]) == 0
    assert runtime.calls == [(load(Path("recipes/tiny.yaml"), ["max_steps=4"]), "tiny", folder)]


def test_resume_hands_over_a_run_with_a_complete_checkpoint(folder: Path, runtime: types.SimpleNamespace) -> None:
    (folder / "runs/old/checkpoints/step_000002/COMPLETE").touch()
    shutil.copy("recipes/tiny.yaml", "runs/old/recipe.yaml")
    assert main(["resume", "runs/old", "max_steps=9"]) == 0
    stored = Path("runs/old/recipe.yaml")
    assert runtime.calls == [(Path("runs/old"), load(stored, ["max_steps=9"]), load(stored), [])]


def test_report_prints_its_path(
    folder: Path, runtime: types.SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    runtime.outcome = Path("runs/old/report.html")
    assert main(["report", "runs/old"]) == 0
    assert capsys.readouterr().out == "runs/old/report.html\n"
    assert runtime.calls == [(Path("runs/old"), None)]


def test_doctor_gives_the_exit_code(runtime: types.SimpleNamespace) -> None:
    runtime.outcome = 1
    assert main(["doctor"]) == 1


@pytest.mark.parametrize("takes", [True, False])
def test_doctor_of_a_recipe_tries_its_models_attention(
    takes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not takes:
        monkeypatch.setattr("asyncrl.trainer.fit._misfit", lambda *_: "its attention has sinks")
    monkeypatch.setenv("COLUMNS", "500")
    main(["doctor", "recipes/tiny.yaml"])
    words = " ".join(capsys.readouterr().out.split())
    assert ("ok attention random:tiny-llama takes prefix trees" in words) == takes
    assert ("warn attention random:tiny-llama is trained" in words) == (not takes)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (UserError("the data\n set has no rows"), 2, "the data set has no rows"),
        (RayTaskError("f", "long traceback", UserError("no model")).as_instanceof_cause(), 2, "no model"),
        (DeadlineExceeded("waited for trainer"), 1, "waited for trainer"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_of_a_run_become_one_line_and_an_exit_code(
    folder: Path,
    runtime: types.SimpleNamespace,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    message: str,
) -> None:
    runtime.outcome = error
    assert main(["train", "recipes/tiny.yaml"]) == code
    assert capsys.readouterr().err == f"asyncrl: {message}\n"


def test_sigterm_is_told_and_cleans_up(
    folder: Path, runtime: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before, left = signal.getsignal(signal.SIGTERM), []

    def train(*_: Any) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt what the first has begun
            left.append("cleaned up")

    monkeypatch.setattr(sys.modules["asyncrl.orchestrator.run"], "train", train)
    assert main(["train", "recipes/tiny.yaml"]) == 143
    assert (capsys.readouterr().err, left) == ("asyncrl: ended by SIGTERM\n", ["cleaned up"])
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_bug_keeps_its_traceback(folder: Path, runtime: types.SimpleNamespace) -> None:
    runtime.outcome = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(["train", "recipes/tiny.yaml"])


def test_libraries_are_silenced_unless_the_environment_says_otherwise(
    folder: Path, runtime: types.SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)
    main(["doctor"])
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] == "1"


def test_dry_run_shows_the_first_prompt_as_the_model_will_see_it(
    folder: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "two\\nplus"}], "answer": ""}\n')
    arguments = ["train", "recipes/tiny.yaml", "--dry-run", "data.path=rows.jsonl", "data.options={}"]
    for model in ("random:tiny-llama", str(tiny_model)):
        assert main([*arguments, f"model={model}"]) == 0
        *_, first, user, rest, begun, ok = capsys.readouterr().out.splitlines()
        last = r"\d+ 'a', \d+ 'n', \d+ 't', \d+ '>'"
        assert re.fullmatch(f"prompt     26 tokens, the last are {last}; rows.jsonl line 1, column 'prompt'", first)
        assert [user, rest, begun, ok] == ["  | <user>two", "  | plus", "  | <assistant>", "ok"]


def test_dry_run_says_what_it_cannot_show(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipes/gsm8k-qwen.yaml", "--dry-run"]) == 0
    assert "prompt     of openai/gsm8k: read and shown when the run starts" in capsys.readouterr().out
    (folder / "models/smollm2-135m-instruct/chat_template.jinja").write_text("{{ messages }}")
    assert main(["train", "recipes/arithmetic.yaml", "--dry-run"]) == 0
    assert "models/smollm2-135m-instruct has no tokenizer.json here: shown when" in capsys.readouterr().out


def test_a_step_of_a_run_is_no_run_directory_and_no_model_but_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = Path("runs/a/checkpoints/step_000020/model")
    model.mkdir(parents=True)
    (tmp_path / "runs/a/recipe.yaml").touch()
    assert main(["resume", "runs/a@20"]) == 2
    said = capsys.readouterr().err
    new = f"a new run from that checkpoint is `asyncrl train RECIPE model={model}`"
    assert f"runs/a@20 is not a run directory: it does not exist; {new}" in " ".join(said.split())
    recipe = Path(__file__).parents[1] / "recipes/tiny.yaml"
    assert main(["train", str(recipe), "model=runs/a@20", "--dry-run"]) == 2
    assert f"the model of that checkpoint is {model}" in " ".join(capsys.readouterr().err.split())
