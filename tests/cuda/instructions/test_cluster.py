"""Clusters: blocks that wait for each other, reach into each other's shared memory, and share what one of them has fetched."""

import re

import pytest
import torch

from labkernels.cuda import Kernel, isolated, profile, sanitize
from labkernels.cuda.tensor_map import tensor_map
from labkernels.errors import ArgumentError, CompileError, LaunchError

# Each cluster sums its rows: its blocks sum theirs, and the last one adds their sums up, by reading them where they are.
REDUCE = r"""
    #include "block.cuh"
    #include "cluster.cuh"
    extern "C" __global__ void reduce(const int* x, int* sums, int mistake) {
        SHARED
        if (threadIdx.x == 0) part[0] = 0;
        __syncthreads();
        atomicAdd(part, x[blockIdx.x * blockDim.x + threadIdx.x]);
        if (mistake != 1) cluster_sync();
        if (cluster_rank() == cluster_size() - 1 && threadIdx.x == 0) {
            int sum = 0;
            for (int rank = 0; rank < cluster_size(); ++rank) sum += *map_shared_rank(part, rank);
            sums[blockIdx.x / cluster_size()] = sum;
        }
        if (mistake != 2) cluster_sync();
    }"""
STATIC, DYNAMIC = "__shared__ int unused[3], part[1];", "extern __shared__ int part[];"


def reduce(shared: str = STATIC) -> Kernel:
    return Kernel(REDUCE.replace("SHARED", shared), "reduce")


def numbers(*shape: int, device: str = "cpu") -> torch.Tensor:
    return torch.randint(-100, 100, shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.int32).to(device)


