"""half and bfloat16 in device code: every value through every unary function, and arithmetic rounded once.

References are computed in float64, or in exact fractions, and rounded once to the narrow type.
"""

import math
import random
from fractions import Fraction

import numpy
import pytest
import torch

from labkernels.cuda import Kernel
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#include <cuda_fp16.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
template <class T> struct pair_of;
template <> struct pair_of<__half> { using type = __half2; };
template <> struct pair_of<__nv_bfloat16> { using type = __nv_bfloat162; };
#define UNARY(X) X(sqrt) X(rsqrt) X(rcp) X(exp) X(exp2) X(exp10) X(log) X(log2) X(log10) X(sin) X(cos) X(tanh) \
                 X(trunc) X(ceil) X(floor) X(rint)

// y[2 f][i] is the scalar function f of x[i], y[2 f + 1][i] the same by its form for pairs.
template <class T> __global__ void unary(const T* x, T* y, int n) {
    using Pair = typename pair_of<T>::type;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int f = 0;
#define CALL(name) y[f++ * n + i] = h##name(x[i]); y[f++ * n + i] = h2##name(Pair(x[n - 1 - i], x[i])).y;
    UNARY(CALL)
}

template <class T> __global__ void binary(const T* a, const T* b, T* y, int n) {
    using Pair = typename pair_of<T>::type;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    Pair p(a[i], b[i]), q(b[i], a[i]);
    y[0 * n + i] = a[i] + b[i];
    y[1 * n + i] = a[i] - b[i];
    y[2 * n + i] = a[i] * b[i];
    y[3 * n + i] = a[i] / b[i];
    y[4 * n + i] = (p + q).x;
    y[5 * n + i] = (p - q).x;
    y[6 * n + i] = __hmul2(p, q).y;
    y[7 * n + i] = __hmax(a[i], b[i]);
    y[8 * n + i] = __hmin(a[i], b[i]);
    y[9 * n + i] = -__habs(a[i]);
    T sum = a[i];
    sum += b[i];
    y[10 * n + i] = a[i] < b[i] ? sum : a[i] == b[i] ? T(0.0f) : sum;
}

template <class T> __global__ void fused(const T* a, const T* b, const T* c, T* y, int n) {
    using Pair = typename pair_of<T>::type;
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[0 * n + i] = __hfma(a[i], b[i], c[i]);
    y[1 * n + i] = __hfma2(Pair(c[i], a[i]), Pair(a[i], b[i]), Pair(b[i], c[i])).y;
    y[2 * n + i] = __hfma_relu(a[i], b[i], c[i]);
    y[3 * n + i] = __hfma_sat(a[i], b[i], c[i]);
    y[4 * n + i] = __hcmadd(Pair(a[i], b[i]), Pair(c[i], a[i]), Pair(b[i], c[i])).x;
}

