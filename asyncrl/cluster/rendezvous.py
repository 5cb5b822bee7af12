"""Where processes of a run meet over gloo or NCCL, and how they know one another.

torch's store takes any key from anyone who reaches its port, and lists those that are there (`list_keys`); gloo takes
any connection. So the store listens at one address only, what it holds is believed only if it is sealed by a secret of
the rendezvous, and whoever has joined shows that it knows the secret before anything else is sent. The secret travels
through Ray, which asks for a token. On a network where others can change packets on their way, nothing here helps:
gloo and NCCL do not encrypt.
"""

from __future__ import annotations

import hmac
import secrets
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, Store, TCPStore

_DIGEST = "sha256"
_SEAL_BYTES = 32


@dataclass(frozen=True)
class Rendezvous:
    """One place, for one group of processes."""

    address: str
    port: int
    secret: str = field(repr=False)
    """Hexadecimal."""

    @classmethod
    def of_wire(cls, fields: Mapping[str, Any]) -> Rendezvous:
        return cls(fields["address"], fields["port"], fields["secret"])

    def to_wire(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def key(self) -> bytes:
        return bytes.fromhex(self.secret)

    def join(self, timeout_s: float) -> SealedStore:
        store = TCPStore(self.address, self.port, is_master=False, timeout=timedelta(seconds=timeout_s))
        return SealedStore(store, self.key)


def open_rendezvous(address: str, timeout_s: float) -> tuple[Rendezvous, SealedStore]:
    """At a free port of `address`, for as long as the store lives."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    # torch's own listener is on all interfaces, whatever address it is given.
    with socket.create_server((address, 0), family=family) as listening:
        port = listening.getsockname()[1]
        rendezvous = Rendezvous(address, port, secrets.token_hex(_SEAL_BYTES))
        store = TCPStore(
            address,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listening.detach(),
        )
    return rendezvous, SealedStore(store, rendezvous.key)


class SealedStore(Store):
    """A store whose values are believed only if a member has set them, under the same key."""

    def __init__(self, store: Store, key: bytes) -> None:
        super().__init__()
        self._store, self._key = store, key

    def _seal(self, name: str, value: bytes) -> bytes:
        return hmac.digest(self._key, f"{len(name)}:{name}".encode() + value, _DIGEST)

    def set(self, name: str, value: bytes | str) -> None:
        value = value.encode() if isinstance(value, str) else bytes(value)
        self._store.set(name, self._seal(name, value) + value)

    def get(self, name: str) -> bytes:
        """Raises RuntimeError if no member has set it."""
        sealed = bytes(self._store.get(name))
        seal, value = sealed[:_SEAL_BYTES], sealed[_SEAL_BYTES:]
        if not hmac.compare_digest(seal, self._seal(name, value)):
            raise RuntimeError(f"a stranger to the run wrote {name!r} to its rendezvous; {_REMEDY}")
        return value

    def wait(self, *arguments: Any) -> None:
        self._store.wait(*arguments)

    @property
    def bare(self) -> Store:
        """The same store for NCCL, whose own threads ask it, which a store in Python does not stand. It is below a
        prefix that strangers do not know as long as they do not list the keys."""
        return PrefixStore(self._key.hex(), self._store)

    def close(self) -> None:
        """Nobody asks any more: who listened does not."""
        del self._store


_REMEDY = "give the nodes a network of their own (docs/safety.md)"


def require_members(group: Any, rank: int, key: bytes, device: torch.device | None = None) -> None:
    """Of a process group that has just been made: raises RuntimeError if a rank does not know the secret."""
    nonces = _gather(group, secrets.token_bytes(_SEAL_BYTES), device)
    proofs = [hmac.digest(key, bytes([0]) + str(r).encode() + b"".join(nonces), _DIGEST) for r in range(len(nonces))]
    shown = _gather(group, proofs[rank], device)
    strangers = [r for r, proof in enumerate(shown) if not hmac.compare_digest(proof, proofs[r])]
    if strangers:
        raise RuntimeError(f"rank {strangers[0]} of {len(nonces)} is a stranger to the run; {_REMEDY}")


def _gather(group: Any, own: bytes, device: torch.device | None) -> list[bytes]:
    """The same number of bytes of every rank."""
    sent = torch.tensor(list(own), dtype=torch.uint8, device=device)
    received = [torch.empty_like(sent) for _ in range(group.size())]
    group.allgather([received], [sent]).wait()
    return [bytes(one.tolist()) for one in received]


def own_address(peer: str) -> str:
    """The address of this machine that a peer's packets come to."""
    family = socket.AF_INET6 if ":" in peer else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect((peer, 9))  # nothing is sent
        found: str = probe.getsockname()[0]
        return found
