"""Trajectory balance and online pairs: the identities of the papers, and gradients through any packing."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.segments import segment_mean, segment_sum
from asyncrl.algorithms.sequence import choose_pair, log_partition
from asyncrl.registry import LOSSES

DOUBLE = torch.float64


def call(name: str, logprobs: torch.Tensor, segments: torch.Tensor, num_segments: int, **columns: Any) -> torch.Tensor:
    """The loss under aggregation `sequence`: a mean over trajectories."""
    unused = torch.full_like(logprobs, math.nan).detach()
    out = LOSSES[name].load()(
        logprobs,
        unused,
        unused,
        unused,
        torch.ones_like(segments, dtype=torch.bool),
        segments=segments,
        num_segments=num_segments,
        **columns,
    )
    weights = token_weights(
        segments,
        torch.bincount(segments, minlength=num_segments),
        mode="sequence",
        num_tokens=len(segments),
        num_sequences=int(segments.unique().numel()),
        constant_length=1,
    )
    return (out.per_token * weights).sum()


def of_lengths(lengths: list[int]) -> torch.Tensor:
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


# -- segments


def test_segments_against_a_loop(batch: dict[str, Any]) -> None:
    x, segments, mask, m = batch["logprobs"].requires_grad_(), batch["segments"], batch["mask"], batch["num_segments"]
    means = segment_mean(x, segments, m, mask)
    sums, plain = segment_sum(x, segments, m).tolist(), segment_mean(x, segments, m).tolist()
    for i in range(m):
        here, counted = x[segments == i].tolist(), x[(segments == i) & mask].tolist()
        assert sums[i] == pytest.approx(math.fsum(here))
        assert plain[i] == pytest.approx(math.fsum(here) / max(len(here), 1))
        assert means.tolist()[i] == pytest.approx(math.fsum(counted) / max(len(counted), 1))
    means.sum().backward()
    counts = torch.bincount(segments[mask], minlength=m).clamp(min=1)
    torch.testing.assert_close(x.grad, torch.where(mask, 1 / counts[segments].double(), 0.0))


def test_segment_sum_of_bf16_is_fp32() -> None:
    ones = torch.ones(1000, dtype=torch.bfloat16)
    assert segment_sum(ones, torch.zeros(1000, dtype=torch.int64), 2).tolist() == [1000.0, 0.0]


# -- trajectory balance


@given(st.integers(0, 10**6), st.integers(1, 8), st.floats(0.004, 2))
def test_balance_is_a_variance_and_its_gradient_a_policy_gradient(seed: int, k: int, beta: float) -> None:
    torch.manual_seed(seed)
    segments = of_lengths(torch.randint(1, 6, (k,)).tolist())
    logprobs = -torch.rand(len(segments), dtype=DOUBLE)
    ref = -torch.rand(len(segments), dtype=DOUBLE)
    rewards = torch.rand(k, dtype=DOUBLE)
    logprobs.requires_grad_()
    sums, refs = segment_sum(logprobs, segments, k), segment_sum(ref, segments, k)
    log_z = log_partition(sums, refs, rewards, beta)
    assert not log_z.requires_grad
    columns = {"ref_logprobs": ref, "rewards": rewards[segments], "log_z": log_z.expand(len(segments)), "beta": beta}
    loss = call("trajectory_balance", logprobs, segments, k, **columns)
    loss.backward()
    delta = (sums - refs).detach()
    # The token weights of the aggregation are float32.
    torch.testing.assert_close(loss.detach(), (rewards / beta - delta).var(correction=0), rtol=1e-6, atol=1e-9)
    advantage = (rewards - rewards.mean()) - beta * (delta - delta.mean())
    torch.testing.assert_close(logprobs.grad, (-2 / (beta * k) * advantage)[segments], rtol=1e-6, atol=1e-7)


def test_log_partition_without_trajectories_is_zero() -> None:
    assert float(log_partition(torch.zeros(0), torch.zeros(0), torch.zeros(0), 0.1)) == 0.0


def test_tabular_balance_reaches_the_optimum_from_a_fixed_buffer() -> None:
    """Trajectories of two tokens, three choices each, sampled once from neither the policy nor its optimum."""
    torch.manual_seed(0)
    beta, choices = 0.5, torch.cartesian_prod(torch.arange(3), torch.arange(3))
    rewards = torch.rand(9, dtype=DOUBLE)
    ref_first, ref_second = torch.randn(3, dtype=DOUBLE), torch.randn(3, 3, dtype=DOUBLE)
    logits = [torch.zeros(3, dtype=DOUBLE, requires_grad=True), torch.zeros(3, 3, dtype=DOUBLE, requires_grad=True)]

    def tokens(first: torch.Tensor, second: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        a, b = choices[which].T
        return torch.stack([first.log_softmax(-1)[a], second.log_softmax(-1)[a, b]], 1).flatten()

    buffer = torch.cat([torch.arange(9), torch.multinomial(torch.rand(9), 15, replacement=True)])
    k, segments = len(buffer), of_lengths([2] * len(buffer))
    ref = tokens(ref_first, ref_second, buffer)
    optimizer = torch.optim.LBFGS(logits, max_iter=200, line_search_fn="strong_wolfe", tolerance_grad=1e-10)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        logprobs = tokens(*logits, buffer)
        log_z = log_partition(
            segment_sum(logprobs, segments, k), segment_sum(ref, segments, k), rewards[buffer], beta
        ).expand(len(segments))
        columns = {"ref_logprobs": ref, "rewards": rewards[buffer][segments], "log_z": log_z, "beta": beta}
        loss = call("trajectory_balance", logprobs, segments, k, **columns)
        loss.backward()
        return loss

    def probabilities(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return tokens(first, second, torch.arange(9)).view(9, 2).sum(1).exp().detach()

    optimizer.step(closure)
    optimum = probabilities(ref_first, ref_second) * (rewards / beta).exp()
    torch.testing.assert_close(probabilities(*logits), optimum / optimum.sum(), rtol=1e-4, atol=1e-5)


# -- pairs


def pair_loss(name: str, x: torch.Tensor, beta: float) -> torch.Tensor:
    if name == "dpo":
        return -torch.log(1 / (1 + torch.exp(-beta * x)))
    return (x - 1 / (2 * beta)) ** 2


@pytest.mark.parametrize("alone", [False, True], ids=["packed together", "one trajectory per micro-batch"])
@pytest.mark.parametrize("name", ["dpo", "ipo"])
def test_both_views_of_a_pair_add_up_to_its_loss(name: str, alone: bool) -> None:
    torch.manual_seed(1)
    lengths, pairs, beta = [3, 1, 5, 2, 4, 9], [(4, 1), (0, 5), (2, 3)], 0.3
    m, segments = len(lengths), of_lengths(lengths)
    logprobs = (-torch.rand(len(segments), dtype=DOUBLE)).requires_grad_()
    ref = -torch.rand(len(segments), dtype=DOUBLE)
    delta = segment_sum(logprobs - ref, segments, m)
    loss = torch.stack([pair_loss(name, delta[c] - delta[r], beta) for c, r in pairs]).mean()
    (expected,) = torch.autograd.grad(loss, logprobs)

    partner, side = torch.zeros(m, dtype=DOUBLE), torch.zeros(m, dtype=DOUBLE)
    for c, r in pairs:
        partner[c], partner[r], side[c], side[r] = delta[r].detach(), delta[c].detach(), 1.0, -1.0
    columns = {"ref_logprobs": ref, "partner": partner[segments], "side": side[segments]}
    if alone:
        total = torch.zeros((), dtype=DOUBLE)
        for i in range(m):
            own = segments == i
            part = {key: value[own] for key, value in columns.items()}
            total = total + call(name, logprobs[own], segments[own] - i, 1, **part, beta=beta) / m
    else:
        total = call(name, logprobs, segments, m, **columns, beta=beta)
    total.backward()
    torch.testing.assert_close(total, loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(logprobs.grad, expected, rtol=1e-6, atol=1e-12)


@given(st.lists(st.integers(0, 3), max_size=8))
def test_choose_pair(values: list[int]) -> None:
    pair = choose_pair(torch.tensor(values, dtype=torch.float32))
    if len(set(values)) < 2:
        assert pair is None
    else:
        assert pair == (values.index(max(values)), values.index(min(values)))
