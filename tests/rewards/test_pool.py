"""The pool with real processes. Whether a process is gone is asked of the kernel (pidfd), never of a clock."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import pytest

from asyncrl.errors import UserError
from asyncrl.rewards.parts import Part
from asyncrl.rewards.pool import RewardPool
from asyncrl.rewards.score import RewardRequest, Score

REWARDS = '''
import asyncio, contextlib, ctypes, os, re, signal, subprocess, sys, time

HOARD = []

def do(completion, **row):
    """Does what the completion says."""
    if completion == "pid":
        return os.getpid()
    if completion == "own session":
        return os.getsid(0) == os.getpid()
    if completion == "slow":
        time.sleep(0.3)
    if completion == "exit":
        os._exit(3)
    if completion == "segfault":
        ctypes.string_at(0)
    if completion == "raise":
        raise RuntimeError("on purpose")
    if completion == "be killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if completion == "hoard in blocks":
        while True:
            HOARD.append(bytearray(2**20))
    if completion == "hoard in crumbs":
        last = None
        while True:
            last = [last]
    if completion == "report and spin":
        with open(row["path"], "w") as file:
            file.write(str(os.getpid()))
        while True:
            pass
    if completion == "ignore sigterm":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            pass
    if completion == "hold the gil":
        re.match("(a+)+$", "a" * 60 + "b")
    if completion == "have a child":
        child = subprocess.Popen(["sleep", "1000"])
        with open(row["path"], "w") as file:
            file.write(str(child.pid))
        child.wait()
    if completion == "have a daemon":
        # Forked twice, in a session of its own, with nothing left that binds it here.
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                for file in range(3):
                    os.close(file)
                with open(row["path"], "w") as file:
                    file.write(str(os.getpid()))
                time.sleep(1000)
            os._exit(0)
        os.wait()
        while not os.path.exists(row["path"]) or not open(row["path"]).read():
            time.sleep(0.01)
        if row["then"] == "exit":
            os._exit(3)
        if row["then"] == "stop both":
            keeper = os.getppid()
            guard = int(open(f"/proc/{keeper}/stat").read().rpartition(")")[2].split()[1])
            for parent in (keeper, guard):
                os.kill(parent, signal.SIGSTOP)
            time.sleep(1000)
        if row["then"] == "stop both for ever":
            keeper = os.getppid()
            guard = int(open(f"/proc/{keeper}/stat").read().rpartition(")")[2].split()[1])
            if os.fork() == 0:
                os.setsid()
                while os.path.exists(f"/proc/{keeper}"):
                    for parent in (keeper, guard):
                        with contextlib.suppress(OSError):
                            os.kill(parent, signal.SIGSTOP)
                    time.sleep(0.0005)
                os._exit(0)
            time.sleep(1000)
        if row["then"] in ("end its keeper", "stop its keeper", "end its guard"):
            parent = os.getppid()
            if row["then"] == "end its guard":
                parent = int(open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[1])
            os.kill(parent, signal.SIGSTOP if row["then"] == "stop its keeper" else signal.SIGKILL)
            time.sleep(1000)
        if row["then"] == "hang":
            time.sleep(1000)
    if completion == "share the hoard":
        script = "import time; hoard = bytearray(2**20 * 60); time.sleep(1000)"
        for _ in range(8):
            subprocess.Popen([sys.executable, "-c", script], start_new_session=True)
        time.sleep(1000)
    if completion == "chat":
        for _ in range(row["mib"]):
            os.write(1, b"x" * 2**20)
    if completion == "fill the disk":
        with open(row["path"], "wb") as file:
            for _ in range(64):
                file.write(b"x" * 2**20)
    if completion == "read":
        return open(row["path"]).read() == "go"
    return 1

async def co(completion, **row):
    await asyncio.sleep(0)
    return {"score": len(completion), "awaited": True}

def twice(x):
    return 2 * x

def pooled(completion, **row):
    """The completion names a way to start processes."""
    import concurrent.futures, multiprocessing
    context = multiprocessing.get_context(completion)
    with context.Pool(1) as pool:
        one = pool.map(twice, [3])
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return one[0] + pool.submit(twice, 4).result()

def forks(completion, **row):
    """The child forgets to exit, and the parent waits for it or goes on, or tells its exit status."""
    child = os.fork()
    if child == 0:
        if completion == "raise":
            raise ValueError("in the child")
        if completion == "exit":
            sys.exit(3)
        if completion == "later":
            time.sleep(0.02)
        return -1
    return 7 if completion == "later" else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

if os.environ.get("FORK_AT_IMPORT") and os.fork() == 0:
    raise ValueError("in the child")

def answers(completion, **row):
    """Has the socket, and answers for itself."""
    import gc
    from multiprocessing.connection import Connection
    from asyncrl.rewards.score import Score
    if completion == "early":
        [connection] = [it for it in gc.get_objects() if isinstance(it, Connection) and not it.closed]
        connection.send((1, [Score(-1.0)]))
    return 1

class Made:
    def __init__(self, base):
        self.base = base

    def __call__(self, completion, **row):
        return self.base + len(completion)

def group_that_hoards(prompts, completions, completion_ids, **columns):
    return [do(completion) for completion in completions]

def group(prompts, completions, completion_ids, answer, **columns):
    return [len(ids) if c == a else None for c, a, ids in zip(completions, answer, completion_ids)]
'''


@pytest.fixture
def pool_of(tmp_path):
    (tmp_path / "rewards.py").write_text(REWARDS)
    pools = []

    def make(name="do", workers=1, timeout_s=30.0, **kwargs):
        spec = name if ":" in name else f"./rewards.py:{name}"
        settings = {key: kwargs.pop(key) for key in ("dataset", "kwargs") if key in kwargs}
        pools.append(RewardPool([Part(spec, **settings)], tmp_path, workers, timeout_s, **kwargs))
        return pools[-1]

    yield make
    for pool in pools:
        pool.close()


def request(*completions, prompt="p", **row):
    number = len(completions)
    return RewardRequest(prompt, list(completions), [[1] * len(c) for c in completions], ["stop"] * number, row)


def run(pool, *completions, **row):
    return asyncio.run(pool.score(request(*completions, **row)))


def is_gone(pid, within_s=10.0):
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    ended = select.poll()
    ended.register(handle, select.POLLIN)
    try:
        return bool(ended.poll(within_s * 1000))
    finally:
        os.close(handle)


def test_scores_come_in_order_and_the_function_is_imported_once_per_process(pool_of):
    pool = pool_of()
    one, first, two, second = run(pool, "x", "pid", "y", "pid")
    assert one == two == Score(1.0)
    assert first == second
    assert run(pool, "pid") == [first]


def test_a_reward_may_start_pools_of_its_own(pool_of):
    """Whose processes must find the reward's file to unpickle its functions."""
    scores = run(pool_of("pooled", timeout_s=100.0), "spawn", "forkserver", "fork")
    assert scores == [Score(14.0)] * 3


