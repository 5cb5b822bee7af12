"""Every loss and its gradient against a second implementation, one trajectory at a time, in plain Python floats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from asyncrl.registry import LOSSES

Trajectory = dict[str, list[float]]
Slopes = list[list[float]]

LO, HI, DUAL, CAP, TAU, BETA = 0.2, 0.28, 1.5, 1.3, 0.1, 0.1
DELTA, DELTA_OF_MEAN = 0.06, 0.6
PER_TOKEN = ("logprobs", "behaviour_logprobs", "prox_logprobs", "advantages", "ref_logprobs")
ON_EVERY_TOKEN = ("rewards", "log_z", "partner", "side")
CHOSEN = ("cov_band", "cov_top")
CLIPPED = ("ppo", "decoupled_ppo", "tis", "cispo", "topr", "gspo", "m2po", "reinforce", "kimi")
CLIPPED += ("gmpo", "dppo_tv", "dppo_kl", "flash_reinforce", "kl_cov")


def surrogate(r: float, a: float, dual: float = math.inf) -> tuple[float, float]:
    """PPO's loss of a ratio, and its derivative by the ratio."""
    if a >= 0:
        return (-r * a, -a) if r <= 1 + HI else (-(1 + HI) * a, 0.0)
    if r > dual:
        return -dual * a, 0.0
    return (-r * a, -a) if r >= 1 - LO else (-(1 - LO) * a, 0.0)


