"""Floating-point functions of device code: math, fast math, rounding modes. Against float64, mpmath and exact fractions."""

import math
from fractions import Fraction

import mpmath
import numpy
import pytest
import torch

from labkernels.cuda import Kernel
from tests.cuda.emulator.one_kernel import one_kernel
from tests.cuda.emulator.samples import N, between, rows, spread

SOURCE = r"""#include <cuda_fp16.h>
#include <math_constants.h>
#ifndef INFINITY            // NVRTC does not have C's names
#define INFINITY CUDART_INF_F
#define NAN CUDART_NAN_F
#endif
#define ROW(value) y[row++ * n + i] = (value);
#define START int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; int row = 0;

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

__global__ void hints(const float4* a, const __half2* h, const unsigned char* c, float4* b, __half2* g, unsigned char* d, int n) {
    int i = threadIdx.x;
    if (i >= n) return;
    __stcs(&b[i], i % 2 ? __ldg(&a[i]) : __ldcs(&a[i]));
    __stcg(&g[i], i % 2 ? __ldcg(&h[i]) : __ldca(&h[i]));
    __stwt(&d[i], __ldcv(&c[i]));
}
"""


def launch(name: str, device: str, n: int, *tensors: torch.Tensor) -> None:
    one_kernel(SOURCE, name)((n + 127) // 128, 128, (*(t.to(device) for t in tensors), n))


def ulps(got: torch.Tensor, want: numpy.ndarray) -> float:
    """The largest distance from the float64 reference in units of a float32's last place."""
    got = got.cpu().double().numpy()
    unit = numpy.maximum(numpy.spacing(numpy.abs(want).astype(numpy.float32)).astype(numpy.float64), 2.0**-149)
    assert numpy.array_equal(numpy.isnan(got), numpy.isnan(want))
    error = numpy.where((got == want) | numpy.isnan(want), 0, numpy.abs(got - want) / unit)
    return float(numpy.max(error))


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


def test_loads_and_stores_with_cache_hints(device):
    a, h, c = torch.randn(64, 4), torch.randn(64, 2).half(), torch.randint(0, 256, (64,), dtype=torch.uint8)
    b, g, d = (torch.zeros_like(t, device=device) for t in (a, h, c))
    launch("hints", device, 64, a, h, c, b, g, d)
    for got, want in ((b, a), (g, h), (d, c)):
        assert torch.equal(got.cpu(), want)


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "special").resources(arch="sm_90").registers > 0