__global__ void to_integer(const __half* h, const __nv_bfloat16* b, long long* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int row = 0;
#define PUT(value) y[row++ * n + i] = static_cast<long long>(value);
#define MODES(kind) PUT(__half2##kind##_rn(h[i])) PUT(__half2##kind##_rz(h[i])) PUT(__half2##kind##_ru(h[i])) PUT(__half2##kind##_rd(h[i])) \
                    PUT(__bfloat162##kind##_rn(b[i])) PUT(__bfloat162##kind##_rz(b[i])) PUT(__bfloat162##kind##_ru(b[i])) PUT(__bfloat162##kind##_rd(b[i]))
    MODES(short) MODES(ushort) MODES(int) MODES(uint) MODES(ll)
}

__global__ void from_integer(const int* x, const long long* z, __nv_bfloat16* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    y[0 * n + i] = __int2bfloat16_rn(x[i]);
    y[1 * n + i] = __int2bfloat16_rz(x[i]);
    y[2 * n + i] = __int2bfloat16_ru(x[i]);
    y[3 * n + i] = __int2bfloat16_rd(x[i]);
    y[4 * n + i] = __ll2bfloat16_rn(z[i]);
    y[5 * n + i] = __ll2bfloat16_rz(z[i]);
    y[6 * n + i] = __ll2bfloat16_ru(z[i]);
    y[7 * n + i] = __ll2bfloat16_rd(z[i]);
}

__global__ void convert(const float* x, __half* h, __nv_bfloat16* b, __nv_fp8_e4m3* e4m3, __nv_fp8_e5m2* e5m2, float* back, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half(x[i]);
    __nv_bfloat162 pair = __float22bfloat162_rn(make_float2(-x[i], x[i]));
    b[i] = pair.y;
    e4m3[i] = __nv_fp8_e4m3(x[i]);
    e5m2[i] = __nv_fp8_e5m2(x[i]);
    float2 wide = __half22float2(__floats2half2_rn(x[i], 1.0f));
    back[i] = wide.x + __bfloat162float(b[i]) + float(e4m3[i]) + float(e5m2[i]);
}
"""
TYPES = {"__half": torch.float16, "__nv_bfloat16": torch.bfloat16}
PRECISION = {torch.float16: (11, -14), torch.bfloat16: (8, -126)}          # bits of the significand, smallest normal exponent
UNARY = [
    numpy.sqrt, lambda x: 1 / numpy.sqrt(x), lambda x: 1 / x, numpy.exp, numpy.exp2, lambda x: 10.0**x, numpy.log, numpy.log2, numpy.log10,
    numpy.sin, numpy.cos, numpy.tanh, numpy.trunc, numpy.ceil, numpy.floor, numpy.rint,
]
NOT_EXACT_ON_A_GPU = {"sin", "cos", "tanh", "exp10", "log10", "exp", "log", "log2", "exp2", "rsqrt", "rcp"}


def launch(name: str, device: str, n: int, *tensors: torch.Tensor) -> None:
    one_kernel(SOURCE, name)((n + 255) // 256, 256, (*(t.to(device) for t in tensors), n))


def narrow(x: numpy.ndarray, dtype: torch.dtype) -> torch.Tensor:
    """float64 rounded once to nearest even; torch's own conversion goes through float32 and rounds twice."""
    if dtype == torch.float16:
        with numpy.errstate(over="ignore"):
            return torch.from_numpy(x.astype(numpy.float16))
    single = x.astype(numpy.float32)
    bits = single.view(numpy.uint32).copy()
    inexact = numpy.isfinite(single) & (single != x) & (bits & 1 == 0)      # make the float32 odd where it is not exact
    bits[inexact] += numpy.where(numpy.abs(x) > numpy.abs(single), 1, -1).astype(numpy.uint32)[inexact]
    return torch.from_numpy(bits.view(numpy.float32).copy()).to(torch.bfloat16)


def exact(value: Fraction, dtype: torch.dtype) -> float:
    """A fraction rounded once to nearest even, as a Python float."""
    precision, smallest = PRECISION[dtype]
    if value == 0:
        return 0.0
    exponent = max(math.floor(math.log2(abs(value))), smallest)
    unit = Fraction(2) ** (exponent - precision + 1)
    if abs(value) >= Fraction(2) ** (exponent + 1):                         # log2 rounded down across a power of two
        unit *= 2
    rounded = float(round(value / unit) * unit)
    return math.copysign(math.inf, rounded) if abs(rounded) > torch.finfo(dtype).max else rounded


def bits(x: torch.Tensor) -> torch.Tensor:
    """The 16 bits of each value; all NaNs alike."""
    return torch.where(x.isnan(), torch.tensor(0x7FFF, dtype=torch.int16), x.view(torch.int16))


def every_value(dtype: torch.dtype) -> torch.Tensor:
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)


