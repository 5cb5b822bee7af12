"""What travels with a submitted run."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path

import pytest

from asyncrl.cluster import bundle
from asyncrl.errors import UserError
from asyncrl.recipe.load import load

RECIPE = """
model: random:tiny-llama
data: {path: tasks.jsonl}
reward: ./my_reward.py:reward
max_steps: 1
run_dir: /shared/run
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "mine.yaml").write_text(RECIPE)
    (folder / "tasks.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (folder / "my_reward.py").write_text("import helper\n")
    (folder / "helper.py").write_text("")
    (folder / "runs").mkdir()
    (folder / "runs/old.bin").write_text("old")
    (folder / ".hidden").write_text("secret")
    (folder / "venv").mkdir()
    (folder / "venv/pyvenv.cfg").write_text("")
    monkeypatch.chdir(folder)
    return folder


def names(folder: Path) -> set[str]:
    return {str(path) for path in bundle.shippable(folder)}


def test_without_git_all_but_hidden_and_generated_files(project: Path) -> None:
    assert names(project) == {"mine.yaml", "tasks.jsonl", "my_reward.py", "helper.py"}


def test_with_git_what_git_does_not_ignore(project: Path) -> None:
    subprocess.run(["git", "init", "-q"], check=True, timeout=30)
    (project / ".gitignore").write_text("tasks.jsonl\nvenv\nruns\n.hidden\n")
    assert names(project) == {"mine.yaml", "my_reward.py", "helper.py", ".gitignore"}
    with pytest.raises(UserError, match=r"data.path tasks.jsonl does not travel with the run: git ignores it"):
        bundle.check_reachable(load(project / "mine.yaml"), bundle.shippable(project))


def test_the_staged_folder_has_the_files_the_recipe_and_asyncrl(project: Path, tmp_path: Path) -> None:
    recipe, staged = load(project / "mine.yaml"), tmp_path / "staged"
    staged.mkdir()
    shipped = bundle.shippable(project)
    bundle.check_reachable(recipe, shipped)
    bundle.stage(recipe, project, shipped, staged)
    with contextlib.chdir(staged):  # as the job does
        assert load(Path(bundle.RECIPE_FILE)) == recipe
    assert (staged / "helper.py").exists()
    assert (staged / "asyncrl/cli/commands.py").exists()
    assert not (staged / ".hidden").exists()


def test_too_much_names_the_largest(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundle, "MOST_BYTES", 2**20)
    (project / "weights.bin").write_bytes(bytes(2 * 2**20))
    with pytest.raises(UserError, match=r"have 2 MB, and 1 MB can travel .* the largest is weights.bin \(2 MB\)"):
        bundle.shippable(project)


@pytest.mark.parametrize("run_dir", [None, "runs/x"])
def test_a_run_directory_that_would_go_away(project: Path, run_dir: str | None) -> None:
    recipe = load(project / "mine.yaml").model_copy(update={"run_dir": run_dir})
    with pytest.raises(UserError, match=r"goes away with it; set run_dir=/a/path"):
        bundle.check_run_dir(recipe)
