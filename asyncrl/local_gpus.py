"""The GPUs of this machine, counted without Ray and CUDA."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits")
_DEADLINE_S = 20.0
_DRIVERS = ("/proc/driver/nvidia/version", "/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Signs of GPUs that nvidia-smi, where it is missing, cannot list: NVIDIA's, those of WSL, and AMD's."""


class LocalGpu(NamedTuple):
    name: str
    """As nvidia-smi calls it."""
    memory_gib: float


def listed() -> list[LocalGpu] | None:
    """Those that nvidia-smi lists and CUDA_VISIBLE_DEVICES leaves; None: they cannot be counted."""
    if not shutil.which(_QUERY[0]):
        return None if any(Path(sign).exists() for sign in _DRIVERS) else []
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_DEADLINE_S, check=True)
    except (subprocess.SubprocessError, OSError):
        return None
    found = [line.rpartition(",") for line in done.stdout.strip().splitlines()]
    if not all(re.fullmatch(r"\s*\d+", mib) for _, _, mib in found):
        return None
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        found = found[: len([one for one in visible.split(",") if one.strip() not in ("", "-1", "NoDevFiles")])]
    return [LocalGpu(name.strip().removeprefix("NVIDIA "), int(mib) / 1024) for name, _, mib in found]
