"""Atomic functions: nothing is lost when every thread of every block wants the same word, and each says what was there before."""

import math

import pytest
import torch

from labkernels.cuda import Kernel
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define ID (blockIdx.x * blockDim.x + threadIdx.x)

// Sums in every type, by all threads; seen[] counts how often each old value of the integer sum came back.
__global__ void sums(int* i, unsigned* u, unsigned long long* l, float* f, double* d, int* seen) {
    seen[atomicAdd(i, 1)]++;
    atomicAdd(u, 3u); atomicSub(u, 1u); atomicSub(i + 1, (int)ID);
    atomicAdd(l, 1ull << 33); atomicAdd_block(l + 1, 2ull); atomicAdd_system(l + 2, 5ull);
    atomicAdd(f, 1.0f); atomicAdd(d, 0.5); atomicAdd_system(f + 1, -2.0f);
}

// One thread after another finds what the one before left: arithmetic of a step is exact, so the result is too.
__global__ void halves(__half* h, __half2* h2, __nv_bfloat16* b, __nv_bfloat162* b2, float2* f2, float4* f4) {
    atomicAdd(h, __float2half(0.25f));
    atomicAdd(h2, __floats2half2_rn(1.0f, -0.5f));
    atomicAdd(b, __float2bfloat16(0.25f));
    atomicAdd(b2, __floats2bfloat162_rn(1.0f, -0.5f));
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
    atomicAdd(f2, make_float2(1.0f, 2.0f));
    atomicAdd(f4, make_float4(1.0f, 2.0f, 3.0f, 4.0f));
#endif
}

__global__ void extremes(const int* x, const long long* z, int* i, unsigned* u, long long* l, unsigned long long* v) {
    atomicMin(i, x[ID]); atomicMax(i + 1, x[ID]);
    atomicMin(u, (unsigned)x[ID]); atomicMax(u + 1, (unsigned)x[ID]);
    atomicMin(l, z[ID]); atomicMax(l + 1, z[ID]);
    atomicMin(v, (unsigned long long)z[ID]); atomicMax(v + 1, (unsigned long long)z[ID]);
    atomicAnd(i + 2, x[ID]); atomicOr(i + 3, x[ID]); atomicXor(i + 4, x[ID]);
    atomicAnd(u + 2, (unsigned)x[ID]); atomicOr(u + 3, (unsigned)x[ID]); atomicXor(u + 4, (unsigned)x[ID]);
    atomicAnd(v + 2, (unsigned long long)z[ID]); atomicOr(v + 3, (unsigned long long)z[ID]); atomicXor(v + 4, (unsigned long long)z[ID]);
}

__global__ void ring(unsigned* u, unsigned limit, unsigned* up, unsigned* down) {
    up[ID] = atomicInc(u, limit);
    down[ID] = atomicDec(u + 1, limit);
}

// A list built by exchange, a maximum of floats by compare-and-swap, a lock, and 16-bit and 64-bit swaps.
__global__ void swaps(int* head, int* next, float* largest, const float* x, int* lock, int* guarded, unsigned short* s, unsigned long long* w, float* last) {
    next[ID] = atomicExch(head, (int)ID);
    int* word = (int*)largest;
    int old = *word, assumed;
    do {
        assumed = old;
        old = atomicCAS(word, assumed, __float_as_int(fmaxf(x[ID], __int_as_float(assumed))));
    } while (old != assumed);
    bool done = false;
    while (!done) {
        if (atomicCAS(lock, 0, 1) == 0) {
            __threadfence();
            *(volatile int*)guarded = *(volatile int*)guarded + 1;
            __threadfence();
            atomicExch(lock, 0);
            done = true;
        }
    }
    unsigned short seen = *s, expected;
    do { expected = seen; seen = atomicCAS(s, expected, (unsigned short)(expected + 1)); } while (seen != expected);
    unsigned long long wide = *w, hoped;
    do { hoped = wide; wide = atomicCAS(w, hoped, hoped + (1ull << 40)); } while (wide != hoped);
    atomicExch(last, x[ID]);
}

