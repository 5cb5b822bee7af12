"""Rows that the policy always or never solves are drawn less, and the same after a resume and in a replay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.control.controller import Controller
from asyncrl.control.history import Decisions, Entry, Snapshot, replay
from asyncrl.control.messages import (
    Event,
    GeneratorJoined,
    GroupFiltered,
    GroupFinished,
    Publish,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings
from asyncrl.data.mixture import Mixture, Shares, Tasks
from asyncrl.data.order import Draws, Order
from asyncrl.data.tasks import TaskSource
from asyncrl.recipe.data import DataPart, DataRecipe

SETTINGS = Settings(groups_per_step=2, max_staleness=1, max_steps=30, tokens_per_group=10)


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def table(number: int) -> Table:
    return Table({"prompt": f"{n}"} for n in range(number))


def source(number: int = 12, **keys: object) -> TaskSource:
    return TaskSource(table(number), DataRecipe.model_validate({"path": "x.jsonl", **keys}), 0)


class Run:
    """A driver whose actors answer at once, and its journal."""

    def __init__(self, tasks: Tasks, rate: Callable[[int], float | None], controller: Controller | None = None) -> None:
        self.tasks, self.rate = tasks, rate
        self.controller = controller or Controller(SETTINGS)
        self.entries: list[Entry] = [Snapshot(self.controller.state())]
        self.rows: list[int] = []

    def tell(self, event: Event) -> None:
        self.controller.handle(event)
        self.entries.append(event)

    def begin(self) -> None:
        for event in (*self.controller.interrupt(), GeneratorJoined("g"), WeightsLive(self.controller.steps_done)):
            self.tell(event)

    def until(self, steps: int) -> None:
        while self.controller.steps_done < steps:
            decisions = self.controller.decide()
            self.entries += [Decisions(tuple(decisions))] if decisions else []
            for decision in decisions:
                match decision:
                    case Start(task, attempt, _):
                        row, version = self.tasks.task(task).row_index, self.controller.live
                        self.rows.append(row)
                        skip = tuple(self.tasks.skipped_after(task, self.rate(row)))
                        if self.rate(row) == 0.0 and row % 2:
                            self.tell(GroupFiltered(task, attempt, "equal_rewards", skip))
                        else:
                            self.tell(GroupFinished(task, attempt, version, version, 10, skip))
                    case Train(step):
                        self.tell(StepDone(step))
                    case Publish(version):
                        self.tell(WeightsLive(version))


def solved(row: int) -> float | None:
    """A third each: always, never, at times; and of one nobody says."""
    return None if row == 2 else (1.0, 0.0, 0.5)[row % 3]


@pytest.mark.parametrize(("keys", "seldom"), [({}, 0.5), ({"skip_epochs": 3}, 0.25)])
def test_rows_that_are_always_or_never_solved_are_drawn_less(keys: dict[str, int], seldom: float) -> None:
    run = Run(source(online_success_rate=keys), solved)
    run.begin()
    run.until(30)
    drawn, ledger = Counter(run.rows), run.controller.ledger
    often = min(drawn[row] for row in (2, 5, 8, 11))
    for row in (0, 1, 3, 4, 6, 7, 9, 10):
        assert drawn[row] == pytest.approx(often * seldom, abs=2)
    assert (ledger.drawn, ledger.skipped) == (len(run.rows), run.controller.next_draw - len(run.rows))
    assert ledger.skipped > 20
    ledger.check()


def test_a_row_is_tried_again_and_what_it_is_then_counts() -> None:
    rates = {0: 1.0}
    run = Run(source(8, online_success_rate={}), lambda row: rates.get(row, 0.5))
    run.begin()
    run.until(10)
    before = Counter(run.rows)[0]
    rates[0] = 0.5  # forgotten
    run.until(30)
    assert before == 2
    assert Counter(run.rows)[0] - before >= 4, "in every epoch again"


def test_without_the_key_nothing_is_skipped_and_the_history_is_as_it_was() -> None:
    run = Run(source(), solved)
    run.begin()
    run.until(10)
    assert run.controller.ledger.skipped == 0
    assert not {"skip", "skipped"} & run.controller.state()["tasks"].keys()


@given(st.dictionaries(st.integers(0, 11), st.sampled_from([0.0, 0.5, 1.0, None]), min_size=12), st.integers(1, 29))
def test_a_history_replays_and_a_resumed_run_draws_the_same(rates: dict[int, float | None], stop: int) -> None:
    """From its state at any step, which has all that its groups have said."""
    whole = Run(source(online_success_rate={"skip_epochs": 2}), rates.get)
    whole.begin()
    whole.until(30)
    assert replay(whole.entries).state() == whole.controller.state()
    first = Run(source(online_success_rate={"skip_epochs": 2}), rates.get)
    first.begin()
    first.until(stop)
    again = Run(source(online_success_rate={"skip_epochs": 2}), rates.get, Controller.restore(first.controller.state()))
    again.until(30)
    assert first.rows + again.rows == whole.rows
    assert replay([*first.entries, *again.entries]).state() == again.controller.state()


def test_if_all_rows_are_solved_the_run_goes_on() -> None:
    run = Run(source(online_success_rate={}), lambda row: 1.0)
    run.begin()
    run.until(30)
    assert run.controller.ledger.skipped > 20


def test_rows_of_a_mixture_are_skipped_in_their_source() -> None:
    """What a source skips, the others have more of."""
    keys = {"path": "x.jsonl", "online_success_rate": {}}
    parts = [
        DataPart.model_validate({**keys, "name": name, "weight": weight}) for name, weight in (("a", 2.0), ("b", 1.0))
    ]
    tasks = Mixture(parts, [table(6), table(6)], 0)
    tasks.foresee(300)
    run = Run(tasks, lambda row: 1.0 if row in (0, 1, 6) else 0.5)
    run.begin()
    run.until(30)
    drawn = Counter(run.rows)
    assert max(drawn[0], drawn[1]) < min(drawn[row] for row in range(2, 6))
    assert drawn[6] < min(drawn[row] for row in range(7, 12))
    assert run.controller.ledger.skipped > 5
    assert sum(drawn[row] for row in range(6)) / drawn.total() < 2 / 3


@given(st.lists(st.floats(0.05, 20), min_size=1, max_size=5), st.integers(0, 300))
def test_the_draw_of_a_source_is_found_again(weights: list[float], draw: int) -> None:
    shares = Shares(weights)
    source, nth = shares.at(draw)
    assert shares.draw_of(source, nth) == draw
    assert shares.draw_of(source, nth + 301) is None  # which it was not asked for


@given(st.integers(1, 30), st.integers(0, 200), st.integers(1, 4), st.booleans())
def test_later_places_are_of_the_same_row_one_in_each_epoch(
    number: int, place: int, epochs: int, shuffle: bool
) -> None:
    order = Order(5, shuffle)
    later = order.later(place, number, epochs)
    assert [order.row(one, number) for one in later] == [order.row(place, number)] * epochs
    assert [one // number for one in later] == [place // number + more for more in range(1, epochs + 1)]


def test_groups_of_the_data_before_skip_nothing_of_the_data_now() -> None:
    tasks = source(online_success_rate={})
    tasks.draws = Draws(first=50, again=[48], first_row=100)
    assert tasks.skipped_after(47, 1.0) == []
    assert [tasks.row_of(draw) for draw in tasks.skipped_after(48, 1.0)] == [tasks.row_of(48)]
    assert tasks.skipped_after(48, 0.5) == tasks.skipped_after(48, None) == []
