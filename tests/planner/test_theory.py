"""What has been proved of schedules, on the simulator that drives the real controller. The right-hand sides are worked
out from the lengths that were drawn and the keys alone.

W_i: seconds of the work of rollout i; mu their mean, L the longest. A worker is a place in the one engine, whose step
takes as long for any number of sequences, so that K places are K workers that share a queue.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from asyncrl.control.messages import Decision, Event, GroupFiltered, Start, Train, WeightsLive
from asyncrl.control.settings import Settings
from asyncrl.planner.engine import DecodeSpeed
from asyncrl.planner.lengths import Lengths
from asyncrl.planner.simulation import Scene, Simulation, simulate

WORK = st.floats(0.1, 10) | st.sampled_from([1.0, 100.0])
"""Even and long-tailed, with ties."""
EXACT = 1 + 1e-9


@dataclass(frozen=True)
class InTurn(Lengths):
    """One value after the other, so that a test knows which rollout has which."""

    taken: list[float] = field(default_factory=list)

    def draw(self, rng: random.Random, number: int) -> list[float]:
        self.taken.extend(self.values[(len(self.taken) + i) % len(self.values)] for i in range(number))
        return self.taken[-number:]


def scene(work: Sequence[float], workers: int, train_s: float = 0.0) -> Scene:
    """A token takes a second."""
    return Scene(
        group_size=1,
        lengths=InTurn(tuple(work)),
        replicas=1,
        decode=DecodeSpeed(1.0, 0.0, workers),
        train_token_s=0.0,
        train_step_s=train_s,
    )


def keys(num_groups: int, staleness: int, steps: int, **other) -> Settings:
    return Settings(groups_per_step=num_groups, max_staleness=staleness, max_steps=steps, tokens_per_group=10, **other)


@given(st.lists(WORK, min_size=1, max_size=60), st.integers(1, 12), st.booleans())
def test_queue_scheduling_bound(work: list[float], workers: int, one_engine: bool) -> None:
    """ROLL Flash (arXiv:2510.11345), Proposition 1: with a queue, Q rollouts on K workers are done within
    (Q/K) mu + L, so a rollout takes at most mu/K + L/Q in the mean. It follows from Graham's bound for list scheduling
    (1969), T <= sum W_i / K + (1 - 1/K) L, which is checked; and no schedule is shorter than max(sum W_i / K, L).
    The workers are the places of one engine, or engines that have a group each (`groups_per_replica`)."""
    if one_engine:
        settings, ran = keys(len(work), 0, 1), scene(work, workers)
    else:
        settings, ran = keys(len(work), 0, 1, groups_per_replica=1), replace(scene(work, 1), replicas=workers)
    [record] = simulate(settings, ran)
    total, longest = sum(work), max(work)
    assert record["time_s"] <= (total / workers + (1 - 1 / workers) * longest) * EXACT
    assert record["time_s"] * EXACT >= max(total / workers, longest)


@given(st.lists(WORK, min_size=1, max_size=60), st.integers(1, 12))
def test_a_queue_is_never_slower_than_batches(work: list[float], workers: int) -> None:
    """ROLL Flash, section 5.1.1: batch rollout takes K at a time and waits for the longest of them, sum_b max(W in b).
    By induction over b, a queue has started all of batch b by the time at which batch rollout starts it."""
    [record] = simulate(keys(len(work), 0, 1), scene(work, workers))
    assert record["time_s"] <= sum(max(work[i : i + workers]) for i in range(0, len(work), workers)) * EXACT


@given(
    st.lists(WORK, min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(1, 16),
    st.integers(0, 4),
    st.floats(0.01, 50),
)
def test_asynchronous_completion_time_of_any_split(
    work: list[float], workers: int, size: int, alpha: int, train_s: float
) -> None:
    """The proved form of ROLL Flash's Proposition 2, for K_g workers, a training step of t seconds, and any work:

        T(M steps) <= sum W_i / K_g + M max(t, (L + t)/(alpha + 1)) + (L + t)

    Proof: walk back from the end of a step. It waited for the step before (t), or for its last rollout. That one had
    waited for a slot, which step k - alpha - 1 gave it, (L + t) for alpha + 1 steps; or for a worker, and then all
    were busy since a step m <= k - alpha - 1 had ended: (k - m) batches of work at most, and again (L + t)."""
    num_steps = 12
    ran = scene(work, workers, train_s)
    records = simulate(keys(size, alpha, num_steps), ran)
    taken, longest = ran.lengths.taken, max(work)
    assert len(taken) == size * num_steps
    pace = max(train_s, (longest + train_s) / (alpha + 1))
    assert records[-1]["time_s"] <= (sum(taken) / workers + num_steps * pace + longest + train_s) * EXACT


@given(st.lists(WORK, min_size=20, max_size=60), st.integers(2, 12), st.integers(1, 4))
@examples(derandomize=True)
def test_asynchronous_completion_time_of_the_best_split(work: list[float], workers: int, alpha: int) -> None:
    """ROLL Flash, Proposition 2: K workers, divided in proportion to mu_gen : E mu_train, take for a step of N rollouts
    (N/K)(mu_gen + E mu_train) + L/(alpha + 1) in the mean. So divided, K = K_g (1 + E mu_train/mu_gen) and both roles
    take the same time, N mu_gen/K_g, which is the first term. N = 2 K_g; filling the pipeline takes a step more."""
    size, num_steps = 2 * workers, 30
    train_s = size / workers * sum(work) / len(work)
    ran = scene(random.Random(0).sample(work, len(work)), workers, train_s)
    records = simulate(keys(size, alpha, num_steps), ran)
    mean_s = sum(ran.lengths.taken) / len(ran.lengths.taken)
    step_s = max(train_s, size / workers * mean_s) + max(work) / (alpha + 1)
    assert records[-1]["time_s"] <= num_steps * step_s + train_s


def oldest(settings: Settings, ran: Scene) -> float:
    """Age of the oldest trained token; nothing was given up for its age."""
    run = Simulation(settings, ran)
    records = run.run()
    assert run.controller.ledger.stale == 0
    return max(record["staleness/max"] for record in records)


@given(
    st.lists(WORK, min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 12),
    st.floats(0.01, 20),
    st.integers(1, 3),
    st.booleans(),
)
def test_titan_bound(
    work: list[float], size: int, staleness: int, window: int, train_s: float, replicas: int, rolling: bool
) -> None:
    """TitanRL: with (S + 1) P slots, each held until the weights of its step are live, and a selection window of W, no
    trained token is older than S + ceil((W - 1)/P). Here whatever engines, pushes and filtered groups do."""
    ran = replace(
        scene(work, 5, train_s), replicas=replicas, push_s=0.5, rolling=rolling, filtered_share=0.2, group_size=2
    )
    bound = staleness + -(-(window - 1) // size)
    assert oldest(keys(size, staleness, 12, selection_window=window), ran) <= bound


@pytest.mark.parametrize(("size", "staleness"), [(1, 1), (2, 1), (3, 2), (4, 4), (2, 8)])
def test_titan_bound_is_reached(size: int, staleness: int) -> None:
    """The last of the first (S + 1) P is the long one, and belongs to batch S: the batches before it pass meanwhile."""
    work = [1.0] * (size * (staleness + 1) - 1) + [1000.0] + [1.0] * 500
    assert oldest(keys(size, staleness, staleness + 3), scene(work, 1000, 0.1)) == staleness


class Watched(Simulation):
    """Counts the groups that hold a slot, by the ledger, and times each of them, by decisions and events."""

    def __init__(self, settings: Settings, ran: Scene) -> None:
        super().__init__(settings, ran)
        self.held_s = self.since = 0.0
        self.began: dict[int, float] = {}
        self.step_of: dict[int, int] = {}
        self.stays: list[float] = []

    @property
    def now(self) -> float:
        return self._now

    def held(self) -> int:
        ledger, ahead = self.controller.ledger, self.controller.steps_done - max(0, self.controller.live)
        return ledger.running + ledger.ready + ledger.leased + ahead * self.settings.groups_per_step

    def _tell(self, event: Event) -> None:
        self.held_s += self.held() * (self._now - self.since)
        self.since = self._now
        match event:
            case GroupFiltered(task):
                self._leave([task])
            case WeightsLive(version):
                self._leave([task for task, step in self.step_of.items() if step < version])
        super()._tell(event)

    def _leave(self, tasks: list[int]) -> None:
        for task in tasks:
            self.stays.append(self._now - self.began.pop(task))
            self.step_of.pop(task, None)

    def _carry_out(self, decision: Decision) -> None:
        match decision:
            case Start(task):
                self.began[task] = self._now
            case Train(step, groups):
                self.step_of.update((task, step) for task, _ in groups)
        super()._carry_out(decision)


@given(
    st.lists(WORK, min_size=1, max_size=40),
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(1, 6),
    st.floats(0.01, 20),
    st.sampled_from([0.0, 0.3]),
)
def test_littles_law(
    work: list[float], size: int, staleness: int, window: int, train_s: float, filtered_share: float
) -> None:
    """Little (1961): the mean number in a system is the rate of arrivals times the mean stay, L = lambda W. For one
    run, those still there at its end counted up to it, it is an identity: the integral of the ledger's count is the sum
    of the groups' own times, or a group was lost or counted twice."""
    ran = replace(scene(work, 5, train_s), replicas=2, group_size=2, push_s=1.5, filtered_share=filtered_share)
    run = Watched(keys(size, staleness, 10, selection_window=window), ran)
    run.run()
    stays = run.stays + [run.since - began for began in run.began.values()]
    rate, mean_stay = len(stays) / run.since, sum(stays) / len(stays)
    assert run.held_s / run.since == pytest.approx(rate * mean_stay)


@given(st.lists(WORK, min_size=1, max_size=40), st.integers(1, 6), st.integers(0, 4), st.floats(0.1, 20))
def test_a_group_stays_for_as_many_steps_as_there_are_batches_of_slots(
    work: list[float], size: int, staleness: int, train_s: float
) -> None:
    """Little's law with every one of the (S + 1) P slots held at all times: W = (S + 1) P / (P per step), so from the
    start of a group to the weights that it led to there are S + 1 steps in the mean."""
    run = Watched(keys(size, staleness, 60), scene(work, 5, train_s))
    run.run()
    drawn_until = run.records[60 - staleness - 2]["time_s"]
    middle = [r["time_s"] for r in run.records if r["time_s"] <= drawn_until]
    step_s = middle[-1] / len(middle)
    # All of the run: at both ends a group's stay reaches over the middle by (S + 1) steps at most.
    assert sum(run.stays) / len(run.stays) == pytest.approx((staleness + 1) * step_s, rel=0.3)
