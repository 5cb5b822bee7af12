"""Every preset in a real training step: the same result however the batch is cut, restored or begun."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import groups, learner, recipe
from transformers import AutoModelForCausalLM

from asyncrl.algorithms.masks import m2po_mask
from asyncrl.recipe.algorithm import PRESETS, AlgorithmRecipe
from asyncrl.rollout.trajectory import Group, Trajectory
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


@pytest.mark.parametrize("name", ["m2po", "ppo", "tba", "reinforce_pp", "online_dpo", "gspo", "spo"])
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


FAR = [[1.0, 0.0, 0.25, 0.5], [1.0, 1.0], [0.5, 0.0, 0.0]]
MASKS = {
    "reject_kl": {"reject_kl": 0.5},
    "entropy_quantile": {"entropy_quantile": 0.6},
    "second_moment_limit": {"second_moment_limit": 0.01},
}


def far_off() -> list[Group]:
    """Half of the trajectories are close to the policy, the others far from it, one of them with advantage 0."""
    made = groups(3, FAR)
    for number, group in enumerate(made):
        for i, t in enumerate(group.trajectories):
            t.logprobs[t.versions >= 0] = -60.0 if (number + i) % 2 else -5.3
    return made


@pytest.mark.parametrize("tokens", [4096, 80], ids=["whole", "cut"])
@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
@pytest.mark.parametrize("mask", MASKS)
def test_the_rows_above_the_line_are_those_below_it(tiny_model: Path, mask: str, aggregation: str, tokens: int) -> None:
    """Rows left out are not divided by. M2PO's mask leaves none out: like a clip it takes a token's gradient, and the
    paper divides by the tokens of all answers (arXiv:2510.01161)."""
    algorithm = {"aggregation": aggregation, "proximal": "recompute", **MASKS[mask]}
    model = make(tiny_model, algorithm, tokens_per_microbatch=tokens, max_grad_norm=1e9)
    model.step(far_off(), 0, 0)
    expected = plain_gradient(tiny_model, far_off(), mask, aggregation)
    for name, parameter in model.optimizer.named.items():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-6)


def plain_gradient(path: Path, batch: list[Group], mask: str, aggregation: str) -> dict[str, torch.Tensor]:
    """The mean of -A log pi over what counts, one trajectory at a time."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
    everyone = [t for group in batch for t in group.trajectories]
    rewards = [np.array([t.reward for t in group.trajectories]) for group in batch]
    advantages = np.concatenate([(r - r.mean()) / (r.std() + 1e-6) for r in rewards])
    scores = [scored(model, t) for t in everyone]
    gaps = [
        logp.detach() - torch.tensor(t.logprobs[t.loss_mask]) for (logp, _), t in zip(scores, everyone, strict=True)
    ]
    sizes = [len(gap) for gap in gaps]
    keep = counted = [torch.ones(size, dtype=torch.bool) for size in sizes]
    if mask == "reject_kl":
        keep = counted = [torch.full((len(d),), bool((d.exp() - 1 - d).mean() <= 0.5)) for d in gaps]
    elif mask == "entropy_quantile":
        ends = np.cumsum([len(r) for r in rewards])
        bounds = [
            torch.cat([e for _, e in scores[end - len(r) : end]]).quantile(0.6)
            for end, r in zip(ends, rewards, strict=True)
        ]
        keep = counted = [e >= bounds[int(np.searchsorted(ends, i, "right"))] - 1e-5 for i, (_, e) in enumerate(scores)]
    else:
        per_token = torch.tensor(np.repeat(advantages, sizes))
        keep = list(m2po_mask(torch.cat(gaps), torch.zeros(sum(sizes)), per_token, 0.01).split(sizes))
    assert 0 < sum(int(k.sum()) for k in keep) < sum(sizes)
    lengths = [int(c.sum()) for c in counted]
    rows = sum(length > 0 for length in lengths)
    below = {"token": [sum(lengths)] * len(lengths), "sequence": [rows * n for n in lengths]}.get(
        aggregation, [rows * 20] * len(lengths)
    )
    sums = [(-a * logp[k]).sum() for a, (logp, _), k in zip(advantages, scores, keep, strict=True)]
    sum(s / n for s, n in zip(sums, below, strict=True) if n).backward()
    return {name: p.grad for name, p in model.named_parameters()}


def scored(model: torch.nn.Module, t: Trajectory) -> tuple[torch.Tensor, torch.Tensor]:
    """log pi of the trained tokens at the sampling temperature, and the entropies there."""
    ids = torch.tensor(t.tokens, dtype=torch.int64)
    every = torch.log_softmax(model(input_ids=ids[None]).logits[0, :-1] / 0.8, -1)
    mask = torch.tensor(t.loss_mask[1:])
    entropy = -(every.exp() * every).sum(-1).detach()
    return every.gather(-1, ids[1:, None])[:, 0][mask], entropy[mask]
