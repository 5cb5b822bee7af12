"""Training on rows that a model solves at times: by a column, or by an evaluation of the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from asyncrl.data.tasks import TaskSource
from asyncrl.errors import UserError
from asyncrl.orchestrator.scoring import write
from asyncrl.recipe.data import DataRecipe
from asyncrl.rollout.evaluation import TaskScores


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def source(rows: list[dict[str, Any]], **rate: Any) -> TaskSource:
    tasks = TaskSource(Table(rows), DataRecipe(path="x.jsonl", shuffle=False, success_rate=rate), 0)
    tasks.check_prompts()
    return tasks


def drawn(tasks: TaskSource) -> list[str]:
    return [str(tasks.task(draw).prompt) for draw in range(tasks.num_drawn)]


RATED = [{"prompt": f"p{rate}", "success_rate": rate} for rate in (0, 0.1, 0.5, 0.9, 1.0, None)]


def test_rows_that_are_always_or_never_solved_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    tasks = source(RATED)
    assert drawn(tasks) == ["p0.1", "p0.5", "p0.9", "pNone"]
    assert tasks.selected()[0]["left_out"] == {"too_hard": 1, "too_easy": 1}
    assert "1 too_hard (row 0, column 'prompt', has a success rate of 0)" in caplog.text
    assert "data.success_rate: 1 rows have no rate, and are drawn" in caplog.text


def test_the_bounds_themselves_are_left_out() -> None:
    assert drawn(source(RATED, min=0.1, max=0.9)) == ["p0.5", "pNone"]
    named = [{"prompt": "a", "pass": 0.5}, {"prompt": "b", "pass": 0.2}]
    assert drawn(source(named, column="pass", min=0.3)) == ["a"]


@pytest.mark.parametrize(
    ("rows", "rate", "says"),
    [
        ([{"prompt": "a", "x": 1}], {}, "the data set has no column 'success_rate', only prompt, x; name the one"),
        ([{"prompt": "a", "success_rate": 55}], {}, "row 0, .* has 55 in 'success_rate', no share from 0 to 1"),
        ([{"prompt": "a", "success_rate": "0.5"}], {}, "has '0.5' in 'success_rate', no share"),
        ([{"prompt": "a", "success_rate": 1}], {}, r"data: no row of x.jsonl is left to draw: 1 of 1 .* 1 too_easy"),
    ],
)
def test_what_is_no_rate_is_refused(rows: Any, rate: Any, says: str) -> None:
    with pytest.raises(UserError, match=says):
        source(rows, **rate)


def test_a_rate_is_of_a_range_and_from_one_place() -> None:
    for rate, says in (({"min": 0.9, "max": 0.9}, "not below `max`"), ({"column": "a", "path": "b"}, "leave one out")):
        with pytest.raises(ValueError, match=says):
            DataRecipe(path="x.jsonl", success_rate=rate)


def evaluated(folder: Path, *tasks: tuple[int, str, list[float | None], list[dict[str, float]]]) -> str:
    """The completions as `asyncrl eval` writes them."""
    scores = [TaskScores(row, prompt, ["c"] * len(rewards), rewards, extras) for row, prompt, rewards, extras in tasks]
    write(folder, {"name": "train", "version": 0, "alone": True}, scores)
    (path,) = (folder / "evaluations").iterdir()
    return str(path)


ROWS = [{"prompt": name} for name in "abcde"]
NO = [{}, {}]


def test_the_completions_of_an_evaluation_are_a_rate(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = evaluated(
        tmp_path,
        (0, "a", [1.0, 1.0], NO),
        (1, "b", [0.0, 1.0], NO),
        (2, "c", [0.5, 0.0], NO),
        (3, "d", [None, 1.0], NO),
    )
    tasks = source(ROWS, path=path)
    assert drawn(tasks) == ["b", "e"], "of d one completion failed, which is no wrong one (I7)"
    assert tasks.selected()[0]["left_out"] == {"too_easy": 2, "too_hard": 1}
    assert "1 rows have no rate, and are drawn" in caplog.text


def test_right_is_what_the_metrics_call_right(tmp_path: Path) -> None:
    """By accuracy, where the reward returns one; nothing, where no part of it judged."""
    right, wrong = {"accuracy": 1.0, "judged": 1.0}, {"accuracy": 0.0, "judged": 1.0}
    path = evaluated(
        tmp_path,
        (0, "a", [0.2, 0.2], [right, right]),
        (1, "b", [1.0, 1.0], [right, wrong]),
        (2, "c", [1.0, 1.0], [{"judged": 0.0}, {"judged": 0.0}]),
    )
    assert drawn(source(ROWS[:3], path=path)) == ["b", "c"]


def test_an_evaluation_of_other_rows_is_refused(tmp_path: Path) -> None:
    path = evaluated(tmp_path, (1, "c", [1.0, 0.0], NO))
    with pytest.raises(UserError, match=r"is an evaluation of other rows: of row 1 it has 'c', and row 1, .* asks 'b'"):
        source(ROWS, path=path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"name": "train", "version": 0}\n', r"line 1 is no completion of an evaluation, with row, prompt and reward"),
        ('{"row": 0, "prompt": "a", "reward": 2.0}\n', "does not say what is right"),
        ('{"row": 0, "prompt": "a", "reward"\n', r"^data.success_rate.path: .* line 1 is not valid JSON"),
        ("", "is empty"),
    ],
)
def test_another_file_is_no_evaluation(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "x.jsonl").write_text(text)
    with pytest.raises(UserError, match=says):
        source(ROWS, path=str(tmp_path / "x.jsonl"))
