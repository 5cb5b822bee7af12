"""Process 1 of a sandbox (`sandbox.py`): standard library only, run by its path. Linux only.

    outer: new namespaces, then waits --fork--> init: a root of its own, then serves calls --fork--> one call
Namespaces as bubblewrap has them: user (no capabilities in a call), mount (nothing but system folders and Python's,
read-only, and an empty /tmp in memory), PID (with init ends all that is left), IPC, network (not even loopback is
up). A line of JSON on standard input is a call, a line on standard output what came of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import stat
import struct
import subprocess
import sys
import time

NAMESPACES = {"user": 0x10000000, "mount": 0x20000, "pid": 0x20000000, "ipc": 0x8000000, "net": 0x40000000}
_NOSUID, _NODEV, _BIND, _REC, _PRIVATE, _DETACH = 2, 4, 4096, 16384, 1 << 18, 2
_PDEATHSIG = 1
_MOUNT_SETATTR, _PIVOT_ROOT = 442, 155 if os.uname().machine == "x86_64" else 41  # of every other machine
_TREES = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives", "/etc/ld.so.cache", "/etc/ssl")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_NEW_ROOT = "/dev/shm"
"""A folder that there always is, and that holds no program."""
_UID = 1000
_NO_NEW_PRIVS, _SECCOMP, _FILTER = 38, 22, 2
_AF_VSOCK, _CLONE3 = 40, 435
_NUMBERS = {
    "x86_64": (0xC000003E, 41, 56, (248, 249, 250, 165, 272, 308, 321, 298, 323, 425)),
    "aarch64": (0xC00000B7, 198, 220, (217, 218, 219, 40, 97, 268, 280, 241, 282, 425)),
}
"""By machine: its name in the kernel, `socket`, `clone`, and what is refused: add_key, request_key, keyctl, mount,
unshare, setns, bpf, perf_event_open, userfaultfd, io_uring_setup."""
_LOOK_S = 0.05
_PAGE = os.sysconf("SC_PAGE_SIZE")

_libc = ctypes.CDLL(None, use_errno=True)


def _do(name: str, *arguments: object) -> None:
    """A system call of libc; raises OSError."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main() -> None:
    """`sys.argv[1]`: JSON of memory_bytes, processes, network, trees (further folders to show) and parent."""
    limits = json.loads(sys.argv[1])
    _die_with(limits["parent"])
    uid, gid = os.geteuid(), os.getegid()
    kinds = [bit for name, bit in NAMESPACES.items() if name != "net" or not limits["network"]]
    _do("unshare", sum(kinds))
    for file, line in (("setgroups", "deny"), ("uid_map", f"{_UID} {uid} 1"), ("gid_map", f"{_UID} {gid} 1")):
        with open(f"/proc/self/{file}", "w") as to:
            to.write(line)
    if init := os.fork():
        os.close(0)  # init alone has the other ends, so that its end is seen
        os.close(1)
        os.waitpid(init, 0)
        os._exit(0)
    _die_with(0)  # its parent is in another PID namespace
    _make_root(limits)
    limits["filter"] = _filter()
    _say({})
    for line in sys.stdin:
        _say(_call(json.loads(line), limits))


