"""Episodes in real processes: what they sample, what they do wrong, and that nothing of them is left."""

from __future__ import annotations

import asyncio
import os
import re
import select
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from asyncrl.envs import pool as pools
from asyncrl.envs import worker as workers
from asyncrl.envs.environment import Ask, ContextFull, Episode, Sampled
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.wire import End, Load
from asyncrl.errors import UserError
from asyncrl.models import load_tokenizer
from asyncrl.rewards.score import Score
from asyncrl.task import Task

CODE = '''
import asyncio, os, socket, subprocess, sys, time

HOARD = []

def pid():
    return os.getpid()

async def rollout(task, policy):
    """Does what the row says."""
    do = task.row["do"]
    if do == "sample twice":
        chat = policy.chat(task.messages)
        await chat.reply()
        chat.add("more")
        reply = await chat.reply(max_new_tokens=5)
        return {"reward": 0.5, "turns": 2.0, "said": reply.text}
    if do == "leave it":
        await policy.generate(policy.prompt)
        return None
    if do == "fill the context":
        while True:
            await policy.generate(policy.prompt)
    if do == "ask nonsense":
        try:
            await policy.generate([])
        except ValueError as error:
            return {"reward": 0.25, "said": str(error)}
    if do == "ask in odd types":
        found = []
        for more in ({"max_new_tokens": 5.0}, {"stop": [5]}, {"max_new_tokens": 2**70}):
            try:
                await policy.generate(policy.prompt, **more)
            except ValueError:
                found.append(1)
        return float(len(found))
    if do == "fail behind a full context":
        try:
            while True:
                await policy.generate(policy.prompt)
        except Exception:
            pass
        raise RuntimeError("the sandbox died while scoring")
    if do == "judge":
        await policy.generate(policy.prompt)
        await policy.generate([1, 2, 3], train=False)
        return 1.0
    if do == "clean up for long":
        try:
            await asyncio.sleep(1000)
        finally:
            await asyncio.sleep(1000)
    if do == "raise":
        raise RuntimeError("no room on the disk")
    if do == "leave":
        sys.exit("I am done")
    if do == "nan":
        return float("nan")
    if do == "hang":
        await asyncio.sleep(1000)
    if do == "block":
        time.sleep(1000)
    if do == "hold for a while":
        time.sleep(4)
        await asyncio.sleep(0.5)
        return 1.0
    if do == "exit":
        os._exit(3)
    if do == "hoard":
        while True:
            HOARD.append(bytearray(2**26))
            await asyncio.sleep(0)
    if do == "daemon":
        child = subprocess.Popen(["sleep", "1000"], start_new_session=True)
        return {"reward": 1.0, "pid": child.pid, "own": os.getpid()}
    if do == "write to the generator":
        for handle in range(3, 100):
            try:
                socket.socket(fileno=os.dup(handle)).send(b"\\\\x05\\\\x00\\\\x00\\\\x00nothing")
            except OSError:
                pass
        await asyncio.sleep(1000)
    if do == "wait":
        await asyncio.sleep(task.row["s"])
        return 1.0
    if do == "print":
        print("something", flush=True)
        return 1.0

def blocking(task, base_url):
    time.sleep(task.row["s"])
    return 1.0

def broken(task
'''
GOOD = CODE.rpartition("def broken")[0]


class Policy:
    """Says `ok`; from the fourth call on there is no room."""

    def __init__(self, model: Path, error: Exception | None = None) -> None:
        self.tokenizer, self.error, self.asks = load_tokenizer(str(model)), error, []

    async def generate(self, ask: Ask) -> Sampled:
        if self.error is not None:
            raise self.error
        if not ask.tokens:
            raise ValueError("that is no prompt")
        if len(self.asks) == 3:
            raise ContextFull("it is full")
        self.asks.append(ask)
        tokens = [*self.tokenizer("ok").input_ids, self.tokenizer.eos_token_id]
        return Sampled(tokens, [0.0] * len(tokens), "stop", 0)


def settings(folder: Path, model: Path, name: str = "rollout", **changes: Any) -> EnvSettings:
    load = Load(f"./env.py:{name}", folder, {}, str(model), {}, 5.0)
    return replace(EnvSettings(load, 1, 30.0, 1.0), **changes)


@asynccontextmanager
async def pool_of(folder: Path, model: Path, name: str = "rollout", **changes: Any) -> AsyncIterator[EnvPool]:
    (folder / "env.py").write_text(GOOD)
    pool = EnvPool(settings(folder, model, name, **changes))
    try:
        await pool.start()
        yield pool
    finally:
        await pool.close()


def episodes(folder: Path, model: Path, *todo: str, policy: Any = None, **changes: Any) -> list[Episode]:
    """Of one pool, one after the other."""

    async def scenario() -> list[Episode]:
        async with pool_of(folder, model, **changes) as pool:
            return [
                await pool.rollout(Task(i, 0, "hi", {"do": do}), [5, 6], policy or Policy(model), f"{i}.0.0")
                for i, do in enumerate(todo)
            ]

    return asyncio.run(asyncio.wait_for(scenario(), 100))


