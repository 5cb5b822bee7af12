"""Recipes that run and hardly mean it: stale tokens that are trained as if they were fresh."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from asyncrl.cli import main
from asyncrl.recipe.check_algorithm import STALE, doubts
from asyncrl.recipe.load import load

TINY = Path(__file__).parents[2] / "recipes" / "tiny.yaml"
STEPS, REINFORCE = "algorithm.proximal=recompute", "algorithm.loss=reinforce"


def said(*overrides: str) -> list[str]:
    return list(doubts(load(TINY, list(overrides))))


@pytest.mark.parametrize("objective", [STEPS, "algorithm.proximal=loglinear"])
def test_a_ratio_to_the_weights_of_the_step_does_not_see_staleness(objective: str) -> None:
    [sentence] = said("algorithm.preset=grpo", f"max_staleness={STALE}", objective)
    assert re.fullmatch(
        r"max_staleness 4 .* fresh, .* \(proximal .*\) .*; set algorithm\.proximal=behaviour, .*", sentence
    )


def test_what_has_no_ratio_does_not_see_it_either() -> None:
    for objective in (REINFORCE, "algorithm.preset=rloo"):
        [sentence] = said(objective, "max_staleness=6.5")
        assert re.fullmatch(
            r"max_staleness 6\.5 .* loss reinforce has no ratio .*; set algorithm\.loss=topr .*", sentence
        )


@pytest.mark.parametrize(
    "overrides",
    [
        [f"max_staleness={STALE - 1}", STEPS],
        ["max_staleness=8"],
        ["max_staleness=8", "algorithm.preset=grpo_tis"],
        ["max_staleness=8", "algorithm.preset=a3po"],
        ["max_staleness=8", "algorithm.preset=best_of_n"],
        ["max_staleness=8", "algorithm.preset=online_dpo", STEPS],
        ["max_staleness=8", STEPS, "algorithm.second_moment_limit=0.04"],
        ["max_staleness=8", STEPS, "algorithm.reject_kl=0.1"],
        ["max_staleness=8", "algorithm.loss=mine:loss", STEPS],
        ["max_staleness=8", "rollout.engine=simulated"],
    ],
)
def test_nothing_is_said_of_what_is_bounded_or_not_known(overrides: list[str]) -> None:
    assert said("algorithm={}", *overrides) == []


def test_the_cure_is_one() -> None:
    assert said("max_staleness=8", REINFORCE, "algorithm.loss=topr", "algorithm.proximal=behaviour") == []


def test_a_dry_run_says_it(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TINY.parents[1])
    assert main(["train", str(TINY), "max_staleness=8", STEPS, "algorithm.correction=none", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("warning ")] == [
        f"warning    {sentence}" for sentence in said("max_staleness=8", STEPS, "algorithm.correction=none")
    ]
    assert lines[-1] == "ok"
