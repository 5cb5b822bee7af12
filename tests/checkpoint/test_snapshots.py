"""Snapshots in real Ray actors, which are killed with kill -9 or stopped."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from asyncrl.checkpoint import snapshots as module
from asyncrl.checkpoint.parity import SnapshotLost
from asyncrl.checkpoint.snapshots import Snapshots, create
from asyncrl.errors import DeadlineExceeded

pytestmark = pytest.mark.slow

DEADLINE_S = 30.0
OBJECT_STORE_BYTES = 80 * 2**20


@pytest.fixture(scope="module")
def holders(local_ray: Callable[..., None]) -> Snapshots:
    """Two data shards and parity, with a deadline that a test may change."""
    local_ray(num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
    return create(num_shards=2, deadline_s=DEADLINE_S)


@pytest.fixture
def snapshots(holders: Snapshots) -> Snapshots:
    """All holders alive and empty."""
    holders.deadline_s = DEADLINE_S
    wait_until_all_serve(holders)
    ray.get([holder.__ray_call__.remote(lambda self: self._shards.clear()) for holder in holders.holders])
    return holders


def state(seed: int) -> dict[str, Tensor]:
    """About 1 MB of mixed dtypes, random bits: NaNs included."""
    bits = torch.randint(0, 256, (2**20,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    return {
        "weights": bits[: 2**19].view(torch.float32).view(256, 512),
        "half": bits[2**19 : -2].view(torch.bfloat16),
        "step": torch.tensor(float(seed)),
        "rng": bits[-7:],
        "empty": torch.empty(0, 4),
    }


def bits(tensors: dict[str, Tensor]) -> list[tuple[str, torch.dtype, torch.Size, bytes]]:
    return [
        (name, t.dtype, t.shape, t.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        for name, t in tensors.items()
    ]


def pid_of(snapshots: Snapshots, index: int) -> int:
    return ray.get(snapshots.holders[index].__ray_call__.remote(lambda _: os.getpid()), timeout=DEADLINE_S)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def wait_until_all_serve(snapshots: Snapshots) -> None:
    """Ray has put an empty holder in the place of each that was killed."""

    def all_serve() -> bool:
        try:
            snapshots.wait_started()
        except DeadlineExceeded:
            return False
        return True

    until(all_serve)


def kill(snapshots: Snapshots, *indices: int) -> None:
    pids = [pid_of(snapshots, index) for index in indices]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    for pid in pids:
        until(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))


def test_what_is_stored_is_loaded(snapshots: Snapshots) -> None:
    assert snapshots.latest(most=99) is None
    for version in (3, 4, 8):
        snapshots.store(version, state(version))
        assert snapshots.latest(most=99) == version
    for version in (4, 8):
        assert bits(snapshots.load(version)) == bits(state(version))
    with pytest.raises(SnapshotLost, match="snapshot 3: shards 0, 1 and 2 of 3 are missing"):
        snapshots.load(3)
    snapshots.load(8)["weights"].zero_()
    assert bits(snapshots.load(8)) == bits(state(8))


@pytest.mark.parametrize("lost", [0, 2])
def test_one_killed_holder_loses_nothing(snapshots: Snapshots, lost: int) -> None:
    snapshots.store(1, state(1))
    kill(snapshots, lost)
    assert snapshots.latest(most=99) == 1
    assert bits(snapshots.load(1)) == bits(state(1))
    # The next store goes on without it, and once it is replaced any one may die again.
    snapshots.store(2, state(2))
    assert bits(snapshots.load(2)) == bits(state(2))
    wait_until_all_serve(snapshots)
    assert snapshots.latest(most=99) == 2
    snapshots.store(3, state(3))
    kill(snapshots, (lost + 1) % 3)
    assert snapshots.latest(most=99) == 3
    assert bits(snapshots.load(3)) == bits(state(3))


def test_two_killed_holders_lose_the_snapshot(snapshots: Snapshots) -> None:
    snapshots.store(1, state(1))
    kill(snapshots, 0, 2)
    assert snapshots.latest(most=99) is None
    with pytest.raises(SnapshotLost, match="snapshot 1: shards 0 and 2 of 3 are missing"):
        snapshots.load(1)
    wait_until_all_serve(snapshots)
    assert snapshots.latest(most=99) is None
    snapshots.store(2, state(2))
    assert bits(snapshots.load(2)) == bits(state(2))


def test_a_damaged_shard_counts_as_missing(snapshots: Snapshots) -> None:
    def damage(holder: module.Holder) -> None:
        holder._shards[1].data[0] ^= 1

    snapshots.store(1, state(1))
    ray.get(snapshots.holders[1].__ray_call__.remote(damage))
    assert snapshots.latest(most=99) == 1
    assert bits(snapshots.load(1)) == bits(state(1))
    kill(snapshots, 0)
    assert snapshots.latest(most=99) is None


def send_and_die(snapshots: Snapshots, version: int, seed: int, num_sent: int) -> None:
    """Another process stores state(seed) and is killed when `num_sent` holders have taken their shard."""
    make_state = state

    @ray.remote(num_cpus=0, max_retries=0)
    def send(snapshots: Snapshots) -> None:
        real = module.Shard

        def die_at(attempt: str, index: int, *rest: Any) -> module.Shard:
            if index == num_sent:
                # A holder answers in order: what was sent to it before this call has arrived.
                ray.get([holder.versions.remote() for holder in snapshots.holders[:num_sent]], timeout=DEADLINE_S)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(attempt, index, *rest)

        module.Shard = die_at
        snapshots.store(version, make_state(seed))

    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(send.remote(snapshots), timeout=DEADLINE_S)


def attempts_of(snapshots: Snapshots, version: int) -> list[str | None]:
    held = ray.get([holder.versions.remote() for holder in snapshots.holders], timeout=DEADLINE_S)
    return [versions.get(version) for versions in held]


def test_a_sender_that_dies_half_way_leaves_the_version_before(snapshots: Snapshots) -> None:
    snapshots.store(6, state(6))
    send_and_die(snapshots, 7, seed=7, num_sent=1)
    assert [attempt is not None for attempt in attempts_of(snapshots, 7)] == [True, False, False]
    assert snapshots.latest(most=99) == 6
    assert bits(snapshots.load(6)) == bits(state(6))
    with pytest.raises(SnapshotLost, match="snapshot 7: shards 1 and 2"):
        snapshots.load(7)
    # The next trainer goes on from 6 and stores its own 7.
    snapshots.store(7, state(70))
    assert bits(snapshots.load(7)) == bits(state(70))


def test_shards_of_two_senders_never_mix(snapshots: Snapshots) -> None:
    """Of version 7, one shard of the second sender and one of the first would be enough in number."""
    snapshots.store(6, state(6))
    send_and_die(snapshots, 7, seed=7, num_sent=2)
    assert snapshots.latest(most=99) == 7
    assert bits(snapshots.load(7)) == bits(state(7))
    send_and_die(snapshots, 7, seed=70, num_sent=1)
    first, second, parity = attempts_of(snapshots, 7)
    assert None not in (first, second)
    assert first != second
    assert parity is None
    assert snapshots.latest(most=99) == 6
    with pytest.raises(SnapshotLost, match="snapshot 7: shards"):
        snapshots.load(7)


def test_the_store_goes_back_with_the_trainer(snapshots: Snapshots) -> None:
    """Resumed from an older checkpoint, the versions of the life before are no longer the newest."""
    for version in (7, 8):
        snapshots.store(version, state(version))
    snapshots.store(5, state(5))
    assert snapshots.latest(most=99) == 5


def test_stopped_holders_hold_nobody_up(snapshots: Snapshots) -> None:
    snapshots.store(1, state(1))
    snapshots.deadline_s = 1.0
    pids = [pid_of(snapshots, index) for index in (0, 1)]
    os.kill(pids[1], signal.SIGSTOP)
    assert bits(snapshots.load(1)) == bits(state(1))
    assert snapshots.latest(most=99) == 1
    snapshots.store(2, state(2))
    assert snapshots.latest(most=99) == 2
    os.kill(pids[0], signal.SIGSTOP)
    with pytest.raises(SnapshotLost, match=r"snapshot 3: holders \[0, 1, 2\] did not take their shard in 1 s"):
        snapshots.store(3, state(3))
    assert snapshots.latest(most=99) is None
    with pytest.raises(SnapshotLost, match="snapshot 2: shards 0 and 1 of 3"):
        snapshots.load(2)
    snapshots.deadline_s = DEADLINE_S
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    wait_until_all_serve(snapshots)
    assert not set(pids) & {pid_of(snapshots, index) for index in (0, 1)}
    snapshots.store(3, state(3))
    assert bits(snapshots.load(3)) == bits(state(3))


def test_the_state_may_be_larger_than_the_object_store(snapshots: Snapshots) -> None:
    large = {"large": torch.arange((OBJECT_STORE_BYTES + 2**20) // 4, dtype=torch.int32)}
    snapshots.store(1, large)
    assert torch.equal(snapshots.load(1)["large"], large["large"])


def test_a_holder_that_cannot_start_is_an_error(holders: Snapshots, monkeypatch: pytest.MonkeyPatch) -> None:
    impossible = ray.remote(num_cpus=0, resources={"no such thing": 1})(module.Holder)
    monkeypatch.setattr(module, "_HolderActor", impossible)
    with pytest.raises(DeadlineExceeded, match="only 0 of 3 snapshot holders started in 1 s"):
        create(num_shards=2, deadline_s=1.0)
