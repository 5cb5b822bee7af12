"""Which rows a run draws depends on nothing but the seed: not on how many generators there are, on who is first, or
on how often it was resumed."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from asyncrl.control.controller import Controller
from asyncrl.control.messages import (
    Discard,
    GeneratorJoined,
    GeneratorLost,
    GroupFinished,
    Publish,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings
from asyncrl.data.tasks import TaskSource
from asyncrl.recipe.data import DataRecipe

NUM_ROWS = 20
STEPS = 12
SETTINGS = Settings(groups_per_step=4, max_staleness=2, max_steps=STEPS, tokens_per_group=10)


class Table(list):
    """A list of rows is a table."""

    @property
    def column_names(self) -> list[str]:
        return list(self[0])


def source() -> TaskSource:
    return TaskSource(Table({"prompt": f"{n}"} for n in range(NUM_ROWS)), DataRecipe(path="x.jsonl"), 3)


class Shell:
    """Carries out decisions on generators whose groups are done in the order that `choose` says."""

    def __init__(self, num_generators: int, choose: st.DataObject) -> None:
        self.controller, self.choose = Controller(SETTINGS), choose
        self.names = [f"g{n}" for n in range(num_generators)]
        self.drawn: list[int] = []
        self.trained: list[int] = []
        self.running: list[Start] = []
        self.begin()

    def begin(self) -> None:
        self.running.clear()
        for event in (*map(GeneratorJoined, self.names), WeightsLive(self.controller.steps_done)):
            self.controller.handle(event)

    def resume(self) -> None:
        """After a death of everything: what was running starts again, with the same rows."""
        self.controller = Controller.restore(self.controller.state())
        for event in self.controller.interrupt():
            self.controller.handle(event)
        self.begin()

    def lose(self) -> None:
        name = self.names[0]
        self.controller.handle(GeneratorLost(name))
        self.running = [start for start in self.running if start.generator != name]
        self.controller.handle(GeneratorJoined(name))

    def step(self) -> None:
        """All that can be decided, then one group is done."""
        while decisions := self.controller.decide():
            for decision in decisions:
                match decision:
                    case Start(task, attempt, _):
                        self.running.append(decision)
                        if attempt == 0:
                            self.drawn.append(task)
                    case Train(step, groups):
                        self.trained += [task for task, _ in groups]
                        self.controller.handle(StepDone(step))
                    case Publish(version):
                        self.controller.handle(WeightsLive(version))
                    case Discard():
                        pass
        if self.running:
            start = self.running.pop(self.choose.draw(st.integers(0, len(self.running) - 1)))
            live = self.controller.live
            self.controller.handle(GroupFinished(start.task, start.attempt, live, live, 10))


@given(st.integers(1, 5), st.lists(st.sampled_from(["resume", "lose"]), max_size=3), st.data())
def test_each_row_comes_once_an_epoch_and_in_the_same_order(num: int, ends: list[str], choose: st.DataObject) -> None:
    tasks, shell = source(), Shell(num, choose)
    at = sorted(choose.draw(st.lists(st.integers(1, 60), min_size=len(ends), max_size=len(ends))))
    for turn in range(400):
        if shell.controller.finished:
            break
        for end in [end for end, when in zip(ends, at, strict=True) if when == turn]:
            getattr(shell, end)()
        shell.step()
    assert shell.controller.finished
    assert shell.drawn == list(range(STEPS * 4)), "the cursor, whoever is done first"
    rows = [tasks.row_of(draw) for draw in shell.drawn]
    assert rows == [source().row_of(draw) for draw in range(STEPS * 4)]
    for epoch in range(2):
        assert sorted(rows[epoch * NUM_ROWS : (epoch + 1) * NUM_ROWS]) == list(range(NUM_ROWS))
    assert Counter(shell.trained) == Counter(range(STEPS * 4)), "and each is trained once"
