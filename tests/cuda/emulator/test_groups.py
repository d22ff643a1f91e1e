"""Cooperative groups: ranks, sizes, barriers and exchanges within blocks, tiles and coalesced groups."""

import random

import pytest
import torch

from labkernels.cuda import Kernel
from labkernels.errors import CompileError, LaunchError
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
namespace cg = cooperative_groups;
#define ROW(value) y[row++ * n + i] = (value);

// A block of (8, 4, 3) threads, its tiles of 32 and 8.
__global__ void ranks(int* y) {
    cg::thread_block block = cg::this_thread_block();
    cg::thread_block_tile<32> warp = cg::tiled_partition<32>(block);
    auto eight = cg::tiled_partition<8>(warp);
    auto four = cg::tiled_partition<4>(block);
    int n = block.size(), i = block.thread_rank(), row = 0;
    ROW(block.thread_index().z) ROW(block.group_index().x) ROW(block.dim_threads().y) ROW(block.num_threads())
    ROW(warp.thread_rank()) ROW(warp.size()) ROW(warp.meta_group_rank()) ROW(warp.meta_group_size())
    ROW(eight.thread_rank()) ROW(eight.size()) ROW(eight.meta_group_rank()) ROW(eight.meta_group_size())
    ROW(four.meta_group_rank()) ROW(four.meta_group_size())
    ROW((int)cg::this_grid().thread_rank()) ROW((int)cg::this_grid().size())
}

template <unsigned Size> __global__ void tiles(const int* x, int* y) {
    auto block = cg::this_thread_block();
    auto tile = cg::tiled_partition<Size>(block);
    int n = block.size(), i = block.thread_rank(), row = 0, same;
    float f = x[i];
    ROW(tile.shfl(x[i], Size - 1)) ROW(tile.shfl_up(x[i], 1)) ROW(tile.shfl_down(x[i], Size / 2)) ROW(tile.shfl_xor(x[i], 1))
    ROW(tile.any(x[i] > 2)) ROW(tile.all(x[i] > -2)) ROW((int)tile.ballot(x[i] > 0)) ROW((int)tile.match_any(x[i])) ROW((int)tile.match_all(x[i] / 9, same)) ROW(same)
    ROW(cg::reduce(tile, x[i], cg::plus<int>())) ROW((int)cg::reduce(tile, f, cg::greater<float>())) ROW(cg::reduce(tile, x[i], cg::less<int>()))
    ROW((int)cg::reduce(tile, (unsigned)x[i], cg::bit_xor<unsigned>()))
    ROW(cg::inclusive_scan(tile, x[i])) ROW(cg::exclusive_scan(tile, x[i])) ROW(cg::inclusive_scan(tile, x[i], cg::greater<int>()))
    tile.sync();
}

// Those that give the same label talk among themselves: first with one who has the label too, then as sorted by sign.
__global__ void labels(const int* x, int* y) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    int n = blockDim.x, i = threadIdx.x, row = 0;
    cg::coalesced_group same = cg::labeled_partition(warp, x[i]);
    ROW(same.size()) ROW(same.thread_rank()) ROW(same.shfl(i, 0)) ROW(cg::reduce(same, i, cg::plus<int>())) ROW(cg::inclusive_scan(same, i)) ROW(same.shfl_down(i, 1)) ROW(same.shfl_up(i, 1))
    ROW(same.all(i > 40)) ROW((int)same.ballot(i % 2)) ROW(same.any(i > 40))
    auto positive = cg::binary_partition(warp, x[i] > 0);
    ROW(positive.size()) ROW(positive.thread_rank())
    auto active = cg::coalesced_threads();
    ROW(active.size()) ROW(cg::reduce(active, x[i], cg::plus<int>()))
}

// The tree of the CUDA guide, written for any group.
__device__ int sum_of(const cg::thread_group& group, int* scratch, int value) {
    int lane = group.thread_rank();
    for (int i = group.size() / 2; i > 0; i /= 2) {
        scratch[lane] = value;
        group.sync();
        if (lane < i) value += scratch[lane + i];
        group.sync();
    }
    return value;
}
__global__ void generic(const int* x, int* y) {
    __shared__ int scratch[128];
    auto block = cg::this_thread_block();
    int i = block.thread_rank();
    int sum = sum_of(block, scratch, x[i]);
    if (i == 0) y[0] = sum;
    cg::sync(block);
    cg::thread_group tile = cg::tiled_partition(block, 16);
    sum = sum_of(tile, scratch + i / 16 * 16, x[i]);
    if (tile.thread_rank() == 0) y[1 + i / 16] = sum;
}

struct Best { float score; int index; double weight; };
__global__ void structs(const float* x, int* y) {
    auto warp = cg::tiled_partition<32>(cg::this_thread_block());
    Best best{x[threadIdx.x], (int)threadIdx.x, 0.5};
    for (int d = 16; d; d /= 2) {
        Best other = warp.shfl_xor(best, d);
        if (other.score > best.score) best = other;
    }
    y[threadIdx.x] = best.index + (best.weight != 0.5);
}

