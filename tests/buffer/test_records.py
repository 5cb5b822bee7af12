"""The controller's history, written by the driver, is read back as it was, and leads to the same controller."""

from __future__ import annotations

import json
import os
import random
import tempfile
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncrl.buffer import log, records
from asyncrl.buffer.records import (
    CHECKPOINT,
    CONTROL_STREAM,
    GROUP,
    GROUPS_STREAM,
    TRAINED_STREAM,
    ControlLog,
    groups,
    read_control,
    trained,
)
from asyncrl.control.controller import Controller
from asyncrl.control.history import Decisions, HistoryError, Snapshot, replay
from asyncrl.control.messages import (
    Cancel,
    Decision,
    Event,
    GeneratorJoined,
    GeneratorLost,
    GroupFailed,
    GroupFiltered,
    GroupFinished,
    Publish,
    PublishFailed,
    Start,
    StepDone,
    Train,
    WeightsLive,
)
from asyncrl.control.settings import Settings

VALUES = {
    int: st.integers(-(2**63), 2**63 - 1),
    str: st.text(max_size=8),
    tuple[int, ...]: st.lists(st.integers(0, 2**63 - 1), max_size=4).map(tuple),
    tuple[tuple[int, int], ...]: st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), max_size=4).map(tuple),
}
MAX_STEPS = 4


def messages(*classes: type) -> st.SearchStrategy[Any]:
    def of(cls: type) -> st.SearchStrategy[Any]:
        return st.builds(cls, **{name: VALUES[kind] for name, kind in get_type_hints(cls).items()})

    return st.one_of([of(cls) for cls in classes])


def last_segment(folder: Path) -> Path:
    return log.segment_path(folder, CONTROL_STREAM, log.segments(folder, CONTROL_STREAM)[-1])


class Driver:
    """Keeps a real controller busy, and writes its history the way the driver does."""

    def __init__(self, folder: Path, controller: Controller | None = None, seed: int = 1) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.controller = controller or Controller(
            Settings(groups_per_step=2, max_staleness=1, max_steps=MAX_STEPS, tokens_per_group=10)
        )
        self.log = ControlLog(folder, self.controller.state())
        self.publishing: int | None = None

    def send(self, event: Event) -> list[Decision]:
        if isinstance(event, WeightsLive | PublishFailed):
            self.publishing = None
        self.controller.handle(event)
        self.log.event(event)
        decisions = self.controller.decide()
        self.log.decisions(decisions)
        for decision in decisions:
            if isinstance(decision, Publish):
                self.publishing = decision.version
        return decisions

    def begin(self) -> None:
        self.send(GeneratorJoined("g0"))
        self.send(GeneratorJoined("g1"))
        self.send(WeightsLive(self.controller.steps_done))

    def happen(self) -> None:
        """One random thing among those due."""
        due: list[Event] = []
        for task, attempt in self.controller.running():
            version = self.controller.live
            due += [GroupFinished(task, attempt, version, version, self.rng.randint(1, 50))] * 3
            due += [GroupFiltered(task, attempt, "equal rewards"), GroupFailed(task, attempt, "broken")]
        if self.controller.training is not None:
            due += [StepDone(self.controller.training.step)] * 3
        if self.publishing is not None:
            due += [WeightsLive(self.publishing)] * 3
        self.send(self.rng.choice(due))
        if self.rng.random() < 0.1:
            self.send(GeneratorLost("g1"))
            self.send(GeneratorJoined("g1"))

    def begin_segment(self) -> int:
        return self.log.begin_segment(self.controller.state())

    @property
    def state(self) -> dict[str, Any]:
        """As it is read back: without tuples."""
        return json.loads(json.dumps(self.controller.state()))


def replayed(folder: Path) -> dict[str, Any]:
    return json.loads(json.dumps(replay(read_control(folder)).state()))


# -- one entry


@settings(max_examples=100)
@given(messages(*get_args(Event)), st.lists(messages(*get_args(Decision)), min_size=1, max_size=4))
def test_every_event_and_decision_is_read_back_as_it_was(event: Event, decisions: list[Decision]) -> None:
    with tempfile.TemporaryDirectory() as name:
        writer = ControlLog(Path(name), {"number": 1})
        writer.event(event)
        writer.decisions([])
        writer.decisions(decisions)
        assert list(read_control(Path(name))) == [Snapshot({"number": 1}), event, Decisions(tuple(decisions))]
        writer.close()


