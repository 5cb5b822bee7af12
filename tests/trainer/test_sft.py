"""Demonstrations beside the loss of what is sampled: the gradient is the sum of both, whatever shares a micro-batch."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import CPU, groups, plain_gradient, recipe
from transformers import AutoModelForCausalLM

from asyncrl.data.demonstrations import Rendered
from asyncrl.recipe.schema import Recipe
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model

BATCH = groups(1, [[1.0, 0.0, 0.25], [0.5, 0.0]])
EQUAL = groups(2, [[1.0, 1.0], [0.0, 0.0]])
"""No advantage, so that nothing of it passes the model."""


def row(seed: int, num_learnt: int, prompt: int = 5) -> list[Rendered]:
    tokens = np.random.default_rng(seed).integers(3, 200, prompt + num_learnt).tolist()
    return [Rendered(tokens, [(prompt, len(tokens))])]


def two_turns(seed: int) -> list[Rendered]:
    """Of a template that rewrites earlier turns: a sequence for each."""
    return [*row(seed, 3), *row(seed + 1, 6)]


ROWS = [row(1, 1), row(2, 9), two_turns(3)]


def with_sft(coef: float = 0.5, algorithm: dict[str, Any] | None = None, **trainer: Any) -> Recipe:
    sft = {"data": {"path": "x"}, "coef": coef, "rows_per_step": 3}
    keys = {"precision": "fp32", "learning_rate": 1e-2, "tokens_per_microbatch": 80, **trainer}
    return recipe(algorithm={"correction": "tis", "sft": sft, **(algorithm or {})}, trainer=keys)


def learner(model: Path, r: Recipe, rows: list[list[Rendered]]) -> Learner:
    return Learner(partial(load_model, str(model), r, CPU), r, CPU, rows_of=lambda step: rows)


def gradient(model: Path, r: Recipe, batch: Any, rows: list[list[Rendered]]) -> tuple[Any, dict[str, Any]]:
    ours, found = learner(model, r, rows), {}
    ours.before_update = lambda: found.update({n: p.grad.clone() for n, p in ours.model.named_parameters()})
    ours.optimizer.clip = lambda most: 1.0  # type: ignore[method-assign]
    metrics = ours.step(batch, 0, 0).metrics
    return found, metrics


def plain_nll(model: Path, rows: list[list[Rendered]]) -> tuple[float, dict[str, torch.Tensor]]:
    """The mean of -log pi over all learnt tokens, one sequence at a time, at temperature 1; and its gradient."""
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    losses = []
    for sequence in (sequence for sequences in rows for sequence in sequences):
        ids = torch.tensor(sequence.tokens)
        logp = torch.log_softmax(reference(input_ids=ids[None]).logits[0][:-1], -1).gather(-1, ids[1:, None])[:, 0]
        losses += [-logp[start - 1 : end - 1] for start, end in sequence.learnt]
    mean = torch.cat(losses).mean()
    mean.backward()
    return mean.item(), {name: p.grad for name, p in reference.named_parameters()}


@pytest.mark.parametrize("tokens", [4096, 40, 30])
def test_the_gradient_is_that_of_the_loss_plus_that_of_the_rows(tiny_model: Path, tokens: int) -> None:
    r = with_sft(tokens_per_microbatch=tokens)
    sampled = plain_gradient(tiny_model, BATCH, r)
    nll, demonstrated = plain_nll(tiny_model, ROWS)
    found, metrics = gradient(tiny_model, r, BATCH, ROWS)
    assert found.keys() == demonstrated.keys()
    for name, values in found.items():
        torch.testing.assert_close(values, sampled[name] + 0.5 * demonstrated[name], rtol=1e-3, atol=1e-6)
    assert metrics["sft/nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["sft/rows"] == 3
    _, alone = gradient(tiny_model, recipe(), BATCH, [])
    assert metrics["trainer/loss"] == pytest.approx(alone["trainer/loss"] + 0.5 * nll, rel=1e-4)
    assert "sft/nll" not in alone
    # What is said of the sampled tokens is said of them alone.
    for name in ("offpolicy/kl", "offpolicy/ess", "trainer/entropy", "staleness/updates_mean"):
        assert metrics[name] == pytest.approx(alone[name], rel=1e-4)


def test_rows_are_learnt_where_nothing_sampled_has_a_gradient(tiny_model: Path) -> None:
    _, demonstrated = plain_nll(tiny_model, ROWS)
    found, metrics = gradient(tiny_model, with_sft(), EQUAL, ROWS)
    assert metrics["trainer/skipped_zero_advantage"] == 4
    for name, values in found.items():
        torch.testing.assert_close(values, 0.5 * demonstrated[name], rtol=1e-3, atol=1e-6)


def test_what_is_left_out_of_the_loss_does_not_weigh_the_rows(tiny_model: Path) -> None:
    """Gradients of the sampled tokens are divided by the share that counts; those of the rows are none of them."""
    algorithm = {"entropy_quantile": 0.5}
    r, without = with_sft(algorithm=algorithm), recipe(algorithm={"correction": "tis", **algorithm})
    _, demonstrated = plain_nll(tiny_model, ROWS)
    both, _ = gradient(tiny_model, r, BATCH, ROWS)
    sampled, _ = gradient(tiny_model, without, BATCH, [])
    for name, values in both.items():
        torch.testing.assert_close(values, sampled[name] + 0.5 * demonstrated[name], rtol=1e-3, atol=1e-6)


def test_every_minibatch_has_its_share_of_the_rows(tiny_model: Path) -> None:
    ours = learner(tiny_model, with_sft(minibatches=2), ROWS)
    learnt: list[int] = []
    ours.sft.backward, before = (
        lambda rows, *rest: learnt.append(rows.num_tokens) or before(rows, *rest),
        (ours.sft.backward),
    )
    ours.step(BATCH, 0, 0)
    assert learnt == [1 + 9, 3 + 6]


def test_a_step_whose_rows_are_all_left_out_trains_what_is_sampled(tiny_model: Path) -> None:
    found, metrics = gradient(tiny_model, with_sft(), BATCH, [])
    sampled = plain_gradient(tiny_model, BATCH, with_sft())
    for name, values in found.items():
        torch.testing.assert_close(values, sampled[name], rtol=1e-3, atol=1e-6)
    assert (metrics["sft/nll"], metrics["sft/rows"]) == (None, 0.0)


@pytest.mark.parametrize("trainer", [{"precision": "bf16"}, {"precision": "fp16"}, {"lora": {"rank": 4}}])
def test_rows_become_likelier_in_every_precision_and_with_adapters(tiny_model: Path, trainer: dict[str, Any]) -> None:
    ours = learner(tiny_model, with_sft(coef=1.0, **trainer), ROWS)
    nll = [ours.step(EQUAL, step, 0).metrics["sft/nll"] for step in range(4)]
    assert nll[-1] < nll[0] - 0.2


def test_rows_beside_preferences(tiny_model: Path) -> None:
    """DPO's loss and the rows', which is RPO where these are the chosen answers."""
    keys = {"loss": "dpo", "advantage": "none", "aggregation": "sequence", "correction": "none"}
    pairs = groups(3, [[1.0, 0.0], [1.0, 0.0]])
    both, metrics = gradient(tiny_model, with_sft(algorithm=keys), pairs, ROWS)
    alone, plain = gradient(tiny_model, recipe(algorithm=keys), pairs, [])
    nll, demonstrated = plain_nll(tiny_model, ROWS)
    for name, values in both.items():
        torch.testing.assert_close(values, alone[name] + 0.5 * demonstrated[name], rtol=1e-3, atol=1e-6)
    assert metrics["sft/nll"] == pytest.approx(nll, rel=1e-5)
    assert metrics["pairs/margin"] == plain["pairs/margin"]
