"""`asyncrl new`: what it makes of rows and machines passes a dry run, and nothing is written over or left behind."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from asyncrl import local_gpus
from asyncrl.cli import main
from asyncrl.data.files import FileRows
from asyncrl.drafts import code, machine, new, rows
from asyncrl.errors import UserError
from asyncrl.planner.models import PUBLISHED
from asyncrl.recipe.load import load
from asyncrl.rewards.load import load as load_reward
from asyncrl.rewards.score import RewardRequest

TINY = "random:tiny-llama"
USER, ANSWER = {"role": "user", "content": "2 + 3?"}, {"role": "assistant", "content": "5"}
MATH = "asyncrl.rewards.math:"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder on a machine without GPUs."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local_gpus, "_QUERY", ("no-nvidia-smi-here",))
    return tmp_path


def table(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def with_gpus(folder: Path, monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A stand-in for nvidia-smi that lists these."""
    program = folder / "bin/nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(local_gpus, "_QUERY", (str(program),))


@pytest.mark.parametrize(
    ("row", "prompt", "answer", "judge", "demonstrated"),
    [
        ({"prompt": "a", "answer": "5"}, "prompt", "answer", f"{MATH}last_number", None),
        ({"question": "a", "answer": "so it is 5\n#### 5"}, "question", "answer", f"{MATH}math_verify", None),
        ({"problem": "a", "solution": "\\frac{1}{2}"}, "problem", "solution", f"{MATH}math_verify", None),
        ({"instruction": "a", "target": "Paris"}, "instruction", "target", f"{MATH}exact_match", None),
        ({"prompt": "a", "answer": 5}, "prompt", "answer", f"{MATH}last_number", None),
        ({"question": "a", "answer": "a long text\nof two lines"}, "question", "answer", None, "answer"),
        ({"messages": [USER, ANSWER]}, "messages", None, None, "messages"),
        ({"messages": [USER], "answer": "5"}, "messages", "answer", f"{MATH}last_number", None),
        ({"instruction": "a", "output": "b"}, "instruction", None, None, "output"),
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt", None, None, "chosen"),
        ({"chosen": [USER, ANSWER], "rejected": [USER, USER]}, "chosen", None, None, "chosen"),
        (
            {"prompt": [USER], "reward_model": {"ground_truth": "5"}},
            "prompt",
            "reward_model",
            f"{MATH}last_number",
            None,
        ),
        ({"prompt": "a", "answer": ["5"]}, "prompt", "answer", None, None),
        ({"prompt": "a", "answer": {"x": 5}, "completion": "b"}, "prompt", "answer", None, "completion"),
        ({"prompt": "a", "completion": "b", "label": True}, "prompt", "label", None, None),
        (
            {"question": "a", "answer": "so\nit is", "final_answer": 5},
            "question",
            "final_answer",
            f"{MATH}last_number",
            None,
        ),
        ({"instruction": "a", "input": "", "output": "b"}, "instruction", None, None, "output"),
        ({"prompt": "a"}, "prompt", None, None, None),
    ],
)
def test_what_rows_are_good_for(
    folder: Path, row: dict[str, Any], prompt: str, answer: str | None, judge: str | None, demonstrated: str | None
) -> None:
    found = rows.look(FileRows([table(folder / "rows.jsonl", row, row)], {}), "rows.jsonl")
    assert (found.prompt, found.answer, found.judge, found.demonstrated) == (prompt, answer, judge, demonstrated)


