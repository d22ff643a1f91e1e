"""What this GPU can do at best, measured: bytes copied, bytes read and matrices multiplied per second. Limits are made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from labkernels.cuda.variants import ceil_div, kernel
from labkernels.lab.timing import time_calls
from labkernels.operation import Op, dtype_name

COPY_BYTES = 1 << 30
MATMUL_SIZE = 8192
READ_FILE, READ_BLOCK = Path(__file__).parent / "read_ceiling.cu", 256 * 8  # float4 that a block reads


@dataclass(frozen=True)
class Ceilings:
    """`copy_gb_per_s` counts bytes read plus bytes written; `tflops` is by dtype name, with `tf32` for float32 on tensor cores, and with
    `float8_e4m3fn` where PyTorch multiplies such matrices on this GPU.

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
        """The time that the operation's bytes or its FLOPs alone would take, whichever is longer, in milliseconds."""
        tflops = self.tflops.get(op.compute_ceiling) or self.tflops[dtype_name(dtype)]  # not measured: that of the result's dtype stands for it
        compute_ms = op.flops(**shape) / tflops / 1e9
        return max(self.memory_ms(op, dtype, shape), compute_ms)

    def memory_bound(self, op: Op, dtype: torch.dtype, shape: dict) -> bool:
        """Do the bytes alone take longer than the FLOPs alone?"""
        return self.memory_ms(op, dtype, shape) >= self.limit_ms(op, dtype, shape)


@cache
def measure_ceilings() -> Ceilings:
    """Measure this process's GPU, once: a copy of 1 GiB, reading as much, and products of random 8192 x 8192 matrices, of 8-bit floats too."""
    source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    target = source.clone()
    copy = time_calls(lambda pair: pair[1].copy_(pair[0]), [(source, target)])
    read = time_calls(read_all, [source, target])  # in turn, so that no part of one is still in L2 when it is read again
    del source, target
    tflops = {name: _matmul_tflops(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16))}
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        tflops["tf32"] = _matmul_tflops(torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    if fp8 := _fp8_tflops():
        tflops["float8_e4m3fn"] = fp8
    torch.cuda.empty_cache()
    return Ceilings(2 * COPY_BYTES / copy.ms / 1e6, tflops, read_gb_per_s=COPY_BYTES / read.ms / 1e6)


def read_all(x: torch.Tensor) -> None:
    """Read x, float32 and a multiple of 4 long, as fast as the GPU can."""
    count = x.numel() // 4
    kernel(READ_FILE, "read_all")(ceil_div(count, READ_BLOCK), 256, (x, x, count))


def _matmul_tflops(dtype: torch.dtype) -> float:
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / time_calls(lambda pair: pair[0] @ pair[1], [(a, b)]).ms / 1e9


def _fp8_tflops() -> float | None:
    """Of products of 8-bit floats, the right matrix dense along its columns; None where PyTorch has none for this GPU."""
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda").mul(32).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device="cuda")
    try:
        timing = time_calls(lambda pair: torch._scaled_mm(*pair, one, one, out_dtype=torch.bfloat16, use_fast_accum=True), [(a, b.t())])
    except RuntimeError:
        return None
    return 2 * MATMUL_SIZE**3 / timing.ms / 1e9
