"""The learner against a plain per-trajectory loop in float32, and its state on disk."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import make_model
from transformers import AutoModelForCausalLM

from asyncrl.checkpoint import files
from asyncrl.observe.health import warnings
from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model
from asyncrl.trainer.packing import TrainSample, pack
from asyncrl.trainer.samples import choose

CPU = torch.device("cpu")


def recipe(**changes: Any) -> Recipe:
    base: dict[str, Any] = {
        "model": "x",
        "data": {"path": "x"},
        "reward": "x",
        "max_steps": 9,
        "algorithm": {"correction": "tis"},
        "rollout": {"temperature": 0.8, "max_new_tokens": 20},
        "trainer": {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 80},
    }
    return Recipe.model_validate({**base, **changes})


def learner(model: Path, r: Recipe | None = None) -> Learner:
    r = r or recipe()
    return Learner(partial(load_model, str(model), r, CPU), r, CPU)


def of(learner: Learner, batch: list[Group]) -> list[TrainSample]:
    return choose(batch, learner.objective, learner.replay, learner.baseline, 0, 0, mask_old=False).samples


def trajectory(
    rng: np.random.Generator, reward: float | None, version: int = 0, prompt_tokens: Any = None
) -> Trajectory:
    if prompt_tokens is None:
        prompt_tokens = prompt_of(rng)
    prompt, completion = len(prompt_tokens), int(rng.integers(1, 25))
    versions = np.full(prompt + completion, -1, np.int32)
    versions[prompt:] = version
    return Trajectory(
        tokens=np.concatenate([prompt_tokens, rng.integers(3, 200, completion)]).astype(np.int32),
        versions=versions,
        logprobs=np.where(versions >= 0, rng.normal(-5, 0.5, len(versions)), 0).astype(np.float32),
        loss_mask=(versions >= 0) & (reward is not None),
        reward=reward,
        finish_reason="stop",
    )


def prompt_of(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(3, 200, int(rng.integers(2, 12)))


def groups(seed: int, rewards: list[list[float | None]], version: int = 0) -> list[Group]:
    rng = np.random.default_rng(seed)
    made = []
    for i, row in enumerate(rewards):
        prompt = prompt_of(rng)
        made.append(Group(i, 0, i, tuple(trajectory(rng, r, version, prompt) for r in row)))
    return made


def cut(batch: list[Group], *places: tuple[int, int]) -> list[Group]:
    """The groups with the trajectories (group, member) cut off at the longest length."""
    return [
        replace(
            group,
            trajectories=tuple(
                replace(t, finish_reason="length") if (number, member) in places else t
                for member, t in enumerate(group.trajectories)
            ),
        )
        for number, group in enumerate(batch)
    ]


def is_cut(t: Trajectory) -> bool:
    return t.finish_reason == "length"


def plain_gradient(model: Path, batch: list[Group], r: Recipe) -> dict[str, torch.Tensor]:
    """One trajectory at a time through an unmodified model: -w A logp / N, GRPO advantages, TIS weights. One that is
    left out because it was cut off has no term in the sum and no token in N; its reward is in the advantages."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    trained = [t for g in batch for t in g.trajectories if not (r.algorithm.mask_truncated and is_cut(t))]
    num_tokens = sum(int(t.loss_mask.sum()) for t in trained)
    for group in batch:
        scored = [t for t in group.trajectories if t.reward is not None]
        rewards = np.array([t.reward for t in scored])
        for t in (t for t in scored if any(t is one for one in trained)):
            advantage = (t.reward - rewards.mean()) / (rewards.std() + 1e-6)
            ids = torch.tensor(t.tokens, dtype=torch.int64)
            logits = reference(input_ids=ids[None]).logits[0] / r.rollout.temperature
            logp = torch.log_softmax(logits[:-1], -1).gather(-1, ids[1:, None])[:, 0]
            mask = torch.tensor(t.loss_mask[1:])
            w = torch.exp(logp.detach() - torch.tensor(t.logprobs[1:])).clamp(max=r.algorithm.tis_cap)
            (-(w * advantage * logp)[mask].sum() / num_tokens).backward()
    return {name: p.grad for name, p in reference.named_parameters()}


def test_gradient_equals_a_plain_loop(tiny_model: Path) -> None:
    """Packing, micro-batches, skipped groups and failed rewards change nothing but rounding."""
    batch = groups(1, [[1.0, 0.0, 0.25], [1.0, 1.0], [0.0, None, 1.0, 0.0]])
    r = recipe(trainer={"precision": "fp32", "tokens_per_microbatch": 80, "max_grad_norm": 1e9})
    ours = learner(tiny_model, r)
    report = ours.step(batch, 0, 0)
    expected = plain_gradient(tiny_model, batch, r)
    for name, parameter in ours.model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert report.tokens_trained == sum(int(t.loss_mask.sum()) for g in batch for t in g.trajectories)
    # The second group has no advantage and the failed reward no trajectory; each prompt passes once.
    through = [batch[0].trajectories, [t for t in batch[2].trajectories if t.reward is not None]]
    once = sum(ts[0].prompt_length + sum(len(t.tokens) - t.prompt_length for t in ts) for ts in through)
    prompts = sum(ts[0].prompt_length for ts in through)
    # The budget of 80 tokens may cut a family, which then brings its prompt again.
    assert once <= report.tokens_forward <= once + 2 * prompts


