"""`python -m asyncrl.cluster.wait N`: returns once the Ray cluster at RAY_ADDRESS has N nodes. Scripts of `asyncrl
submit --slurm` call it between starting Ray and the run. Exit code 1 past the deadline, with how many came."""

from __future__ import annotations

import sys
import time

from rich.console import Console

DEADLINE_S = 600.0
_AGAIN_S = 1.0


def wait(num_nodes: int, deadline_s: float) -> int:
    """Exit code. RAY_ADDRESS names the cluster; its head may itself not be there yet."""
    import ray

    ends = time.monotonic() + deadline_s
    there, reason = 0, "nothing answers there"
    while time.monotonic() < ends:
        try:
            if not ray.is_initialized():
                ray.init(address="auto", log_to_driver=False, logging_level="ERROR", configure_logging=False)
            there = sum(node["Alive"] for node in ray.nodes())
            reason = f"{there} came"
        except (ConnectionError, RuntimeError, ValueError):
            pass
        if there >= num_nodes:
            return 0
        time.sleep(_AGAIN_S)
    said = f"asyncrl: {num_nodes} Ray nodes were expected within {deadline_s:.0f} s: {reason}; see the log of each node"
    Console(stderr=True).print(said, markup=False, highlight=False, soft_wrap=True)
    return 1


if __name__ == "__main__":
    sys.exit(wait(int(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else DEADLINE_S))
