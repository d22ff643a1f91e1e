"""What this GPU can do at best, measured: bytes copied, bytes read and matrices multiplied per second. Limits are made of these."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.lab.timing import time_calls
from labkernels.operation import Op, dtype_name

COPY_BYTES = 1 << 30
PRODUCTS = ((4096, 4096, 4096), (8192, 8192, 8192), (8192, 28672, 4096))  # m, n, k: a long product may be slower than a short one, by the power limit
READ_FILE, READ_BLOCK = Path(__file__).parent / "read_ceiling.cu", 256 * 8  # float4 that a block reads


@dataclass(frozen=True)
class Ceilings:
    """`copy_gb_per_s` counts bytes read plus bytes written; `tflops` is by dtype name, with `tf32` for float32 on tensor cores, and with
    `float8_e4m3fn` and `int8` where PyTorch multiplies such matrices on this GPU.

    `read_gb_per_s` is that of reading alone; None where it was not measured: the copy's then stands for it.
    """

    copy_gb_per_s: float
    tflops: Mapping[str, float]
    read_gb_per_s: float | None = None

    def memory_ms(self, op: Op, dtype: torch.dtype, shape: dict) -> float:
        """The time that the operation's bytes alone would take, in milliseconds."""
        read_only = op.memory_ceiling == "read" and self.read_gb_per_s is not None
        return op.bytes_moved(dtype, **shape) / (self.read_gb_per_s if read_only else self.copy_gb_per_s) / 1e6

    def limit_ms(self, op: Op, dtype: torch.dtype, shape: dict) -> float:
        """The time that the operation's bytes or its FLOPs alone would take, whichever is longer, in milliseconds; nan where nobody has measured how
        fast such FLOPs can be."""
        flops, tflops = op.flops(**shape), self.tflops.get(self.kind(op, dtype), math.nan)
        return max(flops / tflops / 1e9 if flops else 0.0, self.memory_ms(op, dtype, shape))  # max(nan, x) is nan

    @staticmethod
    def kind(op: Op, dtype: torch.dtype) -> str:
        """Which of `tflops` limits the operation."""
        return op.compute_ceiling or dtype_name(dtype)

    def memory_bound(self, op: Op, dtype: torch.dtype, shape: dict) -> bool:
        """Do the bytes alone take longer than the FLOPs alone?"""
        return not self.memory_ms(op, dtype, shape) < self.limit_ms(op, dtype, shape)


@cache
def measure_ceilings() -> Ceilings:
    """Measure this process's GPU, once: a copy of 1 GiB, reading as much, and PyTorch's products of random matrices, the fastest of several sizes."""
    source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    target = source.clone()
    copy = time_calls(lambda pair: pair[1].copy_(pair[0]), [(source, target)])
    read = time_calls(read_all, [source, target])  # in turn, so that no part of one is still in L2 when it is read again
    del source, target
    tflops = {dtype_name(dtype): _fastest(torch.matmul, _normal(dtype)) for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        tflops["tf32"] = _fastest(torch.matmul, _normal(torch.float32))
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    for dtype, product in ((torch.float8_e4m3fn, _scaled), (torch.int8, torch._int_mm)):
        try:
            tflops[dtype_name(dtype)] = _fastest(product, _bytes(dtype))
        except RuntimeError:  # PyTorch has no such product for this GPU
            continue
    torch.cuda.empty_cache()
    return Ceilings(2 * COPY_BYTES / copy.ms / 1e6, tflops, read_gb_per_s=COPY_BYTES / read.ms / 1e6)


def read_all(x: torch.Tensor) -> None:
    """Read x, float32 and a multiple of 4 long, as fast as the GPU can."""
    count = x.numel() // 4
    kernel(READ_FILE, "read_all")(ceil_div(count, READ_BLOCK), 256, (x, x, count))


def _fastest(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], make: Callable[..., torch.Tensor]) -> float:
    """TFLOP/s of a product at the best of the sizes, of random matrices that `make(rows, cols)` makes, the right one dense along its columns."""
    rates = []
    for m, n, k in PRODUCTS:
        a, b = make(m, k), make(n, k).t()
        rates.append(2 * m * n * k / time_calls(lambda pair: product(*pair), [(a, b)]).ms / 1e9)
    return max(rates)


def _normal(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    return lambda rows, cols: torch.randn(rows, cols, device="cuda", dtype=dtype)


def _bytes(dtype: torch.dtype) -> Callable[..., torch.Tensor]:
    return lambda rows, cols: torch.randn(rows, cols, device="cuda").mul_(32).clamp_(-127, 127).to(dtype)


def _scaled(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    one = torch.ones((), device=a.device)
    return torch._scaled_mm(a, b, one, one, out_dtype=torch.bfloat16, use_fast_accum=True)
