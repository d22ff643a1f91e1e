"""Every version of the norms: right on rows of any length, strides, mixed dtypes, special values; exact where it must be; and what each refuses."""

import pytest
import torch

import labkernels as lk
from labkernels.cuda import sanitizing
from labkernels.cuda.kernel import Kernel
from labkernels.lab.check import check
from labkernels.norm import launch, reference
from labkernels.norm.launch import FOLDER, LAYER, RMS, Backward, Problem
from tests.recorded_resources import taken

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
FORWARD = {"v1_naive": launch.naive, "v2_registers": launch.registers, "v3_ring": launch.ring, "v4_packed": launch.packed}
BACKWARD = {"v1_naive": launch.naive_backward, "v2_registers": launch.registers_backward, "v3_ring": launch.ring_backward}
NAMES = ("rms_norm", "layer_norm", "add_rms_norm", "rms_norm_quantized", "rms_norm_backward", "layer_norm_backward")
LADDERS = [(name, version) for name in NAMES for version in lk.ops[name].variants]


def random(rows: int, cols: int, device: str = "cpu", dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(cols + seed)).to(device, dtype)


def assert_close(got: torch.Tensor, want: torch.Tensor, times: float = 1.0) -> None:
    """As close as rounding to the result's dtype allows."""
    relative = {torch.float32: 2e-5, torch.float16: 2**-10, torch.bfloat16: 2**-7}[got.dtype] * times
    torch.testing.assert_close(got.double(), want, rtol=relative, atol=relative * float(want.abs().max()) / 4)


# A kernel is an instantiation of its template, and each one takes the emulator's compiler some half a second: float32 for some, bfloat16 for
# the others; on a GPU all.
@pytest.mark.parametrize("name, version", LADDERS)
def test_variant_passes_the_check(name, version):
    dtype = "float32" if version in ("v1_naive", "v2_registers") else "bfloat16"
    assert check(name, version, seeds=(0,), dtypes=[dtype], isolated=False, quiet=True).sanitizer == "clean"


@pytest.mark.gpu
@pytest.mark.parametrize("name, version", LADDERS)
def test_variant_passes_the_check_in_all_dtypes(name, version):
    assert check(name, version, seeds=(0,), dtypes=["float32", "bfloat16", "float16"], isolated=False, quiet=True).passed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("version", FORWARD)
def test_float16_with_a_float32_weight(version, device):
    x, weight = random(5, 1024, device, torch.float16), random(1, 1024, device)[0] + 1
    y, _, _ = FORWARD[version](Problem(RMS, x, weight, 1e-5))
    assert_close(y, reference.rms_norm(x.double(), weight.double()))
    grad = random(5, 1024, device, torch.float16, seed=1)
    if version not in BACKWARD:
        return
    dx, dweight, _ = BACKWARD[version](Backward(RMS, grad, x, weight, 1e-5))
    want = reference.rms_norm_backward(grad.double(), x.double(), weight.double())
    assert_close(dx, want[0])
    assert_close(dweight, want[1])
    assert dweight.dtype == torch.float32


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_rows_too_long_for_registers_are_streamed(kind):
    x, weight = random(2, 16_400), random(1, 16_400)[0]
    with sanitizing():
        y, _, _ = launch.registers(Problem(kind, x, weight, 1e-5))
    want = reference.layer_norm if kind == LAYER else reference.rms_norm
    assert_close(y, want(x.double(), weight.double()))


@pytest.mark.parametrize("kind", [RMS, LAYER])
def test_gradients_of_rows_too_long_for_registers(kind):
    x, grad, weight = random(20, 8200), random(20, 8200, seed=1), random(1, 8200)[0]
    got = launch.registers_backward(Backward(kind, grad, x, weight, 1e-5, grad if kind == RMS else None))
    tensors = grad.double(), x.double(), weight.double()
    want = reference.layer_norm_backward(*tensors) if kind == LAYER else reference.rms_norm_backward(*tensors, grad_sum=grad.double())
    for one, other in zip(got, want):
        assert_close(one, other)


def test_a_long_sum_and_a_long_quantised_norm_are_streamed():
    x, residual, weight, bias = random(2, 16_400), random(2, 16_400, seed=1), random(1, 16_400)[0], random(1, 16_400, seed=2)[0]
    y, total, scale = launch.registers(Problem(RMS, x, weight, 1e-5, residual=residual, bias=bias, out_dtype=torch.int8))
    want, want_total = reference.add_rms_norm(*(tensor.double() for tensor in (x, residual, weight, bias)))
    assert_close(total, want_total)
    assert (y * scale - want).abs().max() <= 0.501 * scale.max()


