"""What an actor raises is what the driver reads: type and text, whether or not it can be pickled."""

from __future__ import annotations

import asyncio
import errno
import inspect
import pickle
import traceback
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pydantic
import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from asyncrl.buffer.actor import BufferActor
from asyncrl.checkpoint.holder import Holder
from asyncrl.checkpoint.snapshots import _HolderActor
from asyncrl.errors import ActorError, UserError, is_of_a_disk
from asyncrl.orchestrator.checkpoints import Checkpoints
from asyncrl.plugins import one_line
from asyncrl.processes.crossing import crossing
from asyncrl.rollout.generator import Generator
from asyncrl.trainer.actor import TrainerActor


class TwoWords(Exception):
    """Is pickled, and cannot be built again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


@pydantic.dataclasses.dataclass
class Arguments:
    """As vLLM checks its own."""

    max_model_len: int = 8

    @pydantic.model_validator(mode="after")
    def check(self) -> Arguments:
        raise ValueError("max_model_len is above what the model can")


def invalid() -> None:
    Arguments(9)


@crossing
class Actor:
    @ray.method(concurrency_group="push")
    def sync(self, error: Any) -> str:
        return self._do(error)

    async def later(self, error: Any) -> str:
        return self._do(error)

    def _do(self, error: Any) -> str:
        if isinstance(error, BaseException):
            raise error
        if error:
            error()
        return "done"


def raised(error: Any, method: str) -> Exception:
    actor = Actor()
    try:
        actor.sync(error) if method == "sync" else asyncio.run(actor.later(error))
    except Exception as found:
        return found
    pytest.fail("nothing was raised")


@pytest.mark.parametrize("method", ["sync", "later"])
def test_an_error_that_cannot_be_pickled_arrives_with_its_type_and_text(method: str) -> None:
    for error, text in ((invalid, "ValidationError: 1 validation error for Arguments"), (TwoWords("a", "b"), "a b")):
        arrived = pickle.loads(pickle.dumps(raised(error, method)))
        assert text in one_line(arrived)
        assert "pickle" not in str(arrived)
        assert isinstance(raised(error, method).__cause__, pydantic.ValidationError | TwoWords)
        # As Ray wraps it.
        assert text in one_line(RayTaskError("start", "traceback", arrived).as_instanceof_cause().cause)


@pytest.mark.parametrize("method", ["sync", "later"])
def test_an_error_that_utf8_cannot_hold_arrives_with_its_escape(method: str) -> None:
    """Ray encodes the whole traceback, and ends the actor if it cannot."""
    for error in (UserError("half \ud83d"), ValueError("half \ud83d")):
        arrived = raised(error, method)
        assert "in _do" in "".join(traceback.format_exception(arrived)).encode().decode()
        assert one_line(arrived).startswith(f"{type(error).__name__}: half \\ud83d")
        assert isinstance(arrived, UserError) == isinstance(error, UserError)


@pytest.mark.parametrize("method", ["sync", "later"])
def test_what_can_be_pickled_is_left_alone(method: str) -> None:
    for error in (UserError("rollout: no"), RayActorError(), RayTaskError("f", "t", TwoWords("a", "b"))):
        assert raised(error, method) is error
    assert Actor().sync(None) == asyncio.run(Actor().later(None)) == "done"


def test_ray_sees_the_methods_as_they_were() -> None:
    assert Actor.sync.__ray_concurrency_group__ == "push"
    assert inspect.iscoroutinefunction(Actor.later)
    assert list(inspect.signature(Actor.sync).parameters) == ["self", "error"]


@pytest.mark.parametrize("actor", [TrainerActor, Generator, BufferActor, _HolderActor])
def test_every_actor_is_such_a_one(actor: Any) -> None:
    methods = inspect.getmembers(actor.__ray_metadata__.modified_class, inspect.isfunction)
    own = [method for name, method in methods if not name.startswith("_")]
    assert own
    assert all(method.__wrapped__ for method in own)
    assert Holder().put.__wrapped__


class Errors:
    full = RayTaskError("save", "traceback", OSError(errno.ENOSPC, "No space left on device"))
    rust = RayTaskError("save", "traceback", RuntimeError("I/O error: No space left on device (os error 28)"))
    ours = RayTaskError("export", "the traceback", ActorError("ValueError", "temperature is set, do_sample is not"))
    denied = PermissionError(errno.EACCES, "Permission denied", "control.json")


@pytest.mark.parametrize("name", ["full", "rust", "ours", "denied"])
def test_only_a_disk_is_to_be_repaired(name: str, tmp_path: Path) -> None:
    error = getattr(Errors, name)
    checkpoints = SimpleNamespace(_root=tmp_path / "checkpoints", version=4)
    said = str(Checkpoints._failed(checkpoints, 6, error))
    assert is_of_a_disk(getattr(error, "cause", error)) == (name in ("full", "rust"))
    if name in ("full", "rust"):
        assert said.endswith("No space left on device" + " (os error 28)" * (name == "rust")
                             + "; free or repair the disk, then `asyncrl resume`: nothing is lost")  # fmt: skip
    else:
        assert said.startswith("checkpoint 6 could not be made: ")
        assert said.endswith("put that right, then `asyncrl resume` trains the steps since version 4 again")
        assert "repair" not in said
    if name == "ours":
        assert "ValueError: temperature is set" in said
        assert "the traceback" in (tmp_path / "error.log").read_text()
