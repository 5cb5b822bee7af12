"""Verifying pushes: which engines are compared when, and what counts as rounding."""

from __future__ import annotations

from typing import Any

import pytest

from asyncrl.recipe.schema import Recipe
from asyncrl.weights.verify import Verification, WeightMismatch, probe_tokens


def verification(dtype: str = "float32", precision: str = "fp32", *, always: bool = False) -> Verification:
    keys: dict[str, Any] = {"model": "x", "data": {"path": "x"}, "reward": "x", "max_steps": 9}
    keys |= {"weights": {"dtype": dtype, "verify": always}, "trainer": {"precision": precision}}
    return Verification(Recipe.model_validate(keys))


def loaded(made: Verification, *names: str, apart: float = 0.0) -> Verification:
    made.trainer_loaded([-2.0, -4.0])
    for name in names:
        made.engine_loaded(name, [-2.0 - apart, -4.0 + apart])
    return made


def test_an_engine_is_compared_at_the_first_version_that_both_have_scored() -> None:
    made = loaded(verification(), "one", "other")
    assert made.wanted
    assert made.of(["one", "other", "none"]) == ["one", "other"]
    made.expect(1, None)  # that step began before it was wanted
    assert made.compare("one", 1, [-1.0, -1.0]) is None
    made.expect(2, [-2.5, -3.5])
    assert made.compare("one", 2, [-2.5, -3.5]) == 0.0
    assert made.of(["one", "other"]) == ["other"]
    assert made.wanted
    assert made.compare("other", 2, [-2.5, -3.5]) == 0.0
    assert not made.wanted
    # In its place another is started, which nothing is known of.
    made.engine_loaded("other", [-2.0, -4.0])
    assert made.of(["one", "other"]) == ["other"]
    assert made.wanted


def test_always_is_at_every_version() -> None:
    made = loaded(verification(always=True), "one")
    for version in (1, 2, 3):
        made.expect(version, [-2.0, -4.0])
        assert made.compare("one", version, [-2.0, -4.0]) == 0.0
        assert made.wanted
        assert made.of(["one"]) == ["one"]


@pytest.mark.parametrize("always", [False, True])
def test_what_holds_no_weights_or_scores_nothing_is_not_compared(always: bool) -> None:
    made = verification(always=always)
    made.engine_loaded("simulated", None)
    assert not made.wanted
    assert made.of(["simulated"]) == []


def test_other_weights_than_those_sent_end_in_a_sentence() -> None:
    made = loaded(verification(), "one", apart=1e-5)
    made.expect(1, [-2.0, -4.0])
    with pytest.raises(WeightMismatch, match=r"one .* version 1 .* differ by 0\.1 nats a token, where 1e-05 before"):
        made.compare("one", 1, [-2.1, -4.1])
    assert made.of(["one"]) == ["one"]


def test_not_a_number_is_no_agreement() -> None:
    made = loaded(verification(), "one")
    made.expect(1, [-2.0, -4.0])
    with pytest.raises(WeightMismatch):
        made.compare("one", 1, [float("nan"), -4.0])


@pytest.mark.parametrize("formats", [("bfloat16", "fp32"), ("float32", "bf16")])
def test_either_side_in_bf16_rounds(formats: tuple[str, str]) -> None:
    made = loaded(verification(*formats), "one")
    made.expect(1, [-2.0, -4.0])
    assert made.compare("one", 1, [-2.02, -4.02]) == pytest.approx(0.02)


def test_what_differed_before_the_first_push_may_differ_after_it() -> None:
    """A quantised engine; and log-probs that have become larger round more coarsely."""
    made = loaded(verification(), "one", apart=0.1)
    made.expect(1, [-2.0, -4.0])
    made.expect(2, [-20.0, -40.0])
    assert made.compare("one", 1, [-2.2, -4.2]) == pytest.approx(0.2)
    assert made.compare("one", 2, [-22.0, -42.0]) == pytest.approx(2.0)
    with pytest.raises(WeightMismatch):
        made.compare("one", 1, [-4.0, -6.0])


@pytest.mark.parametrize(("max_tokens", "expected"), [(8, 7), (1000, 64)])
def test_the_text_fits_the_engine(tiny_model: Any, max_tokens: int, expected: int) -> None:
    from asyncrl.models import load_tokenizer

    assert len(probe_tokens(load_tokenizer(str(tiny_model)), max_tokens)) == expected
