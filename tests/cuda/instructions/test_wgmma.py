"""wgmma: every type, N, layout and swizzle against NumPy; A from shared memory and from registers."""

import numpy
import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

TYPES = {  # C++ type -> torch's, columns of K in one step
    "__nv_bfloat16": (torch.bfloat16, 16),
    "__half": (torch.float16, 16),
    "float": (torch.float32, 8),
    "__nv_fp8_e4m3": (torch.float8_e4m3fn, 32),
    "__nv_fp8_e5m2": (torch.float8_e5m2, 32),
}

# One step of K. The operands' bytes come laid out as the descriptors say; start A's and B's tile at multiples of 1024.
PRODUCT = r"""
    #include "wgmma.cuh"
    extern "C" __global__ void __launch_bounds__(128, 1)
        product(const uint4* a, const uint4* b, const unsigned* fragments, float* d, int lead_a, int stride_a, int lead_b, int stride_b) {
        __shared__ __align__(1024) uint4 tile_a[512], tile_b[2048];
        for (int i = threadIdx.x; i < 512; i += 128) tile_a[i] = a[i];
        for (int i = threadIdx.x; i < 2048; i += 128) tile_b[i] = b[i];
        fence_proxy_async();
        __syncthreads();
        const int t = threadIdx.x;
        float sum[N / 2];
        for (int i = 0; i < N / 2; ++i) sum[i] = t + i;
        unsigned registers[4];
        for (int i = 0; i < 4; ++i) registers[i] = fragments[4 * t + i];
        const MatrixDescriptor at_a = matrix_descriptor(tile_a, lead_a, stride_a, SWIZZLE_A);
        const MatrixDescriptor at_b = matrix_descriptor(tile_b, lead_b, stride_b, SWIZZLE_B);
        wgmma_fence();
        if (REGISTERS) wgmma<TYPE, TB>(sum, registers, at_b, ADD);
        else wgmma<TYPE, TA, TB>(sum, at_a, at_b, ADD);
        wgmma_commit();
        wgmma_wait<0>(sum);
        for (int i = 0; i < N / 2; ++i)
            d[(16 * (t / 32) + t % 32 / 4 + (i & 2 ? 8 : 0)) * N + 8 * (i / 4) + 2 * (t % 4) + (i & 1)] = sum[i] - (ADD ? t + i : 0);
    }"""


def product(c_type="__nv_bfloat16", n=16, swizzle_a=0, swizzle_b=0, ta=0, tb=0, registers=0, add=1) -> Kernel:
    defines = {"TYPE": c_type, "N": n, "SWIZZLE_A": swizzle_a, "SWIZZLE_B": swizzle_b, "TA": f"bool({ta})", "TB": f"bool({tb})"}
    return Kernel(PRODUCT, "product", defines=defines | {"REGISTERS": registers, "ADD": add})