// A histogram in shared memory, added to the global one by one thread a bin.
__global__ void histogram(const int* x, int* bins, int n) {
    __shared__ int mine[16];
    if (threadIdx.x < 16) mine[threadIdx.x] = 0;
    __syncthreads();
    for (int i = ID; i < n; i += gridDim.x * blockDim.x) atomicAdd(&mine[x[i]], 1);
    __syncthreads();
    if (threadIdx.x < 16) atomicAdd(&bins[threadIdx.x], mine[threadIdx.x]);
}
"""
GRID, BLOCK = 24, 96
THREADS = GRID * BLOCK


def launch(name: str, device: str, *arguments) -> None:
    one_kernel(SOURCE, name)(GRID, BLOCK, arguments)


def filled(device: str, dtype: torch.dtype, *values) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


def test_no_addition_is_lost(device):
    i, u = filled(device, torch.int32, 0, 0), filled(device, torch.int32, 7)
    wide = filled(device, torch.int64, 0, 0, 0)
    f, d = filled(device, torch.float32, 0.5, 0), filled(device, torch.float64, 0)
    seen = torch.zeros(THREADS, dtype=torch.int32, device=device)
    launch("sums", device, i, u, wide, f, d, seen)
    assert i.tolist() == [THREADS, -THREADS * (THREADS - 1) // 2] and u.item() == 7 + 2 * THREADS
    assert wide[0].item() == THREADS << 33 and wide[2].item() == 5 * THREADS
    if device == "cpu":                                                # _block is only promised within a block
        assert wide[1].item() == 2 * THREADS
    assert f.tolist() == [0.5 + THREADS, -2.0 * THREADS] and d.item() == THREADS / 2
    assert seen.tolist() == [1] * THREADS


def test_additions_to_halves_round_as_one_thread_would(device):
    """2304 quarters: half stops being able to add one at 512, bfloat16 at 64; pairs add each element."""
    h, b = filled(device, torch.float16, 0, 9), filled(device, torch.bfloat16, 0, 9)
    h2, b2 = filled(device, torch.float16, 0, 0), filled(device, torch.bfloat16, 0, 0)
    f2, f4 = filled(device, torch.float32, 0, 0), filled(device, torch.float32, 0, 0, 0, 0)
    launch("halves", device, h, h2, b, b2, f2, f4)
    assert h.tolist() == [512.0, 9.0] and b.tolist() == [64.0, 9.0]
    assert h2.tolist() == [2048.0, -1024.0] and b2.tolist() == [256.0, -128.0]
    if device == "cpu" or torch.cuda.get_device_capability() >= (9, 0):
        assert f2.tolist() == [THREADS, 2 * THREADS] and f4.tolist() == [THREADS * k for k in (1, 2, 3, 4)]


def test_extremes_and_bits(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.randint(-(2**31), 2**31, (THREADS,), generator=generator)
    z = torch.randint(-(2**63), 2**63 - 1, (THREADS,), generator=generator)
    x[5:] |= 0x1000                                                    # so that some bits survive the conjunction
    i = filled(device, torch.int32, 2**31 - 1, -(2**31), -1, 0, 0)
    u = filled(device, torch.int32, -1, 0, -1, 0, 0)
    wide, v = filled(device, torch.int64, 2**63 - 1, -(2**63)), filled(device, torch.int64, -1, 0, -1, 0, 0)
    launch("extremes", device, x.int().to(device), z.to(device), i, u, wide, v)
    for values, signed, unsigned, bits in ((x.tolist(), i.tolist(), u.tolist(), 32), (z.tolist(), wide.tolist(), v.tolist(), 64)):
        mask = 2**bits - 1
        words = [value & mask for value in values]
        both, either, odd = mask, 0, 0
        for word in words:
            both, either, odd = both & word, either | word, odd ^ word
        assert signed[:2] == [min(values), max(values)]
        assert [value & mask for value in unsigned] == [min(words), max(words), both, either, odd]
    assert [value % 2**32 for value in i.tolist()[2:]] == [value % 2**32 for value in u.tolist()[2:]]


@pytest.mark.parametrize("limit", [1, 6, THREADS + 10])
def test_inc_and_dec_go_round(limit, device):
    u = filled(device, torch.int32, 0, 0)
    up, down = (torch.full((THREADS,), -1, dtype=torch.int32, device=device) for _ in range(2))
    launch("ring", device, u, limit, up, down)
    cycle = limit + 1
    assert u.tolist() == [THREADS % cycle, -THREADS % cycle]
    assert sorted(up.tolist()) == sorted(k % cycle for k in range(THREADS))
    assert sorted(down.tolist()) == sorted(-k % cycle for k in range(THREADS))


def test_exchange_and_compare_and_swap(device):
    x = torch.randn(THREADS, generator=torch.Generator().manual_seed(2)).to(device)
    head, following = filled(device, torch.int32, -1), torch.full((THREADS,), -5, dtype=torch.int32, device=device)
    largest, last = filled(device, torch.float32, -math.inf), filled(device, torch.float32, math.nan)
    lock, guarded, small, wide = (filled(device, dtype, 0) for dtype in (torch.int32, torch.int32, torch.int16, torch.int64))
    launch("swaps", device, head, following, largest, x, lock, guarded, small, wide, last)
    chain, links = [head.item()], following.tolist()
    while links[chain[-1]] >= 0:
        chain.append(links[chain[-1]])
    assert sorted(chain) == list(range(THREADS))                       # everybody hangs in the list once
    assert largest.item() == x.max().item() and last.item() in set(x.tolist())
    assert guarded.item() == THREADS and lock.item() == 0
    assert small.item() == THREADS and wide.item() == THREADS << 40


def test_histogram_in_shared_memory(device):
    x = torch.randint(0, 16, (50_001,), generator=torch.Generator().manual_seed(3)) ** 2 // 15
    bins = torch.zeros(16, dtype=torch.int32, device=device)
    launch("histogram", device, x.int().to(device), bins, len(x))
    assert bins.tolist() == torch.bincount(x, minlength=16).tolist()


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "sums").resources(arch="sm_90").registers > 0