def sample(dtype: torch.dtype, n: int, seed: int, exponents: tuple[int, int]) -> torch.Tensor:
    """Random signs, significands and exponents."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(*exponents, (n,), generator=generator)
    sign = torch.randint(0, 2, (n,), generator=generator) * 2 - 1
    return (sign * (1 + torch.rand(n, generator=generator, dtype=torch.float64)) * 2.0**exponent).to(dtype)


@pytest.mark.parametrize("ctype", TYPES)
def test_every_value_through_every_unary_function(ctype, device):
    dtype = TYPES[ctype]
    x = every_value(dtype)
    y = torch.full((2 * len(UNARY), len(x)), math.nan, dtype=dtype, device=device)
    launch(f"unary<{ctype}>", device, len(x), x, y)
    y = y.cpu()
    names = "sqrt rsqrt rcp exp exp2 exp10 log log2 log10 sin cos tanh trunc ceil floor rint".split()
    wide = x.double().numpy()
    for row, (name, function) in enumerate(zip(names, UNARY, strict=True)):
        with numpy.errstate(all="ignore"):
            want = bits(narrow(function(wide), dtype))
        for got in (bits(y[2 * row]), bits(y[2 * row + 1])):
            if device == "cuda" and name in NOT_EXACT_ON_A_GPU:
                ordered = [torch.where(b < 0, -(b.int() & 0x7FFF), b.int()) for b in (got, want)]
                assert (ordered[0] - ordered[1]).abs().max() <= 2, name
            else:
                wrong = (got != want).nonzero().flatten()
                assert len(wrong) == 0, f"h{name}({x[wrong[0]]}) has bits {got[wrong[0]]:x}, should be {want[wrong[0]]:x}"


@pytest.mark.parametrize("ctype", TYPES)
def test_arithmetic_is_rounded_once(ctype, device):
    dtype, n = TYPES[ctype], 20000
    a, b = sample(dtype, n, 1, (-9, 9)), sample(dtype, n, 2, (-9, 9))
    a[:4], b[:4] = torch.tensor([math.nan, 1.0, math.inf, 2.0], dtype=dtype), torch.tensor([1.0, math.nan, -math.inf, 2.0], dtype=dtype)
    y = torch.full((11, n), math.nan, dtype=dtype, device=device)
    launch(f"binary<{ctype}>", device, n, a, b, y)
    wide_a, wide_b = a.double().numpy(), b.double().numpy()
    with numpy.errstate(all="ignore"):
        add, sub, mul, div = wide_a + wide_b, wide_a - wide_b, wide_a * wide_b, wide_a / wide_b
    larger, smaller = numpy.fmax(wide_a, wide_b), numpy.fmin(wide_a, wide_b)
    want = [add, sub, mul, div, add, sub, mul, larger, smaller, -abs(wide_a), numpy.where(wide_a == wide_b, 0, add)]
    for row, expected in enumerate(want):
        assert torch.equal(bits(y[row].cpu()), bits(narrow(expected, dtype))), f"row {row}"


@pytest.mark.parametrize("ctype", TYPES)
def test_fused_multiply_add_is_rounded_once(ctype, device):
    """Products near half a unit of c's last place, where a second rounding shows."""
    dtype, n = TYPES[ctype], 20000
    precision, _ = PRECISION[dtype]
    generator = random.Random(3)
    c = sample(dtype, n, 3, (3, 5))
    a, b = sample(dtype, n, 4, (-precision + 1, 0)), sample(dtype, n, 5, (-1, 4))
    for i in range(n // 2):                                                # c's tie, a little more and a little less
        unit = 2.0 ** (math.floor(math.log2(abs(c[i].item()))) - precision + 1)
        step = 2.0 ** (1 - precision)
        a[i], b[i] = unit / 2 * (1 + generator.choice([-1, 0, 1]) * step), 1 + generator.choice([-1, 0, 1]) * step
    far = slice(n - 1000, n)                                               # a sum whose parts do not fit one double
    a[far], b[far] = a[far] * 2.0**-4, b[far] * 2.0**-5
    c[far] = c[far] * 2.0**8
    y = torch.full((5, n), math.nan, dtype=dtype, device=device)
    launch(f"fused<{ctype}>", device, n, a, b, c, y)
    y = y.cpu()
    triples = [tuple(Fraction(v) for v in t) for t in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)]
    want = [exact(p * q + r, dtype) for p, q, r in triples]
    assert y[0].tolist() == want
    assert y[1].tolist() == want
    assert y[2].tolist() == [max(v, 0.0) for v in want]
    assert y[3].tolist() == [min(max(v, 0.0), 1.0) for v in want]
    complex_real = [exact(-q * p + Fraction(exact(p * r + q, dtype)), dtype) for p, q, r in triples]
    assert y[4].tolist() == complex_real
    twice = (a * b + c).tolist()                                           # the sample must catch what rounds twice
    assert sum(t != w for t, w in zip(twice, want, strict=True)) > n // 100


