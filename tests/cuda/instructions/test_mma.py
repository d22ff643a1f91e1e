"""mma.sync: every lane's registers are made by hand from PTX's layout, and the product must be NumPy's."""

import numpy
import pytest
import torch

from labkernels.cuda import Kernel, sanitize
from labkernels.errors import LaunchError

HALF, BF16, TF32, S8, U8, E4M3, E5M2 = "half bf16 tf32 s8 u8 e4m3 e5m2".split()
# Type of A, of B, of the sums, in the kernel's order.
INSTRUCTIONS = [
    (TF32, TF32, "f32"), (BF16, BF16, "f32"), (HALF, HALF, "f32"), (HALF, HALF, "f16"),
    (S8, S8, "s32"), (U8, U8, "s32"), (S8, U8, "s32"), (U8, S8, "s32"),
    (E4M3, E4M3, "f32"), (E5M2, E5M2, "f32"), (E4M3, E5M2, "f32"), (E5M2, E4M3, "f32"),
]  # fmt: skip
DTYPES = {HALF: torch.float16, BF16: torch.bfloat16, TF32: torch.float32, S8: torch.int8, U8: torch.uint8,
          E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}  # fmt: skip
SUMS = {"f32": torch.float32, "f16": torch.float16, "s32": torch.int32}

KERNEL = Kernel(
    r"""
    #include "mma.cuh"
    // Runs all instructions, each on its own words: a (instruction, lane, 4), b (instruction, lane, 2), c and d (instruction, lane, 4).
    #define RUN(index, Sum, count, function) {                                                                    \
        unsigned a[4], b[2];                                                                                       \
        Sum c[count];                                                                                              \
        for (int i = 0; i < 4; ++i) a[i] = a_words[(index * 32 + threadIdx.x) * 4 + i];                            \
        for (int i = 0; i < 2; ++i) b[i] = b_words[(index * 32 + threadIdx.x) * 2 + i];                            \
        for (int i = 0; i < count; ++i) c[i] = reinterpret_cast<const Sum*>(c_words)[(index * 32 + threadIdx.x) * 4 + i]; \
        function(c, a, b, c);                                                                                      \
        for (int i = 0; i < count; ++i) reinterpret_cast<Sum*>(d_words)[(index * 32 + threadIdx.x) * 4 + i] = c[i]; \
    }
    #define MIXED(...) mma_m16n8k32<__VA_ARGS__>
    extern "C" __global__ void multiply(const unsigned* a_words, const unsigned* b_words, const unsigned* c_words, unsigned* d_words) {
        RUN(0, float, 4, mma_m16n8k8<tf32>)
        RUN(1, float, 4, mma_m16n8k16<__nv_bfloat16>)
        RUN(2, float, 4, mma_m16n8k16<__half>)
        RUN(3, unsigned, 2, mma_m16n8k16_f16)
        RUN(4, int, 4, mma_m16n8k32<signed char>)
        RUN(5, int, 4, mma_m16n8k32<unsigned char>)
        RUN(6, int, 4, MIXED(signed char, unsigned char))
        RUN(7, int, 4, MIXED(unsigned char, signed char))
    #if __CUDA_ARCH__ >= 890
        RUN(8, float, 4, mma_m16n8k32<__nv_fp8_e4m3>)
        RUN(9, float, 4, mma_m16n8k32<__nv_fp8_e5m2>)
        RUN(10, float, 4, MIXED(__nv_fp8_e4m3, __nv_fp8_e5m2))
        RUN(11, float, 4, MIXED(__nv_fp8_e5m2, __nv_fp8_e4m3))
    #endif
    }""",
    "multiply",
)


def words(matrix: torch.Tensor) -> numpy.ndarray:
    """A row-major matrix as 32-bit words along its last axis."""
    return matrix.contiguous().view(torch.uint8).numpy().view(numpy.uint32)


def a_fragments(a: torch.Tensor) -> numpy.ndarray:
    """(lane, 4) of A (16, k): lane 4g+t has rows g and g+8, words t and 4+t of each row."""
    w = words(a)  # (16, 8)
    return numpy.array([[w[g, t], w[g + 8, t], w[g, t + 4], w[g + 8, t + 4]] for g in range(8) for t in range(4)])


def b_fragments(b: torch.Tensor) -> numpy.ndarray:
    """(lane, 2) of B (k, 8): lane 4g+t has words t and 4+t of column g."""
    w = words(b.T)  # (8, 8)
    return numpy.array([[w[g, t], w[g, t + 4]] for g in range(8) for t in range(4)])


def c_fragments(c: torch.Tensor) -> numpy.ndarray:
    """(lane, 4) words of C (16, 8): lane 4g+t has columns 2t and 2t+1 of rows g and g+8; of halves only two words are used."""
    rows = words(c).reshape(16, 4, -1)  # two columns: two words, of halves one
    pairs = [numpy.concatenate([rows[g, t], rows[g + 8, t]]) for g in range(8) for t in range(4)]
    return numpy.array([numpy.pad(p, (0, 4 - len(p))) for p in pairs])


