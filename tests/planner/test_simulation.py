"""The simulator against what can be worked out by hand, and against the bounds that it must keep."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from itertools import pairwise
from statistics import fmean
from typing import Any

import pytest

from asyncrl.control.history import Decisions, Entry, Snapshot, replay
from asyncrl.control.messages import Decision, Event, Train
from asyncrl.control.settings import Settings
from asyncrl.control.staleness import worst_case
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.figures import Figures, figures, steady
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.simulation import Record, Scene, Simulation, simulate

P, N, L = 4, 3, 100
SCENE = Scene(
    group_size=N,
    lengths=Lengths.constant(L),
    replicas=2,
    decode=DecodeSpeed(step_s=0.01, token_s=0.002, max_sequences=1000),
    train_token_s=0.001,
    train_step_s=0.3,
    push_s=0.25,
)
LONG_TAILED = replace(SCENE, lengths=Lengths.log_normal(L, 4 * L))


def settings(staleness: float, steps: int = 30, **other) -> Settings:
    keys = {"groups_per_step": P, "max_staleness": staleness, "max_steps": steps, "tokens_per_group": N * L}
    return Settings(**{**keys, **other})


def whole(records: list[Record]) -> Figures:
    return figures(steady(records), P * N, SCENE.replicas)


def step_s(settings: Settings, scene: Scene) -> float:
    return whole(simulate(settings, scene)).step_s


def test_without_staleness_a_step_is_generation_training_and_push_in_turn() -> None:
    generate_s = L * SCENE.decode.of(P * N // 2)
    train_s = SCENE.train_step_s + P * N * L * SCENE.train_token_s
    records = simulate(settings(0), SCENE)
    whole_s = generate_s + train_s + SCENE.push_s
    for before, after in pairwise(records[1:]):
        assert after["time_s"] - before["time_s"] == pytest.approx(whole_s)
    shares = whole(records).shares
    assert shares["trainer_time/busy"] == pytest.approx(train_s / whole_s)
    assert shares["trainer_time/wait_batch"] == pytest.approx(1 - train_s / whole_s)
    assert shares["generator_time/busy"] == pytest.approx(generate_s / whole_s)
    assert shares["generator_time/paused"] == pytest.approx(SCENE.push_s / whole_s)
    assert shares["generator_time/idle"] == pytest.approx(train_s / whole_s)
    assert {record["staleness/max"] for record in records} == {0}


def test_a_slow_trainer_paces_an_asynchronous_run() -> None:
    scene = replace(SCENE, train_step_s=5.0, push_s=0.0)
    assert step_s(settings(1), scene) == pytest.approx(5.0 + P * N * L * scene.train_token_s)


def test_slow_generators_pace_it_by_their_tokens() -> None:
    """Without a fixed part of a decode step, tokens per second are the same for any number of sequences."""
    decode = DecodeSpeed(0.0, 0.05, 1000)
    scene = replace(LONG_TAILED, decode=decode, push_s=0.0, replicas=1)
    records = simulate(settings(3, 300), scene)
    assert whole(records).shares["generator_time/busy"] == pytest.approx(1, abs=0.02)
    middle = figures(records[20:-10], P * N, scene.replicas)
    assert middle.busy_tokens_per_s == pytest.approx(1 / decode.token_s, rel=0.05)
    assert middle.samples_per_s == pytest.approx(1 / decode.token_s / L, rel=0.05)


def test_the_engine_takes_no_more_sequences_than_it_has_room_for() -> None:
    """2 engines of 3 sequences make 4 groups of 3 in two turns."""
    scene = replace(SCENE, decode=DecodeSpeed(0.01, 0.0, N), train_step_s=0.0, train_token_s=0.0, push_s=0.0)
    assert step_s(settings(0), scene) == pytest.approx(2 * L * 0.01)


def test_checkpoints_and_pauses_are_accounted_for() -> None:
    scene = replace(SCENE, checkpoint_s=2.0, checkpoint_every_steps=5, driver_s=0.1)
    records = simulate(settings(2), scene)
    saved = [r["step"] for r in records if r["trainer_time/checkpoint"]]
    assert saved == [4, 9, 14, 19, 24, 29]
    for record in records:
        wall_s = P * N / record["throughput/samples_per_s"]
        assert record["trainer_time/unaccounted"] * wall_s == pytest.approx(0.1)
        assert sum(v for k, v in record.items() if k.startswith("trainer_time/")) == pytest.approx(1)
        assert sum(v for k, v in record.items() if k.startswith("generator_time/")) == pytest.approx(1)


def test_rolling_pushes_pause_each_replica_once() -> None:
    slow = replace(SCENE, train_step_s=5.0)
    at_once, rolling = (simulate(settings(1), replace(slow, rolling=r)) for r in (False, True))
    paused = [whole(records).shares["generator_time/paused"] for records in (at_once, rolling)]
    assert paused[0] == pytest.approx(paused[1]) == pytest.approx(SCENE.push_s / (5 + P * N * L * 0.001))


def test_a_seed_gives_one_outcome() -> None:
    runs = [simulate(settings(2), LONG_TAILED, seed) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("on_stale", ["wait", "drop", "mask"])
@pytest.mark.parametrize("staleness", [0, 1, 2, 5])
def test_no_trained_token_is_older_than_the_bound(staleness: int, on_stale: str) -> None:
    rng = random.Random(staleness)
    for seed in range(5):
        train_step_s = rng.choice([0.0, 0.2, 3.0])
        chosen = settings(staleness, on_stale=on_stale)
        records = simulate(chosen, replace(LONG_TAILED, train_step_s=train_step_s, filtered_share=0.2), seed)
        assert len(records) == 30
        assert max(r["staleness/max"] for r in records) <= worst_case(chosen)
    assert staleness == 0 or max(r["staleness/max"] for r in records) > 0


def test_a_fixed_lag_has_one_age() -> None:
    records = simulate(settings(1, policy="one_step"), LONG_TAILED)
    assert [r["staleness/mean"] for r in records] == [pytest.approx(float(r["step"] > 0)) for r in records]


def test_more_staleness_is_never_slower() -> None:
    walls = [step_s(settings(s, 60), LONG_TAILED) for s in (0, 1, 2, 4, 8)]
    for fewer, more in pairwise(walls):
        assert more <= 1.03 * fewer
    assert walls[-1] < 0.8 * walls[0]


def test_filtered_groups_cost_their_generation() -> None:
    scene = replace(LONG_TAILED, decode=DecodeSpeed(0.0, 0.05, 1000), push_s=0.0)
    assert step_s(settings(3, 80), replace(scene, filtered_share=0.5)) == pytest.approx(
        2 * step_s(settings(3, 80), scene), rel=0.15
    )


@pytest.mark.parametrize("alpha", [1, 2, 4])
def test_roll_flash_bound(alpha: int) -> None:
    """T <= (N/K)(mu_gen + E mu_train) + L/(alpha + 1) per step: N samples a step on K workers, the share
    mu_gen/(mu_gen + E mu_train) of which generate, one sample each at a constant speed, and the others train; alpha =
    max_staleness, groups of one rollout, no push."""
    num_samples, workers, token_s, longest = 64, 32, 0.01, 1600
    for seed in range(10):
        rng = random.Random(seed)
        lengths = Lengths(tuple(float(rng.choice([50, 100, 200, longest])) for _ in range(500)))
        chosen = Settings(
            groups_per_step=num_samples, max_staleness=alpha, max_steps=60, tokens_per_group=int(lengths.mean)
        )
        gen_s = lengths.mean * token_s
        train_s = 0.6 * gen_s  # E mu_train
        generating = round(workers * gen_s / (gen_s + train_s))
        scene = Scene(
            group_size=1,
            lengths=lengths,
            replicas=1,
            decode=DecodeSpeed(token_s, 0.0, generating),
            train_token_s=0.0,
            train_step_s=num_samples * train_s / (workers - generating),
        )
        records = simulate(chosen, scene, seed)
        bound_s = num_samples / workers * (gen_s + train_s) + longest * token_s / (alpha + 1)
        # The bound is in the mean of the lengths, 60 steps have one of their own.
        drawn = sum(r["completion/tokens_mean"] for r in records) / len(records) / lengths.mean
        assert records[-1]["time_s"] / 60 <= bound_s * max(1.0, drawn)


def limited(groups_per_replica: int, places: int, on_stale: str, staleness: int = 1) -> float:
    """Trained tokens per second, mean of three seeds: 128 groups of 8 a step on 4 engines, a fast trainer; hard tasks
    make all rollouts of a group long."""
    scene = replace(
        SCENE,
        group_size=8,
        lengths=replace(Lengths.log_normal(L, 16 * L, spread=1.2), of_task=0.8),
        replicas=4,
        decode=DecodeSpeed(0.01, 0.0, places),
        train_token_s=0.0,
    )
    chosen = settings(staleness, 12, groups_per_step=128, groups_per_replica=groups_per_replica, on_stale=on_stale)
    runs = [figures(steady(simulate(chosen, scene, seed)), 128 * 8, scene.replicas) for seed in (1, 2, 3)]
    return fmean(run.samples_per_s * run.completion_tokens for run in runs)


def test_a_limit_wins_where_engines_are_full_and_stale_groups_are_dropped() -> None:
    """32 places take four groups. The 60 others of an engine's share grow old in its queue, and are given up."""
    assert limited(8, 32, "drop") > 1.1 * limited(0, 32, "drop")


