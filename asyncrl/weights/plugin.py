"""What every vLLM process loads, through the entry-point group `vllm.general_plugins`."""

from __future__ import annotations

import multiprocessing


def register() -> None:
    """Make the `gloo` weight-transfer engine known, and let vLLM's child processes die with their owner."""
    from vllm.distributed.weight_transfer.factory import (
        WeightTransferEngineFactory,
        WeightTransferTrainerFactory,
    )

    from asyncrl.processes import die_with_parent

    if "gloo" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("gloo", "asyncrl.weights.gloo", "GlooEngine")
        WeightTransferTrainerFactory.register_engine("gloo", "asyncrl.weights.gloo", "GlooTrainerEngine")
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        die_with_parent(parent.pid)
