"""A sweep: every combination once, in a folder of its own. What it starts is a stand-in here, which writes what a run
writes; real ones are `asyncrl train`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from asyncrl.cli import main, sweeping
from asyncrl.cli.arguments import parse
from asyncrl.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
STAND_IN = """
import json, pathlib, sys, time
keys = dict(word.split("=", 1) for word in sys.argv[3:] if "=" in word)
run_dir = pathlib.Path(keys["run_dir"])
run_dir.mkdir(parents=True, exist_ok=True)
began = run_dir / "began"
began.write_text(began.read_text() + "x" if began.exists() else "x")
time.sleep(float(keys.get("seed", 0)))
if keys["trainer.learning_rate"] == "0.1":
    sys.exit("it diverged")
(run_dir / "recipe.yaml").write_text(json.dumps({"seed": keys.get("seed"), "trainer": keys["trainer.learning_rate"]}))
(run_dir / "metrics.jsonl").write_text(json.dumps({"step": 0, "reward/mean": 0.5, "time_s": 1.0}) + "\\n")
score = {"name": "held", "version": 1, "accuracy": 0.75}
(run_dir / "evaluations.jsonl").write_text(json.dumps(score) + "\\n")
(run_dir / "summary.json").write_text("{}")
"""


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "stand_in.py").write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    return [sys.executable, str(tmp_path / "stand_in.py")]


def test_lists_are_swept_and_the_rest_is_for_all() -> None:
    found, fixed = sweeping.points(["a.b=[1e-6, 3.0e-6]", "c=[x,[y,z]]", "d=5"])
    assert [point.overrides for point in found] == [
        ["a.b=1e-6", "c=x"],
        ["a.b=1e-6", "c=[y, z]"],
        ["a.b=3.0e-06", "c=x"],
        ["a.b=3.0e-06", "c=[y, z]"],
    ]
    assert fixed == ["d=5"]
    assert [point.name for point in found][1] == "b=1e-6,c=_y,_z_"


def test_every_combination_runs_in_a_folder_of_its_own(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sweep", "recipes/tiny.yaml", "trainer.learning_rate=[0.01,0.1]", "max_steps=[3,4]", "--out", "out"]
    assert sweeping.sweep(parse(words), command) == 1, "two of them fail"
    said = capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if path.is_dir()) == [
        f"learning_rate={rate},max_steps={steps}" for rate in ("0.01", "0.1") for steps in (3, 4)
    ]
    assert said.count("FAILED, exit code 1") == 2
    assert "it diverged" in (tmp_path / "out/learning_rate=0.1,max_steps=3.log").read_text()
    assert "0.01           3          1             0.500   75.0 %    learning_rate=0.01,max_steps=3" in said
    assert (tmp_path / "out/compare.html").exists()
    assert sweeping.sweep(parse(words), command) == 1
    assert capsys.readouterr().out.count("done before") == 2
    assert (tmp_path / "out/learning_rate=0.01,max_steps=3/began").read_text() == "x"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["max_steps=3"], "no key has a list of values"),
        (["max_steps=[]"], "has no values"),
        (["max_steps=[1"], "is no list"),
        (["max_steps=[1,2]", "run_dir=x"], "every run has a folder of its own"),
        (["max_steps=[1,many]"], "max_steps must be a whole number"),
        (["max_steps=[1,1]"], "two combinations would have the same folder"),
    ],
)
def test_nothing_starts_unless_all_can(words: list[str], said: str, command: list[str], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        sweeping.sweep(parse(["sweep", "recipes/tiny.yaml", *words, "--out", "out"]), command)
    assert not (tmp_path / "out").exists()


def test_sigterm_ends_the_runs_too(command: list[str], tmp_path: Path) -> None:
    script = "import sys; from asyncrl.cli import sweeping, main; sweeping.sweep.__defaults__ = (sys.argv[1:3],);"
    script += "from asyncrl.cli import commands; sys.exit(main(sys.argv[3:]))"
    words = [
        "sweep",
        "recipes/tiny.yaml",
        "trainer.learning_rate=[0.01,0.02]",
        "seed=60",
        "--out",
        "out",
        "--jobs",
        "2",
    ]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *command, *words], env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    try:
        until = time.monotonic() + 60
        while len(list((tmp_path / "out").glob("*/began"))) < 2:
            assert time.monotonic() < until
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    finally:
        process.kill()
    assert not list((tmp_path / "out").glob("*/summary.json"))


def test_recipes_that_differ_are_shown(tmp_path: Path) -> None:
    for name, rate in (("a", 0.1), ("b", 0.2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(json.dumps({"seed": 1, "trainer": {"learning_rate": rate}}))
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps({"step": 0, "reward/mean": 0.5}) + "\n")
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "What the recipes say otherwise" in page
    assert "trainer.learning_rate" in page
    assert ">seed<" not in page