def laid_out(matrix: torch.Tensor, swizzle: int, transposed: bool, bytes_in_all: int) -> tuple[torch.Tensor, int, int]:
    """The bytes of (rows of M or N, columns of K) in shared memory, and the leading and stride offsets that describe them.

    Pieces of 16 bytes stand in slabs of 8 lines of `width` bytes. A line runs along K, or (transposed) along M or N.
    """
    lines = (matrix.t() if transposed else matrix).contiguous().view(torch.uint8).numpy()
    width = swizzle or 16
    out = numpy.zeros(bytes_in_all, numpy.uint8)
    down, across = len(lines) // 8, -(-lines.shape[1] // width)
    slab = 8 * width
    for line in range(len(lines)):
        for byte in range(0, lines.shape[1], 16):
            where = (line // 8 * across + byte // width) * slab + line % 8 * width + byte % width
            row = where // 128
            where ^= (row % (swizzle // 16)) * 16 if swizzle else 0
            out[where : where + 16] = lines[line, byte : byte + 16]
    next_lines, next_width = across * slab, slab
    assert down * across * slab <= bytes_in_all
    if not transposed:
        return torch.from_numpy(out), next_width, next_lines
    return torch.from_numpy(out), *((next_width, next_lines) if swizzle else (next_lines, next_width))


def in_registers(a: torch.Tensor) -> torch.Tensor:
    """A (64, K) as the threads of a warpgroup hold it: (128, 4) words of 32 bits."""
    words = a.contiguous().view(torch.int32)
    t = torch.arange(128).view(-1, 1)
    i = torch.arange(4).view(1, -1)
    return words[16 * (t // 32) + t % 32 // 4 + i % 2 * 8, t % 4 + i // 2 * 4].contiguous()


def operands(dtype, n: int, k: int):
    generator = torch.Generator().manual_seed(n + k)
    return [torch.randn((rows, k), generator=generator).to(dtype) for rows in (64, n)]


def check(device, c_type="__nv_bfloat16", n=16, swizzle_a=0, swizzle_b=0, ta=0, tb=0, registers=0, add=1, watched=False):
    dtype, k = TYPES[c_type]
    a, b = operands(dtype, n, k)
    bytes_a, lead_a, stride_a = laid_out(a, swizzle_a, ta, 8192)
    bytes_b, lead_b, stride_b = laid_out(b, swizzle_b, tb, 32768)
    d = torch.full((64, n), float("nan"), device=device)
    args = [bytes_a.view(torch.int32), bytes_b.view(torch.int32), in_registers(a)]
    args = (*(x.to(device) for x in args), d, lead_a, stride_a, lead_b, stride_b)
    kernel = product(c_type, n, swizzle_a, swizzle_b, ta, tb, registers, add)
    if watched:
        report = sanitize(kernel, 1, 128, args)
        assert report.clean, report
        return
    kernel(1, 128, args)
    if c_type == "float":                                   # tf32: the last 13 bits are not looked at
        a, b = ((x.view(torch.int32) & ~0x1FFF).view(torch.float32) for x in (a, b))
    want = a.double() @ b.double().T
    got = d.cpu().double()
    if "fp8" in c_type and device == "cuda":                # a GPU adds fp8 products with fewer bits than float32 has
        assert (got - want).norm() < 1e-2 * want.norm()
    else:
        torch.testing.assert_close(got, want, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("registers", [0, 1])
@pytest.mark.parametrize("c_type", TYPES)
def test_every_type(c_type, registers, device):
    check(device, c_type, n=24, swizzle_a=32, swizzle_b=32, registers=registers)


@pytest.mark.parametrize("registers", [0, 1])
@pytest.mark.parametrize("n, add", [(24, 1), (256, 0)])
def test_integers_are_exact(n, add, registers, device):
    generator = torch.Generator().manual_seed(n)
    a, b = (torch.randint(-128, 128, (rows, 32), generator=generator, dtype=torch.int8) for rows in (64, n))
    bytes_a, lead_a, stride_a = laid_out(a, 32, False, 8192)
    bytes_b, lead_b, stride_b = laid_out(b, 32, False, 32768)
    defines = {"TYPE": "signed char", "N": n, "SWIZZLE_A": 32, "SWIZZLE_B": 32, "REGISTERS": registers, "ADD": add}
    source = PRODUCT.replace("float", "int").replace("wgmma<TYPE, TB>", "wgmma<TYPE>").replace("wgmma<TYPE, TA, TB>", "wgmma<TYPE>")
    d = torch.zeros((64, n), dtype=torch.int32, device=device)
    args = [x.to(device) for x in (bytes_a.view(torch.int32), bytes_b.view(torch.int32), in_registers(a))]
    kernel = Kernel(source, "product", defines=defines)
    kernel(1, 128, (*args, d, lead_a, stride_a, lead_b, stride_b))
    torch.testing.assert_close(d.cpu(), a.int() @ b.int().T, rtol=0, atol=0)
    assert kernel.resources("sm_90a").spill_store_bytes == 0


@pytest.mark.parametrize("n", [8, 40, 64, 128, 200, 256])
def test_widths(n, device):
    check(device, n=n, swizzle_a=32, swizzle_b=32)


@pytest.mark.parametrize("tb", [0, 1])
@pytest.mark.parametrize("ta", [0, 1])
@pytest.mark.parametrize("swizzle", [0, 32, 64, 128])
def test_layouts_along_k_and_across(swizzle, ta, tb, device):
    """K is 32 bytes: K-major with 64 and 128 bytes is a slab that K fills in part, as where a loop goes along it."""
    check(device, n=64, swizzle_a=swizzle, swizzle_b=swizzle, ta=ta, tb=tb)


def test_transposed_b_with_a_in_registers(device):
    check(device, "__half", n=128, swizzle_b=128, tb=1, registers=1)


def test_without_accumulating_what_was_there_is_forgotten(device):
    check(device, n=16, add=0)


@pytest.mark.parametrize("registers", [0, 1])
def test_clean_under_the_sanitizer(registers):
    check("cpu", n=32, swizzle_a=32, swizzle_b=32, registers=registers, watched=True)


def test_an_operand_without_a_proxy_fence_is_a_race():
    source = PRODUCT.replace("fence_proxy_async();", "")
    kernel = product(n=16, swizzle_a=32, swizzle_b=32)
    kernel = Kernel(source, "product", defines=dict(kernel.source.defines))
    x = torch.randn(8192).clamp(-1, 1)
    args = (x[:2048].view(torch.int32), x.view(torch.int32), torch.zeros(512, dtype=torch.int32), torch.zeros(64, 16), 0, 256, 0, 256)
    report = sanitize(kernel, 1, 128, args)
    assert {finding.kind for finding in report.findings} == {"race"} and "no fence_proxy_async()" in report.findings[0].text, report


def test_an_incomplete_warpgroup_is_refused():
    args = (torch.zeros(2048, dtype=torch.int32), torch.zeros(8192, dtype=torch.int32), torch.zeros(512, dtype=torch.int32))
    with pytest.raises(LaunchError, match="a warpgroup is 128 threads"):
        product()(1, 96, (*args, torch.zeros(64, 16), 0, 0, 0, 0))


@pytest.mark.parametrize(
    "c_type, n, registers", [("__nv_bfloat16", 256, 0), ("float", 8, 0), ("float", 128, 1), ("__nv_fp8_e4m3", 128, 0), ("__half", 200, 1)]
)
def test_compiles_for_hopper_without_spills(c_type, n, registers):
    assert product(c_type, n, 128, 128, registers=registers).resources("sm_90a").spill_store_bytes == 0
