"""What code in a sandbox may do, and what it may not."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import tempfile
import textwrap
import time
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from sandboxes import needs_a_sandbox

from asyncrl.envs.environment import Ask, Episode, Sampled
from asyncrl.envs.pool import EnvPool, EnvSettings
from asyncrl.envs.sandbox import Ran, Sandbox
from asyncrl.envs.wire import Load
from asyncrl.errors import UserError
from asyncrl.task import Task


@asynccontextmanager
async def sandbox(**limits: float) -> AsyncIterator[Sandbox]:
    made = Sandbox(**limits)
    try:
        yield await made.start()
    finally:
        await made.close()


def python(*codes: str, **limits: float) -> list[str]:
    """What each prints, one after the other in one sandbox."""

    async def all_of() -> list[str]:
        async with sandbox(**limits) as made:
            return [await made.python(textwrap.dedent(code)) for code in codes]

    return asyncio.run(all_of())


def family() -> set[int]:
    """Processes of sandboxes below this one: whoever pytest has started besides is none."""
    inits = {
        child for child in psutil.Process().children(recursive=True) if "sandbox_init.py" in " ".join(cmdline(child))
    }
    return {child.pid for init in inits for child in (init, *init.children(recursive=True))}


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def gone(pids: set[int]) -> bool:
    _, alive = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=10)
    return not alive


@needs_a_sandbox
def test_files_stay_from_call_to_call_and_variables_do_not() -> None:
    wrote, read, variable = python("x = 5; open('a', 'w').write('kept')", "print(open('a').read())", "print(x)")
    assert (wrote, read) == ("[no output]", "kept")
    assert variable.endswith("NameError: name 'x' is not defined\n[exit code 1]")


@needs_a_sandbox
def test_packages_of_the_environment_are_there() -> None:
    assert python("import numpy; print(numpy.arange(4).sum())") == ["6"]


@needs_a_sandbox
def test_a_program_with_input_and_its_exit_code() -> None:
    async def ran() -> list[Ran]:
        async with sandbox() as made:
            return [
                await made.run(["/bin/sh", "-c", "cat > f; wc -c < f"], "four"),
                await made.run(["/bin/sh", "-c", "echo no >&2; exit 3"]),
                await made.run(["no such program"]),
            ]

    counted, failed, missing = asyncio.run(ran())
    assert (counted.output.strip(), counted.status) == ("4", 0)
    assert (failed.output, failed.status, failed.told) == ("no\n", 3, "no\n[exit code 3]")
    assert missing.status is None
    assert "cannot be started" in missing.ended


@needs_a_sandbox
def test_no_file_of_the_machine_is_seen(tmp_path: Path) -> None:
    secret = tmp_path / "run" / "recipe.yaml"
    secret.parent.mkdir()
    secret.write_text("secret")
    # From the working folder too, and by what a process of the outside has open.
    paths = [str(secret), os.path.abspath(__file__), os.path.expanduser("~/.bashrc"), "/etc/shadow", "/proc/1/environ"]
    code = f"""
    for path in {paths!r}:
        try:
            print(open(path).read())
        except OSError as error:
            print("refused")
    """
    assert python(code) == ["\n".join(["refused"] * len(paths))]


@needs_a_sandbox
def test_nothing_of_the_machine_is_changed() -> None:
    (said,) = python(
        """
        import os, sys
        for path in ("/usr/x", sys.base_prefix + "/x", os.path.dirname(os.__file__) + "/os.py"):
            try:
                open(path, "a")
            except OSError as error:
                print(error.strerror)
        """
    )
    assert set(said.splitlines()) == {"Read-only file system"}


@needs_a_sandbox
def test_a_virtual_environment_may_lie_where_files_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        venv.create(folder, with_pip=False)
        monkeypatch.setattr(sys, "prefix", folder)
        monkeypatch.setattr(sys, "executable", f"{folder}/bin/python")
        prefix, wrote = python("import sys; print(sys.prefix)", "open('x', 'w'); print('wrote')")
        assert (prefix, wrote) == (folder, "wrote")


@needs_a_sandbox
def test_the_environment_of_the_run_is_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    assert python("import os; print('HF_TOKEN' in os.environ)") == ["False"]


@needs_a_sandbox
def test_no_network_unless_asked() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = f"import socket; socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 2); print('in')"
        assert python(code)[0].endswith("Network is unreachable\n[exit code 1]")
        assert python(code, network=True) == ["in"]


@needs_a_sandbox
def test_no_socket_file_of_the_machine_is_reached(tmp_path: Path) -> None:
    """Those are no matter of network namespaces."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        server.listen()
        code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(tmp_path / 's')!r})"
        assert "FileNotFoundError" in python(code)[0]


