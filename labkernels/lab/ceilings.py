"""What this GPU can do at best, measured: bytes copied and matrices multiplied per second. Limits are made of these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch

from labkernels.lab.timing import time_calls
from labkernels.operation import Op, dtype_name

COPY_BYTES = 1 << 30
MATMUL_SIZE = 8192


@dataclass(frozen=True)
class Ceilings:
    """`copy_gb_per_s` counts bytes read plus bytes written; `tflops` is by dtype name, with `tf32` for float32 on tensor cores."""

    copy_gb_per_s: float
    tflops: Mapping[str, float]

    def limit_ms(self, op: Op, dtype: torch.dtype, shape: dict) -> float:
        """The time that the operation's bytes or its FLOPs alone would take, whichever is longer, in milliseconds."""
        memory_ms = op.bytes_moved(dtype, **shape) / self.copy_gb_per_s / 1e6
        compute_ms = op.flops(**shape) / self.tflops[dtype_name(dtype)] / 1e9
        return max(memory_ms, compute_ms)

    def memory_bound(self, op: Op, dtype: torch.dtype, shape: dict) -> bool:
        """Do the bytes alone take longer than the FLOPs alone?"""
        return op.bytes_moved(dtype, **shape) / self.copy_gb_per_s / 1e6 >= self.limit_ms(op, dtype, shape)


@cache
def measure_ceilings() -> Ceilings:
    """Measure this process's GPU, once: a copy of 1 GiB, and products of random 8192 x 8192 matrices."""
    source = torch.empty(COPY_BYTES // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    copy = time_calls(lambda pair: pair[1].copy_(pair[0]), [(source, target)])
    del source, target
    tflops = {name: _matmul_tflops(dtype) for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16), ("float16", torch.float16))}
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = True
        tflops["tf32"] = _matmul_tflops(torch.float32)
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.cuda.empty_cache()
    return Ceilings(copy_gb_per_s=2 * COPY_BYTES / copy.ms / 1e6, tflops=tflops)


def _matmul_tflops(dtype: torch.dtype) -> float:
    a, b = (torch.randn(MATMUL_SIZE, MATMUL_SIZE, device="cuda", dtype=dtype) for _ in range(2))
    return 2 * MATMUL_SIZE**3 / time_calls(lambda pair: pair[0] @ pair[1], [(a, b)]).ms / 1e9
