"""Weights, rejections, KL estimates and diagnostics against sums written out by hand and exact expectations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from asyncrl.algorithms.corrections import (
    importance_weights,
    loglinear_prox,
    mis,
    reject_by_kl,
    staleness_weights,
    tis,
)
from asyncrl.algorithms.kl import kl_estimate
from asyncrl.algorithms.offpolicy import OffPolicySums, off_policy_sums


def test_tis_and_mis() -> None:
    w = torch.tensor([0.4, 0.5, 1.0, 2.0, 2.1])
    assert tis(w, tis_cap=1.5)[0].tolist() == pytest.approx([0.4, 0.5, 1.0, 1.5, 1.5])
    assert mis(w, mis_low=0.5, mis_high=2.0)[0].tolist() == [0.0, 0.5, 1.0, 2.0, 0.0]


@pytest.mark.parametrize("level", ["token", "sequence", "geometric"])
def test_importance_weights_against_a_loop(level: str, batch: dict[str, Any]) -> None:
    # NaN where the mask is False: what is not counted must not be looked at.
    mask, segments = batch["mask"], batch["segments"]
    prox, beh = batch["prox_logprobs"], torch.where(mask, batch["behaviour_logprobs"], math.nan)
    weights = importance_weights(
        prox, beh, level=level, segments=segments, num_segments=batch["num_segments"], mask=mask
    )
    assert (weights[~mask] == 1).all()
    for i in segments.unique():
        own = (segments == i) & mask
        d = (prox - beh)[own].tolist()
        if level == "sequence":
            d = [min(max(math.fsum(d), -20.0), 20.0)] * len(d)
        if level == "geometric":
            d = [math.fsum(d) / max(len(d), 1)] * len(d)
        assert weights[own].tolist() == pytest.approx([math.exp(x) for x in d], rel=1e-9)


def test_importance_weights_of_an_unknown_level() -> None:
    x, segments = torch.zeros(1), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(ValueError, match="token, sequence or geometric, not 'turn'"):
        importance_weights(x, x, level="turn", segments=segments, num_segments=1, mask=torch.ones(1).bool())


def test_reject_by_kl_takes_whole_trajectories() -> None:
    segments = torch.tensor([0, 0, 2, 2, 3, 3])
    d = torch.tensor([0.1, -0.1, 2.0, 0.5, 0.0, 9.0])
    mask = torch.tensor([True, True, True, True, True, False])
    keep = reject_by_kl(d - 5, torch.full((6,), -5.0), segments, 5, mask, limit=0.5)
    assert keep.tolist() == [True, True, False, False, True, True]
    mean = sum(math.exp(x) - 1 - x for x in (2.0, 0.5)) / 2
    for limit, kept in ((mean * 0.999, False), (mean * 1.001, True)):
        assert bool(reject_by_kl(d - 5, torch.full((6,), -5.0), segments, 5, mask, limit)[2]) is kept


# -- staleness


def test_staleness_weights() -> None:
    ages = torch.tensor([0, 1, 3, 8])
    assert staleness_weights(ages).tolist() == pytest.approx([1, 1 / math.sqrt(2), 0.5, 1 / 3])
    assert staleness_weights(ages, "power", 2.0).tolist() == pytest.approx([1, 1 / 4, 1 / 16, 1 / 81])
    assert staleness_weights(ages, "power", 0.5).tolist() == pytest.approx(staleness_weights(ages).tolist())
    with pytest.raises(ValueError, match="sqrt or power"):
        staleness_weights(ages, "linear")


@pytest.mark.parametrize("kind", ["sqrt", "power"])
def test_age_zero_changes_nothing(kind: str) -> None:
    per_token = torch.randn(1000)
    assert torch.equal(per_token * staleness_weights(torch.zeros(1000, dtype=torch.int64), kind, 0.37), per_token)


def test_loglinear_prox() -> None:
    logprobs, behaviour = torch.tensor([-1.0, -1.0, -1.0, -1.0]).requires_grad_(), torch.full((4,), -3.0)
    versions = torch.tensor([4, 6, 8, 7])
    prox = loglinear_prox(logprobs, behaviour, versions, prox_version=7, current_version=8)
    assert prox.tolist() == pytest.approx([-3 + 2 * 3 / 4, -3 + 2 * 1 / 2, -1.0, -3.0])
    assert not prox.requires_grad
    assert torch.equal(loglinear_prox(logprobs, behaviour, versions, 8, 8), logprobs.detach())


# -- KL


def test_kl_estimates_have_the_expectations_and_gradients_they_claim() -> None:
    """Exact sums over a distribution of six tokens, each weighted by its probability under pi."""
    torch.manual_seed(0)
    logits, ref = torch.randn(6, dtype=torch.float64).requires_grad_(), torch.randn(6, dtype=torch.float64)
    logp, ref = logits.log_softmax(-1), ref.log_softmax(-1)
    p = logp.exp()

    def gradient(x: torch.Tensor) -> torch.Tensor:
        return torch.autograd.grad(x, logits, retain_graph=True)[0]

    forward, reverse = (p * (logp - ref)).sum(), (ref.exp() * (ref - logp)).sum()
    means = {kind: (p.detach() * kl_estimate(logp, ref, kind)).sum() for kind in ("k1", "k2", "k3")}
    torch.testing.assert_close(means["k1"], forward)
    torch.testing.assert_close(means["k3"], forward)
    torch.testing.assert_close(means["k2"], (p * (logp - ref) ** 2 / 2).sum())
    torch.testing.assert_close(gradient(means["k1"]), torch.zeros(6, dtype=torch.float64))
    torch.testing.assert_close(gradient(means["k2"]), gradient(forward))
    torch.testing.assert_close(gradient(means["k3"]), gradient(reverse))
    assert (kl_estimate(logp, ref, "k3") >= 0).all()
    with pytest.raises(ValueError, match="k1, k2 or k3"):
        kl_estimate(logp, ref, "k4")


# -- diagnostics


def test_off_policy_sums_add_up_and_describe_a_known_shift() -> None:
    p, q = [0.5, 0.25, 0.2], [0.25, 0.5, 0.2]
    lp, beh = torch.tensor(p).log(), torch.tensor(q).log()
    affected, masked = torch.tensor([True, True, False]), torch.tensor([False, False, True])
    columns = (lp, beh, affected, masked, torch.tensor([True, False, True]))
    whole = off_policy_sums(*columns)
    parts = [off_policy_sums(*(x[part] for x in columns)) for part in (slice(1), slice(1, 3))]
    metrics = whole.metrics()
    assert metrics == pytest.approx((parts[0] + parts[1]).metrics())
    w = [a / b for a, b in zip(p, q, strict=True)]
    assert metrics == pytest.approx(
        {
            "offpolicy/ess": sum(w) ** 2 / (3 * sum(x * x for x in w)),
            "offpolicy/logprob_gap": 2 * math.log(2) / 3,
            "offpolicy/kl": sum(x - 1 - math.log(x) for x in w) / 3,
            "offpolicy/kl_k1": sum(-math.log(x) for x in w) / 3,
            "offpolicy/clip_fraction": 2 / 3,
            "offpolicy/masked_fraction": 1 / 3,
            "offpolicy/logprob_gap_age0": math.log(2) / 2,
        },
        abs=1e-7,
    )
    assert off_policy_sums(lp, beh, affected).metrics()["offpolicy/masked_fraction"] == 0


def test_both_kl_means_estimate_the_divergence_from_the_behaviour() -> None:
    torch.manual_seed(0)
    behaviour, policy = torch.randn(5).log_softmax(-1), torch.randn(5).log_softmax(-1)
    sampled = torch.multinomial(behaviour.exp(), 200_000, replacement=True)
    none = torch.zeros(len(sampled), dtype=torch.bool)
    metrics = off_policy_sums(policy[sampled], behaviour[sampled], none).metrics()
    exact = float((behaviour.exp() * (behaviour - policy)).sum())
    assert metrics["offpolicy/kl"] == pytest.approx(exact, rel=0.02)
    assert metrics["offpolicy/kl_k1"] == pytest.approx(exact, rel=0.02)


def test_without_behaviour_logprobs_there_is_nothing_to_report() -> None:
    sums = off_policy_sums(torch.zeros(2), torch.full((2,), math.nan), torch.zeros(2, dtype=torch.bool))
    assert sums == OffPolicySums()
    assert set(sums.metrics()) == set(off_policy_sums(torch.zeros(2), torch.zeros(2), torch.zeros(2).bool()).metrics())
    assert set(sums.metrics().values()) == {None}