@needs_a_sandbox
def test_a_fork_bomb_is_ended_and_the_next_call_runs() -> None:
    bomb, after = python("import os\nwhile True: os.fork()", "print('after')", processes=40)
    assert bomb == "[ended: it started more than 40 processes]"
    assert after == "after"


@needs_a_sandbox
def test_memory_of_one_process_and_of_all_together() -> None:
    one, many = python(
        "bytearray(10 << 30)",
        """
        import os, time
        for _ in range(20):
            if os.fork() == 0:
                held = b"x" * (50 << 20)
                time.sleep(60)
        time.sleep(60)
        """,
        memory_gib=0.5,
        call_s=60,
    )
    assert one.endswith("MemoryError\n[exit code 1]")
    assert many == "[ended: it held more than 0.5 GiB of memory]"


@needs_a_sandbox
def test_files_have_room_for_no_more_than_memory() -> None:
    (said,) = python(
        """
        try:
            for number in range(100):
                open(str(number), "wb").write(b"x" * (10 << 20))
        except OSError as error:
            print(number, error.strerror)
        """,
        memory_gib=0.125,
    )
    number, _, why = said.partition(" ")
    assert (why, 8 <= int(number) <= 13) == ("No space left on device", True)


@needs_a_sandbox
def test_endless_output_and_endless_time() -> None:
    output, time = python("while True: print('x' * 1000)", "while True: pass", most_bytes=5000, call_s=1)
    assert (
        output == "x" * 1000 + ("\n" + "x" * 1000) * 3 + "\n" + "x" * 996 + "\n[ended: it printed more than 5000 bytes]"
    )
    assert time == "[ended: it took more than 1 s]"


@needs_a_sandbox
def test_a_daemon_does_not_outlive_its_call() -> None:
    daemon, left = python(
        """
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
            os._exit(0)
        print("done")
        """,
        "import os; print(len([name for name in os.listdir('/proc') if name.isdigit()]))",
    )
    assert (daemon, left) == ("done", "2")  # init and the one that counts


@needs_a_sandbox
def test_who_holds_the_pipe_in_the_background_holds_up_nobody() -> None:
    async def timed() -> str:
        async with sandbox() as made, asyncio.timeout(5):
            return await made.shell("sleep 100 & echo done")

    assert asyncio.run(timed()) == "done"


@needs_a_sandbox
def test_init_cannot_be_ended_and_no_capability_is_left() -> None:
    kill, mount, after = python(
        "import os, signal; os.kill(1, signal.SIGKILL); print('sent')",
        "import ctypes; print(ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None))",
        "print('after')",
    )
    assert (kill, mount, after) == ("sent", "-1", "after")


@needs_a_sandbox
def test_nothing_is_left_when_it_is_closed_or_its_call_is_given_up() -> None:
    async def given_up() -> str:
        async with sandbox(call_s=60) as made:
            call = asyncio.create_task(made.shell("touch here; sleep 60"))
            await asyncio.sleep(0.5)
            before = family()
            assert len(before) >= 3  # outer, init, the shell
            call.cancel()
            await asyncio.wait([call])
            assert await asyncio.to_thread(gone, before)
            return await made.shell("ls")  # a new one, with no files

    assert asyncio.run(given_up()) == "[no output]"
    assert gone(family())


@needs_a_sandbox
def test_a_closed_one_runs_nothing() -> None:
    async def after() -> None:
        async with sandbox() as made:
            pass
        await made.shell("true")

    with pytest.raises(UserError, match="closed"):
        asyncio.run(after())


