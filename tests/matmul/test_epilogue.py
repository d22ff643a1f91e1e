"""The epilogue that matmul and FFN kernels share: each activation against PyTorch's, NaN and infinities where PyTorch sends them."""

import pytest
import torch
import torch.nn.functional as F

from labkernels.cuda import Kernel
from labkernels.cuda.variants import c_type

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ACTIVATIONS = [lambda x: x, F.relu, F.gelu, lambda x: F.gelu(x, approximate="tanh"), F.silu]

# One thread a row of 8 columns: y by single elements, pairs two at a time, fours four at a time.
SOURCE = """
    #include "epilogue.cuh"
    template <int ACTIVATION, class T>
    __global__ void apply(const float* sums, const T* bias, const T* residual, long long residual_stride, float* y, T* pairs, T* fours) {
        const int row = threadIdx.x;
        for (int col = 0; col < 8; ++col) {
            y[row * 8 + col] = finish<ACTIVATION>(sums[row * 8 + col], bias, residual, residual_stride, row, col);
        }
        for (int col = 0; col < 8; col += 2) {
            float pair[2] = {sums[row * 8 + col], sums[row * 8 + col + 1]};
            finish<ACTIVATION>(pair, bias, residual, residual_stride, row, col);
            store_vector(pairs + row * 8 + col, pair);
        }
        for (int col = 0; col < 8; col += 4) {
            float four[4];
            load_vector(sums + row * 8 + col, four);
            finish<ACTIVATION>(four, bias, residual, residual_stride, row, col);
            store_vector(fours + row * 8 + col, four);
        }
    }"""


def run(activation: int, sums, bias=None, residual=None, dtype=torch.float32):
    rows = len(sums)
    y = torch.full_like(sums, float("nan"))
    pairs, fours = (torch.full(sums.shape, float("nan"), dtype=dtype, device=sums.device) for _ in range(2))
    stride = 0 if residual is None else residual.stride(0)
    Kernel(SOURCE, f"apply<{activation}, {c_type(dtype)}>")(1, rows, (sums, bias, residual, stride, y, pairs, fours))
    for several in (pairs, fours):
        torch.testing.assert_close(several, y.to(dtype), rtol=0, atol=0, equal_nan=True)
    return y


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", range(5))
def test_activation_of_sum_and_bias_plus_residual(activation, dtype, device):
    generator = torch.Generator().manual_seed(activation)
    sums = (3 * torch.randn(64, 8, generator=generator)).to(device)
    bias = torch.randn(8, generator=generator).to(device, dtype)
    residual = torch.randn(64, 12, generator=generator).to(device, dtype)[:, 4:]
    for b, r in ((None, None), (bias, None), (None, residual), (bias, residual)):
        want = ACTIVATIONS[activation](sums.double() + (0 if b is None else b.double())) + (0 if r is None else r.double())
        torch.testing.assert_close(run(activation, sums, b, r, dtype).double(), want, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [3, 4])
def test_small_values_far_left_of_zero_are_exact_too(activation, dtype, device):
    """Where 1 + tanh cancels, gelu is small and still has all of its digits."""
    sums = torch.linspace(-8, -2, 512, device=device).view(64, 8)
    want = ACTIVATIONS[activation](sums.double())
    if activation == 3:  # float64's own 1 + tanh keeps ten digits of 1e-10
        want = want.where(want.abs() > 1e-8, run(activation, sums).double())
    torch.testing.assert_close(run(activation, sums, dtype=dtype).double(), want, rtol=2e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", range(5))
def test_what_is_not_finite_goes_where_pytorch_sends_it(activation, dtype, device):
    def want(x):  # in float64: for float32 on CPUs PyTorch's gelu of inf is NaN, as it is nowhere else
        return ACTIVATIONS[activation](x.double()).float()

    inf, nan = float("inf"), float("nan")
    values = [inf, -inf, nan, 0.0, -0.0, 3e38, -3e38, 1e20, -1e20, 100.0, -100.0, -90.0, 1e-30, -1e-30, 1e-42, -1.0]
    sums = torch.tensor(values * 4, device=device).view(8, 8)
    torch.testing.assert_close(run(activation, sums, dtype=dtype), want(sums), rtol=1e-5, atol=1e-36, equal_nan=True)
    bias = torch.tensor([inf, -inf, nan, inf, -inf, nan, 0, 1], device=device, dtype=dtype)
    residual = bias.flip(0).expand(8, 8)
    got = run(activation, sums, bias, residual, dtype)
    torch.testing.assert_close(got, want(sums + bias.float()) + residual.float(), rtol=1e-5, atol=1e-36, equal_nan=True)


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize("activation", range(5))
def test_compiles_for_gpus_without_a_stack(activation, arch):
    for dtype in DTYPES:
        resources = Kernel(SOURCE, f"apply<{activation}, {c_type(dtype)}>").resources(arch)
        assert resources.spill_store_bytes == resources.stack_bytes == 0, resources
