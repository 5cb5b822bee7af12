"""Teachers behind a server, and teachers that read a hint: from a task to what the trainer makes of it.

The server has HTTP, and answers as `vllm serve` 0.32 does (seen there: fields, statuses, messages), with log-probs that
transformers computes from the model's folder when it is asked.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_learner import trajectory
from test_teachers import learner, packed, plain, plain_logprobs, sharper, taught

from asyncrl.data.hints import check_hints, hinted_tokens
from asyncrl.data.prompts import BadPrompt
from asyncrl.data.tasks import tokenize
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer, make_tiny_llama
from asyncrl.observe.failures import RewardFailures
from asyncrl.orchestrator.budget import Budget
from asyncrl.recipe.teacher import TeacherRecipe
from asyncrl.rollout.endpoint import require_answer
from asyncrl.rollout.summary import summarise
from asyncrl.rollout.teaching import Taught, Teaching
from asyncrl.rollout.trajectory import Group, Trajectory, decode, encode
from asyncrl.task import Task

TASK = Task(0, 0, [{"role": "user", "content": "What is 2 + 3?"}], {"answer": 5, "said": {"by": "a sage"}})
CONTEXT = 256


class Server:
    """Of one model. `statuses`: what the next requests get in the place of an answer; -1 hangs."""

    def __init__(self, folder: Path) -> None:
        self.model, self.statuses, self.asked = plain(folder), [], []
        self.keys: list[str | None] = []
        self.url = ""

    def answer(self, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        tokens = body["prompt"]
        if len(tokens) >= CONTEXT:
            return 400, {"error": {"message": f"This model's maximum context length is {CONTEXT} tokens."}}
        if max(tokens) >= self.model.config.vocab_size:
            return 400, {"error": {"message": f"Token id {max(tokens)} is out of vocabulary"}}
        with torch.no_grad():
            logprobs = self.model(input_ids=torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
        said = logprobs.gather(-1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        each = [
            {str(t): {"logprob": p, "rank": 1, "decoded_token": "?"}} for t, p in zip(tokens[1:], said, strict=True)
        ]
        choice = {"index": 0, "text": "?", "finish_reason": "length", "prompt_logprobs": [None, *each]}
        return 200, {"object": "text_completion", "model": body["model"], "choices": [choice]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharper(make_tiny_llama(tmp_path_factory.mktemp("teacher"), seed=7))


@pytest.fixture
def server(teacher: Path, served: Callable[[type[BaseHTTPRequestHandler]], str]) -> Iterator[Server]:
    ours, closing = Server(teacher), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/v1/completions"
            assert (body["prompt_logprobs"], body["max_tokens"], body["model"]) == (0, 1, "big")
            ours.asked.append(body["prompt"])
            ours.keys.append(self.headers["Authorization"])
            status = ours.statuses.pop(0) if ours.statuses else 0
            if status < 0:
                closing.wait(20)
                return
            code, answer = ours.answer(body) if not status else (status, {"error": {"message": "busy"}})
            said = json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Length", str(len(said)))
            self.end_headers()
            self.wfile.write(said)

        def log_message(self, *_: object) -> None:
            """Not on the terminal."""

    ours.url = served(Handler)
    yield ours
    closing.set()


def at(server: Server, **more: Any) -> TeacherRecipe:
    return TeacherRecipe(model="big", url=server.url, **more)


def of_task(tokenizer: Any, seed: int = 1, task: Task = TASK) -> list[Trajectory]:
    """Three of its rollouts, the last without a reward."""
    rng, prompt = np.random.default_rng(seed), np.array(tokenize(task, tokenizer))
    return [trajectory(rng, reward, prompt_tokens=prompt) for reward in (0.0, 0.0, None)]


def asked(
    teacher: TeacherRecipe, tokenizer: Any, *, alone: bool = True, context: int | None = None, task: Task = TASK
) -> tuple[Group, Taught]:
    """The group as the trainer gets it."""

    async def ask() -> Taught:
        teaching = Teaching([teacher], [context], alone, tokenizer)
        try:
            return await teaching(task, tuple(of_task(tokenizer)))
        finally:
            await teaching.close()

    found = asyncio.run(ask())
    return decode(encode(Group(0, 0, 0, found.trajectories))), found


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(str(tiny_model))


@pytest.mark.parametrize("hint", [None, "The answer is {answer}."])
def test_a_server_says_what_the_trainers_own_would(
    tiny_model: Path, teacher: Path, server: Server, tokenizer: Any, hint: str | None
) -> None:
    """The same tokens, by way of HTTP, frame and batch, and by the trainer's packed forward."""
    by_server, _ = asked(at(server, hint=hint), tokenizer)
    by_trainer, _ = asked(TeacherRecipe(model=str(teacher), hint=hint), tokenizer)
    rollout = {"max_new_tokens": 20}
    far = learner(tiny_model, taught([{"model": "big", "url": server.url}], rollout=rollout))
    near = learner(tiny_model, taught([TeacherRecipe(model=str(teacher), hint=hint).model_dump()], rollout=rollout))
    assert far.teachers is not None
    assert near.teachers is not None
    assert far.teachers.policies == [None]
    said = far.teachers.logprobs(packed(far, [by_server]), 1.0)
    assert not said.isnan().any()
    torch.testing.assert_close(said, near.teachers.logprobs(packed(near, [by_trainer]), 1.0), rtol=1e-5, atol=1e-5)
    assert far.step([by_server], 0, 0).metrics["distil/kl"] == pytest.approx(
        near.step([by_trainer], 0, 0).metrics["distil/kl"], rel=1e-5
    )
    # One without a reward is trained by nobody, and not asked about.
    assert len(server.asked) == 2


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_the_completion_is_read_behind_the_hint_as_it_was_sampled(
    tiny_model: Path, teacher: Path, tokenizer: Any, temperature: float
) -> None:
    """Against a pass over prompt, hint and completion, one trajectory at a time."""
    hint = TeacherRecipe(model=str(teacher), hint="The answer is {answer}.")
    group, _ = asked(hint, tokenizer)
    changes = {"rollout": {"temperature": temperature, "max_new_tokens": 20}}
    ours = learner(tiny_model, taught([hint.model_dump()], **changes))
    assert ours.teachers is not None
    batch = packed(ours, [group])
    said = ours.teachers.logprobs(batch, temperature)
    text = [{"role": "user", "content": "What is 2 + 3?\n\nThe answer is 5."}]
    rendered = tokenizer.apply_chat_template(text, add_generation_prompt=True, return_dict=False)
    model, expected = plain(teacher), []
    for sample in batch.samples:
        completion = sample.trajectory.tokens[sample.trajectory.prompt_length :]
        whole = replace(sample.trajectory, tokens=np.array([*rendered, *completion], np.int32))
        expected.append(plain_logprobs(model, whole, temperature)[len(rendered) - 1 :])
    torch.testing.assert_close(said, torch.cat(expected), rtol=1e-5, atol=1e-5)
    plainly = learner(tiny_model, taught(teacher, **changes))
    assert plainly.teachers is not None
    assert (plainly.teachers.logprobs(batch, temperature) - said).abs().max() > 0.01


