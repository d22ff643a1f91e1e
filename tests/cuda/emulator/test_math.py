"""Scalar functions of device code: math, fast math, integers, conversions, rounding modes. Against float64, mpmath and exact fractions."""

import math
import random
from fractions import Fraction

import mpmath
import numpy
import pytest
import torch

from labkernels.cuda import Kernel
from tests.cuda.emulator.one_kernel import one_kernel

SOURCE = r"""#include <cuda_fp16.h>
#include <math_constants.h>
#ifndef INFINITY            // NVRTC does not have C's names
#define INFINITY CUDART_INF_F
#define NAN CUDART_NAN_F
#endif
#define ROW(value) y[row++ * n + i] = (value);
#define START int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; int row = 0;
#define MODES(name, v) ROW(name##_rn(v)) ROW(name##_rz(v)) ROW(name##_ru(v)) ROW(name##_rd(v))

__global__ void special(const float* x, const float* p, float* y, int n) {
    START
    ROW(rsqrtf(fabsf(x[i]))) ROW(rsqrt(fabsf(x[i]))) ROW(rcbrtf(x[i])) ROW(exp2f(x[i])) ROW(exp10f(x[i])) ROW(expf(x[i])) ROW(tanhf(x[i]))
    ROW(erff(x[i])) ROW(erfcf(x[i])) ROW(erfcxf(fabsf(x[i]))) ROW(sinpif(x[i])) ROW(cospif(x[i])) ROW(normcdff(x[i]))
    ROW(erfinvf(2 * p[i] - 1)) ROW(erfcinvf(2 * p[i])) ROW(normcdfinvf(p[i])) ROW(norm3df(x[i], p[i], 2.0f)) ROW(rhypotf(x[i], p[i]))
    ROW(norm4df(x[i], p[i], 1.0f, 2.0f)) ROW(rnorm3df(x[i], p[i], 2.0f)) ROW(log1pf(p[i])) ROW(hypotf(x[i], p[i]))
}

__global__ void fast(const float* x, const float* p, float* y, int n) {
    START
    float sine, cosine;
    __sincosf(x[i], &sine, &cosine);
    ROW(__expf(x[i])) ROW(__exp10f(x[i])) ROW(__logf(p[i])) ROW(__log2f(p[i])) ROW(__log10f(p[i])) ROW(__sinf(x[i])) ROW(__cosf(x[i]))
    ROW(sine) ROW(cosine) ROW(__powf(p[i], x[i])) ROW(__fdividef(x[i], p[i])) ROW(__frsqrt_rn(p[i])) ROW(__tanf(x[i] * 0.1f))
}

__global__ void corners(const float* x, const float* z, float* y, int n) {
    START
    ROW(fminf(x[i], z[i])) ROW(fmaxf(x[i], z[i])) ROW(min(x[i], z[i])) ROW(max(x[i], z[i])) ROW(__saturatef(x[i])) ROW(__fdividef(x[i], z[i]))
    ROW((float)isnan(x[i])) ROW((float)isinf(x[i])) ROW((float)isfinite(x[i])) ROW((float)signbit(x[i]))
    ROW((float)min((double)x[i], (double)z[i])) ROW(copysignf(1.0f, x[i])) ROW(i % 2 ? INFINITY : CUDART_INF_F) ROW(i % 2 ? NAN : CUDART_NAN_F)
}

__global__ void rounded(const float* a, const float* b, const float* c, float* y, int n) {
    START
#define MODE(suffix) ROW(__fadd_##suffix(a[i], b[i])) ROW(__fsub_##suffix(a[i], b[i])) ROW(__fmul_##suffix(a[i], b[i])) ROW(__fdiv_##suffix(a[i], b[i])) \
    ROW(__frcp_##suffix(b[i])) ROW(__fsqrt_##suffix(fabsf(b[i]))) ROW(__fmaf_##suffix(a[i], b[i], c[i]))
    MODE(rn) MODE(rz) MODE(ru) MODE(rd)
    ROW(fmaf(a[i], b[i], c[i]))
}

__global__ void rounded_double(const double* a, const double* b, double* y, int n) {
    START
#define MODE_D(suffix) ROW(__dadd_##suffix(a[i], b[i])) ROW(__dmul_##suffix(a[i], b[i])) ROW(__ddiv_##suffix(a[i], b[i])) ROW(__fma_##suffix(a[i], b[i], 1.0))
    MODE_D(rn) MODE_D(rz) MODE_D(ru) MODE_D(rd)
}

__global__ void to_integer(const float* x, const double* z, long long* y, int n) {
    START
    MODES(__float2int, x[i]) MODES(__float2uint, x[i]) MODES(__float2ll, x[i]) MODES(__float2ull, x[i])
    MODES(__double2int, z[i]) MODES(__double2uint, z[i]) MODES(__double2ll, z[i]) MODES(__double2ull, z[i])
}

__global__ void from_integer(const int* x, const long long* z, const double* d, double* y, int n) {
    START
    MODES(__int2float, x[i]) MODES(__uint2float, (unsigned)x[i]) MODES(__ll2float, z[i]) MODES(__ull2float, (unsigned long long)z[i])
    MODES(__double2float, d[i]) MODES(__ll2double, z[i]) MODES(__ull2double, (unsigned long long)z[i])
    ROW(__int2double_rn(x[i])) ROW(__uint2double_rn((unsigned)x[i]))
}

__global__ void integers(const int* a, const int* b, const long long* c, const long long* d, long long* y, int n) {
    START
    unsigned ua = a[i], ub = b[i];
    unsigned long long uc = c[i], ud = d[i];
    ROW(__popc(ua)) ROW(__popcll(uc)) ROW(__clz(a[i])) ROW(__clzll(c[i])) ROW(__ffs(a[i])) ROW(__ffsll(c[i])) ROW(__brev(ua)) ROW((long long)__brevll(uc))
    ROW(__funnelshift_l(ua, ub, i)) ROW(__funnelshift_r(ua, ub, i)) ROW(__funnelshift_lc(ua, ub, i % 40)) ROW(__funnelshift_rc(ua, ub, i % 40))
    ROW(__byte_perm(ua, ub, (unsigned)c[i])) ROW(__mulhi(a[i], b[i])) ROW(__umulhi(ua, ub)) ROW(__mul64hi(c[i], d[i])) ROW((long long)__umul64hi(uc, ud))
    ROW(__mul24(a[i], b[i])) ROW(__umul24(ua, ub)) ROW(__sad(a[i], b[i], 5u)) ROW(__usad(ua, ub, 5u)) ROW(__hadd(a[i], b[i])) ROW(__rhadd(a[i], b[i]))
    ROW(__uhadd(ua, ub)) ROW(__urhadd(ua, ub)) ROW(__dp4a(a[i], b[i], 7)) ROW(__dp4a(ua, ub, 7u)) ROW(__dp2a_lo(a[i], b[i], 7)) ROW(__dp2a_hi(ua, ub, 7u))
    ROW(min(a[i], b[i])) ROW(max(ua, ub)) ROW(max(c[i], d[i])) ROW((long long)min(uc, ud)) ROW(umin(ua, ub)) ROW(__fns(ua, 3, 2)) ROW(__fns(ua, 29, -2)) ROW(abs(a[i]))
}

__global__ void casts(const float* x, const double* z, float* back, double* back_double, int* y, long long* w, int n) {
    START
    ROW(__float_as_int(x[i])) ROW((int)__float_as_uint(x[i])) ROW(__double2hiint(z[i])) ROW(__double2loint(z[i]))
    w[i] = __double_as_longlong(z[i]);
    back[i] = i % 2 ? __int_as_float(y[i]) : __uint_as_float((unsigned)y[i]);
    back_double[i] = i % 2 ? __longlong_as_double(w[i]) : __hiloint2double(y[2 * n + i], y[3 * n + i]);
}

__global__ void hints(const float4* a, const __half2* h, const unsigned char* c, float4* b, __half2* g, unsigned char* d, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    __stcs(&b[i], i % 2 ? __ldg(&a[i]) : __ldcs(&a[i]));
    __stcg(&g[i], i % 2 ? __ldcg(&h[i]) : __ldca(&h[i]));
    __stwt(&d[i], __ldcv(&c[i]));
}
"""
N = 3000


