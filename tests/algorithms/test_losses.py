"""Every loss and its gradient against a second implementation, token by token, in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.corrections import OffPolicySums, off_policy_sums, truncated_weights
from asyncrl.algorithms.losses import LOSSES

logprob = st.floats(-6, -0.01)
token = st.tuples(logprob, logprob, logprob, st.floats(-2, 2))

LO, HI = 0.2, 0.28


def ppo_by_hand(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    """(loss, d loss / d logp)."""
    r = math.exp(lp - prox)
    clipped = min(max(r, 1 - LO), 1 + HI)
    if r * a <= clipped * a:
        return -r * a, -r * a
    return -clipped * a, 0.0


def decoupled_by_hand(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    w = math.exp(prox - beh)
    loss, gradient = ppo_by_hand(lp, beh, prox, a)
    return w * loss, w * gradient


BY_HAND: dict[str, Callable[[float, float, float, float], tuple[float, float]]] = {
    "ppo": ppo_by_hand,
    "decoupled_ppo": decoupled_by_hand,
    "reinforce": lambda lp, beh, prox, a: (-a * lp, -a),
}


@pytest.mark.parametrize("name", LOSSES)
@given(st.lists(token, min_size=1, max_size=20))
def test_loss_and_gradient(name: str, tokens: list[tuple[float, ...]]) -> None:
    lp, beh, prox, a = (torch.tensor(column, dtype=torch.float64) for column in zip(*tokens, strict=True))
    lp.requires_grad_()
    out = LOSSES[name](lp, beh, prox, a, torch.ones(len(tokens), dtype=torch.bool), clip_low=LO, clip_high=HI)
    out.per_token.sum().backward()
    for i, t in enumerate(tokens):
        loss, gradient = BY_HAND[name](*t)
        assert float(out.per_token[i]) == pytest.approx(loss, rel=1e-9, abs=1e-9)
        assert float(lp.grad[i]) == pytest.approx(gradient, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["ppo", "decoupled_ppo"])
def test_on_policy_gradient_is_the_policy_gradient(name: str) -> None:
    a = torch.tensor([1.5, -0.5, 0.0])
    lp = torch.tensor([-1.0, -2.0, -0.1], requires_grad=True)
    old = lp.detach().clone()
    LOSSES[name](lp, old, old, a, torch.ones(3, dtype=torch.bool)).per_token.sum().backward()
    assert lp.grad.tolist() == pytest.approx((-a).tolist())


@pytest.mark.parametrize("name", LOSSES)
def test_extreme_log_ratios_stay_finite(name: str) -> None:
    lp = torch.tensor([-1e4, -1e-4, -1e4], requires_grad=True)
    other = torch.tensor([-1e-4, -1e4, -1e4])
    out = LOSSES[name](lp, other, other, torch.tensor([1.0, -1.0, 1.0]), torch.ones(3, dtype=torch.bool))
    out.per_token.sum().backward()
    assert torch.isfinite(out.per_token).all()
    assert torch.isfinite(lp.grad).all()


def test_truncated_weights() -> None:
    prox = torch.log(torch.tensor([0.1, 0.4, 0.9]))
    beh = torch.log(torch.tensor([0.2, 0.2, 0.1]))
    assert truncated_weights(prox, beh, cap=2.0).tolist() == pytest.approx([0.5, 2.0, 2.0])


def test_off_policy_sums_add_up_and_describe_a_known_shift() -> None:
    p, q = [0.5, 0.25, 0.2], [0.25, 0.5, 0.2]
    lp, beh = torch.tensor(p).log(), torch.tensor(q).log()
    none = torch.zeros(3, dtype=torch.bool)
    whole = off_policy_sums(lp, beh, none)
    parts = off_policy_sums(lp[:1], beh[:1], none[:1]) + off_policy_sums(lp[1:], beh[1:], none[1:])
    assert whole.metrics() == pytest.approx(parts.metrics())
    w = [a / b for a, b in zip(p, q, strict=True)]
    assert whole.metrics()["offpolicy/ess"] == pytest.approx(sum(w) ** 2 / (3 * sum(x * x for x in w)))
    assert whole.metrics()["offpolicy/logprob_gap"] == pytest.approx(2 * math.log(2) / 3)
    assert whole.metrics()["offpolicy/kl"] == pytest.approx(sum(x - 1 - math.log(x) for x in w) / 3)


def test_without_behaviour_logprobs_there_is_nothing_to_report() -> None:
    sums = off_policy_sums(torch.zeros(2), torch.full((2,), math.nan), torch.zeros(2, dtype=torch.bool))
    assert sums == OffPolicySums()
    assert set(sums.metrics().values()) == {None}
