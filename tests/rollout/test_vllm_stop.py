"""What ends a completion of vLLM's besides its length: texts and token ids, with all that belongs to their tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from asyncrl.models import load_tokenizer
from asyncrl.rollout.engine import Completion, SamplingParams
from asyncrl.rollout.vllm_engine import sampling

PROMPT = [5, 6, 7]
FREE = SamplingParams(max_new_tokens=60, temperature=1.0, seed=3)


def test_the_tokens_of_a_stop_text_keep_their_logprobs_and_versions(tiny_model: Path) -> None:
    """vLLM's output processor, fed two tokens at a time; what was sampled beyond the stop text is dropped."""
    from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.outputs import LogprobsLists

    tokenizer = load_tokenizer(str(tiny_model))
    tokens = tokenizer("say [END] and more", add_special_tokens=False).input_ids
    logprobs = [-0.1 * place for place in range(len(tokens))]
    processor = OutputProcessor(tokenizer, log_stats=False)
    params = sampling(replace(FREE, stop=("no such text", "[END]")))
    request = EngineCoreRequest("a", PROMPT, None, params, None, 0.0, None, None, None, external_req_id="a")
    processor.add_request(request, None)
    for place in range(0, len(tokens), 2):
        new, values = np.array([tokens[place : place + 2]]).T, np.array([logprobs[place : place + 2]]).T
        output = EngineCoreOutput("a", new[:, 0].tolist(), LogprobsLists(new, values, np.ones(len(new), int), None))
        done = processor.process_outputs([output], weight_version=str(place // 4))
        if done.request_outputs:
            break
    (completion,) = done.request_outputs[0].outputs
    assert tokenizer.decode(completion.token_ids) == "say [END]"
    assert list(completion.logprobs.logprobs) == pytest.approx(logprobs[: len(completion.token_ids)])
    spans = [(s.version, s.start, s.end) for s in completion.weight_versions]
    assert spans == [("0", 0, 4), ("1", 4, 8), ("2", 8, 9)]
    assert completion.finish_reason == "stop"
    assert done.reqs_to_abort == ["a"]


@pytest.mark.slow
def test_what_stops_a_completion_is_its_last_token(vllm_engine: Any, loop_thread: Any, tiny_model: Path) -> None:
    """The same seed samples the same tokens, so a stopped completion is a beginning of the free one."""
    tokenizer = load_tokenizer(str(tiny_model))

    def sample(name: str, **stop: Any) -> Completion:
        return loop_thread.run(vllm_engine.generate(PROMPT, replace(FREE, **stop), request_id=name))

    free = sample("free")
    assert (free.finish_reason, len(free.tokens)) == ("length", 60)
    letters = [tokenizer.decode([token]) for token in free.tokens]
    first = next(i for i, pair in enumerate(pairwise(letters)) if i > 3 and "".join(pair).isascii())
    text = "".join(letters[first : first + 2])
    end = next(i for i in range(60) if text in tokenizer.decode(free.tokens[: i + 1])) + 1
    ended_by = {
        "text": (end, {"stop": ("no such text", text)}),
        "id": (free.tokens.index(free.tokens[20]) + 1, {"stop_token_ids": (free.tokens[20],)}),
    }
    for name, (length, stop) in ended_by.items():
        stopped = sample(name, **stop)
        assert stopped.finish_reason == "stop", name
        assert stopped.tokens == free.tokens[:length], name
        assert stopped.logprobs == pytest.approx(free.logprobs[:length], abs=1e-4), name
        assert [(s.start, s.end) for s in stopped.spans] == [(0, length)], name
    assert tokenizer.decode(free.tokens[:end]).endswith(text)
