"""What ends a completion of vLLM's besides its length: texts and token ids, with all that belongs to their tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from asyncrl.models import load_tokenizer
from asyncrl.rollout.engine import Completion, SamplingParams

PROMPT = [5, 6, 7]
FREE = SamplingParams(max_new_tokens=60, temperature=1.0, seed=3)


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
