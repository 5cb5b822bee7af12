"""vLLM's AsyncLLM behind the `Engine` protocol: the one module that calls vLLM's inference API (0.32).

tests/rollout/test_vllm_signatures.py checks with `inspect` the signatures used here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from asyncrl.errors import RunFailed, UserError
from asyncrl.processes.last_words import ErrorOutput, cause
from asyncrl.recipe.cores import SPIN
from asyncrl.registry import TRANSPORTS
from asyncrl.rollout.engine import Completion, EngineConfig, EngineDead, SamplingParams, VersionSpan
from asyncrl.rollout.vllm_start import explained
from asyncrl.weights.update import WeightUpdate

T = TypeVar("T")


class VllmEngine:
    """One AsyncLLM. Must be started on the event loop that will use it: its child process dies with that thread."""

    provides_logprobs = True
    holds_weights = True

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self._version = 0
        self._update_lock = asyncio.Lock()
        self._reloading = False
        self._said = ErrorOutput()

    async def start(self) -> None:
        self._set_environment()
        from vllm import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        from asyncrl.rollout.vllm_scheduler import one_version

        require_build(self.config.num_gpus)
        with explained(self.config):
            engine_args = AsyncEngineArgs(**arguments(self.config))
            vllm_config = engine_args.create_engine_config()
            scheduler_config = vllm_config.scheduler_config
            scheduler_config.scheduler_cls = one_version(scheduler_config.get_scheduler_cls())
            self.llm = AsyncLLM.from_vllm_config(vllm_config, disable_log_stats=engine_args.disable_log_stats)
        await self.llm.update_weight_version("0")

    def _set_environment(self) -> None:
        from vllm.utils.cpu_resource_utils import parse_id_list

        # Ray sets OMP_NUM_THREADS=1 in actors.
        os.environ.pop("OMP_NUM_THREADS", None)
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = self.config.cpu_cores  # read where there are worker processes
        if not self.config.num_gpus:
            cores = [core for part in self.config.cpu_cores.split("|") for core in parse_id_list(part)]
            os.environ["OMP_NUM_THREADS"] = str(len(cores))
            os.environ["GOMP_CPU_AFFINITY"] = " ".join(map(str, cores))
        for name, value in (*SPIN.items(), ("VLLM_LOGGING_LEVEL", "WARNING"), ("VLLM_NO_USAGE_STATS", "1")):
            os.environ.setdefault(name, value)
        if os.path.isdir(self.config.model):
            os.environ.setdefault("HF_HUB_OFFLINE", "1")

    async def generate(self, tokens: list[int], params: SamplingParams, *, request_id: str) -> Completion:
        final = await self._final({"prompt_token_ids": tokens}, sampling(params), request_id)
        if final is None:
            return Completion([], [], [], "abort")
        output = final.outputs[0]
        spans = [VersionSpan(int(s.version), s.start, s.end) for s in output.weight_versions or []]
        return Completion(
            list(output.token_ids),
            [float(x) for x in output.logprobs.logprobs],
            spans,
            output.finish_reason or "abort",
        )

    async def _final(self, prompt: Any, sampling: Any, request_id: str) -> Any:
        """vLLM's last output of a request; None if it was aborted before the first."""
        final = None
        with self._naming_death():
            async for output in self.llm.generate(prompt, sampling, request_id):
                final = output
        return final

    async def _control(self, call: Coroutine[Any, Any, T]) -> T:
        """The answer to one of vLLM's control calls. A call that is in flight when the engine process dies is never
        answered by vLLM: the task that reads the engine's output ends then, and so does the wait. Raises EngineDead."""
        calling = asyncio.ensure_future(call)
        assert self.llm.output_handler is not None
        await asyncio.wait({calling, self.llm.output_handler}, return_when=asyncio.FIRST_COMPLETED)
        if not calling.done():
            calling.cancel()
            raise self._death()
        with self._naming_death():
            return await calling

    @contextmanager
    def _naming_death(self) -> Iterator[None]:
        """vLLM's word for a dead engine process as ours."""
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            yield
        except EngineDeadError:
            raise self._death() from None

    def _death(self) -> EngineDead:
        words = cause(self._said.text())
        return EngineDead(f"the engine process died{f', with {words}' if words else ''}")

    async def cancel(self, request_ids: list[str]) -> None:
        await self.llm.abort(request_ids)

    async def join_channel(self, init_info: dict[str, Any]) -> None:
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest

        await self._control(self.llm.init_weight_transfer_engine(WeightTransferInitRequest(init_info)))

    async def update_weights(self, update: WeightUpdate) -> float:
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        async with self._update_lock:
            began = time.perf_counter()
            recompute = self.config.kv_after_update == "recompute"
            await self._control(self.llm.pause_generation(mode="keep", clear_cache=recompute))
            if not self._reloading:
                await self._control(self.llm.start_weight_update())
                self._reloading = True
            try:
                await self._control(self.llm.update_weights(WeightTransferUpdateRequest(update.info)))
            except BaseException as error:
                self._reloading = False  # vLLM ends its session on an error, so the next one must start again
                if type(error) is Exception:
                    # vLLM's for anything that went wrong in its own process, with the text of what did.
                    raise RunFailed(f"vLLM could not load version {update.version}: {error}") from error
                raise
            await self._control(self.llm.finish_weight_update(weight_version=str(update.version)))
            self._reloading = False
            self._version = update.version
            await self._resume()
            return time.perf_counter() - began

    async def _resume(self) -> None:
        # A lost resume would leave the engine paused for ever: say it until it is so.
        for _ in range(3):
            await self._control(self.llm.resume_generation())
            if not await self._control(self.llm.is_paused()):
                return
        raise RuntimeError("vLLM stays paused after resume_generation()")

    async def score(self, tokens: list[int]) -> tuple[int, list[float]]:
        from vllm import SamplingParams as VllmSamplingParams

        sampling = VllmSamplingParams(max_tokens=1, temperature=1.0, prompt_logprobs=0, detokenize=False)
        final = await self._final({"prompt_token_ids": tokens}, sampling, f"score-{time.monotonic_ns()}")
        logprobs = [entry[token].logprob for token, entry in zip(tokens[1:], final.prompt_logprobs[1:], strict=True)]
        # Stamped by the engine when it sampled the one token, in the step that computed the prompt.
        return int(final.outputs[0].weight_versions[0].version), logprobs

    async def check(self) -> None:
        with self._naming_death():
            await self.llm.check_health()

    def version(self) -> int:
        return self._version

    async def close(self) -> None:
        self.llm.shutdown(timeout=10)


