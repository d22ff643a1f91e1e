"""ldmatrix and stmatrix: where each element of a matrix ends up, and that each row is judged as an access of the lane that names it."""

import numpy
import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

# Four 8x8 matrices in shared memory, one after another; out (6, 32, 4): what the lanes get by x1, x2, x4, and transposed.
LOAD = Kernel(
    r"""
    #include "ldmatrix.cuh"
    extern "C" __global__ void load(const unsigned* matrices, unsigned* out) {
        __shared__ __align__(16) unsigned tile[4 * 8 * 4];
        for (int i = threadIdx.x; i < 128; i += 32) tile[i] = matrices[i];
        __syncthreads();
        const void* row = tile + 4 * threadIdx.x;
        unsigned one[1], two[2], four[4];
        #define LOAD(i, name, registers, count) \
            name(registers, row); \
            for (int r = 0; r < count; ++r) out[(i * 32 + threadIdx.x) * 4 + r] = registers[r];
        LOAD(0, ldmatrix, one, 1) LOAD(1, ldmatrix, two, 2) LOAD(2, ldmatrix, four, 4)
        LOAD(3, ldmatrix_trans, one, 1) LOAD(4, ldmatrix_trans, two, 2) LOAD(5, ldmatrix_trans, four, 4)
    }""",
    "load",
)
# The way back: registers (32, 4) into four matrices, six times over.
STORE = Kernel(
    r"""
    #include "ldmatrix.cuh"
    extern "C" __global__ void store(const unsigned* registers, unsigned* out) {
        __shared__ __align__(16) unsigned tile[4 * 8 * 4];
        unsigned one[1], two[2], four[4];
        for (int r = 0; r < 4; ++r) four[r] = registers[4 * threadIdx.x + r];
        two[0] = one[0] = four[0]; two[1] = four[1];
        #define STORE(i, name, registers) \
            for (int k = threadIdx.x; k < 128; k += 32) tile[k] = 0xffffffff; \
            __syncthreads(); \
            name(tile + 4 * threadIdx.x, registers); \
            __syncthreads(); \
            for (int k = threadIdx.x; k < 128; k += 32) out[i * 128 + k] = tile[k]; \
            __syncthreads();
    #if __CUDA_ARCH__ >= 900
        STORE(0, stmatrix, one) STORE(1, stmatrix, two) STORE(2, stmatrix, four)
        STORE(3, stmatrix_trans, one) STORE(4, stmatrix_trans, two) STORE(5, stmatrix_trans, four)
    #endif
    }""",
    "store",
)
# One ldmatrix whose rows begin `first` bytes into a tile of 8 rows, each `stride` bytes on; `fill` words of the tile are written before.
ODD = Kernel(
    r"""
    #include "ldmatrix.cuh"
    extern "C" __global__ void odd(unsigned* out, int first, int stride, int fill) {
        __shared__ __align__(16) unsigned tile[8 * 4];
        if (threadIdx.x < fill) tile[threadIdx.x] = threadIdx.x + 1;
        __syncwarp();
        unsigned d[1];
        ldmatrix(d, reinterpret_cast<char*>(tile) + first + threadIdx.x * stride);
        out[threadIdx.x] = d[0];
    }""",
    "odd",
)
RACE = Kernel(
    r"""
    #include "ldmatrix.cuh"
    extern "C" __global__ void race(unsigned* out) {
        __shared__ __align__(16) unsigned tile[8 * 4];
        tile[threadIdx.x] = threadIdx.x;
        unsigned d[1];
        ldmatrix(d, tile + 4 * (threadIdx.x % 8));
        __syncwarp();
        out[threadIdx.x] = d[0];
    }""",
    "race",
)
COUNTS = [1, 2, 4]


def elements(words: torch.Tensor) -> numpy.ndarray:
    return words.view(torch.int32).cpu().numpy().view(numpy.uint16)


def distinct(count: int, seed: int) -> torch.Tensor:
    """`count` words of 16-bit elements, all different."""
    order = numpy.random.default_rng(seed).permutation(2 * count).astype(numpy.uint16) + 1
    return torch.from_numpy(order.view(numpy.int32).copy()).view(torch.uint32)


def registers_of(matrices: numpy.ndarray, transposed: bool) -> numpy.ndarray:
    """(lane, matrix, half) of matrices (matrix, 8, 8), by PTX's picture."""
    turned = matrices.transpose(0, 2, 1) if transposed else matrices
    return turned.reshape(len(matrices), 32, 2).transpose(1, 0, 2)


def test_loaded_elements_are_where_ptx_says(device):
    matrices, out = distinct(128, seed=1), torch.zeros(6, 32, 4, dtype=torch.uint32)
    out = out.to(device)
    LOAD(1, 32, (matrices.to(device), out))
    got = elements(out).reshape(6, 32, 4, 2)
    for i, (transposed, count) in enumerate([(t, n) for t in (False, True) for n in COUNTS]):
        want = registers_of(elements(matrices).reshape(4, 8, 8)[:count], transposed)
        assert numpy.array_equal(got[i, :, :count], want), (transposed, count)
        assert (got[i, :, count:] == 0).all()


def test_stored_elements_are_where_ptx_says(device):
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("stmatrix needs sm_90")
    registers, out = distinct(128, seed=2), torch.zeros(6, 128, dtype=torch.uint32).to(device)
    STORE(1, 32, (registers.to(device), out))
    got = elements(out).reshape(6, 4, 8, 8)
    for i, (transposed, count) in enumerate([(t, n) for t in (False, True) for n in COUNTS]):
        want = elements(registers).reshape(32, 4, 2)[:, :count]
        assert numpy.array_equal(registers_of(got[i, :count], transposed), want), (transposed, count)
        assert (got[i, count:] == 0xFFFF).all()


def test_correct_use_is_clean():
    for kernel in (LOAD, STORE):
        report = sanitize(kernel, 1, 32, (distinct(128, seed=3), torch.zeros(6 * 128, dtype=torch.uint32)))
        assert report.clean, report


@pytest.mark.parametrize(
    "first, stride, fill, kind",
    [(0, 16, 32, None), (8, 16, 32, "misaligned"), (0, 12, 32, "misaligned"), (32, 16, 32, "out_of_bounds"), (0, 16, 30, "uninitialized")],
)
def test_wrong_rows_are_found(first, stride, fill, kind):
    report = sanitize(ODD, 1, 32, (torch.zeros(32, dtype=torch.uint32), first, stride, fill))
    assert {finding.kind for finding in report.findings} == ({kind} if kind else set()), report
    assert all("tile" in finding.text and finding.line == 8 for finding in report.findings), report


def test_rows_that_other_lanes_write_unordered_are_a_race():
    report = sanitize(RACE, 1, 32, (torch.zeros(32, dtype=torch.uint32),))
    assert {finding.kind for finding in report.findings} >= {"race"}, report


def test_misaligned_row_ends_the_launch_without_the_sanitizer_too():
    with pytest.raises(LaunchError, match="multiple of 16"):
        ODD(1, 32, (torch.zeros(32, dtype=torch.uint32), 8, 16, 32))


def test_compiles_without_spills(arch):
    for kernel in (LOAD, STORE):
        resources = kernel.resources(arch)
        assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
