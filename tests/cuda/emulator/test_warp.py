"""Warp-wide intrinsics: what each lane gets, for every kind of shuffle, width, type and mask."""

import random

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.errors import LaunchError
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#include <cuda_fp16.h>
#include <cuda_bf16.h>
#define FULL 0xffffffffu

// y[kind][argument][lane] for arguments 0 to 39; one launch a width.
__global__ void shuffles(const int* x, int* y, int width) {
    int lane = threadIdx.x % 32;
    for (int a = 0; a < 40; a++) {
        y[(0 * 40 + a) * 32 + lane] = __shfl_sync(FULL, x[lane], a - 4, width);
        y[(1 * 40 + a) * 32 + lane] = __shfl_up_sync(FULL, x[lane], a, width);
        y[(2 * 40 + a) * 32 + lane] = __shfl_down_sync(FULL, x[lane], a, width);
        y[(3 * 40 + a) * 32 + lane] = __shfl_xor_sync(FULL, x[lane], a, width);
    }
}

// Each lane names a source of its own, in two warps.
__global__ void each_its_own(const int* x, const int* source, int* y) { y[threadIdx.x] = __shfl_sync(FULL, x[threadIdx.x], source[threadIdx.x]); }

// Every type takes its value through a shuffle; y[t] counts the lanes that got what the lane 5 to the right has.
__global__ void types(const double* x, int* y) {
    int lane = threadIdx.x, other = (lane + 5) % 32, t = 0;
#define CHECK(T, from) { T mine = from(x[lane]), its = from(x[other]); T got = __shfl_sync(FULL, mine, lane + 5); atomicAdd(&y[t++], got == its && got != from(0)); }
#define CAST(T) CHECK(T, (T))
    CAST(int) CAST(unsigned) CAST(long) CAST(unsigned long) CAST(long long) CAST(unsigned long long) CAST(float) CAST(double)
    CHECK(__half, __double2half) CHECK(__nv_bfloat16, __double2bfloat16)
#define PAIR(v) __floats2half2_rn(1.0f, (float)(v))
#define BF16_PAIR(v) __floats2bfloat162_rn((float)(v), 1.0f)
    { __half2 got = __shfl_sync(FULL, PAIR(x[lane]), lane + 5), its = PAIR(x[other]); atomicAdd(&y[t++], got.x == its.x && got.y == its.y); }
    { __nv_bfloat162 got = __shfl_sync(FULL, BF16_PAIR(x[lane]), lane + 5), its = BF16_PAIR(x[other]); atomicAdd(&y[t++], got.x == its.x && got.y == its.y); }
    unsigned char small = lane;
    atomicAdd(&y[t++], __shfl_down_sync(FULL, small, 1) == min(lane + 1, 31));
}

// The two halves of a warp go separate ways and shuffle among themselves.
__global__ void halves(const float* x, float* y) {
    int lane = threadIdx.x;
    float v = x[lane];
    if (lane < 16) {
        for (int d = 8; d; d /= 2) v += __shfl_xor_sync(0xffffu, v, d);
    } else {
        for (int d = 8; d; d /= 2) v = fmaxf(v, __shfl_xor_sync(0xffff0000u, v, d));
        __syncwarp(0xffff0000u);
    }
    y[lane] = v;
}

__global__ void votes(const int* x, unsigned* y) {
    int i = threadIdx.x, n = blockDim.x;
    y[0 * n + i] = __ballot_sync(FULL, x[i] > 0);
    y[1 * n + i] = __any_sync(FULL, x[i] > 0);
    y[2 * n + i] = __all_sync(FULL, x[i] > 0);
    y[3 * n + i] = __uni_sync(FULL, x[i] > 0);
    y[4 * n + i] = __match_any_sync(FULL, x[i]);
    int same;
    y[5 * n + i] = __match_all_sync(FULL, x[i], &same);
    y[6 * n + i] = same;
    y[7 * n + i] = __match_any_sync(FULL, (float)x[i] * 0.5f);
    y[8 * n + i] = __activemask();
}

__global__ void reductions(const int* x, int* y, unsigned mask) {
    int i = threadIdx.x, n = blockDim.x;
    if (!(mask >> (i % 32) & 1)) return;
    unsigned u = x[i];
    y[0 * n + i] = __reduce_add_sync(mask, x[i]);
    y[1 * n + i] = __reduce_min_sync(mask, x[i]);
    y[2 * n + i] = __reduce_max_sync(mask, x[i]);
    y[3 * n + i] = __reduce_add_sync(mask, u);
    y[4 * n + i] = __reduce_min_sync(mask, u);
    y[5 * n + i] = __reduce_max_sync(mask, u);
    y[6 * n + i] = __reduce_and_sync(mask, u);
    y[7 * n + i] = __reduce_or_sync(mask, u);
    y[8 * n + i] = __reduce_xor_sync(mask, u);
}

// The last lanes leave first, so the rest vote without them.
__global__ void leavers(unsigned* y, int stay) {
    int lane = threadIdx.x;
    if (lane >= stay) return;
    unsigned mask = stay == 32 ? FULL : (1u << stay) - 1;
    y[lane] = __ballot_sync(mask, lane % 3 == 0);
    y[32 + lane] = __activemask();
    y[64 + lane] = __all_sync(mask, 1);
}

__global__ void absent_lane(float* y) { if (threadIdx.x < 8) y[threadIdx.x] = __shfl_down_sync(0xffu, 1.0f + threadIdx.x, 4); }