def test_the_strategy_covers_every_class() -> None:
    """A message with a field of another type has to be added above."""
    for cls in (*get_args(Event), *get_args(Decision)):
        assert set(get_type_hints(cls).values()) <= set(VALUES), cls


def test_a_checkpoint_is_no_entry_of_the_history(tmp_path: Path) -> None:
    writer = ControlLog(tmp_path, {})
    writer.checkpoint(17)
    writer.event(StepDone(17))
    writer.close()
    assert list(read_control(tmp_path)) == [Snapshot({}), StepDone(17)]
    assert [record.kind for record in log.read(tmp_path, CONTROL_STREAM)].count(CHECKPOINT) == 1


def test_groups_are_another_stream(tmp_path: Path) -> None:
    control, writer = ControlLog(tmp_path, {}), log.JournalWriter(tmp_path, GROUPS_STREAM)
    writer.append(GROUP, b"one")
    control.event(StepDone(0))
    writer.append(GROUP, b"two")
    assert [record.payload for record in groups(tmp_path)] == [b"one", b"two"]
    assert list(read_control(tmp_path)) == [Snapshot({}), StepDone(0)]


# -- a whole history


def test_a_run_is_replayed_to_its_end_and_from_every_segment(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.begin()
    segments, num_events = [], 0
    while not driver.controller.finished:
        driver.happen()
        num_events += 1
        if num_events % 5 == 0:
            segments.append(driver.begin_segment())
    assert driver.controller.steps_done == MAX_STEPS
    assert driver.controller.ledger.requeued > 0
    seen = {type(d) for e in read_control(tmp_path) if isinstance(e, Decisions) for d in e.decisions}
    assert {Start, Train, Publish} <= seen
    assert replayed(tmp_path) == driver.state
    assert len(segments) > 3
    for segment in segments:
        driver.log.forget_before(segment)
        assert log.segments(tmp_path, CONTROL_STREAM) == [n for n in [0, *segments] if n >= segment]
        assert replayed(tmp_path) == driver.state


def test_an_entry_that_is_missing_or_altered_is_noticed(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.begin()
    for _ in range(10):
        driver.happen()
    driver.begin_segment()
    entries = list(read_control(tmp_path))
    finished = next(n for n, entry in enumerate(entries) if isinstance(entry, GroupFinished))
    with pytest.raises(HistoryError):
        replay(entries[:finished] + entries[finished + 1 :])
    (decided,) = [n for n, e in enumerate(entries) if isinstance(e, Decisions) and Start(0, 0, "g0") in e.decisions]
    entries[decided] = Decisions((Cancel(0, 0, "g0"),))
    with pytest.raises(HistoryError, match=f"entry {decided} "):
        replay(entries)


def test_a_run_that_broke_off_goes_on_in_the_same_history(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    for again in range(5):
        driver.begin()
        for _ in range(3):
            if not driver.controller.finished:
                driver.happen()
        # Nothing is closed: the driver is gone, what it handed over stays.
        controller = replay(read_control(tmp_path))
        assert controller.state() == driver.controller.state()
        driver = Driver(tmp_path, controller, seed=again + 2)
        for event in controller.interrupt():
            driver.send(event)
    assert replayed(tmp_path) == driver.state
    assert driver.controller.steps_done > 0


# -- crashes


def test_cut_at_any_byte_the_history_is_one_that_was(tmp_path: Path) -> None:
    """Also where the snapshot of the last segment is torn: then the one before it counts."""
    driver = Driver(tmp_path)
    driver.begin()
    driver.happen()
    driver.begin_segment()
    path, states, ends = last_segment(tmp_path), [driver.state], [0]
    ends.append(path.stat().st_size)
    states.append(driver.state)
    for event in (GeneratorLost("g1"), GeneratorJoined("g2")):
        # An event alone, then with its decisions: both can be what a crash left.
        driver.controller.handle(event)
        driver.log.event(event)
        ends.append(path.stat().st_size)
        states.append(driver.state)
        driver.log.decisions(driver.controller.decide())
        ends.append(path.stat().st_size)
        states.append(driver.state)
    for cut in reversed(range(ends[-1] + 1)):
        os.truncate(path, cut)
        whole = max(n for n, end in enumerate(ends) if end <= cut)
        assert replayed(tmp_path) == states[whole], cut


def test_a_torn_snapshot_stays_behind_and_the_run_goes_on(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.begin()
    driver.begin_segment()
    before = driver.state
    os.truncate(last_segment(tmp_path), 20)
    again = Driver(tmp_path, replay(read_control(tmp_path)))
    assert again.state == before
    again.happen()
    assert log.segments(tmp_path, CONTROL_STREAM) == [0, 1, 2]
    assert replayed(tmp_path) == again.state
    again.log.forget_before(2)
    assert replayed(tmp_path) == again.state


def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are fsynced from now on."""
    names: list[str] = []
    real_fsync = os.fsync

    def fsync(file: int) -> None:
        names.append(os.path.basename(os.readlink(f"/proc/self/fd/{file}")))
        real_fsync(file)

    monkeypatch.setattr(os, "fsync", fsync)
    return names


def test_what_a_snapshot_goes_on_from_is_durable_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise a crash of the machine could keep the snapshot, but not what led to it."""
    driver = Driver(tmp_path)
    driver.begin()
    names = synced(monkeypatch)
    Driver(tmp_path, driver.controller)
    assert names[0] == "control_000000.log"


def test_nothing_is_deleted_before_the_snapshot_that_replaces_it_is_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = Driver(tmp_path)
    driver.begin()
    names = synced(monkeypatch)
    segment = driver.begin_segment()
    assert names[0] == "control_000000.log"
    size = last_segment(tmp_path).stat().st_size
    real_unlink, at_unlink = Path.unlink, []

    def unlink(path: Path, missing_ok: bool = False) -> None:
        at_unlink.append((path.name, names[-1], last_segment(tmp_path).stat().st_size))
        real_unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", unlink)
    driver.log.forget_before(segment)
    assert at_unlink == [("control_000000.log", "control_000001.log", size)]


# -- what was trained when


def test_the_step_of_a_group_outlives_the_decisions_that_said_it(tmp_path: Path) -> None:
    driver = Driver(tmp_path)
    driver.begin()
    while driver.controller.steps_done < 3:
        driver.happen()
    told = {key: d.step for d in leases(tmp_path) for key in d.groups}
    assert len(told) >= 6
    driver.log.forget_before(driver.begin_segment())
    assert leases(tmp_path) == []
    assert trained(tmp_path) == told


def leases(folder: Path) -> list[Train]:
    entries = [entry for entry in read_control(folder) if isinstance(entry, Decisions)]
    return [decision for entry in entries for decision in entry.decisions if isinstance(decision, Train)]


def test_a_batch_that_was_decided_anew_counts_as_it_was_decided_last(tmp_path: Path) -> None:
    """A crash between the two records of a decision leaves only the one that says what was trained when."""
    ControlLog(tmp_path, {}).decisions([Train(3, ((0, 0), (1, 0)), 1)])
    log.segment_path(tmp_path, CONTROL_STREAM, 0).unlink()
    ControlLog(tmp_path, {}).decisions([Train(3, ((1, 0), (2, 1)), 1), Train(4, ((0, 0),), 1)])
    assert trained(tmp_path) == {(1, 0): 3, (2, 1): 3, (0, 0): 4}


def test_what_was_trained_when_does_not_grow_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "_TRAINED_SEGMENT_BYTES", 200)
    monkeypatch.setattr(records, "_MOST_TRAINED_BYTES", 1000)
    writer = ControlLog(tmp_path, {})
    for step in range(200):
        writer.decisions([Train(step, ((step, 0), (step, 1)), 1)])
    writer.forget_before(writer.begin_segment({}))
    assert sum(path.stat().st_size for path in tmp_path.glob(f"{TRAINED_STREAM}_*")) <= 1000
    steps = sorted(trained(tmp_path).values())
    assert steps[-1] == 199
    assert 5 < len(set(steps)) < 100
    writer.close()


@pytest.mark.parametrize(
    ("keep", "small", "large"), [("auto", False, True), ("since_checkpoint", True, True), ("all", False, False)]
)
def test_when_the_journal_may_forget(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    keep: str,
    small: bool,
    large: bool,
) -> None:
    caplog.set_level("INFO")
    control, writer = ControlLog(tmp_path, {}), log.JournalWriter(tmp_path, GROUPS_STREAM)
    monkeypatch.setattr(records, "KEPT_BYTES", 1000)
    assert control.may_forget(keep) is small
    writer.append(records.GROUP, bytes(1000))
    assert [control.may_forget(keep) for _ in range(2)] == [large] * 2
    assert ("what no resume needs is deleted from now on" in caplog.text) is (keep == "auto")
    assert len(caplog.records) <= 1
