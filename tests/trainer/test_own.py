"""Losses, advantages and corrections of a user's own: those that docs/own_loss.md shows, and others that are wrong."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from test_learner import CPU, groups, recipe

from asyncrl.errors import UserError
from asyncrl.recipe.algorithm import AlgorithmRecipe
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model
from asyncrl.trainer.objective import Objective

PAGE = Path(__file__).resolve().parents[2] / "docs/own_loss.md"
WRONG = """
import torch

def short(rewards):
    return rewards[1:]

def infinite(rewards):
    return rewards / 0

def listed(rewards):
    return [0.0] * len(rewards)

def by_default(r, difficulty=None):
    return r if difficulty is None else difficulty

def loss(logprobs, behaviour_logprobs, prox_logprobs, advantages, mask, *, segments, difficulty, **_):
    from asyncrl.algorithms.base import LossOutput
    assert difficulty.shape == logprobs.shape
    return LossOutput(-difficulty * logprobs * mask, torch.zeros_like(mask))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, code in re.findall(r"^```python\n# (\w+\.py).*?\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        (tmp_path / name).write_text(code)
    (tmp_path / "wrong.py").write_text(WRONG)
    return tmp_path


def with_extras(batch: list[Group], **extras: float) -> list[Group]:
    return [replace(g, trajectories=tuple(replace(t, extras=extras) for t in g.trajectories)) for g in batch]


def step(model: Path, folder: Path, batch: list[Group], **algorithm: Any) -> tuple[float, Learner]:
    r = recipe(algorithm=algorithm)
    learner = Learner(partial(load_model, str(model), r, CPU), r, CPU, base_dir=folder)
    return learner.step(batch, 0, 0).metrics["trainer/grad_norm"], learner


@pytest.mark.parametrize(
    "algorithm",
    [
        {"loss": "./my_loss.py:soft_clip", "loss_args": {"sharpness": 2.0}},
        {"loss": "./my_loss.py:fit_reward", "advantage": "none", "aggregation": "sequence"},
        {"advantage": "./my_advantage.py:best_and_worst"},
        {"advantage": "./my_advantage.py:hard_first"},
        {"correction": "./my_correction.py:saturating", "proximal": "recompute"},
        {"loss": "./wrong.py:loss"},
    ],
    ids=lambda keys: next(iter(keys.values())),
)
def test_what_the_page_shows_trains(tiny_model: Path, folder: Path, algorithm: dict[str, Any]) -> None:
    norm, _ = step(tiny_model, folder, with_extras(groups(1, [[1.0, 0.0, 0.5]]), difficulty=2.0), **algorithm)
    assert norm > 0


def objective(folder: Path, **keys: Any) -> Objective:
    return Objective(AlgorithmRecipe(**keys), 10, folder)


def test_an_advantage_gets_what_it_names(folder: Path) -> None:
    rewards, extras = torch.tensor([1.0, 0.0]), [{"difficulty": 1.0}, {"difficulty": 3.0}]
    _, found = objective(folder, advantage="./my_advantage.py:hard_first").choose(rewards, extras)
    assert found.tolist() == [0.5 * 2, -0.5 * 4]
    _, found = objective(folder, advantage="./wrong.py:by_default").choose(rewards, extras)
    assert found.tolist() == [1.0, 3.0]
    _, found = objective(folder, advantage="./wrong.py:by_default").choose(rewards, [{}, {"difficulty": 3.0}])
    assert found.tolist() == [1.0, 0.0]


def test_what_came_with_no_reward_is_named(folder: Path) -> None:
    said = r"algorithm.advantage './my_advantage.py:hard_first' takes 'difficulty', which a reward did not give; return"
    with pytest.raises(UserError, match=said):
        objective(folder, advantage="./my_advantage.py:hard_first").choose(torch.ones(2), [{"difficulty": 1.0}, {}])


@pytest.mark.parametrize("name", ["short", "infinite", "listed"])
def test_an_advantage_that_is_none_is_named(folder: Path, name: str) -> None:
    said = (
        rf"algorithm.advantage './wrong.py:{name}' must return a tensor of 2 finite numbers for 2 rewards, and returned"
    )
    with pytest.raises(UserError, match=said):
        objective(folder, advantage=f"./wrong.py:{name}").choose(torch.tensor([1.0, 0.0]), [{}, {}])


def test_a_number_of_a_reward_never_takes_the_place_of_what_is_ours(tiny_model: Path, folder: Path) -> None:
    """`epsilon` is a parameter of grpo, `clip_low` a key of the recipe."""
    batch = groups(1, [[1.0, 0.0, 0.5]])
    plain, _ = step(tiny_model, folder, batch)
    assert step(tiny_model, folder, with_extras(batch, epsilon=9.0, clip_low=9.0, mask=0.0))[0] == plain
