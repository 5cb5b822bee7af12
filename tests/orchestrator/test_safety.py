"""A run in an environment as a user has it: who can reach its ports, and where its secrets go."""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import psutil
import pytest
from command import fresh
from test_run import kill_group, records, wait_for
from torch.distributed import TCPStore

from asyncrl.cluster import ray_token
from asyncrl.errors import UserError

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
    "HF_TOKEN": "hf_averysecrettokenthatnobodysees",
    "AWS_SECRET_ACCESS_KEY": "secretkeyofthestoragethatnobodysees",
}


@pytest.mark.slow
def test_nobody_else_reaches_a_run_and_its_secrets_stay_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, run_dir = tmp_path / "home", tmp_path / "run"
    (home / ".ray").mkdir(parents=True, mode=0o755)  # as Ray makes it
    monkeypatch.setenv("HOME", str(home))
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    arguments = ["recipes/tiny.yaml", "max_steps=500", "track.wandb=offline", f"run_dir={run_dir}"]
    arguments += ["trainer.ranks=2", "weights.channel=gloo"]
    process = fresh("train", *arguments)
    try:
        wait_for(lambda: records(run_dir), process, "the first step")
        listening = addresses(process.pid)
        assert listening
        assert [where for where in listening if not is_loopback(where[0])] == []
        answer = said_to_a_stranger(process.pid, tmp_path / "other")
        assert "InvalidAuthToken" in answer
        assert "NodeID" not in answer
        assert told_to_strangers(process.pid) == []
        assert deface_stores(process.pid)
        folders = private_folders(process.pid)
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700]
        done = len(records(run_dir))
        wait_for(lambda: len(records(run_dir)) > done + 1, process, "two steps more")
        process.terminate()
        output, _ = process.communicate(timeout=120)
    finally:
        kill_group(process)
    assert process.returncode == 0, output
    assert not any(folder.exists() for folder in folders)
    token = home / ".ray/auth_token"
    assert token.stat().st_mode & 0o077 == 0
    assert [path for path in (run_dir, *run_dir.rglob("*")) if path.stat().st_mode & 0o077] == []
    written = b"".join(path.read_bytes() for path in run_dir.rglob("*") if path.is_file()) + output.encode()
    for secret in (*SECRETS.values(), token.read_text().strip()):
        assert secret.encode() not in written
    assert b"reward/mean" in written


def test_a_token_that_ray_left_readable_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    token = tmp_path / ".ray/auth_token"
    monkeypatch.setattr(ray_token, "TOKEN_FILE", token)
    ray_token.keep_private()
    assert token.parent.stat().st_mode & 0o077 == 0
    token.write_text("0" * 64)
    token.chmod(0o644)
    ray_token.keep_private()
    assert token.stat().st_mode & 0o077 == 0


def test_a_home_that_takes_no_token_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    (tmp_path / "home").touch()
    monkeypatch.setattr(ray_token, "TOKEN_FILE", tmp_path / "home/.ray/auth_token")
    with pytest.raises(UserError, match="set RAY_AUTH_TOKEN, or HOME to a folder of yours"):
        ray_token.keep_private()


def is_loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def addresses(pid: int) -> set[tuple[str, int]]:
    """Where a process and all below it listen."""
    found = set()
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.add((connection.laddr.ip, connection.laddr.port))
        except psutil.NoSuchProcess:
            continue
    return found


def ask(port: int, said: bytes) -> bytes:
    """What is answered until nothing has come for a second."""
    answer = b""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 5) as connection:
        connection.settimeout(1)
        connection.sendall(said)
        while more := connection.recv(2**16):
            answer += more
    return answer


def told_to_strangers(pid: int) -> list[tuple[int, bytes]]:
    """Ports that answer more than that they do not, and what they said. Prometheus' format has no token."""
    words = [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /api/jobs/ HTTP/1.1\r\nHost: x\r\n\r\n",
        os.urandom(64),
        b"\0" * 64,
    ]

    asked = [(port, said) for _, port in addresses(pid) for said in words]
    with ThreadPoolExecutor(16) as executor:
        answers = executor.map(lambda question: ask(*question), asked)
        told = [(port, answer) for (port, _), answer in zip(asked, answers, strict=True)]
    told = [(port, answer) for port, answer in told if b"# HELP" not in answer]
    return [(port, answer) for port, answer in told if len(answer) > 1000 or b" 200 " in answer]


def deface_stores(pid: int) -> int:
    """Write to every torch store of the run what it does not expect; returns how many keys that were."""
    ping, nonce, changed = struct.pack("<BIB", 0, 0x3C85F7CE, 13), os.urandom(4), 0  # of torch's TCPStore
    for port in {port for _, port in addresses(pid) if ask(port, ping + nonce) == nonce}:
        store = TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=10))
        for key in store.list_keys():
            assert len(store.get(key)) < 1000  # no weights
            store.set(key, "forged")
            changed += 1
    return changed


def private_folders(pid: int) -> set[Path]:
    """Where the run has its sockets; wandb's are wandb's."""
    found = set()
    for process in psutil.Process(pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found |= {Path(c.laddr) for c in process.net_connections("unix") if str(c.laddr).startswith("/")}
    return {Path(*path.parts[:3]) for path in found if "wandb" not in str(path)}


def said_to_a_stranger(driver: int, home: Path) -> str:
    """By Ray's head, to another user's client; the client would go on to ask for a minute."""
    (head,) = [p for p in psutil.Process(driver).children(recursive=True) if p.name() == "gcs_server"]
    script = (
        "import sys; from ray._raylet import GcsClient\n"
        "for port in sys.argv[1:]: print(GcsClient(address=f'127.0.0.1:{port}').get_all_node_info())"
    )
    home.mkdir()
    environment = {**os.environ, "HOME": str(home), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    ports = sorted(str(port) for _, port in addresses(head.pid))
    command = ["timeout", "15", sys.executable, "-c", script, *ports]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    return done.stdout + done.stderr
