"""Kernels whose counters are known, for the emulator's profiler and for Nsight Compute: `launches(device)` gives them all.

Run as a script on a GPU (`ncu ... python kernels.py`) it launches each of them once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from labkernels.cuda import Kernel

SOURCE = r"""
extern "C" __global__ void lk_copy(const float* x, float* y, int n, int stride) {
    int i = (blockIdx.x * blockDim.x + threadIdx.x) * stride;
    if (i < n) y[i] = x[i];
}
extern "C" __global__ void lk_copy_vector(const float4* x, float4* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = x[i];
}
extern "C" __global__ void lk_transpose_naive(const float* x, float* y, int n) {
    int row = blockIdx.y * 32 + threadIdx.y, col = blockIdx.x * 32 + threadIdx.x;
    for (int j = 0; j < 32; j += 8) y[col * n + row + j] = x[(row + j) * n + col];
}
template <int PAD> __device__ void transpose(const float* x, float* y, int n) {
    __shared__ float tile[32][32 + PAD];
    int row = blockIdx.y * 32, col = blockIdx.x * 32;
    for (int j = threadIdx.y; j < 32; j += 8) tile[j][threadIdx.x] = x[(row + j) * n + col + threadIdx.x];
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += 8) y[(col + j) * n + row + threadIdx.x] = tile[threadIdx.x][j];
}
extern "C" __global__ void lk_transpose_tile(const float* x, float* y, int n) { transpose<0>(x, y, n); }
extern "C" __global__ void lk_transpose_padded(const float* x, float* y, int n) { transpose<1>(x, y, n); }
extern "C" __global__ void lk_transpose_swizzled(const float* x, float* y, int n) {
    __shared__ float tile[32][32];
    int row = blockIdx.y * 32, col = blockIdx.x * 32;
    for (int j = threadIdx.y; j < 32; j += 8) tile[j][threadIdx.x ^ j] = x[(row + j) * n + col + threadIdx.x];
    __syncthreads();
    for (int j = threadIdx.y; j < 32; j += 8) y[(col + j) * n + row + threadIdx.x] = tile[threadIdx.x][j ^ threadIdx.x];
}
extern "C" __global__ void lk_matmul_tiled(const float* a, const float* b, float* c, int n) {
    __shared__ float as[16][16], bs[16][16];
    int row = blockIdx.y * 16 + threadIdx.y, col = blockIdx.x * 16 + threadIdx.x;
    float sum = 0.f;
    for (int t = 0; t < n; t += 16) {
        as[threadIdx.y][threadIdx.x] = a[row * n + t + threadIdx.x];
        bs[threadIdx.y][threadIdx.x] = b[(t + threadIdx.y) * n + col];
        __syncthreads();
        // Volatile, so that no compiler joins two of these reads into one.
        for (int k = 0; k < 16; ++k)
            sum += *(volatile float*)&as[threadIdx.y][k] * *(volatile float*)&bs[k][threadIdx.x];
        __syncthreads();
    }
    c[row * n + col] = sum;
}
extern "C" __global__ void lk_sum_tree(const float* x, float* y, int n) {
    __shared__ float part[256];
    int i = blockIdx.x * 256 + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.f;
    for (int step = 128; step > 0; step /= 2) {
        __syncthreads();
        if (threadIdx.x < step) part[threadIdx.x] += part[threadIdx.x + step];
    }
    if (threadIdx.x == 0) y[blockIdx.x] = part[0];
}
extern "C" __global__ void lk_sum_tree_interleaved(const float* x, float* y, int n) {
    __shared__ float part[256];
    int i = blockIdx.x * 256 + threadIdx.x;
    part[threadIdx.x] = i < n ? x[i] : 0.f;
    for (int step = 1; step < 256; step *= 2) {
        __syncthreads();
        int k = 2 * step * threadIdx.x;
        if (k < 256) part[k] += part[k + step];
    }
    if (threadIdx.x == 0) y[blockIdx.x] = part[0];
}
extern "C" __global__ void lk_shared_vector(const float4* x, float4* y) {
    __shared__ float4 tile[256];
    tile[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 256 + threadIdx.x] = tile[(threadIdx.x * 2 + threadIdx.x / 128) % 256];
}
extern "C" __global__ void lk_shared_pairs(const float2* x, float2* y) {
    __shared__ float2 tile[256];
    tile[threadIdx.x] = x[blockIdx.x * 256 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 256 + threadIdx.x] = tile[(threadIdx.x * 3) % 256];
}
extern "C" __global__ void lk_gather(const float* x, const int* index, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n && index[i] % 3) y[i] = x[index[i]];
}
extern "C" __global__ void lk_diverge(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0.f;
    for (int k = 0; k <= i % 4; ++k) sum += x[(i + 37 * k) % n];
    y[i] = sum;
}
"""


class Launch(NamedTuple):
    name: str
    kernel: Kernel
    grid: tuple[int, ...]
    block: tuple[int, ...]
    args: tuple


def launches(device: str) -> list[Launch]:
    """Every kernel with its arguments on `device`, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    n = 1 << 14
    x = torch.randn(n, generator=generator).to(device)
    y = torch.zeros(n, device=device)
    square, out = x.reshape(128, 128), y.reshape(128, 128)
    index = torch.randint(n, (n,), generator=generator, dtype=torch.int32).to(device)
    made = [Launch(f"lk_copy stride {s}", _kernel("lk_copy"), (n // s // 256,), (256,), (x, y, n, s)) for s in (1, 2, 8)]
    made.append(Launch("lk_copy_vector", _kernel("lk_copy_vector"), (n // 4 // 256,), (256,), (x, y, n // 4)))
    for kind in ("naive", "tile", "padded", "swizzled"):
        made.append(Launch(f"lk_transpose_{kind}", _kernel(f"lk_transpose_{kind}"), (4, 4), (32, 8), (square, out, 128)))
    made.append(Launch("lk_matmul_tiled", _kernel("lk_matmul_tiled"), (8, 8), (16, 16), (square, square, out, 128)))
    for name in ("lk_sum_tree", "lk_sum_tree_interleaved"):
        made.append(Launch(name, _kernel(name), (n // 256,), (256,), (x, y, n)))
    made.append(Launch("lk_shared_vector", _kernel("lk_shared_vector"), (n // 4 // 256,), (256,), (x, y)))
    made.append(Launch("lk_shared_pairs", _kernel("lk_shared_pairs"), (n // 2 // 256,), (256,), (x, y)))
    made.append(Launch("lk_gather", _kernel("lk_gather"), (n // 256,), (256,), (x, index, y, n)))
    made.append(Launch("lk_diverge", _kernel("lk_diverge"), (n // 256,), (256,), (x, y, n)))
    return made


def _kernel(name: str) -> Kernel:
    return Kernel(SOURCE, name, filename="kernels.cu")


if __name__ == "__main__":
    for launch in launches("cuda"):
        launch.kernel(launch.grid, launch.block, launch.args)
    torch.cuda.synchronize()
