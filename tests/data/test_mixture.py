"""Several data sources: shares as asked for, each row once per epoch of its source, the same rows after a resume."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncrl.data.mixture import Mixture, Shares
from asyncrl.data.order import Draws
from asyncrl.recipe.data import DataPart

WEIGHTS = st.lists(st.floats(0.01, 100), min_size=1, max_size=6)


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self):
        return list(self[0])


def mixture(weights=(3.0, 1.0), sizes=(20, 5), seed=0, rows=None, **keys):
    names = [chr(ord("a") + place) for place in range(len(weights))]
    recipes = [DataPart(path=f"{n}.jsonl", name=n, weight=w, **keys) for n, w in zip(names, weights, strict=True)]
    tables = rows or [
        Table({"prompt": f"{n}{i}", "answer": "x"} for i in range(size)) for n, size in zip(names, sizes, strict=True)
    ]
    return Mixture(recipes, tables, seed)


def drawn(tasks, draws):
    return [(task.source, task.prompt) for task in map(tasks.task, draws)]


@given(WEIGHTS, st.integers(1, 400))
def test_realised_shares_are_those_asked_for_at_every_draw(weights, number):
    shares = Shares(weights)
    given_by = Counter(shares.at(draw)[0] for draw in range(number))
    for place, share in enumerate(shares.of):
        assert abs(given_by[place] - share * number) < max(1.0, len(weights) - 1)


@given(WEIGHTS, st.lists(st.integers(0, 500), min_size=1, max_size=30))
def test_the_source_of_a_draw_depends_on_nothing_but_the_weights(weights, draws):
    serial = Shares(weights)
    expected = [serial.at(draw) for draw in range(501)]
    resumed = Shares(weights)
    assert [resumed.at(draw) for draw in draws] == [expected[draw] for draw in draws]


def test_two_sources_and_200_draws_that_stop_at_100():
    whole = drawn(mixture(), range(200))
    assert Counter(source for source, _ in whole) == {"a": 150, "b": 50}
    assert drawn(mixture(), range(100)) + drawn(mixture(), range(100, 200)) == whole


@pytest.mark.parametrize("stop", [18, 19, 25, 26, 45, 51, 52])
def test_ids_before_and_after_a_resume_are_those_of_an_unbroken_run(stop):
    """In the middle of a second epoch and at its edges: of a, draws 26 to 52; of b, 19 to 38."""
    whole = drawn(mixture(), range(80))
    assert drawn(mixture(), range(stop)) + drawn(mixture(), range(stop, 80)) == whole


def test_every_epoch_of_a_source_visits_each_row_once_in_an_order_of_its_own():
    found = drawn(mixture(), range(160))
    epochs = {}
    for source, size in (("a", 20), ("b", 5)):
        rows = [prompt for name, prompt in found if name == source]
        parts = [rows[start : start + size] for start in range(0, len(rows) - size + 1, size)]
        assert [sorted(part) for part in parts] == [sorted(f"{source}{i}" for i in range(size))] * len(parts)
        epochs[source] = {tuple(part) for part in parts}
    assert len(epochs["a"]) == 6
    assert len(epochs["b"]) > 1


def test_sources_of_one_length_are_not_drawn_in_one_order():
    found = drawn(mixture((1.0, 1.0), (9, 9)), range(18))
    by_source = {name: [prompt[1:] for source, prompt in found if source == name] for name in "ab"}
    assert by_source["a"] != by_source["b"]


def test_a_weight_of_one_is_a_share_and_no_row():
    assert drawn(mixture((1.0,), (7,)), range(7)) != drawn(mixture((1.0,), (7,), seed=1), range(7))
    assert mixture((1, 1.0)).shares.of == [0.5, 0.5]
    assert mixture().described() == [
        "a: 75.0% of the tasks (weight 3), 20 rows",
        "b: 25.0% of the tasks (weight 1), 5 rows",
    ]


def test_a_task_knows_its_source_and_rows_have_numbers_of_their_own():
    tasks = mixture(shuffle=False)
    found = [tasks.task(draw) for draw in range(4)]
    assert [task.number for task in found] == [0, 1, 2, 3]
    assert [(task.source, task.row_index) for task in found] == [("a", 0), ("a", 1), ("b", 20), ("a", 2)]
    assert found[2].row == {"data_source": "b", "prompt": "b0", "answer": "x"}
    assert found[2].epoch == 0.0


def test_rows_that_have_a_data_source_keep_it():
    rows = [Table([{"prompt": "p", "data_source": "openai/gsm8k"}])]
    task = mixture((1.0,), rows=rows).task(0)
    assert (task.row["data_source"], task.source) == ("openai/gsm8k", "a")


def test_other_weights_are_other_data():
    same, other = mixture(), mixture((2.0, 1.0))
    for tasks in (same, other):
        for source in tasks.sources:
            source.digest = lambda: "rows"
    assert same.digest() != other.digest()


def test_data_that_begins_anew_begins_at_the_first_draw():
    tasks = mixture()
    expected = drawn(tasks, range(10))
    tasks.draws = Draws(first=50, again=[48], first_row=100)
    assert drawn(tasks, [48, *range(50, 59)]) == expected
    assert tasks.task(50).row_index >= 100
