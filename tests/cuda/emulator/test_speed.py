"""How fast emulated kernels run: the tiled matrix product of every CUDA course, on one core, beside Numba's simulator.

Times are processor time, which says what one core does also when others compete for it. Run with `-s` to see the table.
"""

import json
import os
import subprocess
import sys
import time

import pytest
import torch

from labkernels.cuda import Kernel, emulator

MATMUL = r"""
extern "C" __global__ void matmul(const float* a, const float* b, float* c, int n) {
    __shared__ float tile_a[16][16], tile_b[16][16];
    int tx = threadIdx.x, ty = threadIdx.y;
    int row = blockIdx.y * 16 + ty, col = blockIdx.x * 16 + tx;
    float sum = 0.0f;
    for (int k = 0; k < n; k += 16) {
        tile_a[ty][tx] = a[row * n + k + tx];
        tile_b[ty][tx] = b[(k + ty) * n + col];
        __syncthreads();
        for (int j = 0; j < 16; j++) sum += tile_a[ty][j] * tile_b[j][tx];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
"""

# The same algorithm for Numba's simulator. It knows shared arrays by the line that makes them, so each has its own.
NUMBA_MATMUL = r"""
import json, sys, time
import numpy
from numba import cuda, float32

@cuda.jit
def matmul(a, b, c, n):
    tile_a = cuda.shared.array((16, 16), float32)
    tile_b = cuda.shared.array((16, 16), float32)
    tx, ty = cuda.threadIdx.x, cuda.threadIdx.y
    row, col = cuda.blockIdx.y * 16 + ty, cuda.blockIdx.x * 16 + tx
    total = float32(0)
    for k in range(0, n, 16):
        tile_a[ty, tx] = a[row, k + tx]
        tile_b[ty, tx] = b[k + ty, col]
        cuda.syncthreads()
        for j in range(16):
            total += tile_a[ty, j] * tile_b[j, tx]
        cuda.syncthreads()
    c[row, col] = total

n = int(sys.argv[1])
random = numpy.random.default_rng(0)
a, b = (random.standard_normal((n, n), dtype=numpy.float32) for _ in range(2))
c = numpy.full_like(a, numpy.nan)
start = time.process_time()
matmul[(n // 16, n // 16), (16, 16)](a, b, c, n)
elapsed_s = time.process_time() - start
print(json.dumps({"elapsed_s": elapsed_s, "error": float(abs(c - a @ b).max())}))
"""


@pytest.fixture
def one_core():
    emulator.set_threads(1)
    yield
    emulator.set_threads(None)


def emulated_s(n: int) -> float:
    """Processor time of the best of five launches, in seconds; the result is checked."""
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randn((n, n), generator=generator) for _ in range(2))
    kernel = Kernel(MATMUL, "matmul")
    best = float("inf")
    for _ in range(6):                                          # the first one compiles
        c = torch.full((n, n), float("nan"))
        start = time.process_time()
        kernel((n // 16, n // 16), (16, 16), (a, b, c, n))
        best = min(best, time.process_time() - start)
        torch.testing.assert_close(c, a @ b, rtol=1e-4, atol=1e-4)
    return best


def simulated_s(n: int) -> float:
    """Processor time of one launch under Numba's simulator, in seconds."""
    environment = os.environ | {"NUMBA_ENABLE_CUDASIM": "1"}
    command = [sys.executable, "-c", NUMBA_MATMUL, str(n)]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    measured = json.loads(finished.stdout)
    assert measured["error"] < 1e-4
    return measured["elapsed_s"]


def test_tiled_matmul_on_one_core(one_core):
    """256 x 256 x 256 in 0.25 s, and 64 x 64 x 64 a hundred times faster than Numba's simulator."""
    large_s, small_s, numba_s = emulated_s(256), emulated_s(64), simulated_s(64)
    print("\n| tiled float32 matmul, 16 x 16 tiles | emulator, one core | Numba's simulator |")
    print("|---|---|---|")
    print(f"| 64 x 64 x 64 | {1e3 * small_s:.2f} ms | {1e3 * numba_s:.0f} ms ({numba_s / small_s:.0f} times longer) |")
    print(f"| 256 x 256 x 256 | {1e3 * large_s:.1f} ms | |")
    assert large_s <= 0.25
    assert numba_s >= 100 * small_s