def c_matrix(fragments: numpy.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """The inverse of c_fragments."""
    n = 2 if dtype != torch.float16 else 1
    rows = numpy.empty((16, 4, n), numpy.uint32)
    for lane in range(32):
        rows[lane // 4, lane % 4], rows[lane // 4 + 8, lane % 4] = fragments[lane, :n], fragments[lane, n : 2 * n]
    return torch.from_numpy(rows.reshape(16, 4 * n).view(numpy.uint8).copy()).view(dtype)


def operands(whole: bool, seed: int) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """A, B and C of every instruction, in their types: small whole numbers, whose sums are exact everywhere, or anything."""
    generator = torch.Generator().manual_seed(seed)
    matrices = []
    for kind_a, kind_b, kind_sum in INSTRUCTIONS:
        k = 32 // DTYPES[kind_a].itemsize
        made = []
        for kind, shape in ((kind_a, (16, k)), (kind_b, (k, 8))):
            if kind in (S8, U8):
                low, high = (-128, 128) if kind == S8 else (0, 256)
                made.append(torch.randint(low, high, shape, generator=generator).to(DTYPES[kind]))
            elif whole:
                made.append(torch.randint(-3, 4, shape, generator=generator).float().to(DTYPES[kind]))
            else:
                made.append(tf32(torch.randn(shape, generator=generator)).to(DTYPES[kind]))
        exact = whole or kind_sum == "s32"
        c = torch.randint(-100, 100, (16, 8), generator=generator) if exact else torch.randn(16, 8, generator=generator)
        matrices.append((*made, c.to(SUMS[kind_sum])))
    return matrices


def tf32(x: torch.Tensor) -> torch.Tensor:
    """Floats of which only tf32's bits are set."""
    return (x.view(torch.int32) & ~0x1FFF).view(torch.float32)


def run(matrices, device: str) -> list[torch.Tensor]:
    a = numpy.stack([a_fragments(a) for a, _, _ in matrices])
    b = numpy.stack([b_fragments(b) for _, b, _ in matrices])
    c = numpy.stack([c_fragments(c) for _, _, c in matrices])
    a, b, c = (torch.from_numpy(x.view(numpy.int32)).contiguous().view(torch.uint32).to(device) for x in (a, b, c))
    d = torch.full((len(matrices), 32, 4), 0x7FC00001, dtype=torch.int32).view(torch.uint32).to(device)
    KERNEL(1, 32, (a, b, c, d))
    fragments = d.cpu().view(torch.int32).numpy().view(numpy.uint32)
    return [c_matrix(fragments[i], SUMS[kind]) for i, (_, _, kind) in enumerate(INSTRUCTIONS)]


def test_products_of_whole_numbers_are_exact(device):
    matrices = operands(whole=True, seed=1)
    for (a, b, c), d, names in zip(matrices, run(matrices, device), INSTRUCTIONS, strict=True):
        want = a.double() @ b.double() + c.double()
        assert want.abs().max() > 100 and len(want.unique()) > 20, names
        assert torch.equal(d.double(), want), names


def test_products_of_floats_are_right_to_the_last_rounding(device):
    matrices = operands(whole=False, seed=2)
    for (a, b, c), d, (kind_a, kind_b, kind_sum) in zip(matrices, run(matrices, device), INSTRUCTIONS, strict=True):
        if kind_sum == "s32":
            continue
        want = a.double() @ b.double() + c.double()
        size = a.double().abs() @ b.double().abs() + c.double().abs()
        step = 2.0**-11 if kind_sum == "f16" else 2.0**-24
        terms = a.shape[1] + 1 if device == "cpu" and kind_sum == "f32" else 2  # roundings to nearest, each of at most the sum of sizes
        if device == "cuda":
            terms = 4 * a.shape[1] * (64 if 8 in (torch.finfo(a.dtype).bits,) else 1)  # cut off, and fp8 keeps fewer bits
        assert ((d.double() - want).abs() <= terms * step * size).all(), (kind_a, kind_b, kind_sum)


def test_integer_sums_wrap(device):
    matrices = operands(whole=True, seed=3)
    a, b, _ = matrices[4]
    matrices[4] = (a, b, torch.full((16, 8), 2**31 - 1, dtype=torch.int32))
    want = (a.long() @ b.long() + 2**31 - 1).numpy().astype(numpy.uint64).astype(numpy.uint32).view(numpy.int32)
    assert numpy.array_equal(run(matrices, device)[4].numpy(), want) and (want < 0).any() and (want > 0).any()


def test_bits_below_tf32_are_not_looked_at(device):
    matrices = operands(whole=False, seed=4)
    a, b, c = matrices[0]
    noisy = (a.view(torch.int32) | 0x1FFF).view(torch.float32)
    assert not torch.equal(a, noisy)
    assert torch.equal(run(matrices, device)[0], run([(noisy, b, c), *matrices[1:]], device)[0])


def test_clean_under_the_sanitizer():
    arguments = [torch.ones(12, 32, n, dtype=torch.int32).view(torch.uint32) for n in (4, 2, 4, 4)]
    report = sanitize(KERNEL, 1, 32, arguments)
    assert report.clean, report


def test_missing_lanes_are_found():
    arguments = [torch.ones(12, 32, n, dtype=torch.int32).view(torch.uint32) for n in (4, 2, 4, 4)]
    with pytest.raises(LaunchError, match="all 32 lanes"):
        KERNEL(1, 24, arguments)


def test_compiles_without_spills(arch):
    resources = KERNEL.resources(arch)
    assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
