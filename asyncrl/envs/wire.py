"""Between a generator and the processes of its environments: what they say to each other, and how it is framed.

generator --Load, Start, Cancel, Answer, Refusal--> process    pickled: rows are whatever Python has
generator <--Loaded, Note, Call, End-- process                 msgpack: a user's code may write to the socket
"""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from asyncrl.envs.environment import Sampled
from asyncrl.task import Task

MOST_BYTES = 2**28
"""Of one frame: a prompt of a million tokens has nine."""


@dataclass(frozen=True)
class Load:
    """What a process needs to begin."""

    spec: str
    base_dir: Path
    kwargs: dict[str, Any]
    model: str
    """Whose tokenizer and chat template it takes."""
    template_kwargs: dict[str, Any]
    tool_timeout_s: float
    temperature: float = 1.0
    """Of every completion."""
    tool_parser: str | None = None
    """None: by the chat template."""


@dataclass(frozen=True)
class Start:
    name: str
    task: Task
    prompt: list[int]


@dataclass(frozen=True)
class Cancel:
    name: str


@dataclass(frozen=True)
class Answer:
    call: int
    sampled: Sampled


@dataclass(frozen=True)
class Refusal:
    """Why nothing was sampled."""

    call: int
    why: str
    full: bool = True
    """ContextFull; else the call itself was wrong."""


@dataclass(frozen=True)
class Ping:
    """Does the event loop answer?"""


class Pong(msgspec.Struct, tag=True):
    """It does."""


class Loaded(msgspec.Struct, tag=True):
    error: str | None


class Note(msgspec.Struct, tag=True):
    """A warning for the log."""

    text: str


class Call(msgspec.Struct, tag=True):
    """As `environment.Ask`."""

    name: str
    call: int
    tokens: list[int]
    max_new_tokens: int | None
    stop: list[str]
    stop_token_ids: list[int]
    train: bool
    agent: str = ""


class Drop(msgspec.Struct, tag=True):
    """Nobody waits for a call any more."""

    name: str
    call: int


class End(msgspec.Struct, tag=True):
    name: str
    reward: float | None = None
    extras: dict[str, float] = {}
    notes: dict[str, str] = {}
    error: str | None = None
    is_scored: bool = False
    """False: the recipe's reward function judges it."""
    finish_reason: str = "stop"
    why: str = ""
    """It has no score."""
    rewards: dict[str, float] = {}
    """Of further agents."""
    turn_rewards: dict[int, float] = {}
    tool_calls: int = 0
    tool_failures: int = 0
    tool_s: float = 0.0


FromProcess = Loaded | Pong | Note | Call | Drop | End

_ENCODER, _DECODER = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(FromProcess)


@dataclass
class Channel:
    """One end of the socket, on an event loop. Writing never waits; what the other end does not take is kept."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, payload: bytes) -> None:
        if not self.writer.is_closing():
            self.writer.write(len(payload).to_bytes(4, "little") + payload)

    async def receive(self) -> bytes | None:
        """None: the other end is gone. Raises ValueError at a frame that is too long."""
        try:
            size = int.from_bytes(await self.reader.readexactly(4), "little")
            if size > MOST_BYTES:
                raise ValueError(f"a message of {size} bytes, over {MOST_BYTES}")
            return await self.reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    def close(self) -> None:
        self.writer.close()


def to_process(message: Load | Start | Cancel | Ping | Answer | Refusal) -> bytes:
    return pickle.dumps(message)


def from_generator(payload: bytes) -> Any:
    return pickle.loads(payload)


def to_generator(message: FromProcess) -> bytes:
    return _ENCODER.encode(message)


def from_process(payload: bytes) -> FromProcess:
    """Raises msgspec.DecodeError."""
    return _DECODER.decode(payload)