def launch(name: str, device: str, n: int, *tensors: torch.Tensor) -> None:
    one_kernel(SOURCE, name)((n + 127) // 128, 128, (*(t.to(device) for t in tensors), n))


def rows(count: int, device: str, n: int = N, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.full((count, n), math.nan if dtype.is_floating_point else -77, dtype=dtype, device=device)


def spread(n: int, seed: int, exponents: tuple[int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    scale = 2.0 ** torch.randint(*exponents, (n,), generator=generator)
    return (torch.randn(n, generator=generator, dtype=torch.float64) * scale).to(dtype)


def integers(n: int, seed: int, bits: int) -> torch.Tensor:
    """Integers of every size, and the extreme ones."""
    generator = random.Random(seed)
    values = [generator.getrandbits(bits) - 2 ** (bits - 1) >> generator.randrange(bits) for _ in range(n - 5)]
    return torch.tensor([0, -1, 1, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, *values], dtype=torch.int64)


def ulps(got: torch.Tensor, want: numpy.ndarray) -> float:
    """The largest distance from the float64 reference in units of a float32's last place."""
    got = got.cpu().double().numpy()
    unit = numpy.maximum(numpy.spacing(numpy.abs(want).astype(numpy.float32)).astype(numpy.float64), 2.0**-149)
    assert numpy.array_equal(numpy.isnan(got), numpy.isnan(want))
    error = numpy.where((got == want) | numpy.isnan(want), 0, numpy.abs(got - want) / unit)
    return float(numpy.max(error))


def signed(value: int, bits: int = 64) -> int:
    value &= 2**bits - 1
    return value - 2**bits if value >= 2 ** (bits - 1) else value


def test_special_functions(device):
    x, p = spread(N, 1, (-6, 4)).clamp(-30, 30), torch.rand(N, generator=torch.Generator().manual_seed(2)).clamp(1e-7, 0.999)
    y = rows(22, device)
    launch("special", device, N, x, p, y)
    a, b = x.double(), p.double()
    folded, probability = 2 * p - 1, 2 * p
    pi_sine = numpy.array([float(mpmath.sinpi(mpmath.mpf(v))) for v in a.tolist()])
    pi_cosine = numpy.array([float(mpmath.cospi(mpmath.mpf(v))) for v in a.tolist()])
    inverse = torch.tensor([float(mpmath.erfinv(1 - mpmath.mpf(v))) for v in probability.double().tolist()], dtype=torch.float64)
    want = [
        a.abs() ** -0.5, a.abs() ** -0.5, 1 / torch.from_numpy(numpy.cbrt(a.numpy())), torch.exp2(a), 10**a, a.exp(), a.tanh(),
        torch.erf(a), torch.erfc(a), torch.special.erfcx(a.abs()), torch.from_numpy(pi_sine), torch.from_numpy(pi_cosine), torch.erfc(-a * 0.5**0.5) / 2,
        torch.erfinv(folded.double()), inverse, torch.special.ndtri(b), (a * a + b * b + 4) ** 0.5, (a * a + b * b) ** -0.5,
        (a * a + b * b + 5) ** 0.5, (a * a + b * b + 4) ** -0.5, torch.log1p(b), (a * a + b * b) ** 0.5,
    ]
    for row, reference in enumerate(want):
        assert ulps(y[row], reference.numpy()) <= (8 if device == "cuda" else 4), f"row {row}"


def test_ends_of_inverse_functions(device):
    p = torch.tensor([0.0, 1.0, 0.5, 1e-30, -0.25])
    y = rows(22, device, 5)
    launch("special", device, 5, torch.tensor([0.0, -0.5, 1.5, 1e30, 3.0]), p, y)
    assert y[13].tolist()[:3] == [-math.inf, math.inf, 0.0] and math.isnan(y[13][4])
    assert y[14].tolist()[:3] == [math.inf, -math.inf, 0.0] and math.isnan(y[14][4])
    assert y[15].tolist()[:3] == [-math.inf, math.inf, 0.0] and y[15, 3].item() == pytest.approx(-11.4640, abs=1e-3)
    assert y[10].tolist() == [0.0, -1.0, -1.0, 0.0, 0.0] and y[11].tolist() == [1.0, 0.0, 0.0, 1.0, -1.0]
    assert y[0, 0] == math.inf and y[9, 3].item() == pytest.approx(5.6418958e-31, rel=1e-5)


def test_fast_math(device):
    x, p = spread(N, 3, (-5, 3)).clamp(-9, 9), torch.rand(N, generator=torch.Generator().manual_seed(4)) * 3 + 0.01
    y = rows(13, device)
    launch("fast", device, N, x, p, y)
    a, b = x.double(), p.double()
    tenth = (x * torch.tensor(0.1)).double()
    want = [a.exp(), 10**a, b.log(), b.log2(), b.log10(), a.sin(), a.cos(), a.sin(), a.cos(), b**a, a / b, b**-0.5, tenth.tan()]
    for row, reference in enumerate(want):
        if device == "cuda":
            torch.testing.assert_close(y[row].cpu().double(), reference, rtol=2e-5, atol=2e-6)
        else:
            assert ulps(y[row], reference.numpy()) <= 2, f"row {row}"


def test_nan_loses_and_infinities_are_known(device):
    inf, nan = math.inf, math.nan
    x = torch.tensor([nan, 1.0, nan, -inf, 2.0, -3.0, 0.25, inf, 1.0, -0.0])
    z = torch.tensor([1.0, nan, nan, 5.0, inf, 2.0, 0.5, 2.0**127, 2.0**127, 3.0])
    y = rows(14, device, 10)
    launch("corners", device, 10, x, z, y)
    smaller, larger = torch.fmin(x, z), torch.fmax(x, z)
    want = [smaller, larger, smaller, larger, [0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 0.25, 1.0, 1.0, 0.0], [nan, nan, nan, -inf, 0.0, -1.5, 0.5, nan, 0.0, -0.0]]
    want += [x.isnan().float(), x.isinf().float(), x.isfinite().float(), None, smaller, None, torch.full((10,), inf), torch.full((10,), nan)]
    for row, expected in enumerate(want):
        if expected is not None:
            torch.testing.assert_close(y[row].cpu(), torch.as_tensor(expected), rtol=0, atol=0, equal_nan=True)
    assert y[9].tolist()[1:] == [0, 0, 1, 0, 1, 0, 0, 0, 1] and y[11, 9] == -1


def between(value: Fraction, nearest: float, zero: float, up: float, down: float, dtype: type) -> None:
    """The four roundings of one exact value: neighbours around it, the nearer one, the one towards zero."""
    assert Fraction(down) <= value <= Fraction(up)
    if Fraction(down) != value:
        assert float(numpy.nextafter(dtype(down), dtype(math.inf))) == up
    assert nearest in (down, up) and abs(Fraction(nearest) - value) == min(value - Fraction(down), Fraction(up) - value)
    assert zero == (down if value > 0 else up)


def test_rounding_modes_bracket_the_exact_result(device):
    a, b, c = spread(N, 5, (-12, 12)), spread(N, 6, (-12, 12)), spread(N, 7, (-12, 12))
    y = rows(29, device)
    launch("rounded", device, N, a, b, c, y)
    table = y.cpu().double().tolist()
    inexact = 0
    for i, (p, q, r) in enumerate(zip(*(map(Fraction, t.tolist()) for t in (a, b, c)), strict=True)):
        exact = [p + q, p - q, p * q, p / q, 1 / q, None, p * q + r]
        for operation, value in enumerate(exact):
            if value is None:                                              # a square root: its bounds squared hold the argument
                nearest, zero, up, down = (Fraction(table[7 * m + operation][i]) for m in range(4))
                assert down**2 <= abs(q) <= up**2 and zero == down and nearest in (up, down)
            else:
                between(value, *(table[7 * m + operation][i] for m in range(4)), numpy.float32)
                inexact += table[14 + operation][i] != table[21 + operation][i]
        assert table[28][i] == table[6][i]
    assert inexact > 5 * N                                                 # else every mode would pass as another


def test_rounding_modes_of_double(device):
    a, b = spread(500, 8, (-30, 30), torch.float64), spread(500, 9, (-30, 30), torch.float64)
    y = rows(16, device, 500, torch.float64)
    launch("rounded_double", device, 500, a, b, y)
    table = y.tolist()
    for i, (p, q) in enumerate(zip(map(Fraction, a.tolist()), map(Fraction, b.tolist()), strict=True)):
        for operation, value in enumerate([p + q, p * q, p / q, p * q + 1]):
            between(value, *(table[4 * m + operation][i] for m in range(4)), numpy.float64)


def test_conversions_to_integers(device):
    x = torch.cat([spread(N - 10, 10, (-3, 70)), torch.tensor([0.5, 1.5, -0.5, -2.5, math.inf, -math.inf, math.nan, 2.0**31, -(2.0**63), 3e38])])
    z = torch.cat([spread(N - 10, 11, (-3, 70), torch.float64), x[-10:].double()])
    y = rows(32, device, dtype=torch.int64)
    launch("to_integer", device, N, x, z, y)
    row = 0
    for values in (x, z):
        for low, high in [(-(2**31), 2**31 - 1), (0, 2**32 - 1), (-(2**63), 2**63 - 1), (0, 2**64 - 1)]:
            nan = 0 if values is x and high < 2**32 else signed(-(2**31) if high < 2**32 else -(2**63))
            if (low, high) == (0, 2**32 - 1) and values is z:
                nan = 2**31
            for mode in (numpy.rint, numpy.trunc, numpy.ceil, numpy.floor):
                whole = mode(values.double().numpy()).tolist()
                want = [nan if math.isnan(v) else signed(high if v >= high else low if v <= low else int(v)) for v in whole]
                assert y[row].tolist() == want, f"row {row}"
                row += 1


def test_conversions_from_integers_and_doubles(device):
    x, z = integers(N, 12, 32), integers(N, 13, 64)
    d = spread(N, 14, (-30, 30), torch.float64)
    y = rows(30, device, dtype=torch.float64)
    launch("from_integer", device, N, x.int(), z, d, y)
    table = y.tolist()
    unsigned = [v % 2**32 for v in x.tolist()], [v % 2**64 for v in z.tolist()]
    sources = [x.tolist(), unsigned[0], z.tolist(), unsigned[1], d.tolist(), z.tolist(), unsigned[1]]
    for source, values in enumerate(sources):
        for i, value in enumerate(values):
            if value != 0:
                between(Fraction(value), *(table[4 * source + m][i] for m in range(4)), numpy.float32 if source < 5 else numpy.float64)
    assert table[28] == [float(v) for v in x.tolist()] and table[29] == [float(v) for v in unsigned[0]]


def byte(word: int, i: int, is_signed: bool) -> int:
    return signed(word >> 8 * i, 8) if is_signed else word >> 8 * i & 0xFF


def reference_integers(i: int, a: int, b: int, c: int, d: int) -> list[int]:
    """What each row of `integers` must hold, in Python's unbounded integers."""
    ua, ub, uc, ud = a % 2**32, b % 2**32, c % 2**64, d % 2**64
    wide, shift = ub << 32 | ua, i % 40
    source = [byte(wide, k, False) for k in range(8)]
    permuted = 0
    for k in range(4):
        nibble = c >> 4 * k & 15
        value = source[nibble & 7]
        permuted |= (value if nibble < 8 else 255 * (value >> 7)) << 8 * k
    set_bits = [k for k in range(32) if ua >> k & 1]
    above, below = [k for k in set_bits if k >= 3], [k for k in reversed(set_bits) if k <= 29]
    low24 = signed(a, 24), signed(b, 24)
    reverse = lambda v, bits: int(f"{v:0{bits}b}"[::-1], 2)
    return [
        ua.bit_count(), uc.bit_count(), 32 - ua.bit_length(), 64 - uc.bit_length(), (ua & -ua).bit_length(), (uc & -uc).bit_length(), reverse(ua, 32), reverse(uc, 64),
        wide << i % 32 >> 32 & 0xFFFFFFFF, wide >> i % 32 & 0xFFFFFFFF, wide << min(shift, 32) >> 32 & 0xFFFFFFFF, wide >> min(shift, 32) & 0xFFFFFFFF,
        permuted, a * b >> 32, ua * ub >> 32, c * d >> 64, uc * ud >> 64,
        signed(low24[0] * low24[1], 32), (ua & 0xFFFFFF) * (ub & 0xFFFFFF) % 2**32, (abs(a - b) + 5) % 2**32, (abs(ua - ub) + 5) % 2**32, a + b >> 1, a + b + 1 >> 1,
        ua + ub >> 1, ua + ub + 1 >> 1, 7 + sum(byte(a, k, True) * byte(b, k, True) for k in range(4)), 7 + sum(byte(ua, k, False) * byte(ub, k, False) for k in range(4)),
        7 + signed(a, 16) * byte(b, 0, True) + (a >> 16) * byte(b, 1, True), 7 + (ua & 0xFFFF) * byte(ub, 2, False) + (ua >> 16) * byte(ub, 3, False),
        min(a, b), max(ua, ub), max(c, d), min(uc, ud), min(ua, ub), above[1] if len(above) > 1 else 2**32 - 1, below[1] if len(below) > 1 else 2**32 - 1, signed(abs(a), 32),
    ]


def test_integer_intrinsics(device):
    a, b = integers(N, 15, 32), integers(N, 16, 32).flip(0)
    c, d = integers(N, 17, 64), integers(N, 18, 64).flip(0)
    y = rows(37, device, dtype=torch.int64)
    launch("integers", device, N, a.int(), b.int(), c, d, y)
    got = y.T.tolist()
    for i, values in enumerate(zip(a.tolist(), b.tolist(), c.tolist(), d.tolist(), strict=True)):
        want = [signed(v) for v in reference_integers(i, *values)]
        assert got[i] == want, f"{values}: rows {[r for r in range(37) if got[i][r] != want[r]]}"


def test_casts_keep_every_bit(device):
    x, z = spread(N, 19, (-40, 40)), spread(N, 20, (-40, 40), torch.float64)
    back, back_double = rows(1, device)[0], rows(1, device, dtype=torch.float64)[0]
    y, w = rows(4, device, dtype=torch.int32), rows(1, device, dtype=torch.int64)[0]
    launch("casts", device, N, x, z, back, back_double, y, w)
    words = z.view(torch.int32).view(N, 2)
    assert torch.equal(y.cpu(), torch.stack([x.view(torch.int32), x.view(torch.int32), words[:, 1], words[:, 0]]))
    assert torch.equal(back.cpu(), x) and torch.equal(w.cpu(), z.view(torch.int64)) and torch.equal(back_double.cpu(), z)


def test_loads_and_stores_with_cache_hints(device):
    a, h, c = torch.randn(64, 4), torch.randn(64, 2).half(), torch.randint(0, 256, (64,), dtype=torch.uint8)
    b, g, d = (torch.zeros_like(t, device=device) for t in (a, h, c))
    launch("hints", device, 64, a, h, c, b, g, d)
    for got, want in ((b, a), (g, h), (d, c)):
        assert torch.equal(got.cpu(), want)


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "special").resources(arch="sm_90").registers > 0
