"""One rank of the trainer and two workers over real gloo, each end in a thread."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncrl.weights.transport import SenderConfig
from asyncrl.weights.transports.gloo import Receiver, Sender

SIZE = 1000
TIMEOUT_S = 20.0


def staged(flat: torch.Tensor) -> Any:
    return SimpleNamespace(flat=flat, shards=())


class Link:
    def __init__(self, executor: ThreadPoolExecutor, dtype: torch.dtype) -> None:
        self._executor, self._dtype = executor, dtype
        config = SenderConfig("gloo", 0, "127.0.0.1", TIMEOUT_S, "float32", Path())
        self.sender = Sender(config, staged(torch.empty(0)))
        joining = [executor.submit(Receiver, [self.sender.endpoint()], rank, 3, TIMEOUT_S) for rank in (1, 2)]
        self.sender.join(3)
        self.workers = [future.result(TIMEOUT_S) for future in joining]

    def push(self, flat: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
        """Bytes sent, and what each worker has then."""
        self.sender.copy(0, staged(flat))
        receiving = [self._executor.submit(self._receive, worker) for worker in self.workers]
        num_bytes = self.sender.send(staged(flat))
        return num_bytes, [future.result(TIMEOUT_S) for future in receiving]

    def _receive(self, worker: Receiver) -> torch.Tensor:
        [flat] = worker.receive([None], [SIZE], self._dtype)
        return flat.clone()

    def close(self) -> None:
        self.sender.close()
        for worker in self.workers:
            worker.close()


@pytest.fixture(params=[torch.bfloat16, torch.float32])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture
def link(dtype: torch.dtype) -> Iterator[Link]:
    with ThreadPoolExecutor(2) as executor:
        link = Link(executor, dtype)
        yield link
        link.close()


def same(got: list[torch.Tensor], sent: torch.Tensor) -> bool:
    """Bit for bit."""
    return all(torch.equal(one.view(torch.uint8), sent.view(torch.uint8)) for one in got)


def test_only_what_has_changed_is_sent(link: Link, dtype: torch.dtype) -> None:
    flat = torch.arange(SIZE, dtype=torch.float32).to(dtype)
    everything = SIZE * dtype.itemsize
    changes = [
        ([], everything),  # nobody has anything yet
        ([], 0),
        ([0, 7, SIZE - 1], 3 * (4 + dtype.itemsize)),
        (range(SIZE // 2), everything),  # with their places they would be more
        ([5], 4 + dtype.itemsize),
    ]
    for places, expected in changes:
        for place in places:
            flat[place] = -flat[place] - 1
        num_bytes, got = link.push(flat)
        assert num_bytes == expected
        assert same(got, flat)


def test_a_change_is_one_of_bits(link: Link, dtype: torch.dtype) -> None:
    flat = torch.zeros(SIZE, dtype=dtype)
    link.push(flat)
    flat[3], flat[4] = -0.0, float("nan")
    for expected in (2 * (4 + dtype.itemsize), 0):
        num_bytes, got = link.push(flat)
        assert num_bytes == expected
        assert same(got, flat)


def test_what_the_sender_does_with_its_buffer_later_changes_nothing(link: Link, dtype: torch.dtype) -> None:
    first, second = torch.zeros(SIZE, dtype=dtype), torch.zeros(SIZE, dtype=dtype)
    link.push(first)
    first.fill_(9.0)
    second[1] = 1.0
    num_bytes, got = link.push(second)
    assert num_bytes == 4 + dtype.itemsize
    assert same(got, second)


def test_after_a_push_that_failed_all_is_sent(link: Link, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.zeros(SIZE, dtype=dtype)
    link.push(flat)
    flat[0] = 1.0
    link.sender.copy(0, staged(flat))

    def lose(works: list[object]) -> None:
        raise RuntimeError("connection lost")

    with monkeypatch.context() as patched:
        patched.setattr("asyncrl.weights.transports.gloo._broadcast", lambda group, tensor: None)
        patched.setattr("asyncrl.weights.transports.gloo._wait", lose)
        with pytest.raises(RuntimeError, match="connection lost"):
            link.sender.send(staged(flat))
    num_bytes, got = link.push(flat)
    assert num_bytes == SIZE * dtype.itemsize
    assert same(got, flat)
