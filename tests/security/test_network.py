"""Who is on the network, but not of the run: what it reaches, what it is told, what it is believed."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from torch.distributed import HashStore, ProcessGroupGloo, TCPStore

from asyncrl.cluster.rendezvous import Rendezvous, SealedStore, open_rendezvous, require_members
from asyncrl.weights.transport import SenderConfig, open_sender
from asyncrl.weights.transports import gloo, nccl

SIZE = 1000
TIMEOUT_S = 20.0


def listening() -> set[tuple[str, int]]:
    found = psutil.Process().net_connections("tcp")
    return {tuple(c.laddr) for c in found if c.status == psutil.CONN_LISTEN}


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2"])
def test_a_rendezvous_is_at_its_address_only(address: str) -> None:
    before = listening()
    rendezvous, store = open_rendezvous(address, TIMEOUT_S)
    assert {ip.removeprefix("::ffff:") for ip, _ in listening() - before} == {address}
    store.set("a", b"1")
    assert rendezvous.join(TIMEOUT_S).get("a") == b"1"
    assert rendezvous.secret not in repr(rendezvous)


def stranger(rendezvous: Rendezvous) -> TCPStore:
    return TCPStore(rendezvous.address, rendezvous.port, is_master=False, timeout=timedelta(seconds=1))


def test_what_a_stranger_writes_to_a_rendezvous_is_not_believed() -> None:
    rendezvous, store = open_rendezvous("127.0.0.1", TIMEOUT_S)
    store.set("0", b"address")
    store.set("1", b"another")
    raw = stranger(rendezvous)
    assert raw.list_keys()  # why a secret prefix is no protection
    sealed = raw.get("1")
    for forged in (b"", b"x" * 200, sealed):
        raw.set("0", forged)
        with pytest.raises(RuntimeError, match="stranger to the run wrote '0'"):
            rendezvous.join(TIMEOUT_S).get("0")
    assert store.get("1") == b"another"


def test_after_the_join_nobody_listens_for_more(link: Link) -> None:
    with pytest.raises(RuntimeError):
        stranger(Rendezvous(**link.sender.reach()))


def test_a_group_knows_its_members() -> None:
    keys = [b"the secret", b"the secret", b"a guess"]
    store = HashStore()

    def join(rank: int) -> str:
        group = ProcessGroupGloo(store, rank, len(keys), timedelta(seconds=TIMEOUT_S))
        try:
            require_members(group, rank, keys[rank])
        except RuntimeError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(len(keys)) as executor:
        said = list(executor.map(join, range(len(keys))))
    assert said[0].startswith("rank 2 of 3 is a stranger")
    assert said[0] == said[1]


def staged(flat: torch.Tensor) -> Any:
    return SimpleNamespace(flat=flat, shards=())


class Link:
    """A rank of the trainer and one worker."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor
        before = listening()
        config = SenderConfig("gloo", 0, "127.0.0.1", TIMEOUT_S, "float32", Path())
        self.sender = gloo.Sender(config, staged(torch.empty(0)))
        joining = executor.submit(gloo.Receiver, [self.sender.endpoint()], 1, 2, TIMEOUT_S)
        self.sender.join(2)
        self.worker = joining.result(TIMEOUT_S)
        self.listens = listening() - before

    def push(self, flat: torch.Tensor) -> torch.Tensor:
        """What the worker has then."""
        self.sender.copy(0, staged(flat))
        receiving = self._executor.submit(lambda: list(self.worker.receive([None], [SIZE], flat.dtype)))
        self.sender.send(staged(flat))
        [got] = receiving.result(TIMEOUT_S)
        return got

    def close(self) -> None:
        self.sender.close()
        self.worker.close()


@pytest.fixture
def link() -> Iterator[Link]:
    with ThreadPoolExecutor(1) as executor:
        link = Link(executor)
        yield link
        link.close()


def test_gloo_listens_where_the_trainer_says(link: Link) -> None:
    assert link.listens
    assert {ip for ip, _ in link.listens} == {"127.0.0.1"}


@pytest.mark.parametrize("what", ["all", "places", "values", "again"])
def test_forged_weights_are_refused(link: Link, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = torch.arange(SIZE, dtype=torch.float32)
    broadcast, kept = gloo._broadcast, []

    def on_the_wire(group: Any, tensor: torch.Tensor) -> Any:
        if group is not link.sender.group:
            return broadcast(group, tensor)
        sent = tensor.clone()
        kept.append(sent)
        if what == "again":
            sent = kept[-5] if len(kept) > 3 + 4 else sent
        elif tensor.dtype == (torch.int32 if what == "places" else torch.float32):
            sent[0] += 1
        return broadcast(group, sent)

    if what not in ("all", "again"):
        assert torch.equal(link.push(flat), flat)
    monkeypatch.setattr(gloo, "_broadcast", on_the_wire)
    if what == "again":
        assert torch.equal(link.push(flat), flat)  # count, weights and MAC: three
        flat[[3, 5]] = -1.0
        assert torch.equal(link.push(flat), flat)  # count, places, values and MAC: four
    flat[[3, 5]] = -2.0
    said = "not those that rank 0 of the trainer sent"
    with pytest.raises(RuntimeError, match=said):
        link.push(flat)


def test_more_weights_than_there_are_is_no_reason_to_make_room() -> None:
    with pytest.raises(RuntimeError, match="1001 weights are announced, of 1000"):
        gloo._parts(SIZE + 1, torch.empty(SIZE))


def test_workers_are_called_to_nccl_through_ray_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No GPU: what NCCL itself does is not tried."""
    monkeypatch.setattr(nccl, "new_id", lambda: b"i" * 128)
    monkeypatch.setattr(nccl, "join", lambda *joins: joins)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    called = []

    class Replicas:
        num_workers = 2

        def join(self, init_info: dict[str, Any]) -> None:
            called.append(init_info)

    before = listening()
    for rank in (0, 1):
        config = SenderConfig("nccl", rank, "127.0.0.1", TIMEOUT_S, "float32", tmp_path)
        ours: Any = open_sender(config, staged(torch.empty(0)))
        ours.connect(Replicas() if rank == 0 else None, 2, [ours.endpoint()] * 2)
        assert ours._engine.model_update_group == ((b"i" * 128, 3, 0) if rank == 0 else None)
    [invitation] = called
    assert "nccl_unique_id_b64" in invitation
    assert "master_port" not in invitation
    assert listening() <= before


def test_the_store_of_nccl_is_below_a_prefix() -> None:
    rendezvous, store = open_rendezvous("127.0.0.1", TIMEOUT_S)
    store.bare.set("id", b"1")
    assert isinstance(store, SealedStore)
    assert stranger(rendezvous).check(["id"]) is False
    assert rendezvous.join(TIMEOUT_S).bare.get("id") == b"1"
