"""Another process sees the trainer's copy on the GPU itself."""

from __future__ import annotations

import multiprocessing
from multiprocessing.connection import Connection
from typing import Any

import pytest
import torch

from asyncrl.weights.transports import cuda_ipc


def look(told: dict[str, Any], size: int, line: Connection) -> None:
    receiver = cuda_ipc.Receiver([], 1, 2, 5.0)
    while line.recv():
        [seen] = receiver.receive([told], [size], torch.bfloat16)
        line.send(seen.float().sum().item())


def test_what_is_written_is_seen_without_another_handle(device: torch.device) -> None:
    if device.type != "cuda":
        pytest.skip("CUDA IPC is between processes on a GPU")
    flat = torch.zeros(2**20, dtype=torch.bfloat16, device=device)
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=look, args=(cuda_ipc.handle(flat), len(flat), there), daemon=True)
    process.start()
    try:
        for value in (1.0, 2.0, 0.5):
            flat.fill_(value)
            torch.cuda.synchronize()
            here.send(True)
            assert here.poll(60), "no answer"
            assert here.recv() == value * len(flat)
        here.send(False)
        process.join(30)
        assert process.exitcode == 0
    finally:
        process.kill()
