"""What every vLLM process loads, through the entry-point group `vllm.general_plugins`."""

from __future__ import annotations

import logging
import multiprocessing


def register() -> None:
    """Make our weight-transfer engines known, and let vLLM's child processes die with their owner and tell it their
    warnings."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    from asyncrl.observe.relay import relay_to_parent
    from asyncrl.processes.children import die_with_parent

    if "asyncrl" not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine("asyncrl", "asyncrl.weights.host", "HostEngine")
        WeightTransferEngineFactory.register_engine("asyncrl_nccl", "asyncrl.weights.transports.nccl", "NcclEngine")
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        die_with_parent(parent.pid)
        relay_to_parent()
    logging.getLogger("vllm.config.scheduler").addFilter(_is_not_of_our_scheduler)


def _is_not_of_our_scheduler(record: logging.LogRecord) -> bool:
    # That the scheduler is not vLLM's own is our doing (`rollout/vllm_scheduler.py`): no user need act on it.
    return "custom scheduler" not in str(record.msg)
