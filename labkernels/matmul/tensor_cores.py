"""How v6 of `matmul`, on tensor cores, is launched: its configurations, and which of them fits a problem.

a (m, k) by rows, b (k, n) by rows or by columns (the transpose of a linear layer's weight), both bfloat16 or both float16, any sizes and
distances between rows. The result is activation(a @ b + bias) + residual, (m, n), contiguous, summed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.matmul.launch import activation_number, launch
from labkernels.operation import Variant, dtype_name

FILE = Path(__file__).parent / "v6_tensor_cores.cu"


@dataclass(frozen=True)
class Config:
    """How v6 divides its work: what a block and a warp own of the result, and how much of k is on its way."""

    block_m: int
    block_n: int
    block_k: int  # columns of a stage
    warp_m: int
    warp_n: int
    stages: int  # one that is computed with, the others on their way
    blocks: int  # a multiprocessor, for which the compiler leaves enough registers
    cost: float  # the time that an element of the result takes, where all multiprocessors are busy, beside the best configuration's

    @property
    def threads(self) -> int:
        return self.block_m // self.warp_m * (self.block_n // self.warp_n) * 32

    @property
    def shared_mem(self) -> int:
        """Bytes a block: the stages, and after them, in their place, 16 rows of each warp's sums."""
        stages = 2 * self.stages * self.block_k * (self.block_m + self.block_n)
        return max(stages, self.threads // 32 * 16 * (self.warp_n + 8) * 4)

    def tiles(self, m: int, n: int) -> int:
        return ceil_div(m, self.block_m) * ceil_div(n, self.block_n)


CONFIGS = {  # by the block, m x n x k, and where it takes that to tell two apart, the stages or the warps
    "128x256x64_4": Config(128, 256, 64, 64, 64, 4, 1, 1.0),
    "128x256x64": Config(128, 256, 64, 64, 64, 3, 1, 1.0),
    "128x256x32": Config(128, 256, 32, 64, 64, 4, 1, 1.02),
    "256x128x64_4": Config(256, 128, 64, 64, 64, 4, 1, 0.98),
    "256x128x64": Config(256, 128, 64, 64, 64, 3, 1, 1.0),
    "256x128x32": Config(256, 128, 32, 64, 64, 4, 1, 1.02),
    "128x128x64": Config(128, 128, 64, 64, 64, 3, 2, 1.02),
    "128x128x64_8": Config(128, 128, 64, 64, 32, 3, 1, 1.1),
    "128x128x32": Config(128, 128, 32, 64, 64, 4, 2, 1.05),
    "128x128x32_5": Config(128, 128, 32, 64, 64, 5, 2, 1.05),
    "64x256x32": Config(64, 256, 32, 64, 64, 4, 2, 1.1),
    "64x128x64": Config(64, 128, 64, 32, 64, 3, 2, 1.25),
    "128x64x64": Config(128, 64, 64, 64, 32, 3, 2, 1.25),
    "64x64x64": Config(64, 64, 64, 32, 32, 4, 3, 1.6),
    "32x64x128": Config(32, 64, 128, 16, 32, 3, 2, 2.5),
    "16x64x128": Config(16, 64, 128, 16, 16, 4, 2, 4.0),
}


def v6_tensor_cores(a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    (m, k), n = a.shape, b.shape[1]
    return configured(best_config(m, n, k, a.device), a, b, bias, activation, residual)


def configured(config: str, a, b, bias=None, activation=None, residual=None) -> torch.Tensor:
    """v6 as CONFIGS[config]."""
    c, (m, n) = CONFIGS[config], (a.shape[0], b.shape[1])
    by_rows = b.stride(1) == 1 if n > 1 else b.stride(0) != 1
    width = copy_width(a, b if by_rows else b.t())
    sizes = (c.block_m, c.block_n, c.block_k, c.warp_m, c.warp_n, c.stages, c.blocks)
    matmul = kernel(FILE, "matmul_tensor_cores", a.dtype, *sizes, str(by_rows).lower(), width, activation_number(activation))
    return launch(matmul, c.tiles(m, n), c.threads, a, b, (b.stride(0 if by_rows else 1),), bias, residual, c.shared_mem)


def copy_width(*matrices) -> int:
    """How many elements of their rows can be copied at a time: 8, 4, 2 or 1. They are of 16 bits, with rows that are contiguous."""
    width = 8
    for matrix in matrices:
        row = matrix.stride(0) if matrix.shape[0] > 1 else 0
        while width > 1 and (row % width or matrix.shape[1] % width or matrix.data_ptr() % (2 * width)):
            width //= 2
    return width


def best_config(m: int, n: int, k: int, device: torch.device | str = "cpu") -> str:
    """The name of the configuration that should take least time: each multiprocessor computes its share of the tiles, whole ones."""
    processors, shared_memory = _multiprocessor(torch.device(device))

    def time(name: str) -> float:
        c = CONFIGS[name]
        blocks = min(c.blocks, shared_memory // (c.shared_mem + 1024))
        share = ceil_div(c.tiles(m, n), processors) * c.block_m * c.block_n * c.cost
        return share * c.blocks / blocks if blocks else math.inf

    return min(CONFIGS, key=time)


def _multiprocessor(device: torch.device) -> tuple[int, int]:
    """How many the GPU has, and the bytes of shared memory of one."""
    if device.type != "cuda":
        return 132, 228 * 1024  # the emulator plays an H200
    gpu = torch.cuda.get_device_properties(device)
    return gpu.multi_processor_count, gpu.shared_memory_per_multiprocessor


def _accepts(a, b, bias=None, activation=None, residual=None) -> str | None:
    if a.dtype not in (torch.bfloat16, torch.float16):
        return f"takes bfloat16 and float16, not {dtype_name(a.dtype)}"
    if a.is_cuda and torch.cuda.get_device_capability(a.device) < (8, 0):
        return "needs a GPU of compute capability 8.0 or higher"
    return None


V6 = Variant("v6_tensor_cores", v6_tensor_cores, "mma.sync, ldmatrix and cp.async: tensor cores fed from shared memory", FILE, _accepts)