def is_gone(pid: int) -> bool:
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = select.poll()
    ended.register(handle, select.POLLIN)
    try:
        return bool(ended.poll(10_000))
    finally:
        os.close(handle)


def test_what_an_episode_says_and_samples(tmp_path: Path, tiny_model: Path) -> None:
    policy = Policy(tiny_model)
    (episode,) = episodes(tmp_path, tiny_model, "sample twice", policy=policy)
    assert (episode.score.reward, episode.score.extras, episode.score.notes) == (0.5, {"turns": 2.0}, {"said": "ok"})
    first, second = policy.asks
    assert second.tokens[: len(first.tokens)] == first.tokens
    assert second.max_new_tokens == 5


def test_none_is_for_the_reward_function_and_a_full_context_is_no_failure(tmp_path: Path, tiny_model: Path) -> None:
    left, full, nonsense = episodes(tmp_path, tiny_model, "leave it", "fill the context", "ask nonsense")
    assert left == Episode(None, "stop")
    why = "the episode was cut off (it is full; raise it, or catch asyncrl.envs.environment.ContextFull)"
    assert full == Episode(None, "length", why)
    assert (nonsense.score.reward, nonsense.score.notes) == (0.25, {"said": "that is no prompt"})


def test_what_goes_wrong_is_the_episodes_alone_and_says_so(tmp_path: Path, tiny_model: Path) -> None:
    """Each in a pool that goes on with the next, in a new process where the old one is gone."""
    raised, left, nan, exited, hoarded, lied, good = episodes(
        tmp_path, tiny_model, "raise", "leave", "nan", "exit", "hoard", "write to the generator", "sample twice",
        episode_s=60.0, memory_gib=1.0,
    )  # fmt: skip
    failed = r"the environment failed: {} \(env\.py:\d+\)"
    assert re.fullmatch(failed.format("RuntimeError: no room on the disk"), raised.score.error)
    assert re.fullmatch(failed.format("SystemExit: I am done"), left.score.error)
    assert "not a finite number" in nan.score.error
    assert exited.score.error == "the environment process died (exit code 3)"
    assert "env.memory_gib is 1; raise it, or use less" in hoarded.score.error
    assert lied.score.error.startswith("the environment's process sent what is no message")
    assert all(e.score.reward is None for e in (raised, left, nan, exited, hoarded, lied))
    assert good.score.reward == 0.5


def test_an_episode_that_hangs_is_ended_at_its_deadline(tmp_path: Path, tiny_model: Path) -> None:
    (hung,) = episodes(tmp_path, tiny_model, "hang", episode_s=2.0)
    assert hung.score == Score(None, error="the episode timed out after 2 s (env.episode_s)")