def test_a_machine_that_allows_none_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    refuses = tmp_path / "init.py"
    refuses.write_text("raise OSError(1, 'unshare: Operation not permitted')")
    monkeypatch.setattr("asyncrl.envs.sandbox._INIT", refuses)
    with pytest.raises(UserError, match=r"no sandbox \(.*unshare: Operation not permitted\): it takes Linux"):
        asyncio.run(Sandbox().start())


ENVIRONMENT = """
import asyncio

async def rollout(task, policy):
    sandbox = await policy.sandbox(call_s=60)
    if task.row["do"] == "use":
        chat = policy.chat(task.messages, tools=[sandbox.python])
        return float(await sandbox.python("print(6 * 7)") == "42" and chat._toolbox.names == ["python"])
    call = asyncio.create_task(sandbox.shell("sleep 60"))
    await asyncio.sleep(0.2)
    if task.row["do"] == "raise":
        raise RuntimeError("no")
    await call
"""


@needs_a_sandbox
def test_an_episodes_sandbox_ends_with_it_however_it_ends(tmp_path: Path, tiny_model: Path) -> None:
    (tmp_path / "env.py").write_text(ENVIRONMENT)
    load = Load("./env.py:rollout", tmp_path, {}, str(tiny_model), {}, 5.0)

    async def scenario() -> list[tuple[Episode, int]]:
        pool = EnvPool(EnvSettings(load, 1, 5.0, 1.0))
        try:
            await pool.start()
            found = []
            for do in ("use", "raise", "hang"):
                episode = await pool.rollout(Task(0, 0, "hi", {"do": do}), [5, 6], NoPolicy(), do)
                found.append((episode, await asyncio.to_thread(inits)))
            return found
        finally:
            await pool.close()

    found = asyncio.run(scenario())
    used, raised, hung = (episode for episode, _ in found)
    assert [left for _, left in found] == [0, 0, 0]
    assert used.score.reward == 1.0
    assert "RuntimeError: no" in raised.score.error
    assert "timed out after 5 s" in hung.score.error


class NoPolicy:
    async def generate(self, ask: Ask) -> Sampled:
        raise AssertionError


def inits() -> int:
    """Processes of sandboxes that there are below this one, once those that end have ended."""
    until = time.monotonic() + 10
    while (found := family()) and time.monotonic() < until:
        time.sleep(0.05)
    return len(found)


@needs_a_sandbox
def test_system_calls_that_lead_around_namespaces_are_refused() -> None:
    """Sockets of a virtual machine, keys of the session, namespaces in which one has capabilities again."""
    code = """
    import ctypes, os, socket
    libc = ctypes.CDLL(None, use_errno=True)
    keyctl, clone = {"x86_64": (250, 56), "aarch64": (219, 220)}[os.uname().machine]
    try:
        socket.socket(40, socket.SOCK_STREAM)
        print("vsock")
    except PermissionError:
        pass
    for name, what in (("unshare", lambda: libc.unshare(0x10000000)),
                       ("clone", lambda: libc.syscall(clone, 0x10000000 | 17, 0, 0, 0, 0)),
                       ("keyctl", lambda: libc.syscall(keyctl, 0, -3, 0)),
                       ("mount", lambda: libc.mount(b"x", b"/tmp", b"tmpfs", 0, None))):
        if what() != -1 or ctypes.get_errno() != 1:
            print(name, ctypes.get_errno())
    """
    (said,) = python(code)
    assert said == "[no output]"


@needs_a_sandbox
def test_threads_and_processes_of_a_program_work() -> None:
    threads, processes, shell = python(
        "from concurrent.futures import ThreadPoolExecutor as P\nprint(sum(P(4).map(abs, [-1, 2])))",
        "import multiprocessing as m\nprint(m.get_context('fork').Pool(2).map(abs, [-1, 2]))",
        "import subprocess\nprint(subprocess.run(['ls', '/'], capture_output=True).returncode)",
    )
    assert (threads, processes, shell) == ("3", "[1, 2]", "0")
