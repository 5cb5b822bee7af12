"""The log-probs of a chunked head against autograd over the whole logits; the global token weights against sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms import logprobs
from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.logprobs import Head, head_logprobs


def reference(head: Head, hidden: torch.Tensor, targets: torch.Tensor, temperature: float) -> tuple[torch.Tensor, ...]:
    """By torch.distributions, over all logits."""
    logits = torch.nn.functional.linear(hidden, head.weight, head.bias) * head.scale
    if head.cap is not None:
        logits = head.cap * torch.tanh(logits / head.cap)
    distribution = torch.distributions.Categorical(logits=logits / temperature)
    return distribution.log_prob(targets), distribution.entropy()


@pytest.mark.parametrize("edge", [1024, 4, 1])
@pytest.mark.parametrize(("temperature", "scale", "cap"), [(1.0, 1.0, None), (0.7, 0.25, None), (1.3, 2.0, 3.0)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_equal_autograd(
    monkeypatch: pytest.MonkeyPatch,
    edge: int,
    temperature: float,
    scale: float,
    cap: float | None,
    with_bias: bool,
) -> None:
    monkeypatch.setitem(logprobs._EDGE, "cpu", edge)
    torch.manual_seed(0)
    hidden, weight = (2 * torch.randn(9, 5)).requires_grad_(), torch.randn(31, 5, requires_grad=True)
    bias = torch.randn(31, requires_grad=True) if with_bias else None
    head, targets, upstream = Head(weight, bias, scale, cap), torch.randint(0, 31, (9,)), torch.randn(9)
    leaves = [x for x in (hidden, weight, bias) if x is not None]
    values, entropies = head_logprobs(head, hidden, targets, temperature, torch.float32)
    gradients = torch.autograd.grad(values, leaves, upstream)
    expected, expected_entropies = reference(head, hidden, targets, temperature)
    torch.testing.assert_close(values, expected)
    torch.testing.assert_close(entropies, expected_entropies)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, leaves, upstream), rtol=1e-4, atol=1e-5)


def test_frozen_weights_get_no_gradient() -> None:
    hidden, weight = torch.randn(3, 5, requires_grad=True), torch.randn(31, 5)
    head_logprobs(Head(weight), hidden, torch.tensor([0, 1, 2]), 1.0, torch.float32)[0].sum().backward()
    assert hidden.grad is not None
    assert weight.grad is None


def test_bf16_products_are_reduced_in_fp32() -> None:
    torch.manual_seed(0)
    hidden, weight, targets = torch.randn(4, 64), torch.randn(1000, 64), torch.tensor([0, 1, 2, 3])
    products = (hidden.bfloat16() @ weight.bfloat16().T).double()
    expected = torch.log_softmax(products, -1).gather(-1, targets[:, None])[:, 0]
    values = head_logprobs(Head(weight), hidden, targets, 1.0, torch.bfloat16)[0]
    torch.testing.assert_close(values.double(), expected, rtol=1e-5, atol=1e-5)


def test_huge_logits_are_finite_and_certain() -> None:
    head, hidden = Head(torch.tensor([[1e6], [-1e6]])), torch.ones(1, 1, requires_grad=True)
    value, entropy = head_logprobs(head, hidden, torch.tensor([1]), 1.0, torch.float32)
    value.sum().backward()
    assert value.item() == -2e6
    assert entropy.item() == 0.0
    assert hidden.grad is not None
    assert hidden.grad.item() == -2e6


@pytest.mark.parametrize("edge", [1024, 1])
def test_a_token_that_cannot_be(monkeypatch: pytest.MonkeyPatch, edge: int) -> None:
    monkeypatch.setitem(logprobs._EDGE, "cpu", edge)
    head = Head(torch.ones(3, 1), torch.tensor([-1e30, 0.0, 0.0]))
    value, entropy = head_logprobs(head, torch.ones(1, 1), torch.tensor([1]), 1.0, torch.float32)
    assert value.item() == pytest.approx(-0.6931472)
    assert entropy.item() == pytest.approx(0.6931472)


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(1, 5))
def test_weights_do_not_depend_on_the_split(lengths: list[int], cut: int) -> None:
    def weights(part: list[int], mode: str) -> list[float]:
        segments = torch.repeat_interleave(torch.arange(len(part)), torch.tensor(part))
        return token_weights(
            segments,
            torch.tensor(part),
            mode=mode,
            num_tokens=sum(lengths),
            num_sequences=len(lengths),
            constant_length=10,
        ).tolist()

    for mode, total in (("token", 1.0), ("sequence", 1.0), ("constant", sum(lengths) / (10 * len(lengths)))):
        whole = weights(lengths, mode)
        parts = [w for part in (lengths[:cut], lengths[cut:]) if part for w in weights(part, mode)]
        assert whole == pytest.approx(parts)
        assert sum(whole) == pytest.approx(total, rel=1e-5)
