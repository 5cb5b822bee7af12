"""The ends of a push by CUDA IPC. CUDA is played here: who holds a handle maps the storage that it was given for."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from asyncrl.trainer.sharding import weight_shards
from asyncrl.weights.staging import StagedWeights
from asyncrl.weights.transport import SenderConfig, open_sender, receiver_class
from asyncrl.weights.transports import cuda_ipc

CPU = torch.device("cpu")


class Cuda:
    """What torch does with a handle, for storages of this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.uuid, self.shared, self.opened = "GPU-1", [], 0
        # A method of the storage.
        monkeypatch.setattr(torch.UntypedStorage, "_share_cuda_", lambda storage: self.share(storage))
        monkeypatch.setattr(torch.UntypedStorage, "_new_shared_cuda", staticmethod(self.open))
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=self.uuid))
        monkeypatch.setattr(torch.cuda, "init", lambda: None)
        monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)

    def share(self, storage: torch.UntypedStorage) -> tuple[Any, ...]:
        self.shared.append(storage)
        return 0, bytes([len(self.shared) - 1]) * 64, storage.nbytes(), 0, b"counter", 0, b"event", False

    def open(self, device: int, handle: bytes, *rest: Any) -> torch.UntypedStorage:
        self.opened += 1
        assert rest == (self.shared[handle[0]].nbytes(), 0, b"counter", 0, b"event", False)
        return self.shared[handle[0]]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    return Cuda(monkeypatch)


def test_a_worker_sees_the_copies_themselves_and_opens_each_once(cuda: Cuda) -> None:
    model = torch.nn.Linear(3, 2)
    copies = [StagedWeights(weight_shards(model), torch.bfloat16, CPU) for _ in range(2)]
    config = SenderConfig("cuda_ipc", 0, "127.0.0.1", 5.0, "bfloat16", Path())
    sender, receiver = open_sender(config, copies[0]), receiver_class(config.module)([], 1, 2, 5.0)
    for version in range(6):
        with torch.no_grad():
            model.weight.fill_(version)
        staged = copies[version % 2]
        staged.copy()
        told = json.loads(json.dumps(sender.copy(version, staged)))
        [seen] = receiver.receive([told], [staged.flat.numel()], torch.bfloat16)
        assert seen.data_ptr() == staged.flat.data_ptr()
        assert torch.equal(seen, staged.flat)
    assert len(cuda.shared) == cuda.opened == 2


def test_another_gpu_is_named(cuda: Cuda) -> None:
    told = cuda_ipc.handle(torch.zeros(4))
    cuda.uuid = "GPU-2"
    receiver = cuda_ipc.Receiver([], 1, 2, 5.0)
    with pytest.raises(RuntimeError, match="the generator is on GPU GPU-2 and the trainer on GPU-1"):
        next(receiver.receive([told], [4], torch.float32))