def test_a_class_is_made_with_the_arguments_of_the_recipe(pool_of):
    assert run(pool_of("Made", kwargs={"base": 10}), "xy") == [Score(12.0)]
    with pytest.raises(UserError, match=r"is instantiated with .base., which has no default; give it"):
        run(pool_of("Made"), "xy")


def test_several_workers_work_at_the_same_time(pool_of, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pool = pool_of(workers=2)

    async def both():
        reading = asyncio.create_task(pool.score(request("read", path=str(fifo))))
        assert await pool.score(request("x")) == [Score(1.0)]
        # Opening the fifo blocks until the worker reads it: this ends only if the event loop stayed free.
        await asyncio.to_thread(fifo.write_text, "go")
        return await reading

    assert asyncio.run(both()) == [Score(1.0)]


def test_async_and_group_functions(pool_of):
    assert run(pool_of("co"), "abc", "") == [Score(3.0, {"awaited": 1.0}), Score(0.0, {"awaited": 1.0})]
    right, wrong = run(pool_of("group"), "yes", "no", answer="yes")
    assert right == Score(3.0)
    assert wrong.reward is None


def test_math_verify_runs_in_a_worker(pool_of):
    pool = pool_of("asyncrl.rewards.math:math_verify")
    assert run(pool, "so it is 42", "41", answer="#### 42") == [Score(1.0), Score(0.0)]


@pytest.mark.parametrize("how", ["ignore sigterm", "hold the gil"])
def test_a_call_that_hangs_is_killed_and_its_siblings_are_scored(pool_of, how):
    pool = pool_of(timeout_s=0.5)
    [before] = run(pool, "pid")
    good, hung, after = run(pool, "x", how, "pid")
    assert good == Score(1.0)
    assert hung == Score(None, error="timed out after 0.5 s")
    assert after.reward not in (None, before.reward)
    assert is_gone(int(before.reward))


def test_what_a_killed_call_has_started_is_killed_too(pool_of, tmp_path):
    path = tmp_path / "child"
    [score] = run(pool_of(timeout_s=0.5), "have a child", path=str(path))
    assert score.reward is None
    assert is_gone(int(path.read_text()))


@pytest.mark.parametrize(
    ("then", "said"),
    [
        ("hang", "timed out"),
        ("exit", "exit code 3"),
        ("return", ""),
        ("end its keeper", "the reward's keeper died (SIGKILL)"),
        ("stop its keeper", "timed out"),
        ("end its guard", ""),
        ("stop both", "timed out"),
        ("stop both for ever", "timed out"),
    ],
)
def test_its_daemons_end_with_it_however_it_ends(pool_of, tmp_path, then, said):
    path = tmp_path / "daemon"
    pool = pool_of(timeout_s=60.0 if then == "return" else 2.0)
    [score] = run(pool, "have a daemon", path=str(path), then=then)
    daemon = int(path.read_text())
    if then == "return":
        assert score == Score(1.0)
        assert not is_gone(daemon, within_s=0)
        pool.close()
    else:
        assert said in score.error
    assert is_gone(daemon)


def test_what_a_call_prints_is_bounded_and_said(pool_of, capfd):
    pool = pool_of()
    assert run(pool, "chat", "chat", mib=100) == [Score(1.0)] * 2
    pool.close()
    printed = capfd.readouterr().out
    assert 2**26 < len(printed) < 2**26 + 1000
    assert printed.endswith("x\n[the reward has printed 64 MiB; the rest is left out]\n")


def test_what_calls_print_is_kept_in_a_file(pool_of, tmp_path, capfd):
    """Of all workers together no more than of one."""
    log = tmp_path / "rewards.log"
    pool = pool_of(log=log)
    assert run(pool, "chat", mib=1) == [Score(1.0)]
    pool.close()
    assert log.read_text() == "x" * 2**20
    assert log.stat().st_mode & 0o777 == tmp_path.stat().st_mode & 0o666
    log.write_bytes(b"y" * (2**26 - 3))
    pool = pool_of(log=log)
    assert run(pool, "chat", mib=1) == [Score(1.0)]
    pool.close()
    assert log.read_text().endswith("yxxx\n[the reward has printed 64 MiB; the rest is left out]\n")
    assert "x" not in capfd.readouterr().out


def test_what_a_call_writes_to_a_file_is_bounded(pool_of, tmp_path):
    path = tmp_path / "file"
    full, after = run(pool_of(file_gib=1 / 128), "fill the disk", "x", path=str(path))
    assert "File too large" in full.error
    assert path.stat().st_size <= 2**23
    assert after == Score(1.0)


def test_the_memory_of_all_that_a_call_has_started_counts_together(pool_of):
    """No process has too much by itself."""
    shared, after = run(pool_of(memory_gib=0.4), "share the hoard", "x")
    assert "rewards.memory_gib is 0.4" in shared.error
    assert after == Score(1.0)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("exit", "exit code 3"),
        ("segfault", "SIGSEGV"),
        ("raise", "on purpose"),
        ("be killed", "the reward process was killed (SIGKILL; out of memory?)"),
    ],
)
def test_a_call_that_crashes_fails_alone(pool_of, how, reason):
    good, crashed, after = run(pool_of(), "x", how, "x")
    assert good == after == Score(1.0)
    assert crashed.reward is None
    assert reason in crashed.error