__global__ void odd_width(int* y) { y[threadIdx.x] = __shfl_sync(FULL, (int)threadIdx.x, 0, 12); }
"""
FULL = 0xFFFFFFFF


def launch(name: str, device: str, block: int, *arguments) -> None:
    one_kernel(SOURCE, name)(1, block, tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments))


def source_lane(kind: int, lane: int, argument: int, width: int) -> int:
    """The lane that `lane` reads from, as the PTX manual defines shfl: five bits of argument, a segment, a clamp."""
    segment = 32 - width
    argument &= 31
    if kind == 0:
        return (argument & ~segment & 31) | (lane & segment)
    if kind == 1:
        wanted, inside = lane - argument, lane - argument >= (lane & segment)
    else:
        wanted = lane + argument if kind == 2 else lane ^ argument
        inside = wanted <= (lane & segment) | (31 & ~segment)
    return wanted if inside else lane


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16, 32])
def test_every_shuffle_at_every_distance(width, device):
    x = torch.randperm(1000, generator=torch.Generator().manual_seed(width))[:32].int()
    y = torch.full((4, 40, 32), -1, dtype=torch.int32, device=device)
    launch("shuffles", device, 32, x, y, width)
    y = y.cpu()
    for kind in range(4):
        for a in range(40):
            want = [x[source_lane(kind, lane, a - 4 if kind == 0 else a, width)].item() for lane in range(32)]
            assert y[kind, a].tolist() == want, f"kind {kind}, argument {a}"


def test_lanes_may_name_different_sources(device):
    generator = torch.Generator().manual_seed(1)
    x, source = torch.randint(0, 1000, (64,), generator=generator).int(), torch.randint(0, 32, (64,), generator=generator).int()
    y = torch.full((64,), -1, dtype=torch.int32, device=device)
    launch("each_its_own", device, 64, x, source, y)
    assert y.tolist() == [x[i // 32 * 32 + source[i]].item() for i in range(64)]


def test_every_type_goes_through_a_shuffle(device):
    counts = torch.zeros(13, dtype=torch.int32, device=device)
    launch("types", device, 32, torch.arange(1, 33, dtype=torch.float64), counts)
    assert counts.tolist() == [32] * 13


def test_halves_of_a_warp_shuffle_apart(device):
    x = torch.randn(32, generator=torch.Generator().manual_seed(2))
    y = torch.full((32,), float("nan"), device=device)
    launch("halves", device, 32, x, y)
    torch.testing.assert_close(y[:16].cpu(), x[:16].sum().expand(16))
    assert torch.equal(y[16:].cpu(), x[16:].max().expand(16))


@pytest.mark.parametrize("seed", range(4))
def test_votes_and_matches(seed, device):
    generator = random.Random(seed)
    high = [1, 3, 8, 0][seed]                                          # all the same, few values, many, none above zero
    x = [[generator.randint(1 if high == 1 else -high, high) for _ in range(32)] for _ in range(3)]
    y = torch.full((9, 96), 7, dtype=torch.int64, device=device).int()
    launch("votes", device, 96, torch.tensor(x).flatten().int(), y)
    y = (y.cpu().long() & FULL).view(9, 3, 32)
    for warp, values in enumerate(x):
        ballot = sum((v > 0) << i for i, v in enumerate(values))
        matches = [sum((v == mine) << i for i, v in enumerate(values)) for mine in values]
        all_same = len(set(values)) == 1
        want = [ballot, ballot != 0, ballot == FULL, ballot in (0, FULL), matches, FULL * all_same, all_same, matches, FULL]
        for row, expected in enumerate(want):
            assert y[row, warp].tolist() == (expected if isinstance(expected, list) else [int(expected)] * 32), f"row {row}"


@pytest.mark.parametrize("mask", [FULL, 0x0F0F1001, 0x80000000])
def test_reductions_over_the_lanes_of_the_mask(mask, device):
    generator = random.Random(mask)
    x = [generator.randint(-(2**31), 2**31 - 1) for _ in range(64)]
    y = torch.full((9, 64), 7, dtype=torch.int32, device=device)
    launch("reductions", device, 64, torch.tensor(x).int(), y, mask)
    y = y.cpu().long()
    for warp in range(2):
        lanes = [i for i in range(32) if mask >> i & 1]
        values = [x[warp * 32 + i] for i in lanes]
        unsigned = [v & FULL for v in values]
        both, either, odd = FULL, 0, 0
        for v in unsigned:
            both, either, odd = both & v, either | v, odd ^ v
        want = [sum(values), min(values), max(values), sum(unsigned), min(unsigned), max(unsigned), both, either, odd]
        for row, expected in enumerate(want):
            got = [y[row, warp * 32 + i].item() & FULL for i in lanes]
            assert got == [expected & FULL] * len(lanes), f"row {row}"


@pytest.mark.parametrize("stay", [1, 17, 32])
def test_votes_go_on_without_lanes_that_left(stay, device):
    y = torch.zeros(96, dtype=torch.int32, device=device)
    launch("leavers", device, 32, y, stay)
    alive = FULL if stay == 32 else (1 << stay) - 1
    y = [v & FULL for v in y.tolist()]
    assert y[:stay] == [sum(1 << i for i in range(0, stay, 3))] * stay
    assert y[32 : 32 + stay] == [alive] * stay and y[64 : 64 + stay] == [1] * stay


def test_a_lane_outside_the_mask_gives_a_conspicuous_value():
    y = torch.zeros(8)
    launch("absent_lane", "cpu", 32, y)
    assert y[:4].tolist() == [5, 6, 7, 8] and y[4:].isnan().all()


def test_a_width_that_no_gpu_has_ends_the_launch():
    with pytest.raises(LaunchError, match="width must be 1, 2, 4, 8, 16 or 32"):
        launch("odd_width", "cpu", 32, torch.zeros(32, dtype=torch.int32))


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "shuffles").resources(arch="sm_90").registers > 0