@pytest.mark.parametrize("version", FORWARD)
def test_the_norm_of_a_sum_is_that_of_the_rounded_sum(version):
    """So what a layer reads later, the sum, has exactly the norm that was handed on; gradients are worked out from it."""
    x, residual, weight = random(3, 1024, dtype=torch.bfloat16), random(3, 1024, dtype=torch.bfloat16, seed=1), random(1, 1024, dtype=torch.bfloat16)[0]
    y, total, _ = FORWARD[version](Problem(RMS, x, weight, 1e-5, residual=residual))
    assert torch.equal(total, x + residual)
    assert torch.equal(y, FORWARD[version](Problem(RMS, total, weight, 1e-5))[0])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", reference.NARROW)
@pytest.mark.parametrize("version", FORWARD)
def test_quantised_numbers_are_those_of_the_reference(version, dtype, device):
    """Exactly, but where a float32 sum in another order has moved a number across the middle between two steps."""
    x, weight = random(6, 1024, device, torch.bfloat16), random(1, 1024, device, torch.bfloat16)[0]
    x[2] = 0
    values, _, scale = FORWARD[version](Problem(RMS, x, weight, 1e-5, out_dtype=dtype))
    want, want_scale = reference.quantized(reference.rms_norm(x.double(), weight.double()), dtype)
    torch.testing.assert_close(scale, want_scale, rtol=1e-6, atol=0)
    assert values.dtype == dtype and scale[2] == 0 and values[2].float().eq(0).all()
    different = values.float() != want.float()
    assert different.float().mean() < 1e-3
    assert values.float().abs().amax(1)[[0, 1, 3, 4, 5]].eq(reference.NARROW[dtype]).all()


@pytest.mark.parametrize("version", FORWARD)
def test_rows_apart_are_read_where_they_are(version):
    x, grad, weight = random(5, 1032)[:, :1024], random(5, 1040, seed=1)[:, 16:], random(1, 1024)[0]
    assert_close(FORWARD[version](Problem(RMS, x, weight, 1e-5))[0], reference.rms_norm(x.double(), weight.double()))
    if version not in BACKWARD:
        return
    dx, dweight, _ = BACKWARD[version](Backward(RMS, grad, x, weight, 1e-5))
    want = reference.rms_norm_backward(grad.double(), x.double(), weight.double())
    assert_close(dx, want[0])
    assert_close(dweight, want[1])


@pytest.mark.parametrize("version", FORWARD)
def test_rows_with_nan_or_infinity_leave_others_alone(version):
    x = random(4, 1024)
    x[1, 7] = torch.nan
    x[2, 1000] = torch.inf
    y = FORWARD[version](Problem(RMS, x, None, 1e-5))[0]
    assert y[1].isnan().all() and y[2, 1000].isnan() and y[2, :1000].eq(0).all()
    assert_close(y[[0, 3]], reference.rms_norm(x[[0, 3]].double()))


@pytest.mark.parametrize("version", FORWARD)
def test_a_row_of_zeros_is_finite(version):
    x, ones = torch.zeros(2, 1024), torch.ones(2, 1024)
    for kind in (RMS, LAYER):
        assert FORWARD[version](Problem(kind, x, None, 1e-5))[0].eq(0).all()
        if version not in BACKWARD:
            continue
        dx, dweight, _ = BACKWARD[version](Backward(kind, ones, x, None, 1e-5))
        assert dx.isfinite().all() and dweight.eq(0).all()


@pytest.mark.parametrize("version", FORWARD)
@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_nothing_in_nothing_out(version, shape):
    x = torch.empty(shape)
    assert FORWARD[version](Problem(LAYER, x, None, 1e-5))[0].shape == shape
    if version not in BACKWARD:
        return
    dx, dweight, dshift = BACKWARD[version](Backward(LAYER, x, x, None, 1e-5))
    assert dx.shape == shape and dweight.tolist() == dshift.tolist() == [0.0] * shape[1]


@pytest.mark.parametrize("version", ["v2_registers", "v3_ring"])
def test_more_rows_than_blocks_are_summed_in_a_fixed_order(version):
    """40 rows on the emulator's two multiprocessors: each block has several, and the ring goes round."""
    x, grad, weight = random(40, 1024), random(40, 1024, seed=1), random(1, 1024)[0]
    results = [BACKWARD[version](Backward(LAYER, grad, x, weight, 1e-5)) for _ in range(2)]
    for got, again, want in zip(*results, reference.layer_norm_backward(grad.double(), x.double(), weight.double())):
        assert torch.equal(got, again)
        assert_close(got, want)