@pytest.mark.parametrize("at_import", ["", "1"])
def test_a_forked_child_ends_with_its_own_call(pool_of, monkeypatch, at_import):
    """And its parent sees how: an exception is no success."""
    monkeypatch.setenv("FORK_AT_IMPORT", at_import)
    pool = pool_of("forks")
    for _ in range(3):
        assert run(pool, *["later"] * 8, "return", "raise", "exit") == [
            *[Score(7.0)] * 8,
            Score(0.0),
            Score(1.0),
            Score(3.0),
        ]


def test_an_answer_to_another_request_is_never_taken(pool_of):
    early, *others = run(pool_of("answers"), "early", "x", "x")
    assert early == Score(None, error="the reward process answered what it was not asked")
    assert others == [Score(1.0)] * 2


@pytest.mark.parametrize("how", ["hoard in blocks", "hoard in crumbs"])
def test_a_call_that_takes_all_memory_fails_alone_and_what_it_hoards_goes_with_its_process(pool_of, how):
    pool = pool_of(memory_gib=0.25)
    for _ in range(2):
        before, hoarder, after = run(pool, "pid", how, "pid")
        assert hoarder.reward is None
        assert "GiB of memory, and rewards.memory_gib is 0.25; raise it, or use less" in hoarder.error
        assert after.reward not in (None, before.reward)
        assert is_gone(int(before.reward))


def test_a_group_call_that_takes_all_memory_fails_as_a_group(pool_of):
    pool = pool_of("group_that_hoards", memory_gib=0.25)
    scores = run(pool, "x", "hoard in blocks")
    assert [score.reward for score in scores] == [None, None]
    assert all("rewards.memory_gib is 0.25" in score.error for score in scores)
    assert run(pool, "x", "x") == [Score(1.0)] * 2


