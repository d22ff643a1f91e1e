"""The special functions: exact to the last bit in the emulator, within PTX's bounds on a GPU."""

import numpy
import torch

from labkernels.cuda import Kernel

SOURCE = r"""
    #include "approx.cuh"
    extern "C" __global__ void floats(const float* x, float* y, int n) {
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        float* out = y + i;
        out[0 * n] = tanh_approx(x[i]); out[1 * n] = exp2_approx(x[i]); out[2 * n] = log2_approx(x[i]); out[3 * n] = rcp_approx(x[i]);
        out[4 * n] = rsqrt_approx(x[i]); out[5 * n] = sqrt_approx(x[i]); out[6 * n] = sin_approx(x[i]); out[7 * n] = cos_approx(x[i]);
    }
    extern "C" __global__ void pairs(const __half2* h, __half2* half_out, const __nv_bfloat162* b, __nv_bfloat162* bf16_out, int n) {
        const int i = blockIdx.x * blockDim.x + threadIdx.x;
        half_out[i] = tanh_approx(h[i]); half_out[n + i] = exp2_approx(h[i]);
    #if __CUDA_ARCH__ >= 900
        bf16_out[i] = tanh_approx(b[i]); bf16_out[n + i] = exp2_approx(b[i]);
    #endif
    }"""
FLOATS, PAIRS = Kernel(SOURCE, "floats"), Kernel(SOURCE, "pairs")
TINY = 2.0**-126  # below, floats are flushed to zero
N = 1024


def exact(x: numpy.ndarray) -> list[numpy.ndarray]:
    f = [numpy.tanh, numpy.exp2, numpy.log2, numpy.reciprocal, lambda v: 1 / numpy.sqrt(v), numpy.sqrt, numpy.sin, numpy.cos]
    with numpy.errstate(all="ignore"):
        return [function(x) for function in f]


def run(x: torch.Tensor, device: str) -> numpy.ndarray:
    y = torch.full((8, len(x)), 77.0).to(device)
    FLOATS(len(x) // 32, 32, (x.to(device), y, len(x)))
    return y.cpu().double().numpy()


def test_floats_are_near_the_exact_value(device):
    generator = torch.Generator().manual_seed(1)
    x = torch.cat([torch.rand(N // 2, generator=generator) * 6 - 3, torch.randn(N // 2, generator=generator).exp()])
    relative = [2**-11, 2**-22, 2**-22, 2**-23, 2**-22.9, 2**-23, 0, 0]  # on a GPU, and beside it absolute:
    absolute = [0, 0, 2**-22, 0, 0, 0, 2**-14, 2**-14]  # sin and cos are that bad only far from zero
    for name, (got, want) in enumerate(zip(run(x, device), exact(x.double().numpy()), strict=True)):
        rounding = 2**-24 * numpy.abs(want)
        allowed = rounding if device == "cpu" else 1.01 * (rounding + relative[name] * numpy.abs(want) + absolute[name])
        known = numpy.isfinite(want)
        if name in (6, 7):  # a GPU's sine and cosine hold their bound near zero only
            known &= numpy.abs(x.numpy()) <= numpy.pi
        assert (numpy.abs(got - want)[known] <= allowed[known]).all(), name
        assert numpy.isnan(got[numpy.isnan(want)]).all() and known.sum() > N // 2


def test_infinities_zeros_and_subnormals(device):
    inf, nan, below = numpy.inf, numpy.nan, TINY / 4
    x = torch.tensor([0.0, -0.0, inf, -inf, nan, below, -below, -127.5] * 4)
    got = run(x, device)[:, :8]
    want = numpy.array([
        [0, -0.0, 1, -1, nan, below, -below, -1],
        [1, 1, inf, 0, nan, 1, 1, 0],           # 2^-127.5 is subnormal: zero
        [-inf, -inf, inf, nan, nan, -inf, -inf, nan],
        [inf, -inf, 0, -0.0, nan, inf, -inf, -1 / 127.5],
        [inf, -inf, 0, nan, nan, inf, -inf, nan],
        [0, -0.0, inf, nan, nan, 0, -0.0, nan],
    ])  # fmt: skip
    for name, (row, values) in enumerate(zip(got, want, strict=False)):
        assert numpy.allclose(row, values, rtol=2**-10, atol=0, equal_nan=True), (name, row)
        zeros = values == 0
        assert numpy.array_equal(numpy.signbit(row[zeros]), numpy.signbit(values[zeros])), name


def test_pairs_are_near_the_exact_value(device):
    generator = torch.Generator().manual_seed(2)
    x = torch.rand(N, 2, generator=generator) * 8 - 4
    inputs = x.half().to(device), x.bfloat16().to(device)
    outputs = [torch.full((2, N, 2), 77.0).to(t) for t in inputs]
    PAIRS(N // 64, 64, (inputs[0], outputs[0], inputs[1], outputs[1], N))
    kinds = [(torch.float16, 2**-11, 2**-10.9, 2**-9.9), (torch.bfloat16, 2**-8, 2**-8, 2**-7)]
    if device == "cuda" and torch.cuda.get_device_capability() < (9, 0):
        kinds = kinds[:1]  # bfloat16 needs sm_90
    for given, got, (dtype, rounding, tanh_error, exp2_error) in zip(inputs, outputs, kinds, strict=False):
        wide = given.cpu().double()
        for row, want, error in zip(got.cpu().double(), (wide.tanh(), wide.exp2()), (tanh_error, exp2_error), strict=True):
            allowed = want.abs() * rounding + (error * want.abs().clamp(min=1) if device == "cuda" else 0)
            assert ((row - want).abs() <= allowed).all(), dtype


def test_compiles_without_spills(arch):
    for kernel in (FLOATS, PAIRS):
        resources = kernel.resources(arch)
        assert resources.spill_store_bytes == 0 and resources.stack_bytes == 0