def test_completions_that_were_cut_off_can_be_left_out(tiny_model: Path) -> None:
    batch = cut(groups(1, [[1.0, 0.0, 0.25], [0.0, None, 1.0, 0.0]]), (0, 0), (1, 3))
    trainer = {"precision": "fp32", "tokens_per_microbatch": 80, "max_grad_norm": 1e9}
    for algorithm in ({"correction": "tis"}, {"correction": "tis", "mask_truncated": True}):
        r = recipe(trainer=trainer, algorithm=algorithm)
        ours = learner(tiny_model, r)
        report = ours.step(batch, 0, 0)
        expected = plain_gradient(tiny_model, batch, r)
        for name, parameter in ours.model.named_parameters():
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-6)
    assert report.metrics["trainer/masked_truncated"] == 2
    trained = [t for g in batch for t in g.trajectories if not is_cut(t)]
    assert report.tokens_trained == sum(int(t.loss_mask.sum()) for t in trained)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_what_is_left_out_is_in_no_mean(tiny_model: Path, aggregation: str) -> None:
    """Its reward is the mean of the others, so that the advantages are the same without it."""
    batch = cut(groups(1, [[1.0, 0.0, 0.5], [0.0, 0.5, 1.0]]), (0, 2), (1, 1))
    without = [replace(g, trajectories=tuple(t for t in g.trajectories if not is_cut(t))) for g in batch]
    gradients = []
    for some, mask in ((batch, True), (without, False)):
        algorithm = {"advantage": "dr_grpo", "aggregation": aggregation, "mask_truncated": mask}
        ours = learner(tiny_model, recipe(algorithm=algorithm))
        ours.step(some, 0, 0)
        gradients.append([parameter.grad for parameter in ours.model.parameters()])
    for masked, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(masked, plain, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("algorithm", "num_trained"),
    [({"advantage": "best_of_n", "loss": "reinforce"}, 3), ({"loss": "dpo", "aggregation": "sequence"}, 2)],
    ids=["best_of_n", "pairs"],
)
def test_no_member_that_is_left_out_is_picked(tiny_model: Path, algorithm: dict[str, Any], num_trained: int) -> None:
    """The best one was cut off: the second best is taken in its place."""
    batch = cut(groups(1, [[1.0, 0.5, 0.0, 0.25]]), (0, 0))
    ours = learner(tiny_model, recipe(algorithm={**algorithm, "mask_truncated": True}))
    samples = of(ours, batch)
    assert max(s.reward for s in samples) == 0.5
    assert len(samples) == num_trained
    assert not any(is_cut(s.trajectory) for s in samples)


def test_a_batch_that_is_left_out_as_a_whole_changes_nothing(tiny_model: Path) -> None:
    ours = learner(tiny_model, recipe(algorithm={"mask_truncated": True}))
    before = {n: p.clone() for n, p in ours.model.named_parameters()}
    report = ours.step(cut(groups(2, [[1.0, 0.0]]), (0, 0), (0, 1)), 0, 0)
    assert (report.tokens_trained, report.metrics["trainer/masked_truncated"]) == (0, 2)
    assert all(torch.equal(p, before[n]) for n, p in ours.model.named_parameters())
    (sentence,) = warnings(report.metrics)
    assert "all 2 were cut off at rollout.max_new_tokens" in sentence


def test_a_batch_without_advantages_costs_no_forward_pass(tiny_model: Path) -> None:
    ours = learner(tiny_model)
    before = {n: p.clone() for n, p in ours.model.named_parameters()}
    report = ours.step(groups(2, [[1.0, 1.0], [0.0, 0.0]]), 0, 0)
    assert report.tokens_forward == 0
    assert all(torch.equal(p, before[n]) for n, p in ours.model.named_parameters())


def test_the_gap_at_age_0_is_of_trajectories_that_these_weights_sampled_whole(tiny_model: Path) -> None:
    """One that they went on with has keys and values of the weights before."""
    batch = groups(5, [[1.0, 0.0, 0.0]], version=1)
    whole, old, carried_on = batch[0].trajectories
    old.versions[old.prompt_length :] = 0
    carried_on.versions[carried_on.prompt_length] = 0
    found = learner(tiny_model).step(batch, 1, 0).metrics
    only = learner(tiny_model).step([replace(batch[0], trajectories=(whole, replace(whole, reward=0.0)))], 1, 0).metrics
    assert found["offpolicy/logprob_gap_age0"] == pytest.approx(only["offpolicy/logprob_gap"], rel=1e-5)
    assert found["offpolicy/logprob_gap"] != pytest.approx(only["offpolicy/logprob_gap"], rel=1e-3)
    aged = learner(tiny_model).step(batch, 2, 0).metrics
    assert aged["offpolicy/logprob_gap_age0"] is None


