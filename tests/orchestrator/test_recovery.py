"""A run directory tells where its run broke off, or says in one sentence why it does not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from asyncrl.buffer import log
from asyncrl.buffer.records import CONTROL_STREAM, ControlLog
from asyncrl.control.controller import Controller
from asyncrl.control.messages import GeneratorJoined, GroupFinished, Start, StepDone, Train, WeightsLive
from asyncrl.control.settings import Settings
from asyncrl.errors import UserError
from asyncrl.orchestrator.recovery import recover
from asyncrl.storage import atomic

SETTINGS = Settings(groups_per_step=2, max_staleness=1, max_steps=4, tokens_per_group=10)


class Writer:
    """Does what the driver does to a run directory, without actors."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.controller = Controller(SETTINGS)
        self.journal = ControlLog(run_dir / "journal", self.controller.state())
        self.running: list[Start] = []
        for event in (GeneratorJoined("g0"), WeightsLive(0)):
            self.handle(event)

    def handle(self, event: Any) -> None:
        self.controller.handle(event)
        self.journal.event(event)
        decisions = self.controller.decide()
        self.journal.decisions(decisions)
        self.running += [d for d in decisions if isinstance(d, Start)]

    def fill_batch(self) -> None:
        while self.controller.training is None:
            start = self.running.pop(0)
            self.handle(GroupFinished(start.task, start.attempt, self.controller.live, self.controller.live, 10))

    def step(self) -> None:
        self.fill_batch()
        self.handle(StepDone(self.controller.steps_done))
        self.handle(WeightsLive(self.controller.steps_done))

    def checkpoint(self) -> None:
        part = atomic.begin(self.run_dir / "checkpoints", self.controller.steps_done)
        state = self.controller.state()
        segment = self.journal.begin_segment(state)
        (part / "control.json").write_text(json.dumps({"steps_done": self.controller.steps_done, "controller": state}))
        atomic.commit(part)
        self.journal.forget_before(segment)


def test_a_run_without_a_checkpoint_goes_on_from_version_0(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.step()
    writer.fill_batch()
    found = recover(tmp_path, SETTINGS)
    assert (found.checkpoint, found.version) == (None, 0)
    assert found.controller.state() == writer.controller.state()
    assert sorted(found.batches) == [0, 1], "the step done, and the one in flight"
    assert found.controller.training == found.batches[1]


def test_only_the_batches_since_the_checkpoint_are_trained_again(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.step()
    writer.step()
    writer.checkpoint()
    writer.step()
    found = recover(tmp_path, SETTINGS)
    assert found.checkpoint == tmp_path / "checkpoints/step_000002"
    assert found.version == 2
    assert sorted(found.batches) == [2]
    assert found.controller.steps_done == 3


def test_without_its_journal_a_run_goes_on_from_the_checkpoint(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.step()
    writer.checkpoint()
    saved = writer.controller.state()
    writer.step()
    (tmp_path / "journal").rename(tmp_path / "away")
    found = recover(tmp_path, SETTINGS)
    assert found.controller.state() == saved
    assert (found.version, found.batches) == (1, {})


def test_nothing_to_resume_from(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a checkpoint nor a journal"):
        recover(tmp_path, SETTINGS)


def test_settings_that_cannot_go_on(tmp_path: Path) -> None:
    Writer(tmp_path).step()
    with pytest.raises(UserError, match="set groups_per_step=2 to resume it"):
        recover(tmp_path, Settings(groups_per_step=3, max_staleness=1, max_steps=4, tokens_per_group=10))


def test_a_missing_segment_is_noticed(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.step()
    writer.journal.begin_segment(writer.controller.state())
    writer.step()
    log.segment_path(tmp_path / "journal", CONTROL_STREAM, 0).unlink()
    with pytest.raises(UserError, match="lacks the batch of step 1, which checkpoint 0 does not contain"):
        recover(tmp_path, SETTINGS)


def test_a_journal_of_another_program_is_one_sentence(tmp_path: Path) -> None:
    writer = Writer(tmp_path)
    writer.journal.decisions([Train(0, ((7, 0), (8, 0)), 0)])
    with pytest.raises(UserError, match="does not fit this version of asyncrl"):
        recover(tmp_path, SETTINGS)


def test_a_damaged_journal_names_file_and_offset(tmp_path: Path) -> None:
    Writer(tmp_path).step()
    path = log.segment_path(tmp_path / "journal", CONTROL_STREAM, 0)
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(log.JournalCorrupt, match=r"control_000000\.log: the record at offset 0 is damaged"):
        recover(tmp_path, SETTINGS)
