"""Integer intrinsics, conversions with a rounding mode and casts of bits, against Python's unbounded integers."""

import math
from fractions import Fraction

import numpy
import torch

from labkernels.cuda import Kernel
from tests.cuda.emulator.one_kernel import one_kernel
from tests.cuda.emulator.samples import N, between, integers, rows, signed, spread

SOURCE = r"""#define ROW(value) y[row++ * n + i] = (value);
#define START int i = blockIdx.x * blockDim.x + threadIdx.x; if (i >= n) return; int row = 0;
#define MODES(name, v) ROW(name##_rn(v)) ROW(name##_rz(v)) ROW(name##_ru(v)) ROW(name##_rd(v))

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
"""


def launch(name: str, device: str, n: int, *tensors: torch.Tensor) -> None:
    one_kernel(SOURCE, name)((n + 127) // 128, 128, (*(t.to(device) for t in tensors), n))


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
    permuted = sum(source[c >> 4 * k & 7] << 8 * k for k in range(4))
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


def test_the_same_sources_compile_for_a_gpu():
    assert Kernel(SOURCE, "integers").resources(arch="sm_90").registers > 0