def test_who_holds_the_event_loop_ends_with_its_process(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_YIELD_S", 1.0)
    blocked, good = episodes(tmp_path, tiny_model, "block", "sample twice", episode_s=2.0)
    assert "something holds its event loop; make what blocks a plain function" in blocked.score.error
    assert good.score.reward == 0.5


def test_daemons_end_with_the_pool_and_what_is_printed_is_in_the_log(tmp_path: Path, tiny_model: Path) -> None:
    log = tmp_path / "environments.log"
    daemon, _ = episodes(tmp_path, tiny_model, "daemon", "print", log=log)
    assert is_gone(int(daemon.score.extras["pid"]))
    assert is_gone(int(daemon.score.extras["own"]))
    assert log.read_text() == "something\n"


def test_what_is_odd_is_the_calls_or_the_episodes_alone(tmp_path: Path, tiny_model: Path) -> None:
    odd, failed, judged = episodes(tmp_path, tiny_model, "ask in odd types", "fail behind a full context", "judge")
    assert odd.score.reward == 3.0
    assert (failed.score.reward, failed.finish_reason) == (None, "stop")
    assert "the sandbox died while scoring" in failed.score.error
    assert (judged.score.reward, judged.finish_reason) == (1.0, "stop")


def test_who_cleans_up_for_long_is_given_up_alone(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a rollout that is cancelled before its first line ends as well."""
    monkeypatch.setattr(pools, "_YIELD_S", 2.0)

    async def scenario() -> tuple[Episode, Episode, int]:
        async with pool_of(tmp_path, tiny_model, episode_s=4.0) as pool:
            policy = Policy(tiny_model)

            def begin(name: str, **row: Any) -> asyncio.Task[Episode]:
                return asyncio.create_task(pool.rollout(Task(0, 0, "hi", row), [5], policy, name))

            slow, neighbour = begin("a", do="clean up for long"), begin("b", do="wait", s=3.5)
            never = begin("c", do="hang")
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            never.cancel()
            ended = await asyncio.gather(slow, neighbour)
            (process,) = pool._processes
            return *ended, len(process.episodes)

    slow, neighbour, left = asyncio.run(scenario())
    assert slow.score.error == "the episode timed out after 4 s (env.episode_s); it has not ended since"
    assert neighbour.score.reward == 1.0
    assert left == 0


def test_all_who_wait_for_a_start_share_its_outcome_and_a_closed_pool_starts_none(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_START_S", 2.0)
    (tmp_path / "env.py").write_text("import time\ntime.sleep(1000)\n")

    async def scenario() -> tuple[list[Episode], float, Episode]:
        pool = EnvPool(settings(tmp_path, tiny_model))
        began = time.monotonic()
        todo = [pool.rollout(Task(i, 0, "hi", {}), [5], Policy(tiny_model), f"{i}") for i in range(4)]
        found = await asyncio.gather(*todo)
        took = time.monotonic() - began
        await pool.close()
        return found, took, await pool.rollout(Task(9, 0, "hi", {}), [5], Policy(tiny_model), "9")

    found, took, after = asyncio.run(scenario())
    assert {"did not load within 2 s" in episode.score.error for episode in found} == {True}
    assert took < 8
    assert after.score.error == "no process for the environment: the pool is closed"


def test_what_a_process_makes_up_is_no_reward() -> None:
    assert pools._episode(End("a", float("nan"), is_scored=True)).score.reward is None
    assert "not a finite number" in pools._episode(End("a", None, is_scored=True)).score.error
    assert pools._episode(End("a", 1.0, is_scored=True, finish_reason="nonsense")).finish_reason == "stop"


def test_what_the_policy_raises_passes_through(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(KeyError, match="engine"):
        episodes(tmp_path, tiny_model, "leave it", policy=Policy(tiny_model, KeyError("engine")))


def test_a_slow_episode_holds_up_no_other(tmp_path: Path, tiny_model: Path) -> None:
    """Neither one that waits nor eight plain functions that block their threads."""

    async def scenario(name: str) -> float:
        async with pool_of(tmp_path, tiny_model, name) as pool:
            began = time.monotonic()
            policy, row = Policy(tiny_model), {"do": "wait", "s": 1.0}
            todo = [pool.rollout(Task(i, 0, "hi", row), [5], policy, f"{i}.0.0") for i in range(8)]
            assert {episode.score.reward for episode in await asyncio.gather(*todo)} == {1.0}
            return time.monotonic() - began

    assert asyncio.run(scenario("rollout")) < 4
    assert asyncio.run(scenario("blocking")) < 4


def test_a_cancelled_rollout_is_cancelled_in_its_process(tmp_path: Path, tiny_model: Path) -> None:
    async def scenario() -> int:
        async with pool_of(tmp_path, tiny_model) as pool:
            hanging = asyncio.create_task(pool.rollout(Task(0, 0, "hi", {"do": "hang"}), [5], Policy(tiny_model), "a"))
            await asyncio.sleep(0.5)
            hanging.cancel()
            with pytest.raises(asyncio.CancelledError):
                await hanging
            (process,) = pool._processes
            (episode,) = process.episodes.values()
            await asyncio.wait_for(episode.told.wait(), 5)
            return len(process.episodes)

    assert asyncio.run(scenario()) == 0


@pytest.mark.parametrize(
    ("code", "name", "said"),
    [
        (CODE, "rollout", "does not import: SyntaxError"),
        (GOOD, "nope", "has no 'nope'"),
        (GOOD, "HOARD", "of type list"),
    ],
)
def test_what_cannot_be_loaded_is_said_at_the_start(
    tmp_path: Path, tiny_model: Path, code: str, name: str, said: str
) -> None:
    (tmp_path / "env.py").write_text(code)

    async def scenario() -> None:
        pool = EnvPool(settings(tmp_path, tiny_model, name))
        try:
            await pool.start()
        finally:
            await pool.close()

    with pytest.raises(UserError, match=said):
        asyncio.run(scenario())


def test_who_holds_the_event_loop_is_named(tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    """While it does, not only when its process is ended for it."""
    (held,) = episodes(tmp_path, tiny_model, "hold for a while")
    assert held.score.reward == 1.0
    (warning,) = [record.message for record in caplog.records if "holds its event loop" in record.message]
    assert "env.py:" in warning
    assert "make what blocks a plain function" in warning


def test_an_episode_whose_process_died_before_it_began_does_not_wait(tmp_path: Path, tiny_model: Path) -> None:
    async def scenario() -> Episode:
        async with pool_of(tmp_path, tiny_model) as pool:
            (process,) = pool._processes
            await process.end("it was killed")
            process.ready = _is_ready  # as it was a moment ago
            return await asyncio.wait_for(
                pool.rollout(Task(0, 0, "hi", {"do": "wait", "s": 0.0}), [5], Policy(tiny_model), "a"), 5
            )

    episode = asyncio.run(scenario())
    assert episode.score.error == "the environment's process died before the episode began"


async def _is_ready() -> None:
    """It is."""


def test_plain_functions_that_take_all_threads_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_THREADS", 2)
    said, go = [], threading.Event()
    threads = workers._Threads(said.append)
    threads.submit(go.wait, 10)
    threads.submit(go.wait, 10)
    assert not said
    last = threads.submit(int)
    assert "2 plain functions of the environment run" in said[0]
    go.set()
    assert last.result(10) == 0
    threads.shutdown()
