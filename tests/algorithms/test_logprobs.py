"""The fused log-probs and the global token weights against autograd and plain sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.aggregation import token_weights
from asyncrl.algorithms.logprobs import token_logprobs


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_value_and_gradient_equal_autograd(temperature: float) -> None:
    torch.manual_seed(0)
    logits = (5 * torch.randn(9, 31)).requires_grad_()
    targets, upstream = torch.randint(0, 31, (9,)), torch.randn(9)
    ours, _ = token_logprobs(logits, targets, temperature)
    ours.backward(upstream)
    gradient, logits.grad = logits.grad.clone(), None
    reference = torch.log_softmax(logits / temperature, -1).gather(-1, targets[:, None]).squeeze(-1)
    reference.backward(upstream)
    torch.testing.assert_close(ours, reference)
    torch.testing.assert_close(gradient, logits.grad)


def test_bf16_logits_are_reduced_in_fp32() -> None:
    logits = torch.randn(4, 1000).bfloat16()
    targets = torch.tensor([0, 1, 2, 3])
    reference = torch.log_softmax(logits.double(), -1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(token_logprobs(logits, targets, 1.0)[0].double(), reference, rtol=1e-5, atol=1e-5)


def test_huge_logits_are_finite() -> None:
    assert token_logprobs(torch.tensor([[1e4, -1e4]]), torch.tensor([1]), 1.0)[0].item() == -2e4


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


def test_entropies_are_those_of_the_distribution() -> None:
    logits = torch.randn(700, 31, generator=torch.Generator().manual_seed(0)) * 3
    entropies = token_logprobs(logits, torch.zeros(700, dtype=torch.int64), 0.7)[1]
    reference = torch.distributions.Categorical(logits=logits.double() / 0.7).entropy()
    torch.testing.assert_close(entropies.double(), reference, rtol=1e-5, atol=1e-5)
    certain = token_logprobs(torch.tensor([[1e4, -1e4]]), torch.tensor([1]), 1.0)[1]
    assert certain.item() == 0.0
