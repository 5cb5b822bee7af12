"""Where code runs that a model writes: processes that see neither the machine's files nor its network.

    episode --call--> Sandbox --JSON--> init (`sandbox_init.py`) --fork--> one call
Files of a sandbox are in its memory, and stay from call to call; processes do not. With init all of it is gone.

Waits for: a call, `call_s` at most. Unblocked by: init; the kernel, which ends init with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from asyncrl.errors import UserError

_INIT = Path(__file__).with_name("sandbox_init.py")
_START_S = 30.0
_MORE_S = 10.0
"""For init to end a call that is over its time, on a busy machine."""


@dataclass(frozen=True)
class Ran:
    """One call."""

    output: str
    """What it printed, on standard output and error, as much as `most_bytes` allow."""
    status: int | None
    """Exit code, negative: the signal; None if a limit ended it."""
    ended: str = ""
    """Which limit did."""

    @property
    def told(self) -> str:
        """For the model to read."""
        note = f"[ended: {self.ended}]" if self.ended else f"[exit code {self.status}]" if self.status else ""
        return "\n".join(part for part in (self.output.rstrip("\n"), note) if part) or "[no output]"


@dataclass
class Sandbox:
    """One episode's, made by `await policy.sandbox()`; its methods `python` and `shell` are tools. Calls run one at a
    time."""

    call_s: float = 10.0
    """Longest call, in seconds."""
    memory_gib: float = 1.0
    """That all processes of a call may hold together, and as much again its files."""
    processes: int = 64
    """That a call may start."""
    most_bytes: int = 65536
    """That a call may print."""
    network: bool = False
    """True: it reaches what the machine reaches, loopback too."""
    _init: asyncio.subprocess.Process | None = field(default=None, init=False)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock, init=False)
    _is_closed: bool = field(default=False, init=False)

    async def python(self, code: str) -> str:
        """Runs Python code and returns what it prints. Files in the current folder stay, variables do not."""
        return (await self.run([sys.executable, "-I", "-"], code)).told

    async def shell(self, command: str) -> str:
        """Runs a shell command and returns what it prints. Files in the current folder stay."""
        return (await self.run(["/bin/sh", "-c", command])).told

    async def start(self) -> Sandbox:
        """Itself, started. Raises UserError where the machine allows no sandbox."""
        async with self._turn:
            self._init = self._init or await self._start()
        return self

    async def run(self, argv: list[str], stdin: str = "") -> Ran:
        """Runs a program with `stdin` as its input. Raises UserError where the machine allows no sandbox."""
        async with self._turn:
            if self._is_closed:
                raise UserError("the sandbox is closed")
            init = self._init = self._init or await self._start()
            try:
                call = {"argv": argv, "stdin": stdin, "call_s": self.call_s, "most_bytes": self.most_bytes}
                assert init.stdin
                assert init.stdout
                init.stdin.write(json.dumps(call).encode() + b"\n")
                async with asyncio.timeout(self.call_s + _MORE_S):
                    said = await init.stdout.readline()
            except TimeoutError:
                await self._end()
                return Ran("", None, f"it took more than {self.call_s:g} s, and the sandbox with its files is lost")
            except BaseException:
                await self._end()  # its answer would be taken for that of the next call
                raise
        if not said:
            await self._end()
            return Ran("", None, "the sandbox with its files is lost: its first process has died")
        return Ran(**json.loads(said))

    async def _start(self) -> asyncio.subprocess.Process:
        limits = {
            "memory_bytes": int(self.memory_gib * 2**30),
            "processes": self.processes,
            "network": self.network,
            "trees": sorted({sys.base_prefix, sys.prefix}),
            "parent": os.getpid(),
        }
        init = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", str(_INIT), json.dumps(limits)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=2**20 + 8 * self.most_bytes,
        )
        assert init.stdout
        assert init.stderr
        try:
            async with asyncio.timeout(_START_S):
                if await init.stdout.readline():
                    return init
                last = (await init.stderr.read()).decode("utf-8", "replace").strip().splitlines()
        except TimeoutError:
            last = [f"it did not start within {_START_S:g} s"]
        except BaseException:
            await _kill(init)
            raise
        await _kill(init)
        raise UserError(
            f"this machine allows no sandbox ({last[-1] if last else 'no reason given'}): it takes Linux 5.12 with "
            "user namespaces; in a container, allow unshare and mounts (docker run --security-opt seccomp=unconfined "
            "--security-opt systempaths=unconfined)"
        )

    async def close(self) -> None:
        """Ends what runs in it; its files are gone."""
        self._is_closed = True
        await self._end()

    async def _end(self) -> None:
        init, self._init = self._init, None
        if init is not None:
            await _kill(init)


async def _kill(init: asyncio.subprocess.Process) -> None:
    """The kernel ends all of its namespace with it."""
    with contextlib.suppress(ProcessLookupError):
        init.kill()
    await init.wait()
