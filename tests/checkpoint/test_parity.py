"""Bytes and tensors come back bit for bit, with any one shard missing; never with two."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from asyncrl.checkpoint.parity import SnapshotLost, flatten, join, parity, rebuild, split, unflatten

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.int8, torch.uint8)

buffers = st.binary(max_size=200).map(lambda data: np.frombuffer(data, dtype=np.uint8))
num_shards = st.integers(1, 9)


@given(buffer=buffers, n=num_shards)
def test_split_is_equal_and_zero_padded(buffer: np.ndarray, n: int) -> None:
    shards = split(buffer, n)
    size = -(-len(buffer) // n)
    assert [shard.shape for shard in shards] == [(size,)] * n
    whole = join(shards)
    assert whole[: len(buffer)].tobytes() == buffer.tobytes()
    assert not whole[len(buffer) :].any()
    assert whole.flags.writeable


def test_split_copies_only_what_it_pads() -> None:
    buffer = np.arange(10, dtype=np.uint8)
    shards = split(buffer, 4)
    assert [np.shares_memory(shard, buffer) for shard in shards] == [True, True, True, False]
    with pytest.raises(ValueError, match="at least 1"):
        split(buffer, 0)


@given(buffer=buffers, n=num_shards, data=st.data())
def test_any_one_missing_shard_is_rebuilt(buffer: np.ndarray, n: int, data: st.DataObject) -> None:
    shards = split(buffer, n)
    all_shards: list[np.ndarray | None] = [*shards, parity(shards)]
    missing = data.draw(st.none() | st.integers(0, n))
    if missing is not None:
        all_shards[missing] = None
    rebuilt = rebuild(all_shards)
    assert [shard.tobytes() for shard in rebuilt] == [shard.tobytes() for shard in shards]
    assert join(rebuilt)[: len(buffer)].tobytes() == buffer.tobytes()
    assert join(shards)[: len(buffer)].tobytes() == buffer.tobytes(), "the shards themselves are not changed"


@given(buffer=buffers, n=num_shards, data=st.data())
def test_two_missing_shards_are_an_error(buffer: np.ndarray, n: int, data: st.DataObject) -> None:
    shards = split(buffer, n)
    missing = data.draw(st.sets(st.integers(0, n), min_size=2))
    with pytest.raises(SnapshotLost, match="checkpoint on disk"):
        rebuild([None if i in missing else shard for i, shard in enumerate([*shards, parity(shards)])])


def test_the_error_names_the_missing_shards() -> None:
    shard = np.zeros(3, dtype=np.uint8)
    with pytest.raises(SnapshotLost, match="shards 0 and 3 of 4 are missing"):
        rebuild([None, shard, shard, None])
    with pytest.raises(SnapshotLost, match="shards 0, 1 and 2 of 4 are missing"):
        rebuild([None, None, None, shard])


def test_parity_is_of_every_shard() -> None:
    shards = [np.array([value], dtype=np.uint8) for value in (0b0001, 0b0011, 0b0111)]
    assert parity(shards) == 0b0101
    assert [int(shard[0]) for shard in shards] == [0b0001, 0b0011, 0b0111]


def tensor_of(dtype: torch.dtype, shape: list[int], seed: int) -> Tensor:
    size = torch.Size(shape).numel() * dtype.itemsize
    bits = torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return bits.view(dtype).view(shape)


def bits(tensors: dict[str, Tensor]) -> list[tuple[str, torch.dtype, torch.Size, bytes]]:
    """Names in order, and bytes: equality of NaNs would say nothing."""
    return [
        (name, t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    ]


states = st.dictionaries(
    st.text(max_size=8),
    st.builds(tensor_of, st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3), st.integers(0, 2**32)),
    max_size=6,
)


@settings(max_examples=200, deadline=None)
@given(state=states, n=num_shards)
def test_tensors_come_back_bit_for_bit(state: dict[str, Tensor], n: int) -> None:
    layout, buffer = flatten(state)
    assert (buffer.dtype, buffer.ndim, len(buffer)) == (np.uint8, 1, layout["num_bytes"])
    back = unflatten(json.loads(json.dumps(layout)), join(split(buffer, n)))
    assert bits(back) == bits(state)
    for tensor in back.values():
        tensor.zero_()


def test_nan_payloads_survive() -> None:
    payloads = torch.tensor([0x7FC00001, 0x7F800001, -1, 0x7FFFFFFF], dtype=torch.int32)
    state = {"quiet and signalling": payloads.view(torch.float32), "half": payloads.view(torch.bfloat16)}
    assert all(tensor.isnan().any() for tensor in state.values())
    assert bits(unflatten(*flatten(state))) == bits(state)


def test_the_buffer_is_a_copy_and_the_tensors_are_views() -> None:
    source = torch.zeros(3, requires_grad=True)
    layout, buffer = flatten({"w": source})
    with torch.no_grad():
        source.fill_(1)
    tensor = unflatten(layout, buffer)["w"]
    assert tensor.tolist() == [0, 0, 0]
    buffer[:] = 255
    assert tensor.isnan().all()


def test_equal_states_give_equal_buffers() -> None:
    state = {"byte": torch.ones(1, dtype=torch.uint8), "float": torch.ones(1), "scalar": torch.tensor(2.0)}
    assert flatten(state)[1].tobytes() == flatten(state)[1].tobytes()
