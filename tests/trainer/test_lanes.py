"""Passes on two threads: every result once and in order, whoever is fast; the same gradients bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.algorithms.losses import LOSSES
from asyncrl.observe import trace
from asyncrl.recipe.load import load
from asyncrl.rollout.trajectory import Group, Trajectory
from asyncrl.trainer.lanes import SECOND, Lanes, fit, lane
from asyncrl.trainer.learner import Learner
from asyncrl.trainer.model import load_model

ROOT = Path(__file__).parents[2]
DEADLINE_S = 20.0


def two(open: bool = True) -> Lanes:
    lanes = Lanes(True, DEADLINE_S)
    lanes.open = open
    return lanes


@given(st.integers(0, 12), st.booleans(), st.booleans())
def test_every_result_once_and_in_order(number: int, second: bool, open: bool) -> None:
    lanes = Lanes(second, DEADLINE_S)
    lanes.open = open
    made: list[int] = []

    def work(item: int) -> int:
        made.append(item)
        return 2 * item

    assert list(lanes.each(work, range(number))) == [2 * item for item in range(number)]
    assert sorted(made) == list(range(number))


def test_both_threads_work_and_neither_runs_far_ahead() -> None:
    lanes, other, holds = two(), threading.Event(), threading.Event()
    who: dict[int, str] = {}

    def work(item: int) -> int:
        who[item] = lane()
        if lane() == SECOND:
            other.set()
            assert holds.wait(DEADLINE_S)
        else:
            assert other.wait(DEADLINE_S)
            if sum(name != SECOND for name in who.values()) == 2:
                holds.set()
        return item

    assert list(lanes.each(work, range(9))) == list(range(9))
    assert SECOND in who.values()
    assert trace.MAIN in who.values()


def test_a_slow_second_thread_is_waited_for_and_not_run_away_from() -> None:
    lanes, begun, waited_for = two(), threading.Event(), threading.Event()
    first: list[int] = []
    slow: list[int] = []

    def work(item: int) -> int:
        if lane() == SECOND:
            slow.append(item)
            begun.set()
            assert waited_for.wait(DEADLINE_S)
        else:
            assert begun.wait(DEADLINE_S)
            first.append(item)
            if sum(done > slow[0] for done in first) == 2:
                waited_for.set()
        return item

    results = []
    for result in lanes.each(work, range(30)):
        results.append(result)
        assert max(first, default=0) <= result + 2
    assert results == list(range(30))


@pytest.mark.parametrize("place", [0, 3, 6])
def test_an_error_of_a_pass_is_raised_and_the_lanes_go_on(place: int) -> None:
    lanes = two()

    def work(item: int) -> int:
        if item == place:
            raise ValueError("pass")
        return item

    with pytest.raises(ValueError, match="pass"):
        list(lanes.each(work, range(7)))
    assert list(lanes.each(lambda item: item, range(7))) == list(range(7))


def test_a_pass_that_never_ends_is_an_error() -> None:
    lanes, never = Lanes(True, 0.05), threading.Event()
    lanes.open = True

    def work(item: int) -> int:
        if lane() == SECOND or item > 5:
            never.wait(DEADLINE_S)
        return item

    with pytest.raises(TimeoutError):
        list(lanes.each(work, range(200)))
    never.set()


def test_a_machine_must_have_room_for_three_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"total": 24 * 2**30}))
    assert fit(2**30)
    assert not fit(2**30 + 1)


def group(rng: np.random.Generator, number: int) -> Group:
    prompt = rng.integers(3, 200, 6)

    def one() -> Trajectory:
        tokens = np.concatenate([prompt, rng.integers(3, 200, rng.integers(1, 20))]).astype(np.int32)
        sampled = np.arange(len(tokens)) >= len(prompt)
        logprobs = np.where(sampled, -rng.random(len(tokens)), 0).astype(np.float32)
        return Trajectory(tokens, np.where(sampled, 0, -1).astype(np.int32), logprobs, sampled, rng.random(), "stop")

    return Group(number, 0, number, tuple(one() for _ in range(4)))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_do_not_depend_on_who_made_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    recipe = load(ROOT / "recipes/tiny.yaml", [f"trainer.precision={precision}", "trainer.tokens_per_microbatch=400"])
    groups = [group(np.random.default_rng(0), number) for number in range(8)]

    def trained(open: bool) -> tuple[dict[str, torch.Tensor], dict[str, Any], set[str]]:
        device = torch.device("cpu")
        learner = Learner(lambda: load_model(str(tiny_model), recipe, device), recipe, LOSSES["ppo"], device)
        learner.lanes.open = open
        trace.take()
        report = learner.step(groups, 0, 0)
        passes = [span for span in trace.take() if span.name == "backward"]
        assert len(passes) >= 6
        return learner.state(), report.metrics, {span.lane for span in passes}

    alone, divided = watched(trained, False), watched(trained, True)
    assert alone[2] == {trace.MAIN}
    assert divided[2] == {trace.MAIN, SECOND}
    for name, tensor in alone[0].items():
        assert torch.equal(tensor, divided[0][name]), name
    timeless = {name: value for name, value in alone[1].items() if name != "trainer/step_s"}
    assert timeless == {name: divided[1][name] for name in timeless}


def watched(run: Callable[[bool], Any], open: bool) -> Any:
    """With the number of threads that a trainer of two cores has."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return run(open)
    finally:
        torch.set_num_threads(before)