def test_an_idle_worker_that_dies_costs_no_call(pool_of):
    pool = pool_of()
    pid = int(run(pool, "pid")[0].reward)
    os.kill(pid, signal.SIGKILL)
    assert is_gone(pid)
    assert run(pool, "x") == [Score(1.0)]


def test_time_out_counts_neither_start_nor_queueing(pool_of, tmp_path):
    (tmp_path / "late.py").write_text("import time; time.sleep(1.0)\n" + REWARDS)
    pool = pool_of("./late.py:do", timeout_s=0.6)
    assert run(pool, *["slow"] * 4) == [Score(1.0)] * 4


def test_a_row_that_cannot_be_sent_fails_its_call_only(pool_of):
    pool = pool_of()
    [score] = run(pool, "x", thing=threading.Lock())
    assert "cannot pickle" in score.error
    assert run(pool, "x") == [Score(1.0)]


def test_workers_outlive_the_thread_that_called_and_stay_out_of_reach_of_ctrl_c(pool_of):
    pool = pool_of(timeout_s=0.5)
    pids = []
    for completion in ("x", "ignore sigterm"):  # the first worker and its replacement
        thread = threading.Thread(target=lambda c=completion: pids.append(run(pool, c, "pid")[1]))
        thread.start()
        thread.join()
        assert run(pool, "pid") == [pids[-1]]
    assert run(pool, "own session") == [Score(1.0)]


def test_a_function_that_no_worker_can_load_is_the_users_error(pool_of):
    with pytest.raises(UserError, match="has no 'dou'; did you mean 'do'"):
        run(pool_of("dou"), "x")


def test_an_import_that_hangs_is_bounded(pool_of, tmp_path):
    (tmp_path / "hang.py").write_text("while True: pass\n")
    with pytest.raises(UserError, match=r"no process for the reward: timed out after 0\.5 s"):
        run(pool_of("./hang.py:do", start_timeout_s=0.5), "x")


def test_a_group_cancelled_while_workers_start_leaves_the_pool_working(pool_of):
    pool = pool_of()

    async def cancel_one():
        task = asyncio.create_task(pool.score(request("x")))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return await pool.score(request("x"))

    assert asyncio.run(cancel_one()) == [Score(1.0)]


def test_a_group_cancelled_while_it_is_scored_leaves_the_pool_working(pool_of, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    pool = pool_of()

    async def cancel_one():
        task = asyncio.create_task(pool.score(request("read", "pid", path=str(fifo))))
        await asyncio.to_thread(fifo.write_text, "go")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert task.cancelled()
        return await pool.score(request("x"))

    assert asyncio.run(cancel_one()) == [Score(1.0)]


def test_close_kills_and_answers_whoever_waits(pool_of, tmp_path):
    path = tmp_path / "child"
    os.mkfifo(path)
    pool = pool_of()

    async def close_while_busy():
        busy = asyncio.create_task(pool.score(request("have a child", "x", path=str(path))))
        pid = int(await asyncio.to_thread(path.read_text))
        await asyncio.to_thread(pool.close, 10.0)
        return await busy, pid

    scores, pid = asyncio.run(close_while_busy())
    assert [s.reward for s in scores] == [None, None]
    assert all("closed" in s.error for s in scores)
    assert is_gone(pid)
    assert not any(thread.is_alive() for thread in pool._threads)
    with pytest.raises(RuntimeError, match="closed"):
        run(pool, "x")


def test_killing_the_owner_leaves_no_orphan_and_its_main_script_is_not_run_again(pool_of, tmp_path):
    """The script has no __main__ guard, and notes each time that it is run."""
    pool_of()  # writes rewards.py
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import asyncio
        from pathlib import Path
        from asyncrl.rewards.parts import Part
        from asyncrl.rewards.pool import RewardPool
        from asyncrl.rewards.score import RewardRequest
        base = Path(__file__).parent
        with open(base / "runs", "a") as file:
            file.write("run\\n")
        pool = RewardPool([Part("./rewards.py:do")], base, 1, 1000.0)
        asyncio.run(pool.score(RewardRequest("p", ["report and spin"], [[1]], ["stop"], {"path": base / "fifo"})))
        """)
    )
    os.mkfifo(tmp_path / "fifo")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    owner = subprocess.Popen([sys.executable, script], env=environment)
    pid = int((tmp_path / "fifo").read_text())
    assert not is_gone(pid, within_s=0)
    owner.kill()
    owner.wait()
    assert is_gone(pid)
    assert (tmp_path / "runs").read_text() == "run\n"