def test_a_limit_loses_where_engines_have_room_for_more() -> None:
    assert limited(8, 1000, "drop") < 0.8 * limited(0, 1000, "drop")


def test_a_limit_gains_nothing_where_stale_groups_are_waited_for() -> None:
    assert limited(8, 32, "wait", 2) < 1.02 * limited(0, 32, "wait", 2)


class Recorded(Simulation):
    """Keeps what a journal would: events, and decisions, with a snapshot at each batch."""

    def __init__(self, chosen: Settings, scene: Scene) -> None:
        super().__init__(chosen, scene, seed=3)
        self.history: list[Entry] = [self.snapshot()]

    def snapshot(self) -> Snapshot:
        return Snapshot(json.loads(json.dumps(self.controller.state())))

    def _tell(self, event: Event) -> None:
        self.history.append(event)
        super()._tell(event)

    def _decide(self) -> list[Decision]:
        decisions = super()._decide()
        self.history.append(Decisions(tuple(decisions)))
        if any(isinstance(decision, Train) for decision in decisions):
            self.history.append(self.snapshot())
        return decisions


@pytest.mark.parametrize("other", [{}, {"on_stale": "drop", "groups_per_replica": 3}, {"selection_window": 4}])
def test_a_recorded_run_is_decided_again_alike(other: dict[str, Any]) -> None:
    """From its first entry, and from any snapshot on, where a driver that has died takes it up."""
    run = Recorded(settings(2, **other), replace(LONG_TAILED, filtered_share=0.1))
    run.run()
    begins = [i for i, entry in enumerate(run.history) if isinstance(entry, Snapshot)]
    assert len(begins) > 5
    for begin in begins:
        again = replay(run.history[begin:])
        assert json.dumps(again.state()) == json.dumps(run.controller.state())
