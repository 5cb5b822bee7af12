"""What a save consumes is the state at its start, whatever the trainer does after `wait_copied`."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncrl.checkpoint.saver import BackgroundSaver, room_for
from asyncrl.errors import DeadlineExceeded

DEADLINE_S = 20.0
DTYPES = (torch.float32, torch.bfloat16, torch.int64, torch.uint8)


def random_tensor(dtype: torch.dtype, shape: list[int], transposed: bool, seed: int) -> Tensor:
    """Random bits, NaNs of any payload among the floats."""
    size = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    tensor = bits.view(dtype).view(shape)
    return tensor.mT if transposed and tensor.dim() >= 2 else tensor


tensors_of_state = st.dictionaries(
    st.text(min_size=1, max_size=8),
    st.builds(
        random_tensor,
        st.sampled_from(DTYPES),
        st.lists(st.integers(0, 5), max_size=3),
        st.booleans(),
        st.integers(0, 2**32),
    ),
    max_size=6,
)


def bits(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.dtype, torch.Size, bytes]]:
    return {
        name: (t.dtype, t.shape, t.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    }


class Consumer:
    """Keeps the bits it was given, once `gate` is open; `entered` says that the copy is done."""

    def __init__(self, is_open: bool = True) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        self.seen: list[Any] = []
        self.addresses: list[dict[str, int]] = []
        if is_open:
            self.gate.set()

    def __call__(self, copies: dict[str, Tensor]) -> None:
        self.entered.set()
        assert self.gate.wait(DEADLINE_S)
        assert not any(copy.requires_grad for copy in copies.values())
        self.seen.append(bits(copies))
        self.addresses.append({name: t.data_ptr() for name, t in copies.items()})


class HeldCopies:
    """Every copy into a host buffer waits for `gate`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.gate, self.entered = threading.Event(), threading.Event()
        real = Tensor.copy_

        def copy_(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            self.entered.set()
            assert self.gate.wait(DEADLINE_S)
            return real(target, *args, **kwargs)

        patch.setattr(Tensor, "copy_", copy_)


@pytest.fixture
def held_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldCopies]:
    held = HeldCopies(monkeypatch)
    yield held
    held.gate.set()


@settings(max_examples=60, deadline=None)
@given(states=st.lists(tensors_of_state, min_size=1, max_size=3))
def test_a_change_after_wait_copied_never_reaches_the_save(states: list[dict[str, Tensor]]) -> None:
    saver = BackgroundSaver(DEADLINE_S)
    for state in states:
        before, consumer = bits(state), Consumer(is_open=False)
        saver.start(state, consumer)
        saver.wait_copied()
        for tensor in state.values():
            tensor.fill_(7)
        state.clear()
        consumer.gate.set()
        saver.wait(DEADLINE_S)
        assert consumer.seen == [before]


def test_parameters_that_require_a_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    saver, consumer = BackgroundSaver(DEADLINE_S), Consumer()
    for value in (1.0, 2.0):
        with torch.no_grad():
            parameter.fill_(value)
        saver.start({"p": parameter}, consumer)
        saver.wait(DEADLINE_S)
    assert consumer.seen == [bits({"p": torch.full((3,), value)}) for value in (1.0, 2.0)]


def test_without_wait_copied_a_change_does_reach_the_save(held_copies: HeldCopies) -> None:
    tensor, consumer = torch.zeros(4), Consumer()
    saver = BackgroundSaver(DEADLINE_S)
    saver.start({"w": tensor}, consumer)
    assert held_copies.entered.wait(DEADLINE_S)
    tensor.fill_(1)
    held_copies.gate.set()
    saver.wait(DEADLINE_S)
    assert consumer.seen == [bits({"w": torch.ones(4)})]


def test_wait_copied_blocks_until_the_copy_is_done(held_copies: HeldCopies) -> None:
    tensor, consumer = torch.zeros(4), Consumer()
    saver = BackgroundSaver(DEADLINE_S)
    saver.start({"w": tensor}, consumer)
    assert held_copies.entered.wait(DEADLINE_S)
    # Were `wait_copied` not to block, it would return long before the gate opens.
    threading.Timer(0.1, held_copies.gate.set).start()
    waited_s = saver.wait_copied()
    assert held_copies.gate.is_set()
    assert waited_s > 0
    tensor.fill_(1)
    saver.wait(DEADLINE_S)
    assert consumer.seen == [bits({"w": torch.zeros(4)})]


def test_wait_copied_does_not_wait_for_consume() -> None:
    saver, consumer = BackgroundSaver(DEADLINE_S), Consumer(is_open=False)
    assert saver.wait_copied() == 0.0
    assert not saver.busy
    saver.start({"w": torch.zeros(4)}, consumer)
    assert consumer.entered.wait(DEADLINE_S)
    assert saver.wait_copied() == 0.0
    assert saver.busy
    assert not consumer.seen
    consumer.gate.set()
    saver.wait(DEADLINE_S)
    assert saver.wait_copied() == 0.0
    assert not saver.busy


