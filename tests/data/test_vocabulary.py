"""A teacher with other tokens is refused before anything starts; padding is no difference."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from asyncrl.data.vocabulary import check_teachers, check_teachers_here, require_same_ids
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.recipe.schema import Recipe

STUDENT = {0: "<s>", 1: "a", 2: "b", 3: "c"}


def swapped(folder: Path, model: Path) -> Path:
    """The model with two tokens of its vocabulary the other way round."""
    shutil.copytree(model, folder)
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    vocabulary = told["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
    path.write_text(json.dumps(told))
    return folder


def taught(model: Path, teacher: Path) -> Recipe:
    keys = {"model": str(model), "data": {"path": "x"}, "max_steps": 1, "algorithm": {"teacher": str(teacher)}}
    return Recipe.model_validate(keys)


def test_a_permuted_tokenizer_is_refused_by_dry_run_and_run(tiny_model: Path, tmp_path: Path) -> None:
    other = swapped(tmp_path / "other", tiny_model)
    tokenizer = load_tokenizer(str(tiny_model))
    for check in (check_teachers_here, check_teachers):
        check(taught(tiny_model, tiny_model), tmp_path, tokenizer)
        with pytest.raises(UserError, match=r"other has another vocabulary: 2 of the student's 259 token ids .* 'a'"):
            check(taught(tiny_model, other), tmp_path, tokenizer)


def test_padding_on_either_side_is_no_difference() -> None:
    require_same_ids(STUDENT, STUDENT, 4, 64, "t")
    require_same_ids(STUDENT, STUDENT, 64, 4, "t")
    require_same_ids(STUDENT, {**STUDENT, 4: "<image>"}, 64, 64, "t")  # which the student's tokenizer never gives
    require_same_ids({**STUDENT, 9: "<image>"}, STUDENT, 4, 4, "t")  # an id that the student's logits do not have


@pytest.mark.parametrize(
    ("teacher", "width", "said"),
    [
        ({**STUDENT, 2: "c", 3: "b"}, 4, "2 of the student's 4 .* first is 2: 'b' for the student, 'c' for the"),
        ({0: "<s>", 1: "a", 2: "b"}, 4, "1 of the student's 4 .* first is 3: 'c' for the student, nothing for the"),
        (STUDENT, 3, "has embeddings of 3 tokens, and the student's tokenizer gives tokens up to 3"),
    ],
)
def test_another_vocabulary(teacher: dict[int, str], width: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        require_same_ids(STUDENT, teacher, 8, width, "t")
