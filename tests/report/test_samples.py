"""Tokens with the version and the gap that each has; text of a model is text, whatever it wrote."""

from __future__ import annotations

import re
from typing import Any

import pytest

from asyncrl.report import samples

SAMPLE: dict[str, Any] = {
    "step": 7,
    "task": 3,
    "prompt": "2+2",
    "completion": "abcd",
    "tokens": ["a", "b", "c", "d"],
    "versions": [5, 5, 6, -1],
    "gaps": [0.004, 0.004, 0.3, None],
    "reward": 1.0,
}


def pieces(sample: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(classes, tip, text) of the completion."""
    return re.findall(r'<span class="([^"]*)" title="([^"]*)">([^<]*)</span>', samples.html([sample]))


def test_each_token_has_both_colours() -> None:
    assert pieces(SAMPLE) == [
        ("c0 g0", "version 5, tokens 0 to 1, gap 0.004 0.004", "ab"),
        ("c1 g3", "version 6, token 2, gap 0.3", "c"),
        ("gx", "not sampled, token 3", "d"),
    ]
    assert "mean gap 0.103" in samples.html([SAMPLE])


@pytest.mark.parametrize(
    ("gap", "colour"), [(0.0, "g0"), (0.01, "g1"), (0.049, "g1"), (0.05, "g2"), (0.2, "g3"), (0.99, "g3"), (1.0, "g4")]
)
def test_the_colour_of_a_gap(gap: float, colour: str) -> None:
    assert pieces({**SAMPLE, "gaps": [gap] * 4})[0][0] == f"c0 {colour}"


@pytest.mark.parametrize("gaps", [None, [0.1], "none", [None] * 4])
def test_one_without_gaps_says_so_and_has_its_versions(gaps: Any) -> None:
    html = samples.html([{**SAMPLE, "gaps": gaps}])
    assert "no gaps: it was not trained" in html
    assert [text for _, _, text in pieces({**SAMPLE, "gaps": gaps})] == ["ab", "c", "d"]


@pytest.mark.parametrize("versions", [None, [5], ["x"] * 4, [[5, 0, 2], [6, 2, 4]]])
def test_versions_that_do_not_fit_leave_plain_text(versions: Any) -> None:
    html = samples.html([{**SAMPLE, "versions": versions}])
    assert ">abcd</div>" in html


def test_what_a_model_wrote_is_escaped() -> None:
    evil = "<script>alert(1)</script>\"'&"
    html = samples.html([{**SAMPLE, "prompt": evil, "task": evil, "tokens": [evil] * 4, "completion": evil}])
    assert "<script" not in html
    assert html.count("&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#x27;&amp;") >= 4
    assert "<script" not in samples.html([{**SAMPLE, "tokens": None, "completion": evil}])


def test_what_the_reward_logged_is_shown() -> None:
    html = samples.html([{**SAMPLE, "notes": {"extracted": "<8>"}}])
    assert "<dt>extracted</dt><dd>&lt;8&gt;</dd>" in html
    assert "extracted" not in samples.html([{**SAMPLE, "notes": "not a table"}])


def test_of_a_step_the_one_that_passed_the_model_is_chosen_then_the_one_with_most_versions() -> None:
    bare = {k: v for k, v in SAMPLE.items() if k != "gaps"}
    first = [{**bare, "versions": [4, 5, 6, 7]}, SAMPLE]
    second = [{**SAMPLE, "step": 8, "versions": [5] * 4}, {**SAMPLE, "step": 8, "task": 9}]
    assert [s["task"] for s in samples.choose(first + second)] == [3, 9]
    assert "gaps" in samples.choose(first)[0]


def test_long_texts_are_cut() -> None:
    html = samples.html([{**SAMPLE, "tokens": ["x" * 5000, "y" * 5000, "z", "z"], "prompt": "p" * 9000}])
    assert html.count(" … (cut)") == 2
    assert len(html) < 15_000


def test_steps_are_spread_from_first_to_last() -> None:
    assert samples.spread([*range(100)]) == [0, 25, 50, 74, 99]
    assert samples.spread([3]) == [3]
    assert samples.spread([]) == []


def test_a_conversation_is_shown_turn_by_turn() -> None:
    tokens, versions = ["call", "ing", "\n408", "it is", " 408"], [3, 3, -1, 3, 4]
    shown = samples.html([{"step": 1, "reward": 1.0, "prompt": "p", "tokens": tokens, "versions": versions}])
    blocks = re.findall(r'<div class="(turn|read)"><span class="who">([\w ]+)</span>(.*?)</div>', shown, re.DOTALL)
    texts = [(kind, who, re.sub("<[^>]*>", "", spans)) for kind, who, spans in blocks]
    assert texts == [("turn", "turn 1", "calling"), ("read", "read", "\n408"), ("turn", "turn 2", "it is 408")]


def test_one_turn_is_no_conversation() -> None:
    assert "who" not in samples.html([{"step": 1, "reward": 1.0, "tokens": ["a", "b"], "versions": [1, 2]}])
