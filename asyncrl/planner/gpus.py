"""GPUs as their makers describe them: dense bf16 speed without sparsity, and the memory that `nvidia-smi` shows.

Sources: NVIDIA's data sheets "A100 80GB" (2021), "H100 Tensor Core GPU" (2023, SXM), "H200 Tensor Core GPU" (2024),
"DGX B200" (2024, an eighth of it), "L40S" (2023), "L4" (2023) and the "Ada GPU architecture" paper (2022, RTX 4090;
bf16 with fp32 sums). Links: one direction of NVLink, or PCIe 4.0 x16 where there is none.
"""

from __future__ import annotations

from dataclasses import dataclass

from asyncrl.errors import UserError, nearest

GIB = 2**30
NETWORK_BYTES_PER_S = 50e9
"""Between nodes, for each GPU: one 400 Gbit/s adapter, as in NVIDIA's DGX H100. An assumption of every plan."""


@dataclass(frozen=True)
class Gpu:
    """Peak figures, which nothing reaches: `speed.py` says what part of them it reckons with."""

    name: str
    memory_bytes: int
    flops_per_s: float
    """Of bf16 matrix products."""
    memory_bytes_per_s: float
    link_bytes_per_s: float
    """To another GPU of the node."""

    @property
    def memory_gib(self) -> float:
        return self.memory_bytes / GIB


def _gpu(name: str, memory_mib: int, tflops: float, memory_gb_per_s: float, link_gb_per_s: float) -> Gpu:
    return Gpu(name, memory_mib * 2**20, tflops * 1e12, memory_gb_per_s * 1e9, link_gb_per_s * 1e9)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("A100-40GB", 40_960, 312, 1_555, 300),
        _gpu("A100-80GB", 81_920, 312, 2_039, 300),
        _gpu("H100", 81_559, 989, 3_350, 450),
        _gpu("H200", 143_771, 989, 4_800, 450),
        _gpu("B200", 183_359, 2_250, 8_000, 900),
        _gpu("L40S", 46_068, 362, 864, 32),
        _gpu("L4", 23_034, 121, 300, 32),
        _gpu("RTX4090", 24_564, 165, 1_008, 32),
    )
}
DEFAULT = "H100"


def find(name: str) -> Gpu:
    """Raises UserError if it is not in the table."""
    if name not in GPUS:
        raise UserError(f"--gpu {name} is not known; known are {', '.join(GPUS)}{nearest(name, GPUS)}")
    return GPUS[name]
