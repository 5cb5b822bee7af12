"""Held-out tasks: read whole before anything starts, and held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.data.check import load_tasks
from asyncrl.data.held_out import load_held_out
from asyncrl.errors import UserError
from asyncrl.models import tiny_tokenizer
from asyncrl.recipe.check_evaluation import check_evaluations
from asyncrl.recipe.schema import Recipe


def recipe_of(folder: Path, train: list[str], held_out: list[Any], **part: Any) -> Recipe:
    for name, prompts in (("train", train), ("test", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"prompt": p, "answer": "1"}) + "\n" for p in prompts))
    return Recipe.model_validate(
        {
            "model": "random:tiny-llama",
            "data": {"path": str(folder / "train.jsonl")},
            "reward": "asyncrl.rewards.math:last_number",
            "max_steps": 1,
            "eval": {"data": {"path": str(folder / "test.jsonl")}, **part},
        }
    )


def test_prompts_that_are_trained_too_are_counted_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recipe = recipe_of(tmp_path, ["a", "b", "c"], ["x", "b", "b", "y", "z"], max_tasks=4)
    (one,) = load_held_out(recipe, tmp_path, tiny_tokenizer(), [load_tasks(recipe, tmp_path)])
    assert (one.num_tasks, one.num_trained) == (4, 2)
    assert "evaluation test: 2 of its 4 prompts are in the training data too" in caplog.text


def test_tasks_come_in_the_order_of_the_file(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["a"], ["x", "y", "z"])
    (one,) = load_held_out(recipe, tmp_path, tiny_tokenizer(), ())
    assert [one.tasks.task(place).prompt for place in range(one.num_tasks)] == ["x", "y", "z"]


def test_a_fault_names_the_evaluation(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["a"], ["x", None])
    with pytest.raises(UserError, match=r"^eval.0 \(test\): data.path: 1 of 2 rows have no usable prompt"):
        load_held_out(recipe, tmp_path, tiny_tokenizer(), ())


def test_the_training_data_is_no_held_out_data(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, ["a"], ["x"])
    same = recipe.model_copy(update={"data": recipe.eval[0].data})
    with pytest.raises(UserError, match=r"eval.0.data is the training data"):
        check_evaluations(same)


def test_prompts_are_made_as_the_training_prompts_unless_said_otherwise() -> None:
    data = {"path": "train.jsonl", "chat": True, "system": "Be brief.", "prompt_column": "question"}
    held_out = [{"data": {"path": "a/test.jsonl"}}, {"data": {"path": "b.jsonl", "chat": False, "system": None}}]
    recipe = Recipe.model_validate(
        {"model": "x", "data": data, "reward": "x", "max_steps": 1, "eval": held_out},
    )
    assert [(part.data.chat, part.data.system, part.data.prompt_column) for part in recipe.eval] == [
        (True, "Be brief.", "question"),
        (False, None, "question"),
    ]
    assert [part.name for part in recipe.eval] == ["test", "b"]
    assert recipe == Recipe.model_validate(recipe.model_dump())


def test_prompts_beside_a_mixture_are_made_as_its_sources_agree() -> None:
    keys = {"model": "x", "reward": "x", "max_steps": 1, "eval": {"data": {"path": "test.jsonl"}}}
    sources = [{"path": "a.jsonl", "chat": True, "system": "Be brief."}, {"path": "b.jsonl", "chat": True}]
    with pytest.raises(ValueError, match="make their prompts differently; say system in the data of each evaluation"):
        Recipe.model_validate({**keys, "data": sources})
    sources[1]["system"] = "Be brief."
    recipe = Recipe.model_validate({**keys, "data": sources})
    assert (recipe.eval[0].data.chat, recipe.eval[0].data.system) == (True, "Be brief.")


def mixture(folder: Path, **part: Any) -> Recipe:
    """Two sources with rewards of their own, of which the second is the held-out data unless `part` names another."""
    plain = recipe_of(folder, ["a", "b"], ["x", "b"], **part).model_dump()
    own = {"reward": "asyncrl.rewards.math:exact_match"}
    data = [{"path": str(folder / "train.jsonl"), **own}, {"path": str(folder / "test.jsonl"), "weight": 2, **own}]
    return Recipe.model_validate({**plain, "data": data, "reward": None})


def test_sources_of_a_mixture_are_no_held_out_data_and_are_all_looked_through(tmp_path: Path) -> None:
    recipe = mixture(tmp_path, reward=["asyncrl.rewards.math:last_number"])
    with pytest.raises(UserError, match=r"eval.0.data is the training data"):
        check_evaluations(recipe)
    (one,) = load_held_out(recipe, tmp_path, tiny_tokenizer(), [load_tasks(recipe, tmp_path)])
    assert (one.num_tasks, one.num_trained) == (2, 2)
    assert [part.name for part in recipe.parts_of(one.part)] == ["last_number"]


def test_an_evaluation_that_nobody_judges_is_told(tmp_path: Path) -> None:
    recipe = mixture(tmp_path)
    with pytest.raises(UserError, match=r"only sources of the training data have rewards; name the reward of this"):
        load_held_out(recipe, tmp_path, tiny_tokenizer(), ())