def _say(what: dict) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _die_with(parent: int) -> None:
    _do("prctl", _PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


# -- what a call sees


def _make_root(limits: dict) -> None:
    _do("mount", None, b"/", None, _REC | _PRIVATE, None)
    size = f"size={limits['memory_bytes']},mode=755"
    _do("mount", b"tmpfs", _NEW_ROOT.encode(), b"tmpfs", _NOSUID | _NODEV, size.encode())
    further = ["/etc/resolv.conf", "/etc/hosts"] if limits["network"] else []
    for path in (*_TREES, *limits["trees"], *further):
        if os.path.islink(path) and os.path.dirname(path) == "/":
            os.symlink(os.readlink(path), _NEW_ROOT + path)
        elif os.path.exists(path):
            _show(path)
    for path in _DEVICES:
        _show(path)
    for folder in ("/proc", "/tmp", "/dev/shm", "/old"):
        os.makedirs(_NEW_ROOT + folder, exist_ok=True)  # a virtual environment may lie in one
    _do("mount", b"proc", (_NEW_ROOT + "/proc").encode(), b"proc", _NOSUID | _NODEV, None)
    os.chdir(_NEW_ROOT)
    if _libc.syscall(_PIVOT_ROOT, b".", b"old") != 0:
        raise OSError(ctypes.get_errno(), "pivot_root")
    _do("umount2", b"/old", _DETACH)
    os.rmdir("/old")
    os.symlink("/proc/self/fd", "/dev/fd")
    os.chdir("/tmp")


def _show(path: str) -> None:
    """The same path in the new root, with all below it, read-only."""
    inside = _NEW_ROOT + path
    if os.path.lexists(inside):
        return  # below one that is shown
    os.makedirs(os.path.dirname(inside), exist_ok=True)
    if os.path.isdir(path):
        os.mkdir(inside)
    else:
        os.close(os.open(inside, os.O_CREAT | os.O_WRONLY))
    _do("mount", path.encode(), inside.encode(), None, _BIND | _REC, None)
    if stat.S_ISCHR(os.stat(path).st_mode):
        return
    # struct mount_attr: set read-only and no set-uid, clear nothing; for all mounts below (AT_RECURSIVE).
    attributes = (ctypes.c_uint64 * 4)(1 | 2, 0, 0, 0)
    if _libc.syscall(_MOUNT_SETATTR, -100, inside.encode(), 0x8000, attributes, 32) != 0:
        raise OSError(ctypes.get_errno(), f"mount_setattr: {path}")


# -- one call


def _call(call: dict, limits: dict) -> dict:
    """Runs `argv` until it ends, or one of its limits does it; then nothing of it is left but its files."""
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/tmp", "TMPDIR": "/tmp"}
    environment |= {"LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    given = os.memfd_create("input")
    os.write(given, call["stdin"].encode("utf-8", "replace"))
    os.lseek(given, 0, os.SEEK_SET)
    try:
        process = subprocess.Popen(
            call["argv"],
            stdin=given,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: _limit(limits),
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return {"output": "", "status": None, "ended": f"it cannot be started: {error}"}
    finally:
        os.close(given)
    output = bytearray()
    ended = _follow(process, call, limits, output)
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)  # all but init
    status = process.wait()
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, 0):
            pass
    process.stdout.close()
    text = bytes(output[: call["most_bytes"]]).decode("utf-8", "replace")
    return {"output": text, "status": None if ended else status, "ended": ended}


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def _filter() -> _Program:
    """System calls that lead around namespaces, or to what few programs need and many faults of kernels were in, fail
    as if forbidden: keys, sockets of the virtual machine (vsock), further namespaces, BPF, io_uring."""
    arch, socket, clone, refused = _NUMBERS[os.uname().machine]
    load, equal, at_least, any_of = 0x20, 0x15, 0x35, 0x45
    allow, forbid, unknown = (0x06, 0, 0, 0x7FFF0000), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x50026)
    namespaces = sum(NAMESPACES.values()) | 0x4000000 | 0x2000000 | 0x80  # UTS, cgroup, time
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), forbid, (load, 0, 0, 0), (at_least, 0, 1, 0x40000000), forbid]
    for number in refused:
        code += [(equal, 0, 1, number), forbid]
    code += [(equal, 0, 1, _CLONE3), unknown]  # its flags are in memory; libraries fall back to clone
    code += [(equal, 0, 4, socket), (load, 0, 0, 16), (equal, 0, 1, _AF_VSOCK), forbid, allow]
    code += [(equal, 0, 4, clone), (load, 0, 0, 16), (any_of, 0, 1, namespaces), forbid, allow, allow]
    return _Program(len(code), b"".join(struct.pack("HBBI", *instruction) for instruction in code))


def _limit(limits: dict) -> None:
    for kind, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["memory_bytes"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 256),
    ):
        _, hard = resource.getrlimit(kind)
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (most, most))
    _do("prctl", _NO_NEW_PRIVS, 1, 0, 0, 0)
    _do("prctl", _SECCOMP, _FILTER, ctypes.byref(limits["filter"]), 0, 0)


def _follow(process: subprocess.Popen, call: dict, limits: dict, output: bytearray) -> str:
    """Reads what it prints until it has ended; returns which limit ended it, if one did. What it has left in the
    background is not waited for."""
    reads, until = process.stdout.fileno(), time.monotonic() + call["call_s"]
    os.set_blocking(reads, False)
    poll = select.poll()
    poll.register(reads, select.POLLIN)
    looked, is_open = time.monotonic(), True
    while True:
        has_ended, some = process.poll() is not None, b""
        with contextlib.suppress(BlockingIOError):
            is_open = bool(some := os.read(reads, 2**16))
        output += some
        if len(output) > call["most_bytes"]:
            return f"it printed more than {call['most_bytes']} bytes"
        if has_ended and not some:
            return ""
        now = time.monotonic()
        if now > until:
            return f"it took more than {call['call_s']:g} s"
        if now - looked > _LOOK_S:
            looked = now
            if why := _over(limits):
                return why
        if is_open and not some:
            poll.poll(_LOOK_S * 1000)
        elif not is_open:
            time.sleep(_LOOK_S)


def _over(limits: dict) -> str:
    """Which limit all processes of the call have passed together."""
    pids = [name for name in os.listdir("/proc") if name.isdigit() and name != "1"]
    if len(pids) > limits["processes"]:
        return f"it started more than {limits['processes']} processes"
    held = sum(_held(f"/proc/{pid}/statm") for pid in pids)
    if held > limits["memory_bytes"]:
        return f"it held more than {limits['memory_bytes'] / 2**30:g} GiB of memory"
    return ""


def _held(statm: str) -> int:
    with contextlib.suppress(OSError, IndexError), open(statm) as file:
        return int(file.read().split()[1]) * _PAGE
    return 0


if __name__ == "__main__":
    main()