def test_a_recipe_of_sums_passes_a_dry_run_and_its_reward_tells_right_from_wrong(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table(folder / "sums.jsonl", *({"question": f"{n} + 3?", "solution": str(n + 3)} for n in range(9)))
    assert main(["new", "sums", "--data", "sums.jsonl", "--model", TINY, "max_steps=7", "data.system=Add."]) == 0
    said = capsys.readouterr().out
    assert "prompt     column 'question', text" in said
    assert said.count(" gives 1, 'I do not know.' gives 0") == 3
    assert "  | <system>Add.\n" in said
    assert said.endswith("next:\n  asyncrl train sums.yaml --dry-run\n  asyncrl train sums.yaml\n")
    recipe = load(Path("sums.yaml"))
    assert (recipe.max_steps, recipe.reward, recipe.sources[0].chat) == (7, "./sums_reward.py:reward", True)
    assert recipe.max_context <= 512, "the model has no more positions"
    assert main(["train", "sums.yaml", "--dry-run"]) == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert main(["new", "sums", "--data", "sums.jsonl", "--model", TINY]) == 2
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_rows_without_an_answer_are_masked_and_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "rows.jsonl", *({"prompt": f"{n} + 3?", "answer": "" if n == 1 else str(n + 3)} for n in range(9)))
    assert main(["new", "sums", "--data", "rows.jsonl", "--model", TINY]) == 0
    said = capsys.readouterr().out
    assert "caution    1 of the first rows have no answer" in said
    assert "last_number" in said
    reward = load_reward("./sums_reward.py:reward", folder, kwargs={})
    for answer, rewards in (("", [None, None]), ("7", [0.0, 1.0])):
        scores = reward.score(RewardRequest("a", ["", "7"], [[1], [1]], ["stop"] * 2, {"answer": answer}))
        assert [score.reward for score in scores] == rewards


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Add.", "input": "1 and 2", "output": "3"}, "has a part of its prompts in column input"),
        (
            {"prompt": "a", "completion": "b", "label": True},
            "label (true or false), and no answers that a ready reward",
        ),
        ({"prompt": "a", "answer": ["5"]}, "answer (lists), and no answers that a ready reward compares"),
    ],
)
def test_rows_that_no_recipe_is_made_of(
    folder: Path, row: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    table(folder / "rows.jsonl", row, row)
    assert main(["new", "it", "--data", "rows.jsonl", "--model", TINY]) == 2
    assert said in capsys.readouterr().err
    assert [path.name for path in folder.iterdir()] == ["rows.jsonl"]
    if "instruction" in row:
        assert main(["new", "it", "--data", "rows.jsonl", "--model", TINY, "data.prompt_column=instruction"]) == 0


def test_names_and_files_of_other_kinds(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "rows.jsonl", {"prompt": "a", "answer": "5"}).with_suffix(".txt").write_text("a\n")
    assert main(["new", "..", "--data", "rows.jsonl"]) == 2
    assert "new: '..' is no name for a recipe" in capsys.readouterr().err
    assert main(["new", "it", "--data", "rows.txt"]) == 2
    assert "new: rows.txt is of no kind that is read: .jsonl" in capsys.readouterr().err
    assert main(["new", "it.yml", "--data", "rows.jsonl", "--model", TINY]) == 0
    assert (folder / "it.yaml").exists()


def test_a_recipe_in_another_folder_names_what_is_beside_it_and_above(folder: Path) -> None:
    (folder / "data").mkdir()
    table(folder / "data/rows.jsonl", {"text": "a", "answer": "5"})
    (folder / "judge.py").write_text("def judge(completion, **row):\n    return 0.5\n")
    words = ["new", "mine/first.yaml", "--data", "data/rows.jsonl", "--reward", "judge.py", "--model", TINY]
    assert main(words) == 0
    text = (folder / "mine/first.yaml").read_text()
    assert "path: ../data/rows.jsonl" in text
    assert "reward: ../judge.py:judge" in text
    assert "prompt_column: text" in text
    assert main(["train", "mine/first.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, ANSWER]},
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"instruction": "a", "output": "b"},
    ],
    ids=["chats", "pairs", "instructions"],
)
def test_answers_that_are_learnt(folder: Path, row: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "rows.jsonl", row, row)
    assert main(["new", "learn", "--data", "rows.jsonl", "--model", TINY]) == 0, capsys.readouterr().err
    assert "nothing is sampled" in capsys.readouterr().out
    assert load(Path("learn.yaml")).from_data
    assert main(["train", "learn.yaml", "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("gpus", "how", "ranks", "share"),
    [
        (["NVIDIA H100 80GB HBM3, 81559"] * 2, "planned for 2 x H100", 1, 1),
        (["NVIDIA GeForce RTX 4090, 24564"], "planned for 1 x RTX4090", 1, None),
        (["NVIDIA A100-SXM4-80GB, 81920"] * 8, "planned for 8 x A100-80GB", None, 1),
        (["NVIDIA T4, 15360"], "not planned: the planner has no figures of T4", 1, 0.65),
        (["NVIDIA T4, 15360"] * 4, "halves, not planned", 2, 1),
    ],
    ids=["two H100", "one 4090", "eight A100", "unknown", "four unknown"],
)
def test_gpus_are_divided(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    gpus: list[str],
    how: str,
    ranks: int | None,
    share: float | None,
) -> None:
    with_gpus(folder, monkeypatch, *gpus)
    table(folder / "rows.jsonl", *({"prompt": f"{n} + 3?", "answer": str(n + 3)} for n in range(40)))
    assert main(["new", "big", "--data", "rows.jsonl", "--model", "Qwen/Qwen2.5-0.5B-Instruct"]) == 0
    said = capsys.readouterr().out
    assert f"division   {how}" in said
    assert "is not on this machine, and is fetched when the run starts" in said
    recipe = load(Path("big.yaml"))
    rollout, trainer = recipe.rollout, recipe.trainer
    asked = rollout.replicas * rollout.gpus_per_replica + trainer.ranks * trainer.gpus_per_rank
    assert 0.5 * len(gpus) < asked <= len(gpus) + 1e-6
    assert ranks in (None, trainer.ranks)
    assert share in (None, trainer.gpus_per_rank)
    assert recipe.sources[0].chat
    assert main(["train", "big.yaml", "--dry-run"]) == 0


def test_gpus_that_the_command_says_come_before_the_machine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "rows.jsonl", *({"prompt": f"{n} + 3?", "answer": str(n + 3)} for n in range(40)))
    words = ["new", "shared", "--data", "rows.jsonl", "--model", "Qwen/Qwen2.5-0.5B-Instruct"]
    assert main([*words, "trainer.gpus_per_rank=0.5", "rollout.gpus_per_replica=0.5"]) == 0
    said = capsys.readouterr().out
    assert "division   as the command says: rollout.gpus_per_replica=0.5, trainer.gpus_per_rank=0.5\n" in said
    recipe = load(Path("shared.yaml"))
    assert recipe.on_one_gpu
    assert "enforce_eager" not in recipe.rollout.engine_args
    assert recipe.trainer.gradient_checkpointing