def test_fused_multiply_add_keeps_what_a_double_loses(device):
    """1.5 * (1 + 2^-7) lies halfway between two bfloat16s; 2^-80, too small for one double with it, says which way."""
    dtype = torch.bfloat16
    a = torch.tensor([1.5, 1.5, math.nan, math.inf, 3e38], dtype=dtype)
    b = torch.tensor([1 + 2.0**-7, 1 + 2.0**-7, 1.0, 0.0, 3e38], dtype=dtype)
    c = torch.tensor([-(2.0**-80), 2.0**-80, 1.0, 1.0, 1.0], dtype=dtype)
    y = torch.full((5, 5), 7.0, dtype=dtype, device=device)
    launch("fused<__nv_bfloat16>", device, 5, a, b, c, y)
    assert y[0].tolist()[:2] == [1.5 + 2.0**-7, 1.5 + 2.0**-6] and y[0, 2:4].isnan().all() and y[0, 4] == math.inf
    assert y[3].tolist() == [1.0, 1.0, 0.0, 0.0, 1.0]                      # saturation makes NaN zero


def test_conversions_to_integers_saturate(device):
    h, b = every_value(torch.float16), every_value(torch.bfloat16)
    y = torch.full((40, len(h)), -7, dtype=torch.int64, device=device)
    launch("to_integer", device, len(h), h, b, y)
    rounding = [numpy.rint, numpy.trunc, numpy.ceil, numpy.floor]
    ranges = [(-(2**15), 2**15 - 1), (0, 2**16 - 1), (-(2**31), 2**31 - 1), (0, 2**32 - 1), (-(2**63), 2**63 - 1)]
    row = 0
    for low, high in ranges:
        for x in (h, b):
            values = x.double().numpy()
            for mode in rounding:
                whole = [None if math.isnan(v) else v for v in mode(values).tolist()]
                nan = -(2**63) if high == 2**63 - 1 else 0
                want = [nan if v is None else high if v >= high else low if v <= low else int(v) for v in whole]
                assert y[row].tolist() == want, f"row {row}"
                row += 1


def test_integers_to_bfloat16_in_every_direction(device):
    generator = torch.Generator().manual_seed(6)
    x = torch.randint(-(2**31), 2**31, (4000,), generator=generator) // 2 ** torch.randint(0, 31, (4000,), generator=generator)
    z = torch.randint(-(2**62), 2**62, (4000,), generator=generator)
    z[:2000] = (z[:2000] >> 54 << 54) + torch.randint(-2, 3, (2000,), generator=generator)      # just beside a bfloat16
    y = torch.full((8, 4000), math.nan, dtype=torch.bfloat16, device=device)
    launch("from_integer", device, 4000, x.int(), z, y)
    rows = y.cpu().double().tolist()
    for source, (nearest, zero, up, down) in ((x, rows[:4]), (z, rows[4:])):
        for value, n, z0, u, d in zip(source.tolist(), nearest, zero, up, down, strict=True):
            assert Fraction(n) == Fraction(exact(Fraction(value), torch.bfloat16))
            assert Fraction(d) <= value <= Fraction(u) and z0 == (d if value > 0 else u)
            assert n in (d, u) and (d == u) == (Fraction(n) == value)


def test_conversions_agree_with_torch(device):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(5000, generator=generator) * 2.0 ** torch.randint(-20, 9, (5000,), generator=generator)
    x = x.clamp(-440, 440)                                                 # within e4m3: torch and CUDA differ on overflow
    h, b = (torch.full((5000,), math.nan, dtype=dtype, device=device) for dtype in (torch.float16, torch.bfloat16))
    e4m3, e5m2 = (torch.zeros(5000, device=device).to(dtype) for dtype in (torch.float8_e4m3fn, torch.float8_e5m2))
    back = torch.full((5000,), math.nan, device=device)
    launch("convert", device, 5000, x, h, b, e4m3, e5m2, back)
    for got in (h, b, e4m3, e5m2):
        assert torch.equal(got.cpu().float(), x.to(got.dtype).float())
    assert torch.equal(back, h.float() + b.float() + e4m3.float() + e5m2.float())


@pytest.mark.parametrize("name", ["unary<__half>", "binary<__nv_bfloat16>", "fused<__half>"])
def test_the_same_sources_compile_for_a_gpu(name):
    assert Kernel(SOURCE, name).resources(arch="sm_90").registers > 0