def test_too_old_tokens_are_refused_or_masked(tiny_model: Path) -> None:
    batch = groups(3, [[1.0, 0.0]], version=2)
    with pytest.raises(ValueError, match="token of version 2 in step 5, which allows 3"):
        learner(tiny_model).step(batch, 5, 3)
    for t in batch[0].trajectories:
        t.versions[-1] = 4
    report = learner(tiny_model, recipe(on_stale="mask")).step(batch, 5, 3)
    assert report.tokens_trained == 2
    assert report.staleness == (0, 2, 0)


def test_state_on_disk_continues_bit_for_bit(tiny_model: Path, tmp_path: Path) -> None:
    first, second = groups(4, [[1.0, 0.0, 1.0]]), groups(5, [[0.0, 0.0, 1.0]])
    uninterrupted = learner(tiny_model)
    uninterrupted.step(first, 0, 0)
    files.write(uninterrupted.state(), tmp_path, rank=0)
    uninterrupted.step(second, 1, 0)
    resumed = learner(tiny_model)
    resumed.restore(files.read(tmp_path))
    resumed.step(second, 1, 0)
    for (name, a), (_, b) in zip(uninterrupted.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(a, b), name


def test_export_is_a_model_that_transformers_loads(tiny_model: Path, tmp_path: Path) -> None:
    ours = learner(tiny_model)
    ours.export(ours.state(), tmp_path, torch.bfloat16)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.dtype == torch.bfloat16
    for (name, a), (_, b) in zip(ours.model.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a.bfloat16(), b), name


def test_a_gradient_that_is_not_finite_skips_the_step(tiny_model: Path) -> None:
    ours = learner(tiny_model)
    ours.step(groups(6, [[1.0, 0.0]]), 0, 0)
    before = {name: t.clone() for name, t in ours.state().items()}
    report = ours.step(groups(6, [[float("inf"), 0.0]]), 1, 0)
    assert report.metrics["trainer/skipped_steps"] == 1
    assert all(torch.equal(t, before[name]) for name, t in ours.state().items())
    report = ours.step(groups(6, [[1.0, 0.0]]), 2, 0)
    assert report.metrics["trainer/skipped_steps"] == 0
    assert any(not torch.equal(t, before[name]) for name, t in ours.state().items())


def test_who_copies_the_state_is_waited_for_right_before_it_changes(tiny_model: Path) -> None:
    ours = learner(tiny_model)
    before = {name: t.clone() for name, t in ours.state().items()}
    seen = []
    ours.before_update = lambda: seen.append(all(torch.equal(t, before[n]) for n, t in ours.state().items()))
    ours.step(groups(6, [[1.0, 0.0]]), 0, 0)
    assert seen == [True]


def test_pack_never_trains_the_first_token() -> None:
    rng = np.random.default_rng(1)
    t = trajectory(rng, 1.0)
    batch = pack([TrainSample(t, 0, 1.0, 1.0, np.ones(len(t.tokens), bool))] * 2, CPU)
    assert len(batch.targets) == 2 * (len(t.tokens) - 1)
    assert batch.tokens[0].tolist() == t.tokens.tolist()
    assert batch.predictors.tolist() == [*range(len(t.tokens) - 1)] * 2


@pytest.mark.parametrize(("saved", "resumed"), [(0, 2), (1, 0), (1, 2)], ids=["begun", "ended", "kept"])
def test_a_reference_is_restored_whatever_the_recipe_says_of_its_resets(
    tiny_model: Path, saved: int, resumed: int
) -> None:
    """One that was never reset is the initial model."""
    before, after = (
        learner(tiny_model, recipe(algorithm={"kl_coef": 0.1, "reference_reset_steps": steps}))
        for steps in (saved, resumed)
    )
    before.step(groups(1, [[1.0, 0.0]]), 0, 0)
    after.restore({name: tensor.clone() for name, tensor in before.state().items()})
    assert before.reference is not None
    assert after.reference is not None
    theirs = dict(before.reference.model.named_parameters())
    assert all(torch.equal(p, theirs[name]) for name, p in after.reference.model.named_parameters())


def test_nothing_is_dropped_in_training(tmp_path: Path) -> None:
    """GPT-2's configuration asks for dropout, which no sampler has."""
    ours = learner(make_model("gpt2", tmp_path))
    assert ours.model.config.resid_pdrop == 0.1
    batch = ours._updates(of(ours, groups(1, [[1.0, 0.0]])))[0].batches[0]
    ours.policy.eval()
    expected = ours._score(batch)[0]
    ours.policy.train()
    torch.testing.assert_close(ours._score(batch)[0], expected, rtol=0, atol=1e-6)
