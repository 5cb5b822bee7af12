"""Tokens in, tokens out: the endpoint that the `renderers` package's client asks, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from test_gateway import Server, asked

from asyncrl.envs.environment import Ask, ContextFull, Sampled
from asyncrl.envs.gateway import session_name, shared_url

TURN = {"token_ids": [5, 6], "sampling_params": {"logprobs": 1, "stop_token_ids": [3]}}


class Tokens:
    """Samples the same tokens, which no tokenizer would make of a text; then has no room."""

    def __init__(self, num: int = 10, logprobs: bool = True) -> None:
        self.num, self.logprobs, self.asks = num, logprobs, []

    async def generate(self, ask: Ask) -> Sampled:
        if len(self.asks) == self.num:
            raise ContextFull("it is full")
        self.asks.append(ask)
        return Sampled([7, 7, 3], [-0.5, -0.25, 0.0] if self.logprobs else None, "stop", 4)


async def post(server: Server, body: Any, path: str = "/../inference/v1/generate") -> Any:
    answer = await server.post(path, body)
    return answer.status_code, answer.json()


def test_what_is_sampled_is_what_is_answered_token_by_token() -> None:
    policy = Tokens()

    async def do(server: Server) -> Any:
        more = {"request_id": "abc", "model": "m", "cache_salt": "x", "priority": 0, "stream": False}
        harmless = {"temperature": 1.0, "top_p": 1, "top_k": -1, "n": 1, "min_p": 0.0, "seed": 3, "max_tokens": 9}
        unseen = {"skip_special_tokens": False, "routed_experts_prompt_start": 4, "stop": "x", "logit_bias": None}
        params = {**TURN["sampling_params"], **harmless, **unseen}
        return await post(server, {**TURN, **more, "sampling_params": params})

    status, answer = asked(policy, do)
    assert status == 200
    (choice,) = answer["choices"]
    assert (answer["request_id"], choice["token_ids"], choice["finish_reason"]) == ("abc", [7, 7, 3], "stop")
    assert [(entry["token"], entry["logprob"]) for entry in choice["logprobs"]["content"]] == [
        ("token_id:7", -0.5),
        ("token_id:7", -0.25),
        ("token_id:3", 0.0),
    ]
    assert answer["usage"] == {"prompt_tokens": 2, "completion_tokens": 3, "total_tokens": 5}
    assert policy.asks == [Ask([5, 6], 9, ("x",), (3,), True)]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"temperature": 0.3}, "sampling_params.temperature is 0.3, and the trainer expects the recipe's 0.5"),
        ({"top_p": 0.9}, "sampling_params.top_p would change"),
        ({"top_k": 5}, "sampling_params.top_k would change"),
        ({"min_p": 0.1}, "sampling_params.min_p would change"),
        ({"n": 2}, "sampling_params.n would change"),
        ({"repetition_penalty": 1.1}, "sampling_params.repetition_penalty would change"),
        ({"min_tokens": 3}, "sampling_params.min_tokens would change"),
        ({"ignore_eos": True}, "sampling_params.ignore_eos would change"),
        ({"logit_bias": {"5": 3}}, "sampling_params.logit_bias would change"),
        ({"bad_words": ["no"]}, "sampling_params.bad_words would change"),
        ({"allowed_token_ids": [5]}, "sampling_params.allowed_token_ids would change"),
        ({"structured_outputs": {"json": {}}}, "sampling_params.structured_outputs would change"),
        ({"thinking_token_budget": 9}, "sampling_params.thinking_token_budget would change"),
        ({"prompt_logprobs": 1}, "sampling_params.prompt_logprobs would change"),
        ({"of_tomorrow": 1}, "sampling_params.of_tomorrow would change"),
        ({"max_tokens": 0}, "sampling_params.max_tokens: Input should be greater"),
    ],
)
def test_sampling_that_the_trainer_knows_nothing_of_is_refused(params: dict[str, Any], said: str) -> None:
    policy = Tokens()

    async def do(server: Server) -> Any:
        return await post(server, {**TURN, "sampling_params": params})

    status, answer = asked(policy, do, temperature=0.5)
    assert (status, answer["error"]["type"], policy.asks) == (400, "invalid_request_error", [])
    assert said in answer["error"]["message"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": []}, "token_ids: List should have at least 1 item"),
        ({"token_ids": ["a"]}, "token_ids.0: Input should be a valid integer"),
        ({"stream": True}, "stream is not possible here"),
        ({"output_mode": "text"}, "only 'tokens' is possible here"),
        ({"features": {"mm_hashes": {}}}, "only texts are possible here"),
        ({"content_parts": [{"type": "image"}]}, "only texts are possible here"),
        ({"kv_transfer_params": {}}, "kv_transfer_params: Extra inputs"),
    ],
)
def test_other_requests_are_refused(change: dict[str, Any], said: str) -> None:
    policy = Tokens()

    async def do(server: Server) -> Any:
        return await post(server, {**TURN, **change})

    status, answer = asked(policy, do)
    assert (status, policy.asks) == (400, [])
    assert said in answer["error"]["message"]


def test_a_full_context_and_an_engine_without_log_probs_are_said() -> None:
    async def do(server: Server) -> Any:
        return await post(server, TURN)

    status, answer = asked(Tokens(0), do)
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    status, answer = asked(Tokens(logprobs=False), do)
    assert (status, "gives no log-probs" in answer["error"]["message"]) == (400, True)


def test_a_retry_gets_the_answer_that_was_lost() -> None:
    policy = Tokens()

    async def do(server: Server) -> None:
        for retries in (0, 1, 0):
            headers = {"x-stainless-retry-count": str(retries)}
            url = server.url.removesuffix("/v1") + "/inference/v1/generate"
            await server.openai.post(url, body=TURN, cast_to=object, options={"headers": headers})

    asked(policy, do)
    assert len(policy.asks) == 2


def test_one_client_asks_for_many_episodes_by_the_name_of_the_model() -> None:
    """At an address of all, where nobody else is answered."""
    policy = Tokens()

    async def do(server: Server) -> list[Any]:
        name, own = session_name(server.url), server.url
        server.url = shared_url(own)
        assert server.url.count("/") == 3
        found = [await post(server, {**TURN, "model": model}) for model in (name, "policy", "")]
        found.append(await post(server, TURN))
        found.append(await post(server, b"{"))
        chat = {"model": name, "messages": [{"role": "user", "content": "hi"}]}
        found.append(await post(server, chat, "/chat/completions"))
        assert (await server.post("/chat/completions", chat, "wrong")).status_code == 401
        server.gateway.close(own)
        found.append(await post(server, {**TURN, "model": name}))
        return found

    found = asked(policy, do)
    assert [status for status, _ in found] == [200, 404, 404, 404, 404, 200, 404]
    assert json.dumps(found[0][1]["choices"][0]["token_ids"]) == "[7, 7, 3]"
    assert len(policy.asks) == 2
