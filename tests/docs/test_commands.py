"""Every command in README and docs is run by a test: by scripts/new_user as it stands, if that says so; here, if it
takes no Ray; else by the one that the table names.

`asyncrl train` is run with `--dry-run` here: the whole runs are those of scripts/new_user. Files that a page shows with
their name in the first line are there when its commands run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.recipe.catalogue import copy

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {
    "./scripts/quickstart": "run by hand before a release: five minutes",
    "./scripts/test": "CI",
    "./scripts/setup": "CI",
    "scripts/chaos": "run by hand before a release: hours",
    "pip install": "tests/test_packaging.py, without its GPU packages",
    "export RAY_AUTH_MODE": "scripts/new_user",
    "ray start": "scripts/new_user, at other ports",
    "asyncrl sweep": "tests/test_sweep.py, with stand-ins for the runs",
    "asyncrl watch runs": "tests/report/test_watch_many.py",
    "asyncrl submit recipes/tiny.yaml run_dir=/shared/runs/tiny --address": "scripts/new_user, at other ports",
    "asyncrl attach": "scripts/new_user, at other ports",
    "asyncrl stop": "scripts/new_user, at other ports",
    "asyncrl resume s3://": "tests/storage/test_mirror.py, with file://",
    "asyncrl replay RUN_DIR": "scripts/new_user, under the name that README gives the run",
    "sbatch": "tests/cluster/test_slurm.py runs the script without it",
    "kubectl apply": "tests/cluster/test_kuberay.py checks the manifest without it",
    "python -m venv verifiers": "by hand; tests/envs/test_verifiers.py takes the Python that it makes",
    "asyncrl eval runs/arithmetic": "scripts/new_user, with a recipe that has an evaluation",
    "asyncrl eval runs/arithmetic-20260101-120000@20": "tests/orchestrator/test_lm_eval.py, with own tasks",
    "asyncrl export runs/": "tests/ship; the newest checkpoint also by scripts/new_user",
    "vllm serve": "by hand",
    "hf upload": "nowhere: it needs a hub",
    "docker build": "nowhere: it needs a registry of images",
}

USER, ANSWER = '{"role": "user", "content": "What is 2 + 3?"}', '{"role": "assistant", "content": "5"}'


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                if command := line.partition(" #")[0].strip():
                    yield page, command


ALL = list(commands())
NEW_USER = (ROOT / "scripts/new_user").read_text().replace("$run", "runs/arithmetic-20260101-120000")
BY_NEW_USER = set(re.findall(r'^(?:documented|on_page) \S+ "(.*?)"', NEW_USER, re.MULTILINE))
"""What scripts/new_user runs with a model, as it stands (it fails if the page does not have it)."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the repository's recipes and a model, as the quickstart leaves it, and a trained one."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    for name in ("models/smollm2-135m-instruct", "runs/arithmetic/checkpoints/step_000020/model"):
        model = tmp_path / name
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "chat_template.jinja").write_text("{{ messages }}")
    (tmp_path / "tasks.jsonl").write_text('{"prompt": "What is 2 + 3?", "answer": "5"}\n')
    (tmp_path / "sums.jsonl").write_text('{"question": "What is 2 + 3?", "answer": "5"}\n')
    (tmp_path / "talks.jsonl").write_text(f'{{"messages": [{USER}, {ANSWER}]}}\n')
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "What is 2 + 3?", "chosen": "5", "rejected": "23"}\n')
    for page in ("from_trl.md", "from_verl.md"):
        write_files(ROOT / "docs" / page, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_files(page: Path, project: Path) -> None:
    for language in ("python", "yaml"):
        for block in blocks(page, language):
            if named := re.match(r"# (\w+\.(?:py|yaml))\b", block):
                (project / named[1]).write_text(block)


@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page.stem}: {command[:60]}" for page, command in ALL])
def test_a_command_of_the_docs(
    page: Path, command: str, project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if command in BY_NEW_USER or any(command.startswith(known) for known in ELSEWHERE):
        return
    words = shlex.split(command.partition(" > ")[0])
    assert words[0] == "asyncrl", f"no test runs this command: {command}"
    write_files(page, project)
    if words[:3] == ["asyncrl", "train", "sums.yaml"]:  # after `asyncrl new sums`
        assert main(["new", "sums", "--data", "sums.jsonl"]) == 0
    if command == "asyncrl train tiny.yaml":  # after `asyncrl recipes copy tiny`
        copy("tiny", project)
    if words[1] in ("train", "sft") and "--dry-run" not in words:
        words.append("--dry-run")
    assert main(words[1:]) == 0, capsys.readouterr().err
    assert capsys.readouterr().out


def test_every_entry_of_the_table_is_of_use() -> None:
    for known in ELSEWHERE:
        assert any(command.startswith(known) for _, command in ALL), known
    assert {command for _, command in ALL} >= BY_NEW_USER
    # All that is said of a run is said of a real one.
    looks = {words[1] for words in (command.split() for command in BY_NEW_USER) if "runs/" in " ".join(words)}
    assert looks >= {"inspect", "replay", "report", "resume", "watch"}


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_files_that_are_linked_are_there(page: Path) -> None:
    """mkdocs checks the links among pages; these are README's, and paths of the repository in the text."""
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", text):
        assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"
    for path in re.findall(r"`((?:asyncrl|tests|scripts|recipes|docs)/[\w./]+)`", text):
        assert (ROOT / path).exists(), f"{page.name} names {path}, which is not there"


@pytest.mark.parametrize("page", PAGES, ids=[page.stem for page in PAGES])
def test_python_of_the_docs_compiles(page: Path) -> None:
    for block in blocks(page, "python"):
        compile(block, page.name, "exec")