def test_a_machine_with_gpus_may_be_told_to_use_its_cpus(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(folder, monkeypatch, "NVIDIA H100 80GB HBM3, 81559")
    table(folder / "rows.jsonl", *({"prompt": f"{n} + 3?", "answer": str(n + 3)} for n in range(40)))
    shares = ["trainer.gpus_per_rank=0", "rollout.gpus_per_replica=0"]
    assert main(["new", "small", "--data", "rows.jsonl", "--model", TINY, *shares]) == 0
    recipe = load(Path("small.yaml"))
    assert recipe.rollout.engine_args["enforce_eager"]
    assert not recipe.rollout.gpus_per_replica + recipe.trainer.gpus_per_rank


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("def helper(x): ...\ndef fair(completion, **row): ...\n", "fair"),
        ("def a(completion): ...\ndef compute_score(solution_str): ...\n", "compute_score"),
        ("class Judge:\n    def __call__(self, completions): ...\n", "Judge"),
    ],
)
def test_the_reward_of_a_file_is_found_without_running_it(folder: Path, text: str, name: str) -> None:
    (folder / "mine.py").write_text(f"raise RuntimeError\n{text}")
    assert code.reward_spec("mine.py") == f"mine.py:{name}"


@pytest.mark.parametrize("text", ["def a(completion): ...\ndef b(completion): ...\n", "x = 1\n", "def a(:\n"])
def test_a_file_without_one_reward_is_refused(folder: Path, text: str) -> None:
    (folder / "mine.py").write_text(text)
    with pytest.raises(UserError, match=r"^new: --reward mine.py"):
        code.reward_spec("mine.py")


def test_a_reward_that_always_fails_leaves_nothing_behind(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table(folder / "rows.jsonl", {"prompt": "a", "answer": "5"})
    (folder / "mine.py").write_text("def reward(completion, **row):\n    return 1 / 0\n")
    assert main(["new", "bad", "--data", "rows.jsonl", "--reward", "mine.py", "--model", TINY]) == 2
    assert "the reward fails on each of 1 rows tried: ZeroDivisionError" in capsys.readouterr().err
    assert not (folder / "bad.yaml").exists()


@pytest.mark.parametrize(("visible", "number"), [("", 0), ("-1", 0), ("0", 1), ("2,3", 2), (None, 4)])
def test_gpus_that_are_hidden_are_not_counted(
    folder: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, number: int
) -> None:
    with_gpus(folder, monkeypatch, *["NVIDIA H100 80GB HBM3, 81559"] * 4)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert machine.here().num_gpus == number


def test_the_models_that_it_takes_can_be_planned() -> None:
    assert {new._SMOL, new._SMALL, new._LARGER} <= set(PUBLISHED)


def test_the_machine_is_this_one() -> None:
    found = machine.here()
    assert found.cores >= 1
    assert found.memory_gib > 0
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    listed = shutil.which("nvidia-smi") and subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True).stdout
    assert found.num_gpus == (len(listed.strip().splitlines()) if listed else 0)
