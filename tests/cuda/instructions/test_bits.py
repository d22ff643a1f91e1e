"""lop3, prmt and dp4a, bit by bit."""

import numpy
import pytest
import torch

from labkernels.cuda import Kernel

TABLES = {  # as Python computes them
    "LOP3_A & LOP3_B & LOP3_C": lambda a, b, c: a & b & c,
    "(LOP3_A & LOP3_B) | LOP3_C": lambda a, b, c: (a & b) | c,
    "LOP3_A ^ LOP3_B ^ LOP3_C": lambda a, b, c: a ^ b ^ c,
    "(LOP3_A & LOP3_C) | (LOP3_B & ~LOP3_C & 0xff)": lambda a, b, c: (a & c) | (b & ~c),
    "~(LOP3_A | LOP3_B) & 0xff": lambda a, b, c: ~(a | b),
    "~LOP3_C & 0xff": lambda a, b, c: ~c,
    "0": lambda a, b, c: 0 * a,
}
PRODUCTS = [("s8", "s8"), ("u8", "u8"), ("s8", "u8"), ("u8", "s8")]
N = 1024

KERNEL = Kernel(
    '#include "bits.cuh"\n'
    + "template <unsigned Table> __device__ void logic(unsigned a, unsigned b, unsigned c, unsigned* y) { *y = lop3<Table>(a, b, c); }\n"
    + 'extern "C" __global__ void all_bits(const unsigned* a, const unsigned* b, const unsigned* c, unsigned* y, int n) {\n'
    + "const int i = blockIdx.x * blockDim.x + threadIdx.x;\n"
    + "".join(f"logic<{table}>(a[i], b[i], c[i], &y[{k} * n + i]);\n" for k, table in enumerate(TABLES))
    + f"""
    y[{len(TABLES)} * n + i] = prmt(a[i], b[i], c[i]);
    y[{len(TABLES) + 1} * n + i] = dp4a_s8(a[i], b[i], c[i]);
    y[{len(TABLES) + 2} * n + i] = dp4a_u8(a[i], b[i], c[i]);
    y[{len(TABLES) + 3} * n + i] = dp4a_s8_u8(a[i], b[i], c[i]);
    y[{len(TABLES) + 4} * n + i] = dp4a_u8_s8(a[i], b[i], c[i]);
    }}""",
    "all_bits",
)


@pytest.fixture(scope="module")
def words() -> list[numpy.ndarray]:
    generator = numpy.random.default_rng(0)
    special = numpy.array([0, 0xFFFFFFFF, 0x80808080, 0x7F7F7F7F], numpy.uint32)
    return [numpy.concatenate([generator.permutation(special), generator.integers(0, 2**32, N - 4, dtype=numpy.uint32)]) for _ in range(3)]


@pytest.fixture
def results(words, device) -> numpy.ndarray:
    y = torch.zeros(len(TABLES) + 5, N, dtype=torch.int32).view(torch.uint32).to(device)
    KERNEL(N // 128, 128, (*(torch.from_numpy(w.view(numpy.int32)).view(torch.uint32).to(device) for w in words), y, N))
    return y.cpu().view(torch.int32).numpy().view(numpy.uint32)


def test_lop3_is_any_function_of_three_words(words, results):
    for row, (table, function) in zip(results, TABLES.items(), strict=False):
        assert numpy.array_equal(row, function(*words)), table


def test_prmt_picks_bytes_and_signs(words, results):
    low, high, selector = words
    source = numpy.stack([low, high], 1).view(numpy.uint8)  # (N, 8)
    nibbles = numpy.stack([selector >> 4 * i & 0xF for i in range(4)], 1)
    picked = numpy.take_along_axis(source, (nibbles & 7).astype(numpy.int64), 1)
    want = numpy.where(nibbles & 8, numpy.where(picked & 0x80, 0xFF, 0), picked).astype(numpy.uint8)
    assert numpy.array_equal(results[len(TABLES)].view(numpy.uint8).reshape(N, 4), want)


def test_dp4a_adds_four_products_of_bytes(words, results):
    a, b, c = words
    types = {"s8": numpy.int8, "u8": numpy.uint8}
    for row, (type_a, type_b) in zip(results[len(TABLES) + 1 :], PRODUCTS, strict=True):
        products = a.view(types[type_a]).reshape(N, 4).astype(numpy.int64) * b.view(types[type_b]).reshape(N, 4)
        assert numpy.array_equal(row, (products.sum(1) + c).astype(numpy.uint32)), (type_a, type_b)


def test_compiles_without_spills(arch):
    resources = KERNEL.resources(arch)
    assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