@pytest.mark.parametrize("shared, bytes", [(STATIC, 0), (DYNAMIC, 16)], ids=["static", "dynamic"])
@pytest.mark.parametrize("cluster", [1, 2, 4, 8])
def test_a_cluster_sums_what_its_blocks_hold(cluster, shared, bytes, device):
    x = numbers(24, 96, device=device)
    sums = torch.full((24 // cluster,), -1, dtype=torch.int32, device=device)
    reduce(shared)(24, 96, (x, sums, 0), shared_mem=bytes, cluster=cluster)
    assert torch.equal(sums, x.view(24 // cluster, -1).sum(1).int())


@pytest.mark.parametrize("shared, bytes", [(STATIC, 0), (DYNAMIC, 16)], ids=["static", "dynamic"])
def test_reaching_into_another_block_is_clean_if_all_are_there(shared, bytes):
    x, sums = numbers(8, 48), torch.zeros(2, dtype=torch.int32)
    report = sanitize(reduce(shared), 8, 48, (x, sums, 0), bytes, cluster=4, write_back=True)
    assert report.clean, report
    assert torch.equal(sums, x.view(2, -1).sum(1).int())
    for mistake, words in {1: "before anything tells that it has started", 2: "may have left the kernel by then"}.items():
        report = sanitize(reduce(shared), 8, 48, (x, sums, mistake), bytes, cluster=4)
        assert report.findings[0].kind == "race" and report.findings[0].array == "part", report
        assert re.search(rf"reads part\[0\] of block \d, .*{words}", str(report)), report


def test_blocks_have_their_place_in_a_cluster_of_three_axes(device):
    kernel = Kernel(
        r"""
        #include "cluster.cuh"
        extern "C" __global__ void __cluster_dims__(2, 1, WIDE) places(int* seen) {
            __shared__ int mine;
            mine = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z;
            cluster_sync();
            if (threadIdx.x < cluster_size())
                seen[mine / 100 * 48 + mine / 10 % 10 * 16 + mine % 10 * 4 + threadIdx.x] = *map_shared_rank(&mine, threadIdx.x);
            cluster_sync();
        }""",
        "places",
        defines={"WIDE": 2},
    )
    seen = torch.full((4, 3, 4, 4), -1, dtype=torch.int32, device=device)
    kernel((4, 3, 4), 32, (seen,))
    z, y, x, rank = torch.meshgrid(*map(torch.arange, (4, 3, 4, 4)), indexing="ij")
    want = 100 * (z // 2 * 2 + rank // 2) + 10 * y + x // 2 * 2 + rank % 2
    assert torch.equal(seen.cpu(), want.int())


# The threads of all blocks count into one histogram, of which each block of the cluster holds a part.
HISTOGRAM = r"""
    #include "cluster.cuh"
    extern "C" __global__ void histogram(const unsigned char* x, int* counts, int n, int bins) {
        extern __shared__ int mine[];
        const int each = bins / cluster_size();
        for (int i = threadIdx.x; i < each; i += blockDim.x) mine[i] = 0;
        cluster_sync();
        for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
            atomicAdd(map_shared_rank(&mine[x[i] % each], x[i] / each), 1);
        cluster_sync();
        for (int i = threadIdx.x; i < each; i += blockDim.x) atomicAdd(&counts[cluster_rank() * each + i], mine[i]);
    }"""


def test_a_histogram_lies_spread_over_a_cluster(device):
    x = torch.randint(0, 256, (5000,), generator=torch.Generator().manual_seed(1), dtype=torch.uint8).to(device)
    counts = torch.zeros(256, dtype=torch.int32, device=device)
    kernel = Kernel(HISTOGRAM, "histogram")
    kernel(8, 128, (x, counts, 5000, 256), shared_mem=256, cluster=4)
    assert torch.equal(counts.cpu(), torch.bincount(x.cpu(), minlength=256).int())
    if device == "cpu":
        report = sanitize(kernel, 4, 128, (x, counts, 600, 256), 256, cluster=4)
        assert report.clean, report


# A pair of blocks: each fetches one half of every tile for both. The consumers of both tell both producers that they have read it.
SHARED_TILES = r"""
    #include "cluster.cuh"
    #include "tma.cuh"
    constexpr int ROWS = 16, COLUMNS = 32, STAGES = 2, CONSUMERS = 64, BYTES = ROWS * COLUMNS * 4;
    extern "C" __global__ void __cluster_dims__(2) tiles(const __grid_constant__ TensorMap x, float* y, int count, int mistake) {
        __shared__ __align__(1024) float tile[STAGES][ROWS * COLUMNS];
        __shared__ Mbarrier full[STAGES], empty[STAGES];
        const int rank = cluster_rank();
        if (threadIdx.x == 0) {
            for (int s = 0; s < STAGES; ++s) mbarrier_init(&full[s], 1), mbarrier_init(&empty[s], mistake == 4 ? CONSUMERS : 2 * CONSUMERS);
            fence_mbarrier_init();
        }
        if (mistake == 1) __syncthreads();
        else cluster_sync();
        if (threadIdx.x == CONSUMERS) {
            for (int i = 0; i < count; ++i) {
                const int s = i % STAGES, parity = i / STAGES % 2;
                if (mistake == 2) mbarrier_wait(&empty[s], parity ^ 1);
                else mbarrier_wait_cluster(&empty[s], parity ^ 1);
                mbarrier_arrive_expect_tx(&full[s], mistake == 5 ? BYTES / 2 : BYTES);
                tma_load_multicast(tile[s] + rank * ROWS / 2 * COLUMNS, x, &full[s], mistake == 6 ? 5 : 3, 0, ROWS * i + rank * ROWS / 2);
            }
        } else if (threadIdx.x < CONSUMERS) {
            for (int i = 0; i < count; ++i) {
                const int s = i % STAGES, parity = i / STAGES % 2;
                mbarrier_wait(&full[s], parity);
                if (mistake == 7) mbarrier_arrive_remote(&empty[s], rank ^ 1);
                for (int j = threadIdx.x; j < ROWS * COLUMNS; j += CONSUMERS) y[(2 * i + rank) * ROWS * COLUMNS + j] = (rank + 1) * tile[s][j];
                mbarrier_arrive(&empty[s]);
                if (mistake != 4 && mistake != 7) mbarrier_arrive_remote_read(&empty[s], rank ^ 1);
            }
        }
        if (mistake != 3) cluster_sync();
    }"""
MISTAKES = {
    "the other block has perhaps not initialised its mbarriers": (1, "race", "before anything tells that it has started", "tma_load_multicast"),
    "the producer's wait takes up nothing of the other block": (2, "race", r"writes tile.* of block \d, which", "tma_load_multicast"),
    "a block leaves while the other one still arrives at its mbarriers": (3, "race", r"empty\[\d\] of block \d, which may have left", "mbarrier_arrive_remote"),
    "the consumers tell their own producer only": (4, "race", r"writes tile.* of block \d, which", "tma_load_multicast"),
    "fewer bytes are expected than come": (5, "race", "asynchronous copy", "tile"),
    "the mask names a block that the cluster does not have": (6, "out_of_bounds", "block of rank 2, and its cluster has 2", "tma_load_multicast"),
    "the other producer is told before the tile has been read": (7, "race", r"writes tile.* of block \d, which", "tma_load_multicast"),
}


def tiles() -> Kernel:
    return Kernel(SHARED_TILES, "tiles")


def tile_arguments(count: int, device: str = "cpu", mistake: int = 0):
    x = numbers(16 * count, 32, device=device).float()
    y = torch.full((count, 2, 16, 32), float("nan"), device=device)
    return x, y, (tensor_map(x, (8, 32)), y, count, mistake)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_two_blocks_share_what_each_has_fetched(count, device):
    x, y, args = tile_arguments(count, device)
    tiles()(2, 96, args)
    want = x.view(count, 1, 16, 32)
    assert torch.equal(y, torch.cat([want, 2 * want], dim=1))


def test_shared_tiles_are_clean_under_the_sanitizer():
    x, y, args = tile_arguments(5)
    report = sanitize(tiles(), 2, 96, args, write_back=True)
    assert report.clean, report
    assert torch.equal(y[:, 1], 2 * x.view(5, 16, 32))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_with_shared_tiles_is_found_and_named(mistake):
    number, kind, words, place = MISTAKES[mistake]
    report = sanitize(tiles(), 2, 96, tile_arguments(5, mistake=number)[-1])
    named = [finding for finding in report.findings if finding.kind == kind and re.search(words, finding.text)]
    assert named, report
    assert place in SHARED_TILES.splitlines()[named[0].line - 1], report


# Block 0 writes rows into a buffer in block 1, which hands each back when it has read it. y = x with its rows reversed.
PUSH = r"""
    #include "cluster.cuh"
    extern "C" __global__ void push(const float* x, float* y, int rounds, int mistake) {
        __shared__ float buffer[2][32];
        __shared__ Mbarrier full[2], empty[2];
        const int t = threadIdx.x, rank = cluster_rank(), first = blockIdx.x / 2 * 32 * rounds;
        if (t == 0) {
            for (int s = 0; s < 2; ++s) mbarrier_init(&full[s], 32), mbarrier_init(&empty[s], 32);
            fence_mbarrier_init();
        }
        cluster_arrive();
        cluster_wait();
        for (int i = 0; i < rounds; ++i) {
            const int s = i % 2, parity = i / 2 % 2;
            if (rank == 0) {
                mbarrier_wait_cluster(&empty[s], parity ^ 1);
                map_shared_rank(buffer[s], 1)[t] = x[first + 32 * i + t];
                mbarrier_arrive_remote(&full[s], 1);
            } else {
                if (mistake == 1) mbarrier_wait(&full[s], parity);
                else if (i % 3 == 2) mbarrier_wait_cluster(&full[s], parity);
                else while (!mbarrier_try_wait_cluster(&full[s], parity)) {}
                if (mistake == 2) mbarrier_arrive_remote(&empty[s], 0);
                y[first + 32 * i + t] = buffer[s][31 - t];
                if (mistake != 2 && mistake != 3) mbarrier_arrive_remote(&empty[s], 0);
            }
        }
        if (mistake != 4) cluster_sync();
    }"""


def push() -> Kernel:
    return Kernel(PUSH, "push")


@pytest.mark.parametrize("rounds", [1, 2, 9])
def test_rows_are_pushed_into_another_block(rounds, device):
    x = numbers(3, rounds, 32, device=device).float()
    y = torch.full_like(x, float("nan"))
    push()(6, 32, (x, y, rounds, 0), cluster=2)
    assert torch.equal(y, x.flip(2))
    if device == "cpu":
        report = sanitize(push(), 6, 32, (x, y, rounds, 0), cluster=2)
        assert report.clean, report


@pytest.mark.parametrize(
    "mistake, kind, words",
    [
        (1, "race", r"reads buffer\[31\], which thread 31 of block 0 wrote .* mbarrier_wait_cluster\(\)"),
        (2, "race", r"writes buffer\[\d+\] of block 1, which thread \d+ of block 1 read"),
        (3, "deadlock", "of block 0 wait at mbarrier_wait"),
        (4, "race", r"updates \(atomic\) empty\[\d\] of block 0, which may have left the kernel by then"),
    ],
)
def test_each_mistake_in_pushing_is_found_and_named(mistake, kind, words):
    x = numbers(4, 32).float()
    report = sanitize(push(), 2, 32, (x, torch.zeros_like(x), 4, mistake), cluster=2, time_limit_s=5)
    assert report.findings[0].kind == kind and re.search(words, str(report)), report


# Each case is a wrong use, and what the sanitizer says of it, or the error that ends the launch without one.
WRONG = [
    ("if (threadIdx.x < 32) cluster_sync();", "barrier_divergence", "wait at cluster_sync that threads 32 to 63 of block . never reach"),
    ("if (blockIdx.x != 1) cluster_sync();", "barrier_divergence", "wait at cluster_sync that threads 0 to 63 of block 1 never reach"),
    ("cluster_arrive(); cluster_arrive(); cluster_wait();", "barrier_divergence", "a second time without cluster_wait"),
    ("cluster_wait();", "barrier_divergence", r"without having arrived there: cluster_arrive\(\) first"),
    ("if (threadIdx.x) cluster_sync(); else __syncthreads();", "deadlock", "thread 0 of block . waits at __syncthreads"),
    ("if (blockIdx.x) cluster_sync(); else mbarrier_wait(&barrier, 0);", "deadlock", "of block 0 wait at mbarrier_wait while thread 0 of block 1 waits at cluster_sync"),
    ("y[0] = *map_shared_rank(&z[0], 2);", "out_of_bounds", "rank 2 in a cluster of 2 blocks"),
    ("int local = 1; y[0] = *map_shared_rank(&local, 1);", "out_of_bounds", "not in its own block's shared memory"),
    ("y[0] = map_shared_rank(z, blockIdx.x ^ 1)[64]; cluster_sync();", "out_of_bounds", r"reads z\[64\] of block ., but z has 64 elements"),
    ("y[0] = map_shared_rank(unwritten, 1)[3]; cluster_sync();", "uninitialized", r"reads unwritten\[3\]"),
    ("*map_shared_rank(z, 0) = threadIdx.x; cluster_sync();", "race", r"writes z\[0\], which thread .* of block 1 wrote|writes z\[0\] of block 0"),
    ("if (threadIdx.x == 0) mbarrier_arrive_remote(&barrier, 3);", "out_of_bounds", "for a block of rank 3, and its cluster has 2"),
]
WRONG_CASES = "".join(f"if (which == {i}) {{ {body} }}\n" for i, (body, _, _) in enumerate(WRONG))
WRONG_KERNEL = f"""
    #include "cluster.cuh"
    extern "C" __global__ void wrong(int* y, int which) {{
        __shared__ int z[64], unwritten[64];
        __shared__ Mbarrier barrier;
        z[threadIdx.x] = 1;
        if (threadIdx.x == 0) mbarrier_init(&barrier, 1);
        cluster_sync();
        {WRONG_CASES}
    }}"""


@pytest.mark.parametrize("which", range(len(WRONG)), ids=[body for body, _, _ in WRONG])
def test_wrong_use_is_found(which):
    body, kind, words = WRONG[which]
    y = torch.zeros(64, dtype=torch.int32)
    report = sanitize(Kernel(WRONG_KERNEL, "wrong"), 2, 64, (y, which), cluster=2, time_limit_s=5)
    assert report.findings[0].kind == kind and re.search(words, str(report)), report
    if "cluster's barrier" in str(report) or "asks for" in str(report) or kind == "deadlock":  # what cannot go on without the sanitizer either
        with pytest.raises(LaunchError, match="deadlock in the cluster" if kind == "deadlock" else words):
            Kernel(WRONG_KERNEL, "wrong")(4, 64, (y, which), cluster=2)


def one_line(body: str) -> Kernel:
    return Kernel(f'#include "cluster.cuh"\nextern "C" __global__ void line(int* y) {{\n{body}\n}}\n', "line")


def test_halves_of_the_barrier_may_be_crossed_and_threads_may_leave():
    body = r"""
        __shared__ int mine;
        if (threadIdx.x == 0) mine = 1 + blockIdx.x;
        if (threadIdx.x >= 32) { cluster_arrive(); return; }    // has arrived, and need not wait
        cluster_arrive();
        __syncwarp();
        cluster_wait();
        if (threadIdx.x == 0) y[blockIdx.x] = *map_shared_rank(&mine, cluster_rank() ^ 1);
        cluster_arrive();
        cluster_wait();"""
    y = torch.zeros(4, dtype=torch.int32)
    report = sanitize(one_line(body), 4, 64, (y,), cluster=2, write_back=True)
    assert report.clean, report
    assert y.tolist() == [2, 1, 4, 3]


@pytest.mark.parametrize("spin", ["while (atomicAdd(other, 0) == 0) {}", "while (*(volatile int*)other == 0) {}"])
def test_blocks_that_spin_on_each_others_flags_get_their_turns(spin, device):
    body = rf"""
        __shared__ int flag;
        flag = 0;
        cluster_sync();
        int* other = map_shared_rank(&flag, cluster_rank() ^ 1);
        if (cluster_rank() == 1 && threadIdx.x == 0) atomicAdd(other, 1);
        {spin.replace("other", "(cluster_rank() ? other : &flag)")}
        if (threadIdx.x == 0) y[blockIdx.x] = 1;
        cluster_sync();"""
    y = torch.zeros(4, dtype=torch.int32, device=device)
    one_line(body)(4, 64, (y,), cluster=2)
    assert y.tolist() == [1] * 4


def test_each_block_has_its_own_shared_memory_also_where_others_wait_for_it():
    kernel = Kernel(
        r"""
        #include "cluster.cuh"
        struct Half { float value; __device__ Half() : value(0.5f) {} };
        extern "C" __global__ void own(float* y, int rounds) {
            __shared__ int mine[64];
            __shared__ Half half;
            extern __shared__ int more[];
            mine[threadIdx.x] = more[threadIdx.x] = 64 * blockIdx.x + threadIdx.x;
            for (int i = 0; i < rounds; ++i) {
                cluster_sync();
                mine[threadIdx.x] += 1;
                more[threadIdx.x] += 2;
            }
            y[64 * blockIdx.x + threadIdx.x] = mine[threadIdx.x] + more[threadIdx.x] + (threadIdx.x ? 0.0f : 0.0f * half.value);
        }""",
        "own",
    )
    y = torch.full((16, 64), float("nan"))
    kernel(16, 64, (y, 5), shared_mem=256, cluster=(4, 1))
    assert torch.equal(y, 2.0 * torch.arange(1024).view(16, 64) + 15)


def test_clusters_run_isolated_and_profiled():
    x, sums = numbers(8, 96), torch.zeros(2, dtype=torch.int32)
    with isolated():
        reduce()(8, 96, (x, sums, 0), cluster=4)
    assert torch.equal(sums, x.view(2, -1).sum(1).int())
    counted = profile(reduce(), 8, 96, (x, sums, 0), cluster=4)
    assert counted.global_load_requests == 24 and counted.shared_atomic_requests == 24 and counted.shared_load_requests == 8
    assert set(counted.arrivals["block"]) == {0, 1, 2, 3}


def test_a_cluster_that_cannot_be_is_refused():
    y = torch.zeros(64, dtype=torch.int32)
    x, sums = numbers(6, 32), torch.zeros(6, dtype=torch.int32)
    for grid, cluster, words in [
        (6, 4, "grid .6, 1, 1. is no multiple of the cluster .4, 1, 1.: 6 blocks along x"),
        ((6, 2), (3, 4), "cluster .3, 4, 1. has 12 blocks, a cluster has at most 8"),
        (16, 16, "x must be 1 to 8, got 16"),
        (6, 0, "x must be 1 to 8, got 0"),
        (6, 1.5, "made of ints"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            reduce()(grid, 32, (x, sums, 0), cluster=cluster)
    declared = Kernel('#include "cluster.cuh"\n__global__ void __cluster_dims__(SIZE, 1) k(int* y) { y[blockIdx.x] = cluster_size(); }\n', "k", {"SIZE": 2})
    declared(4, 1, (y,))
    declared(4, 1, (y,), cluster=2)
    assert y[:5].tolist() == [2, 2, 2, 2, 0]
    with pytest.raises(ArgumentError, match="asks for clusters of .4, 1, 1., the kernel's __cluster_dims__ say .2, 1, 1."):
        declared(4, 1, (y,), cluster=4)
    with pytest.raises(ArgumentError, match="grid .5, 1, 1. is no multiple"):
        declared(5, 1, (y,))
    dependent = Kernel("template <int N> __global__ void __cluster_dims__(N) k(int* y) { y[0] = N; }\n", "k<2>")
    with pytest.raises(CompileError, match="give the launch cluster= instead"):
        dependent(4, 1, (y,))


@pytest.mark.gpu
def test_a_gpu_refuses_what_the_emulator_refuses():
    y = torch.zeros(64, dtype=torch.int32, device="cuda")
    declared = Kernel('#include "cluster.cuh"\n__global__ void __cluster_dims__(2) k(int* y) { y[blockIdx.x] = cluster_size(); }\n', "k")
    declared(4, 1, (y,))
    declared(4, 1, (y,), cluster=2)
    for grid, cluster in [(4, 4), (5, None), (5, 2)]:
        with pytest.raises(ArgumentError):
            declared(grid, 1, (y,), cluster=cluster)
    assert y[:5].tolist() == [2, 2, 2, 2, 0]


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5])
def test_compiles_for_hopper(rank):
    kernel = Kernel(
        r"""
        #include "cluster.cuh"
        #include "tma.cuh"
        extern "C" __global__ void every(const __grid_constant__ TensorMap x, int x0, int x1, int x2, int x3, int x4) {
            __shared__ __align__(128) float tile[1024];
            __shared__ Mbarrier full;
            tma_load_multicast(tile, x, &full, 0xff, AT);
        }""",
        "every",
        defines={"AT": ", ".join(["x0", "x1", "x2", "x3", "x4"][:rank])},
    )
    assert kernel.resources("sm_90a").stack_bytes == 0
    for kernel in (reduce(), push(), tiles(), Kernel(HISTOGRAM, "histogram")):
        assert kernel.resources("sm_90a").stack_bytes == 0