def arguments(config: EngineConfig) -> dict[str, Any]:
    """Of vLLM's AsyncEngineArgs."""
    args: dict[str, Any] = {
        "model": config.model,
        "dtype": config.dtype,
        "seed": config.seed,
        "max_model_len": config.max_tokens,
        "logprobs_mode": "processed_logprobs",
        "weight_transfer_config": {"backend": TRANSPORTS[config.channel].vllm_engine},
        "disable_log_stats": True,
        "generation_config": "vllm",
        "trust_remote_code": False,
    }
    if config.num_workers > 1:
        # In a placement group vLLM takes Ray, which wants a bundle of one GPU for each worker.
        args["distributed_executor_backend"] = "mp"
    if config.num_gpus < 1:
        args["kv_cache_memory_bytes"] = int(config.kv_cache_gib * 2**30)
    if 0 < config.num_gpus < 1:
        # vLLM looks whether so much is free. With the size of its cache said, it does not take others' memory for its.
        args["gpu_memory_utilization"] = config.num_gpus
    if not config.num_gpus:
        # A chunked prefill rewinds the request's random generator, which a CPU generator cannot do: one seeded
        # request would end the engine ("CPU Generator does not use offset").
        args["enable_chunked_prefill"] = False
        args["max_num_batched_tokens"] = max(4096, config.max_tokens)
        args["block_size"] = 32  # by default 128: the group of a shorter prompt would share none of it
        if config.num_workers == 1:
            # vLLM's own choice is a worker process that the engine process waits for with sched_yield(): it takes a
            # core from the products.
            args["distributed_executor_backend"] = _one_process()
    return {**args, **config.engine_args}


def sampling(params: SamplingParams) -> Any:
    """vLLM's parameters of a completion."""
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.sampling_params import RequestOutputKind

    return VllmSamplingParams(
        max_tokens=params.max_new_tokens,
        temperature=params.temperature,
        seed=params.seed,
        logprobs=0,
        flat_logprobs=True,
        stop=list(params.stop),
        stop_token_ids=list(params.stop_token_ids),
        detokenize=bool(params.stop),
        # What ends a completion may be a special token, and is part of it: tokens and log-probs are kept whole.
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )


def _one_process() -> type:
    """The executor that runs the model in the engine process. By name (`uni`) vLLM refuses it on CPUs, because it
    sets up OpenMP for worker processes only; here the environment does."""
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    return UniProcExecutor


def require_build(num_gpus: float) -> None:
    """Raises UserError if the vLLM that is installed computes on something else than was asked for."""
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and num_gpus:
        raise UserError(
            f"rollout.gpus_per_replica is {num_gpus:g}, but the vLLM on {socket.gethostname()} is built for CPUs; "
            "install asyncrl[gpu] there, or set it to 0"
        )
    if not current_platform.is_cpu() and not num_gpus:
        raise UserError(
            f"rollout.gpus_per_replica is 0, but the vLLM on {socket.gethostname()} is built for GPUs; set it to 1, or "
            "install asyncrl[cpu] there"
        )
