"""nvcuda::wmma: the same source on a GPU and in the emulator, for every shape and type, against NumPy's product."""

import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

SOURCE = r"""
    #include <mma.h>
    #include <cuda_bf16.h>
    #include <cuda_fp16.h>
    using namespace nvcuda;
    #ifdef TF32
    #define ELEMENT wmma::precision::tf32
    #else
    #define ELEMENT INPUT
    #endif
    // d = 2 * (a * b + c), d as halves or floats by rows or columns; the factor by way of x[].
    extern "C" __global__ void product(const INPUT* a, const INPUT* b, const SUM* c, SUM* d) {
        wmma::fragment<wmma::matrix_a, SHAPE, ELEMENT, wmma::LAYOUT_A> fa;
        wmma::fragment<wmma::matrix_b, SHAPE, ELEMENT, wmma::LAYOUT_B> fb;
        wmma::fragment<wmma::accumulator, SHAPE, SUM> fc, fd;
        wmma::load_matrix_sync(fa, a, LEADING_A);
        wmma::load_matrix_sync(fb, b, LEADING_B);
        wmma::load_matrix_sync(fc, c, COLUMNS, wmma::mem_row_major);
    #ifdef TF32
        for (int i = 0; i < fa.num_elements; ++i) fa.x[i] = wmma::__float_to_tf32(fa.x[i]);
        for (int i = 0; i < fb.num_elements; ++i) fb.x[i] = wmma::__float_to_tf32(fb.x[i]);
    #endif
        wmma::fill_fragment(fd, (SUM)0.0f);
        wmma::mma_sync(fd, fa, fb, fc);
        for (int i = 0; i < fd.num_elements; ++i) fd.x[i] = fd.x[i] + fd.x[i];
        wmma::store_matrix_sync(d, fd, ROWS, wmma::mem_col_major);
    }"""
TYPES = {torch.float16: "__half", torch.bfloat16: "__nv_bfloat16", torch.float32: "float", torch.int8: "signed char",
         torch.uint8: "unsigned char", torch.int32: "int", torch.float64: "double"}  # fmt: skip
CASES = [
    ((16, 16, 16), torch.float16, torch.float32), ((16, 16, 16), torch.float16, torch.float16),
    ((32, 8, 16), torch.float16, torch.float32), ((8, 32, 16), torch.bfloat16, torch.float32),
    ((16, 16, 16), torch.bfloat16, torch.float32), ((16, 16, 8), torch.float32, torch.float32),
    ((32, 8, 16), torch.int8, torch.int32), ((16, 16, 16), torch.uint8, torch.int32), ((8, 8, 4), torch.float64, torch.float64),
]  # fmt: skip


def product(shape, dtype, sum_dtype, layout_a="row_major", layout_b="col_major") -> Kernel:
    m, n, k = shape
    defines = {"SHAPE": f"{m}, {n}, {k}", "ROWS": m, "COLUMNS": n, "INPUT": TYPES[dtype], "SUM": TYPES[sum_dtype]}
    defines |= {"LAYOUT_A": layout_a, "LAYOUT_B": layout_b}
    defines |= {"LEADING_A": k if layout_a == "row_major" else m, "LEADING_B": n if layout_b == "row_major" else k}
    if dtype == torch.float32:
        defines["TF32"] = 1
    return Kernel(SOURCE, "product", defines=defines)


def operands(shape, dtype, sum_dtype, whole: bool):
    m, n, k = shape
    generator = torch.Generator().manual_seed(m + k)

    def make(rows, columns, dtype):
        if whole or not dtype.is_floating_point:
            low = 0 if dtype == torch.uint8 else -5
            return torch.randint(low, 6, (rows, columns), generator=generator).to(dtype)
        return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)

    return make(m, k, dtype), make(k, n, dtype), make(m, n, sum_dtype)


def run(kernel, a, b, c, layout_a, layout_b, device):
    laid_a = a if layout_a == "row_major" else a.T.contiguous()
    laid_b = b if layout_b == "row_major" else b.T.contiguous()
    d = torch.full((c.shape[1], c.shape[0]), 77, dtype=c.dtype).to(device)
    kernel(1, 32, (laid_a.to(device), laid_b.to(device), c.to(device), d))
    return d.cpu().T


@pytest.mark.parametrize("shape, dtype, sum_dtype", CASES)
def test_products_of_whole_numbers_are_exact(shape, dtype, sum_dtype, device):
    a, b, c = operands(shape, dtype, sum_dtype, whole=True)
    layouts = ("col_major", "row_major") if shape[0] == 16 else ("row_major", "col_major")
    d = run(product(shape, dtype, sum_dtype, *layouts), a, b, c, *layouts, device)
    want = 2 * (a.double() @ b.double() + c.double())
    assert len(want.unique()) > 10 and torch.equal(d.double(), want)


def test_products_of_floats_are_right_to_the_last_rounding(device):
    for case in [CASES[0], CASES[4]]:
        a, b, c = operands(*case, whole=False)
        d = run(product(*case, "col_major", "row_major"), a, b, c, "col_major", "row_major", device)
        size = a.double().abs() @ b.double().abs() + c.double().abs()
        assert ((d.double() / 2 - (a.double() @ b.double() + c.double())).abs() <= (17 if device == "cpu" else 64) * 2.0**-24 * size).all()


def test_clean_and_bounds_are_judged():
    case = CASES[1]
    a, b, c = operands(*case, whole=True)
    kernel = product(*case, "col_major", "row_major")
    report = sanitize(kernel, 1, 32, (a, b, c, torch.empty(16, 16, dtype=torch.float16)))
    assert report.clean, report
    report = sanitize(kernel, 1, 32, (a[:15], b, c, torch.empty(16, 16, dtype=torch.float16)))
    assert [finding.kind for finding in report.findings] == ["out_of_bounds"], report


def test_wrong_calls_are_refused():
    case = CASES[1]
    a, b, c = operands(*case, whole=True)
    kernel, d = product(*case, "col_major", "row_major"), torch.empty(16, 16, dtype=torch.float16)
    with pytest.raises(LaunchError, match="multiple of 32 bytes"):
        kernel(1, 32, (torch.zeros(300, dtype=torch.float16)[8:], b, c, d))
    with pytest.raises(LaunchError, match="all 32 lanes"):
        kernel(1, 31, (a, b, c, d))


def test_compiles_without_spills(arch):
    for case in CASES:
        resources = product(*case).resources(arch)
        assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
