"""Training on answers that the data has: demonstrations and preference pairs, whatever shares a micro-batch."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import CPU, learner
from transformers import AutoModelForCausalLM

from asyncrl.recipe.schema import Recipe
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.packing import TrainSample, pack

LN_2 = math.log(2.0)


def recipe(loss: str = "sft", **trainer: Any) -> Recipe:
    keys = {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 4096, **trainer}
    return Recipe.model_validate(
        {
            **{"model": "x", "data": {"path": "x"}, "max_steps": 9, "algorithm": {"loss": loss}},
            **{"rollout": {"engine": "data"}, "trainer": keys},
        }
    )


def answer(seed: int, num_learnt: int, reward: float = 1.0, prompt: int = 6, behind: int = 0) -> Trajectory:
    """`behind`: tokens after the answer that are not learnt."""
    rng = np.random.default_rng(seed)
    length = prompt + num_learnt + behind
    learnt = (np.arange(length) >= prompt) & (np.arange(length) < prompt + num_learnt)
    return Trajectory(
        tokens=rng.integers(3, 200, length).astype(np.int32),
        versions=np.where(learnt, 0, -1).astype(np.int32),
        logprobs=np.where(learnt, np.nan, 0.0).astype(np.float32),
        loss_mask=learnt,
        reward=reward,
        finish_reason="stop",
        member=0 if reward else 1,
    )


def rows(*answers: Trajectory) -> list[Group]:
    return [Group(number, 0, number, (one,)) for number, one in enumerate(answers)]


def pair(seed: int) -> Group:
    return Group(seed, 0, seed, (answer(seed, 3), answer(seed + 100, 5, reward=0.0)))


def gradient(model: Path, batch: list[Group], r: Recipe) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Of one step, before the optimizer uses it."""
    ours, found = learner(model, r), {}
    ours.before_update = lambda: found.update({n: p.grad.clone() for n, p in ours.model.named_parameters()})
    ours.optimizer.clip = lambda most: 1.0  # type: ignore[method-assign]
    return found, ours.step(batch, 0, 0).metrics


def test_a_token_weighs_the_same_in_a_short_and_a_long_row_and_in_every_micro_batch(tiny_model: Path) -> None:
    """The gradient of the mean over all learnt tokens, by a plain loop."""
    batch = rows(answer(1, 1), answer(2, 9), answer(3, 4))
    reference = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    losses = []
    for group in batch:
        [t] = group.trajectories
        ids = torch.tensor(t.tokens, dtype=torch.int64)
        logp = torch.log_softmax(reference(input_ids=ids[None]).logits[0][:-1], -1).gather(-1, ids[1:, None])[:, 0]
        losses.append(-logp[torch.tensor(t.loss_mask[1:])])
    mean = torch.cat(losses).mean()
    mean.backward()
    for tokens in (4096, 22, 16):
        found, metrics = gradient(tiny_model, batch, recipe(tokens_per_microbatch=tokens))
        for name, parameter in reference.named_parameters():
            torch.testing.assert_close(found[name], parameter.grad, rtol=1e-4, atol=1e-6)
        assert metrics["trainer/loss"] == pytest.approx(mean.item(), rel=1e-5)
        assert metrics["sft/nll"] == pytest.approx(mean.item(), rel=1e-5)
        assert metrics["sft/perplexity"] == pytest.approx(math.exp(mean.item()), rel=1e-4)


def test_rows_of_one_micro_batch_do_not_see_each_other(tiny_model: Path) -> None:
    ours = learner(tiny_model, recipe())
    one, other, kept = answer(1, 9), answer(2, 9), answer(3, 5)

    def of_kept(*beside: Trajectory) -> torch.Tensor:
        samples = [TrainSample(t, number, 1.0, 1.0, t.loss_mask) for number, t in enumerate((*beside, kept))]
        batch = pack(samples, CPU)
        logprobs, _ = ours.policy(batch, 1.0)
        return logprobs[batch.segments == len(beside)]

    with torch.no_grad():
        assert torch.equal(of_kept(one), of_kept(other))
        torch.testing.assert_close(of_kept(one), of_kept())


def test_tokens_that_are_not_learnt_change_no_number(tiny_model: Path) -> None:
    plain, metrics = gradient(tiny_model, rows(answer(1, 3), answer(2, 7)), recipe())
    # The same rows with five tokens behind one of them: numbers drawn last change none before.
    padded, more = gradient(tiny_model, rows(answer(1, 3, behind=5), answer(2, 7)), recipe())
    assert metrics["sft/nll"] == pytest.approx(more["sft/nll"], rel=1e-6)
    for name, values in plain.items():
        torch.testing.assert_close(padded[name], values, rtol=1e-4, atol=1e-6)


def trained(model: Path, folder: Path, **lora: Any) -> Path:
    """A model that has learnt something by adapters, exported."""
    ours = learner(model, recipe(lora={"rank": 4, **lora}))
    ours.step(rows(answer(5, 8), answer(6, 8)), 0, 0)
    ours.export(ours.state(), folder, torch.float32)
    return folder


@pytest.mark.parametrize(
    "trainer",
    [{}, {"precision": "bf16"}, {"lora": {"rank": 4}}, {"tokens_per_microbatch": 16}],
    ids=["all weights", "bf16", "adapters", "pairs apart"],
)
def test_before_the_first_step_a_policy_is_its_own_reference(
    tiny_model: Path, tmp_path: Path, trainer: dict[str, Any]
) -> None:
    """DPO's loss is ln 2, of a model too that came out of a run with adapters."""
    for model in (tiny_model, trained(tiny_model, tmp_path / "warm")):
        ours = learner(model, recipe("dpo", **trainer))
        first = ours.step([pair(1), pair(2)], 0, 0).metrics
        rounding = 1e-3 if "precision" in trainer else 1e-5
        assert first["trainer/loss"] == pytest.approx(LN_2, abs=rounding)
        assert first["pairs/margin"] == pytest.approx(0.0, abs=rounding)
        second = ours.step([pair(1), pair(2)], 1, 0).metrics
        assert second["trainer/loss"] < LN_2 - 1e-3
        assert second["pairs/margin"] > 0
        assert second["pairs/accuracy"] >= 0.5


def test_a_resumed_policy_is_compared_with_what_the_run_began_with(tiny_model: Path) -> None:
    """Not with its own adapters as they are now: those would make every margin 0 again."""
    r = recipe("dpo", lora={"rank": 4})
    ours = learner(tiny_model, r)
    ours.step([pair(1)], 0, 0)
    state = {name: tensor.clone() for name, tensor in ours.state().items()}
    expected = ours.step([pair(1)], 1, 0).metrics
    again: Learner = learner(tiny_model, r)
    again.restore(state)
    assert again.step([pair(1)], 1, 0).metrics["pairs/margin"] == expected["pairs/margin"] > 0
