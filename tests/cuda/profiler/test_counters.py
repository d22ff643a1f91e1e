"""Every counter against what can be worked out on paper."""

import pandas
import pytest
import torch

import labkernels as lk
from labkernels.cuda import Kernel
from labkernels.errors import ArgumentError, LaunchError
from tests.cuda.profiler.kernels import launches

LAUNCHES = {launch.name: launch for launch in launches("cpu")}
N = 1 << 14
WARPS = N // 32


def profile_of(name, **more):
    launch = LAUNCHES[name]
    return lk.profile(launch.kernel, launch.grid, launch.block, launch.args, **more)


def kernel(body, parameters="const float* x, float* y, int n"):
    return Kernel(f'extern "C" __global__ void k({parameters}) {{\nint i = blockIdx.x * blockDim.x + threadIdx.x;\n{body}\n}}', "k")


def test_a_copy_with_stride_moves_a_sector_for_every_eight_floats_until_each_lane_has_its_own():
    for stride in (1, 2, 8):
        p = profile_of(f"lk_copy stride {stride}")
        warps = WARPS // stride
        for kind in ("load", "store"):
            assert getattr(p, f"global_{kind}_requests") == warps
            assert getattr(p, f"global_{kind}_bytes") == 128 * warps
            assert getattr(p, f"global_{kind}_sectors_per_request") == min(4 * stride, 32)
        assert p.bytes_moved == p.bytes_needed == 2 * 4 * N                  # every sector is touched, by one warp only
        assert p.active_lanes == 1 and p.divergent_branches == 0


