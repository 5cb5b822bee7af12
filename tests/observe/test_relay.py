"""What a process warns of leaves it, once, in order, and without what nobody can use."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from asyncrl.errors import RunFailed
from asyncrl.observe import relay
from asyncrl.observe.relay import TOLD, Notice, Repeats
from asyncrl.storage import private


@pytest.fixture(autouse=True)
def relaying(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> Iterator[None]:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(relay, "_relay", None)
    monkeypatch.setenv("ASYNCRL_NOTICES", "")
    monkeypatch.delenv(private.WITHIN, raising=False)
    relay.relay()
    yield
    logging.captureWarnings(False)
    for name in relay._LOGGERS:
        logger = logging.getLogger(name)
        for handler in [h for h in logger.handlers if isinstance(h, relay.Relay)]:
            logger.removeHandler(handler)


def texts() -> list[str]:
    return [notice.text for notice in relay.take()]


def test_warnings_of_ours_and_of_the_libraries_are_taken_once() -> None:
    logging.getLogger("asyncrl.trainer.fit").warning("%s is slow:\n  %d", "a model", 7)
    logging.getLogger("asyncrl.trainer.fit").info("not this")
    logging.getLogger("vllm.v1.engine").error("out of blocks")
    logging.getLogger("another").error("nor this")
    assert relay.take() == [
        Notice(logging.WARNING, "a model is slow: 7"),
        Notice(logging.ERROR, "vllm: out of blocks"),
    ]
    assert relay.take() == []


def test_warnings_of_the_warnings_module_are_taken_but_for_those_to_programmers() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("lr_scheduler before optimizer", UserWarning, stacklevel=1)
        warnings.warn("reduce_op is deprecated", FutureWarning, stacklevel=1)
        logging.captureWarnings(False)
    (text,) = texts()
    assert text.startswith("py: ")
    assert "UserWarning: lr_scheduler before optimizer" in text


def test_what_our_own_settings_make_vllm_say_is_left_out() -> None:
    logger = logging.getLogger("vllm")
    logger.warning("Enforce eager set, disabling torch.compile")
    logger.warning("%s: Failed to load weights", "ParallelLMHead")
    logger.warning("%s: Failed to load weights", "FusedMoE")
    assert texts() == ["vllm: FusedMoE: Failed to load weights"]


def test_an_exception_is_in_the_line() -> None:
    try:
        raise KeyError("gold")
    except KeyError:
        logging.getLogger("asyncrl").exception("it failed")
        logging.getLogger("asyncrl").exception("said by a result", extra={TOLD: True})
    assert texts() == ["it failed: KeyError: 'gold'"]


def test_what_repeats_goes_out_ever_more_rarely() -> None:
    for number in range(1000):
        logging.getLogger("asyncrl").warning("snapshot %d was not taken", number)
    assert texts() == [
        *(f"snapshot {n} was not taken" for n in range(3)),
        *(f"snapshot {n - 1} was not taken (for the {n}th time)" for n in (10, 100, 1000)),
    ]


def test_a_flood_is_cut_and_says_so() -> None:
    for number in range(300):
        logging.getLogger("vllm").warning("request %d is odd", number)
    found = texts()
    assert found[99] == "vllm: request 99 is odd"
    assert found[100:] == ["200 more warnings, which are in its own file alone"]


def test_a_child_hands_its_warnings_on() -> None:
    code = (
        "import logging; from asyncrl.observe.relay import relay_to_parent; relay_to_parent()\n"
        "logging.getLogger('vllm').warning('from below'); logging.getLogger('asyncrl').error('and this')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ}, timeout=60)
    assert texts() == ["vllm: from below", "and this"]
    assert texts() == []


def test_what_a_child_makes_among_temporary_files_is_in_its_parents_folder() -> None:
    code = (
        "import tempfile; from asyncrl.observe.relay import relay_to_parent; relay_to_parent()\n"
        "print(tempfile.gettempdir())"
    )
    said = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert said.stdout.strip() == os.path.dirname(os.environ["ASYNCRL_NOTICES"])


@pytest.mark.parametrize("kind", ["link", "pipe", "readable", "folder"])
def test_a_child_writes_to_nothing_but_a_file_of_its_own(tmp_path: Path, kind: str) -> None:
    (mine := tmp_path / "mine").write_text("")
    notices = Path(os.environ["ASYNCRL_NOTICES"])
    handler, errors = relay.Relay(notices), []
    handler.handleError = lambda _: errors.append(sys.exception())  # type: ignore[method-assign]
    record = logging.LogRecord("asyncrl", logging.WARNING, "", 0, "said", (), None)
    lay = {
        "link": lambda: notices.symlink_to(mine),
        "pipe": lambda: os.mkfifo(notices),
        "readable": lambda: (notices.touch(), notices.chmod(0o666)),
        "folder": notices.mkdir,
    }
    lay[kind]()
    handler.emit(record)
    [error] = errors
    assert isinstance(error, RunFailed | OSError)
    assert mine.read_text() == ""
    notices.rename(tmp_path / "aside")
    handler.emit(record)
    assert notices.stat().st_mode & 0o777 == 0o600
    assert texts() == ["said"]


def test_one_that_cannot_be_handed_on_ends_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: object) -> None:
    monkeypatch.setattr(logging, "raiseExceptions", False)
    relay.relay()
    logging.getLogger("asyncrl").warning("%d numbers", "no number")
    logging.getLogger("asyncrl").warning("sound")
    assert texts() == ["sound"]


def test_repeats_forget_before_they_fill_the_memory() -> None:
    repeats = Repeats()
    for number in range(5000):
        assert repeats.words(str(number), "x") == "x"
    assert len(repeats._times) <= 1001