def test_one_save_at_a_time() -> None:
    saver, first, second = BackgroundSaver(DEADLINE_S), Consumer(is_open=False), Consumer()
    saver.start({"w": torch.zeros(4)}, first)
    assert first.entered.wait(DEADLINE_S)
    threading.Timer(0.1, first.gate.set).start()
    saver.start({"w": torch.ones(4)}, second)
    assert first.seen == [bits({"w": torch.zeros(4)})]
    saver.wait(DEADLINE_S)
    assert second.seen == [bits({"w": torch.ones(4)})]


def test_buffers_are_reused_where_they_fit() -> None:
    saver, consumer = BackgroundSaver(DEADLINE_S), Consumer()
    shapes = [{"a": (64,), "b": (8, 8)}, {"a": (64,), "b": (8, 8)}, {"a": (64,), "b": (9, 8)}, {"a": (64,)}]
    for number, shape in enumerate(shapes):
        state = {name: torch.full(size, float(number)) for name, size in shape.items()}
        saver.start(state, consumer)
        saver.wait(DEADLINE_S)
        assert consumer.seen[-1] == bits(state)
    assert consumer.addresses[0] == consumer.addresses[1]
    assert {addresses["a"] for addresses in consumer.addresses} == {consumer.addresses[0]["a"]}


def test_an_error_in_consume_is_raised_once() -> None:
    def full(copies: dict[str, Tensor]) -> None:
        raise OSError("no space left")

    saver, consumer = BackgroundSaver(DEADLINE_S), Consumer()
    saver.start({"w": torch.zeros(4)}, full)
    with pytest.raises(OSError, match="no space left"):
        saver.wait(DEADLINE_S)
    saver.wait(DEADLINE_S)
    saver.start({"w": torch.zeros(4)}, full)
    with pytest.raises(OSError, match="no space left"):
        saver.start({"w": torch.zeros(4)}, consumer)
    assert not consumer.seen
    saver.start({"w": torch.zeros(4)}, consumer)
    saver.wait(DEADLINE_S)
    assert len(consumer.seen) == 1


def test_an_error_in_the_copy_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    began, fail = threading.Event(), threading.Event()

    def copy_(*args: Any, **kwargs: Any) -> Tensor:
        began.set()
        assert fail.wait(DEADLINE_S)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Tensor, "copy_", copy_)
    saver, consumer = BackgroundSaver(DEADLINE_S), Consumer()
    saver.start({"w": torch.zeros(4)}, consumer)
    assert began.wait(DEADLINE_S)
    threading.Timer(0.1, fail.set).start()
    assert 0 < saver.wait_copied() < DEADLINE_S
    with pytest.raises(RuntimeError, match="out of memory"):
        saver.wait(DEADLINE_S)
    assert not consumer.seen


def test_deadlines_of_the_copy(held_copies: HeldCopies) -> None:
    saver = BackgroundSaver(deadline_s=0.05)
    saver.start({"w": torch.zeros(4)}, Consumer())
    with pytest.raises(DeadlineExceeded, match="the copy of the state"):
        saver.wait_copied()
    with pytest.raises(DeadlineExceeded, match="being copied"):
        saver.start({"w": torch.zeros(4)}, Consumer())
    held_copies.gate.set()
    saver.wait(DEADLINE_S)


def test_deadlines_of_consume() -> None:
    saver, consumer = BackgroundSaver(deadline_s=0.05), Consumer(is_open=False)
    saver.start({"w": torch.zeros(4)}, consumer)
    assert consumer.entered.wait(DEADLINE_S)
    for wait in (lambda: saver.wait(0.01), lambda: saver.start({}, consumer)):
        with pytest.raises(DeadlineExceeded, match="being written or sent"):
            wait()
    consumer.gate.set()
    saver.wait(DEADLINE_S)
    assert len(consumer.seen) == 1


@given(tensors_of_state)
def test_a_room_holds_all_and_hardly_more(tensors: dict[str, Tensor]) -> None:
    room = room_for(tensors, pinned=False)
    for name, tensor in tensors.items():
        room[name].copy_(tensor)
    assert bits(room) == bits(tensors)
    starts = {tensor.untyped_storage().data_ptr() for tensor in room.values()}
    assert len(starts) <= 1
    for tensor in room.values():
        assert tensor.untyped_storage().nbytes() <= sum(t.nbytes + 64 for t in tensors.values())
        assert tensor.numel() == 0 or tensor.data_ptr() % 8 == 0


def test_a_pinned_room_is_registered_as_long_as_one_of_it_is_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a runtime of CUDA that only takes note."""
    held: dict[int, int] = {}

    class Runtime:
        def cudaHostRegister(self, address: int, num_bytes: int, flags: int) -> int:
            held[address] = num_bytes
            return 0

        def cudaHostUnregister(self, address: int) -> int:
            del held[address]
            return 0

    monkeypatch.setattr(torch.cuda, "cudart", Runtime)
    monkeypatch.setattr(torch.cuda, "check_error", lambda code: None)
    room = room_for({"a": torch.zeros(3), "b": torch.zeros(100)}, pinned=True)
    assert held == {room["a"].data_ptr(): 64 + 448}
    one = room.pop("b")
    room.clear()
    assert held
    del one
    assert not held