__global__ void grid_barrier(int* y) { cg::this_grid().sync(); y[0] = 1; }
"""


def launch(name: str, device: str, grid, block, *arguments) -> None:
    one_kernel(SOURCE, name)(grid, block, tuple(a.to(device) if isinstance(a, torch.Tensor) else a for a in arguments))


def table(rows: int, n: int, device: str) -> torch.Tensor:
    return torch.full((rows, n), -77, dtype=torch.int32, device=device)


def test_ranks_and_sizes(device):
    y = table(16, 96, device)
    launch("ranks", device, 1, (8, 4, 3), y)
    i = torch.arange(96)
    ones = torch.ones(96, dtype=torch.int64)
    want = [
        i // 32, 0 * ones, 4 * ones, 96 * ones, i % 32, 32 * ones, i // 32, 3 * ones,
        i % 8, 8 * ones, i % 32 // 8, 4 * ones, i // 4, 24 * ones, i, 96 * ones,
    ]
    for row, expected in enumerate(want):
        assert torch.equal(y[row].cpu().long(), expected), f"row {row}"


@pytest.mark.parametrize("size", [2, 8, 32])
def test_tiles(size, device):
    generator = random.Random(size)
    x = [generator.randint(-4, 4) for _ in range(64)]
    y = table(17, 64, device)
    launch(f"tiles<{size}>", device, 1, 64, torch.tensor(x).int(), y)
    got = y.cpu().long().T.tolist()
    for i in range(64):
        rank, first = i % size, i // size * size
        mine, values = x[i], x[first : first + size]
        xor = 0
        for v in values:
            xor ^= v
        thirds = [int(v / 9) for v in values]
        all_same = len(set(thirds)) == 1
        full = 2**size - 1
        want = [
            values[-1], values[max(rank - 1, 0)] if rank else mine, values[rank + size // 2] if rank + size // 2 < size else mine, values[rank ^ 1],
            any(v > 2 for v in values), all(v > -2 for v in values), sum((v > 0) << k for k, v in enumerate(values)), sum((v == mine) << k for k, v in enumerate(values)),
            full * all_same, all_same, sum(values), max(values), min(values), xor, sum(values[: rank + 1]), sum(values[:rank]), max(values[: rank + 1]),
        ]
        assert [v & 0xFFFFFFFF for v in got[i]] == [int(v) & 0xFFFFFFFF for v in want], f"thread {i}"


def test_groups_of_scattered_threads(device):
    generator = random.Random(5)
    x = [generator.randint(-2, 2) for _ in range(64)]
    y = table(14, 64, device)
    launch("labels", device, 1, 64, torch.tensor(x).int(), y)
    got = y.T.tolist()
    for i in range(64):
        warp = range(i // 32 * 32, i // 32 * 32 + 32)
        same = [k for k in warp if x[k] == x[i]]
        sign = [k for k in warp if (x[k] > 0) == (x[i] > 0)]
        rank = same.index(i)
        want = [
            len(same), rank, same[0], sum(same), sum(same[: rank + 1]), same[min(rank + 1, len(same) - 1)], same[max(rank - 1, 0)],
            all(k > 40 for k in same), sum((k % 2) << r for r, k in enumerate(same)), any(k > 40 for k in same),
            len(sign), sign.index(i), 32, sum(x[k] for k in warp),
        ]
        assert got[i] == [int(v) for v in want], f"thread {i}"


def test_a_function_for_any_group(device):
    x = torch.randint(-100, 100, (128,), generator=torch.Generator().manual_seed(6)).int()
    y = torch.full((9,), -1, dtype=torch.int32, device=device)
    launch("generic", device, 1, 128, x, y)
    assert y.tolist() == [x.sum().item(), *x.view(8, 16).sum(1).tolist()]


def test_a_struct_goes_through_a_tile(device):
    x = torch.randn(64, generator=torch.Generator().manual_seed(7))
    y = torch.full((64,), -1, dtype=torch.int32, device=device)
    launch("structs", device, 1, 64, x, y)
    assert y.tolist() == [x[:32].argmax().item()] * 32 + [32 + x[32:].argmax().item()] * 32


def test_a_grid_barrier_is_refused():
    with pytest.raises(LaunchError, match="grid_group::sync.*cooperative launch"):
        launch("grid_barrier", "cpu", 1, 32, torch.zeros(1, dtype=torch.int32))


def test_a_cluster_is_a_group(device):
    source = r"""
        #include <cooperative_groups.h>
        namespace cg = cooperative_groups;
        extern "C" __global__ void __cluster_dims__(1, 2, 2) ranks(int* y) {
            __shared__ int mine;
            cg::cluster_group cluster = cg::this_cluster();
            if (threadIdx.x == 0) mine = cluster.block_index().z * 10 + cluster.block_index().y;
            cluster.sync();
            const int seen = *cluster.map_shared_rank(&mine, threadIdx.x % cluster.num_blocks());
            const int block = (blockIdx.z * 2 + blockIdx.y) * 2 + blockIdx.x;
            y[32 * block + threadIdx.x] = seen + 100 * cluster.block_rank() + 1000 * (cluster.thread_rank() - 32 * cluster.block_rank());
            cluster.barrier_arrive();
            cluster.barrier_wait();
        }"""
    y = torch.full((2, 2, 2, 32), -1, dtype=torch.int32, device=device)
    Kernel(source, "ranks")((2, 2, 2), 32, (y,))
    z, line, _, thread = torch.meshgrid(*map(torch.arange, (2, 2, 2, 32)), indexing="ij")
    assert torch.equal(y.cpu(), (thread % 4 // 2 * 10 + thread % 2 + 100 * (2 * z + line) + 1000 * thread).int())


def test_what_is_not_supported_says_so():
    partition = "cg::tiled_partition<64>(cg::this_thread_block()).sync()"
    source = f"#include <cooperative_groups.h>\nnamespace cg = cooperative_groups;\n__global__ void f(int* y) {{ {partition}; }}"
    with pytest.raises(CompileError, match="not supported"):
        Kernel(source, "f")(1, 32, (torch.zeros(1, dtype=torch.int32),))


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "tiles<8>").resources(arch="sm_90").registers > 0
