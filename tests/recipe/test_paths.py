"""A recipe names files beside it, or in the working directory; its run directory knows them from anywhere."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.recipe.load import load
from asyncrl.recipe.paths import anchored
from asyncrl.recipe.schema import Recipe

RECIPE = """
model: models/mine
data: {path: rows.jsonl}
reward: ./mine.py:reward
max_steps: 1
algorithm: {loss: "./mine.py:loss"}
track: {also: [mlflow, "./mine.py:Tracker"]}
"""
REWARD = "def reward(completion, answer, **row):\n    return 1.0\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory beside a project with a recipe and all that it names."""
    project = tmp_path / "project"
    (project / "models/mine").mkdir(parents=True)
    (project / "rows.jsonl").write_text('{"prompt": "a", "answer": "b"}\n')
    (project / "mine.py").write_text(REWARD)
    (project / "r.yaml").write_text(RECIPE)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


def named(recipe: Recipe) -> list[str]:
    return [recipe.model, recipe.data.path, recipe.reward, recipe.algorithm.loss, recipe.track.also[1]]


BESIDE = [
    f"../project/{name}" for name in ("models/mine", "rows.jsonl", "mine.py:reward", "mine.py:loss", "mine.py:Tracker")
]


@pytest.mark.parametrize("absolute", [False, True])
def test_from_any_folder(home: Path, absolute: bool, caplog: pytest.LogCaptureFixture) -> None:
    path = home.parent / "project/r.yaml" if absolute else Path("../project/r.yaml")
    assert named(load(path)) == BESIDE
    assert not caplog.records


def test_a_path_of_the_command_line_goes_from_the_working_directory(home: Path) -> None:
    Path("mine.py").write_text(REWARD)
    recipe = load(Path("../project/r.yaml"), ["reward=./mine.py:reward", "data.path=other.jsonl"])
    assert (recipe.reward, recipe.data.path) == ("./mine.py:reward", "other.jsonl")


def test_a_virtual_environment_is_a_path_and_its_python_no_other(home: Path) -> None:
    """Not the Python that it links to."""
    python = home.parent / "project/venv/bin/python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/usr/bin/env")
    recipe = home.parent / "project/v.yaml"
    for said, meant in {"venv/bin/python": "../project/venv/bin/python", "python3": "python3"}.items():
        options = f"{{path: 'verifiers:v', options: {{python: {said}}}}}"
        recipe.write_text(f"model: m\nreward: null\nenv: verifiers:v\nmax_steps: 1\ndata: {options}\n")
        assert load(recipe).data.options == {"python": meant}
        absolute = str(python) if "/" in said else said
        assert anchored(load(recipe), Path.cwd()).data.options == {"python": absolute}


def test_a_base_in_another_folder_has_files_of_its_own(home: Path) -> None:
    Path("own.yaml").write_text("base: ../project/r.yaml\ndata: {path: own.jsonl}\n")
    assert named(load(Path("own.yaml"))) == [BESIDE[0], "own.jsonl", *BESIDE[2:]]


def test_what_is_not_beside_the_recipe_may_be_in_the_working_directory(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    project = home.parent / "project"
    (project / "models").rename("models")
    (project / "mine.py").rename("mine.py")
    assert named(load(Path("../project/r.yaml"))) == [
        "models/mine", BESIDE[1], "./mine.py:reward", "./mine.py:loss", "./mine.py:Tracker",
    ]  # fmt: skip
    assert not caplog.records


def test_of_two_the_one_beside_the_recipe_is_taken_and_that_is_said(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Path("rows.jsonl").touch()
    assert named(load(Path("../project/r.yaml"))) == BESIDE
    assert [record.message for record in caplog.records] == [
        "../project/r.yaml: data.path rows.jsonl is the one beside the recipe, not the one in the working directory"
    ]


def test_names_of_things_elsewhere_stay_names(home: Path) -> None:
    hub = RECIPE.replace("models/mine", "a/model").replace("rows.jsonl", "a/data").replace("./mine.py:", "a.module:")
    (home.parent / "project/hub.yaml").write_text(hub)
    assert named(load(Path("../project/hub.yaml"))) == [
        "a/model",
        "a/data",
        *(f"a.module:{n}" for n in ("reward", "loss", "Tracker")),
    ]
    (home.parent / "project/gym.yaml").write_text(
        "base: r.yaml\nmodel: random:tiny-llama\ndata: {path: 'reasoning_gym:x'}\n"
    )
    gym = load(Path("../project/gym.yaml"))
    assert (gym.model, gym.data.path) == ("random:tiny-llama", "reasoning_gym:x")
    assert anchored(gym, home).model_dump() | {"reward": "", "algorithm": "", "track": ""} == gym.model_dump() | {
        "reward": "", "algorithm": "", "track": "",
    }  # fmt: skip


def test_what_is_nowhere_is_looked_for_beside_the_recipe(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home.parent / "project/rows.jsonl").rename(home.parent / "project/row.jsonl")
    assert main(["train", "../project/r.yaml", "model=a/b", "--dry-run"]) == 2
    assert (
        "data.path ../project/rows.jsonl does not exist; did you mean ../project/row.jsonl?" in capsys.readouterr().err
    )


def test_a_run_directory_has_absolute_paths(home: Path) -> None:
    there = str(home.parent / "project")
    settled = anchored(load(Path("../project/r.yaml")), home)
    assert named(settled) == [os.path.join(there, name.removeprefix("../project/")) for name in BESIDE]
    assert anchored(settled, Path("/")) == settled


def test_the_name_that_a_server_has_for_a_teacher_is_no_path(home: Path) -> None:
    """Even where a folder has that name; its tokenizer's folder is one."""
    teacher = "{model: models/mine, url: 'http://host:8000', tokenizer: models/mine}"
    project = home.parent / "project"
    (project / "taught.yaml").write_text(RECIPE.replace("algorithm: {", f"algorithm: {{teacher: {teacher}, "))
    recipe = load(Path("../project/taught.yaml"))
    for one, tokenizer in ((recipe, "../project/models/mine"), (anchored(recipe, home), str(project / "models/mine"))):
        [found] = one.algorithm.teacher
        assert (found.model, found.tokenizer) == ("models/mine", tokenizer)