def of_token(
    loss: Callable[..., tuple[float, float]],
) -> Callable[[Trajectory], tuple[list[float], Callable[..., Any]]]:
    """A trajectory's losses, and what upstream weights make of its gradient, from (loss, slope) of one token."""

    def of_trajectory(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
        pairs = [loss(*x) for x in zip(*(t[name] for name in PER_TOKEN[:4]), strict=True)]
        return [p[0] for p in pairs], lambda w: [x * p[1] for x, p in zip(w, pairs, strict=True)]

    return of_trajectory


def ppo(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    r = math.exp(lp - prox)
    loss, slope = surrogate(r, a, DUAL)
    return loss, slope * r


def decoupled(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    w = math.exp(prox - beh)
    loss, slope = ppo(lp, beh, prox, a)
    return w * loss, w * slope


def weighted(weight: Callable[[float, float], float]) -> Callable[..., tuple[float, float]]:
    """REINFORCE with a constant weight of ratio and advantage."""

    def loss(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
        w = weight(math.exp(lp - prox), a)
        return -w * a * lp, -w * a

    return loss


def kimi(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    return -a * lp + TAU / 2 * (lp - prox) ** 2, -a + TAU * (lp - prox)


def m2po(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
    return -math.exp(lp - prox) * a, -math.exp(lp - prox) * a


def gspo(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
    n = len(t["logprobs"])
    s = math.exp(math.fsum(x - y for x, y in zip(t["logprobs"], t["prox_logprobs"], strict=True)) / n)
    pairs = [surrogate(s, a) for a in t["advantages"]]
    return [p[0] for p in pairs], lambda w: [math.fsum(x * p[1] for x, p in zip(w, pairs, strict=True)) * s / n] * n


def geometric(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
    """GMPO: the geometric mean of clipped ratios. A clipped token has no slope of its own, and all share the mean."""
    n, logs, free = len(t["logprobs"]), [], []
    for lp, old, a in zip(t["logprobs"], t["prox_logprobs"], t["advantages"], strict=True):
        bounded = min(lp - old, HI) if a > 0 else max(lp - old, -LO)
        logs.append(bounded)
        free.append(bounded == lp - old)
    s = math.prod(math.exp(x / n) for x in logs)

    def slopes(w: list[float]) -> list[float]:
        total = math.fsum(-x * a for x, a in zip(w, t["advantages"], strict=True))
        return [total * s / n if is_free else 0.0 for is_free in free]

    return [-s * a for a in t["advantages"]], slopes


def two_events(lp: float, old: float) -> tuple[float, float]:
    """(p, q) as the KL of two events needs them, inside (0, 1)."""
    return min(max(math.exp(old), 1e-6), 1 - 1e-6), min(max(math.exp(lp), 1e-6), 1 - 1e-6)


def kl_of_two(lp: float, old: float) -> float:
    p, q = two_events(lp, old)
    return p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))


def divergent(divergence: Callable[[float, float], float]) -> Callable[..., tuple[float, float]]:
    """DPPO: truncated importance sampling on the tokens that stay inside, or come back to, the trust region."""

    def loss(lp: float, beh: float, prox: float, a: float) -> tuple[float, float]:
        away = a * (lp - prox) > 0
        w = 0.0 if away and divergence(lp, prox) > DELTA else min(math.exp(lp - prox), CAP)
        return -w * a * lp, -w * a

    return loss


def flash(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
    pairs = list(zip(t["logprobs"], t["prox_logprobs"], strict=True))
    near = math.fsum(kl_of_two(*pair) for pair in pairs) / len(pairs) <= DELTA_OF_MEAN
    weights = [math.exp(lp - old) * a if near else 0.0 for (lp, old), a in zip(pairs, t["advantages"], strict=True)]
    losses = [-w * lp for w, lp in zip(weights, t["logprobs"], strict=True)]
    return losses, lambda up: [-x * w for x, w in zip(up, weights, strict=True)]


def with_chosen(name: str, loss: Callable[..., tuple[float, float]]) -> Callable[..., Any]:
    """A token's (loss, slope), which also depends on whether it was chosen."""

    def of_trajectory(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
        pairs = [loss(*x) for x in zip(*(t[key] for key in (*PER_TOKEN[:4], name)), strict=True)]
        return [p[0] for p in pairs], lambda w: [x * p[1] for x, p in zip(w, pairs, strict=True)]

    return of_trajectory


def clip_cov(lp: float, beh: float, prox: float, a: float, chosen: bool) -> tuple[float, float]:
    r = math.exp(lp - prox)
    loss, slope = surrogate(r, a)
    return (0.0, 0.0) if chosen else (loss, slope * r)


def kl_cov(lp: float, beh: float, prox: float, a: float, chosen: bool) -> tuple[float, float]:
    loss, slope = m2po(lp, beh, prox, a)
    return (loss + BETA * abs(lp - prox), slope + BETA * math.copysign(1, lp - prox)) if chosen else (loss, slope)


def whole(loss: Callable[..., tuple[float, float]]) -> Callable[[Trajectory], tuple[list[float], Callable[..., Any]]]:
    """From (loss, slope) of a trajectory's sum of log pi - log pi_ref."""

    def of_trajectory(t: Trajectory) -> tuple[list[float], Callable[..., Any]]:
        n = len(t["logprobs"])
        delta = math.fsum(x - y for x, y in zip(t["logprobs"], t["ref_logprobs"], strict=True))
        value, slope = loss(delta, *(t[name][0] for name in ON_EVERY_TOKEN))
        return [value] * n, lambda w: [math.fsum(w) * slope] * n

    return of_trajectory


def balance(delta: float, reward: float, log_z: float, partner: float, side: float) -> tuple[float, float]:
    x = log_z + delta - reward / BETA
    return x * x, 2 * x


def dpo(delta: float, reward: float, log_z: float, partner: float, side: float) -> tuple[float, float]:
    x = BETA * side * (delta - partner)
    loss = math.log1p(math.exp(-x)) if x > 0 else -x + math.log1p(math.exp(x))
    return loss, -2 * BETA * side / (1 + math.exp(x))


def ipo(delta: float, reward: float, log_z: float, partner: float, side: float) -> tuple[float, float]:
    x = side * (delta - partner) - 1 / (2 * BETA)
    return x * x, 4 * side * x


BY_HAND: dict[str, Callable[[Trajectory], tuple[list[float], Callable[..., Any]]]] = {
    "ppo": of_token(ppo),
    "decoupled_ppo": of_token(decoupled),
    "reinforce": of_token(weighted(lambda r, a: 1.0)),
    "tis": of_token(weighted(lambda r, a: min(r, CAP))),
    "cispo": of_token(weighted(lambda r, a: min(max(r, 1 - LO), 1 + HI))),
    "topr": of_token(weighted(lambda r, a: 1.0 if a > 0 else min(r, 1.0))),
    "kimi": of_token(kimi),
    "m2po": of_token(m2po),
    "gspo": gspo,
    "sft": of_token(lambda lp, beh, prox, a: (-lp, -1.0)),
    "gmpo": geometric,
    "dppo_tv": of_token(divergent(lambda lp, old: abs(math.exp(lp) - math.exp(old)))),
    "dppo_kl": of_token(divergent(kl_of_two)),
    "flash_reinforce": flash,
    "clip_cov": with_chosen("cov_band", clip_cov),
    "kl_cov": with_chosen("cov_top", kl_cov),
    "trajectory_balance": whole(balance),
    "dpo": whole(dpo),
    "ipo": whole(ipo),
}


def test_every_loss_has_a_second_implementation() -> None:
    assert set(BY_HAND) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient(name: str, batch: dict[str, Any]) -> None:
    logprobs = batch["logprobs"].requires_grad_()
    upstream = torch.rand(len(logprobs), dtype=torch.float64) + 0.5
    out = LOSSES[name].load()(
        **batch, dual_clip=DUAL, tis_cap=CAP, tau=TAU, delta=DELTA_OF_MEAN if name == "flash_reinforce" else DELTA
    )
    assert out.per_token.dtype == torch.float64
    (out.per_token * upstream).sum().backward()
    expected, gradient = torch.zeros_like(upstream), torch.zeros_like(upstream)
    for segment in range(batch["num_segments"]):
        chosen = (batch["segments"] == segment) & batch["mask"]
        if chosen.any():
            t = {k: batch[k][chosen].tolist() for k in (*PER_TOKEN, *ON_EVERY_TOKEN, *CHOSEN)}
            values, slopes = BY_HAND[name](t)
            expected[chosen] = torch.tensor(values, dtype=torch.float64)
            gradient[chosen] = torch.tensor(slopes(upstream[chosen].tolist()), dtype=torch.float64)
    torch.testing.assert_close(out.per_token.detach(), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(logprobs.grad, gradient, rtol=1e-9, atol=1e-12)
    assert expected[batch["mask"]].any()
    assert not (out.clipped & ~batch["mask"]).any()


@pytest.mark.parametrize("name", ["ppo", "decoupled_ppo", "gspo"])
def test_clipped_tokens_are_those_without_a_gradient(name: str, batch: dict[str, Any]) -> None:
    logprobs = batch["logprobs"].requires_grad_()
    advantages = torch.ones_like(logprobs)
    advantages[batch["segments"] == 4] = -1.0
    out = LOSSES[name].load()(**{**batch, "advantages": advantages}, dual_clip=DUAL)
    out.per_token.sum().backward()
    still = (logprobs.grad == 0) & batch["mask"]
    assert torch.equal(out.clipped, still)
    assert still.any()


@pytest.mark.parametrize(
    ("name", "log_ratios", "advantages", "changed"),
    [
        ("tis", [-1.0, 0.5, 1.0], [1.0, -1.0, 1.0], [False, True, True]),
        ("cispo", [-1.0, 0.1, 1.0], [1.0, 1.0, 1.0], [True, False, True]),
        ("topr", [1.0, 1.0, -1.0], [1.0, -1.0, -1.0], [False, True, False]),
        ("reinforce", [9.0, -9.0, 0.0], [1.0, -1.0, 1.0], [False, False, False]),
    ],
)
def test_truncated_weights_are_reported(
    name: str, log_ratios: list[float], advantages: list[float], changed: list[bool]
) -> None:
    old = torch.full((3,), -10.0)
    out = LOSSES[name].load()(old + torch.tensor(log_ratios), old, old, torch.tensor(advantages), torch.ones(3).bool())
    assert out.clipped.tolist() == changed


@pytest.mark.parametrize("name", CLIPPED)
def test_on_policy_gradient_is_the_policy_gradient(name: str, batch: dict[str, Any]) -> None:
    logprobs, mask = batch["logprobs"].requires_grad_(), batch["mask"]
    old = logprobs.detach().clone()
    advantages = torch.randn(batch["num_segments"], dtype=torch.float64)[batch["segments"]]
    changes = {"behaviour_logprobs": old, "prox_logprobs": old, "advantages": advantages}
    out = LOSSES[name].load()(**{**batch, **changes}, dual_clip=3.0)
    out.per_token.sum().backward()
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages, 0.0))
    assert not out.clipped.any()


@pytest.mark.parametrize("name", CLIPPED)
def test_only_the_policy_gets_a_gradient(name: str, batch: dict[str, Any]) -> None:
    others = ("behaviour_logprobs", "prox_logprobs", "advantages")
    for key in ("logprobs", *others):
        batch[key].requires_grad_()
    LOSSES[name].load()(**batch).per_token.sum().backward()
    assert batch["logprobs"].grad is not None
    assert [batch[key].grad for key in others] == [None] * 3


@pytest.mark.parametrize(("name", "inside"), [("dppo_tv", 0.14), ("dppo_kl", 0.049)])
def test_a_rare_token_may_change_its_ratio_and_a_common_one_may_not(name: str, inside: float) -> None:
    """What DPPO is for: the ratio of the first is 20, that of the second 0.8, below no bound of PPO's."""
    old, new = torch.tensor([1e-4, 0.99]).log(), torch.tensor([2e-3, 0.79]).log()
    out = LOSSES[name].load()(new, old, old, torch.tensor([1.0, -1.0]), torch.ones(2).bool(), delta=inside)
    assert out.clipped.tolist() == [False, True]
    assert out.per_token[1] == 0
    back = LOSSES[name].load()(new, old, old, torch.tensor([-1.0, 1.0]), torch.ones(2).bool(), delta=inside)
    assert not back.clipped.any()


def test_flash_reinforce_rejects_whole_trajectories(batch: dict[str, Any]) -> None:
    out = LOSSES["flash_reinforce"].load()(**batch, delta=DELTA_OF_MEAN)
    fates = {}
    for segment in range(batch["num_segments"]):
        chosen = (batch["segments"] == segment) & batch["mask"]
        if chosen.any():
            assert len(set(out.clipped[chosen].tolist())) == 1
            fates[segment] = bool(out.clipped[chosen][0])
    assert set(fates.values()) == {True, False}