def test_refusals():
    x = random(4, 100)
    rms = lk.ops["rms_norm"].variants
    assert rms["v2_registers"].accepts(x=x.t()) == "takes rows whose elements are neighbours in memory"
    assert "multiples of 16 bytes" in rms["v3_ring"].accepts(x=random(4, 33))
    assert "multiples of 16 bytes" in rms["v3_ring"].accepts(x=random(4, 65)[:, 1:])
    assert "at most 16384 elements" in rms["v3_ring"].accepts(x=torch.empty(2, 20_000))
    backward = lk.ops["rms_norm_backward"].variants
    assert "at most 8192 elements" in backward["v3_ring"].accepts(grad_out=torch.empty(2, 10_000), x=torch.empty(2, 10_000))
    assert backward["v1_naive"].accepts(grad_out=x.t(), x=x.t()) is None


BF16, F32 = "__nv_bfloat16", "float"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90a"])
@pytest.mark.parametrize(
    "file, name",
    [
        ("v1_naive", f"norm_naive<1, false, {F32}, {F32}, {F32}>"),
        ("v1_backward", f"norm_backward_rows<1, {BF16}, {BF16}>"),
        ("v2_registers", f"norm_registers<0, true, {BF16}, {BF16}, __nv_fp8_e4m3, 256, 2, 8>"),
        ("v2_registers", f"norm_registers<1, false, {F32}, {F32}, {F32}, 1024, 4, 4>"),
        ("v2_registers", f"norm_registers<1, false, {BF16}, {F32}, {BF16}, 512, 16, 1>"),
        ("v2_registers", f"norm_streamed<1, true, {BF16}, {BF16}, signed char, 8>"),
        ("v2_backward", f"norm_backward_registers<0, {BF16}, {BF16}, 256, 2, 8>"),
        ("v2_backward", f"norm_backward_registers<1, {F32}, {F32}, 512, 4, 4>"),
        ("v2_backward", f"norm_backward_streamed<1, {F32}, {F32}, 4>"),
    ],
)
def test_compiles_for_gpus_without_spills(file, name, arch):
    expect_no_spills(file, name, arch)


@pytest.mark.parametrize("cols", [1024, 4096, 8192])
@pytest.mark.parametrize("dtype", [BF16, F32])
def test_rings_compile_for_hopper_without_spills(cols, dtype):
    size = 2 if dtype == BF16 else 4
    for kind, add in ((0, "false"), (1, "false"), (0, "true")):
        inputs = 1 + (add == "true")
        ring = launch.forward_ring(cols, size, inputs)
        sizes = f"{ring.threads}, {ring.elements * size // 16}, {16 // size}, {ring.stages}"
        expect_no_spills("v3_ring", f"norm_ring<{kind}, {add}, {dtype}, {dtype}, {dtype}, {sizes}, {ring.blocks}>")
        if cols * size * (inputs + 1) * 2 <= launch.SHARED_BYTES:
            ring = launch.backward_ring(cols, size, inputs + 1, kind)
            sizes = f"{ring.threads}, {ring.elements * size // 16}, {16 // size}, {ring.stages}, {ring.groups}"
            expect_no_spills("v3_backward", f"norm_backward_ring<{kind}, {add}, {dtype}, {dtype}, {sizes}, {ring.blocks}>")


@pytest.mark.parametrize("cols", [1024, 4096, 16_384])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_rows_do_not_spill(cols, dtype):
    x = torch.empty(2, cols, dtype=dtype)
    for options in ({}, {"kind": LAYER}, {"residual": x}, {"out_dtype": torch.int8}, {"residual": x, "out_dtype": torch.float8_e4m3fn}):
        problem = Problem(**{"kind": RMS, "x": x, "weight": None, "eps": 1e-5} | options)
        threads, vectors, blocks = launch.packed_threads(problem)
        expect_no_spills("v4_packed", f"norm_packed<{', '.join(problem.types)}, {threads}, {vectors}, {16 // x.element_size()}, {blocks}>")


def expect_no_spills(file: str, name: str, arch: str = "sm_90a") -> None:
    resources = taken(Kernel(FOLDER / f"{file}.cu", name), arch)
    assert resources.spill_stores == resources.stack == 0, (name, resources)
