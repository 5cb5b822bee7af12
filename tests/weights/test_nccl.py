"""Our ends of vLLM's NCCL transfer, as far as no GPU is needed; a communicator that does nothing is an error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from asyncrl.errors import RunFailed
from asyncrl.planner.memory import TRANSFER_BUFFERS
from asyncrl.weights import plugin
from asyncrl.weights.transports import nccl

ID = b"i" * 128


@pytest.fixture
def worker() -> Any:
    plugin.register()
    engine = WeightTransferEngineFactory._registry["asyncrl_nccl"]()
    made = engine.__new__(engine)
    made.model_update_group = None
    made.parallel_config = SimpleNamespace(data_parallel_index=0, world_size=1, rank=0)
    return made


def invitation(worker: Any) -> Any:
    source = nccl.StagedSource([[]], 0, None)
    payload = nccl.invitation(nccl.trainer_engine(0, nccl.SyncClient(None), source), ID, 2)
    return worker.init_info_cls(**payload)


def test_vllm_that_has_switched_nccl_off_is_told_of(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_DISABLE_PYNCCL", "1")
    with pytest.raises(
        RunFailed, match=r"weights.channel nccl: .* has switched its NCCL off; unset VLLM_DISABLE_PYNCCL"
    ):
        nccl.join(ID, 2, 0)
    monkeypatch.setattr(torch.accelerator, "current_device_index", lambda: 0)
    with pytest.raises(RunFailed, match="switched its NCCL off"):
        worker.init_transfer_engine(invitation(worker))


def test_one_that_works_is_taken(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    works = SimpleNamespace(disabled=False)
    monkeypatch.setattr("vllm.distributed.weight_transfer.nccl_common.uid_init_process_group", lambda *_: works)
    assert nccl.join(ID, 2, 0) is works
    worker.device = None
    monkeypatch.setattr("vllm.distributed.weight_transfer.nccl_engine.worker_init_process_group", lambda *_: works)
    worker.init_transfer_engine(invitation(worker))
    assert worker.model_update_group is works


def test_who_joins_again_gives_up_the_communicator_before(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given_up: list[int] = []
    made = (SimpleNamespace(disabled=False, destroy=lambda n=n: given_up.append(n)) for n in range(2))
    monkeypatch.setattr("vllm.distributed.weight_transfer.nccl_engine.worker_init_process_group", lambda *_: next(made))
    for number in range(2):
        assert given_up == []
        worker.init_transfer_engine(invitation(worker))
        assert given_up == list(range(number))
        given_up.clear()


def test_what_half_a_push_has_left_is_forgotten(worker: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

    layer = torch.nn.Linear(2, 2)
    info = get_layerwise_info(layer)
    info.load_numel, info.load_numel_total = 3, 6
    info.loaded_weights.append(("weight", None))
    assert info.can_load()
    worker.model = torch.nn.Sequential(layer)
    begun: list[Any] = []
    monkeypatch.setattr("vllm.model_executor.model_loader.reload.initialize_layerwise_reload", begun.append)
    worker.start_weight_update()
    assert begun == [worker.model]
    assert (info.load_numel, info.loaded_weights) == (0, [])


def test_both_ends_take_the_buffers_that_are_planned() -> None:
    engine = nccl.trainer_engine(0, nccl.SyncClient(None), nccl.StagedSource([[]], 0, None))
    told: dict[str, Any] = nccl.invitation(engine, bytes(128), 2)
    for end in (vars(engine), told):
        assert end["packed_buffer_size_bytes"] * end["packed_num_buffers"] == TRANSFER_BUFFERS
