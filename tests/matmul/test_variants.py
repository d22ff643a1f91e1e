"""The SIMT versions of `matmul`, v1 to v5: right at every size, layout and epilogue, clean under the sanitizer, and as frugal as they say."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda import Kernel, sanitizing
from labkernels.cuda.variants import kernel
from labkernels.lab.check import check
from labkernels.matmul.reference import ACTIVATIONS, reference
from labkernels.matmul import variants
from labkernels.matmul.variants import FOLDER, VARIANTS, Tile, best_tile, tiled
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
TILES = list(variants.TILES)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CUDA_CPP = ["v1_naive_cuda", "v2_coalesced", "v3_tiled", "v4_registers", "v5_pipelined"]


def random(m, n, k, device="cpu", dtype=torch.float32, weight=False):
    generator = torch.Generator().manual_seed(m + n + k)
    a = torch.randn(m, k, generator=generator).to(device, dtype)
    b = torch.randn(n, k, generator=generator).to(device, dtype).t() if weight else torch.randn(k, n, generator=generator).to(device, dtype)
    return a, b


def assert_right(result, a, b, bias=None, activation=None, residual=None) -> None:
    """float32: near float64. 16 bits: what rounding the right result costs, since all of the arithmetic is float32."""
    want = reference(*(t if t is None or isinstance(t, str) else t.double() for t in (a, b, bias, activation, residual)))
    assert result.shape == want.shape and result.dtype == a.dtype and result.device == a.device and result.is_contiguous()
    relative = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[a.dtype]
    torch.testing.assert_close(result.double(), want, rtol=relative, atol=2e-5)


@pytest.mark.parametrize("name", ["v1_naive", *CUDA_CPP])
def test_variant_passes_the_check(name):
    report = check("matmul", name, seeds=(0,), quiet=True)
    assert report.sanitizer == "clean" or name == "v1_naive"
    if name != "v1_naive":
        assert report.left_out == {}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CUDA_CPP)
def test_sizes_that_fit_no_tile_in_both_layouts(name, dtype, device):
    for m, n, k in ((1, 1, 1), (1, 33, 64), (65, 1, 17), (33, 31, 129), (130, 131, 3)):
        for weight in (False, True):
            a, b = random(m, n, k, device, dtype, weight)
            assert_right(VARIANTS[name].fn(a, b), a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("weight", [False, True])
def test_numba_at_odd_sizes(weight, device):
    for m, n, k in ((1, 1, 1), (3, 17, 9), (5, 2, 33), (2, 3, 0)):
        a, b = random(m, n, k, device, weight=weight)
        assert_right(VARIANTS["v1_naive"].fn(a, b), a, b)


def test_numba_says_what_it_refuses():
    a, b = random(4, 4, 4)
    accepts = VARIANTS["v1_naive"].accepts
    assert accepts(a=a, b=b, bias=b[0]) == "the Numba kernel multiplies, and nothing more"
    assert accepts(a=a.half(), b=b.half()) == "the Numba kernel takes float32"
    a, b = random(512, 512, 512)
    assert ("not on CPU tensors" if torch.cuda.is_available() else "simulator would take seconds") in accepts(a=a, b=b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("name", CUDA_CPP)
def test_bias_activation_and_residual_in_every_combination(name, activation, device):
    a, b = random(36, 40, 20, device)
    wide = torch.randn(36, 60, generator=torch.Generator().manual_seed(0)).to(device)
    for bias in (None, wide[0, :40]):
        for residual in (None, wide[:, 8:48], wide[:1, :40].expand(36, 40)):
            case = a, b, bias, activation, residual
            assert_right(VARIANTS[name].fn(*case), *case)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CUDA_CPP)
def test_operands_cut_out_of_wider_matrices(name, device):
    wide = torch.randn(70, 200, generator=torch.Generator().manual_seed(0)).to(device)
    for first in (0, 1, 4):  # rows on 16 bytes, beside them, and on them again
        a, b, weight = wide[:33, first : first + 64], wide[:64, first + 80 : first + 116], wide[:36, first + 80 : first + 144]
        assert_right(VARIANTS[name].fn(a, b), a, b)
        assert_right(VARIANTS[name].fn(a, weight.t()), a, weight.t())


@pytest.mark.parametrize("name", CUDA_CPP)
def test_infinities_and_nan_stay_in_their_row_and_column(name):
    a, b = random(40, 44, 36)
    a[39, 35], b[35, 43] = torch.inf, torch.nan  # the last of all, beside what a tile has too much
    want = a.double() @ b.double()
    torch.testing.assert_close(VARIANTS[name].fn(a, b).double(), want, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert want[:39, :43].isfinite().all() and not want[39].isfinite().any()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CUDA_CPP)
def test_empty_results_and_empty_sums(name, device):
    for m, n in ((0, 5), (5, 0), (0, 0)):
        assert VARIANTS[name].fn(torch.ones(m, 3, device=device), torch.ones(3, n, device=device)).shape == (m, n)
    a, b, bias = torch.ones(5, 0, device=device), torch.ones(0, 4, device=device), torch.randn(4, device=device)
    assert_right(VARIANTS[name].fn(a, b, bias, "gelu"), a, b, bias, "gelu")


def test_a_result_with_too_many_rows_for_the_grid_is_refused():
    huge = torch.empty(1, 1).expand(1 << 24, 1)
    refused = {name: VARIANTS[name].accepts(a=huge, b=torch.ones(1, 1)) for name in CUDA_CPP}
    assert refused["v2_coalesced"] == "takes at most 524280 rows" and refused["v3_tiled"] == "takes at most 2097120 rows"
    assert refused["v1_naive_cuda"] is None and refused["v5_pipelined"] is None
    assert VARIANTS["v1_naive_cuda"].accepts(a=torch.ones(1, 1), b=huge.t()) == "takes at most 524280 columns"


# What the profiler counts, against what the header of each version says. m and n are whole tiles.

M, N, K = 256, 128, 64
WARP_STEPS = M * N * K // 32  # multiply-adds of a warp


def profile_of(name, weight=False):
    """The counters of the one kernel that the variant launches."""
    profiles, launch = [], Kernel.__call__
    a, b = random(M, N, K, weight=weight)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Kernel, "__call__", lambda kernel, *args: profiles.append(lk.profile(kernel, *args)))
        VARIANTS[name].fn(a, b)
    assert Kernel.__call__ is launch and len(profiles) == 1
    assert profiles[0].bytes_needed == 4 * (M * K + K * N + M * N) and profiles[0].active_lanes == 1
    return profiles[0]


def test_v1_touches_32_sectors_for_32_numbers_of_a():
    p = profile_of("v1_naive_cuda")
    assert p.global_load_bytes == 2 * M * N * K * 4 and p.global_load_requests == 2 * WARP_STEPS
    assert p.global_load_sectors == (32 + 1) * WARP_STEPS
    assert p.global_store_sectors_per_request == 32


def test_v2_asks_for_the_same_bytes_in_fewer_sectors_unless_b_is_dense_by_columns():
    p = profile_of("v2_coalesced")
    assert p.global_load_bytes == 2 * M * N * K * 4
    assert p.global_load_sectors == (1 + 4) * WARP_STEPS
    assert p.global_store_sectors_per_request == 4
    assert profile_of("v2_coalesced", weight=True).global_load_sectors == (1 + 32) * WARP_STEPS


@pytest.mark.parametrize("weight", [False, True])
def test_v3_reads_32_times_fewer_bytes_and_two_words_of_shared_memory_a_step(weight):
    p = profile_of("v3_tiled", weight)
    assert p.global_load_bytes == 2 * M * N * K * 4 // 32 and p.global_load_sectors_per_request == 4
    assert p.shared_load_requests == p.shared_load_wavefronts == 2 * WARP_STEPS and p.bank_conflicts == 0
    assert p.barriers == 2 * (K // 32) * (M * N // 32)


@pytest.mark.parametrize("weight", [False, True])
def test_v4_reads_a_quarter_word_of_shared_memory_a_step(weight):
    p = profile_of("v4_registers", weight)
    assert p.global_load_bytes == 2 * M * N * K * 4 // 128 and p.global_load_sectors_per_request == 4
    assert p.shared_load_requests == WARP_STEPS // 4 and p.bank_conflicts == 0


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("tile", TILES)
def test_v5_loads_vectors_without_bank_conflicts(tile, weight, monkeypatch):
    monkeypatch.setattr("labkernels.matmul.variants.best_tile", lambda a, b: tile)
    p = profile_of("v5_pipelined", weight)
    assert p.global_load_bytes == 4 * (M * N * K // tile.tile_m + M * N * K // tile.tile_n)
    assert p.global_load_requests == p.global_load_bytes // (16 * 32)
    assert p.global_load_sectors == p.global_load_bytes // 32                # no sector is touched in vain
    vectors, sums = tile.rows // 4 + tile.cols // 4, (tile.teams - 1) * M * N // (4 * 32)  # what the other teams hand over
    assert p.shared_load_requests == WARP_STEPS * vectors // (tile.rows * tile.cols) + sums and p.bank_conflicts == 0
    assert p.barriers == (K // tile.depth + 2 * (tile.teams - 1)) * (M // tile.tile_m) * (N // tile.tile_n) * tile.threads // 32
    assert p.global_store_sectors == M * N * 4 // 32


# v5's tiles


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tile", TILES)
def test_v5_is_right_with_every_tile(tile, dtype, device):
    bias = torch.randn(300, generator=torch.Generator().manual_seed(0)).to(device, dtype)
    for m, n, k in ((150, 140, 52), (260, 17, 7), (33, 300, 16)):
        for weight in (False, True):
            a, b = random(m, n, k, device, dtype, weight)
            assert_right(tiled(tile, a, b, bias[:n]), a, b, bias[:n])


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("tile", TILES[:-1])  # the check's small shapes take the last
def test_v5_has_no_race_with_larger_tiles(tile, weight):
    a, b = random(150, 140, 60, weight=weight)
    with sanitizing():
        assert_right(tiled(tile, a, b), a, b)


def test_v5_walks_over_all_tiles_of_a_tall_result():
    for m, n in ((32 * 35, 40), (20, 32 * 5), (32 * 16, 64)):  # 35 rows of tiles: two groups of 16, and one of 3
        a, b = random(m, n, 4)
        assert_right(tiled(TILES[-1], a, b), a, b)


def test_v5_picks_the_tile_that_is_done_first():
    def picked(m, n):
        return best_tile(torch.empty(m, 64), torch.empty(64, n))

    assert picked(8192, 8192) == picked(2048, 2048) == TILES[0]
    assert picked(1024, 1024) == TILES[1]
    assert picked(512, 512) == TILES[2] and picked(8, 4096) == TILES[3]


@pytest.mark.gpu
@pytest.mark.parametrize("weight", [False, True])
def test_large_matrices_on_the_gpu(weight):
    a, b = random(1000, 2049, 1555, "cuda", weight=weight)
    for name in CUDA_CPP:
        torch.testing.assert_close(VARIANTS[name].fn(a, b).double(), a.double() @ b.double(), rtol=1e-5, atol=1e-3)


PIPELINED = [("v5_pipelined", "matmul_pipelined", (torch.float32, 2, *tile, "false", 4)) for tile in TILES]


@pytest.mark.parametrize("arch", ["sm_75", "sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "file, name, arguments",
    [
        ("v1_naive", "matmul_naive", (torch.float16, 0)),
        ("v2_coalesced", "matmul_coalesced", (torch.float32, 1)),
        ("v3_tiled", "matmul_tiled", (torch.bfloat16, 3)),
        ("v4_registers", "matmul_registers", (torch.float32, 4)),
        ("v4_registers", "matmul_registers", (torch.bfloat16, 2)),
        *PIPELINED,
        ("v5_pipelined", "matmul_pipelined", (torch.float32, 0, *TILES[0], "true", 1)),
        ("v5_pipelined", "matmul_pipelined", (torch.bfloat16, 4, *TILES[0], "true", 4)),
    ],
)
def test_compiles_for_gpus_without_spills(file, name, arguments, arch):
    resources = taken(kernel(FOLDER / f"{file}.cu", name, *arguments), arch)
    assert resources.spill_stores == resources.stack == 0, resources


def test_a_tile_says_what_it_takes():
    assert (Tile(128, 128, 8, 8, 8).threads, Tile(128, 128, 8, 8, 8).shared_bytes) == (256, 2 * 8 * (132 + 132) * 4)
    tile = Tile(32, 64, 4, 8, 32, teams=4)
    assert (tile.threads, tile.shared_bytes) == (256, 2 * 32 * (36 + 68) * 4)
    assert Tile(64, 64, 8, 8, 4, 2).shared_bytes == 64 * 64 * 4  # the sums need more room than the slices
