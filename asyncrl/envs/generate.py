"""Requests and answers of `/inference/v1/generate`: tokens in, tokens out, in vLLM's form.

For agents that render the conversation themselves, as the package `renderers` does. As in `dialects.py`, what would
change the distribution that is sampled is refused, and so is what nobody here knows.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from asyncrl.envs.dialects import Refused
from asyncrl.envs.environment import Ask, Sampled

_OFF: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "top_k": (0, -1),
    "min_p": (0,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "min_tokens": (0,),
    "ignore_eos": (False,),
    "logprobs": (0, 1),
    "logit_bias": ({},),
    "bad_words": ([],),
    "watermarking": (False,),
    "extra_args": ({},),
}
"""Fields that must be left out, or say that they change nothing. Log-probs are those of the sampled tokens."""
_NOT_LOOKED_AT = {
    "seed",  # a rollout has one of its own
    "detokenize",
    "skip_special_tokens",
    "spaces_between_special_tokens",
    "include_stop_str_in_output",  # nothing is cut from tokens
    "output_kind",
    "flat_logprobs",
    "skip_reading_prefix_cache",
    "routed_experts_prompt_start",  # none are given
}


class SamplingParams(BaseModel):
    """Of vLLM's, those that are obeyed; the others are looked at by `check`."""

    model_config = ConfigDict(extra="allow")

    temperature: float | None = None
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None

    def check(self, temperature: float) -> None:
        """Raises Refused."""
        if self.temperature is not None and self.temperature != temperature:
            raise Refused(
                f"sampling_params.temperature is {self.temperature:g}, and the trainer expects the recipe's "
                f"{temperature:g} (rollout.temperature); leave it out"
            )
        for name, value in (self.model_extra or {}).items():
            if value is None or name in _NOT_LOOKED_AT or value in _OFF.get(name, ()):
                continue
            why = "would change what is sampled without the trainer's knowledge, or is not known here"
            raise Refused(f"sampling_params.{name} {why}; leave it out")


class GenerateRequest(BaseModel):
    """`POST /inference/v1/generate`."""

    model_config = ConfigDict(extra="forbid")

    token_ids: list[int] = Field(min_length=1)
    sampling_params: SamplingParams = SamplingParams()
    stream: bool | None = False
    output_mode: str = "tokens"
    features: Any = None
    content_parts: Any = None
    model: str | None = None
    request_id: str | None = None
    cache_salt: str | None = None
    priority: int = 0
    return_token_ids: bool | None = None
    """Of these five only the request_id is looked at."""

    def check(self, temperature: float) -> None:
        """Raises Refused."""
        self.sampling_params.check(temperature)
        if self.stream:
            raise Refused("stream is not possible here; leave it out")
        if self.output_mode != "tokens":
            raise Refused(f"output_mode is {self.output_mode!r}, and only 'tokens' is possible here; leave it out")
        if self.features or self.content_parts:
            raise Refused("features and content_parts are for pictures; only texts are possible here")

    @property
    def ask(self) -> Ask:
        params = self.sampling_params
        stop = (params.stop,) if isinstance(params.stop, str) else tuple(params.stop or ())
        return Ask(self.token_ids, params.max_tokens, stop, tuple(params.stop_token_ids or ()))


def generated(sampled: Sampled, request: GenerateRequest, number: str) -> dict[str, Any]:
    """The answer. Raises Refused if the engine gave no log-probs."""
    if sampled.logprobs is None:
        raise Refused("the engine gives no log-probs, and this endpoint promises them; use chat/completions")
    logprobs = [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in zip(sampled.tokens, sampled.logprobs, strict=True)
    ]
    choice = {"index": 0, "token_ids": sampled.tokens, "logprobs": {"content": logprobs}}
    prompt, num = len(request.token_ids), len(sampled.tokens)
    return {
        "request_id": request.request_id or number,
        "output_mode": "tokens",
        "choices": [{**choice, "finish_reason": sampled.finish_reason}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": num, "total_tokens": prompt + num},
    }
