"""No loss, weight or estimate is NaN or infinite, in value or gradient, for any input that can happen."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch

from asyncrl.algorithms import corrections, kl, masks
from asyncrl.registry import LOSSES

LOGPROBS = [-1e4, -1e-4, -0.7]
ADVANTAGES = [1.0, -1.0, 0.0]


def extremes(dtype: torch.dtype) -> dict[str, Any]:
    """Every mix of log-ratios of 0 and +-1e4 and of signs of the advantage, one token each, in 9 trajectories of 9."""
    rows = list(itertools.product(LOGPROBS, LOGPROBS, LOGPROBS, ADVANTAGES))
    lp, beh, prox, a = (torch.tensor(column).to(dtype) for column in zip(*rows, strict=True))
    n = len(rows)
    return {
        "logprobs": lp,
        "behaviour_logprobs": beh,
        "prox_logprobs": prox,
        "advantages": a,
        "ref_logprobs": prox,
        "rewards": torch.ones(n),
        "log_z": torch.full((n,), 1e4),
        "partner": torch.full((n,), -1e4),
        "side": torch.ones(n),
        "cov_band": torch.arange(n) % 4 == 0,
        "cov_top": torch.arange(n) % 4 == 0,
        "segments": torch.arange(n) // 9 * 2,
        "num_segments": n // 9 * 2 + 1,
        "beta": 0.004,
        "dual_clip": 3.0,
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("masked", ["nothing", "a third", "everything"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name: str, masked: str, dtype: torch.dtype) -> None:
    batch = extremes(dtype)
    n = len(batch["advantages"])
    mask = {"nothing": torch.ones(n), "a third": torch.arange(n) % 3, "everything": torch.zeros(n)}[masked].bool()
    for key in ("logprobs", "behaviour_logprobs", "prox_logprobs", "ref_logprobs", "advantages"):
        batch[key] = torch.where(mask, batch[key], math.nan)
    logprobs = batch["logprobs"].requires_grad_()
    out = LOSSES[name].load()(**batch, mask=mask)
    out.per_token.sum().backward()
    assert out.per_token.dtype == torch.float32
    assert torch.isfinite(out.per_token).all()
    assert torch.isfinite(logprobs.grad).all()
    assert not out.per_token[~mask].any()
    assert not logprobs.grad[~mask].any()
    assert not out.clipped[~mask].any()


@pytest.mark.parametrize("name", LOSSES)
def test_no_tokens_at_all(name: str) -> None:
    batch = {k: v[:0] if isinstance(v, torch.Tensor) else v for k, v in extremes(torch.float32).items()}
    out = LOSSES[name].load()(**batch, mask=torch.zeros(0, dtype=torch.bool))
    assert out.per_token.shape == out.clipped.shape == (0,)


@pytest.mark.parametrize("name", LOSSES)
def test_bf16_inputs_are_reduced_in_fp32(name: str, batch: dict[str, Any]) -> None:
    low = {k: v.bfloat16() if k.endswith(("logprobs", "advantages")) else v for k, v in batch.items()}
    high = {k: v.float() if k.endswith(("logprobs", "advantages")) else v for k, v in low.items()}
    assert torch.equal(LOSSES[name].load()(**low).per_token, LOSSES[name].load()(**high).per_token)


@pytest.mark.parametrize("name", LOSSES)
def test_fp32_is_close_to_fp64(name: str, batch: dict[str, Any]) -> None:
    low = {k: v.float() if isinstance(v, torch.Tensor) and v.dtype == torch.float64 else v for k, v in batch.items()}
    expected = LOSSES[name].load()(**batch).per_token
    torch.testing.assert_close(LOSSES[name].load()(**low).per_token.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_corrections_masks_and_estimates(dtype: torch.dtype) -> None:
    batch = extremes(dtype)
    lp, beh, advantages = batch["logprobs"].requires_grad_(), batch["behaviour_logprobs"], batch["advantages"]
    where = {"segments": batch["segments"], "num_segments": batch["num_segments"]}
    for mask in (torch.ones_like(lp).bool(), torch.zeros_like(lp).bool()):
        for level in ("token", "sequence", "geometric"):
            weights = corrections.importance_weights(lp, beh, level=level, **where, mask=mask)
            assert torch.isfinite(weights).all()
            assert not weights.requires_grad
        corrections.reject_by_kl(lp, beh, **where, mask=mask, limit=0.1)
    assert not masks.m2po_mask(lp, beh, advantages).all()
    versions = torch.arange(len(lp)) % 4
    assert torch.isfinite(corrections.loglinear_prox(lp, beh, versions, 2, 3)).all()
    for kind in ("k1", "k2", "k3"):
        lp.grad = None
        estimate = kl.kl_estimate(lp, beh, kind)
        estimate.sum().backward()
        assert estimate.dtype == torch.float32
        assert torch.isfinite(estimate).all()
        assert torch.isfinite(lp.grad).all()