def test_float4_asks_for_four_times_the_bytes_in_a_quarter_of_the_requests():
    p = profile_of("lk_copy_vector")
    assert (p.global_load_requests, p.global_load_bytes, p.global_load_sectors) == (WARPS // 4, 4 * N, N // 8)


@pytest.mark.parametrize(
    "name, store_sectors, conflicts", [("naive", 32, 0), ("tile", 4, 31), ("padded", 4, 0), ("swizzled", 4, 0)]
)
def test_a_transpose_scatters_its_stores_or_conflicts_in_its_tile_until_the_tile_is_padded_or_swizzled(name, store_sectors, conflicts):
    p = profile_of(f"lk_transpose_{name}")
    assert p.global_load_sectors_per_request == 4 and p.global_store_sectors_per_request == store_sectors
    assert p.shared_load_conflicts == conflicts * WARPS and p.shared_store_conflicts == 0
    assert p.barriers == (0 if name == "naive" else 16 * 8)                  # blocks times warps


def test_a_tiled_matmul_reads_each_matrix_once_per_tile():
    p, n, tile = profile_of("lk_matmul_tiled"), 128, 16
    assert p.global_load_bytes == 2 * 4 * n**3 // tile
    assert p.shared_load_requests == 2 * n**3 // 32 and p.shared_load_conflicts == 0
    assert p.shared_store_requests == 2 * n**3 // tile // 32
    assert p.barriers == 2 * (n // tile) * n * n // 32
    assert p.bytes_needed == 2 * 4 * n * n                                   # a is b here, and c is written


def test_the_sequential_tree_has_no_conflicts_and_the_interleaved_one_has_many():
    tree, interleaved = profile_of("lk_sum_tree"), profile_of("lk_sum_tree_interleaved")
    additions = 4 + 2 + 1 + 5                                                # warps at work with 128, 64, 32, and 16 to 1 threads
    for p in (tree, interleaved):
        assert p.shared_store_requests == (8 + additions) * 64 and p.shared_load_requests == (2 * additions + 1) * 64
        assert p.barriers == 8 * 8 * 64
        assert p.divergent_branches == (5 + 1) * 64                          # steps below a warp, and thread 0 at the end
    assert tree.shared_load_conflicts == tree.shared_store_conflicts == 0
    # Lanes 2s words apart: in steps s = 1, 2, 4, ... of 4, 2, then 1 warps, this many of a warp's lanes meet in one bank.
    meet = [(4, 2), (2, 4), (1, 8), (1, 8), (1, 8), (1, 4), (1, 2), (1, 1)]
    assert interleaved.shared_store_conflicts == 64 * sum(warps * (lanes - 1) for warps, lanes in meet)
    assert interleaved.shared_load_conflicts == 2 * interleaved.shared_store_conflicts


def test_lanes_at_one_word_share_it_and_wide_accesses_are_counted_by_the_lanes_served_together():
    uniform = lk.profile(kernel("__shared__ float s[32]; s[i % 32] = x[i]; __syncthreads(); y[i] = s[5];"), 1, 64, (torch.randn(64), torch.zeros(64), 64))
    assert uniform.shared_load_requests == 2 and uniform.shared_load_conflicts == 0
    assert profile_of("lk_shared_pairs").shared_load_conflicts == 0          # stride 3 pairs, by half warps
    p = profile_of("lk_shared_vector")                                       # stride 2 quads: two ways in each quarter
    assert p.shared_load_wavefronts == 8 * p.shared_load_requests and p.shared_load_conflicts == 4 * p.shared_load_requests


def test_a_uniform_load_moves_one_sector():
    p = lk.profile(kernel("y[i] = x[7];"), 2, 128, (torch.randn(64), torch.zeros(256), 0))
    assert p.global_load_requests == 8 and p.global_load_sectors == 8 and p.global_load_bytes == 4 * 256


def test_a_misaligned_slice_touches_one_sector_more():
    whole = torch.randn(65)
    p = lk.profile(kernel("y[i] = x[i];"), 1, 32, (whole[1:], torch.zeros(32), 0))
    assert p.global_load_sectors == 5 and p.global_store_sectors == 4


def test_an_array_indexed_at_run_time_is_local_memory_and_no_global_traffic():
    body = "float a[16]; for (int k = 0; k < 16; ++k) a[k] = x[k]; float s = 0; for (int k = 0; k < n; ++k) s += a[(k * n + i) % 16]; y[i] = s;"
    p = lk.profile(kernel(body), 1, 64, (torch.randn(16), torch.zeros(64), 5))
    assert p.local_store_requests == 2 * 16 and p.local_store_bytes == 4 * 64 * 16
    assert p.local_load_requests == 2 * 5
    assert p.global_load_requests == 2 * 16 and p.global_store_requests == 2


def test_an_array_whose_loops_unroll_lives_in_registers():
    body = "float a[4]; for (int k = 0; k < 4; ++k) a[k] = x[k * n + i]; float s = 0; for (int k = 0; k < 4; ++k) s += a[k]; y[i] = s;"
    p = lk.profile(kernel(body), 1, 64, (torch.randn(256), torch.zeros(64), 64))
    assert p.local_store_requests == p.local_load_requests == 0 and p.global_load_requests == 2 * 4


def test_the_share_of_active_lanes_and_the_divergent_branches_by_line():
    p = lk.profile(kernel("float v = x[i];\nif (i % 4 == 0)\n    v += x[i + 1];\ny[i] = v;"), 2, 64, (torch.randn(129), torch.zeros(128), 0))
    lines = p.by_line.set_index("line")
    assert lines.loc[5, "active_lanes"] == 0.25 and lines.loc[3, "active_lanes"] == lines.loc[6, "active_lanes"] == 1
    assert lines.loc[5, "divergent_branches"] == p.divergent_branches == 4   # once a warp
    assert lines.loc[5, "global_load_requests"] == 4 and lines.loc[5, "global_load_bytes"] == 4 * 32


def test_a_loop_of_different_lengths_diverges_whenever_lanes_leave_it():
    p = profile_of("lk_diverge")                                             # 1 to 4 turns in each group of four lanes
    assert p.global_load_requests == 4 * WARPS and p.global_load_bytes == 4 * N * 10 // 4
    assert p.divergent_branches == 3 * WARPS


def test_lanes_stay_together_over_shuffles():
    body = """
    for (int k = 0; k < n; ++k) {
        float v = x[32 * k + i % 32];
        for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(~0u, v, step);
        if (__any_sync(~0u, v > 1e9f)) v = 0;
        s += v;
    }
    y[i] = s;"""
    p = lk.profile(kernel("float s = 0;" + body), 1, 64, (torch.randn(32 * 100), torch.zeros(64), 100))
    assert (p.global_load_requests, p.global_load_sectors) == (2 * 100, 2 * 400)
    assert p.active_lanes == 1 and p.divergent_branches == 0


def test_atomics_are_counted_for_themselves():
    body = "__shared__ int s; if (threadIdx.x == 0) s = 0; __syncthreads(); atomicAdd(&s, 1); atomicAdd(&count[i % n], 1);"
    count = torch.zeros(32, dtype=torch.int32)
    p = lk.profile(kernel(body, "int* count, int n"), 2, 64, (count, 16))
    assert p.global_atomic_requests == 4 and p.global_atomic_bytes == 4 * 128 and p.global_atomic_sectors_per_request == 2
    assert p.shared_atomic_requests == 4
    assert p.global_load_requests == p.global_store_requests == 0
    assert not count.any()                                                   # on copies


def test_the_second_read_of_a_small_array_hits_l2():
    twice = kernel("float s = 0; for (int k = 0; k < 2; ++k) s += x[i]; y[i] = s;")
    volatile = kernel("float s = 0; for (int k = 0; k < 2; ++k) s += *(const volatile float*)&x[i]; y[i] = s;")
    for k in (twice, volatile):
        p = lk.profile(k, 8, 128, (torch.randn(1024), torch.zeros(1024), 0), l2_bytes=1 << 20)
        assert p.l2_misses == 2 * 1024 * 4 // 32
        assert p.l2_hits == p.global_load_sectors + p.global_store_sectors - p.l2_misses
    assert p.l2_hits == 1024 * 4 // 32


def test_l2_keeps_what_was_used_last():
    scan = kernel("float s = 0; for (int k = 0; k < 2; ++k) for (int j = 0; j < n; j += 32) s += *(const volatile float*)&x[j + i]; y[i] = s;")
    n = 1024
    args = (torch.randn(n), torch.zeros(32), n)
    sectors = n * 4 // 32
    fits, too_small = (lk.profile(scan, 1, 32, args, l2_bytes=size) for size in (n * 4, n * 4 - 128))
    assert (fits.l2_hits, fits.l2_misses) == (sectors, sectors + 4)          # and the four sectors of y
    assert (too_small.l2_hits, too_small.l2_misses) == (0, 2 * sectors + 4)  # read in a circle, the one needed next was just put out
    assert lk.profile(scan, 1, 32, args).l2_misses == 0                      # no L2 asked for


def test_a_block_of_three_axes_makes_warps_of_neighbouring_threads():
    body = "int t = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z); y[t] = x[t];"
    p = lk.profile(kernel(body), 1, (4, 4, 4), (torch.randn(64), torch.zeros(64), 0))
    assert (p.global_load_requests, p.global_load_sectors) == (2, 8)


def test_a_block_that_does_not_fill_its_last_warp():
    p = lk.profile(kernel("y[i] = x[i];"), 2, 40, (torch.randn(80), torch.zeros(80), 0))
    assert p.global_load_requests == 4 and p.global_load_bytes == 4 * 80
    assert p.global_load_sectors == 10                                       # 128 and 32 bytes, from 0 and from 160
    assert p.active_lanes == pytest.approx(80 / 128)
    assert p.divergent_branches == 0


def test_counters_are_the_same_in_every_run_and_by_line_adds_up_to_them():
    first, second = profile_of("lk_gather"), profile_of("lk_gather")
    pandas.testing.assert_frame_equal(first.by_line, second.by_line)
    for counter in ("global_load_requests", "global_load_bytes", "global_load_sectors", "global_store_sectors", "divergent_branches"):
        assert first.by_line[counter].sum() == getattr(first, counter) > 0
    assert set(first.by_line["file"]) == {"kernels.cu"}


def test_profiled_tensors_are_left_as_they_were():
    x, y = torch.randn(256), torch.randn(256)
    before = x.clone(), y.clone()
    lk.profile(kernel("y[i] = x[i] + 1;"), 2, 128, (x, y, 0))
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


def test_long_traces_are_merged_in_parts_and_still_exact():
    p = lk.profile(kernel("float s = 0; for (int k = 0; k < n; ++k) s += *(const volatile float*)&x[k + i % 2 * 64]; y[i] = s;"), 1, 64, (torch.randn(40064), torch.zeros(64), 40000))
    assert p.global_load_requests == 2 * 40000 and p.global_load_sectors == 2 * 2 * 40000
    assert p.divergent_branches == 0


def test_what_is_no_counter_and_what_cannot_be_launched_is_said():
    p = profile_of("lk_copy stride 8")
    with pytest.raises(AttributeError, match="global_load_sectors"):
        p.global_load_conflicts                                              # noqa: B018
    assert "shared_load_conflicts" in dir(p) and "global_store_sectors_per_request" in dir(p)
    with pytest.raises(ArgumentError, match="takes 4 arguments, got 1"):
        lk.profile(LAUNCHES["lk_copy stride 8"].kernel, 1, 32, (torch.zeros(4),))
    with pytest.raises(LaunchError, match="trap|fail"):
        lk.profile(kernel("__trap();"), 1, 32, (torch.zeros(1), torch.zeros(1), 0))
