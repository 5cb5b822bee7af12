"""What every transport of the table has, and what it costs to use one."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

from asyncrl.registry import TRANSPORTS
from asyncrl.weights import transport

CONFIG = """
import sys, torch
from pathlib import Path
from types import SimpleNamespace
from asyncrl.weights.transport import SenderConfig, open_sender
config = SenderConfig(sys.argv[1], 0, "127.0.0.1", 5.0, "float32", Path())
open_sender(config, SimpleNamespace(flat=torch.empty(0), shards=())).close()
print("vllm" in sys.modules)
"""


@pytest.mark.parametrize("name", TRANSPORTS)
def test_a_transport_has_both_ends(name: str) -> None:
    ends = {"Sender": transport.Sender}
    # vLLM's own engine receives, and who holds no weights receives none.
    if name not in ("nccl", "none"):
        ends["Receiver"] = transport.Receiver
    for end, protocol in ends.items():
        own = transport._load(TRANSPORTS[name].module, end)
        for method in vars(protocol):
            if callable(vars(protocol)[method]) and not method.startswith("_"):
                takes = list(inspect.signature(getattr(own, method)).parameters)
                assert takes == list(inspect.signature(getattr(protocol, method)).parameters), (end, method)


@pytest.mark.parametrize("name", ["gloo", "nccl"])
def test_of_vllm_a_trainer_imports_the_sending_end_of_a_transport_that_is_vllms_own(name: str) -> None:
    done = subprocess.run([sys.executable, "-c", CONFIG, name], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == str(name == "nccl"), done.stderr
