"""Every preset in a real training step: the same result however the batch is cut, restored or begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import groups, learner, recipe

from asyncrl.recipe.algorithm import PRESETS, AlgorithmRecipe
from asyncrl.rollout.trajectory import Group
from asyncrl.trainer.learner import Learner

REWARDS = [[1.0, 0.0, 0.5, None], [1.0, 1.0, 1.0, 1.0], [0.0, 0.25, 1.0, 0.75], [0.0, 0.0, 1.0, 0.0]]


def make(model: Path, algorithm: dict[str, Any], **trainer: Any) -> Learner:
    whole = AlgorithmRecipe.model_validate(algorithm).model_dump()
    trainer = {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 4096, **trainer}
    r = recipe(algorithm=whole, trainer=trainer, weights={"dtype": "float32"})
    torch.manual_seed(0)
    return learner(model, r)


def batch() -> list[Group]:
    return groups(3, REWARDS)


def difference(ours: Learner, theirs: Learner) -> float:
    pairs = zip(ours.state().items(), theirs.state().items(), strict=True)
    return max(float((a - b).abs().max()) for (name, a), (_, b) in pairs if name.startswith("optimizer.exp_avg."))


@pytest.mark.parametrize("name", PRESETS)
def test_the_cut_into_microbatches_changes_nothing(tiny_model: Path, name: str) -> None:
    """Global sums, not means of means; masks, log Z and pairs see the whole batch."""
    whole, cut = make(tiny_model, PRESETS[name]), make(tiny_model, PRESETS[name], tokens_per_microbatch=80)
    one, many = whole.step(batch(), 0, 0), cut.step(batch(), 0, 0)
    assert many.metrics["trainer/loss"] == pytest.approx(one.metrics["trainer/loss"], rel=1e-4, abs=1e-6)
    for key in ("offpolicy/clip_fraction", "offpolicy/masked_fraction", "trainer/entropy"):
        assert many.metrics[key] == pytest.approx(one.metrics[key], rel=1e-4)
    # The first moment is 0.1 x the clipped gradient, whose norm is 1 at most.
    assert difference(whole, cut) < 1e-5
    assert any(float(v.abs().max()) > 1e-4 for n, v in whole.state().items() if n.startswith("optimizer.exp_avg."))


@pytest.mark.parametrize("name", ["m2po", "ppo", "tba", "reinforce_pp", "online_dpo", "gspo"])
def test_restored_in_the_middle_it_goes_on_bit_for_bit(tiny_model: Path, name: str) -> None:
    algorithm = PRESETS[name]
    if name == "tba":
        algorithm = {**algorithm, "reference_reset_steps": 1}
    keys = {"epochs": 2, "minibatches": 2}
    whole, resumed = make(tiny_model, algorithm, **keys), make(tiny_model, algorithm, **keys)
    whole.step(batch(), 0, 0)
    resumed.restore({name: tensor.clone() for name, tensor in whole.state().items()})
    again = groups(4, REWARDS, version=1)
    whole.step(again, 1, 1)
    resumed.step(again, 1, 1)
    theirs = resumed.state()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in whole.state().items())


def test_epochs_and_minibatches_take_that_many_steps_and_say_how_old_the_data_get(tiny_model: Path) -> None:
    learner = make(tiny_model, {}, epochs=3, minibatches=2)
    report = learner.step(groups(3, REWARDS, version=4), 6, 0)
    assert {int(v) for n, v in learner.state().items() if n.startswith("optimizer.step.")} == {6}
    # Two updates old, of six optimizer steps each, and up to five of this batch's own.
    assert report.metrics["staleness/updates_max"] == 2 * 6 + 5
    assert report.metrics["staleness/updates_mean"] == 2 * 6 + 2.5


def test_the_ratio_is_to_the_weights_at_the_start_of_the_step(tiny_model: Path) -> None:
    """In the second epoch nothing but a clip of a real ratio can stop the policy."""
    free, held = ({"clip_low": c, "clip_high": c} for c in (0.9, 1e-6))
    reports = [make(tiny_model, a, epochs=4, max_grad_norm=100.0).step(batch(), 0, 0) for a in (free, held)]
    shares = [r.metrics["offpolicy/clip_fraction"] for r in reports]
    assert shares[0] < 0.5 * shares[1]


def test_kl_in_the_loss_pulls_towards_the_reference(tiny_model: Path) -> None:
    tokens = [int(t) for t in batch()[0].trajectories[0].tokens]
    start = torch.tensor(make(tiny_model, {}).score(tokens))
    moved = []
    for kl_coef in (0.0, 10.0):
        learner = make(tiny_model, {"kl_coef": kl_coef}, learning_rate=1e-3)
        for step in range(4):
            learner.step(groups(3, REWARDS, version=step), step, step)
        moved.append(float((torch.tensor(learner.score(tokens)) - start).square().mean()))
    assert moved[1] < 0.5 * moved[0]


def test_the_critic_learns_the_reward(tiny_model: Path) -> None:
    learner = make(tiny_model, {"advantage": "gae"}, critic_learning_rate=1e-2)
    always = [[1.0] * 4] * 3
    losses = [learner.step(groups(5, always, version=k), k, k).metrics["trainer/value_loss"] for k in range(12)]
    assert losses[0] == pytest.approx(0.5, abs=0.01)
    assert losses[-1] < 0.1 * losses[0]


def test_only_the_pair_of_a_group_is_trained(tiny_model: Path) -> None:
    report = make(tiny_model, PRESETS["online_dpo"]).step(batch(), 0, 0)
    pairs = [(0, 1), None, (2, 0), (2, 0)]
    trained = [g.trajectories[i] for g, pair in zip(batch(), pairs, strict=True) if pair is not None for i in pair]
    assert report.tokens_trained == sum(int(t.loss_mask.sum()) for t in trained)
    # log 2 before the first update: policy and reference are one.
    assert report.metrics["trainer/loss"] == pytest.approx(np.log(2), rel=1e-5)


def test_overlong_completions_lose_reward(tiny_model: Path) -> None:
    """All rewards equal: only the length makes a difference."""
    equal = groups(3, [[1.0] * 6])
    without = make(tiny_model, {}).step(equal, 0, 0)
    with_buffer = make(tiny_model, {"overlong_buffer": 15}).step(equal, 0, 0)
    assert without.metrics["trainer/grad_norm"] == 0
    assert with_buffer.metrics["trainer/grad_norm"] > 0