def test_without_the_hint_nothing_is_taught(tiny_model: Path, teacher: Path, tokenizer: Any) -> None:
    """One that came without it, as it was too long, is not scored by a teacher that read less."""
    hint = TeacherRecipe(model=str(teacher), hint="answer")
    group, found = asked(hint, tokenizer, alone=False, context=40)
    assert found.errors[0] is not None
    assert found.errors[0].startswith("the teacher has 40 positions, and hint, prompt and completion have ")
    assert [error is None for error in found.errors] == [False, False, True]
    assert all(t.teacher_prompt is None for t in group.trajectories)
    ours = learner(tiny_model, taught([hint.model_dump()], reward="x"))
    report = ours.step([group, replace(asked(hint, tokenizer)[0], task=1)], 0, 0)
    assert report.metrics["distil/taught_share"] == pytest.approx(0.5)


def test_a_server_that_is_busy_is_asked_again(server: Server, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHER_KEY", "open sesame")
    server.statuses = [503, 429]
    group, found = asked(at(server, api_key_variable="TEACHER_KEY", concurrency=1), tokenizer)
    assert found.errors == [None] * 3
    assert len(server.asked) == 4
    assert server.keys == ["Bearer open sesame"] * 4
    for t in group.trajectories[:2]:
        assert t.teacher_logprobs is not None
        assert np.array_equal(np.isnan(t.teacher_logprobs), t.versions < 0)


def test_what_a_server_refuses_is_refused_once(server: Server, tokenizer: Any) -> None:
    long = replace(TASK, prompt=[{"role": "user", "content": "What? " * 50}])

    async def ask() -> Taught:
        teaching = Teaching([at(server)], [None], True, tokenizer)
        try:
            return await teaching(long, tuple(of_task(tokenizer, task=long)))
        finally:
            await teaching.close()

    found = asyncio.run(ask())
    assert found.errors[0] is not None
    assert "answers HTTP 400: This model's maximum context length is 256 tokens." in found.errors[0]
    assert len(server.asked) == 2


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("status", [503, -1])
def test_a_server_that_stays_silent_is_no_zero(
    tiny_model: Path, server: Server, tokenizer: Any, alone: bool, status: int
) -> None:
    """It is given up after timeout_s. Alone nothing of the trajectory is trained; beside a reward that still counts."""
    server.statuses = [status] * 50
    group, found = asked(at(server, timeout_s=0.4), tokenizer, alone=alone)
    why = "does not answer" if status < 0 else "answers HTTP 503"
    expected = f"the teacher at {server.url} {why}, for 0.4 s (timeout_s)"
    assert found.errors == [expected, expected, None]
    assert all(t.teacher_logprobs is None for t in group.trajectories)
    summary = replace(summarise(group), taught=found.errors)
    assert RewardFailures().add(error for error in summary.taught if error) == [expected]
    if alone:
        assert [t.reward for t in group.trajectories] == [None] * 3
        assert (summary.outcome, summary.errors[0]) == ("failed", expected)
        return
    assert [t.reward for t in group.trajectories] == [0.0, 0.0, None]
    assert summary.outcome == "finished"
    both = [
        replace(group, trajectories=tuple(replace(t, reward=float(i)) for i, t in enumerate(group.trajectories[:2])))
    ]
    report = learner(tiny_model, taught([at(server).model_dump()], reward="x", rollout={})).step(both, 0, 0)
    assert report.metrics["distil/taught_share"] == 0.0
    assert (report.metrics["trainer/grad_norm"] or 0) > 0


def test_a_run_ends_when_the_teacher_stays_silent(server: Server) -> None:
    limits = {"budgets": {"max_consecutive_reward_failures": 3}}
    r = taught([at(server).model_dump()], reward="x", rollout={}, **limits)
    budget, silent = Budget(r), ["the teacher at x is away"]
    summary = summarise(Group(0, 0, 0, (trajectory(np.random.default_rng(0), 1.0),)))
    budget.group(replace(summary, taught=silent * 2))
    budget.group(replace(summary, taught=[None, *silent * 2]))
    with pytest.raises(Exception, match=r"of the last 3 trajectories .*: the teacher at x is away"):
        budget.group(replace(summary, taught=silent))


def test_a_server_is_asked_before_a_run(server: Server) -> None:
    asyncio.run(require_answer(at(server), [5, 6, 7]))
    server.statuses = [404]
    with pytest.raises(UserError, match=r"algorithm\.teacher: the teacher at .* answers HTTP 404: busy; start it"):
        asyncio.run(require_answer(at(server), [5, 6, 7]))
    with pytest.raises(UserError, match=r"cannot be reached: .*, for 0\.1 s"):
        asyncio.run(require_answer(TeacherRecipe(model="big", url="http://127.0.0.1:1", timeout_s=0.1), [5, 6]))


@pytest.mark.parametrize(
    ("hint", "read"),
    [
        ("answer", "What is 2 + 3?\n\n5"),
        ("As {said.by} has it: {answer}, {{not}} 6", "What is 2 + 3?\n\nAs a sage has it: 5, {not} 6"),
        ("5 is {answer}. {prompt}", "5 is 5. What is 2 + 3?"),
    ],
)
@pytest.mark.parametrize("is_chat", [True, False])
def test_a_hint_is_in_the_prompt(tokenizer: Any, hint: str, read: str, is_chat: bool) -> None:
    task = TASK if is_chat else replace(TASK, prompt="What is 2 + 3?")
    before = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    if is_chat:
        task = replace(task, prompt=[*before, {"role": "assistant", "content": "Hi"}, *TASK.prompt])
        said = [*task.prompt[:-1], {"role": "user", "content": read}]
        expected = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=False)
    else:
        expected = tokenizer(read).input_ids
    assert hinted_tokens(task, hint, tokenizer) == expected


def test_a_row_without_the_hint_is_a_failure(tokenizer: Any, teacher: Path) -> None:
    lacks = replace(TASK, row={"answer": None}, where="rows.jsonl line 3, column 'q',")
    with pytest.raises(BadPrompt, match="line 3, column 'q', has no answer for the teacher's hint"):
        hinted_tokens(lacks, "answer", tokenizer)
    group, found = asked(TeacherRecipe(model=str(teacher), hint="answer"), tokenizer, task=lacks)
    assert [t.reward for t in group.trajectories] == [None] * 3
    assert found.errors[0] == "rows.jsonl line 3, column 'q', has no answer for the teacher's hint"


def test_a_column_that_no_row_has_is_refused(teacher: Path) -> None:
    class Table:
        column_names = ("question", "answer")

    r = taught([{"model": str(teacher), "hint": "It is {answr.short}, {prompt}"}])
    with pytest.raises(UserError, match=r"the hint has \{answr\.short\}, and x has no such.*it has question"):
        check_hints(r, [Table()])
    check_hints(taught([{"model": str(teacher), "hint": "It is {answer.short}."}]), [Table()])
